"""Embeds one batch: makes every decision about retries and splits, without I/O.

`exchange` is a generator. It yields steps (`Send`, `Sleep`), receives their results, and returns an `Outcome`.
A driver performs the steps and decides nothing. This module has no socket and no `await`; the clock is passed in.

The unit of retry is one request, so a text that was answered is never sent again. A refused text does not affect
the other texts of its batch: the request is bisected until that text is found.
"""

from __future__ import annotations

import logging
import math
import sys
from collections import deque
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from dashscope_embeddings import usage
from dashscope_embeddings._core import protocol, text_length
from dashscope_embeddings._core.failures import ErrorContext, backoff_seconds, retry_after_seconds
from dashscope_embeddings._core.permit import UNBOUNDED
from dashscope_embeddings._core.planning import Chunk, split_request
from dashscope_embeddings._core.protocol import ParsedReply, Reply
from dashscope_embeddings._core.reply_reader import ReplyReader, interpret, request_record
from dashscope_embeddings._core.stale_replies import SeenReplies
from dashscope_embeddings._core.steps import AskUserLimiter, Send, Sleep, Step, StepResult
from dashscope_embeddings.errors import Action, BadReply, ConnectionFailed, DashScopeError, ServiceError
from dashscope_embeddings.vectors import Part, combine

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from dashscope_embeddings._core.permit import InFlightBound, Permit, Sender
    from dashscope_embeddings._core.protocol import RequestOptions
    from dashscope_embeddings._core.rate_limiter import Limiter
    from dashscope_embeddings._core.text_length import Limits, LongText
    from dashscope_embeddings.usage import OnRequest
    from dashscope_embeddings.vectors import SparseVector

_log = logging.getLogger("dashscope_embeddings")


@dataclass(slots=True)
class ContextState:
    """What requests with the same context have shown so far."""

    confirmed: bool = False
    """Whether any request was answered: model and parameters are valid, so a refusal is about its texts."""
    throttle_warned_at: float = -math.inf
    """When the warning about throttling was last logged."""
    answered_at: float = -math.inf
    """When the last reply came."""
    unanswered_since: float = math.inf
    """When the first attempt without an answer began, or the last reply came before it failed; infinity: none has."""
    outage_warned_at: float = -math.inf
    """When the warning about a host that does not answer was last logged."""


READ_AHEAD = 48
"""Outcomes that may wait for an earlier, slower one."""


@dataclass(frozen=True)
class RequestContext:
    """What all batches of one call share."""

    options: RequestOptions
    limits: Limits
    limiter: Limiter
    long_text: LongText = "error"
    max_retries: int = 6
    max_throttled_seconds: float = 300.0
    """Seconds that a request may spend being throttled before it fails; unused if `max_retries` is 0."""
    on_request: OnRequest | None = None
    error_context: ErrorContext = field(default_factory=ErrorContext)
    state: ContextState = field(default_factory=ContextState)
    seen_replies: SeenReplies = field(default_factory=SeenReplies)
    """Shared by all calls of a client."""
    bound: InFlightBound = UNBOUNDED
    """The client's requests in flight."""
    blocked_loop: Sender | None = None
    """The event loop, or deferred signals, on whose thread a sync call was made."""
    has_user_limiter: bool = False
    """Whether the user's own `rate_limiter` is asked before every request."""
    observed_widths: dict[str, int] | None = None
    """The width of a call's first vector, if the model's width is not known."""

    def has_use_for_another(self, started: int, ended: Iterator[bool]) -> bool:
        """Whether a job should start another exchange.

        `started`: exchanges that were started and whose outcome was not yielded yet; `ended`: whether each of them has
        ended, in order. A job reads ahead, so that a slow reply does not hold up the requests behind it; not if its
        caller is the slow one.
        """
        concurrency = min(self.limiter.concurrency, self.bound.limit or sys.maxsize)
        if started < concurrency:
            return True
        if started >= concurrency + READ_AHEAD or next(ended):
            return False
        return 1 + sum(not has_ended for has_ended in ended) < concurrency

    def create_permit(self, estimated_tokens: int) -> Permit:
        return self.limiter.create_permit(
            estimated_tokens,
            high_priority=self.options.text_type == "query",
            bound=self.bound,
            blocked_loop=self.blocked_loop,
        )

    def for_one_call(self) -> RequestContext:
        """A copy for one call: all its vectors must have the same width."""
        return self if self.options.expected_width is not None else replace(self, observed_widths={})

    @cached_property
    def fail_fast(self) -> RequestContext:
        """A copy that returns a throttled request at once: `TextBatcher` may choose other texts for the next one."""
        return replace(self, max_throttled_seconds=-1.0)


