"""What a fault is, when it triggers, and the counts of a list of faults."""

from __future__ import annotations

import math
import random
import re
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

    def intercept(self, protocol: WireProtocol, request_id: str) -> Response:  # noqa: D102
        return self.reply(protocol, request_id)


@dataclass(frozen=True)
class EditReply(Fault):
    """Changes the service's own reply, which is billed."""

    change: Callable[[Response], Response] = field(repr=False)
    label: str = "EditReply"

    def corrupt(self, response: Response) -> Response:  # noqa: D102
        return self.change(response)


class FaultSchedule:
    """A list of faults, and how often each was considered and triggered.

    Args:
        faults: at most one triggers per request, the first that is due.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        unchecked: Any = faults
        if not isinstance(unchecked, Sequence) or not all(isinstance(fault, Fault) for fault in unchecked):
            raise TypeError("faults must be a list of called faults, such as [faults.Throttle(), faults.Drop()]")
        self.faults = tuple(faults)
        self._seen_counts = [0] * len(self.faults)
        self._triggered_counts = [0] * len(self.faults)
        self._generators = [random.Random(fault.seed) for fault in self.faults]  # noqa: S311  (repeatable accidents)

    def trigger(
        self, texts: tuple[str, ...], name: str, target: Target = "requests", *, needs_route: bool = False
    ) -> Fault | None:
        """The fault that triggers for the next request, batch or line with these texts; None: none does.

        `needs_route`: only faults with a `route` affect it.
        """
        faults = [(i, fault) for i, fault in enumerate(self.faults) if fault.target == target]
        indices = [i for i, f in faults if f.applies_to(name) and (f.route is not None or not needs_route)]
        for i in indices:
            self._seen_counts[i] += 1
        for i in indices:
            if self.faults[i].is_due(self._seen_counts[i], texts, self._triggered_counts[i], self._generators[i]):
                self._triggered_counts[i] += 1
                return self.faults[i]
        return None
