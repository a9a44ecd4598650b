"""The sparse retrievers of both frameworks: what they find, what they request, and the file that they write."""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
import stat
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")
pytest.importorskip("numpy")

import numpy as np
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.retrievers.fusion_retriever import FUSION_MODES
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from pydantic import ValidationError

from dashscope_embeddings import BadRequestError, DashScopeError, InvalidInput
from dashscope_embeddings import langchain as lc
from dashscope_embeddings import llama_index as li
from dashscope_embeddings._adapters import sparse_retriever
from dashscope_embeddings.emulator import faults

if TYPE_CHECKING:
    from pathlib import Path

    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

KEY = "sk-made-up-51d7"
TEXTS = [f"paragraph {n} about topic{n % 7} and word{n}" for n in range(30)]
QUESTION = "topic3 word24"
METADATA: list[dict[str, Any]] = [{"number": n, "even": n % 2 == 0} for n in range(30)]


class LangChain:
    dense, sparse, file = lc.DashScopeEmbeddings, lc.DashScopeSparseRetriever, ("save_local", "load_local")

    def documents(self, texts: list[str]) -> list[Any]:
        return [Document(text, metadata=METADATA[i], id=f"id{i}") for i, text in enumerate(texts)]

    def made(self, texts: list[str], **settings: Any) -> Any:
        return self.sparse.from_documents(self.documents(texts), **settings)

    def add(self, retriever: Any, texts: list[str]) -> None:
        retriever.add_documents(self.documents(texts))

    def fill_store(self, dense: Any, texts: list[str]) -> Any:
        return InMemoryVectorStore.from_texts(texts, dense).as_retriever(search_kwargs={"k": 3})

    def found(self, retriever: Any, question: str = QUESTION) -> list[str]:
        return [document.page_content for document in retriever.invoke(question)]


class AsyncLangChain(LangChain):
    def made(self, texts: list[str], **settings: Any) -> Any:
        return asyncio.run(self.sparse.afrom_documents(self.documents(texts), **settings))

    def add(self, retriever: Any, texts: list[str]) -> None:
        asyncio.run(retriever.aadd_documents(self.documents(texts)))

    def fill_store(self, dense: Any, texts: list[str]) -> Any:
        return asyncio.run(InMemoryVectorStore.afrom_texts(texts, dense)).as_retriever(search_kwargs={"k": 3})

    def found(self, retriever: Any, question: str = QUESTION) -> list[str]:
        return [document.page_content for document in asyncio.run(retriever.ainvoke(question))]


class LlamaIndex:
    dense, sparse, file = li.DashScopeEmbedding, li.DashScopeSparseRetriever, ("persist", "from_persist_dir")

    def documents(self, texts: list[str]) -> list[Any]:
        hidden = {"excluded_embed_metadata_keys": ["number", "even"]}
        return [TextNode(text=text, id_=f"id{i}", metadata=METADATA[i], **hidden) for i, text in enumerate(texts)]

    def made(self, texts: list[str], **settings: Any) -> Any:
        return self.sparse.from_nodes(self.documents(texts), **{"similarity_top_k": 4, **settings})

    def add(self, retriever: Any, texts: list[str]) -> None:
        retriever.add_nodes(self.documents(texts))

    def fill_store(self, dense: Any, texts: list[str]) -> Any:
        return VectorStoreIndex(self.documents(texts), embed_model=dense).as_retriever(similarity_top_k=3)

    def found(self, retriever: Any, question: str = QUESTION) -> list[str]:
        return [found.node.get_content("none") for found in retriever.retrieve(question)]


class AsyncLlamaIndex(LlamaIndex):
    def made(self, texts: list[str], **settings: Any) -> Any:
        made = self.sparse.afrom_nodes(self.documents(texts), **{"similarity_top_k": 4, **settings})
        return asyncio.run(made)

    def add(self, retriever: Any, texts: list[str]) -> None:
        asyncio.run(retriever.aadd_nodes(self.documents(texts)))

    def found(self, retriever: Any, question: str = QUESTION) -> list[str]:
        return [found.node.get_content("none") for found in asyncio.run(retriever.aretrieve(question))]


