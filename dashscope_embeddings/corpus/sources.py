"""Finds the files of a corpus: each file once, without the outputs of this package."""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from dashscope_embeddings._adapters.arrow import import_pyarrow
from dashscope_embeddings._core.redaction import escape_control_characters
from dashscope_embeddings._runtime.files import as_path
from dashscope_embeddings.errors import InvalidInput

_log = logging.getLogger("dashscope_embeddings.corpus")

Format = Literal["txt", "jsonl", "json", "csv", "tsv", "parquet"]
"""How a file is read: one text per line, one JSON object per line, an array of objects, a table with a header, Parquet.
"""

_EXTENSIONS: dict[str, Format] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
# In folders, most files of these endings are no lists of texts: they are read only if they are named.
_ONLY_NAMED: dict[str, Format] = {".json": "json"}
STDIN = "-"
OUTPUT_EXTENSIONS = (".parquet", ".jsonl", ".npy")
_FORMAT_OPTION = "(format, --format)"
_DECOMPRESS = "is compressed: decompress it, or pipe it in: {} -dc FILE | dashscope-embeddings embed - --format …"


class _Unreadable(NamedTuple):
    """Files that are no lists of texts."""

    endings: str
    signature: bytes
    """A regular expression for how they begin, whatever their names; empty: they are text."""
    advice: str


_UNREADABLE = (
    _Unreadable(
        ".md .markdown .rst",
        b"",
        "is prose: cut it into passages, one JSON object each, or read each line as a text (format, --format txt)",
    ),
    _Unreadable(".gz", rb"\x1f\x8b", _DECOMPRESS.format("gzip")),
    _Unreadable(".bz2", rb"BZh[1-9]1AY&SY", _DECOMPRESS.format("bzip2")),
    _Unreadable(".xz", rb"\xfd7zXZ\0", _DECOMPRESS.format("xz")),
    _Unreadable(".zst", rb"\x28\xb5\x2f\xfd", _DECOMPRESS.format("zstd")),
    _Unreadable(
        ".xls .xlsx .ods", rb"PK\x03\x04.*?(xl/|opendocument\.spreadsheet)", "is a spreadsheet: save it as CSV UTF-8"
    ),
    _Unreadable(
        ".doc .docx .pdf .html .htm",
        rb"%PDF-|{\\rtf1|PK\x03\x04.*?(word/|opendocument\.text)",
        "is a formatted document: extract its passages as text, one JSON object each",
    ),
    _Unreadable("", rb"\xd0\xcf\x11\xe0\xa1\xb1", "is an old Office file: save it as CSV UTF-8, or as plain text"),
    _Unreadable(".zip .tar .7z .rar", rb"PK\x03\x04|.{257}ustar|7z\xbc\xaf|Rar!\x1a", "is an archive: unpack it"),
    _Unreadable("", b"PAR1", "is Parquet: let its name end in .parquet, or set the format (format, --format parquet)"),
    _Unreadable(
        "", rb"SQLite format 3\0|ARROW1\0|\x93NUMPY|Obj\x01", "is a data file: export it as Parquet, CSV or JSON lines"
    ),
)


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or standard input."""

    path: str
    format: Format
    path_in_folder: str | None = None
    """For a file of a folder: the folder's name and the path within it, however the folder was named."""

    def __str__(self) -> str:
        return "standard input" if self.path == STDIN else printable_name(self.path)


def printable_name(name: object) -> str:
    """A file's name with escapes for control characters and for bytes that are not UTF-8."""
    return escape_control_characters(str(name))


# --- find files --------------------------------------------------------------------------------------------


def path_beside(output: str | Path, ending: str) -> Path:
    """The path of a file that belongs to an output, whose name and one more ending it has.

    Raises:
        InvalidInput: the output has no name: it is this folder, or the root.
    """
    if not (path := as_path(output, "output")).name:
        raise InvalidInput(f"output {path} is a folder: name a file")
    return path.with_name(f"{path.name}.{ending}")


class _Candidate(NamedTuple):
    path: str
    path_in_folder: str | None = None
    is_explicit: bool = False
    """Whether the caller named the file itself, not a folder or glob that contains it."""

    @classmethod
    def in_folder(cls, path: Path, folder: Path) -> _Candidate:
        """A file that was found in a folder."""
        name = Path(os.path.abspath(folder)).name  # noqa: PTH100 - not `resolve`: a link keeps its own name
        return cls(str(path), printable_name(Path(name, path.relative_to(folder)).as_posix()))


