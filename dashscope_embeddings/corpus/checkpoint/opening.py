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
from dashscope_embeddings.corpus.checkpoint.replies import Replies
from dashscope_embeddings.corpus.checkpoint.schema import VERSION, configure, prepare, repair_indexes, version_of
from dashscope_embeddings.corpus.checkpoint.vector_file import MARK_SIZE, VectorFile
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

_START_AGAIN = "delete both, and the output, to pay for all texts again"


def vectors_beside(ledger: Path) -> Path:
    """Where the dense vectors of a ledger are."""
    return ledger.with_name(f"{ledger.name}-vectors")


def log_beside(ledger: Path) -> Path:
    """Where the write-ahead log of a ledger is."""
    return ledger.with_name(f"{ledger.name}-wal")


def connect(path: Path | None) -> sqlite3.Connection:
    """The database at a path, made for its owner alone if it is not there; None: one that is gone when it is closed."""
    if path is not None and path.is_dir():
        raise InvalidInput(f"{path} is a folder: move it away")
    if path is not None:
        files.ensure(path)
    return sqlite3.connect(str(path or ""), timeout=1.0, isolation_level=None, check_same_thread=False)


def check_version(sql: sqlite3.Connection, path: Path | None, *, logged: bool) -> int:
    """Takes the database, and says of which version its tables are; 0: there are none.

    Args:
        sql: the connection.
        path: of the database.
        logged: whether there was a write-ahead log before anything was read: SQLite makes one then.

    Raises:
        InvalidInput: it is no ledger of this package, or lacks its log.
        sqlite3.Error: another process has it, or it is damaged.
    """
    sql.execute("PRAGMA locking_mode=EXCLUSIVE")
    version, name = version_of(sql, str(path or "")), str(path or "")
    if version == VERSION and not logged and sql.execute("SELECT max(log_in_use) FROM checkpoint").fetchone() == (1,):
        raise InvalidInput(
            f"{name}-wal is missing: the run before was killed, and what it paid for last is there. Put it beside "
            f"{name}; if it is lost, make an empty file of that name, and what it held is paid for again"
        )
    if path is not None:  # not before it is known to be ours
        files.make_private(path)
        files.make_private(log_beside(path))
    configure(sql)
    if version and not repair_indexes(sql):
        raise checksums.damaged(name, "SQLite cannot read all of it")
    return version


def open_replies(sql: sqlite3.Connection, path: Path | None, version: int) -> Replies:
    """Makes what the tables lack, and takes the file of vectors if it is the one that was left, or enough of it.

    Raises:
        InvalidInput: it is missing, or another ledger's; or it is here, and its ledger is not.
    """
    prepare(sql, version)
    beside = None if path is None else vectors_beside(path)
    (dense,) = sql.execute("SELECT count(dense_at) FROM replies").fetchone()
    if beside is not None and dense and not beside.exists():
        raise InvalidInput(f"{beside} is missing: put it back beside {path}, or {_START_AGAIN}")
    replies = Replies(sql, file := VectorFile(beside))
    try:
        _join(sql, replies, file, (path, beside), version)
    except BaseException:
        replies.close()
        raise
    return replies


def _join(
    sql: sqlite3.Connection, replies: Replies, file: VectorFile, paths: tuple[Path | None, Path | None], version: int
) -> None:
    """Has ledger and file of vectors name each other, or finds that they do not."""
    path, beside = paths
    if version == 0:
        if file.size > MARK_SIZE:
            raise InvalidInput(f"{beside} is here, but not its ledger: put {path} back, or {_START_AGAIN}")
        sql.execute("INSERT INTO checkpoint VALUES (?, 0, 0, 0)", (identity := os.urandom(16),))
        file.mark(0, identity)
    elif version < VERSION:
        _add_sums(sql, replies)
        row = (os.urandom(16), file.size)
        sql.execute("INSERT INTO checkpoint SELECT ?, ?, 0, count(*) FROM items", row)
    identity, mark_at = sql.execute("SELECT identity, mark_at FROM checkpoint").fetchone()
    belongs = file.belongs(mark_at, identity)
    if belongs == "no" or not replies.find_width():
        raise InvalidInput(f"{beside} is not the one that was left: put it back beside {path}, or {_START_AGAIN}")
    if belongs == "unknown":  # from before there were marks, or the mark alone is damaged
        file.mark(mark_at, identity)


def _add_sums(sql: sqlite3.Connection, replies: Replies) -> None:
    """To a ledger of version 1."""
    replies.add_sums()
    sql.create_function("record_sum", 4, checksums.record_sum)
    hashed = "(SELECT hash FROM texts WHERE texts.key = items.key)"
    sql.execute(f"UPDATE items SET sum = record_sum(seq, id, place, {hashed})")  # noqa: S608 - our own words


def explained(error: sqlite3.Error, path: Path | None) -> Exception:
    """What SQLite's error means to whoever runs a corpus."""
    said = str(error)
    if "locked" in said:
        return InvalidInput(f"another run is at work on this output: it holds {path}")
    if "not a database" in said:
        return InvalidInput(f"{path} is no ledger of this package: move it away")
    if any(word in said for word in ("malformed", "decode", "constraint", "no such")):
        return checksums.damaged(str(path), said)
    return OSError(f"the ledger {path or ''} cannot go on: {said}")
