"""The limiter: turns, holds, what it learns, and whose quota holds."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import threading

import pytest
from limiter_simulation import shape_of

from dashscope_embeddings._core import rate_limiter as module
from dashscope_embeddings._core.rate_estimator import SearchState
from dashscope_embeddings._core.rate_limiter import Limiter, Permit, shared_limiter


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 500.0

    def __call__(self) -> float:
        return self.now


class Owner:
    """Stands for a client, which a limiter knows by a weak reference alone."""


def send(limiter: Limiter, clock: Clock, tokens: int = 100, *, urgent: bool = False) -> Permit:
    """Ask until it is granted; fails after two minutes."""
    permit = limiter.create_permit(tokens, high_priority=urgent)
    patience = clock.now + 120.0
    while wait := limiter.try_acquire(permit):
        assert clock.now < patience, "held for ever"
        clock.now += wait
    return permit


def hit_wall(limiter: Limiter, clock: Clock, passing: int = 30) -> None:
    """Have some requests answered, then two refused in a row and the one that looks again."""
    for _ in range(passing):
        permit = send(limiter, clock)
        clock.now += 0.005
        limiter.on_success(permit, 100)
    for _ in range(3):
        permit = send(limiter, clock)
        clock.now += 0.005
        limiter.on_throttled(permit)


def held(limiter: Limiter) -> bool:
    """Whether a newcomer has to wait."""
    permit = limiter.create_permit(1)
    wait = limiter.try_acquire(permit)
    limiter.cancel(permit)
    return wait > 0.0


def test_a_lone_caller_never_waits_without_a_quota() -> None:
    limiter = Limiter(Clock())
    for _ in range(1000):
        permit = limiter.create_permit(100)
        assert limiter.try_acquire(permit) == 0.0
        limiter.on_success(permit, 100)


def test_a_given_quota_is_paced_evenly_from_the_first_request_on() -> None:
    clock = Clock()
    limiter = Limiter(clock, requests_per_minute=1800)
    times = []
    for _ in range(100):
        limiter.on_success(send(limiter, clock), 100)
        times.append(clock.now)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert min(gaps) == pytest.approx(max(gaps))
    assert gaps[0] == pytest.approx(60 / (0.98 * 1800))


def test_given_tokens_are_paced_evenly_by_their_number() -> None:
    clock = Clock()
    limiter = Limiter(clock, tokens_per_minute=60_000)
    limiter.on_success(send(limiter, clock, 490), 490)
    began = clock.now
    limiter.on_success(send(limiter, clock, 98), 98)
    assert clock.now - began == pytest.approx(0.5)
    limiter.on_success(send(limiter, clock, 98), 98)
    assert clock.now - began == pytest.approx(0.6)


@pytest.mark.parametrize("truth", [0.5, 2.0, 5.0])
def test_the_bill_corrects_the_token_estimate(truth: float) -> None:
    clock = Clock()
    limiter = Limiter(clock, tokens_per_minute=60_000)
    began, billed = clock.now, 0
    for _ in range(200):
        limiter.on_success(send(limiter, clock, 100), round(100 * truth))
        billed += round(100 * truth)
    assert billed / (clock.now - began) == pytest.approx(980, rel=0.02)
    waiting = [limiter.create_permit(100) for _ in range(2)]
    assert limiter.try_acquire(waiting[0]) == pytest.approx(min(0.25, 100 * truth / 980))
    assert waiting[0].sent_at is None


def test_a_request_above_a_seconds_tokens_goes_all_the_same() -> None:
    clock = Clock()
    limiter = Limiter(clock, tokens_per_minute=6000)
    for _ in range(3):
        limiter.on_throttled(send(limiter, clock, 90))
    began = clock.now
    limiter.on_success(send(limiter, clock, 1000), 1000)
    assert clock.now - began < 5.0
    limiter.on_success(send(limiter, clock, 10), 10)
    assert 9.0 < clock.now - began < 12.0


def waiters(limiter: Limiter, count: int) -> list[Permit]:
    """A request on its way, and so many that wait."""
    limiter.try_acquire(limiter.create_permit(10))
    permits = [limiter.create_permit(10) for _ in range(count)]
    for permit in permits:
        assert 0.0 < limiter.try_acquire(permit) <= 0.25
    return permits


def served(limiter: Limiter, clock: Clock, permits: list[Permit], seed: int = 1) -> list[Permit]:
    """Who is granted, in order, when all come back when told, or a little later."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    due = dict.fromkeys(permits, clock.now)
    order = []
    while due:
        permit = min(due, key=lambda waiting: due[waiting])
        clock.now = max(clock.now, due[permit])
        if wait := limiter.try_acquire(permit):
            due[permit] = clock.now + wait + chance.random() * 0.004
        else:
            order.append(permit)
            limiter.cancel(permit)  # its place is free for the next one
            del due[permit]
    return order


