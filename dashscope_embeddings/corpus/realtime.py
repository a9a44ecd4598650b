"""A corpus through real-time requests: load the input, embed the texts without vectors, write the output.

Bad input is found before anything is spent. Each step may be interrupted anywhere and repeated.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Unpack

from dashscope_embeddings._core.argument_names import check_callback
from dashscope_embeddings._runtime.files import as_path
from dashscope_embeddings.catalogue import priced_usage
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus import inputs as corpus_inputs
from dashscope_embeddings.corpus.checkpoint.rows import Counts
from dashscope_embeddings.corpus.checkpoint.schema import min_row_bytes
from dashscope_embeddings.corpus.embedder import Embedder, Progress
from dashscope_embeddings.corpus.options import InputKeywords, InputOptions, accepts_input_options
from dashscope_embeddings.corpus.progress import show_progress
from dashscope_embeddings.corpus.sources import find_sources, path_beside
from dashscope_embeddings.corpus.writers import (
    MIN_BYTES_PER_NUMBER,
    rejects_beside,
    validate_output,
    write_output,
)
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.vectors import Cost, Output, TextType, Usage, counted

_log = logging.getLogger("dashscope_embeddings.corpus")


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of `embed_corpus`."""

    texts: int
    """Usable texts of the input; each has vectors in the output unless the service rejected it."""
    embedded: int
    """Different texts embedded in this run. Texts paid for in earlier runs, and duplicates, do not count."""
    rejected: int
    """Texts of the input that the service refused."""
    skipped: int
    """Records without a usable text."""
    usage: Usage
    """What this run was billed."""
    spent: Usage
    """What all runs into this output were billed."""
    rejects: Path | None
    """The file that lists rejected texts and skipped records; None: there are none."""
    finished: bool
    """False: `stop` ended the run before all texts were sent, and no output was written; the same call continues."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would send and cost. Nothing was sent for it."""

    texts: int
    """Usable texts of the input."""
    pending: int
    """Different texts that would be sent."""
    tokens: int
    """Tokens of the pending texts."""
    skipped: int
    """Records without a usable text."""
    real_time: Cost | None
    """List price of the tokens; None: unknown."""
    batch: Cost | None
    """The same through Batch files; None: unknown, or not offered for this model."""
    exact: bool = False
    """Whether the model's tokenizer counted; else by a rule of thumb, which may be a third off."""


@accepts_input_options
def embed_corpus(  # noqa: PLR0913 - all but two are keywords with defaults
    inputs: str | Path | Iterable[str | Path],
    output: str | Path,
    *,
    client: EmbeddingClient,
    text_type: TextType = "document",
    kind: Output = "dense",
    progress: Callable[[Progress], object] | bool | None = None,
    stop: Callable[[], bool] | None = None,
    **options: Unpack[InputKeywords],
) -> Summary:
    """Embeds all texts of some files into one output. After any interruption the same call continues.

    Each reply is stored in the checkpoint `{output}.ledger` at once. A stored text is not paid for again: not after a
    crash, not when it occurs twice, and not in a later run over a changed input, which sends only its new texts. A
    crash loses at most the requests in flight. Keep the checkpoint as long as the input may change; without it, all
    texts are paid for again. It contains the texts, so only you may read it (mode 0600). A second file with the ending
    -wal after a crash belongs to it. What is read back is checked; what a disk damaged is paid for again, nothing else.
    A checkpoint that is missing beside a finished output is refused.

    Args:
        inputs: Files (.txt, .jsonl, .csv, .tsv, .parquet, .json), folders, globs, or "-" for standard input. Each
            file is read once. Folders and globs leave out hidden files and outputs of this package, folders .json too.
        output: A file ending in .parquet, .jsonl or .npy (dense only; ids go to `{output}.ids.jsonl`). Columns: `id`,
            `embedding` (float32), `sparse_indices`, `sparse_values`, `text` and `source` on request, `model`,
            `dimension`, `role`.
        client: Sends the requests; its model, dimensions and `long_text` apply.
        text_type: "query" or "document".
        kind: "dense", "sparse" or "dense&sparse".
        progress: Called in the caller's thread after some texts are done; True: a bar on a terminal or in a notebook
            (with tqdm), elsewhere lines on standard error.
        stop: Called once the input is read: before each text, and about four times a second while none is due. If it
            returns True, nothing more is sent but the last texts that were read, and replies in flight are stored:
            they have twice the time of the slowest reply so far, at least 2 seconds. Ctrl-C does the same, without
            those texts, and raises KeyboardInterrupt then.
        **options: How the input is read:
            text_field: Field or column that holds the text; default "text". `data.text` is the field `text` of the
            object or struct `data`.
            id_field: Field or column that holds a unique id, a string or integer, named like `text_field`; None: the
            record's position in the whole input, from 0 (blank lines are not records). Default "auto": the field `id`
            where the records have one; in text files of a folder, path and line, such as "docs/a/b.txt:17"; else the
            position.
            format: Format of all files whatever their endings; required for standard input.
            encoding: Of text files without a byte order mark; default "utf-8".
            delimiter: Character between the fields of CSV and TSV files; None: comma and tab.
            quoting: "none" if a quote in CSV and TSV files is a character like any other; default "standard".
            on_bad_input: "fail" (default) raises before anything is spent. "skip" lists bad records in the rejects
            file, but still raises if a whole file is bad: no such field, unmatched quotes, or no usable text.
            with_text: Whether the output contains the texts; default False.
            with_source: Whether the output names each text's file in a column `source`; default False.
            retry_rejected: Whether to send texts again that the service refused in earlier runs; default False.

    Returns:
        Counts and bill; `{output}.rejects.jsonl` lists rejected texts and skipped records.

    Raises:
        InvalidInput: bad input, with file and line in `reasons`; or the output holds vectors of other settings; or
            the disk has no room for the vectors. Nothing was spent.
        DashScopeError: the service refuses all requests, or cannot be reached. The same call continues later.
        OSError: for example, the disk is full. The same call continues later.
        ImportError: Parquet without pyarrow.
    """
    check_callback("stop", stop)
    output = as_path(output, "output")
    fingerprint = corpus_inputs.settings_fingerprint(client, text_type, kind, "real-time")
    input_options = InputOptions(**options)
    sources = find_sources(inputs, input_options.format, output=output)
    validate_output(output, kind)
    callback = None if isinstance(progress, bool) else progress
    with (
        show_progress(client) if progress is True else contextlib.nullcontext(callback) as report,
        corpus_inputs.open_checkpoint(ledger_beside(output), output) as checkpoint,
    ):
        with checkpoint.transaction():
            corpus_inputs.load_inputs(checkpoint, sources, input_options, client.settings, fingerprint)
            counts = checkpoint.counts()
            _require_disk_space(counts, output, fingerprint["dimension"] if "dense" in kind else 0)
        embedder = Embedder(checkpoint, client, text_type, kind, stop)
        _log.info(_describe(client))
        if progress is True and report is not None:
            report(Progress(0, counts.pending, counts.tokens, 0, embedder.usage))  # shown until the first reply
        embedder.run(counts, report)
        counts = checkpoint.counts()
        if finished := not counts.pending:
            write_output(checkpoint, counts, output, client, text_type, kind, input_options.extra_columns)
        return Summary(
            texts=counts.texts,
            embedded=embedder.embedded,
            rejected=counts.rejected,
            skipped=counts.invalid,
            usage=embedder.usage,
            spent=priced_usage(client.settings.price, *checkpoint.total_billed()),
            rejects=rejects_beside(output) if finished and counts.rejected + counts.invalid else None,
            finished=finished,
        )


