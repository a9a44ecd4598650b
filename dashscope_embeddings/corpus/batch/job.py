"""One batch command from start to end: open the checkpoint, load the input, run a flow, write the output."""

from __future__ import annotations

import contextlib
import math
import operator
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from dashscope_embeddings._core.address import EMULATOR
from dashscope_embeddings._core.steps import Step, StepResult
from dashscope_embeddings._core.text_length import shared_limits
from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent, StopEvent
from dashscope_embeddings.catalogue import BEIJING, priced_usage
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus import inputs as corpus_inputs
from dashscope_embeddings.corpus import writers
from dashscope_embeddings.corpus.batch import request_file
from dashscope_embeddings.corpus.batch.context import BatchContext, BatchOptions
from dashscope_embeddings.corpus.batch.flow import BatchFlow
from dashscope_embeddings.corpus.batch.types import BatchEstimate, BatchSummary, ProgressCallback
from dashscope_embeddings.corpus.checkpoint.jobs import JobStore
from dashscope_embeddings.corpus.options import EXTRA_COLUMNS, InputOptions
from dashscope_embeddings.corpus.realtime import ledger_beside, rejects_beside, write_output
from dashscope_embeddings.errors import Cancelled, InvalidInput

Inputs: TypeAlias = str | Path | Iterable[str | Path]


class BatchJobRunner:
    """Runs one batch command on an opened checkpoint."""

    def __init__(
        self, context: BatchContext, client: EmbeddingClient, output: Path, batch_options: BatchOptions
    ) -> None:
        self._context, self._client, self._output, self._batch_options = context, client, output, batch_options
        self._billed_before = context.checkpoint.total_billed()

    def create_flow(self, progress: ProgressCallback | None) -> BatchFlow:
        """The flows of this command; `progress` is called with each event."""
        return BatchFlow(self._context, self._output, self._batch_options, progress)

    def run(
        self, flow: Generator[Step, StepResult, None], stop: StopEvent | None, *, write: bool = True
    ) -> BatchSummary:
        """Runs a flow to its end, writes the output if all texts are done, and returns the state of the job."""
        stopped = False
        try:
            self._client.run(flow, stop or SignalSafeEvent())
        except Cancelled:
            stopped = True
        counts = self._context.checkpoint.counts()
        finished = write and not counts.pending and not stopped
        if finished:
            columns = [name for name in EXTRA_COLUMNS if self._context.job_store.get_setting(f"with_{name}")]
            write_output(self._context.checkpoint, self._output, self._client, "document", "dense", columns)
        if self._context.totals.errors:
            raise self._context.totals.errors[0]
        return self._summary(finished=finished, stopped=stopped)

    def _summary(self, *, finished: bool, stopped: bool) -> BatchSummary:
        checkpoint, job_store, totals = self._context.checkpoint, self._context.job_store, self._context.totals
        counts, (under_way, given_up) = checkpoint.counts(), job_store.counts()
        price, billed = self._context.settings.price, checkpoint.total_billed()
        return BatchSummary(
            texts=counts.texts,
            embedded=totals.embedded,
            under_way=under_way,
            pending=counts.pending,
            given_up=given_up,
            rejected=counts.rejected,
            skipped=counts.invalid,
            usage=priced_usage(price, *map(operator.sub, billed, self._billed_before), batch=True),
            spent=priced_usage(price, *billed, batch=True),
            files=tuple(job_store.batches()),
            rejects=rejects_beside(self._output) if finished and counts.rejected + counts.invalid else None,
            finished=finished,
            stopped=stopped,
        )

    def estimate(self) -> BatchEstimate:
        """What a submission will send and cost."""
        counts, settings = self._context.checkpoint.counts(), self._context.settings
        texts, tokens, size = self._context.job_store.unsubmitted()
        lines = math.ceil(texts / min(settings.batch_size or self._context.limits.rows, self._context.limits.rows))
        files = max(math.ceil(lines / request_file.MAX_FILE_LINES), math.ceil(size / request_file.MAX_FILE_BYTES))
        address = settings.address
        return BatchEstimate(
            texts=counts.texts,
            pending=texts,
            tokens=tokens,
            skipped=counts.invalid,
            files=files,
            cost=priced_usage(settings.price, 0, 0, tokens, batch=True).cost,
            documented=address.region is None or address.region.id == BEIJING,
        )


