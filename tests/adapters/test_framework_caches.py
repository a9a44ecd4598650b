"""Caches of the frameworks: an entry is found again, and never by who asks for another vector."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import KEY
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.storage import LocalFileStore
from langchain_core.rate_limiters import InMemoryRateLimiter
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.storage.kvstore import SimpleKVStore

from dashscope_embeddings import BadRequestError, InvalidInput
from dashscope_embeddings.emulator.faults import Blocked
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.llama_index import DashScopeEmbedding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

V3 = "text-embedding-v3"


# --- LangChain's CacheBackedEmbeddings ---------------------------------------------------------------------


def cached(embeddings: DashScopeEmbeddings, folder: Path) -> CacheBackedEmbeddings:
    """The call that README shows."""
    return CacheBackedEmbeddings.from_bytes_store(
        embeddings,
        LocalFileStore(folder / "documents"),
        namespace=embeddings.cache_namespace,
        query_embedding_cache=LocalFileStore(folder / "queries"),
        key_encoder="sha256",
    )


def test_what_was_embedded_once_is_not_asked_again(served: Server, emulator: Emulator, tmp_path: Path) -> None:
    first = cached(DashScopeEmbeddings(api_key=KEY, base_url=served.url), tmp_path)
    first.embed_documents(["a", "b"])
    first.embed_query("a")
    assert emulator.requests == 2
    second = cached(DashScopeEmbeddings(api_key=KEY, base_url=served.url), tmp_path)
    assert second.embed_documents(["b", "a"]) == [emulator.dense("b"), emulator.dense("a")]
    assert second.embed_query("a") == emulator.dense("a", text_type="query")
    assert emulator.requests == 2


@pytest.mark.parametrize(
    "change",
    [{"model": V3}, {"dimensions": 64}, {"instruct": "find code"}, {"long_text": "truncate"}, {"protocol": "openai"}],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.filterwarnings("ignore:protocol=.openai. does not distinguish:UserWarning")
def test_other_settings_never_read_these_entries(
    served: Server, emulator: Emulator, tmp_path: Path, change: dict[str, Any]
) -> None:
    cached(DashScopeEmbeddings(api_key=KEY, base_url=served.url), tmp_path).embed_query("a")
    cached(DashScopeEmbeddings(api_key=KEY, base_url=served.url), tmp_path).embed_documents(["a"])
    other = DashScopeEmbeddings(api_key=KEY, base_url=served.url, **change)
    assert cached(other, tmp_path).embed_query("a") == other.embed_query("a")
    assert cached(other, tmp_path).embed_documents(["a"]) == other.embed_documents(["a"])
    assert emulator.requests == 6


def test_the_namespace_says_what_makes_a_vector_and_nothing_else() -> None:
    made = DashScopeEmbeddings(base_url="emulator", dimensions=64)
    assert made.cache_namespace == "emulator_text-embedding-v4_64_document"
    assert made.model_copy(update={"timeout": 5.0, "max_concurrency": 2}).cache_namespace == made.cache_namespace
    service = DashScopeEmbeddings(api_key=KEY)
    assert service.cache_namespace == "dashscope_text-embedding-v4_1024_document"
    assert DashScopeEmbeddings(api_key=KEY, region="ap-southeast-1").cache_namespace == service.cache_namespace
    assert DashScopeEmbedding(api_key=KEY, text_type="query").cache_namespace != service.cache_namespace
    assert KEY not in DashScopeEmbeddings(api_key=KEY, instruct="x").cache_namespace


# --- LlamaIndex's embeddings_cache -------------------------------------------------------------------------


def query(embedding: DashScopeEmbedding) -> list[float]:
    return embedding.get_query_embedding("a")


def text(embedding: DashScopeEmbedding) -> list[float]:
    return embedding.get_text_embedding("a")


def texts(embedding: DashScopeEmbedding) -> list[float]:
    return embedding.get_text_embedding_batch(["a"])[0]


def aquery(embedding: DashScopeEmbedding) -> list[float]:
    return asyncio.run(embedding.aget_query_embedding("a"))


def atext(embedding: DashScopeEmbedding) -> list[float]:
    return asyncio.run(embedding.aget_text_embedding("a"))


def atexts(embedding: DashScopeEmbedding) -> list[float]:
    return asyncio.run(embedding.aget_text_embedding_batch(["a"]))[0]


def aggregated(embedding: DashScopeEmbedding) -> list[float]:
    return embedding.get_agg_embedding_from_queries(["a"])


WAYS: dict[str, list[Callable[[DashScopeEmbedding], list[float]]]] = {
    "query": [query, aquery, aggregated],
    "document": [text, texts, atext, atexts],
}


@pytest.mark.parametrize("first", ["query", "document"])
def test_every_way_in_finds_the_entries_of_its_role_alone(served: Server, emulator: Emulator, first: str) -> None:
    embedding = DashScopeEmbedding(api_key=KEY, base_url=served.url, embeddings_cache=SimpleKVStore())
    second = "document" if first == "query" else "query"
    for role in (first, second):
        for way in WAYS[role]:
            assert way(embedding) == pytest.approx(emulator.dense("a", text_type=role)), (role, way)
    assert [asked.text_type for asked in emulator.asked] == [first, second]


@pytest.mark.parametrize(
    "change",
    [{"model_name": V3}, {"dimensions": 64}, {"instruct": "find code"}, {"long_text": "truncate"}],
    ids=lambda change: next(iter(change)),
)
def test_a_copy_with_other_settings_never_reads_these_entries(served: Server, change: dict[str, Any]) -> None:
    made = DashScopeEmbedding(api_key=KEY, base_url=served.url, embeddings_cache=SimpleKVStore())
    bare = DashScopeEmbedding(api_key=KEY, base_url=served.url, **change)
    query(made)
    copy = made.model_copy(update=change)
    assert query(copy) == query(bare)
    assert query(made) != query(copy) or "long_text" in change


def assigned(embedding: DashScopeEmbedding, **fields: Any) -> DashScopeEmbedding:
    for name, value in fields.items():
        setattr(embedding, name, value)
    return embedding


def copied(embedding: DashScopeEmbedding, **fields: Any) -> DashScopeEmbedding:
    return embedding.model_copy(update=fields)


def constructed(embedding: DashScopeEmbedding, **fields: Any) -> DashScopeEmbedding:
    return DashScopeEmbedding.model_construct(**vars(embedding) | fields)


@pytest.mark.parametrize("with_fields", [assigned, copied, constructed])
def test_a_cache_may_be_put_in_later_and_an_empty_one_is_one(
    served: Server, emulator: Emulator, with_fields: Callable[..., DashScopeEmbedding]
) -> None:
    class Sized(SimpleKVStore):
        def __len__(self) -> int:
            return 0

    embedding = with_fields(DashScopeEmbedding(api_key=KEY, base_url=served.url), embeddings_cache=Sized())
    assert text(embedding) != emulator.dense("a", text_type="query")
    for _ in range(2):
        assert query(embedding) == emulator.dense("a", text_type="query")
    assert emulator.requests == 2


def test_a_store_in_use_stays_the_callers_to_save(served: Server, tmp_path: Path) -> None:
    embedding = DashScopeEmbedding(api_key=KEY, base_url=served.url, embeddings_cache=SimpleKVStore())
    vector = query(embedding)
    unpickled = pickle.loads(pickle.dumps(embedding))  # noqa: S301 - made here
    for same in (embedding, unpickled, copy.deepcopy(embedding)):
        same.embeddings_cache.persist(str(tmp_path / "store.json"))
        kept = SimpleKVStore.from_persist_path(str(tmp_path / "store.json"))
        assert query(DashScopeEmbedding(api_key=KEY, base_url=served.url, embeddings_cache=kept)) == vector


def test_llama_index_finds_no_store_in_an_async_batch(
    served: Server, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Core 0.13 looks there for a store that is None, and takes one that is only false for its own."""
    core = BaseEmbedding.aget_text_embedding_batch

    async def watched(self: BaseEmbedding, *args: Any, **kwargs: Any) -> list[list[float]]:
        assert self.embeddings_cache is None
        return await core(self, *args, **kwargs)

    monkeypatch.setattr(BaseEmbedding, "aget_text_embedding_batch", watched)
    embedding = DashScopeEmbedding(api_key=KEY, base_url=served.url, embeddings_cache=SimpleKVStore())
    assert [text(embedding), atexts(embedding), atexts(embedding)] == [emulator.dense("a")] * 3
    assert emulator.requests == 1


