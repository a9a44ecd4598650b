"""LlamaIndex's `BaseEmbedding` over DashScope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

import llama_index.core.instrumentation as instrument
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode  # noqa: TC002 - read at run time, in type hints
from llama_index.core.storage.kvstore.types import BaseKVStore
from pydantic import Field, SecretStr
from typing_extensions import Unpack

from dashscope_embeddings._adapters.base import ClientFields, as_single_text, as_text_list
from dashscope_embeddings._adapters.flows import arun, run
from dashscope_embeddings._adapters.vector_cache import cached_dense_flow
from dashscope_embeddings._core.client_options import AdapterOptions
from dashscope_embeddings._core.secret_settings import hide_secrets
from dashscope_embeddings._runtime.progress import progress_bar
from dashscope_embeddings.catalogue import DEFAULT_MODEL
from dashscope_embeddings.errors import DashScopeError, InvalidInput
from dashscope_embeddings.llama_index.cache import HiddenStore, KVCache, prefetched, take_prefetched
from dashscope_embeddings.llama_index.nodes import BLANK_NODES_HINT, add_node_ids
from dashscope_embeddings.llama_index.sparse import MAX_TEXTS_PER_CALL
from dashscope_embeddings.llama_index.usage_event import emit_usage
from dashscope_embeddings.vectors import TextType

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashscope_embeddings._adapters.flows import Flow


_Method = TypeVar("_Method")
# The dispatcher of the overridden methods, because handlers may be attached to it as well as to the root.
_dispatcher = instrument.get_dispatcher(BaseEmbedding.__module__)  # type: ignore[attr-defined] # core has it by re-export


def _span(method: _Method) -> _Method:
    """Wraps a whole method in one of LlamaIndex's spans."""
    return cast("_Method", _dispatcher.span(cast("Callable[..., Any]", method)))


@dataclass(frozen=True)
class _PerRequestRateLimiter:
    """Passed to LlamaIndex as a no-op; our client applies the wrapped limiter to each HTTP request."""

    wrapped: Any

    def acquire(self, num_tokens: int = 0) -> None:
        """Never waits."""

    async def async_acquire(self, num_tokens: int = 0) -> None:
        """Never waits."""


