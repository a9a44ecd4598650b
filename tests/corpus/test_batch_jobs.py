"""Batch files: every text embedded once or named, whatever fails, and nothing submitted twice."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import FakeClock, client_for
from corpus_helpers import DIMENSIONS, expected_vector, read_rejects, read_vectors, write_lines

from dashscope_embeddings import BadRequestError, ConnectionFailed, EmbeddingClient, InvalidInput, corpus
from dashscope_embeddings._core.protocol import Reply
from dashscope_embeddings._core.steps import Send
from dashscope_embeddings.corpus.batch import messages as batch_protocol
from dashscope_embeddings.corpus.batch import request_file
from dashscope_embeddings.corpus.checkpoint import jobs
from dashscope_embeddings.emulator import Emulator, faults
from dashscope_embeddings.emulator.batch.service import BatchSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXTS = [f"text number {number}" for number in range(95)]
CONTENT = "/content"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service(clock: FakeClock) -> Emulator:
    return Emulator(clock=clock.now, batches=BatchSettings(seconds=60))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.txt", TEXTS)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def client(service: Emulator, clock: FakeClock, **settings: Any) -> EmbeddingClient:
    return client_for(service, clock, **{"protocol": "openai", "dimensions": DIMENSIONS, **settings})


def embedded(service: Emulator, output: Path, texts: list[str], without: set[int] = frozenset()) -> None:  # type: ignore[assignment]
    rows = read_vectors(output)
    kept = [number for number in range(len(texts)) if number not in without]
    assert [row.id for row in rows] == kept
    assert [row.dense for row in rows] == [
        expected_vector(service, texts[number], text_type="query") for number in kept
    ]


def asked(service: Emulator, method: str, ending: str) -> int:
    return sum(1 for one in service.asked if one.method == method and one.path.endswith(ending) and one.status == 200)


def test_a_corpus_goes_out_and_comes_back_joined_by_name(
    source: Path, output: Path, service: Emulator, clock: FakeClock
) -> None:
    estimates: list[corpus.BatchEstimate] = []
    found = corpus.batch_run(source, output, client=client(service, clock), before=estimates.append, name="a corpus")
    embedded(service, output, TEXTS)
    assert (found.finished, found.embedded, found.usage.texts, found.usage.requests) == (True, 95, 95, 10)
    assert service.billed_texts == 95
    assert found.usage.tokens == service.billed_tokens
    assert found.usage.cost is not None
    assert float(found.usage.cost.amount) == pytest.approx(service.billed_tokens * 0.25 / 1e6)
    assert [(one.pending, one.files, one.documented) for one in estimates] == [(95, 1, True)]
    created = next(one.body for one in service.asked if one.method == "POST" and one.path.endswith("/batches"))
    assert (created["endpoint"], created["metadata"]) == ("/v1/embeddings", {"ds_name": "a corpus"})
    assert all(30 <= wait <= 120 for wait in clock.waits)
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "in.txt",
        "out.jsonl",
        "out.jsonl.ledger",
    ]


def test_submitted_fetched_on_another_machine_after_the_input_changed(
    source: Path, output: Path, tmp_path: Path, service: Emulator, clock: FakeClock
) -> None:
    sent = corpus.batch_submit(source, output, client=client(service, clock), with_text=True)
    assert (sent.finished, sent.under_way, sent.pending) == (False, 95, 95)
    source.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    corpus.ledger_beside(output).rename(corpus.ledger_beside(elsewhere / "out.jsonl"))
    clock.time += 90
    told = corpus.batch_status(elsewhere / "out.jsonl", client=client(service, clock))
    assert [(file.status, file.state) for file in told.files] == [("in_progress", "running")]
    assert not corpus.batch_fetch(elsewhere / "out.jsonl", client=client(service, clock)).finished
    clock.time += 90
    found = corpus.batch_fetch(elsewhere / "out.jsonl", client=client(service, clock))
    assert found.finished
    embedded(service, elsewhere / "out.jsonl", TEXTS)
    assert [row.text for row in read_vectors(elsewhere / "out.jsonl")] == TEXTS
    assert service.billed_texts == 95


def test_ids_stay_strings_when_the_checkpoint_is_opened_again(
    tmp_path: Path, output: Path, service: Emulator, clock: FakeClock
) -> None:
    rows = "".join(json.dumps({"id": f"0{n}", "text": f"t {n}"}) + "\n" for n in range(3))
    source = tmp_path / "in.jsonl"
    source.write_text(rows, "utf-8")
    corpus.batch_submit(source, output, client=client(service, clock), id_field="id")
    clock.time += 300
    corpus.batch_fetch(output, client=client(service, clock))
    assert [row.id for row in read_vectors(output)] == ["00", "01", "02"]


def test_what_is_paid_for_or_under_way_is_not_submitted_again(
    source: Path, output: Path, service: Emulator, clock: FakeClock
) -> None:
    corpus.batch_submit(source, output, client=client(service, clock))
    corpus.batch_submit(source, output, client=client(service, clock))
    assert asked(service, "POST", "/batches") == 1
    more = [*TEXTS, "one more"]
    corpus.batch_run(write_lines(source, more), output, client=client(service, clock))
    embedded(service, output, more)
    assert asked(service, "POST", "/batches") == 2
    assert service.billed_texts == 96


# --- what fails --------------------------------------------------------------------------------------------


def test_one_refused_text_never_costs_its_neighbours(
    source: Path, output: Path, service: Emulator, clock: FakeClock
) -> None:
    service.faults = [faults.LineFails(match="number 17", every=1)]
    found = corpus.batch_run(source, output, client=client(service, clock))
    embedded(service, output, TEXTS, {17})
    assert [(row["id"], row["code"]) for row in read_rejects(output)] == [(17, "DataInspectionFailed")]
    assert all(row["request_id"] for row in read_rejects(output))
    assert (found.rejected, service.billed_texts, [file.lines for file in found.files]) == (1, 94, [10, 10])


@pytest.mark.parametrize(
    "fault",
    [
        faults.LineFails(code="Throttling.RateQuota", times=3),
        faults.LineFails(code="InternalError", times=3),
        faults.LineFails(code="nobody knows this one", times=3),
        faults.LineLost(times=3),
        faults.BatchExpires(share=0.5),
        faults.BatchFails(code="internal", message="try again", line=None),
        faults.Drop(route=CONTENT, times=2),
        faults.Status(status=503, route="/batches", times=4),
        faults.Throttle(route="/files", times=2),
    ],
    ids=repr,
)
def test_what_may_pass_is_tried_again_and_nothing_is_paid_twice(
    fault: faults.Fault, source: Path, output: Path, service: Emulator, clock: FakeClock
) -> None:
    service.faults = [fault]
    found = corpus.batch_run(source, output, client=client(service, clock, batch_size=1))
    assert found.finished
    embedded(service, output, TEXTS)
    assert service.billed_texts == 95
    assert found.spent.tokens == service.billed_tokens


@pytest.mark.parametrize("unfinished", ["errors", "absent"])
def test_a_line_in_neither_file_is_no_hole(unfinished: Any, source: Path, output: Path, clock: FakeClock) -> None:
    settings = BatchSettings(seconds=60, unfinished=unfinished)
    service = Emulator(clock=clock.now, batches=settings, faults=[faults.BatchExpires(share=0.3)])
    corpus.batch_run(source, output, client=client(service, clock))
    embedded(service, output, TEXTS)
    assert service.billed_texts == 95


def test_lines_that_fail_for_ever_are_left_and_said_to_be(
    source: Path, output: Path, service: Emulator, clock: FakeClock
) -> None:
    service.faults = [faults.LineFails(code="InternalError", match="number 17", every=1)]
    found = corpus.batch_run(source, output, client=client(service, clock))
    assert (found.finished, found.pending, found.given_up, found.under_way) == (False, 10, 10, 0)
    assert asked(service, "POST", "/batches") == 5
    service.faults = []
    assert corpus.batch_run(source, output, client=client(service, clock)).finished
    assert service.billed_texts == 95


@pytest.mark.parametrize("code", ["model_not_found", "mismatched_model", "url_not_found", "duplicate_custom_id"])
def test_a_validation_that_cannot_pass_stops_and_says_what_to_do(
    code: str, source: Path, output: Path, service: Emulator, clock: FakeClock
) -> None:
    service.faults = [faults.BatchFails(code=code, message="as it is", line=2, every=1)]
    with pytest.raises(
        BadRequestError, match=rf"{code}: as it is \(line 2 .*in\.txt:11\).*embed in real time"
    ) as caught:
        corpus.batch_run(source, output, client=client(service, clock))
    assert caught.value.code == code
    assert asked(service, "POST", "/batches") == 1


def test_a_second_failed_validation_is_an_error_and_other_files_are_kept(
    source: Path, output: Path, service: Emulator, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_file, "MAX_FILE_LINES", 4)
    # Of three files the second fails, and so does the one that is made of it.
    service.faults = [faults.BatchFails(code="odd", after=number, times=1) for number in (1, 3)]
    with pytest.raises(BadRequestError, match="odd"):
        corpus.batch_run(source, output, client=client(service, clock))
    assert service.billed_texts == 55
    assert corpus.batch_run(source, output, client=client(service, clock)).finished
    embedded(service, output, TEXTS)
    assert service.billed_texts == 95


def test_cancelled_lines_are_paid_and_kept_and_the_rest_waits_for_a_new_submission(
    source: Path, output: Path, service: Emulator, clock: FakeClock
) -> None:
    corpus.batch_submit(source, output, client=client(service, clock))
    clock.time += 90
    corpus.batch_cancel(output, client=client(service, clock))
    clock.time += 90
    found = corpus.batch_fetch(output, client=client(service, clock))
    assert 0 < found.embedded == service.billed_texts < 95
    assert (found.finished, found.under_way, found.given_up) == (False, 0, 95 - found.embedded)
    assert asked(service, "POST", "/batches") == 1
    assert corpus.batch_run(None, output, client=client(service, clock)).finished
    assert service.billed_texts == 95


def test_a_long_text_is_cut_and_its_mean_comes_out(
    tmp_path: Path, output: Path, service: Emulator, clock: FakeClock
) -> None:
    source = write_lines(tmp_path / "in.txt", ["short", "word " * 60_000])
    corpus.batch_run(source, output, client=client(service, clock, long_text="average"))
    _, long = read_vectors(output)
    assert math.hypot(*(long.dense or ())) == pytest.approx(1.0, abs=1e-5)
    assert service.billed_texts > 2


@pytest.mark.parametrize(("long_text", "files"), [("error", 2), ("truncate", 2), ("average", 2)])
def test_a_text_that_only_the_service_finds_too_long_is_treated_as_was_asked(
    long_text: str, files: int, tmp_path: Path, output: Path, clock: FakeClock
) -> None:
    service = Emulator(clock=clock.now, batches=BatchSettings(), tokens_per_row=500)
    source = write_lines(tmp_path / "in.txt", ["short", "word " * 700])
    found = corpus.batch_run(source, output, client=client(service, clock, long_text=long_text))
    assert found.finished
    assert len(found.files) == files
    assert [row.id for row in read_vectors(output)] == ([0] if long_text == "error" else [0, 1])
    if long_text == "error":
        assert 'use long_text="truncate" or "average"' in read_rejects(output)[0]["reason"]


# --- what only others' services do ---------------------------------------------------------------------------


def spoilt(service: Emulator, change: Callable[[list[bytes]], list[bytes]], *, times: int = 1) -> httpx.MockTransport:
    """A service whose output files are changed on their way."""
    left = [times]

    def answer(request: httpx.Request) -> httpx.Response:
        reply = service(request)
        if request.url.path.endswith(CONTENT) and left[0]:
            left[0] -= 1
            return httpx.Response(200, content=b"".join(change(reply.content.splitlines(keepends=True))))
        return reply

    return httpx.MockTransport(answer)


def _vector(line: bytes, change: Callable[[list[Any]], list[Any]]) -> bytes:
    found = json.loads(line)
    data = found["response"]["body"]["data"]
    found["response"]["body"]["data"] = change(data)
    return json.dumps(found).encode() + b"\n"


@pytest.mark.parametrize(
    ("change", "billed"),
    [
        (lambda rows: rows[1:], 0),
        (lambda rows: [*rows, *rows], 0),
        (lambda rows: [b"no json\n", b"{}\n", b'{"custom_id":"line-999"}\n', b'{"custom_id":7}\n', *rows], 0),
        (lambda rows: [_vector(rows[0], lambda data: data[1:]), *rows[1:]], 1),
        (lambda rows: [_vector(rows[0], lambda data: data[1:]), *rows], 0),
        (lambda rows: [rows[0].replace(b'"status_code":200', b'"status_code":500'), *rows[1:]], 0),
        (lambda rows: [b"\n", *rows[:3]], 0),
    ],
    ids=["missing", "doubled", "strangers", "short", "short and whole", "500 in an output file", "most missing"],
)
def test_odd_results_are_joined_or_asked_again(  # noqa: PLR0913, PLR0917 - the fixtures
    change: Any, billed: int, source: Path, output: Path, service: Emulator, clock: FakeClock
) -> None:
    asking = client(service, clock)
    asking._transport._user_resources.client._transport = spoilt(service, change)
    found = corpus.batch_run(source, output, client=asking)
    assert found.finished
    embedded(service, output, TEXTS)
    assert found.spent.requests == 10 + billed


def test_a_result_is_read_in_any_shape_that_was_seen_or_documented() -> None:
    read_line = batch_protocol.read_result
    refused = read_line(b'{"id":"r","custom_id":"line-1","response":{},"error":{"code":"X","message":"m"}}')
    assert refused is not None
    assert refused.refusal is not None
    assert (refused.refusal.code, refused.refusal.message, refused.refusal.request_id) == ("X", "m", "r")
    silent = read_line(b'{"custom_id":"line-1","response":null,"error":null}')
    assert silent is not None
    assert silent.refusal is not None
    assert read_line(b'{"custom_id":null}') is None
    assert batch_protocol.read_batch_list(Reply(200, {}, b'{"object":"list","data":null,"has_more":false}')) == (
        [],
        None,
    )


# --- killed ------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """In place of a signal that nobody can catch."""


def dies_at(asking: EmbeddingClient, step: int, *, sent: bool) -> list[int]:
    """The client's driver ends without a word at one step: before it, or with its reply on the way."""
    count = [0]

    def run(flow: Any, _: Any) -> Any:
        answer: Any = None
        try:
            while True:
                what = flow.send(answer)
                count[0] += 1
                if count[0] == step and not sent:
                    raise Killed
                sessions = asking._transport
                answer = (
                    sessions.send(what)
                    if isinstance(what, Send)
                    else sessions.clock.wait(threading.Event(), what.seconds)
                )
                answer = answer or None
                if count[0] == step:
                    raise Killed
        except StopIteration as done:
            return done.value

    asking.run = run  # type: ignore[method-assign, assignment]
    return count


