"""What all calls of a client have in common, sync or async."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from dashscope_embeddings import limiter, metering, planning
from dashscope_embeddings.assembly import Assembly
from dashscope_embeddings.coalesce import Coalescer, Query
from dashscope_embeddings.drivers import INTERRUPTIONS, Tasks, Threads
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.exchange import Terms, exchange
from dashscope_embeddings.given import Given
from dashscope_embeddings.lengths import limits_of
from dashscope_embeddings.sessions import Sessions
from dashscope_embeddings.vectors import Output, TextType, Usage
from dashscope_embeddings.workers import Lock

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
    from typing import TypeAlias

    from pydantic import SecretStr
    from typing_extensions import Self

    from dashscope_embeddings.exchange import Answer, Flow, Outcome, Step
    from dashscope_embeddings.planning import Batch, Refused
    from dashscope_embeddings.settings import Settings

    Arrived: TypeAlias = Callable[[Sequence[str], Outcome], object]

T = TypeVar("T")


class Calls:
    """Settings, and what is made of them: connections, limiter, counters. Only the settings are pickled.

    An `on_request` hook stays in the process that it was given in.
    """

    def _start(self, settings: Settings, given: Given) -> None:
        self.settings = settings
        self._given = given
        self._sessions = Sessions(settings, given)
        self._threads = Threads(self._sessions, settings.max_concurrency)
        self._tasks = Tasks(self._sessions, settings.max_concurrency)
        self._limits = limits_of(settings.address.host, settings.model)
        self._waiting: dict[Output, Coalescer] = {}
        self._known_terms: dict[tuple[TextType, Output], Terms] = {}
        self._lock = Lock()
        self._usage = Usage()

    @property
    def key(self) -> SecretStr | None:
        """The key that was found; None where none is needed."""
        return None if self.settings.address.is_emulator else self.settings.api_key

    @property
    def usage(self) -> Usage:
        """What all calls of this client were billed so far."""
        return self._usage

    def _terms(self, text_type: TextType, output: Output) -> Terms:
        if (known := self._known_terms.get((text_type, output))) is not None:
            return known
        settings = self.settings
        ask = settings.ask(text_type, output)
        pace = limiter.shared(settings.account, self._sessions.clock.now)
        pace.tighten(settings.requests_per_minute, settings.tokens_per_minute)
        terms = self._known_terms[text_type, output] = Terms(
            ask,
            self._limits,
            pace,
            long_text=settings.long_text,
            max_retries=settings.max_retries,
            on_request=self._given.on_request,
            asked=settings.asked,
        )
        return terms

    def _query(self, texts: list[str], terms: Terms) -> tuple[Batch, Query, Coalescer] | None:
        """A lone query that may travel with others; None for everything else."""
        if len(texts) != 1 or terms.ask.text_type != "query":
            return None
        if (batch := planning.lone(texts[0], self._limits, terms.long_text)) is None:
            return None
        if (waiting := self._waiting.get(terms.ask.output)) is None:
            waiting = self._waiting.setdefault(terms.ask.output, Coalescer(self.settings.max_concurrency))
        return batch, Query(batch.texts[0], max(1, round(batch.tokens)), _nobody), waiting

    def _plan(self, *, memory: int | None) -> planning.Plan:
        settings = self.settings
        return planning.Plan(
            self._limits,
            policy=settings.long_text,
            rows=settings.batch_size,
            tokens=settings.tokens_per_request,
            memory=memory,
        )

    def run(self, flow: Generator[Step, Answer, T], halt: threading.Event) -> T:
        """Performs another flow with this client's connections, on the caller's thread."""
        return self._threads.run(flow, halt)

    def drain(self) -> None:
        """Waits for requests of sync code that are under way although their caller has left."""
        self._threads.drain()

    def _job(self, output: Output, *, packed: int | None = None) -> Assembly:
        return Assembly(output, self.settings.price, packed=packed)

    def _flows(
        self, batches: Iterator[Batch], terms: Terms, job: Assembly, arrived: Arrived | None = None
    ) -> Iterator[tuple[Batch, Flow]]:
        return ((batch, self._flow(batch, terms, job, arrived)) for batch in batches)

    def _aflows(
        self, batches: AsyncIterator[Batch], terms: Terms, job: Assembly, arrived: Arrived | None = None
    ) -> AsyncIterator[tuple[Batch, Flow]]:
        return ((batch, self._flow(batch, terms, job, arrived)) async for batch in batches)

    @contextlib.contextmanager
    def _counted(self, job: Assembly, count: int | None = None) -> Iterator[None]:
        """Adds what the job was billed, however it ends; one that is interrupted takes along what had arrived."""
        try:
            yield
        except INTERRUPTIONS as interruption:
            job.salvage(interruption, count)
            raise
        finally:
            with self._lock:
                job.over = True
            job.settle()
            self._count(job.usage)

    def _count(self, usage: Usage) -> None:
        with self._lock:
            self._usage += usage
        metering.count(usage)

    def _flow(self, batch: Batch, terms: Terms, job: Assembly, arrived: Arrived | None) -> Flow:
        outcome = yield from exchange(batch.texts, terms)
        with self._lock:
            if not job.over:
                job.landed[batch.number] = batch, outcome
        if job.over:
            # Its caller has left, but it is billed.
            self._count(job.usage_of(outcome.requests, outcome.texts, outcome.tokens))
        if arrived is not None:
            arrived(batch.texts, outcome)
        return outcome

    # --- copies and processes -----------------------------------------------------------------------------

    def __deepcopy__(self, _: object) -> Self:
        """Itself: it may be shared."""
        return self

    def __getstate__(self) -> Settings:
        if replace(self._given, on_request=None) != Given():
            raise InvalidInput(
                "a client with an http_client or rate_limiter of yours cannot be copied to another process: "
                "sockets and locks stay here. Make it there, or set proxies by environment variables"
            )
        return self.settings

    def __setstate__(self, settings: Settings) -> None:
        self._start(settings, Given())

    def __repr__(self) -> str:
        if not hasattr(self, "settings"):
            return "EmbeddingClient()"  # it was refused while it was made
        return f"EmbeddingClient(model={self.settings.model.name!r}, host={self.settings.address.host!r})"


def dismiss(job: Assembly, outcome: Outcome, refused: Refused | None) -> None:
    """Where the whole job fails, refusals of single texts are not to be believed."""
    if refused is not None and outcome.stop is None:
        for index, error in job.dismiss().items():
            refused(index, error)


def _nobody() -> None:
    """Whom a query wakes before its caller waits."""
