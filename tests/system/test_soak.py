"""Seconds of the soak, and proof that its judge can say no."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dashscope_embeddings import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    import soak as soak_module

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_mixed_load_leaks_nothing_and_every_vector_is_right() -> None:
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, str(BENCHMARKS / "soak.py"), "--seconds", "12"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("no violation\n")
    assert done.stderr == ""
    rows = {line.split("  ")[0]: line.split()[-4:] for line in done.stdout.splitlines() if line}
    assert {"aembed", "aembed_query", "astream", "embed_documents", "embed_query", "stream"} < rows.keys()
    started, answered, raised, cancelled = map(int, rows["all"])
    assert started == answered + raised + cancelled
    assert min(answered, raised, cancelled) > 0


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("soak")


def fine(soak: Any) -> soak_module.Report:
    """A run that went well."""
    tally = importlib.import_module("soak_load").Tally()
    tally.counts = {"embed": Counter(started=100, answered=80, raised=5, cancelled=15)}
    before = soak.Sample(100.0, 0, 1, 0, 0, 60_000)
    warm = soak.Sample(110.0, 8, 9, 0, 0, 70_000)
    seen = Counter(requests=1_000, throttled=9, Drop=50, Stall=1)
    samples = [soak.Sample(110.0 + second, 16, 24, 90, 8) for second in range(8)]
    report: soak_module.Report = soak.Report(tally, before, warm, warm, before, seen, 900, 0, samples)
    return report


STALLED = "attempt 1 of 7 failed, next in 0.6 s: no answer from 127.0.0.1:80: nothing within 3 s (ReadTimeout)"


def at(name: str, **changed: Any) -> Callable[[Any], object]:
    """Changes what was measured at one moment."""
    return lambda report: setattr(report, name, dataclasses.replace(getattr(report, name), **changed))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda report: report.tally.counts["embed"].update(started=1), "101 calls started and 100 ended"),
        (lambda report: setattr(report, "stuck", 2), "2 callers never returned"),
        (lambda report: report.tally.counts["embed"].update(cancelled=-15, answered=15), "no call was cancelled"),
        (lambda report: report.tally.complain("a wrong vector"), "a wrong vector"),
        (lambda report: report.seen.pop("Drop"), "not faulty enough"),
        (lambda report: report.seen.update(throttled=-9), "not faulty enough"),
        (lambda report: report.warnings.append("throttled for 9 s"), "a warning: throttled for 9 s"),
        (lambda report: report.warnings.extend([STALLED] * 2), "2 outages were warned of, and 1 replies stalled"),
        (lambda report: report.samples.extend([dataclasses.replace(report.warm, memory=130.0)] * 4), "MiB more"),
        (at("rest", objects=70_900), "900 objects"),
        (at("rest", permits=1), "1 permits"),
        (at("rest", tasks=1), "1 tasks"),
        (at("rest", threads=10), "10 threads at rest"),
        (at("rest", sockets=17), "17 sockets at rest"),
        (at("gone", threads=2), "2 threads without a client"),
        (at("gone", sockets=1), "1 sockets without a client"),
    ],
)
def test_the_judge_sees(soak: Any, change: Callable[[Any], object], complaint: str) -> None:
    report = fine(soak)
    report.warnings.append(STALLED)
    assert soak.violations(report) == []
    report.warnings.clear()
    change(report)
    (found,) = soak.violations(report)
    assert complaint in found


def test_a_call_is_counted_by_how_it_ends(soak: Any) -> None:
    del soak
    load = importlib.import_module("soak_load")
    tally = load.Tally()
    refused = BadRequestError("refused", status=400)

    def end(error: Exception | None, *, poisoned: bool = False) -> None:
        with tally.call("embed", poisoned=poisoned):
            if error is not None:
                raise error

    end(None)
    end(load.Abandoned())
    end(refused, poisoned=True)
    assert tally.counts == {"embed": Counter(started=3, answered=1, raised=1, cancelled=1)}
    assert tally.complaints == []
    end(refused)
    end(ZeroDivisionError())
    end(None, poisoned=True)
    assert len(tally.complaints) == 3
    assert tally.total("started") == 6
