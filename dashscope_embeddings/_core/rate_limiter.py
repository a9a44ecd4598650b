"""When the next request may go: says how long to wait, and never waits itself.

Quotas belong to an account, a host and a model (https://www.alibabacloud.com/help/en/model-studio/rate-limit,
seen 2026-11-20), so all clients of a process with the same three share one limiter. Limits a minute may be
enforced a second at a time: requests are spaced evenly, never sent as a minute's burst.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dashscope_embeddings._core.rate_estimator import Pace, Permit

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Limiter", "Permit", "shared"]

_SLACK = 0.006
"""Seconds of pace that a late caller may make up for: about what a busy machine's timers are late."""
_PAUSE = 0.05
"""Seconds without anyone whose turn it is after which nobody counts as late."""
_LONGEST_NAP = 0.25
"""Nobody is told to wait longer before asking again: what is true then may be better."""
_MARGIN = 0.98
"""Share of a given quota that is used: the service's clock is not ours."""
_STRICT_SECONDS, _STRICT_SHARE = 1.003, 1.12
"""Where a second's tokens are counted exactly, that count is kept to, and the even pace only shapes it."""
_FORGIVEN = 60.0
"""Seconds after which it is tried again whether they still are."""
_GRACE = 0.03
"""Seconds a caller may come back late without losing its place; then others go first until it does."""


@dataclass(slots=True)
class _Tokens:
    """Paces tokens under a quota, and learns how far off the estimates are."""

    per_minute: float | None = None
    next: float = -math.inf
    _mean: float = 0.0
    _estimated: float = 0.0
    _billed: float = 0.0
    _sends: deque[Permit] = field(default_factory=lambda: deque(maxlen=4096))
    _used: float = 0.0
    _strict_since: float | None = None
    """Since when requests are known to be refused that would overfill a window of one second."""

    def behind(self, head: Permit, ahead: int) -> float:
        """Seconds that those ahead take of the quota: too few rather than too many, or turns would pass."""
        if self.per_minute is None:
            return 0.0
        return (self._cost(head) + 0.3 * (ahead - 1) * self._mean) / self._pace()

    def _pace(self) -> float:
        share = _STRICT_SHARE if self._strict_since is not None else _MARGIN
        return share * (self.per_minute or 1.0) / 60.0

    def due(self, permit: Permit, now: float) -> float:
        """When the request's tokens fit."""
        if self.per_minute is None or not self._strict(now):
            return self.next
        room = self.per_minute / 60.0 - self._cost(permit)
        self._expire(now)
        used, due = self._used, self.next
        for earlier in self._sends:
            if used <= max(room, 0.0):
                break
            used -= earlier.cost
            due = max(due, (earlier.sent or 0.0) + _STRICT_SECONDS)
        return due

    def take(self, permit: Permit, now: float) -> None:
        """The request goes."""
        if self.per_minute is None:
            return
        permit.cost = self._cost(permit)
        self._mean += 0.1 * (permit.cost - self._mean) if self._mean else permit.cost
        self.next = _resume(self.next, now) + permit.cost / self._pace()
        self._expire(now)
        self._sends.append(permit)
        self._used += permit.cost

    def settle(self, permit: Permit, billed: int | None) -> None:
        """The request was billed so much; None: it does not count, or nobody knows."""
        if billed is None:
            return
        if billed > 0:
            self._estimated = 0.98 * self._estimated + max(permit.tokens, 1)
            self._billed = 0.98 * self._billed + billed
        if self.per_minute is not None:
            self.next += (billed - permit.cost) / self._pace()
            if self._sends and (permit.sent or 0.0) >= (self._sends[0].sent or 0.0):
                self._used += billed - permit.cost
            permit.cost = billed

    def explain(self, permit: Permit) -> bool:
        """Whether a refusal comes from counting tokens a second at a time, which we did not know yet."""
        if self.per_minute is None or permit.sent is None:
            return False
        if self._strict(permit.sent):
            return permit.sent <= (self._strict_since or 0.0)
        self._expire(permit.sent)
        if self._used <= 0.9 * self.per_minute / 60.0:
            return False
        self._strict_since = self._sends[-1].sent
        return True

    def _strict(self, now: float) -> bool:
        if self._strict_since is not None and now > self._strict_since + _FORGIVEN:
            self._strict_since = None
        return self._strict_since is not None

    def _cost(self, permit: Permit) -> float:
        ratio = self._billed / self._estimated if self._estimated else 1.0
        return permit.tokens * ratio

    def _expire(self, now: float) -> None:
        while self._sends and (self._sends[0].sent or 0.0) <= now - _STRICT_SECONDS:
            self._used -= self._sends.popleft().cost
        if not self._sends:
            self._used = 0.0


