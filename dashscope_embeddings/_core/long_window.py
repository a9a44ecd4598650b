"""A limit over a window of several seconds: at most a fixed amount in any such window, however it is spread."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dashscope_embeddings._core import search_constants as constants

if TYPE_CHECKING:
    from typing_extensions import Self

    from dashscope_embeddings._core.circuit import Circuit
    from dashscope_embeddings._core.permit import Permit
    from dashscope_embeddings._core.send_log import SendLog


@dataclass(slots=True)
class LongWindow:
    """What may be sent in any `seconds`, in units of weight."""

    seconds: float
    amount: float
    _counted: deque[Permit] = field(default_factory=deque)
    _total: float = 0.0
    _next_try_at: float = -math.inf

    @classmethod
    def found(cls, circuit: Circuit, log: SendLog, passed_at: float) -> Self:
        """The window of a circuit whose probe passed only after more than a second, when the window had ended."""
        seconds = min(passed_at - circuit.job_start, constants.LONG_WINDOWS_SECONDS[-1])
        amount = log.highest_weight(circuit.first_refused_at, circuit.opened_at, seconds)
        window = cls(seconds, max(1.0, amount))
        for permit in log.counted(passed_at, seconds):
            window.add(permit, passed_at)
        return window

    @property
    def rate(self) -> float:
        """How fast the amount is used up."""
        return max(constants.LONG_WINDOW_PACE * self.amount / self.seconds, 1.0 / constants.LONG_WINDOW_TRY_SECONDS)

    @property
    def is_full(self) -> bool:
        """Whether a 429 is to be expected."""
        return self._total > self.amount - 1.0

    @property
    def has_room(self) -> bool:
        """Whether a 429 contradicts the window."""
        return self._total < constants.LONG_WINDOW_ROOM * self.amount

    def add(self, permit: Permit, now: float) -> None:
        """A request is sent."""
        self._counted.append(permit)
        self._total += permit.weight
        if self._total > self.amount:
            self._next_try_at = now + constants.LONG_WINDOW_TRY_SECONDS

    def available_at(self, now: float) -> float:
        """When the next request fits into the window, or is tried beyond it."""
        oldest = now - constants.LONG_WINDOW_STRETCH * self.seconds
        while self._counted and ((self._counted[0].sent_at or 0.0) <= oldest or self._counted[0].is_uncounted):
            gone = self._counted.popleft()
            self._total -= 0.0 if gone.is_uncounted else gone.weight
        excess = self._total + 1.0 - self.amount
        if excess <= 0.0 or not self._counted:
            return now
        for permit in self._counted:
            excess -= 0.0 if permit.is_uncounted else permit.weight
            if excess <= 0.0:
                end = (permit.sent_at or now) + constants.LONG_WINDOW_STRETCH * self.seconds
                return min(end, max(now, self._next_try_at))
        return max(now, self._next_try_at)

    def on_success(self) -> None:
        """A request was answered: what is in the window passes."""
        self.amount = max(self.amount, self._total)

    def on_uncounted(self, permit: Permit) -> None:
        """A request was refused or cancelled; it is marked as uncounted already."""
        if self._counted and (permit.sent_at or 0.0) >= (self._counted[0].sent_at or 0.0):
            self._total -= permit.weight

    def recount(self) -> None:
        """The requests weigh something else now."""
        before, self._total = self._total, sum(send.weight for send in self._counted if not send.is_uncounted)
        if before > 0.0:
            self.amount *= self._total / before

    def on_throttled(self, now: float) -> None:
        """No more than what is in the window passes."""
        self.amount = max(1.0, min(self.amount, self._total))
        self._next_try_at = now + self.seconds
