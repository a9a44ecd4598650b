"""Every public way to embed texts, each as one call: the vectors, and the error if there is one."""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import httpx
import pytest
from client_helpers import KEY, FakeClock

pytest.importorskip("langchain_qdrant")
pytest.importorskip("llama_index.core")

from dashscope_embeddings import DashScopeError, Embedding, EmbeddingClient, SparseVector, corpus
from dashscope_embeddings.emulator import Emulator
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings
from dashscope_embeddings.llama_index import DashScopeEmbedding, DashScopeSparseEmbedding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dashscope_embeddings import Usage

DIMENSIONS = 64
_accounts = count()
Component: TypeAlias = "list[float] | tuple[list[int], list[float]]"
TextVectors: TypeAlias = "dict[Literal['dense', 'sparse'], Component]"
"""The components of one text that arrived."""


@dataclass
class EmulatedService:
    """An emulator and its clients, on a fake clock."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the clients."""
    folder: Path | None = None
    """Folder of a corpus."""
    clock: FakeClock = field(default_factory=FakeClock)
    # An account of its own, because clients of one account share a limiter and its clock.
    key: str = field(default_factory=lambda: f"{KEY}-{next(_accounts)}")
    emulator: Emulator = field(init=False)

    def __post_init__(self) -> None:
        self.emulator = Emulator(clock=self.clock.now)

    def arguments(self, **more: Any) -> dict[str, Any]:
        """Settings of a client, or of an adapter."""
        return {
            "api_key": self.key,
            "dimensions": DIMENSIONS,
            "http_client": httpx.Client(transport=self.emulator.transport()),
            "http_async_client": httpx.AsyncClient(transport=self.emulator.transport()),
            **self.settings,
            **more,
        }

    def client(self, **more: Any) -> EmbeddingClient:
        """A client."""
        client = EmbeddingClient(**self.arguments(**more))
        client._transport.clock = self.clock  # type: ignore[assignment]
        return client

    def adapter(self, kind: type[Any]) -> Any:
        """A dense adapter."""
        adapter = kind(**self.arguments())
        adapter.client._transport.clock = self.clock
        return adapter


@dataclass
class CallResult:
    """The result of a call."""

    rows: dict[int, TextVectors] = field(default_factory=dict)
    """Index of the text → its vectors, returned or from the error's `partial`."""
    error: DashScopeError | None = None
    usage: Usage | None = None
    """Usage as counted by the client."""

    def set_error(self, error: DashScopeError) -> None:
        """Sets the error and adds its `partial` vectors."""
        self.error = error
        repeated = self.rows.keys() & error.partial
        assert not repeated, f"returned, and in `partial` as well: {repeated}"
        for index, vectors in error.partial.items():
            if isinstance(vectors, Embedding):
                self.add(index, vectors.dense, vectors.sparse)
            elif isinstance(vectors, SparseVector):
                self.add(index, None, vectors)
            else:
                self.add(index, vectors)

    def add(self, index: int, dense: list[float] | None, sparse: Any = None) -> None:
        """Adds the vectors of one text."""
        row: TextVectors = self.rows.setdefault(index, {})
        if dense is not None:
            row["dense"] = dense
        if sparse is not None:
            row["sparse"] = sparse if isinstance(sparse, tuple) else (sparse.indices, sparse.values)


_reference = Emulator()


@lru_cache(maxsize=1024)
def _expected_dense(text: str, role: str) -> list[float]:
    return _reference.dense(text, text_type=role, dimension=DIMENSIONS)


@lru_cache(maxsize=1024)
def _expected_sparse(text: str, role: str) -> tuple[list[int], list[float]]:
    tokens = sorted(_reference.sparse(text, text_type=role), key=lambda token: token.index)
    return [token.index for token in tokens], list(array("f", [token.value for token in tokens]))


def expected_vectors(text: str, entry_point: EntryPoint) -> TextVectors:
    """The vectors of a text that the service returns."""
    # The compatible protocol has no roles; the emulator embeds all its texts as queries.
    role = "query" if entry_point.protocol == "openai" else entry_point.role
    row: TextVectors = {}
    if "dense" in entry_point.output:
        row["dense"] = (
            list(array("f", _expected_dense(text, role))) if entry_point.is_float32 else _expected_dense(text, role)
        )
    if "sparse" in entry_point.output:
        row["sparse"] = _expected_sparse(text, role)
    return row


Call: TypeAlias = "Callable[[EmulatedService, list[str], CallResult], None]"


@dataclass(frozen=True)
class EntryPoint:
    """One public way to embed texts."""

    name: str
    call: Call
    role: Literal["document", "query"] = "document"
    output: Literal["dense", "sparse", "dense&sparse"] = "dense"
    """Output type of its requests."""
    protocol: Literal["native", "openai"] = "native"
    is_streaming: bool = False
    """Whether its error names only the texts that were read before it."""
    is_float32: bool = False
    """Whether it stores vectors as float32."""

    def run(self, service: EmulatedService, texts: list[str]) -> CallResult:
        """Embeds texts."""
        result = CallResult()
        try:
            self.call(service, texts, result)
        except DashScopeError as error:
            result.set_error(error)
        return result

    def __str__(self) -> str:
        return self.name


# --- the client --------------------------------------------------------------------------------------------


def _embed(service: EmulatedService, texts: list[str], result: CallResult, **settings: Any) -> None:
    found = service.client(**settings).embed(texts)
    result.usage = found.usage
    for index, dense in enumerate(found.dense):
        result.add(index, dense)


def _aembed(service: EmulatedService, texts: list[str], result: CallResult, **settings: Any) -> None:
    found = asyncio.run(service.client(**settings).aembed(texts))
    result.usage = found.usage
    for index, dense in enumerate(found.dense):
        result.add(index, dense)