@pytest.mark.parametrize("sent", [False, True], ids=["before the step", "before its reply"])
def test_killed_at_any_step_nothing_is_lost_and_nothing_paid_twice(
    sent: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_file, "MAX_FILE_LINES", 2)
    monkeypatch.setattr(jobs, "_SYNCHRONOUS", "OFF")  # what is killed here is no disk
    texts = TEXTS[:25]
    source, steps = write_lines(tmp_path / "in.txt", texts), 0
    for step in range(1, 200):
        clock = FakeClock()
        service = Emulator(clock=clock.now, batches=BatchSettings())
        service.faults = [faults.LineFails(match="number 17", every=1), faults.BatchExpires(share=0.5)]
        output = tmp_path / f"{step}.jsonl"
        asking = client(service, clock)
        count = dies_at(asking, step, sent=sent)
        try:
            corpus.batch_run(source, output, client=asking)
        except Killed:
            steps = step
        else:
            assert count[0] < step
            break
        found = corpus.batch_run(source, output, client=client(service, clock))
        embedded(service, output, texts, {17})
        billed = Counter(text for line in service.batch_lines if line.code is None for text in line.texts)
        assert set(billed.values()) == {1}, f"step {step}"
        assert found.spent.texts == 24
        assert len(
            {one.body["input_file_id"] for one in service.asked if one.path.endswith("/batches") and one.body}
        ) == (asked(service, "POST", "/batches"))
    assert steps > 20


