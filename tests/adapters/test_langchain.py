"""LangChain gets what its interface promises; the service gets the right requests: roles, sizes, counts."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import threading
import traceback
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import FakeClock
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.load import dumpd
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError

from dashscope_embeddings._runtime.thread_drivers import ThreadDriver
from dashscope_embeddings.emulator import Emulator, faults
from dashscope_embeddings.errors import AuthenticationError, InvalidInput
from dashscope_embeddings.langchain import DashScopeEmbeddings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from dashscope_embeddings._core.exchange import Exchange, Outcome
    from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent
    from dashscope_embeddings.emulator.http import Server

    Leaks = Callable[[Callable[[], object]], list[str]]
    Arrival = Callable[[int], Awaitable[None]]

KEY = "sk-made-up-5d1f"
V3 = "text-embedding-v3"
TEXTS_25 = [f"text number {n}" for n in range(25)]


def made(served: Server, **settings: Any) -> DashScopeEmbeddings:
    return DashScopeEmbeddings(**{"dashscope_api_key": KEY, "base_url": served.url, **settings})


def sent(emulator: Emulator) -> list[tuple[str | None, int]]:
    """Role and size of each request; concurrent requests arrive in any order."""
    return sorted((asked.text_type, len(asked.texts)) for asked in emulator.asked)


class Counting(BaseRateLimiter):
    """Lets everybody through. Holds a lock, as LangChain's own does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sync = 0
        self.asynchronous = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        with self._lock:
            self.sync += 1
        return blocking

    async def aacquire(self, *, blocking: bool = True) -> bool:
        self.asynchronous += 1
        return blocking


def embed(embeddings: DashScopeEmbeddings, texts: list[str], *, way: str) -> list[list[float]]:
    if way == "sync":
        return embeddings.embed_documents(texts)
    return asyncio.run(embeddings.aembed_documents(texts))


both_ways = pytest.mark.parametrize("way", ["sync", "async"])


# --- LangChain's own suites --------------------------------------------------------------------------------


class TestStandardUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[DashScopeEmbeddings]:
        return DashScopeEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "text-embedding-v4", "api_key": KEY}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"DASHSCOPE_API_KEY": KEY}, {"dimensions": 512}, {"dashscope_api_key": KEY, "dimensions": 512}


class TestStandardIntegration(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _address(self, served: Server) -> None:
        self.url = served.url

    @property
    def embeddings_class(self) -> type[DashScopeEmbeddings]:
        return DashScopeEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"api_key": KEY, "base_url": self.url}


# --- what is asked -----------------------------------------------------------------------------------------


def test_a_query_is_sent_as_query_and_texts_as_documents(emulator: Emulator, served: Server) -> None:
    embeddings = made(served, instruct="Find the poem")
    assert embeddings.embed_query("moon") == emulator.dense("moon", text_type="query", instruct="Find the poem")
    assert embeddings.embed_documents(["moon"]) == [emulator.dense("moon", text_type="document")]
    assert [(a.text_type, a.texts, a.instruct) for a in emulator.asked] == [
        ("query", ("moon",), "Find the poem"),
        ("document", ("moon",), None),
    ]


async def test_the_async_methods_send_the_same_roles(emulator: Emulator, served: Server) -> None:
    embeddings = made(served, instruct="Find the poem")
    query = await embeddings.aembed_query("moon")
    assert query == emulator.dense("moon", text_type="query", instruct="Find the poem")
    assert await embeddings.aembed_documents(["moon"]) == [emulator.dense("moon")]
    assert [(a.text_type, a.texts, a.instruct) for a in emulator.asked] == [
        ("query", ("moon",), "Find the poem"),
        ("document", ("moon",), None),
    ]


@both_ways
def test_25_texts_are_three_requests_and_come_back_in_order(emulator: Emulator, served: Server, way: str) -> None:
    vectors = embed(made(served), TEXTS_25, way=way)
    assert vectors == [emulator.dense(text) for text in TEXTS_25]
    assert sent(emulator) == [("document", 5), ("document", 10), ("document", 10)]


