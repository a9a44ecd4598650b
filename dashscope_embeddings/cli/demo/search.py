"""The same passages indexed in LangChain and in LlamaIndex, and three rankings of them.

Needs both, and Qdrant where its store is asked for, but only once an index is built.
"""

from __future__ import annotations

import heapq
import math
import uuid
from collections import defaultdict
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from dashscope_embeddings._adapters.sparse import SparseAdapter
from dashscope_embeddings.vectors import SparseVector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from dashscope_embeddings._adapters.base import ClientFields
    from dashscope_embeddings.cli.demo.passages import Passage
    from dashscope_embeddings.vectors import TextType

Ranking: TypeAlias = "list[tuple[int, float]]"
"""(place of a passage in the corpus, score), best first."""

_RANKING_DEPTH = 50
"""Hits of each ranking that are fused: a passage far down in one may stand high in the other."""
_REQUESTS_PER_STEP = 16
"""That an index is filled with at once, for the sake of a progress bar; full ones, or more would be needed."""
_RRF_K = 60
"""The constant of reciprocal rank fusion, as in the paper of Cormack, Clarke and Büttcher, SIGIR 2009."""
_COLLECTION = "demo"


class Store(str, Enum):
    """Where the vectors are kept and searched."""

    MEMORY = "memory"
    """Each framework's own, for dense vectors only: sparse and fused rankings are made here."""
    QDRANT = "qdrant"
    """Qdrant's local mode, which makes all rankings."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What each ranking found for a question, by the framework's name."""

    dense: Mapping[str, Ranking]
    """By cosine."""
    sparse: Mapping[str, Ranking]
    """By the sum of products of shared tokens' weights; empty where the model has no sparse vectors."""
    fused: Mapping[str, Ranking]
    """Of both; empty without sparse vectors."""
    fusion_methods: Mapping[str, str]
    """How they were fused."""


class PassageIndex:
    """The passages in one framework, embedded by a linked pair: what the one half asked, the other finds."""

    name: str
    fusion_method = "reciprocal ranks"

    def __init__(self, embeddings: ClientFields, store: Store) -> None:
        self.embeddings = embeddings
        self.has_sparse = embeddings.client.settings.model.sparse
        self._ranks_in_store = store is Store.QDRANT
        self._sparse_documents: list[SparseVector] = []
        self._client: Any = None

    def add(self, first: int, texts: list[str]) -> None:
        """Embeds and stores passages, of which the first has this place."""
        self._store(first, texts)
        if self.has_sparse and not self._ranks_in_store:
            self._sparse_documents += self._sparse_vectors(texts, "document")

    def rank(self, question: str) -> list[Ranking]:
        """Dense, and where the model has sparse vectors, sparse and fused: for one request."""
        if not self.has_sparse:
            return self._search(question)
        if self._ranks_in_store:
            self._prefill_cache(question)
            return self._search(question)
        [dense] = self._search(question)
        sparse = rank_sparse(self._sparse_vectors([question], "query")[0], self._sparse_documents)
        return [dense, sparse, fuse(dense, sparse)]

    def _prefill_cache(self, question: str) -> None:
        # A hybrid search alone costs one request. The dense, the sparse and the hybrid one for the same question
        # ask for each half twice: so often the memo will hand it out.
        hybrid = self.embeddings.hybrid
        vectors = hybrid.client.embed(question, text_type="query", output="dense&sparse")
        if hybrid.cache is not None:
            hybrid.cache.put("dense", "query", [question] * 2, vectors.dense * 2)
            hybrid.cache.put("sparse", "query", [question] * 2, (vectors.sparse or []) * 2)

    def _store(self, first: int, texts: list[str]) -> None:
        raise NotImplementedError

    def _search(self, question: str) -> list[Ranking]:
        """The rankings that the store makes."""
        raise NotImplementedError

    def _sparse_vectors(self, texts: list[str], role: TextType) -> list[SparseVector]:
        """Sparse vectors, from the requests that gave the dense ones."""
        raise NotImplementedError

    def close(self) -> None:
        """Leaves the store."""
        if self._client is not None:
            self._client.close()


