"""Services that a job has to cope with, and how well it has to: the listed ones with their bars."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ideal_times import START_IN_FLIGHT, Ideal, by_tokens, evenly, in_phases, informed_seconds, ramp
from service_shapes import (
    Constant,
    Crowded,
    FixedWindow,
    Latency,
    Lognormal,
    Neighbour,
    Queue,
    Quota,
    Service,
    Shards,
    SlidingWindow,
    TokenBucket,
)
from simulated_client import LOADED_MACHINE, SLOW_CONNECTS, Job, Machine, Result, Simulation

from dashscope_embeddings._core.rate_limiter import Limiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True)
class Bars:
    """The most that is allowed."""

    time: float
    """Of the time, as a multiple of the ideal."""
    throttled: float = 0.12
    """Of the share of 429s; 4 % at most from 3,000 requests on."""
    in_flight: int | None = None


@dataclass(frozen=True)
class Shape:
    """A service, a job, and how long it should take."""

    name: str
    service: Callable[[int], Service]
    """For a seed."""
    ideal: Ideal
    bars: Bars | None = None
    requests: int = 300
    tokens: tuple[int, int] = (1400, 1400)
    """Least and most of a request."""
    machine: Machine = field(default_factory=Machine)
    process_starts: tuple[float, ...] = (0.0,)
    """Seconds at which each process starts; they share the requests."""
    estimate_factor: float = 1.0
    kind: str = ""
    """Of a random shape."""
    rpm: float | None = None
    tpm: float | None = None

    def simulate(self, seed: int, limiter: type[Limiter] = Limiter) -> tuple[Simulation, list[Job]]:
        """A run that has not begun."""
        simulation = Simulation(self.service(seed), self.machine, seed=seed)
        chance = random.Random(seed + 1)  # noqa: S311 - no secret
        each = self.requests // len(self.process_starts)
        jobs = [
            Job(
                limiter(simulation.clock, self.rpm, self.tpm),
                [chance.randint(*self.tokens) for _ in range(each)],
                start,
                self.estimate_factor,
            )
            for start in self.process_starts
        ]
        return simulation, jobs

    def ideal_seconds(self, jobs: Iterable[Job]) -> float:
        sizes = [size for job in jobs for size in job.sizes]
        return self.ideal(len(sizes), sum(sizes))

    def run(self, seed: int) -> Result:
        simulation, jobs = self.simulate(seed)
        ideal = self.ideal_seconds(jobs)
        result = simulation.run(*jobs, give_up_seconds=20.0 * ideal + 60.0)
        result.ideal_seconds = ideal
        return result

    def longer(self, requests: int = 3000, time: float | None = None) -> Shape:
        """The same service and a longer job, with the bars of one."""
        bars = self.bars and replace(
            self.bars, time=time or self.bars.time, throttled=min(self.bars.throttled, 0.04 if requests >= 3000 else 1)
        )
        return replace(self, name=f"{self.name}, {requests:,}", requests=requests, bars=bars)


# --- the listed ones ---------------------------------------------------------------------------------------


def served(
    latency: float | Callable[[], Latency], quota: Callable[[int], Quota | None] = lambda _: None, **options: Any
) -> Callable[[int], Service]:
    """Makes the service for a seed; a latency in seconds is constant."""
    return lambda seed: Service(latency() if callable(latency) else Constant(latency), quota(seed), seed, **options)


def sliding(limit: float, seconds: float = 1.0, **options: Any) -> Callable[[int], Quota]:
    return lambda _: SlidingWindow(limit, seconds, **options)


def bucket(rate: float, burst: float) -> Callable[[int], Quota]:
    return lambda _: TokenBucket(rate, burst)


def shards(nodes: int, limit: float) -> Callable[[int], Quota]:
    return lambda seed: Shards([SlidingWindow(limit) for _ in range(nodes)], random.Random(seed))  # noqa: S311 - no secret


def neighbour(limit: float, on: float = math.inf, off: float = 0.0, phase: float = 0.0) -> Callable[[int], Quota]:
    """Another tenant takes half of it."""
    return lambda _: Neighbour(SlidingWindow(limit), limit / 2, on, off, phase)


def _of_latency(latency: float, throttled: float) -> tuple[Shape, ...]:
    """The shapes whose latency the table leaves open."""

    def shape(name: str, service: Callable[[int], Service], ideal: Ideal, time: float, **bars: Any) -> Shape:
        return Shape(
            f"{name}, {latency * 1000:.0f} ms", service, ideal, Bars(**{"throttled": throttled, **bars}, time=time)
        )

    taken, most = in_phases([(3.0, 20.0), (3.0, 40.0)], latency), 2 * max(START_IN_FLIGHT, round(40 * latency))
    fixed = served(latency, lambda seed: FixedWindow(30, phase=seed * 0.37 % 1.0))
    queue = served(lambda: Queue(40, latency))
    return (
        shape("GCRA 30/s, room for 3", served(latency, bucket(30, 3)), evenly(30, latency, 3), 1.2),
        shape("two shards of 20/s", served(latency, shards(2, 20)), evenly(40, latency), 1.25),
        shape("Retry-After 1, 30/s", served(latency, sliding(30), retry_after=1.0), evenly(30, latency), 1.2),
        shape("neighbour half of 40/s", served(latency, neighbour(40, 3.0, 3.0)), taken, 1.3),
        shape("fixed second 30", fixed, evenly(30, latency), 1.15),
        shape("bucket 30/s, room for 60", served(latency, bucket(30, 60)), evenly(30, latency, 60), 1.15),
        shape("queue 40/s", queue, evenly(40, latency), 1.15, throttled=0.0, in_flight=most),
    )


_NEAR, _NEAR_30 = Bars(1.15, 0.03), served(0.01, sliding(30))

TABLE_SHAPES = (
    Shape("100/s, 300 ms", served(0.3, sliding(100)), evenly(100, 0.3), Bars(1.25)),
    Shape("100/s, 1 s", served(1.0, sliding(100)), evenly(100, 1.0), Bars(1.6)),
    Shape("no quota, 500 ms", served(0.5), lambda *_: 1.0, Bars(3.0, 0.0)),
    Shape("50/s, lognormal 0.2 s", served(lambda: Lognormal(0.2, 0.7), sliding(50)), evenly(50, 0.2), Bars(1.25)),
    Shape("cap 8, 200 ms", served(0.2, cap=8), evenly(8 / 0.21, 0.2), Bars(1.3)),
    Shape("arrival 30/s, 10 ms", _NEAR_30, evenly(30, 0.01), _NEAR),
    Shape("arrival 30/s, 10 ms, slow connects", _NEAR_30, evenly(30, 0.01), _NEAR, machine=SLOW_CONNECTS),
    Shape("answer 30/s, 10 ms", served(0.01, sliding(30), counts_at_answer=True), evenly(30, 0.01), _NEAR),
    Shape("arrival 30/s, 200 ms", served(0.2, sliding(30)), evenly(30, 0.2), Bars(1.25)),
    Shape("answer 30/s, 200 ms", served(0.2, sliding(30), counts_at_answer=True), evenly(30, 0.2), Bars(1.25)),
    Shape(
        "tokens 60,000 in 6 s",
        served(0.15, sliding(60_000, 6.0, counts_tokens=True)),
        by_tokens(10_000, 0.15),
        Bars(1.25),
        tokens=(900, 1900),
    ),
    *_of_latency(0.01, 0.03),
    *_of_latency(0.2, 0.12),
)
"""The shapes of README's promise, with the bars that it is held to."""

