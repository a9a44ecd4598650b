"""Faults of real connections: no fake transport, but a listening socket that misbehaves. Pauses take no time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import socketserver
import ssl
import struct
import subprocess
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from both import KEY, Async, FakeClock, Sync
from faulttable import FAULTS, RETRIES, Case, Often, Recovers

from dashscope_embeddings import BadRequestError, ConnectionFailed, DashScopeError, EmbeddingClient
from dashscope_embeddings.emulator import Emulator, faults
from dashscope_embeddings.emulator.messages import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dashscope_embeddings import Embeddings

WAYS = pytest.mark.parametrize("way", [Sync(), Async()], ids=["sync", "async"])
TEXTS = [f"paragraph {n}" for n in range(12)]
"""Two requests, of which the second is struck."""
TIMEOUT = 0.4
"""Seconds of real time, where a reply that never comes is waited for; elsewhere nobody waits so long."""
PATIENT = 20.0


class Healing(FakeClock):
    """Time passes at once, and something happens in the first pause."""

    def __init__(self, heal: Callable[[], object]) -> None:
        super().__init__()
        self._heal = heal

    def wait(self, halt: threading.Event, seconds: float) -> bool:
        if not self.waits:
            self._heal()
        return super().wait(halt, seconds)

    async def await_(self, halt: asyncio.Event, seconds: float) -> bool:
        if not self.waits:
            self._heal()
        return await super().await_(halt, seconds)


def client_at(url: str, clock: FakeClock | None = None, **settings: Any) -> EmbeddingClient:
    """One request after the other, so that the second is the second."""
    settings = {"dimensions": 64, "max_concurrency": 1, "max_retries": RETRIES, "timeout": PATIENT, **settings}
    client = EmbeddingClient(api_key=KEY, base_url=url, **settings)
    client._sessions.clock = clock or FakeClock()  # type: ignore[assignment]
    return client


def embed(way: Sync | Async, client: EmbeddingClient, texts: list[str]) -> Embeddings:
    with contextlib.closing(client):
        return way.embed(client, texts)


def refused(way: Sync | Async, client: EmbeddingClient, texts: list[str]) -> DashScopeError:
    with pytest.raises(DashScopeError) as caught:
        embed(way, client, texts)
    assert KEY not in str(caught.value) + repr(caught.value)
    return caught.value


def right(emulator: Emulator, texts: list[str]) -> list[list[float]]:
    return [emulator.dense(text, dimension=64) for text in texts]


# --- the emulator's own faults, through its server ---------------------------------------------------------

_STALLS = {"stalled before the head", "stalled in the body", "slower than the timeout"}
_IN_THE_TABLE = [
    "reset before the work",
    "reset after the work",
    "closed before the work",
    "closed after the work",
    "closed within the body",
    *sorted(_STALLS),
    "half a body",
    "garbage",
    "200 without a body",
    "bytes after the JSON",
    "gzip, cut off",
    "gzip, corrupt",
    "gzip",
    "no content type",
    "429 with Retry-After",
    "429 without a body",
    "503, HTML",
    "redirect to another host",
]
_BY_NAME = {case.name: case for case in FAULTS}


@WAYS
@pytest.mark.parametrize("often", ["once", "always"])
@pytest.mark.parametrize("case", [_BY_NAME[name] for name in _IN_THE_TABLE], ids=lambda case: case.name)
def test_on_a_socket_the_table_holds_too(case: Case, often: Often, way: Sync | Async, emulator: Emulator) -> None:
    fault = replace(case.fault, after=1, times=1 if often == "once" else 10_000)
    if case.name == "slower than the timeout":
        fault = faults.Slow(60, after=1, times=fault.times)
    emulator.faults, expected = [fault], case.fate(often, "dense")
    settings: dict[str, Any] = {"timeout": TIMEOUT, "max_retries": 1} if case.name in _STALLS else {}
    with emulator.serve() as server:
        client = client_at(server.url, **settings)
        if isinstance(expected, Recovers):
            assert embed(way, client, TEXTS).dense == right(emulator, TEXTS)
            assert emulator.requests == 2 + expected.extra_requests
            assert emulator.billed_texts == 12 + (2 if expected.rebilled else 0)
            return
        error = refused(way, client, TEXTS)
    assert type(error) is expected.error
    assert (error.request_id is not None) == expected.request_id
    assert [error.partial[index] for index in range(10)] == right(emulator, TEXTS[:10])
    assert error.failed == [10, 11]
    if expected.tries is not None:
        tries = 2 if case.name in _STALLS else expected.tries
        assert emulator.requests == 1 + tries
        assert emulator.billed_texts == 10 + (2 * tries if expected.rebilled else 0)


# --- a server that breaks connections ----------------------------------------------------------------------


def reset(connection: socket.socket) -> None:
    """Closes without a farewell: what was sent and not yet read is lost too."""
    linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()


def read_request(connection: socket.socket, most: int | None = None) -> Request | None:
    """A request, or as much of it as `most`, which is nothing to answer."""
    seen = b""
    while b"\r\n\r\n" not in seen or len(seen) < _whole(seen):
        if most is not None and len(seen) >= most:
            return None
        if not (more := connection.recv(65_536 if most is None else most)):
            return None
        seen += more
    head, _, body = seen.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    named = (line.partition(":") for line in lines)
    return Request(method, path, {name.lower(): value.strip() for name, _, value in named}, body)


def _whole(seen: bytes) -> int:
    head, _, _ = seen.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return len(head) + 4 + int(lengths[0].split(b":")[1])


@dataclass
class Door:
    """A port that treats the connections it is told to badly, and leads to an emulator otherwise."""

    emulator: Emulator
    fault: Callable[[Door, socket.socket], None]
    """What becomes of a struck connection."""
    struck: range = field(default_factory=lambda: range(0))
    """Numbers of connections, from 0."""
    connections: int = 0
    trouble: list[Exception] = field(default_factory=list)

    def serve(self, connection: socket.socket) -> None:
        number, self.connections = self.connections, self.connections + 1
        try:
            # A client that gives up is none of its errors.
            with connection, contextlib.suppress(OSError):
                self.fault(self, connection) if number in self.struck else self.answer(connection)
        except Exception as error:  # noqa: BLE001 - in a thread; told where the door is closed
            self.trouble.append(error)

    def answer(self, connection: socket.socket) -> None:
        if (request := read_request(connection)) is not None:
            connection.sendall(self.reply(request))

    def reply(self, request: Request) -> bytes:
        response = self.emulator.answer(request)
        lines = [f"HTTP/1.1 {response.status} OK", "connection: close", f"content-length: {len(response.body)}"]
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + response.body


@contextlib.contextmanager
def opened(door: Door) -> Iterator[str]:
    """Serves a door on 127.0.0.1; gives its address."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            door.serve(self.request)

    class Listening(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def shutdown_request(self, request: Any) -> None:
            """Else a reset would be preceded by a farewell."""
            request.close()

    with Listening(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
    assert door.trouble == []


def _nothing_read(_: Door, connection: socket.socket) -> None:
    reset(connection)


def _reset_in_the_head(_: Door, connection: socket.socket) -> None:
    read_request(connection, most=20)
    reset(connection)


def _reset_in_the_body(_: Door, connection: socket.socket) -> None:
    read_request(connection, most=400)
    reset(connection)


def _reset_after_reading(_: Door, connection: socket.socket) -> None:
    read_request(connection)
    reset(connection)


def _reset_after_the_work(door: Door, connection: socket.socket) -> None:
    if (request := read_request(connection)) is not None:
        door.reply(request)
    reset(connection)


def _closed_at_once(_: Door, connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)
    read_request(connection)


def _closed_after_reading(_: Door, connection: socket.socket) -> None:
    read_request(connection)


def _reset_in_the_reply(door: Door, connection: socket.socket) -> None:
    if (request := read_request(connection)) is not None:
        connection.sendall(door.reply(request)[:300])
    reset(connection)


def _closed_in_the_reply_head(door: Door, connection: socket.socket) -> None:
    if (request := read_request(connection)) is not None:
        connection.sendall(door.reply(request)[:30])


def _no_http(_: Door, connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"220 mail.example ESMTP\r\n")


def _a_drop_at_a_time(door: Door, connection: socket.socket) -> None:
    if (request := read_request(connection)) is not None:
        for byte in door.reply(request)[:40]:
            connection.sendall(bytes([byte]))


DOORS: list[tuple[Callable[[Door, socket.socket], None], int]] = [
    # what becomes of the connection, texts billed for each try
    (_nothing_read, 0),
    (_reset_in_the_head, 0),
    (_reset_in_the_body, 0),
    (_reset_after_reading, 0),
    (_reset_after_the_work, 2),
    (_closed_at_once, 0),
    (_closed_after_reading, 0),
    (_reset_in_the_reply, 2),
    (_closed_in_the_reply_head, 2),
    (_a_drop_at_a_time, 2),
    (_no_http, 0),
]
doors = pytest.mark.parametrize(("fault", "billed"), DOORS, ids=lambda value: getattr(value, "__name__", ""))


@WAYS
@doors
def test_a_connection_that_breaks_once_costs_one_more_request(
    fault: Callable[[Door, socket.socket], None], billed: int, way: Sync | Async, emulator: Emulator
) -> None:
    door = Door(emulator, fault, range(1, 2))
    with opened(door) as url:
        found = embed(way, client_at(url), TEXTS)
    assert found.dense == right(emulator, TEXTS)
    assert door.connections == 3
    assert emulator.billed_texts == 12 + billed
    assert (found.usage.requests, found.usage.texts) == (2, 12)


@WAYS
@doors
def test_connections_that_always_break_end_in_one_error_with_what_arrived(
    fault: Callable[[Door, socket.socket], None], billed: int, way: Sync | Async, emulator: Emulator
) -> None:
    door = Door(emulator, fault, range(1, 100))
    with opened(door) as url:
        error = refused(way, client_at(url), TEXTS)
    assert type(error) is ConnectionFailed
    assert error.partial == dict(enumerate(right(emulator, TEXTS[:10])))
    assert error.failed == [10, 11]
    assert error.request_id is None
    assert door.connections == 1 + RETRIES + 1
    assert emulator.billed_texts == 10 + billed * (RETRIES + 1)


@WAYS
def test_a_kept_connection_that_was_closed_meanwhile_is_none_of_the_callers_business(
    way: Sync | Async, emulator: Emulator
) -> None:
    def one_answer(door: Door, connection: socket.socket) -> None:
        """Promises to go on, and does not."""
        if (request := read_request(connection)) is not None:
            connection.sendall(door.reply(request).replace(b"connection: close\r\n", b""))

    door = Door(emulator, one_answer, range(100))
    with opened(door) as url:
        assert embed(way, client_at(url), TEXTS).dense == right(emulator, TEXTS)
    assert emulator.billed_texts == 12


# --- nobody there ------------------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@WAYS
def test_a_refused_connection_is_tried_again(way: Sync | Async, emulator: Emulator) -> None:
    port, started = _free_port(), contextlib.ExitStack()
    with started:
        clock = Healing(lambda: started.enter_context(emulator.serve(port)))
        client = client_at(f"http://127.0.0.1:{port}", clock)
        assert embed(way, client, TEXTS).dense == right(emulator, TEXTS)
        assert len(clock.waits) == 1
    assert (emulator.requests, emulator.billed_texts) == (2, 12)


@WAYS
def test_connections_that_are_always_refused_end_in_one_error(way: Sync | Async) -> None:
    clock = FakeClock()
    error = refused(way, client_at(f"http://127.0.0.1:{_free_port()}", clock), TEXTS)
    assert type(error) is ConnectionFailed
    assert (error.partial, error.failed, error.request_id) == ({}, list(range(12)), None)
    assert len(clock.waits) == RETRIES


@WAYS
def test_a_name_that_is_not_found_at_first_is_looked_up_again(
    way: Sync | Async, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, asked = socket.getaddrinfo, list[object]()

    def failing_once(host: Any, *how: Any, **more: Any) -> Any:
        asked.append(host)
        if len(asked) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return look_up("127.0.0.1", *how, **more)

    clock = FakeClock()
    with emulator.serve() as server:
        monkeypatch.setattr(socket, "getaddrinfo", failing_once)
        client = client_at(server.url.replace("127.0.0.1", "localhost"), clock)
        assert embed(way, client, TEXTS).dense == right(emulator, TEXTS)
    assert asked
    assert len(clock.waits) == 1
    assert (emulator.requests, emulator.billed_texts) == (2, 12)


@WAYS
def test_a_name_that_does_not_exist_ends_in_one_error(way: Sync | Async) -> None:
    error = refused(way, client_at("https://nowhere.invalid", max_retries=0), TEXTS)
    assert type(error) is ConnectionFailed
    assert "nowhere.invalid" in str(error)
    assert error.failed == list(range(12))


@pytest.mark.parametrize("host", ["dashscope..example", f"{'a' * 64}.example"])
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(Sync(), id="sync"),
        pytest.param(Async(), id="async"),
    ],
)
def test_a_name_that_cannot_exist_is_no_other_kind_of_error(way: Sync | Async, host: str) -> None:
    with pytest.raises(DashScopeError):
        embed(way, client_at(f"https://{host}", max_retries=0), TEXTS)


# --- TLS ---------------------------------------------------------------------------------------------------


@WAYS
def test_a_port_that_does_not_speak_tls_ends_in_one_error(way: Sync | Async, emulator: Emulator) -> None:
    with emulator.serve() as server:
        clock = FakeClock()
        error = refused(way, client_at(server.url.replace("http:", "https:"), clock), TEXTS)
    assert type(error) is ConnectionFailed
    assert error.failed == list(range(12))
    assert len(clock.waits) == RETRIES
    assert emulator.requests == 0


@pytest.fixture(scope="session")
def self_signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody vouches for, and its key, in one file."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate, both = folder / "key.pem", folder / "certificate.pem", folder / "both.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-days", "2", "-keyout", str(key), "-out", str(certificate)]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = [openssl, "req", "-x509", *kind, *subject]
    made = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - a fixed command
    if made.returncode:
        pytest.skip("this openssl command makes no certificate")
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    return both


@WAYS
def test_a_certificate_that_nobody_vouches_for_is_not_asked_again_and_sees_no_key(
    way: Sync | Async, emulator: Emulator, self_signed: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed)

    def secure(door: Door, connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            door.answer(wrapped)

    door = Door(emulator, secure, range(100))
    clock = FakeClock()
    with opened(door) as url:
        error = refused(way, client_at(url.replace("http:", "https:"), clock), TEXTS)
    assert type(error) is ConnectionFailed
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)
    assert error.failed == list(range(12))
    assert (door.connections, len(clock.waits)) == (1, 0)
    assert (emulator.requests, emulator.keys_seen) == (0, frozenset())


# --- another place -----------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("whose", ["own", "given"])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_another_host_is_not_followed_and_the_key_not_sent_there(
    status: int, whose: str, way: Sync | Async, emulator: Emulator
) -> None:
    """Nor by a client of the user's that follows redirects elsewhere."""
    other = Emulator(key_required=False)
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(other.serve()).url.replace("127.0.0.1", "localhost")
        place = f"{there}/api/v1/services/embeddings/text-embedding/text-embedding"
        emulator.faults = [faults.Redirect(place, status, every=1)]
        here = stack.enter_context(emulator.serve()).url
        given: dict[str, Any] = {}
        if whose == "given" and isinstance(way, Sync):
            given["http_client"] = stack.enter_context(httpx.Client(follow_redirects=True))
        if whose == "given" and isinstance(way, Async):
            error = asyncio.run(_refused_on_a_given_client(here))
        else:
            error = refused(way, client_at(here, **given), TEXTS)
    assert isinstance(error, BadRequestError)
    assert (error.status, error.failed) == (status, list(range(12)))
    assert error.request_id == emulator.asked[0].request_id
    assert emulator.requests == 1
    assert (other.requests, other.keys_seen) == (0, frozenset())


async def _refused_on_a_given_client(url: str) -> DashScopeError:
    """On the loop that the client belongs to."""
    async with httpx.AsyncClient(follow_redirects=True) as given:
        with pytest.raises(DashScopeError) as caught:
            await client_at(url, http_async_client=given).aembed(TEXTS)
    return caught.value
