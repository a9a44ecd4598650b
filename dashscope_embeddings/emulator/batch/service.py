"""The Batch route, `/compatible-mode/v1/files` and `/batches`: whole files of embedding requests at half price.

How to drive it:

    clock = FakeClock()
    emulator = Emulator(
        clock=clock.now,
        batches=BatchSettings(seconds=60, lines=1_000),
        faults=[faults.LineFails(custom_id="row-7"), faults.BatchExpires(share=0.5)],
    )

Time: nothing sleeps and no thread works. A batch moves on when somebody asks for a file or a batch, by as much as
the emulator's clock says: `validating`, `in_progress` and `finalizing` last `BatchSettings.seconds` each, then it is
`completed` (or, after the first, `failed`). With the default of 0 seconds the reply to its creation still says
`validating`, and the next look finds it ended. In `in_progress` the lines get done evenly over the stage; its
deadline is `completion_window` after its creation. Cancelled, it is `cancelling` for one more stage.

`emulator.batches.settings` may be replaced at any time, also that of `in_process()`; a batch keeps the settings of its
creation. `emulator.clear()` leaves files and batches.

Faults, in the one list `Emulator(faults=[...])`, counted apart from the faults of requests:

- `faults.BatchFails(code=, message=, param=, line=)`: a batch fails its validation. Counts batches.
- `faults.BatchExpires(share=0.5)`: a batch expires when its lines should be done, with this share of them. Counts
  batches.
- `faults.LineFails(code="DataInspectionFailed", message=None, custom_id=None)`: a line goes to the error file under
  this code, as it is spelled. Counts lines, in the order in which they are worked on, which is not the file's.
- `faults.LineLost(custom_id=None, billed=False)`: a line is in neither file. Counts lines.

All take `after`, `times`, `every`, `match` (a text of the line), `probability` as the others do: once, if nothing of
`custom_id`, `every`, `match`, `probability` chooses. Faults of requests strike these paths too; `route` restricts
any of them to some: `Throttle(route="POST .*/batches$")`, `Drop(route="/content$", billed=True)`.

What is read off: `emulator.batch_lines` (every line done: batch, custom_id, texts, tokens, code), `emulator.asked`
(with `query`), `emulator.billed_texts` and `billed_tokens`, in which successful lines count when they are done.

Shapes, codes and limits: https://help.aliyun.com/zh/model-studio/batch-interfaces-compatible-with-openai, its
English edition, and replies quoted in public, read 2026-11-20. Not documented, and guessed: all validation codes but
`url_not_found`, `mismatched_model`, `duplicate_custom_id` and `model_not_found`; what refusals of these paths say,
but for the frame; what an embedding line's error looks like; what becomes of lines that were not done when a batch
expires or is cancelled (OpenAI writes `batch_expired` errors for them). A model for free dry runs of chats is not
offered here.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl

from dashscope_embeddings.emulator.batch.file_store import (
    FileStore,
    InvalidFieldError,
    StoredFile,
    parse_json_object,
    parse_uploaded_file,
)
from dashscope_embeddings.emulator.batch.lifecycle import FINAL_STATUSES, Batch, BatchEnvironment, BatchRequest
from dashscope_embeddings.emulator.batch.lists import batch_filter, listing, page
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
"""Seconds for which batches are listed."""


@dataclass(frozen=True)
class BatchSettings:
    """How batches run, and their limits: the documented ones, decimal where a page says MB or GB."""

    seconds: float = 0.0
    """How long each stage lasts by the emulator's clock; real ones took hours."""
    lines: int = 50_000
    """Lines a file may have."""
    file_bytes: int = 500_000_000
    line_bytes: int = 6_000_000
    unfinished: Literal["errors", "absent"] = "errors"
    """Lines not done when a batch expires or is cancelled: in the error file, or in neither. Not documented."""
    per_minute: int | None = 1_000
    """Creations, queries and cancellations an account may make, each; None: no limit."""
    lists_per_minute: int | None = 100
    concurrent: int = 1_000
    """Batches that an account may have under way."""
    files: int = 10_000
    """Files that an account may keep."""
    stored_bytes: int = 100_000_000_000
    """Bytes of files that it may keep: those it sent; the results count nothing here."""


@dataclass(frozen=True, slots=True)
class _RouteCall:
    request: Request
    resource_id: str
    """Of the file or batch in the path; empty where there is none."""
    owner: str
    now: float

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.request.query))


_Reply = Response | Callable[[], Response]
"""The latter is called without the lock: contents take their time, others need not wait for them."""


