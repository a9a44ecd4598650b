"""What throttled requests tell: is there a quota behind them, and does it count requests or tokens?"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

PROBE_THRESHOLD_NATS, ACCEPT_THRESHOLD_NATS = 5.0, 10.0
"""Log-likelihood ratios, in nats, from which on a wall is looked for, and taken as found."""


@dataclass(slots=True)
class ThrottleDetector:
    """Tells refusals without a quota behind them from a wall, by likelihood.

    Strays are a share of all replies, whatever the rate. At a wall every second request or more is refused; a
    little above a quota, some more than the strays alone.
    """

    random_count: int = 0
    limit_score: float = 0.0
    """How much likelier a wall is than strays; never below 0, so that a wall can begin at any time."""
    overshoot_score: float = 0.0
    """The same for a rate a little too high."""
    _decayed_random_count: float = 0.0
    _decayed_reply_count: float = 0.0

    @property
    def random_share(self) -> float:
        """Refused by strays, of all replies, with something to spare."""
        if self.random_count < 2:  # noqa: PLR2004 - one may be anything
            return 0.003
        return min(0.06, max(0.003, 1.5 * self._decayed_random_count / max(self._decayed_reply_count, 50.0)))

    @property
    def is_random_only(self) -> bool:
        """Strays are what this service does, and nothing now looks like more than that."""
        known = self.random_count >= 2 and self._decayed_random_count > 0.01 * max(self._decayed_reply_count, 50.0)  # noqa: PLR2004
        return known and not self.is_implausible and self.overshoot_score < PROBE_THRESHOLD_NATS

    @property
    def is_implausible(self) -> bool:
        """So many that they must have a cause."""
        return self.random_count >= 4 and self._decayed_random_count > 0.15 * max(self._decayed_reply_count, 20.0)  # noqa: PLR2004

    def observe(self, *, throttled: bool, rate_excluded: bool) -> None:
        """Weigh a reply; `blameless`: the rate could not be the reason for a refusal."""
        if rate_excluded:
            self._decayed_reply_count += 1.0
            if self._decayed_reply_count > 400.0:  # noqa: PLR2004 - what was true long ago counts less
                self._decayed_reply_count, self._decayed_random_count = (
                    self._decayed_reply_count / 2,
                    self._decayed_random_count / 2,
                )
        random_share = self.random_share
        overshoot_share = max(2.5 * random_share, 0.06)
        if throttled:
            self.limit_score = min(self.limit_score + math.log(0.5 / random_share), 1.5 * ACCEPT_THRESHOLD_NATS)
            self.overshoot_score += math.log(overshoot_share / random_share)
        else:
            self.limit_score = max(0.0, self.limit_score + math.log(0.5 / (1.0 - random_share)))
            self.overshoot_score = max(
                0.0, self.overshoot_score + math.log((1.0 - overshoot_share) / (1.0 - random_share))
            )

    def count_random(self) -> None:
        """A refusal turned out to be a stray."""
        self.random_count += 1
        self._decayed_random_count += 1.0

    def reset_scores(self) -> None:
        """The rate was changed: judge anew."""
        self.limit_score = self.overshoot_score = 0.0


@dataclass(slots=True)
class LimitedResource:
    """Finds out whether requests or tokens are short: that of which refusals always find the same amount."""

    tokens_per_unit: float | None = None
    """Tokens that weigh as much as a request did; None: requests count."""
    _mean_tokens: float = 0.0
    _passed_totals: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=8))

    def weight_of(self, tokens: int) -> float:
        """What a request of so many tokens takes from the pace."""
        self._mean_tokens += 0.05 * (tokens - self._mean_tokens) if self._mean_tokens else tokens
        return 1.0 if self.tokens_per_unit is None else max(tokens, 1) / self.tokens_per_unit

    def observe_throttle(self, passed_tokens: list[int]) -> bool:
        """Note the tokens of each request that passed before a refusal; True: tokens it is, from now on."""
        if self.tokens_per_unit is not None or not passed_tokens:
            return False
        self._passed_totals.append((len(passed_tokens), sum(passed_tokens)))
        requests, tokens = (
            _coefficient_of_variation([wall[which] for wall in self._passed_totals]) for which in (0, 1)
        )
        if len(self._passed_totals) < 5 or tokens >= 0.7 * requests:  # noqa: PLR2004 - fewer agree by chance
            return False
        self.tokens_per_unit = max(self._mean_tokens, 1.0)
        return True


def _coefficient_of_variation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)) / mean if mean else 0.0
