"""The threads of all clients are the process's: reused by whoever needs one next, and ended when idle."""

from __future__ import annotations

import functools
import re
import threading
from typing import TYPE_CHECKING

from client_helpers import KEY, becomes_true
from raw_server import good_reply, serve_raw

from dashscope_embeddings import EmbeddingClient
from dashscope_embeddings._runtime import thread_pool
from dashscope_embeddings._runtime.thread_pool import DaemonThreadPool, WorkItem, shared_pool

if TYPE_CHECKING:
    import pytest

TEXTS = [f"text {i}" for i in range(60)]


def pool_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if re.fullmatch(r"dashscope_\d+", thread.name)]


def test_sixty_clients_use_the_threads_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pool_threads()
    monkeypatch.setattr(thread_pool, "_IDLE_SECONDS", 0.5)
    with serve_raw(lambda asked, _: good_reply(asked)) as server:
        clients = [EmbeddingClient(api_key=KEY, base_url=server.url, dimensions=64) for _ in range(60)]
        for client in clients:
            assert len(client.embed(TEXTS).dense) == len(TEXTS)
            assert len(client.embed("a query", text_type="query").dense) == 1
        own = {*pool_threads()} - {*before}
        assert len(own) <= 16  # a job of six requests, and threads that had not become idle yet
        assert becomes_true(lambda: own.isdisjoint(pool_threads()))
        for client in clients:
            client.close()


def test_idle_threads_end_and_calls_at_that_very_moment_are_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_pool, "_IDLE_SECONDS", 0.0)
    pool = DaemonThreadPool()
    for number in range(3_000):
        assert pool.submit(WorkItem(functools.partial(int, number))).result() == number
    assert becomes_true(lambda: pool._idle == [])


def test_calls_one_after_another_need_one_thread() -> None:
    pool, names = DaemonThreadPool(), set()
    for _ in range(100):
        names.add(pool.submit(WorkItem(lambda: threading.current_thread().name)).result())
        assert becomes_true(lambda: len(pool._idle) == 1)
    assert len(names) == 1


def test_a_call_that_waits_for_another_one_never_waits_for_its_own_thread() -> None:
    def nested(depth: int) -> int:
        return 1 + shared_pool.submit(WorkItem(lambda: nested(depth - 1))).result() if depth else 0

    assert nested(50) == 50
