"""A corpus from files to vectors: take the input in, ask for what is missing, write the output.

Bad input is found before anything is spent. Each of the three steps can be cut off anywhere and done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus import inputs as corpus_inputs
from dashscope_embeddings.corpus import readers, writers
from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore
from dashscope_embeddings.corpus.embedder import Embedder, Progress, billed_usage
from dashscope_embeddings.corpus.inputs import OnBadInput
from dashscope_embeddings.corpus.readers import Format
from dashscope_embeddings.vectors import Cost, Output, TextType, Usage


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of a corpus."""

    texts: int
    """Usable texts of the input; each has vectors in the output, unless it was rejected."""
    embedded: int
    """Different texts embedded in this run; the others were paid for before, or are equal to these."""
    rejected: int
    """Texts of the input that the service refused."""
    skipped: int
    """Records that were no usable texts."""
    usage: Usage
    """What this run was billed."""
    spent: Usage
    """What all runs into this output were billed."""
    rejects: Path | None
    """Where the rejected and the skipped are named; None: there are none."""
    finished: bool
    """False: it was stopped before all was asked, and there is no new output; the same call goes on."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would ask for; nothing was asked."""

    texts: int
    """Usable texts of the input."""
    pending: int
    """Different texts that would be sent."""
    tokens: int
    """Of those, estimated by a rule of thumb: expect to be a third off."""
    skipped: int
    """Records that are no usable texts."""
    real_time: Cost | None
    """List price of the tokens; None: not known."""
    batch: Cost | None
    """The same through Batch files; None: not known, or not to be had here."""


