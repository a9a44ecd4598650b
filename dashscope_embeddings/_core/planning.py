"""Groups checked texts into batches, limited by rows and tokens, and splits requests that the service refuses.

A repeated text is sent once: its slots refer to the same row. A long text may become several rows: its slot
refers to all of them.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from dashscope_embeddings._core.text_length import chunks, estimate_tokens, truncate
from dashscope_embeddings.errors import Action, DashScopeError, ServiceError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence

    from dashscope_embeddings._core.text_length import CountTokens, Limits, LongText


@dataclass(frozen=True, slots=True)
class RowRef:
    """A row of a batch, which will hold the vector of a text or of a part of it."""

    batch_number: int
    row: int


@dataclass(frozen=True, slots=True)
class TextSlot:
    """A text of the input, and the rows that its vectors come from."""

    index: int
    """The text's position in the input."""
    rows: tuple[RowRef, ...]
    """In this batch or earlier ones; several if a long text was cut, none if it was refused."""
    text: str = ""
    first_index: int = 0
    """Index of the first equal text, which these rows were made for."""

    @property
    def is_duplicate(self) -> bool:
        """Whether an earlier text has the same rows."""
        return self.first_index != self.index


@dataclass(slots=True)
class Batch:
    """The texts of one request, and the texts of the input that are complete with it."""

    number: int
    texts: list[str] = field(default_factory=list)
    estimated_tokens: float = 0.0
    slots: list[TextSlot] = field(default_factory=list)
    """In input order."""
    oldest_referenced: int = 0
    """Vectors of batches before this number may be freed: no later batch refers to them."""


_MAX_SLOTS = 4096
"""Limit of texts that one batch completes: an endless stream of equal texts must still yield results."""


_BODY_TOKENS = int((12 << 20) * 0.175)
"""Estimated tokens of a request whose body has at most 12 MiB: letters of two bytes have the fewest tokens per byte.

The service's gateway refuses a body above 16 MiB
(https://help.aliyun.com/zh/model-studio/rate-limit, seen 2026-11-27); JSON escapes make some texts longer.
"""


