"""The tables of a checkpoint.

    skipped                                        settings: name → JSON
    records ──unit──▶ units ◀──unit── vectors      checkpoint: one row of totals
                      │   │
              part_of ┘   └──line──▶ lines ──batch──▶ batches

A unit is what gets one vector: a text of the input, or (on the Batch route) a part of a long one. It is pending as long
as it has a text, and neither a vector nor the reason of a refusal. Units and vectors persist between runs; records,
skipped and the texts of units are those of the last input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

VERSION = 3
"""Stored as SQLite's user_version. `conversion` reads version 1; version 2 was never released."""

TABLES = """
CREATE TABLE checkpoint (
    log_in_use INTEGER NOT NULL,  -- paid vectors may exist only in the write-ahead log
    units INTEGER NOT NULL,       -- the highest number of a unit
    records INTEGER NOT NULL,     -- rows of records and skipped
    requests INTEGER NOT NULL, texts INTEGER NOT NULL, tokens INTEGER NOT NULL  -- billed in all runs
);
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE units (
    unit INTEGER PRIMARY KEY,
    hash BLOB NOT NULL,
    tokens REAL NOT NULL,         -- estimated
    reason TEXT, code TEXT, request_id TEXT,  -- of a refusal
    -- the Batch route alone:
    part_of INTEGER,              -- the whole text; NULL: this is one; 0: no longer needed
    parts INTEGER NOT NULL DEFAULT 0,          -- into how many it is split
    line INTEGER,                 -- where it is under way
    rounds INTEGER NOT NULL DEFAULT 0,         -- failed attempts of this submission
    refused_files INTEGER NOT NULL DEFAULT 0,  -- how many of these failed with their whole file
    max_per_line INTEGER NOT NULL DEFAULT 0,   -- 0: the model's limit
    text TEXT
);
CREATE UNIQUE INDEX units_by_hash ON units (hash) WHERE part_of IS NULL;
CREATE INDEX units_by_whole ON units (part_of) WHERE part_of IS NOT NULL;
CREATE INDEX units_by_line ON units (line) WHERE line IS NOT NULL;
CREATE INDEX failed_units ON units (unit) WHERE rounds > 0;
CREATE TABLE vectors (
    unit INTEGER PRIMARY KEY,
    sum BLOB NOT NULL,            -- checksum of the vectors and of the unit's hash
    dense BLOB, sparse_indices BLOB, sparse_values BLOB
);
CREATE TABLE records (
    position INTEGER PRIMARY KEY, id TEXT UNIQUE, place TEXT NOT NULL, unit INTEGER NOT NULL,
    sum BLOB NOT NULL             -- checksum of the record and of its unit's hash
);
CREATE TABLE skipped (position INTEGER PRIMARY KEY, id TEXT, place TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, state TEXT NOT NULL, again INTEGER NOT NULL, lines INTEGER NOT NULL,
    texts INTEGER NOT NULL, file_id TEXT, batch_id TEXT, status TEXT, completed INTEGER, failed INTEGER
);
CREATE TABLE lines (
    line INTEGER PRIMARY KEY AUTOINCREMENT,
    batch INTEGER NOT NULL,
    done INTEGER NOT NULL DEFAULT 0,  -- its vectors are stored
    sum BLOB NOT NULL                 -- checksum of the line, its units and their hashes
);
CREATE INDEX lines_by_batch ON lines (batch, line);
INSERT INTO checkpoint VALUES (0, 0, 0, 0, 0, 0);
"""
# AUTOINCREMENT never reuses the number of a line: a late result must not match another text.

PENDING = (
    "units.text IS NOT NULL AND units.reason IS NULL AND units.part_of IS NULL "
    "AND units.unit NOT IN (SELECT unit FROM vectors)"
)
"""Condition for a text of the input that needs a vector."""
HAS_RESULTS = (
    "SELECT requests > 0 OR EXISTS (SELECT 1 FROM vectors) OR EXISTS (SELECT 1 FROM units WHERE reason IS NOT NULL) "
    "OR EXISTS (SELECT 1 FROM batches WHERE batch_id IS NOT NULL OR state <> 'closed') FROM checkpoint"
)
"""Query: whether the service has answered for any text, or may have a batch; else all is as before the first run."""
IS_UNDER_WAY = (
    "SELECT EXISTS (SELECT 1 FROM batches WHERE state IN ('creating', 'running') "
    "AND coalesce(status, '') NOT IN ('completed', 'failed', 'expired', 'cancelled'))"
)
"""Query: whether the service may have a batch that goes on by itself."""
VECTOR_COLUMNS = "vectors.sum, dense, sparse_indices, sparse_values"


def min_row_bytes(width: int) -> int:
    """Bytes that a row of `vectors` with so many floats takes in the file, at least; 0: it has no dense vector.

    A page of 4,096 bytes has whole rows only, or the beginning of a longer one: one row of 512 floats fills it.
    """
    row = width * 4 + 45 if width else 0
    return _PAGE_BYTES // (_PAGE_BYTES // row) if 0 < row <= _PAGE_BYTES else row


_PAGE_BYTES = 4096


def create_tables(connection: sqlite3.Connection) -> None:
    """Creates all tables, inside the caller's transaction."""
    statements = "\n".join(line.partition("--")[0] for line in TABLES.splitlines())
    for statement in statements.split(";"):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version={VERSION}")
