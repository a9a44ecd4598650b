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
from dashscope_embeddings._core.error_codes import ErrorReply
from dashscope_embeddings._core.reply_fields import (
    billed_tokens,
    dense_vector,
    first_string,
    request_id_of,
    sparse_vector,
)
from dashscope_embeddings._core.reply_types import COMMON_REPLY, COMPATIBLE_REPLY, NATIVE_REPLY
from dashscope_embeddings.errors import BadReply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dashscope_embeddings.vectors import Output, SparseVector, TextType

ApiProtocol = Literal["native", "openai"]


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What all requests of one call have in common."""

    protocol: ApiProtocol
    model: str
    text_type: TextType = "document"
    output: Output = "dense"
    dimension: int | None = None
    """Sent only where asked for: some models refuse or ignore it."""
    instruct: str | None = None
    expected_width: int | None = None
    """Floats expected in a dense vector; None: not known before the first reply."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply of any status, as the drivers hand it over."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    connection_id: int | None = field(default=None, compare=False, repr=False)
    """Number of the connection that it was read from; None: it cannot hold another request's reply."""


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """A checked reply: one entry for each text, in the order of the texts."""

    dense: list[list[float]] | None
    sparse: list[SparseVector] | None
    billed_tokens: int | None
    """What the service billed; None where it did not say."""
    request_id: str | None


# --- requests ---------------------------------------------------------------------------------------------

_EMBEDDINGS_PATHS: Mapping[ApiProtocol, str] = {
    "native": "/api/v1/services/embeddings/text-embedding/text-embedding",
    "openai": "/compatible-mode/v1/embeddings",
}


def embeddings_path(protocol: ApiProtocol) -> str:
    """The endpoint below the host's root."""
    return _EMBEDDINGS_PATHS[protocol]


def request_body(options: RequestOptions, texts: Sequence[str]) -> bytes:
    """The JSON body, UTF-8, that asks for these texts."""
    if options.protocol == "openai":
        compatible: dict[str, Any] = {"model": options.model, "input": list(texts), "encoding_format": "float"}
        if options.dimension is not None:
            compatible["dimensions"] = options.dimension
        return to_json(compatible)
    parameters: dict[str, Any] = {"text_type": options.text_type}
    if options.dimension is not None:
        parameters["dimension"] = options.dimension
    if options.output != "dense":
        parameters["output_type"] = options.output
    if options.instruct is not None and options.text_type == "query":
        parameters["instruct"] = options.instruct
    return to_json({"model": options.model, "input": {"texts": list(texts)}, "parameters": parameters})


_MAX_DIMENSION = 16_384
_MIN_ALLOWED_DIMENSION = 4_096
"""A reply of vectors that are wider than asked is read whole, so that its error tells their width."""
_MAX_BYTES_PER_FLOAT = 64
_SPARSE_BYTES_PER_REQUEST_BYTE = 64
_OVERHEAD_BYTES = 1 << 20


def max_reply_bytes(options: RequestOptions, text_count: int, request_bytes: int) -> int:
    """Bytes that no sound reply to a request of `count` texts exceeds, decompressed; `request`: bytes of its body.

    A float in text form takes about 22 bytes. A sparse vector has at most an entry for each token, of about 100
    bytes, and a token is not shorter than a byte or two of the request.
    """
    width = max(options.expected_width or _MAX_DIMENSION, _MIN_ALLOWED_DIMENSION)
    weights = 0 if options.output == "dense" else request_bytes * _SPARSE_BYTES_PER_REQUEST_BYTE
    return _OVERHEAD_BYTES + text_count * width * _MAX_BYTES_PER_FLOAT + weights


# --- replies ----------------------------------------------------------------------------------------------


def parse_reply(options: RequestOptions, reply: Reply, text_count: int) -> ParsedReply | ErrorReply:
    """Reads and checks a reply to `count` texts: one vector of the right width for each, all finite.

    Raises:
        BadReply: the reply breaks the contract. It names what, never what the texts were.
    """
    success = _SUCCESS_STATUS_START <= reply.status < _SUCCESS_STATUS_END
    if success and (rows := _parse_common_reply(options, reply, text_count)) is not None:
        return rows
    try:
        content = _parse_json(reply.body)
    except ValueError:
        if success:
            page = html_pages.describe_foreign_body(reply.headers, reply.body)
            problem = f"the reply is not JSON: {page}" if page else "the reply is not JSON"
            raise BadReply(problem, request_id=_request_id_header(reply)) from None
        return _error_reply(reply, None)
    if not success or _has_error(content):
        return _error_reply(reply, content)
    request_id = request_id_of(content) or _request_id_header(reply)
    try:
        dense, sparse = _parse_vectors(options, reply, content, text_count)
    except BadReply as error:
        error.request_id = request_id
        raise
    return ParsedReply(dense, sparse, billed_tokens(content.get("usage")), request_id)


_SUCCESS_STATUS_START = 200
_SUCCESS_STATUS_END = 300


