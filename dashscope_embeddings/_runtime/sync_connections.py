"""A connection pool for threads: a transport for each connection, and one thread that closes idle ones.

httpx's own pool looks at every connection for every request, which costs the more CPU time the more there are. Here a
request takes the connection that became idle last, and the pool holds as many as requests were in flight.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from dashscope_embeddings._runtime.deadlines import apply_deadline, apply_deadlines
from dashscope_embeddings._runtime.direct_transport import as_httpx_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SWEEP_SECONDS = 5.0
"""Seconds between two looks for expired connections, while there are idle ones."""


@dataclass(slots=True, eq=False)
class _Connection:
    """One transport, with one connection."""

    transport: httpx.BaseTransport
    stream: Any = None
    """Its socket; None until the first reply."""
    idle_since: float = 0.0

    @property
    def is_usable(self) -> bool:
        """Whether there is no unread data: between requests, data is a shutdown notice or belongs to no request."""
        return not self.stream.get_extra_info("is_readable")


class SyncConnectionPool(httpx.BaseTransport):
    """A pool of transports with one connection each, as many as requests are in flight.

    `make_transport` returns a transport that keeps its connection open; the pool closes it after `idle_seconds`.
    """

    def __init__(self, make_transport: Callable[[], httpx.BaseTransport], idle_seconds: float) -> None:
        self._make_transport, self._idle_seconds = make_transport, idle_seconds
        self._idle: deque[_Connection] = deque()
        self._connections: set[_Connection] = set()
        self._is_closed = False

    def handle_request(self, request: httpx.Request) -> Any:
        """Sends a request on an idle connection, or on a new one."""
        connection = self._take_idle()
        if connection is None:
            connection = _Connection(self._make_transport())
            self._connections.add(connection)
            request.extensions = {**request.extensions, "trace": apply_deadlines}
        try:
            response: Any = connection.transport.handle_request(request)
        except BaseException:
            self._drop(connection)
            raise
        stream = response.extensions["network_stream"]
        if connection.stream is not stream:
            if connection.stream is not None:  # the server closed it a moment ago, and the transport opened another
                apply_deadline(stream)
            connection.stream = stream
        response.stream = _PooledBody(response.stream, self, connection)
        return response

    def _take_idle(self) -> _Connection | None:
        """The most recently used idle connection, so that the others can expire; None if there is none."""
        with contextlib.suppress(IndexError):
            while True:
                if (connection := self._idle.pop()).is_usable:
                    return connection
                self._drop(connection)
        return None

    @property
    def has_usable(self) -> bool:
        """Whether the next request needs no new connection, unless another thread is faster."""
        with contextlib.suppress(IndexError):
            return self._idle[-1].is_usable
        return False

    def release(self, connection: _Connection, *, is_reusable: bool) -> None:
        """Returns a connection to the pool, or closes it."""
        if not is_reusable or self._is_closed:
            self._drop(connection)
            return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        _sweep_later(self)

    def close_expired(self) -> bool:
        """Closes connections that have been idle for long; returns whether others are idle."""
        oldest = time.monotonic() - self._idle_seconds
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.popleft()
                if connection.idle_since > oldest:
                    self._idle.appendleft(connection)
                    return True
                self._drop(connection)
        return False

    def _drop(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        with contextlib.suppress(Exception):
            connection.transport.close()

    def close(self) -> None:
        """Closes all connections, those in use too."""
        self._is_closed = True
        self._idle.clear()
        for connection in tuple(self._connections):
            self._drop(connection)


class _PooledBody(httpx.SyncByteStream):
    """The body of a reply, which returns its connection to the pool once it was read."""

    def __init__(self, body: Any, pool: SyncConnectionPool, connection: _Connection) -> None:
        self._body, self._pool, self._connection = body, pool, connection
        self._is_complete = self._is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._body
        except Exception as error:
            if (known := as_httpx_error(error)) is error:
                raise
            raise known from error
        self._is_complete = True

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        is_reusable = False
        try:
            self._body.close()
            is_reusable = self._is_complete
        finally:
            self._pool.release(self._connection, is_reusable=is_reusable)


def close_unless_forked(pool: SyncConnectionPool, pid: int, getpid: Callable[[], int] = os.getpid) -> None:
    """Closes a pool that nobody uses any more; in a forked child its sockets are the parent's."""
    if getpid() == pid:
        pool.close()


# --- idle connections ---------------------------------------------------------------------------------------

_pools_with_idle: set[SyncConnectionPool] = set()
_sweeping_process: int | None = None
"""Process id, because a forked child has no such thread; None while nothing is idle."""


def _sweep_later(pool: SyncConnectionPool) -> None:
    """Has the connections of a pool closed when they expire, although no further request may come."""
    global _sweeping_process  # noqa: PLW0603 - one thread for the process
    if pool not in _pools_with_idle:
        _pools_with_idle.add(pool)
    if _sweeping_process == os.getpid():
        return
    _sweeping_process = os.getpid()
    try:
        threading.Thread(target=_sweep, name="dashscope_idle_connections", daemon=True).start()
    except (RuntimeError, MemoryError):  # no thread can be started: tried again with the next request
        _sweeping_process = None


def _sweep() -> None:
    global _sweeping_process  # noqa: PLW0603 - as above
    while True:
        time.sleep(_SWEEP_SECONDS)
        for pool in tuple(_pools_with_idle):
            if not pool.close_expired():
                _pools_with_idle.discard(pool)
        if not _pools_with_idle:
            _sweeping_process = None
            if not _pools_with_idle:  # else a request has found this thread still at work
                return
            _sweeping_process = os.getpid()
