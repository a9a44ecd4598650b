"""A corpus's input: found, checked, and taken into the ledger, on terms that do not change from run to run."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from dashscope_embeddings._core.text_inputs import complaint
from dashscope_embeddings._core.text_length import limits_of
from dashscope_embeddings.corpus import readers
from dashscope_embeddings.corpus.checkpoint.opening import explained
from dashscope_embeddings.corpus.checkpoint.rows import Item
from dashscope_embeddings.corpus.checkpoint.store import Ledger
from dashscope_embeddings.corpus.sources import find
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


def terms(client: EmbeddingClient, text_type: TextType, kind: Output, route: Route) -> dict[str, Any]:
    """What two vectors must have in common to stand in one output."""
    if kind not in get_args(Output):
        raise InvalidInput(f'kind={kind!r}: expected "dense", "sparse" or "dense&sparse"')
    settings = client.settings
    ask = settings.ask(text_type, kind)
    place = settings.address
    return {
        "model": ask.model,
        "dimension": ask.width,
        "role": text_type,
        "kind": kind,
        "instruct": ask.instruct,
        "protocol": ask.protocol,
        "route": route,
        "long_text": settings.long_text,
        # A region's hosts serve the same models; of another region, or an emulator, that is not known.
        "service": place.region.id if place.region else place.host,
    }


def sources(
    inputs: str | Path | Iterable[str | Path], form: Format | None, output: Path | None, on_bad_input: str
) -> list[Source]:
    """The files to read."""
    if on_bad_input not in get_args(OnBadInput):
        raise InvalidInput(f'on_bad_input={on_bad_input!r}: expected "fail" or "skip"')
    return find([inputs] if isinstance(inputs, (str, Path)) else inputs, form, output=output)


@contextlib.contextmanager
def opened(path: Path | None, output: Path | None = None) -> Iterator[Ledger]:
    """The ledger at a path, for as long as it is needed; None: one for the moment.

    Raises:
        InvalidInput: the ledger is none, is damaged, or knows nothing of the `output` that is there.
        OSError: the disk is full, or the like.
    """
    check_output(path, output)
    try:
        ledger = Ledger.open(path)
        try:
            if output is not None and output.exists() and ledger.is_new():
                raise InvalidInput(_UNKNOWN.format(output=output, ledger=path))
            yield ledger
        finally:
            ledger.close()
    except sqlite3.Error as error:
        raise explained(error, path) from error


def check_output(path: Path | None, output: Path | None) -> None:
    """Raises InvalidInput for an output without its ledger, or with an empty file in its place."""
    if path is None or output is None or not output.exists():
        return
    if not path.exists():
        raise InvalidInput(f"{output} is there, but not its ledger: move it away, or write to another output")
    if path.is_file() and not path.stat().st_size:
        raise InvalidInput(_UNKNOWN.format(output=output, ledger=path))


_UNKNOWN = (
    "{output} is there, but its ledger {ledger} is empty or was replaced: put the ledger back, or move all of them "
    "away, or write to another output"
)


# --- taking the input in -----------------------------------------------------------------------------------

_CHUNK = 400
"""Records that go to the ledger at once: SQLite's older versions take 999 values a statement."""
_MOST_NAMED = 20
_WIDEST = 2**63
_LONG = (
    "%d texts may be longer than the %d tokens that %s takes (the first: %s); the service decides. To have long texts "
    "cut or averaged instead of rejected: long_text, --long-text truncate or average"
)


