"""Dense and sparse vectors of the same texts, for two adapters that know nothing of each other.

Without a memo each half is asked for alone. With one, whoever comes first asks for both halves in one billed
request. The sync and the async methods mirror each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any, TypeVar

from dashscope_embeddings._core.results import arrived_with, note
from dashscope_embeddings._runtime.async_drivers import wake
from dashscope_embeddings.errors import DashScopeError
from dashscope_embeddings.vectors import Embedding, SparseVector

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from typing import TypeAlias

    from dashscope_embeddings._adapters.hybrid_cache import Flight, Half, Memo
    from dashscope_embeddings.client import EmbeddingClient
    from dashscope_embeddings.vectors import Embeddings, TextType

    Vectors: TypeAlias = dict[int, list[float]]


_LOOK = 0.25
"""Seconds after which who waits for a shared request looks whether anybody still sends it."""


class Halves:
    """What adapters ask: a client, and a memo where two of them are linked."""

    def __init__(self, client: EmbeddingClient, memo: Memo | None = None) -> None:
        self.client = client
        self.memo = memo

    # --- sync ---------------------------------------------------------------------------------------------

    def dense(
        self,
        texts: list[str],
        role: TextType,
        progress: Callable[[int], object] | None = None,
        on_vectors: Callable[[Vectors], object] | None = None,
    ) -> list[list[float]]:
        """Shape (texts, dimensions). `on_vectors` hears of them as they arrive, as in `EmbeddingClient.embed`."""
        memo = self.memo
        if memo is not None and _is_query(texts, role):
            return [self._query(memo, "dense", texts[0])]
        if memo is None or memo.room <= 0:
            return self.client.embed(texts, text_type=role, progress=progress, on_vectors=on_vectors).dense
        hook = None if on_vectors is None else lambda both: on_vectors(_each_half(both, "dense"))
        try:
            both = self.client.embed(texts, text_type=role, output="dense&sparse", progress=progress, on_vectors=hook)
        except ENDS as end:
            _only(_saved(end, memo, role, texts), "dense")
            raise
        memo.put("sparse", role, texts, both.sparse or [])
        return both.dense

    def sparse(self, texts: list[str], role: TextType) -> list[SparseVector]:
        """One for each text."""
        if self.memo is not None and _is_query(texts, role):
            return [self._query(self.memo, "sparse", texts[0])]
        found, missed = self._found(texts, role)
        if missed:
            # Alone: in every store the dense half of documents was asked before.
            try:
                fresh = self.client.embed([texts[i] for i in missed], text_type=role, output="sparse")
            except ENDS as end:
                with_found(end, found, missed)
                raise
            _fill(found, missed, fresh)
        return found

    def _query(self, memo: Memo, half: Half, text: str) -> Any:
        if (loop := _running_loop()) is not None:
            return self._shared(memo, half, text, loop)
        # An interruption in the middle would leave others waiting for a request that nobody sends.
        return self.client.apart(lambda: self._shared(memo, half, text, None))

    def _shared(self, memo: Memo, half: Half, text: str, loop: asyncio.AbstractEventLoop | None) -> Any:
        while True:
            boarded = memo.board(half, ("query", text), loop)
            if not isinstance(boarded, tuple):
                return boarded
            flight, lead = boarded
            if lead:
                return self._lead(memo, half, text, flight)
            if flight.blocks(loop):
                return getattr(self.client.embed(text, text_type="query", output=half), half)[0]
            while not flight.landed.wait(_LOOK) and not flight.lost:
                pass
            if flight.both is not None:
                return _half(flight.both, half)

    def _lead(self, memo: Memo, half: Half, text: str, flight: Flight) -> Any:
        both = None
        try:
            both = _first(self.client.embed(text, text_type="query", output="dense&sparse"))
        except ENDS as end:
            _only(end, half)
            raise
        finally:
            memo.land(("query", text), flight, both)
        return _half(both, half)

    def prefetch(self, texts: Sequence[str], role: TextType = "document") -> None:
        """Asks for the sparse vectors that the memo lacks, together, and keeps them."""
        if self.memo is None:
            return
        if missing := self.memo.missing("sparse", role, texts):
            fresh = self.client.embed(missing, text_type=role, output="sparse")
            self.memo.put("sparse", role, missing, fresh.sparse or [], always=True)

    # --- async --------------------------------------------------------------------------------------------

    async def adense(
        self,
        texts: list[str],
        role: TextType,
        progress: Callable[[int], object] | None = None,
        on_vectors: Callable[[Vectors], Awaitable[object]] | None = None,
    ) -> list[list[float]]:
        """`dense` on the running loop."""
        memo = self.memo
        if memo is not None and _is_query(texts, role):
            return [await self._aquery(memo, "dense", texts[0])]
        if memo is None or memo.room <= 0:
            return (await self.client.aembed(texts, text_type=role, progress=progress, on_vectors=on_vectors)).dense
        hook = None if on_vectors is None else lambda both: on_vectors(_each_half(both, "dense"))
        try:
            both = await self.client.aembed(
                texts, text_type=role, output="dense&sparse", progress=progress, on_vectors=hook
            )
        except ENDS as end:
            _only(_saved(end, memo, role, texts), "dense")
            raise
        memo.put("sparse", role, texts, both.sparse or [])
        return both.dense

    async def asparse(self, texts: list[str], role: TextType) -> list[SparseVector]:
        """`sparse` on the running loop."""
        if self.memo is not None and _is_query(texts, role):
            return [await self._aquery(self.memo, "sparse", texts[0])]
        found, missed = self._found(texts, role)
        if missed:
            try:
                fresh = await self.client.aembed([texts[i] for i in missed], text_type=role, output="sparse")
            except ENDS as end:
                with_found(end, found, missed)
                raise
            _fill(found, missed, fresh)
        return found

    async def _aquery(self, memo: Memo, half: Half, text: str) -> Any:
        while True:
            boarded = memo.board(half, ("query", text), _running_loop())
            if not isinstance(boarded, tuple):
                return boarded
            flight, lead = boarded
            if lead:
                return await self._alead(memo, half, text, flight)
            await _ended(flight)
            if flight.both is not None:
                return _half(flight.both, half)

    async def _alead(self, memo: Memo, half: Half, text: str, flight: Flight) -> Any:
        both = None
        try:
            both = _first(await self.client.aembed(text, text_type="query", output="dense&sparse"))
        except ENDS as end:
            _only(end, half)
            raise
        finally:
            memo.land(("query", text), flight, both)
        return _half(both, half)

    async def aprefetch(self, texts: Sequence[str], role: TextType = "document") -> None:
        """`prefetch` on the running loop."""
        if self.memo is None:
            return
        if missing := self.memo.missing("sparse", role, texts):
            fresh = await self.client.aembed(missing, text_type=role, output="sparse")
            self.memo.put("sparse", role, missing, fresh.sparse or [], always=True)

    # --- both ---------------------------------------------------------------------------------------------

    def _found(self, texts: list[str], role: TextType) -> tuple[list[Any], list[int]]:
        found: list[Any] = [None] * len(texts) if self.memo is None else self.memo.take("sparse", role, texts)
        return found, [i for i, vector in enumerate(found) if vector is None]


def _is_query(texts: list[str], role: TextType) -> bool:
    return role == "query" and len(texts) == 1


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _ended(flight: Flight) -> None:
    """Until a shared request has landed, or cannot any more."""
    woken = asyncio.Event()
    waking = functools.partial(wake, asyncio.get_running_loop(), woken)
    flight.landed.add(waking)
    try:
        while not flight.landed.is_set() and not flight.lost:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(woken.wait(), _LOOK)
    finally:
        flight.landed.remove(waking)


def _first(both: Embeddings) -> Embedding:
    return Embedding(0, both.dense[0], both.sparse[0] if both.sparse else None)


def _half(both: Embedding, half: Half) -> Any:
    """Of the halves that several callers share, each gets a list of its own."""
    if half == "sparse":
        return both.sparse and SparseVector(list(both.sparse.indices), list(both.sparse.values))
    return list(both.dense or [])


def _fill(found: list[Any], missed: list[int], fresh: Embeddings) -> None:
    for i, vector in zip(missed, fresh.sparse or [], strict=True):
        found[i] = vector


ENDS = BaseException
"""Whatever ends a call has `partial`: it is adapted to what the adapter's caller asked, and passes as it is."""
_End = TypeVar("_End", bound=BaseException)


