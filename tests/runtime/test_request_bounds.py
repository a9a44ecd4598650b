"""One request is bounded in time and in bytes, whatever a server does; and nothing of a reply is sent back to it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import json
import re
import socket
import threading
import time
import tracemalloc
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
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from raw_server import ReceivedRequest

Way = SyncCalls | AsyncCalls
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
    "103 Early Hints": dripping(b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"),
}


@WAYS
@pytest.mark.parametrize("drip", DRIPS)
@pytest.mark.parametrize("whose", ["our client", "a user's client"])
def test_what_drips_ends_at_the_deadline(drip: str, whose: str, way: Way) -> None:
    with serve_raw(DRIPS[drip]) as server, httpx.Client() as mine:
        ahttp = httpx.AsyncClient()
        given = {} if whose == "our client" else {"http_client": mine, "http_async_client": ahttp}
        with client_for_url(server.url, timeout=1.0, request_deadline=0.2, **given) as client:
            begun = time.monotonic()
            with pytest.raises(ConnectionFailed, match=r"no whole reply within 0\.2 s, the request_deadline"):
                way.embed(client, ["a"])
            assert time.monotonic() - begun < 10
    assert len(server.requests) == 1


@WAYS
def test_a_request_that_is_overdue_is_tried_again(way: Way) -> None:
    def handle(asked: ReceivedRequest, connection: socket.socket) -> bytes | None:
        return DRIPS["a head"](asked, connection) if asked.number == 1 else good_reply(asked, f"id-{asked.number}")

    with serve_raw(handle) as server, client_for_url(server.url, request_deadline=0.3, max_retries=1) as client:
        client._transport.clock.wait = lambda *_: False  # type: ignore[method-assign]
        assert way.embed(client, ["a"]).dense == [vector_of("a")]
    assert len(server.requests) == 2


def test_a_server_that_reads_a_request_slowly_does_not_hold_it_for_ever() -> None:
    done = threading.Event()

    def read_slowly(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            while not done.is_set() and connection.recv(512):
                time.sleep(0.01)

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=read_slowly, args=(listening,), daemon=True)
        thread.start()
        with client_for_url(f"http://127.0.0.1:{listening.getsockname()[1]}", request_deadline=0.3) as client:
            failure = client._transport.send(Send(b"x" * 30_000_000))
        assert isinstance(failure, Failure)
        assert "request_deadline" in failure.reason
        done.set()
        thread.join()


@WAYS
def test_a_slow_reply_within_the_deadline_is_an_answer(way: Way) -> None:
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


@functools.cache
def bomb() -> bytes:
    """128 MiB of blanks, compressed."""
    packer, blanks = zlib.compressobj(level=1, wbits=zlib.MAX_WBITS | 16), b" " * (1 << 20)
    return b"".join(packer.compress(blanks) for _ in range(128)) + packer.flush()


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """What runs inside takes at most 16 MiB."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@WAYS
@pytest.mark.parametrize("kind", ["length", "chunked", "429", "429, no gzip"])
def test_a_small_body_that_grows_huge_never_gets_into_memory(kind: str, way: Way) -> None:
    """A refusal is still the one that its status says."""
    chunked = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n"
    is_refusal = kind.startswith("429")
    body = b"no gzip" if kind.endswith("no gzip") else bomb()
    reply = http_response(body, 429 if is_refusal else 200, content_encoding="gzip")
    if kind == "chunked":
        reply = chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    error, words = (RateLimitError, "429") if is_refusal else (BadReply, r"larger than \d,\d+,\d+ bytes")
    with (
        serve_raw(lambda *_: reply) as server,
        client_for_url(server.url) as client,
        little_memory(),
        pytest.raises(error, match=words),
    ):
        way.embed(client, ["a"])


@WAYS
def test_a_body_without_end_is_left(way: Way) -> None:
    written = 0

    def handle(_: ReceivedRequest, connection: socket.socket) -> None:
        nonlocal written
        connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while written < 1 << 30:
            written += connection.send(b"10000\r\n" + b" " * 65_536 + b"\r\n")

    with (
        serve_raw(handle) as server,
        client_for_url(server.url) as client,
        pytest.raises(BadReply, match="larger than"),
    ):
        way.embed(client, ["a"])
    assert written < 64 << 20


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


@WAYS
@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        *[(name, bytes) for name in ("utf-8", "none", "identity, identity", "aws-chunked", "gzip", "deflate")],
        *[(name, gzip.compress) for name in ("gzip", "x-gzip", "GZIP")],
        ("gzip", lambda body: gzip.compress(body[:40]) + gzip.compress(body[40:])),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
    ],
)
def test_a_body_is_read_by_what_it_is(encoding: str, pack: Any, way: Way) -> None:
    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        assert "accept-encoding: gzip\r\n" in asked.head.lower() + "\r\n"
        return http_response(pack(json.dumps(reply_content(asked, "id-1")).encode()), content_encoding=encoding)

    with serve_raw(handle) as server, client_for_url(server.url) as client:
        assert way.embed(client, ["a"]).dense == [vector_of("a")]


