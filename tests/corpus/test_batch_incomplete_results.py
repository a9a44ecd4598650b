"""Results of a batch that do not come whole: looked for again, and never paid a second time without being told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import FakeClock, client_for
from corpus_helpers import DIMENSIONS, expected_vector, read_rejects, read_vectors, write_lines

from dashscope_embeddings import BadReply, EmbeddingClient, ServiceError, corpus
from dashscope_embeddings.emulator import Emulator, faults
from dashscope_embeddings.emulator.batch.service import BatchSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXTS = [f"text number {number}" for number in range(95)]
FAILING = "text number 17"


class Service:
    """The emulator behind a gateway that changes some replies to a kind of request."""

    def __init__(self, *, ending: str, change: Callable[[httpx.Response], httpx.Response], times: int) -> None:
        self.clock = FakeClock()
        self.emulator = Emulator(clock=self.clock.now, batches=BatchSettings(seconds=60))
        self._ending, self._change, self.left = ending, change, times

    def __call__(self, request: httpx.Request) -> httpx.Response:
        reply = self.emulator(request)
        concerned = request.method == "GET" and request.url.path.rsplit("/", 1)[-1].startswith(self._ending)
        if concerned and self.left and not (self._ending == "batch" and reply.json()["status"] != "completed"):
            self.left -= 1
            return self._change(reply)
        return reply

    def client(self) -> EmbeddingClient:
        made = client_for(self.emulator, self.clock, protocol="openai", dimensions=DIMENSIONS)
        made._transport._user_resources.client._transport = httpx.MockTransport(self)
        return made

    @property
    def batches_made(self) -> int:
        return sum(one.method == "POST" and one.path.endswith("/batches") for one in self.emulator.asked)


def content(change: Callable[[bytes], bytes]) -> dict[str, Any]:
    return {"ending": "content", "change": lambda reply: httpx.Response(200, content=change(reply.content))}


def seen_as(**fields: Any) -> dict[str, Any]:
    return {"ending": "batch", "change": lambda reply: httpx.Response(200, json={**reply.json(), **fields})}


def half_a_file(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def first_lines(whole: bytes) -> bytes:
    return b"".join(whole.splitlines(keepends=True)[:3])


INCOMPLETE = {
    "empty": content(lambda _: b""),
    "cut in a line": content(half_a_file),
    "fewer lines": content(first_lines),
    "without its last line": content(lambda whole: whole[: whole.rindex(b"\n", 0, -1) + 1]),
    "an error with 200": content(lambda _: b'{"error":{"code":"internal","message":"try later"},"request_id":"x"}'),
    "other JSON": content(lambda _: b'{"status":"error"}'),
    "a web page": content(lambda _: b"<html>please log in</html>"),
    "another batch's lines": content(lambda whole: whole.replace(b"line-", b"line-9")),
    "not there yet": {"ending": "content", "change": lambda _: httpx.Response(404)},
    "no id yet": seen_as(output_file_id=None),
    "no id, nothing counted": seen_as(output_file_id=None, request_counts=None),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.txt", TEXTS)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def whole(service: Service, output: Path) -> bool:
    emulator = service.emulator
    return [row.dense for row in read_vectors(output)] == [
        expected_vector(emulator, text, text_type="query") for text in TEXTS
    ]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("kind", INCOMPLETE)
def test_results_that_are_not_whole_are_fetched_again(kind: str, times: int, source: Path, output: Path) -> None:
    service = Service(**INCOMPLETE[kind], times=times)
    found = corpus.batch_run(source, output, client=service.client())
    assert (found.finished, service.left) == (True, 0)
    assert whole(service, output)
    assert (service.emulator.billed_texts, service.batches_made) == (95, 1)
    assert found.spent.tokens == service.emulator.billed_tokens


@pytest.mark.parametrize("kind", INCOMPLETE)
def test_results_that_stay_incomplete_keep_the_batch(kind: str, source: Path, output: Path) -> None:
    service = Service(**INCOMPLETE[kind], times=10**6)
    with pytest.raises((BadReply, ServiceError), match=r"batch_.*lack \d+ lines?.*batch fetch.*batch cancel"):
        corpus.batch_run(source, output, client=service.client())
    assert (service.emulator.billed_texts, service.batches_made) == (95, 1)
    service.left = 0
    assert corpus.batch_fetch(output, client=service.client()).finished
    assert whole(service, output)
    assert (service.emulator.billed_texts, service.batches_made) == (95, 1)


def test_lines_that_never_come_are_given_up_when_their_batch_is_cancelled(source: Path, output: Path) -> None:
    service = Service(**content(first_lines), times=10**6)
    with pytest.raises(BadReply, match="lack 7 lines"):
        corpus.batch_run(source, output, client=service.client())
    given_up = corpus.batch_cancel(output, client=service.client())
    assert (given_up.under_way, given_up.pending) == (0, 70)
    service.left = 0
    assert corpus.batch_run(None, output, client=service.client()).finished
    assert whole(service, output)
    assert service.emulator.billed_texts == 95 + 70


def test_failed_lines_whose_file_is_missing_are_looked_for_too(source: Path, output: Path) -> None:
    service = Service(**seen_as(error_file_id=None), times=2)
    service.emulator.faults = [faults.LineFails(match=FAILING, every=1)]
    found = corpus.batch_run(source, output, client=service.client())
    assert (found.finished, found.rejected, service.left) == (True, 1, 0)
    assert [one["code"] for one in read_rejects(output)] == ["DataInspectionFailed"]
    assert service.emulator.billed_texts == 94


def test_a_batch_that_expired_frees_what_nobody_counts_as_done(source: Path, output: Path) -> None:
    service = Service(**content(first_lines), times=0)
    service.emulator.faults = [faults.BatchExpires(share=0.3)]
    assert corpus.batch_run(source, output, client=service.client()).finished
    assert whole(service, output)
    assert service.emulator.billed_texts == 95
