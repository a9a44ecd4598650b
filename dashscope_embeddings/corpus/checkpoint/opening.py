"""A ledger's files on disk: which there must be, whether they belong together, and what to do about one that does not.

The ledger and the file of vectors are two; while a run is at work, and after one that was killed, SQLite's write-ahead
log is the third. All hold texts or stand for them: they are for their owner alone.
"""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING

from dashscope_embeddings._runtime import files
from dashscope_embeddings.corpus.checkpoint import checksums
from dashscope_embeddings.corpus.checkpoint.replies import ReplyStore
from dashscope_embeddings.corpus.checkpoint.schema import (
    SCHEMA_VERSION,
    create_tables,
    repair_indexes,
    schema_version,
    set_pragmas,
)
from dashscope_embeddings.corpus.checkpoint.vector_file import MARK_BYTES, VectorFile
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

_START_AGAIN = "delete both, and the output, to pay for all texts again"


def vectors_path(checkpoint_path: Path) -> Path:
    """Where the dense vectors of a ledger are."""
    return checkpoint_path.with_name(f"{checkpoint_path.name}-vectors")


def wal_path(checkpoint_path: Path) -> Path:
    """Where the write-ahead log of a ledger is."""
    return checkpoint_path.with_name(f"{checkpoint_path.name}-wal")


def connect(path: Path | None) -> sqlite3.Connection:
    """The database at a path, made for its owner alone if it is not there; None: one that is gone when it is closed."""
    if path is not None and path.is_dir():
        raise InvalidInput(f"{path} is a folder: move it away")
    if path is not None:
        files.ensure_private_file(path)
    return sqlite3.connect(str(path or ""), timeout=1.0, isolation_level=None, check_same_thread=False)


def check_version(connection: sqlite3.Connection, path: Path | None, *, had_wal: bool) -> int:
    """Takes the database, and says of which version its tables are; 0: there are none.

    Args:
        connection: the connection.
        path: of the database.
        had_wal: whether there was a write-ahead log before anything was read: SQLite makes one then.

    Raises:
        InvalidInput: it is no ledger of this package, or lacks its log.
        sqlite3.Error: another process has it, or it is damaged.
    """
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    version, name = schema_version(connection, str(path or "")), str(path or "")
    if (
        version == SCHEMA_VERSION
        and not had_wal
        and connection.execute("SELECT max(log_in_use) FROM checkpoint").fetchone() == (1,)
    ):
        raise InvalidInput(
            f"{name}-wal is missing: the run before was killed, and what it paid for last is there. Put it beside "
            f"{name}; if it is lost, make an empty file of that name, and what it held is paid for again"
        )
    if path is not None:  # not before it is known to be ours
        files.make_private(path)
        files.make_private(wal_path(path))
    set_pragmas(connection)
    if version and not repair_indexes(connection):
        raise checksums.damage_error(name, "SQLite cannot read all of it")
    return version


def open_replies(connection: sqlite3.Connection, path: Path | None, version: int) -> ReplyStore:
    """Makes what the tables lack, and takes the file of vectors if it is the one that was left, or enough of it.

    Raises:
        InvalidInput: it is missing, or another ledger's; or it is here, and its ledger is not.
    """
    create_tables(connection, version)
    vectors_file_path = None if path is None else vectors_path(path)
    (dense,) = connection.execute("SELECT count(dense_at) FROM replies").fetchone()
    if vectors_file_path is not None and dense and not vectors_file_path.exists():
        raise InvalidInput(f"{vectors_file_path} is missing: put it back beside {path}, or {_START_AGAIN}")
    replies = ReplyStore(connection, file := VectorFile(vectors_file_path))
    try:
        _verify_pairing(connection, replies, file, (path, vectors_file_path), version)
    except BaseException:
        replies.close()
        raise
    return replies


def _verify_pairing(
    connection: sqlite3.Connection,
    replies: ReplyStore,
    vector_file: VectorFile,
    paths: tuple[Path | None, Path | None],
    version: int,
) -> None:
    """Has ledger and file of vectors name each other, or finds that they do not."""
    path, vectors_file_path = paths
    if version == 0:
        if vector_file.size > MARK_BYTES:
            raise InvalidInput(f"{vectors_file_path} is here, but not its ledger: put {path} back, or {_START_AGAIN}")
        connection.execute("INSERT INTO checkpoint VALUES (?, 0, 0, 0)", (identity := os.urandom(16),))
        vector_file.write_mark(0, identity)
    elif version < SCHEMA_VERSION:
        _add_checksums(connection, replies)
        row = (os.urandom(16), vector_file.size)
        connection.execute("INSERT INTO checkpoint SELECT ?, ?, 0, count(*) FROM items", row)
    identity, mark_at = connection.execute("SELECT identity, mark_at FROM checkpoint").fetchone()
    match = vector_file.match_mark(mark_at, identity)
    if match == "no" or not replies.find_vector_bytes():
        raise InvalidInput(
            f"{vectors_file_path} is not the one that was left: put it back beside {path}, or {_START_AGAIN}"
        )
    if match == "unknown":  # from before there were marks, or the mark alone is damaged
        vector_file.write_mark(mark_at, identity)


def _add_checksums(connection: sqlite3.Connection, replies: ReplyStore) -> None:
    """To a ledger of version 1."""
    replies.add_checksums()
    connection.create_function("record_sum", 4, checksums.record_checksum)
    digest = "(SELECT hash FROM texts WHERE texts.key = items.key)"
    connection.execute(f"UPDATE items SET sum = record_sum(seq, id, place, {digest})")  # noqa: S608 - our own words


def translate_error(error: sqlite3.Error, path: Path | None) -> Exception:
    """What SQLite's error means to whoever runs a corpus."""
    message = str(error)
    if "locked" in message:
        return InvalidInput(f"another run is at work on this output: it holds {path}")
    if "not a database" in message:
        return InvalidInput(f"{path} is no ledger of this package: move it away")
    if any(word in message for word in ("malformed", "decode", "constraint", "no such")):
        return checksums.damage_error(str(path), message)
    return OSError(f"the ledger {path or ''} cannot go on: {message}")
