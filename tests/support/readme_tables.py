"""The generated parts of both READMEs: models, settings, variables, commands, errors and benchmarks.

    python tests/support/readme_tables.py [--write]

Each is made from its one definition in the package, or from the table in tests/benchmarks/README.md, and stands
between `<!-- NAME: … -->` and `<!-- end of NAME -->`. Without `--write` the command exits with 1 if a page is out of
date, as a test does.
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
    """A table of Markdown; `heads` are separated by bars."""
    names = [translate(head) for head in heads.split(" | ")]
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# --- models ------------------------------------------------------------------------------------------------


def models(translate: Translate) -> str:
    """The catalogue, as the command `models --markdown` prints it."""
    heads, rule, *rows = models_markdown().splitlines()
    heads = " | ".join(translate(head) for head in heads.strip("| ").split(" | "))
    rows = [row.replace(" yes ", f" {translate('yes')} ").replace(", batch ", translate(", batch ")) for row in rows]
    free = ", ".join(f"{model.free_tokens:,} ({model.name})" for model in MODELS if model.free_tokens is not None)
    notes = translate("Prices are list prices for a million input tokens. Free tokens in Beijing for 90 days: {}.")
    return "\n".join([f"| {heads} |", rule, *rows, "", notes.format(free)])


# --- settings ----------------------------------------------------------------------------------------------


def client_settings(translate: Translate) -> str:
    """The settings of `EmbeddingClient`."""
    hints = {"model": str, **get_type_hints(ClientOptions)}
    defaults: dict[str, object] = {"model": DEFAULT_MODEL, **{name: one.default for name, one in settings().items()}}
    sentences = {"model": "A model's name; see Models.", **{name: one.description for name, one in settings().items()}}
    return table(
        translate,
        "setting | type | default | what it does",
        (
            (f"`{name}`", type_words(translate, hints[name]), _code(default), translate(str(sentences[name])))
            for name, default in defaults.items()
        ),
    )


def type_words(translate: Translate, hint: Any) -> str:
    """A type as users write its values, without None: the column of defaults shows that."""
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
    """The commands of `dashscope-embeddings`, with their arguments and exit codes."""
    return table(translate, "command | what it does | exit codes", _command_rows(translate))


def _command_rows(translate: Translate) -> Iterator[tuple[str, ...]]:
    for path, command in _leaves("", typer.main.get_command(app)):
        arguments = [_argument(one) for one in command.params if one.param_type_name == "argument"]
        summary, *paragraphs = inspect.cleandoc(command.help).split("\n\n")
        codes = [text.removeprefix("Exit codes: ") for text in paragraphs if text.startswith("Exit codes: ")]
        yield (
            f"`{' '.join([path, *arguments])}`",
            translate(summary),
            translate(" ".join(codes[0].rstrip(".").split())) if codes else "",
        )


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands below one, by their path."""
    for name, child in getattr(command, "commands", {}).items():
        below = f"{path} {name}".strip()
        yield from _leaves(below, child) if hasattr(child, "commands") else [(below, child)]


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
    "models": models,
    "settings": client_settings,
    "variables": variables,
    "commands": commands,
    "errors": errors,
    "benchmarks": benchmarks,
}
TRANSLATIONS: Mapping[str, Translate] = {"README.md": str, "README.zh.md": CHINESE.__getitem__}


def page(name: str) -> str:
    """A page's text."""
    return (ROOT / name).read_text("utf-8")


def rendered(name: str) -> str:
    """A page's text with its generated parts made anew."""
    text = page(name)
    for part, make in PARTS.items():
        places = list(re.finditer(rf"(?<=<!-- {part}: {_NOTE} -->\n).*?(?=\n<!-- end of {part} -->)", text, re.DOTALL))
        if len(places) != 1:
            raise SystemExit(f"{name} has {len(places)} places for {part}: expected one")
        text = text[: places[0].start()] + make(TRANSLATIONS[name]) + text[places[0].end() :]
    return text


_NOTE = "written by tests/support/readme_tables.py"


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
