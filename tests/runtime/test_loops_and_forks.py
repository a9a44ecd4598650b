"""Processes, event loops and sudden ends, as they come in servers, notebooks and scripts.

What is promised                                   where it is proven
fork before and after the first use                test_process: parent_and_child_never_read_each_others_replies
fork of a limiter, a cache, an emulator in use     test_rate_limiter, test_hybrid_concurrency, test_emulator
fork under load; while any lock is held            here: a_child_forked_under_load..., a_child_does_not_wait...
workers forked by a server that was used before    here: workers_forked_from_a_used_parent...
spawn, with a pickled client or adapter            here: a_spawned_worker..., ingestion_workers...
pickle, copy, deepcopy                             test_process: only_configuration_is_pickled;
                                                   test_dense_adapters: a_copy_of_a_used_object...
IngestionPipeline(num_workers=2)                   here: ingestion_workers...
asyncio.run three times                            test_process: three_loops...; test_dense_adapters
two live loops in two threads, one adapter         test_dense_adapters: two_event_loops_side_by_side...
sync calls inside a running loop                   test_process, test_dense_adapters
a notebook's loop, cell by cell                    here: cells_of_a_notebook...; test_notebooks in real kernels
PropertyGraphIndex, which runs two loops           here: a_property_graph_index...
cancellation: nothing is sent afterwards           test_process: nothing_is_sent_after_a_cancellation;
                                                   test_dense_adapters: after_a_cancellation_no_request_starts
Ctrl-C: prompt, nothing sent afterwards, and the   here: ctrl_c...
exception carries what arrived
cancellation carries what arrived                  here: a_cancelled_job...
interpreter exit with work under way               here: a_program_ends...
forgotten clients leave no ResourceWarning         test_process: forgotten_clients...; here: an_abandoned_stream...
closed clients say so                              test_process: a_closed_client_says_so; here: every_call_of...
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import KEY

pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

from llama_index.core import Document, PropertyGraphIndex
from llama_index.core.graph_stores.types import KG_NODES_KEY, KG_RELATIONS_KEY, EntityNode
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.schema import BaseNode, TextNode, TransformComponent

from dashscope_embeddings import EmbeddingClient, InvalidInput
from dashscope_embeddings.emulator import Emulator, faults
from dashscope_embeddings.llama_index import DashScopeEmbedding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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


async def came(emulator: Emulator, requests: int) -> None:
    """Waits until so many requests came: a server's thread cannot set an event of the loop."""
    for _ in range(4_000):
        if emulator.requests >= requests:
            return
        await asyncio.sleep(0.005)
    pytest.fail(f"{emulator.requests} requests came, not {requests}")


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
def test_workers_forked_from_a_used_parent_serve_the_right_vectors(served: Server, emulator: Emulator) -> None:
    program = """
    from dashscope_embeddings.langchain import DashScopeEmbeddings
    embeddings = DashScopeEmbeddings(api_key=key, base_url=url, max_concurrency=4)
    assert right(embeddings.client, "before")

    def serve(name):
        def work():
            queries = [f"{name} asks {i}" for i in range(10)]
            answers = [embeddings.embed_query(text) for text in queries]
            fine = answers == [judge.dense(text, text_type="query") for text in queries]
            return fine and right(embeddings.client, name)
        return work

    workers = [child(serve(f"worker {n}")) for n in range(3)]
    mine = serve("master")()
    print(mine, [code(pid) for pid in workers])
    """
    assert ran(RIGHT, program, served) == (0, "True [0, 0, 0]\n", "")
    assert emulator.billed_texts == 2 * 60 + 4 * (10 + 2 * 60)


# --- spawned workers ----------------------------------------------------------------------------------------


def only_key_was_ours(emulator: Emulator) -> bool:
    return emulator.keys_seen == {hashlib.sha256(KEY.encode()).hexdigest()}


def test_a_spawned_worker_embeds_with_what_was_pickled(served: Server, emulator: Emulator) -> None:
    client = EmbeddingClient(api_key=KEY, base_url=served.url, dimensions=64)
    client.embed("used before")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(client.embed, (TEXTS,))
        pool.close()
        pool.join()
    assert found.dense == [emulator.dense(text, dimension=64) for text in TEXTS]
    assert emulator.billed_texts == 1 + len(TEXTS)
    assert only_key_was_ours(emulator)


