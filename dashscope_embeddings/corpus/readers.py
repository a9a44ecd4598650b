"""Read records from text files, JSON lines, CSV, TSV, Parquet and standard input, as a stream.

An unusable record is yielded with its problem; the caller decides whether to skip it or to fail. Blank lines of text
files, JSON lines and tables are not records. A byte order mark takes precedence over the encoding option.
"""

from __future__ import annotations

import codecs
import csv
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dashscope_embeddings._adapters.arrow import import_pyarrow
from dashscope_embeddings.corpus.encodings import TextFile, has_lone_surrogates, open_text
from dashscope_embeddings.corpus.sources import Format, Source
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_log = logging.getLogger("dashscope_embeddings")

__all__ = ["Fields", "Format", "Record", "Source", "has_lone_surrogates", "import_pyarrow", "read_records"]


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields that hold a record's text and id, and the encoding of its file."""

    text: str = "text"
    id: str | None = None
    """None: the id is the record's position in the whole input, from 0."""
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        try:
            # Codecs that do not encode text, such as base64, fail here as well.
            "".encode(self.encoding)
            object.__setattr__(self, "encoding", codecs.lookup(self.encoding).name)
        except (LookupError, ValueError):
            raise InvalidInput(f"encoding={self.encoding!r}: Python knows no such encoding of text") from None


class Record(NamedTuple):
    """One record of a file."""

    place: str
    """File and line (Parquet: row, from 1), such as `docs/a.csv:17`."""
    text: Any
    id: Any = None
    problem: str | None = None
    """Why the record has no usable text; None: it may have one."""
    affects_whole_file: bool = False
    """Whether the problem concerns the whole file: skipping this record alone would lose others."""


def read_records(source: Source, fields: Fields) -> Iterator[Record]:
    """The records of one file, in order, in bounded memory.

    Raises:
        InvalidInput: the file cannot be read at all.
        ImportError: Parquet without pyarrow.
    """
    try:
        if source.format == "parquet":
            yield from _parquet(source, fields)
            return
        with open_text(source, fields.encoding) as text:
            if (wide := text.undeclared_encoding) is not None:
                message = f"looks like {wide} without a byte order mark: set the encoding (encoding, --encoding {wide})"
                yield Record(f"{source}:1", None, None, message, affects_whole_file=True)
            elif source.format == "txt":
                yield from _text_lines(text)
            elif source.format == "jsonl":
                yield from _json_lines(text, fields)
            else:
                yield from _table(text, fields)
    except UnicodeError as error:
        raise InvalidInput(
            f"{source} cannot be read: {error}. Is it cut off, or in another encoding (encoding, --encoding)?"
        ) from error
    except OSError as error:
        raise InvalidInput(f"{source} cannot be read: {error.strerror or error}") from error


def _text_lines(text: TextFile) -> Iterator[Record]:
    head = text.head.decode(text.encoding, "ignore")
    if "\n" not in head and "\r" in head.rstrip():
        message = (
            "%s holds carriage returns and no line feeds, and is read as one line: tr '\\r' '\\n' converts it to lines"
        )
        _log.warning(message, text.source)
    for place, line in text.lines():
        yield Record(place, line, None, text.decode_problem(line) if has_lone_surrogates(line) else None)


# --- JSON lines --------------------------------------------------------------------------------------------


