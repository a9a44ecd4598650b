"""The input of a corpus: checks the records, and loads them into the checkpoint.

All runs into one checkpoint must have the same settings; `settings_fingerprint` lists them.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
from typing import TYPE_CHECKING, Any, Literal, get_args

from dashscope_embeddings._core.text_inputs import text_problem
from dashscope_embeddings._core.text_length import shared_limits
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.corpus.checkpoint.opening import full_disk_hint, translate_error
from dashscope_embeddings.corpus.checkpoint.rows import InputText
from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore
from dashscope_embeddings.corpus.encodings import has_lone_surrogates
from dashscope_embeddings.corpus.options import AUTO
from dashscope_embeddings.corpus.readers import read_records
from dashscope_embeddings.corpus.records import POSITIONS_OPTION
from dashscope_embeddings.errors import DashScopeError, InvalidInput
from dashscope_embeddings.vectors import Output, counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from dashscope_embeddings._core.settings import Settings
    from dashscope_embeddings.corpus.options import InputOptions
    from dashscope_embeddings.corpus.records import Record
    from dashscope_embeddings.corpus.sources import Source
    from dashscope_embeddings.vectors import TextType

_log = logging.getLogger("dashscope_embeddings.corpus")

Route = Literal["real-time", "batch"]
"""How vectors are requested. Whether both routes return the same vectors is not documented."""


def settings_fingerprint(client: EmbeddingClient, text_type: TextType, kind: Output, route: Route) -> dict[str, Any]:
    """The settings that all vectors of one output must share; InvalidInput: the client or the kind is none."""
    if not isinstance(client, EmbeddingClient):
        raise InvalidInput(
            f"client must be an EmbeddingClient, not {type(client).__name__}; an adapter's is its attribute `client`"
        )
    if kind not in get_args(Output):
        raise InvalidInput(f'kind={kind!r}: expected "dense", "sparse" or "dense&sparse"')
    settings = client.settings
    options = settings.request_options(text_type, kind)
    address = settings.address
    return {
        "model": options.model,
        "dimension": options.expected_width,
        "role": text_type,
        "kind": kind,
        "instruct": options.instruct,
        "protocol": options.protocol,
        "route": route,
        "long_text": settings.long_text,
        # All hosts of a region serve the same models. Whether another region or an emulator does is unknown.
        "service": address.region.id if address.region else address.host,
    }


@contextlib.contextmanager
def open_checkpoint(path: Path | None, output: Path | None = None) -> Iterator[CheckpointStore]:
    """Opens the checkpoint at a path for the `with` block; None: a temporary one.

    One that was created here is removed if it stays empty, or if the run fails before any result.

    Raises:
        InvalidInput: the file is not a checkpoint or is damaged, or `output` exists and the checkpoint is new.
        OSError: for example, the disk is full.
    """
    created, is_empty = path is not None and not path.exists(), False
    try:
        with contextlib.closing(CheckpointStore.open(path)) as checkpoint:
            try:
                if output is not None and output.exists() and checkpoint.is_new():
                    problem = "does not" if created else "is empty or was replaced"
                    raise InvalidInput(
                        f"{output} exists, but its checkpoint {path} {problem}: put the checkpoint back, or move all "
                        "of these files away, or write to another output"
                    )
                yield checkpoint
            except DashScopeError:
                is_empty = not checkpoint.has_results()
                raise
            finally:
                is_empty = is_empty or checkpoint.is_new()
    except sqlite3.Error as error:
        raise translate_error(error, path) from error
    except OSError as error:
        if error.strerror and error.filename is not None:
            error.strerror += full_disk_hint(error)
        raise
    finally:
        if path is not None and created and is_empty:
            path.unlink(missing_ok=True)


_RECORDS_PER_INSERT = 400
"""Records per insert. Older versions of SQLite accept at most 999 values per statement."""
_MAX_REPORTED = 20
_INT64_BOUND = 2**63
_LONG_TEXTS_WARNING = (
    "%d texts may be longer than the %d tokens that %s accepts (the first: %s); the service decides. To truncate or "
    "average long texts instead of rejecting them, say so (long_text, --long-text truncate)"
)


class _InputLoader:
    """Loads the input into the checkpoint, file by file, and collects what is wrong with it."""

    def __init__(self, checkpoint: CheckpointStore, options: InputOptions, settings: Settings) -> None:
        self._checkpoint, self._options, self._settings = checkpoint, options, settings
        self._skip_invalid = options.on_bad_input == "skip"
        self._limits = shared_limits(settings.address.host, settings.model)
        self._position = 0
        self._empty_sources: list[Source] = []
        self._long_texts, self._first_long_place = 0, ""
        """Number of texts that may be too long, and the place of the first."""
        self._first_ids: dict[str, Record] = {}
        """Where ids come from, "field", "line" or "position" → the first such record."""
        self._id_hint = f"; or take positions as ids {POSITIONS_OPTION}" if options.id_field == AUTO else ""
        self._invalid: dict[int, str] = {}
        """Position → place and reason, of the records that end the run."""
        self._all_skippable = not self._skip_invalid
        """Whether on_bad_input="skip" would skip all of these."""

    def load(self, source: Source) -> None:
        """Loads one file.

        Raises:
            InvalidInput: there are too many bad records to go on collecting them.
        """
        begin, first, has_usable_text = self._position, "", False
        records = read_records(source, self._options)
        while batch := list(itertools.islice(records, _RECORDS_PER_INSERT)):
            items = []
            for record in batch:
                item = InputText(self._position, record.id, record.place, record.text)
                self._position += 1
                if (reason := self._find_problem(record)) is None:
                    given = "line" if source.format == "txt" else "field"
                    self._first_ids.setdefault("position" if record.id is None else given, record)
                    items.append(item)
                else:
                    first = first or f"{record.place}: {reason}"
                    self._add_invalid(item, reason, affects_whole_file=record.affects_whole_file)
            has_usable_text = has_usable_text or bool(items)
            for item, earlier in self._checkpoint.add_items(items, with_text=self._options.with_text):
                self._add_invalid(
                    item, f"has the id {item.id!r}, which {earlier} has already: correct one of them{self._id_hint}"
                )
        if first and not has_usable_text and self._skip_invalid and begin not in self._invalid:
            self._add_fatal(
                begin, f"{first}; the file contains no usable text ({self._position - begin:,} bad records)"
            )
        if self._position == begin:
            self._empty_sources.append(source)

    def finish(self) -> None:
        """Reports problems of the whole input.

        Raises:
            InvalidInput: there are bad records, or no records at all.
        """
        if self._invalid:
            raise self._invalid_input()
        if self._options.id_field == AUTO:
            self._report_ids()
        if self._empty_sources:
            more = len(self._empty_sources) - 1
            message = f"{self._empty_sources[0]} holds no records" + (
                f" (and {counted(more, 'more file')} neither)" if more else ""
            )
            if not self._position:
                raise InvalidInput(f"{message}: nothing was sent, and no output was written")
            _log.warning(message)
        if self._long_texts:
            limit, model = self._limits.tokens_per_row, self._settings.model.name
            _log.warning(_LONG_TEXTS_WARNING, self._long_texts, limit, model, self._first_long_place)

    def _report_ids(self) -> None:
        field, line, position = map(self._first_ids.get, ("field", "line", "position"))
        if field is not None and position is not None:
            raise InvalidInput(
                f"{field.place} has an id, and {position.place} has none: name the field that holds it everywhere "
                f"(id_field, --id-field), or take positions as ids {POSITIONS_OPTION}; nothing was sent"
            )
        if field is not None:
            _log.info('ids are taken from the field "id"; to take positions, switch it off %s', POSITIONS_OPTION)
        if line is not None:
            message = "ids of text files in folders are path and line, such as %s; to take positions, switch it off %s"
            _log.info(message, line.id, POSITIONS_OPTION)

    def _add_invalid(self, item: InputText, reason: str, *, affects_whole_file: bool = False) -> None:
        if self._skip_invalid and not affects_whole_file:
            # The id itself may be invalid, for example contain a lone surrogate.
            id_text = None if item.id is None else str(item.id).encode(errors="backslashreplace").decode()
            self._checkpoint.add_invalid(item.position, item.place, id_text, reason)
            return
        self._all_skippable = self._all_skippable and not affects_whole_file
        self._add_fatal(item.position, f"{item.place}: {reason}")

    def _add_fatal(self, position: int, message: str) -> None:
        self._invalid[position] = message
        if len(self._invalid) >= _MAX_REPORTED:
            raise self._invalid_input()

    def _invalid_input(self) -> InvalidInput:
        error = InvalidInput("")
        error.reasons = dict(sorted(self._invalid.items()))
        error.failed = list(error.reasons)
        first, *others = error.reasons.values()
        at_least = "at least " if len(self._invalid) >= _MAX_REPORTED else ""
        more = f" (and {at_least}{len(others)} more)" if others else ""
        advice = (
            "Correct it, or skip such records"
            if self._all_skippable
            else ("Correct the file, or leave it out: only single records are skipped")
        )
        error.message = f"{first}{more}; nothing was sent. {advice} (on_bad_input, --on-bad-input skip)"
        return error

    def _find_problem(self, record: Record) -> str | None:
        """What is wrong with a record; None: nothing."""
        if record.problem is not None:
            return record.problem
        if record.text is None:
            return f"has nothing in the field {self._options.text_field!r}: leave the record out, or fill it"
        if (message := text_problem(record.text, self._limits, self._settings.long_text)) is not None:
            return f"its text {message}"
        if self._settings.long_text == "error" and self._limits.probably_too_long(record.text):
            self._first_long_place = self._first_long_place or record.place
            self._long_texts += 1
        if record.id is None and self._options.id_field in {None, AUTO}:
            return None
        problem = _id_problem(record.id)
        return problem and f"{problem}{self._id_hint}"


def count_exactly(checkpoint: CheckpointStore, settings: Settings) -> bool:
    """Has the tokenizer count the tokens of a new checkpoint's texts; returns whether their sum will be exact."""
    if not checkpoint.is_new():
        return False  # its texts were counted by a rule of thumb, or are paid for in part
    limits = shared_limits(settings.address.host, settings.model)
    checkpoint.count_tokens = limits.count
    # A long text that is cut has another number of tokens than the whole.
    return limits.counts_exactly and settings.long_text == "error"


