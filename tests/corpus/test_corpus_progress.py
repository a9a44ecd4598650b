"""What is shown while a corpus is embedded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import FakeClock, client_for
from corpus_helpers import DIMENSIONS, write_lines

from dashscope_embeddings import EmbeddingClient, RequestRecord, Usage, corpus
from dashscope_embeddings.corpus.progress import Lines, RunStatus

if TYPE_CHECKING:
    from pathlib import Path

    from dashscope_embeddings.emulator import Emulator


def record(outcome: Any, error: str | None = None) -> RequestRecord:
    return RequestRecord("m", "document", 10, 50, 0.1, 1, None, outcome, error)


def progress(done: int, total: int = 2_000) -> corpus.Progress:
    return corpus.Progress(done, total, 9.0, 0, Usage(done // 10, done * 5, done))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_the_first_line_comes_within_a_second_then_every_ten_and_at_the_end(
    clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = RunStatus(clock.now, lambda: 0.0), Lines(clock.now)
    shown: dict[float, str] = {}
    began = clock.now()
    for tick in range(106):
        if tick == 4:
            status.on_progress(progress(0))
        elif tick > 4:
            status.on_progress(progress(tick))
        lines.show(status)
        if printed := capsys.readouterr().err:
            shown[round(clock.now() - began, 1)] = printed
        clock.time += 0.2
    lines.close(status)
    assert list(shown) == [0.6, 10.6, 20.6]
    assert shown[0.6] == "reading the input\n"
    assert shown[10.6] == "53 of 2,000 texts, 5 texts/s, 265 tokens, 6:00 left\n"
    assert capsys.readouterr().err.startswith("105 of 2,000 texts, 5 texts/s")


def test_a_short_run_prints_nothing(clock: FakeClock, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = RunStatus(clock.now, lambda: 0.0), Lines(clock.now)
    status.on_progress(progress(2_000))
    lines.show(status)
    lines.close(status)
    assert capsys.readouterr().err == ""


def test_an_outage_is_shown_when_it_lasts_and_counted_when_it_ends(
    clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = RunStatus(clock.now, lambda: 4.4), Lines(clock.now)
    status.on_progress(progress(0))
    clock.time += 1.0
    lines.show(status)
    assert "0 texts/s" in capsys.readouterr().err
    status.on_request(record("throttled", "Throttling.RateQuota"))
    lines.show(status)
    assert capsys.readouterr().err == "", "short throttling is normal"
    clock.time += 0.6
    lines.show(status)
    assert capsys.readouterr().err == (
        "0 of 2,000 texts, throttled (Throttling.RateQuota) for 1 s, asking again in 4 s\n"
    )
    status.on_request(record("failed", "ConnectionFailed"))
    assert "failed (ConnectionFailed) for 1 s" in status.line()
    status.on_request(record("refused", "DataInspectionFailed"))
    assert "failed" in status.line(), "a refused text says nothing of the others"
    status.on_request(record("answered"))
    assert status.outage() == ""
    assert status.line() == "0 of 2,000 texts, 0 texts/s, 0 tokens, 1 throttled, 1 failed and retried"


@pytest.mark.parametrize("is_interactive", [False, True])
def test_progress_true_shows_a_run_and_leaves_the_hook_of_the_client_alone(
    is_interactive: bool,  # noqa: FBT001 - a case
    tmp_path: Path,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("dashscope_embeddings.corpus.progress.is_interactive", lambda: is_interactive)
    monkeypatch.setattr("dashscope_embeddings.corpus.progress._FIRST_LINE_SECONDS", -1.0)
    monkeypatch.setattr("dashscope_embeddings.corpus.progress._REFRESH_SECONDS", 0.001)
    seen: list[RequestRecord] = []
    client = client_for(emulator, dimensions=DIMENSIONS, on_request=seen.append)
    source = write_lines(tmp_path / "in.txt", [f"text {number}" for number in range(95)])
    corpus.embed_corpus(source, tmp_path / "out.jsonl", client=client, progress=True)
    shown = capsys.readouterr().err
    assert ("95/95" if is_interactive else "95 of 95 texts, ") in shown
    assert "tokens, CNY 0." in shown
    assert len(seen) == emulator.requests == 10
    client.embed(["one"])
    assert len(seen) == 11


@pytest.mark.parametrize("stderr", [None, object()], ids=["no console", "no file"])
def test_progress_is_left_out_where_there_is_no_place_for_it(
    stderr: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("one\n", "utf-8")
    monkeypatch.setattr("sys.stderr", stderr)
    client = EmbeddingClient(base_url="emulator")
    assert corpus.embed_corpus(tmp_path / "a.txt", tmp_path / "a.jsonl", client=client, progress=True).embedded == 1
