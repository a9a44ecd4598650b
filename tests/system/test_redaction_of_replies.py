"""What a service repeats of a request, or says to a terminal, never reaches errors, logs, records or reports."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest
from pydantic import SecretStr
from raw_server import serve_raw
from secret_scanner import find_secret

from dashscope_embeddings import DashScopeError, EmbeddingClient
from dashscope_embeddings._core.redaction import Redactor, escape_control_characters, printable
from dashscope_embeddings.emulator import Emulator

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashscope_embeddings.usage import RequestRecord

KEY = "CANARY.0a1b2c3d4e5f+6/7=8"
"""Of another form than the service's own keys, which begin with sk-."""
GATEWAY = "gateway-value-9f8e7d6c"
UUID = "01234567-89ab-cdef-0123-456789abcdef"
"""A key may have the form of a request id."""
TEXT = "The contract with Miller ends in May, and nobody is to know."

FORMS: dict[str, str] = {
    "as it is": KEY,
    "in capitals": KEY.upper(),
    "cut short": KEY[:15],
    "its end": KEY[-13:],
    "as a header": f"Authorization: Bearer {KEY}",
    "in a url": quote(KEY, safe=""),
    "in base64": base64.b64encode(KEY.encode()).decode(),
    "inside base64": base64.b64encode(f"Bearer {KEY}".encode()).decode(),
    "inside base64 of urls": base64.urlsafe_b64encode(f"x:{KEY}".encode()).decode(),
    "in hexadecimal": KEY.encode().hex(),
    "a header of the user": GATEWAY,
    "a text": TEXT,
    "a part of a text": TEXT[9:40],
    "a text in quotes": repr(TEXT),
    "a key of somebody else": "sk-0123456789abcdef",
}


def refusing(body: dict[str, Any], headers: dict[str, str] | None = None, status: int = 400) -> httpx.MockTransport:
    return httpx.MockTransport(lambda _: httpx.Response(status, json=body, headers=headers))


PLACES: dict[str, Callable[[str], httpx.MockTransport]] = {
    "message": lambda said: refusing({"code": "InvalidParameter", "message": f"bad: {said} here"}),
    "code": lambda said: refusing({"code": f"Bad {said}", "message": "no"}),
    "request_id": lambda said: refusing({"code": "InvalidParameter", "message": "no", "request_id": said}),
    "x-request-id": lambda said: refusing({"code": "InvalidParameter"}, {"x-request-id": said}),
    "compatible": lambda said: refusing({"error": {"code": said, "message": said}, "id": said}),
    "unexpected shape": lambda said: refusing({"output": {said: said}, "request_id": said}, status=200),
    "server error": lambda said: refusing({"message": said}, status=500),
}


def asked(transport: httpx.BaseTransport, records: list[RequestRecord]) -> DashScopeError:
    with httpx.Client(transport=transport) as http:
        client = EmbeddingClient(
            api_key=KEY,
            http_client=http,
            default_headers={"X-Gateway-Key": GATEWAY},
            max_retries=0,
            on_request=records.append,
        )
        with pytest.raises(DashScopeError) as caught:
            client.embed([TEXT])
    return caught.value


def shown_of(said: str) -> str:
    """What must not be seen of it."""
    for secret in (TEXT[9:40], GATEWAY, "0123456789abcdef"):
        if secret in said:
            return secret
    return said.rpartition(" ")[2]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FORMS)
def test_what_the_service_repeats_is_not_shown(form: str, place: str, caplog: pytest.LogCaptureFixture) -> None:
    records: list[RequestRecord] = []
    with caplog.at_level(logging.INFO, "dashscope_embeddings"):
        error = asked(PLACES[place](FORMS[form]), records)
    secret = shown_of(FORMS[form])
    # The call that is shown has its texts in its own variables.
    assert [at for at in find_secret([error, records], secret) if secret not in TEXT or ".py:" not in at] == []
    assert secret not in caplog.text
    assert records


