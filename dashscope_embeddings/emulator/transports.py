"""The in-process transport for httpx; a broken connection becomes the exception that httpx itself would raise."""

from __future__ import annotations

import httpx

from dashscope_embeddings.emulator.messages import Request, Response


def from_httpx(request: httpx.Request) -> Request:
    """The emulator's request; the body must have been read, as MockTransport does."""
    headers = dict(request.headers.items())
    return Request(request.method, request.url.path, headers, request.content, request.url.query.decode("ascii"))


def to_httpx(request: httpx.Request, response: Response) -> httpx.Response:
    """The httpx response.

    Raises:
        httpx.TransportError: the connection breaks or the read timeout passes, as on a socket.
    """
    error = _transport_error(request, response)
    if error is not None:
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
