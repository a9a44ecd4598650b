"""The ledger's open texts → the client → the ledger: each reply is committed as soon as it is there."""

from __future__ import annotations

import contextlib
import sqlite3
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from dashscope_embeddings._core.text_inputs import text_problem
from dashscope_embeddings._core.text_length import shared_limits
from dashscope_embeddings.catalogue import priced_usage
from dashscope_embeddings.corpus.checkpoint.rows import PackedVectors
from dashscope_embeddings.errors import DashScopeError, ServiceError
from dashscope_embeddings.vectors import Embedding, SparseVector, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from dashscope_embeddings._core.exchange import Outcome
    from dashscope_embeddings.client import EmbeddingClient
    from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore
    from dashscope_embeddings.vectors import Output, TextType


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    done: int
    """Different texts embedded or refused in this run."""
    total: int
    """Different texts that this run has to ask for."""
    tokens: float
    """Estimated, of all of those."""
    rejected: int
    """Different texts refused in this run."""
    usage: Usage
    """What this run was billed so far."""


_TEXTS_PER_REPORT = 16
"""Texts between two reports of progress."""


class Embedder:
    """One run over the open texts of a ledger."""

    def __init__(
        self,
        checkpoint: CheckpointStore,
        client: EmbeddingClient,
        text_type: TextType,
        kind: Output,
        stop: Callable[[], bool] | None,
    ) -> None:
        self._checkpoint, self._client = checkpoint, client
        self._text_type, self._kind = text_type, kind
        self._stop = stop
        self._in_stream: dict[int, tuple[int, str]] = {}
        """Index in the stream → key and text, until the stream gives it out."""
        self._unstored: dict[str, int] = {}
        """Text → key, until its vectors are in the ledger."""
        self._errors: list[Exception] = []
        self._failed_writes: list[tuple[dict[int, PackedVectors], int, int, int]] = []
        """What the ledger did not take: it is paid for, and tried again when the run ends."""
        self._lock = threading.Lock()
        self._requests = self._texts = self._tokens = 0
        self._rejected = 0
        self.embedded = 0
        """Different texts embedded so far."""

    @property
    def usage(self) -> Usage:
        """What was billed so far."""
        with self._lock:
            return priced_usage(self._client.settings.price, self._requests, self._texts, self._tokens)

    def run(self, progress: Callable[[Progress], object] | None) -> None:
        """Asks for all open texts.

        Raises:
            DashScopeError: the rest would fail as well; what arrived is kept.
            sqlite3.Error: the ledger takes no more; what it took is kept.
        """
        counts, reported = self._checkpoint.counts(), 0

        def report(least: int) -> None:
            nonlocal reported
            done = self.embedded + self._rejected
            if progress is not None and done >= reported + least:
                reported = done
                progress(Progress(done, counts.pending, counts.tokens, self._rejected, self.usage))

        skip_drain = False
        found = self._client.stream(
            self._pending_texts(),
            text_type=self._text_type,
            output=self._kind,
            refused=self._on_rejected,
            arrived=self._on_reply,
        )
        try:
            # Closed at once where the caller interrupts, so that nothing more is sent.
            with contextlib.closing(cast("Generator[Embedding, None, None]", found)):
                for embedding in found:
                    self._store_embedding(embedding.index, embedding)
                    report(_TEXTS_PER_REPORT)
            report(0)
        except DashScopeError as error:
            for index, vectors in error.partial.items():
                self._store_embedding(index, as_embedding(index, vectors))
            self._client.drain()
            # The stream counts no further than it had read, and not from the beginning of the input.
            left = counts.pending - self.embedded - self._rejected
            error.set_subject(f"{left:,} of {counts.pending:,} texts have no vectors yet")
            raise
        except KeyboardInterrupt:
            # Who was told to stop lets what is under way arrive; who is interrupted then as well ends at once.
            skip_drain = self._stop is not None and self._stop()
            raise
        finally:
            # What is under way is paid for: it belongs into the ledger, although the caller interrupts.
            if not skip_drain:
                self._client.drain()
            if self._errors:
                self._retry_failed_writes()
                raise self._errors[0]
            self._checkpoint.index_replies()

    def _pending_texts(self) -> Iterator[str]:
        settings = self._client.settings
        limits = shared_limits(settings.address.host, settings.model)
        index = 0
        for key, text in self._checkpoint.pending_texts():
            if self._errors or (self._stop is not None and self._stop()):
                return
            # Like `refused`, but found before it is sent; everything else was checked when the text was read.
            if settings.long_text == "error" and limits.certainly_too_long(text):
                self._store_rejection(key, f"the text {text_problem(text, limits, settings.long_text)}; not sent")
                continue
            self._in_stream[index] = key, text
            self._unstored[text] = key
            yield text
            index += 1

    def _on_reply(self, texts: Sequence[str], outcome: Outcome) -> None:
        """In the thread that asked. A text that went in pieces is kept when the stream gives it out."""
        vectors_by_key = {}
        for row, text in enumerate(texts):
            dense, sparse = outcome.dense[row], outcome.sparse[row]
            if (dense is not None or sparse is not None) and (key := self._unstored.pop(text, None)) is not None:
                vectors_by_key[key] = pack_vectors(dense, sparse)
        with self._lock:
            self._requests += outcome.requests
            self._texts += outcome.texts
            self._tokens += outcome.tokens
        self._store_reply(vectors_by_key, outcome.requests, outcome.texts, outcome.tokens)

    def _store_embedding(self, index: int, embedding: Embedding) -> None:
        key, text = self._in_stream.pop(index)
        if self._unstored.pop(text, None) is not None:
            self._store_reply({key: pack_vectors(embedding.dense, embedding.sparse)})

    def _store_reply(
        self, vectors_by_key: dict[int, PackedVectors], requests: int = 0, texts: int = 0, tokens: int = 0
    ) -> None:
        """A ledger that fails ends the run, but not before what is in flight has landed."""
        if not vectors_by_key and not requests:
            return
        try:
            self._checkpoint.store_reply(vectors_by_key, requests, texts, tokens)
        except Exception as error:  # noqa: BLE001 - raised again by `run`
            self._errors.append(error)
            if not isinstance(error, DashScopeError):
                self._failed_writes.append((vectors_by_key, requests, texts, tokens))
        else:
            with self._lock:
                self.embedded += len(vectors_by_key)

    def _retry_failed_writes(self) -> None:
        """What was in flight when the disk was full is not paid for twice if there is room by now.

        Raises:
            OSError: there is none; says what is lost, for it is in no total.
        """
        pending_writes, self._failed_writes = self._failed_writes, []
        for one in pending_writes:
            self._store_reply(*one)
        if self._failed_writes and isinstance(self._errors[0], (OSError, sqlite3.OperationalError)):
            lost = [sum(column) for column in list(zip(*self._failed_writes, strict=True))[1:]]
            raise OSError(
                f"the ledger takes no more: {self._errors[0]}. {lost[0]:,} requests with {lost[1]:,} texts "
                f"({lost[2]:,} tokens) are billed and could not be written: they are in no total, and will be paid "
                "for again"
            ) from self._errors[0]

    def _on_rejected(self, index: int, error: DashScopeError) -> None:
        key, text = self._in_stream.pop(index)
        self._unstored.pop(text, None)
        code = error.code if isinstance(error, ServiceError) else None
        self._store_rejection(key, error.message, code, error.request_id)

    def _store_rejection(self, key: int, reason: str, code: str | None = None, request_id: str | None = None) -> None:
        try:
            self._checkpoint.reject(key, reason, code, request_id)
        except Exception as error:  # noqa: BLE001 - as in `_keep`
            self._errors.append(error)
        else:
            self._rejected += 1


def pack_vectors(dense: list[float] | None, sparse: SparseVector | None) -> PackedVectors:
    """Vectors as the ledger keeps them."""
    return PackedVectors(
        # Three times as fast as the array module, and as a format of a fixed byte order.
        None if dense is None else struct.pack(f"{len(dense)}f", *dense),
        None if sparse is None else struct.pack(f"{len(sparse)}I", *sparse.indices),
        None if sparse is None else struct.pack(f"{len(sparse)}f", *sparse.values),
    )


def as_embedding(index: int, vectors: Any) -> Embedding:
    """An error's partial result, which has the shape of the asked output."""
    if isinstance(vectors, Embedding):
        return vectors
    return Embedding(index, sparse=vectors) if isinstance(vectors, SparseVector) else Embedding(index, vectors)
