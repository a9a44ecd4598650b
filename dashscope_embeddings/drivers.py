"""Two drivers, for threads and for tasks: they perform the steps of flows and decide nothing.

Each has a window, which keeps some flows under way and gives back their outcomes in order. The halves mirror
each other on purpose; whatever could differ between them belongs into the flow.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import threading
from collections import deque
from concurrent.futures import wait
from typing import TYPE_CHECKING, TypeVar

from dashscope_embeddings.coalesce import Flight
from dashscope_embeddings.exchange import GIVEN_UP, Outcome, Send, exchange
from dashscope_embeddings.workers import Lock, Workers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
    from concurrent.futures import Future

    from dashscope_embeddings.coalesce import Coalescer, Query
    from dashscope_embeddings.exchange import Answer, Flow, Step, Terms
    from dashscope_embeddings.sessions import Sessions

T = TypeVar("T")

INTERRUPTIONS = (KeyboardInterrupt, asyncio.CancelledError)
"""What ends a job from outside."""

_NEVER = threading.Event()
"""Of a flow that nobody gives up."""


class Threads:
    """Sync code: a lone flow on its caller's thread, several on a pool of the client's."""

    def __init__(self, sessions: Sessions, most: int) -> None:
        self._sessions, self._most = sessions, most
        self._lock = Lock()
        self._pool: tuple[int, Workers] | None = None
        self._adrift: set[Future[Outcome]] = set()

    def window(
        self, flows: Iterator[tuple[T, Flow]], halt: threading.Event
    ) -> Generator[tuple[T, Outcome], None, None]:
        """The outcomes in order, with at most so many flows under way.

        Once `halt` is set (an outcome that stops the job sets it), nothing more is started or sent; what was
        in flight still comes back. An error of `flows` itself is raised after the outcomes before it.
        """
        troubles: list[Exception] = []
        head = deque(pair for _ in range(2) if (pair := _next(flows, troubles)) is not None)
        if len(head) == 1:
            label, flow = head.popleft()
            yield label, self.perform(flow, halt)
        window: deque[tuple[T, Future[Outcome]]] = deque()
        try:
            while True:
                while len(window) < self._most and not halt.is_set():
                    pair = head.popleft() if head else _next(flows, troubles)
                    if pair is None:
                        break
                    # In a copy of the caller's context, so that tracing and usage counters reach the thread.
                    run = contextvars.copy_context().run
                    window.append((pair[0], self._threads().submit(run, self.perform, pair[1], halt)))
                if not window:
                    break
                label, future = window[0]
                outcome = future.result()
                window.popleft()
                yield label, outcome
        finally:
            halt.set()
            for _, future in window:
                if not future.cancel():
                    self._adrift.add(future)
                    future.add_done_callback(self._adrift.discard)
        if troubles:
            raise troubles[0]

    def drain(self) -> None:
        """Waits for what was under way when its caller left: none of it sends anything more."""
        wait(tuple(self._adrift))

    def query(self, query: Query, waiting: Coalescer, terms: Terms) -> Outcome:
        """One query, alone or with others that wait: its own row."""
        woken: threading.Event | None = None
        waiting.join(query)
        try:
            while not isinstance(turn := waiting.step(query, terms, None), Outcome):
                if isinstance(turn, Flight):
                    self._fly(turn, waiting, terms)
                elif woken is None:
                    # Made only by who has to wait, and looks once more: nothing could wake it until now.
                    woken = threading.Event()
                    query.wake = woken.set
                else:
                    self._sessions.clock.wait(woken, turn)
                    woken.clear()
            return turn
        finally:
            waiting.leave(query, terms)

    def _fly(self, flight: Flight, waiting: Coalescer, terms: Terms) -> None:
        outcome = None
        try:
            flow = exchange(flight.texts, terms.impatient, flight.permit)
            outcome = self.run(flow, _NEVER)
        finally:
            waiting.land(flight, outcome, terms)

    def perform(self, flow: Flow, halt: threading.Event) -> Outcome:
        """One flow from its first step to its outcome, on this thread, in one of the client's slots."""
        with self._sessions.slots():
            outcome = self.run(flow, halt)
        if outcome.stop is not None:
            halt.set()
        return outcome

    def run(self, flow: Generator[Step, Answer, T], halt: threading.Event) -> T:
        """Any flow, on this thread and in no slot: what it returns."""
        answer: Answer = None
        try:
            while True:
                step = flow.send(answer)
                if halt.is_set():
                    answer = GIVEN_UP
                elif isinstance(step, Send):
                    self._sessions.ask_rate_limiter()
                    answer = GIVEN_UP if halt.is_set() else self._sessions.send(step)
                else:
                    answer = GIVEN_UP if self._sessions.clock.wait(halt, step.seconds) else None
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            flow.close()

    def _threads(self) -> Workers:
        """One pool a process: a forked child has none of its parent's threads."""
        with self._lock:
            if self._pool is None or self._pool[0] != os.getpid():
                self._pool = os.getpid(), Workers(self._most, "dashscope")
            return self._pool[1]


