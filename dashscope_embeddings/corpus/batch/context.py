"""State that all steps of one batch command share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dashscope_embeddings._core.protocol import RequestOptions
    from dashscope_embeddings._core.settings import Settings
    from dashscope_embeddings._core.text_length import Limits
    from dashscope_embeddings.corpus.checkpoint.jobs import JobStore
    from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore
    from dashscope_embeddings.errors import DashScopeError


class BatchOptions(NamedTuple):
    """How new batches are created."""

    window: str
    """Time that the service may take: "24h" to "336h", or "1d" to "14d"."""
    name: str | None
    description: str | None


@dataclass(slots=True)
class Totals:
    """Counts of one command, over all its batches."""

    embedded: int = 0
    """Different texts embedded."""
    unknown_results: int = 0
    """Results that belong to no line of their batch."""
    errors: list[DashScopeError] = field(default_factory=list)
    """Errors to raise after all available results are imported."""


@dataclass(frozen=True, slots=True)
class BatchContext:
    """The checkpoint and the client's settings."""

    checkpoint: CheckpointStore
    job_store: JobStore
    settings: Settings
    limits: Limits
    request_options: RequestOptions
    totals: Totals = field(default_factory=Totals)
