"""A stand-in for the service that costs as little as can be: `python server.py` prints its address.

Unlike the package's emulator it means nothing and checks little; it is there to be fast. Rows are rendered
ahead; of a reply only the marks of its texts are made when it is asked for. Without network beyond 127.0.0.1.

`POST /control` with a JSON object of `Terms` begins a new measurement; `GET /control` reads its `Counters`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import sys
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from answers import Answers, billed, complaint_about, refusal, throttled
from load import PATH
from pydantic_core import from_json, to_json
from terms import Counters, Terms

if TYPE_CHECKING:
    from collections.abc import Callable

    from service_shapes import Service, Work


@dataclass(slots=True)
class Request:
    """What was asked, and what becomes of it."""

    native: bool
    texts: list[str]
    role: str
    tokens: int
    service: Service
    counters: Counters
    """Both of the measurement in which it arrived: the client of the one before may have been killed."""
    work: Work | None = None


class Measurement:
    """Terms, counters and replies of one measurement after the other; knows no sockets."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._answers, self._clock = Answers(), clock
        self.counters = Counters()
        self.begin(Terms())

    def begin(self, terms: Terms) -> None:
        """Forgets the past, but for the requests that are under way."""
        in_flight = self.counters.in_flight
        self.counters = Counters(in_flight=in_flight, peak_in_flight=in_flight)
        self.one_way_seconds, self.handshake_seconds = terms.network_seconds
        self._random = random.Random(terms.seed)  # noqa: S311 - no secret
        self._reversed_every = terms.reversed_every
        self._service, self._began = terms.service(), self._clock()
        self._counts_tokens = bool(getattr(self._service.quota, "counts_tokens", False))

    def receive(self, path: str, body: bytes) -> Request | bytes:
        """The request; the body of a refusal if it is none that this server answers."""
        self.counters.requests += 1
        content: Any = from_json(body)
        native = path == PATH
        texts = content["input"]["texts"] if native else content["input"]
        texts = [texts] if isinstance(texts, str) else texts
        parameters = content.get("parameters") or {}
        if error := complaint_about(path, texts, parameters, content):
            self.counters.refused += 1
            return refusal(native=native, code="InvalidParameter", message=error)
        role = parameters.get("text_type", "document")
        return Request(native, texts, role, sum(map(billed, texts)), self._service, self.counters)

    def connect_seconds(self) -> float:
        """What a new connection costs."""
        return 2.0 * self.one_way_seconds + self.handshake_seconds * self._random.random()

    def arrive(self, request: Request) -> float:
        """Seconds until its reply is ready."""
        request.work = request.service.arrive(self._clock() - self._began, request.tokens)
        return request.work.seconds

    def answer(self, request: Request) -> tuple[int, bytes]:
        """Status and body of its reply."""
        assert request.work is not None
        if not request.service.answer(request.work, self._clock() - self._began):
            request.counters.throttled += 1
            return HTTPStatus.TOO_MANY_REQUESTS, throttled(of_tokens=self._counts_tokens, native=request.native)
        request.counters.answered += 1
        request.counters.texts += len(request.texts)
        request.counters.tokens += request.tokens
        if request.native:
            in_reverse = self._reversed_every > 0 and request.counters.answered % self._reversed_every == 0
            body = self._answers.native(request.texts, request.role, request.tokens, in_reverse=in_reverse)
            return HTTPStatus.OK, body
        return HTTPStatus.OK, self._answers.compatible(request.texts, request.tokens)

    def control(self, method: str, body: bytes) -> bytes:
        """Begins a measurement or tells of it."""
        if method == "POST":
            self.begin(Terms(**from_json(body)))
        return to_json(dataclasses.asdict(self.counters))


# --- the wire ----------------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """One kept-alive HTTP/1.1 connection; requests carry a length, one at a time."""

    def __init__(self, measurement: Measurement) -> None:
        self._measurement = measurement
        self._buffer = bytearray()
        self._is_new = True
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

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
            self._reply(HTTPStatus.OK, self._measurement.control(method, body))
        elif method != "POST":
            # Among others the page of the account's quotas, which not every service has.
            self._reply(HTTPStatus.NOT_FOUND, refusal(native=True, code="NotFound", message="no such page"))
        else:
            self._receive(path, body)

    def _receive(self, path: str, body: bytes) -> None:
        request = self._measurement.receive(path, body)
        if isinstance(request, bytes):
            self._reply(HTTPStatus.BAD_REQUEST, request)
            return
        counters = self._measurement.counters
        counters.in_flight += 1
        counters.peak_in_flight = max(counters.peak_in_flight, counters.in_flight)
        connecting, self._is_new = self._measurement.connect_seconds() if self._is_new else 0.0, False
        self._later(self._measurement.one_way_seconds + connecting, self._arrive, request)

    def _arrive(self, request: Request) -> None:
        self._later(self._measurement.arrive(request), self._leave, request)

    def _leave(self, request: Request) -> None:
        status, body = self._measurement.answer(request)
        self._later(self._measurement.one_way_seconds, self._finish, request.service, status, body)

    def _finish(self, service: Service, status: int, body: bytes) -> None:
        self._measurement.counters.in_flight -= 1
        hint = service.retry_after if status == HTTPStatus.TOO_MANY_REQUESTS else None
        self._reply(status, body, "" if hint is None else f"Retry-After: {hint:g}\r\n")

    def _later(self, seconds: float, action: Callable[..., None], *arguments: object) -> None:
        if seconds:
            self._loop.call_later(seconds, action, *arguments)
        else:
            action(*arguments)

    def _reply(self, status: int, body: bytes, header: str = "") -> None:
        if self._transport.is_closing():
            return
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n{header}"
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
    loop = asyncio.get_running_loop()
    measurement = Measurement(loop.time)
    server = await loop.create_server(lambda: Connection(measurement), "127.0.0.1", 0)
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
