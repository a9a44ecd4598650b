"""How a service may throttle and answer: quotas, latencies, and a service made of them.

Knows no clock and no sockets: the time is an argument, in seconds since the measurement began. The simulation of the
limiter and the server of the benchmarks share it, so a shape is the same on a fake clock and on real sockets.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

# --- quotas ------------------------------------------------------------------------------------------------


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
        self.count(now, amount)
        return True

    def count(self, now: float, amount: float) -> None:
        """Counts it, whether there is room or not."""
        self._used += amount
        stretch = max(1.0, amount / self.limit)
        self._entries.append((now + self.seconds * stretch, amount))


@dataclass
class FixedWindow:
    """At most `limit` requests in each second, or other span, of the service's clock."""

    limit: float
    seconds: float = 1.0
    phase: float = 0.37
    _window: int = -1
    _used: int = 0

    def admit(self, now: float, tokens: int) -> bool:  # noqa: ARG002 - counts requests
        window = int((now + self.phase) / self.seconds)
        if window != self._window:
            self._window, self._used = window, 0
        if self._used + 1 > self.limit:
            return False
        self._used += 1
        return True


@dataclass
class TokenBucket:
    """A bucket of `burst` requests, filled with `rate` a second; GCRA is the same with a small burst."""

    rate: float
    burst: float
    _level: float = math.inf
    _filled_at: float = 0.0

    def admit(self, now: float, tokens: int) -> bool:  # noqa: ARG002 - counts requests
        self._level = min(self.burst, self._level + (now - self._filled_at) * self.rate)
        self._filled_at = now
        if self._level < 1.0:
            return False
        self._level -= 1.0
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
class Shards:
    """Nodes with a counter each; a request falls on any of them."""

    nodes: list[Quota]
    random: random.Random

    def admit(self, now: float, tokens: int) -> bool:
        return self.random.choice(self.nodes).admit(now, tokens)


@dataclass
class Neighbour:
    """Another tenant, whose `rate` requests a second always count: for `on` seconds, then not for `off` seconds."""

    inner: SlidingWindow
    rate: float
    on: float = math.inf
    off: float = 0.0
    phase: float = 0.0
    """Seconds since it began to send, when the measurement begins."""

    def __post_init__(self) -> None:
        self._next = -min(self.phase, self.inner.seconds)

    def admit(self, now: float, tokens: int) -> bool:
        while self._next <= now:
            if (self._next + self.phase) % (self.on + self.off) < self.on:
                self.inner.count(self._next, 1.0)
            self._next += 1.0 / self.rate
        return self.inner.admit(now, tokens)


# --- latencies ---------------------------------------------------------------------------------------------


class Latency(Protocol):
    """How long the service works on an admitted request."""

    def seconds(self, now: float, busy: int, chance: random.Random) -> float:
        """`busy`: requests being worked on, this one included."""


@dataclass
class Constant:
    """The same for all, with up to `jitter` of it more."""

    latency: float
    jitter: float = 0.1

    def seconds(self, now: float, busy: int, chance: random.Random) -> float:  # noqa: ARG002 - the same for all
        return self.latency * (1.0 + self.jitter * chance.random())


@dataclass
class Lognormal:
    """A median with a long tail."""

    median: float
    sigma: float

    def seconds(self, now: float, busy: int, chance: random.Random) -> float:  # noqa: ARG002 - whatever the load
        return self.median * math.exp(chance.gauss(0.0, self.sigma))


@dataclass
class Queue:
    """One request after the other at `rate` a second, then `base` seconds; the rest waits, nothing is refused."""

    rate: float
    base: float
    _free_at: float = 0.0

    def seconds(self, now: float, busy: int, chance: random.Random) -> float:  # noqa: ARG002 - the queue decides
        self._free_at = max(now, self._free_at) + 1.0 / self.rate
        return self._free_at - now + self.base * (1.0 + 0.1 * chance.random())


@dataclass
class Crowded:
    """As fast as `base` up to `knee` requests at once, then slower with each: `exponent` above 1 wastes work."""

    base: float
    knee: float
    exponent: float = 1.0

    def seconds(self, now: float, busy: int, chance: random.Random) -> float:  # noqa: ARG002 - at any time
        return self.base * math.pow(max(1.0, busy / self.knee), self.exponent) * (1.0 + 0.1 * chance.random())


# --- the service -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Work:
    """A request in the service."""

    tokens: int
    seconds: float = 0.0
    """Until its reply."""
    admitted: bool | None = None
    """None: decided when it is answered."""
    is_busy: bool = False


@dataclass
class Service:
    """Admits, delays and refuses requests.

    Call `arrive` when a request reaches it, then `answer` after the seconds that its `Work` tells.
    """

    latency: Latency
    quota: Quota | None = None
    seed: int = 0
    counts_at_answer: bool = False
    """The quota is checked when the work is done, so a refusal is as slow as an answer."""
    slow_refusals: bool = False
    """Refusals take as long as answers; else a few milliseconds."""
    cap: int | None = None
    """Requests at once."""
    stray_share: float = 0.0
    """Share of requests that are refused at random."""
    retry_after: float | None = None
    """Seconds in the header of each refusal."""
    busy: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - no secret

    def arrive(self, now: float, tokens: int) -> Work:
        """A request has arrived."""
        work = Work(tokens, admitted=self._admit(now, tokens))
        if work.admitted is False and not self.slow_refusals:
            work.seconds = 0.001 + 0.002 * self._random.random()
            return work
        work.is_busy = work.admitted is not False
        self.busy += work.is_busy
        work.seconds = self.latency.seconds(now, self.busy, self._random)
        return work

    def _admit(self, now: float, tokens: int) -> bool | None:
        if self.cap is not None and self.busy >= self.cap:
            return False
        if self.stray_share and self._random.random() < self.stray_share:
            return False
        if self.counts_at_answer:
            return None
        return self.quota is None or self.quota.admit(now, tokens)

    def answer(self, work: Work, now: float) -> bool:
        """Whether it is answered; else it is refused with 429."""
        self.busy -= work.is_busy
        if work.admitted is None:
            return self.quota is None or self.quota.admit(now, work.tokens)
        return work.admitted
