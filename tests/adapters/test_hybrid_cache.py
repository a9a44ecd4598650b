"""`HybridCache` alone: counted, bounded, expiring, and safe between threads."""

from __future__ import annotations

import random
import threading
import tracemalloc
from array import array
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from dashscope_embeddings._adapters.hybrid_cache import HybridCache
from dashscope_embeddings.vectors import SparseVector

if TYPE_CHECKING:
    from dashscope_embeddings._adapters.hybrid_cache import Vector


class Clock:
    time = 1_000.0

    def __call__(self) -> float:
        return self.time


def row(number: int) -> SparseVector:
    return SparseVector([number], [0.5])


def fill(cache: HybridCache, *texts: str) -> None:
    cache.put("sparse", "document", texts, [row(ord(text)) for text in texts])


def taken(cache: HybridCache, *texts: str) -> list[Vector | None]:
    return cache.take("sparse", "document", texts)


def test_a_component_can_be_taken_as_often_as_it_was_put_and_is_then_deleted() -> None:
    cache = HybridCache()
    fill(cache, "a", "b", "a", "a")
    assert cache.size == 2
    assert sorted(cache.missing("sparse", "document", ["a", "b", "c", "b", "a", "c"])) == ["b", "c", "c"]
    assert taken(cache, "a", "b", "a", "a", "b") == [row(97), row(98), row(97), row(97), None]
    assert cache.size == 0
    assert taken(cache, "a", "b") == [None, None]


def test_components_and_roles_of_one_text_are_separate_entries() -> None:
    cache, dense = HybridCache(), [0.1, -0.25, 1e-300]
    cache.put("sparse", "document", ["a"], [row(1)])
    cache.put("sparse", "query", ["a"], [row(2)])
    cache.put("dense", "query", ["a"], [dense])
    assert cache.take("dense", "document", ["a"]) == [None]
    assert cache.take("dense", "query", ["a"]) == [dense]
    assert cache.take("sparse", "query", ["a"]) == [row(2)]
    assert cache.take("sparse", "document", ["a"]) == [row(1)]


def test_a_sparse_vector_comes_out_as_it_went_in_and_an_empty_one_is_no_miss() -> None:
    cache, given = HybridCache(), SparseVector([3, 2**32 - 1], list(array("f", [0.1, 0.7])))
    cache.put("sparse", "document", ["a", "!"], [given, SparseVector([], [])])
    found, empty = taken(cache, "a", "!")
    assert (found, empty) == (given, SparseVector([], []))
    assert isinstance(found, SparseVector)
    assert {type(number) for number in (*found.indices, *found.values)} == {int, float}


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
    texts = [f"text {n}" for n in range(200)]
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


def test_a_full_cache_refuses_new_entries_and_keeps_old_ones() -> None:
    cache = HybridCache(capacity=2)
    fill(cache, "a", "b", "c", "a")
    assert (cache.size, cache.free_capacity("document")) == (2, 0)
    assert taken(cache, "a", "b", "c", "a") == [row(97), row(98), None, row(97)]
    fill(cache, "c")
    assert (cache.size, cache.free_capacity("document")) == (1, 1)
    assert taken(cache, "c") == [row(99)]


def test_what_nobody_fetches_expires_and_makes_room() -> None:
    clock = Clock()
    cache = HybridCache(capacity=2, expiry_seconds=60.0, clock=clock)
    fill(cache, "a")
    clock.time += 30.0
    fill(cache, "b")
    clock.time += 29.9
    assert cache.free_capacity("document") == 0
    clock.time += 0.1
    assert cache.free_capacity("document") == 1
    assert taken(cache, "a", "b") == [None, row(98)]


def test_what_is_put_in_again_lives_on() -> None:
    clock = Clock()
    cache = HybridCache(expiry_seconds=60.0, clock=clock)
    fill(cache, "a", "b")
    clock.time += 50.0
    fill(cache, "a")
    clock.time += 50.0
    assert cache.missing("sparse", "document", ["a", "b"]) == ["b"]
    assert taken(cache, "b", "a", "a", "a") == [None, row(97), row(97), None]


def test_threads_that_put_and_take_at_once_lose_and_mix_up_nothing() -> None:
    cache, start = HybridCache(), threading.Barrier(8)

    def work(number: int) -> bool:
        start.wait(10)
        right = True
        for round_ in range(100):
            text = f"{number} {round_}"
            cache.put("sparse", "document", [text, "shared"], [row(number), row(99)])
            right &= taken(cache, text, "shared") == [row(number), row(99)]
        return right

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert cache.size == 0
