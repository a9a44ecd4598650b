"""A job that its caller stops: it asks nothing again, keeps what is still answered, and waits for no silent server."""

from __future__ import annotations

import itertools
import json
import logging
import signal
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import KEY, becomes_true, client_for
from corpus_helpers import DIMENSIONS, write_lines
from raw_server import good_reply, http_response, serve_raw

from dashscope_embeddings import EmbeddingClient, InvalidInput, corpus
from dashscope_embeddings.emulator import in_process

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from raw_server import ReceivedRequest

    from dashscope_embeddings.emulator import Emulator

TEXTS = [f"text number {number}" for number in range(95)]


class Stop:
    """What a caller passes as `stop`; `seen` is set when the job has noticed."""

    def __init__(self) -> None:
        self.asked, self.seen = threading.Event(), threading.Event()
        self.set, self.wait = self.asked.set, self.asked.wait

    def is_set(self) -> bool:
        if self.asked.is_set():
            self.seen.set()
        return self.asked.is_set()

    def stop_and_wait(self) -> None:
        """From the server: a reply that is sent after this finds the job stopped."""
        self.set()
        assert self.seen.wait(20)
        time.sleep(0.05)  # from the caller's answer to the job's note


@pytest.fixture
def stop() -> Stop:
    return Stop()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.txt", TEXTS)


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("_runtime.deadlines", "corpus.embedder"):
        monkeypatch.setattr(f"dashscope_embeddings.{module}.GRACE_SECONDS", 0.2)


def client_of(url: str, **settings: Any) -> EmbeddingClient:
    return EmbeddingClient(api_key=KEY, base_url=url, dimensions=DIMENSIONS, **settings)


def refusal(status: int, code: str, **headers: str) -> bytes:
    return http_response(json.dumps({"code": code, "message": code, "request_id": "r"}).encode(), status, **headers)


REPLIES = {
    "silent": None,
    "busy": refusal(503, "ServiceUnavailable"),
    "throttling": refusal(429, "Throttling.RateQuota", retry_after="60"),
}


@pytest.mark.parametrize("job", ["embed", "batch"])
@pytest.mark.parametrize("server_is", REPLIES)
def test_a_stopped_job_that_gets_no_answer_asks_nothing_again(
    server_is: str, job: str, source: Path, stop: Stop
) -> None:
    ended, in_time = threading.Event(), list[bool]()

    def handle(_: ReceivedRequest, __: socket.socket) -> bytes | None:
        stop.stop_and_wait()
        if REPLIES[server_is] is None:
            in_time.append(ended.wait(10))
        return REPLIES[server_is]

    output = source.with_name("out.jsonl")
    with serve_raw(handle) as server:
        if job == "embed":
            client = client_of(server.url, timeout=30, max_concurrency=3)
            summary: Any = corpus.embed_corpus(source, output, client=client, stop=stop.is_set)
        else:
            client = client_of(server.url, timeout=30, protocol="openai")
            summary = corpus.batch_run(source, output, client=client, stop=stop)
            assert (summary.stopped, summary.pending) == (True, len(TEXTS))
        ended.set()
        assert becomes_true(lambda: len(in_time) in {0, len(server.requests)})
    assert all(in_time)
    assert (summary.finished, summary.embedded) == (False, 0)
    assert set(Counter(request.body[:200] for request in server.requests).values()) == {1}
    assert {path.name for path in source.parent.iterdir()} == {"in.txt", "out.jsonl.ledger"}


def test_a_stop_of_the_wrong_kind_is_refused_before_anything_is_sent(source: Path) -> None:
    event: Any = threading.Event()
    how: Any = {"output": source.with_name("out.jsonl"), "client": EmbeddingClient(base_url="emulator")}
    with pytest.raises(InvalidInput, match="stop must be a function, not Event"):
        corpus.embed_corpus(source, stop=event, **how)
    how["client"] = EmbeddingClient(base_url="emulator", protocol="openai")
    with pytest.raises(InvalidInput, match=r"stop must be a threading\.Event, not method"):
        corpus.batch_run(source, stop=event.is_set, **how)
    assert in_process().requests == 0


