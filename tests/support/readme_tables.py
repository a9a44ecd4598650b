"""The generated parts of both READMEs: models, settings, variables, commands, errors and benchmarks.

    python tests/support/readme_tables.py [--write]

Each is made from its one definition in the package, or from the table in tests/benchmarks/README.md, and is the rest
of its section from the first line of the table on. Without `--write` the command exits with 1 if a page is out of date,
as a test does.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import SecretStr
from readme_chinese import CHINESE

import dashscope_embeddings
from dashscope_embeddings import DashScopeError, ServiceError
from dashscope_embeddings._core import service_variables
from dashscope_embeddings._core.client_options import ClientOptions, settings
from dashscope_embeddings._runtime import environment
from dashscope_embeddings.catalogue import DEFAULT_MODEL, MODELS
from dashscope_embeddings.cli.app import app
from dashscope_embeddings.cli.models import models_markdown

ROOT = Path(__file__).parents[2]
Translate: TypeAlias = Callable[[str], str]
Rows: TypeAlias = Iterable[tuple[str, ...]]


def table(translate: Translate, heads: str, rows: Rows) -> str:
    """A table of Markdown; `heads` are separated by bars. Rows that differ in their first cell alone become one."""
    names = [translate(head) for head in heads.split(" | ")]
    merged: dict[tuple[str, ...], list[str]] = {}
    for name, *cells in rows:
        merged.setdefault(tuple(cells), []).append(name)
    lines = [names, ["---"] * len(names), *([", ".join(first), *cells] for cells, first in merged.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# --- models ------------------------------------------------------------------------------------------------


def models(translate: Translate) -> str:
    """The catalogue, as the command `models --markdown` prints it, with the sources below it."""
    lines = [line.strip("| ").split(" | ") for line in models_markdown().splitlines()]
    heads, _, *rows = [cells[:-1] for cells in lines]
    sources = dict.fromkeys(cells[-1] for cells in lines[2:])
    words = {", batch ": translate(", batch "), "yes": translate("yes")}
    cells = (tuple(re.sub(", batch |yes", lambda found: words[found[0]], cell) for cell in row) for row in rows)
    free: dict[str, list[str]] = {}
    for model in MODELS:
        if model.free_tokens is not None:
            free.setdefault(f"{model.free_tokens:,}", []).append(f"`{model.name}`")
    notes = translate(
        "List prices for a million input tokens. Free in Beijing for 90 days, each: {}. Sources: {}. Other models work "
        "too, with cautious limits and a warning."
    )
    amounts = "; ".join(f"{amount} ({', '.join(names)})" for amount, names in free.items())
    return "\n\n".join([table(translate, " | ".join(heads), cells), notes.format(amounts, ", ".join(sources))])


# --- settings ----------------------------------------------------------------------------------------------


def client_settings(translate: Translate) -> str:
    """The settings of `EmbeddingClient`; what is the same as another stands in the other's row."""
    hints = get_type_hints(ClientOptions)
    sentences = {name: str(setting.description) for name, setting in settings().items()}
    rows = [("`model`", f'`"{DEFAULT_MODEL}"`', translate("A model's name; see Models."))]
    for name, setting in settings().items():
        kind = type_words(translate, hints[name]) if setting.default is None else _code(setting.default)
        same = sentences[name].removeprefix("The same as `").removesuffix("`.")
        rows.append((f"`{name}`", kind, translate(sentences.get(same, sentences[name]))))
    return table(translate, "setting | type or default | what it does", rows)


def type_words(translate: Translate, hint: Any) -> str:
    """A type as users write its values, without None: that is the default."""
    parts = [part for part in get_args(hint) if part is not SecretStr and part is not type(None)]
    if get_origin(hint) in {Union, types.UnionType}:
        return translate(" or ").join(dict.fromkeys(type_words(translate, part) for part in parts))
    if get_origin(hint) is Literal:
        return translate(" or ").join(f'`"{part}"`' for part in parts)
    if get_origin(hint) is Mapping:
        return "`dict`"
    if get_origin(hint) is Callable:
        return translate("function")
    if hint is Any:
        return translate("object")
    return f"`{hint.__name__}`"


def _code(value: object) -> str:
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


# --- environment variables ---------------------------------------------------------------------------------


def variables(translate: Translate) -> str:
    """The environment variables that are read."""
    described = {**service_variables.DESCRIPTIONS, **environment.DESCRIPTIONS}
    return table(
        translate,
        "variable | what it says",
        ((", ".join(f"`{name}`" for name in names), translate(sentence)) for names, sentence in described.items()),
    )


# --- commands ----------------------------------------------------------------------------------------------


