"""Dense and sparse vectors of the same texts, for two adapters that know nothing of each other.

Without a memo each half is asked for alone. With one, whoever comes first asks for both halves in one billed
request. The sync and the async methods mirror each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any, TypeVar

from dashscope_embeddings._core.results import partial_of, set_attributes
from dashscope_embeddings._runtime.async_drivers import set_event_threadsafe
from dashscope_embeddings.errors import DashScopeError
from dashscope_embeddings.vectors import Embedding, SparseVector

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from typing import TypeAlias

    from dashscope_embeddings._adapters.hybrid_cache import Component, HybridCache, InFlight
    from dashscope_embeddings.client import EmbeddingClient
    from dashscope_embeddings.vectors import Embeddings, TextType

    VectorsByIndex: TypeAlias = dict[int, list[float]]


_POLL_SECONDS = 0.25
"""Seconds after which who waits for a shared request looks whether anybody still sends it."""


class HybridEmbedder:
    """What adapters ask: a client, and a memo where two of them are linked."""

    def __init__(self, client: EmbeddingClient, memo: HybridCache | None = None) -> None:
        self.client = client
        self.cache = memo

    # --- sync ---------------------------------------------------------------------------------------------

    def dense(
        self,
        texts: list[str],
        role: TextType,
        progress: Callable[[int], object] | None = None,
        on_vectors: Callable[[VectorsByIndex], object] | None = None,
    ) -> list[list[float]]:
        """Shape (texts, dimensions). `on_vectors` hears of them as they arrive, as in `EmbeddingClient.embed`."""
        cache = self.cache
        if cache is not None and _is_single_query(texts, role):
            return [self._embed_query(cache, "dense", texts[0])]
        if cache is None or cache.free_capacity <= 0:
            return self.client.embed(texts, text_type=role, progress=progress, on_vectors=on_vectors).dense
        hook = None if on_vectors is None else lambda both: on_vectors(_component_by_index(both, "dense"))
        try:
            result = self.client.embed(texts, text_type=role, output="dense&sparse", progress=progress, on_vectors=hook)
        except ANY_EXCEPTION as end:
            _reduce_partial(_cache_partial(end, cache, role, texts), "dense")
            raise
        cache.put("sparse", role, texts, result.sparse or [])
        return result.dense

    def sparse(self, texts: list[str], role: TextType) -> list[SparseVector]:
        """One for each text."""
        if self.cache is not None and _is_single_query(texts, role):
            return [self._embed_query(self.cache, "sparse", texts[0])]
        found, missing_indices = self._lookup(texts, role)
        if missing_indices:
            # Alone: in every store the dense half of documents was asked before.
            try:
                fresh = self.client.embed([texts[i] for i in missing_indices], text_type=role, output="sparse")
            except ANY_EXCEPTION as end:
                add_cached_to_partial(end, found, missing_indices)
                raise
            _fill_missing(found, missing_indices, fresh)
        return found

    def _embed_query(self, cache: HybridCache, component: Component, text: str) -> Any:
        if (loop := _running_loop()) is not None:
            return self._embed_query_shared(cache, component, text, loop)
        # An interruption in the middle would leave others waiting for a request that nobody sends.
        return self.client.run_uninterrupted(lambda: self._embed_query_shared(cache, component, text, None))

    def _embed_query_shared(
        self, cache: HybridCache, component: Component, text: str, loop: asyncio.AbstractEventLoop | None
    ) -> Any:
        while True:
            joined = cache.join_or_start(component, ("query", text), loop)
            if not isinstance(joined, tuple):
                return joined
            in_flight, is_leader = joined
            if is_leader:
                return self._lead_query(cache, component, text, in_flight)
            if in_flight.would_block(loop):
                return getattr(self.client.embed(text, text_type="query", output=component), component)[0]
            while not in_flight.completed.wait(_POLL_SECONDS) and not in_flight.is_orphaned:
                pass
            if in_flight.result is not None:
                return _component_of(in_flight.result, component)

    def _lead_query(self, cache: HybridCache, component: Component, text: str, in_flight: InFlight) -> Any:
        result = None
        try:
            result = _first_embedding(self.client.embed(text, text_type="query", output="dense&sparse"))
        except ANY_EXCEPTION as end:
            _reduce_partial(end, component)
            raise
        finally:
            cache.complete(("query", text), in_flight, result)
        return _component_of(result, component)

    def prefetch(self, texts: Sequence[str], role: TextType = "document") -> None:
        """Asks for the sparse vectors that the memo lacks, together, and keeps them."""
        if self.cache is None:
            return
        if missing := self.cache.missing("sparse", role, texts):
            fresh = self.client.embed(missing, text_type=role, output="sparse")
            self.cache.put("sparse", role, missing, fresh.sparse or [], ignore_capacity=True)

    # --- async --------------------------------------------------------------------------------------------

    async def adense(
        self,
        texts: list[str],
        role: TextType,
        progress: Callable[[int], object] | None = None,
        on_vectors: Callable[[VectorsByIndex], Awaitable[object]] | None = None,
    ) -> list[list[float]]:
        """`dense` on the running loop."""
        cache = self.cache
        if cache is not None and _is_single_query(texts, role):
            return [await self._aembed_query(cache, "dense", texts[0])]
        if cache is None or cache.free_capacity <= 0:
            return (await self.client.aembed(texts, text_type=role, progress=progress, on_vectors=on_vectors)).dense
        hook = None if on_vectors is None else lambda both: on_vectors(_component_by_index(both, "dense"))
        try:
            result = await self.client.aembed(
                texts, text_type=role, output="dense&sparse", progress=progress, on_vectors=hook
            )
        except ANY_EXCEPTION as end:
            _reduce_partial(_cache_partial(end, cache, role, texts), "dense")
            raise
        cache.put("sparse", role, texts, result.sparse or [])
        return result.dense

    async def asparse(self, texts: list[str], role: TextType) -> list[SparseVector]:
        """`sparse` on the running loop."""
        if self.cache is not None and _is_single_query(texts, role):
            return [await self._aembed_query(self.cache, "sparse", texts[0])]
        found, missing_indices = self._lookup(texts, role)
        if missing_indices:
            try:
                fresh = await self.client.aembed([texts[i] for i in missing_indices], text_type=role, output="sparse")
            except ANY_EXCEPTION as end:
                add_cached_to_partial(end, found, missing_indices)
                raise
            _fill_missing(found, missing_indices, fresh)
        return found

    async def _aembed_query(self, cache: HybridCache, component: Component, text: str) -> Any:
        while True:
            joined = cache.join_or_start(component, ("query", text), _running_loop())
            if not isinstance(joined, tuple):
                return joined
            in_flight, is_leader = joined
            if is_leader:
                return await self._alead_query(cache, component, text, in_flight)
            await _wait_until_complete(in_flight)
            if in_flight.result is not None:
                return _component_of(in_flight.result, component)

    async def _alead_query(self, cache: HybridCache, component: Component, text: str, in_flight: InFlight) -> Any:
        result = None
        try:
            result = _first_embedding(await self.client.aembed(text, text_type="query", output="dense&sparse"))
        except ANY_EXCEPTION as end:
            _reduce_partial(end, component)
            raise
        finally:
            cache.complete(("query", text), in_flight, result)
        return _component_of(result, component)

    async def aprefetch(self, texts: Sequence[str], role: TextType = "document") -> None:
        """`prefetch` on the running loop."""
        if self.cache is None:
            return
        if missing := self.cache.missing("sparse", role, texts):
            fresh = await self.client.aembed(missing, text_type=role, output="sparse")
            self.cache.put("sparse", role, missing, fresh.sparse or [], ignore_capacity=True)

    # --- both ---------------------------------------------------------------------------------------------

    def _lookup(self, texts: list[str], role: TextType) -> tuple[list[Any], list[int]]:
        found: list[Any] = [None] * len(texts) if self.cache is None else self.cache.take("sparse", role, texts)
        return found, [i for i, vector in enumerate(found) if vector is None]


def _is_single_query(texts: list[str], role: TextType) -> bool:
    return role == "query" and len(texts) == 1


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _wait_until_complete(in_flight: InFlight) -> None:
    """Until a shared request has landed, or cannot any more."""
    woken = asyncio.Event()
    on_complete = functools.partial(set_event_threadsafe, asyncio.get_running_loop(), woken)
    in_flight.completed.add_waiter(on_complete)
    try:
        while not in_flight.completed.is_set() and not in_flight.is_orphaned:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(woken.wait(), _POLL_SECONDS)
    finally:
        in_flight.completed.remove_waiter(on_complete)


def _first_embedding(result: Embeddings) -> Embedding:
    return Embedding(0, result.dense[0], result.sparse[0] if result.sparse else None)


def _component_of(embedding: Embedding, component: Component) -> Any:
    """Of the halves that several callers share, each gets a list of its own."""
    if component == "sparse":
        return embedding.sparse and SparseVector(list(embedding.sparse.indices), list(embedding.sparse.values))
    return list(embedding.dense or [])


def _fill_missing(found: list[Any], missing_indices: list[int], fresh: Embeddings) -> None:
    for i, vector in zip(missing_indices, fresh.sparse or [], strict=True):
        found[i] = vector


ANY_EXCEPTION = BaseException
"""Whatever ends a call has `partial`: it is adapted to what the adapter's caller asked, and passes as it is."""
_ErrorT = TypeVar("_ErrorT", bound=BaseException)


