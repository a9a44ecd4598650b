"""A cache of dense vectors in front of the client: only the texts that it lacks are requested.

Vectors are stored as replies arrive, so a call that fails or is interrupted has stored what arrived. A failing cache
costs no vectors: if it cannot be read, all texts are requested; if it cannot be written, vectors are returned and not
stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from dashscope_embeddings._adapters.flows import arun, run
from dashscope_embeddings._adapters.hybrid import ANY_EXCEPTION, add_cached_to_partial
from dashscope_embeddings._core.results import partial_of
from dashscope_embeddings.catalogue import warn_once

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dashscope_embeddings._adapters.flows import Flow
    from dashscope_embeddings._adapters.hybrid import HybridEmbedder
    from dashscope_embeddings.vectors import TextType


class VectorCache(Protocol):
    """Vectors by text, for one role of one client's settings. Its flows may raise anything."""

    def read(self, texts: list[str]) -> Flow[list[list[float] | None]]:
        """A vector for each text; None if there is none, or a damaged one."""

    def write(self, vectors: dict[str, Sequence[float]]) -> Flow[None]:
        """Stores the vectors of these texts."""

    def as_stored(self, vector: list[float]) -> list[float]:
        """The vector as `read` will return it, so that a text's vector is always the same."""


def embed_cached(
    cache: VectorCache,
    hybrid: HybridEmbedder,
    texts: list[str],
    role: TextType,
    progress: Callable[[int], object] | None = None,
) -> list[list[float]]:
    """`HybridEmbedder.dense` for the texts that the cache does not have: shape (texts, dimensions)."""
    return run(_embed_cached_flow(cache, hybrid, texts, role, progress))


async def aembed_cached(
    cache: VectorCache,
    hybrid: HybridEmbedder,
    texts: list[str],
    role: TextType,
    progress: Callable[[int], object] | None = None,
) -> list[list[float]]:
    """`embed_cached` on the running loop."""
    return await arun(_embed_cached_flow(cache, hybrid, texts, role, progress))


def _embed_cached_flow(
    cache: VectorCache,
    hybrid: HybridEmbedder,
    texts: list[str],
    role: TextType,
    progress: Callable[[int], object] | None,
) -> Flow[list[list[float]]]:
    lookup = _CacheLookup(texts)
    try:
        lookup.add_cached((yield from cache.read(lookup.distinct)))
    except Exception as error:  # noqa: BLE001 - whatever a user's store raises
        warn_read_failed(error)
    missing = lookup.missing(progress)

    def save(arrived: Mapping[int, Sequence[float]], *, last: bool = False) -> Flow[None]:
        if vectors := lookup.unsaved(arrived, last=last):
            try:
                yield from cache.write(vectors)
            except Exception as error:  # noqa: BLE001 - as above
                lookup.has_write_failed = True
                warn_write_failed(error)
            else:
                lookup.saved_texts.update(vectors)

    if missing:
        try:
            fresh = yield from hybrid.dense_flow(missing, role, progress, save)
        except ANY_EXCEPTION as error:
            if not isinstance(error, GeneratorExit):  # a coroutine that is closed cannot await
                yield from save(partial_of(error), last=True)
            add_cached_to_partial(error, lookup.vectors, lookup.missing_indices)
            raise
        yield from save(dict(enumerate(fresh)), last=True)
        for index, vector in zip(lookup.missing_indices, fresh, strict=True):
            lookup.vectors[index] = cache.as_stored(vector)
    return lookup.vectors


class _CacheLookup:
    """The texts of one call: their cached vectors, the missing ones, and which of these are stored by now."""

    def __init__(self, texts: list[Any]) -> None:
        self._texts = texts
        # An item that is no string is refused by the client.
        self.distinct: list[str] = list(dict.fromkeys(text for text in texts if isinstance(text, str)))
        self.vectors: list[Any] = [None] * len(texts)
        """For each text its vector, or None."""
        self.missing_indices: list[int] = []
        """Indices of the texts to request."""
        self.saved_texts: set[str] = set()
        self.has_write_failed = False

    def add_cached(self, vectors: list[list[float] | None]) -> None:
        """Adds the cached vectors of the distinct texts."""
        known = dict(zip(self.distinct, vectors, strict=True))
        seen: set[str] = set()
        for index, text in enumerate(self._texts):
            vector = known.get(text) if isinstance(text, str) else None
            # Equal texts get lists of their own: a caller may change one of them.
            self.vectors[index] = vector and (list(vector) if text in seen else vector)
            seen.add(text)

    def missing(self, progress: Callable[[int], object] | None) -> list[str]:
        """The texts to request; reports the others as done."""
        self.missing_indices = [index for index, vector in enumerate(self.vectors) if vector is None]
        if progress is not None and len(self.missing_indices) < len(self.vectors):
            progress(len(self.vectors) - len(self.missing_indices))
        return [self._texts[index] for index in self.missing_indices]

    def unsaved(self, arrived: Mapping[int, Sequence[float]], *, last: bool) -> dict[str, Sequence[float]]:
        """The arrived vectors that are not stored yet, by text.

        After a failed write none until the `last` one of the call: a store that is down may take long to fail.
        """
        if self.has_write_failed and not last:
            return {}
        by_text = {self._texts[self.missing_indices[index]]: vector for index, vector in arrived.items()}
        return {text: vector for text, vector in by_text.items() if text not in self.saved_texts}


def warn_read_failed(error: Exception) -> None:
    """Warns, once per process, that a store could not be read."""
    warn_once(
        "cache not read",
        f"embeddings_cache could not be read ({type(error).__name__}): the texts are requested, and billed",
    )


def warn_write_failed(error: Exception) -> None:
    """Warns, once per process, that a store could not be written."""
    warn_once(
        "cache not written",
        f"embeddings_cache could not be written ({type(error).__name__}): the vectors are returned, not stored",
    )
