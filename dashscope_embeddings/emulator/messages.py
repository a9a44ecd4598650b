"""The emulator's data: requests and responses, as sockets and httpx exchange them with it, and log entries."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import httpx

if TYPE_CHECKING:
    from collections.abc import Mapping

WireProtocol = Literal["native", "openai"]
"""The protocol of a path: DashScope's own, or the OpenAI-compatible one."""

Ending = Literal["whole", "closed", "reset", "unreachable", "cut", "stalled"]
"""How the connection ends: `whole` after the whole reply; `closed` or `reset` without one; `unreachable`, never made;
`cut`, closed in the middle of the body; `stalled`, open but silent."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = field(repr=False)
    query: str = ""
    """The query string, as sent, without its question mark."""


def json_object(content: bytes) -> dict[str, Any] | None:
    """The JSON object that this is; None: it is something else."""
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response, and how the connection ends after it."""

    status: int
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case; a transport adds `content-length`."""
    delay_seconds: float = 0.0
    """Seconds before the first byte."""
    ending: Ending = "whole"
    sent_bytes: int = 0
    """Bytes of the body that are sent before a `cut` or `stalled` ending; a stall with none sends no headers."""

    @property
    def visible_status(self) -> int:
        """The status that reaches the client; 0: none."""
        is_silent = self.ending == "stalled" and not self.sent_bytes
        return 0 if is_silent or self.ending in ("closed", "reset", "unreachable") else self.status


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """The fields of an embedding request, with the same names for both protocols.

    As sent, a field may be missing (None) or have another type; `embeddings.validate` checks it, or sets its default.
    """

    protocol: WireProtocol | None = None
    """None on a path that does not exist."""
    model: Any = None
    contents: Any = field(default=None, repr=False)
    """The input."""
    texts: tuple[str, ...] = ()
    """The texts, also a single one; empty if the input was neither a text nor a list of texts."""
    text_type: Any = None
    output_type: Any = None
    dimension: Any = None
    instruct: Any = None
    encoding_format: Any = None
    tokens: int = 0
    """Tokens billed: 0 for a refused request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked(EmbeddingRequest):
    """One request as the emulator received it, and the outcome."""

    time: float
    """Seconds by the emulator's clock, on arrival."""
    method: str
    path: str
    query: str
    """The query string, as sent."""
    headers: dict[str, str]
    """Names in lower case, without the authorization."""
    body: dict[str, Any]
    """The JSON object that was sent; empty if it was not one."""
    status: int
    """HTTP status of the response; 0: the connection broke before any."""
    request_id: str
    fault: str | None
    """Name of the fault that triggered."""


# --- in process, through httpx -----------------------------------------------------------------------------

_CONNECTION_ERRORS: dict[Ending, tuple[type[httpx.TransportError], str]] = {
    "unreachable": (httpx.ConnectError, "Connection refused"),
    "closed": (httpx.RemoteProtocolError, "Server disconnected without sending a response."),
    "reset": (httpx.ReadError, "Connection reset by peer"),
    "stalled": (httpx.ReadTimeout, "The read operation timed out"),
    "cut": (httpx.RemoteProtocolError, "peer closed connection without sending complete message body"),
}


def from_httpx(request: httpx.Request) -> Request:
    """The emulator's request; the body must have been read, as MockTransport does."""
    headers = dict(request.headers.items())
    return Request(request.method, request.url.path, headers, request.content, request.url.query.decode("ascii"))


def to_httpx(request: httpx.Request, response: Response) -> httpx.Response:
    """The httpx response, or the exception of httpx if the connection breaks or the read timeout passes.

    A stall is reported at once, even without a timeout: in process nothing could end the wait.
    """
    read_timeout = request.extensions.get("timeout", {}).get("read")
    is_late = read_timeout is not None and response.delay_seconds > read_timeout
    ending = "stalled" if is_late else response.ending
    if ending != "whole":
        error, message = _CONNECTION_ERRORS[ending]
        raise error(message, request=request)
    headers = {**response.headers, "content-length": str(len(response.body))}
    return httpx.Response(response.status, headers=headers, content=response.body, request=request)
