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

    def json_object(self) -> dict[str, Any] | None:
        """The JSON object in the body; None if the body is something else."""
        try:
            value = json.loads(self.body)
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
class RequestFields:
    """The fields of an embedding request as sent, with the same names for both protocols; None: not sent.

    Not validated: a value may have another type.
    """

    model: Any = None
    contents: Any = field(default=None, repr=False)
    """The input."""
    texts: tuple[str, ...] = ()
    """The texts, also a single one; empty if the input was neither a text nor a list of texts."""
    text_type: str | None = None
    output_type: str | None = None
    dimension: Any = None
    instruct: Any = None
    encoding_format: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked(RequestFields):
    """One request as the emulator received it, and the outcome."""

    time: float
    """Seconds by the emulator's clock, on arrival."""
    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case, without the authorization."""
    body: dict[str, Any]
    """The JSON object that was sent; empty if it was not one."""
    protocol: WireProtocol | None
    """None on a path that does not exist."""
    status: int
    """HTTP status of the response; 0: the connection broke before any."""
    tokens: int
    """Tokens billed: 0 for a refused request."""
    request_id: str
    fault: str | None = None
    """Name of the fault that triggered."""
    query: str = ""
    """The query string, as sent."""


# --- in process, through httpx -----------------------------------------------------------------------------


def from_httpx(request: httpx.Request) -> Request:
    """The emulator's request; the body must have been read, as MockTransport does."""
    headers = dict(request.headers.items())
    return Request(request.method, request.url.path, headers, request.content, request.url.query.decode("ascii"))


def to_httpx(request: httpx.Request, response: Response) -> httpx.Response:
    """The httpx response, or the exception of httpx if the connection breaks or the read timeout passes."""
    if (error := _transport_error(request, response)) is not None:
        raise error
    headers = {**response.headers, "content-length": str(len(response.body))}
    return httpx.Response(response.status, headers=headers, content=response.body, request=request)


def _transport_error(request: httpx.Request, response: Response) -> httpx.TransportError | None:
    if response.ending == "unreachable":
        return httpx.ConnectError("Connection refused", request=request)
    if response.ending == "closed":
        return httpx.RemoteProtocolError("Server disconnected without sending a response.", request=request)
    if response.ending == "reset":
        return httpx.ReadError("Connection reset by peer", request=request)
    # A stall is reported at once, even without a timeout: in process nothing could end the wait.
    read_timeout = request.extensions.get("timeout", {}).get("read")
    if response.ending == "stalled" or (read_timeout is not None and response.delay_seconds > read_timeout):
        return httpx.ReadTimeout("The read operation timed out", request=request)
    if response.ending == "cut":
        return httpx.RemoteProtocolError(
            "peer closed connection without sending complete message body "
            f"(received {response.sent_bytes} bytes, expected {len(response.body)})",
            request=request,
        )
    return None