@pytest.mark.parametrize("form", ["as it is", "inside base64", "a header of the user"])
def test_a_request_id_that_repeats_a_secret_is_kept_out_of_results(form: str) -> None:
    emulator = Emulator()

    def answer(request: httpx.Request) -> httpx.Response:
        reply = emulator(request)
        return httpx.Response(200, json=json.loads(reply.content) | {"request_id": FORMS[form]})

    records: list[RequestRecord] = []
    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        client = EmbeddingClient(
            api_key=KEY, http_client=http, default_headers={"X-Key": GATEWAY}, on_request=records.append
        )
        found = client.embed([TEXT])
    assert found.request_ids
    assert find_secret([found.request_ids, records], shown_of(FORMS[form])) == []


def test_a_request_id_of_the_service_stays_as_it_is() -> None:
    redaction = Redactor((SecretStr(KEY), SecretStr(UUID)))
    for found in ("1773f7b2-2148-9f74-b335-b413e398a116", "chatcmpl-abc", None):
        assert redaction.redact_request_id(found) == found
    assert redaction.redact_request_id(UUID) == "…"


def test_a_short_word_of_a_text_is_left_in_the_services_words() -> None:
    words = "Range of input length should be [1, 8192]"
    assert Redactor((SecretStr("input"),))(words, ["range", "the length of an input", "a"]) == words


def test_a_long_message_and_long_texts_are_searched_in_little_time() -> None:
    texts = ["ab" * 20_000 for _ in range(10)]
    assert Redactor()("ab" * 5_000, texts) == "…"
    assert Redactor()("x" * 5_000, texts) == "x" * 500


TERMINAL = {
    "a colour": "\x1b[31mred",
    "a title": "\x1b]0;title\x07",
    "of eight bits": "\x9b31m",
    "a line": "one\ntwo",
    "the beginning of the line": "one\rtwo",
    "another direction": "\u202eabc",
    "an end of lines": "a\u2028b",
    "nothing": "a\u200bb",
    "a backspace": "a\x08b",
}


@pytest.mark.parametrize("place", ["message", "code", "request_id", "compatible", "unexpected shape", "server error"])
@pytest.mark.parametrize("sign", TERMINAL)
def test_what_a_terminal_obeys_is_shown_as_an_escape(sign: str, place: str, caplog: pytest.LogCaptureFixture) -> None:
    records: list[RequestRecord] = []
    with caplog.at_level(logging.INFO, "dashscope_embeddings"):
        error = asked(PLACES[place](TERMINAL[sign]), records)
    for shown in (str(error), error.message, error.request_id, records[0].request_id, records[0].error):
        assert shown is None or shown.isprintable()
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_letters_of_any_language_stay_as_they_are() -> None:
    assert printable("参数错误：长度 🎉 é") == "参数错误：长度 🎉 é"
    assert escape_control_characters("a\x1b") == "a\\x1b"


HEADS = {
    "a status line": f"HTTP/1.1 Bearer {KEY}\r\n\r\n",
    "no status line": f"{KEY} '\" {GATEWAY}\r\n\r\n",
    "a header's name": f"HTTP/1.1 200 OK\r\nX {KEY}: a\r\n\r\n",
    "a header's value": f"HTTP/1.1 200 OK\r\nX-Key: {KEY}\x00\r\n\r\n",
    "a length": f"HTTP/1.1 200 OK\r\nContent-Length: {KEY}\r\n\r\n",
    "a coding": f"HTTP/1.1 200 OK\r\nTransfer-Encoding: {KEY}\r\n\r\n",
    "a compressed body": f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 24\r\n\r\n{KEY[:24]}",
}


@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize("head", HEADS)
def test_the_head_of_a_malformed_reply_is_not_quoted(head: str, way: str) -> None:
    with serve_raw(lambda *_: HEADS[head].encode()) as server:
        client = EmbeddingClient(
            api_key=KEY, base_url=server.url, default_headers={"X-Gateway-Key": GATEWAY}, max_retries=0
        )
        with pytest.raises(DashScopeError) as caught:
            client.embed([TEXT]) if way == "sync" else asyncio.run(client.aembed([TEXT]))
        client.close()
    for secret in (KEY, GATEWAY):
        assert find_secret(caught.value, secret) == []
    assert "b'" not in str(caught.value)
    assert 'b"' not in str(caught.value)
