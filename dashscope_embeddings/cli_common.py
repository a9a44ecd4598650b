"""What the commands have in common: exit codes, errors in a line, and a Ctrl-C that loses nothing."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from dashscope_embeddings.errors import DashScopeError, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAILED, USAGE, REJECTED = 1, 2, 3
"""Exit codes: failed or stopped, and the same command goes on; wrong use or bad input; some were rejected."""


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Says it in red, and ends the command."""
    Console(stderr=True, highlight=False).print(Text(message, "red"), soft_wrap=True)
    raise typer.Exit(code)


@contextlib.contextmanager
def telling(goes_on: str) -> Iterator[None]:
    """Errors in a line, with the exit code that they stand for; `goes_on`: what is not lost, and how to go on."""
    try:
        yield
    except InvalidInput as error:
        Console(stderr=True, highlight=False).print(Text(str(error), "red"), soft_wrap=True)
        for said in list(error.reasons.values())[1:]:
            typer.echo(said, err=True)
        raise typer.Exit(USAGE) from error
    except ImportError as missing:
        fail(str(missing), USAGE)
    except (DashScopeError, OSError) as error:
        fail(f"{error}\n{goes_on}")


@contextlib.contextmanager
def stop_signals(said: str) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets, saying what happens then; a second one ends the program."""
    stopped = threading.Event()
    names = (signal.SIGINT, signal.SIGTERM)
    before: dict[signal.Signals, Any] = {name: signal.getsignal(name) for name in names}

    def restore() -> None:
        for name, handler in before.items():
            signal.signal(name, handler)

    def stop(*_: object) -> None:
        stopped.set()
        restore()
        typer.echo(said, err=True)

    handler: Callable[..., None] = stop
    for name in names:
        signal.signal(name, handler)
    try:
        yield stopped
    finally:
        restore()
