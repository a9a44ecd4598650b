"""The shape of replies, and their single fields: vectors are read strictly, all other fields leniently."""

from __future__ import annotations

import base64
import binascii
import html
import math
import re
import sys
from array import array
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeAlias, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import NotRequired, TypedDict

from dashscope_embeddings.errors import BadReply
from dashscope_embeddings.vectors import SparseVector

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dashscope_embeddings.vectors import Output

# --- the shape of a reply ----------------------------------------------------------------------------------

# Pydantic checks it while it parses the JSON: that is faster than to check every number afterwards. A component that
# was not requested is typed `Any`: its value does not affect the requested vectors.
_STRICT_FINITE = ConfigDict(strict=True, allow_inf_nan=False)
# Other fields are kept as they are: `protocol` reads some of them leniently, as they do not change the vectors.
_WITH_OTHER_FIELDS = ConfigDict(**_STRICT_FINITE, extra="allow")
_MAX_FLOAT32 = 3.4028234e38
"""Vectors are computed and stored as float32."""
_Float32 = Annotated[float, Field(ge=-_MAX_FLOAT32, le=_MAX_FLOAT32)]


@with_config(_STRICT_FINITE)
class SparseEntry(TypedDict):
    """One entry of a sparse vector."""

    index: Annotated[int, Field(ge=0, le=2**32 - 1)]
    value: _Float32
    token: NotRequired[Any]


# Some gateways send base64 of float32, and null in place of a missing component.
_Dense: TypeAlias = list[_Float32] | str | None
_Sparse: TypeAlias = list[SparseEntry] | None
_DenseT = TypeVar("_DenseT")
_SparseT = TypeVar("_SparseT")


@with_config(_WITH_OTHER_FIELDS)
class _NativeRow(TypedDict, Generic[_DenseT, _SparseT]):
    text_index: int
    embedding: NotRequired[_DenseT]
    sparse_embedding: NotRequired[_SparseT]


@with_config(_WITH_OTHER_FIELDS)
class _NativeOutput(TypedDict, Generic[_DenseT, _SparseT]):
    embeddings: list[_NativeRow[_DenseT, _SparseT]]


@with_config(_WITH_OTHER_FIELDS)
class _NativeReply(TypedDict, Generic[_DenseT, _SparseT]):
    output: _NativeOutput[_DenseT, _SparseT]


@with_config(_WITH_OTHER_FIELDS)
class _CompatibleRow(TypedDict):
    index: int
    embedding: NotRequired[_Dense]


@with_config(_WITH_OTHER_FIELDS)
class _CompatibleReply(TypedDict):
    data: list[_CompatibleRow]


NATIVE_REPLY: Mapping[Output, TypeAdapter[Any]] = {
    "dense": TypeAdapter(_NativeReply[_Dense, Any]),
    "sparse": TypeAdapter(_NativeReply[Any, _Sparse]),
    "dense&sparse": TypeAdapter(_NativeReply[_Dense, _Sparse]),
}
COMPATIBLE_REPLY: TypeAdapter[Any] = TypeAdapter(_CompatibleReply)
SPARSE_ENTRIES: TypeAdapter[list[SparseEntry]] = TypeAdapter(list[SparseEntry])


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
    """The value of the first field of `names` that holds a non-empty string; None if there is none."""
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


# --- what is no reply of the service ------------------------------------------------------------------------

_INSPECTED_BYTES = 65_536
_HTML_START = re.compile(rb"\s*(?:<!doctype html|<html|<head|<title|<body|<h1|<script|<meta)", re.IGNORECASE)
_TEXT_START = re.compile(rb"(?!null|true|false)[A-Za-z<]")
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_MAX_TITLE_CHARACTERS = 80


def describe_foreign_body(headers: Mapping[str, str], body: bytes) -> str | None:
    """What the body is, and what to check; None: it is empty, or JSON that is broken."""
    start = body[:_INSPECTED_BYTES].removeprefix(b"\xef\xbb\xbf").strip()
    kind, content = "text", start
    if _HTML_START.match(start) or "text/html" in headers.get("content-type", "").lower():
        title = _TITLE.search(start)
        kind, content = "an HTML page", title[1] if title else b""
    elif not _TEXT_START.match(start):
        return None
    shown = " ".join(html.unescape(content.decode("utf-8", "replace")).split())[:_MAX_TITLE_CHARACTERS]
    quoted = f' ("{shown}")' if shown else ""
    return (
        f"{kind}{quoted} came in place of the service's JSON. It comes from a firewall, a proxy, a gateway or a "
        "login page on the way: is base_url right, and does this network let requests to this host through?"
    )
