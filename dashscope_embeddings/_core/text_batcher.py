"""Micro-batching: single texts of several callers that wait at the same time are sent in one request.

A text that waits alone is sent alone, at once. If texts have to wait, for a request to end or for the limiter, the
first one also takes the texts behind it into its request, just before it is sent. Equal texts share a row: a text that
is equal to one in flight joins that request, and is billed nothing.

Leaderless: each caller polls `poll` and performs the returned action, which is to wait, to send a batch, or to take
its result. So a cancelled caller cannot block the rest. The first text in the queue is woken when it is its turn;
if it does not act, because its task was cancelled or its loop stopped, the others do after `_POLL_SECONDS`. Nothing
here waits or sends, so threads, tasks and event loops may be mixed. Ctrl-C may interrupt a caller at any line of
this module: whatever state that leaves, the others go on after the same time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from dashscope_embeddings import _process
from dashscope_embeddings._core.exchange import Outcome, warn_of_throttling
from dashscope_embeddings._core.permit import Waiter
from dashscope_embeddings._core.steps import AskUserLimiter
from dashscope_embeddings._process import CleanupLock, locked, locked_soon
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
_JOINED_SECONDS = 10.0
"""Age of a request, in seconds, at which those that joined it send their own: one may block the loop that sends it."""


@dataclass(slots=True, eq=False)
class SingleText(Waiter):
    """A caller and its only text."""

    text: str
    estimated_tokens: int
    is_interrupted: Callable[[], bool] = lambda: False
    """Whether its caller was interrupted; the thread that acts for it may go on for long."""
    on_late_outcome: Callable[[Outcome], object] | None = None
    """Called with the outcome if the caller stopped waiting before it had it. Set before `leave`."""
    permit: Permit | None = None
    batch_call: BatchCall | None = None
    """The request that contains it now."""
    has_joined: bool = False
    """Whether it ever joined a request in flight, which a text does once."""
    throttled_since: float = math.inf
    outcome: Outcome | None = None
    """Its result, of one row."""
    billed: Outcome = field(default_factory=lambda: Outcome([None]))
    """Its share of the bills of its requests: after one that was throttled in the end it waits again."""
    has_left: bool = False
    """Whether its caller stopped waiting."""

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody wants its result."""
        return self.has_left or self.is_interrupted()


@dataclass(slots=True, eq=False)
class BatchCall:
    """A request that may be sent now, for one text or several."""

    members: list[SingleText]
    tokens: dict[str, int]
    """Text of each row → its tokens. Equal texts share a row."""
    permit: Permit
    task: Sender | None
    """The task that sends it; None: a thread, which cannot disappear."""
    started_at: float
    joined: list[SingleText] = field(default_factory=list)
    """Equal to members, and added while it was in flight."""

    @property
    def texts(self) -> list[str]:
        """One for each row."""
        return list(self.tokens)

    @property
    def is_orphaned(self) -> bool:
        """Whether it will not complete, because its task or loop has ended, or its only caller was interrupted."""
        if self.task is not None and not self.task.is_running():
            return True
        return len(self.members) == 1 and self.members[0].is_interrupted()

    def is_slow(self, now: float) -> bool:
        """Whether no equal text should wait for it any longer."""
        return now >= self.started_at + _JOINED_SECONDS


PollResult: TypeAlias = float | BatchCall | AskUserLimiter | Outcome
"""Wait at most this many seconds; or send this batch and call `complete`; or ask and call `grant`; or the result."""


