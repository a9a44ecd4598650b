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

_MIN_MATCH_BYTES = 8
"""Bytes from which on a key, a header's value or a text is no part of common words: shorter ones are not looked for."""
_KEY_EDGE_CHARACTERS = 12
"""Characters of a key that betray it where the rest was cut off."""
_LONG_KEY_CHARACTERS = 24
"""A key of so many characters is known by its end as well."""
_MIN_TEXT_MATCH_BYTES = 2 * _MIN_MATCH_BYTES - 1
"""Bytes in common with a text from which on they are taken from it."""
_MAX_SCANNED_CHARACTERS = 2_000
"""Characters of a message: more than that nobody is shown."""
_KEY_PATTERN = re.compile(r"(?<![A-Za-z0-9_-])sk-[A-Za-z0-9_-]+")
"""A service that is asked with a wrong key may repeat it."""
_BYTES_REPR = re.compile(r"""(?:bytearray\()?\bb(['"]).*\1\)?""", re.DOTALL)
"""As Python shows raw bytes of a reply's head."""


def printable(message: str, max_characters: int = 500) -> str:
    """In one line, not too long, and without what a terminal obeys: its characters are shown as escapes."""
    line = _KEY_PATTERN.sub("sk-…", " ".join(message[:_MAX_SCANNED_CHARACTERS].split()))
    return escape_control_characters(line)[:max_characters]


def escape_control_characters(message: str) -> str:
    """Control characters, and those that change the direction of writing, as Python's escapes."""
    if message.isprintable():
        return message
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


@dataclass(frozen=True, slots=True)
class Redactor:
    """Hides the secrets of a client, and the texts of a request, in what others say."""

    secrets: tuple[SecretStr, ...] = ()
    """The key, and the values of headers."""
    _secret_may_be_id: bool = field(init=False, default=False)
    """Whether a secret could pass for a request id."""

    def __post_init__(self) -> None:
        like_ids = any(_UUID.fullmatch(secret.get_secret_value()) for secret in self.secrets)
        object.__setattr__(self, "_secret_may_be_id", like_ids)

    def __call__(self, message: str, texts: Sequence[str] = (), max_characters: int = 500) -> str:
        """`printable` words with … for each secret, in the forms that it may take on its way, and for each text."""
        message = message[:_MAX_SCANNED_CHARACTERS]
        if self.secrets:
            message = _secrets_pattern(self.secrets).sub("…", message)
        return printable(_redact_texts(message, texts) if texts else message, max_characters)

    def redact_http_error(self, message: str) -> str:
        """The words of an HTTP library, without the raw bytes that it quotes."""
        return self(_BYTES_REPR.sub("…", message))

    def redact_request_id(self, found: str | None, texts: Sequence[str] = ()) -> str | None:
        """An id as it may be shown and kept."""
        if found is None or (_UUID.fullmatch(found) and not self._secret_may_be_id):
            return found
        return self(found, texts, _MAX_ID_CHARACTERS)


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_ID_CHARACTERS = 100
_KEY_CHARACTER = "[A-Za-z0-9_.~+/=%-]"


@functools.lru_cache(maxsize=64)
def _secrets_pattern(secrets: tuple[SecretStr, ...]) -> re.Pattern[str]:
    """A whole word that holds a secret. In no variable, because a pattern shows what it looks for."""
    parts = [part for secret in secrets for part in secret.get_secret_value().split() if len(part) >= _MIN_MATCH_BYTES]
    # An alternative that never matches stands for none.
    forms = "|".join(re.escape(form) for part in parts for form in _encodings(part)) or "(?!)"
    return re.compile(f"(?<!{_KEY_CHARACTER}){_KEY_CHARACTER}*?(?:{forms}){_KEY_CHARACTER}*", re.IGNORECASE)


def _encodings(secret: str) -> Iterator[str]:
    """The secret, its beginning and its end where the rest was cut off, and how other notations write it."""
    yield secret
    yield secret[:_KEY_EDGE_CHARACTERS]
    if len(secret) >= _LONG_KEY_CHARACTERS:
        yield secret[-_KEY_EDGE_CHARACTERS:]
    yield quote(secret, safe="")
    raw = secret.encode()
    yield raw.hex()
    for before in range(3):
        # Inside a longer text it may begin at any of three places of a group; the edges depend on what is around it.
        whole = base64.b64encode(bytes(before) + raw).decode().rstrip("=")
        inner = whole[(0, 2, 3)[before] : len(whole) - ((before + len(raw)) % 3 != 0)]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


def _redact_texts(message: str, texts: Sequence[str]) -> str:
    """The words with … for whole texts, and for any longer part of one."""
    for text in texts:
        if _MIN_MATCH_BYTES <= len(text.encode("utf-8", "surrogatepass")) <= _MIN_TEXT_MATCH_BYTES:
            message = message.replace(text, "…")
    message_bytes = message.encode("utf-8", "surrogatepass")
    text_bytes = "\n".join(texts).encode("utf-8", "surrogatepass")
    shown, at = [], 0
    for start, end in sorted(_common_runs(message_bytes, text_bytes)):
        if at == 0 or start > at:
            shown.append(message_bytes[at:start])
        at = max(at, end)
    return "…".join(part.decode("utf-8", "ignore") for part in [*shown, message_bytes[at:]])


def _common_runs(message_bytes: bytes, text_bytes: bytes) -> set[tuple[int, int]]:
    """Where runs of `_RUN` bytes and more of `asked` stand: each holds a piece of it that begins at a multiple."""
    places: dict[bytes, list[int]] = {}
    for at in range(len(message_bytes) - _MIN_MATCH_BYTES + 1):
        places.setdefault(message_bytes[at : at + _MIN_MATCH_BYTES], []).append(at)
    found: set[tuple[int, int]] = set()
    for at in range(0, len(text_bytes), _MIN_MATCH_BYTES):
        piece = text_bytes[at : at + _MIN_MATCH_BYTES]
        for start in places.get(piece, ()):
            first, last, there = start, start + _MIN_MATCH_BYTES, at
            while first > 0 and there > 0 and message_bytes[first - 1] == text_bytes[there - 1]:
                first, there = first - 1, there - 1
            there = at + _MIN_MATCH_BYTES
            while last < len(message_bytes) and there < len(text_bytes) and message_bytes[last] == text_bytes[there]:
                last, there = last + 1, there + 1
            if last - first >= _MIN_TEXT_MATCH_BYTES:
                found.add((first, last))
                places.pop(piece, None)
    return found
