"""The commands `batch …`: a corpus at half the price, submitted, watched, fetched and cancelled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dashscope_embeddings import corpus
from dashscope_embeddings.catalogue import DEFAULT_MODEL
from dashscope_embeddings.cli.common import EXIT_FAILED, EXIT_REJECTED, exit_on_error, fail, report_errors, stop_signals
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus.sources import printable_name

if TYPE_CHECKING:
    from dashscope_embeddings.corpus import BatchEstimate, BatchProgress, BatchSummary

_Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        show_default=False,
        help=".txt (a text a line), .jsonl, .csv, .tsv, .parquet, folders, globs, or - for standard input.",
    ),
]
_Output = Annotated[
    Path, typer.Option("--output", "-o", help="Where to: .parquet, .jsonl or .npy.", show_default=False)
]
_TextField = Annotated[str, typer.Option(help="Field or column that holds the text.")]
_IdField = Annotated[
    str | None, typer.Option(help="The one that holds a unique id.", show_default="position in the input")
]
_Format = Annotated[
    str | None,
    typer.Option("--format", help="txt, jsonl, csv, tsv or parquet.", show_default="by each file's ending"),
]
_Encoding = Annotated[str, typer.Option(help="Of text files, such as gb18030.")]
_OnBadInput = Annotated[str, typer.Option(help="fail: before anything is spent; skip: name it in the rejects.")]
_WithText = Annotated[bool, typer.Option("--with-text", help="Put the texts into the output as well.")]
_Model = Annotated[str, typer.Option(help="See the command models.")]
_Dimensions = Annotated[int | None, typer.Option(min=1, show_default="the model's", help="Floats in a vector.")]
_LongText = Annotated[str, typer.Option(help="error (rejects it), truncate or average.")]
_BatchSize = Annotated[int | None, typer.Option(min=1, show_default="the model's", help="Texts in a line.")]
_Region = Annotated[str | None, typer.Option(help="Documented for cn-beijing alone.", show_default="cn-beijing")]
_Workspace = Annotated[str | None, typer.Option(help="Its own host is asked.")]
_BaseUrl = Annotated[str | None, typer.Option(help="Another address; emulator for none.")]
_Retry = Annotated[bool, typer.Option("--retry-rejected", help="Ask again for what the service refused before.")]
_Window = Annotated[str, typer.Option(help="How long it may take: 24h to 336h, or 1d to 14d.")]
_Name = Annotated[str | None, typer.Option(help="For the service's console, at most 100 characters.")]
_Description = Annotated[str | None, typer.Option(help="The same, at most 200.")]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Embed files at half the price, within a day or days, through the service's Batch files.",
)


@app.command()
@report_errors
def submit(  # noqa: PLR0913 - one for each option
    inputs: _Inputs,
    *,
    output: _Output,
    text_field: _TextField = "text",
    id_field: _IdField = None,
    form: _Format = None,
    encoding: _Encoding = "utf-8",
    on_bad_input: _OnBadInput = "fail",
    with_text: _WithText = False,
    model: _Model = DEFAULT_MODEL,
    dimensions: _Dimensions = None,
    long_text: _LongText = "error",
    batch_size: _BatchSize = None,
    region: _Region = None,
    workspace: _Workspace = None,
    base_url: _BaseUrl = None,
    retry_rejected: _Retry = False,
    window: _Window = "24h",
    name: _Name = None,
    description: _Description = None,
) -> None:
    """Submit all texts of some files; `batch fetch` brings the vectors, on another machine too.

    OUTPUT.ledger and OUTPUT.ledger-vectors are all that is needed from then on. Texts that are paid for, or under
    way, are not sent again.

    Exit codes: 0 submitted (or nothing left to submit), else as those of `batch run`.
    """
    options = _input_options(text_field, id_field, form, encoding, on_bad_input, with_text, retry_rejected)
    options |= {"window": window, "name": name, "description": description, "before": _print_estimate}
    with exit_on_error(*_interruption_hints(output)), stop_signals(_STOPPING_MESSAGE) as stop:
        client = _create_client(model, dimensions, long_text, batch_size, region, workspace, base_url)
        found = corpus.batch_submit(inputs, output, client=client, progress=_print_progress, stop=stop, **options)
        if found.under_way and not found.stopped:
            typer.echo(
                f"{found.under_way:,} texts are under way: "
                f"`batch fetch -o {printable_name(output)}` brings their vectors"
            )
            return
        _print_summary(found, output)


@app.command()
@report_errors
def run(  # noqa: PLR0913 - one for each option
    inputs: _Inputs,
    *,
    output: _Output,
    text_field: _TextField = "text",
    id_field: _IdField = None,
    form: _Format = None,
    encoding: _Encoding = "utf-8",
    on_bad_input: _OnBadInput = "fail",
    with_text: _WithText = False,
    model: _Model = DEFAULT_MODEL,
    dimensions: _Dimensions = None,
    long_text: _LongText = "error",
    batch_size: _BatchSize = None,
    region: _Region = None,
    workspace: _Workspace = None,
    base_url: _BaseUrl = None,
    retry_rejected: _Retry = False,
    window: _Window = "24h",
    name: _Name = None,
    description: _Description = None,
    poll: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", show_default="30, growing to 120", help="Between looks.")
    ] = None,
) -> None:
    """Submit, wait, fetch, and submit what failed once more, until all is embedded; it may take days.

    Exit codes: 0 all embedded, 1 failed, stopped or still under way (run it again to go on), 2 wrong use or bad
    input, 3 some texts were rejected or skipped (OUTPUT.rejects.jsonl).
    """
    options = _input_options(text_field, id_field, form, encoding, on_bad_input, with_text, retry_rejected)
    options |= {"window": window, "name": name, "description": description, "before": _print_estimate, "poll": poll}
    with exit_on_error(*_interruption_hints(output)), stop_signals(_STOPPING_MESSAGE) as stop:
        client = _create_client(model, dimensions, long_text, batch_size, region, workspace, base_url)
        _print_summary(
            corpus.batch_run(inputs, output, client=client, progress=_print_progress, stop=stop, **options), output
        )


@app.command()
@report_errors
def status(*, output: _Output, region: _Region = None, workspace: _Workspace = None, base_url: _BaseUrl = None) -> None:
    """Ask how far all batches are; fetch and change nothing."""
    with exit_on_error(*_interruption_hints(output)):
        client = corpus.batch_client(output, region=region, workspace=workspace, base_url=base_url)
        found = corpus.batch_status(output, client=client)
        for file in found.files:
            done = "" if file.completed is None else f", {file.completed:,} lines done, {file.failed or 0:,} failed"
            state_text = f"{file.batch_id} {file.status or file.state}" if file.batch_id else "no batch was made of it"
            fetched = ", fetched" if file.batch_id and file.state == "closed" else ""
            typer.echo(f"file {file.number}: {state_text}, {file.texts:,} texts in {file.lines:,} lines{done}{fetched}")
        left = [file for file in found.files if file.batch_id and file.state != "closed"]
        ended = sum(file.texts for file in left if file.status in _ENDED_STATUSES)
        if ended:
            typer.echo(f"{ended:,} texts of ended batches are to be fetched: `batch fetch -o {printable_name(output)}`")
        if running := sum(file.texts for file in left) - ended:
            typer.echo(
                f"{running:,} texts are under way, and billed as they are done, unless `batch cancel` stops them"
            )
        if not left:
            typer.echo(f"all is done: {printable_name(output)}" if output.exists() else "nothing is under way")


_ENDED_STATUSES = frozenset({"completed", "failed", "expired", "cancelled"})


@app.command()
@report_errors
def fetch(
    *,
    output: _Output,
    retry: Annotated[bool, typer.Option(help="Submit what failed once more.")] = True,
    region: _Region = None,
    workspace: _Workspace = None,
    base_url: _BaseUrl = None,
) -> None:
    """Bring what is done; with the last of it, write the output. Needs the ledger, but not the input.

    Exit codes: as those of `batch run`; 1 while anything is under way.
    """
    with exit_on_error(*_interruption_hints(output)), stop_signals(_STOPPING_MESSAGE) as stop:
        client = corpus.batch_client(output, region=region, workspace=workspace, base_url=base_url)
        _print_summary(
            corpus.batch_fetch(output, client=client, retry=retry, progress=_print_progress, stop=stop), output
        )


@app.command()
@report_errors
def cancel(*, output: _Output, region: _Region = None, workspace: _Workspace = None, base_url: _BaseUrl = None) -> None:
    """Stop all batches; what was done by then is billed, and `batch fetch` brings it."""
    with exit_on_error(*_interruption_hints(output)):
        client = corpus.batch_client(output, region=region, workspace=workspace, base_url=base_url)
        found = corpus.batch_cancel(output, client=client, progress=_print_progress)
        message, name = "nothing is under way", printable_name(output)
        if found.under_way:
            message = (
                f"of {found.under_way:,} texts, what was done of them is billed: `batch fetch -o {name}` brings it"
            )
        elif found.embedded:
            message += f"; {found.embedded:,} texts of ended batches were fetched: `batch fetch -o {name}` writes them"
        typer.echo(message)


# --- what they share ---------------------------------------------------------------------------------------


_STOPPING_MESSAGE = "stopping; what is submitted stays submitted"


def _interruption_hints(output: Path) -> tuple[str, str]:
    return (
        f"What was submitted, and what was fetched, is in {corpus.ledger_beside(output)}",
        "Batches under way go on being billed unless `batch cancel` stops them.",
    )


def _input_options(*values: Any) -> dict[str, Any]:
    names = ("text_field", "id_field", "format", "encoding", "on_bad_input", "with_text", "retry_rejected")
    return dict(zip(names, values, strict=True))


def _create_client(*values: Any) -> EmbeddingClient:
    names = ("model", "dimensions", "long_text", "batch_size", "region", "workspace", "base_url")
    return EmbeddingClient(**dict(zip(names, values, strict=True)), protocol="openai")


def _print_progress(now: BatchProgress) -> None:
    typer.echo(now.said, err=True)


def _print_estimate(found: BatchEstimate) -> None:
    typer.echo(f"{found.texts:,} texts, of which {found.pending:,} are to be submitted (equal ones once)")
    if found.skipped:
        typer.echo(f"{found.skipped:,} records are no usable texts and are skipped")
    if not found.pending:
        return
    typer.echo(f"about {found.tokens:,} tokens, by a rule of thumb that may be a third off, in {found.files:,} files")
    typer.echo(f"list price, Batch files: {found.cost or 'not known'}")
    typer.echo(
        "Batch lines carry no role. Which one the service gives them is not documented (an assumption says document, "
        "one measurement query): `dashscope-embeddings check` measures it with your key."
    )
    if not found.documented:
        typer.echo("Batch files for embeddings are documented for Beijing only: expect a refusal here.")


def _print_summary(found: BatchSummary, output: Path) -> None:
    if found.finished:
        rows = found.texts - found.rejected
        typer.echo(f"{printable_name(output)}: {rows:,} vectors, {found.embedded:,} texts fetched now ({found.usage})")
        if found.spent != found.usage:
            typer.echo(f"all calls together: {found.spent}")
        if found.rejects is not None:
            typer.echo(f"{found.rejected:,} rejected, {found.skipped:,} skipped: see {printable_name(found.rejects)}")
            raise typer.Exit(EXIT_REJECTED)
        return
    message = [f"{found.embedded:,} texts fetched now ({found.usage}), {found.pending:,} without vectors yet"]
    if found.stopped:
        message.append("stopped: what is submitted stays submitted; the same command goes on")
    name = printable_name(output)
    if found.under_way:
        message.append(
            f"{found.under_way:,} texts are under way: `batch fetch -o {name}` brings them. They go on being billed "
            f"unless `batch cancel -o {name}` stops them"
        )
    if found.given_up:
        message.append(
            f"{found.given_up:,} texts failed too often, or were cancelled or refused with their file: `batch submit` "
            "or `batch run` tries them again"
        )
    elif not found.under_way and found.pending and not found.stopped:
        message.append("nothing is under way: `batch fetch`, or `batch submit` with the inputs, goes on")
    fail("\n".join(message), EXIT_FAILED)