WAYS = [LangChain(), AsyncLangChain(), LlamaIndex(), AsyncLlamaIndex()]
every_way = pytest.mark.parametrize("of", WAYS, ids=lambda of: type(of).__name__)
both_frameworks = pytest.mark.parametrize("of", [WAYS[0], WAYS[2]], ids=["langchain", "llama-index"])


def settings(served: Server, **more: Any) -> dict[str, Any]:
    return {"api_key": KEY, "base_url": served.url, **more}


def asked(emulator: Emulator) -> list[tuple[str | None, str | None, int]]:
    return [(request.text_type, request.output_type, len(request.texts)) for request in emulator.asked]


def ranking(emulator: Emulator, texts: list[str], question: str = QUESTION) -> list[str]:
    """By the service's own vectors."""

    def weights(text: str, role: str) -> dict[int, float]:
        tokens = emulator.sparse(text, text_type=role, model="text-embedding-v4")
        return {token.index: float(np.float32(token.value)) for token in tokens}

    query, scores = weights(question, "query"), []
    for i, text in enumerate(texts):
        row = weights(text, "document")
        if common := sorted(query.keys() & row.keys()):
            scores.append((-sum(query[token] * row[token] for token in common), i))
    return [texts[i] for _, i in sorted(scores)]


# Requests and results


@every_way
def test_it_finds_by_sparse_vectors_of_requests_of_its_own(of: Any, emulator: Emulator, served: Server) -> None:
    retriever = of.made([], **settings(served))
    assert of.found(retriever) == []
    assert emulator.requests == 0
    of.add(retriever, TEXTS[:15])
    of.add(retriever, TEXTS[15:])
    emulator_asked = asked(emulator)
    assert sorted(emulator_asked) == [("document", "sparse", 5)] * 2 + [("document", "sparse", 10)] * 2
    assert of.found(retriever) == ranking(emulator, TEXTS)[:4]
    assert of.found(retriever)[0] == TEXTS[24]
    assert asked(emulator)[4:] == [("query", "sparse", 1)] * 2
    assert (retriever.usage.requests, retriever.usage.texts) == (6, 32)
    assert of.found(retriever, "nothing known here") == []


@every_way
@pytest.mark.parametrize("order", ["store first", "retriever first", "retriever made at once"])
def test_a_pair_pays_for_each_text_once_in_any_order(of: Any, order: str, emulator: Emulator, served: Server) -> None:
    dense = of.dense(**settings(served, dimensions=64))
    if order == "retriever made at once":
        sparse = of.made(TEXTS, dense=dense)
        store = of.fill_store(dense, TEXTS)
    else:
        sparse = of.sparse(dense, **({"similarity_top_k": 4} if isinstance(of, LlamaIndex) else {}))
        if order == "store first":
            store = of.fill_store(dense, TEXTS)
        of.add(sparse, TEXTS)
        if order == "retriever first":
            store = of.fill_store(dense, TEXTS)
    assert asked(emulator) == [("document", "dense&sparse", 10)] * 3
    assert emulator.billed_texts == 30
    assert of.found(sparse) == ranking(emulator, TEXTS)[:4]
    alone = of.fill_store(of.dense(**settings(served, dimensions=64)), TEXTS)
    emulator.clear()
    together = of.found(store)
    assert asked(emulator) == []  # the query's other vector was cached
    assert together == of.found(alone)
    assert dense.hybrid.cache.size == 0


@every_way
def test_dense_vectors_wait_up_to_memo_size(of: Any, emulator: Emulator, served: Server) -> None:
    dense = of.dense(**settings(served, dimensions=64))
    retriever = of.made(TEXTS, dense=dense, memo_size=12)
    assert dense.hybrid.cache.size == 12
    of.add(retriever, TEXTS[:10])
    assert asked(emulator) == [("document", "dense&sparse", 10)] * 3 + [("document", "sparse", 10)]


