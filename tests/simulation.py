"""The limiter against quotas of many shapes, on a fake clock: `python tests/simulation.py` prints the table.

Workers behave as threads do: each takes the next request, asks the limiter, sleeps as long as it was told and
a little longer, sends, and asks anew when it was throttled. Nothing waits for real and every run is seeded.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from dashscope_embeddings._core.rate_limiter import Limiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dashscope_embeddings._core.rate_limiter import Permit

_OVERSLEPT = 0.002
"""At most so many seconds a sleeper wakes up late: 1 ms on average."""
_UPLINK = 0.05
"""Seconds at most until the service counts a request: half the time of its reply, if that is less."""


class Quota(Protocol):
    """What the service enforces: refused requests are not counted."""

    def admit(self, now: float, tokens: int) -> bool:
        """Count the request and say yes, or say no."""


@dataclass
class Sliding:
    """At most `limit` requests (or tokens) in any `seconds`.

    As the emulator does, lets a request above the whole limit pass alone and makes it fill several windows;
    `lenient` instead admits whatever comes while there is room left, as a service that counts afterwards.
    """

    limit: float
    seconds: float = 1.0
    counts_tokens: bool = False
    lenient: bool = False
    later: tuple[float, float] | None = None
    """(From when on, another limit)."""
    _used: float = 0.0
    _entries: deque[tuple[float, float]] = field(default_factory=deque)

    def admit(self, now: float, tokens: int) -> bool:
        if self.later is not None and now >= self.later[0]:
            self.limit, self.later = self.later[1], None
        while self._entries and self._entries[0][0] <= now:
            self._used -= self._entries.popleft()[1]
        amount = tokens if self.counts_tokens else 1
        asked = 1e-9 if self.lenient else min(amount, self.limit)
        if self._used + asked > self.limit:
            return False
        self._used += amount
        stretch = max(1.0, amount / self.limit)
        self._entries.append((now + self.seconds * stretch, amount))
        return True


@dataclass
class Fixed:
    """At most `limit` requests in each second, or other span, of the service's clock."""

    limit: int
    seconds: float = 1.0
    phase: float = 0.37
    _window: int = -1
    _used: int = 0

    def admit(self, now: float, tokens: int) -> bool:  # noqa: ARG002 - counts requests
        window = int((now + self.phase) / self.seconds)
        if window != self._window:
            self._window, self._used = window, 0
        self._used += 1
        if self._used > self.limit:
            self._used -= 1
            return False
        return True


@dataclass
class Bursts:
    """Refuses what would be more than twice the second before, above a floor; `limit` a second at most."""

    limit: int = 30
    floor: int = 5
    _sends: deque[float] = field(default_factory=deque)

    def admit(self, now: float, tokens: int) -> bool:  # noqa: ARG002 - counts requests
        while self._sends and self._sends[0] <= now - 2.0:
            self._sends.popleft()
        last = sum(sent > now - 1.0 for sent in self._sends)
        before = len(self._sends) - last
        if last >= min(self.limit, max(self.floor, 2 * before)):
            return False
        self._sends.append(now)
        return True


@dataclass
class Erratic:
    """Refuses a share of the requests for no reason, and the rest by another quota."""

    share: float
    seed: int
    behind: Quota | None = None

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - no secret

    def admit(self, now: float, tokens: int) -> bool:
        if self._random.random() < self.share:
            return False
        return self.behind is None or self.behind.admit(now, tokens)


@dataclass
class Outcome:
    """What a simulated job came to."""

    seconds: float = 0.0
    """Until the last answer."""
    answered: int = 0
    refused: int = 0
    tokens: int = 0
    """Of answered requests."""
    sends: list[tuple[float, bool]] = field(default_factory=list)
    """When each request was sent, and whether it was answered."""

    @property
    def throttled(self) -> float:
        """Refused requests as a share of all that were sent."""
        return self.refused / max(1, self.refused + self.answered)


@dataclass
class Job:
    """One process's requests: its own limiter, some workers, sizes in tokens."""

    limiter: Limiter
    sizes: Sequence[int]
    workers: int = 16
    starts: float = 0.0
    estimate: float = 1.0
    """What the limiter is told of a request's tokens, as a share of the truth."""


