"""Whatever comes from outside gives a value that holds, or one of our own errors."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
from client_helpers import FakeClock
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import any_texts, examples, texts

from dashscope_embeddings import EmbeddingClient
from dashscope_embeddings._core import protocol as core_protocol
from dashscope_embeddings._core import text_length
from dashscope_embeddings._core.address import resolve_address
from dashscope_embeddings._core.error_codes import ACTIONS_BY_CODE as KNOWN_CODES
from dashscope_embeddings._core.error_codes import ErrorReply, service_error
from dashscope_embeddings._core.exchange import RequestContext, exchange
from dashscope_embeddings._core.failures import ErrorContext, Failure
from dashscope_embeddings._core.protocol import ParsedReply, Reply, RequestOptions
from dashscope_embeddings._core.rate_limiter import Limiter
from dashscope_embeddings._core.steps import Send, Sleep
from dashscope_embeddings._core.text_length import Limits
from dashscope_embeddings.corpus import readers, sources
from dashscope_embeddings.corpus.options import InputOptions
from dashscope_embeddings.corpus.records import Record
from dashscope_embeddings.emulator import Emulator
from dashscope_embeddings.emulator.embeddings import COMPATIBLE_PATH, NATIVE_PATH
from dashscope_embeddings.emulator.messages import Request, Response
from dashscope_embeddings.errors import BadReply, DashScopeError, InvalidInput, ServiceError
from dashscope_embeddings.vectors import Part, SparseVector, combine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dashscope_embeddings._core.text_length import LongText

SAMPLES = [path.read_bytes() for path in sorted((Path(__file__).parents[1] / "samples").glob("*.json"))]
LARGEST = 2.0**128 * (1 - 2**-25)
"""Whatever is smaller has a float32."""

ASKS = st.builds(
    RequestOptions,
    st.just("native"),
    st.just("m"),
    output=st.sampled_from(["dense", "sparse", "dense&sparse"]),
    expected_width=st.sampled_from([None, 1, 2, 3]),
) | st.builds(RequestOptions, st.just("openai"), st.just("m"), expected_width=st.sampled_from([None, 1, 2, 3]))
STATUSES = st.just(200) | st.sampled_from([400, 401, 403, 408, 429, 500, 503]) | st.integers(100, 599)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.floats(width=32),
    st.floats(),
    st.integers(),
    st.sampled_from([10**30, 10**400, -(10**400), 2**32 - 1, 2**32, 1e39, -1e300, 1e-320]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(st.characters(), max_size=8))
NAMES = st.sampled_from(
    [
        *("output", "embeddings", "embedding", "sparse_embedding", "text_index", "index", "value", "token", "data"),
        *("usage", "total_tokens", "prompt_tokens", "request_id", "id", "code", "message", "error", "type"),
    ]
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=5),
    max_leaves=20,
)
HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "x-request-id", "content-type"]),
    st.text(st.characters(codec="latin-1"), max_size=12)
    | st.sampled_from(["1", "-1", "nan", "inf", "1e999", "1e308", "0x10", "1_0", "Wed, 21 Oct 2026 07:28:00 GMT"]),
    max_size=3,
)


def written(content: Any) -> bytes:
    """JSON as Python writes it: with NaN, infinities and lone surrogates escaped."""
    return json.dumps(content).encode()


@st.composite
def good_contents(draw: st.DrawFn, ask: RequestOptions, count: int) -> dict[str, Any]:
    """What the service answers when all is well, in any order of rows."""
    width = ask.expected_width or 2
    floats = st.floats(-1, 1, width=32) | st.sampled_from([0, 1])
    weights = st.fixed_dictionaries(
        {"index": st.integers(0, 2**32 - 1), "value": st.floats(0, 2)}, optional={"token": st.text(max_size=3)}
    )
    index = "text_index" if ask.protocol == "native" else "index"
    rows: list[dict[str, Any]] = []
    for at in draw(st.permutations(range(count))):
        rows.append({index: at})
        if ask.output != "sparse":
            vector = draw(st.lists(floats, min_size=width, max_size=width))
            rows[-1]["embedding"] = vector
        if ask.output != "dense":
            rows[-1]["sparse_embedding"] = draw(st.lists(weights, max_size=4))
    usage = {"usage": {"total_tokens": draw(st.integers(0, 10**6))}} if draw(st.booleans()) else {}
    return {"output": {"embeddings": rows}, **usage} if ask.protocol == "native" else {"data": rows, **usage}


def places(content: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    if isinstance(content, dict):
        items: list[tuple[Any, Any]] = list(content.items())
    elif isinstance(content, list):
        items = list(enumerate(content))
    else:
        return []
    return [(content, key) for key, _ in items] + [place for _, value in items for place in places(value)]


def _spots(content: Any, *, rows: bool) -> list[tuple[Any, Any]]:
    """Where to spoil it; `rows`: among whole rows, which are few, and these are what may go wrong."""
    found = places(content)
    whole = [(holder, key) for holder, key in found if isinstance(holder, list) and isinstance(holder[key], dict)]
    return whole if rows and whole else found


@st.composite
def spoilt(draw: st.DrawFn, content: Any) -> Any:
    """The same with a few things dropped, doubled, replaced, swapped or wrapped."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(0, 3))):
        found = _spots(content, rows=draw(st.booleans()))
        if not found:
            return draw(JSON)
        holder, key = draw(st.sampled_from(found))
        deed = draw(st.sampled_from(["drop", "replace", "double", "wrap", "swap", "nest"]))
        if deed == "drop":
            del holder[key]
        elif deed == "replace":
            holder[key] = draw(JSON)
        elif deed == "double" and isinstance(holder, list):
            holder.insert(draw(st.integers(0, len(holder))), json.loads(json.dumps(holder[key])))
        elif deed == "swap":
            other, elsewhere = draw(st.sampled_from(found))
            if elsewhere in (other if isinstance(other, dict) else range(len(other))):
                one, two = json.dumps(holder[key]), json.dumps(other[elsewhere])
                holder[key], other[elsewhere] = json.loads(two), json.loads(one)
        elif deed == "nest":
            for _ in range(draw(st.sampled_from([3, 150, 400]))):
                holder[key] = [holder[key]]
        else:
            holder[key] = {"value": holder[key]}
    return content


