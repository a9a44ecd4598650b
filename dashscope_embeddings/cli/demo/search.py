"""Indexes of the same passages in LangChain and in LlamaIndex, each with dense, sparse and fused rankings.

Both frameworks, and Qdrant for its store, are imported only when an index is built.
"""

from __future__ import annotations

import contextlib
import heapq
import uuid
from collections import defaultdict
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from dashscope_embeddings._adapters.flows import run
from dashscope_embeddings._adapters.sparse import SparseAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dashscope_embeddings._adapters.base import ClientFields
    from dashscope_embeddings._adapters.sparse_retriever import SparseCollection
    from dashscope_embeddings.cli.demo.passages import Passage

Ranking: TypeAlias = "list[tuple[int, float]]"
"""(index of a passage in the corpus, score), best first."""
Answer: TypeAlias = "dict[str, dict[str, Ranking]]"
"""Framework → how it ranked (dense and, if the model has sparse vectors, sparse and fused) → its ranking."""
DENSE, SPARSE = "dense · cosine", "sparse · shared tokens, weighted"

_RANKING_DEPTH = 50
"""Hits of each ranking that are fused: a passage far down in one may be high in the other."""
_REQUESTS_PER_STEP = 16
"""Full requests between two updates of the progress bar."""
_RRF_K = 60
"""The constant of reciprocal rank fusion, as in the paper of Cormack, Clarke and Büttcher, SIGIR 2009."""
_COLLECTION = "demo"


class Store(str, Enum):
    """Where the vectors are stored and searched."""

    MEMORY = "memory"
    """Each framework's own, for dense vectors only: sparse and fused rankings are computed here."""
    QDRANT = "qdrant"
    """Qdrant's local mode, which computes all rankings."""


class PassageIndex:
    """The passages in one framework, embedded by a pair of adapters: one request gives dense and sparse vectors."""

    name: str
    fusion = "fused · reciprocal ranks"

    def __init__(self, embeddings: ClientFields, store: Store) -> None:
        self.embeddings = embeddings
        self.has_sparse = embeddings.client.settings.model.sparse
        self.closing = contextlib.ExitStack()
        # As in our sparse retrievers; stores that rank by themselves get their framework's partner.
        self._sparse: SparseCollection[int] | None = None
        if self.has_sparse and store is Store.MEMORY:
            from dashscope_embeddings._adapters.sparse_retriever import SparseCollection  # noqa: PLC0415 - needs numpy

            self._sparse = SparseCollection(SparseAdapter(embeddings))

    def add(self, first: int, texts: list[str]) -> None:
        """Embeds and stores passages; `first` is the index of the first one."""
        self._store(first, texts)
        if self._sparse is not None:
            run(self._sparse.add(range(first, first + len(texts)), texts))

    def rank(self, question: str) -> dict[str, Ranking]:
        """The rankings of the passages for a question, by how they were made.

        One request gives the vectors of the dense and the sparse one. A store that fuses by itself asks once more.
        """
        rankings = self._search(question)
        if self._sparse is not None:
            rankings.append(run(self._sparse.search(question, _RANKING_DEPTH)))
            rankings.append(fuse(*rankings))
        return dict(zip((DENSE, SPARSE, self.fusion), rankings, strict=False))

    def _store(self, first: int, texts: list[str]) -> None:
        raise NotImplementedError

    def _search(self, question: str) -> list[Ranking]:
        """The rankings that the store computes."""
        raise NotImplementedError


class LangChain(PassageIndex):
    """LangChain's InMemoryVectorStore, or one QdrantVectorStore for each retrieval mode over one collection."""

    name = "LangChain"

    def __init__(self, model: str, store: Store, settings: Mapping[str, Any]) -> None:
        from langchain_core.vectorstores import InMemoryVectorStore  # noqa: PLC0415 - only for the demo

        from dashscope_embeddings.langchain import DashScopeEmbeddings  # noqa: PLC0415 - same

        embeddings = DashScopeEmbeddings(model=model, **settings)
        super().__init__(embeddings, store)
        self._stores = self._open_qdrant(embeddings) if store is Store.QDRANT else [InMemoryVectorStore(embeddings)]

    def _open_qdrant(self, embeddings: Any) -> list[Any]:
        from langchain_qdrant import QdrantVectorStore, RetrievalMode  # noqa: PLC0415 - as above
        from qdrant_client import QdrantClient, models  # noqa: PLC0415 - same

        from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings  # noqa: PLC0415 - same

        # Create the collection with its size and skip the validation: otherwise each store embeds a text to measure it.
        size = embeddings.dimensions or embeddings.client.settings.model.default_dimension
        dense = models.VectorParams(
            size=size or len(embeddings.embed_query(_COLLECTION)), distance=models.Distance.COSINE
        )
        sparse = {QdrantVectorStore.SPARSE_VECTOR_NAME: models.SparseVectorParams()} if self.has_sparse else None
        client = self.closing.enter_context(contextlib.closing(QdrantClient(":memory:")))
        client.create_collection(_COLLECTION, {QdrantVectorStore.VECTOR_NAME: dense}, sparse)
        self.fusion = "fused · reciprocal ranks, by Qdrant"
        paired = DashScopeSparseEmbeddings(embeddings) if self.has_sparse else None
        skip: dict[str, Any] = {"validate_embeddings": False, "validate_collection_config": False}
        modes = list(RetrievalMode)[: 3 if self.has_sparse else 1]
        return [
            QdrantVectorStore(client, _COLLECTION, embeddings, mode, sparse_embedding=paired, **skip) for mode in modes
        ]

    def _store(self, first: int, texts: list[str]) -> None:
        metadata = [{"index": index} for index, _ in enumerate(texts, start=first)]
        self._stores[-1].add_texts(texts, metadata, batch_size=len(texts))

    def _search(self, question: str) -> list[Ranking]:
        results = (store.similarity_search_with_score(question, k=_RANKING_DEPTH) for store in self._stores)
        return [[(document.metadata["index"], score) for document, score in hits] for hits in results]


