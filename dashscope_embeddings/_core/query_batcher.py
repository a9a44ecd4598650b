"""Queries that wait at the same time travel in one request.

A query that nobody waits with goes alone and at once. Where queries have to wait, for a free lane or for the
limiter, whoever is first takes along those behind it, as late as possible: when the request may really go.

There is no leader that could die with the others waiting for it. Every caller asks `step` what to do, and
does it: wait, send what it is handed, or take its vectors. The first in the queue is woken when it is its turn;
if it does not act, because its task was cancelled or its loop stopped, the next ones do after a moment. Nothing
here waits or sends; threads, tasks and event loops may mix. Ctrl-C may tear a task out of any line of this module:
whatever it leaves half done, the others get on after that moment.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from dashscope_embeddings import _process
from dashscope_embeddings._core.exchange import Outcome, warn_of_throttling
from dashscope_embeddings.errors import Action

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashscope_embeddings._core.exchange import RequestContext
    from dashscope_embeddings._core.rate_limiter import Permit

_POLL_SECONDS = 0.25
"""Seconds after which a waiting caller looks again by itself; nobody depends on being woken."""


class SendingTask(Protocol):
    """A task that sends a request."""

    def is_running(self) -> bool:
        """Whether it can go on: its loop runs, and it has not ended."""


@dataclass(slots=True, eq=False)
class Query:
    """One caller and its text."""

    text: str
    estimated_tokens: int
    wake: Callable[[], object]
    is_interrupted: Callable[[], bool] = lambda: False
    """Whether its caller was interrupted: the thread that acts for it may be busy for long."""
    permit: Permit | None = None
    batch_call: BatchCall | None = None
    """The request that carries it now."""
    throttled_since: float = math.inf
    outcome: Outcome | None = None
    """What became of it: one row."""
    has_left: bool = False
    """Its caller waits no more."""


@dataclass(slots=True, eq=False)
class BatchCall:
    """A request that may go now, for one query or several."""

    queries: list[Query]
    permit: Permit
    task: SendingTask | None
    """What sends it; None: a thread, which always comes back."""

    @property
    def texts(self) -> list[str]:
        """One for each query."""
        return [query.text for query in self.queries]

    @property
    def is_orphaned(self) -> bool:
        """Whether it can no longer land, as its loop has stopped or its task was torn down; or nobody wants it."""
        if self.task is not None and not self.task.is_running():
            return True
        return len(self.queries) == 1 and self.queries[0].is_interrupted()


PollResult: TypeAlias = float | BatchCall | Outcome
"""Wait so many seconds at most; or send this and `land` it; or done."""


@dataclass(eq=False)
class QueryBatcher:
    """The waiting queries of one client, of one role and output."""

    max_in_flight: int
    """Requests that may be under way at once."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: deque[Query] = field(default_factory=deque)
    _in_flight: set[BatchCall] = field(default_factory=set)
    _last_moved_at: float = -math.inf
    """When the queue last moved."""

    def __post_init__(self) -> None:
        _process.on_fork(self)

    def reset_after_fork(self) -> None:
        """Starts with an empty queue: the callers of the parent process are not in the child."""
        self._lock = threading.Lock()
        self._waiting, self._in_flight = deque(), set()

    def enqueue(self, query: Query) -> None:
        """Queues a query. Whoever joins must `leave`, whatever happens."""
        with self._lock:
            self._waiting.append(query)

    def poll(self, query: Query, context: RequestContext, task: SendingTask | None) -> PollResult:
        """What the caller of `query` has to do next; `carrier` is its task, if it is one."""
        with self._lock:
            self._requeue_orphaned(context)
            if query.outcome is not None:
                return query.outcome
            now = context.limiter.clock()
            first = not self._waiting or self._waiting[0] is query
            if query.batch_call is not None or len(self._in_flight) >= self.max_in_flight:
                return _POLL_SECONDS
            if not first and now - self._last_moved_at < _POLL_SECONDS:
                if query not in self._waiting:
                    self._waiting.appendleft(query)
                return _POLL_SECONDS
            if query.permit is None:
                query.permit = context.limiter.create_permit(query.estimated_tokens, high_priority=True)
            if wait := context.limiter.try_acquire(query.permit):
                return min(wait, _POLL_SECONDS)
            return self._start_batch(query, context, task, now)

    def complete(self, flight: BatchCall, outcome: Outcome | None, context: RequestContext) -> None:
        """Tells what became of a flight; None: it was broken off, and its queries wait again."""
        with self._lock:
            now = context.limiter.clock()
            for row, query in reversed(list(enumerate(flight.queries))):
                if query.batch_call is not flight:
                    continue  # it was taken for lost, and another flight carries it
                query.batch_call = None
                if outcome is None or self._should_retry(query, row, outcome, context, now):
                    self._requeue(query)
                else:
                    query.outcome = _outcome_of_row(outcome, row, flight)
                    query.wake()
            # Last: a landing that an interruption breaks off is found among the lost.
            self._in_flight.discard(flight)
            self._wake_first(now)

    def leave(self, query: Query, context: RequestContext) -> None:
        """The caller has its outcome, or does not want it any more."""
        with self._lock:
            query.has_left = True
            if query.permit is not None:
                context.limiter.cancel(query.permit)
            if query.outcome is None and query in self._waiting:
                self._waiting.remove(query)
                self._wake_first(context.limiter.clock())

    # --- with the lock held -------------------------------------------------------------------------------

    def _should_retry(self, query: Query, row: int, outcome: Outcome, context: RequestContext, now: float) -> bool:
        """Whether a query that was throttled is to be asked once more; what has its answer is not."""
        if _is_final(outcome, row) or outcome.abort_error is None or outcome.abort_error.action is not Action.BACK_OFF:
            return False
        query.throttled_since = min(query.throttled_since, now)
        again = context.max_retries > 0 and now - query.throttled_since <= context.max_throttled_seconds
        if again:
            warn_of_throttling(context, outcome.abort_error, now, query.throttled_since)
        return again

    def _requeue(self, query: Query) -> None:
        if not query.has_left and not query.is_interrupted():
            self._waiting.appendleft(query)

    def _start_batch(self, query: Query, context: RequestContext, task: SendingTask | None, now: float) -> BatchCall:
        permit = query.permit
        if permit is None:
            raise RuntimeError("a query without a permit cannot take off")
        query.permit = None
        # Where an interruption tore a task out of this very code, its query may stand nowhere, or others' for ever.
        if query in self._waiting:
            self._waiting.remove(query)
        others: list[Query] = []
        while self._waiting and len(others) < context.limits.rows - 1:
            other = self._waiting.popleft()
            if other.permit is not None:
                context.limiter.cancel(other.permit)
                other.permit = None
            if not other.has_left and not other.is_interrupted():
                others.append(other)
        batch_call = BatchCall([query, *others], permit, task)
        self._in_flight.add(batch_call)
        for carried in batch_call.queries:
            carried.batch_call = batch_call
        self._wake_first(now)
        return batch_call

    def _wake_first(self, now: float) -> None:
        self._last_moved_at = now
        if self._waiting:
            self._waiting[0].wake()

    def _requeue_orphaned(self, context: RequestContext) -> None:
        for flight in [flight for flight in self._in_flight if flight.is_orphaned]:
            context.limiter.cancel(flight.permit)
            for query in reversed(flight.queries):
                if query.batch_call is flight:
                    query.batch_call = None
                    self._requeue(query)
            self._in_flight.discard(flight)


