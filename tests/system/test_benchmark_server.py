"""The server of the benchmarks: it behaves as its terms say, and counts what it bills."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from dashscope_embeddings import EmbeddingClient

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER = Path(__file__).parents[1] / "benchmarks" / "server.py"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    program = [sys.executable, str(SERVER), "--until-eof"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 - our own program
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.kill()


def begin(url: str, **terms: Any) -> None:
    httpx.post(f"{url}/control", json=terms).raise_for_status()


def seen(url: str) -> dict[str, int]:
    counters: dict[str, int] = httpx.get(f"{url}/control").json()
    return counters


def ask(url: str, texts: int = 1) -> httpx.Response:
    path = "/api/v1/services/embeddings/text-embedding/text-embedding"
    return httpx.post(url + path, json={"model": "text-embedding-v4", "input": {"texts": ["a"] * texts}})


def test_it_behaves_as_its_terms_say(url: str) -> None:
    begin(url, requests_per_second=2.0)
    assert httpx.get(f"{url}/api/v1/quotas?model=text-embedding-v4").status_code == 404
    replies = [ask(url) for _ in range(4)]
    assert [reply.status_code for reply in replies] == [200, 200, 429, 429]
    assert seen(url)["throttled"] == 2
    begin(url, tokens_per_minute=60)
    first, second = ask(url), ask(url)
    assert first.status_code == 200
    assert (second.status_code, second.json()["code"]) == (429, "Throttling.AllocationQuota")
    begin(url, reversed_every=2)
    rows = [[row["text_index"] for row in ask(url, texts=3).json()["output"]["embeddings"]] for _ in range(4)]
    assert rows == [[0, 1, 2], [2, 1, 0]] * 2


def test_a_shape_of_the_simulation_refuses_and_hints_as_it_says(url: str) -> None:
    begin(url, shape="Retry-After 1, 30/s, 10 ms", seed=2)
    replies = [ask(url) for _ in range(31)]
    assert [reply.status_code for reply in replies[:30]] == [200] * 30
    counters = seen(url)
    assert counters["throttled"] == sum(reply.status_code == 429 for reply in replies)
    assert {reply.headers.get("Retry-After") for reply in replies if reply.status_code == 429} <= {"1"}


def test_a_job_under_a_shape_is_billed_once(url: str) -> None:
    begin(url, shape="cap 4, 50 ms")
    with EmbeddingClient(api_key="sk-made-up", base_url=url) as client:
        result = client.embed([f"text {number}" for number in range(300)])
    counters = seen(url)
    assert len(result.dense) == counters["texts"] == 300
    assert counters["answered"] == result.usage.requests == 30


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="tells no peak of memory")
def test_a_corpus_of_any_size_takes_60_mb(url: str) -> None:
    begin(url)
    client = SERVER.with_name("clients.py")
    command = [sys.executable, str(client), "ours", "files,texts=10000,words=12", url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own program
    result = json.loads(done.stdout)
    assert (result["error"], result["vectors"]) == (None, 20_000)
    # Its vectors alone, if they were kept, would take 40 MB as bytes and 320 MB as floats; pyarrow is imported before.
    assert result["rss_growth"] < 60e6
    assert seen(url)["texts"] == 20_000
