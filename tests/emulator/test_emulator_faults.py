"""Quotas, faults and connections: the emulator fails as its faults say, in process and on a socket."""

from __future__ import annotations

import base64
import json
import math
import socket
import struct
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import client_for
from emulator_calls import V4, Clock, compatible, native, rows

from dashscope_embeddings import AuthenticationError
from dashscope_embeddings.emulator import Emulator, faults
from dashscope_embeddings.emulator.embeddings import NATIVE_PATH
from dashscope_embeddings.emulator.messages import Response

if TYPE_CHECKING:
    from dashscope_embeddings.emulator.faults import Fault

V3 = "text-embedding-v3"


# Quotas


def test_requests_beyond_the_window_are_refused_and_do_not_count() -> None:
    clock = Clock()
    emulator = Emulator(requests_per_minute=120, clock=clock)
    statuses = []
    for moment in (0.0, 0.5, 0.6, 0.7, 1.0, 1.4, 1.5):
        clock.now = 1000 + moment
        statuses.append(native(emulator, "x").status_code)
    assert statuses == [200, 200, 429, 429, 200, 429, 200]
    assert emulator.billed_requests == 4


def test_quotas_are_kept_per_model_and_speak_each_protocols_words() -> None:
    emulator = Emulator(requests_per_second=1, clock=Clock(), retry_after=True)
    assert native(emulator, "x").status_code == native(emulator, "x", V3).status_code == 200
    refused = native(emulator, "x")
    assert refused.json()["code"] == "Throttling.RateQuota"
    assert refused.json()["message"] == "Requests rate limit exceeded, please try again later."
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("1", "1000")
    assert compatible(emulator, "x").json()["error"]["code"] == "limit_requests"


def test_tokens_beyond_the_window_are_refused_with_a_code_that_does_not_mean_money() -> None:
    clock = Clock()
    emulator = Emulator(tokens_per_minute=120, window=6.0, clock=clock)
    assert native(emulator, "x " * 8).status_code == 200
    assert native(emulator, "x " * 5).json()["code"] == "Throttling.AllocationQuota"
    assert compatible(emulator, "x " * 5).json()["error"]["type"] == "insufficient_quota"
    assert native(emulator, "x " * 4).status_code == 200
    clock.now += 6
    assert native(emulator, "x " * 12).status_code == 200


def test_what_is_larger_than_a_window_passes_alone_and_fills_as_many_as_it_takes() -> None:
    clock = Clock()
    emulator = Emulator(tokens_per_minute=120, clock=clock)
    assert native(emulator, "x " * 6).status_code == 200
    clock.now += 2.9
    assert native(emulator, "x").status_code == 429
    clock.now += 0.1
    assert native(emulator, "x").status_code == 200


# Faults


def statuses_under(*given: Fault, texts: tuple[str, ...] = ("x",) * 6) -> list[int]:
    emulator = Emulator(faults=given)
    return [native(emulator, text).status_code for text in texts]


def test_faults_trigger_under_their_conditions() -> None:
    script = [faults.Throttle(), faults.Status(503), faults.Arrearage(), faults.Blocked()]
    assert statuses_under(*script) == [429, 503, 400, 400, 200, 200]
    assert statuses_under(faults.Fault(times=2), faults.Throttle()) == [200, 200, 429, 200, 200, 200]
    assert statuses_under(faults.Throttle(after=2, times=2)) == [200, 200, 429, 429, 200, 200]
    assert statuses_under(faults.Throttle(every=3)) == [200, 200, 429, 200, 200, 429]
    assert statuses_under(faults.Blocked(match="bad"), texts=("good", "a bad one", "bad")) == [200, 400, 400]
    drawn = statuses_under(faults.Throttle(probability=0.5, seed=7), texts=("x",) * 40)
    assert drawn == statuses_under(faults.Throttle(probability=0.5, seed=7), texts=("x",) * 40)
    assert 8 < drawn.count(429) < 32


def test_setting_or_clearing_starts_the_faults_anew() -> None:
    emulator = Emulator(faults=[faults.Throttle()])
    assert [native(emulator, "x").status_code for _ in range(2)] == [429, 200]
    emulator.clear()
    assert emulator.requests == emulator.billed_tokens == len(emulator.asked) == 0
    assert native(emulator, "x").status_code == 429
    emulator.faults = [faults.Status(502, body="html")]
    assert native(emulator, "x").headers["content-type"] == "text/html"


