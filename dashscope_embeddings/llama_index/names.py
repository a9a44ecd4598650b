"""Enums of models and roles under the names of LlamaIndex's older integration, for drop-in replacement."""

from __future__ import annotations

from enum import Enum


class DashScopeTextEmbeddingType(str, Enum):
    """Roles, under the names of LlamaIndex's older integration."""

    TEXT_TYPE_QUERY = "query"
    TEXT_TYPE_DOCUMENT = "document"


class DashScopeTextEmbeddingModels(str, Enum):
    """Models, under the names of LlamaIndex's older integration."""

    TEXT_EMBEDDING_V1 = "text-embedding-v1"
    TEXT_EMBEDDING_V2 = "text-embedding-v2"
    TEXT_EMBEDDING_V3 = "text-embedding-v3"
    TEXT_EMBEDDING_V4 = "text-embedding-v4"
