"""What is taken as texts, what is refused with what to pass instead, and how the refused texts are found again."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import pickle
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import AsyncCalls, SyncCalls, client_for

from dashscope_embeddings import (
    AuthenticationError,
    BadReply,
    BadRequestError,
    ConnectionFailed,
    DashScopeError,
    Embedding,
    EmbeddingClient,
    InvalidInput,
    QuotaError,
    RateLimitError,
    ServerError,
    ServiceError,
    SparseVector,
)
from dashscope_embeddings.emulator import Emulator, faults, in_process
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings
from dashscope_embeddings.llama_index import DashScopeEmbedding, DashScopeSparseEmbedding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

np, pd, pl, pa = map(pytest.importorskip, ("numpy", "pandas", "polars", "pyarrow"))

TWO = ["one", "二"]
FRAME = {"text": TWO}


SETTINGS: dict[str, Any] = {"base_url": "emulator", "dimensions": 64}
_client = EmbeddingClient(**SETTINGS)


def _embed(texts: Any) -> list[list[float]]:
    return _client.embed(texts).dense


def _aembed(texts: Any) -> list[list[float]]:
    return asyncio.run(_client.aembed(texts)).dense


def _stream(texts: Any) -> list[Any]:
    return [found.dense for found in _client.stream(texts)]


def _langchain(texts: Any) -> list[list[float]]:
    return DashScopeEmbeddings(**SETTINGS).embed_documents(texts)


def _llama_index(texts: Any) -> list[list[float]]:
    return DashScopeEmbedding(**SETTINGS).get_text_embedding_batch(texts)


def _sparse(texts: Any) -> Any:
    return DashScopeSparseEmbeddings(**SETTINGS).embed_documents(texts)


def _llama_index_sparse(texts: Any) -> Any:
    return DashScopeSparseEmbedding(**SETTINGS).encode_documents(texts)


ways = pytest.mark.parametrize(
    "way", [_embed, _aembed, _stream, _langchain, _llama_index, _sparse, _llama_index_sparse]
)


# --- columns -----------------------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize(
    "column",
    [
        pd.Series(TWO),
        pd.Series(TWO, index=[7, 3], dtype="category"),
        pd.Index(TWO),
        pl.Series(TWO),
        np.array(TWO),
        np.array(TWO, dtype=object),
        pa.array(TWO),
        pa.array(TWO).dictionary_encode(),
        pa.chunked_array([TWO[:1], TWO[1:]]),
        dict.fromkeys(TWO).keys(),
        {1: TWO[0], 0: TWO[1]}.values(),
    ],
    ids=lambda column: f"{type(column).__module__.split('.')[0]}-{type(column).__name__}",
)
def test_a_column_of_strings_is_taken_in_its_order(way: Callable[[Any], Any], column: Any) -> None:
    assert way(column) == way(TWO)


@ways
@pytest.mark.parametrize(
    ("source", "instead"),
    [
        (pd.DataFrame(FRAME), r'which would give its columns: .*df\["text"\]\.tolist\(\)'),
        (pl.DataFrame(FRAME), r'df\["text"\]\.tolist\(\)'),
        (pa.table(FRAME), r'df\["text"\]\.tolist\(\)'),
        ({"a": "one"}, r"which would give its keys: pass list\(d\.values\(\)\)"),
        (set(TWO), r"whose order is not fixed: pass sorted\(s\), or a list"),
        (frozenset(TWO), r"pass sorted\(s\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_give_other_strings_than_its_texts_is_refused_with_what_to_pass(
    way: Callable[[Any], Any], source: Any, instead: str
) -> None:
    with pytest.raises(InvalidInput, match=f"not {type(source).__name__}.*{instead}"):
        way(source)


@pytest.mark.parametrize("way", [_embed, _aembed, _stream])
def test_a_path_and_an_asynchronous_iterable_are_told_what_takes_them(way: Callable[[Any], Any]) -> None:
    with pytest.raises(InvalidInput, match=r'pass open\(path, encoding="utf-8"\).*read_text'):
        way(Path("texts.txt"))
    if way is not _aembed:

        async def texts() -> AsyncIterator[str]:
            yield "one"

        with pytest.raises(InvalidInput, match="use aembed or astream"):
            way(texts())


# --- single texts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty or blank"),
        (" \n\t　", "is empty or blank"),
        ("ab\ud800", "a lone surrogate at character 2"),
        ("ab\ud83d\ude00", "a surrogate pair at character 2"),
        ("secret " * 40_000, "280000 characters"),
        (["x"], "is list, not a string"),
        *(
            (missing, r"is missing \(None or NaN\): leave it out, or fill it with a text")
            for missing in (None, float("nan"), np.float32("nan"), Decimal("NaN"), pd.NA, pd.NaT)
        ),
        (7, r"is int, not a string: embed str\(…\) of it"),
        (np.int64(7), r"is int64, not a string: embed str\(…\) of it"),
        (b"one", r"is bytes, not a string: decode it"),
        ({"text": "one"}, "is dict, not a string: embed the field that holds its text"),
    ],
)
def test_a_bad_text_is_named_before_anything_is_sent_and_told_what_mends_it(text: object, said: str) -> None:
    before = in_process().requests
    with pytest.raises(InvalidInput, match=f"^text 1 .*{said}.*; nothing was sent$") as caught:
        _embed(["good", text, "good"])
    assert caught.value.failed == [1]
    assert re.search(said, caught.value.reasons[1])
    assert caught.value.refused[1] is text
    assert "secret" not in str(caught.value)
    assert in_process().requests == before


class CaseInsensitive(str):
    """Equal to strings that are written otherwise."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return str(other).lower() == self.lower()

    def __hash__(self) -> int:
        return hash(self.lower())


