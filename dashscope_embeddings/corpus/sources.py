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

from dashscope_embeddings._core.redaction import escaped
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Format = Literal["txt", "jsonl", "csv", "tsv", "parquet"]
"""How a file is read: a text a line, a JSON object a line, a table with a header, or Parquet."""

_ENDINGS: dict[str, Format] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
STDIN = "-"
_NAMED = "(format, --format)"


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or standard input."""

    path: str
    format: Format

    def __str__(self) -> str:
        return "standard input" if self.path == STDIN else shown(self.path)


def shown(name: object) -> str:
    """A file's name as it can be printed and stored: escapes for control characters and bytes that are not UTF-8."""
    return escaped(str(name))


def pyarrow() -> Any:
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


class _Found(NamedTuple):
    path: str
    named: bool
    """Given itself, not as part of a folder or glob."""


def find(inputs: Iterable[str | Path], form: Format | None, *, output: Path | None) -> list[Source]:
    """The files that files, folders, globs and `-` name, in the order given; folders' and globs' by name.

    A file is read once, whatever names lead to it. The output and the files beside it (`{output}.…`) are no input.
    Nor are outputs of other runs, which a warning names, unless nothing else is given and they are given themselves.
    Hidden files and folders, and what systems and programs leave behind, count only where they are given themselves.

    Raises:
        InvalidInput: nothing found, or a file whose format is not known.
    """
    if form is not None and form not in get_args(Format):
        raise InvalidInput(f"format={form!r}: expected one of {', '.join(get_args(Format))}")
    given = list(map(str, inputs))
    linked: list[Path] = []
    candidates = [found for each in given for found in _candidates(each, form, linked)]
    if sum(found.path == STDIN for found in candidates) > 1:
        raise InvalidInput("standard input can be read once only")
    read: list[_Found] = []
    own: list[_Found] = []
    others: list[_Found] = []
    for found in _once(candidates):
        if found.path == STDIN:
            read.append(found)
        elif output is not None and _belongs(Path(found.path), output):
            own.append(found)
        else:
            (others if _written_by_us(Path(found.path), form) else read).append(found)
    if not read:
        read = [found for found in others if found.named]
        others = [found for found in others if not found.named]
    if not read:
        raise _nothing(own, others)
    if left_out := [shown(found.path) for found in [*(found for found in own if found.named), *others]]:
        warnings.warn(f"not read, because this package wrote it: {_some(left_out)}", UserWarning, stacklevel=4)
    if not_followed := [shown(folder) for folder in linked if not _covered(folder, given)]:
        said = f"symbolic links to folders are not followed, name them to have them read: {_some(not_followed)}"
        warnings.warn(said, UserWarning, stacklevel=4)
    return [Source(found.path, form or _format_of(found.path)) for found in read]


_MOST_NAMED = 5


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")


def _covered(folder: Path, given: list[str]) -> bool:
    """Whether what a link leads to is read through another name."""
    target = folder.resolve()
    return any(Path(each).resolve() in (target, *target.parents) for each in given if each != STDIN)


def _candidates(given: str, form: Format | None, linked: list[Path]) -> list[_Found]:
    """Those of one name; links to folders, which are not followed, go to `linked`."""
    if given == STDIN:
        if form in {None, "parquet"}:
            raise InvalidInput(f"standard input needs a format {_NAMED}: txt, jsonl, csv or tsv")
        return [_Found(STDIN, named=True)]
    folder = Path(given)
    if folder.is_dir():
        found = sorted(path for path in folder.rglob("*") if not _left_behind(path, folder))
        linked += [path for path in found if path.is_symlink() and path.is_dir()]
        files = [path for path in found if path.is_file()]
        paths = [str(path) for path in files if form is not None or path.suffix.lower() in _ENDINGS]
        if not paths:
            raise InvalidInput(f"no file in {shown(folder)} ends in {', '.join(_ENDINGS)}: name its format {_NAMED}")
        return [_Found(path, named=False) for path in paths]
    if folder.exists():
        return [_Found(given, named=True)]
    matching = sorted(glob.glob(given, recursive=True))  # noqa: PTH207 - keeps names as typed
    paths = [path for path in matching if not Path(path).is_dir() and not _left_behind(Path(path), folder)]
    if not paths:
        raise InvalidInput(f"no such file to read: {shown(given)}")
    return [_Found(path, named=False) for path in paths]


