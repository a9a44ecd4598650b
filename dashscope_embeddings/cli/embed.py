"""The command `embed`: its options, its progress display, its summary and its exit codes."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from dashscope_embeddings import corpus
from dashscope_embeddings.catalogue import DEFAULT_MODEL
from dashscope_embeddings.cli import options
from dashscope_embeddings.cli.common import EXIT_FAILED, EXIT_REJECTED, EXIT_USAGE, exit_on_error, fail, stop_signals
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus.sources import printable_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rich.progress import Task

    from dashscope_embeddings.corpus import Estimate, Progress, Summary
    from dashscope_embeddings.usage import RequestRecord


def embed(  # noqa: PLR0913 - one for each option
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
    kind: Annotated[str, typer.Option(help="dense, sparse or dense&sparse.")] = "dense",
    text_type: Annotated[str, typer.Option(help="document or query.")] = "document",
    instruct: Annotated[str | None, typer.Option(help="What queries are for, in a sentence.")] = None,
    long_text: options.LongText = "error",
    protocol: Annotated[str | None, typer.Option(help="native or openai.", show_default="native")] = None,
    region: Annotated[str | None, typer.Option(help="Such as ap-southeast-1.", show_default="cn-beijing")] = None,
    workspace: options.Workspace = None,
    base_url: options.BaseUrl = None,
    max_concurrency: Annotated[
        int | None, typer.Option(min=1, show_default="found automatically", help="The most requests in flight at once.")
    ] = None,
    requests_per_minute: Annotated[
        float | None, typer.Option(show_default="found automatically", help="The account's quota.")
    ] = None,
    tokens_per_minute: Annotated[
        float | None, typer.Option(show_default="found automatically", help="The account's quota.")
    ] = None,
    retry_rejected: options.RetryRejected = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the input, count, and estimate the price; send nothing.")
    ] = False,
) -> None:
    """Embed files of texts into one file of vectors.

    After any interruption, the same command continues. OUTPUT.ledger keeps
    what was paid for. It is not paid for again: not after a crash, not for
    equal texts, not in a later run over a changed input.

    Exit codes: 0 all embedded, 1 failed or stopped (run it again to continue),
    2 wrong use or bad input, 3 some texts were rejected or skipped
    (OUTPUT.rejects.jsonl).
    """
    arguments = locals()
    if instruct and text_type != "query":
        fail("--instruct is for queries: add --text-type query, or leave it out", EXIT_USAGE)
    with exit_on_error(f"What was paid for is in {corpus.ledger_beside(output)}"):
        outages = _OutageTracker()
        client = EmbeddingClient(
            **options.client_options(arguments),
            # A dry run sends nothing and needs no key.
            api_key="none-needed-for-a-dry-run" if dry_run else None,
            on_request=outages.on_request,
        )
        settings = options.input_options(arguments) | {"client": client, "text_type": text_type, "kind": kind}
        if dry_run:
            _print_estimate(corpus.estimate_corpus(inputs, output, **settings))
            return
        with stop_signals(_STOPPING_MESSAGE) as stopped, _show_progress(outages) as progress:
            summary = corpus.embed_corpus(inputs, output, progress=progress, stop=stopped.is_set, **settings)
        _print_summary(summary, output)


_STOPPING_MESSAGE = "stopping when what is in flight has arrived; again to end at once"

# --- results -----------------------------------------------------------------------------------------------


def _print_estimate(estimate: Estimate) -> None:
    typer.echo(f"{estimate.texts:,} texts, of which {estimate.pending:,} are to be embedded (equal ones once)")
    if estimate.skipped:
        typer.echo(f"{estimate.skipped:,} records are no usable texts and would be skipped")
    typer.echo(f"about {estimate.tokens:,} tokens, by a rule of thumb that may be a third off")
    typer.echo(f"list price, real time: {estimate.real_time or 'not known'}")
    typer.echo(f"list price, Batch files: {estimate.batch or 'not known'}")
    typer.echo("Nothing was sent.")


def _print_summary(summary: Summary, output: Path) -> None:
    if not summary.finished:
        fail(f"stopped after {summary.embedded:,} texts ({summary.usage}); the same command goes on", EXIT_FAILED)
    rows, embedded = summary.texts - summary.rejected, summary.embedded
    typer.echo(f"{printable_name(output)}: {rows:,} vectors, {embedded:,} texts embedded now ({summary.usage})")
    if summary.spent != summary.usage:
        typer.echo(f"all runs together: {summary.spent}")
    if summary.rejects is not None:
        typer.echo(f"{summary.rejected:,} rejected, {summary.skipped:,} skipped: see {printable_name(summary.rejects)}")
        if summary.rejected:
            typer.echo("rejected texts are sent again with --retry-rejected, or with another --long-text")
        else:
            typer.echo("correct them in the input and run the same command")
        raise typer.Exit(EXIT_REJECTED)


# --- progress ----------------------------------------------------------------------------------------------

_LINE_INTERVAL_SECONDS = 10.0
_DRAW_INTERVAL_SECONDS = 0.2


@contextlib.contextmanager
def _show_progress(outages: _OutageTracker) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere a line every ten seconds. Both show when the service returns no vectors."""
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
    """Tracks why no vectors arrive, from the first failed request to the next answered one. Called from any thread."""

    def __init__(self) -> None:
        self._outage: tuple[float, str] | None = None
        """Monotonic time of its first failed request in seconds, and the latest failure."""

    def on_request(self, record: RequestRecord) -> None:
        """Notes the outcome of a request."""
        if record.outcome == "answered":
            self._outage = None
        elif record.outcome != "refused":
            since = self._outage[0] if self._outage is not None else time.monotonic()
            self._outage = since, f"{record.outcome} ({record.error})"

    def describe(self) -> str:
        """Describes the outage in a few words; empty: there is none."""
        outage, now = self._outage, time.monotonic()
        if outage is None or now - outage[0] < _OUTAGE_GRACE_SECONDS:
            return ""
        return f"{outage[1]} for {now - outage[0]:.0f} s, retrying"


