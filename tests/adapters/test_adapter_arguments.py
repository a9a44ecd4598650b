"""Arguments of the adapters: slips are answered with what was meant, and equal ones make equal objects."""

from __future__ import annotations

import asyncio
import copy
import pickle
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import KEY
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.stores import InMemoryByteStore
from llama_index.core.storage.kvstore import SimpleKVStore
from pydantic import ValidationError

from dashscope_embeddings import InvalidInput
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings
from dashscope_embeddings.llama_index import DashScopeEmbedding, DashScopeSparseEmbedding

if TYPE_CHECKING:
    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

KINDS: dict[str, Any] = {
    "langchain": DashScopeEmbeddings,
    "langchain sparse": DashScopeSparseEmbeddings,
    "llama_index": DashScopeEmbedding,
    "llama_index sparse": DashScopeSparseEmbedding,
}
every_kind = pytest.mark.parametrize("kind", KINDS)

# --- slips -------------------------------------------------------------------------------------------------

EVERYWHERE = {
    "dimenson": "dimension",
    "chunk_sise": "chunk_size",
    "max_retry": "max_retries",
    "output_dimensionality": "dimensions",
    "endpoint": "base_url",
    "openai_api_key": "api_key",
    "Instruct": "instruct",
    "rpm": "requests_per_minute",
}
SLIPS = [(kind, slip, meant) for kind in KINDS for slip, meant in EVERYWHERE.items()] + [
    ("langchain", "model_name", "model"),
    ("langchain", "input_type", "text_type"),
    ("langchain", "embed_batch_size", "batch_size"),
    ("langchain", "cache", "embeddings_cache"),
    ("langchain", "show_progress", "show_progress_bar"),
    ("langchain", "progress", "show_progress_bar"),
    ("langchain", "num_workers", "max_concurrency"),
    ("llama_index", "input_type", "text_type"),
    ("llama_index", "deployment", "model_name"),
    ("llama_index", "headers", "default_headers"),
]


@pytest.mark.parametrize(("kind", "slip", "meant"), SLIPS)
def test_a_misspelt_or_foreign_argument_is_answered_with_the_one_that_was_meant(
    kind: str, slip: str, meant: str
) -> None:
    with pytest.raises(
        ValidationError, match=rf"{slip}\n  Extra inputs are not permitted: is {meant} meant\?"
    ) as caught:
        KINDS[kind](base_url="emulator", **{slip: "a value"})
    assert "a value" not in f"{caught.value} {caught.value.errors()}"


@every_kind
def test_all_wrong_arguments_are_named_at_once_and_no_guess_is_made_without_a_reason(kind: str) -> None:
    with pytest.raises(ValidationError, match=r"not permitted \[type=extra_forbidden") as caught:
        KINDS[kind](base_url="emulator", nonsense=1, dimenson=2)
    assert [error["loc"] for error in caught.value.errors()] == [("nonsense",), ("dimenson",)]


@pytest.mark.parametrize("kind", ["langchain", "llama_index"])
def test_two_names_of_one_setting_are_reported_as_such(kind: str) -> None:
    with pytest.raises(ValidationError, match=r"dimension\n.*another name of dimensions"):
        KINDS[kind](base_url="emulator", dimension=64, dimensions=128)


def test_a_copy_with_a_misspelt_change_says_which_was_meant() -> None:
    with pytest.raises(InvalidInput, match="dimenson is none: is dimensions meant"):
        DashScopeEmbeddings(base_url="emulator").model_copy(update={"dimenson": 64})


@pytest.mark.parametrize("second", ["sk-0123456789abcdef0123456789abcdef", "sk-short", "a-key-of-a-gateway"])
def test_a_key_as_llama_indexs_second_argument_is_reported_as_what_it_is(second: Any) -> None:
    with pytest.raises(InvalidInput, match=r"text_type.*api_key=") as caught:
        DashScopeEmbedding("text-embedding-v4", second)
    shown: Any = caught.value.__traceback__
    while shown is not None:
        ours = (
            "dashscope_embeddings" in shown.tb_frame.f_code.co_filename
            and "tests" not in shown.tb_frame.f_code.co_filename
        )
        assert not ours or second not in repr(shown.tb_frame.f_locals)
        shown = shown.tb_next
    assert second not in f"{caught.value!r} {vars(caught.value)}"


# --- roles -------------------------------------------------------------------------------------------------


