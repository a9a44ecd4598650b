"""Code written for the two older classes works with its import line changed, and asks what it meant to."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import warnings
from enum import Enum
from typing import TYPE_CHECKING, Any

import pytest
from frameworks import Framework, each_framework

import dashscope_embeddings.llama_index as ours_for_llama_index
from dashscope_embeddings.emulator import Emulator
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.llama_index import DashScopeEmbedding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from dashscope_embeddings.emulator.http import Server

V1, V2, V3, V4 = "text-embedding-v1", "text-embedding-v2", "text-embedding-v3", "text-embedding-v4"
TEXTS = [f"text number {n}" for n in range(30)]


class TextEmbeddingModels(str, Enum):
    """As users wrote them down, or as the older package has them."""

    TEXT_EMBEDDING_V2 = V2
    TEXT_EMBEDDING_V3 = V3


class TextEmbeddingType(str, Enum):
    TEXT_TYPE_QUERY = "query"
    TEXT_TYPE_DOCUMENT = "document"


@pytest.fixture(autouse=True)
def _at_the_emulator(monkeypatch: pytest.MonkeyPatch, served: Server) -> None:
    """The older classes have no argument for an address: only the environment can redirect both."""
    monkeypatch.setenv("DASHSCOPE_HTTP_BASE_URL", f"{served.url}/api/v1")


def older(module: str) -> ModuleType:
    """The package that is left behind, where it is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(module)
        except ImportError:
            return pytest.skip(f"{module} is not installed")


# --- langchain_community.embeddings.DashScopeEmbeddings ----------------------------------------------------


@pytest.mark.parametrize(("model", "largest"), [(V1, 25), (V2, 25), (V3, 10), (V4, 10)])
def test_code_for_langchain_community_asks_the_same_of_the_service(
    emulator: Emulator, model: str, largest: int
) -> None:
    embeddings = DashScopeEmbeddings(model=model, dashscope_api_key="sk-x", max_retries=5)
    assert embeddings.embed_documents(TEXTS) == [emulator.dense(text, model=model) for text in TEXTS]
    assert embeddings.embed_query("a") == emulator.dense("a", model=model, text_type="query")
    *documents, query = emulator.asked
    assert max(len(asked.texts) for asked in documents) == largest
    assert {asked.text_type for asked in documents} == {"document"}
    assert query.text_type == "query"
    assert {asked.model for asked in emulator.asked} == {model}
    assert embeddings.client.settings.max_retries == 5


