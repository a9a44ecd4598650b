"""Reports what calls were billed, as an event of LlamaIndex's instrumentation."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import llama_index.core.instrumentation as instrument
from llama_index.core.instrumentation.events.embedding import EmbeddingStartEvent
from pydantic import ConfigDict

from dashscope_embeddings.usage import track_usage
from dashscope_embeddings.vectors import TextType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dashscope_embeddings._adapters.hybrid import HybridEmbedder


class DashScopeUsageEvent(EmbeddingStartEvent):
    """What one call of an embedding of this package was billed, for handlers of LlamaIndex's instrumentation.

    Emitted once per billed call, also if the call failed after a billed request. It derives from `EmbeddingStartEvent`,
    as core's `SparseEmbeddingStartEvent` does, because tracing integrations that dispatch by class (OpenInference) log
    a warning for every event of an unknown class. A handler that counts calls must skip it.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    model_dict: dict[str, Any]
    """Only `model_name`."""
    model_name: str
    text_type: TextType
    """Role of the texts."""
    requests: int
    texts: int
    tokens: int
    cost: Decimal | None
    """Price of the tokens; None if unknown."""
    currency: str | None

    @classmethod
    def class_name(cls) -> str:
        """The name of this class in LlamaIndex's event handlers."""
        return "DashScopeUsageEvent"


_dispatcher = instrument.get_dispatcher(__name__)  # type: ignore[attr-defined] # core has it by re-export


@contextlib.contextmanager
def emit_usage(hybrid: HybridEmbedder, role: TextType) -> Iterator[HybridEmbedder]:
    """Emits a `DashScopeUsageEvent` for the calls inside the block."""
    model = hybrid.client.settings.model.name
    with track_usage() as spent:
        try:
            yield hybrid
        finally:
            if spent.requests:
                event = DashScopeUsageEvent(
                    model_dict={"model_name": model},
                    model_name=model,
                    text_type=role,
                    requests=spent.requests,
                    texts=spent.texts,
                    tokens=spent.tokens,
                    cost=spent.cost and spent.cost.amount,
                    currency=spent.cost and spent.cost.currency,
                )
                _dispatcher.event(event)
