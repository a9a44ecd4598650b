"""LlamaIndex's `embeddings_cache` with one namespace for each model, dimension, instruct and role.

LlamaIndex looks vectors up by their text alone, so without namespaces a query would get a document's vector.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore

from dashscope_embeddings._adapters.flows import Call, arun, run
from dashscope_embeddings._adapters.vector_cache import warn_failed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dashscope_embeddings._adapters.flows import Flow
    from dashscope_embeddings._core.settings import Settings
    from dashscope_embeddings.vectors import TextType

_VECTORS = "embeddings"
"""The collection in which LlamaIndex stores vectors."""


@dataclass(frozen=True)
class KVCache:
    """A `VectorCache` in a key-value store of LlamaIndex, in the format in which LlamaIndex stores vectors there."""

    store: BaseKVStore
    collection: str
    width: int | None

    @classmethod
    def for_role(cls, store: BaseKVStore, settings: Settings, role: TextType) -> KVCache:
        """The collection of a store for one role of these settings."""
        return cls(
            store, f"{_VECTORS}-{settings.namespace(role)}", settings.request_options(role, "dense").expected_width
        )

    def read(self, texts: list[str]) -> Flow[list[list[float] | None]]:
        """As in `VectorCache`."""
        vectors: list[list[float] | None] = []
        for text in texts:
            entry = yield Call(self.store.get, self.store.aget, text, self.collection)
            vectors.append(self._decode(entry))
        return vectors

    def write(self, vectors: dict[str, Sequence[float]]) -> Flow[None]:
        """As in `VectorCache`."""
        for text, vector in vectors.items():
            yield Call(self.store.put, self.store.aput, text, _entry(vector), self.collection)

    def as_stored(self, vector: list[float]) -> list[float]:
        """Unchanged."""
        return vector

    def _decode(self, entry: Any) -> list[float] | None:
        """The vector of an entry; None if it is damaged or of another width."""
        vector = next(iter(entry.values()), None) if isinstance(entry, dict) else None
        if not isinstance(vector, list) or self.width not in {None, len(vector)} or not vector:
            return None
        is_finite = all(isinstance(number, (int, float)) and math.isfinite(number) for number in vector)
        return [float(number) for number in vector] if is_finite else None


_current_cache: contextvars.ContextVar[KVCache | None] = contextvars.ContextVar("dashscope_cache", default=None)


@contextlib.contextmanager
def use_cache(cache: KVCache) -> Iterator[None]:
    """Inside the block, LlamaIndex looks vectors up and stores them in this cache."""
    token = _current_cache.set(cache)
    try:
        yield
    finally:
        _current_cache.reset(token)


@dataclass(frozen=True)
class NamespacedCache(BaseKVStore):
    """A user's store in which vectors are found only by the same role and model.

    Errors of the store become warnings. The class defines no `__len__`: LlamaIndex tests a cache for truth, and
    would ignore an empty one.
    """

    wrapped: BaseKVStore

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Stores an entry."""
        run(self._put_flow(key, val, collection))

    async def aput(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """`put` on the running loop."""
        await arun(self._put_flow(key, val, collection))

    def _put_flow(self, key: str, val: dict[str, Any], collection: str) -> Flow[None]:
        call = Call(self.wrapped.put, self.wrapped.aput, key, val, _namespaced(collection))
        try:
            yield call
        except Exception as error:
            if _cache_of(collection) is None:
                raise
            warn_failed("written", error)

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """An entry; None if there is none."""
        return run(self._get_flow(key, collection))

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """`get` on the running loop."""
        return await arun(self._get_flow(key, collection))

    def _get_flow(self, key: str, collection: str) -> Flow[dict[str, Any] | None]:
        if (cache := _cache_of(collection)) is None:
            return cast("dict[str, Any] | None", (yield Call(self.wrapped.get, self.wrapped.aget, key, collection)))
        if (known := take_prefetched([key])) is not None:
            return _entry(known[0])
        try:
            [vector] = yield from cache.read([key])
        except Exception as error:  # noqa: BLE001 - whatever a user's store raises
            warn_failed("read", error)
            return None
        return None if vector is None else _entry(vector)

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """All entries of a collection."""
        return self.wrapped.get_all(_namespaced(collection))

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """`get_all` on the running loop."""
        return await self.wrapped.aget_all(_namespaced(collection))

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Deletes an entry; False if there was none."""
        return self.wrapped.delete(key, _namespaced(collection))

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """`delete` on the running loop."""
        return await self.wrapped.adelete(key, _namespaced(collection))


def _cache_of(collection: str) -> KVCache | None:
    """The cache in use, if `collection` is LlamaIndex's one for vectors."""
    return _current_cache.get() if collection == _VECTORS else None


def _namespaced(collection: str) -> str:
    cache = _cache_of(collection)
    return collection if cache is None else cache.collection


def _entry(vector: Sequence[float]) -> dict[str, Any]:
    """A vector in LlamaIndex's format."""
    return {str(uuid.uuid4()): list(vector)}


# --- prefetched vectors --------------------------------------------------------------------------------------

# LlamaIndex passes texts in slices. If each slice were a call, slices would run one after the other, errors would name
# indices within a slice, and an error would lose the other slices' vectors. So the adapter embeds all texts in one
# call, and each slice takes its vectors from here.
_prefetched: contextvars.ContextVar[dict[str, list[float]] | None] = contextvars.ContextVar(
    "dashscope_prefetched", default=None
)


@contextlib.contextmanager
def prefetched(texts: Sequence[str], vectors: Sequence[list[float]]) -> Iterator[None]:
    """Inside the block, and in tasks started there, `take_prefetched` returns these vectors.

    Our cache returns them too: some versions of LlamaIndex assign vectors to wrong texts if a cache holds only a part.
    """
    token = _prefetched.set(dict(zip(texts, vectors, strict=True)))
    try:
        yield
    finally:
        _prefetched.reset(token)


def take_prefetched(texts: Sequence[str]) -> list[list[float]] | None:
    """Copies of the vectors of a slice; None if one is missing, so that the slice must be requested."""
    vectors = _prefetched.get()
    if vectors is None or any(text not in vectors for text in texts):
        return None
    return [list(vectors[text]) for text in texts]
