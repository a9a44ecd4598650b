"""Clients of other makers work against the emulator unchanged: the vendor's own package, and OpenAI's."""

from __future__ import annotations

import asyncio
import base64
import importlib
import struct
from typing import TYPE_CHECKING, Any

import pytest

from dashscope_embeddings.emulator import Emulator, faults

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dashscope_embeddings.emulator.http import Server

KEY = "sk-made-up"
MODEL = "text-embedding-v4"
LINES = ["風急天高猿嘯哀", "The islet is clear, the sand is white.", "無邊落木蕭蕭下"]


@pytest.fixture
def emulator() -> Emulator:
    return Emulator(api_key=KEY)


@pytest.fixture
def server(emulator: Emulator) -> Iterator[Server]:
    with emulator.serve() as server:
        yield server


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "texts_to_embedding.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def text_embedding(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The vendor's TextEmbedding, pointed at the emulator as its page tells users to point it at a region."""
    dashscope = pytest.importorskip("dashscope")
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{server.url}/api/v1")
    monkeypatch.setattr(dashscope, "api_key", KEY)
    yield dashscope.TextEmbedding
    # Its connections outlive the test otherwise, and are reported as leaks.
    importlib.import_module("dashscope.api_entities.http_request").close_shared_sync_session()


@pytest.fixture(params=["OpenAI", "AsyncOpenAI"])
def openai_create(request: pytest.FixtureRequest, server: Server) -> Any:
    """`client.embeddings.create` of OpenAI's package, called by a client of its own."""
    openai = pytest.importorskip("openai")
    settings = {"base_url": f"{server.url}/compatible-mode/v1", "max_retries": 0}

    def create(api_key: str = KEY, **arguments: Any) -> Any:
        if request.param == "OpenAI":
            with openai.OpenAI(api_key=api_key, **settings) as client:
                return client.embeddings.create(**arguments)

        async def ask() -> Any:
            async with openai.AsyncOpenAI(api_key=api_key, **settings) as client:
                return await client.embeddings.create(**arguments)

        return asyncio.run(ask())

    return create


def vectors(reply: Any) -> list[list[float]]:
    assert reply.status_code == 200, reply
    assert [row["text_index"] for row in reply.output["embeddings"]] == list(range(len(reply.output["embeddings"])))
    return [row["embedding"] for row in reply.output["embeddings"]]


def test_the_vendors_package_embeds_a_string_a_list_and_an_open_file(
    text_embedding: Any, emulator: Emulator, lines: Path
) -> None:
    expected = [emulator.dense(line) for line in LINES]
    assert vectors(text_embedding.call(model=MODEL, input=LINES[0])) == expected[:1]
    assert vectors(text_embedding.call(model=MODEL, input=LINES)) == expected
    with lines.open(encoding="utf-8") as file:
        assert vectors(text_embedding.call(model=MODEL, input=file)) == expected
    assert [len(asked.texts) for asked in emulator.asked] == [1, 3, 3]


def test_the_vendors_package_sends_role_dimension_and_instruction(text_embedding: Any, emulator: Emulator) -> None:
    reply = text_embedding.call(
        model=MODEL, input=LINES, text_type="query", dimension=256, instruct="Find the poem of a line."
    )
    parameters: dict[str, Any] = {"text_type": "query", "dimension": 256, "instruct": "Find the poem of a line."}
    assert vectors(reply) == [emulator.dense(line, **parameters) for line in LINES]
    assert emulator.asked[0].body["parameters"] == parameters
    assert reply.usage["total_tokens"] == emulator.billed_tokens > 0


def test_the_vendors_package_gets_dense_and_sparse_from_one_request(text_embedding: Any, emulator: Emulator) -> None:
    reply = text_embedding.call(model=MODEL, input=LINES, output_type="dense&sparse")
    assert vectors(reply) == [emulator.dense(line) for line in LINES]
    for row, line in zip(reply.output["embeddings"], LINES, strict=True):
        found = [(entry["index"], entry["value"], entry["token"]) for entry in row["sparse_embedding"]]
        assert found == [(token.index, token.value, token.token) for token in emulator.sparse(line)]
    assert emulator.requests == 1


def test_the_vendors_package_reads_refusals_and_their_request_id(text_embedding: Any, emulator: Emulator) -> None:
    refused = text_embedding.call(model=MODEL, input=["x"] * 11)
    assert (refused.status_code, refused.code) == (400, "InvalidParameter")
    assert "larger than 10" in refused.message
    assert refused.request_id == emulator.asked[0].request_id
    refused = text_embedding.call(model=MODEL, input="x", api_key="sk-another")
    assert (refused.status_code, refused.code) == (401, "InvalidApiKey")
    emulator.faults = [faults.Throttle()]
    refused = text_embedding.call(model=MODEL, input="x")
    assert (refused.status_code, refused.code) == (429, "Throttling.RateQuota")


