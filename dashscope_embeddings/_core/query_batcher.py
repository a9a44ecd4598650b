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
import os
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from dashscope_embeddings._core.exchange import Outcome, warn_of_throttling
from dashscope_embeddings.errors import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashscope_embeddings._core.exchange import Terms
    from dashscope_embeddings._core.rate_limiter import Permit

_LOOK = 0.25
"""Seconds after which a waiting caller looks again by itself; nobody depends on being woken."""


class Carrier(Protocol):
    """A task that sends a request."""

    def is_running(self) -> bool:
        """Whether it can go on: its loop runs, and it has not ended."""


@dataclass(slots=True, eq=False)
class Query:
    """One caller and its text."""

    text: str
    tokens: int
    wake: Callable[[], object]
    left: Callable[[], bool] = lambda: False
    """Whether its caller was interrupted: the thread that acts for it may be busy for long."""
    permit: Permit | None = None
    flight: Flight | None = None
    """The request that carries it now."""
    throttled_since: float = math.inf
    outcome: Outcome | None = None
    """What became of it: one row."""
    gone: bool = False
    """Its caller waits no more."""


@dataclass(slots=True, eq=False)
class Flight:
    """A request that may go now, for one query or several."""

    queries: list[Query]
    permit: Permit
    carrier: Carrier | None
    """What sends it; None: a thread, which always comes back."""

    @property
    def texts(self) -> list[str]:
        """One for each query."""
        return [query.text for query in self.queries]

    @property
    def lost(self) -> bool:
        """Whether it can no longer land, as its loop has stopped or its task was torn down; or nobody wants it."""
        if self.carrier is not None and not self.carrier.is_running():
            return True
        return len(self.queries) == 1 and self.queries[0].left()


Turn: TypeAlias = float | Flight | Outcome
"""Wait so many seconds at most; or send this and `land` it; or done."""


@dataclass
class Coalescer:
    """The waiting queries of one client, of one role and output."""

    lanes: int
    """Requests that may be under way at once."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pid: int = field(default_factory=os.getpid)
    _waiting: deque[Query] = field(default_factory=deque)
    _flying: set[Flight] = field(default_factory=set)
    _moved: float = -math.inf
    """When the queue last moved."""

    def join(self, query: Query) -> None:
        """Queues a query. Whoever joins must `leave`, whatever happens."""
        with self._lock_here():
            self._waiting.append(query)

    def step(self, query: Query, terms: Terms, carrier: Carrier | None) -> Turn:
        """What the caller of `query` has to do next; `carrier` is its task, if it is one."""
        with self._lock_here():
            self._recover(terms)
            if query.outcome is not None:
                return query.outcome
            now = terms.limiter.clock()
            first = not self._waiting or self._waiting[0] is query
            if query.flight is not None or len(self._flying) >= self.lanes:
                return _LOOK
            if not first and now - self._moved < _LOOK:
                if query not in self._waiting:
                    self._waiting.appendleft(query)
                return _LOOK
            if query.permit is None:
                query.permit = terms.limiter.ask(query.tokens, urgent=True)
            if wait := terms.limiter.reserve(query.permit):
                return min(wait, _LOOK)
            return self._take_off(query, terms, carrier, now)

    def land(self, flight: Flight, outcome: Outcome | None, terms: Terms) -> None:
        """Tells what became of a flight; None: it was broken off, and its queries wait again."""
        with self._lock_here():
            now = terms.limiter.clock()
            for row, query in reversed(list(enumerate(flight.queries))):
                if query.flight is not flight:
                    continue  # it was taken for lost, and another flight carries it
                query.flight = None
                if outcome is None or self._again(query, row, outcome, terms, now):
                    self._queue_again(query)
                else:
                    query.outcome = _row(outcome, row, flight)
                    query.wake()
            # Last: a landing that an interruption breaks off is found among the lost.
            self._flying.discard(flight)
            self._next(now)

    def leave(self, query: Query, terms: Terms) -> None:
        """The caller has its outcome, or does not want it any more."""
        with self._lock_here():
            query.gone = True
            if query.permit is not None:
                terms.limiter.release(query.permit)
            if query.outcome is None and query in self._waiting:
                self._waiting.remove(query)
                self._next(terms.limiter.clock())

    # --- with the lock held -------------------------------------------------------------------------------

    def _lock_here(self) -> threading.Lock:
        """A forked child starts with an empty queue: its parent's callers are not here."""
        if os.getpid() != self._pid:
            self._lock, self._pid = threading.Lock(), os.getpid()
            self._waiting, self._flying = deque(), set()
        return self._lock

    def _again(self, query: Query, row: int, outcome: Outcome, terms: Terms, now: float) -> bool:
        """Whether a query that was throttled is to be asked once more; what has its answer is not."""
        if _settled(outcome, row) or outcome.stop is None or outcome.stop.verdict is not Verdict.THROTTLE:
            return False
        query.throttled_since = min(query.throttled_since, now)
        again = terms.max_retries > 0 and now - query.throttled_since <= terms.patience
        if again:
            warn_of_throttling(terms, outcome.stop, now, query.throttled_since)
        return again

    def _queue_again(self, query: Query) -> None:
        if not query.gone and not query.left():
            self._waiting.appendleft(query)

    def _take_off(self, query: Query, terms: Terms, carrier: Carrier | None, now: float) -> Flight:
        permit = query.permit
        if permit is None:
            raise RuntimeError("a query without a permit cannot take off")
        query.permit = None
        # Where an interruption tore a task out of this very code, its query may stand nowhere, or others' for ever.
        if query in self._waiting:
            self._waiting.remove(query)
        others: list[Query] = []
        while self._waiting and len(others) < terms.limits.rows - 1:
            other = self._waiting.popleft()
            if other.permit is not None:
                terms.limiter.release(other.permit)
                other.permit = None
            if not other.gone and not other.left():
                others.append(other)
        flight = Flight([query, *others], permit, carrier)
        self._flying.add(flight)
        for carried in flight.queries:
            carried.flight = flight
        self._next(now)
        return flight

    def _next(self, now: float) -> None:
        self._moved = now
        if self._waiting:
            self._waiting[0].wake()

    def _recover(self, terms: Terms) -> None:
        for flight in [flight for flight in self._flying if flight.lost]:
            terms.limiter.release(flight.permit)
            for query in reversed(flight.queries):
                if query.flight is flight:
                    query.flight = None
                    self._queue_again(query)
            self._flying.discard(flight)


def _answered(outcome: Outcome, row: int) -> bool:
    return outcome.dense[row] is not None or outcome.sparse[row] is not None


def _settled(outcome: Outcome, row: int) -> bool:
    """Whether this row has its vectors, or a refusal of its own."""
    error = outcome.errors.get(row)
    return _answered(outcome, row) or (error is not None and error is not outcome.stop)


def _row(outcome: Outcome, row: int, flight: Flight) -> Outcome:
    """One query's part of what came back. The first that was answered is billed the requests, each its text."""
    count = len(flight.queries)
    answered = [i for i in range(count) if _answered(outcome, i)]
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
    if outcome.stop is not None and not _settled(outcome, row):
        own.stop = own.errors.get(0) or outcome.stop.copy()
    return own