@st.composite
def bodies(draw: st.DrawFn, ask: RequestOptions, count: int) -> bytes:
    """Bytes from nearly right to nonsense."""
    kind = draw(st.sampled_from(["good", "good", "spoilt", "spoilt", "spoilt", "sample", "json", "bytes", "deep"]))
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    if kind == "deep":
        return draw(st.sampled_from([b"[", b'{"data":', b'{"output":{"embeddings":['])) * 30_000
    if kind == "json":
        body = written(draw(JSON))
    elif kind == "sample":
        body = written(draw(spoilt(json.loads(draw(st.sampled_from(SAMPLES))))))
    elif kind == "good":
        return written(draw(good_contents(ask, count)))
    else:
        body = written(draw(spoilt(draw(good_contents(ask, count)))))
    if draw(st.booleans()):
        return body
    at = draw(st.integers(0, len(body)))
    cut = draw(st.integers(0, 3))
    return body[:at] + draw(st.binary(max_size=3)) + body[at + cut :]


@st.composite
def replies(draw: st.DrawFn, ask: RequestOptions, count: int) -> Reply:
    headers: Mapping[str, str] = draw(HEADERS)
    if draw(st.booleans()):
        headers = httpx.Headers({name: value.encode("latin-1") for name, value in headers.items()})  # type: ignore[arg-type]
    return Reply(draw(STATUSES), headers, draw(bodies(ask, count)))


# --- replies -----------------------------------------------------------------------------------------------


def check_rows(rows: ParsedReply, ask: RequestOptions, count: int) -> None:
    assert (rows.dense is None) is (ask.output == "sparse")
    assert (rows.sparse is None) is (ask.output == "dense")
    if rows.dense is not None:
        assert len(rows.dense) == count
        (width,) = {len(vector) for vector in rows.dense}
        assert width == (ask.expected_width or width) > 0
        assert all(type(number) is float and math.isfinite(number) for vector in rows.dense for number in vector)
    if rows.sparse is not None:
        assert len(rows.sparse) == count
        for weights in rows.sparse:
            assert weights.indices == sorted(set(weights.indices))
            assert all(type(index) is int and 0 <= index < 2**32 for index in weights.indices)
            assert all(struct.unpack("f", struct.pack("f", value)) == (value,) for value in weights.values)
            assert len(weights.values) == len(weights.indices)
            assert weights.tokens is None or len(weights.tokens) == len(weights.indices)
    assert rows.billed_tokens is None or type(rows.billed_tokens) is int
    assert rows.request_id is None or isinstance(rows.request_id, str)


