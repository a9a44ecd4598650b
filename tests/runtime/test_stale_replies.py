"""A reply that stands on a connection twice never becomes the vectors of another text."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import KEY
from raw_server import client_for_url, good_reply, http_response, reply_content, serve_raw, vector_of

from dashscope_embeddings import BadReply, BadRequestError, EmbeddingClient
from dashscope_embeddings._core.protocol import Reply
from dashscope_embeddings._core.stale_replies import _MAX_REMEMBERED_REPLIES, SeenReplies
from dashscope_embeddings._core.steps import Endpoint, Send
from dashscope_embeddings.langchain import DashScopeEmbeddings

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from raw_server import ReceivedRequest

    Handle = Callable[[ReceivedRequest, socket.socket], bytes | None]

PROTOCOLS = pytest.mark.parametrize("protocol", ["native", "openai"])
ROLES = pytest.mark.parametrize("role", ["document", "query"])
SYNC_AND_ASYNC = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
TEXTS = [f"text {n}" for n in range(6)]


def one_by_one(client: EmbeddingClient, texts: list[str], role: str, *, asynchronous: bool) -> list[Any]:
    """Each text in a call of its own, over connections that are kept."""
    how: Any = {"text_type": role}
    if not asynchronous:
        return [client.embed([text], **how).dense[0] for text in texts]

    async def ask() -> list[Any]:
        found = [(await client.aembed([text], **how)).dense[0] for text in texts]
        await client.aclose()
        return found

    return asyncio.run(ask())


def doubled(
    ids: Callable[[int], object], *, always: bool = True, headers: Callable[[int], dict[str, Any]] = lambda _: {}
) -> Handle:
    """Writes replies twice, with ids by the number of the request."""

    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        body = json.dumps(reply_content(asked, ids(asked.number))).encode()
        return http_response(body, **headers(asked.number)) * (2 if always or asked.number == 1 else 1)

    return handle


@PROTOCOLS
@ROLES
@SYNC_AND_ASYNC
@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
def test_a_reply_that_is_written_twice_answers_its_own_text_only(
    *, protocol: str, role: str, asynchronous: bool, always: bool
) -> None:
    handle = doubled(lambda number: f"id-{number}", always=always)
    with serve_raw(handle) as server, client_for_url(server.url, protocol=protocol) as client:
        assert one_by_one(client, TEXTS, role, asynchronous=asynchronous) == [vector_of(text) for text in TEXTS]
        # Every second request got a copy, and was sent again.
        assert len(server.requests) <= (2 * len(TEXTS) if always else len(TEXTS) + 1)


SIGNS: dict[str, tuple[Callable[[int], object], Callable[[int], dict[str, Any]], list[str]]] = {
    # ids of bodies, headers, texts
    "a header": (lambda _: None, lambda number: {"x_request_id": f"id-{number}"}, TEXTS),
    "vectors, without ids": (lambda _: None, lambda _: {}, TEXTS),
    "vectors, with equal ids": (lambda _: "always the same", lambda _: {}, TEXTS),
    "an id, of equal texts": (lambda number: f"id-{number}", lambda _: {}, ["a", "a", "b", "b", "c"]),
}


@PROTOCOLS
@SYNC_AND_ASYNC
@pytest.mark.parametrize("sign", SIGNS)
def test_a_copy_is_recognised_by_what_it_has(*, sign: str, protocol: str, asynchronous: bool) -> None:
    ids, headers, texts = SIGNS[sign]
    with serve_raw(doubled(ids, headers=headers)) as server, client_for_url(server.url, protocol=protocol) as client:
        assert one_by_one(client, texts, "query", asynchronous=asynchronous) == [vector_of(text) for text in texts]


@SYNC_AND_ASYNC
@pytest.mark.parametrize(
    "refusal",
    [
        http_response(b'{"code":"InvalidParameter","message":"no","request_id":"refused"}', 400),
        http_response(b'{"code":"InvalidParameter","message":"no"}', 400),
        http_response(b"<html>400</html>", 400),
    ],
    ids=["with an id", "without an id", "a page"],
)
def test_a_refusal_that_is_written_twice_refuses_its_own_text_only(*, refusal: bytes, asynchronous: bool) -> None:
    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        return refusal * 2 if asked.texts == ["bad"] else good_reply(asked, f"id-{asked.number}")

    with serve_raw(handle) as server, client_for_url(server.url) as client:
        with pytest.raises(BadRequestError):
            client.embed(["bad"])
        assert one_by_one(client, TEXTS, "query", asynchronous=asynchronous) == [vector_of(text) for text in TEXTS]


@SYNC_AND_ASYNC
def test_a_broken_reply_closes_its_connection(*, asynchronous: bool) -> None:
    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        good = good_reply(asked, f"id-{asked.number}")
        return http_response(b"{}") + good if asked.number == 1 else good

    with serve_raw(handle) as server, client_for_url(server.url) as client:
        with pytest.raises(BadReply):
            client.embed(["first"])
        assert one_by_one(client, TEXTS, "query", asynchronous=asynchronous) == [vector_of(text) for text in TEXTS]
        assert server.requests[0].connection != server.requests[1].connection


@PROTOCOLS
@pytest.mark.parametrize("by_number", ["id-{}", None], ids=["with an id", "without an id"])
def test_many_threads_meet_no_copy(*, by_number: str | None, protocol: str) -> None:
    """Waiting texts share requests, so a copy may have another number of rows than its reader asked for."""
    handle = doubled(lambda number: by_number and by_number.format(number))
    texts = [f"text {n}" for n in range(200)]
    with serve_raw(handle) as server, client_for_url(server.url, protocol=protocol, max_concurrency=8) as client:
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda text: client.embed([text]).dense[0], texts))
        assert found == [vector_of(text) for text in texts]


# --- servers that repeat themselves in good faith ------------------------------------------------------------


def constant(asked: ReceivedRequest, _: socket.socket) -> bytes:
    return good_reply(asked, "always the same")


def fake(asked: ReceivedRequest, _: socket.socket) -> bytes:
    rows = [{"text_index": at, "embedding": [0.125] * 64} for at in range(len(asked.texts))]
    return http_response(json.dumps({"output": {"embeddings": rows}, "request_id": "r-1"}).encode())


@SYNC_AND_ASYNC
@pytest.mark.parametrize(("handle", "extra"), [(constant, 1), (fake, 2)], ids=["one id", "one reply"])
def test_a_server_that_repeats_itself_costs_a_request_or_two_in_all(
    *, handle: Handle, extra: int, asynchronous: bool
) -> None:
    texts = [f"text {n}" for n in range(60)]
    with serve_raw(handle) as server, client_for_url(server.url) as client:
        one_by_one(client, texts, "query", asynchronous=asynchronous)
        assert len(server.requests) <= len(texts) + extra
        assert server.connections <= 1 + extra


@pytest.mark.parametrize("handle", [constant, fake], ids=["one id", "one reply"])
def test_many_at_once_find_out_at_a_bounded_price(handle: Handle) -> None:
    with serve_raw(handle) as server, client_for_url(server.url, batch_size=1, max_concurrency=16) as client:
        client.embed([f"text {n}" for n in range(90)])
        extra = len(server.requests) - 90
        client.embed([f"more {n}" for n in range(90)])
        assert extra <= 20
        assert len(server.requests) == 180 + extra


@SYNC_AND_ASYNC
@pytest.mark.parametrize("cached", [False, True])
def test_replies_without_ids_and_a_cache_on_the_way_cost_no_request(*, cached: bool, asynchronous: bool) -> None:
    """A cache answers equal requests with the same reply, id and all."""
    known: dict[bytes, bytes] = {}

    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        return known.setdefault(asked.body, good_reply(asked, f"id-{asked.number}")) if cached else good_reply(asked)

    texts = [text for text in TEXTS for _ in range(3)]
    with serve_raw(handle) as server, client_for_url(server.url) as client:
        assert one_by_one(client, texts, "query", asynchronous=asynchronous) == [vector_of(text) for text in texts]
        assert len(server.requests) == len(texts)
        assert server.connections <= 1 + cached


def test_a_transport_for_tests_may_repeat_itself() -> None:
    count = 0

    def handler(_: httpx.Request) -> httpx.Response:
        nonlocal count
        count += 1
        rows = [{"text_index": 0, "embedding": [0.5] * 64}]
        return httpx.Response(200, json={"output": {"embeddings": rows}, "request_id": "r"})

    with httpx.Client(transport=httpx.MockTransport(handler)) as http_client:
        client = EmbeddingClient(api_key=KEY, dimensions=64, http_client=http_client)
        assert [client.embed([text]).dense for text in TEXTS] == [[[0.5] * 64]] * len(TEXTS)
    assert count == len(TEXTS)


@SYNC_AND_ASYNC
def test_a_users_own_client_meets_no_copy_either(*, asynchronous: bool) -> None:
    async def ask(url: str) -> list[Any]:
        async with httpx.AsyncClient() as mine:
            with client_for_url(url, http_async_client=mine) as client:
                return [(await client.aembed([text])).dense[0] for text in TEXTS]

    with serve_raw(doubled(lambda number: f"id-{number}")) as server, httpx.Client() as mine:
        if asynchronous:
            found = asyncio.run(ask(server.url))
        else:
            with client_for_url(server.url, http_client=mine) as client:
                found = one_by_one(client, TEXTS, "query", asynchronous=False)
        assert found == [vector_of(text) for text in TEXTS]


def late_copy() -> Handle:
    """The copy of the first reply comes when the second request is there, before the reply to that one."""
    first: list[bytes] = []

    def handle(asked: ReceivedRequest, connection: socket.socket) -> bytes:
        reply = good_reply(asked, f"id-{asked.number}")
        first.append(reply)
        if asked.number == 2:
            connection.sendall(first[0])
        return reply

    return handle


@pytest.mark.parametrize("second", ["a client", "a copied adapter"])
def test_who_shares_a_users_http_client_knows_of_the_others_replies(second: str) -> None:
    with serve_raw(late_copy()) as server, httpx.Client() as shared:
        how: Any = {"api_key": KEY, "base_url": server.url, "http_client": shared, "dimensions": 64, "max_retries": 0}
        one: Any = DashScopeEmbeddings(**how) if second == "a copied adapter" else EmbeddingClient(**how)
        other = one.model_copy(update={"timeout": 30.0}) if second == "a copied adapter" else EmbeddingClient(**how)
        embed = [getattr(made, "client", made).embed for made in (one, other)]
        found = [ask([text]).dense[0] for ask, text in zip(embed * 3, TEXTS, strict=True)]
        assert found == [vector_of(text) for text in TEXTS]


def test_a_copy_that_always_comes_ends_in_an_error() -> None:
    seen = SeenReplies()
    reply = Reply(200, {}, b"x", 1)
    assert seen.judge(b"one", reply, "id-1", has_vectors=True, is_repeat=False) == "keep"
    for _ in range(100):
        assert seen.judge(b"two", reply, "id-1", has_vectors=True, is_repeat=True) == "stale"


def test_what_is_remembered_is_bounded() -> None:
    seen = SeenReplies()
    for number in range(5 * _MAX_REMEMBERED_REPLIES):
        reply = Reply(200, {}, b"", number)
        seen.judge(b"request %d" % number, reply, f"id-{number}", has_vectors=True, is_repeat=False)
    assert len(seen._recent) + len(seen._older) <= 2 * _MAX_REMEMBERED_REPLIES
    late = Reply(200, {}, b"", number + 1)
    known = f"id-{4 * _MAX_REMEMBERED_REPLIES}"
    assert seen.judge(b"another", late, known, has_vectors=True, is_repeat=False) == "stale"


def test_bytes_that_wait_when_the_next_request_is_sent_are_no_reply_to_it() -> None:
    def handle(asked: ReceivedRequest, connection: socket.socket) -> bytes | None:
        connection.sendall(good_reply(asked, f"id-{asked.number}"))
        time.sleep(0.05)
        # With an id of its own: the connection alone gives it away.
        return http_response(json.dumps(reply_content(asked, f"unasked-{asked.number}")).encode())

    with serve_raw(handle) as server, client_for_url(server.url) as client:
        for text in TEXTS[:3]:
            assert client.embed([text]).dense == [vector_of(text)]
            time.sleep(0.2)


def test_replies_about_files_and_batches_that_are_written_twice_answer_once(tmp_path: Path) -> None:
    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        return http_response(b'{"id":"%d"}' % asked.number) * 2

    with serve_raw(handle) as server, client_for_url(server.url) as client:
        for number in range(1, 7, 2):
            status = client._transport.send(Send(endpoint=Endpoint("GET", "/batches/b")))
            assert isinstance(status, Reply)
            assert json.loads(status.body) == {"id": f"{number}"}
            client._transport.send(Send(endpoint=Endpoint("GET", "/files/f/content", download_to=tmp_path / "file")))
            assert json.loads((tmp_path / "file").read_bytes()) == {"id": f"{number + 1}"}
