"""A user's rate limiter is asked once for every request, and its wait is nobody's latency and holds no place."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import AsyncCalls, FakeClock, SyncCalls, becomes_true, client_for

from dashscope_embeddings.emulator import Emulator, faults

if TYPE_CHECKING:
    from dashscope_embeddings import EmbeddingClient
    from dashscope_embeddings.usage import RequestRecord

TEXTS = [f"text {number}" for number in range(25)]


class Limiter:
    """Lets requests through once `opened` is set, each 30 s later by a fake clock. As LangChain's."""

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.clock, self.asked = clock or FakeClock(), 0
        self.opened, self.granted_at = threading.Event(), list[float]()

    def acquire(self, **_: Any) -> bool:
        self.asked += 1
        assert self.opened.wait(20)
        return self.grant()

    async def aacquire(self, **_: Any) -> bool:
        self.asked += 1
        assert await asyncio.to_thread(self.opened.wait, 20)
        return self.grant()

    def grant(self) -> bool:
        self.clock.time += 30
        self.granted_at.append(self.clock.time)
        return True


def places(client: EmbeddingClient) -> tuple[int, int]:
    return client._request_context("document", "dense").limiter.in_flight, client._bound.in_flight


@pytest.mark.parametrize("calls", [SyncCalls(), AsyncCalls()])
@pytest.mark.parametrize("texts", [TEXTS[:10], "a single text"], ids=["documents", "a single text"])
def test_its_wait_is_no_latency(calls: Any, texts: Any, emulator: Emulator) -> None:
    emulator.faults = [faults.Throttle(times=1), faults.Status(status=503, after=1, times=2)]
    clock = FakeClock()
    records: list[RequestRecord] = []
    limiter = Limiter(clock)
    limiter.opened.set()
    client = client_for(emulator, clock, rate_limiter=limiter, on_request=records.append, max_concurrency=1)
    calls.embed(client, texts)
    assert limiter.asked == emulator.requests == len(records) == 4
    assert all(record.seconds < 30 for record in records)


@pytest.mark.parametrize("calls", [SyncCalls(), AsyncCalls()])
@pytest.mark.parametrize("texts", [TEXTS[:10], "a single text"], ids=["documents", "a single text"])
def test_it_is_asked_after_a_pause_and_not_before_it(calls: Any, texts: Any) -> None:
    """Else all requests that it lets through during the pause would be sent at its end, faster than its rate."""
    clock = FakeClock()
    limiter, emulator = Limiter(clock), Emulator(faults=[faults.Throttle(times=1, retry_after=20)], clock=clock.now)
    limiter.opened.set()
    calls.embed(client_for(emulator, clock, rate_limiter=limiter), texts)
    assert [asked.time for asked in emulator.asked] == limiter.granted_at == [1_030.0, 1_080.0]


@pytest.mark.parametrize("texts", [TEXTS, "a single text"], ids=["documents", "a single text"])
def test_a_call_that_waits_for_it_holds_no_place(texts: Any, emulator: Emulator) -> None:
    limiter = Limiter()
    client = client_for(emulator, rate_limiter=limiter)
    with ThreadPoolExecutor() as threads:
        call = threads.submit(client.embed, texts)
        assert becomes_true(lambda: limiter.asked > 0)
        assert places(client) == (0, 0)
        limiter.opened.set()
        call.result()
    assert limiter.asked == emulator.requests


@pytest.mark.parametrize("texts", [TEXTS, "a single text"], ids=["documents", "a single text"])
async def test_a_call_that_is_cancelled_while_it_waits_leaves_nothing_behind(texts: Any, emulator: Emulator) -> None:
    limiter = Limiter()
    client = client_for(emulator, rate_limiter=limiter)
    call = asyncio.create_task(client.aembed(texts))
    for _ in range(20):
        await asyncio.sleep(0)
    assert limiter.asked
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert places(client) == (0, 0)
    asked_before = limiter.asked
    limiter.opened.set()
    await client.aembed(texts)
    assert limiter.asked - asked_before == emulator.requests


async def test_texts_that_wait_for_it_share_a_request(emulator: Emulator) -> None:
    limiter = Limiter()
    client = client_for(emulator, rate_limiter=limiter, dimensions=64)
    calls = [asyncio.create_task(client.aembed(text)) for text in TEXTS]
    for _ in range(20):
        await asyncio.sleep(0)
    assert limiter.asked == 1
    calls[0].cancel()  # the caller that asks: another one takes its place
    limiter.opened.set()
    found = await asyncio.gather(*calls[1:])
    assert [result.dense[0] for result in found] == [emulator.dense(text, dimension=64) for text in TEXTS[1:]]
    assert limiter.asked - 1 == emulator.requests == 3


def test_texts_of_threads_that_wait_for_it_share_a_request(emulator: Emulator) -> None:
    limiter = Limiter()
    client = client_for(emulator, rate_limiter=limiter, dimensions=64)
    with ThreadPoolExecutor(len(TEXTS)) as threads:
        calls = [threads.submit(client.embed, text) for text in TEXTS]
        assert becomes_true(lambda: any(len(b._waiting) == len(TEXTS) for b in client._text_batchers.values()))
        limiter.opened.set()
        found = [call.result() for call in calls]
    assert [result.dense[0] for result in found] == [emulator.dense(text, dimension=64) for text in TEXTS]
    assert limiter.asked == emulator.requests == 3