@dataclass(slots=True)
class _Queue:
    """Who waits, in the order of arrival; who does not come back for its turn is skipped until it does."""

    waiting: OrderedDict[int, Permit] = field(default_factory=OrderedDict)

    def skip_absent(self, permit: Permit, now: float) -> None:
        while self.waiting:
            head = next(iter(self.waiting.values()))
            if head is permit or head.wakes + _GRACE > now:
                return
            del self.waiting[head.ticket]

    def before(self, permit: Permit) -> int:
        """How many go first, at most."""
        if not self.waiting:
            return 0
        if permit.ticket == 0:
            return len(self.waiting)
        return min(len(self.waiting), max(0, permit.ticket - next(iter(self.waiting))))

    def join(self, permit: Permit) -> None:
        if permit.ticket in self.waiting:
            return
        first = next(iter(self.waiting), permit.ticket)
        self.waiting[permit.ticket] = permit
        if permit.ticket < first:
            self.waiting.move_to_end(permit.ticket, last=False)

    def leave(self, permit: Permit) -> None:
        self.waiting.pop(permit.ticket, None)


@dataclass(eq=False)
class Limiter:
    """Paces the requests of one account, host and model. Thread-safe; knows no event loop.

    Given a quota, it goes evenly at 0.98 of it from the first request on. Without, it finds one by itself.
    Queries go before documents; otherwise whoever came first goes first.

    Args:
        clock: monotonic seconds.
        requests_per_minute: the account's quota; None: unknown.
        tokens_per_minute: likewise.
    """

    clock: Callable[[], float]
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the settings: for a forked child, where nobody else can be at work."""
        self._lock = threading.Lock()
        self._pace = Pace()
        self._tokens = _Tokens(self.tokens_per_minute)
        self._urgent, self._patient = _Queue(), _Queue()
        self._tickets = 0
        self._next = -math.inf

    def tighten(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        """Takes over a client's settings: of several, the tightest wins."""
        with self._lock:
            self.requests_per_minute = _tighter(self.requests_per_minute, requests_per_minute)
            self.tokens_per_minute = _tighter(self.tokens_per_minute, tokens_per_minute)
            self._tokens.per_minute = self.tokens_per_minute

    def ask(self, tokens: int, *, urgent: bool = False) -> Permit:
        """A place for a request of about so many tokens. Ends with `settle`, `refuse` or `release`."""
        return Permit(tokens, urgent)

    def reserve(self, permit: Permit) -> float:
        """0.0: send now. Otherwise seconds until it is worth asking again, 0.25 at most."""
        with self._lock:
            if permit.sent is not None or permit.settled:
                return 0.0
            now = self.clock()
            rate = self._rate(now)
            due = self._due(permit, rate, now)
            queue = self._urgent if permit.urgent else self._patient
            if due > now:
                if permit.ticket == 0:
                    self._tickets += 1
                    permit.ticket = self._tickets
                queue.join(permit)
                wait = min(due - now, _LONGEST_NAP)
                permit.wakes = now + wait
                return wait
            queue.leave(permit)
            self._tokens.take(permit, now)
            self._pace.send(permit, now, waited=permit.ticket != 0)
            # A small request, where tokens are what is short, waits less: but never less than was given.
            self._next = _resume(self._next, now) + max(permit.weight / rate, self._least_pause)
            return 0.0

    def settle(self, permit: Permit, tokens: int | None = None) -> None:
        """The request was answered; `tokens` is what it was billed, where the service said so."""
        with self._lock:
            if self._ended(permit):
                return
            self._tokens.settle(permit, tokens)
            self._pace.accept(permit, self.clock())

    def refuse(self, permit: Permit, retry_after: float | None = None) -> None:
        """The request was throttled; `retry_after`: seconds the service asked for, honoured up to 60."""
        with self._lock:
            if self._ended(permit):
                return
            explained = self._tokens.explain(permit) and not retry_after
            self._tokens.settle(permit, 0)
            if explained:
                self._pace.drop(permit)
            else:
                self._pace.refuse(permit, self.clock(), retry_after)

    def release(self, permit: Permit) -> None:
        """The request ended without an answer, or was never sent. Does nothing after another end."""
        with self._lock:
            if not self._ended(permit):
                self._pace.drop(permit)

    def _ended(self, permit: Permit) -> bool:
        """Whether there is nothing to learn from the permit's end: it had ended before, or was never sent."""
        over, permit.settled = permit.settled or permit.sent is None, True
        if permit.sent is None:
            (self._urgent if permit.urgent else self._patient).leave(permit)
        return over

    @property
    def _least_pause(self) -> float:
        return 0.0 if self.requests_per_minute is None else 60.0 / (_MARGIN * self.requests_per_minute)

    def _rate(self, now: float) -> float:
        rate = self._pace.rate(now)
        if self.requests_per_minute is None:
            return rate
        return min(rate, _MARGIN * self.requests_per_minute / 60.0)

    def _due(self, permit: Permit, rate: float, now: float) -> float:
        """When the permit's turn is, as things stand."""
        self._urgent.skip_absent(permit, now)
        ahead = self._urgent.before(permit) if permit.urgent else len(self._urgent.waiting)
        if not permit.urgent:
            self._patient.skip_absent(permit, now)
            ahead += self._patient.before(permit)
        opens = self._pace.opens(now)
        if not ahead and self._is_free():
            return opens
        due = max(self._next, self._tokens.due(permit, now), opens)
        if ahead:
            head = next(iter((self._urgent.waiting or self._patient.waiting).values()))
            due += max(ahead / rate, self._tokens.behind(head, ahead))
        return due

    def _is_free(self) -> bool:
        """A lone caller of an account without a known quota: there is nothing to pace."""
        given = self.requests_per_minute is not None or self.tokens_per_minute is not None
        return not given and self._pace.limit is None and self._pace.in_flight == 0


