"""Quotas of requests and tokens over a sliding window, which make the emulator answer 429, and the list of them.

The service states its limits a minute and may enforce a sixtieth of them each second
(https://www.alibabacloud.com/help/en/model-studio/rate-limit, read 2026-11-20). The list of quotas:
https://www.alibabacloud.com/help/en/model-studio/list-quotas, of 2026-09-28, read 2026-11-27. Its example is a chat
model; no reply with an embedding model was seen, so the emulator answers only on request, and without further pages.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from dashscope_embeddings.emulator.error_responses import json_headers, throttled, to_json
from dashscope_embeddings.emulator.messages import Request, Response

if TYPE_CHECKING:
    from collections.abc import Iterable


class SlidingWindow:
    """Admits at most `limit` in any `window_seconds`; more than that at once is admitted alone, and fills several."""

    def __init__(self, limit: float, window_seconds: float) -> None:
        self._limit, self._window_seconds = limit, window_seconds
        self._used = 0.0
        self._entries: deque[tuple[float, float]] = deque()
        """Time when it leaves the window, and amount."""

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
        """Counts an amount, for which there must be room."""
        self._used += amount
        self._entries.append((now + self._window_seconds * max(1.0, amount / self._limit), amount))


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
        """Counts one request. Raises ApiError, and counts nothing, if it exceeds a limit."""
        amounts = {"Throttling.RateQuota": 1, "Throttling.AllocationQuota": tokens}
        for code, window in self._windows.items():
            if seconds := window.seconds_until_fits(amounts[code], now):
                error = throttled(code)
                # The vendor's newer SDK code reads both headers, neither of which has been seen in a reply.
                error.retry_headers["retry-after"] = str(math.ceil(seconds))
                error.retry_headers["retry-after-ms"] = str(math.ceil(seconds * 1000))
                raise error
        for code, window in self._windows.items():
            window.add(amounts[code], now)


# --- the list of quotas ------------------------------------------------------------------------------------

QUOTA_LIST_PATH = "/api/v1/quotas"


def quota_list(
    request: Request,
    models: Iterable[str],
    requests_per_minute: float | None,
    tokens_per_minute: float | None,
    request_id: str,
) -> Response:
    """The quotas, which are equal for all models, on one page; `model` in the query chooses one."""
    chosen = dict(parse_qsl(request.query)).get("model")
    limit = {
        "request_limit": requests_per_minute,
        "request_limit_period": 60,
        "usage_limit": tokens_per_minute,
        "usage_limit_field": "total_tokens",
        "usage_limit_period": 60,
        "async_user_queue_limit": None,
        "async_user_concurrency_limit": None,
    }
    workspace = request.headers.get("x-dashscope-workspace", "llm-emulated")
    quotas = [
        {"model": name, "workspace_id": workspace, "model_limit": limit, "workspace_limit": None}
        for name in models
        if chosen in (None, name)
    ]
    output = {"total": len(quotas), "page_no": 1, "page_size": 100, "quotas": quotas}
    return Response(200, to_json({"request_id": request_id, "output": output}), json_headers(request_id))
