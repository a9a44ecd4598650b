"""Store replies and read their vectors back: one row per reply, with dense vectors in the vector file.

Vectors are verified against the checksum of their text each time they are read: if part of a reply is damaged, the
vectors of its other texts are still used.
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
"""Replies cached while reading: texts that are neighbours in the input are often in the same reply."""


class _StoredText(NamedTuple):
    """One text of a reply, as read from the checkpoint."""

    key: int
    vectors: PackedVectors
    checksum: bytes


class ReplyStore:
    """The replies of one checkpoint. The caller holds the checkpoint's lock."""

    def __init__(self, connection: sqlite3.Connection, vector_file: VectorFile) -> None:
        self._connection, self._vector_file = connection, vector_file
        self._read_cached = functools.lru_cache(maxsize=_CACHED_REPLIES)(self._read_reply)
        self.vector_bytes = 0
        """Bytes of a dense vector; 0: unknown so far."""

    def sync(self) -> None:
        """Flushes all dense vectors to the disk."""
        self._vector_file.sync()

    def close(self) -> None:
        """Closes the vector file."""
        self._vector_file.close()

    # --- writing --------------------------------------------------------------------------------------------

    def store(self, vectors_by_key: Mapping[int, PackedVectors], requests: int, texts: int, tokens: int) -> None:
        """Commits a reply.

        Raises:
            BadReply: the width of the dense vectors differs from earlier ones.
        """
        dense = [vectors.dense for vectors in vectors_by_key.values() if vectors.dense is not None]
        widths = {len(floats) for floats in dense}
        if len(widths | ({self.vector_bytes} - {0})) > 1:
            raise BadReply(f"dense vectors of different widths: {sorted(widths)} bytes, before {self.vector_bytes}")
        self.vector_bytes = max(widths, default=self.vector_bytes)
        floats, hashes = b"".join(dense), self._text_hashes(vectors_by_key)
        sparse = [vectors for vectors in vectors_by_key.values() if vectors.sparse_indices is not None]
        row = (
            array.array("q", vectors_by_key).tobytes(),
            requests,
            texts,
            tokens,
            len(floats) or None,
            array.array("q", (len(vectors.sparse_indices or b"") for vectors in sparse)).tobytes() if sparse else None,
            b"".join(vectors.sparse_indices or b"" for vectors in sparse) if sparse else None,
            b"".join(vectors.sparse_values or b"" for vectors in sparse) if sparse else None,
            b"".join(vectors_checksum(hashes.get(key, b""), vectors) for key, vectors in vectors_by_key.items()),
        )
        self._read_cached.cache_clear()  # a damaged link may have cached this reply as missing
        self._append((self._vector_file.append(floats) if floats else None, *row))

    def _append(self, row: tuple[bytes | int | None, ...]) -> None:
        """Inserts one row: outside a transaction, this statement is committed by itself."""
        self._connection.execute(
            "INSERT INTO replies (dense_at, keys, requests, texts, tokens, dense_size, sparse_counts, "
            "sparse_indices, sparse_values, sums) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )

    def _text_hashes(self, keys: Mapping[int, object] | list[int]) -> dict[int, bytes]:
        marks = ",".join("?" * len(keys))
        rows = self._connection.execute(f"SELECT key, hash FROM texts WHERE key IN ({marks})", tuple(keys))  # noqa: S608 - only question marks
        return dict(rows.fetchall())

    def text_keys(self, reply: int) -> list[int]:
        """The keys of the texts of a reply, by slot."""
        (keys,) = self._connection.execute("SELECT keys FROM replies WHERE reply = ?", (reply,)).fetchone()
        return array.array("q", keys).tolist()

    # --- reading --------------------------------------------------------------------------------------------

    def vectors(self, reply: object, slot: object, digest: object) -> PackedVectors | None:
        """A text's vectors; None: they are missing, damaged, or belong to another text."""
        if not isinstance(reply, int) or not isinstance(slot, int) or not isinstance(digest, bytes):
            return None
        stored = self._read_cached(reply)
        if not 0 <= slot < len(stored) or stored[slot].checksum != vectors_checksum(digest, stored[slot].vectors):
            return None
        return stored[slot].vectors

    def intact_slots(self, reply: int) -> list[tuple[int, int]]:
        """Slot and key of each text whose vectors are present and intact."""
        keys = [stored.key for stored in self._read_cached(reply)]
        hashes = self._text_hashes(keys)
        return [(slot, key) for slot, key in enumerate(keys) if self.vectors(reply, slot, hashes.get(key))]

    def find_vector_bytes(self) -> bool:
        """Reads the width from the first intact dense vector; False: there are dense vectors, but none is intact."""
        rows = self._connection.execute("SELECT reply FROM replies WHERE dense_at NOT NULL ORDER BY reply").fetchall()
        for (reply,) in rows:
            for slot, _ in self.intact_slots(reply):
                self.vector_bytes = len(self._read_cached(reply)[slot].vectors.dense or b"")
                return True
        return not rows

    def _read_reply(self, reply: int) -> list[_StoredText]:
        row = self._connection.execute(
            "SELECT keys, dense_at, dense_size, sparse_counts, sparse_indices, sparse_values, sums "
            "FROM replies WHERE reply = ?",
            (reply,),
        ).fetchone()
        try:
            return [] if row is None else self._unpack(*row)
        except (TypeError, ValueError, OverflowError):  # damaged columns may have any type and size
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
        unpacked_keys = array.array("q", keys)
        size = len(unpacked_keys)
        floats: list[bytes | None] = [None] * size
        if dense_at is not None and dense_size is not None and size:
            width = dense_size // size
            dense = self._vector_file.read(dense_at, width * size)
            floats = [dense[at : at + width] for at in range(0, width * size, width)]
        sparse: list[tuple[bytes | None, bytes | None]] = [(None, None)] * size
        if counts is not None and indices is not None and values is not None:
            ends = itertools.accumulate(array.array("q", counts), initial=0)
            sparse = [(indices[start:end], values[start:end]) for start, end in itertools.pairwise(ends)]
        expected = [checksums[at : at + CHECKSUM_BYTES] for at in range(0, len(checksums), CHECKSUM_BYTES)]
        rows = zip(unpacked_keys, floats, sparse, expected, strict=True)
        return [_StoredText(key, PackedVectors(dense, *pair), checksum) for key, dense, pair, checksum in rows]

    # --- older versions -------------------------------------------------------------------------------------

    def add_checksums(self) -> None:
        """Adds checksums per text to replies of version 1 whose dense vectors match the reply's only checksum."""
        query = "SELECT reply, keys, dense_at, dense_size, dense_sum, sparse_counts, sparse_indices, sparse_values"
        for reply, keys, at, size, checksum, counts, indices, values in self._connection.execute(
            f"{query} FROM replies"
        ).fetchall():
            if size is not None and zlib.crc32(self._vector_file.read(at, size)) != checksum:
                continue
            none_yet = bytes(CHECKSUM_BYTES * (len(keys) // 8))
            texts = self._unpack(keys, at, size, counts, indices, values, none_yet)
            hashes = self._text_hashes([text.key for text in texts])
            sums = b"".join(vectors_checksum(hashes.get(text.key, b""), text.vectors) for text in texts)
            self._connection.execute("UPDATE replies SET sums = ? WHERE reply = ?", (sums, reply))
