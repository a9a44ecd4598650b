"""LangChain's Milvus store over Milvus Lite: what it requests from a pair, what it finds, and that it reopens.

Run in either of the environments that the extras `milvus` and `llama-index-milvus` make.
"""

from __future__ import annotations

import pickle
from array import array
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("langchain_milvus")
pytest.importorskip("milvus_lite")

from empty_sparse_fault import Unweighted
from langchain_milvus import Milvus
from langchain_milvus.utils.sparse import BaseSparseEmbedding

from dashscope_embeddings import InvalidInput
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.langchain_milvus import DashScopeSparseEmbeddings

if TYPE_CHECKING:
    from pathlib import Path

    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

# The store wants a ranker as a Function, which Milvus Lite's older releases refuse.
pytestmark = pytest.mark.filterwarnings("ignore:The 'ranker_type' and 'ranker_params':DeprecationWarning")

KEY = "sk-made-up-88d0"
TEXTS = [f"paragraph {n} about topic{n % 7} and word{n}" for n in range(100)]
QUESTION = "topic3 word31"

# Written out, because Milvus Lite 3 cannot query an index with LangChain's default drop_ratio_build.
DENSE, SPARSE = {"metric_type": "COSINE", "params": {}}, {"metric_type": "IP", "params": {}}
INDEX = [DENSE | {"index_type": "AUTOINDEX"}, SPARSE | {"index_type": "SPARSE_INVERTED_INDEX"}]


@pytest.fixture
def dense(served: Server) -> DashScopeEmbeddings:
    return DashScopeEmbeddings(api_key=KEY, base_url=served.url, dimensions=128)


def opened(path: Path, dense: Any, sparse: Any) -> Any:
    return Milvus(
        [dense, sparse],
        vector_field=["dense", "sparse"],
        connection_args={"uri": str(path / "demo.db")},
        index_params=INDEX,
        search_params=[DENSE, SPARSE],
        auto_id=True,
    )


def filled(path: Path, dense: Any, sparse: Any, texts: list[str] = TEXTS) -> Any:
    store = opened(path, dense, sparse)
    store.add_texts(texts)
    return store


def weighing(dense: float, sparse: float) -> dict[str, Any]:
    return {"fetch_k": 20, "ranker_type": "weighted", "ranker_params": {"weights": [dense, sparse]}}


def search(store: Any, question: str = QUESTION, k: int = 5, **how: Any) -> list[tuple[str, float]]:
    found = store.similarity_search_with_score(question, k=k, **how or weighing(0.3, 0.7))
    return [(document.page_content, score) for document, score in found]


def by_weights(store: Any, weights: dict[int, float]) -> list[str]:
    """What the sparse index alone finds."""
    [found] = store.client.search(
        store.collection_name,
        data=[weights],
        anns_field="sparse",
        limit=100,
        output_fields=["text"],
        search_params=SPARSE,
    )
    return [hit["entity"]["text"] for hit in found]


# Requests


def test_a_hundred_texts_are_ten_requests(emulator: Emulator, dense: DashScopeEmbeddings, tmp_path: Path) -> None:
    sparse = DashScopeSparseEmbeddings(dense)
    Milvus.from_texts(
        TEXTS,
        [dense, sparse],
        vector_field=["dense", "sparse"],
        connection_args={"uri": str(tmp_path / "demo.db")},
        index_params=INDEX,
        search_params=[DENSE, SPARSE],
    )
    assert [len(asked.texts) for asked in emulator.asked] == [10] * 10
    assert (emulator.requests, emulator.billed_texts) == (10, 100)
    assert {asked.output_type for asked in emulator.asked} == {"dense&sparse"}
    assert dense.hybrid.cache is not None
    assert dense.hybrid.cache.size == 0


def test_a_hybrid_query_is_one_request(emulator: Emulator, dense: DashScopeEmbeddings, tmp_path: Path) -> None:
    store = filled(tmp_path, dense, DashScopeSparseEmbeddings(dense))
    emulator.clear()
    assert search(store)[0][0] == TEXTS[31]
    assert [(asked.text_type, asked.texts) for asked in emulator.asked] == [("query", (QUESTION,))]


async def test_async_code_makes_the_same_requests(
    emulator: Emulator, dense: DashScopeEmbeddings, tmp_path: Path
) -> None:
    store = opened(tmp_path, dense, DashScopeSparseEmbeddings(dense))
    await store.aadd_texts(TEXTS)
    assert (emulator.requests, emulator.billed_texts) == (10, 100)
    emulator.clear()
    found = await store.asimilarity_search(QUESTION, k=5, **weighing(0.3, 0.7))
    assert found[0].page_content == TEXTS[31]
    assert [(asked.text_type, asked.texts) for asked in emulator.asked] == [("query", (QUESTION,))]


