"""README's table of settings, written from their one definition: `python tests/support/settings_table.py` prints it."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import SecretStr

from dashscope_embeddings._core.client_options import ClientOptions, settings
from dashscope_embeddings.catalogue import DEFAULT_MODEL

ENGLISH = {"model": "A model's name; see Models."} | {
    name: str(field.description) for name, field in settings().items()
}
HEADS = {"README.md": "setting | type | default | what it does", "README.zh.md": "设置 | 类型 | 默认值 | 说明"}


def type_words(hint: Any) -> str:
    """A type as users write its values."""
    parts = [part for part in get_args(hint) if part is not SecretStr]
    if get_origin(hint) in {Union, types.UnionType}:
        return " or ".join(dict.fromkeys(type_words(part) for part in parts))
    if get_origin(hint) is Literal:
        return " or ".join(f'`"{part}"`' for part in parts)
    if get_origin(hint) is Mapping:
        return "`dict`"
    if get_origin(hint) is Callable:
        return "function"
    if hint is Any:
        return "object"
    return "`None`" if hint is type(None) else f"`{hint.__name__}`"


def table(page: str, sentences: Mapping[str, str]) -> str:
    """The table of a page; each language has its own sentences."""
    hints = {"model": str, **get_type_hints(ClientOptions)}
    defaults = {"model": DEFAULT_MODEL} | {name: field.default for name, field in settings().items()}
    lines = [f"| {HEADS[page]} |", "| --- | --- | --- | --- |"]
    for name, default in defaults.items():
        shown = f'"{default}"' if isinstance(default, str) else f"{default}"
        lines.append(f"| `{name}` | {type_words(hints[name])} | `{shown}` | {sentences.get(name, '')} |")
    return "\n".join(lines)


def sentences_of(page_text: str) -> dict[str, str]:
    """Name → sentence, of a page's own table."""
    found = re.search(r"<!-- settings -->\n(\|.*?)\n<!-- end of settings -->", page_text, re.DOTALL)
    rows = found[1].splitlines()[2:] if found else []
    return {cells[1].strip(" `"): cells[4].strip() for row in rows for cells in [row.split("|")]}


if __name__ == "__main__":
    sys.stdout.write(table("README.md", ENGLISH) + "\n")
