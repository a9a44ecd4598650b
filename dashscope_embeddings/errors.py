"""The exceptions of this package, and the actions that `_core.exchange` takes on an error.

    DashScopeError
    ├── InvalidInput             an invalid text or setting; nothing was sent, nothing was billed
    ├── ServiceError             the service answered with an error: status, code, request_id
    │   ├── AuthenticationError    wrong key, wrong region, no access to the model or workspace
    │   ├── QuotaError             a matter of money: free quota used up, bill overdue, model not purchased
    │   ├── RateLimitError         throttled for longer than the client waits
    │   ├── BadRequestError        the request is invalid, a retry cannot help
    │   └── ServerError            the service failed on every attempt
    ├── ConnectionFailed         no answer: refused, reset, timed out
    └── BadReply                 the answer breaks the contract: wrong count, width, order or numbers

An exception from a call over many texts carries the vectors that arrived (`partial`), names the other texts (`failed`),
and holds those that were refused (`refused`).
None of these derives from ValueError: pydantic would wrap them and print the input, key included.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, TypeVar

from typing_extensions import Self


class Action(enum.Enum):
    """What `_core.exchange` does on an error."""

    RETRY = "send the same request again, after a pause"
    BACK_OFF = "send the same request again, when the limiter allows it"
    REDUCE_BATCH = "too many rows: send the same texts in smaller requests"
    TRUNCATE = "a text is too long: find it, and shorten it if `long_text` allows that"
    BISECT = "the service refuses some texts or all of them: find out which"
    ABORT = "no such request will succeed: end the call"


_MESSAGE_FIELDS = frozenset({"message", "request_id"})


class DashScopeError(Exception):
    """Base of all exceptions of this package.

    Messages never contain texts; keys appear nowhere. `args` and `repr` contain what `str` does, so that code that
    rebuilds an exception as `type(error)(*error.args)`, such as Celery's JSON results, keeps its type and message.
    """

    __slots__ = ("refused",)  # beside `__dict__`, which is what gets pickled and logged

    action = Action.ABORT

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.summary = ""
        """`message` without the host, the indices of texts and the hints; empty where it was never shorter."""
        self.request_id = request_id
        """The service's id of the request, for its support; None if there was no reply."""
        self._base_message: str | None = None
        self.partial: dict[int, Any] = {}
        """Index of the text → its vectors, in the requested shape: all that arrived, and was billed."""
        self.failed: list[int] = []
        """Indices, in the caller's input, of the texts without vectors."""
        self.reasons: dict[int, str] = {}
        """Index → message, for texts that were refused individually."""
        self.refused: dict[int, Any] = {}
        """Index → the caller's text, for the texts in `reasons`. Never in a message, log or pickle."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # Only for these two: classes that wrap an error, as Ray's do, have args and attributes of their own.
        if name in _MESSAGE_FIELDS and self.__dict__.keys() >= _MESSAGE_FIELDS:
            self.args = (str(self),)

    def __str__(self) -> str:
        if self.request_id is None:
            return self.message
        return f"{self.message} (request id {self.request_id})"

    def add_hint(self, hint: str) -> None:
        """Appends a sentence on what to do."""
        message = self.message.rstrip(". ")
        self.message = f"{message}{'' if message.endswith(('!', '?')) else '.'} {hint}"

    def replace_hint(self, hint: str, better: str) -> None:
        """Replaces a hint that does not fit the caller."""
        self._base_message = (self._base_message or self.message).replace(hint, better)
        self.message = self.message.replace(hint, better)

    def set_affected(self, indices: Sequence[int], total: int) -> None:
        """Prefixes the message with the affected texts, in place of an earlier prefix."""
        self.set_subject(f"{describe_indices(indices)} of {total}")

    def set_subject(self, subject: str) -> None:
        """Prefixes the message with its subject, in place of an earlier prefix."""
        self._base_message = self._base_message or self.message
        self.message = f"{subject}: {self._base_message}"

    def copy(self) -> Self:
        """A copy for another caller, with its own traceback and partial results."""
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
    """A text or a setting is invalid; nothing was sent.

    Correct what the message names.
    """


class ServiceError(DashScopeError):
    """The service answered with an error."""

    def __init__(  # noqa: PLR0913 - one argument for each field of an error reply
        self,
        message: str,
        *,
        status: int = 0,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        action: Action = Action.ABORT,
        limit: int | None = None,
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.status = status
        """HTTP status; 0 if the exception was rebuilt from its message alone, as by Celery's JSON results."""
        self.code = code
        """The service's error code, such as `InvalidApiKey`; None if the reply had none."""
        self.retry_after = retry_after
        """Seconds that the service asked to wait."""
        self.action = action
        self.limit = limit
        """The limit that the message names: rows per request, or tokens per text."""
        self.service_message = ""
        """The service's own words, without keys and texts that they repeat; empty if the reply had none."""


class AuthenticationError(ServiceError):
    """Wrong key, other region, or no access to the model or workspace.

    Pass the key's region; `dashscope-embeddings check` finds it.
    """


class QuotaError(ServiceError):
    """Free quota used up, bill overdue, or model not purchased.

    Pay the bill or activate the model in the console; waiting does not help.
    """


class RateLimitError(ServiceError):
    """Throttled for longer than the client waits.

    Send less at once, or have the quota raised; others may share it.
    """


class BadRequestError(ServiceError):
    """The service refuses this request or a text.

    Leave out `failed`; the other vectors are in `partial`.
    """


class ServerError(ServiceError):
    """The service failed on every attempt.

    Embed `failed` later; if it goes on, report `request_id` to Alibaba Cloud.
    """


class ConnectionFailed(DashScopeError):  # noqa: N818 - the name is the event
    """No answer: host not reached, connection broken or stalled.

    Check network and proxy, then embed `failed`.
    """

    action = Action.RETRY


class Cancelled(ConnectionFailed):
    """A request was not sent, because another request of the call had failed. Never raised to the caller."""

    action = Action.ABORT


class BadReply(DashScopeError):  # noqa: N818 - the name is the event
    """Rows missing, duplicate or of the wrong width, or numbers not finite.

    Look for a gateway that changes replies, then embed `failed`.
    """

    action = Action.RETRY
    billed_tokens: int | None = None
    """Tokens that the reply says it was billed; None: it does not say."""


def describe_indices(indices: Sequence[int]) -> str:
    """Names up to five texts by index: "text 3" or "texts 3, 8, 9, 12, 40 and 7 more"."""
    shown = 5
    names = ", ".join(str(i) for i in indices[:shown])
    more = f" and {len(indices) - shown} more" if len(indices) > shown else ""
    return f"text {names}" if len(indices) == 1 else f"texts {names}{more}"
