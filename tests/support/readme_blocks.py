"""The blocks of code of both READMEs, and what they print."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh.md")}


def code_blocks(language: str, page: str) -> list[str]:
    """The blocks of a page that are fenced with this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], flags=re.MULTILINE | re.DOTALL)


def parameters(language: str, wanted: Callable[[str], bool]) -> list[object]:
    """The blocks of both pages for `parametrize`, each with its page and line; equal ones once."""
    blocks = {block: page for page in reversed(PAGES) for block in code_blocks(language, page) if wanted(block)}
    return [
        pytest.param(
            _quick_start(block, page) + block, id=f"{page}:{PAGES[page][: PAGES[page].index(block)].count(chr(10)) + 1}"
        )
        for block, page in blocks.items()
    ]


def _quick_start(block: str, page: str) -> str:
    """What a block goes on from: one that opens with a framework's name in a comment continues its quick start."""
    if (framework := re.match(r"# (LangChain|LlamaIndex)\b", block)) is None:
        return ""
    section = PAGES[page].split(f"\n### {framework[1]}\n")[1]
    return section.split("```python\n", 1)[1].split("```", 1)[0]


def matches(expected: str, found: str) -> bool:
    """Whether it is what is written, where an ellipsis stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, expected.split("…"))), found, re.DOTALL) is not None


def check_python(block: str, folder: Path) -> None:
    """Runs a block in an empty folder, and compares what it prints with what stands behind its arrows."""
    expected = re.findall(r"# → (.*)", block)
    assert expected, "a block that shows nothing proves nothing"
    printed = _run_python(block, folder).splitlines()
    assert len(printed) == len(expected), printed
    assert [line for line, words in zip(printed, expected, strict=True) if not matches(words, line)] == []


def _run_python(block: str, folder: Path) -> str:
    if "\ndef test_" in block:
        (folder / "test_app.py").write_text(block, "utf-8")
        return _run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_app.py"], folder
        ).splitlines()[-1]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("default")  # the frameworks' and stores' own
        exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102 - that is the test
    return out.getvalue()


def check_console(block: str, folder: Path) -> None:
    """Runs the lines that begin with a dollar sign, and compares the standard output of each with what follows it."""
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
        printed = _run(["bash", "-c", command], folder)
        assert matches(expected, printed), printed


def _run(command: list[str], folder: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(  # noqa: S603 - README's own
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
