"""Batch files: every text embedded once or named, whatever fails, and nothing submitted twice."""

from __future__ import annotations

import json
import math
import os
import re
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

import httpx
import pytest
from client_helpers import FakeClock, client_for
from corpus_helpers import DIMENSIONS, expected_vector, read_rejects, read_vectors, write_json_lines, write_lines

from dashscope_embeddings import (
    BadReply,
    BadRequestError,
    ConnectionFailed,
    EmbeddingClient,
    InvalidInput,
    ServiceError,
    corpus,
)
from dashscope_embeddings._core.steps import Send
from dashscope_embeddings.corpus.batch import request_file
from dashscope_embeddings.corpus.checkpoint import jobs
from dashscope_embeddings.emulator import BatchSettings, Emulator, faults

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXTS = [f"text number {number}" for number in range(95)]
CONTENT = "/content"


class Job:
    """A corpus in a folder, and the service, whose replies `change` may edit on their way."""

    def __init__(self, folder: Path, **service: Any) -> None:
        self.clock = FakeClock()
        service = {"batches": BatchSettings(seconds=60), **service}
        self.service = Emulator(clock=self.clock.now, **service)
        self.source, self.output = write_lines(folder / "in.txt", TEXTS), folder / "out.jsonl"
        self.change: Callable[[httpx.Request, httpx.Response], httpx.Response] = lambda _, reply: reply

    def client(self, **settings: Any) -> EmbeddingClient:
        client = client_for(self.service, self.clock, **{"protocol": "openai", "dimensions": DIMENSIONS, **settings})
        changed = httpx.MockTransport(lambda request: self.change(request, self.service(request)))
        client._transport._user_resources.client._transport = changed
        return client

    def run(self, *, client: EmbeddingClient | None = None, **how: Any) -> corpus.BatchSummary:
        return corpus.batch_run(self.source, self.output, client=client or self.client(), **how)

    def submit(self, **how: Any) -> corpus.BatchSummary:
        return corpus.batch_submit(self.source, self.output, client=self.client(), **how)

    def fetch(self) -> corpus.BatchSummary:
        return corpus.batch_fetch(self.output, client=self.client())

    def cancel(self) -> corpus.BatchSummary:
        return corpus.batch_cancel(self.output, client=self.client())

    def check_output(self, texts: list[str] = TEXTS, *, without: int | None = None, billed: int = 95) -> None:
        """Every text has its own vector, and this many texts were billed."""
        kept = [number for number in range(len(texts)) if number != without]
        rows = read_vectors(self.output)
        assert [row.id for row in rows] == kept
        assert [row.dense for row in rows] == [
            expected_vector(self.service, texts[number], text_type="query") for number in kept
        ]
        assert self.service.billed_texts == billed

    @property
    def created(self) -> list[dict[str, Any]]:
        """The bodies of the successful requests to create a batch."""
        return [
            one.body for one in self.service.asked if one.path.endswith("/batches") and one.body and one.status == 200
        ]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_corpus_goes_out_and_comes_back_joined_by_name(job: Job) -> None:
    estimates: list[corpus.BatchEstimate] = []
    found = job.run(before=estimates.append, name="a corpus")
    job.check_output()
    assert (found.finished, found.embedded, found.usage.texts, found.usage.requests) == (True, 95, 95, 10)
    assert found.usage.tokens == job.service.billed_tokens
    assert found.usage.cost is not None
    assert float(found.usage.cost.amount) == pytest.approx(job.service.billed_tokens * 0.25 / 1e6)
    assert [(one.pending, one.files, one.documented) for one in estimates] == [(95, 1, True)]
    [created] = job.created
    assert (created["endpoint"], created["metadata"]) == ("/v1/embeddings", {"ds_name": "a corpus"})
    assert all(30 <= wait <= 120 for wait in job.clock.waits)
    assert sorted(path.name for path in job.output.parent.iterdir()) == ["in.txt", "out.jsonl", "out.jsonl.ledger"]


def test_progress_true_prints_the_lines_that_a_function_gets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[corpus.BatchProgress] = []
    for name, progress in {"told": events.append, "printed": True, "silent": False}.items():
        (tmp_path / name).mkdir()
        Job(tmp_path / name).run(progress=progress)
    told, printed = [event.message for event in events], capsys.readouterr().err.splitlines()
    assert len(told) > 2
    assert [_without_id(line) for line in printed] == [_without_id(line) for line in told]


