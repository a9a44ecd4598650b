"""LlamaIndex's `embeddings_cache`, which looks vectors up by their text alone, parted by all that makes a vector."""

from __future__ import annotations

import contextlib
import contextvars
import math
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore

from dashscope_embeddings._adapters.vector_cache import warn_read_failed, warn_write_failed
from dashscope_embeddings.llama_index.prefetched import take_prefetched

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dashscope_embeddings._core.settings import Settings
    from dashscope_embeddings.vectors import TextType

_VECTORS = "embeddings"
"""The collection in which LlamaIndex keeps vectors."""


@dataclass(frozen=True)
class KVCache:
    """A `VectorCache` in a store of LlamaIndex's, in the shape in which LlamaIndex itself keeps vectors there."""

    store: BaseKVStore
    collection: str
    width: int | None

    @classmethod
    def for_role(cls, store: BaseKVStore, settings: Settings, role: TextType) -> KVCache:
        """The part of a store that belongs to one role of these settings."""
        return cls(
            store, f"{_VECTORS}-{settings.namespace(role)}", settings.request_options(role, "dense").expected_width
        )

    def read(self, texts: list[str]) -> list[list[float] | None]:
        """As in `VectorCache`."""
        return [self._decode(self.store.get(text, self.collection)) for text in texts]

    async def aread(self, texts: list[str]) -> list[list[float] | None]:
        """As in `VectorCache`."""
        return [self._decode(await self.store.aget(text, self.collection)) for text in texts]

    def write(self, vectors: dict[str, Sequence[float]]) -> None:
        """As in `VectorCache`."""
        for text, vector in vectors.items():
            self.store.put(text, _entry(vector), self.collection)

    async def awrite(self, vectors: dict[str, Sequence[float]]) -> None:
        """As in `VectorCache`."""
        for text, vector in vectors.items():
            await self.store.aput(text, _entry(vector), self.collection)

    def as_stored(self, vector: list[float]) -> list[float]:
        """As it is."""
        return vector

    def _decode(self, entry: Any) -> list[float] | None:
        """The vector of an entry; None: there is none, or not one of these."""
        found = next(iter(entry.values()), None) if isinstance(entry, dict) else None
        if not isinstance(found, list) or self.width not in {None, len(found)} or not found:
            return None
        whole = all(isinstance(number, (int, float)) and math.isfinite(number) for number in found)
        return [float(number) for number in found] if whole else None


_current_cache: contextvars.ContextVar[KVCache | None] = contextvars.ContextVar("dashscope_cache", default=None)


@contextlib.contextmanager
def use_cache(cache: KVCache) -> Iterator[None]:
    """Whose vectors LlamaIndex looks up and keeps inside the block."""
    token = _current_cache.set(cache)
    try:
        yield
    finally:
        _current_cache.reset(token)


@dataclass(frozen=True)
class NamespacedCache(BaseKVStore):
    """A user's store in which a query never finds a document's vector, nor one model another's.

    A store that fails is done without. It has no length: LlamaIndex asks a cache for its truth, and takes an empty
    one for none.
    """

    wrapped: BaseKVStore

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Keeps an entry."""
        if (cache := _cache_of(collection)) is None:
            self.wrapped.put(key, val, collection)
            return
        try:
            self.wrapped.put(key, val, cache.collection)
        except Exception as error:  # noqa: BLE001 - whatever a user's store raises
            warn_write_failed(error)

    async def aput(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """`put` on the running loop."""
        if (cache := _cache_of(collection)) is None:
            await self.wrapped.aput(key, val, collection)
            return
        try:
            await self.wrapped.aput(key, val, cache.collection)
        except Exception as error:  # noqa: BLE001 - as in `put`
            warn_write_failed(error)

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """An entry; None: there is none."""
        if (cache := _cache_of(collection)) is None:
            return self.wrapped.get(key, collection)
        if (known := take_prefetched([key])) is not None:
            return _entry(known[0])
        try:
            [found] = cache.read([key])
        except Exception as error:  # noqa: BLE001 - as in `put`
            warn_read_failed(error)
            return None
        return None if found is None else _entry(found)

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """`get` on the running loop."""
        if (cache := _cache_of(collection)) is None:
            return await self.wrapped.aget(key, collection)
        if (known := take_prefetched([key])) is not None:
            return _entry(known[0])
        try:
            [found] = await cache.aread([key])
        except Exception as error:  # noqa: BLE001 - as in `put`
            warn_read_failed(error)
            return None
        return None if found is None else _entry(found)

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """All entries of a collection."""
        return self.wrapped.get_all(_namespaced(collection))

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """`get_all` on the running loop."""
        return await self.wrapped.aget_all(_namespaced(collection))

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Forgets an entry; False: there was none."""
        return self.wrapped.delete(key, _namespaced(collection))

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """`delete` on the running loop."""
        return await self.wrapped.adelete(key, _namespaced(collection))


def _cache_of(collection: str) -> KVCache | None:
    """The part that is in use, if it is vectors that are asked for."""
    return _current_cache.get() if collection == _VECTORS else None


def _namespaced(collection: str) -> str:
    cache = _cache_of(collection)
    return collection if cache is None else cache.collection


def _entry(vector: Sequence[float]) -> dict[str, Any]:
    """A vector as LlamaIndex keeps it."""
    return {str(uuid.uuid4()): list(vector)}
