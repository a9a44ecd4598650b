"""One SQLite connection, which all threads and both repositories of a checkpoint share."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._runtime import files
from dashscope_embeddings.corpus.checkpoint.checksums import damage_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

_MAX_TOTAL = 2**53


class Database:
    """A checkpoint's database. Only one process can open it at a time."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.connection = sqlite3.connect(str(path or ""), timeout=1.0, isolation_level=None, check_same_thread=False)
        self.lock = threading.RLock()
        self._uses_wal = False

    @contextlib.contextmanager
    def transaction(self, *, commit: bool = True) -> Iterator[None]:
        """Groups statements into one transaction, or joins the current one. `commit=False`: always rolls back."""
        with self.lock:
            if self._in_transaction():
                yield
                return
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                if commit:
                    self._commit()
            finally:
                if self._in_transaction():
                    self.connection.execute("ROLLBACK")

    def _in_transaction(self) -> bool:
        return self.connection.in_transaction

    def _commit(self) -> None:
        self.connection.execute("COMMIT")

    def fetch_all(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Executes a statement and returns all rows."""
        with self.lock:
            return self.connection.execute(statement, values).fetchall()

    def fetch_value(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Executes a statement and returns the first column of the first row; None: there is no row."""
        rows = self.fetch_all(statement, values)
        return rows[0][0] if rows else None

    def fetch_paged(self, statement: str, *values: Any, page_size: int = 512) -> Iterator[Any]:
        """The rows of a statement, while tables may change; its last values are the highest key so far and a LIMIT."""
        last = 0
        while rows := self.fetch_all(statement, (*values, last, page_size)):
            last = rows[-1][0]
            yield from rows

    def execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Executes a statement once per row."""
        with self.lock:
            self.connection.executemany(statement, rows)

    def set_setting(self, name: str, value: Any) -> None:
        """Stores a value for later runs."""
        self.fetch_all("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))

    def get_setting(self, name: str) -> Any:
        """A stored value; None: there is none.

        Raises:
            InvalidInput: it is damaged.
        """
        value = self.fetch_value("SELECT value FROM settings WHERE name = ?", (name,))
        try:
            return None if value is None else json.loads(value)
        except (TypeError, ValueError) as error:
            raise damage_error(self.path, "a setting cannot be read") from error

    def check_totals(self) -> None:
        """Raises InvalidInput if the row of totals is lost or damaged: it has no checksum."""
        rows = self.fetch_all("SELECT * FROM checkpoint")
        if len(rows) != 1 or not all(isinstance(total, int) and 0 <= total <= _MAX_TOTAL for total in rows[0]):
            raise damage_error(self.path, "its totals cannot be read")

    def begin_wal(self) -> None:
        """Syncs all to the disk, and records that from here on paid vectors may exist only in the write-ahead log.

        Raises:
            InvalidInput: the row of totals is lost or damaged.
        """
        self.check_totals()
        last_unit = "max(units, (SELECT coalesce(max(unit), 0) FROM units))"
        self.fetch_all(f"UPDATE checkpoint SET units = {last_unit}")  # noqa: S608 - the count may be of an older page
        if self.path is not None:
            self._uses_wal = True  # set first, so that `close` resets it after any interruption
            self.fetch_all("UPDATE checkpoint SET log_in_use = 1")
            self.fetch_all("PRAGMA wal_checkpoint(TRUNCATE)")

    def disable_wal(self) -> None:
        """From here on, each transaction is committed to the database itself, without a write-ahead log."""
        with self.lock:
            self.fetch_all("UPDATE checkpoint SET log_in_use = 0")
            self.fetch_all("PRAGMA journal_mode=DELETE")
            self._uses_wal = False

    def close(self) -> None:
        """Moves the write-ahead log into the database, then closes the database: other runs may open it."""
        with self.lock:
            with contextlib.suppress(sqlite3.Error):  # the disk may be full
                if self._uses_wal:
                    self.fetch_all("UPDATE checkpoint SET log_in_use = 0")
                    self._uses_wal = False
            self.connection.close()
            if self._uses_wal and self.path is not None:
                with contextlib.suppress(OSError):  # SQLite removed the log: an empty one says that nothing is missing
                    files.create_exclusive(wal_path(self.path)).close()


def wal_path(checkpoint_path: Path) -> Path:
    """The path of a checkpoint's write-ahead log."""
    return checkpoint_path.with_name(f"{checkpoint_path.name}-wal")
