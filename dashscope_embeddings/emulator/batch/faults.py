"""Faults of batches and of their lines. They count batches, or lines in the order of processing, not requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dashscope_embeddings.emulator.fault_schedule import Fault, Target

if TYPE_CHECKING:
    import random

_MESSAGES = {
    "DataInspectionFailed": "Input or output data may contain inappropriate content.",
    "InternalError": "Internal server error!",
    "internal_error": "Internal server error!",
}


@dataclass(frozen=True)
class BatchFails(Fault):
    """A batch fails its validation; by default with the only error that was seen in a real reply."""

    target: ClassVar[Target] = "batches"

    code: str = "url_not_found"
    message: str = "The provided url '/v1/embeddings' is not supported by the Batch API."
    param: str | None = "url"
    line: int | None = 1


@dataclass(frozen=True)
class BatchExpires(Fault):
    """A batch expires at the time when its lines should be done."""

    target: ClassVar[Target] = "batches"

    share: float = 0.5
    """Share of its lines that was done."""


@dataclass(frozen=True)
class _LineFault(Fault):
    """A fault of one line."""

    target: ClassVar[Target] = "lines"

    custom_id: str | None = None
    """Only the line of this name, in every batch unless `times` limits it."""

    def applies_to(self, name: str) -> bool:
        return self.custom_id is None or name == self.custom_id

    def is_due(self, number: int, texts: tuple[str, ...], triggered: int, generator: random.Random) -> bool:
        counts_times = self.custom_id is None or self.times is not None
        return super().is_due(number, texts, triggered if counts_times else 0, generator)


@dataclass(frozen=True)
class LineFails(_LineFault):
    """A line is refused: it is in the error file and is not billed."""

    code: str = "DataInspectionFailed"
    """Code in the error file, written as given."""
    message: str | None = None
    """None: the service's message for the code, if it is known."""

    @property
    def error_message(self) -> str:
        """Message in the error file."""
        return _MESSAGES.get(self.code, "The request failed.") if self.message is None else self.message


@dataclass(frozen=True)
class LineLost(_LineFault):
    """A line is in neither file of results."""

    billed: bool = False
    """Whether it was done: then it is billed, and counted as completed in `request_counts`."""
