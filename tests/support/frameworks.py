"""The adapters of both frameworks under one set of names, so that one test holds for both, sync and async."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import KEY

from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings
from dashscope_embeddings.llama_index import DashScopeEmbedding, DashScopeSparseEmbedding

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import ClassVar

    from dashscope_embeddings.emulator.http import Server


class Framework:
    """How one framework calls its embeddings, with sync or with async methods."""

    dense: ClassVar[Any]
    sparse: ClassVar[Any]
    model: ClassVar[str]
    methods: ClassVar[tuple[str, str]]
    """For documents and for a query; with a letter before them, the async ones."""

    def __init__(self, *, is_async: bool = False) -> None:
        self.is_async = is_async

    def __repr__(self) -> str:
        return f"{type(self).__name__}-{'async' if self.is_async else 'sync'}"

    def made(self, served: Server, **settings: Any) -> Any:
        return self.dense(**{"api_key": KEY, "base_url": served.url, **settings})

    def documents(self, dense: Any, texts: Any) -> list[list[float]]:
        found: list[list[float]] = self._call(dense, self.methods[0], texts)
        return found

    def query(self, dense: Any, text: Any = "a") -> list[float]:
        found: list[float] = self._call(dense, self.methods[1], text)
        return found

    def adocuments(self, dense: Any, texts: Any) -> Coroutine[Any, Any, list[list[float]]]:
        coroutine: Coroutine[Any, Any, list[list[float]]] = getattr(dense, f"a{self.methods[0]}")(texts)
        return coroutine

    def aquery(self, dense: Any, text: Any = "a") -> Coroutine[Any, Any, list[float]]:
        coroutine: Coroutine[Any, Any, list[float]] = getattr(dense, f"a{self.methods[1]}")(text)
        return coroutine

    def _call(self, dense: Any, method: str, argument: Any) -> Any:
        return (
            asyncio.run(getattr(dense, f"a{method}")(argument)) if self.is_async else getattr(dense, method)(argument)
        )


class LangChain(Framework):
    dense, sparse, model = DashScopeEmbeddings, DashScopeSparseEmbeddings, "model"
    methods = ("embed_documents", "embed_query")


class LlamaIndex(Framework):
    dense, sparse, model = DashScopeEmbedding, DashScopeSparseEmbedding, "model_name"
    methods = ("get_text_embedding_batch", "get_query_embedding")


each_framework = pytest.mark.parametrize("of", [LangChain(), LlamaIndex()], ids=["langchain", "llama_index"])
every_call = pytest.mark.parametrize(
    "of", [LangChain(), LangChain(is_async=True), LlamaIndex(), LlamaIndex(is_async=True)], ids=repr
)
