"""The main thread sends a single request by itself; a signal handler runs while it waits, and breaks nothing."""

from __future__ import annotations

import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import KEY
from raw_server import good_reply, serve_raw, vector_of

from dashscope_embeddings import ConnectionFailed, EmbeddingClient, track_usage
from dashscope_embeddings._core.reply_reader import ReplyReader
from dashscope_embeddings._runtime import deferred_signals
from dashscope_embeddings._runtime.thread_pool import DaemonThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from raw_server import RawServer, ReceivedRequest

pytestmark = pytest.mark.skipif(not deferred_signals.IS_SUPPORTED, reason="this system's waits for sockets go on")
CALLS: dict[str, dict[str, Any]] = {
    "a query": {"texts": "a query", "text_type": "query"},
    "a document": {"texts": ["a document"]},
    "documents": {"texts": [f"text {i}" for i in range(10)]},
}
FIRST = {"a query": "a query", "a document": "a document", "documents": "text 0"}


class Service:
    """Answers at once; texts with "never" in them only when it is told to."""

    def __init__(self) -> None:
        self.stalled, self.released = threading.Semaphore(0), threading.Semaphore(0)
        self.texts: list[str] = []

    def __call__(self, asked: ReceivedRequest, connection: socket.socket) -> bytes:
        self.texts += asked.texts
        if any("never" in text for text in asked.texts):
            self.stalled.release()
            self.texts += [] if self.released.acquire(timeout=20) else ["nobody released it within 20 s"]
        if any("drip" in text for text in asked.texts):
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not self.released.acquire(timeout=0.02):
                connection.sendall(b"x: y\r\n")
        if any("stop reading" in text for text in asked.texts):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(good_reply(asked, f"id-{asked.number}"))
            connection.recv(1)
            self.stalled.release()
            self.texts += [] if self.released.acquire(timeout=5) else ["the client has waited for 5 s"]
        return good_reply(asked, f"id-{asked.number}")


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def server(service: Service) -> Iterator[RawServer]:
    with serve_raw(service) as server:
        yield server
        service.released.release(10)


@pytest.fixture
def client(server: RawServer) -> EmbeddingClient:
    """With an open connection, and one request at once."""
    client = EmbeddingClient(api_key=KEY, base_url=server.url, dimensions=64, max_concurrency=1, timeout=20)
    client.embed("first")
    return client


@pytest.fixture
def handle() -> Iterator[Callable[[Callable[[], object]], Any]]:
    """Sets what SIGUSR1 does; returns the handler."""
    before = signal.getsignal(signal.SIGUSR1)

    def set_handler(action: Callable[[], object]) -> Any:
        def handler(*_: object) -> None:
            action()

        signal.signal(signal.SIGUSR1, handler)
        return handler

    yield set_handler
    signal.signal(signal.SIGUSR1, before)


def raising(error: BaseException) -> Callable[[], object]:
    def act() -> None:
        raise error

    return act


def signal_when(ready: threading.Semaphore) -> None:
    main = threading.get_ident()

    def send() -> None:
        ready.acquire()
        signal.pthread_kill(main, signal.SIGUSR1)

    threading.Thread(target=send, daemon=True).start()


def check_idle(client: EmbeddingClient) -> None:
    limiter = client._request_context("document", "dense").limiter
    assert (limiter.in_flight, client._bound.in_flight) == (0, 0)
    assert all(not batcher._waiting and not batcher._in_flight for batcher in client._text_batchers.values())
    assert deferred_signals.signals_of_this_thread() is None


@pytest.mark.parametrize("call", CALLS)
def test_a_single_request_needs_no_other_thread(
    call: str, client: EmbeddingClient, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DaemonThreadPool, "submit", None)
    before = signal.getsignal(signal.SIGINT)
    assert client.embed(**CALLS[call]).dense[0] == vector_of(FIRST[call])
    assert signal.getsignal(signal.SIGINT) is before
    assert (len(server.requests), server.connections) == (2, 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TimeoutError("too long")])
@pytest.mark.parametrize("texts", ["never", ["never answered", "text"]], ids=["one text", "two texts"])
def test_an_interrupted_wait_gives_up_its_connection_and_its_place(
    error: BaseException, texts: Any, client: EmbeddingClient, request: pytest.FixtureRequest
) -> None:
    server, service = request.getfixturevalue("server"), request.getfixturevalue("service")
    handler = request.getfixturevalue("handle")(raising(error))
    signal_when(service.stalled)
    with pytest.raises(type(error)) as caught:
        client.embed(texts)
    assert caught.value is error
    assert signal.getsignal(signal.SIGUSR1) is handler
    check_idle(client)
    assert client.embed("next", text_type="query").dense == [vector_of("next")]
    assert server.connections == 2  # no other request reads the late reply
    assert client.usage.requests == 2


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("drip", {"request_deadline": 0.5}, "the request_deadline"),
        ("never", {"timeout": 0.3}, r"nothing within 0\.3 s \(ReadTimeout\)"),
    ],
    ids=["a head that never ends", "silence"],
)
def test_a_server_that_is_too_slow_is_named_as_such(
    text: str, settings: dict[str, Any], words: str, server: RawServer
) -> None:
    client = EmbeddingClient(
        api_key=KEY, base_url=server.url, dimensions=64, max_retries=0, **{"timeout": 20, **settings}
    )
    client.embed("first")
    with pytest.raises(ConnectionFailed, match=words):
        client.embed(text, text_type="query")
    check_idle(client)
    assert client.embed("next", text_type="query").dense == [vector_of("next")]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TimeoutError("too long")])
