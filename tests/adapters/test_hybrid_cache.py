"""`HybridCache` alone: counted, bounded, expiring, and safe between threads and processes."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
import tracemalloc
from array import array
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest

from dashscope_embeddings._adapters.hybrid_cache import CAPACITY_TEXTS, HybridCache, InFlight
from dashscope_embeddings.vectors import Embedding, SparseVector

if TYPE_CHECKING:
    from dashscope_embeddings._adapters.hybrid_cache import CacheKey, Component, Vector

QUESTION: CacheKey = ("query", "what?")
DENSE = [0.1, -0.25, 1e-300]
SPARSE = SparseVector([3, 2**32 - 1], list(array("f", [0.1, 0.7])))
BOTH = Embedding(0, DENSE, SPARSE)


class Clock:
    def __init__(self) -> None:
        self.time = 1_000.0

    def __call__(self) -> float:
        return self.time


def row(number: int) -> SparseVector:
    return SparseVector([number], [0.5])


def fill(cache: HybridCache, *texts: str) -> None:
    cache.put("sparse", "document", texts, [row(ord(text)) for text in texts])


def taken(cache: HybridCache, *texts: str) -> list[Vector | None]:
    return cache.take("sparse", "document", texts)


def joined(cache: HybridCache, component: Component, loop: asyncio.AbstractEventLoop | None = None) -> InFlight:
    """The request that a caller has to send or to wait for."""
    answer = cache.join_or_start(component, QUESTION, loop)
    assert isinstance(answer, tuple)
    return answer[0]


def complete(cache: HybridCache, in_flight: InFlight, embedding: Embedding | None) -> None:
    cache.complete(QUESTION, in_flight, embedding)


# Counted


def test_a_component_can_be_taken_as_often_as_it_was_put_and_is_then_deleted() -> None:
    cache = HybridCache()
    fill(cache, "a", "b", "a", "a")
    assert cache.size == 2
    assert taken(cache, "a", "b", "a", "a") == [row(97), row(98), row(97), row(97)]
    assert cache.size == 0
    assert taken(cache, "a", "b") == [None, None]


def test_what_is_asked_more_often_than_it_was_put_in_is_missing_the_last_times() -> None:
    cache = HybridCache()
    fill(cache, "a", "a")
    assert taken(cache, "a", "a", "a") == [row(97), row(97), None]


def test_components_and_roles_of_one_text_are_separate_entries() -> None:
    cache = HybridCache()
    cache.put("sparse", "document", ["a"], [row(1)])
    cache.put("sparse", "query", ["a"], [row(2)])
    cache.put("dense", "query", ["a"], [DENSE])
    assert cache.take("dense", "document", ["a"]) == [None]
    assert cache.take("dense", "query", ["a"]) == [DENSE]
    assert cache.take("sparse", "query", ["a"]) == [row(2)]
    assert cache.take("sparse", "document", ["a"]) == [row(1)]


def test_missing_names_each_text_as_often_as_an_entry_is_missing() -> None:
    cache = HybridCache()
    fill(cache, "a", "b", "b", "b")
    assert sorted(cache.missing("sparse", "document", ["a", "b", "c", "a", "a", "c"])) == ["a", "a", "c", "c"]
    assert cache.missing("sparse", "query", ["a"]) == ["a"]
    assert cache.size == 2


# What comes out


def test_a_vector_comes_out_as_it_went_in() -> None:
    cache = HybridCache()
    cache.put("sparse", "document", ["a"], [SPARSE])
    cache.put("dense", "document", ["a"], [DENSE])
    [sparse], [dense] = cache.take("sparse", "document", ["a"]), cache.take("dense", "document", ["a"])
    assert sparse == SPARSE
    assert dense == DENSE
    assert isinstance(sparse, SparseVector)
    assert {type(number) for number in (*sparse.indices, *sparse.values)} == {int, float}


def test_an_empty_sparse_vector_is_a_find_and_not_a_miss() -> None:
    cache = HybridCache()
    cache.put("sparse", "document", ["!"], [SparseVector([], [])])
    assert taken(cache, "!") == [SparseVector([], [])]


def test_nobody_shares_a_list_with_the_cache() -> None:
    cache = HybridCache()
    given = [1.0, 2.0]
    cache.put("dense", "query", ["a", "a"], [given, given])
    given[0] = 9.0
    first, second = cache.take("dense", "query", ["a", "a"])
    assert first == second == [1.0, 2.0]
    assert first is not second


def test_a_row_of_two_hundred_weights_takes_about_two_kibibytes() -> None:
    chance = random.Random(0)  # noqa: S311 - repeatable, no secret
    texts = [f"text {n}" for n in range(1_000)]
    rows = [
        SparseVector(sorted(chance.sample(range(250_000), 200)), [chance.random() for _ in range(200)]) for _ in texts
    ]
    cache = HybridCache()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        cache.put("sparse", "document", texts, rows)
        assert (tracemalloc.get_traced_memory()[0] - before) / len(texts) <= 2_100
    finally:
        tracemalloc.stop()
    assert cache.size == 1_000


# Bounded


def test_a_full_cache_refuses_new_entries_and_keeps_old_ones() -> None:
    cache = HybridCache(capacity=2)
    fill(cache, "a", "b", "c", "a")
    assert (cache.size, cache.free_capacity) == (2, 0)
    assert taken(cache, "a", "b", "c", "a") == [row(97), row(98), None, row(97)]
    fill(cache, "c")
    assert (cache.size, cache.free_capacity) == (1, 1)
    assert taken(cache, "c") == [row(99)]


def test_there_is_room_for_many_texts_by_default() -> None:
    assert CAPACITY_TEXTS >= 4_096
    assert HybridCache().free_capacity == CAPACITY_TEXTS


def test_a_cache_without_capacity_stores_nothing() -> None:
    cache = HybridCache(capacity=0)
    fill(cache, "a")
    assert (cache.size, cache.free_capacity) == (0, 0)


def test_what_nobody_fetches_expires_and_makes_room() -> None:
    clock = Clock()
    cache = HybridCache(capacity=2, expiry_seconds=60.0, clock=clock)
    fill(cache, "a")
    clock.time += 30.0
    fill(cache, "b")
    clock.time += 29.9
    assert cache.free_capacity == 0
    clock.time += 0.1
    assert cache.free_capacity == 1
    assert taken(cache, "a", "b") == [None, row(98)]


def test_what_is_put_in_again_lives_on() -> None:
    clock = Clock()
    cache = HybridCache(expiry_seconds=60.0, clock=clock)
    fill(cache, "a", "b")
    clock.time += 50.0
    fill(cache, "a")
    clock.time += 50.0
    assert taken(cache, "b", "a", "a", "a") == [None, row(97), row(97), None]


def test_expired_entries_are_missing() -> None:
    clock = Clock()
    cache = HybridCache(expiry_seconds=60.0, clock=clock)
    fill(cache, "a")
    clock.time += 60.0
    assert cache.missing("sparse", "document", ["a"]) == ["a"]
    assert cache.size == 0


# Requests in flight


def test_one_caller_leads_and_the_others_wait_for_both_components() -> None:
    cache = HybridCache()
    first = cache.join_or_start("dense", QUESTION, None)
    in_flight = joined(cache, "sparse")
    assert first == (in_flight, True)
    assert cache.join_or_start("sparse", QUESTION, None) == (in_flight, False)
    assert not in_flight.completed.is_set()
    complete(cache, in_flight, BOTH)
    assert in_flight.completed.is_set()
    assert in_flight.result is BOTH


def test_a_completed_request_stores_the_component_that_fewer_callers_requested() -> None:
    cache = HybridCache()
    in_flight = joined(cache, "dense")
    for _ in range(2):
        assert joined(cache, "dense") is in_flight
    assert joined(cache, "sparse") is in_flight
    complete(cache, in_flight, BOTH)
    assert cache.take("sparse", "query", ["what?"] * 3) == [SPARSE, SPARSE, None]
    complete(cache, joined(cache, "sparse"), BOTH)
    assert cache.join_or_start("dense", QUESTION, None) == DENSE
    assert cache.size == 0


def test_a_failed_request_wakes_its_waiters_stores_nothing_and_lets_the_next_caller_lead() -> None:
    cache = HybridCache()
    in_flight = joined(cache, "dense")
    complete(cache, in_flight, None)
    assert in_flight.completed.is_set()
    assert in_flight.result is None
    assert cache.size == 0
    again = cache.join_or_start("dense", QUESTION, None)
    assert isinstance(again, tuple)
    assert again[0] is not in_flight
    assert again[1] is True


async def test_an_orphaned_request_is_led_by_the_next_caller() -> None:
    cache = HybridCache()
    loop = asyncio.get_running_loop()

    async def lead() -> InFlight:
        return joined(cache, "dense", loop)

    lost = await asyncio.create_task(lead())
    assert lost.is_orphaned
    again = cache.join_or_start("sparse", QUESTION, loop)
    assert isinstance(again, tuple)
    assert again[0] is not lost
    assert again[1] is True
    complete(cache, lost, None)  # too late: it ends nobody else's
    assert cache.join_or_start("sparse", QUESTION, loop) == (again[0], False)


def test_waiting_for_a_request_would_block_the_thread_of_its_own_loop() -> None:
    loop = asyncio.new_event_loop()
    try:
        assert InFlight(loop).would_block(loop)
        assert not InFlight(None).would_block(loop)
        assert not InFlight(loop).would_block(None)
    finally:
        loop.close()


def test_waiting_for_a_request_of_any_loop_would_block_the_thread_of_any_other() -> None:
    one, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    one.close()
    other.close()
    assert InFlight(one).would_block(other)


# Threads and processes


def test_threads_that_put_and_take_at_once_lose_and_mix_up_nothing() -> None:
    cache = HybridCache()
    start = threading.Barrier(8)

    def work(number: int, done: Future[bool]) -> None:
        start.wait(10)
        right = True
        for round_ in range(200):
            text = f"{number} {round_}"
            cache.put("sparse", "document", [text, "shared"], [row(number), row(99)])
            right &= taken(cache, text, "shared") == [row(number), row(99)]
        done.set_result(right)

    results: list[Future[bool]] = [Future() for _ in range(8)]
    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(results)]
    for thread in threads:
        thread.start()
    assert [result.result(30) for result in results] == [True] * 8
    for thread in threads:
        thread.join(30)
    assert cache.size == 0


FORKED = """
import os, signal, sys
from dashscope_embeddings._adapters.hybrid_cache import HybridCache
from dashscope_embeddings.vectors import SparseVector
cache = HybridCache()
{parent}
child = os.fork()
if child == 0:
    signal.alarm(2)
    {child}
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def in_a_forked_child(parent: str, child: str) -> int:
    """The exit code of a forked child: 0 if all was right and it did not have to be stopped."""
    script = FORKED.format(parent=parent, child=child)
    return subprocess.run([sys.executable, "-c", script], check=False, timeout=30).returncode  # noqa: S603 - our own script


@needs_fork
def test_a_forked_child_leaves_its_parents_requests_to_the_parent() -> None:
    parent = "assert cache.join_or_start('dense', ('query', 'q'), None)[1] is True"
    child = "os._exit(0 if cache.join_or_start('sparse', ('query', 'q'), None)[1] is True else 1)"
    assert in_a_forked_child(parent, child) == 0


@needs_fork
def test_a_forked_child_finds_what_it_put_in_itself() -> None:
    child = """
    cache.put("sparse", "document", ["a"], [SparseVector([1], [0.5])])
    os._exit(0 if cache.take("sparse", "document", ["a"]) == [SparseVector([1], [0.5])] else 1)"""
    assert in_a_forked_child("", child) == 0


@needs_fork
def test_a_forked_child_does_not_wait_for_a_lock_that_a_thread_of_its_parent_held() -> None:
    assert in_a_forked_child("cache._lock.acquire()", "cache.take('sparse', 'document', ['a'])") == 0
