"""Convert checkpoints of versions 1 and 2, in one transaction.

These versions kept dense vectors in a file of their own, `{checkpoint}-vectors`. A text was linked to its reply and to
a slot in it; parts of long texts had negative numbers. Version 1 had one checksum for all floats of a reply, and none
elsewhere; version 2 had one for each text, record, line and part.
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
    from collections.abc import Iterator
    from pathlib import Path

    from dashscope_embeddings.corpus.checkpoint.database import Database

OLD_VERSIONS = (1, 2)
_OLD_TABLES = ("terms", "texts", "replies", "indexed", "rejects", "items", "bad", "pending")
_OLD_BATCH_TABLES = ("batch_notes", "batch_lines", "batch_out", "batch_tries", "batch_pieces")


def _vectors_path(checkpoint_path: Path) -> Path:
    return checkpoint_path.with_name(f"{checkpoint_path.name}-vectors")


def check_no_vectors(path: Path | None) -> None:
    """Raises InvalidInput if vectors of an older version are beside a checkpoint that does not exist or is empty."""
    if path is not None and _vectors_path(path).exists() and _vectors_path(path).stat().st_size > _MARK_BYTES:
        raise InvalidInput(
            f"{_vectors_path(path)} exists, but its checkpoint does not: put {path} back, or delete both, and the "
            "output, to pay for all texts again"
        )


_MARK_BYTES = 32
"""Size of a vector file without vectors."""


def remove_vectors(path: Path | None) -> None:
    """Deletes the vectors of an older version, after they were converted."""
    if path is not None:
        _vectors_path(path).unlink(missing_ok=True)


def convert(database: Database) -> None:
    """Writes all that an older version recorded into tables of this version.

    Raises:
        InvalidInput: the vector file is missing, or what was submitted in batches is damaged.
    """
    tables = {name for (name,) in database.fetch_all("SELECT name FROM sqlite_master WHERE type = 'table'")}
    (has_dense,) = database.fetch_all("SELECT count(dense_at) FROM replies")[0]
    path = None if database.path is None else _vectors_path(database.path)
    if has_dense and (path is None or not path.exists()):
        raise InvalidInput(
            f"{path} is missing: put it back beside {database.path}, or delete both, and the output, to pay for all "
            "texts again"
        )
    with_batches = "batch_lines" in tables
    for table in ("checkpoint", *(("batches",) if "batches" in tables else ())):
        if table in tables:
            database.fetch_all(f"ALTER TABLE {table} RENAME TO old_{table}")
    create_tables(database.connection)
    _convert_input(database, had_sums="checkpoint" in tables)
    if has_dense and path is not None:
        with path.open("rb") as file:
            stored = _convert_replies(database, file)
        if not stored:
            raise InvalidInput(
                f"{path} is not the file of the last run: put that one back beside {database.path}, or delete both, "
                "and the output, to pay for all texts again"
            )
    else:
        _convert_replies(database, None)
    if with_batches:
        _convert_batches(database)
    for table in (*_OLD_TABLES, *_OLD_BATCH_TABLES, "old_checkpoint", "old_batches"):
        database.fetch_all(f"DROP TABLE IF EXISTS {table}")


def _convert_input(database: Database, *, had_sums: bool) -> None:
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
    texts = [(text, key) for key, text in fetch_all("SELECT key, text FROM items WHERE text IS NOT NULL")]
    database.execute_many("UPDATE units SET text = ? WHERE unit = ?", texts)
    sums = _sum_column(database, "items")
    rows = []
    for *record, unit, digest, checksum in database.connection.execute(
        f"SELECT seq, id, place, items.key, hash, {sums} FROM items LEFT JOIN texts USING (key)"  # noqa: S608 - our own names
    ):
        if checksum in {None, checksums.older_row_checksum(*record, digest)}:
            rows.append((*record, unit, checksums.row_checksum(*record, digest)))
    database.execute_many("INSERT INTO records (position, id, place, unit, sum) VALUES (?, ?, ?, ?, ?)", rows)
    fetch_all("INSERT INTO skipped SELECT seq, id, place, reason FROM bad")
    records = "SELECT max(records) FROM old_checkpoint" if had_sums else "SELECT count(*) FROM items"
    fetch_all(
        f"UPDATE checkpoint SET records = ({records}) + (SELECT count(*) FROM bad), "  # noqa: S608 - our own names
        "units = (SELECT coalesce(max(unit), 0) FROM units), requests = (SELECT total(requests) FROM replies), "
        "texts = (SELECT total(texts) FROM replies), tokens = (SELECT total(tokens) FROM replies)"
    )


def _convert_replies(database: Database, file: IO[bytes] | None) -> int:
    """Stores all vectors that are intact; returns their number."""
    sums, dense_sum = (_sum_column(database, "replies", name) for name in ("sums", "dense_sum"))
    hashes, stored = dict(database.fetch_all("SELECT unit, hash FROM units")), 0
    for keys, at, size, *sparse, expected, dense_sum_of_reply in database.connection.execute(
        f"SELECT keys, dense_at, dense_size, sparse_counts, sparse_indices, sparse_values, {sums}, {dense_sum} "  # noqa: S608 - our own names
        "FROM replies ORDER BY reply"
    ):
        dense = None
        if file is not None and isinstance(at, int) and at >= 0 and isinstance(size, int) and size >= 0:
            file.seek(at)
            dense = file.read(size)
        if expected is None and dense is not None and zlib.crc32(dense) != dense_sum_of_reply:
            continue
        rows = []
        for number, (key, vectors) in enumerate(_unpack(keys, dense, *sparse)):
            checksum = checksums.vectors_checksum(hashes.get(key, b""), vectors)
            if key in hashes and (expected is None or checksum == expected[4 * number : 4 * number + 4]):
                rows.append((key, checksum, *vectors))
        database.execute_many("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?)", rows)
        stored += len(rows)
    return stored


def _unpack(
    packed_keys: bytes, dense: bytes | None, counts: bytes | None, indices: bytes | None, values: bytes | None
) -> Iterator[tuple[int, PackedVectors]]:
    keys = array.array("q", packed_keys)
    width = len(dense or b"") // max(len(keys), 1)
    ends = itertools.accumulate(array.array("q", counts or bytes(8 * len(keys))), initial=0)
    for number, (key, (start, end)) in enumerate(zip(keys, itertools.pairwise(ends), strict=True)):
        yield (
            key,
            PackedVectors(
                None if dense is None else dense[number * width : (number + 1) * width],
                None if indices is None else indices[start:end],
                None if values is None else values[start:end],
            ),
        )


# --- batches ------------------------------------------------------------------------------------------------


def _convert_batches(database: Database) -> None:
    fetch_all = database.fetch_all
    fetch_all("INSERT OR REPLACE INTO settings SELECT name, value FROM batch_notes")
    fetch_all("INSERT INTO batches SELECT * FROM old_batches")
    hashes = dict(fetch_all("SELECT unit, hash FROM units"))
    parts = _convert_parts(database, hashes)
    for *row, done, checksum in fetch_all(
        f"SELECT line, batch, members, done, {_sum_column(database, 'batch_lines')} FROM batch_lines"  # noqa: S608 - our own names
    ):
        line, batch, members = row
        numbers = array.array("q", members)
        expected = checksums.older_row_checksum(*row, [(hashes[key],) for key in sorted(numbers) if key in hashes])
        if checksum not in {None, expected}:
            raise checksums.damage_error(database.path, f"line {line} of its batches differs from what was submitted")
        if not done:
            units = ((line, parts.get(number, number)) for number in numbers)
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


def _convert_parts(database: Database, hashes: dict[int, bytes]) -> dict[int, int]:
    """Converts the parts of long texts; returns their units by their former, negative numbers."""
    fetch_all, units = database.fetch_all, {}
    number = database.fetch_value("SELECT units FROM checkpoint")
    for *row, checksum in fetch_all(
        f"SELECT piece, key, text, dense, {_sum_column(database, 'batch_pieces')} FROM batch_pieces ORDER BY piece"  # noqa: S608 - our own names
    ):
        piece, key, text, dense = row
        if checksum not in {None, checksums.older_row_checksum(*row)}:
            raise checksums.damage_error(database.path, "a part of a long text differs from what was written")
        number, digest = number + 1, checksums.part_hash(hashes[key], text)
        units[-piece] = number
        fetch_all(
            "INSERT INTO units (unit, hash, tokens, part_of, text) VALUES (?, ?, ?, ?, ?)",
            (number, digest, estimate_tokens(text), key, text),
        )
        fetch_all("UPDATE units SET parts = parts + 1 WHERE unit = ?", (key,))
        if dense is not None:
            vectors = PackedVectors(dense)
            new = (number, checksums.vectors_checksum(digest, vectors), *vectors)
            fetch_all("INSERT INTO vectors VALUES (?, ?, ?, ?, ?)", new)
    fetch_all("UPDATE checkpoint SET units = ?", (number,))
    return units


def _sum_column(database: Database, table: str, name: str = "sum") -> str:
    """The name of a column; NULL if the table of an older version lacks it."""
    columns = {column[1] for column in database.fetch_all(f"PRAGMA table_info({table})")}
    return name if name in columns else "NULL"
