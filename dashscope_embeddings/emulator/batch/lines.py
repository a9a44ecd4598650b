"""The lines of a batch's input file: parsing and validation, and the lines of its output and error files."""

from __future__ import annotations

import json
import uuid
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.emulator import embeddings
from dashscope_embeddings.emulator.error_responses import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dashscope_embeddings.catalogue import Model
    from dashscope_embeddings.emulator.batch.service import BatchSettings

_URL = "/v1/embeddings"
_MAX_ERRORS = 100
"""Errors that a failed validation lists at most: a guess."""


def validate(
    content: bytes, endpoint: str, settings: BatchSettings, models: Mapping[str, Model]
) -> tuple[list[bytes], list[dict[str, Any]]]:
    """The lines of a file, and their validation errors.

    Documented codes: `url_not_found` (with its message), `mismatched_model`, `duplicate_custom_id`,
    `model_not_found`. The other codes, and the other messages, are guesses.
    """
    lines = {number: line for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()}
    if len(content) > settings.file_bytes:
        return [], [error_entry("file_too_large", f"The file is larger than {settings.file_bytes} bytes.")]
    if not 0 < len(lines) <= settings.lines:
        code, message = ("too_many_lines", f"more than {settings.lines}") if lines else ("empty_file", "no")
        return [], [error_entry(code, f"The file has {message} lines.")]
    errors, models_by_name = [], dict[str, str]()
    for number, line in lines.items():
        error = _line_error(line, endpoint, models, models_by_name)
        if len(line) > settings.line_bytes:
            error = ("line_too_large", f"The line is larger than {settings.line_bytes} bytes.", None)
        if error is not None:
            errors.append(error_entry(*error, number))
    return list(lines.values()), errors[:_MAX_ERRORS]


def error_entry(code: str, message: str, param: str | None = None, line: int | None = None) -> dict[str, Any]:
    """One entry of a failed batch's `errors`."""
    return {"code": code, "message": message, "param": param, "line": line}


def _line_error(
    raw: bytes, endpoint: str, models: Mapping[str, Model], models_by_name: dict[str, str]
) -> tuple[str, str, str | None] | None:
    """Code, message and field of the first error; `models_by_name` holds the valid lines before, and takes this one."""
    try:
        line = json.loads(raw.decode())
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict):
        return "invalid_json_line", "This line is not parseable as valid JSON.", None
    for field, kind in {"custom_id": str, "method": str, "url": str, "body": dict}.items():
        if not isinstance(line.get(field), kind) or not line[field]:
            return "missing_required_parameter", f"Missing required parameter: '{field}'.", field
    model = line["body"].get("model")
    if not isinstance(model, str):
        return "missing_required_parameter", "Missing required parameter: 'body.model'.", "body.model"
    name, method, url = line["custom_id"], line["method"], line["url"]
    first_model = next(iter(models_by_name.values()), model)
    checks = (
        (method == "POST", "invalid_method", f"The method '{method}' is not supported.", "method"),
        (url == _URL, "url_not_found", f"The provided url '{url}' is not supported by the Batch API.", "url"),
        (url == endpoint, "mismatched_url", f"The batch has another endpoint than '{url}': '{endpoint}'.", "url"),
        (name not in models_by_name, "duplicate_custom_id", f"The custom_id '{name}' is not unique.", "custom_id"),
        (model in models, "model_not_found", f"The model '{model}' does not exist.", "body.model"),
        (model == first_model, "mismatched_model", f"The first line has another model: '{first_model}'.", "body.model"),
    )
    error = next(((code, message, field) for is_met, code, message, field in checks if not is_met), None)
    if error is None:
        models_by_name[name] = model
    return error


def output_line(batch: str, index: int, raw: bytes, models: Mapping[str, Model]) -> bytes:
    """The output file's line for an answered request; computes its vectors."""
    line, request_id = json.loads(raw), _request_id(batch, index)
    reply = embeddings.success_response(embeddings.validate("openai", line["body"], models), request_id).body
    frame = b'{"id":"%b","custom_id":%b,"response":{"status_code":200,"request_id":"%b","body":%b},"error":null}\n'
    return frame % (request_id.encode(), to_json(line["custom_id"]), request_id.encode(), reply)


def error_line(batch: str, index: int, raw: bytes, code: str, message: str) -> bytes:
    """The error file's line for a request that failed."""
    # The documents show both null and {}.
    entry = {
        "id": _request_id(batch, index),
        "custom_id": json.loads(raw)["custom_id"],
        "response": None if index % 2 else {},
        "error": {"code": code, "message": message},
    }
    return to_json(entry) + b"\n"


def _request_id(batch: str, index: int) -> str:
    """An id that is the same at every download without being stored."""
    return str(uuid.UUID(bytes=blake2b(f"{batch} {index}".encode(), digest_size=16).digest()))
