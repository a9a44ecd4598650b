"""The lines of a batch's file: found, checked, and answered as the synchronous endpoint answers them."""

from __future__ import annotations

import json
import uuid
from array import array
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.emulator import embeddings as emulator_embeddings
from dashscope_embeddings.emulator.error_responses import to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from dashscope_embeddings.catalogue import Model
    from dashscope_embeddings.emulator.batch.service import BatchSettings

EMBEDDINGS_URL = "/v1/embeddings"
_MAX_ERRORS = 100
"""How many errors a failed validation names: a guess."""


class FileLines:
    """The lines of a file that are not blank, as places in its bytes: a copy of each would double them."""

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
            ValueError: where it is none.
        """
        return json.loads(self._content[self._starts[index] : self._ends[index]].decode())

    def size_bytes(self, index: int) -> int:
        """Bytes of a line."""
        return self._ends[index] - self._starts[index]

    def line_number(self, index: int) -> int:
        """Its place in the file, from 1, blank lines counted."""
        return self._numbers[index]


ErrorEntry = dict[str, Any]


def error_entry(code: str, message: str, param: str | None = None, line: int | None = None) -> ErrorEntry:
    """One entry of a failed batch's `errors`."""
    return {"code": code, "message": message, "param": param, "line": line}


def validate(
    content: bytes, endpoint: str, settings: BatchSettings, models: Mapping[str, Model]
) -> tuple[FileLines, list[ErrorEntry]]:
    """The lines of a file, and what is wrong with them.

    Documented codes: `url_not_found` (with its words), `mismatched_model`, `duplicate_custom_id`,
    `model_not_found`. The other codes, and the other words, are guesses.
    """
    if len(content) > settings.file_bytes:
        return FileLines(b""), [error_entry("file_too_large", f"The file is larger than {settings.file_bytes} bytes.")]
    lines = FileLines(content)
    if len(lines) > settings.lines:
        return lines, [error_entry("too_many_lines", f"The file has more than {settings.lines} lines.")]
    if not len(lines):
        return lines, [error_entry("empty_file", "The file has no lines.")]
    errors = []
    for error in _validation_errors(lines, endpoint, settings, models):
        errors.append(error)
        if len(errors) == _MAX_ERRORS:
            break
    return lines, errors


def _validation_errors(
    lines: FileLines, endpoint: str, settings: BatchSettings, models: Mapping[str, Model]
) -> Iterator[ErrorEntry]:
    """At most one a line."""
    names: set[str] = set()
    first_model: str | None = None
    for index in range(len(lines)):
        number = lines.line_number(index)
        if lines.size_bytes(index) > settings.line_bytes:
            words = f"The line is larger than {settings.line_bytes} bytes."
            yield error_entry("line_too_large", words, None, number)
            continue
        try:
            line = lines[index]
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict):
            yield error_entry("invalid_json_line", "This line is not parseable as valid JSON.", None, number)
            continue
        found = _missing_field(line) or _url_error(line["url"], endpoint)
        if found is None:
            name, model = line["custom_id"], line["body"].get("model")
            first_model = model if first_model is None else first_model
            if name in names:
                found = ("duplicate_custom_id", f"The custom_id '{name}' is not unique.", "custom_id")
            elif model not in models:
                found = ("model_not_found", f"The model '{model}' does not exist.", "body.model")
            elif model != first_model:
                words = f"The model '{model}' is not that of the first line, '{first_model}'."
                found = ("mismatched_model", words, "body.model")
            names.add(name)
        if found is not None:
            yield error_entry(*found, number)


def _missing_field(line: dict[str, Any]) -> tuple[str, str, str] | None:
    kinds = {"custom_id": str, "method": str, "url": str, "body": dict}
    for name, kind in kinds.items():
        if not isinstance(line.get(name), kind) or not line[name]:
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
    """The output file: one line each of those that were answered, in the order of their answers."""
    return b"".join(_output_line(batch, lines, index, models) for index in indices)


def _output_line(batch: str, lines: FileLines, index: int, models: Mapping[str, Model]) -> bytes:
    line, name = lines[index], _request_id(batch, index)
    body = emulator_embeddings.success_response(emulator_embeddings.validate("openai", line["body"], models), name).body
    head = f'{{"id":"{name}","custom_id":'.encode() + to_json(line["custom_id"])
    return (
        head + f',"response":{{"status_code":200,"request_id":"{name}","body":'.encode() + body + b'},"error":null}\n'
    )


def error_file(batch: str, lines: FileLines, failed: Iterable[tuple[int, str, str]]) -> bytes:
    """The error file: one line each of (index, code, message)."""
    entries = []
    for index, code, message in failed:
        entry = {
            "id": _request_id(batch, index),
            "custom_id": lines[index]["custom_id"],
            # Both are documented.
            "response": None if index % 2 else {},
            "error": {"code": code, "message": message},
        }
        entries.append(to_json(entry) + b"\n")
    return b"".join(entries)


def _request_id(batch: str, index: int) -> str:
    """The same at every download, without being kept."""
    return str(uuid.UUID(bytes=blake2b(f"{batch} {index}".encode(), digest_size=16).digest()))
