"""Vectors that are embedded before LlamaIndex passes their texts in slices, held in a context variable.

The adapter embeds all texts in one call; each slice then takes its vectors from here. If each slice were a call, slices
would run one after the other, errors would name indices within a slice, and an error would lose the other slices'
vectors.
"""

from __future__ import annotations

import contextlib
import contextvars
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
