"""A cache of dense vectors in front of the client: only the texts that it lacks are requested.

Vectors are stored as replies arrive, so a call that fails or is interrupted has stored what arrived. A failing cache
costs no vectors: if it cannot be read, all texts are requested; if it cannot be written, vectors are returned and not
stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

from dashscope_embeddings._adapters.partial_results import ANY_EXCEPTION, fill_missing
from dashscope_embeddings._core.results import partial_of
from dashscope_embeddings._process import warn_once

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


def cached_dense_flow(
    cache: VectorCache | None,
    hybrid: HybridEmbedder,
    texts: list[str],
    role: TextType,
    progress: Callable[[int], object] | None = None,
) -> Flow[list[list[float]]]:
    """`HybridEmbedder.component_flow` for the texts that the cache does not have: shape (texts, dimensions)."""
    if cache is None:
        return (yield from hybrid.component_flow("dense", texts, role, progress=progress))

    def request(missing: list[int]) -> Flow[list[list[float]]]:
        asked = [texts[index] for index in missing]
        writer = _CacheWriter(cache, asked)
        try:
            fresh = yield from hybrid.component_flow("dense", asked, role, progress=progress, on_vectors=writer.write)
        except ANY_EXCEPTION as error:
            if not isinstance(error, GeneratorExit):  # a coroutine that is closed cannot await
                yield from writer.write_last(partial_of(error))
            raise
        yield from writer.write_last(dict(enumerate(fresh)))
        return [cache.as_stored(vector) for vector in fresh]

    return (yield from fill_missing((yield from _read(cache, texts)), request, progress))


def _read(cache: VectorCache, texts: list[Any]) -> Flow[list[Any]]:
    """For each text its cached vector, or None."""
    # An item that is no string is refused by the client.
    distinct = list(dict.fromkeys(text for text in texts if isinstance(text, str)))
    try:
        known = dict(zip(distinct, (yield from cache.read(distinct)), strict=True))
    except Exception as error:  # noqa: BLE001 - whatever a user's store raises
        warn_failed("read", error)
        known = {}
    found = [known.get(text) if isinstance(text, str) else None for text in texts]
    # Equal texts get lists of their own: a caller may change one of them.
    return [None if vector is None else list(vector) for vector in found]


class _CacheWriter:
    """Stores the vectors of one call as they arrive, each once."""

    def __init__(self, cache: VectorCache, texts: list[str]) -> None:
        self._cache, self._texts = cache, texts
        self._written_texts: set[str] = set()
        self._has_failed = False

    def write(self, arrived: Mapping[int, Sequence[float]]) -> Flow[None]:
        """Stores new vectors, given by index; not after a failure: a store that is down may take long to fail."""
        if not self._has_failed:
            yield from self.write_last(arrived)

    def write_last(self, arrived: Mapping[int, Sequence[float]]) -> Flow[None]:
        """`write`, tried after a failure too."""
        by_text = {self._texts[index]: vector for index, vector in arrived.items()}
        if vectors := {text: vector for text, vector in by_text.items() if text not in self._written_texts}:
            try:
                yield from self._cache.write(vectors)
            except Exception as error:  # noqa: BLE001 - whatever a user's store raises
                self._has_failed = True
                warn_failed("written", error)
            else:
                self._written_texts.update(vectors)


def warn_failed(action: Literal["read", "written"], error: Exception) -> None:
    """Warns, once per process, that a store could not be read, or written."""
    effect = {"read": "the texts are requested, and billed", "written": "the vectors are returned, not stored"}[action]
    warn_once(f"cache not {action}", f"embeddings_cache could not be {action} ({type(error).__name__}): {effect}")
