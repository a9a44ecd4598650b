"""Concurrent callers that want components of one query: threads, tasks, loops and forked processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import KEY, client_for

from dashscope_embeddings import ConnectionFailed, DashScopeError, EmbeddingClient
from dashscope_embeddings._adapters.flows import arun, run
from dashscope_embeddings._adapters.hybrid import HybridEmbedder
from dashscope_embeddings._adapters.hybrid_cache import HybridCache
from dashscope_embeddings.emulator import Emulator, faults

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

QUESTION = "which words are rare?"


def asked(emulator: Emulator) -> list[tuple[str | None, str | None, int]]:
    return [(a.text_type, a.output_type, len(a.texts)) for a in emulator.asked]


def dense(hybrid: HybridEmbedder) -> Any:
    return run(hybrid.component_flow("dense", [QUESTION], "query"))


def sparse(hybrid: HybridEmbedder) -> Any:
    return run(hybrid.component_flow("sparse", [QUESTION], "query"))


def adense(hybrid: HybridEmbedder) -> Any:
    return arun(hybrid.component_flow("dense", [QUESTION], "query"))


def asparse(hybrid: HybridEmbedder) -> Any:
    return arun(hybrid.component_flow("sparse", [QUESTION], "query"))


def joined(client: EmbeddingClient) -> int:
    """Callers that joined a request in flight for both components."""
    batcher = client._text_batchers["query", "dense&sparse"]
    return sum(len(call.joined) for call in tuple(batcher._in_flight))


def wait_for_joined(client: EmbeddingClient, callers: int) -> None:
    until = time.monotonic() + 10
    while joined(client) < callers:
        assert time.monotonic() < until
        time.sleep(0.001)


def patient(emulator: Emulator, callers: int) -> tuple[HybridEmbedder, HybridCache]:
    """Over a service that answers its first request when so many callers wait for it."""
    cache, waits = HybridCache(), iter([callers])

    def reply(request: httpx.Request) -> httpx.Response:
        wait_for_joined(client, next(waits, 1) - 1)
        return emulator(request)

    async def areply(request: httpx.Request) -> httpx.Response:
        return await asyncio.to_thread(reply, request)

    client = EmbeddingClient(
        api_key=KEY,
        max_retries=0,
        http_client=httpx.Client(transport=httpx.MockTransport(reply)),
        http_async_client=httpx.AsyncClient(transport=httpx.MockTransport(areply)),
    )
    return HybridEmbedder(client, cache), cache


def in_thread(call: Callable[[], Any]) -> Future[Any]:
    """On a daemon thread, so that a call that waits for ever fails its test instead of stopping all."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except DashScopeError as error:
            result.set_result(error)

    threading.Thread(target=run, daemon=True).start()
    return result


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """Results, or the errors, of calls that are under way together."""
    return [result.result(20) for result in [in_thread(call) for call in calls]]


async def in_tasks(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """The same for tasks of one loop."""
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)


def right(emulator: Emulator, found: Sequence[Any]) -> None:
    """Whether these are the dense and the sparse vector of the question."""
    assert found[0] == [emulator.dense(QUESTION, text_type="query")]
    assert [row.indices for row in found[1]] == [
        sorted(token.index for token in emulator.sparse(QUESTION, text_type="query"))
    ]


@pytest.mark.parametrize("mix", ["threads", "tasks", "a task and a thread"])
def test_two_that_ask_for_a_query_at_once_share_one_request(emulator: Emulator, mix: str) -> None:
    hybrid, cache = patient(emulator, 2)

    async def tasks() -> list[Any]:
        return await in_tasks(adense(hybrid), asparse(hybrid) if mix == "tasks" else asyncio.to_thread(sparse, hybrid))

    found = in_threads(lambda: dense(hybrid), lambda: sparse(hybrid)) if mix == "threads" else asyncio.run(tasks())
    assert asked(emulator) == [("query", "dense&sparse", 1)]
    right(emulator, found)
    assert cache.size == 0


async def test_two_executor_threads_one_after_the_other_share_one_request(emulator: Emulator) -> None:
    hybrid = HybridEmbedder(client_for(emulator), HybridCache())
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        loop = asyncio.get_running_loop()
        found = [await loop.run_in_executor(one, dense, hybrid), await loop.run_in_executor(other, sparse, hybrid)]
    assert (emulator.requests, hybrid.cache and hybrid.cache.size) == (1, 0)
    right(emulator, found)


def test_five_callers_of_the_same_component_share_one_request_but_no_list(emulator: Emulator) -> None:
    hybrid, cache = patient(emulator, 5)
    found = in_threads(*[lambda: dense(hybrid)[0]] * 5)
    assert emulator.requests == 1
    assert found == [emulator.dense(QUESTION, text_type="query")] * 5
    assert len({id(vector) for vector in found}) == 5
    for _ in range(5):
        sparse(hybrid)
    assert (emulator.requests, cache.size) == (1, 0)


