"""LlamaIndex hands texts over in slices; here all are asked for at once, and the slices draw from what came.

Slice by slice, one after the other, a job would be as slow as its slices are small, an error would count from the
beginning of its slice, and the vectors of the other slices would be lost with it.
"""

from __future__ import annotations

import contextlib
import contextvars
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_prefetched: contextvars.ContextVar[dict[str, list[float]] | None] = contextvars.ContextVar(
    "dashscope_ahead", default=None
)


@contextlib.contextmanager
def prefetched(texts: Sequence[str], vectors: Sequence[list[float]]) -> Iterator[None]:
    """Inside the block, and the tasks that are started there, these vectors need not be asked for.

    A cache gives them out too: some versions of LlamaIndex put vectors on the wrong texts where a cache holds a part.
    """
    token = _prefetched.set(dict(zip(texts, vectors, strict=True)))
    try:
        yield
    finally:
        _prefetched.reset(token)


def take_prefetched(texts: Sequence[str]) -> list[list[float]] | None:
    """The vectors of a slice, each a list of its own; None: they are not here, ask for them."""
    found = _prefetched.get()
    if found is None or any(text not in found for text in texts):
        return None
    return [list(found[text]) for text in texts]
