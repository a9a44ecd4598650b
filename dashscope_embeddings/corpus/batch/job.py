"""A job during one command: what all steps of the command share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from dashscope_embeddings._core.text_length import shared_limits
from dashscope_embeddings.corpus.batch.types import BatchProgress

if TYPE_CHECKING:
    from pathlib import Path

    from dashscope_embeddings._core.protocol import RequestOptions
    from dashscope_embeddings._core.settings import Settings
    from dashscope_embeddings._core.text_length import Limits
    from dashscope_embeddings.client import EmbeddingClient
    from dashscope_embeddings.corpus.batch.types import ProgressCallback
    from dashscope_embeddings.corpus.checkpoint.jobs import JobStore
    from dashscope_embeddings.corpus.checkpoint.rows import BatchFile
    from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore
    from dashscope_embeddings.errors import DashScopeError


class BatchOptions(NamedTuple):
    """How new batches are created."""

    window: str
    """Time that the service may take: "24h" to "336h", or "1d" to "14d"."""
    name: str | None
    description: str | None


@dataclass(slots=True)
class BatchJob:
    """The checkpoint and the client of a job, and what the command has done so far."""

    output: Path
    client: EmbeddingClient
    checkpoint: CheckpointStore
    job_store: JobStore
    options: BatchOptions
    progress: ProgressCallback | None
    embedded: int = 0
    """Different texts embedded."""
    unknown_results: int = 0
    """Results that belong to no line of their batch."""
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
        if self.progress is not None:
            self.progress(BatchProgress(message if batch is None else f"file {batch.number}: {message}", batch))
