"""Sends one HTTP request and reads its whole reply, within bounds of time and size.

The reply is checked while its connection is still held, so a connection that delivers wrong replies is not reused.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import weakref
import zlib
from collections import deque
from typing import TYPE_CHECKING, Any

import httpx

from dashscope_embeddings._core.protocol import Reply
from dashscope_embeddings._runtime.connect_errors import is_kind
from dashscope_embeddings._runtime.deadlines import Deadline, DeadlineExceeded, apply_deadlines, thread_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dashscope_embeddings._core.steps import Send

ACCEPT_ENCODING = "gzip"
"""The only compression asked for: its decoder can be stopped after any number of bytes."""

_MAX_PIECE_BYTES = 1 << 20
_GZIP_MAGIC, _GZIP_WBITS = b"\x1f\x8b", zlib.MAX_WBITS | 16
_UNSUPPORTED_ENCODINGS = frozenset({"br", "zstd", "compress"})
_SUPPORTED_ENCODINGS = frozenset({"gzip", "x-gzip", "deflate"})
_SUSPICIOUS_BYTES = 64 << 20
_MAX_COMPRESSION_RATIO = 100
"""A body larger than `_SUSPICIOUS_BYTES` that expands by more than this ratio is refused as a decompression bomb."""


class UnusableBody(Exception):  # noqa: N818 - the name is the event
    """A reply whose body cannot be read, or is larger than any valid reply."""

    def __init__(self, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.retry = retry
        """Whether another attempt may succeed."""


# --- sync -------------------------------------------------------------------------------------------------


def send_and_read(client: Any, request: httpx.Request, step: Send, deadline: Deadline) -> Reply:
    """Sends a request and reads its whole reply.

    Raises:
        RequestError: of httpx or of the user's package: no reply came, or not all of it.
        UnusableBody: its body is broken or too large.
        DeadlineExceeded: it took too long.
    """
    with StreamedResponse(client, request, deadline) as response:
        body = BodyReader(response, step.max_reply_bytes)
        reply = make_reply(response, b"".join(read_body(response, body, deadline)))
        if step.read_reply is not None and not step.read_reply(reply):
            close_connection(response)
        return reply


def close_connection(response: httpx.Response) -> None:
    """Closes the connection of a response, so that no other request reads what may still arrive on it."""
    if (stream := _network_stream(response)) is not None:
        stream.discarded = True
        stream.close()


class StreamedResponse:
    """Context manager that sends a request; gives the response with its head read, and closes it.

    `client` is the user's, or a transport of ours: cookies, redirects, authentication and hooks, which httpx's client
    adds to it for a third of a request's CPU time, do not exist for our own requests.
    """

    def __init__(self, client: Any, request: httpx.Request, deadline: Deadline) -> None:
        self._client, self._request, self._deadline = client, request, deadline
        self._response: httpx.Response | None = None

    def __enter__(self) -> httpx.Response:
        thread_state.deadline = self._deadline
        try:
            if isinstance(self._client, httpx.BaseTransport):
                self._response = self._client.handle_request(self._request)
                return self._response
            self._request.extensions = {**self._request.extensions, "trace": apply_deadlines}
            while self._response is None:
                self._send()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self._response

    def _send(self) -> None:
        thread_state.unsent = False
        try:
            self._response = self._client.send(self._request, stream=True, follow_redirects=False)
        except Exception as error:
            # Nothing was sent: another thread closed the connection after the pool had checked it. Try again.
            if not is_kind(error, "RequestError") or not thread_state.unsent or self._deadline.seconds_left <= 0:
                raise

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if self._response is not None:
                self._response.close()
        finally:
            thread_state.deadline = None
        if is_kind(error, "RequestError") and self._deadline.seconds_left <= 0:
            raise DeadlineExceeded from None


def read_body(response: httpx.Response, body: BodyReader, deadline: Deadline) -> Iterator[bytes]:
    """The decompressed body, in pieces of at most 1 MiB."""
    if response.is_stream_consumed:  # read by a hook of the user's client, or by a mock transport
        yield response.content
        return
    # Not `iter_bytes`: it decompresses without a bound, and releases the connection before the reply is checked.
    for chunk in response.stream:  # type: ignore[union-attr] # of a sync client
        if deadline.seconds_left <= 0:
            raise DeadlineExceeded
        yield from body.decompress(chunk)
        if body.is_cut_off:
            return


# --- async ------------------------------------------------------------------------------------------------


class ReplyTurns:
    """Has an event loop parse one reply to documents per turn, because a backlog of them must not delay a query."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_taken = False
        """Whether the present turn has its reply."""

    async def parse(self, step: Send, reply: Reply) -> bool:
        """Calls `step.read_reply` when it is its turn; returns whether the connection may be reused."""
        if step.read_reply is None:
            return True
        try:
            if not step.is_urgent:
                await self._next_turn(asyncio.get_running_loop())
        finally:  # also if the caller is cancelled meanwhile: the reply is paid for
            may_reuse = step.read_reply(reply)
        return may_reuse

    async def _next_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._is_taken:
            turn = loop.create_future()
            self._waiting.append(turn)
            await turn
        else:
            self._is_taken = True
            loop.call_soon(self._pass_on, loop)

    def _pass_on(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            if not (turn := self._waiting.popleft()).done():
                turn.set_result(None)
                loop.call_soon(self._pass_on, loop)
                return
        self._is_taken = False


async def asend_and_read(client: Any, request: httpx.Request, step: Send, turns: ReplyTurns) -> Reply:
    """`send_and_read` on the running loop, without a deadline."""
    if isinstance(client, httpx.AsyncBaseTransport):
        response = await client.handle_async_request(request)
    else:
        response = await client.send(request, stream=True, follow_redirects=False)
    try:
        if response.is_stream_consumed:
            content = response.content
        else:
            body = BodyReader(response, step.max_reply_bytes)
            parts: list[bytes] = []
            async for chunk in response.stream:  # type: ignore[union-attr] # of an asynchronous client
                parts += body.decompress(chunk)
                if body.is_cut_off:
                    break
            content = b"".join(parts)
        reply = make_reply(response, content)
        if not await turns.parse(step, reply) and (stream := _network_stream(response)) is not None:
            await stream.aclose()
        return reply
    finally:
        await response.aclose()


# --- both -------------------------------------------------------------------------------------------------


class BodyReader:
    """Decompresses a body up to a size limit. Of an error reply the rest is dropped: its status alone decides."""

    def __init__(self, response: httpx.Response, max_bytes: int) -> None:
        self._max_bytes, self._is_success = max_bytes, response.is_success
        self._received_bytes = self._produced_bytes = 0
        self._encoding = response.headers.get("content-encoding", "").strip().lower()
        self._inflater: Any = None
        self.is_cut_off = False
        """Whether the rest of the body is not read: the connection must be closed."""
        names = self._encoding.replace(" ", "").split(",")
        if (
            len(set(names) & _SUPPORTED_ENCODINGS) > 1
            or names.count("gzip") > 1
            or not _UNSUPPORTED_ENCODINGS.isdisjoint(names)
        ):
            message = f"a proxy or gateway compressed it with {self._encoding[:40]!r}, although gzip was requested"
            self._fail(message, retry=False)

    def decompress(self, chunk: bytes) -> Iterator[bytes]:
        """The decompressed bytes of the next chunk, in pieces of at most 1 MiB."""
        if self._received_bytes == 0 and chunk:
            self._inflater = self._make_inflater(chunk[0])
        self._received_bytes += len(chunk)
        for piece in (chunk,) if self._inflater is None else self._inflate(chunk):
            self._produced_bytes += len(piece)
            if self._produced_bytes > self._max_bytes:
                self._fail(f"it is larger than {self._max_bytes:,} bytes, the limit for a reply to this request")
            elif self._produced_bytes > max(_SUSPICIOUS_BYTES, _MAX_COMPRESSION_RATIO * self._received_bytes):
                self._fail(f"it expands more than {_MAX_COMPRESSION_RATIO} times when decompressed")
            if self.is_cut_off:
                return
            yield piece

    @property
    def is_complete(self) -> bool:
        """Whether the compressed data is complete."""
        return self._inflater is None or self._inflater.eof

    def _make_inflater(self, first_byte: int) -> Any:
        """Checks the first byte as well: some servers name an encoding and send plain JSON."""
        if "gzip" in self._encoding and first_byte == _GZIP_MAGIC[0]:
            return zlib.decompressobj(_GZIP_WBITS)
        if "deflate" in self._encoding and first_byte not in b"{[ \t\r\n":
            return zlib.decompressobj(zlib.MAX_WBITS if first_byte & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS)
        return None

    def _inflate(self, chunk: bytes) -> Iterator[bytes]:
        has_more = True
        while has_more:
            if self._inflater.eof:  # the next gzip member of the same body
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
            has_more = bool(chunk) or len(piece) == _MAX_PIECE_BYTES

    def _fail(self, message: str, *, retry: bool = True) -> None:
        self.is_cut_off = True
        if self._is_success:
            raise UnusableBody(message, retry=retry)


def make_reply(response: httpx.Response, content: bytes) -> Reply:
    """The reply for a response and its decompressed body."""
    return Reply(response.status_code, response.headers, content, _connection_number(response), time.time())


def _connection_number(response: httpx.Response) -> int | None:
    """A number for the connection; None for HTTP/2, which numbers its replies, and for mock transports."""
    stream = _network_stream(response)
    if stream is None or response.extensions.get("http_version") == b"HTTP/2":
        return None
    # A number, because thousands of seen replies refer to it and must not keep the connection alive.
    return _connection_numbers.setdefault(stream, next(_next_number))


_connection_numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_next_number = itertools.count(1)


def _network_stream(response: httpx.Response) -> Any:
    """The connection of a response; None for mock transports."""
    return response.extensions.get("network_stream")
