"""Batches from their files to their results: flows like any other, every decision and no network.

What may have happened is in the ledger before a step is taken, and what came of it right after: a flow may be cut
off between any two steps, and another one goes on from there, on another machine too.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, TypeAlias

from dashscope_embeddings.corpus.batch import messages
from dashscope_embeddings.corpus.batch.request_file import RequestFileWriter, line_name
from dashscope_embeddings.corpus.batch.requests import RETRYABLE_ACTIONS, RequestSender, sleep
from dashscope_embeddings.corpus.batch.results import ResultImporter
from dashscope_embeddings.errors import (
    BadReply,
    BadRequestError,
    Cancelled,
    ConnectionFailed,
    DashScopeError,
    ServiceError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dashscope_embeddings._core.protocol import Reply
    from dashscope_embeddings.corpus.batch.context import BatchContext, BatchOptions
    from dashscope_embeddings.corpus.batch.messages import BatchStatus
    from dashscope_embeddings.corpus.batch.requests import RequestFlow
    from dashscope_embeddings.corpus.batch.store import BatchRecord, Selection

EventCallback: TypeAlias = "Callable[[str, BatchRecord | None], object]"

FIRST_POLL_SECONDS, MAX_POLL_SECONDS = 30.0, 120.0
"""Seconds; the vendor's page says to ask every one or two minutes."""
_POLL_GROWTH_FACTOR = 1.5
_MAX_FAILED_POLLS = 20
"""Looks in a row that may fail, each tried as often as any request, before the wait is given up."""
_MAX_PAGES = 20
_NOT_FOUND = 404

# Codes of failed validations that another file would meet as well; source: the vendor's page on error codes, seen
# 2026-11-20, and one recorded reply (url_not_found).
_PERMANENT_ERROR_HINTS = {
    "model_not_found": "This model is not to be had through Batch files here: embed in real time, or take another",
    "mismatched_model": "Its file names one model alone, so this is our fault or the service's: embed in real time",
    "url_not_found": "Batch files for embeddings are documented for Beijing only: embed in real time elsewhere",
    "duplicate_custom_id": "Each line has its own id, so this is our fault or the service's: embed in real time",
    "file_too_large": "Files are cut at the documented limits, which are not this account's: embed in real time",
}