@WAYS
@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_a_compression_that_cannot_be_read_is_asked_for_once(encoding: str, way: Way) -> None:
    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        return http_response(json.dumps(reply_content(asked)).encode(), content_encoding=encoding)

    with (
        serve_raw(handle) as server,
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
            rows.append({"text_index": at, "embedding": [-0.012345678901234567] * 8192, "sparse_embedding": weights})
        return http_response(json.dumps({"output": {"embeddings": rows}, "request_id": "id-1"}, indent=8).encode())

    name = "unknown-model" if output == "dense" else "text-embedding-v4"
    with serve_raw(handle) as server, client_for_url(server.url, model=name, dimensions=None) as client:
        if output == "dense&sparse":
            with pytest.raises(BadReply, match="8192 floats where 1024"):
                client.embed(["文" * 2_000], output=output)
            return
        found = client.embed(["文" * 2_000], output=output)
    assert len(found.dense[0]) == 8192 if output == "dense" else found.sparse and len(found.sparse[0]) == 2_000


# --- files --------------------------------------------------------------------------------------------------


def sent(handle: Any, target: Endpoint, **settings: Any) -> Any:
    with serve_raw(handle) as server, client_for_url(server.url, **settings) as client:
        return client._transport.send(Send(endpoint=target))


@pytest.fixture
def download(tmp_path: Path) -> Endpoint:
    return Endpoint("GET", "/file", download_to=tmp_path / "file")


LINES = b"".join(b'{"line":%d}\n' % n for n in range(50_000))
UNUSABLE: dict[str, tuple[Any, str]] = {
    "drips": (DRIPS["a body"], "request_deadline"),
    "a bomb": (lambda *_: http_response(bomb(), content_encoding="gzip"), "expands more than 100 times"),
    "cut off": (lambda *_: http_response(gzip.compress(LINES)[:-100], content_encoding="gzip"), "is cut off"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_download_that_cannot_be_used_leaves_no_file(case: str, download: Endpoint, tmp_path: Path) -> None:
    handle, words = UNUSABLE[case]
    failure = sent(handle, download, request_deadline=0.4 if case == "drips" else 60)
    assert isinstance(failure, Failure)
    assert words in failure.reason
    assert failure.is_unreadable_reply == (case != "drips")
    assert list(tmp_path.iterdir()) == []


def test_a_compressed_download_is_written_as_it_was(download: Endpoint, tmp_path: Path) -> None:
    sent(lambda *_: http_response(gzip.compress(LINES), content_encoding="gzip"), download)
    assert (tmp_path / "file").read_bytes() == LINES


def test_a_download_that_moves_may_take_longer(download: Endpoint, tmp_path: Path) -> None:
    body = b"x" * 60_000

    def handle(_: ReceivedRequest, connection: socket.socket) -> bytes:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 6_000):
            connection.sendall(body[start : start + 6_000])
            time.sleep(0.08)
        return b""

    assert sent(handle, download, request_deadline=0.4).status == 200
    assert (tmp_path / "file").read_bytes() == body


def test_what_a_list_of_batches_says_is_bounded_too() -> None:
    reply = http_response(bomb(), content_encoding="gzip")
    tracemalloc.start()
    try:
        failure = sent(lambda *_: reply, Endpoint("GET", "/batches"))
        assert tracemalloc.get_traced_memory()[1] < 96 << 20
    finally:
        tracemalloc.stop()
    assert isinstance(failure, Failure)
    assert failure.is_unreadable_reply


# --- cookies ------------------------------------------------------------------------------------------------


def test_no_cookie_of_a_reply_is_sent_back(tmp_path: Path) -> None:
    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        body = json.dumps(reply_content(asked)).encode() if asked.body else b"{}"
        return http_response(body, set_cookie=f"c{asked.number}={'x' * 500}; Path=/")

    async def ask(client: EmbeddingClient) -> None:
        for n in range(3):
            await client.aembed([f"async {n}"])
        await client.aclose()

    with serve_raw(handle) as server, client_for_url(server.url) as client:
        for n in range(3):
            client.embed([f"text {n}"])
        client._transport.send(Send(endpoint=Endpoint("GET", "/file", download_to=tmp_path / "file")))
        client._transport.send(Send(endpoint=Endpoint("GET", "/batches")))
        asyncio.run(ask(client))
        assert len(server.requests) == 8
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