def _without_id(line: str) -> str:
    return re.sub(r"batch_[-0-9a-f]+", "batch", line)


def test_submitted_fetched_on_another_machine_after_the_input_changed(job: Job, tmp_path: Path) -> None:
    sent = job.submit(with_text=True)
    assert (sent.finished, sent.under_way, sent.pending) == (False, 95, 95)
    job.source.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ledger = corpus.ledger_beside(job.output)
    job.output = elsewhere / "out.jsonl"
    ledger.rename(corpus.ledger_beside(job.output))
    job.clock.time += 90
    seen = corpus.batch_status(job.output, client=job.client())
    assert [(file.status, file.state) for file in seen.files] == [("in_progress", "running")]
    assert not job.fetch().finished
    job.clock.time += 90
    assert job.fetch().finished
    job.check_output()
    assert [row.text for row in read_vectors(job.output)] == TEXTS


def test_ids_stay_strings_when_the_checkpoint_is_opened_again(job: Job, tmp_path: Path) -> None:
    job.source = write_json_lines(tmp_path / "in.jsonl", ({"id": f"0{n}", "text": f"t {n}"} for n in range(3)))
    job.submit(id_field="id")
    job.clock.time += 300
    job.fetch()
    assert [row.id for row in read_vectors(job.output)] == ["00", "01", "02"]


def test_what_is_paid_for_or_under_way_is_not_submitted_again(job: Job) -> None:
    job.submit()
    job.submit()
    assert len(job.created) == 1
    more = [*TEXTS, "one more"]
    write_lines(job.source, more)
    job.run()
    job.check_output(more, billed=96)
    assert len(job.created) == 2


# --- what fails --------------------------------------------------------------------------------------------


def test_one_refused_text_never_costs_its_neighbours(job: Job) -> None:
    job.service.faults = [faults.LineFails(match="number 17", every=1)]
    found = job.run()
    job.check_output(without=17, billed=94)
    [reject] = read_rejects(job.output)
    assert (reject["id"], reject["code"], bool(reject["request_id"])) == (17, "DataInspectionFailed", True)
    assert (found.rejected, [file.lines for file in found.files]) == (1, [10, 10])


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
    ids=lambda fault: fault.label + getattr(fault, "code", ""),
)
def test_what_may_pass_is_tried_again_and_nothing_is_paid_twice(fault: faults.Fault, job: Job) -> None:
    job.service.faults = [fault]
    found = job.run(client=job.client(batch_size=1))
    assert found.finished
    job.check_output()
    assert found.spent.tokens == job.service.billed_tokens


def test_a_line_in_neither_file_is_no_hole(tmp_path: Path) -> None:
    settings = BatchSettings(seconds=60, unfinished="absent")
    job = Job(tmp_path, batches=settings, faults=[faults.BatchExpires(share=0.3)])
    job.run()
    job.check_output()


def test_lines_that_fail_for_ever_are_left_and_reported(job: Job) -> None:
    job.service.faults = [faults.LineFails(code="InternalError", match="number 17", every=1)]
    found = job.run()
    assert (found.finished, found.pending, found.given_up, found.under_way) == (False, 10, 10, 0)
    assert len(job.created) == 5
    job.service.faults = []
    assert job.run().finished
    job.check_output()


@pytest.mark.parametrize("code", ["model_not_found", "mismatched_model", "url_not_found", "duplicate_custom_id"])
def test_a_validation_that_cannot_pass_stops_and_says_what_to_do(code: str, job: Job) -> None:
    job.service.faults = [faults.BatchFails(code=code, message="as it is", line=2, every=1)]
    advice = rf"{code}: as it is \(line 2 .*in\.txt:11\).*embed in real time"
    with pytest.raises(BadRequestError, match=advice) as caught:
        job.run()
    assert (caught.value.code, len(job.created)) == (code, 1)


def test_a_second_failed_validation_is_an_error_and_other_files_are_kept(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_file, "MAX_FILE_LINES", 4)
    # Of three files the second fails, and so does the one that is made of it.
    job.service.faults = [faults.BatchFails(code="odd", after=number, times=1) for number in (1, 3)]
    with pytest.raises(BadRequestError, match="odd"):
        job.run()
    assert job.service.billed_texts == 55
    assert job.run().finished
    job.check_output()


