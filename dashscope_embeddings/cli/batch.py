"""The commands `batch …`: a corpus at half the price, submitted, watched, fetched and cancelled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dashscope_embeddings import corpus
from dashscope_embeddings.catalogue import DEFAULT_MODEL
from dashscope_embeddings.cli.common import FAILED, REJECTED, command, fail, stop_signals, telling
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus.sources import shown

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
@command
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
    how = _given(text_field, id_field, form, encoding, on_bad_input, with_text, retry_rejected)
    how |= {"window": window, "name": name, "description": description, "before": _say_estimate}
    with telling(*_kept(output)), stop_signals(_STOPPING) as stop:
        client = _client(model, dimensions, long_text, batch_size, region, workspace, base_url)
        found = corpus.batch_submit(inputs, output, client=client, progress=_say, stop=stop, **how)
        if found.under_way and not found.stopped:
            typer.echo(
                f"{found.under_way:,} texts are under way: `batch fetch -o {shown(output)}` brings their vectors"
            )
            return
        _say_summary(found, output)


@app.command()
@command
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
    how = _given(text_field, id_field, form, encoding, on_bad_input, with_text, retry_rejected)
    how |= {"window": window, "name": name, "description": description, "before": _say_estimate, "poll": poll}
    with telling(*_kept(output)), stop_signals(_STOPPING) as stop:
        client = _client(model, dimensions, long_text, batch_size, region, workspace, base_url)
        _say_summary(corpus.batch_run(inputs, output, client=client, progress=_say, stop=stop, **how), output)


@app.command()
@command
def status(*, output: _Output, region: _Region = None, workspace: _Workspace = None, base_url: _BaseUrl = None) -> None:
    """Ask how far all batches are; fetch and change nothing."""
    with telling(*_kept(output)):
        client = corpus.batch_client(output, region=region, workspace=workspace, base_url=base_url)
        found = corpus.batch_status(output, client=client)
        for file in found.files:
            done = "" if file.completed is None else f", {file.completed:,} lines done, {file.failed or 0:,} failed"
            told = f"{file.batch_id} {file.status or file.state}" if file.batch_id else "no batch was made of it"
            fetched = ", fetched" if file.batch_id and file.state == "closed" else ""
            typer.echo(f"file {file.number}: {told}, {file.texts:,} texts in {file.lines:,} lines{done}{fetched}")
        left = [file for file in found.files if file.batch_id and file.state != "closed"]
        ended = sum(file.texts for file in left if file.status in _ENDED)
        if ended:
            typer.echo(f"{ended:,} texts of ended batches are to be fetched: `batch fetch -o {shown(output)}`")
        if running := sum(file.texts for file in left) - ended:
            typer.echo(
                f"{running:,} texts are under way, and billed as they are done, unless `batch cancel` stops them"
            )
        if not left:
            typer.echo(f"all is done: {shown(output)}" if output.exists() else "nothing is under way")


_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


@app.command()
@command
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
    with telling(*_kept(output)), stop_signals(_STOPPING) as stop:
        client = corpus.batch_client(output, region=region, workspace=workspace, base_url=base_url)
        _say_summary(corpus.batch_fetch(output, client=client, retry=retry, progress=_say, stop=stop), output)


@app.command()
@command
def cancel(*, output: _Output, region: _Region = None, workspace: _Workspace = None, base_url: _BaseUrl = None) -> None:
    """Stop all batches; what was done by then is billed, and `batch fetch` brings it."""
    with telling(*_kept(output)):
        client = corpus.batch_client(output, region=region, workspace=workspace, base_url=base_url)
        found = corpus.batch_cancel(output, client=client, progress=_say)
        said, name = "nothing is under way", shown(output)
        if found.under_way:
            said = f"of {found.under_way:,} texts, what was done of them is billed: `batch fetch -o {name}` brings it"
        elif found.embedded:
            said += f"; {found.embedded:,} texts of ended batches were fetched: `batch fetch -o {name}` writes them"
        typer.echo(said)


# --- what they share ---------------------------------------------------------------------------------------


_STOPPING = "stopping; what is submitted stays submitted"


def _kept(output: Path) -> tuple[str, str]:
    return (
        f"What was submitted, and what was fetched, is in {corpus.ledger_beside(output)}",
        "Batches under way go on being billed unless `batch cancel` stops them.",
    )


def _given(*values: Any) -> dict[str, Any]:
    names = ("text_field", "id_field", "format", "encoding", "on_bad_input", "with_text", "retry_rejected")
    return dict(zip(names, values, strict=True))


def _client(*values: Any) -> EmbeddingClient:
    names = ("model", "dimensions", "long_text", "batch_size", "region", "workspace", "base_url")
    return EmbeddingClient(**dict(zip(names, values, strict=True)), protocol="openai")


def _say(now: BatchProgress) -> None:
    typer.echo(now.said, err=True)


def _say_estimate(found: BatchEstimate) -> None:
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


def _say_summary(found: BatchSummary, output: Path) -> None:
    if found.finished:
        rows = found.texts - found.rejected
        typer.echo(f"{shown(output)}: {rows:,} vectors, {found.embedded:,} texts fetched now ({found.usage})")
        if found.spent != found.usage:
            typer.echo(f"all calls together: {found.spent}")
        if found.rejects is not None:
            typer.echo(f"{found.rejected:,} rejected, {found.skipped:,} skipped: see {shown(found.rejects)}")
            raise typer.Exit(REJECTED)
        return
    said = [f"{found.embedded:,} texts fetched now ({found.usage}), {found.pending:,} without vectors yet"]
    if found.stopped:
        said.append("stopped: what is submitted stays submitted; the same command goes on")
    name = shown(output)
    if found.under_way:
        said.append(
            f"{found.under_way:,} texts are under way: `batch fetch -o {name}` brings them. They go on being billed "
            f"unless `batch cancel -o {name}` stops them"
        )
    if found.given_up:
        said.append(
            f"{found.given_up:,} texts failed too often, or were cancelled or refused with their file: `batch submit` "
            "or `batch run` tries them again"
        )
    elif not found.under_way and found.pending and not found.stopped:
        said.append("nothing is under way: `batch fetch`, or `batch submit` with the inputs, goes on")
    fail("\n".join(said), FAILED)
