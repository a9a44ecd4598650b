"""The checkpoint of a corpus: its input and all replies that were paid for, in an SQLite file and a file of vectors.

The output is written from the checkpoint and can be written again. A process may be killed at any instruction:
transactions are atomic, and each reply is committed before its thread sends the next request. The write-ahead log is
not synced at each commit: a power failure may lose the last replies, never earlier ones. Dense vectors are in a
separate file, `{checkpoint}-vectors`.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._core.text_length import estimate_tokens
from dashscope_embeddings._runtime import files
from dashscope_embeddings.corpus.checkpoint import checksums
from dashscope_embeddings.corpus.checkpoint.opening import check_version, connect, open_replies, wal_path
from dashscope_embeddings.corpus.checkpoint.replies import ReplyStore
from dashscope_embeddings.corpus.checkpoint.rows import Counts, OutputRow, split_duplicates
from dashscope_embeddings.corpus.checkpoint.schema import check_settings
from dashscope_embeddings.corpus.checkpoint.vector_file import VectorFile
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Self

    from dashscope_embeddings.corpus.checkpoint.rows import InputText, PackedVectors

_REJECTED_REPLY = -1
"""Stands in place of a reply's number for a text that the service refused."""


class CheckpointStore:
    """The checkpoint of one output. Methods may be called from any thread; only one process can open it at a time."""

    def __init__(self, connection: sqlite3.Connection, path: Path | None) -> None:
        self._connection = connection
        self._path, self._name = path, str(path or "")
        self._replies = ReplyStore(connection, VectorFile(None))
        self._lock = threading.RLock()
        self._uses_wal = False
        """Whether commits go to the write-ahead log first."""
        self._next_key = 1
        self.has_integer_ids = True
        """Whether all ids of the input are integers: then they are integers in the output too."""
        self.damaged_texts = 0
        """Texts of the input whose vectors are damaged and must be requested again."""

    @classmethod
    def open(cls, path: Path | None) -> Self:
        """Opens or creates the checkpoint at `path`; None: a temporary one.

        Raises:
            InvalidInput: the file is not a checkpoint or is damaged, or one of its files is missing.
            sqlite3.Error: another process has locked it, it cannot be read, or the disk is full.
        """
        had_wal = path is not None and wal_path(path).exists()
        checkpoint = cls(connect(path), path)
        try:
            checkpoint._open_tables(had_wal=had_wal)
        except BaseException:
            checkpoint.close()
            raise
        return checkpoint

    def _open_tables(self, *, had_wal: bool) -> None:
        version = check_version(self._connection, self._path, had_wal=had_wal)
        with self.transaction():
            self._replies = open_replies(self._connection, self._path, version)
            self._index_replies(only_intact=True)
        if self._path is not None:
            self._uses_wal = True  # set before log_in_use, so that `close` resets it after any interruption
            self._connection.execute("UPDATE checkpoint SET log_in_use = 1")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # --- transactions -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, *, commit: bool = True) -> Iterator[None]:
        """Groups statements into one transaction, or joins the current one. `commit=False`: always rolls back."""
        with self._lock:
            is_nested = self._connection.in_transaction
            if is_nested:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                if commit:
                    self._commit()
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def fetch_all(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Executes a statement, for tables of other modules, and returns all rows."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def fetch_value(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Executes a statement and returns the first column of the first row; None: there is no row."""
        rows = self.fetch_all(statement, values)
        return rows[0][0] if rows else None

    def execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Executes a statement once per row."""
        with self._lock:
            self._connection.executemany(statement, rows)

    def parse_json(self, value: str) -> Any:
        """Reads a value that is stored as JSON; raises InvalidInput if it is damaged."""
        return checksums.parse_json(self._name, value)

    def damage_error(self, what: str) -> InvalidInput:
        """The error for a row that differs from what was written."""
        return checksums.damage_error(self._name, what)

    def _commit(self) -> None:
        self._connection.execute("COMMIT")

    def disable_wal(self) -> None:
        """From here on, each transaction is committed to the database itself, without a write-ahead log."""
        with self._lock:
            self._connection.execute("UPDATE checkpoint SET log_in_use = 0")
            self._connection.execute("PRAGMA journal_mode=DELETE")
            self._uses_wal = False

    def close(self) -> None:
        """Moves the write-ahead log into the database and closes both files; other runs may then open them."""
        with self._lock:
            with contextlib.suppress(sqlite3.Error):  # the disk may be full
                if self._uses_wal:
                    self._connection.execute("UPDATE checkpoint SET log_in_use = 0")
                    self._uses_wal = False
            self._connection.close()
            if self._uses_wal and self._path is not None:
                with contextlib.suppress(OSError):  # SQLite removed the log: an empty one says that nothing is missing
                    files.create_exclusive(wal_path(self._path)).close()
            self._replies.close()

    # --- the input ----------------------------------------------------------------------------------------

    def start_run(self, fingerprint: Mapping[str, Any], *, retry_rejected: bool) -> None:
        """Deletes the input of the previous run; `retry_rejected`: also its rejections, to send these texts again."""
        retry_rejected |= self.check_settings(fingerprint)
        for table in ("items", "bad", "pending"):
            self._connection.execute(f"DELETE FROM {table}")  # noqa: S608 - no input in it
        if retry_rejected:
            self._connection.execute("UPDATE texts SET reply = NULL WHERE reply = ?", (_REJECTED_REPLY,))
            self._connection.execute("DELETE FROM rejects")
        without_reason = "reply = ? AND key NOT IN (SELECT key FROM rejects)"
        self._connection.execute(f"UPDATE texts SET reply = NULL WHERE {without_reason}", (_REJECTED_REPLY,))  # noqa: S608 - no input in it
        self._connection.execute("UPDATE checkpoint SET records = 0")
        (last,) = self._connection.execute("SELECT max(key) FROM texts").fetchone()
        self._next_key, self.has_integer_ids, self.damaged_texts = (last or 0) + 1, True, 0

    def is_new(self) -> bool:
        """Whether no input was ever loaded."""
        return self.fetch_value("SELECT 1 FROM terms LIMIT 1") is None

    def check_settings(self, fingerprint: Mapping[str, Any]) -> bool:
        """Stores the settings of this run; returns whether they make earlier rejections obsolete.

        Raises:
            InvalidInput: the checkpoint holds vectors of other settings.
        """
        return check_settings(self._connection, self._name, fingerprint)

    def add_items(self, items: Sequence[InputText], *, with_text: bool) -> list[tuple[InputText, str]]:
        """Adds a few hundred texts; returns those whose id was used before, each with the earlier place."""
        items, duplicates = self._split_duplicates(items)
        hashes = [checksums.text_hash(item.text) for item in items]
        known = self._known_texts(hashes)
        new, rows, pending = [], [], []
        for (seq, record_id, place, text), digest in zip(items, hashes, strict=True):
            if digest not in known:
                known[digest] = self._next_key, True
                new.append((self._next_key, digest))
                self._next_key += 1
            key, is_pending = known[digest]
            self.has_integer_ids &= not isinstance(record_id, str)
            id_text = None if record_id is None else str(record_id)
            checksum = checksums.record_checksum(seq, id_text, place, digest)
            rows.append((seq, id_text, place, key, text if with_text else None, checksum))
            if is_pending:
                pending.append((key, text, estimate_tokens(text)))
        self._connection.executemany("INSERT INTO texts (key, hash) VALUES (?, ?)", new)
        self._connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", rows)
        self._connection.execute("UPDATE checkpoint SET records = records + ?", (len(rows),))
        self._connection.executemany("INSERT OR IGNORE INTO pending VALUES (?, ?, ?)", pending)
        return duplicates

    def _known_texts(self, hashes: Sequence[bytes]) -> dict[bytes, tuple[int, bool]]:
        """Hash → key of texts that are known already, and whether their vectors are still missing or are damaged."""
        marks = ",".join("?" * len(hashes))
        rows = self._connection.execute(f"SELECT hash, key, reply, slot FROM texts WHERE hash IN ({marks})", hashes)  # noqa: S608 - only question marks
        known: dict[bytes, tuple[int, bool]] = {}
        for digest, key, reply, slot in rows.fetchall():
            is_pending = reply != _REJECTED_REPLY and self._replies.vectors(reply, slot, digest) is None
            known[digest] = key, is_pending
            if is_pending and reply is not None:
                self._connection.execute("UPDATE texts SET reply = NULL, slot = NULL WHERE key = ?", (key,))
                self.damaged_texts += 1
        return known

    def _split_duplicates(self, items: Sequence[InputText]) -> tuple[list[InputText], list[tuple[InputText, str]]]:
        ids = [str(item.id) for item in items if item.id is not None]
        marks = ",".join("?" * len(ids))
        rows = self._connection.execute(f"SELECT id, place FROM items WHERE id IN ({marks})", ids)  # noqa: S608 - only question marks
        return split_duplicates(items, dict(rows.fetchall()))

    def add_invalid(self, position: int, place: str, record_id: str | None, reason: str) -> None:
        """Adds a record that is skipped."""
        self._connection.execute("INSERT INTO bad VALUES (?, ?, ?, ?)", (position, place, record_id, reason))

    def counts(self) -> Counts:
        """Counts texts of the input by state."""
        with self._lock:
            open_texts = "pending CROSS JOIN texts USING (key) WHERE reply IS NULL"
            ((pending, tokens),) = self.fetch_all(f"SELECT count(*), total(tokens) FROM {open_texts}")  # noqa: S608 - no input in it
            return Counts(
                self.fetch_value("SELECT count(*) FROM items"),
                pending,
                tokens,
                rejected=self.fetch_value("SELECT count(*) FROM items CROSS JOIN rejects USING (key)"),
                invalid=self.fetch_value("SELECT count(*) FROM bad"),
            )

    # --- replies ------------------------------------------------------------------------------------------

    def pending_texts(self, page_size: int = 512) -> Iterator[tuple[int, str]]:
        """Key and text of pending texts, in the order of the input. The tables may change during the iteration."""
        last = 0
        while True:
            with self._lock:
                rows = self.fetch_all(
                    "SELECT key, text FROM pending WHERE key > ? ORDER BY key LIMIT ?", (last, page_size)
                )
            if not rows:
                return
            last = rows[-1][0]
            yield from rows

    def store_reply(
        self, vectors_by_key: Mapping[int, PackedVectors], requests: int = 0, texts: int = 0, tokens: int = 0
    ) -> None:
        """Commits a reply: vectors by key, and what was billed.

        Raises:
            BadReply: the width of the dense vectors differs from earlier ones.
        """
        with self._lock:
            self._replies.store(vectors_by_key, requests, texts, tokens)

    def reject(self, key: int, reason: str, code: str | None, request_id: str | None) -> None:
        """Commits that the service refused a text."""
        with self.transaction():
            row = (key, reason, code, request_id)
            self._connection.execute("INSERT OR REPLACE INTO rejects VALUES (?, ?, ?, ?)", row)
            self._connection.execute("UPDATE texts SET reply = ? WHERE key = ?", (_REJECTED_REPLY, key))

    def index_replies(self) -> None:
        """Links stored replies to texts; to be called before texts are counted or written."""
        with self.transaction():
            self._index_replies()

    def _index_replies(self, *, only_intact: bool = False) -> None:
        """Links each text to its vectors, for all replies since the last call.

        `only_intact` skips damaged vectors: after a power failure a row may exist without its vectors.
        """
        (last,) = self._connection.execute("SELECT coalesce(max(reply), 0) FROM indexed").fetchone()
        (newest,) = self._connection.execute("SELECT coalesce(max(reply), 0) FROM replies").fetchone()
        if newest == last:
            return
        self._replies.sync()
        for (reply,) in self._connection.execute("SELECT reply FROM replies WHERE reply > ?", (last,)).fetchall():
            slots = self._replies.intact_slots(reply) if only_intact else enumerate(self._replies.text_keys(reply))
            links = [(reply, slot, key) for slot, key in slots]
            self._connection.executemany("UPDATE texts SET reply = ?, slot = ? WHERE key = ?", links)
        self._connection.execute("DELETE FROM indexed")
        self._connection.execute("INSERT INTO indexed VALUES (?)", (newest,))

    def total_billed(self) -> tuple[int, int, int]:
        """Requests, texts and tokens billed in all runs."""
        with self._lock:
            query = "SELECT total(requests), total(texts), total(tokens) FROM replies"
            requests, texts, tokens = map(int, self._connection.execute(query).fetchone())
            return requests, texts, tokens

    @property
    def dimension(self) -> int | None:
        """Floats in a dense vector; None: there are no dense vectors."""
        return self._replies.vector_bytes // 4 or None

    # --- the output ---------------------------------------------------------------------------------------

    def rows(self) -> Iterator[OutputRow]:
        """All texts with vectors, in the order of the input.

        Raises:
            InvalidInput: after the last row, if rows are missing because the checkpoint or its vectors are damaged.
        """
        (records,) = self._connection.execute("SELECT records FROM checkpoint").fetchone()
        readable = 0
        rows = self._connection.execute(
            "SELECT seq, id, place, sum, items.text, hash, reply, slot, rejects.key FROM items "
            "LEFT JOIN texts USING (key) LEFT JOIN rejects USING (key) ORDER BY seq"
        )
        for seq, record_id, place, checksum, text, digest, reply, slot, rejected in rows:
            if checksum != checksums.record_checksum(seq, record_id, place, digest):
                continue
            if checksums.text_differs(text, digest):
                continue
            if reply == _REJECTED_REPLY and rejected is not None:
                readable += 1
            elif (vectors := self._replies.vectors(reply, slot, digest)) is not None:
                readable += 1
                yield OutputRow(self._output_id(seq, record_id), text, vectors, place)
        if readable != records:
            raise InvalidInput(
                f"{records - readable} of {records} records cannot be written: {self._name} or {self._name}-vectors is "
                "damaged. Run the command with its input again: it embeds only these texts again"
            )

    def rejected_records(self) -> Iterator[dict[str, Any]]:
        """All records of the input without vectors, in the order of the input, with the reason."""
        rows = self._connection.execute(
            "SELECT seq, id, place, reason, code, request_id, 0 FROM items CROSS JOIN rejects USING (key) "
            "UNION ALL SELECT seq, id, place, reason, NULL, NULL, 1 FROM bad ORDER BY 1"
        )
        for seq, record_id, place, reason, code, request_id, is_invalid in rows:
            # The id of an invalid record may not be an integer even if all others are.
            output_id = self._output_id(seq, record_id) if not is_invalid else seq if record_id is None else record_id
            yield {"id": output_id, "place": place, "reason": reason, "code": code, "request_id": request_id}

    def _output_id(self, position: int, record_id: str | None) -> int | str:
        if record_id is None:
            return position if self.has_integer_ids else str(position)
        return int(record_id) if self.has_integer_ids else record_id
