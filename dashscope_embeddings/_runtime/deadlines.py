"""The clock, and the limit of a request's total time: the timeouts of a transport limit each single wait only."""

from __future__ import annotations

import asyncio
import functools
import math
import ssl
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import httpcore

from dashscope_embeddings._runtime.core_http import is_head
from dashscope_embeddings._runtime.deferred_signals import signals_of_this_thread

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine

    from dashscope_embeddings._core.protocol import Reply
    from dashscope_embeddings._runtime.deferred_signals import DeferredSignals
    from dashscope_embeddings._runtime.thread_pool import StopEvent

_MIN_BYTES_PER_SECOND = 32_000
"""Bytes per second. The transfer of a file at this speed never exceeds its deadline."""


class Clock:
    """Real time; tests replace it."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, halt: StopEvent, seconds: float) -> bool:
        """Sleeps; returns True as soon as `halt` is set."""
        return halt.wait(seconds)

    async def wait_async(self, halt: asyncio.Event, seconds: float) -> bool:
        try:
            await asyncio.wait_for(halt.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True


class DeadlineExceeded(Exception):  # noqa: N818 - the name is the event
    """A request did not end within its deadline, although the server was never silent for `timeout` seconds."""


class Deadline:
    """The time at which a request must have ended."""

    def __init__(self, seconds: float, upload_bytes: int = 0) -> None:
        """`upload_bytes`: size of a file to send, which extends the deadline."""
        self.ends_at = time.monotonic() + seconds + upload_bytes / _MIN_BYTES_PER_SECOND

    def extend_for(self, byte_count: int) -> None:
        """Moves the deadline later, by the time that so many bytes of a downloaded file may take."""
        self.ends_at += byte_count / _MIN_BYTES_PER_SECOND

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.ends_at - time.monotonic()


class GracePeriod:
    """How long a caller that wants to stop waits for what is in flight: it is paid for, if it is answered."""

    def __init__(self, is_stopped: Callable[[], bool], seconds: Callable[[], float] = lambda: GRACE_SECONDS) -> None:
        """`is_stopped`: whether the caller wants to stop; called by its own thread only."""
        self._is_stopped, self._seconds = is_stopped, seconds
        self._ends_at = math.inf

    def has_begun(self) -> bool:
        """Whether the caller wants to stop."""
        if self._ends_at == math.inf and self._is_stopped():
            self._ends_at = time.monotonic() + self._seconds()
        return self._ends_at < math.inf

    def use_up(self) -> float:
        """Its seconds, for a caller that is interrupted; 0 if that had stopped, or had been interrupted, before."""
        if self.has_begun():
            return 0.0
        self._ends_at = -math.inf
        return self._seconds()

    def is_over(self) -> bool:
        """Whether it has begun, and the caller waits no longer."""
        return time.monotonic() >= self._ends_at


GRACE_SECONDS = 2.0
"""Seconds that a request in flight has to be answered when its caller wants to stop."""

# --- sync -------------------------------------------------------------------------------------------------

thread_state = threading.local()
"""`deadline`: of this thread's request; `unsent`: whether it failed because its connection had been closed by us."""


def apply_deadlines(event: str, info: dict[str, Any], *, joins_head: bool = False) -> None:
    """Called by httpcore at every step (request extension "trace"): applies deadlines to opened connections."""
    if event.endswith(("connect_tcp.complete", "start_tls.complete", "connect_unix_socket.complete")):
        apply_deadline(info["return_value"], joins_head=joins_head)


