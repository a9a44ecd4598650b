"""The embedding calls of all adapters. If a dense and a sparse adapter are paired, one billed request serves both.

Vector stores call a dense and a sparse adapter one after the other with the same texts. Without a shared cache each
sends its own requests. With one, the first of them requests both components (`dense&sparse`, billed once) and the
other is served from the cache. Each operation is written once, as a flow: see `flows`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._adapters.flows import Call, arun, run
from dashscope_embeddings._core.results import partial_of, set_attributes
from dashscope_embeddings._core.text_inputs import validate
from dashscope_embeddings._runtime.async_drivers import run_in_thread, set_event_threadsafe
from dashscope_embeddings._runtime.connections import running_loop
from dashscope_embeddings.errors import DashScopeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    from dashscope_embeddings._adapters.flows import Flow
    from dashscope_embeddings._adapters.hybrid_cache import Component, HybridCache, InFlight
    from dashscope_embeddings.client import EmbeddingClient
    from dashscope_embeddings.vectors import Embedding, Embeddings, Output, TextType

    Progress: TypeAlias = Callable[[int], object]
    OnVectors: TypeAlias = Callable[[Mapping[int, Any]], Flow[None]]


_POLL_SECONDS = 0.25
"""Seconds between two checks whether a shared request still has a leader."""


class HybridEmbedder:
    """Embeds texts for adapters, as dense or sparse vectors; if two adapters are paired, with their shared cache."""

    def __init__(self, client: EmbeddingClient, cache: HybridCache | None = None) -> None:
        self.client = client
        self.cache = cache

    def component_flow(  # noqa: PLR0913 - all but three are keywords
        self,
        component: Component,
        texts: list[str],
        role: TextType,
        *,
        keep_dense: bool = False,
        progress: Progress | None = None,
        on_vectors: OnVectors | None = None,
    ) -> Flow[list[Any]]:
        """One component of each text: lists of floats, or `SparseVector`s. `on_vectors` is a flow.

        With `keep_dense`, requests for sparse vectors of documents fill the cache with dense ones for the partner. Else
        they ask for the sparse component alone: every store has requested its dense vectors before.
        """
        cache = self.cache
        if cache is not None and role == "query" and len(texts) == 1:
            return [(yield self._shared_query(cache, component, texts[0]))]
        vectors: list[Any] = [None] * len(texts) if cache is None else cache.take(component, role, texts)
        cached = {index: vector for index, vector in enumerate(vectors) if vector is not None}
        if cached and progress is not None:
            progress(len(cached))
        if cached and on_vectors is not None:
            yield from on_vectors(cached)
        missing_indices = [index for index in range(len(texts)) if index not in cached]
        if not missing_indices:
            return vectors
        may_keep = cache is not None and (component == "dense" or keep_dense) and cache.free_capacity > 0
        on_fresh = None if on_vectors is None else lambda found: on_vectors(_renumbered(found, missing_indices))
        missing = [texts[index] for index in missing_indices]
        try:
            fresh = yield from self._request(component, missing, role, cache if may_keep else None, progress, on_fresh)
        except ANY_EXCEPTION as error:
            add_cached_to_partial(error, vectors, missing_indices)
            if cache is not None:
                # A caller with `keep_dense` adds all texts or none: its next attempt takes what arrived, too.
                again = partial_of(error) if keep_dense and may_keep else cached
                cache.put(component, role, [texts[index] for index in again], again.values())
            raise
        for index, vector in zip(missing_indices, fresh, strict=True):
            vectors[index] = vector
        return vectors

    def _request(  # noqa: PLR0913, PLR0917 - the arguments of one call
        self,
        component: Component,
        texts: list[str],
        role: TextType,
        kept_in: HybridCache | None,
        progress: Progress | None,
        on_vectors: OnVectors | None,
    ) -> Flow[list[Any]]:
        """Requests one component or, with `kept_in`, both, and caches the other one for the partner."""
        if kept_in is None:
            return getattr((yield self._embed(texts, role, component, progress, on_vectors)), component) or []
        other: Component = "sparse" if component == "dense" else "dense"
        hook = None if on_vectors is None else lambda found: on_vectors(_component_by_index(found, component))
        try:
            result = yield self._embed(texts, role, "dense&sparse", progress, hook)
        except ANY_EXCEPTION as error:
            for index, embedding in sorted(partial_of(error).items()):  # billed as well
                kept_in.put(other, role, [texts[index]], [getattr(embedding, other)])
            _reduce_partial(error, component)
            raise
        kept_in.put(other, role, texts, getattr(result, other))
        return getattr(result, component) or []

    def check_flow(self, texts: list[str]) -> Flow[None]:
        """Refuses invalid texts, as `embed` does: for a caller that passes them to it in slices."""
        client = self.client
        check = functools.partial(validate, texts, client._limits, client.settings.long_text)  # noqa: SLF001 - of this package
        yield Call(check, functools.partial(run_in_thread, check))

    def prefetch_flow(self, texts: Sequence[str], role: TextType) -> Flow[None]:
        """Requests the sparse vectors that the cache lacks, in as few requests as possible, and caches them."""
        if self.cache is not None and (missing := self.cache.missing("sparse", role, texts)):
            fresh = yield self._embed(missing, role, "sparse")
            self.cache.put("sparse", role, missing, fresh.sparse or [], ignore_capacity=True)

    def _query_flow(self, cache: HybridCache, component: Component, text: str) -> Flow[Any]:
        """One component of a query: from the cache, from a request in flight, or from a new one for both."""
        while True:
            joined = cache.join_or_start(component, ("query", text), running_loop())
            if not isinstance(joined, tuple):
                return joined
            in_flight, is_leader = joined
            if is_leader:
                return (yield from self._lead_query(cache, component, text, in_flight))
            if not (yield Call(_wait_until_complete, _await_until_complete, in_flight)):
                return _component_of((yield self._embed([text], "query", component)), component)
            if in_flight.result is not None:
                return _component_of(in_flight.result, component)

    def _lead_query(self, cache: HybridCache, component: Component, text: str, in_flight: InFlight) -> Flow[Any]:
        result = None
        try:
            result = yield self._embed([text], "query", "dense&sparse")
        except ANY_EXCEPTION as error:
            _reduce_partial(error, component)
            raise
        finally:
            cache.complete(("query", text), in_flight, result)
        return _component_of(result, component)

    # --- calls --------------------------------------------------------------------------------------------

    def _embed(
        self,
        texts: list[str],
        role: TextType,
        output: Output,
        progress: Progress | None = None,
        on_vectors: OnVectors | None = None,
    ) -> Call:
        sync_hook = None if on_vectors is None else lambda vectors: run(on_vectors(vectors))
        async_hook = None if on_vectors is None else lambda vectors: arun(on_vectors(vectors))
        arguments: dict[str, Any] = {"text_type": role, "output": output, "progress": progress}
        return Call(
            functools.partial(self.client.embed, texts, on_vectors=sync_hook, **arguments),
            functools.partial(self.client.aembed, texts, on_vectors=async_hook, **arguments),
        )

    def _shared_query(self, cache: HybridCache, component: Component, text: str) -> Call:
        return Call(self._run_shared, arun, self._query_flow(cache, component, text))

    def _run_shared(self, flow: Flow[Any]) -> Any:
        """Runs where no signal handler can raise: an interrupted leader would never complete the shared request."""
        if running_loop() is not None:
            return run(flow)  # on this thread, because the flow reads its running loop
        return self.client.run_uninterrupted(functools.partial(run, flow))


def _wait_until_complete(in_flight: InFlight) -> bool:
    """Waits until a shared request is completed or orphaned; False at once if waiting here could deadlock."""
    if in_flight.loop is not None and running_loop() is not None:
        return False  # it would block this loop; if the leader's is another one, that may be waiting for this one
    while not in_flight.completed.wait(_POLL_SECONDS) and not in_flight.is_orphaned:
        pass
    return True


async def _await_until_complete(in_flight: InFlight) -> bool:
    """`_wait_until_complete` on the running loop, where waiting does not block other tasks."""
    woken = asyncio.Event()
    on_complete = functools.partial(set_event_threadsafe, asyncio.get_running_loop(), woken)
    in_flight.completed.add_waiter(on_complete)
    try:
        while not in_flight.completed.is_set() and not in_flight.is_orphaned:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(woken.wait(), _POLL_SECONDS)
    finally:
        in_flight.completed.remove_waiter(on_complete)
    return True


def _component_of(result: Embeddings, component: Component) -> Any:
    """One component of a query, copied: several callers share the result, and each may change its own list."""
    return getattr(result, component)[0].copy()


ANY_EXCEPTION = BaseException
"""Interruptions carry `partial` too: it is adapted to the adapter's call, and the exception passes unchanged."""


