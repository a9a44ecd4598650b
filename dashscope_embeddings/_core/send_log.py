"""The last requests in the order in which they were sent, and whether each passed; replies may come in any order."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

from dashscope_embeddings._core import search_constants as constants

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dashscope_embeddings._core.permit import Permit

_MAX_REMEMBERED_SENDS = 8192
_KEPT_SECONDS = 75.0
"""The longest window, and the gaps between probes after it."""
_IN_FLIGHT_SECONDS = 10.0
"""Requests that were sent earlier do not count as in flight: their connection may be lost."""
_REORDERING_SECONDS = 0.003
"""Requests sent within this time may reach the service in another order: new connections need a handshake."""


@dataclass(slots=True)
class SendLog:
    """Recent sends in order, and how long the service takes to refuse one.

    A request that is not refused within `patience_seconds` is presumed to have passed: 429s come back quickly, while
    an answer may take seconds.
    """

    accepted_weight: float = 0.0
    """Total weight of all answered requests."""
    limits_met_at: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    """Send times of the first 429s of limits."""
    _sends: deque[Permit] = field(default_factory=lambda: deque(maxlen=_MAX_REMEMBERED_SENDS))
    _mean_refusal_seconds: float = 0.0
    _refusal_deviation: float = 0.0

    def add(self, permit: Permit) -> None:
        """Records a send, and forgets those that no window counts any more."""
        self._sends.append(permit)
        oldest = _sent_at(permit) - _KEPT_SECONDS
        while _sent_at(self._sends[0]) < oldest:
            self._sends.popleft()

    def observe_refusal(self, seconds: float) -> None:
        """Records how long a 429 took, like the round-trip estimate of TCP (RFC 6298)."""
        if self._mean_refusal_seconds:
            self._refusal_deviation += 0.25 * (abs(seconds - self._mean_refusal_seconds) - self._refusal_deviation)
            self._mean_refusal_seconds += 0.125 * (seconds - self._mean_refusal_seconds)
        else:
            self._mean_refusal_seconds, self._refusal_deviation = seconds, seconds / 8.0

    @property
    def patience_seconds(self) -> float:
        """Time after which an unanswered request is presumed to have passed."""
        return self._mean_refusal_seconds + 4.0 * self._refusal_deviation + 0.02

    def has_passed(self, permit: Permit, now: float) -> bool | None:
        """Whether the service accepted it; None: not known yet."""
        if permit.passed is None and not permit.is_uncounted and now > _sent_at(permit) + self.patience_seconds:
            return True
        return permit.passed

    def newest_first(self) -> Iterator[Permit]:
        """The sends, newest first."""
        return reversed(self._sends)

    def sent_after(self, permit: Permit, count: int) -> list[Permit]:
        """The first `count` requests sent after this one that were not cancelled, as far as they were sent."""
        later = takewhile(lambda other: other is not permit, reversed(self._sends))
        return [other for other in later if other.passed is not None or not other.is_uncounted][-count:]

    def since(self, sent_at: float) -> list[Permit]:
        """The requests sent at `sent_at` or later, in order."""
        newest = list(takewhile(lambda permit: _sent_at(permit) >= sent_at, reversed(self._sends)))
        return newest[::-1]

    def first_sent_at(self, since: float, otherwise: float) -> float:
        """When the first request after `since` was sent."""
        return next((_sent_at(permit) for permit in self._sends if _sent_at(permit) > since), otherwise)

    def known_since(self, sent_at: float, max_count: int, now: float) -> list[tuple[Permit, bool]]:
        """The last `max_count` requests sent after `sent_at` of which it is known whether they passed, and whether.

        Among replies alone there would be too many 429s, which come sooner than answers.
        """
        known = ((permit, self.has_passed(permit, now)) for permit in self.since(sent_at))
        return [(permit, passed) for permit, passed in known if passed is not None][-max_count:]

    def counted(self, until: float, seconds: float) -> list[Permit]:
        """The requests sent in the `seconds` before `until` that were not refused."""
        return [
            permit
            for permit in self.since(until - seconds)
            if _sent_at(permit) <= until and _sent_at(permit) > until - seconds and not permit.is_uncounted
        ]

    def weight(self, until: float, seconds: float) -> float:
        """The weight of `counted`."""
        return sum(permit.weight for permit in self.counted(until, seconds))

    def bucket_rate(self, until: float) -> float:
        """The rate at which a bucket refills that a 429 at `until` shows to be empty, as an earlier one did before.

        That is what passed in between, or more: a full bucket refills no further. What passed last is too much, because
        it contains the room that was used up.
        """
        last = self._rate_of_last(until, constants.RECENT_SENDS)
        weight, count = 0.0, 0
        for permit in reversed(self._sends):
            if permit.passed is False and count >= constants.RECENT_SENDS:
                since_empty = weight / (until - _sent_at(permit))
                return since_empty + constants.LAST_SENDS_SHARE * max(last - since_empty, 0.0)
            if _sent_at(permit) < until and not permit.is_uncounted:
                weight, count = weight + permit.weight, count + 1
        return last

    def _rate_of_last(self, until: float, count: int) -> float:
        """The rate of the last `count` requests sent before `until` that were not refused."""
        counted = self.counted(until, constants.WINDOW_SECONDS)[-count:]
        elapsed = until - _sent_at(counted[0]) if counted else 0.0
        return sum(permit.weight for permit in counted) / elapsed if elapsed > 0.0 else 0.0

    def rate_since_limit(self, until: float, seconds: float) -> float:
        """The rate that passed since the earliest limit that was met in the `seconds` before `until`."""
        since = next((met for met in self.limits_met_at if met >= until - seconds), self.limits_met_at[-1])
        elapsed = max(until - since, 1e-3)
        return self.weight(until, elapsed) / elapsed

    def kept_share(self) -> float:
        """What passed between the last two limits that were met, as a share of what left the window; 1.0: unknown.

        If it is less, something else takes the rest: another program of the account, or the limit is lower now.
        """
        since, until = ([-math.inf] * 2 + list(self.limits_met_at))[-2:]
        shortest, longest = constants.FALL_SECONDS
        if not shortest < until - since < longest:
            return 1.0
        left = self.weight(until - constants.WINDOW_SECONDS, until - since)
        return 1.0 if left < constants.FEW_PASSED else self.weight(until, until - since) / left

    def highest_weight(self, since: float, until: float, seconds: float) -> float:
        """The highest weight that passed in any `seconds` that end between `since` and `until`."""
        window: deque[Permit] = deque()
        total = highest = 0.0
        for permit in self.counted(until, until - since + seconds):
            window.append(permit)
            total += permit.weight
            while _sent_at(window[0]) <= _sent_at(permit) - seconds:
                total -= window.popleft().weight
            if _sent_at(permit) >= since - _REORDERING_SECONDS:
                highest = max(highest, total)
        return highest or total

    def in_flight_at(self, sent_at: float) -> int:
        """Accepted requests that were in flight when one was sent, by what is known now."""
        return sum(
            not permit.is_uncounted and (permit.answered_at is None or permit.answered_at > sent_at)
            for permit in self.since(sent_at - _IN_FLIGHT_SECONDS)
            if _sent_at(permit) <= sent_at + _REORDERING_SECONDS
        )


def _sent_at(permit: Permit) -> float:
    return -math.inf if permit.sent_at is None else permit.sent_at
