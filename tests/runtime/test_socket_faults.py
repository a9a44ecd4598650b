"""Faults of real connections: no fake transport, but a listening socket that misbehaves. Pauses take no time."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import KEY, AsyncCalls, FakeClock, SyncCalls
from fault_cases import FAULTS, MAX_RETRIES, Case, Occurrence, Recovers
from faulty_server import FaultyServer, read_request, reset, serving

from dashscope_embeddings import BadRequestError, ConnectionFailed, DashScopeError, EmbeddingClient
from dashscope_embeddings.emulator import Emulator, faults

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dashscope_embeddings import Embeddings

WAYS = pytest.mark.parametrize("way", [SyncCalls(), AsyncCalls()], ids=["sync", "async"])
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

    async def wait_async(self, halt: asyncio.Event, seconds: float) -> bool:
        if not self.waits:
            self._heal()
        return await super().wait_async(halt, seconds)


def client_at(url: str, clock: FakeClock | None = None, **settings: Any) -> EmbeddingClient:
    """One request after the other, so that the second is the second."""
    settings = {"dimensions": 64, "max_concurrency": 1, "max_retries": MAX_RETRIES, "timeout": PATIENT, **settings}
    client = EmbeddingClient(api_key=KEY, base_url=url, **settings)
    client._transport.clock = clock or FakeClock()  # type: ignore[assignment]
    return client


def embed(way: SyncCalls | AsyncCalls, client: EmbeddingClient, texts: list[str]) -> Embeddings:
    with contextlib.closing(client):
        return way.embed(client, texts)


def refused(way: SyncCalls | AsyncCalls, client: EmbeddingClient, texts: list[str]) -> DashScopeError:
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
def test_on_a_socket_the_table_holds_too(
    case: Case, often: Occurrence, way: SyncCalls | AsyncCalls, emulator: Emulator
) -> None:
    fault = replace(case.fault, after=1, times=1 if often == "once" else 10_000)
    if case.name == "slower than the timeout":
        fault = faults.Slow(60, after=1, times=fault.times)
    emulator.faults, expected = [fault], case.expected(often, "dense")
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
    assert (error.request_id is not None) == expected.has_request_id
    assert [error.partial[index] for index in range(10)] == right(emulator, TEXTS[:10])
    assert error.failed == [10, 11]
    if expected.attempts is not None:
        tries = 2 if case.name in _STALLS else expected.attempts
        assert emulator.requests == 1 + tries
        assert emulator.billed_texts == 10 + (2 * tries if expected.rebilled else 0)


# --- a server that breaks connections ----------------------------------------------------------------------


def _nothing_read(_: FaultyServer, connection: socket.socket) -> None:
    reset(connection)


def _reset_in_the_head(_: FaultyServer, connection: socket.socket) -> None:
    read_request(connection, most=20)
    reset(connection)


def _reset_in_the_body(_: FaultyServer, connection: socket.socket) -> None:
    read_request(connection, most=400)
    reset(connection)


def _reset_after_reading(_: FaultyServer, connection: socket.socket) -> None:
    read_request(connection)
    reset(connection)


def _reset_after_the_work(server: FaultyServer, connection: socket.socket) -> None:
    if (request := read_request(connection)) is not None:
        server.reply(request)
    reset(connection)


def _closed_at_once(_: FaultyServer, connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)
    read_request(connection)


def _closed_after_reading(_: FaultyServer, connection: socket.socket) -> None:
    read_request(connection)


def _reset_in_the_reply(server: FaultyServer, connection: socket.socket) -> None:
    if (request := read_request(connection)) is not None:
        connection.sendall(server.reply(request)[:300])
    reset(connection)


def _closed_in_the_reply_head(server: FaultyServer, connection: socket.socket) -> None:
    if (request := read_request(connection)) is not None:
        connection.sendall(server.reply(request)[:30])


def _no_http(_: FaultyServer, connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"220 mail.example ESMTP\r\n")


def _a_drop_at_a_time(server: FaultyServer, connection: socket.socket) -> None:
    if (request := read_request(connection)) is not None:
        for byte in server.reply(request)[:40]:
            connection.sendall(bytes([byte]))


CONNECTION_FAULTS: list[tuple[Callable[[FaultyServer, socket.socket], None], int]] = [
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
every_fault = pytest.mark.parametrize(
    ("fault", "billed"), CONNECTION_FAULTS, ids=lambda value: getattr(value, "__name__", "")
)


@WAYS
@every_fault
def test_a_connection_that_breaks_once_costs_one_more_request(
    fault: Callable[[FaultyServer, socket.socket], None], billed: int, way: SyncCalls | AsyncCalls, emulator: Emulator
) -> None:
    server = FaultyServer(emulator, fault, range(1, 2))
    with serving(server) as url:
        found = embed(way, client_at(url), TEXTS)
    assert found.dense == right(emulator, TEXTS)
    assert server.connections == 3
    assert emulator.billed_texts == 12 + billed
    assert (found.usage.requests, found.usage.texts) == (2, 12)


@WAYS
@every_fault
def test_connections_that_always_break_end_in_one_error_with_what_arrived(
    fault: Callable[[FaultyServer, socket.socket], None], billed: int, way: SyncCalls | AsyncCalls, emulator: Emulator
) -> None:
    server = FaultyServer(emulator, fault, range(1, 100))
    with serving(server) as url:
        error = refused(way, client_at(url), TEXTS)
    assert type(error) is ConnectionFailed
    assert error.partial == dict(enumerate(right(emulator, TEXTS[:10])))
    assert error.failed == [10, 11]
    assert error.request_id is None
    assert server.connections == 1 + MAX_RETRIES + 1
    assert emulator.billed_texts == 10 + billed * (MAX_RETRIES + 1)


@WAYS
def test_a_kept_connection_that_was_closed_meanwhile_is_none_of_the_callers_business(
    way: SyncCalls | AsyncCalls, emulator: Emulator
) -> None:
    def one_answer(server: FaultyServer, connection: socket.socket) -> None:
        """Promises to go on, and does not."""
        if (request := read_request(connection)) is not None:
            connection.sendall(server.reply(request).replace(b"connection: close\r\n", b""))

    server = FaultyServer(emulator, one_answer, range(100))
    with serving(server) as url:
        assert embed(way, client_at(url), TEXTS).dense == right(emulator, TEXTS)
    assert emulator.billed_texts == 12


# --- nobody there ------------------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@WAYS
def test_a_refused_connection_is_tried_again(way: SyncCalls | AsyncCalls, emulator: Emulator) -> None:
    port, started = _free_port(), contextlib.ExitStack()
    with started:
        clock = Healing(lambda: started.enter_context(emulator.serve(port)))
        client = client_at(f"http://127.0.0.1:{port}", clock)
        assert embed(way, client, TEXTS).dense == right(emulator, TEXTS)
        assert len(clock.waits) == 1
    assert (emulator.requests, emulator.billed_texts) == (2, 12)


@WAYS
def test_connections_that_are_always_refused_end_in_one_error(way: SyncCalls | AsyncCalls) -> None:
    clock = FakeClock()
    error = refused(way, client_at(f"http://127.0.0.1:{_free_port()}", clock), TEXTS)
    assert type(error) is ConnectionFailed
    assert (error.partial, error.failed, error.request_id) == ({}, list(range(12)), None)
    assert len(clock.waits) == MAX_RETRIES


@WAYS
def test_a_name_that_is_not_found_at_first_is_looked_up_again(
    way: SyncCalls | AsyncCalls, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
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
def test_a_name_that_does_not_exist_ends_in_one_error(way: SyncCalls | AsyncCalls) -> None:
    error = refused(way, client_at("https://nowhere.invalid", max_retries=0), TEXTS)
    assert type(error) is ConnectionFailed
    assert "nowhere.invalid" in str(error)
    assert error.failed == list(range(12))


@pytest.mark.parametrize("host", ["dashscope..example", f"{'a' * 64}.example"])
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(SyncCalls(), id="sync"),
        pytest.param(AsyncCalls(), id="async"),
    ],
)
def test_a_name_that_cannot_exist_is_no_other_kind_of_error(way: SyncCalls | AsyncCalls, host: str) -> None:
    with pytest.raises(DashScopeError):
        embed(way, client_at(f"https://{host}", max_retries=0), TEXTS)


# --- TLS ---------------------------------------------------------------------------------------------------


@WAYS
def test_a_port_that_does_not_speak_tls_ends_in_one_error(way: SyncCalls | AsyncCalls, emulator: Emulator) -> None:
    with emulator.serve() as server:
        clock = FakeClock()
        error = refused(way, client_at(server.url.replace("http:", "https:"), clock), TEXTS)
    assert type(error) is ConnectionFailed
    assert error.failed == list(range(12))
    assert len(clock.waits) == MAX_RETRIES
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
    way: SyncCalls | AsyncCalls, emulator: Emulator, self_signed: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed)

    def secure(server: FaultyServer, connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            server.answer(wrapped)

    server = FaultyServer(emulator, secure, range(100))
    clock = FakeClock()
    with serving(server) as url:
        error = refused(way, client_at(url.replace("http:", "https:"), clock), TEXTS)
    assert type(error) is ConnectionFailed
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)
    assert error.failed == list(range(12))
    assert (server.connections, len(clock.waits)) == (1, 0)
    assert (emulator.requests, emulator.keys_seen) == (0, frozenset())


# --- another place -----------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("whose", ["own", "given"])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_another_host_is_not_followed_and_the_key_not_sent_there(
    status: int, whose: str, way: SyncCalls | AsyncCalls, emulator: Emulator
) -> None:
    """Nor by a client of the user's that follows redirects elsewhere."""
    other = Emulator(key_required=False)
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(other.serve()).url.replace("127.0.0.1", "localhost")
        place = f"{there}/api/v1/services/embeddings/text-embedding/text-embedding"
        emulator.faults = [faults.Redirect(place, status, every=1)]
        here = stack.enter_context(emulator.serve()).url
        given: dict[str, Any] = {}
        if whose == "given" and isinstance(way, SyncCalls):
            given["http_client"] = stack.enter_context(httpx.Client(follow_redirects=True))
        if whose == "given" and isinstance(way, AsyncCalls):
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
