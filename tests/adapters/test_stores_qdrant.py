"""Qdrant's stores of both frameworks, embedded: what they request from a pair, what they find, that they reopen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("langchain_qdrant")
pytest.importorskip("llama_index.vector_stores.qdrant")

from client_helpers import KEY
from empty_sparse_fault import Unweighted
from frameworks import LangChain, LlamaIndex
from langchain_core.runnables import RunnableParallel
from langchain_qdrant import QdrantVectorStore as LangChainStore
from langchain_qdrant import RetrievalMode
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaIndexStore
from qdrant_client import AsyncQdrantClient, QdrantClient, models

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

# The store makes an index of its own payload field, which a local Qdrant has no use for.
pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")

TEXTS = [f"paragraph {n} about topic{n % 7} and word{n}" for n in range(100)]
QUESTION = "topic3 word31"
PROBE = ("dummy_text",)
"""What LangChain's store embeds to learn the width of the vectors, whenever it makes or checks a collection."""
Found = list[tuple[str, float]]


class OfLangChain(LangChain):
    """A store in a folder, or in memory."""

    def pair(self, served: Server) -> tuple[Any, Any]:
        dense = self.made(served, dimensions=128)
        return dense, self.sparse(dense)

    def filled(self, where: Any, dense: Any, sparse: Any, texts: list[str]) -> Any:
        """A collection of these texts, made without LangChain's probe."""
        where.create_collection(
            "demo",
            vectors_config=models.VectorParams(size=128, distance=models.Distance.COSINE),
            sparse_vectors_config={"langchain-sparse": models.SparseVectorParams()},
        )
        store = self.opened(where, dense, sparse)
        if self.is_async:
            asyncio.run(store.aadd_texts(texts, batch_size=100))
        else:
            store.add_texts(texts, batch_size=100)
        return store

    def opened(self, where: Any, dense: Any, sparse: Any, mode: str = "hybrid") -> Any:
        checks: dict[str, Any] = {"validate_embeddings": False, "validate_collection_config": False}
        retrieval: dict[str, Any] = {"sparse_embedding": sparse, "retrieval_mode": RetrievalMode(mode)}
        return LangChainStore(where, "demo", embedding=dense, **retrieval, **checks)

    def found(self, where: Any, pair: tuple[Any, Any], mode: str, question: str = QUESTION, k: int = 5) -> Found:
        store = self.opened(where, *pair, mode)
        if self.is_async:
            found = asyncio.run(store.asimilarity_search_with_score(question, k=k))
        else:
            found = store.similarity_search_with_score(question, k=k)
        return [(document.page_content, score) for document, score in found]


class OfLlamaIndex(LlamaIndex):
    def pair(self, served: Server) -> tuple[Any, Any]:
        dense = self.made(served, dimensions=128)
        return dense, self.sparse(dense)

    def store(self, sparse: Any, **clients: Any) -> LlamaIndexStore:
        functions = {"sparse_doc_fn": sparse.encode_documents, "sparse_query_fn": sparse.encode_queries}
        return LlamaIndexStore("demo", enable_hybrid=True, **functions, **clients)

    def filled(self, where: Any, dense: Any, sparse: Any, texts: list[str]) -> None:
        context = StorageContext.from_defaults(vector_store=self.store(sparse, client=where))
        nodes = [TextNode(text=text, metadata={"chapter": n}) for n, text in enumerate(texts)]
        VectorStoreIndex(nodes, storage_context=context, embed_model=dense)

    def found(self, where: Any, pair: tuple[Any, Any], mode: str, question: str = QUESTION, k: int = 5) -> Found:
        store = self.store(pair[1], client=where)
        index = VectorStoreIndex.from_vector_store(store, embed_model=pair[0])
        llama_index_mode = "default" if mode == "dense" else mode
        options: dict[str, Any] = {"vector_store_query_mode": llama_index_mode, "similarity_top_k": k}
        nodes = index.as_retriever(**options, sparse_top_k=20, alpha=0.5).retrieve(question)
        return [(scored.node.get_content(MetadataMode.NONE), scored.score or 0.0) for scored in nodes]


every_store = pytest.mark.parametrize("of", [OfLangChain(), OfLangChain(is_async=True), OfLlamaIndex()], ids=repr)
every_mode = pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid"])


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


