"""The driver for tasks on an event loop: performs the steps that flows yield. Mirrors `thread_drivers`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dashscope_embeddings._core.exchange import Outcome, exchange
from dashscope_embeddings._core.failures import CANCELLED
from dashscope_embeddings._core.steps import Send
from dashscope_embeddings._core.text_batcher import BatchCall
from dashscope_embeddings._runtime import flow_runs
from dashscope_embeddings._runtime.thread_pool import WorkItem

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator

    from dashscope_embeddings._core.exchange import Exchange, RequestContext
    from dashscope_embeddings._core.permit import Permit
    from dashscope_embeddings._core.steps import Step, StepResult
    from dashscope_embeddings._core.text_batcher import SingleText, TextBatcher
    from dashscope_embeddings._runtime.transport import Transport

T = TypeVar("T")


class TaskStopEvent(asyncio.Event):
    """`asyncio.Event` that also calls waiters when it is set."""

    def __init__(self) -> None:
        super().__init__()
        self._callbacks: list[Callable[[], object]] = []

    def set(self) -> None:
        """Sets it and calls all waiters."""
        super().set()
        for wake in tuple(self._callbacks):
            wake()

    def add_waiter(self, wake: Callable[[], object]) -> None:
        """Calls `wake` when this is set; not if it is set already."""
        self._callbacks.append(wake)

    def remove_waiter(self, wake: Callable[[], object]) -> None:
        """No longer calls `wake`."""
        self._callbacks.remove(wake)


@dataclass(slots=True, eq=False)
class _Started(Generic[T]):
    """A flow that runs in a task of its own."""

    label: T
    task: asyncio.Task[Outcome | BaseException]

    @property
    def has_ended(self) -> bool:
        return self.task.done()


@dataclass(slots=True, eq=False)
class _Source(Generic[T]):
    """The flows of a job. An error ends them, and is kept: the outcomes before it are yielded first."""

    flows: AsyncIterator[tuple[T, Exchange]]
    errors: list[BaseException] = field(default_factory=list)
    _read: deque[tuple[T, Exchange]] = field(default_factory=deque)

    async def take_only(self) -> tuple[T, Exchange] | None:
        """The only flow; None if there are more, or none."""
        while len(self._read) < _SEVERAL and (pair := await self._next()) is not None:
            self._read.append(pair)
        return self._read.popleft() if len(self._read) == 1 else None

    async def take(self, halt: TaskStopEvent) -> tuple[T, Exchange] | None:
        """The next flow; None at the end, and once `halt` is set."""
        if halt.is_set():
            return None
        return self._read.popleft() if self._read else await self._next()

    async def _next(self) -> tuple[T, Exchange] | None:
        try:
            return await anext(self.flows, None)
        except Exception as error:  # noqa: BLE001 - `run_many` raises it
            self.errors.append(error)
            return None


_SEVERAL = 2


@dataclass(slots=True, eq=False)
class _TaskWaker:
    """Sets an asyncio event from any thread, when called."""

    loop: asyncio.AbstractEventLoop
    event: asyncio.Event

    def __call__(self) -> None:
        set_event_threadsafe(self.loop, self.event)


class AsyncDriver:
    """Async code: a single flow in the caller's task, several in tasks of their own."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._batch_tasks: set[asyncio.Task[None]] = set()

    async def run_many(
        self, flows: AsyncIterator[tuple[T, Exchange]], halt: TaskStopEvent, context: RequestContext
    ) -> AsyncGenerator[tuple[T, Outcome], None]:
        """`ThreadDriver.run_many` for a loop. If the caller is cancelled, every request in flight is too."""
        source = _Source(flows)
        if (only := await source.take_only()) is not None:
            label, flow = only
            yield label, await self.run(flow, halt)
        started: deque[_Started[T]] = deque()
        progress = asyncio.Event()
        try:
            while True:
                while context.has_use_for_another(started) and (pair := await source.take(halt)) is not None:
                    started.append(self._start(pair, halt, progress))
                if not started:
                    break
                if not started[0].has_ended:
                    await progress.wait()
                    progress.clear()
                    continue
                outcome = await started[0].task
                label = started.popleft().label
                if isinstance(outcome, Outcome):
                    yield label, outcome
                else:
                    halt.set()
                    source.errors.append(outcome)
        finally:
            halt.set()
            await _cancel_all([other.task for other in started])
        if source.errors:
            raise source.errors[0]

    def _start(self, pair: tuple[T, Exchange], halt: TaskStopEvent, progress: asyncio.Event) -> _Started[T]:
        label, flow = pair
        task = asyncio.create_task(self._run_or_error(flow, halt))
        task.add_done_callback(lambda _: progress.set())
        return _Started(label, task)

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
            outcome = await self.run_steps(flow, TaskStopEvent())
        finally:
            batcher.complete(batch_call, outcome, context)

    async def run(self, flow: Exchange, halt: TaskStopEvent) -> Outcome:
        """The outcome of one flow, run in this task; see `ThreadDriver.run`."""
        return await self.run_steps(flow_runs.cancellable(flow, halt.set), halt)

    async def _run_or_error(self, flow: Exchange, halt: TaskStopEvent) -> Outcome | BaseException:
        try:
            return await self.run(flow, halt)
        # A task that ends with one of the last two makes asyncio stop the loop, although the task is awaited.
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - raised again by `run_many`
            return error

    async def run_steps(self, flow: Generator[Step, StepResult, T], halt: TaskStopEvent) -> T:
        """What a flow returns, run in this task."""
        return await flow_runs.arun(flow, lambda step: self._perform_step(step, halt))

    async def _perform_step(self, step: Step, halt: TaskStopEvent) -> StepResult:
        if halt.is_set():
            return CANCELLED
        if isinstance(step, Send):
            if step.permit is not None:
                step.permit.loop = asyncio.get_running_loop()
            await self._transport.aacquire_user_limiter()
            return CANCELLED if halt.is_set() else await self._transport.asend(step)
        if step.permit is None:
            return CANCELLED if await self._transport.clock.wait_async(halt, step.seconds) else None
        return CANCELLED if await self._wait_for_permit(step.permit, halt, step.seconds) else None

    async def _wait_for_permit(self, permit: Permit, halt: TaskStopEvent, seconds: float) -> bool:
        """`ThreadDriver._wait_for_permit` for a task."""
        if permit.wake is None:
            permit.wake = _TaskWaker(asyncio.get_running_loop(), asyncio.Event())
            return halt.is_set()
        waker: _TaskWaker = permit.wake  # type: ignore[assignment] # made two lines above
        halt.add_waiter(waker.event.set)
        try:
            await self._transport.clock.wait_async(waker.event, seconds)
        finally:
            halt.remove_waiter(waker.event.set)
        waker.event.clear()
        return halt.is_set()


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
    """Sets an event of the loop `loop`, from any thread."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits there
        loop.call_soon_threadsafe(woken.set)


async def _cancel_all(tasks: list[asyncio.Task[T]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
