"""The shortest time of a job: requests / quota + one reply, or what the quota's own burst allows.

Without a quota it is what a client takes that adds a request in flight with each answer.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import statistics
from collections.abc import Callable, Iterable
from typing import TypeAlias

Ideal: TypeAlias = Callable[[int, int], float]
"""Seconds for so many requests of so many tokens together."""

START_IN_FLIGHT, MOST_IN_FLIGHT = 16, 128
"""In flight of the ideal client: from the first request on, and at most."""


def informed_seconds(
    requests: float, rate: float, median: float, sigma: float = 0.0, most: float = MOST_IN_FLIGHT
) -> float:
    """Of a client that knows the quota, but not the distance: it begins with 16 in flight, and one more each answer.

    Replies are lognormal; this is the median of some runs, because the last reply may come late.
    """
    runs = []
    for seed in range(5 if sigma else 1):
        chance = random.Random(seed)  # noqa: S311 - no secret
        replies = [median * math.exp(sigma * chance.gauss(0.0, 1.0)) for _ in range(round(requests))]
        runs.append(_informed_run(replies, 1.0 / rate, most))
    return statistics.median(runs)


def _informed_run(replies: list[float], interval: float, most: float) -> float:
    allowed, now, next_at, end = min(float(START_IN_FLIGHT), most), 0.0, 0.0, 0.0
    under_way: list[float] = []
    for reply in replies:
        now = max(now, next_at)
        while under_way and (under_way[0] <= now or len(under_way) + 1 > max(allowed, 1.0)):
            now = max(now, heapq.heappop(under_way))
            allowed = min(allowed + 1.0, most)
        heapq.heappush(under_way, now + reply)
        next_at, end = now + interval, max(end, now + reply)
    return end


def unlimited_seconds(requests: float) -> float:
    """No client reads more than 500 replies a second, and a careful one does not begin with that rate."""
    return requests / 500.0 + 0.4


def evenly(rate: float, reply: float, burst: float = 0.0) -> Ideal:
    """Requests / quota + one reply, but what the quota lets through at once."""
    return lambda requests, _: max(0.0, requests - burst) / rate + reply


def by_tokens(tokens_per_second: float, reply: float) -> Ideal:
    return lambda _, tokens: tokens / tokens_per_second + reply


def in_phases(phases: Iterable[tuple[float, float]], reply: float, phase: float = 0.0) -> Ideal:
    """(Seconds, requests a second), over and over; the job begins `phase` seconds after the first of them."""
    fixed = tuple(phases)

    def ideal(requests: int, _: int) -> float:
        at, left = -phase, float(requests)
        for seconds, rate in itertools.cycle(fixed):
            usable = min(seconds, max(0.0, at + seconds))
            if left <= usable * rate:
                return max(0.0, at) + left / rate + reply
            at, left = at + seconds, left - usable * rate
        raise AssertionError

    return ideal


def ramp(reply: float, stray_share: float = 0.0) -> Ideal:
    """Without a quota."""
    return lambda requests, _: max(
        informed_seconds(requests / (1.0 - stray_share), math.inf, reply), unlimited_seconds(requests)
    )
