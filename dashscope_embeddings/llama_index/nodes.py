"""A step of LlamaIndex's pipelines that drops nodes without text, which cannot be embedded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode, TransformComponent

from dashscope_embeddings.errors import DashScopeError

_log = logging.getLogger("dashscope_embeddings")

BLANK_NODES_HINT = (
    "In an IngestionPipeline, put DropBlankNodes() of dashscope_embeddings.llama_index before the embedding: it "
    "leaves out nodes without text"
)


def add_node_ids(error: DashScopeError, nodes: Sequence[BaseNode]) -> None:
    """Names the nodes whose texts were refused, because a worker of a pipeline counts within its share of the nodes."""
    if ids := [nodes[index].node_id for index in error.reasons]:
        more = f" and {len(ids) - _MAX_IDS} more" if len(ids) > _MAX_IDS else ""
        error.add_hint(f"Node ids: {', '.join(ids[:_MAX_IDS])}{more}")


_MAX_IDS = 5


class DropBlankNodes(TransformComponent):
    """Drops nodes with nothing to embed: neither text nor metadata that is embedded with it.

    `VectorStoreIndex` drops them itself. An `IngestionPipeline` does not, and stops with an error.

    ```python
    IngestionPipeline(transformations=[SentenceSplitter(), DropBlankNodes(), DashScopeEmbedding()])
    ```
    """

    def __call__(self, nodes: Sequence[BaseNode], **_: Any) -> list[BaseNode]:
        """The nodes whose text for embedding is not blank; logs the number of dropped nodes."""
        kept = [node for node in nodes if node.get_content(MetadataMode.EMBED).strip()]
        if len(kept) < len(nodes):
            _log.info("DropBlankNodes left out %d of %d nodes: they have no text", len(nodes) - len(kept), len(nodes))
        return kept

    @classmethod
    def class_name(cls) -> str:
        """The name of this class in LlamaIndex's serialised pipelines."""
        return "DropBlankNodes"
