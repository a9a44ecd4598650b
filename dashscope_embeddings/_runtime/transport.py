"""Owned httpx clients: one for sync code, one for each event loop, rebuilt in a forked child.

What they are made of is in `connections.py` and `environment.py`; nothing before these touches httpx or a clock.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
import weakref
from dataclasses import dataclass
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING, Any

import httpx

from dashscope_embeddings._core import protocol
from dashscope_embeddings._core.exchange import Failure
from dashscope_embeddings._process import on_fork
from dashscope_embeddings._runtime import connect_errors, environment
from dashscope_embeddings._runtime.connections import (
    CancellableRequest,
    ConnectionPool,
    close_on_loop_shutdown,
    close_soon,
)
from dashscope_embeddings._runtime.file_transfer import transfer
from dashscope_embeddings._runtime.http_exchange import (
    ACCEPT_ENCODING,
    Deadline,
    DeadlineExceeded,
    UnusableBody,
    asend_and_read,
    run_with_deadline,
    send_and_read,
)
from dashscope_embeddings._runtime.user_resources import UserResources, check_open
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from dashscope_embeddings._core.exchange import Send
    from dashscope_embeddings._core.protocol import Reply
    from dashscope_embeddings._core.settings import Settings
    from dashscope_embeddings._runtime.thread_pool import StopEvent

_IDLE_SECONDS = 30.0
"""Seconds that an idle connection is kept: gateways drop them without a word after a minute or so."""
_CONNECT_TIMEOUT_SECONDS = 10.0


class Clock:
    """Real time; tests put their own in its place."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    def wait(self, halt: StopEvent, seconds: float) -> bool:
        """Lets time pass; True at once when the job is given up."""
        return halt.wait(seconds)

    async def wait_async(self, halt: asyncio.Event, seconds: float) -> bool:
        """The same for a task."""
        try:
            await asyncio.wait_for(halt.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True


@dataclass
class _LoopResources:
    """What belongs to one event loop."""

    client: httpx.AsyncClient
    slots: asyncio.Semaphore
    shutdown_hook: AsyncGenerator[None, None] | None = None
    finalizer: weakref.finalize[..., Any] | None = None


class Transport:
    """Posts bodies to the one endpoint of some settings, from any thread, loop or process."""

    def __init__(self, settings: Settings, user_resources: UserResources) -> None:
        self._settings = settings
        self._user_resources = user_resources
        self.clock = Clock()
        self._root_url = "http://emulator" if settings.address.is_emulator else settings.address.root_url
        # Read once: httpx takes as long for it as for a tenth of a request.
        self._embeddings_url = _parse_url(self._root_url + protocol.embeddings_path(settings.protocol))
        self._http_options = _build_http_options(settings)
        self._deadline_seconds = settings.deadline_seconds
        self._lock = threading.Lock()
        self._is_forked = False
        self._client: httpx.Client | None = None
        self._proxy: environment.Proxy | None = None
        """Of the environment, for our own clients."""
        self._slots = threading.BoundedSemaphore(settings.max_concurrency)
        self._loops: dict[asyncio.AbstractEventLoop, _LoopResources] = {}
        self._parent_resources: list[object] = []
        self._is_closed = False
        on_fork(self)

    def reset_after_fork(self) -> None:
        """Parent and child must not share sockets: over plain http each would read the other's replies."""
        # Kept, not closed: closing would say goodbye on the parent's connections.
        self._parent_resources += [self._client, self._loops]
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self._settings.max_concurrency)
        self._client, self._loops, self._is_forked = None, {}, True

    def acquire_user_limiter(self) -> None:
        """Waits for the user's, before every request."""
        if self._user_resources.rate_limiter is not None:
            self._user_resources.rate_limiter.acquire()

    async def aacquire_user_limiter(self) -> None:
        """`ask_rate_limiter` on the running loop."""
        if (limiter := self._user_resources.rate_limiter) is not None:
            await (limiter.aacquire() if hasattr(limiter, "aacquire") else limiter.async_acquire())

    # --- sync ---------------------------------------------------------------------------------------------

    def send(self, step: Send) -> Reply | Failure:
        """One request on the caller's thread."""
        client = self._sync_client()
        try:
            if step.endpoint is not None:
                return transfer(client, self._root_url, step, self._http_options, self._deadline_seconds)
            return send_and_read(client, self._build_request(client, step), step, Deadline(self._deadline_seconds))
        except (httpx.RequestError, UnusableBody, DeadlineExceeded) as error:
            return self._network_failure(error)
        except RuntimeError as error:
            return self._runtime_failure(error)
        except Exception as error:
            # Of no class that httpx promises. Below our own client, frames hold the head of the request with its key.
            if self._user_resources.client is None:
                raise error.with_traceback(None) from error.__cause__
            raise

    def slots(self) -> threading.BoundedSemaphore:
        """Held by a batch from first try to end: never more than `max_concurrency` at once."""
        self._check_usable()
        return self._slots

    def _sync_client(self) -> Any:
        self._check_usable()
        if self._user_resources.client is not None:
            check_open("http_client", self._user_resources.client)
            return self._user_resources.client
        with self._lock:
            if self._client is None:
                self._client = httpx.Client(**self._client_arguments(httpx.HTTPTransport))
                weakref.finalize(self, _close_unless_forked, self._client, os.getpid())
            return self._client

    # --- async --------------------------------------------------------------------------------------------

    async def asend(self, step: Send) -> Reply | Failure:
        """One request on the running loop; one that moves files in a thread, as disks keep a loop waiting."""
        if step.endpoint is not None:
            return await asyncio.to_thread(self.send, step)
        client = (await self._loop_resources()).client
        try:
            if client is self._user_resources.async_client:
                return await self._send_with_user_client(client, step)
            return await run_with_deadline(
                self._deadline_seconds, asend_and_read(client, self._build_request(client, step), step)
            )
        except (httpx.RequestError, UnusableBody, DeadlineExceeded) as error:
            return self._network_failure(error)
        except RuntimeError as error:
            return self._runtime_failure(error)

    async def _send_with_user_client(self, client: Any, step: Send) -> Reply:
        """A request of the user's client, broken off where its pool can bear it."""
        check_open("http_async_client", client)
        attempt = CancellableRequest(client)
        request = self._build_request(client, step)
        request.extensions = {**request.extensions, "trace": attempt.trace}
        return await run_with_deadline(self._deadline_seconds, attempt.run(asend_and_read(client, request, step)))

    async def aslots(self) -> asyncio.Semaphore:
        """As `slots`, for the running loop."""
        return (await self._loop_resources()).slots

    async def _loop_resources(self) -> _LoopResources:
        """The running loop's client and slots, made on first use; those of closed loops are let go."""
        self._check_usable()
        loop = asyncio.get_running_loop()
        if (found := self._loops.get(loop)) is not None:
            return found
        with self._lock:
            for dead in [known for known in self._loops if known.is_closed()]:
                gone = self._loops.pop(dead)
                if gone.finalizer is not None:
                    gone.finalizer.detach()
        slots = asyncio.Semaphore(self._settings.max_concurrency)
        if self._user_resources.async_client is not None:
            made = _LoopResources(self._user_resources.async_client, slots)
        else:
            client = httpx.AsyncClient(**self._client_arguments(httpx.AsyncHTTPTransport))
            made = _LoopResources(client, slots, await close_on_loop_shutdown(client))
            made.finalizer = weakref.finalize(self, close_soon, loop, client, os.getpid())
            made.finalizer.atexit = False
        with self._lock:
            return self._loops.setdefault(loop, made)

    # --- both ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Closes the sync client; asynchronous ones are closed by `aclose` or by the end of their loop."""
        self._is_closed = True
        if self._client is not None:
            self._client.close()

    async def aclose(self) -> None:
        """Closes the running loop's client, and the sync one."""
        self.close()
        mine = self._loops.pop(asyncio.get_running_loop(), None)
        if mine is not None and mine.shutdown_hook is not None and mine.finalizer is not None:
            mine.finalizer.detach()
            await mine.shutdown_hook.aclose()

    def _check_usable(self) -> None:
        if self._is_closed:
            raise InvalidInput("this EmbeddingClient is closed: make a new one")
        if self._is_forked and (self._user_resources.client or self._user_resources.async_client) is not None:
            raise InvalidInput(
                "an http_client that was made before a fork shares its sockets with the parent process: make "
                "the client, and this object, after the fork"
            )

    def _client_arguments(self, transport_class: Callable[..., Any]) -> dict[str, Any]:
        """What one of our own clients is made of; `kind` is one of httpx's transports."""
        if self._settings.address.is_emulator:
            from dashscope_embeddings.emulator import in_process  # noqa: PLC0415 - for this one address alone

            return {"transport": in_process().transport(), **self._http_options}
        self._proxy = environment.proxy_for(self._embeddings_url)
        verify = environment.make_ssl_context(self._embeddings_url)
        make = functools.partial(
            transport_class, verify=verify, trust_env=False, proxy=self._proxy and self._proxy.httpx_proxy
        )
        if transport_class is httpx.AsyncHTTPTransport:
            one = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=None)
            transport: Any = ConnectionPool(functools.partial(make, limits=one), _IDLE_SECONDS)
        else:
            max_connections = 2 * self._settings.max_concurrency  # documents in their slots, and queries beside them
            limits = httpx.Limits(
                max_connections=max_connections,
                max_keepalive_connections=max_connections,
                keepalive_expiry=_IDLE_SECONDS,
            )
            transport = make(limits=limits)
        return {"transport": transport, "trust_env": False, "cookies": _NoCookies(), **self._http_options}

    def _build_request(self, client: Any, step: Send) -> httpx.Request:
        """What is sent; our own clients have the headers already."""
        is_user_client = client is self._user_resources.client or client is self._user_resources.async_client
        # No variable holds the headers: an error that passes takes the frame's variables along.
        request: httpx.Request = client.build_request(
            "POST", self._embeddings_url, content=step.body, **(self._http_options if is_user_client else {})
        )
        return request

    def _runtime_failure(self, error: RuntimeError) -> Failure:
        """What a client means that was closed by another thread, or a loop that cannot look up a host's name."""
        self._check_usable()
        if "start new thread" not in str(error):
            raise error
        return Failure(
            "this process may start no more threads, and a host's name is looked up in one: raise the limit of threads "
            "(ulimit -u, the container's pids limit), or let fewer run"
        )

    def _network_failure(self, error: httpx.RequestError | UnusableBody | DeadlineExceeded) -> Failure:
        if isinstance(error, UnusableBody):
            return Failure(str(error), is_unreadable_reply=True, is_retryable=error.retry)
        if isinstance(error, DeadlineExceeded):
            return Failure(f"no whole reply within {self._deadline_seconds:g} s, the request_deadline")
        return connect_errors.explain_network_error(
            error, self._embeddings_url, self._http_options["timeout"], self._proxy
        )


