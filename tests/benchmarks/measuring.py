"""What a client measures of itself."""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from load import Load, belongs, texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass
class Result:
    """What one client measured; printed as it is."""

    wall: float = 0.0
    cpu: float = 0.0
    rss_growth: float = 0.0
    """Bytes of resident memory at the peak of the measurement above its beginning."""
    vectors: int = 0
    error: str | None = None
    more: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Wall, CPU and memory of what is done within."""
        gc.collect()
        resident = _reset_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall, self.cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.rss_growth = memory("VmHWM") - resident


def memory(name: str) -> float:
    """Bytes: `VmRSS` is what is resident now, `VmHWM` the most since the last reset; Linux alone tells."""
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan
    line = next(line for line in status.read_text("ascii").splitlines() if line.startswith(name))
    return float(line.split()[1]) * 1024.0


def _reset_peak() -> float:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    return memory("VmRSS")


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, least, 90th percentile and most."""
    ordered = sorted(seconds)
    return {
        "median": statistics.median(ordered),
        "least": ordered[0],
        "p90": ordered[len(ordered) * 9 // 10],
        "most": ordered[-1],
    }


class Work:
    """Queries given out to many callers, each once, and what came of them."""

    def __init__(self, load: Load) -> None:
        self._waiting = deque(texts(load.texts, load.words, "query"))
        self._until = time.perf_counter() + load.seconds if load.seconds else float("inf")
        self._lock = threading.Lock()
        self._found: list[tuple[str, Sequence[float]]] = []
        self.errors: list[str] = []

    def __iter__(self) -> Iterator[str]:
        while time.perf_counter() < self._until:
            with self._lock:
                if not self._waiting:
                    return
                text = self._waiting.popleft()
            yield text

    def took(self, text: str, vector: Sequence[float]) -> None:
        """Notes an answer."""
        self._found.append((text, vector))

    def guarded(self, run: Callable[[], None]) -> None:
        """Runs a thread's work; its error becomes the measurement's."""
        try:
            run()
        except Exception as error:  # noqa: BLE001 - reported
            self.errors.append(repr(error))

    def report(self, result: Result) -> None:
        """What came of all of them."""
        result.vectors = len(self._found)
        wrong = sum(not belongs(vector, text, "query") for text, vector in self._found)
        result.error = f"{wrong} wrong vectors" if wrong else (self.errors[0] if self.errors else None)
