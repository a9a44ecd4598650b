"""Indexes of the same passages in LangChain and in LlamaIndex, each with dense, sparse and fused rankings.

Both frameworks, and Qdrant for its store, are imported only when an index is built.
"""

from __future__ import annotations

import functools
import heapq
import uuid
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from dashscope_embeddings._adapters.flows import run
from dashscope_embeddings._adapters.sparse import SparseAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dashscope_embeddings._adapters.base import ClientFields
    from dashscope_embeddings.cli.demo.passages import Passage

Ranking: TypeAlias = "list[tuple[int, float]]"
"""(index of a passage in the corpus, score), best first."""
DENSE, SPARSE, FUSED = "dense · cosine", "sparse · shared tokens, weighted", "fused · reciprocal ranks"
STORES = {
    "memory": "each framework's own memory",
    "qdrant": "Qdrant's local mode, a collection for each framework",
}
"""Where the vectors are stored and searched. The frameworks' own stores have dense vectors only: the other rankings
are computed here. Qdrant computes all of them."""

_RANKING_DEPTH = 50
"""Hits of each ranking that are fused: a passage far down in one may be high in the other."""
_REQUESTS_PER_STEP = 16
"""Full requests between two updates of the progress bar."""
_RRF_K = 60
"""The constant of reciprocal rank fusion, as in the paper of Cormack, Clarke and Büttcher, SIGIR 2009."""
_COLLECTION = "demo"


@dataclass(slots=True)
class PassageIndex:
    """The passages in one framework, embedded by a pair of adapters: one request gives dense and sparse vectors."""

    framework: str
    embeddings: ClientFields
    add: Callable[[int, list[str]], object]
    """Embeds and stores passages, given the index of the first one."""
    searches: Mapping[str, Callable[[str], Ranking]]
    """How it ranks → the search. They share one request; a store that fuses by itself asks once more."""
    close: Callable[[], object] = bool

    @property
    def has_sparse(self) -> bool:
        """Whether the model has sparse vectors."""
        return self.embeddings.client.settings.model.sparse

    def rank(self, question: str) -> dict[str, Ranking]:
        """The rankings of the passages for a question, by how they were made."""
        rankings = {how: search(question) for how, search in self.searches.items()}
        return {**rankings, FUSED: fuse(*rankings.values())} if [*rankings] == [DENSE, SPARSE] else rankings

    def fill(self, passages: Sequence[Passage], progress: Callable[[int], object]) -> None:
        """Embeds all passages; `progress` is called with the number of passages per step."""
        step = _REQUESTS_PER_STEP * self.embeddings.client.settings.model.rows
        for first in range(0, len(passages), step):
            texts = [passage.text for passage in passages[first : first + step]]
            self.add(first, texts)
            progress(len(texts))


def open_indexes(model: str, store: str = "memory", **settings: Any) -> list[PassageIndex]:
    """An empty index in each framework; `settings` are those of both adapters.

    Raises:
        ImportError: LangChain, LlamaIndex or the store is not installed.
        InvalidInput: a setting cannot work, or there is no key.
    """
    from dashscope_embeddings.langchain import DashScopeEmbeddings  # noqa: PLC0415 - only for the demo
    from dashscope_embeddings.llama_index import DashScopeEmbedding  # noqa: PLC0415 - same

    embeddings = DashScopeEmbeddings(model=model, **settings), DashScopeEmbedding(model, **settings)
    if store == "qdrant":
        return [_langchain_in_qdrant(embeddings[0]), _llama_index_in_qdrant(embeddings[1])]
    return [_with_sparse(_langchain_in_memory(embeddings[0])), _with_sparse(_llama_index(embeddings[1]))]


def _with_sparse(index: PassageIndex) -> PassageIndex:
    """Adds what the frameworks' own stores lack: sparse vectors, as our retrievers keep and search them."""
    if not index.has_sparse:
        return index
    from dashscope_embeddings._adapters.sparse_retriever import SparseCollection  # noqa: PLC0415 - needs numpy

    collection: SparseCollection[int] = SparseCollection(SparseAdapter(index.embeddings))
    add_dense = index.add

    def add(first: int, texts: list[str]) -> None:
        add_dense(first, texts)
        run(collection.add(range(first, first + len(texts)), texts))

    index.add = add
    search = collection.search
    index.searches = {**index.searches, SPARSE: lambda question: run(search(question, _RANKING_DEPTH))}
    return index


# --- LangChain ---------------------------------------------------------------------------------------------


def _langchain(embeddings: Any, stores: Mapping[str, Any]) -> PassageIndex:
    """An index over stores that share their vectors, one for each way to search; the last one fills them."""

    def add(first: int, texts: list[str]) -> None:
        metadata = [{"index": index} for index, _ in enumerate(texts, start=first)]
        [*stores.values()][-1].add_texts(texts, metadata, batch_size=len(texts))

    def search(store: Any, question: str) -> Ranking:
        hits = store.similarity_search_with_score(question, k=_RANKING_DEPTH)
        return [(document.metadata["index"], score) for document, score in hits]

    searches = {how: functools.partial(search, store) for how, store in stores.items()}
    return PassageIndex("LangChain", embeddings, add, searches)