@ways
def test_texts_that_are_equal_only_by_their_class_have_their_own_vectors(way: Callable[[Any], Any]) -> None:
    assert way([CaseInsensitive("One"), CaseInsensitive("ONE")]) == way(["One", "ONE"])


def test_a_scalar_of_numpy_is_one_text() -> None:
    scalar, embeddings = np.array(TWO)[1], DashScopeEmbeddings(**SETTINGS)
    assert _embed(scalar) == _embed("二")
    assert embeddings.embed_query(scalar) == embeddings.embed_query("二")


# --- which text it was -------------------------------------------------------------------------------------

BAD = "something IMPROPER"


@pytest.fixture
def blocking(emulator: Emulator) -> Emulator:
    emulator.faults = [faults.Blocked(match="IMPROPER")]
    return emulator


@pytest.mark.parametrize(
    "ask",
    [
        SyncCalls().embed,
        functools.partial(SyncCalls().embed, array=True),
        AsyncCalls().embed,
        SyncCalls().stream,
        AsyncCalls().stream,
    ],
    ids=["embed", "array", "aembed", "stream", "astream"],
)
def test_the_error_holds_the_texts_that_the_service_refused(blocking: Emulator, ask: Callable[..., Any]) -> None:
    texts = [f"text {i}" for i in range(12)]
    texts[3] = BAD
    with pytest.raises(BadRequestError) as caught:
        ask(client_for(blocking), texts)
    assert caught.value.refused == {3: BAD}
    assert caught.value.reasons.keys() == caught.value.refused.keys()


def test_a_query_and_a_long_text_that_are_refused_are_held_as_they_were_given(blocking: Emulator) -> None:
    with pytest.raises(BadRequestError) as caught:
        client_for(blocking).embed(BAD, text_type="query")
    assert caught.value.refused == {0: BAD}
    long = f"{BAD} {'word ' * 40_000}"
    with pytest.raises(BadRequestError) as caught:
        client_for(blocking, long_text="average").embed(["good", long])
    assert caught.value.refused == {1: long}


def test_a_slice_of_a_store_tells_the_text_itself(blocking: Emulator) -> None:
    pytest.importorskip("langchain_classic")
    from langchain_classic.embeddings import CacheBackedEmbeddings  # noqa: PLC0415 - may be missing
    from langchain_core.stores import InMemoryByteStore  # noqa: PLC0415 - goes with it

    inner = DashScopeEmbeddings(api_key="sk-made-up", http_client=httpx.Client(transport=blocking.transport()))
    cached = CacheBackedEmbeddings.from_bytes_store(inner, InMemoryByteStore(), namespace="n", key_encoder="sha256")
    texts = [f"text {i}" for i in range(30)]
    cached.embed_documents(texts[:20])
    texts[25] = BAD
    with pytest.raises(BadRequestError) as caught:
        cached.embed_documents(texts)
    assert [*caught.value.refused.values()] == [BAD]


