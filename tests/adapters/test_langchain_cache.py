"""LangChain's class with a store of its own: what was paid for is in it, however the call ended."""

from __future__ import annotations

import asyncio
import copy
import pickle
import struct
import threading
from array import array
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import KEY, client_for
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.storage import LocalFileStore
from langchain_core.stores import BaseStore, InMemoryByteStore
from llama_index.core.storage.kvstore import SimpleKVStore

from dashscope_embeddings import BadRequestError, InvalidInput
from dashscope_embeddings.emulator.faults import Blocked, Status
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

TEXTS = [f"text number {i}" for i in range(45)]
Store = BaseStore[str, bytes]
WAYS = pytest.mark.parametrize("way", ["sync", "async"])


class Remote(BaseStore[str, bytes]):
    """A store as a database is one: a lock that no pickle carries, and methods that fail when it is away."""

    def __init__(self, *, reads: bool = True, writes: bool = True) -> None:
        self.lock = threading.Lock()
        self.entries: dict[str, bytes] = {}
        self.reads, self.writes = reads, writes
        self.calls: list[str] = []

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        self.calls.append("mget")
        if not self.reads:
            raise ConnectionError("redis://:secret@host is away")
        return [self.entries.get(key) for key in keys]

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        self.calls.append("mset")
        if not self.writes:
            raise ConnectionError("redis://:secret@host is away")
        self.entries.update(key_value_pairs)

    async def amget(self, keys: Sequence[str]) -> list[bytes | None]:
        self.calls.append("amget")
        return [self.entries.get(key) for key in keys]

    async def amset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        self.calls.append("amset")
        self.entries.update(key_value_pairs)

    def mdelete(self, keys: Sequence[str]) -> None:
        raise NotImplementedError

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        del prefix
        return iter(self.entries)


def made(served: Server, store: object, **settings: Any) -> DashScopeEmbeddings:
    return DashScopeEmbeddings(**{"api_key": KEY, "base_url": served.url, "embeddings_cache": store, **settings})


def documents(embeddings: DashScopeEmbeddings, texts: list[str], way: str) -> list[list[float]]:
    if way == "sync":
        return embeddings.embed_documents(texts)
    return asyncio.run(embeddings.aembed_documents(texts))


def query(embeddings: DashScopeEmbeddings, text: str, way: str) -> list[float]:
    return embeddings.embed_query(text) if way == "sync" else asyncio.run(embeddings.aembed_query(text))


def float32(vector: list[float]) -> list[float]:
    return list(array("f", vector))


@WAYS
@pytest.mark.parametrize("kind", [InMemoryByteStore, LocalFileStore, Remote])
def test_a_text_that_was_embedded_once_is_not_asked_for_again(
    served: Server, emulator: Emulator, tmp_path: Path, kind: Any, way: str
) -> None:
    store = kind(tmp_path) if kind is LocalFileStore else kind()
    first = documents(made(served, store), [*TEXTS, TEXTS[3]], way)
    asked = query(made(served, store), TEXTS[3], way)
    assert (emulator.requests, emulator.billed_texts) == (6, 46)
    again = made(served, store)
    assert documents(again, [TEXTS[7], "new", *TEXTS], way) == [first[7], float32(emulator.dense("new")), *first[:-1]]
    assert query(again, TEXTS[3], way) == asked == float32(emulator.dense(TEXTS[3], text_type="query"))
    assert first == [float32(emulator.dense(text)) for text in [*TEXTS, TEXTS[3]]]
    assert emulator.billed_texts == 47
    assert again.usage.texts == 1
    assert all(type(number) is float for number in asked)


def test_asynchronous_calls_use_the_stores_asynchronous_methods(served: Server) -> None:
    store = Remote()
    documents(made(served, store), TEXTS[:2], "async")
    query(made(served, store), "a", "async")
    assert set(store.calls) == {"amget", "amset"}


def test_an_entry_is_float32_and_four_bytes_that_check_it(served: Server, emulator: Emulator) -> None:
    store = Remote()
    documents(made(served, store), ["a"], "sync")
    [value] = store.entries.values()
    assert list(struct.unpack("<1024f", value[:-4])) == float32(emulator.dense("a"))
    assert len(value) == 4 * 1024 + 4


