"""Vectors that arrived whole are taken, however odd what stands beside them is: each further try would be billed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import AsyncCalls, SyncCalls
from raw_server import client_for_url, http_response, reply_content, serve_raw, vector_of

from dashscope_embeddings import BadReply
from dashscope_embeddings.corpus.batch import messages as batch_protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from raw_server import ReceivedRequest

    from dashscope_embeddings import Embeddings

WAYS = pytest.mark.parametrize("way", [SyncCalls(), AsyncCalls()], ids=["sync", "async"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["native", "openai"])
TEXTS = ["first", "second"]


def embedded(
    written: Callable[[dict[str, Any]], bytes], protocol: str, way: SyncCalls | AsyncCalls, status: int = 200
) -> Embeddings:
    """What a client makes of one reply; asking twice would be billed twice."""

    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        return http_response(written(reply_content(asked, "id-1")), status)

    with serve_raw(handle) as server, client_for_url(server.url, protocol=protocol, max_retries=3) as client:
        found = way.embed(client, TEXTS)
        assert len(server.requests) == 1
    assert found.dense == [vector_of(text) for text in TEXTS]
    return found


USAGES: list[tuple[Any, int]] = [
    (None, 0),
    ([], 0),
    ([{"total_tokens": 7}], 0),
    ("3", 0),
    (3, 0),
    ({}, 0),
    ({"total_tokens": 3.0}, 3),
    ({"total_tokens": "3"}, 3),
    ({"total_tokens": "3.0"}, 3),
    ({"total_tokens": "many"}, 0),
    ({"total_tokens": 2.5}, 0),
    ({"total_tokens": True}, 0),
    ({"total_tokens": -1}, 0),
    ({"total_tokens": 10**400}, 0),
    ({"total_tokens": float("nan")}, 0),
    ({"total_tokens": [3], "prompt_tokens": 2}, 2),
    ({"prompt_tokens": 2, "total_tokens": None}, 2),
]


@WAYS
@PROTOCOLS
@pytest.mark.parametrize(("usage", "tokens"), USAGES, ids=lambda value: str(value)[:30])
def test_whatever_usage_says_the_vectors_are_taken(
    usage: Any, tokens: int, protocol: str, way: SyncCalls | AsyncCalls
) -> None:
    found = embedded(lambda reply: json.dumps(reply | {"usage": usage}).encode(), protocol, way)
    assert found.usage.tokens == tokens


IDS = [(123, "123"), (1.5, None), (True, None), ([], None), ({}, None), (None, None), ("", None), ("\ud800", "?")]


@PROTOCOLS
@pytest.mark.parametrize(("given", "read"), IDS, ids=ascii)
def test_an_id_of_any_type_is_read_or_unknown(given: Any, read: str | None, protocol: str) -> None:
    names = dict.fromkeys(("request_id", "id"), given)
    found = embedded(lambda reply: json.dumps(reply | names).encode(), protocol, SyncCalls())
    assert found.request_ids == (() if read is None else (read,))


@WAYS
@PROTOCOLS
@pytest.mark.parametrize("status", [201, 202, 203, 206])
def test_any_success_with_whole_vectors_is_an_answer(status: int, protocol: str, way: SyncCalls | AsyncCalls) -> None:
    embedded(lambda reply: json.dumps(reply).encode(), protocol, way, status)


@PROTOCOLS
@pytest.mark.parametrize("status", [201, 202, 206])
def test_a_success_without_vectors_is_a_broken_reply(status: int, protocol: str) -> None:
    def handle(_: ReceivedRequest, __: socket.socket) -> bytes:
        return http_response(b'{"output":{"task_id":"t","task_status":"PENDING"},"request_id":"id-1"}', status)

    with (
        serve_raw(handle) as server,
        client_for_url(server.url, protocol=protocol) as client,
        pytest.raises(BadReply, match="unexpected shape"),
    ):
        client.embed(TEXTS)


def _floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _floats(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_floats(inner) for inner in value]
    return float(value) if isinstance(value, int) else value


@PROTOCOLS
@pytest.mark.parametrize(
    ("written", "request_id"),
    [
        *(
            (lambda reply, code=code: json.dumps(reply | {"code": code, "message": "ok"}).encode(), "id-1")
            for code in (0, "", None, "0", 200, "200", "Success", "OK")  # a code that says success is no refusal
        ),
        (lambda reply: b"\xef\xbb\xbf" + json.dumps(reply).encode(), "id-1"),
        (lambda reply: json.dumps(reply).encode().replace(b"id-1", b"id\xff\xfe1"), "id\ufffd\ufffd1"),
        (lambda reply: json.dumps(_floats(reply)).encode(), "id-1"),  # some gateways write every number so
    ],
)
def test_odd_ways_to_write_a_reply_cost_no_vectors(
    written: Callable[[dict[str, Any]], bytes], request_id: str, protocol: str
) -> None:
    found = embedded(written, protocol, SyncCalls())
    assert (found.usage.tokens, found.request_ids) == (2, (request_id,))


def test_a_sparse_token_that_is_no_text_costs_no_vectors() -> None:
    weights = [{"index": 5, "value": 0.5, "token": 5}, {"index": 7, "value": 0.25, "token": "t"}]

    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        reply = reply_content(asked, "id-1")
        for row in reply["output"]["embeddings"]:
            row["sparse_embedding"] = weights
        return http_response(json.dumps(reply).encode())

    with serve_raw(handle) as server, client_for_url(server.url) as client:
        found = client.embed(TEXTS, output="dense&sparse").sparse
        assert found is not None
        assert [vector.as_dict() for vector in found] == [{5: 0.5, 7: 0.25}] * 2
        assert found[0].tokens is None


@pytest.mark.parametrize("status", [200, 201, 206])
@pytest.mark.parametrize(("usage", "tokens"), [({"total_tokens": "3"}, 3), ([], 0), ({"total_tokens": 3.0}, 3)])
def test_a_line_of_a_batch_is_read_as_leniently(usage: Any, tokens: int, status: int) -> None:
    body = {"data": [{"index": 0, "embedding": [0.5]}], "usage": usage}
    line = {"custom_id": "line-1", "response": {"status_code": status, "body": body}, "error": None}
    found = batch_protocol.read_result(json.dumps(line).encode())
    assert found is not None
    assert found.reply is not None
    assert found.tokens == tokens
