"""One call of a client: its exchanges, outcomes, bill and callbacks, and the question for the quota if it is long."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from dashscope_embeddings._core.exchange import Outcome, exchange
from dashscope_embeddings._core.results import partial_of, set_attributes
from dashscope_embeddings._runtime.async_drivers import cancel_all, run_in_thread
from dashscope_embeddings._runtime.deferred_signals import DeferredSignals, signals_of_this_thread
from dashscope_embeddings._runtime.flow_runs import in_own_context
from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent, is_main_thread
from dashscope_embeddings.errors import DashScopeError

if TYPE_CHECKING:
    import asyncio

    from dashscope_embeddings._core.exchange import Exchange, RequestContext
    from dashscope_embeddings._core.planning import Batch
    from dashscope_embeddings._core.results import ResultCollector
    from dashscope_embeddings._core.text_inputs import OnRefused
    from dashscope_embeddings._process import CleanupLock
    from dashscope_embeddings.vectors import Embedding, Embeddings, Usage

OnBatchDone: TypeAlias = Callable[[Sequence[str], Outcome], object]


class Job(contextlib.AbstractContextManager["Job"]):
    """As a context manager, counts what the call was billed, however it ends.

    The exception that ends it gets `partial` and `failed`. Not a `contextlib` generator: that assigns to attributes of
    a passing exception, which some do not allow.
    """

    def __init__(
        self,
        collector: ResultCollector,
        lock: CleanupLock,
        add_usage: Callable[[Usage], None],
        texts: Sequence[str] | None,
        await_answers: Callable[[], object],
    ) -> None:
        """`add_usage` counts a bill; `texts`: those of the call, None for a stream.

        `await_answers` waits for requests in flight, which may go on when an interruption ends a call of a thread.
        """
        self.collector = collector
        self._lock, self._add_usage, self._texts, self._await_answers = lock, add_usage, texts, await_answers
        self.halt = SignalSafeEvent()
        """Set: nothing more is sent."""
        self.callbacks = CallbackGuard(self.halt)
        self._is_abandoned = False
        """Whether the caller has left: what arrives later is billed separately."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, GeneratorExit):
            self._lock.run_soon(in_own_context(self._abandon))
            return
        try:
            if error is not None:
                self._attach_partial(error)
        finally:
            with self._lock.current:
                self._abandon()
            self._lock.run_waiting()

    def _attach_partial(self, error: BaseException) -> None:
        """Sets `partial` and `failed`, also on a second interruption, which ends the wait for answers."""
        may_defer = is_main_thread() and signals_of_this_thread() is None
        try:
            with DeferredSignals() if may_defer else contextlib.nullcontext():
                try:
                    if not isinstance(error, DashScopeError):  # those of a job are raised when nothing is in flight
                        self._await_answers()
                finally:
                    self.collector.attach_partial(error, self._texts)
        except BaseException as second:
            set_attributes(second, partial=partial_of(error), failed=getattr(error, "failed", []))
            raise

    def _abandon(self) -> None:
        """With the lock held: what arrives later is billed separately."""
        self._is_abandoned = True
        self.collector.count_abandoned()
        self._add_usage(self.collector.usage)

    def flow_maker(
        self, context: RequestContext, question: QuotaQuestion, arrived: OnBatchDone | None = None
    ) -> Callable[[Batch], Exchange]:
        """Makes the flow for each batch, when it is its turn."""
        context = context.for_one_call()

        def flow_of(batch: Batch) -> Exchange:
            question.ask_if_due(batch)
            return self._exchange(batch, context, arrived)

        return flow_of

    def _exchange(self, batch: Batch, context: RequestContext, arrived: OnBatchDone | None) -> Exchange:
        outcome = yield from exchange(batch.texts, context)
        with self._lock.current:
            if not self._is_abandoned:
                self.collector.finished[batch.number] = batch, outcome
        self._lock.run_waiting()
        if self._is_abandoned:
            self.count_late(outcome)
        if arrived is not None:
            arrived(batch.texts, outcome)
        return outcome

    def count_late(self, outcome: Outcome) -> None:
        """Counts an outcome that arrived after its caller had left: it is billed."""
        self._add_usage(self.collector.usage_of(outcome))

    async def add(self, batch: Batch, outcome: Outcome) -> int:
        """`ResultCollector.add` on a loop; in a thread if a text has so many rows that their mean would take long."""
        if max((len(slot.rows) for slot in batch.slots), default=0) < _MIN_ROWS_FOR_THREAD:
            return self.collector.add(batch, outcome)
        return await run_in_thread(self.collector.add, batch, outcome)

    def stream_ready(self, outcome: Outcome, refused: OnRefused | None) -> Iterator[Embedding]:
        """What a stream yields after an outcome was added; a failure halts the job.

        Reports per-text refusals, and leaves the texts out; not if the job was aborted, which may be their cause.
        """
        if refused is not None and outcome.abort_error is None:
            with self.callbacks:
                for index, error in self.collector.skip_refused().items():
                    refused(index, error)
        if self.collector.has_failed:
            self.halt.set()
        return self.collector.pop_ready()

    def result(self) -> Embeddings:
        """All vectors; raises the first error of a callback, or that of the call."""
        self.callbacks.raise_first_error()
        return self.collector.result(self._texts or ())


