"""LlamaIndex's `BaseSparseEmbedding` over DashScope."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from pydantic import ConfigDict, Field, PrivateAttr

from dashscope_embeddings._adapters.base import ClientFields, listed, single
from dashscope_embeddings._adapters.sparse import Sparse, Standalone
from dashscope_embeddings._core.secret_settings import hide
from dashscope_embeddings.llama_index.usage_event import billed
from dashscope_embeddings.vectors import SparseVector, TextType, Usage

MOST_PER_CALL = 2048
"""The largest `embed_batch_size` that LlamaIndex allows: cutting is left to our own planner."""


class DashScopeSparseEmbedding(BaseSparseEmbedding):
    """Sparse vectors for LlamaIndex's stores, alone or from the same requests as a dense adapter's.

    ```python
    sparse = DashScopeSparseEmbedding(dense=embed_model)
    QdrantVectorStore(..., enable_hybrid=True,
                      sparse_doc_fn=sparse.encode_documents, sparse_query_fn=sparse.encode_queries)
    ```

    Args:
        dense: the `DashScopeEmbedding` to share requests with: each text is then sent, and billed, once.
        embed_batch_size: texts that LlamaIndex hands over at once; best left alone.
        num_workers: LlamaIndex's own, async only.
        memo_size: texts whose sparse vectors wait for the store, about 2 KiB each.
        **settings: of `EmbeddingClient`, without `dense`.

    Raises:
        InvalidInput: a model or protocol without sparse vectors, or settings beside `dense`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=("pydantic_model_",), hide_input_in_errors=True)

    embed_batch_size: int = Field(default=MOST_PER_CALL, gt=0, le=MOST_PER_CALL)
    _sparse: Sparse = PrivateAttr()

    def __init__(
        self,
        dense: ClientFields | None = None,
        *,
        embed_batch_size: int = MOST_PER_CALL,
        num_workers: int | None = None,
        **settings: Any,
    ) -> None:
        settings["dense"] = dense
        del dense  # a string may be a key
        hide(settings, Standalone._names())  # noqa: SLF001 - of this package
        sparse = Sparse(**settings)
        super().__init__(
            model_name=sparse.halves.client.settings.model.name,
            embed_batch_size=embed_batch_size,
            num_workers=num_workers,
        )
        self._sparse = sparse

    def __hash__(self) -> int:
        return hash((type(self), self._sparse))

    @classmethod
    def class_name(cls) -> str:
        """Its id in LlamaIndex's serialisation."""
        return "DashScopeSparseEmbedding"

    @property
    def usage(self) -> Usage:
        """What was billed so far; of a linked pair, to both together."""
        return self._sparse.usage

    def encode_documents(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """What Qdrant's store takes as `sparse_doc_fn`: indices and values, one list for each text."""
        return _columns(self._rows(listed(texts), self._sparse.document_role))

    def encode_queries(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """What Qdrant's store takes as `sparse_query_fn`."""
        return _columns(self._rows(listed(texts), "query"))

    def _rows(self, texts: list[str], role: TextType) -> list[SparseVector]:
        with billed(self._sparse.halves, role) as halves:
            return halves.sparse(texts, role)

    async def _arows(self, texts: list[str], role: TextType) -> list[SparseVector]:
        with billed(self._sparse.halves, role) as halves:
            return await halves.asparse(texts, role)

    def _get_query_embedding(self, query: str) -> dict[int, float]:
        return self._rows([single(query)], "query")[0].as_dict()

    async def _aget_query_embedding(self, query: str) -> dict[int, float]:
        return (await self._arows([single(query)], "query"))[0].as_dict()

    def _get_text_embedding(self, text: str) -> dict[int, float]:
        return self._get_text_embeddings([single(text)])[0]

    async def _aget_text_embedding(self, text: str) -> dict[int, float]:
        return (await self._aget_text_embeddings([single(text)]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[dict[int, float]]:
        return [row.as_dict() for row in self._rows(listed(texts), self._sparse.document_role)]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[dict[int, float]]:
        return [row.as_dict() for row in await self._arows(listed(texts), self._sparse.document_role)]


def _columns(rows: list[SparseVector]) -> tuple[list[list[int]], list[list[float]]]:
    return [row.indices for row in rows], [row.values for row in rows]
