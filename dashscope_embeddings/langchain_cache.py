"""A byte store of LangChain as a cache of dense vectors, filled as replies arrive.

An entry is a vector as little-endian float32, and four bytes of a checksum over its key and these numbers. What does
not fit (cut, overwritten, another entry's, of another width) counts as missing and is asked for again. A store that
fails costs no vectors: without reading, texts are asked for; without writing, they are not kept.
"""

from __future__ import annotations

import hashlib
import sys
import zlib
from array import array
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.catalogue import warn_once
from dashscope_embeddings.errors import InvalidInput, arrived_with
from dashscope_embeddings.halves import ENDS, with_found

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from langchain_core.stores import BaseStore

    from dashscope_embeddings.halves import Halves
    from dashscope_embeddings.settings import Settings
    from dashscope_embeddings.vectors import TextType

_READ_AT_ONCE = 500
"""Keys: 2 MB of 1,024 numbers each, and less than the variables of one SQL statement."""
_CHECKSUM = 4
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


def dense(
    store: BaseStore[str, bytes],
    halves: Halves,
    texts: list[str],
    role: TextType,
    progress: Callable[[int], object] | None = None,
) -> list[list[float]]:
    """`Halves.dense` for the texts that the store does not have: shape (texts, dimensions)."""
    call = _Call(halves.client.settings, role, texts)
    try:
        for keys in call.slices():
            call.read(keys, store.mget(keys))
    except Exception as error:  # noqa: BLE001 - whatever a user's store raises
        call.not_read(error)
    missing = call.missing(progress)

    def save(arrived: Mapping[int, Sequence[float]], *, last: bool = False) -> None:
        if entries := call.entries(arrived, missing, last=last):
            try:
                store.mset(entries)
            except Exception as error:  # noqa: BLE001 - as above
                call.not_written(error)
            else:
                call.written(entries)

    if missing:
        try:
            fresh = halves.dense([texts[i] for i in missing], role, progress, save)
        except ENDS as end:
            save(arrived_with(end), last=True)
            with_found(end, call.found, missing)
            raise
        save(dict(enumerate(fresh)), last=True)
        call.fill(missing, fresh)
    return call.found


async def adense(
    store: BaseStore[str, bytes],
    halves: Halves,
    texts: list[str],
    role: TextType,
    progress: Callable[[int], object] | None = None,
) -> list[list[float]]:
    """`dense` on the running loop, with the store's asynchronous methods."""
    call = _Call(halves.client.settings, role, texts)
    try:
        for keys in call.slices():
            call.read(keys, await store.amget(keys))
    except Exception as error:  # noqa: BLE001 - as in `dense`
        call.not_read(error)
    missing = call.missing(progress)

    async def save(arrived: Mapping[int, Sequence[float]], *, last: bool = False) -> None:
        if entries := call.entries(arrived, missing, last=last):
            try:
                await store.amset(entries)
            except Exception as error:  # noqa: BLE001 - as in `dense`
                call.not_written(error)
            else:
                call.written(entries)

    if missing:
        try:
            fresh = await halves.adense([texts[i] for i in missing], role, progress, save)
        except ENDS as end:
            await save(arrived_with(end), last=True)
            with_found(end, call.found, missing)
            raise
        await save(dict(enumerate(fresh)), last=True)
        call.fill(missing, fresh)
    return call.found


class _Call:
    """The texts of one call: their keys, the vectors that were found, and which entries are in the store."""

    def __init__(self, settings: Settings, role: TextType, texts: Sequence[object]) -> None:
        self._namespace = settings.namespace(role)
        self._width = settings.ask(role, "dense").width
        self.found: list[Any] = [None] * len(texts)
        """For each text its vector; None: it is not here."""
        # What is no text, and what UTF-8 cannot carry, is for the client to refuse.
        self._keys = [self._key(text) if isinstance(text, str) else "" for text in texts]
        self._places: dict[str, list[int]] = {}
        for index, key in enumerate(self._keys):
            if key:
                self._places.setdefault(key, []).append(index)
        self._stored: set[str] = set()
        self._failed = False

    def _key(self, text: str) -> str:
        """Letters, digits, ".", "-" and "_", as file names may have them."""
        return f"{self._namespace}_{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"

    def slices(self) -> Iterator[list[str]]:
        """The keys to look up."""
        keys = list(self._places)
        return (keys[start : start + _READ_AT_ONCE] for start in range(0, len(keys), _READ_AT_ONCE))

    def read(self, keys: list[str], values: Sequence[Any]) -> None:
        """Takes what the store has for the keys."""
        for key, value in zip(keys, values, strict=True):
            if (packed := _unpacked(key, value, self._width)) is None:
                continue
            self._stored.add(key)
            for index in self._places[key]:
                self.found[index] = packed.tolist()

    def missing(self, progress: Callable[[int], object] | None) -> list[int]:
        """The places of the texts to ask for."""
        missing = [index for index, vector in enumerate(self.found) if vector is None]
        if progress is not None and len(missing) < len(self.found):
            progress(len(self.found) - len(missing))
        return missing

    def entries(
        self, arrived: Mapping[int, Sequence[float]], missing: list[int], *, last: bool
    ) -> list[tuple[str, bytes]]:
        """What to write of the vectors that arrived: all once, and nothing between a failure and the last time."""
        if self._failed and not last:
            return []
        found = {self._keys[missing[index]]: vector for index, vector in arrived.items()}
        return [(key, _packed(key, vector)) for key, vector in found.items() if key not in self._stored]

    def written(self, entries: list[tuple[str, bytes]]) -> None:
        """These are in the store."""
        self._stored.update(key for key, _ in entries)

    def fill(self, missing: list[int], fresh: list[list[float]]) -> None:
        """Puts the new vectors beside the old ones: as float32 too, so that a text's vector is always the same."""
        for index, vector in zip(missing, fresh, strict=True):
            self.found[index] = array("f", vector).tolist()

    def not_read(self, error: Exception) -> None:
        """Says once that the store could not be read."""
        warn_once(
            "cache not read",
            f"embeddings_cache could not be read ({type(error).__name__}): the texts are asked for, and billed",
        )

    def not_written(self, error: Exception) -> None:
        """Says once that the store could not be written."""
        self._failed = True
        warn_once(
            "cache not written",
            f"embeddings_cache could not be written ({type(error).__name__}): the vectors are returned, not kept",
        )


def _packed(key: str, vector: Sequence[float]) -> bytes:
    numbers = _little_endian(array("f", vector)).tobytes()
    return numbers + _checksum(key, numbers)


def _unpacked(key: str, value: Any, width: int | None) -> array[float] | None:
    """The numbers of an entry; None: it is none, or damaged."""
    if not isinstance(value, (bytes, bytearray, memoryview)) or len(value) <= _CHECKSUM:
        return None
    numbers = bytes(value[:-_CHECKSUM])
    if len(numbers) % 4 or (width is not None and len(numbers) != 4 * width):
        return None
    if bytes(value[-_CHECKSUM:]) != _checksum(key, numbers):
        return None
    return _little_endian(array("f", numbers))


def _checksum(key: str, numbers: bytes) -> bytes:
    return zlib.crc32(numbers, zlib.crc32(key.encode())).to_bytes(_CHECKSUM, "little")


def _little_endian(numbers: array[float]) -> array[float]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
