"""The Batch route, `/compatible-mode/v1/files` and `/batches`: whole files of embedding requests at half price.

How to use it:

    clock = FakeClock()
    emulator = Emulator(
        clock=clock.now,
        batches=BatchSettings(seconds=60, lines=1_000),
        faults=[faults.LineFails(custom_id="row-7"), faults.BatchExpires(share=0.5)],
    )

Time: nothing sleeps and there are no threads. A batch advances, by the emulator's clock, whenever a request for a file
or a batch comes. `validating`, `in_progress` and `finalizing` last `BatchSettings.seconds` each, then it is `completed`
(or, after the first, `failed`). With the default of 0 seconds the reply to its creation still says `validating`, and
the next request finds it ended. In `in_progress` the lines are processed evenly over the stage; the deadline is
`completion_window` after the creation. A cancelled batch is `cancelling` for one more stage.

`emulator.batches.settings` may be replaced at any time, also that of `in_process()`; a batch keeps the settings of its
creation. `emulator.clear()` keeps files and batches.

Faults, in the same list `Emulator(faults=[...])`, counted separately from the faults of requests:

- `faults.BatchFails(code=, message=, param=, line=)`: a batch fails its validation. Counts batches.
- `faults.BatchExpires(share=0.5)`: a batch expires when its lines should be done, after this share of them. Counts
  batches.
- `faults.LineFails(code="DataInspectionFailed", message=None, custom_id=None)`: a line is in the error file with this
  code, written as given. Counts lines, in the order of processing, which is not the file's.
- `faults.LineLost(custom_id=None, billed=False)`: a line is in neither file. Counts lines.

All take `after`, `times`, `every`, `match` (a text of the line) and `probability` as the others do, and trigger once if
none of `custom_id`, `every`, `match`, `probability` is set. Faults of requests apply to these paths, too; `route`
restricts them: `Throttle(route="POST .*/batches$")`, `Drop(route="/content$", billed=True)`.

For assertions: `emulator.batch_lines` (every processed line: batch, custom_id, texts, tokens, code), `emulator.asked`
(with `query`), `emulator.billed_texts` and `billed_tokens`, in which successful lines count once they are processed.

Shapes, codes and limits: https://help.aliyun.com/zh/model-studio/batch-interfaces-compatible-with-openai, its
English edition, and replies quoted in public, read 2026-11-20. Not documented, and guessed: all validation codes but
`url_not_found`, `mismatched_model`, `duplicate_custom_id` and `model_not_found`; the messages of refusals of these
paths; the error of an embedding line; the results for lines that were not processed when a batch expires or is
cancelled (OpenAI writes `batch_expired` errors for them). Left out: the model for free dry runs of chats, and filters
of lists other than by input file.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl

from dashscope_embeddings.emulator.batch.files import InvalidFieldError, StoredFile, list_page, parse_uploaded_file
from dashscope_embeddings.emulator.batch.lifecycle import FINAL_STATUSES, Batch, BatchRequest
from dashscope_embeddings.emulator.error_responses import throttled, to_json
from dashscope_embeddings.emulator.messages import Response
from dashscope_embeddings.emulator.quota import Quota

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dashscope_embeddings.catalogue import Model
    from dashscope_embeddings.emulator.batch.lifecycle import BatchLine
    from dashscope_embeddings.emulator.fault_schedule import Fault, Target
    from dashscope_embeddings.emulator.messages import Request

_PATH = re.compile(r"/compatible-mode/v1(/files|/batches)(?:/([^/]+)(/[a-z]+)?)?")
_LISTED_SECONDS = 30 * 86_400
"""Lists show batches for this long after their creation."""
_MAX_FILE_IDS = 20
"""File ids that a list may be filtered by: documented."""


@dataclass(frozen=True)
class BatchSettings:
    """How batches run, and their limits; the defaults are the documented ones, with decimal MB."""

    seconds: float = 0.0
    """Duration of each stage, by the emulator's clock; real ones took hours."""
    lines: int = 50_000
    """Lines allowed in a file."""
    file_bytes: int = 500_000_000
    line_bytes: int = 6_000_000
    unfinished: Literal["errors", "absent"] = "errors"
    """Where lines are that were not processed when a batch expires or is cancelled: in the error file, or in neither.
    Not documented."""
    per_minute: int | None = 1_000
    """Creations, queries and cancellations allowed per account, each; None: no limit."""
    lists_per_minute: int | None = 100
    concurrent: int = 1_000
    """Unfinished batches allowed per account."""
    files: int = 10_000
    """Uploaded files allowed per account."""
    stored_bytes: int = 100_000_000_000
    """Bytes of uploaded files allowed per account; results are not counted."""


