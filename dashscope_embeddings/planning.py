"""Texts → batches: refuses what cannot work before anything is spent, and cuts by rows and tokens.

Equal texts are asked once, and every place of such a text names the same row. A long text may become several
rows; its place then names all of them, with their weights.
"""

from __future__ import annotations

import io
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dashscope_embeddings.errors import InvalidInput, describe
from dashscope_embeddings.lengths import estimate, fitting

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
    from typing import TypeAlias

    from dashscope_embeddings.errors import DashScopeError
    from dashscope_embeddings.lengths import Limits, LongText

    Refused: TypeAlias = Callable[[int, DashScopeError], object]

# --- refusing bad input ------------------------------------------------------------------------------------


def texts_of(source: object) -> Iterator[str]:
    """The vendor's three inputs: one string, an open text file (a text a line), any iterable of strings.

    Raises:
        InvalidInput: it is none of these.
    """
    if isinstance(source, str):
        yield source
    elif isinstance(source, (io.RawIOBase, io.BufferedIOBase, bytes, bytearray)):
        raise InvalidInput("texts must be strings: open the file in text mode, or decode the bytes first")
    elif isinstance(source, io.TextIOBase) or (hasattr(source, "readline") and hasattr(source, "__iter__")):
        # Also what wraps a file without being one, such as `tempfile.NamedTemporaryFile`.
        for line in source:
            if not isinstance(line, str):
                raise InvalidInput("texts must be strings: open the file in text mode")
            yield line.rstrip("\r\n")
    else:
        try:
            items = iter(source)  # type: ignore[call-overload] # what has no iterator is told so
        except TypeError:
            kind = type(source).__name__
            raise InvalidInput(f"texts must be a string, a file or an iterable of strings, not {kind}") from None
        yield from items


_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def _is_missing(found: object) -> bool:
    """None, or what stands for it in pandas and NumPy."""
    nan = isinstance(found, float) and found != found  # noqa: PLR0124 - NaN alone differs from itself
    return found is None or nan or type(found).__name__ in {"NAType", "NaTType"}


def complaint(text: object, limits: Limits, policy: LongText) -> str | None:
    """What is wrong with a text and what to do about it; None: nothing."""
    if not isinstance(text, str):
        if _is_missing(text):
            return "is missing (None or NaN): leave it out, or fill it with a text"
        return f"is {type(text).__name__}, not a string: embed str(…) or the field that holds the text"
    if not text.strip():
        return "is empty or blank: the service refuses such a text and its whole request; leave it out"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            pair = _PAIR.match(text, error.start) is not None
            return (
                f"holds {'a surrogate pair' if pair else 'a lone surrogate'} at character {error.start}, which UTF-8 "
                'cannot carry: mend it with text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
            )
    if policy == "error" and limits.surely_too_long(text):
        return (
            f"is far longer ({len(text)} characters) than the model's {limits.tokens_per_row} tokens: split "
            'it, or use long_text="truncate" or "average"'
        )
    return None


def checked(texts: Iterable[str], limits: Limits, policy: LongText) -> list[str]:
    """All texts, or one error that names every bad one, before anything is sent.

    Raises:
        InvalidInput: with `failed` and `reasons` filled.
    """
    good = list(texts)
    complaints = {i: said for i, text in enumerate(good) if (said := complaint(text, limits, policy))}
    if complaints:
        raise refusal(complaints, "nothing was sent")
    return good


def checking(
    texts: Iterable[str], limits: Limits, policy: LongText, refused: Refused | None = None
) -> Iterator[str | None]:
    """The texts one by one, for a source that may have no end.

    `refused` is told of bad ones, in whose place comes None.

    Raises:
        InvalidInput: at the first bad one, where nobody wants to be told.
    """
    for index, text in enumerate(texts):
        yield _good(index, text, limits, policy, refused)


