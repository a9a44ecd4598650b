"""LlamaIndex's class inside pipelines, tracing and caches of other people: as they expect it there."""

from __future__ import annotations

import asyncio
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import KEY
from llama_index.core import Document
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent  # noqa: TC002 - singledispatch reads it at run time
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import ImageNode, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index_instrumentation import get_dispatcher

from dashscope_embeddings import BadRequestError, InvalidInput
from dashscope_embeddings.emulator.faults import Blocked
from dashscope_embeddings.llama_index import DashScopeEmbedding, DashScopeSparseEmbedding, DropBlankNodes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dashscope_embeddings.emulator import Emulator
    from dashscope_embeddings.emulator.http import Server

WAYS = pytest.mark.parametrize("way", ["sync", "async"])


def made(served: Server, **settings: Any) -> DashScopeEmbedding:
    return DashScopeEmbedding(api_key=KEY, base_url=served.url, **settings)


def batch(embedding: DashScopeEmbedding, texts: list[str], way: str) -> list[list[float]]:
    if way == "sync":
        return embedding.get_text_embedding_batch(texts)
    return asyncio.run(embedding.aget_text_embedding_batch(texts))


# --- nodes without text ------------------------------------------------------------------------------------

NODES = [
    TextNode(text="one"),
    TextNode(text=""),
    TextNode(text=" \n"),
    ImageNode(image_url="https://host.example/a.png"),
    TextNode(text="", metadata={"title": "a title"}),
    TextNode(text="", metadata={"path": "a.txt"}, excluded_embed_metadata_keys=["path"]),
    TextNode(text="two"),
]


@WAYS
def test_a_pipeline_with_blank_and_image_nodes_embeds_the_others(emulator: Emulator, served: Server, way: str) -> None:
    pipeline = IngestionPipeline(transformations=[DropBlankNodes(), made(served)], disable_cache=True)
    found = pipeline.run(nodes=NODES) if way == "sync" else asyncio.run(pipeline.arun(nodes=NODES))
    assert [node.get_content() for node in found] == ["one", "", "two"]
    assert found[1].embedding == emulator.dense("title: a title")
    assert emulator.billed_texts == 3


@WAYS
def test_without_it_the_error_names_it(emulator: Emulator, served: Server, way: str) -> None:
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(), made(served)], disable_cache=True)
    documents = [Document(text="one"), Document(text="")]
    with pytest.raises(InvalidInput, match=r"text 1 is empty or blank.*IngestionPipeline.*DropBlankNodes"):
        pipeline.run(documents=documents) if way == "sync" else asyncio.run(pipeline.arun(documents=documents))
    assert emulator.requests == 0


@pytest.mark.parametrize("cached", [False, True])
def test_every_way_to_embed_documents_names_it_and_no_query_does(served: Server, cached: bool) -> None:  # noqa: FBT001
    embedding = made(served, embeddings_cache=SimpleKVStore() if cached else None, embed_batch_size=2)
    for call in (
        lambda: embedding.get_text_embedding(" "),
        lambda: asyncio.run(embedding.aget_text_embedding(" ")),
        lambda: batch(embedding, ["a", "b", " "], "sync"),
        lambda: batch(embedding, ["a", "b", " "], "async"),
    ):
        with pytest.raises(InvalidInput, match="DropBlankNodes"):
            call()
    with pytest.raises(InvalidInput, match="blank") as caught:
        embedding.get_query_embedding(" ")
    assert "DropBlankNodes" not in str(caught.value)
    with pytest.raises(InvalidInput, match="surrogate") as caught:
        embedding.get_text_embedding("\ud800")
    assert "DropBlankNodes" not in str(caught.value)


def test_it_says_in_the_log_how_many_nodes_it_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "dashscope_embeddings"):
        DropBlankNodes()([TextNode(text="one")])
        DropBlankNodes()(NODES)
    assert [record.getMessage() for record in caplog.records] == [
        "DropBlankNodes left out 4 of 7 nodes: they have no text"
    ]
    assert DropBlankNodes.from_dict(DropBlankNodes().to_dict())([]) == []


# --- tracing -----------------------------------------------------------------------------------------------


class Spans(SimpleSpanHandler):
    """Names of spans, each with the name of the one around it."""

    names: list[tuple[str, str | None]] = []  # noqa: RUF012 - a pydantic field: each instance has its own

    def new_span(self, id_: str, bound_args: Any, instance: Any = None, parent_span_id: Any = None, **more: Any) -> Any:  # type: ignore[override] # what it hands on
        self.names.append((name(id_), parent_span_id and name(parent_span_id)))
        return super().new_span(id_, bound_args, instance, parent_span_id, **more)


class Events(BaseEventHandler):
    """Class of each event."""

    seen: list[Any] = []  # noqa: RUF012 - as above

    def handle(self, event: BaseEvent, **_: Any) -> None:
        self.seen.append(event)


def name(span: str) -> str:
    return span.partition("-")[0].rpartition(".")[2]


@pytest.fixture
def traced() -> Iterator[tuple[Spans, Events]]:
    root, spans, events = get_dispatcher(), Spans(), Events()
    root.add_span_handler(spans)
    root.add_event_handler(events)
    yield spans, events
    root.span_handlers.remove(spans)
    root.event_handlers.remove(events)