@contextlib.contextmanager
def open_job(  # noqa: PLR0913, PLR0917 - only the first two are required
    output: str | Path,
    client: EmbeddingClient,
    inputs: Inputs | None = None,
    input_options: InputOptions | None = None,
    batch_options: BatchOptions | None = None,
    on_estimate: Callable[[BatchEstimate], object] | None = None,
) -> Iterator[BatchJobRunner]:
    """Opens the checkpoint of a job and loads the input, if there is any.

    Raises:
        InvalidInput: the client or the options cannot work, the input is bad, or there is no such job.
    """
    if client.settings.protocol != "openai":
        raise InvalidInput('Batch files are OpenAI-compatible: create the client with protocol="openai"')
    output = Path(output)
    path = ledger_beside(output)
    if batch_options is not None:
        _check_batch_options(batch_options)
    source = None
    if inputs is not None:
        writers.validate_output(output, "dense")
        corpus_inputs.check_output(path, output)
        source = corpus_inputs.resolve_inputs(inputs, output, input_options or InputOptions())
    elif not path.exists():
        raise InvalidInput(f"there is no {path}: nothing was submitted for this output")
    fingerprint = corpus_inputs.settings_fingerprint(client, "document", "dense", "batch")
    with corpus_inputs.open_checkpoint(path, output) as checkpoint:
        with checkpoint.transaction(commit=False):
            checkpoint.check_settings(fingerprint)
        job_store = JobStore(checkpoint)
        with checkpoint.transaction():
            if source is not None:
                corpus_inputs.load_inputs(checkpoint, source, client.settings, fingerprint)
                job_store.set_setting("numbers", checkpoint.has_integer_ids)
                for name in EXTRA_COLUMNS:
                    job_store.set_setting(f"with_{name}", name in source.options.extra_columns)
            if batch_options is not None:
                job_store.set_setting("client", _portable_settings(client))
                job_store.set_setting("order", batch_options)
        if job_store.get_setting("client") is None or job_store.get_setting("with_text") is None:
            raise InvalidInput(f"{path} contains no batch: nothing was submitted for this output")
        settings = client.settings
        limits = shared_limits(settings.address.host, settings.model)
        context = BatchContext(checkpoint, job_store, settings, limits, settings.request_options("document", "dense"))
        runner = BatchJobRunner(context, client, output, batch_options or BatchOptions(*job_store.get_setting("order")))
        if on_estimate is not None:
            on_estimate(runner.estimate())
        yield runner


_MIN_WINDOW_HOURS, _MAX_WINDOW_HOURS = 24, 336


def _check_batch_options(options: BatchOptions) -> None:
    match = re.fullmatch(r"([0-9]{1,3})([hd])", options.window)
    hours = int(match[1]) * (24 if match[2] == "d" else 1) if match is not None else 0
    if not _MIN_WINDOW_HOURS <= hours <= _MAX_WINDOW_HOURS:
        raise InvalidInput(f"window={options.window!r}: expected 24h to 336h, or 1d to 14d")
    for name, value, max_characters in (("name", options.name, 100), ("description", options.description, 200)):
        if value is not None and len(value) > max_characters:
            raise InvalidInput(f"{name} has {len(value)} characters, and may have {max_characters}")


def _portable_settings(client: EmbeddingClient) -> dict[str, Any]:
    """Client settings for continuing the job on another machine: no key, and no address but the service's own."""
    settings = client.settings
    portable: dict[str, Any] = {
        "model": settings.model.name,
        "protocol": "openai",
        "dimensions": settings.dimensions,
        "long_text": settings.long_text,
        "batch_size": settings.batch_size,
        "tokens_per_request": settings.tokens_per_request,
    }
    if settings.address.is_emulator:
        portable["base_url"] = EMULATOR
    elif settings.address.region is not None:
        portable["base_url"], portable["workspace"] = settings.address.root_url, settings.address.workspace
    return portable
