"""A job during one command: opened from its checkpoint, run by a flow, and what all steps of the flow share."""

from __future__ import annotations

import contextlib
import math
import operator
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from dashscope_embeddings._core.address import EMULATOR
from dashscope_embeddings._core.text_length import Limits, shared_limits
from dashscope_embeddings._runtime.files import as_path
from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent, StopEvent
from dashscope_embeddings.catalogue import BEIJING, priced_usage
from dashscope_embeddings.corpus import inputs as corpus_inputs
from dashscope_embeddings.corpus.batch import request_file
from dashscope_embeddings.corpus.batch.types import BatchEstimate, BatchProgress, BatchSummary
from dashscope_embeddings.corpus.checkpoint.jobs import JobStore
from dashscope_embeddings.corpus.options import EXTRA_COLUMNS, InputOptions
from dashscope_embeddings.corpus.progress import print_line
from dashscope_embeddings.corpus.realtime import ledger_beside
from dashscope_embeddings.corpus.sources import find_sources
from dashscope_embeddings.corpus.writers import rejects_beside, validate_output, write_output
from dashscope_embeddings.errors import Cancelled, DashScopeError, InvalidInput

if TYPE_CHECKING:
    from dashscope_embeddings._core.other_endpoints import RequestFlow
    from dashscope_embeddings._core.protocol import RequestOptions
    from dashscope_embeddings._core.settings import Settings
    from dashscope_embeddings.client import EmbeddingClient
    from dashscope_embeddings.corpus.batch.types import ProgressCallback
    from dashscope_embeddings.corpus.checkpoint.rows import BatchFile
    from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore

Inputs: TypeAlias = str | Path | Iterable[str | Path]

_MIN_WINDOW_HOURS, _MAX_WINDOW_HOURS = 24, 336


class BatchOptions(NamedTuple):
    """Settings of the batches that a command submits."""

    window: str
    """Time that the service may take: "24h" to "336h", or "1d" to "14d"."""
    name: str | None
    description: str | None

    def check(self) -> None:
        """Raises InvalidInput if the service would refuse them."""
        match = re.fullmatch(r"([0-9]{1,3})([hd])", self.window)
        hours = int(match[1]) * (24 if match[2] == "d" else 1) if match is not None else 0
        if not _MIN_WINDOW_HOURS <= hours <= _MAX_WINDOW_HOURS:
            raise InvalidInput(f"window={self.window!r}: expected 24h to 336h, or 1d to 14d")
        for name, value, max_characters in (("name", self.name, 100), ("description", self.description, 200)):
            if value is not None and len(value) > max_characters:
                raise InvalidInput(f"{name} has {len(value)} characters, and may have {max_characters}")


@dataclass(slots=True)
class BatchJob:
    """The checkpoint and the client of a job, and what the command has done so far."""

    output: Path
    client: EmbeddingClient
    checkpoint: CheckpointStore
    job_store: JobStore
    options: BatchOptions
    progress: ProgressCallback | bool | None
    counts_exactly: bool
    """Whether the tokenizer has counted the tokens of all texts."""
    embedded: int = 0
    """Different texts embedded."""
    errors: list[DashScopeError] = field(default_factory=list)
    """Errors to raise after all available results are imported."""

    @property
    def settings(self) -> Settings:
        """The client's settings."""
        return self.client.settings

    @property
    def limits(self) -> Limits:
        """The model's limits, as far as they are known."""
        return shared_limits(self.settings.address.host, self.settings.model)

    @property
    def request_options(self) -> RequestOptions:
        """What the body of each line says besides its texts."""
        return self.settings.request_options("document", "dense")

    def report(self, message: str, batch: BatchFile | None = None) -> None:
        """Reports an event: of a batch, or of no single one."""
        message = message if batch is None else f"file {batch.number}: {message}"
        if self.progress is True:
            print_line(message)
        elif not isinstance(self.progress, bool) and self.progress is not None:
            self.progress(BatchProgress(message, batch))

    def estimate(self) -> BatchEstimate:
        """What a submission will send and cost."""
        counts, settings = self.checkpoint.counts(), self.settings
        texts, tokens, size = self.job_store.unsubmitted()
        lines = math.ceil(texts / min(settings.batch_size or self.limits.rows, self.limits.rows))
        return BatchEstimate(
            texts=counts.texts,
            pending=texts,
            tokens=tokens,
            skipped=counts.invalid,
            files=max(math.ceil(lines / request_file.MAX_FILE_LINES), math.ceil(size / request_file.MAX_FILE_BYTES)),
            cost=priced_usage(settings.price, 0, 0, tokens, batch=True).cost,
            documented=settings.address.region is None or settings.address.region.id == BEIJING,
            exact=self.counts_exactly,
        )

    def run(self, flow: RequestFlow[None], stop: StopEvent | None = None, *, write: bool = True) -> BatchSummary:
        """Runs a flow to its end, writes the output if all texts are done, and returns the state of the job."""
        if stop is not None and not (hasattr(stop, "is_set") and hasattr(stop, "wait")):
            raise InvalidInput(f"stop must be a threading.Event, not {type(stop).__name__}")
        checkpoint, price = self.checkpoint, self.settings.price
        billed_before, stopped = checkpoint.total_billed(), False
        try:
            self.client.run_steps(flow, stop or SignalSafeEvent())
        except Cancelled:
            stopped = True
        counts = checkpoint.counts()
        finished = write and not counts.pending and not stopped
        if finished:
            columns = [name for name in EXTRA_COLUMNS if self.job_store.get_setting(f"with_{name}")]
            write_output(checkpoint, counts, self.output, self.client, "document", "dense", columns)
        if self.errors:
            raise self.errors[0]
        billed, (under_way, given_up) = checkpoint.total_billed(), self.job_store.counts()
        return BatchSummary(
            texts=counts.texts,
            embedded=self.embedded,
            under_way=under_way,
            pending=counts.pending,
            given_up=given_up,
            rejected=counts.rejected,
            skipped=counts.invalid,
            usage=priced_usage(price, *map(operator.sub, billed, billed_before), batch=True),
            spent=priced_usage(price, *billed, batch=True),
            files=tuple(self.job_store.batches()),
            rejects=rejects_beside(self.output) if finished and counts.rejected + counts.invalid else None,
            finished=finished,
            stopped=stopped,
        )


