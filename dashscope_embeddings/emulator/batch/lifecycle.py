"""One batch: its status, which advances with the emulator's clock from `validating` to a final one, and its results."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.emulator import embeddings
from dashscope_embeddings.emulator.error_responses import ApiError, to_json
from dashscope_embeddings.emulator.fault_schedule import BatchExpires, BatchFails, LineFails, LineLost
from dashscope_embeddings.emulator.messages import json_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dashscope_embeddings.catalogue import Model
    from dashscope_embeddings.emulator.batch.service import BatchService, BatchSettings
    from dashscope_embeddings.emulator.messages import EmbeddingRequest

FINAL_STATUSES = ("completed", "failed", "expired", "cancelled")
_UNFINISHED_ERRORS = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed: the batch was cancelled."),
}
"""Code and message of lines that were not processed, as at OpenAI; this service's way is not documented."""
_URL = "/v1/embeddings"


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One processed line, in the log."""

    batch: str
    """Id of the batch."""
    custom_id: str
    model: str
    texts: tuple[str, ...]
    tokens: int
    """Tokens billed: 0 for a line that failed."""
    code: str | None
    """Code of its error; None: it succeeded."""
    fault: str | None
    """Name of the fault that triggered."""


class Batch:
    """A batch of `service`, created at `now` with the key whose fingerprint is `owner`, by a request with `fields`."""

    def __init__(self, service: BatchService, owner: str, content: bytes, fields: dict[str, Any], now: float) -> None:
        self.shown: dict[str, Any] = {
            "id": f"batch_{uuid.uuid4()}",
            "object": "batch",
            **fields,
            "errors": None,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": service.unix_time(now),
            # `expires_at` was seen to stay null despite the deadline.
            **{f"{name}_at": None for name in ("in_progress", "expires", "finalizing", *FINAL_STATUSES, "cancelling")},
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
        }
        """As the service describes it."""
        self._owner, self._content = owner, content
        self._service, self._settings = service, service.settings
        self._stage_start = now
        self._fault = service.trigger_fault((), self.shown["id"], "batches")
        self._waiting: list[dict[str, Any]] = []
        """Lines that are not processed yet; the next one is the last, so that the results come in an order that exposes
        clients which join them by position."""
        self._succeeded: list[tuple[str, EmbeddingRequest]] = []
        """`custom_id` and request of each line."""
        self._failed: list[bytes] = []
        """Lines of the error file."""

    @property
    def status(self) -> str:
        """One of the eight that the documents list."""
        return str(self.shown["status"])

    def advance(self, now: float) -> None:
        """Finish every stage whose time is over, and process the lines that are due in the current one."""
        while self.status not in FINAL_STATUSES and now >= self._stage_start + self._settings.seconds:
            self._finish_stage(self._stage_start + self._settings.seconds)
        if self.status == "in_progress":
            self._process_until(now)

    def cancel(self, now: float) -> None:
        """Starts to cancel the batch, unless that was done before."""
        if self.status != "cancelling":
            self._set_status("cancelling", now)

    def _finish_stage(self, at: float) -> None:
        match self.status:
            case "validating":
                self._validate(at)
            case "in_progress":
                self._process_until(at)
                if isinstance(self._fault, BatchExpires):
                    self._finish("expired", at)
                else:
                    self._set_status("finalizing", at)
            case "finalizing":
                self._finish("completed", at)
            case "cancelling":
                self._finish("cancelled", at)

    def _set_status(self, status: str, at: float) -> None:
        self._stage_start = at
        self.shown |= {"status": status, f"{status}_at": self._service.unix_time(at)}

    def _validate(self, at: float) -> None:
        lines, errors = _validate_file(self._content, self.shown["endpoint"], self._settings, self._service.models)
        if isinstance(fault := self._fault, BatchFails):
            errors = [_validation_error(fault.code, fault.message, fault.param, fault.line)]
        if errors:
            self.shown["errors"] = {"object": "list", "data": errors}
            self._set_status("failed", at)
            return
        self._waiting, self.shown["request_counts"]["total"] = lines, len(lines)
        self._set_status("in_progress", at)

    def _process_until(self, now: float) -> None:
        """Processes the lines that are due at `now`: lines are spread evenly over the stage."""
        share = (now - self._stage_start) / self._settings.seconds if self._settings.seconds else 1.0
        if isinstance(self._fault, BatchExpires):
            share *= self._fault.share
        total = self.shown["request_counts"]["total"]
        due = int(total * share + 1e-6)  # the end of a stage, less its start, may be a little short of it
        while len(self._waiting) > total - due:
            self._process_line(self._waiting.pop())

    def _process_line(self, line: dict[str, Any]) -> None:
        """Checks and records a line; its vectors are computed when the output file is read."""
        request = embeddings.read_request("openai", line["body"])
        fault = self._service.trigger_fault(request.texts, line["custom_id"], "lines")
        code, message = (fault.code, fault.message) if isinstance(fault, LineFails) else (None, "")
        if code is None:
            try:
                request = embeddings.validate(request, line["body"], self._service.models)
            except ApiError as refusal:
                error = refusal.compatible_error()
                code, message = error["code"], error["message"]
        tokens = request.tokens  # 0 unless it is valid
        if code is not None:
            self._fail(line, code, message)
        elif isinstance(fault, LineLost):
            tokens *= fault.billed
        else:
            self._succeeded.append((line["custom_id"], request))
        self.shown["request_counts"]["completed"] += tokens > 0
        name = None if fault is None else fault.label
        self._service.record_line(
            BatchLine(self.shown["id"], line["custom_id"], request.model, request.texts, tokens, code, name)
        )

    def _fail(self, line: dict[str, Any], code: str, message: str) -> None:
        entry = {
            "id": str(uuid.uuid4()),
            "custom_id": line["custom_id"],
            "response": None if len(self._failed) % 2 else {},  # the documents show both
            "error": {"code": code, "message": message},
        }
        self._failed.append(to_json(entry) + b"\n")
        self.shown["request_counts"]["failed"] += 1

    def _finish(self, status: str, at: float) -> None:
        if status in _UNFINISHED_ERRORS and self._settings.unfinished == "errors":
            for line in reversed(self._waiting):
                self._fail(line, *_UNFINISHED_ERRORS[status])
        self._set_status(status, at)
        # An empty file is not created: a batch whose lines all failed has no output file.
        for field, lines, read in (
            ("output_file_id", self._succeeded, self._read_output),
            ("error_file_id", self._failed, lambda: b"".join(self._failed)),
        ):
            if lines:
                self.shown[field] = self._service.store_file(self._owner, "batch_output", read)

    def _read_output(self) -> bytes:
        frame = b'{"id":"%b","custom_id":%b,"response":{"status_code":200,"request_id":"%b","body":%b},"error":null}\n'
        output = []
        for i, (name, request) in enumerate(self._succeeded):
            # The same at every download, without being stored.
            request_id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.shown['id']} {i}"))
            reply = embeddings.success_response(request, request_id).body
            output.append(frame % (request_id.encode(), to_json(name), request_id.encode(), reply))
        return b"".join(output)


def _validate_file(
    content: bytes, endpoint: str, settings: BatchSettings, models: Mapping[str, Model]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of a file, and their validation errors.

    Documented codes: `url_not_found` (with its message), `mismatched_model`, `duplicate_custom_id`,
    `model_not_found`. The other codes, and the other messages, are guesses.
    """
    numbered = [(number, raw) for number, raw in enumerate(content.split(b"\n"), start=1) if raw.strip()]
    if not 0 < len(numbered) <= settings.lines or len(content) > settings.file_bytes:
        limits = f"1 to {settings.lines} lines, and {settings.file_bytes} bytes"
        return [], [_validation_error("file_too_large" if numbered else "empty_file", f"A file may have {limits}.")]
    lines: dict[str, dict[str, Any]] = {}
    """The valid ones, by `custom_id`."""
    errors = []
    for number, raw in numbered:
        line = json_object(raw) or {}
        error = _line_error(line, endpoint, models, lines)
        if len(raw) > settings.line_bytes:
            error = ("line_too_large", f"A line may have {settings.line_bytes} bytes.", None)
        if error is None:
            lines[line["custom_id"]] = line
        else:
            errors.append(_validation_error(*error, number))
    return list(lines.values()), errors


def _line_error(
    line: dict[str, Any], endpoint: str, models: Mapping[str, Model], lines: dict[str, dict[str, Any]]
) -> tuple[str, str, str | None] | None:
    """Code, message and field of the first error of a line that follows `lines`."""
    name, url, body = line.get("custom_id"), line.get("url"), line.get("body")
    model = body.get("model") if isinstance(body, dict) else None
    if not (isinstance(name, str) and isinstance(model, str) and line.get("method") == "POST"):
        return "invalid_json_line", "A line is a JSON object with custom_id, method POST, url, and body.model.", None
    first_model = next(iter(lines.values()))["body"]["model"] if lines else model
    if not url == endpoint == _URL:
        return "url_not_found", f"The provided url '{url}' is not supported by the Batch API.", "url"
    if name in lines:
        return "duplicate_custom_id", f"The custom_id '{name}' is not unique.", "custom_id"
    if model not in models:
        return "model_not_found", f"The model '{model}' does not exist.", "body.model"
    if model != first_model:
        return "mismatched_model", f"The first line has another model: '{first_model}'.", "body.model"
    return None


def _validation_error(code: str, message: str, param: str | None = None, line: int | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param, "line": line}
