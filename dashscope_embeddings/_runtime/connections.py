"""Connections of one event loop, and requests that may be cancelled at any time.

A cancelled task can leave httpx's pool with a connection that counts as in use for good: between two steps
of a request its clean-up is itself interrupted. So every connection here is a transport of its own, and whoever
is cancelled closes the one that it used. A user's own client cannot be taken apart: there a request is broken off
only at the steps where httpx cleans up after itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine

T = TypeVar("T")

_GRACE_SECONDS = 0.05
"""Seconds that a cancelled caller waits at most for a TCP connection or a TLS handshake that is under way."""
_traced_clients: weakref.WeakSet[Any] = weakref.WeakSet()
"""Users' clients that tell their steps: others, such as those made for tests, have no pool that could lose anything."""
_abandoned_tasks: set[asyncio.Task[Any]] = set()


class CancellableRequest:
    """One request in a task of its own, which its caller's cancellation ends at a safe step.

    What it is doing is told by httpx's request extension `trace`, for which `self.trace` has to be passed.
    """

    def __init__(self, client: Any = None) -> None:
        self._client = client
        """A user's, whose connections are not ours; None: the whole transport is closed after a cancellation."""
        self._http_event: str | None = None
        self._is_cancelled = False
        self.opened_streams: list[Any] = []
        """Sockets that were opened: httpcore forgets one whose TLS handshake is cancelled."""

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """Notes which step the request is at; ends one that nobody wants any more."""
        if self._http_event is None and self._client is not None:
            _traced_clients.add(self._client)
        step, _, state = event.rpartition(".")
        self._http_event = step if state == "started" else ""
        if state == "complete" and step.endswith("connect_tcp"):
            self.opened_streams.append(info["return_value"])
        if self._is_cancelled and self._is_safe_to_cancel:
            raise asyncio.CancelledError

    @property
    def _may_cancel_anywhere(self) -> bool:
        """Whether any step will do once the grace is over."""
        return self._client is None or self._client not in _traced_clients

    @property
    def _is_safe_to_cancel(self) -> bool:
        """Whether httpcore closes the connection of a request that is cancelled at this step."""
        if self._http_event is None:
            return self._may_cancel_anywhere
        return self._http_event.startswith("http") and not self._http_event.endswith("response_closed")

    async def run(self, request: Coroutine[Any, Any, T]) -> T:
        """The result of the request; a cancelled caller gets away at once, or after the grace."""
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
            # It ends by itself, at its next safe step or by its timeouts.
            _abandoned_tasks.add(task)
            task.add_done_callback(_abandoned_tasks.discard)


def _consume_exception(task: asyncio.Task[Any]) -> None:
    """Else asyncio would complain of an error that nobody looked at."""
    if not task.cancelled():
        task.exception()


async def _wait_despite_cancellation(task: asyncio.Task[Any], seconds: float = math.inf) -> bool:
    """Waits for a task, however often the waiting is cancelled; returns whether it was."""
    cancelled = False
    end = time.monotonic() + seconds
    while not task.done() and (left := end - time.monotonic()) > 0:
        try:
            await asyncio.wait((task,), timeout=None if left == math.inf else left)
        except asyncio.CancelledError:  # noqa: PERF203 - it may come again, and the waiting goes on
            cancelled = True
    return cancelled


@dataclass(slots=True, eq=False)
class _Connection:
    """One transport, with one connection."""

    transport: httpx.AsyncBaseTransport
    streams: list[Any] = field(default_factory=list)
    """What is closed beside it; the last is the one that replies come from."""
    idle_since: float = 0.0

    @property
    def is_usable(self) -> bool:
        """Whether the server is silent: what comes between two requests is its farewell, or no answer to the next."""
        return bool(self.streams) and not self.streams[-1].get_extra_info("is_readable")

    async def close(self) -> None:
        for closing in (self.transport, *self.streams):
            with contextlib.suppress(Exception):
                await closing.aclose()


