"""Faults that an emulator can inject: `Emulator(faults=[Throttle(times=3), Drop(after=10), Shuffle(every=2)])`.

At most one fault triggers per request: the first in the list that is due. A list thus reads as a script:
`[Throttle(), Drop(), Slow(2)]` affects three requests, one after another. Each name here is a function that makes a
`Fault`; all take its conditions (`fault_schedule`) as keywords. `emulator.faults = [...]` replaces them at any time,
and starts their counts anew. The transports break connections: a socket is closed, the in-process transport raises the
exception of httpx.

A fault of your own is an `EditReply`, such as `EditReply(lambda reply: dataclasses.replace(reply, status=418))`, or a
subclass of `Fault` with `intercept` or `corrupt`.
"""
# ruff: noqa: FBT001, FBT002, N802 - each is named like the fault that it makes; some arguments may go without a name
# ruff: noqa: PLC0414 - an alias of the same name marks a re-export for type checkers

from __future__ import annotations

import gzip
import json
import math
from base64 import b64decode, b64encode
from dataclasses import replace
from http import HTTPStatus
from struct import iter_unpack, pack
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import Unpack

from dashscope_embeddings.emulator.error_responses import ApiError, invalid_parameter, throttled, to_json
from dashscope_embeddings.emulator.fault_schedule import BatchExpires as BatchExpires
from dashscope_embeddings.emulator.fault_schedule import BatchFails as BatchFails
from dashscope_embeddings.emulator.fault_schedule import EditReply as EditReply
from dashscope_embeddings.emulator.fault_schedule import Fault as Fault
from dashscope_embeddings.emulator.fault_schedule import LineFails as LineFails
from dashscope_embeddings.emulator.fault_schedule import LineLost as LineLost
from dashscope_embeddings.emulator.fault_schedule import Refuse, When, check_choice, check_kind, check_number
from dashscope_embeddings.emulator.messages import Response

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dashscope_embeddings.emulator.messages import WireProtocol

# --- the service refuses ------------------------------------------------------------------------------------


def Throttle(
    retry_after: float | None = None,
    code: str = "Throttling.RateQuota",
    message: str | None = None,
    empty_body: bool = False,
    retry_after_ms: float | None = None,
    **when: Unpack[When],
) -> Refuse:
    """HTTP 429 with a native code, from which the compatible one follows; `message` None: the one of the code.

    The headers, in seconds and milliseconds, have not been seen from the service; the vendor's SDK reads the latter.
    """
    headers = {"retry-after": retry_after, "retry-after-ms": retry_after_ms}
    return _refuse("Throttle", throttled(code, message), when, headers, b"" if empty_body else None)


def FreeQuotaExhausted(only_free: bool = False, **when: Unpack[When]) -> Refuse:
    """The free tokens are used up: HTTP 429 as if throttled, or 403 where `only_free` was chosen."""
    error = throttled("Throttling.AllocationQuota", "Free allocated quota exceeded.")
    if only_free:
        error = ApiError(403, "AllocationQuota.FreeTierOnly", "The free tier of the model has been exhausted.")
    return _refuse("FreeQuotaExhausted", error, when)


def Overdue(code: str = "PrepaidBillOverdue", **when: Unpack[When]) -> Refuse:
    """HTTP 429 that only a payment ends: `PrepaidBillOverdue`, `PostpaidBillOverdue` or `CommodityNotPurchased`."""
    return _refuse("Overdue", throttled(code), when)


def WrongKey(**when: Unpack[When]) -> Refuse:
    """The key is refused: HTTP 401 `InvalidApiKey`, with the words of a recorded reply."""
    return _refuse("WrongKey", ApiError(401, "InvalidApiKey", "Invalid API-key provided."), when)


def Arrearage(**when: Unpack[When]) -> Refuse:
    """The account owes money: HTTP 400."""
    message = "Access denied, please make sure your account is in good standing."
    return _refuse("Arrearage", ApiError(400, "Arrearage", message), when)


def Blocked(**when: Unpack[When]) -> Refuse:
    """The content inspection refuses the request: pass `match` to block a text in every request."""
    message = "Input or output data may contain inappropriate content."
    return _refuse("Blocked", ApiError(400, "DataInspectionFailed", message), when)


def RowRefused(message: str = "Range of input length should be [1, 8192]", **when: Unpack[When]) -> Refuse:
    """HTTP 400 `InvalidParameter` with `message`: pass `match` to refuse every request with a certain text."""
    return _refuse("RowRefused", invalid_parameter(message), when)