class _DuplicateKeys(dict[str, Any]):
    """An object with a duplicate key."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.all_keys = [key for key, _ in pairs]


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    return unique if len(unique) == len(pairs) else _DuplicateKeys(pairs)


_decode_json = json.JSONDecoder(object_pairs_hook=_build_object).decode
_JQ_HINT = "write one object per line, as jq -c '.[]' FILE does"


def _json_lines(text: TextFile, fields: Fields) -> Iterator[Record]:
    for place, line in text.lines():
        if has_lone_surrogates(line):
            yield Record(place, None, None, text.decode_problem(line))
            continue
        try:
            value = _decode_json(line)
        except (ValueError, RecursionError) as error:
            several = line.startswith("{") and str(error).startswith("Extra data")
            message = "holds several JSON values: write one object per line, as jq -c . FILE does"
            yield Record(
                place, None, None, message if several else _json_problem(line, error), affects_whole_file=several
            )
            continue
        if isinstance(value, dict):
            yield _record_from_fields(place, value, fields)
        elif isinstance(value, list):
            several = sum(isinstance(item, dict) for item in value) > 1
            yield Record(place, None, None, f"is a JSON array: {_JQ_HINT}", affects_whole_file=several)
        else:
            yield Record(place, None, None, f"is a JSON {type(value).__name__}, not an object with fields")


def _json_problem(line: str, error: Exception) -> str:
    if line.strip() in {"[", "{"}:
        return f"begins JSON of several lines: {_JQ_HINT} for an array, and jq -c . FILE for objects"
    if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
        return "holds a whole number of thousands of digits: write it as a string"
    return f"is no JSON: {error}"


def _record_from_fields(place: str, values: dict[str, Any], fields: Fields) -> Record:
    for wanted in (fields.text, fields.id):
        if wanted is not None and wanted not in values:
            problem = _missing_field_problem(wanted, list(values), fields)
            for name, value in values.items():
                if isinstance(value, dict) and wanted in value:
                    problem += f". It is within {name!r}: jq -c '. + .[{json.dumps(name)}]' FILE lifts it out"
                    break
            return Record(place, None, None, problem)
    if isinstance(values, _DuplicateKeys) and (message := _duplicate_field_problem(values.all_keys, fields)):
        return Record(place, None, None, message)
    return Record(place, values[fields.text], None if fields.id is None else values[fields.id])


def _missing_field_problem(wanted: str, present: Sequence[str], fields: Fields) -> str:
    shown = 8
    names = ", ".join(map(repr, present[:shown])) + (", …" if len(present) > shown else "")
    role = "the text (text_field, --text-field)" if wanted == fields.text else "the id (id_field, --id-field)"
    return f"has no field {wanted!r}; it has {names or 'none'}: name the one that holds {role}"


def _duplicate_field_problem(names: Sequence[str], fields: Fields) -> str | None:
    doubled = [wanted for wanted in (fields.text, fields.id) if wanted is not None and names.count(wanted) > 1]
    return f"has more than one field {doubled[0]!r}: rename or remove all but one" if doubled else None


# --- tables ------------------------------------------------------------------------------------------------

_MAX_FIELD_CHARACTERS = 1 << 30


def _table(text: TextFile, fields: Fields) -> Iterator[Record]:
    header: list[str] = []
    for place, row in _table_rows(text):
        if isinstance(row, Record):
            yield row
        elif not header:
            header = row
            if (message := _header_problem(header, text, fields)) is not None:
                yield Record(place, None, None, message, affects_whole_file=True)
                return
        elif len(row) == 1 < len(header) and not row[0].strip():
            continue  # a blank line
        elif any(map(has_lone_surrogates, row)):
            yield Record(place, None, None, text.decode_problem("".join(row)))
        elif len(row) != len(header):
            counts = f"has {len(row)} fields, and the header {len(header)}"
            message = f"{counts}: does a text that contains the separator lack its quotes?"
            yield Record(place, None, None, message)
        else:
            yield _record_from_fields(place, dict(zip(header, row, strict=True)), fields)


def _table_rows(text: TextFile) -> Iterator[tuple[str, list[str] | Record]]:
    """Place and cells of each line that is not blank; in place of the cells of a malformed one, a Record."""
    # The limit of 131,072 characters per field holds for the whole process: it is raised, never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD_CHARACTERS))
    kind = text.source.format
    # Strict: otherwise an unclosed quote would make the rest of the file one text.
    rows = csv.reader(text.file, delimiter="\t" if kind == "tsv" else ",", strict=True)
    while True:
        line = rows.line_num + 1
        place = f"{text.source}:{line}"
        try:
            if row := next(rows):
                yield place, row
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):
                message = f"a quote that is opened here is never closed: {_QUOTING_RULE}"
                yield place, Record(place, None, None, message, affects_whole_file=True)
                return
            several = rows.line_num > line
            message = f"{error}, and the lines up to {rows.line_num} were read as one text" if several else str(error)
            # The lines that an unmatched quote joined were records of their own: more than one record is bad.
            yield (
                place,
                Record(
                    place, None, None, f"is no {kind.upper()}: {message}: {_QUOTING_RULE}", affects_whole_file=several
                ),
            )


_QUOTING_RULE = 'a field that begins with a quote must end with one, and each quote inside is written twice ("")'
_SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}


def _header_problem(header: list[str], text: TextFile, fields: Fields) -> str | None:
    if any(map(has_lone_surrogates, header)):
        return text.decode_problem("".join(header))
    for wanted in (fields.text, fields.id):
        if wanted is None or wanted in header:
            continue
        for separator, name in _SEPARATORS.items():
            if len(header) == 1 and wanted in [cell.strip(' "') for cell in header[0].split(separator)]:
                formats = {
                    "\t": ": name the format tsv (format, --format)",
                    ",": ": name the format csv (format, --format)",
                }
                return f"has {name} between its fields{formats.get(separator, ': write it with commas instead')}"
        return _missing_field_problem(wanted, header, fields)
    return _duplicate_field_problem(header, fields)


# --- Parquet -----------------------------------------------------------------------------------------------

_ROWS_PER_READ = 1024


def _parquet(source: Source, fields: Fields) -> Iterator[Record]:
    pa = import_pyarrow()
    try:
        with pa.parquet.ParquetFile(source.path) as file:
            wanted = [name for name in (fields.text, fields.id) if name is not None]
            names = file.schema_arrow.names
            missing = [name for name in wanted if name not in names]
            problem = (
                _missing_field_problem(missing[0], names, fields)
                if missing
                else _duplicate_field_problem(names, fields)
            )
            if problem is not None:
                yield Record(f"{source}:1", None, None, problem, affects_whole_file=True)
                return
            number = 0
            for rows in file.iter_batches(batch_size=_ROWS_PER_READ, columns=list(dict.fromkeys(wanted))):
                texts, ids = rows[fields.text], rows[fields.id] if fields.id is not None else None
                for row in range(rows.num_rows):
                    number += 1
                    yield _record_from_cells(f"{source}:{number}", texts[row], None if ids is None else ids[row])
    except pa.ArrowException as error:
        raise InvalidInput(f"{source} cannot be read: {error}") from error


def _record_from_cells(place: str, text: Any, record_id: Any) -> Record:
    try:
        return Record(place, text.as_py(), None if record_id is None else record_id.as_py())
    except UnicodeDecodeError:
        return Record(place, None, None, "holds bytes that are not UTF-8")
    except (OverflowError, ValueError):
        return Record(place, None, None, "holds a value that Python cannot represent")
