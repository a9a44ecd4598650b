"""Builds request bodies and parses replies, in both protocols; only this module and its helpers know the JSON.

Native: https://www.alibabacloud.com/help/en/model-studio/text-embedding-synchronous-api, seen 2026-11-20.
OpenAI-compatible: the first half of the same page. Where the page and recorded replies differ, both are accepted.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass, field
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError
from pydantic_core import to_json

from dashscope_embeddings._core.error_codes import ErrorReply
from dashscope_embeddings._core.reply_fields import (
    COMPATIBLE_REPLY,
    NATIVE_REPLY,
    SPARSE_ENTRIES,
    billed_tokens,
    dense_vector,
    describe_foreign_body,
    first_string,
    request_id_of,
    sparse_vector,
)
from dashscope_embeddings.errors import BadReply
from dashscope_embeddings.vectors import Part, counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dashscope_embeddings._core.reply_fields import SparseEntry
    from dashscope_embeddings.vectors import Output, SparseVector, TextType

ApiProtocol = Literal["native", "openai"]


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Options shared by all requests of one call."""

    protocol: ApiProtocol
    model: str
    text_type: TextType = "document"
    output: Output = "dense"
    dimension: int | None = None
    """None: not sent, as some models refuse or ignore it."""
    instruct: str | None = None
    expected_width: int | None = None
    """Floats in a dense vector; None: not known before the first reply."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply of any status, as a driver returns it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    connection_id: int | None = field(default=None, compare=False, repr=False)
    """Number of the connection that carried it; None: a connection that cannot carry another request's reply."""
    received_at: float | None = field(default=None, compare=False, repr=False)
    """Unix time in seconds, for a `Retry-After` that is a date."""


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """A checked reply with one entry for each text, in the order of the texts."""

    dense: list[list[float]] | None
    sparse: list[SparseVector] | None
    billed_tokens: int | None
    """None: the reply does not say."""
    request_id: str | None

    def part(self, row: int, weight: float) -> Part:
        """The vectors of one row, with their weight in a mean."""
        dense = None if self.dense is None else self.dense[row]
        return Part(dense, None if self.sparse is None else self.sparse[row], weight)


# --- requests ---------------------------------------------------------------------------------------------

_EMBEDDINGS_PATHS: Mapping[ApiProtocol, str] = {
    "native": "/api/v1/services/embeddings/text-embedding/text-embedding",
    "openai": "/compatible-mode/v1/embeddings",
}


def embeddings_path(protocol: ApiProtocol) -> str:
    """Path of the embeddings endpoint, relative to the host's root."""
    return _EMBEDDINGS_PATHS[protocol]


def request_body(options: RequestOptions, texts: Sequence[str]) -> bytes:
    """The JSON body, in UTF-8, that requests vectors of these texts."""
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
"""Floats: vectors up to this width are read completely even if fewer were requested, so that the error names the
width."""
_MAX_BYTES_PER_FLOAT = 64
_SPARSE_BYTES_PER_REQUEST_BYTE = 64
_OVERHEAD_BYTES = 1 << 20


def max_reply_bytes(options: RequestOptions, text_count: int, request_bytes: int) -> int:
    """Upper limit of a valid reply's decompressed size in bytes; `request_bytes` is the size of the request's body.

    A float written as text takes about 22 bytes. A sparse vector has at most one entry for each token, an entry
    takes about 100 bytes, and a token takes at least one or two bytes of the request.
    """
    width = max(options.expected_width or _MAX_DIMENSION, _MIN_ALLOWED_DIMENSION)
    sparse_bytes = 0 if options.output == "dense" else request_bytes * _SPARSE_BYTES_PER_REQUEST_BYTE
    return _OVERHEAD_BYTES + text_count * width * _MAX_BYTES_PER_FLOAT + sparse_bytes


# --- replies ----------------------------------------------------------------------------------------------


