"""When the next request may go: says how long to wait, and never waits itself.

Quotas belong to an account, a host and a model (https://www.alibabacloud.com/help/en/model-studio/rate-limit,
seen 2026-11-20), so all clients of a process with the same three share one limiter. Limits a minute may be
enforced a second at a time: requests are spaced evenly, never sent as a minute's burst.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SLACK = 0.006
"""Seconds of pace that a late caller may make up for: about what a busy machine's timers are late."""
_LONGEST_NAP = 0.25
"""Nobody is told to wait longer before asking again: what is true then may be better."""
_MARGIN = 0.98
"""Share of a given quota that is used: the service's clock is not ours."""
_START = 200.0
"""Requests a second at first, doubled with every 40 answers: an account without quota is not slowed down."""


@dataclass(slots=True, eq=False)
class Permit:
    """One request's place with the limiter, from asking to answer."""

    tokens: int
    urgent: bool = False
    """A query: goes before documents that wait."""
    sent: float | None = None
    settled: bool = False


@dataclass
class Limiter:
    """Paces the requests of one account, host and model. Thread-safe; knows no event loop."""

    clock: Callable[[], float]
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _next_request: float = 0.0
    _next_token: float = 0.0
    _held_until: float = 0.0
    _rate: float = _START
    _reacted: float = 0.0
    _refused_in_a_row: int = 0

    def tighten(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        """Takes over a client's settings: of several, the tightest wins."""
        with self._lock:
            self.requests_per_minute = _tighter(self.requests_per_minute, requests_per_minute)
            self.tokens_per_minute = _tighter(self.tokens_per_minute, tokens_per_minute)

    def ask(self, tokens: int, *, urgent: bool = False) -> Permit:
        """A place for a request of about so many tokens. Ends with `settle`, `refuse` or `release`."""
        return Permit(tokens, urgent)

    def reserve(self, permit: Permit) -> float:
        """0.0: send now. Otherwise seconds until it is worth asking again."""
        with self._lock:
            now = self.clock()
            due = max(self._next_request, self._next_token, self._held_until)
            if due > now:
                return min(due - now, _LONGEST_NAP)
            self._next_request = max(self._next_request, now - _SLACK) + 1.0 / self._requests_a_second()
            if self.tokens_per_minute is not None:
                pace = _MARGIN * self.tokens_per_minute / 60.0
                self._next_token = max(self._next_token, now - _SLACK) + permit.tokens / pace
            permit.sent = now
            return 0.0

    def settle(self, permit: Permit, tokens: int | None = None) -> None:
        """The request was answered; `tokens` is what it was billed, where the service said so."""
        with self._lock:
            if permit.settled:
                return
            permit.settled = True
            self._refused_in_a_row = 0
            self._rate *= 2.0 ** (1 / 40) if self._reacted == 0.0 else 1.005
            if tokens is not None and self.tokens_per_minute is not None:
                self._next_token += (tokens - permit.tokens) / (_MARGIN * self.tokens_per_minute / 60.0)

    def refuse(self, permit: Permit, retry_after: float | None = None) -> None:
        """The request was throttled."""
        with self._lock:
            if permit.settled:
                return
            permit.settled = True
            now = self.clock()
            if permit.sent is not None and permit.sent < self._reacted:
                return  # sent before the last reaction: says nothing new
            self._refused_in_a_row += 1
            pause = min(0.5 * 2.0 ** (self._refused_in_a_row - 1), 30.0)
            self._rate = max(1.0, min(self._rate, 10.0 * _START) * 0.5)
            self._held_until = now + (retry_after if retry_after is not None else pause)
            self._reacted = now

    def release(self, permit: Permit) -> None:
        """The request ended without an answer, or was never sent."""
        with self._lock:
            permit.settled = True

    def _requests_a_second(self) -> float:
        if self.requests_per_minute is None:
            return self._rate
        return min(self._rate, _MARGIN * self.requests_per_minute / 60.0)


def _tighter(one: float | None, other: float | None) -> float | None:
    given = [value for value in (one, other) if value is not None]
    return min(given, default=None)


_shared: dict[tuple[object, ...], Limiter] = {}
_shared_lock = threading.Lock()


def shared(account: tuple[object, ...], clock: Callable[[], float]) -> Limiter:
    """The process's limiter for an account, host and model; `account` must not hold the key itself."""
    with _shared_lock:
        return _shared.setdefault(account, Limiter(clock))


def _forget() -> None:
    """A forked child has its own requests under way, and may have inherited locked locks."""
    global _shared_lock  # noqa: PLW0603 - a lock held by another thread at the fork stays locked for good
    _shared_lock = threading.Lock()
    _shared.clear()


os.register_at_fork(after_in_child=_forget)
