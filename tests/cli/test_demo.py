"""The demo's inside: how text is cut, ranked and found again."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from dashscope_embeddings import EmbeddingClient
from dashscope_embeddings.cli import demo
from dashscope_embeddings.emulator import in_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module")
def passages() -> list[demo.Passage]:
    pytest.importorskip("llama_index.core")
    return demo.help_topics()


# --- passages ----------------------------------------------------------------------------------------------


def test_the_help_topics_become_titled_passages_of_even_size_without_repetition(
    passages: list[demo.Passage],
) -> None:
    assert len(passages) > 300
    sizes = sorted(len(passage.body) for passage in passages)
    assert sizes[-1] <= 1_000
    assert 600 <= sizes[len(sizes) // 2] <= 1_000
    assert all(passage.title.strip() and passage.body.strip() for passage in passages)
    assert 'The "with" statement' in {passage.title for passage in passages}
    assert len({passage.body for passage in passages}) == len(passages)


TEXTS = ["word " * 900, "一" * 4_321, "A sentence of six words. " * 99, "\n\n".join("abc"), "词" * 1_200 + "。\n\n甲"]
TEXTS += ["word " * 300 + f"end{mark}\n\nNext." for mark in (". ", "! \t", "?\n \n")]
"""The last ones have a long paragraph without a sentence's end but that of its own, with blanks behind it."""


@pytest.mark.parametrize("text", TEXTS)
def test_cutting_loses_no_character_but_blanks_and_needs_no_data_of_nltk(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_index.core")
    monkeypatch.setattr("llama_index.core.utils.GlobalsHelper.punkt_tokenizer", None)  # reads them
    pieces = demo.split_text(text)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert max(map(len, pieces)) <= 1_000


def test_a_text_without_paragraphs_is_cut_between_sentences() -> None:
    pytest.importorskip("llama_index.core")
    assert all(piece.endswith("words.") for piece in demo.split_text("A sentence of six words. " * 99))


def test_an_excerpt_starts_with_the_sentence_that_shares_most_with_the_question() -> None:
    passage = demo.Passage("Tea", "Coffee is\nroasted. Green tea is steamed! 紅茶用沸水。綠茶不用。")
    assert passage.excerpt("How is green tea made?") == "Green tea is steamed! 紅茶用沸水。綠茶不用。"
    assert passage.excerpt("Something else") == "Coffee is roasted. Green tea is steamed! 紅茶用沸水。綠茶不用。"
    assert passage.first_sentence == "Coffee is roasted."


# --- rankings ----------------------------------------------------------------------------------------------


def test_fusion_adds_reciprocal_ranks_whatever_the_scores() -> None:
    fused = demo.fuse([(7, 0.9), (8, 0.8)], [(8, 44.0), (9, 0.1)])
    assert [place for place, _ in fused] == [8, 7, 9]
    assert [score for _, score in fused] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])


def test_where_the_frameworks_disagree_both_are_shown() -> None:
    demo_screen = pytest.importorskip("dashscope_embeddings.cli.demo.screen", exc_type=ImportError)
    same = {demo.SPARSE: [], "fused · ranks": [(0, 0.1)]}
    found: demo.Answer = {
        "LangChain": {demo.DENSE: [(0, 0.9), (1, 0.8)], **same},
        "LlamaIndex": {demo.DENSE: [(1, 0.9), (0, 0.8)], **same},
    }
    texts = [demo.Passage("Tea", "Green."), demo.Passage("Coffee", "Black.")]
    lines = [line.plain for line in demo_screen.answer_lines("Which?", found, texts, max_hits=1, width=80)]
    assert [line.split()[:2] for line in lines if line.endswith(("LangChain", "LlamaIndex", "agree"))] == [
        ["dense", "·"],
        ["dense", "·"],
        ["sparse", "·"],
        ["fused", "·"],
    ]
    assert "    no passage shares a token" in lines
    assert lines[2].split() == ["1", "0.9000", "Tea", "Green."]
    assert lines[4].split() == ["1", "0.9000", "Coffee", "Black."]


def test_where_the_frameworks_fuse_differently_both_are_shown_though_they_agree() -> None:
    demo_screen = pytest.importorskip("dashscope_embeddings.cli.demo.screen", exc_type=ImportError)
    same = {demo.DENSE: [(0, 0.5)], demo.SPARSE: [(0, 0.5)]}
    found = {
        "LangChain": {**same, "fused · ranks": [(0, 0.5)]},
        "LlamaIndex": {**same, "fused · scores": [(0, 0.5)]},
    }
    lines = [
        line.plain
        for line in demo_screen.answer_lines("Which?", found, [demo.Passage("Tea", "Green.")], max_hits=1, width=80)
    ]
    assert [line.strip() for line in lines if " · " in line] == [
        "dense · cosine · LangChain and LlamaIndex agree",
        "sparse · shared tokens, weighted · LangChain and LlamaIndex agree",
        "fused · ranks · LangChain",
        "fused · scores · LlamaIndex",
    ]


