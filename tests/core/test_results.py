"""Outcomes → vectors in the order of the texts, and the one error of a job with all that did arrive."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from dashscope_embeddings._core.error_codes import ErrorReply, service_error
from dashscope_embeddings._core.exchange import Outcome
from dashscope_embeddings._core.planning import Batch, BatchPlanner, batches
from dashscope_embeddings._core.results import ResultCollector
from dashscope_embeddings._core.text_length import Limits
from dashscope_embeddings.errors import (
    AuthenticationError,
    BadRequestError,
    Cancelled,
    ConnectionFailed,
    DashScopeError,
)
from dashscope_embeddings.vectors import Embedding, Part, SparseVector, Usage

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


def test_equal_texts_get_lists_of_their_own() -> None:
    result = job(planned(["a", "b", "a", "a"])).result(["a", "b", "a", "a"])
    assert len({id(vector) for vector in result.dense}) == 4
    result.dense[0][0] = 7.0
    assert result.dense[2] == result.dense[3] == dense("a")
    assert result.sparse is not None
    result.sparse[0].values[0] = 7.0
    assert result.sparse[2] == result.sparse[3] == sparse("a")


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
