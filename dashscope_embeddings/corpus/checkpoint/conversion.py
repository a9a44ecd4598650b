"""Converts a checkpoint of version 1, which release 0.1.0 wrote, in one transaction.

That version kept dense vectors in a file of their own, `{checkpoint}-vectors`, with a checksum for each reply. A text
was linked to its reply and to a slot in it. Parts of long texts had negative numbers.
"""

from __future__ import annotations

import array
import itertools
import json
import zlib
from typing import IO, TYPE_CHECKING

from dashscope_embeddings._core.text_length import estimate_tokens
from dashscope_embeddings.corpus.checkpoint import checksums
from dashscope_embeddings.corpus.checkpoint.rows import PackedVectors
from dashscope_embeddings.corpus.checkpoint.schema import create_tables
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

    from dashscope_embeddings.corpus.checkpoint.database import Database

OLD_VERSION = 1
_OLD_TABLES = ("terms", "texts", "replies", "indexed", "rejects", "items", "bad", "pending")
_OLD_BATCH_TABLES = ("batch_notes", "batch_lines", "batch_out", "batch_tries", "batch_pieces", "old_batches")


def _vectors_path(checkpoint_path: Path) -> Path:
    return checkpoint_path.with_name(f"{checkpoint_path.name}-vectors")


def check_no_vectors(path: Path | None) -> None:
    """Raises InvalidInput if vectors of version 1 are beside a checkpoint that does not exist or is empty."""
    if path is not None and _vectors_path(path).exists() and _vectors_path(path).stat().st_size:
        raise InvalidInput(
            f"{_vectors_path(path)} exists, but its checkpoint does not: put {path} back, or delete both, and the "
            "output, to pay for all texts again"
        )


def remove_vectors(path: Path | None) -> None:
    """Deletes the vectors of version 1, after they were converted."""
    if path is not None:
        _vectors_path(path).unlink(missing_ok=True)


def convert(database: Database) -> None:
    """Writes all that version 1 recorded into the tables of this version.

    Raises:
        InvalidInput: the file of vectors is missing, or belongs to another checkpoint.
    """
    tables = {name for (name,) in database.fetch_all("SELECT name FROM sqlite_master WHERE type = 'table'")}
    has_dense = database.fetch_value("SELECT count(dense_at) FROM replies")
    if "batches" in tables:
        database.fetch_all("ALTER TABLE batches RENAME TO old_batches")
    create_tables(database.connection)
    _convert_input(database)
    if has_dense and database.path is not None:
        path = _vectors_path(database.path)
        advice = f"put it back beside {database.path}, or delete both, and the output, to pay for all texts again"
        if not path.exists():
            raise InvalidInput(f"{path} is missing: {advice}")
        with path.open("rb") as file:
            _convert_replies(database, file)
        if not database.fetch_value("SELECT count(*) FROM vectors"):
            raise InvalidInput(f"{path} is not the file of the last run: {advice}")
    else:
        _convert_replies(database, None)
    if "batches" in tables:
        _convert_batches(database)
    for table in (*_OLD_TABLES, *_OLD_BATCH_TABLES):
        database.fetch_all(f"DROP TABLE IF EXISTS {table}")


def _convert_input(database: Database) -> None:
    fetch_all = database.fetch_all
    try:
        terms = {name: json.loads(value) for name, value in fetch_all("SELECT name, value FROM terms")}
    except (TypeError, ValueError) as error:
        raise checksums.damage_error(database.path, "a setting cannot be read") from error
    if terms:
        database.set_setting("fingerprint", terms)
    fetch_all(
        "INSERT INTO units (unit, hash, tokens, text, reason, code, request_id) "
        "SELECT texts.key, hash, coalesce(tokens, 0), text, reason, code, request_id FROM texts "
        "LEFT JOIN pending ON pending.key = texts.key LEFT JOIN rejects ON rejects.key = texts.key AND texts.reply = -1"
    )
    texts = fetch_all("SELECT text, key FROM items WHERE text IS NOT NULL")
    database.execute_many("UPDATE units SET text = ? WHERE unit = ?", texts)
    records = fetch_all("SELECT seq, id, place, items.key, hash FROM items LEFT JOIN texts USING (key)")
    rows = ((*record, unit, checksums.row_checksum(*record, digest)) for *record, unit, digest in records)
    database.execute_many("INSERT INTO records (position, id, place, unit, sum) VALUES (?, ?, ?, ?, ?)", rows)
    fetch_all("INSERT INTO skipped SELECT seq, id, place, reason FROM bad")
    fetch_all(
        "UPDATE checkpoint SET records = (SELECT count(*) FROM items) + (SELECT count(*) FROM bad), "
        "units = (SELECT coalesce(max(unit), 0) FROM units), requests = (SELECT total(requests) FROM replies), "
        "texts = (SELECT total(texts) FROM replies), tokens = (SELECT total(tokens) FROM replies)"
    )


