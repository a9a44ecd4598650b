"""Outcomes of batches → vectors of texts, in the order of the texts; and the one error of a job."""

from __future__ import annotations

import contextlib
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._core.error_codes import hint_for
from dashscope_embeddings.errors import Cancelled, DashScopeError
from dashscope_embeddings.vectors import Embedding, Embeddings, Usage, max_pool, mean_pool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dashscope_embeddings._core.exchange import Outcome
    from dashscope_embeddings._core.planning import Batch, TextSlot
    from dashscope_embeddings.catalogue import Price
    from dashscope_embeddings.vectors import Output


class ResultCollector:
    """Takes the outcomes of a job's batches in order and gives each text its vectors.

    Keeps no more outcomes than later batches refer to, and counts what was billed.
    """

    def __init__(self, output: Output, price: Price | None, *, array_rows: int | None = None) -> None:
        """`packed`: of so many texts, keep dense vectors as float32, 4 KB for 1,024 numbers instead of 32."""
        self._output, self._price, self._array_rows = output, price, array_rows
        self._matrix = array("f")
        self.finished: dict[int, tuple[Batch, Outcome]] = {}
        """Batches that are over and were not taken yet: what an interrupted job still has."""
        self.is_abandoned = False
        """Whether the caller has left: what lands later is counted on its own."""
        self._outcomes: dict[int, Outcome] = {}
        self._oldest_kept = 0
        """Outcomes of batches before this number were let go."""
        self._embeddings: dict[int, Embedding] = {}
        self._refused: dict[int, tuple[str, DashScopeError]] = {}
        self._skipped: set[int] = set()
        self._abort_error: DashScopeError | None = None
        self._raised_error: DashScopeError | None = None
        self._added_count = 0
        self._next_index = 0
        self._requests = self._texts = self._tokens = 0
        self._request_ids: list[str] = []

    @property
    def usage(self) -> Usage:
        """What the outcomes taken so far were billed."""
        return self.make_usage(self._requests, self._texts, self._tokens)

    def make_usage(self, requests: int, texts: int, tokens: int) -> Usage:
        """A bill, with its price."""
        return Usage(requests, tokens, texts, None if self._price is None else self._price.of(tokens))

    @property
    def has_failed(self) -> bool:
        """Whether the job will end in an error."""
        return self._abort_error is not None or bool(self._refused)

    def add(self, batch: Batch, outcome: Outcome) -> int:
        """Notes the texts that are complete with this batch, and those that will never be; says how many."""
        self._outcomes[batch.number] = outcome
        self._requests += outcome.requests
        self._texts += outcome.texts
        self._tokens += outcome.tokens
        self._request_ids += outcome.request_ids
        if self._abort_error is None or isinstance(self._abort_error, Cancelled):
            self._abort_error = outcome.abort_error or self._abort_error
        for place in batch.slots:
            self._added_count += 1
            if not place.rows:
                self._skipped.add(place.index)  # whoever asked was told when it was read
            elif error := self._text_error(place):
                self._refused[place.index] = place.text, error
            elif (found := self._embedding(place)) is not None:
                self._embeddings[place.index] = found
                if self._array_rows is not None:
                    self._free_dense(place)
        for number in range(self._oldest_kept, batch.oldest_referenced):
            self._outcomes.pop(number, None)  # an interrupted job lacks batches
        self._oldest_kept = max(self._oldest_kept, batch.oldest_referenced)
        self.finished.pop(batch.number, None)  # last: `salvage` takes again what an interruption broke off
        return len(batch.slots)

    def completed(self, batch: Batch) -> dict[int, Any]:
        """Index → vectors, in the shape that was asked, of the texts that this batch completed."""
        arrived = ((place.index, self._embeddings.get(place.index)) for place in batch.slots)
        return {index: self._in_output_shape(found) for index, found in arrived if found is not None}

    def _text_error(self, slot: TextSlot) -> DashScopeError | None:
        """The service's refusal of this text; None also where the whole job failed."""
        for part in slot.rows:
            if (outcome := self._outcomes.get(part.batch_number)) is None:
                continue  # an interrupted job lacks batches
            if (error := outcome.errors.get(part.row)) is not None and error is not outcome.abort_error:
                return error
        return None

    def _embedding(self, slot: TextSlot) -> Embedding | None:
        if slot.is_duplicate and (known := self._embeddings.get(slot.first_index)) is not None:
            return self._copy_for(known, slot.index)
        if any(part.batch_number not in self._outcomes for part in slot.rows):
            return None
        rows = [(self._outcomes[part.batch_number], part.row) for part in slot.rows]
        dense = [vector for outcome, row in rows if (vector := outcome.dense[row]) is not None]
        sparse = [weights for outcome, row in rows if (weights := outcome.sparse[row]) is not None]
        if len(rows) not in {len(dense), len(sparse)}:
            return None
        mean = mean_pool(dense, [part.weight for part in slot.rows]) if dense else None
        found = Embedding(slot.index, mean, max_pool(sparse) if sparse else None)
        if mean is None or self._array_rows is None:
            return self._copy_for(found, slot.index) if slot.is_duplicate else found
        self._matrix_row(slot.index, len(mean))[:] = memoryview(array("f", mean))
        return Embedding(slot.index, None, found.sparse)

    def _free_dense(self, slot: TextSlot) -> None:
        """The array has this text's numbers now, and equal texts copy them there."""
        for part in slot.rows:
            if (outcome := self._outcomes.get(part.batch_number)) is not None:
                outcome.dense[part.row] = None

    def _copy_for(self, known: Embedding, index: int) -> Embedding:
        """The same vectors for an equal text: nobody who changes one text's list may find another's changed."""
        if self._matrix:
            self._matrix_row(index)[:] = self._matrix_row(known.index)
        return Embedding(index, known.dense and list(known.dense), known.sparse and known.sparse.copy())

    def _matrix_row(self, index: int, width: int = 0) -> memoryview:
        """A text's row in the array; the first vector says how wide it is."""
        if not self._matrix:
            self._matrix = array("f", bytes(4 * width * (self._array_rows or 0)))
        width = len(self._matrix) // (self._array_rows or 1)
        return memoryview(self._matrix)[index * width : (index + 1) * width]

    def pop_ready(self) -> Iterator[Embedding]:
        """The next texts in order, up to the first that is missing; each is given out once."""
        self._request_ids.clear()  # a stream has no use for them, and no end
        while True:
            found = self._embeddings.pop(self._next_index, None)
            if found is None and self._next_index not in self._skipped:
                return
            self._skipped.discard(self._next_index)
            self._next_index += 1
            if found is not None:
                yield found

    def skip_refused(self) -> dict[int, DashScopeError]:
        """The texts refused so far, in order: they no longer make the job fail, and are left out."""
        refused, self._refused = self._refused, {}
        self._skipped.update(refused)
        errors = {}
        for index, (text, error) in refused.items():
            errors[index] = error.copy()  # equal texts share one
            errors[index].failed, errors[index].refused = [index], {index: text}
        return errors

    def count_abandoned(self) -> None:
        """Counts what has landed and nobody will take: a job that was left in the middle."""
        for _, outcome in self.finished.values():
            self._requests += outcome.requests
            self._texts += outcome.texts
            self._tokens += outcome.tokens
        self.finished.clear()

    def attach_partial(self, error: BaseException, texts: Sequence[str] | None = None) -> None:
        """Gives whatever ends the job `partial` and `failed`, as an error has them; counts all that was billed.

        Of a stream, whose `texts` are not known, `failed` names them up to the last one that arrived.
        """
        if error is self._raised_error:
            return  # it has them
        for number in sorted(self.finished.copy()):
            self.add(*self.finished[number])
        if texts is not None:
            self._fill_duplicates(texts)
        found = self._partial()
        ended = max([self._added_count, self._next_index, *(i + 1 for i in found)]) if texts is None else len(texts)
        set_attributes(error, partial=found)
        if not (isinstance(error, DashScopeError) and error.failed):  # else they are the bad texts
            set_attributes(error, failed=[index for index in range(self._next_index, ended) if index not in found])

    def result(self, texts: Sequence[str]) -> Embeddings:
        """All vectors of a job over these texts.

        Raises:
            DashScopeError: not all arrived.
        """
        count = len(texts)
        if self.has_failed:
            self._fill_duplicates(texts)
            raise self.build_error(count)
        found = [self._embeddings[index].sparse for index in range(count)]
        sparse = [weights for weights in found if weights is not None] if "sparse" in self._output else None
        if self._array_rows is None:
            dense = [vector for i in range(count) if (vector := self._embeddings[i].dense) is not None]
            return Embeddings(dense, sparse, self.usage, tuple(self._request_ids))
        return Embeddings([], sparse, self.usage, tuple(self._request_ids), self._matrix, count)

    def _fill_duplicates(self, texts: Sequence[str]) -> None:
        """A text that arrived has arrived wherever it stands, also in batches that were never sent."""
        found = {texts[index]: embedding for index, embedding in self._embeddings.items()}
        for index, text in enumerate(texts):
            if index not in self._embeddings and (known := found.get(text)) is not None:
                self._embeddings[index] = self._copy_for(known, index)

    def build_error(self, count: int | None = None) -> DashScopeError:
        """The one error of a job: with what arrived and was not given out, naming what did not arrive."""
        # A stream may stop inside a long text, of which no batch had been the last yet.
        ended = max(self._added_count, self._next_index + 1) if count is None else count
        first = self._refused[min(self._refused)][1] if self._refused else None
        cause = (
            first
            if self._abort_error is None or (first and isinstance(self._abort_error, Cancelled))
            else self._abort_error
        )
        if cause is None:
            raise RuntimeError("a job without a failure has no error")
        cause.partial = self._partial()
        cause.failed = [index for index in range(self._next_index, ended) if index not in self._embeddings]
        refused = sorted(self._refused.items())
        cause.reasons = {index: error.message for index, (_, error) in refused}
        cause.refused = {index: text for index, (text, _) in refused}
        if advice := hint_for(cause):
            cause.add_hint(advice)
        named = list(cause.reasons) if cause is first else cause.failed
        cause.set_affected(named, ended)
        self._raised_error = cause
        return cause

    def _partial(self) -> dict[int, Any]:
        """What arrived and was not given out, by index."""
        return {index: self._in_output_shape(found) for index, found in sorted(self._embeddings.items())}

    def _in_output_shape(self, found: Embedding) -> Any:
        """A text's vectors in the shape of the asked output: floats, a SparseVector, or both in an Embedding."""
        if self._output == "sparse":
            return found.sparse
        dense: Any = self._matrix_row(found.index).tolist() if self._matrix else list(found.dense or ())
        return dense if self._output == "dense" else replace(found, dense=dense)


def set_attributes(error: BaseException, **attributes: object) -> None:
    """Sets `partial` or `failed` of any exception; one that takes no attributes passes without."""
    with contextlib.suppress(Exception):
        for name, fact in attributes.items():
            setattr(error, name, fact)


def partial_of(error: BaseException) -> dict[int, Any]:
    """What an exception carries; some of Python's own have a `partial` that is something else."""
    partial = getattr(error, "partial", None)
    return partial if isinstance(partial, dict) else {}