def test_a_passages_first_sentence_finds_it_among_the_first_five(passages: list[demo.Passage]) -> None:
    numpy = pytest.importorskip("numpy")
    client = EmbeddingClient(base_url="emulator")
    documents = numpy.array(client.embed([passage.text for passage in passages]).dense)
    questions = [passage.first_sentence for passage in passages]
    queries = numpy.array(client.embed(questions, text_type="query").dense)
    best = numpy.argsort(-(queries @ documents.T), axis=1)[:, :5]
    found = sum(place in row for place, row in enumerate(best))
    assert found / len(passages) >= 0.9


# --- both frameworks over a store --------------------------------------------------------------------------

COUNT = 175
"""Passages: more than an index is filled with at once, and no multiple of a request's ten."""


@pytest.fixture(params=list(demo.Store), ids=lambda store: store.value)
def search(request: pytest.FixtureRequest, passages: list[demo.Passage]) -> Iterator[demo.Search]:
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    if request.param is demo.Store.QDRANT:
        pytest.importorskip("langchain_qdrant")
        pytest.importorskip("llama_index.vector_stores.qdrant")
    search = demo.Search(passages[:COUNT], "text-embedding-v4", request.param, base_url="emulator", dimensions=256)
    with closing(search):
        for index in search.indexes:
            before = billed()
            search.add_passages(index, lambda _: None)
            assert billed(before) == (18, COUNT), index.name
        yield search


def billed(since: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """Requests and texts."""
    service = in_process()
    return service.billed_requests - since[0], service.billed_texts - since[1]


def test_a_question_is_one_request_and_one_more_where_the_store_fuses(
    search: demo.Search, request: pytest.FixtureRequest
) -> None:
    requests = 2 if "qdrant" in request.node.name else 1
    for index in search.indexes:
        for question in demo.QUESTIONS:
            before = billed()
            assert [len(ranking) > 0 for ranking in index.rank(question).values()] == [True] * 3
            assert billed(before) == (requests, requests)
            asked = list(in_process().asked)[-1]
            assert (asked.text_type, asked.output_type, asked.texts) == ("query", "dense&sparse", (question,))
        cache = index.embeddings.hybrid.cache
        assert cache is not None
        assert cache.size == 0


def by_ranks(constant: int) -> Callable[[dict[int, float], dict[int, float]], dict[int, float]]:
    def fuse(dense: dict[int, float], sparse: dict[int, float]) -> dict[int, float]:
        ranks = [{place: rank for rank, place in enumerate(part)} for part in (dense, sparse)]
        return {
            place: sum(1 / (constant + part[place]) for part in ranks if place in part) for place in {**dense, **sparse}
        }

    return fuse


def by_scores(dense: dict[int, float], sparse: dict[int, float]) -> dict[int, float]:
    def scaled(part: dict[int, float], place: int) -> float:
        low, high = min(part.values()), max(part.values())
        return (part.get(place, low) - low) / (high - low)

    return {place: (scaled(dense, place) + scaled(sparse, place)) / 2 for place in {**dense, **sparse}}


FUSIONS: dict[str, Any] = {
    "fused · reciprocal ranks": by_ranks(61),
    "fused · reciprocal ranks, by Qdrant": by_ranks(2),
    "fused · min-max scores, averaged": by_scores,
}


def test_all_rankings_are_those_of_a_computation_without_any_framework(search: demo.Search) -> None:
    client = EmbeddingClient(base_url="emulator", dimensions=256)
    corpus = client.embed([passage.text for passage in search.passages], output="dense&sparse")
    asked = client.embed(list(demo.QUESTIONS), text_type="query", output="dense&sparse")
    assert corpus.sparse is not None
    assert asked.sparse is not None
    for question, vector, weights in zip(demo.QUESTIONS, asked.dense, asked.sparse, strict=True):
        dense = {n: sum(a * b for a, b in zip(vector, row, strict=True)) for n, row in enumerate(corpus.dense)}
        shared = {n: set(weights.indices) & set(row.indices) for n, row in enumerate(corpus.sparse)}
        sparse = {
            n: sum(weights.as_dict()[token] * corpus.sparse[n].as_dict()[token] for token in tokens)
            for n, tokens in shared.items()
            if tokens
        }
        found = search.answer(question)
        for by_way in found.values():
            fusion = list(by_way)[-1]
            fused = FUSIONS[fusion](dict(by_way[demo.DENSE]), dict(by_way[demo.SPARSE]))
            for way, scores in ((demo.DENSE, dense), (demo.SPARSE, sparse), (fusion, fused)):
                ranking = by_way[way]
                # Where scores are equal, either may come first.
                best = sorted(scores.values(), reverse=True)[:50]
                assert [score for _, score in ranking] == pytest.approx(best, abs=1e-5)
                assert [scores[place] for place, _ in ranking] == pytest.approx(best, abs=1e-5)
