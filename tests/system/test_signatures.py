"""What editors, agents and dependency injectors read of a signature, and what a slip in its arguments is answered."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import typing
from typing import TYPE_CHECKING, Any

import pytest

from dashscope_embeddings import EmbeddingClient

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES = ["", ".catalogue", ".check", ".corpus", ".langchain", ".langchain_qdrant", ".llama_index", ".ray_data"]


def public() -> Iterator[Any]:
    for module in (importlib.import_module(f"dashscope_embeddings{name}") for name in MODULES):
        own = [name for name, found in vars(module).items() if getattr(found, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", [name for name in own if not name.startswith("_")]):
            found = getattr(module, name)
            if inspect.isclass(found) or inspect.isfunction(found):
                yield pytest.param(found, id=f"{module.__name__}.{name}")


def methods(kind: type) -> Iterator[tuple[str, Any]]:
    for name in dir(kind):
        found = inspect.getattr_static(kind, name)
        found = getattr(found, "fget", None) or getattr(found, "__func__", None) or found
        ours = (getattr(found, "__module__", None) or "").startswith("dashscope_embeddings")
        if inspect.isfunction(found) and ours and (not name.startswith("_") or name in {"__init__", "__call__"}):
            yield name, found


def trouble(found: Any) -> str | None:
    try:
        typing.get_type_hints(found)
    except (NameError, TypeError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("found", list(public()))
def test_type_hints_of_public_names_can_be_read_at_run_time(found: Any) -> None:
    named = [("", found), *(methods(found) if inspect.isclass(found) else ())]
    unread = {name: said for name, function in named if (said := trouble(function))}
    if found.__name__ == "embed_dataset":  # Ray is loaded by those alone who call it
        assert unread == {"": "name 'Dataset' is not defined"}
    else:
        assert unread == {}


_OWN_CLIENT = "http_client=httpx.Client({0}=…), and for async code http_async_client=httpx.AsyncClient({0}=…)"


def test_the_signature_of_the_client_is_its_own() -> None:
    parameters = inspect.signature(EmbeddingClient).parameters
    assert [*parameters][:3] == ["model", "api_key", "dimensions"]
    assert typing.get_type_hints(EmbeddingClient.embed)["array"] is bool


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("model_name", "model"),
        ("modle", "model"),
        ("input_type", "its embed(…) takes text_type"),
        ("text_type", "its embed(…) takes text_type"),
        ("colour", None),
        ("output", "its embed(…) takes output"),
        ("api_base", "base_url"),
        ("dimensoin", "dimension"),
        ("output_dimensionality", "dimensions"),
        ("embed_batch_size", "batch_size"),
        ("request_timeout", "timeout"),
        ("openai_api_key", "api_key"),
        ("proxies", f"set the environment variable HTTPS_PROXY, or pass {_OWN_CLIENT.format('proxy')}"),
        ("ssl_context", f"set the environment variable SSL_CERT_FILE, or pass {_OWN_CLIENT.format('verify')}"),
    ],
)
def test_a_misspelt_argument_is_answered_with_the_one_that_was_meant(slip: str, meant: str | None) -> None:
    answer = "" if meant is None else f": {meant}" if " " in meant else f": is {meant} meant?"
    with pytest.raises(TypeError) as caught:
        EmbeddingClient(**{slip: "made-up-0123", "base_url": "emulator"})  # type: ignore[arg-type] # the slip
    assert str(caught.value) == f"EmbeddingClient has no argument {slip}{answer}"


@pytest.mark.parametrize("way", ["embed", "stream", "aembed", "astream"])
@pytest.mark.parametrize(
    ("slip", "answer"),
    [
        ("input_type", ": is text_type meant?"),
        ("outptu", ": is output meant?"),
        ("dimenson", ": dimension is set once, EmbeddingClient(dimension=…)"),
        ("api_base", ": base_url is set once, EmbeddingClient(base_url=…)"),
        ("colour", ""),
    ],
)
def test_a_misspelt_argument_of_a_call_is_answered_too(way: str, slip: str, answer: str) -> None:
    call = getattr(EmbeddingClient(base_url="emulator"), way)

    async def awaited() -> None:
        await call(["a text"], **{slip: "made-up-0123"})

    with pytest.raises(TypeError) as caught:
        asyncio.run(awaited()) if way == "aembed" else call(["a text"], **{slip: "made-up-0123"})
    assert str(caught.value) == f"{way}(…) has no argument {slip}{answer}"
    assert inspect.iscoroutinefunction(call) is (way == "aembed")
    assert typing.get_type_hints(call)["text_type"] is not None