@dataclass(slots=True)
class Outcome:
    """The result of a batch: vectors and errors by row. Row errors are returned, never raised."""

    vectors: list[Part | None]
    """None: the row has none."""
    errors: dict[int, DashScopeError] = field(default_factory=dict)
    """Row → why it has no vectors."""
    abort_error: DashScopeError | None = None
    """Set if the rest of the call would fail in the same way."""
    requests: int = 0
    texts: int = 0
    tokens: int = 0
    request_ids: list[str] = field(default_factory=list)

    @property
    def dense(self) -> list[list[float] | None]:
        return [part and part.dense for part in self.vectors]

    @property
    def sparse(self) -> list[SparseVector | None]:
        return [part and part.sparse for part in self.vectors]


Exchange: TypeAlias = "Generator[Step, StepResult, Outcome]"
_Answer: TypeAlias = ParsedReply | DashScopeError


# --- the flow ----------------------------------------------------------------------------------------------


def exchange(texts: Sequence[str], context: RequestContext, permit: Permit | None = None) -> Exchange:
    """Requests the vectors of one batch; splits, truncates and retries where that helps.

    `permit`: already granted by the limiter, for the first request.
    """
    outcome = Outcome([None] * len(texts))
    parts_by_row: dict[int, list[Part]] = {}
    # A batch whose texts are all in earlier batches sends nothing.
    waiting = deque([[Chunk(row, text) for row, text in enumerate(texts)]] if texts else [])
    while waiting:
        group = waiting.popleft()
        answer = yield from _Request([chunk.text for chunk in group], context, outcome).send_until_final(permit)
        permit = None
        if isinstance(answer, ParsedReply):
            for i, chunk in enumerate(group):
                parts_by_row.setdefault(chunk.row, []).append(answer.part(i, weight=float(len(chunk.text))))
        elif groups := split_request(group, answer, context.limits, context.long_text):
            waiting.extendleft(reversed(groups))
        else:
            outcome.errors |= {chunk.row: answer for chunk in group}
            # Other chunks of a refused text would be billed for nothing.
            groups = [[chunk for chunk in later if chunk.row not in outcome.errors] for later in waiting]
            waiting = deque(later for later in groups if later)
            if answer.action not in _TEXT_ACTIONS:
                outcome.abort_error = answer
                break
    incomplete = {*outcome.errors, *(chunk.row for group in waiting for chunk in group)}
    for row, parts in parts_by_row.items():
        outcome.vectors[row] = None if row in incomplete else combine(parts)
    return outcome if context.state.confirmed else _promote_uniform_errors(outcome)


_TEXT_ACTIONS = frozenset({Action.BISECT, Action.TRUNCATE})