def find_sources(
    inputs: str | Path | Iterable[str | Path], file_format: Format | None, *, output: Path | None
) -> list[Source]:
    """Resolves files, folders, globs and `-` to files, in the order given; within a folder or glob, by name.

    A file is read once, even if several names lead to it. The output and files beside it (`{output}.…`) are left out.
    So are outputs of other runs, with a warning, unless they are named explicitly and there is nothing else to read.
    Hidden and system files and folders are read only if they are named explicitly.

    Raises:
        InvalidInput: there is no file to read, or the format of one is unknown.
    """
    patterns: list[str] = []
    for name in inputs if isinstance(inputs, Iterable) and not isinstance(inputs, str) else [inputs]:
        as_path(name, "an input")
        patterns.append(str(name))
    if patterns.count(STDIN) > 1:
        raise InvalidInput("standard input can be read only once")
    passed_over: list[Path] = []
    candidates = _deduplicate(file for pattern in patterns for file in _candidates(pattern, file_format, passed_over))
    read: list[_Candidate] = []
    own_files: list[_Candidate] = []
    other_outputs: list[_Candidate] = []
    for candidate in candidates.values():
        if candidate.path == STDIN:
            read.append(candidate)
        elif output is not None and _belongs_to_output(Path(candidate.path), output):
            own_files.append(candidate)
        else:
            (other_outputs if _is_our_output(Path(candidate.path), file_format) else read).append(candidate)
    if not read:
        read = [file for file in other_outputs if file.is_explicit]
        other_outputs = [file for file in other_outputs if not file.is_explicit]
    if not read:
        raise _no_input(own_files, other_outputs)
    left_out = [file for file in own_files if file.is_explicit] + other_outputs
    _warn_of("not read, because this package wrote it", [file.path for file in left_out])
    links = [path for path in passed_over if path.is_dir() and not _is_covered(path, patterns)]
    _warn_of("symbolic links to folders are not followed, name them to read them", links)
    if unnamed := [path for path in passed_over if path.is_file() and _file_identity(str(path)) not in candidates]:
        message = "not read from a folder, name them to read them (prose as lines, --format txt): %s"
        _log.info(message, _join_names(unnamed))
    return [Source(file.path, file_format or _format_of(file.path), file.path_in_folder) for file in read]


_MAX_NAMES = 5
_MAX_NAME_CHARACTERS = 200


def _warn_of(problem: str, paths: Sequence[object]) -> None:
    if paths:
        warnings.warn(f"{problem}: {_join_names(paths)}", UserWarning, stacklevel=5)


def _join_names(paths: Sequence[object]) -> str:
    return ", ".join(map(printable_name, paths[:_MAX_NAMES])) + (", …" if len(paths) > _MAX_NAMES else "")


def _is_covered(folder: Path, patterns: list[str]) -> bool:
    """Whether the target of a link is read through another name."""
    target = Path(os.path.realpath(folder))
    # Not `resolve`: before Python 3.13 it raises RuntimeError for a link to itself.
    return any(Path(os.path.realpath(name)) in (target, *target.parents) for name in patterns if name != STDIN)


