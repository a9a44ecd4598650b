"""Sends one HTTP request and reads its whole reply, within bounds of time and size.

The reply is checked while its connection is still held, so a connection that delivers wrong replies is not reused.

`client` is a user's client, or a pool of ours, or the emulator's transport: the latter two have no method `send`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import weakref
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._core.protocol import Reply
from dashscope_embeddings._runtime.connect_errors import is_request_error
from dashscope_embeddings._runtime.deadlines import Deadline, DeadlineExceeded, apply_deadlines, thread_state
from dashscope_embeddings._runtime.reply_body import BodyReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dashscope_embeddings._core.steps import Send

# --- sync -------------------------------------------------------------------------------------------------


def send_and_read(client: Any, request: Any, step: Send, deadline: Deadline) -> Reply:
    """Sends a request and reads its whole reply.

    Raises:
        Exception: `is_request_error`: no reply came, or not all of it.
        UnusableBody: its body is broken or too large.
        DeadlineExceeded: it took too long.
    """
    with open_response(client, request, deadline) as response:
        body = BodyReader(response, step.max_reply_bytes)
        reply = make_reply(response, b"".join(read_body(response, body, deadline)))
        if step.read_reply is not None and not step.read_reply(reply):
            close_connection(response)
        return reply


@contextlib.contextmanager
def open_response(client: Any, request: Any, deadline: Deadline) -> Iterator[Any]:
    """Sends a request; gives the response with its head read, and closes it."""
    thread_state.deadline = deadline
    try:
        with contextlib.closing(_send(client, request, deadline)) as response:
            yield response
    except Exception as error:
        if is_request_error(error) and deadline.seconds_left <= 0:
            raise DeadlineExceeded from None
        raise
    finally:
        thread_state.deadline = None


def _send(client: Any, request: Any, deadline: Deadline) -> Any:
    if not hasattr(client, "send"):
        return client.handle_request(request)
    request.extensions = {**request.extensions, "trace": apply_deadlines}
    while True:
        thread_state.unsent = False
        try:
            return client.send(request, stream=True, follow_redirects=False)
        except Exception as error:
            # Nothing was sent: another thread closed the connection after the pool had checked it. Try again.
            if not is_request_error(error) or not thread_state.unsent or deadline.seconds_left <= 0:
                raise


def read_body(response: Any, body: BodyReader, deadline: Deadline) -> Iterator[bytes]:
    """The decompressed body, in pieces of at most 1 MiB."""
    if response.is_stream_consumed:  # read by a hook of the user's client, or by a mock transport
        yield response.content
        return
    # Not `iter_bytes`: it decompresses without a bound, and releases the connection before the reply is checked.
    for chunk in response.stream:
        if deadline.seconds_left <= 0:
            raise DeadlineExceeded
        yield from body.decompress(chunk)
        if body.is_cut_off:
            return


def close_connection(response: Any) -> None:
    """Closes the connection of a response, so that no other request reads what may still arrive on it."""
    if (stream := _network_stream(response)) is not None:
        stream.discarded = True
        stream.close()


# --- async ------------------------------------------------------------------------------------------------


async def asend_and_read(client: Any, request: Any, step: Send, turns: asyncio.Lock) -> Reply:
    """`send_and_read` on the running loop, without a deadline."""
    if hasattr(client, "send"):
        response = await client.send(request, stream=True, follow_redirects=False)
    else:
        response = await client.handle_async_request(request)
    try:
        reply = make_reply(response, await _aread_body(response, step.max_reply_bytes))
        if not await _parse(step, reply, turns) and (stream := _network_stream(response)) is not None:
            await stream.aclose()
        return reply
    finally:
        await response.aclose()


async def _aread_body(response: Any, max_bytes: int) -> bytes:
    if response.is_stream_consumed:
        content: bytes = response.content
        return content
    body, parts = BodyReader(response, max_bytes), list[bytes]()
    async for chunk in response.stream:
        parts += body.decompress(chunk)
        if body.is_cut_off:
            break
    return b"".join(parts)


async def _parse(step: Send, reply: Reply, turns: asyncio.Lock) -> bool:
    """Calls `step.read_reply`; returns whether the connection may be reused."""
    if step.read_reply is None:
        return True
    try:
        if not step.is_urgent:
            # One reply to documents per turn of the loop: a backlog of them must not delay a query.
            async with turns:
                await asyncio.sleep(0)
    finally:  # also if the caller is cancelled meanwhile: the reply is paid for
        may_reuse = step.read_reply(reply)
    return may_reuse


# --- both -------------------------------------------------------------------------------------------------


def make_reply(response: Any, content: bytes) -> Reply:
    """The reply for a response and its decompressed body."""
    return Reply(response.status_code, response.headers, content, _connection_number(response), time.time())


def _connection_number(response: Any) -> int | None:
    """A number for the connection; None for HTTP/2, which numbers its replies, and for mock transports."""
    stream = _network_stream(response)
    if stream is None or response.extensions.get("http_version") == b"HTTP/2":
        return None
    # A number, because thousands of seen replies refer to it and must not keep the connection alive.
    return _connection_numbers.setdefault(stream, next(_next_number))


_connection_numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_next_number = itertools.count(1)


def _network_stream(response: Any) -> Any:
    """The connection of a response; None for mock transports."""
    return response.extensions.get("network_stream")
