"""The limiter and the text batcher under any order of events: no caller starves, nothing is sent twice or too fast."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from client_helpers import FakeClock
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from strategies import profile

from dashscope_embeddings._core.error_codes import ErrorReply, service_error
from dashscope_embeddings._core.exchange import Outcome, RequestContext
from dashscope_embeddings._core.planning import BatchPlanner
from dashscope_embeddings._core.protocol import RequestOptions
from dashscope_embeddings._core.rate_limiter import InFlightBound, Limiter, Permit
from dashscope_embeddings._core.text_batcher import BatchCall, SingleText, TextBatcher
from dashscope_embeddings._core.text_length import Limits
from dashscope_embeddings.vectors import Part

if TYPE_CHECKING:
    from hypothesis.stateful import MultipleResults

SECONDS = st.sampled_from([0.0, 0.001, 0.005, 0.02, 0.1, 0.25, 1.0, 7.0, 61.0]) | st.floats(0, 2)
EPSILON = 1e-6
SLACK = 0.02
"""Burst tolerance in seconds."""
FULL_SHARE = 0.98
"""Of a given quota."""


def tighter(one: float | None, other: float | None) -> float | None:
    return min((value for value in (one, other) if value is not None), default=None)


# --- the limiter -------------------------------------------------------------------------------------------


class LimiterMachine(RuleBasedStateMachine):
    """Callers of one limiter: some wait, some are in batch_call, some have left without ending their permit."""

    waiting = Bundle("waiting")
    in_flight = Bundle("in_flight")
    ended = Bundle("ended")

    @initialize(
        requests=st.none() | st.sampled_from([1.0, 60.0, 1_800.0, 1e6]),
        tokens=st.none() | st.sampled_from([600.0, 60_000.0, 1e9]),
    )
    def begin(self, requests: float | None, tokens: float | None) -> None:
        self.clock = FakeClock()
        self.limiter = Limiter(self.clock.now, requests, tokens)
        self.requests, self.tokens = requests, tokens
        self.open: set[Permit] = set()
        """Granted and not ended."""
        self.queued: set[Permit] = set()
        self.grants: list[tuple[float, int]] = []
        """Time and tokens of each since the settings were changed."""
        self.retry_at = -math.inf
        self.exact = True
        """Whether every bill was what had been estimated, and nothing was refused."""
        self.billed = 0

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.clock.time += seconds

    @rule(target=waiting, tokens=st.integers(0, 3_000), high_priority=st.booleans())
    def ask(self, tokens: int, high_priority: bool) -> Permit:  # noqa: FBT001
        permit = self.limiter.create_permit(tokens, high_priority=high_priority)
        self.queued.add(permit)
        return permit

    @rule(
        target=in_flight,
        permit=consumes(waiting),
        attempts=st.integers(0, 40),
        late=st.sampled_from([0.0, 0.0, 0.003, 0.006, 0.02, 0.045, 0.3]),
    )
    def come_back_until_granted(self, permit: Permit, attempts: int, late: float) -> MultipleResults[Permit]:
        for _ in range(attempts):
            wait = self.reserve(permit)
            if not wait:
                return multiple(permit)
            self.clock.time += wait + late
        if self.reserve(permit):
            self.limiter.cancel(permit)
            self.queued.discard(permit)
            return multiple()
        return multiple(permit)

    @rule(permit=waiting)
    def ask_again(self, permit: Permit) -> None:
        if permit.sent_at is None and permit in self.queued:
            self.reserve(permit)

    def reserve(self, permit: Permit) -> float:
        already = permit.sent_at is not None
        wait = self.limiter.try_acquire(permit)
        assert 0.0 <= wait <= 0.25
        if wait or already:
            return wait
        now = self.clock.time
        assert permit.sent_at == now
        assert now >= self.retry_at - EPSILON, "granted while the service had asked to be left alone"
        self.queued.discard(permit)
        self.open.add(permit)
        self.grants.append((now, max(permit.estimated_tokens, 0)))
        self.check_quota()
        return 0.0

    def check_quota(self) -> None:
        now = self.grants[-1][0]
        seconds = 0.0
        for at, tokens in reversed(self.grants[:-1]):
            if self.requests is not None:
                seconds += 60.0 / (FULL_SHARE * self.requests)
                assert now - at >= seconds - SLACK - EPSILON, "more requests than the quota given allows"
            if self.tokens is not None and self.exact:
                spent = sum(cost for when, cost in self.grants[:-1] if when >= at)
                assert now - at >= 60.0 * spent / (FULL_SHARE * self.tokens) - SLACK - EPSILON
                del tokens

    @rule(target=ended, permit=consumes(in_flight), error=st.sampled_from([None, 1.0, 0.5, 3.0, 0.0]))
    def settle(self, permit: Permit, error: float | None) -> Permit:
        billed = None if error is None else round(permit.estimated_tokens * error)
        self.exact &= billed is None or billed == permit.estimated_tokens > 0
        self.billed += max(billed or 0, permit.estimated_tokens) * 3
        self.limiter.on_success(permit, billed)
        self.open.discard(permit)
        return permit

    @rule(target=ended, permit=consumes(in_flight), retry_after=st.none() | st.sampled_from([0.0, 0.5, 20.0, 3_600.0]))
    def refuse(self, permit: Permit, retry_after: float | None) -> Permit:
        self.limiter.on_throttled(permit, retry_after)
        self.exact = False
        self.billed += permit.estimated_tokens * 3
        self.open.discard(permit)
        if retry_after:
            self.retry_at = max(self.retry_at, self.clock.time + min(retry_after, 60.0))
        return permit

    @rule(target=ended, permit=consumes(in_flight) | consumes(waiting))
    def release(self, permit: Permit) -> Permit:
        self.limiter.cancel(permit)
        self.billed += permit.estimated_tokens * 3
        self.open.discard(permit)
        self.queued.discard(permit)
        assert permit not in self.in_queues()
        return permit

    @rule(permit=consumes(in_flight))
    def never_answered(self, permit: Permit) -> None:
        self.billed += permit.estimated_tokens * 3

    @rule(permit=consumes(waiting))
    def never_comes_back(self, permit: Permit) -> None:
        """Its thread was killed: it cannot even leave the queue."""

    @rule(permit=ended, seconds=st.sampled_from([None, 30.0]))
    def end_once_more(self, permit: Permit, seconds: float | None) -> None:
        before = (
            self.limiter.in_flight,
            self.limiter._estimator.next_send_at(self.clock.time),
            self.limiter._token_quota.next_at,
        )
        self.limiter.on_throttled(permit, seconds)
        self.limiter.on_success(permit, 1_000_000)
        self.limiter.cancel(permit)
        assert self.limiter.try_acquire(permit) == 0.0
        after = (
            self.limiter.in_flight,
            self.limiter._estimator.next_send_at(self.clock.time),
            self.limiter._token_quota.next_at,
        )
        assert after == before

    @rule(requests=st.none() | st.floats(30, 1e4), tokens=st.none() | st.floats(600, 1e6))
    def tighten(self, requests: float | None, tokens: float | None) -> None:
        self.limiter.apply_limits(self, requests, tokens)
        self.requests, self.tokens = tighter(self.requests, requests), tighter(self.tokens, tokens)
        assert (self.limiter.requests_per_minute, self.limiter.tokens_per_minute) == (self.requests, self.tokens)
        self.grants.clear()

    def in_queues(self) -> list[Permit]:
        return [*self.limiter._high_priority_queue.waiting.values(), *self.limiter._low_priority_queue.waiting.values()]

    @invariant()
    def no_permit_is_lost_or_kept(self) -> None:
        queues = self.in_queues()
        assert len(set(queues)) == len(queues)
        assert self.queued.issuperset(queues)
        assert all(permit.high_priority for permit in self.limiter._high_priority_queue.waiting.values())
        young = sum(self.clock.time <= (permit.sent_at or 0.0) + 60.0 for permit in self.open)
        assert young <= self.limiter.in_flight <= len(self.open), "only one without an answer for a minute is given up"

    @invariant()
    def the_pace_is_a_pace(self) -> None:
        rate = self.limiter._estimator.rate(self.clock.time)
        assert 0.0 < rate < math.inf
        assert self.limiter._estimator.steady.limit is None or self.limiter._estimator.steady.limit > 0.0

    def teardown(self) -> None:
        """Whatever happened: with nothing under way, whoever comes is granted, as soon as quotas allow."""
        if not hasattr(self, "limiter"):
            return
        for permit in self.open:
            self.limiter.cancel(permit)
        assert self.limiter.in_flight == 0
        permit = self.limiter.create_permit(10)
        longest = 60.0 + 30.0 + 60.0 * (len(self.queued) + 2) / (self.requests or 60.0)
        if self.tokens is not None:
            longest += (
                60.0
                * (self.billed + sum(waiting.estimated_tokens for waiting in self.queued) * 3 + 10_000)
                / self.tokens
            )
        until = self.clock.time + longest
        while wait := self.limiter.try_acquire(permit):
            assert self.clock.time < until, "held although nothing is under way"
            self.clock.time += wait


def test_a_limiter_forgets_nobody_and_keeps_to_what_it_was_given() -> None:
    run_state_machine_as_test(LimiterMachine, settings=profile(90, stateful_step_count=40))


def test_a_given_quota_of_requests_holds_where_tokens_turn_out_to_be_short() -> None:
    """Requests of very different sizes are refused whenever a second's tokens pass 5,000; then come small ones."""
    clock = FakeClock()
    limiter = Limiter(clock.now, requests_per_minute=1_200)
    sizes = itertools.cycle([10, 2_500, 100, 600, 2_500, 10, 600, 2_500, 2_500, 100, 600])
    passed: list[tuple[float, int]] = []

    def ask(tokens: int) -> Permit:
        permit = limiter.create_permit(tokens)
        while wait := limiter.try_acquire(permit):
            clock.time += wait
        return permit

    for tokens in itertools.islice(sizes, 2_000):
        permit = ask(tokens)
        clock.time += 0.005
        if sum(used for at, used in passed if at > clock.time - 1.0) + tokens > 5_000:
            limiter.on_throttled(permit)
        else:
            passed.append((clock.time, tokens))
            limiter.on_success(permit, tokens)
        if limiter._estimator._resource.tokens_per_unit is not None:
            break
    assert limiter._estimator._resource.tokens_per_unit is not None
    clock.time += 1.0
    began = clock.time
    for _ in range(200):
        limiter.on_success(ask(1), 1)
    assert clock.time - began >= 199 * 60.0 / 1_200