def parse_reply(options: RequestOptions, reply: Reply, text_count: int) -> ParsedReply | ErrorReply:
    """Reads and checks a reply to `text_count` texts: one vector of the right width for each, all finite.

    A sound reply is parsed once, strictly. Any other body is parsed a second time, leniently, either to accept a
    gateway's spelling of the same reply or to say what is wrong with it.

    Raises:
        BadReply: the reply breaks the contract. It says how, and never quotes a text.
    """
    reply_type = NATIVE_REPLY[options.output] if options.protocol == "native" else COMPATIBLE_REPLY
    success = _is_success(reply.status)
    if success:
        with contextlib.suppress(ValidationError):
            content = reply_type.validate_json(reply.body)
            if not _has_error(content):
                return _checked_reply(options, reply, content, text_count)
    try:
        content = parse_json(reply.body)
    except ValueError:
        if success:
            page = describe_foreign_body(reply.headers, reply.body)
            problem = f"the reply is not JSON{f': {page}' if page else ''}" if reply.body else "the reply is empty"
            raise BadReply(problem, request_id=_request_id(reply, None)) from None
        return _error_reply(reply, None)
    if not success or _has_error(content):
        return _error_reply(reply, content)
    try:
        content = reply_type.validate_python(content)
    except ValidationError as error:
        raise _with_origin(BadReply(_describe_mismatch(error)), reply, content) from None
    return _checked_reply(options, reply, content, text_count)


def _is_success(status: int) -> bool:
    return 200 <= status < 300  # noqa: PLR2004 - HTTP's class of successes


def parse_json(body: bytes) -> Any:
    """Parses JSON leniently: accepts a byte order mark, bytes that are not UTF-8, and 3.0 for 3."""
    try:
        return json.loads(body.decode("utf-8-sig", "replace"), parse_float=_int_if_integral)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _int_if_integral(number: str) -> float:
    # Some gateways write every number as a float, row indices too. In a vector, an int becomes a float again.
    return int(value) if (value := float(number)).is_integer() else value


_NO_ERROR_CODES = frozenset({"0", "200", "200 ok", "true", "ok", "success"})


def _has_error(content: Any) -> bool:
    """Whether the JSON carries an error; a 200 may: its documented `code` and `message` are empty on success.

    The vendor's SDK 2.0 looks for one in every 200 (seen 2026-11-27).
    """
    if not isinstance(content, dict):
        return False
    output = content.get("output")
    values = (content.get("code"), content.get("error"), output.get("code") if isinstance(output, dict) else None)
    return any(value and str(value).lower() not in _NO_ERROR_CODES for value in values)


