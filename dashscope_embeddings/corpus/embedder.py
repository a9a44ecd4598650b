"""Embeds the pending texts of a checkpoint: each reply is committed as soon as it arrives."""

from __future__ import annotations

import contextlib
import operator
import sqlite3
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from dashscope_embeddings._core.failures import ASK_AGAIN_HINT
from dashscope_embeddings._core.results import as_embedding, set_attributes
from dashscope_embeddings.catalogue import priced_usage
from dashscope_embeddings.corpus.checkpoint.rows import PackedVectors
from dashscope_embeddings.errors import DashScopeError, InvalidInput
from dashscope_embeddings.vectors import Embedding, Part, Usage, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from dashscope_embeddings._core.exchange import Outcome
    from dashscope_embeddings.client import EmbeddingClient
    from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore
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
        self._checkpoint, self._client, self._stop = checkpoint, client, stop
        self._text_type, self._kind = text_type, kind
        self._in_stream: dict[int, str] = {}
        """Index in the stream → text, until the stream yields its vectors."""
        self._unstored: dict[str, int] = {}
        """Text → unit, until its vectors are in the checkpoint."""
        self._errors: list[Exception] = []
        self._failed_writes: list[tuple[dict[int, PackedVectors], int, int, int]] = []
        """Paid replies that could not be written (vectors, requests, texts, tokens); retried when the run ends."""
        self._lock = threading.Lock()
        self._billed_before = checkpoint.total_billed()
        self._rejected = self.embedded = 0

    @property
    def usage(self) -> Usage:
        """What this run has been billed so far."""
        billed = map(operator.sub, self._checkpoint.total_billed(), self._billed_before)
        return priced_usage(self._client.settings.price, *billed)

    def run(self, progress: Callable[[Progress], object] | None) -> None:
        """Embeds all pending texts.

        Raises:
            DashScopeError: the remaining texts would fail as well; replies that arrived are stored.
            sqlite3.Error: the checkpoint cannot be written; what was stored before is kept.
        """
        counts, reported = self._checkpoint.counts(), 0

        def report(min_texts: int) -> None:
            nonlocal reported
            done = self.embedded + self._rejected
            if progress is not None and done >= reported + min_texts:
                reported = done
                progress(Progress(done, counts.pending, counts.tokens, self._rejected, self.usage))

        skip_drain = False
        embeddings = self._client.stream(
            self._pending_texts(),
            text_type=self._text_type,
            output=self._kind,
            refused=self._on_rejected,
            arrived=self._on_reply,
        )
        try:
            # Closing the stream at an interruption stops it from sending more.
            with contextlib.closing(cast("Generator[Embedding, None, None]", embeddings)):
                for embedding in embeddings:
                    self._store_embedding(embedding.index, embedding)
                    report(_TEXTS_PER_REPORT)
            report(0)
        except DashScopeError as error:
            for index, vectors in error.partial.items():
                self._store_embedding(index, as_embedding(index, vectors))
            self._client.drain()
            error.partial, error.failed = {}, []  # by index in the stream, which the caller does not know
            error.replace_hint(ASK_AGAIN_HINT, RUN_AGAIN_HINT)
            left = counts.pending - self.embedded - self._rejected
            error.set_subject(
                f"{left:,} of {counted(counts.pending, 'text')} {'has' if left == 1 else 'have'} no vectors yet"
            )
            raise
        except KeyboardInterrupt as interruption:
            set_attributes(interruption, partial={}, failed=[])
            # `stop` waits for replies in flight; an interruption after it ends the run at once.
            skip_drain = self._stop is not None and self._stop()
            raise
        finally:
            # Requests in flight are paid for: store their replies even if the caller interrupts.
            if not skip_drain:
                self._client.drain()
            if self._errors:
                self._retry_failed_writes()
                raise self._errors[0]

    def _pending_texts(self) -> Iterator[str]:
        for index, (unit, text) in enumerate(self._checkpoint.pending_texts()):
            if self._errors or (self._stop is not None and self._stop()):
                return
            self._in_stream[index] = text
            self._unstored[text] = unit
            yield text

    def _on_reply(self, texts: Sequence[str], outcome: Outcome) -> None:
        """Called in the thread of the request. Texts split into chunks are stored when the stream yields them."""
        vectors_by_unit = {}
        # If long texts are cut, a chunk may equal a whole text: then its vectors are needed for both.
        are_rows_whole = self._client.settings.long_text == "error"
        for row, (text, part) in enumerate(zip(texts, outcome.vectors, strict=True)):
            if part is not None and (unit := self._unstored.pop(text, None)) is not None:
                vectors_by_unit[unit] = PackedVectors.pack(part.dense, part.sparse)
                if are_rows_whole:
                    outcome.vectors[row] = _STORED
        if vectors_by_unit or outcome.requests:
            self._store_reply(vectors_by_unit, outcome.requests, outcome.texts, outcome.tokens)

    def _store_embedding(self, index: int, embedding: Embedding) -> None:
        if (unit := self._unstored.pop(self._in_stream.pop(index), None)) is not None:
            self._store_reply({unit: PackedVectors.pack(embedding.dense, embedding.sparse)}, 0, 0, 0)

    def _on_rejected(self, index: int, error: DashScopeError) -> None:
        if (unit := self._unstored.pop(self._in_stream.pop(index), None)) is None:
            return  # its vectors came with a chunk that equals it
        # It was checked when it was read, but a lower limit may have been learned since then.
        is_ours = isinstance(error, InvalidInput)
        with self._errors_collected():
            self._checkpoint.reject(unit, f"the text {error.reasons[index]}; not sent" if is_ours else error)
            self._rejected += 1

    def _store_reply(self, vectors_by_unit: dict[int, PackedVectors], *billed: int) -> None:
        with self._errors_collected((vectors_by_unit, *billed)):
            self._checkpoint.store_reply(vectors_by_unit, *billed)
            with self._lock:
                self.embedded += len(vectors_by_unit)

    @contextlib.contextmanager
    def _errors_collected(self, reply: Any = None) -> Iterator[None]:
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
        pending_writes, self._failed_writes = self._failed_writes, []
        for write in pending_writes:
            self._store_reply(*write)
        if self._failed_writes and isinstance(self._errors[0], (OSError, sqlite3.OperationalError)):
            requests, texts, tokens = map(sum, list(zip(*self._failed_writes, strict=True))[1:])
            raise OSError(
                f"the checkpoint cannot be written: {self._errors[0]}. Billed but not stored: "
                f"{counted(requests, 'request')} with {counted(texts, 'text')} ({counted(tokens, 'token')}), "
                "in no total and to be paid for again"
            ) from self._errors[0]