@pytest.mark.parametrize("kind", ["threads", "tasks"])
def test_a_waiter_for_a_failed_request_sends_its_own(emulator: Emulator, kind: str) -> None:
    emulator.faults = [faults.Drop()]
    hybrid, _ = patient(emulator, 2)

    async def tasks() -> list[Any]:
        return await in_tasks(adense(hybrid), adense(hybrid))

    found = in_threads(*[lambda: dense(hybrid)] * 2) if kind == "threads" else asyncio.run(tasks())
    [_failed] = [result for result in found if isinstance(result, ConnectionFailed)]
    assert [emulator.dense(QUESTION, text_type="query")] in found
    assert (emulator.requests, emulator.billed_requests) == (2, 1)


class Held:
    """A client whose first asynchronous request stays under way until it is let go; later ones pass."""

    def __init__(self, emulator: Emulator) -> None:
        self.under_way, self.go, self.calls = asyncio.Event(), asyncio.Event(), 0
        self.cache, self._emulator = HybridCache(), emulator
        client = EmbeddingClient(
            api_key=KEY,
            http_client=httpx.Client(transport=emulator.transport()),
            http_async_client=httpx.AsyncClient(transport=httpx.MockTransport(self._reply)),
        )
        self.hybrid = HybridEmbedder(client, self.cache)

    async def _reply(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        self.under_way.set()
        if self.calls == 1:
            await self.go.wait()
        return self._emulator(request)

    async def two(self) -> tuple[asyncio.Task[Any], asyncio.Task[Any]]:
        """One that leads and one that waits for it."""
        leader = asyncio.create_task(adense(self.hybrid))
        await self.under_way.wait()
        waiter = asyncio.create_task(asparse(self.hybrid))
        await asyncio.to_thread(wait_for_joined, self.hybrid.client, 1)
        return leader, waiter


async def test_when_the_leading_task_is_cancelled_the_waiting_one_asks(emulator: Emulator) -> None:
    held = Held(emulator)
    leader, waiter = await held.two()
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    [row] = await asyncio.wait_for(waiter, 20)
    assert (held.calls, emulator.requests) == (2, 1)
    assert row.indices == sorted(token.index for token in emulator.sparse(QUESTION, text_type="query"))


async def test_a_cancelled_waiter_takes_only_itself_away(emulator: Emulator) -> None:
    held = Held(emulator)
    leader, waiter = await held.two()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    held.go.set()
    assert await leader == [emulator.dense(QUESTION, text_type="query")]
    assert (held.calls, emulator.requests) == (1, 1)


def test_a_sync_call_on_the_thread_of_a_loop_does_not_wait_for_that_loops_request(emulator: Emulator) -> None:
    async def run() -> list[Any]:
        held = Held(emulator)
        leader = asyncio.create_task(adense(held.hybrid))
        await held.under_way.wait()
        found = sparse(held.hybrid)
        assert asked(emulator) == [("query", "dense&sparse", 1)]
        held.go.set()
        vectors = await leader
        assert held.cache.size == 0
        return [vectors, found]

    right(emulator, in_thread(lambda: asyncio.run(run())).result(20))
    assert emulator.requests == 2


def test_the_request_of_a_loop_that_stopped_is_sent_again(emulator: Emulator) -> None:
    stopped = asyncio.new_event_loop()
    held = Held(emulator)
    leader = stopped.create_task(adense(held.hybrid))
    stopped.run_until_complete(held.under_way.wait())
    [found] = in_thread(lambda: sparse(held.hybrid)).result(20)
    assert found.indices == sorted(token.index for token in emulator.sparse(QUESTION, text_type="query"))
    assert emulator.requests == 1
    leader.cancel()
    stopped.run_until_complete(asyncio.wait([leader]))
    stopped.run_until_complete(stopped.shutdown_asyncgens())
    stopped.close()


FORK = f"""
import itertools, os, signal, sys, threading
from dashscope_embeddings import EmbeddingClient
from dashscope_embeddings.emulator import Emulator
from dashscope_embeddings._adapters.flows import run
from dashscope_embeddings._adapters.hybrid import HybridEmbedder
from dashscope_embeddings._adapters.hybrid_cache import HybridCache

under_way, go, count = threading.Event(), threading.Event(), itertools.count()

class Held(Emulator):
    def answer(self, request):
        if next(count) == 0:
            under_way.set()
            assert go.wait(20)
        return super().answer(request)

emulator, question = Held(), {QUESTION!r}
with emulator.serve() as server:
    hybrid = HybridEmbedder(EmbeddingClient(api_key={KEY!r}, base_url=server.url), HybridCache())
    leader = threading.Thread(target=lambda: run(hybrid.component_flow("dense", [question], "query")))
    leader.start()
    assert under_way.wait(20)
    with hybrid.cache._lock:  # as if a thread of the parent were inside the cache
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        dense = run(hybrid.component_flow("dense", [question], "query"))
        [sparse] = run(hybrid.component_flow("sparse", [question], "query"))
        right = dense == [emulator.dense(question, text_type="query")] and len(sparse) > 0
        os._exit(0 if right else 1)
    print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), emulator.requests)
    go.set()
    leader.join()
    run(hybrid.component_flow("sparse", [question], "query"))
    print("both", emulator.requests, emulator.billed_texts, hybrid.cache.size)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_sends_its_own_while_its_parents_request_is_in_flight() -> None:
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", FORK], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.splitlines() == ["child 0 1", "both 2 2 0"], done.stderr
