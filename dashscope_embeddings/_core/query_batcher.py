"""Micro-batching: queries that wait at the same time are sent in one request.

A query that waits alone is sent alone, at once. If queries have to wait, for a request to end or for the limiter,
the first one also takes the queries behind it into its request, just before it is sent.

Leaderless: each caller polls `poll` and performs the returned action, which is to wait, to send a batch, or to take
its result. So a cancelled caller cannot block the rest. The first query in the queue is woken when it is its turn;
if it does not act, because its task was cancelled or its loop stopped, the others do after `_POLL_SECONDS`. Nothing
here waits or sends, so threads, tasks and event loops may be mixed. Ctrl-C may interrupt a caller at any line of
this module: whatever state that leaves, the others go on after the same time.
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
"""Seconds after which a waiting caller polls again by itself, so that no caller depends on being woken."""


class SendingTask(Protocol):
    """A task that sends a request."""

    def is_running(self) -> bool:
        """Whether it can continue: it has not ended, and its event loop is running."""


@dataclass(slots=True, eq=False)
class Query:
    """A caller and its text."""

    text: str
    estimated_tokens: int
    wake: Callable[[], object]
    is_interrupted: Callable[[], bool] = lambda: False
    """Whether its caller was interrupted; the thread that acts for it may go on for long."""
    permit: Permit | None = None
    batch_call: BatchCall | None = None
    """The request that contains it now."""
    throttled_since: float = math.inf
    outcome: Outcome | None = None
    """Its result, of one row."""
    has_left: bool = False
    """Whether its caller stopped waiting."""


@dataclass(slots=True, eq=False)
class BatchCall:
    """A request that may be sent now, for one query or several."""

    queries: list[Query]
    permit: Permit
    task: SendingTask | None
    """The task that sends it; None: a thread, which cannot disappear."""

    @property
    def texts(self) -> list[str]:
        """The texts, one for each query."""
        return [query.text for query in self.queries]

    @property
    def is_orphaned(self) -> bool:
        """Whether it will not complete, because its task or loop has ended, or its only caller was interrupted."""
        if self.task is not None and not self.task.is_running():
            return True
        return len(self.queries) == 1 and self.queries[0].is_interrupted()


PollResult: TypeAlias = float | BatchCall | Outcome
"""Wait at most this many seconds; or send this batch and call `complete`; or the result."""


@dataclass(eq=False)
class QueryBatcher:
    """The waiting queries of one client with the same role and output."""

    max_in_flight: int
    """Limit of concurrent requests."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: deque[Query] = field(default_factory=deque)
    _in_flight: set[BatchCall] = field(default_factory=set)
    _last_moved_at: float = -math.inf
    """When a request last started or ended."""

    def __post_init__(self) -> None:
        _process.on_fork(self)

    def reset_after_fork(self) -> None:
        """Starts with an empty queue: the callers of the parent process are not in the child."""
        self._lock = threading.Lock()
        self._waiting, self._in_flight = deque(), set()

    def enqueue(self, query: Query) -> None:
        """Queues a query. Its caller must call `leave` in every case."""
        with self._lock:
            self._waiting.append(query)

    def poll(self, query: Query, context: RequestContext, task: SendingTask | None) -> PollResult:
        """What the caller of `query` has to do next; `task` is the caller's task, None for a thread."""
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

    def complete(self, batch_call: BatchCall, outcome: Outcome | None, context: RequestContext) -> None:
        """Hands the outcome of a request to its queries; None: it was interrupted, and they wait again."""
        with self._lock:
            now = context.limiter.clock()
            for row, query in reversed(list(enumerate(batch_call.queries))):
                if query.batch_call is not batch_call:
                    continue  # this request was taken for orphaned, and another one contains the query
                query.batch_call = None
                if outcome is None or self._should_retry(query, row, outcome, context, now):
                    self._requeue(query)
                else:
                    query.outcome = _outcome_of_row(outcome, row, batch_call)
                    query.wake()
            # Last: if an interruption ends this method early, the request is still found to be orphaned.
            self._in_flight.discard(batch_call)
            self._wake_first(now)

    def leave(self, query: Query, context: RequestContext) -> None:
        """Removes a query: its caller has the result, or stopped waiting."""
        with self._lock:
            query.has_left = True
            if query.permit is not None:
                context.limiter.cancel(query.permit)
            if query.outcome is None and query in self._waiting:
                self._waiting.remove(query)
                self._wake_first(context.limiter.clock())

    # --- with the lock held -------------------------------------------------------------------------------

    def _should_retry(self, query: Query, row: int, outcome: Outcome, context: RequestContext, now: float) -> bool:
        """Whether a throttled query is sent again; not if it has a result of its own."""
        if _is_final(outcome, row) or outcome.abort_error is None or outcome.abort_error.action is not Action.BACK_OFF:
            return False
        query.throttled_since = min(query.throttled_since, now)
        should_retry = context.max_retries > 0 and now - query.throttled_since <= context.max_throttled_seconds
        if should_retry:
            warn_of_throttling(context, outcome.abort_error, now, query.throttled_since)
        return should_retry

    def _requeue(self, query: Query) -> None:
        if not query.has_left and not query.is_interrupted():
            self._waiting.appendleft(query)

    def _start_batch(self, query: Query, context: RequestContext, task: SendingTask | None, now: float) -> BatchCall:
        permit = query.permit
        if permit is None:
            raise RuntimeError("a query without a permit cannot be sent")
        query.permit = None
        # An earlier interruption in this method may have removed the query from the queue already.
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
        for member in batch_call.queries:
            member.batch_call = batch_call
        self._wake_first(now)
        return batch_call

    def _wake_first(self, now: float) -> None:
        self._last_moved_at = now
        if self._waiting:
            self._waiting[0].wake()

    def _requeue_orphaned(self, context: RequestContext) -> None:
        for orphan in [call for call in self._in_flight if call.is_orphaned]:
            context.limiter.cancel(orphan.permit)
            for query in reversed(orphan.queries):
                if query.batch_call is orphan:
                    query.batch_call = None
                    self._requeue(query)
            self._in_flight.discard(orphan)


def _has_vectors(outcome: Outcome, row: int) -> bool:
    return outcome.dense[row] is not None or outcome.sparse[row] is not None


def _is_final(outcome: Outcome, row: int) -> bool:
    """Whether this row has its vectors, or an error of its own."""
    error = outcome.errors.get(row)
    return _has_vectors(outcome, row) or (error is not None and error is not outcome.abort_error)


def _outcome_of_row(outcome: Outcome, row: int, batch_call: BatchCall) -> Outcome:
    """One query's share of the outcome. The first answered query is billed for the requests, each for its text."""
    count = len(batch_call.queries)
    answered = [i for i in range(count) if _has_vectors(outcome, i)]
    billed = answered or [0]  # no row is complete, but chunks of a long text may have been answered
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
