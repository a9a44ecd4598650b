"""LlamaIndex's `BaseEmbedding` over DashScope."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
except ImportError as missing:
    raise ImportError('LlamaIndex is not installed: pip install "dashscope-embeddings[llama-index]"') from missing

from dashscope_embeddings.adapter import ClientFields, Sparse, Standalone, listed, single
from dashscope_embeddings.catalogue import DEFAULT_MODEL
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.halves import ENDS, renumbered
from dashscope_embeddings.llama_index_ahead import ahead, drawn
from dashscope_embeddings.llama_index_cache import PartedCache, namespace, saved
from dashscope_embeddings.llama_index_names import DashScopeTextEmbeddingModels, DashScopeTextEmbeddingType
from dashscope_embeddings.llama_index_usage import DashScopeUsageEvent, billed
from dashscope_embeddings.progress import bar
from dashscope_embeddings.secret_settings import hide
from dashscope_embeddings.vectors import TextType  # noqa: TC001 - pydantic reads it at run time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from dashscope_embeddings.vectors import SparseVector, Usage

__all__ = [
    "DashScopeEmbedding",
    "DashScopeSparseEmbedding",
    "DashScopeTextEmbeddingModels",
    "DashScopeTextEmbeddingType",
    "DashScopeUsageEvent",
]

_MOST_PER_CALL = 2048
"""The largest `embed_batch_size` that LlamaIndex allows: cutting is left to our own planner."""


class _AskedByUs:
    """A rate limiter that LlamaIndex asks once a call: in vain, for we ask the one inside for every request."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped

    def acquire(self, num_tokens: int = 0) -> None:
        """Says yes."""

    async def async_acquire(self, num_tokens: int = 0) -> None:
        """Says yes."""