_MIN_ROWS_FOR_THREAD = 50


class CallbackGuard(contextlib.AbstractContextManager[object]):
    """Around calls of a caller's callbacks: the first error stops the job, and is raised once nothing is in flight."""

    def __init__(self, halt: SignalSafeEvent) -> None:
        self._halt = halt
        self._failure: Exception | None = None

    def __exit__(self, _: object, failure: BaseException | None, __: object) -> bool:
        if not isinstance(failure, Exception):
            return False  # an interruption ends the call at once
        self._failure = self._failure or failure
        self._halt.set()
        return True

    def raise_first_error(self) -> None:
        if self._failure is not None:
            raise self._failure


# --- the question for the quota ----------------------------------------------------------------------------

_LONG_JOB_REQUESTS = 100
"""Requests from which on a job is long: several times what it sends at once, so it may well meet a limit. About 1,000
texts at ten a request. A shorter job is over before an answer would change much."""
_MAX_COUNTED_TEXTS = 10_000
"""Texts that are compared with each other; more would block an event loop."""


class QuotaQuestion:
    """Asks for the quota beside a long job, which neither waits for the answer nor fails without one."""

    def __init__(self, ask_once: Callable[[], asyncio.Task[None] | None], *, is_long: bool) -> None:
        """`ask_once` starts asking, unless the process has asked already; it returns the task, if there is one.

        `is_long`: the job is known to be long, so it asks with its first request.
        """
        self._ask_once = ask_once
        self._requests_left = 1 if is_long else _LONG_JOB_REQUESTS
        self._task: asyncio.Task[None] | None = None

    def ask_if_due(self, batch: Batch) -> None:
        """Counts the next batch; a batch whose texts are all in earlier batches sends nothing."""
        self._requests_left -= bool(batch.texts)
        if self._requests_left == 0 and batch.texts:
            self._task = self._ask_once()

    async def aclose(self) -> None:
        """Ends the question with its job, on an event loop."""
        if self._task is not None:
            await cancel_all([self._task])


def is_long_job(texts: Sequence[str], rows: int) -> bool:
    """Whether a job is sure to be long: its distinct texts fill enough requests of `rows` texts."""
    most_of_a_short_job = (_LONG_JOB_REQUESTS - 1) * rows
    if len(texts) <= most_of_a_short_job:
        return False
    return len(set(texts[: max(_MAX_COUNTED_TEXTS, most_of_a_short_job + 1)])) > most_of_a_short_job