def _langchain_in_memory(embeddings: Any) -> PassageIndex:
    from langchain_core.vectorstores import InMemoryVectorStore  # noqa: PLC0415 - as above

    return _langchain(embeddings, {DENSE: InMemoryVectorStore(embeddings)})


def _langchain_in_qdrant(embeddings: Any) -> PassageIndex:
    from langchain_qdrant import QdrantVectorStore, RetrievalMode  # noqa: PLC0415 - as above
    from qdrant_client import QdrantClient, models  # noqa: PLC0415 - same

    from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings  # noqa: PLC0415 - same

    # Create the collection with its size and skip the validation: otherwise each store embeds a text to measure it.
    model = embeddings.client.settings.model
    size = embeddings.dimensions or model.default_dimension or len(embeddings.embed_query(_COLLECTION))
    dense = models.VectorParams(size=size, distance=models.Distance.COSINE)
    sparse = {QdrantVectorStore.SPARSE_VECTOR_NAME: models.SparseVectorParams()} if model.sparse else None
    client = QdrantClient(":memory:")
    client.create_collection(_COLLECTION, {QdrantVectorStore.VECTOR_NAME: dense}, sparse)
    paired = DashScopeSparseEmbeddings(embeddings) if model.sparse else None
    skip: dict[str, Any] = {"validate_embeddings": False, "validate_collection_config": False}
    names = (DENSE, SPARSE, f"{FUSED}, by Qdrant") if model.sparse else (DENSE,)
    stores = {
        name: QdrantVectorStore(client, _COLLECTION, embeddings, mode, sparse_embedding=paired, **skip)
        for name, mode in zip(names, RetrievalMode, strict=False)
    }
    index = _langchain(embeddings, stores)
    index.close = client.close
    return index


# --- LlamaIndex --------------------------------------------------------------------------------------------


def _llama_index(embeddings: Any, store: Any = None, modes: Mapping[str, str] | None = None) -> PassageIndex:
    """An index over a store, by default LlamaIndex's own in memory; `modes`: how it ranks → its query mode."""
    from llama_index.core import StorageContext, VectorStoreIndex  # noqa: PLC0415 - as above
    from llama_index.core.schema import TextNode  # noqa: PLC0415 - same

    index = VectorStoreIndex(
        [], storage_context=StorageContext.from_defaults(vector_store=store), embed_model=embeddings
    )

    def add(first: int, texts: list[str]) -> None:
        nodes = [TextNode(id_=str(uuid.UUID(int=number)), text=text) for number, text in enumerate(texts, start=first)]
        index.insert_nodes(nodes)

    def search(mode: str, question: str) -> Ranking:
        depths = {"similarity_top_k": _RANKING_DEPTH, "sparse_top_k": _RANKING_DEPTH}
        hits = index.as_retriever(vector_store_query_mode=mode, **depths).retrieve(question)
        return [(uuid.UUID(hit.node_id).int, hit.score or 0.0) for hit in hits]

    searches = {how: functools.partial(search, mode) for how, mode in (modes or {DENSE: "default"}).items()}
    return PassageIndex("LlamaIndex", embeddings, add, searches)


def _llama_index_in_qdrant(embeddings: Any) -> PassageIndex:
    from llama_index.vector_stores.qdrant import QdrantVectorStore  # noqa: PLC0415 - as above
    from qdrant_client import QdrantClient  # noqa: PLC0415 - same

    from dashscope_embeddings.llama_index import DashScopeSparseEmbedding  # noqa: PLC0415 - same

    client = QdrantClient(":memory:")
    hybrid: dict[str, Any] = {}
    modes = {DENSE: "default"}
    if embeddings.client.settings.model.sparse:
        sparse = DashScopeSparseEmbedding(embeddings)
        encode = {"sparse_doc_fn": sparse.encode_documents, "sparse_query_fn": sparse.encode_queries}
        hybrid = {"enable_hybrid": True, **encode}
        modes |= {SPARSE: "sparse", "fused · min-max scores, averaged": "hybrid"}
    # index_doc_id=False: local mode has no payload indexes and would warn.
    store = QdrantVectorStore(_COLLECTION, client=client, index_doc_id=False, **hybrid)
    index = _llama_index(embeddings, store, modes)
    index.close = client.close
    return index


# --- fusion ------------------------------------------------------------------------------------------------


def fuse(*rankings: Ranking) -> Ranking:
    """Reciprocal rank fusion: a hit's score is the sum of 1 / (60 + its rank) over the rankings that contain it."""
    scores: defaultdict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, (index, _) in enumerate(ranking, start=1):
            scores[index] += 1 / (_RRF_K + rank)
    return heapq.nsmallest(_RANKING_DEPTH, scores.items(), key=lambda hit: (-hit[1], hit[0]))
