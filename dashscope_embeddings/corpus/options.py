"""The keyword arguments that say how a corpus is read: one definition for all functions that read one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Literal, ParamSpec, TypedDict, TypeVar, cast, get_type_hints

from dashscope_embeddings._core.argument_names import reject_unknown_keywords
from dashscope_embeddings.corpus.sources import Format

Params = ParamSpec("Params")
ReturnT = TypeVar("ReturnT")

OnBadInput = Literal["fail", "skip"]
"""What to do about a record without a usable text."""


class InputOptions(TypedDict, total=False):
    """How the input is read. `embed_corpus` documents each option."""

    text_field: str
    id_field: str | None
    format: Format | None
    encoding: str
    on_bad_input: OnBadInput
    with_text: bool
    retry_rejected: bool


DEFAULTS: InputOptions = {
    "text_field": "text",
    "id_field": None,
    "format": None,
    "encoding": "utf-8",
    "on_bad_input": "fail",
    "with_text": False,
    "retry_rejected": False,
}


def accepts_input_options(function: Callable[Params, ReturnT]) -> Callable[Params, ReturnT]:
    """Lists the input options in a function's signature, for `help()` and editors, in place of its `**options`.

    A misspelt keyword raises a TypeError that suggests the right one.
    """
    parameters = [each for each in inspect.signature(function).parameters.values() if each.kind is not each.VAR_KEYWORD]
    for name, annotation in get_type_hints(InputOptions).items():
        default = cast("dict[str, object]", DEFAULTS)[name]
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined] # a hook of `inspect`
        parameters, return_annotation=inspect.signature(function).return_annotation
    )
    return reject_unknown_keywords(function)
