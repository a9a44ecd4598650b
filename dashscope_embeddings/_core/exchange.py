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
from dashscope_embeddings._core.backoff import backoff, capped
from dashscope_embeddings._core.failures import GIVEN_UP, Asked, Failure, explained, unanswered, unbelieved
from dashscope_embeddings._core.protocol import Reply, Rows
from dashscope_embeddings._core.splitting import Piece, smaller
from dashscope_embeddings._core.stale_replies import SeenReplies
from dashscope_embeddings._core.steps import Answer, Send, Sleep, Step, Target
from dashscope_embeddings.errors import BadReply, DashScopeError, ServiceError, Verdict
from dashscope_embeddings.usage import RequestRecord
from dashscope_embeddings.vectors import average, strongest

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from dashscope_embeddings._core.protocol import Ask
    from dashscope_embeddings._core.rate_limiter import Limiter, Permit
    from dashscope_embeddings._core.text_length import Limits, LongText
    from dashscope_embeddings.usage import OnRequest
    from dashscope_embeddings.vectors import SparseVector

__all__ = [
    "GIVEN_UP",
    "Answer",
    "Failure",
    "Outcome",
    "Send",
    "Sleep",
    "Step",
    "Target",
    "Terms",
    "backoff",
    "capped",
    "exchange",
    "warn_of_throttling",
]

_log = logging.getLogger("dashscope_embeddings")


@dataclass(slots=True)
class Proof:
    """What the requests on the same terms have shown so far."""

    answered: bool = False
    """Some request got its vectors: where another is refused, it is for its texts."""
    warned: float = -math.inf
    """When it was last said that the service throttles."""


@dataclass(frozen=True)
class Terms:
    """What all batches of one call share."""

    ask: Ask
    limits: Limits
    limiter: Limiter
    long_text: LongText = "error"
    max_retries: int = 6
    patience: float = 300.0
    """Seconds a request may spend being throttled before it gives up; nothing if `max_retries` is 0."""
    on_request: OnRequest | None = None
    asked: Asked = field(default_factory=Asked)
    proof: Proof = field(default_factory=Proof)
    seen: SeenReplies = field(default_factory=SeenReplies)
    """Of all calls of a client."""
    widths: dict[str, int] | None = None
    """Of one call: the width of its first vector, where the model's is not known."""

    def of_one_call(self) -> Terms:
        """The same for a call whose vectors must be of one width."""
        return self if self.ask.width is not None else replace(self, widths={})

    @cached_property
    def impatient(self) -> Terms:
        """The same, but throttling is told at once: others decide what travels in the next request."""
        return replace(self, patience=-1.0)


@dataclass(slots=True)
class Outcome:
    """What became of a batch: vectors and refusals by row, never an exception."""

    dense: list[list[float] | None]
    sparse: list[SparseVector | None]
    errors: dict[int, DashScopeError] = field(default_factory=dict)
    """Row → why it has no vectors."""
    stop: DashScopeError | None = None
    """Set where the rest of the job would fail in the same way."""
    requests: int = 0
    texts: int = 0
    tokens: int = 0
    request_ids: list[str] = field(default_factory=list)


Flow: TypeAlias = "Generator[Step, Answer, Outcome]"


# --- the flow ----------------------------------------------------------------------------------------------


def exchange(texts: Sequence[str], terms: Terms, permit: Permit | None = None) -> Flow:
    """Asks for the vectors of one batch; splits, shortens and asks again where that helps.

    `permit`: one that the limiter has granted already, for the first request.
    """
    outcome = Outcome([None] * len(texts), [None] * len(texts))
    gathered: dict[int, list[tuple[str, Rows, int]]] = {}
    # A batch that only repeats the texts of earlier ones has nothing to ask.
    waiting = deque([[Piece(row, text) for row, text in enumerate(texts)]] if texts else [])
    while waiting:
        group = waiting.popleft()
        answer = yield from _request([piece.text for piece in group], terms, permit)
        permit = None
        if isinstance(answer, Rows):
            _count(outcome, answer, len(group))
            for at, piece in enumerate(group):
                gathered.setdefault(piece.row, []).append((piece.text, answer, at))
        elif groups := smaller(group, answer, terms.limits, terms.long_text):
            waiting.extendleft(reversed(groups))
        else:
            if answer.verdict is Verdict.SHORTEN:
                answer.advise('Shorten the text, or use long_text="truncate" or "average"')
            for piece in group:
                outcome.errors[piece.row] = answer
            # The other pieces of a refused text would be paid for and thrown away.
            left = ([piece for piece in others if piece.row not in outcome.errors] for others in waiting)
            waiting = deque(others for others in left if others)
            if answer.verdict not in _ABOUT_A_TEXT:
                outcome.stop = answer
                break
    for row, parts in gathered.items():
        if row not in outcome.errors and not any(piece.row == row for group in waiting for piece in group):
            _place(outcome, row, parts)
    return outcome if terms.proof.answered else _judged(outcome)


