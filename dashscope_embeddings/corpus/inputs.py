"""A corpus's input: found, checked, and taken into the ledger, on terms that do not change from run to run."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from dashscope_embeddings._core.text_inputs import text_problem
from dashscope_embeddings._core.text_length import shared_limits
from dashscope_embeddings.corpus import readers
from dashscope_embeddings.corpus.checkpoint.opening import translate_error
from dashscope_embeddings.corpus.checkpoint.rows import InputText
from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore
from dashscope_embeddings.corpus.sources import find_sources
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.vectors import Output

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dashscope_embeddings._core.settings import Settings
    from dashscope_embeddings.client import EmbeddingClient
    from dashscope_embeddings.corpus.readers import Fields, Format, Record, Source
    from dashscope_embeddings.vectors import TextType

_log = logging.getLogger("dashscope_embeddings")

OnBadInput = Literal["fail", "skip"]
"""What to do about a record that holds no usable text."""

Route = Literal["real-time", "batch"]
"""Which way vectors came: it is not known whether both ways give the same ones."""


# --- what a run agrees on ----------------------------------------------------------------------------------


def settings_fingerprint(client: EmbeddingClient, text_type: TextType, kind: Output, route: Route) -> dict[str, Any]:
    """What two vectors must have in common to stand in one output."""
    if kind not in get_args(Output):
        raise InvalidInput(f'kind={kind!r}: expected "dense", "sparse" or "dense&sparse"')
    settings = client.settings
    options = settings.request_options(text_type, kind)
    place = settings.address
    return {
        "model": options.model,
        "dimension": options.expected_width,
        "role": text_type,
        "kind": kind,
        "instruct": options.instruct,
        "protocol": options.protocol,
        "route": route,
        "long_text": settings.long_text,
        # A region's hosts serve the same models; of another region, or an emulator, that is not known.
        "service": place.region.id if place.region else place.host,
    }


def resolve_inputs(
    inputs: str | Path | Iterable[str | Path], file_format: Format | None, output: Path | None, on_bad_input: str
) -> list[Source]:
    """The files to read."""
    if on_bad_input not in get_args(OnBadInput):
        raise InvalidInput(f'on_bad_input={on_bad_input!r}: expected "fail" or "skip"')
    return find_sources([inputs] if isinstance(inputs, (str, Path)) else inputs, file_format, output=output)


@contextlib.contextmanager
def open_checkpoint(path: Path | None, output: Path | None = None) -> Iterator[CheckpointStore]:
    """The ledger at a path, for as long as it is needed; None: one for the moment.

    Raises:
        InvalidInput: the ledger is none, is damaged, or knows nothing of the `output` that is there.
        OSError: the disk is full, or the like.
    """
    check_output(path, output)
    try:
        checkpoint = CheckpointStore.open(path)
        try:
            if output is not None and output.exists() and checkpoint.is_new():
                raise InvalidInput(_CHECKPOINT_MISMATCH.format(output=output, checkpoint=path))
            yield checkpoint
        finally:
            checkpoint.close()
    except sqlite3.Error as error:
        raise translate_error(error, path) from error


def check_output(path: Path | None, output: Path | None) -> None:
    """Raises InvalidInput for an output without its ledger, or with an empty file in its place."""
    if path is None or output is None or not output.exists():
        return
    if not path.exists():
        raise InvalidInput(f"{output} is there, but not its ledger: move it away, or write to another output")
    if path.is_file() and not path.stat().st_size:
        raise InvalidInput(_CHECKPOINT_MISMATCH.format(output=output, checkpoint=path))


_CHECKPOINT_MISMATCH = (
    "{output} is there, but its ledger {checkpoint} is empty or was replaced: put the ledger back, or move all of them "
    "away, or write to another output"
)


# --- taking the input in -----------------------------------------------------------------------------------

_RECORDS_PER_INSERT = 400
"""Records that go to the ledger at once: SQLite's older versions take 999 values a statement."""
_MAX_REPORTED = 20
_INT64_BOUND = 2**63
_LONG_TEXTS_WARNING = (
    "%d texts may be longer than the %d tokens that %s takes (the first: %s); the service decides. To have long texts "
    "cut or averaged instead of rejected: long_text, --long-text truncate or average"
)