def _require_disk_space(counts: Counts, output: Path, width: int | None) -> None:
    """Refuses a run whose dense vectors cannot fit into the checkpoint and the output."""
    disk = shutil.disk_usage(output.absolute().parent)
    needed = counts.pending * min_row_bytes(width or 0)
    needed += (counts.texts - counts.rejected) * (width or 0) * MIN_BYTES_PER_NUMBER[output.suffix.lower()]
    if counts.pending and disk.total and disk.free < needed:  # file systems of a network may report no size at all
        raise InvalidInput(
            f"{output.absolute().parent} has {disk.free / 1e6:,.0f} MB free, and the vectors of "
            f"{counted(counts.pending, 'text')} take at least {needed / 1e6:,.0f} MB there, in the checkpoint and in "
            "the output: make room, or write to another disk; nothing was sent"
        )


def _describe(client: EmbeddingClient) -> str:
    """Where requests go, and what holds where a limit was not given."""
    settings, address = client.settings, client.settings.address
    city = f" ({address.region.city})" if address.region else ""
    limits = {
        "requests a minute": settings.requests_per_minute,
        "tokens a minute": settings.tokens_per_minute,
        "requests in flight": settings.max_concurrency,
    }
    parts = [f"{name}: {value:,g}" for name, value in limits.items() if value is not None]
    if found := [name for name, value in limits.items() if value is None]:
        parts.append(f"found automatically: {', '.join(found)}")
    return f"{settings.model.name} at {address.host}{city}; {'; '.join(parts)}"


@accepts_input_options
def estimate_corpus(
    inputs: str | Path | Iterable[str | Path],
    output: str | Path | None = None,
    *,
    client: EmbeddingClient,
    text_type: TextType = "document",
    kind: Output = "dense",
    **options: Unpack[InputKeywords],
) -> Estimate:
    """Reads and checks the input as `embed_corpus` does, and estimates its cost. Sends and changes nothing.

    Arguments and errors are those of `embed_corpus`. With an `output` that has a checkpoint, texts that are already
    paid for do not count.
    """
    output = None if output is None else as_path(output, "output")
    path = None if output is None else ledger_beside(output)
    input_options = InputOptions(**options)
    sources = find_sources(inputs, input_options.format, output=output)
    fingerprint = corpus_inputs.settings_fingerprint(client, text_type, kind, "real-time")
    is_temporary = path is None or not path.exists() or not path.stat().st_size
    with (
        corpus_inputs.open_checkpoint(None if is_temporary else path) as checkpoint,
        checkpoint.transaction(commit=False),
    ):
        exact = corpus_inputs.count_exactly(checkpoint, client.settings)
        corpus_inputs.load_inputs(checkpoint, sources, input_options, client.settings, fingerprint)
        counts = checkpoint.counts()
    tokens = round(counts.tokens)
    price = client.settings.price
    real_time, batch = (priced_usage(price, 0, 0, tokens, batch=is_batch).cost for is_batch in (False, True))
    return Estimate(counts.texts, counts.pending, tokens, counts.invalid, real_time, batch, exact)


def ledger_beside(output: str | Path) -> Path:
    """The path of an output's checkpoint."""
    return path_beside(output, "ledger")