def _component_by_index(embeddings: Mapping[int, Embedding], component: Component) -> dict[int, Any]:
    return {index: getattr(embedding, component) for index, embedding in embeddings.items()}


def _reduce_partial(error: _ErrorT, component: Component) -> _ErrorT:
    """Who asked for one half is told of that half: the other was our idea."""
    set_attributes(error, partial=_component_by_index(partial_of(error), component))
    return error


def _cache_partial(error: _ErrorT, cache: HybridCache, role: TextType, texts: list[str]) -> _ErrorT:
    """What is paid for of the other half is kept, as where all went well."""
    for index, embedding in sorted(partial_of(error).items()):
        cache.put("sparse", role, [texts[index]], [embedding.sparse])
    return error


def add_cached_to_partial(error: _ErrorT, found: list[Any], missing_indices: list[int]) -> _ErrorT:
    """`renumbered`; what the memo held is not lost."""
    renumber_indices(error, missing_indices, len(found))
    cached = {index: vector for index, vector in enumerate(found) if vector is not None}
    set_attributes(error, partial=cached | partial_of(error))
    return error


def renumber_indices(error: _ErrorT, positions: list[int], total: int) -> _ErrorT:
    """The end of a job over some of a caller's texts, `asked` by their positions, in terms of all of them."""
    if positions == list(range(total)):
        return error
    set_attributes(
        error,
        partial={positions[index]: vector for index, vector in partial_of(error).items()},
        failed=[positions[index] for index in getattr(error, "failed", ())],
    )
    if isinstance(error, DashScopeError):
        error.reasons = {positions[index]: reason for index, reason in error.reasons.items()}
        error.refused = {positions[index]: text for index, text in error.refused.items()}
        error.set_affected(sorted(error.reasons) or error.failed, total)
    return error
