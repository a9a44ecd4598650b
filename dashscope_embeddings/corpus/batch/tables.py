"""The SQLite tables of a checkpoint's batches, and the queries that count over all of them."""

from __future__ import annotations

import array
from typing import TYPE_CHECKING

from dashscope_embeddings.corpus.checkpoint.checksums import record_checksum

if TYPE_CHECKING:
    from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batch_notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, state TEXT NOT NULL, again INTEGER NOT NULL, lines INTEGER NOT NULL,
    texts INTEGER NOT NULL, file_id TEXT, batch_id TEXT, status TEXT, completed INTEGER, failed INTEGER
);
CREATE TABLE IF NOT EXISTS batch_lines (
    line INTEGER PRIMARY KEY AUTOINCREMENT, batch INTEGER NOT NULL, members BLOB NOT NULL, done INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS batch_lines_of ON batch_lines (batch, line);
CREATE TABLE IF NOT EXISTS batch_out (member INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS batch_tries (
    member INTEGER PRIMARY KEY, rounds INTEGER NOT NULL, invalid INTEGER NOT NULL, most INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS batch_pieces (
    piece INTEGER PRIMARY KEY AUTOINCREMENT, key INTEGER NOT NULL, text TEXT NOT NULL, dense BLOB
);
CREATE INDEX IF NOT EXISTS batch_pieces_of ON batch_pieces (key)
"""
# AUTOINCREMENT never reuses the number of a line or chunk: a late result must not match another text.


def create_tables(checkpoint: CheckpointStore) -> None:
    """Creates missing tables, and adds checksums to lines and chunks that an older version wrote."""
    for statement in _SCHEMA.split(";"):
        checkpoint.fetch_all(statement)
    if any(column[1] == "sum" for column in checkpoint.fetch_all("PRAGMA table_info(batch_lines)")):
        return
    checkpoint.fetch_all("ALTER TABLE batch_lines ADD COLUMN sum BLOB")
    checkpoint.fetch_all("ALTER TABLE batch_pieces ADD COLUMN sum BLOB")
    for line in checkpoint.fetch_all("SELECT line, batch, members FROM batch_lines"):
        checkpoint.fetch_all(
            "UPDATE batch_lines SET sum = ? WHERE line = ?", (line_checksum(checkpoint, *line), line[0])
        )
    for chunk in checkpoint.fetch_all("SELECT piece, key, text, dense FROM batch_pieces"):
        checkpoint.fetch_all("UPDATE batch_pieces SET sum = ? WHERE piece = ?", (record_checksum(*chunk), chunk[0]))


def line_checksum(checkpoint: CheckpointStore, line: int, batch: int, packed_units: bytes) -> bytes:
    """The checksum of a line and of the hashes of its texts."""
    keys = array.array("q", packed_units)
    marks = ",".join("?" * len(keys))
    hashes = checkpoint.fetch_all(f"SELECT hash FROM texts WHERE key IN ({marks}) ORDER BY key", keys)  # noqa: S608 - only question marks
    return record_checksum(line, batch, packed_units, hashes)


COUNT_UNDER_WAY = (
    "SELECT count(DISTINCT key) FROM (SELECT member AS key FROM batch_out WHERE member > 0 UNION ALL "
    "SELECT key FROM batch_out CROSS JOIN batch_pieces ON piece = -member)"
)
COUNT_EXHAUSTED = (
    "SELECT count(DISTINCT x.key) FROM batch_tries t LEFT JOIN batch_pieces q ON q.piece = -t.member "
    "CROSS JOIN texts x ON x.key = coalesce(q.key, t.member) CROSS JOIN pending p ON p.key = x.key "
    "WHERE t.rounds >= ? AND x.reply IS NULL AND NOT EXISTS (SELECT 1 FROM batch_out WHERE member = t.member)"
)
COUNT_UNSUBMITTED = (
    "SELECT count(*), total(tokens), coalesce(sum(length(CAST(text AS BLOB))), 0) FROM pending p "
    "CROSS JOIN texts x ON x.key = p.key WHERE x.reply IS NULL "
    "AND NOT EXISTS (SELECT 1 FROM batch_out WHERE member = p.key) "
    "AND NOT EXISTS (SELECT 1 FROM batch_pieces JOIN batch_out ON member = -piece WHERE key = p.key)"
)
