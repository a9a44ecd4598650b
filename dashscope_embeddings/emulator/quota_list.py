"""The list of quotas: what an account may send of each model, as the service documents it.

https://www.alibabacloud.com/help/en/model-studio/list-quotas, of 2026-09-28, read 2026-11-27. Its example is a chat
model; no reply with an embedding model was seen, so the emulator answers only on request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from dashscope_embeddings.emulator.error_responses import ApiError, json_headers, to_json
from dashscope_embeddings.emulator.messages import Request, Response

if TYPE_CHECKING:
    from collections.abc import Iterable

PATH = "/api/v1/quotas"
_MAX_PAGE_SIZE = 100
"""A third party saw the refusal of more; the code of that refusal is a guess."""
_WORKSPACE = "llm-emulated"


def response(
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
