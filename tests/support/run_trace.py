"""One run of a shape, seen every 100 ms: as text, or as a picture (needs matplotlib)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from listed_shapes import Shape
    from simulated_client import Result

_STEP_SECONDS = 0.1
_SHOWN = ("state", "rate", "limit")
"""Attributes that a trace shows where the limiter or one of its parts has them."""


@dataclass
class Moment:
    """The limiter at the end of a step."""

    in_flight: int
    concurrency: int
    state: str


def record(shape: Shape, seed: int) -> tuple[Result, list[Moment]]:
    """A run and what its first job's limiter said of itself."""
    simulation, jobs = shape.simulate(seed)
    moments: list[Moment] = []

    def look() -> None:
        limiter = jobs[0].limiter
        moments.append(Moment(simulation.in_flight, jobs[0].concurrency(), _describe(limiter, simulation.now)))

    ideal = shape.ideal_seconds(jobs)
    result = simulation.run(*jobs, give_up_seconds=20.0 * ideal + 60.0, on_tick=look)
    result.ideal_seconds = ideal
    return result, moments


def _describe(limiter: Any, now: float) -> str:
    """What the limiter and its parts offer of `_SHOWN`, or their own `describe(now)`."""
    found = []
    for name, part in vars(limiter).items():
        if not type(part).__module__.startswith("dashscope_embeddings"):
            continue
        if callable(describe := getattr(part, "describe", None)):
            found.append(f"{name.strip('_')}: {describe(now)}")
            continue
        values = {
            shown: value(now) if callable(value) else value
            for shown in _SHOWN
            if (value := getattr(part, shown, None)) is not None
        }
        words = [f"{shown}={_short(value)}" for shown, value in values.items()]
        found += [f"{name.strip('_')}: {' '.join(words)}"] if words else []
    return "; ".join(found)


def _short(value: object) -> str:
    return value.name if isinstance(value, Enum) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _steps(result: Result) -> tuple[Counter[int], Counter[int], Counter[int]]:
    """Requests sent, answers and 429s by the number of the step."""
    sent = Counter(int(sent_at / _STEP_SECONDS) for sent_at, _, _ in result.sends)
    answered = Counter(int(at / _STEP_SECONDS) for _, at, admitted in result.sends if admitted)
    refused = Counter(int(at / _STEP_SECONDS) for _, at, admitted in result.sends if not admitted)
    return sent, answered, refused


def trace(shape: Shape, seed: int) -> Iterator[str]:
    """A line for each step; equal ones are left out."""
    result, moments = record(shape, seed)
    sent, answered, refused = _steps(result)
    yield f"{shape.name}, seed {seed}"
    yield f"{'until':>7}{'sent':>6}{'ok':>6}{'429':>6}{'flight':>8}{'allowed':>8}  state"
    for step, moment in enumerate(moments):
        until = (step + 1) * _STEP_SECONDS
        yield (
            f"{until:7.1f}{sent[step]:6}{answered[step]:6}{refused[step] or '':>6}"
            f"{moment.in_flight:8}{moment.concurrency:8}  {moment.state}"
        )
    yield (
        f"{result.seconds:.2f} s of {result.ideal_seconds:.2f} s: {result.slowness:.2f} x; "
        f"{result.throttled_share:.1%} throttled, {result.peak_in_flight} in flight at most"
    )


def plot(shape: Shape, seed: int, path: str) -> None:
    """Rate, requests in flight and 429s over time."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - needed for the picture alone

    result, moments = record(shape, seed)
    sent, answered, refused = _steps(result)
    steps = range(len(moments))
    times = [(step + 1) * _STEP_SECONDS for step in steps]

    def per_second(counts: Counter[int]) -> list[float]:
        """Of the half second around each step."""
        return [sum(counts[near] for near in range(step - 2, step + 3)) / (5 * _STEP_SECONDS) for step in steps]

    figure, (rate_axes, flight_axes, refused_axes) = plt.subplots(
        3, 1, sharex=True, figsize=(9, 6.5), height_ratios=(3, 2, 1), layout="constrained"
    )
    rate_axes.plot(times, per_second(sent), label="sent", color="tab:blue")
    rate_axes.plot(times, per_second(answered), label="answered", color="tab:green")
    rate_axes.set_ylabel("requests/s")
    flight_axes.step(times, [moment.in_flight for moment in moments], label="in flight", color="tab:purple")
    flight_axes.step(times, [moment.concurrency for moment in moments], label="allowed", color="tab:gray")
    flight_axes.set_ylabel("requests")
    refused_axes.bar(times, [refused[step] for step in steps], _STEP_SECONDS, label="429s", color="tab:red")
    refused_axes.set_ylabel("429s")
    refused_axes.set_xlabel("seconds")
    for axes in (rate_axes, flight_axes, refused_axes):
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right")
        axes.grid(visible=True, alpha=0.3)
    figure.suptitle(
        f"{shape.name}: {result.slowness:.2f} x the ideal time, {result.throttled_share:.1%} throttled", fontsize=11
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
