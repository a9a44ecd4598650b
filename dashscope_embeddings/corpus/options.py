"""How the input of a corpus is read: one definition for the functions, the readers and the commands."""

from __future__ import annotations

import codecs
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypedDict, TypeVar, get_args, get_type_hints

from dashscope_embeddings._core.argument_names import reject_unknown_keywords
from dashscope_embeddings.corpus.sources import Format
from dashscope_embeddings.errors import InvalidInput

Params = ParamSpec("Params")
ReturnT = TypeVar("ReturnT")

OnBadInput = Literal["fail", "skip"]
"""What to do about a record without a usable text."""
Quoting = Literal["standard", "none"]
"""Quotes of CSV and TSV: "standard" fields may be quoted; "none": a quote is a character like any other."""
EXTRA_COLUMNS = ("text", "source")
AUTO = "auto"
"""As `id_field`: the field `id` where the records have one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InputOptions:
    """How the input is read. `embed_corpus` documents each option.

    Raises:
        InvalidInput: an option has an unknown value.
    """

    text_field: str = "text"
    id_field: str | None = AUTO
    format: Format | None = None
    encoding: str = "utf-8"
    delimiter: str | None = None
    quoting: Quoting = "standard"
    on_bad_input: OnBadInput = "fail"
    with_text: bool = False
    with_source: bool = False
    retry_rejected: bool = False

    def __post_init__(self) -> None:
        for name, choices in {"format": Format, "quoting": Quoting, "on_bad_input": OnBadInput}.items():
            value, (*known, last) = getattr(self, name), get_args(choices)
            if value not in {None, last, *known}:
                expected = ", ".join(f'"{choice}"' for choice in known)
                raise InvalidInput(f'{name}={value!r}: expected {expected} or "{last}"')
        try:
            # Codecs that do not encode text, such as base64, fail here as well.
            "".encode(self.encoding)
            self._set("encoding", codecs.lookup(self.encoding).name)
        except (LookupError, ValueError):
            raise InvalidInput(f"encoding={self.encoding!r}: Python knows no such encoding of text") from None
        if self.delimiter == r"\t":  # as a shell passes it
            self._set("delimiter", "\t")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n\0'):
            raise InvalidInput(f"delimiter={self.delimiter!r}: expected one character, such as ';'")
        self._set("id_field", self.id_field or None)

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """The columns that the output has only on request."""
        return tuple(name for name in EXTRA_COLUMNS if getattr(self, f"with_{name}"))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


class InputKeywords(TypedDict, total=False):
    """The same as keywords, for type checkers."""

    text_field: str
    id_field: str | None
    format: Format | None
    encoding: str
    delimiter: str | None
    quoting: Quoting
    on_bad_input: OnBadInput
    with_text: bool
    with_source: bool
    retry_rejected: bool


def accepts_input_options(function: Callable[Params, ReturnT]) -> Callable[Params, ReturnT]:
    """Lists the input options in a function's signature, for `help()` and editors, in place of its `**options`.

    A misspelt keyword raises a TypeError that suggests the right one.
    """
    signature, types = inspect.signature(function), get_type_hints(InputOptions)
    parameters: list[Any] = [
        parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD
    ]
    parameters += [
        inspect.Parameter(
            option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=types[option.name]
        )
        for option in dataclasses.fields(InputOptions)
    ]
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined] # read by `inspect`
    return reject_unknown_keywords(function)
