"""Faults of real connections: no fake transport, but a listening socket that misbehaves. Pauses take no time."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import KEY, AsyncCalls, FakeClock, SyncCalls
from fault_cases import FAULTS, MAX_RETRIES, Case, Occurrence, Recovers
from faulty_server import FaultyServer, read_request, reset, serving

from dashscope_embeddings import BadRequestError, ConnectionFailed, DashScopeError, EmbeddingClient
from dashscope_embeddings.emulator import Emulator, faults

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

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


def _nothing_read(_: FaultyServer, __: socket.socket) -> None:
    """The request is refused unread."""


def _read_in_part(_: FaultyServer, connection: socket.socket) -> None:
    read_request(connection, most=400)


def _read(_: FaultyServer, connection: socket.socket) -> None:
    read_request(connection)


def _answered_not_sent(server: FaultyServer, connection: socket.socket) -> None:
    _reply(server, connection, 0)


def _head_in_part(server: FaultyServer, connection: socket.socket) -> None:
    _reply(server, connection, 30)


def _body_in_part(server: FaultyServer, connection: socket.socket) -> None:
    _reply(server, connection, 300)


def _no_http(_: FaultyServer, connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"220 mail.example ESMTP\r\n")


def _reply(server: FaultyServer, connection: socket.socket, most: int) -> None:
    if (request := read_request(connection)) is not None:
        for byte in server.reply(request)[:most]:
            connection.sendall(bytes([byte]))


CONNECTION_FAULTS: list[tuple[Callable[[FaultyServer, socket.socket], None], int]] = [
    # what happens before the connection ends, texts billed for each try
    (_nothing_read, 0),
    (_read_in_part, 0),
    (_read, 0),
    (_answered_not_sent, 2),
    (_head_in_part, 2),
    (_body_in_part, 2),
    (_no_http, 0),
]


@WAYS
@pytest.mark.parametrize("end", ["reset", "closed"])
@pytest.mark.parametrize("often", ["once", "always"])
@pytest.mark.parametrize("case", CONNECTION_FAULTS, ids=lambda case: case[0].__name__)
def test_a_connection_that_breaks_costs_one_more_request_or_ends_in_one_error_with_what_arrived(
    case: tuple[Callable[[FaultyServer, socket.socket], None], int],
    often: Occurrence,
    end: str,
    way: SyncCalls | AsyncCalls,
    emulator: Emulator,
) -> None:
    fault, billed = case

    def break_off(server: FaultyServer, connection: socket.socket) -> None:
        fault(server, connection)
        if end == "reset":
            reset(connection)

    server = FaultyServer(emulator, break_off, range(1, 2 if often == "once" else 100))
    with serving(server) as url:
        if often == "once":
            found = embed(way, client_at(url), TEXTS)
            assert found.dense == right(emulator, TEXTS)
            assert (server.connections, emulator.billed_texts) == (3, 12 + billed)
            assert (found.usage.requests, found.usage.texts) == (2, 12)
            return
        error = refused(way, client_at(url), TEXTS)
    assert type(error) is ConnectionFailed
    assert error.partial == dict(enumerate(right(emulator, TEXTS[:10])))
    assert (error.failed, error.request_id) == ([10, 11], None)
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
    assert f"[Errno {errno.ECONNREFUSED}]" in str(error)
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
@pytest.mark.parametrize("host", ["nowhere.invalid", "dashscope..example", f"{'a' * 64}.example"])
def test_a_name_that_does_not_or_cannot_exist_ends_in_one_error(way: SyncCalls | AsyncCalls, host: str) -> None:
    with pytest.raises(DashScopeError) as caught:
        embed(way, client_at(f"https://{host}", max_retries=0), TEXTS)
    if host == "nowhere.invalid":
        assert type(caught.value) is ConnectionFailed
        assert host in str(caught.value)
        assert caught.value.failed == list(range(12))


@WAYS
def test_too_many_open_files_are_no_fault_of_the_network(
    way: SyncCalls | AsyncCalls, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with emulator.serve() as server, monkeypatch.context() as patched:
        patched.setattr(socket.socket, "connect", connect)
        error = refused(way, client_at(server.url), TEXTS)
    assert "as many open files as it may have: raise the limit (ulimit -n), or set max_concurrency" in str(error)


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


# --- another place -----------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_another_host_is_not_followed_and_the_key_not_sent_there(
    status: int, way: SyncCalls | AsyncCalls, emulator: Emulator
) -> None:
    other = Emulator(key_required=False)
    with other.serve() as there, emulator.serve() as here:
        place = (
            f"{there.url.replace('127.0.0.1', 'localhost')}/api/v1/services/embeddings/text-embedding/text-embedding"
        )
        emulator.faults = [faults.Redirect(place, status, every=1)]
        error = refused(way, client_at(here.url), TEXTS)
    assert isinstance(error, BadRequestError)
    assert (error.status, error.failed) == (status, list(range(12)))
    assert error.request_id == emulator.asked[0].request_id
    assert emulator.requests == 1
    assert (other.requests, other.keys_seen) == (0, frozenset())
