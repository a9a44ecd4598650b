"""What to send in place of a refused request: fewer texts, or shorter ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dashscope_embeddings._core import text_length
from dashscope_embeddings.errors import DashScopeError, ServiceError, Verdict

if TYPE_CHECKING:
    from dashscope_embeddings._core.text_length import Limits, LongText


@dataclass(frozen=True, slots=True)
class Piece:
    """A text to ask for, and the row of the batch that it stands for, alone or with others."""

    row: int
    text: str


def smaller(group: list[Piece], error: DashScopeError, limits: Limits, long_text: LongText) -> list[list[Piece]]:
    """The requests to send in place of a refused one; none: the refusal stands."""
    limit = error.limit if isinstance(error, ServiceError) else None
    if error.verdict is Verdict.CUT:
        if limit is None or not 0 < limit < len(group):
            return _halves(group)
        limits.fewer_rows(limit)
        return [group[i : i + limit] for i in range(0, len(group), limit)]
    if error.verdict is Verdict.SHORTEN and limit is not None:
        limits.shorter_rows(limit)
        if len(group) == 1:
            return _shortened(group[0], limit, long_text)
        long = [piece for piece in group if text_length.estimate(piece.text) > limit]
        if 0 < len(long) < len(group):
            return [[piece for piece in group if piece not in long], *([piece] for piece in long)]
    if error.verdict in {Verdict.SPLIT, Verdict.SHORTEN}:
        return _halves(group)
    return []


def _halves(group: list[Piece]) -> list[list[Piece]]:
    middle = len(group) // 2
    return [group[:middle], group[middle:]] if middle else []


def _shortened(piece: Piece, limit: int, long_text: LongText) -> list[list[Piece]]:
    """The text that was too long, cut as the caller wants it; none: it is to be an error."""
    if long_text == "error" or len(piece.text) < _SHORTEST:
        return []
    # The service counted more than `limit` tokens: where we had estimated fewer, our estimate is not to be
    # trusted for this text, and a share of its length is taken instead.
    estimated = text_length.estimate(piece.text)
    if long_text == "truncate":
        return [[Piece(piece.row, text_length.beginning(piece.text, min(limit, estimated * _TRUNCATION)))]]
    parts = text_length.pieces(piece.text, min(limit * _TRUNCATION, estimated * _HALF))
    return [[Piece(piece.row, part)] for part in parts]


_SHORTEST = 2
_TRUNCATION = 0.8
_HALF = 0.55