class World:
    """An event heap, a clock and a service with a quota.

    Args:
        quota: of the service; None: none.
        latency: seconds a reply takes.
        jitter: further seconds at most, for each reply anew.
        seed: of all that is random.
        retry_after: what a refusal says, if anything.
    """

    def __init__(
        self,
        quota: Quota | None,
        latency: float,
        *,
        jitter: float | None = None,
        seed: int = 0,
        retry_after: float | None = None,
    ) -> None:
        self.now = 1000.0
        self.outcome = Outcome()
        self._quota, self._latency, self._retry_after = quota, latency, retry_after
        self._jitter = latency * 0.1 if jitter is None else jitter
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._began = self.now

    def clock(self) -> float:
        return self.now

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (self.now + seconds, self._order, do))

    def run(self, *jobs: Job) -> Outcome:
        """Send everything, and say what came of it."""
        for job in jobs:
            sizes = iter(job.sizes)
            for _ in range(job.workers):
                self.after(job.starts, partial(self._next, job, sizes))
        while self._events:
            self.now, _, do = heapq.heappop(self._events)
            do()
        return self.outcome

    def _next(self, job: Job, sizes: Iterator[int]) -> None:
        size = next(sizes, None)
        if size is not None:
            self._ask(job, size, lambda: self._next(job, sizes))

    def _ask(self, job: Job, size: int, then: Callable[[], None]) -> None:
        permit = job.limiter.ask(round(size * job.estimate))
        self._reserve(job, permit, size, then)

    def _reserve(self, job: Job, permit: Permit, size: int, then: Callable[[], None]) -> None:
        wait = job.limiter.reserve(permit)
        if wait > 0:
            late = self._random.random() * _OVERSLEPT
            self.after(wait + late, lambda: self._reserve(job, permit, size, then))
            return
        sent = self.now
        reply = self._latency + self._random.random() * self._jitter
        arrival = min(0.5 * reply, _UPLINK)

        def arrive() -> None:
            admitted = self._quota is None or self._quota.admit(self.now - self._began, size)
            self.after(reply - arrival, lambda: answer(admitted=admitted))

        def answer(*, admitted: bool) -> None:
            self.outcome.sends.append((sent - self._began, admitted))
            self.outcome.seconds = self.now - self._began
            if admitted:
                self.outcome.answered += 1
                self.outcome.tokens += size
                job.limiter.settle(permit, size)
                then()
            else:
                self.outcome.refused += 1
                job.limiter.refuse(permit, self._retry_after)
                self._ask(job, size, then)

        self.after(arrival, arrive)


