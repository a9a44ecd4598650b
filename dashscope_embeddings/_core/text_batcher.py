"""Micro-batching: single texts of several callers that wait at the same time are sent in one request.

A text that waits alone is sent alone, at once. If texts have to wait, for a request to end or for the limiter, the
first one also takes the texts behind it into its request, just before it is sent.

Leaderless: each caller polls `poll` and performs the returned action, which is to wait, to send a batch, or to take
its result. So a cancelled caller cannot block the rest. The first text in the queue is woken when it is its turn;
if it does not act, because its task was cancelled or its loop stopped, the others do after `_POLL_SECONDS`. Nothing
here waits or sends, so threads, tasks and event loops may be mixed. Ctrl-C may interrupt a caller at any line of
this module: whatever state that leaves, the others go on after the same time.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from dashscope_embeddings import _process
from dashscope_embeddings._core.exchange import Outcome, warn_of_throttling
from dashscope_embeddings.errors import Action

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashscope_embeddings._core.exchange import RequestContext
    from dashscope_embeddings._core.permit import Permit, Sender
    from dashscope_embeddings._core.planning import BatchPlanner

_POLL_SECONDS = 0.25
"""Seconds after which a waiting caller polls again by itself, so that no caller depends on being woken."""
_FULL_RATE_CALLERS = 64
"""With more waiting callers each polls less often: all together they poll as often as this many."""


@dataclass(slots=True, eq=False)
class SingleText:
    """A caller and its only text."""

    text: str
    estimated_tokens: int
    wake: Callable[[], object]
    is_interrupted: Callable[[], bool] = lambda: False
    """Whether its caller was interrupted; the thread that acts for it may go on for long."""
    on_late_outcome: Callable[[Outcome], object] | None = None
    """Called with the outcome if the caller stopped waiting before it had it. Set before `leave`."""
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
    """A request that may be sent now, for one text or several."""

    members: list[SingleText]
    permit: Permit
    task: Sender | None
    """The task that sends it; None: a thread, which cannot disappear."""

    @property
    def texts(self) -> list[str]:
        return [member.text for member in self.members]

    @property
    def is_orphaned(self) -> bool:
        """Whether it will not complete, because its task or loop has ended, or its only caller was interrupted."""
        if self.task is not None and not self.task.is_running():
            return True
        return len(self.members) == 1 and self.members[0].is_interrupted()


PollResult: TypeAlias = float | BatchCall | Outcome
"""Wait at most this many seconds; or send this batch and call `complete`; or the result."""


@dataclass(eq=False)
class TextBatcher:
    """The waiting texts of one client with the same role and output."""

    planner: BatchPlanner
    """Knows how much fits into one request."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: OrderedDict[SingleText, None] = field(default_factory=OrderedDict)
    _in_flight: set[BatchCall] = field(default_factory=set)
    _last_moved_at: float = -math.inf
    """When a request last started or ended."""

    def __post_init__(self) -> None:
        _process.on_fork(self)

    def reset_after_fork(self) -> None:
        """Starts with an empty queue: the callers of the parent process are not in the child."""
        self._lock = threading.Lock()
        self._waiting, self._in_flight = OrderedDict(), set()

    def enqueue(self, text: SingleText) -> None:
        """Queues a text. Its caller must call `leave` in every case."""
        with self._lock:
            self._waiting[text] = None

    def poll(self, text: SingleText, context: RequestContext, task: Sender | None) -> PollResult:
        """What the caller of `text` has to do next; `task` is the caller's task, None for a thread."""
        with self._lock:
            self._requeue_orphaned(context)
            if text.outcome is not None:
                return text.outcome
            now = context.limiter.clock()
            pause = _POLL_SECONDS * max(1.0, len(self._waiting) / _FULL_RATE_CALLERS)
            if text.batch_call is not None:
                return pause
            is_first = next(iter(self._waiting), text) is text
            if not is_first and now - self._last_moved_at < _POLL_SECONDS:
                if text not in self._waiting:
                    self._put_first(text)
                return pause
            members = self._next_batch(text)
            if text.permit is None:
                text.permit = context.create_permit(text.estimated_tokens)
            text.permit.wake = text.wake
            text.permit.estimated_tokens = sum(member.estimated_tokens for member in members)
            if wait := context.limiter.try_acquire(text.permit):
                return min(wait, _POLL_SECONDS)
            return self._start_batch(members, context, task, now)

    def complete(self, batch_call: BatchCall, outcome: Outcome | None, context: RequestContext) -> None:
        """Hands the outcome of a request to its texts; None: it was interrupted, and they wait again."""
        with self._lock:
            now = context.limiter.clock()
            for row, member in reversed(list(enumerate(batch_call.members))):
                if member.batch_call is not batch_call:
                    continue  # this request was taken for orphaned, and another one contains the text
                member.batch_call = None
                if outcome is None or self._should_retry(member, row, outcome, context, now):
                    self._requeue(member)
                else:
                    member.outcome = _outcome_of_row(outcome, row, batch_call)
                    _report_if_late(member)
                    member.wake()
            # Last: if an interruption ends this method early, the request is still found to be orphaned.
            self._in_flight.discard(batch_call)
            self._wake_first(now)

    def leave(self, text: SingleText, context: RequestContext) -> None:
        """Removes a text: its caller has the result, or stopped waiting."""
        with self._lock:
            text.has_left = True
            _report_if_late(text)
            if text.permit is not None:
                context.limiter.cancel(text.permit)
            if text.outcome is None and text in self._waiting:
                del self._waiting[text]
                self._wake_first(context.limiter.clock())

    # --- with the lock held -------------------------------------------------------------------------------

    def _should_retry(self, text: SingleText, row: int, outcome: Outcome, context: RequestContext, now: float) -> bool:
        """Whether a throttled text is sent again; not if it has a result of its own."""
        if _is_final(outcome, row) or outcome.abort_error is None or outcome.abort_error.action is not Action.BACK_OFF:
            return False
        text.throttled_since = min(text.throttled_since, now)
        should_retry = context.max_retries > 0 and now - text.throttled_since <= context.max_throttled_seconds
        if should_retry:
            warn_of_throttling(context, outcome.abort_error, now, text.throttled_since)
        return should_retry

    def _requeue(self, text: SingleText) -> None:
        if not text.has_left and not text.is_interrupted():
            self._put_first(text)

    def _put_first(self, text: SingleText) -> None:
        self._waiting[text] = None
        self._waiting.move_to_end(text, last=False)

    def _next_batch(self, first: SingleText) -> list[SingleText]:
        """This text and those that wait longest, as many as fit into one request; removes those whose callers left."""
        members, tokens, abandoned = [first], first.estimated_tokens, []
        for other in self._waiting:
            if other is first:
                continue
            if other.has_left or other.is_interrupted():
                abandoned.append(other)
                continue
            if not self.planner.has_room(len(members), tokens, other.estimated_tokens):
                break
            members.append(other)
            tokens += other.estimated_tokens
        for other in abandoned:
            del self._waiting[other]
        return members

    def _start_batch(
        self, members: list[SingleText], context: RequestContext, task: Sender | None, now: float
    ) -> BatchCall:
        if (permit := members[0].permit) is None:
            raise RuntimeError("a text without a permit cannot be sent")
        members[0].permit = None
        batch_call = BatchCall(members, permit, task)
        self._in_flight.add(batch_call)
        for member in members:
            # An earlier interruption in this method may have removed it from the queue already.
            self._waiting.pop(member, None)
            if member.permit is not None:
                context.limiter.cancel(member.permit)
                member.permit = None
            member.batch_call = batch_call
        self._wake_first(now)
        return batch_call

    def _wake_first(self, now: float) -> None:
        self._last_moved_at = now
        if self._waiting:
            next(iter(self._waiting)).wake()

    def _requeue_orphaned(self, context: RequestContext) -> None:
        for orphan in [call for call in self._in_flight if call.is_orphaned]:
            context.limiter.cancel(orphan.permit)
            for member in reversed(orphan.members):
                if member.batch_call is orphan:
                    member.batch_call = None
                    self._requeue(member)
            self._in_flight.discard(orphan)


def _report_if_late(text: SingleText) -> None:
    if text.has_left and text.outcome is not None and text.on_late_outcome is not None:
        text.on_late_outcome(text.outcome)


def _is_final(outcome: Outcome, row: int) -> bool:
    """Whether this row has its vectors, or an error of its own."""
    error = outcome.errors.get(row)
    return outcome.vectors[row] is not None or (error is not None and error is not outcome.abort_error)


def _outcome_of_row(outcome: Outcome, row: int, batch_call: BatchCall) -> Outcome:
    """One text's share of the outcome. Each answered text gets its share of the tokens; the first, all requests."""
    count = len(batch_call.members)
    answered = [i for i in range(count) if outcome.vectors[i] is not None]
    billed = answered or [0]  # no row is complete, but chunks of a long text may have been answered
    own = Outcome([outcome.vectors[row]])
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