@dataclass(frozen=True, slots=True)
class _RouteCall:
    request: Request
    resource_id: str
    """Id of the file or batch in the path; empty if there is none."""
    owner: str
    now: float

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.request.query))


_Reply = Response | Callable[[], Response]
"""A function is called without the lock, because computing a content is slow."""


class BatchService:
    """Files and batches of all keys.

    Args:
        settings: may be replaced; a batch keeps those of its creation.
        models: the available models.
        trigger_fault: returns the fault that triggers for a batch or a line.
        record_line: logs and bills a line.
    """

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
        self._files: dict[str, StoredFile] = {}
        self._batches: dict[str, Batch] = {}
        self._quotas: dict[tuple[str, str], Quota] = {}
        self._routes: dict[tuple[str, str], Callable[[_RouteCall], _Reply]] = {
            ("POST", "/files"): self._upload_file,
            ("GET", "/files"): self._list_files,
            ("GET", "/files/{}"): self._retrieve_file,
            ("DELETE", "/files/{}"): self._delete_file,
            ("GET", "/files/{}/content"): self._file_content,
            ("POST", "/batches"): self._create_batch,
            ("GET", "/batches"): self._list_batches,
            ("GET", "/batches/{}"): self._retrieve_batch,
            ("POST", "/batches/{}/cancel"): self._cancel_batch,
        }
        self.reset_lock()

    def reset_lock(self) -> None:
        """Replace the lock after a fork: another thread of the parent may have held it."""
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Empty the windows of the quotas; files and batches stay."""
        with self._lock:
            self._quotas.clear()

    def handles(self, request: Request) -> bool:
        """Whether the request is for this route."""
        return _route(request)[0] in self._routes

    def answer(self, request: Request, owner: str, now: float, request_id: str) -> Response:
        """Answer one request.

        Args:
            request: a request for this route.
            owner: fingerprint of its key; files and batches of other keys do not exist for it.
            now: time by the emulator's clock.
            request_id: for the header of the response.

        Raises:
            ApiError: the service refuses the request.
        """
        route, name = _route(request)
        with self._lock:
            for batch in self._batches.values():
                batch.advance(now)
            reply = self._routes[route](_RouteCall(request, name, owner, now))
        response = reply if isinstance(reply, Response) else reply()
        return replace(response, headers={**response.headers, "x-request-id": request_id})

    def unix_time(self, now: float) -> int:
        """Unix seconds at a time of the emulator's clock, which is synchronized at the first call."""
        if self._epoch_offset is None:
            self._epoch_offset = round(time.time() - now)
        return int(self._epoch_offset + now)

    # Files

    def _upload_file(self, call: _RouteCall) -> _Reply:
        filename, content, purpose = parse_uploaded_file(call.request)
        if purpose != "batch":
            raise InvalidFieldError("'purpose' must be 'batch'", "purpose")
        sizes = [file.size_bytes or 0 for file in self._files.values() if file.is_upload_of(call.owner)]
        if len(sizes) >= self.settings.files or sum(sizes) + len(content) > self.settings.stored_bytes:
            raise InvalidFieldError("The account holds too many files or bytes: delete some.", "file")
        created_at = self.unix_time(call.now)
        file = StoredFile(call.owner, filename, purpose, created_at, lambda: content, len(content))
        self.store_file(file)
        return _json_response(file.to_dict())

    def _list_files(self, call: _RouteCall) -> _Reply:
        files = [file for file in reversed(self._files.values()) if file.owner == call.owner]
        return lambda: _json_response(list_page(files, call.query, 10_000, 10_000))

    def _retrieve_file(self, call: _RouteCall) -> _Reply:
        file = self._find_file(call.resource_id, call.owner)
        return lambda: _json_response(file.to_dict())

    def _delete_file(self, call: _RouteCall) -> _Reply:
        del self._files[self._find_file(call.resource_id, call.owner).id]
        return _json_response({"object": "file", "deleted": True, "id": call.resource_id})

    def _file_content(self, call: _RouteCall) -> _Reply:
        file = self._find_file(call.resource_id, call.owner)
        return lambda: Response(200, file.read(), {"content-type": "application/octet-stream"})

    def _find_file(self, file_id: str, owner: str) -> StoredFile:
        file = self._files.get(file_id)
        if file is None or file.owner != owner:
            raise InvalidFieldError(f"No such File object: {file_id}", "id", 404)
        return file

    def store_file(self, file: StoredFile) -> None:
        """Add a file."""
        self._files[file.id] = file

    # Batches

    def _create_batch(self, call: _RouteCall) -> _Reply:
        self._check_quota(call, "create", self.settings.per_minute)
        batch_request = self._parse_batch_request(call)
        unfinished = [batch for batch in self._batches_of(call.owner) if batch.status not in FINAL_STATUSES]
        if len(unfinished) >= self.settings.concurrent:
            raise throttled("Throttling")
        batch = Batch(batch_request, call.now, self)
        self._batches[batch.id] = batch
        return _json_response(batch.to_dict())

    def _parse_batch_request(self, call: _RouteCall) -> BatchRequest:
        body = call.request.json_object() or {}
        for field in ("input_file_id", "endpoint", "completion_window"):
            if not isinstance(body.get(field), str):
                raise InvalidFieldError(f"Missing required parameter: '{field}'.", field)
        metadata = body.get("metadata")
        if metadata is not None and not isinstance(metadata, dict):
            raise InvalidFieldError("'metadata' must be an object", "metadata")
        for field, max_length in (("ds_name", 100), ("ds_description", 200)):
            if len(str((metadata or {}).get(field, ""))) > max_length:
                raise InvalidFieldError(f"'{field}' must be at most {max_length} characters", f"metadata.{field}")
        file = self._find_file(body["input_file_id"], call.owner)
        if file.purpose != "batch":
            raise InvalidFieldError("'purpose' of the input file must be 'batch'", "input_file_id")
        window = body["completion_window"]
        return BatchRequest(call.owner, file, body["endpoint"], window, _window_seconds(window), metadata)

    def _retrieve_batch(self, call: _RouteCall) -> _Reply:
        self._check_quota(call, "query", self.settings.per_minute)
        return _json_response(self._find_batch(call).to_dict())

    def _cancel_batch(self, call: _RouteCall) -> _Reply:
        self._check_quota(call, "cancel", self.settings.per_minute)
        batch = self._find_batch(call)
        batch.cancel(call.now)
        return _json_response(batch.to_dict())

    def _list_batches(self, call: _RouteCall) -> _Reply:
        self._check_quota(call, "list", self.settings.lists_per_minute)
        oldest, file_ids = self.unix_time(call.now) - _LISTED_SECONDS, call.query.get("input_file_ids", "")
        if file_ids.count(",") >= _MAX_FILE_IDS:
            raise InvalidFieldError(f"'input_file_ids' must be at most {_MAX_FILE_IDS}", "input_file_ids")
        batches = [
            batch
            for batch in reversed(self._batches_of(call.owner))
            if batch.created_at >= oldest and (not file_ids or batch.request.input_file.id in file_ids.split(","))
        ]
        return _json_response(list_page(batches, call.query, 20, 100))

    def _batches_of(self, owner: str) -> list[Batch]:
        return [batch for batch in self._batches.values() if batch.request.owner == owner]

    def _find_batch(self, call: _RouteCall) -> Batch:
        batch = self._batches.get(call.resource_id)
        if batch is None or batch.request.owner != call.owner:
            raise InvalidFieldError(f"No batch found with id '{call.resource_id}'.", None, 404)
        return batch

    def _check_quota(self, call: _RouteCall, operation: str, per_minute: int | None) -> None:
        quota = Quota(per_minute, None, 60.0)
        self._quotas.setdefault((call.owner, operation), quota).admit(0, call.now)


def _route(request: Request) -> tuple[tuple[str, str], str]:
    """The key in the table of routes, and the id in the path."""
    match = _PATH.fullmatch(request.path)
    if match is None:
        return (request.method, ""), ""
    collection, resource_id, action = match.groups()
    return (request.method, collection + ("/{}" if resource_id else "") + (action or "")), resource_id or ""


def _json_response(body: dict[str, Any]) -> Response:
    return Response(200, to_json(body), {"content-type": "application/json"})


def _window_seconds(window: str) -> float:
    match = re.fullmatch(r"([1-9][0-9]{0,3})([hd])", window)
    hours = int(match[1]) * (24 if match[2] == "d" else 1) if match is not None else 0
    if not 24 <= hours <= 336:  # noqa: PLR2004  (the documented bounds)
        raise InvalidFieldError("'completion_window' must be 24h to 336h, or 1d to 14d", "completion_window")
    return hours * 3600.0
