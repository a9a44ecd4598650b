"""The command line, run as a user does: what it prints, asks, and returns."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

import dashscope_embeddings
from dashscope_embeddings import EmbeddingClient, catalogue
from dashscope_embeddings.emulator import Emulator
from dashscope_embeddings.emulator.embeddings import COMPATIBLE_PATH, NATIVE_PATH

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("rich")
from dashscope_embeddings.cli import app, emulator, options  # noqa: E402 - they need what was just looked for
from dashscope_embeddings.cli import models as cli_models  # noqa: E402 - same

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
KEY = "sk-made-up-and-secret"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key or address in the environment or the home folder; a terminal of 80 columns without colours."""
    for name in list(os.environ):
        if name.startswith("DASHSCOPE_"):
            monkeypatch.delenv(name)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


def run(*arguments: str) -> Any:
    return typer_testing.CliRunner().invoke(app.app, list(arguments))


def width(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(mark) in "WF" else 1 for mark in line.rstrip())


# --- without extras ----------------------------------------------------------------------------------------


def test_without_its_extra_the_command_names_it() -> None:
    script = """
import sys
for absent in ("typer", "rich"):
    for name in [name for name in sys.modules if name.partition(".")[0] in {"typer", "rich", "dashscope_embeddings"}]:
        del sys.modules[name]
    sys.modules[absent] = None
    from dashscope_embeddings.cli import app
    try:
        app.main()
    except SystemExit as end:
        print(end.code)
    del sys.modules[absent]
"""
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    needed = 'the command line needs typer and rich: pip install "dashscope-embeddings[cli]"'
    assert done.stdout.splitlines() == [needed] * 2


# --- help --------------------------------------------------------------------------------------------------


def test_help_lists_every_command_and_fits_80_columns() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in ("demo", "embed", "models", "check", "emulator", "batch"):
        assert re.search(rf"^│ {name} ", result.output, re.MULTILINE)
        help_text = run(name, "--help").output
        assert max(map(width, help_text.splitlines())) <= 80
        assert not re.search("bool", help_text, re.IGNORECASE)


def test_it_also_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dashscope_embeddings", "models", "--markdown"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip("\n") == cli_models.models_markdown()


def test_it_says_its_version() -> None:
    assert dashscope_embeddings.__version__ == importlib.metadata.version("dashscope-embeddings")
    assert run("--version").output == f"dashscope-embeddings {dashscope_embeddings.__version__}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_ctrl_c_while_the_command_is_loaded_ends_it_with_a_line(tmp_path: Path) -> None:
    """The interruption comes during the import of httpx, in a process that runs what the installed script does."""
    shutil.copy(ROOT / "dashscope_embeddings" / "_command_entry.py", tmp_path / "dashscope_embeddings_command.py")
    interrupted = "import signal; signal.raise_signal(signal.SIGINT)"
    (tmp_path / "httpx.py").write_text(interrupted, "utf-8")
    script = "from dashscope_embeddings_command import main; main()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "stopped\n")


# --- words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("kind='all': expected", "--kind all: expected"),
        (
            'long_text=\'x\': expected "error", "truncate" or "average"',
            "--long-text x: expected error, truncate or average",
        ),
        ('split it, or set long_text="truncate" or "average"', "split it, or set --long-text truncate or average"),
        (
            'kind=\'dens"e\': expected "dense&sparse"; the field "a"',
            '--kind dens"e: expected dense&sparse; the field "a"',
        ),
        ("requests_per_minute=0.0: expected", "--requests-per-minute 0.0: expected"),
        ("base_url must start with https://", "--base-url must start with https://"),
        ("pass region=, one of cn-beijing", "pass --region, one of cn-beijing"),
        ('pass api_key=, or set X; pass base_url="emulator"', "set X; pass --base-url emulator"),
        ("(encoding, --encoding gbk)", "(--encoding gbk)"),
        ('(id_field=None, --id-field "")', '(--id-field "")'),
        ("send fewer at once (max_concurrency) or wait", "send fewer at once (--max-concurrency) or wait"),
        ("it has 'text_type', 'base_url'", "it has 'text_type', 'base_url'"),
        ("docs/base_url.csv:1: SSL_CERT_FILE=/a names it", "docs/base_url.csv:1: SSL_CERT_FILE=/a names it"),
        (
            "is it right? Ask again for the texts in error.failed; what arrived is in error.partial (request id r)",
            "is it right? (request id r)",
        ),
        ("Leave it out: vectors of the others are in error.partial", "Leave it out"),
    ],
)
def test_messages_of_the_library_name_options(message: str, shown: str) -> None:
    assert options.in_words_of_commands(message) == shown


