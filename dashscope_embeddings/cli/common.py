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

from dashscope_embeddings._core.redaction import escape_control_characters
from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent
from dashscope_embeddings.errors import (
    Action,
    AuthenticationError,
    ConnectionFailed,
    DashScopeError,
    InvalidInput,
    QuotaError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXIT_FAILED, EXIT_USAGE, EXIT_REJECTED = 1, 2, 3
"""Exit codes: failed or stopped, and the same command goes on; wrong use or bad input; some were rejected."""


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    """Says it in red, and ends the command."""
    print_error(message, "red")
    raise typer.Exit(code)


def print_error(message: str, colour: str) -> None:
    """Lines on standard error, in which nothing is an order to the terminal."""
    lines = "\n".join(map(escape_control_characters, message.splitlines()))
    Console(stderr=True, highlight=False).print(Text(lines, colour), soft_wrap=True)


def report_errors(function: Callable[..., None]) -> Callable[..., None]:
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
    print_error(str(message), "yellow")


@contextlib.contextmanager
def exit_on_error(kept_message: str, extra_message: str = "") -> Iterator[None]:
    """Errors in a line, with the exit code that they stand for; `kept`: what is not lost, `more`: what else matters."""
    try:
        yield
    except InvalidInput as error:
        print_error("\n".join([str(error), *list(error.reasons.values())[1:]]), "red")
        raise typer.Exit(EXIT_USAGE) from error
    except ImportError as missing:
        fail(str(missing), EXIT_USAGE)
    except (DashScopeError, OSError) as error:
        fail(f"{error}\n{kept_message}{_resume_hint(error)} {extra_message}".rstrip())


def _resume_hint(error: DashScopeError | OSError) -> str:
    """Whether the same command goes on: not where the command itself is what is refused."""
    if isinstance(error, OSError):
        is_fixable = error.errno is not None  # else it is a file that is damaged, and not its disk
    elif error.action in {Action.RETRY, Action.BACK_OFF}:
        return "; the same command goes on."
    else:
        is_fixable = isinstance(error, (AuthenticationError, QuotaError, ConnectionFailed))
    return "; once that is mended, the same command goes on." if is_fixable else "."


@contextlib.contextmanager
def stop_signals(message: str) -> Iterator[SignalSafeEvent]:
    """A flag that the first Ctrl-C or SIGTERM sets, saying what happens then; a second one ends the program."""
    stopped = SignalSafeEvent()
    names = (signal.SIGINT, signal.SIGTERM)
    previous_handlers: dict[signal.Signals, Any] = {name: signal.getsignal(name) for name in names}

    def restore() -> None:
        for name, handler in previous_handlers.items():
            signal.signal(name, handler)

    def stop(*_: object) -> None:
        stopped.set()
        restore()
        typer.echo(message, err=True)

    handler: Callable[..., None] = stop
    for name in names:
        signal.signal(name, handler)
    try:
        yield stopped
    finally:
        restore()
