"""The driver for threads: performs the steps that flows yield, and decides nothing.

`run` drives one flow; `run_many` keeps several in flight and yields their outcomes in order; `run_single` drives a
text that may share a request with those of other callers. `async_drivers` does the same for tasks. The two modules
mirror each other on purpose: what need not differ between threads and tasks belongs in the flow.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from dashscope_embeddings._core.exchange import Outcome, exchange
from dashscope_embeddings._core.failures import CANCELLED
from dashscope_embeddings._core.steps import Send
from dashscope_embeddings._core.text_batcher import BatchCall
from dashscope_embeddings._process import ForkSafeLock, on_fork
from dashscope_embeddings._runtime import flow_runs
from dashscope_embeddings._runtime.deferred_signals import DeferredSignals, signals_of_this_thread
from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent, WorkItem, is_main_thread, shared_pool
from dashscope_embeddings.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from dashscope_embeddings._core.exchange import Exchange, RequestContext
    from dashscope_embeddings._core.permit import Permit
    from dashscope_embeddings._core.steps import Step, StepResult
    from dashscope_embeddings._core.text_batcher import SingleText, TextBatcher
    from dashscope_embeddings._runtime.thread_pool import StopEvent
    from dashscope_embeddings._runtime.transport import Transport

T = TypeVar("T")

_NEVER_SET = SignalSafeEvent()
"""For a flow that must not be cancelled."""

_caller_left: contextvars.ContextVar[SignalSafeEvent] = contextvars.ContextVar("dashscope_left", default=_NEVER_SET)
"""Set when the caller on whose behalf this thread runs has been interrupted."""


_POLL_SECONDS = 0.25
"""Seconds after which the window is looked at by itself, so that no job depends on being woken."""


@dataclass(slots=True, eq=False)
class _Started(Generic[T]):
    """A flow that was given to a thread."""

    label: T
    flow: Exchange
    progress: SignalSafeEvent
    """Set when it ends."""
    call: WorkItem[Outcome] = field(init=False)
    has_ended: bool = False


@dataclass(slots=True, eq=False)
class _Source(Generic[T]):
    """The flows of a job. An error ends them, and is kept: the outcomes before it are yielded first."""

    flows: Iterator[tuple[T, Exchange]]
    errors: list[BaseException] = field(default_factory=list)
    _read: deque[tuple[T, Exchange]] = field(default_factory=deque)

    def take_only(self) -> tuple[T, Exchange] | None:
        """The only flow; None if there are more, or none."""
        while len(self._read) < _SEVERAL and (pair := self._next()) is not None:
            self._read.append(pair)
        return self._read.popleft() if len(self._read) == 1 else None

    def take(self, halt: SignalSafeEvent) -> tuple[T, Exchange] | None:
        """The next flow; None at the end, and once `halt` is set."""
        if halt.is_set():
            return None
        return self._read.popleft() if self._read else self._next()

    def _next(self) -> tuple[T, Exchange] | None:
        try:
            return next(self.flows, None)
        except Exception as error:  # noqa: BLE001 - `run_many` raises it
            self.errors.append(error)
            return None


_SEVERAL = 2


def _is_deferring_signals() -> bool:
    return (signals := signals_of_this_thread()) is not None and signals.is_deferring


class ThreadDriver:
    """Sync code: a single flow on the caller's thread, several on threads of the process's pool.

    On the main thread a signal handler may raise between any two bytecodes, for instance inside httpx or between
    taking a connection and recording it. So a request is sent there only while handlers are deferred. That needs an
    open connection of ours; otherwise another thread sends it, and the main thread waits.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = ForkSafeLock()
        on_fork(self)
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Forgets abandoned flows: a forked child has none of its parent's threads."""
        self._abandoned: list[WorkItem[Outcome]] = []

    def run_many(
        self, flows: Iterator[tuple[T, Exchange]], halt: SignalSafeEvent, context: RequestContext, *, is_lazy: bool
    ) -> Generator[tuple[T, Outcome], None, None]:
        """Yields the outcomes in order, with as many flows at once as the limiter has use for.

        `is_lazy`: the next flow may come late. Otherwise a flow that is the only one runs on this thread.

        Once `halt` is set (by an error, or by an outcome that aborts the job), nothing more is started or sent, and the
        outcomes of requests in flight are still yielded. The first error of `flows` or of a flow is raised after them.
        """
        source = _Source(flows)
        may_run_here = not is_lazy and (not is_main_thread() or self._may_defer_signals(context))
        if may_run_here and (only := source.take_only()) is not None:
            label, flow = only
            with DeferredSignals() if is_main_thread() else contextlib.nullcontext():
                outcome = self.run(flow, halt)
            yield label, outcome  # then the loop below ends at once: there are no more flows
        started: deque[_Started[T]] = deque()
        progress = SignalSafeEvent()
        try:
            while True:
                while context.has_use_for_another(started) and (pair := source.take(halt)) is not None:
                    # Appended first: an interruption in between must find it there.
                    started.append(self._prepare(pair, halt, progress))
                    shared_pool.submit(started[-1].call)
                if not started:
                    break
                if not started[0].has_ended:
                    progress.wait(_POLL_SECONDS)
                    progress.clear()
                    continue
                label, call = started[0].label, started[0].call
                call.wait()
                started.popleft()
                if call.error is None:
                    yield label, call.result()
                else:
                    halt.set()
                    source.errors.append(call.error)
        finally:
            halt.set()
            running = [other.call for other in started if not other.call.cancel()]
            with self._lock.current:
                self._abandoned = [call for call in (*self._abandoned, *running) if not call.is_done]
        if source.errors:
            raise source.errors[0]

    def _prepare(self, pair: tuple[T, Exchange], halt: SignalSafeEvent, progress: SignalSafeEvent) -> _Started[T]:
        label, flow = pair
        started = _Started(label, flow, progress)
        # In a copy of the caller's context: tracing and usage trackers are context variables.
        run = contextvars.copy_context().run
        started.call = WorkItem(functools.partial(run, self._run_in_pool, started, halt))
        return started

    def _run_in_pool(self, started: _Started[T], halt: SignalSafeEvent) -> Outcome:
        try:
            return self.run(started.flow, halt)
        finally:
            started.has_ended = True
            started.progress.set()

    def drain(self) -> None:
        """Waits for flows that were running when their caller was interrupted; they send no further requests."""
        for call in tuple(self._abandoned):
            call.wait()

    def run_uninterrupted(self, function: Callable[[], T]) -> T:
        """Calls it where no signal handler can raise: on this thread, or on another one if this is the main thread."""
        if not is_main_thread() or (_is_deferring_signals() and self._transport.can_send_interruptibly):
            return function()
        context, caller_left = contextvars.copy_context(), SignalSafeEvent()
        context.run(_caller_left.set, caller_left)
        call = WorkItem(functools.partial(context.run, function))
        try:
            return shared_pool.submit(call).result()
        finally:
            if not call.is_done:
                caller_left.set()
                call.cancel()

    def run_single(
        self,
        label: T,
        text: SingleText,
        batcher: TextBatcher,
        context: RequestContext,
        on_late_outcome: Callable[[Outcome], object],
    ) -> Generator[tuple[T, Outcome], None, None]:
        """Yields the outcome of a text that may share a request; `on_late_outcome` gets it if the caller has left."""
        run = functools.partial(self._run_single, text, batcher, context, on_late_outcome)
        if not is_main_thread() or not self._may_defer_signals(context):
            yield label, self.run_uninterrupted(run)
            return
        outcome = None
        try:
            with DeferredSignals():
                outcome = run()
        except BaseException:
            if outcome is not None:  # by a handler that was noted after the reply
                on_late_outcome(outcome)
            raise
        yield label, outcome

    def _may_defer_signals(self, context: RequestContext) -> bool:
        # A user's hook may take long, or need a signal. A signal handler, which runs at a wait, may come here too.
        is_free = context.on_request is None and signals_of_this_thread() is None
        return is_free and self._transport.can_send_interruptibly

    def _run_single(
        self,
        text: SingleText,
        batcher: TextBatcher,
        context: RequestContext,
        on_late_outcome: Callable[[Outcome], object],
    ) -> Outcome:
        caller_left = _caller_left.get()
        text.is_interrupted = caller_left.is_set
        woken: SignalSafeEvent | None = None
        try:
            batcher.enqueue(text)
            while not isinstance(action := batcher.poll(text, context, None), Outcome):
                if isinstance(action, BatchCall):
                    send = functools.partial(self._send_batch, action, batcher, context, caller_left)
                    if len(action.members) > 1 and _is_deferring_signals():
                        # Interrupting this caller must not interrupt the other callers' texts.
                        shared_pool.submit(WorkItem(functools.partial(contextvars.copy_context().run, send)))
                    else:
                        send()
                elif caller_left.is_set():
                    raise Cancelled(CANCELLED.reason)  # noqa: TRY301 - handled as any other end of the wait
                elif woken is None:
                    # Created only if this text must wait. Then poll again: until now nothing could wake it.
                    woken = SignalSafeEvent()
                    text.wake = woken.set
                else:
                    self._transport.clock.wait(woken, action)
                    woken.clear()
        except BaseException:
            # In a copy of this caller's context: usage trackers are context variables, and another thread completes it.
            own_context = contextvars.copy_context()
            text.on_late_outcome = lambda outcome: own_context.run(on_late_outcome, outcome)
            raise
        finally:
            batcher.leave(text, context)
        if caller_left.is_set():
            on_late_outcome(action)
        return action

    def _send_batch(
        self, batch_call: BatchCall, batcher: TextBatcher, context: RequestContext, caller_left: SignalSafeEvent
    ) -> None:
        outcome = None
        try:
            flow = exchange(batch_call.texts, context.fail_fast.for_one_call(), batch_call.permit)
            # A request that carries other callers' texts too is not cancelled with this caller.
            outcome = self.run_steps(flow, caller_left if len(batch_call.members) == 1 else _NEVER_SET)
        finally:
            batcher.complete(batch_call, outcome, context)

    def run(self, flow: Exchange, halt: SignalSafeEvent) -> Outcome:
        """The outcome of one flow, run on this thread. Whatever ends it, it keeps what arrived."""
        return self.run_steps(flow_runs.cancellable(flow, halt.set), halt)

    def run_steps(self, flow: Generator[Step, StepResult, T], halt: StopEvent) -> T:
        """What a flow returns, run on this thread."""
        return flow_runs.run(flow, lambda step: self._perform_step(step, halt))

    def _perform_step(self, step: Step, halt: StopEvent) -> StepResult:
        if halt.is_set():
            return CANCELLED
        if isinstance(step, Send):
            self._transport.acquire_user_limiter()
            return CANCELLED if halt.is_set() else self.run_uninterrupted(functools.partial(self._transport.send, step))
        if step.permit is None or not isinstance(halt, SignalSafeEvent):
            return CANCELLED if self._transport.clock.wait(halt, step.seconds) else None
        return CANCELLED if self._wait_for_permit(step.permit, halt, step.seconds) else None

    def _wait_for_permit(self, permit: Permit, halt: SignalSafeEvent, seconds: float) -> bool:
        """Waits until the limiter wakes the permit, `halt` is set or time is over; returns whether `halt` is set."""
        if permit.wake is None:
            # The flow asks the limiter again: until now nothing could wake it.
            permit.wake = SignalSafeEvent().set
            return halt.is_set()
        woken: SignalSafeEvent = permit.wake.__self__  # type: ignore[attr-defined] # the event of the line above
        halt.add_waiter(woken.set)
        try:
            self._transport.clock.wait(woken, seconds)
        finally:
            halt.remove_waiter(woken.set)
        woken.clear()
        return halt.is_set()
