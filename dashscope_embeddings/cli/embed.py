"""The command `embed`: options, progress, and an exit code that says what became of a corpus."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from dashscope_embeddings import corpus
from dashscope_embeddings.catalogue import DEFAULT_MODEL
from dashscope_embeddings.cli.common import EXIT_FAILED, EXIT_REJECTED, EXIT_USAGE, exit_on_error, fail, stop_signals
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus.sources import printable_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Task

    from dashscope_embeddings.corpus import Estimate, Progress, Summary
    from dashscope_embeddings.usage import RequestRecord


def embed(  # noqa: PLR0913 - one for each option
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            show_default=False,
            help=".txt (a text a line), .jsonl, .csv, .tsv, .parquet, folders, globs, or - for standard input.",
        ),
    ],
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to: .parquet, .jsonl or .npy.", show_default=False)
    ],
    text_field: Annotated[str, typer.Option(help="Field or column that holds the text.")] = "text",
    id_field: Annotated[
        str | None, typer.Option(help="The one that holds a unique id.", show_default="position in the input")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="txt, jsonl, csv, tsv or parquet.", show_default="by each file's ending"),
    ] = None,
    encoding: Annotated[str, typer.Option(help="Of text files, such as gb18030.")] = "utf-8",
    on_bad_input: Annotated[
        str, typer.Option(help="fail: before anything is spent; skip: name it in OUTPUT.rejects.jsonl.")
    ] = "fail",
    with_text: Annotated[bool, typer.Option("--with-text", help="Put the texts into the output as well.")] = False,
    model: Annotated[str, typer.Option(help="See the command models.")] = DEFAULT_MODEL,
    dimensions: Annotated[
        int | None, typer.Option(min=1, show_default="the model's", help="Floats in a dense vector.")
    ] = None,
    kind: Annotated[str, typer.Option(help="dense, sparse or dense&sparse.")] = "dense",
    text_type: Annotated[str, typer.Option(help="document or query.")] = "document",
    instruct: Annotated[str | None, typer.Option(help="What queries are for, in a sentence.")] = None,
    long_text: Annotated[str, typer.Option(help="error (rejects it), truncate or average.")] = "error",
    protocol: Annotated[str | None, typer.Option(help="native or openai.", show_default="native")] = None,
    region: Annotated[str | None, typer.Option(help="Such as ap-southeast-1.", show_default="cn-beijing")] = None,
    workspace: Annotated[str | None, typer.Option(help="Its own host is asked.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Another address; emulator for none.")] = None,
    max_concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at once.")] = 16,
    requests_per_minute: Annotated[
        float | None, typer.Option(show_default="found by itself", help="The account's quota.")
    ] = None,
    tokens_per_minute: Annotated[
        float | None, typer.Option(show_default="found by itself", help="The account's quota.")
    ] = None,
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="Ask again for what the service refused before.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the input, count, and estimate the price; ask nothing.")
    ] = False,
) -> None:
    """Embed files of texts into one file of vectors; after any interruption, the same command goes on.

    What was paid for is kept in OUTPUT.ledger and is not paid for again: not after a crash, not for equal
    texts, not in a later run over a changed input.

    Exit codes: 0 all embedded, 1 failed or stopped (run it again to go on), 2 wrong use or bad input,
    3 some texts were rejected or skipped (OUTPUT.rejects.jsonl).
    """
    options: dict[str, Any] = {
        "text_field": text_field,
        "id_field": id_field,
        "format": form,
        "encoding": encoding,
        "text_type": text_type,
        "kind": kind,
        "on_bad_input": on_bad_input,
        "retry_rejected": retry_rejected,
    }
    if instruct and text_type != "query":
        fail("--instruct is for queries: add --text-type query, or leave it out", EXIT_USAGE)
    with exit_on_error(f"What was paid for is in {corpus.ledger_beside(output)}"):
        outages = _OutageTracker()
        client = EmbeddingClient(
            model,
            # Nothing is asked: a key need not be there.
            api_key="none-needed-for-a-dry-run" if dry_run else None,
            dimensions=dimensions,
            instruct=instruct,
            protocol=protocol,  # type: ignore[arg-type] # checked by the client, as are the others
            region=region,
            workspace=workspace,
            base_url=base_url,
            max_concurrency=max_concurrency,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            long_text=long_text,  # type: ignore[arg-type]
            on_request=outages.on_request,
        )
        if dry_run:
            _print_estimate(corpus.estimate_corpus(inputs, output, client=client, **options))
            return
        with stop_signals(_STOPPING_MESSAGE) as stopped, _show_progress(outages) as progress:
            summary = corpus.embed_corpus(
                inputs,
                output,
                client=client,
                with_text=with_text,
                progress=progress,
                stop=stopped.is_set,
                **options,
            )
        _print_summary(summary, output)


_STOPPING_MESSAGE = "stopping when what is in flight has arrived; again to end at once"

# --- what is said ------------------------------------------------------------------------------------------


def _print_estimate(found: Estimate) -> None:
    typer.echo(f"{found.texts:,} texts, of which {found.pending:,} are to be embedded (equal ones once)")
    if found.skipped:
        typer.echo(f"{found.skipped:,} records are no usable texts and would be skipped")
    typer.echo(f"about {found.tokens:,} tokens, by a rule of thumb that may be a third off")
    typer.echo(f"list price, real time: {found.real_time or 'not known'}")
    typer.echo(f"list price, Batch files: {found.batch or 'not known'}")
    typer.echo("Nothing was asked.")


def _print_summary(found: Summary, output: Path) -> None:
    if not found.finished:
        fail(f"stopped after {found.embedded:,} texts ({found.usage}); the same command goes on", EXIT_FAILED)
    rows = found.texts - found.rejected
    typer.echo(f"{printable_name(output)}: {rows:,} vectors, {found.embedded:,} texts embedded now ({found.usage})")
    if found.spent != found.usage:
        typer.echo(f"all runs together: {found.spent}")
    if found.rejects is not None:
        typer.echo(f"{found.rejected:,} rejected, {found.skipped:,} skipped: see {printable_name(found.rejects)}")
        if found.rejected:
            typer.echo("rejected texts are asked again with --retry-rejected, or with another --long-text")
        else:
            typer.echo("mend them in the input and run the same command")
        raise typer.Exit(EXIT_REJECTED)


# --- while it runs -----------------------------------------------------------------------------------------

_LINE_INTERVAL_SECONDS = 10.0
_DRAW_INTERVAL_SECONDS = 0.2


@contextlib.contextmanager
def _show_progress(outages: _OutageTracker) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere a line every ten seconds. Both say when the service gives no vectors."""
    console = Console(stderr=True, highlight=False)
    reporter = _ProgressReporter(_DRAW_INTERVAL_SECONDS if console.is_terminal else _LINE_INTERVAL_SECONDS)
    if not console.is_terminal:
        with _print_outages(outages):
            yield lambda now: typer.echo(reporter.format_line(now), err=True) if reporter.is_due(now) else None
        return
    columns = (BarColumn(), MofNCompleteColumn(), _StatusColumn(outages), TimeRemainingColumn())
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("", total=None, status="reading")

        def draw(now: Progress) -> None:
            if reporter.is_due(now):
                bar.update(task, completed=now.done, total=now.total, status=reporter.format_speed(now))

        yield draw


