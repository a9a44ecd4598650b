"""What is measured under the services of the simulation, with default settings."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from bench import Bench, Run, median, trouble
from listed_shapes import LONG_SHAPES, TABLE_SHAPES, Shape
from load import ROWS, Load
from rows_speed import SIDES
from table import Figure
from terms import Terms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_WORDS = 12
"""Short texts, where tokens do not matter: the machine is shared with the server."""
_MIXED = (10, 200)
"""Words of texts whose tokens are limited."""


def _load(shape: Shape) -> Load:
    least, most = _MIXED if shape.tokens[0] < shape.tokens[1] else (0, _WORDS)
    return Load("documents", texts=ROWS * shape.requests, words=most, least_words=least)


def _measure(bench: Bench, row: str, shapes: Sequence[Shape], rounds: int) -> Iterator[Figure]:
    """Sync and async by turns, each round with another seed of the service."""
    for shape in shapes:
        if bench.only not in shape.name:
            continue
        load, runs = _load(shape), {side: list[Run]() for side, _ in SIDES}
        patience = 8.0 * shape.ideal(shape.requests, 1400 * shape.requests) + 30.0
        for seed in range(1, rounds + 1):
            for side, ending in SIDES:
                terms = Terms(shape=shape.name, seed=seed)
                runs[side].append(bench.run(f"ours{ending}", load, terms, patience=patience))
        for side, _ in SIDES:
            yield from _judged(row, f"{shape.name}: {side}", shape, runs[side])


def _judged(row: str, what: str, shape: Shape, runs: list[Run]) -> Iterator[Figure]:
    """The medians of time, 429s and, where the service queues, requests in flight."""
    assert shape.bars is not None
    time = median(runs)
    ideal = statistics.median(shape.ideal(shape.requests, run.seen.tokens) for run in runs)
    throttled = statistics.median(run.throttled for run in runs) * 100.0
    peak = statistics.median(float(run.seen.peak_in_flight) for run in runs)
    wrong = trouble(runs)
    note = "all: " + ", ".join(f"{run.result.wall:.1f} s" for run in runs) + f"; {peak:.0f} in flight at most"
    yield Figure(row, what, (time, "s"), shape.bars.time, (ideal, "ideal"), trouble=wrong, note=note)
    yield Figure(row, "  throttled", (throttled, "%"), shape.bars.throttled * 100.0, trouble=wrong)
    if shape.bars.in_flight:
        yield Figure(row, "  in flight at most", (peak, "requests"), shape.bars.in_flight, trouble=wrong)


def _shapes(bench: Bench) -> Iterator[Figure]:
    yield from _measure(bench, "shapes", TABLE_SHAPES, bench.rounds(3))


def _long_shapes(bench: Bench) -> Iterator[Figure]:
    yield from _measure(bench, "shapes-long", LONG_SHAPES, 1)


SHAPE_ROWS: dict[str, Callable[[Bench], Iterator[Figure]]] = {"shapes": _shapes, "shapes-long": _long_shapes}
"""About an hour each."""
