"""A stand-in for the service that costs as little as can be: `python server.py` prints its address.

Unlike the package's emulator it means nothing and checks little; it is there to be fast. Rows are rendered
ahead; of a reply only the marks of its texts are made when it is asked for. Without network beyond 127.0.0.1.

`POST /control` with a JSON object of `Terms` begins a new measurement; `GET /control` reads its `Counters`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import math
import random
import sys
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from load import COMPATIBLE_PATH, DIMENSIONS, MARKS, PATH, ROWS, mark
from pydantic_core import from_json, to_json


@dataclass(frozen=True)
class Terms:
    """How the service behaves. Quotas hold in any window of one second, refused requests not counted."""

    latency: float = 0.0
    """Seconds from a request to its reply, refusals included."""
    requests_per_second: float = 0.0
    """0: no quota."""
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    throttled_share: float = 0.0
    """Share of requests refused at random, whatever the quota."""
    seed: int = 1


@dataclass
class Counters:
    """What was seen since the measurement began."""

    requests: int = 0
    answered: int = 0
    throttled: int = 0
    refused: int = 0
    """Replies other than 200 and 429."""
    texts: int = 0
    """Texts billed."""
    tokens: int = 0
    connections: int = 0
    """Open now."""
    peak_connections: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0


# --- replies -----------------------------------------------------------------------------------------------

_VARIANTS = 8
_ids = itertools.count()
"""Each reply has an id of its own: a client may doubt one that it saw before."""


class Answers:
    """Replies with vectors of about unit length, most of each rendered ahead."""

    def __init__(self) -> None:
        rng = random.Random(4)  # noqa: S311 - the same in every run
        self._tails = []
        for _ in range(_VARIANTS):
            floats = [rng.gauss(0.0, 1.0) for _ in range(DIMENSIONS - MARKS)]
            norm = math.hypot(*floats) * 1.00004  # leaves room for the marks
            self._tails.append(",".join(repr(x / norm) for x in floats).encode())

    def native(self, texts: list[str], role: str, tokens: int) -> bytes:
        """The body of the native protocol's reply."""
        rows = self._rows(texts, role, b',"text_index":%d}')
        end = b']},"usage":{"total_tokens":%d},"request_id":"1773f7b2-2148-9f74-b335-%012x"}'
        return b"".join([b'{"output":{"embeddings":[', *rows, end % (tokens, next(_ids))])

    def compatible(self, texts: list[str], tokens: int) -> bytes:
        """The body of the compatible protocol's reply, which knows no roles; floats, as its page says."""
        rows = self._rows(texts, "document", b',"index":%d,"object":"embedding"}')
        end = (
            b'],"model":"text-embedding-v4","object":"list","usage":{"prompt_tokens":%d,"total_tokens":%d},'
            b'"id":"73591b79-d194-9bca-8bb5-%012x"}'
        )
        return b"".join([b'{"data":[', *rows, end % (tokens, tokens, next(_ids))])

    def _rows(self, texts: list[str], role: str, end: bytes) -> list[bytes]:
        parts = []
        for index, text in enumerate(texts):
            marks = ",".join(mark(text, role)).encode()
            tail = self._tails[marks[-1] % _VARIANTS]
            parts += [b'{"embedding":[', marks, b",", tail, b"]", end % index, b","]
        return parts[:-1]


def billed(text: str) -> int:
    """Tokens of a text: four for three words, which is not what a client would guess from its characters."""
    return len(text.split()) * 4 // 3 + 1


_TOO_MANY_REQUESTS = ("Throttling.RateQuota", "Requests rate limit exceeded, please try again later.")
_TOO_MANY_TOKENS = (
    "Throttling.AllocationQuota",
    "Allocated quota exceeded, please increase your quota limit.",
)


