"""The limiter against services of many shapes, on a fake clock.

    python tests/support/limiter_simulation.py                     the listed shapes
    python tests/support/limiter_simulation.py --long              the same services, longer jobs
    python tests/support/limiter_simulation.py --random 200        services at random: median and worst
    python tests/support/limiter_simulation.py --random 200 --crossed     with several troubles at once
    python tests/support/limiter_simulation.py --shape "100/s, 1 s" --seed 3 --trace
    python tests/support/limiter_simulation.py --shape random:17 --trace
    python tests/support/limiter_simulation.py --shape "arrival 30/s, 10 ms" --plot run.png

`*` marks what misses its bar. Time is given as a multiple of the ideal.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from known_quota_shapes import SCENARIOS
from listed_shapes import FURTHER_SHAPES, LONG_SHAPES, TABLE_SHAPES, Bars, Shape
from random_shapes import random_shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from simulated_client import Result


def shape_of(name: str) -> Shape:
    """A listed shape, `random:SEED` or `crossed:SEED`."""
    sampler, _, seed = name.partition(":")
    if sampler in {"random", "crossed"}:
        return random_shape(int(seed), crossed=sampler == "crossed")
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
        time, share, bars = statistics.median(times), statistics.median(shares), shape.bars or Bars(math.inf, 1.0)
        marks = [time > bars.time, share > bars.throttled, bars.in_flight is not None and peak > bars.in_flight]
        missed += any(marks)
        time_mark, share_mark, peak_mark = ("*" if mark else " " for mark in marks)
        line = f"{shape.name:44}{time:6.2f}{max(times):7.2f}{bars.time:6.2f}{time_mark} {share:6.1%}{max(shares):7.1%}"
        line += f"{bars.throttled:6.0%}{share_mark} {peak:9}{peak_mark}" + (
            f" of {bars.in_flight}" if bars.in_flight else ""
        )
        unfinished = sum(result.answered < shape.requests for result in results)
        say(line + (f"  {unfinished} runs given up" if unfinished else ""))
    say(f"{missed} of {len(shapes)} shapes miss a bar")
    return missed == 0


def print_random(sampler: str, seeds: Sequence[int]) -> None:
    """Prints median, 90th percentile and worst of random shapes, by kind too, and the worst ones.

    Of three runs of each the median counts: where replies are lognormal, the last one may take long by chance.
    """
    names = [f"{sampler}:{seed}" for seed in seeds]
    shapes, runs = [shape_of(name) for name in names], measure(names, range(3))
    found = [
        (shape, *(statistics.median(getattr(run, name) for run in results) for name in _MEASURED))
        for shape, results in zip(shapes, runs, strict=True)
    ]
    for kind in ("", *sorted({shape.kind for shape in shapes})):
        rows = [row for row in found if kind in ("", row[0].kind)]
        say(f"{kind or 'all'}, {len(rows)}")
        for column, name in enumerate(_MEASURED, 1):
            values = sorted(row[column] for row in rows)
            p90 = values[min(len(values) - 1, int(0.9 * len(values)))]
            say(f"    {name:16} median {statistics.median(values):8.3f}  p90 {p90:8.3f}  worst {values[-1]:8.3f}")
    for column, name in enumerate(_MEASURED[:2], 1):
        say(f"worst {name}")
        for shape, time, share, peak in sorted(found, key=lambda row: -row[column])[:10]:
            say(f"{time:6.2f} {share:6.1%} {peak:4.0f}  {shape.name}")


_MEASURED = ("slowness", "throttled_share", "peak_in_flight")


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
    parser.add_argument("--crossed", action="store_true", help="random shapes with several troubles at once")
    parser.add_argument("--first-seed", type=int, default=0, help="of the random shapes")
    parser.add_argument("--shape", metavar="NAME", help="this one, random:SEED or crossed:SEED")
    parser.add_argument("--seed", type=int, default=0, help="of --trace and --plot")
    parser.add_argument("--trace", action="store_true", help="one run, every 100 ms")
    parser.add_argument("--plot", metavar="FILE", help="a picture of one run")
    asked = parser.parse_args()
    if asked.random:
        seeds = range(asked.first_seed, asked.first_seed + asked.random)
        print_random("crossed" if asked.crossed else "random", seeds)
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
