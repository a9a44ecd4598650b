"""A connection pool for one event loop whose requests may be cancelled at any time without leaking connections.

httpx's own pool can leak: if a task is cancelled between two steps of a request, the clean-up is itself interrupted,
and the connection counts as in use for good. Here a cancelled request closes the one connection that it used. A user's
client has only httpx's pool: there a request is cancelled only at the steps where httpx cleans up after itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from dashscope_embeddings._runtime.core_http import Connection, IdleConnections, PooledResponse, core_request, is_head
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine

    import httpcore
    import httpx

T = TypeVar("T")

_GRACE_SECONDS = 0.05
"""Longest time in seconds that a cancelled caller waits for a TCP connect or a TLS handshake to finish."""
_traced_clients: weakref.WeakSet[Any] = weakref.WeakSet()
"""Users' clients that report trace events. Others, such as mock transports, have no pool that could leak."""
_kept_tasks: set[asyncio.Task[Any]] = set()


def _keep(task: asyncio.Task[Any]) -> None:
    """Holds a task that nobody awaits until it ends: a loop refers to its tasks weakly."""
    _kept_tasks.add(task)
    task.add_done_callback(_kept_tasks.discard)


class CancellableRequest:
    """One request in its own task; if the caller is cancelled, the task is cancelled at a safe step.

    Pass `self.trace` as httpx's request extension `trace`, which reports the steps.
    """

    def __init__(self, client: Any = None) -> None:
        self._client = client
        """The user's client; None for our own, whose transport is closed after a cancellation."""
        self._http_event: str | None = None
        self._is_cancelled = False
        self.opened_streams: list[Any] = []
        """Opened sockets, to be closed after a cancellation: httpcore loses one whose TLS handshake is cancelled."""

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """Records the present step of the request; raises if the request is cancelled and this step is safe."""
        if self._http_event is None and self._client is not None:
            _traced_clients.add(self._client)
        step, _, state = event.rpartition(".")
        self._http_event = step if state == "started" else ""
        if state == "complete" and step.endswith("connect_tcp"):
            self.opened_streams.append(info["return_value"])
        if state == "complete" and self._client is None and step.endswith(("connect_tcp", "start_tls")):
            _join_writes(info["return_value"])
        if self._is_cancelled and self._is_safe_to_cancel:
            raise asyncio.CancelledError

    @property
    def _may_cancel_anywhere(self) -> bool:
        """Whether the request may be cancelled at any step after the grace period."""
        return self._client is None or self._client not in _traced_clients

    @property
    def _is_safe_to_cancel(self) -> bool:
        """Whether httpcore closes the connection if the request is cancelled at the present step."""
        if self._http_event is None:
            return self._may_cancel_anywhere
        return self._http_event.startswith("http") and not self._http_event.endswith("response_closed")

    async def run(self, request: Coroutine[Any, Any, T]) -> T:
        """The result of the request; a cancelled caller returns at once, or after the grace period."""
        task = asyncio.create_task(request)
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            self._is_cancelled = True
            await self._cancel(task)
            raise
        return task.result()

    async def _cancel(self, task: asyncio.Task[Any]) -> None:
        task.add_done_callback(_consume_exception)
        if not self._is_safe_to_cancel:
            await _wait_despite_cancellation(task, _GRACE_SECONDS)
        if self._is_safe_to_cancel or self._may_cancel_anywhere:
            task.cancel()
            await _wait_despite_cancellation(task)
        elif not task.done():
            _keep(task)  # it ends later: at its next safe step, or by a timeout


def _consume_exception(task: asyncio.Task[Any]) -> None:
    """Otherwise asyncio logs that the exception was never retrieved."""
    if not task.cancelled():
        task.exception()


async def _wait_despite_cancellation(task: asyncio.Task[Any], seconds: float = math.inf) -> bool:
    """Waits for a task even if the waiting is cancelled, any number of times; returns whether it was."""
    cancelled = False
    end = time.monotonic() + seconds
    while not task.done() and (left := end - time.monotonic()) > 0:
        try:
            await asyncio.wait((task,), timeout=None if left == math.inf else left)
        except asyncio.CancelledError:  # noqa: PERF203 - it may happen again, and the wait goes on
            cancelled = True
    return cancelled


def _join_writes(stream: Any) -> None:
    """Has the head of a request written together with its body."""
    stream_type, stream_ref, head = type(stream), weakref.ref(stream), b""

    async def read(max_bytes: int, timeout: float | None = None) -> bytes:
        if head:
            await write(b"", timeout)
        data: bytes = await stream_type.read(stream_ref(), max_bytes, timeout)
        return data

    async def write(buffer: bytes, timeout: float | None = None) -> None:
        nonlocal head
        if not head and is_head(buffer):
            head = buffer
            return
        buffer, head = head + buffer, b""
        await stream_type.write(stream_ref(), buffer, timeout)

    stream.read, stream.write = read, write


