"""The service's JSON, both protocols. No other file knows its names.

Native: https://www.alibabacloud.com/help/en/model-studio/text-embedding-synchronous-api, seen 2026-11-20.
OpenAI-compatible: the same page's first half. Where pages and recorded replies differ, both shapes are read.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from dashscope_embeddings._core import html_pages
from dashscope_embeddings._core.error_codes import Refusal
from dashscope_embeddings._core.reply_fields import first_text, floats, reply_id, sparse_vector, tokens
from dashscope_embeddings._core.reply_types import COMPATIBLE, NATIVE, USUAL
from dashscope_embeddings.errors import BadReply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dashscope_embeddings.vectors import Output, SparseVector, TextType

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
    connection: int | None = field(default=None, compare=False, repr=False)
    """Number of the connection that it was read from; None: it cannot hold another request's reply."""


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


_WIDEST = 16_384
_SURE_WIDTH = 4_096
"""A reply of vectors that are wider than asked is read whole, so that its error tells their width."""
_BYTES_PER_FLOAT = 64
_WEIGHTS_PER_BYTE = 64
_BYTES_BESIDE = 1 << 20


def most_bytes(ask: Ask, count: int, request: int) -> int:
    """Bytes that no sound reply to a request of `count` texts exceeds, decompressed; `request`: bytes of its body.

    A float in text form takes about 22 bytes. A sparse vector has at most an entry for each token, of about 100
    bytes, and a token is not shorter than a byte or two of the request.
    """
    width = max(ask.width or _WIDEST, _SURE_WIDTH)
    weights = 0 if ask.output == "dense" else request * _WEIGHTS_PER_BYTE
    return _BYTES_BESIDE + count * width * _BYTES_PER_FLOAT + weights


# --- replies ----------------------------------------------------------------------------------------------


def read(ask: Ask, reply: Reply, count: int) -> Rows | Refusal:
    """Reads and checks a reply to `count` texts: one vector of the right width for each, all finite.

    Raises:
        BadReply: the reply breaks the contract. It names what, never what the texts were.
    """
    success = _OK <= reply.status < _NO_SUCCESS
    if success and (rows := _usual(ask, reply, count)) is not None:
        return rows
    try:
        content = _json(reply.body)
    except ValueError:
        if success:
            page = html_pages.told(reply.headers, reply.body)
            said = f"the reply is not JSON: {page}" if page else "the reply is not JSON"
            raise BadReply(said, request_id=_header_id(reply)) from None
        return _refusal(reply, None)
    if not success or _says_error(content):
        return _refusal(reply, content)
    request_id = reply_id(content) or _header_id(reply)
    try:
        dense, sparse = _vectors(ask, reply, content, count)
    except BadReply as error:
        error.request_id = request_id
        raise
    return Rows(dense, sparse, tokens(content.get("usage")), request_id)


_OK = 200
_NO_SUCCESS = 300


def _json(body: bytes, *, whole: bool = False) -> Any:
    """What a body says, also behind a byte order mark, or with a side field that is no UTF-8.

    `whole`: numbers such as 3.0 are read as 3.

    Raises:
        ValueError: it is not JSON.
    """
    with contextlib.suppress(ValueError):
        if not whole:
            return from_json(body)
    try:
        return json.loads(body.decode("utf-8-sig", "replace"), parse_float=_whole if whole else None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _whole(number: str) -> float:
    return int(value) if (value := float(number)).is_integer() else value


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
    if any(len(vector) != (ask.width or len(dense[0])) or not vector for vector in dense):
        return None
    return Rows(dense, None, tokens(content.get("usage")), reply_id(content) or _header_id(reply))


_FINE = frozenset({"0", "200", "200 ok", "true", "ok", "success"})


def _says_error(content: Any) -> bool:
    """A 200 may still carry an error: the pages show `code` and `message` in it, empty when all is well."""
    if not isinstance(content, dict):
        return False
    code = content.get("code")
    error = content.get("error")
    return any(said and str(said).lower() not in _FINE for said in (code, error))


_Vectors: TypeAlias = "tuple[list[list[float]] | None, list[SparseVector] | None]"


def _vectors(ask: Ask, reply: Reply, content: Any, count: int) -> _Vectors:
    read = _native_rows if ask.protocol == "native" else _compatible_rows
    try:
        return read(ask, content, count)
    except BadReply:
        # Some gateways write every number as a float, the places of the rows too.
        if b".0" not in reply.body:
            raise
        try:
            return read(ask, _json(reply.body, whole=True), count)
        except (BadReply, ValueError):
            pass
        raise


def _native_rows(ask: Ask, content: Any, count: int) -> _Vectors:
    reply = _validated(NATIVE, content)
    rows = _in_order([(row["text_index"], row) for row in reply["output"]["embeddings"]], count)
    dense = sparse = None
    if ask.output != "sparse":
        dense = _same_width([floats(row.get("embedding")) for row in rows], ask.width)
    if ask.output != "dense":
        sparse = [sparse_vector(row.get("sparse_embedding")) for row in rows]
    return dense, sparse


def _compatible_rows(ask: Ask, content: Any, count: int) -> _Vectors:
    reply = _validated(COMPATIBLE, content)
    rows = _in_order([(row["index"], row) for row in reply["data"]], count)
    return _same_width([floats(row["embedding"]) for row in rows], ask.width), None


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


# --- refusals ---------------------------------------------------------------------------------------------


def refusal(reply: Reply) -> Refusal | None:
    """What a reply of any other endpoint refuses; None: it is a success, or no JSON."""
    try:
        content = _json(reply.body)
    except ValueError:
        content = None
    if _OK <= reply.status < _NO_SUCCESS and not _says_error(content):
        return None
    return _refusal(reply, content)


def _refusal(reply: Reply, content: Any) -> Refusal:
    """Reads either envelope whatever the protocol: gateways answer in the other one's at times."""
    inner = content.get("error") if isinstance(content, dict) else None
    source = inner if isinstance(inner, dict) else content
    code = first_text(source, ("code", "type"))
    page = None if isinstance(content, dict) else html_pages.told(reply.headers, reply.body)
    return Refusal(
        status=reply.status,
        code=code,
        message=first_text(source, ("message",)) or page or "",
        page=page is not None,
        request_id=reply_id(content) or _header_id(reply),
        retry_after=_retry_after(reply.headers),
    )


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
    except (ValueError, TypeError, OverflowError):  # no dates; with and without a time zone; beyond all years
        return None