@every_way
def test_after_an_error_nothing_is_added_and_a_pair_pays_no_text_again(
    of: Any, emulator: Emulator, served: Server
) -> None:
    dense = of.dense(**settings(served, dimensions=64))
    retriever = of.made(TEXTS[:5], dense=dense)
    emulator.faults = [faults.Blocked(match="word17")]
    with pytest.raises(BadRequestError) as caught:
        of.add(retriever, TEXTS[5:])
    assert caught.value.failed == [12]
    assert caught.value.partial.keys() == set(range(25)) - {12}
    assert all(vector.indices for vector in caught.value.partial.values())
    emulator.faults = []
    assert TEXTS[24] not in of.found(retriever)
    emulator.clear()
    of.add(retriever, TEXTS[5:])
    of.fill_store(dense, TEXTS[5:])
    assert asked(emulator) == [("document", "dense&sparse", 1)]
    assert of.found(retriever) == ranking(emulator, TEXTS)[:4]


@every_way
def test_many_texts_are_requested_in_slices_and_added_all_or_none(
    of: Any, emulator: Emulator, served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_retriever, "_SLICE_TEXTS", 12)
    retriever = of.made([], **settings(served))
    for bad, arrived, message in (
        (17, {*range(24)} - {17}, "text 17 of 30: "),
        (3, {*range(12)} - {3}, "text 3 of 30: "),
    ):
        emulator.faults = [faults.Blocked(match=f"word{bad}")]
        with pytest.raises(BadRequestError) as caught:
            of.add(retriever, TEXTS)
        assert caught.value.message.startswith(message)
        assert caught.value.partial.keys() == arrived
        assert caught.value.failed == sorted({*range(30)} - arrived)
        assert caught.value.reasons.keys() == {bad}
        row = emulator.sparse(TEXTS[0], text_type="document", model="text-embedding-v4")
        assert caught.value.partial[0].indices == sorted(token.index for token in row)
        assert of.found(retriever) == []
    emulator.faults = []
    emulator.clear()
    with pytest.raises(InvalidInput, match="text 29 is far longer"):
        of.add(retriever, [*TEXTS[:29], "word " * 80_000])
    assert emulator.requests == 0
    of.add(retriever, TEXTS)
    assert sorted(asked(emulator)) == [("document", "sparse", n) for n in (2, 2, 6, 10, 10)]
    assert of.found(retriever) == ranking(emulator, TEXTS)[: len(of.found(retriever))]


@both_frameworks
def test_repeated_texts_are_sent_once_and_all_found(of: Any, emulator: Emulator, served: Server) -> None:
    dense = of.dense(**settings(served, dimensions=64))
    retriever = of.made(["one and the same"] * 3, dense=dense)
    of.fill_store(dense, ["one and the same"] * 3)
    assert asked(emulator) == [("document", "dense&sparse", 1)]
    found = of.found(retriever, "same")
    assert found == ["one and the same"] * 3


# Filters, k, LangChain's and LlamaIndex's own


class TestLangChain(RetrieversIntegrationTests):
    """LangChain's own tests."""

    @property
    def retriever_constructor(self) -> Any:
        def construct(**settings: Any) -> lc.DashScopeSparseRetriever:
            return lc.DashScopeSparseRetriever.from_texts(TEXTS, base_url="emulator", **settings)

        return construct

    @property
    def retriever_query_example(self) -> str:
        return QUESTION


async def test_langchains_filter_is_a_dict_or_a_function(emulator: Emulator, served: Server) -> None:
    retriever = LangChain().made(TEXTS, **settings(served), filter={"even": True}, tags=["mine"])
    expected = ranking(emulator, TEXTS)
    even = [text for text in expected if TEXTS.index(text) % 2 == 0]
    assert [document.page_content for document in retriever.invoke(QUESTION)] == even[:4]
    found = await retriever.ainvoke(QUESTION, k=2, filter=lambda document: not document.metadata["even"])
    assert [document.page_content for document in found] == [text for text in expected if text not in even][:2]
    assert retriever.invoke(QUESTION, filter={"even": True, "absent": None}) == []
    assert (found[0].id, found[0].metadata["number"]) == (f"id{(n := TEXTS.index(found[0].page_content))}", n)
    found[0].metadata["rank"] = 1
    assert "rank" not in retriever.invoke(QUESTION, k=30, filter={"number": n})[0].metadata
    for wrong in ({"filter": "even"}, {"k": 0}, {"k": "4"}):
        with pytest.raises(InvalidInput, match=r"filter must be|k must be"):
            retriever.invoke(QUESTION, **wrong)
    with pytest.raises(TypeError, match="topk"):
        retriever.invoke(QUESTION, topk=3)


