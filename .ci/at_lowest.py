# ruff: noqa: INP001 - no package
"""Fails unless of every dependency the lowest admitted version is installed: `at_lowest.py EXTRA... -EXCEPTION...`."""

from __future__ import annotations

import sys
from importlib.metadata import metadata, version

from packaging.requirements import Requirement
from packaging.version import Version

extras = [argument for argument in sys.argv[1:] if argument[0] != "-"]
exceptions = [argument[1:] for argument in sys.argv[1:] if argument[0] == "-"]
wrong = []
for text in metadata("dashscope-embeddings").get_all("Requires-Dist") or []:
    needed = Requirement(text)
    wanted = needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras)
    if not wanted or needed.name == "dashscope-embeddings":
        continue
    (lowest,) = (part.version for part in needed.specifier if part.operator in (">=", "=="))
    installed = version(needed.name)
    sys.stdout.write(f"{needed.name} {installed}\n")
    if Version(installed) != Version(lowest) and needed.name not in exceptions:
        wrong.append(f"{needed.name}: {installed} is installed, not {lowest}")
sys.exit("\n".join(wrong) or None)
