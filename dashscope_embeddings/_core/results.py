"""Collects what the batches of one call return: vectors in the order of the texts, the usage, or one error for all."""

from __future__ import annotations

import contextlib
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._core.failures import hint_for
from dashscope_embeddings.catalogue import priced_usage
from dashscope_embeddings.errors import Cancelled, DashScopeError
from dashscope_embeddings.vectors import Embedding, Embeddings, Part, SparseVector, combine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dashscope_embeddings._core.exchange import Outcome
    from dashscope_embeddings._core.planning import Batch, TextSlot
    from dashscope_embeddings.catalogue import Price
    from dashscope_embeddings.vectors import Output, Usage


class VectorBuffer:
    """Holds the vectors of texts by index until they are returned.

    With `array_rows`, the number of texts, the dense vectors are rows of one float32 array: 4 KB for 1,024 numbers
    instead of the 32 KB of a list.
    """

    def __init__(self, output: Output, array_rows: int | None) -> None:
        self._output, self._array_rows = output, array_rows
        self._matrix = array("f")
        self._embeddings: dict[int, Embedding] = {}
        self.next_index = 0
        """The first text that a stream has not returned yet."""
        self._skipped: set[int] = set()

    def __contains__(self, index: int) -> bool:
        return index in self._embeddings

    def store(self, index: int, vectors: Part, *, copy: bool) -> None:
        """Stores a text's vectors; `copy`: another text holds the same lists."""
        dense, sparse, _ = vectors.copy() if copy else vectors
        if dense is not None and self._array_rows is not None:
            if not self._matrix:
                self._matrix = array("f", bytes(4 * len(dense) * self._array_rows))
            self._matrix_row(index)[:] = memoryview(array("f", dense))
            dense = None
        self._embeddings[index] = Embedding(index, dense, sparse)

    def copy(self, source: int, index: int) -> None:
        """Stores the vectors of `source` for an equal text, in lists of its own: a caller may change one of them."""
        known = self._embeddings[source]
        if self._matrix:
            self._matrix_row(index)[:] = self._matrix_row(source)
        self._embeddings[index] = Embedding(
            index, known.dense and list(known.dense), known.sparse and known.sparse.copy()
        )

    def fill_duplicates(self, texts: Sequence[str]) -> None:
        """Copies vectors to equal texts, also to those in batches that were never sent."""
        index_by_text = {texts[index]: index for index in self._embeddings}
        for index, text in enumerate(texts):
            if index not in self._embeddings and (source := index_by_text.get(text)) is not None:
                self.copy(source, index)

    def skip(self, index: int) -> None:
        self._skipped.add(index)

    def pop_ready(self) -> Iterator[Embedding]:
        """The next texts in order, up to the first that is missing; each is returned once."""
        while True:
            embedding = self._embeddings.pop(self.next_index, None)
            if embedding is None and self.next_index not in self._skipped:
                return
            self._skipped.discard(self.next_index)
            self.next_index += 1
            if embedding is not None:
                yield embedding

    def stored(self, indices: Iterator[int] | None = None) -> dict[int, Any]:
        """Index → vectors in the shape of the requested output: floats, a `SparseVector`, or an `Embedding`."""
        wanted = sorted(self._embeddings) if indices is None else indices
        return {index: self._in_output_shape(self._embeddings[index]) for index in wanted if index in self._embeddings}

    def missing(self, end: int) -> list[int]:
        """Indices below `end` that were neither stored nor returned."""
        return [index for index in range(self.next_index, end) if index not in self._embeddings]

    def result(self, count: int, usage: Usage, request_ids: Sequence[str]) -> Embeddings:
        """All vectors of `count` texts; every one must be stored."""
        embeddings = [self._embeddings[index] for index in range(count)]
        sparse = (
            [found.sparse for found in embeddings if found.sparse is not None] if "sparse" in self._output else None
        )
        rest = (sparse, usage, tuple(request_ids))
        if self._array_rows is None:
            return Embeddings([found.dense for found in embeddings if found.dense is not None], *rest)
        return Embeddings([], *rest, self._matrix, count)

    def _matrix_row(self, index: int) -> memoryview:
        width = len(self._matrix) // (self._array_rows or 1)
        return memoryview(self._matrix)[index * width : (index + 1) * width]

    def _in_output_shape(self, embedding: Embedding) -> Any:
        if self._output == "sparse":
            return embedding.sparse
        dense: Any = self._matrix_row(embedding.index).tolist() if self._matrix else list(embedding.dense or ())
        return dense if self._output == "dense" else replace(embedding, dense=dense)


