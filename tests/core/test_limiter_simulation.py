"""The judge of the limiter: the simulated services keep their quotas, and a client that knows one reaches the ideal."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from ideal_times import in_phases, informed_seconds
from limiter_simulation import shape_of
from listed_shapes import FURTHER_SHAPES, LONG_SHAPES, TABLE_SHAPES
from service_shapes import (
    Constant,
    Crowded,
    FixedWindow,
    Neighbour,
    Queue,
    Service,
    Shards,
    SlidingWindow,
    TokenBucket,
)
from simulated_client import Job, Machine, Simulation

if TYPE_CHECKING:
    from collections.abc import Callable

    from service_shapes import Quota


class _Permit:
    """Of a client that knows the quota, woken when a slot is free."""

    def __init__(self) -> None:
        self.wake: Callable[[], None] = lambda: None


class _Informed:
    """Stands for a limiter that was told everything: even pace, a fixed number in flight."""

    def __init__(self, clock: Callable[[], float], rate: float, concurrency: int) -> None:
        self.clock, self.interval, self.concurrency = clock, 1.0 / rate, concurrency
        self.next_at = 0.0

    def create_permit(self, _: int) -> _Permit:
        return _Permit()

    def try_acquire(self, _: _Permit) -> float:
        now = self.clock()
        if self.next_at > now:
            return min(0.25, self.next_at - now)
        self.next_at = max(self.next_at, now - 0.01) + self.interval
        return 0.0

    def on_success(self, *_: object) -> None:
        pass

    on_throttled = on_success


@pytest.mark.parametrize(
    ("name", "rate", "concurrency"),
    [
        ("100/s, 300 ms", 98, 64),
        ("arrival 30/s, 10 ms, slow connects", 29.4, 16),
        ("answer 30/s, 200 ms", 29.4, 16),
        ("50/s, lognormal 0.2 s", 49, 64),
        ("cap 8, 200 ms", 1000, 8),
        ("GCRA 30/s, room for 3, 10 ms", 29.4, 16),
        ("fixed second 30, 200 ms", 29.4, 16),
        ("queue 40/s, 200 ms", 1000, 16),
        ("crowded above 10, 200 ms", 1000, 10),
        ("four shards of 10/s", 29, 16),
        ("neighbour always half of 40/s", 19.6, 16),
        ("180 in 6 s", 29.4, 16),
    ],
)
def test_a_client_that_knows_the_quota_comes_near_the_ideal(name: str, rate: float, concurrency: int) -> None:
    shape = shape_of(name)
    simulation = Simulation(shape.service(3), shape.machine, seed=3)
    job = Job(_Informed(simulation.clock, rate, concurrency), [1400] * shape.requests)  # type: ignore[arg-type]
    result = simulation.run(job)
    assert result.answered == shape.requests
    assert 0.97 < result.seconds / shape.ideal(shape.requests, 0) < (1.5 if "shards" in name else 1.15)


@pytest.mark.parametrize(
    ("quota", "seconds", "most"),
    [
        (SlidingWindow(30), 1.0, 30),
        (SlidingWindow(180, 6.0), 6.0, 180),
        (SlidingWindow(3000, counts_tokens=True), 1.0, 30),
        (FixedWindow(30), 1.0, 60),
        (TokenBucket(30, 3), 1.0, 33),
        (TokenBucket(30, 60), 1.0, 90),
        (Neighbour(SlidingWindow(40), 20, phase=1.0), 1.0, 21),
        (Neighbour(SlidingWindow(40), 20, 3.0, 3.0), 1.0, 40),
    ],
)
def test_a_quota_admits_no_more_than_it_grants(quota: Quota, seconds: float, most: int) -> None:
    admitted = [step / 200 for step in range(2400) if quota.admit(step / 200, 100)]
    fullest = max(sum(at - seconds + 1e-6 < other <= at for other in admitted) for at in admitted)
    assert most - 1 <= fullest <= most


def test_a_changed_quota_holds_from_its_time_on() -> None:
    quota = SlidingWindow(30, limit_change=(5.0, 15.0))
    admitted = Counter(int(step / 200) for step in range(2000) if quota.admit(step / 200, 1))
    assert (admitted[3], admitted[8]) == (30, 15)


def test_a_neighbour_that_came_before_the_job_leaves_what_its_ideal_says() -> None:
    quota = Neighbour(SlidingWindow(40), 20, 3.0, 3.0, phase=2.0)
    admitted = Counter(int(step / 200) for step in range(1600) if quota.admit(step / 200, 1))
    assert [admitted[second] for second in range(8)] == pytest.approx([20, 40, 40, 40, 20, 20, 20, 40], abs=1)
    ideal = in_phases([(3.0, 20.0), (3.0, 40.0)], 0.1, phase=2.0)
    assert [ideal(requests, 0) for requests in (10, 60, 140, 160)] == pytest.approx([0.6, 2.1, 4.1, 5.1])


def test_an_even_pace_through_nodes_takes_as_long_as_the_ideal_of_a_random_shape() -> None:
    shape = shape_of("random:142")
    assert "4 shards of 4/s" in shape.name
    simulation = Simulation(shape.service(3), shape.machine, seed=3)
    job = Job(_Informed(simulation.clock, 10.0, 16), [1400] * 1200)  # type: ignore[arg-type]
    result = simulation.run(job)
    assert result.seconds == pytest.approx(shape.ideal(1200, 0), rel=0.05)
    assert 0.09 < result.throttled_share < 0.14


def test_shards_count_for_themselves() -> None:
    shards = Shards([SlidingWindow(20), SlidingWindow(20)], random.Random(1))  # noqa: S311 - no secret
    admitted = [shards.admit(0.0, 1) for _ in range(100)]
    assert sum(admitted) == 40
    assert not all(admitted[: admitted.index(False) + 5])


def test_a_cap_refuses_what_is_too_much_at_once_and_quickly() -> None:
    service = Service(Constant(0.2), cap=2)
    first, second, third = (service.arrive(0.0, 1) for _ in range(3))
    assert (first.admitted, second.admitted, third.admitted) == (True, True, False)
    assert third.seconds < 0.01 < first.seconds
    assert not service.answer(third, third.seconds)
    assert service.answer(first, 0.2)
    assert service.arrive(0.2, 1).admitted


def test_a_quota_that_counts_at_the_answer_refuses_late() -> None:
    service = Service(Constant(0.2, 0.0), SlidingWindow(1), counts_at_answer=True)
    works = [service.arrive(0.0, 1) for _ in range(2)]
    assert [work.seconds for work in works] == [0.2, 0.2]
    assert [service.answer(work, 0.2) for work in works] == [True, False]


def test_latency_follows_the_load() -> None:
    queue, crowded = Service(Queue(10, 0.0)), Service(Crowded(0.1, 2))
    assert [queue.arrive(0.0, 1).seconds for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    times = [crowded.arrive(0.0, 1).seconds for _ in range(8)]
    assert times[0] < 0.12
    assert 0.4 <= times[-1] < 0.45


def test_first_requests_overtake_each_other_where_connects_are_slow() -> None:
    arrived: list[float] = []

    class Watched(Service):
        def arrive(self, now: float, tokens: int):  # type: ignore[no-untyped-def] # noqa: ANN202 - as its parent
            arrived.append(tokens)
            return super().arrive(now, tokens)

    simulation = Simulation(Watched(Constant(0.01)), Machine(handshake=0.3))
    simulation.run(Job(_Informed(simulation.clock, 200, 16), list(range(16))))  # type: ignore[arg-type]
    assert sorted(arrived) == list(range(16)) != arrived


def test_a_waiter_is_woken_before_its_time() -> None:
    simulation = Simulation(Service(Constant(0.01)))
    limiter = _Informed(simulation.clock, 1000, 1)
    waits = iter([0.25, 0.0])
    permits: list[_Permit] = []

    def try_acquire(permit: _Permit) -> float:
        permits.append(permit)
        return next(waits)

    limiter.try_acquire = try_acquire  # type: ignore[assignment] # told to wait once
    simulation.schedule(0.05, lambda: permits[0].wake())  # noqa: PLW0108 - there is none yet
    result = simulation.run(Job(limiter, [1]))  # type: ignore[arg-type]
    assert 0.05 < result.sends[0][0] < 0.052
    assert len(permits) == 2


def test_an_informed_client_needs_a_round_trip_for_each_doubling() -> None:
    assert informed_seconds(16, 1e9, 1.0) == pytest.approx(1.0)
    assert informed_seconds(16 + 32 + 64, 1e9, 1.0) == pytest.approx(3.0, abs=0.01)
    assert informed_seconds(300, 30, 0.1) == pytest.approx(10.0, abs=0.1)


def test_names_of_shapes_are_unique() -> None:
    names = [shape.name for shape in (*TABLE_SHAPES, *FURTHER_SHAPES, *LONG_SHAPES)]
    assert len(names) == len(set(names))
