"""All vectors of one call have one width, also of a model whose width nobody knows."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import AsyncCalls, SyncCalls
from raw_server import client_for_url, good_reply, http_response, reply_content, serve_raw, vector_of

from dashscope_embeddings import BadReply, corpus

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from raw_server import RawServer, ReceivedRequest

    from dashscope_embeddings import EmbeddingClient

WAYS = pytest.mark.parametrize("way", [SyncCalls(), AsyncCalls()], ids=["sync", "async"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["native", "openai"])
pytestmark = pytest.mark.filterwarnings("ignore:.*is not in the catalogue")
TEXTS = [f"text {n}" for n in range(40)]
UNKNOWN: dict[str, Any] = {"model": "unknown-model", "dimensions": None, "max_concurrency": 1}


@contextlib.contextmanager
def service(of: Callable[[int], int], **settings: Any) -> Iterator[tuple[EmbeddingClient, RawServer]]:
    """Vectors whose width depends on the number of the request."""

    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        return good_reply(asked, f"id-{asked.number}", of(asked.number))

    with serve_raw(handle) as server, client_for_url(server.url, **UNKNOWN | settings) as client:
        client._transport.clock.wait = lambda *_: False  # type: ignore[method-assign]
        yield client, server


def third(number: int) -> int:
    """The third reply is another than the rest."""
    return 48 if number == 3 else 40


SHAPES = pytest.mark.parametrize("how", [{}, {"array": True}], ids=["lists", "array"])


@WAYS
@PROTOCOLS
@SHAPES
def test_another_width_than_the_first_of_a_call_is_a_broken_reply(
    protocol: str, way: SyncCalls | AsyncCalls, how: dict[str, Any]
) -> None:
    said = "48 floats where the first reply of this call had 40"
    with service(third, protocol=protocol) as (client, _), pytest.raises(BadReply, match=said) as caught:
        way.embed(client, TEXTS, **how)
    found = {index: list(row) for index, row in caught.value.partial.items()}
    assert found == {index: pytest.approx(vector_of(text, 40)) for index, text in enumerate(TEXTS[:20])}


@WAYS
@SHAPES
def test_a_reply_of_another_width_is_asked_again(way: SyncCalls | AsyncCalls, how: dict[str, Any]) -> None:
    with service(third, max_retries=1) as (client, server):
        found = way.embed(client, TEXTS, **how)
    assert len(server.requests) == 5
    rows = found.dense_array if how else found.dense
    assert [list(row) for row in rows] == [pytest.approx(vector_of(text, 40)) for text in TEXTS]


@WAYS
def test_a_stream_ends_at_another_width(way: SyncCalls | AsyncCalls) -> None:
    with service(third) as (client, _), pytest.raises(BadReply, match="48 floats where"):
        way.stream(client, TEXTS)


@WAYS
def test_the_next_call_may_have_another_width(way: SyncCalls | AsyncCalls) -> None:
    with service(lambda number: 40 if number == 1 else 48) as (client, _):
        assert [len(row) for row in way.embed(client, ["a"]).dense] == [40]
        assert [len(row) for row in way.embed(client, ["b"]).dense] == [48]


def test_the_pieces_of_a_long_text_have_one_width() -> None:
    settings: dict[str, Any] = {"long_text": "average", "batch_size": 1}
    with service(lambda number: 39 + number, **settings) as (client, _), pytest.raises(BadReply, match="floats where"):
        client.embed(["word " * 60_000, "word " * 70_000])


@WAYS
def test_many_at_once_agree_on_one_width(way: SyncCalls | AsyncCalls) -> None:
    settings = {"max_concurrency": 8, "batch_size": 1}
    with service(lambda number: 40 + number % 2, **settings) as (client, _), pytest.raises(BadReply, match="floats"):
        way.embed(client, TEXTS)


@WAYS
def test_sparse_vectors_have_no_width(way: SyncCalls | AsyncCalls) -> None:
    def handle(asked: ReceivedRequest, _: socket.socket) -> bytes:
        reply = reply_content(asked, f"id-{asked.number}")
        for row in reply["output"]["embeddings"]:
            del row["embedding"]
            row["sparse_embedding"] = [{"index": n, "value": 0.5} for n in range(asked.number)]
        return http_response(json.dumps(reply).encode())

    with serve_raw(handle) as server, client_for_url(server.url, **UNKNOWN) as client:
        found = way.embed(client, TEXTS, output="sparse").sparse
    assert found is not None
    sizes = [{len(row) for row in found[start : start + 10]} for start in range(0, 40, 10)]
    assert sorted(map(sorted, sizes)) == [[1], [2], [3], [4]]  # requests may arrive in any order


def test_a_corpus_has_one_width_over_all_its_runs(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("".join(f"{text}\n" for text in TEXTS))
    output = tmp_path / "out.jsonl"
    later = 0
    with service(lambda number: later or third(number)) as (client, _):
        with pytest.raises(BadReply, match="floats where"):
            corpus.embed_corpus(source, output, client=client)
        later = 48
        with pytest.raises(BadReply, match="width"):
            corpus.embed_corpus(source, output, client=client)
        later = 40
        corpus.embed_corpus(source, output, client=client)
    rows = [json.loads(line)["embedding"] for line in output.read_text().splitlines()]
    assert rows == [pytest.approx(vector_of(text, 40)) for text in TEXTS]
