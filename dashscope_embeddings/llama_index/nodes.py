"""Nodes without text, which the service refuses: a step of LlamaIndex's pipelines that leaves them out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode, TransformComponent

_log = logging.getLogger("dashscope_embeddings")

BLANK_NODES_HINT = (
    "In an IngestionPipeline, put DropBlankNodes() of dashscope_embeddings.llama_index before the embedding: it "
    "leaves out nodes without text"
)


class DropBlankNodes(TransformComponent):
    """Leaves out nodes of which there is nothing to embed: no text, and no metadata that is embedded with it.

    `VectorStoreIndex` leaves them out by itself, an `IngestionPipeline` does not, and stops with an error.

    ```python
    IngestionPipeline(transformations=[SentenceSplitter(), DropBlankNodes(), DashScopeEmbedding()])
    ```
    """

    def __call__(self, nodes: Sequence[BaseNode], **_: Any) -> list[BaseNode]:
        """The nodes whose text, as the embedding gets it, is not blank; says in the log how many are not among them."""
        kept = [node for node in nodes if node.get_content(MetadataMode.EMBED).strip()]
        if len(kept) < len(nodes):
            _log.info("DropBlankNodes left out %d of %d nodes: they have no text", len(nodes) - len(kept), len(nodes))
        return kept

    @classmethod
    def class_name(cls) -> str:
        """Its id in LlamaIndex's serialised pipelines."""
        return "DropBlankNodes"
