"""The service's JSON: exact bodies out; nothing believed that comes in."""

from __future__ import annotations

import base64
import json
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dashscope_embeddings._core import protocol as core_protocol
from dashscope_embeddings._core.error_codes import ErrorReply
from dashscope_embeddings._core.protocol import ParsedReply, Reply, RequestOptions
from dashscope_embeddings.errors import BadReply
from dashscope_embeddings.vectors import SparseVector

SAMPLES = Path(__file__).parents[1] / "samples"
DENSE, SPARSE, BOTH = (RequestOptions("native", "m", output=o) for o in ("dense", "sparse", "dense&sparse"))
OPENAI = RequestOptions("openai", "m")


def native(*rows: Any, **more: Any) -> dict[str, Any]:
    return {"output": {"embeddings": list(rows)}, **more}


def openai(*rows: Any, **more: Any) -> dict[str, Any]:
    return {"object": "list", "data": list(rows), "model": "m", **more}


def read(ask: RequestOptions, content: Any, count: int = 1, **headers: str) -> ParsedReply:
    rows = core_protocol.parse_reply(ask, reply(content, 200, **headers), count)
    assert isinstance(rows, ParsedReply), rows
    return rows


def refused(ask: RequestOptions, content: Any, status: int, **headers: str) -> ErrorReply:
    refusal = core_protocol.parse_reply(ask, reply(content, status, **headers), 1)
    assert isinstance(refusal, ErrorReply), refusal
    return refusal


def reply(content: Any, status: int, **headers: str) -> Reply:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


# --- requests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (DENSE, {"text_type": "document"}),
        (RequestOptions("native", "m", text_type="query"), {"text_type": "query"}),
        (RequestOptions("native", "m", dimension=256), {"text_type": "document", "dimension": 256}),
        (SPARSE, {"text_type": "document", "output_type": "sparse"}),
        (BOTH, {"text_type": "document", "output_type": "dense&sparse"}),
        (RequestOptions("native", "m", "query", instruct="Find"), {"text_type": "query", "instruct": "Find"}),
        (RequestOptions("native", "m", "document", instruct="Find"), {"text_type": "document"}),
        (RequestOptions("native", "m", expected_width=1024), {"text_type": "document"}),
    ],
)
def test_a_native_body_holds_what_was_asked_and_nothing_else(ask: RequestOptions, expected: dict[str, Any]) -> None:
    body = json.loads(core_protocol.request_body(ask, ["a", "二"]))
    assert body == {"model": "m", "input": {"texts": ["a", "二"]}, "parameters": expected}


@pytest.mark.parametrize(
    "ask", [OPENAI, RequestOptions("openai", "m", "query", "sparse", instruct="Find", expected_width=9)]
)
def test_a_compatible_body_has_no_role_instruction_or_sparse(ask: RequestOptions) -> None:
    expected = {"model": "m", "input": ["a", "b"], "encoding_format": "float"}
    assert json.loads(core_protocol.request_body(ask, ("a", "b"))) == expected
    assert json.loads(core_protocol.request_body(replace(ask, dimension=64), ["a", "b"])) == {
        **expected,
        "dimensions": 64,
    }


def test_bodies_are_utf_8_and_each_protocol_has_its_path() -> None:
    assert '"二😀"'.encode() in core_protocol.request_body(DENSE, ["二😀"])
    assert core_protocol.embeddings_path("native") == "/api/v1/services/embeddings/text-embedding/text-embedding"
    assert core_protocol.embeddings_path("openai") == "/compatible-mode/v1/embeddings"


# --- replies that are believed ----------------------------------------------------------------------------


def test_recorded_replies_are_read() -> None:
    rows = read(DENSE, (SAMPLES / "native_reply.json").read_bytes())
    assert rows == ParsedReply([[-0.005039, 0.014719]], None, 3, "1773f7b2-2148-9f74-b335-b413e398a116")
    rows = read(OPENAI, (SAMPLES / "openai_reply.json").read_bytes())
    assert rows == ParsedReply([[-0.0695, 0.0306]], None, 184, "73591b79-d194-9bca-8bb5-xxxxxxxxxxxx")
    rows = read(BOTH, native(json.loads((SAMPLES / "native_hybrid_row.json").read_bytes())))
    assert rows.dense == [[-0.0069]]
    (sparse,) = rows.sparse or []
    assert (sparse.indices, sparse.tokens) == ([7149, 111290], ["風", "哀"])
    assert sparse.values == pytest.approx([0.829, 0.9004])


