"""One batch from its first try to vectors: every decision, no I/O.

`exchange` is a generator. It yields what has to be done (`Send`, `Sleep`), is sent what came of it, and
returns an `Outcome`. A driver performs the steps and decides nothing. No socket, clock or `await` is here.

The unit of retry is one request: what was answered is never asked again. One refused text never costs its
neighbours: the request is split until the text is found.
"""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from dashscope_embeddings import lengths, wire
from dashscope_embeddings.errors import (
    AuthenticationError,
    BadReply,
    ConnectionFailed,
    DashScopeError,
    GivenUp,
    Refusal,
    ServiceError,
    Verdict,
    from_reply,
)
from dashscope_embeddings.vectors import average, strongest
from dashscope_embeddings.wire import Reply, Rows

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

    from dashscope_embeddings.lengths import Limits, LongText
    from dashscope_embeddings.limiter import Limiter, Permit
    from dashscope_embeddings.vectors import SparseVector
    from dashscope_embeddings.wire import Ask

_log = logging.getLogger("dashscope_embeddings")


# --- the steps ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """Another endpoint than that of embeddings, and files that are too large to be held as a body."""

    method: str
    path: str
    """Below the host's root, with its query if it has one."""
    upload: Path | None = None
    """Sent as the file of a form, with `fields`."""
    fields: Mapping[str, str] = field(default_factory=dict)
    into: Path | None = None
    """Where the body of a successful reply is written, whole or not at all; the reply then comes without it."""


@dataclass(frozen=True, slots=True)
class Send:
    """Post this body to the endpoint; send back a `Reply`, or a `Failure` if none came."""

    body: bytes = b""
    target: Target | None = None
    """None: the endpoint of embeddings."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Let so many seconds pass; send back None, or a `Failure` if the job was given up meanwhile."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """No reply came; `what` says why, without texts or keys."""

    what: str
    retry: bool = True
    """False: trying again cannot help, as with a URL that no client can open."""


GIVEN_UP = Failure("not sent, because the job had failed elsewhere", retry=False)
"""A driver's answer to any step of a job that is over."""

Step: TypeAlias = Send | Sleep
Answer: TypeAlias = Reply | Failure | None


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
    host: str = ""
    advice: str = ""
    """What to try when the key is refused: keys belong to one region."""

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


@dataclass(frozen=True, slots=True)
class _Piece:
    """A text to ask for, and the row of the batch that it stands for, alone or with others."""

    row: int
    text: str


Flow: TypeAlias = "Generator[Step, Answer, Outcome]"


# --- the flow ----------------------------------------------------------------------------------------------


def exchange(texts: Sequence[str], terms: Terms, permit: Permit | None = None) -> Flow:
    """Asks for the vectors of one batch; splits, shortens and asks again where that helps.

    `permit`: one that the limiter has granted already, for the first request.
    """
    outcome = Outcome([None] * len(texts), [None] * len(texts))
    gathered: dict[int, list[tuple[str, Rows, int]]] = {}
    # A batch that only repeats the texts of earlier ones has nothing to ask.
    waiting = deque([[_Piece(row, text) for row, text in enumerate(texts)]] if texts else [])
    while waiting:
        group = waiting.popleft()
        answer = yield from _request([piece.text for piece in group], terms, permit)
        permit = None
        if isinstance(answer, Rows):
            _count(outcome, answer, len(group))
            for at, piece in enumerate(group):
                gathered.setdefault(piece.row, []).append((piece.text, answer, at))
        elif smaller := _smaller(group, answer, terms):
            waiting.extendleft(reversed(smaller))
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
    return _judged(outcome)


_ABOUT_A_TEXT = frozenset({Verdict.SPLIT, Verdict.SHORTEN})