@dataclass(eq=False)
class TextBatcher:
    """The waiting texts of one client with the same role and output."""

    planner: BatchPlanner
    """Knows how much fits into one request."""
    _lock: CleanupLock = field(default_factory=CleanupLock)
    _waiting: OrderedDict[SingleText, None] = field(default_factory=OrderedDict)
    _in_flight: set[BatchCall] = field(default_factory=set)
    _last_moved_at: float = -math.inf
    """When a request last started or ended."""
    _asking: tuple[SingleText, Sender | None] | None = None
    """Who asks the user's limiter, for the next request, whichever texts that will contain."""
    _grants: int = 0
    """Requests that it has let through and that have not started yet."""

    def __post_init__(self) -> None:
        _process.on_fork(self)

    def reset_after_fork(self) -> None:
        """Starts with an empty queue: the callers of the parent process are not in the child."""
        self._waiting, self._in_flight, self._asking, self._grants = OrderedDict(), set(), None, 0

    @locked
    def enqueue(self, text: SingleText) -> None:
        """Queues a text. Its caller must call `leave` in every case."""
        self._waiting[text] = None

    @locked
    def poll(self, text: SingleText, context: RequestContext, task: Sender | None) -> PollResult:
        """What the caller of `text` has to do next; `task` is the caller's task, None for a thread."""
        now = context.limiter.clock()
        self._requeue_orphaned(context, now)
        if text.outcome is not None:
            return text.outcome
        if self._is_in_flight(text, now) or not self._may_act(text, now):
            return _POLL_SECONDS * max(1.0, len(self._waiting) / _FULL_RATE_CALLERS)
        if context.has_user_limiter and not self._grants:
            if pause := _POLL_SECONDS if self._is_asking() else context.limiter.seconds_blocked():
                return min(pause, _POLL_SECONDS)
            self._asking = text, task
            return AskUserLimiter()
        members, tokens = self._next_batch(text)
        if text.permit is None:
            text.permit = context.create_permit(text.estimated_tokens)
        text.permit.wake = text.wake
        text.permit.estimated_tokens = sum(tokens.values())
        if wait := context.limiter.try_acquire(text.permit):
            return min(wait, _POLL_SECONDS)
        return self._start_batch(BatchCall(members, tokens, text.permit, task, now), context, now)

    @locked
    def grant(self, text: SingleText) -> None:
        """The user's limiter, which the caller of `text` has asked, lets a request through."""
        self._grants += 1
        self._end_asking(text)

    @locked_soon
    def complete(self, batch_call: BatchCall, outcome: Outcome | None, context: RequestContext) -> None:
        """Hands the outcome of a request to its texts; None: it was interrupted, and they wait again."""
        now = context.limiter.clock()
        payers = {member.text: member for member in reversed(batch_call.members)}
        rows = {text: row for row, text in enumerate(batch_call.tokens)}
        joined = set(batch_call.joined)
        for member in reversed([*batch_call.members, *batch_call.joined]):
            if member.batch_call is not batch_call:
                continue  # this request was taken for orphaned, and another one contains the text
            member.batch_call = None
            row = rows[member.text]
            if is_payer := outcome is not None and payers[member.text] is member:
                _bill(member.billed, row, outcome)
            if outcome is None or (
                not _is_final(outcome, row) and (member in joined or self._should_retry(member, outcome, context, now))
            ):
                self._requeue(member)
            else:
                member.outcome = _share(member, outcome, row, is_payer=is_payer)
                _report_if_late(member)
                member.wake_caller()
        # Last: if an interruption ends this method early, the request is still found to be orphaned.
        self._in_flight.discard(batch_call)
        self._wake_first(now)

    @locked_soon
    def leave(self, text: SingleText, context: RequestContext) -> None:
        """Removes a text: its caller has the result, or stopped waiting."""
        text.has_left = True
        self._end_asking(text)
        _report_if_late(text)
        if text.permit is not None:
            context.limiter.cancel(text.permit)
        if text.outcome is None and text in self._waiting:
            del self._waiting[text]
            self._wake_first(context.limiter.clock())

    # --- with the lock held -------------------------------------------------------------------------------

    def _is_in_flight(self, text: SingleText, now: float) -> bool:
        """Whether a request in flight contains the text, or an equal one, which it then joins."""
        if text.batch_call is None and not text.has_joined:
            equal = (call for call in self._in_flight if text.text in call.tokens and not call.is_slow(now))
            if (found := next(equal, None)) is not None:
                text.has_joined, text.batch_call = True, found
                found.joined.append(text)
                self._waiting.pop(text, None)
        return text.batch_call is not None

    def _may_act(self, text: SingleText, now: float) -> bool:
        """Whether it is this text's turn, or nothing has moved for so long that any text may act."""
        if next(iter(self._waiting), text) is text or now - self._last_moved_at >= _POLL_SECONDS:
            return True
        if text not in self._waiting:
            self._put_first(text)
        return False

    def _is_asking(self) -> bool:
        """Whether the user's limiter is being asked, by a caller that can still go on."""
        if self._asking is None:
            return False
        text, task = self._asking
        return not text.is_abandoned and (task is None or task.is_running())

    def _end_asking(self, text: SingleText) -> None:
        if self._asking is not None and self._asking[0] is text:
            self._asking = None

    def _next_batch(self, first: SingleText) -> tuple[list[SingleText], dict[str, int]]:
        """This text and those that wait longest, as many as fit into one request, and the tokens of each row.

        Removes those that nobody wants.
        """
        members, tokens = [first], {first.text: first.estimated_tokens}
        abandoned: list[SingleText] = []
        for other in self._waiting:
            if other is first:
                continue
            if other.is_abandoned:
                abandoned.append(other)
                continue
            if other.text not in tokens:
                if not self.planner.has_room(len(tokens), sum(tokens.values()), other.estimated_tokens):
                    break
                tokens[other.text] = other.estimated_tokens
            members.append(other)
        for other in abandoned:
            del self._waiting[other]
        return members, tokens

    def _start_batch(self, batch_call: BatchCall, context: RequestContext, now: float) -> BatchCall:
        self._in_flight.add(batch_call)
        self._grants -= context.has_user_limiter
        for member in batch_call.members:
            # An earlier interruption in this method may have removed it from the queue already.
            self._waiting.pop(member, None)
            if member.permit is not None and member.permit is not batch_call.permit:
                context.limiter.cancel(member.permit)
            member.permit = None
            member.batch_call = batch_call
        self._wake_first(now)
        return batch_call

    def _should_retry(self, text: SingleText, outcome: Outcome, context: RequestContext, now: float) -> bool:
        """Whether a text whose own request failed waits again: it was throttled."""
        if outcome.abort_error is None or outcome.abort_error.action is not Action.BACK_OFF:
            return False
        text.throttled_since = min(text.throttled_since, now)
        should_retry = context.max_retries > 0 and now - text.throttled_since <= context.max_throttled_seconds
        if should_retry:
            warn_of_throttling(context, outcome.abort_error, now, text.throttled_since)
        return should_retry

    def _requeue(self, text: SingleText) -> None:
        if not text.is_abandoned:
            self._put_first(text)

    def _put_first(self, text: SingleText) -> None:
        self._waiting[text] = None
        self._waiting.move_to_end(text, last=False)

    def _wake_first(self, now: float) -> None:
        self._last_moved_at = now
        if self._waiting:
            next(iter(self._waiting)).wake_caller()

    def _requeue_orphaned(self, context: RequestContext, now: float) -> None:
        """The texts of requests that will not complete wait again, as do those that joined a slow one."""
        for call in tuple(self._in_flight):
            if call.is_orphaned:
                context.limiter.cancel(call.permit)
                self._in_flight.discard(call)
                waiting_again = [*call.members, *call.joined]
            elif call.is_slow(now):
                waiting_again, call.joined = call.joined, []
            else:
                continue
            for member in reversed(waiting_again):
                if member.batch_call is call:
                    member.batch_call = None
                    self._requeue(member)


