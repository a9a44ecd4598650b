"""The driver for tasks on an event loop: performs the steps that flows yield. Mirrors `drivers`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dashscope_embeddings._core.exchange import Outcome, exchange
from dashscope_embeddings._core.failures import CANCELLED
from dashscope_embeddings._core.steps import Send
from dashscope_embeddings._core.text_batcher import BatchCall
from dashscope_embeddings._runtime.thread_pool import WorkItem

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator

    from dashscope_embeddings._core.exchange import Exchange, RequestContext
    from dashscope_embeddings._core.steps import Step, StepResult
    from dashscope_embeddings._core.text_batcher import SingleText, TextBatcher
    from dashscope_embeddings._runtime.transport import Transport

T = TypeVar("T")


class AsyncDriver:
    """Async code: a single flow in the caller's task, several in tasks of their own."""

    def __init__(self, transport: Transport, max_in_flight: int) -> None:
        self._transport, self._max_in_flight = transport, max_in_flight
        self._batch_tasks: set[asyncio.Task[None]] = set()

    async def run_many(
        self, flows: AsyncIterator[tuple[T, Exchange]], halt: asyncio.Event
    ) -> AsyncGenerator[tuple[T, Outcome], None]:
        """`ThreadDriver.run_many` for a loop. If the caller is cancelled, every request in flight is too."""
        errors: list[BaseException] = []
        head: deque[tuple[T, Exchange]] = deque()
        while len(head) < 2 and (pair := await _anext_or_none(flows, errors)) is not None:  # noqa: PLR2004 - one or more
            head.append(pair)
        if len(head) == 1:
            label, flow = head.popleft()
            yield label, await self.run(flow, halt)
        window: deque[tuple[T, asyncio.Task[Outcome | BaseException]]] = deque()
        try:
            while True:
                while len(window) < self._max_in_flight and not halt.is_set():
                    pair = head.popleft() if head else await _anext_or_none(flows, errors)
                    if pair is None:
                        break
                    window.append((pair[0], asyncio.create_task(self._run_or_error(pair[1], halt))))
                if not window:
                    break
                label, task = window[0]
                outcome = await task
                window.popleft()
                if isinstance(outcome, Outcome):
                    yield label, outcome
                else:
                    halt.set()
                    errors.append(outcome)
        finally:
            halt.set()
            for _, task in window:
                task.cancel()
            await asyncio.gather(*(task for _, task in window), return_exceptions=True)
        if errors:
            raise errors[0]

    async def run_single(
        self,
        label: T,
        text: SingleText,
        batcher: TextBatcher,
        context: RequestContext,
        on_late_outcome: Callable[[Outcome], object],
    ) -> AsyncGenerator[tuple[T, Outcome], None]:
        """Yields the outcome of a text that may share a request; `on_late_outcome` gets it if the caller has left."""
        loop = asyncio.get_running_loop()
        own_task = _SendingTask(loop, asyncio.current_task())
        woken: asyncio.Event | None = None
        try:
            batcher.enqueue(text)
            while not isinstance(action := batcher.poll(text, context, own_task), Outcome):
                if isinstance(action, BatchCall):
                    if len(action.members) == 1:
                        await self._send_batch(action, batcher, context)
                        continue
                    # In its own task: cancelling this caller must not cancel the other callers' texts.
                    task = asyncio.create_task(self._send_batch(action, batcher, context))
                    action.task = _SendingTask(loop, task)
                    self._batch_tasks.add(task)
                    task.add_done_callback(self._batch_tasks.discard)
                elif woken is None:
                    woken = asyncio.Event()
                    text.wake = functools.partial(set_event_threadsafe, loop, woken)
                else:
                    await self._transport.clock.wait_async(woken, action)
                    woken.clear()
        except BaseException:
            # In a copy of this caller's context: usage trackers are context variables, and another task completes it.
            own_context = contextvars.copy_context()
            text.on_late_outcome = lambda outcome: own_context.run(on_late_outcome, outcome)
            raise
        finally:
            batcher.leave(text, context)
        yield label, action

    async def _send_batch(self, batch_call: BatchCall, batcher: TextBatcher, context: RequestContext) -> None:
        outcome = None
        try:
            flow = exchange(batch_call.texts, context.fail_fast.for_one_call(), batch_call.permit)
            outcome = await self.run_steps(flow, asyncio.Event())
        finally:
            batcher.complete(batch_call, outcome, context)

    async def run(self, flow: Exchange, halt: asyncio.Event) -> Outcome:
        """The outcome of one flow, run in this task in one of the loop's slots; see `ThreadDriver.run`."""
        answer: StepResult = None
        raised: BaseException | None = None
        async with await self._transport.arequest_slots():
            while True:
                try:
                    step = flow.send(answer)
                except StopIteration as done:
                    outcome: Outcome = done.value
                    break
                try:
                    answer = CANCELLED if raised else await self._perform_step(step, halt)
                except BaseException as error:  # noqa: BLE001 - raised again when the flow has ended
                    answer, raised = CANCELLED, error
                    halt.set()
        if outcome.abort_error is not None:
            halt.set()
        if raised is not None:
            raise raised
        return outcome

    async def _run_or_error(self, flow: Exchange, halt: asyncio.Event) -> Outcome | BaseException:
        try:
            return await self.run(flow, halt)
        # A task that ends with one of the last two makes asyncio stop the loop, although the task is awaited.
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - raised again by `run_many`
            return error

    async def run_steps(self, flow: Generator[Step, StepResult, T], halt: asyncio.Event) -> T:
        """What a flow returns, run in this task without a slot."""
        answer: StepResult = None
        try:
            while True:
                answer = await self._perform_step(flow.send(answer), halt)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            flow.close()

    async def _perform_step(self, step: Step, halt: asyncio.Event) -> StepResult:
        if halt.is_set():
            return CANCELLED
        if isinstance(step, Send):
            await self._transport.aacquire_user_limiter()
            return CANCELLED if halt.is_set() else await self._transport.asend(step)
        return CANCELLED if await self._transport.clock.wait_async(halt, step.seconds) else None


@dataclass(slots=True, eq=False)
class _SendingTask:
    """The task that sends a request. KeyboardInterrupt in a loop may end it without notice: `is_running` tells."""

    loop: asyncio.AbstractEventLoop
    task: asyncio.Task[Any] | None

    def is_running(self) -> bool:
        return self.loop.is_running() and (self.task is None or not self.task.done())


async def run_in_thread(call: Callable[..., T], *args: Any) -> T:
    """The result of a call that would block the loop. A cancelled caller waits for its end, as it may change data."""
    item = WorkItem(functools.partial(contextvars.copy_context().run, call, *args))
    try:
        calling = asyncio.get_running_loop().run_in_executor(None, item.execute)
    except RuntimeError:
        item.execute()  # no thread can be started: run it here, unless an existing thread has taken it
        return item.result()
    try:
        await asyncio.shield(calling)
    except asyncio.CancelledError:
        await asyncio.wait([calling])
        raise
    return item.result()


def set_event_threadsafe(loop: asyncio.AbstractEventLoop, woken: asyncio.Event) -> None:
    """Sets an event of a loop, from any thread."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits there
        loop.call_soon_threadsafe(woken.set)


async def _anext_or_none(items: AsyncIterator[T], errors: list[BaseException]) -> T | None:
    try:
        return await anext(items, None)
    except Exception as error:  # noqa: BLE001 - as in `drivers`
        errors.append(error)
        return None