def _compatible(service: EmulatedService, texts: list[str], result: CallResult) -> None:
    _embed(service, texts, result, protocol="openai")


def _acompatible(service: EmulatedService, texts: list[str], result: CallResult) -> None:
    _aembed(service, texts, result, protocol="openai")


def _sparse(service: EmulatedService, texts: list[str], result: CallResult) -> None:
    found = service.client().embed(texts, output="sparse")
    result.usage = found.usage
    for index, sparse in enumerate(found.sparse or []):
        result.add(index, None, sparse)


def _stream(service: EmulatedService, texts: list[str], result: CallResult) -> None:
    client = service.client()
    for found in client.stream(iter(texts)):
        result.add(found.index, found.dense)
    result.usage = client.usage


def _astream(service: EmulatedService, texts: list[str], result: CallResult) -> None:
    client = service.client()

    async def collect() -> None:
        async for found in client.astream(texts):
            result.add(found.index, found.dense)

    asyncio.run(collect())
    result.usage = client.usage


# --- the frameworks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Framework:
    """The adapters of a framework, and the names of the methods that its stores and pipelines call."""

    dense: type[Any]
    sparse: Callable[[Any], Any]
    documents: str
    query: str

    def sparse_columns(self, row: Any) -> tuple[list[int], list[float]]:
        """Indices and values of a sparse vector, which is a dict in LlamaIndex."""
        return (list(row), list(row.values())) if isinstance(row, dict) else (row.indices, row.values)


_LANGCHAIN = _Framework(
    DashScopeEmbeddings, DashScopeSparseEmbeddings, documents="embed_documents", query="embed_query"
)
_LLAMA_INDEX = _Framework(
    DashScopeEmbedding,
    lambda dense: DashScopeSparseEmbedding(dense=dense),
    documents="get_text_embedding_batch",
    query="get_query_embedding",
)


@dataclass(frozen=True)
class _Adapters:
    """Calls a dense adapter and, if paired, then its sparse partner."""

    framework: _Framework
    mode: Literal["sync", "async"]
    text_kind: Literal["documents", "query"] = "documents"
    is_paired: bool = False

    def __call__(self, service: EmulatedService, texts: list[str], result: CallResult) -> None:
        dense = service.adapter(self.framework.dense)
        sparse = self.framework.sparse(dense) if self.is_paired else None
        for index, vector in enumerate(self._embed_texts(dense, texts)):
            result.add(index, vector)
        if sparse is not None:
            for index, row in enumerate(self._embed_texts(sparse, texts)):
                result.add(index, None, self.framework.sparse_columns(row))
        result.usage = dense.usage

    def _embed_texts(self, adapter: Any, texts: list[str]) -> list[Any]:
        name, argument = getattr(self.framework, self.text_kind), texts if self.text_kind == "documents" else texts[0]
        if self.mode == "sync":
            found = getattr(adapter, name)(argument)
        else:
            found = asyncio.run(_awaited(getattr(adapter, f"a{name}")(argument)))
        return list(found) if self.text_kind == "documents" else [found]


async def _awaited(found: Any) -> Any:
    return await found


# --- files -------------------------------------------------------------------------------------------------


def _corpus(service: EmulatedService, texts: list[str], result: CallResult) -> None:
    """Embeds a file; a second call after an error resumes."""
    assert service.folder is not None
    source, output = service.folder / "in.txt", service.folder / "out.jsonl"
    source.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    summary = corpus.embed_corpus(source, output, client=service.client())
    result.usage = summary.spent
    for index, row in enumerate(corpus.read(output)):
        result.add(index, row.dense)


CORPUS = EntryPoint("corpus", _corpus, is_float32=True)
DOCUMENTS = [
    EntryPoint("client.embed", _embed),
    EntryPoint("client.aembed", _aembed),
    EntryPoint("client.stream", _stream, is_streaming=True),
    EntryPoint("client.astream", _astream, is_streaming=True),
    EntryPoint("client.embed, sparse", _sparse, output="sparse"),
    EntryPoint("client.embed, openai", _compatible, protocol="openai"),
    EntryPoint("client.aembed, openai", _acompatible, protocol="openai"),
    EntryPoint("LangChain", _Adapters(_LANGCHAIN, "sync")),
    EntryPoint("LangChain, async", _Adapters(_LANGCHAIN, "async")),
    EntryPoint("LlamaIndex", _Adapters(_LLAMA_INDEX, "sync")),
    EntryPoint("LlamaIndex, async", _Adapters(_LLAMA_INDEX, "async")),
    EntryPoint("LangChain pair", _Adapters(_LANGCHAIN, "sync", is_paired=True), output="dense&sparse"),
    EntryPoint("LangChain pair, async", _Adapters(_LANGCHAIN, "async", is_paired=True), output="dense&sparse"),
    EntryPoint("LlamaIndex pair", _Adapters(_LLAMA_INDEX, "sync", is_paired=True), output="dense&sparse"),
    EntryPoint("LlamaIndex pair, async", _Adapters(_LLAMA_INDEX, "async", is_paired=True), output="dense&sparse"),
]
QUERIES = [
    EntryPoint(
        f"{name} query{' of a pair' if is_paired else ''}{', async' if mode == 'async' else ''}",
        _Adapters(framework, mode, "query", is_paired=is_paired),
        role="query",
        output="dense&sparse" if is_paired else "dense",
    )
    for name, framework in (("LangChain", _LANGCHAIN), ("LlamaIndex", _LLAMA_INDEX))
    for is_paired in (False, True)
    for mode in ("sync", "async")
]
