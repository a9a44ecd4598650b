"""The limiter against quotas of many shapes, on a fake clock.

    python tests/support/limiter_simulation.py        prints the table

Workers behave as threads do: each takes the next request, asks the limiter, sleeps for the time that it returns and
a little longer, sends, and enqueues again if it was throttled. No real time passes, and every run is seeded.
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

_MAX_OVERSLEEP_SECONDS = 0.002
"""Seconds that a sleeper wakes up late at most: 1 ms on average."""
_MAX_UPLINK_SECONDS = 0.05
"""Seconds until the service counts a request, at most: half the time of its reply, if that is less."""


class Quota(Protocol):
    """What the service enforces: refused requests are not counted."""

    def admit(self, now: float, tokens: int) -> bool:
        """Whether the request is admitted; if so, it is counted."""


@dataclass
class SlidingWindow:
    """At most `limit` requests (or tokens) in any `seconds`.

    Like the emulator, admits a request above the whole limit alone and lets it fill several windows; `lenient` instead
    admits any request while the window is not full, like a service that counts afterwards.
    """

    limit: float
    seconds: float = 1.0
    counts_tokens: bool = False
    lenient: bool = False
    limit_change: tuple[float, float] | None = None
    """(Time of the change, new limit)."""
    _used: float = 0.0
    _entries: deque[tuple[float, float]] = field(default_factory=deque)

    def admit(self, now: float, tokens: int) -> bool:
        if self.limit_change is not None and now >= self.limit_change[0]:
            self.limit, self.limit_change = self.limit_change[1], None
        while self._entries and self._entries[0][0] <= now:
            self._used -= self._entries.popleft()[1]
        amount = tokens if self.counts_tokens else 1
        required = 1e-9 if self.lenient else min(amount, self.limit)
        if self._used + required > self.limit:
            return False
        self._used += amount
        stretch = max(1.0, amount / self.limit)
        self._entries.append((now + self.seconds * stretch, amount))
        return True


@dataclass
class FixedWindow:
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
class BurstLimit:
    """Admits at most twice the requests of the second before, at least `floor` and at most `limit` a second."""

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
class RandomRefusals:
    """Refuses a random share of the requests, and applies another quota to the rest."""

    share: float
    seed: int
    inner: Quota | None = None

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - no secret

    def admit(self, now: float, tokens: int) -> bool:
        if self._random.random() < self.share:
            return False
        return self.inner is None or self.inner.admit(now, tokens)


@dataclass
class SimulationResult:
    """Result of a simulated job."""

    seconds: float = 0.0
    """Time of the last reply."""
    answered: int = 0
    refused: int = 0
    tokens: int = 0
    """Of answered requests."""
    sends: list[tuple[float, bool]] = field(default_factory=list)
    """Send time of each request, and whether it was answered."""

    @property
    def throttled_share(self) -> float:
        """Refused requests as a share of all that were sent."""
        return self.refused / max(1, self.refused + self.answered)


@dataclass
class Workload:
    """One process's requests: its own limiter, some workers, sizes in tokens."""

    limiter: Limiter
    sizes: Sequence[int]
    workers: int = 16
    start_seconds: float = 0.0
    estimate_factor: float = 1.0
    """Estimated tokens of a request, which the limiter gets, divided by its actual tokens."""


