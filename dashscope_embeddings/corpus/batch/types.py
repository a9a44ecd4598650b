"""Public result types of the batch functions: files, estimates, progress events and summaries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from dashscope_embeddings.corpus.checkpoint.rows import BatchFile
from dashscope_embeddings.vectors import Cost, Usage


@dataclass(frozen=True, slots=True)
class BatchEstimate:
    """What a submission will send and cost."""

    texts: int
    """Usable texts of the input."""
    pending: int
    """Different texts that will be submitted."""
    tokens: int
    """Tokens of the pending texts."""
    skipped: int
    """Records without a usable text."""
    files: int
    """Estimated number of request files."""
    cost: Cost | None
    """List price of the tokens through Batch files; None: unknown."""
    documented: bool
    """Whether the vendor documents Batch files for embeddings at this address."""
    exact: bool = False
    """Whether the model's tokenizer counted; else by a rule of thumb, which may be a third off."""


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """One event of a batch command."""

    message: str
    """What happened, in one line."""
    file: BatchFile | None
    """The file that the event concerns; None: no single file."""

    @property
    def said(self) -> str:
        """The former name of `message`."""
        return self.message


ProgressCallback: TypeAlias = Callable[[BatchProgress], object]


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """The state of a job after a call."""

    texts: int
    """Usable texts of the input; when finished, each has vectors in the output unless the service rejected it."""
    embedded: int
    """Different texts whose vectors this call fetched."""
    under_way: int
    """Different texts that are in batches or in files about to be submitted."""
    pending: int
    """Different texts that have neither vectors nor a refusal, those under way included."""
    given_up: int
    """Pending texts that failed too often, or were in a cancelled or refused batch: a new submission retries them."""
    rejected: int
    """Texts of the input that the service refused."""
    skipped: int
    """Records without a usable text."""
    usage: Usage
    """What the results that this call fetched were billed: successful lines, at the price of Batch files."""
    spent: Usage
    """The same for all calls so far."""
    files: tuple[BatchFile, ...]
    """All request files of this checkpoint, in order."""
    rejects: Path | None
    """The file that lists rejected texts and skipped records; None: there are none, or the job is not finished."""
    finished: bool
    """Whether the output is written."""
    stopped: bool
    """Whether `stop` ended the call."""
