"""The commands `batch …`: submit, run, status, fetch and cancel a corpus through Batch files, at half the price."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dashscope_embeddings import corpus
from dashscope_embeddings.catalogue import DEFAULT_MODEL
from dashscope_embeddings.cli import options
from dashscope_embeddings.cli.common import EXIT_FAILED, EXIT_REJECTED, exit_on_error, fail, report_errors, stop_signals
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus.batch.messages import ENDED_STATUSES
from dashscope_embeddings.corpus.sources import printable_name

if TYPE_CHECKING:
    from dashscope_embeddings.corpus import BatchEstimate, BatchProgress, BatchSummary

_Region = Annotated[str | None, typer.Option(help="Documented for cn-beijing only.", show_default="cn-beijing")]
_BatchSize = Annotated[int | None, typer.Option(min=1, show_default="the model's", help="Texts per line.")]
_Window = Annotated[str, typer.Option(help="Time that the service may take: 24h to 336h, or 1d to 14d.")]
_Name = Annotated[str | None, typer.Option(help="Shown in the service's console, at most 100 characters.")]
_Description = Annotated[str | None, typer.Option(help="Shown in the service's console, at most 200 characters.")]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Embed files at half the price, within a day or days, through the service's Batch files.",
)


@app.command()
@report_errors
def submit(  # noqa: PLR0913 - one for each option
    inputs: options.Inputs,
    *,
    output: options.Output,
    text_field: options.TextField = "text",
    id_field: options.IdField = None,
    format: options.Format = None,  # noqa: A002 - the option's name
    encoding: options.Encoding = "utf-8",
    on_bad_input: options.OnBadInput = "fail",
    with_text: options.WithText = False,
    model: options.Model = DEFAULT_MODEL,
    dimensions: options.Dimensions = None,
    long_text: options.LongText = "error",
    batch_size: _BatchSize = None,
    region: _Region = None,
    workspace: options.Workspace = None,
    base_url: options.BaseUrl = None,
    retry_rejected: options.RetryRejected = False,
    window: _Window = "24h",
    name: _Name = None,
    description: _Description = None,
) -> None:
    """Submit all texts of some files; `batch fetch` fetches the vectors.

    From then on only OUTPUT.ledger and OUTPUT.ledger-vectors are needed, on
    another machine too. Texts that are paid for or under way are not sent
    again.

    Exit codes: 0 submitted (or nothing left to submit), otherwise as for
    `batch run`.
    """
    arguments = locals()
    with exit_on_error(*_interruption_hints(output)), stop_signals(_STOPPING_MESSAGE) as stop:
        summary = corpus.batch_submit(
            inputs,
            output,
            client=EmbeddingClient(**options.client_options(arguments), protocol="openai"),
            window=window,
            name=name,
            description=description,
            before=_print_estimate,
            progress=_print_progress,
            stop=stop,
            **options.input_options(arguments),
        )
        if summary.under_way and not summary.stopped:
            command = f"`batch fetch -o {printable_name(output)}`"
            typer.echo(f"{summary.under_way:,} texts are under way: {command} fetches their vectors")
            return
        _print_summary(summary, output)


@app.command()
@report_errors
def run(  # noqa: PLR0913 - one for each option
    inputs: options.Inputs,
    *,
    output: options.Output,
    text_field: options.TextField = "text",
    id_field: options.IdField = None,
    format: options.Format = None,  # noqa: A002 - the option's name
    encoding: options.Encoding = "utf-8",
    on_bad_input: options.OnBadInput = "fail",
    with_text: options.WithText = False,
    model: options.Model = DEFAULT_MODEL,
    dimensions: options.Dimensions = None,
    long_text: options.LongText = "error",
    batch_size: _BatchSize = None,
    region: _Region = None,
    workspace: options.Workspace = None,
    base_url: options.BaseUrl = None,
    retry_rejected: options.RetryRejected = False,
    window: _Window = "24h",
    name: _Name = None,
    description: _Description = None,
    poll: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", show_default="30, growing to 120", help="Between polls.")
    ] = None,
) -> None:
    """Submit, wait, fetch, and resubmit failed texts until all are embedded.

    This may take days.

    Exit codes: 0 all embedded, 1 failed, stopped or still under way (run it
    again to continue), 2 wrong use or bad input, 3 some texts were rejected or
    skipped (OUTPUT.rejects.jsonl).
    """
    arguments = locals()
    with exit_on_error(*_interruption_hints(output)), stop_signals(_STOPPING_MESSAGE) as stop:
        summary = corpus.batch_run(
            inputs,
            output,
            client=EmbeddingClient(**options.client_options(arguments), protocol="openai"),
            window=window,
            name=name,
            description=description,
            poll=poll,
            before=_print_estimate,
            progress=_print_progress,
            stop=stop,
            **options.input_options(arguments),
        )
        _print_summary(summary, output)


@app.command()
@report_errors
def status(
    *,
    output: options.Output,
    region: _Region = None,
    workspace: options.Workspace = None,
    base_url: options.BaseUrl = None,
) -> None:
    """Show the status of all batches; fetch and change nothing."""
    with exit_on_error(*_interruption_hints(output)):
        client = corpus.batch_client(output, region=region, workspace=workspace, base_url=base_url)
        files = corpus.batch_status(output, client=client).files
        for file in files:
            done = "" if file.completed is None else f", {file.completed:,} lines done, {file.failed or 0:,} failed"
            state_text = f"{file.batch_id} {file.status or file.state}" if file.batch_id else "no batch was created"
            fetched = ", fetched" if file.batch_id and file.state == "closed" else ""
            typer.echo(f"file {file.number}: {state_text}, {file.texts:,} texts in {file.lines:,} lines{done}{fetched}")
        left = [file for file in files if file.batch_id and file.state != "closed"]
        ended = sum(file.texts for file in left if file.status in ENDED_STATUSES)
        if ended:
            typer.echo(f"{ended:,} texts of ended batches are to be fetched: `batch fetch -o {printable_name(output)}`")
        if running := sum(file.texts for file in left) - ended:
            typer.echo(
                f"{running:,} texts are under way, and billed as they are done, unless `batch cancel` stops them"
            )
        if not left:
            typer.echo(f"all is done: {printable_name(output)}" if output.exists() else "nothing is under way")


@app.command()
@report_errors
def fetch(
    *,
    output: options.Output,
    retry: Annotated[bool, typer.Option(help="Submit failed texts again.")] = True,
    region: _Region = None,
    workspace: options.Workspace = None,
    base_url: options.BaseUrl = None,
) -> None:
    """Fetch the results of ended batches; after the last, write the output.

    Needs OUTPUT.ledger, but not the input.

    Exit codes: as for `batch run`; 1 while anything is under way.
    """
    with exit_on_error(*_interruption_hints(output)), stop_signals(_STOPPING_MESSAGE) as stop:
        client = corpus.batch_client(output, region=region, workspace=workspace, base_url=base_url)
        _print_summary(
            corpus.batch_fetch(output, client=client, retry=retry, progress=_print_progress, stop=stop), output
        )


@app.command()
@report_errors
def cancel(
    *,
    output: options.Output,
    region: _Region = None,
    workspace: options.Workspace = None,
    base_url: options.BaseUrl = None,
) -> None:
    """Cancel all batches; lines that are done by then are billed, and `batch fetch` fetches them."""
    with exit_on_error(*_interruption_hints(output)):
        client = corpus.batch_client(output, region=region, workspace=workspace, base_url=base_url)
        summary = corpus.batch_cancel(output, client=client, progress=_print_progress)
        message, command = "nothing is under way", f"`batch fetch -o {printable_name(output)}`"
        if summary.under_way:
            message = f"of {summary.under_way:,} texts, those that were done are billed: {command} fetches them"
        elif summary.embedded:
            message += f"; {summary.embedded:,} texts of ended batches were fetched: {command} writes them"
        typer.echo(message)


# --- messages ----------------------------------------------------------------------------------------------


_STOPPING_MESSAGE = "stopping; what is submitted stays submitted"


def _interruption_hints(output: Path) -> tuple[str, str]:
    return (
        f"What was submitted, and what was fetched, is in {corpus.ledger_beside(output)}",
        "Batches under way continue, and are billed, unless `batch cancel` stops them.",
    )


def _print_progress(progress: BatchProgress) -> None:
    typer.echo(progress.message, err=True)


def _print_estimate(estimate: BatchEstimate) -> None:
    typer.echo(f"{estimate.texts:,} texts, of which {estimate.pending:,} are to be submitted (equal ones once)")
    if estimate.skipped:
        typer.echo(f"{estimate.skipped:,} records are no usable texts and are skipped")
    if not estimate.pending:
        return
    tokens, files = estimate.tokens, estimate.files
    typer.echo(f"about {tokens:,} tokens, by a rule of thumb that may be a third off, in {files:,} files")
    typer.echo(f"list price, Batch files: {estimate.cost or 'not known'}")
    typer.echo(
        "Batch lines carry no role. Which one the service gives them is not documented (an assumption says document, "
        "one measurement query): `dashscope-embeddings check` measures it with your key."
    )
    if not estimate.documented:
        typer.echo("Batch files for embeddings are documented for Beijing only: expect a refusal here.")


def _print_summary(summary: BatchSummary, output: Path) -> None:
    name, usage = printable_name(output), summary.usage
    if summary.finished:
        rows = summary.texts - summary.rejected
        typer.echo(f"{name}: {rows:,} vectors, {summary.embedded:,} texts fetched now ({usage})")
        if summary.spent != usage:
            typer.echo(f"all calls together: {summary.spent}")
        if summary.rejects is not None:
            rejects = printable_name(summary.rejects)
            typer.echo(f"{summary.rejected:,} rejected, {summary.skipped:,} skipped: see {rejects}")
            raise typer.Exit(EXIT_REJECTED)
        return
    lines = [f"{summary.embedded:,} texts fetched now ({usage}), {summary.pending:,} without vectors yet"]
    if summary.stopped:
        lines.append("stopped: what is submitted stays submitted; the same command goes on")
    if summary.under_way:
        lines.append(
            f"{summary.under_way:,} texts are under way: `batch fetch -o {name}` fetches them. They are billed unless "
            f"`batch cancel -o {name}` stops them"
        )
    if summary.given_up:
        lines.append(
            f"{summary.given_up:,} texts failed too often, or were cancelled or refused with their file: "
            "`batch submit` or `batch run` tries them again"
        )
    elif not summary.under_way and summary.pending and not summary.stopped:
        lines.append("nothing is under way: `batch fetch`, or `batch submit` with the inputs, goes on")
    fail("\n".join(lines), EXIT_FAILED)
