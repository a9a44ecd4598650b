"""The flows of the batch commands: submit, poll, download, cancel. Generators that decide; a driver sends the requests.

The checkpoint records each step before it is taken, and its result right after. A flow may be interrupted between any
two steps; another one continues from there, on another machine too.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from dashscope_embeddings._core.other_endpoints import RETRYABLE_ACTIONS, RequestSender, sleep
from dashscope_embeddings.corpus.batch import messages
from dashscope_embeddings.corpus.batch.request_file import RequestFileWriter, line_name
from dashscope_embeddings.corpus.batch.results import ResultImporter
from dashscope_embeddings.errors import (
    BadReply,
    BadRequestError,
    Cancelled,
    ConnectionFailed,
    DashScopeError,
    ServiceError,
)
from dashscope_embeddings.vectors import counted

if TYPE_CHECKING:
    from pathlib import Path

    from dashscope_embeddings._core.other_endpoints import RequestFlow
    from dashscope_embeddings.corpus.batch.job import BatchJob
    from dashscope_embeddings.corpus.batch.messages import BatchStatus
    from dashscope_embeddings.corpus.checkpoint.jobs import Selection
    from dashscope_embeddings.corpus.checkpoint.rows import BatchFile

FIRST_POLL_SECONDS, MAX_POLL_SECONDS = 30.0, 120.0
"""Seconds between polls; the vendor's page says to poll every one or two minutes."""
_POLL_GROWTH_FACTOR = 1.5
_MAX_FAILED_POLLS = 20
"""Consecutive polls that may fail, each after its own retries, before `run` raises."""
_MAX_PAGES = 20

# Codes of failed validations that would recur with another file. Sources: the vendor's page on error codes, seen
# 2026-11-20, and one recorded reply (url_not_found).
_PERMANENT_ERROR_HINTS = {
    "model_not_found": "This model is not offered through Batch files here: embed in real time, or use another model",
    "mismatched_model": "Its file names only one model, so this is a bug here or of the service: embed in real time",
    "url_not_found": "Batch files for embeddings are documented for Beijing only: embed in real time elsewhere",
    "duplicate_custom_id": "Each line has its own id, so this is a bug here or of the service: embed in real time",
    "file_too_large": "Files respect the documented limits, but this account has lower ones: embed in real time",
}


