"""The open circuit: when to probe after 429s that show a limit, and what is known when a probe passes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dashscope_embeddings._core import search_constants as constants

if TYPE_CHECKING:
    from dashscope_embeddings._core.permit import Permit
    from dashscope_embeddings._core.send_log import SendLog

_WINDOW_END_SECONDS = constants.WINDOW_SECONDS + constants.WINDOW_MARGIN_SECONDS


@dataclass(slots=True)
class Circuit:
    """The 429s that opened it, and its probes."""

    first_refused_at: float
    """Send time of the first 429."""
    opened_at: float
    probe_delay: float
    window_start: float
    """Send time of the first request that the service may still count, in a window of 1 s."""
    job_start: float
    """Send time of the first request that it may count in a longer window."""
    last_refused_at: float
    """Send time of the last refused probe, or of the first 429."""
    refused_probes: int = 0
    late_refusals: int = 0
    """Those of them that a window of 1 s does not explain."""
    probe: Permit | None = None
    """The probe in flight."""

    @classmethod
    def opened_by(cls, refused: Permit, log: SendLog, limit: float | None, now: float) -> Circuit:
        """The circuit that a first 429 opens; `limit`: the known rate limit."""
        sent_at = refused.sent_at or now
        counted = log.counted(sent_at, constants.WINDOW_SECONDS)
        delay = constants.PROBE_DELAY_SECONDS if limit is None else min(max(1.0 / limit, 0.01), 0.5)
        window_start = (counted[0].sent_at or sent_at) if counted else sent_at
        job_start = log.first_sent_at(sent_at - constants.LONG_WINDOWS_SECONDS[-1], sent_at)
        return cls(sent_at, now, delay, window_start, job_start, last_refused_at=sent_at)

    def next_probe_at(self, now: float) -> float:
        """When to send the next probe: delays grow, but not past the moments when a window may have ended."""
        last_end = self.first_refused_at + _WINDOW_END_SECONDS
        if self.last_refused_at < last_end <= now:
            return now
        if now < last_end:
            ends = [self.window_start + _WINDOW_END_SECONDS, last_end]
        else:
            windows = (*constants.LONG_WINDOWS_SECONDS, *constants.LATE_MINUTE_SECONDS)
            ends = [self.job_start + seconds + constants.LONG_WINDOW_MARGIN_SECONDS for seconds in windows]
        latest = now + min(self.probe_delay, constants.MAX_PROBE_GAP_SECONDS)
        return min([latest, *(end for end in ends if end > now)])

    def on_refused_probe(self, sent_at: float) -> None:
        """The probe was throttled."""
        self.probe = None
        self.refused_probes += 1
        longest = constants.WINDOW_SECONDS + constants.WINDOW_TOLERANCE_SECONDS
        self.late_refusals += sent_at - self.window_start >= longest
        self.last_refused_at = sent_at
        self.probe_delay *= constants.PROBE_BACKOFF

    # --- when a probe has passed --------------------------------------------------------------------------

    def passed_before_window_ended(self, passed_at: float) -> bool:
        """Whether room came back before any counting window could have ended.

        Where requests were sent for longer than that, one may have ended at any moment; the ramp soon shows what it is.
        """
        is_at_once = not self.refused_probes and passed_at < self.first_refused_at + constants.AT_ONCE_SECONDS
        return is_at_once or passed_at < self.window_start + constants.WINDOW_SECONDS - constants.WINDOW_MARGIN_SECONDS

    @property
    def was_short(self) -> bool:
        """Whether a window of 1 s explains the refused probes, but perhaps for a random 429."""
        return self.late_refusals < constants.LONG_WINDOW_REFUSALS

    def most_passed(self, log: SendLog, now: float, at_least: int = 0) -> bool:
        """Whether most requests sent since the first 429 passed."""
        fates = [fate for send in log.since(self.first_refused_at) if (fate := log.has_passed(send, now)) is not None]
        return len(fates) >= at_least and sum(fates) > constants.RANDOM_PASS_SHARE * len(fates)

    def rate_since(self, log: SendLog, passed_at: float) -> float:
        """What passed a second from the first 429 to the probe; if that is little, one request."""
        elapsed = max(passed_at - self.first_refused_at, 1e-3)
        passed = log.weight(passed_at, elapsed)
        return (passed if passed > constants.FEW_PASSED else 1.0) / elapsed

    def in_flight(self, log: SendLog) -> tuple[int, int]:
        """The accepted requests in flight at the first 429 and when it opened: the fewest and the most of both."""
        at_first, at_opening = map(log.in_flight_at, (self.first_refused_at, self.opened_at))
        return min(at_first, at_opening), max(at_first, at_opening)

    def amount(self, log: SendLog) -> float:
        """What had passed within a second when it opened."""
        return log.highest_weight(self.first_refused_at, self.opened_at, constants.WINDOW_SECONDS)

    def middle_amount(self, log: SendLog, passed_at: float) -> float:
        """What passes in a second, between what was counted at the last 429 and at the probe that passed.

        After the silence that a 429 asked for, nothing is counted any more, so only the 429 says something.
        """
        at_refusal = log.weight(self.last_refused_at, constants.WINDOW_SECONDS)
        if not self.refused_probes and passed_at > self.last_refused_at + constants.WINDOW_SECONDS:
            return constants.SHARE * at_refusal
        return (at_refusal + log.weight(passed_at, constants.WINDOW_SECONDS)) / 2.0


@dataclass(slots=True)
class FirstLimit:
    """What was seen when a limit was first met: later 429s may contradict what was made of it."""

    circuit: Circuit
    amount: float
    """What had passed within a second."""
    in_flight: int
    """Accepted requests in flight."""
    window_found_at: float = -math.inf
    """When a window of 1 s was found."""
    may_be_cap: bool = False
    """Whether a window of 1 s was found, and as many requests were in flight at each later 429."""

    @property
    def is_fixed_window(self) -> bool:
        """Whether a window of fixed seconds ended: a bucket has room after one interval, a cap let fewer pass."""
        passed_more = self.amount > constants.FIXED_TIMES_IN_FLIGHT * self.in_flight
        return passed_more and self.circuit.refused_probes > 1

    def is_window_unsure(self, now: float) -> bool:
        """Whether a limit that is met now may be one of a longer window: in one of 1 s there should be room."""
        return now < self.window_found_at + constants.WINDOW_SECONDS

    def shows_longer_window(self, passed: float, now: float) -> bool:
        """Whether a 429, with `passed` in the second before it, contradicts 1 s."""
        return self.is_window_unsure(now) and passed < 0.25 * self.amount

    def shows_cap(self, passed: float, in_flight: int) -> bool:
        """Whether a 429, with `passed` in the second before it, contradicts the window but not a cap."""
        self.may_be_cap &= in_flight >= self.in_flight
        is_cap = self.may_be_cap and passed < constants.WINDOW_ROOM * self.amount
        self.may_be_cap &= not is_cap
        return is_cap