# --- models ------------------------------------------------------------------------------------------------


def test_models_shows_every_fact_of_the_catalogue_in_80_columns() -> None:
    output = run("models").output
    assert max(map(width, output.splitlines())) <= 80
    assert "…" not in output
    for model in catalogue.MODELS:
        limits, sizes, prices = (line for line in output.splitlines() if re.match(rf"{model.name}\s", line))
        assert f"{model.tokens_per_row:,}" in limits
        assert (f"({model.tokens_per_row_seen:,})" in limits) == bool(model.tokens_per_row_seen)
        assert limits.split().count("yes") == model.sparse + model.instruct
        assert re.findall(r"(\d+)(\*?)(?= )", sizes.removeprefix(model.name)) == [
            (str(size), "*" if size == model.default_dimension else "") for size in model.dimensions
        ]
        for price in model.prices.values():
            batch = f", batch {price.batch}" if price.batch else ""
            assert f"{price.currency} {price.real_time}{batch}" in prices
        assert model.source in output.splitlines()
        assert model.seen in output


def test_models_markdown_is_a_table_with_a_row_for_each_model() -> None:
    result = run("models", "--markdown")
    rows = [line.strip("|").split("|") for line in result.output.splitlines()]
    assert {len(row) for row in rows} == {10}
    assert set("".join(rows[1])) <= set(" -:")
    assert [row[0].strip() for row in rows[2:]] == [f"`{model.name}`" for model in catalogue.MODELS]
    v4 = dict(zip((head.strip() for head in rows[0]), (cell.strip() for cell in rows[4]), strict=True))
    assert v4["model"] == "`text-embedding-v4`"
    assert v4["dimensions (**default**)"] == "2048 1536 **1024** 768 512 256 128 64"
    assert v4["tokens a text (elsewhere)"] == "8,192 (33,000)"
    assert v4["price, Beijing"] == "CNY 0.5, batch 0.25"
    assert v4["price, Hong Kong"] == "USD 0.07"
    assert re.fullmatch(r"\[2\d{3}-\d\d-\d\d\]\(https://\S+\)", v4["source"])


# --- emulator ----------------------------------------------------------------------------------------------


def post(url: str, body: dict[str, Any], key: str = KEY) -> httpx.Response:
    # Not by way of a proxy that the environment may name.
    with httpx.Client(trust_env=False, timeout=20) as client:
        return client.post(url, json=body, headers={"authorization": f"Bearer {key}"})


