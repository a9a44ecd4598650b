"""Alibaba Cloud Model Studio (DashScope) text embeddings for LangChain, LlamaIndex and notebooks."""

import typing

from dashscope_embeddings.catalogue import Price
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.errors import (
    AuthenticationError,
    BadReply,
    BadRequestError,
    ConnectionFailed,
    DashScopeError,
    InvalidInput,
    QuotaError,
    RateLimitError,
    ServerError,
    ServiceError,
)
from dashscope_embeddings.quota import Quota, QuotaLimit
from dashscope_embeddings.usage import RequestRecord, TrackedUsage, track_usage
from dashscope_embeddings.vectors import Cost, Embedding, Embeddings, EstimatedUsage, SparseVector, TokenCounts, Usage

__all__ = [
    "AuthenticationError",
    "BadReply",
    "BadRequestError",
    "ConnectionFailed",
    "Cost",
    "DashScopeError",
    "Embedding",
    "EmbeddingClient",
    "Embeddings",
    "EstimatedUsage",
    "InvalidInput",
    "Price",
    "Quota",
    "QuotaError",
    "QuotaLimit",
    "RateLimitError",
    "RequestRecord",
    "ServerError",
    "ServiceError",
    "SparseVector",
    "TokenCounts",
    "TrackedUsage",
    "Usage",
    "track_usage",
]

__version__: str

if not typing.TYPE_CHECKING:  # type checkers would take any name for one of this module

    def __getattr__(name: str) -> str:
        """The installed version, which takes a look at the disk to find."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version  # noqa: PLC0415 - as above

        return version("dashscope-embeddings")
