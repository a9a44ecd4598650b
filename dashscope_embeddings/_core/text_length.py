"""Estimates the tokens of texts, knows a model's limits, and cuts texts that exceed them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

from dashscope_embeddings import _process
from dashscope_embeddings._core.tokenizer import token_counter
from dashscope_embeddings.catalogue import Model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LongText = Literal["error", "truncate", "average"]
"""What to do with a text that is longer than the model accepts."""
CountTokens: TypeAlias = "Callable[[str], float]"
"""`estimate_tokens`, or the exact count of a model."""


# --- length ------------------------------------------------------------------------------------------------

_ASCII_CHARACTERS_PER_TOKEN = 4.0
_TOKENS_PER_EXTRA_BYTE = 0.35
_WORST_CASE_RATIO = 0.4
_LEAST_TOKENS_PER_BYTE = 0.175
"""The estimate of letters of two bytes. An exact count has at most a token a byte."""
_MOST_TOKENS_PER_CHARACTER = 4


def estimate_tokens(text: str) -> float:
    """Roughly how many tokens a text has.

    A rule of thumb: four ASCII characters a token, and 0.7 tokens for a Chinese character (three bytes of UTF-8), as in
    an old page of the vendor (33 Chinese characters, 22 tokens). Other scripts count by their bytes too. The limiter
    learns the ratio of billed to estimated tokens.

    Beside the exact count for text-embedding-v4 it is, at the median of paragraphs (and for 9 of 10 of them): English
    0.98 (0.74 to 1.11), Python's manual 1.09 (0.82 to 1.34), Python code 1.07 (0.94 to 1.18), Chinese 0.7 to 0.8
    (0.5 to 0.9), Japanese 0.87 (0.6 to 1.4).
    """
    size = len(text)
    if text.isascii():
        return size / _ASCII_CHARACTERS_PER_TOKEN
    extra = len(text.encode()) - size
    return max(size - extra, 0) / _ASCII_CHARACTERS_PER_TOKEN + extra * _TOKENS_PER_EXTRA_BYTE


def _may_exceed(text: str, tokens: float) -> bool:
    """Whether a text may have more than `tokens` by any count. Most have not: the tokenizer need not be loaded."""
    return len(text) * _MOST_TOKENS_PER_CHARACTER > tokens - 1 and (
        estimate_tokens(text) > (tokens - 1) * _LEAST_TOKENS_PER_BYTE
    )


def _exceeds(text: str, tokens: float, count: CountTokens = estimate_tokens) -> bool:
    if count is estimate_tokens:
        # A very long text is recognised by its length, without encoding it.
        return len(text) / _ASCII_CHARACTERS_PER_TOKEN > tokens or estimate_tokens(text) > tokens
    window = 2 * _window(tokens, count)
    # A cut word may have a token more than as a part of the text.
    return (len(text) > window and count(text[:window]) > tokens + 1) or count(text) > tokens


@dataclass
class Limits:
    """Limits of one model at one host: from the catalogue, corrected by the service's error messages.

    Shared by all clients of the process that use the same model at the same host. Limits only ever shrink.
    """

    rows: int
    tokens_per_row: int
    """The highest limit that any source states, until a reply names a lower one: sources disagree."""
    tokens_per_request: int | None
    model_name: str = ""
    """Whose tokenizer counts, if it is known."""

    @classmethod
    def from_model(cls, model: Model) -> Limits:
        return cls(model.rows, model.tokens_per_row_limit, model.tokens_per_request, model.name)

    @cached_property
    def count(self) -> CountTokens:
        """Counts the tokens of a text, exactly if the tokenizer is known and installed."""
        return token_counter(self.model_name) or estimate_tokens

    @property
    def counts_exactly(self) -> bool:
        return self.count is not estimate_tokens

    def lower_row_limit(self, max_rows: int) -> None:
        """The service named its limit of texts per request."""
        self.rows = max(1, min(self.rows, max_rows))

    def lower_token_limit(self, max_tokens: int) -> None:
        """The service named its limit of tokens per text."""
        self.tokens_per_row = max(1, min(self.tokens_per_row, max_tokens))

    def probably_too_long(self, text: str) -> bool:
        """Whether a text is too long if the estimate is right."""
        return _may_exceed(text, self.tokens_per_row) and _exceeds(text, self.tokens_per_row, self.count)

    def certainly_too_long(self, text: str) -> bool:
        """Whether a text is too long: by the exact count, or even if the estimate is 2.5 times too high."""
        if not _may_exceed(text, self.tokens_per_row):
            return False
        if self.counts_exactly:
            return _exceeds(text, self.tokens_per_row, self.count)
        return _exceeds(text, self.tokens_per_row / _WORST_CASE_RATIO)

    def fit_rows(self, text: str, long_text: LongText) -> Iterator[str]:
        """The rows to send for a text: the text itself, or its beginning or its chunks if it is too long."""
        max_tokens = self.tokens_per_row
        if long_text == "error" or not self.probably_too_long(text):
            yield text
        elif long_text == "truncate":
            yield truncate(text.lstrip(), max_tokens, self.count)  # the service refuses a blank text
        else:
            yield from chunks(text, max_tokens * (1.0 if self.counts_exactly else _CHUNK_FILL_RATIO), self.count)


_observed_limits: dict[tuple[str, str], Limits] = {}


def shared_limits(host: str, model: Model) -> Limits:
    """The process's limits for a model at a host. No lock: a forked child could find it held for ever."""
    return _observed_limits.setdefault((host, model.name), Limits.from_model(model))


