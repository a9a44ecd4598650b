"""Opens text files in any encoding: detects byte order marks, and guesses the encoding of undecodable bytes."""

from __future__ import annotations

import codecs
import io
import re
import sys
import unicodedata
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from dashscope_embeddings.corpus.sources import STDIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

    from dashscope_embeddings.corpus.sources import Source

# --- byte order marks --------------------------------------------------------------------------------------

# UTF-32 before UTF-16: its little-endian mark begins with the one of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UTF16_AND_UTF32 = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")


def encoding_from_bom(head: bytes) -> str | None:
    """The codec for a byte order mark, which also removes the mark; None: there is no mark."""
    return next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), None)


def guess_utf16_or_utf32(head: bytes) -> str | None:
    """The variant of UTF-16 or UTF-32 that a file without a byte order mark seems to have; None: neither.

    Bytes of UTF-16 and UTF-32 are valid UTF-8 if the text is ASCII, and often if it is Chinese.
    """
    return next((name for name in _UTF16_AND_UTF32 if _is_plausible_text(head, name)), None) if b"\0" in head else None


def _is_plausible_text(head: bytes, name: str) -> bool:
    try:
        # Not final: the head may end within a character.
        text = codecs.getincrementaldecoder(name)().decode(head)
    except UnicodeError:
        return False
    if any(unicodedata.category(c) in {"Cc", "Cn", "Co"} and c not in "\t\n\r\f" for c in text):
        return False
    if lines := head.count(b"\n"):
        return text.count("\n") * 2 >= lines
    return sum(c.isascii() for c in text) * 2 >= len(text)


# --- undecodable bytes -------------------------------------------------------------------------------------

# For each encoding, a pattern: its common characters as a group, then its other characters, so that the search stays
# aligned. Chinese, Japanese and Korean encodings accept nearly all bytes of one another. The share of common characters
# distinguishes them.
_COMMON_CHARACTERS = {
    "gb18030": rb"((?:[\xa1-\xa3\xb0-\xd7][\xa1-\xfe])+)|[\x81-\xfe][\x30-\xfe]",
    "big5": rb"((?:[\xa1-\xc6][\x40-\x7e\xa1-\xfe])+)|[\x81-\xfe][\x40-\xfe]",
    "euc_kr": rb"((?:[\xa1-\xa3\xb0-\xc8][\xa1-\xfe])+)|[\x81-\xfe][\x41-\xfe]",
    "shift_jis": rb"((?:[\x81-\x83\x88-\x97][\x40-\x7e\x80-\xfc])+)|[\x84-\x9f\xe0-\xef][\x40-\xfc]|[\xa1-\xdf]",
    "euc_jp": rb"((?:[\xa1\xa3-\xa5\xb0-\xcf][\xa1-\xfe])+)|[\x8e\xa1-\xfe][\xa1-\xfe]",
    "cp1251": rb"([\xa8\xb8\xc0-\xff]{2,})|[\x80-\xff]",
    "cp1252": rb"(?<![\x80-\xff])([\x80-\xff]{1,2})(?![\x80-\xff])|[\x80-\xff]",
}
_MIN_COMMON_SHARE = 0.7
"""Share of the non-ASCII bytes that must belong to common characters."""
_MIN_NON_ASCII_BYTES = 3
"""Fewer non-ASCII bytes than this are not enough for a guess."""
_KOREAN_PENALTY = 0.5
"""Divided by the number of non-ASCII bytes: a penalty on Korean for short texts."""
_NON_ASCII_BYTE = re.compile(rb"[\x80-\xff]")


def guess_encoding(sample: bytes, expected: str) -> str | None:
    """The most likely encoding of a sample that is not in the `expected` one; None: unclear."""
    if expected != "utf-8" and _can_decode(sample, "utf-8"):
        return "utf-8"
    high = len(_NON_ASCII_BYTE.findall(sample))
    if high < _MIN_NON_ASCII_BYTES or (
        _is_mostly_utf8(sample) if expected == "utf-8" else _can_decode(sample, expected)
    ):
        return None
    shares = {
        name: _common_share(sample, pattern)
        for name, pattern in _COMMON_CHARACTERS.items()
        if _can_decode(sample, name)
    }
    # The bytes of common Korean and Japanese characters are common in Chinese too; longer Chinese texts have others.
    penalties = {"gb18030": 0.02, "euc_jp": 0.03, "euc_kr": _KOREAN_PENALTY / high}
    shares = {name: share - penalties.get(name, 0.0) for name, share in shares.items()}
    likely = max(shares, key=lambda name: shares[name], default="")
    if shares.get(likely, 0.0) < _MIN_COMMON_SHARE:
        return None
    if likely == "cp1251":
        likely = max(("cp1251", "koi8-r"), key=lambda name: _russian_score(sample, name))
    return likely if likely != expected else None


