"""The other half of a `dense&sparse` reply, kept until its sibling asks for it.

Stores ask the dense and the sparse adapter one after the other (or at once) for the same texts. Whoever comes
first pays for both; the memo holds what the other will want.

A half is given out as often as it was put in, and then forgotten. A full memo refuses new halves instead of
dropping old ones, for the oldest are wanted first; what nobody fetches expires. No request is made here, so
the lock is only ever held for a moment.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from array import array
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dashscope_embeddings._runtime.thread_pool import Flag
from dashscope_embeddings.vectors import SparseVector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dashscope_embeddings.vectors import Embedding, TextType

Half: TypeAlias = Literal["dense", "sparse"]
Vector: TypeAlias = "SparseVector | list[float]"
Key: TypeAlias = "tuple[TextType, str]"
"""Role and text. Model, dimension and instruct are the client's, and every client has a memo of its own."""

CAPACITY = 65_536
"""Texts; about 2 KiB each with 200 tokens."""
EXPIRY = 3_600.0
"""Seconds; a pipeline may embed a whole corpus before its store asks for the first sparse vector."""


@dataclass(slots=True)
class _Entry:
    """One half, packed: a vector of 200 tokens takes 1.8 KiB this way and 13 KiB as lists."""

    indices: array[int] | None
    values: array[float]
    count: int
    expires: float

    @classmethod
    def packed(cls, half: Vector, expires: float) -> _Entry:
        if isinstance(half, SparseVector):
            # Weights are float32 since they were read: nothing is lost.
            return cls(array("I", half.indices), array("f", half.values), 0, expires)
        return cls(None, array("d", half), 0, expires)

    def unpacked(self) -> Vector:
        if self.indices is None:
            return self.values.tolist()
        return SparseVector(self.indices.tolist(), self.values.tolist())


@dataclass(slots=True, eq=False)
class Flight:
    """A request for both halves that is under way, and who waits for it."""

    loop: asyncio.AbstractEventLoop | None
    task: asyncio.Task[Any] | None = None
    """Who leads it, if a task does."""
    landed: Flag = field(default_factory=Flag)
    both: Embedding | None = None
    """Both halves; None if the request failed, and whoever waits has to ask again."""
    asked: Counter[str] = field(default_factory=Counter)

    @property
    def lost(self) -> bool:
        """Whether it cannot land any more: Ctrl-C tore its task out of a loop, or its loop has stopped."""
        return self.loop is not None and (not self.loop.is_running() or (self.task is not None and self.task.done()))

    def blocks(self, loop: asyncio.AbstractEventLoop | None) -> bool:
        """Whether a sync call on this loop's thread must not wait: its loop would stand still meanwhile.

        Also for a flight of another loop, whose thread may be waiting for this one in the same way.
        """
        return loop is not None and self.loop is not None


class Memo:
    """One for a pair of adapters; safe to use from any thread, task or loop."""

    def __init__(
        self, capacity: int = CAPACITY, expiry: float = EXPIRY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity, self._expiry, self._clock = capacity, expiry, clock
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._documents: OrderedDict[tuple[Half, Key], _Entry] = OrderedDict()
        self._queries: OrderedDict[tuple[Half, Key], _Entry] = OrderedDict()
        self._flights: dict[Key, Flight] = {}
        self._pid = os.getpid()

    def __deepcopy__(self, _: object) -> Memo:
        """A copy begins empty: what is kept is given out once."""
        return Memo(self._capacity, self._expiry, self._clock)

    @property
    def kept(self) -> int:
        """How many halves wait to be fetched."""
        with self._lock_here():
            return len(self._documents) + len(self._queries)

    @property
    def room(self) -> int:
        """How many more halves of documents would be taken."""
        with self._lock_here():
            self._forget_expired()
            return self._capacity - len(self._documents)

    def put(
        self, half: Half, role: TextType, texts: Sequence[str], vectors: Iterable[Vector], *, always: bool = False
    ) -> None:
        """Keeps a half of each text, once for every time that the text occurs.

        `always`: also beyond the capacity, for what will be fetched at once.
        """
        with self._lock_here():
            self._forget_expired()
            for text, vector in zip(texts, vectors, strict=True):
                self._put(half, (role, text), vector, 1, always=always)

    def take(self, half: Half, role: TextType, texts: Sequence[str]) -> list[Vector | None]:
        """A half for each text, None where there is none (any more)."""
        with self._lock_here():
            self._forget_expired()
            return [self._take(half, (role, text)) for text in texts]

    def missing(self, half: Half, role: TextType, texts: Sequence[str]) -> list[str]:
        """The texts for which there are not enough halves: each as often as it lacks one."""
        with self._lock_here():
            self._forget_expired()
            wanted = Counter(texts)
            lacking: list[str] = []
            for text, count in wanted.items():
                entry = self._shelf((role, text)).get((half, (role, text)))
                lacking += [text] * (count - (entry.count if entry else 0))
            return lacking

    def board(self, half: Half, key: Key, loop: asyncio.AbstractEventLoop | None) -> Vector | tuple[Flight, bool]:
        """For one text: its half if it is here; else the flight to wait for, or to lead if True.

        `loop` is the caller's running loop. Who is told to lead must `land` the flight, whatever happens.
        """
        with self._lock_here():
            self._forget_expired()
            if (found := self._take(half, key)) is not None:
                return found
            flight = self._flights.get(key)
            lead = flight is None or flight.lost
            if flight is None or lead:
                flight = self._flights[key] = Flight(loop, None if loop is None else asyncio.current_task(loop))
            flight.asked[half] += 1
            return flight, lead

    def land(self, key: Key, flight: Flight, both: Embedding | None) -> None:
        """Ends a flight: wakes who waits, and keeps the half that was asked less often for later."""
        with self._lock_here():
            if self._flights.get(key) is flight:
                del self._flights[key]
            if both is not None:
                more = flight.asked["dense"] - flight.asked["sparse"]
                if more > 0 and both.sparse is not None:
                    self._put("sparse", key, both.sparse, more)
                elif more < 0 and both.dense is not None:
                    self._put("dense", key, both.dense, -more)
        flight.both = both
        flight.landed.set()

    # --- with the lock held -------------------------------------------------------------------------------

    def _lock_here(self) -> threading.Lock:
        """A forked child starts anew: its parent's flights and locks are not its own."""
        if os.getpid() != self._pid:
            self._reset()
        return self._lock

    def _shelf(self, key: Key) -> OrderedDict[tuple[Half, Key], _Entry]:
        """Queries have room of their own, however many documents nobody fetches."""
        return self._queries if key[0] == "query" else self._documents

    def _put(self, half: Half, key: Key, vector: Vector, count: int, *, always: bool = False) -> None:
        shelf = self._shelf(key)
        entry = shelf.get((half, key))
        expires = self._clock() + self._expiry
        if entry is None:
            if len(shelf) >= self._capacity and not always:
                return
            entry = shelf[half, key] = _Entry.packed(vector, expires)
        entry.count += count
        entry.expires = expires
        shelf.move_to_end((half, key))

    def _take(self, half: Half, key: Key) -> Vector | None:
        shelf = self._shelf(key)
        entry = shelf.get((half, key))
        if entry is None:
            return None
        entry.count -= 1
        if entry.count == 0:
            del shelf[half, key]
        return entry.unpacked()

    def _forget_expired(self) -> None:
        now = self._clock()
        for shelf in (self._documents, self._queries):
            while shelf and next(iter(shelf.values())).expires <= now:
                shelf.popitem(last=False)
