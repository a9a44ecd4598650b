"""Finds how many requests may be in flight, from latencies and 429s. Pure: the time is an argument.

Like the congestion window of TCP, it grows by one with every answer while requests wait for a free place (slow start:
it doubles with every round trip), and stops where more in flight only makes replies slower: the latency gradient, as in
TCP Vegas and adaptive concurrency limiters, compares recent latencies with the lowest ones. If 429s show a limit on
concurrent requests (`cap`), that holds; it is tested again with one request more, less and less often.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from dashscope_embeddings._core import search_constants as constants

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashscope_embeddings._core.permit import Permit


@dataclass(slots=True)
class ConcurrencyWindow:
    """The allowed number of requests in flight of one account, host and model."""

    in_flight: int = 0
    cap: int | None = None
    """The found limit on concurrent requests, or more while that is tested; None: none is known."""
    _size: float = constants.START_IN_FLIGHT
    _known_cap: int = 0
    _cap_step: int = 1
    _cap_test_seconds: float = constants.CAP_TEST_SECONDS
    _cap_full_since: float = math.inf
    _cap_confirmations: int = 0
    _was_lowered: bool = False
    _passed_beyond: int = 0
    """Requests beyond the known cap that passed, less refused ones, since its test began."""
    _sent_beyond: deque[Permit] = field(default_factory=deque)
    """Requests beyond the known cap of which it is not known yet."""
    _starved_at: float = -math.inf
    """When a request last waited for a free place."""
    _last_sent_at: float = math.inf
    _latencies: deque[float] = field(default_factory=lambda: deque(maxlen=constants.LATENCY_SAMPLES))
    _lowest_latency: float = math.inf
    _variation: float = 0.0
    """Mean difference of two latencies that follow each other, in seconds; growth of a queue hardly adds to it."""

    @property
    def limit(self) -> int:
        """The most requests in flight now."""
        return int(self._size) if self.cap is None else min(int(self._size), self.cap)

    @property
    def rate_at_cap(self) -> float:
        """A little more than the requests a second that a found cap lets through: even spacing needs no burst."""
        if self.cap is None or not self._latencies:
            return math.inf
        return constants.CAP_SPACING * self.cap / max(median(self._latencies), 1e-3)

    def has_room(self, now: float) -> bool:
        """Whether another request may be sent; if not, the window may grow."""
        if self.in_flight < self.limit:
            return True
        self._starved_at = now
        return False

    def on_sent(self, permit: Permit, now: float) -> None:
        """A request is sent."""
        if now > self._last_sent_at + constants.FORGET_LATENCIES_SECONDS and self.in_flight == 0:
            self._size, self._lowest_latency = constants.START_IN_FLIGHT, math.inf
            self._latencies.clear()
        self._last_sent_at = now
        self.in_flight += 1
        permit.in_flight = self.in_flight
        if self.cap is not None and self.in_flight > self._known_cap:
            self._sent_beyond.append(permit)
        if self.cap is not None and self.in_flight >= self.cap == self._known_cap:
            self._cap_full_since = min(self._cap_full_since, now)
            if now > self._cap_full_since + self._cap_test_seconds:
                self.cap, self._passed_beyond = self.cap + self._cap_step, 0

    def on_ended(self) -> None:
        """A request in flight ended, however."""
        self.in_flight = max(0, self.in_flight - 1)

    def on_success(self, permit: Permit, now: float) -> None:
        """A request was answered."""
        if permit.high_priority:  # a query is smaller, and answered sooner
            return
        sent_at = permit.sent_at or now
        if self._latencies:
            difference = abs(now - sent_at - self._latencies[-1])
            self._variation += (difference - self._variation) / constants.LATENCY_SAMPLES
        self._latencies.append(now - sent_at)
        recent = median(self._latencies)
        if len(self._latencies) >= constants.LATENCY_SAMPLES // 4:
            self._lowest_latency = min(self._lowest_latency, recent)
        # Little's law: this number would be in flight at the same throughput, if none had to wait at the service.
        is_starved = self._starved_at >= sent_at
        in_flight = (permit.in_flight + self._size) / 2.0 if is_starved else permit.in_flight
        slack = constants.LATENCY_SLACK_SECONDS
        needed = in_flight * (min(self._lowest_latency, recent) + slack) / (recent + slack)
        noise = max(0.0, self._variation / (recent + slack) - constants.OWN_NOISE)
        spare = constants.SPARE_IN_FLIGHT * (1.0 + constants.SPARE_FOR_NOISE * noise)
        most = max(constants.START_IN_FLIGHT, spare * needed)
        if self._size > constants.SHRINK_ABOVE * most:
            self._size = max(constants.START_IN_FLIGHT, self._size - 0.5)
        elif is_starved and self._size < (most if self.cap is None else min(most, self.cap)):
            self._size = min(constants.MAX_IN_FLIGHT, self._size + 1.0)

    # --- a limit on concurrent requests -------------------------------------------------------------------

    def set_cap(self, in_flight: int) -> None:
        """429s may be due to a limit on concurrent requests: allows only `in_flight`, to see if they stop."""
        self.cap = self._known_cap = max(constants.MIN_CAP, in_flight)
        self._cap_step, self._cap_test_seconds, self._cap_full_since = 1, constants.CAP_TEST_SECONDS, math.inf
        self._cap_confirmations, self._was_lowered = 0, False

    def lower_cap(self, in_flight: int) -> bool:
        """Sets the cap to fewer if 429s went on with `in_flight`, not far below it; only once, and says whether."""
        if self.cap is None or self._was_lowered or not constants.LOWER_CAP_SHARE * self.cap <= in_flight <= self.cap:
            return False
        self.set_cap(min(in_flight, self.cap - 1))
        self._was_lowered = True
        return True

    def explains_throttle(self, permit: Permit, random_share: float) -> bool:
        """Whether a 429 is due to the test of a higher cap; ends that test."""
        if self.cap is None or permit.in_flight <= self._known_cap:
            return False
        self._passed_beyond -= 1
        failed = -1 if random_share < constants.CAP_FREQUENT_RANDOM else -3
        if self._passed_beyond <= failed and self.cap > self._known_cap:
            self.cap, self._cap_step, self._cap_full_since = self._known_cap, 1, math.inf
            self._cap_test_seconds = min(2.0 * self._cap_test_seconds, constants.MAX_CAP_TEST_SECONDS)
            self._cap_confirmations += 1
        return self.cap == self._known_cap

    def reject_cap(self) -> None:
        """Removes the cap, because 429s went on below it; not one that was confirmed `CAP_CONFIRMATIONS` times."""
        if self._cap_confirmations < constants.CAP_CONFIRMATIONS:
            self.cap = None

    def check_cap(self, has_passed: Callable[[Permit], bool | None]) -> None:
        """Raises the known cap if requests beyond it pass, by more each time; `has_passed`: None if not known yet."""
        while self._sent_beyond:
            permit = self._sent_beyond[0]
            if (passed := has_passed(permit)) is None and not permit.is_closed:
                break
            self._sent_beyond.popleft()
            if passed and self.cap is not None and permit.in_flight > self._known_cap:
                self._passed_beyond += 1
                if self._passed_beyond >= constants.CAP_ACCEPTED:
                    self._accept_cap(self.cap)

    def _accept_cap(self, cap: int) -> None:
        self._known_cap, self._cap_step = cap, 2 * self._cap_step
        self._cap_test_seconds, self._cap_full_since = constants.CAP_TEST_SECONDS, math.inf
        self._cap_confirmations = self._passed_beyond = 0
        if cap >= constants.MAX_IN_FLIGHT:
            self.cap = None