_LATENCY = 0.05
"""Of the further shapes that do not say."""


def _further(
    name: str, quota: Callable[[int], Quota], ideal: float | Ideal, time: float, requests: int = 300, **settings: Any
) -> Shape:
    """`ideal`: requests a second, if they are even."""
    even = ideal if callable(ideal) else evenly(ideal, _LATENCY)
    return Shape(name, served(_LATENCY, quota), even, Bars(time), requests, **settings)


_STRAY_LATENCY = 0.08


def _strays(share: float, rate: float | None, latency: float = _STRAY_LATENCY) -> Shape:
    """Its share of 429s is the service's own, and the throttled share of a quota comes on top."""
    if rate is None:
        name, service, ideal, bars = (
            "no quota" if latency == _STRAY_LATENCY else f"no quota, {latency * 1000:.0f} ms",
            served(latency, stray_share=share),
            ramp(latency, share),
            Bars(2.0, share + 0.04),
        )
    else:
        service = served(latency, sliding(rate), stray_share=share)
        name, ideal, bars = f"{rate:g}/s", evenly(rate, latency), Bars(1.3, share + 0.12)
    return Shape(f"random 429s {share:.0%}, {name}", service, ideal, bars)


def _loaded(shape: Shape) -> Shape:
    return replace(shape, name=f"{shape.name}, late timers", machine=LOADED_MACHINE)


def _changed(before: float, after: float) -> Shape:
    ideal = in_phases([(5.0, before), (math.inf, after)], _LATENCY)
    return _further(f"{before:g}/s, {after:g}/s from 5 s", sliding(before, limit_change=(5.0, after)), ideal, 1.3, 450)