def test_waiting_callers_are_served_in_the_order_they_came() -> None:
    clock = Clock()
    limiter = Limiter(clock, requests_per_minute=1200)
    permits = waiters(limiter, 40)
    random.Random(3).shuffle(shuffled := list(permits))  # noqa: S311 - no secret
    assert served(limiter, clock, shuffled) == permits


def test_queries_go_before_waiting_documents() -> None:
    clock = Clock()
    limiter = Limiter(clock, requests_per_minute=600)
    documents = waiters(limiter, 5)
    queries = [limiter.create_permit(10, high_priority=True) for _ in range(3)]
    for query in queries:
        assert limiter.try_acquire(query) > 0.0
    assert served(limiter, clock, documents + queries) == queries + documents


def test_a_waiter_that_does_not_come_back_holds_up_nobody_for_long_and_is_next_when_it_does() -> None:
    clock = Clock()
    limiter = Limiter(clock, requests_per_minute=600)
    late, second, third, fourth = waiters(limiter, 4)
    began = clock.now
    assert served(limiter, clock, [third, second]) == [second, third]
    assert clock.now - began < 2 * 60 / (0.98 * 600) + 0.25
    assert served(limiter, clock, [fourth, late]) == [late, fourth]


def test_a_cancelled_waiter_leaves_the_queue_at_once() -> None:
    clock = Clock()
    limiter = Limiter(clock, requests_per_minute=60)
    permits = waiters(limiter, 3)
    for permit in permits[:2]:
        limiter.cancel(permit)
    clock.now += 60 / (0.98 * 60)
    assert limiter.try_acquire(permits[2]) == 0.0


def test_a_permit_ends_once() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    first, second = send(limiter, clock), send(limiter, clock)
    limiter.on_success(first, 100)
    for _ in range(5):
        limiter.on_throttled(first, retry_after_seconds=30.0)
        limiter.cancel(first)
    assert limiter.in_flight == 1
    limiter.cancel(second)
    limiter.on_success(second, 100)
    assert limiter.in_flight == 0
    assert not held(limiter)


def test_a_granted_permit_is_charged_once() -> None:
    clock = Clock()
    limiter = Limiter(clock, requests_per_minute=60)
    permit = send(limiter, clock)
    assert limiter.try_acquire(permit) == 0.0
    assert limiter.try_acquire(limiter.create_permit(1)) == 0.25
    clock.now += 60 / (0.98 * 60)
    assert not held(limiter)


@pytest.mark.parametrize(("asked", "honoured"), [(7.5, 7.5), (3600.0, 60.0)])
def test_retry_after_holds_the_whole_account_up_to_a_minute(asked: float, honoured: float) -> None:
    clock = Clock()
    limiter = Limiter(clock)
    permit = send(limiter, clock)
    limiter.on_throttled(permit, retry_after_seconds=asked)
    refused_at = clock.now
    limiter.on_success(send(limiter, clock, urgent=True), 100)
    assert clock.now - refused_at == pytest.approx(honoured)


def test_retry_after_of_an_old_request_is_honoured_too() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    old = send(limiter, clock)
    hit_wall(limiter, clock)
    limiter.on_throttled(old, retry_after_seconds=20.0)
    refused_at = clock.now
    send(limiter, clock)
    assert clock.now - refused_at == pytest.approx(20.0)


def test_a_wall_stops_everyone_until_its_window_is_over_and_then_one_request_looks() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    began = clock.now
    hit_wall(limiter, clock)
    probes = 0
    while clock.now - began < 1.0:
        probe = send(limiter, clock)
        assert held(limiter)
        if clock.now - began < 1.0:
            clock.now += 0.005
            limiter.on_throttled(probe)
            probes += 1
    assert probes <= 4
    assert 1.0 <= clock.now - began < 1.2
    limiter.on_success(probe, 100)
    assert limiter._estimator.steady.limit == pytest.approx(30, abs=1)
    clock.now += 0.04
    assert not held(limiter)


