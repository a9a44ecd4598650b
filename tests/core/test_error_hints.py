"""Errors and warnings say what was asked, what is likely wrong, and what to try."""

from __future__ import annotations

import logging
import warnings
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import FakeClock
from secret_scanner import find_secret

import dashscope_embeddings
from dashscope_embeddings import BadRequestError, DashScopeError, EmbeddingClient, InvalidInput, RateLimitError
from dashscope_embeddings.catalogue import MODELS
from dashscope_embeddings.emulator import Emulator, faults
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.llama_index import DashScopeEmbedding

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashscope_embeddings.emulator.http import Server

KEY = "sk-CANARY-0a1b2c3d4e5f"
NATIVE = "/api/v1/services/embeddings/text-embedding/text-embedding"


def refused(answer: httpx.Response, **settings: Any) -> BadRequestError:
    """What a client says of this answer to its one request."""
    with httpx.Client(transport=httpx.MockTransport(lambda _: answer)) as http:
        client = EmbeddingClient(api_key=KEY, http_client=http, max_retries=0, **settings)
        with pytest.raises(BadRequestError) as caught:
            client.embed("a text")
    assert find_secret(caught.value, KEY) == []
    return caught.value


# --- addresses ----------------------------------------------------------------------------------------------

NO_PATH = {
    "an empty 404": httpx.Response(404),
    "a 404 of another web server": httpx.Response(404, text="<html>Not Found</html>"),
    "a 404 in words": httpx.Response(404, json={"code": "NotFound", "message": "no such path"}),
    "a 404 of a gateway": httpx.Response(404, json={"error": {"message": "Not Found", "type": "bad_path"}}),
    "a 405": httpx.Response(405),
    "url error": httpx.Response(400, json={"code": "InvalidParameter", "message": "url error, please check url！"}),
}


@pytest.mark.parametrize("reply", NO_PATH)
def test_a_path_that_is_not_there_is_named_with_its_host(reply: str) -> None:
    error = refused(NO_PATH[reply], base_url="https://gw.example:8443/v1")
    assert f"Asked gw.example:8443/v1{NATIVE}. The path /v1 comes from base_url" in str(error)
    assert 'pass base_url="https://gw.example:8443"' in str(error)


@pytest.mark.parametrize(("protocol", "other"), [("native", "openai"), ("openai", "native")])
def test_a_host_without_a_protocol_is_answered_with_the_other_one(protocol: Any, other: str) -> None:
    error = refused(httpx.Response(404), base_url="https://gw.example", protocol=protocol)
    assert f'protocol="{other}" uses /' in str(error)


def test_an_empty_404_of_a_workspace_host_names_the_address_to_pass() -> None:
    error = refused(httpx.Response(404), base_url="https://llm-1.cn-beijing.maas.aliyuncs.com/v1", protocol="openai")
    assert "Asked llm-1.cn-beijing.maas.aliyuncs.com/v1/compatible-mode/v1/embeddings" in str(error)
    assert 'base_url="https://llm-1.cn-beijing.maas.aliyuncs.com"' in str(error)


def test_a_request_that_is_too_large_is_halved_and_a_lone_text_named_with_the_host() -> None:
    emulator, sizes = Emulator(), []

    def answer(request: httpx.Request) -> httpx.Response:
        sizes.append(len(request.content))
        return httpx.Response(413) if len(request.content) > 2_000 else emulator(request)

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        client = EmbeddingClient(api_key=KEY, http_client=http)
        assert len(client.embed([f"{i} " + "x" * 400 for i in range(8)]).dense) == 8
        with pytest.raises(BadRequestError) as caught:
            client.embed(["short", "x" * 4_000])
    assert max(sizes) > 2_000
    assert caught.value.failed == [1]
    assert list(caught.value.partial) == [0]
    assert f"Asked dashscope.aliyuncs.com{NATIVE}, which does not accept a request of this size" in str(caught.value)


# --- models -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*is not in the catalogue")
@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(404, json={"code": "ModelNotFound", "message": "Model can not be found."}),
        httpx.Response(404, json={"error": {"code": "model_not_found", "message": "The model does not exist"}}),
        httpx.Response(400, json={"code": "InvalidParameter", "message": "Model not exist."}),
    ],
)
def test_an_unknown_model_is_answered_with_the_likely_and_the_known_ones(reply: httpx.Response) -> None:
    error = refused(reply, model="text-embeding-v4")
    assert "Asked for model 'text-embeding-v4'. Is text-embedding-v4 meant?" in str(error)
    assert all(row.name in str(error) for row in MODELS)


def test_a_known_model_that_is_not_there_may_be_elsewhere() -> None:
    reply = httpx.Response(404, json={"code": "ModelNotFound", "message": "Model can not be found."})
    error = refused(reply, model="text-embedding-v3")
    assert "'text-embedding-v3', if this region and this key have it" in str(error)
    assert "meant?" not in str(error)


