"""Whatever ends a call: nothing more is sent, and the exception carries what arrived; otherwise it is unchanged."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import KEY, AsyncCalls, SyncCalls

pytest.importorskip("langchain_core")

from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.stores import InMemoryByteStore

from dashscope_embeddings import EmbeddingClient, InvalidInput, track_usage
from dashscope_embeddings._core.results import ResultCollector
from dashscope_embeddings.emulator import Emulator, faults
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dashscope_embeddings.emulator.http import Server


Way = SyncCalls | AsyncCalls
TEXTS = [f"text {i}" for i in range(200)]
both_ways = pytest.mark.parametrize("way", [SyncCalls(), AsyncCalls()], ids=["sync", "async"])


class SoftTimeLimitError(Exception):
    """As a task queue raises it from a signal handler."""


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """Takes no attributes."""

    what: str


class Failing(BaseRateLimiter):
    """A rate limiter that raises at its call number `at`."""

    def __init__(self, error: BaseException, at: int = 12) -> None:
        self.error, self.at, self.asked = error, at, 0
        self.lock = threading.Lock()

    def acquire(self, *, blocking: bool = True) -> bool:
        with self.lock:
            self.asked += 1
            if self.asked == self.at:
                raise self.error
        return blocking

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire(blocking=blocking)


def raising(error: BaseException, at: int = 3) -> Callable[[object], None]:
    """A callback that raises at its call number `at`."""
    calls = []

    def call(argument: object) -> None:
        calls.append(argument)
        if len(calls) == at:
            raise error

    return call


def interrupting(emulator: Emulator, at: int) -> httpx.Client:
    """A client whose request number `at`, counted from 1, is interrupted instead of answered."""

    def answer(request: httpx.Request) -> httpx.Response:
        if emulator.requests == at - 1:
            raise KeyboardInterrupt
        return emulator(request)

    return httpx.Client(transport=httpx.MockTransport(answer))


def ended(run: Callable[[], object], by: BaseException | type[BaseException] = KeyboardInterrupt) -> Any:
    """What ended a call: this exception itself, or one of this class."""
    with pytest.raises(by if isinstance(by, type) else type(by)) as caught:
        run()
    assert isinstance(by, type) or caught.value is by
    return caught.value


def client_of(served: Server, **settings: Any) -> EmbeddingClient:
    return EmbeddingClient(api_key=KEY, base_url=served.url, **{"dimensions": 64, "max_concurrency": 4, **settings})


def check_carried(end: Any, client: EmbeddingClient, emulator: Emulator, texts: list[str] = TEXTS) -> None:
    """All that was billed came along, and the rest is named."""
    assert client.usage.texts == emulator.billed_texts == len(end.partial) > 0
    assert all(end.partial[i] == emulator.dense(texts[i], dimension=64) for i in end.partial)
    assert end.failed == [i for i in range(len(texts)) if i not in end.partial]


# --- errors of the caller's own objects ---------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("whose", ["rate limiter", "progress"])
def test_an_error_of_a_callers_object_costs_nothing_that_was_paid(
    whose: str, way: Way, emulator: Emulator, served: Server
) -> None:
    served.latency = 0.01
    error = RuntimeError("the limiter's store is down")
    error.__cause__ = cause = OSError("no route")
    client = client_of(served, rate_limiter=Failing(error) if whose == "rate limiter" else None)
    how = {"progress": raising(error)} if whose == "progress" else {}
    end = ended(lambda: way.embed(client, TEXTS, **how), error)
    assert end.__cause__ is cause
    check_carried(end, client, emulator)
    assert len(end.partial) < len(TEXTS)


@both_ways
def test_a_rate_limiter_that_fails_between_the_parts_of_a_split_request_costs_neither(
    way: Way, emulator: Emulator, served: Server
) -> None:
    emulator.faults = [faults.Blocked(match="FORBIDDEN")]
    client = client_of(served, rate_limiter=Failing(RuntimeError("down"), at=3))
    end = ended(lambda: way.embed(client, [*TEXTS[:9], "FORBIDDEN"]), RuntimeError)
    assert len(end.partial) == client.usage.texts == emulator.billed_texts > 0


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt])
def test_an_end_of_the_program_in_a_task_carries_what_arrived(
    end: type[BaseException], emulator: Emulator, served: Server
) -> None:
    client = client_of(served, rate_limiter=Failing(end(), at=15))
    caught = ended(lambda: asyncio.run(client.aembed(TEXTS)), end)
    check_carried(caught, client, emulator)


def test_a_hook_that_exits_the_program_costs_its_own_request_at_most(emulator: Emulator, served: Server) -> None:
    served.latency = 0.01
    client = client_of(served, on_request=raising(SystemExit(1)), max_concurrency=4)
    end = ended(lambda: client.embed(TEXTS), SystemExit)
    assert len(end.partial) == client.usage.texts >= emulator.billed_texts - 10
    assert emulator.requests < len(TEXTS) / 10


@both_ways
def test_an_exception_that_takes_no_attributes_passes_unchanged(way: Way, emulator: Emulator, served: Server) -> None:
    error = FrozenError("as it is")
    client = client_of(served, rate_limiter=Failing(error))
    try:  # `pytest.raises` could not pass it on either
        way.embed(client, TEXTS)
    except FrozenError as end:
        caught = end
    assert caught is error
    assert vars(error) == {"what": "as it is"}
    assert client.usage.texts == emulator.billed_texts


@both_ways
def test_a_source_of_texts_that_breaks_off_carries_what_it_did_not_give_out(
    way: Way, emulator: Emulator, served: Server
) -> None:
    def source() -> Iterator[str]:
        yield from TEXTS[:45]
        raise OSError("the disk went away")

    client = client_of(served)
    end = ended(lambda: way.stream(client, source()), OSError)
    assert end.partial == {}  # they were given out before it was raised
    assert client.usage.texts == emulator.billed_texts == 45


def test_a_failing_callback_for_arrived_vectors_loses_nothing(emulator: Emulator, served: Server) -> None:
    client, got = client_of(served, max_concurrency=2), dict[int, Any]()

    def arrived(texts: Any, _: object) -> None:
        if TEXTS[50] in texts:
            raise RuntimeError("cannot keep it")

    def take() -> None:
        for found in client.stream(TEXTS, arrived=arrived):
            got[found.index] = found.dense

    end = ended(take, RuntimeError)
    assert sorted([*got, *end.partial]) == list(range(emulator.billed_texts))
    assert 50 in end.partial
    assert client.usage.texts == emulator.billed_texts


@both_ways
def test_a_client_that_is_closed_beside_a_call_ends_it_with_what_arrived(
    way: Way, emulator: Emulator, served: Server
) -> None:
    served.latency = 0.01
    client = client_of(served)
    end = ended(lambda: way.embed(client, TEXTS, progress=lambda _: client.close()), InvalidInput)
    assert "closed" in str(end)
    assert len(end.partial) == client.usage.texts >= 10
    assert all(end.partial[i] == emulator.dense(TEXTS[i], dimension=64) for i in end.partial)
    assert end.failed == [i for i in range(len(TEXTS)) if i not in end.partial]


# --- interruptions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, TimeoutError, SoftTimeLimitError])
@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no alarms")
def test_what_a_signal_handler_raises_carries_what_arrived(
    kind: type[BaseException], emulator: Emulator, served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dashscope_embeddings.client.GRACE_SECONDS", 0.1)
    emulator.faults = [faults.Stall(match="never")]
    done: list[int] = []
    taken, pause = threading.Event(), threading.Event()
    texts = [*TEXTS[:50], *(f"never {i}" for i in range(20))]

    def handler(*_: object) -> None:
        raise kind("too long")

    def on_progress(more: int) -> None:
        done.append(more)
        if len(done) == 5:
            taken.set()

    def interrupt() -> None:
        assert taken.wait(30)
        pause.wait(0.05)  # until the callback is left: its own failures end a call in another way
        signal.pthread_kill(main, signal.SIGALRM)

    client, main = client_of(served, timeout=60), threading.get_ident()
    before = signal.signal(signal.SIGALRM, handler)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        end = ended(lambda: client.embed(texts, progress=on_progress), kind)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert end.partial == {i: emulator.dense(texts[i], dimension=64) for i in range(50)}
    assert end.failed == list(range(50, 70))


class Gate:
    """A transport that answers the first 60 texts, and others once it is opened; interrupts when three wait."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator, self._opened = emulator, threading.Event()
        self._lock, self._waiting, self._taken = threading.Lock(), 0, 0
        self._main, self.interruptions = threading.get_ident(), 0
        self.opens_at = 1
        self.all_taken = threading.Event()
        """The interruption waits for it."""
        self.all_taken.set()

    def take(self, more: int) -> None:
        """A callback for progress."""
        self._taken += more
        if self._taken == 60:
            self.all_taken.set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if json.loads(request.content)["input"]["texts"][0] not in TEXTS[:60]:
            with self._lock:
                self._waiting += 1
                is_third = self._waiting == 3
            if is_third:
                assert self.all_taken.wait(60)
                signal.pthread_kill(self._main, signal.SIGINT)
            self._opened.wait(60)
        return self._emulator(request)

    def interrupt(self, *_: object) -> None:
        self.interruptions += 1
        if self.interruptions == self.opens_at:
            self._opened.set()
        raise KeyboardInterrupt


