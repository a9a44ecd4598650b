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

from dashscope_embeddings.emulator.batch.file_store import BadField, Stored, Uploads, object_of, sent_file
from dashscope_embeddings.emulator.batch.lifecycle import ENDED, Account, Job, Order
from dashscope_embeddings.emulator.batch.lists import chosen, listing, page
from dashscope_embeddings.emulator.error_responses import throttled, to_json
from dashscope_embeddings.emulator.messages import Response
from dashscope_embeddings.emulator.quota import OverQuota, Quota

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dashscope_embeddings.catalogue import Model
    from dashscope_embeddings.emulator.batch.lifecycle import BatchLine
    from dashscope_embeddings.emulator.fault_schedule import Fault, Target
    from dashscope_embeddings.emulator.messages import Request

_PATH = re.compile(r"/compatible-mode/v1(/files|/batches)(?:/([^/]+)(/[a-z]+)?)?")
_KEPT = 30 * 86_400
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
class _Call:
    request: Request
    name: str
    """Of the file or batch in the path; empty where there is none."""
    owner: str
    now: float

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.request.query))


_Reply = Response | Callable[[], Response]
"""The latter is called without the lock: contents take their time, others need not wait for them."""


class Batches:
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
        strike: Callable[[tuple[str, ...], str, Target], Fault | None],
        book: Callable[[BatchLine], None],
    ) -> None:
        self.settings = settings
        self._uploads = Uploads()
        self._account = Account(models, strike, book, self._uploads.add, self._stamp)
        self._epoch: int | None = None
        self._jobs: dict[str, Job] = {}
        self._quotas: dict[tuple[str, str], Quota] = {}
        self._routes: dict[tuple[str, str], Callable[[_Call], _Reply]] = {
            ("POST", "/files"): self._upload,
            ("GET", "/files"): self._list_files,
            ("GET", "/files/{}"): self._tell_file,
            ("DELETE", "/files/{}"): self._delete,
            ("GET", "/files/{}/content"): self._content,
            ("POST", "/batches"): self._create,
            ("GET", "/batches"): self._list_batches,
            ("GET", "/batches/{}"): self._retrieve,
            ("POST", "/batches/{}/cancel"): self._cancel,
        }
        self.renew_lock()

    def renew_lock(self) -> None:
        """After a fork: another thread of the parent may have held it."""
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget the quotas' windows; files and batches stay."""
        with self._lock:
            self._quotas.clear()

    def serves(self, request: Request) -> bool:
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
            for job in self._jobs.values():
                job.advance(now)
            reply = self._routes[route](_Call(request, name, owner, now))
        response = reply if isinstance(reply, Response) else reply()
        return replace(response, headers={**response.headers, "x-request-id": request_id})

    def _stamp(self, now: float) -> int:
        # Calendar times run with the emulator's clock, from the day of the first request on.
        if self._epoch is None:
            self._epoch = round(time.time() - now)
        return int(self._epoch + now)

    # Files

    def _upload(self, call: _Call) -> _Reply:
        filename, content, purpose = sent_file(call.request)
        if purpose != "batch":
            raise BadField("'purpose' must be 'batch'", "purpose")
        kept = [file.size or 0 for file in self._uploads.of(call.owner) if file.purpose == "batch"]
        if len(kept) >= self.settings.files or sum(kept) + len(content) > self.settings.stored_bytes:
            raise BadField("The account holds too many files or bytes: delete some.", "file")
        made = self._account.stamp(call.now)
        file = Stored(call.owner, filename, purpose, made, lambda: content, len(content))
        self._uploads.add(file)
        return _json(file.view())

    def _list_files(self, call: _Call) -> _Reply:
        files, more = page(self._uploads.of(call.owner), call.query, 10_000)
        return lambda: _json(listing([file.view() for file in files], more=more))

    def _tell_file(self, call: _Call) -> _Reply:
        file = self._uploads.get(call.name, call.owner)
        return lambda: _json(file.view())

    def _delete(self, call: _Call) -> _Reply:
        self._uploads.remove(call.name, call.owner)
        return _json({"object": "file", "deleted": True, "id": call.name})

    def _content(self, call: _Call) -> _Reply:
        file = self._uploads.get(call.name, call.owner)
        return lambda: Response(200, file.read(), {"content-type": "application/octet-stream"})

    # Batches

    def _create(self, call: _Call) -> _Reply:
        self._count(call, "create", self.settings.per_minute)
        order = self._order(call)
        under_way = [job for job in self._of(call.owner) if job.status not in ENDED]
        if len(under_way) >= self.settings.concurrent:
            raise throttled("Throttling")
        job = Job(order, call.now, self.settings, self._account)
        self._jobs[job.id] = job
        return _json(job.view())

    def _order(self, call: _Call) -> Order:
        body = object_of(call.request.body) or {}
        for field in ("input_file_id", "endpoint", "completion_window"):
            if not isinstance(body.get(field), str):
                raise BadField(f"Missing required parameter: '{field}'.", field)
        metadata = body.get("metadata")
        if metadata is not None and not isinstance(metadata, dict):
            raise BadField("'metadata' must be an object", "metadata")
        for field, longest in (("ds_name", 100), ("ds_description", 200)):
            if len(str((metadata or {}).get(field, ""))) > longest:
                raise BadField(f"'{field}' must be at most {longest} characters", f"metadata.{field}")
        file = self._uploads.get(body["input_file_id"], call.owner)
        if file.purpose != "batch":
            raise BadField("'purpose' of the input file must be 'batch'", "input_file_id")
        window = body["completion_window"]
        return Order(call.owner, file, body["endpoint"], window, _seconds(window), metadata)

    def _retrieve(self, call: _Call) -> _Reply:
        self._count(call, "query", self.settings.per_minute)
        return _json(self._job(call).view())

    def _cancel(self, call: _Call) -> _Reply:
        self._count(call, "cancel", self.settings.per_minute)
        job = self._job(call)
        job.cancel(call.now)
        return _json(job.view())

    def _list_batches(self, call: _Call) -> _Reply:
        self._count(call, "list", self.settings.lists_per_minute)
        oldest = self._account.stamp(call.now) - _KEPT
        found = [job for job in reversed(self._of(call.owner)) if job.created_at >= oldest]
        wanted = chosen(call.query)
        jobs, more = page([job for job in found if wanted(job)], call.query, 100)
        return _json(listing([job.view() for job in jobs], more=more))

    def _of(self, owner: str) -> list[Job]:
        return [job for job in self._jobs.values() if job.order.owner == owner]

    def _job(self, call: _Call) -> Job:
        job = self._jobs.get(call.name)
        if job is None or job.order.owner != call.owner:
            raise BadField(f"No batch found with id '{call.name}'.", None, 404)
        return job

    def _count(self, call: _Call, what: str, limit: int | None) -> None:
        quota = self._quotas.setdefault((call.owner, what), Quota(limit, None, 60.0))
        refused = quota.admit(0, call.now)
        if refused is not None:
            raise OverQuota(*refused)


def _route(request: Request) -> tuple[tuple[str, str], str]:
    match = _PATH.fullmatch(request.path)
    if match is None:
        return (request.method, ""), ""
    kind, name, part = match.groups()
    return (request.method, kind + ("/{}" if name else "") + (part or "")), name or ""


def _json(body: dict[str, Any]) -> Response:
    return Response(200, to_json(body), {"content-type": "application/json"})


def _seconds(window: str) -> float:
    match = re.fullmatch(r"([1-9][0-9]{0,3})([hd])", window)
    hours = int(match[1]) * (24 if match[2] == "d" else 1) if match is not None else 0
    if not 24 <= hours <= 336:  # noqa: PLR2004  (the documented bounds)
        raise BadField("'completion_window' must be 24h to 336h, or 1d to 14d", "completion_window")
    return hours * 3600.0