def test_what_is_no_store_is_refused_however_it_is_set() -> None:
    embedding = DashScopeEmbedding(base_url="emulator")
    with pytest.raises(InvalidInput, match="must be a BaseKVStore of LlamaIndex, not dict"):
        DashScopeEmbedding(base_url="emulator", embeddings_cache={})
    with pytest.raises(InvalidInput, match="must be a BaseKVStore of LlamaIndex, not dict"):
        embedding.embeddings_cache = {}
    with pytest.raises(InvalidInput, match="must be a BaseKVStore of LlamaIndex, not dict"):
        embedding.model_copy(update={"embeddings_cache": {}})
    assert embedding.get_text_embedding("a text")


# --- rate limiters are asked for every request -------------------------------------------------------------


class Counting(InMemoryRateLimiter):
    """LangChain's own, which says how often it was asked."""

    def __init__(self) -> None:
        super().__init__(requests_per_second=10_000, max_bucket_size=1_000)
        self.asked = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self.asked += 1
        return super().acquire(blocking=blocking)

    async def aacquire(self, *, blocking: bool = True) -> bool:
        self.asked += 1
        return await super().aacquire(blocking=blocking)


def test_langchains_rate_limiter_is_asked_for_every_request(served: Server, emulator: Emulator) -> None:
    limiter = Counting()
    embeddings = DashScopeEmbeddings(api_key=KEY, base_url=served.url, rate_limiter=limiter)
    embeddings.embed_documents([f"text {i}" for i in range(25)])
    asyncio.run(embeddings.aembed_documents([f"text {i}" for i in range(25)]))
    embeddings.embed_query("a")
    assert limiter.asked == emulator.requests == 7