def test_cancelled_lines_are_paid_and_kept_and_the_rest_waits_for_a_new_submission(job: Job) -> None:
    job.submit()
    job.clock.time += 90
    job.cancel()
    job.clock.time += 90
    found = job.fetch()
    assert 0 < found.embedded == job.service.billed_texts < 95
    assert (found.finished, found.under_way, found.given_up) == (False, 0, 95 - found.embedded)
    assert len(job.created) == 1
    assert corpus.batch_run(None, job.output, client=job.client()).finished
    job.check_output()


@pytest.mark.parametrize("long_text", ["error", "truncate", "average"])
def test_a_text_that_only_the_service_finds_too_long_is_treated_as_was_asked(long_text: str, tmp_path: Path) -> None:
    job = Job(tmp_path, tokens_per_row=500)
    write_lines(job.source, ["short", "word " * 700])
    found = job.run(client=job.client(long_text=long_text))
    assert (found.finished, len(found.files)) == (True, 2)
    rows = read_vectors(job.output)
    assert [row.id for row in rows] == ([0] if long_text == "error" else [0, 1])
    assert all(math.hypot(*(row.dense or ())) == pytest.approx(1.0, abs=1e-5) for row in rows)
    if long_text == "error":
        assert 'use long_text="truncate" or "average"' in read_rejects(job.output)[0]["reason"]


def test_a_long_text_is_cut_and_its_mean_comes_out(job: Job) -> None:
    write_lines(job.source, ["short", "word " * 40_000])
    job.run(client=job.client(long_text="average"))
    _, long = read_vectors(job.output)
    assert math.hypot(*(long.dense or ())) == pytest.approx(1.0, abs=1e-5)
    assert job.service.billed_texts > 2


# --- results that are odd or incomplete ------------------------------------------------------------------------


Change: TypeAlias = "Callable[[httpx.Request, httpx.Response], httpx.Response | None]"
"""Makes another reply; None: it stays as it is."""


def in_content(change: Callable[[bytes], bytes]) -> Change:
    """Changes the output files."""

    def edit(request: httpx.Request, reply: httpx.Response) -> httpx.Response | None:
        is_content = request.url.path.endswith(CONTENT)
        return httpx.Response(200, content=change(reply.content)) if is_content else None

    return edit


def in_status(**fields: Any) -> Change:
    """Changes the status of a batch that is completed."""

    def edit(request: httpx.Request, reply: httpx.Response) -> httpx.Response | None:
        if request.method != "GET" or "/batches/" not in request.url.path or reply.json()["status"] != "completed":
            return None
        return httpx.Response(200, json={**reply.json(), **fields})

    return edit


def is_missing(request: httpx.Request, _: httpx.Response) -> httpx.Response | None:
    return httpx.Response(404) if request.url.path.endswith(CONTENT) else None


class Changes:
    """Applies a change a number of times."""

    def __init__(self, change: Change, times: int) -> None:
        self.change, self.left = change, times

    def __call__(self, request: httpx.Request, reply: httpx.Response) -> httpx.Response:
        if not self.left or (changed := self.change(request, reply)) is None:
            return reply
        self.left -= 1
        return changed


def _lines(change: Callable[[list[bytes]], list[bytes]]) -> Change:
    return in_content(lambda content: b"".join(change(content.splitlines(keepends=True))))


def _shortened(line: bytes) -> bytes:
    found = json.loads(line)
    del found["response"]["body"]["data"][0]
    return json.dumps(found).encode() + b"\n"


def _silent(line: bytes) -> bytes:
    return json.dumps({**json.loads(line), "response": None}).encode() + b"\n"