def emulating(ask: Callable[[str], None], *options: str) -> Any:
    """The command's result, after `ask` was called with the emulator's address and a signal stopped it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    errors: list[BaseException] = []

    def use() -> None:
        try:
            for _ in range(400):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                threading.Event().wait(0.05)
            ask(f"http://127.0.0.1:{port}")
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    user = threading.Thread(target=use)
    user.start()
    result = run("emulator", "--port", str(port), *options)
    user.join()
    if errors:
        raise errors[0]
    return result


posix = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
V4 = "text-embedding-v4"


@posix
def test_the_emulator_serves_both_protocols_until_it_is_stopped_and_sums_up() -> None:
    tokens = []

    def ask(url: str) -> None:
        body = {"model": V4, "input": {"texts": ["one", "two"]}, "parameters": {}}
        first = post(url + NATIVE_PATH, body)
        assert len(first.json()["output"]["embeddings"]) == 2
        second = post(url + COMPATIBLE_PATH, {"model": V4, "input": "three"})
        assert len(second.json()["data"]) == 1
        assert post(url + COMPATIBLE_PATH, {"model": "none", "input": "four"}).status_code == 404
        tokens.append(first.json()["usage"]["total_tokens"] + second.json()["usage"]["total_tokens"])

    result = emulating(ask)
    assert (result.exit_code, result.stderr) == (0, "")
    bill = f"answered: 2 (3 texts, {tokens[0]} tokens), refused: 1, most at once: 1."
    assert result.stdout.splitlines()[-1] == f"Stopped. Requests: 3, {bill}"


@posix
def test_what_the_emulator_prints_to_paste_is_all_that_a_client_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def ask(url: str) -> None:
        while not any("Ctrl-C" in line for line in shown):
            threading.Event().wait(0.01)
        exports = [pair.split("=", 1) for line in shown for pair in re.findall(r"(?:export )?(\w+=\S+)", line)]
        for name, value in exports:
            monkeypatch.setenv(name, value)
        assert os.environ["OPENAI_BASE_URL"] == os.environ["DASHSCOPE_COMPATIBLE_BASE_URL"]
        assert EmbeddingClient(max_retries=0).embed("one").dense == [Emulator().dense("one")]
        throttled = post(url + NATIVE_PATH, {"model": V4, "input": {"texts": ["two"]}}, "another")
        assert (throttled.status_code, throttled.json()["code"]) == (429, "Throttling.RateQuota")

    monkeypatch.setattr("typer.echo", shown.append)
    assert emulating(ask, "--rpm", "1").exit_code == 0


def test_the_emulators_options_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}

    class Refusing(Emulator):
        def __init__(self, **options: Any) -> None:
            made.update(options)
            super().__init__(**options)

        def serve(self, port: int = 0, *, latency: float = 0.0) -> Any:
            made.update(port=port, latency=latency)
            raise OSError(98, "Address already in use")

    monkeypatch.setattr(emulator, "Emulator", Refusing)
    options = {"--port": "8123", "--latency": "250", "--rpm": "60", "--tpm": "1000", "--rps": "0.5"}
    given = ["--fault", "throttle:0.05", "--fault", "line-lost", "--log"]
    result = run("emulator", *(word for pair in options.items() for word in pair), *given)
    assert made.pop("on_request") is emulator._print_request
    assert [(fault.label, fault.probability) for fault in made.pop("faults")] == [("Throttle", 0.05), ("LineLost", 1)]
    assert made == {
        "port": 8123,
        "latency": 0.25,
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
        "requests_per_second": 0.5,
        "log": 0,
    }
    assert result.exit_code == 1
    assert "cannot listen on port 8123: Address already in use" in result.output


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("throtle:0.05", "no fault 'throtle': write NAME or NAME:SHARE, with one of arrearage, batch-expires,"),
        ("throttle=0.1", "no fault 'throttle=0.1': write NAME or NAME:SHARE"),
        ("throttle:5", "above 0, at most 1, as in throttle:0.05"),
        ("drop:x", "above 0, at most 1"),
        ("drop:0", "above 0, at most 1"),
        ("drop:nan", "above 0, at most 1"),
    ],
)
def test_a_fault_that_does_not_exist_is_answered_with_those_that_do(given: str, words: str) -> None:
    result = run("emulator", "--fault", given)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert "no fault" not in words or "wrong-width" in result.stderr


@posix
def test_the_emulators_log_has_a_line_for_each_request_and_no_text() -> None:
    statuses: list[int] = []

    def ask(url: str) -> None:
        for number in range(20):
            model = f"{V4}\x1b[2J" if number else V4
            try:
                reply = post(url + NATIVE_PATH, {"model": model, "input": {"texts": ["a private text"] * 2}})
                statuses.append(reply.status_code)
            except httpx.TransportError:
                statuses.append(0)

    logged = emulating(ask, "--log", "--fault", "throttle:0.5", "--fault", "drop:0.5").stdout.splitlines()
    pattern = (
        r"2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d POST /api/v1/services/embeddings/\S+ "
        r"model=text-embedding-v4(?:\\x1b\[2J)? texts=2 tokens=\d+ status=(\d+|none)(?: fault=(throttle|drop))?"
    )
    found = [match for line in logged if (match := re.fullmatch(pattern, line))]
    assert [int(match[1]) if match[1] != "none" else 0 for match in found] == statuses
    assert {(match[1], match[2]) for match in found} >= {("429", "throttle"), ("none", "drop")}
    assert not any("private" in line or KEY in line for line in logged)


def test_a_port_that_is_taken_is_reported_in_a_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("emulator", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "--port 0" in result.output
