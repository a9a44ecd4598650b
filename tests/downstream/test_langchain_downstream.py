"""LangChain's adapter inside software of others: what it requests, in which role, and which texts are billed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("langgraph.store.memory")
pytest.importorskip("langchain_chroma")
pytest.importorskip("faiss")
pytest.importorskip("lancedb")

import faiss
import httpx
import lancedb
from fastapi import FastAPI
from langchain_chroma import Chroma
from langchain_classic.indexes import SQLRecordManager
from langchain_core.documents import Document
from langchain_core.indexing import aindex, index
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.store.base import PutOp
from langgraph.store.memory import InMemoryStore
from request_log import new_requests

from dashscope_embeddings.langchain import DashScopeEmbeddings

if TYPE_CHECKING:
    from pathlib import Path

    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

WIDTH = 128
TEXTS = [f"paragraph {n} about topic{n % 3}" for n in range(12)]
"""Two requests: the service takes ten texts in one."""
QUESTION = TEXTS[7]
DOCUMENTS, QUERY = ("document", tuple(TEXTS[:10])), ("query", (QUESTION,))
WAYS = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@pytest.fixture
def embeddings(served: Server) -> DashScopeEmbeddings:
    return DashScopeEmbeddings(api_key="sk-made-up", base_url=served.url, dimensions=WIDTH)


# --- LangGraph ---------------------------------------------------------------------------------------------


@WAYS
def test_langgraphs_store_embeds_what_is_put_as_documents_and_searches_by_a_query(
    embeddings: DashScopeEmbeddings, emulator: Emulator, *, asynchronous: bool
) -> None:
    store = InMemoryStore(index={"dims": WIDTH, "embed": embeddings, "fields": ["text"]})
    puts = [PutOp(("notes",), str(n), {"text": text, "other": "not embedded"}) for n, text in enumerate(TEXTS[:10])]

    async def use() -> Any:
        await store.abatch(puts)
        await store.aput(("notes",), "unindexed", {"text": "never embedded"}, index=False)
        return await store.asearch(("notes",), query=QUESTION, limit=1)

    if asynchronous:
        found = asyncio.run(use())
    else:
        store.batch(puts)
        store.put(("notes",), "unindexed", {"text": "never embedded"}, index=False)
        found = store.search(("notes",), query=QUESTION, limit=1)
    assert [item.value["text"] for item in found] == [QUESTION]
    assert new_requests(emulator) == [DOCUMENTS, QUERY]


# --- LangChain's indexing ----------------------------------------------------------------------------------


@WAYS
def test_indexing_again_bills_the_changed_document_alone(
    embeddings: DashScopeEmbeddings, emulator: Emulator, tmp_path: Path, *, asynchronous: bool
) -> None:
    store = InMemoryVectorStore(embeddings)
    driver = "sqlite+aiosqlite" if asynchronous else "sqlite"
    records = SQLRecordManager("notes", db_url=f"{driver}:///{tmp_path / 'records.db'}", async_mode=asynchronous)
    engine: Any = records.engine  # left open, it warns
    first = [Document(text, metadata={"source": str(n)}) for n, text in enumerate(TEXTS[:10])]
    changed = [*first[:9], Document("another text", metadata={"source": "9"})]
    how: Any = {"cleanup": "full", "source_id_key": "source", "key_encoder": "sha256"}

    async def use() -> list[Any]:
        if not asynchronous:
            records.create_schema()
            runs = [
                (index(documents, records, store, **how), new_requests(emulator))
                for documents in (first, first, changed)
            ]
            engine.dispose()
            return runs
        await records.acreate_schema()
        runs = [
            (await aindex(documents, records, store, **how), new_requests(emulator))
            for documents in (first, first, changed)
        ]
        await engine.dispose()
        return runs

    runs = asyncio.run(use())
    assert [(counts["num_added"], counts["num_skipped"], counts["num_deleted"]) for counts, _ in runs] == [
        (10, 0, 0),
        (0, 10, 0),
        (1, 9, 1),
    ]
    assert [sent for _, sent in runs] == [[DOCUMENTS], [], [("document", ("another text",))]]


# --- stores ------------------------------------------------------------------------------------------------


def chroma(embeddings: DashScopeEmbeddings, path: Path) -> Any:
    return Chroma(embedding_function=embeddings, persist_directory=str(path))


def faiss_store(embeddings: DashScopeEmbeddings, _: Path) -> Any:
    # Imported under the filter of warnings: it says that it is no longer developed.
    from langchain_community.docstore.in_memory import InMemoryDocstore  # noqa: PLC0415
    from langchain_community.vectorstores import FAISS  # noqa: PLC0415

    return FAISS(embeddings, faiss.IndexFlatL2(WIDTH), InMemoryDocstore(), {})


@pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset:DeprecationWarning")
@pytest.mark.parametrize("make", [chroma, faiss_store])
@WAYS
def test_a_store_embeds_documents_in_full_requests_and_a_question_as_a_query(
    make: Any, embeddings: DashScopeEmbeddings, emulator: Emulator, tmp_path: Path, *, asynchronous: bool
) -> None:
    store = make(embeddings, tmp_path)

    async def use() -> Any:
        await store.aadd_texts(TEXTS)
        return await store.asimilarity_search(QUESTION, k=1)

    if asynchronous:
        found = asyncio.run(use())
    else:
        store.add_texts(TEXTS)
        found = store.similarity_search(QUESTION, k=1)
    assert [document.page_content for document in found] == [QUESTION]
    *documents, query = new_requests(emulator)
    assert sorted(documents) == sorted([DOCUMENTS, ("document", tuple(TEXTS[10:]))])
    assert query == QUERY


def test_lancedb_stores_and_finds_the_vectors(
    embeddings: DashScopeEmbeddings, emulator: Emulator, tmp_path: Path
) -> None:
    vectors = embeddings.embed_documents(TEXTS[:10])
    rows = [{"text": text, "vector": vector} for text, vector in zip(TEXTS, vectors, strict=False)]
    table = lancedb.connect(tmp_path).create_table("notes", rows)
    (found,) = table.search(embeddings.embed_query(QUESTION)).limit(1).to_list()
    assert found["text"] == QUESTION
    assert new_requests(emulator) == [DOCUMENTS, QUERY]


# --- a text splitter ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`langchain-.*` is being sunset:DeprecationWarning")
@WAYS
def test_a_semantic_chunker_embeds_sentences_as_documents_and_cuts_between_topics(
    embeddings: DashScopeEmbeddings, emulator: Emulator, *, asynchronous: bool
) -> None:
    # Imported under the filter of warnings: it says that it is no longer developed.
    from langchain_experimental.text_splitter import SemanticChunker  # noqa: PLC0415

    chunker = SemanticChunker(embeddings, buffer_size=0, number_of_chunks=2)
    sentences = [f"The {noun} swims in the sea." for noun in ("whale", "shark")]
    sentences += [f"An {noun} computes vectors quickly." for noun in ("engine", "adapter")]
    document = Document(" ".join(sentences), metadata={"source": "a book"})
    if asynchronous:
        found = asyncio.run(chunker.atransform_documents([document]))
    else:
        found = chunker.transform_documents([document])
    assert [part.page_content for part in found] == [" ".join(sentences[:2]), " ".join(sentences[2:])]
    assert [part.metadata["source"] for part in found] == ["a book"] * 2
    assert new_requests(emulator) == [("document", tuple(sentences))]


# --- processes ---------------------------------------------------------------------------------------------

PREFORK = """
import billiard
from dashscope_embeddings.langchain import DashScopeEmbeddings

