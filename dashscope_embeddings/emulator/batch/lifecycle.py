"""One batch: its status, which advances with the emulator's clock from `validating` to a final one, and its results."""

from __future__ import annotations

import json
import random
import uuid
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from dashscope_embeddings.emulator import embeddings
from dashscope_embeddings.emulator.batch import lines as batch_lines
from dashscope_embeddings.emulator.batch.faults import BatchExpires, BatchFails, LineFails, LineLost
from dashscope_embeddings.emulator.batch.files import InvalidFieldError, StoredFile
from dashscope_embeddings.emulator.error_responses import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashscope_embeddings.emulator.batch.service import BatchService

BatchStatus = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
]
FINAL_STATUSES: tuple[BatchStatus, ...] = ("completed", "failed", "expired", "cancelled")
_TIMESTAMPED_STATUSES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
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
    """Class name of the fault that triggered."""


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """The parameters of a batch."""

    owner: str
    """Fingerprint of the key that created it."""
    input_file: StoredFile
    endpoint: str
    completion_window: str
    window_seconds: float
    """`completion_window` in seconds."""
    metadata: dict[str, Any] | None


class Batch:
    """A batch.

    Args:
        request: the parameters.
        now: time of its creation, by the emulator's clock.
        service: gives the settings at its creation, models and faults; logs lines and stores files.
    """

    def __init__(self, request: BatchRequest, now: float, service: BatchService) -> None:
        self.request = request
        self.id = f"batch_{uuid.uuid4()}"
        self.status: BatchStatus = "validating"
        self.created_at = service.unix_time(now)
        self._service, self._settings = service, service.settings
        # Deleting the input file does not stop a batch here; what the service does is not documented.
        self._content = request.input_file.read()
        self._stage_start, self._deadline = now, now + request.window_seconds
        self._fault = service.trigger_fault((), self.id, "batches")
        self._timestamps: dict[str, int] = {}
        self._errors: list[batch_lines.ErrorEntry] = []
        self._lines = batch_lines.FileLines(b"")
        self._line_order: list[int] = []
        self._processed_count = self._lost_count = 0
        self._succeeded: list[int] = []
        self._failed: list[tuple[int, str, str]] = []
        self._output_file: StoredFile | None = None
        self._error_file: StoredFile | None = None

    def to_dict(self) -> dict[str, Any]:
        """The batch as JSON."""
        request = self.request
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": request.endpoint,
            "errors": {"object": "list", "data": self._errors} if self._errors else None,
            "input_file_id": request.input_file.id,
            "completion_window": request.completion_window,
            "status": self.status,
            "output_file_id": None if self._output_file is None else self._output_file.id,
            "error_file_id": None if self._error_file is None else self._error_file.id,
            "created_at": self.created_at,
            # It was seen to stay null despite the deadline.
            "expires_at": None,
            **{f"{name}_at": self._timestamps.get(name) for name in _TIMESTAMPED_STATUSES},
            "request_counts": {
                "total": len(self._line_order),
                "completed": len(self._succeeded) + self._lost_count,
                "failed": len(self._failed),
            },
            "metadata": request.metadata,
        }

    def advance(self, now: float) -> None:
        """Finish every stage whose time is over, and process the lines that are due in the current one."""
        while self.status not in FINAL_STATUSES and now >= (until := self._stage_end()):
            self._finish_stage(until)
        if self.status == "in_progress":
            self._process_until(self._due_line_count(now))

    def cancel(self, now: float) -> None:
        """Stop processing.

        Raises:
            InvalidFieldError: the status is final.
        """
        if self.status in FINAL_STATUSES:
            raise InvalidFieldError(f"Cannot cancel a batch with status '{self.status}'.", None)
        if self.status != "cancelling":
            self._set_status("cancelling", now)

    def _stage_end(self) -> float:
        end = self._stage_start + self._settings.seconds
        return end if self.status == "cancelling" else min(end, self._deadline)

    def _finish_stage(self, at: float) -> None:
        if self.status == "cancelling":
            self._finish("cancelled", at)
        elif at < self._stage_start + self._settings.seconds:
            if self.status == "in_progress":
                self._process_until(self._due_line_count(at))
            self._finish("expired", at)
        elif self.status == "validating":
            self._validate(at)
        elif self.status == "finalizing":
            self._finish("completed", at)
        elif isinstance(self._fault, BatchExpires):
            self._process_until(int(len(self._line_order) * self._fault.share))
            self._finish("expired", at)
        else:
            self._process_until(len(self._line_order))
            self._set_status("finalizing", at)

    def _set_status(self, status: BatchStatus, at: float) -> None:
        self.status, self._stage_start = status, at
        self._timestamps[status] = self._service.unix_time(at)

    def _validate(self, at: float) -> None:
        lines, self._errors = batch_lines.validate(
            self._content, self.request.endpoint, self._settings, self._service.models
        )
        if isinstance(fault := self._fault, BatchFails):
            self._errors = [batch_lines.error_entry(fault.code, fault.message, fault.param, fault.line)]
        if self._errors:
            self._set_status("failed", at)
            return
        self._lines, self._line_order = lines, _shuffled(len(lines))
        self._set_status("in_progress", at)

    def _due_line_count(self, now: float) -> int:
        """Lines that are processed by then."""
        share = (now - self._stage_start) / self._settings.seconds if self._settings.seconds else 1.0
        if isinstance(self._fault, BatchExpires):
            share *= self._fault.share
        return int(len(self._line_order) * share)

    def _process_until(self, until: int) -> None:
        for index in self._line_order[self._processed_count : until]:
            self._process_line(index)
        self._processed_count = max(self._processed_count, until)

    def _process_line(self, index: int) -> None:
        """Validate and record a line; its vectors are computed when the output file is read."""
        line = self._lines[index]
        name, body = line["custom_id"], line["body"]
        texts = embeddings.read_fields("openai", body).texts
        fault = self._service.trigger_fault(texts, name, "lines")
        tokens, code = 0, None
        try:
            if isinstance(fault, LineFails):
                code, message = fault.code, fault.error_message
                self._failed.append((index, code, message))
            else:
                tokens = embeddings.validate("openai", body, self._service.models).tokens
                if isinstance(fault, LineLost):
                    self._lost_count += fault.billed
                    tokens *= fault.billed
                else:
                    self._succeeded.append(index)
        except ApiError as refusal:
            error = json.loads(refusal.response("openai", "").body)["error"]
            code = error["code"]
            self._failed.append((index, code, error["message"]))
        fault_name = None if fault is None else type(fault).__name__
        self._service.record_line(BatchLine(self.id, name, body["model"], texts, tokens, code, fault_name))

    def _finish(self, status: Literal["completed", "expired", "cancelled"], at: float) -> None:
        if status in _UNFINISHED_ERRORS and self._settings.unfinished == "errors":
            self._failed += [
                (index, *_UNFINISHED_ERRORS[status]) for index in self._line_order[self._processed_count :]
            ]
        self._set_status(status, at)
        # An empty file is not created: a batch whose lines all failed has no output file.
        if self._succeeded:
            make = partial(batch_lines.output_file, self.id, self._lines, self._succeeded, self._service.models)
            self._output_file = self._store_file("output", at, make)
        if self._failed:
            self._error_file = self._store_file(
                "error", at, partial(batch_lines.error_file, self.id, self._lines, self._failed)
            )

    def _store_file(self, kind: str, at: float, make_content: Callable[[], bytes]) -> StoredFile:
        name = f"{self.id}_{kind}.jsonl"
        file = StoredFile(self.request.owner, name, "batch_output", self._service.unix_time(at), make_content)
        self._service.store_file(file)
        return file


def _shuffled(count: int) -> list[int]:
    """The numbers below `count`, never in ascending order, to expose clients that join results by position."""
    sequence = list(range(count))
    random.Random(count).shuffle(sequence)  # noqa: S311  (repeatable disorder)
    if sequence == sorted(sequence):
        sequence.reverse()
    return sequence
