"""The vendor's environment variables that say where the service is, in the spellings of both its SDKs.

`dashscope` 1.27 and 2.0 (env.py and api_key.py), seen 2026-11-27. An empty variable counts as unset.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dashscope_embeddings._core.protocol import ApiProtocol

_URL = "DASHSCOPE_BASE_URL"
"""Of SDK 2.0, for its native protocol; many write a compatible address into it."""
_URLS = {"native": "DASHSCOPE_HTTP_BASE_URL", "openai": "DASHSCOPE_COMPATIBLE_BASE_URL"}
REGION_VARIABLES = ("DASHSCOPE_API_REGION", "DASHSCOPE_REGION")
WORKSPACE_VARIABLES = ("DASHSCOPE_WORKSPACE_ID", "DASHSCOPE_WORKSPACE")

DESCRIPTIONS: Mapping[tuple[str, ...], str] = {
    ("DASHSCOPE_API_KEY",): "The key.",
    ("DASHSCOPE_API_KEY_FILE_PATH",): "A file that holds it; without both, `~/.dashscope/api_key`.",
    (_URLS["native"], _URL): "Address of the service; beats the region's variable, with a warning if they differ.",
    (_URLS["openai"],): 'The same for `protocol="openai"`.',
    REGION_VARIABLES: "Region of the key, by id or city, in English or Chinese; else Beijing.",
    WORKSPACE_VARIABLES: "Workspace, to whose own host requests go, unless the region's variable is unset or Beijing.",
}
"""Spellings of each variable → what it says, for README."""

_COMPATIBLE_PATH = re.compile(r"/compatible-mode(?:/|$)")


class Variable(NamedTuple):
    """A variable that is set."""

    name: str
    value: str


def is_compatible_url(url: str) -> bool:
    """Whether an address is one of the OpenAI-compatible protocol."""
    return _COMPATIBLE_PATH.search(url) is not None


def base_url_variable(protocol: ApiProtocol) -> Variable | None:
    """The variable for a protocol's address; else the other protocol's, as its host beats a guess of the region."""
    given = os.environ.get(_URL, "")
    meant_for = "openai" if is_compatible_url(given) else "native"
    for each in sorted(_URLS, key=lambda name: name != protocol):
        if found := read_variable([_URLS[each], _URL] if each == meant_for else [_URLS[each]]):
            return found
    return None


def read_variable(names: Iterable[str]) -> Variable | None:
    """The first of these that is set.

    Raises:
        InvalidInput: two of them differ. Their values, which may hold a password, are not named.
    """
    found = [Variable(name, value) for name in names if (value := os.environ.get(name))]
    if len({variable.value.strip().rstrip("/") for variable in found}) > 1:
        raise InvalidInput(
            f"{' and '.join(variable.name for variable in found)} mean the same and are set to different values: "
            "unset one of them"
        )
    return found[0] if found else None
