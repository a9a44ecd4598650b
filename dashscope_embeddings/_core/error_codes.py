"""The service's refusals → errors: which class a code or status stands for, what to do about it, and what to advise."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dashscope_embeddings._core.redaction import printable
from dashscope_embeddings.errors import (
    AuthenticationError,
    BadReply,
    BadRequestError,
    ConnectionFailed,
    DashScopeError,
    QuotaError,
    RateLimitError,
    ServerError,
    ServiceError,
    Verdict,
)

# Sources, seen 2026-11-20: the vendor's pages (error codes, messages, best practices for rate limits) and
# recorded replies. A code is looked up whole, then by its dotted beginnings.
CODES: Mapping[str, tuple[type[ServiceError], Verdict]] = {
    "InvalidApiKey": (AuthenticationError, Verdict.STOP),
    "invalid_api_key": (AuthenticationError, Verdict.STOP),
    "NOT AUTHORIZED": (AuthenticationError, Verdict.STOP),
    "AccessDenied": (AuthenticationError, Verdict.STOP),
    "access_denied": (AuthenticationError, Verdict.STOP),
    "Model.AccessDenied": (AuthenticationError, Verdict.STOP),
    "Workspace.AccessDenied": (AuthenticationError, Verdict.STOP),
    "AccessDenied.Unpurchased": (QuotaError, Verdict.STOP),
    "AllocationQuota.FreeTierOnly": (QuotaError, Verdict.STOP),
    "Arrearage": (QuotaError, Verdict.STOP),
    "CommodityNotPurchased": (QuotaError, Verdict.STOP),
    "PostpaidBillOverdue": (QuotaError, Verdict.STOP),
    "PrepaidBillOverdue": (QuotaError, Verdict.STOP),
    "LimitRequests": (RateLimitError, Verdict.THROTTLE),
    "Throttling": (RateLimitError, Verdict.THROTTLE),
    # A tokens-a-minute limit here, and no matter of money as the same name is at OpenAI: the vendor's page
    # on rate limits, and a third party's 188 of 188 that went through later.
    "insufficient_quota": (RateLimitError, Verdict.THROTTLE),
    "limit_burst_rate": (RateLimitError, Verdict.THROTTLE),
    "limit_requests": (RateLimitError, Verdict.THROTTLE),
    "BadRequest": (BadRequestError, Verdict.STOP),
    "BadRequest.TooLarge": (BadRequestError, Verdict.SPLIT),
    "DataInspectionFailed": (BadRequestError, Verdict.SPLIT),
    "data_inspection_failed": (BadRequestError, Verdict.SPLIT),
    "InvalidParameter": (BadRequestError, Verdict.SPLIT),
    "invalid_parameter_error": (BadRequestError, Verdict.SPLIT),
    "ModelNotFound": (BadRequestError, Verdict.STOP),
    "model_not_found": (BadRequestError, Verdict.STOP),
    "model_not_supported": (BadRequestError, Verdict.STOP),
    "InternalError": (ServerError, Verdict.RETRY),
    "internal_error": (ServerError, Verdict.RETRY),
    "InternalError.Algo.InvalidParameter": (BadRequestError, Verdict.SPLIT),
}

# Where the message decides, it does so by a part of it: wording and links around it have changed before.
_MONEY = ("Free allocated quota exceeded", "free tier of the model has been exhausted")
_WHOLE_REQUEST = (
    "dimension",
    "Model not exist",
    "Model can not be found",
    "does not exist or you do not have access",
    "url error",
    "text_type",
    "output_type",
    "encoding_format",
)
_TOO_MANY_ROWS = re.compile(r"should not be larger than (\d{1,9})(?!\d)")
_TOO_LONG = re.compile(r"[Rr]ange of input length should be \[\d+, ?(\d{1,9})\]")

_LONGEST_CODE = 100
_BY_STATUS: Mapping[int, tuple[type[ServiceError], Verdict]] = {
    400: (BadRequestError, Verdict.SPLIT),
    401: (AuthenticationError, Verdict.STOP),
    403: (AuthenticationError, Verdict.STOP),
    413: (BadRequestError, Verdict.SPLIT),
    408: (ServerError, Verdict.RETRY),
    429: (RateLimitError, Verdict.THROTTLE),
}
_OF_A_NETWORK = frozenset({401, 403, 407, 511})
"""Refusals of firewalls, proxies and login pages, where a page comes with them."""
_SERVER_STATUS = 500
_SILENT = {3: "a redirect, which is not followed: it would take the key elsewhere"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a refusing reply says, whichever envelope it came in."""

    status: int
    code: str | None = None
    message: str = ""
    request_id: str | None = None
    retry_after: float | None = None
    page: bool = False
    """Whether it is a page for people: not the service's words, but of something before it."""


