"""What others say, fit to be shown: without keys, header values, the caller's texts and control characters.

A service that refuses a request may repeat any part of it, and its words go into errors, logs and terminals.
"""

from __future__ import annotations

import base64
import functools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import SecretStr

_TELLING = 8
"""Bytes from which on a key, a header's value or a text is no part of common words: shorter ones are not looked for."""
_EDGE = 12
"""Characters of a key that betray it where the rest was cut off."""
_LONG = 24
"""A key of so many characters is known by its end as well."""
_RUN = 2 * _TELLING - 1
"""Bytes in common with a text from which on they are taken from it."""
_LOOKED_AT = 2_000
"""Characters of a message: more than that nobody is shown."""
_KEY = re.compile(r"(?<![A-Za-z0-9_-])sk-[A-Za-z0-9_-]+")
"""A service that is asked with a wrong key may repeat it."""
_BYTES = re.compile(r"""(?:bytearray\()?\bb(['"]).*\1\)?""", re.DOTALL)
"""As Python shows raw bytes of a reply's head."""


def printable(words: str, most: int = 500) -> str:
    """In one line, not too long, and without what a terminal obeys: its characters are shown as escapes."""
    line = _KEY.sub("sk-…", " ".join(words[:_LOOKED_AT].split()))
    return escaped(line)[:most]


def escaped(words: str) -> str:
    """Control characters, and those that change the direction of writing, as Python's escapes."""
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


@dataclass(frozen=True, slots=True)
class Redaction:
    """Hides the secrets of a client, and the texts of a request, in what others say."""

    secrets: tuple[SecretStr, ...] = ()
    """The key, and the values of headers."""
    _like_ids: bool = field(init=False, default=False)
    """Whether a secret could pass for a request id."""

    def __post_init__(self) -> None:
        like_ids = any(_USUAL_ID.fullmatch(secret.get_secret_value()) for secret in self.secrets)
        object.__setattr__(self, "_like_ids", like_ids)

    def __call__(self, words: str, texts: Sequence[str] = (), most: int = 500) -> str:
        """`printable` words with … for each secret, in the forms that it may take on its way, and for each text."""
        words = words[:_LOOKED_AT]
        if self.secrets:
            words = _pattern(self.secrets).sub("…", words)
        return printable(_without_texts(words, texts) if texts else words, most)

    def of_heads(self, words: str) -> str:
        """The words of an HTTP library, without the raw bytes that it quotes."""
        return self(_BYTES.sub("…", words))

    def request_id(self, found: str | None, texts: Sequence[str] = ()) -> str | None:
        """An id as it may be shown and kept."""
        if found is None or (_USUAL_ID.fullmatch(found) and not self._like_ids):
            return found
        return self(found, texts, _LONGEST_ID)


_USUAL_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LONGEST_ID = 100
_WORD = "[A-Za-z0-9_.~+/=%-]"


@functools.lru_cache(maxsize=64)
def _pattern(secrets: tuple[SecretStr, ...]) -> re.Pattern[str]:
    """A whole word that holds a secret. In no variable, because a pattern shows what it looks for."""
    parts = [part for secret in secrets for part in secret.get_secret_value().split() if len(part) >= _TELLING]
    # An alternative that never matches stands for none.
    forms = "|".join(re.escape(form) for part in parts for form in _forms(part)) or "(?!)"
    return re.compile(f"(?<!{_WORD}){_WORD}*?(?:{forms}){_WORD}*", re.IGNORECASE)


def _forms(secret: str) -> Iterator[str]:
    """The secret, its beginning and its end where the rest was cut off, and how other notations write it."""
    yield secret
    yield secret[:_EDGE]
    if len(secret) >= _LONG:
        yield secret[-_EDGE:]
    yield quote(secret, safe="")
    raw = secret.encode()
    yield raw.hex()
    for before in range(3):
        # Inside a longer text it may begin at any of three places of a group; the edges depend on what is around it.
        whole = base64.b64encode(bytes(before) + raw).decode().rstrip("=")
        inner = whole[(0, 2, 3)[before] : len(whole) - ((before + len(raw)) % 3 != 0)]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


def _without_texts(words: str, texts: Sequence[str]) -> str:
    """The words with … for whole texts, and for any longer part of one."""
    for text in texts:
        if _TELLING <= len(text.encode("utf-8", "surrogatepass")) <= _RUN:
            words = words.replace(text, "…")
    said = words.encode("utf-8", "surrogatepass")
    asked = "\n".join(texts).encode("utf-8", "surrogatepass")
    shown, at = [], 0
    for start, end in sorted(_in_common(said, asked)):
        if at == 0 or start > at:
            shown.append(said[at:start])
        at = max(at, end)
    return "…".join(part.decode("utf-8", "ignore") for part in [*shown, said[at:]])


def _in_common(said: bytes, asked: bytes) -> set[tuple[int, int]]:
    """Where runs of `_RUN` bytes and more of `asked` stand: each holds a piece of it that begins at a multiple."""
    places: dict[bytes, list[int]] = {}
    for at in range(len(said) - _TELLING + 1):
        places.setdefault(said[at : at + _TELLING], []).append(at)
    found: set[tuple[int, int]] = set()
    for at in range(0, len(asked), _TELLING):
        piece = asked[at : at + _TELLING]
        for start in places.get(piece, ()):
            first, last, there = start, start + _TELLING, at
            while first > 0 and there > 0 and said[first - 1] == asked[there - 1]:
                first, there = first - 1, there - 1
            there = at + _TELLING
            while last < len(said) and there < len(asked) and said[last] == asked[there]:
                last, there = last + 1, there + 1
            if last - first >= _RUN:
                found.add((first, last))
                places.pop(piece, None)
    return found