def test_stopped_while_it_waits_it_goes_on(source: Path, output: Path, service: Emulator, clock: FakeClock) -> None:
    stop = threading.Event()

    def progress(now: corpus.BatchProgress) -> None:
        assert now.said == now.message
        if "created" in now.message:
            stop.set()

    found = corpus.batch_run(source, output, client=client(service, clock), progress=progress, stop=stop)
    assert (found.stopped, found.finished, found.under_way) == (True, False, 95)
    assert corpus.batch_run(source, output, client=client(service, clock)).finished
    assert asked(service, "POST", "/batches") == 1


# --- refused before anything is sent -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "how", "said"),
    [
        ({"protocol": "native"}, {}, 'protocol="openai"'),
        ({}, {"window": "23h"}, "24h to 336h"),
        ({}, {"window": "15d"}, "24h to 336h"),
        ({}, {"name": "n" * 101}, "may have 100"),
        ({}, {"description": "n" * 201}, "may have 200"),
    ],
)
def test_wrong_use_is_told_before_anything_is_sent(  # noqa: PLR0913, PLR0917 - the fixtures
    settings: Any, how: Any, said: str, source: Path, output: Path, service: Emulator, clock: FakeClock
) -> None:
    with pytest.raises(InvalidInput, match=said):
        corpus.batch_submit(source, output, client=client(service, clock, **settings), **how)
    assert service.requests == 0
    assert not corpus.ledger_beside(output).exists()


