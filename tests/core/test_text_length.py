"""How long texts are, and how they are made to fit without losing a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dashscope_embeddings import catalogue
from dashscope_embeddings._core.text_length import Limits, chunks, estimate_tokens, shared_limits, truncate

if TYPE_CHECKING:
    from dashscope_embeddings._core.text_length import LongText

V2, V4 = catalogue.model("text-embedding-v2"), catalogue.model("text-embedding-v4")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0.0),
        ("four", 1.0),
        ("x" * 400, 100.0),
        ("中" * 100, 70.0),
        ("中文 and English", 2 * 0.7 + 12 / 4 - 2 / 4),  # two of the ASCII quarters go to the Chinese
        ("😀" * 10, 10.5),
        ("é" * 10, 3.5),
    ],
)
def test_tokens_are_estimated_from_characters_and_bytes(text: str, tokens: float) -> None:
    assert estimate_tokens(text) == pytest.approx(tokens, rel=0.2)


def test_the_estimate_is_near_the_counts_that_the_vendor_publishes() -> None:
    assert estimate_tokens("中" * 33) == pytest.approx(22, rel=0.1)
    assert estimate_tokens("word " * 26 + "end") == pytest.approx(29, rel=0.2)


def test_limits_start_at_the_catalogues_row_and_only_shrink() -> None:
    limits = Limits.from_model(V4)
    assert (limits.rows, limits.tokens_per_row, limits.tokens_per_request) == (10, 33_000, None)
    limits.lower_row_limit(25)
    limits.lower_token_limit(100_000)
    assert (limits.rows, limits.tokens_per_row) == (10, 33_000)
    limits.lower_row_limit(6)
    limits.lower_token_limit(8_192)
    assert (limits.rows, limits.tokens_per_row) == (6, 8_192)
    limits.lower_row_limit(0)
    limits.lower_token_limit(0)
    assert (limits.rows, limits.tokens_per_row) == (1, 1)


def test_what_was_learned_is_shared_by_host_and_model() -> None:
    limits = shared_limits("a.example", V2)
    limits.lower_row_limit(3)
    assert shared_limits("a.example", V2) is limits
    assert shared_limits("b.example", V2).rows == 25
    assert shared_limits("a.example", V4).rows == 10


def test_a_text_is_surely_too_long_only_if_even_a_generous_count_says_so() -> None:
    limits = Limits(10, 100, None)
    assert not limits.certainly_too_long("x" * 1000)  # 250 tokens by our estimate, 100 by the kindest
    assert limits.certainly_too_long("x" * 1001)
    assert not limits.certainly_too_long("中" * 357)
    assert limits.certainly_too_long("中" * 358)


@pytest.mark.parametrize(
    ("text", "tokens", "start"),
    [
        ("short", 100, "short"),
        ("x" * 100, 5, "x" * 20),
        ("x" * 100, 0, "x"),
        ("word " * 40, 26, "word " * 20),  # at a blank, not inside the next word
        ("x" * 93 + ". and y" + "y" * 99, 25, "x" * 93 + ". "),  # a sentence's end before a word's
        ("x" * 91 + "\n\nb. c d " + "y" * 99, 25, "x" * 91 + "\n\n"),  # a paragraph's before both
        ("x. " + "y" * 197, 25, "x. " + "y" * 97),  # too far back
        ("一句话。" * 100, 14, "一句话。" * 5),
    ],
)
def test_a_text_is_shortened_at_a_seam_where_one_is_near(text: str, tokens: float, start: str) -> None:
    assert truncate(text, tokens) == start


def test_the_beginning_of_a_text_in_two_scripts_is_about_as_long_as_asked() -> None:
    for text in ("中" * 5_000 + "word " * 20_000, "word " * 20_000 + "中" * 5_000):
        assert 800 < estimate_tokens(truncate(text, 1_000)) < 1_050


def test_blank_pieces_alone_are_left_out() -> None:
    assert [*chunks(" " * 400 + "word" + "\n" * 400, 20)] == ["word" + "\n" * 76]


def fit_rows(text: str, policy: LongText, tokens: int) -> list[str]:
    return [*Limits(1, tokens, None).fit_rows(text, policy)]


def test_the_policy_decides_what_stands_for_a_long_text() -> None:
    text = "word " * 100  # 125 tokens
    assert fit_rows(text, "error", 50) == [text]
    assert fit_rows(text, "truncate", 50) == ["word " * 40]
    assert "".join(fit_rows(text, "average", 50)) == text
    assert max(map(estimate_tokens, fit_rows(text, "average", 50))) <= 45  # a refusal costs a round trip
    for policy in ("error", "truncate", "average"):
        assert fit_rows(text, policy, 125) == [text]


def test_the_beginning_of_a_text_is_never_blank() -> None:
    (row,) = fit_rows(" " * 400 + "word " * 100, "truncate", 50)
    assert row.strip()