CALLS: dict[str, Callable[[Any], Any]] = {
    "get_query_embedding": lambda e: e.get_query_embedding("a"),
    "get_text_embedding": lambda e: e.get_text_embedding("a"),
    "get_text_embedding_batch": lambda e: e.get_text_embedding_batch(["a", "b", "c"]),
    "aget_query_embedding": lambda e: asyncio.run(e.aget_query_embedding("a")),
    "aget_text_embedding": lambda e: asyncio.run(e.aget_text_embedding("a")),
    "aget_text_embedding_batch": lambda e: asyncio.run(e.aget_text_embedding_batch(["a", "b", "c"])),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["dense", "cached", "small batches", "sparse"])
def test_a_public_method_makes_one_span_of_its_name(
    served: Server, traced: tuple[Spans, Events], kind: str, call: str
) -> None:
    spans, events = traced
    embedding: Any = {  # type: ignore[no-untyped-call] # theirs
        "dense": lambda: made(served),
        "cached": lambda: made(served, embeddings_cache=SimpleKVStore()),
        "small batches": lambda: made(served, embed_batch_size=2),
        "sparse": lambda: DashScopeSparseEmbedding(api_key=KEY, base_url=served.url),
    }[kind]()
    CALLS[call](embedding)
    names = [own for own, _ in spans.names]
    assert names.count(call) == 1
    assert spans.names[0] == (call, None)
    assert len(names) == len(set(names)), names
    usage = [event for event in events.seen if event.class_name() == "DashScopeUsageEvent"]
    assert len(usage) == 1
    assert name(usage[0].span_id or "") in names


def test_a_failed_call_ends_its_span_as_dropped(served: Server, traced: tuple[Spans, Events]) -> None:
    spans, _ = traced
    with pytest.raises(InvalidInput):
        made(served, embeddings_cache=SimpleKVStore()).get_text_embedding_batch(["a", " "])
    assert [name(span.id_) for span in spans.dropped_spans] == ["get_text_embedding_batch"]


def test_integrations_that_choose_by_class_know_the_usage_event(served: Server, traced: tuple[Spans, Events]) -> None:
    @singledispatch
    def process(event: BaseEvent) -> str:
        return f"Unhandled event of type {type(event).__qualname__}"

    @process.register
    def _start(event: EmbeddingStartEvent) -> str:
        return f"start {event.model_dict['model_name']}"

    @process.register
    def _end(event: EmbeddingEndEvent) -> str:
        return f"end {len(event.chunks)}"

    made(served).get_query_embedding("a")
    assert [process(event) for event in traced[1].seen] == ["start text-embedding-v4"] * 2 + ["end 1"]


# --- a cache that is damaged or away -----------------------------------------------------------------------

TEXTS = [f"text number {i}" for i in range(45)]


@WAYS
@pytest.mark.parametrize(
    "entry",
    [{"id": []}, {"id": [0.5]}, {}, {"id": None}, {"id": [float("nan")] * 1024}, {"id": ["0.5"] * 1024}, ["x"]],
    ids=["empty", "of another width", "without a vector", "null", "nan", "strings", "a list"],
)
def test_a_damaged_entry_is_asked_for_again_and_mended(
    emulator: Emulator, served: Server, entry: Any, way: str
) -> None:
    store = SimpleKVStore()
    embedding = made(served, embeddings_cache=store)
    batch(embedding, TEXTS[:3], way)
    [collection] = store.to_dict()
    store.put(TEXTS[1], entry, collection)
    for _ in range(2):
        assert batch(embedding, TEXTS[:3], way) == [emulator.dense(text) for text in TEXTS[:3]]
        assert embedding.get_text_embedding(TEXTS[1]) == emulator.dense(TEXTS[1])
        assert emulator.billed_texts == 4


class Away(SimpleKVStore):
    """A store whose server is away."""

    def get(self, key: str, collection: str = "") -> dict[str, Any] | None:
        raise ConnectionError(f"redis://:secret@host is away: {key} {collection}")

    def put(self, key: str, val: dict[str, Any], collection: str = "") -> None:
        raise ConnectionError(f"redis://:secret@host is away: {key} {val} {collection}")


@WAYS
@pytest.mark.filterwarnings("ignore:embeddings_cache could not be:UserWarning")
def test_a_store_that_is_away_costs_no_vectors(emulator: Emulator, served: Server, way: str) -> None:
    embedding = made(served, embeddings_cache=Away())
    assert batch(embedding, TEXTS, way) == [emulator.dense(text) for text in TEXTS]
    assert embedding.get_query_embedding("a") == emulator.dense("a", text_type="query")
    assert emulator.billed_texts == 46


@WAYS
def test_replies_are_in_the_cache_before_the_call_ends(served: Server, way: str) -> None:
    store = SimpleKVStore()
    seen: list[int] = []
    embedding = made(
        served,
        embeddings_cache=store,
        max_concurrency=1,
        on_request=lambda _: seen.append(sum(len(part) for part in store.to_dict().values())),
    )
    batch(embedding, [f"text number {i}" for i in range(200)], way)
    assert seen[-1] >= 100


@WAYS
def test_partial_of_an_error_holds_what_the_cache_had_as_well(emulator: Emulator, served: Server, way: str) -> None:
    embedding = made(served, embeddings_cache=SimpleKVStore())
    batch(embedding, TEXTS[:20], way)
    emulator.faults = [Blocked(match="number 33")]
    with pytest.raises(BadRequestError, match="text 33 of 45") as caught:
        batch(embedding, TEXTS, way)
    assert sorted(caught.value.partial) == [i for i in range(45) if i != 33]
    assert emulator.billed_texts == 44
