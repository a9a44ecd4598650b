"""What a person sees on any terminal: no crash for a character it lacks, waits explained, slips named."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from corpus_helpers import write_json_lines, write_lines

from dashscope_embeddings.emulator import faults, in_process

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("rich")
from dashscope_embeddings.cli import app  # noqa: E402 - they need what was just looked for
from dashscope_embeddings.cli.demo.passages import Passage, read_folder  # noqa: E402 - same


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, **how: Any) -> Any:
    return typer_testing.CliRunner().invoke(app.app, arguments, **how)


# --- characters that a terminal lacks ------------------------------------------------------------------------

COMMANDS = [
    ["--help"],
    ["embed", "--help"],
    ["models"],
    ["models", "--markdown"],
    ["demo", "docs", "-q", "茶 🍵"],
    ["embed", "docs/茶.txt", "-o", "出.jsonl", "--base-url", "emulator"],
    ["embed", "docs/茶.txt", "-o", "出.jsonl", "--base-url", "emulator", "--dry-run"],
    ["embed", "无.txt", "-o", "出.jsonl", "--base-url", "emulator"],
    ["embed", "表.csv", "-o", "出.jsonl", "--base-url", "emulator"],
    ["check", "--base-url", "emulator"],
    ["check", "--base-url", "emulator", "--json"],
    ["batch", "run", "docs/茶.txt", "-o", "批.jsonl", "--base-url", "emulator", "--poll", "0.1"],
    ["batch", "run", "表.csv", "-o", "批.jsonl", "--base-url", "emulator", "--poll", "0.1"],
]


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "cp1252"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_character_that_the_terminal_lacks_is_replaced(
    command: list[str], encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command[0] == "demo":
        for package in ("langchain_core", "llama_index.core"):
            pytest.importorskip(package)
    (tmp_path / "docs").mkdir()
    write_lines(tmp_path / "docs" / "茶.txt", ["茶 🍵 – “green” café ≥ 80 °C"])
    (tmp_path / "表.csv").write_text("序号,内容😀\n1,a\n", "utf-8")
    raw, errors = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    # As Python makes standard error.
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(errors, encoding, "backslashreplace"))
    monkeypatch.setattr(sys, "argv", ["dashscope-embeddings", *command])
    with pytest.raises(SystemExit) as ended:
        app.main()
    sys.stdout.flush()
    sys.stderr.flush()
    wrong = command[:2] == ["embed", "无.txt"] or "表.csv" in command
    assert ended.value.code == (2 if wrong else 0)
    # click takes an ASCII terminal for one that was not set up, and writes UTF-8 to it.
    assert raw.getvalue().decode("utf-8" if encoding == "ascii" else encoding, "replace") or wrong
    assert "Traceback" not in errors.getvalue().decode(encoding)
    if command[-1] == "--json":
        assert json.loads(raw.getvalue())["takes_key"] is True


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_the_demo_reads_files_with_odd_names_and_marks(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xb2\xe8.txt")).write_text("Green tea is steamed.", "utf-16")
    assert read_folder(tmp_path) == ([Passage(r"\udcb2\udce8.txt", "Green tea is steamed.")], [])


# --- warnings, slips -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("command", [["embed"], ["batch", "run", "--poll", "0.1"]])
def test_what_is_left_out_is_reported_in_one_line(command: list[str], tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    write_json_lines(docs / "a.jsonl", [{"text": "one"}])
    assert run("embed", "docs", "-o", "docs/old.jsonl", "--base-url", "emulator").exit_code == 0
    result = run(*command, "docs", "-o", "new.jsonl", "--base-url", "emulator")
    assert result.exit_code == 0
    named = [line for line in result.stderr.splitlines() if "not read" in line]
    assert named == [f"not read, because this package wrote it: {Path('docs', 'old.jsonl')}"]
    assert ".py" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["embed", "in.txt", "--outptu", "o.jsonl"], "--output"),
        (["embed", "in.txt", "-o", "o.jsonl", "--text-feild", "body"], "--text-field"),
        (["batch", "run", "in.txt", "-o", "o.jsonl", "--encodign", "gbk"], "--encoding"),
        (["embedd"], "embed"),
        (["batch", "stauts"], "status"),
        (["embed", "in.txt", "-o", "o.jsonl", "--on-bad-input", "skpi", "--base-url", "emulator"], "fail or skip"),
        (["embed", "in.txt", "-o", "o.jsonl", "--format", "jsnl", "--base-url", "emulator"], "txt, jsonl"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_one_that_was_meant(
    arguments: list[str], meant: str, tmp_path: Path
) -> None:
    if "in.txt" not in arguments[:3] and "suggest_commands" not in inspect.signature(typer_testing.Typer).parameters:
        pytest.skip("this release of typer knows options alone")
    write_lines(tmp_path / "in.txt", ["a"])
    result = run(*arguments)
    assert result.exit_code == 2
    assert meant in result.output.split("for help.")[-1]


# --- while it runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_terminal", [False, True])
def test_throttling_from_the_start_is_shown_until_it_ends(
    is_terminal: bool,  # noqa: FBT001 - a case
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_process().faults = [faults.Throttle(times=1, retry_after=1.2)]
    monkeypatch.setattr("dashscope_embeddings.corpus.progress.is_interactive", lambda: is_terminal)
    source = write_lines(tmp_path / "in.txt", [f"text {number}" for number in range(20)])
    result = run("embed", str(source), "-o", "out.jsonl", "--base-url", "emulator", "--max-concurrency", "1")
    assert result.exit_code == 0
    lines = re.split(r"[\r\n]+", result.stderr)
    (first, *_) = [line for line in lines if "throttled (" in line]
    assert re.search(r"0(/| of )20.*throttled \(Throttling\.RateQuota\) for [01] s", first)
    assert re.search(r"20(/| of )20.*1 throttled", "".join(line for line in lines if line)[-200:])
    assert any("requests in flight: 1" in line for line in lines)


def test_a_text_that_is_far_too_long_stops_a_dry_run_with_its_place(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.txt", ["a", "word " * 100_000])
    for command in (["embed", "--dry-run"], ["embed"], ["batch", "run", "--poll", "0.1"]):
        result = run(*command, "in.txt", "-o", "out.jsonl", "--base-url", "emulator")
        assert result.exit_code == 2
        assert re.search(r"in\.txt:2: its text is far longer", result.stderr)
    assert in_process().requests == 0
    result = run("embed", "in.txt", "-o", "out.jsonl", "--base-url", "emulator", "--on-bad-input", "skip")
    assert (result.exit_code, in_process().billed_texts) == (3, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
@pytest.mark.parametrize("command", [["embed"], ["batch", "run", "--poll", "0.1"]])
def test_an_output_whose_name_is_not_utf8_is_written_and_shown_with_escapes(command: list[str], tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", ['{"text": "a"}', '{"text": null}'])
    output = os.fsdecode(b"\xce\xc8.jsonl")
    result = run(*command, "in.jsonl", "-o", output, "--base-url", "emulator", "--on-bad-input", "skip")
    assert r"\udcce\udcc8.jsonl" in result.stdout
    assert result.exit_code == (0 if "submit" in command else 3)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("command", [["embed"], ["batch", "run"]])
def test_a_link_to_nothing_in_place_of_a_checkpoint_is_reported_without_a_word_of_payment(
    command: list[str], tmp_path: Path
) -> None:
    write_lines(tmp_path / "in.txt", ["a"])
    Path("out.jsonl.ledger").symlink_to("nowhere")
    result = run(*command, "in.txt", "-o", "out.jsonl", "--base-url", "emulator")
    assert result.exit_code == 2
    assert result.stderr.strip() == "out.jsonl.ledger is a symbolic link to nothing: remove it"
    assert not Path("nowhere").exists()


class FullDisk(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


def test_an_output_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", FullDisk())
    with pytest.raises(SystemExit) as end:
        app.app(["models"])
    assert end.value.code == 1
    assert capsys.readouterr().err == "[Errno 28] No space left on device\n"


def test_memory_that_does_not_suffice_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashscope_embeddings.cli.embed.corpus.embed_corpus", lambda *_, **__: bytes(1 << 62))
    done = run("embed", "a.txt", "-o", "a.jsonl", "--base-url", "emulator")
    assert (done.exit_code, done.stderr) == (1, "not enough memory: is a line of the input endless?\n")