class BatchPlanner:
    """Groups checked texts, added one by one, into batches.

    A repeated text is sent once if its copies are at most `dedup_window` batches apart; None: at any distance.
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
        """Text → index of its first copy, and its rows."""
        self._batch = Batch(0)
        self._text_count = 0

    def add(self, text: str | None) -> Iterator[Batch]:
        """Adds the next text (None: a text that was refused); yields the batches that it fills.

        A very long text is cut lazily, as its batches are consumed.
        """
        index, self._text_count = self._text_count, self._text_count + 1
        if text is None:
            self._batch.slots.append(TextSlot(index, ()))
            return
        first, known = self._known_texts.get(text, (index, ()))
        if not known or known[0].batch_number < self._oldest_reusable_batch():
            first, refs = index, list[RowRef]()
            for row in self._limits.fit_rows(text, self._long_text):
                tokens = estimate_tokens(row)
                if not self.has_room(len(self._batch.texts), self._batch.estimated_tokens, tokens):
                    yield self._close_batch(refs)
                refs.append(RowRef(self._batch.number, len(self._batch.texts)))
                self._batch.texts.append(row)
                self._batch.estimated_tokens += tokens
            known = tuple(refs)
            self._known_texts[text] = first, known
            self._known_texts.move_to_end(text)
        self._batch.slots.append(TextSlot(index, known, text, first))
        if len(self._batch.slots) >= _MAX_SLOTS:
            yield self._close_batch()

    def finish(self) -> Iterator[Batch]:
        """Yields the last batch, if it has texts."""
        if self._batch.slots:
            yield self._close_batch()

    def _oldest_reusable_batch(self) -> int:
        return 0 if self._dedup_window is None else self._batch.number - self._dedup_window

    def has_room(self, rows: int, tokens: float, row_tokens: float) -> bool:
        """Whether a batch that has `rows` and `tokens` can take another row, of `row_tokens`."""
        budget = min(self._max_tokens or _BODY_TOKENS, self._limits.tokens_per_request or _BODY_TOKENS, _BODY_TOKENS)
        if rows and tokens + row_tokens > budget:
            return False
        return rows < min(self._max_rows or self._limits.rows, self._limits.rows)

    def _close_batch(self, unfinished: Sequence[RowRef] = ()) -> Batch:
        """`unfinished`: the rows so far of a text that is still being cut."""
        closed = self._batch
        self._batch = Batch(closed.number + 1)
        oldest_reusable = self._oldest_reusable_batch()
        closed.oldest_referenced = min(oldest_reusable, unfinished[0].batch_number) if unfinished else oldest_reusable
        while self._known_texts and next(iter(self._known_texts.values()))[1][0].batch_number < oldest_reusable:
            self._known_texts.popitem(last=False)
        return closed


def single_row_batch(text: str, limits: Limits, long_text: LongText) -> Batch | None:
    """A batch of one checked text; None if it has to be cut into several rows."""
    rows = [*islice(limits.fit_rows(text, long_text), 2)]
    if len(rows) != 1:
        return None
    (row,) = rows
    return Batch(0, [row], estimate_tokens(row), [TextSlot(0, (RowRef(0, 0),), text)])


def batches(texts: Iterable[str | None], planner: BatchPlanner) -> Iterator[Batch]:
    """Reads `texts` no further than the next batch; what they raise comes after the texts before it."""
    try:
        for text in texts:
            yield from planner.add(text)
    except Exception:
        yield from planner.finish()
        raise
    yield from planner.finish()


async def abatches(texts: AsyncGenerator[str | None, None], planner: BatchPlanner) -> AsyncGenerator[Batch, None]:
    """`batches` of an asynchronous source, which it closes."""
    try:
        async with contextlib.aclosing(texts):
            async for text in texts:
                for batch in planner.add(text):
                    yield batch
    except Exception:
        for batch in planner.finish():
            yield batch
        raise
    for batch in planner.finish():
        yield batch


# --- splitting a refused request ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chunk:
    """A text of a request: a row of the batch, or one part of that row."""

    row: int
    text: str


def split_request(group: list[Chunk], error: DashScopeError, limits: Limits, long_text: LongText) -> list[list[Chunk]]:
    """The requests to send instead of a refused one; an empty list if the error is final (it may get a hint)."""
    limit = error.limit if isinstance(error, ServiceError) else None
    if error.action is Action.REDUCE_BATCH:
        if limit is None or not 0 < limit < len(group):
            return _bisect(group)
        limits.lower_row_limit(limit)
        return [group[i : i + limit] for i in range(0, len(group), limit)]
    if error.action is Action.TRUNCATE and limit is not None:
        limits.lower_token_limit(limit)
        if len(group) == 1:
            if not (shorter := _shorten(group[0], limit, long_text, limits.count)):
                error.add_hint('Shorten the text, or use long_text="truncate" or "average"')
            return shorter
        long = [chunk for chunk in group if limits.count(chunk.text) > limit]
        if 0 < len(long) < len(group):
            return [[chunk for chunk in group if chunk not in long], *([chunk] for chunk in long)]
    if error.action in {Action.BISECT, Action.TRUNCATE}:
        return _bisect(group)
    return []


def _bisect(group: list[Chunk]) -> list[list[Chunk]]:
    middle = len(group) // 2
    return [group[:middle], group[middle:]] if middle else []


def _shorten(chunk: Chunk, token_limit: int, long_text: LongText, count: CountTokens) -> list[list[Chunk]]:
    """Cuts a text that was too long, as `long_text` says; an empty list for an error."""
    if long_text == "error" or len(chunk.text) < _MIN_CHARACTERS:
        return []
    # The service counted more than `token_limit` tokens. If we count fewer, that is wrong for this text, so cut to a
    # share of our count instead.
    counted = count(chunk.text)
    if long_text == "truncate":
        max_tokens = min(token_limit, counted * _TRUNCATION_RATIO)
        return [[Chunk(chunk.row, truncate(chunk.text.lstrip(), max_tokens, count))]]
    parts = chunks(chunk.text, min(token_limit * _TRUNCATION_RATIO, counted * _CHUNK_RATIO), count)
    return [[Chunk(chunk.row, part)] for part in parts]


_MIN_CHARACTERS = 2
_TRUNCATION_RATIO = 0.8
_CHUNK_RATIO = 0.55
