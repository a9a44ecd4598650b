"""Every way to have texts embedded, each as one call: what came, and the one error if there was one."""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import httpx
import pytest
from both import KEY, FakeClock

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
Half: TypeAlias = "list[float] | tuple[list[int], list[float]]"
Row: TypeAlias = "dict[Literal['dense', 'sparse'], Half]"
"""What there is of a text's vectors."""


@dataclass
class Service:
    """The emulator, and clients in front of it for which no real time passes."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Of the clients."""
    folder: Path | None = None
    """For a corpus."""
    clock: FakeClock = field(default_factory=FakeClock)
    # An account of its own, whose pace no other service's clock measures.
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
        client._sessions.clock = self.clock  # type: ignore[assignment]
        return client

    def adapter(self, kind: type[Any]) -> Any:
        """A dense adapter."""
        adapter = kind(**self.arguments())
        adapter.client._sessions.clock = self.clock
        return adapter


@dataclass
class Got:
    """What a caller has in the end."""

    rows: dict[int, Row] = field(default_factory=dict)
    """Index of the text → its vectors, whether returned or in the error's `partial`."""
    error: DashScopeError | None = None
    usage: Usage | None = None
    """As the client counted it."""

    def fail(self, error: DashScopeError) -> None:
        """Ends with an error; what came with it was not lost."""
        self.error = error
        again = self.rows.keys() & error.partial
        assert not again, f"given out, and in `partial` too: {again}"
        for index, vectors in error.partial.items():
            if isinstance(vectors, Embedding):
                self.add(index, vectors.dense, vectors.sparse)
            elif isinstance(vectors, SparseVector):
                self.add(index, None, vectors)
            else:
                self.add(index, vectors)

    def add(self, index: int, dense: list[float] | None, sparse: Any = None) -> None:
        """One text's vectors."""
        row: Row = self.rows.setdefault(index, {})
        if dense is not None:
            row["dense"] = dense
        if sparse is not None:
            row["sparse"] = sparse if isinstance(sparse, tuple) else (sparse.indices, sparse.values)


_truth = Emulator()


@lru_cache(maxsize=1024)
def _dense(text: str, role: str) -> list[float]:
    return _truth.dense(text, text_type=role, dimension=DIMENSIONS)


@lru_cache(maxsize=1024)
def _sparse_row(text: str, role: str) -> tuple[list[int], list[float]]:
    tokens = sorted(_truth.sparse(text, text_type=role), key=lambda token: token.index)
    return [token.index for token in tokens], list(array("f", [token.value for token in tokens]))


def right(text: str, way: Way) -> Row:
    """A text's vectors as the service has them."""
    # The compatible protocol has no roles; the emulator takes all its texts for queries.
    role = "query" if way.protocol == "openai" else way.role
    row: Row = {}
    if "dense" in way.output:
        row["dense"] = list(array("f", _dense(text, role))) if way.float32 else _dense(text, role)
    if "sparse" in way.output:
        row["sparse"] = _sparse_row(text, role)
    return row


Call: TypeAlias = "Callable[[Service, list[str], Got], None]"


@dataclass(frozen=True)
class Way:
    """A way in."""

    name: str
    call: Call
    role: Literal["document", "query"] = "document"
    output: Literal["dense", "sparse", "dense&sparse"] = "dense"
    """What its requests ask for."""
    protocol: Literal["native", "openai"] = "native"
    streams: bool = False
    """It names no more texts than were read before the error."""
    float32: bool = False
    """It keeps vectors as float32."""

    def run(self, service: Service, texts: list[str]) -> Got:
        """Asks for some texts."""
        got = Got()
        try:
            self.call(service, texts, got)
        except DashScopeError as error:
            got.fail(error)
        return got

    def __str__(self) -> str:
        return self.name


# --- the client --------------------------------------------------------------------------------------------


def _embed(service: Service, texts: list[str], got: Got, **settings: Any) -> None:
    found = service.client(**settings).embed(texts)
    got.usage = found.usage
    for index, dense in enumerate(found.dense):
        got.add(index, dense)


def _aembed(service: Service, texts: list[str], got: Got, **settings: Any) -> None:
    found = asyncio.run(service.client(**settings).aembed(texts))
    got.usage = found.usage
    for index, dense in enumerate(found.dense):
        got.add(index, dense)


def _compatible(service: Service, texts: list[str], got: Got) -> None:
    _embed(service, texts, got, protocol="openai")


