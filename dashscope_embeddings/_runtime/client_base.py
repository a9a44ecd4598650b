"""What all calls of a client have in common, sync or async."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

from pydantic import SecretStr
from typing_extensions import Self

from dashscope_embeddings import usage as dashscope_embeddings_usage
from dashscope_embeddings._core import planning
from dashscope_embeddings._core import rate_limiter as core_rate_limiter
from dashscope_embeddings._core.exchange import Answer, Flow, Outcome, Step, Terms, exchange
from dashscope_embeddings._core.planning import Batch
from dashscope_embeddings._core.query_batcher import Coalescer, Query
from dashscope_embeddings._core.results import Assembly
from dashscope_embeddings._core.settings import Settings
from dashscope_embeddings._core.stale_replies import seen_on
from dashscope_embeddings._core.text_inputs import Refused
from dashscope_embeddings._core.text_length import limits_of
from dashscope_embeddings._runtime.async_drivers import Tasks, in_thread
from dashscope_embeddings._runtime.drivers import Threads
from dashscope_embeddings._runtime.thread_pool import Halt, Lock
from dashscope_embeddings._runtime.transport import Sessions
from dashscope_embeddings._runtime.user_resources import Given
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.vectors import Output, TextType, Usage

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
        self._seen = seen_on(given.client, given.async_client)
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
        pace = core_rate_limiter.shared(settings.account, self._sessions.clock.now)
        pace.tighten(settings.requests_per_minute, settings.tokens_per_minute)
        terms = self._known_terms[text_type, output] = Terms(
            ask,
            self._limits,
            pace,
            long_text=settings.long_text,
            max_retries=settings.max_retries,
            on_request=self._given.on_request,
            asked=settings.asked,
            seen=self._seen,
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

    def run(self, flow: Generator[Step, Answer, T], halt: Halt) -> T:
        """Performs another flow with this client's connections, on the caller's thread."""
        return self._threads.run(flow, halt)

    def apart(self, run: Callable[[], T]) -> T:
        """Does it where no exception of a signal handler can fall, as others wait for how it ends."""
        return self._threads.apart(run)

    def drain(self) -> None:
        """Waits for requests of sync code that are under way although their caller has left."""
        self._threads.drain()

    def _job(self, output: Output, *, packed: int | None = None) -> Assembly:
        return Assembly(output, self.settings.price, packed=packed)

    def _flows(
        self, batches: Iterator[Batch], terms: Terms, job: Assembly, arrived: Arrived | None = None
    ) -> Iterator[tuple[Batch, Flow]]:
        terms = terms.of_one_call()
        return ((batch, self._flow(batch, terms, job, arrived)) for batch in batches)

    def _aflows(
        self, batches: AsyncIterator[Batch], terms: Terms, job: Assembly, arrived: Arrived | None = None
    ) -> AsyncIterator[tuple[Batch, Flow]]:
        terms = terms.of_one_call()
        return ((batch, self._flow(batch, terms, job, arrived)) async for batch in batches)

    def _counted(self, job: Assembly, texts: Sequence[str] | None = None) -> _Counted:
        return _Counted(self, job, texts)

    def _left(self, job: Assembly) -> None:
        """Its caller is here no more."""
        with self._lock.here:
            job.over = True
        job.settle()
        self._count(job.usage)

    def _late(self, job: Assembly, outcome: Outcome) -> None:
        """What came when the caller had left is billed all the same."""
        self._count(job.usage_of(outcome.requests, outcome.texts, outcome.tokens))

    def _count(self, usage: Usage) -> None:
        with self._lock.here:
            self._usage += usage
        dashscope_embeddings_usage.count(usage)

    def _flow(self, batch: Batch, terms: Terms, job: Assembly, arrived: Arrived | None) -> Flow:
        outcome = yield from exchange(batch.texts, terms)
        with self._lock.here:
            if not job.over:
                job.landed[batch.number] = batch, outcome
        if job.over:
            self._late(job, outcome)
        if arrived is not None:
            arrived(batch.texts, outcome)
        return outcome

    # --- copies and processes -----------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        """Whether both ask the same in the same way: what caches of functions compare."""
        if not isinstance(other, Calls):
            return NotImplemented
        return type(self) is type(other) and (self.settings, self._given) == (other.settings, other._given)

    def __hash__(self) -> int:
        return hash(self.settings)

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


class _Counted:
    """Adds what a job was billed, however it ends; whatever ends it takes along what had arrived.

    Not a generator: `contextlib` writes to what passes, which some exceptions do not allow.
    """

    def __init__(self, calls: Calls, job: Assembly, texts: Sequence[str] | None) -> None:
        self._calls, self._job, self._texts = calls, job, texts

    def __enter__(self) -> None:
        """Nothing yet."""

    def __exit__(self, _: object, end: BaseException | None, __: object) -> None:
        if end is not None and not isinstance(end, GeneratorExit):
            self._job.salvage(end, self._texts)
        self._calls._left(self._job)  # noqa: SLF001 - a part of it


class Callbacks:
    """Around calls of a caller's functions: the first failure ends the job, once what is in flight has come back."""

    def __init__(self, stop: Callable[[], object]) -> None:
        self._stop = stop
        self._failure: Exception | None = None

    def __enter__(self) -> None:
        """Nothing yet."""

    def __exit__(self, _: object, failure: BaseException | None, __: object) -> bool:
        if not isinstance(failure, Exception):
            return False  # an interruption ends the call at once
        self._failure = self._failure or failure
        self._stop()
        return True

    def end(self) -> None:
        """Raises what was kept."""
        if self._failure is not None:
            raise self._failure


def dismiss(job: Assembly, outcome: Outcome, refused: Refused | None) -> None:
    """Where the whole job fails, refusals of single texts are not to be believed."""
    if refused is not None and outcome.stop is None:
        for index, error in job.dismiss().items():
            refused(index, error)


async def taken(job: Assembly, batch: Batch, outcome: Outcome) -> int:
    """`Assembly.take`, in a thread where the mean of a huge text's vectors would stop the loop."""
    if max((len(place.parts) for place in batch.places), default=0) < _MANY_PARTS:
        return job.take(batch, outcome)
    return await in_thread(job.take, batch, outcome)


_MANY_PARTS = 50


def _nobody() -> None:
    """Whom a query wakes before its caller waits."""