_LEFT_BEHIND = frozenset({"__MACOSX", "$RECYCLE.BIN", "@eaDir", "Thumbs.db", "desktop.ini"})


def _left_behind(path: Path, given: Path) -> bool:
    """Whether it is hidden, or no person's file: below what was given, for that was named on purpose."""
    return any(part.startswith((".", "~$")) or part in _LEFT_BEHIND for part in path.parts if part not in given.parts)


def _once(found: Iterable[_Found]) -> Iterator[_Found]:
    """Each file at its first place; named is what is named anywhere."""
    files: dict[object, _Found] = {}
    for each in found:
        identity = _identity(each.path)
        first = files.setdefault(identity, each)
        files[identity] = first._replace(named=first.named or each.named)
    yield from files.values()


def _identity(path: str) -> object:
    """The same for all names of a file, through other folders, symbolic links and hard links."""
    if path == STDIN:
        return STDIN
    try:
        status = Path(path).stat()
    except OSError:
        return path  # told when it is read
    # Some network file systems have no numbers for their files.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _nothing(own: list[_Found], others: list[_Found]) -> InvalidInput:
    if own and not others:
        return InvalidInput(f"{shown(own[0].path)} is the output, or belongs to it: nothing else was given to read")
    if others:
        return InvalidInput(
            f"this package wrote all that was found, such as {shown(others[0].path)}: to embed its texts again, "
            "name the file itself"
        )
    return InvalidInput("no input given")


def _format_of(path: str) -> Format:
    ending = Path(path).suffix.lower()
    if ending in _ENDINGS:
        return _ENDINGS[ending]
    if ending == ".json":
        said = f"a JSON object a line is jsonl {_NAMED}; of an array, make that: jq -c '.[]' FILE > FILE.jsonl"
    else:
        said = f"{shown(ending) or 'a name without an ending'} says nothing about the format: name it {_NAMED}"
    raise InvalidInput(f"{shown(path)}: {said}")


# --- what this package wrote -------------------------------------------------------------------------------

_EVERY_ROW = frozenset({"id", "model", "dimension", "role"})
_SOME_ROWS = _EVERY_ROW | {"text", "embedding", "sparse_indices", "sparse_values"}
_REJECTS = frozenset({"id", "place", "reason", "code", "request_id"})
_LONGEST_ROW = 4 << 20


def _belongs(path: Path, output: Path) -> bool:
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


def _written_by_us(path: Path, form: Format | None) -> bool:
    """Whether a run into another output wrote it: a ledger stands beside it, or its columns are ours."""
    parts = path.name.split(".")
    for length in range(2, len(parts) + 1):
        # Endings of outputs only: other programs have ledgers too.
        if parts[length - 1] in {"parquet", "jsonl", "npy"}:
            name = ".".join(parts[:length])
            if path.with_name(f"{name}.ledger").exists():
                return True
    kind = form or _ENDINGS.get(path.suffix.lower())
    columns = _columns(path, kind)
    return _EVERY_ROW <= columns <= _SOME_ROWS or columns == _REJECTS


def _columns(path: Path, kind: Format | None) -> frozenset[str]:
    """Those of its first row; none where that is not to be had."""
    if not path.is_file():
        return frozenset()  # a pipe can be read once only
    try:
        if kind == "jsonl":
            with path.open("rb") as file:
                first = file.readline(_LONGEST_ROW)
            found = json.loads(first) if first.startswith(b'{"id":') else None
            return frozenset(found) if isinstance(found, dict) else frozenset()
        if kind == "parquet":
            return frozenset(pyarrow().parquet.read_schema(path).names)
    except Exception:  # noqa: BLE001 - whatever is wrong with it is told when it is read
        return frozenset()
    return frozenset()
