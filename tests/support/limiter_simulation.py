"""The limiter against services of many shapes, on a fake clock.

    python tests/support/limiter_simulation.py                     the listed shapes
    python tests/support/limiter_simulation.py --long              the same services, longer jobs
    python tests/support/limiter_simulation.py --random 200        services at random: median and worst
    python tests/support/limiter_simulation.py --shape "100/s, 1 s" --seed 3 --trace
    python tests/support/limiter_simulation.py --shape random:17 --trace
    python tests/support/limiter_simulation.py --shape "arrival 30/s, 10 ms" --plot run.png

`*` marks what misses its bar. Time is given as a multiple of the ideal.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from known_quota_shapes import SCENARIOS
from listed_shapes import FURTHER_SHAPES, LONG_SHAPES, TABLE_SHAPES, Shape
from random_shapes import random_shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from simulated_client import Result

__all__ = ["SCENARIOS"]


def shape_of(name: str) -> Shape:
    """A listed shape, or `random:SEED`."""
    if name.startswith("random:"):
        return random_shape(int(name.removeprefix("random:")))
    shapes = [*TABLE_SHAPES, *FURTHER_SHAPES, *LONG_SHAPES, *SCENARIOS]
    return next(shape for shape in shapes if shape.name == name)


def _measure(job: tuple[str, int]) -> Result:
    name, seed = job
    result = shape_of(name).run(seed)
    result.sends.clear()
    return result


def measure(names: Sequence[str], seeds: Sequence[int]) -> Iterator[list[Result]]:
    """Results of each shape, in order; on all processors."""
    jobs = [(name, seed) for name in names for seed in seeds]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(_measure, jobs, chunksize=2)
        for _ in names:
            yield [next(results) for _ in seeds]


def print_table(shapes: Sequence[Shape], seeds: Sequence[int]) -> bool:
    """Prints a line for each shape; whether all bars are met by the median."""
    say(f"{'shape':44}{'time':>6}{'worst':>7}{'bar':>6}  {'429s':>6}{'worst':>7}{'bar':>6}  {'in flight':>9}")
    missed = 0
    for shape, results in zip(shapes, measure([shape.name for shape in shapes], seeds), strict=True):
        times = [result.slowness for result in results]
        shares = [result.throttled_share for result in results]
        peak = max(result.peak_in_flight for result in results)
        time, share = statistics.median(times), statistics.median(shares)
        line = f"{shape.name:44}{time:6.2f}{max(times):7.2f}"
        if shape.bars is None:
            say(f"{line}{'':8}{share:6.1%}{max(shares):7.1%}{'':8}{peak:9}")
            continue
        bars = shape.bars
        marks = [time > bars.time, share > bars.throttled, bars.in_flight is not None and peak > bars.in_flight]
        missed += any(marks)
        time_mark, share_mark, peak_mark = ("*" if mark else " " for mark in marks)
        line += f"{bars.time:6.2f}{time_mark} {share:6.1%}{max(shares):7.1%}{bars.throttled:6.0%}{share_mark} {peak:9}"
        line += peak_mark + (f" of {bars.in_flight}" if bars.in_flight else "")
        unfinished = sum(result.answered < shape.requests for result in results)
        say(line + (f"  {unfinished} runs given up" if unfinished else ""))
    say(f"{missed} of {len(shapes)} shapes miss a bar")
    return missed == 0


def print_random(count: int, first_seed: int) -> None:
    """Prints median, 90th percentile and worst of random shapes, and the ten worst; the median of three runs each.

    One run in some ends late for no fault of the client: where replies are lognormal, the last one may take long.
    """
    seeds = range(first_seed, first_seed + count)
    names = [f"random:{seed}" for seed in seeds]
    results = [sorted(runs, key=lambda run: run.slowness)[1] for runs in measure(names, range(3))]
    for what, values in (
        ("time", [result.slowness for result in results]),
        ("429s", [result.throttled_share for result in results]),
        ("in flight", [float(result.peak_in_flight) for result in results]),
    ):
        ordered = sorted(values)
        say(f"{what:10} median {_at(ordered, 0.5):8.3f}  p90 {_at(ordered, 0.9):8.3f}  worst {ordered[-1]:8.3f}")
    kinds: dict[str, list[Result]] = {}
    for name, result in zip(names, results, strict=True):
        kinds.setdefault(shape_of(name).kind, []).append(result)
    for kind, found in sorted(kinds.items()):
        times = [result.slowness for result in found]
        share = statistics.median(result.throttled_share for result in found)
        say(f"  {kind:16}{len(found):4}  {statistics.median(times):8.2f}  worst {max(times):6.2f}  429s {share:6.1%}")
    worst = sorted(zip(seeds, results, strict=True), key=lambda pair: -pair[1].slowness)
    for seed, result in worst[:10]:
        say(
            f"{result.slowness:6.2f} {result.throttled_share:6.1%} {result.peak_in_flight:4}  {random_shape(seed).name}"
        )
    say("the most 429s")
    for seed, result in sorted(worst, key=lambda pair: -pair[1].throttled_share)[:5]:
        say(
            f"{result.slowness:6.2f} {result.throttled_share:6.1%} {result.peak_in_flight:4}  {random_shape(seed).name}"
        )


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="runs of each shape")
    parser.add_argument("--long", action="store_true", help="the jobs of 3,000 requests")
    parser.add_argument("--known", action="store_true", help="quotas that the client is told, and older shapes")
    parser.add_argument("--random", type=int, metavar="COUNT", help="so many shapes at random")
    parser.add_argument("--first-seed", type=int, default=0, help="of the random shapes")
    parser.add_argument("--shape", metavar="NAME", help="this one, or random:SEED")
    parser.add_argument("--seed", type=int, default=0, help="of --trace and --plot")
    parser.add_argument("--trace", action="store_true", help="one run, every 100 ms")
    parser.add_argument("--plot", metavar="FILE", help="a picture of one run")
    asked = parser.parse_args()
    if asked.random:
        print_random(asked.random, asked.first_seed)
    elif asked.trace or asked.plot:
        from run_trace import plot, trace  # noqa: PLC0415 - matplotlib is needed for the picture alone

        shape = shape_of(asked.shape)
        if asked.plot:
            plot(shape, asked.seed, asked.plot)
        else:
            for line in trace(shape, asked.seed):
                say(line)
    elif asked.shape:
        print_table([shape_of(asked.shape)], range(asked.seeds))
    elif asked.known:
        print_table(SCENARIOS, range(asked.seeds))
    else:
        sys.exit(not print_table(LONG_SHAPES if asked.long else [*TABLE_SHAPES, *FURTHER_SHAPES], range(asked.seeds)))


if __name__ == "__main__":
    main()
