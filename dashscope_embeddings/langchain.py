"""LangChain's `Embeddings` over DashScope."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from pydantic import AliasChoices, Field, SecretStr, field_validator

try:
    from langchain_core.embeddings import Embeddings
except ImportError as missing:
    raise ImportError('LangChain is not installed: pip install "dashscope-embeddings[langchain]"') from missing

from dashscope_embeddings._adapters.base import ClientFields, as_single_text, as_text_list
from dashscope_embeddings._adapters.flows import arun, run
from dashscope_embeddings._adapters.langchain_cache import ByteStoreCache, checked_store
from dashscope_embeddings._adapters.vector_cache import cached_dense_flow
from dashscope_embeddings._runtime.progress import progress_bar
from dashscope_embeddings.catalogue import DEFAULT_MODEL
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.vectors import TextType

if TYPE_CHECKING:
    from collections.abc import Callable

    from langchain_core.stores import BaseStore
    from typing_extensions import Unpack

    from dashscope_embeddings._adapters.flows import Flow
    from dashscope_embeddings._adapters.langchain_retriever import DashScopeSparseRetriever
    from dashscope_embeddings._core.client_options import AdapterOptions

    class _Options(AdapterOptions, total=False):
        """Arguments with all their names: for a pydantic field, a type checker knows one name only."""

        model: str
        text_type: TextType
        dashscope_api_key: SecretStr | str | None
        api_key: SecretStr | str | None
        show_progress_bar: bool
        embeddings_cache: BaseStore[str, bytes] | None


__all__ = ["DashScopeEmbeddings", "DashScopeSparseRetriever"]


def __getattr__(name: str) -> Any:
    # On first use: LangChain's retrievers and numpy take longer to import than all the rest.
    if name != "DashScopeSparseRetriever":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dashscope_embeddings._adapters.langchain_retriever import DashScopeSparseRetriever  # noqa: PLC0415 - see above

    return DashScopeSparseRetriever


class DashScopeEmbeddings(ClientFields, Embeddings):
    """Alibaba Cloud Model Studio (DashScope) text embeddings for LangChain.

    `embed_query` sends the query role, `embed_documents` the document role; any number of texts is cut to the
    model's limits and sent as fast as the account allows.

    Setup:
        `pip install "dashscope-embeddings[langchain]"` and set `DASHSCOPE_API_KEY`, or pass
        `base_url="emulator"` to work without key and network.

    Key init args - embedding params:
        model: such as "text-embedding-v4" (default) or "qwen3.7-text-embedding".
        dimensions: floats in a vector; None: the model's default.
        instruct: what queries are for; sent with queries only.
        text_type: the role of documents, "document"; "query" for symmetric tasks. Queries are always queries.
        long_text: "error", "truncate" or "average", for texts longer than the model takes.

    Key init args - client params:
        dashscope_api_key (or api_key), region, workspace, base_url, protocol, timeout, max_retries,
        max_concurrency, requests_per_minute, tokens_per_minute, batch_size (or chunk_size), default_headers,
        rate_limiter, show_progress_bar, http_client, http_async_client, price, on_request: see `EmbeddingClient`.

    Key init args - cache:
        embeddings_cache: a `BaseStore[str, bytes]`, such as `LocalFileStore`. Vectors of documents and queries go into
            it as replies arrive, also of a call that fails or is interrupted, and are not asked for again. One store
            may serve any number of models, dimensions, roles and so on: its keys tell them apart. Entries are float32,
            4 KB for 1,024 numbers; a damaged one is requested again, a store that fails warns once.

    Instantiate:
        ```python
        from dashscope_embeddings.langchain import DashScopeEmbeddings

        embeddings = DashScopeEmbeddings(model="text-embedding-v4", dimensions=1024)
        ```

    Embed single text:
        ```python
        vector = embeddings.embed_query("What is a context manager?")  # 1024 floats
        ```

    Embed multiple texts:
        ```python
        vectors = embeddings.embed_documents(["one text", "another"])  # shape (2, 1024)
        ```

    Async:
        ```python
        vectors = await embeddings.aembed_documents(["one text", "another"])
        ```
    """

    _key_field = "dashscope_api_key"

    model: str = DEFAULT_MODEL
    text_type: TextType = "document"
    dashscope_api_key: SecretStr | None = Field(
        default=None, exclude=True, repr=False, validation_alias=AliasChoices("dashscope_api_key", "api_key")
    )
    show_progress_bar: bool = Field(default=False, exclude=True)
    embeddings_cache: Any = Field(default=None, exclude=True, repr=False)

    if TYPE_CHECKING:

        def __init__(self, **options: Unpack[_Options]) -> None: ...

    @field_validator("embeddings_cache")
    @classmethod
    def _check_cache(cls, store: Any) -> Any:
        return None if store is None else checked_store(store)

    def __getstate__(self) -> dict[Any, Any]:
        if self.rate_limiter is not None:
            raise InvalidInput(
                "embeddings with a rate_limiter cannot be pickled, because its lock cannot move to another process. "
                "Make them in the other process, or pass requests_per_minute instead"
            )
        if self.embeddings_cache is not None:
            try:
                pickle.dumps(self.embeddings_cache)
            except Exception:  # noqa: BLE001 - whatever a user's store raises
                raise InvalidInput(
                    f"embeddings_cache cannot be pickled, because a {type(self.embeddings_cache).__name__} cannot move "
                    "to another process. Open the store there, or pass one that can be pickled, such as LocalFileStore"
                ) from None
        return super().__getstate__()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """The vectors of documents: shape (texts, dimensions), in the order of the texts.

        Raises:
            InvalidInput: a text cannot be embedded; nothing was sent.
            DashScopeError: with `partial` (index → vector) and `failed` (indices).
        """
        texts = as_text_list(texts)
        with progress_bar(len(texts), progress=self.show_progress_bar) as progress:
            return run(self._dense(texts, self.text_type, progress))

    def embed_query(self, text: str) -> list[float]:
        """The vector of a search query: `dimensions` floats.

        Raises:
            DashScopeError: as for `embed_documents`.
        """
        return run(self._dense([as_single_text(text)], "query"))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents` on the running event loop."""
        texts = as_text_list(texts)
        with progress_bar(len(texts), progress=self.show_progress_bar) as progress:
            return await arun(self._dense(texts, self.text_type, progress))

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` on the running event loop."""
        return (await arun(self._dense([as_single_text(text)], "query")))[0]

    def _dense(
        self, texts: list[str], role: TextType, progress: Callable[[int], object] | None = None
    ) -> Flow[list[list[float]]]:
        store = self.embeddings_cache
        cache = None if store is None else ByteStoreCache(store, self.client.settings, role)
        return cached_dense_flow(cache, self.hybrid, texts, role, progress)