class _Options(AdapterOptions, total=False):
    """Keyword arguments: those of the client and those of LlamaIndex's base class."""

    model: str
    callback_manager: Any
    class_name: str
    embeddings_cache: Any
    num_workers: int | None


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
        api_key: None: `DASHSCOPE_API_KEY`, or a key file.
        embed_batch_size: texts in one request at most, as `batch_size`; the default is best. `num_workers` bounds the
            requests in flight, as `max_concurrency` does.
        **kwargs: settings of `EmbeddingClient` and fields of `BaseEmbedding`; anything else is an error.
    """

    _model_field = "model_name"
    _framework_fields = ("embed_batch_size", "num_workers")

    model_name: str = DEFAULT_MODEL
    text_type: TextType = "document"
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    embed_batch_size: int = Field(default=MAX_TEXTS_PER_CALL, gt=0, le=MAX_TEXTS_PER_CALL)
    embeddings_cache: Any = Field(default=None, exclude=True)

    def __init__(
        self,
        model_name: str | None = None,
        text_type: TextType = "document",
        api_key: str | SecretStr | None = None,
        embed_batch_size: int = MAX_TEXTS_PER_CALL,
        **kwargs: Unpack[_Options],
    ) -> None:
        settings: dict[str, Any] = {"model_name": model_name, "text_type": text_type, "api_key": api_key, **kwargs}
        del model_name, text_type, api_key, kwargs
        hide_secrets(settings, self._argument_names() | {"model"})
        settings.pop("class_name", None)
        if (model := settings.pop("model", None)) is not None:
            if settings["model_name"] not in {None, model}:
                raise InvalidInput(
                    f"model={model!r} and model_name={settings['model_name']!r} are two names of one argument: pass one"
                )
            settings["model_name"] = model
        for name in ("model_name", "text_type"):
            settings[name] = getattr(settings[name], "value", settings[name])
        settings["model_name"] = settings["model_name"] or DEFAULT_MODEL
        if settings["text_type"] not in get_args(TextType):
            settings.clear()  # it may be a key
            raise InvalidInput('text_type, the second argument, is "document" or "query"; a key goes to api_key=')
        super().__init__(embed_batch_size=embed_batch_size, **settings)

    @classmethod
    def class_name(cls) -> str:
        """The id of this class in LlamaIndex's serialised pipelines."""
        return "DashScopeEmbedding"

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        limiter = settings["rate_limiter"]
        bounds = [number for number in (self.num_workers, self.max_concurrency) if number is not None]
        cut_size = None if self.embed_batch_size == MAX_TEXTS_PER_CALL else self.embed_batch_size
        return settings | {
            # LlamaIndex would send slices of this size, one after the other. Its maximum, the default, is no limit.
            "batch_size": cut_size if self.batch_size is None else self.batch_size,
            "max_concurrency": min(bounds, default=None),
            "rate_limiter": limiter.wrapped if isinstance(limiter, _PerRequestRateLimiter) else limiter,
        }

    def model_post_init(self, context: Any, /) -> None:
        """Wraps what LlamaIndex must not use itself."""
        super().model_post_init(context)
        for name in ("embeddings_cache", "rate_limiter"):
            setattr(self, name, getattr(self, name))

    def _as_field(self, name: str, value: Any) -> Any:
        if name == "embeddings_cache" and value is not None and not isinstance(value, HiddenStore):
            if not isinstance(value, BaseKVStore):
                kind = type(value).__name__
                raise InvalidInput(f"embeddings_cache must be a BaseKVStore of LlamaIndex, not {kind}")
            return HiddenStore(value)
        if name == "rate_limiter" and value is not None and not isinstance(value, _PerRequestRateLimiter):
            return _PerRequestRateLimiter(value)
        return value

    def _dense(
        self, texts: list[str], role: TextType, progress: Callable[[int], object] | None = None
    ) -> Flow[list[list[float]]]:
        store = self.embeddings_cache
        cache = None if store is None else KVCache(store.wrapped, self.client.settings, role)
        with emit_usage(self.hybrid, role) as hybrid:
            return (yield from cached_dense_flow(cache, hybrid, texts, role, progress))

    def _documents(self, texts: list[Any], progress: Callable[[int], object] | None = None) -> Flow[list[list[float]]]:
        """`_dense`; if blank nodes cause an error, adds a hint how to leave them out."""
        try:
            return (yield from self._dense(texts, self.text_type, progress))
        except InvalidInput as error:
            if any(isinstance(text, str) and not text.strip() for text in texts):
                error.add_hint(BLANK_NODES_HINT)
            raise

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """The nodes with their vectors; an error names nodes whose texts were refused."""
        try:
            return super().__call__(nodes, **kwargs)
        except DashScopeError as error:
            add_node_ids(error, nodes)
            raise

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """`__call__` on the running event loop."""
        try:
            return await super().acall(nodes, **kwargs)
        except DashScopeError as error:
            add_node_ids(error, nodes)
            raise

    @_span
    def get_query_embedding(self, query: str) -> list[float]:
        """The vector of a search query: `dimensions` floats."""
        return _without_span(super().get_query_embedding)(query)

    @_span
    async def aget_query_embedding(self, query: str) -> list[float]:
        """`get_query_embedding` on the running event loop."""
        return await _without_span(super().aget_query_embedding)(query)

    @_span
    def get_text_embedding(self, text: str) -> list[float]:
        """The vector of a document: `dimensions` floats."""
        return _without_span(super().get_text_embedding)(text)

    @_span
    async def aget_text_embedding(self, text: str) -> list[float]:
        """`get_text_embedding` on the running event loop."""
        return await _without_span(super().aget_text_embedding)(text)

    @_span
    def get_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,  # noqa: FBT001, FBT002 - LlamaIndex's own signature
        **kwargs: Any,
    ) -> list[list[float]]:
        """The vectors of documents: shape (texts, dimensions), in the order of the texts."""
        core = _without_span(super().get_text_embedding_batch)
        if len(texts := as_text_list(texts)) <= self.embed_batch_size:
            return core(texts, show_progress, **kwargs)
        with progress_bar(len(texts), progress=bool(show_progress)) as progress:
            vectors = run(self._documents(texts, progress))
        with prefetched(texts, vectors):
            return core(texts, **kwargs)

    @_span
    async def aget_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,  # noqa: FBT001, FBT002 - LlamaIndex's own signature
        **kwargs: Any,
    ) -> list[list[float]]:
        """`get_text_embedding_batch` on the running event loop."""
        # LlamaIndex 0.13 takes a cache that is false for one here.
        bare = self if self.embeddings_cache is None else self.model_copy(update={"embeddings_cache": None})
        core = _without_span(super(DashScopeEmbedding, bare).aget_text_embedding_batch)
        if len(texts := as_text_list(texts)) <= self.embed_batch_size and bare is self:
            return await core(texts, show_progress, **kwargs)
        with progress_bar(len(texts), progress=bool(show_progress)) as progress:
            vectors = await arun(self._documents(texts, progress))
        with prefetched(texts, vectors):
            return await core(texts, **kwargs)

    def to_payload(self) -> dict[str, Any]:
        """What events and callbacks may show; without the key."""
        return {
            "class_name": self.class_name(),
            "model_name": self.model_name,
            "embed_batch_size": self.embed_batch_size,
            "dimensions": self.dimensions,
        }

    def _get_query_embedding(self, query: str) -> list[float]:
        return run(self._dense([as_single_text(query)], "query"))[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await arun(self._dense([as_single_text(query)], "query")))[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([as_single_text(text)])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([as_single_text(text)]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        if (found := take_prefetched(texts := as_text_list(texts))) is not None:
            return found
        return run(self._documents(texts))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        if (found := take_prefetched(texts := as_text_list(texts))) is not None:
            return found
        return await arun(self._documents(texts))


def _without_span(method: _Method) -> _Method:
    """LlamaIndex's method without its span, because the overriding method has a span of the same name."""
    return getattr(method, "__wrapped__", method)
