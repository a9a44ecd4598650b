"""Usage wherever work happens: sums over any code, a record for every request, own prices."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import pickle
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import KEY, FakeClock, client_for
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined] # by re-export
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent  # noqa: TC002 - pydantic reads it at run time

from dashscope_embeddings import (
    BadReply,
    Cost,
    DashScopeError,
    EmbeddingClient,
    Price,
    RequestRecord,
    track_usage,
)
from dashscope_embeddings.emulator.faults import (
    Drop,
    Garbage,
    NotFinite,
    NullEmbedding,
    Status,
    Throttle,
    WrongCount,
    WrongWidth,
)
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.llama_index import DashScopeEmbedding, DashScopeSparseEmbedding
from dashscope_embeddings.llama_index.usage_event import DashScopeUsageEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

TEXTS = [f"text number {i}" for i in range(25)]


# --- sums over any code ------------------------------------------------------------------------------------


def test_a_block_sums_up_what_the_service_billed(emulator: Emulator) -> None:
    client = client_for(emulator)
    client.embed("before")
    before = emulator.billed_tokens
    with track_usage() as usage:
        client.embed(TEXTS)
        with track_usage() as inner:
            client.embed("a query", text_type="query")
        assert (usage.requests, inner.requests) == (4, 1)
    client.embed("after")
    assert (usage.requests, usage.texts) == (4, 26)
    assert 0 < usage.tokens < emulator.billed_tokens - before
    assert usage.cost == Cost(Decimal("0.5") * usage.tokens / 1_000_000, "CNY") or usage.cost is None


def test_a_failed_call_counts_what_was_paid_before_it_failed(emulator: Emulator) -> None:
    client = client_for(emulator, max_concurrency=1, max_retries=0)
    emulator.faults = [Status(status=500, after=1)]
    with track_usage() as usage, pytest.raises(DashScopeError):
        client.embed(TEXTS)
    assert usage.texts == emulator.billed_texts == 10


@pytest.mark.parametrize("max_retries", [0, 6])
@pytest.mark.parametrize("fault", [WrongWidth, WrongCount, NotFinite, NullEmbedding])
def test_a_broken_reply_that_states_its_tokens_is_counted(fault: Any, max_retries: int, emulator: Emulator) -> None:
    """Whether the texts are asked for again, or the call fails."""
    emulator.faults = [fault(times=1)]
    records: list[RequestRecord] = []
    client = client_for(emulator, max_retries=max_retries, on_request=records.append)
    with track_usage() as usage, pytest.raises(BadReply) if max_retries == 0 else contextlib.nullcontext():
        client.embed(TEXTS[:10])
    assert (usage.requests, usage.texts, usage.tokens) == (
        emulator.requests,
        emulator.billed_texts,
        emulator.billed_tokens,
    )
    assert client.usage == usage.usage
    assert [r.tokens for r in records] == [asked.tokens for asked in emulator.asked]
    assert [r.outcome for r in records] == ["failed", "answered"][: emulator.requests]


def test_a_broken_reply_to_a_query_that_is_throttled_next_is_counted(emulator: Emulator) -> None:
    emulator.faults = [WrongWidth(times=1), Throttle(times=1)]
    usage = client_for(emulator).embed("a query", text_type="query").usage
    assert [asked.status for asked in emulator.asked] == [200, 429, 200]
    assert (usage.requests, usage.texts, usage.tokens) == (2, emulator.billed_texts, emulator.billed_tokens)


def test_a_broken_reply_that_states_no_tokens_is_not_counted(emulator: Emulator) -> None:
    emulator.faults = [Garbage(times=1)]
    usage = client_for(emulator).embed(TEXTS[:5]).usage
    assert (usage.requests, usage.texts) == (1, 5)
    assert usage.tokens * 2 == emulator.billed_tokens


def test_tasks_belong_to_the_block_in_which_they_were_started(emulator: Emulator) -> None:
    client = client_for(emulator)

    async def counted(texts: list[str]) -> int:
        with track_usage() as usage:
            await asyncio.gather(*(client.aembed(text) for text in texts))
        return usage.texts

    async def both() -> tuple[int, int]:
        first, second = await asyncio.gather(counted(TEXTS[:3]), counted(TEXTS[3:8]))
        return first, second

    assert asyncio.run(both()) == (3, 5)


def test_a_thread_of_ones_own_needs_the_context_or_everywhere(emulator: Emulator) -> None:
    client = client_for(emulator)
    with track_usage() as here, track_usage(everywhere=True) as everywhere, ThreadPoolExecutor(2) as pool:
        pool.submit(client.embed, "without a context").result()
        pool.submit(contextvars.copy_context().run, client.embed, "with it").result()
    assert (here.texts, everywhere.texts) == (1, 2)
    client.embed("afterwards")
    assert everywhere.texts == 2


def langchain_threads(embeddings: DashScopeEmbeddings) -> int:
    step = RunnableLambda(embeddings.embed_query)
    RunnableParallel(a=step, b=RunnableLambda(lambda text: embeddings.embed_query(f"{text}!"))).invoke("a question")
    step.batch(["one", "two", "three"])
    return 5


def langchain_async(embeddings: DashScopeEmbeddings) -> int:
    async def run() -> None:
        store = await InMemoryVectorStore.afrom_texts(TEXTS, embeddings)
        await asyncio.gather(*(store.asimilarity_search(f"question {i}") for i in range(3)))

    asyncio.run(run())
    return 28


@pytest.mark.parametrize("code", [langchain_threads, langchain_async])
def test_langchains_threads_and_tasks_are_counted(code: Callable[[DashScopeEmbeddings], int]) -> None:
    embeddings = DashScopeEmbeddings(base_url="emulator")
    with track_usage() as usage:
        texts = code(embeddings)
    assert usage.texts == texts == embeddings.usage.texts


# --- a record for every request ----------------------------------------------------------------------------


def test_the_hook_gets_every_request(emulator: Emulator) -> None:
    records: list[RequestRecord] = []
    emulator.faults = [Throttle(times=1), Status(status=500, after=1)]
    client = client_for(emulator, max_concurrency=1, on_request=records.append)
    client.embed(TEXTS[:12], text_type="document")
    client.embed("a query", text_type="query")
    summary = [(r.text_type, r.texts, r.attempt, r.outcome) for r in records]
    assert summary == [
        ("document", 10, 1, "throttled"),
        ("document", 10, 2, "failed"),
        ("document", 10, 3, "answered"),
        ("document", 2, 1, "answered"),
        ("query", 1, 1, "answered"),
    ]
    assert [r.request_id for r in records] == [asked.request_id for asked in emulator.asked]
    assert [r.tokens for r in records] == [asked.tokens for asked in emulator.asked]
    assert {r.model for r in records} == {"text-embedding-v4"}
    assert [r.error is None for r in records] == [False, False, True, True, True]
    assert all(r.seconds >= 0 for r in records)
    with pytest.raises(FrozenInstanceError):
        records[0].texts = 2  # type: ignore[misc]
    assert KEY not in repr(records)
    assert "a query" not in repr(records)


def test_a_hook_that_fails_costs_no_vectors(emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    def hook(_: RequestRecord) -> None:
        raise ZeroDivisionError

    client = client_for(emulator, on_request=hook)
    assert client.embed("one").dense == [emulator.dense("one")]
    assert "on_request failed" in caplog.text


def test_both_adapters_take_the_hook_and_leave_it_behind_when_they_travel(served: Server) -> None:
    records: list[RequestRecord] = []
    lock = threading.Lock()  # no process can be sent one

    def hook(record: RequestRecord) -> None:
        with lock:
            records.append(record)

    made: list[Any] = [
        DashScopeEmbeddings(api_key=KEY, base_url=served.url, on_request=hook),
        DashScopeEmbedding(api_key=KEY, base_url=served.url, on_request=hook),
    ]
    made[0].embed_query("one")
    made[1].get_query_embedding("two")
    assert len(records) == 2
    copies = [pickle.loads(pickle.dumps(adapter)) for adapter in made]  # noqa: S301 - our own
    copies[0].embed_query("three")
    copies[1].get_query_embedding("four")
    assert len(records) == 2
    assert made[0].on_request is hook


# --- prices ------------------------------------------------------------------------------------------------


def test_a_price_of_ones_own_replaces_the_list_price(emulator: Emulator) -> None:
    price = Price("EUR", Decimal(2))
    usage = client_for(emulator, price=price).embed(TEXTS).usage
    assert usage.cost == Cost(Decimal(2) * usage.tokens / 1_000_000, "EUR")
    embeddings = DashScopeEmbeddings(base_url="emulator", price=price)
    embeddings.embed_query("one")
    assert embeddings.usage.cost is not None
    assert embeddings.usage.cost.currency == "EUR"


def test_a_price_that_is_not_known_says_so(emulator: Emulator) -> None:
    with pytest.warns(UserWarning, match="not in the catalogue|unknown|not known"):
        client = EmbeddingClient("some-new-model", api_key=KEY, region="cn-beijing")
    assert client.settings.price is None
    usage = client_for(emulator, base_url="http://127.0.0.1:1").embed("one").usage
    assert usage.cost is None
    assert "cost unknown" in str(usage)


# --- LlamaIndex's events -----------------------------------------------------------------------------------


class Listening(BaseEventHandler):
    """Collects usage events."""

    heard: list[DashScopeUsageEvent]

    @classmethod
    def class_name(cls) -> str:
        return "Listening"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        if isinstance(event, DashScopeUsageEvent):
            self.heard.append(event)


@pytest.fixture
def listening() -> Iterator[Listening]:
    handler = Listening(heard=[])
    root = get_dispatcher()
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)


def test_llama_indexs_handlers_hear_what_each_call_was_billed(listening: Listening) -> None:
    embed_model = DashScopeEmbedding(base_url="emulator")
    documents = [Document(text=text) for text in TEXTS]
    index = VectorStoreIndex.from_documents(documents, embed_model=embed_model)
    index.as_retriever().retrieve("a question")
    asyncio.run(embed_model.aget_text_embedding_batch(TEXTS[:12]))
    summary = [(event.model_name, event.text_type, event.requests, event.texts) for event in listening.heard]
    assert summary == [
        ("text-embedding-v4", "document", 3, 25),
        ("text-embedding-v4", "query", 1, 1),
        ("text-embedding-v4", "document", 2, 12),
    ]
    assert sum(event.tokens for event in listening.heard) == embed_model.usage.tokens
    assert {event.currency for event in listening.heard} == {"CNY"}
    assert all(event.cost and event.span_id for event in listening.heard)
    listening.heard.clear()
    sparse = DashScopeSparseEmbedding(dense=embed_model)
    embed_model.get_text_embedding_batch(TEXTS)
    sparse.encode_documents(TEXTS)
    assert [event.texts for event in listening.heard] == [25], "a pair is reported once"


def test_a_host_that_is_not_reached_is_warned_of_once_a_minute(
    emulator: Emulator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    jitter = random.uniform
    # Five failures are an outage if they take two seconds; with pauses of any length they seldom take less.
    monkeypatch.setattr(random, "uniform", lambda low, high: jitter((low + high) / 2.0, high))
    clock = FakeClock()
    client = client_for(emulator, clock, max_concurrency=1)
    for _ in range(2):
        emulator.faults = [Drop(how="unreachable", times=5)]
        with caplog.at_level(logging.WARNING):
            client.embed([f"text {number}" for number in range(25)])
        (warning,) = caplog.messages
        assert re.match(r"attempt [2-5] of 7 failed, next in ", warning)
        assert client.settings.address.host in warning
        caplog.clear()
        clock.time += 61
    emulator.faults = [Drop(every=2)]
    with caplog.at_level(logging.WARNING):
        client.embed([f"text {number}" for number in range(100)])
    assert not caplog.messages  # most requests are answered
