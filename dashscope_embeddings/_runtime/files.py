"""Paths, and safe file writes: created exclusively, private if they hold texts, replaced atomically."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import IO, TYPE_CHECKING

from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator

PRIVATE_MODE = 0o600
"""Mode of a file that holds texts: only its owner may read it."""
_OUTPUT_MODE = 0o666
"""Mode of an output file; the umask applies."""
# O_NOFOLLOW is missing on Windows, O_BINARY everywhere else.
_EXCLUSIVE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def as_path(name: object, role: str) -> Path:
    """The path that was given as `role`.

    Raises:
        InvalidInput: it is none, or empty, as an unset variable is: that would be the present folder.
    """
    if isinstance(name, (str, os.PathLike)) and name != "":
        return Path(name)
    raise InvalidInput(f"{role} must be a path, not {'an empty string' if name == '' else type(name).__name__}")


def create_exclusive(path: Path, mode: int = PRIVATE_MODE) -> IO[bytes]:
    """Creates a file for reading and writing, not one that exists: symbolic links are never written through."""
    return os.fdopen(os.open(path, _EXCLUSIVE_FLAGS, mode), "w+b")


def ensure_private_file(path: Path) -> None:
    """Creates an empty private file if the path does not exist; FileExistsError: another process was faster."""
    if path.exists():
        return
    if path.is_symlink():
        raise InvalidInput(f"{path} is a symbolic link to nothing: remove it")
    create_exclusive(path).close()


def create_replacing(path: Path, mode: int = PRIVATE_MODE) -> IO[bytes]:
    """`create_exclusive` after removing what an earlier run left at the path; of a link, the link only."""
    path.unlink(missing_ok=True)
    return create_exclusive(path, mode)


def make_private(path: Path) -> None:
    """Removes other users' permissions on a file, if this user owns it and the system has such permissions."""
    with contextlib.suppress(OSError):
        if stat.S_IMODE(path.stat().st_mode) & ~PRIVATE_MODE:
            path.chmod(PRIVATE_MODE)


def partial_path(path: Path) -> Path:
    """Path of a file while it is being written."""
    return path.with_name(f"{path.name}.partial")


@contextlib.contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Adds the file's name to an error that has none, as that of a write: "No space left on device" says not where."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def write_partials(*paths: Path, mode: int = _OUTPUT_MODE) -> Iterator[list[IO[bytes]]]:
    """Opens the `partial_path` of each path for writing; syncs them to disk at the end, removes all after an error.

    They are created in this order and removed in reverse: `recover_pair` depends on it.
    """
    try:
        with name_in_errors(paths[0]), contextlib.ExitStack() as opened:
            files = [opened.enter_context(create_replacing(partial_path(path), mode)) for path in paths]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        for path in reversed(paths):
            partial_path(path).unlink(missing_ok=True)
        raise


def publish(path: Path) -> None:
    """Renames the file that `write_partials` wrote to its final path."""
    try:
        partial_path(path).replace(path)
    except OSError:
        partial_path(path).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


# --- a pair of files ------------------------------------------------------------------------------------


def publish_pair(path: Path, companion: Path) -> None:
    """`publish` for a file and its companion: after an error both are old, or both are new."""
    try:
        if companion.exists():
            companion.replace(_old_companion(companion))
        partial_path(path).replace(path)
        _sync_folder(path.parent)
    finally:
        recover_pair(path, companion)


def recover_pair(path: Path, companion: Path) -> None:
    """Completes or undoes a `publish_pair` that was interrupted at any point.

    It is completed if `path` is new already: its partial file is gone and that of `companion` is not. No other step
    leaves that state.
    """
    if current_companion(path, companion) == partial_path(companion):
        publish(companion)
    elif not companion.exists() and _old_companion(companion).exists():
        _old_companion(companion).replace(companion)
    for leftover in (partial_path(companion), partial_path(path), _old_companion(companion)):
        leftover.unlink(missing_ok=True)


def current_companion(path: Path, companion: Path) -> Path:
    """Path of the companion that belongs to `path`, even after an interrupted `publish_pair`."""
    if companion.exists():
        return companion
    new, old = partial_path(companion), _old_companion(companion)
    return new if new.exists() and not partial_path(path).exists() else old


def _old_companion(companion: Path) -> Path:
    """Path of the old companion until the new one is in place: readers must not combine it with the new `path`."""
    return companion.with_name(f"{companion.name}.old")


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