@contextlib.contextmanager
def open_job(  # noqa: PLR0913, PLR0917 - only the first two are required
    output: str | Path,
    client: EmbeddingClient,
    progress: ProgressCallback | bool | None = None,  # noqa: FBT001 - passed on as it was given
    inputs: Inputs | None = None,
    input_options: InputOptions | None = None,
    batch_options: BatchOptions | None = None,
) -> Iterator[BatchJob]:
    """Opens the checkpoint of a job and loads the input, if there is any.

    Raises:
        InvalidInput: the client or the options cannot work, the input is bad, or there is no such job.
    """
    fingerprint = corpus_inputs.settings_fingerprint(client, "document", "dense", "batch")
    if client.settings.protocol != "openai":
        raise InvalidInput('Batch files are OpenAI-compatible: create the client with protocol="openai"')
    output = as_path(output, "output")
    path = ledger_beside(output)
    if batch_options is not None:
        batch_options.check()
    input_options, sources = input_options or InputOptions(), None
    if inputs is not None:
        validate_output(output, "dense")
        sources = find_sources(inputs, input_options.format, output=output)
    elif not path.exists():
        raise InvalidInput(f"there is no {path}: nothing was submitted for this output")
    with corpus_inputs.open_checkpoint(path, output) as checkpoint:
        with checkpoint.transaction(commit=False):
            checkpoint.check_settings(fingerprint)
        job_store, is_exact = JobStore(checkpoint), False
        with checkpoint.transaction():
            if sources is not None:
                is_exact = corpus_inputs.count_exactly(checkpoint, client.settings)
                corpus_inputs.load_inputs(checkpoint, sources, input_options, client.settings, fingerprint)
                job_store.set_setting("numbers", checkpoint.has_integer_ids)
                for name in EXTRA_COLUMNS:
                    job_store.set_setting(f"with_{name}", name in input_options.extra_columns)
            if batch_options is not None:
                job_store.set_setting("client", _portable_settings(client))
                job_store.set_setting("order", batch_options)
        if job_store.get_setting("client") is None or job_store.get_setting("with_text") is None:
            raise InvalidInput(f"{path} contains no batch: nothing was submitted for this output")
        batch_options = batch_options or BatchOptions(*job_store.get_setting("order"))
        yield BatchJob(output, client, checkpoint, job_store, batch_options, progress, is_exact)


def _portable_settings(client: EmbeddingClient) -> dict[str, Any]:
    """Client settings for continuing the job on another machine: no key, and no address but the service's own."""
    settings = client.settings
    names = ("protocol", "dimensions", "long_text", "batch_size", "tokens_per_request")
    portable = {"model": settings.model.name, **{name: getattr(settings, name) for name in names}}
    if settings.address.is_emulator:
        portable["base_url"] = EMULATOR
    elif settings.address.region is not None:
        portable["base_url"], portable["workspace"] = settings.address.root_url, settings.address.workspace
    return portable
