"""The tables of a ledger."""

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
# texts, replies and rejects stay from run to run; items, bad and pending are the input of one. Paying appends
# one row to replies and does nothing else; where each text's vectors are is written to texts later, and up to which
# reply that was done to indexed. Dense vectors are in a file of their own.
_TABLES_V2 = """
ALTER TABLE replies ADD COLUMN sums BLOB;
ALTER TABLE items ADD COLUMN sum BLOB;
CREATE TABLE checkpoint (
    identity BLOB NOT NULL, mark_at INTEGER NOT NULL, log_in_use INTEGER NOT NULL, records INTEGER NOT NULL
)
"""
# What version 2 added. sums: of the vectors of each key; mark_at: where the file of vectors says whose it is;
# log_in_use: what was paid for may be in the write-ahead log alone; records: rows of items.


def set_pragmas(connection: sqlite3.Connection) -> None:
    """For one process at a time, which commits often and may be killed."""
    for pragma in ("cache_size=-16000", "locking_mode=EXCLUSIVE", "synchronous=NORMAL", "journal_mode=WAL"):
        connection.execute(f"PRAGMA {pragma}")
    # Of 4 KB: how long the write-ahead log grows before it is synced and moved into the file.
    connection.execute("PRAGMA wal_autocheckpoint=256")


def schema_version(connection: sqlite3.Connection, name: str) -> int:
    """Of the tables; 0: there are none.

    Raises:
        InvalidInput: it is another program's database, or of another version.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in {0, 1, SCHEMA_VERSION}:
        raise InvalidInput(f"{name} was written by another version of this package ({version})")
    if version == 0 and connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        raise InvalidInput(f"{name} is no ledger of this package: move it away")
    return int(version)


def create_tables(connection: sqlite3.Connection, version: int) -> None:
    """Makes the tables and columns that are not there yet."""
    for introduced_in, statements in ((1, _TABLES_V1), (SCHEMA_VERSION, _TABLES_V2)):
        if version < introduced_in:
            for statement in statements.split(";"):
                connection.execute(statement)
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def repair_indexes(connection: sqlite3.Connection) -> bool:
    """Whether the tables can be read; indexes that do not fit them are made again."""
    try:
        if _passes_integrity_check(connection):
            return True
        connection.execute("REINDEX")
        return _passes_integrity_check(connection)
    except MemoryError:  # of a size that SQLite read from a damaged page
        return False


def _passes_integrity_check(connection: sqlite3.Connection) -> bool:
    found: list[tuple[str]] = connection.execute("PRAGMA integrity_check(1)").fetchall()
    return found == [("ok",)]


def check_settings(connection: sqlite3.Connection, name: str, fingerprint: Mapping[str, Any]) -> bool:
    """Notes what all vectors have in common; whether refusals of before are to be forgotten for it.

    Raises:
        InvalidInput: vectors on these terms do not mix with those that are here.
    """
    known = {term: parse_json(name, value) for term, value in connection.execute("SELECT name, value FROM terms")}
    if not known and _has_paid_work(connection):
        raise damage_error(name, "it no longer says of which settings its vectors are")
    forget_rejections = bool(known.get("long_text") != fingerprint["long_text"])
    if known.get("long_text") == "error":
        known["long_text"] = fingerprint["long_text"]  # so far only whole texts were embedded
    differing = [term for term in fingerprint if known and known.get(term) != fingerprint[term]]
    if differing and not _has_paid_work(connection):
        forget_rejections = True
    elif differing == ["service"]:
        raise InvalidInput(
            f"{name} is of {known['service']}, and this asks {fingerprint['service']}: name the same region or "
            "address, or write to another output"
        )
    elif differing:
        message = "; ".join(f"{term} was {known.get(term)!r} and is now {fingerprint[term]!r}" for term in differing)
        raise InvalidInput(
            f"these vectors would not mix with those in {name}: {message}. Write to another output, or "
            "delete this one, its ledger and the ledger's vectors to pay for all texts again"
        )
    rows = [(term, json.dumps(value)) for term, value in fingerprint.items()]
    connection.executemany("INSERT OR REPLACE INTO terms VALUES (?, ?)", rows)
    return forget_rejections


def _has_paid_work(connection: sqlite3.Connection) -> bool:
    """Whether anything was paid for or submitted."""
    tables = {table for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return any(
        connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()  # noqa: S608 - our own names
        for table in ("replies", "batches")
        if table in tables
    )
