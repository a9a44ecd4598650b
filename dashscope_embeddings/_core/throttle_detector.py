"""Classifies 429s: random ones of a busy service, or those of a limit; and whether it limits requests or tokens."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dashscope_embeddings._core import search_constants as constants

if TYPE_CHECKING:
    from dashscope_embeddings._core.permit import Permit
    from dashscope_embeddings._core.send_log import SendLog


@dataclass(slots=True)
class ThrottleDetector:
    """Distinguishes random 429s from a limit with a CUSUM test (Page's test) over the sends in their order.

    Single 429s at rates that used to pass are random: lowering the rate would not make them fewer. The share of random
    ones is learned, so that a service which refuses one request in five at random is not taken for one with a quota.
    """

    _random_count: float = 0.0
    _reply_count: float = 0.0
    _open_cases: deque[Permit] = field(default_factory=lambda: deque(maxlen=constants.EXAMINED_SENDS))
    """Throttled requests that are random if most requests sent after them pass."""
    _chance_at: float = -math.inf
    """When 429s were last taken for random only because random ones are frequent."""

    @property
    def random_share(self) -> float:
        """Estimated share of random 429s among all replies."""
        measured = 1.3 * self._random_count / max(self._reply_count, 30.0)
        return min(constants.MAX_RANDOM_SHARE, max(constants.MIN_RANDOM_SHARE, measured))

    def find_limit(self, log: SendLog, since: float, now: float, *, within_quota: bool = False) -> Permit | None:
        """The first 429 of a limit among the requests sent after `since`; None: what there is looks random.

        `within_quota`: the rate is within a configured quota, so that 429s are rather random.
        """
        share = constants.MAX_RANDOM_SHARE if within_quota else self.random_share
        for_refused = math.log(constants.LIMIT_SHARE / share)
        for_passed = math.log((1.0 - constants.LIMIT_SHARE) / (1.0 - share))
        known: list[tuple[Permit, bool]] = []
        for permit in log.newest_first():
            if (permit.sent_at or 0.0) <= since or len(known) == constants.EXAMINED_SENDS:
                break
            if (passed := log.has_passed(permit, now)) is not None:
                known.append((permit, passed))
        score, first = 0.0, None
        for permit, passed in reversed(known):
            first = first if score > 0.0 else permit
            score = max(0.0, score + (for_passed if passed else for_refused))
            if score >= constants.THRESHOLD_NATS:
                return first
        return None

    def is_chance(self, log: SendLog, now: float, *, within_quota: bool) -> bool:
        """Whether to take 429s that look like a limit for random ones, at most once a second.

        Where random ones are frequent, some follow each other by chance; if it is a limit, the next ones tell.
        """
        is_likely = within_quota or self.random_share > constants.FREQUENT_RANDOM
        is_likely &= log.patience_seconds < constants.QUICK_SECONDS
        if not is_likely or now < self._chance_at + constants.WINDOW_SECONDS or self.are_most_refused(log, now):
            return False
        self._chance_at = now
        return True

    def are_most_refused(self, log: SendLog, now: float) -> bool:
        """Whether too many of the last requests were refused for all 429s to be random."""
        recent = log.known_since(-math.inf, constants.RECENT_REPLIES, now)
        return sum(not passed for _, passed in recent) > constants.MAX_REFUSED_SHARE * len(recent)

    def expects_429s(self, log: SendLog, since: float, now: float) -> bool:
        """Whether random 429s are frequent, and no more came than usual among the requests sent after `since`."""
        recent = log.known_since(since, constants.RECENT_REPLIES, now)
        refused, share = sum(not passed for _, passed in recent), self.random_share
        return share > constants.FREQUENT_RANDOM and refused <= max(2.0 * share * len(recent), 3.0)

    def observe(self, permit: Permit, log: SendLog, now: float) -> None:
        """Counts a reply; a 429 is counted as random later, if most requests sent after it pass."""
        if not permit.is_rate_excluded:
            return
        self._reply_count += 1.0
        if permit.passed is False:
            self._open_cases.append(permit)
        while self._open_cases:
            fates = [log.has_passed(later, now) for later in log.sent_after(self._open_cases[0], constants.NEXT_SENDS)]
            if len(fates) < constants.NEXT_SENDS or None in fates:
                break
            self._open_cases.popleft()
            self._random_count += sum(fate is True for fate in fates) >= constants.NEXT_PASSED
        if self._reply_count > constants.MEMORY_REPLIES:
            self._reply_count, self._random_count = self._reply_count / 2.0, self._random_count / 2.0


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

    def observe_throttle(self, log: SendLog, sent_at: float, seconds: float) -> bool:
        """Records what had passed in the window before a 429.

        Returns whether tokens are now found to be limited: then all requests have other weights.
        """
        counted = log.counted(sent_at, seconds)
        if self.tokens_per_unit is not None or not counted:
            return False
        self._passed_totals.append((len(counted), sum(permit.estimated_tokens for permit in counted)))
        requests, tokens = (
            _coefficient_of_variation([totals[which] for totals in self._passed_totals]) for which in (0, 1)
        )
        if len(self._passed_totals) < 5 or tokens >= 0.7 * requests:  # noqa: PLR2004 - fewer agree by chance
            return False
        self.tokens_per_unit = max(self._mean_tokens, 1.0)
        for permit in log.newest_first():
            permit.weight = self.weight_of(permit.estimated_tokens)
        return True


def _coefficient_of_variation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)) / mean if mean else 0.0
