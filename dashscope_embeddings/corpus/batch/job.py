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
from dashscope_embeddings._core.exchange import Step, StepResult
from dashscope_embeddings._core.text_length import shared_limits
from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent, StopEvent
from dashscope_embeddings.catalogue import BEIJING
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus import inputs as corpus_inputs
from dashscope_embeddings.corpus import readers, writers
from dashscope_embeddings.corpus.batch import request_file
from dashscope_embeddings.corpus.batch.context import BatchContext
from dashscope_embeddings.corpus.batch.flow import BatchFlow
from dashscope_embeddings.corpus.batch.store import BatchRecord, JobStore
from dashscope_embeddings.corpus.batch.types import BatchEstimate, BatchFile, BatchProgress, BatchSummary
from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore
from dashscope_embeddings.corpus.inputs import OnBadInput
from dashscope_embeddings.corpus.readers import Format
from dashscope_embeddings.corpus.realtime import ledger_beside, rejects_beside, write_output
from dashscope_embeddings.errors import Cancelled, InvalidInput
from dashscope_embeddings.vectors import Cost, Usage

Inputs: TypeAlias = str | Path | Iterable[str | Path]
ProgressCallback: TypeAlias = Callable[[BatchProgress], object]


@dataclass(frozen=True, slots=True)
class InputOptions:
    """The input of a submission."""

    inputs: Inputs | None
    text_field: str
    id_field: str | None
    file_format: Format | None
    encoding: str
    on_bad_input: OnBadInput
    with_text: bool
    retry_rejected: bool


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How batches are asked for."""

    window: str
    name: str | None
    description: str | None

    def validate(self) -> None:
        """Raises InvalidInput."""
        match = re.fullmatch(r"([0-9]{1,3})([hd])", self.window)
        hours = int(match[1]) * (24 if match[2] == "d" else 1) if match is not None else 0
        if not _MIN_WINDOW_HOURS <= hours <= _MAX_WINDOW_HOURS:
            raise InvalidInput(f"window={self.window!r}: expected 24h to 336h, or 1d to 14d")
        for what, value, max_characters in (("name", self.name, 100), ("description", self.description, 200)):
            if value is not None and len(value) > max_characters:
                raise InvalidInput(f"{what} has {len(value)} characters, and may have {max_characters}")


_MIN_WINDOW_HOURS, _MAX_WINDOW_HOURS = 24, 336


class BatchJobRunner:
    """One command at work."""

    def __init__(
        self, context: BatchContext, client: EmbeddingClient, output: Path, batch_options: BatchOptions
    ) -> None:
        self._context, self._client, self._output, self._batch_options = context, client, output, batch_options

    def create_flow(self, progress: ProgressCallback | None) -> BatchFlow:
        """The flows to choose from."""

        def report(message: str, batch: BatchRecord | None) -> None:
            if progress is not None:
                progress(BatchProgress(message, None if batch is None else _to_batch_file(batch)))

        batch_options = (self._batch_options.window, self._batch_options.name, self._batch_options.description)
        return BatchFlow(self._context, self._output, batch_options, report)

    def run(
        self, flow: Generator[Step, StepResult, None], stop: StopEvent | None, *, write: bool = True
    ) -> BatchSummary:
        """From its first step to where the job then stands."""
        stopped = False
        try:
            self._client.run(flow, stop or SignalSafeEvent())
        except Cancelled:
            stopped = True
        finally:
            self._context.checkpoint.index_replies()
        counts = self._context.checkpoint.counts()
        finished = write and not counts.pending and not stopped
        if finished:
            with_text = bool(self._context.job_store.get_note("with_text"))
            write_output(self._context.checkpoint, self._output, self._client, "document", "dense", with_text=with_text)
        if self._context.totals.errors:
            raise self._context.totals.errors[0]
        return self._summary(finished=finished, stopped=stopped)

    def _summary(self, *, finished: bool, stopped: bool) -> BatchSummary:
        checkpoint, job_store, totals = self._context.checkpoint, self._context.job_store, self._context.totals
        counts, (under_way, given_up) = checkpoint.counts(), job_store.counts()
        return BatchSummary(
            texts=counts.texts,
            embedded=totals.embedded,
            under_way=under_way,
            pending=counts.pending,
            given_up=given_up,
            rejected=counts.rejected,
            skipped=counts.invalid,
            usage=self._usage(totals.billed_lines, totals.billed_texts, totals.tokens),
            spent=self._usage(*checkpoint.total_billed()),
            files=tuple(map(_to_batch_file, job_store.batches())),
            rejects=rejects_beside(self._output) if finished and counts.rejected + counts.invalid else None,
            finished=finished,
            stopped=stopped,
        )

    def _usage(self, lines: int, texts: int, tokens: int) -> Usage:
        return Usage(lines, tokens, texts, _cost(self._client, tokens))

    def estimate(self) -> BatchEstimate:
        """What a submission will ask for."""
        counts, settings = self._context.checkpoint.counts(), self._context.settings
        texts, tokens, size = self._context.job_store.unsubmitted()
        lines = math.ceil(texts / min(settings.batch_size or self._context.limits.rows, self._context.limits.rows))
        files = max(math.ceil(lines / request_file.MAX_FILE_LINES), math.ceil(size / request_file.MAX_FILE_BYTES))
        place = settings.address
        return BatchEstimate(
            texts=counts.texts,
            pending=texts,
            tokens=tokens,
            skipped=counts.invalid,
            files=files,
            cost=_cost(self._client, tokens),
            documented=place.region is None or place.region.id == BEIJING,
        )


@contextlib.contextmanager
def open_job(
    output: str | Path,
    client: EmbeddingClient,
    input_options: InputOptions | None = None,
    batch_options: BatchOptions | None = None,
    on_estimate: Callable[[BatchEstimate], object] | None = None,
) -> Iterator[BatchJobRunner]:
    """Opens the ledger, takes the input in if there is any, and checks that all fits together."""
    output = Path(output)
    path = ledger_beside(output)
    sources = _validate(output, client, input_options, batch_options)
    fingerprint = corpus_inputs.settings_fingerprint(client, "document", "dense", "batch")
    with corpus_inputs.open_checkpoint(path, output) as checkpoint:
        with checkpoint.transaction(commit=False):
            checkpoint.check_settings(fingerprint)
        job_store = JobStore(checkpoint)
        with checkpoint.transaction():
            if sources and input_options is not None:
                _load_inputs(checkpoint, job_store, client, input_options, sources)
            if batch_options is not None:
                job_store.set_note("client", _portable_settings(client))
                job_store.set_note("order", [batch_options.window, batch_options.name, batch_options.description])
        if job_store.get_note("client") is None or job_store.get_note("with_text") is None:
            raise InvalidInput(f"{path} knows of no batch: nothing was submitted for this output")
        settings = client.settings
        limits = shared_limits(settings.address.host, settings.model)
        context = BatchContext(checkpoint, job_store, settings, limits, settings.request_options("document", "dense"))
        runner = BatchJobRunner(context, client, output, batch_options or BatchOptions(*job_store.get_note("order")))
        if on_estimate is not None:
            on_estimate(runner.estimate())
        yield runner


def _validate(
    output: Path, client: EmbeddingClient, input_options: InputOptions | None, batch_options: BatchOptions | None
) -> list[readers.Source]:
    """What can be refused before anything is opened."""
    if client.settings.protocol != "openai":
        raise InvalidInput('Batch files are OpenAI-compatible: make the client with protocol="openai"')
    path = ledger_beside(output)
    if batch_options is not None:
        batch_options.validate()
    if input_options is None or input_options.inputs is None:
        if not path.exists():
            raise InvalidInput(f"there is no {path}: nothing was submitted for this output")
        return []
    writers.validate_output(output, "dense")
    corpus_inputs.check_output(path, output)
    return corpus_inputs.resolve_inputs(
        input_options.inputs, input_options.file_format, output, input_options.on_bad_input
    )


def _load_inputs(
    checkpoint: CheckpointStore,
    job_store: JobStore,
    client: EmbeddingClient,
    input_options: InputOptions,
    sources: list[readers.Source],
) -> None:
    fields = readers.Fields(input_options.text_field, input_options.id_field, input_options.encoding)
    checkpoint.start_run(
        corpus_inputs.settings_fingerprint(client, "document", "dense", "batch"),
        retry_rejected=input_options.retry_rejected,
    )
    skip = input_options.on_bad_input == "skip"
    corpus_inputs.load_inputs(
        checkpoint, sources, fields, client.settings, skip_invalid=skip, with_text=input_options.with_text
    )
    job_store.set_note("numbers", checkpoint.has_integer_ids)
    job_store.set_note("with_text", input_options.with_text)


def _portable_settings(client: EmbeddingClient) -> dict[str, Any]:
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
        found["base_url"], found["workspace"] = settings.address.root_url, settings.address.workspace
    return found


def _cost(client: EmbeddingClient, tokens: int) -> Cost | None:
    price = client.settings.price
    if price is None or price.batch is None:
        return None
    return Cost(price.batch * tokens / 1_000_000, price.currency)


def _to_batch_file(batch: BatchRecord) -> BatchFile:
    return BatchFile(
        batch.number, batch.state, batch.batch_id, batch.status, batch.lines, batch.texts, batch.completed, batch.failed
    )