class LangChain(PassageIndex):
    """LangChain's InMemoryVectorStore, or one QdrantVectorStore for each retrieval mode over one collection."""

    name = "LangChain"

    def __init__(self, model: str, store: Store, settings: Mapping[str, Any]) -> None:
        from langchain_core.vectorstores import InMemoryVectorStore  # noqa: PLC0415 - only who runs the demo

        from dashscope_embeddings.langchain import DashScopeEmbeddings  # noqa: PLC0415 - same

        embeddings = DashScopeEmbeddings(model=model, **settings)
        super().__init__(embeddings, store)
        self._sparse = SparseAdapter(embeddings) if self.has_sparse and not self._ranks_in_store else None
        self._stores = self._open_qdrant(embeddings) if self._ranks_in_store else [InMemoryVectorStore(embeddings)]

    def _open_qdrant(self, embeddings: Any) -> list[Any]:
        from langchain_qdrant import QdrantVectorStore, RetrievalMode  # noqa: PLC0415 - as above
        from qdrant_client import QdrantClient, models  # noqa: PLC0415 - same

        from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings  # noqa: PLC0415 - same

        # Unless it is told the size and spared the checks, every store embeds a text of its own to measure it.
        size = embeddings.dimensions or embeddings.client.settings.model.default_dimension
        dense = models.VectorParams(
            size=size or len(embeddings.embed_query(_COLLECTION)), distance=models.Distance.COSINE
        )
        sparse = {QdrantVectorStore.SPARSE_VECTOR_NAME: models.SparseVectorParams()} if self.has_sparse else None
        self._client = QdrantClient(":memory:")
        self._client.create_collection(_COLLECTION, {QdrantVectorStore.VECTOR_NAME: dense}, sparse)
        self.fusion_method = "reciprocal ranks, by Qdrant"
        paired = DashScopeSparseEmbeddings(embeddings) if self.has_sparse else None
        retrieval_modes = (RetrievalMode.DENSE, RetrievalMode.SPARSE, RetrievalMode.HYBRID)
        return [
            QdrantVectorStore(
                self._client,
                _COLLECTION,
                embeddings,
                mode,
                sparse_embedding=paired,
                validate_embeddings=False,
                validate_collection_config=False,
            )
            for mode in (retrieval_modes if self.has_sparse else retrieval_modes[:1])
        ]

    def _store(self, first: int, texts: list[str]) -> None:
        places = [{"place": place} for place, _ in enumerate(texts, start=first)]
        self._stores[-1].add_texts(texts, places, batch_size=len(texts))

    def _search(self, question: str) -> list[Ranking]:
        found = (store.similarity_search_with_score(question, k=_RANKING_DEPTH) for store in self._stores)
        return [[(document.metadata["place"], score) for document, score in hits] for hits in found]

    def _sparse_vectors(self, texts: list[str], role: TextType) -> list[SparseVector]:
        return self._sparse.hybrid.sparse(texts, role) if self._sparse else []


class LlamaIndex(PassageIndex):
    """LlamaIndex's SimpleVectorStore, or its QdrantVectorStore in every query mode."""

    name = "LlamaIndex"

    def __init__(self, model: str, store: Store, settings: Mapping[str, Any]) -> None:
        from llama_index.core import StorageContext, VectorStoreIndex  # noqa: PLC0415 - as above

        from dashscope_embeddings.llama_index import DashScopeEmbedding, DashScopeSparseEmbedding  # noqa: PLC0415 - same

        embeddings = DashScopeEmbedding(model, **settings)
        super().__init__(embeddings, store)
        self._sparse = DashScopeSparseEmbedding(embeddings) if self.has_sparse else None
        self._modes = ["default"]
        vector_store = self._open_qdrant() if self._ranks_in_store else None
        context = StorageContext.from_defaults(vector_store=vector_store)
        self._index = VectorStoreIndex([], storage_context=context, embed_model=embeddings)

    def _open_qdrant(self) -> Any:
        from llama_index.vector_stores.qdrant import QdrantVectorStore  # noqa: PLC0415 - as above
        from qdrant_client import QdrantClient  # noqa: PLC0415 - same

        self._client = QdrantClient(":memory:")
        hybrid: dict[str, Any] = {}
        if self._sparse:
            encode = {"sparse_doc_fn": self._sparse.encode_documents, "sparse_query_fn": self._sparse.encode_queries}
            hybrid = {"enable_hybrid": True, **encode}
            self._modes += ["sparse", "hybrid"]
            self.fusion_method = "min-max scores, averaged"
        # Without an index of its payload, for which local mode has no use and of which it would warn.
        return QdrantVectorStore(_COLLECTION, client=self._client, index_doc_id=False, **hybrid)

    def _store(self, first: int, texts: list[str]) -> None:
        from llama_index.core.schema import TextNode  # noqa: PLC0415 - as above

        places = enumerate(texts, start=first)
        self._index.insert_nodes([TextNode(id_=str(uuid.UUID(int=place)), text=text) for place, text in places])

    def _search(self, question: str) -> list[Ranking]:
        depths = {"similarity_top_k": _RANKING_DEPTH, "sparse_top_k": _RANKING_DEPTH}
        retrievers = (self._index.as_retriever(vector_store_query_mode=mode, **depths) for mode in self._modes)
        found = (retriever.retrieve(question) for retriever in retrievers)
        return [[(uuid.UUID(hit.node_id).int, hit.score or 0.0) for hit in hits] for hits in found]

    def _sparse_vectors(self, texts: list[str], role: TextType) -> list[SparseVector]:
        if self._sparse is None:
            return []
        encode = self._sparse.encode_documents if role == "document" else self._sparse.encode_queries
        return [SparseVector(indices, values) for indices, values in zip(*encode(texts), strict=True)]


