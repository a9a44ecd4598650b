"""LangChain's `BaseRetriever` over sparse vectors in memory, for hybrid search together with any store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field
from typing_extensions import Self, Unpack

from dashscope_embeddings._adapters.base import ClientFields, as_text_list
from dashscope_embeddings._adapters.flows import Flow, arun, run
from dashscope_embeddings._adapters.sparse import SparseAdapter, with_hidden_keys
from dashscope_embeddings._adapters.sparse_retriever import SparseCollection, check_k, check_types
from dashscope_embeddings._core.client_options import SparseOptions
from dashscope_embeddings._core.text_inputs import invalid_input_error, non_string_problem
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.vectors import Usage, counted

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun

Filter: TypeAlias = "Callable[[Document], bool] | Mapping[str, Any]"

DEFAULT_K = 4
"""As LangChain's vector stores."""


class _Options(SparseOptions, total=False):
    k: int
    filter: Filter | None
    memo_size: int | None
    tags: list[str] | None
    metadata: dict[str, Any] | None
    name: str | None
    collection: SparseCollection[Document]


class _FactoryOptions(_Options, total=False):
    dense: ClientFields | None


class DashScopeSparseRetriever(BaseRetriever):
    """Finds documents by their sparse vectors, which it keeps in memory: for hybrid search together with any store.

    ```python
    sparse = DashScopeSparseRetriever.from_texts(texts, dense=dense)
    store = FAISS.from_texts(texts, dense)
    EnsembleRetriever(retrievers=[sparse, store.as_retriever()]).invoke("question")
    ```

    Args:
        dense: the `DashScopeEmbeddings` of the store, to share requests with: each text and each query is then sent,
            and billed, once for both vectors, whether the store or the retriever gets the documents first.
        k: documents to find at most; also `invoke(query, k=…)`.
        filter: metadata that documents must have, as a dict, or a function of a document; also `invoke(…, filter=…)`.
        memo_size: vectors that may wait to be fetched by the store (about 8 KiB each) or by the retriever (2 KiB).
        collection: documents and vectors of another retriever, to share.
        **settings: arguments of `EmbeddingClient`, if `dense` is None; and `tags`, `metadata`, `name` of LangChain.

    Raises:
        InvalidInput: the model or protocol has no sparse vectors, or settings were passed along with `dense`.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    k: int = DEFAULT_K
    filter: Any = None
    # A field, because LangChain makes a configured retriever anew from its fields.
    collection: Any = Field(default=None, exclude=True, repr=False)

    def __init__(self, dense: ClientFields | None = None, **options: Unpack[_Options]) -> None:
        cast("dict[str, Any]", options)["dense"] = dense
        del dense  # a string may be a key
        settings = with_hidden_keys(options, _Options)
        fields = {name: settings.pop(name) for name in type(self).model_fields if name in settings}
        check_k(fields.get("k", DEFAULT_K), "k")
        _filter_function(fields.get("filter"))
        if fields.get("collection") is None:
            fields["collection"] = SparseCollection(SparseAdapter(**settings))
        elif any(value is not None for value in settings.values()):
            raise InvalidInput("collection has its settings already: pass no others")
        super().__init__(**fields)

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str],
        metadatas: Sequence[dict[str, Any]] | None = None,
        ids: Sequence[str] | None = None,
        **options: Unpack[_FactoryOptions],
    ) -> Self:
        """A retriever of these texts.

        Raises:
            InvalidInput: a text cannot be embedded, or there is not one id or metadata for each text.
            DashScopeError: with `partial` (index → vector) and `failed` (indices).
        """
        settings = with_hidden_keys(options, _Options)
        return cls.from_documents(_documents(texts, metadatas, ids), **settings)

    @classmethod
    async def afrom_texts(
        cls,
        texts: Sequence[str],
        metadatas: Sequence[dict[str, Any]] | None = None,
        ids: Sequence[str] | None = None,
        **options: Unpack[_FactoryOptions],
    ) -> Self:
        """`from_texts` on the running event loop."""
        settings = with_hidden_keys(options, _Options)
        return await cls.afrom_documents(_documents(texts, metadatas, ids), **settings)

    @classmethod
    def from_documents(cls, documents: Sequence[Document], **options: Unpack[_FactoryOptions]) -> Self:
        """A retriever of these documents.

        Raises:
            DashScopeError: as for `from_texts`.
        """
        retriever = cls(**with_hidden_keys(options, _Options))
        retriever.add_documents(documents)
        return retriever

    @classmethod
    async def afrom_documents(cls, documents: Sequence[Document], **options: Unpack[_FactoryOptions]) -> Self:
        """`from_documents` on the running event loop."""
        retriever = cls(**with_hidden_keys(options, _Options))
        await retriever.aadd_documents(documents)
        return retriever

    def add_documents(self, documents: Sequence[Document]) -> None:
        """Adds documents after the present ones: all of them or, after an error, none.

        Raises:
            DashScopeError: as for `from_texts`.
        """
        run(self._add(documents))

    async def aadd_documents(self, documents: Sequence[Document]) -> None:
        """`add_documents` on the running event loop."""
        await arun(self._add(documents))

    def add_texts(
        self,
        texts: Sequence[str],
        metadatas: Sequence[dict[str, Any]] | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        """`add_documents` for texts, with the arguments and errors of `from_texts`."""
        self.add_documents(_documents(texts, metadatas, ids))

    async def aadd_texts(
        self,
        texts: Sequence[str],
        metadatas: Sequence[dict[str, Any]] | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        """`add_texts` on the running event loop."""
        await self.aadd_documents(_documents(texts, metadatas, ids))

    def save_local(self, folder_path: str | Path) -> None:
        """Writes documents and vectors to a file in this folder, without pickle; only its owner may read it.

        Raises:
            InvalidInput: a document's metadata cannot be written as JSON, or the name is empty.
        """
        self.collection.save(folder_path, lambda document: document.model_dump(include=_SAVED))

    @classmethod
    def load_local(cls, folder_path: str | Path, **options: Unpack[_FactoryOptions]) -> Self:
        """A retriever made from `options`, with the documents and vectors that `save_local` wrote.

        Raises:
            InvalidInput: there is no file, it is damaged, or it was written with another model or other settings.
        """
        retriever = cls(**with_hidden_keys(options, _Options))
        retriever.collection.load(folder_path, lambda fields: Document(**fields))
        return retriever

    @property
    def usage(self) -> Usage:
        """What was billed so far; with `dense`, to both adapters together."""
        usage: Usage = self.collection.adapter.usage
        return usage

    def _add(self, documents: Sequence[Document]) -> Flow[None]:
        documents = list(documents)
        check_types(documents, Document, "document", "from_texts takes strings")
        flow: Flow[None] = self.collection.add(documents, [document.page_content for document in documents])
        return flow

    def _find(self, query: str, k: int | None, wanted: Filter | None) -> Flow[list[Document]]:
        accepts = _filter_function(self.filter if wanted is None else wanted)
        found = yield from self.collection.search(query, check_k(self.k if k is None else k, "k"), accepts)
        # Copies: what follows in a chain may write into the metadata.
        return [document.model_copy(update={"metadata": dict(document.metadata)}) for document, _ in found]

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - LangChain passes it
        k: int | None = None,
        filter: Filter | None = None,  # noqa: A002 - LangChain's name
    ) -> list[Document]:
        return run(self._find(query, k, filter))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,  # noqa: ARG002 - LangChain passes it
        k: int | None = None,
        filter: Filter | None = None,  # noqa: A002 - LangChain's name
    ) -> list[Document]:
        return await arun(self._find(query, k, filter))


_SAVED = {"id", "page_content", "metadata"}


def _documents(
    texts: Sequence[str], metadatas: Sequence[dict[str, Any]] | None, ids: Sequence[str] | None
) -> list[Document]:
    texts = as_text_list(texts)
    other: dict[int, Any] = {i: text for i, text in enumerate(cast("list[Any]", texts)) if not isinstance(text, str)}
    if other:
        problems = {i: non_string_problem(value) for i, value in other.items()}
        raise invalid_input_error(problems, other, "nothing was sent")
    if isinstance(metadatas, Embeddings):  # where LangChain's stores take it
        raise InvalidInput(f"metadatas is {type(metadatas).__name__}: pass it by name, dense=…")
    metadatas = [{} for _ in texts] if metadatas is None else metadatas
    ids = [None] * len(texts) if ids is None else ids  # type: ignore[list-item] # a document without an id
    if not len(texts) == len(metadatas) == len(ids):
        others = f"{counted(len(metadatas), 'metadata')} and {counted(len(ids), 'id')}"
        raise InvalidInput(f"{counted(len(texts), 'text')}, but {others}: pass one for each")
    return [Document(text, metadata=metadatas[i], id=ids[i]) for i, text in enumerate(texts)]


def _filter_function(wanted: Any) -> Callable[[Document], bool] | None:
    """A function that says whether a document may be found; None: every document may.

    Raises:
        InvalidInput: `filter` is neither a dict nor a function.
    """
    if wanted is None or callable(wanted):
        return wanted  # type: ignore[no-any-return] # a user's function
    if isinstance(wanted, Mapping):
        return lambda document: all(
            name in document.metadata and document.metadata[name] == value for name, value in wanted.items()
        )
    raise InvalidInput(f"filter must be a dict of metadata or a function of a document, not {type(wanted).__name__}")
