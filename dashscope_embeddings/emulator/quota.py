"""Requests and tokens a window: what makes the emulator answer 429.

The service states its limits a minute and may enforce a sixtieth of them each second
(https://www.alibabacloud.com/help/en/model-studio/rate-limit, read 2026-11-20).
"""

from __future__ import annotations

from collections import deque

from dashscope_embeddings.emulator.error_responses import THROTTLING_MESSAGES, ApiError


class SlidingWindow:
    """A sliding window that admits so much of something.

    What is larger than the whole limit is admitted alone, and then fills as many windows as it takes.

    Args:
        limit: how much a window admits.
        seconds: how long it is.
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
        for leaves, part in self._entries:
            if used + amount <= self._limit:
                break
            used, until = used - part, leaves
        return until - now

    def add(self, amount: float, now: float) -> None:
        """Fill the window by an amount that fits."""
        self._used += amount
        self._entries.append((now + self._window_seconds * max(1.0, amount / self._limit), amount))


class Quota:
    """The quota of one model: refused requests do not count.

    Args:
        requests_per_minute: None: no limit.
        tokens_per_minute: None: no limit.
        window: seconds over which both are enforced.
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

    def admit(self, tokens: int, now: float) -> tuple[str, float] | None:
        """None, and the request is counted; or the refusal's code and the seconds until it would pass."""
        amounts = [tokens if counts_tokens else 1 for _, _, counts_tokens in self._windows]
        for (code, window, _), amount in zip(self._windows, amounts, strict=True):
            seconds = window.seconds_until_fits(amount, now)
            if seconds > 0:
                return code, seconds
        for (_, window, _), amount in zip(self._windows, amounts, strict=True):
            window.add(amount, now)
        return None


class QuotaExceededError(ApiError):
    """A refusal that knows when it would be none.

    Args:
        code: the code of the quota.
        seconds: until the same request would pass.
    """

    def __init__(self, code: str, seconds: float) -> None:
        super().__init__(429, code, THROTTLING_MESSAGES[code])
        self.retry_after_seconds = seconds