def _parse_json(body: bytes, *, integral_floats_as_int: bool = False) -> Any:
    """What a body says, also behind a byte order mark, or with a side field that is no UTF-8.

    `whole`: numbers such as 3.0 are read as 3.

    Raises:
        ValueError: it is not JSON.
    """
    with contextlib.suppress(ValueError):
        if not integral_floats_as_int:
            return from_json(body)
    try:
        return json.loads(
            body.decode("utf-8-sig", "replace"), parse_float=_int_if_integral if integral_floats_as_int else None
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _int_if_integral(number: str) -> float:
    return int(value) if (value := float(number)).is_integer() else value


def _parse_common_reply(options: RequestOptions, reply: Reply, text_count: int) -> ParsedReply | None:
    """Reads what nearly every reply is, in the time that JSON takes alone; None: it takes a closer look."""
    try:
        content = COMMON_REPLY[options.protocol].validate_json(reply.body)
    except ValidationError:
        return None
    rows = content["output"]["embeddings"] if options.protocol == "native" else content["data"]
    index = "text_index" if options.protocol == "native" else "index"
    whole = len(rows) == text_count and all(row[index] == at for at, row in enumerate(rows))
    if options.output != "dense" or not whole or content.get("code") or content.get("error"):
        return None
    dense = [row["embedding"] for row in rows]
    if any(len(vector) != (options.expected_width or len(dense[0])) or not vector for vector in dense):
        return None
    return ParsedReply(
        dense, None, billed_tokens(content.get("usage")), request_id_of(content) or _request_id_header(reply)
    )


_NO_ERROR_CODES = frozenset({"0", "200", "200 ok", "true", "ok", "success"})


def _has_error(content: Any) -> bool:
    """A 200 may still carry an error: the pages show `code` and `message` in it, empty when all is well."""
    if not isinstance(content, dict):
        return False
    code = content.get("code")
    error = content.get("error")
    return any(said and str(said).lower() not in _NO_ERROR_CODES for said in (code, error))


_DenseAndSparse: TypeAlias = "tuple[list[list[float]] | None, list[SparseVector] | None]"


def _parse_vectors(options: RequestOptions, reply: Reply, content: Any, text_count: int) -> _DenseAndSparse:
    parse_rows = _parse_native_rows if options.protocol == "native" else _parse_compatible_rows
    try:
        return parse_rows(options, content, text_count)
    except BadReply:
        # Some gateways write every number as a float, the places of the rows too.
        if b".0" not in reply.body:
            raise
        try:
            return parse_rows(options, _parse_json(reply.body, integral_floats_as_int=True), text_count)
        except (BadReply, ValueError):
            pass
        raise


def _parse_native_rows(options: RequestOptions, content: Any, text_count: int) -> _DenseAndSparse:
    reply = _validate(NATIVE_REPLY, content)
    rows = _order_by_index([(row["text_index"], row) for row in reply["output"]["embeddings"]], text_count)
    dense = sparse = None
    if options.output != "sparse":
        dense = _require_width([dense_vector(row.get("embedding")) for row in rows], options.expected_width)
    if options.output != "dense":
        sparse = [sparse_vector(row.get("sparse_embedding")) for row in rows]
    return dense, sparse


def _parse_compatible_rows(options: RequestOptions, content: Any, text_count: int) -> _DenseAndSparse:
    reply = _validate(COMPATIBLE_REPLY, content)
    rows = _order_by_index([(row["index"], row) for row in reply["data"]], text_count)
    return _require_width([dense_vector(row["embedding"]) for row in rows], options.expected_width), None


def _validate(adapter: TypeAdapter[Any], content: Any) -> Any:
    try:
        return adapter.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise BadReply(f"the reply has an unexpected shape at {place}: {first['msg']}") from None


def _order_by_index(rows: list[tuple[int, Any]], text_count: int) -> list[Any]:
    placed: list[Any] = [None] * text_count
    for index, row in rows:
        if not 0 <= index < text_count:
            raise BadReply(f"the reply has a row for text {index} of a request of {text_count}")
        if placed[index] is not None:
            raise BadReply(f"the reply has two rows for text {index} of its request")
        placed[index] = row
    if len(rows) != text_count:
        raise BadReply(f"the reply has {len(rows)} rows for {text_count} texts")
    return placed


def _require_width(vectors: list[list[float]], expected_width: int | None) -> list[list[float]]:
    expected = expected_width or len(vectors[0])
    for vector in vectors:
        if len(vector) != expected:
            raise BadReply(f"the reply has a vector of {len(vector)} floats where {expected} were expected")
    return vectors


# --- refusals ---------------------------------------------------------------------------------------------


def parse_error_reply(reply: Reply) -> ErrorReply | None:
    """What a reply of any other endpoint refuses; None: it is a success, or no JSON."""
    try:
        content = _parse_json(reply.body)
    except ValueError:
        content = None
    if _SUCCESS_STATUS_START <= reply.status < _SUCCESS_STATUS_END and not _has_error(content):
        return None
    return _error_reply(reply, content)


def _error_reply(reply: Reply, content: Any) -> ErrorReply:
    """Reads either envelope whatever the protocol: gateways answer in the other one's at times."""
    inner = content.get("error") if isinstance(content, dict) else None
    source = inner if isinstance(inner, dict) else content
    code = first_string(source, ("code", "type"))
    page = None if isinstance(content, dict) else html_pages.describe_foreign_body(reply.headers, reply.body)
    return ErrorReply(
        status=reply.status,
        code=code,
        message=first_string(source, ("message",)) or page or "",
        is_page=page is not None,
        request_id=request_id_of(content) or _request_id_header(reply),
        retry_after=_retry_after_seconds(reply.headers),
    )


def _request_id_header(reply: Reply) -> str | None:
    return reply.headers.get("x-request-id") or None


def _retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds. No recorded reply has these headers; the vendor's newer transport reads them."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return _seconds_until(headers.get("retry-after"), headers.get("date"))


def _seconds_until(moment: str | None, now: str | None) -> float | None:
    """Seconds to a moment that a gateway names as a date, by the gateway's own clock."""
    if not moment or not now:
        return None
    try:
        return max(0.0, (parsedate_to_datetime(moment) - parsedate_to_datetime(now)).total_seconds())
    except (ValueError, TypeError, OverflowError):  # no dates; with and without a time zone; beyond all years
        return None
