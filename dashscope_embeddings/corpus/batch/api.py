"""Whole corpora at half the price, within a day or days: the service's OpenAI-compatible Batch files.

What is submitted is money: `{output}.ledger` knows every batch before and after each step, so that a job can be cut
off anywhere, closed, and taken up days later on another machine with the ledger alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dashscope_embeddings._runtime.thread_pool import StopEvent
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus import inputs as corpus_inputs
from dashscope_embeddings.corpus.batch.job import BatchOptions, InputOptions, Inputs, ProgressCallback, open_job
from dashscope_embeddings.corpus.batch.store import JobStore
from dashscope_embeddings.corpus.batch.types import BatchEstimate, BatchSummary
from dashscope_embeddings.corpus.inputs import OnBadInput
from dashscope_embeddings.corpus.readers import Format
from dashscope_embeddings.corpus.realtime import ledger_beside
from dashscope_embeddings.errors import InvalidInput


def batch_submit(  # noqa: PLR0913 - every one a thing that a corpus may need; keywords but for two
    inputs: Inputs | None,
    output: str | Path,
    *,
    client: EmbeddingClient,
    text_field: str = "text",
    id_field: str | None = None,
    format: Format | None = None,  # noqa: A002 - what everybody calls it
    encoding: str = "utf-8",
    on_bad_input: OnBadInput = "fail",
    with_text: bool = False,
    retry_rejected: bool = False,
    window: str = "24h",
    name: str | None = None,
    description: str | None = None,
    before: Callable[[BatchEstimate], object] | None = None,
    progress: ProgressCallback | None = None,
    stop: StopEvent | None = None,
) -> BatchSummary:
    """Submits all texts of some files for embedding at half the price; `batch_fetch` brings the vectors.

    Texts that are paid for, or under way, are not submitted again. Which role the service gives to these texts is
    not documented. Batch files for embeddings are documented for Beijing only; their price is half of that of
    real-time requests, without free quota or other discounts
    (https://www.alibabacloud.com/help/en/model-studio/batch-interfaces-compatible-with-openai, seen 2026-11-20).

    Args:
        inputs: As in `embed_corpus`; None: what the ledger holds of the submission before.
        output: A file ending in .parquet, .jsonl or .npy.
        client: Whom to ask, of protocol="openai"; its model, dimensions, `long_text`, and `batch_size` as the
            texts of a line count.
        text_field: As in `embed_corpus`, like the others up to `retry_rejected`.
        id_field: See there.
        format: See there.
        encoding: See there.
        on_bad_input: See there.
        with_text: See there.
        retry_rejected: See there.
        window: How long the service may take: "24h" to "336h", or "1d" to "14d".
        name: For the console, at most 100 characters.
        description: The same, at most 200.
        before: Called with an estimate before anything is sent; what it raises ends the call.
        progress: Called in the caller's thread whenever something happened.
        stop: Once it is set nothing more is sent; what is submitted stays so.

    Raises:
        InvalidInput: bad input, or settings that cannot work. Nothing was sent.
        DashScopeError: the service refuses, or cannot be reached. The same call goes on.
        OSError: the disk is full, or the like; the same.
    """
    input_options = InputOptions(
        inputs, text_field, id_field, format, encoding, on_bad_input, with_text, retry_rejected
    )
    batch_options = BatchOptions(window, name, description)
    with open_job(output, client, input_options, batch_options, before) as runner:
        return runner.run(runner.create_flow(progress).submit_all(), stop)


def batch_run(  # noqa: PLR0913 - as batch_submit
    inputs: Inputs | None,
    output: str | Path,
    *,
    client: EmbeddingClient,
    text_field: str = "text",
    id_field: str | None = None,
    format: Format | None = None,  # noqa: A002 - as batch_submit
    encoding: str = "utf-8",
    on_bad_input: OnBadInput = "fail",
    with_text: bool = False,
    retry_rejected: bool = False,
    window: str = "24h",
    name: str | None = None,
    description: str | None = None,
    poll: float | None = None,
    before: Callable[[BatchEstimate], object] | None = None,
    progress: ProgressCallback | None = None,
    stop: StopEvent | None = None,
) -> BatchSummary:
    """Submits, waits, fetches, and submits what failed once more, until the output is written.

    It may take days. After any interruption the same call goes on; so does `batch_fetch`.

    Arguments and errors are those of `batch_submit`, and `poll`: seconds between two looks; None: from half a
    minute, growing to two.
    """
    if poll is not None and not 0 < poll < float("inf"):
        raise InvalidInput(f"poll={poll!r}: expected seconds, above 0")
    input_options = InputOptions(
        inputs, text_field, id_field, format, encoding, on_bad_input, with_text, retry_rejected
    )
    batch_options = BatchOptions(window, name, description)
    with open_job(output, client, input_options, batch_options, before) as runner:
        return runner.run(runner.create_flow(progress).run(poll), stop)


def batch_fetch(
    output: str | Path,
    *,
    client: EmbeddingClient,
    retry: bool = True,
    progress: ProgressCallback | None = None,
    stop: StopEvent | None = None,
) -> BatchSummary:
    """Brings the vectors of batches that have ended; with the last of them, writes the output.

    Needs the ledger, but not the input.

    Args:
        output: As it was submitted.
        client: Of the same settings: see `batch_client`.
        retry: Whether texts whose lines failed are submitted once more; those of a cancelled batch never are.
        progress: Called in the caller's thread whenever something happened.
        stop: Once it is set nothing more is sent.

    Raises:
        InvalidInput: there is no such job, or the client is another's.
        DashScopeError: the service refuses something, or cannot be reached; what arrived is kept.
    """
    with open_job(output, client) as runner:
        return runner.run(runner.create_flow(progress).fetch(resubmit=retry), stop)


def batch_status(
    output: str | Path, *, client: EmbeddingClient, progress: ProgressCallback | None = None
) -> BatchSummary:
    """Asks how far all batches are; changes, fetches and submits nothing.

    Arguments and errors are those of `batch_fetch`.
    """
    with open_job(output, client) as runner:
        return runner.run(runner.create_flow(progress).status(), None, write=False)


def batch_cancel(
    output: str | Path, *, client: EmbeddingClient, progress: ProgressCallback | None = None
) -> BatchSummary:
    """Stops all batches. What was done by then is billed: `batch_fetch` brings it.

    Of a batch that has ended already, the results are taken in at once; lines whose results the service counts but
    does not give are then free to be submitted, and paid, again.

    Arguments and errors are those of `batch_fetch`.
    """
    with open_job(output, client) as runner:
        return runner.run(runner.create_flow(progress).cancel(), None, write=False)


def batch_client(output: str | Path, **settings: Any) -> EmbeddingClient:
    """A client with the settings of a job that was submitted; the key comes from where it always does.

    Args:
        output: As it was submitted.
        settings: Of `EmbeddingClient`, in place of those that the ledger names. An address that is neither the
            service's nor the emulator's is never taken from a ledger: a key would go where a file says.

    Raises:
        InvalidInput: there is no such job.
    """
    path = ledger_beside(Path(output))
    if not path.exists():
        raise InvalidInput(f"there is no {path}: nothing was submitted for this output")
    with corpus_inputs.open_checkpoint(path) as checkpoint:
        saved_settings = JobStore(checkpoint).get_note("client")
    if saved_settings is None:
        raise InvalidInput(f"{path} knows of no batch: it is that of a job in real time")
    elsewhere = any(settings.get(name) for name in ("base_url", "region", "workspace"))
    known = {
        key: value for key, value in saved_settings.items() if not elsewhere or key not in {"base_url", "workspace"}
    }
    return EmbeddingClient(**{**known, **{key: value for key, value in settings.items() if value is not None}})
