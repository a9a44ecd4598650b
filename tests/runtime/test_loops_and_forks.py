"""Processes, event loops and sudden ends, as they come in servers, notebooks and scripts."""

from __future__ import annotations

import asyncio
import copy
import gc
import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import KEY, becomes_true

from dashscope_embeddings import EmbeddingClient, InvalidInput
from dashscope_embeddings.emulator import Emulator, faults

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from dashscope_embeddings.emulator.http import Server

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process here")
both_ways = pytest.mark.parametrize("way", ["sync", "async"])

TEXTS = [f"text number {i}" for i in range(60)]


def started(program: str, served: Server) -> subprocess.Popen[str]:
    """A program of its own, with the address and the key as `url` and `key`."""
    head = f"url, key = {served.url!r}, {KEY!r}\n"
    return subprocess.Popen(  # noqa: S603 - our own program
        # Python 3.12 warns of forks beside threads, which is what is tried here.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", head + program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], seconds: float = 25.0) -> tuple[int, str, str]:
    """Exit code and output; a process that does not end is a failure, and is ended."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        pytest.fail(f"still at work {seconds:.0f} s later")
    return process.returncode, out, err


def ran(head: str, program: str, served: Server) -> tuple[int, str, str]:
    return ended(started(textwrap.dedent(head) + textwrap.dedent(program), served))


# --- forks --------------------------------------------------------------------------------------------------

RIGHT = """
    import asyncio, os, signal, sys, threading
    from dashscope_embeddings import EmbeddingClient
    from dashscope_embeddings.emulator import Emulator

    judge = Emulator()

    def right(client, name, count=60):
        mine = [f"{name} {i}" for i in range(count)]
        wanted = [judge.dense(text) for text in mine]
        one = client.embed(mine).dense == wanted
        other = asyncio.run(client.aembed([text + "!" for text in mine])).dense
        return one and other == [judge.dense(text + "!") for text in mine]

    def child(work):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            code = 70
            try:
                code = 0 if work() else 3
            finally:
                os._exit(code)
        return pid

    def code(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@needs_fork
def test_a_child_forked_under_load_gets_its_own_vectors_and_so_does_its_parent(served: Server) -> None:
    program = """
    client = EmbeddingClient(api_key=key, base_url=url, max_concurrency=4)
    over, wrong, rounds = threading.Event(), [], []

    def load(name):
        n = 0
        while not over.is_set():
            n += 1
            mine = [f"parent {name} {n} {i}" for i in range(30)]
            if client.embed(mine).dense != [judge.dense(text) for text in mine]:
                wrong.append(name)
            rounds.append(name)

    threads = [threading.Thread(target=load, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    children = []
    for n in range(3):
        have = len(rounds)
        while len(rounds) < have + 3:
            over.wait(0.005)
        children.append(child(lambda: right(client, f"child {n}")))
    codes = [code(pid) for pid in children]
    over.set()
    for thread in threads:
        thread.join()
    print(codes, wrong, right(client, "parent"))
    """
    assert ran(RIGHT, program, served) == (0, "[0, 0, 0] [] True\n", "")


@needs_fork
def test_a_child_does_not_wait_for_a_lock_that_its_parents_thread_held(served: Server) -> None:
    """Every lock of the package that can be reached from a client or a module is held at one fork each."""
    program = """
    import gc, types
    import dashscope_embeddings._adapters.base
    client = EmbeddingClient(api_key=key, base_url=url, max_concurrency=4)
    client.embed([f"warm {i}" for i in range(30)])
    client.embed("warm", text_type="query")
    KINDS = (type(threading.Lock()), type(threading.RLock()))
    held, seen = {}, set()

    def ours(thing):
        return type(thing).__module__.startswith("dashscope_embeddings")

    def look(thing, path):
        if id(thing) in seen:
            return
        seen.add(id(thing))
        if isinstance(thing, KINDS):
            held[path] = thing
        elif isinstance(thing, dict):
            for name, value in list(thing.items()):
                look(value, f"{path}.{name}" if isinstance(name, str) else f"{path}[]")
        elif ours(thing):
            names = [n for kind in type(thing).__mro__ for n in getattr(kind, "__slots__", ())]
            for name in [*getattr(thing, "__dict__", {}), *names]:
                look(getattr(thing, name, None), f"{path}.{name}")

    look(client, "client")
    for name, module in list(sys.modules.items()):
        if name.startswith("dashscope_embeddings") and "emulator" not in name:
            look(vars(module), name)

    def work():
        more = EmbeddingClient(api_key=key, base_url=url, max_concurrency=4)
        fine = right(client, "child", 12) and right(more, "another", 12)
        fine = fine and len(client.embed("query", text_type="query").dense) == 1 and client.usage.requests > 0
        from dashscope_embeddings.langchain import DashScopeEmbeddings
        return fine and len(DashScopeEmbeddings(api_key=key, base_url=url).embed_query("a")) == 1024

    import dashscope_embeddings.langchain  # its import takes locks of Python's own
    children = {}
    for path, lock in held.items():
        with lock:
            children[path] = child(work)
    codes = {path: code(pid) for path, pid in children.items()}
    print(len(codes) > 3, sorted(path for path, number in codes.items() if number))
    """
    assert ran(RIGHT.replace("alarm(20)", "alarm(8)"), program, served) == (0, "True []\n", "")


@needs_fork
def test_workers_forked_from_an_unused_parent_serve_the_right_vectors(served: Server, emulator: Emulator) -> None:
    program = """
    from dashscope_embeddings.langchain import DashScopeEmbeddings
    embeddings = DashScopeEmbeddings(api_key=key, base_url=url, max_concurrency=4)

    def serve(name):
        def work():
            queries = [f"{name} asks {i}" for i in range(10)]
            answers = [embeddings.embed_query(text) for text in queries]
            fine = answers == [judge.dense(text, text_type="query") for text in queries]
            return fine and right(embeddings.client, name)
        return work

    workers = [child(serve(f"worker {n}")) for n in range(2)]
    mine = serve("master")()
    print(mine, [code(pid) for pid in workers])
    """
    assert ran(RIGHT, program, served) == (0, "True [0, 0]\n", "")
    assert emulator.billed_texts == 3 * (10 + 2 * 60)


# --- pickles ------------------------------------------------------------------------------------------------


def test_a_spawned_worker_embeds_with_what_was_pickled(served: Server, emulator: Emulator) -> None:
    client = EmbeddingClient(api_key=KEY, base_url=served.url, dimensions=64)
    client.embed("used before")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(client.embed, (TEXTS,))
        pool.close()
        pool.join()
    assert found.dense == [emulator.dense(text, dimension=64) for text in TEXTS]
    assert emulator.billed_texts == 1 + len(TEXTS)
    assert emulator.keys_seen == {hashlib.sha256(KEY.encode()).hexdigest()}


@pytest.mark.filterwarnings("ignore:Specified num_workers exceed")
def test_ingestion_workers_ask_the_service_with_the_key(served: Server, emulator: Emulator) -> None:
    ingestion = pytest.importorskip("llama_index.core.ingestion")
    schema = pytest.importorskip("llama_index.core.schema")
    from dashscope_embeddings.llama_index import DashScopeEmbedding  # noqa: PLC0415 - used by this test alone

    embedding = DashScopeEmbedding(api_key=KEY, base_url=served.url, dimensions=64)
    embedding.get_text_embedding("used before")
    pipeline = ingestion.IngestionPipeline(transformations=[embedding], disable_cache=True)
    nodes = pipeline.run(documents=[schema.Document(text=text) for text in TEXTS[:30]], num_workers=2)
    assert [node.embedding for node in nodes] == [emulator.dense(text, dimension=64) for text in TEXTS[:30]]
    assert emulator.billed_texts == 1 + 30
    assert emulator.keys_seen == {hashlib.sha256(KEY.encode()).hexdigest()}


def test_only_configuration_is_pickled(emulator: Emulator, served: Server) -> None:
    client = EmbeddingClient(api_key=KEY, base_url=served.url)
    client.embed("warm")
    for copied in (pickle.loads(pickle.dumps(client)), copy.deepcopy(client)):  # noqa: S301 - our own bytes
        assert copied.settings == client.settings
        assert copied.embed("a").dense == [emulator.dense("a")]
    with httpx.Client() as http, pytest.raises(InvalidInput, match="cannot be pickled"):
        pickle.dumps(EmbeddingClient(api_key=KEY, http_client=http))
    client = EmbeddingClient(base_url="emulator")
    restored = pickle.loads(pickle.dumps(client))  # noqa: S301 - our own bytes
    assert restored.embed(TEXTS).dense == client.embed(TEXTS).dense


# --- loops --------------------------------------------------------------------------------------------------


def test_loops_one_after_the_other_and_side_by_side_and_threads_share_a_client(
    emulator: Emulator, served: Server
) -> None:
    client = EmbeddingClient(api_key=KEY, base_url=served.url, dimensions=64)
    wanted = [emulator.dense(text, dimension=64) for text in TEXTS]
    for _ in range(3):
        assert asyncio.run(client.aembed(TEXTS)).dense == wanted
    assert len(client._transport._loops) == 1  # those of closed loops were let go
    with ThreadPoolExecutor(4) as pool:
        loops = [pool.submit(lambda: asyncio.run(client.aembed(TEXTS)).dense) for _ in range(2)]
        threads = [pool.submit(lambda: client.embed(TEXTS).dense) for _ in range(2)]
        assert all(job.result() == wanted for job in loops + threads)


def test_a_users_async_client_that_another_loop_has_used_is_named(served: Server) -> None:
    first, http = asyncio.new_event_loop(), httpx.AsyncClient()
    client = EmbeddingClient(api_key=KEY, base_url=served.url, dimensions=64, http_async_client=http)
    first.run_until_complete(client.aembed("first"))
    with pytest.raises(InvalidInput, match="http_async_client has connections of another event loop"):
        asyncio.run(client.aembed("second"))
    first.run_until_complete(http.aclose())
    first.close()


def test_cells_of_a_notebook_may_mix_sync_and_async_calls(
    served: Server, emulator: Emulator, arrival: Callable[[int], Awaitable[None]]
) -> None:
    """One loop that never ends, on which every cell runs: awaited, sync, or with work left in the background."""
    client = EmbeddingClient(api_key=KEY, base_url=served.url, max_concurrency=4, dimensions=64)
    wanted = [emulator.dense(text, dimension=64) for text in TEXTS]

    async def sync_cell() -> None:
        assert client.embed(TEXTS).dense == wanted
        assert client.embed("a", text_type="query").dense == [emulator.dense("a", text_type="query", dimension=64)]
        assert [found.dense for found in client.stream(TEXTS)] == wanted

    async def awaited_cell() -> None:
        assert (await client.aembed(TEXTS)).dense == wanted
        assert [found.dense async for found in client.astream(TEXTS)] == wanted

    async def leaving_cell() -> asyncio.Task[Any]:
        job = asyncio.ensure_future(client.aembed(TEXTS))
        await arrival(1)
        return job

    loop = asyncio.new_event_loop()
    # The job's requests are in flight, and cannot complete, while the sync cell keeps the loop.
    job = loop.run_until_complete(leaving_cell())
    loop.run_until_complete(sync_cell())
    assert loop.run_until_complete(job).dense == wanted
    for cell in (awaited_cell, sync_cell, awaited_cell):
        loop.run_until_complete(cell())
    loop.run_until_complete(client.aclose())
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


# --- sudden ends --------------------------------------------------------------------------------------------

ANSWERED, IN_FLIGHT, MANY = 5, 4, 300
JOB = [f"text {i}" if i < 10 * ANSWERED else f"text {i} is never answered" for i in range(MANY)]


@pytest.fixture
def stalling() -> Iterator[tuple[Emulator, Server]]:
    """The first five requests of the texts below are answered, and no other ever is."""
    emulator = Emulator(faults=[faults.Stall(match="never")])
    with emulator.serve() as server:
        yield emulator, server


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits until a condition holds, while a process runs."""
    if not becomes_true(lambda: condition() or process.poll() is not None, seconds=60) or not condition():
        process.kill()
        pytest.fail(f"what was waited for did not come: {process.communicate()}")


INTERRUPTED = {
    "sync": """
    try:
        client.embed(texts)
    except KeyboardInterrupt as stopped:
        tell(stopped)
    """,
    "async": """
    import asyncio

    async def main():
        try:
            await client.aembed(texts)
        except asyncio.CancelledError as stopped:
            tell(stopped)
            raise

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
    """,
    "stream": """
    found = {}
    try:
        for embedding in client.stream(texts):
            found[embedding.index] = embedding.dense
    except KeyboardInterrupt as stopped:
        stopped.partial = {**found, **stopped.partial}
        tell(stopped)
    """,
}
CTRL_C = f"""
    import json, sys
    from dashscope_embeddings import EmbeddingClient

    settings = dict(api_key=key, base_url=url, max_concurrency={IN_FLIGHT}, dimensions=64, timeout=600)
    client, *clients = [EmbeddingClient(**settings) for _ in range(3)]
    texts = {JOB!r}

    def tell(stopped):
        print(json.dumps([stopped.partial, stopped.failed, client.usage.requests]), flush=True)
"""


@needs_signals
@pytest.mark.parametrize("way", INTERRUPTED)
def test_ctrl_c_ends_a_program_at_once_with_what_arrived_and_sends_nothing_more(
    way: str, stalling: tuple[Emulator, Server]
) -> None:
    """Although no reply to the requests in flight ever comes."""
    emulator, served = stalling
    process = started(textwrap.dedent(CTRL_C) + textwrap.dedent(INTERRUPTED[way]), served)
    until(lambda: emulator.requests >= ANSWERED + IN_FLIGHT, process)
    process.send_signal(signal.SIGINT)
    code, out, err = ended(process, 10.0)
    assert (code, err) == (0, "")
    partial, failed, billed = json.loads(out)
    assert len(partial) == ANSWERED * 10
    for index, vector in partial.items():
        assert vector == emulator.dense(JOB[int(index)], dimension=64)
    known = {*map(int, partial), *failed}
    assert known == set(range(MANY)) if way != "stream" else len(known) == len(partial) + len(failed)
    assert billed == ANSWERED
    assert emulator.requests == ANSWERED + IN_FLIGHT


LEFT = {
    "threads": """
    import asyncio, threading
    threading.Thread(target=client.embed, args=(texts,), daemon=True).start()
    threading.Thread(target=lambda: asyncio.run(clients[0].aembed(texts)), daemon=True).start()
    left = clients[1].stream(texts)
    for _ in range(41):
        next(left)
    sys.stdin.read()
    """,
    "tasks": """
    import asyncio
    async def main():
        task = asyncio.create_task(client.aembed(texts))
        left = clients[0].astream(texts)
        for _ in range(41):
            await anext(left)
        await asyncio.to_thread(sys.stdin.read)
    asyncio.run(main())
    """,
}


@pytest.mark.parametrize("left", LEFT)
def test_a_program_ends_by_itself_with_work_under_way(left: str, stalling: tuple[Emulator, Server]) -> None:
    """In daemon threads, in streams that were begun, in tasks that nobody awaits."""
    emulator, served = stalling
    # A stream has asked for nothing more when the first vector of the fifth request was taken.
    jobs = {"threads": 3, "tasks": 2}[left]
    expected = jobs * (ANSWERED + IN_FLIGHT) - 1
    process = started(textwrap.dedent(CTRL_C) + textwrap.dedent(LEFT[left]), served)
    until(lambda: emulator.requests >= expected, process)
    assert ended(process, 10.0) == (0, "", "")
    assert emulator.requests == expected


# --- what is left behind ------------------------------------------------------------------------------------


@both_ways
def test_an_abandoned_stream_leaves_no_socket_open_and_no_request_behind(
    served: Server, emulator: Emulator, leaks: Callable[[Callable[[], object]], list[str]], way: str
) -> None:
    client = EmbeddingClient(api_key=KEY, base_url=served.url, max_concurrency=4, dimensions=64)

    def begin() -> None:
        own = EmbeddingClient(api_key=KEY, base_url=served.url, max_concurrency=4, dimensions=64)
        next(iter(own.stream(f"text {i}" for i in range(MANY))))
        gc.collect()
        own.drain()  # what was sent already does arrive

    async def abegin() -> None:
        own = EmbeddingClient(api_key=KEY, base_url=served.url, max_concurrency=4, dimensions=64)
        await anext(own.astream(f"text {i}" for i in range(MANY)))

    assert leaks(begin if way == "sync" else lambda: asyncio.run(abegin())) == []
    asked = emulator.requests
    assert asked < MANY / 10
    client.embed("a")
    # What a cancelled task had sent may reach the server a moment later.
    assert emulator.requests - asked - 1 in range(1 if way == "sync" else IN_FLIGHT + 1)
    client.close()


def test_forgotten_clients_leave_no_sockets(served: Server, leaks: Callable[[Callable[[], object]], list[str]]) -> None:
    async def forget() -> None:
        inner = EmbeddingClient(api_key=KEY, base_url=served.url, dimensions=64)
        await inner.aembed(TEXTS)
        del inner
        gc.collect()
        await asyncio.sleep(0.01)

    def run() -> None:
        client = EmbeddingClient(api_key=KEY, base_url=served.url, dimensions=64)
        client.embed(TEXTS)
        asyncio.run(client.aembed(TEXTS))
        asyncio.run(forget())

    assert leaks(run) == []


@pytest.mark.parametrize("closing", ["with", "close", "async with", "aclose"])
async def test_every_call_of_a_closed_client_says_so(served: Server, emulator: Emulator, closing: str) -> None:
    client = EmbeddingClient(api_key=KEY, base_url=served.url, dimensions=64)
    if closing == "with":
        with client as entered:
            entered.embed("a")
    elif closing == "async with":
        async with client as entered:
            await entered.aembed("a")
            entered.embed("a")
    else:
        client.embed("a")
        await client.aembed("a")
        if closing == "close":
            client.close()
        await client.aclose()
    asked = emulator.requests
    for texts, role in ((["a"], "document"), (TEXTS, "document"), (["a"], "query")):
        with pytest.raises(InvalidInput, match="closed"):
            client.embed(texts, text_type=role)  # type: ignore[arg-type] # a role
        with pytest.raises(InvalidInput, match="closed"):
            await client.aembed(texts, text_type=role)  # type: ignore[arg-type] # same
    with pytest.raises(InvalidInput, match="closed"):
        next(iter(client.stream(TEXTS)))
    with pytest.raises(InvalidInput, match="closed"):
        await anext(client.astream(TEXTS))
    assert emulator.requests == asked
