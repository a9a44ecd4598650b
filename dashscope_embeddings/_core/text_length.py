"""How long texts are, what a model takes, and how a text is made to fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

from dashscope_embeddings import _process
from dashscope_embeddings.catalogue import Model

LongText = Literal["error", "truncate", "average"]
"""What to do with a text that is longer than the model takes."""


# --- how long a text is ------------------------------------------------------------------------------------

_ASCII_CHARACTERS_PER_TOKEN = 4.0
_TOKENS_PER_EXTRA_BYTE = 0.35
_WORST_CASE_RATIO = 0.4


def estimate_tokens(text: str) -> float:
    """About how many tokens a text has.

    No page names the tokenizer, so this is a rule of thumb: four ASCII characters a token; 0.7 for a Chinese
    character (three bytes of UTF-8), as an old page of the vendor has it (33 Chinese characters, 22 tokens);
    other scripts by their bytes too. The limiter learns how far off it is.
    """
    size = len(text)
    if text.isascii():
        return size / _ASCII_CHARACTERS_PER_TOKEN
    extra = len(text.encode()) - size
    return max(size - extra, 0) / _ASCII_CHARACTERS_PER_TOKEN + extra * _TOKENS_PER_EXTRA_BYTE


def _exceeds(text: str, tokens: float) -> bool:
    """Whether a text is estimated above so many tokens: a huge one is told by its length, without encoding it."""
    return len(text) / _ASCII_CHARACTERS_PER_TOKEN > tokens or estimate_tokens(text) > tokens


@dataclass
class Limits:
    """What one model at one host takes: the catalogue's row, corrected by what the service says.

    Shared by all clients of the process that ask the same model at the same host; limits only ever shrink.
    """

    rows: int
    tokens_per_row: int
    """No source, and no reply so far, allows more: where pages disagree the service decides."""
    tokens_per_request: int | None

    @classmethod
    def from_model(cls, model: Model) -> Limits:
        """The limits that the catalogue states."""
        return cls(model.rows, model.tokens_per_row_limit, model.tokens_per_request)

    def lower_row_limit(self, max_rows: int) -> None:
        """The service said: at most so many texts a request."""
        self.rows = max(1, min(self.rows, max_rows))

    def lower_token_limit(self, max_tokens: int) -> None:
        """The service said: at most so many tokens a text."""
        self.tokens_per_row = max(1, min(self.tokens_per_row, max_tokens))

    def probably_too_long(self, text: str) -> bool:
        """Whether a text is too long if our estimate is right."""
        # No text has more than two estimated tokens a character: most need no estimate.
        return len(text) * 2 > self.tokens_per_row and _exceeds(text, self.tokens_per_row)

    def certainly_too_long(self, text: str) -> bool:
        """Whether a text is too long even if our estimate is two and a half times too high."""
        # No text has more than two and a half estimated tokens a character: most need no estimate.
        return len(text) > self.tokens_per_row and _exceeds(text, self.tokens_per_row / _WORST_CASE_RATIO)


_observed_limits: dict[tuple[str, str], Limits] = {}


def shared_limits(host: str, model: Model) -> Limits:
    """The process's limits for a model at a host. No lock: a forked child could find it held for ever."""
    return _observed_limits.setdefault((host, model.name), Limits.from_model(model))


_process.on_reset("observed limits", _observed_limits.clear, learned=True)


# --- cutting long texts ------------------------------------------------------------------------------------

_CHUNK_FILL_RATIO = 0.9
"""Share of the limit that a piece aims at: a refusal costs a round trip."""
_BOUNDARIES = ("\n\n", "\n", "。", "! ", "? ", ". ", "；", "，", " ")


def truncate(text: str, max_tokens: float) -> str:
    """The beginning of a text, about so many tokens long, cut at a natural seam where one is near."""
    # No script has more characters a token than ASCII: looking further would mix in another part's density.
    head = text[: int(max_tokens * _ASCII_CHARACTERS_PER_TOKEN) + 1]
    keep = max(1, int(len(head) * max_tokens / max(estimate_tokens(head), 1.0)))
    if keep >= len(text):
        return text
    nearest = keep - keep // 10
    for seam in _BOUNDARIES:
        at = text.rfind(seam, nearest, keep)
        if at != -1 and text[: at + len(seam)].strip():
            return text[: at + len(seam)]
    return text[:keep]


def truncate_after_blanks(text: str, max_tokens: float) -> str:
    """`shorten` from the first character that is not blank: blanks alone would be refused."""
    return truncate(text.lstrip(), max_tokens)


def chunks(text: str, max_tokens: float) -> Iterator[str]:
    """The whole text in pieces of about so many tokens, none blank."""
    # Cut from a window, because a copy of the whole rest for every piece makes a huge text quadratic.
    at, window = 0, int(max_tokens * _ASCII_CHARACTERS_PER_TOKEN) + 2
    while at < len(text):
        piece = truncate(text[at : at + window], max_tokens)
        at += len(piece)
        if not piece.isspace():
            yield piece


def fit_rows(text: str, long_text: LongText, max_tokens: float) -> Iterator[str]:
    """The rows that stand for a text: itself; or its beginning, or its pieces, where it is too long."""
    if long_text == "error" or not _exceeds(text, max_tokens):
        yield text
    elif long_text == "truncate":
        yield truncate_after_blanks(text, max_tokens)
    else:
        yield from chunks(text, max_tokens * _CHUNK_FILL_RATIO)