class BatchFlow:
    """The flows of one command."""

    def __init__(self, job: BatchJob) -> None:
        self._job, self._job_store, self._report = job, job.job_store, job.report
        self._sender = RequestSender(replace(job.settings.error_context, path=""), job.settings.max_retries)
        self._skipped_batches: set[int] = set()
        """Batches not polled again in this command: unknown to the service, or with incomplete results."""
        self._has_permanent_error = False

    # --- whole commands -------------------------------------------------------------------------------------

    def submit_all(self) -> RequestFlow[None]:
        """Submits all pending texts."""
        yield from self._resume_interrupted(create=True)
        self._job_store.reset_attempts()
        yield from self._submit("all")

    def status(self) -> RequestFlow[None]:
        """Requests the status of the batches under way, interrupted ones included; submits and downloads nothing."""
        yield from self._resume_interrupted(create=False)
        yield from self._poll(download=False)

    def fetch(self, *, resubmit: bool) -> RequestFlow[None]:
        """Imports the results of ended batches; `resubmit`: also resubmits failed texts."""
        yield from self._resume_interrupted(create=resubmit)
        yield from self._poll(download=True)
        if resubmit:
            yield from self._submit_failed()

    def run(self, poll: float | None) -> RequestFlow[None]:
        """Submits, polls, downloads and resubmits until no batch is under way."""
        yield from self.submit_all()
        wait, failed_polls = poll or FIRST_POLL_SECONDS, 0
        while self._running():
            yield from sleep(wait)
            wait = poll or min(wait * _POLL_GROWTH_FACTOR, MAX_POLL_SECONDS)
            try:
                yield from self._poll(download=True)
                yield from self._submit_failed()
                failed_polls = 0
            except Cancelled:
                raise
            except (ConnectionFailed, ServiceError, BadReply) as error:
                if error.action not in RETRYABLE_ACTIONS or (failed_polls := failed_polls + 1) >= _MAX_FAILED_POLLS:
                    raise
                self._report(f"this poll failed, the next one follows: {error}")

    def cancel(self) -> RequestFlow[None]:
        """Cancels all batches. Lines that were processed before are billed, and their results can be fetched."""
        yield from self._resume_interrupted(create=False)
        for batch in self._job_store.batches("planned", "uploaded", "creating"):
            self._discard(batch)
        for batch in self._job_store.batches("running"):
            try:
                update = yield from self._sender.send(messages.cancel_batch(batch.batch_id or ""), messages.read_status)
            except ServiceError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    self._discard(batch)
                    self._report(f"{batch.batch_id} is unknown to the service, and was removed")
                elif error.action in RETRYABLE_ACTIONS or not isinstance(error, BadRequestError):
                    raise
                else:
                    yield from self._cancel_ended(batch, error)
                continue
            self._report(str(update), self._job_store.update(batch, "running", **update.columns))

    def _cancel_ended(self, batch: BatchFile, error: DashScopeError) -> RequestFlow[None]:
        """Imports the results of a batch that has ended and thus cannot be cancelled, and frees its other lines."""
        update = yield from self._request_status(batch)
        if update.has_ended:
            batch = self._job_store.update(batch, "running", **update.columns)
            yield from self._import_results(batch, update, abandon=True)
        else:
            self._report(f"{batch.batch_id} could not be cancelled: {error.message}", batch)

    # --- submitting -----------------------------------------------------------------------------------------

    def _resume_interrupted(self, *, create: bool) -> RequestFlow[None]:
        """Finds batches whose creation was interrupted; `create`: also creates those that do not exist."""
        for batch in self._job_store.batches("planned") if create else ():
            self._discard(batch)
        for batch in self._job_store.batches("uploaded", "creating"):
            if create:
                yield from self._create(batch, may_exist=batch.state == "creating")
            elif batch.state == "creating" and (update := (yield from self._find_batch(batch))) is not None:
                self._job_store.update(batch, "running", **update.columns)

    def _submit(self, selection: Selection) -> RequestFlow[None]:
        """Writes pending texts to request files, uploads each file, and creates its batch."""
        writer = RequestFileWriter(self._job, selection)
        while True:
            path = self._batch_path(self._job_store.next_numbers()[0], "jsonl")
            if (batch := writer.write(path)) is None:
                return
            try:
                size = f"{path.stat().st_size / 1e6:,.1f} MB"
                self._report(
                    f"sending {counted(batch.lines, 'line')} with {counted(batch.texts, 'text')} ({size})", batch
                )
                file_id = yield from self._sender.send(messages.upload_file(path), messages.read_file_id)
                batch = self._job_store.update(batch, "uploaded", file_id=file_id)
            except DashScopeError:
                self._discard(batch)
                raise
            finally:
                _remove(path)
            yield from self._create(batch, may_exist=False)

    def _submit_failed(self) -> RequestFlow[None]:
        """Resubmits texts that failed in this command; texts of refused files come first, in files of their own."""
        if not self._has_permanent_error and all(map(_is_of_refused_file, self._job.errors)):
            yield from self._submit("invalid")
            yield from self._submit("failed")

    def _create(self, batch: BatchFile, *, may_exist: bool) -> RequestFlow[None]:
        """Creates the batch of an uploaded file; looks for an existing one first if an attempt may have succeeded."""
        failures = 0
        request = messages.create_batch(batch.file_id or "", *self._job.options)
        while True:
            result: BatchStatus | DashScopeError | None = (yield from self._find_batch(batch)) if may_exist else None
            if result is None:
                self._job_store.update(batch, "creating")
                result = self._sender.interpret((yield request), messages.read_status)
            if not isinstance(result, DashScopeError):
                updated = self._job_store.update(batch, "running", **result.columns)
                self._report(f"{result.batch_id} was created", updated)
                return
            if isinstance(result, ServiceError) and result.action not in RETRYABLE_ACTIONS:
                # The uploaded file remains; it costs nothing.
                self._discard(batch)
                raise result
            failures, may_exist = failures + 1, True
            yield from self._sender.wait_before_retry(result, failures)

    def _find_batch(self, batch: BatchFile) -> RequestFlow[BatchStatus | None]:
        """Looks for the batch of an uploaded file in the service's list; None: there is none."""
        after: str | None = None
        for _ in range(_MAX_PAGES):
            request = messages.list_batches(batch.file_id or "", after)
            batches, after = yield from self._sender.send(request, messages.read_batch_list)
            for update in batches:
                if update.file_id == batch.file_id:
                    return update
            if after is None:
                break
        return None

    def _discard(self, batch: BatchFile) -> None:
        self._job_store.close(batch)
        _remove(self._batch_path(batch.number, "jsonl"))

    # --- polling --------------------------------------------------------------------------------------------

    def _running(self) -> list[BatchFile]:
        """The batches that may still return results."""
        return [batch for batch in self._job_store.batches("running") if batch.number not in self._skipped_batches]

    def _request_status(self, batch: BatchFile) -> RequestFlow[BatchStatus]:
        return (yield from self._sender.send(messages.get_batch(batch.batch_id or ""), messages.read_status))

    def _poll(self, *, download: bool) -> RequestFlow[None]:
        """Requests the status of each batch once; `download`: also imports the results of those that have ended."""
        for batch in self._running():
            try:
                update = yield from self._request_status(batch)
            except ServiceError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                error.add_hint(
                    f"{batch.batch_id} is unknown: `cancel` removes it, and its texts can be submitted again"
                )
                self._skip(batch, error)
                continue
            updated = self._job_store.update(batch, "running", **update.columns)
            if download and update.has_ended:
                yield from self._import_results(batch, update)
            elif (update.status, update.completed, update.failed) != (batch.status, batch.completed, batch.failed):
                self._report(str(update), updated)

    def _skip(self, batch: BatchFile, error: DashScopeError) -> None:
        self._skipped_batches.add(batch.number)
        self._job.errors.append(error)

    # --- results --------------------------------------------------------------------------------------------

    def _import_results(self, batch: BatchFile, update: BatchStatus, *, abandon: bool = False) -> RequestFlow[None]:
        """Imports the results of a batch that has ended, and closes it.

        If results are missing, it asks again, for the status too: a download may be truncated, and a file may appear a
        moment after its batch has ended. If they stay missing, the batch stays open; `abandon` closes it even so: the
        lines without results may then be submitted, and paid for, again.
        """
        embedded_before, failures = self._job.embedded, 0
        while True:
            importer = ResultImporter(self._job, batch)
            missing = yield from self._download(batch, update, importer)
            if missing <= 0:
                break
            failures += 1
            error = _incomplete(update, missing)
            if self._sender.can_retry(error, failures):
                yield from self._sender.wait_before_retry(error, failures)
                update = yield from self._request_status(batch)
            elif abandon:
                break
            else:
                self._skip(batch, error)
                return
        self._close(batch, update, importer, self._job.embedded - embedded_before)

    def _download(self, batch: BatchFile, update: BatchStatus, importer: ResultImporter) -> RequestFlow[int]:
        """Downloads and imports the result files of a batch; returns how many lines still lack the expected result."""
        for file_id, kind in ((update.output_file, "output"), (update.error_file, "errors")):
            if file_id is None:
                continue
            path = self._batch_path(batch.number, kind)
            try:
                yield from self._sender.send(messages.download_file(file_id, path), lambda _: None)
                importer.read_file(path)
            except ServiceError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                return batch.lines  # a file that the status names does not exist yet
            finally:
                _remove(path)
        return update.expected_results(batch.lines) - len(importer.lines_seen)

    def _close(self, batch: BatchFile, update: BatchStatus, importer: ResultImporter, embedded: int) -> None:
        """Closes a batch whose results are imported, and reports or keeps the error of a refused file."""
        error = self._validation_error(batch, update) if update.status == "failed" else None
        is_final = error is not None and (batch.is_resubmission or self._has_permanent_error)
        importer.close_batch(deferred=is_final or update.status == "cancelled", invalid=error is not None)
        message = f"{update.batch_id} {update.status}: {counted(embedded, 'text')} embedded"
        self._report(message, self._job_store.batch(batch.number))
        if count := importer.unknown_results:
            self._report(f"ignored {counted(count, 'result')} of {update.batch_id} for none of its lines")
        if is_final and error is not None:
            self._job.errors.append(error)
        elif error is not None:
            self._report(f"{error.message}. Its texts are submitted once more, in another file")

    def _validation_error(self, batch: BatchFile, update: BatchStatus) -> DashScopeError:
        """The error for a batch whose file failed the validation."""
        first = next(iter(update.errors), messages.ValidationError())
        where, texts = "", []
        if first.line is not None and (location := self._job_store.nth_line(batch, first.line)):
            line, unit = location
            place = self._job_store.place(unit)
            texts = [text for text in [self._job_store.text_of(unit)] if text is not None]
            where = f" (line {first.line} of its file, {line_name(line)}{f', of {place}' if place else ''})"
        redacted = functools.partial(self._job.settings.error_context.redactor, texts=texts)
        code = first.code and redacted(first.code)
        message = f"{code or '(no code)'}: {redacted(first.message or 'no reason was given')}{where}"
        more = f" and {len(update.errors) - 1} more" if len(update.errors) > 1 else ""
        error = BadRequestError(
            f"the service refused {update.batch_id} as a whole: {message}{more}", status=HTTPStatus.OK, code=code
        )
        codes = [each.code for each in update.errors if each.code in _PERMANENT_ERROR_HINTS]
        if codes:
            self._has_permanent_error = True
            error.add_hint(_PERMANENT_ERROR_HINTS[codes[0]])
        return error

    def _batch_path(self, number: int, ending: str) -> Path:
        return self._job.output.with_name(f"{self._job.output.name}.batch-{number}.{ending}")


def _remove(path: Path) -> None:
    with contextlib.suppress(PermissionError):  # Windows: a request that was given up still reads or writes it
        path.unlink(missing_ok=True)


def _is_of_refused_file(error: DashScopeError) -> bool:
    return isinstance(error, BadRequestError) and error.status == HTTPStatus.OK


def _incomplete(update: BatchStatus, missing: int) -> BadReply:
    error = BadReply(
        f"the results of {update.batch_id} lack {counted(missing, 'line')} that the service counts as done and billed"
    )
    error.add_hint(
        "The batch and the results that arrived are kept: `batch fetch` tries again. `batch cancel` gives up these "
        "lines, which may then be submitted, and paid for, a second time"
    )
    return error