def _each_half(both: Mapping[int, Embedding], half: Half) -> dict[int, Any]:
    return {index: getattr(embedding, half) for index, embedding in both.items()}


def _only(end: _End, half: Half) -> _End:
    """Who asked for one half is told of that half: the other was our idea."""
    note(end, partial=_each_half(arrived_with(end), half))
    return end


def _saved(end: _End, memo: Memo, role: TextType, texts: list[str]) -> _End:
    """What is paid for of the other half is kept, as where all went well."""
    for index, both in sorted(arrived_with(end).items()):
        memo.put("sparse", role, [texts[index]], [both.sparse])
    return end


def with_found(end: _End, found: list[Any], missed: list[int]) -> _End:
    """`renumbered`; what the memo held is not lost."""
    renumbered(end, missed, len(found))
    kept = {index: vector for index, vector in enumerate(found) if vector is not None}
    note(end, partial=kept | arrived_with(end))
    return end


def renumbered(end: _End, asked: list[int], total: int) -> _End:
    """The end of a job over some of a caller's texts, `asked` by their positions, in terms of all of them."""
    if asked == list(range(total)):
        return end
    note(
        end,
        partial={asked[index]: vector for index, vector in arrived_with(end).items()},
        failed=[asked[index] for index in getattr(end, "failed", ())],
    )
    if isinstance(end, DashScopeError):
        end.reasons = {asked[index]: reason for index, reason in end.reasons.items()}
        end.refused = {asked[index]: text for index, text in end.refused.items()}
        end.about(sorted(end.reasons) or end.failed, total)
    return end
