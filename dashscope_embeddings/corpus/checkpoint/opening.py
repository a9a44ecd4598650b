"""Open the files of a checkpoint: check that all are present and belong together, and explain what to do if not.

There are two files, the SQLite database and the vector file; during a run, and after one that was killed, SQLite's
write-ahead log is the third. All contain texts or are derived from them: only their owner may read them.
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
    """The path of a checkpoint's dense vectors."""
    return checkpoint_path.with_name(f"{checkpoint_path.name}-vectors")


def wal_path(checkpoint_path: Path) -> Path:
    """The path of a checkpoint's write-ahead log."""
    return checkpoint_path.with_name(f"{checkpoint_path.name}-wal")


def connect(path: Path | None) -> sqlite3.Connection:
    """Opens the database at a path, or creates it with access for its owner only; None: a temporary one."""
    if path is not None and path.is_dir():
        raise InvalidInput(f"{path} is a folder: move it away")
    if path is not None:
        files.ensure_private_file(path)
    return sqlite3.connect(str(path or ""), timeout=1.0, isolation_level=None, check_same_thread=False)


def check_version(connection: sqlite3.Connection, path: Path | None, *, had_wal: bool) -> int:
    """Locks the database and returns the version of its tables; 0: there are none.

    Args:
        connection: Connection to the database.
        path: Path of the database.
        had_wal: Whether a write-ahead log existed before the first read, which creates one.

    Raises:
        InvalidInput: it is not a checkpoint of this package, or its log is missing.
        sqlite3.Error: another process has locked it, or it is damaged.
    """
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    version, name = schema_version(connection, str(path or "")), str(path or "")
    if (
        version == SCHEMA_VERSION
        and not had_wal
        and connection.execute("SELECT max(log_in_use) FROM checkpoint").fetchone() == (1,)
    ):
        raise InvalidInput(
            f"{name}-wal is missing: the run before was killed, and this file holds the last texts that it paid for. "
            f"Put it beside {name}; if it is lost, create an empty file of that name, and they are paid for again"
        )
    if path is not None:  # only after it is known to be a checkpoint
        files.make_private(path)
        files.make_private(wal_path(path))
    set_pragmas(connection)
    if version and not repair_indexes(connection):
        raise checksums.damage_error(name, "SQLite cannot read all of it")
    return version


def open_replies(connection: sqlite3.Connection, path: Path | None, version: int) -> ReplyStore:
    """Creates missing tables and opens the vector file, if it belongs to this checkpoint.

    Raises:
        InvalidInput: the vector file is missing or belongs to another checkpoint, or its checkpoint is missing.
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
    """Marks checkpoint and vector file as a pair, or raises if they are none."""
    path, vectors_file_path = paths
    if version == 0:
        if vector_file.size > MARK_BYTES:
            raise InvalidInput(
                f"{vectors_file_path} exists, but its checkpoint does not: put {path} back, or {_START_AGAIN}"
            )
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
            f"{vectors_file_path} is not the file of the last run: put that one back beside {path}, or {_START_AGAIN}"
        )
    if match == "unknown":  # an older version wrote no mark, or only the mark is damaged
        vector_file.write_mark(mark_at, identity)


def _add_checksums(connection: sqlite3.Connection, replies: ReplyStore) -> None:
    """Adds checksums to a checkpoint of version 1."""
    replies.add_checksums()
    connection.create_function("record_sum", 4, checksums.record_checksum)
    digest = "(SELECT hash FROM texts WHERE texts.key = items.key)"
    connection.execute(f"UPDATE items SET sum = record_sum(seq, id, place, {digest})")  # noqa: S608 - no input in it


def translate_error(error: sqlite3.Error, path: Path | None) -> Exception:
    """The error to raise for an error of SQLite."""
    message = str(error)
    if "locked" in message:
        return InvalidInput(f"another run is at work on this output: it has locked {path}")
    if "not a database" in message:
        return InvalidInput(f"{path} is not a checkpoint of this package: move it away")
    if any(word in message for word in ("malformed", "decode", "constraint", "no such")):
        return checksums.damage_error(str(path), message)
    return OSError(f"the checkpoint {path or ''} cannot be used: {message}")
