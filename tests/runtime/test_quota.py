"""The question for the quota on the wire: who asks, when, how often, and that no job waits for it or fails with it."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
import json
from typing import TYPE_CHECKING, Any, TypeAlias

import httpx
import pytest
from client_helpers import KEY, becomes_true, client_for

from dashscope_embeddings import AuthenticationError, BadReply, DashScopeError, EmbeddingClient, Quota, ServiceError
from dashscope_embeddings._core import quota_request
from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent
from dashscope_embeddings.corpus import embed_corpus
from dashscope_embeddings.emulator import Emulator, faults, in_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dashscope_embeddings.emulator.http import Server

PATH = "/api/v1/quotas"
LONG, SHORT = 110, 99
"""Texts, and requests, of a long job and of a short one; the 100th makes a job a long one."""
ROUTE = "quotas"
SETTINGS: dict[str, Any] = {"api_key": KEY, "dimensions": 64, "batch_size": 1}
"""These tests are about requests: small vectors, a text in each."""

Job: TypeAlias = "Callable[[EmbeddingClient, list[str]], object]"


def texts(count: int) -> list[str]:
    return [f"text {i}" for i in range(count)]


def asked(emulator: Emulator) -> int:
    return sum(request.path == PATH for request in emulator.asked)


def until_asked(emulator: Emulator) -> None:
    """The thread that asks may be later than the job."""
    assert becomes_true(lambda: asked(emulator) > 0)


def told_rate(client: EmbeddingClient) -> float:
    return client._request_context("document", "dense").limiter._reported_quota.requests_per_second


async def _astream(client: EmbeddingClient, inputs: list[str]) -> None:
    async for _ in client.astream(inputs):
        pass


@pytest.fixture(params=["embed", "astream"])
def job(request: pytest.FixtureRequest) -> Job:
    """Sync, of a known length; async, of an unknown one. The other two combinations, and a corpus, have a test."""
    return JOBS[request.param]


JOBS: dict[str, Job] = {
    "embed": lambda client, inputs: client.embed(inputs),
    "aembed": lambda client, inputs: asyncio.run(client.aembed(inputs)),
    "stream": lambda client, inputs: list(client.stream(inputs)),
    "astream": lambda client, inputs: asyncio.run(_astream(client, inputs)),
}


@pytest.fixture(params=["sync", "async"])
def fetch(request: pytest.FixtureRequest) -> Callable[[EmbeddingClient], Quota]:
    if request.param == "sync":
        return EmbeddingClient.fetch_quota
    return lambda client: asyncio.run(client.afetch_quota())


@pytest.fixture
def client(served: Server) -> Iterator[EmbeddingClient]:
    """Of a real socket."""
    with EmbeddingClient(base_url=served.url, **SETTINGS) as client:
        yield client


# --- fetch_quota -------------------------------------------------------------------------------------------


def test_what_goes_over_the_wire(fetch: Callable[[EmbeddingClient], Quota]) -> None:
    emulator = Emulator(api_key=KEY, requests_per_minute=600, tokens_per_minute=90_000, tells_quota=True)
    with emulator.serve() as served:
        client = EmbeddingClient(api_key=KEY, protocol="openai", base_url=served.url, workspace="llm-mine")
        quota = fetch(client)
        assert told_rate(client) == 10
    (request,) = emulator.asked
    assert (request.method, request.path) == ("GET", PATH)
    assert request.query == "model=text-embedding-v4&page_no=1&page_size=100"
    assert request.headers["x-dashscope-workspace"] == "llm-mine"
    assert emulator.keys_seen == {hashlib.sha256(KEY.encode()).hexdigest()}
    assert (quota.requests_per_minute, quota.tokens_per_minute) == (600, 90_000)
    assert (quota.workspace_id, quota.source) == ("llm-mine", f"{served.url}{PATH}")
    assert client.usage.requests == 0


def test_a_users_own_clients_carry_the_question(fetch: Callable[[EmbeddingClient], Quota]) -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(404)

    transport = httpx.MockTransport(answer)
    own = {
        "http_client": httpx.Client(transport=transport),
        "http_async_client": httpx.AsyncClient(transport=transport),
    }
    client = EmbeddingClient(api_key=KEY, default_headers={"x-team": "search"}, **own)  # type: ignore[arg-type]
    with pytest.raises(ServiceError, match=r"dashscope\.aliyuncs\.com tells no quota"):
        fetch(client)
    (request,) = seen
    assert (request.method, request.url.host, request.url.path) == ("GET", "dashscope.aliyuncs.com", PATH)
    assert (request.headers["authorization"], request.headers["x-team"]) == (f"Bearer {KEY}", "search")
    assert request.content == b""


REFUSED: dict[str, tuple[dict[str, Any], type[DashScopeError], str]] = {
    "a refused key": ({"api_key": "sk-another"}, AuthenticationError, ""),
    "a model that is not listed": ({"models": []}, BadReply, "lists no quota of text-embedding-v4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_final(case: str, fetch: Callable[[EmbeddingClient], Quota]) -> None:
    settings, error, words = REFUSED[case]
    emulator = Emulator(**settings, tells_quota=True)
    with pytest.raises(error, match=words or "."):
        fetch(client_for(emulator))
    if case == "a refused key":
        assert asked(emulator) == 1


@pytest.mark.parametrize(
    "fault", [faults.Status(500, route=ROUTE), faults.Throttle(route=ROUTE), faults.Drop(route=ROUTE)]
)
def test_a_passing_fault_is_survived(fetch: Callable[[EmbeddingClient], Quota], fault: faults.Fault) -> None:
    emulator = Emulator(requests_per_minute=600, tells_quota=True, faults=[fault])
    assert fetch(client_for(emulator)).requests_per_minute == 600
    assert asked(emulator) == 2


def test_the_emulator_in_this_process_answers_if_it_is_told_to() -> None:
    client = EmbeddingClient(base_url="emulator")
    with pytest.raises(ServiceError):
        client.fetch_quota()
    in_process().tells_quota = True
    assert client.fetch_quota().limits == ()


def test_a_told_quota_outlives_its_client_and_is_its_accounts_alone() -> None:
    emulator = Emulator(requests_per_minute=600, tells_quota=True)
    client_for(emulator).fetch_quota()
    gc.collect()
    assert told_rate(client_for(emulator)) == 10
    assert told_rate(client_for(emulator, api_key="sk-another-account")) == float("inf")


# --- beside a job ------------------------------------------------------------------------------------------


def test_a_long_job_asks_once_and_a_second_one_not_again(job: Job, emulator: Emulator, client: EmbeddingClient) -> None:
    emulator.tells_quota = True
    job(client, texts(LONG))
    until_asked(emulator)
    job(client, [f"more {text}" for text in texts(LONG)])
    assert asked(emulator) == 1
    assert emulator.requests == emulator.billed_requests == len(emulator.asked) - 1 == 2 * LONG


@pytest.mark.parametrize("name", JOBS)
def test_what_a_job_is_told_bounds_the_limiter(name: str) -> None:
    emulator = Emulator(requests_per_minute=6_000_000, window=60.0, tells_quota=True)
    with emulator.serve() as served:
        client = EmbeddingClient(base_url=served.url, **SETTINGS)
        JOBS[name](client, texts(SHORT + 1))
        until_asked(emulator)
        assert becomes_true(lambda: told_rate(client) == 100_000)
    assert asked(emulator) == 1


def test_a_corpus_asks_too(emulator: Emulator, client: EmbeddingClient, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join(texts(LONG)), "utf-8")
    embed_corpus(tmp_path / "in.txt", tmp_path / "out.npy", client=client)
    until_asked(emulator)


def test_a_stream_asks_when_it_turns_out_to_be_long(emulator: Emulator, client: EmbeddingClient) -> None:
    stream = client.stream(f"text {i}" for i in itertools.count())
    for _ in itertools.islice(stream, 20):  # and it reads ahead
        pass
    assert asked(emulator) == 0
    for _ in itertools.islice(stream, SHORT):
        pass
    until_asked(emulator)
    stream.close()  # type: ignore[attr-defined]


def by_hand(client: EmbeddingClient) -> None:
    with pytest.raises(ServiceError):
        client.fetch_quota()


class _Limiter:
    def acquire(self, *, blocking: bool = True) -> bool:
        return blocking

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return blocking


NOT_ASKED: dict[str, tuple[dict[str, Any], list[str], int]] = {
    # settings, texts, requests
    "a short job": ({}, texts(SHORT), SHORT),
    "one text many times": ({}, ["again"] * 20_000, 1),
    "requests_per_minute": ({"requests_per_minute": 6e6}, texts(LONG), LONG),
    "tokens_per_minute": ({"tokens_per_minute": 6e9}, texts(LONG), LONG),
    "a rate limiter of the user's": ({"rate_limiter": _Limiter()}, texts(LONG), LONG),
}


@pytest.mark.parametrize("case", NOT_ASKED)
def test_who_has_a_quota_or_needs_none_does_not_ask(case: str, job: Job, emulator: Emulator, served: Server) -> None:
    settings, inputs, requests = NOT_ASKED[case]
    client = EmbeddingClient(base_url=served.url, **SETTINGS, **settings)
    job(client, inputs)
    assert asked(emulator) == 0
    assert emulator.requests in range(requests, requests + 8)
    if not settings:  # the next long job may ask
        assert client._request_context("document", "dense").limiter.claim_quota_request()


def test_neither_a_constructor_nor_a_query_asks(emulator: Emulator, client: EmbeddingClient) -> None:
    for i in range(LONG):
        client.embed(f"query {i}", text_type="query")
    asyncio.run(client.aembed("query", text_type="query"))
    assert asked(emulator) == 0


def test_the_emulator_in_this_process_is_not_asked_by_a_job(job: Job) -> None:
    in_process().tells_quota = True
    job(EmbeddingClient(base_url="emulator", **SETTINGS), texts(LONG))
    assert asked(in_process()) == 0


def test_who_has_asked_by_hand_is_not_asked_again(job: Job, emulator: Emulator, client: EmbeddingClient) -> None:
    by_hand(client)
    job(client, texts(LONG))
    assert asked(emulator) == 1


@pytest.mark.parametrize(
    "fault",
    [
        None,  # the path is not known
        faults.Throttle(route=ROUTE, retry_after=3_600, times=9),
        faults.Status(403, route=ROUTE, times=9),
        faults.Status(503, "html", route=ROUTE, times=9),
        faults.Garbage(route=ROUTE, times=9),
        faults.Truncate(route=ROUTE, times=9),
        faults.Drop(route=ROUTE, times=9),
    ],
    ids=repr,
)
def test_whatever_the_answer_the_job_is_the_same(
    job: Job, emulator: Emulator, client: EmbeddingClient, fault: faults.Fault | None
) -> None:
    if fault is not None:
        emulator.tells_quota, emulator.faults = True, [fault]
    job(client, texts(LONG))
    until_asked(emulator)
    assert asked(emulator) == 1
    assert emulator.requests == emulator.billed_texts == LONG
    limiter = client._request_context("document", "dense").limiter
    assert limiter.try_acquire(limiter.create_permit(1)) == 0.0
    assert told_rate(client) == float("inf")


def test_a_job_does_not_wait_for_the_answer(
    job: Job, emulator: Emulator, served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota_request, "_DEADLINE_SECONDS", 3_600.0)  # a job that waited would hang
    emulator.faults = [faults.Stall(route=ROUTE)]
    job(EmbeddingClient(base_url=served.url, max_concurrency=1, timeout=3_600, **SETTINGS), texts(LONG))
    until_asked(emulator)
    assert emulator.billed_texts == LONG


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_question_without_an_answer_logs_the_deadline_that_ended_it(
    is_async: bool,  # noqa: FBT001 - a case
    emulator: Emulator,
    client: EmbeddingClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(quota_request, "_DEADLINE_SECONDS", 0.2)
    caplog.set_level("DEBUG", "dashscope_embeddings")
    emulator.faults = [faults.Stall(route=ROUTE)]
    limiter = client._request_context("document", "dense").limiter
    question = quota_request.ask_for_quota(client.settings, limiter)
    if is_async:
        asyncio.run(client._async_driver.run_steps(question, SignalSafeEvent()))
    else:
        client.run_steps(question, SignalSafeEvent())
    [said] = [record.getMessage() for record in caplog.records if record.name == "dashscope_embeddings"]
    assert said.startswith("no quota is reported: ")
    assert said.endswith(": no whole reply within 0.2 s")
    assert asked(emulator) == 1


def test_faults_without_a_route_and_counts_do_not_see_the_question(emulator: Emulator, client: EmbeddingClient) -> None:
    emulator.faults = [faults.Status(500, every=1, times=3)]
    by_hand(client)
    assert (emulator.requests, len(emulator.asked)) == (0, 1)


# --- the emulator's list -----------------------------------------------------------------------------------


def test_the_emulator_lists_its_quotas() -> None:
    emulator = Emulator(requests_per_second=10, tokens_per_minute=1_000.5, tells_quota=True)
    http = httpx.Client(
        transport=emulator.transport(), base_url="http://emulator", headers={"authorization": "Bearer k"}
    )
    whole = http.get(PATH).json()["output"]
    assert (whole["total"], whole["page_no"], whole["page_size"]) == (len(whole["quotas"]), 1, 100)
    assert whole["quotas"][0]["workspace_limit"] is None
    assert whole["quotas"][0]["model_limit"] == {
        "request_limit": 600,
        "request_limit_period": 60,
        "usage_limit": 1_000.5,
        "usage_limit_field": "total_tokens",
        "usage_limit_period": 60,
        "async_user_queue_limit": None,
        "async_user_concurrency_limit": None,
    }
    [named] = http.get(PATH, params={"model": "text-embedding-v4"}).json()["output"]["quotas"]
    assert named in whole["quotas"]
    assert named["model"] == "text-embedding-v4"
    assert http.get(PATH, params={"model": "v4"}).json()["output"]["quotas"] == []
    assert http.get(PATH, headers={"authorization": ""}).status_code == 401
    assert http.post(PATH, content=json.dumps({})).status_code == 404
