"""Opens text files in any encoding: detects byte order marks, and guesses the encoding of undecodable bytes."""

from __future__ import annotations

import codecs
import io
import re
import sys
import unicodedata
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from dashscope_embeddings.corpus.sources import STDIN, binary_problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

    from dashscope_embeddings.corpus.sources import Source

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


def _is_plausible_text(head: bytes, name: str) -> bool:
    if (text := _decode(head, name)) is None:
        return False
    if any(unicodedata.category(c) in {"Cc", "Cn", "Co"} and c not in "\t\n\r\f" for c in text):
        return False
    if lines := head.count(b"\n"):
        return text.count("\n") * 2 >= lines
    return sum(c.isascii() for c in text) * 2 >= len(text)


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


def guess_encoding(sample: bytes, expected: str) -> str | None:
    """The most likely encoding of a sample that is not in the `expected` one; None: unclear."""
    if expected != "utf-8" and _decode(sample, "utf-8") is not None:
        return "utf-8"
    high = _count_non_ascii(sample)
    if high < _MIN_NON_ASCII_BYTES or (
        _is_mostly_utf8(sample) if expected == "utf-8" else _decode(sample, expected) is not None
    ):
        return None
    # The bytes of common Korean and Japanese characters are common in Chinese too; longer Chinese texts have others.
    penalties = {"gb18030": 0.02, "euc_jp": 0.03, "euc_kr": 0.5 / high}
    shares = {
        name: sum(map(_count_non_ascii, re.findall(pattern, sample))) / high - penalties.get(name, 0.0)
        for name, pattern in _COMMON_CHARACTERS.items()
        if _decode(sample, name) is not None
    }
    likely = max(shares, key=lambda name: shares[name], default="")
    if shares.get(likely, 0.0) < _MIN_COMMON_SHARE:
        return None
    # Lower-case letters of KOI8-R are upper case in CP1251, and most letters of a text are lower case.
    if likely == "cp1251" and len(re.findall(rb"[\xc0-\xdf]", sample)) > len(re.findall(rb"[\xe0-\xff]", sample)):
        likely = "koi8-r"
    return likely if likely != expected else None


def _decode(sample: bytes, name: str) -> str | None:
    """The text of a sample, which may end within a character; None: it is not in this encoding."""
    try:
        return codecs.getincrementaldecoder(name)().decode(sample)
    except (UnicodeError, LookupError):
        return None


def _is_mostly_utf8(sample: bytes) -> bool:
    text = sample.decode(errors="replace")
    damaged = text.count("\ufffd")
    return sum(not c.isascii() for c in text) > 5 * damaged


def _count_non_ascii(part: bytes) -> int:
    return len(re.findall(rb"[\x80-\xff]", part))


_CESU8_PAIR = re.compile(rb"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]")
"""A surrogate pair encoded as UTF-8, as some database exports do."""

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
    def problem(self) -> str | None:
        """Why nothing can be read: it is no text, or seems to be UTF-16 or UTF-32 without mark and option."""
        # Their bytes are valid UTF-8 if the text is ASCII, and often if it is Chinese.
        if self.encoding.startswith(("utf-16", "utf-32")):
            return None
        names = _UTF16_AND_UTF32 if b"\0" in self.head else ()
        if (name := next((name for name in names if _is_plausible_text(self.head, name)), None)) is not None:
            return f"looks like {name} without a byte order mark: set the encoding (encoding, --encoding {name})"
        return binary_problem(self.head)

    def lines(self) -> Iterator[tuple[int, str, str | None]]:
        """Number and content of all lines that are not blank, and why one cannot be decoded."""
        for number, line in enumerate(self.file, start=1):
            if not line.isspace():
                yield number, line.rstrip("\r\n"), self.decode_problem(line) if has_lone_surrogates(line) else None

    def decode_problem(self, line: str) -> str:
        """The error message for a line that is not in the file's encoding."""
        raw = b""
        with suppress(UnicodeError):  # an encoding may have no way to write such a line again
            raw = line.encode(self.encoding, "surrogateescape")
        if self._codec_name == "utf-8" and _CESU8_PAIR.search(raw):
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
