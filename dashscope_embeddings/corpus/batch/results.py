"""Imports a batch's results: each line is checked like a reply, and matched by its custom_id, never by its position."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from dashscope_embeddings._core import protocol
from dashscope_embeddings._core.failures import error_from_reply, redact_bad_reply
from dashscope_embeddings._core.other_endpoints import RETRYABLE_ACTIONS
from dashscope_embeddings._core.planning import Chunk, split_request
from dashscope_embeddings._core.protocol import ParsedReply, Reply
from dashscope_embeddings.corpus.batch import messages
from dashscope_embeddings.corpus.batch.request_file import line_number
from dashscope_embeddings.corpus.checkpoint.rows import PackedVectors, PaidReply
from dashscope_embeddings.errors import Action, BadReply, DashScopeError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dashscope_embeddings._core.error_codes import ErrorReply
    from dashscope_embeddings.corpus.batch.job import BatchJob
    from dashscope_embeddings.corpus.batch.messages import LineResult
    from dashscope_embeddings.corpus.checkpoint.rows import BatchFile

_LINES_PER_COMMIT = 500


class ResultImporter:
    """Imports the results of one batch into the checkpoint. After an interruption it can be repeated from the start."""

    def __init__(self, job: BatchJob, batch: BatchFile) -> None:
        self._job, self._checkpoint, self._job_store, self._batch = job, job.checkpoint, job.job_store, batch
        self._request_options, self._limits = job.request_options, job.limits
        self._error_context = replace(job.settings.error_context, path="")
        self.lines_seen: set[int] = set()
        """Lines of the batch for which a result was read."""
        self.unknown_results = 0
        """Results that belong to no line of the batch."""
        self._failed_lines: dict[int, tuple[DashScopeError, int | None]] = {}
        """Line → why it has no vectors, and the tokens that were billed for it; None: it was not answered."""

    def read_file(self, path: Path) -> None:
        """Imports the lines of an output or error file."""
        with path.open("rb") as file:
            while lines := list(itertools.islice(file, _LINES_PER_COMMIT)):
                with self._checkpoint.transaction():
                    for content in lines:
                        if content.strip():
                            self._import_result(messages.read_result(content))

    def _import_result(self, result: LineResult | None) -> None:
        line = line_number(result.name) if result is not None else 0
        if result is None or (units := self._job_store.line_units(self._batch, line)) is None:
            self.unknown_results += 1
            return
        self.lines_seen.add(line)
        if not units:  # the file was imported before, or the line occurs twice
            return
        try:
            vectors = self._read_vectors(result, units)
            self._job.embedded += self._job_store.store_line(line, vectors, result.tokens or 0)
        except (BadReply, ServiceError) as error:
            self._failed_lines.setdefault(line, (error, result.tokens))
        else:
            self._failed_lines.pop(line, None)

    def _read_vectors(self, result: LineResult, units: Sequence[int]) -> dict[int, PackedVectors]:
        """The vectors by unit. Raises the error that a result without them stands for."""
        reply: Reply | ErrorReply | ParsedReply = result.reply
        if isinstance(reply, Reply):
            try:
                reply = protocol.parse_reply(self._request_options, reply, len(units))
            except BadReply as bad_reply:
                raise redact_bad_reply(bad_reply, self._error_context, self._texts(units)) from None
        if isinstance(reply, ParsedReply):
            return {unit: PackedVectors.pack(dense) for unit, dense in zip(units, reply.dense or (), strict=True)}
        raise error_from_reply(reply, self._error_context, self._texts(units))

    def _texts(self, units: Sequence[int]) -> list[str]:
        return [text for text in map(self._job_store.text_of, units) if text is not None]

    # --- the end of a batch ---------------------------------------------------------------------------------

    def close_batch(self, *, deferred: bool, invalid: bool) -> None:
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
                error, tokens = self._failed_lines.get(line, (None, None))
                if tokens is not None:
                    checkpoint.store_reply(PaidReply((1, len(units), tokens)))
                if error is None or error.action in RETRYABLE_ACTIONS or job_error is not None:
                    job_store.schedule_retry(units, invalid=invalid, deferred=deferred or job_error is not None)
                elif error.action is Action.ABORT:
                    abort_error = abort_error or error
                    job_store.schedule_retry(units, deferred=True)
                else:
                    self._handle_refusal(units, error, deferred=deferred)
            job_store.close(self._batch)
        self._job.errors += [error for error in (job_error, abort_error) if error is not None]

    def _refusal_of_job(self) -> DashScopeError | None:
        """The error of all lines, if it is the same and thus concerns the job; None if any text was ever embedded."""
        errors = [error for error, _ in self._failed_lines.values()]
        codes = {error.code for error in errors if isinstance(error, ServiceError)}
        all_alike = len(codes) == 1 and all(error.action is Action.BISECT for error in errors)
        if not all_alike or not 1 < len(errors) == self._batch.lines or self._checkpoint.total_billed()[1]:
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
