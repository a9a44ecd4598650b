"""A cache of dense vectors before the client: what it lacks is asked for, and kept as replies arrive.

A call that fails or is interrupted keeps what had arrived too. A cache that fails costs no vectors: without reading,
texts are asked for; without writing, vectors are returned and not kept. The sync and the async function mirror each
other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from dashscope_embeddings._adapters.hybrid import ANY_EXCEPTION, add_cached_to_partial
from dashscope_embeddings._core.results import partial_of
from dashscope_embeddings.catalogue import warn_once

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dashscope_embeddings._adapters.hybrid import HybridEmbedder
    from dashscope_embeddings.vectors import TextType


class VectorCache(Protocol):
    """Vectors by their texts, for one role of one client's settings. Its methods may raise anything."""

    def read(self, texts: list[str]) -> list[list[float] | None]:
        """A vector for each text; None: there is none, or a damaged one."""

    async def aread(self, texts: list[str]) -> list[list[float] | None]:
        """`read` on the running loop."""

    def write(self, vectors: dict[str, Sequence[float]]) -> None:
        """Keeps the vectors of these texts."""

    async def awrite(self, vectors: dict[str, Sequence[float]]) -> None:
        """`write` on the running loop."""

    def as_stored(self, vector: list[float]) -> list[float]:
        """The vector as `read` will give it, so that a text's vector is always the same."""


def embed_cached(
    cache: VectorCache,
    hybrid: HybridEmbedder,
    texts: list[str],
    role: TextType,
    progress: Callable[[int], object] | None = None,
) -> list[list[float]]:
    """`Halves.dense` for the texts that the cache does not have: shape (texts, dimensions)."""
    lookup = _CacheLookup(texts)
    try:
        lookup.add_cached(cache.read(lookup.distinct))
    except Exception as error:  # noqa: BLE001 - whatever a user's store raises
        warn_read_failed(error)
    missing = lookup.missing(progress)

    def save(arrived: Mapping[int, Sequence[float]], *, last: bool = False) -> None:
        if vectors := lookup.unsaved(arrived, last=last):
            try:
                cache.write(vectors)
            except Exception as error:  # noqa: BLE001 - as above
                lookup.on_write_error(error)
            else:
                lookup.saved_texts.update(vectors)

    if missing:
        try:
            fresh = hybrid.dense(missing, role, progress, save)
        except ANY_EXCEPTION as end:
            save(partial_of(end), last=True)
            add_cached_to_partial(end, lookup.vectors, lookup.missing_indices)
            raise
        save(dict(enumerate(fresh)), last=True)
        lookup.fill([cache.as_stored(vector) for vector in fresh])
    return lookup.vectors


async def aembed_cached(
    cache: VectorCache,
    hybrid: HybridEmbedder,
    texts: list[str],
    role: TextType,
    progress: Callable[[int], object] | None = None,
) -> list[list[float]]:
    """`dense` on the running loop."""
    lookup = _CacheLookup(texts)
    try:
        lookup.add_cached(await cache.aread(lookup.distinct))
    except Exception as error:  # noqa: BLE001 - as in `dense`
        warn_read_failed(error)
    missing = lookup.missing(progress)

    async def save(arrived: Mapping[int, Sequence[float]], *, last: bool = False) -> None:
        if vectors := lookup.unsaved(arrived, last=last):
            try:
                await cache.awrite(vectors)
            except Exception as error:  # noqa: BLE001 - as in `dense`
                lookup.on_write_error(error)
            else:
                lookup.saved_texts.update(vectors)

    if missing:
        try:
            fresh = await hybrid.adense(missing, role, progress, save)
        except ANY_EXCEPTION as end:
            if not isinstance(end, GeneratorExit):  # a coroutine that is closed cannot await
                await save(partial_of(end), last=True)
            add_cached_to_partial(end, lookup.vectors, lookup.missing_indices)
            raise
        await save(dict(enumerate(fresh)), last=True)
        lookup.fill([cache.as_stored(vector) for vector in fresh])
    return lookup.vectors


class _CacheLookup:
    """The texts of one call: which vectors were found, and which of the others are in the cache."""

    def __init__(self, texts: list[Any]) -> None:
        self._texts = texts
        # What is no text is for the client to refuse.
        self.distinct: list[str] = list(dict.fromkeys(text for text in texts if isinstance(text, str)))
        self.vectors: list[Any] = [None] * len(texts)
        """For each text its vector; None: it is not here."""
        self.missing_indices: list[int] = []
        """Where the texts stand that are asked for."""
        self.saved_texts: set[str] = set()
        self._has_write_failed = False

    def add_cached(self, vectors: list[list[float] | None]) -> None:
        """Takes what the cache has of the distinct texts."""
        known = dict(zip(self.distinct, vectors, strict=True))
        seen: set[str] = set()
        for index, text in enumerate(self._texts):
            vector = known.get(text) if isinstance(text, str) else None
            # Nobody who changes one text's list may find another's changed.
            self.vectors[index] = vector and (list(vector) if text in seen else vector)
            seen.add(text)

    def missing(self, progress: Callable[[int], object] | None) -> list[str]:
        """The texts to ask for."""
        self.missing_indices = [index for index, vector in enumerate(self.vectors) if vector is None]
        if progress is not None and len(self.missing_indices) < len(self.vectors):
            progress(len(self.vectors) - len(self.missing_indices))
        return [self._texts[index] for index in self.missing_indices]

    def unsaved(self, arrived: Mapping[int, Sequence[float]], *, last: bool) -> dict[str, Sequence[float]]:
        """What to write of the vectors that arrived: all once, and after a failure only at the end of the call."""
        if self._has_write_failed and not last:
            return {}
        found = {self._texts[self.missing_indices[index]]: vector for index, vector in arrived.items()}
        return {text: vector for text, vector in found.items() if text not in self.saved_texts}

    def on_write_error(self, error: Exception) -> None:
        """Waits with further writing until the call ends: a store that is away may take long to say so."""
        self._has_write_failed = True
        warn_write_failed(error)

    def fill(self, fresh: list[list[float]]) -> None:
        """Puts the vectors that were asked for in their places."""
        for index, vector in zip(self.missing_indices, fresh, strict=True):
            self.vectors[index] = vector


def warn_read_failed(error: Exception) -> None:
    """Says, once a process, that a store could not be read."""
    warn_once(
        "cache not read",
        f"embeddings_cache could not be read ({type(error).__name__}): the texts are asked for, and billed",
    )


def warn_write_failed(error: Exception) -> None:
    """Says, once a process, that a store could not be written."""
    warn_once(
        "cache not written",
        f"embeddings_cache could not be written ({type(error).__name__}): the vectors are returned, not kept",
    )
