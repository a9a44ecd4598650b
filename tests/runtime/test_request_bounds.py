"""One request is bounded in time and in bytes, whatever a server does; and nothing of a reply is sent back to it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import sys
import threading
import time
import zlib
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import AsyncCalls, SyncCalls
from raw_server import client_for_url, good_reply, http_response, reply_content, serve_raw, vector_of

from dashscope_embeddings import BadReply, ConnectionFailed, EmbeddingClient, InvalidInput, RateLimitError
from dashscope_embeddings._core.failures import Failure
from dashscope_embeddings._core.steps import Endpoint, Send
from dashscope_embeddings.langchain import DashScopeEmbeddings

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from raw_server import ReceivedRequest

WAYS = pytest.mark.parametrize("way", [SyncCalls(), AsyncCalls()], ids=["sync", "async"])


# --- time ---------------------------------------------------------------------------------------------------


def dripping(head: bytes, drop: bytes) -> Callable[[ReceivedRequest, socket.socket], None]:
    """Begins a reply and goes on without ever ending it."""

    def handle(_: ReceivedRequest, connection: socket.socket) -> None:
        connection.sendall(head)
        for _drop in range(3_000):
            connection.sendall(drop)
            time.sleep(0.01)

    return handle


DRIPS = {
    "a body": dripping(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", b" "),
    "chunks": dripping(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a head": dripping(b"HTTP/1.1 200 OK\r\nx-header: ", b"x"),
    "100 Continue": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "103 Early Hints": dripping(b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"),
}


@WAYS
@pytest.mark.parametrize("drip", DRIPS)
@pytest.mark.parametrize("whose", ["our client", "a client of the user's"])
def test_what_drips_ends_at_the_deadline(drip: str, whose: str, way: SyncCalls | AsyncCalls) -> None:
    with serve_raw(DRIPS[drip]) as server, httpx.Client() as mine:
        given: dict[str, Any] = {} if whose == "our client" else {"http_client": mine}
        if given and isinstance(way, AsyncCalls):
            given = {"http_async_client": httpx.AsyncClient()}
        with client_for_url(server.url, timeout=1.0, request_deadline=0.5, **given) as client:
            begun = time.monotonic()
            with pytest.raises(ConnectionFailed, match=r"no whole reply within 0\.5 s, the request_deadline"):
                _embed(client, way, given)
            assert 0.4 < time.monotonic() - begun < 10
    assert len(server.requests) == 1


def _embed(client: EmbeddingClient, way: SyncCalls | AsyncCalls, given: dict[str, Any]) -> None:
    if not isinstance(way, AsyncCalls):
        client.embed(["a"])
        return

    async def ask() -> None:
        async with contextlib.AsyncExitStack() as stack:
            if given:
                await stack.enter_async_context(given["http_async_client"])
            await client.aembed(["a"])

    asyncio.run(ask())


@WAYS
def test_a_request_that_is_overdue_is_tried_again(way: SyncCalls | AsyncCalls) -> None:
    def handle(asked: ReceivedRequest, connection: socket.socket) -> bytes | None:
        return DRIPS["a head"](asked, connection) if asked.number == 1 else good_reply(asked, f"id-{asked.number}")

    with serve_raw(handle) as server, client_for_url(server.url, request_deadline=0.3, max_retries=1) as client:
        client._transport.clock.wait = lambda *_: False  # type: ignore[method-assign]
        assert way.embed(client, ["a"]).dense == [vector_of("a")]
    assert len(server.requests) == 2


def test_a_server_that_reads_a_request_slowly_does_not_hold_it_for_ever() -> None:
    done = threading.Event()

    def accept(listening: Any) -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            while not done.is_set() and connection.recv(512):
                time.sleep(0.01)

    import socket as sockets  # noqa: PLC0415 - a module's name that the others use for typing alone

    with sockets.socket() as listening:
        listening.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=accept, args=(listening,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with client_for_url(url, request_deadline=0.5, timeout=2.0) as client:
            begun = time.monotonic()
            failure = client._transport.send(Send(b"x" * 30_000_000))
            assert isinstance(failure, Failure)
            assert "request_deadline" in failure.reason
            assert time.monotonic() - begun < 20
        done.set()
        thread.join()


@WAYS
def test_a_slow_reply_within_the_deadline_is_an_answer(way: SyncCalls | AsyncCalls) -> None:
    def handle(asked: ReceivedRequest, connection: socket.socket) -> bytes:
        whole = good_reply(asked, "id-1")
        for start in range(0, len(whole), 200):
            connection.sendall(whole[start : start + 200])
            time.sleep(0.02)
        return b""

    with serve_raw(handle) as server, client_for_url(server.url, timeout=0.3, request_deadline=20) as client:
        assert way.embed(client, ["a"]).dense == [vector_of("a")]


def test_the_deadline_is_ten_timeouts_unless_it_is_given() -> None:
    assert EmbeddingClient(base_url="emulator").settings.deadline_seconds == 600
    assert EmbeddingClient(base_url="emulator", timeout=3).settings.deadline_seconds == 30
    assert EmbeddingClient(base_url="emulator", timeout=3, request_deadline=5).settings.deadline_seconds == 5
    assert DashScopeEmbeddings(base_url="emulator", request_deadline=5).client.settings.deadline_seconds == 5
    for wrong in (0, -1, float("inf"), float("nan"), "5", True, 1e12):
        with pytest.raises(InvalidInput, match="request_deadline"):
            EmbeddingClient(base_url="emulator", request_deadline=wrong)  # type: ignore[arg-type]


def test_a_users_client_that_is_used_elsewhere_is_not_bound_by_us() -> None:
    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        time.sleep(0.3 if asked.number > 1 else 0)
        return good_reply(asked, f"id-{asked.number}")

    with (
        serve_raw(handle) as server,
        httpx.Client() as mine,
        client_for_url(server.url, http_client=mine, request_deadline=0.2) as client,
    ):
        assert client.embed(["a"]).dense == [vector_of("a")]
        # On the same connection, which we had bound.
        body = {"input": {"texts": ["b"]}}
        assert mine.post(f"{server.url}/other", json=body, timeout=5).status_code == 200
        assert server.connections == 1


# --- bytes --------------------------------------------------------------------------------------------------


def bomb(size: int) -> bytes:
    """That many blanks, compressed."""
    return gzip.compress(b" " * size)


def peak() -> int:
    """Most bytes of memory that this process ever took."""
    resource = pytest.importorskip("resource")  # not on Windows
    most: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)


@WAYS
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_small_body_that_grows_huge_never_gets_into_memory(chunked: bool, way: SyncCalls | AsyncCalls) -> None:  # noqa: FBT001
    body = bomb(1 << 30)
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n"

    def handle(_: ReceivedRequest, __: socket.socket) -> bytes:
        if chunked:
            return head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        return head + b"content-length: %d\r\n\r\n%b" % (len(body), body)

    with serve_raw(handle) as server, client_for_url(server.url) as client:
        before = peak()
        with pytest.raises(BadReply, match=r"larger than 1,310,720 bytes|larger than \d,\d+,\d+ bytes"):
            way.embed(client, ["a"])
        assert peak() - before < 64 << 20


@WAYS
@pytest.mark.parametrize("protocol", ["native", "openai"])
def test_a_body_without_end_is_left(protocol: str, way: SyncCalls | AsyncCalls) -> None:
    written = 0

    def handle(_: ReceivedRequest, connection: socket.socket) -> None:
        nonlocal written
        connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while written < 1 << 30:
            written += connection.send(b"10000\r\n" + b" " * 65_536 + b"\r\n")

    with (
        serve_raw(handle) as server,
        client_for_url(server.url, protocol=protocol) as client,
        pytest.raises(BadReply, match="larger than"),
    ):
        way.embed(client, ["a"])
    assert written < 64 << 20


@WAYS
def test_a_huge_refusal_is_still_the_refusal_that_its_status_says(way: SyncCalls | AsyncCalls) -> None:
    body = bomb(1 << 28)

    def handle(_: ReceivedRequest, __: socket.socket) -> bytes:
        return http_response(body, 429, content_encoding="gzip")

    with serve_raw(handle) as server, client_for_url(server.url) as client:
        before = peak()
        with pytest.raises(RateLimitError):
            way.embed(client, ["a"])
        assert peak() - before < 64 << 20


@WAYS
def test_a_refusal_that_cannot_be_decompressed_is_one_too(way: SyncCalls | AsyncCalls) -> None:
    with (
        serve_raw(lambda *_: http_response(b"no gzip", 429, content_encoding="gzip")) as server,
        client_for_url(server.url) as client,
        pytest.raises(RateLimitError),
    ):
        way.embed(client, ["a"])


@WAYS
@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "deflate"])
def test_compressed_replies_are_read(encoding: str, way: SyncCalls | AsyncCalls) -> None:
    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        assert "accept-encoding: gzip\r\n" in asked.head.lower() + "\r\n"
        body = json.dumps(reply_content(asked, "id-1", 1024)).encode()
        packed = zlib.compress(body) if encoding == "deflate" else gzip.compress(body)
        return http_response(packed, content_encoding=encoding)

    texts = [f"text {n}" for n in range(10)]
    with serve_raw(handle) as server, client_for_url(server.url, dimensions=1024) as client:
        assert way.embed(client, texts).dense == [vector_of(text, 1024) for text in texts]


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


@WAYS
@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        *[(name, bytes) for name in ("utf-8", "none", "identity, identity", "aws-chunked", "gzip", "deflate")],
        ("gzip", lambda body: gzip.compress(body[:40]) + gzip.compress(body[40:])),
        ("deflate", raw_deflate),
    ],
)
def test_a_body_is_read_by_what_it_is(encoding: str, pack: Any, way: SyncCalls | AsyncCalls) -> None:
    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        return http_response(pack(json.dumps(reply_content(asked, "id-1")).encode()), content_encoding=encoding)

    with serve_raw(handle) as server, client_for_url(server.url) as client:
        assert way.embed(client, ["a"]).dense == [vector_of("a")]


@WAYS
@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_a_compression_that_cannot_be_read_is_asked_for_once(encoding: str, way: SyncCalls | AsyncCalls) -> None:
    with (
        serve_raw(
            lambda asked, _: http_response(json.dumps(reply_content(asked)).encode(), content_encoding=encoding)
        ) as server,
        client_for_url(server.url, max_retries=3) as client,
        pytest.raises(BadReply, match=r"compressed it with .*, although gzip was requested"),
    ):
        way.embed(client, ["a"])
    assert len(server.requests) == 1


@pytest.mark.filterwarnings("ignore:.*is not in the catalogue")
@pytest.mark.parametrize("output", ["dense", "sparse", "dense&sparse"])
def test_the_largest_sound_reply_is_read(output: Any) -> None:
    """The widest vectors of an unknown model, in more digits than any number has, and a weight for each character."""

    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        rows = []
        for at, text in enumerate(asked.texts):
            weights = [{"index": n, "value": 0.12345678901234567, "token": "x" * 20} for n in range(len(text))]
            row = {"text_index": at, "embedding": [-0.012345678901234567] * 8192, "sparse_embedding": weights}
            rows.append(row)
        return http_response(json.dumps({"output": {"embeddings": rows}, "request_id": "id-1"}, indent=8).encode())

    text = "文" * 2_000
    name = "unknown-model" if output == "dense" else "text-embedding-v4"
    with serve_raw(handle) as server, client_for_url(server.url, model=name, dimensions=None) as client:
        if output == "dense":
            assert len(client.embed([text]).dense[0]) == 8192
        elif output == "sparse":
            found = client.embed([text], output=output).sparse
            assert found is not None
            assert len(found[0]) == 2_000
        else:
            with pytest.raises(BadReply, match="8192 floats where 1024"):
                client.embed([text], output=output)


# --- files --------------------------------------------------------------------------------------------------


def sent(url: str, target: Endpoint, **settings: Any) -> Any:
    with client_for_url(url, **settings) as client:
        return client._transport.send(Send(endpoint=target))


def test_a_download_that_drips_ends_and_leaves_no_file(tmp_path: Path) -> None:
    with serve_raw(DRIPS["a body"]) as server:
        failure = sent(server.url, Endpoint("GET", "/file", download_to=tmp_path / "file"), request_deadline=0.4)
    assert isinstance(failure, Failure)
    assert "request_deadline" in failure.reason
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_moves_may_take_longer(tmp_path: Path) -> None:
    body = b"x" * 60_000

    def handle(_: ReceivedRequest, connection: socket.socket) -> bytes:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 6_000):
            connection.sendall(body[start : start + 6_000])
            time.sleep(0.08)
        return b""

    with serve_raw(handle) as server:
        reply = sent(server.url, Endpoint("GET", "/file", download_to=tmp_path / "file"), request_deadline=0.4)
    assert reply.status == 200
    assert (tmp_path / "file").read_bytes() == body


def test_a_bomb_is_not_written_to_the_disk(tmp_path: Path) -> None:
    body = bomb(1 << 28)
    with serve_raw(lambda *_: http_response(body, content_encoding="gzip")) as server:
        failure = sent(server.url, Endpoint("GET", "/file", download_to=tmp_path / "file"))
    assert isinstance(failure, Failure)
    assert failure.is_unreadable_reply
    assert "expands more than 100 times" in failure.reason
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut off"])
def test_a_compressed_download_is_whole_or_nothing(cut: bool, tmp_path: Path) -> None:  # noqa: FBT001
    lines = b"".join(b'{"line":%d}\n' % n for n in range(50_000))
    body = gzip.compress(lines)
    body = body[:-100] if cut else body
    with serve_raw(lambda *_: http_response(body, content_encoding="gzip")) as server:
        reply = sent(server.url, Endpoint("GET", "/file", download_to=tmp_path / "file"))
    if cut:
        assert isinstance(reply, Failure)
        assert list(tmp_path.iterdir()) == []
    else:
        assert (tmp_path / "file").read_bytes() == lines


def test_what_a_list_of_batches_says_is_bounded_too() -> None:
    with serve_raw(lambda *_: http_response(bomb(1 << 28), content_encoding="gzip")) as server:
        before = peak()
        failure = sent(server.url, Endpoint("GET", "/batches"))
        assert isinstance(failure, Failure)
        assert failure.is_unreadable_reply
        assert peak() - before < 128 << 20


# --- cookies ------------------------------------------------------------------------------------------------


def test_no_cookie_of_a_reply_is_sent_back(tmp_path: Path) -> None:
    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        body = json.dumps(reply_content(asked)).encode() if asked.body else b"{}"
        return http_response(body, set_cookie=f"c{asked.number}={'x' * 500}; Path=/")

    async def ask(client: EmbeddingClient) -> None:
        for n in range(5):
            await client.aembed([f"async {n}"])
        await client.aclose()

    with serve_raw(handle) as server, client_for_url(server.url) as client:
        for n in range(5):
            client.embed([f"text {n}"])
        client._transport.send(Send(endpoint=Endpoint("GET", "/file", download_to=tmp_path / "file")))
        client._transport.send(Send(endpoint=Endpoint("GET", "/batches")))
        asyncio.run(ask(client))
        assert len(server.requests) == 12
        assert not [asked for asked in server.requests if re.search("(?im)^cookie:", asked.head)]


def test_a_users_own_client_keeps_its_cookies() -> None:
    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        return good_reply(asked, f"id-{asked.number}").replace(b"\r\n", b"\r\nset-cookie: theirs=1; Path=/\r\n", 1)

    with serve_raw(handle) as server, httpx.Client(cookies={"mine": "2"}) as mine:
        with client_for_url(server.url, http_client=mine) as client:
            client.embed(["a"])
            client.embed(["b"])
        first, second = (asked.head.lower() for asked in server.requests)
        assert "cookie: mine=2" in first
        assert "mine=2" in second
        assert "theirs=1" in second