def Status(
    status: int = 500,
    code: str | None = None,
    message: str | None = None,
    body: Literal["json", "html", "empty"] = "json",
    retry_after: float | None = None,
    **when: Unpack[When],
) -> Refuse:
    """Any other status; the body is a JSON error, a proxy's HTML page, or empty.

    `code` and `message` None: the service's own, where they are known. Proxies send the header `retry-after`.
    """
    check_choice("body", body, "json", "html", "empty")
    usual = ("InternalError", "Internal server error!")
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        usual = ("ServiceUnavailable", "Service temporarily unavailable, possibly overloaded or not ready.")
    error = ApiError(status, code or usual[0], message or usual[1])
    if body == "html":  # not from the service, so without its request id
        page = Response(status, f"<html><body><h1>{status}</h1></body></html>".encode(), {"content-type": "text/html"})
        return _refuse("Status", page, when, {"retry-after": retry_after})
    return _refuse("Status", error, when, {"retry-after": retry_after}, b"" if body == "empty" else None)


def Redirect(location: str = "http://elsewhere.invalid/", status: int = 307, **when: Unpack[When]) -> Refuse:
    """A redirect to another host, to which a client must not send its key."""
    return _refuse("Redirect", ApiError(status, "", ""), when, {"location": location}, b"")


def _refuse(
    label: str,
    answer: ApiError | Response,
    when: When,
    headers: Mapping[str, object] | None = None,
    body: bytes | None = None,
) -> Refuse:
    """The fault that answers with this, with those further headers that have a value, and another body if given."""
    check_number("status", answer.status, 100, 599)
    if isinstance(answer, ApiError):
        check_kind("code", answer.code, str)
    check_number("retry_after", (headers or {}).get("retry-after"), 0)
    further = {name: str(value).removesuffix(".0") for name, value in (headers or {}).items() if value is not None}

    def reply(protocol: WireProtocol, request_id: str) -> Response:
        usual = answer if isinstance(answer, Response) else answer.response(protocol, request_id)
        return replace(usual, headers=usual.headers | further, body=usual.body if body is None else body)

    return Refuse(reply, label, **when)


# --- the connection -----------------------------------------------------------------------------------------


def Drop(
    how: Literal["closed", "reset", "unreachable"] = "closed", billed: bool = False, **when: Unpack[When]
) -> Fault:
    """The connection ends without a reply: closed, reset, or never made (in process; a socket is reset).

    `billed`: whether the request was processed and billed before the reply was lost.
    """
    check_choice("how", how, "closed", "reset", "unreachable")
    if billed:
        return EditReply(lambda reply: replace(reply, ending=how), "Drop", **when)
    return Refuse(lambda *_: Response(0, b"", ending=how), "Drop", **when)


def Slow(seconds: float = 1.0, **when: Unpack[When]) -> EditReply:
    """The reply is late by `seconds`."""
    check_number("seconds", seconds, 0)
    return EditReply(lambda reply: replace(reply, delay_seconds=seconds), "Slow", **when)


def Stall(share: float = 0.0, **when: Unpack[When]) -> EditReply:
    """The reply never comes, or stops after a share of its body; the connection stays open until the client closes."""
    check_number("share", share, 0, 1)
    return EditReply(lambda reply: replace(reply, ending="stalled", sent_bytes=_share(reply, share)), "Stall", **when)


def Truncate(share: float = 0.5, framed: bool = False, **when: Unpack[When]) -> EditReply:
    """The connection closes after a share of the body; `framed`: `content-length` matches that share."""
    check_number("share", share, 0, 1)
    if framed:
        return EditReply(lambda reply: replace(reply, body=reply.body[: _share(reply, share)]), "Truncate", **when)
    return EditReply(lambda reply: replace(reply, ending="cut", sent_bytes=_share(reply, share)), "Truncate", **when)


def _share(reply: Response, share: float) -> int:
    return int(len(reply.body) * share)


# --- the bytes of a reply -----------------------------------------------------------------------------------


def Garbage(body: bytes = b"\x00\xff upstream connect error", **when: Unpack[When]) -> EditReply:
    """HTTP 200 with a body that is not JSON."""
    check_kind("body", body, bytes)
    return EditReply(lambda reply: replace(reply, body=body), "Garbage", **when)


def TrailingBytes(extra: bytes = b"\n}", **when: Unpack[When]) -> EditReply:
    """Extra bytes follow the JSON."""
    check_kind("extra", extra, bytes)
    return EditReply(lambda reply: replace(reply, body=reply.body + extra), "TrailingBytes", **when)


def WrongContentType(content_type: str | None = "text/plain", **when: Unpack[When]) -> EditReply:
    """Valid JSON with another content type, or none."""
    header = {} if content_type is None else {"content-type": content_type}

    def change(reply: Response) -> Response:
        others = {name: value for name, value in reply.headers.items() if name != "content-type"}
        return replace(reply, headers=others | header)

    return EditReply(change, "WrongContentType", **when)


