"""Reads records from text files, JSON, JSON lines, CSV, TSV, Parquet and standard input, as a stream.

An unusable record is yielded with its problem; the caller decides whether to skip it or to fail. Blank lines of text
files, JSON lines and tables are not records. A byte order mark takes precedence over the encoding option.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.corpus.encodings import TextFile, has_lone_surrogates, open_text
from dashscope_embeddings.corpus.options import AUTO, InputOptions
from dashscope_embeddings.corpus.records import DuplicateKeys, Fields, Record, record_from_fields
from dashscope_embeddings.corpus.tables import read_parquet, read_table
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dashscope_embeddings.corpus.sources import Source

_log = logging.getLogger("dashscope_embeddings.corpus")


def read_records(source: Source, options: InputOptions) -> Iterator[Record]:
    """The records of one file, in order; in bounded memory, except for JSON arrays.

    Raises:
        InvalidInput: the file cannot be read at all.
        ImportError: Parquet without pyarrow.
    """
    try:
        if source.format == "parquet":
            yield from read_parquet(source, options)
            return
        with open_text(source, options.encoding) as text:
            if text.problem is not None:
                yield Record(f"{source}:1", problem=text.problem, affects_whole_file=True)
            else:
                yield from _TEXT_READERS[source.format](text, options)
    except UnicodeError as error:
        raise InvalidInput(
            f"{source} cannot be read: {error}. Is it cut off, or in another encoding (encoding, --encoding)?"
        ) from error
    except OSError as error:
        raise InvalidInput(f"{source} cannot be read: {error.strerror or error}") from error


def _text_lines(text: TextFile, options: InputOptions) -> Iterator[Record]:
    head = text.head.decode(text.encoding, "ignore")
    if "\n" not in head and "\r" in head.rstrip():
        message = (
            "%s holds carriage returns and no line feeds, and is read as one line: tr '\\r' '\\n' converts it to lines"
        )
        _log.warning(message, text.source)
    # Positions would change whenever a file is added to the folder.
    path = text.source.path_in_folder if options.id_field == AUTO else None
    for number, line, problem in text.lines():
        yield Record(f"{text.source}:{number}", line, None if path is None else f"{path}:{number}", problem)


_MAX_ARRAY_CHARACTERS = 1 << 28


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    return unique if len(unique) == len(pairs) else DuplicateKeys(pairs)


_decode_json = json.JSONDecoder(object_pairs_hook=_build_object).decode
_ARRAY_HINT = "an array is read as the format json (format, --format json)"


def _from_value(place: str, value: Any, options: InputOptions) -> Record:
    if isinstance(value, dict):
        return record_from_fields(place, value, Fields.of(options, value))
    return Record(place, problem=f"is a JSON {type(value).__name__}, not an object with fields")


def _json_lines(text: TextFile, options: InputOptions) -> Iterator[Record]:
    for number, line, decode_problem in text.lines():
        place = f"{text.source}:{number}"
        if decode_problem is not None:
            yield Record(place, problem=decode_problem)
            continue
        try:
            value = _decode_json(line)
        except (ValueError, RecursionError) as error:
            problem = _syntax_problem(error)
            if several := line.startswith("{") and str(error).startswith("Extra data"):
                problem = "holds several JSON values: write one object per line, as jq -c . FILE does"
            elif line.strip() in {"[", "{"}:
                problem = f"begins JSON of several lines: {_ARRAY_HINT}; jq -c . FILE writes one object per line"
            yield Record(place, problem=problem, affects_whole_file=several)
            continue
        if isinstance(value, list):
            several = sum(isinstance(item, dict) for item in value) > 1
            problem = f"is a JSON array: write one object per line; {_ARRAY_HINT}"
            yield Record(place, problem=problem, affects_whole_file=several)
        else:
            yield _from_value(place, value, options)


def _syntax_problem(error: Exception) -> str:
    """Without the line, which the place of the record names."""
    if isinstance(error, json.JSONDecodeError):
        return f"is no JSON: {error.msg} at character {error.colno}"
    if isinstance(error, RecursionError):
        return "is nested too deeply: the text must be a field of the record, or of an object in it"
    return "holds a whole number of thousands of digits: write it as a string"


def _json_array(text: TextFile, options: InputOptions) -> Iterator[Record]:
    content = text.file.read(_MAX_ARRAY_CHARACTERS + 1)
    values: Any = []
    problem, line = None, 1
    if len(content) > _MAX_ARRAY_CHARACTERS:
        problem = "is too large a JSON array: write one object per line, as jq -c '.[]' FILE > FILE.jsonl does"
    elif has_lone_surrogates(content):
        problem = text.decode_problem(content)
    elif content.strip():
        try:
            values = _decode_json(content)
        except (ValueError, RecursionError) as error:
            several = str(error).startswith("Extra data")
            lines = "holds several JSON values: one object per line is the format jsonl (format, --format jsonl)"
            problem, line = lines if several else _syntax_problem(error), getattr(error, "lineno", 1)
    if problem is None and not isinstance(values, list):
        problem = "is not a JSON array of objects: take the array out, as jq '.NAME' FILE does"
    if problem is not None:
        yield Record(f"{text.source}:{line}", problem=problem, affects_whole_file=True)
        return
    for number, value in enumerate(values, start=1):
        yield _from_value(f"{text.source}:{number}", value, options)


_TEXT_READERS = {"txt": _text_lines, "json": _json_array, "jsonl": _json_lines, "csv": read_table, "tsv": read_table}