class ResultCollector:
    """Takes the outcomes of a call's batches, in order, and gives each text its vectors or its error.

    Keeps no more outcomes than later batches refer to.
    """

    def __init__(self, output: Output, price: Price | None, *, array_rows: int | None = None) -> None:
        self._price = price
        self.usage = priced_usage(price, 0, 0, 0)
        """What the outcomes were billed so far."""
        self._request_ids: list[str] = []
        self.finished: dict[int, tuple[Batch, Outcome]] = {}
        """Batches that have ended but were not added yet: an interrupted call still collects them."""
        self._vectors = VectorBuffer(output, array_rows)
        self._frees_dense = array_rows is not None
        self._outcomes: dict[int, Outcome] = {}
        self._oldest_kept = 0
        """Outcomes of batches before this number were freed."""
        self._refused: dict[int, tuple[str, DashScopeError]] = {}
        self._abort_error: DashScopeError | None = None
        self._raised_error: DashScopeError | None = None
        self._added_count = 0

    @property
    def has_failed(self) -> bool:
        """Whether the call will end in an error."""
        return self._abort_error is not None or bool(self._refused)

    def add(self, batch: Batch, outcome: Outcome) -> int:
        """Stores the texts that this batch completes, or their errors; returns the number of these texts."""
        self._outcomes[batch.number] = outcome
        self._count(outcome)
        if self._abort_error is None or isinstance(self._abort_error, Cancelled):
            self._abort_error = outcome.abort_error or self._abort_error
        for slot in batch.slots:
            self._added_count += 1
            if not slot.rows:
                self._vectors.skip(slot.index)  # refused, and reported, when the text was read
            elif error := self._text_error(slot):
                self._refused[slot.index] = slot.text, error
            else:
                self._store_vectors(slot)
        for number in range(self._oldest_kept, batch.oldest_referenced):
            self._outcomes.pop(number, None)  # an interrupted call lacks batches
        self._oldest_kept = max(self._oldest_kept, batch.oldest_referenced)
        self.finished.pop(batch.number, None)  # last: `attach_partial` adds again what an interruption cut short
        return len(batch.slots)

    def completed(self, batch: Batch) -> dict[int, Any]:
        """Index → vectors, in the shape of the requested output, of the texts that this batch completed."""
        return self._vectors.stored(slot.index for slot in batch.slots)

    def _text_error(self, slot: TextSlot) -> DashScopeError | None:
        """The service's refusal of this text; None if there is none, or if the whole call failed."""
        for ref in slot.rows:
            if (outcome := self._outcomes.get(ref.batch_number)) is None:
                continue  # an interrupted call lacks batches
            if (error := outcome.errors.get(ref.row)) is not None and error is not outcome.abort_error:
                return error
        return None

    def _store_vectors(self, slot: TextSlot) -> None:
        """Combines the rows of a text, if all have arrived."""
        if slot.is_duplicate and slot.first_index in self._vectors:
            self._vectors.copy(slot.first_index, slot.index)
            return
        parts = []
        for ref in slot.rows:
            outcome = self._outcomes.get(ref.batch_number)
            if outcome is None or (part := outcome.vectors[ref.row]) is None:
                return
            parts.append(part)
        self._vectors.store(slot.index, combine(parts), copy=slot.is_duplicate)
        if self._frees_dense:  # the array has the numbers now, and equal texts copy them there
            for ref in slot.rows:
                self._outcomes[ref.batch_number].vectors[ref.row] = None

    def pop_ready(self) -> Iterator[Embedding]:
        self._request_ids.clear()  # a stream does not report them, and may be endless
        return self._vectors.pop_ready()

    def skip_refused(self) -> dict[int, DashScopeError]:
        """Removes the texts refused so far, and returns their errors: the call goes on without them."""
        errors = {}
        for index, (text, error) in self._refused.items():
            self._vectors.skip(index)
            errors[index] = error.copy()  # equal texts share one
            errors[index].failed, errors[index].refused = [index], {index: text}
        self._refused = {}
        return errors

    def count_abandoned(self) -> None:
        """Bills the batches that have ended and that an interrupted call will not add."""
        for _, outcome in self.finished.values():
            self._count(outcome)
        self.finished.clear()

    def usage_of(self, outcome: Outcome) -> Usage:
        """The usage of one batch, with its list price."""
        return priced_usage(self._price, outcome.requests, outcome.texts, outcome.tokens)

    def _count(self, outcome: Outcome) -> None:
        self.usage += self.usage_of(outcome)
        self._request_ids += outcome.request_ids

    def attach_partial(self, error: BaseException, texts: Sequence[str] | None = None) -> None:
        """Sets `partial` and `failed` on the exception that ends the call, and bills everything that arrived.

        The `texts` of a stream are not known: `failed` then ends with the last text that arrived.
        """
        if error is self._raised_error:
            return  # `build_error` set them
        for number in sorted(self.finished.copy()):
            self.add(*self.finished[number])
        if texts is not None:
            self._vectors.fill_duplicates(texts)
        partial = self._vectors.stored()
        end = max([self._added_count, self._vectors.next_index, *(i + 1 for i in partial)])
        set_attributes(error, partial=partial)
        if not (isinstance(error, DashScopeError) and error.failed):  # else it names the invalid texts already
            set_attributes(error, failed=self._vectors.missing(end if texts is None else len(texts)))

    def result(self, texts: Sequence[str]) -> Embeddings:
        """All vectors of a call over these texts; raises its error if one is missing."""
        if self.has_failed:
            self._vectors.fill_duplicates(texts)
            raise self.build_error(len(texts))
        return self._vectors.result(len(texts), self.usage, self._request_ids)

    def build_error(self, count: int | None = None) -> DashScopeError:
        """The one error of a call of `count` texts: carries what was not returned, names what did not arrive."""
        # A stream may stop inside a long text, whose last batch was not added.
        end = max(self._added_count, self._vectors.next_index + 1) if count is None else count
        first = self._refused[min(self._refused)][1] if self._refused else None
        # A refused text explains more than the cancellation that followed from it.
        cause = first if first and isinstance(self._abort_error, Cancelled) else self._abort_error or first
        if cause is None:
            raise RuntimeError("a job without a failure has no error")
        cause.partial = self._vectors.stored()
        cause.failed = self._vectors.missing(end)
        refused = sorted(self._refused.items())
        cause.reasons = {index: error.message for index, (_, error) in refused}
        cause.refused = {index: text for index, (text, _) in refused}
        if hint := hint_for(cause):
            cause.add_hint(hint)
        cause.set_affected(list(cause.reasons) if cause is first else cause.failed, end)
        self._raised_error = cause
        return cause


def set_attributes(error: BaseException, **attributes: object) -> None:
    """Sets attributes of any exception; an exception that accepts none is left as it is."""
    with contextlib.suppress(Exception):
        for name, value in attributes.items():
            setattr(error, name, value)


def partial_of(error: BaseException) -> dict[int, Any]:
    """The `partial` of any exception; some of Python's own have a `partial` of another kind."""
    partial = getattr(error, "partial", None)
    return partial if isinstance(partial, dict) else {}


def as_embedding(index: int, vectors: Any) -> Embedding:
    """One value of `error.partial`, whose type depends on the requested output, as an Embedding."""
    if isinstance(vectors, Embedding):
        return vectors
    return Embedding(index, sparse=vectors) if isinstance(vectors, SparseVector) else Embedding(index, vectors)
