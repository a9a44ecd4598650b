"""Sparse vectors for langchain_milvus's `Milvus`."""

from __future__ import annotations

try:
    from langchain_milvus.utils.sparse import BaseSparseEmbedding
except ImportError as missing:
    raise ImportError(
        'langchain-milvus is not installed: pip install "dashscope-embeddings[langchain,milvus]"'
    ) from missing

from dashscope_embeddings._adapters.flows import arun, run
from dashscope_embeddings._adapters.sparse import SparseAdapter


class DashScopeSparseEmbeddings(SparseAdapter, BaseSparseEmbedding):
    """Sparse vectors, from requests of their own or from those of a dense adapter.

    ```python
    Milvus.from_texts(texts, [dense, DashScopeSparseEmbeddings(dense)], vector_field=["dense", "sparse"], ...)
    ```

    A text without any weight gets a placeholder that no search finds, because Milvus rejects an empty row.

    Args:
        dense: the `DashScopeEmbeddings` to share requests with: each text is then sent, and billed, once.
        memo_size: sparse vectors that may wait for the store to fetch them, about 2 KiB each.
        **settings: arguments of `EmbeddingClient`, if `dense` is None.

    Raises:
        InvalidInput: the model or protocol has no sparse vectors, or settings were passed along with `dense`.
    """

    def embed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """Index → weight, one dict for each text."""
        return [row.as_milvus() for row in run(self._documents(texts))]

    def embed_query(self, query: str) -> dict[int, float]:
        """The sparse vector of a search query, as index → weight."""
        return run(self._query(query)).as_milvus(query=True)

    async def aembed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """`embed_documents` on the running event loop."""
        return [row.as_milvus() for row in await arun(self._documents(texts))]

    async def aembed_query(self, query: str) -> dict[int, float]:
        """`embed_query` on the running event loop."""
        return (await arun(self._query(query))).as_milvus(query=True)
