"""LlamaIndex's `embeddings_cache`, which looks vectors up by their text alone, parted by all that makes a vector."""

from __future__ import annotations

import contextlib
import contextvars
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore

from dashscope_embeddings.errors import arrived_with

if TYPE_CHECKING:
    from collections.abc import Iterator

_End = TypeVar("_End", bound=BaseException)
_namespace: contextvars.ContextVar[str | None] = contextvars.ContextVar("dashscope_cache_namespace", default=None)


@contextlib.contextmanager
def namespace(name: str) -> Iterator[None]:
    """Whose vectors are looked up and kept inside the block."""
    token = _namespace.set(name)
    try:
        yield
    finally:
        _namespace.reset(token)


class PartedCache(BaseKVStore):
    """A user's store in which a query never finds a document's vector, nor one model another's.

    It has no length: LlamaIndex asks a cache for its truth, and takes an empty one for none.
    """

    def __init__(self, wrapped: BaseKVStore) -> None:
        """`wrapped`: what keeps the entries, in a collection for each namespace."""
        self.wrapped = wrapped

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Keeps an entry."""
        self.wrapped.put(key, val, _parted(collection))

    async def aput(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """`put` on the running loop."""
        await self.wrapped.aput(key, val, _parted(collection))

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """An entry; None: there is none."""
        return self.wrapped.get(key, _parted(collection))

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """`get` on the running loop."""
        return await self.wrapped.aget(key, _parted(collection))

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """All entries of a collection."""
        return self.wrapped.get_all(_parted(collection))

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """`get_all` on the running loop."""
        return await self.wrapped.aget_all(_parted(collection))

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Forgets an entry; False: there was none."""
        return self.wrapped.delete(key, _parted(collection))

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """`delete` on the running loop."""
        return await self.wrapped.adelete(key, _parted(collection))


def _parted(collection: str) -> str:
    name = _namespace.get()
    return collection if name is None else f"{collection}-{name}"


def saved(end: _End, cache: BaseKVStore | None, texts: list[str]) -> _End:
    """What a job had arrived at its end goes into the cache, as LlamaIndex puts it there after a whole one."""
    if cache is None:
        return end
    for index, vector in arrived_with(end).items():
        keep(cache, texts[index], vector)
    return end


def keep(cache: BaseKVStore, text: str, vector: list[float]) -> None:
    """Puts a vector where LlamaIndex looks for it."""
    cache.put(key=text, val={str(uuid.uuid4()): list(vector)}, collection="embeddings")
