"""LlamaIndex's adapter inside its pipelines: what it requests, in which role, and which texts are billed."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SemanticSplitterNodeParser
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.retrievers.fusion_retriever import FUSION_MODES
from llama_index.core.schema import TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from request_log import new_requests

from dashscope_embeddings.llama_index import DashScopeEmbedding, DashScopeSparseRetriever

if TYPE_CHECKING:
    from pathlib import Path

    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

TEXTS = [f"paragraph {n}" for n in range(10)]
WAYS = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@pytest.fixture
def embedding(served: Server) -> DashScopeEmbedding:
    return DashScopeEmbedding(api_key="sk-made-up", base_url=served.url, dimensions=128)


def run(
    pipeline: IngestionPipeline, texts: list[str], *, asynchronous: bool, num_workers: int | None = None
) -> list[str]:
    """The texts of the nodes that came out."""
    documents = [Document(text=text, id_=str(n)) for n, text in enumerate(texts)]
    arguments: Any = {"documents": documents, "num_workers": num_workers}
    nodes = asyncio.run(pipeline.arun(**arguments)) if asynchronous else pipeline.run(**arguments)
    assert all(len(node.embedding or ()) == 128 for node in nodes)
    return [node.get_content() for node in nodes]


@WAYS
def test_a_pipeline_with_a_docstore_bills_the_changed_document_alone(
    embedding: DashScopeEmbedding, emulator: Emulator, *, asynchronous: bool
) -> None:
    pipeline = IngestionPipeline(
        transformations=[embedding],
        docstore=SimpleDocumentStore(),
        vector_store=SimpleVectorStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS,
        disable_cache=True,
    )
    changed = [*TEXTS[:9], "another text"]
    runs = [
        (run(pipeline, texts, asynchronous=asynchronous), new_requests(emulator)) for texts in (TEXTS, TEXTS, changed)
    ]
    assert runs == [
        (TEXTS, [("document", tuple(TEXTS))]),
        ([], []),
        (["another text"], [("document", ("another text",))]),
    ]


@WAYS
def test_a_pipelines_cache_answers_in_another_process(
    embedding: DashScopeEmbedding, emulator: Emulator, tmp_path: Path, *, asynchronous: bool
) -> None:
    pipeline = IngestionPipeline(transformations=[embedding], cache=IngestionCache())
    assert run(pipeline, TEXTS, asynchronous=asynchronous) == TEXTS
    assert new_requests(emulator) == [("document", tuple(TEXTS))]
    pipeline.persist(str(tmp_path))
    # With other threads and another timeout: neither makes another vector.
    same = embedding.model_copy(update={"max_concurrency": 3})
    later = IngestionPipeline(transformations=[same])
    later.load(str(tmp_path))
    assert run(later, TEXTS, asynchronous=asynchronous) == TEXTS
    assert new_requests(emulator) == []


@WAYS
def test_a_semantic_splitter_embeds_sentences_as_documents_in_full_requests(
    embedding: DashScopeEmbedding, emulator: Emulator, *, asynchronous: bool
) -> None:
    sentences = [f"Sentence {n} is here. " for n in range(10)]
    splitter = SemanticSplitterNodeParser(
        embed_model=embedding, buffer_size=0, sentence_splitter=lambda text: re.findall(r".*?\. ", text)
    )
    document = Document(text="".join(sentences))
    if asynchronous:
        nodes = asyncio.run(splitter.aget_nodes_from_documents([document]))
    else:
        nodes = splitter.get_nodes_from_documents([document])
    assert "".join(node.get_content() for node in nodes).split() == document.text.split()
    assert new_requests(emulator) == [("document", tuple(sentences))]


@pytest.mark.filterwarnings("ignore:Specified num_workers exceed")
@WAYS
def test_a_pipelines_workers_embed_each_text_once_and_fill_cache_and_docstore(
    embedding: DashScopeEmbedding, emulator: Emulator, *, asynchronous: bool
) -> None:
    pipeline = IngestionPipeline(
        transformations=[embedding],
        docstore=SimpleDocumentStore(),
        vector_store=SimpleVectorStore(),
        cache=IngestionCache(),
    )
    embedding.get_text_embedding("used before the workers start")
    emulator.clear()
    assert run(pipeline, TEXTS, asynchronous=asynchronous, num_workers=2) == TEXTS
    sent = new_requests(emulator)
    assert {role for role, _ in sent} == {"document"}
    assert sorted(text for _, texts in sent for text in texts) == TEXTS
    cached = pipeline.cache.cache.get_all(collection=pipeline.cache.collection)
    assert len(cached) == len(sent) == 2, "an entry of each worker"
    assert run(pipeline, TEXTS, asynchronous=asynchronous) == []  # the docstore has them
    assert new_requests(emulator) == []


@WAYS
def test_a_fusion_retriever_asks_once_for_both_vectors_of_a_question(
    embedding: DashScopeEmbedding, emulator: Emulator, *, asynchronous: bool
) -> None:
    nodes = [TextNode(text=text, id_=text) for text in TEXTS]
    sparse = DashScopeSparseRetriever.from_nodes(nodes, dense=embedding)
    index = VectorStoreIndex(nodes, embed_model=embedding)
    fusion = QueryFusionRetriever(
        [sparse, index.as_retriever()], llm=MockLLM(), num_queries=1, mode=FUSION_MODES.RECIPROCAL_RANK
    )
    assert new_requests(emulator) == [("document", tuple(TEXTS))]
    found = asyncio.run(fusion.aretrieve("paragraph 7")) if asynchronous else fusion.retrieve("paragraph 7")
    assert found[0].node.node_id == "paragraph 7"
    assert new_requests(emulator) == [("query", ("paragraph 7",))]
