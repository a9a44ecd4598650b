"""Checked texts → batches: cut by rows and tokens.

Equal texts are asked once, and every place of such a text names the same row. A long text may become several
rows; its place then names all of them, with their weights.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from dashscope_embeddings._core.text_length import estimate, fitting

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

    from dashscope_embeddings._core.text_length import Limits, LongText


@dataclass(frozen=True, slots=True)
class Part:
    """Where the vector of a text, or of a piece of it, will be: a batch by its number, and a row in it."""

    batch: int
    row: int
    weight: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where one text's vectors will be."""

    index: int
    """The text's position in the input."""
    parts: tuple[Part, ...]
    """Rows of this batch or earlier ones; several where a long text was cut, none where it was refused."""
    text: str = ""
    first: int = 0
    """The position where the same text stood first, whose rows these are."""

    @property
    def repeated(self) -> bool:
        """Whether another text holds the same rows already."""
        return self.first != self.index


@dataclass(slots=True)
class Batch:
    """What one request asks, and which texts are complete with it."""

    number: int
    texts: list[str] = field(default_factory=list)
    tokens: float = 0.0
    """Estimated."""
    places: list[Place] = field(default_factory=list)
    """In the order of the texts."""
    oldest: int = 0
    """No later batch refers to one before this number: their vectors may be let go."""


_MOST_PLACES = 4096
"""Texts that one batch may complete: an endless run of one text must still come out."""


class Plan:
    """Cuts checked texts, given one by one, into batches.

    Equal texts that lie at most `memory` batches apart are asked once; None: however far apart.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        policy: LongText = "error",
        rows: int | None = None,
        tokens: int | None = None,
        memory: int | None = 0,
    ) -> None:
        self._limits, self._policy = limits, policy
        self._rows, self._tokens = rows, tokens
        self._memory = memory
        self._seen: OrderedDict[str, tuple[int, tuple[Part, ...]]] = OrderedDict()
        """Text → the index where it stood first, and its rows."""
        self._batch = Batch(0)
        self._count = 0

    def add(self, text: str | None) -> Iterator[Batch]:
        """Takes the next text, or the gap where one was refused; gives the batches that are full with it.

        A huge text is cut as its batches are taken, not at once.
        """
        index, self._count = self._count, self._count + 1
        if text is None:
            self._batch.places.append(Place(index, ()))
            return
        first, known = self._seen.get(text, (index, ()))
        if not known or known[0].batch < self._horizon():
            first, parts = index, list[Part]()
            for row in fitting(text, self._policy, self._limits.tokens_per_row):
                tokens = estimate(row)
                if self._full(tokens):
                    yield self._close(parts[0].batch if parts else self._batch.number + 1)
                parts.append(self._put(row, tokens))
            known = tuple(parts)
            self._seen[text] = first, known
            self._seen.move_to_end(text)
        self._batch.places.append(Place(index, known, text, first))
        if len(self._batch.places) >= _MOST_PLACES:
            yield self._close(self._batch.number + 1)

    def finish(self) -> Iterator[Batch]:
        """The last batch, if any text is left."""
        if self._batch.places:
            yield self._close(self._batch.number + 1)

    def _horizon(self) -> int:
        return 0 if self._memory is None else self._batch.number - self._memory

    def _put(self, row: str, tokens: float) -> Part:
        self._batch.texts.append(row)
        self._batch.tokens += tokens
        return Part(self._batch.number, len(self._batch.texts) - 1, float(len(row)))

    def _full(self, tokens: float) -> bool:
        budget = _smallest(self._tokens, self._limits.tokens_per_request)
        if budget is not None and self._batch.texts and self._batch.tokens + tokens > budget:
            return True
        return len(self._batch.texts) >= min(self._rows or self._limits.rows, self._limits.rows)

    def _close(self, first: int) -> Batch:
        """`first`: the batch with the first piece of the text at hand, which its last piece refers to."""
        done = self._batch
        self._batch = Batch(done.number + 1)
        done.oldest = min(first, self._horizon())
        while self._seen and next(iter(self._seen.values()))[1][0].batch < self._horizon():
            self._seen.popitem(last=False)
        return done


def lone(text: str, limits: Limits, policy: LongText) -> Batch | None:
    """The batch of one checked text; None where it is cut into several rows."""
    rows = [*islice(fitting(text, policy, limits.tokens_per_row), 2)]
    if len(rows) != 1:
        return None
    (row,) = rows
    return Batch(0, [row], estimate(row), [Place(0, (Part(0, 0, float(len(row))),), text)])


def _smallest(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)


def batches(texts: Iterable[str | None], plan: Plan) -> Iterator[Batch]:
    """Reads no further ahead than the next batch.

    Raises:
        InvalidInput, or what `texts` raises: after the batch of the texts before it.
    """
    try:
        for text in texts:
            yield from plan.add(text)
    except Exception:
        yield from plan.finish()
        raise
    yield from plan.finish()


async def abatches(texts: AsyncIterable[str | None], plan: Plan) -> AsyncIterator[Batch]:
    """`batches` of an asynchronous source."""
    try:
        async for text in texts:
            for batch in plan.add(text):
                yield batch
    except Exception:
        for batch in plan.finish():
            yield batch
        raise
    for batch in plan.finish():
        yield batch
