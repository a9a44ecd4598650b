"""Sparse vectors for langchain_qdrant's `QdrantVectorStore`."""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    from langchain_qdrant import SparseEmbeddings, SparseVector
except ImportError as missing:
    raise ImportError(
        'langchain-qdrant is not installed: pip install "dashscope-embeddings[langchain,qdrant]"'
    ) from missing

from dashscope_embeddings._adapters.flows import arun, run
from dashscope_embeddings._adapters.sparse import SparseAdapter

if TYPE_CHECKING:
    from dashscope_embeddings import vectors


class DashScopeSparseEmbeddings(SparseAdapter, SparseEmbeddings):
    """Sparse vectors, from requests of their own or from those of a dense adapter.

    ```python
    QdrantVectorStore.from_texts(
        texts, dense, sparse_embedding=DashScopeSparseEmbeddings(dense), retrieval_mode=RetrievalMode.HYBRID,
        location=":memory:", batch_size=100,
    )
    ```

    Args:
        dense: the `DashScopeEmbeddings` to share requests with: each text is then sent, and billed, once.
        memo_size: sparse vectors that may wait for the store to fetch them, about 2 KiB each.
        **settings: arguments of `EmbeddingClient`, if `dense` is None.

    Raises:
        InvalidInput: the model or protocol has no sparse vectors, or settings were passed along with `dense`.
    """

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """One vector for each text: indices ascending and unique, values float32."""
        return [_as_qdrant(row) for row in run(self._documents(texts))]

    def embed_query(self, text: str) -> SparseVector:
        """The vector of a text to search with."""
        return _as_qdrant(run(self._query(text)))

    async def aembed_documents(self, texts: list[str]) -> list[SparseVector]:
        """`embed_documents` on the running event loop."""
        return [_as_qdrant(row) for row in await arun(self._documents(texts))]

    async def aembed_query(self, text: str) -> SparseVector:
        """`embed_query` on the running event loop."""
        return _as_qdrant(await arun(self._query(text)))


def _as_qdrant(row: vectors.SparseVector) -> SparseVector:
    return SparseVector(indices=row.indices, values=row.values)