FURTHER_SHAPES = (
    _further("180 in 6 s", sliding(180, 6.0), 30, 1.15),
    _further("600 in 60 s", sliding(600, 60.0), 10, 1.15, 1200),
    _further("fixed minute 600", lambda seed: FixedWindow(600, 60.0, phase=seed * 17.0 % 60.0), 10, 1.25, 1200),
    _further("four shards of 10/s", shards(4, 10), 40, 1.4),
    *(
        _further(
            f"neighbour half of {limit}/s, {on:g} s on, {off:g} s off, since {since:g} s",
            neighbour(limit, on, off, since),
            in_phases([(on, limit / 2), (off, limit)], _LATENCY, since),
            1.3,
            900,
        )
        for limit, on, off, since in (
            (40, 3.0, 3.0, 1.5),
            (40, 2.0, 5.0, 1.0),
            (40, 5.0, 2.0, 4.0),
            (150, 3.0, 3.0, 0.6),
        )
    ),
    _further("neighbour always half of 40/s", neighbour(40, phase=1.0), 20, 1.25),
    *(
        Shape(
            f"cap {cap}, {latency * 1000:.0f} ms",
            served(latency, cap=cap),
            evenly(cap / (1.05 * latency), latency),
            Bars(1.3),
        )
        for cap, latency in ((2, 0.2), (4, 0.05), (5, 0.054), (32, 0.5))
    ),
    Shape("GCRA 48/s, room for 16, 1.9 s", served(1.9, bucket(48, 16)), evenly(48, 1.9, 16), Bars(1.4)),
    Shape(
        "GCRA 127/s, room for 5, lognormal 0.8 s",
        served(lambda: Lognormal(0.8, 0.7), bucket(127, 5)),
        lambda requests, _: informed_seconds(requests, 127.0, 0.8, 0.7),
        Bars(1.25),
        900,
    ),
    Shape("cap 4, lognormal 0.9 s", served(lambda: Lognormal(0.9, 0.7), cap=4), evenly(4 / 1.15, 0.9), Bars(1.3)),
    Shape("11/s, slow 429s, 1 s", served(1.1, sliding(11), slow_refusals=True), evenly(11, 1.1), Bars(1.3)),
    Shape(
        "tokens 47,000 in 6 s, 10 ms",
        served(0.01, sliding(47_000, 6.0, counts_tokens=True)),
        by_tokens(47_000 / 6.0, 0.01),
        Bars(1.25, 0.2),
        tokens=(200, 2600),
    ),
    Shape(
        "2,400 in 60 s, slow connects",
        served(0.025, sliding(2400, 60.0)),
        lambda *_: 60.0,
        Bars(1.3),
        3000,
        machine=SLOW_CONNECTS,
    ),
    Shape(
        "30/s, slow 429s, lognormal 0.3 s",
        served(lambda: Lognormal(0.3, 0.5), sliding(30), slow_refusals=True),
        evenly(30, 0.3),
        Bars(1.25),
    ),
    *(
        Shape(name, served(latency), ideal, Bars(time, in_flight=in_flight))
        for name, latency, ideal, time, in_flight in (
            ("crowded above 10, 200 ms", lambda: Crowded(0.2, 10, 1.0), evenly(10 / 0.21, 0.2), 1.15, 32),
            ("crowded above 24, wasteful", lambda: Crowded(0.3, 24, 1.3), evenly(24 / 0.315, 0.3), 1.3, 60),
            ("queue 10/s, 500 ms", lambda: Queue(10, 0.5), evenly(10, 0.5), 1.15, 24),
        )
    ),
    *(_strays(share, rate) for rate in (None, 30.0) for share in (0.01, 0.05, 0.2)),
    _strays(0.14, None, 0.5),
    _changed(30, 15),
    _changed(30, 60),
    *(
        _further(
            f"two processes, {rate}/s, second after {late:g} s", sliding(rate), rate, 1.6, process_starts=(0.0, late)
        )
        for rate, late in ((30, 0.0), (30, 3.0), (75, 2.0))
    ),
    *(_loaded(shape) for shape in TABLE_SHAPES if shape.name in {"100/s, 300 ms", "arrival 30/s, 10 ms"}),
    _loaded(Shape("150/s, 100 ms", served(0.1, sliding(150)), evenly(150, 0.1), Bars(1.25), requests=1000)),
)
"""More kinds of service, with bars of the same measure."""

LONG_SHAPES = (
    *(shape.longer() for shape in TABLE_SHAPES if shape.name not in {"100/s, 1 s", "no quota, 500 ms"}),
    *(shape.longer(1000, 1.25) for shape in TABLE_SHAPES if shape.name == "100/s, 1 s"),
    *(replace(shape.longer(), ideal=ramp(0.525)) for shape in TABLE_SHAPES if shape.name == "no quota, 500 ms"),
)
"""The same services for longer jobs."""