REFUSALS: list[tuple[Fault, int, str, str]] = [
    (faults.Throttle(), 429, "Throttling.RateQuota", "limit_requests"),
    (faults.Throttle(code="Throttling.BurstRate"), 429, "Throttling.BurstRate", "limit_burst_rate"),
    (faults.Throttle(code="New", message="words"), 429, "New", "New"),
    (faults.FreeQuotaExhausted(), 429, "Throttling.AllocationQuota", "insufficient_quota"),
    (
        faults.FreeQuotaExhausted(only_free=True),
        403,
        "AllocationQuota.FreeTierOnly",
        "AllocationQuota.FreeTierOnly",
    ),
    (faults.Overdue(), 429, "PrepaidBillOverdue", "PrepaidBillOverdue"),
    (faults.Arrearage(), 400, "Arrearage", "Arrearage"),
    (faults.Blocked(), 400, "DataInspectionFailed", "DataInspectionFailed"),
    (faults.RowRefused(), 400, "InvalidParameter", "InvalidParameter"),
    (faults.Status(500), 500, "InternalError", "internal_error"),
    (faults.Status(503), 503, "ServiceUnavailable", "ServiceUnavailable"),
]


@pytest.mark.parametrize(("fault", "status", "code", "compatible_code"), REFUSALS)
def test_a_refusing_fault_bills_nothing_and_speaks_both_protocols(
    fault: Fault, status: int, code: str, compatible_code: str
) -> None:
    emulator = Emulator(faults=[fault, fault])
    refused, other = native(emulator, "x"), compatible(emulator, "x")
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert (other.status_code, other.json()["error"]["code"]) == (status, compatible_code)
    assert emulator.billed_tokens == 0
    assert [asked.fault for asked in emulator.asked] == [fault.label] * 2


def test_the_end_of_the_free_quota_keeps_its_own_words_in_both_protocols() -> None:
    emulator = Emulator(faults=[faults.FreeQuotaExhausted(times=2)])
    assert native(emulator, "x").json()["message"] == "Free allocated quota exceeded."
    assert compatible(emulator, "x").json()["error"]["message"] == "Free allocated quota exceeded."


# What harms a client is in the table of tests/support/fault_cases.py, by its effect on each way into this package.


def test_faults_that_clients_must_bear_change_the_reply_as_they_say() -> None:
    def struck(fault: Fault) -> tuple[httpx.Response, dict[str, Any]]:
        """A reply under the fault, and the same reply without it."""
        emulator = Emulator(faults=[fault])
        reply, straight = (native(emulator, list("abc"), dimension=64, output_type="dense&sparse") for _ in range(2))
        assert emulator.billed_requests == 2
        return reply, straight.json()

    def body(fault: Fault) -> tuple[dict[str, Any], dict[str, Any]]:
        reply, straight = struck(fault)
        return reply.json(), straight

    shuffled, straight = body(faults.Shuffle())
    assert shuffled["output"]["embeddings"] == straight["output"]["embeddings"][::-1]
    integers, straight = body(faults.IntegerComponents())
    for row, before in zip(rows_of(integers), rows_of(straight), strict=True):
        assert (type(row["embedding"][0]), row["embedding"][1:]) == (int, before["embedding"][1:])
    extended, straight = body(faults.ExtraFields())
    assert (extended["status_code"], extended["usage"]) == (200, straight["usage"])
    assert [row.pop("novelty", "none") for row in rows_of(extended)] == [None] * 3
    assert extended["output"] == straight["output"]
    uncounted, straight = body(faults.MissingUsage())
    assert ("usage" in uncounted, uncounted["output"]) == (False, straight["output"])
    assert "content-type" not in struck(faults.WrongContentType(None))[0].headers
    assert struck(faults.WrongContentType())[0].headers["content-type"] == "text/plain"
    assert struck(faults.Gzip())[0].headers["content-encoding"] == "gzip"


def rows_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = body["output"]["embeddings"]
    return found


