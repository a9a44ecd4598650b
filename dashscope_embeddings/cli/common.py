"""What the commands have in common: exit codes, errors in a line, and a Ctrl-C that loses nothing."""

from __future__ import annotations

import contextlib
import functools
import signal
import warnings
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from dashscope_embeddings._core.redaction import escaped
from dashscope_embeddings._runtime.thread_pool import Flag
from dashscope_embeddings.errors import (
    AuthenticationError,
    ConnectionFailed,
    DashScopeError,
    InvalidInput,
    QuotaError,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAILED, USAGE, REJECTED = 1, 2, 3
"""Exit codes: failed or stopped, and the same command goes on; wrong use or bad input; some were rejected."""


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Says it in red, and ends the command."""
    say(message, "red")
    raise typer.Exit(code)


def say(message: str, colour: str) -> None:
    """Lines on standard error, in which nothing is an order to the terminal."""
    lines = "\n".join(map(escaped, message.splitlines()))
    Console(stderr=True, highlight=False).print(Text(lines, colour), soft_wrap=True)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Tells an error in a red line instead of a traceback, and a warning in a yellow one."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                function(*args, **kwargs)
            except DashScopeError as error:
                fail(str(error))

    return run


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    say(str(message), "yellow")


@contextlib.contextmanager
def telling(kept: str, more: str = "") -> Iterator[None]:
    """Errors in a line, with the exit code that they stand for; `kept`: what is not lost, `more`: what else matters."""
    try:
        yield
    except InvalidInput as error:
        say("\n".join([str(error), *list(error.reasons.values())[1:]]), "red")
        raise typer.Exit(USAGE) from error
    except ImportError as missing:
        fail(str(missing), USAGE)
    except (DashScopeError, OSError) as error:
        fail(f"{error}\n{kept}{_how_to_go_on(error)} {more}".rstrip())


def _how_to_go_on(error: DashScopeError | OSError) -> str:
    """Whether the same command goes on: not where the command itself is what is refused."""
    if isinstance(error, OSError):
        mendable = error.errno is not None  # else it is a file that is damaged, and not its disk
    elif error.verdict in {Verdict.RETRY, Verdict.THROTTLE}:
        return "; the same command goes on."
    else:
        mendable = isinstance(error, (AuthenticationError, QuotaError, ConnectionFailed))
    return "; once that is mended, the same command goes on." if mendable else "."


@contextlib.contextmanager
def stop_signals(said: str) -> Iterator[Flag]:
    """A flag that the first Ctrl-C or SIGTERM sets, saying what happens then; a second one ends the program."""
    stopped = Flag()
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
