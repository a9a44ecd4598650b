"""Minutes of mixed load against a faulty service: nothing may leak, get lost or get mixed up.

    python tests/benchmarks/soak.py [--seconds 600]

Threads and tasks of several event loops ask for queries, lists and streams through the LangChain adapter and
the client below it, some only to be cancelled; one request in twenty fails, and the quota changes all the time.
Every vector is compared with what the service must give for its text and role. Leaves with 1 on a violation.
Memory and sockets are read from /proc, and judged only where there is one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from soak_load import CONCURRENCY, Load, Tally

from dashscope_embeddings._core.rate_limiter import Permit

if TYPE_CHECKING:
    from collections.abc import Iterator

THREADS, LOOPS, TASKS = 5, 2, 6
ENDS = ("answered", "raised", "cancelled")
_SAMPLES = 200
_WARM_UP = 0.15
"""Share of the time before anything is measured: pools fill and the limiter's histories reach their bounds."""
_LEAST_FAULTS = 0.03
"""Of all requests, throttling for a quota not counted."""
_END = 60.0
"""Seconds within which calls must return once nobody makes new ones."""
_IDLE_THREADS_END = 15.0
"""Seconds within which threads without work end."""
_OUTAGE = re.compile(r"attempt \d of \d failed, next in ")
"""What is warned of where a reply stalls and no other is on its way, as when the other callers have ended."""
_NOISE, _PER_REQUEST = 16.0, 160.0
"""MiB that the resident size moves by itself, as allocators keep what a moment's peak of requests had needed; and bytes
a request: whatever is kept of one, a permit, an outcome or a body, takes several times that."""
_OBJECTS, _OBJECTS_PER_REQUEST = 300, 0.05
"""The same in objects, of which a single one for each request would be twenty times that."""


@dataclass(frozen=True)
class Sample:
    """What the process holds at one moment; -1: this system does not tell."""

    memory: float
    """MiB resident."""
    sockets: int
    threads: int
    tasks: int
    permits: int
    """Requests under way, or waiting, as far as the limiter knows."""
    objects: int = 0
    """At rest: known to the garbage collector, without permits, which the limiter remembers by thousands."""