# --- the text batcher --------------------------------------------------------------------------------------


class Loop:
    """An event loop, reduced to whether it runs."""

    def __init__(self) -> None:
        self.running = True

    def is_running(self) -> bool:
        return self.running


@dataclass(eq=False)
class Caller:
    """One query, as its caller sees it."""

    query: SingleText
    loop: Loop | None
    batch_calls: list[BatchCall] = field(default_factory=list)
    """All requests that contained it; each but the last was throttled, interrupted or orphaned."""
    gone: bool = False
    woken: int = 0

    @property
    def alive(self) -> bool:
        return not self.gone and (self.loop is None or self.loop.running)


THROTTLED = service_error(ErrorReply(429, "Throttling.RateQuota"))
REFUSED = service_error(ErrorReply(400, "DataInspectionFailed"))
FAILED = service_error(ErrorReply(500, "InternalError"))


FATES = ["answered", "answered", "refused", "throttled", "failed", "broken"]


class TextBatcherMachine(RuleBasedStateMachine):
    """Threads, and tasks of two loops, that share one text batcher."""

    @initialize(
        max_in_flight=st.integers(1, 3), rows=st.integers(1, 4), quota=st.none() | st.sampled_from([60.0, 6_000.0])
    )
    def begin(self, max_in_flight: int, rows: int, quota: float | None) -> None:
        self.clock = FakeClock()
        self.limiter = Limiter(self.clock.now, quota)
        self.rows, self.max_in_flight = rows, max_in_flight
        limits = Limits(rows, 8192, None)
        bound = InFlightBound(max_in_flight)
        self.context = RequestContext(RequestOptions("native", "m", "query"), limits, self.limiter, bound=bound)
        self.waiting = TextBatcher(BatchPlanner(limits))
        self.loops = [None, Loop(), Loop()]
        self.all: dict[SingleText, Caller] = {}
        self.in_flight: set[BatchCall] = set()
        """Neither completed nor orphaned."""
        self.orphaned: list[BatchCall] = []
        """Orphaned; they complete after all if their loop runs again."""
        self.done: dict[BatchCall, str] = {}

    @rule(seconds=SECONDS.filter(lambda seconds: seconds < 5))
    def time_passes(self, seconds: float) -> None:
        self.clock.time += seconds

    @rule(where=st.integers(0, 2), texts=st.lists(st.integers(0, 99), min_size=1, max_size=6))
    def join(self, where: int, texts: list[int]) -> None:
        loop = self.loops[where]
        if loop is not None and not loop.running:
            loop = self.loops[where] = Loop()
        for number in texts:
            self.arrive(f"text {number}", loop)

    def arrive(self, text: str, loop: Loop | None) -> Caller:
        def wake() -> None:
            caller.woken += 1

        caller = Caller(SingleText(text, 5, wake=wake), loop)
        self.all[caller.query] = caller
        self.waiting.enqueue(caller.query)
        return caller

    def present(self) -> list[Caller]:
        return [caller for caller in self.all.values() if caller.alive]

    @rule(which=st.integers(0, 99))
    def one_looks(self, which: int) -> None:
        if present := self.present():
            self.act(present[which % len(present)])

    @rule(pause=st.sampled_from([0.0, 0.01, 0.25]), backwards=st.booleans())
    def all_look(self, pause: float, backwards: bool) -> None:  # noqa: FBT001
        for caller in reversed(self.present()) if backwards else self.present():
            self.act(caller)
            self.clock.time += pause

    def act(self, caller: Caller) -> BatchCall | None:
        """What a driver does: polls, and performs the action."""
        if not caller.alive:
            return None
        orphaned = {batch_call for batch_call in self.in_flight if batch_call.is_orphaned}
        turn = self.waiting.poll(caller.query, self.context, caller.loop)
        for batch_call in orphaned:
            self.end(batch_call, "orphaned")
            self.orphaned.append(batch_call)
        if isinstance(turn, float):
            if (joined := caller.query.batch_call) is not None and joined not in caller.batch_calls:
                assert caller.query in joined.joined
                assert caller.query.text in joined.texts
                caller.batch_calls.append(joined)
            assert 0.0 <= turn <= 0.25 * max(1.0, len(self.waiting._waiting) / 64)
            return None
        if isinstance(turn, Outcome):
            self.check_outcome(caller, turn)
            self.leave(caller)
            return None
        assert isinstance(turn, BatchCall)
        self.check_batch_call(caller, turn)
        return turn

    def check_batch_call(self, caller: Caller, batch_call: BatchCall) -> None:
        assert 1 <= len(batch_call.texts) <= self.rows
        assert set(batch_call.texts) == {query.text for query in batch_call.members}
        assert len(set(batch_call.members)) == len(batch_call.members)
        assert batch_call.members[0] is caller.query
        assert batch_call.permit.sent_at == self.clock.time
        self.in_flight.add(batch_call)
        assert len(self.in_flight) <= self.max_in_flight
        for query in batch_call.members:
            member = self.all[query]
            assert query.outcome is None
            assert not member.gone
            for before in member.batch_calls:
                others_failed = {"failed"} if query in before.joined else set()
                assert self.done.get(before) in {"throttled", "broken", "orphaned"} | others_failed
            member.batch_calls.append(batch_call)

    def check_outcome(self, caller: Caller, outcome: Outcome) -> None:
        last = caller.batch_calls[-1]
        how = self.done[last]
        assert how in {"answered", "refused", "failed"}
        if how == "failed":
            assert outcome.abort_error is not None
        elif outcome.errors:
            assert how == "refused"
            assert outcome.dense == [None]
            assert outcome.abort_error is None
        else:
            assert outcome.dense == [[float(caller.query.text.split()[1])]]

    @rule(which=st.integers(0, 9), how=st.sampled_from(FATES))
    def complete_one(self, which: int, how: str) -> None:
        candidates = [batch_call for batch_call in self.in_flight if not batch_call.is_orphaned]
        if candidates:
            self.complete(
                min(candidates, key=lambda batch_call: (batch_call.permit.sent_at or 0.0) * (which % 2 or -1)), how
            )

    @rule(how=st.sampled_from(FATES))
    def an_orphaned_call_completes_after_all(self, how: str) -> None:
        candidates = [batch_call for batch_call in self.orphaned if not batch_call.is_orphaned]
        if candidates:
            self.orphaned.remove(candidates[0])
            before = {
                query: (query.outcome, query.batch_call) for query in (*candidates[0].members, *candidates[0].joined)
            }
            queue = list(self.waiting._waiting)
            self.waiting.complete(candidates[0], self.outcome_of(candidates[0], how), self.context)
            assert before == {
                query: (query.outcome, query.batch_call) for query in (*candidates[0].members, *candidates[0].joined)
            }
            assert queue == list(self.waiting._waiting)

    @rule(which=st.integers(1, 2))
    def a_loop_runs_again(self, which: int) -> None:
        """As with `run_until_complete`, called twice."""
        loop = self.loops[which]
        if loop is not None:
            loop.running = True

    def complete(self, batch_call: BatchCall, how: str) -> None:
        """As `exchange` and a driver's `finally` do it."""
        if batch_call not in self.in_flight:
            return
        self.end(batch_call, how)
        count = len(batch_call.texts)
        outcome = self.outcome_of(batch_call, how)
        if how in {"answered", "refused"}:
            self.limiter.on_success(batch_call.permit, 7 * count + 2)
        elif how == "throttled":
            self.limiter.on_throttled(batch_call.permit)
        self.limiter.cancel(batch_call.permit)
        self.waiting.complete(batch_call, outcome, self.context)
        if outcome is None or how == "throttled":
            return
        rows = [query.outcome for query in batch_call.members if query.outcome is not None]
        assert len(rows) == len(batch_call.members)
        if how != "failed":
            rows += [query.outcome for query in batch_call.joined if query.outcome is not None]
        assert sum(row.texts for row in rows) == outcome.texts
        assert sum(row.tokens for row in rows) == outcome.tokens
        assert sum(row.requests for row in rows) == outcome.requests
        assert all(self.all[query].woken for query in batch_call.members)

    def outcome_of(self, batch_call: BatchCall, how: str) -> Outcome | None:
        count = len(batch_call.texts)
        if how in {"answered", "refused"}:
            rows: list[Part | None] = [Part([float(text.split()[1])], None, 1.0) for text in batch_call.texts]
            outcome = Outcome(rows, requests=1, texts=count, tokens=7 * count + 2, request_ids=["r"])
            if how == "refused":
                outcome.vectors[-1], outcome.errors[count - 1] = None, REFUSED
            return outcome
        if how == "broken":
            return None
        stop = THROTTLED if how == "throttled" else FAILED
        return Outcome([None] * count, dict.fromkeys(range(count), stop), abort_error=stop)

    def end(self, batch_call: BatchCall, how: str) -> None:
        self.in_flight.discard(batch_call)
        self.done.setdefault(batch_call, how)

    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        """Cancelling a task ends its request if it is alone in it; a shared request goes on."""
        if not (present := self.present()):
            return
        caller = present[which % len(present)]
        batch_call = caller.query.batch_call
        if batch_call is not None and caller.loop is not None and batch_call.members == [caller.query]:
            self.complete(batch_call, "broken")
        self.leave(caller)

    def leave(self, caller: Caller) -> None:
        self.waiting.leave(caller.query, self.context)
        caller.gone = True
        assert caller.query not in self.waiting._waiting

    @precondition(lambda self: any(loop is not None and loop.running for loop in self.loops))
    @rule(which=st.integers(1, 2))
    def a_loop_stops(self, which: int) -> None:
        loop = self.loops[which]
        if loop is not None:
            loop.running = False

    @invariant()
    def the_queue_is_in_order(self) -> None:
        if not hasattr(self, "waiting"):
            return
        queue = list(self.waiting._waiting)
        assert len(set(queue)) == len(queue)
        assert all(query.batch_call is None and query.outcome is None for query in queue)
        assert len(self.waiting._in_flight) <= self.max_in_flight
        assert self.waiting._in_flight.issuperset(self.in_flight)
        assert self.limiter.in_flight <= len(self.in_flight) + sum(
            batch_call.is_orphaned for batch_call in self.waiting._in_flight
        )

    def teardown(self) -> None:
        """When all requests in batch_call complete, every waiting caller soon gets an outcome."""
        if not hasattr(self, "waiting"):
            return
        for batch_call in list(self.in_flight):
            if not batch_call.is_orphaned:
                self.complete(batch_call, "answered")
        until = self.clock.time + 60.0 + 3.0 * len(self.all)
        while left := self.present():
            assert self.clock.time < until, f"{len(left)} wait for ever"
            for caller in left:
                if (started := self.act(caller)) is not None:
                    self.complete(started, "answered")
            self.clock.time += 0.05
        assert self.limiter.in_flight == sum(not batch_call.permit.is_closed for batch_call in self.waiting._in_flight)


def test_a_text_batcher_forgets_no_caller_and_sends_nothing_twice() -> None:
    run_state_machine_as_test(TextBatcherMachine, settings=profile(90, stateful_step_count=40))
