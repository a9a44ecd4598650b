"""How the server of a measurement behaves, and what it saw."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "support"))

from limiter_simulation import shape_of
from service_shapes import Constant, Service, SlidingWindow


@dataclass(frozen=True)
class Terms:
    """How the service behaves: one of the simulation's shapes, or a latency and a quota.

    A quota here holds in any window of one second; refused requests are not counted.
    """

    latency: float = 0.0
    """Seconds from a request to its reply, refusals included."""
    requests_per_second: float = 0.0
    """0: no quota."""
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    throttled_share: float = 0.0
    """Share of requests refused at random, whatever the quota."""
    reversed_every: int = 0
    """Each reply of this number lists its rows last to first; their indices tell. 0: none does."""
    shape: str = ""
    """Name of a shape, or `random:SEED`; replaces all of the above."""
    seed: int = 1

    def service(self) -> Service:
        """What admits, delays and refuses requests, its history empty."""
        if self.shape:
            return shape_of(self.shape).service(self.seed)
        rates = [rate for rate in (self.requests_per_second, self.requests_per_minute / 60.0) if rate]
        quota = SlidingWindow(min(rates)) if rates else None
        if self.tokens_per_minute:
            quota = SlidingWindow(self.tokens_per_minute / 60.0, counts_tokens=True)
        return Service(
            Constant(self.latency, 0.0), quota, self.seed, slow_refusals=True, stray_share=self.throttled_share
        )

    @property
    def network_seconds(self) -> tuple[float, float]:
        """One way of the network, and the most that a new connection costs: loopback has neither."""
        machine = shape_of(self.shape).machine if self.shape else None
        return (machine.one_way, machine.handshake) if machine else (0.0, 0.0)


@dataclass
class Counters:
    """What was seen since the measurement began."""

    requests: int = 0
    answered: int = 0
    throttled: int = 0
    refused: int = 0
    """Replies other than 200 and 429."""
    texts: int = 0
    """Texts billed."""
    tokens: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
