"""Sparse vectors for LlamaIndex's `MilvusVectorStore`, and a store that requests them in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

try:
    from llama_index.vector_stores.milvus import MilvusVectorStore
    from llama_index.vector_stores.milvus.utils import BaseSparseEmbeddingFunction
except ImportError as missing:
    raise ImportError(
        "LlamaIndex's Milvus store is not installed: "
        'pip install "dashscope-embeddings[llama-index,llama-index-milvus]"'
    ) from missing

from dashscope_embeddings._adapters.flows import arun, run
from dashscope_embeddings._adapters.sparse import SparseAdapter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index.core.schema import BaseNode, TextNode


class DashScopeSparseFunction(SparseAdapter, BaseSparseEmbeddingFunction):
    """Sparse vectors, from requests of their own or from those of a dense adapter.

    The store passes one node's text at a time, without the metadata that the dense text may contain. Use
    `BatchedMilvusVectorStore` to request the vectors of these texts in batches.

    Args:
        dense: the `DashScopeEmbedding` to share requests with.
        memo_size: sparse vectors that may wait for the store to fetch them, about 2 KiB each.
        **settings: arguments of `EmbeddingClient`, if `dense` is None.

    Raises:
        InvalidInput: the model or protocol has no sparse vectors, or settings were passed along with `dense`.
    """

    def encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        """Index → weight, one dict for each text; never empty, because Milvus rejects an empty row."""
        return [row.as_milvus() for row in run(self._documents(documents))]

    def encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        """`encode_documents` for texts to search with."""
        return [row.as_milvus(query=True) for row in run(self._queries(queries))]

    async def async_encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        """`encode_documents` on the running event loop."""
        return [row.as_milvus() for row in await arun(self._documents(documents))]

    async def async_encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        """`encode_queries` on the running event loop."""
        return [row.as_milvus(query=True) for row in await arun(self._queries(queries))]

    def prefetch(self, documents: Sequence[str]) -> None:
        """Requests the vectors that `encode_documents` will return one by one, in as few requests as possible.

        Vectors that are cached already are not requested. Does nothing without `dense`: there is no cache then.
        """
        run(self.hybrid.prefetch_flow(documents, self.document_role))

    async def aprefetch(self, documents: Sequence[str]) -> None:
        """`prefetch` on the running event loop."""
        await arun(self.hybrid.prefetch_flow(documents, self.document_role))


class BatchedMilvusVectorStore(MilvusVectorStore):
    """LlamaIndex's Milvus store, which requests the sparse vectors of its nodes in batches instead of one by one.

    Takes the same arguments; `sparse_embedding_function` should be a `DashScopeSparseFunction(dense)`.
    """

    def add(self, nodes: list[BaseNode], **add_kwargs: Any) -> list[str]:
        """Embeds the nodes' texts in as few requests as possible, then adds the nodes."""
        if isinstance(self.sparse_embedding_function, DashScopeSparseFunction):
            self.sparse_embedding_function.prefetch(_node_texts(nodes))
        return super().add(nodes, **add_kwargs)

    async def async_add(self, nodes: list[BaseNode], **add_kwargs: Any) -> list[str]:
        """`add` on the running event loop."""
        if isinstance(self.sparse_embedding_function, DashScopeSparseFunction):
            await self.sparse_embedding_function.aprefetch(_node_texts(nodes))
        return await super().async_add(nodes, **add_kwargs)


def _node_texts(nodes: list[BaseNode]) -> list[str]:
    """The texts that the store itself embeds: without metadata."""
    return [cast("TextNode", node).text for node in nodes]
