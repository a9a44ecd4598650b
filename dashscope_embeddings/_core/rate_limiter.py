"""Rate limiter: says how long to wait before the next request, and never waits itself.

Quotas belong to an account, a host and a model (https://www.alibabacloud.com/help/en/model-studio/rate-limit,
seen 2026-11-20), so all clients of a process with the same three share one limiter. A limit per minute may be
enforced per second, so requests are spaced evenly (GCRA) and never sent as one burst a minute.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dashscope_embeddings import _process
from dashscope_embeddings._core.rate_estimator import Permit, RateEstimator

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Limiter", "Permit", "shared_limiter"]

_BURST_TOLERANCE_SECONDS = 0.006
"""Burst tolerance: a caller delayed by timer jitter may catch up by this much."""
_IDLE_RESET_SECONDS = 0.05
"""After this long without a request, spacing starts anew: an idle limiter saves up no burst."""
_MAX_WAIT_SECONDS = 0.25
"""Longest wait before a caller asks again, because the estimate may have improved by then."""
_QUOTA_SHARE = 0.98
"""Share of a configured quota that is used, because the service's clock differs from ours."""
_SLIDING_WINDOW_SECONDS, _SMOOTHING_SHARE = 1.003, 1.12
"""If the service enforces tokens per one-second window, also enforce a sliding window of 1.003 s; smoothing may then
run at 112 %."""
_WINDOW_RETEST_SECONDS = 60.0
"""After this long, test again whether the service still enforces the window."""
_LATE_GRACE_SECONDS = 0.03
"""A caller that is late by more than this is skipped in the queue until it asks again."""


@dataclass(slots=True)
class _TokenQuota:
    """Spaces tokens under a configured quota, and learns the ratio of billed to estimated tokens."""

    per_minute: float | None = None
    next_at: float = -math.inf
    """When the next request is due."""
    _mean_tokens: float = 0.0
    _estimated_sum: float = 0.0
    _billed_sum: float = 0.0
    _window_permits: deque[Permit] = field(default_factory=lambda: deque(maxlen=4096))
    _window_tokens: float = 0.0
    _window_enforced_since: float | None = None
    """Since when the service is known to refuse requests that exceed the tokens of a one-second window."""

    def queue_delay(self, head: Permit, queued_ahead: int) -> float:
        """Seconds of the quota that the queue ahead takes; an underestimate, as an overestimate wastes quota."""
        if self.per_minute is None:
            return 0.0
        return (self._expected_tokens(head) + 0.3 * (queued_ahead - 1) * self._mean_tokens) / self._tokens_per_second()

    def _tokens_per_second(self) -> float:
        share = _SMOOTHING_SHARE if self._window_enforced_since is not None else _QUOTA_SHARE
        return share * (self.per_minute or 1.0) / 60.0

    def available_at(self, permit: Permit, now: float) -> float:
        """When the request's tokens fit into the quota."""
        if self.per_minute is None or not self._is_window_enforced(now):
            return self.next_at
        free = self.per_minute / 60.0 - self._expected_tokens(permit)
        self._drop_expired(now)
        used, due = self._window_tokens, self.next_at
        for earlier in self._window_permits:
            if used <= max(free, 0.0):
                break
            used -= earlier.charged_tokens
            due = max(due, (earlier.sent_at or 0.0) + _SLIDING_WINDOW_SECONDS)
        return due

    def charge(self, permit: Permit, now: float) -> None:
        """Takes the request's tokens from the quota as it is sent."""
        if self.per_minute is None:
            return
        permit.charged_tokens = self._expected_tokens(permit)
        self._mean_tokens += (
            0.1 * (permit.charged_tokens - self._mean_tokens) if self._mean_tokens else permit.charged_tokens
        )
        self.next_at = _spacing_start(self.next_at, now) + permit.charged_tokens / self._tokens_per_second()
        self._drop_expired(now)
        self._window_permits.append(permit)
        self._window_tokens += permit.charged_tokens

    def record_billed(self, permit: Permit, billed_tokens: int | None) -> None:
        """Corrects the estimate by the billed tokens; None: unknown."""
        if billed_tokens is None:
            return
        if billed_tokens > 0:
            self._estimated_sum = 0.98 * self._estimated_sum + max(permit.estimated_tokens, 1)
            self._billed_sum = 0.98 * self._billed_sum + billed_tokens
        if self.per_minute is not None:
            self.next_at += (billed_tokens - permit.charged_tokens) / self._tokens_per_second()
            if self._window_permits and (permit.sent_at or 0.0) >= (self._window_permits[0].sent_at or 0.0):
                self._window_tokens += billed_tokens - permit.charged_tokens
            permit.charged_tokens = billed_tokens

    def explains_throttle(self, permit: Permit) -> bool:
        """Whether a 429 is due to a one-second window of tokens that was not known to be enforced."""
        if self.per_minute is None or permit.sent_at is None:
            return False
        if self._is_window_enforced(permit.sent_at):
            return permit.sent_at <= (self._window_enforced_since or 0.0)
        self._drop_expired(permit.sent_at)
        if self._window_tokens <= 0.9 * self.per_minute / 60.0:
            return False
        self._window_enforced_since = self._window_permits[-1].sent_at
        return True

    def _is_window_enforced(self, now: float) -> bool:
        if self._window_enforced_since is not None and now > self._window_enforced_since + _WINDOW_RETEST_SECONDS:
            self._window_enforced_since = None
        return self._window_enforced_since is not None

    def _expected_tokens(self, permit: Permit) -> float:
        ratio = self._billed_sum / self._estimated_sum if self._estimated_sum else 1.0
        return permit.estimated_tokens * ratio

    def _drop_expired(self, now: float) -> None:
        while self._window_permits and (self._window_permits[0].sent_at or 0.0) <= now - _SLIDING_WINDOW_SECONDS:
            self._window_tokens -= self._window_permits.popleft().charged_tokens
        if not self._window_permits:
            self._window_tokens = 0.0