def test_faults_in_the_json_reach_base64_and_leave_refusals_and_sparse_vectors_alone() -> None:
    emulator = Emulator(faults=[faults.WrongWidth(-1), faults.NotFinite(math.inf)])
    given: dict[str, Any] = {"dimensions": 64, "encoding_format": "base64"}
    short, infinite = (
        base64.b64decode(compatible(emulator, "x", **given).json()["data"][0]["embedding"]) for _ in range(2)
    )
    assert (len(short), len(infinite), struct.unpack_from("<f", infinite)) == (63 * 4, 64 * 4, (math.inf,))
    emulator.faults = [faults.WrongCount(), faults.WrongWidth()]
    assert native(emulator, ["x"] * 11).json()["code"] == "InvalidParameter"
    assert set(rows(native(emulator, "x", output_type="sparse"))[0]) == {"sparse_embedding", "text_index"}
    assert [asked.fault for asked in emulator.asked] == ["WrongWidth", "NotFinite", "WrongCount", "WrongWidth"]


def test_a_redirect_names_its_place_and_a_status_may_be_any_number_without_a_body() -> None:
    emulator = Emulator(faults=[faults.Redirect("http://there.invalid/x"), faults.Status(599, body="empty")])
    moved, odd = native(emulator, "x"), native(emulator, "x")
    assert (moved.status_code, moved.headers["location"]) == (307, "http://there.invalid/x")
    assert (odd.status_code, odd.content) == (599, b"")


class Teapot(faults.Fault):
    def intercept(self, protocol: str, request_id: str) -> Response:
        return Response(418, f"{protocol} {request_id}".encode())


def test_a_fault_of_ones_own_edits_a_reply_or_stands_for_it() -> None:
    def edit(response: Response) -> Response:
        return replace(response, status=299)

    emulator = Emulator(faults=[faults.EditReply(edit, "Odd", after=1), Teapot(match="tea")])
    assert [native(emulator, text).status_code for text in ("tea", "cup", "tea")] == [418, 299, 418]
    assert [(asked.fault, asked.tokens > 0) for asked in emulator.asked] == [
        ("Teapot", False),
        ("Odd", True),
        ("Teapot", False),
    ]


BROKEN: list[tuple[Fault, type[httpx.TransportError], int]] = [
    (faults.Drop(), httpx.RemoteProtocolError, 0),
    (faults.Drop(billed=True), httpx.RemoteProtocolError, 1),
    (faults.Drop("reset"), httpx.ReadError, 0),
    (faults.Truncate(), httpx.RemoteProtocolError, 1),
    (faults.Stall(), httpx.ReadTimeout, 1),
    (faults.Stall(0.5), httpx.ReadTimeout, 1),
    (faults.Slow(6), httpx.ReadTimeout, 1),
]


# The socket


@pytest.mark.parametrize(("fault", "error", "billed"), BROKEN)
def test_on_a_socket_the_connection_really_breaks(fault: Fault, error: type[httpx.TransportError], billed: int) -> None:
    emulator = Emulator(faults=[fault], key_required=False)
    body = {"model": V4, "input": {"texts": "x"}}
    with emulator.serve() as server, httpx.Client(base_url=server.url, timeout=30) as client:
        with pytest.raises(error):
            client.post(NATIVE_PATH, json=body, timeout=0.2 if error is httpx.ReadTimeout else 30)
        reply = client.post(NATIVE_PATH, json=body)
    assert rows(reply)[0]["embedding"] == emulator.dense("x")
    assert emulator.billed_requests == billed + 1


