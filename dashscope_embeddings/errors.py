"""Everything that can go wrong, and what becomes of it.

    DashScopeError
    ├── InvalidInput             we refused a text or a setting; nothing was sent, nothing spent
    ├── ServiceError             the service refused: status, code, request_id
    │   ├── AuthenticationError    wrong key, wrong region, no access to the model or workspace
    │   ├── QuotaError             only money helps: free quota gone, overdue, not purchased
    │   ├── RateLimitError         throttled for longer than we were ready to wait
    │   ├── BadRequestError        it will not take this request, however often it is sent
    │   └── ServerError            it failed, again and again
    ├── ConnectionFailed         no answer: refused, reset, timed out
    └── BadReply                 an answer that breaks the contract: wrong count, width, order, numbers

Raised from a job over many texts, an error carries what did arrive (`partial`), names the rest (`failed`), and holds
the texts that were refused (`refused`).
None of these derives from ValueError: pydantic would wrap them and print the input, key included.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from typing_extensions import Self

from dashscope_embeddings.redaction import printable


class Verdict(enum.Enum):
    """What the flow does about a refusal."""

    RETRY = "the same request again, after a pause"
    THROTTLE = "the same request again, when the limiter says so"
    CUT = "too many rows: the same texts in smaller requests"
    SHORTEN = "a text is too long: find it; shorten it where that was asked for"
    SPLIT = "the service refuses a text, or all: find out which"
    STOP = "no request like this one will be taken: give up the job"


_SAID = frozenset({"message", "request_id"})


class DashScopeError(Exception):
    """Base of all errors of this package.

    Texts never appear in messages, keys never appear anywhere. `args` and `repr` say what `str` says, so that what
    rebuilds an exception as `type(error)(*error.args)`, as Celery's JSON results do, keeps its type and its words.
    """

    __slots__ = ("refused",)  # beside `__dict__`, which is what gets pickled and logged

    verdict = Verdict.STOP

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        """The service's id of the request, for its support; None where no reply came."""
        self._detail: str | None = None
        self.partial: dict[int, Any] = {}
        """Index of the text → its vectors, in the shape that was asked: all that arrived and was paid for."""
        self.failed: list[int] = []
        """Indices, in the caller's input, of the texts without vectors."""
        self.reasons: dict[int, str] = {}
        """Index → why, for texts that were refused for a reason of their own."""
        self.refused: dict[int, Any] = {}
        """Index → text, as it was given, of the texts in `reasons`. Stays in this process: it is in no message, log or
        pickle."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # Of these alone: classes that wrap an error, as Ray's do, have args and attributes of their own.
        if name in _SAID and self.__dict__.keys() >= _SAID:
            self.args = (str(self),)

    def __str__(self) -> str:
        if self.request_id is None:
            return self.message
        return f"{self.message} (request id {self.request_id})"

    def advise(self, what: str) -> None:
        """Adds a sentence on what to do."""
        said = self.message.rstrip(". ")
        self.message = f"{said}{'' if said.endswith(('!', '?')) else '.'} {what}"

    def about(self, indices: Sequence[int], total: int) -> None:
        """Names the texts that this is about, in place of any that were named before."""
        self.begin_with(f"{describe(indices)} of {total}")

    def begin_with(self, what: str) -> None:
        """Says what this is about, in place of what was said before."""
        self._detail = self._detail or self.message
        self.message = f"{what}: {self._detail}"

    def copy(self) -> Self:
        """The same error once more, for another caller: tracebacks and partial results stay apart."""
        return _rebuild(type(self), self.message, {**self.__dict__, "partial": {}, "failed": [], "reasons": {}})

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with str(self) alone, which loses or rejects the keyword arguments.
        return _rebuild, (type(self), self.message, self.__dict__)


_E = TypeVar("_E", bound="DashScopeError")


def _rebuild(cls: type[_E], message: str, state: dict[str, Any]) -> _E:
    error = cls.__new__(cls, message)
    error.__dict__.update(state)
    error.message = message
    error.refused = {}
    return error


class InvalidInput(DashScopeError):  # noqa: N818 - the name says what is wrong, as BadReply does
    """A text or a setting that cannot work; found before anything was sent."""


class ServiceError(DashScopeError):
    """The service answered with a refusal."""

    def __init__(  # noqa: PLR0913 - one argument for each fact of a refusal
        self,
        message: str,
        *,
        status: int = 0,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        verdict: Verdict = Verdict.STOP,
        limit: int | None = None,
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.status = status
        """HTTP status; 0 where only the message of an error was carried here, as by Celery's JSON results."""
        self.code = code
        """The service's own code, such as `InvalidApiKey`; None where the reply had none."""
        self.retry_after = retry_after
        """Seconds that the service asked to wait."""
        self.verdict = verdict
        self.limit = limit
        """The limit that the message names: rows a request, or tokens a text."""


class AuthenticationError(ServiceError):
    """The key is wrong, belongs to another region, or may not use this model or workspace."""


class QuotaError(ServiceError):
    """Waiting does not help: the free quota is used up, a bill is overdue, or the model is not purchased."""


class RateLimitError(ServiceError):
    """Throttled for longer than a request is ready to wait."""


class BadRequestError(ServiceError):
    """The service will not take this request or this text."""


class ServerError(ServiceError):
    """The service failed on every try."""


class ConnectionFailed(DashScopeError):  # noqa: N818 - the name is the event
    """No answer came on any try: the host was not reached, or the connection broke or stalled."""

    verdict = Verdict.RETRY


class GivenUp(ConnectionFailed):
    """A request that was not sent, because the job had failed elsewhere. Never the error that is raised."""

    verdict = Verdict.STOP


class BadReply(DashScopeError):  # noqa: N818 - the name is the event
    """An answer that cannot be believed: rows missing, doubled or of the wrong width, numbers not finite."""

    verdict = Verdict.RETRY


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


def describe(indices: Sequence[int]) -> str:
    """Names up to five texts by index: "text 3" or "texts 3, 8, 9, 12, 40 and 7 more"."""
    shown = 5
    names = ", ".join(str(i) for i in indices[:shown])
    more = f" and {len(indices) - shown} more" if len(indices) > shown else ""
    return f"text {names}" if len(indices) == 1 else f"texts {names}{more}"