def _candidates(pattern: str, file_format: Format | None, passed_over: list[Path]) -> list[_Candidate]:
    """The files of one pattern. Links to folders, and files to be named, are not read, but added to `passed_over`."""
    if pattern == STDIN:
        if file_format in {None, "parquet"}:
            raise InvalidInput(f"standard input needs a format {_FORMAT_OPTION}: txt, jsonl, json, csv or tsv")
        return [_Candidate(STDIN, is_explicit=True)]
    folder = Path(pattern)
    if os.path.isdir(folder):  # noqa: PTH112 - `is_dir` raises for a text that is too long for a name
        visible = sorted(path for path in folder.rglob("*") if not _is_hidden_or_system(path, folder))
        passed_over += [path for path in visible if path.is_symlink() and path.is_dir()]
        files = [path for path in visible if path.is_file()]
        if file_format is None:
            passed_over += [path for path in files if path.suffix.lower() in _ONLY_NAMED or _advice(path)]
        found = [path for path in files if file_format is not None or path.suffix.lower() in _EXTENSIONS]
        if not found:
            raise InvalidInput(
                f"no file in {printable_name(folder)} ends in {', '.join(_EXTENSIONS)}: set the format "
                f"{_FORMAT_OPTION}, or name the files to read"
            )
        return [_Candidate.in_folder(path, folder) for path in found]
    if os.path.exists(folder):  # noqa: PTH110 - as above
        return [_Candidate(pattern, is_explicit=True)]
    matching = map(Path, sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207 - keeps names as typed
    found = [path for path in matching if not path.is_dir() and not _is_hidden_or_system(path, folder)]
    if not found:
        raise InvalidInput(
            f"no such file to read: {printable_name(pattern[:_MAX_NAME_CHARACTERS])} (inputs are files, folders or "
            "globs; in Python, texts themselves go to client.embed)"
        )
    while glob.has_magic(str(folder)):
        folder = folder.parent
    return [_Candidate.in_folder(path, folder) for path in found]


_SYSTEM_FILES = frozenset({"__MACOSX", "$RECYCLE.BIN", "@eaDir", "Thumbs.db", "desktop.ini"})


def _is_hidden_or_system(path: Path, root: Path) -> bool:
    """Whether a file or a folder below `root` is hidden or a system's; `root` itself was named explicitly."""
    return any(part.startswith((".", "~$")) or part in _SYSTEM_FILES for part in path.parts if part not in root.parts)


def _deduplicate(candidates: Iterable[_Candidate]) -> dict[object, _Candidate]:
    """Each file once, at its first position, by its identity; it is explicit if any of its names was explicit."""
    files: dict[object, _Candidate] = {}
    for candidate in candidates:
        identity = _file_identity(candidate.path)
        first = files.setdefault(identity, candidate)
        files[identity] = first._replace(
            is_explicit=first.is_explicit or candidate.is_explicit,
            path_in_folder=first.path_in_folder or candidate.path_in_folder,
        )
    return files


def _file_identity(path: str) -> object:
    """Equal for all names of a file: other paths, symbolic links, hard links."""
    if path == STDIN:
        return STDIN
    try:
        status = Path(path).stat()
    except OSError:
        return path  # reading it will raise the error
    # Some network file systems have no inode numbers.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _no_input(own_files: list[_Candidate], other_outputs: list[_Candidate]) -> InvalidInput:
    if other_outputs:
        return InvalidInput(
            f"this package wrote all files that were found, such as {printable_name(other_outputs[0].path)}: "
            "to embed its texts again, name the file itself"
        )
    if own_files:
        name = printable_name(own_files[0].path)
        return InvalidInput(f"{name} is the output, or belongs to it: there is nothing else to read")
    return InvalidInput("no input given")


def _format_of(path: str) -> Format:
    ending = Path(path).suffix.lower()
    if (known := {**_EXTENSIONS, **_ONLY_NAMED}.get(ending)) is not None:
        return known
    shown = printable_name(ending) or "a name without an ending"
    advice = _advice(Path(path)) or f"cannot be read: {shown} says nothing about the format: set it {_FORMAT_OPTION}"
    raise InvalidInput(f"{printable_name(path)} {advice}")


def _advice(path: Path) -> str | None:
    """What a file without texts is by its name, and what to do about it."""
    ending = path.suffix.lower()
    return next((kind.advice for kind in _UNREADABLE if ending and ending in kind.endings.split()), None)


_CONTROL_CHARACTERS = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b"))
_MAX_CONTROL_SHARE = 0.08
"""Share of control characters in a text, at most; bytes at random have 0.1."""


def binary_problem(head: bytes) -> str | None:
    """What a file is that begins with these bytes, and what to do about it; None: it may be text, but not UTF-16."""
    for kind in _UNREADABLE:
        if kind.signature and re.match(kind.signature, head, re.DOTALL):
            return kind.advice
    if len(head) - len(head.translate(None, _CONTROL_CHARACTERS)) > len(head) * _MAX_CONTROL_SHARE:
        return "is not text: it holds as many control characters as a picture, a program or an archive"
    return None


# --- files that this package wrote -------------------------------------------------------------------------

_REQUIRED_COLUMNS = frozenset({"id", "model", "dimension", "role"})
_OUTPUT_COLUMNS = _REQUIRED_COLUMNS | {"text", "source", "embedding", "sparse_indices", "sparse_values"}
_REJECTS_COLUMNS = frozenset({"id", "place", "reason", "code", "request_id"})
_MAX_ROW_BYTES = 4 << 20
_OUTPUT_EXTENSION_PATTERN = r"(?<=.)\.(parquet|jsonl|npy)(?=\.|$)"


def _belongs_to_output(path: Path, output: Path) -> bool:
    """Whether a file is the output, or lies beside it with a name that begins with the output's."""
    try:
        for candidate in (path, Path(os.path.realpath(path))) if path.is_symlink() else (path,):
            if f"{candidate.name}.".startswith(f"{output.name}.") and candidate.parent.samefile(output.parent):
                return True
        return path.samefile(output)
    except OSError:  # the output does not exist yet
        return False


def _is_our_output(path: Path, file_format: Format | None) -> bool:
    """Whether a run into another output wrote a file: a checkpoint lies beside it, or it has our columns."""
    # Only after an output's ending: other programs write .ledger files too.
    names = (path.name[: match.end()] for match in re.finditer(_OUTPUT_EXTENSION_PATTERN, path.name))
    if any(path.with_name(f"{name}.ledger").exists() for name in names):
        return True
    columns = _columns(path, file_format or _EXTENSIONS.get(path.suffix.lower()))
    return _REQUIRED_COLUMNS <= columns <= _OUTPUT_COLUMNS or columns == _REJECTS_COLUMNS


def _columns(path: Path, kind: Format | None) -> frozenset[str]:
    """The columns of the first row; empty if it cannot be read."""
    with contextlib.suppress(Exception):  # reading it will raise the error
        if path.is_file() and kind == "jsonl":  # a pipe can be read only once
            with path.open("rb") as file:
                first = file.readline(_MAX_ROW_BYTES)
            return frozenset(json.loads(first) if first.startswith(b'{"id":') else ())
        if path.is_file() and kind == "parquet":
            return frozenset(import_pyarrow().parquet.read_schema(path).names)
    return frozenset()
