"""Opens a checkpoint: locks it, checks that it is whole, repairs or converts it, and explains what to do on failure.

During a run, and after one that was killed, SQLite's write-ahead log is beside it. Both contain texts: only their owner
may read them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import sqlite3
from typing import TYPE_CHECKING

from dashscope_embeddings._runtime import files
from dashscope_embeddings.corpus.checkpoint import conversion
from dashscope_embeddings.corpus.checkpoint.checksums import damage_error
from dashscope_embeddings.corpus.checkpoint.database import Database, wal_path
from dashscope_embeddings.corpus.checkpoint.schema import HAS_RESULTS, IS_UNDER_WAY, VERSION, create_tables
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.vectors import counted

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger("dashscope_embeddings")


def open_database(path: Path | None) -> Database:
    """Opens or creates the checkpoint at `path`; None: a temporary one.

    Raises:
        InvalidInput: the file is not a checkpoint or is damaged, or its write-ahead log is missing.
        sqlite3.Error: another process has locked it, it cannot be read, or the disk is full.
    """
    if path is not None and path.is_dir():
        raise InvalidInput(f"{path} is a folder: move it away")
    had_wal = path is not None and wal_path(path).exists()
    if path is not None:
        files.ensure_private_file(path)
    database = Database(path)
    try:
        version = _lock(database, had_wal=had_wal)
        if version and not _is_whole(database.connection):
            _write_repaired(database, version)
            return open_database(path)
        database.fetch_all("PRAGMA writable_schema=OFF")
        with database.transaction():
            if version == 0:
                conversion.check_no_vectors(path)
                create_tables(database.connection)
            elif version == conversion.OLD_VERSION:
                conversion.convert(database)
        database.begin_wal()
        conversion.remove_vectors(path)  # only now is the conversion on the disk
    except BaseException:
        database.close()
        raise
    return database


def _lock(database: Database, *, had_wal: bool) -> int:
    """Locks the database and returns the version of its tables; 0: there are none.

    Args:
        database: A connection to it.
        had_wal: Whether a write-ahead log existed before the first read, which creates one.
    """
    execute, path = database.connection.execute, database.path
    execute("PRAGMA locking_mode=EXCLUSIVE")
    execute("PRAGMA writable_schema=ON")  # no schema is written; only so does SQLite read a truncated file
    (version,) = execute("PRAGMA user_version").fetchone()
    if version not in {0, conversion.OLD_VERSION, VERSION}:
        raise InvalidInput(
            f"{path} was written by another version of this package, in format {version} where this one reads "
            f"{VERSION}: go on with that version, or name another output, for which all texts are paid for again"
        )
    if version == 0 and execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        raise InvalidInput(f"{path} is not a checkpoint of this package: move it away")
    if version == VERSION and not had_wal and execute("SELECT max(log_in_use) FROM checkpoint").fetchone() == (1,):
        raise InvalidInput(
            f"{path}-wal is missing: the run before was killed, and this file holds the last texts that it paid for. "
            f"Put it beside {path}; if it is lost, create an empty file of that name, and they are paid for again"
        )
    if path is not None:  # only after it is known to be a checkpoint
        files.make_private(path)
        files.make_private(wal_path(path))
    # A single process commits often and may be killed. The log is synced and moved into the database at 1,000 pages,
    # which are about 870 vectors of 1,024 numbers: a power failure costs no more.
    for pragma in ("cache_size=-4000", "synchronous=NORMAL", "journal_mode=WAL", "wal_autocheckpoint=1000"):
        execute(f"PRAGMA {pragma}")
    return int(version)


def _is_whole(connection: sqlite3.Connection) -> bool:
    """Whether SQLite can read all of the database; rebuilds indexes that do not match their tables."""
    try:
        if connection.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)]:
            return True
        connection.execute("REINDEX")
        return connection.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)]
    except sqlite3.OperationalError:
        raise
    except (sqlite3.DatabaseError, MemoryError):  # a damaged page may claim a huge size
        return False


def _write_repaired(database: Database, version: int) -> None:
    """Replaces a damaged database by one with all of its rows that can be read.

    What a row says is verified when it is used. Texts without a row are sent again; lines and records are counted, so
    that none is missing unnoticed.

    Raises:
        sqlite3.Error: a page is damaged that all rows depend on.
    """
    if (path := database.path) is None or version < VERSION:
        raise damage_error(path, "SQLite cannot read all of it")
    database.check_totals()
    repaired = files.partial_path(path)
    files.create_replacing(repaired).close()
    target = Database(repaired)
    try:
        with target.transaction():
            create_tables(target.connection)
            lost = _copy_rows(database.connection, target.connection)
        target.close()
        database.close()
        wal_path(path).write_bytes(b"")  # its rows were copied; it must not be applied to the new file
        files.publish(path)
    except UnicodeDecodeError as error:
        raise damage_error(path, "the name of a column cannot be read") from error
    finally:
        target.close()
        repaired.unlink(missing_ok=True)
    message = "%s is damaged, at most %s in it cannot be read: the command with its input sends these again"
    _log.warning(message, path, counted(lost, "text"))


_MIN_UNIT_BYTES = 32
"""Bytes of a unit without a text and of its entry in the index are more."""


def _copy_rows(source: sqlite3.Connection, target: sqlite3.Connection) -> int:
    """Copies all rows that can be read; returns the number of units with rows that cannot."""

    def copy(table: str, condition: str = "", *values: int, is_essential: bool = False) -> bool:
        try:
            rows = source.execute(f"SELECT * FROM {table} {condition}", values)  # noqa: S608 - our own names
            marks = ",".join("?" * len(rows.description))
            target.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608 - only question marks
        except (sqlite3.DatabaseError, MemoryError) as error:
            if is_essential or isinstance(error, sqlite3.OperationalError):
                raise
            return False
        return True

    target.execute("DELETE FROM checkpoint")
    for table in ("checkpoint", "settings", "batches", "lines", "sqlite_sequence"):
        copy(table, is_essential=True)
    has_all_records = copy("records")
    copy("skipped")
    (units,) = source.execute("SELECT units FROM checkpoint").fetchone()
    (size,) = source.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()
    units = min(units, size // _MIN_UNIT_BYTES)  # a damaged total would have this loop run for ever
    lost = {
        unit
        for table in ("units", "vectors")
        for unit in range(1, units + 1)
        if not copy(table, "WHERE unit = ?", unit)
    }
    if has_all_records:  # units above the true number look lost where the page that would hold them is damaged
        lost &= {unit for (unit,) in target.execute("SELECT DISTINCT unit FROM records")}
    return len(lost)


def translate_error(error: sqlite3.Error, path: Path | None) -> Exception:
    """The error to raise for an error of SQLite."""
    message = str(error)
    if "locked" in message:
        return InvalidInput(f"another run is at work on this output: it has locked {path}")
    if "not a database" in message:
        return InvalidInput(f"{path} is not a checkpoint of this package: move it away")
    if any(word in message for word in ("malformed", "decode", "constraint", "no such")):
        return damage_error(path, message)
    return OSError(f"the checkpoint {path or ''} cannot be used: {message}{full_disk_hint(error)}")


def read_state(path: Path) -> tuple[bool, bool]:
    """`HAS_RESULTS` and `IS_UNDER_WAY` of a checkpoint after its run; both false if there is none."""
    if not path.exists():
        return False, False
    if wal_path(path).exists():
        return True, True  # nothing is known: the log of a killed run would be removed by closing a connection
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            ((has_results,),), ((is_under_way,),) = map(connection.execute, (HAS_RESULTS, IS_UNDER_WAY))
    except sqlite3.Error as error:
        has_results = is_under_way = "no such table" not in str(error)  # else nothing is known
    return bool(has_results), bool(is_under_way)


_FULL_DISK = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def full_disk_hint(error: Exception) -> str:
    """What to do about an error that says that the disk is full; empty for any other."""
    is_full = getattr(error, "errno", None) in _FULL_DISK or "disk is full" in str(error)
    return ". Make room, then run the same again" if is_full else ""
