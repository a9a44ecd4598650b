"""The error responses that the emulator sends: codes, messages and envelopes of both protocols.

Codes and messages: https://docs.qwencloud.com/api-reference/preparation/error-messages and real replies quoted
in public issues, read 2026-11-20. A message below that is this emulator's guess is marked as one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

from dashscope_embeddings.emulator.messages import Response

if TYPE_CHECKING:
    from dashscope_embeddings.emulator.messages import WireProtocol

Origin = Literal["gateway", "algorithm"]
"""Which server refuses: the compatible protocol has other messages and envelopes for each."""

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
FREE_QUOTA_MESSAGE = "Free allocated quota exceeded."


class ApiError(Exception):
    """The service refuses a request; code and message are the native ones.

    In the compatible protocol, `algorithm` wraps the message as the model's own server does, and an error that is
    `reworded` has that protocol's own message, if one is known.
    """

    def __init__(
        self, status: int, code: str, message: str, origin: Origin = "gateway", *, reworded: bool = True
    ) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message
        self.origin, self.reworded = origin, reworded

    def response(self, protocol: WireProtocol, request_id: str) -> Response:
        """The response in the envelope of the protocol."""
        if protocol == "native":
            body: dict[str, object] = {"code": self.code, "message": self.message, "request_id": request_id}
        else:
            body = self._compatible_body(request_id)
        return Response(self.status, to_json(body), json_headers(request_id))

    def _compatible_body(self, request_id: str) -> dict[str, object]:
        code = _COMPATIBLE_CODES.get(self.code, self.code)
        if self.origin == "algorithm":
            error = {"message": _ALGORITHM_PREFIX + self.message, "type": code, "param": None, "code": code}
            return {"error": error, "id": request_id, "request_id": request_id}
        message = _COMPATIBLE_MESSAGES.get(self.code, self.message) if self.reworded else self.message
        # Errors of quotas and arrears repeat the code as type; the one of a wrong key, in the documents, has no id.
        repeats = self.status == 429 or code == "Arrearage"  # noqa: PLR2004
        error = {
            "message": message,
            "type": code if repeats else "invalid_request_error" if self.status < 500 else code,  # noqa: PLR2004
            "param": None,
            "code": code,
        }
        return {"error": error} if self.status == 401 else {"error": error, "request_id": request_id}  # noqa: PLR2004


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
    return ApiError(400, "InvalidParameter", message, "algorithm")


def invalid_api_key() -> ApiError:
    """A wrong or missing key: the documents do not distinguish the two."""
    return ApiError(401, "InvalidApiKey", "Invalid API-key provided.")


def path_not_found() -> ApiError:
    """An unknown path; not documented, a guess."""
    return ApiError(404, "NotFound", "The requested path does not exist.")


def model_not_found(protocol: WireProtocol, name: str) -> ApiError:
    """A model that does not exist or that the key has no access to."""
    if protocol == "native":
        return ApiError(404, "ModelNotFound", "Model can not be found.")
    message = f"The model {name} does not exist or you do not have access to it."
    return ApiError(404, "ModelNotFound", message)


def throttled(code: str = "Throttling.RateQuota", message: str | None = None) -> ApiError:
    """HTTP 429 with a code of `THROTTLING_MESSAGES`, or any other."""
    text = THROTTLING_MESSAGES.get(code, "Too many requests.") if message is None else message
    return ApiError(429, code, text, reworded=message is None)