def _has_vectors(outcome: Outcome, row: int) -> bool:
    return outcome.dense[row] is not None or outcome.sparse[row] is not None


def _is_final(outcome: Outcome, row: int) -> bool:
    """Whether this row has its vectors, or a refusal of its own."""
    error = outcome.errors.get(row)
    return _has_vectors(outcome, row) or (error is not None and error is not outcome.abort_error)


def _outcome_of_row(outcome: Outcome, row: int, batch_call: BatchCall) -> Outcome:
    """One query's part of what came back. The first that was answered is billed the requests, each its text."""
    count = len(batch_call.queries)
    answered = [i for i in range(count) if _has_vectors(outcome, i)]
    billed = answered or [0]  # a text of which pieces were answered before one was refused
    own = Outcome([outcome.dense[row]], [outcome.sparse[row]])
    own.request_ids = list(outcome.request_ids)
    if row in billed:
        own.texts, own.tokens = min(1, len(answered)), outcome.tokens // len(billed)
        if row == billed[0]:
            own.requests = outcome.requests
            own.texts += outcome.texts - len(answered)
            own.tokens += outcome.tokens % len(billed)
    if (error := outcome.errors.get(row)) is not None:
        own.errors[0] = error.copy() if count > 1 else error
    if outcome.abort_error is not None and not _is_final(outcome, row):
        own.abort_error = own.errors.get(0) or outcome.abort_error.copy()
    return own
