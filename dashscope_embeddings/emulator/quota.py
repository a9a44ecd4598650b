"""Quotas of requests and tokens over a sliding window: what makes the emulator answer 429.

The service states its limits a minute and may enforce a sixtieth of them each second
(https://www.alibabacloud.com/help/en/model-studio/rate-limit, read 2026-11-20).
"""

from __future__ import annotations

import math
from collections import deque

from dashscope_embeddings.emulator.error_responses import THROTTLING_MESSAGES, ApiError


class SlidingWindow:
    """Admits at most `limit` in any `window_seconds`; more than that at once is admitted alone, and fills several."""

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
    """HTTP 429 for an exceeded quota; `seconds` until the same request would be admitted."""

    def __init__(self, code: str, seconds: float) -> None:
        super().__init__(429, code, THROTTLING_MESSAGES[code])
        # The vendor's newer SDK code reads both headers; neither has been seen in a reply.
        self.retry_headers = {
            "retry-after": str(math.ceil(seconds)),
            "retry-after-ms": str(math.ceil(seconds * 1000)),
        }


class Quota:
    """The quota of one model, enforced over `window_seconds`; None: no limit. Refused requests do not count."""

    def __init__(
        self, requests_per_minute: float | None, tokens_per_minute: float | None, window_seconds: float
    ) -> None:
        limits = {"Throttling.RateQuota": requests_per_minute, "Throttling.AllocationQuota": tokens_per_minute}
        self._windows = {
            code: SlidingWindow(limit * window_seconds / 60, window_seconds)
            for code, limit in limits.items()
            if limit is not None
        }

    def admit(self, tokens: int, now: float) -> None:
        """Count one request. Raises QuotaExceededError, and counts nothing, if it exceeds a limit."""
        amounts = {"Throttling.RateQuota": 1, "Throttling.AllocationQuota": tokens}
        for code, window in self._windows.items():
            seconds = window.seconds_until_fits(amounts[code], now)
            if seconds > 0:
                raise QuotaExceededError(code, seconds)
        for code, window in self._windows.items():
            window.add(amounts[code], now)
