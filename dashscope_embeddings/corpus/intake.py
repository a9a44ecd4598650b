"""A corpus's input: found, checked, and taken into the ledger, on terms that do not change from run to run."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from dashscope_embeddings.corpus import readers
from dashscope_embeddings.corpus.ledger import Ledger
from dashscope_embeddings.corpus.rows import Item
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.vectors import Output

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dashscope_embeddings.client import EmbeddingClient
    from dashscope_embeddings.corpus.readers import Fields, Format, Record, Source
    from dashscope_embeddings.vectors import TextType

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
    inputs: str | Path | Iterable[str | Path], form: Format | None, output: Path, on_bad_input: str
) -> list[Source]:
    """The files to read."""
    if on_bad_input not in get_args(OnBadInput):
        raise InvalidInput(f'on_bad_input={on_bad_input!r}: expected "fail" or "skip"')
    return readers.find([inputs] if isinstance(inputs, (str, Path)) else inputs, form, output=output)


@contextlib.contextmanager
def opened(path: Path | None) -> Iterator[Ledger]:
    """The ledger at a path, for as long as it is needed; None: one for the moment."""
    try:
        ledger = Ledger.open(path)
        try:
            yield ledger
        finally:
            ledger.close()
    except sqlite3.Error as error:
        raise OSError(f"the ledger {path or ''} cannot go on: {error}") from error


# --- taking the input in -----------------------------------------------------------------------------------

_CHUNK = 400
"""Records that go to the ledger at once: SQLite's older versions take 999 values a statement."""
_MOST_NAMED = 20
_WIDEST = 2**63


def take_in(ledger: Ledger, files: list[Source], fields: Fields, *, skip: bool, with_text: bool) -> None:
    """Reads all input into the ledger.

    Raises:
        InvalidInput: names the bad records, up to some; not where they are to be skipped.
    """
    bad: dict[int, str] = {}

    def refuse(seq: int, place: str, record_id: object, reason: str) -> None:
        if skip:
            ledger.note_bad(seq, place, None if record_id is None else str(record_id), reason)
            return
        bad[seq] = f"{place}: {reason}"
        if len(bad) >= _MOST_NAMED:
            raise _bad_input(bad, more=True)

    found = itertools.chain.from_iterable(readers.records(source, fields) for source in files)
    numbered = enumerate(found)
    while chunk := list(itertools.islice(numbered, _CHUNK)):
        items = []
        for seq, record in chunk:
            if (reason := _problem(record, fields)) is None:
                items.append(Item(seq, record.id, record.place, record.text))
            else:
                refuse(seq, record.place, record.id, reason)
        for item, earlier in ledger.add(items, with_text=with_text):
            refuse(item.seq, item.place, item.id, f"has the id {item.id!r}, which {earlier} has already")
    if bad:
        raise _bad_input(bad)


def _problem(record: Record, fields: Fields) -> str | None:
    """What is wrong with a record; how long its text may be is the service's matter."""
    if record.problem is not None:
        return record.problem
    return _text_problem(record.text, fields) or (None if fields.id is None else _id_problem(record.id))


def _text_problem(text: object, fields: Fields) -> str | None:
    if text is None:
        return f"has nothing in the field {fields.text!r}"
    if not isinstance(text, str):
        return f"its text is of type {type(text).__name__}, not a string"
    if not text.strip():
        return "its text is empty or blank, which the service refuses"
    if readers.undecodable(text):
        return "its text holds a lone surrogate, which UTF-8 cannot carry"
    return None


def _id_problem(found: object) -> str | None:
    if isinstance(found, str):
        return None if found.strip() and not readers.undecodable(found) else "its id is blank or cannot be written"
    if isinstance(found, int) and not isinstance(found, bool) and -_WIDEST <= found < _WIDEST:
        return None
    kind = "nothing" if found is None else type(found).__name__
    return f"its id must be a string or a whole number of 64 bits, not {kind}"


def _bad_input(bad: dict[int, str], *, more: bool = False) -> InvalidInput:
    said = [bad[seq] for seq in sorted(bad)]
    also = f" (and {'at least ' if more else ''}{len(said) - 1} more)" if len(said) > 1 else ""
    error = InvalidInput(
        f"{said[0]}{also}; nothing was sent. Mend it, or have such records skipped (on_bad_input, --on-bad-input)"
    )
    error.failed = sorted(bad)
    error.reasons = {seq: bad[seq] for seq in sorted(bad)}
    return error
