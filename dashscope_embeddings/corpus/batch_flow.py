"""Batches from their files to their results: flows like any other, every decision and no network.

What may have happened is in the ledger before a step is taken, and what came of it right after: a flow may be cut
off between any two steps, and another one goes on from there, on another machine too.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from dashscope_embeddings import wire
from dashscope_embeddings.corpus import batch_wire
from dashscope_embeddings.corpus.batch_cut import Cut, name_of
from dashscope_embeddings.corpus.batch_results import Taking
from dashscope_embeddings.errors import (
    BadReply,
    BadRequestError,
    ConnectionFailed,
    DashScopeError,
    GivenUp,
    ServiceError,
    Verdict,
)
from dashscope_embeddings.exchange import Failure, Sleep, backoff, capped, explained, unanswered
from dashscope_embeddings.wire import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path
    from typing import TypeAlias

    from dashscope_embeddings.corpus.batch_state import Job, Which
    from dashscope_embeddings.corpus.batch_wire import Told
    from dashscope_embeddings.corpus.batch_work import Work
    from dashscope_embeddings.exchange import Answer, Send, Step

T = TypeVar("T")
Flow: TypeAlias = "Generator[Step, Answer, T]"
Tell: TypeAlias = "Callable[[str, Job | None], object]"

_log = logging.getLogger("dashscope_embeddings")

FIRST_POLL, LONGEST_POLL = 30.0, 120.0
"""Seconds; the vendor's page says to ask every one or two minutes."""
_SLOWER = 1.5
_LOST_POLLS = 20
"""Looks in a row that may fail, each tried as often as any request, before the wait is given up."""
_PAGES = 20
_PASSES = frozenset({Verdict.RETRY, Verdict.THROTTLE})
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

    def __init__(
        self, work: Work, output: Path, order: tuple[str, str | None, str | None], tell: Tell, advice: str
    ) -> None:
        """`order`: completion window, name and description of new batches."""
        self._work, self._output, self._order = work, output, order
        self._book, self._troubles = work.book, work.brought.troubles
        self._tell, self._advice = tell, advice
        self._lost: set[int] = set()
        """Batches that the service does not know any more."""
        self._hopeless = False

    # --- requests -------------------------------------------------------------------------------------------

    def _ask(self, send: Send, read: Callable[[Reply], T]) -> Flow[T]:
        """One request, as often as it takes."""
        failures = 0
        while True:
            found = self._answered((yield send), read)
            if not isinstance(found, DashScopeError):
                return found
            failures += 1
            yield from self._pause(found, failures)

    def _answered(self, answer: Answer, read: Callable[[Reply], T]) -> T | DashScopeError:
        if isinstance(answer, Failure):
            return unanswered(answer, self._work.settings.address.host)
        if not isinstance(answer, Reply):
            raise TypeError(f"a driver must answer Send with Reply or Failure, not {type(answer).__name__}")
        if (refusal := wire.refusal(answer)) is not None:
            return explained(refusal, self._advice, self._work.settings.api_key)
        try:
            return read(answer)
        except BadReply as broken:
            return broken

    def _pause(self, error: DashScopeError, failures: int) -> Flow[None]:
        """Before the next try; raises the error where none would help."""
        if error.verdict not in _PASSES or failures > self._work.settings.max_retries:
            raise error
        pause = backoff(failures, capped(error))
        _log.info("try %d of a batch's request failed, next in %.1f s: %s", failures, pause, error)
        yield from _sleep(pause)

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
                file_id = yield from self._ask(batch_wire.upload(path), batch_wire.file_id)
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
        send = batch_wire.create(job.file_id or "", *self._order)
        while True:
            found: Told | DashScopeError | None = (yield from self._find(job)) if unsure else None
            if found is None:
                self._book.creating(job)
                found = self._answered((yield send), batch_wire.told)
            if not isinstance(found, DashScopeError):
                self._book.saw(job, found)
                self._say(f"{found.batch_id} was created", self._book.job(job.number))
                return
            if isinstance(found, ServiceError) and found.verdict not in _PASSES:
                # Its file stays behind, which costs nothing.
                self._dissolve(job)
                raise found
            failures, unsure = failures + 1, True
            yield from self._pause(found, failures)

    def _find(self, job: Job) -> Flow[Told | None]:
        """The batch of a file, among those that the service has."""
        after: str | None = None
        for _ in range(_PAGES):
            batches, after = yield from self._ask(batch_wire.batches_of(job.file_id or "", after), batch_wire.listed)
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
        return [job for job in self._book.jobs("running") if job.number not in self._lost]

    def look(self, *, bring: bool) -> Flow[None]:
        """Asks for each batch once; `bring`: takes in the results of those that have ended."""
        for job in self.running():
            try:
                told = yield from self._ask(batch_wire.look(job.batch_id or ""), batch_wire.told)
            except ServiceError as error:
                if error.status != _GONE:
                    raise
                error.advise(f"{job.batch_id} is gone: `cancel` forgets it, and its texts can be submitted again")
                self._lost.add(job.number)
                self._troubles.append(error)
                continue
            self._book.saw(job, told)
            if bring and told.ended:
                yield from self._bring(job, told)
            elif (told.status, told.completed, told.failed) != (job.status, job.completed, job.failed):
                self._say(f"{told.batch_id} is {told.status}{_share(told)}", self._book.job(job.number))

    def _bring(self, job: Job, told: Told) -> Flow[None]:
        brought = self._work.brought
        before, strangers = brought.texts, brought.strangers
        taking = Taking(self._work, job)
        for file_id, kind in ((told.output_file, "output"), (told.error_file, "errors")):
            if file_id is not None:
                path = self._beside(job.number, kind)
                try:
                    yield from self._ask(batch_wire.download(file_id, path), _nothing)
                    taking.read(path)
                finally:
                    path.unlink(missing_ok=True)
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

    def _explained(self, job: Job, told: Told) -> DashScopeError:
        """Why a batch failed as a whole."""
        first = told.complaints[0] if told.complaints else None
        said = "no reason was given" if first is None else f"{first.code or '(no code)'}: {first.message}"
        if first is not None and first.line is not None and (found := self._book.nth_line(job, first.line)):
            place = self._book.place(found[1])
            said += f" (line {first.line} of its file, {name_of(found[0])}{f', of {place}' if place else ''})"
        more = f" and {len(told.complaints) - 1} more" if len(told.complaints) > 1 else ""
        error = BadRequestError(
            f"the service refused {told.batch_id} as a whole: {said}{more}",
            status=200,
            code=None if first is None else first.code,
        )
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
            yield from _sleep(wait)
            wait = poll or min(wait * _SLOWER, LONGEST_POLL)
            try:
                yield from self.look(bring=True)
                yield from self.retry()
                lost = 0
            except GivenUp:
                raise
            except (ConnectionFailed, ServiceError, BadReply) as error:
                if error.verdict not in _PASSES or (lost := lost + 1) >= _LOST_POLLS:
                    raise
                self._say(f"the service cannot be asked now, and will be again: {error}", None)

    def cancel(self) -> Flow[None]:
        """Stops what is under way; what was done by then is billed, and can be fetched."""
        yield from self.settle(create=False)
        for job in self._book.jobs("planned", "uploaded", "creating"):
            self._dissolve(job)
        for job in self._book.jobs("running"):
            try:
                told = yield from self._ask(batch_wire.cancel(job.batch_id or ""), batch_wire.told)
            except ServiceError as error:
                if error.status == _GONE:
                    self._dissolve(job)
                    self._say(f"{job.batch_id} is not known to the service, and was forgotten", None)
                elif error.verdict in _PASSES or not isinstance(error, BadRequestError):
                    raise
                else:  # it has ended
                    self._say(f"{job.batch_id} could not be cancelled: {error.message}", job)
                continue
            self._book.saw(job, told)
            self._say(f"{told.batch_id} is {told.status}{_share(told)}", self._book.job(job.number))

    # --- small things ---------------------------------------------------------------------------------------

    def _beside(self, number: int, ending: str) -> Path:
        return self._output.with_name(f"{self._output.name}.batch-{number}.{ending}")

    def _say(self, said: str, job: Job | None) -> None:
        self._tell(said if job is None else f"file {job.number}: {said}", job)


def _sleep(seconds: float) -> Flow[None]:
    if isinstance(given_up := (yield Sleep(seconds)), Failure):
        raise unanswered(given_up, "")


def _nothing(_: Reply) -> None:
    """What there is to read in the reply to a download: the file is on the disk."""


def _share(told: Told) -> str:
    if not told.total:
        return ""
    failed = f", {told.failed:,} failed" if told.failed else ""
    return f": {told.completed or 0:,} of {told.total:,} lines done{failed}"
