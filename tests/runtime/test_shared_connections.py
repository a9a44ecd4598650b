"""Connections are the process's: clients with equal settings share them, and idle ones are closed."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import KEY, becomes_true
from raw_server import RawServer, good_reply, http_response, serve_raw, vector_of

from dashscope_embeddings import EmbeddingClient
from dashscope_embeddings._runtime import environment, shared_pools, sync_connections, transport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raw_server import ReceivedRequest

WAYS = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
TEXTS = [f"text {i}" for i in range(60)]


@pytest.fixture
def server() -> Iterator[RawServer]:
    with serve_raw(lambda asked, _: good_reply(asked, f"id-{asked.number}")) as running:
        yield running


def client_of(server: RawServer, **settings: Any) -> EmbeddingClient:
    return EmbeddingClient(**{"api_key": KEY, "base_url": server.url, "dimensions": 64, "max_retries": 0, **settings})


def twenty(server: RawServer) -> list[Any]:
    """The clients of as many objects, adapters' too."""
    langchain = pytest.importorskip("dashscope_embeddings.langchain")
    settings: dict[str, Any] = {"api_key": KEY, "base_url": server.url, "dimensions": 64, "max_retries": 0}
    return [made for _ in range(10) for made in (client_of(server), langchain.DashScopeEmbeddings(**settings).client)]


# --- idle ones are closed -----------------------------------------------------------------------------------


