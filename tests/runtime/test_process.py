"""Forks, loops, threads, cancellation, pickling and closing: a client in real programs."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest
from client_helpers import KEY

from dashscope_embeddings import EmbeddingClient, InvalidInput

if TYPE_CHECKING:
    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

TEXTS = [f"text number {i}" for i in range(60)]


def expected(emulator: Emulator) -> list[list[float]]:
    return [emulator.dense(text, model="text-embedding-v4") for text in TEXTS]


def client_of(served: Server, **settings: int) -> EmbeddingClient:
    return EmbeddingClient(api_key=KEY, base_url=served.url, **settings)  # type: ignore[arg-type]


def test_three_loops_one_after_the_other(emulator: Emulator, served: Server) -> None:
    client = client_of(served)
    for _ in range(3):
        assert asyncio.run(client.aembed(TEXTS)).dense == expected(emulator)
    asyncio.run(client.aembed("one more"))
    assert len(client._transport._loops) == 1  # those of closed loops were let go


def test_loops_side_by_side_and_threads_share_a_client(emulator: Emulator, served: Server) -> None:
    client = client_of(served)
    with ThreadPoolExecutor(6) as pool:
        loops = [pool.submit(lambda: asyncio.run(client.aembed(TEXTS)).dense) for _ in range(3)]
        threads = [pool.submit(lambda: client.embed(TEXTS).dense) for _ in range(3)]
        assert all(job.result() == expected(emulator) for job in loops + threads)


def test_sync_calls_work_inside_a_running_loop(emulator: Emulator, served: Server) -> None:
    async def cell() -> list[list[float]]:
        return client_of(served).embed(TEXTS).dense

    assert asyncio.run(cell()) == expected(emulator)


def test_no_more_connections_than_asked_for(emulator: Emulator) -> None:
    many = [f"text {i}" for i in range(400)]
    with emulator.serve(latency=0.005) as server:
        client_of(server, max_concurrency=5).embed(many)
        assert emulator.requests == 40
        assert server.peak_connections <= 5
    with emulator.serve(latency=0.005) as server:
        asyncio.run(client_of(server, max_concurrency=5).aembed(many))
        assert server.peak_connections <= 5


def test_the_cap_is_the_clients_not_the_calls(emulator: Emulator) -> None:
    async def callers(client: EmbeddingClient) -> None:
        await asyncio.gather(*(client.aembed([f"{i} {j}" for j in range(25)]) for i in range(20)))

    with emulator.serve(latency=0.005) as server:
        asyncio.run(callers(client_of(server, max_concurrency=4)))
        assert emulator.requests == 60
        assert server.peak_in_flight <= 4


async def test_nothing_is_sent_after_a_cancellation() -> None:
    sent = 0
    first = asyncio.Event()

    async def never(_: httpx.Request) -> httpx.Response:
        nonlocal sent
        sent += 1
        first.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with httpx.AsyncClient(transport=httpx.MockTransport(never)) as http:
        client = EmbeddingClient(api_key=KEY, http_async_client=http, max_concurrency=4)
        job = asyncio.create_task(client.aembed([f"text {i}" for i in range(500)]))
        await first.wait()
        await asyncio.sleep(0)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert sent <= 4
        assert len(asyncio.all_tasks()) == 1


def test_only_configuration_is_pickled(emulator: Emulator, served: Server) -> None:
    client = client_of(served)
    client.embed("warm")
    restored = pickle.loads(pickle.dumps(client))  # noqa: S301 - our own bytes
    assert restored.embed(TEXTS).dense == expected(emulator)
    assert copy.deepcopy(client).settings == client.settings
    assert KEY not in repr(client) + str(client.settings) + repr(client.__dict__)


def test_a_users_http_client_is_not_pickled_away() -> None:
    with httpx.Client() as http, pytest.raises(InvalidInput, match="cannot be pickled"):
        pickle.dumps(EmbeddingClient(api_key=KEY, http_client=http))


def test_the_emulator_in_process_travels() -> None:
    client = EmbeddingClient(base_url="emulator")
    restored = pickle.loads(pickle.dumps(client))  # noqa: S301 - our own bytes
    assert restored.embed(TEXTS).dense == client.embed(TEXTS).dense


def test_a_closed_client_says_so(served: Server) -> None:
    client = client_of(served)
    client.embed("x")
    client.close()
    with pytest.raises(InvalidInput, match="closed"):
        client.embed("x")


def test_forgotten_clients_leave_no_sockets(served: Server) -> None:
    # Warnings are errors: an unclosed socket fails this test when it is collected.
    client = client_of(served)
    client.embed(TEXTS)
    asyncio.run(client.aembed(TEXTS))

    async def forget() -> None:
        inner = client_of(served)
        await inner.aembed(TEXTS)
        del inner
        gc.collect()
        await asyncio.sleep(0.01)

    asyncio.run(forget())
    del client
    gc.collect()
    assert threading.active_count() < 60


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("used_before", [True, False])
def test_parent_and_child_never_read_each_others_replies(served: Server, *, used_before: bool) -> None:
    program = f"""
        import os, sys
        from dashscope_embeddings import EmbeddingClient

        client = EmbeddingClient(api_key={KEY!r}, base_url={served.url!r}, max_concurrency=4)
        if {used_before}:
            client.embed([f"warm {{i}}" for i in range(80)])
        parent = os.fork()
        mine = [f"{{'parent' if parent else 'child'}} {{i}}" for i in range(300)]
        got = client.embed(mine).dense
        alone = EmbeddingClient(base_url="emulator").embed(mine).dense
        right = got == alone
        if not parent:
            os._exit(0 if right else 3)
        _, status = os.waitpid(parent, 0)
        sys.exit(0 if right and os.waitstatus_to_exitcode(status) == 0 else 4)
    """
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(program)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


# --- as a context manager ----------------------------------------------------------------------------------


def test_with_gives_the_client_and_closes_it_at_the_end(emulator: Emulator) -> None:
    with emulator.serve() as server, EmbeddingClient(api_key="sk-x", base_url=server.url, dimensions=64) as client:
        assert client.embed("one").dense == [emulator.dense("one", dimension=64)]
    with pytest.raises(InvalidInput, match="is closed"):
        client.embed("two")
    assert emulator.requests == 1


async def test_async_with_does_too(emulator: Emulator) -> None:
    with emulator.serve() as server:
        async with EmbeddingClient(api_key="sk-x", base_url=server.url, dimensions=64) as client:
            assert (await client.aembed("one")).dense == [emulator.dense("one", dimension=64)]
        with pytest.raises(InvalidInput, match="is closed"):
            await client.aembed("two")
    assert emulator.requests == 1
