"""A progress bar over texts: a widget in notebooks, a line in terminals."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


def import_tqdm() -> Any:
    """Imports and returns tqdm's class of progress bars; an ImportError says what to install."""
    try:
        from tqdm.auto import tqdm  # noqa: PLC0415 - an optional dependency
    except ImportError as missing:
        raise ImportError("a progress bar needs tqdm: pip install tqdm") from missing
    return tqdm


def progress_bar(
    total: int, *, progress: Callable[[int], object] | bool | None
) -> AbstractContextManager[Callable[[int], object] | None]:
    """Gives a function to call with the number of further texts done: for True that of a bar, else `progress`."""
    if isinstance(progress, bool):  # a program without a console has no place for a bar
        return _Bar(total) if progress and sys.stderr is not None else contextlib.nullcontext()
    return contextlib.nullcontext(progress)


class _Bar:
    """Not a `contextlib` generator: that assigns to attributes of a passing exception, which some do not allow."""

    def __init__(self, total: int) -> None:
        self._bar = import_tqdm()(total=total, desc="Embedding", unit="text")

    def __enter__(self) -> Callable[[int], object]:
        update: Callable[[int], object] = self._bar.update
        return update

    def __exit__(self, *_: object) -> None:
        self._bar.close()