class BatchService:
    """Files and batches of all keys.

    Args:
        settings: may be changed; a batch keeps those of its creation.
        models: what is on offer.
        strike: gives the fault that strikes a batch or a line.
        book: logs and bills a line.
    """

    def __init__(
        self,
        settings: BatchSettings,
        models: Mapping[str, Model],
        trigger_fault: Callable[[tuple[str, ...], str, Target], Fault | None],
        record_line: Callable[[BatchLine], None],
    ) -> None:
        self.settings = settings
        self._files = FileStore()
        self._environment = BatchEnvironment(models, trigger_fault, record_line, self._files.add, self._unix_time)
        self._epoch_offset: int | None = None
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
        """After a fork: another thread of the parent may have held it."""
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget the quotas' windows; files and batches stay."""
        with self._lock:
            self._quotas.clear()

    def handles(self, request: Request) -> bool:
        """Whether a request is one for these paths."""
        return _route(request)[0] in self._routes

    def answer(self, request: Request, owner: str, now: float, request_id: str) -> Response:
        """Answer one request.

        Args:
            request: one that is served here.
            owner: fingerprint of its key: others' files and batches do not exist for it.
            now: by the emulator's clock.
            request_id: for the reply's header.

        Raises:
            Refusal: whatever the service refuses.
        """
        route, name = _route(request)
        with self._lock:
            for batch in self._batches.values():
                batch.advance(now)
            reply = self._routes[route](_RouteCall(request, name, owner, now))
        response = reply if isinstance(reply, Response) else reply()
        return replace(response, headers={**response.headers, "x-request-id": request_id})

    def _unix_time(self, now: float) -> int:
        # Calendar times run with the emulator's clock, from the day of the first request on.
        if self._epoch_offset is None:
            self._epoch_offset = round(time.time() - now)
        return int(self._epoch_offset + now)

    # Files

    def _upload_file(self, call: _RouteCall) -> _Reply:
        filename, content, purpose = parse_uploaded_file(call.request)
        if purpose != "batch":
            raise InvalidFieldError("'purpose' must be 'batch'", "purpose")
        stored_sizes = [file.size_bytes or 0 for file in self._files.owned_by(call.owner) if file.purpose == "batch"]
        if len(stored_sizes) >= self.settings.files or sum(stored_sizes) + len(content) > self.settings.stored_bytes:
            raise InvalidFieldError("The account holds too many files or bytes: delete some.", "file")
        created_at = self._environment.unix_time(call.now)
        file = StoredFile(call.owner, filename, purpose, created_at, lambda: content, len(content))
        self._files.add(file)
        return _json_response(file.to_dict())

    def _list_files(self, call: _RouteCall) -> _Reply:
        files, more = page(self._files.owned_by(call.owner), call.query, 10_000)
        return lambda: _json_response(listing([file.to_dict() for file in files], has_more=more))

    def _retrieve_file(self, call: _RouteCall) -> _Reply:
        file = self._files.get(call.resource_id, call.owner)
        return lambda: _json_response(file.to_dict())

    def _delete_file(self, call: _RouteCall) -> _Reply:
        self._files.remove(call.resource_id, call.owner)
        return _json_response({"object": "file", "deleted": True, "id": call.resource_id})

    def _file_content(self, call: _RouteCall) -> _Reply:
        file = self._files.get(call.resource_id, call.owner)
        return lambda: Response(200, file.read(), {"content-type": "application/octet-stream"})

    # Batches

    def _create_batch(self, call: _RouteCall) -> _Reply:
        self._check_quota(call, "create", self.settings.per_minute)
        batch_request = self._parse_batch_request(call)
        under_way = [job for job in self._batches_of(call.owner) if job.status not in FINAL_STATUSES]
        if len(under_way) >= self.settings.concurrent:
            raise throttled("Throttling")
        batch = Batch(batch_request, call.now, self.settings, self._environment)
        self._batches[batch.id] = batch
        return _json_response(batch.to_dict())

    def _parse_batch_request(self, call: _RouteCall) -> BatchRequest:
        body = parse_json_object(call.request.body) or {}
        for field in ("input_file_id", "endpoint", "completion_window"):
            if not isinstance(body.get(field), str):
                raise InvalidFieldError(f"Missing required parameter: '{field}'.", field)
        metadata = body.get("metadata")
        if metadata is not None and not isinstance(metadata, dict):
            raise InvalidFieldError("'metadata' must be an object", "metadata")
        for field, max_length in (("ds_name", 100), ("ds_description", 200)):
            if len(str((metadata or {}).get(field, ""))) > max_length:
                raise InvalidFieldError(f"'{field}' must be at most {max_length} characters", f"metadata.{field}")
        file = self._files.get(body["input_file_id"], call.owner)
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
        oldest = self._environment.unix_time(call.now) - _LISTED_SECONDS
        found = [job for job in reversed(self._batches_of(call.owner)) if job.created_at >= oldest]
        matches = batch_filter(call.query)
        batches, more = page([job for job in found if matches(job)], call.query, 100)
        return _json_response(listing([job.to_dict() for job in batches], has_more=more))

    def _batches_of(self, owner: str) -> list[Batch]:
        return [batch for batch in self._batches.values() if batch.request.owner == owner]

    def _find_batch(self, call: _RouteCall) -> Batch:
        batch = self._batches.get(call.resource_id)
        if batch is None or batch.request.owner != call.owner:
            raise InvalidFieldError(f"No batch found with id '{call.resource_id}'.", None, 404)
        return batch

    def _check_quota(self, call: _RouteCall, operation: str, limit: int | None) -> None:
        self._quotas.setdefault((call.owner, operation), Quota(limit, None, 60.0)).admit(0, call.now)


def _route(request: Request) -> tuple[tuple[str, str], str]:
    match = _PATH.fullmatch(request.path)
    if match is None:
        return (request.method, ""), ""
    kind, name, part = match.groups()
    return (request.method, kind + ("/{}" if name else "") + (part or "")), name or ""


def _json_response(body: dict[str, Any]) -> Response:
    return Response(200, to_json(body), {"content-type": "application/json"})


def _window_seconds(window: str) -> float:
    match = re.fullmatch(r"([1-9][0-9]{0,3})([hd])", window)
    hours = int(match[1]) * (24 if match[2] == "d" else 1) if match is not None else 0
    if not 24 <= hours <= 336:  # noqa: PLR2004  (the documented bounds)
        raise InvalidFieldError("'completion_window' must be 24h to 336h, or 1d to 14d", "completion_window")
    return hours * 3600.0
