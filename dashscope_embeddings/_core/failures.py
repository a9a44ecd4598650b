"""Turns a missing reply, an error reply or a broken reply into an exception that says what to try, and when."""

from __future__ import annotations

import difflib
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from dashscope_embeddings import catalogue
from dashscope_embeddings._core.error_codes import UNKNOWN_MODEL_MESSAGES, ErrorReply, is_code, service_error
from dashscope_embeddings._core.protocol import Reply
from dashscope_embeddings._core.redaction import Redactor, printable
from dashscope_embeddings.errors import (
    Action,
    AuthenticationError,
    BadReply,
    BadRequestError,
    Cancelled,
    ConnectionFailed,
    DashScopeError,
    QuotaError,
    RateLimitError,
    ServerError,
    ServiceError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dashscope_embeddings._core.steps import StepResult

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failure:
    """There is no usable reply."""

    reason: str
    """Why, without texts or keys."""
    is_retryable: bool = True
    """False: a retry cannot help, as with a malformed URL."""
    is_unreadable_reply: bool = False
    """Whether a reply came that cannot be decoded."""


CANCELLED = Failure("not sent, because the call had failed or was cancelled", is_retryable=False)
"""A driver's answer to every step after the call has ended."""


@dataclass(frozen=True, slots=True)
class ErrorContext:
    """Host, endpoint and model of a request, for error messages."""

    root_url: str = ""
    """As `Address.root_url`."""
    path: str = ""
    """Path of the embeddings endpoint; empty for any other endpoint."""
    model: str = ""
    key_hint: str = ""
    """What to check when the key is refused: a key belongs to one region."""
    redactor: Redactor = field(default_factory=Redactor)

    @property
    def host(self) -> str:
        """Without scheme and path."""
        return urlsplit(self.root_url).netloc or self.root_url


def error_from_failure(failure: Failure, context: ErrorContext) -> DashScopeError:
    """The exception for a missing or unreadable reply."""
    if failure is CANCELLED:
        return Cancelled(CANCELLED.reason)
    reason = context.redactor.redact_http_error(failure.reason)
    error: DashScopeError
    if failure.is_unreadable_reply:
        error = BadReply(f"the reply cannot be read: {reason}")
        error.summary = error.message
    else:
        error = ConnectionFailed(f"no answer from {context.host}: {reason}")
        error.summary = f"no answer: {reason}"
    error.action = Action.RETRY if failure.is_retryable else Action.ABORT
    return error


def interpret(
    answer: StepResult, read: Callable[[Reply], T | ErrorReply], context: ErrorContext, texts: Sequence[str] = ()
) -> T | DashScopeError:
    """What `read` makes of a driver's answer to `Send`, or the error that the answer stands for."""
    if isinstance(answer, Failure):
        return error_from_failure(answer, context)
    if not isinstance(answer, Reply):
        raise TypeError(f"a driver must answer Send with Reply or Failure, not {type(answer).__name__}")
    try:
        content = read(answer)
    except BadReply as error:
        return redact_bad_reply(error, context, texts)
    return error_from_reply(content, context, texts) if isinstance(content, ErrorReply) else content


def redact_bad_reply(error: BadReply, context: ErrorContext, texts: Sequence[str]) -> BadReply:
    """Removes parts of the request that a broken reply repeats: from the error, and from variables in its traceback."""
    error.message = error.summary = context.redactor(error.message, texts)
    error.request_id = context.redactor.redact_request_id(error.request_id, texts)
    error.__context__ = None
    return error.with_traceback(None)


def error_from_reply(reply: ErrorReply, context: ErrorContext, texts: Sequence[str] = ()) -> ServiceError:
    """The exception for an error reply, with a hint, and without keys and texts that the service repeats."""
    error = service_error(reply, lambda message: context.redactor(message, texts))
    error.request_id = context.redactor.redact_request_id(reply.request_id, texts)
    if isinstance(error, AuthenticationError):
        error.add_hint(context.key_hint)
    elif (hint := _hint_for_request(error, reply, context)) is not None:
        error.add_hint(hint)
    return error


# --- pauses before a retry, in seconds ---------------------------------------------------------------------

_BASE_DELAY_SECONDS = 0.5
_MAX_DELAY_SECONDS = 20.0
_MAX_DOUBLINGS = 16
"""The pause is at its maximum long before; 2.0 ** 1024 would overflow."""
_MAX_RETRY_AFTER_SECONDS = 60.0


def backoff_seconds(failures: int, retry_after: float | None) -> float:
    """Exponential backoff with full jitter (https://aws.amazon.com/builders-library/timeouts-retries-and-backoff)."""
    ceiling = min(_MAX_DELAY_SECONDS, _BASE_DELAY_SECONDS * 2.0 ** min(failures, _MAX_DOUBLINGS))
    return max(retry_after or 0.0, random.uniform(0.0, ceiling))  # noqa: S311 - spreads load, guards nothing


def retry_after_seconds(error: DashScopeError) -> float | None:
    """Seconds that the service asked to wait, at most a minute; None: it did not ask."""
    seconds = error.retry_after if isinstance(error, ServiceError) else None
    return None if seconds is None else min(seconds, _MAX_RETRY_AFTER_SECONDS)


# --- hints -------------------------------------------------------------------------------------------------


def hint_for(error: DashScopeError) -> str | None:
    """What the user can do about the error that ends a call; None: its message says so, or nothing is known."""
    if isinstance(error, BadRequestError):
        return _LEAVE_OUT_HINT if error.action is Action.BISECT else None
    if isinstance(error, ConnectionFailed) and error.action is Action.ABORT:
        return ASK_AGAIN_HINT  # the message says what to correct
    return next((hint for kind, hint in _HINTS.items() if isinstance(error, kind)), None)


_LEAVE_OUT_HINT = "Leave the text out, or change it: vectors of the others are in error.partial"
ASK_AGAIN_HINT = "Ask again for the texts in error.failed; what arrived is in error.partial"
_HINTS: Mapping[type[DashScopeError], str] = {
    QuotaError: "Waiting does not help: look at the bill, the free quota and the models purchased in the console",
    RateLimitError: (
        "Send fewer requests at once (max_concurrency), set the quota (requests_per_minute) or have it raised"
    ),
    ServerError: ASK_AGAIN_HINT,
    ConnectionFailed: f"Are the address, the network and HTTPS_PROXY right? {ASK_AGAIN_HINT}",
    BadReply: f"Something on the way may change replies. {ASK_AGAIN_HINT}",
}


_UNKNOWN_MODEL_CODES = ("ModelNotFound", "model_not_supported")
_WRONG_PATH_STATUSES = frozenset({301, 302, 303, 307, 308, 404, 405, 410, 414, 501})
_PAYLOAD_TOO_LARGE = 413


def _hint_for_request(error: ServiceError, reply: ErrorReply, context: ErrorContext) -> str | None:
    unknown_model = any(is_code(reply.code, code) for code in _UNKNOWN_MODEL_CODES)
    if unknown_model or any(part in reply.message for part in UNKNOWN_MODEL_MESSAGES):
        return _suggest_models(context.model)
    row = next((row for row in catalogue.MODELS if row.name == context.model), None)
    if isinstance(error, RateLimitError) and row is not None and row.published_quota is not None:
        return f"In Beijing it takes {row.published_quota}. The limits of your account are at {row.card}"
    place = f"Asked {context.host}{urlsplit(context.root_url).path}{context.path}"
    if error.status == _PAYLOAD_TOO_LARGE and context.path:
        return f"{place}, which does not accept a request of this size: pass a smaller batch_size"
    # At the endpoints of files and batches, a 404 with a message is about a missing file or batch.
    no_path = error.status in _WRONG_PATH_STATUSES and (context.path or not reply.message)
    if "url error" in reply.message or (no_path and not is_code(reply.code, "WorkSpaceNotFound")):
        return f"{place}. {_suggest_address(context)}"
    return None


def _suggest_models(name: str) -> str:
    names = [row.name for row in catalogue.MODELS]
    likely = difflib.get_close_matches(name, [known for known in names if known != name], n=1)
    meant = f"Is {likely[0]} meant? " if likely and name not in names else ""
    here = ", if this region and this key have it" if name in names else ""
    return f"Asked for model {printable(name, 100)!r}{here}. {meant}Known models: {', '.join(names)}"


def _suggest_address(context: ErrorContext) -> str:
    root = urlsplit(context.root_url)
    bare = f"{root.scheme}://{root.netloc}"
    if root.path:
        return (
            f"The path {root.path} comes from base_url, and the service's own path was appended: if {root.netloc} "
            f'forwards the service\'s own paths, pass base_url="{bare}". This package does not use a path such as '
            f"{root.path}/embeddings"
        )
    if "/api/" in context.path:
        return 'Does this host have the native protocol? protocol="openai" uses /compatible-mode/v1/embeddings'
    return 'Does this host have the OpenAI-compatible protocol? protocol="native" uses /api/v1/services/embeddings/…'