def asked(emulator: Emulator) -> list[tuple[str | None, str | None, int]]:
    return sorted((asked.text_type, asked.output_type, len(asked.texts)) for asked in emulator.asked)


@every_store
def test_a_hundred_texts_are_ten_requests_and_a_query_of_every_mode_is_one(
    of: Any, emulator: Emulator, served: Server, client: QdrantClient
) -> None:
    pair = of.pair(served)
    of.filled(client, *pair, TEXTS)
    assert asked(emulator) == [("document", "dense&sparse", 10)] * 10
    assert emulator.billed_texts == client.count("demo").count == 100
    for mode in ("dense", "sparse", "hybrid"):
        pair[0].hybrid.cache.reset_after_fork()  # else the first mode's request serves the second
        emulator.clear()
        assert of.found(client, pair, mode)[0][0] == TEXTS[31]
        assert asked(emulator) == [("query", "dense&sparse", 1)]
    assert pair[0].hybrid.cache.size == 0


@every_store
def test_rankings_and_scores_are_those_of_two_separate_adapters(
    of: Any, emulator: Emulator, served: Server, client: QdrantClient
) -> None:
    pair = of.pair(served)
    of.filled(client, *pair, TEXTS[:40])
    apart, alone = (
        QdrantClient(":memory:"),
        (of.made(served, dimensions=128), of.sparse(api_key=KEY, base_url=served.url)),
    )
    of.filled(apart, *alone, TEXTS[:40])
    assert emulator.billed_texts == 40 + 80
    for mode in ("dense", "sparse", "hybrid"):
        assert of.found(client, pair, mode, k=20) == of.found(apart, alone, mode, k=20)
    assert points(client) == points(apart)
    apart.close()


def points(client: QdrantClient) -> list[tuple[str, str]]:
    """Every text with its vectors."""
    found, _ = client.scroll("demo", limit=1_000, with_vectors=True)
    return sorted((str((point.payload or {}).get("page_content")), str(point.vector)) for point in found)


@every_store
def test_a_store_on_disk_reopens_in_every_mode(of: Any, emulator: Emulator, served: Server, tmp_path: Path) -> None:
    pair = of.pair(served)
    first = QdrantClient(path=str(tmp_path))
    of.filled(first, *pair, TEXTS[28:38])
    first.close()
    for mode in ("dense", "sparse", "hybrid"):
        again = QdrantClient(path=str(tmp_path))
        assert of.found(again, of.pair(served), mode)[0][0] == TEXTS[31]
        again.close()
    assert emulator.requests == 1 + 3


@every_store
def test_texts_and_queries_without_weights_are_found_by_their_dense_vectors(
    of: Any, emulator: Emulator, served: Server, client: QdrantClient
) -> None:
    emulator.faults = [Unweighted()]
    pair = of.pair(served)
    of.filled(client, *pair, [*TEXTS[25:34], "unweighted words here"])
    assert (emulator.requests, emulator.billed_texts, client.count("demo").count) == (1, 10, 10)
    for mode in ("hybrid", "dense"):
        assert of.found(client, pair, mode, "words here")[0][0] == "unweighted words here"
        assert of.found(client, pair, mode, "unweighted word31 topic3")[0][0] == TEXTS[31]
    assert "unweighted words here" not in [text for text, _ in of.found(client, pair, "sparse", "words here", 20)]


# LangChain's


def test_langchains_store_probes_once_and_reopens_by_its_own_constructors(
    emulator: Emulator, served: Server, tmp_path: Path
) -> None:
    of = OfLangChain()
    dense, sparse = of.pair(served)
    how: Any = {"sparse_embedding": sparse, "retrieval_mode": RetrievalMode.HYBRID, "path": str(tmp_path)}
    store = LangChainStore.from_texts(TEXTS, dense, batch_size=100, collection_name="demo", **how)
    assert [asked.texts for asked in emulator.asked if len(asked.texts) == 1] == [PROBE]
    assert (emulator.requests, emulator.billed_texts) == (11, 101)
    store.client.close()
    for mode, probes in ((RetrievalMode.HYBRID, [PROBE]), (RetrievalMode.DENSE, [PROBE]), (RetrievalMode.SPARSE, [])):
        emulator.clear()
        again = LangChainStore.from_existing_collection("demo", embedding=dense, **how | {"retrieval_mode": mode})
        assert [asked.texts for asked in emulator.asked] == probes
        again.client.close()