class DashScopeEmbedding(ClientFields, BaseEmbedding):
    """Alibaba Cloud Model Studio (DashScope) text embeddings for LlamaIndex.

    Queries are sent with the query role, texts with the document role, each cut to the model's limits.

    ```python
    from llama_index.core import Settings
    from dashscope_embeddings.llama_index import DashScopeEmbedding

    Settings.embed_model = DashScopeEmbedding("text-embedding-v4")
    ```

    Args:
        model_name: such as "text-embedding-v4"; `model` is the same.
        text_type: the role of texts, "document"; "query" for symmetric tasks. Queries are always queries.
        api_key: else `DASHSCOPE_API_KEY`, or a key file.
        embed_batch_size: at most so many texts a request, as `batch_size`; best left alone.
        **kwargs: settings of `EmbeddingClient` and fields of `BaseEmbedding`; anything else is an error.
    """

    model_config = ConfigDict(
        extra="forbid",
        populate_by_name=True,
        protected_namespaces=("pydantic_model_",),
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
    )

    model_name: str = DEFAULT_MODEL
    text_type: TextType = "document"
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    embed_batch_size: int = Field(default=_MOST_PER_CALL, gt=0, le=_MOST_PER_CALL)
    embeddings_cache: Any = Field(default=None, exclude=True)
    batch_size: int | None = Field(
        default=None, exclude=True, validation_alias=AliasChoices("batch_size", "chunk_size")
    )

    def __init__(
        self,
        model_name: str | None = None,
        text_type: TextType = "document",
        api_key: str | SecretStr | None = None,
        embed_batch_size: int = _MOST_PER_CALL,
        **kwargs: Any,
    ) -> None:
        settings = {"model_name": model_name, "text_type": text_type, "api_key": api_key, **kwargs}
        del model_name, text_type, api_key, kwargs
        hide(settings, self._names() | {"model"})
        settings.pop("class_name", None)
        if (model := settings.pop("model", None)) is not None:
            if settings["model_name"] not in {None, model}:
                raise InvalidInput(f"model={model!r} and model_name={settings['model_name']!r}: which of the two?")
            settings["model_name"] = model
        if (limiter := settings.get("rate_limiter")) is not None and not isinstance(limiter, _AskedByUs):
            settings["rate_limiter"] = _AskedByUs(limiter)
        for name in ("model_name", "text_type"):
            settings[name] = getattr(settings[name], "value", settings[name])
        settings["model_name"] = settings["model_name"] or DEFAULT_MODEL
        super().__init__(embed_batch_size=embed_batch_size, **settings)

    @model_validator(mode="after")
    def _connect(self) -> Self:
        # Kept, so that a worker process without the variable still has it.
        self._keep("api_key", self.client)
        self._warn_of_roles()
        return self

    @classmethod
    def class_name(cls) -> str:
        """Its id in LlamaIndex's serialised pipelines."""
        return "DashScopeEmbedding"

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        limiter = settings["rate_limiter"]
        return settings | {
            "model": self.model_name,
            "api_key": self.api_key,
            # Core would cut so, and ask one slice after the other. The largest, which is the default, means nothing.
            "batch_size": self.batch_size or self.embed_batch_size % _MOST_PER_CALL or None,
            "max_concurrency": min(self.max_concurrency, self.num_workers or self.max_concurrency),
            "rate_limiter": limiter.wrapped if isinstance(limiter, _AskedByUs) else limiter,
        }

    @property
    def document_role(self) -> TextType:
        """The role of texts that are no queries."""
        return self.text_type

    @contextlib.contextmanager
    def _cached(self, role: TextType) -> Iterator[None]:
        """LlamaIndex's cache, for one role of these settings alone, however the cache came here."""
        if self.embeddings_cache is None:
            yield
            return
        if not isinstance(self.embeddings_cache, PartedCache):
            self.embeddings_cache = PartedCache(self.embeddings_cache)
        with namespace(self.client.settings.namespace(role)):
            yield

    def get_query_embedding(self, query: str) -> list[float]:
        """The vector of a text to search with: `dimensions` floats."""
        with self._cached("query"):
            return super().get_query_embedding(query)

    async def aget_query_embedding(self, query: str) -> list[float]:
        """`get_query_embedding` on the running event loop."""
        with self._cached("query"):
            return await super().aget_query_embedding(query)

    def get_text_embedding(self, text: str) -> list[float]:
        """The vector of a text to be searched: `dimensions` floats."""
        with self._cached(self.text_type):
            return super().get_text_embedding(text)

    async def aget_text_embedding(self, text: str) -> list[float]:
        """`get_text_embedding` on the running event loop."""
        with self._cached(self.text_type):
            return await super().aget_text_embedding(text)

    def get_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,  # noqa: FBT001, FBT002 - LlamaIndex's own signature
        **kwargs: Any,
    ) -> list[list[float]]:
        """Vectors of texts to be searched: shape (texts, dimensions), in the order of the texts."""
        with self._cached(self.text_type):
            if len(texts := listed(texts)) <= self.embed_batch_size and self.embeddings_cache is None:
                return super().get_text_embedding_batch(texts, show_progress, **kwargs)
            missing = self._not_cached(texts)
            try:
                with bar(len(missing), show=show_progress) as progress, billed(self.halves, self.text_type) as halves:
                    vectors = halves.dense([texts[i] for i in missing], self.text_type, progress)
            except ENDS as end:
                saved(renumbered(end, missing, len(texts)), self.embeddings_cache, texts)
                raise
            with ahead([texts[i] for i in missing], vectors, self.embeddings_cache):
                return super().get_text_embedding_batch(texts, **kwargs)

    async def aget_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,  # noqa: FBT001, FBT002 - LlamaIndex's own signature
        **kwargs: Any,
    ) -> list[list[float]]:
        """`get_text_embedding_batch` on the running event loop."""
        with self._cached(self.text_type):
            if len(texts := listed(texts)) <= self.embed_batch_size and self.embeddings_cache is None:
                return await super().aget_text_embedding_batch(texts, show_progress, **kwargs)
            missing = self._not_cached(texts)
            try:
                with bar(len(missing), show=show_progress) as progress, billed(self.halves, self.text_type) as halves:
                    vectors = await halves.adense([texts[i] for i in missing], self.text_type, progress)
            except ENDS as end:
                saved(renumbered(end, missing, len(texts)), self.embeddings_cache, texts)
                raise
            with ahead([texts[i] for i in missing], vectors, self.embeddings_cache):
                return await super().aget_text_embedding_batch(texts, **kwargs)

    def _not_cached(self, texts: list[str]) -> list[int]:
        """Positions of the texts that have to be asked for."""
        cache = self.embeddings_cache
        if cache is None:
            return list(range(len(texts)))
        return [i for i, text in enumerate(texts) if cache.get(key=text, collection="embeddings") is None]

    def to_payload(self) -> dict[str, Any]:
        """What events and callbacks may show: never the key."""
        return {
            "class_name": self.class_name(),
            "model_name": self.model_name,
            "embed_batch_size": self.embed_batch_size,
            "dimensions": self.dimensions,
        }

    def _get_query_embedding(self, query: str) -> list[float]:
        with billed(self.halves, "query") as halves:
            return halves.dense([single(query)], "query")[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        with billed(self.halves, "query") as halves:
            return (await halves.adense([single(query)], "query"))[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([single(text)])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([single(text)]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        if (found := drawn(texts := listed(texts))) is not None:
            return found
        with billed(self.halves, self.text_type) as halves:
            return halves.dense(texts, self.text_type)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        if (found := drawn(texts := listed(texts))) is not None:
            return found
        with billed(self.halves, self.text_type) as halves:
            return await halves.adense(texts, self.text_type)


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

    embed_batch_size: int = Field(default=_MOST_PER_CALL, gt=0, le=_MOST_PER_CALL)
    _sparse: Sparse = PrivateAttr()

    def __init__(
        self,
        dense: ClientFields | None = None,
        *,
        embed_batch_size: int = _MOST_PER_CALL,
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
