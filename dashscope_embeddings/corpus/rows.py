"""What goes into a ledger and comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Item(NamedTuple):
    """One usable text of the input."""

    seq: int
    """Position in the whole input, from 0."""
    id: int | str | None
    """None: the position is the id."""
    place: str
    text: str


class Vectors(NamedTuple):
    """One text's vectors as they are kept: float32 and uint32, in the machine's byte order."""

    dense: bytes | None
    sparse_indices: bytes | None
    sparse_values: bytes | None


class Row(NamedTuple):
    """One text of the output."""

    id: int | str
    text: str | None
    vectors: Vectors


@dataclass(frozen=True, slots=True)
class Counts:
    """Where a corpus stands."""

    items: int
    """Usable texts of the input."""
    pending: int
    """Different texts that have neither vectors nor a refusal."""
    tokens: float
    """Estimated, of those."""
    rejected: int
    """Texts of the input that the service refused."""
    bad: int
    """Records that were no usable texts."""
