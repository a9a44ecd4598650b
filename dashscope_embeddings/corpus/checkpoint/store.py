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

from dashscope_embeddings._core.text_length import estimate
from dashscope_embeddings._runtime import files
from dashscope_embeddings.corpus.checkpoint import checksums
from dashscope_embeddings.corpus.checkpoint.opening import check_version, connect, log_beside, open_replies
from dashscope_embeddings.corpus.checkpoint.replies import Replies
from dashscope_embeddings.corpus.checkpoint.rows import Counts, Row, parted
from dashscope_embeddings.corpus.checkpoint.schema import agree
from dashscope_embeddings.corpus.checkpoint.vector_file import VectorFile
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Self

    from dashscope_embeddings.corpus.checkpoint.rows import Item, Vectors

_REJECTED = -1
"""In place of the number of a reply."""


class Ledger:
    """The ledger of one output. Methods may be called from any thread; one process holds it at a time."""

    def __init__(self, connection: sqlite3.Connection, path: Path | None) -> None:
        self._sql = connection
        self._path, self._name = path, str(path or "")
        self._replies = Replies(connection, VectorFile(None))
        self._lock = threading.RLock()
        self._logging = False
        """Whether what is paid for goes into the write-ahead log first."""
        self._next = 1
        self.numbers = True
        """Whether all ids of the input are whole numbers: then they come out as such."""
        self.damaged = 0
        """Texts of the input whose vectors were found damaged, and are to be asked for again."""

    @classmethod
    def open(cls, path: Path | None) -> Self:
        """Opens or makes the ledger at `path`; None: one that is gone when it is closed.

        Raises:
            InvalidInput: it is none, is damaged, or lacks one of its files.
            sqlite3.Error: another run is at work on it, it cannot be read, or the disk is full.
        """
        logged = path is not None and log_beside(path).exists()
        found = cls(connect(path), path)
        try:
            found._begin(logged=logged)
        except BaseException:
            found.close()
            raise
        return found

    def _begin(self, *, logged: bool) -> None:
        version = check_version(self._sql, self._path, logged=logged)
        with self.transaction():
            self._replies = open_replies(self._sql, self._path, version)
            self._index(checked=True)
        if self._path is not None:
            self._logging = True  # before it is noted: whatever ends this, `close` takes the note back
            self._sql.execute("UPDATE checkpoint SET log_in_use = 1")
            self._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # --- transactions -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, *, keep: bool = True) -> Iterator[None]:
        """All or nothing, with a transaction around it if there is one; `keep=False`: nothing, whatever happens."""
        with self._lock:
            within = self._sql.in_transaction
            if within:
                yield
                return
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield
                if keep:
                    self._commit()
            finally:
                if self._sql.in_transaction:
                    self._sql.execute("ROLLBACK")

    def sql(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """One statement on tables that others keep here: all rows of its result."""
        with self._lock:
            return self._sql.execute(statement, values).fetchall()

    def sqls(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """The same statement for many rows."""
        with self._lock:
            self._sql.executemany(statement, rows)

    def loads(self, value: str) -> Any:
        """A fact that was kept as JSON."""
        return checksums.loads(self._name, value)

    def damage(self, what: str) -> InvalidInput:
        """What to say of a row that is not what was written."""
        return checksums.damaged(self._name, what)

    def _commit(self) -> None:
        self._sql.execute("COMMIT")

    def end_log(self) -> None:
        """From here on each transaction is in the ledger itself when it ends, without a log beside it."""
        with self._lock:
            self._sql.execute("UPDATE checkpoint SET log_in_use = 0")
            self._sql.execute("PRAGMA journal_mode=DELETE")
            self._logging = False

    def close(self) -> None:
        """Lets other runs have it, as two files: what is in the log goes into the ledger."""
        with self._lock:
            with contextlib.suppress(sqlite3.Error):  # the disk may be full
                if self._logging:
                    self._sql.execute("UPDATE checkpoint SET log_in_use = 0")
                    self._logging = False
            self._sql.close()
            if self._logging and self._path is not None:
                with contextlib.suppress(OSError):  # SQLite took the log away: nothing is missing
                    files.create(log_beside(self._path)).close()
            self._replies.close()

    # --- the input ----------------------------------------------------------------------------------------

    def begin(self, terms: Mapping[str, Any], *, again: bool) -> None:
        """Forgets the input of the run before; `again`: refused texts are to be asked once more."""
        again |= self.agree(terms)
        for table in ("items", "bad", "pending"):
            self._sql.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names
        if again:
            self._sql.execute("UPDATE texts SET reply = NULL WHERE reply = ?", (_REJECTED,))
            self._sql.execute("DELETE FROM rejects")
        without_reason = "reply = ? AND key NOT IN (SELECT key FROM rejects)"
        self._sql.execute(f"UPDATE texts SET reply = NULL WHERE {without_reason}", (_REJECTED,))  # noqa: S608 - our own words
        self._sql.execute("UPDATE checkpoint SET records = 0")
        (last,) = self._sql.execute("SELECT max(key) FROM texts").fetchone()
        self._next, self.numbers, self.damaged = (last or 0) + 1, True, 0

    def is_new(self) -> bool:
        """Whether no input was ever taken in."""
        return not self.sql("SELECT 1 FROM terms LIMIT 1")

    def agree(self, terms: Mapping[str, Any]) -> bool:
        """Notes what all vectors have in common; whether refusals of before are to be forgotten for it.

        Raises:
            InvalidInput: vectors on these terms do not mix with those that are here.
        """
        return agree(self._sql, self._name, terms)

    def add(self, items: Sequence[Item], *, with_text: bool) -> list[tuple[Item, str]]:
        """Takes some hundred texts in; those whose id was used before come back, with the earlier place."""
        items, doubled = self._unique(items)
        hashes = [checksums.text_hash(item.text) for item in items]
        known = self._known(hashes)
        new, rows, pending = [], [], []
        for (seq, record_id, place, text), digest in zip(items, hashes, strict=True):
            if digest not in known:
                known[digest] = self._next, True
                new.append((self._next, digest))
                self._next += 1
            key, is_open = known[digest]
            self.numbers &= not isinstance(record_id, str)
            named = None if record_id is None else str(record_id)
            summed = checksums.record_sum(seq, named, place, digest)
            rows.append((seq, named, place, key, text if with_text else None, summed))
            if is_open:
                pending.append((key, text, estimate(text)))
        self._sql.executemany("INSERT INTO texts (key, hash) VALUES (?, ?)", new)
        self._sql.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", rows)
        self._sql.execute("UPDATE checkpoint SET records = records + ?", (len(rows),))
        self._sql.executemany("INSERT OR IGNORE INTO pending VALUES (?, ?, ?)", pending)
        return doubled

    def _known(self, hashes: Sequence[bytes]) -> dict[bytes, tuple[int, bool]]:
        """Of texts that are here already: their key, and whether they are to be asked for, perhaps once more."""
        marks = ",".join("?" * len(hashes))
        found = self._sql.execute(f"SELECT hash, key, reply, slot FROM texts WHERE hash IN ({marks})", hashes)  # noqa: S608 - only question marks
        known: dict[bytes, tuple[int, bool]] = {}
        for digest, key, reply, slot in found.fetchall():
            is_open = reply != _REJECTED and self._replies.vectors(reply, slot, digest) is None
            known[digest] = key, is_open
            if is_open and reply is not None:
                self._sql.execute("UPDATE texts SET reply = NULL, slot = NULL WHERE key = ?", (key,))
                self.damaged += 1
        return known

    def _unique(self, items: Sequence[Item]) -> tuple[list[Item], list[tuple[Item, str]]]:
        ids = [str(item.id) for item in items if item.id is not None]
        marks = ",".join("?" * len(ids))
        found = self._sql.execute(f"SELECT id, place FROM items WHERE id IN ({marks})", ids)  # noqa: S608 - only question marks
        return parted(items, dict(found.fetchall()))

    def note_bad(self, seq: int, place: str, record_id: str | None, reason: str) -> None:
        """A record that was left out."""
        self._sql.execute("INSERT INTO bad VALUES (?, ?, ?, ?)", (seq, place, record_id, reason))

    def counts(self) -> Counts:
        """Where the corpus stands."""
        with self._lock:
            one = self._sql.execute
            (items,) = one("SELECT count(*) FROM items").fetchone()
            pending, tokens = one(
                "SELECT count(*), total(tokens) FROM pending CROSS JOIN texts USING (key) WHERE reply IS NULL"
            ).fetchone()
            (rejected,) = one("SELECT count(*) FROM items CROSS JOIN rejects USING (key)").fetchone()
            (bad,) = one("SELECT count(*) FROM bad").fetchone()
            return Counts(items, pending, tokens, rejected, bad)

    # --- paying -------------------------------------------------------------------------------------------

    def pending(self, most: int = 512) -> Iterator[tuple[int, str]]:
        """Key and text of what is to be embedded, in the order of the input; may be changed meanwhile."""
        last = 0
        while True:
            with self._lock:
                rows = self.sql("SELECT key, text FROM pending WHERE key > ? ORDER BY key LIMIT ?", (last, most))
            if not rows:
                return
            last = rows[-1][0]
            yield from rows

    def keep(self, paid: Mapping[int, Vectors], requests: int = 0, texts: int = 0, tokens: int = 0) -> None:
        """Commits a reply: the vectors of some keys, and what was billed.

        Raises:
            BadReply: dense vectors of another width than those before.
        """
        with self._lock:
            self._replies.keep(paid, requests, texts, tokens)

    def reject(self, key: int, reason: str, code: str | None, request_id: str | None) -> None:
        """Commits a refusal."""
        with self.transaction():
            row = (key, reason, code, request_id)
            self._sql.execute("INSERT OR REPLACE INTO rejects VALUES (?, ?, ?, ?)", row)
            self._sql.execute("UPDATE texts SET reply = ? WHERE key = ?", (_REJECTED, key))

    def settle(self) -> None:
        """To be called when no more is paid, before it is counted and written."""
        with self.transaction():
            self._index()

    def _index(self, *, checked: bool = False) -> None:
        """Notes where the vectors of each text are, for the replies that came since this was last done.

        `checked`: only of vectors that are whole: after a power failure a row may be there without its vectors.
        """
        (last,) = self._sql.execute("SELECT coalesce(max(reply), 0) FROM indexed").fetchone()
        (newest,) = self._sql.execute("SELECT coalesce(max(reply), 0) FROM replies").fetchone()
        if newest == last:
            return
        self._replies.sync()
        for (reply,) in self._sql.execute("SELECT reply FROM replies WHERE reply > ?", (last,)).fetchall():
            found = self._replies.whole(reply) if checked else enumerate(self._replies.keys(reply))
            slots = [(reply, slot, key) for slot, key in found]
            self._sql.executemany("UPDATE texts SET reply = ?, slot = ? WHERE key = ?", slots)
        self._sql.execute("DELETE FROM indexed")
        self._sql.execute("INSERT INTO indexed VALUES (?)", (newest,))

    def spent(self) -> tuple[int, int, int]:
        """Requests, texts and tokens billed in all runs."""
        with self._lock:
            found = self._sql.execute("SELECT total(requests), total(texts), total(tokens) FROM replies").fetchone()
            requests, texts, tokens = map(int, found)
            return requests, texts, tokens

    @property
    def width(self) -> int | None:
        """Floats in a dense vector; None: there is none."""
        return self._replies.width // 4 or None

    # --- the output ---------------------------------------------------------------------------------------

    def rows(self) -> Iterator[Row]:
        """All texts with vectors, in the order of the input.

        Raises:
            InvalidInput: after the last row: some are missing, because the ledger or the file of vectors is damaged.
        """
        (records,) = self._sql.execute("SELECT records FROM checkpoint").fetchone()
        whole = 0
        found = self._sql.execute(
            "SELECT seq, id, place, sum, items.text, hash, reply, slot, rejects.key FROM items "
            "LEFT JOIN texts USING (key) LEFT JOIN rejects USING (key) ORDER BY seq"
        )
        for seq, record_id, place, summed, text, hashed, reply, slot, rejected in found:
            if summed != checksums.record_sum(seq, record_id, place, hashed) or checksums.text_differs(text, hashed):
                continue
            if reply == _REJECTED and rejected is not None:
                whole += 1
            elif (vectors := self._replies.vectors(reply, slot, hashed)) is not None:
                whole += 1
                yield Row(self._named(seq, record_id), text, vectors)
        if whole != records:
            raise InvalidInput(
                f"{records - whole} of {records} records cannot be written: {self._name} or {self._name}-vectors is "
                "damaged. Give the command its input again: it asks for those texts alone"
            )

    def rejects(self) -> Iterator[dict[str, Any]]:
        """All records of the input without vectors, in its order, and why."""
        found = self._sql.execute(
            "SELECT seq, id, place, reason, code, request_id, 0 FROM items CROSS JOIN rejects USING (key) "
            "UNION ALL SELECT seq, id, place, reason, NULL, NULL, 1 FROM bad ORDER BY 1"
        )
        for seq, record_id, place, reason, code, request_id, bad in found:
            # The id of a bad record may be what is bad about it.
            named = record_id if bad and record_id is not None else self._named(seq, record_id)
            yield {"id": named, "place": place, "reason": reason, "code": code, "request_id": request_id}

    def _named(self, seq: int, record_id: str | None) -> int | str:
        if record_id is None:
            return seq
        return int(record_id) if self.numbers else record_id
