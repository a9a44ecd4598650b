"""Asks for the quota while a long job runs: the job neither waits for the answer nor fails without one."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

from dashscope_embeddings._runtime.async_drivers import TaskStopEvent
from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent, WorkItem, shared_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from typing_extensions import Self

    from dashscope_embeddings._core.planning import Batch
    from dashscope_embeddings._core.small_requests import RequestFlow
    from dashscope_embeddings._runtime.async_drivers import AsyncDriver
    from dashscope_embeddings._runtime.thread_drivers import ThreadDriver

LONG_JOB_REQUESTS = 100
"""Requests from which on a job is long: several times what it sends at once, so it may well meet a limit. About 1,000
texts at ten a request. A shorter job is over before an answer would change much."""
_MAX_COUNTED_TEXTS = 10_000
"""Texts that are compared with each other; more would block an event loop."""


class QuotaQuestion:
    """The question of one job. `claim` gives the flow that asks, or None if another job of the process has asked."""

    def __init__(self, claim: Callable[[], RequestFlow[None] | None], *, is_long: bool) -> None:
        """`is_long`: the job is known to be long, so it asks with its first request."""
        self._claim = claim
        self._requests_left = 1 if is_long else LONG_JOB_REQUESTS
        self._task: asyncio.Task[None] | None = None

    def beside(self, batches: Iterator[Batch], driver: ThreadDriver) -> Iterator[Batch]:
        """The batches of a job; asks on another thread when the job is found to be long."""
        for batch in batches:
            if (flow := self._flow_due(batch)) is not None:
                shared_pool.submit(WorkItem(functools.partial(driver.run_steps, flow, SignalSafeEvent())))
            yield batch

    async def abeside(self, batches: AsyncIterator[Batch], driver: AsyncDriver) -> AsyncIterator[Batch]:
        """`beside` for a loop; this object must be entered with `async with`, which ends the question with the job."""
        async for batch in batches:
            if (flow := self._flow_due(batch)) is not None:
                self._task = asyncio.create_task(driver.run_steps(flow, TaskStopEvent()))
            yield batch

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _flow_due(self, batch: Batch) -> RequestFlow[None] | None:
        # A batch whose texts are all in earlier batches sends nothing.
        self._requests_left -= bool(batch.texts)
        if self._requests_left > 0:
            return None
        claim, self._claim = self._claim, _claimed
        return claim()


def _claimed() -> None:
    """Nothing more to ask."""


def is_long_job(texts: Sequence[str], rows: int) -> bool:
    """Whether a job is sure to be long: its distinct texts fill enough requests of `rows` texts."""
    most_of_a_short_job = (LONG_JOB_REQUESTS - 1) * rows
    if len(texts) <= most_of_a_short_job:
        return False
    return len(set(texts[: max(_MAX_COUNTED_TEXTS, most_of_a_short_job + 1)])) > most_of_a_short_job
