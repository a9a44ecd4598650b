"""The quota of an account or a workspace, as the service reports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class QuotaLimit:
    """One limit: a number of requests, or of tokens, in a period."""

    scope: Literal["account", "workspace"]
    resource: Literal["requests", "tokens"]
    limit: float
    """Requests or tokens in each period, as the service states them."""
    period_seconds: float
    """Length of the period in seconds: 60 for a limit per minute, 1 for one per second."""

    @property
    def per_minute(self) -> float:
        """The same limit as requests or tokens per minute."""
        return self.limit * 60.0 / self.period_seconds


@dataclass(frozen=True, slots=True)
class Quota:
    """What the service says about the quota of one model: only the limits, not how much of them is used.

    The limits are those of the whole account, or of one workspace within it. Other programs of the account share them.
    """

    model: str
    limits: tuple[QuotaLimit, ...] = ()
    """All limits in the reply that can be read, of the account and of the workspace."""
    workspace_id: str | None = None
    """The workspace that the key belongs to, according to the reply."""
    source: str = ""
    """The address that the reply came from."""
    ignored: tuple[str, ...] = ()
    """Values in the reply that cannot be limits, as `name=value`; they limit nothing."""
    request_id: str | None = None

    @property
    def requests(self) -> QuotaLimit | None:
        """The tightest limit of requests; its `scope` says whose it is. None: the service states none."""
        return self._tightest("requests")

    @property
    def tokens(self) -> QuotaLimit | None:
        """The tightest limit of tokens; None: the service states none."""
        return self._tightest("tokens")

    @property
    def requests_per_minute(self) -> float | None:
        """Requests per minute, by the tightest limit; None: the service states none."""
        return None if self.requests is None else self.requests.per_minute

    @property
    def tokens_per_minute(self) -> float | None:
        """Tokens per minute, by the tightest limit; None: the service states none."""
        return None if self.tokens is None else self.tokens.per_minute

    def _tightest(self, resource: str) -> QuotaLimit | None:
        limits = (limit for limit in self.limits if limit.resource == resource)
        return min(limits, key=lambda limit: limit.per_minute, default=None)

    def __str__(self) -> str:
        limits = [
            f"{limit.per_minute:,.15g} {limit.resource} a minute ({limit.scope})"
            for limit in (self.requests, self.tokens)
            if limit is not None
        ]
        return " and ".join(limits) or "no limit that can be read"
