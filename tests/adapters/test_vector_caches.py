"""Caches of both frameworks: what was paid for is in them, however the call ended, and serves no other vector."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import pickle
import struct
import threading
from array import array
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import KEY, client_for
from frameworks import LangChain, LlamaIndex
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.storage import LocalFileStore
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.stores import BaseStore, InMemoryByteStore
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.storage.kvstore import SimpleKVStore

from dashscope_embeddings import BadRequestError, InvalidInput
from dashscope_embeddings.emulator.faults import Blocked, Status
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.llama_index import DashScopeEmbedding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

TEXTS = [f"text number {i}" for i in range(45)]
V3 = "text-embedding-v3"


class ByteStore(BaseStore[str, bytes]):
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
        found = self.mget(keys)
        self.calls[-1] = "amget"
        return found

    async def amset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        self.mset(key_value_pairs)
        self.calls[-1] = "amset"

    def mdelete(self, keys: Sequence[str]) -> None:
        raise NotImplementedError

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        del prefix
        return iter(self.entries)


class KVStore(SimpleKVStore):
    """LlamaIndex's own, which can be away too."""

    def __init__(self, *, reads: bool = True, writes: bool = True, **data: Any) -> None:
        super().__init__(**data)
        self.reads, self.writes = reads, writes

    def get(self, key: str, collection: str = "") -> dict[str, Any] | None:
        if not self.reads:
            raise ConnectionError(f"redis://:secret@host is away: {key} {collection}")
        return super().get(key, collection)

    def put(self, key: str, val: dict[str, Any], collection: str = "") -> None:
        if not self.writes:
            raise ConnectionError(f"redis://:secret@host is away: {key} {val} {collection}")
        super().put(key, val, collection)


class OfLangChain(LangChain):
    store: Any = ByteStore
    damage: tuple[Any, ...] = (
        lambda value: value[:-1],
        lambda value: value[:2048],
        lambda _: b"",
        lambda _: b"[0.1, 0.2]",
        lambda value: value[:256] + value[-4:],  # of another width
        lambda value: value[:512] + bytes(512) + value[1024:],
        lambda value: bytes([value[0] ^ 1]) + value[1:],
        lambda value: value.hex(),
    )

    def count(self, store: ByteStore) -> int:
        return len(store.entries)

    def spoil(self, store: ByteStore, damage: Callable[[bytes], Any]) -> None:
        """Damages the entry of the second text."""
        key = list(store.entries)[1]
        store.entries[key] = damage(store.entries[key])

    def stored(self, vector: list[float]) -> list[float]:
        """A vector as it comes out of the store."""
        return list(array("f", vector))


class OfLlamaIndex(LlamaIndex):
    store: Any = KVStore
    damage: tuple[Any, ...] = (
        *({"id": []}, {"id": [0.5]}, {}, {"id": None}, {"id": [float("nan")] * 1024}, {"id": ["0.5"] * 1024}),
        ["x"],
    )

    def count(self, store: KVStore) -> int:
        return sum(map(len, store.to_dict().values()))

    def spoil(self, store: KVStore, damage: Any) -> None:
        [collection] = store.to_dict()
        store.put(TEXTS[1], damage, collection)

    def stored(self, vector: list[float]) -> list[float]:
        return vector


CALLS: list[Any] = [OfLangChain(), OfLangChain(is_async=True), OfLlamaIndex(), OfLlamaIndex(is_async=True)]
every_call = pytest.mark.parametrize("of", CALLS, ids=repr)
each_framework = pytest.mark.parametrize("of", CALLS[::2], ids=["langchain", "llama_index"])


def made(of: Any, served: Server, store: object, **settings: Any) -> Any:
    return of.made(served, embeddings_cache=store, **settings)


# --- what is found again -----------------------------------------------------------------------------------


@every_call
def test_a_text_that_was_embedded_once_is_not_asked_for_again(of: Any, served: Server, emulator: Emulator) -> None:
    store = of.store()
    first = of.documents(made(of, served, store), [*TEXTS, TEXTS[3]])
    query = of.query(made(of, served, store), TEXTS[3])
    assert (emulator.requests, emulator.billed_texts) == (6, 46)
    again = made(of, served, store)
    found = of.documents(again, [TEXTS[7], "new", *TEXTS])
    assert found == [first[7], of.stored(emulator.dense("new")), *first[:-1]]
    assert of.query(again, TEXTS[3]) == query == of.stored(emulator.dense(TEXTS[3], text_type="query"))
    assert first == [of.stored(emulator.dense(text)) for text in [*TEXTS, TEXTS[3]]]
    assert (emulator.billed_texts, again.usage.texts) == (47, 1)
    assert {type(number) for number in query} == {float}
    assert len({id(vector) for vector in found}) == len(found)


