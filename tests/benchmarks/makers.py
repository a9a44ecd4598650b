"""How each client is made: ours, the peers, and bare httpx as the floor.

`maker(name)` imports what is needed and returns the function that makes the client, so that imports are
never part of a measurement while everything that a client builds for itself is.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import httpx
from load import IN_FLIGHT, KEY, MODEL, PATH, ROWS, Load
from pydantic import TypeAdapter
from pydantic_core import to_json
from typing_extensions import TypedDict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import TypeAlias

    Vectors: TypeAlias = Sequence[Sequence[float]]


class Calls(Protocol):
    """What every client offers, whatever it calls it."""

    @property
    def documents(self) -> Callable[[list[str]], Vectors]: ...
    @property
    def query(self) -> Callable[[str], Sequence[float]]: ...
    @property
    def adocuments(self) -> Callable[[list[str]], Awaitable[Vectors]]: ...
    @property
    def aquery(self) -> Callable[[str], Awaitable[Sequence[float]]]: ...


@dataclass
class Made:
    """The calls of a client that has them under other names."""

    documents: Callable[[list[str]], Vectors]
    query: Callable[[str], Sequence[float]]
    adocuments: Callable[[list[str]], Awaitable[Vectors]]
    aquery: Callable[[str], Awaitable[Sequence[float]]]


class _Client:
    """Ours without a framework."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def documents(self, texts: list[str]) -> Vectors:
        dense: Vectors = self.client.embed(texts).dense
        return dense

    def query(self, text: str) -> Sequence[float]:
        dense: Vectors = self.client.embed(text, text_type="query").dense
        return dense[0]

    async def adocuments(self, texts: list[str]) -> Vectors:
        dense: Vectors = (await self.client.aembed(texts)).dense
        return dense

    async def aquery(self, text: str) -> Sequence[float]:
        dense: Vectors = (await self.client.aembed(text, text_type="query")).dense
        return dense[0]


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
    return lambda url, load: _Client(our_client(url, load))


def _ours_langchain() -> Maker:
    kind = importlib.import_module("dashscope_embeddings.langchain").DashScopeEmbeddings

    def make(url: str, load: Load) -> Made:
        made = kind(model=MODEL, api_key=KEY, base_url=url, **load.quota())
        return Made(made.embed_documents, made.embed_query, made.aembed_documents, made.aembed_query)

    return make


def _ours_llama_index() -> Maker:
    kind = importlib.import_module("dashscope_embeddings.llama_index").DashScopeEmbedding

    def make(url: str, load: Load) -> Made:
        made = kind(MODEL, api_key=KEY, base_url=url, **load.quota())
        return Made(
            made.get_text_embedding_batch,
            made.get_query_embedding,
            made.aget_text_embedding_batch,
            made.aget_query_embedding,
        )

    return make


# --- peers -------------------------------------------------------------------------------------------------


def _langchain_community() -> Maker:
    kind = importlib.import_module("langchain_community.embeddings.dashscope").DashScopeEmbeddings
    sdk: Any = importlib.import_module("dashscope")

    def make(url: str, load: Load) -> Made:
        del load
        sdk.base_http_api_url = f"{url}/api/v1"
        made = kind(model=MODEL, dashscope_api_key=KEY)
        return Made(made.embed_documents, made.embed_query, made.aembed_documents, made.aembed_query)

    return make


def _llama_index_dashscope() -> Maker:
    kind = importlib.import_module("llama_index.embeddings.dashscope").DashScopeEmbedding
    sdk: Any = importlib.import_module("dashscope")

    def make(url: str, load: Load) -> Made:
        del load
        sdk.base_http_api_url = f"{url}/api/v1"
        # Its default of 25 texts a request is refused for this model.
        made = kind(model_name=MODEL, api_key=KEY, embed_batch_size=ROWS)
        return Made(
            made.get_text_embedding_batch,
            made.get_query_embedding,
            made.aget_text_embedding_batch,
            made.aget_query_embedding,
        )

    return make


def _langchain_openai() -> Maker:
    kind = importlib.import_module("langchain_openai").OpenAIEmbeddings

    def make(url: str, load: Load) -> Made:
        del load
        made = kind(
            model=MODEL,
            api_key=KEY,
            base_url=f"{url}/compatible-mode/v1",
            check_embedding_ctx_length=False,
            chunk_size=ROWS,
        )
        return Made(made.embed_documents, made.embed_query, made.aembed_documents, made.aembed_query)

    return make


# --- the floor ---------------------------------------------------------------------------------------------


class _Row(TypedDict):
    text_index: int
    embedding: list[float]


class _Output(TypedDict):
    embeddings: list[_Row]


class _Reply(TypedDict):
    output: _Output


REPLY = TypeAdapter(_Reply)


class _Bare:
    """What a careful user writes without a library: no retry, no pace, no check beyond types and order."""

    def __init__(self, url: str) -> None:
        self._url = url + PATH

    def documents(self, texts: list[str]) -> Vectors:
        with httpx.Client(**_SETTINGS) as client, ThreadPoolExecutor(IN_FLIGHT) as pool:
            found = pool.map(lambda batch: self._post(client, batch, "document"), _batches(texts))
            return [vector for some in found for vector in some]

    async def adocuments(self, texts: list[str]) -> Vectors:
        batches = _batches(texts)
        found: list[Vectors] = [[] for _ in batches]
        waiting = iter(range(len(batches)))

        async with httpx.AsyncClient(**_SETTINGS) as client:

            async def work() -> None:
                for number in waiting:
                    found[number] = await self._apost(client, batches[number], "document")

            await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        return [vector for some in found for vector in some]

    @functools.cached_property
    def query(self) -> Callable[[str], Sequence[float]]:
        client = httpx.Client(**_SETTINGS)
        return lambda text: self._post(client, [text], "query")[0]

    @functools.cached_property
    def aquery(self) -> Callable[[str], Awaitable[Sequence[float]]]:
        client = httpx.AsyncClient(**_SETTINGS)

        async def ask(text: str) -> Sequence[float]:
            return (await self._apost(client, [text], "query"))[0]

        return ask

    def _post(self, client: httpx.Client, texts: list[str], role: str) -> Vectors:
        return _vectors(client.post(self._url, content=_body(texts, role)))

    async def _apost(self, client: httpx.AsyncClient, texts: list[str], role: str) -> Vectors:
        return _vectors(await client.post(self._url, content=_body(texts, role)))


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
    "httpx": lambda: lambda url, _: _Bare(url),
}
