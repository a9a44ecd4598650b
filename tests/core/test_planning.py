"""Texts → batches: bad input refused before it costs, equal texts asked once, nothing read too early."""

from __future__ import annotations

import io
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

from dashscope_embeddings._core.planning import Batch, BatchPlanner, RowRef, abatches, batches
from dashscope_embeddings._core.text_inputs import avalidate_each, iterate_texts, validate, validate_each
from dashscope_embeddings._core.text_length import Limits
from dashscope_embeddings._runtime.async_drivers import run_in_thread
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator
    from pathlib import Path


def limits(rows: int = 10, tokens_per_row: int = 8192, tokens_per_request: int | None = None) -> Limits:
    return Limits(rows, tokens_per_row, tokens_per_request)


def planned(texts: Iterable[str], bounds: Limits | None = None, **how: Any) -> list[Batch]:
    return list(batches(texts, BatchPlanner(bounds or limits(), **how)))


def asked(texts: Iterable[str], bounds: Limits | None = None, **how: Any) -> list[list[str]]:
    return [batch.texts for batch in planned(texts, bounds, **how)]


# --- what comes in ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ("one text\nof two lines", ["one text\nof two lines"]),
        (["a", "b"], ["a", "b"]),
        (("a",), ["a"]),
        ((text for text in "ab"), ["a", "b"]),
        ([], []),
        (io.StringIO("a\nb"), ["a", "b"]),
    ],
)
def test_a_string_is_one_text_and_an_iterable_many(source: object, texts: list[str]) -> None:
    assert list(iterate_texts(source)) == texts


@pytest.mark.parametrize("newline", [None, ""])
def test_an_open_file_is_a_text_a_line_whatever_ends_its_lines(newline: str | None, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("one\r\n 二 \nthree".encode())
    with path.open(encoding="utf-8", newline=newline) as file:
        assert list(iterate_texts(file)) == ["one", " 二 ", "three"]


def test_a_temporary_file_is_an_open_file_too() -> None:
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8") as file:
        file.write("one\ntwo\n")
        file.seek(0)
        assert list(iterate_texts(file)) == ["one", "two"]
    with tempfile.NamedTemporaryFile() as binary:
        binary.write(b"one\n")
        binary.seek(0)
        with pytest.raises(InvalidInput, match="text mode"):
            list(iterate_texts(binary))


@pytest.mark.parametrize("source", [b"bytes", bytearray(b"x"), io.BytesIO(b"a\nb"), 7, None])
def test_anything_else_is_refused_with_advice(source: object) -> None:
    with pytest.raises(InvalidInput, match=r"text mode|decode|not int|not NoneType"):
        list(iterate_texts(source))


def test_all_bad_texts_of_a_call_are_named_at_once() -> None:
    with pytest.raises(InvalidInput, match=r"text 0 is empty .*\(texts 0, 2, 3 cannot be embedded\)") as caught:
        validate(["", "fine", None, " "], limits(), "error")  # type: ignore[list-item] # on purpose
    assert caught.value.failed == [0, 2, 3]
    assert caught.value.reasons.keys() == {0, 2, 3}


@pytest.mark.parametrize("policy", ["truncate", "average"])
def test_a_long_text_is_no_fault_where_it_is_cut(policy: Any) -> None:
    assert validate(["x" * 5000], limits(tokens_per_row=100), policy) == ["x" * 5000]


def test_a_stream_meets_a_bad_text_when_it_reads_it() -> None:
    stream = validate_each(iter(["a", "b", "", "c"]), limits(), "error")
    assert [next(stream), next(stream)] == ["a", "b"]
    with pytest.raises(InvalidInput, match=r"text 2 is empty.*; the texts before it were sent$"):
        next(stream)


# --- batches ----------------------------------------------------------------------------------------------


def test_batches_are_cut_by_tokens_and_a_text_above_the_budget_goes_alone() -> None:
    long, short = "x" * 400, ["a" * 40, "b" * 40]  # 100 and 10 tokens
    for how in ({"bounds": limits(tokens_per_request=30)}, {"max_tokens": 30}):
        assert asked([*short, long, *short], **how) == [short, [long], short]
    assert asked(short, limits(tokens_per_request=15), max_tokens=100) == [short[:1], short[1:]]
    (batch,) = planned(short)
    assert batch.estimated_tokens == pytest.approx(20)


@pytest.mark.parametrize("letter", ["a", "é", "字", "😀"])
def test_no_request_is_larger_than_the_gateway_takes(letter: str) -> None:
    """It answers 413 above 16 MiB."""
    text = letter * (2 << 20)
    plan = asked([f"{i}{text}" for i in range(20)], limits(rows=20, tokens_per_row=1 << 30))
    sizes = [len("".join(batch).encode()) for batch in plan]
    assert max(sizes) <= 12 << 20
    assert len(plan) > 1


def test_equal_texts_are_asked_once_within_the_memory() -> None:
    texts = ["a", "b", "a", *"cdefghijkl", "a", "m"]
    assert asked(texts, dedup_window=None) == [list("abcdefghij"), list("klm")]
    assert asked(texts, dedup_window=1) == [list("abcdefghij"), list("klm")]
    assert asked(texts, dedup_window=0) == [list("abcdefghij"), list("klam")]
    first, second = planned(texts, dedup_window=None)
    assert [place.index for place in first.slots] == list(range(11))
    assert (first.slots[2].rows, first.slots[2].is_duplicate) == (first.slots[0].rows, True)
    assert (second.slots[-2].rows, second.slots[-2].is_duplicate) == ((RowRef(0, 0),), True)
    assert not first.slots[0].is_duplicate
    assert first.oldest_referenced == 0  # the later "a" needs it


def test_a_text_that_is_asked_again_is_the_known_one_from_then_on() -> None:
    texts = ["x", *"abc", *"def", "x", "y", *"ghi", "x"]
    assert asked(texts, limits(rows=3), dedup_window=1) == [["x", "a", "b"], list("cde"), ["f", "x", "y"], list("ghi")]


# --- reading ----------------------------------------------------------------------------------------------


def failing() -> Iterator[str]:
    yield from ["a", "b", "c"]
    raise OSError("the disk is gone")


async def test_asynchronous_sources_are_cut_and_checked_alike() -> None:
    async def source(texts: Iterable[str]) -> AsyncGenerator[str, None]:
        for text in texts:
            yield text

    texts = [*(f"t{i}" for i in range(12)), "t0", "t11"]
    run = abatches(
        avalidate_each(source(texts), limits(), "error", in_thread=run_in_thread),
        BatchPlanner(limits(), dedup_window=None),
    )
    assert [batch async for batch in run] == planned(texts, dedup_window=None)
    run = abatches(source(failing()), BatchPlanner(limits(rows=2)))
    assert [(await anext(run)).texts, (await anext(run)).texts] == [["a", "b"], ["c"]]
    with pytest.raises(OSError, match="disk"):
        await anext(run)
    with pytest.raises(InvalidInput, match="text 1 is empty"):
        [text async for text in avalidate_each(source(["a", ""]), limits(), "error", in_thread=run_in_thread)]