def _component_by_index(embeddings: Mapping[int, Embedding], component: Component) -> dict[int, Any]:
    return {index: getattr(embedding, component) for index, embedding in embeddings.items()}


def _renumbered(vectors: Mapping[int, Any], indices: Sequence[int]) -> dict[int, Any]:
    return {indices[index]: vector for index, vector in vectors.items()}


def _reduce_partial(error: BaseException, component: Component) -> None:
    """Reduces `partial` to the component that the caller requested."""
    set_attributes(error, partial=_component_by_index(partial_of(error), component))


def add_cached_to_partial(error: BaseException, vectors: list[Any], missing_indices: list[int]) -> None:
    """Renumbers the indices of an error of the call for the missing texts, and adds cached vectors to its `partial`.

    `vectors`: for each text of the caller its cached vector, or None.
    """
    cached = {index: vector for index, vector in enumerate(vectors) if vector is not None}
    set_attributes(error, partial=cached | _renumbered(partial_of(error), missing_indices))
    if cached:
        set_attributes(error, failed=[missing_indices[index] for index in getattr(error, "failed", ())])
    if cached and isinstance(error, DashScopeError):
        error.reasons = _renumbered(error.reasons, missing_indices)
        error.refused = _renumbered(error.refused, missing_indices)
        error.set_affected(sorted(error.reasons) or error.failed, len(vectors))
