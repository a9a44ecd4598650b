"""Services at random: a kind of quota and its parameters, drawn from a seed."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ideal_times import MOST_IN_FLIGHT, Ideal, in_phases, informed_seconds, unlimited_seconds
from listed_shapes import Bars, Shape, bucket, neighbour, served, shards, sliding
from service_shapes import Constant, Crowded, FixedWindow, Latency, Lognormal, Queue, Quota, Service
from simulated_client import Machine

if TYPE_CHECKING:
    from collections.abc import Callable

_KINDS = (
    *("sliding second",) * 5,
    *("fixed second", "bucket", "gcra", "shards", "cap", "neighbour", "tokens", "changed", "processes") * 2,
    *("long window", "none", "queue", "crowded"),
)
_WITHOUT_QUOTA = frozenset({"none", "queue", "crowded", "cap"})
"""Kinds where a stray costs the time of another request, and nothing is counted at the answer."""

_PACED = 5000
"""Requests that tell how many pass where chance decides."""


@dataclass
class _Draw:
    """What was drawn, and the words for it."""

    chance: random.Random
    kind: str
    rate: float
    """Requests a second."""
    latency: float

    def span(self, least: float, most: float) -> float:
        """Log-uniform."""
        return math.exp(self.chance.uniform(math.log(least), math.log(most)))


@dataclass
class _Trouble:
    """What comes on top of a quota."""

    counts_at_answer: bool = False
    slow_refusals: bool = False
    stray_share: float = 0.0
    retry_after: float | None = None


def _one_trouble(draw: _Draw) -> _Trouble:
    """At most one, of a sliding second; and random 429s without a quota."""
    kinds = {"sliding second": ("", "", "answer", "slow", "Retry-After", "random"), "none": ("", "random")}
    name = draw.chance.choice(kinds.get(draw.kind, ("",)))
    stray_share = round(draw.span(0.005, 0.2), 3) if name == "random" else 0.0
    return _Trouble(name == "answer", name == "slow", stray_share, 1.0 if name == "Retry-After" else None)


def _crossed_troubles(draw: _Draw) -> _Trouble:
    """Any, several at once, of any kind of quota."""
    chance = draw.chance
    found = _Trouble(chance.random() < 0.25, chance.random() < 0.25)
    found.counts_at_answer &= draw.kind not in _WITHOUT_QUOTA
    found.stray_share = round(draw.span(0.005, 0.2), 3) if chance.random() < 0.4 else 0.0
    if found.stray_share == 0.0 and draw.kind != "cap":
        found.retry_after = chance.choice((None, None, None, 1.0))
    return found


def random_shape(seed: int, *, crossed: bool = False) -> Shape:
    """The shape of this seed; its name says all that was drawn.

    Args:
        seed: Gives the same shape each time.
        crossed: Whether several troubles may come together; else at most one.
    """
    chance = random.Random(f"shape {seed}" if crossed else f"single {seed}")  # noqa: S311 - no secret
    draw = _Draw(chance, chance.choice(_KINDS), 0.0, 0.0)
    draw.rate, draw.latency = round(draw.span(5, 150), 1), round(draw.span(0.01, 2.0), 3)
    one_way = round(draw.span(0.0005, min(0.1, 0.45 * draw.latency)), 4)
    work = draw.latency - 2.0 * one_way
    sigma = 0.0 if draw.kind in {"queue", "crowded"} else chance.choice((0.0, 0.0, 0.3, 0.7))
    latency: Latency = Lognormal(work, sigma) if sigma else Constant(work)
    mean = work * (math.exp(sigma**2 / 2.0) if sigma else 1.05) + 2.0 * one_way
    trouble = _crossed_troubles(draw) if crossed else _one_trouble(draw)
    handshake = draw.span(0.003, 0.3)
    late = chance.choice(((0.0, 0.002), (0.0, 0.002), (0.005, 0.02)))
    kind = _drawn(draw, latency, mean)
    requests, rate = kind.requests, kind.rate
    requests = chance.choice((requests, requests, 3 * requests))
    starts = (0.0, chance.choice((0.0, 2.0))) if draw.kind == "processes" else (0.0,)

    def service(run: int) -> Service:
        made = kind.make(run)
        for name, value in vars(trouble).items():
            setattr(made, name, value)
        return made

    extras = [
        kind.words,
        f"{draw.latency * 1000:.0f} ms of which {2000 * one_way:.0f} ms network",
        f"sigma {sigma}" if sigma else "",
        "counts at answer" if trouble.counts_at_answer else "",
        "slow refusals" if trouble.slow_refusals else "",
        f"random 429s {trouble.stray_share:.1%}" if trouble.stray_share else "",
        f"Retry-After {trouble.retry_after:g}" if trouble.retry_after else "",
        f"connects up to {handshake * 1000:.0f} ms",
        "late timers" if late[0] else "",
        f"{requests} requests",
    ]
    most = rate * mean if draw.kind == "cap" and isinstance(rate, float) else MOST_IN_FLIGHT
    sent = 1.0 / (1.0 - trouble.stray_share) if draw.kind in _WITHOUT_QUOTA else 1.0

    def ideal(count: int, tokens: int) -> float:
        by_quota = sent * (count / rate if isinstance(rate, float) else rate(count, tokens))
        reply = draw.latency if sigma else mean
        informed = informed_seconds(sent * count, sent * count / by_quota, reply, sigma, most)
        return max(informed, unlimited_seconds(count))

    wake_delay = (0.001, 0.01) if late[0] else (0.00005, 0.0005)
    return Shape(
        f"#{seed} " + ", ".join(extra for extra in extras if extra),
        service,
        ideal,
        kind=draw.kind,
        requests=requests,
        tokens=(200, 2600) if draw.kind == "tokens" else (1400, 1400),
        machine=Machine(one_way, 0.2 * one_way + 0.0002, handshake, late, wake_delay),
        process_starts=starts,
    )


@functools.cache
def _rate_of_shards(nodes: int, limit: int) -> float:
    """Requests a second that pass at the fastest even pace of which no more are refused than a job may have.

    A client cannot choose the node, and some are full while others have room: of four that take 4/s each, 16/s pass
    only if nearly all requests are refused, and 9/s at 12 %.
    """

    def passed_share(pace: float) -> float:
        quota = shards(nodes, limit)(1)
        return sum(quota.admit(number / pace, 1) for number in range(_PACED)) / _PACED

    slow, fast = 0.1 * nodes * limit, 2.0 * nodes * limit
    for _ in range(12):
        pace = (slow + fast) / 2.0
        slow, fast = (pace, fast) if passed_share(pace) > 1.0 - Bars(1.0).throttled else (slow, pace)
    return slow * (1.0 - Bars(1.0).throttled)


@dataclass
class _Kind:
    """What makes the service, requests a second or the ideal, what it is, and the requests of the job."""

    make: Callable[[int], Service]
    rate: float | Ideal
    words: str
    requests: int = 300


def _drawn(draw: _Draw, latency: Latency, mean: float) -> _Kind:  # noqa: C901, PLR0911, PLR0912 - a case for each kind
    limit = max(5, round(draw.rate))

    def quota(make: Callable[[int], Quota], rate: float | Ideal, words: str, requests: int = 300) -> _Kind:
        return _Kind(served(lambda: latency, make), rate, words, requests)

    match draw.kind:
        case "sliding second" | "processes":
            return quota(sliding(limit), float(limit), f"{limit} in a sliding second")
        case "fixed second":
            words = f"{limit} a fixed second"
            return quota(lambda run: FixedWindow(limit, phase=run * 0.37 % 1.0), float(limit), words)
        case "bucket":
            room = round(draw.span(8, 80))
            words = f"bucket {draw.rate}/s, room for {room}"
            return quota(bucket(draw.rate, room), lambda count, _: max(0, count - room) / draw.rate, words)
        case "gcra":
            room = draw.chance.randint(2, 6)
            return quota(bucket(draw.rate, room), draw.rate, f"GCRA {draw.rate}/s, room for {room}")
        case "shards":
            nodes = draw.chance.choice((2, 4))
            limit = max(4, round(draw.rate / nodes))
            return quota(shards(nodes, limit), _rate_of_shards(nodes, limit), f"{nodes} shards of {limit}/s")
        case "cap":
            cap = round(draw.span(2, 32))
            return _Kind(served(lambda: latency, cap=cap), cap / mean, f"at most {cap} at once")
        case "neighbour":
            limit = max(8, limit)
            on, off = draw.chance.choice(((math.inf, 0.0), (3.0, 3.0), (draw.span(1, 8), draw.span(1, 8))))
            words = f"neighbour takes half of {limit}/s"
            if math.isinf(on):
                return quota(neighbour(limit, phase=1.0), limit / 2, words)
            phase = round(draw.chance.uniform(0.0, on + off), 1)
            phases = in_phases([(on, limit / 2), (off, float(limit))], 0.0, phase)
            words += f", {on:.1f} s on, {off:.1f} s off, since {phase} s"
            return quota(neighbour(limit, on, off, phase), phases, words)
        case "tokens":
            seconds = draw.chance.choice((1.0, 6.0, 6.0))
            tokens = round(min(draw.rate, 60.0) * 1400)
            window = sliding(tokens * seconds, seconds, counts_tokens=True)
            return quota(window, lambda _, total: total / tokens, f"{tokens} tokens/s over {seconds:g} s")
        case "changed":
            before = max(8, round(min(draw.rate, 80)))
            after = draw.chance.choice((before // 2, before * 2))
            at = draw.span(3.0, 8.0)
            phases = in_phases([(at, float(before)), (math.inf, float(after))], 0.0)
            words = f"{before}/s, {after}/s from {at:.1f} s"
            return quota(sliding(before, limit_change=(at, after)), phases, words, round(before * at + 8 * after))
        case "long window":
            seconds = draw.chance.choice((6.0, 6.0, 60.0))
            limit = round(min(draw.rate, 40.0) * seconds)
            words = f"{limit} in sliding {seconds:g} s"
            return quota(sliding(limit, seconds), limit / seconds, words, max(300, round(1.5 * limit)))
        case "queue":
            return _Kind(served(lambda: Queue(draw.rate, draw.latency)), draw.rate, f"queue {draw.rate}/s")
        case "crowded":
            knee, exponent = round(draw.span(4, 40)), draw.chance.choice((1.0, 1.2))
            words = f"slower above {knee} at once, exponent {exponent}"
            service = served(lambda: Crowded(draw.latency, knee, exponent))
            return _Kind(service, knee / (1.05 * draw.latency), words)
        case _:
            return _Kind(served(lambda: latency), 1e9, "no quota")
