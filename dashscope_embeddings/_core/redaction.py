"""Removes keys, header values, texts and control characters from messages of the service and of HTTP libraries.

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
_QUOTE_BYTES = 2 * _MIN_MATCH_BYTES - 1
"""Length of a run of bytes that counts as a quotation of a text."""
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
    """The message with … in place of short texts, and of what is longer and is part of any text."""
    for text in texts:
        if _MIN_MATCH_BYTES <= len(text.encode("utf-8", "surrogatepass")) <= _QUOTE_BYTES:
            message = message.replace(text, "…")
    message_bytes = message.encode("utf-8", "surrogatepass")
    quotes = _find_quotes(message_bytes, "\n".join(texts).encode("utf-8", "surrogatepass"))
    shown: list[bytes] = []
    at = 0
    for start in range(len(message_bytes)):
        if message_bytes[start : start + _QUOTE_BYTES] in quotes:
            if not shown or start > at:
                shown.append(message_bytes[at:start])
            at = start + _QUOTE_BYTES
    return "…".join(part.decode("utf-8", "ignore") for part in [*shown, message_bytes[at:]])


def _find_quotes(message: bytes, text: bytes) -> set[bytes]:
    """Every run of `_QUOTE_BYTES` bytes that is in both.

    Wherever it is in the text, it contains a block of `_MIN_MATCH_BYTES` bytes that starts at a multiple of that
    number. So only the surroundings of the blocks that the message has too are looked at, and each of these once:
    the time is linear in the text's length.
    """
    blocks = {message[at : at + _MIN_MATCH_BYTES] for at in range(len(message) - _MIN_MATCH_BYTES + 1)}
    surroundings = {
        text[max(at - _MIN_MATCH_BYTES + 1, 0) : at + _QUOTE_BYTES]
        for at in range(0, len(text), _MIN_MATCH_BYTES)
        if text[at : at + _MIN_MATCH_BYTES] in blocks
    }
    runs = {message[at : at + _QUOTE_BYTES] for at in range(len(message) - _QUOTE_BYTES + 1)}
    return runs.intersection(found[at : at + _QUOTE_BYTES] for found in surroundings for at in range(_MIN_MATCH_BYTES))