_process.on_reset("observed limits", _observed_limits.clear, learned=True)


# --- cutting long texts ------------------------------------------------------------------------------------

_CHUNK_FILL_RATIO = 0.9
"""Target size of a chunk as a share of the limit: a chunk that is refused costs a round trip."""
_BOUNDARIES = ("\n\n", "\n", "。", "! ", "? ", ". ", "；", "，", " ")


def truncate(text: str, max_tokens: float, count: CountTokens = estimate_tokens) -> str:
    """The beginning of a text, about `max_tokens` long, cut at a sentence or word boundary if one is near.

    With an exact count it is never longer.
    """
    head = text[: _window(max_tokens, count)]
    keep = len(head) * max_tokens / max(count(head), 1.0)
    if count is not estimate_tokens:
        keep = _adjust(head, min(int(keep * _AIM_RATIO), len(head)), max_tokens, count)
    keep = max(1, int(keep))
    if keep >= len(text):
        return text
    nearest = keep - keep // 10
    for boundary in _BOUNDARIES:
        at = text.rfind(boundary, nearest, keep)
        if at != -1 and text[: at + len(boundary)].strip():
            return text[: at + len(boundary)]
    return text[:keep]


def _window(max_tokens: float, count: CountTokens) -> int:
    """About the most characters that `max_tokens` can have; by the estimate, ASCII has the most for each token."""
    return int(max_tokens * (_ASCII_CHARACTERS_PER_TOKEN if count is estimate_tokens else _WORD_CHARACTERS)) + 2


_WORD_CHARACTERS = 6
_AIM_RATIO, _FILL_RATIO = 0.98, 0.93
"""Shares of the limit that a cut text aims at, and that it must at least fill: each further try takes another count."""
_MAX_ADJUSTMENTS = 8


def _adjust(text: str, keep: int, max_tokens: float, count: CountTokens) -> int:
    """Characters of `text` that have at most `max_tokens`, and nearly as many; the density of a text varies."""
    for attempt in itertools.count():
        tokens = count(text[:keep])
        if tokens > max_tokens and keep > 1:
            keep = max(1, min(keep - 1, int(keep * max_tokens / tokens)))
        elif tokens < max_tokens * _FILL_RATIO and keep < len(text) and attempt < _MAX_ADJUSTMENTS:
            keep = min(len(text), max(keep + 1, int(keep * _AIM_RATIO * max_tokens / tokens)))
        else:
            break
    return keep


def chunks(text: str, max_tokens: float, count: CountTokens = estimate_tokens) -> Iterator[str]:
    """The whole text in chunks of about `max_tokens`, without blank ones."""
    # Each chunk is cut from a window: copying the whole rest for every chunk would take quadratic time.
    at, window = 0, _window(max_tokens, count)
    while at < len(text):
        chunk = truncate(text[at : at + window], max_tokens, count)
        at += len(chunk)
        if not chunk.isspace():
            yield chunk
