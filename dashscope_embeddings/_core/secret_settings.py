"""Replaces keys in the arguments of constructors by `SecretStr`, before any error can occur.

Error reporters print the local variables of every frame in a traceback, and with them the arguments.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import SecretStr

from dashscope_embeddings.errors import InvalidInput

_KEY_SETTINGS = ("api_key", "dashscope_api_key")
_HEADER_SETTING = "default_headers"
"""Header values are hidden as well, because some gateways take their keys in headers."""
_KEY_PATTERN = re.compile(r"(?<![A-Za-z0-9_-])sk-[A-Za-z0-9_-]{16}")
"""Found in no other setting. Keys of the service have at least 32 characters after `sk-`."""


def as_secret(key: Any) -> SecretStr | None:
    """The key as a `SecretStr`, which tracebacks do not show."""
    if key is None:
        return None
    kind = type(key).__name__
    found = SecretStr(key) if isinstance(key, str) else key
    del key
    if isinstance(found, SecretStr):
        return found
    del found  # bytes may be a key as well
    raise InvalidInput(f"api_key must be a string or a pydantic SecretStr, not {kind}")


def _secret_header_values(headers: Any) -> dict[str, SecretStr]:
    found: dict[str, SecretStr] = {}
    for name, value in headers.items() if isinstance(headers, Mapping) else [(None, None)]:
        if not isinstance(name, str) or not isinstance(value, (str, SecretStr)):
            raise InvalidInput("default_headers must be a dict of strings, names and values")
        found[name] = SecretStr(value) if isinstance(value, str) else value
    return found


def hide_secrets(settings: dict[str, Any], known_names: Collection[str] | None = None) -> None:
    """Replaces keys in a dict of arguments by `SecretStr`, in place.

    Args:
        settings: Name → value.
        known_names: Names that the constructor accepts. A string under any other name may be a key with a misspelt
            name, and is hidden as well.

    Raises:
        InvalidInput: a setting that is shown in `repr` holds a key. `settings` is empty then.
    """
    problem: str | None = None
    try:
        for name, value in settings.items():
            if name in _KEY_SETTINGS:
                settings[name] = as_secret(value)
            elif name == _HEADER_SETTING and value is not None:
                settings[name] = _secret_header_values(value)
            elif known_names is not None and name not in known_names and isinstance(value, str):
                settings[name] = SecretStr(value)
        problem = _misplaced_secret_problem(settings)
    except InvalidInput as error:
        problem = error.message
    value = None
    if problem is not None:
        settings.clear()
        raise InvalidInput(problem)


def _misplaced_secret_problem(settings: Mapping[str, Any]) -> str | None:
    """An error message if a setting that is shown holds a key or a password; else None."""
    for name, value in settings.items():
        shown = value.get_secret_value() if isinstance(value, SecretStr) and name not in _KEY_SETTINGS else value
        if isinstance(shown, str) and _KEY_PATTERN.search(shown):
            return f"{name} holds what looks like an API key: pass the key as api_key="
        if isinstance(shown, str) and name in _URL_SETTINGS and ("@" in shown or "?" in shown or "#" in shown):
            return f"{name} must hold no user, password, query or fragment"
    return None


_URL_SETTINGS = ("base_url", "api_base")