def _describe_mismatch(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    names = [str(part) for part in first["loc"]]
    if "embedding" in names:
        place = ".".join(names[: names.index("embedding") + 1])
        return f"the reply has a vector that is not finite float32 numbers, at {place}: {first['msg']}"
    return f"the reply has an unexpected shape at {'.'.join(names) or 'its top level'}: {first['msg']}"


def _checked_reply(options: RequestOptions, reply: Reply, content: Any, text_count: int) -> ParsedReply:
    """The vectors of a reply whose JSON has the right types, in the order of the texts."""
    dense = sparse = None
    try:
        if options.protocol == "native":
            rows = _order_by_index(content["output"]["embeddings"], "text_index", text_count)
            if options.output != "dense":
                sparse = [sparse_vector(_sparse_entries(row, options.output)) for row in rows]
        else:
            rows = _order_by_index(content["data"], "index", text_count)
        if options.output != "sparse" or options.protocol == "openai":
            vectors = [dense_vector(row.get("embedding")) for row in rows]
            dense = _require_width(vectors, options.expected_width)
    except BadReply as error:
        raise _with_origin(error, reply, content) from None
    return ParsedReply(dense, sparse, billed_tokens(content.get("usage")), _request_id(reply, content))


def _with_origin(error: BadReply, reply: Reply, content: Any) -> BadReply:
    """The error with the id and the bill of its reply."""
    error.request_id = _request_id(reply, content)
    error.billed_tokens = billed_tokens(content.get("usage")) if isinstance(content, dict) else None
    return error


def _sparse_entries(row: Any, output: Output) -> list[SparseEntry] | None:
    """The sparse weights of a row.

    No recorded reply to `output_type=sparse` is known. Four third parties read `sparse_embedding`; one of them reads
    `embedding` if there is no `sparse_embedding` (seen 2026-11-27).
    """
    entries: list[SparseEntry] | None = row.get("sparse_embedding")
    other = row.get("embedding")
    holds_entries = isinstance(other, list) and bool(other) and isinstance(other[0], dict)
    if entries is not None or output != "sparse" or not holds_entries:
        return entries
    try:
        return SPARSE_ENTRIES.validate_python(other)
    except ValidationError as error:
        raise BadReply(_describe_mismatch(error)) from None


def _order_by_index(rows: list[Any], index_name: str, text_count: int) -> list[Any]:
    ordered: list[Any] = [None] * text_count
    for row in rows:
        index = row[index_name]
        if not 0 <= index < text_count:
            raise BadReply(f"the reply has a row for text {index} of a request of {text_count}")
        if ordered[index] is not None:
            raise BadReply(f"the reply has two rows for text {index} of its request")
        ordered[index] = row
    if len(rows) != text_count:
        raise BadReply(f"the reply has {counted(len(rows), 'row')} for {counted(text_count, 'text')}")
    return ordered


def _require_width(vectors: list[list[float]], expected_width: int | None) -> list[list[float]]:
    expected = expected_width or len(vectors[0])
    for vector in vectors:
        if len(vector) != expected:
            raise BadReply(f"the reply has a vector of {len(vector)} floats where {expected} were expected")
    return vectors


# --- error replies ----------------------------------------------------------------------------------------


def parse_error_reply(reply: Reply) -> ErrorReply | None:
    """The error in a reply of any other endpoint; None: the reply is a success."""
    try:
        content = parse_json(reply.body)
    except ValueError:
        content = None
    if _is_success(reply.status) and not _has_error(content):
        return None
    return _error_reply(reply, content)


_ERROR_FIELDS = ("code", "type", "message")
_GATEWAY_FIELDS = ("error", "detail", "msg")
"""Where gateways of others have a message as a plain string."""
_SHOULD_RETRY = {"true": True, "false": False}


def _error_reply(reply: Reply, content: Any) -> ErrorReply:
    """Reads the error formats of both protocols: gateways, and the service itself, do not always use the right one."""
    sources = [content.get("error"), content, content.get("output")] if isinstance(content, dict) else []
    source = next((source for source in sources if first_string(source, _ERROR_FIELDS)), content)
    code = first_string(source, ("code", "type"))
    page = None if isinstance(content, dict) else describe_foreign_body(reply.headers, reply.body)
    return ErrorReply(
        status=reply.status,
        code=code,
        message=first_string(source, ("message",)) or first_string(content, _GATEWAY_FIELDS) or page or "",
        is_page=page is not None,
        request_id=_request_id(reply, content),
        retry_after=_retry_after_seconds(reply),
        should_retry=_SHOULD_RETRY.get(reply.headers.get("x-should-retry", "").strip().lower()),
    )


def _request_id(reply: Reply, content: Any) -> str | None:
    return request_id_of(content) or reply.headers.get("x-request-id") or None


def _retry_after_seconds(reply: Reply) -> float | None:
    """Seconds to wait. No recorded reply has these headers, but the vendor's SDK 2.0 reads them (seen 2026-11-27)."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(reply.headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    # Both dates of the same reply, so that our clock does not matter, unless it must.
    until = _unix_time(reply.headers.get("retry-after"))
    now = _unix_time(reply.headers.get("date"))
    now = reply.received_at if now is None else now
    return None if until is None or now is None else max(0.0, until - now)


def _unix_time(date: str | None) -> float | None:
    """An HTTP date, in seconds since 1970."""
    try:
        moment = parsedate_to_datetime(date or "")
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):  # no date; a year that is out of range
        return None
