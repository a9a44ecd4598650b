"""Pairs of adapters of both frameworks share requests, also after pickling and copying."""

from __future__ import annotations

import copy
import pickle
from array import array
from typing import TYPE_CHECKING, Any, cast

import pytest

pytest.importorskip("langchain_qdrant")
pytest.importorskip("llama_index.core")

from client_helpers import KEY
from frameworks import LangChain, LlamaIndex

from dashscope_embeddings import InvalidInput

if TYPE_CHECKING:
    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

QUESTION = "which words are rare?"
TEXTS = [f"paragraph {n} about number{n}" for n in range(12)]
Row = tuple[list[int], list[float]]


class OfLangChain(LangChain):
    def sparse_documents(self, sparse: Any, texts: list[str]) -> list[Row]:
        return [(row.indices, row.values) for row in sparse.embed_documents(texts)]

    def sparse_query(self, sparse: Any) -> Row:
        row = sparse.embed_query(QUESTION)
        return row.indices, row.values


class OfLlamaIndex(LlamaIndex):
    def sparse_documents(self, sparse: Any, texts: list[str]) -> list[Row]:
        return list(zip(*sparse.encode_documents(texts), strict=True))

    def sparse_query(self, sparse: Any) -> Row:
        [indices], [values] = sparse.encode_queries([QUESTION])
        return indices, values


Framework = OfLangChain | OfLlamaIndex
pytestmark = pytest.mark.parametrize("of", [OfLangChain(), OfLlamaIndex()], ids=["langchain", "llama_index"])


def made(of: Framework, served: Server, **settings: Any) -> Any:
    return of.made(served, **{"dimensions": 64, **settings})


def pair(of: Framework, served: Server, **settings: Any) -> tuple[Any, Any]:
    dense = made(of, served, **settings)
    return dense, of.sparse(dense)


def outputs(emulator: Emulator) -> list[str]:
    return [asked.output_type or "dense" for asked in emulator.asked]


def right(emulator: Emulator, text: str, role: str, model: str = "text-embedding-v4") -> Row:
    """What the service has for a text: by ascending index, rounded to float32."""
    tokens = sorted(emulator.sparse(text, text_type=role, model=model), key=lambda token: token.index)
    return [token.index for token in tokens], list(array("f", [token.value for token in tokens]))


def test_a_pair_pays_once_for_documents_and_once_for_a_query(of: Framework, emulator: Emulator, served: Server) -> None:
    dense, sparse = pair(of, served)
    assert of.documents(dense, TEXTS) == [emulator.dense(text, dimension=64) for text in TEXTS]
    assert of.sparse_documents(sparse, TEXTS) == [right(emulator, text, "document") for text in TEXTS]
    assert (emulator.requests, emulator.billed_texts) == (2, 12)
    assert of.query(dense, QUESTION) == emulator.dense(QUESTION, text_type="query", dimension=64)
    assert of.sparse_query(sparse) == right(emulator, QUESTION, "query")
    assert (emulator.requests, emulator.billed_texts) == (3, 13)
    assert (dense.usage.requests, dense.usage.texts) == (sparse.usage.requests, sparse.usage.texts) == (3, 13)


def test_when_the_last_sparse_adapter_is_gone_dense_vectors_are_asked_alone_again(
    of: Framework, emulator: Emulator, served: Server
) -> None:
    dense, sparse = pair(of, served)
    another = of.sparse(dense)
    del sparse
    of.documents(dense, TEXTS[:2])
    del another
    of.documents(dense, TEXTS[2:4])
    of.query(dense, QUESTION)
    assert outputs(emulator) == ["dense&sparse", "dense", "dense"]


def test_memo_size_bounds_what_waits_for_the_store(of: Framework, emulator: Emulator, served: Server) -> None:
    dense = made(of, served)
    sparse = of.sparse(dense, memo_size=4)
    of.documents(dense, TEXTS[:10])
    assert (dense.hybrid.cache.size, dense.hybrid.cache.free_capacity("document")) == (4, 0)
    assert of.sparse_documents(sparse, TEXTS[:10])[9] == right(emulator, TEXTS[9], "document")
    assert [len(asked.texts) for asked in emulator.asked] == [10, 6]


def test_a_change_of_model_leaves_no_vector_of_the_old_one(of: Framework, emulator: Emulator, served: Server) -> None:
    dense, sparse = pair(of, served)
    of.query(dense, QUESTION)
    setattr(dense, of.model, "text-embedding-v3")
    found = of.sparse_query(sparse)
    assert found == right(emulator, QUESTION, "query", "text-embedding-v3")
    assert [asked.model for asked in emulator.asked] == ["text-embedding-v4", "text-embedding-v3"]


def test_a_dense_adapter_of_the_other_framework_is_taken(of: Framework, emulator: Emulator, served: Server) -> None:
    other: Framework = OfLlamaIndex() if isinstance(of, OfLangChain) else OfLangChain()
    dense = made(of, served)
    sparse: Any = other.sparse(dense)
    of.documents(dense, TEXTS)
    assert other.sparse_documents(sparse, TEXTS) == [right(emulator, text, "document") for text in TEXTS]
    of.query(dense, QUESTION)
    other.sparse_query(sparse)
    assert (emulator.requests, emulator.billed_texts) == (3, 13)


