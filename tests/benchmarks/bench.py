"""The bench: one server, and clients in processes of their own."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from measuring import Result
from terms import Counters, Terms

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from load import Load
    from typing_extensions import Self

_HERE = Path(__file__).parent
_PATIENCE = 300.0
"""Seconds that one client may take, unless a row says less."""
_FAMILIES = ("DASHSCOPE", "OPENAI")
"""Variables of the environment that would lead a client elsewhere."""


@dataclass
class Run:
    """What a client measured, and what the server saw of it."""

    result: Result
    seen: Counters

    @property
    def throttled(self) -> float:
        """Share of requests that were refused with 429."""
        return self.seen.throttled / max(self.seen.requests, 1)

    @property
    def trouble(self) -> str | None:
        """What makes the run's figures worthless; also texts that were billed more than once."""
        if self.result.error is None and self.seen.texts > self.result.vectors > 0:
            return f"{self.seen.texts} texts billed for {self.result.vectors}"
        return self.result.error


@dataclass
class Bench:
    """Runs clients, one process each, against a server in another; a run is measured once for all rows."""

    quick: bool = False
    only: str = ""
    """Of the shapes, those whose name has this in it."""
    _runs: dict[tuple[str, Load, Terms], list[Run]] = field(default_factory=dict)
    _server: subprocess.Popen[str] | None = None
    _url: str = ""

    def __enter__(self) -> Self:
        program = [sys.executable, str(_HERE / "server.py"), "--until-eof"]
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(program, stdin=pipe, stdout=pipe, text=True)  # noqa: S603 - our own
        assert self._server.stdout is not None
        self._url = self._server.stdout.readline().strip()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.kill()
        self._server.communicate()

    def rounds(self, usual: int, quick: int = 1) -> int:
        """How often to repeat."""
        return quick if self.quick else usual

    def size(self, usual: int, quick: int) -> int:
        """How much to ask for."""
        return quick if self.quick else usual

    def run(self, name: str, load: Load, terms: Terms | None = None, *, patience: float = _PATIENCE) -> Run:
        """One client once."""
        terms = terms or Terms()
        runs = self._runs.setdefault((name, load, terms), [])
        return runs[0] if runs else self._once(name, load, terms, patience)

    def by_turns(self, names: Sequence[str], load: Load, terms: Terms, rounds: int) -> dict[str, list[Run]]:
        """Several clients one after another, again and again: what slows the machine slows all of them."""
        for number in range(rounds):
            for name in names:
                if len(self._runs.setdefault((name, load, terms), [])) <= number:
                    self._once(name, load, terms, _PATIENCE)
        return {name: self._runs[name, load, terms] for name in names}

    def _once(self, name: str, load: Load, terms: Terms, patience: float) -> Run:
        self._control("POST", terms)
        done = self._client([name, str(load)], patience)
        try:
            result = Result(**json.loads(done.stdout.splitlines()[-1]))
        except (ValueError, IndexError):
            result = Result(wall=patience, error=done.stderr.strip()[-300:] or "no result")
        run = Run(result, self._control("GET"))
        self._runs[name, load, terms].append(run)
        return run

    def _control(self, method: str, terms: Terms | None = None) -> Counters:
        content = dataclasses.asdict(terms) if terms else None
        seen = httpx.request(method, f"{self._url}/control", json=content, trust_env=False, timeout=30.0)
        return Counters(**seen.json())

    def _client(self, arguments: list[str], patience: float) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, str(_HERE / "clients.py"), *arguments, self._url]
        try:
            return subprocess.run(  # noqa: S603 - our own program
                program, capture_output=True, text=True, check=False, env=_environment(), timeout=patience
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(program, 1, "", f"no end within {patience:g} s")


def _environment() -> dict[str, str]:
    """Ours, without those; no proxy stands before the server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FAMILIES)}
    return kept | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


# --- figures of several runs -------------------------------------------------------------------------------


def least(runs: Iterable[Run], what: str = "wall") -> float:
    """The least of a figure over repetitions; of `more` where the result has no field of this name."""
    return min(_values(runs, what), default=float("inf"))


def median(runs: Iterable[Run], what: str = "wall") -> float:
    """The median of a figure over repetitions."""
    return statistics.median(_values(runs, what) or [float("inf")])


def trouble(runs: Iterable[Run]) -> str | None:
    """The first trouble of some runs."""
    return next((found for run in runs if (found := run.trouble)), None)


def _values(runs: Iterable[Run], what: str) -> list[float]:
    return [
        value
        for run in runs
        if run.result.error is None and (value := getattr(run.result, what, run.result.more.get(what))) is not None
    ]
