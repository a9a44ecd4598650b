"""Splits a refused request into requests with fewer or shorter texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dashscope_embeddings._core import text_length
from dashscope_embeddings.errors import Action, DashScopeError, ServiceError

if TYPE_CHECKING:
    from dashscope_embeddings._core.text_length import CountTokens, Limits, LongText


@dataclass(frozen=True, slots=True)
class Chunk:
    """A text of a request: a row of the batch, or one part of that row."""

    row: int
    text: str


def split_request(group: list[Chunk], error: DashScopeError, limits: Limits, long_text: LongText) -> list[list[Chunk]]:
    """The requests to send instead of a refused one; an empty list if the error is final."""
    limit = error.limit if isinstance(error, ServiceError) else None
    if error.action is Action.REDUCE_BATCH:
        if limit is None or not 0 < limit < len(group):
            return _bisect(group)
        limits.lower_row_limit(limit)
        return [group[i : i + limit] for i in range(0, len(group), limit)]
    if error.action is Action.TRUNCATE and limit is not None:
        limits.lower_token_limit(limit)
        if len(group) == 1:
            return _shorten(group[0], limit, long_text, limits.count)
        long = [chunk for chunk in group if limits.count(chunk.text) > limit]
        if 0 < len(long) < len(group):
            return [[chunk for chunk in group if chunk not in long], *([chunk] for chunk in long)]
    if error.action in {Action.BISECT, Action.TRUNCATE}:
        return _bisect(group)
    return []


def _bisect(group: list[Chunk]) -> list[list[Chunk]]:
    middle = len(group) // 2
    return [group[:middle], group[middle:]] if middle else []


def _shorten(chunk: Chunk, token_limit: int, long_text: LongText, count: CountTokens) -> list[list[Chunk]]:
    """Cuts a text that was too long, as `long_text` says; an empty list for an error."""
    if long_text == "error" or len(chunk.text) < _MIN_CHARACTERS:
        return []
    # The service counted more than `token_limit` tokens. If we count fewer, that is wrong for this text, so cut to a
    # share of our count instead.
    counted = count(chunk.text)
    if long_text == "truncate":
        max_tokens = min(token_limit, counted * _TRUNCATION_RATIO)
        return [[Chunk(chunk.row, text_length.truncate_after_blanks(chunk.text, max_tokens, count))]]
    parts = text_length.chunks(chunk.text, min(token_limit * _TRUNCATION_RATIO, counted * _CHUNK_RATIO), count)
    return [[Chunk(chunk.row, part)] for part in parts]


_MIN_CHARACTERS = 2
_TRUNCATION_RATIO = 0.8
_CHUNK_RATIO = 0.55
