"""The shortest time of a job: requests / quota + one reply, or what the quota's own burst allows.

Without a quota it is what a client takes that doubles the requests in flight with each reply.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import TypeAlias

Ideal: TypeAlias = Callable[[int, int], float]
"""Seconds for so many requests of so many tokens together."""

START_IN_FLIGHT, MOST_IN_FLIGHT = 16, 128
"""In flight of the ideal client: from the first request on, and at most."""


def ramp_seconds(requests: float, reply: float, most: float) -> float:
    """Of a client that doubles its requests in flight with each reply, up to `most`."""
    rounds, in_flight = 0.0, min(float(START_IN_FLIGHT), most)
    while requests > 0.0:
        rounds += min(1.0, max(requests / in_flight, 0.0)) if in_flight >= most and requests < in_flight else 1.0
        requests -= in_flight
        in_flight = min(2.0 * in_flight, most)
    return rounds * reply


def unlimited_seconds(requests: float) -> float:
    """No client reads more than 500 replies a second, and a careful one does not begin with that rate."""
    return requests / 500.0 + 0.4


def evenly(rate: float, reply: float, burst: float = 0.0) -> Ideal:
    """Requests / quota + one reply, but what the quota lets through at once."""
    return lambda requests, _: max(0.0, requests - burst) / rate + reply


def by_tokens(tokens_per_second: float, reply: float) -> Ideal:
    return lambda _, tokens: tokens / tokens_per_second + reply


def in_phases(phases: Iterable[tuple[float, float]], reply: float) -> Ideal:
    """(Seconds, requests a second), over and over."""
    fixed = tuple(phases)

    def ideal(requests: int, _: int) -> float:
        at, left = 0.0, float(requests)
        for seconds, rate in itertools.cycle(fixed):
            if left <= seconds * rate:
                return at + left / rate + reply
            at, left = at + seconds, left - seconds * rate
        raise AssertionError

    return ideal


def ramp(reply: float, stray_share: float = 0.0) -> Ideal:
    """Without a quota."""
    return lambda requests, _: max(
        ramp_seconds(requests / (1.0 - stray_share), reply, MOST_IN_FLIGHT), unlimited_seconds(requests)
    )