@dataclass(slots=True)
class _Queue:
    """Waiting permits in order of arrival; a caller that does not ask again in time is skipped until it does."""

    waiting: OrderedDict[int, Permit] = field(default_factory=OrderedDict)

    def drop_absent(self, permit: Permit, now: float) -> None:
        while self.waiting:
            head = next(iter(self.waiting.values()))
            if head is permit or head.retry_at + _LATE_GRACE_SECONDS > now:
                return
            del self.waiting[head.queue_position]

    def count_ahead(self, permit: Permit) -> int:
        """Upper bound of the permits that go first."""
        if not self.waiting:
            return 0
        if permit.queue_position == 0:
            return len(self.waiting)
        return min(len(self.waiting), max(0, permit.queue_position - next(iter(self.waiting))))

    def add(self, permit: Permit) -> None:
        if permit.queue_position in self.waiting:
            return
        first = next(iter(self.waiting), permit.queue_position)
        self.waiting[permit.queue_position] = permit
        if permit.queue_position < first:
            self.waiting.move_to_end(permit.queue_position, last=False)

    def remove(self, permit: Permit) -> None:
        self.waiting.pop(permit.queue_position, None)


@dataclass(eq=False)
class Limiter:
    """Limits the request rate of one account, host and model. Thread-safe; independent of event loops.

    With a configured quota, requests are spaced evenly at 98 % of it from the first one on. Without, the limit is
    estimated from replies. Queries have priority over documents; otherwise first come, first served.

    Args:
        clock: monotonic time in seconds.
        requests_per_minute: the account's quota; None: unknown.
        tokens_per_minute: likewise.
    """

    clock: Callable[[], float]
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self._own_limits = self.requests_per_minute, self.tokens_per_minute
        self._client_limits: list[tuple[weakref.ref[object], float | None, float | None]] = []
        """Of each client that gave a quota."""
        self._has_lost_client = False
        """Set by the garbage collector, which may run while this thread holds the lock: read at the next request."""
        self.reset_after_fork()
        _process.on_fork(self)

    def reset_after_fork(self) -> None:
        """Forgets everything but the settings: a forked child has no requests under way."""
        self._lock = threading.Lock()
        self._estimator = RateEstimator()
        self._token_quota = _TokenQuota(self.tokens_per_minute)
        self._high_priority_queue, self._low_priority_queue = _Queue(), _Queue()
        self._last_queue_position = 0
        self._next_at = -math.inf

    def apply_limits(self, client: object, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        """Keeps a client's quota as long as the client lives; of all living clients' quotas, the smallest holds."""
        if requests_per_minute is None and tokens_per_minute is None:
            return
        with self._lock:
            lost = weakref.ref(client, self._note_lost_client)
            self._client_limits.append((lost, requests_per_minute, tokens_per_minute))
            self._apply_smallest_limits()

    def _note_lost_client(self, _: weakref.ref[object]) -> None:
        self._has_lost_client = True

    def _apply_smallest_limits(self) -> None:
        self._has_lost_client = False
        self._client_limits = [entry for entry in self._client_limits if entry[0]() is not None]
        quotas = [self._own_limits, *(entry[1:] for entry in self._client_limits)]
        before = self.requests_per_minute, self.tokens_per_minute
        self.requests_per_minute = min((requests for requests, _ in quotas if requests is not None), default=None)
        self.tokens_per_minute = min((tokens for _, tokens in quotas if tokens is not None), default=None)
        self._token_quota.per_minute = self.tokens_per_minute
        now = self.requests_per_minute, self.tokens_per_minute
        if any(old is not None and (new is None or new > old) for old, new in zip(before, now, strict=True)):
            # The next request does not wait for a smaller quota that no longer holds.
            self._next_at = self._token_quota.next_at = -math.inf

    def create_permit(self, estimated_tokens: int, *, high_priority: bool = False) -> Permit:
        """A permit for one request. It must end with `on_success`, `on_throttled` or `cancel`."""
        return Permit(estimated_tokens, high_priority)

    def try_acquire(self, permit: Permit) -> float:
        """0.0: send now. Otherwise the seconds to wait before asking again, at most 0.25."""
        with self._lock:
            if permit.sent_at is not None or permit.is_closed:
                return 0.0
            if self._has_lost_client:
                self._apply_smallest_limits()
            now = self.clock()
            rate = self._requests_per_second(now)
            due = self._available_at(permit, rate, now)
            queue = self._high_priority_queue if permit.high_priority else self._low_priority_queue
            if due > now:
                if permit.queue_position == 0:
                    self._last_queue_position += 1
                    permit.queue_position = self._last_queue_position
                queue.add(permit)
                wait = min(due - now, _MAX_WAIT_SECONDS)
                permit.retry_at = now + wait
                return wait
            queue.remove(permit)
            self._token_quota.charge(permit, now)
            self._estimator.on_sent(permit, now, was_queued=permit.queue_position != 0)
            # If tokens are limited, a small request has a short interval, but not below that of the configured quota.
            self._next_at = _spacing_start(self._next_at, now) + max(permit.weight / rate, self._min_interval_seconds)
            return 0.0

    def on_success(self, permit: Permit, billed_tokens: int | None = None) -> None:
        """The request was answered; `billed_tokens` is None if the service did not say."""
        with self._lock:
            if self._close_permit(permit):
                return
            self._token_quota.record_billed(permit, billed_tokens)
            self._estimator.on_success(permit, self.clock())

    def on_throttled(self, permit: Permit, retry_after_seconds: float | None = None) -> None:
        """The request was throttled; `retry_after_seconds` are honoured up to 60."""
        with self._lock:
            if self._close_permit(permit):
                return
            explained = self._token_quota.explains_throttle(permit) and not retry_after_seconds
            self._token_quota.record_billed(permit, 0)
            if explained:
                self._estimator.on_cancelled(permit)
            else:
                self._estimator.on_throttled(permit, self.clock(), retry_after_seconds)

    def cancel(self, permit: Permit) -> None:
        """The request ended without an answer, or was never sent. Has no effect on a permit that has ended."""
        with self._lock:
            if not self._close_permit(permit):
                self._estimator.on_cancelled(permit)

    def _close_permit(self, permit: Permit) -> bool:
        """Ends the permit; returns whether the estimator must ignore this: it ended before, or was never sent."""
        over, permit.is_closed = permit.is_closed or permit.sent_at is None, True
        if permit.sent_at is None:
            (self._high_priority_queue if permit.high_priority else self._low_priority_queue).remove(permit)
        return over

    @property
    def _min_interval_seconds(self) -> float:
        return 0.0 if self.requests_per_minute is None else 60.0 / (_QUOTA_SHARE * self.requests_per_minute)

    def _requests_per_second(self, now: float) -> float:
        rate = self._estimator.rate(now)
        if self.requests_per_minute is None:
            return rate
        return min(rate, _QUOTA_SHARE * self.requests_per_minute / 60.0)

    def _available_at(self, permit: Permit, rate: float, now: float) -> float:
        """When the permit may be sent, by what is known now."""
        self._high_priority_queue.drop_absent(permit, now)
        ahead = (
            self._high_priority_queue.count_ahead(permit)
            if permit.high_priority
            else len(self._high_priority_queue.waiting)
        )
        if not permit.high_priority:
            self._low_priority_queue.drop_absent(permit, now)
            ahead += self._low_priority_queue.count_ahead(permit)
        circuit_closes_at = self._estimator.next_send_at(now)
        if not ahead and self._is_unpaced():
            return circuit_closes_at
        due = max(self._next_at, self._token_quota.available_at(permit, now), circuit_closes_at)
        if ahead:
            head = next(iter((self._high_priority_queue.waiting or self._low_priority_queue.waiting).values()))
            due += max(ahead / rate, self._token_quota.queue_delay(head, ahead))
        return due

    def _is_unpaced(self) -> bool:
        """Whether to send without spacing: no quota is known, and no other request is in flight."""
        has_quota = self.requests_per_minute is not None or self.tokens_per_minute is not None
        return not has_quota and self._estimator.limit_per_second is None and self._estimator.in_flight == 0


def _spacing_start(due: float, now: float) -> float:
    """Start of the interval after this request: a slightly late one catches up, one after a pause does not."""
    return now if due < now - _IDLE_RESET_SECONDS else max(due, now - _BURST_TOLERANCE_SECONDS)


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


def _forget_limiters() -> None:
    _limiters.clear()
    _recent_limiters.clear()


_process.on_reset("limiters", _forget_limiters, learned=True)
