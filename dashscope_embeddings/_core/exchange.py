"""One batch from its first try to vectors: every decision, no I/O.

`exchange` is a generator. It yields what has to be done (`Send`, `Sleep`), is sent what came of it, and
returns an `Outcome`. A driver performs the steps and decides nothing. No socket, clock or `await` is here.

The unit of retry is one request: what was answered is never asked again. One refused text never costs its
neighbours: the request is split until the text is found.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

from dashscope_embeddings import usage
from dashscope_embeddings._core import protocol, text_length
from dashscope_embeddings._core.backoff import backoff_seconds, retry_after_seconds
from dashscope_embeddings._core.failures import (
    CANCELLED,
    ErrorContext,
    Failure,
    error_from_failure,
    error_from_reply,
    redact_bad_reply,
)
from dashscope_embeddings._core.protocol import ParsedReply, Reply
from dashscope_embeddings._core.splitting import Chunk, split_request
from dashscope_embeddings._core.stale_replies import SeenReplies
from dashscope_embeddings._core.steps import Endpoint, Send, Sleep, Step, StepResult
from dashscope_embeddings.errors import Action, BadReply, DashScopeError, ServiceError
from dashscope_embeddings.usage import RequestRecord
from dashscope_embeddings.vectors import max_pool, mean_pool

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from dashscope_embeddings._core.protocol import RequestOptions
    from dashscope_embeddings._core.rate_limiter import Limiter, Permit
    from dashscope_embeddings._core.text_length import Limits, LongText
    from dashscope_embeddings.usage import OnRequest
    from dashscope_embeddings.vectors import SparseVector

__all__ = [
    "CANCELLED",
    "Endpoint",
    "Failure",
    "Outcome",
    "RequestContext",
    "Send",
    "Sleep",
    "Step",
    "StepResult",
    "backoff_seconds",
    "exchange",
    "retry_after_seconds",
    "warn_of_throttling",
]

_log = logging.getLogger("dashscope_embeddings")


@dataclass(slots=True)
class ContextState:
    """What the requests on the same terms have shown so far."""

    confirmed: bool = False
    """Some request got its vectors: where another is refused, it is for its texts."""
    throttle_warned_at: float = -math.inf
    """When it was last said that the service throttles."""


@dataclass(frozen=True)
class RequestContext:
    """What all batches of one call share."""

    options: RequestOptions
    limits: Limits
    limiter: Limiter
    long_text: LongText = "error"
    max_retries: int = 6
    max_throttled_seconds: float = 300.0
    """Seconds a request may spend being throttled before it gives up; nothing if `max_retries` is 0."""
    on_request: OnRequest | None = None
    error_context: ErrorContext = field(default_factory=ErrorContext)
    state: ContextState = field(default_factory=ContextState)
    seen_replies: SeenReplies = field(default_factory=SeenReplies)
    """Of all calls of a client."""
    observed_widths: dict[str, int] | None = None
    """Of one call: the width of its first vector, where the model's is not known."""

    def for_one_call(self) -> RequestContext:
        """The same for a call whose vectors must be of one width."""
        return self if self.options.expected_width is not None else replace(self, observed_widths={})

    @cached_property
    def fail_fast(self) -> RequestContext:
        """The same, but throttling is told at once: others decide what travels in the next request."""
        return replace(self, max_throttled_seconds=-1.0)


@dataclass(slots=True)
class Outcome:
    """What became of a batch: vectors and refusals by row, never an exception."""

    dense: list[list[float] | None]
    sparse: list[SparseVector | None]
    errors: dict[int, DashScopeError] = field(default_factory=dict)
    """Row → why it has no vectors."""
    abort_error: DashScopeError | None = None
    """Set where the rest of the job would fail in the same way."""
    requests: int = 0
    texts: int = 0
    tokens: int = 0
    request_ids: list[str] = field(default_factory=list)


Exchange: TypeAlias = "Generator[Step, StepResult, Outcome]"


# --- the flow ----------------------------------------------------------------------------------------------


def exchange(texts: Sequence[str], context: RequestContext, permit: Permit | None = None) -> Exchange:
    """Asks for the vectors of one batch; splits, shortens and asks again where that helps.

    `permit`: one that the limiter has granted already, for the first request.
    """
    outcome = Outcome([None] * len(texts), [None] * len(texts))
    gathered: dict[int, list[tuple[str, ParsedReply, int]]] = {}
    # A batch that only repeats the texts of earlier ones has nothing to ask.
    waiting = deque([[Chunk(row, text) for row, text in enumerate(texts)]] if texts else [])
    while waiting:
        group = waiting.popleft()
        answer = yield from _request_with_retries([piece.text for piece in group], context, permit)
        permit = None
        if isinstance(answer, ParsedReply):
            _add_usage(outcome, answer, len(group))
            for at, piece in enumerate(group):
                gathered.setdefault(piece.row, []).append((piece.text, answer, at))
        elif groups := split_request(group, answer, context.limits, context.long_text):
            waiting.extendleft(reversed(groups))
        else:
            if answer.action is Action.TRUNCATE:
                answer.add_hint('Shorten the text, or use long_text="truncate" or "average"')
            for piece in group:
                outcome.errors[piece.row] = answer
            # The other pieces of a refused text would be paid for and thrown away.
            left = ([piece for piece in others if piece.row not in outcome.errors] for others in waiting)
            waiting = deque(others for others in left if others)
            if answer.action not in _TEXT_ACTIONS:
                outcome.abort_error = answer
                break
    for row, parts in gathered.items():
        if row not in outcome.errors and not any(piece.row == row for group in waiting for piece in group):
            _store_row(outcome, row, parts)
    return outcome if context.state.confirmed else _promote_uniform_errors(outcome)