def test_a_configured_retriever_shares_the_documents(served: Server) -> None:
    retriever = LangChain().made(TEXTS, **settings(served))
    configured = retriever.configurable_fields(k=ConfigurableField("k"))
    assert configured.invoke(QUESTION, {"configurable": {"k": 1}})[0].page_content == TEXTS[24]
    assert len(configured.invoke(QUESTION, {"configurable": {"k": 3}})) == 3
    with pytest.raises(InvalidInput, match="pass no others"):
        lc.DashScopeSparseRetriever(collection=retriever.collection, model="text-embedding-v3")


def test_texts_have_their_metadata_and_ids(served: Server) -> None:
    of = lc.DashScopeSparseRetriever
    retriever = of.from_texts(TEXTS[:3], METADATA[:3], ["a", "b", "c"], **settings(served))
    [document] = retriever.invoke("word2", k=1)
    assert (document.page_content, document.metadata, document.id) == (TEXTS[2], METADATA[2], "c")
    with pytest.raises(InvalidInput, match="3 texts, but 2 metadatas"):
        of.from_texts(TEXTS[:3], METADATA[:2], **settings(served))
    with pytest.raises(InvalidInput, match="list of texts, not str"):
        of.from_texts("abc", **settings(served))  # a string is a sequence of strings
    requests = served.emulator.requests
    with pytest.raises(InvalidInput, match=r"text 1 is missing .*texts 1, 2 cannot.*nothing was sent") as caught:
        of.from_texts(["a", None, 3], **settings(served))  # type: ignore[list-item]
    assert caught.value.failed == [1, 2]
    with pytest.raises(InvalidInput, match="metadatas is DashScopeEmbeddings: pass it by name, dense="):
        of.from_texts(TEXTS[:3], lc.DashScopeEmbeddings(**settings(served)))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="document 0 is str, not Document: from_texts takes strings"):
        of.from_documents(TEXTS[:3], **settings(served))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"node 0 is str, not BaseNode: make a TextNode\(text=…\)"):
        li.DashScopeSparseRetriever.from_nodes(TEXTS[:3], **settings(served))  # type: ignore[arg-type]
    assert served.emulator.requests == requests
    made = asyncio.run(of.afrom_texts(TEXTS[:3], **settings(served)))
    assert [document.metadata for document in made.invoke("word2", k=1)] == [{}]


def test_llamaindex_filters_scores_and_events(emulator: Emulator, served: Server) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    filters = MetadataFilters(filters=[MetadataFilter(key="number", value=20, operator=">=")])
    retriever = LlamaIndex().made(
        TEXTS, **settings(served), filters=filters, callback_manager=CallbackManager([handler])
    )
    found = retriever.retrieve(QUESTION)
    expected = [text for text in ranking(emulator, TEXTS) if TEXTS.index(text) >= 20]
    assert [node.text for node in found] == expected[:4]
    scores = [node.score or 0.0 for node in found]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0
    assert len(handler.get_event_pairs(CBEventType.RETRIEVE)) == 1


def test_llamaindex_nodes_without_text_are_left_out_as_by_its_index(served: Server) -> None:
    retriever = li.DashScopeSparseRetriever.from_nodes([TextNode(text=" "), TextNode(text="cats")], **settings(served))
    assert [node.text for node in retriever.retrieve("cats")] == ["cats"]


def test_llamaindex_fuses_it_with_any_index(served: Server) -> None:
    sparse = LlamaIndex().made(TEXTS, **settings(served))
    index = VectorStoreIndex(LlamaIndex().documents(TEXTS), embed_model=MockEmbedding(8))
    fused = QueryFusionRetriever(
        [sparse, index.as_retriever(similarity_top_k=4)],
        llm=MockLLM(),
        retriever_weights=[0.9, 0.1],
        mode=FUSION_MODES.RELATIVE_SCORE,
        num_queries=1,
    )
    assert fused.retrieve(QUESTION)[0].text == TEXTS[24]


