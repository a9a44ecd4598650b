"""The emulator's vectors carry what words say, and differ wherever a mix-up must show."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from dashscope_embeddings.emulator import Emulator, synthetic_vectors


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_vectors_are_of_unit_length_and_never_zero_in_a_component() -> None:
    emulator = Emulator()
    for text in ("a", "!!!", "\u200b", "風", "\ud83d", "The endless river rolls on."):
        for dimension in (64, 1024, 2048):
            found = emulator.dense(text, dimension=dimension)
            assert len(found) == dimension
            assert math.hypot(*found) == pytest.approx(1, abs=1e-6)
            assert all(found)


def test_role_model_instruction_and_spelling_change_a_vector() -> None:
    emulator = Emulator()
    text = "Find the clause on liability"
    document, query = emulator.dense(text), emulator.dense(text, text_type="query")
    assert 0.9 <= cosine(document, query) <= 0.98
    assert emulator.dense(text, text_type="document") == document
    instructed = emulator.dense(text, text_type="query", instruct="Given a contract, find the clause")
    assert 0.85 < cosine(instructed, query) < 0.999
    assert emulator.dense(text, instruct="Given a contract, find the clause") == document
    assert abs(cosine(document, emulator.dense(text, model="text-embedding-v3"))) < 0.3
    assert cosine(document, emulator.dense("find the Liability on clause")) < 0.9999


def test_vectors_are_the_same_in_every_process_and_version() -> None:
    emulator = Emulator()
    start = [0.6233039498, -0.01593396007, -0.02192317465]
    assert emulator.dense("two words", dimension=64)[:3] == pytest.approx(start, abs=1e-9)
    assert [token.index for token in emulator.sparse("two words")] == [25922, 56221]


def passages() -> list[str]:
    """Python's own help, cut at the end of a sentence after 600 letters."""
    topics = pytest.importorskip("pydoc_data.topics").topics
    found = []
    for name in sorted(topics):
        text = re.sub(r"\s+", " ", topics[name])
        while len(text) > 600:
            end = text.find(". ", 600, 1000)
            end = 800 if end < 0 else end + 1
            found.append(text[:end].strip())
            text = text[end:].strip()
    return list(dict.fromkeys(found))


def opening(passage: str) -> str:
    """The first sentence; a line of a few words, such as a title, takes the next one along."""
    end = re.compile(r"[.:!?]\s").search(passage, 40)
    return passage[: end.end()] if end else passage[:200]


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_search_finds_the_passage_that_a_sentence_opens(kind: str) -> None:
    numpy = pytest.importorskip("numpy")
    emulator, texts = Emulator(), passages()
    asked = range(0, len(texts), 5)

    def vectors(texts: list[str], role: str) -> Any:
        if kind == "dense":
            return numpy.array([emulator.dense(text, text_type=role, dimension=512) for text in texts])
        found = numpy.zeros((len(texts), synthetic_vectors.VOCABULARY_SIZE // 16), "float32")
        for row, text in zip(found, texts, strict=True):
            for token in emulator.sparse(text, text_type=role):
                row[token.index // 16] += token.value
        return found

    scores = vectors([opening(texts[number]) for number in asked], "query") @ vectors(texts, "document").T
    own = scores[range(len(asked)), asked]
    found = int(((scores > own[:, None]).sum(axis=1) < 5).sum())
    assert len(asked) >= 50
    assert found / len(asked) >= 0.9


@pytest.mark.parametrize(
    ("question", "answer"),
    [("长江的水从哪里来", 0), ("树叶为什么落下", 1), ("猿猴的叫声", 2), ("怎么退还押金", 3)],
)
def test_a_chinese_question_finds_its_answer(question: str, answer: int) -> None:
    emulator = Emulator()
    texts = ["不尽的长江滚滚而来", "无边的树叶萧萧落下", "风急天高,猿猴的哀叫", "租约期满后押金应当退还"]
    asked = emulator.dense(question, text_type="query")
    scores = [cosine(asked, emulator.dense(text)) for text in texts]
    assert scores.index(max(scores)) == answer


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("cats", "The cat sleeps."),
        ("a sleeping box", "The boxes sleep."),
        ("berry", "She planned to sell berries."),
        ("making plans", "They make a plan."),
        ("embedding", "It embeds, embedded, and counts its embeddings."),
        ("studied processes", "We study a process."),
    ],
)
def test_inflections_of_an_english_word_are_one_word(asked: str, sentence: str) -> None:
    emulator = Emulator()
    others = ["A dog barks.", "Trees lose leaves.", "The string is red, as this news says.", "Need and speed"]
    query = emulator.dense(asked, text_type="query")
    scores = [cosine(query, emulator.dense(text)) for text in (sentence, *others)]
    assert scores[0] > max(scores[1:]) + 0.1
    words = {token.index for token in emulator.sparse(asked)}
    assert words & {token.index for token in emulator.sparse(sentence)}
    assert emulator.dense(asked) != emulator.dense(f"{asked}s")


@pytest.mark.parametrize(
    ("one", "other"), [("need", "ned"), ("string", "str"), ("as", "a"), ("sing", "s"), ("gas", "g")]
)
def test_a_word_that_only_looks_inflected_stays_as_it_is(one: str, other: str) -> None:
    assert Emulator().sparse(one)[0].index != Emulator().sparse(other)[0].index
