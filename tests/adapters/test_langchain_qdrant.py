"""LangChain's Qdrant store, embedded: what it requests from a pair, what it finds, and that it reopens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("langchain_qdrant")

from empty_sparse_fault import Unweighted
from langchain_core.runnables import RunnableParallel
from langchain_qdrant import QdrantVectorStore, RetrievalMode
from qdrant_client import QdrantClient, models

from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

KEY = "sk-made-up-2b90"
TEXTS = [f"paragraph {n} about topic{n % 7} and word{n}" for n in range(100)]
QUESTION = "topic3 word31"
PROBE = ("dummy_text",)
"""What the store embeds to learn the width of the vectors, whenever it makes or checks a collection."""


@pytest.fixture
def dense(served: Server) -> DashScopeEmbeddings:
    return DashScopeEmbeddings(api_key=KEY, base_url=served.url, dimensions=128)


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


def create(client: QdrantClient) -> None:
    """The collection that the store itself would make, but without its probe."""
    client.create_collection(
        "demo",
        vectors_config=models.VectorParams(size=128, distance=models.Distance.COSINE),
        sparse_vectors_config={"langchain-sparse": models.SparseVectorParams()},
    )


def opened(
    client: QdrantClient, dense: Any, sparse: Any, mode: RetrievalMode = RetrievalMode.HYBRID
) -> QdrantVectorStore:
    """A store that does not probe."""
    return QdrantVectorStore(
        client,
        "demo",
        embedding=dense,
        sparse_embedding=sparse,
        retrieval_mode=mode,
        validate_embeddings=False,
        validate_collection_config=False,
    )


def filled(client: QdrantClient, dense: Any, sparse: Any, texts: list[str] = TEXTS) -> QdrantVectorStore:
    create(client)
    store = opened(client, dense, sparse)
    store.add_texts(texts, batch_size=100)
    return store


class Sync:
    def add(self, store: QdrantVectorStore, texts: list[str]) -> None:
        store.add_texts(texts, batch_size=100)

    def search(self, store: QdrantVectorStore, question: str = QUESTION, k: int = 5) -> list[tuple[str, float]]:
        return [(d.page_content, score) for d, score in store.similarity_search_with_score(question, k=k)]


class Async:
    def add(self, store: QdrantVectorStore, texts: list[str]) -> None:
        asyncio.run(store.aadd_texts(texts, batch_size=100))

    def search(self, store: QdrantVectorStore, question: str = QUESTION, k: int = 5) -> list[tuple[str, float]]:
        found = asyncio.run(store.asimilarity_search_with_score(question, k=k))
        return [(d.page_content, score) for d, score in found]


Way = Sync | Async
both_ways = pytest.mark.parametrize("way", [Sync(), Async()], ids=["sync", "async"])


def sizes(emulator: Emulator) -> list[int]:
    return sorted(len(asked.texts) for asked in emulator.asked if asked.texts != PROBE)


def points(client: QdrantClient) -> list[tuple[str, str]]:
    """Every text with its vectors."""
    found, _ = client.scroll("demo", limit=1_000, with_vectors=True)
    return sorted((str(point.payload), str(point.vector)) for point in found)


# Requests


def test_a_hundred_texts_are_ten_requests_and_the_stores_probe(emulator: Emulator, dense: DashScopeEmbeddings) -> None:
    store = QdrantVectorStore.from_texts(
        TEXTS,
        dense,
        sparse_embedding=DashScopeSparseEmbeddings(dense),
        retrieval_mode=RetrievalMode.HYBRID,
        location=":memory:",
        batch_size=100,
    )
    assert sizes(emulator) == [10] * 10
    assert [asked.texts for asked in emulator.asked if asked.texts == PROBE] == [PROBE]
    assert (emulator.requests, emulator.billed_texts) == (11, 101)
    assert {asked.text_type for asked in emulator.asked} == {"document"}
    assert store.client.count(store.collection_name).count == 100
    store.client.close()


@both_ways
def test_an_existing_collection_takes_a_hundred_texts_in_ten_requests(
    emulator: Emulator, dense: DashScopeEmbeddings, client: QdrantClient, way: Way
) -> None:
    create(client)
    store = opened(client, dense, DashScopeSparseEmbeddings(dense))
    way.add(store, TEXTS)
    assert (sizes(emulator), emulator.requests, emulator.billed_texts) == ([10] * 10, 10, 100)
    assert dense.hybrid.cache is not None
    assert dense.hybrid.cache.size == 0
    assert client.count("demo").count == 100


@both_ways
@pytest.mark.parametrize("mode", list(RetrievalMode))
def test_a_query_is_one_request_in_every_mode(
    emulator: Emulator, dense: DashScopeEmbeddings, client: QdrantClient, way: Way, mode: RetrievalMode
) -> None:
    sparse = DashScopeSparseEmbeddings(dense)
    filled(client, dense, sparse)
    emulator.clear()
    assert way.search(opened(client, dense, sparse, mode))[0][0] == TEXTS[31]
    [asked] = emulator.asked
    assert (asked.text_type, asked.output_type, asked.texts) == ("query", "dense&sparse", (QUESTION,))


@both_ways
def test_rankings_and_scores_are_those_of_two_separate_adapters(
    emulator: Emulator, served: Server, dense: DashScopeEmbeddings, client: QdrantClient, way: Way
) -> None:
    paired = way.search(filled(client, dense, DashScopeSparseEmbeddings(dense)), k=20)
    assert (emulator.requests, emulator.billed_texts) == (11, 101)
    apart = QdrantClient(":memory:")
    alone = DashScopeEmbeddings(api_key=KEY, base_url=served.url, dimensions=128)
    separate = filled(apart, alone, DashScopeSparseEmbeddings(api_key=KEY, base_url=served.url))
    assert way.search(separate, k=20) == paired
    assert (emulator.requests, emulator.billed_texts) == (33, 303)
    # Not the order alone: the points themselves.
    assert points(client) == points(apart)
    assert len(points(client)) == 100
    apart.close()


@both_ways
def test_retrievers_side_by_side_share_the_request_of_their_query(
    emulator: Emulator, dense: DashScopeEmbeddings, client: QdrantClient, way: Way
) -> None:
    sparse = DashScopeSparseEmbeddings(dense)
    filled(client, dense, sparse)
    emulator.clear()
    parallel: Any = RunnableParallel(
        one=opened(client, dense, sparse, RetrievalMode.DENSE).as_retriever(search_kwargs={"k": 1}),
        other=opened(client, dense, sparse, RetrievalMode.SPARSE).as_retriever(search_kwargs={"k": 1}),
    )
    found = parallel.invoke(QUESTION) if isinstance(way, Sync) else asyncio.run(parallel.ainvoke(QUESTION))
    assert [documents[0].page_content for documents in found.values()] == [TEXTS[31], TEXTS[31]]
    assert emulator.requests == 1


def test_a_sparse_store_needs_no_dense_adapter(emulator: Emulator, served: Server, client: QdrantClient) -> None:
    sparse = DashScopeSparseEmbeddings(api_key=KEY, base_url=served.url)
    create(client)
    store = opened(client, None, sparse, RetrievalMode.SPARSE)
    store.add_texts(TEXTS, batch_size=100)
    assert Sync().search(store)[0][0] == TEXTS[31]
    assert (emulator.requests, emulator.billed_texts) == (11, 101)
    assert {asked.output_type for asked in emulator.asked} == {"sparse"}


# Reopening


@both_ways
@pytest.mark.parametrize("mode", list(RetrievalMode))
def test_a_store_on_disk_reopens_in_every_mode(
    emulator: Emulator, dense: DashScopeEmbeddings, tmp_path: Path, way: Way, mode: RetrievalMode
) -> None:
    sparse = DashScopeSparseEmbeddings(dense)
    first = QdrantClient(path=str(tmp_path))
    filled(first, dense, sparse, TEXTS[28:38])
    first.close()
    emulator.clear()
    again = QdrantVectorStore.from_existing_collection(
        "demo", embedding=dense, sparse_embedding=sparse, retrieval_mode=mode, path=str(tmp_path)
    )
    assert way.search(again)[0][0] == TEXTS[31]
    probes = [asked.texts for asked in emulator.asked if asked.texts == PROBE]
    assert len(probes) == (0 if mode is RetrievalMode.SPARSE else 1)
    assert emulator.requests == len(probes) + 1
    again.client.close()


# A text without weights


@both_ways
def test_a_text_without_weights_is_stored_and_found_by_its_dense_vector(
    emulator: Emulator, dense: DashScopeEmbeddings, client: QdrantClient, way: Way
) -> None:
    emulator.faults = [Unweighted()]
    sparse = DashScopeSparseEmbeddings(dense)
    create(client)
    store = opened(client, dense, sparse)
    way.add(store, [*TEXTS[:8], "unweighted words here"])
    assert (emulator.requests, emulator.billed_texts) == (1, 9)
    assert sparse.embed_documents(["unweighted words here"])[0].indices == []
    emulator.clear()
    for mode in (RetrievalMode.HYBRID, RetrievalMode.DENSE):
        assert way.search(opened(client, dense, sparse, mode), "words here", k=1)[0][0] == "unweighted words here"
    only = way.search(opened(client, dense, sparse, RetrievalMode.SPARSE), "words here", k=20)
    assert "unweighted words here" not in [text for text, _ in only]
    assert [asked.texts for asked in emulator.asked] == [("words here",)] * 2


@both_ways
def test_a_query_without_weights_is_answered_by_its_dense_vector(
    emulator: Emulator, dense: DashScopeEmbeddings, client: QdrantClient, way: Way
) -> None:
    emulator.faults = [Unweighted()]
    store = filled(client, dense, DashScopeSparseEmbeddings(dense))
    emulator.clear()
    assert way.search(store, "unweighted word31 topic3", k=1)[0][0] == TEXTS[31]
    assert emulator.requests == 1
