"""README's code runs, and what it says of models is what the catalogue says."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

import pytest

from dashscope_embeddings.tables import models_markdown

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=[block.splitlines()[0] for block in BLOCKS])
def test_code_runs_and_searches_find_what_they_should(code: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("default")  # the frameworks' and stores' own
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102 - that is the test
    if "programming language" in code:
        assert out.getvalue().startswith("Rust is a language.")
    else:
        assert out.getvalue().startswith("1024 [")


def test_models_are_those_of_the_catalogue() -> None:
    (table,) = re.findall(r"<!-- models: .*?-->\n(\|.*?)\n\n", README, flags=re.DOTALL)
    assert table == models_markdown()


def test_it_opens_with_two_commands() -> None:
    commands = re.findall(r"^```sh\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)[:2]
    assert [command.count("\n") for command in commands] == [1, 1]
    assert "dashscope-embeddings demo" in commands[0]
    assert "pytest" in commands[1]
