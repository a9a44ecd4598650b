"""What passes between the emulator's core and its faces: requests, responses, and the log's entries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

WireProtocol = Literal["native", "openai"]
"""Which envelope a path speaks: DashScope's own, or the OpenAI-compatible one."""

Ending = Literal["whole", "closed", "reset", "unreachable", "cut", "stalled"]
"""How the connection behaves: the whole reply; closed or reset without one; never made; closed in the middle
of the body; silent."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = field(repr=False)
    query: str = ""
    """What follows the question mark, as it was sent."""


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response and what the connection does around it; the faces perform both."""

    status: int
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case; a face adds `content-length`."""
    delay_seconds: float = 0.0
    """Seconds before the first byte."""
    ending: Ending = "whole"
    sent_bytes: int = 0
    """Bytes of the body that go out before a `cut` or `stalled` ending; a stall with none sends no header."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as the emulator took it, and what it answered."""

    time: float
    """By the emulator's clock, on arrival."""
    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case, without the authorization."""
    body: dict[str, Any]
    """The JSON object that was sent; empty where it was none."""
    protocol: WireProtocol | None
    """None on a path that does not exist."""
    model: str | None
    texts: tuple[str, ...]
    """The texts, a single one too; empty where the input was no text or list of texts."""
    text_type: str | None
    """As sent; None: not sent. The fields below too."""
    output_type: str | None
    dimension: int | None
    instruct: str | None
    encoding_format: str | None
    status: int
    """What was answered; 0: the connection broke before an answer."""
    tokens: int
    """What was billed: 0 for a refused request."""
    request_id: str
    fault: str | None = None
    """Name of the fault that struck."""
    query: str = ""
    """What followed the question mark of the address."""
