"""What users are told of batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dashscope_embeddings.vectors import Cost, Usage


@dataclass(frozen=True, slots=True)
class BatchFile:
    """One file of lines, and the service's batch that works on it."""

    number: int
    """In this ledger, from 1."""
    state: str
    """"planned", "uploaded", "creating", "running" (the service has it) or "closed" (its results are in the ledger)."""
    batch_id: str | None
    """The service's name for it; None: not created yet."""
    status: str | None
    """In the service's words, such as "in_progress", when it was last asked."""
    lines: int
    texts: int
    completed: int | None
    """Lines done when it was last asked; None: not told."""
    failed: int | None


@dataclass(frozen=True, slots=True)
class BatchEstimate:
    """What a submission will ask for."""

    texts: int
    """Usable texts of the input."""
    pending: int
    """Different texts that will be submitted."""
    tokens: int
    """Of those, estimated by a rule of thumb: expect to be a third off."""
    skipped: int
    """Records that are no usable texts."""
    files: int
    """About."""
    cost: Cost | None
    """List price of the tokens through Batch files; None: not known."""
    documented: bool
    """Whether the vendor's pages offer Batch files for embeddings at this address."""


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """Something happened."""

    said: str
    """In a line."""
    file: BatchFile | None
    """To which file; None: to none alone."""


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """Where a job stands."""

    texts: int
    """Usable texts of the input; when finished, each has vectors in the output, unless it was rejected."""
    embedded: int
    """Different texts whose vectors came with this call."""
    under_way: int
    """Different texts that are in batches, or about to be."""
    pending: int
    """Different texts that have neither vectors nor a refusal, those under way included."""
    given_up: int
    """Of those, how many failed too often, or were in a cancelled or refused batch: a new submission tries them."""
    rejected: int
    """Texts of the input that the service refused."""
    skipped: int
    """Records that were no usable texts."""
    usage: Usage
    """What the results of this call were billed: lines that succeeded, at the price of Batch files."""
    spent: Usage
    """The same for all calls so far."""
    files: tuple[BatchFile, ...]
    """All files of this ledger, in their order."""
    rejects: Path | None
    """Where the rejected and the skipped are named; None: there are none, or it is not finished."""
    finished: bool
    """Whether the output is written."""
    stopped: bool
    """Whether `stop` was set meanwhile."""