def test_unknown_fields_and_those_of_the_vendors_pages_are_no_reason_to_doubt() -> None:
    row = {"text_index": 0, "embedding": [0.5], "new": 1}
    page = native(row, usage={"total_tokens": 2, "new": {}}, status_code=200, code="", message="", new=[1])
    assert read(DENSE, page) == ParsedReply([[0.5]], None, 2, None)


def test_base64_of_little_endian_float32_is_read() -> None:
    packed = base64.b64encode(struct.pack("<3f", 0.25, -0.5, 0.0)).decode()
    assert read(OPENAI, openai({"index": 0, "embedding": packed})).dense == [[0.25, -0.5, 0.0]]


def test_sparse_weights_come_in_the_order_of_the_text_and_leave_by_index() -> None:
    weights = [(9, 0.5, "c"), (2, 1.0483, "a"), (4, 0.1, "b"), (2, 0.3, "z")]
    row = {"text_index": 0, "sparse_embedding": [{"index": i, "value": v, "token": t} for i, v, t in weights]}
    (found,) = read(SPARSE, native(row)).sparse or []
    assert (found.indices, found.tokens) == ([2, 4, 9], ["a", "b", "c"])
    assert found.values == [struct.unpack("f", struct.pack("f", v))[0] for v in (1.0483, 0.1, 0.5)]


def test_tokens_of_sparse_weights_are_all_named_or_none() -> None:
    weights = [{"index": 1, "value": 1, "token": "a"}, {"index": 2, "value": 0.5}]
    rows = read(SPARSE, native({"text_index": 0, "sparse_embedding": weights}))
    assert rows.sparse == [SparseVector([1, 2], [1.0, 0.5], None)]


@pytest.mark.parametrize("dense", [{}, {"embedding": None}, {"embedding": []}])
def test_where_only_sparse_was_asked_no_dense_vector_is_missed(dense: dict[str, Any]) -> None:
    row = {"text_index": 0, "sparse_embedding": [{"index": 1, "value": 0.5}], **dense}
    rows = read(SPARSE, native(row))
    assert (rows.dense, rows.sparse) == (None, [SparseVector([1], [0.5])])
    with pytest.raises(BadReply, match="without its vector"):
        read(BOTH, native(row))


def test_sparse_weights_may_stand_where_a_dense_vector_would_if_only_they_were_asked() -> None:
    row = {"text_index": 0, "embedding": [{"index": 7, "value": 0.5}, {"index": 1, "value": 0.25}]}
    for more in ({}, {"sparse_embedding": None}):
        assert read(SPARSE, native(row | more)).sparse == [SparseVector([1, 7], [0.25, 0.5])]
    for ask in (DENSE, BOTH):
        with pytest.raises(BadReply):
            read(ask, native(row))


@pytest.mark.parametrize("junk", [None, 7, "x", [None], [{"index": -1, "value": "x"}]])
def test_a_component_that_was_not_requested_is_ignored_whatever_it_holds(junk: Any) -> None:
    dense, sparse = {"embedding": [0.5]}, {"sparse_embedding": [{"index": 1, "value": 0.5}]}
    assert read(DENSE, native({"text_index": 0, **dense, "sparse_embedding": junk})).dense == [[0.5]]
    assert read(SPARSE, native({"text_index": 0, **sparse, "embedding": junk})).sparse == [SparseVector([1], [0.5])]


