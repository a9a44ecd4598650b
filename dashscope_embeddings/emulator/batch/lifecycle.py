"""One batch on its way from `validating` to its end, as far as the clock has got."""

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
from dashscope_embeddings.emulator.batch.file_store import BadField, Stored
from dashscope_embeddings.emulator.error_responses import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dashscope_embeddings.catalogue import Model
    from dashscope_embeddings.emulator.batch.service import BatchSettings
    from dashscope_embeddings.emulator.fault_schedule import Fault, Target

Status = Literal["validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"]
ENDED: tuple[Status, ...] = ("completed", "failed", "expired", "cancelled")
_STAMPS = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
_NOT_DONE = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed: the batch was cancelled."),
}
"""As OpenAI does; this service's way is not documented."""


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One line that was worked on."""

    batch: str
    custom_id: str
    model: str
    texts: tuple[str, ...]
    tokens: int
    """What was billed: 0 for a line that failed."""
    code: str | None
    """Of its error; None: it succeeded."""
    fault: str | None
    """Name of the fault that struck."""


@dataclass(frozen=True, slots=True)
class Account:
    """What a batch needs of the emulator around it."""

    models: Mapping[str, Model]
    strike: Callable[[tuple[str, ...], str, Target], Fault | None]
    book: Callable[[BatchLine], None]
    """Log and bill a line."""
    keep: Callable[[Stored], None]
    """Keep a file of results."""
    stamp: Callable[[float], int]
    """The clock's time as Unix seconds."""


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody asked for."""

    owner: str
    input_file: Stored
    endpoint: str
    completion_window: str
    window: float
    """The same in seconds."""
    metadata: dict[str, Any] | None


class Job:
    """A batch.

    Args:
        order: what was asked.
        now: when, by the clock.
        settings: how long it takes, and its limits.
        account: where it works.
    """

    def __init__(self, order: Order, now: float, settings: BatchSettings, account: Account) -> None:
        self.order = order
        self.id = f"batch_{uuid.uuid4()}"
        self.status: Status = "validating"
        self.created_at = account.stamp(now)
        self._settings, self._account = settings, account
        # Deleting its file does not stop a batch here; what the service does is not documented.
        self._content = order.input_file.read()
        self._since, self._deadline = now, now + order.window
        self._fault = account.strike((), self.id, "batches")
        self._stamps: dict[str, int] = {}
        self._errors: list[batch_lines.Error] = []
        self._lines = batch_lines.Lines(b"")
        self._sequence: list[int] = []
        self._worked = self._lost = 0
        self._answered: list[int] = []
        self._failed: list[tuple[int, str, str]] = []
        self._output_file: Stored | None = None
        self._error_file: Stored | None = None

    def view(self) -> dict[str, Any]:
        """As the service tells of it."""
        order = self.order
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": order.endpoint,
            "errors": {"object": "list", "data": self._errors} if self._errors else None,
            "input_file_id": order.input_file.id,
            "completion_window": order.completion_window,
            "status": self.status,
            "output_file_id": None if self._output_file is None else self._output_file.id,
            "error_file_id": None if self._error_file is None else self._error_file.id,
            "created_at": self.created_at,
            # It was seen to stay null, deadline or not.
            "expires_at": None,
            **{f"{name}_at": self._stamps.get(name) for name in _STAMPS},
            "request_counts": {
                "total": len(self._sequence),
                "completed": len(self._answered) + self._lost,
                "failed": len(self._failed),
            },
            "metadata": order.metadata,
        }

    def advance(self, now: float) -> None:
        """Go through every stage whose time is over, and do the lines that are due in the present one."""
        while self.status not in ENDED and now >= (until := self._until()):
            self._leave(until)
        if self.status == "in_progress":
            self._work(self._due(now))

    def cancel(self, now: float) -> None:
        """Stop where it is.

        Raises:
            BadField: where it has ended.
        """
        if self.status in ENDED:
            raise BadField(f"Cannot cancel a batch with status '{self.status}'.", None)
        if self.status != "cancelling":
            self._enter("cancelling", now)

    def _until(self) -> float:
        end = self._since + self._settings.seconds
        return end if self.status == "cancelling" else min(end, self._deadline)

    def _leave(self, at: float) -> None:
        if self.status == "cancelling":
            self._end("cancelled", at)
        elif at < self._since + self._settings.seconds:
            if self.status == "in_progress":
                self._work(self._due(at))
            self._end("expired", at)
        elif self.status == "validating":
            self._validate(at)
        elif self.status == "finalizing":
            self._end("completed", at)
        elif isinstance(self._fault, BatchExpires):
            self._work(int(len(self._sequence) * self._fault.share))
            self._end("expired", at)
        else:
            self._work(len(self._sequence))
            self._enter("finalizing", at)

    def _enter(self, status: Status, at: float) -> None:
        self.status, self._since = status, at
        self._stamps[status] = self._account.stamp(at)

    def _validate(self, at: float) -> None:
        settings, account, fault = self._settings, self._account, self._fault
        lines, self._errors = batch_lines.validate(self._content, self.order.endpoint, settings, account.models)
        if isinstance(fault, BatchFails):
            self._errors = [batch_lines.error_of(fault.code, fault.message, fault.param, fault.line)]
        if self._errors:
            self._enter("failed", at)
            return
        self._lines, self._sequence = lines, _shuffled(len(lines))
        self._enter("in_progress", at)

    def _due(self, now: float) -> int:
        """How many lines are done by then."""
        share = (now - self._since) / self._settings.seconds if self._settings.seconds else 1.0
        if isinstance(self._fault, BatchExpires):
            share *= self._fault.share
        return int(len(self._sequence) * share)

    def _work(self, until: int) -> None:
        for index in self._sequence[self._worked : until]:
            self._do(index)
        self._worked = max(self._worked, until)

    def _do(self, index: int) -> None:
        """Check a line, and book it; its vectors are computed when somebody reads them."""
        line = self._lines[index]
        name, body = line["custom_id"], line["body"]
        texts = embeddings.look("openai", body).texts
        fault = self._account.strike(texts, name, "lines")
        tokens, code = 0, None
        try:
            if isinstance(fault, LineFails):
                code, message = fault.code, fault.words
                self._failed.append((index, code, message))
            else:
                tokens = embeddings.check("openai", body, self._account.models).tokens
                if isinstance(fault, LineLost):
                    self._lost += fault.billed
                    tokens *= fault.billed
                else:
                    self._answered.append(index)
        except Refusal as refusal:
            error = json.loads(refusal.response("openai", "").body)["error"]
            code = error["code"]
            self._failed.append((index, error["code"], error["message"]))
        struck = None if fault is None else type(fault).__name__
        self._account.book(BatchLine(self.id, name, body["model"], texts, tokens, code, struck))

    def _end(self, status: Literal["completed", "expired", "cancelled"], at: float) -> None:
        if status in _NOT_DONE and self._settings.unfinished == "errors":
            self._failed += [(index, *_NOT_DONE[status]) for index in self._sequence[self._worked :]]
        self._enter(status, at)
        # A file without lines is not made: a batch of failures has no output file.
        if self._answered:
            make = partial(batch_lines.output, self.id, self._lines, self._answered, self._account.models)
            self._output_file = self._keep("output", at, make)
        if self._failed:
            self._error_file = self._keep("error", at, partial(batch_lines.errors, self.id, self._lines, self._failed))

    def _keep(self, kind: str, at: float, make: Callable[[], bytes]) -> Stored:
        name = f"{self.id}_{kind}.jsonl"
        file = Stored(self.order.owner, name, "batch_output", self._account.stamp(at), make)
        self._account.keep(file)
        return file


def _shuffled(count: int) -> list[int]:
    """All numbers below, never in their own order: whoever joins results by place must notice."""
    sequence = list(range(count))
    random.Random(count).shuffle(sequence)  # noqa: S311  (repeatable disorder)
    if sequence == sorted(sequence):
        sequence.reverse()
    return sequence