@both_ways
def test_no_texts_are_no_request(emulator: Emulator, served: Server, way: str) -> None:
    assert embed(made(served), [], way=way) == []
    assert emulator.requests == 0


@pytest.mark.parametrize("not_a_list", ["abc", b"abc", None, 3])
@both_ways
def test_what_is_no_list_of_texts_is_refused_unsent(
    emulator: Emulator, served: Server, way: str, not_a_list: Any
) -> None:
    with pytest.raises(InvalidInput, match=r"expected a list of texts, not|texts must be .* not (NoneType|int)"):
        embed(made(served), not_a_list, way=way)
    assert emulator.requests == 0


@both_ways
@pytest.mark.parametrize("kind", [tuple, iter, lambda texts: dict.fromkeys(texts).keys()])
def test_any_other_iterable_of_texts_is_taken(
    emulator: Emulator, served: Server, kind: Callable[[list[str]], Any], way: str
) -> None:
    assert embed(made(served), kind(["a", "b"]), way=way) == [emulator.dense("a"), emulator.dense("b")]


@pytest.mark.parametrize("not_a_text", [["a"], None, 3])
def test_a_query_that_is_no_string_is_refused_unsent(emulator: Emulator, served: Server, not_a_text: Any) -> None:
    with pytest.raises(InvalidInput, match="expected one text"):
        made(served).embed_query(not_a_text)
    with pytest.raises(InvalidInput, match="expected one text"):
        asyncio.run(made(served).aembed_query(not_a_text))
    assert emulator.requests == 0


@both_ways
def test_vectors_are_lists_of_python_floats(emulator: Emulator, served: Server, way: str) -> None:
    emulator.faults = [faults.IntegerComponents(every=1)]
    embeddings = made(served, dimensions=64)
    for vector in [*embed(embeddings, ["a", "b"], way=way), embeddings.embed_query("a")]:
        assert type(vector) is list
        assert {type(component) for component in vector} == {float}


@pytest.mark.parametrize(
    ("given", "rows", "dimension"),
    [
        ({"dimension": 64, "chunk_size": 3}, [1, 3, 3], 64),
        ({"dimensions": 64, "batch_size": 3}, [1, 3, 3], 64),
        ({"dimension": 64, "chunk_size": 1000}, [7], 64),
        ({"model": V3}, [7], None),
    ],
)
def test_sizes_are_taken_under_both_names(
    emulator: Emulator, served: Server, given: dict[str, Any], rows: list[int], dimension: int | None
) -> None:
    vectors = made(served, **given).embed_documents(TEXTS_25[:7])
    assert [rows for _, rows in sent(emulator)] == rows
    assert {asked.dimension for asked in emulator.asked} <= {dimension, 1024}
    assert {len(vector) for vector in vectors} == {dimension or 1024}


def test_a_timeout_is_taken_under_both_names() -> None:
    assert DashScopeEmbeddings(api_key=KEY, request_timeout=7).client.settings.timeout == 7
    assert DashScopeEmbeddings(api_key=KEY, timeout=8).client.settings.timeout == 8


@both_ways
def test_a_throttled_request_costs_one_more_request_and_nothing_else(
    emulator: Emulator, served: Server, way: str
) -> None:
    emulator.faults = [faults.Throttle(every=20)]
    embeddings = made(served, dimensions=64)
    embeddings.client._transport.clock = FakeClock()  # type: ignore[assignment]
    texts = [f"text number {n}" for n in range(200)]
    assert embed(embeddings, texts, way=way) == [emulator.dense(text, dimension=64) for text in texts]
    throttled = [asked for asked in emulator.asked if asked.status == 429]
    assert len(throttled) == 1
    assert emulator.requests == 20 + len(throttled)
    assert emulator.billed_texts == 200