_ABOUT_A_TEXT = frozenset({Verdict.SPLIT, Verdict.SHORTEN})


def _request(texts: list[str], terms: Terms, permit: Permit | None) -> Generator[Step, Answer, Rows | DashScopeError]:
    """One request, as often as it takes: the rows, or the refusal that further tries cannot change."""
    body = protocol.body(terms.ask, texts)
    tokens = max(1, round(sum(map(text_length.estimate, texts))))
    urgent = terms.ask.text_type == "query"
    failures, stale_replies, throttled_since = 0, 0, math.inf
    for attempt in itertools.count(1):
        permit = permit or terms.limiter.ask(tokens, urgent=urgent)
        try:
            if (given_up := (yield from _granted(permit, terms))) is not None:
                return _read(given_up, terms, texts)
            error, stale = yield from _sent(body, terms, texts, attempt, again=stale_replies > 0)
            if isinstance(error, Rows):
                terms.limiter.settle(permit, error.tokens)
                return error
            if error.verdict is Verdict.THROTTLE:
                terms.limiter.refuse(permit, capped(error))
        finally:
            terms.limiter.release(permit)
        permit = None
        if stale and stale_replies < _MOST_STALE:
            stale_replies += 1
            _log.info("asking again on another connection: %s", error)
        elif error.verdict is Verdict.THROTTLE:
            now = terms.limiter.clock()
            throttled_since = min(throttled_since, now)
            if terms.max_retries == 0 or now - throttled_since > terms.patience:
                return error
            _log.info("throttled, asking again when the limiter allows: %s", error)
            warn_of_throttling(terms, error, now, throttled_since)
        elif error.verdict is Verdict.RETRY and failures < terms.max_retries:
            failures += 1
            pause = backoff(failures, capped(error))
            _log.info("try %d of %d failed, next in %.1f s: %s", failures, terms.max_retries + 1, pause, error)
            if (given_up := (yield Sleep(pause))) is not None:
                return _read(given_up, terms, texts)
        else:
            return error
    raise RuntimeError("unreachable: the tries are counted without an end")


def warn_of_throttling(terms: Terms, error: DashScopeError, now: float, since: float) -> None:
    """Says in the log, once a minute at most, that a program waits although nothing is wrong with it."""
    until = now + (capped(error) or 0.0)
    if until - since < _UNSEEN or now - terms.proof.warned < _SAID_AGAIN:
        return
    terms.proof.warned = now
    _log.warning(
        "throttled by %s for %.0f s; asking again when it allows, for %.0f s at most. If this lasts, state the quota "
        "(requests_per_minute, tokens_per_minute) or have it raised: %s",
        terms.asked.host,
        now - since,
        terms.patience,
        error,
    )


_UNSEEN = 5.0
"""Seconds of waiting that nobody wonders about."""
_SAID_AGAIN = 60.0


def _granted(permit: Permit, terms: Terms) -> Generator[Step, Answer, Answer]:
    """Waits until the limiter lets a request go; a `Failure` if the job was given up meanwhile."""
    # A grant is worth nothing after a throttle elsewhere: ask until the answer is "now".
    while wait := terms.limiter.reserve(permit):
        if (given_up := (yield Sleep(wait))) is not None:
            return given_up
    return None


def _sent(
    body: bytes, terms: Terms, texts: Sequence[str], attempt: int, *, again: bool
) -> Generator[Step, Answer, tuple[Rows | DashScopeError, bool]]:
    """What came, and whether it was stale: no reply to this request."""
    begun = terms.limiter.clock()
    reading = _Reading(body, terms, texts, again=again)
    answer = yield Send(body, most=protocol.most_bytes(terms.ask, len(texts), len(body)), keep=reading)
    if reading.came is None and isinstance(answer, Reply):
        reading(answer)
    came = reading.came if reading.came is not None else _read(answer, terms, texts)
    terms.proof.answered |= isinstance(came, Rows)
    if terms.on_request is not None:
        usage.tell(terms.on_request, _record(terms, len(texts), attempt, begun, came))
    return came, reading.stale


