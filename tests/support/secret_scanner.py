"""Finds a secret in anything that a program prints, logs, raises, dumps or sends to an error reporter."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from traceback import walk_tb
from typing import Any

import dashscope_embeddings

CANARY = "sk-CANARY-0a1b2c3d4e5f"
"""A key that occurs nowhere else."""
_PACKAGE = str(Path(dashscope_embeddings.__file__).parent) + os.sep


def find_secret(thing: object, secret: str = CANARY) -> list[str]:
    """Paths to every place that shows the secret.

    Searches `repr` and `str`, containers, and everything of an exception that an error reporter sends: attributes,
    notes, causes and contexts, and the variables of this package's frames.
    """
    found: list[str] = []
    _scan(thing, type(thing).__name__, secret, found, set())
    return found


def _scan(thing: object, path: str, secret: str, found: list[str], seen: set[int]) -> None:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, (bytes, bytearray, memoryview)):
        if secret.encode() in bytes(thing):
            found.append(path)
        return
    if isinstance(thing, BaseException):
        _scan_exception(thing, path, secret, found, seen)
    inner = list(_items(thing))
    for name, value in inner:
        _scan(value, f"{path}{name}", secret, found, seen)
    if not inner and any(secret in _render(show, thing) for show in (str, repr)):
        found.append(path)


def _render(show: Callable[[object], str], thing: object) -> str:
    """Renders as error reporters do: an object whose repr fails, such as a half-constructed one, is skipped."""
    try:
        return show(thing)
    except Exception:  # noqa: BLE001 - any code may be behind it
        return ""


def _items(thing: object) -> list[tuple[str, object]]:
    """The items of a container, with its keys."""
    if isinstance(thing, Mapping):
        return [pair for i, (k, v) in enumerate(thing.items()) for pair in ((f".key({i})", k), (f"[{k!r}]"[:40], v))]
    if isinstance(thing, (list, tuple, set, frozenset)):
        return [(f"[{i}]", value) for i, value in enumerate(thing)]
    return []


def _scan_exception(error: BaseException, path: str, secret: str, found: list[str], seen: set[int]) -> None:
    parts: dict[str, Any] = {"args": error.args, **vars(error), "notes": getattr(error, "__notes__", [])}
    # Python's own errors, such as UnicodeError, keep what they are about in attributes without a __dict__.
    parts |= {name: getattr(error, name) for name in ("object", "reason", "exceptions") if hasattr(error, name)}
    for name, value in parts.items():
        _scan(value, f"{path}.{name}", secret, found, seen)
    for frame, line in walk_tb(error.__traceback__):
        if frame.f_code.co_filename.startswith(_PACKAGE):
            place = f"{frame.f_code.co_filename.removeprefix(_PACKAGE)}:{line} {frame.f_code.co_name}()"
            for name, value in frame.f_locals.items():
                _scan(value, f"{place} {name}", secret, found, seen)
    for name in ("__cause__", "__context__"):
        if (other := getattr(error, name)) is not None:
            _scan(other, f"{path}.{name}", secret, found, seen)
