"""Pauses before a retry, in seconds."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from dashscope_embeddings.errors import ServiceError

if TYPE_CHECKING:
    from dashscope_embeddings.errors import DashScopeError

_BASE_DELAY_SECONDS = 0.5
_MAX_DELAY_SECONDS = 20.0
_MAX_DOUBLINGS = 16
"""The pause is at its maximum long before; 2.0 ** 1024 would overflow."""
_MAX_RETRY_AFTER_SECONDS = 60.0


def backoff_seconds(failures: int, retry_after: float | None) -> float:
    """Exponential backoff with full jitter (https://aws.amazon.com/builders-library/timeouts-retries-and-backoff)."""
    ceiling = min(_MAX_DELAY_SECONDS, _BASE_DELAY_SECONDS * 2.0 ** min(failures, _MAX_DOUBLINGS))
    return max(retry_after or 0.0, random.uniform(0.0, ceiling))  # noqa: S311 - spreads load, guards nothing


def retry_after_seconds(error: DashScopeError) -> float | None:
    """Seconds that the service asked to wait, at most a minute; None: it did not ask."""
    seconds = error.retry_after if isinstance(error, ServiceError) else None
    return None if seconds is None else min(seconds, _MAX_RETRY_AFTER_SECONDS)
