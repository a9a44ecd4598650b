"""The service's JSON, both protocols. No other file knows its names.

Native: https://www.alibabacloud.com/help/en/model-studio/text-embedding-synchronous-api, seen 2026-11-20.
OpenAI-compatible: the same page's first half. Where pages and recorded replies differ, both shapes are read.
"""

from __future__ import annotations

import base64
import binascii
import math
import sys
from array import array
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from dashscope_embeddings import html_pages
from dashscope_embeddings.errors import BadReply, Refusal
from dashscope_embeddings.shapes import COMPATIBLE, LARGEST, NATIVE, USUAL, Billed, Weight
from dashscope_embeddings.vectors import Output, SparseVector, TextType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Protocol = Literal["native", "openai"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What all requests of one call have in common."""

    protocol: Protocol
    model: str
    text_type: TextType = "document"
    output: Output = "dense"
    dimension: int | None = None
    """Sent only where asked for: some models refuse or ignore it."""
    instruct: str | None = None
    width: int | None = None
    """Floats expected in a dense vector; None: not known before the first reply."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply of any status, as the drivers hand it over."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Rows:
    """A checked reply: one entry for each text, in the order of the texts."""

    dense: list[list[float]] | None
    sparse: list[SparseVector] | None
    tokens: int | None
    """What the service billed; None where it did not say."""
    request_id: str | None


# --- requests ---------------------------------------------------------------------------------------------

_PATHS: Mapping[Protocol, str] = {
    "native": "/api/v1/services/embeddings/text-embedding/text-embedding",
    "openai": "/compatible-mode/v1/embeddings",
}


def path(protocol: Protocol) -> str:
    """The endpoint below the host's root."""
    return _PATHS[protocol]


def body(ask: Ask, texts: Sequence[str]) -> bytes:
    """The JSON body, UTF-8, that asks for these texts."""
    if ask.protocol == "openai":
        compatible: dict[str, Any] = {"model": ask.model, "input": list(texts), "encoding_format": "float"}
        if ask.dimension is not None:
            compatible["dimensions"] = ask.dimension
        return to_json(compatible)
    parameters: dict[str, Any] = {"text_type": ask.text_type}
    if ask.dimension is not None:
        parameters["dimension"] = ask.dimension
    if ask.output != "dense":
        parameters["output_type"] = ask.output
    if ask.instruct is not None and ask.text_type == "query":
        parameters["instruct"] = ask.instruct
    return to_json({"model": ask.model, "input": {"texts": list(texts)}, "parameters": parameters})


# --- replies ----------------------------------------------------------------------------------------------


def read(ask: Ask, reply: Reply, count: int) -> Rows | Refusal:
    """Reads and checks a reply to `count` texts: one vector of the right width for each, all finite.

    Raises:
        BadReply: the reply breaks the contract. It names what, never what the texts were.
    """
    if reply.status == _OK and (rows := _usual(ask, reply, count)) is not None:
        return rows
    try:
        content = from_json(reply.body)
    except ValueError:
        if reply.status == _OK:
            page = html_pages.told(reply.headers, reply.body)
            said = f"the reply is not JSON: {page}" if page else "the reply is not JSON"
            raise BadReply(said, request_id=_header_id(reply)) from None
        return _refusal(reply, None)
    if reply.status != _OK or _says_error(content):
        return _refusal(reply, content)
    request_id = _first_text(content, ("request_id", "id")) or _header_id(reply)
    try:
        rows = _native_rows(ask, content, count) if ask.protocol == "native" else _compatible_rows(ask, content, count)
    except BadReply as error:
        error.request_id = request_id
        raise
    return rows if rows.request_id else replace(rows, request_id=request_id)


_OK = 200
_NO_SUCCESS = 300


def _usual(ask: Ask, reply: Reply, count: int) -> Rows | None:
    """Reads what nearly every reply is, in the time that JSON takes alone; None: it takes a closer look."""
    try:
        content = USUAL[ask.protocol].validate_json(reply.body)
    except ValidationError:
        return None
    rows = content["output"]["embeddings"] if ask.protocol == "native" else content["data"]
    index = "text_index" if ask.protocol == "native" else "index"
    whole = len(rows) == count and all(row[index] == at for at, row in enumerate(rows))
    if ask.output != "dense" or not whole or content.get("code") or content.get("error"):
        return None
    dense = [row["embedding"] for row in rows]
    request_id = content.get("request_id") or content.get("id") or _header_id(reply)
    if any(len(vector) != (ask.width or len(dense[0])) or not vector for vector in dense):
        return None
    return Rows(dense, None, _tokens(content.get("usage")), request_id)


def _says_error(content: Any) -> bool:
    """A 200 may still carry an error: the pages show `code` and `message` in it, empty when all is well."""
    return isinstance(content, dict) and bool(content.get("code") or content.get("error"))


def _native_rows(ask: Ask, content: Any, count: int) -> Rows:
    reply = _validated(NATIVE, content)
    rows = _in_order([(row["text_index"], row) for row in reply["output"]["embeddings"]], count)
    dense = sparse = None
    if ask.output != "sparse":
        dense = _same_width([_floats(row.get("embedding")) for row in rows], ask.width)
    if ask.output != "dense":
        sparse = [_sparse(row.get("sparse_embedding")) for row in rows]
    return Rows(dense, sparse, _tokens(reply.get("usage")), reply.get("request_id"))


def _compatible_rows(ask: Ask, content: Any, count: int) -> Rows:
    reply = _validated(COMPATIBLE, content)
    rows = _in_order([(row["index"], row) for row in reply["data"]], count)
    dense = _same_width([_floats(row["embedding"]) for row in rows], ask.width)
    return Rows(dense, None, _tokens(reply.get("usage")), reply.get("id") or reply.get("request_id"))


def _validated(adapter: TypeAdapter[Any], content: Any) -> Any:
    try:
        return adapter.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise BadReply(f"the reply has an unexpected shape at {place}: {first['msg']}") from None


def _in_order(rows: list[tuple[int, Any]], count: int) -> list[Any]:
    placed: list[Any] = [None] * count
    for index, row in rows:
        if not 0 <= index < count:
            raise BadReply(f"the reply has a row for text {index} of a request of {count}")
        if placed[index] is not None:
            raise BadReply(f"the reply has two rows for text {index} of its request")
        placed[index] = row
    if len(rows) != count:
        raise BadReply(f"the reply has {len(rows)} rows for {count} texts")
    return placed


def _same_width(vectors: list[list[float]], width: int | None) -> list[list[float]]:
    expected = width or len(vectors[0])
    for vector in vectors:
        if len(vector) != expected:
            raise BadReply(f"the reply has a vector of {len(vector)} floats where {expected} were expected")
    return vectors


def _floats(value: Any) -> list[float]:
    """A list of finite Python floats, from a JSON list or from base64 of little-endian float32."""
    if isinstance(value, str):
        return _from_base64(value)
    if not isinstance(value, list) or not value:
        raise BadReply("the reply has a text without its vector")
    if not {int, float}.issuperset(map(type, value)):
        raise BadReply("the reply has a vector that holds something else than numbers")
    try:
        floats = list(map(float, value))
    except OverflowError:
        floats = [math.inf]
    if not math.hypot(*floats) <= LARGEST:
        raise BadReply("the reply has a vector with a number that is not finite, or too large for float32")
    return floats


def _from_base64(value: str) -> list[float]:
    try:
        floats = array("f", base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError):
        raise BadReply("the reply has a vector that is not base64 of float32") from None
    if sys.byteorder == "big":
        floats.byteswap()
    if not floats or not math.isfinite(math.hypot(*floats)):
        raise BadReply("the reply has a vector that is empty or not finite")
    return floats.tolist()


_LARGEST_INDEX = 2**32 - 1


def _sparse(weights: list[Weight] | None) -> SparseVector:
    """By ascending index, for the service gives text order; rounded to float32, which is what stores keep."""
    if weights is None:
        raise BadReply("the reply has a text without its sparse vector")
    values = array("f", [weight["value"] for weight in weights])
    for weight, value in zip(weights, values, strict=True):
        if not 0 <= weight["index"] <= _LARGEST_INDEX:
            raise BadReply(f"the reply has a sparse index of {weight['index']}")
        if not math.isfinite(value):
            raise BadReply("the reply has a sparse weight that is not a finite float32")
    return SparseVector.merged(
        (weight["index"], value, weight.get("token")) for weight, value in zip(weights, values, strict=True)
    )


_MOST_TOKENS = 2**53
"""No bill is that long; JSON's whole numbers have no end."""


def _tokens(usage: Billed | None) -> int | None:
    if usage is None:
        return None
    total = usage.get("total_tokens")
    tokens = total if total is not None else usage.get("prompt_tokens")
    return tokens if tokens is not None and 0 <= tokens < _MOST_TOKENS else None


# --- refusals ---------------------------------------------------------------------------------------------


def refusal(reply: Reply) -> Refusal | None:
    """What a reply of any other endpoint refuses; None: it is a success, or no JSON."""
    try:
        content = from_json(reply.body)
    except ValueError:
        content = None
    if _OK <= reply.status < _NO_SUCCESS and not _says_error(content):
        return None
    return _refusal(reply, content)


def _refusal(reply: Reply, content: Any) -> Refusal:
    """Reads either envelope whatever the protocol: gateways answer in the other one's at times."""
    inner = content.get("error") if isinstance(content, dict) else None
    source = inner if isinstance(inner, dict) else content
    code = _first_text(source, ("code", "type"))
    page = None if isinstance(content, dict) else html_pages.told(reply.headers, reply.body)
    return Refusal(
        status=reply.status,
        code=code,
        message=_first_text(source, ("message",)) or page or "",
        page=page is not None,
        request_id=_first_text(content, ("request_id", "id")) or _header_id(reply),
        retry_after=_retry_after(reply.headers),
    )


def _first_text(source: Any, names: Sequence[str]) -> str | None:
    if not isinstance(source, dict):
        return None
    return next((source[name] for name in names if isinstance(source.get(name), str) and source[name]), None)


def _header_id(reply: Reply) -> str | None:
    return reply.headers.get("x-request-id") or None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds. No recorded reply has these headers; the vendor's newer transport reads them."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return _until(headers.get("retry-after"), headers.get("date"))


def _until(moment: str | None, now: str | None) -> float | None:
    """Seconds to a moment that a gateway names as a date, by the gateway's own clock."""
    if not moment or not now:
        return None
    try:
        return max(0.0, (parsedate_to_datetime(moment) - parsedate_to_datetime(now)).total_seconds())
    except (ValueError, TypeError):  # no dates; with and without a time zone
        return None