class _Taking:
    """All input on its way into the ledger."""

    def __init__(self, ledger: Ledger, fields: Fields, settings: Settings, *, skip: bool, with_text: bool) -> None:
        self._ledger, self._fields, self._skip, self._with_text = ledger, fields, skip, with_text
        self._limits = limits_of(settings.address.host, settings.model)
        self._settings = settings
        self._seq = 0
        self._empty: list[Source] = []
        self._long, self._first_long = 0, ""
        """Texts that may be too long, and the place of the first."""
        self.bad: dict[int, str] = {}
        """Position → place and reason, of what ends the run."""
        self.skippable = not skip
        """Whether all of that could be skipped."""

    def take(self, source: Source) -> None:
        """One file.

        Raises:
            InvalidInput: many bad records.
        """
        begin, first, usable = self._seq, "", False
        found = readers.records(source, self._fields)
        while chunk := list(itertools.islice(found, _CHUNK)):
            items = []
            for record in chunk:
                reason = self._problem(record)
                if reason is None:
                    items.append(Item(self._seq, record.id, record.place, record.text))
                else:
                    first = first or f"{record.place}: {reason}"
                    self._refuse(self._seq, record.place, record.id, reason, whole=record.whole)
                self._seq += 1
            usable = usable or bool(items)
            for item, earlier in self._ledger.add(items, with_text=self._with_text):
                said = f"has the id {item.id!r}, which {earlier} has already"
                self._refuse(item.seq, item.place, item.id, said)
        if first and not usable and self._skip and begin not in self.bad:
            self._stop(begin, f"{first}; the file gives no text at all ({self._seq - begin:,} such records)")
        if self._seq == begin:
            self._empty.append(source)

    def end(self) -> None:
        """Says what is remarkable about the whole input.

        Raises:
            InvalidInput: bad records, or no records at all.
        """
        if self.bad:
            raise _bad_input(self.bad, skippable=self.skippable)
        if self._empty:
            more = len(self._empty) - 1
            said = f"{self._empty[0]} holds no records" + (f" (nor do {more:,} more files)" if more else "")
            if not self._seq:
                raise InvalidInput(f"{said}: nothing was sent, and nothing was written")
            _log.warning(said)
        if self._long:
            _log.warning(_LONG, self._long, self._limits.tokens_per_row, self._settings.model.name, self._first_long)

    def _refuse(self, seq: int, place: str, record_id: object, reason: str, *, whole: bool = False) -> None:
        if self._skip and not whole:
            # An id may be what is bad about a record.
            named = None if record_id is None else str(record_id).encode(errors="backslashreplace").decode()
            self._ledger.note_bad(seq, place, named, reason)
            return
        self.skippable = self.skippable and not whole
        self._stop(seq, f"{place}: {reason}")

    def _stop(self, seq: int, said: str) -> None:
        self.bad[seq] = said
        if len(self.bad) >= _MOST_NAMED:
            raise _bad_input(self.bad, skippable=self.skippable, more=True)

    def _problem(self, record: Record) -> str | None:
        """What is wrong with a record."""
        if record.problem is not None:
            return record.problem
        if record.text is None:
            return f"has nothing in the field {self._fields.text!r}: leave the record out, or fill it"
        if (said := complaint(record.text, self._limits, self._settings.long_text)) is not None:
            return f"its text {said}"
        if self._settings.long_text == "error" and self._limits.perhaps_too_long(record.text):
            self._first_long = self._first_long or record.place
            self._long += 1
        return None if self._fields.id is None else _id_problem(record.id)


def take_in(  # noqa: PLR0913 - what a run is told of its input
    ledger: Ledger, files: list[Source], fields: Fields, settings: Settings, *, skip: bool, with_text: bool
) -> None:
    """Reads all input into the ledger.

    Raises:
        InvalidInput: names the bad records, up to some; where they are to be skipped, only what would lose more than
            a record: a file that gives no text at all, that lacks a field, or whose quotes do not match.
    """
    taking = _Taking(ledger, fields, settings, skip=skip, with_text=with_text)
    for source in files:
        taking.take(source)
    taking.end()
    if ledger.damaged:
        _log.warning(
            "the vectors of %d texts are damaged in the ledger or its file of vectors: these texts are asked for again",
            ledger.damaged,
        )


def _id_problem(found: object) -> str | None:
    if isinstance(found, str):
        return None if found.strip() and not readers.undecodable(found) else "its id is blank or cannot be written"
    if isinstance(found, int) and not isinstance(found, bool):
        return None if -_WIDEST <= found < _WIDEST else "its id is a number of more than 64 bits: write it as a string"
    kind = "nothing" if found is None else type(found).__name__
    return f"its id must be a string or a whole number of 64 bits, not {kind}"


def _bad_input(bad: dict[int, str], *, skippable: bool, more: bool = False) -> InvalidInput:
    said = [bad[seq] for seq in sorted(bad)]
    also = f" (and {'at least ' if more else ''}{len(said) - 1} more)" if len(said) > 1 else ""
    advice = (
        "Mend it, or have such records skipped (on_bad_input, --on-bad-input skip)"
        if skippable
        else "Mend the file, or leave it out: only single records are skipped (on_bad_input, --on-bad-input skip)"
    )
    error = InvalidInput(f"{said[0]}{also}; nothing was sent. {advice}")
    error.failed = sorted(bad)
    error.reasons = {seq: bad[seq] for seq in sorted(bad)}
    return error
