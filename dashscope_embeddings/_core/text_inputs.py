"""Reads the caller's texts and validates each one before anything is sent or billed."""

from __future__ import annotations

import io
import os
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
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
    """The texts in `source`: one string, an open text file (one text a line), or an ordered iterable of strings.

    These are the inputs of the vendor's SDK. Columns of strings are accepted too: a Series of pandas or polars, an
    array of numpy or pyarrow.

    Raises:
        InvalidInput: `source` is none of these.
    """
    if (problem := _source_problem(source)) is not None:
        raise InvalidInput(f"texts must be a string, a text file or an iterable of strings, {problem}")
    if isinstance(source, str):
        yield source
    elif isinstance(source, io.TextIOBase) or (hasattr(source, "readline") and hasattr(source, "__iter__")):
        # Also wrappers of files, such as `tempfile.NamedTemporaryFile`.
        for line in source:
            if not isinstance(line, str):
                raise InvalidInput("texts must be strings: open the file in text mode")
            yield line.rstrip("\r\n")
    else:
        # pyarrow's arrays iterate over scalars, which are not strings.
        yield from source.to_pylist() if hasattr(source, "to_pylist") else source  # type: ignore[misc] # see _source_problem


def _source_problem(source: object) -> str | None:
    """Why this is not a source of texts, and what to pass instead; None: it is one.

    Some objects iterate over something other than their texts: a table over its column names, a dict over its keys,
    a set in arbitrary order. Without this check those would be embedded, and billed, without an error.
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
        iter(source)  # type: ignore[call-overload] # the TypeError is the point
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
    """What is wrong with a text, and what to do about it; None: the text is valid."""
    if not isinstance(text, str):
        return non_string_problem(text)
    if not text or text.isspace():
        return "is empty or blank: the service refuses such a text and its whole request; leave it out"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            pair = _SURROGATE_PAIR.match(text, error.start) is not None
            return (
                f"has {'a surrogate pair' if pair else 'a lone surrogate'} at character {error.start}, which UTF-8 "
                'cannot encode: repair it with text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
            )
    if long_text == "error" and limits.certainly_too_long(text):
        return (
            f"is far longer ({len(text)} characters) than the model's {limits.tokens_per_row} tokens: split "
            'it, or use long_text="truncate" or "average"'
        )
    return None


def as_plain_string(text: Any) -> Any:
    """A text without its subclass of `str`, whose equality may be another one: equal texts share a vector."""
    return str.__str__(text) if isinstance(text, str) else text


def non_string_problem(value: object) -> str:
    """What is wrong with a value in place of a text, and what to do about it."""
    kind = type(value).__name__
    number = isinstance(value, Number)
    # NaN is the only number not equal to itself. NA and NaT of pandas are matched by name, to avoid importing pandas.
    if value is None or kind in {"NAType", "NaTType"} or (number and value != value):  # noqa: PLR0124
        return "is missing (None or NaN): leave it out, or fill it with a text"
    if number:
        return f"is {kind}, not a string: embed str(…) of it"
    if isinstance(value, (bytes, bytearray)):
        return f'is {kind}, not a string: decode it, as with .decode("utf-8")'
    return f"is {kind}, not a string: embed the field that holds its text"


_MAX_INLINE_TEXTS, _MAX_INLINE_CHARACTERS = 5_000, 500_000
"""Beyond these sizes, texts are checked in a thread, so that the event loop is not blocked."""


def needs_thread(texts: Sequence[object]) -> bool:
    """Whether checking these texts would block an event loop for noticeably long."""
    if len(texts) > _MAX_INLINE_TEXTS:
        return True
    return sum(len(text) for text in texts if isinstance(text, str)) > _MAX_INLINE_CHARACTERS


def validate(texts: Iterable[str], limits: Limits, long_text: LongText) -> list[str]:
    """All texts as a list; raises one error that names all invalid ones."""
    checked = [*map(as_plain_string, texts)]
    problems = {i: problem for i, text in enumerate(checked) if (problem := text_problem(text, limits, long_text))}
    if problems:
        raise invalid_input_error(problems, {i: checked[i] for i in problems}, "nothing was sent")
    return checked


def validate_each(
    texts: Iterable[str], limits: Limits, long_text: LongText, on_refused: OnRefused | None = None
) -> Iterator[str | None]:
    """The texts one by one, for a source that may be endless.

    Yields None for an invalid text, after `on_refused` was called with its index and error.

    Raises:
        InvalidInput: at the first invalid text, if there is no `on_refused`.
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
) -> AsyncGenerator[str | None, None]:
    """`validate_each` of an asynchronous source; `in_thread` checks very long texts."""
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
        return str.__str__(text)
    if on_refused is None:
        raise invalid_input_error({index: problem}, {index: text})
    on_refused(index, invalid_input_error({index: problem}, {index: text}, "it was not sent"))
    return None


def invalid_input_error(
    problems: dict[int, str], texts: dict[int, Any], consequence: str = "the texts before it were sent"
) -> InvalidInput:
    """One error for all invalid texts of a call; `problems` and `texts` are by index."""
    indices = sorted(problems)
    more = f" ({describe_indices(indices)} cannot be embedded)" if len(indices) > 1 else ""
    error = InvalidInput(f"text {indices[0]} {problems[indices[0]]}{more}; {consequence}")
    error.failed = indices
    error.reasons = {i: problems[i] for i in indices}
    error.refused = {i: texts[i] for i in indices}
    return error
