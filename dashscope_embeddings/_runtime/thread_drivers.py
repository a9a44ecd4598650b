"""The driver for threads: performs the steps that flows yield, and decides nothing.

`run` drives one flow; `run_many` keeps several in flight and yields their outcomes in order; `run_single` drives a
text that may share a request with those of other callers. `async_drivers` does the same for tasks. The two modules
mirror each other on purpose: what need not differ between threads and tasks belongs in the flow.
"""

from __future__ import annotations

import contextvars
import functools
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from dashscope_embeddings._core.exchange import Outcome, exchange
from dashscope_embeddings._core.failures import CANCELLED
from dashscope_embeddings._core.steps import Send
from dashscope_embeddings._core.text_batcher import BatchCall
from dashscope_embeddings._process import ForkSafeLock, on_fork
from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent, WorkItem, is_main_thread, shared_pool
from dashscope_embeddings.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from dashscope_embeddings._core.exchange import Exchange, RequestContext
    from dashscope_embeddings._core.steps import Step, StepResult
    from dashscope_embeddings._core.text_batcher import SingleText, TextBatcher
    from dashscope_embeddings._runtime.thread_pool import StopEvent
    from dashscope_embeddings._runtime.transport import Transport

T = TypeVar("T")

_NEVER_SET = SignalSafeEvent()
"""For a flow that must not be cancelled."""

_caller_left: contextvars.ContextVar[SignalSafeEvent] = contextvars.ContextVar("dashscope_left", default=_NEVER_SET)
"""Set when the caller on whose behalf this thread runs has been interrupted."""


class ThreadDriver:
    """Sync code: a single flow on the caller's thread, several on threads of the process's pool.

    On the main thread a signal handler may raise between any two bytecodes, for instance inside httpx or between
    taking a slot and recording it. So no request is sent there: other threads do, and the main thread waits.
    """

    def __init__(self, transport: Transport, max_in_flight: int) -> None:
        self._transport, self._max_in_flight = transport, max_in_flight
        self._lock = ForkSafeLock()
        on_fork(self)
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Forgets abandoned flows: a forked child has none of its parent's threads."""
        self._abandoned: list[WorkItem[Outcome]] = []

    def run_many(
        self, flows: Iterator[tuple[T, Exchange]], halt: SignalSafeEvent
    ) -> Generator[tuple[T, Outcome], None, None]:
        """Yields the outcomes in order, with at most `max_in_flight` flows at once.

        Once `halt` is set (by an error, or by an outcome that aborts the job), nothing more is started or sent, and the
        outcomes of requests in flight are still yielded. The first error of `flows` or of a flow is raised after them.
        """
        errors: list[BaseException] = []
        head = deque(pair for _ in range(2) if (pair := _next_or_none(flows, errors)) is not None)
        if len(head) == 1 and not is_main_thread():
            label, flow = head.popleft()
            yield label, self.run(flow, halt)
        window: deque[tuple[T, WorkItem[Outcome]]] = deque()
        try:
            while True:
                while len(window) < self._max_in_flight and not halt.is_set():
                    pair = head.popleft() if head else _next_or_none(flows, errors)
                    if pair is None:
                        break
                    # In a copy of the caller's context: tracing and usage trackers are context variables.
                    run = contextvars.copy_context().run
                    call = WorkItem(functools.partial(run, self.run, pair[1], halt))
                    window.append((pair[0], call))
                    shared_pool.submit(call)
                if not window:
                    break
                label, call = window[0]
                call.wait()
                window.popleft()
                if call.error is None:
                    yield label, call.result()
                else:
                    halt.set()
                    errors.append(call.error)
        finally:
            halt.set()
            running = [call for _, call in window if not call.cancel()]
            with self._lock.current:
                self._abandoned = [call for call in (*self._abandoned, *running) if not call.is_done]
        if errors:
            raise errors[0]

    def drain(self) -> None:
        """Waits for flows that were running when their caller was interrupted; they send no further requests."""
        for call in tuple(self._abandoned):
            call.wait()

    def run_uninterrupted(self, function: Callable[[], T]) -> T:
        """Calls it where no signal handler can raise: on this thread, or on another one if this is the main thread."""
        if not is_main_thread():
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
        yield label, self.run_uninterrupted(run)

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
                    self._send_batch(action, batcher, context, caller_left)
                elif caller_left.is_set():
                    raise Cancelled(CANCELLED.reason)
                elif woken is None:
                    # Created only if this text must wait. Then poll again: until now nothing could wake it.
                    woken = SignalSafeEvent()
                    text.wake = woken.set
                else:
                    self._transport.clock.wait(woken, action)
                    woken.clear()
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
        """The outcome of one flow, run on this thread in one of the client's slots.

        If a step raises, the flow is cancelled so that it can return what arrived, and the error is raised again.
        """
        answer: StepResult = None
        raised: BaseException | None = None
        with self._transport.request_slots():
            while True:
                try:
                    step = flow.send(answer)
                except StopIteration as done:
                    outcome: Outcome = done.value
                    break
                try:
                    answer = CANCELLED if raised else self._perform_step(step, halt)
                except BaseException as error:  # noqa: BLE001 - raised again when the flow has ended
                    answer, raised = CANCELLED, error
                    halt.set()
        if outcome.abort_error is not None:
            halt.set()
        if raised is not None:
            raise raised
        return outcome

    def run_steps(self, flow: Generator[Step, StepResult, T], halt: StopEvent) -> T:
        """What a flow returns, run on this thread without a slot."""
        answer: StepResult = None
        try:
            while True:
                answer = self._perform_step(flow.send(answer), halt)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            flow.close()

    def _perform_step(self, step: Step, halt: StopEvent) -> StepResult:
        if halt.is_set():
            return CANCELLED
        if isinstance(step, Send):
            self._transport.acquire_user_limiter()
            return CANCELLED if halt.is_set() else self.run_uninterrupted(functools.partial(self._transport.send, step))
        return CANCELLED if self._transport.clock.wait(halt, step.seconds) else None


def _next_or_none(items: Iterator[T], errors: list[BaseException]) -> T | None:
    """The next item; None at the end. An error of the source is appended to `errors` and ends it too."""
    try:
        return next(items, None)
    except Exception as error:  # noqa: BLE001 - raised again after the outcomes before it
        errors.append(error)
        return None
