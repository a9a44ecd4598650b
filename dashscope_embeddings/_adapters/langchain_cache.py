"""A byte store of LangChain as a cache of dense vectors.

An entry is a vector as little-endian float32, then four bytes of checksum over its key and these numbers. An entry that
does not match (cut off, overwritten, of another key or width) counts as missing, and its text is requested again.
"""

from __future__ import annotations

import hashlib
import sys
import zlib
from array import array
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._adapters.flows import Call
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.stores import BaseStore

    from dashscope_embeddings._adapters.flows import Flow
    from dashscope_embeddings._core.settings import Settings
    from dashscope_embeddings.vectors import TextType

_MAX_KEYS_PER_READ = 500
"""Keys: 2 MB of vectors of 1,024 numbers, and fewer than SQL statements may have variables."""
_CHECKSUM_BYTES = 4


def checked_store(store: Any) -> BaseStore[str, bytes]:
    """The store, checked for the methods that `ByteStoreCache` calls."""
    if not all(callable(getattr(store, name, None)) for name in ("mget", "mset", "amget", "amset")):
        raise InvalidInput(
            f"embeddings_cache must be a store of bytes, as langchain_core.stores.BaseStore[str, bytes] is, not "
            f"{type(store).__name__}: for instance LocalFileStore of langchain_classic.storage, or InMemoryByteStore"
        )
    checked: BaseStore[str, bytes] = store
    return checked


class ByteStoreCache:
    """A `VectorCache` in a byte store. The store may also hold entries of other settings and roles."""

    def __init__(self, store: BaseStore[str, bytes], settings: Settings, role: TextType) -> None:
        self._store = store
        self._namespace = settings.namespace(role)
        self._width = settings.request_options(role, "dense").expected_width

    def read(self, texts: list[str]) -> Flow[list[list[float] | None]]:
        vectors: list[list[float] | None] = []
        for start in range(0, len(texts), _MAX_KEYS_PER_READ):
            keys = [self._key(text) for text in texts[start : start + _MAX_KEYS_PER_READ]]
            values = yield Call(self._store.mget, self._store.amget, keys)
            vectors += [self._decode(key, value) for key, value in zip(keys, values, strict=True)]
        return vectors

    def write(self, vectors: dict[str, Sequence[float]]) -> Flow[None]:
        entries = [
            (key, _encode(key, vector)) for key, vector in zip(map(self._key, vectors), vectors.values(), strict=True)
        ]
        yield Call(self._store.mset, self._store.amset, entries)

    def as_stored(self, vector: list[float]) -> list[float]:
        """Rounded to float32."""
        return array("f", vector).tolist()

    def _key(self, text: str) -> str:
        """Letters, digits, ".", "-" and "_" only: `LocalFileStore` uses it as a file name."""
        return f"{self._namespace}_{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"

    def _decode(self, key: str, value: Any) -> list[float] | None:
        if not isinstance(value, (bytes, bytearray, memoryview)) or len(value) <= _CHECKSUM_BYTES:
            return None
        numbers = bytes(value[:-_CHECKSUM_BYTES])
        if len(numbers) % 4 or self._width not in {None, len(numbers) // 4}:
            return None
        if bytes(value[-_CHECKSUM_BYTES:]) != _checksum(key, numbers):
            return None
        return _little_endian(array("f", numbers)).tolist()


def _encode(key: str, vector: Sequence[float]) -> bytes:
    numbers = _little_endian(array("f", vector)).tobytes()
    return numbers + _checksum(key, numbers)


def _checksum(key: str, numbers: bytes) -> bytes:
    return zlib.crc32(numbers, zlib.crc32(key.encode())).to_bytes(_CHECKSUM_BYTES, "little")


def _little_endian(numbers: array[float]) -> array[float]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
