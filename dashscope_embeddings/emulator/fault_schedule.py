"""What a fault is and when it triggers, the faults of batches, and the counts of a list of faults."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal, TypedDict

from dashscope_embeddings.emulator.messages import Response, WireProtocol

Target = Literal["requests", "batches", "lines"]
"""What a fault affects and counts: HTTP requests, batches, or the lines of batches."""


class When(TypedDict, total=False):
    """The conditions of a `Fault`, as keywords of the functions that make faults."""

    after: int
    times: int | None
    every: int | None
    match: str | None
    probability: float | None
    seed: int
    route: str | None


def check_number(name: str, value: object, least: float, most: float = math.inf) -> None:
    """Raises TypeError or ValueError if an argument is neither None nor a number within these bounds."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not least <= value <= most:
        raise ValueError(
            f"{name}={value!r}: expected at least {least:g}{'' if most == math.inf else f', at most {most:g}'}"
        )


def check_kind(name: str, value: object, kind: type) -> None:
    """Raises TypeError if an argument is not of this kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}, not {value!r}")


def check_choice(name: str, value: object, *choices: object) -> None:
    """Raises ValueError if an argument is none of these."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected {' or '.join(map(repr, choices))}")


@dataclass(frozen=True)
class Fault:
    """The conditions under which a fault triggers; subclasses define the effect. A bare `Fault` has none."""

    target: ClassVar[Target] = "requests"

    _: KW_ONLY
    after: int = 0
    """Requests that pass before it can trigger."""
    times: int | None = None
    """How often it triggers; None: once, or without limit if `every`, `match` or `probability` is set."""
    every: int | None = None
    """Only every k-th request, counted from `after`."""
    match: str | None = None
    """Only requests with a text that contains this string."""
    probability: float | None = None
    """Only this share of requests, drawn from a random generator seeded with `seed`."""
    seed: int = 0
    route: str | None = None
    """Only requests whose method and path, as in `GET /compatible-mode/v1/batches`, contain this pattern; others are
    not counted."""

    def __post_init__(self) -> None:
        """Raises: TypeError, ValueError: a condition that cannot work."""
        for name, least in (("after", 0), ("times", 0), ("every", 1), ("probability", 0), ("seed", -math.inf)):
            check_number(name, getattr(self, name), least, 1 if name == "probability" else math.inf)
        for name, text in (("match", self.match), ("route", self.route)):
            if text is not None:
                check_kind(name, text, str)
        try:
            re.compile(self.route or "")
        except re.error as error:
            raise ValueError(f"route={self.route!r} is no regular expression: {error}") from None

    @property
    def label(self) -> str:
        """Its name in the log."""
        return type(self).__name__

    def applies_to(self, name: str) -> bool:
        """Whether something of this name is counted: method and path of a request, `custom_id` of a line."""
        return self.route is None or re.search(self.route, name) is not None

    def is_due(self, number: int, texts: tuple[str, ...], triggered: int, generator: random.Random) -> bool:
        """Whether it triggers for request `number`, counted from 1, after `triggered` times before."""
        chosen = self.every is not None or self.match is not None or self.probability is not None
        times = self.times if self.times is not None else math.inf if chosen else 1
        if number <= self.after or triggered >= times:
            return False
        if self.every is not None and (number - self.after) % self.every:
            return False
        if self.match is not None and not any(self.match in text for text in texts):
            return False
        return self.probability is None or generator.random() < self.probability

    def intercept(self, protocol: WireProtocol, request_id: str) -> Response | None:
        """A response in place of the service's, so nothing is computed or billed; None: the service answers."""
        del protocol, request_id
        return None

    def corrupt(self, response: Response) -> Response:
        """Changes the service's own response, which is billed."""
        return response


@dataclass(frozen=True)
class Refuse(Fault):
    """Replies in place of the service: nothing is computed or billed."""

    reply: Callable[[WireProtocol, str], Response] = field(repr=False)
    """Makes the reply, from the protocol and the request id."""
    label: str = "Refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.reply):
            raise TypeError("Refuse takes a function that makes the reply; for a status, write Status(503)")

    def intercept(self, protocol: WireProtocol, request_id: str) -> Response:  # noqa: D102
        return self.reply(protocol, request_id)


@dataclass(frozen=True)
class EditReply(Fault):
    """Changes the service's own reply, which is billed."""

    change: Callable[[Response], Response] = field(repr=False)
    label: str = "EditReply"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.change):
            raise TypeError("EditReply takes a function that changes a reply")

    def corrupt(self, response: Response) -> Response:  # noqa: D102
        return self.change(response)


# --- of batches and their lines, which are counted instead of requests, lines in the order of processing -------


@dataclass(frozen=True)
class BatchFails(Fault):
    """A batch fails its validation; by default with the only error that was seen in a real reply."""

    target: ClassVar[Target] = "batches"

    code: str = "url_not_found"
    message: str = "The provided url '/v1/embeddings' is not supported by the Batch API."
    param: str | None = "url"
    line: int | None = 1


@dataclass(frozen=True)
class BatchExpires(Fault):
    """A batch expires at the time when its lines should be done."""

    target: ClassVar[Target] = "batches"

    share: float = 0.5
    """Share of its lines that was done."""


@dataclass(frozen=True)
class _LineFault(Fault):
    """A fault of one line."""

    target: ClassVar[Target] = "lines"

    custom_id: str | None = None
    """Only the line of this name, in every batch unless `times` limits it."""

    def applies_to(self, name: str) -> bool:
        return self.custom_id is None or name == self.custom_id

    def is_due(self, number: int, texts: tuple[str, ...], triggered: int, generator: random.Random) -> bool:
        counts_times = self.custom_id is None or self.times is not None
        return super().is_due(number, texts, triggered if counts_times else 0, generator)


@dataclass(frozen=True)
class LineFails(_LineFault):
    """A line is refused: it is in the error file and is not billed."""

    code: str = "DataInspectionFailed"
    """Code in the error file, written as given."""
    message: str = "The request failed."


@dataclass(frozen=True)
class LineLost(_LineFault):
    """A line is in neither file of results."""

    billed: bool = False
    """Whether it was done: then it is billed, and counted as completed in `request_counts`."""


# --- a list of faults --------------------------------------------------------------------------------------


class FaultSchedule:
    """A list of faults, and how often each was considered and triggered: at most one per request, the first due."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        unchecked: Any = faults
        if not isinstance(unchecked, Sequence) or not all(isinstance(fault, Fault) for fault in unchecked):
            raise TypeError("faults must be a list of called faults, such as [faults.Throttle(), faults.Drop()]")
        self.faults = tuple(faults)
        self._seen, self._triggered = Counter[int](), Counter[int]()
        self._generators = [random.Random(fault.seed) for fault in self.faults]  # noqa: S311  (repeatable accidents)

    def trigger(
        self, texts: tuple[str, ...], name: str, target: Target = "requests", *, needs_route: bool = False
    ) -> Fault | None:
        """The fault that triggers for the next request, batch or line with these texts; None: none does.

        `needs_route`: only faults with a `route` affect it.
        """
        due: Fault | None = None
        for i, fault in enumerate(self.faults):
            if fault.target != target or not fault.applies_to(name) or (needs_route and fault.route is None):
                continue
            self._seen[i] += 1
            if due is None and fault.is_due(self._seen[i], texts, self._triggered[i], self._generators[i]):
                self._triggered[i] += 1
                due = fault
        return due
