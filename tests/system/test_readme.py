"""Both READMEs: code prints what it shows, tables are those of the package, and one page says what the other does."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest
import readme_tables
from readme_blocks import PAGES, ROOT, check_console, check_python, code_blocks, parameters
from readme_chinese import CHINESE

import dashscope_embeddings


@pytest.mark.parametrize("block", parameters("python", lambda block: "milvus" not in block))
def test_code_prints_what_stands_behind_its_arrows(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_python(block, tmp_path)


@pytest.mark.parametrize("block", parameters("console", bool))
def test_commands_print_what_stands_below_them(block: str, tmp_path: Path) -> None:
    check_console(block, tmp_path)


def test_generated_parts_are_those_of_the_package() -> None:
    stale = [name for name in PAGES if readme_tables.rendered(name) != PAGES[name]]
    assert stale == [], "python tests/support/readme_tables.py --write"


def test_each_sentence_is_translated_and_nothing_else() -> None:
    sentences: list[str] = []

    def collect(sentence: str) -> str:
        sentences.append(sentence)
        return sentence

    for make in readme_tables.PARTS.values():
        make(collect)
    assert CHINESE.keys() - {*sentences, *readme_tables.PARTS} == set()
    assert {*sentences, *readme_tables.PARTS} - CHINESE.keys() == set()


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
    commands = code_blocks("sh", "README.md")
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


# --- what else can be compared -----------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_no_block_is_left_out(page: str) -> None:
    fences = re.findall(r"^```(\w*)\n.*?^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    assert set(fences) == {"sh", "python", "console", "text"}
    assert (fences.count("sh"), fences.count("text")) == (2, 1)  # run by CI and below


def test_the_demo_prints_what_is_shown(tmp_path: Path) -> None:
    (shown,), (other,) = (code_blocks("text", page) for page in PAGES)
    assert other == shown
    if f"Python {platform.python_version()}" not in shown:
        pytest.skip("its texts are those of another Python")
    check_console(f"$ dashscope-embeddings demo\n{shown}", tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_parts_of_the_package_are_where_the_page_has_them(page: str) -> None:
    rooms = re.findall(r"`(\w+\.py|\w+/)`", PAGES[page].split("\n## ")[-1])
    assert len(rooms) > 8
    assert [name for name in rooms if not (Path(dashscope_embeddings.__file__).parent / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_extras_and_versions_are_those_of_the_project(page: str) -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    extras = {name for names in re.findall(r'"\.\[([\w,-]+)\]"', PAGES[page]) for name in names.split(",")}
    assert {name for name in extras if f"\n{name} = [" not in project} == set()
    versions = re.findall(r"`([\w\[\]-]+[=<>]=[\d.,<]+)`", PAGES[page])
    assert len(versions) > 10
    assert [version for version in versions if f'"{version}' not in project] == []


@pytest.mark.parametrize("page", PAGES)
def test_measured_numbers_are_those_of_the_table(page: str) -> None:
    rows = [row.split(" | ") for row in readme_tables.benchmarks(str).splitlines()[2:]]
    ours, community = (float(cell.split(" ")[0]) for cell in rows[0][1:3])
    assert f" {int(community / ours)} " in PAGES[page].split("\n## ")[1]
    assert all(f" {cell.split(',')[0]} " in PAGES[page].split("\n## ")[1] for cell in rows[2][1:3])
