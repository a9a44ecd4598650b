"""Checked texts → batches: cut by rows and tokens.

Equal texts are asked once, and every place of such a text names the same row. A long text may become several
rows; its place then names all of them, with their weights.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from dashscope_embeddings._core.text_length import estimate_tokens, fit_rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

    from dashscope_embeddings._core.text_length import Limits, LongText


@dataclass(frozen=True, slots=True)
class RowRef:
    """Where the vector of a text, or of a piece of it, will be: a batch by its number, and a row in it."""

    batch_number: int
    row: int
    weight: float


@dataclass(frozen=True, slots=True)
class TextSlot:
    """Where one text's vectors will be."""

    index: int
    """The text's position in the input."""
    rows: tuple[RowRef, ...]
    """Rows of this batch or earlier ones; several where a long text was cut, none where it was refused."""
    text: str = ""
    first_index: int = 0
    """The position where the same text stood first, whose rows these are."""

    @property
    def is_duplicate(self) -> bool:
        """Whether another text holds the same rows already."""
        return self.first_index != self.index


@dataclass(slots=True)
class Batch:
    """What one request asks, and which texts are complete with it."""

    number: int
    texts: list[str] = field(default_factory=list)
    estimated_tokens: float = 0.0
    """Estimated."""
    slots: list[TextSlot] = field(default_factory=list)
    """In the order of the texts."""
    oldest_referenced: int = 0
    """No later batch refers to one before this number: their vectors may be let go."""


_MAX_SLOTS = 4096
"""Texts that one batch may complete: an endless run of one text must still come out."""


class BatchPlanner:
    """Cuts checked texts, given one by one, into batches.

    Equal texts that lie at most `memory` batches apart are asked once; None: however far apart.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        long_text: LongText = "error",
        max_rows: int | None = None,
        max_tokens: int | None = None,
        dedup_window: int | None = 0,
    ) -> None:
        self._limits, self._long_text = limits, long_text
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self._dedup_window = dedup_window
        self._known_texts: OrderedDict[str, tuple[int, tuple[RowRef, ...]]] = OrderedDict()
        """Text → the index where it stood first, and its rows."""
        self._batch = Batch(0)
        self._text_count = 0

    def add(self, text: str | None) -> Iterator[Batch]:
        """Takes the next text, or the gap where one was refused; gives the batches that are full with it.

        A huge text is cut as its batches are taken, not at once.
        """
        index, self._text_count = self._text_count, self._text_count + 1
        if text is None:
            self._batch.slots.append(TextSlot(index, ()))
            return
        first, known = self._known_texts.get(text, (index, ()))
        if not known or known[0].batch_number < self._oldest_reusable_batch():
            first, parts = index, list[RowRef]()
            for row in fit_rows(text, self._long_text, self._limits.tokens_per_row):
                tokens = estimate_tokens(row)
                if self._is_full(tokens):
                    yield self._close_batch(parts[0].batch_number if parts else self._batch.number + 1)
                parts.append(self._append_row(row, tokens))
            known = tuple(parts)
            self._known_texts[text] = first, known
            self._known_texts.move_to_end(text)
        self._batch.slots.append(TextSlot(index, known, text, first))
        if len(self._batch.slots) >= _MAX_SLOTS:
            yield self._close_batch(self._batch.number + 1)

    def finish(self) -> Iterator[Batch]:
        """The last batch, if any text is left."""
        if self._batch.slots:
            yield self._close_batch(self._batch.number + 1)

    def _oldest_reusable_batch(self) -> int:
        return 0 if self._dedup_window is None else self._batch.number - self._dedup_window

    def _append_row(self, row: str, tokens: float) -> RowRef:
        self._batch.texts.append(row)
        self._batch.estimated_tokens += tokens
        return RowRef(self._batch.number, len(self._batch.texts) - 1, float(len(row)))

    def _is_full(self, tokens: float) -> bool:
        budget = _min_known(self._max_tokens, self._limits.tokens_per_request)
        if budget is not None and self._batch.texts and self._batch.estimated_tokens + tokens > budget:
            return True
        return len(self._batch.texts) >= min(self._max_rows or self._limits.rows, self._limits.rows)

    def _close_batch(self, oldest_referenced: int) -> Batch:
        """`first`: the batch with the first piece of the text at hand, which its last piece refers to."""
        done = self._batch
        self._batch = Batch(done.number + 1)
        done.oldest_referenced = min(oldest_referenced, self._oldest_reusable_batch())
        while (
            self._known_texts
            and next(iter(self._known_texts.values()))[1][0].batch_number < self._oldest_reusable_batch()
        ):
            self._known_texts.popitem(last=False)
        return done


def single_row_batch(text: str, limits: Limits, long_text: LongText) -> Batch | None:
    """The batch of one checked text; None where it is cut into several rows."""
    rows = [*islice(fit_rows(text, long_text, limits.tokens_per_row), 2)]
    if len(rows) != 1:
        return None
    (row,) = rows
    return Batch(0, [row], estimate_tokens(row), [TextSlot(0, (RowRef(0, 0, float(len(row))),), text)])


def _min_known(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)


def batches(texts: Iterable[str | None], planner: BatchPlanner) -> Iterator[Batch]:
    """Reads no further ahead than the next batch.

    Raises:
        InvalidInput, or what `texts` raises: after the batch of the texts before it.
    """
    try:
        for text in texts:
            yield from planner.add(text)
    except Exception:
        yield from planner.finish()
        raise
    yield from planner.finish()


async def abatches(texts: AsyncIterable[str | None], planner: BatchPlanner) -> AsyncIterator[Batch]:
    """`batches` of an asynchronous source."""
    try:
        async for text in texts:
            for batch in planner.add(text):
                yield batch
    except Exception:
        for batch in planner.finish():
            yield batch
        raise
    for batch in planner.finish():
        yield batch
