"""The rows that a checkpoint stores and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


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
    sparse_indices: bytes | None
    sparse_values: bytes | None


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


def split_duplicates(
    items: Sequence[InputText], known_places: dict[str, str]
) -> tuple[list[InputText], list[tuple[InputText, str]]]:
    """Items with a new id; and items whose id occurred before, with its earlier place. Updates `known_places`."""
    unique, duplicates = [], []
    for item in items:
        if item.id is None or (place := known_places.setdefault(str(item.id), item.place)) is item.place:
            unique.append(item)
        else:
            duplicates.append((item, place))
    return unique, duplicates
