"""The error responses that the emulator sends: codes, messages and envelopes of both protocols.

Codes and messages: https://docs.qwencloud.com/api-reference/preparation/error-messages and real replies quoted
in public issues, read 2026-11-20. A message below that is this emulator's guess is marked as one.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.emulator.messages import Response

if TYPE_CHECKING:
    from dashscope_embeddings.emulator.messages import WireProtocol

_ALGORITHM_PREFIX = "<400> InternalError.Algo.InvalidParameter: "

_COMPATIBLE_CODES = {
    "InvalidApiKey": "invalid_api_key",
    "ModelNotFound": "model_not_found",
    "AccessDenied": "access_denied",
    "InternalError": "internal_error",
    "LimitRequests": "limit_requests",
    "Throttling.RateQuota": "limit_requests",
    "Throttling.AllocationQuota": "insufficient_quota",
    "Throttling.BurstRate": "limit_burst_rate",
    # Not documented for the compatible protocol: a guess in its style.
    "NotFound": "not_found",
    "BadRequest.EmptyInput": "invalid_parameter_error",
    "BadRequest.EmptyModel": "invalid_parameter_error",
    "BadRequest.IllegalInput": "invalid_parameter_error",
}
_COMPATIBLE_MESSAGES = {
    "InvalidApiKey": "Incorrect API key provided. ",
    "Throttling.RateQuota": "You exceeded your current requests list.",
    "Throttling.AllocationQuota": "You exceeded your current quota, check your plan and billing details",
}
THROTTLING_MESSAGES = {
    "Throttling.RateQuota": "Requests rate limit exceeded, please try again later.",
    "LimitRequests": "You exceeded your current requests list.",
    "Throttling.AllocationQuota": "Allocated quota exceeded, please increase your quota limit.",
    "Throttling.BurstRate": (
        "Request rate increased too quickly. To ensure system stability, please adjust your client logic to "
        "scale requests more smoothly over time."
    ),
    "Throttling": "Requests throttling triggered.",
    "CommodityNotPurchased": "Commodity has not purchased yet.",
    "PrepaidBillOverdue": "The prepaid bill is overdue.",
    "PostpaidBillOverdue": "The postpaid bill is overdue.",
}
"""Codes that come with HTTP 429, and their messages; those of the last three are a guess."""


class ApiError(Exception):
    """The service refuses a request; code and message are the native ones.

    Args:
        compatible_message: the compatible protocol's; None: its own one for the code, if it is known.
        by_algorithm: whether the model's own server refuses, which has another envelope in the compatible protocol.
    """

    def __init__(
        self, status: int, code: str, message: str, compatible_message: str | None = None, *, by_algorithm: bool = False
    ) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message
        known_message = _COMPATIBLE_MESSAGES.get(code, message)
        self._compatible_message = known_message if compatible_message is None else compatible_message
        self._by_algorithm = by_algorithm
        self.retry_headers: dict[str, str] = {}
        """When to retry after an exceeded quota."""

    def response(self, protocol: WireProtocol, request_id: str) -> Response:
        """The response in the envelope of the protocol."""
        body: dict[str, object] = {"code": self.code, "message": self.message, "request_id": request_id}
        if protocol == "openai":
            error = self.compatible_error()
            body = {"error": error, "request_id": request_id}
            if self._by_algorithm:
                body["id"] = request_id
            elif self.status == HTTPStatus.UNAUTHORIZED:  # the one of a wrong key, in the documents, has no id
                del body["request_id"]
        return Response(self.status, to_json(body), json_headers(request_id))

    def compatible_error(self) -> dict[str, Any]:
        """The object `error` of the compatible protocol."""
        code = _COMPATIBLE_CODES.get(self.code, self.code)
        message, kind = self._compatible_message, code
        if self._by_algorithm:
            message = _ALGORITHM_PREFIX + self.message
        elif self.status < HTTPStatus.INTERNAL_SERVER_ERROR and not (
            self.status == HTTPStatus.TOO_MANY_REQUESTS or code == "Arrearage"
        ):
            kind = "invalid_request_error"
        return {"message": message, "type": kind, "param": None, "code": code}


def to_json(body: object) -> bytes:
    """JSON as the service writes it: no spaces, and non-ASCII text unescaped unless UTF-8 cannot encode it."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(body, separators=(",", ":")).encode()


def json_headers(request_id: str) -> dict[str, str]:
    """Headers of every JSON response."""
    return {"content-type": "application/json", "x-request-id": request_id}


def invalid_parameter(message: str) -> ApiError:
    """A refusal by the model's own server."""
    return ApiError(400, "InvalidParameter", message, by_algorithm=True)


def path_not_found() -> ApiError:
    """An unknown path; not documented, a guess."""
    return ApiError(404, "NotFound", "The requested path does not exist.")


def throttled(code: str = "Throttling.RateQuota", message: str | None = None) -> ApiError:
    """HTTP 429 with a code of `THROTTLING_MESSAGES`, or any other."""
    text = THROTTLING_MESSAGES.get(code, "Too many requests.") if message is None else message
    return ApiError(429, code, text, message)