@pytest.mark.filterwarnings("ignore:Specified num_workers exceed")
def test_ingestion_workers_ask_the_service_with_the_key(served: Server, emulator: Emulator) -> None:
    embedding = DashScopeEmbedding(api_key=KEY, base_url=served.url, dimensions=64)
    embedding.get_text_embedding("used before")
    pipeline = IngestionPipeline(transformations=[embedding], disable_cache=True)
    nodes = pipeline.run(documents=[Document(text=text) for text in TEXTS[:30]], num_workers=2)
    assert [node.embedding for node in nodes] == [emulator.dense(text, dimension=64) for text in TEXTS[:30]]
    assert emulator.billed_texts == 1 + 30
    assert only_key_was_ours(emulator)


# --- loops --------------------------------------------------------------------------------------------------


class Naming(TransformComponent):
    """Finds one entity in each node, without asking anybody."""

    def __call__(self, nodes: Sequence[BaseNode], **_: Any) -> Sequence[BaseNode]:
        for node in nodes:
            node.metadata[KG_NODES_KEY] = [EntityNode(name=f"entity of {node.node_id}", label="ENTITY")]
            node.metadata[KG_RELATIONS_KEY] = []
        return nodes


def test_a_property_graph_index_runs_its_two_loops(served: Server, emulator: Emulator) -> None:
    """It embeds nodes in one `asyncio.run` and entities in another, with the same object."""
    embedding = DashScopeEmbedding(api_key=KEY, base_url=served.url, dimensions=64)
    nodes = [TextNode(text=text, id_=f"node {i}") for i, text in enumerate(TEXTS[:25])]
    index = PropertyGraphIndex(
        nodes=nodes, llm=MockLLM(), kg_extractors=[Naming()], embed_model=embedding, use_async=True
    )
    asked = [asked.texts for asked in emulator.asked]
    assert sorted(len(texts) for texts in asked) == [5, 5, 10, 10, 10, 10]
    assert sum("entity of" in text and "text number" not in text for texts in asked for text in texts) == 25
    assert {asked.text_type for asked in emulator.asked} == {"document"}
    stored = index.property_graph_store.get(ids=["entity of node 7"])
    assert len(stored) == 1
    assert embedding.usage.texts == emulator.billed_texts == 50


def test_cells_of_a_notebook_may_mix_sync_and_async_calls(served: Server, emulator: Emulator) -> None:
    """One loop that never ends, on which every cell runs: awaited, sync, or with work left in the background."""
    client = EmbeddingClient(api_key=KEY, base_url=served.url, max_concurrency=4, dimensions=64)
    wanted = {text: emulator.dense(text, dimension=64) for text in [*TEXTS, *(text + "!" for text in TEXTS)]}
    background: dict[str, asyncio.Task[Any]] = {}

    async def sync_cell() -> None:
        assert client.embed(TEXTS).dense == [wanted[text] for text in TEXTS]
        assert client.embed("a", text_type="query").dense == [emulator.dense("a", text_type="query", dimension=64)]
        assert [found.dense for found in client.stream(TEXTS)] == [wanted[text] for text in TEXTS]

    async def awaited_cell() -> None:
        assert (await client.aembed(TEXTS)).dense == [wanted[text] for text in TEXTS]
        assert [found.dense async for found in client.astream(TEXTS)] == [wanted[text] for text in TEXTS]

    async def leaving_cell() -> None:
        background["job"] = asyncio.ensure_future(client.aembed([text + "!" for text in TEXTS]))
        await came(emulator, 1)

    async def collecting_cell() -> None:
        assert (await background["job"]).dense == [wanted[text + "!"] for text in TEXTS]

    loop = asyncio.new_event_loop()
    # The job's requests are in flight, and cannot complete, while the sync cell keeps the loop.
    for cell in (leaving_cell, sync_cell, collecting_cell, awaited_cell, sync_cell, awaited_cell):
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


def until(condition: Callable[[], bool], process: subprocess.Popen[str], *, may_end: bool = False) -> None:
    pause = threading.Event()
    for _ in range(4_000):
        if condition():
            return
        if not may_end and process.poll() is not None:
            pytest.fail(f"it ended too early: {process.communicate()}")
        pause.wait(0.005)
    process.kill()
    process.communicate()
    pytest.fail("what was waited for did not come")


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

    client = EmbeddingClient(api_key=key, base_url=url, max_concurrency={IN_FLIGHT}, dimensions=64, timeout=600)
    texts = {JOB!r}

    def tell(stopped):
        print(json.dumps([stopped.partial, stopped.failed, client.usage.requests]), flush=True)
