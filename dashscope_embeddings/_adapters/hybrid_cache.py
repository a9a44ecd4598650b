"""A cache for paired adapters: keeps what arrived for the partner, or for the next attempt, until it is taken.

Stores call the dense and the sparse adapter one after the other with the same texts. The first call requests both
components; the cache holds the other one.

A component can be taken as often as it was put, and is then deleted. A full cache refuses new entries instead of
evicting old ones, because stores fetch the oldest first; entries that are never fetched expire. Nothing here sends
requests, so the lock is only held for a moment.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dashscope_embeddings import _process
from dashscope_embeddings.vectors import SparseVector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dashscope_embeddings.vectors import TextType

Component: TypeAlias = Literal["dense", "sparse"]
Vector: TypeAlias = "SparseVector | list[float]"
CacheKey: TypeAlias = "tuple[TextType, str]"
"""Role and text. Model, dimension and instruct belong to the client, and each client has its own cache."""

CAPACITY_TEXTS = 65_536
"""Texts; a sparse vector of 200 tokens takes about 2 KiB."""
EXPIRY_SECONDS = 3_600.0
"""Seconds; a pipeline may embed a whole corpus before its store fetches the first sparse vector."""


@dataclass(slots=True)
class _Entry:
    """One component as arrays: a sparse vector of 200 tokens takes 1.8 KiB this way and 13 KiB as lists."""

    indices: array[int] | None
    values: array[float]
    remaining_uses: int
    expires_at: float

    @classmethod
    def pack(cls, vector: Vector, expires_at: float) -> _Entry:
        if isinstance(vector, SparseVector):
            # Lossless: weights were rounded to float32 when the reply was parsed.
            return cls(array("I", vector.indices), array("f", vector.values), 0, expires_at)
        return cls(None, array("d", vector), 0, expires_at)

    def unpack(self) -> Vector:
        if self.indices is None:
            return self.values.tolist()
        return SparseVector(self.indices.tolist(), self.values.tolist())


class HybridCache:
    """The cache of one pair of adapters; safe to use from any thread, task or loop."""

    def __init__(
        self,
        capacity: int = CAPACITY_TEXTS,
        expiry_seconds: float = EXPIRY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity, self._expiry_seconds, self._clock = capacity, expiry_seconds, clock
        self.reset_after_fork()
        _process.on_fork(self)

    def reset_after_fork(self) -> None:
        """Starts empty: the callers and requests of the parent process are not in the child."""
        self._lock = threading.Lock()
        self._documents: OrderedDict[tuple[Component, CacheKey], _Entry] = OrderedDict()
        self._queries: OrderedDict[tuple[Component, CacheKey], _Entry] = OrderedDict()

    @property
    def size(self) -> int:
        with self._lock:
            return len(self._documents) + len(self._queries)

    def free_capacity(self, role: TextType) -> int:
        """Number of further entries of documents, or of queries, that fit."""
        with self._lock:
            self._evict_expired()
            return self._capacity - len(self._partition(role))

    def put(
        self,
        component: Component,
        role: TextType,
        texts: Sequence[str],
        vectors: Iterable[Vector],
        *,
        ignore_capacity: bool = False,
    ) -> None:
        """Stores one component of each text; if a text occurs twice, its vector can be taken twice.

        `ignore_capacity`: stores them even if the cache is full, because they are fetched right away.
        """
        with self._lock:
            self._evict_expired()
            for text, vector in zip(texts, vectors, strict=True):
                self._put(component, (role, text), vector, ignore_capacity=ignore_capacity)

    def put_for_partner(
        self, component: Component, role: TextType, texts: Sequence[str], vectors: Iterable[Vector]
    ) -> None:
        """Stores one component of each text, of which the caller wanted the other one.

        If both were requested at the same time, the partner has stored a vector for this caller: it is dropped instead.
        """
        other: Component = "sparse" if component == "dense" else "dense"
        with self._lock:
            self._evict_expired()
            for text, vector in zip(texts, vectors, strict=True):
                if self._take(other, (role, text)) is None:
                    self._put(component, (role, text), vector)

    def take(self, component: Component, role: TextType, texts: Sequence[Any]) -> list[Vector | None]:
        """The component of each text, or None; uses up one of its entries."""
        with self._lock:
            self._evict_expired()
            # Items that are no strings are refused by the client.
            return [self._take(component, (role, text)) if isinstance(text, str) else None for text in texts]

    def missing(self, component: Component, role: TextType, texts: Sequence[str]) -> list[str]:
        """The texts without enough entries, each as often as an entry is missing."""
        missing: list[str] = []
        with self._lock:
            self._evict_expired()
            for text, count in Counter(texts).items():
                entry = self._partition(role).get((component, (role, text)))
                missing += [text] * (count - (entry.remaining_uses if entry else 0))
        return missing

    # --- with the lock held -------------------------------------------------------------------------------

    def _partition(self, role: TextType) -> OrderedDict[tuple[Component, CacheKey], _Entry]:
        """Queries have their own capacity, so that documents which are never fetched cannot use it up."""
        return self._queries if role == "query" else self._documents

    def _put(self, component: Component, key: CacheKey, vector: Vector, *, ignore_capacity: bool = False) -> None:
        partition = self._partition(key[0])
        entry = partition.get((component, key))
        expires_at = self._clock() + self._expiry_seconds
        if entry is None:
            if len(partition) >= self._capacity and not ignore_capacity:
                return
            entry = partition[component, key] = _Entry.pack(vector, expires_at)
        entry.remaining_uses += 1
        entry.expires_at = expires_at
        partition.move_to_end((component, key))

    def _take(self, component: Component, key: CacheKey) -> Vector | None:
        partition = self._partition(key[0])
        entry = partition.get((component, key))
        if entry is None:
            return None
        entry.remaining_uses -= 1
        if entry.remaining_uses == 0:
            del partition[component, key]
        return entry.unpack()

    def _evict_expired(self) -> None:
        now = self._clock()
        for partition in (self._documents, self._queries):
            while partition and next(iter(partition.values())).expires_at <= now:
                partition.popitem(last=False)
