"""The demo's inside: how text is cut, ranked and found again."""

from __future__ import annotations

import pytest

from dashscope_embeddings import EmbeddingClient, SparseVector, demo


@pytest.fixture(scope="module")
def passages() -> list[demo.Passage]:
    return demo.topics()


# --- passages ----------------------------------------------------------------------------------------------


def test_the_help_topics_become_titled_passages_of_even_size_without_repetition(
    passages: list[demo.Passage],
) -> None:
    assert len(passages) > 300
    sizes = sorted(len(passage.body) for passage in passages)
    assert sizes[-1] <= 1_150
    assert 600 <= sizes[len(sizes) // 2] <= 1_000
    assert all(passage.title.strip() and passage.body.strip() for passage in passages)
    assert 'The "with" statement' in {passage.title for passage in passages}
    assert len({passage.body for passage in passages}) == len(passages)


@pytest.mark.parametrize("text", ["word " * 900, "一" * 4_321, "A sentence of six words. " * 99, "\n\n".join("abc")])
def test_cutting_loses_no_character_but_blanks(text: str) -> None:
    pieces = list(demo.cut(text))
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert max(map(len, pieces)) <= 1_150


def test_an_excerpt_starts_with_the_sentence_that_shares_most_with_the_question() -> None:
    passage = demo.Passage("Tea", "Coffee is\nroasted. Green tea is steamed! 紅茶用沸水。綠茶不用。")
    assert passage.excerpt("How is green tea made?") == "Green tea is steamed! 紅茶用沸水。綠茶不用。"
    assert passage.excerpt("Something else") == "Coffee is roasted. Green tea is steamed! 紅茶用沸水。綠茶不用。"
    assert passage.first_sentence == "Coffee is roasted."


# --- rankings ----------------------------------------------------------------------------------------------


def test_sparse_hits_are_ranked_by_shared_weights_and_need_a_shared_token() -> None:
    documents = [SparseVector([1, 5], [0.5, 1.0]), SparseVector([7], [9.0]), SparseVector([5], [2.0])]
    assert demo.rank_sparse(SparseVector([1, 5], [1.0, 0.5]), documents) == [(0, 1.0), (2, 1.0)]
    assert demo.rank_sparse(SparseVector([5], [1.0]), documents, depth=1) == [(2, 2.0)]
    assert demo.rank_sparse(SparseVector([], []), documents) == []


def test_fusion_adds_reciprocal_ranks_whatever_the_scores() -> None:
    fused = demo.fuse([(7, 0.9), (8, 0.8)], [(8, 44.0), (9, 0.1)])
    assert [place for place, _ in fused] == [8, 7, 9]
    assert [score for _, score in fused] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])


def test_where_the_frameworks_disagree_both_are_shown() -> None:
    demo_screen = pytest.importorskip("dashscope_embeddings.demo_screen", exc_type=ImportError)
    found = demo.Answer(
        dense={"LangChain": [(0, 0.9), (1, 0.8)], "LlamaIndex": [(1, 0.9), (0, 0.8)]},
        sparse=[],
        fused={"LangChain": [(0, 0.1)], "LlamaIndex": [(0, 0.1)]},
    )
    texts = [demo.Passage("Tea", "Green."), demo.Passage("Coffee", "Black.")]
    lines = [line.plain for line in demo_screen.answer("Which?", found, texts, hits=1, width=80)]
    assert [line.split()[:2] for line in lines if line.endswith(("LangChain", "LlamaIndex", "agree"))] == [
        ["dense", "·"],
        ["dense", "·"],
        ["fused", "·"],
    ]
    assert "    no passage shares a token" in lines
    assert lines[2].split() == ["1", "0.9000", "Tea", "Green."]
    assert lines[4].split() == ["1", "0.9000", "Coffee", "Black."]


def test_a_passages_first_sentence_finds_it_among_the_first_five(passages: list[demo.Passage]) -> None:
    numpy = pytest.importorskip("numpy")
    client = EmbeddingClient(base_url="emulator")
    documents = numpy.array(client.embed([passage.text for passage in passages]).dense)
    questions = [passage.first_sentence for passage in passages]
    queries = numpy.array(client.embed(questions, text_type="query").dense)
    best = numpy.argsort(-(queries @ documents.T), axis=1)[:, :5]
    found = sum(place in row for place, row in enumerate(best))
    assert found / len(passages) >= 0.9
