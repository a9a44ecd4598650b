"""What goes into a ledger and comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


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


def parted(items: Sequence[Item], places: dict[str, str]) -> tuple[list[Item], list[tuple[Item, str]]]:
    """Items whose id is new, and those whose id was at an earlier place; `places` are those of known ids."""
    good, doubled = [], []
    for item in items:
        if item.id is None or (place := places.setdefault(str(item.id), item.place)) is item.place:
            good.append(item)
        else:
            doubled.append((item, place))
    return good, doubled