embeddings = DashScopeEmbeddings(api_key="sk-made-up", base_url={url!r}, dimensions={width})
before = embeddings.embed_query("parent before")

def task(name):
    together.wait()
    return embeddings.embed_query(name), embeddings.embed_documents([f"{{name}} document {{n}}" for n in range(12)])

together = billiard.Barrier(3)
with billiard.Pool(3) as pool:
    waiting = pool.map_async(task, ["a", "b", "c"], chunksize=1)
    after = embeddings.embed_query("parent after")
    print(json.dumps([before, after, *waiting.get(60)]))
"""
"""Celery's process pool: a parent that has open connections forks workers that use the same adapter."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_workers_that_celerys_pool_forks_have_requests_and_sockets_of_their_own(
    served: Server, emulator: Emulator
) -> None:
    program = "import json\n" + PREFORK.format(url=served.url, width=WIDTH)
    # Python 3.12 warns of forks beside threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603 - our own program
    assert (done.returncode, done.stderr) == (0, "")
    before, after, *workers = json.loads(done.stdout)

    def vectors(role: str, texts: list[str]) -> list[list[float]]:
        return [emulator.dense(text, text_type=role, dimension=WIDTH) for text in texts]

    assert [before, after] == vectors("query", ["parent before", "parent after"])
    documents = {name: [f"{name} document {n}" for n in range(12)] for name in "abc"}
    assert workers == [[*vectors("query", [name]), vectors("document", texts)] for name, texts in documents.items()]
    assert served.peak_connections >= 4, "a connection of the parent, and one of each worker"
    assert new_requests(emulator) == sorted(
        [
            *(("query", (name,)) for name in ["parent before", "parent after", *documents]),
            *(("document", tuple(texts[cut])) for texts in documents.values() for cut in (slice(10), slice(10, 12))),
        ]
    )


# --- a web server ------------------------------------------------------------------------------------------


async def test_fifty_questions_at_once_share_requests(embeddings: DashScopeEmbeddings, emulator: Emulator) -> None:
    app = FastAPI()

    @app.get("/vector")
    async def vector(text: str) -> list[float]:
        return await embeddings.aembed_query(text)

    questions = [f"question {n}" for n in range(50)]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as http:
        replies = await asyncio.gather(*(http.get("/vector", params={"text": text}) for text in questions))
    assert [reply.json() for reply in replies] == [
        emulator.dense(text, text_type="query", dimension=WIDTH) for text in questions
    ]
    sent = new_requests(emulator)
    assert {role for role, _ in sent} == {"query"}
    assert sorted(text for _, texts in sent for text in texts) == sorted(questions)
    assert len(sent) < 20
