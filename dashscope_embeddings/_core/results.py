"""Outcomes of batches → vectors of texts, in the order of the texts; and the one error of a job."""

from __future__ import annotations

import contextlib
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._core.error_codes import remedy
from dashscope_embeddings.errors import DashScopeError, GivenUp
from dashscope_embeddings.vectors import Embedding, Embeddings, Usage, average, strongest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dashscope_embeddings._core.exchange import Outcome
    from dashscope_embeddings._core.planning import Batch, Place
    from dashscope_embeddings.catalogue import Price
    from dashscope_embeddings.vectors import Output


class Assembly:
    """Takes the outcomes of a job's batches in order and gives each text its vectors.

    Keeps no more outcomes than later batches refer to, and counts what was billed.
    """

    def __init__(self, output: Output, price: Price | None, *, packed: int | None = None) -> None:
        """`packed`: of so many texts, keep dense vectors as float32, 4 KB for 1,024 numbers instead of 32."""
        self._output, self._price, self._packed = output, price, packed
        self._matrix = array("f")
        self.landed: dict[int, tuple[Batch, Outcome]] = {}
        """Batches that are over and were not taken yet: what an interrupted job still has."""
        self.over = False
        """Whether the caller has left: what lands later is counted on its own."""
        self._outcomes: dict[int, Outcome] = {}
        self._oldest = 0
        """Outcomes of batches before this number were let go."""
        self._arrived: dict[int, Embedding] = {}
        self._refused: dict[int, tuple[str, DashScopeError]] = {}
        self._dismissed: set[int] = set()
        self._stop: DashScopeError | None = None
        self._raised: DashScopeError | None = None
        self._taken = 0
        self._given = 0
        self._requests = self._texts = self._tokens = 0
        self._request_ids: list[str] = []

    @property
    def usage(self) -> Usage:
        """What the outcomes taken so far were billed."""
        return self.usage_of(self._requests, self._texts, self._tokens)

    def usage_of(self, requests: int, texts: int, tokens: int) -> Usage:
        """A bill, with its price."""
        return Usage(requests, tokens, texts, None if self._price is None else self._price.of(tokens))

    @property
    def failing(self) -> bool:
        """Whether the job will end in an error."""
        return self._stop is not None or bool(self._refused)

    def take(self, batch: Batch, outcome: Outcome) -> int:
        """Notes the texts that are complete with this batch, and those that will never be; says how many."""
        self._outcomes[batch.number] = outcome
        self._requests += outcome.requests
        self._texts += outcome.texts
        self._tokens += outcome.tokens
        self._request_ids += outcome.request_ids
        if self._stop is None or isinstance(self._stop, GivenUp):
            self._stop = outcome.stop or self._stop
        for place in batch.places:
            self._taken += 1
            if not place.parts:
                self._dismissed.add(place.index)  # whoever asked was told when it was read
            elif error := self._error(place):
                self._refused[place.index] = place.text, error
            elif (found := self._embedding(place)) is not None:
                self._arrived[place.index] = found
                if self._packed is not None:
                    self._let_go(place)
        for number in range(self._oldest, batch.oldest):
            self._outcomes.pop(number, None)  # an interrupted job lacks batches
        self._oldest = max(self._oldest, batch.oldest)
        self.landed.pop(batch.number, None)  # last: `salvage` takes again what an interruption broke off
        return len(batch.places)

    def completed(self, batch: Batch) -> dict[int, Any]:
        """Index → vectors, in the shape that was asked, of the texts that this batch completed."""
        arrived = ((place.index, self._arrived.get(place.index)) for place in batch.places)
        return {index: self._shaped(found) for index, found in arrived if found is not None}

    def _error(self, place: Place) -> DashScopeError | None:
        """The service's refusal of this text; None also where the whole job failed."""
        for part in place.parts:
            if (outcome := self._outcomes.get(part.batch)) is None:
                continue  # an interrupted job lacks batches
            if (error := outcome.errors.get(part.row)) is not None and error is not outcome.stop:
                return error
        return None

    def _embedding(self, place: Place) -> Embedding | None:
        if place.repeated and (known := self._arrived.get(place.first)) is not None:
            return self._again(known, place.index)
        if any(part.batch not in self._outcomes for part in place.parts):
            return None
        rows = [(self._outcomes[part.batch], part.row) for part in place.parts]
        dense = [vector for outcome, row in rows if (vector := outcome.dense[row]) is not None]
        sparse = [weights for outcome, row in rows if (weights := outcome.sparse[row]) is not None]
        if len(rows) not in {len(dense), len(sparse)}:
            return None
        mean = average(dense, [part.weight for part in place.parts]) if dense else None
        found = Embedding(place.index, mean, strongest(sparse) if sparse else None)
        if mean is None or self._packed is None:
            return self._again(found, place.index) if place.repeated else found
        self._row(place.index, len(mean))[:] = memoryview(array("f", mean))
        return Embedding(place.index, None, found.sparse)

    def _let_go(self, place: Place) -> None:
        """The array has this text's numbers now, and equal texts copy them there."""
        for part in place.parts:
            if (outcome := self._outcomes.get(part.batch)) is not None:
                outcome.dense[part.row] = None

    def _again(self, known: Embedding, index: int) -> Embedding:
        """The same vectors for an equal text: nobody who changes one text's list may find another's changed."""
        if self._matrix:
            self._row(index)[:] = self._row(known.index)
        return Embedding(index, known.dense and list(known.dense), known.sparse and known.sparse.copy())

    def _row(self, index: int, width: int = 0) -> memoryview:
        """A text's row in the array; the first vector says how wide it is."""
        if not self._matrix:
            self._matrix = array("f", bytes(4 * width * (self._packed or 0)))
        width = len(self._matrix) // (self._packed or 1)
        return memoryview(self._matrix)[index * width : (index + 1) * width]

    def ready(self) -> Iterator[Embedding]:
        """The next texts in order, up to the first that is missing; each is given out once."""
        self._request_ids.clear()  # a stream has no use for them, and no end
        while True:
            found = self._arrived.pop(self._given, None)
            if found is None and self._given not in self._dismissed:
                return
            self._dismissed.discard(self._given)
            self._given += 1
            if found is not None:
                yield found

    def dismiss(self) -> dict[int, DashScopeError]:
        """The texts refused so far, in order: they no longer make the job fail, and are left out."""
        refused, self._refused = self._refused, {}
        self._dismissed.update(refused)
        errors = {}
        for index, (text, error) in refused.items():
            errors[index] = error.copy()  # equal texts share one
            errors[index].failed, errors[index].refused = [index], {index: text}
        return errors

    def settle(self) -> None:
        """Counts what has landed and nobody will take: a job that was left in the middle."""
        for _, outcome in self.landed.values():
            self._requests += outcome.requests
            self._texts += outcome.texts
            self._tokens += outcome.tokens
        self.landed.clear()

    def salvage(self, end: BaseException, texts: Sequence[str] | None = None) -> None:
        """Gives whatever ends the job `partial` and `failed`, as an error has them; counts all that was billed.

        Of a stream, whose `texts` are not known, `failed` names them up to the last one that arrived.
        """
        if end is self._raised:
            return  # it has them
        for number in sorted(self.landed.copy()):
            self.take(*self.landed[number])
        if texts is not None:
            self._repeat(texts)
        found = self._partial()
        ended = max([self._taken, self._given, *(i + 1 for i in found)]) if texts is None else len(texts)
        note(end, partial=found)
        if not (isinstance(end, DashScopeError) and end.failed):  # else they are the bad texts
            note(end, failed=[index for index in range(self._given, ended) if index not in found])

    def result(self, texts: Sequence[str]) -> Embeddings:
        """All vectors of a job over these texts.

        Raises:
            DashScopeError: not all arrived.
        """
        count = len(texts)
        if self.failing:
            self._repeat(texts)
            raise self.error(count)
        found = [self._arrived[index].sparse for index in range(count)]
        sparse = [weights for weights in found if weights is not None] if "sparse" in self._output else None
        if self._packed is None:
            dense = [vector for i in range(count) if (vector := self._arrived[i].dense) is not None]
            return Embeddings(dense, sparse, self.usage, tuple(self._request_ids))
        return Embeddings([], sparse, self.usage, tuple(self._request_ids), self._matrix, count)

    def _repeat(self, texts: Sequence[str]) -> None:
        """A text that arrived has arrived wherever it stands, also in batches that were never sent."""
        found = {texts[index]: embedding for index, embedding in self._arrived.items()}
        for index, text in enumerate(texts):
            if index not in self._arrived and (known := found.get(text)) is not None:
                self._arrived[index] = self._again(known, index)

    def error(self, count: int | None = None) -> DashScopeError:
        """The one error of a job: with what arrived and was not given out, naming what did not arrive."""
        # A stream may stop inside a long text, of which no batch had been the last yet.
        ended = max(self._taken, self._given + 1) if count is None else count
        first = self._refused[min(self._refused)][1] if self._refused else None
        cause = first if self._stop is None or (first and isinstance(self._stop, GivenUp)) else self._stop
        if cause is None:
            raise RuntimeError("a job without a failure has no error")
        cause.partial = self._partial()
        cause.failed = [index for index in range(self._given, ended) if index not in self._arrived]
        refused = sorted(self._refused.items())
        cause.reasons = {index: error.message for index, (_, error) in refused}
        cause.refused = {index: text for index, (text, _) in refused}
        if advice := remedy(cause):
            cause.advise(advice)
        named = list(cause.reasons) if cause is first else cause.failed
        cause.about(named, ended)
        self._raised = cause
        return cause

    def _partial(self) -> dict[int, Any]:
        """What arrived and was not given out, by index."""
        return {index: self._shaped(found) for index, found in sorted(self._arrived.items())}

    def _shaped(self, found: Embedding) -> Any:
        """A text's vectors in the shape of the asked output: floats, a SparseVector, or both in an Embedding."""
        if self._output == "sparse":
            return found.sparse
        dense: Any = self._row(found.index).tolist() if self._matrix else list(found.dense or ())
        return dense if self._output == "dense" else replace(found, dense=dense)


def note(end: BaseException, **facts: object) -> None:
    """Sets `partial` or `failed` of any exception; one that takes no attributes passes without."""
    with contextlib.suppress(Exception):
        for name, fact in facts.items():
            setattr(end, name, fact)


def arrived_with(end: BaseException) -> dict[int, Any]:
    """What an exception carries; some of Python's own have a `partial` that is something else."""
    partial = getattr(end, "partial", None)
    return partial if isinstance(partial, dict) else {}