"""


def interrupted(way: str, stalling: tuple[Emulator, Server]) -> tuple[Emulator, subprocess.Popen[str]]:
    emulator, served = stalling
    process = started(textwrap.dedent(CTRL_C) + textwrap.dedent(INTERRUPTED[way]), served)
    until(lambda: emulator.requests >= ANSWERED + IN_FLIGHT, process)
    process.send_signal(signal.SIGINT)
    return emulator, process


@needs_signals
@pytest.mark.parametrize("way", INTERRUPTED)
def test_ctrl_c_brings_along_what_arrived_and_sends_nothing_more(way: str, stalling: tuple[Emulator, Server]) -> None:
    emulator, process = interrupted(way, stalling)
    assert process.stdout is not None
    line = process.stdout.readline()
    process.kill()  # whether it would have ended by itself is the next test's claim
    process.communicate()
    partial, failed, billed = json.loads(line)
    assert len(partial) == ANSWERED * 10
    for index, vector in partial.items():
        assert vector == emulator.dense(JOB[int(index)], dimension=64)
    known = {*map(int, partial), *failed}
    assert known == set(range(MANY)) if way != "stream" else len(known) == len(partial) + len(failed)
    assert billed == ANSWERED
    assert emulator.requests == ANSWERED + IN_FLIGHT


@needs_signals
@pytest.mark.parametrize("way", ["sync", "async"])
def test_ctrl_c_ends_a_program_though_no_reply_ever_comes(way: str, stalling: tuple[Emulator, Server]) -> None:
    emulator, process = interrupted(way, stalling)
    code, _, err = ended(process, 4.0)
    assert (code, err) == (0, "")
    assert emulator.requests == ANSWERED + IN_FLIGHT


async def test_a_cancelled_job_brings_along_what_arrived(stalling: tuple[Emulator, Server]) -> None:
    emulator, served = stalling
    client = EmbeddingClient(api_key=KEY, base_url=served.url, max_concurrency=IN_FLIGHT, dimensions=64, timeout=600)
    job = asyncio.create_task(client.aembed(JOB))
    await came(emulator, ANSWERED + IN_FLIGHT)
    job.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await job
    partial: dict[int, list[float]] = getattr(caught.value, "partial", {})
    assert partial == {index: emulator.dense(JOB[index], dimension=64) for index in partial}
    assert len(partial) == ANSWERED * 10
    assert sorted([*partial, *getattr(caught.value, "failed", [])]) == list(range(MANY))
    assert emulator.requests == ANSWERED + IN_FLIGHT
    assert client.usage.requests == ANSWERED
    await client.aclose()


LEFT = {
    "nothing": "client.embed(texts[:20])",
    "a daemon thread": """
    import threading
    threading.Thread(target=client.embed, args=(texts,), daemon=True).start()
    sys.stdin.read()
    """,
    "a stream that was begun": """
    left = client.stream(texts)
    for _ in range(41):
        next(left)
    sys.stdin.read()
    """,
    "a task that nobody awaits": """
    import asyncio
    async def main():
        task = asyncio.create_task(client.aembed(texts))
        await asyncio.to_thread(sys.stdin.read)
    asyncio.run(main())
    """,
    "an async stream that was begun": """
    import asyncio
    async def main():
        left = client.astream(texts)
        for _ in range(41):
            await anext(left)
        await asyncio.to_thread(sys.stdin.read)
    asyncio.run(main())
    """,
    "a loop in a daemon thread": """
    import asyncio, threading
    threading.Thread(target=lambda: asyncio.run(client.aembed(texts)), daemon=True).start()
    sys.stdin.read()
    """,
}


@pytest.mark.parametrize("left", LEFT)
def test_a_program_ends_by_itself_with_work_under_way(left: str, stalling: tuple[Emulator, Server]) -> None:
    emulator, served = stalling
    # A stream has asked for nothing more when the first vector of the fifth request was taken.
    expected = 2 if left == "nothing" else ANSWERED + IN_FLIGHT - ("stream" in left)
    process = started(textwrap.dedent(CTRL_C) + textwrap.dedent(LEFT[left]), served)
    until(lambda: emulator.requests >= expected, process, may_end=left == "nothing")
    assert ended(process, 4.0) == (0, "", "")
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


@pytest.mark.parametrize("closing", ["close", "aclose"])
async def test_every_call_of_a_closed_client_says_so(served: Server, emulator: Emulator, closing: str) -> None:
    client = EmbeddingClient(api_key=KEY, base_url=served.url, dimensions=64)
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