def Gzip(broken: Literal["cut", "corrupt"] | None = None, **when: Unpack[When]) -> EditReply:
    """The reply is compressed; optionally the compressed bytes are damaged.

    `broken`: with `cut` the second half is missing, and `content-length` matches; with `corrupt` one byte is changed.
    """
    check_choice("broken", broken, None, "cut", "corrupt")

    def change(response: Response) -> Response:
        body = gzip.compress(response.body, mtime=0)
        if broken == "cut":
            body = body[: len(body) // 2]
        elif broken == "corrupt":
            # A byte of the checksum at the end, which every decoder verifies.
            body = body[:-8] + bytes([body[-8] ^ 0xFF]) + body[-7:]
        return replace(response, body=body, headers={**response.headers, "content-encoding": "gzip"})

    return EditReply(change, "Gzip", **when)


# --- the rows of a reply of the embedding endpoints, unless `route` says otherwise -----------------------------


class _Body(dict[str, Any]):
    """The parsed body of either protocol."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self["data"] if "data" in self else self["output"]["embeddings"]
        return rows

    @property
    def index_field(self) -> str:
        return "index" if "data" in self else "text_index"


def _edit(label: str, change: Callable[[_Body], object], when: When) -> EditReply:
    """The fault that changes the JSON in place."""

    def edit(response: Response) -> Response:
        if response.status != HTTPStatus.OK:
            return response
        body = _Body(json.loads(response.body))
        change(body)
        return replace(response, body=to_json(body))

    when.setdefault("route", r"embeddings?$")  # other replies have no rows
    return EditReply(edit, label, **when)


def _edit_vectors(label: str, row: int | None, change: Callable[[list[Any]], list[Any]], when: When) -> EditReply:
    """The fault that replaces the dense vector of a row, or of all, whether written as numbers or as base64."""
    check_kind("row", row or 0, int)

    def edit(body: _Body) -> None:
        for each in body.rows if row is None else [body.rows[row]]:
            vector = each.get("embedding")
            if isinstance(vector, str):
                floats = change([number for (number,) in iter_unpack("<f", b64decode(vector))])
                each["embedding"] = b64encode(pack(f"<{len(floats)}f", *floats)).decode()
            elif vector is not None:
                each["embedding"] = change(vector)

    return _edit(label, edit, when)


def WrongCount(by: int = -1, **when: Unpack[When]) -> EditReply:
    """`by` rows too many, or (negative) too few."""
    check_kind("by", by, int)

    def change(body: _Body) -> None:
        if by < 0:
            del body.rows[by:]
        for _ in range(by):
            body.rows.append({**body.rows[-1], body.index_field: len(body.rows)})

    return _edit("WrongCount", change, when)


def DuplicateIndex(**when: Unpack[When]) -> EditReply:
    """The last row has the index of the first; a single row has an index that does not exist."""

    def change(body: _Body) -> None:
        body.rows[-1][body.index_field] = body.rows[0][body.index_field] if len(body.rows) > 1 else 1

    return _edit("DuplicateIndex", change, when)


def Shuffle(**when: Unpack[When]) -> EditReply:
    """The rows come in reverse order with correct indices: valid, because the service promises no order."""
    return _edit("Shuffle", lambda body: body.rows.reverse(), when)


def WrongWidth(by: int = -1, row: int = 0, **when: Unpack[When]) -> EditReply:
    """The vector of row `row` is longer, or (negative) shorter, by `by` components."""
    check_kind("by", by, int)
    return _edit_vectors("WrongWidth", row, lambda vector: [*vector, *[0.5] * by][: len(vector) + by], when)


def NotFinite(value: float = math.nan, row: int = 0, **when: Unpack[When]) -> EditReply:
    """A component of row `row` is `NaN` or an infinity, as Python's json writes them."""
    return _edit_vectors("NotFinite", row, lambda vector: [value, *vector[1:]], when)


def IntegerComponents(**when: Unpack[When]) -> EditReply:
    """The first component of every vector is written `0` instead of `0.0`: valid JSON."""
    return _edit_vectors("IntegerComponents", None, lambda vector: [0, *vector[1:]], when)


def NullEmbedding(row: int = 0, **when: Unpack[When]) -> EditReply:
    """The vector of row `row` is null."""
    check_kind("row", row, int)
    return _edit("NullEmbedding", lambda body: body.rows[row].update(embedding=None), when)


def NoSparse(**when: Unpack[When]) -> EditReply:
    """The sparse vectors are missing."""
    return _edit("NoSparse", lambda body: [row.pop("sparse_embedding", None) for row in body.rows], when)


def MissingUsage(**when: Unpack[When]) -> EditReply:
    """The usage is missing."""
    return _edit("MissingUsage", lambda body: body.pop("usage", None), when)


def ExtraFields(**when: Unpack[When]) -> EditReply:
    """Fields not seen in recorded replies; the first three are in the documents' native example."""

    def change(body: _Body) -> None:
        body.update(status_code=200, code="", message="", novelty={"of": ["a", "later", "year"]})
        for row in body.rows:
            row["novelty"] = None

    return _edit("ExtraFields", change, when)