def test_a_cancelled_probe_makes_room_for_another_at_once() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    hit_wall(limiter, clock)
    probe = send(limiter, clock)
    assert held(limiter)
    limiter.cancel(probe)
    clock.now += 0.01
    assert not held(limiter)


def test_a_probe_that_is_not_refused_soon_is_taken_to_have_passed() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    hit_wall(limiter, clock)
    slow = send(limiter, clock)
    second = send(limiter, clock)
    assert 0.02 < clock.now - (slow.sent_at or 0.0) < 0.3
    limiter.on_success(second, 100)
    clock.now += 0.1
    assert not held(limiter)


def test_a_look_from_before_a_hold_does_not_end_it() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    limiter.on_throttled(send(limiter, clock))
    slow = send(limiter, clock)
    for _ in range(2):
        clock.now += 5.0
        limiter.on_throttled(send(limiter, clock))
    assert limiter._estimator.state is SearchState.OPEN
    limiter.on_success(slow, 100)
    assert limiter._estimator.state is SearchState.OPEN


def test_one_refusal_among_answers_does_not_slow_anyone_down() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    for _ in range(50):
        permits = [send(limiter, clock) for _ in range(3)]
        clock.now += 0.08
        limiter.on_throttled(permits[0])
        limiter.on_success(permits[1], 100)
        limiter.on_success(permits[2], 100)
        for _ in range(30):
            limiter.on_success(send(limiter, clock), 100)
    assert limiter._estimator.steady.limit is None
    assert not held(limiter)


def test_who_waits_for_a_suspicion_goes_on_as_soon_as_it_has_ended() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    started = [send(limiter, clock) for _ in range(15)]
    for permit in started[:2]:
        limiter.on_throttled(permit)
    probe, waiting, woken = limiter.create_permit(100), limiter.create_permit(100), list[float]()
    waiting.wake = lambda: woken.append(clock.now)
    clock.now += limiter.try_acquire(probe)
    assert limiter.try_acquire(probe) == 0.0
    assert limiter.try_acquire(waiting) > 0.02
    for permit in started[2:]:
        limiter.on_success(permit, 100)
    assert not woken
    limiter.on_success(probe, 100)
    assert woken == [clock.now]
    assert limiter.try_acquire(waiting) < 0.01


def test_after_minutes_of_rest_the_quota_is_remembered_and_no_hold_is_left() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    hit_wall(limiter, clock)
    clock.now += 300.0
    burst = [limiter.create_permit(10) for _ in range(3)]
    assert limiter.try_acquire(burst[0]) == 0.0
    assert 0.0 < limiter.try_acquire(burst[1]) < 0.06
    assert limiter._estimator.steady.limit == pytest.approx(30, abs=1)


def test_rest_does_not_raise_a_learned_quota() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    hit_wall(limiter, clock)
    limiter.on_success(send(limiter, clock), 100)
    before = limiter._estimator.rate(clock.now)
    for _ in range(60):
        clock.now += 10.0
        limiter.on_success(send(limiter, clock), 100)
    assert limiter._estimator.rate(clock.now) == pytest.approx(before, rel=0.05)