# --- the protocol of an address -----------------------------------------------------------------------------

COMPATIBLE = "https://dashscope.aliyuncs.com/compatible-mode/v1"


def said(make: Callable[[], object]) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
        make()
    return caught


every_kind = pytest.mark.parametrize("kind", [EmbeddingClient, DashScopeEmbeddings, DashScopeEmbedding])


@every_kind
@pytest.mark.parametrize("origin", ["base_url", "DASHSCOPE_HTTP_BASE_URL", "DASHSCOPE_BASE_URL"])
@pytest.mark.parametrize("address", [COMPATIBLE, f"{COMPATIBLE}/", f"{COMPATIBLE}/embeddings"])
def test_a_compatible_address_without_a_protocol_is_warned_of_once_at_the_users_line(
    kind: Callable[..., object], origin: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"base_url": address}
    if origin != "base_url":
        monkeypatch.setenv(origin, address)
        given = {}
    (warning,) = said(lambda: kind(api_key=KEY, **given))
    assert str(warning.message).startswith(f"{origin} is an OpenAI-compatible address")
    for way in ('protocol="openai" matches an index', 'protocol="native" tells queries from documents'):
        assert way in str(warning.message)
    assert warning.filename == __file__


@every_kind
@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": COMPATIBLE, "protocol": "native"},
        {"base_url": "https://dashscope.aliyuncs.com/api/v1"},
        {"base_url": "https://dashscope.aliyuncs.com"},
        {"region": "cn-beijing"},
    ],
)
def test_a_chosen_protocol_or_another_address_is_not_warned_of(
    kind: Callable[..., object], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "region" in settings:
        monkeypatch.setenv("DASHSCOPE_HTTP_BASE_URL", COMPATIBLE)
    assert said(lambda: kind(api_key=KEY, **settings)) == []


def test_a_chosen_openai_protocol_over_a_compatible_address_is_not_warned_of() -> None:
    assert said(lambda: EmbeddingClient(api_key=KEY, base_url=COMPATIBLE, protocol="openai")) == []


# --- headers ------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize(
    "name", ["Content-Length", "transfer-encoding", "HOST", "Connection", "Expect", "Upgrade", "TE", "Content-Encoding"]
)
def test_a_header_that_frames_a_message_is_refused_at_construction(kind: Callable[..., object], name: str) -> None:
    with pytest.raises(InvalidInput, match=f"default_headers: {name} belongs to a single message or connection"):
        kind(api_key=KEY, default_headers={"X-Tenant": "42", name: "17"})


# --- waiting ------------------------------------------------------------------------------------------------

SOON = datetime(2026, 11, 20, tzinfo=timezone.utc)
RETRY_AFTER = {
    "a year of five digits": ("Fri, 31 Dec 99999 23:59:59 GMT", format_datetime(SOON)),
    "the last year": ("Fri, 31 Dec 9999 23:59:59 GMT", format_datetime(SOON)),
    "a day of many digits": (f"Fri, {'9' * 30} Dec 2026 00:00:00 GMT", format_datetime(SOON)),
    "an hour of many digits": (f"Fri, 31 Dec 2026 {'9' * 30}:00:00 GMT", format_datetime(SOON)),
    "a date of many digits": (format_datetime(SOON + timedelta(hours=9)), f"Fri, {'9' * 30} Dec 2026 00:00:00 GMT"),
    "seconds of a year": ("31536000", ""),
    "many digits": ("9" * 5_000, ""),
}


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("wait", RETRY_AFTER)
def test_no_retry_after_makes_a_request_wait_for_more_than_a_minute(wait: str, status: int) -> None:
    retry_after, date = RETRY_AFTER[wait]
    emulator, headers = Emulator(), {"retry-after": retry_after, "date": date}
    replies = iter([httpx.Response(status, headers=headers)])
    transport = httpx.MockTransport(lambda request: next(replies, None) or emulator(request))
    with httpx.Client(transport=transport) as http:
        made = EmbeddingClient(api_key=KEY, http_client=http)
        clock: Any = FakeClock()
        made._transport.clock = clock
        assert len(made.embed("a text").dense) == 1
    assert sum(clock.waits) <= 61
    assert emulator.requests == 1


@pytest.mark.parametrize("role", ["document", "query"])
def test_long_throttling_is_told_once_a_minute_with_host_and_bound(
    role: Any, emulator: Emulator, served: Server, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.faults = [faults.Throttle(times=9_999)]
    made = EmbeddingClient(api_key=KEY, base_url=served.url)
    made._transport.clock = FakeClock()  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING, "dashscope_embeddings"), pytest.raises(RateLimitError):
        made.embed(["a text"], text_type=role)
    lines = [record.getMessage() for record in caplog.records]
    assert 1 <= len(lines) <= 6
    host = served.url.removeprefix("http://")
    assert all(line.startswith(f"throttled by {host} for ") for line in lines)
    assert all("retrying for up to 300 s" in line for line in lines)
    assert find_secret(lines, KEY) == []