class ConnectionPool(httpx.AsyncBaseTransport):
    """A transport that keeps as many others as requests are in flight, each with one connection.

    `make` gives a transport that keeps its connection for ever; here it is kept for `idle` seconds.
    """

    def __init__(self, make_transport: Callable[[], httpx.AsyncBaseTransport], idle_seconds: float) -> None:
        self._make_transport, self._idle_seconds = make_transport, idle_seconds
        self._idle: deque[_Connection] = deque()
        self._connections: set[_Connection] = set()
        self._is_closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request on an idle connection, or on a new one."""
        connection = await self._take_idle()
        try:
            if connection is not None:
                response = await connection.transport.handle_async_request(request)
            else:
                connection = _Connection(self._make_transport())
                self._connections.add(connection)
                response = await self._send_first(connection, request)
        # Nothing can be awaited while the loop ends in any other way; `aclose` still knows the connection.
        except (Exception, asyncio.CancelledError):
            if connection is not None:
                await self._drop(connection)
            raise
        if not isinstance(response.stream, httpx.AsyncByteStream):
            raise TypeError("a transport for event loops must give an asynchronous stream")
        response.stream = _PooledBody(response.stream, self, connection)
        return response

    async def _send_first(self, connection: _Connection, request: httpx.Request) -> httpx.Response:
        attempt = CancellableRequest()
        connection.streams = attempt.opened_streams
        request.extensions = {**request.extensions, "trace": attempt.trace}
        response = await attempt.run(connection.transport.handle_async_request(request))
        connection.streams.append(response.extensions["network_stream"])
        return response

    async def _take_idle(self) -> _Connection | None:
        """The connection that was used last: the others may grow old and be closed."""
        oldest = time.monotonic() - self._idle_seconds
        while self._idle and self._idle[0].idle_since < oldest:
            await self._drop(self._idle.popleft())
        while self._idle:
            if (connection := self._idle.pop()).is_usable:
                return connection
            await self._drop(connection)
        return None

    async def release(self, connection: _Connection, body: httpx.AsyncByteStream | None) -> None:
        """Takes a connection back with the `body` that was read to its end; None: it was not."""
        if body is not None and not self._is_closed:
            try:
                await body.aclose()
            except (Exception, asyncio.CancelledError):
                await self._drop(connection)
                raise
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            await self._drop(connection)

    async def _drop(self, connection: _Connection) -> None:
        """Closes a connection, even where its user is cancelled meanwhile."""
        if await _wait_despite_cancellation(asyncio.create_task(connection.close())):
            self._connections.discard(connection)
            raise asyncio.CancelledError
        self._connections.discard(connection)

    async def aclose(self) -> None:
        """Closes all connections, those in use too."""
        self._is_closed = True
        self._idle.clear()
        for connection in list(self._connections):
            await self._drop(connection)


class _PooledBody(httpx.AsyncByteStream):
    """The body of a reply, which gives its connection back when it was read."""

    def __init__(self, body: httpx.AsyncByteStream, pool: ConnectionPool, connection: _Connection) -> None:
        self._body, self._pool, self._connection = body, pool, connection
        self._is_complete = self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._body:
            yield part
        self._is_complete = True

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await self._pool.release(self._connection, self._body if self._is_complete else None)


# --- loops --------------------------------------------------------------------------------------------------

_shutdown_hooks: dict[httpx.AsyncClient, tuple[asyncio.AbstractEventLoop, AsyncGenerator[None, None]]] = {}
_CLOSE_DELAY_SECONDS = 1.0
_close_tasks: set[asyncio.Task[None]] = set()


async def close_on_loop_shutdown(client: httpx.AsyncClient) -> AsyncGenerator[None, None]:
    """A started generator whose end closes the client: a loop that shuts down runs it by itself.

    Nothing else is asked at that moment; `weakref.finalize` and `__del__` cannot await, and the loop may be
    gone when they come.
    """

    async def close_at_end() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            _shutdown_hooks.pop(client, None)
            await client.aclose()

    for dead in [known for known, (loop, _) in list(_shutdown_hooks.items()) if loop.is_closed()]:
        _shutdown_hooks.pop(dead, None)
    hook = close_at_end()
    await anext(hook)
    _shutdown_hooks[client] = asyncio.get_running_loop(), hook
    return hook


def close_soon(loop: asyncio.AbstractEventLoop, client: httpx.AsyncClient, pid: int) -> None:
    """Nobody holds the sessions any more: the loop, if it still runs, is to close their client."""
    if os.getpid() != pid or loop.is_closed():
        return
    with contextlib.suppress(RuntimeError):  # closed by another thread meanwhile
        # Not at once: at the end of `asyncio.run` a task of ours would be cancelled in the middle of closing,
        # where a moment later the loop's own shutdown closes everything.
        loop.call_soon_threadsafe(loop.call_later, _CLOSE_DELAY_SECONDS, _close_now, client)


def _close_now(client: httpx.AsyncClient) -> None:
    if (hook := _shutdown_hooks.get(client)) is not None:
        task = asyncio.ensure_future(hook[1].aclose())
        _close_tasks.add(task)
        task.add_done_callback(_close_tasks.discard)


def check_running_loop() -> None:
    """Raises: InvalidInput: no event loop of asyncio runs here."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise InvalidInput(
            "asynchronous calls need an event loop of asyncio, and none runs here. Trio is not supported: call "
            "await trio.to_thread.run_sync(client.embed, texts) there, or run anyio with its asyncio backend"
        ) from None
