"""Estimates the request rate that the service allows, from its answers and 429s. Pure: the time is an argument.

The service may enforce a quota per minute over windows of seconds, by requests or by tokens, and does not report
what is left (https://www.alibabacloud.com/help/en/model-studio/rate-limit, seen 2026-11-20). In the terms of
congestion control:

- Slow start: begin fast and double with success, because most accounts are never throttled.
- Circuit breaker: on a confirmed limit, stop. The throughput of the sliding window before the 429 is the new
  limit. A half-open probe closes the circuit.
- Cubic probe: approach the limit, stay, then exceed it a little, and less often if the same limit is met again.
- CUSUM (`ThrottleDetector`): single 429s at rates that used to pass are random, from a busy service and not from
  a quota. They do not lower the rate, because that would not make them fewer.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from dashscope_embeddings._core.permit import Permit
from dashscope_embeddings._core.throttle_detector import (
    ACCEPT_THRESHOLD_NATS,
    PROBE_THRESHOLD_NATS,
    LimitedResource,
    ThrottleDetector,
)

_START_REQUESTS_PER_SECOND = 200.0
"""Slow start: initial rate, doubled with every 40 answers; accounts without a quota lose no time."""
_MAX_DOUBLINGS = 9.0
"""Limit of doublings: a higher rate is as good as no limit."""
_MIN_FIRST_REQUESTS_PER_SECOND = 5.0
"""Lower bound of the first limit found: another process may have used up the quota before."""
_WINDOW_SECONDS = 1.0
"""Length of the service's counting window, until a longer one is found."""
_MAX_WINDOW_SECONDS = 60.0
_MAX_UPLINK_SECONDS = 0.1
"""Upper bound of the time from sending a request until the service counts it."""
_WINDOW_MARGIN_SECONDS = 0.005
"""Added to the wait for a window to end."""
_PROBE_DELAY_SECONDS = 0.06
"""Pause before a probe is sent to check a suspected limit, unless replies in flight decide earlier."""
_PROBE_TIMEOUT_SECONDS = 5.0
"""After this long, an unanswered probe is dropped: its caller may be gone."""
_IDLE_SECONDS = 60.0
"""After this long without a request, the circuit closes: every counting window has ended."""
_MAX_RETRY_AFTER_SECONDS = 60.0
_RELATIVE_TOLERANCE = 0.12
"""Two measured rates are equal within this relative difference."""
_MIN_PROBE_INTERVAL_SECONDS, _PROBE_INTERVAL_SECONDS, _MAX_PROBE_INTERVAL_SECONDS = 1.0, 2.0, 16.0
"""Cubic probe: seconds to approach the limit, and the same again to exceed it."""
_OVERSHOOT = 0.03
"""Cubic probe: share by which it exceeds the limit."""
_DOUBLING_SECONDS = 1.5
"""After a probe without a 429, the rate doubles in this time."""
_MAX_REMEMBERED_PERMITS = 4096


