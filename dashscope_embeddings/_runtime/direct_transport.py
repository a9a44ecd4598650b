"""A transport for one connection without a proxy: httpcore's, on which httpx itself is built.

Our own pools hold a transport for each connection. That of httpx has another pool inside, and types of its own for
requests and replies, which take a tenth of the CPU time of a request. It raises httpx's errors, like a user's client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpcore
import httpx

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping


class RequestTemplate:
    """What all requests for embeddings of a client have in common, with the headers that httpx's client would add."""

    def __init__(self, url: httpx.URL, headers: httpx.Headers, timeout: httpx.Timeout) -> None:
        defaults = httpx.Headers({"Connection": "keep-alive", "User-Agent": f"python-httpx/{httpx.__version__}"})
        defaults.update(headers)
        self.raw_headers = [(b"Host", url.netloc), *defaults.raw]
        self.url, self.core_url, self.extensions = url, _core_url(url), {"timeout": timeout.as_dict()}


class PreparedRequest(httpx.Request):
    """A POST request whose address, headers and timeouts are those of `template`, because httpx builds them slowly."""

    def __init__(self, template: RequestTemplate, body: bytes) -> None:  # no `super()`: that is what takes the time
        self.method, self.url, self.core_url = "POST", template.url, template.core_url
        self.raw_headers = [*template.raw_headers, (b"Content-Length", b"%d" % len(body))]
        self.stream, self.extensions = httpx.ByteStream(body), template.extensions

    @property
    def headers(self) -> httpx.Headers:  # type: ignore[override] # an attribute there, which takes time to make
        """A copy, for transports other than ours."""
        return httpx.Headers(self.raw_headers)


@dataclass(slots=True)
class DirectResponse:
    """A response whose body has not been read: of `httpx.Response` what we need."""

    status_code: int
    headers: httpx.Headers
    extensions: Mapping[str, Any]
    stream: Any
    is_stream_consumed: bool = False

    @property
    def is_success(self) -> bool:
        """Whether its status is 2xx."""
        return self.status_code // 100 == 2  # noqa: PLR2004 - the class of the status

    def close(self) -> None:
        """Gives the connection back."""
        self.stream.close()

    async def aclose(self) -> None:
        """`close` on an event loop."""
        await self.stream.aclose()


class DirectTransport(httpx.BaseTransport):
    """`httpx.HTTPTransport` of a single connection, whose body may raise errors of httpcore."""

    def __init__(self, url: httpx.URL, ssl_context: ssl.SSLContext) -> None:
        self._connection = httpcore.HTTPConnection(_core_url(url).origin, ssl_context)

    def handle_request(self, request: httpx.Request) -> Any:
        """Sends a request, and reads the head of its reply."""
        try:
            return _direct_response(self._connection.handle_request(_core_request(request)))
        except Exception as error:
            raise as_httpx_error(error) from error

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


class AsyncDirectTransport(httpx.AsyncBaseTransport):
    """`DirectTransport` on an event loop."""

    def __init__(self, url: httpx.URL, ssl_context: ssl.SSLContext) -> None:
        self._connection = httpcore.AsyncHTTPConnection(_core_url(url).origin, ssl_context)

    async def handle_async_request(self, request: httpx.Request) -> Any:
        """Sends a request, and reads the head of its reply."""
        try:
            return _direct_response(await self._connection.handle_async_request(_core_request(request)))
        except Exception as error:
            raise as_httpx_error(error) from error

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._connection.aclose()


def as_httpx_error(error: Exception) -> Exception:
    """The error of the same name in httpx; other errors as they are."""
    if isinstance(error, httpcore.ConnectionNotAvailable):
        return httpx.RemoteProtocolError("the server closed the connection")
    kind = getattr(httpx, type(error).__name__) if type(error).__module__ == "httpcore" else None
    return error if kind is None else kind(str(error))


def _core_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _core_request(request: httpx.Request) -> httpcore.Request:
    """The request for httpcore. Returned at once: no variable holds the headers with the key."""
    if isinstance(request, PreparedRequest):
        return httpcore.Request(
            "POST",
            request.core_url,
            headers=request.raw_headers,
            content=request.stream,
            extensions=request.extensions,
        )
    return httpcore.Request(
        request.method,
        _core_url(request.url),
        headers=request.headers.raw,
        content=request.stream,
        extensions=request.extensions,
    )


def _direct_response(response: httpcore.Response) -> DirectResponse:
    return DirectResponse(response.status, httpx.Headers(response.headers), response.extensions, response.stream)
