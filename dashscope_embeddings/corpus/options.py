"""The keyword arguments that say how a corpus is read: one definition for all functions that read one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Literal, ParamSpec, TypedDict, TypeVar, get_type_hints

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
    signature, types = inspect.signature(function), get_type_hints(InputOptions)
    parameters = [
        parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD
    ]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name])
        for name, default in DEFAULTS.items()
    ]
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined] # read by `inspect`
    return reject_unknown_keywords(function)