def test_a_server_that_stops_reading_delays_no_interruption(
    error: BaseException, client: EmbeddingClient, service: Service, handle: Any
) -> None:
    client.embed("stop reading")
    (idle,) = client._transport._sync_pool.pool.idle  # type: ignore[union-attr] # made by the first request
    idle.streams[-1].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    handle(raising(error))
    signal_when(service.stalled)
    with pytest.raises(type(error)) as caught:
        client.embed(["word " * 4000 + str(i) for i in range(5)])
    assert caught.value is error
    check_idle(client)
    assert client.embed("next", text_type="query").dense == [vector_of("next")]
    assert service.texts == ["first", "stop reading", "next"]


def test_a_signal_is_handled_although_the_one_before_it_raised(handle: Any) -> None:
    def receive_two() -> None:
        with deferred_signals.DeferredSignals():
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR2)

    handle(raising(KeyboardInterrupt()))
    handled: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: handled.append(number))
    try:
        with pytest.raises(KeyboardInterrupt):
            receive_two()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert handled == [signal.SIGUSR2]


def test_a_thread_that_is_main_in_name_only_sends_without_deferring(
    client: EmbeddingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`threading` takes the thread that loads it for the main one: in a program that embeds Python it is any thread."""

    def embed() -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(threading, "main_thread", threading.current_thread)
            return client.embed("a query", text_type="query").dense

    with ThreadPoolExecutor() as threads:
        assert threads.submit(embed).result() == [vector_of("a query")]


def test_a_signal_amid_the_bookkeeping_costs_no_reply(
    client: EmbeddingClient, handle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ReplyReader.__call__

    def interrupted(self: ReplyReader, reply: Any) -> bool:
        signal.raise_signal(signal.SIGUSR1)
        return read(self, reply)

    handle(raising(KeyboardInterrupt()))
    with track_usage() as usage:
        with monkeypatch.context() as patched:
            patched.setattr(ReplyReader, "__call__", interrupted)
            with pytest.raises(KeyboardInterrupt):
                client.embed("a query", text_type="query")
        check_idle(client)
        assert usage.requests == 1
        assert client.embed("a query", text_type="query").dense == [vector_of("a query")]


def test_a_signal_handler_may_call_the_client_and_set_another_handler(
    client: EmbeddingClient, service: Service, handle: Any
) -> None:
    """Although the request that its call waits behind, with `max_concurrency=1`, cannot end before it."""
    found: list[Any] = []

    def act() -> None:
        found.append(client.embed("within", text_type="query").dense)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        service.released.release()

    handle(act)
    signal_when(service.stalled)
    assert client.embed("never", text_type="query").dense == [vector_of("never")]
    assert found == [[vector_of("within")]]
    assert service.texts == ["first", "never", "within"]
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    check_idle(client)


def test_an_interruption_does_not_touch_the_texts_of_other_threads(
    client: EmbeddingClient, server: RawServer, service: Service, handle: Any
) -> None:
    """The main thread's text and that of another thread wait for the only place, then share a request."""
    handle(raising(KeyboardInterrupt()))
    shares_connections = EmbeddingClient(api_key=KEY, base_url=server.url, dimensions=64, timeout=20)
    with ThreadPoolExecutor() as threads:
        opened = [threads.submit(shares_connections.embed, f"never {i}") for i in range(2)]
        for _ in opened:
            service.stalled.acquire()
        service.released.release(len(opened))
        for one in opened:
            one.result()
        first = threads.submit(client.embed, "never", text_type="query")
        service.stalled.acquire()
        batcher = client._text_batchers["query", "dense"]

        def wait_for(texts: int) -> None:
            while len(batcher._waiting) < texts:
                threading.Event().wait(0.001)

        def ask_too() -> Any:
            wait_for(1)
            found = threads.submit(client.embed, "other", text_type="query")
            wait_for(2)
            service.released.release()
            return found

        other = threads.submit(ask_too)
        signal_when(service.stalled)
        with pytest.raises(KeyboardInterrupt):
            client.embed("ours, never", text_type="query")
        service.released.release()
        assert first.result().dense == [vector_of("never")]
        assert other.result().result().dense == [vector_of("other")]
    check_idle(client)
    assert service.texts[-3:] == ["never", "ours, never", "other"]
    assert client.usage.texts == len(["first", "never", "ours, never", "other"])
