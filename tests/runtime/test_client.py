"""The requests that each call of `EmbeddingClient` sends, and the result of every kind of reply."""

from __future__ import annotations

import io
import itertools
import math
from typing import TYPE_CHECKING

import pytest
from client_helpers import AsyncCalls, SyncCalls, client_for

from dashscope_embeddings import (
    AuthenticationError,
    BadRequestError,
    InvalidInput,
)
from dashscope_embeddings._core.exchange import READ_AHEAD
from dashscope_embeddings.emulator import Emulator, faults

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.parametrize("way", [SyncCalls(), AsyncCalls()], ids=["sync", "async"])
Way = SyncCalls | AsyncCalls


def texts(count: int) -> list[str]:
    return [f"text number {i}" for i in range(count)]


def expected(emulator: Emulator, asked: list[str], **how: str) -> list[list[float]]:
    return [emulator.dense(text, model="text-embedding-v4", **how) for text in asked]  # type: ignore[arg-type]


def test_a_list_is_cut_to_the_models_rows_and_comes_back_in_order(way: Way) -> None:
    emulator = Emulator()
    result = way.embed(client_for(emulator), texts(25))
    assert sorted(len(asked.texts) for asked in emulator.asked) == [5, 10, 10]
    assert {asked.text_type for asked in emulator.asked} == {"document"}
    assert result.dense == expected(emulator, texts(25))
    assert result.sparse is None
    assert len(result) == 25


def test_roles_and_instruct_arrive(way: Way) -> None:
    emulator = Emulator()
    client = client_for(emulator, instruct="Given a question, find its answer", dimensions=256)
    query = way.embed(client, "what?", text_type="query")
    document = way.embed(client, "what?")
    first, second = (asked.body["parameters"] for asked in emulator.asked)
    assert first == {
        "text_type": "query",
        "dimension": 256,
        "instruct": "Given a question, find its answer",
    }
    assert second == {"text_type": "document", "dimension": 256}
    assert query.dense != document.dense
    assert len(query.dense[0]) == 256


def test_a_text_a_file_and_a_generator_are_inputs(way: Way) -> None:
    emulator = Emulator()
    client = client_for(emulator)
    lines = io.StringIO("one\r\ntwo\nthree", newline="")
    assert way.embed(client, "one").dense == expected(emulator, ["one"])
    assert way.embed(client, lines).dense == expected(emulator, ["one", "two", "three"])
    assert way.embed(client, (t for t in ("one", "two"))).dense == expected(emulator, ["one", "two"])
    assert way.embed(client, []).dense == []
    assert emulator.requests == 3


def test_a_blank_line_of_a_file_is_named_so_that_each_vector_is_that_of_its_line(way: Way) -> None:
    emulator = Emulator()
    with pytest.raises(InvalidInput, match=r"text 1 is empty or blank.*nothing was sent") as caught:
        way.embed(client_for(emulator), io.StringIO("one\n\ntwo\n"))
    assert (caught.value.failed, emulator.requests) == ([1], 0)


def test_progress_is_a_bar_for_true_and_numbers_for_a_function(way: Way, capsys: pytest.CaptureFixture[str]) -> None:
    emulator, numbers = Emulator(), list[int]()
    client = client_for(emulator)
    way.embed(client, texts(25), progress=numbers.append)
    assert numbers == [10, 10, 5]
    way.embed(client, texts(25), progress=False)
    assert capsys.readouterr().err == ""
    assert way.embed(client, texts(25), progress=True).dense == expected(emulator, texts(25))
    assert "25/25" in capsys.readouterr().err


