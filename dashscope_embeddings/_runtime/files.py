"""Files that this package writes: created exclusively, private where they hold texts, and replaced as a whole."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import IO, TYPE_CHECKING

from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PRIVATE_MODE = 0o600
"""Mode of a file that holds texts and is nobody else's business."""
_OUTPUT_MODE = 0o666
"""Mode of an output, from which the umask takes away."""
# O_NOFOLLOW is missing on Windows, O_BINARY everywhere else.
_EXCLUSIVE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def create_exclusive(path: Path, mode: int = PRIVATE_MODE) -> IO[bytes]:
    """Makes a file that was not there, for reading and writing.

    Raises:
        FileExistsError: something is there, if only a symbolic link to nothing: it is never written through.
    """
    return os.fdopen(os.open(path, _EXCLUSIVE_FLAGS, mode), "w+b")


def ensure_private_file(path: Path) -> None:
    """Makes a private file where there is none.

    Raises:
        InvalidInput: a symbolic link to nothing is there.
        FileExistsError: something came to be there meanwhile.
    """
    if path.exists():
        return
    if path.is_symlink():
        raise InvalidInput(f"{path} is a symbolic link to nothing: remove it")
    create_exclusive(path).close()


def create_replacing(path: Path, mode: int = PRIVATE_MODE) -> IO[bytes]:
    """The same, in place of what an earlier run left behind: a link is removed, and not what it points to."""
    path.unlink(missing_ok=True)
    return create_exclusive(path, mode)


def make_private(path: Path) -> None:
    """Takes others' rights on a file away, where it is ours and the system knows such rights."""
    with contextlib.suppress(OSError):
        if stat.S_IMODE(path.stat().st_mode) & ~PRIVATE_MODE:
            path.chmod(PRIVATE_MODE)


def partial_path(path: Path) -> Path:
    """Where a file is while it is being written."""
    return path.with_name(f"{path.name}.partial")


@contextlib.contextmanager
def write_partials(*paths: Path) -> Iterator[list[IO[bytes]]]:
    """Files to write, which are on the disk as `partial_of` each path at the end; after an error none is there.

    They are made in the given order and removed in the other one: see `settle_pair`.
    """
    try:
        with contextlib.ExitStack() as opened:
            files = [opened.enter_context(create_replacing(partial_path(path), _OUTPUT_MODE)) for path in paths]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        for path in reversed(paths):
            partial_path(path).unlink(missing_ok=True)
        raise


def publish(path: Path) -> None:
    """Gives a file that `partials` wrote its name."""
    try:
        partial_path(path).replace(path)
    except OSError:
        partial_path(path).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


# --- two files that are one ---------------------------------------------------------------------------------


def publish_pair(path: Path, companion: Path) -> None:
    """The same for a file and the one that belongs to it; after an error both are the old ones, or both are new."""
    try:
        if companion.exists():
            companion.replace(_old_companion(companion))
        partial_path(path).replace(path)
        _sync_folder(path.parent)
    finally:
        recover_pair(path, companion)


def recover_pair(path: Path, companion: Path) -> None:
    """Ends a replacement that was cut off anywhere: goes on with it if `path` is new already, else undoes it.

    `path` is new when its partial file is gone and that of `beside` is not: no other step leaves that state.
    """
    if current_companion(path, companion) == partial_path(companion):
        publish(companion)
    elif not companion.exists() and _old_companion(companion).exists():
        _old_companion(companion).replace(companion)
    for leftover in (partial_path(companion), partial_path(path), _old_companion(companion)):
        leftover.unlink(missing_ok=True)


def current_companion(path: Path, companion: Path) -> Path:
    """Where the file is that belongs to `path`, although a replacement of both may have been cut off."""
    if companion.exists():
        return companion
    new, old = partial_path(companion), _old_companion(companion)
    return new if new.exists() and not partial_path(path).exists() else old


def _old_companion(companion: Path) -> Path:
    """Where the old file is until the new one has its name: a reader must not take it for that of the new `path`."""
    return companion.with_name(f"{companion.name}.old")


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