@pytest.mark.parametrize(
    ("change", "billed"),
    [
        (lambda rows: [*rows, *rows], 0),
        (lambda rows: [b"no json\n", b"{}\n", b'{"custom_id":"line-999"}\n', b'{"custom_id":7}\n', *rows], 0),
        (lambda rows: [_shortened(rows[0]), *rows[1:]], 1),
        (lambda rows: [_shortened(rows[0]), *rows], 0),
        (lambda rows: [rows[0].replace(b'"status_code":200', b'"status_code":500'), *rows[1:]], 0),
        (lambda rows: [_silent(rows[0]), *rows[1:]], 0),
    ],
    ids=["doubled", "strangers", "short", "short and whole", "500 in an output file", "neither reply nor error"],
)
def test_odd_results_are_joined_or_asked_again(change: Any, billed: int, job: Job) -> None:
    job.change = Changes(_lines(change), 1)
    found = job.run()
    assert (found.finished, found.spent.requests) == (True, 10 + billed)
    job.check_output(billed=job.service.billed_texts)


FIRST_LINES = _lines(lambda lines: lines[:3])
INCOMPLETE = {
    "empty": in_content(lambda _: b""),
    "cut in a line": in_content(lambda whole: whole[: len(whole) // 2]),
    "fewer lines": FIRST_LINES,
    "without its last line": _lines(lambda lines: lines[:-1]),
    "an error with 200": in_content(lambda _: b'{"error":{"code":"internal","message":"try later"},"request_id":"x"}'),
    "other JSON": in_content(lambda _: b'{"status":"error"}'),
    "a web page": in_content(lambda _: b"<html>please log in</html>"),
    "another batch's lines": in_content(lambda whole: whole.replace(b"line-", b"line-9")),
    "not there yet": is_missing,
    "no id yet": in_status(output_file_id=None),
    "no id, nothing counted": in_status(output_file_id=None, request_counts=None),
}


@pytest.mark.parametrize("kind", INCOMPLETE)
def test_incomplete_results_are_fetched_again_and_keep_the_batch_if_they_stay_so(kind: str, job: Job) -> None:
    job.change = changes = Changes(INCOMPLETE[kind], 10**6)
    with pytest.raises((BadReply, ServiceError), match=r"batch_.*lack \d+ lines?.*batch fetch.*batch cancel"):
        job.run()
    assert (job.service.billed_texts, len(job.created)) == (95, 1)
    changes.left = 2
    found = job.fetch()
    assert (found.finished, changes.left, len(job.created)) == (True, 0, 1)
    assert found.spent.tokens == job.service.billed_tokens
    job.check_output()


def test_lines_that_never_come_are_given_up_when_their_batch_is_cancelled(job: Job) -> None:
    job.change = changes = Changes(FIRST_LINES, 10**6)
    with pytest.raises(BadReply, match="lack 7 lines"):
        job.run()
    given_up = job.cancel()
    assert (given_up.under_way, given_up.pending) == (0, 70)
    changes.left = 0
    assert corpus.batch_run(None, job.output, client=job.client()).finished
    job.check_output(billed=95 + 70)


def test_failed_lines_whose_file_is_missing_are_looked_for_too(job: Job) -> None:
    job.change = changes = Changes(in_status(error_file_id=None), 2)
    job.service.faults = [faults.LineFails(match="number 17", every=1)]
    found = job.run()
    assert (found.finished, found.rejected, changes.left) == (True, 1, 0)
    assert [one["code"] for one in read_rejects(job.output)] == ["DataInspectionFailed"]
    assert job.service.billed_texts == 94


# --- killed ------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """In place of a signal that nobody can catch."""


def dies_at(asking: EmbeddingClient, step: int, *, sent: bool) -> list[int]:
    """The client's driver ends without a word at one step: before it, or at one request with its reply on the way."""
    count = [0]

    def run(flow: Any, _: Any) -> Any:
        answer: Any = None
        try:
            while True:
                what = flow.send(answer)
                is_request = isinstance(what, Send)
                count[0] += is_request or not sent
                if count[0] == step and not sent:
                    raise Killed
                sessions = asking._transport
                answer = (
                    sessions.send(what) if is_request else sessions.clock.wait(threading.Event(), what.seconds) or None
                )
                if count[0] == step:
                    raise Killed
        except StopIteration as done:
            return done.value

    asking.run_steps = run  # type: ignore[assignment]
    return count


@pytest.mark.parametrize("sent", [False, True], ids=["before the step", "before its reply"])
def test_killed_at_any_step_nothing_is_lost_and_nothing_paid_twice(
    sent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_file, "MAX_FILE_LINES", 2)
    # What is killed here is no disk.
    monkeypatch.setattr(jobs, "_SYNCHRONOUS", "OFF")
    monkeypatch.setattr(os, "fsync", lambda _: None)
    texts, steps = TEXTS[:25], 0
    for step in range(1, 200):
        script = [faults.LineFails(match="number 17", every=1), faults.BatchExpires(share=0.5)]
        job = Job(tmp_path, batches=BatchSettings(), faults=script)
        write_lines(job.source, texts)
        job.output = tmp_path / f"{step}.jsonl"
        asking = job.client()
        count = dies_at(asking, step, sent=sent)
        try:
            job.run(client=asking)
        except Killed:
            steps = step
        else:
            assert count[0] < step
            break
        found = job.run()
        job.check_output(texts, without=17, billed=24)
        billed = Counter(text for line in job.service.batch_lines if line.code is None for text in line.texts)
        assert (set(billed.values()), found.spent.texts) == ({1}, 24), f"step {step}"
        assert len({body["input_file_id"] for body in job.created}) == len(job.created)
    assert steps > 20


def test_stopped_while_it_waits_it_goes_on(job: Job) -> None:
    stop = threading.Event()

    def progress(now: corpus.BatchProgress) -> None:
        assert now.said == now.message
        if "created" in now.message:
            stop.set()

    found = job.run(progress=progress, stop=stop)
    assert (found.stopped, found.finished, found.under_way) == (True, False, 95)
    assert job.run().finished
    assert len(job.created) == 1


# --- refused before anything is sent -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "how", "message"),
    [
        ("native", {}, 'protocol="openai"'),
        ("openai", {"window": "23h"}, "24h to 336h"),
        ("openai", {"window": "15d"}, "24h to 336h"),
        ("openai", {"name": "n" * 101}, "may have 100"),
        ("openai", {"description": "n" * 201}, "may have 200"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_sent(protocol: str, how: Any, message: str, job: Job) -> None:
    with pytest.raises(InvalidInput, match=message):
        job.run(client=job.client(protocol=protocol), **how)
    assert job.service.requests == 0
    assert not corpus.ledger_beside(job.output).exists()


@pytest.mark.parametrize("name", ["embed_corpus", "estimate_corpus", "batch_submit", "batch_run"])
def test_a_client_that_is_none_is_refused_with_where_it_is(name: str, job: Job) -> None:
    with pytest.raises(InvalidInput, match="an EmbeddingClient, not object; an adapter's is its attribute `client`"):
        getattr(corpus, name)(job.source, job.output, client=object())


def test_vectors_of_two_routes_do_not_mix(job: Job) -> None:
    corpus.embed_corpus(job.source, job.output, client=job.client())
    with pytest.raises(InvalidInput, match="route was 'real-time' and is now 'batch'"):
        job.submit()


def test_a_service_that_is_away_leaves_the_job_as_it_was(job: Job) -> None:
    job.service.faults = [faults.Drop(every=1, route="/files")]
    with pytest.raises(ConnectionFailed):
        job.run(client=job.client(max_retries=2))
    job.service.faults = []
    assert job.run().finished
    job.check_output()


# --- large -------------------------------------------------------------------------------------------------


def test_3_000_lines_with_failures_end_embedded_or_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_file, "MAX_FILE_LINES", 1_250)
    count, bad = 3_000, {5, 1_505, 2_995}
    script = [
        faults.BatchFails(code="odd", times=1, after=1),
        faults.BatchExpires(share=0.5, times=1, after=2),
        *(faults.LineFails(match=f"t{number}.", every=1) for number in bad),
        faults.LineFails(code="Throttling", times=100, after=500),
        faults.LineLost(times=5, after=1_000),
    ]
    job = Job(tmp_path, log=0, faults=script)
    write_lines(job.source, (f"t{number}." for number in range(count)))
    found = job.run(client=job.client(batch_size=1))
    assert (found.finished, found.texts, found.rejected) == (True, count, len(bad))
    assert {row["id"] for row in read_rejects(job.output)} == bad
    assert job.service.billed_texts == found.spent.texts == count - len(bad)
    assert [row.id for row in corpus.read(job.output)] == [number for number in range(count) if number not in bad]
    assert len(found.files) >= 5
