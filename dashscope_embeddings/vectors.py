"""The public data types: dense and sparse vectors, results, usage and cost."""

from __future__ import annotations

import functools
import math
import operator
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain, starmap
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

# `array` has no parameters at run time before Python 3.12, where `typing.get_type_hints` reads them.
if TYPE_CHECKING:
    _FloatArray: TypeAlias = array[float]
else:
    _FloatArray = array

TextType = Literal["query", "document"]
"""The role of a text: a search query, or a document to be found."""

Output = Literal["dense", "sparse", "dense&sparse"]
"""Which vectors to request; the names are the service's own `output_type`."""


_PLACEHOLDER_INDEX = 2**32 - 2
_PLACEHOLDER_WEIGHT = 2.0**-20


@dataclass(frozen=True, slots=True)
class SparseVector:
    """One text's sparse vector: the weights of the vocabulary entries that the model found in it."""

    indices: list[int]
    """Vocabulary indices, ascending and unique."""
    values: list[float]
    """Weights, one for each index; observed from 0 to a little above 1, no range is documented."""
    tokens: list[str] | None = None
    """The text of each token, one for each index; None if the service does not send it."""

    def __len__(self) -> int:
        return len(self.indices)

    @classmethod
    def merged(cls, weights: Iterable[tuple[int, float, str | None]]) -> SparseVector:
        """From (index, value, token) in any order; of a repeated index the larger value is kept."""
        best: dict[int, tuple[float, str | None]] = {}
        for index, value, token in weights:
            if index not in best or value > best[index][0]:
                best[index] = (value, token)
        indices = sorted(best)
        tokens = [token for index in indices if (token := best[index][1]) is not None]
        return cls(indices, [best[i][0] for i in indices], tokens if len(tokens) == len(indices) else None)

    def copy(self) -> SparseVector:
        """A copy with its own lists."""
        return SparseVector(list(self.indices), list(self.values), self.tokens and list(self.tokens))

    def weights(self) -> Iterator[tuple[int, float, str | None]]:
        """(index, value, token) of each entry, by index."""
        tokens: Sequence[str | None] = self.tokens if self.tokens is not None else [None] * len(self.indices)
        return zip(self.indices, self.values, tokens, strict=True)

    def as_dict(self) -> dict[int, float]:
        """Index → weight, as LlamaIndex expects it."""
        return dict(zip(self.indices, self.values, strict=True))

    def as_milvus(self, *, query: bool = False) -> dict[int, float]:
        """Index → weight, never empty: Milvus rejects a row, with its document, if no weight is above zero.

        The placeholder is a tiny weight at an index that no vocabulary reaches. It differs between queries and
        documents, so that it never matches.
        """
        weights = {i: value for i, value in zip(self.indices, self.values, strict=True) if value > 0}
        return weights or {_PLACEHOLDER_INDEX - query: _PLACEHOLDER_WEIGHT}


def counted(count: int, noun: str) -> str:
    """Such as "1 text" or "1,200 texts", for messages."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@functools.total_ordering
@dataclass(frozen=True, slots=True)
class Cost:
    """An amount of money. Two in one currency can be compared; for a number, compare `amount`."""

    amount: Decimal
    currency: str

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Cost):
            return NotImplemented
        if self.currency != other.currency:
            raise TypeError(f"{self.currency} and {other.currency} cannot be compared")
        return self.amount < other.amount

    def __str__(self) -> str:
        return f"{self.currency} {self.amount.normalize():f}"


@dataclass(frozen=True, slots=True)
class Usage:
    """What was billed: only answered requests, because the service bills nothing else.

    Replies that were refused as broken, and asked for again, count if they state their tokens.
    """

    requests: int = 0
    """Requests answered with vectors, and those broken replies."""
    tokens: int = 0
    """Input tokens as the service counted them."""
    texts: int = 0
    """Texts in those requests; a text that is repeated in the input counts once, one that is asked for again twice."""
    cost: Cost | None = None
    """List price of the tokens, without free quota or discounts; None: the price is unknown."""

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
        return ", ".join(
            [*starmap(counted, [(self.requests, "request"), (self.texts, "text"), (self.tokens, "token")]), cost]
        )


@dataclass(frozen=True, slots=True)
class EstimatedUsage(Usage):
    """What a call would be billed at most. Nothing was sent for it."""

    exact: bool = False
    """Whether the tokens are counted by the model's tokenizer; else by a rule of thumb, see `count_tokens`."""

    def __str__(self) -> str:
        return Usage.__str__(self) if self.exact else f"about {Usage.__str__(self)}"


class TokenCounts(list[int]):
    """The tokens of texts, in their order."""

    def __init__(self, counts: Iterable[int], *, exact: bool) -> None:
        super().__init__(counts)
        self.exact = exact
        """Whether they are counted by the model's tokenizer; else by a rule of thumb."""


def _add_costs(one: Usage, other: Usage) -> Cost | None:
    """The sum, or None if a part is unknown or in another currency: better no sum than one that is too small."""
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
    """`dimensions` floats, of unit length as the service sends them; None if only sparse was requested."""
    sparse: SparseVector | None = None
    """None if only dense was requested."""


@dataclass(frozen=True, slots=True, repr=False)
class Embeddings:
    """The vectors of all texts of one call, in the order of the texts."""

    dense: list[list[float]]
    """Shape (texts, dimensions); empty if only sparse, or an array, was requested."""
    sparse: list[SparseVector] | None
    """One for each text; None if only dense was requested."""
    usage: Usage = field(default_factory=Usage)
    """What this call was billed."""
    request_ids: tuple[str, ...] = ()
    """The service's ids of the answered requests, which its support asks for."""
    _dense_float32: _FloatArray | None = field(default=None, repr=False)
    _row_count: int = field(default=0, repr=False)

    def __repr__(self) -> str:
        # Short, because asyncio logs the repr of a task's result, and a notebook displays it.
        return f"<Embeddings of {counted(len(self), 'text')}: {self.usage}>"

    @property
    def dense_array(self) -> Any:
        """The dense vectors as float32, shape (texts, dimensions), 4 bytes a number.

        A numpy array if numpy is installed, else a `memoryview` of two dimensions. After `embed(..., array=True)`
        this is the stored array; otherwise each access builds it from `dense`.
        """
        packed = self._dense_float32 if self._dense_float32 is not None else array("f", chain.from_iterable(self.dense))
        rows = len(self)
        shape = (rows, len(packed) // rows if rows else 0)
        try:
            import numpy as np  # noqa: PLC0415 - optional
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

    def copy(self) -> Part:
        """A copy with its own lists, for another text: a caller may change one of them."""
        return Part(self.dense and list(self.dense), self.sparse and self.sparse.copy(), self.weight)


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
