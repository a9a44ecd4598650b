"""What a corpus holds and what was paid for it: one SQLite file beside the output.

The output is made from it, and can be made again. A process may be killed at any instruction: a transaction is
there as a whole or not at all, and each reply is committed before the next request of its thread is sent. The
write-ahead log is not synced at each commit: a power failure may take the last replies, never the rest. Dense vectors
are in a file of their own, `{ledger}-vectors`.
"""

from __future__ import annotations

import array
import contextlib
import functools
import hashlib
import itertools
import sqlite3
import threading
import zlib
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.corpus.rows import Counts, Row, Vectors, parted
from dashscope_embeddings.corpus.schema import agree, configure, prepare
from dashscope_embeddings.corpus.vector_file import VectorFile, vectors_beside
from dashscope_embeddings.errors import BadReply, InvalidInput
from dashscope_embeddings.lengths import estimate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Self

    from dashscope_embeddings.corpus.rows import Item

_REJECTED = -1
"""In place of the number of a reply."""
_LOADED = 64
"""Replies that are held while the output is written: neighbours in the input came in the same one."""


class Ledger:
    """The ledger of one output. Methods may be called from any thread; one process holds it at a time."""

    def __init__(self, connection: sqlite3.Connection, path: Path | None) -> None:
        self._sql = connection
        self._path, self._name = path, str(path or "")
        self._dense = VectorFile(None)
        self._lock = threading.RLock()
        self._next = 1
        self.numbers = True
        """Whether all ids of the input are whole numbers: then they come out as such."""
        self._width = 0
        """Bytes of a dense vector; 0: not known yet."""

    @classmethod
    def open(cls, path: Path | None) -> Self:
        """Opens or makes the ledger at `path`; None: one that is gone when it is closed.

        Raises:
            InvalidInput: it belongs to another run that is at work, or is none.
        """
        name = str(path or "")
        found = cls(sqlite3.connect(name, timeout=1.0, isolation_level=None, check_same_thread=False), path)
        try:
            found._begin()
        except sqlite3.DatabaseError as error:
            found.close()
            if "locked" in str(error):
                raise InvalidInput(f"another run is at work on this output: it holds {name}") from error
            if "not a database" in str(error):
                raise InvalidInput(f"{name} is no ledger of this package: move it away") from error
            raise
        except BaseException:
            found.close()
            raise
        return found

    def _begin(self) -> None:
        configure(self._sql)
        with self.transaction():
            prepare(self._sql, self._name)
            self._open_vectors()
            self._index()
            first = self._sql.execute(
                "SELECT dense_size * 8 / length(keys) FROM replies WHERE length(keys) AND dense_size NOT NULL LIMIT 1"
            ).fetchone()
            self._width = first[0] if first else 0

    def _open_vectors(self) -> None:
        """What came after the ledger was last settled is compared with its checksum."""
        self._dense = VectorFile(None if self._path is None else vectors_beside(self._path))
        one = self._sql.execute
        (end,) = one("SELECT max(dense_at + dense_size) FROM replies WHERE reply <= ?", (self._indexed(),)).fetchone()
        if end is not None and end > self._dense.size:
            raise InvalidInput(f"{self._name}-vectors is not as it was left: put it back beside {self._name}")
        new = one(
            "SELECT reply, dense_at, dense_size, dense_sum FROM replies WHERE reply > ? AND dense_at NOT NULL",
            (self._indexed(),),
        )
        lost = [(reply,) for reply, *where in new if not self._dense.holds(*where)]
        # Billed, but to be asked for again.
        clear = "UPDATE replies SET keys = x'', dense_at = NULL, dense_size = NULL WHERE reply = ?"
        self._sql.executemany(clear, lost)

    def _indexed(self) -> int:
        (last,) = self._sql.execute("SELECT coalesce(max(reply), 0) FROM indexed").fetchone()
        return int(last)

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

    def _commit(self) -> None:
        self._sql.execute("COMMIT")

    def close(self) -> None:
        """Lets other runs have it."""
        with self._lock:
            self._sql.close()
            self._dense.close()

    # --- the input ----------------------------------------------------------------------------------------

    def begin(self, terms: Mapping[str, Any], *, again: bool) -> None:
        """Forgets the input of the run before; `again`: refused texts are to be asked once more."""
        again |= self.agree(terms)
        for table in ("items", "bad", "pending"):
            self._sql.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names
        if again:
            self._sql.execute("UPDATE texts SET reply = NULL WHERE reply = ?", (_REJECTED,))
            self._sql.execute("DELETE FROM rejects")
        (last,) = self._sql.execute("SELECT max(key) FROM texts").fetchone()
        self._next, self.numbers = (last or 0) + 1, True

    def agree(self, terms: Mapping[str, Any]) -> bool:
        """Notes what all vectors have in common; whether refusals of before are to be forgotten for it.

        Raises:
            InvalidInput: vectors on these terms do not mix with those that are here.
        """
        return agree(self._sql, self._name, terms)

    def add(self, items: Sequence[Item], *, with_text: bool) -> list[tuple[Item, str]]:
        """Takes some hundred texts in; those whose id was used before come back, with the earlier place."""
        items, doubled = self._unique(items)
        hashes = [hashlib.blake2b(item.text.encode(), digest_size=16).digest() for item in items]
        marks = ",".join("?" * len(hashes))
        found = self._sql.execute(f"SELECT hash, key, reply FROM texts WHERE hash IN ({marks})", hashes)  # noqa: S608 - only question marks
        known: dict[bytes, tuple[int, bool]] = {digest: (key, reply is None) for digest, key, reply in found}
        new, rows, pending = [], [], []
        for (seq, record_id, place, text), digest in zip(items, hashes, strict=True):
            if digest not in known:
                known[digest] = self._next, True
                new.append((self._next, digest))
                self._next += 1
            key, is_open = known[digest]
            self.numbers &= not isinstance(record_id, str)
            rows.append((seq, None if record_id is None else str(record_id), place, key, text if with_text else None))
            if is_open:
                pending.append((key, text, estimate(text)))
        self._sql.executemany("INSERT INTO texts (key, hash) VALUES (?, ?)", new)
        self._sql.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", rows)
        self._sql.executemany("INSERT OR IGNORE INTO pending VALUES (?, ?, ?)", pending)
        return doubled

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
                rows = self._sql.execute(
                    "SELECT key, text FROM pending WHERE key > ? ORDER BY key LIMIT ?", (last, most)
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield from rows

    def keep(self, paid: Mapping[int, Vectors], requests: int = 0, texts: int = 0, tokens: int = 0) -> None:
        """Commits a reply: the vectors of some keys, and what was billed.

        Raises:
            BadReply: dense vectors of another width than those before.
        """
        dense = [found.dense for found in paid.values() if found.dense is not None]
        sparse = [found for found in paid.values() if found.sparse_indices is not None]
        floats = b"".join(dense)
        row = (
            array.array("q", paid).tobytes(),
            requests,
            texts,
            tokens,
            len(floats) or None,
            zlib.crc32(floats),
            array.array("q", (len(found.sparse_indices or b"") for found in sparse)).tobytes() if sparse else None,
            b"".join(found.sparse_indices or b"" for found in sparse) if sparse else None,
            b"".join(found.sparse_values or b"" for found in sparse) if sparse else None,
        )
        widths = {len(floats) for floats in dense}
        with self._lock:
            if len(widths | ({self._width} - {0})) > 1:
                raise BadReply(f"dense vectors of different widths: {sorted(widths)} bytes, before {self._width}")
            self._width = max(widths, default=self._width)
            self._append((self._dense.append(floats) if floats else None, *row))

    def _append(self, row: tuple[bytes | int | None, ...]) -> None:
        """A transaction of one statement."""
        self._sql.execute(
            "INSERT INTO replies (dense_at, keys, requests, texts, tokens, dense_size, dense_sum, sparse_counts, "
            "sparse_indices, sparse_values) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )

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

    def _index(self) -> None:
        """Notes where the vectors of each text are, for the replies that came since this was last done."""
        last, (newest,) = self._indexed(), self._sql.execute("SELECT coalesce(max(reply), 0) FROM replies").fetchone()
        if newest == last:
            return
        self._dense.sync()
        for reply, keys in self._sql.execute("SELECT reply, keys FROM replies WHERE reply > ?", (last,)):
            slots = [(reply, slot, key) for slot, key in enumerate(array.array("q", keys))]
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
        return self._width // 4 or None

    # --- the output ---------------------------------------------------------------------------------------

    def rows(self) -> Iterator[Row]:
        """All texts with vectors, in the order of the input."""
        loaded = functools.lru_cache(maxsize=_LOADED)(self._vectors)
        found = self._sql.execute(
            "SELECT seq, id, items.text, reply, slot FROM items CROSS JOIN texts USING (key) "
            "WHERE reply > 0 ORDER BY seq"
        )
        for seq, record_id, text, reply, slot in found:
            yield Row(self._named(seq, record_id), text, loaded(reply)[slot])

    def _vectors(self, reply: int) -> list[Vectors]:
        at_file, size, counts, indices, values = self._sql.execute(
            "SELECT dense_at, dense_size, sparse_counts, sparse_indices, sparse_values FROM replies WHERE reply = ?",
            (reply,),
        ).fetchone()
        floats = None
        if size is not None:
            dense = self._dense.read(at_file, size)
            floats = [dense[at : at + self._width] for at in range(0, len(dense), self._width)]
        if counts is None:
            return [Vectors(found, None, None) for found in floats or ()]
        ends = list(itertools.accumulate(array.array("q", counts), initial=0))
        return [
            Vectors(floats[slot] if floats else None, indices[start:end], values[start:end])
            for slot, (start, end) in enumerate(itertools.pairwise(ends))
        ]

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
