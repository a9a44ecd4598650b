"""Keys among the arguments of a constructor: hidden before an error can take a frame's variables along.

Error reporters, and tracebacks that show local variables, print every argument of every frame that an error passed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import SecretStr

from dashscope_embeddings.errors import InvalidInput

_KEY_SETTINGS = ("api_key", "dashscope_api_key")
_HEADER_SETTING = "default_headers"
"""Their values are hidden as well: gateways take their keys in them."""
_KEY_PATTERN = re.compile(r"(?<![A-Za-z0-9_-])sk-[A-Za-z0-9_-]{16}")
"""What no other setting holds. The service's keys have 32 characters and more after their first three."""


def as_secret(key: Any) -> SecretStr | None:
    """The key where no traceback shows it.

    Raises:
        InvalidInput: it is neither a string nor a SecretStr.
    """
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
    """Hides keys in a dict of arguments, in place: whoever holds it then shows them no more.

    `known`: the names that there are. What stands under any other name may be a key under a misspelt one.

    Raises:
        InvalidInput: a key stands where settings are shown. `settings` is empty then.
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
    """What is wrong with settings that hold a key although they are shown; None: nothing."""
    for name, value in settings.items():
        shown = value.get_secret_value() if isinstance(value, SecretStr) and name not in _KEY_SETTINGS else value
        if isinstance(shown, str) and _KEY_PATTERN.search(shown):
            return f"{name} holds what looks like an API key: pass the key as api_key="
        if isinstance(shown, str) and name in _URL_SETTINGS and ("@" in shown or "?" in shown or "#" in shown):
            return f"{name} must hold no user, password, query or fragment"
    return None


_URL_SETTINGS = ("base_url", "api_base")