def test_histories_are_bounded_in_time_and_in_size() -> None:
    clock = Clock()
    limiter = Limiter(clock, requests_per_minute=6e6, tokens_per_minute=6e9)
    for _ in range(20_000):
        limiter.on_success(send(limiter, clock), 100)
    assert len(limiter._estimator.log._sends) <= 8192
    assert len(limiter._token_quota._window_permits) <= 4096
    clock.now += 100.0
    limiter.on_success(send(limiter, clock), 100)
    assert len(limiter._estimator.log._sends) == len(limiter._token_quota._window_permits) == 1


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happened_a_newcomer_gets_its_turn_when_nothing_is_in_flight(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    clock = Clock()
    limiter = Limiter(clock, chance.choice([None, 300.0]), chance.choice([None, 60_000.0]))
    waiting: list[Permit] = []
    flying: list[Permit] = []
    for _ in range(400):
        clock.now += chance.choice([0.0, 0.001, 0.03, 0.3])
        waiting.append(limiter.create_permit(chance.randint(1, 3000), high_priority=chance.random() < 0.2))
        asking = chance.choice(waiting)
        if limiter.try_acquire(asking) == 0.0:
            waiting.remove(asking)
            flying.append(asking)
        if chance.random() < 0.3:
            waiting.pop(chance.randrange(len(waiting))) if waiting else None
        if chance.random() < 0.1 and waiting:
            limiter.cancel(waiting.pop())
        if flying and chance.random() < 0.7:
            permit = flying.pop(chance.randrange(len(flying)))
            end = chance.choice(["settle", "refuse", "release", "retry after", "lost"])
            if end == "settle":
                limiter.on_success(permit, chance.choice([None, 0, 50, 9000]))
            elif end == "release":
                limiter.cancel(permit)
            elif end != "lost":
                limiter.on_throttled(permit, 2.0 if end == "retry after" else None)
    for permit in flying:
        limiter.cancel(permit)
    send(limiter, clock, 10)
    assert clock.now > 500.0


def test_many_threads_can_share_a_limiter() -> None:
    ticks = itertools.count()
    limiter = Limiter(lambda: next(ticks) * 1e-4, requests_per_minute=60_000)
    granted: list[float | None] = []

    def work(number: int) -> None:
        for _ in range(50):
            permit = limiter.create_permit(10, high_priority=number % 4 == 0)
            while limiter.try_acquire(permit):
                pass
            granted.append(permit.sent_at)
            limiter.on_success(permit, 20)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = sorted(time for time in granted if time is not None)
    assert len(times) == 800
    assert limiter.in_flight == 0
    assert times[-1] - times[0] >= 799 / (0.98 * 1000) - 0.01


def test_one_account_has_one_limiter() -> None:
    clock = Clock()
    account = ("one account", "host", "model")
    assert shared_limiter(account, clock) is shared_limiter(account, clock)
    assert shared_limiter(account, clock) is not shared_limiter(("another", "host", "model"), clock)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_starts_afresh_and_never_inherits_a_locked_lock() -> None:
    clock = Clock()
    account = ("forked account", "host", "model")
    limiter, owner = shared_limiter(account, clock), Owner()
    limiter.apply_limits(owner, 1800, None)
    hit_wall(limiter, clock)
    assert held(limiter)
    with limiter._lock.current, module._limiters_lock.current:
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            inherited = shared_limiter(account, clock)
            fresh = inherited.requests_per_minute == 1800 and not held(inherited)
            os._exit(0 if fresh else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert held(limiter)


def test_the_simulation_repeats_itself() -> None:
    row = shape_of("1 s sliding, 80 ms")
    assert row.run(7).sends == row.run(7).sends != row.run(8).sends


def test_a_killed_process_of_waiters_does_not_slow_the_others() -> None:
    simulation, jobs = shape_of("known 1 s sliding, 10 ms").simulate(0)
    for _ in range(50):
        jobs[0].limiter.try_acquire(jobs[0].limiter.create_permit(100))
    assert simulation.run(*jobs).seconds <= 11.0


# --- the quotas of living clients --------------------------------------------------------------------------


def test_the_smallest_quota_of_the_living_clients_holds() -> None:
    clock, loose, tight = Clock(), Owner(), Owner()
    limiter = Limiter(clock, requests_per_minute=6000)
    limiter.apply_limits(loose, 600, 9000)
    assert (limiter.requests_per_minute, limiter.tokens_per_minute) == (600, 9000)
    limiter.apply_limits(tight, 60, None)
    assert (limiter.requests_per_minute, limiter.tokens_per_minute) == (60, 9000)
    limiter.on_success(send(limiter, clock))
    assert limiter.try_acquire(limiter.create_permit(1)) == 0.25
    del tight, loose
    gc.collect()
    begun = clock.now
    for _ in range(100):
        limiter.on_success(send(limiter, clock))
    assert clock.now - begun < 1.1
    assert (limiter.requests_per_minute, limiter.tokens_per_minute) == (6000, None)


def test_a_second_client_with_the_same_quota_gives_no_burst() -> None:
    clock = Clock()
    limiter, owners = Limiter(clock), [Owner() for _ in range(30)]
    begun = clock.now
    for owner in owners:
        limiter.apply_limits(owner, 60.0, None)
        limiter.on_success(send(limiter, clock))
    assert clock.now - begun > 28.0
