"""Spaces requests by their tokens under a configured quota of tokens per minute."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashscope_embeddings._core.permit import Permit

_BURST_TOLERANCE_SECONDS = 0.02
"""Burst tolerance: a caller delayed by timer jitter may catch up by this much."""
_IDLE_RESET_SECONDS = 0.05
"""After this long without a request, spacing starts anew: an idle limiter saves up no burst."""
QUOTA_SHARE = 0.98
"""Share of a configured quota that is used, because the service's clock differs from ours."""
_SLIDING_WINDOW_SECONDS, _SMOOTHING_SHARE = 1.003, 1.12
"""If the service enforces tokens per one-second window, also enforce a sliding window of 1.003 s; smoothing may then
run at 112 %."""
_WINDOW_RETEST_SECONDS = 60.0
"""After this long, test again whether the service still enforces the window."""


@dataclass(slots=True)
class TokenQuota:
    """Spaces tokens under a configured quota, and learns the ratio of billed to estimated tokens."""

    per_minute: float | None = None
    next_at: float = -math.inf
    """When the next request is due."""
    _mean_tokens: float = 0.0
    _estimated_sum: float = 0.0
    _billed_sum: float = 0.0
    _window_permits: deque[Permit] = field(default_factory=lambda: deque(maxlen=4096))
    _window_tokens: float = 0.0
    _window_enforced_since: float | None = None
    """Since when the service is known to refuse requests that exceed the tokens of a one-second window."""

    def queue_delay(self, head: Permit, queued_ahead: int) -> float:
        """Seconds of the quota that the queue ahead takes; an underestimate, as an overestimate wastes quota."""
        if self.per_minute is None:
            return 0.0
        return (self._expected_tokens(head) + 0.3 * (queued_ahead - 1) * self._mean_tokens) / self._tokens_per_second()

    def _tokens_per_second(self) -> float:
        share = _SMOOTHING_SHARE if self._window_enforced_since is not None else QUOTA_SHARE
        return share * (self.per_minute or 1.0) / 60.0

    def available_at(self, permit: Permit, now: float) -> float:
        if self.per_minute is None or not self._is_window_enforced(now):
            return self.next_at
        free = self.per_minute / 60.0 - self._expected_tokens(permit)
        self._drop_expired(now)
        used, due = self._window_tokens, self.next_at
        for earlier in self._window_permits:
            if used <= max(free, 0.0):
                break
            used -= earlier.charged_tokens
            due = max(due, (earlier.sent_at or 0.0) + _SLIDING_WINDOW_SECONDS)
        return due

    def charge(self, permit: Permit, now: float) -> None:
        """Takes the request's tokens from the quota as it is sent."""
        if self.per_minute is None:
            return
        permit.charged_tokens = self._expected_tokens(permit)
        self._mean_tokens += (
            0.1 * (permit.charged_tokens - self._mean_tokens) if self._mean_tokens else permit.charged_tokens
        )
        self.next_at = spacing_start(self.next_at, now) + permit.charged_tokens / self._tokens_per_second()
        self._drop_expired(now)
        self._window_permits.append(permit)
        self._window_tokens += permit.charged_tokens

    def record_billed(self, permit: Permit, billed_tokens: int | None) -> None:
        """Corrects the estimate by the billed tokens; None: unknown."""
        if billed_tokens is None:
            return
        if billed_tokens > 0:
            self._estimated_sum = 0.98 * self._estimated_sum + max(permit.estimated_tokens, 1)
            self._billed_sum = 0.98 * self._billed_sum + billed_tokens
        if self.per_minute is not None:
            self.next_at += (billed_tokens - permit.charged_tokens) / self._tokens_per_second()
            if self._window_permits and (permit.sent_at or 0.0) >= (self._window_permits[0].sent_at or 0.0):
                self._window_tokens += billed_tokens - permit.charged_tokens
            permit.charged_tokens = billed_tokens

    def explains_throttle(self, permit: Permit) -> bool:
        """Whether a 429 is due to a one-second window of tokens that was not known to be enforced."""
        if self.per_minute is None or permit.sent_at is None:
            return False
        if self._is_window_enforced(permit.sent_at):
            return permit.sent_at <= (self._window_enforced_since or 0.0)
        self._drop_expired(permit.sent_at)
        if self._window_tokens <= 0.9 * self.per_minute / 60.0:
            return False
        self._window_enforced_since = self._window_permits[-1].sent_at
        return True

    def _is_window_enforced(self, now: float) -> bool:
        if self._window_enforced_since is not None and now > self._window_enforced_since + _WINDOW_RETEST_SECONDS:
            self._window_enforced_since = None
        return self._window_enforced_since is not None

    def _expected_tokens(self, permit: Permit) -> float:
        ratio = self._billed_sum / self._estimated_sum if self._estimated_sum else 1.0
        return permit.estimated_tokens * ratio

    def _drop_expired(self, now: float) -> None:
        while self._window_permits and (self._window_permits[0].sent_at or 0.0) <= now - _SLIDING_WINDOW_SECONDS:
            self._window_tokens -= self._window_permits.popleft().charged_tokens
        if not self._window_permits:
            self._window_tokens = 0.0


def spacing_start(due: float, now: float) -> float:
    """Start of the interval after this request: a request slightly late catches up, one after a pause does not."""
    return now if due < now - _IDLE_RESET_SECONDS else max(due, now - _BURST_TOLERANCE_SECONDS)