def from_reply(refusal: Refusal, hide: Callable[[str], str] = str) -> ServiceError:
    """The error that a refusing reply stands for, with the verdict on what to do about it.

    `hide` takes out of the service's words what must not be shown.
    """
    kind, verdict = _classify(refusal)
    limit = None
    if verdict is Verdict.SPLIT:
        if found := _TOO_MANY_ROWS.search(refusal.message):
            verdict, limit = Verdict.CUT, int(found[1])
        elif found := _TOO_LONG.search(refusal.message):
            verdict, limit = Verdict.SHORTEN, int(found[1])
        elif refusal.code != "DataInspectionFailed" and any(p in refusal.message for p in _WHOLE_REQUEST):
            verdict = Verdict.STOP
    words = printable(hide(refusal.message)) or _SILENT.get(refusal.status // 100, "the reply says nothing more")
    code = refusal.code and printable(hide(refusal.code), _LONGEST_CODE)
    return kind(
        f"the service answered {refusal.status} {code or '(no code)'}: {words}",
        status=refusal.status,
        code=code,
        request_id=refusal.request_id and printable(hide(refusal.request_id), _LONGEST_CODE),
        retry_after=refusal.retry_after,
        verdict=verdict,
        limit=limit,
    )


def _classify(refusal: Refusal) -> tuple[type[ServiceError], Verdict]:
    if any(part in refusal.message for part in _MONEY):
        return QuotaError, Verdict.STOP
    if refusal.page and refusal.status in _OF_A_NETWORK:
        return ServiceError, Verdict.STOP  # says nothing about the key
    by_code = _by_code(refusal.code)
    by_status = _BY_STATUS.get(refusal.status)
    if by_code is not None and by_code[0] is ServerError and by_status is not None:
        # "InternalError.Algo" also comes with a 400, and then means the request.
        by_code = None
    if found := by_code or by_status:
        return found
    if refusal.status >= _SERVER_STATUS:
        return ServerError, Verdict.RETRY
    return BadRequestError, Verdict.STOP


def _by_code(code: str | None) -> tuple[type[ServiceError], Verdict] | None:
    while code:
        if code in CODES:
            return CODES[code]
        code = code.rpartition(".")[0]
    return None


def remedy(error: DashScopeError) -> str | None:
    """What its reader can do; None: the message says so already, or nobody knows."""
    if isinstance(error, BadRequestError):
        return _LEAVE_OUT if error.verdict is Verdict.SPLIT else None
    if isinstance(error, ConnectionFailed) and error.verdict is Verdict.STOP:
        return _AGAIN  # the message says what to mend
    return next((words for kind, words in _REMEDIES.items() if isinstance(error, kind)), None)


_LEAVE_OUT = "Leave the text out, or change it: vectors of the others are in error.partial"
_AGAIN = "Ask again for the texts in error.failed; what arrived is in error.partial"
_REMEDIES: Mapping[type[DashScopeError], str] = {
    QuotaError: "Waiting does not help: look at the bill, the free quota and the models purchased in the console",
    RateLimitError: "Ask for less at once (max_concurrency), state the quota (requests_per_minute) or have it raised",
    ServerError: _AGAIN,
    ConnectionFailed: f"Are the address, the network and HTTPS_PROXY right? {_AGAIN}",
    BadReply: f"Something on the way may change replies. {_AGAIN}",
}
