"""The driver for tasks on an event loop: performs the steps that flows yield. Mirrors `thread_drivers`."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dashscope_embeddings._core.exchange import Outcome
from dashscope_embeddings._core.failures import CANCELLED
from dashscope_embeddings._core.steps import Send, Sleep, Start
from dashscope_embeddings._runtime import flow_runs
from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent, WorkItem

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    from dashscope_embeddings._core.exchange import Exchange, RequestContext
    from dashscope_embeddings._core.steps import Step, StepResult
    from dashscope_embeddings._core.text_batcher import SingleText, TextBatcher
    from dashscope_embeddings._runtime.transport import Transport

T = TypeVar("T")


class AsyncDriver:
    """Async code: each flow of a job in a task of its own; that of a single text in the caller's task."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._batch_tasks: set[asyncio.Task[None]] = set()

    async def run_many(
        self,
        labels: AsyncGenerator[T, None],
        flow_of: Callable[[T], Exchange],
        halt: SignalSafeEvent,
        context: RequestContext,
    ) -> AsyncGenerator[tuple[T, Outcome], None]:
        """`ThreadDriver.run_many` for a loop. If the caller is cancelled, every request in flight is too."""
        errors: list[BaseException] = []
        labels = flow_runs.auntil_error(labels, errors)
        started: deque[tuple[T, asyncio.Task[Outcome | BaseException]]] = deque()
        progress = asyncio.Event()

        async def start_more() -> None:
            while not halt.is_set() and context.has_use_for_another(len(started), (task.done() for _, task in started)):
                if (label := await anext(labels, None)) is None:
                    return
                task = asyncio.create_task(self._run_or_error(flow_of(label), halt))
                task.add_done_callback(lambda _: progress.set())
                started.append((label, task))

        try:
            await start_more()
            while started:
                label, task = started[0]
                if not task.done():
                    await progress.wait()
                    progress.clear()
                else:
                    started.popleft()
                    if isinstance(outcome := task.result(), Outcome):
                        yield label, outcome
                    else:
                        halt.set()
                        errors.append(outcome)
                await start_more()
        finally:
            halt.set()
            await cancel_all([task for _, task in started])
            await labels.aclose()
        if errors:
            raise errors[0]

    async def _run_or_error(self, flow: Exchange, halt: SignalSafeEvent) -> Outcome | BaseException:
        try:
            return await self.run_steps(flow_runs.cancellable(flow, halt.set), halt)
        # A task that ends with one of the last two makes asyncio stop the loop, although the task is awaited.
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - raised again by `run_many`
            return error

    async def run_single(
        self,
        label: T,
        text: SingleText,
        batcher: TextBatcher,
        context: RequestContext,
        on_late_outcome: Callable[[Outcome], object],
    ) -> AsyncGenerator[tuple[T, Outcome], None]:
        """Yields the outcome of a text that may share a request; `on_late_outcome` gets it if the caller has left."""
        own_task = _SendingTask(asyncio.get_running_loop(), asyncio.current_task())
        flow = flow_runs.single_text(text, batcher, context, own_task, on_late_outcome)
        yield label, await self.run_steps(flow, SignalSafeEvent())

    def start(self, flow: Generator[Step, StepResult, T]) -> asyncio.Task[T]:
        return asyncio.create_task(self.run_steps(flow, SignalSafeEvent()))

    async def run_steps(self, flow: Generator[Step, StepResult, T], halt: SignalSafeEvent) -> T:
        """What a flow returns, run in this task."""
        return await flow_runs.arun_flow(flow, lambda step: self._perform_step(step, halt))

    async def _perform_step(self, step: Step, halt: SignalSafeEvent) -> StepResult:
        if isinstance(step, Start):
            task = self.start(step.flow)
            step.batch_call.task = _SendingTask(asyncio.get_running_loop(), task)
            self._batch_tasks.add(task)
            task.add_done_callback(self._batch_tasks.discard)
            return None
        if halt.is_set():
            return CANCELLED
        if isinstance(step, Send):
            if step.permit is not None:
                step.permit.loop = asyncio.get_running_loop()
            if step.endpoint is not None:
                await self._transport.aacquire_user_limiter()
            return CANCELLED if halt.is_set() else await self._transport.asend(step)
        if isinstance(step, Sleep):
            await self._sleep(step, halt)
        else:
            await self._transport.aacquire_user_limiter()
        return CANCELLED if halt.is_set() else None

    async def _sleep(self, step: Sleep, halt: SignalSafeEvent) -> None:
        """`ThreadDriver._sleep` for a task."""
        woken = asyncio.Event()
        if step.waiter is not None:
            if not isinstance(step.waiter.wake, _WakeEvent):
                step.waiter.wake = _WakeEvent()
                return
            woken = step.waiter.wake
        halt.add_waiter(woken.set)
        try:
            await self._transport.clock.wait_async(woken, step.seconds)
        finally:
            halt.remove_waiter(woken.set)
        woken.clear()


@dataclass(slots=True, eq=False)
class _SendingTask:
    """The task that sends a request. KeyboardInterrupt in a loop may end it without notice: `is_running` tells."""

    loop: asyncio.AbstractEventLoop
    task: asyncio.Task[Any] | None

    def is_running(self) -> bool:
        return self.loop.is_running() and (self.task is None or not self.task.done())


async def run_in_thread(call: Callable[..., T], *args: Any) -> T:
    """The result of a call that would block the loop. A cancelled caller waits for its end, as it may change data."""
    item = WorkItem(flow_runs.in_own_context(call, *args))
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


class _WakeEvent(asyncio.Event):
    """An event of the running loop. Calling it sets it, from any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting_loop = asyncio.get_running_loop()

    def __call__(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits there
            self._waiting_loop.call_soon_threadsafe(self.set)


async def cancel_all(tasks: list[asyncio.Task[T]]) -> None:
    """Cancels tasks, and waits until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