def test_progress_takes_a_callable_that_is_false_and_needs_no_console(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Numbers(list[int]):
        def __call__(self, more: int) -> None:
            self.append(more)

    client, numbers = client_for(Emulator()), Numbers()
    way.embed(client, texts(25), progress=numbers)
    assert numbers == [10, 10, 5]
    monkeypatch.setattr("sys.stderr", None)
    assert len(way.embed(client, texts(25), progress=True).dense) == 25


def test_equal_texts_are_billed_once_and_share_no_list(way: Way) -> None:
    emulator = Emulator()
    result = way.embed(client_for(emulator), ["same", "other"] * 30)
    assert (emulator.requests, emulator.billed_texts) == (1, 2)
    assert result.dense[0] == result.dense[58]
    assert result.dense[0] is not result.dense[58]
    assert result.usage.texts == 2


def test_both_components_come_from_one_request(way: Way) -> None:
    emulator = Emulator()
    result = way.embed(client_for(emulator), ["深海 deep sea"], output="dense&sparse")
    assert emulator.requests == 1
    assert result.dense == expected(emulator, ["深海 deep sea"])
    assert result.sparse is not None
    assert result.sparse[0].indices == sorted(set(result.sparse[0].indices))
    only = way.embed(client_for(emulator), ["深海 deep sea"], output="sparse")
    assert (only.dense, only.sparse, len(only)) == ([], result.sparse, 1)


def test_the_compatible_protocol_gives_the_same_width_and_refuses_sparse_before_asking(way: Way) -> None:
    emulator = Emulator()
    client = client_for(emulator, protocol="openai", dimensions=128)
    assert len(way.embed(client, texts(12)).dense[11]) == 128
    assert [asked.protocol for asked in emulator.asked] == ["openai", "openai"]
    assert emulator.asked[0].body["dimensions"] == 128
    with pytest.raises(InvalidInput, match='protocol="native"'):
        way.embed(client, "x", output="sparse")
    assert emulator.requests == 2


@pytest.mark.parametrize(
    "bad",
    ["", " \n\t", None, 7, "\ud800", "word " * 100_000],
    ids=["empty", "blank", "none", "number", "surrogate", "long"],
)
def test_a_bad_text_is_named_before_anything_is_sent(way: Way, bad: object) -> None:
    emulator = Emulator()
    with pytest.raises(InvalidInput, match=r"text 11 .*nothing was sent") as caught:
        way.embed(client_for(emulator), [*texts(11), bad, *texts(11)])
    assert caught.value.failed == [11]
    assert emulator.requests == 0


# --- faults ------------------------------------------------------------------------------------------------


def test_one_throttled_request_in_ten_costs_one_more_each(way: Way) -> None:
    emulator = Emulator(faults=[faults.Throttle(every=10)])
    result = way.embed(client_for(emulator, dimensions=64), texts(500))
    throttled = emulator.requests - emulator.billed_requests
    assert emulator.billed_requests == 50
    assert throttled == emulator.requests // 10
    assert emulator.billed_texts == 500
    assert result.dense == [emulator.dense(text, dimension=64) for text in texts(500)]


def test_a_refused_key_names_the_region_asked_and_the_others(way: Way) -> None:
    emulator = Emulator(api_key="sk-other")
    with pytest.raises(AuthenticationError, match=r"dashscope\.aliyuncs\.com") as caught:
        way.embed(client_for(emulator), texts(3))
    assert emulator.requests == 1
    assert "Beijing" in str(caught.value)
    assert "ap-southeast-1 (Singapore)" in str(caught.value)
    assert "sk-" not in str(caught.value) + repr(caught.value)


# --- rows --------------------------------------------------------------------------------------------------


def test_a_smaller_row_limit_is_obeyed_for_the_rest_of_the_process(way: Way) -> None:
    emulator = Emulator(rows=6)
    client = client_for(emulator)
    assert way.embed(client, texts(20)).dense == expected(emulator, texts(20))
    assert emulator.billed_texts == 20
    emulator.clear()
    way.embed(client_for(emulator), texts(18))
    assert [len(asked.texts) for asked in emulator.asked] == [6, 6, 6]


def test_a_text_that_the_service_calls_too_long_is_named(way: Way) -> None:
    emulator = Emulator(tokens_per_row=50)
    asked = [*texts(4), "word " * 60, *texts(3)]
    with pytest.raises(BadRequestError, match="long_text=") as caught:
        way.embed(client_for(emulator), asked)
    assert caught.value.failed == [4]
    assert len(caught.value.partial) == 7


@pytest.mark.parametrize("policy", ["truncate", "average"])
def test_long_texts_fit_after_the_services_word(way: Way, policy: str) -> None:
    emulator = Emulator(tokens_per_row=50)
    asked = [*texts(4), "many different words follow each other here. " * 40, *texts(3)]
    result = way.embed(client_for(emulator, long_text=policy), asked)
    assert math.isclose(math.hypot(*result.dense[4]), 1.0, abs_tol=1e-6)
    assert result.dense[3] == expected(emulator, [asked[3]])[0]
    sent = [text for record in emulator.asked if record.status == 200 for text in record.texts]
    whole = "".join(text for text in sent if text in asked[4])
    assert (whole == asked[4]) is (policy == "average")


# --- streams -----------------------------------------------------------------------------------------------


def test_a_stream_reads_no_further_ahead_than_its_window(way: Way) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        for i in itertools.count():
            read = i + 1
            yield f"text {i}"

    emulator = Emulator()
    found = way.stream(client_for(emulator, max_concurrency=4), endless(), limit=25)
    assert [e.index for e in found] == list(range(25))
    assert found[24].dense == expected(emulator, ["text 24"])[0]
    assert read <= 30 + (4 + READ_AHEAD) * 10


def test_an_endless_run_of_one_text_comes_out(way: Way) -> None:
    emulator = Emulator()
    found = way.stream(client_for(emulator, dimensions=64), itertools.repeat("again"), limit=500)
    assert len(found) == 500
    assert emulator.billed_texts <= 20


def test_a_bad_text_ends_a_stream_after_those_before_it(way: Way) -> None:
    emulator = Emulator()
    seen: list[int] = []

    def source() -> Iterator[str]:
        yield from texts(23)
        yield ""

    client = client_for(emulator)
    with pytest.raises(InvalidInput, match="text 23"):
        seen += [e.index for e in way.stream(client, source())]
    assert emulator.billed_texts == 23


def test_a_refused_text_ends_a_stream_with_all_that_arrived(way: Way) -> None:
    emulator = Emulator(faults=[faults.Blocked(match="FORBIDDEN")])
    asked = [*texts(12), "FORBIDDEN", *(f"more {i}" for i in range(17))]
    with pytest.raises(BadRequestError, match="text 12") as caught:
        way.stream(client_for(emulator), asked)
    failed, partial = caught.value.failed, caught.value.partial
    # The third request may or may not have been sent by then; what was billed is there.
    assert failed[0] == 12
    assert sorted([*failed, *partial]) == list(range(12, 30))
    assert emulator.billed_texts == 12 + len(partial)