def check_against_the_standard_library(rows: ParsedReply, ask: RequestOptions, body: bytes) -> None:
    """Each vector is the one that the reply numbers with its text."""
    content = json.loads(body)
    listed = content["output"]["embeddings"] if ask.protocol == "native" else content["data"]
    index = "text_index" if ask.protocol == "native" else "index"
    for row in listed:
        vector = row.get("embedding")
        if rows.dense is not None and isinstance(vector, list):
            assert rows.dense[row[index]] == list(map(float, vector))
        if rows.sparse is not None:
            # A weight that float32 cannot hold exactly is rounded: the indices tell whose it is.
            assert rows.sparse[row[index]].indices == sorted({weight["index"] for weight in row["sparse_embedding"]})


@given(st.data())
@examples(120)
def test_any_reply_gives_checked_rows_or_a_refusal_or_a_bad_reply(data: st.DataObject) -> None:
    ask, count = data.draw(ASKS), data.draw(st.integers(1, 4))
    reply = data.draw(replies(ask, count))
    try:
        read = core_protocol.parse_reply(ask, reply, count)
    except BadReply:
        assert 200 <= reply.status < 300
        return
    if isinstance(read, ParsedReply):
        assert 200 <= reply.status < 300
        check_rows(read, ask, count)
        check_against_the_standard_library(read, ask, reply.body)
        return
    assert read.retry_after is None or 0 <= read.retry_after < math.inf
    refusal = service_error(read)
    assert refusal.status == reply.status
    assert len(refusal.message) <= 600 + len(read.code or "")


@given(st.data(), st.sampled_from(["nothing", "swap numbers", "drop", "double", "renumber", "empty"]))
@examples(100)
def test_a_good_reply_is_taken_in_any_order_but_with_each_row_once(data: st.DataObject, deed: str) -> None:
    ask, count = data.draw(ASKS), data.draw(st.integers(1, 4))
    content = data.draw(good_contents(ask, count))
    rows = content["output"]["embeddings"] if ask.protocol == "native" else content["data"]
    index = "text_index" if ask.protocol == "native" else "index"
    at, other = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, count - 1))
    if deed == "drop":
        del rows[at]
    elif deed == "double":
        rows.insert(other, rows[at])
    elif deed == "renumber":
        rows[at][index] = data.draw(st.integers().filter(lambda number: number != rows[at][index]))
    elif deed == "empty":
        rows.clear()
    elif deed == "swap numbers":
        rows[at][index], rows[other][index] = rows[other][index], rows[at][index]
    reply = Reply(200, {}, written(content))
    if deed in {"nothing", "swap numbers"}:
        found = core_protocol.parse_reply(ask, reply, count)
        assert isinstance(found, ParsedReply)
        check_rows(found, ask, count)
        check_against_the_standard_library(found, ask, reply.body)
        return
    with pytest.raises(BadReply):
        core_protocol.parse_reply(ask, reply, count)


PHRASES = st.sampled_from(
    [
        "batch size is invalid, it should not be larger than ",
        "Range of input length should be [1, ",
        "Range of input length should be [1,",
        "Free allocated quota exceeded.",
        "dimension",
        "sk-made-up-key",
    ]
)
DIGITS = st.sampled_from(["0", "1", "10", "٣", "9" * 20, ""])
MESSAGES = st.lists(PHRASES | DIGITS | st.sampled_from(["]", " "]) | any_texts(), max_size=6).map(" ".join)
CODES = st.none() | st.sampled_from(sorted(KNOWN_CODES)) | any_texts()


@given(STATUSES, CODES, MESSAGES, st.none() | st.floats(0, 1e308))
@examples(80)
def test_any_refusal_becomes_a_service_error_without_the_key(
    status: int, code: str | None, message: str, wait: float | None
) -> None:
    error = service_error(ErrorReply(status, code, message, None, wait))
    assert isinstance(error, ServiceError)
    assert (error.status, error.retry_after) == (status, wait)
    assert error.code == code if code is None or code in KNOWN_CODES else (error.code or "").isprintable()
    assert error.limit is None or error.limit >= 0
    assert "made-up-key" not in str(error)
    assert type(error.copy()) is type(error)


