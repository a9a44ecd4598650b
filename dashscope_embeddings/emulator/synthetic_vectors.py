"""Synthetic vectors computed from words: deterministic, of unit length, similar for texts that share words.

They stand in for the models' vectors and resemble them only in what a program can rely on: equal requests get equal
vectors, texts with common words are neighbours ("cats" meets "cat", "sleeping" meets "sleeps"), a query and a document
of one text are close but not equal, and another model, dimension or instruction gives other numbers.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from struct import unpack
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterator

VOCABULARY_SIZE = 250_002
"""Sparse indices are below this; the highest one seen from the service is 246,351."""

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_find_word_runs = re.compile(r"\w+").findall
_find_script_runs = re.compile(f"[{_CJK}]+|[^{_CJK}]+").findall
_find_cjk = re.compile(f"[{_CJK}]").findall
_find_subwords = re.compile(rf"[A-Za-z0-9_]{{1,6}}|[{_CJK}]|[^\W{_CJK}]{{1,3}}|[^\w\s]").findall
_has_vowel = re.compile(r"[aeiouy]").search
_find_sparse_tokens = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+").findall

_STOPWORD_TEXT = """
a about above after all also an and any are as at be because been before being below between both but by can
could did do does down each else few for from further get had has have having he her here him his how i if
in into is it its itself just like may me might more most must my no nor not now of off on once one only or
other our out over own same set she should so some such than that the their them then there these they this
those through to too two under until up upon us use used uses using very was we were what when where whether
which while who whom why will with within without would you your etc
的 了 是 在 和 与 與 也 就 都 而 及 或 有 我 你 他 她 它 们 們 这 這 那 一 不 之 其 以 于
於 为 為 吗 嗎 呢 吧 什么 什麼 怎么 怎麼
"""
_STOPWORDS = frozenset(_STOPWORD_TEXT.split())
_CONTEXT_ENERGY_SHARE = 0.05
"""Share of a vector's energy that depends on role, model and instruction; the rest depends on the words."""
_FINGERPRINT_NORM = 0.12
"""Norm of the part that distinguishes texts of the same words, relative to the norm of the words' part."""


@dataclass(frozen=True, slots=True)
class Token:
    """One entry of a sparse vector."""

    index: int
    value: float
    token: str


def count_tokens(text: str) -> int:
    """Tokens of a text by the emulator's own rule: one for six letters or a mark, 0.7 for a Chinese character.

    The service's tokenizer is not public for every model; its own example counts 22 tokens for 33 Chinese
    characters and 29 for 133 English ones.
    """
    characters = 0 if text.isascii() else len(_find_cjk(text))
    return len(_find_subwords(text)) - characters + math.ceil(characters * 0.7)


def dense(text: str, *, model: str, text_type: str, dimension: int, instruct: str = "") -> list[float]:
    """The vector of one text: `dimension` floats of unit length."""
    vector = [0.0] * dimension
    for word, times in Counter(_words(text.lower())).items():
        weight = 1.0 + math.log(times)
        for index, share in _features(word, model, dimension):
            vector[index] += share * weight
    word_norm = math.hypot(*vector) or 1.0
    for index, share in _fingerprint(text, dimension):
        vector[index] += share * word_norm
    scale = math.sqrt(1.0 - _CONTEXT_ENERGY_SHARE) / (math.hypot(*vector) or 1.0)
    # The documents say that an instruction needs the role `query`; assumed: with another role it does nothing.
    context = _context_vector(model, text_type, instruct if text_type == "query" else "", dimension)
    vector = [value * scale + own for value, own in zip(vector, context, strict=True)]
    length = math.hypot(*vector)
    return [value / length for value in vector]


def sparse(text: str, *, model: str, text_type: str) -> list[Token]:
    """The weighted tokens of one text, each once, in the order of the text, as the service returns them.

    Inflections of an English word are one token. If a text has no words, its runs of marks are the tokens.
    """
    forms: dict[str, list[str]] = {}
    for token in _find_sparse_tokens(text) or text.split():
        forms.setdefault(_stem(token.lower()), []).append(token)
    role = 1.0 if text_type == "document" else 1.05
    entries: dict[int, Token] = {}
    for word, tokens in forms.items():
        index = int.from_bytes(_digest(word, f"sparse {model}", 8), "big") % VOCABULARY_SIZE
        value = _word_weight(tokens[0].lower()) * role * (0.75 + 0.15 * math.log(len(tokens)))
        entries.setdefault(index, Token(index, round(value, 4), tokens[0]))
    return list(entries.values())


def to_json_array(vector: list[float]) -> str:
    """A vector as JSON: eleven decimals, of which nine or ten are significant."""
    return _json_template(len(vector)) % tuple(vector)


