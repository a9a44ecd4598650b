"""Dense vectors beside a checkpoint, in `{checkpoint}-vectors`: 4 KB each would pass through SQLite's log twice.

Rows of the table `vectors` name the place of each vector and its checksum. Replies are appended before the transaction
that refers to them: a process may be killed in between, and what no row refers to stays unused.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._runtime import files
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

SYNC_BYTES = 4_000_000
"""Bytes that a power failure may cost: about 1,000 vectors of 1,024 numbers."""
_MAX_VECTOR_BYTES = 1 << 20
"""Larger sizes are damage, and are not read."""


def vectors_path(checkpoint_path: Path) -> Path:
    """The path of a checkpoint's dense vectors."""
    return checkpoint_path.with_name(f"{checkpoint_path.name}-vectors")


def check_no_vectors(checkpoint_path: Path | None) -> None:
    """Raises InvalidInput if vectors are beside a checkpoint that does not exist or is empty."""
    if checkpoint_path is None or not (path := vectors_path(checkpoint_path)).exists() or not path.stat().st_size:
        return
    raise InvalidInput(
        f"{path} exists, but its checkpoint does not: put {checkpoint_path} back, or delete both, and the output, to "
        "pay for all texts again"
    )


class VectorFile:
    """The dense vectors of one checkpoint. Methods may be called from any thread."""

    def __init__(self, checkpoint_path: Path, referenced: int) -> None:
        """`referenced`: the end of the last vector that a row refers to.

        Raises:
            InvalidInput: the file is missing.
        """
        self._checkpoint_path, self._path = checkpoint_path, vectors_path(checkpoint_path)
        self._referenced, self._lock = referenced, threading.Lock()
        self._file: FileIO | None = None
        self._end = self._unsynced = 0
        if self._path.exists():
            files.make_private(self._path)
            self._file = self._path.open("r+b", buffering=0)
            self._end = self._unsynced = self._file.seek(0, os.SEEK_END)
        elif referenced:
            raise self.error("is missing")

    def require_intact(self) -> None:
        """Raises InvalidInput if it held more than a power failure costs: called when no vector is intact."""
        if self._referenced > SYNC_BYTES:
            raise self.error("is not the file of the last run")

    def error(self, problem: str) -> InvalidInput:
        """The error for a file that is not the one that rows refer to, with what to do."""
        return InvalidInput(
            f"{self._path} {problem}: put it back beside {self._checkpoint_path}, or delete both, and the output, to "
            "pay for all texts again"
        )

    def append(self, data: bytes) -> int:
        """Appends vectors; returns where they begin."""
        with self._lock:
            if self._file is None:
                files.create_exclusive(self._path).close()
                self._file = self._path.open("r+b", buffering=0)
            begin, left = self._file.seek(self._end), memoryview(data)
            while left:  # a disk that is almost full takes a part, and raises at the next
                left = left[self._file.write(left) :]
            self._end += len(data)
            self._unsynced += len(data)
            is_due = self._unsynced >= SYNC_BYTES
            if is_due:
                self._unsynced = 0
        if is_due:  # other threads append meanwhile
            os.fsync(self._file.fileno())
        return begin

    def read(self, begin: Any, size: Any) -> bytes:
        """What is at a place that a row names; empty if there is no such place, because the row is damaged."""
        if not (isinstance(begin, int) and isinstance(size, int) and 0 <= size <= _MAX_VECTOR_BYTES):
            return b""
        with self._lock:
            if self._file is None or not 0 <= begin <= self._end - size:
                return b""
            self._file.seek(begin)
            return self._file.read(size)

    def close(self) -> None:
        """Syncs the file to the disk, and closes it."""
        if self._file is not None:
            with self._file:
                os.fsync(self._file.fileno())
