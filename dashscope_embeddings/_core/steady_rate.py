"""The rate over time: the ramp after a first limit was met, and the cubic probe around a known limit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dashscope_embeddings._core import search_constants as constants


@dataclass(slots=True)
class Ramp:
    """The rate after a first limit was met, doubled again and again."""

    start_rate: float
    since: float
    """Its start; moves on while the rate is not used."""

    def rate(self, now: float) -> float:
        """The allowed rate."""
        return self.start_rate * doubled((now - self.since) / constants.RAMP_DOUBLING_SECONDS)


@dataclass(slots=True)
class SteadyRate:
    """The estimated limit in units of weight a second, and how long it is held before it is exceeded."""

    limit: float | None = None
    """None: not known."""
    is_bucket: bool = False
    """Whether the limit refills continuously."""
    is_hinted: bool = False
    """Whether 429s ask for seconds of silence, so that exceeding the limit costs more."""
    hold_seconds: float = constants.FIRST_HOLD
    _since: float = 0.0
    """Start of the hold; moves on while the rate is not used."""
    _best: float = 0.0
    """The highest limit since the last drop."""
    _peak: float = 0.0
    """The highest limit before the last drops."""
    _dropped_at: float = -math.inf
    _has_recovered: bool = False
    """Whether the limit came back after a recent drop, so that it may do so again."""

    def set(self, limit: float, hold_seconds: float, now: float) -> None:
        """A limit was found: holds it from now on."""
        limit = max(limit, constants.MIN_LIMIT)
        if self.is_hinted and self.is_near(limit):
            hold_seconds = max(hold_seconds, constants.HINTED_HOLD)
        elif self.is_hinted:
            hold_seconds = min(constants.HINTED_HOLD, constants.HINTED_HOLD_PER_LIMIT * limit)
        if self.limit is not None and limit < constants.DROPPED_SHARE * self.limit:
            self._peak = max(self._best, self._peak if self._has_dropped(now) else 0.0)
            self._dropped_at, self._best = now, limit
            hold_seconds = min(self.hold_seconds, constants.DROPPED_HOLD)
        elif not self._has_dropped(now):
            self._has_recovered = False
        elif limit >= (1.0 - constants.NEAR) * self._peak:
            self._has_recovered = True
        elif self._has_recovered:
            hold_seconds = min(hold_seconds, constants.DROPPED_HOLD)
        self.limit, self._best, self._since = limit, max(limit, self._best), now
        longest = max(constants.DROPPED_HOLD, min(constants.HELD_REQUESTS / limit, constants.MAX_HOLD))
        self.hold_seconds = min(hold_seconds, constants.MAX_HINTED_HOLD if self.is_hinted else longest)

    def lower(self) -> None:
        """Lowers the limit a little; goes on with the hold."""
        if self.limit is not None:
            self.limit = max(constants.SHARE * self.limit, constants.MIN_LIMIT)

    def postpone(self, seconds: float) -> None:
        """The rate was not used for so long."""
        self._since += seconds

    def rate(self, now: float) -> float:
        """The allowed rate; infinite without a limit."""
        if self.limit is None:
            return math.inf
        hold, held = self.hold_seconds, now - self._since
        overshoot, doubling, approach = constants.OVERSHOOT, constants.DOUBLING_SECONDS, hold
        if self._has_dropped(now):
            overshoot, doubling = constants.DROPPED_OVERSHOOT, constants.DROPPED_DOUBLING_SECONDS
        elif hold < constants.HINTED_QUICK_HOLD if self.is_hinted else self.is_bucket and hold < 1.0:
            overshoot, doubling, approach = 0.0, constants.BUCKET_DOUBLING_SECONDS, 0.0
        if held < hold:
            return self.limit
        if held < hold + approach:
            return self.limit * (1.0 + overshoot * (held - hold) / approach)
        return self.limit * (1.0 + overshoot) * doubled((held - hold - approach) / doubling)

    def exceeds(self, now: float) -> bool:
        """Whether the rate is above the limit at present."""
        return self.limit is not None and self.rate(now) > 1.001 * self.limit

    def is_excluded(self, now: float) -> bool:
        """Whether the rate is too low to be the cause of a 429."""
        rate = self.rate(now)
        is_far_below = self._has_dropped(now) and rate <= constants.FAR_BELOW_SHARE * self._peak
        return is_far_below or rate <= constants.EXCLUDED_SHARE * self._best

    def _has_dropped(self, now: float) -> bool:
        return now < self._dropped_at + constants.DROPPED_SECONDS

    def is_near(self, measured: float) -> bool:
        """Whether a measurement agrees with the limit."""
        return self.limit is not None and abs(measured - self.limit) <= max(constants.NEAR * self.limit, 1.0)


def doubled(times: float) -> float:
    """2 to the power of `times`, up to a maximum."""
    return math.pow(2.0, min(times, constants.MAX_DOUBLINGS))
