"""Batches from their files to their results: flows like any other, every decision and no network.

What may have happened is in the ledger before a step is taken, and what came of it right after: a flow may be cut
off between any two steps, and another one goes on from there, on another machine too.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, TypeAlias

from dashscope_embeddings.corpus.batch import messages
from dashscope_embeddings.corpus.batch.request_file import Cut, name_of
from dashscope_embeddings.corpus.batch.requests import PASSES, Requests, sleep
from dashscope_embeddings.corpus.batch.results import Taking
from dashscope_embeddings.errors import (
    BadReply,
    BadRequestError,
    ConnectionFailed,
    DashScopeError,
    GivenUp,
    ServiceError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dashscope_embeddings._core.protocol import Reply
    from dashscope_embeddings.corpus.batch.context import Work
    from dashscope_embeddings.corpus.batch.messages import Told
    from dashscope_embeddings.corpus.batch.requests import Flow
    from dashscope_embeddings.corpus.batch.store import Job, Which

Tell: TypeAlias = "Callable[[str, Job | None], object]"

FIRST_POLL, LONGEST_POLL = 30.0, 120.0
"""Seconds; the vendor's page says to ask every one or two minutes."""
_SLOWER = 1.5
_LOST_POLLS = 20
"""Looks in a row that may fail, each tried as often as any request, before the wait is given up."""
_PAGES = 20
_GONE = 404

# Codes of failed validations that another file would meet as well; source: the vendor's page on error codes, seen
# 2026-11-20, and one recorded reply (url_not_found).
_HOPELESS = {
    "model_not_found": "This model is not to be had through Batch files here: embed in real time, or take another",
    "mismatched_model": "Its file names one model alone, so this is our fault or the service's: embed in real time",
    "url_not_found": "Batch files for embeddings are documented for Beijing only: embed in real time elsewhere",
    "duplicate_custom_id": "Each line has its own id, so this is our fault or the service's: embed in real time",
    "file_too_large": "Files are cut at the documented limits, which are not this account's: embed in real time",
}


