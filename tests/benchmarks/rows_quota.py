"""What is measured under a quota: its discovery, keeping to it, and many small callers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import Bench, least, trouble
from load import IN_FLIGHT, ROWS, Load
from rows_speed import FAR, NEAR, SIDES
from table import Figure
from terms import Terms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench import Run

_RATE = 30.0
"""Requests a second: 1,800 a minute."""
_TOKENS = 1_200_000.0
"""Tokens a minute, in texts of mixed length about 20 requests a second."""
_FAST = Terms(latency=0.01, requests_per_second=_RATE)
_SLOW = Terms(latency=0.08, requests_per_second=_RATE)
_JOB = Load("documents", texts=3000)
_PATIENCE = 30.0


def _paced(row: str, what: str, load: Load, run: Run, bars: tuple[float, float]) -> Iterator[Figure]:
    """Time against the quota's, and the share of requests that met its wall; each text billed once.

    What finding the quota costs is the same for a short job: its share is shown, not judged.
    """
    seen, measured, ideal = run.seen, (run.result.wall, "s"), (load.texts / ROWS / _RATE, "ideal")
    note = f"{seen.requests} requests, {seen.throttled} throttled, {seen.peak_in_flight} in flight at most"
    yield Figure(row, f"{what}, {load.texts:,} texts", measured, bars[0], ideal, trouble=run.trouble, note=note)
    most = bars[1] * 100 if load.texts >= _JOB.texts else None
    yield Figure(row, "  throttled", (run.throttled * 100, "%"), most, trouble=run.trouble)


def _unknown(bench: Bench) -> Iterator[Figure]:
    load = Load("documents", texts=bench.size(3000, 1000))
    for side, ending in SIDES[: bench.rounds(2)]:
        run = bench.run(f"ours{ending}", load, _FAST, patience=2 * _PATIENCE)
        yield from _paced("quota", f"unknown quota 30/s, 10 ms: {side}", load, run, (1.10, 0.03))


def _unknown_slow(bench: Bench) -> Iterator[Figure]:
    load = Load("documents", texts=bench.size(3000, 1000))
    run = bench.run("ours", load, _SLOW, patience=2 * _PATIENCE)
    yield from _paced("quota-slow", "unknown quota 30/s, 80 ms", load, run, (1.10, 0.07))


def _known(bench: Bench) -> Iterator[Figure]:
    load = Load("documents", texts=bench.size(3000, 1000), rpm=60 * _RATE)
    run = bench.run("ours", load, Terms(latency=0.01, requests_per_minute=60 * _RATE), patience=2 * _PATIENCE)
    yield from _paced("quota-known", "requests_per_minute=1800, 10 ms", load, run, (1.05, 0.005))


def _random(bench: Bench) -> Iterator[Figure]:
    """The median of several seeds; ideal is the time without any refusal."""
    load = Load("documents", texts=3000)
    terms = [Terms(latency=0.08, throttled_share=0.03, seed=seed) for seed in range(1, 1 + bench.rounds(3))]
    runs = [bench.run("ours", load, each, patience=_PATIENCE / 2) for each in terms]
    times = sorted(run.result.wall for run in runs)
    ideal = (-(-load.texts // ROWS // IN_FLIGHT) * FAR.latency, "ideal")
    note = "seeds: " + ", ".join(f"{seconds:.1f} s" for seconds in times)
    what, measured = "3 % throttled at random, no quota, 3,000 texts", (times[len(times) // 2], "s")
    yield Figure("random", what, measured, 2.0, ideal, trouble=trouble(runs), note=note)


def _tokens(bench: Bench) -> Iterator[Figure]:
    """Delivered: tokens billed over what the quota grants in the time."""
    load = Load("documents", texts=bench.size(2000, 1000), words=0, tpm=_TOKENS)
    terms = Terms(latency=FAR.latency, tokens_per_minute=_TOKENS)
    run = bench.run("ours", load, terms, patience=2 * _PATIENCE)
    delivered = run.seen.tokens / (run.result.wall * _TOKENS / 60.0) if run.result.wall else 0.0
    what = f"tokens_per_minute=1.2 M, {load.texts:,} texts: used"
    note = f"{run.seen.tokens} tokens in {run.result.wall:.1f} s, {run.seen.requests} requests"
    measured = (delivered * 100, "%")
    yield Figure("tokens", what, measured, 95.0, at_least=True, trouble=run.trouble, note=note)
    yield Figure("tokens", "  throttled", (run.throttled * 100, "%"), 3.0, trouble=run.trouble)


def _callers(bench: Bench) -> Iterator[Figure]:
    """The better of two runs; they end after some seconds, for without packing 640 queries would take 21."""
    for rpm, bar in ((0.0, 200.0), (60 * _RATE, 260.0)):
        for side, ending in SIDES[: bench.rounds(2)]:
            load = Load("callers", texts=640, words=12, seconds=bench.size(5, 4), rpm=rpm)
            name = f"ours-langchain{ending}"
            runs = bench.by_turns([name], load, _FAST, bench.rounds(2))[name]
            *others, (rate, run) = sorted(((_rate(run), run) for run in runs), key=lambda pair: pair[0])
            what = f"64 callers, quota {'given' if rpm else 'unknown'}: {side}"
            each = run.result.vectors / max(run.seen.answered, 1)
            note = f"{each:.1f} queries a request, {run.throttled * 100:.0f} % throttled"
            note += "".join(f"; the other run {rate:.0f}" for rate, _ in others)
            measured = (rate, "queries/s")
            yield Figure("callers", what, measured, bar, at_least=True, trouble=trouble(runs), note=note)


def _rate(run: Run) -> float:
    return run.result.vectors / max(run.result.wall, 1e-9)


def _lone(bench: Bench) -> Iterator[Figure]:
    """A lone query against a lone document, which is never packed, by turns in one process."""
    load = Load("lone", texts=bench.size(300, 150), words=12)
    for side, ending in SIDES:
        what, name = f"a lone query beside a lone document: {side}", f"ours-langchain{ending}"
        runs = bench.by_turns([name], load, NEAR, bench.rounds(3))[name]
        measured = (least(runs, "median") * 1e3, "ms")
        floor = (least(runs, "other") * 1e3, "lone document")
        yield Figure("lone", what, measured, 1.05, floor, trouble=trouble(runs))


QUOTA_ROWS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "quota": _unknown,
    "quota-slow": _unknown_slow,
    "quota-known": _known,
    "random": _random,
    "tokens": _tokens,
    "callers": _callers,
    "lone": _lone,
}
