"""The public functions that embed a corpus through the service's OpenAI-compatible Batch files.

They cost half of the real-time price and take hours or days. Each step is recorded in the checkpoint `{output}.ledger`
before and after it is taken: a job can be interrupted anywhere and continued days later, on another machine too, with
the checkpoint alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from typing_extensions import Unpack

from dashscope_embeddings._core.client_options import ModelOptions
from dashscope_embeddings._runtime.thread_pool import StopEvent
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus import inputs as corpus_inputs
from dashscope_embeddings.corpus.batch.flow import BatchFlow
from dashscope_embeddings.corpus.batch.job import BatchOptions, Inputs, open_job
from dashscope_embeddings.corpus.batch.types import BatchEstimate, BatchSummary, ProgressCallback
from dashscope_embeddings.corpus.checkpoint.jobs import JobStore
from dashscope_embeddings.corpus.options import InputKeywords, InputOptions, accepts_input_options
from dashscope_embeddings.corpus.realtime import ledger_beside
from dashscope_embeddings.errors import InvalidInput


@accepts_input_options
def batch_submit(  # noqa: PLR0913 - all but two are keywords with defaults
    inputs: Inputs | None,
    output: str | Path,
    *,
    client: EmbeddingClient,
    window: str = "24h",
    name: str | None = None,
    description: str | None = None,
    before: Callable[[BatchEstimate], object] | None = None,
    progress: ProgressCallback | bool | None = None,
    stop: StopEvent | None = None,
    **options: Unpack[InputKeywords],
) -> BatchSummary:
    """Submits all texts of some files for embedding at half the price; `batch_fetch` fetches the vectors.

    Texts that are paid for or under way are not submitted again. The vendor does not document which role (query or
    document) these texts get. Batch files for embeddings are documented for Beijing only; they cost half of the price
    of real-time requests, without free quota or other discounts
    (https://www.alibabacloud.com/help/en/model-studio/batch-interfaces-compatible-with-openai, seen 2026-11-20).

    Args:
        inputs: As in `embed_corpus`; None: the input of the last submission, which the checkpoint holds.
        output: A file ending in .parquet, .jsonl or .npy.
        client: Sends the requests, with protocol="openai"; its model, dimensions and `long_text` apply, and its
            `batch_size` limits the texts per line.
        window: Time that the service may take: "24h" to "336h", or "1d" to "14d".
        name: Shown in the service's console, at most 100 characters.
        description: Shown in the service's console, at most 200 characters.
        before: Called with an estimate before anything is sent; an exception that it raises ends the call.
        progress: Called in the caller's thread after each event; True: a line on standard error for each.
        stop: Once it is set, nothing more is sent, and a request in flight is given up after 2 seconds; submitted
            batches go on.
        **options: How the input is read, as in `embed_corpus`.

    Raises:
        InvalidInput: bad input, or settings that cannot work. Nothing was sent.
        DashScopeError: the service refuses, or cannot be reached. The same call continues.
        OSError: for example, the disk is full. The same call continues.
    """
    batch_options = BatchOptions(window, name, description)
    with open_job(output, client, progress, inputs, InputOptions(**options), batch_options) as job:
        if before is not None:
            before(job.estimate())
        return job.run(BatchFlow(job).submit_all(), stop)


@accepts_input_options
def batch_run(  # noqa: PLR0913 - as batch_submit
    inputs: Inputs | None,
    output: str | Path,
    *,
    client: EmbeddingClient,
    window: str = "24h",
    name: str | None = None,
    description: str | None = None,
    poll: float | None = None,
    before: Callable[[BatchEstimate], object] | None = None,
    progress: ProgressCallback | bool | None = None,
    stop: StopEvent | None = None,
    **options: Unpack[InputKeywords],
) -> BatchSummary:
    """Submits, waits, fetches, and resubmits failed texts until the output is written. This may take days.

    After any interruption, the same call or `batch_fetch` continues. Only texts of failed lines are submitted again, at
    most five times. Results that are incomplete are downloaded again; if they stay so, the batch is kept and an
    error says so: `batch_fetch` tries again, `batch_cancel` gives the missing lines up. If the connection breaks while
    a batch is created and the service does not list it yet, it may be created twice. The files stay at the service
    (10,000 files and 100 GB in an account) until they are deleted in its console.

    Arguments and errors are those of `batch_submit`, and `poll`: seconds between two status requests; None: 30 s at
    first, growing to 120 s; 0.2 s for `base_url="emulator"`.
    """
    if poll is not None and not 0 < poll < float("inf"):
        raise InvalidInput(f"poll={poll!r}: expected seconds, above 0")
    batch_options = BatchOptions(window, name, description)
    with open_job(output, client, progress, inputs, InputOptions(**options), batch_options) as job:
        if before is not None:
            before(job.estimate())
        if poll is None and client.settings.address.is_emulator:
            poll = 0.2  # its batches end at once
        return job.run(BatchFlow(job).run(poll), stop)


def batch_fetch(
    output: str | Path,
    *,
    client: EmbeddingClient,
    retry: bool = True,
    progress: ProgressCallback | bool | None = None,
    stop: StopEvent | None = None,
) -> BatchSummary:
    """Fetches the vectors of batches that have ended; after the last of them, writes the output.

    Needs the checkpoint, but not the input.

    Args:
        output: The output of the submission.
        client: A client with the settings of the submission: see `batch_client`.
        retry: Whether texts of failed lines are submitted again; those of a cancelled batch never are.
        progress: Called in the caller's thread after each event; True: a line on standard error for each.
        stop: Once it is set, nothing more is sent.

    Raises:
        InvalidInput: there is no such job, or the client has other settings.
        DashScopeError: the service refuses a request, or cannot be reached; results that arrived are stored.
    """
    with open_job(output, client, progress) as job:
        return job.run(BatchFlow(job).fetch(resubmit=retry), stop)


def batch_status(
    output: str | Path, *, client: EmbeddingClient, progress: ProgressCallback | bool | None = None
) -> BatchSummary:
    """Requests the status of all batches; fetches, submits and cancels nothing.

    Arguments and errors are those of `batch_fetch`.
    """
    with open_job(output, client, progress) as job:
        return job.run(BatchFlow(job).status(), write=False)


def batch_cancel(
    output: str | Path, *, client: EmbeddingClient, progress: ProgressCallback | bool | None = None
) -> BatchSummary:
    """Cancels all batches. Lines that were processed before are billed: `batch_fetch` fetches their vectors.

    The results of a batch that has already ended are imported at once. Lines that the service counts as done, but
    whose results it does not return, may then be submitted, and paid for, again.

    Arguments and errors are those of `batch_fetch`.
    """
    with open_job(output, client, progress) as job:
        return job.run(BatchFlow(job).cancel(), write=False)


def batch_client(output: str | Path, **settings: Unpack[ModelOptions]) -> EmbeddingClient:
    """A client with the settings of a submitted job; the key comes from the environment as usual.

    Args:
        output: The output of the submission.
        settings: Settings of `EmbeddingClient` that replace those in the checkpoint. An address in the checkpoint is
            used only if it is the service's or the emulator's: a file must not decide where the key is sent.

    Raises:
        InvalidInput: there is no such job.
    """
    path = ledger_beside(output)
    if not path.exists():
        raise InvalidInput(f"there is no {path}: nothing was submitted for this output")
    with corpus_inputs.open_checkpoint(path) as checkpoint:
        saved_settings = JobStore(checkpoint).get_setting("client")
    if saved_settings is None:
        raise InvalidInput(f"{path} contains no batch: it belongs to a real-time job")
    if any(settings.get(name) for name in ("base_url", "region", "workspace")):
        saved_settings = {key: saved_settings[key] for key in saved_settings.keys() - {"base_url", "workspace"}}
    return EmbeddingClient(**{**saved_settings, **{key: value for key, value in settings.items() if value is not None}})