class BatchFlow:
    """The flows of one command."""

    def __init__(self, work: Work, output: Path, order: tuple[str, str | None, str | None], tell: Tell) -> None:
        """`order`: completion window, name and description of new batches."""
        self._work, self._output, self._order = work, output, order
        self._book, self._troubles = work.book, work.brought.troubles
        self._tell = tell
        self._requests = Requests(work.settings)
        self._not_asked_again: set[int] = set()
        """Batches that bring nothing more in this command: not known any more, or with incomplete results."""
        self._hopeless = False

    # --- submitting -----------------------------------------------------------------------------------------

    def settle(self, *, create: bool) -> Flow[None]:
        """Finds out what became of batches whose creation was cut off; `create`: goes on with it."""
        for job in self._book.jobs("planned"):
            if create:
                self._dissolve(job)
        for job in self._book.jobs("uploaded", "creating"):
            if create:
                yield from self._create(job, unsure=job.state == "creating")
            elif job.state == "creating" and (found := (yield from self._find(job))) is not None:
                self._book.saw(job, found)

    def submit(self, which: Which) -> Flow[None]:
        """Cuts what is open into files, and has each of them worked on."""
        cut = Cut(self._work, which)
        while True:
            path = self._beside(self._book.next_numbers()[0], "jsonl")
            if (job := cut.write(path)) is None:
                return
            try:
                size = path.stat().st_size / 1e6
                self._say(f"sending {job.lines:,} lines with {job.texts:,} texts ({size:,.1f} MB)", job)
                file_id = yield from self._requests.ask(messages.upload(path), messages.file_id)
                self._book.uploaded(job, file_id)
            except DashScopeError:
                self._dissolve(job)
                raise
            finally:
                path.unlink(missing_ok=True)
            yield from self._create(self._book.job(job.number), unsure=False)

    def _create(self, job: Job, *, unsure: bool) -> Flow[None]:
        """A batch of an uploaded file; never a second one where the first may exist unseen."""
        failures = 0
        send = messages.create(job.file_id or "", *self._order)
        while True:
            found: Told | DashScopeError | None = (yield from self._find(job)) if unsure else None
            if found is None:
                self._book.creating(job)
                found = self._requests.answered((yield send), messages.told)
            if not isinstance(found, DashScopeError):
                self._book.saw(job, found)
                self._say(f"{found.batch_id} was created", self._book.job(job.number))
                return
            if isinstance(found, ServiceError) and found.verdict not in PASSES:
                # Its file stays behind, which costs nothing.
                self._dissolve(job)
                raise found
            failures, unsure = failures + 1, True
            yield from self._requests.pause(found, failures)

    def _find(self, job: Job) -> Flow[Told | None]:
        """The batch of a file, among those that the service has."""
        after: str | None = None
        for _ in range(_PAGES):
            batches, after = yield from self._requests.ask(
                messages.batches_of(job.file_id or "", after), messages.listed
            )
            for told in batches:
                if told.file_id == job.file_id:
                    return told
            if after is None:
                break
        return None

    def _dissolve(self, job: Job) -> None:
        self._book.close(job)
        self._beside(job.number, "jsonl").unlink(missing_ok=True)

    # --- looking --------------------------------------------------------------------------------------------

    def running(self) -> list[Job]:
        """The batches that still may bring something."""
        return [job for job in self._book.jobs("running") if job.number not in self._not_asked_again]

    def look(self, *, bring: bool) -> Flow[None]:
        """Asks for each batch once; `bring`: takes in the results of those that have ended."""
        for job in self.running():
            try:
                told = yield from self._requests.ask(messages.look(job.batch_id or ""), messages.told)
            except ServiceError as error:
                if error.status != _GONE:
                    raise
                error.advise(f"{job.batch_id} is gone: `cancel` forgets it, and its texts can be submitted again")
                self._not_asked_again.add(job.number)
                self._troubles.append(error)
                continue
            self._book.saw(job, told)
            if bring and told.ended:
                yield from self._bring(job, told)
            elif (told.status, told.completed, told.failed) != (job.status, job.completed, job.failed):
                self._say(f"{told.batch_id} is {told.status}{_share(told)}", self._book.job(job.number))

    def _bring(self, job: Job, told: Told, *, abandon: bool = False) -> Flow[None]:
        """Takes in the results of a batch that has ended; one whose results stay incomplete is kept.

        Args:
            job: The batch.
            told: What the service says of it.
            abandon: Lines without the results that they should have are free to be submitted, and paid, again.
        """
        brought = self._work.brought
        before, strangers, failures = brought.texts, brought.strangers, 0
        while True:
            brought.strangers = strangers
            taking = Taking(self._work, job)
            found = yield from self._download(job, told, taking)
            if found and (lacking := told.results(job.lines) - taking.seen) <= 0:
                break
            # A file may be cut short on the way, or be there a moment after its batch has ended.
            failures += 1
            incomplete = _incomplete(told, lacking if found else job.lines)
            if not self._requests.may_pass(incomplete, failures):
                if abandon:
                    break
                self._not_asked_again.add(job.number)
                self._troubles.append(incomplete)
                return
            yield from self._requests.pause(incomplete, failures)
            told = yield from self._requests.ask(messages.look(job.batch_id or ""), messages.told)
        invalid = told.status == "failed"
        error = self._explained(job, told) if invalid else None
        final = error is not None and (job.again or self._hopeless)
        held = final or told.status == "cancelled"
        taking.end(held=held, invalid=invalid)
        ended = f"{told.batch_id} {told.status}: {brought.texts - before:,} texts embedded"
        self._say(ended, self._book.job(job.number))
        if brought.strangers > strangers:
            count = brought.strangers - strangers
            self._say(f"{count:,} results of {told.batch_id} belong to none of its lines and were ignored", None)
        if final and error is not None:
            self._troubles.append(error)
        elif error is not None:
            self._say(f"{error.message}. Its texts are sent once more, in another file", None)

    def _download(self, job: Job, told: Told, taking: Taking) -> Flow[bool]:
        """Reads the result files of a batch; False: the service does not have one that it names."""
        for file_id, kind in ((told.output_file, "output"), (told.error_file, "errors")):
            if file_id is None:
                continue
            path = self._beside(job.number, kind)
            try:
                yield from self._requests.ask(messages.download(file_id, path), _nothing)
                taking.read(path)
            except ServiceError as error:
                if error.status != _GONE:
                    raise
                return False
            finally:
                path.unlink(missing_ok=True)
        return True

    def _explained(self, job: Job, told: Told) -> DashScopeError:
        """Why a batch failed as a whole."""
        first = told.complaints[0] if told.complaints else None
        where, texts = "", []
        if first is not None and first.line is not None and (found := self._book.nth_line(job, first.line)):
            place = self._book.place(found[1])
            texts = [text for text in [self._book.text(found[1])] if text is not None]
            where = f" (line {first.line} of its file, {name_of(found[0])}{f', of {place}' if place else ''})"
        code, said = None, "no reason was given"
        if first is not None:
            redacted = functools.partial(self._work.settings.asked.redaction, texts=texts)
            code = first.code and redacted(first.code)
            said = f"{code or '(no code)'}: {redacted(first.message)}{where}"
        more = f" and {len(told.complaints) - 1} more" if len(told.complaints) > 1 else ""
        error = BadRequestError(f"the service refused {told.batch_id} as a whole: {said}{more}", status=200, code=code)
        advice = next((_HOPELESS[known.code] for known in told.complaints if known.code in _HOPELESS), None)
        if advice is not None:
            self._hopeless = True
            error.advise(advice)
        return error

    # --- whole commands -------------------------------------------------------------------------------------

    def retry(self) -> Flow[None]:
        """Submits what failed in this go: first what was in a refused file, by itself."""
        if not self._hopeless and not self._stopped():
            yield from self.submit("invalid")
            yield from self.submit("failed")

    def _stopped(self) -> bool:
        return any(not isinstance(error, BadRequestError) or error.status != 200 for error in self._troubles)  # noqa: PLR2004 - failed validations

    def start(self) -> Flow[None]:
        """Submits all that is open."""
        yield from self.settle(create=True)
        self._book.forgive()
        yield from self.submit("all")

    def status(self) -> Flow[None]:
        """Asks, and changes nothing."""
        yield from self.settle(create=False)
        yield from self.look(bring=False)

    def fetch(self, *, again: bool) -> Flow[None]:
        """Takes in what is there; `again`: submits what failed."""
        yield from self.settle(create=again)
        yield from self.look(bring=True)
        if again:
            yield from self.retry()

    def run(self, poll: float | None) -> Flow[None]:
        """All of it, until no batch is under way."""
        yield from self.start()
        wait, lost = poll or FIRST_POLL, 0
        while self.running():
            yield from sleep(wait)
            wait = poll or min(wait * _SLOWER, LONGEST_POLL)
            try:
                yield from self.look(bring=True)
                yield from self.retry()
                lost = 0
            except GivenUp:
                raise
            except (ConnectionFailed, ServiceError, BadReply) as error:
                if error.verdict not in PASSES or (lost := lost + 1) >= _LOST_POLLS:
                    raise
                self._say(f"the service cannot be asked now, and will be again: {error}", None)

    def cancel(self) -> Flow[None]:
        """Stops what is under way; what was done by then is billed, and can be fetched."""
        yield from self.settle(create=False)
        for job in self._book.jobs("planned", "uploaded", "creating"):
            self._dissolve(job)
        for job in self._book.jobs("running"):
            try:
                told = yield from self._requests.ask(messages.cancel(job.batch_id or ""), messages.told)
            except ServiceError as error:
                if error.status == _GONE:
                    self._dissolve(job)
                    self._say(f"{job.batch_id} is not known to the service, and was forgotten", None)
                elif error.verdict in PASSES or not isinstance(error, BadRequestError):
                    raise
                else:
                    yield from self._cancel_ended(job, error)
                continue
            self._book.saw(job, told)
            self._say(f"{told.batch_id} is {told.status}{_share(told)}", self._book.job(job.number))

    def _cancel_ended(self, job: Job, error: DashScopeError) -> Flow[None]:
        """Of a batch that cannot be cancelled, because it has ended: takes its results in, and frees the rest."""
        told = yield from self._requests.ask(messages.look(job.batch_id or ""), messages.told)
        if told.ended:
            yield from self._bring(job, told, abandon=True)
        else:
            self._say(f"{job.batch_id} could not be cancelled: {error.message}", job)

    # --- small things ---------------------------------------------------------------------------------------

    def _beside(self, number: int, ending: str) -> Path:
        return self._output.with_name(f"{self._output.name}.batch-{number}.{ending}")

    def _say(self, said: str, job: Job | None) -> None:
        self._tell(said if job is None else f"file {job.number}: {said}", job)


def _incomplete(told: Told, lacking: int) -> BadReply:
    error = BadReply(
        f"the results of {told.batch_id} lack {lacking:,} lines that the service counts as done and billed"
    )
    error.advise(
        "The batch is kept, and what arrived of it: `batch fetch` asks again. `batch cancel` gives these lines up, "
        "which may then be submitted, and paid, a second time"
    )
    return error


def _nothing(_: Reply) -> None:
    """What there is to read in the reply to a download: the file is on the disk."""


def _share(told: Told) -> str:
    if not told.total:
        return ""
    failed = f", {told.failed:,} failed" if told.failed else ""
    return f": {told.completed or 0:,} of {told.total:,} lines done{failed}"