@pytest.mark.parametrize(
    "change",
    [
        {"model": "text-embedding-v3"},
        {"dimensions": 64},
        {"instruct": "find code"},
        {"long_text": "truncate"},
        {"protocol": "openai"},
        {"text_type": "query"},
        {"base_url": "emulator"},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.filterwarnings("ignore:protocol=.openai. does not distinguish:UserWarning")
def test_one_store_serves_other_settings_without_a_wrong_vector(served: Server, change: dict[str, Any]) -> None:
    store = Remote()
    first = made(served, store)
    first.embed_documents(["a"])
    first.embed_query("a")
    other, bare = made(served, store, **change), made(served, None, **change)
    assert other.embed_query("a") == float32(bare.embed_query("a"))
    assert other.embed_documents(["a"]) == [float32(bare.embed_documents(["a"])[0])]
    assert first.embed_documents(["a"]) == [float32(made(served, None).embed_documents(["a"])[0])]


def test_a_copy_with_other_settings_shares_the_store_and_none_of_its_vectors(
    served: Server, emulator: Emulator
) -> None:
    first = made(served, Remote())
    first.embed_documents(["a"])
    small = first.model_copy(update={"dimensions": 64})
    assert small.embeddings_cache is first.embeddings_cache
    assert small.embed_documents(["a"]) == [float32(emulator.dense("a", dimension=64))]


# --- however the call ends ---------------------------------------------------------------------------------


@WAYS
def test_after_a_refused_text_the_others_are_in_the_store(served: Server, emulator: Emulator, way: str) -> None:
    emulator.faults = [Blocked(match="number 33")]
    store = Remote()
    embeddings = made(served, store)
    documents(embeddings, TEXTS[:5], way)
    with pytest.raises(BadRequestError, match="text 33 of 45") as caught:
        documents(embeddings, TEXTS, way)
    assert caught.value.failed == [33]
    assert sorted(caught.value.partial) == [i for i in range(45) if i != 33]
    assert caught.value.partial[44] == pytest.approx(emulator.dense(TEXTS[44]))
    assert len(store.entries) == emulator.billed_texts == 44
    mended = [*TEXTS[:33], "mended", *TEXTS[34:]]
    assert documents(embeddings, mended, way) == [float32(emulator.dense(text)) for text in mended]
    assert emulator.billed_texts == 45


@WAYS
def test_after_a_failure_in_the_middle_what_arrived_is_in_the_store(
    served: Server, emulator: Emulator, way: str
) -> None:
    emulator.faults = [Status(400, code="Arrearage", after=2, times=99)]
    store = Remote()
    with pytest.raises(Exception, match="Arrearage") as caught:
        documents(made(served, store, max_concurrency=1), TEXTS, way)
    assert len(store.entries) == emulator.billed_texts == len(caught.value.partial) == 20  # type: ignore[attr-defined]


def test_after_an_interrupt_what_arrived_is_in_the_store(emulator: Emulator) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if emulator.requests == 2:
            raise KeyboardInterrupt
        return emulator(request)

    store = Remote()
    http = httpx.Client(transport=httpx.MockTransport(answer))
    embeddings = DashScopeEmbeddings(api_key=KEY, max_concurrency=1, http_client=http, embeddings_cache=store)
    with pytest.raises(KeyboardInterrupt) as caught:
        embeddings.embed_documents(TEXTS)
    assert len(store.entries) == len(caught.value.partial) == 20  # type: ignore[attr-defined]
    assert caught.value.failed == list(range(20, 45))  # type: ignore[attr-defined]


def test_after_a_cancellation_what_arrived_is_in_the_store(emulator: Emulator) -> None:
    store = Remote()

    async def run() -> None:
        reached = asyncio.Event()

        async def answer(request: httpx.Request) -> httpx.Response:
            if emulator.requests == 2:
                reached.set()
                await asyncio.Event().wait()
            return emulator(request)

        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            embeddings = DashScopeEmbeddings(
                api_key=KEY, max_concurrency=1, http_async_client=http, embeddings_cache=store
            )
            task = asyncio.create_task(embeddings.aembed_documents(TEXTS))
            await reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert len(store.entries) == emulator.billed_texts == 20


@WAYS
@pytest.mark.parametrize("linked", [False, True])
def test_replies_are_in_the_store_before_the_call_ends(emulator: Emulator, way: str, linked: bool) -> None:  # noqa: FBT001
    store = Remote()
    seen: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(len(store.entries))
        return emulator(request)

    transport = httpx.MockTransport(answer)
    embeddings = DashScopeEmbeddings(
        api_key=KEY,
        max_concurrency=1,
        http_client=httpx.Client(transport=transport),
        http_async_client=httpx.AsyncClient(transport=transport),
        embeddings_cache=store,
    )
    sparse = DashScopeSparseEmbeddings(embeddings) if linked else None
    documents(embeddings, [f"text number {i}" for i in range(200)], way)
    assert seen[-1] >= 100
    assert len(store.entries) == 200
    assert (sparse is not None) == linked


def test_a_blank_text_is_refused_by_its_place_in_the_whole_call_and_nothing_is_sent(
    served: Server, emulator: Emulator
) -> None:
    embeddings = made(served, Remote())
    embeddings.embed_documents(TEXTS[:3])
    with pytest.raises(InvalidInput, match="3") as caught:
        embeddings.embed_documents([*TEXTS[:3], " ", "new"])
    assert caught.value.failed == [3]
    assert emulator.requests == 1


# --- stores that are damaged, away, or none ----------------------------------------------------------------

DAMAGE: dict[str, Callable[[bytes], Any]] = {
    "cut": lambda value: value[:-1],
    "cut by whole numbers": lambda value: value[:2048],
    "empty": lambda _: b"",
    "another program's": lambda _: b"[0.1, 0.2]",
    "of another width": lambda value: value[:256] + value[-4:],
    "a block of zeros": lambda value: value[:512] + bytes(512) + value[1024:],
    "a block of ones": lambda value: value[:512] + b"\xff" * 512 + value[1024:],
    "one bit": lambda value: bytes([value[0] ^ 1]) + value[1:],
    "no bytes": lambda value: value.hex(),
}


@WAYS
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_asked_for_again_and_mended(
    served: Server, emulator: Emulator, damage: str, way: str
) -> None:
    store = Remote()
    right = documents(made(served, store), TEXTS[:3], way)
    key = list(store.entries)[1]
    store.entries[key] = DAMAGE[damage](store.entries[key])
    for _ in range(2):
        assert documents(made(served, store), TEXTS[:3], way) == right
        assert emulator.billed_texts == 4


def test_entries_that_changed_places_are_not_believed(served: Server, emulator: Emulator) -> None:
    store = Remote()
    right = made(served, store).embed_documents(TEXTS[:2])
    one, other = store.entries
    store.entries[one], store.entries[other] = store.entries[other], store.entries[one]
    assert made(served, store).embed_documents(TEXTS[:2]) == right
    assert emulator.billed_texts == 4


def test_a_store_that_cannot_be_written_costs_no_vectors_and_warns_once(served: Server, emulator: Emulator) -> None:
    embeddings = made(served, Remote(writes=False))
    with pytest.warns(UserWarning, match=r"could not be written \(ConnectionError\)") as caught:
        vectors = embeddings.embed_documents(TEXTS)
    embeddings.embed_query("a")
    assert vectors == [float32(emulator.dense(text)) for text in TEXTS]
    assert len(caught) == 1
    assert "secret" not in str(caught[0].message)


def test_a_store_that_comes_back_during_a_call_gets_all_of_it(served: Server) -> None:
    class Recovering(Remote):
        def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
            try:
                super().mset(key_value_pairs)
            finally:
                self.writes = True

    store = Recovering(writes=False)
    with pytest.warns(UserWarning, match="could not be written"):
        made(served, store).embed_documents(TEXTS)
    assert len(store.entries) == 45
    assert store.calls == ["mget", "mset", "mset"]


def test_a_store_that_cannot_be_read_is_done_without(served: Server, emulator: Emulator) -> None:
    with pytest.warns(UserWarning, match=r"could not be read \(ConnectionError\)"):
        assert made(served, Remote(reads=False)).embed_query("a") == float32(emulator.dense("a", text_type="query"))


@pytest.mark.parametrize("wrong", [{}, SimpleKVStore(), "folder"], ids=lambda wrong: type(wrong).__name__)
def test_what_is_no_store_of_bytes_is_refused_with_one_that_is(wrong: Any) -> None:
    with pytest.raises(InvalidInput, match=rf"BaseStore.*not {type(wrong).__name__}.*LocalFileStore"):
        DashScopeEmbeddings(base_url="emulator", embeddings_cache=wrong)


# --- beside everything else --------------------------------------------------------------------------------


@WAYS
def test_of_a_linked_pair_dense_comes_from_the_store_and_sparse_is_asked_for(
    served: Server, emulator: Emulator, way: str
) -> None:
    store = Remote()
    documents(made(served, store), TEXTS[:10], way)
    query(made(served, store), "a", way)
    emulator.clear()
    dense = made(served, store)
    sparse = DashScopeSparseEmbeddings(dense)
    assert documents(dense, TEXTS[:15], way) == [float32(emulator.dense(text)) for text in TEXTS[:15]]
    assert query(dense, "a", way) == float32(emulator.dense("a", text_type="query"))
    assert (emulator.requests, emulator.billed_texts) == (1, 5)
    rows = sparse.embed_documents(TEXTS[:15])
    row = sparse.embed_query("a")
    alone = DashScopeSparseEmbeddings(api_key=KEY, base_url=served.url)
    assert (emulator.requests, emulator.billed_texts) == (3, 16)
    assert rows == alone.embed_documents(TEXTS[:15])
    assert row == alone.embed_query("a")


def test_langchains_own_cache_keeps_working_around_it(served: Server, emulator: Emulator) -> None:
    embeddings = made(served, Remote())
    cached = CacheBackedEmbeddings.from_bytes_store(
        embeddings, InMemoryByteStore(), namespace=embeddings.cache_namespace, key_encoder="sha256"
    )
    for _ in range(2):
        assert cached.embed_documents(["a"]) == [float32(emulator.dense("a"))]
    assert emulator.billed_texts == 1


@pytest.mark.parametrize("how", ["pickle", "copy", "deepcopy"])
def test_a_copy_uses_the_same_store(served: Server, emulator: Emulator, tmp_path: Path, how: str) -> None:
    original = made(served, LocalFileStore(tmp_path))
    vectors = original.embed_documents(TEXTS)
    twin: DashScopeEmbeddings = (
        pickle.loads(pickle.dumps(original))  # noqa: S301 - our own
        if how == "pickle"
        else {"copy": copy.copy, "deepcopy": copy.deepcopy}[how](original)
    )
    assert twin.embed_documents(TEXTS) == vectors
    assert emulator.billed_texts == 45


def test_a_store_with_a_lock_is_shared_by_copies_and_refused_by_pickles(served: Server) -> None:
    embeddings = made(served, Remote())
    assert copy.deepcopy(embeddings).embeddings_cache is embeddings.embeddings_cache
    with pytest.raises(InvalidInput, match=r"a Remote cannot move.*LocalFileStore"):
        pickle.dumps(embeddings)


def test_the_store_is_in_no_repr_and_no_dump(served: Server) -> None:
    embeddings = made(served, Remote())
    assert "embeddings_cache" not in f"{embeddings!r} {embeddings.model_dump_json()}"


def test_the_bar_counts_texts_of_the_store_too(served: Server, capsys: pytest.CaptureFixture[str]) -> None:
    embeddings = made(served, Remote(), show_progress_bar=True)
    embeddings.embed_documents(TEXTS[:20])
    capsys.readouterr()
    embeddings.embed_documents(TEXTS)
    assert "45/45" in capsys.readouterr().err


@WAYS
def test_the_refused_text_is_at_hand_under_its_place_in_the_whole_call(
    served: Server, emulator: Emulator, way: str
) -> None:
    embeddings = made(served, Remote())
    documents(embeddings, TEXTS[:20], way)
    emulator.faults = [Blocked(match="number 33")]
    with pytest.raises(BadRequestError) as caught:
        documents(embeddings, TEXTS, way)
    assert caught.value.refused == {33: TEXTS[33]}
    assert TEXTS[33] not in f"{caught.value!r} {vars(caught.value)['reasons']}"


# --- what it is built on: the client tells of vectors as they arrive --------------------------------------


@pytest.mark.parametrize("kind", ["plain function", "coroutine function"])
def test_aembed_passes_vectors_to_the_hook_as_they_arrive_and_awaits_it(emulator: Emulator, kind: str) -> None:
    received: dict[int, list[float]] = {}

    async def later(arrived: dict[int, list[float]]) -> None:
        await asyncio.sleep(0)
        received.update(arrived)

    texts = [f"text {i}" for i in range(25)]
    hook = received.update if kind == "plain function" else later
    found = asyncio.run(client_for(emulator).aembed(texts, on_vectors=hook)).dense
    assert [received[i] for i in range(25)] == found


def test_embed_tells_of_vectors_as_they_arrive_in_the_shape_that_was_asked(emulator: Emulator) -> None:
    received: dict[int, Any] = {}
    found = client_for(emulator).embed(["a", "b", "a"], output="sparse", on_vectors=received.update).sparse
    assert [received[i] for i in range(3)] == found
