"""A connection pool for threads, and one thread that closes idle connections.

httpx's own pool looks at every connection for every request, which costs the more CPU time the more there are. Here a
request takes the connection that became idle last, and the pool holds as many as requests were in flight.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._runtime.core_http import Connection, IdleConnections, PooledResponse, core_request
from dashscope_embeddings._runtime.deadlines import apply_deadline, apply_deadlines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpcore
    import httpx

_apply_deadlines = functools.partial(apply_deadlines, joins_head=True)
_SWEEP_SECONDS = 5.0
"""Seconds between two looks for expired connections, while there are idle ones."""


class SyncConnectionPool:
    """As many connections as requests are in flight, each made by `connect`; idle ones are closed after some time."""

    def __init__(self, connect: Callable[[], Any], idle_seconds: float) -> None:
        self._connect, self.idle = connect, IdleConnections(idle_seconds)
        self._connections: set[Connection] = set()
        self._pid = os.getpid()
        self._is_closed = False

    def handle_request(self, request: httpx.Request | httpcore.Request) -> PooledResponse:
        """Sends a request on an idle connection, or on a new one, and reads the head of its reply."""
        request = core_request(request)
        connection, unusable = self.idle.take()
        self._close(unusable)
        if connection is None:
            connection = Connection(self._connect())
            self._connections.add(connection)
            request.extensions = {**request.extensions, "trace": _apply_deadlines}
        try:
            response = connection.core.handle_request(request)
        except BaseException:
            self._close([connection])
            raise
        stream = response.extensions["network_stream"]
        if connection.streams != [stream]:
            if connection.streams:  # a proxy had closed the last one, and httpcore opened another
                apply_deadline(stream, joins_head=True)
            connection.streams = [stream]
        return _Response(response, self, connection)

    def release(self, connection: Connection, *, is_reusable: bool) -> None:
        if os.getpid() != self._pid:
            return  # a reply that a thread of the parent was reading; its connection is the parent's
        if not is_reusable or self._is_closed:
            self._close([connection])
            return
        self.idle.add(connection)
        _sweep_later(self)

    def close_expired(self) -> None:
        self._close(self.idle.take_expired())

    def _close(self, connections: list[Connection]) -> None:
        for connection in connections:
            self._connections.discard(connection)
            with contextlib.suppress(Exception):
                connection.core.close()

    def close(self) -> None:
        """Closes all connections, those in use too."""
        self._is_closed = True
        self.idle.clear()
        self._close(list(self._connections))


class _Response(PooledResponse):
    def __iter__(self) -> Iterator[bytes]:
        yield from self._body  # type: ignore[misc] # of a sync connection
        self._is_complete = True

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        is_reusable = False
        try:
            self._body.close()  # type: ignore[union-attr] # same
            is_reusable = self._is_complete
        finally:
            self._pool.release(self._connection, is_reusable=is_reusable)


def close_unless_forked(pool: SyncConnectionPool, pid: int, getpid: Callable[[], int] = os.getpid) -> None:
    """Closes a pool that nobody uses any more; in a forked child its sockets are the parent's."""
    if getpid() == pid:
        pool.close()


# --- idle connections ---------------------------------------------------------------------------------------

_pools_with_idle: set[SyncConnectionPool] = set()
_sweeper: threading.Thread | None = None
"""The thread that closes their connections when they expire, although no further request may come."""


def _sweep_later(pool: SyncConnectionPool) -> None:
    global _sweeper  # noqa: PLW0603 - one thread for the process
    _pools_with_idle.add(pool)
    if _sweeper is None or not _sweeper.is_alive():  # nor is the parent's alive in a forked child
        _sweeper = threading.Thread(target=_sweep, name="dashscope_idle_connections", daemon=True)
        with contextlib.suppress(RuntimeError, MemoryError):  # no thread can be started: the next request tries again
            _sweeper.start()


def _sweep() -> None:
    global _sweeper  # noqa: PLW0603 - as above
    while _pools_with_idle:
        time.sleep(_SWEEP_SECONDS)
        for pool in tuple(_pools_with_idle):
            _pools_with_idle.discard(pool)
            pool.close_expired()
            if pool.idle:
                _pools_with_idle.add(pool)
    _sweeper = None
    for pool in tuple(_pools_with_idle):  # since the last look, by a request that found this thread still at work
        _sweep_later(pool)