@pytest.fixture
def gate(emulator: Emulator) -> Iterator[Gate]:
    found = Gate(emulator)
    before = signal.signal(signal.SIGINT, found.interrupt)
    yield found
    signal.signal(signal.SIGINT, before)
    found._opened.set()


def gated_client(gate: Gate) -> EmbeddingClient:
    http = httpx.Client(transport=httpx.MockTransport(gate))
    return EmbeddingClient(api_key=KEY, http_client=http, dimensions=64, max_concurrency=3)


needs_signals = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system has no such signals")


@needs_signals
@pytest.mark.parametrize("kind", ["client", "stream", "adapter"])
def test_an_interrupted_call_waits_for_the_requests_in_flight(kind: str, emulator: Emulator, gate: Gate) -> None:
    client, stored = gated_client(gate), InMemoryByteStore()
    got: list[int] = []
    if kind == "adapter":
        http = httpx.Client(transport=httpx.MockTransport(gate))
        cached = DashScopeEmbeddings(
            api_key=KEY, http_client=http, dimensions=64, max_concurrency=3, embeddings_cache=stored
        )
        client = cached.client
        end = ended(lambda: cached.embed_documents(TEXTS))
        assert len([*stored.yield_keys()]) == 90
    elif kind == "client":
        end = ended(lambda: client.embed(TEXTS))
    else:
        end = ended(lambda: got.extend(found.index for found in client.stream(TEXTS)))
    assert emulator.requests == 9
    assert sorted([*got, *end.partial]) == list(range(90))
    assert all(end.partial[i] == emulator.dense(TEXTS[i], dimension=64) for i in end.partial)
    assert client.usage.texts == emulator.billed_texts == 90


