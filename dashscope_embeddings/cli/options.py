"""Arguments and options that several commands share: their types, help texts, and the names that the library uses."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus.options import DEFAULTS

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        show_default=False,
        help=".txt (one text per line), .jsonl, .csv, .tsv, .parquet, folders, globs, or - for standard input.",
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="File to write: .parquet, .jsonl or .npy.", show_default=False)
]
TextField = Annotated[str, typer.Option(help="Field or column that holds the text.")]
IdField = Annotated[
    str | None, typer.Option(help="Field or column that holds a unique id.", show_default="position in the input")
]
Format = Annotated[
    str | None,
    typer.Option("--format", help="txt, jsonl, csv, tsv or parquet.", show_default="by each file's ending"),
]
Encoding = Annotated[str, typer.Option(help="Encoding of text files, such as gb18030.")]
OnBadInput = Annotated[
    str, typer.Option(help="fail: before anything is spent; skip: list the record in OUTPUT.rejects.jsonl.")
]
WithText = Annotated[bool, typer.Option("--with-text", help="Write the texts to the output as well.")]
RetryRejected = Annotated[
    bool, typer.Option("--retry-rejected", help="Send texts again that the service refused before.")
]
Model = Annotated[str, typer.Option(help="See the command models.")]
Dimensions = Annotated[int | None, typer.Option(min=1, show_default="the model's", help="Floats in a dense vector.")]
LongText = Annotated[str, typer.Option(help="error (rejects it), truncate or average.")]
Workspace = Annotated[str | None, typer.Option(help="Send requests to this workspace's own host.")]
BaseUrl = Annotated[str | None, typer.Option(help="Another address; emulator for the offline emulator.")]


def input_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a command that say how the input is read."""
    return {name: arguments[name] for name in DEFAULTS}


def client_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a command that are settings of the client."""
    return {name: arguments[name] for name in inspect.signature(EmbeddingClient).parameters if name in arguments}
