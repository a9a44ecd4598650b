"""Asks for the quota while a long job runs: the job neither waits for the answer nor fails without one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashscope_embeddings._runtime.async_drivers import cancel_all

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from dashscope_embeddings._core.planning import Batch

LONG_JOB_REQUESTS = 100
"""Requests from which on a job is long: several times what it sends at once, so it may well meet a limit. About 1,000
texts at ten a request. A shorter job is over before an answer would change much."""
_MAX_COUNTED_TEXTS = 10_000
"""Texts that are compared with each other; more would block an event loop."""


class QuotaQuestion:
    """The question of one job, asked beside it when the job is found to be long."""

    def __init__(self, ask_once: Callable[[], asyncio.Task[None] | None], *, is_long: bool) -> None:
        """`ask_once` starts asking, unless the process has asked already; it returns the task, if there is one.

        `is_long`: the job is known to be long, so it asks with its first request.
        """
        self._ask_once = ask_once
        self._requests_left = 1 if is_long else LONG_JOB_REQUESTS
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
    most_of_a_short_job = (LONG_JOB_REQUESTS - 1) * rows
    if len(texts) <= most_of_a_short_job:
        return False
    return len(set(texts[: max(_MAX_COUNTED_TEXTS, most_of_a_short_job + 1)])) > most_of_a_short_job