def embed_corpus(  # noqa: PLR0913 - every one a thing that a corpus may need; keywords but for two
    inputs: str | Path | Iterable[str | Path],
    output: str | Path,
    *,
    client: EmbeddingClient,
    text_field: str = "text",
    id_field: str | None = None,
    format: Format | None = None,  # noqa: A002 - what everybody calls it
    encoding: str = "utf-8",
    text_type: TextType = "document",
    kind: Output = "dense",
    on_bad_input: OnBadInput = "fail",
    with_text: bool = False,
    retry_rejected: bool = False,
    progress: Callable[[Progress], object] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Summary:
    """Embeds all texts of some files into one output; called again after any interruption, it goes on.

    What is paid for is in `{output}.ledger` at once, and is not paid for again: not after a crash, not for
    a text that occurs twice, and not in a later run over a changed input, whose new texts alone are asked.
    After a crash, at most the requests that were in flight are. Keep the ledger as long as the input may
    change; without it, everything is paid for again.

    Args:
        inputs: Files (.txt, .jsonl, .csv, .tsv, .parquet), folders, globs, or "-" for standard input. A file is
            read once; hidden files, and outputs of this package among others, are left out of folders and globs.
        output: A file ending in .parquet, .jsonl or .npy (dense only; ids go to `{output}.ids.jsonl`).
        client: Whom to ask; its model, dimensions and `long_text` count.
        text_field: The field or column that holds the text.
        id_field: The one that holds a unique id, a string or whole number; None: ids are positions among
            the records of the whole input, from 0. Blank lines are no records.
        format: How to read files whatever their ending; needed for standard input.
        encoding: Of text files without a byte order mark.
        text_type: "query" or "document".
        kind: "dense", "sparse" or "dense&sparse".
        on_bad_input: "fail" ends before anything is spent; "skip" names such records in the rejects,
            unless a file as a whole is bad: without the field, with unmatched quotes, or without any text.
        with_text: Whether the output holds the texts too.
        retry_rejected: Ask again for texts that the service refused in earlier runs.
        progress: Called in the caller's thread whenever texts are done.
        stop: Asked before each text; once it says True, no more are sent, and what is in flight is kept.

    Returns:
        What became of it; refused and skipped records are in `{output}.rejects.jsonl`.

    Raises:
        InvalidInput: bad input, with file and line in `reasons`; or an output that these vectors cannot go
            to. Nothing was spent.
        DashScopeError: the service refuses everything, or cannot be reached. The same call goes on later.
        OSError: the disk is full, or the like; the same.
        ImportError: Parquet without pyarrow.
    """
    output = Path(output)
    fields, fingerprint = (
        readers.Fields(text_field, id_field, encoding),
        corpus_inputs.settings_fingerprint(client, text_type, kind, "real-time"),
    )
    sources = corpus_inputs.resolve_inputs(inputs, format, output, on_bad_input)
    writers.validate_output(output, kind)
    with corpus_inputs.open_checkpoint(ledger_beside(output), output) as checkpoint:
        with checkpoint.transaction():
            checkpoint.start_run(fingerprint, retry_rejected=retry_rejected)
            corpus_inputs.load_inputs(
                checkpoint, sources, fields, client.settings, skip_invalid=on_bad_input == "skip", with_text=with_text
            )
        embedder = Embedder(checkpoint, client, text_type, kind, stop)
        embedder.run(progress)
        counts = checkpoint.counts()
        if finished := not counts.pending:
            write_output(checkpoint, output, client, text_type, kind, with_text=with_text)
        return Summary(
            texts=counts.texts,
            embedded=embedder.embedded,
            rejected=counts.rejected,
            skipped=counts.invalid,
            usage=embedder.usage,
            spent=billed_usage(client, *checkpoint.total_billed()),
            rejects=rejects_beside(output) if finished and counts.rejected + counts.invalid else None,
            finished=finished,
        )


def estimate_corpus(  # noqa: PLR0913 - as embed_corpus
    inputs: str | Path | Iterable[str | Path],
    output: str | Path | None = None,
    *,
    client: EmbeddingClient,
    text_field: str = "text",
    id_field: str | None = None,
    format: Format | None = None,  # noqa: A002 - as embed_corpus
    encoding: str = "utf-8",
    text_type: TextType = "document",
    kind: Output = "dense",
    on_bad_input: OnBadInput = "fail",
    retry_rejected: bool = False,
) -> Estimate:
    """Reads and checks the input as `embed_corpus` does, and says what it would cost. Asks nothing, changes nothing.

    Arguments and errors are those of `embed_corpus`. With an `output` whose ledger is there, texts that are
    paid for already do not count.
    """
    output = None if output is None else Path(output)
    checkpoint_path = None if output is None else ledger_beside(output)
    fields = readers.Fields(text_field, id_field, encoding)
    sources = corpus_inputs.resolve_inputs(inputs, format, output, on_bad_input)
    is_temporary = checkpoint_path is None or not checkpoint_path.exists() or not checkpoint_path.stat().st_size
    fingerprint = corpus_inputs.settings_fingerprint(client, text_type, kind, "real-time")
    with (
        corpus_inputs.open_checkpoint(None if is_temporary else checkpoint_path) as checkpoint,
        checkpoint.transaction(commit=False),
    ):
        checkpoint.start_run(fingerprint, retry_rejected=retry_rejected)
        corpus_inputs.load_inputs(
            checkpoint, sources, fields, client.settings, skip_invalid=on_bad_input == "skip", with_text=False
        )
        counts = checkpoint.counts()
    tokens = round(counts.tokens)
    price = client.settings.price
    batch = None
    if price is not None and price.batch is not None:
        batch = Cost(price.batch * tokens / 1_000_000, price.currency)
    real_time = None if price is None else price.of(tokens)
    return Estimate(counts.texts, counts.pending, tokens, counts.invalid, real_time, batch)


# --- the output ---------------------------------------------------------------------------------------------


def write_output(  # noqa: PLR0913 - what a file says of its vectors
    checkpoint: CheckpointStore,
    output: Path,
    client: EmbeddingClient,
    text_type: TextType,
    kind: Output,
    *,
    with_text: bool,
) -> None:
    """Writes all vectors, and names all records that have none."""
    counts = checkpoint.counts()
    width = checkpoint.dimension or client.settings.request_options(text_type, kind).expected_width
    model, rows = client.settings.model.name, counts.texts - counts.rejected
    metadata = writers.OutputMetadata(model, width if "dense" in kind else None, text_type, kind, with_text, rows)
    writers.write(output, checkpoint.rows(), metadata, rejects_beside(output), checkpoint.rejected_records())


def ledger_beside(output: Path) -> Path:
    """Where the ledger of an output is."""
    return output.with_name(f"{output.name}.ledger")


def rejects_beside(output: Path) -> Path:
    """Where records without vectors are named."""
    return output.with_name(f"{output.name}.rejects.jsonl")
