"""The driver for tasks: see `drivers`, which it mirrors."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dashscope_embeddings._core.exchange import GIVEN_UP, Outcome, Send, exchange
from dashscope_embeddings._core.query_batcher import Flight
from dashscope_embeddings._runtime.thread_pool import Call

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator

    from dashscope_embeddings._core.exchange import Answer, Flow, Step, Terms
    from dashscope_embeddings._core.query_batcher import Coalescer, Query
    from dashscope_embeddings._runtime.transport import Sessions

T = TypeVar("T")


class Tasks:
    """Async code: a lone flow in its caller's task, several in tasks of their own."""

    def __init__(self, sessions: Sessions, most: int) -> None:
        self._sessions, self._most = sessions, most
        self._flights: set[asyncio.Task[None]] = set()

    async def window(
        self, flows: AsyncIterator[tuple[T, Flow]], halt: asyncio.Event
    ) -> AsyncGenerator[tuple[T, Outcome], None]:
        """As `Threads.window`; when the caller is cancelled, so is every request in flight."""
        troubles: list[BaseException] = []
        head: deque[tuple[T, Flow]] = deque()
        while len(head) < 2 and (pair := await _anext(flows, troubles)) is not None:  # noqa: PLR2004 - a lone one
            head.append(pair)
        if len(head) == 1:
            label, flow = head.popleft()
            yield label, await self.perform(flow, halt)
        window: deque[tuple[T, asyncio.Task[Outcome | BaseException]]] = deque()
        try:
            while True:
                while len(window) < self._most and not halt.is_set():
                    pair = head.popleft() if head else await _anext(flows, troubles)
                    if pair is None:
                        break
                    window.append((pair[0], asyncio.create_task(self._attempt(pair[1], halt))))
                if not window:
                    break
                label, task = window[0]
                outcome = await task
                window.popleft()
                if isinstance(outcome, Outcome):
                    yield label, outcome
                else:
                    halt.set()
                    troubles.append(outcome)
        finally:
            halt.set()
            for _, task in window:
                task.cancel()
            await asyncio.gather(*(task for _, task in window), return_exceptions=True)
        if troubles:
            raise troubles[0]

    async def query(self, query: Query, waiting: Coalescer, terms: Terms) -> Outcome:
        """One query, alone or with others that wait: its own row."""
        loop = asyncio.get_running_loop()
        here = _Carrier(loop, asyncio.current_task())
        woken: asyncio.Event | None = None
        try:
            waiting.join(query)
            while not isinstance(turn := waiting.step(query, terms, here), Outcome):
                if isinstance(turn, Flight):
                    if len(turn.queries) == 1:
                        await self._fly(turn, waiting, terms)
                        continue
                    # In a task of its own: who is cancelled takes nobody along.
                    task = asyncio.create_task(self._fly(turn, waiting, terms))
                    turn.carrier = _Carrier(loop, task)
                    self._flights.add(task)
                    task.add_done_callback(self._flights.discard)
                elif woken is None:
                    woken = asyncio.Event()
                    query.wake = functools.partial(wake, loop, woken)
                else:
                    await self._sessions.clock.await_(woken, turn)
                    woken.clear()
            return turn
        finally:
            waiting.leave(query, terms)

    async def _fly(self, flight: Flight, waiting: Coalescer, terms: Terms) -> None:
        outcome = None
        try:
            flow = exchange(flight.texts, terms.impatient.of_one_call(), flight.permit)
            outcome = await self._run(flow, asyncio.Event())
        finally:
            waiting.land(flight, outcome, terms)

    async def perform(self, flow: Flow, halt: asyncio.Event) -> Outcome:
        """As `Threads.perform`, in this task and in one of the loop's slots."""
        answer: Answer = None
        trouble: BaseException | None = None
        async with await self._sessions.aslots():
            while True:
                try:
                    step = flow.send(answer)
                except StopIteration as done:
                    outcome: Outcome = done.value
                    break
                try:
                    answer = GIVEN_UP if trouble else await self._answer(step, halt)
                except BaseException as error:  # noqa: BLE001 - raised again when the flow has ended
                    answer, trouble = GIVEN_UP, error
                    halt.set()
        if outcome.stop is not None:
            halt.set()
        if trouble is not None:
            raise trouble
        return outcome

    async def _attempt(self, flow: Flow, halt: asyncio.Event) -> Outcome | BaseException:
        try:
            return await self.perform(flow, halt)
        # asyncio lets the last two of a task end the loop, past whoever awaits the task.
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - raised again by `window`
            return error

    async def _run(self, flow: Generator[Step, Answer, T], halt: asyncio.Event) -> T:
        answer: Answer = None
        try:
            while True:
                answer = await self._answer(flow.send(answer), halt)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            flow.close()

    async def _answer(self, step: Step, halt: asyncio.Event) -> Answer:
        if halt.is_set():
            return GIVEN_UP
        if isinstance(step, Send):
            await self._sessions.aask_rate_limiter()
            return GIVEN_UP if halt.is_set() else await self._sessions.asend(step)
        return GIVEN_UP if await self._sessions.clock.await_(halt, step.seconds) else None


@dataclass(slots=True, eq=False)
class _Carrier:
    """Whose task sends a request: an interruption that passes through a loop may end it without a word."""

    loop: asyncio.AbstractEventLoop
    task: asyncio.Task[Any] | None

    def is_running(self) -> bool:
        return self.loop.is_running() and (self.task is None or not self.task.done())


async def in_thread(call: Callable[..., T], *args: Any) -> T:
    """The result of a call that would stop the loop. Who is cancelled waits for it: what it changes is theirs."""
    made = Call(functools.partial(contextvars.copy_context().run, call, *args))
    try:
        calling = asyncio.get_running_loop().run_in_executor(None, made.perform)
    except RuntimeError:
        made.perform()  # no thread can be started: here, unless one that was there has got it
        return made.result()
    try:
        await asyncio.shield(calling)
    except asyncio.CancelledError:
        await asyncio.wait([calling])
        raise
    return made.result()


def wake(loop: asyncio.AbstractEventLoop, woken: asyncio.Event) -> None:
    """Sets an event of a loop, from any thread."""
    with contextlib.suppress(RuntimeError):  # its loop is closed: it waits no more
        loop.call_soon_threadsafe(woken.set)


async def _anext(items: AsyncIterator[T], troubles: list[BaseException]) -> T | None:
    try:
        return await anext(items, None)
    except Exception as error:  # noqa: BLE001 - as in `Threads.window`
        troubles.append(error)
        return None
