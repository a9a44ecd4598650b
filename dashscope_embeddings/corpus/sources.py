"""Which files a corpus is read from: each once, and none that this package wrote."""

from __future__ import annotations

import glob
import importlib
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from dashscope_embeddings._core.redaction import escape_control_characters
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Format = Literal["txt", "jsonl", "csv", "tsv", "parquet"]
"""How a file is read: a text a line, a JSON object a line, a table with a header, or Parquet."""

_EXTENSIONS: dict[str, Format] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
STDIN = "-"
_FORMAT_OPTION = "(format, --format)"


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or standard input."""

    path: str
    format: Format

    def __str__(self) -> str:
        return "standard input" if self.path == STDIN else printable_name(self.path)


def printable_name(name: object) -> str:
    """A file's name as it can be printed and stored: escapes for control characters and bytes that are not UTF-8."""
    return escape_control_characters(str(name))


def import_pyarrow() -> Any:
    """The package, which only Parquet needs.

    Raises:
        ImportError: it is not installed.
    """
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError as missing:
        raise ImportError('Parquet needs pyarrow: pip install "dashscope-embeddings[corpus]"') from missing


# --- which files -------------------------------------------------------------------------------------------


class _Candidate(NamedTuple):
    path: str
    is_explicit: bool
    """Given itself, not as part of a folder or glob."""


def find_sources(inputs: Iterable[str | Path], file_format: Format | None, *, output: Path | None) -> list[Source]:
    """The files that files, folders, globs and `-` name, in the order given; folders' and globs' by name.

    A file is read once, whatever names lead to it. The output and the files beside it (`{output}.…`) are no input.
    Nor are outputs of other runs, which a warning names, unless nothing else is given and they are given themselves.
    Hidden files and folders, and what systems and programs leave behind, count only where they are given themselves.

    Raises:
        InvalidInput: nothing found, or a file whose format is not known.
    """
    if file_format is not None and file_format not in get_args(Format):
        raise InvalidInput(f"format={file_format!r}: expected one of {', '.join(get_args(Format))}")
    patterns = list(map(str, inputs))
    unfollowed_links: list[Path] = []
    candidates = [found for each in patterns for found in _candidates(each, file_format, unfollowed_links)]
    if sum(found.path == STDIN for found in candidates) > 1:
        raise InvalidInput("standard input can be read once only")
    read: list[_Candidate] = []
    own_files: list[_Candidate] = []
    other_outputs: list[_Candidate] = []
    for found in _deduplicate(candidates):
        if found.path == STDIN:
            read.append(found)
        elif output is not None and _belongs_to_output(Path(found.path), output):
            own_files.append(found)
        else:
            (other_outputs if _is_our_output(Path(found.path), file_format) else read).append(found)
    if not read:
        read = [found for found in other_outputs if found.is_explicit]
        other_outputs = [found for found in other_outputs if not found.is_explicit]
    if not read:
        raise _no_input(own_files, other_outputs)
    if left_out := [
        printable_name(found.path) for found in [*(found for found in own_files if found.is_explicit), *other_outputs]
    ]:
        warnings.warn(f"not read, because this package wrote it: {_join_names(left_out)}", UserWarning, stacklevel=4)
    if not_followed := [printable_name(folder) for folder in unfollowed_links if not _is_covered(folder, patterns)]:
        message = (
            f"symbolic links to folders are not followed, name them to have them read: {_join_names(not_followed)}"
        )
        warnings.warn(message, UserWarning, stacklevel=4)
    return [Source(found.path, file_format or _format_of(found.path)) for found in read]


_MAX_NAMES = 5


def _join_names(names: list[str]) -> str:
    return ", ".join(names[:_MAX_NAMES]) + (", …" if len(names) > _MAX_NAMES else "")


def _is_covered(folder: Path, patterns: list[str]) -> bool:
    """Whether what a link leads to is read through another name."""
    target = folder.resolve()
    return any(Path(each).resolve() in (target, *target.parents) for each in patterns if each != STDIN)


def _candidates(pattern: str, file_format: Format | None, unfollowed_links: list[Path]) -> list[_Candidate]:
    """Those of one name; links to folders, which are not followed, go to `linked`."""
    if pattern == STDIN:
        if file_format in {None, "parquet"}:
            raise InvalidInput(f"standard input needs a format {_FORMAT_OPTION}: txt, jsonl, csv or tsv")
        return [_Candidate(STDIN, is_explicit=True)]
    folder = Path(pattern)
    if folder.is_dir():
        found = sorted(path for path in folder.rglob("*") if not _is_hidden_or_system(path, folder))
        unfollowed_links += [path for path in found if path.is_symlink() and path.is_dir()]
        files = [path for path in found if path.is_file()]
        paths = [str(path) for path in files if file_format is not None or path.suffix.lower() in _EXTENSIONS]
        if not paths:
            raise InvalidInput(
                f"no file in {printable_name(folder)} ends in {', '.join(_EXTENSIONS)}: "
                f"name its format {_FORMAT_OPTION}"
            )
        return [_Candidate(path, is_explicit=False) for path in paths]
    if folder.exists():
        return [_Candidate(pattern, is_explicit=True)]
    matching = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - keeps names as typed
    paths = [path for path in matching if not Path(path).is_dir() and not _is_hidden_or_system(Path(path), folder)]
    if not paths:
        raise InvalidInput(f"no such file to read: {printable_name(pattern)}")
    return [_Candidate(path, is_explicit=False) for path in paths]


