"""One command on batches: what it is given, what it finds in the ledger, and what it leaves there."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from dashscope_embeddings._core.address import EMULATOR
from dashscope_embeddings._core.exchange import Answer, Step
from dashscope_embeddings._core.text_length import limits_of
from dashscope_embeddings._runtime.thread_pool import Flag, Halt
from dashscope_embeddings.catalogue import BEIJING
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus import inputs as corpus_inputs
from dashscope_embeddings.corpus import readers, writers
from dashscope_embeddings.corpus.batch import request_file
from dashscope_embeddings.corpus.batch.context import Work
from dashscope_embeddings.corpus.batch.flow import BatchFlow
from dashscope_embeddings.corpus.batch.store import Book, Job
from dashscope_embeddings.corpus.batch.types import BatchEstimate, BatchFile, BatchProgress, BatchSummary
from dashscope_embeddings.corpus.checkpoint.store import Ledger
from dashscope_embeddings.corpus.inputs import OnBadInput
from dashscope_embeddings.corpus.readers import Format
from dashscope_embeddings.corpus.realtime import ledger_beside, rejects_beside, write_output
from dashscope_embeddings.errors import GivenUp, InvalidInput
from dashscope_embeddings.vectors import Cost, Usage

Inputs: TypeAlias = str | Path | Iterable[str | Path]
Tell: TypeAlias = Callable[[BatchProgress], object]


@dataclass(frozen=True, slots=True)
class Given:
    """The input of a submission."""

    inputs: Inputs | None
    text_field: str
    id_field: str | None
    form: Format | None
    encoding: str
    on_bad_input: OnBadInput
    with_text: bool
    retry_rejected: bool


@dataclass(frozen=True, slots=True)
class Order:
    """How batches are asked for."""

    window: str
    name: str | None
    description: str | None

    def check(self) -> None:
        """Raises InvalidInput."""
        match = re.fullmatch(r"([0-9]{1,3})([hd])", self.window)
        hours = int(match[1]) * (24 if match[2] == "d" else 1) if match is not None else 0
        if not _SHORTEST <= hours <= _LONGEST:
            raise InvalidInput(f"window={self.window!r}: expected 24h to 336h, or 1d to 14d")
        for what, given, most in (("name", self.name, 100), ("description", self.description, 200)):
            if given is not None and len(given) > most:
                raise InvalidInput(f"{what} has {len(given)} characters, and may have {most}")


_SHORTEST, _LONGEST = 24, 336


class Desk:
    """One command at work."""

    def __init__(self, work: Work, client: EmbeddingClient, output: Path, order: Order) -> None:
        self._work, self._client, self._output, self._order = work, client, output, order

    def flow(self, progress: Tell | None) -> BatchFlow:
        """The flows to choose from."""

        def tell(said: str, job: Job | None) -> None:
            if progress is not None:
                progress(BatchProgress(said, None if job is None else _file(job)))

        order = (self._order.window, self._order.name, self._order.description)
        return BatchFlow(self._work, self._output, order, tell)

    def perform(self, flow: Generator[Step, Answer, None], stop: Halt | None, *, write: bool = True) -> BatchSummary:
        """From its first step to where the job then stands."""
        stopped = False
        try:
            self._client.run(flow, stop or Flag())
        except GivenUp:
            stopped = True
        finally:
            self._work.ledger.settle()
        counts = self._work.ledger.counts()
        finished = write and not counts.pending and not stopped
        if finished:
            with_text = bool(self._work.book.noted("with_text"))
            write_output(self._work.ledger, self._output, self._client, "document", "dense", with_text=with_text)
        if self._work.brought.troubles:
            raise self._work.brought.troubles[0]
        return self._summary(finished=finished, stopped=stopped)

    def _summary(self, *, finished: bool, stopped: bool) -> BatchSummary:
        ledger, book, brought = self._work.ledger, self._work.book, self._work.brought
        counts, (under_way, given_up) = ledger.counts(), book.counts()
        return BatchSummary(
            texts=counts.items,
            embedded=brought.texts,
            under_way=under_way,
            pending=counts.pending,
            given_up=given_up,
            rejected=counts.rejected,
            skipped=counts.bad,
            usage=self._usage(brought.lines, brought.billed, brought.tokens),
            spent=self._usage(*ledger.spent()),
            files=tuple(map(_file, book.jobs())),
            rejects=rejects_beside(self._output) if finished and counts.rejected + counts.bad else None,
            finished=finished,
            stopped=stopped,
        )

    def _usage(self, lines: int, texts: int, tokens: int) -> Usage:
        return Usage(lines, tokens, texts, _cost(self._client, tokens))

    def estimate(self) -> BatchEstimate:
        """What a submission will ask for."""
        counts, settings = self._work.ledger.counts(), self._work.settings
        texts, tokens, size = self._work.book.waiting()
        lines = math.ceil(texts / min(settings.batch_size or self._work.limits.rows, self._work.limits.rows))
        files = max(math.ceil(lines / request_file.MOST_LINES), math.ceil(size / request_file.MOST_BYTES))
        place = settings.address
        return BatchEstimate(
            texts=counts.items,
            pending=texts,
            tokens=tokens,
            skipped=counts.bad,
            files=files,
            cost=_cost(self._client, tokens),
            documented=place.region is None or place.region.id == BEIJING,
        )


@contextlib.contextmanager
def at_work(
    output: str | Path,
    client: EmbeddingClient,
    given: Given | None = None,
    order: Order | None = None,
    before: Callable[[BatchEstimate], object] | None = None,
) -> Iterator[Desk]:
    """Opens the ledger, takes the input in if there is any, and checks that all fits together."""
    output = Path(output)
    path = ledger_beside(output)
    sources = _checked(output, client, given, order)
    terms = corpus_inputs.terms(client, "document", "dense", "batch")
    with corpus_inputs.opened(path, output) as ledger:
        with ledger.transaction(keep=False):
            ledger.agree(terms)
        book = Book(ledger)
        with ledger.transaction():
            if sources and given is not None:
                _take_in(ledger, book, client, given, sources)
            if order is not None:
                book.note("client", _portable(client))
                book.note("order", [order.window, order.name, order.description])
        if book.noted("client") is None or book.noted("with_text") is None:
            raise InvalidInput(f"{path} knows of no batch: nothing was submitted for this output")
        settings = client.settings
        limits = limits_of(settings.address.host, settings.model)
        work = Work(ledger, book, settings, limits, settings.ask("document", "dense"))
        desk = Desk(work, client, output, order or Order(*book.noted("order")))
        if before is not None:
            before(desk.estimate())
        yield desk


def _checked(output: Path, client: EmbeddingClient, given: Given | None, order: Order | None) -> list[readers.Source]:
    """What can be refused before anything is opened."""
    if client.settings.protocol != "openai":
        raise InvalidInput('Batch files are OpenAI-compatible: make the client with protocol="openai"')
    path = ledger_beside(output)
    if order is not None:
        order.check()
    if given is None or given.inputs is None:
        if not path.exists():
            raise InvalidInput(f"there is no {path}: nothing was submitted for this output")
        return []
    writers.check(output, "dense")
    corpus_inputs.check_output(path, output)
    return corpus_inputs.sources(given.inputs, given.form, output, given.on_bad_input)


def _take_in(ledger: Ledger, book: Book, client: EmbeddingClient, given: Given, sources: list[readers.Source]) -> None:
    fields = readers.Fields(given.text_field, given.id_field, given.encoding)
    ledger.begin(corpus_inputs.terms(client, "document", "dense", "batch"), again=given.retry_rejected)
    skip = given.on_bad_input == "skip"
    corpus_inputs.take_in(ledger, sources, fields, client.settings, skip=skip, with_text=given.with_text)
    book.note("numbers", ledger.numbers)
    book.note("with_text", given.with_text)


def _portable(client: EmbeddingClient) -> dict[str, Any]:
    """What another machine's client must be made with. The key is not among it, nor any address of strangers."""
    settings = client.settings
    found: dict[str, Any] = {
        "model": settings.model.name,
        "protocol": "openai",
        "dimensions": settings.dimensions,
        "long_text": settings.long_text,
        "batch_size": settings.batch_size,
        "tokens_per_request": settings.tokens_per_request,
    }
    if settings.address.is_emulator:
        found["base_url"] = EMULATOR
    elif settings.address.region is not None:
        found["base_url"], found["workspace"] = settings.address.root, settings.address.workspace
    return found


def _cost(client: EmbeddingClient, tokens: int) -> Cost | None:
    price = client.settings.price
    if price is None or price.batch is None:
        return None
    return Cost(price.batch * tokens / 1_000_000, price.currency)


def _file(job: Job) -> BatchFile:
    return BatchFile(job.number, job.state, job.batch_id, job.status, job.lines, job.texts, job.completed, job.failed)
