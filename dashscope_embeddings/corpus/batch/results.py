"""Imports a batch's results: each line is checked like a reply, and matched by its custom_id, never by its position."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dashscope_embeddings._core import protocol
from dashscope_embeddings._core.endpoint_requests import RETRYABLE_ACTIONS
from dashscope_embeddings._core.failures import error_from_reply, redact_bad_reply
from dashscope_embeddings._core.planning import Chunk, split_request
from dashscope_embeddings._core.protocol import ParsedReply
from dashscope_embeddings.corpus.batch import messages
from dashscope_embeddings.corpus.batch.request_file import line_number
from dashscope_embeddings.corpus.checkpoint.rows import PackedVectors
from dashscope_embeddings.errors import Action, BadReply, ServiceError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dashscope_embeddings.corpus.batch.job import BatchJob
    from dashscope_embeddings.corpus.batch.messages import LineResult
    from dashscope_embeddings.corpus.checkpoint.rows import BatchFile
    from dashscope_embeddings.errors import DashScopeError

_LINES_PER_COMMIT = 500
"""Lines per commit."""


@dataclass(frozen=True, slots=True)
class _FailedLine:
    """Why a line has no vectors, and what was billed for it nevertheless."""

    error: DashScopeError
    was_answered: bool = False
    tokens: int = 0


class ResultImporter:
    """Imports the results of one batch into the checkpoint. After an interruption it can be repeated from the start."""

    def __init__(self, job: BatchJob, batch: BatchFile) -> None:
        self._job, self._checkpoint, self._job_store, self._batch = job, job.checkpoint, job.job_store, batch
        self._request_options, self._limits = job.request_options, job.limits
        self._error_context = replace(job.settings.error_context, path="")
        self._failed_lines: dict[int, _FailedLine] = {}
        """Line → why it failed; a batch has at most 50,000 lines."""
        self._lines_done: set[int] = set()
        """Lines whose vectors the current transaction stores."""
        self._stored_lines = 0
        self._lines_seen: set[int] = set()

    @property
    def lines_seen(self) -> int:
        """Lines of the batch for which a result was read."""
        return len(self._lines_seen)

    def read_file(self, path: Path) -> None:
        """Imports the lines of an output or error file."""
        with path.open("rb") as file:
            while lines := list(itertools.islice(file, _LINES_PER_COMMIT)):
                with self._checkpoint.transaction():
                    for content in lines:
                        if content.strip():
                            self._import_result(messages.read_result(content))
                    self._job_store.mark_done(self._lines_done)
                self._lines_done = set()

    def _import_result(self, result: LineResult | None) -> None:
        line = line_number(result.name) if result is not None else 0
        if result is None or (units := self._job_store.line_units(self._batch, line)) is None:
            self._job.unknown_results += 1
            return
        self._lines_seen.add(line)
        if not units or line in self._lines_done:  # the file was imported before, or the line occurs twice
            return
        checked = self._check_result(result, units)
        if isinstance(checked, ParsedReply):
            try:
                self._store_vectors(line, units, checked, result.tokens)
            except BadReply as bad_reply:
                checked = bad_reply
            else:
                self._failed_lines.pop(line, None)
                return
        self._failed_lines.setdefault(line, _FailedLine(checked, result.reply is not None, result.tokens))

    def _check_result(self, result: LineResult, units: Sequence[int]) -> ParsedReply | DashScopeError:
        refusal = result.refusal
        if result.reply is not None:
            try:
                parsed = protocol.parse_reply(self._request_options, result.reply, len(units))
            except BadReply as bad_reply:
                return redact_bad_reply(bad_reply, self._error_context, self._texts(units))
            if isinstance(parsed, ParsedReply):
                return parsed
            refusal = parsed
        if refusal is None:
            return BadReply("the result of a line contains neither a reply nor an error")
        return error_from_reply(refusal, self._error_context, self._texts(units))

    def _texts(self, units: Sequence[int]) -> list[str]:
        return [text for text in map(self._job_store.text_of, units) if text is not None]

    def _store_vectors(self, line: int, units: Sequence[int], rows: ParsedReply, tokens: int) -> None:
        vectors = {unit: PackedVectors.pack(dense) for unit, dense in zip(units, rows.dense or (), strict=True)}
        self._job.embedded += self._checkpoint.store_reply(vectors, 1, len(units), tokens)
        self._lines_done.add(line)
        self._stored_lines += 1

    # --- the end of a batch ---------------------------------------------------------------------------------

    def close_batch(self, *, deferred: bool = False, invalid: bool = False) -> None:
        """Closes the batch; units without vectors are scheduled for another batch, or rejected.

        Args:
            deferred: Resubmit them only in a new submission, not in this command.
            invalid: The file was refused as a whole.
        """
        job_store, checkpoint = self._job_store, self._checkpoint
        job_error = self._refusal_of_job()
        abort_error: DashScopeError | None = None
        with checkpoint.transaction():
            for line, units in job_store.lines_without_vectors(self._batch):
                failed = self._failed_lines.get(line)
                if failed is not None and failed.was_answered:
                    checkpoint.store_reply({}, 1, len(units), failed.tokens)
                if failed is None or failed.error.action in RETRYABLE_ACTIONS or job_error is not None:
                    job_store.schedule_retry(units, invalid=invalid, deferred=deferred or job_error is not None)
                elif failed.error.action is Action.ABORT:
                    abort_error = abort_error or failed.error
                    job_store.schedule_retry(units, deferred=True)
                else:
                    self._handle_refusal(units, failed.error, deferred=deferred)
            job_store.close(self._batch)
        self._job.errors += [error for error in (job_error, abort_error) if error is not None]

    def _refusal_of_job(self) -> DashScopeError | None:
        """The error of all lines, if it is the same and thus concerns the job; None if any text was ever embedded."""
        errors = [failed.error for failed in self._failed_lines.values()]
        codes = {error.code for error in errors if isinstance(error, ServiceError)}
        all_alike = len(codes) == 1 and all(error.action is Action.BISECT for error in errors)
        if not all_alike or not 1 < len(errors) == self._batch.lines:
            return None
        if self._stored_lines or self._checkpoint.total_billed()[1]:
            return None
        return None if "inspection" in (codes.pop() or "").lower() else errors[0]

    def _handle_refusal(self, units: Sequence[int], error: DashScopeError, *, deferred: bool) -> None:
        """Splits a refused line or text as the real-time route does; rejects a text that cannot be split."""
        chunks = [Chunk(unit, text) for unit in units if (text := self._job_store.text_of(unit)) is not None]
        groups = split_request(chunks, error, self._limits, self._job.settings.long_text)
        if len(units) > 1:
            # A batch may take a day, so the bad text is not searched by bisection: its next line holds it alone.
            max_per_line = len(groups[0]) if groups and error.action is Action.REDUCE_BATCH else 1
            self._job_store.schedule_retry(units, max_per_line=max_per_line, deferred=deferred)
        elif groups:
            self._job_store.split(units[0], [chunk.text for group in groups for chunk in group])
        elif chunks:
            self._checkpoint.reject(units[0], error)
