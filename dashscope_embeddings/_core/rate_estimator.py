"""Estimates the request rate that the service allows, from its answers and 429s. Pure: the time is an argument.

The service may enforce a quota per minute over windows of seconds, by requests or by tokens, and does not report
what is left (https://www.alibabacloud.com/help/en/model-studio/rate-limit, seen 2026-11-20). A state machine, in the
terms of congestion control:

    SLOW_START  No limit is known. 120/s, doubled with every 60 answers: most accounts are never throttled.
    RAMP        A limit was met, and requests passed again before any counting window could have ended: capacity comes
                back all the time (a token bucket, or a cap on concurrency). The rate doubles every 0.12 s from there.
    STEADY      The rate limit is known. Cubic probe: hold it, exceed it a little, then double.
    WINDOWED    The limit is a fixed amount in any window of its length, which is longer than a second.
    OPEN        Circuit breaker: a limit was met in one of the states above. Only single probes are sent (half-open).

                 429s not random               probe passed
    any state ────────────────────→ OPEN ┬→ the state before   most requests since the first 429 passed: it was random
                                         ├→ RAMP       first limit; passed before the window of 1 s could have ended
                                         ├→ STEADY     passed when that window had ended, or the bucket is known
                                         └→ WINDOWED   passed only later, or a 429 came again at once
    RAMP ──→ RAMP       429s with nearly as many in flight as at first: the cap is a little lower, once
    STEADY ──→ STEADY   a single 429 while the rate exceeds the limit: the limit is lowered a little
    STEADY ──→ RAMP     a 429 although the second has room, with as many in flight as at the first limit: a cap
    WINDOWED ──→ WINDOWED   a 429: the amount that passed in the window is the limit
    WINDOWED ──→ STEADY     429s of a limit while the window has room

`throttle_detector` distinguishes random 429s from a limit (CUSUM); limits on concurrent requests are tested by
`concurrency_window`. Most constants, with the simulated service that fixes them, are in `search_constants`.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dashscope_embeddings._core import search_constants as constants
from dashscope_embeddings._core.circuit import Circuit, FirstLimit
from dashscope_embeddings._core.long_window import LongWindow
from dashscope_embeddings._core.send_log import SendLog
from dashscope_embeddings._core.steady_rate import Ramp, SteadyRate, doubled
from dashscope_embeddings._core.throttle_detector import LimitedResource, ThrottleDetector

if TYPE_CHECKING:
    from dashscope_embeddings._core.concurrency_window import ConcurrencyWindow
    from dashscope_embeddings._core.permit import Permit


class SearchState(enum.Enum):
    """What is known about the limit; see the top of this file."""

    SLOW_START = enum.auto()
    RAMP = enum.auto()
    STEADY = enum.auto()
    WINDOWED = enum.auto()
    OPEN = enum.auto()


@dataclass(slots=True)
class RateEstimator:
    """The rate of one account, host and model."""

    window: ConcurrencyWindow
    state: SearchState = SearchState.SLOW_START
    steady: SteadyRate = field(default_factory=SteadyRate)
    """The limit in the state STEADY."""
    long_window: LongWindow | None = None
    """The limit in the state WINDOWED."""
    is_within_quota: bool = False
    """Whether a configured quota holds: what a client was given is seldom wrong, so 429s are rather random."""
    log: SendLog = field(default_factory=SendLog)
    _detector: ThrottleDetector = field(default_factory=ThrottleDetector)
    _resource: LimitedResource = field(default_factory=LimitedResource)
    _ramp: Ramp = field(default_factory=lambda: Ramp(0.0, 0.0))
    _circuit: Circuit | None = None
    _state_before: SearchState = SearchState.SLOW_START
    """The state in which the circuit opened."""
    _reacted_at: float = -math.inf
    """429s of requests that were sent before the last reaction are not news."""
    blocked_until: float = -math.inf
    _last_sent_at: float = -math.inf
    _first: FirstLimit | None = None

    # --- what the limiter asks ----------------------------------------------------------------------------

    def rate(self, now: float) -> float:
        """The allowed rate, in units of weight a second."""
        if self.state is SearchState.RAMP:
            return min(self._ramp.rate(now), self.window.rate_at_cap)
        if self.long_window is not None:
            return self.long_window.rate
        if self.steady.limit is not None:
            return self.steady.rate(now)
        rate = constants.START_RATE * doubled(self.log.accepted_weight / constants.START_DOUBLING_ANSWERS)
        return min(rate, self.window.rate_at_cap)

    def next_send_at(self, now: float) -> float:
        """When the circuit or the long window allows the next request."""
        self.window.check_cap(lambda permit: self.log.has_passed(permit, now))
        if self._circuit is not None:
            self._check_probe(self._circuit, now)
        if self._circuit is not None and (probe := self._circuit.probe) is not None:
            return max(self.blocked_until, (probe.sent_at or now) + self.log.patience_seconds, now + 0.002)
        if self.long_window is not None:
            return max(self.blocked_until, self.long_window.available_at(now))
        return self.blocked_until

    def _check_probe(self, circuit: Circuit, now: float) -> None:
        """Closes the circuit if the probe is presumed to have passed, or if nothing was sent for long."""
        if circuit.probe is not None:
            if self.log.has_passed(circuit.probe, now):
                self._close_circuit(circuit, circuit.probe.sent_at or now, now)
        elif now > max(self._last_sent_at, self.blocked_until) + constants.IDLE_SECONDS:
            self._circuit, self.state, self._reacted_at = None, self._state_before, now
            if self.state is SearchState.SLOW_START:
                self._set_limit(constants.SHARE * circuit.amount(self.log), constants.FIRST_HOLD, now)

    # --- what the limiter reports -------------------------------------------------------------------------

    def on_sent(self, permit: Permit, now: float) -> None:
        """A request is sent."""
        if not permit.was_paced and self._last_sent_at > -math.inf:
            self._postpone(now - self._last_sent_at)
        self._last_sent_at = permit.sent_at = now
        permit.is_rate_excluded = (
            self.state is SearchState.SLOW_START
            or (self.state is SearchState.STEADY and self.steady.is_excluded(now))
            or (self.long_window is not None and self.long_window.has_room)
        )
        permit.weight = self._resource.weight_of(permit.estimated_tokens)
        self.log.add(permit)
        if self._circuit is not None:
            self._circuit.probe = permit
        if self.long_window is not None:
            self.long_window.add(permit, now)

    def on_cancelled(self, permit: Permit) -> None:
        """A request in flight ended without an answer."""
        self._mark_uncounted(permit)
        if self._circuit is not None and self._circuit.probe is permit:
            self._circuit.probe = None

    def on_success(self, permit: Permit, now: float) -> None:
        """A request was answered."""
        permit.passed, permit.answered_at = True, now
        self.log.accepted_weight += permit.weight
        self._detector.observe(permit, self.log, now)
        self.window.on_success(permit, now)
        if self._circuit is not None and self._circuit.probe is permit:
            self._close_circuit(self._circuit, permit.sent_at or now, now)
        elif self.long_window is not None:
            self.long_window.on_success()

    def on_throttled(self, permit: Permit, now: float, retry_after_seconds: float | None) -> None:
        """A request was throttled; nothing is sent for `retry_after_seconds`, if the service asked for them."""
        permit.passed, permit.answered_at = False, now
        self._mark_uncounted(permit)
        sent_at = permit.sent_at or now
        self.log.observe_refusal(now - sent_at)
        self._detector.observe(permit, self.log, now)
        hint = min(retry_after_seconds or 0.0, constants.MAX_RETRY_AFTER_SECONDS)
        if hint > 0.0:
            self._block_until(now + hint)
            self.steady.is_hinted = True
        if self._circuit is not None:
            if self._circuit.probe is permit:
                self._circuit.on_refused_probe(sent_at)
                self._block_until(self._circuit.next_probe_at(now))
        elif self.long_window is not None:
            self._on_window_throttle(self.long_window, sent_at, now)
        elif (
            sent_at > self._reacted_at
            and not self._is_ramp_over(now)
            and not self.window.explains_throttle(permit, self._detector.random_share)
        ):
            first = self._detector.find_limit(self.log, self._reacted_at, now, within_quota=self.is_within_quota)
            if hint > 0.0 or (first and not self._detector.is_chance(self.log, now, within_quota=self.is_within_quota)):
                self._open_circuit(first or permit, now)
            elif first is None:
                self._on_isolated_throttle(sent_at, now)
            else:
                self._reacted_at = now

    # --- OPEN ---------------------------------------------------------------------------------------------

    def _open_circuit(self, refused: Permit, now: float) -> None:
        self._circuit = circuit = Circuit.opened_by(refused, self.log, self.steady.limit, now)
        self._update_resource(circuit.first_refused_at)
        self._state_before, self.state = self.state, SearchState.OPEN
        passed = self.log.weight(circuit.first_refused_at, constants.WINDOW_SECONDS)
        if self._first is not None and self._first.shows_longer_window(passed, now):
            # The probe that passed was small, or random: the first circuit goes on.
            self._circuit = circuit = self._first.circuit
            circuit.on_refused_probe(refused.sent_at or now)
            self._state_before, self.steady.limit = SearchState.SLOW_START, None
        self._reacted_at = now
        self.log.limits_met_at.append(circuit.first_refused_at)
        self._block_until(circuit.next_probe_at(now))

    def _close_circuit(self, circuit: Circuit, passed_at: float, now: float) -> None:
        """A probe passed: what the limit is follows from when that was, and from what had passed before."""
        self._circuit, self._reacted_at = None, now
        if self._is_random(circuit, now):
            self.state = self._state_before
            self._postpone(now - circuit.opened_at)
            return
        self.blocked_until, is_ramp = -math.inf, self._state_before is SearchState.RAMP
        is_unsure = is_ramp or (self._first is not None and self._first.is_window_unsure(circuit.opened_at))
        if self._state_before is SearchState.SLOW_START and self.steady.limit is None:
            self._on_first_limit(circuit, passed_at, now)
        elif is_ramp and not circuit.refused_probes and self.window.lower_cap(circuit.in_flight(self.log)[0]):
            self.state = SearchState.RAMP
        elif is_unsure and not circuit.was_short:
            self._start_long_window(circuit, passed_at)
        elif is_ramp or self.steady.is_bucket:
            self._on_bucket_limit(circuit, passed_at, now)
        else:
            self._on_window_limit(circuit, passed_at, now)

    def _is_random(self, circuit: Circuit, now: float) -> bool:
        """Whether the 429s that opened the circuit were random."""
        is_hint = self.steady.is_hinted and not self.is_within_quota
        if is_hint or circuit.refused_probes > 1 or self._detector.are_most_refused(self.log, now):
            return False
        return circuit.most_passed(self.log, now, at_least=constants.MANY_SENDS if circuit.refused_probes else 0)

    def _on_first_limit(self, circuit: Circuit, passed_at: float, now: float) -> None:
        self._first = first = FirstLimit(circuit, circuit.amount(self.log), circuit.in_flight(self.log)[1])
        if circuit.passed_before_window_ended(passed_at) and not first.is_fixed_window:
            self._start_ramp(circuit.rate_since(self.log, passed_at), first.in_flight, now)
        elif circuit.was_short:
            first.window_found_at, first.may_be_cap = now, True
            self._set_limit(constants.SHARE * first.amount, constants.FIRST_HOLD, now)
        else:
            self._start_long_window(circuit, passed_at)

    def _start_long_window(self, circuit: Circuit, passed_at: float) -> None:
        self.window.reject_cap()
        self.long_window, self.state = LongWindow.found(circuit, self.log, passed_at), SearchState.WINDOWED

    def _start_ramp(self, rate: float, cap: int, now: float) -> None:
        self.state, self.steady.limit, self.steady.is_bucket = SearchState.RAMP, None, True
        self._ramp = Ramp(rate, now)
        self.window.set_cap(cap)

    def _is_cap(self, refused_at: float, passed: float, now: float) -> bool:
        """Whether 429s show that a cap on concurrent requests was taken for a window; then starts the ramp."""
        first = self._first
        if first is None or not first.shows_cap(passed, self.log.in_flight_at(refused_at)):
            return False
        self._start_ramp(max(passed, 1.0), first.in_flight, now)
        return True

    def _on_bucket_limit(self, circuit: Circuit, passed_at: float, now: float) -> None:
        self.window.reject_cap()
        limit, first_amount = self.steady.limit, self._first.amount if self._first is not None else 0.0
        if circuit.refused_probes >= 2:  # noqa: PLR2004 - a bucket has room again after one interval
            self.steady.is_bucket = False
            floor = 0.9 * first_amount if limit is None else 0.7 * limit
            found = max(circuit.middle_amount(self.log, passed_at), floor)
            self._set_limit(constants.SHARE * found, constants.FIRST_HOLD, now)
            return
        measured = self.log.rate_since_limit(passed_at, constants.BUCKET_MEMORY_SECONDS)
        if limit is None:
            self._set_limit(constants.SHARE * max(measured, 0.45 * first_amount), constants.BUCKET_HOLD, now)
        elif self.steady.is_near(measured):
            hold = max(2.0 * self.steady.hold_seconds, 1.0)
            self._set_limit(constants.SHARE * max(measured, limit), hold, now)
        else:
            self._set_limit(constants.SHARE * max(measured, constants.UNSURE_SHARE * limit), constants.UNSURE_HOLD, now)

    def _on_window_limit(self, circuit: Circuit, passed_at: float, now: float) -> None:
        amount = circuit.amount(self.log)
        if self._is_cap(circuit.first_refused_at, amount, now):
            return
        limit, middle = self.steady.limit or amount, circuit.middle_amount(self.log, passed_at)
        is_near = self.steady.is_near(amount)
        if is_near and circuit.refused_probes < 2:  # noqa: PLR2004 - as above
            found = max(middle, constants.SHARE * limit)
        else:
            found = max(0.5 * limit, constants.SHARE * middle)
        if (kept := self.log.kept_share()) < constants.FALL_SHARE:
            found = min(found, max(0.5, constants.SHARE * kept) * limit)
        self._set_limit(found, 2.0 * self.steady.hold_seconds if is_near else 1.0, now)

    # --- other reactions ----------------------------------------------------------------------------------

    def _is_ramp_over(self, now: float) -> bool:
        """Whether frequent single 429s show that the rate is too high although no limit is known; sets one."""
        if self.steady.limit is not None:
            return False
        recent = self.log.known_since(self._reacted_at, constants.RECENT_REPLIES, now)
        refused = sum(not passed for _, passed in recent)
        if refused < constants.FREQUENT_429S or refused <= 2.5 * self._detector.random_share * len(recent):
            return False
        self.window.reject_cap()
        self.steady.is_bucket = True
        weight = sum(send.weight for send, passed in recent if passed)
        elapsed = max(now - (recent[0][0].sent_at or now), 1e-3)
        self._set_limit(constants.SHARE * weight / elapsed, constants.BUCKET_HOLD, now)
        return True

    def _on_isolated_throttle(self, sent_at: float, now: float) -> None:
        """Reacts to a single 429: it is random, or the rate is slightly above the limit, which is then lowered."""
        limit = self.steady.limit
        if limit is None or self._detector.expects_429s(self.log, self._reacted_at, now):
            return
        if self._is_cap(sent_at, self.log.weight(sent_at, constants.WINDOW_SECONDS), now):
            return
        if not self.steady.exceeds(now):
            if not self.steady.is_excluded(now):
                self.steady.lower()
            return
        self._update_resource(sent_at)
        hold, rate = 2.0 * self.steady.hold_seconds, self.steady.rate(now)
        if self.steady.is_bucket:
            found = max(0.98 * limit, constants.SHARE * min(self.log.bucket_rate(sent_at), rate))
            hold = hold if self.steady.is_near(found) else constants.BUCKET_HOLD
        else:
            found = max(constants.SHARE * limit, 0.98 * min(self.log.weight(sent_at, constants.WINDOW_SECONDS), rate))
        self._set_limit(found, hold, now)
        self._block_until(now + 1.0 / limit)

    def _on_window_throttle(self, window: LongWindow, sent_at: float, now: float) -> None:
        """WINDOWED: a 429 while the window has room is random; many of them show that there is no such window."""
        is_limit = self._detector.find_limit(self.log, self._reacted_at, now) is not None
        if is_limit and window.has_room:
            self.long_window = None  # its rate does no harm, whatever the limit is
            self._set_limit(window.amount / window.seconds, constants.FIRST_HOLD, now)
        elif is_limit or window.is_full:
            self._update_resource(sent_at)
            window.on_throttled(now)
            self._reacted_at = now

    def _set_limit(self, limit: float, hold_seconds: float, now: float) -> None:
        self.steady.set(limit, hold_seconds, now)
        self.state, self._reacted_at = SearchState.STEADY, now

    def _postpone(self, seconds: float) -> None:
        """Excludes `seconds` from the time that the rate has been in use: it did not limit anything then."""
        self.steady.postpone(seconds)
        self._ramp.since += seconds

    def _block_until(self, time: float) -> None:
        self.blocked_until = max(self.blocked_until, time)

    def _mark_uncounted(self, permit: Permit) -> None:
        permit.is_uncounted = True
        if self.long_window is not None:
            self.long_window.on_uncounted(permit)

    def _update_resource(self, sent_at: float) -> None:
        seconds = constants.WINDOW_SECONDS if self.long_window is None else self.long_window.seconds
        if self._resource.observe_throttle(self.log, sent_at, seconds) and self.long_window is not None:
            self.long_window.recount()
