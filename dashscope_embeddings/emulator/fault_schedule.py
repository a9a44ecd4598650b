"""When a fault strikes."""

from __future__ import annotations

import math
import random
import re
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashscope_embeddings.emulator.messages import Response, WireProtocol

Target = Literal["requests", "batches", "lines"]
"""What a fault strikes, and counts: requests of the network, batches, or the lines of batches."""


@dataclass(frozen=True)
class Fault:
    """When a fault strikes; subclasses say what it does. A bare one only lets requests pass."""

    target: ClassVar[Target] = "requests"

    _: KW_ONLY
    after: int = 0
    """It strikes only when so many requests have been seen."""
    times: int | None = None
    """How often it strikes; None: once, or without end where `every`, `match` or `probability` choose."""
    every: int | None = None
    """Of the requests counted from `after`, only each k-th."""
    match: str | None = None
    """Only requests that hold a text with this in it."""
    probability: float | None = None
    """Only this share of requests, drawn from a generator that starts with `seed`."""
    seed: int = 0
    route: str | None = None
    """Only requests in whose method and path, as in `GET /compatible-mode/v1/batches`, this pattern is found;
    others are not counted."""

    def applies_to(self, name: str) -> bool:
        """Whether it counts what has this name: method and path of a request, `custom_id` of a line."""
        return self.route is None or re.search(self.route, name) is not None

    def is_due(self, number: int, texts: tuple[str, ...], triggered: int, generator: random.Random) -> bool:
        """Whether it strikes request `number`, counted from 1, having struck so often before."""
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
        """A reply in place of the service's: nothing is computed or billed. None: the service answers."""
        del protocol, request_id
        return None

    def corrupt(self, response: Response) -> Response:
        """What becomes of the service's own reply, which is billed."""
        return response


class FaultSchedule:
    """A list of faults and what each has done so far.

    Args:
        faults: at most one strikes a request, the first that is due.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        self._seen_counts = [0] * len(self.faults)
        self._triggered_counts = [0] * len(self.faults)
        self._generators = [random.Random(fault.seed) for fault in self.faults]  # noqa: S311  (repeatable accidents)

    def trigger(self, texts: tuple[str, ...], name: str, target: Target = "requests") -> Fault | None:
        """The fault that strikes the next request, batch or line, which holds these texts."""
        indices = [
            place for place, fault in enumerate(self.faults) if fault.target == target and fault.applies_to(name)
        ]
        for place in indices:
            self._seen_counts[place] += 1
        for place in indices:
            fault = self.faults[place]
            if fault.is_due(self._seen_counts[place], texts, self._triggered_counts[place], self._generators[place]):
                self._triggered_counts[place] += 1
                return fault
        return None
