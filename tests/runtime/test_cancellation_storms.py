"""Tasks that are cancelled at any moment, by the thousand: the client answers afterwards, and no connection is lost."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import ssl
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import KEY, client_for
from langchain_core.rate_limiters import InMemoryRateLimiter
from raw_server import serve_raw

from dashscope_embeddings import EmbeddingClient, InvalidInput
from dashscope_embeddings._runtime.async_connections import AsyncConnectionPool
from dashscope_embeddings.emulator import Emulator, faults

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from dashscope_embeddings.emulator.http import Server

REPLY = 0.004
"""Seconds that the server takes for a reply."""
CALLERS = 20
WAYS: dict[str, Callable[[EmbeddingClient, int], Awaitable[Any]]] = {
    "query": lambda client, n: client.aembed(f"text {n}", text_type="query"),
    "document": lambda client, n: client.aembed(f"text {n}"),
    "many texts": lambda client, n: client.aembed([f"text {n} {i}" for i in range(30)]),
}


@pytest.fixture
def slow(emulator: Emulator) -> Iterator[Server]:
    """Every reply takes some milliseconds."""
    emulator.faults = [faults.Slow(REPLY, times=10**9)]
    with emulator.serve() as server:
        yield server


async def storm(call: Callable[[int], Awaitable[object]], calls: int, longest: float = 2 * REPLY) -> int:
    """So many calls of some callers at once, each cancelled a while after it began; how many were."""
    # From a seed, but for what the machine adds.
    dice, numbers, cancelled = random.Random(3), iter(range(calls)), 0  # noqa: S311 - moments, no secrets

    async def caller() -> None:
        nonlocal cancelled
        for n in numbers:
            try:
                await asyncio.wait_for(call(n), dice.uniform(0, longest))
            except asyncio.TimeoutError:  # noqa: PERF203 - the next comes
                cancelled += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return cancelled


def open_connections(client: EmbeddingClient) -> tuple[int, int]:
    """Of the running loop: how many there are, and how many of them are idle."""
    kept = client._transport._loops[asyncio.get_running_loop()].pool
    assert isinstance(kept, AsyncConnectionPool)
    return len(kept._connections), len(kept.idle)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        await asyncio.sleep(0.025)
    pytest.fail(f"what was waited for did not come; tasks: {asyncio.all_tasks()}")


async def quiet() -> None:
    """Waits until requests are over that carried the queries of several callers, or that a user's pool held."""
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def is_well(client: EmbeddingClient, emulator: Emulator) -> None:
    """Nobody is in its queues, no connection is lost or held, and it answers at once."""
    await quiet()
    assert all(not waiting._waiting and not waiting._in_flight for waiting in client._text_batchers.values())
    connections, idle = open_connections(client)
    assert connections == idle <= 2 * (client.settings.max_concurrency or 16)
    texts = [f"afterwards {i}" for i in range(100)]
    found = await asyncio.wait_for(client.aembed(texts), 30)
    assert found.dense == [emulator.dense(text, dimension=64) for text in texts]
    found = await asyncio.wait_for(client.aembed("afterwards", text_type="query"), 30)
    assert found.dense == [emulator.dense("afterwards", text_type="query", dimension=64)]


@pytest.mark.parametrize("kind", WAYS)
async def test_hundreds_of_cancelled_calls_leave_the_client_answering(
    kind: str, slow: Server, emulator: Emulator
) -> None:
    client = EmbeddingClient(api_key=KEY, base_url=slow.url, max_concurrency=4, dimensions=64, timeout=5, max_retries=0)
    assert await storm(lambda n: WAYS[kind](client, n), 400) > 100
    await is_well(client, emulator)
    await client.aclose()


