"""Classifies throttled requests: random 429s of a busy service or a rate limit, of requests or of tokens."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

PROBE_THRESHOLD_NATS, ACCEPT_THRESHOLD_NATS = 5.0, 10.0
"""CUSUM thresholds in nats: start probing for a rate limit; accept that there is one."""


@dataclass(slots=True)
class ThrottleDetector:
    """Distinguishes random 429s from a rate limit with CUSUM tests (Page's test).

    Three hypotheses on the share of 429s. Random: a small share of all replies, whatever the rate. Rate limit: half
    of the replies or more. Overshoot, a rate slightly above a limit: 2.5 times the random share, at least 6 %.
    """

    random_count: int = 0
    """429s that turned out to be random."""
    limit_score: float = 0.0
    """Log-likelihood ratio, in nats, of a rate limit against random 429s; at least 0, as a limit may start any time."""
    overshoot_score: float = 0.0
    """The same for overshoot."""
    _decayed_random_count: float = 0.0
    _decayed_reply_count: float = 0.0

    @property
    def random_share(self) -> float:
        """Estimated share of random 429s among all replies, with a margin of 1.5."""
        if self.random_count < 2:  # noqa: PLR2004 - one alone says nothing
            return 0.003
        return min(0.06, max(0.003, 1.5 * self._decayed_random_count / max(self._decayed_reply_count, 50.0)))

    @property
    def is_random_only(self) -> bool:
        """Whether this service is known to send random 429s, and nothing more is happening now."""
        known = self.random_count >= 2 and self._decayed_random_count > 0.01 * max(self._decayed_reply_count, 50.0)  # noqa: PLR2004
        return known and not self.is_implausible and self.overshoot_score < PROBE_THRESHOLD_NATS

    @property
    def is_implausible(self) -> bool:
        """Whether there are too many to be random."""
        return self.random_count >= 4 and self._decayed_random_count > 0.15 * max(self._decayed_reply_count, 20.0)  # noqa: PLR2004

    def observe(self, *, throttled: bool, rate_excluded: bool) -> None:
        """Updates the tests with a reply; `rate_excluded`: the rate is too low to be the cause of a 429."""
        if rate_excluded:
            self._decayed_reply_count += 1.0
            if self._decayed_reply_count > 400.0:  # noqa: PLR2004 - halving forgets old replies
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
        """A 429 turned out to be random."""
        self.random_count += 1
        self._decayed_random_count += 1.0

    def reset_scores(self) -> None:
        """Restarts the tests after a change of the rate."""
        self.limit_score = self.overshoot_score = 0.0


@dataclass(slots=True)
class LimitedResource:
    """Detects whether the limit counts requests or tokens, from the amounts that passed before each 429.

    The limited resource is the one whose amount varies less.
    """

    tokens_per_unit: float | None = None
    """Tokens that weigh 1, the weight of a request before; None: requests are limited."""
    _mean_tokens: float = 0.0
    _passed_totals: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=8))

    def weight_of(self, tokens: int) -> float:
        """The share of the rate that a request of this many tokens uses up."""
        self._mean_tokens += 0.05 * (tokens - self._mean_tokens) if self._mean_tokens else tokens
        return 1.0 if self.tokens_per_unit is None else max(tokens, 1) / self.tokens_per_unit

    def observe_throttle(self, passed_tokens: list[int]) -> bool:
        """Records the tokens of each request that passed before a 429; True if tokens are now found to be limited."""
        if self.tokens_per_unit is not None or not passed_tokens:
            return False
        self._passed_totals.append((len(passed_tokens), sum(passed_tokens)))
        requests, tokens = (
            _coefficient_of_variation([totals[which] for totals in self._passed_totals]) for which in (0, 1)
        )
        if len(self._passed_totals) < 5 or tokens >= 0.7 * requests:  # noqa: PLR2004 - fewer agree by chance
            return False
        self.tokens_per_unit = max(self._mean_tokens, 1.0)
        return True


def _coefficient_of_variation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)) / mean if mean else 0.0
