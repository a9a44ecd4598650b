"""What all steps of one command on batches share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashscope_embeddings._core.protocol import RequestOptions
    from dashscope_embeddings._core.settings import Settings
    from dashscope_embeddings._core.text_length import Limits
    from dashscope_embeddings.corpus.batch.store import JobStore
    from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore
    from dashscope_embeddings.errors import DashScopeError


@dataclass(slots=True)
class Totals:
    """What the batches of one command came to."""

    embedded: int = 0
    """Different texts embedded."""
    billed_lines: int = 0
    """Lines billed."""
    billed_texts: int = 0
    """Texts billed: pieces, and texts whose vectors were spoilt, count too."""
    tokens: int = 0
    unknown_results: int = 0
    """Results that belong to no line of their batch."""
    errors: list[DashScopeError] = field(default_factory=list)
    """What ends the job once everything that can be had is in."""


@dataclass(frozen=True, slots=True)
class BatchContext:
    """Where vectors come from and where they go."""

    checkpoint: CheckpointStore
    job_store: JobStore
    settings: Settings
    limits: Limits
    request_options: RequestOptions
    totals: Totals = field(default_factory=Totals)