_OUTAGE_GRACE_SECONDS = 0.5
"""Outages shorter than this, in seconds, are not shown: short throttling is normal while the rate is being found."""


class _StatusColumn(ProgressColumn):
    """Shows the speed, or the outage."""

    def __init__(self, outages: _OutageTracker) -> None:
        super().__init__()
        self._outages = outages

    def render(self, task: Task) -> Text:
        """Returns the text of the column."""
        message = self._outages.describe()
        return Text(message, "yellow") if message else Text(task.fields["status"])


@contextlib.contextmanager
def _print_outages(outages: _OutageTracker) -> Iterator[None]:
    """Prints a line when an outage begins and every ten seconds while it lasts."""
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
    """Decides when progress is reported, and formats it."""

    def __init__(self, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._start: tuple[float, int] | None = None
        self._last_report = 0.0

    def is_due(self, now: Progress) -> bool:
        """Whether the next report is due."""
        time_now = time.monotonic()
        if self._start is None:
            self._start, self._last_report = (time_now, now.done), time_now
            return False
        if time_now - self._last_report < self._interval_seconds and now.done < now.total:
            return False
        self._last_report = time_now
        return True

    def format_speed(self, now: Progress) -> str:
        """Texts per second, tokens, cost."""
        cost = f", {now.usage.cost}" if now.usage.cost is not None else ""
        rejected = f", {now.rejected:,} rejected" if now.rejected else ""
        return f"{self._rate(now):,.0f} texts/s, {now.usage.tokens:,} tokens{cost}{rejected}"

    def format_line(self, now: Progress) -> str:
        """Progress, speed and remaining time in one line."""
        left = ""
        if rate := self._rate(now):
            minutes, seconds = divmod(round((now.total - now.done) / rate), 60)
            left = f", {minutes}:{seconds:02} left"
        return f"{now.done:,} of {now.total:,} texts, {self.format_speed(now)}{left}"

    def _rate(self, now: Progress) -> float:
        begun, done = self._start or (time.monotonic(), now.done)
        return (now.done - done) / max(time.monotonic() - begun, 1e-3)
