"""The options of the commands: the type and help text of each, once. Names and defaults are those of the library."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from dashscope_embeddings import corpus
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus.embedder import RUN_AGAIN_HINT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CommandT = TypeVar("CommandT", bound="Callable[..., None]")

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        show_default=False,
        help=".txt (one text per line), .jsonl, .csv, .tsv, .parquet, .json, folders, globs, or - for standard input.",
    ),
]
_OUTPUT = typer.Option("--output", "-o", help="File to write: .parquet, .jsonl or .npy.", show_default=False)
Output = Annotated[Path, _OUTPUT]
OptionalOutput = Annotated[Path | None, _OUTPUT]


def _option(kind: Any, text: str, default: str | bool = True, **constraints: Any) -> Any:  # noqa: FBT001, FBT002 - as typer's
    """An option of this type and help; `default`: how the help shows the default."""
    return Annotated[kind, typer.Option(help=text, show_default=default, **constraints)]


def _flag(name: str, text: str) -> Any:
    return Annotated[bool, typer.Option(f"--{name}", help=text)]


INPUT = {
    "text_field": _option(str, "Field or column that holds the text; data.text is the field text within data."),
    "id_field": _option(
        str, 'Field or column that holds a unique id; "" for the position.', "id, path and line, or position"
    ),
    "format": _option(str | None, "txt, jsonl, json, csv, tsv or parquet.", "by each file's ending"),
    "encoding": _option(str, "Encoding of text files, such as gb18030."),
    "delimiter": _option(str | None, "Between the fields of CSV and TSV.", "comma, tab"),
    "quoting": _option(str, "none: quotes in CSV and TSV are ordinary characters."),
    "on_bad_input": _option(str, "fail: before anything is spent; skip: list the record in OUTPUT.rejects.jsonl."),
    "with_text": _flag("with-text", "Write the texts to the output as well."),
    "with_source": _flag("with-source", "Write the name of each text's file to the output."),
    "retry_rejected": _flag("retry-rejected", "Send texts again that the service refused before."),
}
CLIENT = {
    "model": _option(str, "See the command models."),
    "dimensions": _option(int | None, "Floats in a dense vector.", "the model's", min=1),
    "long_text": _option(str, "error (rejects it), truncate or average."),
}
HOST = {
    "region": _option(str | None, "Such as ap-southeast-1.", "cn-beijing"),
    "workspace": _option(str | None, "Send requests to this workspace's own host.", default=False),
    "base_url": _option(str | None, "Another address; emulator for the offline emulator.", default=False),
}
REQUESTS = {
    "timeout": _option(float, "Seconds of silence until a request is sent again."),
    "max_retries": _option(int, "Further tries after network errors, 5xx and broken replies."),
}
REAL_TIME = {
    "kind": _option(str, "dense, sparse or dense&sparse."),
    "text_type": _option(str, "document or query."),
    "instruct": _option(str | None, "What queries are for, in a sentence.", default=False),
    "protocol": _option(str | None, "native or openai.", "native"),
    "max_concurrency": _option(int | None, "The most requests in flight at once.", "found automatically", min=1),
    "requests_per_minute": _option(float | None, "The account's quota.", "found automatically"),
    "tokens_per_minute": _option(float | None, "The account's quota.", "found automatically"),
}
BATCH = {
    "batch_size": _option(int | None, "Texts per line.", "the model's", min=1),
    "window": _option(str, "Time that the service may take: 24h to 336h, or 1d to 14d."),
    "name": _option(str | None, "Shown in the service's console, at most 100 characters.", default=False),
    "description": _option(str | None, "Shown in the service's console, at most 200 characters.", default=False),
}
_DEFAULTS = {
    name: parameter.default
    for function in (EmbeddingClient, corpus.embed_corpus, corpus.batch_run)
    for name, parameter in inspect.signature(function).parameters.items()
}


def takes(*groups: Mapping[str, Any]) -> Callable[[CommandT], CommandT]:
    """Decorates a command: adds options; the command gets their values as keywords."""

    def add_options(command: CommandT) -> CommandT:
        signature = inspect.signature(command, eval_str=True)
        parameters = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[name], annotation=annotation)
            for group in groups
            for name, annotation in group.items()
        ]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined] # typer reads both
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return add_options


def take_client_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Removes the settings of a client from the options of a command."""
    names = inspect.signature(EmbeddingClient).parameters
    return {name: options.pop(name) for name in list(options) if name in names}


def host_options(settings: Mapping[str, Any]) -> str:
    """The options of `HOST` that were given, for a printed command: without them it asks another host."""
    return "".join(f" --{name.replace('_', '-')} {shlex.quote(settings[name])}" for name in HOST if settings[name])


# --- messages ----------------------------------------------------------------------------------------------

_OPTION_NAMES = {*INPUT, *CLIENT, *HOST, *REQUESTS, *REAL_TIME, *BATCH, "output"}
_OWN_WORDS = {
    "pass api_key=, or set": "set",
    " Ask again for the texts in error.failed; what arrived is in error.partial": "",
    f" {RUN_AGAIN_HINT}": "",
    ": vectors of the others are in error.partial": "",
}
"""What the library says to programmers → the same for people at a command line."""


def in_words_of_commands(message: str) -> str:
    """A message of the library with options in place of arguments: --base-url emulator for `base_url="emulator"`."""
    for theirs, ours in _OWN_WORDS.items():
        message = message.replace(theirs, ours)

    def as_option(match: re.Match[str]) -> str:
        name = match["pair"] or match["name"]
        if name not in _OPTION_NAMES:
            return match[0]
        option = f"--{name.replace('_', '-')}"
        if match["pair"]:
            return f"({match['option'] or option})"
        choices = re.sub(r'"(\S+)"', r"\1", match["choices"])
        return (option if match["value"] is None else f"{option} {match['text'] or match['value']}") + choices

    return re.sub(_ARGUMENT, as_option, message).strip()


_ARGUMENT = r"""(?x)
    \( (?P<pair>[a-z_]+) (?: =None )? (?: ,\s (?P<option>--[^)]*) )? \)   # (encoding, --encoding gbk)
    | (?<![\w'"./-])
      (?P<name> [a-z_]+ (?==) | [a-z]+ _ [a-z_]+ (?![\w'"./:]) )           # base_url="emulator", or base_url alone
      (?: = (?P<value> (?P<quote>['"]) (?P<text>.*?) (?P=quote) | [\w.+-]+ )? )?
      (?P<choices> (?: :\sexpected )? (?: (?: , | \sor )? \s "[\w&]+" )* )            # : expected "query" or "document"
"""
