"""LlamaIndex's `BaseEmbedding` and `BaseSparseEmbedding` over DashScope."""

try:
    import llama_index.core  # noqa: F401 - only to name the missing package
except ImportError as missing:
    raise ImportError('LlamaIndex is not installed: pip install "dashscope-embeddings[llama-index]"') from missing

from dashscope_embeddings.llama_index.dense import DashScopeEmbedding
from dashscope_embeddings.llama_index.names import DashScopeTextEmbeddingModels, DashScopeTextEmbeddingType
from dashscope_embeddings.llama_index.nodes import DropBlankNodes
from dashscope_embeddings.llama_index.retriever import DashScopeSparseRetriever
from dashscope_embeddings.llama_index.sparse import DashScopeSparseEmbedding
from dashscope_embeddings.llama_index.usage_event import DashScopeUsageEvent

__all__ = [
    "DashScopeEmbedding",
    "DashScopeSparseEmbedding",
    "DashScopeSparseRetriever",
    "DashScopeTextEmbeddingModels",
    "DashScopeTextEmbeddingType",
    "DashScopeUsageEvent",
    "DropBlankNodes",
]
