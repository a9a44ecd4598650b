"""The rows that a checkpoint stores and returns."""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dashscope_embeddings.corpus.checkpoint import checksums

if TYPE_CHECKING:
    from typing_extensions import Self

    from dashscope_embeddings.vectors import SparseVector


class InputText(NamedTuple):
    """One usable text of the input."""

    position: int
    """Position in the whole input, from 0."""
    id: int | str | None
    """None: the position is the id."""
    place: str
    text: str


class PackedVectors(NamedTuple):
    """One text's vectors as they are stored: float32 and uint32, in the machine's byte order."""

    dense: bytes | None
    sparse_indices: bytes | None = None
    sparse_values: bytes | None = None

    @classmethod
    def pack(cls, dense: list[float] | None, sparse: SparseVector | None = None) -> Self:
        """Packs the vectors of a reply."""
        return cls(
            None if dense is None else _floats(len(dense)).pack(*dense),
            None if sparse is None else struct.pack(f"{len(sparse)}I", *sparse.indices),
            None if sparse is None else struct.pack(f"{len(sparse)}f", *sparse.values),
        )


@functools.cache
def _floats(count: int) -> struct.Struct:
    """In native byte order: three times as fast as the array module or a fixed byte order."""
    return struct.Struct(f"{count}f")


@dataclass(eq=False, slots=True)
class PaidReply:
    """What a reply brings: rows of the table `vectors`, and what was billed for them."""

    billed: tuple[int, int, int] = (0, 0, 0)
    """Requests, texts and tokens."""
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def add(self, unit: int, digest: bytes, vectors: PackedVectors) -> None:
        """Adds the vectors of a unit; `digest`: the hash of its text."""
        self.rows.append((unit, checksums.vectors_checksum(digest, vectors), *vectors))


class OutputRow(NamedTuple):
    """One text of the output."""

    id: int | str
    text: str | None
    vectors: PackedVectors
    place: str

    @property
    def source(self) -> str:
        """The file that held the text."""
        return self.place.rpartition(":")[0]


class Unit(NamedTuple):
    """A text, or a part of a long one, to submit."""

    number: int
    text: str
    digest: bytes
    part_of: int | None
    """The unit of the whole text; None: this is a whole text."""
    max_per_line: int
    """Maximum number of units in its line; 0: the model's limit."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of a corpus: input, pending and rejected texts."""

    texts: int
    """Usable texts of the input."""
    pending: int
    """Different texts that have neither vectors nor a refusal."""
    tokens: float
    """Estimated tokens of the pending texts."""
    rejected: int
    """Texts of the input that the service refused."""
    invalid: int
    """Records without a usable text."""


BatchState = Literal["planned", "uploaded", "creating", "running", "closed"]


@dataclass(frozen=True, slots=True)
class BatchFile:
    """One request file, and the service's batch that processes it."""

    number: int
    """Number in this checkpoint, from 1."""
    state: BatchState
    """"planned", "uploaded", "creating", "running" (the batch exists) or "closed" (its results are imported)."""
    is_resubmission: bool
    """Whether it resubmits texts of a file that failed the validation."""
    batch_id: str | None
    """The service's id of the batch; None: not created yet."""
    status: str | None
    """The service's status at the last poll, such as "in_progress"."""
    lines: int
    texts: int
    completed: int | None
    """Lines done at the last poll; None: not reported."""
    failed: int | None
    file_id: str | None
    """The service's id of the file; None: not uploaded yet."""

    @property
    def texts_done(self) -> int:
        """Texts of the lines done at the last poll, if all lines have equally many; all texts, if it is unknown."""
        return self.texts if self.completed is None else round(self.texts * min(1.0, self.completed / self.lines))
