"""LlamaIndex's `BaseSparseEmbedding` over DashScope."""

from __future__ import annotations

from typing import Any, cast

from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from pydantic import ConfigDict, Field, PrivateAttr
from typing_extensions import Unpack

from dashscope_embeddings._adapters.base import ClientFields, as_single_text, as_text_list
from dashscope_embeddings._adapters.flows import Flow, arun, run
from dashscope_embeddings._adapters.sparse import SparseAdapter, with_hidden_keys
from dashscope_embeddings._core.client_options import SparseOptions
from dashscope_embeddings.llama_index.usage_event import emit_usage
from dashscope_embeddings.vectors import SparseVector, TextType, Usage

MAX_TEXTS_PER_CALL = 2048
"""The largest `embed_batch_size` that LlamaIndex allows, so that the client plans the requests."""


class DashScopeSparseEmbedding(BaseSparseEmbedding):
    """Sparse vectors for LlamaIndex's stores, from requests of their own or from those of a dense adapter.

    ```python
    sparse = DashScopeSparseEmbedding(dense=embed_model)
    QdrantVectorStore(..., enable_hybrid=True,
                      sparse_doc_fn=sparse.encode_documents, sparse_query_fn=sparse.encode_queries)
    ```

    Args:
        dense: the `DashScopeEmbedding` to share requests with: each text is then sent, and billed, once.
        embed_batch_size: texts that LlamaIndex passes at once; the default is best.
        num_workers: a setting of LlamaIndex, for async only.
        memo_size: sparse vectors that may wait for the store to fetch them, about 2 KiB each.
        **settings: arguments of `EmbeddingClient`, if `dense` is None.

    Raises:
        InvalidInput: the model or protocol has no sparse vectors, or settings were passed along with `dense`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=("pydantic_model_",), hide_input_in_errors=True)

    embed_batch_size: int = Field(default=MAX_TEXTS_PER_CALL, gt=0, le=MAX_TEXTS_PER_CALL)
    _adapter: SparseAdapter = PrivateAttr()

    def __init__(
        self,
        dense: ClientFields | None = None,
        *,
        embed_batch_size: int = MAX_TEXTS_PER_CALL,
        num_workers: int | None = None,
        memo_size: int | None = None,
        **options: Unpack[SparseOptions],
    ) -> None:
        cast("dict[str, Any]", options)["dense"] = dense
        del dense  # a string may be a key
        sparse = SparseAdapter(memo_size=memo_size, **with_hidden_keys(options, SparseOptions))
        super().__init__(
            model_name=sparse.hybrid.client.settings.model.name,
            embed_batch_size=embed_batch_size,
            num_workers=num_workers,
        )
        self._adapter = sparse

    def __hash__(self) -> int:
        return hash((type(self), self._adapter))

    @classmethod
    def class_name(cls) -> str:
        """The name of this class in LlamaIndex's serialisation."""
        return "DashScopeSparseEmbedding"

    @property
    def usage(self) -> Usage:
        """What was billed so far; with `dense`, to both adapters together."""
        return self._adapter.usage

    def encode_documents(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """Indices and values, one list for each text: the `sparse_doc_fn` of Qdrant's store."""
        return _indices_and_values(run(self._documents(texts)))

    def encode_queries(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """`encode_documents` for texts to search with: the `sparse_query_fn` of Qdrant's store."""
        return _indices_and_values(run(self._sparse(as_text_list(texts), "query")))

    def _sparse(self, texts: list[str], role: TextType) -> Flow[list[SparseVector]]:
        with emit_usage(self._adapter.hybrid, role) as hybrid:
            return (yield from hybrid.component_flow("sparse", texts, role))

    def _documents(self, texts: list[str]) -> Flow[list[SparseVector]]:
        return self._sparse(as_text_list(texts), self._adapter.document_role)

    def _get_query_embedding(self, query: str) -> dict[int, float]:
        return run(self._sparse([as_single_text(query)], "query"))[0].as_dict()

    async def _aget_query_embedding(self, query: str) -> dict[int, float]:
        return (await arun(self._sparse([as_single_text(query)], "query")))[0].as_dict()

    def _get_text_embedding(self, text: str) -> dict[int, float]:
        return self._get_text_embeddings([as_single_text(text)])[0]

    async def _aget_text_embedding(self, text: str) -> dict[int, float]:
        return (await self._aget_text_embeddings([as_single_text(text)]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[dict[int, float]]:
        return [row.as_dict() for row in run(self._documents(texts))]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[dict[int, float]]:
        return [row.as_dict() for row in await arun(self._documents(texts))]


def _indices_and_values(rows: list[SparseVector]) -> tuple[list[list[int]], list[list[float]]]:
    return [row.indices for row in rows], [row.values for row in rows]
