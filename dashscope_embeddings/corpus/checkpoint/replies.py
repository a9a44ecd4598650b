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

from dashscope_embeddings.corpus.checkpoint.checksums import CHECKSUM_BYTES, vectors_checksum
from dashscope_embeddings.corpus.checkpoint.rows import PackedVectors
from dashscope_embeddings.errors import BadReply

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from dashscope_embeddings.corpus.checkpoint.vector_file import VectorFile

_CACHED_REPLIES = 64
"""Replies that are held while they are read: neighbours in the input came in the same one."""


class _StoredText(NamedTuple):
    """One text of a reply, as it was read back."""

    key: int
    vectors: PackedVectors
    checksum: bytes


class ReplyStore:
    """The replies of one ledger; its lock is held by whoever calls."""

    def __init__(self, connection: sqlite3.Connection, vector_file: VectorFile) -> None:
        self._connection, self._vector_file = connection, vector_file
        self._read_cached = functools.lru_cache(maxsize=_CACHED_REPLIES)(self._read_reply)
        self.vector_bytes = 0
        """Bytes of a dense vector; 0: not known yet."""

    def sync(self) -> None:
        """Has all dense vectors on the disk before it returns."""
        self._vector_file.sync()

    def close(self) -> None:
        """Lets go of the file of dense vectors."""
        self._vector_file.close()

    # --- written --------------------------------------------------------------------------------------------

    def store(self, vectors_by_key: Mapping[int, PackedVectors], requests: int, texts: int, tokens: int) -> None:
        """Commits a reply.

        Raises:
            BadReply: dense vectors of another width than those before.
        """
        dense = [found.dense for found in vectors_by_key.values() if found.dense is not None]
        widths = {len(floats) for floats in dense}
        if len(widths | ({self.vector_bytes} - {0})) > 1:
            raise BadReply(f"dense vectors of different widths: {sorted(widths)} bytes, before {self.vector_bytes}")
        self.vector_bytes = max(widths, default=self.vector_bytes)
        floats, hashes = b"".join(dense), self._text_hashes(vectors_by_key)
        sparse = [found for found in vectors_by_key.values() if found.sparse_indices is not None]
        row = (
            array.array("q", vectors_by_key).tobytes(),
            requests,
            texts,
            tokens,
            len(floats) or None,
            array.array("q", (len(found.sparse_indices or b"") for found in sparse)).tobytes() if sparse else None,
            b"".join(found.sparse_indices or b"" for found in sparse) if sparse else None,
            b"".join(found.sparse_values or b"" for found in sparse) if sparse else None,
            b"".join(vectors_checksum(hashes.get(key, b""), found) for key, found in vectors_by_key.items()),
        )
        self._read_cached.cache_clear()  # a damaged link may have asked for this reply already
        self._append((self._vector_file.append(floats) if floats else None, *row))

    def _append(self, row: tuple[bytes | int | None, ...]) -> None:
        """A transaction of one statement."""
        self._connection.execute(
            "INSERT INTO replies (dense_at, keys, requests, texts, tokens, dense_size, sparse_counts, "
            "sparse_indices, sparse_values, sums) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )

    def _text_hashes(self, keys: Mapping[int, object] | list[int]) -> dict[int, bytes]:
        marks = ",".join("?" * len(keys))
        found = self._connection.execute(f"SELECT key, hash FROM texts WHERE key IN ({marks})", tuple(keys))  # noqa: S608 - only question marks
        return dict(found.fetchall())

    def text_keys(self, reply: int) -> list[int]:
        """The keys of the texts of a reply, by slot."""
        found = self._connection.execute("SELECT keys FROM replies WHERE reply = ?", (reply,)).fetchone()
        return array.array("q", found[0]).tolist()

    # --- read back ------------------------------------------------------------------------------------------

    def vectors(self, reply: object, slot: object, digest: object) -> PackedVectors | None:
        """A text's vectors; None: they are not there, are damaged, or belong to another text."""
        if not isinstance(reply, int) or not isinstance(slot, int) or not isinstance(digest, bytes):
            return None
        stored = self._read_cached(reply)
        if not 0 <= slot < len(stored) or stored[slot].checksum != vectors_checksum(digest, stored[slot].vectors):
            return None
        return stored[slot].vectors

    def intact_slots(self, reply: int) -> list[tuple[int, int]]:
        """Slot and key of the texts whose vectors are there and whole."""
        keys = [stored.key for stored in self._read_cached(reply)]
        hashes = self._text_hashes(keys)
        found = ((slot, key) for slot, key in enumerate(keys) if self.vectors(reply, slot, hashes.get(key)))
        return list(found)

    def find_vector_bytes(self) -> bool:
        """Takes the width from any vectors that are whole; False: dense ones were kept, and none is."""
        found = self._connection.execute("SELECT reply FROM replies WHERE dense_at NOT NULL ORDER BY reply").fetchall()
        for (reply,) in found:
            for slot, _ in self.intact_slots(reply):
                self.vector_bytes = len(self._read_cached(reply)[slot].vectors.dense or b"")
                return True
        return not found

    def _read_reply(self, reply: int) -> list[_StoredText]:
        row = self._connection.execute(
            "SELECT keys, dense_at, dense_size, sparse_counts, sparse_indices, sparse_values, sums "
            "FROM replies WHERE reply = ?",
            (reply,),
        ).fetchone()
        try:
            return [] if row is None else self._unpack(*row)
        except (TypeError, ValueError, OverflowError):  # damage may have made anything of any column
            return []

    def _unpack(  # noqa: PLR0913, PLR0917 - the columns
        self,
        keys: bytes,
        dense_at: int | None,
        dense_size: int | None,
        counts: bytes | None,
        indices: bytes | None,
        values: bytes | None,
        checksums: bytes,
    ) -> list[_StoredText]:
        found = array.array("q", keys)
        floats: list[bytes | None] = [None] * len(found)
        if dense_at is not None and dense_size is not None and found:
            width = dense_size // len(found)
            dense = self._vector_file.read(dense_at, width * len(found))
            floats = [dense[at : at + width] for at in range(0, width * len(found), width)]
        sparse: list[tuple[bytes | None, bytes | None]] = [(None, None)] * len(found)
        if counts is not None and indices is not None and values is not None:
            ends = itertools.accumulate(array.array("q", counts), initial=0)
            sparse = [(indices[start:end], values[start:end]) for start, end in itertools.pairwise(ends)]
        each = [checksums[at : at + CHECKSUM_BYTES] for at in range(0, len(checksums), CHECKSUM_BYTES)]
        parts = zip(found, floats, sparse, each, strict=True)
        return [_StoredText(key, PackedVectors(dense, *pair), expected) for key, dense, pair, expected in parts]

    # --- of older versions ----------------------------------------------------------------------------------

    def add_checksums(self) -> None:
        """For replies from before there were any, whose dense vectors fit the one sum that was kept of a reply."""
        query = "SELECT reply, keys, dense_at, dense_size, dense_sum, sparse_counts, sparse_indices, sparse_values"
        for reply, keys, at, size, checksum, counts, indices, values in self._connection.execute(
            f"{query} FROM replies"
        ).fetchall():
            if size is not None and zlib.crc32(self._vector_file.read(at, size)) != checksum:
                continue
            none_yet = bytes(CHECKSUM_BYTES * (len(keys) // 8))
            stored = self._unpack(keys, at, size, counts, indices, values, none_yet)
            hashes = self._text_hashes([one.key for one in stored])
            sums = b"".join(vectors_checksum(hashes.get(one.key, b""), one.vectors) for one in stored)
            self._connection.execute("UPDATE replies SET sums = ? WHERE reply = ?", (sums, reply))