def _request(texts: list[str], terms: Terms, permit: Permit | None) -> Generator[Step, Answer, Rows | DashScopeError]:
    """One request, as often as it takes: the rows, or the refusal that further tries cannot change."""
    body = wire.body(terms.ask, texts)
    tokens = max(1, round(sum(map(lengths.estimate, texts))))
    urgent = terms.ask.text_type == "query"
    failures, throttled_since = 0, math.inf
    while True:
        permit = permit or terms.limiter.ask(tokens, urgent=urgent)
        try:
            # A grant is worth nothing after a throttle elsewhere: ask until the answer is "now".
            while wait := terms.limiter.reserve(permit):
                if (given_up := (yield Sleep(wait))) is not None:
                    return _read(given_up, terms, len(texts))
            error = _read((yield Send(body)), terms, len(texts))
            if isinstance(error, Rows):
                terms.limiter.settle(permit, error.tokens)
                return error
            if error.verdict is Verdict.THROTTLE:
                terms.limiter.refuse(permit, _capped(error))
        finally:
            terms.limiter.release(permit)
        permit = None
        if error.verdict is Verdict.THROTTLE:
            now = terms.limiter.clock()
            throttled_since = min(throttled_since, now)
            if terms.max_retries == 0 or now - throttled_since > terms.patience:
                return error
            _log.info("throttled, asking again when the limiter allows: %s", error)
        elif error.verdict is Verdict.RETRY and failures < terms.max_retries:
            failures += 1
            pause = _backoff(failures, _capped(error))
            _log.info("try %d of %d failed, next in %.1f s: %s", failures, terms.max_retries + 1, pause, error)
            if (given_up := (yield Sleep(pause))) is not None:
                return _read(given_up, terms, len(texts))
        else:
            return error


def _read(answer: Answer, terms: Terms, count: int) -> Rows | DashScopeError:
    if answer is GIVEN_UP:
        return GivenUp(GIVEN_UP.what)
    if isinstance(answer, Failure):
        error = ConnectionFailed(f"no answer from {terms.host}: {answer.what}")
        error.verdict = Verdict.RETRY if answer.retry else Verdict.STOP
        return error
    if not isinstance(answer, Reply):
        raise TypeError(f"a driver must answer Send with Reply or Failure, not {type(answer).__name__}")
    try:
        read = wire.read(terms.ask, answer, count)
    except BadReply as broken:
        return broken
    return read if isinstance(read, Rows) else _explained(read, terms)


def _explained(refusal: Refusal, terms: Terms) -> ServiceError:
    error = from_reply(refusal)
    if isinstance(error, AuthenticationError):
        error.advise(terms.advice)
    return error


# --- pauses ------------------------------------------------------------------------------------------------

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 20.0
_LONGEST_RETRY_AFTER = 60.0


def _backoff(failures: int, retry_after: float | None) -> float:
    """Exponential with full jitter (https://aws.amazon.com/builders-library/timeouts-retries-and-backoff)."""
    ceiling = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0**failures)
    return max(retry_after or 0.0, random.uniform(0.0, ceiling))  # noqa: S311 - spreads load, guards nothing


def _capped(error: DashScopeError) -> float | None:
    asked = error.retry_after if isinstance(error, ServiceError) else None
    return None if asked is None else min(asked, _LONGEST_RETRY_AFTER)


# --- smaller requests --------------------------------------------------------------------------------------


def _smaller(group: list[_Piece], error: DashScopeError, terms: Terms) -> list[list[_Piece]]:
    """The requests to send in place of a refused one; none: the refusal stands."""
    limit = error.limit if isinstance(error, ServiceError) else None
    if error.verdict is Verdict.CUT:
        if limit is None or not 0 < limit < len(group):
            return _halves(group)
        terms.limits.fewer_rows(limit)
        return [group[i : i + limit] for i in range(0, len(group), limit)]
    if error.verdict is Verdict.SHORTEN and limit is not None:
        terms.limits.shorter_rows(limit)
        if len(group) == 1:
            return _shortened(group[0], limit, terms)
        long = [piece for piece in group if lengths.estimate(piece.text) > limit]
        if 0 < len(long) < len(group):
            return [[piece for piece in group if piece not in long], *([piece] for piece in long)]
    if error.verdict in {Verdict.SPLIT, Verdict.SHORTEN}:
        return _halves(group)
    return []


def _halves(group: list[_Piece]) -> list[list[_Piece]]:
    middle = len(group) // 2
    return [group[:middle], group[middle:]] if middle else []


def _shortened(piece: _Piece, limit: int, terms: Terms) -> list[list[_Piece]]:
    """The text that was too long, cut as the caller wants it; none: it is to be an error."""
    if terms.long_text == "error" or len(piece.text) < _SHORTEST:
        return []
    # The service counted more than `limit` tokens: where we had estimated fewer, our estimate is not to be
    # trusted for this text, and a share of its length is taken instead.
    estimated = lengths.estimate(piece.text)
    if terms.long_text == "truncate":
        return [[_Piece(piece.row, lengths.beginning(piece.text, min(limit, estimated * _TRUNCATION)))]]
    parts = lengths.pieces(piece.text, min(limit * _TRUNCATION, estimated * _HALF))
    return [[_Piece(piece.row, part)] for part in parts]


_SHORTEST = 2
_TRUNCATION = 0.8
_HALF = 0.55


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
    """A refusal that every row of several meets alike is about the request: the rest would meet it too."""
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