async def test_a_users_client_answers_after_a_storm_too(slow: Server, emulator: Emulator) -> None:
    """Its pool is as small as it may be: the requests of the callers wait in it."""
    limits = httpx.Limits(max_connections=4, max_keepalive_connections=4)
    async with httpx.AsyncClient(limits=limits) as http:
        client = EmbeddingClient(
            api_key=KEY,
            base_url=slow.url,
            max_concurrency=8,
            dimensions=64,
            timeout=5,
            max_retries=0,
            http_async_client=http,
        )
        await storm(lambda n: WAYS[("query", "document", "many texts")[n % 3]](client, n), 300)
        await quiet()
        texts = [f"afterwards {i}" for i in range(100)]
        found = await asyncio.wait_for(client.aembed(texts), 5)
        assert found.dense == [emulator.dense(text, dimension=64) for text in texts]
        assert repr(http._transport._pool).count("0 active, 0 queued") == 1  # type: ignore[attr-defined] # httpx's own


@pytest.mark.parametrize("whose", ["our client", "a user's client"])
async def test_a_cancellation_at_any_turn_of_the_loop_costs_no_connection(whose: str, served: Server) -> None:
    """A user's pool of one connection: once lost, no call is answered any more."""
    http = httpx.AsyncClient(limits=httpx.Limits(max_connections=1)) if whose != "our client" else None
    client = EmbeddingClient(
        api_key=KEY, base_url=served.url, dimensions=64, timeout=5, max_retries=0, http_async_client=http
    )
    for turns in range(60):
        job = asyncio.create_task(client.aembed([f"text {turns}"]))
        for _ in range(turns):
            await asyncio.sleep(0)
        job.cancel()
        await asyncio.wait((job,))
        if turns % 2:  # the next one opens a connection
            await quiet()
            assert len((await client.aembed([f"afterwards {turns}"])).dense) == 1
    await quiet()
    await client.aclose()
    if http is not None:
        await http.aclose()


# --- one cancelled call -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "whose"), [("http", "our client"), ("http", "a user's client"), ("https", "our client")]
)
async def test_a_cancelled_request_closes_its_connection_at_once(scheme: str, whose: str) -> None:
    """Over https the server is silent in the TLS handshake: httpcore alone would keep that socket open."""
    settings: dict[str, Any] = {} if whose == "our client" else {"http_async_client": httpx.AsyncClient()}
    with serve_raw(lambda _, connection: connection.recv(1) and None) as silent:
        client = EmbeddingClient(api_key=KEY, base_url=silent.url.replace("http:", f"{scheme}:"), **settings)
        job = asyncio.create_task(client.aembed(["a"]))
        await until(lambda: bool(silent.requests if scheme == "http" else silent.received_bytes))
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(job, 2)
        await until(lambda: silent.open_connections == 0)
        assert len(asyncio.all_tasks()) == 1
        await client.aclose()
        for http in settings.values():
            await http.aclose()


def test_a_plain_loop_that_is_closed_right_after_a_timeout_leaves_no_task(
    slow: Server, leaks: Callable[[Callable[[], object]], list[str]]
) -> None:
    complaints: list[dict[str, Any]] = []

    def run() -> None:
        client = EmbeddingClient(api_key=KEY, base_url=slow.url, dimensions=64, max_retries=0)
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        for seconds in (0.0, 0.0005, 0.001, 0.002, 0.003):
            with contextlib.suppress(asyncio.TimeoutError):
                loop.run_until_complete(asyncio.wait_for(client.aembed(["a", "b"]), seconds))
            assert asyncio.all_tasks(loop) == set()
        loop.run_until_complete(client.aclose())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    assert leaks(run) == []
    assert complaints == []


async def test_cancellations_by_anyio_end_a_call_like_any_other(slow: Server, emulator: Emulator) -> None:
    """Its scopes cancel again and again, until the task has left them."""
    anyio = pytest.importorskip("anyio")
    client = EmbeddingClient(api_key=KEY, base_url=slow.url, max_concurrency=4, dimensions=64, timeout=5, max_retries=0)
    dice = random.Random(5)  # noqa: S311 - moments, no secrets
    for n in range(60):
        with anyio.move_on_after(dice.uniform(0, 2 * REPLY)):
            async with anyio.create_task_group() as group:
                for way in WAYS.values():
                    group.start_soon(way, client, n)
    await is_well(client, emulator)
    await client.aclose()