def test_many_objects_hold_the_connections_of_one_and_none_when_idle(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_IDLE_SECONDS", 0.3)
    monkeypatch.setattr(sync_connections, "_SWEEP_SECONDS", 0.02)
    monkeypatch.setattr(sync_connections, "_sweeper", None)  # that of other tests sleeps for longer
    monkeypatch.setattr(sync_connections, "_pools_with_idle", set())  # theirs stay idle for longer
    clients = twenty(server)
    for client in clients:
        assert len(client.embed(TEXTS).dense) == len(TEXTS)
        assert server.open_connections <= 16
    assert becomes_true(lambda: server.open_connections == 0)
    assert becomes_true(lambda: sync_connections._sweeper is None)
    assert len(clients[0].embed(TEXTS).dense) == len(TEXTS)


async def test_so_do_those_of_one_loop(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_IDLE_SECONDS", 0.3)
    clients = twenty(server)
    for client in clients:
        assert len((await client.aembed(TEXTS)).dense) == len(TEXTS)
        assert server.open_connections <= 16
    for _ in range(500):
        if server.open_connections == 0 and len(asyncio.all_tasks()) == 1:
            break
        await asyncio.sleep(0.01)
    assert (server.open_connections, len(asyncio.all_tasks())) == (0, 1)
    assert len((await clients[0].aembed(TEXTS)).dense) == len(TEXTS)


# --- shared by equals ---------------------------------------------------------------------------------------


async def ask(client: EmbeddingClient, text: str = "a", *, asynchronous: bool) -> Any:
    return (await client.aembed([text]) if asynchronous else client.embed([text])).dense[0]


@WAYS
@pytest.mark.parametrize("end", ["closed", "collected"])
async def test_the_end_of_one_client_does_not_close_the_connections_of_another(
    server: RawServer, end: str, *, asynchronous: bool
) -> None:
    one, other = client_of(server), client_of(server)
    await ask(one, asynchronous=asynchronous)
    await ask(other, asynchronous=asynchronous)
    if end == "closed":
        await one.aclose()
    del one
    gc.collect()
    await ask(other, asynchronous=asynchronous)
    assert (server.connections, server.open_connections) == (1, 1)
    if end == "closed":
        await other.aclose()
    del other
    gc.collect()
    assert await asyncio.to_thread(becomes_true, lambda: server.open_connections == 0)


@WAYS
async def test_a_copy_of_one_clients_reply_is_not_taken_for_anothers(*, asynchronous: bool) -> None:
    """The copy stands on the connection that the next client takes."""
    with serve_raw(lambda asked, _: good_reply(asked, f"id-{asked.number}") * 2) as doubling:
        clients = [client_of(doubling) for _ in range(8)]
        for number, client in enumerate(clients):
            assert await ask(client, f"text {number}", asynchronous=asynchronous) == vector_of(f"text {number}")
        await asyncio.gather(*(client.aclose() for client in clients))


def test_a_new_client_after_the_last_one_was_closed_has_new_connections(server: RawServer) -> None:
    for count in (1, 2, 3):
        with client_of(server) as client:
            client.embed(["a"])
        assert server.connections == count


DIFFERENT: dict[str, dict[str, Any]] = {
    "key": {"api_key": "sk-another"},
    "header": {"default_headers": {"X-Team": "search"}},
    "workspace": {"workspace": "ws-1"},
    "timeout": {"timeout": 7.0},
    "deadline": {"request_deadline": 7.0},
}


@WAYS
@pytest.mark.parametrize("difference", DIFFERENT)
async def test_clients_with_different_settings_share_nothing(
    difference: str, server: RawServer, *, asynchronous: bool
) -> None:
    clients = [client_of(server), client_of(server, **DIFFERENT[difference])]
    for client in clients:
        await ask(client, asynchronous=asynchronous)
    assert [request.connection for request in server.requests] == [1, 2]
    for client in clients:
        await client.aclose()


def test_a_proxy_that_was_named_since_is_used_by_new_clients_alone(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name that is not this machine's own, so that the proxy applies; the proxy is a server that refuses.
    monkeypatch.setattr(environment, "is_loopback", lambda _: False)
    with serve_raw(lambda *_: http_response(b"{}", 407)) as proxy:
        before = client_of(server)
        before.embed(["a"])
        monkeypatch.setenv("http_proxy", proxy.url)
        with pytest.raises(Exception, match=r"407|proxy"):
            client_of(server).embed(["a"])
        before.embed(["a"])
    assert len(proxy.requests) == 1
    assert server.connections == 1


def test_each_loop_has_its_own_connections(server: RawServer) -> None:
    clients = [client_of(server), client_of(server)]

    async def ask_both() -> None:
        for client in clients:
            await client.aembed(["a"])

    asyncio.run(ask_both())
    asyncio.run(ask_both())
    assert [request.connection for request in server.requests] == [1, 1, 2, 2]


def test_a_users_client_is_neither_shared_nor_closed(server: RawServer) -> None:
    with httpx.Client() as http:
        first, second = client_of(server, http_client=http), client_of(server)
        first.embed(["a"])
        second.embed(["a"])
        first.close()
        second.close()
        assert not http.is_closed
        assert [request.connection for request in server.requests] == [1, 2]


def test_nothing_that_is_shared_shows_the_key(server: RawServer) -> None:
    client = client_of(server, api_key="sk-canary-5d1")
    client.embed(["a"])
    shown = [*map(repr, shared_pools._shared), repr(vars(client._transport)), repr(client._transport._make_request)]
    assert len(shown) > 2
    assert "canary" not in "".join(shown)
    client.close()


# --- what goes over the wire --------------------------------------------------------------------------------


@WAYS
async def test_a_request_on_a_kept_connection_is_as_the_first_one(server: RawServer, *, asynchronous: bool) -> None:
    client = client_of(server, default_headers={"X-Team": "search"})
    for text in ("one", "another text"):
        await ask(client, text, asynchronous=asynchronous)
    await client.aclose()
    first, second = (without_length(request) for request in server.requests)
    assert first == second
    assert first[0] == "POST /api/v1/services/embeddings/text-embedding/text-embedding HTTP/1.1"
    assert set(first[1:]) == {
        f"host: {server.url[7:]}",
        f"authorization: bearer {KEY}",
        "content-type: application/json",
        "accept: application/json",
        "accept-encoding: gzip",
        "x-team: search",
        "connection: keep-alive",
        f"user-agent: python-httpx/{httpx.__version__}",
    }
    assert [request.connection for request in server.requests] == [1, 1]
    assert [request.texts for request in server.requests] == [["one"], ["another text"]]


def without_length(request: ReceivedRequest) -> list[str]:
    request_line, *headers = request.head.split("\r\n")
    assert f"content-length: {len(request.body)}" in [header.lower() for header in headers]
    return [request_line, *(line.lower() for line in headers if not line.lower().startswith("content-length"))]


# --- packets ------------------------------------------------------------------------------------------------


@WAYS
def test_head_and_body_of_a_request_are_one_packet(server: RawServer, *, asynchronous: bool) -> None:
    client = client_of(server)

    async def ask() -> list[list[float]]:
        return [(await client.aembed(text)).dense[0] for text in TEXTS[:20]]

    vectors = asyncio.run(ask()) if asynchronous else [client.embed(text).dense[0] for text in TEXTS[:20]]
    assert vectors == [vector_of(text) for text in TEXTS[:20]]
    assert (len(server.requests), server.body_reads) == (20, 0)


def test_a_body_of_a_users_own_request_may_wait_for_its_head_to_arrive(server: RawServer) -> None:
    """The request goes over a connection that an embedding client has used."""
    with httpx.Client() as users:
        assert client_of(server, http_client=users).embed("ours").dense == [vector_of("ours")]
        before = server.received_bytes

        def body() -> Iterator[bytes]:
            assert becomes_true(lambda: server.received_bytes > before)
            yield b'{"input": {"texts": ["theirs"]}}'

        response = users.post(server.url, content=body(), headers={"content-length": "32"})
        assert response.status_code == 200
        assert server.connections == 1


def test_a_reply_of_the_parent_that_a_forked_child_drops_closes_nothing(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(server)
    client.embed("one")
    pool: Any = client._transport._sync_pool
    connection, _ = pool.pool.idle.take()
    monkeypatch.setattr(pool.pool, "_pid", -1)  # as in a child
    pool.pool.release(connection, is_reusable=False)
    assert server.open_connections == 1
    pool.pool.release(connection, is_reusable=True)
    assert not pool.pool.idle