class BatchFlow:
    """The flows of one command."""

    def __init__(
        self,
        context: BatchContext,
        output: Path,
        batch_options: BatchOptions,
        on_event: EventCallback,
    ) -> None:
        self._context, self._output, self._batch_options = context, output, batch_options
        self._job_store, self._errors = context.job_store, context.totals.errors
        self._on_event = on_event
        self._sender = RequestSender(context.settings)
        self._skipped_batches: set[int] = set()
        """Batches that bring nothing more in this command: not known any more, or with incomplete results."""
        self._has_permanent_error = False

    # --- submitting -----------------------------------------------------------------------------------------

    def resume_interrupted(self, *, create: bool) -> RequestFlow[None]:
        """Finds out what became of batches whose creation was cut off; `create`: goes on with it."""
        for batch in self._job_store.batches("planned"):
            if create:
                self._discard(batch)
        for batch in self._job_store.batches("uploaded", "creating"):
            if create:
                yield from self._create(batch, may_exist=batch.state == "creating")
            elif batch.state == "creating" and (found := (yield from self._find_batch(batch))) is not None:
                self._job_store.update_status(batch, found)

    def submit(self, selection: Selection) -> RequestFlow[None]:
        """Cuts what is open into files, and has each of them worked on."""
        writer = RequestFileWriter(self._context, selection)
        while True:
            path = self._sibling_path(self._job_store.next_numbers()[0], "jsonl")
            if (batch := writer.write(path)) is None:
                return
            try:
                size = path.stat().st_size / 1e6
                self._report(f"sending {batch.lines:,} lines with {batch.texts:,} texts ({size:,.1f} MB)", batch)
                file_id = yield from self._sender.send(messages.upload_file(path), messages.read_file_id)
                self._job_store.set_uploaded(batch, file_id)
            except DashScopeError:
                self._discard(batch)
                raise
            finally:
                path.unlink(missing_ok=True)
            yield from self._create(self._job_store.batch(batch.number), may_exist=False)

    def _create(self, batch: BatchRecord, *, may_exist: bool) -> RequestFlow[None]:
        """A batch of an uploaded file; never a second one where the first may exist unseen."""
        failures = 0
        request = messages.create_batch(batch.file_id or "", *self._batch_options)
        while True:
            found: BatchStatus | DashScopeError | None = (yield from self._find_batch(batch)) if may_exist else None
            if found is None:
                self._job_store.set_creating(batch)
                found = self._sender.interpret((yield request), messages.read_status)
            if not isinstance(found, DashScopeError):
                self._job_store.update_status(batch, found)
                self._report(f"{found.batch_id} was created", self._job_store.batch(batch.number))
                return
            if isinstance(found, ServiceError) and found.action not in RETRYABLE_ACTIONS:
                # Its file stays behind, which costs nothing.
                self._discard(batch)
                raise found
            failures, may_exist = failures + 1, True
            yield from self._sender.wait_before_retry(found, failures)

    def _find_batch(self, batch: BatchRecord) -> RequestFlow[BatchStatus | None]:
        """The batch of a file, among those that the service has."""
        after: str | None = None
        for _ in range(_MAX_PAGES):
            batches, after = yield from self._sender.send(
                messages.list_batches(batch.file_id or "", after), messages.read_batch_list
            )
            for update in batches:
                if update.file_id == batch.file_id:
                    return update
            if after is None:
                break
        return None

    def _discard(self, batch: BatchRecord) -> None:
        self._job_store.close(batch)
        self._sibling_path(batch.number, "jsonl").unlink(missing_ok=True)

    # --- looking --------------------------------------------------------------------------------------------

    def running(self) -> list[BatchRecord]:
        """The batches that still may bring something."""
        return [batch for batch in self._job_store.batches("running") if batch.number not in self._skipped_batches]

    def poll(self, *, download: bool) -> RequestFlow[None]:
        """Asks for each batch once; `bring`: takes in the results of those that have ended."""
        for batch in self.running():
            try:
                update = yield from self._sender.send(messages.get_batch(batch.batch_id or ""), messages.read_status)
            except ServiceError as error:
                if error.status != _NOT_FOUND:
                    raise
                error.add_hint(f"{batch.batch_id} is gone: `cancel` forgets it, and its texts can be submitted again")
                self._skipped_batches.add(batch.number)
                self._errors.append(error)
                continue
            self._job_store.update_status(batch, update)
            if download and update.has_ended:
                yield from self._download_results(batch, update)
            elif (update.status, update.completed, update.failed) != (batch.status, batch.completed, batch.failed):
                self._report(
                    f"{update.batch_id} is {update.status}{_progress_text(update)}", self._job_store.batch(batch.number)
                )

    def _download_results(self, batch: BatchRecord, update: BatchStatus, *, abandon: bool = False) -> RequestFlow[None]:
        """Takes in the results of a batch that has ended; one whose results stay incomplete is kept.

        Args:
            batch: The batch.
            update: What the service says of it.
            abandon: Lines without the results that they should have are free to be submitted, and paid, again.
        """
        totals = self._context.totals
        before, unknown_before, failures = totals.embedded, totals.unknown_results, 0
        while True:
            totals.unknown_results = unknown_before
            importer = ResultImporter(self._context, batch)
            found = yield from self._download_files(batch, update, importer)
            if found and (lacking := update.expected_results(batch.lines) - importer.lines_seen) <= 0:
                break
            # A file may be cut short on the way, or be there a moment after its batch has ended.
            failures += 1
            incomplete = _incomplete(update, lacking if found else batch.lines)
            if not self._sender.can_retry(incomplete, failures):
                if abandon:
                    break
                self._skipped_batches.add(batch.number)
                self._errors.append(incomplete)
                return
            yield from self._sender.wait_before_retry(incomplete, failures)
            update = yield from self._sender.send(messages.get_batch(batch.batch_id or ""), messages.read_status)
        invalid = update.status == "failed"
        error = self._validation_error(batch, update) if invalid else None
        final = error is not None and (batch.is_resubmission or self._has_permanent_error)
        deferred = final or update.status == "cancelled"
        importer.close_batch(deferred=deferred, invalid=invalid)
        ended = f"{update.batch_id} {update.status}: {totals.embedded - before:,} texts embedded"
        self._report(ended, self._job_store.batch(batch.number))
        if totals.unknown_results > unknown_before:
            count = totals.unknown_results - unknown_before
            self._report(f"{count:,} results of {update.batch_id} belong to none of its lines and were ignored", None)
        if final and error is not None:
            self._errors.append(error)
        elif error is not None:
            self._report(f"{error.message}. Its texts are sent once more, in another file", None)

    def _download_files(self, batch: BatchRecord, update: BatchStatus, importer: ResultImporter) -> RequestFlow[bool]:
        """Reads the result files of a batch; False: the service does not have one that it names."""
        for file_id, kind in ((update.output_file, "output"), (update.error_file, "errors")):
            if file_id is None:
                continue
            path = self._sibling_path(batch.number, kind)
            try:
                yield from self._sender.send(messages.download_file(file_id, path), _ignore_reply)
                importer.read_file(path)
            except ServiceError as error:
                if error.status != _NOT_FOUND:
                    raise
                return False
            finally:
                path.unlink(missing_ok=True)
        return True

    def _validation_error(self, batch: BatchRecord, update: BatchStatus) -> DashScopeError:
        """Why a batch failed as a whole."""
        first = update.errors[0] if update.errors else None
        where, texts = "", []
        if first is not None and first.line is not None and (found := self._job_store.nth_line(batch, first.line)):
            place = self._job_store.place(found[1])
            texts = [text for text in [self._job_store.text_of(found[1])] if text is not None]
            where = f" (line {first.line} of its file, {line_name(found[0])}{f', of {place}' if place else ''})"
        code, message = None, "no reason was given"
        if first is not None:
            redacted = functools.partial(self._context.settings.error_context.redactor, texts=texts)
            code = first.code and redacted(first.code)
            message = f"{code or '(no code)'}: {redacted(first.message)}{where}"
        more = f" and {len(update.errors) - 1} more" if len(update.errors) > 1 else ""
        error = BadRequestError(
            f"the service refused {update.batch_id} as a whole: {message}{more}", status=200, code=code
        )
        advice = next(
            (_PERMANENT_ERROR_HINTS[known.code] for known in update.errors if known.code in _PERMANENT_ERROR_HINTS),
            None,
        )
        if advice is not None:
            self._has_permanent_error = True
            error.add_hint(advice)
        return error

    # --- whole commands -------------------------------------------------------------------------------------

    def submit_failed(self) -> RequestFlow[None]:
        """Submits what failed in this go: first what was in a refused file, by itself."""
        if not self._has_permanent_error and not self._has_fatal_error():
            yield from self.submit("invalid")
            yield from self.submit("failed")

    def _has_fatal_error(self) -> bool:
        return any(not isinstance(error, BadRequestError) or error.status != 200 for error in self._errors)  # noqa: PLR2004 - failed validations

    def submit_all(self) -> RequestFlow[None]:
        """Submits all that is open."""
        yield from self.resume_interrupted(create=True)
        self._job_store.reset_attempts()
        yield from self.submit("all")

    def status(self) -> RequestFlow[None]:
        """Asks, and changes nothing."""
        yield from self.resume_interrupted(create=False)
        yield from self.poll(download=False)

    def fetch(self, *, resubmit: bool) -> RequestFlow[None]:
        """Takes in what is there; `again`: submits what failed."""
        yield from self.resume_interrupted(create=resubmit)
        yield from self.poll(download=True)
        if resubmit:
            yield from self.submit_failed()

    def run(self, poll: float | None) -> RequestFlow[None]:
        """All of it, until no batch is under way."""
        yield from self.submit_all()
        wait, failed_polls = poll or FIRST_POLL_SECONDS, 0
        while self.running():
            yield from sleep(wait)
            wait = poll or min(wait * _POLL_GROWTH_FACTOR, MAX_POLL_SECONDS)
            try:
                yield from self.poll(download=True)
                yield from self.submit_failed()
                failed_polls = 0
            except Cancelled:
                raise
            except (ConnectionFailed, ServiceError, BadReply) as error:
                if error.action not in RETRYABLE_ACTIONS or (failed_polls := failed_polls + 1) >= _MAX_FAILED_POLLS:
                    raise
                self._report(f"the service cannot be asked now, and will be again: {error}", None)

    def cancel(self) -> RequestFlow[None]:
        """Stops what is under way; what was done by then is billed, and can be fetched."""
        yield from self.resume_interrupted(create=False)
        for batch in self._job_store.batches("planned", "uploaded", "creating"):
            self._discard(batch)
        for batch in self._job_store.batches("running"):
            try:
                update = yield from self._sender.send(messages.cancel_batch(batch.batch_id or ""), messages.read_status)
            except ServiceError as error:
                if error.status == _NOT_FOUND:
                    self._discard(batch)
                    self._report(f"{batch.batch_id} is not known to the service, and was forgotten", None)
                elif error.action in RETRYABLE_ACTIONS or not isinstance(error, BadRequestError):
                    raise
                else:
                    yield from self._cancel_ended(batch, error)
                continue
            self._job_store.update_status(batch, update)
            self._report(
                f"{update.batch_id} is {update.status}{_progress_text(update)}", self._job_store.batch(batch.number)
            )

    def _cancel_ended(self, batch: BatchRecord, error: DashScopeError) -> RequestFlow[None]:
        """Of a batch that cannot be cancelled, because it has ended: takes its results in, and frees the rest."""
        update = yield from self._sender.send(messages.get_batch(batch.batch_id or ""), messages.read_status)
        if update.has_ended:
            yield from self._download_results(batch, update, abandon=True)
        else:
            self._report(f"{batch.batch_id} could not be cancelled: {error.message}", batch)

    # --- small things ---------------------------------------------------------------------------------------

    def _sibling_path(self, number: int, ending: str) -> Path:
        return self._output.with_name(f"{self._output.name}.batch-{number}.{ending}")

    def _report(self, message: str, batch: BatchRecord | None) -> None:
        self._on_event(message if batch is None else f"file {batch.number}: {message}", batch)


def _incomplete(update: BatchStatus, lacking: int) -> BadReply:
    error = BadReply(
        f"the results of {update.batch_id} lack {lacking:,} lines that the service counts as done and billed"
    )
    error.add_hint(
        "The batch is kept, and what arrived of it: `batch fetch` asks again. `batch cancel` gives these lines up, "
        "which may then be submitted, and paid, a second time"
    )
    return error


def _ignore_reply(_: Reply) -> None:
    """What there is to read in the reply to a download: the file is on the disk."""


def _progress_text(update: BatchStatus) -> str:
    if not update.total:
        return ""
    failed = f", {update.failed:,} failed" if update.failed else ""
    return f": {update.completed or 0:,} of {update.total:,} lines done{failed}"