def _parse_url(address: str) -> httpx.URL:
    try:
        url = httpx.URL(address)
        url.host  # noqa: B018 - it is decoded when it is read, which may fail
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise InvalidInput(f"base_url is no address that can be asked: {error}") from None
    return url


def _build_http_options(settings: Settings) -> dict[str, Any]:
    """What every request is sent with; our own headers win over the user's."""
    own = {
        "Authorization": f"Bearer {settings.api_key.get_secret_value()}",
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": ACCEPT_ENCODING,
    }
    if settings.address.workspace is not None:
        own["X-DashScope-WorkSpace"] = settings.address.workspace
    taken = {name.lower() for name in own}
    users = {name: value.get_secret_value() for name, value in settings.headers if name.lower() not in taken}
    timeout = httpx.Timeout(settings.timeout, connect=min(settings.timeout, _CONNECT_TIMEOUT_SECONDS))
    # Not a plain dict: its repr, in whatever frame an error passes, hides the key.
    return {"headers": httpx.Headers(users | own), "timeout": timeout}


class _NoCookies(CookieJar):
    """Takes none: requests are alike, and heads must not grow with what a gateway sets."""

    def extract_cookies(self, response: object, request: object) -> None:
        """Looks at nothing."""


def _close_unless_forked(client: httpx.Client, pid: int, getpid: Callable[[], int] = os.getpid) -> None:
    if getpid() == pid:
        client.close()
