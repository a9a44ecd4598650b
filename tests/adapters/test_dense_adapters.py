"""The dense adapters of both frameworks: what they request, what they return, copies, loops and cancellation."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest

pytest.importorskip("langchain_qdrant")
pytest.importorskip("llama_index.core")

from client_helpers import KEY, FakeClock
from frameworks import Framework, LangChain, LlamaIndex, each_framework, every_call
from langchain_core.rate_limiters import InMemoryRateLimiter
from pydantic import ValidationError

from dashscope_embeddings.emulator import Emulator, faults
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dashscope_embeddings.emulator.http import Server

    Leaks = Callable[[Callable[[], object]], list[str]]
    Arrival = Callable[[int], Awaitable[None]]

V3 = "text-embedding-v3"
TEXTS_25 = [f"text number {n}" for n in range(25)]


def sent(emulator: Emulator) -> list[tuple[str | None, int]]:
    """Role and size of each request; concurrent requests arrive in any order."""
    return sorted((asked.text_type, len(asked.texts)) for asked in emulator.asked)


class Counting(InMemoryRateLimiter):
    """LangChain's own, which also has the methods of LlamaIndex's, and says how often it was asked."""

    def __init__(self) -> None:
        super().__init__(requests_per_second=10_000, max_bucket_size=1_000)
        self.asked = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self.asked += 1
        return super().acquire(blocking=blocking)

    async def aacquire(self, *, blocking: bool = True) -> bool:
        self.asked += 1
        return await super().aacquire(blocking=blocking)


# --- what is requested -------------------------------------------------------------------------------------


@every_call
@pytest.mark.parametrize("role", ["document", "query"])
def test_queries_are_queries_and_texts_have_the_text_type(
    of: Framework, role: Any, emulator: Emulator, served: Server
) -> None:
    dense = of.made(served, instruct="Find the poem", text_type=role)
    instruct: Any = "Find the poem" if role == "query" else None
    assert of.query(dense, "moon") == emulator.dense("moon", text_type="query", instruct="Find the poem")
    assert of.documents(dense, ["moon", "sun"]) == [
        emulator.dense(text, text_type=role, instruct=instruct) for text in ("moon", "sun")
    ]
    assert [(a.text_type, a.texts, a.instruct) for a in emulator.asked] == [
        ("query", ("moon",), "Find the poem"),
        (role, ("moon", "sun"), instruct),
    ]


@every_call
def test_25_texts_are_three_requests_and_come_back_in_order(of: Framework, emulator: Emulator, served: Server) -> None:
    emulator.faults = [faults.IntegerComponents()]
    dense = of.made(served, dimensions=64)
    vectors = of.documents(dense, TEXTS_25)
    assert {type(vector) for vector in vectors} == {list}
    assert {type(number) for vector in vectors for number in vector} == {float}
    emulator.faults = []
    assert of.documents(of.made(served), iter(TEXTS_25)) == [emulator.dense(text) for text in TEXTS_25]
    assert sent(emulator) == sorted([("document", 5), ("document", 10), ("document", 10)] * 2)
    assert of.documents(dense, []) == []
    assert emulator.requests == 6


@every_call
def test_what_has_the_wrong_shape_is_refused_unsent(of: Framework, emulator: Emulator, served: Server) -> None:
    dense = of.made(served)
    for not_a_list in ("abc", b"abc", None, 3):
        with pytest.raises(InvalidInput, match=r"expected a list of texts, not|texts must be .* not (NoneType|int)"):
            of.documents(dense, not_a_list)
    for not_a_text in (["a"], None, 3):
        with pytest.raises(InvalidInput, match="expected one text"):
            of.query(dense, not_a_text)
    with pytest.raises(InvalidInput, match="text 1 is empty"):
        of.documents(dense, ["a", " "])
    assert emulator.requests == 0


@each_framework
@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ({"dimension": 64, "chunk_size": 3}, [1, 3, 3]),
        ({"dimensions": 64, "batch_size": 3}, [1, 3, 3]),
        ({"dimension": 64, "chunk_size": 1000}, [7]),
        ({"dimensions": 64, "request_timeout": 7}, [7]),
    ],
)
def test_settings_are_taken_under_both_names(
    of: Framework, given: dict[str, Any], rows: list[int], emulator: Emulator, served: Server
) -> None:
    dense = of.made(served, **given)
    assert {len(vector) for vector in of.documents(dense, TEXTS_25[:7])} == {64}
    assert [rows for _, rows in sent(emulator)] == rows
    assert dense.client.settings.timeout == given.get("request_timeout", 60)


@each_framework
@pytest.mark.parametrize("name", ["dimenson", "model_kwargs", "auto_truncation", "client"])
def test_an_unknown_argument_is_refused(of: Framework, name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name}\n.*not permitted"):
        of.dense(**{"api_key": KEY, name: None})


@every_call
def test_a_rate_limiter_is_asked_once_for_every_request_retries_too(
    of: Framework, emulator: Emulator, served: Server
) -> None:
    emulator.faults = [faults.Throttle(times=2)]
    limiter = Counting()
    dense = of.made(served, rate_limiter=limiter)
    dense.client._transport.clock = FakeClock()
    of.documents(dense, TEXTS_25)
    of.query(dense)
    assert limiter.asked == emulator.requests == 6
    assert emulator.billed_texts == 26


@every_call
def test_a_progress_bar_reaches_the_number_of_texts(
    of: Framework, served: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    if isinstance(of, LangChain):
        of.documents(of.made(served, show_progress_bar=True), TEXTS_25)
    else:
        dense = of.made(served, embed_batch_size=10)
        show = {"show_progress": True}
        if of.is_async:
            asyncio.run(dense.aget_text_embedding_batch(TEXTS_25, **show))
        else:
            dense.get_text_embedding_batch(TEXTS_25, **show)
    assert "25/25" in capsys.readouterr().err
    of.documents(of.made(served), TEXTS_25)
    assert capsys.readouterr().err == ""


# --- copies and changes ------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda dense: pickle.loads(pickle.dumps(dense)),  # noqa: S301 - our own
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda dense: dense.model_copy(),
    "model_copy deep": lambda dense: dense.model_copy(deep=True),
}


@each_framework
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_used_object_asks_the_same_with_the_same_key(
    of: Framework, how: str, emulator: Emulator, served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
    original = of.made(served, api_key=None, dimensions=64, instruct="Find it", text_type="query", max_retries=2)
    vector = of.query(original)
    monkeypatch.delenv("DASHSCOPE_API_KEY")
    twin = COPIES[how](original)
    assert of.query(twin) == vector
    assert emulator.asked[0].body == emulator.asked[1].body
    assert len(emulator.keys_seen) == 1
    assert (twin.client.settings.max_retries, twin.text_type) == (2, "query")


@each_framework
@pytest.mark.parametrize("how", ["deepcopy", "model_copy deep"])
def test_a_deep_copy_shares_what_the_user_passed_and_an_http_client_is_not_pickled(
    of: Framework, how: str, emulator: Emulator
) -> None:
    with httpx.Client(transport=emulator.transport()) as client:
        original = of.dense(api_key=KEY, http_client=client, rate_limiter=Counting())
        twin = COPIES[how](original)
        assert (twin.http_client, twin.rate_limiter) == (client, original.rate_limiter)
        assert of.query(twin) == emulator.dense("a", text_type="query")
        with pytest.raises(InvalidInput, match="cannot be pickled"):
            pickle.dumps(of.dense(api_key=KEY, http_client=client))


@each_framework
@pytest.mark.parametrize("how", ["assignment", "model_copy"])
def test_a_changed_setting_is_what_is_asked_next(of: Framework, how: str, emulator: Emulator, served: Server) -> None:
    dense = of.made(served)
    assert len(of.query(dense)) == 1024
    changes = {"dimensions": 64, of.model: V3, "instruct": None}
    if how == "assignment":
        for name, value in changes.items():
            setattr(dense, name, value)
        changed = dense
    else:
        changed = dense.model_copy(update=changes)
        assert len(of.query(dense)) == 1024
    assert of.query(changed) == emulator.dense("a", text_type="query", dimension=64, model=V3)
    requests = emulator.requests
    with pytest.raises(InvalidInput, match="7 dimensions"):
        of.query(changed.model_copy(update={"dimensions": 7}))
    for name in ("dimension", "dimenson"):
        with pytest.raises(InvalidInput, match=f"{name} is none"):
            changed.model_copy(update={name: 64})
    assert emulator.requests == requests


@each_framework
def test_what_was_dumped_has_no_key_and_makes_the_same_object_again(
    of: Framework, emulator: Emulator, served: Server
) -> None:
    dense = of.made(served, dimensions=64, instruct="Find it", text_type="query", batch_size=7)
    saved = dense.to_dict() if isinstance(of, LlamaIndex) else dense.model_dump()
    assert KEY not in f"{saved} {dense.model_dump_json()} {dense!r}"
    again = [of.dense(**{**saved, "api_key": KEY})]
    if isinstance(of, LlamaIndex):
        assert saved == json.loads(dense.to_json())
        again.append(of.dense.from_dict(saved, api_key=KEY))
    vectors = of.documents(dense, ["a"])
    assert [of.documents(one, ["a"]) for one in again] == [vectors] * len(again)
    assert all(asked.body == emulator.asked[0].body for asked in emulator.asked)


# --- event loops -------------------------------------------------------------------------------------------


@each_framework
def test_event_loops_one_after_another_leave_no_socket_open(
    of: Framework, emulator: Emulator, served: Server, leaks: Leaks
) -> None:
    def run() -> None:
        dense = of.made(served)
        for n in range(3):
            vectors = asyncio.run(of.adocuments(dense, [f"{n} {text}" for text in TEXTS_25]))
            assert vectors[24] == emulator.dense(f"{n} {TEXTS_25[24]}")
        assert of.query(dense)

    async def inside() -> None:
        await of.adocuments(of.made(served), TEXTS_25)

    assert leaks(run) == []
    assert emulator.requests == 3 * 3 + 1
    assert leaks(lambda: asyncio.run(inside())) == []


@each_framework
def test_two_event_loops_side_by_side_use_one_object(of: Framework, emulator: Emulator, served: Server) -> None:
    dense, together = of.made(served), threading.Barrier(2)
    found: dict[str, list[list[float]]] = {}

    async def ask(name: str) -> None:
        await of.aquery(dense, name)
        together.wait(timeout=10)
        found[name] = await of.adocuments(dense, [f"{name} {text}" for text in TEXTS_25])
        together.wait(timeout=10)

    threads = [threading.Thread(target=asyncio.run, args=(ask(name),)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("one", "two"):
        assert found[name] == [emulator.dense(f"{name} {text}") for text in TEXTS_25]
    assert emulator.billed_texts == 2 * (1 + 25)


@each_framework
def test_sync_calls_work_inside_a_running_loop(of: Framework, emulator: Emulator, served: Server) -> None:
    dense = of.made(served)

    async def ask() -> None:
        assert of.documents(dense, TEXTS_25) == await of.adocuments(dense, TEXTS_25)
        assert of.query(dense) == await of.aquery(dense)

    asyncio.run(ask())
    assert emulator.requests == 2 * (3 + 1)


@each_framework
async def test_after_a_cancellation_no_request_starts(of: Framework, emulator: Emulator, arrival: Arrival) -> None:
    with emulator.serve(latency=10) as server:
        dense = of.made(server, max_concurrency=4)
        task = asyncio.create_task(of.adocuments(dense, [f"text {n}" for n in range(80)]))
        await arrival(4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert server._in_flight == 4, "they were waited for"
        server.latency = 0.0
        assert await of.aquery(dense, "and then") == emulator.dense("and then", text_type="query")
    assert emulator.requests == 4 + 1
    assert ("and then",) in [asked.texts for asked in emulator.asked]
