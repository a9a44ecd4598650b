"""Files → records, read as a stream: text files, JSON lines, CSV, TSV, Parquet, folders, globs, standard input.

A record that cannot be used is given out like any other, with what is wrong with it: who reads decides.
"""

from __future__ import annotations

import codecs
import csv
import glob
import importlib
import io
import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO, get_args

from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

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
class Fields:
    """Where in a record the text and its id are, and how its file is encoded."""

    text: str = "text"
    id: str | None = None
    """None: a record's position in the whole input, from 0."""
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        try:
            # What is no encoding of text, as base64 is, fails here as well.
            "".encode(self.encoding)
            object.__setattr__(self, "encoding", codecs.lookup(self.encoding).name)
        except (LookupError, ValueError):
            raise InvalidInput(f"encoding={self.encoding!r}: Python knows no such encoding of text") from None


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or standard input."""

    path: str
    format: Format

    def __str__(self) -> str:
        return "standard input" if self.path == STDIN else self.path


class Record(NamedTuple):
    """One text as it was found."""

    place: str
    """File and line (Parquet: row, from 1), such as `docs/a.csv:17`."""
    text: Any
    id: Any = None
    problem: str | None = None
    """Why there is no text to be had."""


# --- which files -------------------------------------------------------------------------------------------


def find(inputs: Iterable[str | Path], form: Format | None, *, output: Path) -> list[Source]:
    """The files that files, folders, globs and `-` name, in the order given; folders' and globs' by name.

    The output and the files beside it (`{output}.…`) are no input, even where a folder or glob holds them.

    Raises:
        InvalidInput: nothing found, or a file whose format is not known.
    """
    if form is not None and form not in get_args(Format):
        raise InvalidInput(f"format={form!r}: expected one of {', '.join(get_args(Format))}")
    found = []
    for given in map(str, inputs):
        if given == STDIN:
            if form in {None, "parquet"}:
                raise InvalidInput(f"standard input needs a format {_NAMED}: txt, jsonl, csv or tsv")
            paths = [STDIN]
        else:
            paths = _within(Path(given), form, output) if Path(given).is_dir() else _matching(given, output)
        found += [Source(path, form or _format_of(path)) for path in paths]
    if not found:
        raise InvalidInput("no input given")
    if sum(source.path == STDIN for source in found) > 1:
        raise InvalidInput("standard input can be read once only")
    return found


def _matching(given: str, output: Path) -> list[str]:
    there = Path(given).exists()
    paths = [given] if there else sorted(glob.glob(given, recursive=True))  # noqa: PTH207 - keeps names as typed
    paths = [path for path in paths if not Path(path).is_dir() and not _ours(Path(path), output)]
    if not paths:
        what = f"{given} is the output, or belongs to it" if there else f"no such file to read: {given}"
        raise InvalidInput(what)
    return paths


def _within(folder: Path, form: Format | None, output: Path) -> list[str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _ours(path, output))
    paths = [str(path) for path in files if form is not None or path.suffix.lower() in _ENDINGS]
    if not paths:
        raise InvalidInput(f"no file in {folder} ends in {', '.join(_ENDINGS)}: name its format {_NAMED}")
    return paths


def _ours(path: Path, output: Path) -> bool:
    return path.absolute().parent == output.absolute().parent and (
        path.name == output.name or path.name.startswith(f"{output.name}.")
    )


def _format_of(path: str) -> Format:
    ending = Path(path).suffix.lower()
    if ending not in _ENDINGS:
        raise InvalidInput(
            f"{path}: {ending or 'a name without an ending'} says nothing about the format: name it (format, --format)"
        )
    return _ENDINGS[ending]


# --- what is in them ---------------------------------------------------------------------------------------


def records(source: Source, fields: Fields) -> Iterator[Record]:
    """The records of one file, in order, in bounded memory.

    Raises:
        InvalidInput: the file cannot be read at all.
        ImportError: Parquet without pyarrow.
    """
    try:
        if source.format == "parquet":
            yield from _parquet(source, fields)
            return
        with _opened(source, fields.encoding) as file:
            if source.format == "txt":
                yield from _lines(source, file)
            elif source.format == "jsonl":
                yield from _json_lines(source, file, fields)
            else:
                yield from _table(source, file, fields)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"{source} cannot be read: {error}") from error


@contextmanager
def _opened(source: Source, encoding: str) -> Iterator[TextIO]:
    """Undecodable bytes come as surrogates, so that one bad line is one bad record and has its number."""
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding  # some programs begin a file with a mark
    newline = "" if source.format in {"csv", "tsv"} else "\n"  # a carriage return may be part of a text
    if source.path != STDIN:
        with Path(source.path).open(encoding=encoding, errors="surrogateescape", newline=newline) as file:
            yield file
        return
    wrapped = io.TextIOWrapper(sys.stdin.buffer, encoding=encoding, errors="surrogateescape", newline=newline)
    try:
        yield wrapped
    finally:
        wrapped.detach()  # standard input is not ours to close


def undecodable(text: str) -> bool:
    """Whether a text cannot be written as UTF-8."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