def test_vectors_of_two_routes_do_not_mix(source: Path, output: Path, service: Emulator, clock: FakeClock) -> None:
    corpus.embed_corpus(source, output, client=client(service, clock))
    with pytest.raises(InvalidInput, match="route was 'real-time' and is now 'batch'"):
        corpus.batch_submit(source, output, client=client(service, clock))


def test_a_service_that_is_away_leaves_the_job_as_it_was(
    source: Path, output: Path, service: Emulator, clock: FakeClock
) -> None:
    service.faults = [faults.Drop(every=1, route="/files")]
    with pytest.raises(ConnectionFailed):
        corpus.batch_submit(source, output, client=client(service, clock, max_retries=2))
    service.faults = []
    assert corpus.batch_run(source, output, client=client(service, clock)).finished
    assert service.billed_texts == 95


# --- large -------------------------------------------------------------------------------------------------


def test_30_000_lines_with_failures_end_embedded_or_rejected(
    tmp_path: Path, output: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_file, "MAX_FILE_LINES", 12_500)
    count = 30_000
    source = write_lines(tmp_path / "in.txt", (f"t{number}." for number in range(count)))
    bad = {5, 15_005, 29_995}
    service = Emulator(
        clock=clock.now,
        log=0,
        batches=BatchSettings(seconds=60),
        faults=[
            faults.BatchFails(code="odd", times=1, after=1),
            faults.BatchExpires(share=0.5, times=1, after=2),
            *(faults.LineFails(match=f"t{number}.", every=1) for number in bad),
            faults.LineFails(code="Throttling", times=200, after=1_000),
            faults.LineLost(times=5, after=2_000),
        ],
    )
    found = corpus.batch_run(source, output, client=client(service, clock, batch_size=1))
    assert (found.finished, found.texts, found.rejected) == (True, count, len(bad))
    assert {row["id"] for row in read_rejects(output)} == bad
    assert service.billed_texts == found.spent.texts == count - len(bad)
    ids = [row.id for row in corpus.read(output)]
    assert ids == [number for number in range(count) if number not in bad]
    assert len(found.files) >= 5