def _resume(due: float, now: float) -> float:
    """From when on the next request is spaced: who is late makes up for a little, a pause for nothing."""
    return now if due < now - _PAUSE else max(due, now - _SLACK)


def _tighter(one: float | None, other: float | None) -> float | None:
    return min((value for value in (one, other) if value is not None), default=None)


_RECENT = 64
"""Limiters that are kept although no client lives: the next client of that account knows what the last one learned."""
_shared: weakref.WeakValueDictionary[tuple[object, ...], Limiter] = weakref.WeakValueDictionary()
_recent: OrderedDict[Limiter, None] = OrderedDict()
_shared_lock = threading.Lock()


def shared(account: tuple[object, ...], clock: Callable[[], float]) -> Limiter:
    """The process's limiter for an account, host and model; `account` must not hold the key itself.

    It lives as long as a client that holds it, and afterwards until 64 others were used.
    """
    with _shared_lock:
        limiter = _shared.setdefault(account, Limiter(clock))
        _recent[limiter] = None
        _recent.move_to_end(limiter)
        if len(_recent) > _RECENT:
            _recent.popitem(last=False)
        return limiter


def _forget() -> None:
    """A forked child has its own requests under way, and may have inherited locked locks."""
    global _shared_lock  # noqa: PLW0603 - a lock held by another thread at the fork stays locked for good
    _shared_lock = threading.Lock()
    for limiter in list(_shared.values()):
        limiter.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
