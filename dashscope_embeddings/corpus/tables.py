"""Reads records from CSV, TSV and Parquet, and explains malformed lines and headers."""

from __future__ import annotations

import csv
import logging
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._adapters.arrow import import_pyarrow
from dashscope_embeddings.corpus.encodings import TextFile, has_lone_surrogates
from dashscope_embeddings.corpus.records import DuplicateKeys, Fields, Record, record_from_fields
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dashscope_embeddings.corpus.options import InputOptions
    from dashscope_embeddings.corpus.sources import Source

_log = logging.getLogger("dashscope_embeddings.corpus")


_MAX_FIELD_CHARACTERS = 1 << 30


def read_table(text: TextFile, options: InputOptions) -> Iterator[Record]:
    """The records of a CSV or TSV file."""
    header: list[str] = []
    fields = Fields.of(options, ())
    for place, row in _table_rows(text, options):
        if isinstance(row, Record):
            yield row
        elif not header:
            header, fields = row, Fields.of(options, row)
            if (message := _header_problem(header, text, fields)) is not None:
                yield Record(place, problem=message, affects_whole_file=True)
                return
            if unnamed := [number for number, name in enumerate(row, start=1) if not name.strip()]:
                _log.info("%s: columns without a name are not read: %s", place, ", ".join(map(str, unnamed)))
        elif len(row) == 1 < len(header) and not row[0].strip():
            continue  # a blank line
        elif any(map(has_lone_surrogates, row)):
            yield Record(place, problem=text.decode_problem("".join(row)))
        elif len(row) != len(header):
            counts = f"has {len(row)} fields, and the header {len(header)}"
            message = f"{counts}: does a text that contains the separator lack its quotes?"
            yield Record(place, problem=message)
        else:
            yield record_from_fields(place, dict(zip(header, row, strict=True)), fields)


def _table_rows(text: TextFile, options: InputOptions) -> Iterator[tuple[str, list[str] | Record]]:
    """Place and cells of each line that is not blank; in place of the cells of a malformed one, a Record."""
    # The limit of 131,072 characters per field holds for the whole process: it is raised, never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD_CHARACTERS))
    kind = text.source.format
    rows = csv.reader(
        text.file,
        delimiter=options.delimiter or ("\t" if kind == "tsv" else ","),
        quoting=csv.QUOTE_NONE if options.quoting == "none" else csv.QUOTE_MINIMAL,
        strict=True,  # otherwise an unclosed quote would make the rest of the file one text
    )
    while True:
        line = rows.line_num + 1
        place = f"{text.source}:{line}"
        try:
            if row := next(rows):
                yield place, row
        except StopIteration:
            return
        except csv.Error as error:
            # The lines that an unmatched quote joined were records of their own: more than one record is bad.
            several = rows.line_num > line
            if "end of data" in str(error):
                several, message = True, "a quote that is opened here is never closed"
            else:
                joined = f", and the lines up to {rows.line_num} were read as one text" if several else ""
                message = f"is no {kind.upper()}: {error}{joined}"
            yield place, Record(place, problem=f"{message}: {_QUOTING_RULE}", affects_whole_file=several)


_QUOTING_RULE = (
    'a field that begins with a quote must end with one, and each quote inside is written twice (""). If quotes are '
    "ordinary characters in this file, say so (quoting, --quoting none)"
)
_SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}


def _header_problem(header: list[str], text: TextFile, fields: Fields) -> str | None:
    if any(map(has_lone_surrogates, header)):
        return text.decode_problem("".join(header))
    missing = set(fields.wanted()) - set(header)
    for separator, name in _SEPARATORS.items():
        if len(header) == 1 and missing.intersection(cell.strip(' "') for cell in header[0].split(separator)):
            return f"has {name} between its fields: {_set_delimiter(separator)}"
    problem = record_from_fields("", DuplicateKeys([(name, None) for name in header]), fields).problem
    used = next((separator for separator in _SEPARATORS if len(header) == 1 and separator in header[0]), None)
    if problem is not None and used is not None:
        return f"{problem}. If {_SEPARATORS[used]} are between its fields, {_set_delimiter(used)}"
    return problem


def _set_delimiter(separator: str) -> str:
    shown = "\\t" if separator == "\t" else separator
    return f'set the delimiter (delimiter, --delimiter "{shown}")'


_ROWS_PER_READ = 1024


def read_parquet(source: Source, options: InputOptions) -> Iterator[Record]:
    """The records of a Parquet file; only the columns of text and id are read.

    Raises:
        InvalidInput: the file is damaged, or not a Parquet file.
        ImportError: pyarrow is not installed.
    """
    pa = import_pyarrow()
    try:
        with pa.parquet.ParquetFile(source.path) as file:
            fields = Fields.of(options, file.schema_arrow.names)
            found = record_from_fields(f"{source}:1", _column_names(pa, file.schema_arrow), fields)
            if found.problem is not None:
                yield found._replace(affects_whole_file=True)
                return
            number = 0
            columns = list(dict.fromkeys(fields.wanted()))  # pyarrow takes paths, and reads no other member of a struct
            for rows in file.iter_batches(batch_size=_ROWS_PER_READ, columns=columns):
                for row in range(rows.num_rows):
                    number += 1
                    yield _record_from_row(f"{source}:{number}", rows, row, fields)
    except pa.ArrowException as error:
        raise InvalidInput(f"{source} cannot be read: {error}") from error


def _column_names(pa: Any, children: Iterable[Any]) -> DuplicateKeys:
    """The names of columns; of a struct, with those of its members."""
    return DuplicateKeys(
        [(child.name, _column_names(pa, child.type) if pa.types.is_struct(child.type) else None) for child in children]
    )


def _record_from_row(place: str, rows: Any, row: int, fields: Fields) -> Record:
    try:
        values = {name: column[row].as_py() for name, column in zip(rows.schema.names, rows.columns, strict=True)}
    except UnicodeDecodeError:
        return Record(place, problem="holds bytes that are not UTF-8")
    except (OverflowError, ValueError):
        return Record(place, problem="holds a value that Python cannot represent")
    return record_from_fields(place, values, fields)