@dataclass
class Report:
    """All that is judged."""

    tally: Tally
    before: Sample
    """Before the client was used for the first time."""
    warm: Sample
    rest: Sample
    gone: Sample
    """After the client was forgotten."""
    seen: Counter[str]
    """By the service: requests, throttled, and each fault."""
    requests: int
    """Sent between `warm` and `rest`, about."""
    stuck: int
    """Callers that did not return."""
    samples: list[Sample] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """Logged by the client."""

    @property
    def growth(self) -> float:
        """MiB between the first and the last quarter of the samples, medians."""
        quarter = max(1, len(self.samples) // 4)
        first, last = self.samples[:quarter], self.samples[-quarter:]
        return statistics.median(each.memory for each in last) - statistics.median(each.memory for each in first)


# --- measuring -----------------------------------------------------------------------------------------------


def sample(load: Load) -> Sample:
    """What there is now."""
    tasks, memory, sockets = 0, -1.0, -1
    for loop in list(load.loops):
        with contextlib.suppress(RuntimeError):  # its tasks change too fast to be counted
            tasks += len(asyncio.all_tasks(loop))
    with contextlib.suppress(OSError):
        memory = int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        sockets = sum(map(_is_socket, Path("/proc/self/fd").iterdir()))
    limiter = load.client._request_context("document", "dense").limiter
    waiting = len(limiter._high_priority_queue.waiting) + len(limiter._low_priority_queue.waiting)
    return Sample(memory, sockets, threading.active_count(), tasks, limiter.in_flight + waiting)


def _is_socket(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith("socket:")
    except OSError:  # closed meanwhile
        return False


def at_rest(load: Load, threads: int | None = None) -> Sample:
    """What is left when nobody calls, once no more than so many threads are: idle ones end by themselves."""
    until = time.monotonic() + _IDLE_THREADS_END
    while threads is not None and threading.active_count() > threads and time.monotonic() < until:
        threading.Event().wait(0.05)
    gc.collect()
    objects = sum(not isinstance(thing, Permit) for thing in gc.get_objects())
    return Sample(**{**asdict(sample(load)), "objects": objects})


class WarningCollector(logging.Handler):
    """Keeps the client's warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


# --- running -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def service(period: float) -> Iterator[tuple[str, Counter[str]]]:
    """The service in a process of its own: its address, and, afterwards, what it saw."""
    command = [sys.executable, str(Path(__file__).with_name("soak_service.py")), str(period)]
    seen: Counter[str] = Counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip(), seen
        process.stdin.close()
        seen.update(json.loads(process.stdout.readline()))


def work(load: Load, seconds: float, samples: list[Sample] | None = None) -> int:
    """Lets everybody call for so long; says how many did not return."""
    load.over.clear()
    life = min(15.0, max(1.0, seconds / 8))
    workers = [threading.Thread(target=load.thread, args=(n,), daemon=True) for n in range(THREADS)]
    workers += [threading.Thread(target=load.run_loops, args=(n, TASKS, life), daemon=True) for n in range(LOOPS)]
    for worker in workers:
        worker.start()
    until, pause = time.monotonic() + seconds, seconds / _SAMPLES
    while time.monotonic() < until:
        load.over.wait(pause)
        if samples is not None:
            samples.append(sample(load))
    load.over.set()
    for worker in workers:
        worker.join(max(0.0, until + _END - time.monotonic()))
    return sum(worker.is_alive() for worker in workers)


def soak(seconds: float) -> Report:
    """The whole run."""
    samples: list[Sample] = []
    logged = WarningCollector()
    logging.getLogger("dashscope_embeddings").addHandler(logged)
    with service(max(0.5, seconds / 24)) as (url, seen):
        load = Load(url)
        before = at_rest(load)
        stuck = work(load, seconds * _WARM_UP)
        warm, billed = at_rest(load), load.client.usage.requests
        stuck += work(load, seconds * (1 - _WARM_UP), samples)
        rest, requests = at_rest(load, before.threads + CONCURRENCY), load.client.usage.requests - billed
        load.forget()
        gone = at_rest(load, before.threads)
    return Report(load.tally, before, warm, rest, gone, seen, requests, stuck, samples, logged.messages)


# --- judging -------------------------------------------------------------------------------------------------


def violations(report: Report) -> list[str]:
    """What must not be; nothing: all is well."""
    return [*_wrong_calls(report), *_leaks(report)]


def _wrong_calls(report: Report) -> Iterator[str]:
    tally, seen = report.tally, report.seen
    for what, count in Counter(tally.complaints).most_common(10):
        yield f"{count} times: {what}"
    ends = sum(tally.total(how) for how in ENDS)
    if tally.total("started") != ends or report.stuck:
        yield f"{tally.total('started')} calls started and {ends} ended; {report.stuck} callers never returned"
    for how in ENDS:
        if not tally.total(how):
            yield f"no call was {how}: nothing is shown about those"
    faults = seen.total() - seen["requests"] - seen["throttled"]
    if not seen["throttled"] or faults < _LEAST_FAULTS * seen["requests"]:
        yield f"the service was not faulty enough to show anything: {seen}"
    outages = [message for message in report.warnings if _OUTAGE.match(message)]
    for message in set(report.warnings) - set(outages):
        yield f"a warning: {message}"
    if len(outages) > seen["Stall"]:
        yield f"{len(outages)} outages were warned of, and {seen['Stall']} replies stalled: {outages}"


def _leaks(report: Report) -> Iterator[str]:
    before, rest, gone = report.before, report.rest, report.gone
    growth = _NOISE + _PER_REQUEST * report.requests / 2**20
    objects = _OBJECTS + _OBJECTS_PER_REQUEST * report.requests
    for what, found, most in (
        ("MiB more in the last quarter than in the first", report.growth, growth),
        ("objects more at rest than when warm", rest.objects - report.warm.objects, objects),
        ("permits at rest", rest.permits, 0),
        ("tasks at rest", rest.tasks, 0),
        ("threads at rest", rest.threads, before.threads + CONCURRENCY),  # of one pool
        ("sockets at rest", rest.sockets, before.sockets + 2 * CONCURRENCY),  # kept alive
        ("threads without a client", gone.threads, before.threads),
        ("sockets without a client", gone.sockets, before.sockets),
    ):
        if found > most:
            yield f"{found:.0f} {what}, of {most:.0f} allowed"


def table(report: Report) -> Iterator[str]:
    """For people."""
    tally = report.tally
    yield f"{'call':<20}{'started':>10}" + "".join(f"{how:>10}" for how in ENDS)
    for kind, counts in [*sorted(tally.counts.items()), ("all", sum(tally.counts.values(), Counter[str]()))]:
        yield f"{kind:<20}" + "".join(f"{counts[how]:>10}" for how in ("started", *ENDS))
    yield f"vectors compared: {tally.vectors}; the service saw: {dict(report.seen)}"
    for name in ("before", "warm", "rest", "gone"):
        yield f"{name}: {getattr(report, name)}"
    yield f"memory, last quarter less first: {report.growth:+.1f} MiB, after {report.requests} requests"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="default: ten minutes")
    report = soak(parser.parse_args().seconds)
    found = violations(report)
    sys.stdout.write("\n".join([*table(report), *(found or ["no violation"])]) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
