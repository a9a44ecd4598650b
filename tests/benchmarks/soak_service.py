"""The service of a soak: the emulator in a process of its own, faulty, under a quota that keeps changing.

`python soak_service.py PERIOD` prints its address, changes its quota every PERIOD seconds, and when its input
ends prints what it saw. Without network beyond 127.0.0.1.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus

from dashscope_embeddings.emulator import Emulator, faults

POISON = "poison"
"""In a text that the service always refuses."""
QUOTAS = (None, 6_000.0, 2_400.0, 12_000.0, None, 3_600.0)
"""Requests a minute, one after the other; None: no limit."""

# One request in twenty. At most one strikes a request, so that the shares add up.
FAULTS: tuple[faults.Fault, ...] = (
    faults.Throttle(probability=0.010),
    faults.Status(500, probability=0.008),
    faults.Status(503, body="html", probability=0.003),
    faults.Drop("reset", probability=0.008),
    faults.Drop("closed", billed=True, probability=0.003),
    faults.Truncate(0.5, probability=0.005),
    faults.WrongCount(probability=0.005),
    faults.DuplicateIndex(probability=0.002),
    faults.Garbage(probability=0.002),
    faults.Slow(0.3, probability=0.003),
    faults.Stall(0.5, probability=0.001),
)


@dataclass
class Seen:
    """What the service saw."""

    requests: int = 0
    billed_texts: int = 0
    throttled: int = 0
    quotas: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    """Not the texts that it always refuses."""

    def add(self, emulator: Emulator) -> None:
        """Adds what one emulator saw."""
        struck = Counter(asked.fault for asked in emulator.asked if asked.fault not in {None, "Blocked"})
        self.requests += emulator.requests
        self.billed_texts += emulator.billed_texts
        self.throttled += sum(asked.status == HTTPStatus.TOO_MANY_REQUESTS for asked in emulator.asked)
        self.quotas += 1
        self.faults = {name: count for name, count in (Counter(self.faults) + struck).items() if name}


def _emulator(number: int) -> Emulator:
    seeded = [dataclasses.replace(fault, seed=100 * number + i) for i, fault in enumerate(FAULTS)]
    quota = QUOTAS[number % len(QUOTAS)]
    return Emulator(requests_per_minute=quota, faults=[faults.Blocked(match=POISON), *seeded])


def main() -> None:
    """Serves until its input ends."""
    period, over, seen = float(sys.argv[1]), threading.Event(), Seen()
    first = _emulator(0)
    with first.serve(latency=0.01) as server:

        def change() -> None:
            before = None
            for number in itertools.count(1):
                ended = over.wait(period)
                if before is not None:
                    seen.add(before)  # only now: when it was replaced, some of its requests were under way
                if ended:
                    return
                before, server.emulator = server.emulator, _emulator(number)

        changing = threading.Thread(target=change)
        changing.start()
        sys.stdout.write(server.url + "\n")
        sys.stdout.flush()
        sys.stdin.read()
        over.set()
        changing.join()
        seen.add(server.emulator)
    sys.stdout.write(json.dumps(dataclasses.asdict(seen)) + "\n")


if __name__ == "__main__":
    main()
