"""The SQLite tables of a checkpoint: create, migrate and check them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.corpus.checkpoint.checksums import damage_error, parse_json
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

SCHEMA_VERSION = 2
_TABLES_V1 = """
CREATE TABLE terms (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE texts (key INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, reply INTEGER, slot INTEGER);
CREATE TABLE replies (
    reply INTEGER PRIMARY KEY, keys BLOB NOT NULL, requests INTEGER NOT NULL, texts INTEGER NOT NULL,
    tokens INTEGER NOT NULL, dense_at INTEGER, dense_size INTEGER,
    sparse_counts BLOB, sparse_indices BLOB, sparse_values BLOB
);
CREATE TABLE indexed (reply INTEGER NOT NULL);
CREATE TABLE rejects (key INTEGER PRIMARY KEY, reason TEXT NOT NULL, code TEXT, request_id TEXT);
CREATE TABLE items (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, place TEXT NOT NULL, key INTEGER NOT NULL, text TEXT);
CREATE TABLE bad (seq INTEGER PRIMARY KEY, place TEXT NOT NULL, id TEXT, reason TEXT NOT NULL);
CREATE TABLE pending (key INTEGER PRIMARY KEY, text TEXT NOT NULL, tokens REAL NOT NULL)
"""
# texts, replies and rejects persist between runs; items, bad (invalid records) and pending hold the input of one run;
# terms is the settings fingerprint. Storing a reply is one INSERT. `index_replies()` later links replies to texts, and
# indexed holds the last one done. Dense vectors are in a file of their own.
_TABLES_V2 = """
ALTER TABLE replies ADD COLUMN sums BLOB;
ALTER TABLE items ADD COLUMN sum BLOB;
CREATE TABLE checkpoint (
    identity BLOB NOT NULL, mark_at INTEGER NOT NULL, log_in_use INTEGER NOT NULL, records INTEGER NOT NULL
)
"""
# Added in version 2. sums: checksums of the vectors of each key; mark_at: offset of the mark in the vector file that
# identifies its checkpoint; log_in_use: paid replies may exist only in the write-ahead log; records: rows of items.


def set_pragmas(connection: sqlite3.Connection) -> None:
    """Configures SQLite for a single process that commits often and may be killed."""
    for pragma in ("cache_size=-16000", "locking_mode=EXCLUSIVE", "synchronous=NORMAL", "journal_mode=WAL"):
        connection.execute(f"PRAGMA {pragma}")
    # Pages of 4 KB in the write-ahead log, after which it is synced and moved into the database.
    connection.execute("PRAGMA wal_autocheckpoint=256")


def schema_version(connection: sqlite3.Connection, name: str) -> int:
    """The version of the tables; 0: there are none.

    Raises:
        InvalidInput: another program or an unknown version of this package wrote the database.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in {0, 1, SCHEMA_VERSION}:
        raise InvalidInput(f"{name} was written by another version of this package ({version})")
    if version == 0 and connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        raise InvalidInput(f"{name} is not a checkpoint of this package: move it away")
    return int(version)


def create_tables(connection: sqlite3.Connection, version: int) -> None:
    """Creates the tables and columns that are missing."""
    for introduced_in, statements in ((1, _TABLES_V1), (SCHEMA_VERSION, _TABLES_V2)):
        if version < introduced_in:
            for statement in statements.split(";"):
                connection.execute(statement)
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def repair_indexes(connection: sqlite3.Connection) -> bool:
    """Whether the tables can be read; rebuilds indexes that do not match them."""
    try:
        if _passes_integrity_check(connection):
            return True
        connection.execute("REINDEX")
        return _passes_integrity_check(connection)
    except MemoryError:  # SQLite read a huge size from a damaged page
        return False


def _passes_integrity_check(connection: sqlite3.Connection) -> bool:
    problems: list[tuple[str]] = connection.execute("PRAGMA integrity_check(1)").fetchall()
    return problems == [("ok",)]


def check_settings(connection: sqlite3.Connection, name: str, fingerprint: Mapping[str, Any]) -> bool:
    """Stores the settings of a run, if its vectors may share an output with those in the checkpoint.

    Returns:
        Whether earlier rejections are obsolete, because other settings may accept these texts.

    Raises:
        InvalidInput: the checkpoint holds vectors of other settings.
    """
    rows = connection.execute("SELECT name, value FROM terms")
    known = {setting: parse_json(name, value) for setting, value in rows}
    if not known and _has_paid_work(connection):
        raise damage_error(name, "the settings of its vectors are missing")
    rejections_obsolete = bool(known.get("long_text") != fingerprint["long_text"])
    if known.get("long_text") == "error":
        known["long_text"] = fingerprint["long_text"]  # so far all texts were embedded whole
    differing = [setting for setting in fingerprint if known and known.get(setting) != fingerprint[setting]]
    if differing and not _has_paid_work(connection):
        rejections_obsolete = True
    elif differing == ["service"]:
        raise InvalidInput(
            f"{name} holds vectors of {known['service']}, and this run would use {fingerprint['service']}: name the "
            "same region or address, or write to another output"
        )
    elif differing:
        message = "; ".join(f"{key} was {known.get(key)!r} and is now {fingerprint[key]!r}" for key in differing)
        raise InvalidInput(
            f"these vectors must not be mixed with those in {name}: {message}. Write to another output, or delete this "
            "one, its checkpoint and the checkpoint's vectors to pay for all texts again"
        )
    values = [(setting, json.dumps(value)) for setting, value in fingerprint.items()]
    connection.executemany("INSERT OR REPLACE INTO terms VALUES (?, ?)", values)
    return rejections_obsolete


def _has_paid_work(connection: sqlite3.Connection) -> bool:
    """Whether any reply was stored or any batch was submitted."""
    tables = {table for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return any(
        connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()  # noqa: S608 - our own names
        for table in ("replies", "batches")
        if table in tables
    )
