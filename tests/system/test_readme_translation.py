"""README.zh.md has what README.md has, line by line: code but for its texts and comments, tables with their numbers."""

from __future__ import annotations

import io
import re
import tokenize

from readme_blocks import PAGES

ENGLISH, CHINESE = PAGES["README.md"], PAGES["README.zh.md"]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LEFT_OUT = {tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.COMMENT)}
"""Words; Python 3.12 and later have those of an f-string as tokens of their own."""


def kind(line: str) -> str | bool:
    """What a line begins with: a heading, a point, a row, a fence or a tag; else whether it is empty."""
    start = re.match(r"#+ |- |\||```\w*|</?\w+>", line)
    return start[0] if start else not line


def has_chinese(text: str) -> bool:
    return re.search(r"[\u4e00-\u9fff]", text) is not None


def tokens(code: str) -> list[tokenize.TokenInfo]:
    return [token for token in tokenize.generate_tokens(io.StringIO(code).readline) if token.type not in LEFT_OUT]


def without_words(language: str, block: str) -> list[str]:
    """The lines of a block that is no Python: without comments, texts and explanations."""
    if language == "text":
        return [line[:32].rstrip() for line in block.splitlines()]
    return [re.sub(r"'.*'", "''", line) for line in block.splitlines()]


def tables(page: str) -> list[list[list[str]]]:
    """The tables of a page: rows of cells."""
    found = re.findall(r"(?:^\|.*\|\n)+", FENCE.sub("", page), re.MULTILINE)
    return [[row[1:-1].split("|") for row in table.splitlines()] for table in found]


def numbers(cell: str) -> list[str]:
    return sorted(re.findall(r"\d[\d,.]*\d|\d", cell))


def code_spans(cell: str) -> list[str]:
    return sorted(re.findall(r"`[^`]+`", cell))


def test_each_line_has_its_counterpart() -> None:
    pairs = enumerate(zip(ENGLISH.splitlines(), CHINESE.splitlines(), strict=True), start=1)
    assert [number for number, (theirs, ours) in pairs if kind(ours) != kind(theirs)] == []


def test_code_is_the_same_but_for_texts_and_comments() -> None:
    english, chinese = FENCE.findall(ENGLISH), FENCE.findall(CHINESE)
    assert [language for language, _ in chinese] == [language for language, _ in english]
    for (language, theirs), (_, ours) in zip(english, chinese, strict=True):
        if language != "python":
            assert without_words(language, ours) == without_words(language, theirs)
            continue
        pairs = list(zip(tokens(theirs), tokens(ours), strict=True))
        assert [
            b.string
            for a, b in pairs
            if a.string != b.string and not (b.type == tokenize.STRING and has_chinese(b.string))
        ] == []


def test_tables_have_the_same_rows_columns_and_numbers() -> None:
    english, chinese = tables(ENGLISH), tables(CHINESE)
    assert [[len(row) for row in table] for table in chinese] == [[len(row) for row in table] for table in english]
    pairs = [
        (theirs, ours)
        for tables_ in zip(english, chinese, strict=True)
        for rows in zip(*tables_, strict=True)
        for theirs, ours in zip(*rows, strict=True)
    ]
    assert len(pairs) > 300
    assert [ours for theirs, ours in pairs if numbers(ours) != numbers(theirs)] == []
    assert [ours for theirs, ours in pairs if code_spans(ours) != code_spans(theirs)] == []