class AsyncConnectionPool:
    """As many connections as requests are in flight, each made by `connect`; idle ones are closed after some time."""

    def __init__(self, connect: Callable[[], Any], idle_seconds: float) -> None:
        self._connect, self.idle = connect, IdleConnections(idle_seconds)
        self._connections: set[Connection] = set()
        self._expiry: asyncio.TimerHandle | None = None
        """The next look for expired connections; None if no connection is idle."""
        self._is_closed = False

    async def handle_async_request(self, request: httpx.Request | httpcore.Request) -> PooledResponse:
        """Sends a request on an idle connection, or on a new one, and reads the head of its reply."""
        request = core_request(request)
        connection, unusable = self.idle.take()
        await self._close(unusable)
        is_new = connection is None
        if connection is None:
            connection = Connection(self._connect())
            self._connections.add(connection)
        try:
            if is_new:
                response = await self._send_first(connection, request)
            else:
                response = await connection.core.handle_async_request(request)
        # After any other BaseException the loop is ending and cannot await; `aclose` still closes the connection.
        except (Exception, asyncio.CancelledError):
            await self._close([connection])
            raise
        return _Response(response, self, connection)

    async def _send_first(self, connection: Connection, request: httpcore.Request) -> Any:
        attempt = CancellableRequest()
        connection.streams = attempt.opened_streams
        request.extensions = {**request.extensions, "trace": attempt.trace}
        response: Any = await attempt.run(connection.core.handle_async_request(request))
        connection.streams.append(response.extensions["network_stream"])
        return response

    async def release(self, connection: Connection, body: Any) -> None:
        """Returns a connection to the pool if its `body` was read to the end; closes it if `body` is None."""
        if body is None or self._is_closed:
            await self._close([connection])
            return
        try:
            await body.aclose()
        except (Exception, asyncio.CancelledError):
            await self._close([connection])
            raise
        self.idle.add(connection)
        if self._expiry is None:
            self._expire_later(asyncio.get_running_loop())

    def _expire_later(self, loop: asyncio.AbstractEventLoop) -> None:
        """Has idle connections closed when they expire, although no further request may come."""
        self._expiry = loop.call_later(max(self.idle.seconds_to_expiry, 0.0), self._close_expired, loop)

    def _close_expired(self, loop: asyncio.AbstractEventLoop) -> None:
        self._expiry = None
        _keep(loop.create_task(self._close(self.idle.take_expired())))
        if self.idle:
            self._expire_later(loop)

    async def _close(self, connections: list[Connection]) -> None:
        """Closes connections, even if the caller is cancelled meanwhile."""
        if not connections:
            return
        self._connections.difference_update(connections)
        if await _wait_despite_cancellation(asyncio.create_task(_close_all(connections))):
            raise asyncio.CancelledError

    async def aclose(self) -> None:
        """Closes all connections, those in use too."""
        self._is_closed = True
        self.idle.clear()
        if self._expiry is not None:
            self._expiry.cancel()
        await self._close(list(self._connections))


async def _close_all(connections: list[Connection]) -> None:
    for connection in connections:
        for resource in (connection.core, *connection.streams):
            with contextlib.suppress(Exception):
                await resource.aclose()


class _Response(PooledResponse):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._body:  # type: ignore[union-attr] # of an asynchronous connection
            yield chunk
        self._is_complete = True

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await self._pool.release(self._connection, self._body if self._is_complete else None)


# --- shutdown of loops --------------------------------------------------------------------------------

_shutdown_hooks: dict[Any, tuple[asyncio.AbstractEventLoop, AsyncGenerator[None, None]]] = {}
"""Pool → its loop, and a generator that was started there and closes the pool at its end."""
_CLOSE_DELAY_SECONDS = 1.0


async def close_on_loop_shutdown(pool: Any) -> None:
    """Has a pool closed by `loop.shutdown_asyncgens()`, the only hook that a loop awaits at shutdown.

    `weakref.finalize` and `__del__` cannot await, and may run when the loop is closed already.
    """

    async def close_at_end() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            _shutdown_hooks.pop(pool, None)
            await pool.aclose()

    if pool in _shutdown_hooks:
        return
    for stale in [other for other, (loop, _) in list(_shutdown_hooks.items()) if loop.is_closed()]:
        _shutdown_hooks.pop(stale, None)
    _shutdown_hooks[pool] = asyncio.get_running_loop(), close_at_end()
    await anext(_shutdown_hooks[pool][1])


async def close_now(pool: Any) -> None:
    """Closes a pool on its loop, which runs."""
    if (hook := _shutdown_hooks.get(pool)) is not None:
        await hook[1].aclose()


def close_soon(loop: asyncio.AbstractEventLoop, pool: Any, pid: int) -> None:
    """Schedules the closing of a pool that nobody uses any more on its loop, if that still runs."""
    if os.getpid() != pid or loop.is_closed() or pool not in _shutdown_hooks:
        return
    with contextlib.suppress(RuntimeError):  # another thread closed the loop
        # Not at once: `asyncio.run` cancels remaining tasks at its end, so a closing task would be cancelled halfway,
        # and right after that the loop's own shutdown closes everything.
        loop.call_soon_threadsafe(
            loop.call_later, _CLOSE_DELAY_SECONDS, lambda: _keep(loop.create_task(close_now(pool)))
        )


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs on this thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def check_running_loop() -> None:
    """Raises InvalidInput if no asyncio event loop runs on this thread."""
    if running_loop() is None:
        raise InvalidInput(
            "asynchronous calls need an event loop of asyncio, and none runs here. Trio is not supported: call "
            "await trio.to_thread.run_sync(client.embed, texts) there, or run anyio with its asyncio backend"
        )