def test_code_that_leaves_the_key_to_the_environment_works(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-x")
    assert len(DashScopeEmbeddings(model=V1).embed_query("a")) == 1536
    assert len(DashScopeEmbedding(model_name=V2).get_query_embedding("a")) == 1536
    assert emulator.keys_seen == {_fingerprint("sk-x")}


def test_every_argument_of_langchain_communitys_class_is_taken() -> None:
    theirs = older("langchain_community.embeddings.dashscope").DashScopeEmbeddings
    # `client` is set by their validator, whatever is passed.
    names = set(theirs.model_fields) - {"client"}
    assert names <= set(DashScopeEmbeddings.model_fields)
    assert names == {"model", "dashscope_api_key", "max_retries"}


def test_every_public_method_of_langchain_communitys_class_has_the_same_signature() -> None:
    theirs = older("langchain_community.embeddings.dashscope").DashScopeEmbeddings
    for name in ("embed_documents", "embed_query", "aembed_documents", "aembed_query"):
        assert _shape(getattr(DashScopeEmbeddings, name)) == _shape(getattr(theirs, name))


# --- llama_index.embeddings.dashscope.DashScopeEmbedding ---------------------------------------------------

SPELLINGS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "by position": ((V2, "document", "sk-x", 25), {}),
    "by name": (
        (),
        {"model_name": V2, "text_type": "document", "api_key": "sk-x", "embed_batch_size": 25},
    ),
    "enums by position": (
        (TextEmbeddingModels.TEXT_EMBEDDING_V2, TextEmbeddingType.TEXT_TYPE_DOCUMENT, "sk-x"),
        {},
    ),
    "enums by name": (
        (),
        {
            "model_name": TextEmbeddingModels.TEXT_EMBEDDING_V2,
            "text_type": TextEmbeddingType.TEXT_TYPE_DOCUMENT,
            "api_key": "sk-x",
        },
    ),
    "enum as model": ((), {"model": TextEmbeddingModels.TEXT_EMBEDDING_V2, "api_key": "sk-x"}),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_code_for_the_older_llama_index_class_asks_the_same_of_the_service(emulator: Emulator, spelling: str) -> None:
    positional, named = SPELLINGS[spelling]
    embedding = DashScopeEmbedding(*positional, **named)
    assert embedding.get_text_embedding_batch(TEXTS) == [emulator.dense(text, model=V2) for text in TEXTS]
    assert embedding.get_query_embedding("a") == emulator.dense("a", model=V2, text_type="query")
    assert sorted((a.model, a.text_type, len(a.texts)) for a in emulator.asked) == [
        (V2, "document", 5),
        (V2, "document", 25),
        (V2, "query", 1),
    ]
    assert type(embedding.model_name) is str
    assert embedding.to_dict()["text_type"] == "document"


def test_the_older_batch_size_works_with_models_that_take_fewer(emulator: Emulator) -> None:
    embedding = DashScopeEmbedding(TextEmbeddingModels.TEXT_EMBEDDING_V3, "document", "sk-x", 25)
    vectors = [emulator.dense(text, model=V3) for text in TEXTS]
    assert embedding.get_text_embedding_batch(TEXTS) == vectors
    assert asyncio.run(embedding.aget_text_embedding_batch(TEXTS)) == vectors
    assert {asked.status for asked in emulator.asked} == {200}


def test_the_text_type_arrives_as_it_never_did(emulator: Emulator) -> None:
    """The older class sent `parameters.kwargs.text_type`, which the service does not read."""
    embedding = DashScopeEmbedding(V2, TextEmbeddingType.TEXT_TYPE_QUERY, "sk-x")  # type: ignore[arg-type]
    embedding.get_text_embedding("a")
    assert emulator.asked[0].body["parameters"]["text_type"] == "query"
    assert "kwargs" not in emulator.asked[0].body["parameters"]


def test_the_arguments_have_the_older_names_and_order() -> None:
    theirs = older("llama_index.embeddings.dashscope.base").DashScopeEmbedding
    assert _shape(DashScopeEmbedding.__init__) == _shape(theirs.__init__)
    ours, was = inspect.signature(DashScopeEmbedding).parameters, inspect.signature(theirs).parameters
    assert ours["text_type"].default == was["text_type"].default
    assert ours["api_key"].default is was["api_key"].default is None


def test_what_the_older_class_saved_is_read(emulator: Emulator) -> None:
    saved = {
        "model_name": V2,
        "embed_batch_size": 25,
        "num_workers": None,
        "class_name": "DashScopeEmbedding",
    }
    embedding = DashScopeEmbedding.from_dict(saved, api_key="sk-x")
    assert embedding.get_text_embedding("a") == emulator.dense("a", model=V2)


@pytest.mark.parametrize("name", ["DashScopeTextEmbeddingModels", "DashScopeTextEmbeddingType"])
def test_the_older_modules_enums_can_be_imported_too(name: str) -> None:
    enum = getattr(ours_for_llama_index, name, None)
    assert isinstance(enum, type)
    assert issubclass(enum, Enum)


# --- several accounts in one process -----------------------------------------------------------------------


@pytest.fixture
def two_accounts() -> Iterator[dict[str, Server]]:
    """Two services, each of which lets one key in."""
    keys = ("sk-first", "sk-second")
    servers = {key: Emulator(api_key=key).serve() for key in keys}
    yield servers
    for server in servers.values():
        server.close()


@each_framework
def test_two_objects_with_two_keys_each_send_their_own(of: Framework, two_accounts: dict[str, Server]) -> None:
    """The key of langchain_community's class was the process's: the last one made won."""
    made = {key: of.made(server, api_key=key) for key, server in two_accounts.items()}
    for key in [*made, *made]:
        of.query(made[key])
        of.documents(made[key], TEXTS)
    for key, server in two_accounts.items():
        assert server.emulator.keys_seen == {_fingerprint(key)}
        assert [asked.status for asked in server.emulator.asked] == [200] * 8


def test_both_frameworks_side_by_side_give_the_same_vectors_for_two_keys(emulator: Emulator) -> None:
    one = DashScopeEmbeddings(dashscope_api_key="sk-first")
    other = DashScopeEmbedding(api_key="sk-second")
    assert one.embed_query("a") == other.get_query_embedding("a")
    assert one.embed_documents(TEXTS) == other.get_text_embedding_batch(TEXTS)
    assert emulator.keys_seen == {_fingerprint("sk-first"), _fingerprint("sk-second")}


def _fingerprint(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _shape(function: Any) -> list[tuple[str, Any]]:
    return [(p.name, p.kind) for p in inspect.signature(function).parameters.values()]
