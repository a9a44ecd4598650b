"""What a corpus holds and what was paid for it: one SQLite file beside the output.

The output is made from it, and can be made again. A process may be killed at any instruction: a transaction is
there as a whole or not at all, and each reply is committed before the next request of its thread is sent. The
write-ahead log is not synced at each commit: a power failure may take the last replies, never the rest. Dense vectors
are in a file of their own, `{ledger}-vectors`.
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
"""In place of the number of a reply."""


class CheckpointStore:
    """The ledger of one output. Methods may be called from any thread; one process holds it at a time."""

    def __init__(self, connection: sqlite3.Connection, path: Path | None) -> None:
        self._connection = connection
        self._path, self._name = path, str(path or "")
        self._replies = ReplyStore(connection, VectorFile(None))
        self._lock = threading.RLock()
        self._uses_wal = False
        """Whether what is paid for goes into the write-ahead log first."""
        self._next_key = 1
        self.has_integer_ids = True
        """Whether all ids of the input are whole numbers: then they come out as such."""
        self.damaged_texts = 0
        """Texts of the input whose vectors were found damaged, and are to be asked for again."""

    @classmethod
    def open(cls, path: Path | None) -> Self:
        """Opens or makes the ledger at `path`; None: one that is gone when it is closed.

        Raises:
            InvalidInput: it is none, is damaged, or lacks one of its files.
            sqlite3.Error: another run is at work on it, it cannot be read, or the disk is full.
        """
        had_wal = path is not None and wal_path(path).exists()
        found = cls(connect(path), path)
        try:
            found._open_tables(had_wal=had_wal)
        except BaseException:
            found.close()
            raise
        return found

    def _open_tables(self, *, had_wal: bool) -> None:
        version = check_version(self._connection, self._path, had_wal=had_wal)
        with self.transaction():
            self._replies = open_replies(self._connection, self._path, version)
            self._index_replies(only_intact=True)
        if self._path is not None:
            self._uses_wal = True  # before it is noted: whatever ends this, `close` takes the note back
            self._connection.execute("UPDATE checkpoint SET log_in_use = 1")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # --- transactions -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, *, commit: bool = True) -> Iterator[None]:
        """All or nothing, with a transaction around it if there is one; `keep=False`: nothing, whatever happens."""
        with self._lock:
            within = self._connection.in_transaction
            if within:
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
        """One statement on tables that others keep here: all rows of its result."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """The same statement for many rows."""
        with self._lock:
            self._connection.executemany(statement, rows)

    def parse_json(self, value: str) -> Any:
        """A fact that was kept as JSON."""
        return checksums.parse_json(self._name, value)

    def damage_error(self, what: str) -> InvalidInput:
        """What to say of a row that is not what was written."""
        return checksums.damage_error(self._name, what)

    def _commit(self) -> None:
        self._connection.execute("COMMIT")

    def disable_wal(self) -> None:
        """From here on each transaction is in the ledger itself when it ends, without a log beside it."""
        with self._lock:
            self._connection.execute("UPDATE checkpoint SET log_in_use = 0")
            self._connection.execute("PRAGMA journal_mode=DELETE")
            self._uses_wal = False

    def close(self) -> None:
        """Lets other runs have it, as two files: what is in the log goes into the ledger."""
        with self._lock:
            with contextlib.suppress(sqlite3.Error):  # the disk may be full
                if self._uses_wal:
                    self._connection.execute("UPDATE checkpoint SET log_in_use = 0")
                    self._uses_wal = False
            self._connection.close()
            if self._uses_wal and self._path is not None:
                with contextlib.suppress(OSError):  # SQLite took the log away: nothing is missing
                    files.create_exclusive(wal_path(self._path)).close()
            self._replies.close()

    # --- the input ----------------------------------------------------------------------------------------

    def start_run(self, fingerprint: Mapping[str, Any], *, retry_rejected: bool) -> None:
        """Forgets the input of the run before; `again`: refused texts are to be asked once more."""
        retry_rejected |= self.check_settings(fingerprint)
        for table in ("items", "bad", "pending"):
            self._connection.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names
        if retry_rejected:
            self._connection.execute("UPDATE texts SET reply = NULL WHERE reply = ?", (_REJECTED_REPLY,))
            self._connection.execute("DELETE FROM rejects")
        without_reason = "reply = ? AND key NOT IN (SELECT key FROM rejects)"
        self._connection.execute(f"UPDATE texts SET reply = NULL WHERE {without_reason}", (_REJECTED_REPLY,))  # noqa: S608 - our own words
        self._connection.execute("UPDATE checkpoint SET records = 0")
        (last,) = self._connection.execute("SELECT max(key) FROM texts").fetchone()
        self._next_key, self.has_integer_ids, self.damaged_texts = (last or 0) + 1, True, 0

    def is_new(self) -> bool:
        """Whether no input was ever taken in."""
        return not self.fetch_all("SELECT 1 FROM terms LIMIT 1")

    def check_settings(self, fingerprint: Mapping[str, Any]) -> bool:
        """Notes what all vectors have in common; whether refusals of before are to be forgotten for it.

        Raises:
            InvalidInput: vectors on these terms do not mix with those that are here.
        """
        return check_settings(self._connection, self._name, fingerprint)

    def add_items(self, items: Sequence[InputText], *, with_text: bool) -> list[tuple[InputText, str]]:
        """Takes some hundred texts in; those whose id was used before come back, with the earlier place."""
        items, duplicates = self._split_duplicates(items)
        hashes = [checksums.text_hash(item.text) for item in items]
        known = self._known_texts(hashes)
        new, rows, pending = [], [], []
        for (seq, record_id, place, text), digest in zip(items, hashes, strict=True):
            if digest not in known:
                known[digest] = self._next_key, True
                new.append((self._next_key, digest))
                self._next_key += 1
            key, is_open = known[digest]
            self.has_integer_ids &= not isinstance(record_id, str)
            named = None if record_id is None else str(record_id)
            summed = checksums.record_checksum(seq, named, place, digest)
            rows.append((seq, named, place, key, text if with_text else None, summed))
            if is_open:
                pending.append((key, text, estimate_tokens(text)))
        self._connection.executemany("INSERT INTO texts (key, hash) VALUES (?, ?)", new)
        self._connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", rows)
        self._connection.execute("UPDATE checkpoint SET records = records + ?", (len(rows),))
        self._connection.executemany("INSERT OR IGNORE INTO pending VALUES (?, ?, ?)", pending)
        return duplicates

    def _known_texts(self, hashes: Sequence[bytes]) -> dict[bytes, tuple[int, bool]]:
        """Of texts that are here already: their key, and whether they are to be asked for, perhaps once more."""
        marks = ",".join("?" * len(hashes))
        found = self._connection.execute(f"SELECT hash, key, reply, slot FROM texts WHERE hash IN ({marks})", hashes)  # noqa: S608 - only question marks
        known: dict[bytes, tuple[int, bool]] = {}
        for digest, key, reply, slot in found.fetchall():
            is_open = reply != _REJECTED_REPLY and self._replies.vectors(reply, slot, digest) is None
            known[digest] = key, is_open
            if is_open and reply is not None:
                self._connection.execute("UPDATE texts SET reply = NULL, slot = NULL WHERE key = ?", (key,))
                self.damaged_texts += 1
        return known

    def _split_duplicates(self, items: Sequence[InputText]) -> tuple[list[InputText], list[tuple[InputText, str]]]:
        ids = [str(item.id) for item in items if item.id is not None]
        marks = ",".join("?" * len(ids))
        found = self._connection.execute(f"SELECT id, place FROM items WHERE id IN ({marks})", ids)  # noqa: S608 - only question marks
        return split_duplicates(items, dict(found.fetchall()))

    def add_invalid(self, position: int, place: str, record_id: str | None, reason: str) -> None:
        """A record that was left out."""
        self._connection.execute("INSERT INTO bad VALUES (?, ?, ?, ?)", (position, place, record_id, reason))

    def counts(self) -> Counts:
        """Where the corpus stands."""
        with self._lock:
            one = self._connection.execute
            (items,) = one("SELECT count(*) FROM items").fetchone()
            pending, tokens = one(
                "SELECT count(*), total(tokens) FROM pending CROSS JOIN texts USING (key) WHERE reply IS NULL"
            ).fetchone()
            (rejected,) = one("SELECT count(*) FROM items CROSS JOIN rejects USING (key)").fetchone()
            (invalid,) = one("SELECT count(*) FROM bad").fetchone()
            return Counts(items, pending, tokens, rejected, invalid)

    # --- paying -------------------------------------------------------------------------------------------

    def pending_texts(self, page_size: int = 512) -> Iterator[tuple[int, str]]:
        """Key and text of what is to be embedded, in the order of the input; may be changed meanwhile."""
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
        """Commits a reply: the vectors of some keys, and what was billed.

        Raises:
            BadReply: dense vectors of another width than those before.
        """
        with self._lock:
            self._replies.store(vectors_by_key, requests, texts, tokens)

    def reject(self, key: int, reason: str, code: str | None, request_id: str | None) -> None:
        """Commits a refusal."""
        with self.transaction():
            row = (key, reason, code, request_id)
            self._connection.execute("INSERT OR REPLACE INTO rejects VALUES (?, ?, ?, ?)", row)
            self._connection.execute("UPDATE texts SET reply = ? WHERE key = ?", (_REJECTED_REPLY, key))

    def index_replies(self) -> None:
        """To be called when no more is paid, before it is counted and written."""
        with self.transaction():
            self._index_replies()

    def _index_replies(self, *, only_intact: bool = False) -> None:
        """Notes where the vectors of each text are, for the replies that came since this was last done.

        `checked`: only of vectors that are whole: after a power failure a row may be there without its vectors.
        """
        (last,) = self._connection.execute("SELECT coalesce(max(reply), 0) FROM indexed").fetchone()
        (newest,) = self._connection.execute("SELECT coalesce(max(reply), 0) FROM replies").fetchone()
        if newest == last:
            return
        self._replies.sync()
        for (reply,) in self._connection.execute("SELECT reply FROM replies WHERE reply > ?", (last,)).fetchall():
            found = self._replies.intact_slots(reply) if only_intact else enumerate(self._replies.text_keys(reply))
            slots = [(reply, slot, key) for slot, key in found]
            self._connection.executemany("UPDATE texts SET reply = ?, slot = ? WHERE key = ?", slots)
        self._connection.execute("DELETE FROM indexed")
        self._connection.execute("INSERT INTO indexed VALUES (?)", (newest,))

    def total_billed(self) -> tuple[int, int, int]:
        """Requests, texts and tokens billed in all runs."""
        with self._lock:
            found = self._connection.execute(
                "SELECT total(requests), total(texts), total(tokens) FROM replies"
            ).fetchone()
            requests, texts, tokens = map(int, found)
            return requests, texts, tokens

    @property
    def dimension(self) -> int | None:
        """Floats in a dense vector; None: there is none."""
        return self._replies.vector_bytes // 4 or None

    # --- the output ---------------------------------------------------------------------------------------

    def rows(self) -> Iterator[OutputRow]:
        """All texts with vectors, in the order of the input.

        Raises:
            InvalidInput: after the last row: some are missing, because the ledger or the file of vectors is damaged.
        """
        (records,) = self._connection.execute("SELECT records FROM checkpoint").fetchone()
        readable = 0
        found = self._connection.execute(
            "SELECT seq, id, place, sum, items.text, hash, reply, slot, rejects.key FROM items "
            "LEFT JOIN texts USING (key) LEFT JOIN rejects USING (key) ORDER BY seq"
        )
        for seq, record_id, place, summed, text, digest, reply, slot, rejected in found:
            if summed != checksums.record_checksum(seq, record_id, place, digest) or checksums.text_differs(
                text, digest
            ):
                continue
            if reply == _REJECTED_REPLY and rejected is not None:
                readable += 1
            elif (vectors := self._replies.vectors(reply, slot, digest)) is not None:
                readable += 1
                yield OutputRow(self._output_id(seq, record_id), text, vectors)
        if readable != records:
            raise InvalidInput(
                f"{records - readable} of {records} records cannot be written: {self._name} or {self._name}-vectors is "
                "damaged. Give the command its input again: it asks for those texts alone"
            )

    def rejected_records(self) -> Iterator[dict[str, Any]]:
        """All records of the input without vectors, in its order, and why."""
        found = self._connection.execute(
            "SELECT seq, id, place, reason, code, request_id, 0 FROM items CROSS JOIN rejects USING (key) "
            "UNION ALL SELECT seq, id, place, reason, NULL, NULL, 1 FROM bad ORDER BY 1"
        )
        for seq, record_id, place, reason, code, request_id, is_invalid in found:
            # The id of a bad record may be what is bad about it.
            named = record_id if is_invalid and record_id is not None else self._output_id(seq, record_id)
            yield {"id": named, "place": place, "reason": reason, "code": code, "request_id": request_id}

    def _output_id(self, position: int, record_id: str | None) -> int | str:
        if record_id is None:
            return position
        return int(record_id) if self.has_integer_ids else record_id