# Settings


@both_frameworks
def test_settings_are_checked_as_in_the_other_adapters(of: Any, served: Server) -> None:
    dense = of.dense(**settings(served))
    for wrong, message in ({"modle": "x"}, "is model meant"), ({"k_": 3}, "k_"), ({"dense": "x"}, "not str"):
        with pytest.raises((DashScopeError, ValidationError), match=message):
            of.made(TEXTS, **({} if "dense" in wrong else settings(served)), **wrong)
    with pytest.raises(InvalidInput, match="has the settings of the dense one"):
        of.sparse(dense, model="text-embedding-v3")
    with pytest.raises(InvalidInput, match="sparse"):
        of.sparse(**settings(served, model="text-embedding-v2"))
    name = "similarity_top_k" if of is WAYS[2] else "k"
    with pytest.raises(InvalidInput, match=f"{name} must be a whole number"):
        of.sparse(**settings(served), **{name: 0})


@both_frameworks
@pytest.mark.parametrize("how", ["constructor", "made", "load"])
def test_no_key_in_frames_repr_or_pickles_of_clients(of: Any, how: str, served: Server, tmp_path: Path) -> None:
    secret = "sk-" + "0123456789abcdef" * 2
    made = {
        "constructor": of.sparse,
        "made": lambda **wrong: of.made(TEXTS, **wrong),
        "load": lambda **wrong: getattr(of.sparse, of.file[1])(tmp_path, **wrong),
    }[how]
    for wrong in ({"api_key": secret, "colour": 1}, {"apikey": secret}, {"dense": secret}):
        with pytest.raises((DashScopeError, ValidationError)) as caught:
            made(**wrong)
        frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
        ours = [frame for frame in frames if "dashscope_embeddings/" in inspect.getfile(frame)]
        assert ours
        assert not [frame for frame in ours if secret in repr(frame.f_locals)]
        assert secret not in str(caught.value)
    retriever = of.sparse(**settings(served) | {"api_key": secret})
    assert secret not in repr(retriever)


@both_frameworks
def test_it_pickles_with_its_documents(of: Any, served: Server) -> None:
    dense = of.dense(**settings(served))
    retriever = of.made(TEXTS, dense=dense)
    if of is WAYS[2]:
        pickle.dumps(retriever._collection)
    else:
        again = pickle.loads(pickle.dumps(retriever))  # noqa: S301 - our own
        assert of.found(again) == of.found(retriever)


# Files


@both_frameworks
def test_what_was_saved_is_found_without_asking_again(
    of: Any, emulator: Emulator, served: Server, tmp_path: Path
) -> None:
    save, load = of.file
    retriever = of.made(TEXTS[:20], **settings(served))
    of.add(retriever, TEXTS[20:])
    getattr(retriever, save)(tmp_path / "new" / "folder")
    expected = of.found(retriever)
    emulator.clear()
    again = getattr(of.sparse, load)(tmp_path / "new" / "folder", **settings(served))
    found = of.found(again)
    assert found[: len(expected)] == expected[: len(found)]
    assert asked(emulator) == [("query", "sparse", 1)]
    of.add(again, ["more words"])
    getattr(again, save)(tmp_path / "new" / "folder")  # replaces it
    third = getattr(of.sparse, load)(tmp_path / "new" / "folder", **settings(served))
    assert of.found(third, "more words") == ["more words"]
    [file] = (tmp_path / "new" / "folder").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 or sys.platform == "win32"


@both_frameworks
def test_other_settings_are_refused(of: Any, served: Server, tmp_path: Path) -> None:
    save, load = of.file
    getattr(of.made(TEXTS[:3], **settings(served)), save)(tmp_path)
    with pytest.raises(InvalidInput, match=r"text-embedding-v4_\d+_document, not with .*text-embedding-v3"):
        getattr(of.sparse, load)(tmp_path, **settings(served, model="text-embedding-v3"))
    # `instruct` belongs to queries.
    assert of.found(getattr(of.sparse, load)(tmp_path, **settings(served, instruct="Find it.")), "word2")


