"""How many requests are in flight at once: counted by a server on loopback, over all threads and event loops."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import KEY, becomes_true
from raw_server import ReceivedRequest, client_for_url, good_reply, reply_content, serve_raw, vector_of

from dashscope_embeddings import EmbeddingClient

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from raw_server import RawServer


class Gate:
    """Answers a request when it is opened; counts those that wait for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.waiting = self.peak = 0
        self.is_open = False

    def __call__(self, asked: ReceivedRequest, _: socket.socket) -> bytes:
        with self._changed:
            self.waiting += 1
            self.peak = max(self.peak, self.waiting)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.is_open, 30)
            self.waiting -= 1
        return good_reply(asked, f"id-{asked.number}")

    def wait_until(self, requests: int) -> None:
        """Returns when so many requests wait here."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.waiting >= requests, 20)

    def open_at(self, requests: int) -> None:
        """Opens when so many requests wait here."""
        self.wait_until(requests)
        self.open()

    def open(self) -> None:
        """Answers those that wait, and later ones at once."""
        with self._changed:
            self.is_open = True
            self._changed.notify_all()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def server(gate: Gate) -> Iterator[RawServer]:
    with serve_raw(gate) as server:
        yield server
        gate.open()


def in_flight(client: EmbeddingClient) -> int:
    return client._request_context("document", "dense").limiter.in_flight


def others_wait(client: EmbeddingClient) -> bool:
    """Whether the limiter has refused a request, which waits for one in flight to end."""
    head = client._request_context("document", "dense").limiter._next_waiting
    return bool(client._bound.waiting) or (head is not None and head.needs_slot)


def several_loops(client: EmbeddingClient, texts: list[list[str]]) -> list[Callable[[], Any]]:
    return [lambda part=part: asyncio.run(client.aembed(part)) for part in texts]  # type: ignore[misc]


def several_threads(client: EmbeddingClient, texts: list[list[str]]) -> list[Callable[[], Any]]:
    return [lambda part=part: client.embed(part) for part in texts]  # type: ignore[misc]


def test_a_number_bounds_one_clients_requests_over_all_threads_and_loops(server: RawServer, gate: Gate) -> None:
    with client_for_url(server.url, max_concurrency=3, batch_size=1) as client:
        jobs = [[f"{job} {i}" for i in range(8)] for job in range(4)]
        singles = several_threads(client, [[f"single {i}"] for i in range(4)])
        calls = [*several_threads(client, jobs[:2]), *several_loops(client, jobs[2:]), *singles]
        with ThreadPoolExecutor(len(calls)) as pool:
            running = [pool.submit(call) for call in calls]
            gate.wait_until(3)
            assert becomes_true(lambda: others_wait(client))
            assert gate.waiting == 3
            gate.open()
            found = [job.result(20) for job in running]
        assert gate.peak == 3
        assert [one.dense for one in found[:4]] == [[vector_of(text) for text in job] for job in jobs]
        assert in_flight(client) == 0


@pytest.mark.parametrize("role", ["query", "document"])
def test_a_number_bounds_single_texts_that_share_requests(server: RawServer, gate: Gate, role: Any) -> None:
    with client_for_url(server.url, max_concurrency=2) as client, ThreadPoolExecutor(24) as pool:
        running = [pool.submit(client.embed, f"text {i}", text_type=role) for i in range(24)]
        gate.wait_until(2)
        assert becomes_true(lambda: others_wait(client))
        assert gate.waiting == 2
        gate.open()
        assert [job.result(20).dense[0] for job in running] == [vector_of(f"text {i}") for i in range(24)]
        assert gate.peak == 2
        assert len(server.requests) < 24


def test_two_clients_have_a_bound_each(server: RawServer, gate: Gate) -> None:
    with client_for_url(server.url, max_concurrency=1) as one, client_for_url(server.url, max_concurrency=2) as other:
        with ThreadPoolExecutor(6) as pool:
            running = [pool.submit(one.embed, [f"one {i}" for i in range(30)])]
            running += [pool.submit(other.embed, [f"other {i}" for i in range(30)])]
            gate.wait_until(3)
            gate.open()
            for job in running:
                job.result(20)
        assert gate.peak == 3
        assert in_flight(one) == 0


def test_without_a_number_sixteen_are_in_flight_at_first(server: RawServer, gate: Gate) -> None:
    with client_for_url(server.url, batch_size=1) as client, ThreadPoolExecutor(1) as pool:
        job = pool.submit(client.embed, [f"text {i}" for i in range(60)])
        gate.wait_until(16)
        assert becomes_true(lambda: others_wait(client))
        assert gate.waiting == 16
        gate.open()
        assert len(job.result(20).dense) == 60


@pytest.mark.parametrize("extra", [{"max_concurrency": 2}, {}], ids=["a number", "found"])
def test_a_sync_call_on_a_loops_thread_does_not_wait_for_that_loops_requests(
    server: RawServer, gate: Gate, extra: dict[str, Any]
) -> None:
    """They cannot end before it: it keeps their loop from running."""
    with client_for_url(server.url, batch_size=1, **extra) as client:
        held = extra.get("max_concurrency", 16)

        async def call() -> list[list[float]]:
            job = asyncio.create_task(client.aembed([f"text {i}" for i in range(60)]))
            await asyncio.to_thread(gate.wait_until, held)
            threading.Thread(target=gate.open_at, args=(held + 1,)).start()
            own = client.embed(["sync"]).dense + client.embed([f"sync {i}" for i in range(4)]).dense
            await job
            await client.aclose()
            return own

        found = asyncio.run(call())
        assert found == [vector_of(text) for text in ["sync", *(f"sync {i}" for i in range(4))]]
        assert in_flight(client) == 0


@pytest.mark.parametrize("text", ["text", ["text", "other"]], ids=["single", "job"])
def test_requests_of_a_stopped_loop_hold_no_place(server: RawServer, gate: Gate, text: Any) -> None:
    with client_for_url(server.url, max_concurrency=1) as client:
        loop = asyncio.new_event_loop()
        left = loop.create_task(client.aembed(["held", "by a loop"]))
        loop.run_until_complete(asyncio.to_thread(gate.wait_until, 1))  # and then it stands still
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(client.embed, text)
            gate.wait_until(2)
            gate.open()
            assert job.result(20).dense[0] == vector_of("text")
        left.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(left)
        loop.run_until_complete(client.aclose())
        loop.close()
        assert in_flight(client) == 0


async def test_cancelled_requests_leave_their_places(server: RawServer, gate: Gate) -> None:
    with client_for_url(server.url, max_concurrency=2, batch_size=1) as client:
        for number in range(3):
            task = asyncio.create_task(client.aembed([f"text {i}" for i in range(8)]))
            await asyncio.to_thread(gate.wait_until, 2 * number + 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert in_flight(client) == 0
        gate.open()
        assert (await client.aembed(["after"])).dense == [vector_of("after")]
        await client.aclose()


def test_an_error_ends_the_waits_of_its_job_at_once(gate: Gate) -> None:
    """What waits for a place when the job is aborted is not sent."""

    def handle(asked: ReceivedRequest, connection: socket.socket) -> bytes:
        good = gate(asked, connection)
        return b"HTTP/1.1 401 X\r\ncontent-length: 2\r\n\r\n{}" if asked.texts == ["bad"] else good

    with serve_raw(handle) as server, client_for_url(server.url, max_concurrency=1, batch_size=1) as client:
        with ThreadPoolExecutor(2) as pool:
            job = pool.submit(client.embed, ["bad", *(f"text {i}" for i in range(9))])
            gate.wait_until(1)
            gate.open()
            with pytest.raises(Exception, match="401"):
                job.result(20)
        assert len(server.requests) == 1
        assert in_flight(client) == 0


async def test_a_backlog_of_replies_to_documents_delays_no_query() -> None:
    """All replies come in the same turn of the loop, those to documents first; of these it parses one per turn."""
    documents_came, all_came, turn, parsed = asyncio.Event(), asyncio.Event(), 0, []

    async def answer(request: httpx.Request) -> httpx.Response:
        received = ReceivedRequest(len(asked) + 1, 1, "", request.content)
        asked.append(received)
        if len(asked) >= 12:
            (documents_came if len(asked) == 12 else all_came).set()
        await all_came.wait()
        return httpx.Response(200, json=reply_content(received))

    def count_turns() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(count_turns)

    asked: list[ReceivedRequest] = []
    loop = asyncio.get_running_loop()
    loop.call_soon(count_turns)
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        client = EmbeddingClient(
            api_key=KEY,
            http_async_client=http,
            dimensions=64,
            batch_size=1,
            on_request=lambda record: parsed.append((turn, record.text_type)),
        )
        indexing = asyncio.create_task(client.aembed([f"text {i}" for i in range(12)]))
        await documents_came.wait()
        await client.aembed("a query", text_type="query")
        await indexing
    turns = [turn for turn, role in parsed if role == "document"]
    assert len(turns) == len(set(turns)) == 12
    assert "query" in {role for _, role in parsed[:4]}, parsed
