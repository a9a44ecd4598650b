"""Faults that an emulator can inject: `Emulator(faults=[Throttle(times=3), Drop(after=10), Shuffle(every=2)])`.

At most one fault triggers per request: the first in the list that is due. A list thus reads as a script:
`[Throttle(), Drop(), Slow(2)]` affects three requests, one after another. The transports break connections: a socket
is closed, the in-process transport raises the exception of httpx.
"""

from __future__ import annotations

import gzip
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from dashscope_embeddings.emulator.batch.faults import BatchExpires, BatchFails, LineFails, LineLost
from dashscope_embeddings.emulator.error_responses import FREE_QUOTA_MESSAGE, ApiError, invalid_parameter, throttled
from dashscope_embeddings.emulator.fault_schedule import Fault
from dashscope_embeddings.emulator.messages import Response
from dashscope_embeddings.emulator.reply_faults import (
    DuplicateIndex,
    ExtraFields,
    IntegerComponents,
    MissingUsage,
    NoSparse,
    NotFinite,
    NullEmbedding,
    Shuffle,
    WrongCount,
    WrongWidth,
)

if TYPE_CHECKING:
    from dashscope_embeddings.emulator.messages import WireProtocol

__all__ = [
    "Arrearage",
    "BatchExpires",
    "BatchFails",
    "Blocked",
    "Drop",
    "DuplicateIndex",
    "ExtraFields",
    "Fault",
    "FreeQuotaExhausted",
    "Garbage",
    "Gzip",
    "IntegerComponents",
    "LineFails",
    "LineLost",
    "MissingUsage",
    "NoSparse",
    "NotFinite",
    "NullEmbedding",
    "Overdue",
    "Redirect",
    "RowRefused",
    "Shuffle",
    "Slow",
    "Stall",
    "Status",
    "Throttle",
    "TrailingBytes",
    "Truncate",
    "WrongContentType",
    "WrongCount",
    "WrongWidth",
]


@dataclass(frozen=True)
class _ErrorFault(Fault, ABC):
    """The service answers with an error; nothing is computed or billed."""

    def intercept(self, protocol: WireProtocol, request_id: str) -> Response:
        return self._error().response(protocol, request_id)

    @abstractmethod
    def _error(self) -> ApiError:
        """The error."""


@dataclass(frozen=True)
class Throttle(_ErrorFault):
    """HTTP 429; `retry_after` seconds become a header, which the service has not been seen to send."""

    retry_after: float | None = None
    code: str = "Throttling.RateQuota"
    message: str | None = None
    """None: the service's message for the code."""
    empty_body: bool = False
    retry_after_ms: float | None = None
    """Milliseconds for a header of its own, which the vendor's newer client code reads."""

    def intercept(self, protocol: WireProtocol, request_id: str) -> Response:  # noqa: D102
        response = super().intercept(protocol, request_id)
        headers = dict(response.headers)
        if self.retry_after is not None:
            headers["retry-after"] = f"{self.retry_after:g}"
        if self.retry_after_ms is not None:
            headers["retry-after-ms"] = f"{self.retry_after_ms:g}"
        return replace(response, headers=headers, body=b"" if self.empty_body else response.body)

    def _error(self) -> ApiError:
        return throttled(self.code, self.message)


@dataclass(frozen=True)
class FreeQuotaExhausted(_ErrorFault):
    """The free tokens are used up: HTTP 429 as if throttled, or 403 where `only_free` was chosen."""

    only_free: bool = False

    def _error(self) -> ApiError:
        if self.only_free:
            return ApiError(403, "AllocationQuota.FreeTierOnly", "The free tier of the model has been exhausted.")
        return throttled("Throttling.AllocationQuota", FREE_QUOTA_MESSAGE)


@dataclass(frozen=True)
class Overdue(_ErrorFault):
    """HTTP 429 that only a payment ends: `PrepaidBillOverdue`, `PostpaidBillOverdue` or `CommodityNotPurchased`."""

    code: str = "PrepaidBillOverdue"

    def _error(self) -> ApiError:
        return throttled(self.code)


@dataclass(frozen=True)
class Arrearage(_ErrorFault):
    """The account owes money: HTTP 400."""

    def _error(self) -> ApiError:
        return ApiError(400, "Arrearage", "Access denied, please make sure your account is in good standing.")


@dataclass(frozen=True)
class Blocked(_ErrorFault):
    """The content inspection refuses the request: pass `match` to block a text in every request."""

    def _error(self) -> ApiError:
        return ApiError(400, "DataInspectionFailed", "Input or output data may contain inappropriate content.")


@dataclass(frozen=True)
class RowRefused(_ErrorFault):
    """HTTP 400 `InvalidParameter` with `message`: pass `match` to refuse every request with a certain text."""

    message: str = "Range of input length should be [1, 8192]"

    def _error(self) -> ApiError:
        return invalid_parameter(self.message)


_SERVER_ERRORS = {
    500: ("InternalError", "Internal server error!"),
    503: ("ServiceUnavailable", "Service temporarily unavailable, possibly overloaded or not ready."),
}


