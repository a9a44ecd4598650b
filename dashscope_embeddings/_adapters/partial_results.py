"""Completes results of which a cache has a part, and adapts the errors of calls for the rest to the caller's texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dashscope_embeddings._core.results import partial_of, set_attributes
from dashscope_embeddings.errors import DashScopeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dashscope_embeddings._adapters.flows import Flow

ANY_EXCEPTION = BaseException
"""Interruptions carry `partial` too: it is adapted to the adapter's call, and the exception passes unchanged."""


def fill_missing(
    vectors: list[Any],
    request: Callable[[list[int]], Flow[list[Any]]],
    progress: Callable[[int], object] | None,
) -> Flow[list[Any]]:
    """The vector of each text, from `vectors` (of a cache, with None for each that it lacks) and from `request`.

    `request` is a flow that gets the indices of the missing texts. What it raises gets the indices of all texts, and
    the cached vectors in its `partial`.
    """
    missing = [index for index, vector in enumerate(vectors) if vector is None]
    if progress is not None and len(missing) < len(vectors):
        progress(len(vectors) - len(missing))
    if not missing:
        return vectors
    try:
        fresh = yield from request(missing)
    except ANY_EXCEPTION as error:
        add_cached_to_partial(error, vectors, missing)
        raise
    for index, vector in zip(missing, fresh, strict=True):
        vectors[index] = vector
    return vectors


def add_cached_to_partial(error: BaseException, vectors: list[Any], missing: list[int]) -> None:
    """Renumbers the indices of an error of the call for the missing texts, and adds cached vectors to its `partial`.

    `vectors`: for each text of the caller its cached vector, or None.
    """
    cached = {index: vector for index, vector in enumerate(vectors) if vector is not None}
    set_attributes(error, partial=cached | renumbered(partial_of(error), missing))
    if cached:
        set_attributes(error, failed=[missing[index] for index in getattr(error, "failed", ())])
    if cached and isinstance(error, DashScopeError):
        error.reasons = renumbered(error.reasons, missing)
        error.refused = renumbered(error.refused, missing)
        error.set_affected(sorted(error.reasons) or error.failed, len(vectors))


def renumbered(by_index: Mapping[int, Any], indices: Sequence[int]) -> dict[int, Any]:
    """The same values by other indices: 0 becomes `indices[0]`, and so on."""
    return {indices[index]: value for index, value in by_index.items()}
