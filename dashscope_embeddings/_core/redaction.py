"""Removes keys, header values, the caller's texts and control characters from messages of the service.

An error reply may repeat any part of its request, and its message goes into exceptions, logs and terminals.
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
"""Shorter keys, header values and texts are not searched for: they may be part of ordinary words."""
_KEY_EDGE_CHARACTERS = 12
"""Length of a key's prefix or suffix that is redacted even where the rest was cut off."""
_LONG_KEY_CHARACTERS = 24
"""Minimum length of a key whose suffix is searched for as well."""
_MIN_TEXT_MATCH_BYTES = 2 * _MIN_MATCH_BYTES - 1
"""Minimum length of a common run of bytes that counts as a quotation of a text."""
_MAX_SCANNED_CHARACTERS = 2_000
"""Longer messages are cut before they are searched."""
_KEY_PATTERN = re.compile(r"(?<![A-Za-z0-9_-])sk-[A-Za-z0-9_-]+")
"""Any API key: the service may repeat a wrong one."""
_BYTES_REPR = re.compile(r"""(?:bytearray\()?\bb(['"]).*\1\)?""", re.DOTALL)
"""The repr of bytes, in which HTTP libraries quote a reply's header."""


def printable(message: str, max_characters: int = 500) -> str:
    """The message on one line, shortened, with keys removed and control characters escaped."""
    line = _KEY_PATTERN.sub("sk-…", " ".join(message[:_MAX_SCANNED_CHARACTERS].split()))
    return escape_control_characters(line)[:max_characters]


def escape_control_characters(message: str) -> str:
    """Replaces characters that a terminal interprets, also changes of writing direction, by Python's escapes."""
    if message.isprintable():
        return message
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


@dataclass(frozen=True, slots=True)
class Redactor:
    """Removes the secrets of a client, and the texts of a request, from messages."""

    secrets: tuple[SecretStr, ...] = ()
    """The key, and the values of headers."""
    _secret_may_be_id: bool = field(init=False, default=False)
    """Whether a secret has the form of a request id."""

    def __post_init__(self) -> None:
        is_like_id = any(_UUID.fullmatch(secret.get_secret_value()) for secret in self.secrets)
        object.__setattr__(self, "_secret_may_be_id", is_like_id)

    def __call__(self, message: str, texts: Sequence[str] = (), max_characters: int = 500) -> str:
        """The `printable` message with … in place of every secret, in any encoding, and of every text."""
        message = message[:_MAX_SCANNED_CHARACTERS]
        if self.secrets:
            message = _secrets_pattern(self.secrets).sub("…", message)
        return printable(_redact_texts(message, texts) if texts else message, max_characters)

    def redact_http_error(self, message: str) -> str:
        """The message of an HTTP library, without the raw bytes that it quotes."""
        return self(_BYTES_REPR.sub("…", message))

    def redact_request_id(self, request_id: str | None, texts: Sequence[str] = ()) -> str | None:
        """The id as it may be shown; a UUID needs no search."""
        if request_id is None or (_UUID.fullmatch(request_id) and not self._secret_may_be_id):
            return request_id
        return self(request_id, texts, _MAX_ID_CHARACTERS)


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_ID_CHARACTERS = 100
_KEY_CHARACTER = "[A-Za-z0-9_.~+/=%-]"


@functools.lru_cache(maxsize=64)
def _secrets_pattern(secrets: tuple[SecretStr, ...]) -> re.Pattern[str]:
    """Matches every word that contains a secret. Never store it in a local variable: its repr shows the secret."""
    parts = [part for secret in secrets for part in secret.get_secret_value().split() if len(part) >= _MIN_MATCH_BYTES]
    # "(?!)" never matches.
    forms = "|".join(re.escape(form) for part in parts for form in _encodings(part)) or "(?!)"
    return re.compile(f"(?<!{_KEY_CHARACTER}){_KEY_CHARACTER}*?(?:{forms}){_KEY_CHARACTER}*", re.IGNORECASE)


def _encodings(secret: str) -> Iterator[str]:
    """The secret, its prefix and suffix in case the rest was cut off, and its URL, hex and base64 encodings."""
    yield secret
    yield secret[:_KEY_EDGE_CHARACTERS]
    if len(secret) >= _LONG_KEY_CHARACTERS:
        yield secret[-_KEY_EDGE_CHARACTERS:]
    yield quote(secret, safe="")
    raw = secret.encode()
    yield raw.hex()
    for offset in range(3):
        # Base64 encodes groups of three bytes. Inside a longer text the secret starts at any offset of a group; the
        # first and last characters then also encode its neighbours, so they are cut off.
        whole = base64.b64encode(bytes(offset) + raw).decode().rstrip("=")
        inner = whole[(0, 2, 3)[offset] : len(whole) - ((offset + len(raw)) % 3 != 0)]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


def _redact_texts(message: str, texts: Sequence[str]) -> str:
    """The message with … in place of short texts, and of long common runs with any text."""
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
    """Ranges of the message that repeat `_MIN_TEXT_MATCH_BYTES` bytes or more of the texts.

    Every such run contains a block of `_MIN_MATCH_BYTES` bytes that starts at a multiple of that size in the texts,
    so only these blocks are looked up, and each match is extended in both directions.
    """
    positions: dict[bytes, list[int]] = {}
    for at in range(len(message_bytes) - _MIN_MATCH_BYTES + 1):
        positions.setdefault(message_bytes[at : at + _MIN_MATCH_BYTES], []).append(at)
    runs: set[tuple[int, int]] = set()
    for at in range(0, len(text_bytes), _MIN_MATCH_BYTES):
        block = text_bytes[at : at + _MIN_MATCH_BYTES]
        for start in positions.get(block, ()):
            first, last, text_at = start, start + _MIN_MATCH_BYTES, at
            while first > 0 and text_at > 0 and message_bytes[first - 1] == text_bytes[text_at - 1]:
                first, text_at = first - 1, text_at - 1
            text_at = at + _MIN_MATCH_BYTES
            while (
                last < len(message_bytes) and text_at < len(text_bytes) and message_bytes[last] == text_bytes[text_at]
            ):
                last, text_at = last + 1, text_at + 1
            if last - first >= _MIN_TEXT_MATCH_BYTES:
                runs.add((first, last))
                positions.pop(block, None)
    return runs