class _Request:
    """One request: how often it was sent, and how often and since when it has failed in each way."""

    def __init__(self, texts: list[str], context: RequestContext, outcome: Outcome) -> None:
        self._texts, self._context, self._outcome = texts, context, outcome
        self._body = protocol.request_body(context.options, texts)
        # Exact counts take time, so they are made only where a quota of tokens is spent by them.
        count = text_length.estimate_tokens if context.limiter.tokens_per_minute is None else context.limits.count
        self._tokens = max(1, round(sum(map(count, texts))))
        self._attempts = self._failures = self._stale_replies = 0
        self._is_stale = False
        """Whether the last reply was a copy of one to an earlier request, and the request may be repeated for it."""
        self._throttled_since = math.inf
        self._started_at = math.inf
        """When the last attempt began."""

    def send_until_final(self, permit: Permit | None) -> Generator[Step, StepResult, _Answer]:
        """Sends the request until it is answered, or until it fails with an error that retries cannot change.

        `permit`: already granted, for the first attempt. The user's limiter, which was asked for it, is asked again for
        each further one: before our own, so that its wait holds no place in flight and counts as nobody's latency.
        """
        while True:
            must_ask = permit is None and self._context.has_user_limiter
            if must_ask and (cancelled := (yield from self._ask_user_limiter())) is not None:
                return interpret(cancelled, self._context, self._texts)
            permit = permit or self._context.create_permit(self._tokens)
            try:
                answer = yield from self._send(permit)
            finally:
                self._context.limiter.cancel(permit)
            permit = None
            if isinstance(answer, ParsedReply) or self._is_final(answer):
                return answer
            if answer.action is Action.RETRY and not self._is_stale:
                pause = backoff_seconds(self._failures, retry_after_seconds(answer))
                tries = self._context.max_retries + 1
                message = "attempt %d of %d failed, next in %.1f s: %s"
                _log.log(self._log_level(answer), message, self._failures, tries, pause, answer)
                if (cancelled := (yield Sleep(pause))) is not None:
                    return interpret(cancelled, self._context, self._texts)

    def _ask_user_limiter(self) -> Generator[Step, StepResult, StepResult]:
        """Asks it after a pause that a 429 asked for: what it lets through during one would all be sent at its end."""
        while pause := self._context.limiter.seconds_blocked():
            if (cancelled := (yield Sleep(pause))) is not None:
                return cancelled
        return (yield AskUserLimiter())

    def _send(self, permit: Permit) -> Generator[Step, StepResult, _Answer]:
        """Waits for the limiter, then sends the request once."""
        context, texts, self._is_stale = self._context, self._texts, False
        # Another request may be throttled during the wait, so ask again until the answer is 0.
        while wait := context.limiter.try_acquire(permit):
            if (cancelled := (yield Sleep(wait, permit))) is not None:
                return interpret(cancelled, context, texts)
        self._attempts += 1
        self._started_at = context.limiter.clock()
        reader = ReplyReader(self._body, context, texts, is_repeat=self._stale_replies > 0)
        max_reply_bytes = protocol.max_reply_bytes(context.options, len(texts), len(self._body))
        reply = yield Send(self._body, max_reply_bytes=max_reply_bytes, read_reply=reader, permit=permit)
        if reader.result is None and isinstance(reply, Reply):
            reader(reply)
        answer = reader.result if reader.result is not None else interpret(reply, context, texts)
        self._is_stale = reader.is_stale and self._stale_replies < _MAX_STALE_REPLIES
        self._stale_replies += self._is_stale
        _add_usage(self._outcome, answer, len(texts))
        if context.on_request is not None:
            usage.call_hook(
                context.on_request, request_record(context, len(texts), self._attempts, self._started_at, answer)
            )
        if isinstance(answer, ParsedReply):
            context.state.confirmed, context.state.unanswered_since = True, math.inf
            context.state.answered_at = context.limiter.clock()
            context.limiter.on_success(permit, answer.billed_tokens)
        elif answer.action is Action.BACK_OFF:
            context.limiter.on_throttled(permit, retry_after_seconds(answer))
        return answer

    def _is_final(self, error: DashScopeError) -> bool:
        """Counts the error; returns whether the request must not be sent again."""
        if self._is_stale:
            _log.info("retrying on another connection: %s", error)
            return False
        if error.action is Action.BACK_OFF:
            now = self._context.limiter.clock()
            self._throttled_since = min(self._throttled_since, now)
            seconds = now - self._throttled_since
            if self._context.max_retries == 0 or seconds > self._context.max_throttled_seconds:
                return True
            _log.info("throttled, retrying when the limiter allows it: %s", error)
            warn_of_throttling(self._context, error, now, self._throttled_since)
            return False
        self._failures += 1
        return error.action is not Action.RETRY or self._failures > self._context.max_retries

    def _log_level(self, error: DashScopeError) -> int:
        """Of an attempt that is repeated: a warning, at most once a minute, if nothing was answered for a while."""
        state, now = self._context.state, self._context.limiter.clock()
        if isinstance(error, ConnectionFailed):
            state.unanswered_since = min(state.unanswered_since, max(self._started_at, state.answered_at))
        is_outage = now - state.unanswered_since >= _WARN_UNANSWERED_SECONDS
        if not is_outage or now - state.outage_warned_at < _WARN_INTERVAL_SECONDS:
            return logging.INFO
        state.outage_warned_at = now
        return logging.WARNING


def warn_of_throttling(context: RequestContext, error: DashScopeError, now: float, throttled_since: float) -> None:
    """Logs a warning, at most once a minute, that the program is waiting for the service's quota."""
    until = now + (retry_after_seconds(error) or 0.0)
    if until - throttled_since < _WARN_AFTER_SECONDS or now - context.state.throttle_warned_at < _WARN_INTERVAL_SECONDS:
        return
    context.state.throttle_warned_at = now
    _log.warning(
        "throttled by %s for %.0f s; retrying for up to %.0f s. If this persists, set the quota "
        "(requests_per_minute, tokens_per_minute) or request a higher one: %s",
        context.error_context.host,
        now - throttled_since,
        context.max_throttled_seconds,
        error,
    )


_WARN_AFTER_SECONDS = 5.0
"""Seconds of throttling that are not worth a warning."""
_WARN_UNANSWERED_SECONDS = 2.0
"""The same without an answer to any request."""
_WARN_INTERVAL_SECONDS = 60.0
_MAX_STALE_REPLIES = 40
"""Each stale reply closes a connection."""


# --- the outcome -------------------------------------------------------------------------------------------


def _add_usage(outcome: Outcome, reply: _Answer, texts: int) -> None:
    """Counts a reply with vectors, and one without usable vectors that says it was billed."""
    if not isinstance(reply, ParsedReply) and not (isinstance(reply, BadReply) and reply.billed_tokens):
        return
    outcome.requests += 1
    outcome.texts += texts
    outcome.tokens += reply.billed_tokens or 0
    if reply.request_id is not None:
        outcome.request_ids.append(reply.request_id)


def _promote_uniform_errors(outcome: Outcome) -> Outcome:
    """Aborts the call if every row was refused with the same code: the request itself is wrong.

    Only valid while no request with this context has been answered.
    """
    errors = list(outcome.errors.values())
    codes = {error.code for error in errors if isinstance(error, ServiceError)}
    if (
        outcome.abort_error is None
        and 1 < len(errors) == len(outcome.vectors)
        and len(codes) == 1
        and all(error.action is Action.BISECT for error in errors)
        and not any("inspection" in (code or "").lower() for code in codes)
    ):
        outcome.abort_error = errors[0]
    return outcome