def commands(translate: Translate) -> str:
    """The commands of `dashscope-embeddings`, with their arguments and exit codes; those of a group in one row."""
    return table(translate, "command | what it does | exit codes", _command_rows(translate))


def _command_rows(translate: Translate) -> Iterator[tuple[str, ...]]:
    root: Any = typer.main.get_command(app)
    for name, command in root.commands.items():
        arguments = [_argument(one) for one in command.params if one.param_type_name == "argument"]
        first, *others = getattr(command, "commands", {}) or [""]
        names = [" ".join(filter(None, [name, first, *arguments])), *others]
        summary, *paragraphs = inspect.cleandoc(command.help).split("\n\n")
        codes = [text.removeprefix("Exit codes: ") for text in paragraphs if text.startswith("Exit codes: ")]
        yield (
            ", ".join(f"`{one}`" for one in names),
            translate(summary),
            translate(" ".join(codes[0].rstrip(".").split())) if codes else "",
        )


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required else f"[{name}]"


# --- errors ------------------------------------------------------------------------------------------------


def errors(translate: Translate) -> str:
    """The classes of errors that are raised: the first two paragraphs of their docstrings."""
    rows = []
    for kind in error_classes():
        meaning, action = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[:2]
        rows.append((f"`{kind.__name__}`", translate(meaning), translate(" ".join(action.split()))))
    return table(translate, "error | meaning | what to do", rows)


def error_classes() -> list[type[DashScopeError]]:
    """The public classes without the two bases, in the order of their module."""
    public = [getattr(dashscope_embeddings, name) for name in dashscope_embeddings.__all__]
    kinds = [kind for kind in public if isinstance(kind, type) and issubclass(kind, DashScopeError)]
    return sorted((kind for kind in kinds if kind not in {DashScopeError, ServiceError}), key=_line)


def _line(kind: type) -> int:
    return inspect.getsourcelines(kind)[1]


# --- benchmarks --------------------------------------------------------------------------------------------

FIGURES = (
    ("documents", "1,000 texts, 80 ms a reply: langchain, sync"),
    ("documents", "1,000 texts, 80 ms a reply: llama-index, async"),
    ("order", "1,000 texts, each tenth reply lists its rows last to first: vectors on a wrong text"),
    ("corpus", "10,000 texts, 80 ms a reply: sync"),
    ("query", "one query, no latency: langchain, sync"),
    ("quota-slow", "unknown quota 30/s, 80 ms, 3,000 texts"),
)
"""Row and what of the figures that the pages show, of tests/benchmarks/README.md."""


def benchmarks(translate: Translate) -> str:
    """A few rows of the table that `run.py` prints."""
    lines = page("tests/benchmarks/README.md").splitlines()
    measured = {tuple(cells[:2]): cells for line in lines if len(cells := line.strip("| ").split(" | ")) > _MANY_CELLS}
    rows = []
    for figure in FIGURES:
        if figure not in measured:
            raise SystemExit(f"tests/benchmarks/README.md has no row {figure}")
        _, what, ours, floor, ratio, *_ = measured[figure]
        value, _, whose = floor.partition(", ")
        rows.append((translate(what), ours, f"{value}, {translate(whose)}", ratio))
    return table(translate, "what | this package | compared with | ratio", rows)


_MANY_CELLS = 5


# --- pages -------------------------------------------------------------------------------------------------

PARTS: Mapping[str, Callable[[Translate], str]] = {
    "Client settings": client_settings,
    "Environment variables": variables,
    "Command line": commands,
    "Models": models,
    "Errors": errors,
    "Benchmarks": benchmarks,
}
"""Title of its section → what makes it."""
TRANSLATIONS: Mapping[str, Translate] = {"README.md": str, "README.zh.md": CHINESE.__getitem__}


def page(name: str) -> str:
    """A page's text."""
    return (ROOT / name).read_text("utf-8")


def rendered(name: str) -> str:
    """A page's text with its generated parts made anew."""
    text, translate = page(name), TRANSLATIONS[name]
    for title, make in PARTS.items():
        section = re.search(
            rf"(?<=\n### {re.escape(translate(title))}\n)(.*?)^\|.*?(?=\n\n#)", text, re.DOTALL | re.MULTILINE
        )
        if section is None:
            raise SystemExit(f"{name} has no table below {translate(title)}")
        text = text[: section.end(1)] + make(translate) + text[section.end() :]
    return text


def main() -> int:
    """The command line."""
    stale = [name for name in TRANSLATIONS if rendered(name) != page(name)]
    for name in stale:
        if "--write" in sys.argv:
            (ROOT / name).write_text(rendered(name), "utf-8")
        sys.stdout.write(f"{name}: {'written' if '--write' in sys.argv else 'out of date'}\n")
    return 1 if stale and "--write" not in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