class Simulation:
    """An event heap, a clock and a service with a quota.

    Args:
        quota: the service's; None: none.
        latency: seconds until a reply.
        jitter: maximum of further seconds, random for each reply.
        seed: seed of all randomness.
        retry_after: seconds in the header of a refusal, if any.
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
        self.result = SimulationResult()
        self._quota, self._latency, self._retry_after = quota, latency, retry_after
        self._jitter = latency * 0.1 if jitter is None else jitter
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._began = self.now

    def clock(self) -> float:
        return self.now

    def schedule(self, seconds: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (self.now + seconds, self._order, action))

    def run(self, *workloads: Workload) -> SimulationResult:
        """Send all requests and return the result."""
        for workload in workloads:
            sizes = iter(workload.sizes)
            for _ in range(workload.workers):
                self.schedule(workload.start_seconds, partial(self._send_next, workload, sizes))
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()
        return self.result

    def _send_next(self, workload: Workload, sizes: Iterator[int]) -> None:
        size = next(sizes, None)
        if size is not None:
            self._enqueue(workload, size, lambda: self._send_next(workload, sizes))

    def _enqueue(self, workload: Workload, size: int, then: Callable[[], None]) -> None:
        permit = workload.limiter.create_permit(round(size * workload.estimate_factor))
        self._try_acquire(workload, permit, size, then)

    def _try_acquire(self, workload: Workload, permit: Permit, size: int, then: Callable[[], None]) -> None:
        wait = workload.limiter.try_acquire(permit)
        if wait > 0:
            late = self._random.random() * _MAX_OVERSLEEP_SECONDS
            self.schedule(wait + late, lambda: self._try_acquire(workload, permit, size, then))
            return
        sent = self.now
        reply = self._latency + self._random.random() * self._jitter
        arrival = min(0.5 * reply, _MAX_UPLINK_SECONDS)

        def arrive() -> None:
            admitted = self._quota is None or self._quota.admit(self.now - self._began, size)
            self.schedule(reply - arrival, lambda: answer(admitted=admitted))

        def answer(*, admitted: bool) -> None:
            self.result.sends.append((sent - self._began, admitted))
            self.result.seconds = self.now - self._began
            if admitted:
                self.result.answered += 1
                self.result.tokens += size
                workload.limiter.on_success(permit, size)
                then()
            else:
                self.result.refused += 1
                workload.limiter.on_throttled(permit, self._retry_after)
                self._enqueue(workload, size, then)

        self.schedule(arrival, arrive)


@dataclass
class Scenario:
    """A line of the table: a quota and a job, with the shortest possible time."""

    name: str
    ideal_seconds: float | None
    """Shortest possible time; None: the tokens divided by the tokens a second."""
    quota: Callable[[int], Quota | None]
    """Creates the quota for a seed."""
    requests: int = 300
    latency: float = 0.08
    jitter: float | None = None
    rpm: float | None = None
    tpm: float | None = None
    tokens: tuple[int, int] = (100, 100)
    estimate_factor: float = 1.0
    process_starts: tuple[float, ...] = (0.0,)
    """Seconds at which each process starts."""
    retry_after: float | None = None
    workers: int = 16

    def slowness(self, result: SimulationResult) -> float:
        """The time it took, as a multiple of the ideal."""
        return result.seconds / (
            result.tokens / TOKENS_PER_SECOND if self.ideal_seconds is None else self.ideal_seconds
        )

    def run(self, seed: int) -> SimulationResult:
        simulation = Simulation(
            self.quota(seed), self.latency, jitter=self.jitter, seed=seed, retry_after=self.retry_after
        )
        generator = random.Random(seed + 1)  # noqa: S311 - no secret
        workloads = []
        for starts in self.process_starts:
            sizes = [generator.randint(*self.tokens) for _ in range(self.requests // len(self.process_starts))]
            limiter = Limiter(simulation.clock, self.rpm, self.tpm)
            workloads.append(Workload(limiter, sizes, self.workers, starts, self.estimate_factor))
        return simulation.run(*workloads)


def _token_scenario(name: str, *, coarse: bool = False, lenient: bool = False, **settings: float) -> Scenario:
    """A million tokens a minute; requests of 2 % of a second's tokens on average, or 6 %."""
    requests, largest = (600, 2000) if coarse else (2000, 600)
    return Scenario(
        name,
        ideal_seconds=None,
        quota=lambda _: SlidingWindow(TOKENS_PER_SECOND, counts_tokens=True, lenient=lenient),
        requests=requests,
        tokens=(20, largest),
        **settings,  # type: ignore[arg-type]
    )


REQUESTS_PER_SECOND = 30
"""Requests a second in the scenarios below."""
TOKENS_PER_SECOND = 1_000_000 / 60
"""Tokens a second of a model with a million a minute."""

