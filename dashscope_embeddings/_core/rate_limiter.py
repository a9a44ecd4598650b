"""Rate limiter: says how long to wait before the next request, and never waits itself.

Quotas belong to an account, a host and a model (https://www.alibabacloud.com/help/en/model-studio/rate-limit,
seen 2026-11-20), so all clients of a process with the same three share one limiter. A limit per minute may be
enforced per second, so requests are spaced evenly (GCRA) and never sent as one burst a minute. `rate_estimator` finds
how many a second, `concurrency_window` how many at once.
"""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dashscope_embeddings import _process
from dashscope_embeddings._core.concurrency_window import ConcurrencyWindow
from dashscope_embeddings._core.permit import UNBOUNDED, InFlightBound, Permit, PermitQueue
from dashscope_embeddings._core.rate_estimator import RateEstimator, SearchState
from dashscope_embeddings._core.reported_quota import ReportedQuota
from dashscope_embeddings._core.token_quota import QUOTA_SHARE, TokenQuota, spacing_start
from dashscope_embeddings._process import CleanupLock, locked, locked_soon

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashscope_embeddings._core.permit import Sender
    from dashscope_embeddings.quota import Quota

__all__ = ["InFlightBound", "Limiter", "Permit", "shared_limiter"]

_MAX_WAIT_SECONDS = 0.25
"""Longest wait before a caller asks again, because the estimate may have improved by then."""
_STALE_SECONDS = 0.02
"""A caller is woken only if it would ask so much later than it may: a switch of threads costs time."""
_QUEUED_AHEAD = 2
"""Requests that a job keeps waiting beyond those that may be in flight: they show whether more could be in use."""


