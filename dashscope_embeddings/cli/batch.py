"""The commands `batch …`: submit, run, status, fetch and cancel a corpus through Batch files, at half the price."""

from __future__ import annotations

import functools
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dashscope_embeddings import corpus
from dashscope_embeddings.cli import messages, options
from dashscope_embeddings.cli.common import exit_on_error, make_app, stop_signals
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus.sources import printable_name
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.vectors import counted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path


@options.takes(options.INPUT, options.CLIENT, options.BATCH, options.HOST, options.REQUESTS)
def submit(inputs: options.Inputs, *, output: options.Output, **settings: Any) -> None:
    """Submit all texts of some files; `batch fetch` fetches the vectors.

    From then on only the checkpoint OUTPUT.ledger is needed, on
    another machine too. Texts that are paid for or under way are not sent
    again.

    Exit codes: 0 submitted (or nothing left to submit), otherwise as for
    `batch run`.
    """
    job = _job_options(output, settings)
    with _hints(output), stop_signals(_STOPPING_MESSAGE, messages.BATCH_STOPPED_MESSAGE) as stop:
        submission = _submission(settings)
        if submission["client"].settings.address.is_emulator:
            raise InvalidInput(
                'base_url="emulator" ends with this command, and its batches with it: use `batch run`, or pass the '
                "address of `dashscope-embeddings emulator`"
            )
        summary = corpus.batch_submit(inputs, output, stop=stop, **submission)
        if summary.under_way and not summary.stopped:
            typer.echo(f"{counted(summary.under_way, 'text')} under way: `batch fetch {job}` fetches the vectors")
            return
        messages.print_batch_summary(summary, output, job)


@options.takes(options.INPUT, options.CLIENT, options.BATCH, options.HOST, options.REQUESTS)
def run(
    inputs: options.Inputs,
    *,
    output: options.Output,
    poll: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", show_default="30, growing to 120", help="Between polls.")
    ] = None,
    **settings: Any,
) -> None:
    """Submit, wait, fetch, and resubmit failed texts until all are embedded.

    This may take days.

    Exit codes: 0 all embedded, 1 failed, stopped or still under way (run it
    again to continue), 2 wrong use or bad input, 3 texts rejected or skipped
    (OUTPUT.rejects.jsonl).
    """
    job = _job_options(output, settings)
    with _hints(output):
        submission = _submission(settings)
        ends_with_command = submission["client"].settings.address.is_emulator
        stopping = _EMULATOR_STOPPING_MESSAGE if ends_with_command else _STOPPING_MESSAGE
        with stop_signals(stopping, messages.BATCH_STOPPED_MESSAGE) as stop:
            summary = corpus.batch_run(inputs, output, poll=poll, stop=stop, **submission)
            messages.print_batch_summary(summary, output, job)


@options.takes(options.HOST, options.REQUESTS)
def status(*, output: options.Output, **settings: Any) -> None:
    """Show the status of all batches; fetch and change nothing."""
    with _hints(output):
        client = corpus.batch_client(output, **settings)
        files = corpus.batch_status(output, client=client).files
        messages.print_status(files, output, _job_options(output, settings))


@options.takes(options.HOST, options.REQUESTS)
def fetch(
    *,
    output: options.Output,
    retry: Annotated[bool, typer.Option(help="Submit failed texts again.")] = True,
    **settings: Any,
) -> None:
    """Fetch the results of ended batches; after the last, write the output.

    Needs the checkpoint OUTPUT.ledger, but not the input.

    Exit codes: as for `batch run`; 1 while anything is under way.
    """
    with _hints(output), stop_signals(_STOPPING_MESSAGE) as stop:
        client = corpus.batch_client(output, **settings)
        summary = corpus.batch_fetch(output, client=client, retry=retry, progress=True, stop=stop)
        messages.print_batch_summary(summary, output, _job_options(output, settings))


@options.takes(options.HOST, options.REQUESTS)
def cancel(*, output: options.Output, **settings: Any) -> None:
    """Cancel all batches; lines that are done by then are billed, and `batch fetch` fetches them."""
    with _hints(output):
        client = corpus.batch_client(output, **settings)
        summary = corpus.batch_cancel(output, client=client, progress=True)
        message, command = "nothing is under way", f"`batch fetch {_job_options(output, settings)}`"
        if summary.under_way:
            message = f"of {counted(summary.under_way, 'text')}, what was done is billed: {command} fetches it"
        elif summary.embedded:
            message += f"; fetched: {counted(summary.embedded, 'text')} of ended batches, to be written by {command}"
        typer.echo(message)


_STOPPING_MESSAGE = "stopping; what is submitted stays submitted"
_EMULATOR_STOPPING_MESSAGE = (
    "stopping; the emulator ends with this command: `batch cancel` removes its batches, then the same command goes on"
)


def _submission(settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a submission, of which the client takes its own settings."""
    before = functools.partial(messages.print_batch_estimate, host=options.host_options(settings))
    client = EmbeddingClient(**options.take_client_settings(settings), protocol="openai")
    return {"client": client, "before": before, "progress": True, **settings}


def _job_options(output: Path, settings: dict[str, Any]) -> str:
    """The options with which another command finds this job."""
    return f"-o {shlex.quote(printable_name(output))}{options.host_options(settings)}"


def _hints(output: Path) -> AbstractContextManager[None]:
    """Ends the command on an error, and says what is not lost."""
    ledger = corpus.ledger_beside(output)
    return exit_on_error(
        ledger,
        f"What was submitted, and what was fetched, is in {ledger}",
        "Batches under way continue, and are billed, unless `batch cancel` stops them.",
    )


app = make_app(
    (submit, run, status, fetch, cancel),
    "Embed files at half the price, within days, through the service's Batch files.\n\n"
    "Exit codes: as for `embed`; with `run` and `fetch`, 1 too while anything is under way.",
)
