"""Calls with one text that wait at the same time share requests, and each gets what it would have got alone."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from typing import TYPE_CHECKING, Any, get_args

import httpx
import pytest
from client_helpers import KEY, AsyncCalls, FakeClock, SyncCalls, client_for

from dashscope_embeddings import BadRequestError, EmbeddingClient, track_usage
from dashscope_embeddings._core.text_batcher import SingleText
from dashscope_embeddings._runtime import flow_runs
from dashscope_embeddings.emulator import Emulator, faults
from dashscope_embeddings.vectors import TextType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from dashscope_embeddings import Embeddings

TEXTS = [f"document {i}" for i in range(64)]
WIDTH = 64


class Gate:
    """Holds one request, by its number, until it is opened."""

    def __init__(self, emulator: Emulator, number: int = 1) -> None:
        self.emulator, self.number, self.requests = emulator, number, 0
        self.reached, self.opened = asyncio.Event(), asyncio.Event()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if self.requests == self.number:
            self.reached.set()
            await self.opened.wait()
        return self.emulator(request)


@contextlib.asynccontextmanager
async def client_behind(gate: Gate, **settings: Any) -> AsyncIterator[EmbeddingClient]:
    """A client with one request at a time."""
    async with httpx.AsyncClient(transport=httpx.MockTransport(gate)) as http:
        yield EmbeddingClient(api_key=KEY, http_async_client=http, max_concurrency=1, dimensions=WIDTH, **settings)


def right(emulator: Emulator, texts: Sequence[str], role: Any = "document") -> list[list[float]]:
    return [emulator.dense(text, text_type=role, dimension=WIDTH) for text in texts]


def sizes(emulator: Emulator) -> list[int]:
    return [len(asked.texts) for asked in emulator.asked]


def dense_of(results: Sequence[Embeddings | BaseException]) -> list[list[float]]:
    return [result.dense[0] for result in results if not isinstance(result, BaseException)]


# --- how many requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["query", "document"])
async def test_two_hundred_callers_cost_a_fraction_of_two_hundred_requests(role: Any) -> None:
    """With ten texts a request, 20 suffice. The rest is for those sent before others wait, and for throttled ones."""
    emulator = Emulator(requests_per_second=30)
    texts = [f"text {i}" for i in range(200)]
    with emulator.serve() as server:
        client = EmbeddingClient(api_key=KEY, base_url=server.url, dimensions=WIDTH)
        results = await asyncio.gather(*(client.aembed([text], text_type=role) for text in texts))
        await client.aclose()
    assert dense_of(results) == right(emulator, texts, role)
    assert math.ceil(len(texts) / 10) <= emulator.requests <= 50
    assert emulator.billed_texts == client.usage.texts == 200
    assert all(result.usage.texts == 1 for result in results)
    assert sum(result.usage.tokens for result in results) == client.usage.tokens == emulator.billed_tokens
    answered = [asked for asked in emulator.asked if asked.status == 200]
    assert sum(result.usage.requests for result in results) == client.usage.requests == len(answered)


@pytest.mark.parametrize("way", [SyncCalls(), AsyncCalls()], ids=["sync", "async"])
def test_a_lone_document_costs_one_request_and_waits_for_nothing(way: SyncCalls | AsyncCalls) -> None:
    emulator, clock = Emulator(), FakeClock()
    client = client_for(emulator, clock, dimensions=WIDTH)
    for n in (1, 2, 3):
        assert way.embed(client, [f"text {n}"]).dense == right(emulator, [f"text {n}"])
        assert sizes(emulator) == [1] * n
    assert clock.waits == []


async def test_batch_size_and_tokens_per_request_bound_what_is_shared(emulator: Emulator) -> None:
    gate = Gate(emulator)
    long = [f"{'word ' * 400}{i}" for i in range(5)]
    for settings, texts, expected in (
        ({"batch_size": 3}, TEXTS[:8], [1, 3, 3, 1]),
        ({"batch_size": 1}, TEXTS[:4], [1, 1, 1, 1]),
        ({"tokens_per_request": 1_200}, long, [1, 2, 2]),  # each has about 500
    ):
        emulator.clear()
        gate.__init__(emulator)  # type: ignore[misc] # as new
        async with client_behind(gate, **settings) as client:
            calls = [asyncio.create_task(client.aembed([text])) for text in texts]
            await gate.reached.wait()
            gate.opened.set()
            assert dense_of(await asyncio.gather(*calls)) == right(emulator, texts)
        assert sizes(emulator) == expected


async def test_a_long_text_that_is_cut_and_a_stream_have_requests_of_their_own(emulator: Emulator) -> None:
    gate = Gate(emulator)
    text = "A sentence of a long document. " * 10_000

    async def streamed(client: EmbeddingClient, text: str) -> list[float]:
        (found,) = [found async for found in client.astream([text])]
        return found.dense or []

    async with client_behind(gate, long_text="average") as client:
        first = asyncio.create_task(client.aembed(TEXTS[:1]))
        await gate.reached.wait()
        others = [asyncio.create_task(client.aembed([other])) for other in TEXTS[1:4]]
        average = asyncio.create_task(client.aembed([text]))
        streams = [asyncio.create_task(streamed(client, other)) for other in TEXTS[4:6]]
        await asyncio.sleep(0)
        gate.opened.set()
        assert dense_of(await asyncio.gather(first, *others)) == right(emulator, TEXTS[:4])
        assert await asyncio.gather(*streams) == right(emulator, TEXTS[4:6])
        assert len((await average).dense[0]) == WIDTH
    requests = [asked.texts for asked in emulator.asked]
    assert tuple(TEXTS[1:4]) in requests
    assert (TEXTS[4],) in requests
    assert (TEXTS[5],) in requests
    assert all(len(set(texts) & {*TEXTS}) in {0, len(texts)} for texts in requests)


# --- whose request it is -----------------------------------------------------------------------------------


async def test_roles_and_outputs_never_share_a_request(emulator: Emulator) -> None:
    gate = Gate(emulator)
    kinds = [(role, output) for role in ("query", "document") for output in ("dense", "sparse", "dense&sparse")]
    async with client_behind(gate) as client:
        calls = [
            asyncio.create_task(client.aembed([f"{role} {output} {i}"], text_type=role, output=output))  # type: ignore[arg-type]
            for i in range(12)
            for role, output in kinds
        ]
        await gate.reached.wait()
        gate.opened.set()
        results = await asyncio.gather(*calls)
    for asked in emulator.asked:
        assert {tuple(text.split()[:2]) for text in asked.texts} == {(asked.text_type, asked.output_type or "dense")}
    assert emulator.requests <= 3 * len(kinds)
    for result, (role, output) in zip(results, kinds * 12, strict=True):
        assert bool(result.dense) == ("dense" in output), (role, output)
        assert bool(result.sparse) == ("sparse" in output), (role, output)


async def test_one_bad_document_among_64_fails_alone(emulator: Emulator) -> None:
    emulator.faults = [faults.Blocked(match="FORBIDDEN", times=10**9)]
    texts = [*TEXTS[:40], "FORBIDDEN", *TEXTS[40:]]
    gate = Gate(emulator)
    async with client_behind(gate) as client:
        calls = [asyncio.create_task(client.aembed([text])) for text in texts]
        await gate.reached.wait()
        gate.opened.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
    error = results[40]
    assert isinstance(error, BadRequestError)
    assert (error.failed, error.refused, error.partial) == ([0], {0: "FORBIDDEN"}, {})
    assert "index 0" in str(error) or "text 0" in str(error), str(error)
    assert dense_of(results) == right(emulator, TEXTS)
    assert emulator.billed_texts == client.usage.texts == 64


async def test_one_cancelled_document_among_64_is_billed_once_and_stops_nobody(emulator: Emulator) -> None:
    """It is cancelled while its request is in flight: its share is billed, to its own caller."""
    gate = Gate(emulator, number=2)
    shares = {}

    async def embed(text: str) -> Embeddings:
        with track_usage() as shares[text]:
            return await client.aembed([text])

    async with client_behind(gate) as client:
        calls = [asyncio.create_task(embed(text)) for text in TEXTS]
        await gate.reached.wait()
        calls[1].cancel()  # whose caller started the request
        calls[5].cancel()
        await asyncio.wait(calls[1:2])
        gate.opened.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(0)
    assert [i for i, result in enumerate(results) if isinstance(result, asyncio.CancelledError)] == [1, 5]
    assert dense_of(results) == right(emulator, [text for i, text in enumerate(TEXTS) if i not in {1, 5}])
    assert sizes(emulator) == [1, 10, 10, 10, 10, 10, 10, 3]
    assert emulator.billed_texts == client.usage.texts == 64
    assert (client.usage.requests, client.usage.tokens) == (8, emulator.billed_tokens)
    assert {text: share.texts for text, share in shares.items()} == dict.fromkeys(TEXTS, 1)


async def test_a_document_cancelled_while_it_waits_is_not_sent(emulator: Emulator) -> None:
    gate = Gate(emulator)
    async with client_behind(gate) as client:
        calls = [asyncio.create_task(client.aembed([text])) for text in TEXTS]
        await gate.reached.wait()
        calls[5].cancel()
        await asyncio.wait(calls[5:6])
        gate.opened.set()
        await asyncio.gather(*calls, return_exceptions=True)
    assert TEXTS[5] not in {text for asked in emulator.asked for text in asked.texts}
    assert emulator.billed_texts == client.usage.texts == 63


async def test_callbacks_and_arrays_are_each_callers_own(emulator: Emulator) -> None:
    gate = Gate(emulator)
    done: list[int] = []
    arrived: list[list[float]] = []

    async def store(vectors: dict[int, Any]) -> None:
        arrived.append(vectors.pop(0))
        assert not vectors

    async with client_behind(gate) as client:
        calls = [
            asyncio.create_task(
                client.aembed([text], array=True, progress=done.append, on_vectors=store, text_type=role)
            )
            for role in get_args(TextType)
            for text in TEXTS[:8]
        ]
        await gate.reached.wait()
        gate.opened.set()
        results = await asyncio.gather(*calls)
    expected = [row for role in get_args(TextType) for row in right(emulator, TEXTS[:8], role)]
    assert [result.dense_array.tolist()[0] for result in results] == [pytest.approx(row, rel=1e-6) for row in expected]
    assert done == [1] * 16
    assert sorted(arrived) == [pytest.approx(row, rel=1e-6) for row in sorted(expected)]
    assert emulator.requests <= 4


async def test_an_error_of_a_callback_is_its_callers_own(emulator: Emulator) -> None:
    gate = Gate(emulator)

    def fail(_: int) -> None:
        raise ZeroDivisionError

    async with client_behind(gate) as client:
        first = asyncio.create_task(client.aembed(TEXTS[:1]))
        await gate.reached.wait()
        others = [
            asyncio.create_task(client.aembed([text], progress=fail if text == TEXTS[2] else None))
            for text in TEXTS[1:5]
        ]
        await asyncio.sleep(0)
        gate.opened.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(result) for result in results].count(ZeroDivisionError) == 1
    assert isinstance(results[2], ZeroDivisionError)
    assert dense_of(results) == right(emulator, [*TEXTS[:2], *TEXTS[3:5]])
    assert sizes(emulator) == [1, 4]


async def test_equal_texts_are_billed_once_whether_they_wait_or_are_in_flight(emulator: Emulator) -> None:
    gate = Gate(emulator)
    async with client_behind(gate) as client:
        first = asyncio.create_task(client.aembed(TEXTS[:1]))
        await gate.reached.wait()
        others = [asyncio.create_task(client.aembed([text])) for text in (*TEXTS[:3], *TEXTS[:3])]
        await asyncio.sleep(0)
        gate.opened.set()
        results = await asyncio.gather(first, *others)
    assert dense_of(results) == right(emulator, [*TEXTS[:1], *TEXTS[:3], *TEXTS[:3]])
    assert [asked.texts for asked in emulator.asked] == [tuple(TEXTS[:1]), tuple(TEXTS[1:3])]
    assert [result.usage.texts for result in results] == [1, 0, 1, 1, 0, 0, 0]
    assert (client.usage.texts, client.usage.tokens) == (emulator.billed_texts, emulator.billed_tokens)


def test_a_call_may_be_closed_while_the_same_thread_holds_its_locks(emulator: Emulator) -> None:
    """As the garbage collector does at any allocation, with a pending call of a loop that was closed."""
    client = client_for(emulator)
    client.embed("first")
    context, (batcher,) = client._request_context("document", "dense"), client._text_batchers.values()
    flow = flow_runs.single_text(SingleText("left", 1), batcher, context, None, print)
    next(flow)
    assert context.limiter.in_flight == 1
    clock, result = context.limiter.clock, list[Any]()

    def collecting_clock() -> float:
        if batcher._lock.current.locked():
            flow.close()
        return clock()

    context.limiter.clock = collecting_clock
    thread = threading.Thread(target=lambda: result.append(client.embed("last").dense), daemon=True)
    thread.start()
    thread.join(10)
    assert result == [[emulator.dense("last")]]
    assert context.limiter.in_flight == 0
    assert (list(batcher._waiting), list(batcher._in_flight)) == ([], [])
