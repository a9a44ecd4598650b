"""The driver for threads: it performs the steps of flows and decides nothing. `async_drivers` has that for tasks.

Each has a window, which keeps some flows under way and gives back their outcomes in order. The two mirror each other
on purpose; whatever could differ between them belongs into the flow.
"""

from __future__ import annotations

import contextvars
import functools
import os
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from dashscope_embeddings._core.exchange import GIVEN_UP, Outcome, Send, exchange
from dashscope_embeddings._core.query_batcher import Flight
from dashscope_embeddings._runtime.thread_pool import Call, Flag, Lock, Workers, may_be_interrupted
from dashscope_embeddings.errors import GivenUp

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from dashscope_embeddings._core.exchange import Answer, Flow, Step, Terms
    from dashscope_embeddings._core.query_batcher import Coalescer, Query
    from dashscope_embeddings._runtime.thread_pool import Halt
    from dashscope_embeddings._runtime.transport import Sessions

T = TypeVar("T")

_NEVER = Flag()
"""Of a flow that nobody gives up."""

_left: contextvars.ContextVar[Flag] = contextvars.ContextVar("dashscope_left", default=_NEVER)
"""Set once the caller for whom this thread works, in its place, has been interrupted."""


class Threads:
    """Sync code: a lone flow on its caller's thread, several on a pool of the client's.

    Nothing that others wait for is done on the main thread, where an interruption may fall between any two calls:
    inside httpx, between a place taken and noted. Other threads of ours do it, and the main thread waits for them.
    """

    def __init__(self, sessions: Sessions, most: int) -> None:
        self._sessions, self._most = sessions, most
        self._lock = Lock()
        self._pool: tuple[int, Workers] | None = None
        self._stand_in: tuple[int, Workers] | None = None
        """A thread in place of the main one."""
        self._adrift: list[Call[Outcome]] = []

    def window(self, flows: Iterator[tuple[T, Flow]], halt: Flag) -> Generator[tuple[T, Outcome], None, None]:
        """The outcomes in order, with at most so many flows under way.

        Once `halt` is set (an outcome or an error that stops the job sets it), nothing more is started or sent; what
        was in flight still comes back. The first error of `flows` or of a flow is raised after the outcomes.
        """
        troubles: list[BaseException] = []
        head = deque(pair for _ in range(2) if (pair := _next(flows, troubles)) is not None)
        if len(head) == 1 and not may_be_interrupted():
            label, flow = head.popleft()
            yield label, self.perform(flow, halt)
        window: deque[tuple[T, Call[Outcome]]] = deque()
        try:
            while True:
                while len(window) < self._most and not halt.is_set():
                    pair = head.popleft() if head else _next(flows, troubles)
                    if pair is None:
                        break
                    # In a copy of the caller's context, so that tracing and usage counters reach the thread.
                    run = contextvars.copy_context().run
                    call = Call(functools.partial(run, self.perform, pair[1], halt))
                    window.append((pair[0], call))
                    self._workers().submit(call)
                if not window:
                    break
                label, call = window[0]
                call.wait()
                window.popleft()
                if call.error is None:
                    yield label, call.result()
                else:
                    halt.set()
                    troubles.append(call.error)
        finally:
            halt.set()
            left = [call for _, call in window if not call.cancel()]
            with self._lock.here:
                self._adrift = [call for call in (*self._adrift, *left) if not call.over]
        if troubles:
            raise troubles[0]

    def drain(self) -> None:
        """Waits for what was under way when its caller left: none of it sends anything more."""
        for call in tuple(self._adrift):
            call.wait()

    def apart(self, run: Callable[[], T]) -> T:
        """Does it where no exception of a signal handler can fall: on this thread, unless it is the main one."""
        if not may_be_interrupted():
            return run()
        context, left = contextvars.copy_context(), Flag()
        context.run(_left.set, left)
        call = Call(functools.partial(context.run, run))
        if self._stand_in is None or self._stand_in[0] != os.getpid():
            self._stand_in = os.getpid(), Workers(1, "dashscope_caller")
        try:
            return self._stand_in[1].submit(call).result()
        finally:
            if not call.over:
                # It ends with what it does; the next call has another one.
                self._stand_in = None
                left.set()
                call.cancel()

    def query(self, query: Query, waiting: Coalescer, terms: Terms, late: Callable[[Outcome], object]) -> Outcome:
        """One query, alone or with others that wait: its own row; `late` is told where its caller has left."""
        return self.apart(functools.partial(self._query, query, waiting, terms, late))

    def _query(self, query: Query, waiting: Coalescer, terms: Terms, late: Callable[[Outcome], object]) -> Outcome:
        left = _left.get()
        query.left = left.is_set
        woken: Flag | None = None
        try:
            waiting.join(query)
            while not isinstance(turn := waiting.step(query, terms, None), Outcome):
                if isinstance(turn, Flight):
                    self._fly(turn, waiting, terms, left)
                elif left.is_set():
                    raise GivenUp(GIVEN_UP.what)
                elif woken is None:
                    # Made only by who has to wait, and looks once more: nothing could wake it until now.
                    woken = Flag()
                    query.wake = woken.set
                else:
                    self._sessions.clock.wait(woken, turn)
                    woken.clear()
        finally:
            waiting.leave(query, terms)
        if left.is_set():
            late(turn)
        return turn

    def _fly(self, flight: Flight, waiting: Coalescer, terms: Terms, left: Flag) -> None:
        outcome = None
        try:
            flow = exchange(flight.texts, terms.impatient.of_one_call(), flight.permit)
            # Who carries others goes on for their sake.
            outcome = self.run(flow, left if len(flight.queries) == 1 else _NEVER)
        finally:
            waiting.land(flight, outcome, terms)

    def perform(self, flow: Flow, halt: Flag) -> Outcome:
        """One flow from its first step to its outcome, on this thread, in one of the client's slots.

        Where something raises, the flow ends with what it has, and the error passes.
        """
        answer: Answer = None
        trouble: BaseException | None = None
        with self._sessions.slots():
            while True:
                try:
                    step = flow.send(answer)
                except StopIteration as done:
                    outcome: Outcome = done.value
                    break
                try:
                    answer = GIVEN_UP if trouble else self._answer(step, halt)
                except BaseException as error:  # noqa: BLE001 - raised again when the flow has ended
                    answer, trouble = GIVEN_UP, error
                    halt.set()
        if outcome.stop is not None:
            halt.set()
        if trouble is not None:
            raise trouble
        return outcome

    def run(self, flow: Generator[Step, Answer, T], halt: Halt) -> T:
        """Any flow, on this thread and in no slot: what it returns."""
        answer: Answer = None
        try:
            while True:
                answer = self._answer(flow.send(answer), halt)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            flow.close()

    def _answer(self, step: Step, halt: Halt) -> Answer:
        if halt.is_set():
            return GIVEN_UP
        if isinstance(step, Send):
            self._sessions.ask_rate_limiter()
            return GIVEN_UP if halt.is_set() else self.apart(functools.partial(self._sessions.send, step))
        return GIVEN_UP if self._sessions.clock.wait(halt, step.seconds) else None

    def _workers(self) -> Workers:
        """One pool a process: a forked child has none of its parent's threads."""
        with self._lock.here:
            if self._pool is None or self._pool[0] != os.getpid():
                self._pool = os.getpid(), Workers(self._most, "dashscope")
            return self._pool[1]


def _next(items: Iterator[T], troubles: list[BaseException]) -> T | None:
    """The next item; None at the end, and where the source fails, whose error is kept for later."""
    try:
        return next(items, None)
    except Exception as error:  # noqa: BLE001 - raised again once the outcomes before it are given out
        troubles.append(error)
        return None
