"""The command `embed`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dashscope_embeddings import corpus
from dashscope_embeddings.cli import messages, options
from dashscope_embeddings.cli.common import EXIT_USAGE, exit_on_error, fail, stop_signals
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.vectors import Usage


@options.takes(options.INPUT, options.CLIENT, options.REAL_TIME, options.HOST, options.REQUESTS)
def embed(
    inputs: options.Inputs,
    *,
    output: options.OptionalOutput = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check the input, count, and estimate the price; send nothing. Needs no -o."),
    ] = False,
    **settings: Any,
) -> None:
    """Embed files of texts into one file of vectors.

    After any interruption, the same command continues. The checkpoint
    OUTPUT.ledger keeps what was paid for. It is not paid for again: not after
    a crash, not for equal texts, not in a later run over a changed input.

    Exit codes: 0 all embedded, 1 failed or stopped (run it again to continue),
    2 wrong use or bad input, 3 texts rejected or skipped (OUTPUT.rejects.jsonl).
    """
    if settings["instruct"] and settings["text_type"] != "query":
        fail("--instruct is for queries: add --text-type query, or leave it out", EXIT_USAGE)
    if dry_run:
        with exit_on_error():
            client = EmbeddingClient(**options.take_client_settings(settings), api_key="none-needed-for-a-dry-run")
            messages.print_estimate(corpus.estimate_corpus(inputs, output, client=client, **settings))
        return
    if output is None:
        fail("--output is missing: name the file to write, such as -o vectors.parquet", EXIT_USAGE)
    ledger = corpus.ledger_beside(output)
    with exit_on_error(ledger, f"{ledger} keeps what is paid for"):
        client = EmbeddingClient(**options.take_client_settings(settings))
        stopping = "stopping: a few seconds for what is in flight; again to end at once"
        with stop_signals(stopping, messages.stopped_message(0, Usage())) as stopped:
            summary = corpus.embed_corpus(inputs, output, client=client, progress=True, stop=stopped.is_set, **settings)
        messages.print_summary(summary, output)
