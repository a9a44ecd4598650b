"""The question for a quota, and every shape of its answer: what cannot be a limit limits nothing, and is shown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from dashscope_embeddings import BadReply, Quota, QuotaLimit, ServiceError
from dashscope_embeddings._core.protocol import Reply
from dashscope_embeddings._core.quota_request import fetch_quota
from dashscope_embeddings._core.rate_limiter import Limiter
from dashscope_embeddings._core.settings import Settings
from dashscope_embeddings._core.steps import Send

if TYPE_CHECKING:
    from dashscope_embeddings._core.client_options import ClientOptions
    from dashscope_embeddings._core.steps import StepResult

KEY = "sk-made-up-and-secret-key"
V4 = "text-embedding-v4"
LIMIT = {
    "request_limit": 1_800,
    "request_limit_period": 60,
    "usage_limit": 1_200_000,
    "usage_limit_field": "total_tokens",
    "usage_limit_period": 60,
    "async_user_queue_limit": 5,
    "async_user_concurrency_limit": 5,
}
ROW = {"model": V4, "workspace_id": "llm-one", "model_limit": LIMIT, "workspace_limit": None}


def settings(**options: Any) -> Settings:
    given: ClientOptions = {"api_key": KEY, **options}  # type: ignore[typeddict-item]
    return Settings.from_options(V4, given)


def listing(*rows: Any) -> bytes:
    return json.dumps({"request_id": "made-up", "output": {"total": len(rows), "quotas": rows}}).encode()


def limits(**changed: Any) -> bytes:
    return listing({**ROW, "model_limit": {**LIMIT, **changed}})


def answered(answer: bytes | StepResult, limiter: Limiter | None = None, **options: Any) -> Quota:
    flow = fetch_quota(settings(**options), limiter or Limiter(lambda: 0.0), max_retries=0)
    assert isinstance(next(flow), Send)
    try:
        flow.send(Reply(200, {}, answer) if isinstance(answer, bytes) else answer)
    except StopIteration as done:
        found: Quota = done.value
        return found
    raise AssertionError("another step")


def per_second(limiter: Limiter) -> float:
    return limiter._reported_quota.requests_per_second


# --- good answers ------------------------------------------------------------------------------------------


def test_the_documented_answer_is_read() -> None:
    limiter = Limiter(lambda: 0.0)
    quota = answered(listing(ROW), limiter)
    assert quota == Quota(
        V4,
        (QuotaLimit("account", "requests", 1_800, 60), QuotaLimit("account", "tokens", 1_200_000, 60)),
        "llm-one",
        "https://dashscope.aliyuncs.com/api/v1/quotas",
        (),
        "made-up",
    )
    assert (quota.requests_per_minute, quota.tokens_per_minute) == (1_800, 1_200_000)
    assert per_second(limiter) == 30


@pytest.mark.parametrize(("account", "workspace", "whose"), [(60, 600, "account"), (600, 60, "workspace")])
def test_the_tighter_of_account_and_workspace_holds(account: int, workspace: int, whose: str) -> None:
    row = {**ROW, "model_limit": {**LIMIT, "request_limit": account}}
    row["workspace_limit"] = {**LIMIT, "request_limit": workspace, "usage_limit": None}
    limiter = Limiter(lambda: 0.0)
    quota = answered(listing(row), limiter)
    assert quota.requests is not None
    assert (quota.requests.scope, quota.requests_per_minute) == (whose, 60)
    assert quota.tokens_per_minute == 1_200_000
    assert per_second(limiter) == 1


def test_other_models_in_the_list_do_not_count() -> None:
    other = {**ROW, "model": f"{V4}-next", "model_limit": {**LIMIT, "request_limit": 1}}
    assert answered(listing(other, ROW, "no row", None)).requests_per_minute == 1_800


def test_of_several_workspaces_the_clients_own_counts_and_else_the_account_alone() -> None:
    def row(workspace: str, limit: int) -> dict[str, Any]:
        return {**ROW, "workspace_id": workspace, "workspace_limit": {**LIMIT, "request_limit": limit}}

    body = listing(row("llm-one", 60), row("llm-two", 120))
    shared = answered(body)
    assert (shared.workspace_id, shared.requests_per_minute) == (None, 1_800)
    own = answered(body, region="cn-beijing", workspace="llm-two")
    assert (own.workspace_id, own.requests_per_minute) == ("llm-two", 120)
    in_header = answered(body, base_url="https://gateway.example", workspace="llm-one")
    assert (in_header.workspace_id, in_header.requests_per_minute) == ("llm-one", 60)


# --- answers without sense ---------------------------------------------------------------------------------

ABSURD = [0, -5, "600", "", True, [600], {"a": 1}, float("nan"), float("inf"), 10**16, 10**4_000, 1e-9]


@pytest.mark.parametrize("value", ABSURD, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("name", ["request_limit", "request_limit_period"])
def test_an_absurd_figure_limits_nothing_and_is_shown(name: str, value: Any) -> None:
    if name == "request_limit_period" and value == 1e-9:
        return  # a very high quota
    limiter = Limiter(lambda: 0.0)
    quota = answered(limits(**{name: value}), limiter)
    assert quota.requests is None
    assert quota.tokens_per_minute == 1_200_000
    (words,) = quota.ignored
    assert words.startswith("model_limit.request_limit=")
    assert str(value)[:20] in words or repr(value)[:20] in words
    assert len(words) <= 200
    assert per_second(limiter) == float("inf")


@pytest.mark.parametrize(
    ("changed", "requests", "tokens"),
    [
        ({"request_limit": 10, "request_limit_period": 1}, 600, 1_200_000),
        ({"request_limit": 60, "request_limit_period": 6}, 600, 1_200_000),
        ({"request_limit": 36_000, "request_limit_period": 3_600}, 600, 1_200_000),
        ({"request_limit": None, "usage_limit": None}, None, None),
        *(({"usage_limit": limit}, 1_800, None) for limit in (-1, 0)),
        *(({"usage_limit_period": period}, 1_800, None) for period in (None, 0)),
        *(({"usage_limit_field": unit}, 1_800, None) for unit in ("images", ["images"])),
    ],
    ids=repr,
)
def test_limits_of_any_period_count_and_absurd_ones_are_shown(
    changed: dict[str, Any], requests: float | None, tokens: float | None
) -> None:
    quota = answered(limits(**changed))
    assert (quota.requests_per_minute, quota.tokens_per_minute) == (requests, tokens)
    assert len(quota.ignored) == ((requests, tokens) == (1_800, None))


@pytest.mark.parametrize("value", ["none", 7, [LIMIT], True])
def test_a_limit_that_is_no_object_is_shown(value: Any) -> None:
    quota = answered(listing({**ROW, "workspace_limit": value}))
    assert quota.ignored == (f"workspace_limit={value!r}"[:200],)
    assert quota.requests_per_minute == 1_800


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"<html>log in</html>",
        b'{"output": null}',
        b'{"output": [1]}',
        b'{"output": {"quotas": null}}',
        b'{"output": {"quotas": {"model": 1}}}',
        b'{"output": {"quotas": [null, 1, {}]}}',
        b'{"output"' * 1_000,
        b"[" * 100_000,
        listing(),
        listing({**ROW, "model": "qwen3-max"}),
        b"\xff\xfe{",
    ],
    ids=lambda body: body[:40],
)
def test_an_answer_without_the_model_is_a_bad_reply_that_quotes_it(body: bytes) -> None:
    limiter = Limiter(lambda: 0.0)
    with pytest.raises(BadReply, match=f"lists no quota of {V4}; it answered .*set requests_per_minute") as caught:
        answered(body, limiter)
    assert (body[:20].decode("utf-8", "replace") or "nothing") in str(caught.value)
    assert per_second(limiter) == float("inf")


def test_an_answer_that_repeats_the_key_shows_it_nowhere() -> None:
    row = {**ROW, "workspace_id": f"ws-{KEY}", "workspace_limit": f"Bearer {KEY}"}
    quota = answered(listing({**row, "model_limit": {**LIMIT, "request_limit": KEY}}))
    assert KEY not in repr(quota)
    assert len(quota.ignored) == 2
    with pytest.raises(BadReply) as caught:
        answered(json.dumps({"you sent": KEY}).encode())
    assert KEY not in str(caught.value)


# --- refusals ----------------------------------------------------------------------------------------------


def test_a_host_that_does_not_know_the_path_is_named_with_what_to_do() -> None:
    for body in (b"", b'{"code":"NotFound","message":"no such path"}'):
        with pytest.raises(
            ServiceError, match=r"dashscope\.aliyuncs\.com tells no quota .* set requests_per_minute"
        ) as caught:
            answered(Reply(404, {}, body))
        assert caught.value.status == 404