_NOT_DECODED = "holds bytes that are not in the file's encoding (UTF-8, unless another is named)"


def _split(file: TextIO) -> Iterator[tuple[int, str]]:
    return enumerate((line.rstrip("\r\n") for line in file), start=1)


def _lines(source: Source, file: TextIO) -> Iterator[Record]:
    name = str(source)
    for number, line in _split(file):
        problem = _NOT_DECODED if not line.isascii() and undecodable(line) else None
        yield Record(f"{name}:{number}", line, None, problem)


def _json_lines(source: Source, file: TextIO, fields: Fields) -> Iterator[Record]:
    for number, line in _split(file):
        place = f"{source}:{number}"
        if undecodable(line):
            yield Record(place, None, None, _NOT_DECODED)
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            said = "is blank" if not line.strip() else f"is no JSON: {error}"
            yield Record(place, None, None, said)
            continue
        if not isinstance(found, dict):
            yield Record(place, None, None, f"is a JSON {type(found).__name__}, not an object with fields")
            continue
        yield _of_fields(place, found, fields)


def _of_fields(place: str, found: dict[str, Any], fields: Fields) -> Record:
    for wanted in (fields.text, fields.id):
        if wanted is not None and wanted not in found:
            return Record(place, None, None, _lacks(wanted, list(found)))
    return Record(place, found[fields.text], None if fields.id is None else found[fields.id])


def _lacks(wanted: str, found: Sequence[str]) -> str:
    shown = 8
    names = ", ".join(map(repr, found[:shown])) + (", …" if len(found) > shown else "")
    return f"has no field {wanted!r}; it has {names or 'none'}"


_LONGEST_FIELD = 1 << 30


def _table(source: Source, file: TextIO, fields: Fields) -> Iterator[Record]:
    # The module's limit of 131,072 characters a field is the process's: it is raised, never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    # Strict: a quote that never ends would otherwise swallow the rest of the file into one text.
    rows = csv.reader(file, delimiter="\t" if source.format == "tsv" else ",", strict=True)
    header: list[str] | None = None
    while True:
        place = f"{source}:{rows.line_num + 1}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):
                # Not one bad record: all that follows the quote would be lost with it.
                raise InvalidInput(f"{place}: a quote that is opened here is never closed") from None
            yield Record(place, None, None, f"is no {source.format.upper()}: {error}")
            continue
        if header is None:
            header = row
            missing = [wanted for wanted in (fields.text, fields.id) if wanted is not None and wanted not in row]
            if missing:
                yield Record(place, None, None, _lacks(missing[0], row))
                return
        elif len(row) != len(header):
            said = "is blank" if not row else f"has {len(row)} fields, and the header {len(header)}"
            yield Record(place, None, None, said)
        elif any(map(undecodable, row)):
            yield Record(place, None, None, _NOT_DECODED)
        else:
            yield _of_fields(place, dict(zip(header, row, strict=True)), fields)


_ROWS = 1024


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


def _parquet(source: Source, fields: Fields) -> Iterator[Record]:
    pa = pyarrow()
    try:
        with pa.parquet.ParquetFile(source.path) as file:
            wanted = [name for name in (fields.text, fields.id) if name is not None]
            names = file.schema_arrow.names
            if lacking := [name for name in wanted if name not in names]:
                yield Record(f"{source}:1", None, None, _lacks(lacking[0], names))
                return
            if doubled := [name for name in wanted if names.count(name) > 1]:
                yield Record(f"{source}:1", None, None, f"has more than one column {doubled[0]!r}")
                return
            number = 0
            for rows in file.iter_batches(batch_size=_ROWS, columns=list(dict.fromkeys(wanted))):
                texts, ids = rows[fields.text], rows[fields.id] if fields.id is not None else None
                for at in range(rows.num_rows):
                    number += 1
                    yield _of_cells(f"{source}:{number}", texts[at], None if ids is None else ids[at])
    except pa.ArrowException as error:
        raise InvalidInput(f"{source} cannot be read: {error}") from error


def _of_cells(place: str, text: Any, found_id: Any) -> Record:
    try:
        return Record(place, text.as_py(), None if found_id is None else found_id.as_py())
    except UnicodeDecodeError:
        return Record(place, None, None, "holds bytes that are not UTF-8")
    except (OverflowError, ValueError):
        return Record(place, None, None, "holds a value that Python has no type for")