class _Reading:
    """Reads the reply to a request while its connection is held; whether the connection can be trusted further."""

    __slots__ = ("_again", "_body", "_terms", "_texts", "came", "stale")

    def __init__(self, body: bytes, terms: Terms, texts: Sequence[str], *, again: bool) -> None:
        self._body, self._terms, self._texts, self._again = body, terms, texts, again
        self.came: Rows | DashScopeError | None = None
        self.stale = False

    def __call__(self, reply: Reply) -> bool:
        came = self.came = _read(reply, self._terms, self._texts)
        if isinstance(came, BadReply):
            return False
        rows = isinstance(came, Rows)
        finding = self._terms.seen.judge(self._body, reply, came.request_id, answered=rows, again=self._again)
        if finding == "stale":
            self.stale = True
            self.came = BadReply(_STALE, request_id=came.request_id)
        return finding == "keep"


_STALE = "the reply repeats an earlier one, to other texts: a server or gateway on the way mixes up its replies"
_MOST_STALE = 40
"""Each closes a connection, of which a client has at most twice `max_concurrency`."""


def _record(terms: Terms, texts: int, attempt: int, begun: float, came: Rows | DashScopeError) -> RequestRecord:
    seconds = terms.limiter.clock() - begun
    about = (terms.ask.model, terms.ask.text_type, texts)
    if isinstance(came, Rows):
        return RequestRecord(*about, came.tokens, seconds, attempt, came.request_id, "answered")
    outcome: Literal["throttled", "refused", "failed"] = "refused"
    if came.verdict is Verdict.THROTTLE:
        outcome = "throttled"
    elif came.verdict is Verdict.RETRY or not isinstance(came, ServiceError):
        outcome = "failed"
    code = came.code if isinstance(came, ServiceError) else None
    return RequestRecord(*about, 0, seconds, attempt, came.request_id, outcome, code or type(came).__name__)


def _read(answer: Answer, terms: Terms, texts: Sequence[str]) -> Rows | DashScopeError:
    if isinstance(answer, Failure):
        return unanswered(answer, terms.asked)
    if not isinstance(answer, Reply):
        raise TypeError(f"a driver must answer Send with Reply or Failure, not {type(answer).__name__}")
    try:
        read = protocol.read(terms.ask, answer, len(texts))
    except BadReply as broken:
        return unbelieved(broken, terms.asked, texts)
    if not isinstance(read, Rows):
        return explained(read, terms.asked, texts)
    if terms.widths is not None and read.dense is not None:
        width = len(read.dense[0])
        if (first := terms.widths.setdefault("dense", width)) != width:
            return BadReply(
                f"the reply has vectors of {width} floats where the first reply of this call had {first}",
                request_id=read.request_id,
            )
    request_id = terms.asked.redaction.request_id(read.request_id, texts)
    return read if request_id is read.request_id else replace(read, request_id=request_id)


# --- what came back ----------------------------------------------------------------------------------------


def _count(outcome: Outcome, rows: Rows, texts: int) -> None:
    outcome.requests += 1
    outcome.texts += texts
    outcome.tokens += rows.tokens or 0
    if rows.request_id is not None:
        outcome.request_ids.append(rows.request_id)


def _place(outcome: Outcome, row: int, parts: list[tuple[str, Rows, int]]) -> None:
    weights = [float(len(text)) for text, _, _ in parts]
    dense = [rows.dense[at] for _, rows, at in parts if rows.dense is not None]
    sparse = [rows.sparse[at] for _, rows, at in parts if rows.sparse is not None]
    outcome.dense[row] = average(dense, weights) if dense else None
    outcome.sparse[row] = strongest(sparse) if sparse else None


def _judged(outcome: Outcome) -> Outcome:
    """A refusal that every row of several meets alike is about the request: the rest would meet it too.

    Not to be asked where a request on the same terms was answered.
    """
    refusals = list(outcome.errors.values())
    alike = {error.code for error in refusals if isinstance(error, ServiceError)}
    if (
        outcome.stop is None
        and 1 < len(refusals) == len(outcome.dense)
        and len(alike) == 1
        and all(error.verdict is Verdict.SPLIT for error in refusals)
        and not any("Inspection" in (code or "") or "inspection" in (code or "") for code in alike)
    ):
        outcome.stop = refusals[0]
    return outcome
