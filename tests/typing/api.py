"""Read by type checkers, never run: what users write, with the types that they get.

`mypy --strict` and `pyright` must find nothing here.
"""

# pyright: strict

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Settings, VectorStoreIndex
from pydantic import SecretStr
from typing_extensions import assert_type

import dashscope_embeddings as package
from dashscope_embeddings import (
    AuthenticationError,
    Cost,
    DashScopeError,
    Embedding,
    EmbeddingClient,
    Embeddings,
    InvalidInput,
    Price,
    Quota,
    QuotaLimit,
    RateLimitError,
    RequestRecord,
    ServiceError,
    SparseVector,
    TrackedUsage,
    Usage,
    corpus,
    track_usage,
)
from dashscope_embeddings.emulator import Asked, Emulator, faults
from dashscope_embeddings.emulator.http import Server
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.llama_index import DashScopeEmbedding

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings as LangChainEmbeddings
    from llama_index.core.base.embeddings.base import BaseEmbedding


def client_sync() -> None:
    client = EmbeddingClient("text-embedding-v4", api_key="sk-x", dimensions=1024, protocol="native")
    client = EmbeddingClient(api_key=SecretStr("sk-x"), dimension=512, region="ap-southeast-1", workspace="w")
    result = client.embed(["one", "two"], text_type="query", output="dense&sparse", progress=print)
    assert_type(result, Embeddings)
    assert_type(result.dense, list[list[float]])
    assert_type(result.usage, Usage)
    assert_type(result.usage.cost, Cost | None)
    assert_type(result.request_ids, tuple[str, ...])
    quota = client.fetch_quota()
    assert_type(quota, Quota)
    assert_type(quota.requests_per_minute, float | None)
    assert_type(quota.tokens, QuotaLimit | None)
    if result.sparse is not None:
        assert_type(result.sparse[0], SparseVector)
        assert_type(result.sparse[0].as_dict(), dict[int, float])
    client.embed("one text")
    client.embed(text for text in ("any", "iterable"))
    with open("texts.txt", encoding="utf-8") as lines:  # noqa: PTH123 - the vendor's third kind of input
        client.embed(lines)
    assert_type(client.stream(["one"]), Iterator[Embedding])
    for found in client.stream(["one"], output="sparse"):
        assert_type(found.dense, list[float] | None)
        assert_type(found.sparse, SparseVector | None)
    assert_type(client.usage + client.usage, Usage)
    client.close()


async def client_async(source: AsyncIterator[str]) -> None:
    client = EmbeddingClient(base_url="emulator")
    assert_type(await client.aembed(["one"], text_type="document", output="sparse"), Embeddings)
    await client.aembed(source)
    assert_type(client.astream(source), AsyncIterator[Embedding])
    async for found in client.astream(["one"]):
        assert_type(found, Embedding)
    await client.aclose()


def metering(log: list[RequestRecord]) -> None:
    price = Price("CNY", Decimal("0.5"), batch=Decimal("0.25"))
    client = EmbeddingClient(base_url="emulator", price=price, on_request=log.append)
    client = EmbeddingClient(base_url="emulator", on_request=lambda record: print(record.seconds))  # noqa: T201 - as users do
    with track_usage() as tracked, track_usage(everywhere=True):
        client.embed("one text")
    assert_type(tracked, TrackedUsage)
    assert_type(tracked.usage, Usage)
    assert_type((tracked.requests, tracked.texts, tracked.tokens), tuple[int, int, int])
    assert_type(tracked.cost, Cost | None)
    assert_type(price.of(1_000), Cost)
    for record in log:
        assert_type(record.outcome, Literal["answered", "throttled", "refused", "failed"])
        assert_type((record.model, record.tokens, record.attempt), tuple[str, int | None, int])
        assert_type((record.request_id, record.error), tuple[str | None, str | None])
    assert_type(DashScopeEmbeddings(on_request=log.append, price=price).cache_namespace, str)
    assert_type(DashScopeEmbedding(on_request=log.append, price=price).cache_namespace, str)


