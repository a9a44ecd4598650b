"""Upper bound from the quota that the service reports: token buckets which hold one period's worth.

Not the even spacing of a configured quota: the service may enforce its quota over the whole period, and even spacing
would then lose the burst at the start. It may as well enforce a part of it each second, or other programs of the
account may use some of it, so the search for the rate goes on below this bound.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashscope_embeddings._core.permit import Permit
    from dashscope_embeddings.quota import Quota, QuotaLimit


class _Bucket:
    """A token bucket as one number (GCRA): the time at which it will be full again. Always full without a limit."""

    def __init__(self, limit: QuotaLimit | None) -> None:
        self._limit, self._period_seconds = (math.inf, 1.0) if limit is None else (limit.limit, limit.period_seconds)
        self.per_second = self._limit / self._period_seconds
        self._full_at = -math.inf

    def available_at(self, amount: float) -> float:
        """When the bucket holds the amount or, for an amount larger than the bucket, when it is full."""
        return self._full_at - self._period_seconds + min(amount, self._limit) / self.per_second

    def take(self, amount: float, now: float) -> None:
        """Takes an amount out; a negative amount is put back."""
        self._full_at = max(self._full_at, now) + amount / self.per_second


class ReportedQuota:
    """The bound for one account, host and model; without a word from the service there is none."""

    def __init__(self, quota: Quota | None = None) -> None:
        self._requests = _Bucket(quota.requests if quota else None)
        self._tokens = _Bucket(quota.tokens if quota else None)

    @property
    def requests_per_second(self) -> float:
        """The average rate of requests that it allows; infinite without a limit."""
        return self._requests.per_second

    def available_at(self, permit: Permit) -> float:
        return max(self._requests.available_at(1.0), self._tokens.available_at(permit.estimated_tokens))

    def take(self, requests: int, tokens: int, now: float) -> None:
        """Counts a request that is sent, or the difference that its bill makes; negative: what the service refused."""
        self._requests.take(requests, now)
        self._tokens.take(tokens, now)