@given(st.data(), st.sampled_from(["error", "truncate", "average"]), st.integers(0, 2))
@examples(80)
def test_an_exchange_ends_with_vectors_or_errors_whatever_is_answered(
    data: st.DataObject, policy: LongText, retries: int
) -> None:
    ask, clock = data.draw(ASKS), FakeClock()
    asked = data.draw(st.lists(texts(20), min_size=1, max_size=4))
    terms = RequestContext(
        ask,
        Limits(10, 8192, None),
        Limiter(clock.now),
        policy,
        retries,
        max_throttled_seconds=60.0,
        error_context=ErrorContext("https://h"),
    )
    flow, answer, sent = exchange(asked, terms), None, 0
    try:
        while True:
            step = flow.send(answer)
            if not isinstance(step, Send):
                assert isinstance(step, Sleep)
                assert 0 < step.seconds < 100
                clock.time += step.seconds
                answer = None
                continue
            sent += 1
            assert sent < 3_000
            body = json.loads(step.body)
            count = len(body["input"] if ask.protocol == "openai" else body["input"]["texts"])
            assert 0 < count <= len(asked)
            answer = (
                data.draw(
                    replies(ask, count)
                    | refusals()
                    | st.builds(Failure, st.just("broken"), is_retryable=st.booleans())
                    | good_contents(ask, count).map(lambda content: Reply(200, {}, written(content)))
                )
                if sent < 20
                else Reply(401, {}, b"")
            )
    except StopIteration as done:
        outcome = done.value
    assert len(outcome.dense) == len(outcome.sparse) == len(asked)
    for row in range(len(asked)):
        dense, sparse = outcome.dense[row], outcome.sparse[row]
        if row in outcome.errors or outcome.abort_error is not None:
            continue
        assert (dense is None) is (ask.output == "sparse")
        assert (sparse is None) is (ask.output == "dense")
        assert dense is None or all(map(math.isfinite, dense))
    assert all(isinstance(error, DashScopeError) for error in outcome.errors.values())
    assert not any(outcome.dense[row] or outcome.sparse[row] for row in outcome.errors)
    assert terms.limiter.in_flight == 0


@st.composite
def refusals(draw: st.DrawFn) -> Reply:
    """Refusals as the service words them, with any numbers in them."""
    content = {"code": draw(CODES), "message": draw(MESSAGES)}
    return Reply(draw(st.sampled_from([400, 429, 500])), draw(HEADERS), written(content))


# --- lengths -----------------------------------------------------------------------------------------------

LONG = any_texts(400) | st.lists(any_texts(30) | st.sampled_from(["\n\n", ". ", "。", " " * 40]), max_size=12).map(
    "".join
)
TOKENS = st.integers(1, 60) | st.floats(0.1, 60)


@given(LONG, TOKENS)
@examples(80)
def test_a_cut_text_is_its_beginning_or_all_its_pieces_but_for_blank_stretches(text: str, tokens: float) -> None:
    found = [*text_length.chunks(text, tokens)]
    at = 0
    for piece in found:
        assert piece.strip()
        start = text.index(piece, at)
        assert not text[at:start].strip()
        at = start + len(piece)
    assert not text[at:].strip()
    # "About": where a stretch is denser than what follows it, up to about twice as many.
    beginning = text_length.truncate(text.lstrip(), tokens)
    assert text.lstrip().startswith(beginning)
    assert beginning.strip() or not text.strip()
    if text_length.estimate_tokens(text) <= tokens and tokens >= 1:
        assert beginning == text.lstrip()
    assert all(len(part) <= 1 or text_length.estimate_tokens(part) <= 2.2 * tokens for part in [*found, beginning])


@given(LONG, st.sampled_from(["error", "truncate", "average"]), st.integers(1, 60))
@examples(60)
def test_what_stands_for_a_text_is_the_text_itself_where_it_fits(text: str, policy: LongText, tokens: int) -> None:
    assume(text.strip())
    rows = [*text_length.Limits(1, tokens, None).fit_rows(text, policy)]
    assert rows
    assert all(row.strip() for row in rows)
    if policy == "error" or text_length.estimate_tokens(text) <= tokens:
        assert rows == [text]


# --- sparse vectors ----------------------------------------------------------------------------------------

