"""What the connection pools for threads and for loops share: httpcore's connections, requests for them, and replies.

httpx's client and its transport add cookies, redirects, authentication, hooks, another pool inside, and types of their
own for requests and replies. Our requests have no use for them, and they take a third of a request's CPU time.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpcore
import httpx

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable


class RequestMaker:
    """Makes requests for embeddings from their bodies, with the headers that httpx's client would add."""

    def __init__(self, url: httpx.URL, headers: httpx.Headers, timeout: httpx.Timeout) -> None:
        defaults = httpx.Headers({"Connection": "keep-alive", "User-Agent": f"python-httpx/{httpx.__version__}"})
        defaults.update(headers)
        self._url, self._headers = _core_url(url), [(b"Host", url.netloc), *defaults.raw]
        self._extensions = {"timeout": timeout.as_dict()}

    def __call__(self, body: bytes) -> httpcore.Request:
        # At once, as below: no variable holds the headers with the key, because tracebacks may show it.
        return httpcore.Request(
            "POST",
            self._url,
            headers=[*self._headers, (b"Content-Length", b"%d" % len(body))],
            content=body,
            extensions=self._extensions,
        )


def core_request(request: httpx.Request | httpcore.Request) -> httpcore.Request:
    """The same request, of httpcore."""
    if isinstance(request, httpcore.Request):
        return request
    return httpcore.Request(
        request.method,
        _core_url(request.url),
        headers=request.headers.raw,
        content=request.stream,
        extensions=request.extensions,
    )


def connection_maker(
    url: httpx.URL, ssl_context: ssl.SSLContext, proxy: httpx.Proxy | None, *, is_async: bool
) -> Callable[[], Any]:
    """Makes connections to the host of an address, each of which sends one request at a time."""
    if proxy is None:
        kind: Any = httpcore.AsyncHTTPConnection if is_async else httpcore.HTTPConnection
        return functools.partial(kind, _core_url(url).origin, ssl_context)
    core_proxy = httpcore.Proxy(_core_url(proxy.url), proxy.raw_auth, proxy.headers.raw, proxy.ssl_context)
    kind = httpcore.AsyncConnectionPool if is_async else httpcore.ConnectionPool
    return functools.partial(kind, ssl_context, core_proxy, max_connections=1)


def is_head(buffer: bytes) -> bool:
    """Whether it is the head of a request, to be sent together with the body: one packet and one system call, not two.

    httpcore writes them one after the other, and ends with an empty write.
    """
    return buffer.startswith(b"POST ") and buffer.endswith(b"\r\n\r\n")


def _core_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


@dataclass(slots=True, eq=False)
class Connection:
    """A connection of a pool."""

    core: Any
    """httpcore's."""
    streams: list[Any] = field(default_factory=list)
    """Its sockets; replies are read from the last one."""
    idle_since: float = 0.0

    @property
    def is_usable(self) -> bool:
        """Whether there is no unread data: between requests, data is a shutdown notice or belongs to no request."""
        return bool(self.streams) and not self.streams[-1].get_extra_info("is_readable")


class PooledResponse:
    """A reply whose body is read from a pool's connection: of `httpx.Response` what we need.

    The pools' own kinds add how it is iterated and closed, which returns the connection if the body was read.
    """

    is_stream_consumed = False

    def __init__(self, response: httpcore.Response, pool: Any, connection: Connection) -> None:
        self.status_code, self.extensions = response.status, response.extensions
        self.headers = httpx.Headers(response.headers)
        self.is_success = response.status // 100 == 2  # noqa: PLR2004 - the class of the status
        self.stream = self
        self._body, self._pool, self._connection = response.stream, pool, connection
        self._is_complete = self._is_closed = False


class IdleConnections(deque[Connection]):
    """Connections that no request uses. That which became idle last is used first, so that the others expire.

    Threads may share it: each change is a single C call.
    """

    def __init__(self, max_seconds: float) -> None:
        super().__init__()
        self._max_seconds = max_seconds

    def add(self, connection: Connection) -> None:
        connection.idle_since = time.monotonic()
        self.append(connection)

    def take(self) -> tuple[Connection | None, list[Connection]]:
        """A usable connection, if there is one; and those that were found to be unusable."""
        unusable: list[Connection] = []
        with contextlib.suppress(IndexError):
            while not (connection := self.pop()).is_usable:
                unusable.append(connection)
            return connection, unusable
        return None, unusable

    @property
    def has_usable(self) -> bool:
        """Whether the next request needs no new connection, unless another thread is faster."""
        with contextlib.suppress(IndexError):
            return self[-1].is_usable
        return False

    def take_expired(self) -> list[Connection]:
        expired: list[Connection] = []
        with contextlib.suppress(IndexError):
            while (connection := self.popleft()).idle_since <= time.monotonic() - self._max_seconds:
                expired.append(connection)
            self.appendleft(connection)
        return expired

    @property
    def seconds_to_expiry(self) -> float:
        """Seconds until the oldest one expires; there must be one."""
        return self[0].idle_since + self._max_seconds - time.monotonic()