def test_rankings_and_scores_are_those_of_two_separate_adapters(
    emulator: Emulator, served: Server, dense: DashScopeEmbeddings, tmp_path: Path
) -> None:
    (tmp_path / "paired").mkdir()
    (tmp_path / "apart").mkdir()
    paired = search(filled(tmp_path / "paired", dense, DashScopeSparseEmbeddings(dense)), k=20)
    assert (emulator.requests, emulator.billed_texts) == (11, 101)
    alone = DashScopeEmbeddings(api_key=KEY, base_url=served.url, dimensions=128)
    sparse = DashScopeSparseEmbeddings(api_key=KEY, base_url=served.url)
    assert search(filled(tmp_path / "apart", alone, sparse), k=20) == paired
    assert len(paired) == 20
    assert (emulator.requests, emulator.billed_texts) == (33, 303)


def test_a_store_reopens_from_its_path(emulator: Emulator, dense: DashScopeEmbeddings, tmp_path: Path) -> None:
    sparse = DashScopeSparseEmbeddings(dense)
    filled(tmp_path, dense, sparse).client.close()
    emulator.clear()
    again = opened(tmp_path, dense, sparse)
    assert search(again)[0][0] == TEXTS[31]
    assert emulator.requests == 1


# Rows


def test_the_store_takes_it_for_a_sparse_embedding(served: Server) -> None:
    assert isinstance(DashScopeSparseEmbeddings(api_key=KEY, base_url=served.url), BaseSparseEmbedding)


async def test_rows_are_the_services_weights_as_float32(emulator: Emulator, dense: DashScopeEmbeddings) -> None:
    sparse = DashScopeSparseEmbeddings(dense)
    for role, rows in (
        ("document", [*sparse.embed_documents(TEXTS[:1]), *await sparse.aembed_documents(TEXTS[:1])]),
        ("query", [sparse.embed_query(TEXTS[0]), await sparse.aembed_query(TEXTS[0])]),
    ):
        tokens = sorted(emulator.sparse(TEXTS[0], text_type=role), key=lambda token: token.index)
        expected = zip([t.index for t in tokens], array("f", [t.value for t in tokens]), strict=True)
        assert [list(row.items()) for row in rows] == [list(expected)] * 2
    assert (emulator.requests, emulator.billed_texts) == (4, 4)


def test_a_pickled_pair_is_restored_as_a_pair(emulator: Emulator, dense: DashScopeEmbeddings) -> None:
    dense, sparse = pickle.loads(pickle.dumps((dense, DashScopeSparseEmbeddings(dense))))  # noqa: S301 - our own
    dense.embed_query(QUESTION)
    assert len(sparse.embed_query(QUESTION)) == 2
    assert emulator.requests == 1


def test_settings_beside_a_dense_adapter_are_refused(dense: DashScopeEmbeddings) -> None:
    with pytest.raises(InvalidInput, match="model: a paired adapter has the settings of the dense one"):
        DashScopeSparseEmbeddings(dense, model="text-embedding-v3")


# A text without weights


def test_a_text_without_weights_is_stored_and_found_by_its_dense_vector(
    emulator: Emulator, dense: DashScopeEmbeddings, tmp_path: Path
) -> None:
    emulator.faults = [Unweighted()]
    sparse = DashScopeSparseEmbeddings(dense)
    store = filled(tmp_path, dense, sparse, [*TEXTS[:8], "unweighted words here"])
    assert (emulator.requests, emulator.billed_texts) == (1, 9)
    emulator.clear()
    assert search(store, "words here", **weighing(0.99, 0.01))[0][0] == "unweighted words here"
    assert sorted(by_weights(store, sparse.embed_query("paragraph word1"))) == sorted(TEXTS[:8])
    assert emulator.requests == 2


def test_a_query_without_weights_is_answered_by_its_dense_vector(
    emulator: Emulator, dense: DashScopeEmbeddings, tmp_path: Path
) -> None:
    emulator.faults = [Unweighted()]
    store = filled(tmp_path, dense, DashScopeSparseEmbeddings(dense), TEXTS[20:40])
    emulator.clear()
    assert search(store, "unweighted word31 topic3")[0][0] == TEXTS[31]
    assert emulator.requests == 1


def test_a_query_without_weights_finds_no_document_without_weights(
    emulator: Emulator, dense: DashScopeEmbeddings, tmp_path: Path
) -> None:
    emulator.faults = [Unweighted()]
    sparse = DashScopeSparseEmbeddings(dense)
    store = filled(tmp_path, dense, sparse, ["unweighted words here", "other words"])
    assert by_weights(store, sparse.embed_query("an unweighted question")) == []