@pytest.mark.parametrize("way", ["sync", "async"])
def test_langchains_retrievers_side_by_side_share_the_request_of_their_query(
    way: str, emulator: Emulator, served: Server, client: QdrantClient
) -> None:
    of = OfLangChain()
    pair = of.pair(served)
    of.filled(client, *pair, TEXTS[:40])
    emulator.clear()
    parallel: Any = RunnableParallel(
        one=of.opened(client, *pair, "dense").as_retriever(search_kwargs={"k": 1}),
        other=of.opened(client, *pair, "sparse").as_retriever(search_kwargs={"k": 1}),
    )
    found = parallel.invoke(QUESTION) if way == "sync" else asyncio.run(parallel.ainvoke(QUESTION))
    assert [documents[0].page_content for documents in found.values()] == [TEXTS[31], TEXTS[31]]
    assert emulator.requests == 1


# LlamaIndex's


@every_mode
async def test_llama_indexs_async_store_makes_one_request_though_its_sparse_callable_runs_on_the_loops_thread(
    mode: str, emulator: Emulator, served: Server, tmp_path: Path
) -> None:
    of, texts = OfLlamaIndex(), TEXTS[:40]
    dense, sparse = of.pair(served)
    client = AsyncQdrantClient(path=str(tmp_path))
    index = VectorStoreIndex.from_vector_store(of.store(sparse, aclient=client), embed_model=dense)
    await index.ainsert_nodes([TextNode(text=text, metadata={"chapter": n}) for n, text in enumerate(texts)])
    assert asked(emulator) == [("document", "dense&sparse", 10)] * 4
    emulator.clear()
    options: Any = {"vector_store_query_mode": "default" if mode == "dense" else mode, "sparse_top_k": 20}
    found = await index.as_retriever(**options).aretrieve(QUESTION)
    assert found[0].node.get_content(MetadataMode.NONE) == TEXTS[31]
    assert asked(emulator) == [("query", "dense&sparse", 1)]
    await client.close()


@pytest.mark.parametrize("way", ["run", "arun"])
def test_llama_indexs_pipeline_that_embeds_all_before_it_stores_is_billed_once(
    way: str, emulator: Emulator, served: Server
) -> None:
    of = OfLlamaIndex()
    dense, sparse = of.pair(served)
    nodes = [TextNode(text=text) for text in TEXTS]

    async def arun() -> None:
        client = AsyncQdrantClient(":memory:")
        pipeline = IngestionPipeline(transformations=[dense], vector_store=of.store(sparse, aclient=client))
        await pipeline.arun(nodes=nodes)
        await client.close()

    if way == "arun":
        asyncio.run(arun())
    else:
        client = QdrantClient(":memory:")
        IngestionPipeline(transformations=[dense], vector_store=of.store(sparse, client=client)).run(nodes=nodes)
        client.close()
    assert asked(emulator) == [("document", "dense&sparse", 10)] * 10


def test_llama_indexs_core_gets_dicts_and_may_request_sparse_vectors_first(emulator: Emulator, served: Server) -> None:
    dense, sparse = OfLlamaIndex().pair(served)
    weights = sparse.get_query_embedding(QUESTION)
    assert weights == pytest.approx({t.index: t.value for t in emulator.sparse(QUESTION, text_type="query")})
    assert dense.get_query_embedding(QUESTION) == emulator.dense(QUESTION, text_type="query", dimension=128)
    assert emulator.requests == 1
    rows = asyncio.run(sparse.aget_text_embedding_batch(TEXTS[:25]))
    assert sparse.get_text_embedding_batch(TEXTS[:25]) == rows
    assert sparse.get_text_embedding(TEXTS[24]) == asyncio.run(sparse.aget_text_embedding(TEXTS[24])) == rows[24]
    assert asyncio.run(sparse.aget_query_embedding(QUESTION)) == weights
    assert asyncio.run(dense.aget_query_embedding(QUESTION))
    assert (emulator.requests, emulator.billed_texts) == (1 + 3 + 3 + 2 + 1, 1 + 25 + 25 + 2 + 1)
