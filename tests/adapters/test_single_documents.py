"""Documents that a framework embeds one by one, at the same time, share requests; caches and events see each one."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.stores import InMemoryByteStore

from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

KEY = "sk-made-up"
TEXTS = [f"memory {i}" for i in range(64)]
MOST_REQUESTS = 32
"""Seven are needed; but how many are sent before the others wait depends on the machine."""


def settings(served: Server) -> dict[str, Any]:
    return {"api_key": KEY, "base_url": served.url, "dimensions": 64, "max_concurrency": 2}


def right(emulator: Emulator, texts: Sequence[str]) -> list[list[float]]:
    return [emulator.dense(text, dimension=64) for text in texts]


def check_requests(emulator: Emulator) -> None:
    assert {asked.text_type for asked in emulator.asked} == {"document"}
    assert math.ceil(len(TEXTS) / 10) <= emulator.requests <= MOST_REQUESTS
    assert emulator.billed_texts == len(TEXTS)


async def test_langchain(emulator: Emulator, served: Server) -> None:
    embeddings = DashScopeEmbeddings(**settings(served))
    found = await asyncio.gather(*(embeddings.aembed_documents([text]) for text in TEXTS))
    assert [vector for (vector,) in found] == right(emulator, TEXTS)
    check_requests(emulator)
    assert embeddings.usage.texts == len(TEXTS)


async def test_langchains_cache_stores_each_and_asks_for_none_again(emulator: Emulator, served: Server) -> None:
    embeddings = DashScopeEmbeddings(**settings(served), embeddings_cache=InMemoryByteStore())
    first = await asyncio.gather(*(embeddings.aembed_documents([text]) for text in TEXTS))
    check_requests(emulator)
    requests = emulator.requests
    again = await asyncio.gather(*(embeddings.aembed_documents([text]) for text in TEXTS))
    assert emulator.requests == requests
    assert again == first
    assert [vector for (vector,) in first] == [pytest.approx(row, rel=1e-6) for row in right(emulator, TEXTS)]


async def test_a_pair_bills_each_document_once(emulator: Emulator, served: Server) -> None:
    dense = DashScopeEmbeddings(**settings(served))
    sparse = DashScopeSparseEmbeddings(dense)
    found = await asyncio.gather(*(dense.aembed_documents([text]) for text in TEXTS))
    assert [vector for (vector,) in found] == right(emulator, TEXTS)
    for text, vector in zip(TEXTS, sparse.embed_documents(TEXTS), strict=True):
        assert vector.indices == sorted(token.index for token in emulator.sparse(text))
    check_requests(emulator)
    assert {asked.output_type for asked in emulator.asked} == {"dense&sparse"}


async def test_langgraphs_store(emulator: Emulator, served: Server) -> None:
    memory = pytest.importorskip("langgraph.store.memory")
    store = memory.InMemoryStore(index={"embed": DashScopeEmbeddings(**settings(served)), "dims": 64})
    await asyncio.gather(*(store.aput(("memories",), text, {"text": text}) for text in TEXTS))
    check_requests(emulator)
    (found,) = await store.asearch(("memories",), query=TEXTS[7], limit=1)
    assert found.value == {"text": TEXTS[7]}


async def test_llama_index(emulator: Emulator, served: Server) -> None:
    dashscope = pytest.importorskip("dashscope_embeddings.llama_index")
    embedding = dashscope.DashScopeEmbedding(**settings(served))
    found = await asyncio.gather(*(embedding.aget_text_embedding(text) for text in TEXTS))
    assert found == right(emulator, TEXTS)
    check_requests(emulator)
    assert embedding.usage.texts == len(TEXTS)


async def test_llama_index_over_langchain(emulator: Emulator, served: Server) -> None:
    """`LangchainEmbedding` embeds the texts of a batch one by one."""
    adapter = pytest.importorskip("llama_index.embeddings.langchain")
    embedding = adapter.LangchainEmbedding(DashScopeEmbeddings(**settings(served)))
    assert await embedding.aget_text_embedding_batch(TEXTS) == right(emulator, TEXTS)
    assert emulator.billed_texts == len(TEXTS)