@pytest.mark.parametrize("ask", [DENSE, SPARSE, BOTH, OPENAI])
def test_a_sound_reply_is_parsed_once(ask: RequestOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(core_protocol, "parse_json")
    row = {"text_index": 0, "index": 0, "embedding": [0.5, -1], "sparse_embedding": [{"index": 1, "value": 1}]}
    found = read(ask, native(row, data=[row], code="", usage={"total_tokens": 1}, request_id="r"))
    assert (found.billed_tokens, found.request_id) == (1, "r")


# --- replies that are not ---------------------------------------------------------------------------------

ONE, TWO = {"text_index": 0, "embedding": [0.6, 0.8]}, {"text_index": 1, "embedding": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([ONE], "1 row for 2 texts"),
        ([], "0 rows for 2 texts"),
        ([ONE, ONE], "two rows for text 0"),
        ([ONE, TWO, TWO], "two rows for text 1"),
        ([ONE, {**TWO, "text_index": 2}], "row for text 2 of a request of 2"),
        ([ONE, {**TWO, "text_index": -1}], "row for text -1"),
        ([ONE, {**TWO, "text_index": True}], r"unexpected shape at (data|output\.embeddings)\.1\."),
        ([ONE, {**TWO, "text_index": "1"}], "unexpected shape"),
        ([ONE, {"embedding": [0.0, 1.0]}], "unexpected shape"),
        ([ONE, None], "unexpected shape"),
        ([ONE, {**TWO, "embedding": [1.0]}], "vector of 1 floats where 2 were expected"),
        ([ONE, {**TWO, "embedding": []}], "without its vector"),
        ([ONE, {**TWO, "embedding": None}], "without its vector"),
        ([ONE, {"text_index": 1}], "unexpected shape|without its vector"),
    ],
)
def test_rows_that_are_not_one_for_each_text_are_refused(rows: list[Any], complaint: str) -> None:
    with pytest.raises(BadReply, match=complaint):
        read(DENSE, native(*rows), 2)
    renamed = json.loads(json.dumps(rows).replace("text_index", "index"))
    with pytest.raises(BadReply, match=complaint):
        read(OPENAI, openai(*renamed), 2)


def test_a_vector_of_another_width_than_asked_is_refused() -> None:
    with pytest.raises(BadReply, match="vector of 2 floats where 1024 were expected"):
        read(RequestOptions("native", "m", expected_width=1024), native(ONE))


_NO_NUMBERS = 'NaN|0.5, Infinity|-Infinity|1e999|1e39|null|"0.5"|true|0.5, false|[0.5]|{}'


@pytest.mark.parametrize("numbers", [*_NO_NUMBERS.split("|"), "9" * 400])
def test_anything_but_finite_numbers_in_a_vector_is_refused(numbers: str) -> None:
    with pytest.raises(BadReply, match="vector"):
        read(DENSE, b'{"output":{"embeddings":[{"text_index":0,"embedding":[%s]}]}}' % numbers.encode())


@pytest.mark.parametrize("text", ["", "AAAA", "AACAfw==", "AADAfw==", "é", "AAAA Pw==", "AAAAAA"])
def test_base64_that_is_no_row_of_finite_float32_is_refused(text: str) -> None:
    with pytest.raises(BadReply, match="vector"):
        read(OPENAI, openai({"index": 0, "embedding": text}))


_WRONG: list[Any] = [[{"index": index, "value": 0.5}] for index in (1.5, -1, 2**32, True, "1")]
_WRONG += [[{"index": 1, "value": v}] for v in (math.nan, -math.inf, 1e39, 10**400, True, "0.5", None)]


@pytest.mark.parametrize("weights", [None, "x", {"indices": [1]}, [{"index": 1}], *_WRONG])
def test_sparse_weights_of_another_kind_are_refused(weights: Any) -> None:
    with pytest.raises(BadReply):
        read(SPARSE, native({"text_index": 0, "sparse_embedding": weights}))
    with pytest.raises(BadReply):
        read(SPARSE, native({"text_index": 0, "embedding": weights}))
    with pytest.raises(BadReply, match="without its sparse vector"):
        read(SPARSE, native({"text_index": 0, "embedding": [0.5]}))


@pytest.mark.parametrize(
    "body", [b"", b"<html>502</html>", b'{"output":', b"\xff\xfe", b"[" * 100_000, b'{"output":{}} trailing']
)
def test_a_200_that_is_not_json_is_a_bad_reply_and_another_status_a_refusal(body: bytes) -> None:
    with pytest.raises(BadReply, match="not JSON" if body else "the reply is empty") as caught:
        read(DENSE, body, x_request_id="h-1")
    assert caught.value.request_id == "h-1"
    refusal = refused(DENSE, body, 502, x_request_id="h-1")
    assert (refusal.status, refusal.code, refusal.request_id) == (502, None, "h-1")
    assert refusal.is_page == body.startswith(b"<html>")


