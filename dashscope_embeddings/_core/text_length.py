"""Estimates the tokens of texts, knows a model's limits, and cuts texts that exceed them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

from dashscope_embeddings import _process
from dashscope_embeddings.catalogue import Model

LongText = Literal["error", "truncate", "average"]
"""What to do with a text that is longer than the model accepts."""


# --- length ------------------------------------------------------------------------------------------------

_ASCII_CHARACTERS_PER_TOKEN = 4.0
_TOKENS_PER_EXTRA_BYTE = 0.35
_WORST_CASE_RATIO = 0.4


def estimate_tokens(text: str) -> float:
    """Roughly how many tokens a text has.

    No page names the tokenizer, so this is a rule of thumb: four ASCII characters a token, and 0.7 tokens for a
    Chinese character (three bytes of UTF-8), as in an old page of the vendor (33 Chinese characters, 22 tokens).
    Other scripts count by their bytes too. The limiter learns the ratio of billed to estimated tokens.
    """
    size = len(text)
    if text.isascii():
        return size / _ASCII_CHARACTERS_PER_TOKEN
    extra = len(text.encode()) - size
    return max(size - extra, 0) / _ASCII_CHARACTERS_PER_TOKEN + extra * _TOKENS_PER_EXTRA_BYTE


def _exceeds(text: str, tokens: float) -> bool:
    """Whether the estimate is above `tokens`; a very long text is recognised by its length, without encoding it."""
    return len(text) / _ASCII_CHARACTERS_PER_TOKEN > tokens or estimate_tokens(text) > tokens


@dataclass
class Limits:
    """Limits of one model at one host: from the catalogue, corrected by the service's error messages.

    Shared by all clients of the process that use the same model at the same host. Limits only ever shrink.
    """

    rows: int
    tokens_per_row: int
    """The highest limit that any source states, until a reply names a lower one: sources disagree."""
    tokens_per_request: int | None

    @classmethod
    def from_model(cls, model: Model) -> Limits:
        """The limits in the catalogue."""
        return cls(model.rows, model.tokens_per_row_limit, model.tokens_per_request)

    def lower_row_limit(self, max_rows: int) -> None:
        """The service named its limit of texts per request."""
        self.rows = max(1, min(self.rows, max_rows))

    def lower_token_limit(self, max_tokens: int) -> None:
        """The service named its limit of tokens per text."""
        self.tokens_per_row = max(1, min(self.tokens_per_row, max_tokens))

    def probably_too_long(self, text: str) -> bool:
        """Whether a text is too long if the estimate is right."""
        # The estimate is at most two tokens a character, so most texts need none.
        return len(text) * 2 > self.tokens_per_row and _exceeds(text, self.tokens_per_row)

    def certainly_too_long(self, text: str) -> bool:
        """Whether a text is too long even if the estimate is 2.5 times too high."""
        # The estimate is at most 2.5 tokens a character, so most texts need none.
        return len(text) > self.tokens_per_row and _exceeds(text, self.tokens_per_row / _WORST_CASE_RATIO)


_observed_limits: dict[tuple[str, str], Limits] = {}


def shared_limits(host: str, model: Model) -> Limits:
    """The process's limits for a model at a host. No lock: a forked child could find it held for ever."""
    return _observed_limits.setdefault((host, model.name), Limits.from_model(model))


_process.on_reset("observed limits", _observed_limits.clear, learned=True)


# --- cutting long texts ------------------------------------------------------------------------------------

_CHUNK_FILL_RATIO = 0.9
"""Target size of a chunk as a share of the limit: a chunk that is refused costs a round trip."""
_BOUNDARIES = ("\n\n", "\n", "。", "! ", "? ", ". ", "；", "，", " ")


def truncate(text: str, max_tokens: float) -> str:
    """The beginning of a text, about `max_tokens` long, cut at a sentence or word boundary if one is near."""
    # No script has more characters per token than ASCII, so the rest does not matter for the density.
    head = text[: int(max_tokens * _ASCII_CHARACTERS_PER_TOKEN) + 1]
    keep = max(1, int(len(head) * max_tokens / max(estimate_tokens(head), 1.0)))
    if keep >= len(text):
        return text
    nearest = keep - keep // 10
    for boundary in _BOUNDARIES:
        at = text.rfind(boundary, nearest, keep)
        if at != -1 and text[: at + len(boundary)].strip():
            return text[: at + len(boundary)]
    return text[:keep]


def truncate_after_blanks(text: str, max_tokens: float) -> str:
    """`truncate` from the first non-blank character: the service refuses a blank text."""
    return truncate(text.lstrip(), max_tokens)


def chunks(text: str, max_tokens: float) -> Iterator[str]:
    """The whole text in chunks of about `max_tokens`, without blank ones."""
    # Each chunk is cut from a window: copying the whole rest for every chunk would take quadratic time.
    at, window = 0, int(max_tokens * _ASCII_CHARACTERS_PER_TOKEN) + 2
    while at < len(text):
        chunk = truncate(text[at : at + window], max_tokens)
        at += len(chunk)
        if not chunk.isspace():
            yield chunk


def fit_rows(text: str, long_text: LongText, max_tokens: float) -> Iterator[str]:
    """The rows to send for a text: the text itself, or its beginning or its chunks if it is too long."""
    if long_text == "error" or not _exceeds(text, max_tokens):
        yield text
    elif long_text == "truncate":
        yield truncate_after_blanks(text, max_tokens)
    else:
        yield from chunks(text, max_tokens * _CHUNK_FILL_RATIO)
