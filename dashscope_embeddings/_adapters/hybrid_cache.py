"""A cache for paired adapters: keeps what arrived for the partner, or for the next attempt, until it is taken.

Stores call the dense and the sparse adapter one after the other (or at once) with the same texts. The first call
requests both components; the cache holds the other one. Concurrent calls for the same query share one request
(single-flight): the first caller leads and sends it, the others wait for its `InFlight`.

A component can be taken as often as it was put, and is then deleted. A full cache refuses new entries instead of
evicting old ones, because stores fetch the oldest first; entries that are never fetched expire. Nothing here sends
requests, so the lock is only held for a moment.
"""

from __future__ import annotations

import asyncio
import threading
import time
from array import array
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dashscope_embeddings import _process
from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent
from dashscope_embeddings.vectors import SparseVector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dashscope_embeddings.vectors import Embeddings, TextType

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


@dataclass(slots=True, eq=False)
class InFlight:
    """A request for both components of one query, shared by all callers that want one of them."""

    loop: asyncio.AbstractEventLoop | None
    """The leader's running loop; None if a thread without a loop leads."""
    leader_task: asyncio.Task[Any] | None = None
    completed: SignalSafeEvent = field(default_factory=SignalSafeEvent)
    result: Embeddings | None = None
    """None if the request failed: the waiting callers then send their own."""
    request_counts: Counter[str] = field(default_factory=Counter)
    """Callers by component."""

    @property
    def is_orphaned(self) -> bool:
        """Whether this request will never be completed: its loop has stopped, or Ctrl-C ended the leader's task."""
        return self.loop is not None and (
            not self.loop.is_running() or (self.leader_task is not None and self.leader_task.done())
        )


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
        self._in_flight: dict[CacheKey, InFlight] = {}

    @property
    def size(self) -> int:
        with self._lock:
            return len(self._documents) + len(self._queries)

    @property
    def free_capacity(self) -> int:
        """Number of further entries of documents that fit."""
        with self._lock:
            self._evict_expired()
            return self._capacity - len(self._documents)

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
                self._put(component, (role, text), vector, 1, ignore_capacity=ignore_capacity)

    def take(self, component: Component, role: TextType, texts: Sequence[Any]) -> list[Vector | None]:
        """The component of each text, or None; uses up one of its entries."""
        with self._lock:
            self._evict_expired()
            # Items that are no strings are refused by the client.
            return [self._take(component, (role, text)) if isinstance(text, str) else None for text in texts]

    def missing(self, component: Component, role: TextType, texts: Sequence[str]) -> list[str]:
        """The texts without enough entries, each as often as an entry is missing."""
        with self._lock:
            self._evict_expired()
            return self._missing(component, role, texts)

    def join_or_start(
        self, component: Component, key: CacheKey, loop: asyncio.AbstractEventLoop | None
    ) -> Vector | tuple[InFlight, bool]:
        """The component of one text if it is cached; else (request, is_leader): a leader sends it, others wait for it.

        A leader must call `complete`, however its request ends. `loop` is the caller's running loop.
        """
        with self._lock:
            self._evict_expired()
            if (vector := self._take(component, key)) is not None:
                return vector
            in_flight = self._in_flight.get(key)
            is_leader = in_flight is None or in_flight.is_orphaned
            if in_flight is None or is_leader:
                in_flight = self._in_flight[key] = InFlight(loop, None if loop is None else asyncio.current_task(loop))
            in_flight.request_counts[component] += 1
            return in_flight, is_leader

    def complete(self, key: CacheKey, in_flight: InFlight, result: Embeddings | None) -> None:
        """Hands the result to the waiting callers, and stores the component that fewer of them requested."""
        with self._lock:
            if self._in_flight.get(key) is in_flight:
                del self._in_flight[key]
            surplus = in_flight.request_counts["dense"] - in_flight.request_counts["sparse"]
            if result is not None and surplus:
                component: Component = "sparse" if surplus > 0 else "dense"
                self._put(component, key, getattr(result, component)[0], abs(surplus))
        in_flight.result = result
        in_flight.completed.set()

    # --- with the lock held -------------------------------------------------------------------------------

    def _partition(self, key: CacheKey) -> OrderedDict[tuple[Component, CacheKey], _Entry]:
        """Queries have their own capacity, so that documents which are never fetched cannot use it up."""
        return self._queries if key[0] == "query" else self._documents

    def _missing(self, component: Component, role: TextType, texts: Sequence[str]) -> list[str]:
        missing: list[str] = []
        for text, count in Counter(texts).items():
            entry = self._partition((role, text)).get((component, (role, text)))
            missing += [text] * (count - (entry.remaining_uses if entry else 0))
        return missing

    def _put(
        self, component: Component, key: CacheKey, vector: Vector, count: int, *, ignore_capacity: bool = False
    ) -> None:
        partition = self._partition(key)
        entry = partition.get((component, key))
        expires_at = self._clock() + self._expiry_seconds
        if entry is None:
            if len(partition) >= self._capacity and not ignore_capacity:
                return
            entry = partition[component, key] = _Entry.pack(vector, expires_at)
        entry.remaining_uses += count
        entry.expires_at = expires_at
        partition.move_to_end((component, key))

    def _take(self, component: Component, key: CacheKey) -> Vector | None:
        partition = self._partition(key)
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
