"""How each client is made: ours, the peers, and bare httpx as the floor.

`maker(name)` imports what is needed and returns the function that makes the client, so that imports are
never part of a measurement while everything that a client builds for itself is.
"""

from __future__ import annotations

import asyncio
import importlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import httpx
from load import IN_FLIGHT, KEY, MODEL, PATH, ROWS, Load
from pydantic import TypeAdapter
from pydantic_core import to_json
from typing_extensions import TypedDict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Vectors: TypeAlias = Sequence[Sequence[float]]


@dataclass
class Calls:
    """What every client offers, whatever it calls it."""

    documents: Callable[[list[str]], Vectors]
    query: Callable[[str], Sequence[float]]
    adocuments: Callable[[list[str]], Awaitable[Vectors]]
    aquery: Callable[[str], Awaitable[Sequence[float]]]


def _of_langchain(made: Any) -> Calls:
    return Calls(made.embed_documents, made.embed_query, made.aembed_documents, made.aembed_query)


def _of_llama_index(made: Any) -> Calls:
    batch, abatch = made.get_text_embedding_batch, made.aget_text_embedding_batch
    return Calls(batch, made.get_query_embedding, abatch, made.aget_query_embedding)


Maker: TypeAlias = "Callable[[str, Load], Calls]"


def maker(name: str) -> Maker:
    """What makes the client of this name for an address and a load."""
    return _MAKERS[name]()


# --- ours --------------------------------------------------------------------------------------------------


def our_client(url: str, load: Load) -> Any:
    """An `EmbeddingClient`."""
    kind = importlib.import_module("dashscope_embeddings").EmbeddingClient
    return kind(MODEL, api_key=KEY, base_url=url, **load.quota())


def _ours() -> Maker:
    importlib.import_module("dashscope_embeddings")

    def make(url: str, load: Load) -> Calls:
        client = our_client(url, load)

        async def adocuments(texts: list[str]) -> Vectors:
            dense: Vectors = (await client.aembed(texts)).dense
            return dense

        async def aquery(text: str) -> Sequence[float]:
            dense: Vectors = (await client.aembed(text, text_type="query")).dense
            return dense[0]

        return Calls(
            lambda texts: client.embed(texts).dense,
            lambda text: client.embed(text, text_type="query").dense[0],
            adocuments,
            aquery,
        )

    return make


def _ours_langchain() -> Maker:
    kind = importlib.import_module("dashscope_embeddings.langchain").DashScopeEmbeddings
    return lambda url, load: _of_langchain(kind(model=MODEL, api_key=KEY, base_url=url, **load.quota()))


def _ours_llama_index() -> Maker:
    kind = importlib.import_module("dashscope_embeddings.llama_index").DashScopeEmbedding
    return lambda url, load: _of_llama_index(kind(MODEL, api_key=KEY, base_url=url, **load.quota()))


# --- peers -------------------------------------------------------------------------------------------------


def _with_sdk(url: str) -> None:
    """Leads the vendor's SDK, on which two peers stand, to the server."""
    sdk: Any = importlib.import_module("dashscope")
    sdk.base_http_api_url = f"{url}/api/v1"


def _langchain_community() -> Maker:
    kind = importlib.import_module("langchain_community.embeddings.dashscope").DashScopeEmbeddings
    importlib.import_module("dashscope")

    def make(url: str, _: Load) -> Calls:
        _with_sdk(url)
        return _of_langchain(kind(model=MODEL, dashscope_api_key=KEY))

    return make


def _llama_index_dashscope() -> Maker:
    kind = importlib.import_module("llama_index.embeddings.dashscope").DashScopeEmbedding

    def make(url: str, _: Load) -> Calls:
        _with_sdk(url)
        # Its default of 25 texts a request is refused for this model.
        return _of_llama_index(kind(model_name=MODEL, api_key=KEY, embed_batch_size=ROWS))

    return make


def _langchain_openai() -> Maker:
    kind = importlib.import_module("langchain_openai").OpenAIEmbeddings
    how = {"model": MODEL, "api_key": KEY, "check_embedding_ctx_length": False, "chunk_size": ROWS}
    return lambda url, _: _of_langchain(kind(base_url=f"{url}/compatible-mode/v1", **how))


# --- the floor ---------------------------------------------------------------------------------------------


class _Row(TypedDict):
    text_index: int
    embedding: list[float]


class _Output(TypedDict):
    embeddings: list[_Row]


class _Reply(TypedDict):
    output: _Output


REPLY = TypeAdapter(_Reply)


def _bare() -> Maker:
    """What a careful user writes without a library: no retry, no pace, no check beyond types and order."""
    return lambda url, _: _calls_of_httpx(url + PATH)


def _calls_of_httpx(url: str) -> Calls:
    def post(client: httpx.Client, texts: list[str], role: str) -> Vectors:
        return _vectors(client.post(url, content=_body(texts, role)))

    async def apost(client: httpx.AsyncClient, texts: list[str], role: str) -> Vectors:
        return _vectors(await client.post(url, content=_body(texts, role)))

    def documents(texts: list[str]) -> Vectors:
        with httpx.Client(**_SETTINGS) as client, ThreadPoolExecutor(IN_FLIGHT) as pool:
            found = pool.map(lambda batch: post(client, batch, "document"), _batches(texts))
            return [vector for some in found for vector in some]

    async def adocuments(texts: list[str]) -> Vectors:
        batches = _batches(texts)
        found: list[Vectors] = [[] for _ in batches]
        waiting = iter(range(len(batches)))

        async with httpx.AsyncClient(**_SETTINGS) as client:

            async def work() -> None:
                for number in waiting:
                    found[number] = await apost(client, batches[number], "document")

            await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        return [vector for some in found for vector in some]

    kept: dict[str, Any] = {}  # made at the first query, as part of its time

    def query(text: str) -> Sequence[float]:
        client = kept.get("client") or kept.setdefault("client", httpx.Client(**_SETTINGS))
        return post(client, [text], "query")[0]

    async def aquery(text: str) -> Sequence[float]:
        client = kept.get("client") or kept.setdefault("client", httpx.AsyncClient(**_SETTINGS))
        return (await apost(client, [text], "query"))[0]

    return Calls(documents, query, adocuments, aquery)


_SETTINGS: dict[str, Any] = {
    "timeout": 60.0,
    "limits": httpx.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT),
    "headers": {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
}


def _body(texts: list[str], role: str) -> bytes:
    return to_json({"model": MODEL, "input": {"texts": texts}, "parameters": {"text_type": role}})


def _vectors(reply: httpx.Response) -> Vectors:
    reply.raise_for_status()
    rows = REPLY.validate_json(reply.content)["output"]["embeddings"]
    rows.sort(key=lambda row: row["text_index"])
    return [row["embedding"] for row in rows]


def _batches(texts: list[str]) -> list[list[str]]:
    return [texts[start : start + ROWS] for start in range(0, len(texts), ROWS)]


_MAKERS: dict[str, Callable[[], Maker]] = {
    "ours": _ours,
    "ours-langchain": _ours_langchain,
    "ours-llama-index": _ours_llama_index,
    "langchain-community": _langchain_community,
    "llama-index-dashscope": _llama_index_dashscope,
    "langchain-openai": _langchain_openai,
    "httpx": _bare,
}
