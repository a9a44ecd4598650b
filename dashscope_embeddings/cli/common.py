"""Shared by the commands: exit codes, errors as one line instead of a traceback, and a graceful Ctrl-C."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from dashscope_embeddings._core.redaction import escape_control_characters
from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent
from dashscope_embeddings.cli.options import in_words_of_commands
from dashscope_embeddings.corpus.checkpoint.opening import read_state
from dashscope_embeddings.errors import (
    Action,
    AuthenticationError,
    ConnectionFailed,
    DashScopeError,
    InvalidInput,
    QuotaError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

EXIT_FAILED, EXIT_USAGE, EXIT_REJECTED = 1, 2, 3
"""Exit codes: failed or stopped, and the same command resumes; wrong use or bad input; some rows were rejected."""


def console(*, stderr: bool = False) -> Console:
    """A console for the current sys.stdout or sys.stderr, which tests replace."""
    return Console(stderr=stderr, highlight=False)


def make_table(title: str, *heads: str, align: Literal["left", "right"] = "right") -> Table:
    """A table without borders; `align` holds for all columns but the first. A column without a head may wrap."""
    # As Text: rich would read the brackets of an IPv6 address as markup.
    table = Table(title=Text(title, "bold"), title_justify="left", box=None, pad_edge=False)
    for index, head in enumerate(heads):
        # Hosts and numbers that are broken into two lines cannot be copied.
        justify = align if index else "left"
        table.add_column(head, justify=justify, no_wrap=bool(head), header_style="cyan", overflow="fold")
    return table


class _FlagsWithoutType:
    """Newer releases of typer show `<bool>` beside every flag."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The arguments and options of a command, with --help."""
        found: list[Any] = super().get_params(ctx)  # type: ignore[misc] # a mixin of click's commands
        for option in found:
            if getattr(option, "is_flag", False):
                option.metavar = ""
        return found


class _Command(_FlagsWithoutType, TyperCommand):
    pass


class _Group(_FlagsWithoutType, TyperGroup):
    pass


def make_app(commands: Iterable[Callable[..., None]], help_text: str | None = None) -> typer.Typer:
    """A group of commands, each of which prints its errors as a line."""
    # No local variables: they may hold a key.
    app = typer.Typer(
        cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False, help=help_text
    )
    for command in commands:
        app.command(cls=_Command)(report_errors(command))
    return app


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    """Prints an error in red, and ends the command."""
    print_error(message, "red")
    raise typer.Exit(code)


def print_error(message: str, colour: str) -> None:
    """Prints lines to standard error, with control characters escaped and in the words of the command line."""
    lines = "\n".join(map(escape_control_characters, in_words_of_commands(message).splitlines()))
    tqdm = sys.modules.get("tqdm")
    with tqdm.tqdm.external_write_mode(sys.stderr) if tqdm else contextlib.nullcontext():  # not in the midst of a bar
        console(stderr=True).print(Text(lines, colour), soft_wrap=True)


def report_errors(function: Callable[..., None]) -> Callable[..., None]:
    """Decorates a command: prints an error as a red line instead of a traceback, and a warning as a yellow one."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        package, notes = logging.getLogger("dashscope_embeddings"), logging.getLogger("dashscope_embeddings.corpus")
        handler = _LogHandler()
        package.addHandler(handler)
        notes.setLevel(logging.INFO)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                function(*args, **kwargs)
        except BrokenPipeError:
            raise  # typer ends the command
        except (DashScopeError, OSError) as error:
            fail(_describe(error), EXIT_USAGE if isinstance(error, InvalidInput) else EXIT_FAILED)
        except MemoryError:
            fail("not enough memory: is a line of the input endless?")
        finally:
            package.removeHandler(handler)
            notes.setLevel(logging.NOTSET)

    return run


class _LogHandler(logging.Handler):
    """Prints what the library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record as a line."""
        print_error(record.getMessage(), "yellow" if record.levelno >= logging.WARNING else "")


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print_error(str(message), "yellow")


@contextlib.contextmanager
def exit_on_error(ledger: Path | None = None, kept_message: str = "", under_way_message: str = "") -> Iterator[None]:
    """Prints an error as a line and ends the command with the matching exit code.

    Args:
        ledger: The checkpoint of the command; None: it has none.
        kept_message: What is not lost, and so begins the second line if the checkpoint has results.
        under_way_message: Ends that line if a batch is under way.
    """
    try:
        yield
    except InvalidInput as error:
        fail("\n".join([str(error), *_further_reasons(error)]), EXIT_USAGE)
    except ImportError as missing:
        fail(str(missing), EXIT_USAGE)
    except (DashScopeError, OSError) as error:
        has_results, is_under_way = (False, False) if ledger is None else read_state(ledger)
        if not has_results:
            may_be_sent = ledger is not None and (isinstance(error, DashScopeError) or ledger.exists())
            kept_message = "No vectors are stored yet" if may_be_sent else "Nothing was sent"
        hint = f"{kept_message}{_resume_hint(error)} {under_way_message if is_under_way else ''}"
        fail(f"{_describe(error)}\n{hint}".rstrip())


def _describe(error: DashScopeError | OSError) -> str:
    """An error's message; where it names a file, in the system's words."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _further_reasons(error: InvalidInput) -> Iterator[str]:
    """The problem of each bad record but the first; one that repeats is not spelt out again."""
    for before, line in itertools.pairwise(error.reasons.values()):
        place, _, reason = line.partition(": ")
        yield f"{place}: the same" if reason and reason == before.partition(": ")[2] else line


def _resume_hint(error: DashScopeError | OSError) -> str:
    """Whether the same command resumes the job: it does not if the command itself is refused."""
    if not isinstance(error, OSError) and error.action in {Action.RETRY, Action.BACK_OFF}:
        return "; the same command goes on."
    is_fixable = isinstance(error, (OSError, AuthenticationError, QuotaError, ConnectionFailed))
    return "; once that is mended, the same command goes on." if is_fixable else "."


class StopRequest(SignalSafeEvent):
    """The event of `stop_signals`, which knows whether the job has begun to ask for it."""

    is_observed = False

    def is_set(self) -> bool:
        """Whether a signal has come."""
        self.is_observed = True
        return super().is_set()


class _StoppedEarly(KeyboardInterrupt):
    """A signal while the input is read: a pipe may never end, and nothing was sent yet that could be lost."""


@contextlib.contextmanager
def stop_signals(message: str = "", early_message: str = "") -> Iterator[StopRequest]:
    """An event that the first Ctrl-C, SIGTERM or SIGHUP sets, printing `message`; a second one ends the program.

    SIGHUP, of a closed terminal, is ignored if it was ignored before, as `nohup` has it. It may come twice, from the
    shell and from the system, and ends nothing then.

    With an `early_message`, a signal that comes before the job has asked for the event ends the command at once.
    """
    stopped = StopRequest()
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    names = [signal.SIGINT, signal.SIGTERM]
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        names.append(hangup)
    previous_handlers: dict[signal.Signals, Any] = {name: signal.getsignal(name) for name in names}

    def restore() -> None:
        for name, handler in previous_handlers.items():
            signal.signal(name, handler)

    def stop(number: int, _: object) -> None:
        stopped.set()
        restore()
        if number == hangup:
            signal.signal(number, signal.SIG_IGN)
        if early_message and not stopped.is_observed:
            raise _StoppedEarly
        if message:
            with contextlib.suppress(OSError):  # the terminal is closed
                print_error(message, "")

    for name in names:
        signal.signal(name, stop)
    try:
        yield stopped
    except _StoppedEarly:
        fail(early_message)
    finally:
        restore()
