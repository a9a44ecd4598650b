"""What users hold: vectors, and what they cost."""

from __future__ import annotations

import math
import operator
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

# `array` has no parameters at run time before Python 3.12, where `typing.get_type_hints` reads them.
if TYPE_CHECKING:
    _FloatArray: TypeAlias = array[float]
else:
    _FloatArray = array

TextType = Literal["query", "document"]
"""The role of a text: what a user asks with, or what is searched."""

Output = Literal["dense", "sparse", "dense&sparse"]
"""Which vectors to ask for; the names are the service's own `output_type`."""


_PLACEHOLDER_INDEX = 2**32 - 2
_PLACEHOLDER_WEIGHT = 2.0**-20


@dataclass(frozen=True, slots=True)
class SparseVector:
    """One text's sparse vector: the weight of each vocabulary entry the model found in it."""

    indices: list[int]
    """Vocabulary indices, ascending and unique."""
    values: list[float]
    """Weights, one for each index; seen between 0 and a little above 1, no range is documented."""
    tokens: list[str] | None = None
    """The text of each token where the service names it, one for each index."""

    def __len__(self) -> int:
        return len(self.indices)

    @classmethod
    def merged(cls, weights: Iterable[tuple[int, float, str | None]]) -> SparseVector:
        """From (index, value, token) in any order; of an index named twice the larger value stays."""
        best: dict[int, tuple[float, str | None]] = {}
        for index, value, token in weights:
            if index not in best or value > best[index][0]:
                best[index] = (value, token)
        indices = sorted(best)
        tokens = [token for index in indices if (token := best[index][1]) is not None]
        return cls(indices, [best[i][0] for i in indices], tokens if len(tokens) == len(indices) else None)

    def copy(self) -> SparseVector:
        """The same numbers in lists of their own."""
        return SparseVector(list(self.indices), list(self.values), self.tokens and list(self.tokens))

    def weights(self) -> Iterator[tuple[int, float, str | None]]:
        """(index, value, token) of each entry, by index."""
        tokens: Sequence[str | None] = self.tokens if self.tokens is not None else [None] * len(self.indices)
        return zip(self.indices, self.values, tokens, strict=True)

    def as_dict(self) -> dict[int, float]:
        """Index to weight, the shape that LlamaIndex takes."""
        return dict(zip(self.indices, self.values, strict=True))

    def as_milvus(self, *, query: bool = False) -> dict[int, float]:
        """Index to weight, never empty: Milvus refuses a row without a weight above zero, and its document.

        The placeholder is a tiny weight at an index that no vocabulary reaches, another one for queries than for
        documents, so that no search finds it.
        """
        weights = {i: value for i, value in zip(self.indices, self.values, strict=True) if value > 0}
        return weights or {_PLACEHOLDER_INDEX - query: _PLACEHOLDER_WEIGHT}


@dataclass(frozen=True, slots=True)
class Cost:
    """An amount of money."""

    amount: Decimal
    currency: str

    def __str__(self) -> str:
        return f"{self.currency} {self.amount.normalize():f}"


@dataclass(frozen=True, slots=True)
class Usage:
    """What was billed: only answered requests count, for the service bills nothing else."""

    requests: int = 0
    """Requests answered with vectors."""
    tokens: int = 0
    """Input tokens as the service counted them."""
    texts: int = 0
    """Texts inside those requests (after equal texts were asked once)."""
    cost: Cost | None = None
    """List price of the tokens, without free quota or discounts; None: the price is not known."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.texts + other.texts,
            _add_costs(self, other),
        )

    def __str__(self) -> str:
        if not self.requests:
            return "nothing billed"
        cost = "cost unknown" if self.cost is None else str(self.cost)
        counts = {"request": self.requests, "text": self.texts, "token": self.tokens}
        return ", ".join([*(f"{n:,} {name}{'' if n == 1 else 's'}" for name, n in counts.items()), cost])


def _add_costs(one: Usage, other: Usage) -> Cost | None:
    """Sums in one currency only; a sum with an unknown part is unknown, not too small."""
    if not one.tokens:
        return other.cost
    if not other.tokens:
        return one.cost
    if one.cost is None or other.cost is None or one.cost.currency != other.cost.currency:
        return None
    return Cost(one.cost.amount + other.cost.amount, one.cost.currency)


@dataclass(frozen=True, slots=True)
class Embedding:
    """One text's vectors, as `stream` yields them."""

    index: int
    """The text's position in the input, from 0."""
    dense: list[float] | None = None
    """`dimensions` floats, of unit length as served; None where only sparse was asked."""
    sparse: SparseVector | None = None
    """None where only dense was asked."""


@dataclass(frozen=True, slots=True, repr=False)
class Embeddings:
    """The vectors of all texts of one call, in the order of the texts."""

    dense: list[list[float]]
    """Shape (texts, dimensions); empty where only sparse, or an array, was asked."""
    sparse: list[SparseVector] | None
    """One for each text; None where only dense was asked."""
    usage: Usage = field(default_factory=Usage)
    """What this call was billed."""
    request_ids: tuple[str, ...] = ()
    """The service's ids of the answered requests: what its support asks for."""
    _dense_float32: _FloatArray | None = field(default=None, repr=False)
    _row_count: int = field(default=0, repr=False)

    def __repr__(self) -> str:
        # Short: asyncio takes the repr of a finished task's result, and a notebook cell shows it.
        return f"<Embeddings of {len(self)} texts: {self.usage}>"

    @property
    def dense_array(self) -> Any:
        """The dense vectors as float32, shape (texts, dimensions), 4 bytes a number.

        A numpy array where numpy is installed, else a `memoryview` of two dimensions. Of `embed(..., array=True)`
        it is what was kept all along; otherwise it is made, each time, of `dense`.
        """
        packed = self._dense_float32 if self._dense_float32 is not None else array("f", chain.from_iterable(self.dense))
        rows = len(self)
        shape = (rows, len(packed) // rows if rows else 0)
        try:
            import numpy as np  # noqa: PLC0415 - only who has it gets it
        except ImportError:
            return memoryview(packed).cast("B").cast("f", shape) if rows else memoryview(packed)
        return np.asarray(packed, dtype=np.float32).reshape(shape)

    def __len__(self) -> int:
        if self._dense_float32 is not None:
            return self._row_count
        return len(self.dense if self.sparse is None else self.sparse)


class Part(NamedTuple):
    """The vectors of a text, or of one part of it, and their weight in a mean."""

    dense: list[float] | None
    sparse: SparseVector | None
    weight: float


def combine(parts: Sequence[Part]) -> Part:
    """One vector for a long text from those of its parts; a single part stays as it is.

    The dense vector is the weighted mean at unit length. The result weighs what its parts weigh together (the length
    of their weighted sum), so combining results of `combine` is the same as combining all their parts at once. The
    sparse vector has each index with its largest value in any part. A component that a part lacks is None.
    """
    if len(parts) == 1:
        return parts[0]
    dense = [part.dense for part in parts if part.dense is not None]
    sparse = [part.sparse for part in parts if part.sparse is not None]
    mean, weight = None, math.fsum(part.weight for part in parts)
    if len(dense) == len(parts):
        weights = [part.weight for part in parts]
        mean = [math.fsum(map(operator.mul, weights, column)) for column in zip(*dense, strict=True)]
        weight = math.hypot(*mean)
        mean = [x / weight for x in mean] if weight else mean
    entries = (entry for vector in sparse for entry in vector.weights())
    return Part(mean, SparseVector.merged(entries) if len(sparse) == len(parts) else None, weight)
