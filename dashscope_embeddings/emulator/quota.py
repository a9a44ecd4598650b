"""Quotas of requests and tokens over a sliding window, which make the emulator answer 429, and the list of them.

The service states its limits a minute and may enforce a sixtieth of them each second
(https://www.alibabacloud.com/help/en/model-studio/rate-limit, read 2026-11-20). The list of quotas:
https://www.alibabacloud.com/help/en/model-studio/list-quotas, of 2026-09-28, read 2026-11-27. Its example is a chat
model; no reply with an embedding model was seen, so the emulator answers only on request.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from dashscope_embeddings.emulator.error_responses import THROTTLING_MESSAGES, ApiError, json_headers, to_json
from dashscope_embeddings.emulator.messages import Request, Response

if TYPE_CHECKING:
    from collections.abc import Iterable


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
        """Counts an amount, for which there must be room."""
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
        """Counts one request. Raises QuotaExceededError, and counts nothing, if it exceeds a limit."""
        amounts = {"Throttling.RateQuota": 1, "Throttling.AllocationQuota": tokens}
        for code, window in self._windows.items():
            seconds = window.seconds_until_fits(amounts[code], now)
            if seconds > 0:
                raise QuotaExceededError(code, seconds)
        for code, window in self._windows.items():
            window.add(amounts[code], now)


# --- the list of quotas ------------------------------------------------------------------------------------

QUOTA_LIST_PATH = "/api/v1/quotas"
_MAX_PAGE_SIZE = 100
"""A third party saw the refusal of more; the code of that refusal is a guess."""
_WORKSPACE = "llm-emulated"


def quota_list(
    request: Request,
    models: Iterable[str],
    requests_per_minute: float | None,
    tokens_per_minute: float | None,
    request_id: str,
) -> Response:
    """One page of the quotas, which are equal for all models. Raises ApiError if the page cannot be given."""
    query = {name: values[-1] for name, values in parse_qs(request.query).items()}
    page_no, page_size = _number(query, "page_no", 1), _number(query, "page_size", 20)
    if page_size > _MAX_PAGE_SIZE:
        raise ApiError(400, "InvalidParameter", "Pagination parameter page_size exceeds the length limit")
    names = [name for name in models if query.get("name", "") in name and query.get("model", name) == name]
    limit = {
        "request_limit": _whole(requests_per_minute),
        "request_limit_period": 60,
        "usage_limit": _whole(tokens_per_minute),
        "usage_limit_field": "total_tokens",
        "usage_limit_period": 60,
        "async_user_queue_limit": None,
        "async_user_concurrency_limit": None,
    }
    workspace = request.headers.get("x-dashscope-workspace", _WORKSPACE)
    quotas = [
        {"model": name, "workspace_id": workspace, "model_limit": limit, "workspace_limit": None}
        for name in names[(page_no - 1) * page_size : page_no * page_size]
    ]
    output = {"total": len(names), "page_no": page_no, "page_size": page_size, "quotas": quotas}
    return Response(200, to_json({"request_id": request_id, "output": output}), json_headers(request_id))


def _number(query: dict[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise ApiError(400, "InvalidParameter", f"Pagination parameter {name} is invalid")
    return int(text)


def _whole(limit: float | None) -> float | None:
    return int(limit) if limit is not None and float(limit).is_integer() else limit
