"""Quotas that the client is told, and quotas of 30/s near by whose 429s are as slow as answers, without handshakes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ideal_times import by_tokens
from listed_shapes import Bars, Shape, served
from service_shapes import BurstLimit, Constant, FixedWindow, SlidingWindow
from simulated_client import Machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from service_shapes import Quota

REQUESTS_PER_SECOND = 30
TOKENS_PER_SECOND = 1_000_000 / 60
"""Tokens a second of a model with a million a minute."""


def _shape(  # noqa: PLR0913 - what differs between the lines of the list
    name: str,
    quota: Callable[[], Quota | None],
    ideal_seconds: float,
    bars: tuple[float, float],
    *,
    latency: float = 0.08,
    jitter: float = 0.1,
    stray_share: float = 0.0,
    retry_after: float | None = None,
    **settings: Any,
) -> Shape:
    """`bars`: the most time, as a multiple of the ideal, and the most 429s, as a share."""
    service = served(
        lambda: Constant(latency, jitter),
        lambda _: quota(),
        slow_refusals=True,
        stray_share=stray_share,
        retry_after=retry_after,
    )
    settings.setdefault("ideal", lambda *_: ideal_seconds)
    return Shape(name, service, bars=Bars(*bars), machine=Machine(one_way=0.0005, handshake=0.0), **settings)


def _tokens(
    name: str, time: float, throttled: float, *, coarse: bool = False, lenient: bool = False, **settings: Any
) -> Shape:
    """A million tokens a minute; requests of 2 % of a second's tokens on average, or 6 %."""
    requests, largest = (600, 2000) if coarse else (2000, 600)
    quota = partial(SlidingWindow, TOKENS_PER_SECOND, counts_tokens=True, lenient=lenient)
    ideal = by_tokens(TOKENS_PER_SECOND, 0.0)
    sizes: dict[str, Any] = {"requests": requests, "tokens": (20, largest)}
    return _shape(f"tokens {name}", quota, 0.0, (time, throttled), ideal=ideal, **sizes, **settings)


_second = partial(SlidingWindow, REQUESTS_PER_SECOND)
_fixed = partial(FixedWindow, REQUESTS_PER_SECOND)
_minute = partial(SlidingWindow, 1800, 60.0)
_half = partial(SlidingWindow, REQUESTS_PER_SECOND, limit_change=(5.0, REQUESTS_PER_SECOND / 2))
_twice = partial(SlidingWindow, REQUESTS_PER_SECOND / 2, limit_change=(5.0, REQUESTS_PER_SECOND))


def _no_quota() -> None:
    return None


SCENARIOS = (
    _shape("known 1 s sliding, 10 ms", _second, 10.0, (1.05, 0.005), latency=0.01, rpm=1800),
    _shape("known 1 s sliding, 80 ms", _second, 10.0, (1.05, 0.005), rpm=1800),
    _shape("known, 30 ms of jitter", _second, 10.0, (1.05, 0.005), jitter=0.375, rpm=1800),
    _shape("1 s sliding, 10 ms", _second, 10.0, (1.05, 0.03), latency=0.01),
    _shape("1 s sliding, 80 ms", _second, 10.0, (1.06, 0.07)),
    _shape("1 s sliding, 80 ms, long", _second, 100.0, (1.05, 0.012), requests=3000),
    _shape("1 s sliding, Retry-After 1", _second, 10.0, (1.15, 0.055), retry_after=1.0),
    _shape("1 s fixed, 10 ms", _fixed, 10.0, (1.05, 0.04), latency=0.01),
    _shape("1 s fixed, 80 ms", _fixed, 10.0, (1.06, 0.075)),
    _shape("1 a second", partial(SlidingWindow, 1), 60.0, (1.20, 0.30), requests=60),
    _shape("6 s window of 60", partial(SlidingWindow, 60, 6.0), 30.0, (0.90, 0.06), latency=0.01),
    _shape("minute of 1,800", _minute, 120.0, (0.70, 0.04), requests=3600, latency=0.01),
    _shape("minute, Retry-After 20", _minute, 120.0, (0.70, 0.04), requests=3600, retry_after=20.0),
    _shape("burst-sensitive", partial(BurstLimit, REQUESTS_PER_SECOND), 10.0, (1.8, 0.03), latency=0.01),
    _shape("half the limit at 5 s", _half, 15.0, (1.15, 0.055), latency=0.01),
    _shape("twice the limit at 5 s", _twice, 30.0, (1.10, 0.02), latency=0.01, requests=825),
    _shape("none, 80 ms, 100", _no_quota, 7 * 0.08, (0.75 / 0.56, 0.0), requests=100),
    _shape("none, 80 ms, 1,000", _no_quota, 63 * 0.084, (0.35, 0.0), requests=1000),
    _shape("two processes", _second, 10.0, (1.06, 0.055), process_starts=(0.0, 0.0), latency=0.01),
    _shape("second 3 s late", _second, 10.0, (1.20, 0.125), process_starts=(0.0, 3.0), latency=0.01),
    _shape("erratic 3 %, no quota", _no_quota, 65 * 0.084, (0.4, 0.04), stray_share=0.03, requests=1000),
    _shape("erratic 5 %, no quota", _no_quota, 66 * 0.084, (0.4, 0.07), stray_share=0.05, requests=1000),
    _shape("erratic 3 %, 10 ms", _no_quota, 65 * 0.0105, (3.3, 0.04), stray_share=0.03, requests=1000, latency=0.01),
    _shape("erratic 3 %, 1 s sliding", _second, 1000 / 30, (1.60, 0.09), stray_share=0.03, requests=1000),
    _shape("erratic 3 %, known", _second, 1000 / 30, (1.10, 0.05), stray_share=0.03, requests=1000, rpm=1800),
    _shape("erratic 20 %, 100/s known", _no_quota, 3.0 / 0.8, (1.4, 0.25), stray_share=0.2, rpm=6000),
    _tokens("known", 1 / 0.95, 0.005, tpm=1e6),
    _tokens("known, estimate / 2", 1 / 0.95, 0.01, tpm=1e6, estimate_factor=0.5),
    _tokens("known, estimate x 2", 1 / 0.95, 0.01, tpm=1e6, estimate_factor=2.0),
    _tokens("known, lenient", 1 / 0.95, 0.005, tpm=1e6, lenient=True),
    _tokens("known, coarse", 1.13, 0.01, tpm=1e6, coarse=True),
    _tokens("known, coarse, lenient", 1.10, 0.01, tpm=1e6, coarse=True, lenient=True),
    _tokens("unknown", 1.20, 0.03),
    _tokens("unknown, lenient", 1.20, 0.03, lenient=True),
    _tokens("unknown, coarse", 1.32, 0.065, coarse=True),
    _tokens("unknown, coarse, lenient", 1.27, 0.065, coarse=True, lenient=True),
)
"""Each run has to meet the bars, not the median alone."""
