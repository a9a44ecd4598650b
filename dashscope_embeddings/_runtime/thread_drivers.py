"""The driver for threads: performs the steps that flows yield, and decides nothing.

`run_exchange` drives one flow; `run_many` keeps several in flight and yields their outcomes in order; `run_single`
drives a text that may share a request with those of other callers. `async_drivers` does the same for tasks. The two
mirror each other on purpose: what need not differ between threads and tasks belongs in the flow, or in `flow_runs`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import math
import time
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from dashscope_embeddings._core.failures import CANCELLED
from dashscope_embeddings._core.steps import Send, Sleep, Start
from dashscope_embeddings._process import CleanupLock, locked_soon, on_fork
from dashscope_embeddings._runtime import flow_runs
from dashscope_embeddings._runtime.deadlines import GracePeriod
from dashscope_embeddings._runtime.deferred_signals import DeferredSignals, signals_of_this_thread
from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent, WorkItem, is_main_thread, shared_pool
from dashscope_embeddings.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from dashscope_embeddings._core.exchange import Exchange, Outcome, RequestContext
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


def _is_deferring_signals() -> bool:
    return (signals := signals_of_this_thread()) is not None and signals.is_deferring


def _has_ended(labelled: tuple[object, WorkItem[Outcome]]) -> bool:
    return labelled[1].done()


class ThreadDriver:
    """Sync code: a single flow on the caller's thread, several on threads of the process's pool.

    On the main thread a signal handler may raise between any two bytecodes, for instance inside httpx or between
    taking a connection and recording it. So a request is sent there only while handlers are deferred. That needs an
    open connection of ours; otherwise another thread sends it, and the main thread waits.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = CleanupLock()
        on_fork(self)
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Forgets abandoned flows: a forked child has none of its parent's threads."""
        self._abandoned: list[tuple[SignalSafeEvent, WorkItem[Outcome]]] = []

    # --- several flows ------------------------------------------------------------------------------------

    def run_many(
        self,
        labels: Iterator[T],
        flow_of: Callable[[T], Exchange],
        halt: SignalSafeEvent,
        context: RequestContext,
        grace: GracePeriod | None = None,
    ) -> Generator[tuple[T, Outcome], None, None]:
        """Yields the outcomes in the order of `labels`, with as many flows at once as the limiter has use for.

        `grace`: of a stream, whose caller may stop it, and whose labels may come late. Without it, a flow that is the
        only one runs on this thread.

        Once `halt` is set (by an error, by an outcome that aborts the job, or when the grace begins), nothing more is
        started or sent, and the outcomes of requests in flight are still yielded. The first error of `labels` or of a
        flow is raised after them; `Cancelled` if the grace is over before.
        """
        errors: list[BaseException] = []
        labels = flow_runs.until_error(labels, errors)
        if grace is None and (not is_main_thread() or self._may_defer_signals(context)):
            first = [*itertools.islice(labels, 2)]
            if len(first) == 1:
                only = first.pop()
                yield only, self._run_here(flow_of(only), halt)  # then the loop below ends at once: there are no more
            labels = itertools.chain(first, labels)
        started: deque[tuple[T, WorkItem[Outcome]]] = deque()
        progress = SignalSafeEvent()

        def start_more() -> None:
            while not halt.is_set() and context.has_use_for_another(len(started), map(_has_ended, started)):
                if (label := next(labels, None)) is None:
                    return
                call = WorkItem(flow_runs.in_own_context(self.run_exchange, flow_of(label), halt), on_done=progress.set)
                started.append((label, call))  # first: an interruption in between must find it there
                shared_pool.submit(call)

        try:
            start_more()
            while started:
                label, call = started[0]
                if not call.done():
                    self._wait_for_progress(progress, halt, grace)
                else:
                    started.popleft()
                    if call.error is None:
                        yield label, call.result()
                    else:
                        halt.set()
                        errors.append(call.error)
                start_more()
        finally:
            halt.set()
            self._abandon(halt, [call for _, call in started if not call.cancel()])
        if errors:
            raise errors[0]

    @staticmethod
    def _wait_for_progress(progress: SignalSafeEvent, halt: SignalSafeEvent, grace: GracePeriod | None) -> None:
        """Waits until a flow has ended, but not for long. If none has, halts a job that its caller has stopped."""
        if grace is not None and grace.is_over():
            raise Cancelled(CANCELLED.reason)
        if progress.wait(_POLL_SECONDS):
            progress.clear()
        elif grace is not None and grace.has_begun():
            halt.set()

    def _run_here(self, flow: Exchange, halt: SignalSafeEvent) -> Outcome:
        with DeferredSignals() if is_main_thread() else contextlib.nullcontext():
            return self.run_exchange(flow, halt)

    @locked_soon
    def _abandon(self, halt: SignalSafeEvent, running: list[WorkItem[Outcome]]) -> None:
        found = (*self._abandoned, *((halt, call) for call in running))
        self._abandoned = [(of, call) for of, call in found if not call.done()]

    def drain(self, seconds: float = math.inf, halt: SignalSafeEvent | None = None) -> int:
        """Waits for flows that were running when their caller was interrupted; they send no further requests.

        `halt`: that of the job whose flows are meant; None: all. Returns how many still run when the time is over.
        """
        ends_at = time.monotonic() + seconds
        with self._lock.current:
            self._lock.run_held()
            abandoned = [call for of, call in self._abandoned if halt is None or of is halt]
        return sum(not call.wait(ends_at - time.monotonic()) for call in abandoned)

    # --- a single text ------------------------------------------------------------------------------------

    def run_single(
        self,
        label: T,
        text: SingleText,
        batcher: TextBatcher,
        context: RequestContext,
        on_late_outcome: Callable[[Outcome], object],
    ) -> Generator[tuple[T, Outcome], None, None]:
        """Yields the outcome of a text that may share a request; `on_late_outcome` gets it if the caller has left."""

        def run() -> Outcome:
            caller_left = _caller_left.get()
            text.is_interrupted = caller_left.is_set
            return self.run_steps(flow_runs.single_text(text, batcher, context, None, on_late_outcome), caller_left)

        may_defer = is_main_thread() and self._may_defer_signals(context)
        yield label, self._run_deferring(run, on_late_outcome) if may_defer else self._run_uninterrupted(run)

    @staticmethod
    def _run_deferring(run: Callable[[], Outcome], on_late_outcome: Callable[[Outcome], object]) -> Outcome:
        outcome = None
        try:
            with DeferredSignals():
                outcome = run()
        except BaseException:
            if outcome is not None:  # raised by a handler that was noted after the reply
                on_late_outcome(outcome)
            raise
        return outcome

    # --- one flow -----------------------------------------------------------------------------------------

    def _may_defer_signals(self, context: RequestContext) -> bool:
        # A user's hook may take long, or need a signal. A signal handler, which runs at a wait, may come here too.
        is_free = context.on_request is None and signals_of_this_thread() is None
        return is_free and self._transport.can_send_interruptibly

    def _run_uninterrupted(self, function: Callable[[], T]) -> T:
        """Calls it where no signal handler can raise: not on the main thread, unless that defers signals."""
        if is_main_thread() and not (_is_deferring_signals() and self._transport.can_send_interruptibly):
            return self._run_for_main_thread(function)
        return function()

    @staticmethod
    def _run_for_main_thread(function: Callable[[], T]) -> T:
        """Calls it on another thread, which `_caller_left` tells if this one is interrupted meanwhile."""
        context, caller_left = contextvars.copy_context(), SignalSafeEvent()
        context.run(_caller_left.set, caller_left)
        call = WorkItem(functools.partial(context.run, function))
        try:
            return shared_pool.submit(call).result()
        finally:
            if not call.done():
                caller_left.set()
                call.cancel()

    def start(self, flow: Generator[Step, StepResult, object]) -> None:
        """Runs a flow on another thread; nobody waits for it."""
        shared_pool.submit(WorkItem(flow_runs.in_own_context(self.run_steps, flow, _NEVER_SET)))

    def run_exchange(self, flow: Exchange, halt: SignalSafeEvent) -> Outcome:
        """The outcome of one flow, run on this thread. Whatever ends it, it keeps what arrived."""
        return self.run_steps(flow_runs.cancellable(flow, halt.set), halt)

    def run_steps(self, flow: Generator[Step, StepResult, T], halt: StopEvent) -> T:
        return flow_runs.run_flow(flow, lambda step: self._perform_step(step, halt))

    def _perform_step(self, step: Step, halt: StopEvent) -> StepResult:
        if isinstance(step, Start):
            if _is_deferring_signals():  # this thread may be interrupted
                self.start(step.flow)
            else:
                self.run_steps(step.flow, _NEVER_SET)
            return None
        if halt.is_set():
            return CANCELLED
        if isinstance(step, Send):
            if step.permit is not None:
                step.permit.loop = signals_of_this_thread()
            if step.endpoint is not None:
                return self._send_until_stopped(step, halt)
            return self._run_uninterrupted(functools.partial(self._transport.send, step))
        if isinstance(step, Sleep):
            self._sleep(step, halt)
        else:
            self._transport.acquire_user_limiter()
        return CANCELLED if halt.is_set() else None

    def _send_until_stopped(self, step: Send, halt: StopEvent) -> StepResult:
        """A request that is not billed, on another thread: this one waits until it is answered or given up."""
        self._transport.acquire_user_limiter()
        if halt.is_set():
            return CANCELLED
        call = shared_pool.submit(WorkItem(flow_runs.in_own_context(self._transport.send, step)))
        grace = GracePeriod(halt.is_set)
        while not call.wait(_POLL_SECONDS):
            if grace.has_begun() and grace.is_over():
                return CANCELLED
        return call.result()

    def _sleep(self, step: Sleep, halt: StopEvent) -> None:
        """Waits until time is over, `halt` is set, or the step's waiter is woken."""
        if step.waiter is None or not isinstance(halt, SignalSafeEvent):
            self._transport.clock.wait(halt, step.seconds)
        elif not isinstance(woken := step.waiter.wake, SignalSafeEvent):
            # At once: the flow asks again, because until now nothing could wake it.
            step.waiter.wake = SignalSafeEvent()
        else:
            halt.add_waiter(woken)
            try:
                self._transport.clock.wait(woken, step.seconds)
            finally:
                halt.remove_waiter(woken)
            woken.clear()
