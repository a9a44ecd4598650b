"""Quotas of requests and tokens over a sliding window: what makes the emulator answer 429.

The service states its limits a minute and may enforce a sixtieth of them each second
(https://www.alibabacloud.com/help/en/model-studio/rate-limit, read 2026-11-20).
"""

from __future__ import annotations

import math
from collections import deque

from dashscope_embeddings.emulator.error_responses import THROTTLING_MESSAGES, ApiError


class SlidingWindow:
    """Admits a limited amount in any window of time.

    An amount above the whole limit is admitted alone, and then fills as many windows as it takes.

    Args:
        limit: amount that a window admits.
        window_seconds: length of the window.
    """

    def __init__(self, limit: float, window_seconds: float) -> None:
        self._limit, self._window_seconds = limit, window_seconds
        self._used = 0.0
        self._entries: deque[tuple[float, float]] = deque()

    def seconds_until_fits(self, amount: float, now: float) -> float:
        """Seconds until the amount fits; 0.0: now."""
        while self._entries and self._entries[0][0] <= now:
            self._used -= self._entries.popleft()[1]
        used, until = self._used, now
        for expiry, entry_amount in self._entries:
            if used + amount <= self._limit:
                break
            used, until = used - entry_amount, expiry
        return until - now

    def add(self, amount: float, now: float) -> None:
        """Count an amount that fits."""
        self._used += amount
        self._entries.append((now + self._window_seconds * max(1.0, amount / self._limit), amount))


class QuotaExceededError(ApiError):
    """HTTP 429 for an exceeded quota.

    Args:
        code: the code of the quota.
        seconds: time until the same request would be admitted.
    """

    def __init__(self, code: str, seconds: float) -> None:
        super().__init__(429, code, THROTTLING_MESSAGES[code])
        # The vendor's newer SDK code reads both headers; neither has been seen in a reply.
        self.retry_headers = {
            "retry-after": str(math.ceil(seconds)),
            "retry-after-ms": str(math.ceil(seconds * 1000)),
        }


class Quota:
    """The quota of one model: refused requests do not count.

    Args:
        requests_per_minute: None: no limit.
        tokens_per_minute: None: no limit.
        window_seconds: length of the window over which both are enforced.
    """

    def __init__(
        self, requests_per_minute: float | None, tokens_per_minute: float | None, window_seconds: float
    ) -> None:
        self._windows = [
            (code, SlidingWindow(limit * window_seconds / 60, window_seconds), counts_tokens)
            for code, limit, counts_tokens in (
                ("Throttling.RateQuota", requests_per_minute, False),
                ("Throttling.AllocationQuota", tokens_per_minute, True),
            )
            if limit is not None
        ]

    def admit(self, tokens: int, now: float) -> None:
        """Count one request.

        Raises:
            QuotaExceededError: it exceeds a limit; it is not counted.
        """
        amounts = [(window, code, tokens if counts_tokens else 1) for code, window, counts_tokens in self._windows]
        for window, code, amount in amounts:
            seconds = window.seconds_until_fits(amount, now)
            if seconds > 0:
                raise QuotaExceededError(code, seconds)
        for window, _, amount in amounts:
            window.add(amount, now)