@pytest.mark.parametrize("content", [None, 7, [], "text", {}, {"output": None}, {"output": {}}])
def test_json_of_another_shape_is_a_bad_reply(content: Any) -> None:
    for ask in (DENSE, SPARSE, OPENAI):
        with pytest.raises(BadReply, match="unexpected shape"):
            read(ask, content)


def test_a_bad_reply_names_its_request_and_never_what_was_in_it() -> None:
    with pytest.raises(BadReply) as caught:
        read(DENSE, native({"text_index": "a secret", "embedding": [0.5]}, request_id="r-1"))
    assert caught.value.request_id == "r-1"
    assert "secret" not in str(caught.value)


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        ("native_wrong_key", 401, "InvalidApiKey", "Invalid API-key provided.", "a1c0561c-…"),
        ("openai_wrong_key", 401, "invalid_api_key", "Incorrect API key provided. ", "h-1"),
        ("openai_throttled", 429, "limit_requests", "You exceeded your current requests list.", "xxx"),
    ],
)
def test_either_envelope_is_read_in_either_protocol(row: tuple[str, int, str, str, str]) -> None:
    sample, status, code, message, request_id = row
    body = (SAMPLES / f"{sample}.json").read_bytes()
    for ask in (DENSE, OPENAI):
        assert refused(ask, body, status, x_request_id="h-1") == ErrorReply(status, code, message, request_id)


@pytest.mark.parametrize("field", ["error", "detail", "msg"])
def test_a_message_in_the_field_of_a_gateway_is_read(field: str) -> None:
    for ask in (DENSE, OPENAI):
        assert refused(ask, {field: "no such route"}, 404) == ErrorReply(404, None, "no such route")


def test_a_200_with_an_error_inside_is_a_refusal() -> None:
    inside = {"code": "InternalError", "message": "no"}
    for ask in (DENSE, OPENAI):
        for content in (inside, {"error": inside}, native(ONE) | inside):
            assert refused(ask, content, 200) == ErrorReply(200, "InternalError", "no")
    for content in ({"output": inside}, {"output": native(ONE)["output"] | inside}):
        assert refused(DENSE, content, 200) == ErrorReply(200, "InternalError", "no")


def test_the_request_id_of_vectors_is_the_headers_where_the_body_has_none() -> None:
    assert read(DENSE, native(ONE), x_request_id="h-1").request_id == "h-1"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "1.5"}, 1.5),
        ({"retry_after_ms": "250", "retry_after": "9"}, 0.25),
        ({"retry_after_ms": "soon", "retry_after": "9"}, 9.0),
        ({"retry_after": "0"}, 0.0),
        *(({"retry_after": value}, None) for value in ("-1", "nan", "inf", "", "Fri, 20 Nov 2026 10:00 GMT")),
        ({}, None),
    ],
)
def test_retry_after_is_seconds_or_milliseconds(headers: dict[str, str], seconds: float | None) -> None:
    assert refused(DENSE, {"code": "Throttling"}, 429, **headers).retry_after == seconds
    assert refused(DENSE, b"", 429, **headers).retry_after == seconds


DATE = "Fri, 20 Nov 2026 10:00:00 GMT"


@pytest.mark.parametrize(
    ("date", "received_at", "seconds"),
    [
        ("Fri, 20 Nov 2026 09:59:30 GMT", 0.0, 30.0),  # our clock does not matter
        ("Fri, 20 Nov 2026 11:00:00 +0100", None, 0.0),
        ("", 1_795_168_790.0, 10.0),
        ("no date", 1_795_168_790.0, 10.0),
        ("", None, None),
    ],
)
def test_retry_after_may_be_a_date_with_or_without_that_of_the_reply(
    date: str, received_at: float | None, seconds: float | None
) -> None:
    reply = Reply(429, {"retry-after": DATE, "date": date}, b"", received_at=received_at)
    found = core_protocol.parse_reply(DENSE, reply, 1)
    assert isinstance(found, ErrorReply)
    assert found.retry_after == seconds


@pytest.mark.parametrize(("value", "should_retry"), [("true", True), (" False ", False), ("1", None), ("", None)])
def test_the_server_may_say_whether_to_retry(value: str, should_retry: Any) -> None:
    assert refused(DENSE, b"", 503, x_should_retry=value).should_retry is should_retry