@pytest.mark.parametrize("with_fields", [assigned, copied, constructed])
def test_a_rate_limiter_put_in_later_is_asked_once_for_each_request(
    served: Server, emulator: Emulator, with_fields: Callable[..., DashScopeEmbedding]
) -> None:
    limiter = Counting()
    embedding = with_fields(DashScopeEmbedding(api_key=KEY, base_url=served.url), rate_limiter=limiter)
    embedding.get_text_embedding_batch([f"text {i}" for i in range(25)])
    query(embedding)
    assert limiter.asked == emulator.requests == 4


@pytest.mark.parametrize("way", ["sync", "async"])
def test_after_an_error_what_had_arrived_is_in_the_cache(served: Server, emulator: Emulator, way: str) -> None:
    emulator.faults = [Blocked(match="number 33")]
    listed = [f"text number {i}" for i in range(40)]
    embedding = DashScopeEmbedding(api_key=KEY, base_url=served.url, embeddings_cache=SimpleKVStore())

    def embed() -> list[list[float]]:
        if way == "sync":
            return embedding.get_text_embedding_batch(listed)
        return asyncio.run(embedding.aget_text_embedding_batch(listed))

    with pytest.raises(BadRequestError) as caught:
        embed()
    assert caught.value.failed == [33]
    assert emulator.billed_texts == 39
    listed[33] = "mended"
    assert embed() == [emulator.dense(text) for text in listed]
    assert emulator.billed_texts == 40
