"""Measures this package beside its peers and beside bare httpx, on this machine, without network.

    python tests/benchmarks/run.py [ROW ...] [--quick]
    python tests/benchmarks/run.py shapes [--only TEXT]      services of many kinds; shapes-long: longer jobs

Prints the table of README.md beside this file, from which the rows of the project's README are taken. Needs
`pip install "dashscope-embeddings[bench]"` for the peers. Every line compares figures of one run: machines differ,
ratios less so. Leaves with 1 where a bar is missed. `--quick` asks for less, less often.
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
from table import HEADING, Figure

USUAL_ROWS = {**SPEED_ROWS, **QUOTA_ROWS}
ROWS = {**USUAL_ROWS, **SHAPE_ROWS}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all but the shapes, or some of: {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="less of everything: a rough picture")
    parser.add_argument("--only", default="", metavar="TEXT", help="of the shapes, those whose name has this in it")
    asked = parser.parse_args()
    if unknown := [name for name in asked.rows if name not in ROWS]:
        parser.error(f"unknown row {unknown[0]!r}: expected some of {', '.join(ROWS)}")
    start, figures = time.monotonic(), list[Figure]()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    _say(f"Commit {_commit()}, Python {platform.python_version()}, {os.cpu_count()} processors{load}.\n\n{HEADING}")
    with Bench(asked.quick, asked.only) as bench:
        for name in asked.rows or USUAL_ROWS:
            for figure in ROWS[name](bench):
                figures.append(figure)
                _say(str(figure))
    met = [figure.met for figure in figures]
    _say(f"\n{met.count(True)} met, {met.count(False)} not met, {time.monotonic() - start:.0f} s")
    return 1 if False in met else 0


def _commit() -> str:
    """Of the working tree, for figures that are kept; "unknown" outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)  # noqa: S603 - git
    return done.stdout.strip() or "unknown"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
