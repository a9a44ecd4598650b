"""What the service reports of the quota bounds the limiter from above; the search for the rate goes on below it."""

from __future__ import annotations

import pytest
from client_helpers import FakeClock

from dashscope_embeddings._core.rate_limiter import Limiter, Permit
from dashscope_embeddings.quota import Quota, QuotaLimit


def quota(requests: tuple[float, float] | None = None, tokens: tuple[float, float] | None = None) -> Quota:
    """From (limit, seconds)."""
    limits = [QuotaLimit("account", "requests", *requests)] if requests else []
    limits += [QuotaLimit("account", "tokens", *tokens)] if tokens else []
    return Quota("text-embedding-v4", tuple(limits))


def send(limiter: Limiter, clock: FakeClock, tokens: int = 1) -> Permit:
    permit = limiter.create_permit(tokens)
    while wait := limiter.try_acquire(permit):
        clock.time += wait
    return permit


def seconds_for(limiter: Limiter, clock: FakeClock, requests: int, tokens: int = 1) -> float:
    began = clock.time
    for _ in range(requests):
        limiter.on_success(send(limiter, clock, tokens), tokens)
    return clock.time - began


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.mark.parametrize(
    ("reported", "requests", "seconds"),
    [
        ((600, 60), 600, 0.0),  # not spaced: the service may take them at once
        ((600, 60), 900, 30.0),
        ((10, 1), 30, 2.0),
    ],
)
def test_a_reported_quota_leaves_room_for_the_burst_of_one_period(
    reported: tuple[float, float], requests: int, seconds: float, clock: FakeClock
) -> None:
    limiter = Limiter(clock.now)
    limiter.apply_reported_quota(quota(reported))
    assert seconds_for(limiter, clock, requests) == pytest.approx(seconds)


def test_reported_tokens_are_an_upper_bound_by_what_is_billed(clock: FakeClock) -> None:
    limiter = Limiter(clock.now)
    limiter.apply_reported_quota(quota(tokens=(60_000, 60)))
    assert seconds_for(limiter, clock, 90, tokens=1_000) == pytest.approx(30.0)
    for _ in range(10):  # estimated too low: the bill counts
        limiter.on_success(send(limiter, clock, 100), 1_000)
    began = clock.time
    assert seconds_for(limiter, clock, 1, tokens=1_000) + began - clock.time == pytest.approx(0.0)
    assert seconds_for(limiter, clock, 10, tokens=1_000) == pytest.approx(10.0)


def test_a_request_of_more_tokens_than_the_quota_goes_all_the_same(clock: FakeClock) -> None:
    limiter = Limiter(clock.now)
    limiter.apply_reported_quota(quota(tokens=(600, 60)))
    assert seconds_for(limiter, clock, 1, tokens=1_000) == 0.0
    assert seconds_for(limiter, clock, 1, tokens=1_000) == pytest.approx(100.0)


def test_what_the_service_refuses_does_not_use_it_up(clock: FakeClock) -> None:
    limiter = Limiter(clock.now)
    limiter.apply_reported_quota(quota((100, 60), (100_000, 60)))
    for _ in range(3):
        limiter.on_throttled(send(limiter, clock, 10_000))
    assert limiter._reported_quota.available_at(limiter.create_permit(1)) <= clock.time - 60.0 + 60.0 / 100


def test_the_smaller_of_a_configured_and_a_reported_quota_holds() -> None:
    for configured, reported in ((60, 6_000), (6_000, 60)):
        clock = FakeClock()
        limiter = Limiter(clock.now, requests_per_minute=configured)
        limiter.apply_reported_quota(quota((reported, 60)))
        assert 59.0 < seconds_for(limiter, clock, 120) < 125.0


def test_once_a_limit_was_met_the_search_does_not_probe_above_what_is_reported(clock: FakeClock) -> None:
    limiter = Limiter(clock.now)
    limiter.apply_reported_quota(quota((1_800, 60)))
    limiter._estimator._set_limit(29.0, 2.0, clock.time - 60.0)  # long after the last 429: it would probe far above
    assert seconds_for(limiter, clock, 300) == pytest.approx(299 / 30.0, rel=0.01)


def test_below_the_reported_quota_the_search_decides(clock: FakeClock) -> None:
    limiter = Limiter(clock.now)
    limiter.apply_reported_quota(quota((60_000, 60)))
    limiter._estimator._set_limit(10.0, 2.0, clock.time)
    assert seconds_for(limiter, clock, 21) >= 1.9


def test_a_later_report_replaces_the_earlier_one(clock: FakeClock) -> None:
    limiter = Limiter(clock.now)
    limiter.apply_reported_quota(quota((1, 60)))
    assert seconds_for(limiter, clock, 2) == pytest.approx(60.0)
    limiter.apply_reported_quota(quota())
    assert seconds_for(limiter, clock, 100) == 0.0


def test_it_is_asked_for_once_and_not_where_a_quota_is_configured(clock: FakeClock) -> None:
    limiter = Limiter(clock.now)
    assert [limiter.claim_quota_request() for _ in range(3)] == [True, False, False]
    assert not Limiter(clock.now, tokens_per_minute=1_000).claim_quota_request()
    told = Limiter(clock.now)
    told.apply_reported_quota(quota())
    assert not told.claim_quota_request()


def test_the_tightest_limit_of_account_and_workspace_is_told() -> None:
    told = Quota(
        "m",
        (
            QuotaLimit("account", "requests", 1_800, 60),
            QuotaLimit("workspace", "requests", 10, 1),
            QuotaLimit("account", "tokens", 1_200_000, 60),
            QuotaLimit("workspace", "tokens", 2_000_000, 60),
        ),
    )
    assert told.requests is not None
    assert (told.requests.scope, told.requests.period_seconds) == ("workspace", 1)
    assert (told.requests_per_minute, told.tokens_per_minute) == (600, 1_200_000)
    assert str(told) == "600 requests a minute (workspace) and 1,200,000 tokens a minute (account)"
    assert str(Quota("m")) == "no limit that can be read"
