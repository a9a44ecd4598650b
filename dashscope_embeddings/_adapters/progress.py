"""A progress bar over texts: a widget in notebooks, a line in terminals."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def import_tqdm() -> Any:
    """Imports and returns tqdm's class of progress bars; an ImportError says what to install."""
    try:
        from tqdm.auto import tqdm  # noqa: PLC0415 - an optional dependency
    except ImportError as missing:
        raise ImportError("a progress bar needs tqdm: pip install tqdm") from missing
    return tqdm


@contextlib.contextmanager
def progress_bar(total: int, *, show: bool) -> Iterator[Callable[[int], object] | None]:
    """Gives a function to call with the number of further texts done; None if `show` is false."""
    if not show:
        yield None
        return
    with import_tqdm()(total=total, desc="Embedding", unit="text") as bar:
        yield bar.update
