"""The dense vectors of a checkpoint: one append-only file of float32.

SQLite would write each vector twice, to its log and then to its database. Vectors in this file count only if a row of
the database refers to them. That row is committed after they are written: a process may be killed in between. After a
power failure a row may exist without its vectors; its checksums detect that.

A mark identifies the checkpoint that the file belongs to. The checkpoint stores the offset of the mark: the beginning
of the file, or a later place if an older version, which wrote no mark, created the file.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import TYPE_CHECKING, Literal

from dashscope_embeddings._runtime import files

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC = b"dashscope-v2"
MARK_BYTES = 32


def _pack_mark(identity: bytes) -> bytes:
    content = _MAGIC + identity
    return content + struct.pack("<I", zlib.crc32(content))


class VectorFile:
    """The vector file; without a path, in memory. The caller holds the checkpoint's lock."""

    def __init__(self, path: Path | None) -> None:
        self._file: io.FileIO | io.BytesIO
        if path is None:
            self._file = io.BytesIO()
        else:
            files.ensure_private_file(path)
            files.make_private(path)
            self._file = io.FileIO(path, "r+")
        self._end = self._file.seek(0, os.SEEK_END)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self._end

    def append(self, content: bytes) -> int:
        """Appends bytes and returns their offset.

        Raises:
            OSError: for example, the disk is full; earlier content is unchanged.
        """
        offset = self._end
        self._write(offset, content)
        self._end = offset + len(content)
        return offset

    def _write(self, offset: int, content: bytes) -> None:
        rest = memoryview(content)
        self._file.seek(offset)
        while rest:
            rest = rest[self._file.write(rest) :]

    def read(self, offset: int, size: int) -> bytes:
        """Reads `size` bytes, or fewer at the end of the file. Offset and size may come from a damaged row."""
        if not 0 <= offset <= self._end or size < 0:
            return b""
        self._file.seek(offset)
        return self._file.read(min(size, self._end - offset))

    def write_mark(self, offset: int, identity: bytes) -> None:
        """Writes the mark of a checkpoint."""
        self._write(offset, _pack_mark(identity))
        self._end = max(self._end, offset + MARK_BYTES)

    def match_mark(self, offset: int, identity: bytes) -> Literal["yes", "no", "unknown"]:
        """Whether the file belongs to a checkpoint; "unknown": it has no mark, or a damaged one."""
        marks = [self.read(offset, MARK_BYTES), self.read(0, MARK_BYTES)]
        if marks[0] == _pack_mark(identity):
            return "yes"
        others = (mark for mark in marks if mark.startswith(_MAGIC) and mark == _pack_mark(mark[len(_MAGIC) : -4]))
        return "no" if any(others) else "unknown"

    def sync(self) -> None:
        """Flushes the file to the disk."""
        if isinstance(self._file, io.FileIO):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