def _convert_replies(database: Database, file: IO[bytes] | None) -> None:
    """Stores the vectors of all replies that are intact."""
    hashes = dict(database.fetch_all("SELECT unit, hash FROM units"))
    for packed_keys, at, size, dense_sum, counts, indices, values in database.connection.execute(
        "SELECT keys, dense_at, dense_size, dense_sum, sparse_counts, sparse_indices, sparse_values "
        "FROM replies ORDER BY reply"
    ):
        keys, dense = array.array("q", packed_keys), None
        if file is not None and isinstance(at, int) and isinstance(size, int):
            file.seek(max(at, 0))
            dense = file.read(size)
            if zlib.crc32(dense) != dense_sum:
                continue
        width = len(dense or b"") // max(len(keys), 1)
        ends = itertools.accumulate(array.array("q", counts or bytes(8 * len(keys))), initial=0)
        for slot, (key, (start, end)) in enumerate(zip(keys, itertools.pairwise(ends), strict=True)):
            vectors = PackedVectors(
                None if dense is None else dense[slot * width : (slot + 1) * width],
                None if indices is None else indices[start:end],
                None if values is None else values[start:end],
            )
            if key in hashes:
                _add_vectors(database, key, hashes[key], vectors)


def _add_vectors(database: Database, unit: int, digest: bytes, vectors: PackedVectors) -> None:
    row = (unit, checksums.vectors_checksum(digest, vectors), *vectors)
    database.fetch_all("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?)", row)


def _convert_batches(database: Database) -> None:
    fetch_all = database.fetch_all
    fetch_all("INSERT OR REPLACE INTO settings SELECT name, value FROM batch_notes")
    fetch_all("INSERT INTO batches SELECT * FROM old_batches")
    parts = _convert_parts(database)
    for line, batch, members, done in fetch_all("SELECT line, batch, members, done FROM batch_lines"):
        if not done:
            units = ((line, parts.get(number, number)) for number in array.array("q", members))
            database.execute_many("UPDATE units SET line = ? WHERE unit = ?", units)
        units_with_hashes = fetch_all("SELECT unit, hash FROM units WHERE line = ? ORDER BY unit", (line,))
        new = (line, batch, done, checksums.row_checksum(line, batch, units_with_hashes))
        fetch_all("INSERT INTO lines VALUES (?, ?, ?, ?)", new)
    for member, *tries in fetch_all("SELECT member, rounds, invalid, most FROM batch_tries"):
        fetch_all(
            "UPDATE units SET rounds = ?, refused_files = ?, max_per_line = ? WHERE unit = ?",
            (*tries, parts.get(member, member)),
        )
    fetch_all("DELETE FROM sqlite_sequence WHERE name = 'lines'")
    fetch_all("UPDATE sqlite_sequence SET name = 'lines' WHERE name = 'batch_lines'")


def _convert_parts(database: Database) -> dict[int, int]:
    """Converts the parts of long texts; returns their units by their former, negative numbers."""
    fetch_all, units = database.fetch_all, {}
    number = database.fetch_value("SELECT units FROM checkpoint")
    for piece, whole, text, dense, whole_hash in fetch_all(
        "SELECT piece, key, batch_pieces.text, dense, hash FROM batch_pieces JOIN units ON unit = key ORDER BY piece"
    ):
        number, digest = number + 1, checksums.text_hash(text, whole_hash)
        units[-piece] = number
        fetch_all(
            "INSERT INTO units (unit, hash, tokens, part_of, text) VALUES (?, ?, ?, ?, ?)",
            (number, digest, estimate_tokens(text), whole, text),
        )
        fetch_all("UPDATE units SET parts = parts + 1 WHERE unit = ?", (whole,))
        if dense is not None:
            _add_vectors(database, number, digest, PackedVectors(dense))
    fetch_all("UPDATE checkpoint SET units = ?", (number,))
    return units
