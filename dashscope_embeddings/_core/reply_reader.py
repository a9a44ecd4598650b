"""Turns a reply, or its absence, into vectors or into an error; decides whether the connection may be reused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from dashscope_embeddings._core import failures, protocol
from dashscope_embeddings._core.protocol import ParsedReply
from dashscope_embeddings.errors import Action, BadReply, DashScopeError, ServiceError
from dashscope_embeddings.usage import RequestRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashscope_embeddings._core.exchange import RequestContext
    from dashscope_embeddings._core.protocol import Reply
    from dashscope_embeddings._core.steps import StepResult


class ReplyReader:
    """Parses a reply while its connection is still held; returns whether the connection may be reused."""

    __slots__ = ("_body", "_context", "_is_repeat", "_texts", "is_stale", "result")

    def __init__(self, body: bytes, context: RequestContext, texts: Sequence[str], *, is_repeat: bool) -> None:
        self._body, self._context, self._texts, self._is_repeat = body, context, texts, is_repeat
        self.result: ParsedReply | DashScopeError | None = None
        self.is_stale = False

    def __call__(self, reply: Reply) -> bool:
        """Sets `result` and `is_stale`; returns whether the connection may be reused."""
        result = self.result = interpret(reply, self._context, self._texts)
        answered = isinstance(result, ParsedReply)
        decision = self._context.seen_replies.judge(
            self._body, reply, result.request_id, has_vectors=answered, is_repeat=self._is_repeat
        )
        if decision == "stale":
            self.is_stale = True
            self.result = BadReply(_STALE_MESSAGE, request_id=result.request_id)
        return decision == "keep" and not isinstance(result, BadReply)


_STALE_MESSAGE = "the reply repeats an earlier one, to other texts: a server or gateway on the way mixes up its replies"


def request_record(
    context: RequestContext, texts: int, attempt: int, started_at: float, result: ParsedReply | DashScopeError
) -> RequestRecord:
    """What a user's `on_request` hook receives."""
    seconds = context.limiter.clock() - started_at
    request = (context.options.model, context.options.text_type, texts)
    if isinstance(result, ParsedReply):
        return RequestRecord(*request, result.billed_tokens, seconds, attempt, result.request_id, "answered")
    outcome: Literal["throttled", "refused", "failed"] = "refused"
    if result.action is Action.BACK_OFF:
        outcome = "throttled"
    elif result.action is Action.RETRY or not isinstance(result, ServiceError):
        outcome = "failed"
    code = result.code if isinstance(result, ServiceError) else None
    billed = result.billed_tokens if isinstance(result, BadReply) else None
    return RequestRecord(
        *request, billed or 0, seconds, attempt, result.request_id, outcome, code or type(result).__name__
    )


def interpret(answer: StepResult, context: RequestContext, texts: Sequence[str]) -> ParsedReply | DashScopeError:
    """The vectors in what a driver sent back for `Send`, or the error that it means."""
    parsed = failures.interpret(
        answer, lambda reply: protocol.parse_reply(context.options, reply, len(texts)), context.error_context, texts
    )
    if not isinstance(parsed, ParsedReply):
        return parsed
    if context.observed_widths is not None and parsed.dense is not None:
        width = len(parsed.dense[0])
        if (first := context.observed_widths.setdefault("dense", width)) != width:
            error = BadReply(
                f"the reply has vectors of {width} floats where the first reply of this call had {first}",
                request_id=parsed.request_id,
            )
            error.billed_tokens = parsed.billed_tokens
            return error
    request_id = context.error_context.redactor.redact_request_id(parsed.request_id, texts)
    return parsed if request_id is parsed.request_id else replace(parsed, request_id=request_id)
