"""Nothing that befalls a caller leaves the client waiting: Ctrl-C at any moment, threads that cannot be started."""

from __future__ import annotations

import _thread
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import KEY, FakeClock, becomes_true
from raw_server import serve_raw

from dashscope_embeddings import EmbeddingClient
from dashscope_embeddings._core import rate_limiter
from dashscope_embeddings._process import CleanupLock
from dashscope_embeddings.emulator import Emulator, faults

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from raw_server import ReceivedRequest

needs_signals = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no such signals")
TEXTS = [f"text {i}" for i in range(45)]
SUPPORT = Path(__file__).parents[1] / "support"


def program(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own program
        [sys.executable, *([code] if code.endswith(".py") else ["-c", textwrap.dedent(code)]), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# --- Ctrl-C ------------------------------------------------------------------------------------------------


@needs_signals
def test_a_client_answers_after_dozens_of_interruptions_at_random_moments() -> None:
    done = program(str(SUPPORT / "interrupt_storm.py"), "40", "2", "--served")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": ok" in done.stdout


SWEEP = """
    import faulthandler, signal, sys, time
    from dashscope_embeddings.langchain import DashScopeEmbeddings
    from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings

    faulthandler.dump_traceback_later(200, exit=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
    settings = {"base_url": sys.argv[1], "api_key": "sk-made-up", "dimensions": 64, "max_concurrency": 1}
    dense = DashScopeEmbeddings(**settings)
    sparse = DashScopeSparseEmbeddings(dense)
    alone = DashScopeEmbeddings(**settings)
    texts = [f"text {i}" for i in range(25)]
    step = 7 if sys.argv[1] == "emulator" else 19
    calls = [
        (step, lambda: alone.embed_query("a")),
        (step, lambda: alone.embed_documents(["a"])),
        (53, lambda: alone.embed_documents(texts)),
        (17, lambda: [dense.embed_query("a"), sparse.embed_query("a")]),
    ]

    def interrupted_at(moment, call):
        # Where a signal handler may run: at the end of a call, and at the beginning of a function.
        left = moment

        def look(frame, event, _):
            nonlocal left
            if event in ("call", "c_return", "return"):
                left -= 1
                if left == 0:
                    sys.setprofile(None)
                    signal.raise_signal(signal.SIGINT)

        try:
            sys.setprofile(look)
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(None)
        return left <= 0

    def in_time(call):
        began = time.monotonic()
        call()
        return time.monotonic() - began < 15

    counts = []
    for step, call in calls:
        right, moment = call(), 1
        while interrupted_at(moment, call):
            moment += step
            assert in_time(call), moment
        assert call() == right
        counts.append(moment)
    print(all(count > 100 for count in counts))
    print([batcher._waiting or batcher._in_flight for batcher in alone.client._text_batchers.values()])
    print(alone.client._request_context("query", "dense").limiter.in_flight, alone.client._bound.in_flight)
    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


@pytest.mark.parametrize("served", [False, True], ids=["in the process", "over http"])
def test_no_call_of_the_main_thread_is_a_moment_at_which_an_interruption_blocks_the_client(
    *, served: bool, emulator: Emulator
) -> None:
    with emulator.serve() as server:
        done = program(SWEEP, server.url if served else "emulator")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "True\n[set(), set()]\n0 0\nTrue\n"


def test_an_interruption_at_any_moment_leaves_the_lock_of_cleanup_free() -> None:
    interrupted = 0
    for moment in range(1, 40):
        lock, left = CleanupLock(), moment

        def look(_: object, event: str, __: object) -> None:
            nonlocal left
            left -= event in {"call", "c_return", "return"}
            if left == 0:
                raise KeyboardInterrupt

        try:
            sys.setprofile(look)
            lock.run_soon(lambda: None)
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.setprofile(None)
        assert not lock.current.locked(), moment
    assert 8 < interrupted < 39


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no alarms")
def test_a_query_that_was_interrupted_does_not_hold_up_the_next_one() -> None:
    emulator = Emulator(faults=[faults.Stall(match="never")])
    arrived = threading.Event()

    def interrupt() -> None:
        while emulator.requests == 0:
            arrived.wait(0.005)
        signal.pthread_kill(main, signal.SIGALRM)

    def handler(*_: object) -> None:
        raise TimeoutError

    main = threading.get_ident()
    with emulator.serve() as server:
        client = EmbeddingClient(api_key=KEY, base_url=server.url, dimensions=64, max_concurrency=1, timeout=60)
        before = signal.signal(signal.SIGALRM, handler)
        threading.Thread(target=interrupt, daemon=True).start()
        try:
            with pytest.raises(TimeoutError):
                client.embed("never answered", text_type="query")
        finally:
            signal.signal(signal.SIGALRM, before)
        right = emulator.dense("next", dimension=64, text_type="query")
        assert client.embed("next", text_type="query").dense == [right]


def silent(_: ReceivedRequest, connection: socket.socket) -> None:
    connection.recv(1)


def dripping(_: ReceivedRequest, connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


@needs_signals
@pytest.mark.parametrize(
    ("command", "handle", "signals"),
    [
        ("embed", silent, [signal.SIGINT, signal.SIGINT]),
        ("embed", dripping, [signal.SIGINT, signal.SIGINT]),
        ("embed", silent, [signal.SIGTERM]),
        ("batch run", silent, [signal.SIGINT]),
    ],
)
def test_one_ctrl_c_ends_a_command_soon_and_two_at_once_whatever_the_server_does(
    command: str, handle: Any, signals: list[signal.Signals], tmp_path: Path
) -> None:
    pytest.importorskip("typer")
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    with serve_raw(handle) as server:
        program = [sys.executable, "-m", "dashscope_embeddings", *command.split(), str(tmp_path / "in.txt")]
        running = subprocess.Popen(  # noqa: S603 - our own program
            [*program, "-o", str(tmp_path / "out.jsonl"), "--base-url", server.url],
            env={**os.environ, "DASHSCOPE_API_KEY": KEY},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with running:
            assert running.stderr is not None
            assert becomes_true(lambda: bool(server.requests), seconds=60)
            running.send_signal(signals[0])
            assert any("stopping" in line for line in iter(running.stderr.readline, ""))
            for number in signals[1:]:
                running.send_signal(number)
            assert running.wait(15) == (130 if len(signals) > 1 else 1)
            said = running.stderr.read()
    assert "Traceback" not in said
    assert ("the same command goes on" in said) == (len(signals) == 1)


# --- threads -----------------------------------------------------------------------------------------------


def scarce(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """From now on, so many more threads can be started."""
    start, started = threading.Thread.start, _thread.start_new_thread
    left = [threads]

    def may() -> None:
        if left[0] <= 0:
            raise RuntimeError("can't start new thread")
        left[0] -= 1

    def limited(self: threading.Thread) -> None:
        may()
        start(self)

    def limited_too(function: Callable[..., object], arguments: tuple[Any, ...]) -> int:
        may()
        return started(function, arguments)

    monkeypatch.setattr(threading.Thread, "start", limited)
    monkeypatch.setattr(_thread, "start_new_thread", limited_too)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_where_threads_cannot_be_started_fewer_are_used(
    threads: int, monkeypatch: pytest.MonkeyPatch, emulator: Emulator
) -> None:
    # Inside the process: a server beside it would have no threads either.
    client = EmbeddingClient(base_url="emulator", dimensions=64, max_concurrency=4)
    with monkeypatch.context() as patched:
        scarce(patched, threads)
        for i in range(6):  # more often than `max_concurrency`
            texts = [f"{text} of {i}" for text in TEXTS]
            assert client.embed(texts).dense == [emulator.dense(text, dimension=64) for text in texts]
            right = emulator.dense(f"query {i}", dimension=64, text_type="query")
            assert client.embed(f"query {i}", text_type="query").dense == [right]
    assert len(client.embed(TEXTS).dense) == len(TEXTS)


async def test_a_long_list_is_checked_on_the_loop_where_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = EmbeddingClient(base_url="emulator", dimensions=64)
    texts = [f"text {i % 10}" for i in range(5_001)]
    with monkeypatch.context() as patched:
        scarce(patched, 0)
        assert len((await client.aembed(texts)).dense) == len(texts)


# --- what is kept ------------------------------------------------------------------------------------------


def test_limiters_of_keys_that_nobody_uses_any_more_are_freed() -> None:
    clock = FakeClock()
    living = rate_limiter.shared_limiter(("key", "host", "model"), clock.now)
    living.apply_limits(clock, 60, None)
    for i in range(1_000):
        rate_limiter.shared_limiter((f"key {i}", "host", "model"), clock.now)
    gc.collect()
    assert len(rate_limiter._limiters) < 100
    assert rate_limiter.shared_limiter(("key", "host", "model"), clock.now) is living


def test_what_was_learned_outlives_a_client_for_the_next_one_of_its_key() -> None:
    clock = FakeClock()
    rate_limiter.shared_limiter(("key", "host", "model"), clock.now)._estimator.steady.limit = 12.0
    gc.collect()
    assert rate_limiter.shared_limiter(("key", "host", "model"), clock.now)._estimator.steady.limit == 12.0
