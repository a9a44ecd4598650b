"""What throttled requests tell: is there a quota behind them, and does it count requests or tokens?"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

SUSPECTED, CERTAIN = 5.0, 10.0
"""Log-likelihood ratios, in nats, from which on a wall is looked for, and taken as found."""


@dataclass(slots=True)
class Strays:
    """Tells refusals without a quota behind them from a wall, by likelihood.

    Strays are a share of all replies, whatever the rate. At a wall every second request or more is refused; a
    little above a quota, some more than the strays alone.
    """

    met: int = 0
    wall: float = 0.0
    """How much likelier a wall is than strays; never below 0, so that a wall can begin at any time."""
    excess: float = 0.0
    """The same for a rate a little too high."""
    _isolated: float = 0.0
    _replies: float = 0.0

    @property
    def share(self) -> float:
        """Refused by strays, of all replies, with something to spare."""
        if self.met < 2:  # noqa: PLR2004 - one may be anything
            return 0.003
        return min(0.06, max(0.003, 1.5 * self._isolated / max(self._replies, 50.0)))

    @property
    def established(self) -> bool:
        """Strays are what this service does, and nothing now looks like more than that."""
        known = self.met >= 2 and self._isolated > 0.01 * max(self._replies, 50.0)  # noqa: PLR2004
        return known and not self.implausible and self.excess < SUSPECTED

    @property
    def implausible(self) -> bool:
        """So many that they must have a cause."""
        return self.met >= 4 and self._isolated > 0.15 * max(self._replies, 20.0)  # noqa: PLR2004

    def reply(self, *, refused: bool, blameless: bool) -> None:
        """Weigh a reply; `blameless`: the rate could not be the reason for a refusal."""
        if blameless:
            self._replies += 1.0
            if self._replies > 400.0:  # noqa: PLR2004 - what was true long ago counts less
                self._replies, self._isolated = self._replies / 2, self._isolated / 2
        stray = self.share
        more = max(2.5 * stray, 0.06)
        if refused:
            self.wall = min(self.wall + math.log(0.5 / stray), 1.5 * CERTAIN)
            self.excess += math.log(more / stray)
        else:
            self.wall = max(0.0, self.wall + math.log(0.5 / (1.0 - stray)))
            self.excess = max(0.0, self.excess + math.log((1.0 - more) / (1.0 - stray)))

    def met_one(self) -> None:
        """A refusal turned out to be a stray."""
        self.met += 1
        self._isolated += 1.0

    def forget(self) -> None:
        """The rate was changed: judge anew."""
        self.wall = self.excess = 0.0


@dataclass(slots=True)
class Currency:
    """Finds out whether requests or tokens are short: that of which refusals always find the same amount."""

    unit: float | None = None
    """Tokens that weigh as much as a request did; None: requests count."""
    _mean: float = 0.0
    _walls: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=8))

    def weigh(self, tokens: int) -> float:
        """What a request of so many tokens takes from the pace."""
        self._mean += 0.05 * (tokens - self._mean) if self._mean else tokens
        return 1.0 if self.unit is None else max(tokens, 1) / self.unit

    def refused_above(self, passed: list[int]) -> bool:
        """Note the tokens of each request that passed before a refusal; True: tokens it is, from now on."""
        if self.unit is not None or not passed:
            return False
        self._walls.append((len(passed), sum(passed)))
        requests, tokens = (_spread([wall[which] for wall in self._walls]) for which in (0, 1))
        if len(self._walls) < 5 or tokens >= 0.7 * requests:  # noqa: PLR2004 - fewer agree by chance
            return False
        self.unit = max(self._mean, 1.0)
        return True


def _spread(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)) / mean if mean else 0.0