@dataclass(slots=True)
class RateEstimator:
    """The rate of one account, host and model, and the state of its circuit breaker."""

    limit_per_second: float | None = None
    """The estimated limit in units of weight a second; None: slow start."""
    in_flight: int = 0
    _recent_permits: deque[Permit] = field(default_factory=lambda: deque(maxlen=_MAX_REMEMBERED_PERMITS))
    _last_sent_at: float = -math.inf
    _mean_latency_seconds: float = 0.1
    _detector: ThrottleDetector = field(default_factory=ThrottleDetector)
    _limited_resource: LimitedResource = field(default_factory=LimitedResource)
    _accepted_weight: float = 0.0
    _window_seconds: float = _WINDOW_SECONDS
    _best_rate: float = 0.0
    """The highest rate without a 429 since the limit was last found."""
    _adjusted_at: float = -math.inf
    """429s of requests that were sent before the last adjustment are ignored."""
    _accepted_since: int = 0
    """Answers to requests that were sent after it."""
    _lowered_at: float = -math.inf
    _interval_start: float = 0.0
    """Cubic probe: its start time. It reaches the limit after `_probe_interval_seconds`."""
    _probe_interval_seconds: float = _PROBE_INTERVAL_SECONDS
    _cubic_coefficient: float = 0.05
    """Cubic probe: share by which it starts below the limit."""
    _suspected_at: float | None = None
    """Send time of the 429 under investigation; None if there is none."""
    _suspicion_balance: int = 0
    """429s minus successes among requests sent after the suspected 429."""
    _is_open: bool = False
    """Whether the circuit is open: only probes are sent."""
    _circuit_number: int = 1
    """Number of the open circuit, or of the next one."""
    _blocked_until: float = -math.inf
    _retry_after_until: float = -math.inf
    _probe_permit: Permit | None = None
    _failed_probes: int = 0
    """Probes that were throttled while this circuit is open."""
    _limit_hit_at: float = 0.0
    _last_throttled_at: float = 0.0
    _rate_at_limit: float = 0.0
    _epoch_start: float | None = None
    _accepted_at_epoch_start: float = 0.0

    def next_send_at(self, now: float) -> float:
        """When the circuit allows the next request, or when to look for a probe's answer."""
        if (self._is_open or self._suspected_at is not None) and now > max(
            self._last_sent_at, self._blocked_until
        ) + _IDLE_SECONDS:
            self._suspected_at = self._probe_permit = None
            if self._is_open:
                self._close_circuit(self._rate_at_limit, now)
        at = max(self._blocked_until, self._retry_after_until)
        if (
            self._probe_permit is not None
            and self._probe_permit.sent_at is not None
            and now < self._probe_permit.sent_at + _PROBE_TIMEOUT_SECONDS
        ):
            return max(at, self._probe_permit.sent_at + self._mean_latency_seconds, now + 0.02)
        return at

    def rate(self, now: float) -> float:
        """The allowed rate, in units of weight a second."""
        if self.limit_per_second is None:
            return _START_REQUESTS_PER_SECOND * math.pow(2.0, min(self._accepted_weight / 40.0, _MAX_DOUBLINGS))
        x = (now - self._interval_start) / self._probe_interval_seconds - 1.0
        if x < 0.0:
            return self.limit_per_second * (1.0 + self._cubic_coefficient * x**3)
        if x < 1.0:
            return self.limit_per_second * (1.0 + _OVERSHOOT * x**3)
        doublings = (x - 1.0) * self._probe_interval_seconds / _DOUBLING_SECONDS
        return self.limit_per_second * (1.0 + _OVERSHOOT) * math.pow(2.0, min(doublings, _MAX_DOUBLINGS))

    def on_sent(self, permit: Permit, now: float, *, was_queued: bool) -> None:
        """A request is sent; `was_queued`: a higher rate would have sent it earlier."""
        if self._epoch_start is None:
            self._epoch_start = self._last_sent_at = now
        gap = now - self._last_sent_at
        if not was_queued:
            self._interval_start += gap  # the probe pauses while the rate is not used
            if gap > _WINDOW_SECONDS:
                self._epoch_start += gap
        self._last_sent_at = permit.sent_at = now
        permit.weight = self._limited_resource.weight_of(permit.estimated_tokens)
        self._recent_permits.append(permit)
        while (
            oldest := self._recent_permits[0].sent_at
        ) is not None and oldest < now - self._window_seconds - 2 * _WINDOW_SECONDS:
            self._recent_permits.popleft()
        self.in_flight += 1
        if self._is_open or self._suspected_at is not None:
            permit.circuit_number, self._probe_permit = self._circuit_number, permit

    def on_cancelled(self, permit: Permit) -> None:
        """A request in flight ended without an answer."""
        self.in_flight = max(0, self.in_flight - 1)
        permit.is_uncounted = True
        self._clear_probe(permit)

    def on_success(self, permit: Permit, now: float) -> None:
        """A request was answered."""
        self.in_flight = max(0, self.in_flight - 1)
        permit.answered_at = now
        sent_at = permit.sent_at or now
        self._mean_latency_seconds += 0.2 * (now - sent_at - self._mean_latency_seconds)
        self._accepted_weight += permit.weight
        self._accepted_since += sent_at > self._adjusted_at
        self._detector.observe(throttled=False, rate_excluded=self._is_rate_excluded(now))
        self._clear_probe(permit)
        if self._is_open:
            if permit.circuit_number == self._circuit_number:
                self._on_successful_probe(sent_at, now)
        elif self._suspected_at is not None and (permit.circuit_number > 0 or sent_at > self._suspected_at):
            self._weigh_success(self._suspected_at, now)

    def on_throttled(self, permit: Permit, now: float, retry_after_seconds: float | None) -> None:
        """A request was throttled; nothing is sent for `retry_after_seconds`, if the service asked for them."""
        self.in_flight = max(0, self.in_flight - 1)
        permit.is_uncounted, permit.answered_at = True, now
        sent_at = permit.sent_at or now
        is_probe = permit is self._probe_permit
        self._clear_probe(permit)
        if retry_after_seconds is not None and retry_after_seconds > 0.0:
            self._retry_after_until = max(
                self._retry_after_until, now + min(retry_after_seconds, _MAX_RETRY_AFTER_SECONDS)
            )
        if self._is_open:
            if is_probe:
                self._on_failed_probe(sent_at, now)
        elif sent_at > self._adjusted_at:
            self._detector.observe(throttled=True, rate_excluded=self._is_rate_excluded(now))
            self._assess_throttle(permit, sent_at, now)

    def _clear_probe(self, permit: Permit) -> None:
        if permit is self._probe_permit:
            self._probe_permit = None

    def _assess_throttle(self, permit: Permit, sent_at: float, now: float) -> None:
        """Decides what a 429 is: random, a slight overshoot, or a suspected limit."""
        if self._suspected_at is not None:
            self._suspicion_balance += permit.circuit_number > 0 or sent_at > self._suspected_at
            if self._suspicion_balance > 1 and self._detector.limit_score >= ACCEPT_THRESHOLD_NATS:
                self._open_circuit(self._suspected_at, now)
            return
        near = (
            self.limit_per_second is not None
            and self._accepted_since > 2  # noqa: PLR2004
            and self._is_near(self._measured_rate(sent_at))
        )
        if near or self._detector.limit_score < PROBE_THRESHOLD_NATS:
            self._on_isolated_throttle(sent_at, now)
        else:
            self._suspected_at, self._suspicion_balance = sent_at, 0
            self._blocked_until = max(self._blocked_until, now + _PROBE_DELAY_SECONDS)

    def _weigh_success(self, suspected_at: float, now: float) -> None:
        """A success after a suspected 429: more successes than 429s clear the suspicion."""
        self._suspicion_balance -= 1
        if self._suspicion_balance < 0:
            self._suspected_at = self._probe_permit = None
            self._blocked_until = now
            self._on_isolated_throttle(suspected_at, now)

    def _on_isolated_throttle(self, sent_at: float, now: float) -> None:
        """Handles a 429 between successes: it is random, or the rate is slightly above the limit."""
        if self._is_rate_excluded(now):
            self._detector.count_random()
        if self.limit_per_second is None:
            return
        self._update_resource(sent_at)
        if not self._detector.is_random_only:
            self._lower_limit(sent_at, now)

    def _is_rate_excluded(self, now: float) -> bool:
        """Whether the current rate is too low to be the cause of a 429."""
        if self.limit_per_second is None:
            return True
        low = now < self._interval_start + 0.8 * self._probe_interval_seconds or self.rate(now) < 0.85 * self._best_rate
        return low and now > self._lowered_at + self._window_seconds

    def _is_near(self, measured: float) -> bool:
        return self.limit_per_second is not None and abs(measured - self.limit_per_second) <= max(
            _RELATIVE_TOLERANCE * self.limit_per_second, 1.0
        )

    def _passed_permits(self, until: float, seconds: float) -> list[Permit]:
        """The requests sent in the `seconds` before `until` that were not throttled."""
        return [
            permit
            for permit in self._recent_permits
            if permit.sent_at is not None and until - seconds < permit.sent_at <= until and not permit.is_uncounted
        ]

    def _measured_rate(self, until: float) -> float:
        """Throughput of the sliding window before `until`, in units of weight a second."""
        window = self._window_seconds
        if len(self._recent_permits) == _MAX_REMEMBERED_PERMITS:
            window = max(0.1, min(window, until - (self._recent_permits[0].sent_at or 0.0)))
        return sum(permit.weight for permit in self._passed_permits(until, window)) / window

    def _lower_limit(self, sent_at: float, now: float) -> None:
        """Lowers the limit after a slight overshoot, without opening the circuit."""
        measured, limit = self._measured_rate(sent_at), self.limit_per_second or _MIN_FIRST_REQUESTS_PER_SECOND
        near, tried = self._is_near(measured), now > self._interval_start + 0.5 * self._probe_interval_seconds
        self.limit_per_second = max(measured, (0.95 if near else 0.85) * limit)
        self._best_rate = max(self._best_rate, measured)
        if not near:
            self._probe_interval_seconds = _MIN_PROBE_INTERVAL_SECONDS
        elif tried:
            self._probe_interval_seconds = min(2.0 * self._probe_interval_seconds, _MAX_PROBE_INTERVAL_SECONDS)
        else:
            self._probe_interval_seconds = max(self._probe_interval_seconds / 2.0, _PROBE_INTERVAL_SECONDS)
        self._cubic_coefficient = 0.03
        self._blocked_until = max(self._blocked_until, now + 1.0 / limit)
        self._restart_interval(now)

    def _update_resource(self, sent_at: float) -> None:
        if self._limited_resource.observe_throttle(
            [permit.estimated_tokens for permit in self._passed_permits(sent_at, self._window_seconds)]
        ):
            for permit in self._recent_permits:
                permit.weight = self._limited_resource.weight_of(permit.estimated_tokens)

    def _restart_interval(self, now: float) -> None:
        self._interval_start = self._lowered_at = self._adjusted_at = now
        self._accepted_since = 0
        self._detector.reset_scores()

    def _open_circuit(self, sent_at: float, now: float) -> None:
        """A confirmed limit: sends nothing until the counted requests have left the service's window."""
        self._suspected_at = self._probe_permit = None
        self._is_open, self._failed_probes = True, 0
        self._circuit_number += 1
        self._limit_hit_at = self._last_throttled_at = sent_at
        self._adjusted_at = now
        self._update_resource(sent_at)
        self._rate_at_limit = self._measured_rate(sent_at)
        passed = self._passed_permits(sent_at, _WINDOW_SECONDS)
        counted = (
            min(passed[0].answered_at or now, (passed[0].sent_at or now) + _MAX_UPLINK_SECONDS) if passed else sent_at
        )
        self._blocked_until = max(self._blocked_until, counted + _WINDOW_SECONDS + _WINDOW_MARGIN_SECONDS)

    def _on_failed_probe(self, sent_at: float, now: float) -> None:
        """A half-open probe was throttled: waits longer before the next one."""
        self._last_throttled_at = sent_at
        self._rate_at_limit = self._measured_rate(sent_at)
        held = now - self._limit_hit_at
        pause = 0.1 * 1.5**self._failed_probes if held < 1.3 else min(0.5 * held, 8.0)  # noqa: PLR2004
        self._failed_probes += 1
        self._blocked_until = now + pause

    def _on_successful_probe(self, sent_at: float, now: float) -> None:
        """A half-open probe was answered: refines the limit and closes the circuit."""
        found = self._rate_at_limit
        if self._last_throttled_at - self._limit_hit_at > 1.1 * self._window_seconds:
            elapsed = max(_WINDOW_SECONDS, (self._last_throttled_at + sent_at) / 2.0 - (self._epoch_start or 0.0))
            self._window_seconds = min(_MAX_WINDOW_SECONDS, elapsed)
            found = (self._accepted_weight - self._accepted_at_epoch_start) / elapsed
        elif self._failed_probes:
            found = (found + self._measured_rate(sent_at) - 1.0 / self._window_seconds) / 2.0
        self._epoch_start, self._accepted_at_epoch_start = sent_at, self._accepted_weight
        self._close_circuit(found, now)

    def _close_circuit(self, found_limit: float, now: float) -> None:
        before = self.limit_per_second
        least = _MIN_FIRST_REQUESTS_PER_SECOND if before is None else before / 2.0
        near = self._is_near(found_limit)
        self.limit_per_second = self._best_rate = max(found_limit, least)
        self._is_open, self._suspected_at, self._probe_permit = False, None, None
        self._restart_interval(now)
        if before is None:
            self._cubic_coefficient, self._probe_interval_seconds = 0.05, _PROBE_INTERVAL_SECONDS
            if found_limit < least:
                self._interval_start -= 2.0 * _PROBE_INTERVAL_SECONDS
        elif near:
            self._cubic_coefficient, self._probe_interval_seconds = (
                0.03,
                min(2.0 * self._probe_interval_seconds, _MAX_PROBE_INTERVAL_SECONDS),
            )
        else:
            self._cubic_coefficient, self._probe_interval_seconds = 0.2, _PROBE_INTERVAL_SECONDS
