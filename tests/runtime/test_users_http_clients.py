"""A user's HTTP client of httpx, or of httpx2, its successor with the same interface: both behave alike."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import FakeClock
from raw_server import good_reply, http_response, reply_content, serve_raw, vector_of
from secret_scanner import CANARY, find_secret

from dashscope_embeddings import BadRequestError, ConnectionFailed, DashScopeError, EmbeddingClient, Embeddings
from dashscope_embeddings._core.steps import Endpoint, Send

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from raw_server import ReceivedRequest

    Handle = Callable[[ReceivedRequest, socket.socket], bytes | None]

TEXTS = ["deep sea", "深海"]
VECTORS = [vector_of(text) for text in TEXTS]
pytestmark = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@pytest.fixture(params=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


def client_at(url: str, **settings: Any) -> EmbeddingClient:
    client = EmbeddingClient(api_key=CANARY, base_url=url, **{"dimensions": 64, "max_retries": 0, **settings})
    client._transport.clock = FakeClock()  # type: ignore[assignment]
    return client


def embed(library: Any, url: str, proxy: str | None = None, *, asynchronous: bool, **settings: Any) -> Embeddings:
    """The texts' vectors, by a client of the library that follows redirects elsewhere."""
    if not asynchronous:
        with library.Client(follow_redirects=True, proxy=proxy) as http:
            return client_at(url, http_client=http, **settings).embed(TEXTS)

    async def ask() -> Embeddings:
        async with library.AsyncClient(follow_redirects=True, proxy=proxy) as http:
            return await client_at(url, http_async_client=http, **settings).aembed(TEXTS)

    return asyncio.run(ask())


def refused(library: Any, url: str, proxy: str | None = None, *, asynchronous: bool, **settings: Any) -> DashScopeError:
    with pytest.raises(DashScopeError) as caught:
        embed(library, url, proxy, asynchronous=asynchronous, **settings)
    assert find_secret(caught.value) == []
    assert caught.value.failed == [0, 1]
    return caught.value


def zipped(asked: ReceivedRequest, _: socket.socket) -> bytes:
    return http_response(gzip.compress(json.dumps(reply_content(asked)).encode()), content_encoding="gzip")


@pytest.mark.parametrize("handle", [lambda asked, _: good_reply(asked), zipped], ids=["plain", "gzip"])
def test_vectors_come(library: Any, handle: Handle, *, asynchronous: bool) -> None:
    with serve_raw(handle) as server:
        assert embed(library, server.url, asynchronous=asynchronous).dense == VECTORS
    (asked,) = server.requests
    assert asked.texts == TEXTS
    assert f"authorization: bearer {CANARY}".lower() in asked.head.lower()


def cut(asked: ReceivedRequest, connection: socket.socket) -> None:
    reply = good_reply(asked)
    connection.sendall(reply[: len(reply) // 2])


def silent(_: ReceivedRequest, connection: socket.socket) -> None:
    connection.recv(1)  # until the client gives up


@pytest.mark.parametrize(
    ("handle", "timeout", "words"),
    [
        (lambda *_: None, 20, "RemoteProtocolError"),
        (cut, 20, "RemoteProtocolError"),
        (silent, 0.7, "0.7 s (ReadTimeout)"),
    ],
    ids=["dropped", "cut off", "silent"],
)
def test_no_reply_is_a_failed_connection(
    library: Any, handle: Handle, timeout: float, words: str, *, asynchronous: bool
) -> None:
    with serve_raw(handle) as server:
        error = refused(library, server.url, asynchronous=asynchronous, timeout=timeout, max_retries=1)
    assert isinstance(error, ConnectionFailed)
    assert words in str(error)
    assert len(server.requests) == 2


def test_a_refused_connection_is_a_failed_one(library: Any, *, asynchronous: bool) -> None:
    with serve_raw(lambda *_: None) as gone:
        pass
    error = refused(library, gone.url, asynchronous=asynchronous)
    assert isinstance(error, ConnectionFailed)
    assert "ConnectError" in str(error)


@pytest.mark.parametrize(("status", "asks"), [(407, 1), (502, 2)])
def test_a_proxy_that_refuses_is_named(library: Any, status: int, asks: int, *, asynchronous: bool) -> None:
    """A wrong password does not get right by trying again."""
    with serve_raw(lambda *_: http_response(b"", status)) as proxy:
        error = refused(library, "https://host.invalid", proxy.url, asynchronous=asynchronous, max_retries=1)
    assert isinstance(error, ConnectionFailed)
    assert "the proxy" in str(error)
    assert len(proxy.requests) == asks


def test_a_redirect_is_not_followed(library: Any, *, asynchronous: bool) -> None:
    with (
        serve_raw(lambda asked, _: good_reply(asked)) as elsewhere,
        serve_raw(lambda *_: http_response(b"", 307, location=elsewhere.url)) as server,
    ):
        error = refused(library, server.url, asynchronous=asynchronous)
    assert isinstance(error, BadRequestError)
    assert (error.status, len(server.requests), elsewhere.requests) == (307, 1, [])


def test_other_endpoints_are_asked_and_files_sent(library: Any, tmp_path: Path, *, asynchronous: bool) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b"{}\n")
    steps = [Send(b"{}", Endpoint("POST", "/v1/batches"))]
    steps.append(Send(endpoint=Endpoint("POST", "/v1/files", upload_file=file, form_fields={"purpose": "batch"})))
    with serve_raw(lambda *_: http_response(b"{}")) as server:

        async def ask() -> list[Any]:
            with library.Client() as http:
                async with library.AsyncClient() as ahttp:
                    transport = client_at(server.url, http_client=http, http_async_client=ahttp)._transport
                    return [await transport.asend(step) if asynchronous else transport.send(step) for step in steps]

        replies = asyncio.run(ask())
    assert [(reply.status, reply.body) for reply in replies] == [(200, b"{}")] * 2
    assert server.requests[0].body == b"{}"
    assert b'name="purpose"\r\n\r\nbatch' in server.requests[1].body
    assert b"{}\n" in server.requests[1].body
