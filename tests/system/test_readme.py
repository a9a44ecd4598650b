"""README's code prints what README says it prints, its errors read as it says, its models are the catalogue's."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import settings_table

import dashscope_embeddings
from dashscope_embeddings import DashScopeError, EmbeddingClient
from dashscope_embeddings.cli.models import models_markdown
from dashscope_embeddings.emulator import Emulator, faults

if TYPE_CHECKING:
    from collections.abc import Callable

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


def test_models_are_those_of_the_catalogue() -> None:
    for page in PAGES.values():
        (table,) = re.findall(r"<!-- models: .*?-->\n(\|.*?)\n\n", page, flags=re.DOTALL)
        assert table == models_markdown()


def test_settings_are_those_of_the_client_in_both_languages() -> None:
    assert PAGES.keys() == settings_table.HEADS.keys()
    for name, page in PAGES.items():
        sentences = settings_table.ENGLISH if name == "README.md" else settings_table.sentences_of(page)
        assert all(sentences.get(setting) for setting in settings_table.ENGLISH)
        assert settings_table.table(name, sentences) in page


def test_it_opens_with_two_commands() -> None:
    commands = re.findall(r"^```sh\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)[:2]
    assert [command.count("\n") for command in commands] == [1, 1]
    assert "dashscope-embeddings demo" in commands[0]
    assert "pytest" in commands[1]


# --- errors ------------------------------------------------------------------------------------------------


def asked(*wrong: faults.Fault, texts: tuple[str, ...] = ("one", "two"), **service: Any) -> Callable[[], object]:
    def ask() -> object:
        emulator = Emulator(faults=wrong, **service)
        with httpx.Client(transport=emulator.transport()) as http:
            return EmbeddingClient(api_key="sk-made-up", max_retries=0, http_client=http).embed(list(texts))

    return ask


PROVOKED = {
    "InvalidInput": asked(texts=("fine", "  ")),
    "AuthenticationError": asked(api_key="sk-another"),
    "QuotaError": asked(faults.Arrearage()),
    "RateLimitError": asked(faults.Throttle()),
    "BadRequestError": asked(faults.Blocked(match="two")),
    "ServerError": asked(faults.Status(status=500)),
    "ConnectionFailed": asked(faults.Drop("reset")),
    "BadReply": asked(faults.WrongCount()),
}


def test_every_error_that_is_raised_has_its_example() -> None:
    kinds = {
        name
        for name in dashscope_embeddings.__all__
        if isinstance(kind := getattr(dashscope_embeddings, name), type) and issubclass(kind, DashScopeError)
    }
    assert PROVOKED.keys() == kinds - {"DashScopeError", "ServiceError"}
    assert [row[0] for row in re.findall(r"^\| `([A-Z]\w+)` \| (.*?) \|", README, re.MULTILINE)] == list(PROVOKED)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("name", PROVOKED)
def test_an_errors_example_is_what_it_says(name: str, page: str) -> None:
    examples = dict(re.findall(r"^\| `([A-Z]\w+)` \| (.*?) \|", PAGES[page], re.MULTILINE))
    with pytest.raises(getattr(dashscope_embeddings, name)) as caught:
        PROVOKED[name]()
    assert type(caught.value).__name__ == name
    assert matches(examples[name], str(caught.value)), str(caught.value)


def test_links_inside_the_page_lead_somewhere() -> None:
    for name, page in PAGES.items():
        titles = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
        heads = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert {link for link in re.findall(r"\]\(#([^)]+)\)", page) if link not in heads} == set(), name
        files = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", page)
        assert [file for file in files if not (ROOT / file).exists()] == []
