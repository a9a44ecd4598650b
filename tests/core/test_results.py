"""Outcomes → vectors in the order of the texts, and the one error of a job with all that did arrive."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from dashscope_embeddings._core.error_codes import ErrorReply, service_error
from dashscope_embeddings._core.exchange import Outcome
from dashscope_embeddings._core.planning import Batch, BatchPlanner, batches
from dashscope_embeddings._core.results import ResultCollector
from dashscope_embeddings._core.text_length import Limits
from dashscope_embeddings.catalogue import Price
from dashscope_embeddings.errors import (
    AuthenticationError,
    BadRequestError,
    Cancelled,
    ConnectionFailed,
    DashScopeError,
)
from dashscope_embeddings.vectors import Cost, Embedding, Part, SparseVector, Usage

if TYPE_CHECKING:
    from dashscope_embeddings.vectors import Output


def dense(text: str) -> list[float]:
    """Of unit length, and another one for each text."""
    angle = sum(map(ord, text)) % 97 / 97
    return [math.cos(angle), math.sin(angle)]


def sparse(text: str) -> SparseVector:
    return SparseVector([len(text)], [0.5], [text])


def outcome(batch: Batch, output: Output = "dense&sparse", *, without: int = 0) -> Outcome:
    """What became of a batch; its last rows may be `without` vectors."""
    texts = batch.texts[: len(batch.texts) - without]
    rows = [
        Part(dense(t) if "dense" in output else None, sparse(t) if "sparse" in output else None, float(len(t)))
        for t in texts
    ]
    return Outcome(
        [*rows, *[None] * without],
        requests=1,
        texts=len(texts),
        tokens=10 * len(texts),
        request_ids=[f"r{batch.number}"],
    )


def planned(texts: list[str], rows: int = 2, tokens_per_row: int = 100, memory: int | None = None) -> list[Batch]:
    return [*batches(texts, BatchPlanner(Limits(rows, tokens_per_row, None), long_text="average", dedup_window=memory))]


def job(batched: list[Batch], output: Output = "dense&sparse") -> ResultCollector:
    found = ResultCollector(output, None)
    for batch in batched:
        found.add(batch, outcome(batch, output))
    return found


def refused(words: str = "improper") -> DashScopeError:
    return service_error(ErrorReply(400, "DataInspectionFailed", words))


def stopped(batch: Batch, error: DashScopeError) -> Outcome:
    """A batch that the end of its job overtook."""
    return Outcome([None] * len(batch.texts), dict.fromkeys(range(len(batch.texts)), error), error)


@pytest.mark.parametrize("output", ["dense", "sparse", "dense&sparse"])
def test_each_text_gets_its_vectors_in_the_order_of_the_texts(output: Output) -> None:
    texts = ["a", "bb", "a", "ccc", "dddd", "bb"]
    result = job(planned(texts), output).result(texts)
    assert result.dense == ([dense(t) for t in texts] if "dense" in output else [])
    assert result.sparse == ([sparse(t) for t in texts] if "sparse" in output else None)
    assert (result.usage, result.request_ids) == (Usage(2, 40, 4), ("r0", "r1"))
    assert len(result) == 6


def test_no_text_at_all_gives_no_vector_at_all() -> None:
    assert job([], "dense").result([]).dense == []
    assert job([]).result([]).sparse == []


def test_equal_texts_get_lists_of_their_own() -> None:
    result = job(planned(["a", "b", "a", "a"])).result(["a", "b", "a", "a"])
    assert len({id(vector) for vector in result.dense}) == 4
    result.dense[0][0] = 7.0
    assert result.dense[2] == result.dense[3] == dense("a")
    assert result.sparse is not None
    result.sparse[0].values[0] = 7.0
    assert result.sparse[2] == result.sparse[3] == sparse("a")


def test_pieces_are_averaged_by_their_length_to_unit_length_and_sparse_takes_the_largest() -> None:
    text = "".join(f"{i:04} " for i in range(100))
    batched = planned(["z", text], rows=2, tokens_per_row=50)
    rows = [t for batch in batched for t in batch.texts][1:]
    assert "".join(rows) == text
    assert len(rows) == 3
    result = job(batched).result(["z", text])
    mean = [sum(len(t) * dense(t)[axis] for t in rows) for axis in (0, 1)]
    assert result.dense[0] == dense("z")
    assert result.dense[1] == pytest.approx([x / math.hypot(*mean) for x in mean])
    assert math.hypot(*result.dense[1]) == pytest.approx(1)
    assert result.sparse is not None
    assert result.sparse[1].indices == sorted({len(t) for t in rows})


def test_a_text_is_ready_only_after_those_before_it() -> None:
    first, second = planned(["a", "b", "c", "d"])
    found = ResultCollector("dense", None)
    broken = outcome(first, "dense", without=1)
    broken.errors[1] = refused()
    found.add(first, broken)
    assert [e.index for e in found.pop_ready()] == [0]
    found.add(second, outcome(second, "dense"))
    assert list(found.pop_ready()) == []
    assert found.has_failed
    error = found.build_error()
    assert (error.partial, error.failed) == ({2: dense("c"), 3: dense("d")}, [1])
    assert str(error).startswith("text 1 of 4: ")


def test_refused_texts_that_are_skipped_are_left_out_and_fail_nothing() -> None:
    first, second = planned(["a", "b", "c", "d"])
    found = ResultCollector("dense", None)
    broken = outcome(first, "dense", without=1)
    broken.errors[1] = refused()
    found.add(first, broken)
    skipped = found.skip_refused()
    assert {index: str(error) for index, error in skipped.items()} == {1: str(broken.errors[1])}
    assert (skipped[1].failed, skipped[1].refused) == ([1], {1: "b"})
    found.add(second, outcome(second, "dense"))
    assert (found.has_failed, found.skip_refused()) == (False, {})
    assert [e.index for e in found.pop_ready()] == [0, 2, 3]


def test_what_was_billed_is_counted_and_priced() -> None:
    (batch,) = planned(["a", "b"])
    for price, cost in ((None, None), (Price("CNY", Decimal("0.5")), Cost(Decimal("0.00001"), "CNY"))):
        found = ResultCollector("dense", price)
        found.add(batch, outcome(batch))
        assert found.usage == Usage(1, 20, 2, cost)


@pytest.mark.parametrize(
    ("output", "arrived"),
    [("dense", dense("a")), ("sparse", sparse("a")), ("dense&sparse", Embedding(0, dense("a"), sparse("a")))],
)
def test_an_error_carries_what_arrived_in_the_shape_that_was_asked(output: Output, arrived: object) -> None:
    (batch,) = planned(["a", "b"])
    broken = outcome(batch, output, without=1)
    broken.errors[1] = refused()
    found = ResultCollector(output, None)
    found.add(batch, broken)
    with pytest.raises(BadRequestError, match=r"^text 1 of 2: .*improper") as caught:
        found.result(["a", "b"])
    error = caught.value
    assert (error.partial, error.failed) == ({0: arrived}, [1])
    assert error.reasons.keys() == {1}
    assert "improper" in error.reasons[1]
    assert found.usage == Usage(1, 10, 1)


def test_every_refused_text_is_named_with_its_reason_and_the_first_is_raised() -> None:
    first, second = planned(["a", "b", "c", "b"], rows=2)
    found = ResultCollector("dense", None)
    for batch, words in ((first, "one"), (second, "two")):
        broken = outcome(batch, without=1)
        broken.errors[len(batch.texts) - 1] = refused(words)
        found.add(batch, broken)
    error = found.build_error(4)
    assert str(error).startswith("texts 1, 2, 3 of 4: ")
    assert (error.failed, [*error.partial]) == ([1, 2, 3], [0])
    assert [reason.rpartition(" ")[2] for reason in error.reasons.values()] == ["one", "two", "one"]
    assert "one" in error.message


def test_the_end_of_a_job_is_raised_and_names_everything_that_did_not_arrive() -> None:
    first, second, third = planned(["a", "b", "c", "d", "e"])
    found = ResultCollector("dense", None)
    found.add(first, outcome(first, "dense"))
    found.add(second, stopped(second, Cancelled("not sent")))
    found.add(third, stopped(third, service_error(ErrorReply(401, "InvalidApiKey", "wrong"))))
    error = found.build_error(9)  # four more were never asked
    assert type(error) is AuthenticationError
    assert (error.failed, error.reasons) == ([2, 3, 4, 5, 6, 7, 8], {})
    assert error.partial == {0: dense("a"), 1: dense("b")}
    assert error.message.startswith("texts 2, 3, 4, 5, 6 and 2 more of 9: ")


def test_a_refused_text_is_the_cause_where_the_rest_was_merely_given_up() -> None:
    first, second, third = planned(["a", "b", "c", "d", "e", "f"])
    found = ResultCollector("dense", None)
    broken = outcome(first, without=1)
    broken.errors[1] = refused()
    found.add(first, broken)
    found.add(second, stopped(second, Cancelled("not sent")))
    error = found.build_error(6)
    assert type(error) is BadRequestError
    assert error.message.startswith("text 1 of 6: ")
    assert (error.failed, [*error.reasons]) == ([1, 2, 3, 4, 5], [1])
    found.add(third, stopped(third, ConnectionFailed("no answer")))
    assert type(found.build_error(6)) is ConnectionFailed


def test_a_long_text_arrives_only_with_all_its_pieces() -> None:
    text = "".join(f"{i:04} " for i in range(100))
    first, second = planned([text], rows=2, tokens_per_row=50)
    found = ResultCollector("dense", None)
    broken = outcome(first, without=1)
    broken.errors[1] = refused()
    found.add(first, broken)
    assert not found.has_failed  # the text ends in the next batch
    found.add(second, outcome(second))
    error = found.build_error(1)
    assert (error.failed, error.partial, [*error.reasons]) == ([0], {}, [0])


def test_a_stream_that_stops_inside_a_long_text_names_it() -> None:
    first, _ = planned(["".join(f"{i:04} " for i in range(100))], rows=2, tokens_per_row=50)
    found = ResultCollector("dense", None)
    found.add(first, stopped(first, service_error(ErrorReply(401, "InvalidApiKey"))))
    assert found.build_error().failed == [0]


def test_a_job_without_a_failure_has_no_error() -> None:
    with pytest.raises(RuntimeError, match="without a failure"):
        job(planned(["a"])).build_error(1)
