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


def _emulator(number: int) -> Emulator:
    seeded = [dataclasses.replace(fault, seed=100 * number + i) for i, fault in enumerate(FAULTS)]
    quota = QUOTAS[number % len(QUOTAS)]
    return Emulator(requests_per_minute=quota, faults=[faults.Blocked(match=POISON), *seeded])


def main() -> None:
    """Serves until its input ends."""
    period, over, used = float(sys.argv[1]), threading.Event(), [_emulator(0)]
    with used[0].serve(latency=0.01) as server:

        def change() -> None:
            for number in itertools.count(1):
                if over.wait(period):
                    return
                server.emulator = _emulator(number)
                used.append(server.emulator)

        changing = threading.Thread(target=change)
        changing.start()
        sys.stdout.write(server.url + "\n")
        sys.stdout.flush()
        sys.stdin.read()
        over.set()
        changing.join()
    asked = [each for emulator in used for each in emulator.asked]
    seen = Counter(each.fault for each in asked if each.fault and each.fault != "Blocked")
    throttled = sum(each.status == HTTPStatus.TOO_MANY_REQUESTS for each in asked)
    sys.stdout.write(json.dumps({"requests": len(asked), "throttled": throttled, **seen}) + "\n")


if __name__ == "__main__":
    main()
