"""Reads single fields of replies: vectors strictly, all other fields leniently."""

from __future__ import annotations

import base64
import binascii
import math
import sys
from array import array
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.errors import BadReply
from dashscope_embeddings.vectors import SparseVector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashscope_embeddings._core.reply_types import SparseEntry


# --- vectors ----------------------------------------------------------------------------------------------


def dense_vector(value: list[float] | str | None) -> list[float]:
    """The floats of a vector whose types pydantic has checked, or of base64 of little-endian float32."""
    if not value:
        raise BadReply("the reply has a text without its vector")
    if isinstance(value, list):
        return value
    try:
        floats = array("f", base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError):
        raise BadReply("the reply has a vector that is not base64 of float32") from None
    if sys.byteorder == "big":
        floats.byteswap()
    if not floats or not math.isfinite(math.hypot(*floats)):
        raise BadReply("the reply has a vector that is empty or not finite")
    return floats.tolist()


def sparse_vector(entries: list[SparseEntry] | None) -> SparseVector:
    """Sorted by index, because the service sends text order; rounded to float32, the precision of vector stores."""
    if entries is None:
        raise BadReply("the reply has a text without its sparse vector")
    values = array("f", [entry["value"] for entry in entries])
    return SparseVector.merged(
        (entry["index"], value, token if isinstance(token := entry.get("token"), str) else None)
        for entry, value in zip(entries, values, strict=True)
    )


# --- side fields ------------------------------------------------------------------------------------------

_SAFE_INTEGER_LIMIT = 2**53
"""Larger integers in a reply are ignored: JSON sets no limit, and no real bill or id is that long."""


def billed_tokens(usage: Any) -> int | None:
    """The billed tokens in a reply's `usage`, as a number or a string; None: not stated."""
    if not isinstance(usage, dict):
        return None
    counts = (_token_count(usage.get(name)) for name in ("total_tokens", "prompt_tokens"))
    return next((count for count in counts if count is not None), None)


def _token_count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if not isinstance(value, int):
        try:
            number = float(value)
        except ValueError:
            return None
        if not number.is_integer():
            return None
        value = int(number)
    return value if 0 <= value < _SAFE_INTEGER_LIMIT else None


def first_string(source: Any, names: Sequence[str]) -> str | None:
    """The first of these fields that holds a non-empty string."""
    if not isinstance(source, dict):
        return None
    return next(
        (_replace_surrogates(source[name]) for name in names if isinstance(source.get(name), str) and source[name]),
        None,
    )


def _replace_surrogates(text: str) -> str:
    """JSON may escape a lone surrogate, which cannot be written to a file, terminal or log."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def request_id_of(content: Any) -> str | None:
    """The request id in a reply; some gateways send it as a number."""
    if (text := first_string(content, ("request_id", "id"))) is not None or not isinstance(content, dict):
        return text
    numbers = (content.get(name) for name in ("request_id", "id"))
    return next((str(number) for number in numbers if type(number) is int and abs(number) < _SAFE_INTEGER_LIMIT), None)
