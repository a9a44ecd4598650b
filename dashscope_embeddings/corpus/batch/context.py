"""What all steps of one command on batches share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashscope_embeddings._core.protocol import Ask
    from dashscope_embeddings._core.settings import Settings
    from dashscope_embeddings._core.text_length import Limits
    from dashscope_embeddings.corpus.batch.store import Book
    from dashscope_embeddings.corpus.checkpoint.store import Ledger
    from dashscope_embeddings.errors import DashScopeError


@dataclass(slots=True)
class Brought:
    """What the batches of one command came to."""

    texts: int = 0
    """Different texts embedded."""
    lines: int = 0
    """Lines billed."""
    billed: int = 0
    """Texts billed: pieces, and texts whose vectors were spoilt, count too."""
    tokens: int = 0
    strangers: int = 0
    """Results that belong to no line of their batch."""
    troubles: list[DashScopeError] = field(default_factory=list)
    """What ends the job once everything that can be had is in."""


@dataclass(frozen=True, slots=True)
class Work:
    """Where vectors come from and where they go."""

    ledger: Ledger
    book: Book
    settings: Settings
    limits: Limits
    ask: Ask
    brought: Brought = field(default_factory=Brought)
