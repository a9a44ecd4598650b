"""What is taken as texts, and what is wrong with one: found before anything is spent."""

from __future__ import annotations

import io
import os
import re
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
)
from collections.abc import Set as AbstractSet
from numbers import Number
from typing import Any, TypeAlias

from dashscope_embeddings._core.text_length import Limits, LongText
from dashscope_embeddings.errors import DashScopeError, InvalidInput, describe_indices

OnRefused: TypeAlias = Callable[[int, DashScopeError], object]


def iterate_texts(source: object) -> Iterator[str]:
    """The vendor's three inputs: one string, an open text file (a text a line), any iterable of strings in an order.

    Columns of strings are taken too: a Series of pandas or polars, an array of numpy or pyarrow.

    Raises:
        InvalidInput: it is none of these.
    """
    if (problem := _source_problem(source)) is not None:
        raise InvalidInput(f"texts must be a string, a text file or an iterable of strings, {problem}")
    if isinstance(source, str):
        yield source
    elif isinstance(source, io.TextIOBase) or (hasattr(source, "readline") and hasattr(source, "__iter__")):
        # Also what wraps a file without being one, such as `tempfile.NamedTemporaryFile`.
        for line in source:
            if not isinstance(line, str):
                raise InvalidInput("texts must be strings: open the file in text mode")
            yield line.rstrip("\r\n")
    else:
        # pyarrow's arrays give scalars, which are no strings.
        yield from source.to_pylist() if hasattr(source, "to_pylist") else source  # type: ignore[misc] # see _no_texts


def _source_problem(source: object) -> str | None:
    """Why the texts cannot be taken from this, and what to pass instead; None: they can.

    What gives something else than its texts when it is iterated (a table its columns' names, a dict its keys, a set
    its strings in any order) would be embedded, and billed, without an error.
    """
    if isinstance(source, (str, list, tuple, KeysView)):
        return None
    kind = type(source).__name__
    for kinds, instead in _UNSUPPORTED_SOURCES.items():
        if isinstance(source, kinds):
            return f"not {kind}{instead}"
    if hasattr(type(source), "columns"):
        return f'not {kind}, which would give its columns: pass one column, such as df["text"].tolist()'
    try:
        iter(source)  # type: ignore[call-overload] # what has no iterator is told so
    except TypeError:
        return f"not {kind}"
    return None


_UNSUPPORTED_SOURCES: dict[type | tuple[type, ...], str] = {
    (io.RawIOBase, io.BufferedIOBase, bytes, bytearray, memoryview): (
        ": open the file in text mode, or decode the bytes first"
    ),
    os.PathLike: ': pass open(path, encoding="utf-8") for a text a line, or path.read_text("utf-8") for one text',
    Mapping: ", which would give its keys: pass list(d.values()), or list(d) if the keys are the texts",
    AbstractSet: ", whose order is not fixed: pass sorted(s), or a list, and keep it beside the vectors",
    AsyncIterable: ": use aembed or astream for an asynchronous one",
}


_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def text_problem(text: object, limits: Limits, long_text: LongText) -> str | None:
    """What is wrong with a text and what to do about it; None: nothing."""
    if not isinstance(text, str):
        return _non_string_problem(text)
    if not text or text.isspace():
        return "is empty or blank: the service refuses such a text and its whole request; leave it out"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            pair = _SURROGATE_PAIR.match(text, error.start) is not None
            return (
                f"holds {'a surrogate pair' if pair else 'a lone surrogate'} at character {error.start}, which UTF-8 "
                'cannot carry: mend it with text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
            )
    if long_text == "error" and limits.certainly_too_long(text):
        return (
            f"is far longer ({len(text)} characters) than the model's {limits.tokens_per_row} tokens: split "
            'it, or use long_text="truncate" or "average"'
        )
    return None


def _non_string_problem(value: object) -> str:
    kind = type(value).__name__
    number = isinstance(value, Number)
    # NaN is the one number that differs from itself; the names are pandas' NA and NaT, which is not imported here.
    if value is None or kind in {"NAType", "NaTType"} or (number and value != value):  # noqa: PLR0124
        return "is missing (None or NaN): leave it out, or fill it with a text"
    if number:
        return f"is {kind}, not a string: embed str(…) of it"
    if isinstance(value, (bytes, bytearray)):
        return f'is {kind}, not a string: decode it, as with .decode("utf-8")'
    return f"is {kind}, not a string: embed the field that holds its text"


_MAX_INLINE_TEXTS, _MAX_INLINE_CHARACTERS = 5_000, 500_000
"""More than this is checked in a thread, for the sake of an event loop's other tasks."""


def needs_thread(texts: Sequence[object]) -> bool:
    """Whether checking these texts would stop an event loop for longer than its other tasks should notice."""
    if len(texts) > _MAX_INLINE_TEXTS:
        return True
    return sum(len(text) for text in texts if isinstance(text, str)) > _MAX_INLINE_CHARACTERS


def validate(texts: Iterable[str], limits: Limits, long_text: LongText) -> list[str]:
    """All texts, or one error that names every bad one, before anything is sent.

    Raises:
        InvalidInput: with `failed` and `reasons` filled.
    """
    good = list(texts)
    problems = {i: said for i, text in enumerate(good) if (said := text_problem(text, limits, long_text))}
    if problems:
        raise invalid_input_error(problems, {i: good[i] for i in problems}, "nothing was sent")
    return good


def validate_each(
    texts: Iterable[str], limits: Limits, long_text: LongText, on_refused: OnRefused | None = None
) -> Iterator[str | None]:
    """The texts one by one, for a source that may have no end.

    `refused` is told of bad ones, in whose place comes None.

    Raises:
        InvalidInput: at the first bad one, where nobody wants to be told.
    """
    for index, text in enumerate(texts):
        yield _accept_or_refuse(index, text, text_problem(text, limits, long_text), on_refused)


async def avalidate_each(
    texts: AsyncIterable[str],
    limits: Limits,
    long_text: LongText,
    on_refused: OnRefused | None = None,
    *,
    in_thread: Callable[..., Awaitable[str | None]],
) -> AsyncIterator[str | None]:
    """`checking` of an asynchronous source; huge texts are checked by `in_thread`."""
    index = 0
    async for text in texts:
        if needs_thread([text]):
            problem = await in_thread(text_problem, text, limits, long_text)
        else:
            problem = text_problem(text, limits, long_text)
        yield _accept_or_refuse(index, text, problem, on_refused)
        index += 1


def _accept_or_refuse(index: int, text: str, problem: str | None, on_refused: OnRefused | None) -> str | None:
    if problem is None:
        return text
    if on_refused is None:
        raise invalid_input_error({index: problem}, {index: text})
    on_refused(index, invalid_input_error({index: problem}, {index: text}, "it was not sent"))
    return None


def invalid_input_error(
    problems: dict[int, str], texts: dict[int, Any], consequence: str = "the texts before it were sent"
) -> InvalidInput:
    """One error for all bad texts of a call."""
    bad = sorted(problems)
    more = f" ({describe_indices(bad)} cannot be embedded)" if len(bad) > 1 else ""
    error = InvalidInput(f"text {bad[0]} {problems[bad[0]]}{more}; {consequence}")
    error.failed = bad
    error.reasons = {i: problems[i] for i in bad}
    error.refused = {i: texts[i] for i in bad}
    return error
