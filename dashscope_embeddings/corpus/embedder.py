"""Embeds the pending texts of a checkpoint: each reply is committed as soon as it arrives."""

from __future__ import annotations

import contextlib
import logging
import operator
import sqlite3
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dashscope_embeddings._core.failures import ASK_AGAIN_HINT
from dashscope_embeddings._core.results import as_embedding, partial_of, set_attributes
from dashscope_embeddings._runtime.deadlines import GRACE_SECONDS, GracePeriod
from dashscope_embeddings.catalogue import priced_usage
from dashscope_embeddings.corpus.checkpoint.checksums import text_hash
from dashscope_embeddings.corpus.checkpoint.opening import full_disk_hint
from dashscope_embeddings.corpus.checkpoint.rows import PackedVectors, PaidReply
from dashscope_embeddings.errors import Cancelled, DashScopeError, InvalidInput
from dashscope_embeddings.vectors import Embedding, Part, Usage, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from dashscope_embeddings._core.exchange import Outcome
    from dashscope_embeddings.client import EmbeddingClient
    from dashscope_embeddings.corpus.checkpoint.rows import Counts
    from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore
    from dashscope_embeddings.usage import RequestRecord
    from dashscope_embeddings.vectors import Output, TextType


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run."""

    done: int
    """Different texts embedded or refused in this run."""
    total: int
    """Different texts that this run has to embed."""
    tokens: float
    """Estimated tokens of all these texts."""
    rejected: int
    """Different texts refused in this run."""
    usage: Usage
    """What this run has been billed so far."""


_log = logging.getLogger("dashscope_embeddings.corpus")

RUN_AGAIN_HINT = "Run it again: it sends only the texts that have no vectors yet"
_TEXTS_PER_REPORT = 16
"""Texts between two calls of `progress`."""
_STORED = Part([], None, 0.0)
"""In place of vectors that the checkpoint has: 4 KB there, 32 KB as a list that waits for an earlier, slower reply."""


class Embedder:
    """One run over the pending texts of a checkpoint."""

    def __init__(
        self,
        checkpoint: CheckpointStore,
        client: EmbeddingClient,
        text_type: TextType,
        kind: Output,
        stop: Callable[[], bool] | None,
    ) -> None:
        self._checkpoint, self._client = checkpoint, client
        self._grace, self._slowest_answer = GracePeriod(stop or bool, self._grace_seconds), 0.0
        self._text_type, self._kind = text_type, kind
        self._in_stream: dict[int, str] = {}
        """Index in the stream → text, until the stream yields its vectors."""
        self._unstored: dict[str, int] = {}
        """Text → unit, until its vectors are in the checkpoint."""
        self._errors: list[Exception] = []
        self._failed_writes: list[PaidReply] = []
        """Those that could not be written; retried when the run ends."""
        self._lock = threading.Lock()
        self._billed_before = checkpoint.total_billed()
        self._rejected = self.embedded = 0

    @property
    def usage(self) -> Usage:
        """What this run has been billed so far."""
        billed = map(operator.sub, self._checkpoint.total_billed(), self._billed_before)
        return priced_usage(self._client.settings.price, *billed)

    def run(self, counts: Counts, progress: Callable[[Progress], object] | None) -> None:
        """Embeds all pending texts, whose number is in `counts`, or as many as are answered until the caller stops it.

        Raises:
            DashScopeError: the remaining texts would fail as well; replies that arrived are stored.
            sqlite3.Error: the checkpoint cannot be written; what was stored before is kept.
        """
        reported = 0

        def report(min_texts: int) -> None:
            nonlocal reported
            done = self.embedded + self._rejected
            if progress is not None and done >= reported + min_texts:
                reported = done
                progress(Progress(done, counts.pending, counts.tokens, self._rejected, self.usage))

        try:
            # Closing the stream at an interruption stops it from sending more.
            with self._client.observe(self._on_request), contextlib.closing(self._stream()) as embeddings:
                for embedding in embeddings:
                    self._store_embedding(embedding.index, embedding)
                    report(_TEXTS_PER_REPORT)
            report(0)
        except BaseException as error:
            for index, vectors in partial_of(error).items():
                self._store_embedding(index, as_embedding(index, vectors))
            set_attributes(error, partial={}, failed=[])  # by index in the stream, which the caller does not know
            if not isinstance(error, DashScopeError):
                raise
            if isinstance(error, Cancelled) or (error.reasons and self._grace.has_begun()):
                return  # texts that were refused meanwhile are refused again by the next run
            error.replace_hint(ASK_AGAIN_HINT, RUN_AGAIN_HINT)
            left = counts.pending - self.embedded - self._rejected
            error.set_subject(
                f"{left:,} of {counted(counts.pending, 'text')} {'has' if left == 1 else 'have'} no vectors yet"
            )
            raise
        finally:
            # Replies to requests in flight are stored even if the caller interrupts; not again after the grace, and
            # not if it interrupts a second time.
            unanswered = self._client.drain(self._grace.use_up())
            if unanswered:
                _log.warning(
                    "gave up %s in flight without an answer: the service may bill what it still answers",
                    counted(unanswered, "request"),
                )
            if self._errors:
                self._retry_failed_writes()
                raise self._errors[0]

    def _stream(self) -> Generator[Embedding, None, None]:
        context = self._client.sync_context(self._text_type, self._kind)
        return self._client.run_stream(self._pending_texts(), context, self._on_rejected, self._on_reply, self._grace)

    def _on_request(self, record: RequestRecord) -> None:
        if record.outcome == "answered":
            self._slowest_answer = max(self._slowest_answer, record.seconds)

    def _grace_seconds(self) -> float:
        return max(GRACE_SECONDS, 2.0 * self._slowest_answer)

    def _pending_texts(self) -> Iterator[str]:
        for index, (unit, text) in enumerate(self._checkpoint.pending_texts()):
            if self._errors or self._grace.has_begun():
                return
            self._in_stream[index] = text
            self._unstored[text] = unit
            yield text

    def _on_reply(self, texts: Sequence[str], outcome: Outcome) -> None:
        """Called in the thread of the request. Texts split into chunks are stored when the stream yields them."""
        reply = PaidReply((outcome.requests, outcome.texts, outcome.tokens))
        # If long texts are cut, a chunk may equal a whole text: then its vectors are needed for both.
        are_rows_whole = self._client.settings.long_text == "error"
        for row, (text, part) in enumerate(zip(texts, outcome.vectors, strict=True)):
            if part is not None and (unit := self._unstored.pop(text, None)) is not None:
                reply.add(unit, text_hash(text), PackedVectors.pack(part.dense, part.sparse))
                if are_rows_whole:
                    outcome.vectors[row] = _STORED
        if reply.rows or outcome.requests:
            self._store_reply(reply)
        if self._errors:
            raise self._errors[0]  # so that nothing more is sent, also not by a request that waits for its turn

    def _store_embedding(self, index: int, embedding: Embedding) -> None:
        text = self._in_stream.pop(index)
        if (unit := self._unstored.pop(text, None)) is not None:
            reply = PaidReply()
            reply.add(unit, text_hash(text), PackedVectors.pack(embedding.dense, embedding.sparse))
            self._store_reply(reply)

    def _on_rejected(self, index: int, error: DashScopeError) -> None:
        if (unit := self._unstored.pop(self._in_stream.pop(index), None)) is None:
            return  # its vectors came with a chunk that equals it
        # It was checked when it was read, but a lower limit may have been learned since then.
        is_ours = isinstance(error, InvalidInput)
        with self._errors_collected():
            self._checkpoint.reject(unit, f"the text {error.reasons[index]}; not sent" if is_ours else error)
            self._rejected += 1

    def _store_reply(self, reply: PaidReply) -> None:
        with self._errors_collected(reply):
            self._checkpoint.store_reply(reply)
            with self._lock:
                self.embedded += len(reply.rows)

    @contextlib.contextmanager
    def _errors_collected(self, reply: PaidReply | None = None) -> Iterator[None]:
        """Collects errors instead of raising: a failed write ends the run only after replies in flight have arrived."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again by `run`
            self._errors.append(error)
            if reply is not None and not isinstance(error, DashScopeError):
                self._failed_writes.append(reply)

    def _retry_failed_writes(self) -> None:
        """Tries again to store paid replies, for example after a full disk has space again.

        Raises:
            OSError: they still cannot be written; the message says what was billed, because no total includes it.
        """
        replies, self._failed_writes = self._failed_writes, []
        for reply in replies:
            self._store_reply(reply)
        if self._failed_writes and isinstance(self._errors[0], (OSError, sqlite3.OperationalError)):
            requests, texts, tokens = map(sum, zip(*(reply.billed for reply in self._failed_writes), strict=True))
            raise OSError(
                f"the checkpoint {self._checkpoint.database.path} cannot be written: {self._errors[0]}. "
                "Billed but not stored: "
                f"{counted(requests, 'request')} with {counted(texts, 'text')} ({counted(tokens, 'token')}), "
                f"in no total and to be paid for again{full_disk_hint(self._errors[0])}"
            ) from self._errors[0]
