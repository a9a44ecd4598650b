"""One HTTP request and its whole reply: bounded in time and size, and judged before its connection is given back."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import weakref
import zlib
from typing import TYPE_CHECKING, Any

import httpx

from dashscope_embeddings._core.protocol import Reply

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator

    from dashscope_embeddings._core.exchange import Send

ACCEPT_ENCODING = "gzip"
"""The only compression asked for: its decoder can be stopped after any number of bytes."""

_MIN_BYTES_PER_SECOND = 32_000
"""Bytes in a second. A file that moves at least so fast is never cut off."""
_MAX_PIECE_BYTES = 1 << 20
_GZIP_MAGIC, _GZIP_WBITS = b"\x1f\x8b", zlib.MAX_WBITS | 16
_UNSUPPORTED_ENCODINGS = frozenset({"br", "zstd", "compress"})
_SUPPORTED_ENCODINGS = frozenset({"gzip", "x-gzip", "deflate"})
_SUSPICIOUS_BYTES = 64 << 20
_MAX_COMPRESSION_RATIO = 100
"""A body that is so many times as large as what came over the network, and larger than `_SUSPICIOUS`, is a trap."""


class UnusableBody(Exception):  # noqa: N818 - named for what came
    """A reply came whose body cannot be read, or is larger than any answer."""

    def __init__(self, why: str, *, retry: bool = True) -> None:
        super().__init__(why)
        self.retry = retry
        """Whether another try may bring one that can be read."""


class DeadlineExceeded(Exception):  # noqa: N818 - the name is the event
    """A request was not over within its deadline, although the server was never silent for long."""


class Deadline:
    """When a request must be over."""

    def __init__(self, seconds: float, upload_bytes: int = 0) -> None:
        """`upload`: bytes of a file that is sent, which may take its time."""
        self.ends_at = time.monotonic() + seconds + upload_bytes / _MIN_BYTES_PER_SECOND

    def extend_for(self, byte_count: int) -> None:
        """Bytes of a file have come."""
        self.ends_at += byte_count / _MIN_BYTES_PER_SECOND

    @property
    def seconds_left(self) -> float:
        """Seconds."""
        return self.ends_at - time.monotonic()


# --- sync -------------------------------------------------------------------------------------------------


def send_and_read(client: Any, request: httpx.Request, step: Send, deadline: Deadline) -> Reply:
    """Sends a request and reads its reply whole.

    Raises:
        httpx.RequestError: no reply came, or not all of it.
        UnusableBody: its body is broken or too large.
        Overdue: it took too long.
    """
    with StreamedResponse(client, request, deadline) as response:
        body = BodyReader(response, step.max_reply_bytes)
        reply = make_reply(response, b"".join(read_body(response, body, deadline)))
        if step.may_reuse_connection is not None and not step.may_reuse_connection(reply):
            close_connection(response)
        return reply


def close_connection(response: httpx.Response) -> None:
    """Closes the connection of a response: no other request is to read what may still come on it."""
    if (stream := _network_stream(response)) is not None:
        stream.discarded = True
        stream.close()


class StreamedResponse:
    """A request that is sent; inside, its response, of which only the head has come."""

    def __init__(self, client: Any, request: httpx.Request, deadline: Deadline) -> None:
        self._client, self._request, self._deadline = client, request, deadline
        self._response: httpx.Response | None = None

    def __enter__(self) -> httpx.Response:
        _thread_state.deadline = self._deadline
        self._request.extensions = {**self._request.extensions, "trace": _trace}
        try:
            while self._response is None:
                self._send()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self._response

    def _send(self) -> None:
        _thread_state.unsent = False
        try:
            self._response = self._client.send(self._request, stream=True, follow_redirects=False)
        except httpx.RequestError:
            # Another thread discarded a connection between the two looks that the pool takes at it.
            if not _thread_state.unsent or self._deadline.seconds_left <= 0:
                raise

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if self._response is not None:
                self._response.close()
        finally:
            _thread_state.deadline = None
        if isinstance(error, httpx.RequestError) and self._deadline.seconds_left <= 0:
            raise DeadlineExceeded from None


def read_body(response: httpx.Response, body: BodyReader, deadline: Deadline) -> Iterator[bytes]:
    """The decompressed body, in pieces of a megabyte at most."""
    if response.is_stream_consumed:  # a hook of the user's client has read it, or a transport for tests
        yield response.content
        return
    # Not `iter_bytes`, which decompresses without a bound, and gives the connection back before the reply is judged.
    for chunk in response.stream:  # type: ignore[union-attr] # of a sync client
        if deadline.seconds_left <= 0:
            raise DeadlineExceeded
        yield from body.decompress(chunk)
        if body.is_cut_off:
            return


_thread_state = threading.local()
"""`deadline`: of the request that this thread performs; `unsent`: whether it met a connection that is closed."""


def _trace(event: str, info: dict[str, Any]) -> None:
    """Told by httpcore what it does (request extension "trace"): finds the connections that are opened."""
    if event.endswith(("connect_tcp.complete", "start_tls.complete", "connect_unix_socket.complete")):
        _apply_deadline(info["return_value"])


def _apply_deadline(stream: Any) -> None:
    """Makes every read and write of a connection heed the deadline of the request that performs it.

    httpcore's own timeouts bound silence alone: a head that drips, or "100 Continue" again and again, would last
    for ever.
    """
    kind, itself = type(stream), weakref.ref(stream)

    def read(max_bytes: int, timeout: float | None = None) -> bytes:
        connection = itself()
        data: bytes = kind.read(connection, max_bytes, _remaining_timeout(timeout, connection))
        return data

    def write(buffer: bytes, timeout: float | None = None) -> None:
        connection = itself()
        if getattr(connection, "discarded", False):
            _thread_state.unsent = True
        for start in range(0, len(buffer), _MAX_WRITE_BYTES):
            part = buffer[start : start + _MAX_WRITE_BYTES] if len(buffer) > _MAX_WRITE_BYTES else buffer
            kind.write(connection, part, _remaining_timeout(timeout, connection))

    stream.read, stream.write = read, write


_MAX_WRITE_BYTES = 65_536
"""Bytes written before the clock is looked at again."""


def _remaining_timeout(timeout: float | None, connection: Any) -> float | None:
    deadline: Deadline | None = getattr(_thread_state, "deadline", None)
    if deadline is None:
        return timeout
    if (left := deadline.seconds_left) <= 0:
        connection.close()  # what is read or written then fails with the transport's own error
        return timeout
    return left if timeout is None else min(timeout, left)


# --- async ------------------------------------------------------------------------------------------------


async def run_with_deadline(seconds: float, request: Coroutine[Any, Any, Reply]) -> Reply:
    """The reply to a request of the running loop, which is cancelled when its time is over.

    Raises:
        Overdue: it took too long.
    """
    task, is_overdue = asyncio.current_task(), False

    def end() -> None:
        nonlocal is_overdue
        is_overdue = True
        if task is not None:
            task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, end)
    try:
        return await request
    except asyncio.CancelledError:
        # As `asyncio.timeout`, which Python 3.10 lacks: a cancellation from outside goes on.
        if not is_overdue or (hasattr(task, "uncancel") and task is not None and task.uncancel() > 0):
            raise
        raise DeadlineExceeded from None
    finally:
        timer.cancel()


async def asend_and_read(client: Any, request: httpx.Request, step: Send) -> Reply:
    """`exchanged` on the running loop, without a deadline."""
    response = await client.send(request, stream=True, follow_redirects=False)
    try:
        if response.is_stream_consumed:
            content = response.content
        else:
            body = BodyReader(response, step.max_reply_bytes)
            parts: list[bytes] = []
            async for chunk in response.stream:
                parts += body.decompress(chunk)
                if body.is_cut_off:
                    break
            content = b"".join(parts)
        reply = make_reply(response, content)
        if (
            step.may_reuse_connection is not None
            and not step.may_reuse_connection(reply)
            and (stream := _network_stream(response)) is not None
        ):
            await stream.aclose()
        return reply
    finally:
        await response.aclose()


# --- both -------------------------------------------------------------------------------------------------


class BodyReader:
    """Decompresses a body up to a size. Of a refusal, which is a refusal whatever its body says, the rest is cut."""

    def __init__(self, response: httpx.Response, max_bytes: int) -> None:
        self._max_bytes, self._is_success = max_bytes, response.is_success
        self._received_bytes = self._produced_bytes = 0
        self._encoding = response.headers.get("content-encoding", "").strip().lower()
        self._inflater: Any = None
        self.is_cut_off = False
        """Whether there is more that nobody wants: the connection is to be closed."""
        named = self._encoding.replace(" ", "").split(",")
        if (
            len(set(named) & _SUPPORTED_ENCODINGS) > 1
            or named.count("gzip") > 1
            or not _UNSUPPORTED_ENCODINGS.isdisjoint(named)
        ):
            why = f"something on the way compresses it with {self._encoding[:40]!r}, where gzip was asked for"
            self._fail(why, retry=False)

    def decompress(self, chunk: bytes) -> Iterator[bytes]:
        """What a part of the raw body stands for."""
        if self._received_bytes == 0 and chunk:
            self._inflater = self._make_inflater(chunk[0])
        self._received_bytes += len(chunk)
        for piece in self._decompress_chunk(chunk):
            self._produced_bytes += len(piece)
            if self._produced_bytes > self._max_bytes:
                self._fail(f"it is larger than {self._max_bytes:,} bytes, which no answer to this request is")
            elif self._produced_bytes > max(_SUSPICIOUS_BYTES, _MAX_COMPRESSION_RATIO * self._received_bytes):
                self._fail(f"it grows more than {_MAX_COMPRESSION_RATIO} times where it is decompressed")
            if self.is_cut_off:
                return
            yield piece

    @property
    def is_complete(self) -> bool:
        """Whether its compressed form has come to its end."""
        return self._inflater is None or self._inflater.eof

    def _make_inflater(self, first: int) -> Any:
        """By what the body is: some servers name a compression and send plain JSON, or name what is none."""
        if "gzip" in self._encoding and first == _GZIP_MAGIC[0]:
            return zlib.decompressobj(_GZIP_WBITS)
        if "deflate" in self._encoding and first not in b"{[ \t\r\n":
            return zlib.decompressobj(zlib.MAX_WBITS if first & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS)
        return None

    def _decompress_chunk(self, chunk: bytes) -> Iterable[bytes]:
        return (chunk,) if self._inflater is None else self._inflate(chunk)

    def _inflate(self, chunk: bytes) -> Iterator[bytes]:
        more = True
        while more:
            if self._inflater.eof:  # the next of several members, which make one body
                if not chunk.startswith(_GZIP_MAGIC):
                    return
                self._inflater = zlib.decompressobj(_GZIP_WBITS)
            try:
                piece = self._inflater.decompress(chunk, _MAX_PIECE_BYTES)
            except zlib.error as error:
                self._fail(f"it cannot be decompressed ({error})")
                return
            yield piece
            chunk = self._inflater.unconsumed_tail or self._inflater.unused_data
            more = bool(chunk) or len(piece) == _MAX_PIECE_BYTES

    def _fail(self, why: str, *, retry: bool = True) -> None:
        self.is_cut_off = True
        if self._is_success:
            raise UnusableBody(why, retry=retry)


def make_reply(response: httpx.Response, content: bytes) -> Reply:
    """A reply with this body."""
    return Reply(response.status_code, response.headers, content, _connection_number(response))


def _connection_number(response: httpx.Response) -> int | None:
    """What tells a connection from others; None: HTTP/2, which numbers its replies, or no connection at all."""
    stream = _network_stream(response)
    if stream is None or response.extensions.get("http_version") == b"HTTP/2":
        return None
    # A number, not the connection: what was seen on it is remembered by the thousand.
    return _connection_numbers.setdefault(stream, next(_next_number))


_connection_numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_next_number = itertools.count(1)


def _network_stream(response: httpx.Response) -> Any:
    """The connection; None of a transport for tests."""
    return response.extensions.get("network_stream")