class _OutageTracker:
    """Why no vectors come, for as long as none do. Heard from any thread."""

    def __init__(self) -> None:
        self._outage: tuple[float, str] | None = None
        """Since when, and what."""

    def on_request(self, record: RequestRecord) -> None:
        """What came of a request."""
        if record.outcome == "answered":
            self._outage = None
        elif record.outcome != "refused":
            since = self._outage[0] if self._outage is not None else time.monotonic()
            self._outage = since, f"{record.outcome} ({record.error})"

    def describe(self) -> str:
        """In a few words; nothing while vectors come."""
        found, now = self._outage, time.monotonic()
        if found is None or now - found[0] < _OUTAGE_GRACE_SECONDS:
            return ""
        return f"{found[1]} for {now - found[0]:.0f} s, asking again"


_OUTAGE_GRACE_SECONDS = 0.5
"""Seconds without an answer after which a throttled request is more than a part of finding the pace."""


class _StatusColumn(ProgressColumn):
    """How fast it goes, or why it does not."""

    def __init__(self, outages: _OutageTracker) -> None:
        super().__init__()
        self._outages = outages

    def render(self, task: Task) -> Text:
        """The text of the column."""
        message = self._outages.describe()
        return Text(message, "yellow") if message else Text(task.fields["status"])


@contextlib.contextmanager
def _print_outages(outages: _OutageTracker) -> Iterator[None]:
    """Says it in a line, and once more every ten seconds, while the caller waits for vectors."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_OUTAGE_GRACE_SECONDS / 2):
            if message := outages.describe():
                typer.echo(message, err=True)
                done.wait(_LINE_INTERVAL_SECONDS)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


class _ProgressReporter:
    """When to say how far a run is, and how fast it goes."""

    def __init__(self, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._start: tuple[float, int] | None = None
        self._last_report = 0.0

    def is_due(self, now: Progress) -> bool:
        """Whether it is time to say something."""
        time_now = time.monotonic()
        if self._start is None:
            self._start, self._last_report = (time_now, now.done), time_now
            return False
        if time_now - self._last_report < self._interval_seconds and now.done < now.total:
            return False
        self._last_report = time_now
        return True

    def format_speed(self, now: Progress) -> str:
        """Texts a second, tokens, cost."""
        cost = f", {now.usage.cost}" if now.usage.cost is not None else ""
        rejected = f", {now.rejected:,} rejected" if now.rejected else ""
        return f"{self._rate(now):,.0f} texts/s, {now.usage.tokens:,} tokens{cost}{rejected}"

    def format_line(self, now: Progress) -> str:
        """All of it."""
        left = ""
        if rate := self._rate(now):
            minutes, seconds = divmod(round((now.total - now.done) / rate), 60)
            left = f", {minutes}:{seconds:02} left"
        return f"{now.done:,} of {now.total:,} texts, {self.format_speed(now)}{left}"

    def _rate(self, now: Progress) -> float:
        begun, done = self._start or (time.monotonic(), now.done)
        return (now.done - done) / max(time.monotonic() - begun, 1e-3)