class Search:
    """The same passages in a LangChain and in a LlamaIndex index.

    Args:
        passages: What is searched.
        model: Its name.
        store: Of both frameworks.
        settings: Of both adapters, such as `base_url`, `dimensions`.

    Raises:
        ImportError: LangChain, LlamaIndex or the store is not installed.
        InvalidInput: a setting that cannot work, or no key.
    """

    def __init__(self, passages: Sequence[Passage], model: str, store: Store = Store.MEMORY, **settings: Any) -> None:
        self.passages = passages
        self.indexes: tuple[PassageIndex, ...] = (LangChain(model, store, settings), LlamaIndex(model, store, settings))

    @property
    def has_sparse(self) -> bool:
        """Whether the model gives sparse vectors."""
        return self.indexes[0].has_sparse

    def add_passages(self, index: PassageIndex, progress: Callable[[int], object]) -> None:
        """Embeds all passages for an index; `progress` is told how many more are done."""
        step = _REQUESTS_PER_STEP * index.embeddings.client.settings.model.rows
        for first in range(0, len(self.passages), step):
            texts = [passage.text for passage in self.passages[first : first + step]]
            index.add(first, texts)
            progress(len(texts))

    def answer(self, question: str) -> Answer:
        """The passages that answer a question, in all rankings.

        Raises:
            DashScopeError: the question could not be embedded.
        """
        found = {index.name: index.rank(question) for index in self.indexes}
        kinds = [dict(zip(found, rankings, strict=True)) for rankings in zip(*found.values(), strict=True)]
        dense, sparse, fused = kinds if self.has_sparse else (kinds[0], {}, {})
        return Answer(dense, sparse, fused, {index.name: index.fusion_method for index in self.indexes})

    def close(self) -> None:
        """Leaves the stores."""
        for index in self.indexes:
            index.close()


def rank_sparse(query: SparseVector, documents: Iterable[SparseVector], depth: int = _RANKING_DEPTH) -> Ranking:
    """By the dot product, which only shared tokens add to; documents without any are no hits."""
    weights = query.as_dict()
    scores = (
        math.fsum(weights.get(index, 0.0) * value for index, value in document.as_dict().items())
        for document in documents
    )
    hits = ((place, score) for place, score in enumerate(scores) if score > 0)
    return heapq.nsmallest(depth, hits, key=_best_first)


def fuse(*rankings: Ranking, depth: int = _RANKING_DEPTH) -> Ranking:
    """Reciprocal rank fusion: a hit scores 1 / (60 + its rank) in each ranking that holds it."""
    scores: defaultdict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, (place, _) in enumerate(ranking, start=1):
            scores[place] += 1 / (_RRF_K + rank)
    return heapq.nsmallest(depth, scores.items(), key=_best_first)


def _best_first(hit: tuple[int, float]) -> tuple[float, int]:
    place, score = hit
    return -score, place