_COMMON_CYRILLIC_LETTERS = frozenset("\u043e\u0435\u0430\u0438\u043d\u0442\u0441\u0440")
_LOWER_CASE_WEIGHT = 0.25


def _russian_score(sample: bytes, name: str) -> float:
    """Counts common Russian letters and lower-case letters, to choose between CP1251 and KOI8-R.

    Letters that are lower case in one of the two encodings are upper case in the other.
    """
    text = sample.decode(name, "ignore")
    return sum(c in _COMMON_CYRILLIC_LETTERS for c in text.lower()) + _LOWER_CASE_WEIGHT * sum(map(str.islower, text))


def _can_decode(sample: bytes, name: str) -> bool:
    try:
        codecs.getincrementaldecoder(name)().decode(sample)
    except (UnicodeError, LookupError):
        return False
    return True


def _is_mostly_utf8(sample: bytes) -> bool:
    text = sample.decode(errors="replace")
    damaged = text.count("\ufffd")
    return sum(not c.isascii() for c in text) > 5 * damaged


def _common_share(sample: bytes, pattern: bytes) -> float:
    high = len(_NON_ASCII_BYTE.findall(sample))
    common = sum(len(_NON_ASCII_BYTE.findall(group)) for group in re.findall(pattern, sample))
    # The second byte of a character may be ASCII: it is counted in neither number.
    return common / max(high, 1)


_CESU8_PAIR = re.compile(rb"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]")


def has_surrogate_pairs(raw: bytes) -> bool:
    """Whether bytes hold surrogate pairs encoded as UTF-8 (CESU-8), as some database exports do."""
    return _CESU8_PAIR.search(raw) is not None


# --- open files --------------------------------------------------------------------------------------------

_HEAD_BYTES = 1 << 16
"""Bytes that are inspected to guess a file's encoding; they are buffered in any case."""


@dataclass
class TextFile:
    """An open text file. Undecodable bytes are read as lone surrogates, so that one bad line is one bad record."""

    source: Source
    file: TextIO
    encoding: str
    head: bytes

    @property
    def undeclared_encoding(self) -> str | None:
        """The variant of UTF-16 or UTF-32 that the file seems to have, without a mark and without the option."""
        wide = self.encoding.startswith(("utf-16", "utf-32"))
        return None if wide else guess_utf16_or_utf32(self.head)

    def lines(self) -> Iterator[tuple[int, str]]:
        """Number and content of all lines that are not blank."""
        for number, line in enumerate(self.file, start=1):
            if not line.isspace():
                yield number, line.rstrip("\r\n")

    def decode_problem(self, line: str) -> str:
        """The error message for a line that is not in the file's encoding."""
        raw = self._raw(line)
        if self._codec_name == "utf-8" and has_surrogate_pairs(raw):
            return (
                "holds surrogate pairs in place of characters (CESU-8): convert the file's bytes with "
                '.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass").decode("utf-16")'
            )
        # Prefer the file's head: a damaged line of a UTF-8 file may resemble any encoding.
        likely = guess_encoding(raw, self._codec_name) if self.head.isascii() else self._guessed_encoding
        advice = ": set the file's encoding (encoding, --encoding), or correct the line"
        if likely:
            advice = f", likely {likely}: set the encoding (encoding, --encoding {likely})"
        return f"holds bytes that are not {self._codec_name}{advice}"

    @property
    def _codec_name(self) -> str:
        return self.encoding.removesuffix("-sig")

    @cached_property
    def _guessed_encoding(self) -> str | None:
        return guess_encoding(self.head, self._codec_name)

    def _raw(self, line: str) -> bytes:
        try:
            return line.encode(self.encoding, "surrogateescape")
        except UnicodeError:
            return b""


@contextmanager
def open_text(source: Source, encoding: str) -> Iterator[TextFile]:
    """Opens a file or standard input, in the encoding of its byte order mark or else in `encoding`."""
    stdin = source.path == STDIN
    # Standard input gets a second buffer to peek into: bytes that are read from a pipe cannot be put back.
    plain = cast("FileIO", sys.stdin.buffer) if stdin else Path(source.path).open("rb", buffering=0)  # noqa: SIM115 - closed below
    raw = io.BufferedReader(plain, _HEAD_BYTES)
    head = raw.peek(_HEAD_BYTES)
    encoding = encoding_from_bom(head) or encoding
    newline = "" if source.format in {"csv", "tsv"} else "\n"  # a carriage return may be part of a text
    file = io.TextIOWrapper(raw, encoding=encoding, errors="surrogateescape", newline=newline)
    try:
        yield TextFile(source, file, encoding, head)
    finally:
        if stdin:
            file.detach().detach()  # leave standard input open
        else:
            file.close()


def has_lone_surrogates(text: str) -> bool:
    """Whether a text cannot be written as UTF-8."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