class _InputLoader:
    """All input on its way into the ledger."""

    def __init__(
        self, checkpoint: CheckpointStore, fields: Fields, settings: Settings, *, skip_invalid: bool, with_text: bool
    ) -> None:
        self._checkpoint, self._fields, self._skip_invalid, self._with_text = (
            checkpoint,
            fields,
            skip_invalid,
            with_text,
        )
        self._limits = shared_limits(settings.address.host, settings.model)
        self._settings = settings
        self._position = 0
        self._empty_sources: list[Source] = []
        self._long_texts, self._first_long_place = 0, ""
        """Texts that may be too long, and the place of the first."""
        self.invalid: dict[int, str] = {}
        """Position → place and reason, of what ends the run."""
        self.all_skippable = not skip_invalid
        """Whether all of that could be skipped."""

    def load(self, source: Source) -> None:
        """One file.

        Raises:
            InvalidInput: many bad records.
        """
        begin, first, has_usable_text = self._position, "", False
        found = readers.read_records(source, self._fields)
        while batch := list(itertools.islice(found, _RECORDS_PER_INSERT)):
            items = []
            for record in batch:
                reason = self._find_problem(record)
                if reason is None:
                    items.append(InputText(self._position, record.id, record.place, record.text))
                else:
                    first = first or f"{record.place}: {reason}"
                    self._add_invalid(
                        self._position, record.place, record.id, reason, affects_whole_file=record.affects_whole_file
                    )
                self._position += 1
            has_usable_text = has_usable_text or bool(items)
            for item, earlier in self._checkpoint.add_items(items, with_text=self._with_text):
                message = f"has the id {item.id!r}, which {earlier} has already"
                self._add_invalid(item.position, item.place, item.id, message)
        if first and not has_usable_text and self._skip_invalid and begin not in self.invalid:
            self._add_fatal(begin, f"{first}; the file gives no text at all ({self._position - begin:,} such records)")
        if self._position == begin:
            self._empty_sources.append(source)

    def finish(self) -> None:
        """Says what is remarkable about the whole input.

        Raises:
            InvalidInput: bad records, or no records at all.
        """
        if self.invalid:
            raise _invalid_input(self.invalid, all_skippable=self.all_skippable)
        if self._empty_sources:
            more = len(self._empty_sources) - 1
            message = f"{self._empty_sources[0]} holds no records" + (f" (nor do {more:,} more files)" if more else "")
            if not self._position:
                raise InvalidInput(f"{message}: nothing was sent, and nothing was written")
            _log.warning(message)
        if self._long_texts:
            _log.warning(
                _LONG_TEXTS_WARNING,
                self._long_texts,
                self._limits.tokens_per_row,
                self._settings.model.name,
                self._first_long_place,
            )

    def _add_invalid(
        self, position: int, place: str, record_id: object, reason: str, *, affects_whole_file: bool = False
    ) -> None:
        if self._skip_invalid and not affects_whole_file:
            # An id may be what is bad about a record.
            named = None if record_id is None else str(record_id).encode(errors="backslashreplace").decode()
            self._checkpoint.add_invalid(position, place, named, reason)
            return
        self.all_skippable = self.all_skippable and not affects_whole_file
        self._add_fatal(position, f"{place}: {reason}")

    def _add_fatal(self, position: int, message: str) -> None:
        self.invalid[position] = message
        if len(self.invalid) >= _MAX_REPORTED:
            raise _invalid_input(self.invalid, all_skippable=self.all_skippable, is_truncated=True)

    def _find_problem(self, record: Record) -> str | None:
        """What is wrong with a record."""
        if record.problem is not None:
            return record.problem
        if record.text is None:
            return f"has nothing in the field {self._fields.text!r}: leave the record out, or fill it"
        if (message := text_problem(record.text, self._limits, self._settings.long_text)) is not None:
            return f"its text {message}"
        if self._settings.long_text == "error" and self._limits.probably_too_long(record.text):
            self._first_long_place = self._first_long_place or record.place
            self._long_texts += 1
        return None if self._fields.id is None else _id_problem(record.id)


def load_inputs(  # noqa: PLR0913 - what a run is told of its input
    checkpoint: CheckpointStore,
    sources: list[Source],
    fields: Fields,
    settings: Settings,
    *,
    skip_invalid: bool,
    with_text: bool,
) -> None:
    """Reads all input into the ledger.

    Raises:
        InvalidInput: names the bad records, up to some; where they are to be skipped, only what would lose more than
            a record: a file that gives no text at all, that lacks a field, or whose quotes do not match.
    """
    loader = _InputLoader(checkpoint, fields, settings, skip_invalid=skip_invalid, with_text=with_text)
    for source in sources:
        loader.load(source)
    loader.finish()
    if checkpoint.damaged_texts:
        _log.warning(
            "the vectors of %d texts are damaged in the ledger or its file of vectors: these texts are asked for again",
            checkpoint.damaged_texts,
        )


def _id_problem(found: object) -> str | None:
    if isinstance(found, str):
        return (
            None if found.strip() and not readers.has_lone_surrogates(found) else "its id is blank or cannot be written"
        )
    if isinstance(found, int) and not isinstance(found, bool):
        return (
            None
            if -_INT64_BOUND <= found < _INT64_BOUND
            else "its id is a number of more than 64 bits: write it as a string"
        )
    kind = "nothing" if found is None else type(found).__name__
    return f"its id must be a string or a whole number of 64 bits, not {kind}"


def _invalid_input(reasons: dict[int, str], *, all_skippable: bool, is_truncated: bool = False) -> InvalidInput:
    message = [reasons[seq] for seq in sorted(reasons)]
    also = f" (and {'at least ' if is_truncated else ''}{len(message) - 1} more)" if len(message) > 1 else ""
    advice = (
        "Mend it, or have such records skipped (on_bad_input, --on-bad-input skip)"
        if all_skippable
        else "Mend the file, or leave it out: only single records are skipped (on_bad_input, --on-bad-input skip)"
    )
    error = InvalidInput(f"{message[0]}{also}; nothing was sent. {advice}")
    error.failed = sorted(reasons)
    error.reasons = {seq: reasons[seq] for seq in sorted(reasons)}
    return error
