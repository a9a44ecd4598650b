"""The Batch route, `/compatible-mode/v1/files` and `/batches`: whole files of embedding requests at half price.

    emulator = Emulator(batches=BatchSettings(seconds=60), faults=[faults.LineFails(custom_id="row-7")])

It has the requests that this package and usual code with the package `openai` send: upload and read files; create,
retrieve, list and cancel batches. Nothing sleeps and there are no threads: a batch advances, by the emulator's clock,
whenever a request for a file or a batch comes. `validating`, `in_progress` and `finalizing` last
`BatchSettings.seconds` each; in `in_progress` the lines are processed evenly. With 0 seconds the reply to its creation
still says `validating`, and the next request finds it ended. A cancelled batch is `cancelling` for one more stage.
Faults of requests apply to these paths, too: `Throttle(route="POST .*/batches$")`, `Drop(route="/content$")`.

Shapes, codes and limits: https://help.aliyun.com/zh/model-studio/batch-interfaces-compatible-with-openai, its
English edition, and replies quoted in public, read 2026-11-20. Not documented, and guessed: the messages of refusals of
these paths; the error of an embedding line; the results for lines that were not processed.
"""

from __future__ import annotations

import email
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import parse_qsl

from dashscope_embeddings import _process
from dashscope_embeddings.emulator.batch.lifecycle import FINAL_STATUSES, Batch
from dashscope_embeddings.emulator.error_responses import ApiError, json_headers, path_not_found, to_json
from dashscope_embeddings.emulator.messages import Response, json_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dashscope_embeddings.catalogue import Model
    from dashscope_embeddings.emulator.batch.lifecycle import BatchLine
    from dashscope_embeddings.emulator.fault_schedule import Fault, Target
    from dashscope_embeddings.emulator.messages import Request, WireProtocol

_PATH = re.compile(r"\A/compatible-mode/v1/(files|batches)(?:/([^/]+)(?:/([a-z]+))?)?\Z")
"""The collection, an id in it, and an action on it."""
_WINDOWS = {*(f"{hours}h" for hours in range(24, 337)), *(f"{days}d" for days in range(1, 15))}
"""The documented completion windows."""
_REQUIRED_FIELDS = ("input_file_id", "endpoint", "completion_window")


@dataclass(frozen=True)
class BatchSettings:
    """How batches run, and the limits of a file; the defaults are the documented ones, with decimal MB."""

    seconds: float = 0.0
    """Duration of each stage, by the emulator's clock; real ones took hours."""
    lines: int = 50_000
    """Lines allowed in a file."""
    file_bytes: int = 500_000_000
    line_bytes: int = 6_000_000
    unfinished: Literal["errors", "absent"] = "errors"
    """Where lines are that were not processed when a batch expires or is cancelled: in the error file, or in neither.
    Not documented."""


class InvalidFieldError(ApiError):
    """A refusal as the file endpoints were seen to send: names the field, has no code. The messages are guesses."""

    def __init__(self, message: str, param: str | None, status: int = 400) -> None:
        super().__init__(status, "InvalidParameter", message)
        self._param = param

    def response(self, protocol: WireProtocol, request_id: str) -> Response:  # noqa: D102
        del protocol  # both have the same envelope here
        error = {"message": self.message, "type": "invalid_request_error", "param": self._param, "code": None}
        return Response(self.status, to_json({"error": error}), json_headers(request_id))


_T = TypeVar("_T")
_Content = Callable[[], bytes]
"""Makes the content of a file at every call, so that the vectors of a large batch are never all in memory."""