# --- clients and loops of the wrong kind --------------------------------------------------------------------

WRONG: dict[str, tuple[str, Callable[[], Any], str]] = {
    "an AsyncClient for sync calls": ("http_client", httpx.AsyncClient, "pass it as http_async_client"),
    "a Client for async calls": ("http_async_client", httpx.Client, "pass it as http_client"),
    "a class": ("http_client", lambda: httpx.Client, r"http_client=Client\(\)"),
    "a context of TLS": ("http_client", ssl.create_default_context, "must be an httpx.Client, not ssl.SSLContext"),
    "a string": ("http_async_client", lambda: "http://127.0.0.1:1", "must be an httpx.AsyncClient, not builtins.str"),
    "a hook that is a string": ("on_request", lambda: "x", "on_request must be a function, not str"),
    "a hook that is async": ("on_request", lambda: asyncio.sleep, "on_request is async, and nobody would await it"),
    "a number of requests": ("rate_limiter", lambda: 5, "rate_limiter must be .*, not int; for a number, set requests"),
    "a limiter's class": ("rate_limiter", lambda: InMemoryRateLimiter, "rate_limiter must be one of LangChain's"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_object_of_the_wrong_kind_is_refused_with_the_right_one(case: str) -> None:
    name, make, words = WRONG[case]
    with pytest.raises(InvalidInput, match=words):
        EmbeddingClient(api_key=KEY, **{name: make()})


async def _hook(*_: object) -> None:
    """Awaited by nobody, except as `on_vectors` of `aembed`."""


@pytest.mark.parametrize("name", ["progress", "on_vectors", "refused", "arrived"])
@pytest.mark.parametrize("value", [_hook, 5, functools.partial(_hook)])
async def test_a_callback_that_cannot_be_called_or_awaited_is_refused_before_anything_is_sent(
    name: str, value: Any, emulator: Emulator
) -> None:
    client: Any = client_for(emulator)
    calls = [client.embed, client.aembed] if name in {"progress", "on_vectors"} else [client.stream, client.astream]
    if name == "on_vectors" and value != 5:
        del calls[1]  # which awaits it
    for call in calls:
        with pytest.raises(InvalidInput, match=rf"{name} (must be a function, not int|is async, and nobody would)"):
            await call("a", **{name: value})
    assert emulator.requests == 0


def test_a_closed_client_is_reported_as_such_at_construction_and_at_the_call(emulator: Emulator) -> None:
    http, ahttp = httpx.Client(transport=emulator.transport()), httpx.AsyncClient(transport=emulator.transport())
    client = EmbeddingClient(api_key=KEY, http_client=http, http_async_client=ahttp)
    http.close()
    asyncio.run(ahttp.aclose())
    with pytest.raises(InvalidInput, match="http_client is closed"):
        client.embed("a")
    with pytest.raises(InvalidInput, match="http_async_client is closed"):
        asyncio.run(client.aembed("a"))
    for closed in ({"http_client": http}, {"http_async_client": ahttp}):
        with pytest.raises(InvalidInput, match="is closed"):
            EmbeddingClient(api_key=KEY, **closed)
    assert emulator.requests == 0


def test_without_a_loop_of_asyncio_a_call_says_that_trio_is_not_supported() -> None:
    """Trio drives a coroutine as here: no loop of asyncio runs."""
    client = EmbeddingClient(base_url="emulator")
    stream = client.astream(["a"])
    for call in (client.aembed("a"), client.aembed("a", text_type="query"), anext(stream), client.aclose()):
        with pytest.raises(InvalidInput, match=r"Trio is not supported: call\s+await trio.to_thread.run_sync"):
            next(iter(call.__await__()))
