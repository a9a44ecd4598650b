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
from collections.abc import Sequence
from typing import Any, TypeVar

from typing_extensions import Self


class Action(enum.Enum):
    """What the flow does about a refusal."""

    RETRY = "the same request again, after a pause"
    BACK_OFF = "the same request again, when the limiter says so"
    REDUCE_BATCH = "too many rows: the same texts in smaller requests"
    TRUNCATE = "a text is too long: find it; shorten it where that was asked for"
    BISECT = "the service refuses a text, or all: find out which"
    ABORT = "no request like this one will be taken: give up the job"


_MESSAGE_FIELDS = frozenset({"message", "request_id"})


class DashScopeError(Exception):
    """Base of all errors of this package.

    Texts never appear in messages, keys never appear anywhere. `args` and `repr` say what `str` says, so that what
    rebuilds an exception as `type(error)(*error.args)`, as Celery's JSON results do, keeps its type and its words.
    """

    __slots__ = ("refused",)  # beside `__dict__`, which is what gets pickled and logged

    action = Action.ABORT

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.summary = ""
        """`message` without the host, the indices of texts and the hints; empty where it was never shorter."""
        self.request_id = request_id
        """The service's id of the request, for its support; None where no reply came."""
        self._base_message: str | None = None
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
        if name in _MESSAGE_FIELDS and self.__dict__.keys() >= _MESSAGE_FIELDS:
            self.args = (str(self),)

    def __str__(self) -> str:
        if self.request_id is None:
            return self.message
        return f"{self.message} (request id {self.request_id})"

    def add_hint(self, hint: str) -> None:
        """Adds a sentence on what to do."""
        said = self.message.rstrip(". ")
        self.message = f"{said}{'' if said.endswith(('!', '?')) else '.'} {hint}"

    def set_affected(self, indices: Sequence[int], total: int) -> None:
        """Names the texts that this is about, in place of any that were named before."""
        self.set_subject(f"{describe_indices(indices)} of {total}")

    def set_subject(self, subject: str) -> None:
        """Says what this is about, in place of what was said before."""
        self._base_message = self._base_message or self.message
        self.message = f"{subject}: {self._base_message}"

    def copy(self) -> Self:
        """The same error once more, for another caller: tracebacks and partial results stay apart."""
        return _rebuild(type(self), self.message, {**self.__dict__, "partial": {}, "failed": [], "reasons": {}})

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with str(self) alone, which loses or rejects the keyword arguments.
        return _rebuild, (type(self), self.message, self.__dict__)


_ErrorT = TypeVar("_ErrorT", bound="DashScopeError")


def _rebuild(cls: type[_ErrorT], message: str, state: dict[str, Any]) -> _ErrorT:
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
        verdict: Action = Action.ABORT,
        limit: int | None = None,
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.status = status
        """HTTP status; 0 where only the message of an error was carried here, as by Celery's JSON results."""
        self.code = code
        """The service's own code, such as `InvalidApiKey`; None where the reply had none."""
        self.retry_after = retry_after
        """Seconds that the service asked to wait."""
        self.action = verdict
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

    action = Action.RETRY


class Cancelled(ConnectionFailed):
    """A request that was not sent, because the job had failed elsewhere. Never the error that is raised."""

    action = Action.ABORT


class BadReply(DashScopeError):  # noqa: N818 - the name is the event
    """An answer that cannot be believed: rows missing, doubled or of the wrong width, numbers not finite."""

    action = Action.RETRY


def describe_indices(indices: Sequence[int]) -> str:
    """Names up to five texts by index: "text 3" or "texts 3, 8, 9, 12, 40 and 7 more"."""
    shown = 5
    names = ", ".join(str(i) for i in indices[:shown])
    more = f" and {len(indices) - shown} more" if len(indices) > shown else ""
    return f"text {names}" if len(indices) == 1 else f"texts {names}{more}"
