"""Services at random: a kind of quota and its parameters, drawn from a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from ideal_times import MOST_IN_FLIGHT, Ideal, in_phases, informed_seconds, unlimited_seconds
from listed_shapes import Shape
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
from simulated_client import Machine

_KINDS = (
    *("sliding second",) * 5,
    *("fixed second", "bucket", "gcra", "shards", "cap", "neighbour", "tokens", "changed", "processes") * 2,
    *("long window", "none", "queue", "crowded"),
)
_WITHOUT_QUOTA = frozenset({"none", "queue", "crowded", "cap"})
"""Kinds where a stray costs the time of another request, and nothing is counted at the answer."""


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


def random_shape(seed: int) -> Shape:
    """The shape of this seed; its name says all that was drawn."""
    chance = random.Random(f"shape {seed}")  # noqa: S311 - no secret
    draw = _Draw(chance, chance.choice(_KINDS), 0.0, 0.0)
    draw.rate, draw.latency = round(draw.span(5, 150), 1), round(draw.span(0.01, 2.0), 3)
    one_way = round(draw.span(0.0005, min(0.1, 0.45 * draw.latency)), 4)
    work = draw.latency - 2.0 * one_way
    sigma = 0.0 if draw.kind in {"queue", "crowded"} else chance.choice((0.0, 0.0, 0.3, 0.7))
    latency: Latency = Lognormal(work, sigma) if sigma else Constant(work)
    mean = work * (math.exp(sigma**2 / 2.0) if sigma else 1.05) + 2.0 * one_way
    refused = {"counts_at_answer": chance.random() < 0.25, "slow_refusals": chance.random() < 0.25}
    if draw.kind in _WITHOUT_QUOTA:
        refused["counts_at_answer"] = False
    stray_share = round(draw.span(0.005, 0.2), 3) if chance.random() < 0.4 else 0.0
    retry_after = chance.choice((None, None, None, 1.0)) if stray_share == 0.0 and draw.kind != "cap" else None
    handshake = draw.span(0.003, 0.3)
    late = chance.choice(((0.0, 0.002), (0.0, 0.002), (0.005, 0.02)))
    make, requests, rate, quota_words = _KIND_MAKERS[draw.kind](draw, latency, mean)
    requests = chance.choice((requests, requests, 3 * requests))
    starts = (0.0, chance.choice((0.0, 2.0))) if draw.kind == "processes" else (0.0,)

    def service(run: int) -> Service:
        made = make(run)
        made.stray_share, made.retry_after = stray_share, retry_after
        made.counts_at_answer, made.slow_refusals = refused["counts_at_answer"], refused["slow_refusals"]
        return made

    extras = [
        quota_words,
        f"{draw.latency * 1000:.0f} ms of which {2000 * one_way:.0f} ms network",
        f"sigma {sigma}" if sigma else "",
        *(name.replace("_", " ") for name, is_on in refused.items() if is_on),
        f"random 429s {stray_share:.1%}" if stray_share else "",
        f"Retry-After {retry_after:g}" if retry_after else "",
        f"connects up to {handshake * 1000:.0f} ms",
        "late timers" if late[0] else "",
        f"{requests} requests",
    ]
    most = rate * mean if draw.kind == "cap" and isinstance(rate, float) else MOST_IN_FLIGHT
    sent = 1.0 / (1.0 - stray_share) if draw.kind in _WITHOUT_QUOTA else 1.0

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


# --- the kinds: what makes the service, requests of the job, requests a second or the ideal, words --------------

_Made = tuple["Callable[[int], Service]", int, "float | Ideal", str]


def _quota(draw: _Draw, latency: Latency, quota: Callable[[int], Quota], rate: float, words: str) -> _Made:
    del draw
    return lambda run: Service(latency, quota(run), run), 300, rate, words


def _sliding(draw: _Draw, latency: Latency, _: float) -> _Made:
    limit = max(5, round(draw.rate))
    return _quota(draw, latency, lambda _: SlidingWindow(limit), float(limit), f"{limit} in a sliding second")


def _fixed(draw: _Draw, latency: Latency, _: float) -> _Made:
    limit = max(5, round(draw.rate))
    return _quota(
        draw, latency, lambda run: FixedWindow(limit, phase=run * 0.37 % 1.0), float(limit), f"{limit} a fixed second"
    )


def _bucket(draw: _Draw, latency: Latency, _: float) -> _Made:
    burst = round(draw.span(8, 80))
    return (
        lambda run: Service(latency, TokenBucket(draw.rate, burst), run),
        300,
        lambda count, _: max(0, count - burst) / draw.rate,
        f"bucket {draw.rate}/s, room for {burst}",
    )


def _gcra(draw: _Draw, latency: Latency, _: float) -> _Made:
    burst = draw.chance.randint(2, 6)
    return _quota(
        draw, latency, lambda _: TokenBucket(draw.rate, burst), draw.rate, f"GCRA {draw.rate}/s, room for {burst}"
    )


def _shards(draw: _Draw, latency: Latency, _: float) -> _Made:
    nodes = draw.chance.choice((2, 4))
    limit = max(4, round(draw.rate / nodes))

    def quota(run: int) -> Quota:
        return Shards([SlidingWindow(limit) for _ in range(nodes)], random.Random(run))  # noqa: S311 - no secret

    return _quota(draw, latency, quota, float(nodes * limit), f"{nodes} shards of {limit}/s")


def _cap(draw: _Draw, latency: Latency, mean: float) -> _Made:
    cap = round(draw.span(2, 32))
    return lambda run: Service(latency, None, run, cap=cap), 300, cap / mean, f"at most {cap} at once"


def _neighbour(draw: _Draw, latency: Latency, _: float) -> _Made:
    limit = max(8, round(draw.rate))
    on, off = draw.chance.choice(((math.inf, 0.0), (3.0, 3.0), (draw.span(1, 8), draw.span(1, 8))))
    constant = math.isinf(on)
    ideal = in_phases([(on, limit / 2)] if constant else [(on, limit / 2), (off, float(limit))], 0.0)
    return (
        lambda run: Service(latency, Neighbour(SlidingWindow(limit), limit / 2, on, off), run),
        300,
        limit / 2 if constant else ideal,
        f"neighbour takes half of {limit}/s" + ("" if constant else f", {on:.1f} s on, {off:.1f} s off"),
    )


def _tokens(draw: _Draw, latency: Latency, _: float) -> _Made:
    seconds = draw.chance.choice((1.0, 6.0, 6.0))
    tokens = round(min(draw.rate, 60.0) * 1400)
    return (
        lambda run: Service(latency, SlidingWindow(tokens * seconds, seconds, counts_tokens=True), run),
        300,
        lambda _, total: total / tokens,
        f"{tokens} tokens/s over {seconds:g} s",
    )


def _changed(draw: _Draw, latency: Latency, _: float) -> _Made:
    before = max(8, round(min(draw.rate, 80)))
    after = draw.chance.choice((before // 2, before * 2))
    at = draw.span(3.0, 8.0)
    requests = round(before * at + 8 * after)
    return (
        lambda run: Service(latency, SlidingWindow(before, limit_change=(at, after)), run),
        requests,
        in_phases([(at, float(before)), (math.inf, float(after))], 0.0),
        f"{before}/s, {after}/s from {at:.1f} s",
    )


def _long_window(draw: _Draw, latency: Latency, _: float) -> _Made:
    seconds = draw.chance.choice((6.0, 6.0, 60.0))
    rate = min(draw.rate, 40.0)
    limit = round(rate * seconds)
    return (
        lambda run: Service(latency, SlidingWindow(limit, seconds), run),
        max(300, round(1.5 * limit)),
        limit / seconds,
        f"{limit} in sliding {seconds:g} s",
    )


def _none(_: _Draw, latency: Latency, __: float) -> _Made:
    return lambda run: Service(latency, None, run), 300, 1e9, "no quota"


def _queue(draw: _Draw, latency: Latency, _: float) -> _Made:
    del latency
    return lambda run: Service(Queue(draw.rate, draw.latency), None, run), 300, draw.rate, f"queue {draw.rate}/s"


def _crowded(draw: _Draw, latency: Latency, _: float) -> _Made:
    del latency
    knee, exponent = round(draw.span(4, 40)), draw.chance.choice((1.0, 1.2))
    rate = knee / (1.05 * draw.latency)
    words = f"slower above {knee} at once, exponent {exponent}"
    return lambda run: Service(Crowded(draw.latency, knee, exponent), None, run), 300, rate, words


_KIND_MAKERS: dict[str, Callable[[_Draw, Latency, float], _Made]] = {
    "sliding second": _sliding,
    "fixed second": _fixed,
    "bucket": _bucket,
    "gcra": _gcra,
    "shards": _shards,
    "cap": _cap,
    "neighbour": _neighbour,
    "tokens": _tokens,
    "changed": _changed,
    "processes": _sliding,
    "long window": _long_window,
    "none": _none,
    "queue": _queue,
    "crowded": _crowded,
}