def test_a_linked_pair_and_a_cache_count_refused_texts_as_their_caller_does(blocking: Emulator) -> None:
    from llama_index.core.storage.kvstore import SimpleKVStore  # noqa: PLC0415 - slow to load

    http = httpx.Client(transport=blocking.transport())
    model = DashScopeEmbedding(api_key="sk-made-up", http_client=http, embeddings_cache=SimpleKVStore())
    texts = [f"text {i}" for i in range(30)]
    model.get_text_embedding_batch(texts[:20])
    texts[25] = BAD
    with pytest.raises(BadRequestError) as caught:
        model.get_text_embedding_batch(texts)
    assert caught.value.refused == {25: BAD}


def test_who_is_told_of_refused_texts_gets_each_with_its_text(blocking: Emulator) -> None:
    reported: dict[int, DashScopeError] = {}
    texts = ["one", BAD, "", BAD, "two"]
    found = list(client_for(blocking).stream(texts, refused=reported.__setitem__))
    assert [embedding.index for embedding in found] == [0, 4]
    assert {index: error.refused for index, error in reported.items()} == {i: {i: texts[i]} for i in (1, 2, 3)}


def test_a_refused_text_is_in_no_message_log_or_pickle(blocking: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with pytest.raises(BadRequestError) as caught:
        client_for(blocking).embed(["good", BAD])
    error = caught.value
    assert error.refused == {1: BAD}
    for shown in (str(error), repr(error), str(error.args), repr(vars(error)), repr(error.__reduce__()), caplog.text):
        assert "IMPROPER" not in shown
    assert b"IMPROPER" not in pickle.dumps(error)
    assert pickle.loads(pickle.dumps(error)).refused == {}  # noqa: S301 - our own
    assert copy.copy(error).refused == error.copy().refused == {}


# --- errors in other hands ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        InvalidInput,
        ServiceError,
        AuthenticationError,
        QuotaError,
        RateLimitError,
        BadRequestError,
        ServerError,
        ConnectionFailed,
        BadReply,
    ],
)
def test_an_error_that_is_rebuilt_from_its_args_keeps_its_type_and_its_words(kind: type[DashScopeError]) -> None:
    facts = {"status": 429, "code": "Throttling", "retry_after": 3.0} if issubclass(kind, ServiceError) else {}
    error = kind("the words", request_id="r-1", **facts)
    error.set_affected([3], 7)
    error.partial = {0: [0.5, 0.5], 2: Embedding(2, [1.0], SparseVector([7], [0.5], ["x"]))}
    error.failed, error.reasons = [1], {1: "is blank"}
    error.add_hint("Do this")
    again = type(error)(*json.loads(json.dumps(error.args)))
    assert type(again) is kind
    assert str(again) == str(error) == "text 3 of 7: the words. Do this (request id r-1)"
    for same in (error, again, pickle.loads(pickle.dumps(error)), error.copy()):  # noqa: S301 - our own
        assert same.args == (str(error),)
        assert repr(same) == f"{kind.__name__}({str(error)!r})"
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own
        assert vars(same) == vars(error)


def test_an_error_that_another_class_wraps_keeps_what_it_carries(blocking: Emulator) -> None:
    """As Ray's errors do: of both classes, with the attributes of the wrapped one."""
    with pytest.raises(BadRequestError) as caught:
        client_for(blocking).embed(["good", BAD])

    class WrappingError(RuntimeError, BadRequestError):
        def __init__(self, cause: Exception) -> None:
            self.cause = cause
            self.own_args = (cause,)

        @property
        def args(self) -> tuple[Any, ...]:
            return self.own_args

        @args.setter
        def args(self, value: tuple[Any, ...]) -> None:
            self.own_args = value

        def __getattr__(self, name: str) -> Any:
            return getattr(self.cause, name)

    wrapped = WrappingError(caught.value)
    assert wrapped.args == (caught.value,)
    for name in ("message", "request_id", "partial", "failed", "reasons", "refused", "status", "code"):
        assert getattr(wrapped, name) == getattr(caught.value, name)


# --- an array that is not whole ----------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["dense", "dense&sparse"])
def test_what_arrived_of_an_array_is_lists_and_crosses_processes(blocking: Emulator, output: Any) -> None:
    texts = ["one", BAD, "two", "one"]
    with pytest.raises(BadRequestError) as caught:
        client_for(blocking, dimensions=64).embed(texts, output=output, array=True)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own
    assert sorted(again.partial) == [0, 2, 3]
    for index, found in again.partial.items():
        dense = found if output == "dense" else found.dense
        assert type(dense) is list
        assert dense == pytest.approx(Emulator().dense(texts[index], dimension=64), abs=1e-6)
        assert output == "dense" or found.sparse.indices