WEIGHTS = st.lists(
    st.tuples(
        st.integers(0, 2**32 - 1) | st.integers(0, 5), st.floats(-2, 2, width=32), st.none() | st.text(max_size=3)
    ),
    max_size=8,
)


@given(WEIGHTS, WEIGHTS)
@examples(60)
def test_a_sparse_vector_keeps_of_each_index_the_largest_weight(
    one: list[tuple[int, float, str | None]], other: list[tuple[int, float, str | None]]
) -> None:
    vector = SparseVector.merged(one)
    largest = {index: max(value for i, value, _ in one if i == index) for index, _, _ in one}
    assert vector.as_dict() == largest
    assert vector.indices == sorted(largest)
    assert SparseVector.merged(vector.weights()).as_dict() == largest
    copied = vector.copy()
    assert copied == vector
    copied.indices.append(1)
    assert copied != vector
    for query in (False, True):
        stored = vector.as_milvus(query=query)
        assert stored
        assert all(value > 0 for value in stored.values())
        assert not any(value > 0 for value in largest.values()) or stored.items() <= largest.items()
    both = combine([Part(None, vector, 1.0), Part(None, SparseVector.merged(other), 1.0)]).sparse
    assert both is not None
    assert both.as_dict() == SparseVector.merged([*one, *other]).as_dict()


# --- addresses ---------------------------------------------------------------------------------------------

HOSTS = st.sampled_from(
    [
        "dashscope.aliyuncs.com",
        "127.0.0.1",
        "localhost",
        "[::1]",
        "127.0.0.2",
        "2130706433",
        "127.1",
        "LOCALHOST",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",  # noqa: S104 - nothing is bound to it
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example\\@127.0.0.1",
        "127.0.0.1@evil.example",
        "127.0.0.1\\@evil.example",
        "127.0.0.1#@evil.example",
        "127.0.0.1%2f@evil.example",
        "[::1]evil.example",
        "[::1].evil.example",
        "１２７.0.0.1",
        "ⓛocalhost",
        "ws-1.cn-beijing.maas.aliyuncs.com",
        "{workspace_id}.example",
    ]
) | st.text(st.sampled_from("a1.:-_@/\\#?[]%\t\n é。①"), max_size=12)
PATHS = st.sampled_from(
    ["", "/", "/api/v1", "/compatible-mode/v1/", "/compatible-mode/v1/embeddings", "//evil.example"]
)
URLS = st.one_of(
    st.text(st.characters(), max_size=20),
    st.builds(
        "{}{}{}{}{}".format,
        st.sampled_from(
            ["https://", "http://", "HTTP://", "http:/", "http:", "//", "ftp://", " https://", "\x01http://"]
        ),
        HOSTS,
        st.sampled_from(["", ":80", ":0", ":99999", ":", ":8o"]),
        PATHS,
        st.just("") | st.text(st.characters(), max_size=6) | st.sampled_from(["?a=b", "#x", "/../..", "@evil.example"]),
    ),
)


@given(URLS, st.sampled_from(["native", "openai"]), st.sampled_from([None, "cn-beijing", "x"]))
@examples(150)
def test_any_base_url_is_refused_or_asks_the_host_that_it_names(
    base_url: str, protocol: core_protocol.ApiProtocol, region: str | None
) -> None:
    try:
        found = resolve_address(protocol, base_url=base_url, region=region)
    except InvalidInput:
        return
    if found.is_emulator:
        assert base_url == "emulator"
        return
    try:
        asked = httpx.URL(found.root_url + core_protocol.embeddings_path(protocol))
    except (httpx.InvalidURL, UnicodeError):
        return  # the tests below expect better
    named = urlsplit(base_url.strip())
    assert asked.host == (named.hostname or "").strip("[]")
    assert asked.path.endswith(core_protocol.embeddings_path(protocol))
    assert not asked.userinfo
    assert asked.scheme == "https" or asked.host in {"127.0.0.1", "127.0.0.2", "localhost", "::1", "::ffff:127.0.0.1"}
    assert httpx.URL(f"{asked.scheme}://{found.host}").host == asked.host


@pytest.mark.parametrize(
    "base_url",
    [
        "https://999.999.999.999",
        "https://dashscope.example/\x01",
        "https://dashscope.example" + "/x" * 40_000,
        "https://[v1.a]",
        "https://[::1]x",
        "https://xn--",
        "https://dashscope.example/\ud800",
    ],
    ids=["ipv4", "unprintable", "endless", "ipv6", "after-ipv6", "idna", "surrogate"],
)
def test_an_address_that_httpx_cannot_ask_is_invalid_input(base_url: str) -> None:
    with pytest.raises(InvalidInput):
        EmbeddingClient(base_url=base_url, api_key="sk-made-up")