@needs_signals
def test_a_second_interruption_ends_the_wait_with_what_arrived(
    emulator: Emulator, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = gated_client(gate)
    gate.opens_at, drain = 3, client.drain

    def interrupt_again(*how: Any) -> int:
        signal.raise_signal(signal.SIGINT)
        return drain(*how)

    monkeypatch.setattr(client, "drain", interrupt_again)
    gate.all_taken.clear()
    end = ended(lambda: client.embed(TEXTS, progress=gate.take))
    assert gate.interruptions == 2
    assert end.partial == {i: emulator.dense(TEXTS[i], dimension=64) for i in range(60)}
    assert end.failed == list(range(60, 200))


@needs_signals
def test_a_later_call_does_not_wait_for_the_requests_of_an_interrupted_one(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dashscope_embeddings.client.GRACE_SECONDS", 0.0)
    client, still_running = gated_client(gate), list[int]()
    gate.opens_at, drain = 9, client.drain
    monkeypatch.setattr(client, "drain", lambda *how: still_running.append(drain(*how)))
    ended(lambda: client.embed(TEXTS))
    ended(lambda: client.embed(TEXTS[:30], progress=raising(RuntimeError(), at=1)), RuntimeError)
    assert still_running == [3, 0]


@needs_signals
def test_an_interruption_while_the_vectors_are_attached_comes_after_it(
    emulator: Emulator, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach = ResultCollector.attach_partial

    def attach_interrupted(self: ResultCollector, error: BaseException, texts: Any = None) -> None:
        signal.raise_signal(signal.SIGINT)
        attach(self, error, texts)

    monkeypatch.setattr(ResultCollector, "attach_partial", attach_interrupted)
    client = gated_client(gate)
    end = ended(lambda: client.embed(TEXTS))
    assert gate.interruptions == 2
    check_carried(end, client, emulator)
    assert len(end.partial) == 90


@needs_signals
def test_requests_that_are_not_answered_in_time_are_waited_for_two_seconds(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, waited = gated_client(gate), list[float]()
    gate.opens_at = 2
    monkeypatch.setattr(client, "drain", lambda seconds, _: waited.append(seconds))
    gate.all_taken.clear()
    end = ended(lambda: client.embed(TEXTS, progress=gate.take))
    assert waited == [2.0]
    assert len(end.partial) == 60


def test_batches_that_arrived_out_of_turn_are_not_lost(emulator: Emulator) -> None:
    client = EmbeddingClient(api_key=KEY, max_concurrency=1, http_client=interrupting(emulator, 6), dimensions=64)

    # With one thread all other batches wait: the one that is taken, and those that were over meanwhile.
    with track_usage() as usage:
        end = ended(lambda: client.embed(TEXTS[:45], progress=raising(KeyboardInterrupt(), at=1)))
    assert sorted(end.partial) + end.failed == list(range(45))
    assert len(end.partial) == usage.texts <= emulator.billed_texts
    assert all(end.partial[i] == emulator.dense(TEXTS[i], dimension=64) for i in end.partial)
    assert 0 in end.partial


def test_an_interrupted_stream_keeps_what_it_had_not_given_out(emulator: Emulator) -> None:
    client = EmbeddingClient(api_key=KEY, max_concurrency=1, http_client=interrupting(emulator, 3))
    got: list[int] = []
    end = ended(lambda: got.extend(found.index for found in client.stream(TEXTS[:45])))
    assert got == list(range(20))
    assert end.partial == {}
    assert client.usage.texts == 20


def test_a_long_text_that_arrived_in_part_is_not_in_partial(emulator: Emulator) -> None:
    http = interrupting(emulator, 3)
    settings: Any = {"max_concurrency": 1, "batch_size": 1, "long_text": "average", "http_client": http}
    client = EmbeddingClient("text-embedding-v3", api_key=KEY, **settings)
    end = ended(lambda: client.embed(["short", "word " * 12_000]))
    assert list(end.partial) == [0]
    assert end.failed == [1]


@pytest.mark.parametrize("paired", [False, True])
def test_adapters_and_pairs_carry_it_in_the_shape_that_was_asked(paired: bool, emulator: Emulator) -> None:  # noqa: FBT001
    http = interrupting(emulator, 3)
    dense = DashScopeEmbeddings(api_key=KEY, dimensions=64, max_concurrency=1, http_client=http)
    sparse = DashScopeSparseEmbeddings(dense) if paired else None
    end = ended(lambda: dense.embed_documents(TEXTS[:45]))
    assert end.partial == {i: emulator.dense(TEXTS[i], dimension=64) for i in range(20)}
    assert end.failed == list(range(20, 45))
    assert (sparse is not None) == paired


@pytest.mark.parametrize("split", [False, True])
async def test_a_cancelled_call_keeps_what_arrived(split: bool, emulator: Emulator) -> None:  # noqa: FBT001
    """Also of a request that was split."""
    reached, asked = asyncio.Event(), 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        if asked == 3:
            reached.set()
            await asyncio.Event().wait()
        return emulator(request)

    emulator.faults = [faults.Blocked(match="FORBIDDEN")]
    texts = [*TEXTS[:9], "FORBIDDEN"] if split else TEXTS[:45]
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        client = EmbeddingClient(api_key=KEY, http_async_client=http, dimensions=64, max_concurrency=1)
        job = asyncio.create_task(client.aembed(texts))
        await reached.wait()
        job.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await job
    check_carried(caught.value, client, emulator, texts)
    assert asked == 3


def test_what_ends_a_call_while_the_result_is_put_together_carries_all(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = EmbeddingClient(api_key=KEY, http_client=httpx.Client(transport=emulator.transport()), dimensions=64)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dashscope_embeddings._core.results.Embeddings", interrupted)
    end = ended(lambda: client.embed(TEXTS))
    assert len(end.partial) == len(TEXTS) == emulator.billed_texts