class LlamaIndex(PassageIndex):
    """LlamaIndex's SimpleVectorStore, or its QdrantVectorStore in every query mode."""

    name = "LlamaIndex"

    def __init__(self, model: str, store: Store, settings: Mapping[str, Any]) -> None:
        from llama_index.core import StorageContext, VectorStoreIndex  # noqa: PLC0415 - as above

        from dashscope_embeddings.llama_index import DashScopeEmbedding  # noqa: PLC0415 - same

        embeddings = DashScopeEmbedding(model, **settings)
        super().__init__(embeddings, store)
        self._modes = ["default"]
        vector_store = self._open_qdrant() if store is Store.QDRANT else None
        context = StorageContext.from_defaults(vector_store=vector_store)
        self._index = VectorStoreIndex([], storage_context=context, embed_model=embeddings)

    def _open_qdrant(self) -> Any:
        from llama_index.vector_stores.qdrant import QdrantVectorStore  # noqa: PLC0415 - as above
        from qdrant_client import QdrantClient  # noqa: PLC0415 - same

        from dashscope_embeddings.llama_index import DashScopeSparseEmbedding  # noqa: PLC0415 - same

        client = self.closing.enter_context(contextlib.closing(QdrantClient(":memory:")))
        hybrid: dict[str, Any] = {}
        if self.has_sparse:
            sparse = DashScopeSparseEmbedding(self.embeddings)
            encode = {"sparse_doc_fn": sparse.encode_documents, "sparse_query_fn": sparse.encode_queries}
            hybrid = {"enable_hybrid": True, **encode}
            self._modes += ["sparse", "hybrid"]
            self.fusion = "fused · min-max scores, averaged"
        # index_doc_id=False: local mode has no payload indexes and would warn.
        return QdrantVectorStore(_COLLECTION, client=client, index_doc_id=False, **hybrid)

    def _store(self, first: int, texts: list[str]) -> None:
        from llama_index.core.schema import TextNode  # noqa: PLC0415 - as above

        nodes = [TextNode(id_=str(uuid.UUID(int=index)), text=text) for index, text in enumerate(texts, start=first)]
        self._index.insert_nodes(nodes)

    def _search(self, question: str) -> list[Ranking]:
        depths = {"similarity_top_k": _RANKING_DEPTH, "sparse_top_k": _RANKING_DEPTH}
        retrievers = (self._index.as_retriever(vector_store_query_mode=mode, **depths) for mode in self._modes)
        results = (retriever.retrieve(question) for retriever in retrievers)
        return [[(uuid.UUID(hit.node_id).int, hit.score or 0.0) for hit in hits] for hits in results]


class Search:
    """An index of the same passages in each framework; `settings` are those of both adapters.

    Raises:
        ImportError: LangChain, LlamaIndex or the store is not installed.
        InvalidInput: a setting cannot work, or there is no key.
    """

    def __init__(self, passages: Sequence[Passage], model: str, store: Store = Store.MEMORY, **settings: Any) -> None:
        self.passages = passages
        self.indexes: tuple[PassageIndex, ...] = (LangChain(model, store, settings), LlamaIndex(model, store, settings))
        self.has_sparse = self.indexes[0].has_sparse

    def add_passages(self, index: PassageIndex, progress: Callable[[int], object]) -> None:
        """Embeds all passages for an index; `progress` is called with the number of passages per step."""
        step = _REQUESTS_PER_STEP * index.embeddings.client.settings.model.rows
        for first in range(0, len(self.passages), step):
            texts = [passage.text for passage in self.passages[first : first + step]]
            index.add(first, texts)
            progress(len(texts))

    def answer(self, question: str) -> Answer:
        """All rankings of the passages for a question. Raises DashScopeError."""
        return {index.name: index.rank(question) for index in self.indexes}

    def close(self) -> None:
        """Closes the stores."""
        for index in self.indexes:
            index.closing.close()


def fuse(*rankings: Ranking, depth: int = _RANKING_DEPTH) -> Ranking:
    """Reciprocal rank fusion: a hit's score is the sum of 1 / (60 + its rank) over the rankings that contain it."""
    scores: defaultdict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, (index, _) in enumerate(ranking, start=1):
            scores[index] += 1 / (_RRF_K + rank)
    return heapq.nsmallest(depth, scores.items(), key=_best_first)


def _best_first(hit: tuple[int, float]) -> tuple[float, int]:
    index, score = hit
    return -score, index