@both_ways
def test_a_rate_limiter_is_asked_once_for_every_request_retries_too(
    emulator: Emulator, served: Server, way: str
) -> None:
    emulator.faults = [faults.Throttle(times=2)]
    limiter = Counting()
    embeddings = made(served, rate_limiter=limiter)
    embeddings.client._transport.clock = FakeClock()  # type: ignore[assignment]
    embed(embeddings, TEXTS_25, way=way)
    assert emulator.requests == 5
    assert (limiter.sync, limiter.asynchronous) == ((5, 0) if way == "sync" else (0, 5))


def test_nothing_waits_for_the_rate_limiter_to_be_sent_after_the_key_was_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    perform, over, both = ThreadDriver.run, threading.Event(), threading.Barrier(2)

    def performed(self: ThreadDriver, flow: Exchange, halt: SignalSafeEvent) -> Outcome:
        outcome = perform(self, flow, halt)
        over.set()
        return outcome

    class Slow(Counting):
        def acquire(self, *, blocking: bool = True) -> bool:
            if both.wait(timeout=10) != 0:
                over.wait(timeout=10)
            return blocking

    monkeypatch.setattr(ThreadDriver, "run", performed)
    service = Emulator(api_key="sk-another")
    with httpx.Client(transport=service.transport()) as client:
        embeddings = DashScopeEmbeddings(api_key=KEY, http_client=client, rate_limiter=Slow(), max_concurrency=2)
        with pytest.raises(AuthenticationError):
            embeddings.embed_documents(TEXTS_25)
        embeddings.client.drain()
    assert service.requests == 1


