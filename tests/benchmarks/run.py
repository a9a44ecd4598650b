"""Measures this package beside its peers and beside bare httpx, on this machine, without network.

    python tests/benchmarks/run.py [ROW ...] [--markdown] [--quick] [--full]
        --markdown: for README.md beside this file, from which the rows of the project's README are taken
    python tests/benchmarks/run.py shapes [--only TEXT]      services of many kinds; shapes-long: longer jobs
    python tests/benchmarks/run.py --profile ROW

Needs `pip install "dashscope-embeddings[bench]"` for the peers. Every line compares figures of one run:
machines differ, ratios less so. Leaves with 1 where a bar is missed. `--quick` asks for less, less often.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from bench import Bench
from rows_quota import QUOTA_ROWS
from rows_shapes import SHAPE_ROWS
from rows_speed import SPEED_ROWS
from table import Figure, heading, line

ROWS_BY_NAME = {row.name: row for row in (*SPEED_ROWS, *QUOTA_ROWS, *SHAPE_ROWS)}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all, or some of: {', '.join(ROWS_BY_NAME)}")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--quick", action="store_true", help="less of everything: a rough picture")
    parser.add_argument("--full", action="store_true", help="the lengthy rows too, and full sizes")
    parser.add_argument("--only", default="", metavar="TEXT", help="of the shapes, those whose name has this in it")
    parser.add_argument("--profile", metavar="ROW", help="where our client's CPU time goes in a row")
    asked = parser.parse_args()
    if unknown := [name for name in [*asked.rows, asked.profile] if name and name not in ROWS_BY_NAME]:
        parser.error(f"unknown row {unknown[0]!r}: expected some of {', '.join(ROWS_BY_NAME)}")
    if asked.profile:
        with Bench() as bench:
            _say(bench.profile(ROWS_BY_NAME[asked.profile]))
        return 0
    start, figures = time.monotonic(), []
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    _say(f"Commit {_commit()}, Python {platform.python_version()}, {os.cpu_count()} processors{load}.\n")
    for text in heading(markdown=asked.markdown):
        _say(text)
    with Bench(asked.quick, asked.full, asked.only) as bench:
        for row in ROWS_BY_NAME.values():
            if row.name in asked.rows or (not asked.rows and (asked.full or not row.lengthy)):
                for figure in row.measure(bench):
                    figures.append(figure)
                    _say(line(figure, markdown=asked.markdown))
    _say(f"\n{_summary(figures)}, {time.monotonic() - start:.0f} s")
    return 1 if any(figure.met is False for figure in figures) else 0


def _commit() -> str:
    """Of the working tree, for figures that are kept; "unknown" outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)  # noqa: S603 - git
    return done.stdout.strip() or "unknown"


def _summary(figures: list[Figure]) -> str:
    met = [figure.met for figure in figures]
    missing = sum(figure.measured is None and figure.trouble is None for figure in figures)
    return f"{met.count(True)} met, {met.count(False)} not met, {missing} not available"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
