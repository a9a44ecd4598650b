"""Sync and async twins take the same arguments with the same defaults; both adapters take all settings."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.embeddings import Embeddings
from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import SecretStr

from dashscope_embeddings import EmbeddingClient
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.llama_index import DashScopeEmbedding

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashscope_embeddings._adapters.base import ClientFields

TWINS = [
    (EmbeddingClient, "embed", "aembed"),
    (EmbeddingClient, "stream", "astream"),
    (EmbeddingClient, "fetch_quota", "afetch_quota"),
    (EmbeddingClient, "close", "aclose"),
    (DashScopeEmbeddings, "embed_documents", "aembed_documents"),
    (DashScopeEmbeddings, "embed_query", "aembed_query"),
    (DashScopeEmbedding, "__call__", "acall"),
    (DashScopeEmbedding, "get_query_embedding", "aget_query_embedding"),
    (DashScopeEmbedding, "get_text_embedding", "aget_text_embedding"),
    (DashScopeEmbedding, "get_text_embedding_batch", "aget_text_embedding_batch"),
    (DashScopeEmbedding, "_get_query_embedding", "_aget_query_embedding"),
    (DashScopeEmbedding, "_get_text_embedding", "_aget_text_embedding"),
    (DashScopeEmbedding, "_get_text_embeddings", "_aget_text_embeddings"),
]
ADAPTERS = [DashScopeEmbeddings, DashScopeEmbedding]


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    found = inspect.signature(inspect.unwrap(function)).parameters.values()
    return [(p.name, p.kind, p.default) for p in found]


def types(function: Callable[..., Any]) -> dict[str, str]:
    """Without two differences that are meant: async reads asynchronous sources and yields in its own way."""
    found = inspect.signature(inspect.unwrap(function))
    written = {p.name: str(p.annotation) for p in found.parameters.values()}
    written["return"] = str(found.return_annotation)
    return {
        name: text.replace(" | AsyncIterable[str]", "").replace("AsyncIterator", "Iterator")
        for name, text in written.items()
    }


def public_methods(cls: type) -> set[str]:
    """Those of the class's own body; pydantic puts some of its own there."""
    return {
        name
        for name, value in vars(cls).items()
        if inspect.isfunction(value) and value.__module__.startswith("dashscope_embeddings")
        if not name.startswith(("_", "model_"))
    }


@pytest.mark.parametrize(("cls", "sync", "asynchronous"), TWINS)
def test_twins_take_the_same(cls: type, sync: str, asynchronous: str) -> None:
    one, other = getattr(cls, sync), getattr(cls, asynchronous)
    assert parameters(one) == parameters(other)
    assert types(one) == types(other)


SEND_NOTHING = {"count_tokens", "estimate"}


@pytest.mark.parametrize("cls", [EmbeddingClient, *ADAPTERS])
def test_no_public_method_lacks_its_twin(cls: type) -> None:
    known = {name for owner, *pair in TWINS if owner is cls for name in pair}
    assert public_methods(cls) - {"to_payload", *SEND_NOTHING} <= known


@pytest.mark.parametrize("cls", [EmbeddingClient, *ADAPTERS])
def test_async_twins_are_awaited_or_iterated(cls: type) -> None:
    for owner, _, name in TWINS:
        if owner is cls:
            function = inspect.unwrap(getattr(cls, name))
            iterated = str(inspect.signature(function).return_annotation).startswith("AsyncIterator")
            assert inspect.iscoroutinefunction(function) or iterated, name


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        (
            DashScopeEmbeddings,
            Embeddings,
            ["embed_documents", "embed_query", "aembed_documents", "aembed_query"],
        ),
        (
            DashScopeEmbedding,
            BaseEmbedding,
            [name for owner, *pair in TWINS if owner is DashScopeEmbedding for name in pair],
        ),
    ],
)
def test_the_frameworks_names_of_arguments_are_kept(ours: type, theirs: type, names: list[str]) -> None:
    for name in names:
        assert parameters(getattr(ours, name)) == parameters(getattr(theirs, name)), name


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_has_the_clients_settings_and_defaults_and_passes_them_on(adapter: type[ClientFields]) -> None:
    settings = adapter.model_validate({"base_url": "emulator"})._settings()
    defaults = {p.name: p.default for p in inspect.signature(EmbeddingClient).parameters.values()}
    del defaults["dimension"], settings["base_url"], defaults["base_url"]
    assert settings == defaults
    given: dict[str, Any] = {
        "dimensions": 64,
        "instruct": "Find it",
        "long_text": "average",
        "timeout": 7.0,
        "max_retries": 1,
        "max_concurrency": 2,
        "requests_per_minute": 3.0,
        "tokens_per_minute": 4.0,
        "tokens_per_request": 5,
        "batch_size": 6,
    }
    host: dict[str, Any] = {"region": "ap-southeast-1", "workspace": "ws-1", "api_key": "sk-x"}
    made = adapter.model_validate({**host, **given, "default_headers": {"x-tenant": "42"}}).client.settings
    assert {name: getattr(made, name) for name in given} == given
    assert made.address.host == "ws-1.ap-southeast-1.maas.aliyuncs.com"
    assert made.headers == (("x-tenant", SecretStr("42")),)