_SYSTEM_FILES = frozenset({"__MACOSX", "$RECYCLE.BIN", "@eaDir", "Thumbs.db", "desktop.ini"})


def _is_hidden_or_system(path: Path, root: Path) -> bool:
    """Whether it is hidden, or no person's file: below what was given, for that was named on purpose."""
    return any(part.startswith((".", "~$")) or part in _SYSTEM_FILES for part in path.parts if part not in root.parts)


def _deduplicate(found: Iterable[_Candidate]) -> Iterator[_Candidate]:
    """Each file at its first place; named is what is named anywhere."""
    files: dict[object, _Candidate] = {}
    for each in found:
        identity = _file_identity(each.path)
        first = files.setdefault(identity, each)
        files[identity] = first._replace(is_explicit=first.is_explicit or each.is_explicit)
    yield from files.values()


def _file_identity(path: str) -> object:
    """The same for all names of a file, through other folders, symbolic links and hard links."""
    if path == STDIN:
        return STDIN
    try:
        status = Path(path).stat()
    except OSError:
        return path  # told when it is read
    # Some network file systems have no numbers for their files.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _no_input(own_files: list[_Candidate], other_outputs: list[_Candidate]) -> InvalidInput:
    if own_files and not other_outputs:
        return InvalidInput(
            f"{printable_name(own_files[0].path)} is the output, or belongs to it: nothing else was given to read"
        )
    if other_outputs:
        return InvalidInput(
            f"this package wrote all that was found, such as {printable_name(other_outputs[0].path)}: "
            "to embed its texts again, name the file itself"
        )
    return InvalidInput("no input given")


def _format_of(path: str) -> Format:
    ending = Path(path).suffix.lower()
    if ending in _EXTENSIONS:
        return _EXTENSIONS[ending]
    if ending == ".json":
        message = (
            f"a JSON object a line is jsonl {_FORMAT_OPTION}; of an array, make that: jq -c '.[]' FILE > FILE.jsonl"
        )
    else:
        shown = printable_name(ending) or "a name without an ending"
        message = f"{shown} says nothing about the format: name it {_FORMAT_OPTION}"
    raise InvalidInput(f"{printable_name(path)}: {message}")


# --- what this package wrote -------------------------------------------------------------------------------

_REQUIRED_COLUMNS = frozenset({"id", "model", "dimension", "role"})
_OUTPUT_COLUMNS = _REQUIRED_COLUMNS | {"text", "embedding", "sparse_indices", "sparse_values"}
_REJECTS_COLUMNS = frozenset({"id", "place", "reason", "code", "request_id"})
_MAX_ROW_BYTES = 4 << 20


def _belongs_to_output(path: Path, output: Path) -> bool:
    """Whether it is the output, or stands beside it under its name, however both are spelled."""
    try:
        if not output.parent.is_dir():
            return False
        for each in (path, path.resolve()) if path.is_symlink() else (path,):
            named = each.name == output.name or each.name.startswith(f"{output.name}.")
            if named and each.parent.samefile(output.parent):
                return True
        return output.exists() and path.samefile(output)
    except OSError:
        return False


def _is_our_output(path: Path, file_format: Format | None) -> bool:
    """Whether a run into another output wrote it: a ledger stands beside it, or its columns are ours."""
    parts = path.name.split(".")
    for length in range(2, len(parts) + 1):
        # Endings of outputs only: other programs have ledgers too.
        if parts[length - 1] in {"parquet", "jsonl", "npy"}:
            name = ".".join(parts[:length])
            if path.with_name(f"{name}.ledger").exists():
                return True
    kind = file_format or _EXTENSIONS.get(path.suffix.lower())
    columns = _columns(path, kind)
    return _REQUIRED_COLUMNS <= columns <= _OUTPUT_COLUMNS or columns == _REJECTS_COLUMNS


def _columns(path: Path, kind: Format | None) -> frozenset[str]:
    """Those of its first row; none where that is not to be had."""
    if not path.is_file():
        return frozenset()  # a pipe can be read once only
    try:
        if kind == "jsonl":
            with path.open("rb") as file:
                first = file.readline(_MAX_ROW_BYTES)
            found = json.loads(first) if first.startswith(b'{"id":') else None
            return frozenset(found) if isinstance(found, dict) else frozenset()
        if kind == "parquet":
            return frozenset(import_pyarrow().parquet.read_schema(path).names)
    except Exception:  # noqa: BLE001 - whatever is wrong with it is told when it is read
        return frozenset()
    return frozenset()