class BatchService:
    """Files and batches of all keys; a fault for a batch or a line comes from `trigger_fault`."""

    def __init__(
        self,
        settings: BatchSettings,
        models: Mapping[str, Model],
        trigger_fault: Callable[[tuple[str, ...], str, Target], Fault | None],
        record_line: Callable[[BatchLine], None],
    ) -> None:
        self.settings, self.models = settings, models
        self.trigger_fault, self.record_line = trigger_fault, record_line
        self._epoch_offset: int | None = None
        self._files: dict[tuple[str, str], _Content] = {}
        """By owner and id, as the batches."""
        self._batches: dict[tuple[str, str], Batch] = {}
        self._lock = _process.ForkSafeLock()

    def handles(self, request: Request) -> bool:
        """Whether the request is for this route."""
        return _PATH.match(request.path) is not None

    def answer(self, request: Request, owner: str, now: float, request_id: str) -> Response:
        """Answers a request to this route, sent with the key whose fingerprint is `owner`. Raises ApiError."""
        with self._lock.current:
            for batch in self._batches.values():
                batch.advance(now)
            reply = self._reply(request, owner, now)
            if isinstance(reply, dict):
                return Response(200, to_json(reply), json_headers(request_id))
        headers = {"content-type": "application/octet-stream", "x-request-id": request_id}
        return Response(200, reply(), headers)

    def unix_time(self, now: float) -> int:
        """Unix seconds at a time of the emulator's clock, which is synchronized at the first call."""
        if self._epoch_offset is None:
            self._epoch_offset = round(time.time() - now)
        return int(self._epoch_offset + now)

    def store_file(self, owner: str, purpose: str, content: _Content) -> str:
        """Adds a file; returns its id."""
        # Error files, too, were seen with the name of output files instead of the documented one.
        name = f"file-{purpose}-{uuid.uuid4().hex[:24]}"
        self._files[owner, name] = content
        return name

    # Requests

    def _reply(self, request: Request, owner: str, now: float) -> dict[str, Any] | _Content:
        """The JSON of a reply, or the content of a file."""
        [(collection, name, action)] = _PATH.findall(request.path)
        match request.method, collection, bool(name), action:
            case "POST", "files", False, "":
                return self._upload_file(request, owner, now)
            case "GET", "files", True, "content":
                return self._find(self._files, owner, name)
            case "POST", "batches", False, "":
                return self._create_batch(request, owner, now)
            case "GET", "batches", False, "":
                return self._list_batches(request, owner)
            case "GET", "batches", True, "":
                return self._find(self._batches, owner, name).shown
            case "POST", "batches", True, "cancel":
                return self._cancel_batch(owner, name, now)
        raise path_not_found()

    def _find(self, things: dict[tuple[str, str], _T], owner: str, name: str) -> _T:
        if (owner, name) not in things:
            raise InvalidFieldError(f"There is no {name} of this key.", "id", 404)
        return things[owner, name]

    def _upload_file(self, request: Request, owner: str, now: float) -> dict[str, Any]:
        form = _multipart_form(request)
        filename, content = form.get("file", (None, b""))
        if filename is None:
            raise InvalidFieldError("'file' is required", "file")
        if form.get("purpose", (None, b""))[1] != b"batch":
            raise InvalidFieldError("'purpose' must be 'batch'", "purpose")
        return {
            "id": self.store_file(owner, "batch", lambda: content),
            "bytes": len(content),
            "created_at": self.unix_time(now),
            "filename": filename,
            "object": "file",
            "purpose": "batch",
            "status": "processed",
            "status_details": None,
        }

    def _create_batch(self, request: Request, owner: str, now: float) -> dict[str, Any]:
        body = json_object(request.body) or {}
        for field in _REQUIRED_FIELDS:
            if not isinstance(body.get(field), str):
                raise InvalidFieldError(f"Missing required parameter: '{field}'.", field)
        if body["completion_window"] not in _WINDOWS:
            raise InvalidFieldError("'completion_window' must be 24h to 336h, or 1d to 14d", "completion_window")
        content = self._find(self._files, owner, body["input_file_id"])()
        fields = {name: body.get(name) for name in (*_REQUIRED_FIELDS, "metadata")}
        batch = Batch(self, owner, content, fields, now)
        self._batches[owner, batch.shown["id"]] = batch
        return batch.shown

    def _cancel_batch(self, owner: str, name: str, now: float) -> dict[str, Any]:
        batch = self._find(self._batches, owner, name)
        if batch.status in FINAL_STATUSES:
            raise InvalidFieldError(f"Cannot cancel a batch with status '{batch.status}'.", None)
        batch.cancel(now)
        return batch.shown

    def _list_batches(self, request: Request, owner: str) -> dict[str, Any]:
        """The batches behind `after`, the latest first, at most `limit` of them, of the files in `input_file_ids`."""
        query = dict(parse_qsl(request.query))
        limit, files = query.get("limit", "20"), query.get("input_file_ids")
        if not limit.isdecimal() or not 1 <= int(limit) <= 100:  # noqa: PLR2004  (the documented bounds)
            raise InvalidFieldError("'limit' must be 1 to 100", "limit")
        batches = [batch.shown for (key, _), batch in reversed(self._batches.items()) if key == owner]
        if files is not None:
            batches = [batch for batch in batches if batch["input_file_id"] in files.split(",")]
        if (after := query.get("after")) is not None:
            ids = [batch["id"] for batch in batches]
            batches = batches[ids.index(after) + 1 :] if after in ids else []
        page = batches[: int(limit)]
        return {
            "object": "list",
            "data": page or None,  # of an empty list, it was seen to be null
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(batches) > len(page),
        }


def _multipart_form(request: Request) -> dict[Any, tuple[str | None, bytes]]:
    """Name → (file name, content) of a form."""
    head = f"content-type: {request.headers.get('content-type', '')}\r\n\r\n"
    form = email.message_from_string(head + request.body.decode("utf-8", "surrogateescape"))
    return {
        part.get_param("name", header="content-disposition"): (
            part.get_filename(),
            str(part.get_payload()).encode("utf-8", "surrogateescape"),
        )
        for part in form.walk()
        if part is not form
    }
