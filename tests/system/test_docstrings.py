"""What an editor shows on hovering: ruff wants a docstring everywhere, these say what a number of it means."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

import pytest

import dashscope_embeddings
from dashscope_embeddings import EmbeddingClient, corpus, emulator
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings
from dashscope_embeddings.llama_index import DashScopeEmbedding

if TYPE_CHECKING:
    from collections.abc import Callable

ASKED = {
    EmbeddingClient: ["embed"],
    DashScopeEmbeddings: ["embed_documents", "embed_query"],
    DashScopeSparseEmbeddings: ["embed_documents"],
    DashScopeEmbedding: ["get_query_embedding", "get_text_embedding", "get_text_embedding_batch"],
}
METHODS = [
    pytest.param(getattr(cls, name), id=f"{cls.__name__}.{name}") for cls, names in ASKED.items() for name in names
]
TWINS = [
    pytest.param(getattr(cls, f"a{name}"), name, id=f"{cls.__name__}.a{name}")
    for cls, names in {**ASKED, EmbeddingClient: ["embed", "stream"]}.items()
    for name in names
]


@pytest.mark.parametrize("method", METHODS)
def test_what_embeds_says_the_shape_of_what_it_gives(method: Callable[..., object]) -> None:
    assert re.search(r"shape \(texts, dimensions\)|`dimensions` floats|indices ascending", inspect.getdoc(method) or "")


@pytest.mark.parametrize(("method", "name"), TWINS)
def test_an_asynchronous_twin_names_the_one_that_tells_the_rest(method: Callable[..., object], name: str) -> None:
    assert f"`{name}`" in (inspect.getdoc(method) or "")


@pytest.mark.parametrize("module", [dashscope_embeddings, corpus, emulator], ids=lambda module: module.__name__)
def test_every_public_class_and_function_tells_what_it_is_in_its_own_words(module: object) -> None:
    silent = []
    for name in module.__all__:  # type: ignore[attr-defined]
        found = getattr(module, name)
        # Not what a dataclass writes by itself: its signature.
        if (inspect.isclass(found) or inspect.isroutine(found)) and (found.__doc__ or f"{name}(").startswith(
            f"{name}("
        ):
            silent.append(name)
    assert silent == []
