"""Single fields of the service's replies: vectors are read strictly, side fields leniently."""

from __future__ import annotations

import base64
import binascii
import math
import sys
from array import array
from typing import TYPE_CHECKING, Any

from dashscope_embeddings._core.reply_types import MAX_FLOAT32
from dashscope_embeddings.errors import BadReply
from dashscope_embeddings.vectors import SparseVector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashscope_embeddings._core.reply_types import SparseWeight


# --- vectors ----------------------------------------------------------------------------------------------


def dense_vector(value: Any) -> list[float]:
    """A list of finite Python floats, from a JSON list or from base64 of little-endian float32."""
    if isinstance(value, str):
        return _dense_from_base64(value)
    if not isinstance(value, list) or not value:
        raise BadReply("the reply has a text without its vector")
    if not {int, float}.issuperset(map(type, value)):
        raise BadReply("the reply has a vector that holds something else than numbers")
    try:
        floats = list(map(float, value))
    except OverflowError:
        floats = [math.inf]
    if not math.hypot(*floats) <= MAX_FLOAT32:
        raise BadReply("the reply has a vector with a number that is not finite, or too large for float32")
    return floats


def _dense_from_base64(value: str) -> list[float]:
    try:
        floats = array("f", base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError):
        raise BadReply("the reply has a vector that is not base64 of float32") from None
    if sys.byteorder == "big":
        floats.byteswap()
    if not floats or not math.isfinite(math.hypot(*floats)):
        raise BadReply("the reply has a vector that is empty or not finite")
    return floats.tolist()


_MAX_SPARSE_INDEX = 2**32 - 1


def sparse_vector(weights: list[SparseWeight] | None) -> SparseVector:
    """By ascending index, for the service gives text order; rounded to float32, which is what stores keep."""
    if weights is None:
        raise BadReply("the reply has a text without its sparse vector")
    values = array("f", [weight["value"] for weight in weights])
    for weight, value in zip(weights, values, strict=True):
        if not 0 <= weight["index"] <= _MAX_SPARSE_INDEX:
            raise BadReply(f"the reply has a sparse index of {weight['index']}")
        if not math.isfinite(value):
            raise BadReply("the reply has a sparse weight that is not a finite float32")
    return SparseVector.merged(
        (weight["index"], value, _string_or_none(weight.get("token")))
        for weight, value in zip(weights, values, strict=True)
    )


def _string_or_none(found: Any) -> str | None:
    return found if isinstance(found, str) else None


# --- side fields ------------------------------------------------------------------------------------------

_SAFE_INTEGER_LIMIT = 2**53
"""No bill is that long, and no number; JSON's whole numbers have no end."""


def billed_tokens(usage: Any) -> int | None:
    """What a reply says was billed, however it writes the number; None: it does not say."""
    if not isinstance(usage, dict):
        return None
    found = (_token_count(usage.get(name)) for name in ("total_tokens", "prompt_tokens"))
    return next((number for number in found if number is not None), None)


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
    """The first of these fields that holds a text."""
    if not isinstance(source, dict):
        return None
    return next(
        (_replace_surrogates(source[name]) for name in names if isinstance(source.get(name), str) and source[name]),
        None,
    )


def _replace_surrogates(text: str) -> str:
    """JSON may name half of a surrogate pair, which no file, terminal or log takes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def request_id_of(content: Any) -> str | None:
    """The id of a reply; some gateways number theirs."""
    if (found := first_string(content, ("request_id", "id"))) is not None or not isinstance(content, dict):
        return found
    numbers = (content.get(name) for name in ("request_id", "id"))
    return next((str(number) for number in numbers if type(number) is int and abs(number) < _SAFE_INTEGER_LIMIT), None)
