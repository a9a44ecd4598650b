"""Permits of the rate limiter: the state of each request, which the limiter sets; and the queue of those that wait."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


_SLOW_SECONDS = 60.0
"""A request that takes longer does not count as in flight while others wait for its place."""
_LATE_GRACE_SECONDS = 0.03
"""A caller that is late by more than this is skipped in the queue until it asks again."""


class Sender(Protocol):
    """What sends requests: an event loop, a task on one, or a thread whose signals are deferred."""

    def is_running(self) -> bool:
        """Whether it can go on: the requests of a stopped one never end."""


@dataclass(slots=True, eq=False)
class InFlightBound:
    """The requests in flight of one client, and the most that its `max_concurrency` allows; None: no bound."""

    limit: int | None = None
    in_flight: int = 0
    waiting: dict[Permit, None] = field(default_factory=dict)
    """Permits that wait for one of them to end, in order of arrival."""


UNBOUNDED = InFlightBound()
"""Of requests without a client."""


@dataclass(slots=True, eq=False)
class Waiter:
    """What a flow waits for: a permit of the rate limiter, or a text that another request may contain."""

    wake: Callable[[], object] | None = field(default=None, kw_only=True)
    """Ends the wait early; set by the driver before its caller waits."""

    def wake_caller(self) -> None:
        """Wakes its caller, if that waits."""
        if self.wake is not None:
            self.wake()


@dataclass(slots=True, eq=False)
class Permit(Waiter):
    """One request's state in the limiter, from the first `try_acquire` to its answer."""

    estimated_tokens: int
    """Estimate of the tokens that the request will be billed."""
    high_priority: bool = False
    """True for a query, which precedes waiting documents."""
    bound: InFlightBound = UNBOUNDED
    blocked_loop: Sender | None = None
    """The event loop, or deferred signals, that its caller blocks by a sync call on its thread."""
    loop: Sender | None = None
    """The event loop that sends it, or the deferred signals of its thread; None: another thread."""
    sent_at: float | None = None
    is_closed: bool = False
    in_flight: int = 0
    """Requests in flight when it was sent, itself included."""
    is_rate_excluded: bool = False
    """Whether it was sent at a rate that is too low to cause 429s, as far as known."""
    answered_at: float | None = None
    passed: bool | None = None
    """Whether the service accepted it; None: not known yet, or cancelled."""
    is_uncounted: bool = False
    """Throttled or cancelled: presumably not counted by the service."""
    weight: float = 1.0
    """Its share of the rate: 1, or in proportion to its tokens if tokens are limited."""
    charged_tokens: float = 0.0
    """The tokens that the token quota was charged."""
    queue_position: int = 0
    """0: it never had to wait."""
    was_paced: bool = False
    """Whether it waited for the rate: a higher rate would have sent it earlier."""
    needs_slot: bool = False
    """Whether it waits for a request in flight to end."""
    retry_at: float = 0.0
    """When its caller will ask again; it is woken if asking earlier may help."""

    def is_lost(self, now: float) -> bool:
        """Whether its request will not end, as its event loop stopped; or not soon, so that another may be sent."""
        is_stopped = self.loop is not None and not self.loop.is_running()
        return is_stopped or now > (self.sent_at or now) + _SLOW_SECONDS


@dataclass(slots=True)
class PermitQueue:
    """Waiting permits in order of arrival; a caller that does not ask again in time is skipped until it does."""

    waiting: OrderedDict[int, Permit] = field(default_factory=OrderedDict)

    def drop_absent(self, permit: Permit, now: float) -> None:
        """Drops those at the front that are late, but not this one."""
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
        """Adds a permit, first if it arrived before all others that wait."""
        if permit.queue_position in self.waiting:
            return
        first = next(iter(self.waiting), permit.queue_position)
        self.waiting[permit.queue_position] = permit
        if permit.queue_position < first:
            self.waiting.move_to_end(permit.queue_position, last=False)

    def remove(self, permit: Permit) -> None:
        """Removes a permit, if it waits."""
        self.waiting.pop(permit.queue_position, None)

    @property
    def head(self) -> Permit | None:
        """The one whose turn is next."""
        return next(iter(self.waiting.values()), None)
