"""What replies brought: a row of the ledger for each, and its dense vectors in the file beside it.

Whatever is read back is compared with its sum, whenever it was written: a reply that is damaged in part still gives
the vectors of its other texts.
"""

from __future__ import annotations

import array
import functools
import itertools
import zlib
from typing import TYPE_CHECKING, NamedTuple

from dashscope_embeddings.corpus.checkpoint.checksums import SIZE, vectors_sum
from dashscope_embeddings.corpus.checkpoint.rows import Vectors
from dashscope_embeddings.errors import BadReply

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from dashscope_embeddings.corpus.checkpoint.vector_file import VectorFile

_LOADED = 64
"""Replies that are held while they are read: neighbours in the input came in the same one."""


class _Kept(NamedTuple):
    """One text of a reply, as it was read back."""

    key: int
    vectors: Vectors
    sum: bytes


class Replies:
    """The replies of one ledger; its lock is held by whoever calls."""

    def __init__(self, sql: sqlite3.Connection, dense: VectorFile) -> None:
        self._sql, self._dense = sql, dense
        self._loaded = functools.lru_cache(maxsize=_LOADED)(self._read)
        self.width = 0
        """Bytes of a dense vector; 0: not known yet."""

    def sync(self) -> None:
        """Has all dense vectors on the disk before it returns."""
        self._dense.sync()

    def close(self) -> None:
        """Lets go of the file of dense vectors."""
        self._dense.close()

    # --- written --------------------------------------------------------------------------------------------

    def keep(self, paid: Mapping[int, Vectors], requests: int, texts: int, tokens: int) -> None:
        """Commits a reply.

        Raises:
            BadReply: dense vectors of another width than those before.
        """
        dense = [found.dense for found in paid.values() if found.dense is not None]
        widths = {len(floats) for floats in dense}
        if len(widths | ({self.width} - {0})) > 1:
            raise BadReply(f"dense vectors of different widths: {sorted(widths)} bytes, before {self.width}")
        self.width = max(widths, default=self.width)
        floats, hashes = b"".join(dense), self._hashes(paid)
        sparse = [found for found in paid.values() if found.sparse_indices is not None]
        row = (
            array.array("q", paid).tobytes(),
            requests,
            texts,
            tokens,
            len(floats) or None,
            array.array("q", (len(found.sparse_indices or b"") for found in sparse)).tobytes() if sparse else None,
            b"".join(found.sparse_indices or b"" for found in sparse) if sparse else None,
            b"".join(found.sparse_values or b"" for found in sparse) if sparse else None,
            b"".join(vectors_sum(hashes.get(key, b""), found) for key, found in paid.items()),
        )
        self._loaded.cache_clear()  # a damaged link may have asked for this reply already
        self._append((self._dense.append(floats) if floats else None, *row))

    def _append(self, row: tuple[bytes | int | None, ...]) -> None:
        """A transaction of one statement."""
        self._sql.execute(
            "INSERT INTO replies (dense_at, keys, requests, texts, tokens, dense_size, sparse_counts, "
            "sparse_indices, sparse_values, sums) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )

    def _hashes(self, keys: Mapping[int, object] | list[int]) -> dict[int, bytes]:
        marks = ",".join("?" * len(keys))
        found = self._sql.execute(f"SELECT key, hash FROM texts WHERE key IN ({marks})", tuple(keys))  # noqa: S608 - only question marks
        return dict(found.fetchall())

    def keys(self, reply: int) -> list[int]:
        """The keys of the texts of a reply, by slot."""
        found = self._sql.execute("SELECT keys FROM replies WHERE reply = ?", (reply,)).fetchone()
        return array.array("q", found[0]).tolist()

    # --- read back ------------------------------------------------------------------------------------------

    def vectors(self, reply: object, slot: object, hashed: object) -> Vectors | None:
        """A text's vectors; None: they are not there, are damaged, or belong to another text."""
        if not isinstance(reply, int) or not isinstance(slot, int) or not isinstance(hashed, bytes):
            return None
        kept = self._loaded(reply)
        if not 0 <= slot < len(kept) or kept[slot].sum != vectors_sum(hashed, kept[slot].vectors):
            return None
        return kept[slot].vectors

    def whole(self, reply: int) -> list[tuple[int, int]]:
        """Slot and key of the texts whose vectors are there and whole."""
        keys = [kept.key for kept in self._loaded(reply)]
        hashes = self._hashes(keys)
        found = ((slot, key) for slot, key in enumerate(keys) if self.vectors(reply, slot, hashes.get(key)))
        return list(found)

    def find_width(self) -> bool:
        """Takes the width from any vectors that are whole; False: dense ones were kept, and none is."""
        found = self._sql.execute("SELECT reply FROM replies WHERE dense_at NOT NULL ORDER BY reply").fetchall()
        for (reply,) in found:
            for slot, _ in self.whole(reply):
                self.width = len(self._loaded(reply)[slot].vectors.dense or b"")
                return True
        return not found

    def _read(self, reply: int) -> list[_Kept]:
        row = self._sql.execute(
            "SELECT keys, dense_at, dense_size, sparse_counts, sparse_indices, sparse_values, sums "
            "FROM replies WHERE reply = ?",
            (reply,),
        ).fetchone()
        try:
            return [] if row is None else self._unpacked(*row)
        except (TypeError, ValueError, OverflowError):  # damage may have made anything of any column
            return []

    def _unpacked(  # noqa: PLR0913, PLR0917 - the columns
        self,
        keys: bytes,
        dense_at: int | None,
        dense_size: int | None,
        counts: bytes | None,
        indices: bytes | None,
        values: bytes | None,
        sums: bytes,
    ) -> list[_Kept]:
        found = array.array("q", keys)
        floats: list[bytes | None] = [None] * len(found)
        if dense_at is not None and dense_size is not None and found:
            width = dense_size // len(found)
            dense = self._dense.read(dense_at, width * len(found))
            floats = [dense[at : at + width] for at in range(0, width * len(found), width)]
        sparse: list[tuple[bytes | None, bytes | None]] = [(None, None)] * len(found)
        if counts is not None and indices is not None and values is not None:
            ends = itertools.accumulate(array.array("q", counts), initial=0)
            sparse = [(indices[start:end], values[start:end]) for start, end in itertools.pairwise(ends)]
        each = [sums[at : at + SIZE] for at in range(0, len(sums), SIZE)]
        parts = zip(found, floats, sparse, each, strict=True)
        return [_Kept(key, Vectors(dense, *pair), expected) for key, dense, pair, expected in parts]

    # --- of older versions ----------------------------------------------------------------------------------

    def add_sums(self) -> None:
        """For replies from before there were any, whose dense vectors fit the one sum that was kept of a reply."""
        query = "SELECT reply, keys, dense_at, dense_size, dense_sum, sparse_counts, sparse_indices, sparse_values"
        for reply, keys, at, size, checksum, counts, indices, values in self._sql.execute(
            f"{query} FROM replies"
        ).fetchall():
            if size is not None and zlib.crc32(self._dense.read(at, size)) != checksum:
                continue
            none_yet = bytes(SIZE * (len(keys) // 8))
            kept = self._unpacked(keys, at, size, counts, indices, values, none_yet)
            hashes = self._hashes([one.key for one in kept])
            sums = b"".join(vectors_sum(hashes.get(one.key, b""), one.vectors) for one in kept)
            self._sql.execute("UPDATE replies SET sums = ? WHERE reply = ?", (sums, reply))
