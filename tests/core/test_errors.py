"""The service's refusals: which error, and what the flow does about it."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dashscope_embeddings import errors
from dashscope_embeddings._core.error_codes import ACTIONS_BY_CODE, ErrorReply, normalize_code, service_error
from dashscope_embeddings.errors import (
    Action,
    AuthenticationError,
    BadReply,
    BadRequestError,
    Cancelled,
    ConnectionFailed,
    DashScopeError,
    InvalidInput,
    QuotaError,
    RateLimitError,
    ServerError,
    ServiceError,
    describe_indices,
)

if TYPE_CHECKING:
    from collections.abc import Callable

RETRY, THROTTLE, CUT, SHORTEN, SPLIT, STOP = Action
P = "<400> InternalError.Algo.InvalidParameter: "
MORE = " For details, see: https://help.aliyun.com/zh/model-studio/error-code#parameter-error"
IP = "InvalidParameter"
ROWS_10 = "Value error, batch size is invalid, it should not be larger than 10.: input.contents"
ROWS_25 = "batch size is invalid, it should not be larger than 25.: payload.input.contents"
V3_SIZES = (
    "Value error, dimension for embedding v3 is invalid, its value shold be in "
    "[64, 128, 256, 512, 768, 1024, 1536, 2048, 3072]"
)
TOO_FAST = (
    "Request rate increased too quickly. To ensure system stability, please adjust your client logic to "
    "scale requests more smoothly over time."
)

# The catalogue of the vendor's refusals: status, code, message, then what they stand for.
REFUSALS: list[tuple[int, str | None, str, type[ServiceError], Action]] = [
    (400, IP, P + ROWS_10, BadRequestError, CUT),
    (400, IP, ROWS_25, BadRequestError, CUT),
    (400, IP, "Range of input length should be [1, 2048]", BadRequestError, SHORTEN),
    (400, IP, "Inference error: Range of input length should be [1, 2048]", BadRequestError, SHORTEN),
    (400, IP, P + "Range of input length should be [1, 33000]", BadRequestError, SHORTEN),
    (400, IP, "Value error, contents is neither str nor list of str.: …", BadRequestError, SPLIT),
    (400, IP, "", BadRequestError, SPLIT),
    (400, IP, P + V3_SIZES, BadRequestError, STOP),
    (400, IP, "Model not exist.", BadRequestError, STOP),
    (400, IP, "url error, please check url！", BadRequestError, STOP),
    (400, "BadRequest.IllegalInput", "The input parameter requires json format.", BadRequestError, STOP),
    (400, "BadRequest.EmptyInput", "Required input parameter missing from request.", BadRequestError, STOP),
    (400, "BadRequest.EmptyModel", 'Required parameter "model" missing.', BadRequestError, STOP),
    (400, "BadRequest.EmptyParameters", 'Required parameter "parameters" missing.', BadRequestError, STOP),
    (404, "ModelNotFound", "Model can not be found.", BadRequestError, STOP),
    (404, "model_not_found", "The model xxx does not exist or you do not …", BadRequestError, STOP),
    (404, "model_not_supported", "Unsupported model xxx for OpenAI …", BadRequestError, STOP),
    (401, "InvalidApiKey", "Invalid API-key provided.", AuthenticationError, STOP),
    (401, "invalid_api_key", "Incorrect API key provided. ", AuthenticationError, STOP),
    (401, "NOT AUTHORIZED", "Access denied: Either you are not authorized …", AuthenticationError, STOP),
    (403, "Workspace.AccessDenied", "", AuthenticationError, STOP),
    (403, "Model.AccessDenied", "", AuthenticationError, STOP),
    (403, "AccessDenied", "Current user api does not support …", AuthenticationError, STOP),
    (403, "access_denied", "", AuthenticationError, STOP),
    (403, "AccessDenied.Unpurchased", "", QuotaError, STOP),
    (403, "AllocationQuota.FreeTierOnly", "The free tier of the model has been exhausted. …", QuotaError, STOP),
    (403, None, "The free tier of the model has been exhausted. …", QuotaError, STOP),
    (400, "Arrearage", "Access denied, please make sure your account is in good …", QuotaError, STOP),
    (400, "DataInspectionFailed", "Input or output data may contain …", BadRequestError, SPLIT),
    (400, "data_inspection_failed", "Input or output data may contain …", BadRequestError, SPLIT),
    (500, "InternalError", "Internal server error!", ServerError, RETRY),
    (500, "internal_error", "inference internal error.", ServerError, RETRY),
    (500, "InternalError.Algo", "Receive batching backend response failed!", ServerError, RETRY),
    (503, None, "Service temporarily unavailable, possibly overloaded …", ServerError, RETRY),
    (504, "", "", ServerError, RETRY),
    (408, None, "", ServerError, RETRY),
    (429, "Throttling.RateQuota", "Requests rate limit exceeded, …", RateLimitError, THROTTLE),
    (429, "LimitRequests", "You exceeded your current requests list.", RateLimitError, THROTTLE),
    (429, "limit_requests", "You have exceeded your current request limit. …", RateLimitError, THROTTLE),
    (429, "Throttling.AllocationQuota", "Allocated quota exceeded, please …", RateLimitError, THROTTLE),
    (429, "insufficient_quota", "You exceeded your current quota, check …", RateLimitError, THROTTLE),
    (429, "Throttling.AllocationQuota", "Too many requests. Batch requests …", RateLimitError, THROTTLE),
    (429, "Throttling.AllocationQuota", "Free allocated quota exceeded.", QuotaError, STOP),
    (429, "Throttling.BurstRate", TOO_FAST, RateLimitError, THROTTLE),
    (429, "limit_burst_rate", TOO_FAST, RateLimitError, THROTTLE),
    (429, "Throttling", "Too many requests in route. Try again later.", RateLimitError, THROTTLE),
    (429, "CommodityNotPurchased", "", QuotaError, STOP),
    (429, "PrepaidBillOverdue", "", QuotaError, STOP),
    (429, "PostpaidBillOverdue", "", QuotaError, STOP),
    (429, "Throttling.Concurrency", "", RateLimitError, THROTTLE),
    (429, "Throttling.ServiceOverloaded", "Too many requests.", RateLimitError, THROTTLE),
    (503, "ServiceOverloaded", "Too many requests.", RateLimitError, THROTTLE),
    (429, "Throttling.Aborted", "Too many requests.", RateLimitError, THROTTLE),
    (429, "ResourceExhausted", "Too many requests.", RateLimitError, THROTTLE),
    (429, "BudgetLimitExceeded", "", QuotaError, STOP),
    (429, "Throttling.AllocationQuota", "You are exceeding your allocated credits limit.", QuotaError, STOP),
    (403, "AllocationQuota.SomethingNew", "", QuotaError, STOP),
    (403, "AllocationQuota", "", QuotaError, STOP),
    (429, "AllocationQuota", "", RateLimitError, THROTTLE),
    (403, "Endpoint.AccessDenied", "", AuthenticationError, STOP),
    (403, "App.AccessDenied", "", AuthenticationError, STOP),
    (404, "WorkSpaceNotFound", "", BadRequestError, STOP),
    (408, "RequestTimeOut", "Request timed out, please try again later.", ServerError, RETRY),
    (409, "Conflict", "", BadRequestError, STOP),
    (413, "BadRequest.TooLarge", "Payload Too Large.", BadRequestError, SPLIT),
    (499, "ClientClosedRequest", "", BadRequestError, STOP),
    (500, "InternalError.Timeout", "", ServerError, RETRY),
    (500, "InvalidParameter", "", BadRequestError, SPLIT),
    (200, "SystemError", "", ServerError, RETRY),
    (500, "ModelServiceFailed", "", ServerError, RETRY),
    (500, "ResponseTimeout", "", ServerError, RETRY),
    (503, "ServiceUnavailable", "Service unavailable.", ServerError, RETRY),
    (503, "ModelUnavailable", "", ServerError, RETRY),
    (504, "GatewayTimeout", "", ServerError, RETRY),
    (429, None, "", RateLimitError, THROTTLE),
    (429, "SomethingNew", "", RateLimitError, THROTTLE),
    # What the pages do not list is judged by its code, then by its status.
    (500, IP, "", BadRequestError, SPLIT),  # the code knows more than the status
    (400, "InternalError.Algo", "", BadRequestError, SPLIT),  # but not that the service itself failed
    (429, "InternalError.Algo", "", RateLimitError, THROTTLE),
    (400, "InternalError.Algo.InvalidParameter", "", BadRequestError, SPLIT),
    (429, "Throttling.Of.ANewKind", "", RateLimitError, THROTTLE),  # by its dotted beginning
    (400, "SomethingNew", "", BadRequestError, SPLIT),
    (401, None, "", AuthenticationError, STOP),
    (403, "Forbidden", "", AuthenticationError, STOP),
    (404, None, "", BadRequestError, STOP),
    (302, None, "", BadRequestError, STOP),
    (599, None, "", ServerError, RETRY),
    (200, "InternalError", "", ServerError, RETRY),
    (200, "SomethingNew", "", BadRequestError, STOP),
]


@pytest.mark.parametrize("tail", ["", MORE], ids=["bare", "with a link"])
@pytest.mark.parametrize("row", REFUSALS, ids=lambda row: f"{row[0]} {row[1]}")
def test_a_refusal_is_read_as_the_vendors_pages_say(
    row: tuple[int, str | None, str, type[ServiceError], Action], tail: str
) -> None:
    status, code, message, kind, action = row
    error = service_error(ErrorReply(status, code, message + tail, request_id="r-1", retry_after=2.0))
    assert type(error) is kind
    assert error.action is action
    assert (error.status, error.code, error.request_id, error.retry_after) == (status, code, "r-1", 2.0)


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        (P + ROWS_10, 10),
        (ROWS_25, 25),
        ("Range of input length should be [1, 8192]", 8192),
        ("range of input length should be [1,100]", 100),
        ("Input is odd", None),
        *((f"it should not be larger than {'9' * digits}.", None) for digits in (10, 5_000)),
        *((f"Range of input length should be [1, {'9' * digits}]", None) for digits in (10, 5_000)),
    ],
)
def test_the_limit_that_a_message_names_is_read(message: str, limit: int | None) -> None:
    assert service_error(ErrorReply(400, IP, message)).limit == limit


def test_every_code_in_a_recorded_sample_is_in_the_table() -> None:
    codes = set()
    for path in (Path(__file__).parents[1] / "samples").glob("*.json"):
        content = json.loads(path.read_text("utf-8"))
        codes.add(content.get("error", content).get("code"))
    codes.discard(None)
    assert codes >= {"InvalidApiKey", "invalid_api_key", "limit_requests", IP}
    assert set(map(normalize_code, codes)) <= set(map(normalize_code, ACTIONS_BY_CODE))


@pytest.mark.parametrize("code", ACTIONS_BY_CODE)
@pytest.mark.parametrize(
    "spelled",
    [
        str.upper,
        lambda code: code.replace(".", "_").replace(" ", "-"),
        lambda code: re.sub(r"(?<=[a-z])(?=[A-Z])", "_", code).lower(),
    ],
)
def test_a_code_is_read_in_any_spelling(code: str, spelled: Callable[[str], str]) -> None:
    as_listed, otherwise = (service_error(ErrorReply(0, name)) for name in (code, spelled(code)))
    assert (type(otherwise), otherwise.action) == (type(as_listed), as_listed.action)


@pytest.mark.parametrize(
    ("status", "code", "should_retry", "action"),
    [
        (503, None, False, STOP),
        (429, "Throttling", False, STOP),
        (400, IP, False, SPLIT),
        (409, None, True, RETRY),
        (401, "InvalidApiKey", True, STOP),  # a known code knows better
        (429, None, True, THROTTLE),
        (400, None, True, SPLIT),
    ],
)
def test_x_should_retry_is_obeyed_where_it_can_help(
    status: int, code: str | None, should_retry: Any, action: Action
) -> None:
    assert service_error(ErrorReply(status, code, should_retry=should_retry)).action is action


def test_a_message_is_one_line_and_never_longer_than_a_screen() -> None:
    error = service_error(ErrorReply(400, IP, "one\n  two\t" + "x" * 10_000))
    assert str(error).startswith("the service answered 400 InvalidParameter: one two xxx")
    assert len(str(error)) < 600
    assert "(no code): the reply says nothing more" in str(service_error(ErrorReply(502)))


def test_a_key_that_the_service_echoes_is_not_repeated() -> None:
    for code, said in (
        ("invalid_api_key", "Incorrect API key provided: sk-0123456789abcdef."),
        ("InvalidApiKey", "您的密钥sk-0123456789abcdef不正确"),
        ("sk-0123456789abcdef " * 1_000, "no"),
    ):
        shown = str(service_error(ErrorReply(401, code, said)))
        assert "0123456789abcdef" not in shown
        assert len(shown) < 2_000


def test_a_word_that_only_looks_like_a_key_is_kept() -> None:
    said = "risk-control refused task-0042"
    assert said in str(service_error(ErrorReply(400, "DataInspectionFailed", said)))


def test_the_tree_is_the_one_that_is_drawn_at_the_top_of_the_file() -> None:
    drawn = errors.__doc__ or ""
    for kind in [InvalidInput, ServiceError, ConnectionFailed, BadReply]:
        assert kind.__bases__ == (DashScopeError,)
        assert kind.__name__ in drawn
    for kind in [AuthenticationError, QuotaError, RateLimitError, BadRequestError, ServerError]:
        assert kind.__bases__ == (ServiceError,)
        assert kind.__name__ in drawn
    assert issubclass(Cancelled, ConnectionFailed)
    assert not issubclass(DashScopeError, ValueError)  # pydantic would wrap it and print the key


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([3], "text 3"),
        ([3, 8], "texts 3, 8"),
        ([1, 2, 3, 4, 5], "texts 1, 2, 3, 4, 5"),
        (range(12), "texts 0, 1, 2, 3, 4 and 7 more"),
    ],
)
def test_texts_are_named_by_index_and_not_all_of_a_thousand(indices: list[int], words: str) -> None:
    assert describe_indices(indices) == words


def test_a_summary_stays_without_hints_and_indices() -> None:
    error = service_error(ErrorReply(400, "InvalidParameter", "Too long."))
    error.add_hint("Shorten the text")
    error.set_affected([3], 9)
    assert error.message == "text 3 of 9: the service answered 400 InvalidParameter: Too long. Shorten the text"
    assert error.summary == "400 InvalidParameter: Too long."
    assert (error.service_message, error.copy().service_message) == ("Too long.", "Too long.")
    assert pickle.loads(pickle.dumps(error)).summary == error.summary  # noqa: S301 - our own bytes
    assert error.copy().summary == error.summary
