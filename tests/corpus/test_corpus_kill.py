"""`embed` and `batch run`, killed at any moment, twenty times: nothing lost, next to nothing paid for twice."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import signal
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from corpus_helpers import read_rejects, read_vectors, run_command, write_json_lines

from dashscope_embeddings import corpus
from dashscope_embeddings.emulator import Emulator, faults
from dashscope_embeddings.emulator.batch.service import BatchSettings

pytest.importorskip("typer")
pytest.importorskip("rich")

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess
    from pathlib import Path

KILLS = 20
IN_FLIGHT = 4
ROWS = 10
TEXTS = 900


class Watch(faults.Fault):
    """Breaks nothing; tells when so many more requests have come."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__.update(event=threading.Event(), left=0)

    def wait_for(self, requests: int) -> threading.Event:
        event = threading.Event()
        self.__dict__.update(event=event, left=requests)
        return event

    def is_due(self, *_: Any) -> bool:
        self.__dict__["left"] -= 1
        if not self.__dict__["left"]:
            self.__dict__["event"].set()
        return False


@pytest.fixture
def source(tmp_path: Path) -> Path:
    numbers = (number % (TEXTS - 100) for number in range(TEXTS))  # the last hundred are there twice
    rows = ({"id": f"n{at}", "text": f"text number {number}"} for at, number in enumerate(numbers))
    return write_json_lines(tmp_path / "in.jsonl", rows)


@dataclass(frozen=True)
class Command:
    """A command to kill, and what its texts may cost twice."""

    arguments: list[str]
    fault: faults.Fault
    requests: int
    """Requests of an uninterrupted run, about."""
    seconds: float
    """Its duration, about."""
    in_flight: int
    """Texts that one kill may cost."""


COMMANDS = {
    "embed": Command(
        ["embed", "--kind", "dense&sparse", "--max-concurrency", str(IN_FLIGHT)],
        faults.Blocked(match="number 777"),
        requests=84,
        seconds=0.6,
        in_flight=IN_FLIGHT * ROWS,
    ),
    # A batch that exists is found again: a kill costs nothing.
    "batch": Command(
        ["batch", "run", "--poll", "0.1"],
        faults.LineFails(match="number 777", every=1),
        requests=24,
        seconds=1.5,
        in_flight=0,
    ),
}


def start(arguments: list[str], url: str) -> BaseProcess:
    """The command in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dashscope_embeddings.cli.embed", "corpus_helpers"])
    environment = {"DASHSCOPE_HTTP_BASE_URL": url, "DASHSCOPE_API_KEY": "sk-made-up"}
    arguments = [*arguments, "--id-field", "id", "--dimensions", "64"]
    process = context.Process(target=run_command, args=(arguments, environment))
    process.start()
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="no fork server")
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment_the_same_command_goes_on(name: str, source: Path, tmp_path: Path) -> None:
    command = COMMANDS[name]
    chance = random.Random(7)  # noqa: S311 - the same moments in every run, as far as that goes
    watch = Watch()
    emulator = Emulator(faults=[watch, command.fault], log=0, batches=BatchSettings(seconds=0.1))

    def begin(output: Path) -> BaseProcess:
        return start([*command.arguments, str(source), "-o", str(output), "--with-text"], server.url)

    def killed(process: BaseProcess, moment: int) -> bool:
        """Half of the moments are chosen by what was asked, half by the clock, which also meets the other steps."""
        if moment % 2:
            process.join(chance.uniform(0.0, command.seconds / 4))
        else:
            event = watch.wait_for(chance.randint(1, command.requests // 6))
            while process.is_alive() and not event.wait(0.02):
                pass
        process.kill()
        process.join()
        return process.exitcode == -signal.SIGKILL

    output, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    with emulator.serve(latency=0.005) as server:
        kills = sum(killed(begin(output), moment) for moment in range(KILLS))
        spoiled = emulator.billed_texts
        if output.exists():
            with contextlib.suppress(FileNotFoundError):
                assert len(read_vectors(output)) == TEXTS - 1
        last = begin(output)
        last.join()
        billed = emulator.billed_texts
        uninterrupted = begin(whole)
        uninterrupted.join()

    assert (last.exitcode, uninterrupted.exitcode) == (3, 3)
    assert read_vectors(output) == read_vectors(whole)
    assert [row.id for row in read_vectors(output)] == [f"n{at}" for at in range(TEXTS) if at != 777]
    assert [row["id"] for row in read_rejects(output)] == ["n777"]
    assert kills >= KILLS // 2
    assert spoiled > 200, "killed before anything was paid for"
    different = TEXTS - 100 - 1
    assert emulator.billed_texts - billed == different
    assert different <= billed <= different + kills * command.in_flight
    assert corpus.ledger_beside(output).exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no fork server")
def test_killed_while_the_output_is_written_it_is_the_old_or_the_new_one(source: Path, tmp_path: Path) -> None:
    chance = random.Random(11)  # noqa: S311 - as above
    emulator, output = Emulator(log=0), tmp_path / "out.npy"  # two files: the hardest to replace

    with emulator.serve() as server:
        arguments = ["embed", str(source), "-o", str(output)]
        first = start(arguments, server.url)
        first.join()
        wanted = [row.dense for row in read_vectors(output)]
        for _ in range(KILLS):  # all is paid for: what is left to interrupt is reading, checking and writing
            process = start(arguments, server.url)
            process.join(chance.uniform(0.0, 0.4))
            process.kill()
            process.join()
            assert [row.dense for row in read_vectors(output)] == wanted
        last = start(arguments, server.url)
        last.join()
    assert (first.exitcode, last.exitcode, len(wanted), emulator.billed_texts) == (0, 0, TEXTS, TEXTS - 100)