@dataclass(eq=False)
class Limiter:
    """Limits the request rate of one account, host and model. Thread-safe; independent of event loops.

    With a configured quota, requests are spaced evenly at 98 % of it from the first one on. Without, the limit is
    estimated from replies. Queries have priority over documents; otherwise first come, first served.

    Args:
        clock: monotonic time in seconds.
        requests_per_minute, tokens_per_minute: the account's quota; None: unknown.
    """

    clock: Callable[[], float]
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    _lock: CleanupLock = field(default_factory=CleanupLock, init=False, repr=False)

    def __post_init__(self) -> None:
        self._own_limits = self.requests_per_minute, self.tokens_per_minute
        self._client_limits: list[tuple[weakref.ref[object], float | None, float | None]] = []
        """The client, requests and tokens per minute, for each client with a configured quota."""
        self._has_deleted_client = False
        """Set when a client is garbage-collected, perhaps while the lock is held; handled by the next `try_acquire`."""
        self._reported_quota = ReportedQuota()
        self._has_claimed_quota_request = False
        self.reset_after_fork()
        _process.on_fork(self)

    def reset_after_fork(self) -> None:
        """Resets all but the quotas, because a forked child has no requests in flight."""
        self._window = ConcurrencyWindow()
        self._estimator = RateEstimator(self._window, is_within_quota=self.requests_per_minute is not None)
        for permit in getattr(self, "_in_flight", ()):
            permit.bound.in_flight = 0
            permit.bound.waiting.clear()
        self._in_flight: set[Permit] = set()
        self._looked_for_lost_at = -math.inf
        self._token_quota = TokenQuota(self.tokens_per_minute)
        self._high_priority_queue, self._low_priority_queue = PermitQueue(), PermitQueue()
        self._last_queue_position = 0
        self._next_at = -math.inf

    @locked
    def apply_limits(self, client: object, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        """Applies a client's quota as long as the client exists. The smallest quota of all existing clients holds."""
        if requests_per_minute is None and tokens_per_minute is None:
            return
        reference = weakref.ref(client, self._mark_client_deleted)
        self._client_limits.append((reference, requests_per_minute, tokens_per_minute))
        self._apply_smallest_limits()

    def _mark_client_deleted(self, _: weakref.ref[object]) -> None:
        self._has_deleted_client = True

    def _apply_smallest_limits(self) -> None:
        self._has_deleted_client = False
        self._client_limits = [entry for entry in self._client_limits if entry[0]() is not None]
        quotas = [self._own_limits, *(entry[1:] for entry in self._client_limits)]
        before = self.requests_per_minute, self.tokens_per_minute
        self.requests_per_minute = min((requests for requests, _ in quotas if requests is not None), default=None)
        self.tokens_per_minute = min((tokens for _, tokens in quotas if tokens is not None), default=None)
        self._token_quota.per_minute = self.tokens_per_minute
        self._estimator.is_within_quota = self.requests_per_minute is not None
        now = self.requests_per_minute, self.tokens_per_minute
        if any(old is not None and (new is None or new > old) for old, new in zip(before, now, strict=True)):
            # Do not make the next request wait for the interval of a quota that no longer holds.
            self._next_at = self._token_quota.next_at = -math.inf

    @locked
    def claim_quota_request(self) -> bool:
        """Whether the caller is to ask the service for the quota: True once, and never with a configured quota."""
        is_known = self.requests_per_minute is not None or self.tokens_per_minute is not None
        claimed = not is_known and not self._has_claimed_quota_request
        self._has_claimed_quota_request |= claimed
        return claimed

    @locked
    def apply_reported_quota(self, quota: Quota) -> None:
        """Applies what the service reports, in place of an earlier report, as an upper bound: the search goes on.

        It holds for all clients, however long they exist; a smaller configured quota still holds as well.
        """
        self._has_claimed_quota_request = True
        self._reported_quota = ReportedQuota(quota)

    @property
    def concurrency(self) -> int:
        """How many requests a job should have under way now, those included that wait for the limiter."""
        return self._window.limit + _QUEUED_AHEAD

    @property
    def in_flight(self) -> int:
        """Requests that were sent and have not ended."""
        return self._window.in_flight

    def seconds_blocked(self) -> float:
        """Seconds until anything may be sent again after a 429; 0: now."""
        return max(0.0, self._estimator.blocked_until - self.clock())

    def create_permit(
        self,
        estimated_tokens: int,
        *,
        high_priority: bool = False,
        bound: InFlightBound = UNBOUNDED,
        blocked_loop: Sender | None = None,
    ) -> Permit:
        """A permit for one request. It must end with `on_success`, `on_throttled` or `cancel`."""
        return Permit(estimated_tokens, high_priority, bound, blocked_loop)

    @locked
    def try_acquire(self, permit: Permit) -> float:
        """0.0: send now. Otherwise the seconds to wait before asking again, at most 0.25."""
        if permit.sent_at is not None or permit.is_closed:
            return 0.0
        if self._has_deleted_client:
            self._apply_smallest_limits()
        now = self.clock()
        rate = self._requests_per_second(now)
        queue = self._high_priority_queue if permit.high_priority else self._low_priority_queue
        if self._is_bound_full(permit, now):
            permit.bound.waiting[permit] = None
            return self._refuse(permit, None, now, _MAX_WAIT_SECONDS)
        permit.bound.waiting.pop(permit, None)
        due = self._available_at(permit, rate, now)
        if due > now:
            permit.was_paced = permit.was_paced or not self._is_behind_starved(permit)
            return self._refuse(permit, queue, now, due - now)
        permit.needs_slot = not self._has_room(permit, now)
        if permit.needs_slot:
            return self._refuse(permit, queue, now, _MAX_WAIT_SECONDS)
        queue.remove(permit)
        self._reported_quota.take(1, permit.estimated_tokens, now)
        self._start(permit, now)
        # If tokens are limited, a small request has a short interval, but not below that of the configured quota.
        self._next_at = spacing_start(self._next_at, now) + max(permit.weight / rate, self._min_interval_seconds)
        self._wake_next()
        return 0.0

    def _refuse(self, permit: Permit, queue: PermitQueue | None, now: float, wait: float) -> float:
        if permit.queue_position == 0:
            self._last_queue_position += 1
            permit.queue_position = self._last_queue_position
        if queue is not None:
            queue.add(permit)
        wait = min(wait, _MAX_WAIT_SECONDS)
        permit.retry_at = now + wait
        return wait

    def _is_bound_full(self, permit: Permit, now: float) -> bool:
        bound = permit.bound
        if bound.limit is None or bound.in_flight < bound.limit:
            return False
        self._end_lost(now)
        return bound.in_flight - sum(other.bound is bound for other in self._find_stuck(permit)) >= bound.limit

    def _has_room(self, permit: Permit, now: float) -> bool:
        if self._window.has_room(now):
            return True
        self._end_lost(now)
        return self._window.in_flight - len(self._find_stuck(permit)) < self._window.limit

    def _end_lost(self, now: float) -> None:
        if now > self._looked_for_lost_at + _MAX_WAIT_SECONDS:
            self._looked_for_lost_at = now
            for other in [other for other in self._in_flight if other.is_lost(now)]:
                self._end(other)

    def _find_stuck(self, permit: Permit) -> list[Permit]:
        """Requests that cannot end before this one: its caller blocks their event loop."""
        loop = permit.blocked_loop
        return [] if loop is None else [other for other in self._in_flight if other.loop is loop]

    def _start(self, permit: Permit, now: float) -> None:
        permit.bound.in_flight += 1
        self._in_flight.add(permit)
        self._token_quota.charge(permit, now)
        self._window.on_sent(permit, now)
        self._estimator.on_sent(permit, now)

    def _end(self, permit: Permit) -> bool:
        """Ends the permit. False: it had ended before or was never sent, so the estimator is not called."""
        was_sent = permit.sent_at is not None and not permit.is_closed
        permit.is_closed = True
        self._in_flight.discard(permit)
        permit.bound.waiting.pop(permit, None)
        if permit.sent_at is None:
            (self._high_priority_queue if permit.high_priority else self._low_priority_queue).remove(permit)
        # The estimator remembers the permit; what its caller waited for, and its loop, must not live as long.
        permit.wake = permit.loop = permit.blocked_loop = None
        if was_sent:
            permit.bound.in_flight -= 1
            self._window.on_ended()
            if permit.bound.waiting:
                next(iter(permit.bound.waiting)).wake_caller()
        return was_sent

    def _wake_next(self) -> None:
        """Wakes the first one that waits for a request to end, or for the end of a suspicion of a limit."""
        head = self._next_waiting
        if head is None or self._window.in_flight >= self._window.limit:
            return
        due = self._next_at if self._estimator.state is SearchState.SLOW_START else math.inf
        if head.needs_slot or head.retry_at > max(due, self._estimator.blocked_until) + _STALE_SECONDS:
            head.wake_caller()

    @locked
    def on_success(self, permit: Permit, billed_tokens: int | None = None) -> None:
        """The request was answered; `billed_tokens` is None if the service did not say."""
        if self._end(permit):
            now = self.clock()
            self._token_quota.record_billed(permit, billed_tokens)
            if billed_tokens is not None:
                self._reported_quota.take(0, billed_tokens - permit.estimated_tokens, now)
            self._estimator.on_success(permit, now)
        self._wake_next()

    @locked
    def on_throttled(self, permit: Permit, retry_after_seconds: float | None = None) -> None:
        """The request was throttled; `retry_after_seconds` are honoured up to 60."""
        if not self._end(permit):
            return
        now = self.clock()
        explained = self._token_quota.explains_throttle(permit) and not retry_after_seconds
        self._token_quota.record_billed(permit, 0)
        self._reported_quota.take(-1, -permit.estimated_tokens, now)
        if explained:
            self._estimator.on_cancelled(permit)
        else:
            self._estimator.on_throttled(permit, now, retry_after_seconds)
        self._wake_next()

    @locked_soon
    def cancel(self, permit: Permit) -> None:
        """The request ended without an answer, or was never sent. Has no effect on a permit that has ended."""
        if self._end(permit):
            self._estimator.on_cancelled(permit)
        self._wake_next()

    @property
    def _min_interval_seconds(self) -> float:
        return 0.0 if self.requests_per_minute is None else 60.0 / (QUOTA_SHARE * self.requests_per_minute)

    def _requests_per_second(self, now: float) -> float:
        rate = self._estimator.rate(now)
        if self._estimator.steady.limit is not None:
            # A limit below the reported bucket was met, so the service has no room for bursts: do not probe above it.
            rate = min(rate, self._reported_quota.requests_per_second)
        if self.requests_per_minute is None:
            return rate
        return min(rate, QUOTA_SHARE * self.requests_per_minute / 60.0)

    def _available_at(self, permit: Permit, rate: float, now: float) -> float:
        """When the permit may be sent, by what is known now."""
        self._high_priority_queue.drop_absent(permit, now)
        if permit.high_priority:
            ahead = self._high_priority_queue.count_ahead(permit)
        else:
            self._low_priority_queue.drop_absent(permit, now)
            ahead = len(self._high_priority_queue.waiting) + self._low_priority_queue.count_ahead(permit)
        circuit_closes_at = max(self._estimator.next_send_at(now), self._reported_quota.available_at(permit))
        if not ahead and self._is_unpaced():
            return circuit_closes_at
        due = max(self._next_at, self._token_quota.available_at(permit, now), circuit_closes_at)
        if ahead and (head := self._next_waiting) is not None:
            due += max(ahead / rate, self._token_quota.queue_delay(head, ahead))
        return due

    def _is_unpaced(self) -> bool:
        """Whether to send without spacing: no quota is known, and no other request is in flight."""
        has_quota = self.requests_per_minute is not None or self.tokens_per_minute is not None
        return not has_quota and self._estimator.state is SearchState.SLOW_START and self._window.in_flight == 0

    def _is_behind_starved(self, permit: Permit) -> bool:
        """Whether it waits only because the first permit of the queue waits for a request in flight to end."""
        return (head := self._next_waiting) is not None and head is not permit and head.needs_slot

    @property
    def _next_waiting(self) -> Permit | None:
        return self._high_priority_queue.head or self._low_priority_queue.head


_MAX_RECENT_LIMITERS = 64
"""Limiters that are kept although no client lives: the next client of that account knows what the last one learned."""
_limiters: weakref.WeakValueDictionary[tuple[object, ...], Limiter] = weakref.WeakValueDictionary()
_recent_limiters: OrderedDict[Limiter, None] = OrderedDict()
_limiters_lock = _process.ForkSafeLock()


def shared_limiter(quota_key: tuple[object, ...], clock: Callable[[], float]) -> Limiter:
    """The process's limiter for an account, host and model; `quota_key` must not hold the API key itself.

    It lives as long as a client that holds it, and afterwards until 64 others were used.
    """
    with _limiters_lock.current:
        limiter = _limiters.setdefault(quota_key, Limiter(clock))
        _recent_limiters[limiter] = None
        _recent_limiters.move_to_end(limiter)
        if len(_recent_limiters) > _MAX_RECENT_LIMITERS:
            _recent_limiters.popitem(last=False)
        return limiter


def _reset_limiters() -> None:
    _limiters.clear()
    _recent_limiters.clear()


_process.on_reset("limiters", _reset_limiters, learned=True)
