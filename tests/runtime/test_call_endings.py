"""Less common ends of calls: each is reported as what it is, and `partial` holds what arrived."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import KEY
from raw_server import client_for_url, good_reply, http_response, reply_content, serve_raw

from dashscope_embeddings import (
    BadReply,
    BadRequestError,
    ConnectionFailed,
    EmbeddingClient,
    InvalidInput,
    ServiceError,
)

if TYPE_CHECKING:
    import socket

    from raw_server import ReceivedRequest

WAYS = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def embed(client: EmbeddingClient, texts: Any, *, asynchronous: bool, **how: Any) -> Any:
    return asyncio.run(client.aembed(texts, **how)) if asynchronous else client.embed(texts, **how)


@WAYS
@pytest.mark.filterwarnings("ignore:.*is not in the catalogue")
def test_pieces_of_a_query_are_of_one_width(*, asynchronous: bool) -> None:
    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        if asked.number == 1:
            refusal = {"code": "InvalidParameter", "message": "Range of input length should be [1, 10]"}
            return http_response(json.dumps(refusal).encode(), 400)
        return good_reply(asked, f"id-{asked.number}", 64 if asked.number % 2 else 48)

    with (
        serve_raw(handle) as server,
        client_for_url(server.url, model="unknown", dimensions=None, long_text="average") as client,
        pytest.raises(BadReply, match="floats where"),
    ):
        embed(client, "word " * 12, text_type="query", asynchronous=asynchronous)


def test_a_loop_that_may_start_no_thread_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(url: str) -> None:
        async def refuse(*_: Any, **__: Any) -> Any:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", refuse)
        await EmbeddingClient(api_key=KEY, base_url=url, max_retries=0).aembed(["a"])

    with (
        serve_raw(lambda asked, _: good_reply(asked)) as server,
        pytest.raises(ConnectionFailed, match="cannot start another thread"),
    ):
        asyncio.run(ask(server.url.replace("127.0.0.1", "localhost")))


@pytest.mark.parametrize("body", [b"plain text blocked", b"<?xml version='1.0'?><Denied/>"])
def test_a_refusal_in_other_words_than_the_services_is_no_matter_of_regions(body: bytes) -> None:
    with (
        serve_raw(lambda *_: http_response(body, 403)) as server,
        client_for_url(server.url) as client,
        pytest.raises(ServiceError, match="came in place of the service's JSON") as caught,
    ):
        client.embed(["a"])
    assert "region" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 410, 414, 501])
def test_a_refused_path_is_named(status: int) -> None:
    with (
        serve_raw(lambda *_: http_response(b"", status)) as server,
        client_for_url(server.url) as client,
        pytest.raises(ServiceError, match=r"Asked 127\.0\.0\.1:\d+/api/v1/services/embeddings/"),
    ):
        client.embed(["a"])


@pytest.mark.parametrize("fine", [{"code": True}, {"code": "200 OK"}, {"error": "Success"}, {"error": 200}])
def test_a_success_that_names_itself_is_no_error(fine: dict[str, Any]) -> None:
    with (
        serve_raw(lambda asked, _: http_response(json.dumps({**reply_content(asked), **fine}).encode())) as server,
        client_for_url(server.url) as client,
    ):
        assert len(client.embed(["a"]).dense) == 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [("HTTPS_PROXY", f"http://{'a' * 70}.example:1"), ("SSL_CERT_FILE", "x" * 5_000)],
    ids=["a label too long", "a certificate pasted"],
)
def test_a_variable_that_no_system_takes_is_named(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises((InvalidInput, BadRequestError), match=variable):
        EmbeddingClient(api_key=KEY, base_url="https://dashscope.invalid", max_retries=0).embed(["a"])
