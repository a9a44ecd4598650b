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

# Sources: the vendor's pages (error codes, messages, best practices for rate limits) and recorded replies, seen
# 2026-11-20; marked with *: third parties' code that cites the vendor's page of errors, seen 2026-11-27.
# A code is looked up in any spelling, then without its last dotted part, and so on.
ACTIONS_BY_CODE: Mapping[str, tuple[type[ServiceError], Action]] = {
    "InvalidApiKey": (AuthenticationError, Action.ABORT),
    "NOT AUTHORIZED": (AuthenticationError, Action.ABORT),
    "AccessDenied": (AuthenticationError, Action.ABORT),
    "App.AccessDenied": (AuthenticationError, Action.ABORT),  # *
    "Endpoint.AccessDenied": (AuthenticationError, Action.ABORT),  # *
    "Model.AccessDenied": (AuthenticationError, Action.ABORT),
    "Workspace.AccessDenied": (AuthenticationError, Action.ABORT),
    "WorkSpaceNotFound": (BadRequestError, Action.ABORT),  # *
    "AccessDenied.Unpurchased": (QuotaError, Action.ABORT),
    "AllocationQuota.FreeTierOnly": (QuotaError, Action.ABORT),
    "Arrearage": (QuotaError, Action.ABORT),
    "BudgetLimitExceeded": (QuotaError, Action.ABORT),  # *
    "CommodityNotPurchased": (QuotaError, Action.ABORT),
    "PostpaidBillOverdue": (QuotaError, Action.ABORT),
    "PrepaidBillOverdue": (QuotaError, Action.ABORT),
    "LimitRequests": (RateLimitError, Action.BACK_OFF),
    "Throttling": (RateLimitError, Action.BACK_OFF),
    # Of the vendor's servers for language models (rtp-llm, 2026-09-18); not known to come from embeddings.
    "ServiceOverloaded": (RateLimitError, Action.BACK_OFF),
    "ResourceExhausted": (RateLimitError, Action.BACK_OFF),
    # Here a limit of tokens per minute, not of money as at OpenAI: the vendor's page on rate limits says so, and
    # in a third party's log 188 of 188 such requests succeeded later.
    "insufficient_quota": (RateLimitError, Action.BACK_OFF),
    "limit_burst_rate": (RateLimitError, Action.BACK_OFF),
    "BadRequest": (BadRequestError, Action.ABORT),
    "BadRequest.TooLarge": (BadRequestError, Action.BISECT),
    "DataInspectionFailed": (BadRequestError, Action.BISECT),
    "InvalidParameter": (BadRequestError, Action.BISECT),
    "invalid_parameter_error": (BadRequestError, Action.BISECT),
    "ModelNotFound": (BadRequestError, Action.ABORT),
    "model_not_supported": (BadRequestError, Action.ABORT),
    "InternalError": (ServerError, Action.RETRY),
    "InternalError.Algo.InvalidParameter": (BadRequestError, Action.BISECT),
    "GatewayTimeout": (ServerError, Action.RETRY),
    "ModelServiceFailed": (ServerError, Action.RETRY),
    "ModelUnavailable": (ServerError, Action.RETRY),
    "RequestTimeOut": (ServerError, Action.RETRY),
    "ResponseTimeout": (ServerError, Action.RETRY),
    "ServiceUnavailable": (ServerError, Action.RETRY),
    "SystemError": (ServerError, Action.RETRY),
}


def normalize_code(code: str) -> str:
    """The same for all spellings of a code: `InvalidApiKey`, `invalid_api_key`, `Invalid-Api-Key`."""
    return re.sub(r"[ ._-]", "", code).lower()


_ACTIONS_BY_NORMALIZED_CODE = {normalize_code(code): row for code, row in ACTIONS_BY_CODE.items()}
_FORBIDDEN_QUOTA = "allocationquota"
"""At 403 all codes of this family are about free quota that is used up (*); at 429 they may be about the rate."""
_FORBIDDEN = 403

# Messages are matched by a part: the wording and the links around it have changed before.
_BILLING_MESSAGES = (
    "Free allocated quota exceeded",
    "free tier of the model has been exhausted",
    "exceeding your allocated credits limit",  # third party's code, seen 2026-11-27
)
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
    """0: unknown, as of a line of a Batch file. Then the code decides, and unknown codes are retried."""
    code: str | None = None
    message: str = ""
    request_id: str | None = None
    retry_after: float | None = None
    should_retry: bool | None = None
    """What the header `x-should-retry` says; the vendor's SDK 2.0 obeys it (seen 2026-11-27)."""
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
        elif not is_code(reply.code, "DataInspectionFailed") and any(
            part in reply.message for part in _WHOLE_REQUEST_MESSAGES
        ):
            action = Action.ABORT
    service_message = redact(reply.message)
    default = _MESSAGE_BY_STATUS_CLASS.get(reply.status // 100, "the reply says nothing more")
    code = reply.code and redact(reply.code)[:_MAX_CODE_CHARACTERS]
    status = f"{reply.status} " if reply.status else ""
    summary = f"{status}{code or '(no code)'}: {service_message or default}"
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
    by_code = _look_up_code(reply.code, reply.status)
    by_status = _ACTIONS_BY_STATUS.get(reply.status)
    if by_code is not None and by_code[0] is ServerError and by_status is not None:
        # "InternalError.Algo" with a 400 is about the request.
        by_code = None
    known = by_code or by_status
    if known is None:
        is_server_error = not reply.status or reply.status >= _SERVER_ERROR_STATUS_START
        known = (ServerError, Action.RETRY) if is_server_error else (BadRequestError, Action.ABORT)
    kind, action = known
    if reply.should_retry is False and action in {Action.RETRY, Action.BACK_OFF}:
        return kind, Action.ABORT
    if reply.should_retry and by_code is None and action is Action.ABORT:
        return kind, Action.RETRY
    return known


def is_code(code: str | None, name: str) -> bool:
    """Whether a code is the one of this name, in any spelling."""
    return code is not None and normalize_code(code) == normalize_code(name)


def _look_up_code(code: str | None, status: int) -> tuple[type[ServiceError], Action] | None:
    while code:
        name = normalize_code(code)
        if name in _ACTIONS_BY_NORMALIZED_CODE:
            return _ACTIONS_BY_NORMALIZED_CODE[name]
        if name == _FORBIDDEN_QUOTA and status == _FORBIDDEN:
            return QuotaError, Action.ABORT
        code = code.rpartition(".")[0]
    return None