async def achecking(
    texts: AsyncIterable[str], limits: Limits, policy: LongText, refused: Refused | None = None
) -> AsyncIterator[str | None]:
    """`checking` of an asynchronous source."""
    index = 0
    async for text in texts:
        yield _good(index, text, limits, policy, refused)
        index += 1


def _good(index: int, text: str, limits: Limits, policy: LongText, refused: Refused | None) -> str | None:
    said = complaint(text, limits, policy)
    if said is None:
        return text
    if refused is None:
        raise refusal({index: said})
    refused(index, refusal({index: said}, "it was not sent"))
    return None


def refusal(complaints: dict[int, str], end: str = "the texts before it were sent") -> InvalidInput:
    """One error for all bad texts of a call."""
    bad = sorted(complaints)
    more = f" ({describe(bad)} cannot be embedded)" if len(bad) > 1 else ""
    error = InvalidInput(f"text {bad[0]} {complaints[bad[0]]}{more}; {end}")
    error.failed = bad
    error.reasons = {i: complaints[i] for i in bad}
    return error


# --- batches -----------------------------------------------------------------------------------------------


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
    repeated: bool = False
    """Whether another text holds the same rows already."""


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
        self._seen: OrderedDict[str, tuple[Part, ...]] = OrderedDict()
        self._batch = Batch(0)
        self._ready: list[Batch] = []
        self._count = 0

    def add(self, text: str | None) -> list[Batch]:
        """Takes the next text, or the gap where one was refused; gives the batches that are full with it."""
        index, self._count = self._count, self._count + 1
        if text is None:
            self._batch.places.append(Place(index, ()))
            return self._given()
        known = self._seen.get(text)
        if known is not None and known[0].batch >= self._horizon():
            place = Place(index, known, repeated=True)
        else:
            rows = fitting(text, self._policy, self._limits.tokens_per_row)
            first = self._batch.number + (1 if self._full(estimate(rows[0])) else 0)
            place = Place(index, tuple(self._put(row, first) for row in rows))
            self._seen[text] = place.parts
            self._seen.move_to_end(text)
        self._batch.places.append(place)
        if len(self._batch.places) >= _MOST_PLACES:
            self._close(self._batch.number + 1)
        return self._given()

    def finish(self) -> list[Batch]:
        """The last batch, if any text is left."""
        if self._batch.places:
            self._close(self._batch.number + 1)
        return self._given()

    def _given(self) -> list[Batch]:
        ready, self._ready = self._ready, []
        return ready

    def _horizon(self) -> int:
        return 0 if self._memory is None else self._batch.number - self._memory

    def _put(self, row: str, first: int) -> Part:
        tokens = estimate(row)
        if self._full(tokens):
            self._close(first)
        self._batch.texts.append(row)
        self._batch.tokens += tokens
        return Part(self._batch.number, len(self._batch.texts) - 1, float(len(row)))

    def _full(self, tokens: float) -> bool:
        budget = _smallest(self._tokens, self._limits.tokens_per_request)
        if budget is not None and self._batch.texts and self._batch.tokens + tokens > budget:
            return True
        return len(self._batch.texts) >= min(self._rows or self._limits.rows, self._limits.rows)

    def _close(self, first: int) -> None:
        """`first`: the batch with the first piece of the text at hand, which its last piece refers to."""
        done = self._batch
        self._batch = Batch(done.number + 1)
        done.oldest = min(first, self._horizon())
        self._ready.append(done)
        while self._seen and next(iter(self._seen.values()))[0].batch < self._horizon():
            self._seen.popitem(last=False)


def lone(text: str, limits: Limits, policy: LongText) -> Batch | None:
    """The batch of one checked text; None where it is cut into several rows."""
    rows = fitting(text, policy, limits.tokens_per_row)
    if len(rows) != 1:
        return None
    (row,) = rows
    return Batch(0, [row], estimate(row), [Place(0, (Part(0, 0, float(len(row))),))])


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
