"""One batch: its status, which advances with the emulator's clock from `validating` to a final one, and its results."""

from __future__ import annotations

import json
import random
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.emulator import embeddings
from dashscope_embeddings.emulator.batch import lines
from dashscope_embeddings.emulator.batch.faults import BatchExpires, BatchFails, LineFails, LineLost
from dashscope_embeddings.emulator.error_responses import ApiError

if TYPE_CHECKING:
    from dashscope_embeddings.emulator.batch.service import BatchService

WINDOW_HOURS = {f"{hours}h": hours for hours in range(24, 337)} | {f"{days}d": 24 * days for days in range(1, 15)}
"""Completion window → hours until a batch expires; the documented bounds."""
FINAL_STATUSES = ("completed", "failed", "expired", "cancelled")
_TIMESTAMPS = ("in_progress", "expires", "finalizing", *FINAL_STATUSES, "cancelling")
_UNFINISHED_ERRORS = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed: the batch was cancelled."),
}
"""Code and message of lines that were not processed, as at OpenAI; this service's way is not documented."""


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
    """A batch of `service`, which gives the settings, models and faults, logs lines and stores files.

    Args:
        service: The service.
        owner: Fingerprint of the key.
        content: The input file's.
        fields: Those of the request, checked.
        now: The time of its creation.
    """

    def __init__(self, service: BatchService, owner: str, content: bytes, fields: dict[str, Any], now: float) -> None:
        self.shown: dict[str, Any] = {
            "id": f"batch_{uuid.uuid4()}",
            "object": "batch",
            **dict.fromkeys(("endpoint", "errors", "input_file_id", "completion_window")),
            "status": "validating",
            **dict.fromkeys(("output_file_id", "error_file_id", "created_at")),
            # `expires_at` was seen to stay null despite the deadline.
            **{f"{name}_at": None for name in _TIMESTAMPS},
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": None,
        }
        """As the service describes it."""
        self.shown |= {**fields, "created_at": service.unix_time(now)}
        self._owner, self._content = owner, content
        self._service, self._settings = service, service.settings
        self._stage_start, self._deadline = now, now + 3600.0 * WINDOW_HOURS[fields["completion_window"]]
        self._fault = service.trigger_fault((), self.shown["id"], "batches")
        self._lines: list[bytes] = []
        self._waiting: list[int] = []
        """Indices of lines that are not processed yet; the next one is the last."""
        self._succeeded: list[int] = []
        self._failed: list[tuple[int, str, str]] = []
        """Index, code and message."""

    @property
    def status(self) -> str:
        """One of the eight that the documents list."""
        return str(self.shown["status"])

    def advance(self, now: float) -> None:
        """Finish every stage whose time is over, and process the lines that are due in the current one."""
        while self.status not in FINAL_STATUSES and now >= (until := self._stage_end()):
            self._finish_stage(until)
        if self.status == "in_progress":
            self._process_until(now)

    def cancel(self, now: float) -> None:
        """Starts to cancel the batch, unless that was done before."""
        if self.status != "cancelling":
            self._set_status("cancelling", now)

    def _stage_end(self) -> float:
        end = self._stage_start + self._settings.seconds
        return end if self.status == "cancelling" else min(end, self._deadline)

    def _finish_stage(self, at: float) -> None:
        if self.status == "in_progress":
            self._process_until(at)
        if self.status == "cancelling":
            self._finish("cancelled", at)
        elif at < self._stage_start + self._settings.seconds:
            self._finish("expired", at)
        elif self.status == "validating":
            self._validate(at)
        elif self.status == "finalizing":
            self._finish("completed", at)
        elif isinstance(self._fault, BatchExpires):
            self._finish("expired", at)
        else:
            self._set_status("finalizing", at)

    def _set_status(self, status: str, at: float) -> None:
        self._stage_start = at
        self.shown |= {"status": status, f"{status}_at": self._service.unix_time(at)}

    def _validate(self, at: float) -> None:
        self._lines, errors = lines.validate(
            self._content, self.shown["endpoint"], self._settings, self._service.models
        )
        if isinstance(fault := self._fault, BatchFails):
            errors = [lines.error_entry(fault.code, fault.message, fault.param, fault.line)]
        if errors:
            self.shown["errors"] = {"object": "list", "data": errors}
            self._set_status("failed", at)
            return
        self._waiting = _shuffled(len(self._lines))
        self.shown["request_counts"]["total"] = len(self._lines)
        self._set_status("in_progress", at)

    def _process_until(self, now: float) -> None:
        """Processes the lines that are due at `now`: lines are spread evenly over the stage."""
        share = (now - self._stage_start) / self._settings.seconds if self._settings.seconds else 1.0
        if isinstance(self._fault, BatchExpires):
            share *= self._fault.share
        due = int(len(self._lines) * share + 1e-6)  # the end of a stage, less its start, may be a little short of it
        while len(self._waiting) > len(self._lines) - due:
            self._process_line(self._waiting.pop())

    def _process_line(self, index: int) -> None:
        """Validate and record a line; its vectors are computed when the output file is read."""
        line = json.loads(self._lines[index])
        name, body = line["custom_id"], line["body"]
        texts = embeddings.read_fields("openai", body).texts
        fault = self._service.trigger_fault(texts, name, "lines")
        tokens, code, message = 0, None, ""
        try:
            if isinstance(fault, LineFails):
                code, message = fault.code, fault.error_message
            else:
                tokens = embeddings.validate("openai", body, self._service.models).tokens
        except ApiError as refusal:
            error = json.loads(refusal.response("openai", "").body)["error"]
            code, message = error["code"], error["message"]
        if code is not None:
            self._failed.append((index, code, message))
        elif isinstance(fault, LineLost):
            tokens *= fault.billed
        else:
            self._succeeded.append(index)
        counts = self.shown["request_counts"]
        counts["failed"] = len(self._failed)
        counts["completed"] += code is None and tokens > 0
        label = None if fault is None else fault.label
        self._service.record_line(BatchLine(self.shown["id"], name, body["model"], texts, tokens, code, label))

    def _finish(self, status: str, at: float) -> None:
        if status in _UNFINISHED_ERRORS and self._settings.unfinished == "errors":
            self._failed += [(index, *_UNFINISHED_ERRORS[status]) for index in reversed(self._waiting)]
            self.shown["request_counts"]["failed"] = len(self._failed)
        self._set_status(status, at)
        # An empty file is not created: a batch whose lines all failed has no output file.
        if self._succeeded:
            self.shown["output_file_id"] = self._service.store_file(self._owner, "batch_output", self._read_output)
        if self._failed:
            self.shown["error_file_id"] = self._service.store_file(self._owner, "batch_output", self._read_errors)

    def _read_output(self) -> bytes:
        name, models = self.shown["id"], self._service.models
        return b"".join(lines.output_line(name, index, self._lines[index], models) for index in self._succeeded)

    def _read_errors(self) -> bytes:
        name = self.shown["id"]
        return b"".join(lines.error_line(name, index, self._lines[index], *error) for index, *error in self._failed)


def _shuffled(count: int) -> list[int]:
    """The numbers below `count`, never in descending order, to expose clients that join results by position."""
    sequence = list(range(count))
    random.Random(count).shuffle(sequence)  # noqa: S311  (repeatable disorder)
    return sequence if sequence == sorted(sequence) else sequence[::-1]