@each_framework
@pytest.mark.parametrize(
    "change",
    [
        {"model": V3},
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
def test_one_store_serves_other_settings_without_a_wrong_vector(
    of: Any, served: Server, change: dict[str, Any]
) -> None:
    change = {of.model if name == "model" else name: value for name, value in change.items()}
    first = made(of, served, of.store())
    of.documents(first, ["a"])
    of.query(first)
    bare = made(of, served, None, **change)
    for other in (made(of, served, first.embeddings_cache, **change), first.model_copy(update=change)):
        assert getattr(other.embeddings_cache, "wrapped", other.embeddings_cache) is getattr(
            first.embeddings_cache, "wrapped", first.embeddings_cache
        )
        assert of.query(other) == of.stored(of.query(bare))
        assert of.documents(other, ["a"]) == [of.stored(of.documents(bare, ["a"])[0])]
    assert of.documents(first, ["a"]) == [of.stored(of.documents(made(of, served, None), ["a"])[0])]


@each_framework
@pytest.mark.parametrize("how", ["pickle", "copy", "deepcopy"])
def test_a_copy_uses_the_same_store(of: Any, how: str, served: Server, emulator: Emulator, tmp_path: Path) -> None:
    original = made(of, served, LocalFileStore(tmp_path) if isinstance(of, OfLangChain) else SimpleKVStore())
    vectors = of.documents(original, TEXTS[:3])
    copies = {"pickle": lambda one: pickle.loads(pickle.dumps(one)), "copy": copy.copy, "deepcopy": copy.deepcopy}  # noqa: S301 - our own
    assert of.documents(copies[how](original), TEXTS[:3]) == vectors
    assert emulator.billed_texts == 3


@every_call
def test_of_a_pair_dense_comes_from_the_store_and_sparse_is_asked_for(
    of: Any, served: Server, emulator: Emulator
) -> None:
    store = of.store()
    of.documents(made(of, served, store), TEXTS[:10])
    of.query(made(of, served, store))
    emulator.clear()
    dense = made(of, served, store)
    sparse = of.sparse(dense)
    assert of.documents(dense, TEXTS[:15]) == [of.stored(emulator.dense(text)) for text in TEXTS[:15]]
    assert of.query(dense) == of.stored(emulator.dense("a", text_type="query"))
    assert (emulator.requests, emulator.billed_texts) == (1, 5)
    embed, alone = (
        f"{'embed' if isinstance(of, OfLangChain) else 'encode'}_documents",
        of.sparse(api_key=KEY, base_url=served.url),
    )
    rows = getattr(sparse, embed)(TEXTS[:15])
    assert (emulator.requests, emulator.billed_texts) == (2, 15)
    assert rows == getattr(alone, embed)(TEXTS[:15])


# --- however the call ends ---------------------------------------------------------------------------------


@every_call
def test_after_a_refused_text_the_others_are_in_the_store(of: Any, served: Server, emulator: Emulator) -> None:
    emulator.faults = [Blocked(match="number 33")]
    store = of.store()
    dense = made(of, served, store)
    of.documents(dense, TEXTS[:5])
    with pytest.raises(BadRequestError, match="text 33 of 45") as caught:
        of.documents(dense, TEXTS)
    assert (caught.value.failed, caught.value.refused) == ([33], {33: TEXTS[33]})
    assert TEXTS[33] not in f"{caught.value!r} {vars(caught.value)['reasons']}"
    assert sorted(caught.value.partial) == [i for i in range(45) if i != 33]
    assert caught.value.partial[44] == pytest.approx(emulator.dense(TEXTS[44]))
    assert of.count(store) == emulator.billed_texts == 44
    mended = [*TEXTS[:33], "mended", *TEXTS[34:]]
    assert of.documents(dense, mended) == [of.stored(emulator.dense(text)) for text in mended]
    assert emulator.billed_texts == 45


@every_call
def test_after_a_failure_in_the_middle_what_arrived_is_in_the_store(
    of: Any, served: Server, emulator: Emulator
) -> None:
    emulator.faults = [Status(400, code="Arrearage", after=2, times=99)]
    store = of.store()
    with pytest.raises(Exception, match="Arrearage") as caught:
        of.documents(made(of, served, store, max_concurrency=1), TEXTS)
    assert of.count(store) == emulator.billed_texts == len(caught.value.partial) == 20  # type: ignore[attr-defined]


@each_framework
def test_after_an_interrupt_what_arrived_is_in_the_store(of: Any, emulator: Emulator) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if emulator.requests == 2:
            raise KeyboardInterrupt
        return emulator(request)

    store, http = of.store(), httpx.Client(transport=httpx.MockTransport(answer))
    dense = of.dense(api_key=KEY, max_concurrency=1, http_client=http, embeddings_cache=store)
    with pytest.raises(KeyboardInterrupt) as caught:
        of.documents(dense, TEXTS)
    assert of.count(store) == len(caught.value.partial) == 20  # type: ignore[attr-defined]
    assert caught.value.failed == list(range(20, 45))  # type: ignore[attr-defined]


@each_framework
async def test_after_a_cancellation_what_arrived_is_in_the_store(of: Any, emulator: Emulator) -> None:
    store, reached = of.store(), asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        if emulator.requests == 2:
            reached.set()
            await asyncio.Event().wait()
        return emulator(request)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        dense = of.dense(api_key=KEY, max_concurrency=1, http_async_client=http, embeddings_cache=store)
        task = asyncio.create_task(of.adocuments(dense, TEXTS))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert of.count(store) == emulator.billed_texts == 20


@every_call
@pytest.mark.parametrize("is_paired", [False, True], ids=["alone", "paired"])
def test_replies_are_in_the_store_before_the_call_ends(of: Any, served: Server, is_paired: bool) -> None:  # noqa: FBT001
    store, seen = of.store(), []
    dense = made(of, served, store, max_concurrency=1, on_request=lambda _: seen.append(of.count(store)))
    sparse = of.sparse(dense) if is_paired else None
    of.documents(dense, [f"text number {i}" for i in range(100)])
    assert seen[-1] >= 50
    assert of.count(store) == 100
    assert (sparse is not None) == is_paired


@each_framework
def test_a_blank_text_is_refused_by_its_place_in_the_whole_call_and_nothing_is_sent(
    of: Any, served: Server, emulator: Emulator
) -> None:
    dense = made(of, served, of.store())
    of.documents(dense, TEXTS[:3])
    with pytest.raises(InvalidInput, match="3") as caught:
        of.documents(dense, [*TEXTS[:3], " ", "new"])
    assert (caught.value.failed, emulator.requests) == ([3], 1)


# --- stores that are damaged, away, or none ----------------------------------------------------------------


@pytest.mark.parametrize(("of", "damage"), [(of, number) for of in CALLS for number in range(len(of.damage))])
def test_a_damaged_entry_is_asked_for_again_and_mended(
    of: Any, damage: int, served: Server, emulator: Emulator
) -> None:
    store = of.store()
    right = of.documents(made(of, served, store), TEXTS[:3])
    of.spoil(store, of.damage[damage])
    for _ in range(2):
        assert of.documents(made(of, served, store), TEXTS[:3]) == right
        assert emulator.billed_texts == 4


@every_call
def test_a_store_that_is_away_costs_no_vectors_and_warns_once(of: Any, served: Server, emulator: Emulator) -> None:
    dense = made(of, served, of.store(writes=False))
    with pytest.warns(UserWarning, match=r"could not be written \(ConnectionError\)") as caught:
        vectors = of.documents(dense, TEXTS)
    of.query(dense)
    assert vectors == [of.stored(emulator.dense(text)) for text in TEXTS]
    assert len(caught) == 1
    assert "secret" not in str(caught[0].message)
    with pytest.warns(UserWarning, match=r"could not be read \(ConnectionError\)"):
        assert of.query(made(of, served, of.store(reads=False))) == of.stored(emulator.dense("a", text_type="query"))


@each_framework
def test_what_is_no_store_is_refused_with_what_is_one(of: Any) -> None:
    dense = of.dense(base_url="emulator")
    foreign = OfLlamaIndex.store() if isinstance(of, OfLangChain) else OfLangChain.store()
    wrongs: list[Any] = [{}, foreign, "folder"]
    for wrong in wrongs:
        words = rf"must be a (BaseKV|store of bytes, as .*Base)Store.*not {type(wrong).__name__}"
        with pytest.raises(InvalidInput, match=words):
            of.dense(base_url="emulator", embeddings_cache=wrong)
        if isinstance(of, OfLlamaIndex):
            with pytest.raises(InvalidInput, match=words):
                dense.embeddings_cache = wrong
            with pytest.raises(InvalidInput, match=words):
                dense.model_copy(update={"embeddings_cache": wrong})
    assert of.query(dense)


# --- LangChain's ---------------------------------------------------------------------------------------------


def test_an_entry_of_a_byte_store_is_float32_and_four_bytes_that_check_it(served: Server, emulator: Emulator) -> None:
    store = ByteStore()
    embeddings = made(LangChain(), served, store)
    asyncio.run(embeddings.aembed_documents(TEXTS[:2]))
    assert set(store.calls) == {"amget", "amset"}
    (one, value), (other, second) = store.entries.items()
    assert list(struct.unpack("<1024f", value[:-4])) == list(array("f", emulator.dense(TEXTS[0])))
    assert len(value) == 4 * 1024 + 4
    assert "embeddings_cache" not in f"{embeddings!r} {embeddings.model_dump_json()}"
    store.entries[one], store.entries[other] = second, value  # not believed
    assert embeddings.embed_documents(TEXTS[:1]) == [list(array("f", emulator.dense(TEXTS[0])))]
    assert emulator.billed_texts == 3


@pytest.mark.parametrize("refused", [0, 1])
def test_a_store_that_comes_back_during_a_call_gets_all_of_it(served: Server, emulator: Emulator, refused: int) -> None:
    class Recovering(ByteStore):
        def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
            try:
                super().mset(key_value_pairs)
            finally:
                self.writes = True

    emulator.faults = [Blocked(match="number 33")] * refused
    store = Recovering(writes=False)
    with pytest.warns(UserWarning, match="could not be written"), contextlib.suppress(BadRequestError):
        made(LangChain(), served, store).embed_documents(TEXTS)
    assert len(store.entries) == 45 - refused
    assert store.calls == ["mget", "mset", "mset"]


def test_a_store_with_a_lock_is_shared_by_copies_and_refused_by_pickles(served: Server) -> None:
    embeddings = made(LangChain(), served, ByteStore())
    assert copy.deepcopy(embeddings).embeddings_cache is embeddings.embeddings_cache
    with pytest.raises(InvalidInput, match=r"a ByteStore cannot move.*LocalFileStore"):
        pickle.dumps(embeddings)


def test_the_bar_counts_texts_of_the_store_too(served: Server, capsys: pytest.CaptureFixture[str]) -> None:
    embeddings = made(LangChain(), served, InMemoryByteStore(), show_progress_bar=True)
    embeddings.embed_documents(TEXTS[:20])
    capsys.readouterr()
    embeddings.embed_documents(TEXTS)
    assert "45/45" in capsys.readouterr().err


@pytest.mark.parametrize("store", [None, ByteStore()], ids=["alone", "around ours"])
def test_langchains_own_cache_finds_what_was_embedded_once(
    store: ByteStore | None, served: Server, emulator: Emulator, tmp_path: Path
) -> None:
    for embeddings in (made(LangChain(), served, store), made(LangChain(), served, None)):
        cached = CacheBackedEmbeddings.from_bytes_store(
            embeddings,
            LocalFileStore(tmp_path / "documents"),
            namespace=embeddings.cache_namespace,
            query_embedding_cache=LocalFileStore(tmp_path / "queries"),
            key_encoder="sha256",
        )
        assert cached.embed_documents(["b", "a"]) == [pytest.approx(emulator.dense(text), rel=1e-6) for text in "ba"]
        assert cached.embed_query("a") == pytest.approx(emulator.dense("a", text_type="query"), rel=1e-6)
    assert emulator.requests == 2


@pytest.mark.filterwarnings("ignore:protocol=.openai. does not distinguish:UserWarning")
def test_the_namespace_says_what_makes_a_vector_and_nothing_else() -> None:
    embeddings = DashScopeEmbeddings(base_url="emulator", dimensions=64)
    assert embeddings.cache_namespace == "emulator_text-embedding-v4_64_document"
    assert embeddings.model_copy(update={"timeout": 5.0, "max_concurrency": 2}).cache_namespace == (
        embeddings.cache_namespace
    )
    service = DashScopeEmbeddings(api_key=KEY)
    assert service.cache_namespace == "dashscope_text-embedding-v4_1024_document"
    assert DashScopeEmbeddings(api_key=KEY, region="ap-southeast-1").cache_namespace == service.cache_namespace
    changes: list[dict[str, Any]] = [
        *({"model": V3}, {"dimensions": 64}, {"instruct": "find code"}, {"long_text": "truncate"}),
        *({"protocol": "openai"}, {"text_type": "query"}),
    ]
    others = [DashScopeEmbeddings(**{"api_key": KEY, **change}).cache_namespace for change in changes]
    assert len({service.cache_namespace, *others}) == 1 + len(changes)
    assert KEY not in "".join(others)


# --- LlamaIndex's ------------------------------------------------------------------------------------------

WAYS: dict[str, list[Callable[[DashScopeEmbedding], list[float]]]] = {
    "query": [
        lambda dense: dense.get_query_embedding("a"),
        lambda dense: asyncio.run(dense.aget_query_embedding("a")),
        lambda dense: dense.get_agg_embedding_from_queries(["a"]),
    ],
    "document": [
        lambda dense: dense.get_text_embedding("a"),
        lambda dense: dense.get_text_embedding_batch(["a"])[0],
        lambda dense: asyncio.run(dense.aget_text_embedding("a")),
        lambda dense: asyncio.run(dense.aget_text_embedding_batch(["a"]))[0],
    ],
}


@pytest.mark.parametrize("first", ["query", "document"])
def test_every_way_in_finds_the_entries_of_its_role_alone(served: Server, emulator: Emulator, first: str) -> None:
    dense = made(LlamaIndex(), served, SimpleKVStore())
    second = "document" if first == "query" else "query"
    for role in (first, second):
        for number, way in enumerate(WAYS[role]):
            assert way(dense) == pytest.approx(emulator.dense("a", text_type=role)), (role, number)
    assert [asked.text_type for asked in emulator.asked] == [first, second]


def assigned(dense: DashScopeEmbedding, **fields: Any) -> DashScopeEmbedding:
    for name, value in fields.items():
        setattr(dense, name, value)
    return dense


def copied(dense: DashScopeEmbedding, **fields: Any) -> DashScopeEmbedding:
    return dense.model_copy(update=fields)


def constructed(dense: DashScopeEmbedding, **fields: Any) -> DashScopeEmbedding:
    return DashScopeEmbedding.model_construct(**vars(dense) | fields)


class Counting(InMemoryRateLimiter):
    asked = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self.asked += 1
        return blocking


@pytest.mark.parametrize("with_fields", [assigned, copied, constructed])
def test_a_cache_and_a_limiter_may_be_put_in_later_and_an_empty_cache_is_one(
    served: Server, emulator: Emulator, with_fields: Callable[..., DashScopeEmbedding]
) -> None:
    class Sized(SimpleKVStore):
        def __len__(self) -> int:
            return 0

    limiter = Counting()
    dense = with_fields(made(LlamaIndex(), served, None), embeddings_cache=Sized(), rate_limiter=limiter)
    assert dense.get_text_embedding("a") != emulator.dense("a", text_type="query")
    for _ in range(2):
        assert dense.get_query_embedding("a") == emulator.dense("a", text_type="query")
    dense.get_text_embedding_batch(TEXTS[:25])
    assert limiter.asked == emulator.requests == 5


def test_a_store_in_use_stays_the_callers_to_save(served: Server, tmp_path: Path) -> None:
    dense = made(LlamaIndex(), served, SimpleKVStore())
    vector = dense.get_query_embedding("a")
    unpickled = pickle.loads(pickle.dumps(dense))  # noqa: S301 - made here
    for same in (dense, unpickled, copy.deepcopy(dense)):
        same.embeddings_cache.persist(str(tmp_path / "store.json"))
        kept = SimpleKVStore.from_persist_path(str(tmp_path / "store.json"))
        assert made(LlamaIndex(), served, kept).get_query_embedding("a") == vector


def test_llama_index_finds_no_store_in_an_async_batch(
    served: Server, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Core 0.13 looks there for a store that is None, and takes one that is only false for its own."""
    core = BaseEmbedding.aget_text_embedding_batch

    async def watched(self: BaseEmbedding, *args: Any, **kwargs: Any) -> list[list[float]]:
        assert self.embeddings_cache is None
        return await core(self, *args, **kwargs)

    monkeypatch.setattr(BaseEmbedding, "aget_text_embedding_batch", watched)
    of = LlamaIndex(is_async=True)
    dense = made(of, served, SimpleKVStore())
    assert [dense.get_text_embedding("a"), *of.documents(dense, ["a"]), *of.documents(dense, ["a"])] == (
        [emulator.dense("a")] * 3
    )
    assert emulator.requests == 1


# --- what they are built on: the client tells of vectors as they arrive ------------------------------------


@pytest.mark.parametrize("kind", ["plain function", "coroutine function"])
def test_the_client_tells_of_vectors_as_they_arrive(emulator: Emulator, kind: str) -> None:
    received: dict[int, Any] = {}

    async def later(arrived: dict[int, list[float]]) -> None:
        await asyncio.sleep(0)
        received.update(arrived)

    hook = received.update if kind == "plain function" else later
    found = asyncio.run(client_for(emulator).aembed(TEXTS, on_vectors=hook)).dense
    assert [received[i] for i in range(45)] == found
    sparse = client_for(emulator).embed(["a", "b", "a"], output="sparse", on_vectors=received.update).sparse
    assert [received[i] for i in range(3)] == sparse
