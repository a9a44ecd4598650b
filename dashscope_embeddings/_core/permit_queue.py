"""The permits that wait in the rate limiter."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashscope_embeddings._core.permit import Permit

_LATE_GRACE_SECONDS = 0.03
"""A caller that is late by more than this is skipped in the queue until it asks again."""


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
