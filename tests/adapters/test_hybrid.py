"""Two adapters over one cache: how many requests reach the service, and which component each caller gets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from client_helpers import KEY, client_for

from dashscope_embeddings import DashScopeError
from dashscope_embeddings._adapters.flows import arun, run
from dashscope_embeddings._adapters.hybrid import HybridEmbedder
from dashscope_embeddings._adapters.hybrid_cache import HybridCache
from dashscope_embeddings.emulator import Emulator, faults

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashscope_embeddings._adapters.hybrid_cache import Component

QUESTION = "which words are rare?"


def flow_of(hybrid: HybridEmbedder, component: Any, texts: list[str], role: Any = "document") -> Any:
    return (
        hybrid.prefetch_flow(texts, role) if component == "prefetch" else hybrid.component_flow(component, texts, role)
    )


def ask(*what: Any) -> Any:
    return run(flow_of(*what))


def aask(*what: Any) -> Any:
    return asyncio.run(arun(flow_of(*what)))


Ask: TypeAlias = "Callable[..., Any]"
both_ways = pytest.mark.parametrize("ask", [ask, aask], ids=["sync", "async"])


def texts(count: int) -> list[str]:
    return [f"paragraph {n} about number{n % 7}" for n in range(count)]


def paired(emulator: Emulator, cache: HybridCache | None = None, **settings: Any) -> HybridEmbedder:
    client = client_for(emulator, **{"dimensions": 64, **settings})
    return HybridEmbedder(client, cache if cache is not None else HybridCache())


def unpaired(emulator: Emulator) -> HybridEmbedder:
    # Another account, whose pace is not measured by the other clients' clock.
    return HybridEmbedder(client_for(emulator, dimensions=64, api_key=f"{KEY}-alone"))


def asked(emulator: Emulator) -> list[tuple[str | None, str | None, int]]:
    """Role, output and number of texts of each request; those under way together arrive in any order."""
    return sorted((a.text_type, a.output_type or "dense", len(a.texts)) for a in emulator.asked)


def cached(hybrid: HybridEmbedder) -> int:
    assert hybrid.cache is not None
    return hybrid.cache.size


# Documents


@both_ways
def test_documents_are_billed_once_for_both_components(emulator: Emulator, ask: Ask) -> None:
    hybrid = paired(emulator)
    dense = ask(hybrid, "dense", texts(25))
    assert asked(emulator) == [("document", "dense&sparse", n) for n in (5, 10, 10)]
    sparse = ask(hybrid, "sparse", texts(25))
    assert (emulator.requests, emulator.billed_texts, cached(hybrid)) == (3, 25, 0)
    apart = Emulator()
    assert dense == ask(unpaired(apart), "dense", texts(25))
    missed = ask(unpaired(apart), "sparse", texts(25))
    assert [(row.indices, row.values) for row in sparse] == [(row.indices, row.values) for row in missed]
    assert (apart.requests, apart.billed_texts) == (6, 50)


@both_ways
def test_equal_documents_are_sent_once_and_taken_as_often_as_requested(emulator: Emulator, ask: Ask) -> None:
    hybrid = paired(emulator)
    repeated = ["a word", "another", "a word", "a word"]
    ask(hybrid, "dense", repeated)
    rows = ask(hybrid, "sparse", repeated)
    assert (emulator.requests, emulator.billed_texts, cached(hybrid)) == (1, 2, 0)
    assert rows[0] == rows[2] == rows[3] != rows[1]
    assert rows[0].indices is not rows[2].indices


@both_ways
def test_a_missing_sparse_document_is_requested_alone(emulator: Emulator, ask: Ask) -> None:
    hybrid = paired(emulator)
    ask(hybrid, "dense", texts(4))
    rows = ask(hybrid, "sparse", texts(6))
    assert asked(emulator) == [("document", "dense&sparse", 4), ("document", "sparse", 2)]
    assert [row.indices for row in rows] == [
        sorted(token.index for token in emulator.sparse(text)) for text in texts(6)
    ]
    assert cached(hybrid) == 0


@both_ways
@pytest.mark.parametrize("component", ["dense", "sparse"])
def test_what_the_cache_has_of_a_call_is_not_requested_and_after_an_error_not_lost(
    emulator: Emulator, ask: Ask, component: str
) -> None:
    hybrid, of_both = paired(emulator), component == "dense"
    assert hybrid.cache is not None
    run(hybrid.component_flow("sparse" if of_both else "dense", texts(4), "document", keep_dense=of_both))
    emulator.faults = [faults.RowRefused(match="number6")]
    with pytest.raises(DashScopeError) as caught:
        ask(hybrid, component, texts(8))
    assert (caught.value.failed, sorted(caught.value.partial)) == ([6], [0, 1, 2, 3, 4, 5, 7])
    emulator.faults = []
    emulator.clear()
    ask(hybrid, component, texts(5))
    assert [asked.texts for asked in emulator.asked] == [(texts(5)[4],)]


@both_ways
def test_no_texts_make_no_request(emulator: Emulator, ask: Ask) -> None:
    hybrid = paired(emulator)
    assert ask(hybrid, "dense", []) == ask(hybrid, "sparse", []) == []
    assert emulator.requests == 0


@pytest.mark.parametrize(
    ("capacity", "call", "requests", "billed"),
    [(65_536, 300, 30, 300), (65_536, 205, 31, 300), (100, 300, 56, 500), (100, 205, 45, 405)],
    ids=["pipeline", "index", "pipeline-full", "index-full"],
)
def test_three_hundred_nodes(emulator: Emulator, capacity: int, call: int, requests: int, billed: int) -> None:
    """A pipeline embeds all before its store asks; an index a part at a time. Stores ask a few texts at a time."""
    hybrid = paired(emulator, HybridCache(capacity))
    nodes = texts(300)
    for start in range(0, len(nodes), call):
        part = nodes[start : start + call]
        ask(hybrid, "dense", part)
        for at in range(0, len(part), 16):
            ask(hybrid, "sparse", part[at : at + 16])
    assert emulator.requests <= requests
    assert emulator.billed_texts <= billed
    assert cached(hybrid) == 0


@both_ways
def test_what_a_full_cache_could_not_store_is_not_requested(emulator: Emulator, ask: Ask) -> None:
    hybrid = paired(emulator, HybridCache(capacity=10))
    for documents in (texts(10), texts(20)[10:]):
        ask(hybrid, "dense", documents)
    assert asked(emulator) == [("document", "dense", 10), ("document", "dense&sparse", 10)]


def test_expired_components_are_requested_again(emulator: Emulator) -> None:
    now = [0.0]
    hybrid = paired(emulator, HybridCache(expiry_seconds=60.0, clock=lambda: now[0]))
    ask(hybrid, "dense", texts(10))
    now[0] = 59.0
    ask(hybrid, "sparse", texts(5))
    assert emulator.requests == 1
    now[0] = 60.0
    ask(hybrid, "sparse", texts(10)[5:])
    assert asked(emulator) == [("document", "dense&sparse", 10), ("document", "sparse", 5)]


# Queries


@both_ways
@pytest.mark.parametrize("order", [("dense", "sparse"), ("sparse", "dense")])
def test_a_query_is_one_request_whichever_component_comes_first(
    emulator: Emulator, ask: Ask, order: tuple[Component, Component]
) -> None:
    hybrid = paired(emulator)
    found = {component: ask(hybrid, component, [QUESTION], "query")[0] for component in order}
    assert asked(emulator) == [("query", "dense&sparse", 1)]
    assert cached(hybrid) == 0
    apart = unpaired(Emulator())
    assert found["dense"] == ask(apart, "dense", [QUESTION], "query")[0]
    missed = ask(apart, "sparse", [QUESTION], "query")[0]
    assert (found["sparse"].indices, found["sparse"].values) == (missed.indices, missed.values)


@both_ways
def test_several_queries_at_once_share_requests_too(emulator: Emulator, ask: Ask) -> None:
    hybrid = paired(emulator)
    ask(hybrid, "dense", texts(12), "query")
    ask(hybrid, "sparse", texts(12), "query")
    assert asked(emulator) == [("query", "dense&sparse", 2), ("query", "dense&sparse", 10)]


def test_a_document_is_no_substitute_for_the_query_of_the_same_text(emulator: Emulator) -> None:
    hybrid = paired(emulator)
    ask(hybrid, "dense", [QUESTION])
    [row] = ask(hybrid, "sparse", [QUESTION], "query")
    assert row.values != ask(hybrid, "sparse", [QUESTION])[0].values
    assert emulator.requests == 2


def test_a_hybrid_query_is_one_request_though_the_cache_is_full_of_documents(emulator: Emulator) -> None:
    hybrid = paired(emulator, HybridCache(capacity=10))
    ask(hybrid, "dense", texts(10))
    ask(hybrid, "dense", [QUESTION], "query")
    ask(hybrid, "sparse", [QUESTION], "query")
    assert emulator.requests == 2


# What goes wrong


@both_ways
def test_an_error_carries_the_dense_vectors_that_arrived(emulator: Emulator, ask: Ask) -> None:
    emulator.faults = [faults.RowRefused(match="bad")]
    given = [*texts(17), "a bad one", *texts(30)[17:]]
    with pytest.raises(DashScopeError) as caught:
        ask(paired(emulator), "dense", given)
    assert caught.value.failed == [17]
    assert caught.value.partial == {i: emulator.dense(t, dimension=64) for i, t in enumerate(given) if i != 17}
    assert all(asked.output_type == "dense&sparse" for asked in emulator.asked)


@both_ways
def test_the_error_of_a_query_carries_no_component_of_it(emulator: Emulator, ask: Ask) -> None:
    emulator.faults = [faults.RowRefused(match="rare")]
    hybrid = paired(emulator)
    with pytest.raises(DashScopeError) as caught:
        ask(hybrid, "sparse", [QUESTION], "query")
    assert (caught.value.failed, caught.value.partial, cached(hybrid)) == ([0], {}, 0)


@both_ways
def test_the_error_of_sparse_documents_names_them_by_the_callers_index(emulator: Emulator, ask: Ask) -> None:
    emulator.faults = [faults.RowRefused(match="bad")]
    hybrid = paired(emulator)
    ask(hybrid, "dense", texts(5))
    with pytest.raises(DashScopeError, match=r"^text 6 of 8:") as caught:
        ask(hybrid, "sparse", [*texts(5), "a good one", "a bad one", "another"])
    assert caught.value.failed == [6]
    assert sorted(caught.value.partial) == [0, 1, 2, 3, 4, 5, 7]


# Prefetching


@both_ways
def test_only_what_is_missing_is_prefetched(emulator: Emulator, ask: Ask) -> None:
    hybrid = paired(emulator)
    ask(hybrid, "dense", texts(10))
    ask(hybrid, "prefetch", [*texts(12), "paragraph 11 about number4"])
    ask(hybrid, "prefetch", texts(12))
    assert asked(emulator) == [("document", "dense&sparse", 10), ("document", "sparse", 2)]
    ask(hybrid, "sparse", [*texts(12), "paragraph 11 about number4"])
    assert (emulator.requests, cached(hybrid)) == (2, 0)


@both_ways
def test_what_was_prefetched_costs_nothing_one_by_one_though_the_cache_is_full(emulator: Emulator, ask: Ask) -> None:
    hybrid = paired(emulator, HybridCache(capacity=10))
    ask(hybrid, "dense", [f"with metadata: {text}" for text in texts(10)])
    ask(hybrid, "prefetch", texts(30))
    for text in texts(30):
        ask(hybrid, "sparse", [text])
    assert (emulator.requests, emulator.billed_texts) == (1 + 3, 10 + 30)
    ask(unpaired(emulator), "prefetch", texts(3))  # has no cache
    assert emulator.requests == 4