# --- the emulator ------------------------------------------------------------------------------------------

VALUES = st.one_of(
    JSON, any_texts(), st.lists(any_texts(), max_size=12), st.sampled_from(["text-embedding-v4", "dense&sparse"])
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Requests from right to nonsense."""
    native = {
        "model": "text-embedding-v4",
        "input": {"texts": draw(st.lists(st.text(st.characters(), max_size=20), max_size=12))},
        "parameters": {"dimension": 64, "output_type": draw(st.sampled_from(["dense", "sparse", "dense&sparse"]))},
    }
    compatible = {"model": "text-embedding-v4", "input": draw(VALUES), "dimensions": 64, "encoding_format": "base64"}
    content = draw(spoilt(native) | spoilt(compatible) | JSON)
    body = written(content) if draw(st.booleans()) else draw(st.binary(max_size=50))
    keys = st.sampled_from(["Bearer sk-made-up", "bearer  x ", "Bearer", "Basic eA==", "Bearer é\udcff", ""])
    headers = {"authorization": draw(keys)} | draw(HEADERS)
    if draw(st.integers(0, 9)) == 0:
        headers["x-dashscope-async"] = "enable"
    path = draw(st.sampled_from([NATIVE_PATH, COMPATIBLE_PATH]) | st.text(max_size=5).map("/compatible-mode/".__add__))
    return Request(draw(st.sampled_from(["POST", "POST", "POST", "GET", "\udcff"])), path, headers, body)


@given(st.lists(requests(), min_size=1, max_size=3), st.booleans())
@examples(50)
def test_the_emulator_answers_any_request(asked: list[Request], key_required: bool) -> None:  # noqa: FBT001
    emulator = Emulator(key_required=key_required, requests_per_second=2)
    for request in asked:
        response = emulator.answer(request)
        assert isinstance(response, Response)
        content = json.loads(response.body)
        last = emulator.asked[-1]
        assert last.status == response.status
        if response.status == 200:
            rows = content["output"]["embeddings"] if last.protocol == "native" else content["data"]
            assert len(rows) == len(last.texts) > 0
            assert last.tokens > 0
        else:
            assert response.status in {400, 401, 403, 404, 429}
            assert content.get("code") or content["error"]["code"]
    assert emulator.requests == len(asked)


def test_the_emulator_answers_a_body_of_a_hundred_thousand_brackets() -> None:
    request = Request("POST", NATIVE_PATH, {"authorization": "Bearer x"}, b"[" * 100_000)
    assert Emulator().answer(request).status == 400


# --- files -------------------------------------------------------------------------------------------------

ENCODINGS = st.just("utf-8") | st.sampled_from(
    ["utf-16", "utf-32", "gbk", "gb18030", "big5", "shift_jis", "latin-1", "cp1252", "utf-7", "hz", "ascii", "idna"]
)
LINES = st.one_of(
    st.binary(max_size=60),
    st.lists(JSON.map(written) | st.binary(max_size=10), max_size=5).map(b"\n".join),
    st.lists(
        st.sampled_from(
            [b"text", b"id", b",", b"\t", b'"', b"\n", b"\r\n", b"\r", b"a", b"\xff", b"\x00", "中".encode()]
        ),
        max_size=30,
    ).map(lambda parts: b"text,id\n" + b"".join(parts)),
    st.just(b"[" * 30_000 + b"\n1"),
)


def read_all(folder: Path, body: bytes, form: sources.Format, options: InputOptions) -> list[Record]:
    path = folder / "file"
    path.write_bytes(body)
    return list(readers.read_records(sources.Source(str(path), form), options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@given(LINES, st.sampled_from(["txt", "jsonl", "json", "csv", "tsv"]), st.sampled_from([None, "id", "auto"]), ENCODINGS)
@examples(80)
def test_any_file_gives_records_or_is_refused_as_a_whole(
    folder: Path, body: bytes, form: sources.Format, wanted: str | None, encoding: str
) -> None:
    try:
        found = read_all(folder, body, form, InputOptions(id_field=wanted, encoding=encoding))
    except InvalidInput:
        # Of UTF-8 any bytes can be read, line by line; a mark goes before it.
        assert encoding != "utf-8" or body.startswith((b"\xff\xfe", b"\xfe\xff"))
        return
    for record in found:
        assert re.fullmatch(r".*file:\d+", record.place)
        assert record.problem is None or record.problem
        if form not in {"json", "jsonl"} and record.problem is None:
            assert isinstance(record.text, str)
            record.text.encode()
    if form in {"txt", "jsonl"} and encoding == "utf-8" and not any(record.affects_whole_file for record in found):
        unmarked = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
        assert len(found) == sum(not line.isspace() for line in unmarked.split("\n") if line)


@given(st.lists(st.tuples(any_texts(), any_texts()), max_size=6), st.sampled_from(["csv", "tsv", "jsonl"]), ENCODINGS)
@examples(60)
def test_what_was_written_is_read(
    folder: Path, pairs: list[tuple[str, str]], form: sources.Format, encoding: str
) -> None:
    file = io.StringIO(newline="")
    if form == "jsonl":
        file.write("".join(json.dumps({"text": text, "id": key}) + "\n" for text, key in pairs))
    else:
        rows = csv.writer(file, delimiter="\t" if form == "tsv" else ",", quoting=csv.QUOTE_ALL)
        rows.writerows([("id", "text"), *((key, text) for text, key in pairs)])
    body = b""
    with contextlib.suppress(UnicodeError):
        body = file.getvalue().encode(encoding)
    assume(body and encoding not in {"hz", "utf-7", "idna"} and "\0" not in file.getvalue())
    found = read_all(folder, body, form, InputOptions(id_field="id", encoding=encoding))
    assert [(record.text, record.id, record.problem) for record in found] == [(*pair, None) for pair in pairs]


@pytest.mark.parametrize("encoding", ["base64", "rot13", "\0"])
def test_an_encoding_that_is_none_of_texts_is_invalid_input(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(InvalidInput):
        read_all(tmp_path, b"a", "txt", InputOptions(encoding=encoding))


@given(st.data())
@examples(25)
def test_any_columns_of_parquet_give_a_record_a_row(folder: Path, data: st.DataObject) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    size = data.draw(st.integers(0, 3))

    def column(kinds: list[tuple[Any, st.SearchStrategy[Any]]]) -> Any:
        kind, values = data.draw(st.sampled_from(kinds))
        return pa.array(data.draw(st.lists(st.none() | values, min_size=size, max_size=size)), kind)

    kinds: list[tuple[Any, st.SearchStrategy[Any]]] = [
        (pa.string(), any_texts()),
        (pa.large_string(), any_texts()),
        (pa.binary(), st.binary(max_size=5)),
        (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
        (pa.float32(), st.floats(width=32)),
        (pa.bool_(), st.booleans()),
        (pa.list_(pa.string()), st.lists(any_texts(), max_size=2)),
        (pa.timestamp("ms"), st.datetimes()),
        (pa.dictionary(pa.int32(), pa.string()), any_texts()),
    ]
    table = pa.table({"text": column(kinds), "id": column(kinds)})
    file = io.BytesIO()
    pq.write_table(table, file)
    found = read_all(folder, file.getvalue(), "parquet", InputOptions(id_field="id"))
    assert [record.problem for record in found] == [None] * size
    expected = [(row["text"], row["id"]) for row in table.to_pylist()]
    assert repr([(record.text, record.id) for record in found]) == repr(expected)


@given(st.binary(max_size=80), st.sampled_from([b"", b"PAR1"]))
@examples(30)
def test_bytes_that_are_no_parquet_are_refused(folder: Path, body: bytes, mark: bytes) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_all(folder, mark + body + mark, "parquet", InputOptions())


@pytest.mark.parametrize("case", ["two columns", "date"])
def test_a_parquet_file_that_python_cannot_hold_is_invalid_input_or_a_problem(tmp_path: Path, case: str) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    one, late = pa.array(["a"]), pa.array([2**30], pa.date32())
    table = pa.table([one, one], names=["text", "text"]) if case == "two columns" else pa.table({"text": late})
    file = io.BytesIO()
    pq.write_table(table, file)
    try:
        (record,) = read_all(tmp_path, file.getvalue(), "parquet", InputOptions())
    except InvalidInput:
        return
    assert record.problem
