"""LlamaIndex's Qdrant store, embedded: what it requests from a pair, what it finds, and that it reopens."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("llama_index.vector_stores.qdrant")

from empty_sparse_fault import Unweighted
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient

from dashscope_embeddings.llama_index import DashScopeEmbedding, DashScopeSparseEmbedding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

# The store makes an index of its own payload field, which a local Qdrant has no use for.
pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")

KEY = "sk-made-up-41aa"
QUESTION = "topic3 word31"
MODES = ["default", "sparse", "hybrid"]


def nodes(count: int = 130, **fields: Any) -> list[TextNode]:
    texts = [f"paragraph {n} about topic{n % 7} and word{n}" for n in range(count)]
    return [TextNode(text=text, metadata={"chapter": n}, **fields) for n, text in enumerate(texts)]


@pytest.fixture
def dense(served: Server) -> DashScopeEmbedding:
    return DashScopeEmbedding(api_key=KEY, base_url=served.url, dimensions=128)


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


@asynccontextmanager
async def aclient(**place: Any) -> AsyncIterator[AsyncQdrantClient]:
    client = AsyncQdrantClient(**place or {"location": ":memory:"})
    yield client
    await client.close()


def store(sparse: DashScopeSparseEmbedding, **clients: Any) -> QdrantVectorStore:
    return QdrantVectorStore(
        "demo",
        enable_hybrid=True,
        sparse_doc_fn=sparse.encode_documents,
        sparse_query_fn=sparse.encode_queries,
        **clients,
    )


def index(dense: Any, sparse: Any, given: list[TextNode] | None = None, **clients: Any) -> VectorStoreIndex:
    context = StorageContext.from_defaults(vector_store=store(sparse, **clients))
    return VectorStoreIndex(given or [], storage_context=context, embed_model=dense)


def retriever(index: VectorStoreIndex, mode: str, top: int = 5) -> Any:
    return index.as_retriever(vector_store_query_mode=mode, similarity_top_k=top, sparse_top_k=20, alpha=0.5)


def ranking(found: list[Any]) -> list[tuple[str, float]]:
    return [(scored.node.text, scored.score) for scored in found]


def sizes(emulator: Emulator) -> list[int]:
    return sorted(len(asked.texts) for asked in emulator.asked)


# Requests


def test_a_hundred_and_thirty_nodes_are_thirteen_requests(
    emulator: Emulator, dense: DashScopeEmbedding, client: QdrantClient
) -> None:
    sparse = DashScopeSparseEmbedding(dense)
    index(dense, sparse, nodes(), client=client)
    assert sizes(emulator) == [10] * 13
    assert (emulator.requests, emulator.billed_texts) == (13, 130)
    assert {asked.text_type for asked in emulator.asked} == {"document"}
    assert dense.hybrid.cache is not None
    assert dense.hybrid.cache.size == 0
    assert client.count("demo").count == 130


async def test_a_hundred_and_thirty_nodes_are_thirteen_requests_in_async_code_too(
    emulator: Emulator, dense: DashScopeEmbedding
) -> None:
    async with aclient() as client:
        made = index(dense, DashScopeSparseEmbedding(dense), aclient=client)
        await made.ainsert_nodes(nodes())
        assert (await client.count("demo")).count == 130
    assert (sizes(emulator), emulator.billed_texts) == ([10] * 13, 130)


@pytest.mark.parametrize("way", ["run", "arun"])
def test_a_pipeline_that_embeds_all_before_it_stores_is_billed_once(
    emulator: Emulator, dense: DashScopeEmbedding, way: str
) -> None:
    sparse = DashScopeSparseEmbedding(dense)

    async def run() -> None:
        async with aclient() as client:
            pipeline = IngestionPipeline(transformations=[dense], vector_store=store(sparse, aclient=client))
            await pipeline.arun(nodes=nodes())

    if way == "arun":
        asyncio.run(run())
    else:
        client = QdrantClient(":memory:")
        IngestionPipeline(transformations=[dense], vector_store=store(sparse, client=client)).run(nodes=nodes())
        client.close()
    assert (sizes(emulator), emulator.billed_texts) == ([10] * 13, 130)


@pytest.mark.parametrize("mode", MODES)
def test_a_query_is_one_request_in_every_mode(
    emulator: Emulator, dense: DashScopeEmbedding, client: QdrantClient, mode: str
) -> None:
    made = index(dense, DashScopeSparseEmbedding(dense), nodes(), client=client)
    emulator.clear()
    assert ranking(retriever(made, mode).retrieve(QUESTION))[0][0] == nodes()[31].text
    [asked] = emulator.asked
    assert (asked.text_type, asked.output_type, asked.texts) == ("query", "dense&sparse", (QUESTION,))


@pytest.mark.parametrize("mode", MODES)
async def test_a_query_is_one_request_though_the_sparse_callable_runs_on_the_loops_thread(
    emulator: Emulator, dense: DashScopeEmbedding, mode: str
) -> None:
    async with aclient() as client:
        made = index(dense, DashScopeSparseEmbedding(dense), aclient=client)
        await made.ainsert_nodes(nodes(40))
        emulator.clear()
        assert ranking(await retriever(made, mode).aretrieve(QUESTION))[0][0] == nodes()[31].text
        assert [(asked.text_type, asked.texts) for asked in emulator.asked] == [("query", (QUESTION,))]


@pytest.mark.parametrize("mode", MODES)
def test_rankings_and_scores_are_those_of_two_separate_adapters(
    emulator: Emulator, served: Server, dense: DashScopeEmbedding, client: QdrantClient, mode: str
) -> None:
    paired = index(dense, DashScopeSparseEmbedding(dense), nodes(64), client=client)
    found = ranking(retriever(paired, mode, 20).retrieve(QUESTION))
    assert (emulator.requests, emulator.billed_texts) == (8, 65)
    apart = QdrantClient(":memory:")
    alone = DashScopeEmbedding(api_key=KEY, base_url=served.url, dimensions=128)
    separate = index(alone, DashScopeSparseEmbedding(api_key=KEY, base_url=served.url), nodes(64), client=apart)
    assert ranking(retriever(separate, mode, 20).retrieve(QUESTION)) == found
    assert emulator.billed_texts == 65 + 128 + (2 if mode == "hybrid" else 1)
    apart.close()


def test_texts_with_the_query_role_are_billed_once_too(
    emulator: Emulator, served: Server, client: QdrantClient
) -> None:
    symmetric = DashScopeEmbedding(text_type="query", api_key=KEY, base_url=served.url, dimensions=128)
    index(symmetric, DashScopeSparseEmbedding(symmetric), nodes(20), client=client)
    assert (emulator.requests, emulator.billed_texts) == (2, 20)


# Reopening


@pytest.mark.parametrize("mode", MODES)
def test_a_store_on_disk_reopens_in_every_mode(
    emulator: Emulator, dense: DashScopeEmbedding, tmp_path: Path, mode: str
) -> None:
    sparse = DashScopeSparseEmbedding(dense)
    first = QdrantClient(path=str(tmp_path))
    index(dense, sparse, nodes()[25:35], client=first)
    first.close()
    emulator.clear()
    again = QdrantClient(path=str(tmp_path))
    found = VectorStoreIndex.from_vector_store(store(sparse, client=again), embed_model=dense)
    assert ranking(retriever(found, mode).retrieve(QUESTION))[0][0] == nodes()[31].text
    assert emulator.requests == 1
    again.close()


@pytest.mark.parametrize("mode", MODES)
async def test_a_store_on_disk_reopens_in_every_mode_in_async_code_too(
    emulator: Emulator, dense: DashScopeEmbedding, tmp_path: Path, mode: str
) -> None:
    sparse = DashScopeSparseEmbedding(dense)
    async with aclient(path=str(tmp_path)) as first:
        await index(dense, sparse, aclient=first).ainsert_nodes(nodes()[25:35])
    emulator.clear()
    async with aclient(path=str(tmp_path)) as again:
        found = VectorStoreIndex.from_vector_store(store(sparse, aclient=again), embed_model=dense)
        assert ranking(await retriever(found, mode).aretrieve(QUESTION))[0][0] == nodes()[31].text
    assert emulator.requests == 1


# A text without weights


def test_a_text_without_weights_is_stored_and_found_by_its_dense_vector(
    emulator: Emulator, dense: DashScopeEmbedding, client: QdrantClient
) -> None:
    emulator.faults = [Unweighted()]
    sparse = DashScopeSparseEmbedding(dense)
    made = index(dense, sparse, [*nodes(8), TextNode(text="unweighted words here")], client=client)
    assert (emulator.requests, emulator.billed_texts, client.count("demo").count) == (1, 9, 9)
    assert sparse.encode_documents(["unweighted words here"]) == ([[]], [[]])
    emulator.clear()
    for mode in ("default", "hybrid"):
        assert ranking(retriever(made, mode).retrieve("words here"))[0][0] == "unweighted words here"
    only = ranking(retriever(made, "sparse").retrieve("words here"))
    assert "unweighted words here" not in [text for text, _ in only]
    assert {asked.texts for asked in emulator.asked} == {("words here",)}


def test_a_query_without_weights_is_answered_by_its_dense_vector(
    emulator: Emulator, dense: DashScopeEmbedding, client: QdrantClient
) -> None:
    emulator.faults = [Unweighted()]
    made = index(dense, DashScopeSparseEmbedding(dense), nodes(40), client=client)
    emulator.clear()
    found = ranking(retriever(made, "hybrid").retrieve("unweighted word31 topic3"))
    assert found[0][0] == nodes()[31].text
    assert emulator.requests == 1


# LlamaIndex's own sparse interface


def test_core_gets_dicts_and_may_request_sparse_vectors_first(emulator: Emulator, dense: DashScopeEmbedding) -> None:
    sparse = DashScopeSparseEmbedding(dense)
    weights = sparse.get_query_embedding(QUESTION)
    assert weights == pytest.approx({t.index: t.value for t in emulator.sparse(QUESTION, text_type="query")})
    assert dense.get_query_embedding(QUESTION) == emulator.dense(QUESTION, text_type="query", dimension=128)
    assert emulator.requests == 1
    texts = [node.text for node in nodes(25)]
    rows = sparse.get_text_embedding_batch(texts)
    assert sparse.get_text_embedding(texts[24]) == rows[24]
    assert (emulator.requests, emulator.billed_texts) == (5, 27)


async def test_core_gets_the_same_dicts_in_async_code(emulator: Emulator, dense: DashScopeEmbedding) -> None:
    sparse = DashScopeSparseEmbedding(dense)
    texts = [node.text for node in nodes(25)]
    await dense.aget_text_embedding_batch(texts)
    rows = await sparse.aget_text_embedding_batch(texts)
    assert (emulator.requests, emulator.billed_texts) == (3, 25)
    assert rows == sparse.get_text_embedding_batch(texts)
    assert await sparse.aget_text_embedding(texts[0]) == rows[0]
    emulator.clear()
    weights = await sparse.aget_query_embedding(QUESTION)
    await dense.aget_query_embedding(QUESTION)
    assert emulator.requests == 1
    assert weights == sparse.get_query_embedding(QUESTION)
