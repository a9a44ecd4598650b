"""The lines of the table, and when a bar is met."""

from __future__ import annotations

import math
from dataclasses import dataclass

HEADING = """\
| row | what | ours | floor or peer | ratio | bar | met | note |
|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Figure:
    """A line of the table."""

    row: str
    what: str
    measured: tuple[float, str] | None
    """Value and unit; None: not available."""
    bar: float | None = None
    """The most that is allowed, of the ratio where there is a floor; None: shown, not judged."""
    floor: tuple[float, str] | None = None
    """The same figure of a peer or of bare httpx, and whose it is."""
    at_least: bool = False
    """The bar is the least that is wanted."""
    trouble: str | None = None
    """A run that went wrong meets nothing."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over the floor; not a number, which meets nothing, where the floor was not measured."""
        if self.measured is None or self.floor is None:
            return None
        known = math.isfinite(self.floor[0]) and self.floor[0] > 0
        return self.measured[0] / self.floor[0] if known else math.nan

    @property
    def met(self) -> bool | None:
        """None: not available, or not judged."""
        if self.trouble is not None:
            return False
        if self.measured is None or self.bar is None:
            return None
        value = self.measured[0] if self.ratio is None else self.ratio
        return value >= self.bar if self.at_least else value <= self.bar

    def __str__(self) -> str:
        unit = self.measured[1] if self.measured else ""
        verdict = {True: "yes", False: "NO", None: "" if self.measured else "not available"}[self.met]
        cells = (
            self.row,
            self.what,
            _number(self.measured[0], unit) if self.measured else "-",
            f"{_number(self.floor[0], unit)}, {self.floor[1]}" if self.floor else "",
            f"{self.ratio:.2f}" if self.ratio is not None else "",
            self._bar(unit),
            verdict,
            "; ".join(part for part in (self.trouble and f"ERROR {self.trouble}", self.note) if part),
        )
        return f"| {' | '.join(cells)} |"

    def _bar(self, unit: str) -> str:
        if self.bar is None:
            return ""
        return f"{'≥' if self.at_least else '≤'} {self.bar:g} {unit if self.floor is None else '×'}".rstrip()


def _number(value: float, unit: str) -> str:
    digits = 0 if not unit else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f} {unit}".rstrip()
