"""Dense vectors of a ledger: one file of float32, appended to and never changed.

SQLite would write each vector twice, into its log and then into its file. What is here counts only where the ledger
says so, in a row that is committed after the vectors are written: a process may be killed between the two. After a
power failure a row may be there and its vectors not: the checksum tells.
"""

from __future__ import annotations

import io
import os
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def vectors_beside(ledger: Path) -> Path:
    """Where the dense vectors of a ledger are."""
    return ledger.with_name(f"{ledger.name}-vectors")


class VectorFile:
    """The file beside a ledger; without a path, one in memory. The ledger's lock is held by whoever calls."""

    def __init__(self, path: Path | None) -> None:
        if path is None:
            self._file: io.FileIO | io.BytesIO = io.BytesIO()
        else:
            self._file = io.FileIO(path, "r+" if path.exists() else "w+")
        self._end = self._file.seek(0, os.SEEK_END)

    @property
    def size(self) -> int:
        """Bytes that are in it."""
        return self._end

    def append(self, floats: bytes) -> int:
        """Where they are.

        Raises:
            OSError: the disk is full, or the like; what was there before is still there.
        """
        at, rest = self._end, memoryview(floats)
        self._file.seek(at)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._end = at + len(floats)
        return at

    def read(self, at: int, size: int) -> bytes:
        """So many bytes, or fewer where the file ends."""
        self._file.seek(at)
        return self._file.read(size)

    def holds(self, at: int, size: int, checksum: int) -> bool:
        """Whether this was written, and arrived on the disk."""
        return at + size <= self._end and zlib.crc32(self.read(at, size)) == checksum

    def sync(self) -> None:
        """Has all of it on the disk before it returns."""
        if isinstance(self._file, io.FileIO):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()