def load_inputs(
    checkpoint: CheckpointStore,
    sources: Iterable[Source],
    options: InputOptions,
    settings: Settings,
    fingerprint: dict[str, Any],
) -> None:
    """Starts a run and reads all input into the checkpoint.

    Raises:
        InvalidInput: the vectors in the checkpoint have other settings. Or there are bad records, of which it names the
            first ones; with on_bad_input="skip", only problems that would lose more than one record: a file without
            any usable text, without the field, or with unmatched quotes.
    """
    checkpoint.start_run(fingerprint, retry_rejected=options.retry_rejected)
    loader = _InputLoader(checkpoint, options, settings)
    for source in sources:
        loader.load(source)
    loader.finish()
    if damaged := checkpoint.damaged_texts:
        _log.warning("the vectors of %d texts are damaged in the checkpoint: these texts are sent again", damaged)


def _id_problem(record_id: object) -> str | None:
    if isinstance(record_id, str):
        is_valid = record_id.strip() and not has_lone_surrogates(record_id)
        return None if is_valid else "its id is blank or cannot be written"
    if isinstance(record_id, int) and not isinstance(record_id, bool):
        is_valid = -_INT64_BOUND <= record_id < _INT64_BOUND
        return None if is_valid else "its id is a number of more than 64 bits: write it as a string"
    kind = "nothing" if record_id is None else type(record_id).__name__
    return f"its id must be a string or a whole number of 64 bits, not {kind}"