class Tasks:
    """Async code: a lone flow in its caller's task, several in tasks of their own."""

    def __init__(self, sessions: Sessions, most: int) -> None:
        self._sessions, self._most = sessions, most
        self._flights: set[asyncio.Task[None]] = set()

    async def window(
        self, flows: AsyncIterator[tuple[T, Flow]], halt: asyncio.Event
    ) -> AsyncGenerator[tuple[T, Outcome], None]:
        """As `Threads.window`; when the caller is cancelled, so is every request in flight."""
        troubles: list[Exception] = []
        head: deque[tuple[T, Flow]] = deque()
        while len(head) < 2 and (pair := await _anext(flows, troubles)) is not None:  # noqa: PLR2004 - a lone one
            head.append(pair)
        if len(head) == 1:
            label, flow = head.popleft()
            yield label, await self.perform(flow, halt)
        window: deque[tuple[T, asyncio.Task[Outcome]]] = deque()
        try:
            while True:
                while len(window) < self._most and not halt.is_set():
                    pair = head.popleft() if head else await _anext(flows, troubles)
                    if pair is None:
                        break
                    window.append((pair[0], asyncio.create_task(self.perform(pair[1], halt))))
                if not window:
                    break
                label, task = window[0]
                outcome = await task
                window.popleft()
                yield label, outcome
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
        woken: asyncio.Event | None = None
        waiting.join(query)
        try:
            while not isinstance(turn := waiting.step(query, terms, loop), Outcome):
                if isinstance(turn, Flight):
                    if len(turn.queries) == 1:
                        await self._fly(turn, waiting, terms)
                        continue
                    # In a task of its own: who is cancelled takes nobody along.
                    task = asyncio.create_task(self._fly(turn, waiting, terms))
                    self._flights.add(task)
                    task.add_done_callback(self._flights.discard)
                elif woken is None:
                    woken = asyncio.Event()
                    query.wake = functools.partial(_wake, loop, woken)
                else:
                    await self._sessions.clock.await_(woken, turn)
                    woken.clear()
            return turn
        finally:
            waiting.leave(query, terms)

    async def _fly(self, flight: Flight, waiting: Coalescer, terms: Terms) -> None:
        outcome = None
        try:
            flow = exchange(flight.texts, terms.impatient, flight.permit)
            outcome = await self._run(flow, asyncio.Event())
        finally:
            waiting.land(flight, outcome, terms)

    async def perform(self, flow: Flow, halt: asyncio.Event) -> Outcome:
        """One flow from its first step to its outcome, in this task, in one of the loop's slots."""
        async with await self._sessions.aslots():
            outcome = await self._run(flow, halt)
        if outcome.stop is not None:
            halt.set()
        return outcome

    async def _run(self, flow: Generator[Step, Answer, T], halt: asyncio.Event) -> T:
        answer: Answer = None
        try:
            while True:
                step = flow.send(answer)
                if halt.is_set():
                    answer = GIVEN_UP
                elif isinstance(step, Send):
                    await self._sessions.aask_rate_limiter()
                    answer = GIVEN_UP if halt.is_set() else await self._sessions.asend(step)
                else:
                    answer = GIVEN_UP if await self._sessions.clock.await_(halt, step.seconds) else None
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            flow.close()


def _wake(loop: asyncio.AbstractEventLoop, woken: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # its loop is closed: it waits no more
        loop.call_soon_threadsafe(woken.set)


def _next(items: Iterator[T], troubles: list[Exception]) -> T | None:
    """The next item; None at the end, and where the source fails, whose error is kept for later."""
    try:
        return next(items, None)
    except Exception as error:  # noqa: BLE001 - raised again once the outcomes before it are given out
        troubles.append(error)
        return None


async def _anext(items: AsyncIterator[T], troubles: list[Exception]) -> T | None:
    try:
        return await anext(items, None)
    except Exception as error:  # noqa: BLE001 - as in `_next`
        troubles.append(error)
        return None
