"""The lines of a batch's input file: parsing and validation, and the lines of its output and error files."""

from __future__ import annotations

import json
import uuid
from array import array
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.emulator import embeddings
from dashscope_embeddings.emulator.error_responses import to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from dashscope_embeddings.catalogue import Model
    from dashscope_embeddings.emulator.batch.service import BatchSettings

EMBEDDINGS_URL = "/v1/embeddings"
_MAX_ERRORS = 100
"""Errors that a failed validation lists at most: a guess."""


class FileLines:
    """The non-blank lines of a file, stored as byte offsets, because copies would double the memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._starts, self._ends, self._numbers = array("Q"), array("Q"), array("Q")
        start = number = 0
        while start < len(content):
            end = content.find(b"\n", start)
            end = len(content) if end < 0 else end
            number += 1
            if content[start:end].strip():
                self._starts.append(start)
                self._ends.append(end)
                self._numbers.append(number)
            start = end + 1

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Any:
        """The JSON value of a line.

        Raises:
            ValueError: the line is not JSON.
        """
        return json.loads(self._content[self._starts[index] : self._ends[index]].decode())

    def size_bytes(self, index: int) -> int:
        """Bytes of a line."""
        return self._ends[index] - self._starts[index]

    def line_number(self, index: int) -> int:
        """Number of a line in the file, from 1, with blank lines counted."""
        return self._numbers[index]


ErrorEntry = dict[str, Any]


def error_entry(code: str, message: str, param: str | None = None, line: int | None = None) -> ErrorEntry:
    """One entry of a failed batch's `errors`."""
    return {"code": code, "message": message, "param": param, "line": line}


def validate(
    content: bytes, endpoint: str, settings: BatchSettings, models: Mapping[str, Model]
) -> tuple[FileLines, list[ErrorEntry]]:
    """The lines of a file, and their validation errors.

    Documented codes: `url_not_found` (with its message), `mismatched_model`, `duplicate_custom_id`,
    `model_not_found`. The other codes, and the other messages, are guesses.
    """
    if len(content) > settings.file_bytes:
        return FileLines(b""), [error_entry("file_too_large", f"The file is larger than {settings.file_bytes} bytes.")]
    lines = FileLines(content)
    if len(lines) > settings.lines:
        return lines, [error_entry("too_many_lines", f"The file has more than {settings.lines} lines.")]
    if not len(lines):
        return lines, [error_entry("empty_file", "The file has no lines.")]
    return lines, list(islice(_validation_errors(lines, endpoint, settings, models), _MAX_ERRORS))


def _validation_errors(
    lines: FileLines, endpoint: str, settings: BatchSettings, models: Mapping[str, Model]
) -> Iterator[ErrorEntry]:
    """At most one error for each line."""
    names: set[str] = set()
    first_model: str | None = None
    for index in range(len(lines)):
        number = lines.line_number(index)
        if lines.size_bytes(index) > settings.line_bytes:
            yield error_entry("line_too_large", f"The line is larger than {settings.line_bytes} bytes.", None, number)
            continue
        try:
            line = lines[index]
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict):
            yield error_entry("invalid_json_line", "This line is not parseable as valid JSON.", None, number)
            continue
        error = _field_error(line) or _url_error(line["url"], endpoint)
        if error is None:
            name, model = line["custom_id"], line["body"].get("model")
            first_model = model if first_model is None else first_model
            if name in names:
                error = ("duplicate_custom_id", f"The custom_id '{name}' is not unique.", "custom_id")
            elif model not in models:
                error = ("model_not_found", f"The model '{model}' does not exist.", "body.model")
            elif model != first_model:
                message = f"The model '{model}' is not that of the first line, '{first_model}'."
                error = ("mismatched_model", message, "body.model")
            names.add(name)
        if error is not None:
            yield error_entry(*error, number)


def _field_error(line: dict[str, Any]) -> tuple[str, str, str] | None:
    types = {"custom_id": str, "method": str, "url": str, "body": dict}
    for name, expected_type in types.items():
        if not isinstance(line.get(name), expected_type) or not line[name]:
            return ("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    if line["method"] != "POST":
        return ("invalid_method", f"The method '{line['method']}' is not supported.", "method")
    model = line["body"].get("model")
    if not isinstance(model, str):
        return ("missing_required_parameter", "Missing required parameter: 'body.model'.", "body.model")
    return None


def _url_error(url: str, endpoint: str) -> tuple[str, str, str] | None:
    if url != EMBEDDINGS_URL:
        return ("url_not_found", f"The provided url '{url}' is not supported by the Batch API.", "url")
    if url != endpoint:
        return ("mismatched_url", f"The url '{url}' is not the endpoint of the batch, '{endpoint}'.", "url")
    return None


def output_file(batch: str, lines: FileLines, indices: Iterable[int], models: Mapping[str, Model]) -> bytes:
    """The output file: one line for each answered request, in the order of processing."""
    return b"".join(_output_line(batch, lines, index, models) for index in indices)


def _output_line(batch: str, lines: FileLines, index: int, models: Mapping[str, Model]) -> bytes:
    line, request_id = lines[index], _request_id(batch, index)
    body = embeddings.success_response(embeddings.validate("openai", line["body"], models), request_id).body
    return b'{"id":"%b","custom_id":%b,"response":{"status_code":200,"request_id":"%b","body":%b},"error":null}\n' % (
        request_id.encode(),
        to_json(line["custom_id"]),
        request_id.encode(),
        body,
    )


def error_file(batch: str, lines: FileLines, failed: Iterable[tuple[int, str, str]]) -> bytes:
    """The error file: one line for each (index, code, message)."""
    entries = []
    for index, code, message in failed:
        entry = {
            "id": _request_id(batch, index),
            "custom_id": lines[index]["custom_id"],
            # The documents show both.
            "response": None if index % 2 else {},
            "error": {"code": code, "message": message},
        }
        entries.append(to_json(entry) + b"\n")
    return b"".join(entries)


def _request_id(batch: str, index: int) -> str:
    """An id that is the same at every download without being stored."""
    return str(uuid.UUID(bytes=blake2b(f"{batch} {index}".encode(), digest_size=16).digest()))