def _report_if_late(text: SingleText) -> None:
    if text.has_left and text.outcome is not None and text.on_late_outcome is not None:
        text.on_late_outcome(text.outcome)


def _is_final(outcome: Outcome, row: int) -> bool:
    """Whether this row has its vectors, or an error of its own."""
    error = outcome.errors.get(row)
    return outcome.vectors[row] is not None or (error is not None and error is not outcome.abort_error)


def _share(text: SingleText, outcome: Outcome, row: int, *, is_payer: bool) -> Outcome:
    """One text's share of the outcome; of equal texts, the first one pays."""
    part = outcome.vectors[row]
    own = text.billed
    own.vectors = [part and (part if is_payer else part.copy())]
    own.request_ids = list(outcome.request_ids)
    if (error := outcome.errors.get(row)) is not None:
        own.errors[0] = error.copy()
    if outcome.abort_error is not None and not _is_final(outcome, row):
        own.abort_error = own.errors.get(0) or outcome.abort_error.copy()
    return own


def _bill(own: Outcome, row: int, outcome: Outcome) -> None:
    """Each answered row is billed its share of the tokens; the first one, all requests and what is left over."""
    answered = [i for i, part in enumerate(outcome.vectors) if part is not None]
    billed = answered or [0]  # no row is complete, but chunks of a long text may have been answered
    if row in billed:
        own.texts += min(1, len(answered))
        own.tokens += outcome.tokens // len(billed)
    if row == billed[0]:
        own.requests += outcome.requests
        own.texts += outcome.texts - len(answered)
        own.tokens += outcome.tokens % len(billed)
