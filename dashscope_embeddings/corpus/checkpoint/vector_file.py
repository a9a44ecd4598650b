"""Dense vectors of a ledger: one file of float32, appended to and never changed.

SQLite would write each vector twice, into its log and then into its file. What is here counts only where the ledger
says so, in a row that is committed after the vectors are written: a process may be killed between the two. After a
power failure a row may be there and its vectors not: the ledger's sums tell.

A mark says which ledger the file belongs to. The ledger knows where it is: at the beginning, or in the midst of a file
that was begun before there were marks.
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
    named = _MAGIC + identity
    return named + struct.pack("<I", zlib.crc32(named))


class VectorFile:
    """The file beside a ledger; without a path, one in memory. The ledger's lock is held by whoever calls."""

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
        """Bytes that are in it."""
        return self._end

    def append(self, content: bytes) -> int:
        """Where it is.

        Raises:
            OSError: the disk is full, or the like; what was there before is still there.
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
        """So many bytes, or fewer where the file ends; where they are may have been read from a damaged row."""
        if not 0 <= offset <= self._end or size < 0:
            return b""
        self._file.seek(offset)
        return self._file.read(min(size, self._end - offset))

    def write_mark(self, offset: int, identity: bytes) -> None:
        """Says whose file it is."""
        self._write(offset, _pack_mark(identity))
        self._end = max(self._end, offset + MARK_BYTES)

    def match_mark(self, offset: int, identity: bytes) -> Literal["yes", "no", "unknown"]:
        """Whether it is that ledger's file; "unknown": the mark is damaged, or of a file from before there were any."""
        marks = [self.read(offset, MARK_BYTES), self.read(0, MARK_BYTES)]
        if marks[0] == _pack_mark(identity):
            return "yes"
        others = (mark for mark in marks if mark.startswith(_MAGIC) and mark == _pack_mark(mark[len(_MAGIC) : -4]))
        return "no" if any(others) else "unknown"

    def sync(self) -> None:
        """Has all of it on the disk before it returns."""
        if isinstance(self._file, io.FileIO):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()