def test_langchains_class_takes_the_role_of_documents_for_symmetric_tasks(served: Server, emulator: Emulator) -> None:
    embeddings = DashScopeEmbeddings(api_key=KEY, base_url=served.url, text_type="query", instruct="find twins")
    twin = embeddings.embed_documents(["a"])[0]
    assert asyncio.run(embeddings.aembed_documents(["a"])) == [twin]
    assert embeddings.embed_query("a") == twin
    assert {asked.text_type for asked in emulator.asked} == {"query"}
    plain = DashScopeEmbeddings(api_key=KEY, base_url=served.url, instruct="find twins")
    assert embeddings.cache_namespace != plain.cache_namespace


def test_a_paired_sparse_adapter_follows_the_role_of_its_dense_one(served: Server, emulator: Emulator) -> None:
    dense = DashScopeEmbeddings(api_key=KEY, base_url=served.url, text_type="query")
    sparse = DashScopeSparseEmbeddings(dense)
    dense.embed_documents(["a", "b"])
    sparse.embed_documents(["a", "b"])
    assert [asked.text_type for asked in emulator.asked] == ["query"]


# --- equal settings ----------------------------------------------------------------------------------------


@every_kind
def test_equal_settings_are_equal_and_find_what_was_cached_for_them(kind: str) -> None:
    def made(**settings: Any) -> Any:
        return KINDS[kind](api_key=KEY, base_url="https://gateway.example", **settings)

    @lru_cache
    def index(embeddings: Any) -> object:
        assert embeddings is not None
        return object()

    one, other = made(default_headers={"x-tenant": "42"}), made(default_headers={"x-tenant": "42"})
    assert one == other
    assert hash(one) == hash(other)
    assert index(one) is index(other)
    for changed in (
        made(),
        made(default_headers={"x-tenant": "43"}),
        KINDS[kind](api_key="sk-another", base_url="https://gateway.example", default_headers={"x-tenant": "42"}),
        made(default_headers={"x-tenant": "42"}, dimensions=64),
        made(default_headers={"x-tenant": "42"}, timeout=5.0),
        "text-embedding-v4",
        None,
    ):
        assert one != changed
    assert KEY not in repr((one, hash(one)))


@every_kind
def test_what_is_made_of_the_settings_later_changes_nothing(kind: str) -> None:
    one, used = KINDS[kind](base_url="emulator"), KINDS[kind](base_url="emulator")
    use = used.embed_query if kind.startswith("langchain") else used.get_query_embedding
    use("a")
    unpickled = pickle.loads(pickle.dumps(one))  # noqa: S301 - our own
    for other in (used, unpickled, copy.copy(one), copy.deepcopy(one)):
        assert one == other
        assert hash(one) == hash(other)


def test_objects_of_the_user_are_the_same_or_differ() -> None:
    store, limiter, kv = InMemoryByteStore(), InMemoryRateLimiter(), SimpleKVStore()

    def langchain(**more: Any) -> DashScopeEmbeddings:
        return DashScopeEmbeddings(base_url="emulator", **more)

    def llama_index(**more: Any) -> DashScopeEmbedding:
        return DashScopeEmbedding(base_url="emulator", **more)

    assert langchain(embeddings_cache=store, rate_limiter=limiter) == langchain(
        embeddings_cache=store, rate_limiter=limiter
    )
    assert langchain(embeddings_cache=store) != langchain(embeddings_cache=InMemoryByteStore())
    used = llama_index(embeddings_cache=kv, rate_limiter=limiter)
    used.get_query_embedding("a")
    assert used == llama_index(embeddings_cache=kv, rate_limiter=limiter)
    assert used != llama_index(embeddings_cache=SimpleKVStore(), rate_limiter=limiter)
    assert used != llama_index(embeddings_cache=kv)


def test_a_setting_of_a_class_of_the_users_own_counts_too() -> None:
    class Prefixed(DashScopeEmbeddings):
        prefix: str = ""

    assert Prefixed(base_url="emulator", prefix="a") == Prefixed(base_url="emulator", prefix="a")
    assert Prefixed(base_url="emulator", prefix="a") != Prefixed(base_url="emulator", prefix="b")
    assert Prefixed(base_url="emulator") != DashScopeEmbeddings(base_url="emulator")


def test_pairs_with_equal_dense_adapters_are_equal() -> None:
    dense = DashScopeEmbeddings(base_url="emulator")
    assert DashScopeSparseEmbeddings(dense) == DashScopeSparseEmbeddings(dense)
    assert DashScopeSparseEmbeddings(dense) != DashScopeSparseEmbeddings(base_url="emulator")
