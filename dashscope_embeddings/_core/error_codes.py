"""Maps the service's error codes, statuses and messages to exception classes and to actions of the flow."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dashscope_embeddings._core.redaction import printable
from dashscope_embeddings.errors import (
    Action,
    AuthenticationError,
    BadRequestError,
    QuotaError,
    RateLimitError,
    ServerError,
    ServiceError,
)

# Sources, seen 2026-11-20: the vendor's pages (error codes, messages, best practices for rate limits) and
# recorded replies. A code is looked up as it is, then without its last dotted part, and so on.
ACTIONS_BY_CODE: Mapping[str, tuple[type[ServiceError], Action]] = {
    "InvalidApiKey": (AuthenticationError, Action.ABORT),
    "invalid_api_key": (AuthenticationError, Action.ABORT),
    "NOT AUTHORIZED": (AuthenticationError, Action.ABORT),
    "AccessDenied": (AuthenticationError, Action.ABORT),
    "access_denied": (AuthenticationError, Action.ABORT),
    "Model.AccessDenied": (AuthenticationError, Action.ABORT),
    "Workspace.AccessDenied": (AuthenticationError, Action.ABORT),
    "AccessDenied.Unpurchased": (QuotaError, Action.ABORT),
    "AllocationQuota.FreeTierOnly": (QuotaError, Action.ABORT),
    "Arrearage": (QuotaError, Action.ABORT),
    "CommodityNotPurchased": (QuotaError, Action.ABORT),
    "PostpaidBillOverdue": (QuotaError, Action.ABORT),
    "PrepaidBillOverdue": (QuotaError, Action.ABORT),
    "LimitRequests": (RateLimitError, Action.BACK_OFF),
    "Throttling": (RateLimitError, Action.BACK_OFF),
    # Here a limit of tokens per minute, not of money as at OpenAI: the vendor's page on rate limits says so, and
    # in a third party's log 188 of 188 such requests succeeded later.
    "insufficient_quota": (RateLimitError, Action.BACK_OFF),
    "limit_burst_rate": (RateLimitError, Action.BACK_OFF),
    "limit_requests": (RateLimitError, Action.BACK_OFF),
    "BadRequest": (BadRequestError, Action.ABORT),
    "BadRequest.TooLarge": (BadRequestError, Action.BISECT),
    "DataInspectionFailed": (BadRequestError, Action.BISECT),
    "data_inspection_failed": (BadRequestError, Action.BISECT),
    "InvalidParameter": (BadRequestError, Action.BISECT),
    "invalid_parameter_error": (BadRequestError, Action.BISECT),
    "ModelNotFound": (BadRequestError, Action.ABORT),
    "model_not_found": (BadRequestError, Action.ABORT),
    "model_not_supported": (BadRequestError, Action.ABORT),
    "InternalError": (ServerError, Action.RETRY),
    "internal_error": (ServerError, Action.RETRY),
    "InternalError.Algo.InvalidParameter": (BadRequestError, Action.BISECT),
}

# Messages are matched by a part: the wording and the links around it have changed before.
_BILLING_MESSAGES = ("Free allocated quota exceeded", "free tier of the model has been exhausted")
UNKNOWN_MODEL_MESSAGES = ("Model not exist", "Model can not be found")
_WHOLE_REQUEST_MESSAGES = (
    *UNKNOWN_MODEL_MESSAGES,
    "dimension",
    "does not exist or you do not have access",
    "url error",
    "text_type",
    "output_type",
    "encoding_format",
)
_ROW_LIMIT_PATTERN = re.compile(r"should not be larger than (\d{1,9})(?!\d)")
_TOKEN_LIMIT_PATTERN = re.compile(r"[Rr]ange of input length should be \[\d+, ?(\d{1,9})\]")

_MAX_CODE_CHARACTERS = 100
_ACTIONS_BY_STATUS: Mapping[int, tuple[type[ServiceError], Action]] = {
    400: (BadRequestError, Action.BISECT),
    401: (AuthenticationError, Action.ABORT),
    403: (AuthenticationError, Action.ABORT),
    413: (BadRequestError, Action.BISECT),
    408: (ServerError, Action.RETRY),
    429: (RateLimitError, Action.BACK_OFF),
}
_NETWORK_STATUSES = frozenset({401, 403, 407, 511})
"""Statuses that come from a firewall, a proxy or a login page if the body is a page."""
_SERVER_ERROR_STATUS_START = 500
_MESSAGE_BY_STATUS_CLASS = {3: "a redirect, which is not followed: it would send the key to another address"}


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """The content of an error reply, from either protocol's format."""

    status: int
    code: str | None = None
    message: str = ""
    request_id: str | None = None
    retry_after: float | None = None
    is_page: bool = False
    """Whether the body is a page or text of something in front of the service."""


def service_error(reply: ErrorReply, redact: Callable[[str], str] = printable) -> ServiceError:
    """The exception for an error reply, with the action to take; `redact` makes the service's text safe to show."""
    kind, action = _classify(reply)
    limit = None
    if action is Action.BISECT:
        if match := _ROW_LIMIT_PATTERN.search(reply.message):
            action, limit = Action.REDUCE_BATCH, int(match[1])
        elif match := _TOKEN_LIMIT_PATTERN.search(reply.message):
            action, limit = Action.TRUNCATE, int(match[1])
        elif reply.code != "DataInspectionFailed" and any(p in reply.message for p in _WHOLE_REQUEST_MESSAGES):
            action = Action.ABORT
    service_message = redact(reply.message)
    default = _MESSAGE_BY_STATUS_CLASS.get(reply.status // 100, "the reply says nothing more")
    code = reply.code and redact(reply.code)[:_MAX_CODE_CHARACTERS]
    summary = f"{reply.status} {code or '(no code)'}: {service_message or default}"
    error = kind(
        f"the service answered {summary}",
        status=reply.status,
        code=code,
        request_id=reply.request_id and redact(reply.request_id)[:_MAX_CODE_CHARACTERS],
        retry_after=reply.retry_after,
        action=action,
        limit=limit,
    )
    error.summary, error.service_message = summary, service_message
    return error


def _classify(reply: ErrorReply) -> tuple[type[ServiceError], Action]:
    if any(part in reply.message for part in _BILLING_MESSAGES):
        return QuotaError, Action.ABORT
    if reply.is_page and reply.status in _NETWORK_STATUSES:
        return ServiceError, Action.ABORT  # not about the key
    by_code = _look_up_code(reply.code)
    by_status = _ACTIONS_BY_STATUS.get(reply.status)
    if by_code is not None and by_code[0] is ServerError and by_status is not None:
        # "InternalError.Algo" with a 400 is about the request.
        by_code = None
    if known := by_code or by_status:
        return known
    if reply.status >= _SERVER_ERROR_STATUS_START:
        return ServerError, Action.RETRY
    return BadRequestError, Action.ABORT


def _look_up_code(code: str | None) -> tuple[type[ServiceError], Action] | None:
    while code:
        if code in ACTIONS_BY_CODE:
            return ACTIONS_BY_CODE[code]
        code = code.rpartition(".")[0]
    return None
