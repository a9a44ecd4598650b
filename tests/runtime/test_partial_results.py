"""Any exception that ends a call carries `partial` and `failed`, and is otherwise unchanged."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import signal
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import KEY, AsyncCalls, SyncCalls

pytest.importorskip("langchain_core")

from langchain_core.rate_limiters import BaseRateLimiter

from dashscope_embeddings import EmbeddingClient, InvalidInput
from dashscope_embeddings.emulator import Emulator, faults
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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


def ended(run: Callable[[], object], by: BaseException | type[BaseException]) -> Any:
    """What ended a call: this exception itself, or one of this class."""
    with pytest.raises(by if isinstance(by, type) else type(by)) as caught:
        run()
    assert isinstance(by, type) or caught.value is by
    return caught.value


def check_carried(end: Any, client: EmbeddingClient, emulator: Emulator, texts: list[str] = TEXTS) -> None:
    """All that was billed came along, and the rest is named."""
    assert client.usage.texts == emulator.billed_texts == len(end.partial) > 0
    assert all(end.partial[i] == emulator.dense(texts[i], dimension=64) for i in end.partial)
    assert end.failed == [i for i in range(len(texts)) if i not in end.partial]


@both_ways
def test_a_rate_limiter_that_fails_costs_nothing_that_was_paid(way: Way, emulator: Emulator) -> None:
    with emulator.serve(latency=0.01) as server:
        error = RuntimeError("the limiter's store is down")
        error.__cause__ = cause = OSError("no route")
        client = EmbeddingClient(
            api_key=KEY, base_url=server.url, dimensions=64, max_concurrency=4, rate_limiter=Failing(error)
        )
        end = ended(lambda: way.embed(client, TEXTS), error)
    assert end.__cause__ is cause
    check_carried(end, client, emulator)


@both_ways
def test_a_rate_limiter_that_fails_between_the_parts_of_a_split_request_costs_neither(
    way: Way, emulator: Emulator
) -> None:
    emulator.faults = [faults.Blocked(match="FORBIDDEN")]
    with emulator.serve() as server:
        client = EmbeddingClient(
            api_key=KEY, base_url=server.url, dimensions=64, rate_limiter=Failing(RuntimeError("down"), at=3)
        )
        end = ended(lambda: way.embed(client, [*TEXTS[:9], "FORBIDDEN"]), RuntimeError)
    assert len(end.partial) == client.usage.texts == emulator.billed_texts > 0


@both_ways
def test_a_progress_callback_that_fails_costs_nothing_that_was_paid(way: Way, emulator: Emulator) -> None:
    with emulator.serve(latency=0.01) as server:
        client = EmbeddingClient(api_key=KEY, base_url=server.url, dimensions=64, max_concurrency=4)
        error = BrokenPipeError("stderr is gone")
        end = ended(lambda: way.embed(client, TEXTS, progress=raising(error)), error)
    check_carried(end, client, emulator)
    assert len(end.partial) < len(TEXTS)


def test_a_hook_that_exits_the_program_costs_its_own_request_at_most(emulator: Emulator) -> None:
    with emulator.serve(latency=0.01) as server:
        hook = raising(SystemExit(1))
        client = EmbeddingClient(api_key=KEY, base_url=server.url, dimensions=64, max_concurrency=4, on_request=hook)
        end = ended(lambda: client.embed(TEXTS), SystemExit)
    assert len(end.partial) == client.usage.texts >= emulator.billed_texts - 10
    assert emulator.requests < len(TEXTS) / 10


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, TimeoutError, SoftTimeLimitError])
@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no alarms")
def test_what_a_signal_handler_raises_carries_what_arrived(kind: type[BaseException], emulator: Emulator) -> None:
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

    with emulator.serve() as server:
        client = EmbeddingClient(api_key=KEY, base_url=server.url, dimensions=64, max_concurrency=4, timeout=60)
        before = signal.signal(signal.SIGALRM, handler)
        main = threading.get_ident()

        def interrupt() -> None:
            assert taken.wait(30)
            pause.wait(0.05)  # until the callback is left: its own failures end a call in another way
            signal.pthread_kill(main, signal.SIGALRM)

        threading.Thread(target=interrupt, daemon=True).start()
        try:
            end = ended(lambda: client.embed(texts, progress=on_progress), kind)
        finally:
            signal.signal(signal.SIGALRM, before)
    assert end.partial == {i: emulator.dense(texts[i], dimension=64) for i in range(50)}
    assert end.failed == list(range(50, 70))


@both_ways
def test_an_exception_that_takes_no_attributes_passes_unchanged(way: Way, emulator: Emulator) -> None:
    with emulator.serve() as server:
        error = FrozenError("as it is")
        client = EmbeddingClient(
            api_key=KEY, base_url=server.url, dimensions=64, max_concurrency=4, rate_limiter=Failing(error)
        )
        try:  # `pytest.raises` could not pass it on either
            way.embed(client, TEXTS)
        except FrozenError as end:
            caught = end
    assert caught is error
    assert vars(error) == {"what": "as it is"}
    assert client.usage.texts == emulator.billed_texts


@both_ways
def test_a_source_of_texts_that_breaks_off_carries_what_it_did_not_give_out(way: Way, emulator: Emulator) -> None:
    def source() -> Iterator[str]:
        yield from TEXTS[:45]
        raise OSError("the disk went away")

    got: list[int] = []

    def take(client: EmbeddingClient) -> None:
        got.extend(found.index for found in way.stream(client, source()))

    with emulator.serve() as server:
        client = EmbeddingClient(api_key=KEY, base_url=server.url, dimensions=64)
        end = ended(lambda: take(client), OSError)
    assert end.partial == {}  # they were given out before it was raised
    assert client.usage.texts == emulator.billed_texts == 45


def test_a_failing_callback_for_arrived_vectors_loses_nothing(emulator: Emulator) -> None:
    with emulator.serve() as server:
        client = EmbeddingClient(api_key=KEY, base_url=server.url, dimensions=64, max_concurrency=2)
        got: dict[int, Any] = {}

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
def test_a_client_that_is_closed_beside_a_call_ends_it_with_what_arrived(way: Way, emulator: Emulator) -> None:
    with emulator.serve(latency=0.01) as server:
        client = EmbeddingClient(api_key=KEY, base_url=server.url, dimensions=64, max_concurrency=4)
        closed: list[int] = []

        def close(done: int) -> None:
            if not closed:
                client.close()
            closed.append(done)

        end = ended(lambda: way.embed(client, TEXTS, progress=close), InvalidInput)
    assert "closed" in str(end)
    assert len(end.partial) == client.usage.texts >= 10
    assert all(end.partial[i] == emulator.dense(TEXTS[i], dimension=64) for i in end.partial)
    assert end.failed == [i for i in range(len(TEXTS)) if i not in end.partial]


@pytest.mark.parametrize("paired", [False, True])
def test_adapters_and_pairs_carry_it_in_the_shape_that_was_asked(paired: bool, emulator: Emulator) -> None:  # noqa: FBT001
    with emulator.serve() as server:
        dense = DashScopeEmbeddings(
            api_key=KEY, base_url=server.url, dimensions=64, rate_limiter=Failing(RuntimeError("down"))
        )
        sparse = DashScopeSparseEmbeddings(dense) if paired else None
        end = ended(lambda: dense.embed_documents(TEXTS), RuntimeError)
        assert len(end.partial) == emulator.billed_texts > 0
        assert all(end.partial[i] == emulator.dense(TEXTS[i], dimension=64) for i in end.partial)
        assert (sparse is not None) == paired


async def test_a_cancelled_call_keeps_what_a_split_request_had(emulator: Emulator) -> None:
    reached, asked = asyncio.Event(), 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        if asked == 3:
            reached.set()
            await asyncio.Event().wait()
        return emulator(request)

    emulator.faults = [faults.Blocked(match="FORBIDDEN")]
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        client = EmbeddingClient(api_key=KEY, http_async_client=http, dimensions=64)
        job = asyncio.create_task(client.aembed([*TEXTS[:9], "FORBIDDEN"]))
        await reached.wait()
        job.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await job
    partial: dict[int, Any] = caught.value.partial  # type: ignore[attr-defined]
    assert len(partial) == emulator.billed_texts > 0


def test_what_ends_a_call_while_the_result_is_put_together_carries_all(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = EmbeddingClient(api_key=KEY, http_client=httpx.Client(transport=emulator.transport()), dimensions=64)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dashscope_embeddings._core.results.Embeddings", interrupted)
    end = ended(functools.partial(client.embed, TEXTS), KeyboardInterrupt)
    assert len(end.partial) == len(TEXTS) == emulator.billed_texts