# Pickles and copies


def test_a_pickled_pair_is_restored_as_a_pair_and_carries_no_vectors(
    of: Framework, emulator: Emulator, served: Server
) -> None:
    first = made(of, served)
    here = first, of.sparse(first, memo_size=70)
    of.documents(here[0], TEXTS)
    pickled = pickle.dumps(here)
    dense, sparse = pickle.loads(pickled)  # noqa: S301 - our own
    assert len(pickled) < 5_000
    assert (dense.hybrid.cache.size, dense.hybrid.cache.free_capacity("document"), here[0].hybrid.cache.size) == (
        0,
        70,
        12,
    )
    assert dense.hybrid.cache is not here[0].hybrid.cache
    of.query(dense, QUESTION)
    of.sparse_query(sparse)
    assert (emulator.requests, dense.usage.requests, here[0].usage.requests) == (3, 1, 2)
    assert of.sparse_documents(sparse, TEXTS[:1]) == [right(emulator, TEXTS[0], "document")]
    assert emulator.requests == 4


def test_a_pickled_sparse_adapter_works_alone_with_the_settings_of_its_pair(
    of: Framework, emulator: Emulator, served: Server
) -> None:
    sparse = pickle.loads(pickle.dumps(pair(of, served)[1]))  # noqa: S301 - our own
    assert of.sparse_query(sparse) == right(emulator, QUESTION, "query")
    assert emulator.requests == 1
    assert KEY not in repr(sparse)


def test_a_copy_of_a_dense_adapter_has_no_partner(of: Framework, emulator: Emulator, served: Server) -> None:
    dense, _sparse = pair(of, served)
    of.query(dense, QUESTION)
    for twin in (
        dense.model_copy(update={"dimensions": 128}),
        dense.model_copy(deep=True),
        copy.copy(dense),
        copy.deepcopy(dense),
    ):
        of.query(twin, QUESTION)
    of.documents(dense, TEXTS[:1])
    assert outputs(emulator) == ["dense&sparse", *["dense"] * 4, "dense&sparse"]


def test_a_deep_copy_of_a_sparse_adapter_has_a_dense_one_of_its_own(
    of: Framework, emulator: Emulator, served: Server
) -> None:
    dense, sparse = pair(of, served)
    of.query(dense, QUESTION)
    assert of.sparse_query(copy.deepcopy(sparse)) == of.sparse_query(sparse)
    assert outputs(emulator) == ["dense&sparse", "dense&sparse"]


# Alone, and refused


def test_a_sparse_adapter_alone_has_settings_of_its_own(of: Framework, emulator: Emulator, served: Server) -> None:
    settings: Any = {of.model: "text-embedding-v3", "api_key": KEY, "base_url": served.url, "batch_size": 5}
    sparse: Any = of.sparse(**settings)
    found = of.sparse_documents(sparse, TEXTS)
    assert found == [right(emulator, text, "document", "text-embedding-v3") for text in TEXTS]
    assert of.sparse_query(sparse) == right(emulator, QUESTION, "query", "text-embedding-v3")
    assert sorted(len(asked.texts) for asked in emulator.asked) == [1, 2, 5, 5]
    assert set(outputs(emulator)) == {"sparse"}
    assert KEY not in repr(sparse)


def test_what_is_no_dense_adapter_and_settings_beside_one_are_refused(of: Framework, served: Server) -> None:
    with pytest.raises(InvalidInput, match=r"base_url, instruct: a paired adapter has the settings"):
        of.sparse(made(of, served), base_url=served.url, instruct="x")
    with pytest.raises(InvalidInput, match="expected a dense adapter of this package, not str"):
        of.sparse(cast("Any", "text-embedding-v4"))


def test_what_has_no_sparse_vectors_is_refused_at_construction_with_a_way_out(of: Framework, served: Server) -> None:
    with pytest.raises(InvalidInput, match='sparse vectors need protocol="native"'):
        of.sparse(api_key=KEY, base_url=served.url, protocol="openai")
    v2: Any = {of.model: "text-embedding-v2"}
    with pytest.raises(InvalidInput, match=r"text-embedding-v2 has no sparse vectors; .*text-embedding-v4"):
        of.sparse(**v2, api_key=KEY, base_url=served.url)
    old = made(of, served, dimensions=None, **v2)
    with pytest.raises(InvalidInput, match=r"text-embedding-v2 has no sparse vectors; .*text-embedding-v4"):
        of.sparse(old)
    with pytest.warns(UserWarning, match="does not distinguish queries"):
        compatible = made(of, served, protocol="openai")
    with pytest.raises(InvalidInput, match='sparse vectors need protocol="native"'):
        of.sparse(compatible)


def test_one_string_is_no_list_of_texts(of: Framework, emulator: Emulator, served: Server) -> None:
    _, sparse = pair(of, served)
    with pytest.raises(InvalidInput, match="expected a list of texts, not str"):
        of.sparse_documents(sparse, "abc")  # type: ignore[arg-type] # the mistake
    assert emulator.requests == 0
