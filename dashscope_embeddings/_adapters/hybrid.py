"""The embedding calls of all adapters. If a dense and a sparse adapter are paired, one billed request serves both.

Vector stores call a dense and a sparse adapter one after the other (or at once) with the same texts. Without a shared
cache each sends its own requests. With one, the first of them requests both components (`dense&sparse`, billed once)
and the other is served from the cache. Two calls at once for the same query share a request in `TextBatcher`.
Each operation is written once, as a flow: see `flows`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._adapters.flows import Call, arun, run
from dashscope_embeddings._adapters.partial_results import ANY_EXCEPTION, fill_missing, renumbered
from dashscope_embeddings._core.results import partial_of, set_attributes
from dashscope_embeddings._core.text_inputs import validate
from dashscope_embeddings._runtime.async_drivers import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    from dashscope_embeddings._adapters.flows import Flow
    from dashscope_embeddings._adapters.hybrid_cache import Component, HybridCache
    from dashscope_embeddings.client import EmbeddingClient
    from dashscope_embeddings.vectors import Embedding, Output, TextType

    Progress: TypeAlias = Callable[[int], object]
    OnVectors: TypeAlias = Callable[[Mapping[int, Any]], Flow[None]]


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

        A request for dense vectors, or for a query, asks for both components, and caches the other one for the partner.
        A request for sparse vectors of documents does so only with `keep_dense`: every store has requested its dense
        vectors before.
        """
        cache = self.cache
        if cache is None:
            return (yield from self._request(component, texts, role, None, progress, on_vectors))
        vectors = cache.take(component, role, texts)
        cached = {index: vector for index, vector in enumerate(vectors) if vector is not None}
        is_query = role == "query" and len(texts) == 1
        for_both = (component == "dense" or keep_dense or is_query) and cache.free_capacity(role) > 0

        def request(missing: list[int]) -> Flow[list[Any]]:
            on_fresh = None if on_vectors is None else lambda found: on_vectors(renumbered(found, missing))
            asked = [texts[index] for index in missing]
            return self._request(component, asked, role, cache if for_both else None, progress, on_fresh)

        try:
            return (yield from fill_missing(vectors, request, progress))
        except GeneratorExit:  # perhaps of the garbage collector, while this thread has the cache's lock
            raise
        except ANY_EXCEPTION as error:
            # A caller with `keep_dense` adds all texts or none: its next attempt takes what arrived, too.
            again = partial_of(error) if keep_dense and for_both else cached
            cache.put(component, role, [texts[index] for index in again], again.values())
            raise

    def _request(  # noqa: PLR0913, PLR0917 - the arguments of one call
        self,
        component: Component,
        texts: list[str],
        role: TextType,
        partners: HybridCache | None,
        progress: Progress | None,
        on_vectors: OnVectors | None,
    ) -> Flow[list[Any]]:
        """Requests one component or, with the cache of the partner, both, and caches the other one for it."""
        if partners is None:
            return getattr((yield self._embed(texts, role, component, progress, on_vectors)), component) or []
        other: Component = "sparse" if component == "dense" else "dense"
        hook = None if on_vectors is None else lambda found: on_vectors(_component_by_index(found, component))
        try:
            result = yield self._embed(texts, role, "dense&sparse", progress, hook)
        except GeneratorExit:  # as above
            raise
        except ANY_EXCEPTION as error:
            arrived = partial_of(error)  # billed as well
            of_other = _component_by_index(arrived, other)
            partners.put_for_partner(other, role, [texts[index] for index in arrived], of_other.values())
            set_attributes(error, partial=_component_by_index(arrived, component))
            raise
        partners.put_for_partner(other, role, texts, getattr(result, other))
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


def _component_by_index(embeddings: Mapping[int, Embedding], component: Component) -> dict[int, Any]:
    return {index: getattr(embedding, component) for index, embedding in embeddings.items()}
