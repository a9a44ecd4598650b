"""One request's state in the rate limiter, of which the limiter, the estimator and the token quota set fields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Permit:
    """One request's state in the limiter, from the first `try_acquire` to its answer."""

    estimated_tokens: int
    """Estimate of the tokens that the request will be billed."""
    high_priority: bool = False
    """True for a query, which precedes waiting documents."""
    sent_at: float | None = None
    is_closed: bool = False
    answered_at: float | None = None
    is_uncounted: bool = False
    """Throttled or cancelled: presumably not counted by the service."""
    circuit_number: int = 0
    """Number of the circuit in which it was sent as a probe; 0: it is no probe."""
    weight: float = 1.0
    """Its share of the rate: 1, or in proportion to its tokens if tokens are limited."""
    charged_tokens: float = 0.0
    """The tokens that the token quota was charged."""
    queue_position: int = 0
    """0: it never had to wait."""
    retry_at: float = 0.0
    """When its caller will ask again."""