@pytest.mark.parametrize("last", ["a text", "word " * 9_000], ids=["a text", "a text of two parts"])
def test_what_is_answered_in_time_is_kept_and_the_rest_is_given_up(
    last: str, tmp_path: Path, stop: Stop, caplog: pytest.LogCaptureFixture
) -> None:
    """Although the request that is never answered is the first, and vectors are handed out in order."""
    source, output = write_lines(tmp_path / "in.txt", [*TEXTS[:10], last]), tmp_path / "out.jsonl"
    ended = threading.Event()
    answered: list[str] = []

    def handle(request: ReceivedRequest, _: socket.socket) -> bytes:
        if TEXTS[0] not in request.texts:
            answered.extend(request.texts)
            if any(last.endswith(text) for text in request.texts):
                stop.stop_and_wait()
        else:
            ended.wait(20)
        return good_reply(request)

    with serve_raw(handle) as server:
        client = client_of(server.url, timeout=30, long_text="average")
        with caplog.at_level(logging.WARNING):
            summary = corpus.embed_corpus(source, output, client=client, stop=stop.is_set)
        assert (summary.finished, summary.embedded) == (False, 1)
        assert summary.usage.texts == len(answered)
        assert "gave up 1 request in flight without an answer" in caplog.text
        ended.set()
        again = corpus.embed_corpus(source, output, client=client)
    assert (again.finished, again.embedded) == (True, 10)


def test_a_reply_has_twice_the_time_of_the_slowest_one_so_far(
    source: Path, stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dashscope_embeddings.corpus.embedder.GRACE_SECONDS", 0.0)

    def handle(request: ReceivedRequest, _: socket.socket) -> bytes:
        if request.number == 1:
            time.sleep(0.5)
        else:
            stop.stop_and_wait()
        return good_reply(request)

    with serve_raw(handle) as server:
        client = client_of(server.url, max_concurrency=1)
        summary = corpus.embed_corpus(source, source.with_name("out.jsonl"), client=client, stop=stop.is_set)
    assert (summary.finished, summary.embedded) == (False, 20)


def test_a_text_that_is_refused_while_the_job_stops_is_no_error(source: Path, stop: Stop) -> None:
    """The rest of its batch, which was bisected, is not sent any more. The next run finds out again."""

    def handle(request: ReceivedRequest, _: socket.socket) -> bytes:
        if TEXTS[0] not in request.texts:
            return good_reply(request)
        if len(request.texts) == 1:
            stop.stop_and_wait()
        return refusal(400, "DataInspectionFailed")

    with serve_raw(handle) as server:
        client = client_of(server.url, max_concurrency=1)
        summary = corpus.embed_corpus(source, source.with_name("out.jsonl"), client=client, stop=stop.is_set)
    assert (summary.finished, summary.embedded, summary.rejected) == (False, 0, 0)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system has no such signals")
def test_ctrl_c_does_not_wait_for_a_silent_server(source: Path) -> None:
    ended, main, found = threading.Event(), threading.get_ident(), list[bool]()
    first = itertools.count()

    def handle(_: ReceivedRequest, __: socket.socket) -> None:
        if not next(first):
            signal.pthread_kill(main, signal.SIGINT)
        found.append(ended.wait(10))

    with serve_raw(handle) as server:
        with pytest.raises(KeyboardInterrupt):
            corpus.embed_corpus(source, source.with_name("out.jsonl"), client=client_of(server.url, max_concurrency=2))
        ended.set()
        assert becomes_true(lambda: bool(found))
    assert found[0], "it waited for the server"


def test_long_texts_that_arrived_out_of_order_are_kept_at_an_interruption(tmp_path: Path, emulator: Emulator) -> None:
    """Their vectors are stored when it is their turn, since a chunk is not a text."""
    source = write_lines(tmp_path / "in.txt", ["first", *(f"{number} " + "word " * 40_000 for number in range(12))])
    others_answered, lock, answered = threading.Event(), threading.Lock(), 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal answered
        if "first" in json.loads(request.content)["input"]["texts"]:
            assert others_answered.wait(20)
            raise KeyboardInterrupt
        reply = emulator(request)
        with lock:
            answered += 1
            if answered == 3:
                others_answered.set()
        return reply

    http = httpx.Client(transport=httpx.MockTransport(answer))
    settings: dict[str, Any] = {"long_text": "average", "batch_size": 4, "max_concurrency": 2, "http_client": http}
    client = EmbeddingClient(api_key=KEY, dimensions=DIMENSIONS, **settings)
    with pytest.raises(KeyboardInterrupt) as caught:
        corpus.embed_corpus(source, tmp_path / "out.jsonl", client=client)
    assert vars(caught.value) == {"partial": {}, "failed": []}
    again = client_for(emulator, long_text="average", dimensions=DIMENSIONS)
    summary = corpus.embed_corpus(source, tmp_path / "out.jsonl", client=again)
    assert (summary.finished, summary.embedded < 13) == (True, True)
    assert emulator.billed_texts < 25 + 4  # rows; a text whose second part was not sent is asked for again
