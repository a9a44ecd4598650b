"""Sends requests: with a connection pool for sync code and one per event loop, rebuilt in a forked child.

Clients with equal settings share them. A user's client is used as it is.

The pools are in `sync_connections` and `async_connections`, proxies and certificates in `environment`.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import httpx

from dashscope_embeddings._core import protocol
from dashscope_embeddings._core.failures import Failure
from dashscope_embeddings._process import on_fork
from dashscope_embeddings._runtime import connect_errors, environment
from dashscope_embeddings._runtime.async_connections import (
    AsyncConnectionPool,
    CancellableRequest,
    close_now,
    close_on_loop_shutdown,
    close_soon,
)
from dashscope_embeddings._runtime.core_http import RequestMaker, connection_maker
from dashscope_embeddings._runtime.deadlines import Clock, Deadline, DeadlineExceeded, run_with_deadline
from dashscope_embeddings._runtime.deferred_signals import IS_SUPPORTED
from dashscope_embeddings._runtime.file_transfer import FileTransfer
from dashscope_embeddings._runtime.http_request import asend_and_read, send_and_read
from dashscope_embeddings._runtime.reply_body import ACCEPT_ENCODING, UnusableBody
from dashscope_embeddings._runtime.shared_pools import SharedPool, join_shared_pool
from dashscope_embeddings._runtime.sync_connections import SyncConnectionPool, close_unless_forked
from dashscope_embeddings._runtime.user_resources import UserResources, check_open
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from dashscope_embeddings._core.protocol import Reply
    from dashscope_embeddings._core.settings import Settings
    from dashscope_embeddings._core.steps import Send

_IDLE_SECONDS = 30.0
"""Seconds until an idle connection is closed: gateways drop idle ones silently after about a minute."""
_CONNECT_TIMEOUT_SECONDS = 10.0


class Transport:
    """Sends the requests of one client, from any thread, event loop or process."""

    def __init__(self, settings: Settings, user_resources: UserResources) -> None:
        self._settings = settings
        self._user_resources = user_resources
        self.clock = Clock()
        self._root_url = "http://emulator" if settings.address.is_emulator else settings.address.root_url
        # Parsed once: httpx needs a tenth of a request's CPU time for it.
        self._embeddings_url = _parse_url(self._root_url + protocol.embeddings_path(settings.protocol))
        self._http_options = _build_http_options(settings)
        self._make_request = RequestMaker(self._embeddings_url, **self._http_options)
        self._deadline_seconds = settings.deadline_seconds
        self._file_transfer = FileTransfer(self._root_url, self._http_options, settings.deadline_seconds)
        self._lock = threading.Lock()
        self._is_forked = False
        self._sync_pool: SharedPool | None = None
        self._proxy: environment.Proxy | None = None
        """From the environment; a user's client has its own."""
        self._loops: dict[asyncio.AbstractEventLoop, SharedPool] = {}
        self._parent_resources: list[object] = []
        self._is_closed = False
        on_fork(self)

    def reset_after_fork(self) -> None:
        """Drops the sockets: over plain http, parent and child would read replies to each other's requests."""
        # Kept, not closed: closing would send shutdown notices on the parent's connections.
        self._parent_resources += [self._sync_pool, self._loops]
        self._lock = threading.Lock()
        self._sync_pool, self._loops, self._is_forked = None, {}, True

    def acquire_user_limiter(self) -> None:
        if self._user_resources.rate_limiter is not None:
            self._user_resources.rate_limiter.acquire()

    async def aacquire_user_limiter(self) -> None:
        if (limiter := self._user_resources.rate_limiter) is not None:
            await (limiter.aacquire() if hasattr(limiter, "aacquire") else limiter.async_acquire())

    # --- sync ---------------------------------------------------------------------------------------------

    @property
    def can_send_interruptibly(self) -> bool:
        """Whether a request can be sent now so that `DeferredSignals` hold up no signal handler for long.

        Neither the lookup of a name nor a user's client or rate limiter can be interrupted where that is safe.
        """
        pool = None if self._sync_pool is None else self._sync_pool.pool
        if not isinstance(pool, SyncConnectionPool) or self._proxy or self._user_resources.rate_limiter:
            return False
        return IS_SUPPORTED and pool.idle.has_usable

    def send(self, step: Send) -> Reply | Failure:
        """Sends one request on this thread."""
        client = self._sync_client()
        try:
            if step.endpoint is not None:
                return self._file_transfer.send(client, step, step.endpoint)
            return send_and_read(client, self._build_request(client, step), step, Deadline(self._deadline_seconds))
        except Exception as error:
            if (failure := self._failure_of(error, step)) is not None:
                return failure
            # Frames inside our own client hold the request headers with the key: drop them.
            if self._user_resources.client is None:
                raise error.with_traceback(None) from error.__cause__
            raise

    def _sync_client(self) -> Any:
        self._check_usable()
        if self._user_resources.client is not None:
            check_open("http_client", self._user_resources.client)
            return self._user_resources.client
        with self._lock:
            if self._sync_pool is None:
                self._sync_pool = self._join_pool(None)
            return self._sync_pool.pool

    # --- async --------------------------------------------------------------------------------------------

    async def asend(self, step: Send) -> Reply | Failure:
        """Sends one request on the running loop; transfers files in a thread, because disk access blocks."""
        if step.endpoint is not None and step.endpoint.has_file:
            return await asyncio.to_thread(self.send, step)
        shared = await self._pool_of_loop()
        try:
            sending = self._asend(shared.pool, step, shared.turns)
            return await run_with_deadline(self._deadline_of(step), sending)
        except Exception as error:
            if (failure := self._failure_of(error, step)) is not None:
                return failure
            raise

    async def _asend(self, client: Any, step: Send, turns: asyncio.Lock) -> Reply:
        request = self._build_request(client, step)
        if client is not self._user_resources.async_client:
            return await asend_and_read(client, request, step, turns)
        # A cancellation waits for a step where the pool of the user's client cannot leak.
        check_open("http_async_client", client)
        attempt = CancellableRequest(client)
        request.extensions = {**request.extensions, "trace": attempt.trace}
        return await attempt.run(asend_and_read(client, request, step, turns))

    async def _pool_of_loop(self) -> SharedPool:
        """What sends on the running loop, made on first use; that of closed loops is dropped."""
        self._check_usable()
        loop = asyncio.get_running_loop()
        if (known := self._loops.get(loop)) is not None:
            return known
        with self._lock:
            for closed_loop in [other for other in self._loops if other.is_closed()]:
                del self._loops[closed_loop]
        if self._user_resources.async_client is not None:
            shared = SharedPool(self._user_resources.async_client)
        else:
            shared = self._join_pool(loop)
            await close_on_loop_shutdown(shared.pool)
        with self._lock:
            return self._loops.setdefault(loop, shared)

    # --- both ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Closes the sync pool, unless others use it. That of a loop is closed by `aclose`, or when its loop ends."""
        self._is_closed = True
        shared, self._sync_pool = self._sync_pool, None
        if shared is not None and shared.leave(self):
            shared.pool.close()

    async def aclose(self) -> None:
        self.close()
        shared = self._loops.pop(asyncio.get_running_loop(), None)
        if shared is not None and shared.leave(self):
            await close_now(shared.pool)

    def _check_usable(self) -> None:
        if self._is_closed:
            raise InvalidInput("this EmbeddingClient is closed: make a new one")
        if self._is_forked and (self._user_resources.client or self._user_resources.async_client) is not None:
            raise InvalidInput(
                "an http_client that was made before a fork shares its sockets with the parent process: make "
                "the client, and this object, after the fork"
            )

    def _join_pool(self, loop: asyncio.AbstractEventLoop | None) -> SharedPool:
        """The pool of a loop, or for threads, with the proxy and certificates that the environment names now."""
        if self._settings.address.is_emulator:
            from dashscope_embeddings.emulator import in_process  # noqa: PLC0415 - only needed for this address

            return SharedPool(in_process().transport())
        self._proxy = environment.proxy_for(self._embeddings_url)
        return join_shared_pool(self, self._digest(), loop, functools.partial(self._make_pool, loop))

    def _digest(self) -> bytes:
        """A hash of address, headers, timeouts, proxy and certificates: clients with the same one share connections.

        One expression, so that no local variable, which tracebacks can show, holds the key.
        """
        return hashlib.sha256(
            repr(
                (
                    self._root_url,
                    self._http_options["headers"].raw,
                    self._http_options["timeout"],
                    self._deadline_seconds,
                    self._proxy
                    and (self._proxy.variable, self._proxy.httpx_proxy.url, self._proxy.httpx_proxy.raw_auth),
                    environment.certificates_version(),
                )
            ).encode()
        ).digest()

    def _make_pool(self, loop: asyncio.AbstractEventLoop | None) -> SharedPool:
        ssl_context = environment.make_ssl_context(self._embeddings_url)
        proxy = None if self._proxy is None else self._proxy.httpx_proxy
        connect = connection_maker(self._embeddings_url, ssl_context, proxy, is_async=loop is not None)
        if loop is None:
            shared = SharedPool(SyncConnectionPool(connect, _IDLE_SECONDS))
            weakref.finalize(shared, close_unless_forked, shared.pool, os.getpid())
        else:
            shared = SharedPool(AsyncConnectionPool(connect, _IDLE_SECONDS))
            weakref.finalize(shared, close_soon, loop, shared.pool, os.getpid()).atexit = False
        return shared

    def _build_request(self, client: Any, step: Send) -> Any:
        """The request for a step. No local variable holds the headers with the key: tracebacks may show them."""
        if step.endpoint is not None:
            return self._file_transfer.build_request(client, step, step.endpoint)
        if isinstance(client, SyncConnectionPool | AsyncConnectionPool):
            return self._make_request(step.body)
        # By types that httpx2 takes too: text, and a dict of timeouts.
        return getattr(client, "build_request", httpx.Request)(
            "POST",
            str(self._embeddings_url),
            content=step.body,
            headers=self._http_options["headers"],
            extensions={"timeout": self._http_options["timeout"].as_dict()},
        )

    def _deadline_of(self, step: Send) -> float:
        return (step.endpoint and step.endpoint.deadline_seconds) or self._deadline_seconds

    def _failure_of(self, error: Exception, step: Send) -> Failure | None:
        """Why there is no reply; None for an error that says nothing of the network."""
        if isinstance(error, UnusableBody):
            return Failure(str(error), is_unreadable_reply=True, is_retryable=error.retry)
        if isinstance(error, DeadlineExceeded):
            whose = "" if step.endpoint and step.endpoint.deadline_seconds else ", the request_deadline"
            return Failure(f"no whole reply within {self._deadline_of(step):g} s{whose}")
        if isinstance(error, RuntimeError):
            self._check_usable()  # another thread may have closed the client
            if self._user_resources.async_client is not None and "loop" in str(error):
                raise InvalidInput(
                    "http_async_client has connections of another event loop, and asyncio.run makes a loop each time: "
                    "make the client, and this object, in the loop that uses them"
                )
            return connect_errors.explain_thread_shortage(error)
        if connect_errors.is_request_error(error):
            return connect_errors.explain_network_error(
                error, self._embeddings_url, self._http_options["timeout"], self._proxy
            )
        return None


def _parse_url(address: str) -> httpx.URL:
    try:
        url = httpx.URL(address)
        url.host  # noqa: B018 - decoding it may fail
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise InvalidInput(f"base_url is not a valid address: {error}") from None
    return url


def _build_http_options(settings: Settings) -> dict[str, Any]:
    """Headers and timeouts of every request; our headers win over the user's `default_headers`."""
    own = {
        "Authorization": f"Bearer {settings.api_key.get_secret_value()}",
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": ACCEPT_ENCODING,
    }
    if settings.address.workspace is not None:
        own["X-DashScope-WorkSpace"] = settings.address.workspace
    own_names = {name.lower() for name in own}
    users = {name: value.get_secret_value() for name, value in settings.headers if name.lower() not in own_names}
    timeout = httpx.Timeout(settings.timeout, connect=min(settings.timeout, _CONNECT_TIMEOUT_SECONDS))
    # Not a plain dict: the repr of `Headers`, which a traceback may show, hides the key.
    return {"headers": httpx.Headers(users | own), "timeout": timeout}
