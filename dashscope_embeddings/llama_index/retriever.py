"""LlamaIndex's `BaseRetriever` over sparse vectors in memory, for hybrid search together with any index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc
from llama_index.core.vector_stores.types import MetadataFilters  # noqa: TC002 - read at run time, as all annotations of public names
from typing_extensions import Self, Unpack

try:
    from llama_index.core.vector_stores.utils import build_metadata_filter_fn
except ImportError:  # core 0.13 has it elsewhere
    from llama_index.core.vector_stores.simple import (  # type: ignore[attr-defined, no-redef]
        _build_metadata_filter_fn as build_metadata_filter_fn,
    )

from dashscope_embeddings._adapters.base import ClientFields
from dashscope_embeddings._adapters.flows import Flow, arun, run
from dashscope_embeddings._adapters.sparse import SparseAdapter, with_hidden_keys
from dashscope_embeddings._adapters.sparse_retriever import SparseCollection, check_k, check_types
from dashscope_embeddings._core.client_options import SparseOptions
from dashscope_embeddings.llama_index.nodes import DropBlankNodes
from dashscope_embeddings.llama_index.usage_event import emit_usage
from dashscope_embeddings.vectors import Usage


class _Options(SparseOptions, total=False):
    similarity_top_k: int
    filters: MetadataFilters | None
    memo_size: int | None
    callback_manager: Any
    objects: Any
    object_map: Any
    verbose: bool


class _FactoryOptions(_Options, total=False):
    dense: ClientFields | None


class DashScopeSparseRetriever(BaseRetriever):
    """Finds nodes by their sparse vectors, which it keeps in memory: for hybrid search together with any index.

    ```python
    sparse = DashScopeSparseRetriever.from_nodes(nodes, dense=embed_model)
    index = VectorStoreIndex(nodes, embed_model=embed_model)
    QueryFusionRetriever([sparse, index.as_retriever()], num_queries=1, mode="reciprocal_rerank")
    ```

    Args:
        dense: the `DashScopeEmbedding` of the index, to share requests with: each node and each query is then sent,
            and billed, once for both vectors, whether the index or the retriever gets the nodes first.
        similarity_top_k: nodes to find at most.
        filters: LlamaIndex's conditions on the nodes' metadata.
        memo_size: vectors that may wait to be fetched by the index (about 8 KiB each) or by the retriever (2 KiB).
        **settings: arguments of `EmbeddingClient`, if `dense` is None; and `callback_manager`, `objects`,
            `object_map`, `verbose` of LlamaIndex.

    Raises:
        InvalidInput: the model or protocol has no sparse vectors, or settings were passed along with `dense`.
    """

    def __init__(self, dense: ClientFields | None = None, **options: Unpack[_Options]) -> None:
        cast("dict[str, Any]", options)["dense"] = dense
        del dense  # a string may be a key
        settings = with_hidden_keys(options, _Options)
        self.similarity_top_k = check_k(settings.pop("similarity_top_k", DEFAULT_SIMILARITY_TOP_K), "similarity_top_k")
        self.filters: MetadataFilters | None = settings.pop("filters", None)
        base = {name: settings.pop(name) for name in _BASE_NAMES if name in settings}
        self._collection: SparseCollection[BaseNode] = SparseCollection(SparseAdapter(**settings))
        super().__init__(**base)

    @classmethod
    def from_nodes(cls, nodes: Sequence[BaseNode], **options: Unpack[_FactoryOptions]) -> Self:
        """A retriever of these nodes.

        Raises:
            DashScopeError: with `partial` (index → vector) and `failed` (indices), among the nodes that have a text.
        """
        retriever = cls(**with_hidden_keys(options, _Options))
        retriever.add_nodes(nodes)
        return retriever

    @classmethod
    async def afrom_nodes(cls, nodes: Sequence[BaseNode], **options: Unpack[_FactoryOptions]) -> Self:
        """`from_nodes` on the running event loop."""
        retriever = cls(**with_hidden_keys(options, _Options))
        await retriever.aadd_nodes(nodes)
        return retriever

    def add_nodes(self, nodes: Sequence[BaseNode]) -> None:
        """Adds nodes after the present ones: all that have a text or, after an error, none.

        Raises:
            DashScopeError: as for `from_nodes`.
        """
        run(self._add(nodes))

    async def aadd_nodes(self, nodes: Sequence[BaseNode]) -> None:
        """`add_nodes` on the running event loop."""
        await arun(self._add(nodes))

    def persist(self, persist_dir: str | Path) -> None:
        """Writes nodes and vectors to a file in this folder, without pickle; only its owner may read it.

        Raises:
            InvalidInput: a node's metadata cannot be written as JSON, or the name is empty.
        """
        self._collection.save(persist_dir, doc_to_json)

    @classmethod
    def from_persist_dir(cls, persist_dir: str | Path, **options: Unpack[_FactoryOptions]) -> Self:
        """The retriever that `persist` wrote.

        Raises:
            InvalidInput: there is no file, it is damaged, or it was written with another model or other settings.
        """
        retriever = cls(**with_hidden_keys(options, _Options))
        retriever._collection.load(persist_dir, json_to_doc)
        return retriever

    @property
    def usage(self) -> Usage:
        """What was billed so far; with `dense`, to both adapters together."""
        return self._collection.adapter.usage

    def _add(self, nodes: Sequence[BaseNode]) -> Flow[None]:
        nodes = list(nodes)
        check_types(nodes, BaseNode, "node", "make a TextNode(text=…) of a string")
        nodes = DropBlankNodes()(nodes)
        with emit_usage(self._collection.adapter.hybrid, self._collection.adapter.document_role):
            yield from self._collection.add(nodes, [node.get_content(MetadataMode.EMBED) for node in nodes])

    def _find(self, query: QueryBundle) -> Flow[list[NodeWithScore]]:
        accepts = None
        if self.filters is not None:
            # It passes on what it is given: a node in the place of its id.
            lookup = cast("Callable[[str], dict[str, Any]]", lambda node: node.metadata)
            accepts = cast("Callable[[BaseNode], bool]", build_metadata_filter_fn(lookup, self.filters))
        with emit_usage(self._collection.adapter.hybrid, "query"):
            found = yield from self._collection.search(query.query_str, self.similarity_top_k, accepts)
        return [NodeWithScore(node=node, score=score) for node, score in found]

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return run(self._find(query_bundle))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await arun(self._find(query_bundle))


_BASE_NAMES = ("callback_manager", "objects", "object_map", "verbose")
