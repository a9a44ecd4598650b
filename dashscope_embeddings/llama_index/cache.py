"""LlamaIndex's `embeddings_cache` with one namespace for each model, dimension, instruct and role."""

from __future__ import annotations

import contextlib
import contextvars
import math
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index.core.storage.kvstore.types import BaseKVStore

from dashscope_embeddings._adapters.flows import Call

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dashscope_embeddings._adapters.flows import Flow
    from dashscope_embeddings._core.settings import Settings
    from dashscope_embeddings.vectors import TextType

_VECTORS = "embeddings"
"""The collection in which LlamaIndex stores vectors."""


class KVCache:
    """A `VectorCache` in a key-value store of LlamaIndex, in the format in which LlamaIndex stores vectors there."""

    def __init__(self, store: BaseKVStore, settings: Settings, role: TextType) -> None:
        self._store = store
        self._collection = f"{_VECTORS}-{settings.namespace(role)}"
        self._width = settings.request_options(role, "dense").expected_width

    def read(self, texts: list[str]) -> Flow[list[list[float] | None]]:
        """As in `VectorCache`."""
        vectors: list[list[float] | None] = []
        for text in texts:
            entry = yield Call(self._store.get, self._store.aget, text, self._collection)
            vectors.append(self._decode(entry))
        return vectors

    def write(self, vectors: dict[str, Sequence[float]]) -> Flow[None]:
        """As in `VectorCache`."""
        for text, vector in vectors.items():
            entry = {str(uuid.uuid4()): list(vector)}  # LlamaIndex's format
            yield Call(self._store.put, self._store.aput, text, entry, self._collection)

    def as_stored(self, vector: list[float]) -> list[float]:
        """Unchanged."""
        return vector

    def _decode(self, entry: Any) -> list[float] | None:
        """The vector of an entry; None if it is damaged or of another width."""
        vector = next(iter(entry.values()), None) if isinstance(entry, dict) else None
        if not isinstance(vector, list) or self._width not in {None, len(vector)} or not vector:
            return None
        is_finite = all(isinstance(number, (int, float)) and math.isfinite(number) for number in vector)
        return [float(number) for number in vector] if is_finite else None


@BaseKVStore.register
@dataclass(frozen=True)
class HiddenStore:
    """A user's store, which LlamaIndex takes for none: it would look a vector up by its text alone.

    The adapter itself reads and writes it, by role and model.
    """

    wrapped: BaseKVStore

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        """As the user's store has it."""
        if name == "wrapped" or name.startswith("__"):  # `copy` and `pickle` ask for them before it is filled
            raise AttributeError(name)
        return getattr(self.wrapped, name)


# --- prefetched vectors --------------------------------------------------------------------------------------

# LlamaIndex passes texts in slices. If each slice were a call, slices would run one after the other, errors would name
# indices within a slice, and an error would lose the other slices' vectors. So the adapter embeds all texts in one
# call, and each slice takes its vectors from here.
_prefetched: contextvars.ContextVar[dict[str, list[float]] | None] = contextvars.ContextVar(
    "dashscope_prefetched", default=None
)


@contextlib.contextmanager
def prefetched(texts: Sequence[str], vectors: Sequence[list[float]]) -> Iterator[None]:
    """Inside the block, and in tasks started there, `take_prefetched` returns these vectors."""
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