def langchain() -> None:
    embeddings = DashScopeEmbeddings(
        model="text-embedding-v4",
        dashscope_api_key=SecretStr("sk-x"),
        dimensions=1024,
        instruct="Find the poem",
        batch_size=5,
        max_retries=5,
        timeout=30,
        rate_limiter=InMemoryRateLimiter(requests_per_second=10),
        show_progress_bar=True,
        default_headers={"x-tenant": "42"},
        long_text="truncate",
    )
    as_langchain: LangChainEmbeddings = embeddings
    assert_type(as_langchain.embed_query("a"), list[float])
    assert_type(embeddings.embed_documents(["a"]), list[list[float]])
    assert_type(embeddings.embed_query("a"), list[float])
    assert_type(embeddings.client.embed("a", output="sparse"), Embeddings)
    assert_type(embeddings.usage, Usage)
    assert_type(embeddings.model_copy(update={"dimensions": 512}), DashScopeEmbeddings)
    InMemoryVectorStore(embeddings)


async def langchain_async() -> None:
    embeddings = DashScopeEmbeddings()
    assert_type(await embeddings.aembed_documents(["a"]), list[list[float]])
    assert_type(await embeddings.aembed_query("a"), list[float])


def langchain_as_users_write_it() -> None:
    DashScopeEmbeddings(model="text-embedding-v1", dashscope_api_key="sk-x", max_retries=5)
    DashScopeEmbeddings(api_key="sk-x")
    DashScopeEmbeddings(dimension=512)
    DashScopeEmbeddings(chunk_size=5)
    DashScopeEmbeddings(request_timeout=5)


def llama_index() -> None:
    embedding = DashScopeEmbedding("text-embedding-v2", "document", "sk-x", 25)
    embedding = DashScopeEmbedding(model_name="text-embedding-v4", api_key=SecretStr("sk-x"), dimensions=512)
    embedding = DashScopeEmbedding(model="text-embedding-v4", dimension=512, base_url="emulator")
    as_llama_index: BaseEmbedding = embedding
    assert_type(as_llama_index.get_query_embedding("a"), list[float])
    assert_type(embedding.get_text_embedding_batch(["a"]), list[list[float]])
    assert_type(embedding.client.embed("a"), Embeddings)
    assert_type(embedding.usage, Usage)
    Settings.embed_model = embedding
    VectorStoreIndex([], embed_model=embedding)


async def llama_index_async() -> None:
    embedding = DashScopeEmbedding()
    assert_type(await embedding.aget_text_embedding_batch(["a"]), list[list[float]])
    assert_type(await embedding.aget_query_embedding("a"), list[float])


async def context_managers() -> None:
    with EmbeddingClient(base_url="emulator") as client:
        assert_type(client, EmbeddingClient)
    async with EmbeddingClient(base_url="emulator") as client:
        assert_type(client, EmbeddingClient)


def slips_that_a_type_checker_sees() -> None:
    EmbeddingClient(dimenson=512)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    EmbeddingClient(max_retries="6")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    EmbeddingClient().embed("a", input_type="query")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    DashScopeEmbeddings(model_name="text-embedding-v4")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    DashScopeEmbedding(dashscope_api_key="sk-x")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


def errors(client: EmbeddingClient) -> dict[int, list[float]]:
    try:
        client.embed(["a"])
    except RateLimitError as error:
        assert_type(error.retry_after, float | None)
    except AuthenticationError as error:
        assert_type((error.status, error.code), tuple[int, str | None])
    except (InvalidInput, ServiceError) as error:
        assert_type(error.reasons, dict[int, str])
    except DashScopeError as error:
        assert_type(error.failed, list[int])
        assert_type(error.request_id, str | None)
        return error.partial
    return {}


def emulator() -> None:
    service = Emulator(api_key="sk-x", requests_per_second=10, faults=[faults.Throttle(every=20)])
    with service.serve(latency=0.01) as server:
        assert_type(server, Server)
        EmbeddingClient(base_url=server.url, api_key="sk-x")
    service.faults = [faults.Throttle(times=2)]
    assert_type(service.asked, list[Asked])
    assert_type(service.dense("a"), list[float])
    assert_type(package.__all__, list[str])


def corpora(client: EmbeddingClient) -> None:
    summary = corpus.embed_corpus("docs/", "vectors.parquet", client=client, id_field="id", on_bad_input="skip")
    assert_type(summary, corpus.Summary)
    assert_type(corpus.estimate_corpus(["a.csv", "b.csv"], client=client, format="csv").real_time, Cost | None)
    assert_type(corpus.batch_run(None, "vectors.parquet", client=client, with_text=True), corpus.BatchSummary)
    corpus.embed_corpus("docs/", "vectors.parquet", client=client, text_feild="body")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