def test_short_throttling_is_not_told(emulator: Emulator, served: Server, caplog: pytest.LogCaptureFixture) -> None:
    emulator.faults = [faults.Throttle(times=1)]
    made = EmbeddingClient(api_key=KEY, base_url=served.url)
    made._transport.clock = FakeClock()  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING, "dashscope_embeddings"):
        made.embed(["a text"])
    assert caplog.records == []


# --- one of each class --------------------------------------------------------------------------------------

TWO = ("one", "two")
GO_ON = " Ask again for the texts in error.failed; what arrived is in error.partial"
MESSAGES: dict[str, tuple[tuple[str, ...], dict[str, Any], list[str]]] = {
    "InvalidInput": (
        ("fine", "  "),
        {},
        [
            "text 1 is empty or blank: the service refuses such a text and its whole request",
            "leave it out",
            "nothing was sent",
        ],
    ),
    "AuthenticationError": (
        TWO,
        {"api_key": "sk-another"},
        [
            "texts 0, 1 of 2: the service answered 401 InvalidApiKey",
            "Asked dashscope.aliyuncs.com (Beijing)",
            "region=",
        ],
    ),
    "QuotaError": (
        TWO,
        {"faults": [faults.Arrearage()]},
        ["texts 0, 1 of 2: the service answered 400 Arrearage: ", "Waiting does not help: look at the bill"],
    ),
    "RateLimitError": (
        TWO,
        {"faults": [faults.Throttle()]},
        ["texts 0, 1 of 2: the service answered 429 Throttling.RateQuota: ", "it takes 1,800 requests a minute"],
    ),
    "BadRequestError": (
        TWO,
        {"faults": [faults.Blocked(match="two")]},
        ["text 1 of 2: the service answered 400 DataInspectionFailed: ", "Leave the text out", "are in error.partial"],
    ),
    "ServerError": (
        TWO,
        {"faults": [faults.Status(status=500)]},
        ["texts 0, 1 of 2: the service answered 500 InternalError: Internal server error!", GO_ON],
    ),
    "ConnectionFailed": (
        TWO,
        {"faults": [faults.Drop("reset")]},
        ["texts 0, 1 of 2: no answer from dashscope.aliyuncs.com: ReadError: ", "HTTPS_PROXY right?", GO_ON],
    ),
    "BadReply": (
        TWO,
        {"faults": [faults.WrongCount()]},
        ["texts 0, 1 of 2: the reply has 1 row for 2 texts. Something on the way may change replies.", GO_ON],
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_says_which_texts_what_was_wrong_and_what_to_do(name: str) -> None:
    texts, service, (beginning, *others) = MESSAGES[name]
    with httpx.Client(transport=Emulator(**service).transport()) as http:
        client = EmbeddingClient(api_key=KEY, max_retries=0, http_client=http)
        with pytest.raises(getattr(dashscope_embeddings, name)) as caught:
            client.embed(list(texts))
    assert type(caught.value).__name__ == name
    assert str(caught.value).startswith(beginning)
    assert [words for words in others if words not in str(caught.value)] == []


def test_there_is_a_message_of_each_class_that_is_raised() -> None:
    public = [getattr(dashscope_embeddings, name) for name in dashscope_embeddings.__all__]
    kinds = {kind.__name__ for kind in public if isinstance(kind, type) and issubclass(kind, DashScopeError)}
    assert MESSAGES.keys() == kinds - {"DashScopeError", "ServiceError"}


# --- the command line ---------------------------------------------------------------------------------------


def test_a_refusal_that_the_same_command_would_meet_again_does_not_advise_it(
    emulator: Emulator, served: Server, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    typer_testing = pytest.importorskip("typer.testing")
    pytest.importorskip("rich")
    from dashscope_embeddings.cli import app  # noqa: PLC0415 - it needs what was just looked for

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
    emulator.faults = [faults.Status(404, code="ModelNotFound", times=99)]
    (tmp_path / "in.txt").write_text("one\ntwo\n", "utf-8")
    result = typer_testing.CliRunner().invoke(app.app, ["embed", "in.txt", "-o", "out.jsonl", "--base-url", served.url])
    assert result.exit_code == 1
    assert result.stderr.endswith("\nNo vectors are stored yet.\n")


def test_nothing_that_is_said_is_an_order_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    from dashscope_embeddings.cli import common  # noqa: PLC0415 - it needs what was just looked for

    with pytest.raises(Exception, match="1"):
        common.fail("a file\x1b[2J \x9b31m\u202e of a stranger\nand another line")
    lines = capsys.readouterr().err
    assert lines == "a file\\x1b[2J \\x9b31m\\u202e of a stranger\nand another line\n"
