"""What to send in place of a refused request: fewer texts, or shorter ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dashscope_embeddings._core import text_length
from dashscope_embeddings.errors import Action, DashScopeError, ServiceError

if TYPE_CHECKING:
    from dashscope_embeddings._core.text_length import Limits, LongText


@dataclass(frozen=True, slots=True)
class Chunk:
    """A text to ask for, and the row of the batch that it stands for, alone or with others."""

    row: int
    text: str


def split_request(group: list[Chunk], error: DashScopeError, limits: Limits, long_text: LongText) -> list[list[Chunk]]:
    """The requests to send in place of a refused one; none: the refusal stands."""
    limit = error.limit if isinstance(error, ServiceError) else None
    if error.action is Action.REDUCE_BATCH:
        if limit is None or not 0 < limit < len(group):
            return _bisect(group)
        limits.lower_row_limit(limit)
        return [group[i : i + limit] for i in range(0, len(group), limit)]
    if error.action is Action.TRUNCATE and limit is not None:
        limits.lower_token_limit(limit)
        if len(group) == 1:
            return _shorten(group[0], limit, long_text)
        long = [piece for piece in group if text_length.estimate_tokens(piece.text) > limit]
        if 0 < len(long) < len(group):
            return [[piece for piece in group if piece not in long], *([piece] for piece in long)]
    if error.action in {Action.BISECT, Action.TRUNCATE}:
        return _bisect(group)
    return []


def _bisect(group: list[Chunk]) -> list[list[Chunk]]:
    middle = len(group) // 2
    return [group[:middle], group[middle:]] if middle else []


def _shorten(chunk: Chunk, token_limit: int, long_text: LongText) -> list[list[Chunk]]:
    """The text that was too long, cut as the caller wants it; none: it is to be an error."""
    if long_text == "error" or len(chunk.text) < _MIN_CHARACTERS:
        return []
    # The service counted more than `limit` tokens: where we had estimated fewer, our estimate is not to be
    # trusted for this text, and a share of its length is taken instead.
    estimated = text_length.estimate_tokens(chunk.text)
    if long_text == "truncate":
        return [
            [
                Chunk(
                    chunk.row,
                    text_length.truncate_after_blanks(chunk.text, min(token_limit, estimated * _TRUNCATION_RATIO)),
                )
            ]
        ]
    parts = text_length.chunks(chunk.text, min(token_limit * _TRUNCATION_RATIO, estimated * _CHUNK_RATIO))
    return [[Chunk(chunk.row, part)] for part in parts]


_MIN_CHARACTERS = 2
_TRUNCATION_RATIO = 0.8
_CHUNK_RATIO = 0.55