class Service:
    """Quotas, counters and replies; knows no sockets."""

    def __init__(self) -> None:
        self._answers = Answers()
        self.counters = Counters()
        self.begin(Terms())

    def begin(self, terms: Terms) -> None:
        """Forgets the past, but for the connections that are open and the requests that are under way."""
        self.terms = terms
        connections, in_flight = self.counters.connections, self.counters.in_flight
        self.counters = Counters(
            connections=connections,
            peak_connections=connections,
            in_flight=in_flight,
            peak_in_flight=in_flight,
        )
        rates = [rate for rate in (terms.requests_per_second, terms.requests_per_minute / 60.0) if rate]
        self._requests_a_second = min(rates, default=math.inf)
        self._tokens_a_second = terms.tokens_per_minute / 60.0 or math.inf
        self._window: deque[tuple[float, int]] = deque()
        self._window_tokens = 0
        self._random = random.Random(terms.seed)  # noqa: S311 - to be the same in every run

    def answer(self, path: str, body: bytes, now: float) -> tuple[int, bytes]:
        """Status and body of the reply to a request that arrived now."""
        self.counters.requests += 1
        content: Any = from_json(body)
        native = path == PATH
        texts = content["input"]["texts"] if native else content["input"]
        texts = [texts] if isinstance(texts, str) else texts
        parameters = content.get("parameters") or {}
        if error := _complaint(path, texts, parameters, content):
            self.counters.refused += 1
            return HTTPStatus.BAD_REQUEST, _refusal(native=native, code="InvalidParameter", message=error)
        tokens = sum(map(billed, texts))
        if throttle := self._throttle(tokens, now):
            self.counters.throttled += 1
            return HTTPStatus.TOO_MANY_REQUESTS, _throttled(throttle, native=native)
        self.counters.answered += 1
        self.counters.texts += len(texts)
        self.counters.tokens += tokens
        if native:
            return HTTPStatus.OK, self._answers.native(texts, parameters.get("text_type", "document"), tokens)
        return HTTPStatus.OK, self._answers.compatible(texts, tokens)

    def _throttle(self, tokens: int, now: float) -> tuple[str, str] | None:
        """Why the request is throttled; None: it is not, and counts."""
        while self._window and self._window[0][0] <= now - 1.0:
            self._window_tokens -= self._window.popleft()[1]
        if self.terms.throttled_share and self._random.random() < self.terms.throttled_share:
            return _TOO_MANY_REQUESTS
        if len(self._window) + 1 > self._requests_a_second:
            return _TOO_MANY_REQUESTS
        if self._window_tokens + tokens > self._tokens_a_second:
            return _TOO_MANY_TOKENS
        self._window.append((now, tokens))
        self._window_tokens += tokens
        return None

    def control(self, method: str, body: bytes) -> bytes:
        """Begins a measurement or tells of it."""
        if method == "POST":
            self.begin(Terms(**from_json(body)))
        return to_json(dataclasses.asdict(self.counters))


def _complaint(path: str, texts: Any, parameters: dict[str, Any], content: dict[str, Any]) -> str | None:
    """What this server does not answer; better refused than answered wrongly."""
    if path not in {PATH, COMPATIBLE_PATH}:
        return "url error, please check url!"
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        return "Value error, contents is neither str nor list of str.: input.contents"
    if not 0 < len(texts) <= ROWS:
        return f"Value error, batch size is invalid, it should not be larger than {ROWS}.: input.contents"
    dimension = parameters.get("dimension") or content.get("dimensions") or DIMENSIONS
    if dimension != DIMENSIONS or parameters.get("output_type", "dense") != "dense":
        return f"This server of the benchmarks knows dense vectors of {DIMENSIONS} floats only."
    return None


def _refusal(*, native: bool, code: str, message: str) -> bytes:
    if native:
        return to_json({"code": code, "message": message, "request_id": f"a1c0561c-{next(_ids):x}"})
    inner = {"message": message, "type": code, "param": None, "code": code}
    return to_json({"error": inner, "request_id": f"a1c0561c-{next(_ids):x}"})


def _throttled(reason: tuple[str, str], *, native: bool) -> bytes:
    code, message = reason
    if not native:
        requests = reason is _TOO_MANY_REQUESTS
        code = "limit_requests" if requests else "insufficient_quota"
        thing = "requests list" if requests else "quota, check your plan and billing details"
        message = f"You exceeded your current {thing}."
    return _refusal(native=native, code=code, message=message)


# --- the wire ----------------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """One kept-alive HTTP/1.1 connection; requests carry a length, one at a time."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._buffer = bytearray()
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        counters = self._service.counters
        counters.connections += 1
        counters.peak_connections = max(counters.peak_connections, counters.connections)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._service.counters.connections -= 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end == -1:
            return
        head = self._buffer[:end].decode("latin-1")
        size = _content_length(head)
        if len(self._buffer) < end + 4 + size:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + size])
        del self._buffer[: end + 4 + size]
        method, path, _ = head.split(" ", 2)
        if path == "/control":
            self._reply(HTTPStatus.OK, self._service.control(method, body))
            return
        counters = self._service.counters
        counters.in_flight += 1
        counters.peak_in_flight = max(counters.peak_in_flight, counters.in_flight)
        status, reply = self._service.answer(path, body, self._loop.time())
        if self._service.terms.latency:
            self._loop.call_later(self._service.terms.latency, self._finish, status, reply)
        else:
            self._finish(status, reply)

    def _finish(self, status: int, body: bytes) -> None:
        self._service.counters.in_flight -= 1
        self._reply(status, body)

    def _reply(self, status: int, body: bytes) -> None:
        if self._transport.is_closing():
            return
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + body)


def _content_length(head: str) -> int:
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            return int(value)
    return 0


async def main() -> None:
    """Serves on a free port until killed, or until whoever holds the other end of its input is gone."""
    service = Service()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(service), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sys.stdout.write(f"http://127.0.0.1:{port}\n")
    sys.stdout.flush()
    if "--until-eof" in sys.argv:
        await asyncio.to_thread(sys.stdin.read)
    else:
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
