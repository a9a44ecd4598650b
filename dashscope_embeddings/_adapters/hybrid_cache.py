"""The other half of a `dense&sparse` reply, kept until its sibling asks for it.

Stores ask the dense and the sparse adapter one after the other (or at once) for the same texts. Whoever comes
first pays for both; the memo holds what the other will want.

A half is given out as often as it was put in, and then forgotten. A full memo refuses new halves instead of
dropping old ones, for the oldest are wanted first; what nobody fetches expires. No request is made here, so
the lock is only ever held for a moment.
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

    from dashscope_embeddings.vectors import Embedding, TextType

Component: TypeAlias = Literal["dense", "sparse"]
Vector: TypeAlias = "SparseVector | list[float]"
CacheKey: TypeAlias = "tuple[TextType, str]"
"""Role and text. Model, dimension and instruct are the client's, and every client has a memo of its own."""

CAPACITY_TEXTS = 65_536
"""Texts; about 2 KiB each with 200 tokens."""
EXPIRY_SECONDS = 3_600.0
"""Seconds; a pipeline may embed a whole corpus before its store asks for the first sparse vector."""


@dataclass(slots=True)
class _Entry:
    """One half, packed: a vector of 200 tokens takes 1.8 KiB this way and 13 KiB as lists."""

    indices: array[int] | None
    values: array[float]
    remaining_uses: int
    expires_at: float

    @classmethod
    def pack(cls, vector: Vector, expires_at: float) -> _Entry:
        if isinstance(vector, SparseVector):
            # Weights are float32 since they were read: nothing is lost.
            return cls(array("I", vector.indices), array("f", vector.values), 0, expires_at)
        return cls(None, array("d", vector), 0, expires_at)

    def unpack(self) -> Vector:
        if self.indices is None:
            return self.values.tolist()
        return SparseVector(self.indices.tolist(), self.values.tolist())


@dataclass(slots=True, eq=False)
class InFlight:
    """A request for both halves that is under way, and who waits for it."""

    loop: asyncio.AbstractEventLoop | None
    leader_task: asyncio.Task[Any] | None = None
    """Who leads it, if a task does."""
    completed: SignalSafeEvent = field(default_factory=SignalSafeEvent)
    result: Embedding | None = None
    """Both halves; None if the request failed, and whoever waits has to ask again."""
    request_counts: Counter[str] = field(default_factory=Counter)

    @property
    def is_orphaned(self) -> bool:
        """Whether it cannot land any more: Ctrl-C tore its task out of a loop, or its loop has stopped."""
        return self.loop is not None and (
            not self.loop.is_running() or (self.leader_task is not None and self.leader_task.done())
        )

    def would_block(self, loop: asyncio.AbstractEventLoop | None) -> bool:
        """Whether a sync call on this loop's thread must not wait: its loop would stand still meanwhile.

        Also for a flight of another loop, whose thread may be waiting for this one in the same way.
        """
        return loop is not None and self.loop is not None


class HybridCache:
    """One for a pair of adapters; safe to use from any thread, task or loop."""

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

    def __deepcopy__(self, _: object) -> HybridCache:
        """A copy begins empty: what is kept is given out once."""
        return HybridCache(self._capacity, self._expiry_seconds, self._clock)

    @property
    def size(self) -> int:
        """How many halves wait to be fetched."""
        with self._lock:
            return len(self._documents) + len(self._queries)

    @property
    def free_capacity(self) -> int:
        """How many more halves of documents would be taken."""
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
        """Keeps a half of each text, once for every time that the text occurs.

        `always`: also beyond the capacity, for what will be fetched at once.
        """
        with self._lock:
            self._evict_expired()
            for text, vector in zip(texts, vectors, strict=True):
                self._put(component, (role, text), vector, 1, ignore_capacity=ignore_capacity)

    def take(self, component: Component, role: TextType, texts: Sequence[str]) -> list[Vector | None]:
        """A half for each text, None where there is none (any more)."""
        with self._lock:
            self._evict_expired()
            return [self._take(component, (role, text)) for text in texts]

    def missing(self, component: Component, role: TextType, texts: Sequence[str]) -> list[str]:
        """The texts for which there are not enough halves: each as often as it lacks one."""
        with self._lock:
            self._evict_expired()
            wanted = Counter(texts)
            lacking: list[str] = []
            for text, count in wanted.items():
                entry = self._partition((role, text)).get((component, (role, text)))
                lacking += [text] * (count - (entry.remaining_uses if entry else 0))
            return lacking

    def join_or_start(
        self, component: Component, key: CacheKey, loop: asyncio.AbstractEventLoop | None
    ) -> Vector | tuple[InFlight, bool]:
        """For one text: its half if it is here; else the flight to wait for, or to lead if True.

        `loop` is the caller's running loop. Who is told to lead must `land` the flight, whatever happens.
        """
        with self._lock:
            self._evict_expired()
            if (found := self._take(component, key)) is not None:
                return found
            in_flight = self._in_flight.get(key)
            is_leader = in_flight is None or in_flight.is_orphaned
            if in_flight is None or is_leader:
                in_flight = self._in_flight[key] = InFlight(loop, None if loop is None else asyncio.current_task(loop))
            in_flight.request_counts[component] += 1
            return in_flight, is_leader

    def complete(self, key: CacheKey, in_flight: InFlight, both: Embedding | None) -> None:
        """Ends a flight: wakes who waits, and keeps the half that was asked less often for later."""
        with self._lock:
            if self._in_flight.get(key) is in_flight:
                del self._in_flight[key]
            if both is not None:
                more = in_flight.request_counts["dense"] - in_flight.request_counts["sparse"]
                if more > 0 and both.sparse is not None:
                    self._put("sparse", key, both.sparse, more)
                elif more < 0 and both.dense is not None:
                    self._put("dense", key, both.dense, -more)
        in_flight.result = both
        in_flight.completed.set()

    # --- with the lock held -------------------------------------------------------------------------------

    def _partition(self, key: CacheKey) -> OrderedDict[tuple[Component, CacheKey], _Entry]:
        """Queries have room of their own, however many documents nobody fetches."""
        return self._queries if key[0] == "query" else self._documents

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