@dataclass
class Row:
    """A line of the table: a shape, and how long the job takes at best."""

    name: str
    ideal: float | None
    """Seconds; None: what the tokens take."""
    quota: Callable[[int], Quota | None]
    """Made anew for each seed."""
    requests: int = 300
    latency: float = 0.08
    jitter: float | None = None
    rpm: float | None = None
    tpm: float | None = None
    tokens: tuple[int, int] = (100, 100)
    estimate: float = 1.0
    processes: tuple[float, ...] = (0.0,)
    """When each process starts."""
    retry_after: float | None = None
    workers: int = 16

    def slowness(self, outcome: Outcome) -> float:
        """The time it took, as a multiple of the ideal."""
        return outcome.seconds / (outcome.tokens / TPS if self.ideal is None else self.ideal)

    def run(self, seed: int) -> Outcome:
        world = World(self.quota(seed), self.latency, jitter=self.jitter, seed=seed, retry_after=self.retry_after)
        chance = random.Random(seed + 1)  # noqa: S311 - no secret
        jobs = []
        for starts in self.processes:
            sizes = [chance.randint(*self.tokens) for _ in range(self.requests // len(self.processes))]
            limiter = Limiter(world.clock)
            limiter.tighten(self.rpm, self.tpm)
            jobs.append(Job(limiter, sizes, self.workers, starts, self.estimate))
        return world.run(*jobs)


def _tokens_row(name: str, *, coarse: bool = False, lenient: bool = False, **settings: float) -> Row:
    """A million tokens a minute; requests of 2 % of a second's tokens on average, or 6 %."""
    requests, largest = (600, 2000) if coarse else (2000, 600)
    return Row(
        name,
        ideal=None,
        quota=lambda _: Sliding(TPS, counts_tokens=True, lenient=lenient),
        requests=requests,
        tokens=(20, largest),
        **settings,  # type: ignore[arg-type]
    )


SECOND = 30
"""Requests a second of the shapes below."""
TPS = 1_000_000 / 60
"""Tokens a second of a model with a million a minute."""

ROWS = (
    Row("known 1 s sliding, 10 ms", 10.0, lambda _: Sliding(SECOND), latency=0.01, rpm=1800),
    Row("known 1 s sliding, 80 ms", 10.0, lambda _: Sliding(SECOND), rpm=1800),
    Row("known, 30 ms of jitter", 10.0, lambda _: Sliding(SECOND), jitter=0.03, rpm=1800),
    Row("1 s sliding, 10 ms", 10.0, lambda _: Sliding(SECOND), latency=0.01),
    Row("1 s sliding, 80 ms", 10.0, lambda _: Sliding(SECOND)),
    Row("1 s sliding, 80 ms, long", 100.0, lambda _: Sliding(SECOND), requests=3000),
    Row("1 s sliding, Retry-After 1", 10.0, lambda _: Sliding(SECOND), retry_after=1.0),
    Row("1 s fixed, 10 ms", 10.0, lambda _: Fixed(SECOND), latency=0.01),
    Row("1 s fixed, 80 ms", 10.0, lambda _: Fixed(SECOND)),
    Row("1 a second", 60.0, lambda _: Sliding(1), requests=60),
    Row("6 s window of 60", 30.0, lambda _: Sliding(60, 6.0), latency=0.01),
    Row("minute of 1,800", 120.0, lambda _: Sliding(1800, 60.0), requests=3600, latency=0.01),
    Row("minute, Retry-After 20", 120.0, lambda _: Sliding(1800, 60.0), requests=3600, retry_after=20.0),
    Row("burst-sensitive", 10.0, lambda _: Bursts(SECOND), latency=0.01),
    Row("halves at 5 s", 15.0, lambda _: Sliding(SECOND, later=(5.0, SECOND / 2)), latency=0.01),
    Row("doubles at 5 s", 30.0, lambda _: Sliding(15, later=(5.0, SECOND)), latency=0.01, requests=825),
    Row("none, 80 ms, 100", 7 * 0.08, lambda _: None, requests=100),
    Row("none, 80 ms, 1,000", 63 * 0.084, lambda _: None, requests=1000),
    Row("two processes", 10.0, lambda _: Sliding(SECOND), processes=(0.0, 0.0), latency=0.01),
    Row("second 3 s late", 10.0, lambda _: Sliding(SECOND), processes=(0.0, 3.0), latency=0.01),
    Row("erratic 3 %, no quota", 65 * 0.084, lambda s: Erratic(0.03, s), requests=1000),
    Row("erratic 5 %, no quota", 66 * 0.084, lambda s: Erratic(0.05, s), requests=1000),
    Row("erratic 3 %, 10 ms", 65 * 0.0105, lambda s: Erratic(0.03, s), requests=1000, latency=0.01),
    Row("erratic 3 %, 1 s sliding", 1000 / SECOND, lambda s: Erratic(0.03, s, Sliding(SECOND)), requests=1000),
    Row(
        "erratic 3 %, known",
        1000 / SECOND,
        lambda s: Erratic(0.03, s, Sliding(SECOND)),
        requests=1000,
        rpm=1800,
    ),
    _tokens_row("tokens known", tpm=1e6),
    _tokens_row("tokens known, estimate / 2", tpm=1e6, estimate=0.5),
    _tokens_row("tokens known, estimate x 2", tpm=1e6, estimate=2.0),
    _tokens_row("tokens known, lenient", tpm=1e6, lenient=True),
    _tokens_row("tokens known, coarse", tpm=1e6, coarse=True),
    _tokens_row("tokens known, coarse, lenient", tpm=1e6, coarse=True, lenient=True),
    _tokens_row("tokens unknown"),
    _tokens_row("tokens unknown, lenient", lenient=True),
    _tokens_row("tokens unknown, coarse", coarse=True),
    _tokens_row("tokens unknown, coarse, lenient", coarse=True, lenient=True),
)


def table(seeds: Sequence[int], rows: Sequence[Row] = ROWS) -> list[tuple[str, float, float, float, float]]:
    """Name, mean and worst time / ideal, mean and worst throttled share."""
    lines = []
    for row in rows:
        outcomes = [row.run(seed) for seed in seeds]
        times = [row.slowness(outcome) for outcome in outcomes]
        shares = [outcome.throttled for outcome in outcomes]
        lines.append((row.name, sum(times) / len(times), max(times), sum(shares) / len(shares), max(shares)))
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each shape")
    seeds = range(parser.parse_args().seeds)
    print(f"{'shape':32}{'time/ideal':>10}{'worst':>7}{'throttled':>11}{'worst':>7}")  # noqa: T201
    for name, time, slowest, share, most in table(seeds):
        print(f"{name:32}{time:10.2f}{slowest:7.2f}{share:11.1%}{most:7.1%}")  # noqa: T201


if __name__ == "__main__":
    main()
