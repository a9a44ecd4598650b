"""Quotas that the client is told, and quotas of 30/s near by whose 429s are as slow as answers, without handshakes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ideal_times import by_tokens
from listed_shapes import Shape
from service_shapes import BurstLimit, Constant, FixedWindow, Service, SlidingWindow
from simulated_client import Machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from service_shapes import Quota

REQUESTS_PER_SECOND = 30
TOKENS_PER_SECOND = 1_000_000 / 60
"""Tokens a second of a model with a million a minute."""


def _shape(  # noqa: PLR0913 - what differs between the lines of the list
    name: str,
    ideal_seconds: float,
    quota: Callable[[], Quota | None],
    *,
    latency: float = 0.08,
    jitter: float = 0.1,
    stray_share: float = 0.0,
    retry_after: float | None = None,
    **settings: Any,
) -> Shape:
    def service(seed: int) -> Service:
        return Service(
            Constant(latency, jitter),
            quota(),
            seed,
            slow_refusals=True,
            stray_share=stray_share,
            retry_after=retry_after,
        )

    settings.setdefault("ideal", lambda *_: ideal_seconds)
    return Shape(name, service, machine=Machine(one_way=0.0005, handshake=0.0), **settings)


def _tokens(name: str, *, coarse: bool = False, lenient: bool = False, **settings: Any) -> Shape:
    """A million tokens a minute; requests of 2 % of a second's tokens on average, or 6 %."""
    requests, largest = (600, 2000) if coarse else (2000, 600)
    return _shape(
        name,
        0.0,
        lambda: SlidingWindow(TOKENS_PER_SECOND, counts_tokens=True, lenient=lenient),
        ideal=by_tokens(TOKENS_PER_SECOND, 0.0),
        requests=requests,
        tokens=(20, largest),
        **settings,
    )


_second = partial(SlidingWindow, REQUESTS_PER_SECOND)
_fixed = partial(FixedWindow, REQUESTS_PER_SECOND)
_minute = partial(SlidingWindow, 1800, 60.0)
_half = partial(SlidingWindow, REQUESTS_PER_SECOND, limit_change=(5.0, REQUESTS_PER_SECOND / 2))
_twice = partial(SlidingWindow, REQUESTS_PER_SECOND / 2, limit_change=(5.0, REQUESTS_PER_SECOND))


def _no_quota() -> None:
    return None


SCENARIOS = (
    _shape("known 1 s sliding, 10 ms", 10.0, _second, latency=0.01, rpm=1800),
    _shape("known 1 s sliding, 80 ms", 10.0, _second, rpm=1800),
    _shape("known, 30 ms of jitter", 10.0, _second, jitter=0.375, rpm=1800),
    _shape("1 s sliding, 10 ms", 10.0, _second, latency=0.01),
    _shape("1 s sliding, 80 ms", 10.0, _second),
    _shape("1 s sliding, 80 ms, long", 100.0, _second, requests=3000),
    _shape("1 s sliding, Retry-After 1", 10.0, _second, retry_after=1.0),
    _shape("1 s fixed, 10 ms", 10.0, _fixed, latency=0.01),
    _shape("1 s fixed, 80 ms", 10.0, _fixed),
    _shape("1 a second", 60.0, partial(SlidingWindow, 1), requests=60),
    _shape("6 s window of 60", 30.0, partial(SlidingWindow, 60, 6.0), latency=0.01),
    _shape("minute of 1,800", 120.0, _minute, requests=3600, latency=0.01),
    _shape("minute, Retry-After 20", 120.0, _minute, requests=3600, retry_after=20.0),
    _shape("burst-sensitive", 10.0, partial(BurstLimit, REQUESTS_PER_SECOND), latency=0.01),
    _shape("half the limit at 5 s", 15.0, _half, latency=0.01),
    _shape("twice the limit at 5 s", 30.0, _twice, latency=0.01, requests=825),
    _shape("none, 80 ms, 100", 7 * 0.08, _no_quota, requests=100),
    _shape("none, 80 ms, 1,000", 63 * 0.084, _no_quota, requests=1000),
    _shape("two processes", 10.0, _second, process_starts=(0.0, 0.0), latency=0.01),
    _shape("second 3 s late", 10.0, _second, process_starts=(0.0, 3.0), latency=0.01),
    _shape("erratic 3 %, no quota", 65 * 0.084, _no_quota, stray_share=0.03, requests=1000),
    _shape("erratic 5 %, no quota", 66 * 0.084, _no_quota, stray_share=0.05, requests=1000),
    _shape("erratic 3 %, 10 ms", 65 * 0.0105, _no_quota, stray_share=0.03, requests=1000, latency=0.01),
    _shape("erratic 3 %, 1 s sliding", 1000 / 30, _second, stray_share=0.03, requests=1000),
    _shape("erratic 3 %, known", 1000 / 30, _second, stray_share=0.03, requests=1000, rpm=1800),
    _tokens("tokens known", tpm=1e6),
    _tokens("tokens known, estimate / 2", tpm=1e6, estimate_factor=0.5),
    _tokens("tokens known, estimate x 2", tpm=1e6, estimate_factor=2.0),
    _tokens("tokens known, lenient", tpm=1e6, lenient=True),
    _tokens("tokens known, coarse", tpm=1e6, coarse=True),
    _tokens("tokens known, coarse, lenient", tpm=1e6, coarse=True, lenient=True),
    _tokens("tokens unknown"),
    _tokens("tokens unknown, lenient", lenient=True),
    _tokens("tokens unknown, coarse", coarse=True),
    _tokens("tokens unknown, coarse, lenient", coarse=True, lenient=True),
)