@lru_cache(maxsize=64)
def _json_template(dimension: int) -> str:
    return "[" + ",".join(["%.11f"] * dimension) + "]"


def _words(text: str) -> Iterator[str]:
    """The words of a text; of Chinese, Japanese and Korean: the characters, and the pairs of neighbours."""
    for run in _find_word_runs(text):
        for piece in [run] if run.isascii() else _find_script_runs(run):
            if _find_cjk(piece[0]):
                yield from piece
                yield from map("".join, pairwise(piece))
            else:
                yield piece


_INFLECTIONS = (
    {"ies": "y", "ss": "ss", "us": "us", "is": "is", "s": ""},
    {"ied": "y", "eed": "eed", "ed": "", "ing": ""},
)
"""Endings of an English word, first those of plurals, and what replaces them; of each group one at most."""


@lru_cache(maxsize=32_768)
def _stem(word: str) -> str:
    """A word in lower case without simple English inflections: the same for "stop", "stops", "stopped", "stopping".

    Not always a word: "mak" stands for make, makes and making, "emb" for embed and embedding.
    """
    if word in _STOPWORDS or not word.isascii():
        return word
    shorter = word
    for endings in _INFLECTIONS:
        ending = next(filter(shorter.endswith, endings), "")
        stem = shorter.removesuffix(ending) + endings.get(ending, "")
        if len(stem) > 2 and _has_vowel(stem):  # noqa: PLR2004  (not "as", "red", "string")
            shorter = stem
    if len(shorter) > 3:  # noqa: PLR2004  (not "see")
        shorter = shorter.removesuffix("e")
    if shorter[-1] == shorter[-2:-1] and shorter[-1] in "bdfglmnprtz":
        shorter = shorter[:-1]
    # Again, because "embedding" is a form of "embed", which looks inflected itself.
    return word if shorter == word else _stem(shorter)


def _word_weight(word: str) -> float:
    """Weight of a word: low for stopwords, rising with length; a pair of Chinese characters counts much."""
    if word in _STOPWORDS:
        return 0.12
    if not word.isascii():
        return 0.5 if len(word) == 1 else 1.0
    return min(1.2, 0.3 + 0.12 * len(word))


def _digest(text: str, domain: str, size: int) -> bytes:
    # A JSON string may contain a lone surrogate, which plain UTF-8 cannot encode.
    content, key = (value.encode("utf-8", "surrogatepass") for value in (text, domain))
    if len(key) > blake2b.MAX_KEY_SIZE:
        key = blake2b(key).digest()
    return blake2b(content, digest_size=size, key=key).digest()


@lru_cache(maxsize=32_768)
def _features(word: str, model: str, dimension: int) -> tuple[tuple[int, float], ...]:
    """The components, with signed weights, that a word and its four-letter pieces add to."""
    weight = _word_weight(word)
    # Half of it is common to all inflections of the word: they meet, and the same one is nearer.
    numbers = unpack("<3I", _digest(_stem(word), model, 12)) + unpack("<3I", _digest(f" {word}", model, 12))
    components = [((number >> 1) % dimension, weight * 0.408 if number & 1 else -weight * 0.408) for number in numbers]
    if len(word) > 3 and word not in _STOPWORDS:  # noqa: PLR2004  (a word this short is its own piece)
        padded = f"<{word}>".encode("utf-8", "surrogatepass")
        salt = crc32(model.encode())
        grams = len(padded) - 3
        share = 0.5 * weight / math.sqrt(grams)
        for start in range(grams):
            # The multiplication spreads checksums of similar pieces, which differ in few bits.
            number = (crc32(padded[start : start + 4], salt) * 0x9E3779B1 & 0xFFFFFFFF) >> 8
            components.append(((number >> 1) % dimension, share if number & 1 else -share))
    return tuple(components)


def _fingerprint(text: str, dimension: int) -> Iterator[tuple[int, float]]:
    """Components that depend on every character, so that texts of the same words get different vectors."""
    share = _FINGERPRINT_NORM / 4
    for number in unpack("<16I", _digest(text, "text", 64)):
        yield (number >> 1) % dimension, share if number & 1 else -share


@lru_cache(maxsize=256)
def _context_vector(model: str, text_type: str, instruct: str, dimension: int) -> tuple[float, ...]:
    """The dense part that all texts of one model, role and instruction have in common."""
    seed = _digest(f"{text_type}\0{instruct}", f"{model} {dimension}", 32)
    generator = random.Random(int.from_bytes(seed, "big"))  # noqa: S311  (reproducible noise, no secret)
    noise = [generator.gauss(0.0, 1.0) for _ in range(dimension)]
    scale = math.sqrt(_CONTEXT_ENERGY_SHARE) / math.hypot(*noise)
    return tuple(value * scale for value in noise)
