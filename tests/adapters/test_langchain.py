"""What LangChain alone has: its own suites, its names of settings, its stores. The rest is in test_dense_adapters."""

from __future__ import annotations

import pickle
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from dashscope_embeddings._runtime.thread_drivers import ThreadDriver
from dashscope_embeddings.emulator import Emulator
from dashscope_embeddings.errors import AuthenticationError, InvalidInput
from dashscope_embeddings.langchain import DashScopeEmbeddings

if TYPE_CHECKING:
    from pathlib import Path

    from dashscope_embeddings._core.exchange import Exchange, Outcome
    from dashscope_embeddings._runtime.thread_pool import SignalSafeEvent
    from dashscope_embeddings.emulator.http import Server


KEY = "sk-made-up-5d1f"
TEXTS_25 = [f"text number {n}" for n in range(25)]


def made(served: Server, **settings: Any) -> DashScopeEmbeddings:
    return DashScopeEmbeddings(**{"dashscope_api_key": KEY, "base_url": served.url, **settings})


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


def test_nothing_waits_for_the_rate_limiter_to_be_sent_after_the_key_was_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    perform, over, both = ThreadDriver.run_exchange, threading.Event(), threading.Barrier(2)

    def performed(self: ThreadDriver, flow: Exchange, halt: SignalSafeEvent) -> Outcome:
        outcome = perform(self, flow, halt)
        over.set()
        return outcome

    class Slow(InMemoryRateLimiter):
        def acquire(self, *, blocking: bool = True) -> bool:
            if both.wait(timeout=10) != 0:
                over.wait(timeout=10)
            return blocking

    monkeypatch.setattr(ThreadDriver, "run_exchange", performed)
    service = Emulator(api_key="sk-another")
    with httpx.Client(transport=service.transport()) as client:
        embeddings = DashScopeEmbeddings(api_key=KEY, http_client=client, rate_limiter=Slow(), max_concurrency=2)
        with pytest.raises(AuthenticationError):
            embeddings.embed_documents(TEXTS_25)
        embeddings.client.drain()
    assert service.requests == 1


def test_the_compatible_protocol_works_and_warns_once_that_it_has_no_roles(emulator: Emulator, served: Server) -> None:
    with pytest.warns(UserWarning, match="does not distinguish queries"):
        embeddings = made(served, protocol="openai")
    again = made(served, protocol="openai")
    assert embeddings.embed_query("a") == again.embed_documents(["a"])[0] == emulator.dense("a", text_type="query")
    assert {(asked.protocol, asked.text_type) for asked in emulator.asked} == {("openai", None)}
    with pytest.raises(InvalidInput, match="instruct"):
        made(served, protocol="openai", instruct="Find the poem")


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


@pytest.mark.parametrize(
    ("variable", "value", "host"),
    [
        ("DASHSCOPE_HTTP_BASE_URL", "https://gateway.example/api/v1", "gateway.example"),
        ("DASHSCOPE_API_REGION", "ap-southeast-1", "dashscope-intl.aliyuncs.com"),
    ],
)
def test_an_address_from_the_environment_stays_with_a_key_from_there(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, host: str
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
    embeddings = DashScopeEmbeddings()
    monkeypatch.delenv(variable)
    unpickled = pickle.loads(pickle.dumps(embeddings))  # noqa: S301 - our own
    copies = [embeddings, unpickled, embeddings.model_copy(update={"dimensions": 64})]
    assert [one.client.settings.address.host for one in copies] == [host] * 3


def test_a_region_that_is_set_later_beats_the_environments_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_HTTP_BASE_URL", "https://gateway.example/api/v1")
    at_once = DashScopeEmbeddings(api_key=KEY, region="ap-southeast-1")
    later = DashScopeEmbeddings(api_key=KEY).model_copy(update={"region": "ap-southeast-1"})
    assert later.client.settings.address.host == at_once.client.settings.address.host


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


def test_a_retriever_asks_from_worker_threads(emulator: Emulator, served: Server) -> None:
    store = InMemoryVectorStore(made(served))
    store.add_texts(POEMS)
    emulator.clear()
    found = store.as_retriever(search_kwargs={"k": 1}).batch(POEMS)
    assert [documents[0].page_content for documents in found] == POEMS
    # Queries that wait at the same time may travel together.
    assert {asked.text_type for asked in emulator.asked} == {"query"}
    assert sorted(text for asked in emulator.asked for text in asked.texts) == sorted(POEMS)
