"""The progress of a run, as a person sees it: a bar on a terminal or in a notebook, elsewhere a line now and then.

A thread of its own shows it, so that it goes on while the service throttles and no vectors arrive.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._runtime.progress import import_tqdm
from dashscope_embeddings.vectors import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dashscope_embeddings.client import EmbeddingClient
    from dashscope_embeddings.corpus.embedder import Progress
    from dashscope_embeddings.usage import RequestRecord

_REFRESH_SECONDS = 0.2
_FIRST_LINE_SECONDS = 0.5
_LINE_INTERVAL_SECONDS = 10.0
_OUTAGE_GRACE_SECONDS = 0.5
"""Outages shorter than this are not shown: short throttling is normal while the rate is being found."""


@contextlib.contextmanager
def show_progress(client: EmbeddingClient) -> Iterator[Callable[[Progress], object]]:
    """Shows the progress of a run on standard error; gives the function to call with it.

    Raises:
        ImportError: tqdm is not installed, and a bar is to be drawn.
    """
    status = RunStatus(time.monotonic, client.seconds_blocked)
    display = _Bar() if is_interactive() else Lines(time.monotonic)
    ended = threading.Event()

    def refresh() -> None:
        while not ended.wait(_REFRESH_SECONDS):
            display.show(status)

    thread = threading.Thread(target=refresh, daemon=True)
    with client.observe(status.on_request):
        thread.start()
        try:
            yield status.on_progress
        finally:
            ended.set()
            thread.join()
            display.close(status)


def is_interactive() -> bool:
    """Whether somebody watches: on a terminal, or in a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    # A program without a console has None, and a logger in its place need not be a file.
    return getattr(sys.stderr, "isatty", bool)() or hasattr(shell, "kernel")


def print_line(line: str) -> None:
    """Prints a line on standard error; a program without a console has none."""
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is what it is for


class RunStatus:
    """What is known of a run. Written by its threads, read by the one that shows it."""

    def __init__(self, clock: Callable[[], float], seconds_blocked: Callable[[], float]) -> None:
        self._clock, self._seconds_blocked = clock, seconds_blocked
        self.progress: Progress | None = None
        """None: the input is still being read."""
        self._started_at = self._updated_at = 0.0
        self._throttled = self._failed = 0
        self._outage: tuple[float, RequestRecord] | None = None
        """When the first request failed since the last one was answered, and the last failure."""

    def on_progress(self, progress: Progress) -> None:
        """Notes what was done."""
        self._updated_at = self._clock()
        if self.progress is None:
            self._started_at = self._updated_at
        self.progress = progress

    def on_request(self, record: RequestRecord) -> None:
        """Notes the outcome of a request."""
        if record.outcome == "answered":
            self._outage = None
        elif record.outcome != "refused":
            self._throttled += record.outcome == "throttled"
            self._failed += record.outcome == "failed"
            self._outage = self._outage[0] if self._outage is not None else self._clock(), record

    def outage(self) -> str:
        """Why no vectors arrive, for how long, and when the service is asked again; empty: they do."""
        outage = self._outage
        if outage is None or (seconds := self._clock() - outage[0]) < _OUTAGE_GRACE_SECONDS:
            return ""
        wait = self._seconds_blocked()
        again = f", asking again in {wait:.0f} s" if wait >= 1 else ""
        return f"{outage[1].outcome} ({outage[1].error}) for {seconds:.0f} s{again}"

    def speed(self) -> str:
        """Texts per second, the bill so far, and what went wrong."""
        if (progress := self.progress) is None:
            return "reading the input"
        parts = [f"{self._rate(progress):,.0f} texts/s, {counted(progress.usage.tokens, 'token')}", progress.usage.cost]
        counts = {"rejected": progress.rejected, "throttled": self._throttled, "failed and retried": self._failed}
        parts += [f"{count:,} {name}" for name, count in counts.items() if count]
        return ", ".join(str(part) for part in parts if part is not None)

    def line(self) -> str:
        """All of it in a line."""
        if (progress := self.progress) is None:
            return self.outage() or self.speed()
        done = f"{progress.done:,} of {counted(progress.total, 'text')}"
        if (outage := self.outage()) or not (rate := self._rate(progress)):
            return f"{done}, {outage or self.speed()}"
        minutes, seconds = divmod(round((progress.total - progress.done) / rate), 60)
        return f"{done}, {self.speed()}, {minutes}:{seconds:02} left"

    def _rate(self, progress: Progress) -> float:
        return progress.done / max(self._updated_at - self._started_at, 1e-3)


class Lines:
    """A first line within a second, then one every ten seconds, and one when the first outage begins."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next_at = clock() + _FIRST_LINE_SECONDS
        self._printed, self._had_outage = "", False

    def show(self, status: RunStatus) -> None:
        """Prints a line, if one is due."""
        is_first_outage = bool(status.outage()) and not self._had_outage
        self._had_outage = self._had_outage or is_first_outage
        if is_first_outage or self._clock() >= self._next_at:
            self._next_at = self._clock() + _LINE_INTERVAL_SECONDS
            self._print(status.line())

    def close(self, status: RunStatus) -> None:
        """Prints the last line, unless the run was too short for any."""
        if self._printed:
            self._print(status.line())

    def _print(self, line: str) -> None:
        if line != self._printed:
            self._printed = line
            print_line(line)


class _Bar:
    """A bar of tqdm: on a terminal a line, in a notebook a widget."""

    def __init__(self) -> None:
        self._bar: Any = import_tqdm()(
            total=None,
            dynamic_ncols=True,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    def show(self, status: RunStatus) -> None:
        if (progress := status.progress) is not None:
            if self._bar.total is None:
                self._bar.reset(total=progress.total)  # the time left is counted from here
            self._bar.n = progress.done
        self._bar.set_postfix_str(status.outage() or status.speed())

    def close(self, status: RunStatus) -> None:
        self.show(status)
        self._bar.close()