def test_connections_are_kept_and_counted() -> None:
    together = threading.Barrier(4, timeout=10)

    def clock() -> float:
        """Asked once a request: it lets no request go on before four are there."""
        together.wait()
        return 0.0

    emulator = Emulator(key_required=False, clock=clock)
    found: dict[int, list[float]] = {}

    def ask(url: str, number: int) -> None:
        with httpx.Client(base_url=url) as client:
            for text in (f"{number}", f"{number} again"):
                reply = client.post(NATIVE_PATH, json={"model": V4, "input": {"texts": text}})
            found[number] = rows(reply)[0]["embedding"]

    with emulator.serve(latency=0.001) as server:
        threads = [threading.Thread(target=ask, args=(server.url, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {number: emulator.dense(f"{number} again") for number in range(4)}
    assert (server.peak_connections, server.peak_in_flight) == (4, 4)
    assert emulator.billed_texts == 8


def test_a_closed_server_is_gone_and_so_are_its_idle_connections() -> None:
    server = Emulator(faults=[faults.Status(599)]).serve()
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/").status_code == 599  # a status without a name
        server.close()
        server.close()
        with pytest.raises(httpx.TransportError):
            client.get("/")
    assert server.url in repr(server)


def test_closing_ends_a_stall() -> None:
    server = Emulator(faults=[faults.Stall(0.5)], key_required=False).serve()
    body = json.dumps({"model": V4, "input": {"texts": "x"}}).encode()
    head = f"POST {NATIVE_PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(head + body)
        assert connection.recv(12) == b"HTTP/1.1 200"
        server.close()
        while connection.recv(65_536):
            pass
    assert server.peak_in_flight == 1


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Refuse", {"reply": "x"}, r"Refuse takes a function .* for a status, write Status\(503\)"),
        ("EditReply", {"change": "x"}, "EditReply takes a function"),
        ("Status", {"status": "503"}, "status must be a number, not '503'"),
        ("Status", {"status": 5030}, "status=5030: expected at least 100, at most 599"),
        ("Status", {"code": 5}, "code must be str, not 5"),
        ("Status", {"body": "htlm"}, "body='htlm': expected 'json' or 'html' or 'empty'"),
        ("Throttle", {"retry_after": "1"}, "retry_after must be a number, not '1'"),
        ("Throttle", {"times": "1"}, "times must be a number"),
        ("Throttle", {"every": 0}, "every=0: expected at least 1"),
        ("Throttle", {"probability": 5}, "probability=5: expected at least 0, at most 1"),
        ("Throttle", {"match": 5}, "match must be str"),
        ("Throttle", {"route": "("}, "route='\\(' is no regular expression"),
        ("Slow", {"seconds": "1"}, "seconds must be a number"),
        ("Stall", {"share": 2}, "share=2: expected at least 0, at most 1"),
        ("Truncate", {"share": "all"}, "share must be a number"),
        ("Drop", {"how": "close"}, "how='close': expected 'closed' or 'reset' or 'unreachable'"),
        ("Garbage", {"body": "x"}, "body must be bytes"),
        ("TrailingBytes", {"extra": "x"}, "extra must be bytes"),
        ("Gzip", {"broken": "x"}, "broken='x': expected None or 'cut' or 'corrupt'"),
        ("WrongCount", {"by": "1"}, "by must be int"),
        ("WrongWidth", {"by": "1"}, "by must be int"),
        ("WrongWidth", {"row": "1"}, "row must be int"),
        ("NullEmbedding", {"row": "1"}, "row must be int"),
        ("LineFails", {"after": "1"}, "after must be a number"),
    ],
)
def test_a_fault_that_cannot_work_is_refused_when_it_is_made(name: str, arguments: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        getattr(faults, name)(**arguments)


@pytest.mark.parametrize("name", ["requests_per_second", "requests_per_minute", "tokens_per_minute", "window", "rows"])
def test_a_limit_that_lets_nothing_through_is_refused_when_the_emulator_is_made(name: str) -> None:
    for limit, message in ((0, "=0: expected at least"), (-1, "=-1: expected at least"), ("60", " must be a number")):
        with pytest.raises((TypeError, ValueError), match=f"^{name}{message}"):
            Emulator(**{name: limit})  # type: ignore[arg-type]


def test_a_wrong_key_is_refused_in_the_words_of_the_service_and_can_be_added_to_a_running_emulator() -> None:
    emulator = Emulator()
    client = client_for(emulator)
    client.embed("a")
    emulator.faults = [*emulator.faults, faults.WrongKey()]
    with pytest.raises(AuthenticationError, match="401 InvalidApiKey: Invalid API-key provided"):
        client.embed("b")
    assert len(client.embed("c")) == 1


@pytest.mark.parametrize("given", [faults.Throttle(), [faults.Throttle], ["throttle"]])
def test_what_is_no_list_of_faults_is_refused_when_it_is_set(given: Any) -> None:
    with pytest.raises(TypeError, match="must be a list of called faults"):
        Emulator(faults=given)
    before = faults.Drop()
    emulator = Emulator(faults=[before])
    with pytest.raises(TypeError, match="must be a list of called faults"):
        emulator.faults = given
    assert emulator.faults == (before,)