_TEXT_ACTIONS = frozenset({Action.BISECT, Action.TRUNCATE})


def _request_with_retries(
    texts: list[str], context: RequestContext, permit: Permit | None
) -> Generator[Step, StepResult, ParsedReply | DashScopeError]:
    """One request, as often as it takes: the rows, or the refusal that further tries cannot change."""
    body = protocol.request_body(context.options, texts)
    tokens = max(1, round(sum(map(text_length.estimate_tokens, texts))))
    high_priority = context.options.text_type == "query"
    failures, stale_replies, throttled_since = 0, 0, math.inf
    for attempt in itertools.count(1):
        permit = permit or context.limiter.create_permit(tokens, high_priority=high_priority)
        try:
            if (cancelled := (yield from _wait_for_permit(permit, context))) is not None:
                return _interpret(cancelled, context, texts)
            error, stale = yield from _send_once(body, context, texts, attempt, is_repeat=stale_replies > 0)
            if isinstance(error, ParsedReply):
                context.limiter.on_success(permit, error.billed_tokens)
                return error
            if error.action is Action.BACK_OFF:
                context.limiter.on_throttled(permit, retry_after_seconds(error))
        finally:
            context.limiter.cancel(permit)
        permit = None
        if stale and stale_replies < _MAX_STALE_REPLIES:
            stale_replies += 1
            _log.info("asking again on another connection: %s", error)
        elif error.action is Action.BACK_OFF:
            now = context.limiter.clock()
            throttled_since = min(throttled_since, now)
            if context.max_retries == 0 or now - throttled_since > context.max_throttled_seconds:
                return error
            _log.info("throttled, asking again when the limiter allows: %s", error)
            warn_of_throttling(context, error, now, throttled_since)
        elif error.action is Action.RETRY and failures < context.max_retries:
            failures += 1
            pause = backoff_seconds(failures, retry_after_seconds(error))
            _log.info("try %d of %d failed, next in %.1f s: %s", failures, context.max_retries + 1, pause, error)
            if (cancelled := (yield Sleep(pause))) is not None:
                return _interpret(cancelled, context, texts)
        else:
            return error
    raise RuntimeError("unreachable: the tries are counted without an end")


def warn_of_throttling(context: RequestContext, error: DashScopeError, now: float, throttled_since: float) -> None:
    """Says in the log, once a minute at most, that a program waits although nothing is wrong with it."""
    until = now + (retry_after_seconds(error) or 0.0)
    if until - throttled_since < _WARN_AFTER_SECONDS or now - context.state.throttle_warned_at < _WARN_INTERVAL_SECONDS:
        return
    context.state.throttle_warned_at = now
    _log.warning(
        "throttled by %s for %.0f s; asking again when it allows, for %.0f s at most. If this lasts, state the quota "
        "(requests_per_minute, tokens_per_minute) or have it raised: %s",
        context.error_context.host,
        now - throttled_since,
        context.max_throttled_seconds,
        error,
    )


_WARN_AFTER_SECONDS = 5.0
"""Seconds of waiting that nobody wonders about."""
_WARN_INTERVAL_SECONDS = 60.0


def _wait_for_permit(permit: Permit, context: RequestContext) -> Generator[Step, StepResult, StepResult]:
    """Waits until the limiter lets a request go; a `Failure` if the job was given up meanwhile."""
    # A grant is worth nothing after a throttle elsewhere: ask until the answer is "now".
    while wait := context.limiter.try_acquire(permit):
        if (cancelled := (yield Sleep(wait))) is not None:
            return cancelled
    return None


def _send_once(
    body: bytes, context: RequestContext, texts: Sequence[str], attempt: int, *, is_repeat: bool
) -> Generator[Step, StepResult, tuple[ParsedReply | DashScopeError, bool]]:
    """What came, and whether it was stale: no reply to this request."""
    started_at = context.limiter.clock()
    reading = _ReplyReader(body, context, texts, is_repeat=is_repeat)
    answer = yield Send(
        body,
        max_reply_bytes=protocol.max_reply_bytes(context.options, len(texts), len(body)),
        may_reuse_connection=reading,
    )
    if reading.result is None and isinstance(answer, Reply):
        reading(answer)
    result = reading.result if reading.result is not None else _interpret(answer, context, texts)
    context.state.confirmed |= isinstance(result, ParsedReply)
    if context.on_request is not None:
        usage.call_hook(context.on_request, _request_record(context, len(texts), attempt, started_at, result))
    return result, reading.is_stale


