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
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from soak_load import CONCURRENCY, Load
from soak_service import Seen

from dashscope_embeddings._core.rate_limiter import Permit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from soak_load import Tally

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

_NOISE = 16.0
"""MiB that the resident size moves by itself: allocators keep what a moment's peak of requests had needed."""
_PER_REQUEST = 160.0
"""Bytes a request: whatever is kept of one, a permit, an outcome or a body, takes several times that."""
_OBJECTS, _OBJECTS_PER_REQUEST = 800, 0.05
"""One object that is kept of each request would be twenty times that. Tells more than memory in a short run."""


@dataclass(frozen=True)
class Sample:
    """What the process held at one moment; -1: this system does not tell."""

    time: float
    memory: float
    """MiB resident."""
    sockets: int
    threads: int
    tasks: int
    permits: int
    """Requests under way as far as the limiter knows."""


@dataclass
class Rest:
    """What is left when nobody calls."""

    sample: Sample
    objects: int
    """Known to the garbage collector, after a collection; without permits, which the limiter remembers by thousands."""


@dataclass
class Report:
    """All that is judged."""

    seconds: float
    tally: Tally
    before: Rest
    """Before the client was used for the first time."""
    warm: Rest
    rest: Rest
    gone: Rest
    """After the client was forgotten."""
    seen: Seen
    requests: int
    """Sent between `warm` and `rest`, about."""
    waiting: int
    """Permits in the limiter's queues at `rest`."""
    stuck: int
    """Callers that did not return."""
    samples: list[Sample] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """MiB between the first and the last quarter of the samples, medians."""
        quarter = max(1, len(self.samples) // 4)
        first = statistics.median(sample.memory for sample in self.samples[:quarter])
        return statistics.median(sample.memory for sample in self.samples[-quarter:]) - first

    @property
    def allowed_growth(self) -> float:
        """MiB."""
        return _NOISE + _PER_REQUEST * self.requests / 2**20

    @property
    def allowed_objects(self) -> float:
        """Between `warm` and `rest`."""
        return _OBJECTS + _OBJECTS_PER_REQUEST * self.requests


# --- measuring -----------------------------------------------------------------------------------------------


def memory() -> float:
    """MiB resident."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return -1.0


def sockets() -> int:
    """Open sockets of this process."""
    count = 0
    try:
        descriptors = list(Path("/proc/self/fd").iterdir())
    except OSError:
        return -1
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # closed meanwhile
            count += str(descriptor.readlink()).startswith("socket:")
    return count


def sample(load: Load) -> Sample:
    """What there is now."""
    tasks = 0
    for loop in list(load.loops):
        with contextlib.suppress(RuntimeError):  # its tasks change too fast to be counted
            tasks += len(asyncio.all_tasks(loop))
    limiter = load.client._request_context("document", "dense").limiter
    return Sample(time.monotonic(), memory(), sockets(), threading.active_count(), tasks, limiter.in_flight)


def at_rest(load: Load) -> Rest:
    """To be called when nobody calls."""
    gc.collect()
    return Rest(sample(load), sum(not isinstance(thing, Permit) for thing in gc.get_objects()))


# --- running -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def service(period: float) -> Iterator[tuple[str, list[Seen]]]:
    """The service in a process of its own; what it saw is in the list afterwards."""
    command = [sys.executable, str(Path(__file__).with_name("soak_service.py")), str(period)]
    seen: list[Seen] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip(), seen
        process.stdin.close()
        seen.append(Seen(**json.loads(process.stdout.readline())))


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
    with service(max(1.0, seconds / 24)) as (url, seen):
        load = Load(url)
        before = at_rest(load)
        stuck = work(load, seconds * _WARM_UP)
        warm, billed = at_rest(load), load.client.usage.requests
        stuck += work(load, seconds * (1 - _WARM_UP), samples)
        rest, requests = settled(load, before.sample.threads + CONCURRENCY), load.client.usage.requests - billed
        limiter = load.client._request_context("document", "dense").limiter
        waiting = len(limiter._high_priority_queue.waiting) + len(limiter._low_priority_queue.waiting)
        load.forget()
        gone = settled(load, before.sample.threads)
    return Report(seconds, load.tally, before, warm, rest, gone, seen[0], requests, waiting, stuck, samples)


def settled(load: Load, threads: int) -> Rest:
    """What is left when no more than so many threads are: idle ones end by themselves after some seconds."""
    until = time.monotonic() + _IDLE_THREADS_END
    while (found := at_rest(load)).sample.threads > threads and time.monotonic() < until:
        threading.Event().wait(0.05)
    return found


# --- judging -------------------------------------------------------------------------------------------------


def violations(report: Report) -> list[str]:
    """What must not be; nothing: all is well."""
    return [*_wrong_calls(report), *_leaks(report)]


def _wrong_calls(report: Report) -> Iterator[str]:
    tally = report.tally
    for what, count in Counter(tally.complaints).most_common(10):
        yield f"{count} times: {what}"
    ends = sum(tally.total(how) for how in ENDS)
    if tally.total("started") != ends or report.stuck:
        yield f"{tally.total('started')} calls started and {ends} ended; {report.stuck} callers never returned"
    for how in ENDS:
        if not tally.total(how):
            yield f"no call was {how}: nothing is shown about those"
    if not report.seen.throttled or sum(report.seen.faults.values()) < _LEAST_FAULTS * report.seen.requests:
        yield f"the service was not faulty enough to show anything: {report.seen}"


def _leaks(report: Report) -> Iterator[str]:
    before, rest, gone = (at.sample for at in (report.before, report.rest, report.gone))
    if report.growth > report.allowed_growth:
        yield f"memory grew by {report.growth:.1f} MiB, of {report.allowed_growth:.1f} allowed"
    if (objects := report.rest.objects - report.warm.objects) > report.allowed_objects:
        yield f"{objects} objects more at rest than when warm, of {report.allowed_objects:.0f} allowed"
    if rest.permits or report.waiting:
        yield f"{rest.permits} permits in flight and {report.waiting} waiting, at rest"
    if rest.tasks:
        yield f"{rest.tasks} tasks at rest"
    if rest.threads > before.threads + CONCURRENCY:
        yield f"{rest.threads} threads at rest, of {before.threads + CONCURRENCY} allowed: those of one pool"
    if rest.sockets > before.sockets + 2 * CONCURRENCY:
        yield f"{rest.sockets} sockets at rest, of {before.sockets + 2 * CONCURRENCY} allowed: those kept alive"
    if gone.threads > before.threads:
        yield f"{gone.threads} threads without a client, {before.threads} before its first use"
    if gone.sockets > before.sockets:
        yield f"{gone.sockets} sockets without a client, {before.sockets} before its first use"


def table(report: Report) -> str:
    """For people."""
    tally, seen = report.tally, report.seen
    lines = [f"{report.seconds:.0f} s, {THREADS} threads and {LOOPS} x {TASKS} tasks", ""]
    lines.append(f"{'call':<20}{'started':>10}" + "".join(f"{how:>10}" for how in ENDS))
    for kind, counts in [*sorted(tally.counts.items()), ("all", sum(tally.counts.values(), Counter[str]()))]:
        lines.append(f"{kind:<20}" + "".join(f"{counts[how]:>10}" for how in ("started", *ENDS)))
    lines += ["", f"vectors compared     {tally.vectors}"]
    lines += [f"service              {seen.requests} requests, {seen.throttled} throttled, {seen.quotas} quotas"]
    lines += [f"faults               {', '.join(f'{name} {n}' for name, n in sorted(seen.faults.items()))}", ""]
    lines.append(f"{'':<20}" + "".join(f"{name:>10}" for name in ("before", "warm", "peak", "rest", "gone")))
    for name, form in _MEASURED.items():
        at = [getattr(found.sample, name) for found in (report.before, report.warm, report.rest, report.gone)]
        at.insert(2, max(getattr(found, name) for found in report.samples))
        lines.append(f"{form:<20}" + "".join(f"{value:>10.0f}" for value in at))
    objects: list[float] = [found.objects for found in (report.before, report.warm, report.rest, report.gone)]
    objects.insert(2, math.nan)
    lines.append(f"{'objects':<20}" + "".join(f"{value:>10.0f}" for value in objects))
    more = report.rest.objects - report.warm.objects
    lines += ["", f"memory, last quarter less first: {report.growth:+.1f} MiB of {report.allowed_growth:.1f} allowed"]
    lines += [f"objects, rest less warm: {more:+d} of {report.allowed_objects:.0f} allowed"]
    return "\n".join(lines)


_MEASURED = {
    "memory": "memory, MiB",
    "sockets": "sockets",
    "threads": "threads",
    "tasks": "tasks",
    "permits": "permits in flight",
}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="default: ten minutes")
    report = soak(parser.parse_args().seconds)
    sys.stdout.write(table(report) + "\n\n")
    found = violations(report)
    sys.stdout.write("\n".join(found or ["no violation"]) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