def apply_deadline(stream: Any, *, joins_head: bool) -> None:
    """Bounds every read and write of a connection by the deadline of the request that performs it.

    httpcore's timeouts limit silence only: headers that arrive byte by byte, or endless "100 Continue" replies, would
    never time out.

    `joins_head`: the head of a request is written with its body; not on a user's connections, where a body may wait.
    """
    stream_type, stream_ref, head = type(stream), weakref.ref(stream), b""

    def read(max_bytes: int, timeout: float | None = None) -> bytes:
        if head:
            write(b"", timeout)
        connection: Any = stream_ref()
        seconds, read_some = _remaining_timeout(timeout, connection), functools.partial(stream_type.read, connection)
        if (signals := signals_of_this_thread()) is not None:
            return _read_between_signals(signals, functools.partial(read_some, max_bytes), connection, seconds)
        data: bytes = read_some(max_bytes, seconds)
        return data

    def write(buffer: bytes, timeout: float | None = None) -> None:
        nonlocal head
        if joins_head and not head and is_head(buffer):
            head = buffer
            return
        buffer, head = head + buffer, b""
        connection: Any = stream_ref()
        thread_state.unsent = getattr(connection, "discarded", False)
        for start in range(0, len(buffer), _MAX_WRITE_BYTES):
            part, seconds = buffer[start : start + _MAX_WRITE_BYTES], _remaining_timeout(timeout, connection)
            if (signals := signals_of_this_thread()) is not None:
                _write_between_signals(signals, part, connection, seconds)
            else:
                stream_type.write(connection, part, seconds)

    stream.read, stream.write = read, write


def _read_between_signals(
    signals: DeferredSignals, read: Callable[[float], bytes], connection: Any, timeout: float | None
) -> bytes:
    """The next data of a connection; signal handlers run only while this waits for it."""
    ends_at = time.monotonic() + (math.inf if timeout is None else timeout)
    while True:
        signals.wait_for_socket(connection.get_extra_info("socket"), ends_at - time.monotonic())
        left = max(_MIN_SECONDS, ends_at - time.monotonic())
        try:
            return read(min(left, _MAX_READ_SECONDS))  # not for long: half of a TLS record is readable, but no data
        except httpcore.ReadTimeout:
            if left <= _MAX_READ_SECONDS:
                raise


def _write_between_signals(signals: DeferredSignals, buffer: bytes, connection: Any, timeout: float | None) -> None:
    """Writes all data; signal handlers run only while this waits for a server that does not read."""
    ends_at = time.monotonic() + (math.inf if timeout is None else timeout)
    network_socket: socket.socket = connection.get_extra_info("socket")
    while buffer:
        try:
            network_socket.settimeout(0.0)
            buffer = buffer[network_socket.send(buffer) :]
        except (BlockingIOError, ssl.SSLWantWriteError):  # noqa: PERF203 - raised only if the server is slower
            if (left := ends_at - time.monotonic()) <= 0:
                raise httpcore.WriteTimeout from None
            signals.wait_for_socket(network_socket, left, to_write=True)
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error


_MAX_READ_SECONDS = 0.25
_MIN_SECONDS = 0.001
"""A timeout of 0 would make a socket non-blocking: it would fail with another error than a timeout."""
_MAX_WRITE_BYTES = 65_536
"""Bytes between two checks of the deadline."""


def _remaining_timeout(timeout: float | None, connection: Any) -> float | None:
    deadline: Deadline | None = getattr(thread_state, "deadline", None)
    if deadline is None:
        return timeout
    if (left := deadline.seconds_left) <= 0:
        connection.close()  # the read or write then fails with the transport's own error
        return timeout
    return left if timeout is None else min(timeout, left)


# --- async ------------------------------------------------------------------------------------------------


async def run_with_deadline(seconds: float, request: Coroutine[Any, Any, Reply]) -> Reply:
    """The reply to a request on the running loop, which is cancelled at the deadline: `DeadlineExceeded`."""
    task, is_overdue = asyncio.current_task(), False

    def cancel_overdue() -> None:
        nonlocal is_overdue
        is_overdue = True
        if task is not None:
            task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, cancel_overdue)
    try:
        return await request
    except asyncio.CancelledError:
        # Like `asyncio.timeout`, which Python 3.10 lacks: a cancellation by others is raised again.
        if not is_overdue or (hasattr(task, "uncancel") and task is not None and task.uncancel() > 0):
            raise
        raise DeadlineExceeded from None
    finally:
        timer.cancel()