class _ReplyReader:
    """Reads the reply to a request while its connection is held; whether the connection can be trusted further."""

    __slots__ = ("_body", "_context", "_is_repeat", "_texts", "is_stale", "result")

    def __init__(self, body: bytes, context: RequestContext, texts: Sequence[str], *, is_repeat: bool) -> None:
        self._body, self._context, self._texts, self._is_repeat = body, context, texts, is_repeat
        self.result: ParsedReply | DashScopeError | None = None
        self.is_stale = False

    def __call__(self, reply: Reply) -> bool:
        result = self.result = _interpret(reply, self._context, self._texts)
        if isinstance(result, BadReply):
            return False
        rows = isinstance(result, ParsedReply)
        finding = self._context.seen_replies.judge(
            self._body, reply, result.request_id, has_vectors=rows, is_repeat=self._is_repeat
        )
        if finding == "stale":
            self.is_stale = True
            self.result = BadReply(_STALE_MESSAGE, request_id=result.request_id)
        return finding == "keep"


_STALE_MESSAGE = "the reply repeats an earlier one, to other texts: a server or gateway on the way mixes up its replies"
_MAX_STALE_REPLIES = 40
"""Each closes a connection, of which a client has at most twice `max_concurrency`."""


def _request_record(
    context: RequestContext, texts: int, attempt: int, started_at: float, result: ParsedReply | DashScopeError
) -> RequestRecord:
    seconds = context.limiter.clock() - started_at
    about = (context.options.model, context.options.text_type, texts)
    if isinstance(result, ParsedReply):
        return RequestRecord(*about, result.billed_tokens, seconds, attempt, result.request_id, "answered")
    outcome: Literal["throttled", "refused", "failed"] = "refused"
    if result.action is Action.BACK_OFF:
        outcome = "throttled"
    elif result.action is Action.RETRY or not isinstance(result, ServiceError):
        outcome = "failed"
    code = result.code if isinstance(result, ServiceError) else None
    return RequestRecord(*about, 0, seconds, attempt, result.request_id, outcome, code or type(result).__name__)


def _interpret(answer: StepResult, context: RequestContext, texts: Sequence[str]) -> ParsedReply | DashScopeError:
    if isinstance(answer, Failure):
        return error_from_failure(answer, context.error_context)
    if not isinstance(answer, Reply):
        raise TypeError(f"a driver must answer Send with Reply or Failure, not {type(answer).__name__}")
    try:
        read = protocol.parse_reply(context.options, answer, len(texts))
    except BadReply as broken:
        return redact_bad_reply(broken, context.error_context, texts)
    if not isinstance(read, ParsedReply):
        return error_from_reply(read, context.error_context, texts)
    if context.observed_widths is not None and read.dense is not None:
        width = len(read.dense[0])
        if (first := context.observed_widths.setdefault("dense", width)) != width:
            return BadReply(
                f"the reply has vectors of {width} floats where the first reply of this call had {first}",
                request_id=read.request_id,
            )
    request_id = context.error_context.redactor.redact_request_id(read.request_id, texts)
    return read if request_id is read.request_id else replace(read, request_id=request_id)


# --- what came back ----------------------------------------------------------------------------------------


def _add_usage(outcome: Outcome, rows: ParsedReply, texts: int) -> None:
    outcome.requests += 1
    outcome.texts += texts
    outcome.tokens += rows.billed_tokens or 0
    if rows.request_id is not None:
        outcome.request_ids.append(rows.request_id)


def _store_row(outcome: Outcome, row: int, parts: list[tuple[str, ParsedReply, int]]) -> None:
    weights = [float(len(text)) for text, _, _ in parts]
    dense = [rows.dense[at] for _, rows, at in parts if rows.dense is not None]
    sparse = [rows.sparse[at] for _, rows, at in parts if rows.sparse is not None]
    outcome.dense[row] = mean_pool(dense, weights) if dense else None
    outcome.sparse[row] = max_pool(sparse) if sparse else None


def _promote_uniform_errors(outcome: Outcome) -> Outcome:
    """A refusal that every row of several meets alike is about the request: the rest would meet it too.

    Not to be asked where a request on the same terms was answered.
    """
    refusals = list(outcome.errors.values())
    alike = {error.code for error in refusals if isinstance(error, ServiceError)}
    if (
        outcome.abort_error is None
        and 1 < len(refusals) == len(outcome.dense)
        and len(alike) == 1
        and all(error.action is Action.BISECT for error in refusals)
        and not any("Inspection" in (code or "") or "inspection" in (code or "") for code in alike)
    ):
        outcome.abort_error = refusals[0]
    return outcome
