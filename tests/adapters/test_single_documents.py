"""Documents that a framework embeds one by one, at the same time, share requests; caches and events see each one."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from frameworks import Framework, LangChain, each_framework
from langchain_core.stores import InMemoryByteStore

if TYPE_CHECKING:
    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

TEXTS = [f"memory {i}" for i in range(64)]
MOST_REQUESTS = 32
"""Seven are needed; but how many are sent before the others wait depends on the machine."""


async def one_by_one(of: Framework, dense: Any) -> list[list[float]]:
    if isinstance(of, LangChain):
        return [vector for (vector,) in await asyncio.gather(*(dense.aembed_documents([text]) for text in TEXTS))]
    found: list[list[float]] = await asyncio.gather(*(dense.aget_text_embedding(text) for text in TEXTS))
    return found


def made(of: Framework, served: Server, **settings: Any) -> Any:
    return of.made(served, dimensions=64, max_concurrency=2, **settings)


def check_requests(emulator: Emulator) -> None:
    assert {asked.text_type for asked in emulator.asked} == {"document"}
    assert math.ceil(len(TEXTS) / 10) <= emulator.requests <= MOST_REQUESTS
    assert emulator.billed_texts == len(TEXTS)


@each_framework
async def test_they_share_requests(of: Framework, emulator: Emulator, served: Server) -> None:
    dense = made(of, served)
    assert await one_by_one(of, dense) == [emulator.dense(text, dimension=64) for text in TEXTS]
    check_requests(emulator)
    assert dense.usage.texts == len(TEXTS)


async def test_langchains_cache_stores_each_and_asks_for_none_again(emulator: Emulator, served: Server) -> None:
    of = LangChain()
    dense = made(of, served, embeddings_cache=InMemoryByteStore())
    first = await one_by_one(of, dense)
    check_requests(emulator)
    requests = emulator.requests
    assert await one_by_one(of, dense) == first
    assert emulator.requests == requests


async def test_a_pair_bills_each_document_once(emulator: Emulator, served: Server) -> None:
    of = LangChain()
    dense = made(of, served)
    sparse = of.sparse(dense)
    assert await one_by_one(of, dense) == [emulator.dense(text, dimension=64) for text in TEXTS]
    for text, vector in zip(TEXTS, sparse.embed_documents(TEXTS), strict=True):
        assert vector.indices == sorted(token.index for token in emulator.sparse(text))
    check_requests(emulator)
    assert {asked.output_type for asked in emulator.asked} == {"dense&sparse"}
