"""LlamaIndex's Milvus store over Milvus Lite, with the sparse vectors of all nodes asked for together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("llama_index.vector_stores.milvus")
pytest.importorskip("milvus_lite")

from empty_sparse_fault import Unweighted
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.vector_stores.milvus import MilvusVectorStore
from llama_index.vector_stores.milvus.utils import BaseSparseEmbeddingFunction

from dashscope_embeddings.llama_index import DashScopeEmbedding
from dashscope_embeddings.llama_index_milvus import BatchedMilvusVectorStore, DashScopeSparseFunction

if TYPE_CHECKING:
    from pathlib import Path

    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

KEY = "sk-made-up-0cf3"
QUESTION = "topic3 word31"


def nodes(*, metadata: bool, count: int = 100) -> list[TextNode]:
    texts = [f"paragraph {n} about topic{n % 7} and word{n}" for n in range(count)]
    return [TextNode(text=text, metadata={"chapter": n} if metadata else {}) for n, text in enumerate(texts)]


@pytest.fixture
def dense(served: Server) -> DashScopeEmbedding:
    return DashScopeEmbedding(api_key=KEY, base_url=served.url, dimensions=128)


def opened(path: Path, function: Any, kind: Any = BatchedMilvusVectorStore, **settings: Any) -> Any:
    return kind(
        uri=str(path / "demo.db"),
        dim=128,
        enable_sparse=True,
        sparse_embedding_function=function,
        hybrid_ranker="WeightedRanker",
        hybrid_ranker_params={"weights": [0.3, 0.7]},
        **{"use_async_client": False, **settings},
    )


def index(dense: Any, store: Any, given: list[TextNode] | None = None) -> VectorStoreIndex:
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex(given or [], storage_context=context, embed_model=dense)


def retriever(made: VectorStoreIndex, mode: str = "hybrid", top: int = 5) -> Any:
    return made.as_retriever(vector_store_query_mode=mode, similarity_top_k=top)


def ranking(found: list[Any]) -> list[tuple[str, float]]:
    return [(scored.node.text, scored.score) for scored in found]


def sizes(emulator: Emulator) -> list[tuple[str, int]]:
    return sorted((asked.output_type or "dense", len(asked.texts)) for asked in emulator.asked)


# Requests


@pytest.mark.parametrize(
    ("metadata", "requests"),
    [
        (False, [("dense&sparse", 10)] * 10),
        # The store gives the function the text without the metadata, which the dense text has.
        (True, [("dense&sparse", 10)] * 10 + [("sparse", 10)] * 10),
    ],
)
def test_a_hundred_nodes_are_asked_in_tens(
    emulator: Emulator, dense: DashScopeEmbedding, tmp_path: Path, *, metadata: bool, requests: list[Any]
) -> None:
    index(dense, opened(tmp_path, DashScopeSparseFunction(dense)), nodes(metadata=metadata))
    assert sizes(emulator) == requests
    assert emulator.billed_texts == 10 * len(requests)


def test_nodes_with_the_query_role_are_asked_in_tens_too(emulator: Emulator, served: Server, tmp_path: Path) -> None:
    symmetric = DashScopeEmbedding(text_type="query", api_key=KEY, base_url=served.url, dimensions=128)
    index(symmetric, opened(tmp_path, DashScopeSparseFunction(symmetric)), nodes(metadata=True, count=20))
    assert sizes(emulator) == [("dense&sparse", 10)] * 2 + [("sparse", 10)] * 2


@pytest.mark.parametrize("metadata", [False, True])
async def test_async_code_makes_the_same_requests(
    emulator: Emulator, dense: DashScopeEmbedding, tmp_path: Path, *, metadata: bool
) -> None:
    store = opened(tmp_path, DashScopeSparseFunction(dense), use_async_client=True)
    made = index(dense, store)
    await made.ainsert_nodes(nodes(metadata=metadata))
    assert (emulator.requests, emulator.billed_texts) == ((20, 200) if metadata else (10, 100))
    emulator.clear()
    assert ranking(await retriever(made).aretrieve(QUESTION))[0][0] == nodes(metadata=False)[31].text
    assert [(asked.text_type, asked.texts) for asked in emulator.asked] == [("query", (QUESTION,))]


def test_the_frameworks_own_store_works_too_and_asks_one_by_one(
    emulator: Emulator, dense: DashScopeEmbedding, tmp_path: Path
) -> None:
    store = opened(tmp_path, DashScopeSparseFunction(dense), MilvusVectorStore)
    made = index(dense, store, nodes(metadata=True, count=20))
    assert sizes(emulator) == [("dense&sparse", 10)] * 2 + [("sparse", 1)] * 20
    assert len(ranking(retriever(made).retrieve(QUESTION))) == 5
    assert emulator.requests == 23


@pytest.mark.parametrize("mode", ["default", "hybrid"])
def test_a_query_is_one_request(emulator: Emulator, dense: DashScopeEmbedding, tmp_path: Path, mode: str) -> None:
    made = index(dense, opened(tmp_path, DashScopeSparseFunction(dense)), nodes(metadata=False))
    emulator.clear()
    assert ranking(retriever(made, mode).retrieve(QUESTION))[0][0] == nodes(metadata=False)[31].text
    assert [(asked.text_type, asked.texts) for asked in emulator.asked] == [("query", (QUESTION,))]


def test_rankings_and_scores_are_those_of_two_separate_adapters(
    emulator: Emulator, served: Server, dense: DashScopeEmbedding, tmp_path: Path
) -> None:
    (tmp_path / "paired").mkdir()
    (tmp_path / "apart").mkdir()
    paired = index(dense, opened(tmp_path / "paired", DashScopeSparseFunction(dense)), nodes(metadata=True, count=40))
    found = ranking(retriever(paired, top=20).retrieve(QUESTION))
    assert (emulator.requests, emulator.billed_texts) == (9, 81)
    alone = DashScopeEmbedding(api_key=KEY, base_url=served.url, dimensions=128)
    function = DashScopeSparseFunction(api_key=KEY, base_url=served.url)
    separate = index(alone, opened(tmp_path / "apart", function), nodes(metadata=True, count=40))
    assert ranking(retriever(separate, top=20).retrieve(QUESTION)) == found
    assert len(found) == 20
    assert emulator.billed_texts == 81 + 82


def test_a_store_reopens_from_its_path(emulator: Emulator, dense: DashScopeEmbedding, tmp_path: Path) -> None:
    function = DashScopeSparseFunction(dense)
    first = opened(tmp_path, function)
    index(dense, first, nodes(metadata=False))
    first.client.close()
    emulator.clear()
    again = VectorStoreIndex.from_vector_store(opened(tmp_path, function), embed_model=dense)
    assert ranking(retriever(again).retrieve(QUESTION))[0][0] == nodes(metadata=False)[31].text
    assert emulator.requests == 1


# The function


async def test_the_function_is_one_of_milvuss_and_answers_sync_and_async_alike(
    emulator: Emulator, dense: DashScopeEmbedding
) -> None:
    function = DashScopeSparseFunction(dense)
    assert isinstance(function, BaseSparseEmbeddingFunction)
    texts = [node.text for node in nodes(metadata=False, count=3)]
    assert function.encode_documents(texts) == await function.async_encode_documents(texts)
    assert function.encode_queries(texts) == await function.async_encode_queries(texts)
    assert sizes(emulator) == [("sparse", 3)] * 4
    await function.aprefetch(texts)
    function.prefetch(texts)
    for text in texts:
        function.encode_documents([text])
    assert emulator.requests == 5


# A text without weights


def test_a_text_without_weights_is_stored_and_found_by_its_dense_vector(
    emulator: Emulator, dense: DashScopeEmbedding, tmp_path: Path
) -> None:
    emulator.faults = [Unweighted()]
    given = [*nodes(metadata=False, count=8), TextNode(text="unweighted words here")]
    made = index(dense, opened(tmp_path, DashScopeSparseFunction(dense)), given)
    assert (emulator.requests, emulator.billed_texts) == (1, 9)
    for mode in ("default", "hybrid"):
        found = ranking(retriever(made, mode, 9).retrieve("words here"))
        assert "unweighted words here" in [text for text, _ in found]
    assert ranking(retriever(made, "default").retrieve("words here"))[0][0] == "unweighted words here"


def test_a_query_without_weights_is_answered_by_its_dense_vector(
    emulator: Emulator, dense: DashScopeEmbedding, tmp_path: Path
) -> None:
    emulator.faults = [Unweighted()]
    made = index(dense, opened(tmp_path, DashScopeSparseFunction(dense)), nodes(metadata=False, count=40))
    emulator.clear()
    found = ranking(retriever(made).retrieve("unweighted word31 topic3"))
    assert found[0][0] == nodes(metadata=False)[31].text
    assert emulator.requests == 1