def _acompatible(service: Service, texts: list[str], got: Got) -> None:
    _aembed(service, texts, got, protocol="openai")


def _sparse(service: Service, texts: list[str], got: Got) -> None:
    found = service.client().embed(texts, output="sparse")
    got.usage = found.usage
    for index, sparse in enumerate(found.sparse or []):
        got.add(index, None, sparse)


def _stream(service: Service, texts: list[str], got: Got) -> None:
    client = service.client()
    for found in client.stream(iter(texts)):
        got.add(found.index, found.dense)
    got.usage = client.usage


def _astream(service: Service, texts: list[str], got: Got) -> None:
    client = service.client()

    async def take() -> None:
        async for found in client.astream(texts):
            got.add(found.index, found.dense)

    asyncio.run(take())
    got.usage = client.usage


# --- the frameworks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Framework:
    """A framework's classes, and the calls of its stores and pipelines, which both classes share."""

    dense: type[Any]
    sparse: Callable[[Any], Any]
    documents: str
    query: str

    def columns(self, row: Any) -> tuple[list[int], list[float]]:
        """A sparse vector: LangChain has a class for it, LlamaIndex a dict."""
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
    """A dense adapter, alone or before the sparse one that is linked to it."""

    of: _Framework
    how: Literal["sync", "async"]
    what: Literal["documents", "query"] = "documents"
    linked: bool = False

    def __call__(self, service: Service, texts: list[str], got: Got) -> None:
        dense = service.adapter(self.of.dense)
        sparse = self.of.sparse(dense) if self.linked else None
        for index, vector in enumerate(self._ask(dense, texts)):
            got.add(index, vector)
        if sparse is not None:
            for index, row in enumerate(self._ask(sparse, texts)):
                got.add(index, None, self.of.columns(row))
        got.usage = dense.usage

    def _ask(self, adapter: Any, texts: list[str]) -> list[Any]:
        name, asked = getattr(self.of, self.what), texts if self.what == "documents" else texts[0]
        if self.how == "sync":
            found = getattr(adapter, name)(asked)
        else:
            found = asyncio.run(_awaited(getattr(adapter, f"a{name}")(asked)))
        return list(found) if self.what == "documents" else [found]


async def _awaited(found: Any) -> Any:
    return await found


# --- files -------------------------------------------------------------------------------------------------


def _corpus(service: Service, texts: list[str], got: Got) -> None:
    """Called again after an error, it goes on with what is missing."""
    assert service.folder is not None
    source, output = service.folder / "in.txt", service.folder / "out.jsonl"
    source.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    summary = corpus.embed_corpus(source, output, client=service.client())
    got.usage = summary.spent
    for index, row in enumerate(corpus.read(output)):
        got.add(index, row.dense)


CORPUS = Way("corpus", _corpus, float32=True)
DOCUMENTS = [
    Way("client.embed", _embed),
    Way("client.aembed", _aembed),
    Way("client.stream", _stream, streams=True),
    Way("client.astream", _astream, streams=True),
    Way("client.embed, sparse", _sparse, output="sparse"),
    Way("client.embed, openai", _compatible, protocol="openai"),
    Way("client.aembed, openai", _acompatible, protocol="openai"),
    Way("LangChain", _Adapters(_LANGCHAIN, "sync")),
    Way("LangChain, async", _Adapters(_LANGCHAIN, "async")),
    Way("LlamaIndex", _Adapters(_LLAMA_INDEX, "sync")),
    Way("LlamaIndex, async", _Adapters(_LLAMA_INDEX, "async")),
    Way("LangChain pair", _Adapters(_LANGCHAIN, "sync", linked=True), output="dense&sparse"),
    Way("LangChain pair, async", _Adapters(_LANGCHAIN, "async", linked=True), output="dense&sparse"),
    Way("LlamaIndex pair", _Adapters(_LLAMA_INDEX, "sync", linked=True), output="dense&sparse"),
    Way("LlamaIndex pair, async", _Adapters(_LLAMA_INDEX, "async", linked=True), output="dense&sparse"),
]
QUERIES = [
    Way(
        f"{name} query{' of a pair' if linked else ''}{', async' if how == 'async' else ''}",
        _Adapters(of, how, "query", linked=linked),
        role="query",
        output="dense&sparse" if linked else "dense",
    )
    for name, of in (("LangChain", _LANGCHAIN), ("LlamaIndex", _LLAMA_INDEX))
    for linked in (False, True)
    for how in ("sync", "async")
]
