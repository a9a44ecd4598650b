"""What the corpus commands print: estimates before, summaries after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from dashscope_embeddings.cli.common import EXIT_FAILED, EXIT_REJECTED, fail
from dashscope_embeddings.corpus.batch.messages import ENDED_STATUSES
from dashscope_embeddings.corpus.sources import printable_name
from dashscope_embeddings.vectors import Usage, counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dashscope_embeddings.corpus import BatchEstimate, BatchFile, BatchSummary, Estimate, Summary


BATCH_STOPPED_MESSAGE = "stopped: what is submitted stays submitted; the same command goes on"


def print_estimate(estimate: Estimate) -> None:
    """Prints what a run would send and cost."""
    _print_counts(estimate, "to be embedded", "would be skipped")
    typer.echo(_tokens(estimate))
    typer.echo(f"list price, real time: {estimate.real_time or 'not known'}")
    typer.echo(f"list price, Batch files: {estimate.batch or 'not known'}")
    typer.echo("Nothing was sent.")


def print_batch_estimate(estimate: BatchEstimate, host: str) -> None:
    """Prints what a submission will send and cost; `host`: the options that name it."""
    _print_counts(estimate, "to be submitted", "skipped")
    if not estimate.pending:
        return
    typer.echo(f"{_tokens(estimate)}, in {counted(estimate.files, 'file')}")
    typer.echo(f"list price, Batch files: {estimate.cost or 'not known'}")
    typer.echo(
        "Batch lines carry no role. Which one the service gives them is not documented (an assumption says document, "
        f"one measurement query): `dashscope-embeddings check{host}` measures it with your key."
    )
    if not estimate.documented:
        typer.echo("Batch files for embeddings are documented for Beijing only: expect a refusal here.")


def _tokens(estimate: Estimate | BatchEstimate) -> str:
    tokens = counted(estimate.tokens, "token")
    return tokens if estimate.exact else f"about {tokens}, by a rule of thumb that may be a third off"


def _print_counts(estimate: Estimate | BatchEstimate, pending: str, skipped: str) -> None:
    are = "is" if estimate.pending == 1 else "are"
    typer.echo(f"{counted(estimate.texts, 'text')}, of which {estimate.pending:,} {are} {pending} (equal ones once)")
    if estimate.skipped:
        typer.echo(f"{counted(estimate.skipped, 'record')} without a usable text, {skipped}")


def stopped_message(embedded: int, usage: Usage) -> str:
    """The result of `embed` if a signal stopped it."""
    return f"stopped after {counted(embedded, 'text')} ({usage}); the same command goes on"


def print_summary(summary: Summary, output: Path) -> None:
    """Prints the result of `embed`, and ends the command if texts have no vectors."""
    if not summary.finished:
        fail(stopped_message(summary.embedded, summary.usage), EXIT_FAILED)
    _print_result(summary, output, "embedded", "all runs together")


def print_batch_summary(summary: BatchSummary, output: Path, job: str) -> None:
    """Prints the state of a job, and ends the command if texts have no vectors; `job`: the options that name it."""
    if summary.finished:
        _print_result(summary, output, "fetched", "all calls together")
    else:
        fail("\n".join(_unfinished(summary, job)), EXIT_FAILED)


def _print_result(summary: Summary | BatchSummary, output: Path, done: str, all_runs: str) -> None:
    rows = summary.texts - summary.rejected
    counts = f"{counted(rows, 'vector')}, {counted(summary.embedded, 'text')} {done} now"
    typer.echo(f"{printable_name(output)}: {counts} ({summary.usage})")
    if summary.spent != summary.usage:
        typer.echo(f"{all_runs}: {summary.spent}")
    if summary.rejects is None:
        return
    typer.echo(f"{summary.rejected:,} rejected, {summary.skipped:,} skipped: see {printable_name(summary.rejects)}")
    if summary.rejected:
        typer.echo("rejected texts are sent again with --retry-rejected, or with another --long-text")
    else:
        typer.echo("correct them in the input and run the same command")
    raise typer.Exit(EXIT_REJECTED)


def _unfinished(summary: BatchSummary, job: str) -> Iterator[str]:
    fetched = f"{counted(summary.embedded, 'text')} fetched now ({summary.usage})"
    yield f"{fetched}, {summary.pending:,} without vectors yet"
    if summary.stopped:
        yield BATCH_STOPPED_MESSAGE
    stopping = sum(file.texts for file in summary.files if file.status == "cancelling" and file.state != "closed")
    if stopping:
        yield _being_cancelled(stopping, f"`batch fetch {job}`")
    if summary.under_way > stopping:
        yield (
            f"{counted(summary.under_way - stopping, 'text')} under way, billed unless `batch cancel {job}` comes "
            f"first: `batch fetch {job}` fetches the vectors"
        )
    if summary.given_up:
        yield (
            f"{counted(summary.given_up, 'text')} failed too often, or cancelled or refused with a file: "
            "`batch submit` or `batch run` tries again"
        )
    elif not summary.under_way and summary.pending and not summary.stopped:
        yield "nothing is under way: `batch fetch`, or `batch submit` with the inputs, goes on"


def print_status(files: Sequence[BatchFile], output: Path, job: str) -> None:
    """Prints the state of each batch, and what is left to do; `job`: the options that name it."""
    for file in files:
        done = (
            "" if file.completed is None else f", {counted(file.completed, 'line')} done, {file.failed or 0:,} failed"
        )
        state = f"{file.batch_id} {file.status or file.state}" if file.batch_id else "no batch was created"
        fetched = ", fetched" if file.batch_id and file.state == "closed" else ""
        size = f"{counted(file.texts, 'text')} in {counted(file.lines, 'line')}"
        typer.echo(f"file {file.number}: {state}, {size}{done}{fetched}")
    left = [file for file in files if file.batch_id and file.state != "closed"]
    fetch = f"`batch fetch {job}`"
    if ended := [file for file in left if file.status in ENDED_STATUSES]:
        results = sum(file.texts_done for file in ended)
        about = "about " if 0 < results < sum(file.texts for file in ended) else ""
        typer.echo(f"{about}{counted(results, 'text')} of ended batches to be fetched: {fetch}")
    if stopping := sum(file.texts for file in left if file.status == "cancelling"):
        typer.echo(_being_cancelled(stopping, fetch))
    if running := sum(file.texts for file in left if file.status not in ENDED_STATUSES | {"cancelling"}):
        typer.echo(f"{counted(running, 'text')} under way, to be billed unless `batch cancel` comes first")
    if not left and output.exists():
        typer.echo(f"all is done: {printable_name(output)}")
    elif not left:
        to_write = f"; {fetch} writes what was fetched" if any(file.texts_done for file in files) else ""
        typer.echo(f"nothing is under way{to_write}")


def _being_cancelled(texts: int, fetch: str) -> str:
    return f"of {counted(texts, 'text')} being cancelled, what was done is billed: {fetch} fetches it"
