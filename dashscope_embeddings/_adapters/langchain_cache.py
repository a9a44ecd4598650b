"""A byte store of LangChain as a cache of dense vectors.

An entry is a vector as little-endian float32, and four bytes of a checksum over its key and these numbers. What does
not fit (cut, overwritten, another entry's, of another width) counts as missing and is asked for again.
"""

from __future__ import annotations

import hashlib
import sys
import zlib
from array import array
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from langchain_core.stores import BaseStore

    from dashscope_embeddings._core.settings import Settings
    from dashscope_embeddings.vectors import TextType

_MAX_KEYS_PER_READ = 500
"""Keys: 2 MB of 1,024 numbers each, and less than the variables of one SQL statement."""
_CHECKSUM_BYTES = 4
"""Bytes."""


def checked_store(store: Any) -> BaseStore[str, bytes]:
    """The store, if it is one.

    Raises:
        InvalidInput: it lacks the four methods that are called.
    """
    if not all(callable(getattr(store, name, None)) for name in ("mget", "mset", "amget", "amset")):
        raise InvalidInput(
            f"embeddings_cache must be a store of bytes, as langchain_core.stores.BaseStore[str, bytes] is, not "
            f"{type(store).__name__}: for instance LocalFileStore of langchain_classic.storage, or InMemoryByteStore"
        )
    found: BaseStore[str, bytes] = store
    return found


class ByteStoreCache:
    """A `VectorCache` in a byte store, where entries of other settings and roles may be as well."""

    def __init__(self, store: BaseStore[str, bytes], settings: Settings, role: TextType) -> None:
        self._store = store
        self._namespace = settings.namespace(role)
        self._width = settings.request_options(role, "dense").expected_width

    def read(self, texts: list[str]) -> list[list[float] | None]:
        """As in `VectorCache`."""
        return [self._decode(*pair) for keys in self._keys(texts) for pair in _pairs(keys, self._store.mget(keys))]

    async def aread(self, texts: list[str]) -> list[list[float] | None]:
        """As in `VectorCache`."""
        return [
            self._decode(*pair) for keys in self._keys(texts) for pair in _pairs(keys, await self._store.amget(keys))
        ]

    def write(self, vectors: dict[str, Sequence[float]]) -> None:
        """As in `VectorCache`."""
        self._store.mset(self._entries(vectors))

    async def awrite(self, vectors: dict[str, Sequence[float]]) -> None:
        """As in `VectorCache`."""
        await self._store.amset(self._entries(vectors))

    def as_stored(self, vector: list[float]) -> list[float]:
        """As float32."""
        return array("f", vector).tolist()

    def _key(self, text: str) -> str:
        """Letters, digits, ".", "-" and "_", as file names may have them."""
        return f"{self._namespace}_{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"

    def _keys(self, texts: list[str]) -> Iterator[list[str]]:
        for start in range(0, len(texts), _MAX_KEYS_PER_READ):
            yield [self._key(text) for text in texts[start : start + _MAX_KEYS_PER_READ]]

    def _entries(self, vectors: dict[str, Sequence[float]]) -> list[tuple[str, bytes]]:
        return [(key, _encode(key, vector)) for text, vector in vectors.items() if (key := self._key(text))]

    def _decode(self, key: str, value: Any) -> list[float] | None:
        if not isinstance(value, (bytes, bytearray, memoryview)) or len(value) <= _CHECKSUM_BYTES:
            return None
        numbers = bytes(value[:-_CHECKSUM_BYTES])
        if len(numbers) % 4 or self._width not in {None, len(numbers) // 4}:
            return None
        if bytes(value[-_CHECKSUM_BYTES:]) != _checksum(key, numbers):
            return None
        return _little_endian(array("f", numbers)).tolist()


def _pairs(keys: list[str], values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    return zip(keys, values, strict=True)


def _encode(key: str, vector: Sequence[float]) -> bytes:
    numbers = _little_endian(array("f", vector)).tobytes()
    return numbers + _checksum(key, numbers)


def _checksum(key: str, numbers: bytes) -> bytes:
    return zlib.crc32(numbers, zlib.crc32(key.encode())).to_bytes(_CHECKSUM_BYTES, "little")


def _little_endian(numbers: array[float]) -> array[float]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