SCENARIOS = (
    Scenario("known 1 s sliding, 10 ms", 10.0, lambda _: SlidingWindow(REQUESTS_PER_SECOND), latency=0.01, rpm=1800),
    Scenario("known 1 s sliding, 80 ms", 10.0, lambda _: SlidingWindow(REQUESTS_PER_SECOND), rpm=1800),
    Scenario("known, 30 ms of jitter", 10.0, lambda _: SlidingWindow(REQUESTS_PER_SECOND), jitter=0.03, rpm=1800),
    Scenario("1 s sliding, 10 ms", 10.0, lambda _: SlidingWindow(REQUESTS_PER_SECOND), latency=0.01),
    Scenario("1 s sliding, 80 ms", 10.0, lambda _: SlidingWindow(REQUESTS_PER_SECOND)),
    Scenario("1 s sliding, 80 ms, long", 100.0, lambda _: SlidingWindow(REQUESTS_PER_SECOND), requests=3000),
    Scenario("1 s sliding, Retry-After 1", 10.0, lambda _: SlidingWindow(REQUESTS_PER_SECOND), retry_after=1.0),
    Scenario("1 s fixed, 10 ms", 10.0, lambda _: FixedWindow(REQUESTS_PER_SECOND), latency=0.01),
    Scenario("1 s fixed, 80 ms", 10.0, lambda _: FixedWindow(REQUESTS_PER_SECOND)),
    Scenario("1 a second", 60.0, lambda _: SlidingWindow(1), requests=60),
    Scenario("6 s window of 60", 30.0, lambda _: SlidingWindow(60, 6.0), latency=0.01),
    Scenario("minute of 1,800", 120.0, lambda _: SlidingWindow(1800, 60.0), requests=3600, latency=0.01),
    Scenario("minute, Retry-After 20", 120.0, lambda _: SlidingWindow(1800, 60.0), requests=3600, retry_after=20.0),
    Scenario("burst-sensitive", 10.0, lambda _: BurstLimit(REQUESTS_PER_SECOND), latency=0.01),
    Scenario(
        "half the limit at 5 s",
        15.0,
        lambda _: SlidingWindow(REQUESTS_PER_SECOND, limit_change=(5.0, REQUESTS_PER_SECOND / 2)),
        latency=0.01,
    ),
    Scenario(
        "twice the limit at 5 s",
        30.0,
        lambda _: SlidingWindow(15, limit_change=(5.0, REQUESTS_PER_SECOND)),
        latency=0.01,
        requests=825,
    ),
    Scenario("none, 80 ms, 100", 7 * 0.08, lambda _: None, requests=100),
    Scenario("none, 80 ms, 1,000", 63 * 0.084, lambda _: None, requests=1000),
    Scenario(
        "two processes", 10.0, lambda _: SlidingWindow(REQUESTS_PER_SECOND), process_starts=(0.0, 0.0), latency=0.01
    ),
    Scenario(
        "second 3 s late", 10.0, lambda _: SlidingWindow(REQUESTS_PER_SECOND), process_starts=(0.0, 3.0), latency=0.01
    ),
    Scenario("erratic 3 %, no quota", 65 * 0.084, lambda s: RandomRefusals(0.03, s), requests=1000),
    Scenario("erratic 5 %, no quota", 66 * 0.084, lambda s: RandomRefusals(0.05, s), requests=1000),
    Scenario("erratic 3 %, 10 ms", 65 * 0.0105, lambda s: RandomRefusals(0.03, s), requests=1000, latency=0.01),
    Scenario(
        "erratic 3 %, 1 s sliding",
        1000 / REQUESTS_PER_SECOND,
        lambda s: RandomRefusals(0.03, s, SlidingWindow(REQUESTS_PER_SECOND)),
        requests=1000,
    ),
    Scenario(
        "erratic 3 %, known",
        1000 / REQUESTS_PER_SECOND,
        lambda s: RandomRefusals(0.03, s, SlidingWindow(REQUESTS_PER_SECOND)),
        requests=1000,
        rpm=1800,
    ),
    _token_scenario("tokens known", tpm=1e6),
    _token_scenario("tokens known, estimate / 2", tpm=1e6, estimate_factor=0.5),
    _token_scenario("tokens known, estimate x 2", tpm=1e6, estimate_factor=2.0),
    _token_scenario("tokens known, lenient", tpm=1e6, lenient=True),
    _token_scenario("tokens known, coarse", tpm=1e6, coarse=True),
    _token_scenario("tokens known, coarse, lenient", tpm=1e6, coarse=True, lenient=True),
    _token_scenario("tokens unknown"),
    _token_scenario("tokens unknown, lenient", lenient=True),
    _token_scenario("tokens unknown, coarse", coarse=True),
    _token_scenario("tokens unknown, coarse, lenient", coarse=True, lenient=True),
)


def table(
    seeds: Sequence[int], scenarios: Sequence[Scenario] = SCENARIOS
) -> list[tuple[str, float, float, float, float]]:
    """Name, mean and worst time / ideal, mean and worst throttled share."""
    lines = []
    for scenario in scenarios:
        results = [scenario.run(seed) for seed in seeds]
        times = [scenario.slowness(outcome) for outcome in results]
        shares = [outcome.throttled_share for outcome in results]
        lines.append((scenario.name, sum(times) / len(times), max(times), sum(shares) / len(shares), max(shares)))
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each scenario")
    seeds = range(parser.parse_args().seeds)
    print(f"{'scenario':32}{'time/ideal':>10}{'worst':>7}{'throttled':>11}{'worst':>7}")  # noqa: T201
    for name, time, slowest, share, most in table(seeds):
        print(f"{name:32}{time:10.2f}{slowest:7.2f}{share:11.1%}{most:7.1%}")  # noqa: T201


if __name__ == "__main__":
    main()