# The clients that the vendor's package has since 2.0; its older TextEmbedding, tested above, is in all versions.
@pytest.fixture(params=["Client", "AsyncClient"])
def create(request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`client.embeddings.create`, called by a client of its own."""
    dashscope = pytest.importorskip("dashscope")
    if not hasattr(dashscope, request.param):
        pytest.skip(f"this version of dashscope has no {request.param}")
    monkeypatch.setenv("DASHSCOPE_CONFIG", "/nowhere")
    settings = {"api_key": KEY, "base_url": f"{server.url}/api/v1", "max_retries": 0}

    def create(**arguments: Any) -> Any:
        if request.param == "Client":
            with dashscope.Client(**settings) as client:
                return client.embeddings.create(model=MODEL, **arguments)

        async def ask() -> Any:
            async with dashscope.AsyncClient(**settings) as client:
                return await client.embeddings.create(model=MODEL, **arguments)

        return asyncio.run(ask())

    return create


@pytest.mark.parametrize("given", [LINES[0], LINES], ids=["a string", "a list"])
def test_the_vendors_newer_clients_send_role_dimension_and_instruction(
    create: Any, emulator: Emulator, given: str | list[str]
) -> None:
    parameters: dict[str, Any] = {"text_type": "query", "dimension": 256, "instruct": "Find the poem of a line."}
    reply = create(input=given, **parameters)
    (asked,) = emulator.asked
    assert asked.texts == tuple([given] if isinstance(given, str) else given)
    assert asked.body["parameters"] == parameters
    assert [row.index for row in reply.embeddings] == list(range(len(asked.texts)))
    assert [row.embedding for row in reply.embeddings] == [emulator.dense(text, **parameters) for text in asked.texts]
    assert (reply.usage.total_tokens, reply.request_id) == (emulator.billed_tokens, asked.request_id)


def test_the_vendors_newer_clients_get_dense_and_sparse_from_one_request(create: Any, emulator: Emulator) -> None:
    reply = create(input=LINES, output_type="dense&sparse")
    for row, line in zip(reply.embeddings, LINES, strict=True):
        assert row.embedding == emulator.dense(line)
        found = [(entry["index"], entry["value"], entry["token"]) for entry in row.sparse_embedding]
        assert found == [(token.index, token.value, token.token) for token in emulator.sparse(line)]
    assert emulator.requests == 1


@pytest.mark.parametrize(
    ("arguments", "faulty", "expected"),
    [
        ({"input": ["x"] * 11}, [], ("BadRequestError", 400, "InvalidParameter")),
        ({"input": "x", "api_key": "sk-another"}, [], ("AuthenticationError", 401, "InvalidApiKey")),
        ({"input": "x"}, [faults.Throttle()], ("RateLimitError", 429, "Throttling.RateQuota")),
    ],
    ids=["rows", "key", "rate"],
)
def test_the_vendors_newer_clients_raise_their_own_errors_for_refusals(
    create: Any, emulator: Emulator, arguments: Any, faulty: list[faults.Fault], expected: tuple[str, int, str]
) -> None:
    emulator.faults = faulty
    with pytest.raises(importlib.import_module("dashscope.v2.errors").DashScopeError) as refused:
        create(**arguments)
    assert (type(refused.value).__name__, refused.value.status_code, refused.value.code) == expected
    assert refused.value.request_id == emulator.asked[0].request_id


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_openais_package_embeds_a_string_a_list_and_an_open_file(
    openai_create: Any, emulator: Emulator, lines: Path, encoding: dict[str, str]
) -> None:
    for_model = {"model": MODEL, "dimensions": 256, **encoding}
    with lines.open(encoding="utf-8") as file:
        replies = [openai_create(input=given, **for_model) for given in (LINES[0], LINES, file)]
    for reply, asked in zip(replies, emulator.asked, strict=True):
        assert reply.usage.total_tokens == asked.tokens
        for row, text in zip(reply.data, asked.texts, strict=True):
            expected = emulator.dense(text, text_type="query", dimension=256)
            assert as_floats(row.embedding) == pytest.approx(expected, abs=1e-7)
    # The package sends a file's lines with their ends: they are other texts than the list's.
    assert [asked.texts for asked in emulator.asked] == [
        (LINES[0],),
        tuple(LINES),
        tuple(f"{line}\n" for line in LINES),
    ]
    assert {asked.encoding_format for asked in emulator.asked} == {encoding.get("encoding_format", "base64")}


def as_floats(embedding: list[float] | str) -> list[float]:
    """The package decodes base64 only where it asked for it by itself."""
    if isinstance(embedding, str):
        raw = base64.b64decode(embedding)
        return list(struct.unpack(f"<{len(raw) // 4}f", raw))
    return embedding


def test_openais_package_raises_its_own_errors_for_refusals(openai_create: Any, emulator: Emulator) -> None:
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.BadRequestError, match="larger than 10") as refused:
        openai_create(model=MODEL, input=["x"] * 11)
    assert refused.value.request_id == emulator.asked[0].request_id
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        openai_create(model="text-embedding-v9", input="x")
    emulator.faults = [faults.Throttle(code="Throttling.AllocationQuota")]
    with pytest.raises(openai.RateLimitError) as throttled:
        openai_create(model=MODEL, input="x")
    assert throttled.value.code == "insufficient_quota"
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided"):
        openai_create(api_key="sk-another", model=MODEL, input="x")
