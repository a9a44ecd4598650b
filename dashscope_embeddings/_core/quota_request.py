"""Asks the service for the quota of a model, and reads the reply: the only module that knows its field names.

Source: https://www.alibabacloud.com/help/en/model-studio/list-quotas, of 2026-09-28, seen 2026-11-27. Its example is a
chat model: that embedding models are listed is likely, not proven. It documents the hosts of workspaces; a third party
saw that the shared hosts know the path, too.
"""

from __future__ import annotations

import functools
import logging
import urllib.parse
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dashscope_embeddings._core.other_endpoints import RequestSender
from dashscope_embeddings._core.protocol import parse_json
from dashscope_embeddings._core.reply_fields import first_string, request_id_of
from dashscope_embeddings._core.steps import Endpoint, Send
from dashscope_embeddings.errors import Action, BadReply, DashScopeError, ServiceError
from dashscope_embeddings.quota import Quota, QuotaLimit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dashscope_embeddings._core.other_endpoints import RequestFlow
    from dashscope_embeddings._core.protocol import Reply
    from dashscope_embeddings._core.rate_limiter import Limiter
    from dashscope_embeddings._core.settings import Settings

_log = logging.getLogger("dashscope_embeddings")
_PATH = "/api/v1/quotas"
_PAGE_SIZE = 100
"""The default, 20, may be too few if a model has a row for each workspace; more than 100 were seen to be refused."""
_MAX_REPLY_BYTES = 1 << 20
_NOT_FOUND = 404
_HINT = "If you know the quota, set requests_per_minute and tokens_per_minute; otherwise the rate is found by itself"


def fetch_quota(
    settings: Settings, limiter: Limiter, *, max_retries: int, deadline_seconds: float | None = None
) -> RequestFlow[Quota]:
    """Asks for the quota of the settings' model, and applies it to the limiter as an upper bound."""
    sender = RequestSender(replace(settings.error_context, path=""), max_retries)
    try:
        quota = yield from sender.send(
            _request(settings.model.name, deadline_seconds), functools.partial(_read_quota, settings)
        )
    except ServiceError as error:
        if error.status == _NOT_FOUND:
            error.message = f"{settings.address.host} tells no quota at {_PATH}: it answered {error.summary}"
            error.add_hint(_HINT)
        raise
    limiter.apply_reported_quota(quota)
    return quota


def ask_for_quota(settings: Settings, limiter: Limiter) -> RequestFlow[None]:
    """`fetch_quota` once, quickly and silently: without an answer the rate is found as if nobody had asked."""
    try:
        quota = yield from fetch_quota(settings, limiter, max_retries=0, deadline_seconds=_DEADLINE_SECONDS)
    except DashScopeError as error:
        _log.debug("no quota is reported: %s", error)
    else:
        _log.info("the service reports a quota for %s: %s", quota.model, quota)


_DEADLINE_SECONDS = 5.0
"""An answer that takes longer would come too late for most jobs."""


def _request(model: str, deadline_seconds: float | None) -> Send:
    query = urllib.parse.urlencode({"model": model, "page_no": 1, "page_size": _PAGE_SIZE})
    endpoint = Endpoint("GET", f"{_PATH}?{query}", deadline_seconds=deadline_seconds)
    # Its connection is not used again: a duplicate of this reply might be taken for the reply to a later request.
    return Send(endpoint=endpoint, max_reply_bytes=_MAX_REPLY_BYTES, read_reply=lambda _: False)


# --- the reply ---------------------------------------------------------------------------------------------

_Scope: TypeAlias = Literal["account", "workspace"]
_FIELDS_BY_SCOPE: dict[_Scope, str] = {"account": "model_limit", "workspace": "workspace_limit"}
_MAX_AMOUNT = 10**15
"""A larger limit or period cannot be a number of requests, tokens or seconds."""
_MIN_PER_MINUTE = 1.0
"""A smaller limit cannot be the quota of a model, and would stop a job without any message."""
_MAX_SHOWN_CHARACTERS = 200


def _read_quota(settings: Settings, reply: Reply) -> Quota:
    """Raises BadReply if the reply does not list the model."""
    name, redact = settings.model.name, settings.error_context.redactor
    try:
        content = parse_json(reply.body)
    except ValueError:
        content = None
    request_id = redact.redact_request_id(request_id_of(content) or reply.headers.get("x-request-id") or None)
    rows = _rows_of_model(content, settings)
    if not rows:
        excerpt = redact(reply.body[:_MAX_SHOWN_CHARACTERS].decode("utf-8", "replace"))
        error = BadReply(
            f"the service lists no quota of {name}; it answered {excerpt or 'nothing'}", request_id=request_id
        )
        error.action = Action.ABORT
        error.add_hint(_HINT)
        raise error
    # Of several workspaces, the key's own is not known: only the account's limit holds for certain.
    is_one_workspace = len(rows) == 1
    scopes: tuple[_Scope, ...] = ("account", "workspace") if is_one_workspace else ("account",)
    found = [limit for scope in scopes for limit in _limits(rows[0], scope)]
    workspace_id = first_string(rows[0], ("workspace_id",)) if is_one_workspace else None
    return Quota(
        name,
        tuple(limit for limit in found if isinstance(limit, QuotaLimit)),
        workspace_id and redact(workspace_id, max_characters=_MAX_SHOWN_CHARACTERS),
        settings.address.root_url + _PATH,
        tuple(redact(words, max_characters=_MAX_SHOWN_CHARACTERS) for words in found if isinstance(words, str)),
        request_id,
    )


def _rows_of_model(content: Any, settings: Settings) -> list[dict[str, Any]]:
    """The model's rows: of the client's own workspace, if the reply names it."""
    output = content.get("output") if isinstance(content, dict) else None
    rows = output.get("quotas") if isinstance(output, dict) else None
    listed = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    listed = [row for row in listed if row.get("model") == settings.model.name]
    workspaces = (settings.address.workspace, settings.address.host.partition(".")[0])
    return [row for row in listed if row.get("workspace_id") in workspaces] or listed


def _limits(row: dict[str, Any], scope: _Scope) -> Iterator[QuotaLimit | str]:
    """The limits of the account or of the workspace; a string describes a value that cannot be a limit."""
    field = _FIELDS_BY_SCOPE[scope]
    if (source := row.get(field)) is None:
        return
    if not isinstance(source, dict):
        yield f"{field}={source!r}"
        return
    limit, period = source.get("request_limit"), source.get("request_limit_period")
    if limit is not None:
        yield _limit(scope, "requests", limit, period) or f"{field}.request_limit={limit!r} in {period!r} s"
    limit, period = source.get("usage_limit"), source.get("usage_limit_period")
    if limit is not None:
        unit = source.get("usage_limit_field", "tokens")
        found = _limit(scope, "tokens", limit, period) if unit is None or "token" in str(unit) else None
        yield found or f"{field}.usage_limit={limit!r} {unit!r} in {period!r} s"


def _limit(scope: _Scope, resource: Literal["requests", "tokens"], limit: Any, period: Any) -> QuotaLimit | None:
    if not (_is_amount(limit) and _is_amount(period)) or limit * 60.0 / period < _MIN_PER_MINUTE:
        return None
    return QuotaLimit(scope, resource, float(limit), float(period))


def _is_amount(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= _MAX_AMOUNT
