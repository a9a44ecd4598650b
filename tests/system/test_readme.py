"""Both READMEs: code prints what stands behind its arrows, and tables are those of the package."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

import pytest
import readme_tables
from readme_chinese import CHINESE

import dashscope_embeddings

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text("utf-8") for path in sorted(ROOT.glob("README*.md"))}
README = PAGES["README.md"]
BLOCKS = [
    pytest.param(block, id=f"{name}: {block.splitlines()[0]}")
    for name, page in PAGES.items()
    for block in re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
]


def matches(expected: str, found: str) -> bool:
    """Whether it is what is written, where an ellipsis stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, expected.split("…"))), found, re.DOTALL) is not None


@pytest.mark.parametrize("code", BLOCKS)
def test_code_prints_what_stands_behind_its_arrows(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "import zvec" in code:
        pytest.importorskip("zvec")
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("default")  # the frameworks' and stores' own
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102 - that is the test
    expected = re.findall(r"# → (.*)", code)
    assert expected, "a block that shows nothing proves nothing"
    printed = out.getvalue().splitlines()
    assert len(printed) == len(expected)
    assert [line for line, said in zip(printed, expected, strict=True) if not matches(said, line)] == []


def test_generated_parts_are_those_of_the_package() -> None:
    assert [name for name in PAGES if readme_tables.rendered(name) != PAGES[name]] == []


def test_each_sentence_is_translated_and_nothing_else() -> None:
    sentences: list[str] = []

    def collect(sentence: str) -> str:
        sentences.append(sentence)
        return sentence

    for make in readme_tables.PARTS.values():
        make(collect)
    assert CHINESE.keys() - sentences == set()
    assert set(sentences) - CHINESE.keys() == set()


def test_variables_are_those_that_the_package_reads() -> None:
    package = Path(dashscope_embeddings.__file__).parent
    read = {
        name
        for path in package.rglob("*.py")
        for name in re.findall(r"\"(DASHSCOPE_[A-Z_]+|SSL_[A-Z_]+|[A-Z_]+_CA_BUNDLE)\"", path.read_text("utf-8"))
    }
    table = readme_tables.variables(str)
    assert {name for name in read if f"`{name}`" not in table} == set()


def test_it_opens_with_two_commands() -> None:
    commands = re.findall(r"^```sh\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)[:2]
    assert [command.count("\n") for command in commands] == [1, 1]
    assert "dashscope-embeddings demo" in commands[0]
    assert "pytest" in commands[1]


def test_links_inside_the_page_lead_somewhere() -> None:
    for name, page in PAGES.items():
        titles = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
        heads = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert {link for link in re.findall(r"\]\(#([^)]+)\)", page) if link not in heads} == set(), name
        files = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", page)
        assert [file for file in files if not (ROOT / file).exists()] == []