@dataclass(frozen=True)
class Status(Fault):
    """Any other status; the body is a JSON error, a proxy's HTML page, or empty."""

    status: int = 500
    code: str | None = None
    """None: the service's code for this status, where one is known."""
    message: str | None = None
    body: Literal["json", "html", "empty"] = "json"
    retry_after: float | None = None
    """Seconds for a `retry-after` header, as proxies send it."""

    def intercept(self, protocol: WireProtocol, request_id: str) -> Response:  # noqa: D102
        response = self._error_response(protocol, request_id)
        if self.retry_after is None:
            return response
        return replace(response, headers={**response.headers, "retry-after": f"{self.retry_after:g}"})

    def _error_response(self, protocol: WireProtocol, request_id: str) -> Response:
        if self.body == "html":
            page = f"<html><body><h1>{self.status}</h1></body></html>".encode()
            return Response(self.status, page, {"content-type": "text/html"})
        if self.body == "empty":
            return Response(self.status, b"", {"x-request-id": request_id})
        code, message = _SERVER_ERRORS.get(self.status, _SERVER_ERRORS[500])
        return ApiError(self.status, self.code or code, self.message or message).response(protocol, request_id)


@dataclass(frozen=True)
class Redirect(Fault):
    """A redirect to another host, to which a client must not send its key."""

    location: str = "http://elsewhere.invalid/"
    status: int = 307

    def intercept(self, protocol: WireProtocol, request_id: str) -> Response:  # noqa: D102
        del protocol
        return Response(self.status, b"", {"location": self.location, "x-request-id": request_id})


@dataclass(frozen=True)
class Drop(Fault):
    """The connection ends without a reply: closed, reset, or never made (in process; a socket is reset)."""

    how: Literal["closed", "reset", "unreachable"] = "closed"
    billed: bool = False
    """Whether the request was processed and billed before the reply was lost."""

    def intercept(self, protocol: WireProtocol, request_id: str) -> Response | None:  # noqa: D102
        del protocol, request_id
        return None if self.billed else Response(0, b"", ending=self.how)

    def corrupt(self, response: Response) -> Response:  # noqa: D102
        return replace(response, ending=self.how)


@dataclass(frozen=True)
class Slow(Fault):
    """The reply is late by `seconds`."""

    seconds: float = 1.0

    def corrupt(self, response: Response) -> Response:  # noqa: D102
        return replace(response, delay_seconds=self.seconds)


@dataclass(frozen=True)
class Stall(Fault):
    """The reply never comes, or stops after a share of its body; the connection stays open until the client closes."""

    share: float = 0.0

    def corrupt(self, response: Response) -> Response:  # noqa: D102
        return replace(response, ending="stalled", sent_bytes=int(len(response.body) * self.share))


@dataclass(frozen=True)
class Truncate(Fault):
    """The connection closes after a share of the body; `framed`: `content-length` matches that share."""

    share: float = 0.5
    framed: bool = False

    def corrupt(self, response: Response) -> Response:  # noqa: D102
        sent_bytes = int(len(response.body) * self.share)
        if self.framed:
            return replace(response, body=response.body[:sent_bytes])
        return replace(response, ending="cut", sent_bytes=sent_bytes)


@dataclass(frozen=True)
class Garbage(Fault):
    """HTTP 200 with a body that is not JSON."""

    body: bytes = b"\x00\xff upstream connect error"

    def corrupt(self, response: Response) -> Response:  # noqa: D102
        return replace(response, body=self.body)


@dataclass(frozen=True)
class TrailingBytes(Fault):
    """Extra bytes follow the JSON."""

    extra: bytes = b"\n}"

    def corrupt(self, response: Response) -> Response:  # noqa: D102
        return replace(response, body=response.body + self.extra)


@dataclass(frozen=True)
class WrongContentType(Fault):
    """Valid JSON with another content type, or none."""

    content_type: str | None = "text/plain"

    def corrupt(self, response: Response) -> Response:  # noqa: D102
        headers = {name: value for name, value in response.headers.items() if name != "content-type"}
        if self.content_type is not None:
            headers["content-type"] = self.content_type
        return replace(response, headers=headers)


@dataclass(frozen=True)
class Gzip(Fault):
    """The reply is compressed; optionally the compressed bytes are damaged."""

    broken: Literal["cut", "corrupt"] | None = None
    """`cut`: the second half is missing, and `content-length` matches; `corrupt`: one byte is changed."""

    def corrupt(self, response: Response) -> Response:  # noqa: D102
        body = gzip.compress(response.body, mtime=0)
        if self.broken == "cut":
            body = body[: len(body) // 2]
        elif self.broken == "corrupt":
            # A byte of the checksum at the end, which every decoder verifies.
            body = body[:-8] + bytes([body[-8] ^ 0xFF]) + body[-7:]
        return replace(response, body=body, headers={**response.headers, "content-encoding": "gzip"})