@both_frameworks
def test_damaged_foreign_and_missing_files_are_one_clear_error(of: Any, served: Server, tmp_path: Path) -> None:
    save, load = of.file

    def loaded() -> None:
        getattr(of.sparse, load)(tmp_path, **settings(served))

    with pytest.raises(InvalidInput, match="does not exist"):
        loaded()
    getattr(of.made(TEXTS, **settings(served)), save)(tmp_path)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, a=np.arange(3))
    objects = tmp_path / "objects.npz"
    np.savez(objects, documents=np.array([{}], dtype=object))
    single = tmp_path / "single.npy"
    np.save(single, np.arange(3))
    header = {"format": "another", "settings": ""}
    other = tmp_path / "other.npz"
    contents = json.dumps({"header": header, "documents": []}).encode()
    np.savez(other, documents=np.frombuffer(contents, dtype=np.uint8))
    damaged = [whole[:size] for size in range(0, len(whole), max(1, len(whole) // 25))]
    damaged += [whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :] for at in range(200, len(whole), 997)]
    damaged += [pickle.dumps({}), *(file.read_bytes() for file in (foreign, objects, single, other))]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            loaded()
        except InvalidInput as error:
            refused += 1
            assert "is damaged, or not a sparse index" in str(error)  # noqa: PT017 - most are, a bit in padding is not
    assert refused >= len(damaged) - 2


@both_frameworks
def test_a_folder_without_a_name_is_refused(
    of: Any, served: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an unset variable: it would be the present folder."""
    monkeypatch.chdir(tmp_path)
    save, load = of.file
    retriever = of.made(TEXTS[:3], **settings(served))
    for call in (getattr(retriever, save), lambda name: getattr(of.sparse, load)(name, **settings(served))):
        with pytest.raises(InvalidInput, match="the folder must be a path, not an empty string"):
            call("")
    assert not list(tmp_path.iterdir())
    getattr(retriever, save)(".")
    assert [path.name for path in tmp_path.iterdir()] == ["sparse_index.npz"]


@both_frameworks
def test_a_save_that_fails_leaves_the_old_file(of: Any, served: Server, tmp_path: Path) -> None:
    save, load = of.file
    retriever = of.made(TEXTS[:3], **settings(served))
    getattr(retriever, save)(tmp_path)
    METADATA[0]["number"] = object()
    try:
        of.add(retriever, TEXTS[:1])
        with pytest.raises(InvalidInput, match=r"document \d cannot be saved as JSON .*: see its metadata"):
            getattr(retriever, save)(tmp_path)
    finally:
        METADATA[0]["number"] = 0
    assert len(list(tmp_path.iterdir())) == 1
    assert of.found(getattr(of.sparse, load)(tmp_path, **settings(served)), "word2")[0] == TEXTS[2]


def test_importing_an_adapter_loads_what_it_needs_alone() -> None:
    """A Ray actor needs neither SQLite nor the Batch route, and LangChain's adapter no retriever before its first."""
    code = (
        "import sys, dashscope_embeddings.ray_data; print([n for n in sys.modules if 'sqlite' in n or 'corpus' in n]); "
        "import dashscope_embeddings.langchain as m; before = set(sys.modules); m.DashScopeSparseRetriever; "
        "print([n for n in ('numpy', 'langchain_core.retrievers') if n in before or n not in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - our own interpreter
    assert done.stdout.split() == ["[]", "[]"]
    with pytest.raises(AttributeError, match="Absent"):
        lc.Absent  # noqa: B018 - the attribute is what is asked for


def test_langchains_takes_further_texts_with_their_metadata_and_ids() -> None:
    dense = LangChain.dense(base_url="emulator", dimensions=64)
    retriever = LangChain.sparse.from_texts(["steamed green tea"], dense=dense, k=3)
    retriever.add_texts(["roasted tea"], [{"number": 1}], ["id1"])
    asyncio.run(retriever.aadd_texts(["black tea"], [{"number": 2}], ["id2"]))
    found = {document.page_content: (document.id, document.metadata) for document in retriever.invoke("tea")}
    assert found == {
        "steamed green tea": (None, {}),
        "roasted tea": ("id1", {"number": 1}),
        "black tea": ("id2", {"number": 2}),
    }