@both_ways
def test_a_progress_bar_reaches_the_number_of_texts(
    served: Server, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    embed(made(served, show_progress_bar=True), TEXTS_25, way=way)
    assert "25/25" in capsys.readouterr().err
    embed(made(served), TEXTS_25, way=way)
    assert capsys.readouterr().err == ""


def test_the_compatible_protocol_works_and_warns_once_that_it_has_no_roles(emulator: Emulator, served: Server) -> None:
    with pytest.warns(UserWarning, match="does not distinguish queries"):
        embeddings = made(served, protocol="openai")
    again = made(served, protocol="openai")
    assert embeddings.embed_query("a") == again.embed_documents(["a"])[0] == emulator.dense("a", text_type="query")
    assert {(asked.protocol, asked.text_type) for asked in emulator.asked} == {("openai", None)}


def test_the_compatible_protocol_refuses_an_instruct() -> None:
    with pytest.raises(InvalidInput, match="instruct"):
        DashScopeEmbeddings(api_key=KEY, protocol="openai", instruct="Find the poem")


# --- settings and the key ----------------------------------------------------------------------------------


def _from_file(path: Path) -> dict[str, Any]:
    path.write_text(KEY + "\n", encoding="utf-8")
    return {"DASHSCOPE_API_KEY_FILE_PATH": str(path), "DASHSCOPE_API_KEY": ""}


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ({"dashscope_api_key": KEY}, {"DASHSCOPE_API_KEY": "sk-other"}),
        ({"api_key": KEY}, {}),
        ({}, {"DASHSCOPE_API_KEY": KEY}),
        ({"api_key": None}, {"DASHSCOPE_API_KEY": KEY}),
        ({"api_key": ""}, {"DASHSCOPE_API_KEY": KEY}),
        ({}, "file"),
    ],
)
def test_the_key_is_found_where_it_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: dict[str, Any], environment: Any
) -> None:
    service = Emulator(api_key=KEY)
    for name, value in (_from_file(tmp_path / "key") if environment == "file" else environment).items():
        monkeypatch.setenv(name, value)
    with httpx.Client(transport=service.transport()) as client:
        embeddings = DashScopeEmbeddings(**arguments, http_client=client)
        assert len(embeddings.embed_query("a")) == 1024
    assert embeddings.dashscope_api_key is not None
    assert embeddings.dashscope_api_key.get_secret_value() == KEY


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_key_the_error_names_the_variable_and_the_emulator(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv("DASHSCOPE_API_KEY", value)
    with pytest.raises(InvalidInput, match=r'DASHSCOPE_API_KEY.*base_url="emulator"'):
        DashScopeEmbeddings()


@pytest.mark.parametrize("name", ["dimenson", "input_type", "model_kwargs", "client"])
def test_an_unknown_argument_is_refused(name: str) -> None:
    unknown: dict[str, Any] = {name: "document"}
    with pytest.raises(ValidationError, match=f"{name}\n.*not permitted"):
        DashScopeEmbeddings(api_key=KEY, **unknown)


def test_two_names_of_one_setting_are_refused() -> None:
    with pytest.raises(ValidationError, match="not permitted"):
        DashScopeEmbeddings(api_key=KEY, dimension=64, dimensions=128)


def test_an_address_from_the_environment_stays_once_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_HTTP_BASE_URL", "https://gateway.example/api/v1")
    embeddings = DashScopeEmbeddings(api_key=KEY)
    monkeypatch.delenv("DASHSCOPE_HTTP_BASE_URL")
    assert embeddings.client.settings.address.host == "gateway.example"


@pytest.mark.parametrize("way", ["call", "pickle", "copy"])
def test_an_address_from_the_environment_stays_with_a_key_from_there(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setenv("DASHSCOPE_HTTP_BASE_URL", "https://gateway.example/api/v1")
    monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
    embeddings = DashScopeEmbeddings()
    monkeypatch.delenv("DASHSCOPE_HTTP_BASE_URL")
    if way == "pickle":
        embeddings = pickle.loads(pickle.dumps(embeddings))  # noqa: S301
    if way == "copy":
        embeddings = embeddings.model_copy(update={"dimensions": 64})
    assert embeddings.client.settings.address.host == "gateway.example"


def test_a_region_from_the_environment_stays_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_API_REGION", "ap-southeast-1")
    embeddings = DashScopeEmbeddings(api_key=KEY)
    monkeypatch.delenv("DASHSCOPE_API_REGION")
    changed = embeddings.model_copy(update={"dimensions": 64})
    assert changed.client.settings.address.host == embeddings.client.settings.address.host


def test_a_region_that_is_set_later_beats_the_environments_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_HTTP_BASE_URL", "https://gateway.example/api/v1")
    at_once = DashScopeEmbeddings(api_key=KEY, region="ap-southeast-1")
    later = DashScopeEmbeddings(api_key=KEY).model_copy(update={"region": "ap-southeast-1"})
    assert later.client.settings.address.host == at_once.client.settings.address.host


# --- copies ------------------------------------------------------------------------------------------------


def _pickled(embeddings: DashScopeEmbeddings) -> DashScopeEmbeddings:
    found = pickle.loads(pickle.dumps(embeddings))  # noqa: S301
    assert isinstance(found, DashScopeEmbeddings)
    return found


COPIES: dict[str, Callable[[DashScopeEmbeddings], DashScopeEmbeddings]] = {
    "pickle": _pickled,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda embeddings: embeddings.model_copy(),
    "model_copy deep": lambda embeddings: embeddings.model_copy(deep=True),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_used_object_asks_the_same_with_the_same_key(
    served: Server, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
    original = made(served, dashscope_api_key=None, dimensions=64, instruct="Find the poem")
    vector = original.embed_query("a")
    monkeypatch.delenv("DASHSCOPE_API_KEY")
    assert COPIES[how](original).embed_query("a") == vector
    assert emulator.asked[0].body == emulator.asked[1].body
    assert len(emulator.keys_seen) == 1


@pytest.mark.parametrize("how", ["deepcopy", "model_copy deep"])
@pytest.mark.parametrize("passed", ["rate_limiter", "http_client"])
def test_a_deep_copy_shares_what_the_user_passed(emulator: Emulator, how: str, passed: str) -> None:
    with httpx.Client(transport=emulator.transport()) as client:
        limiter = Counting() if passed == "rate_limiter" else None
        original = DashScopeEmbeddings(api_key=KEY, http_client=client, rate_limiter=limiter)
        twin = COPIES[how](original)
        assert getattr(twin, passed) is getattr(original, passed)
        assert twin.embed_query("a") == emulator.dense("a", text_type="query")


def test_an_http_client_of_the_user_is_not_pickled(emulator: Emulator) -> None:
    with httpx.Client(transport=emulator.transport()) as client:
        embeddings = DashScopeEmbeddings(api_key=KEY, http_client=client)
        with pytest.raises(InvalidInput, match="cannot be pickled"):
            pickle.dumps(embeddings)


@pytest.mark.parametrize("how", ["assignment", "model_copy"])
def test_a_changed_setting_is_what_is_asked_next(emulator: Emulator, served: Server, how: str) -> None:
    embeddings = made(served)
    assert len(embeddings.embed_query("a")) == 1024
    changes = {"dimensions": 64, "model": V3, "instruct": None}
    if how == "assignment":
        for name, value in changes.items():
            setattr(embeddings, name, value)
        changed = embeddings
    else:
        changed = embeddings.model_copy(update=changes)
        assert len(embeddings.embed_query("a")) == 1024
    assert changed.embed_query("a") == emulator.dense("a", text_type="query", dimension=64, model=V3)
    assert (emulator.asked[-1].model, emulator.asked[-1].dimension) == (V3, 64)


def test_a_setting_changed_to_nonsense_is_refused_at_the_next_call(emulator: Emulator, served: Server) -> None:
    embeddings = made(served).model_copy(update={"dimensions": 7})
    with pytest.raises(InvalidInput, match="7 dimensions"):
        embeddings.embed_query("a")
    assert emulator.requests == 0


@pytest.mark.parametrize("update", [{"dimension": 64}, {"dimenson": 64}])
def test_model_copy_ignores_no_name(update: dict[str, int]) -> None:
    embeddings = DashScopeEmbeddings(api_key=KEY)
    try:
        changed = embeddings.model_copy(update=update)
    except (InvalidInput, ValidationError):
        return
    assert changed.client.settings.dimensions == 64


# --- secrets -----------------------------------------------------------------------------------------------


SHOWN: dict[str, Callable[[DashScopeEmbeddings], object]] = {
    "repr": repr,
    "str": str,
    "model_dump": lambda embeddings: embeddings.model_dump(),
    "model_dump_json": lambda embeddings: embeddings.model_dump_json(),
    "dumpd": dumpd,
    "client": lambda embeddings: (repr(embeddings.client), embeddings.client.settings),
    "vars of the client": lambda embeddings: vars(embeddings.client),
}


@pytest.mark.parametrize("how", SHOWN)
def test_the_key_is_never_shown(served: Server, how: str) -> None:
    embeddings = made(served, default_headers={"x-tenant": "42"})
    embeddings.embed_query("a")
    assert KEY not in str(SHOWN[how](embeddings))


@pytest.mark.parametrize("how", ["assignment", "model_copy"])
def test_a_key_set_later_is_not_shown_either(how: str) -> None:
    embeddings = DashScopeEmbeddings(api_key="sk-first")
    if how == "assignment":
        embeddings.dashscope_api_key = KEY  # type: ignore[assignment] # as users of the older class do
    else:
        embeddings = embeddings.model_copy(update={"dashscope_api_key": KEY})
    assert KEY not in repr(embeddings)
    assert KEY not in str(dumpd(embeddings))


def test_what_is_dumped_makes_the_same_object_again(emulator: Emulator, served: Server) -> None:
    embeddings = made(served, dimensions=64, instruct="Find the poem")
    again = DashScopeEmbeddings(**embeddings.model_dump(), api_key=KEY)
    assert again.embed_query("a") == embeddings.embed_query("a")
    assert emulator.asked[0].body == emulator.asked[1].body


@pytest.mark.parametrize(
    "wrong",
    [
        {"dashscope_api_key": f" {KEY}"},
        {"dashscope_api_key": KEY, "dimensions": 7},
        {"dashscope_api_key": KEY, "timeout": "soon"},
        {"dashscope_api_key": KEY, "base_url": "http://plain.example"},
        {"dashscope_key": KEY},
    ],
)
def test_an_error_at_construction_does_not_show_the_key(wrong: dict[str, Any]) -> None:
    with pytest.raises((InvalidInput, ValidationError)) as caught:
        DashScopeEmbeddings(**wrong)
    assert KEY not in f"{caught.value!s} {caught.value!r}"


def test_no_error_or_log_of_a_call_shows_the_key(
    served: Server, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.faults = [faults.Throttle(), faults.Drop(), faults.Status(status=401, code="InvalidApiKey")]
    embeddings = made(served)
    embeddings.client._transport.clock = FakeClock()  # type: ignore[assignment]
    with caplog.at_level(logging.DEBUG), pytest.raises(AuthenticationError) as caught:
        embeddings.embed_documents(["a"])
    assert emulator.requests == 3
    error = caught.value
    assert error.failed == [0]
    assert KEY not in "".join(traceback.format_exception(error))
    assert KEY.encode() not in pickle.dumps(error)
    assert caplog.records
    assert KEY not in caplog.text


def test_a_header_of_the_user_never_stands_beside_the_key() -> None:
    keys: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.extend(request.headers.get_list("authorization"))
        return Emulator()(request)

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        headers = {"authorization": "Bearer of-a-gateway"}
        DashScopeEmbeddings(api_key=KEY, http_client=client, default_headers=headers).embed_query("a")
    assert len(keys) == 1


# --- stores, indexes, caches -------------------------------------------------------------------------------

POEMS = ["the moon above the lake", "a horse in the snow", "tea in the morning", "rain on the roof"]


async def test_a_vector_store_finds_texts_by_query_sync_and_async(emulator: Emulator, served: Server) -> None:
    store = InMemoryVectorStore(made(served))
    store.add_texts(POEMS[:2])
    await store.aadd_texts(POEMS[2:])
    assert store.similarity_search("horse snow", k=1)[0].page_content == POEMS[1]
    assert (await store.asimilarity_search("morning tea", k=1))[0].page_content == POEMS[2]
    assert [(a.text_type, len(a.texts)) for a in emulator.asked] == [
        ("document", 2),
        ("document", 2),
        ("query", 1),
        ("query", 1),
    ]


def test_indexing_the_same_documents_again_asks_nothing(emulator: Emulator, served: Server) -> None:
    store, records = InMemoryVectorStore(made(served)), InMemoryRecordManager(namespace="poems")
    records.create_schema()
    documents = [Document(page_content=text, metadata={"source": text}) for text in [*POEMS, POEMS[0]]]
    settings: dict[str, Any] = {"cleanup": "incremental", "source_id_key": "source", "key_encoder": "blake2b"}
    assert index(documents, records, store, **settings)["num_added"] == 4
    assert emulator.billed_texts == 4
    assert index(documents, records, store, **settings)["num_skipped"] == 5
    assert emulator.billed_texts == 4


def test_a_retriever_asks_from_worker_threads(emulator: Emulator, served: Server) -> None:
    store = InMemoryVectorStore(made(served))
    store.add_texts(POEMS)
    emulator.clear()
    found = store.as_retriever(search_kwargs={"k": 1}).batch(POEMS)
    assert [documents[0].page_content for documents in found] == POEMS
    # Queries that wait at the same time may travel together.
    assert {asked.text_type for asked in emulator.asked} == {"query"}
    assert sorted(text for asked in emulator.asked for text in asked.texts) == sorted(POEMS)


def test_a_cached_document_is_asked_once_and_a_query_is_not_taken_for_it(emulator: Emulator, served: Server) -> None:
    classic = pytest.importorskip("langchain_classic.embeddings")
    storage = pytest.importorskip("langchain_core.stores")
    embeddings = made(served)
    cached = classic.CacheBackedEmbeddings.from_bytes_store(
        embeddings, storage.InMemoryByteStore(), namespace="v4", key_encoder="blake2b"
    )
    assert cached.embed_documents(POEMS) == cached.embed_documents(POEMS)
    assert emulator.billed_texts == len(POEMS)
    assert cached.embed_query(POEMS[0]) == emulator.dense(POEMS[0], text_type="query")


# --- event loops and threads -------------------------------------------------------------------------------


def test_several_event_loops_one_after_another_leave_no_socket_open(
    emulator: Emulator, served: Server, leaks: Leaks
) -> None:
    def run() -> None:
        embeddings = made(served)
        for n in range(3):
            vectors = asyncio.run(embeddings.aembed_documents([f"{n} {text}" for text in TEXTS_25]))
            assert vectors[24] == emulator.dense(f"{n} {TEXTS_25[24]}")
        assert embeddings.embed_query("a")

    assert leaks(run) == []
    assert emulator.requests == 3 * 3 + 1


def test_two_event_loops_side_by_side_use_one_object(emulator: Emulator, served: Server) -> None:
    embeddings, together = made(served), threading.Barrier(2)
    found: dict[str, list[list[float]]] = {}

    async def ask(name: str) -> None:
        await embeddings.aembed_query("first")
        together.wait(timeout=10)
        found[name] = await embeddings.aembed_documents([f"{name} {text}" for text in TEXTS_25])
        together.wait(timeout=10)

    threads = [threading.Thread(target=asyncio.run, args=(ask(name),)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("one", "two"):
        assert found[name] == [emulator.dense(f"{name} {text}") for text in TEXTS_25]
    assert emulator.billed_texts == 2 * (1 + 25)


def test_sync_calls_work_inside_a_running_loop(emulator: Emulator, served: Server) -> None:
    embeddings = made(served)

    async def ask() -> None:
        assert embeddings.embed_documents(TEXTS_25) == await embeddings.aembed_documents(TEXTS_25)
        assert embeddings.embed_query("a") == await embeddings.aembed_query("a")

    asyncio.run(ask())
    assert emulator.requests == 2 * (3 + 1)


def test_an_object_that_lived_only_inside_asyncio_run_leaves_no_socket_open(served: Server, leaks: Leaks) -> None:
    async def main() -> None:
        await made(served).aembed_documents(TEXTS_25)

    assert leaks(lambda: asyncio.run(main())) == []


async def test_after_a_cancellation_no_request_starts(emulator: Emulator, arrival: Arrival) -> None:
    with emulator.serve(latency=10) as server:
        embeddings = made(server, max_concurrency=4)
        task = asyncio.create_task(embeddings.aembed_documents([f"text {n}" for n in range(80)]))
        await arrival(4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert server._in_flight == 4, "they were waited for"
        server.latency = 0.0
        assert await embeddings.aembed_query("and then") == emulator.dense("and then", text_type="query")
    assert emulator.requests == 4 + 1
    assert ("and then",) in [asked.texts for asked in emulator.asked]


def test_usage_counts_what_was_billed(emulator: Emulator, served: Server) -> None:
    embeddings = made(served)
    embeddings.embed_documents([*TEXTS_25, TEXTS_25[0]])
    asyncio.run(embeddings.aembed_query("a"))
    assert embeddings.usage.requests == emulator.billed_requests == 4
    assert embeddings.usage.texts == emulator.billed_texts == 26
    assert embeddings.usage.tokens == emulator.billed_tokens
