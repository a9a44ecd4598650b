"""The time of a text does not grow with the number of texts, nor that of a piece with the length of its text."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import client_for

from dashscope_embeddings._core import results, text_inputs, text_length
from dashscope_embeddings._core.exchange import Outcome
from dashscope_embeddings._core.planning import BatchPlanner, batches
from dashscope_embeddings._core.redaction import Redactor
from dashscope_embeddings._core.results import ResultCollector
from dashscope_embeddings._core.text_length import Limits
from dashscope_embeddings._runtime.async_drivers import run_in_thread
from dashscope_embeddings.emulator import Emulator
from dashscope_embeddings.vectors import Part

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

FEW, MANY = 1_000, 32_000


def seconds_a_text(work: Callable[[int], object], count: int) -> float:
    """CPU time, the better of two, without the garbage collector's."""
    found = []
    gc.disable()
    try:
        for _ in range(2):
            begun = time.thread_time()
            work(count)
            found.append(time.thread_time() - begun)
    finally:
        gc.enable()
    return min(found) / count


def assembled(texts: Iterable[str], memory: int | None, *, packed: int | None = None, stream: bool = False) -> None:
    """A job of which each batch holds one text, in front of a service that takes no time."""
    job = ResultCollector("dense", None, array_rows=packed)
    for batch in batches(texts, BatchPlanner(Limits(1, 8192, None), dedup_window=memory)):
        job.add(batch, Outcome([Part([0.6, 0.8], None, 1.0) for _ in batch.texts], requests=1))
        if stream:
            list(job.pop_ready())


JOBS: dict[str, Callable[[int], object]] = {
    "embed": lambda n: assembled(map(str, range(n)), None),
    "array": lambda n: assembled(map(str, range(n)), None, packed=n),
    "stream": lambda n: assembled(map(str, range(n)), 16, stream=True),
    "repeated": lambda n: assembled((str(i % (n // 4)) for i in range(n)), None),
    "repeated in an array": lambda n: assembled((str(i % (n // 4)) for i in range(n)), None, packed=n),
    "repeated in a stream": lambda n: assembled((str(i // 4) for i in range(n)), 16, stream=True),
}


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS.keys())
def test_a_text_of_many_costs_what_a_text_of_few_costs(job: Callable[[int], object]) -> None:
    # A step that looks at all batches for each of them is 15 times slower here; a busy machine's caches, 4 times.
    assert seconds_a_text(job, MANY) < 8 * seconds_a_text(job, FEW)


def test_a_message_that_repeats_much_of_a_text_is_redacted_as_soon_as_one_that_repeats_little() -> None:
    def redacted(repeats: int) -> str:
        return Redactor()(" ".join(["a" * 8] * repeats), ["a" * 400_000])

    assert redacted(2) == "aaaaaaaa aaaaaaaa"
    # To compare each repeat with each place of the text takes 100 times as long.
    assert 200 * seconds_a_text(redacted, 200) < 20 * 2 * seconds_a_text(redacted, 2)


class Counted(str):
    """Counts the characters that are copied out of it, and out of its copies."""

    __slots__ = ()
    copied = 0

    def __getitem__(self, at: Any) -> Counted:
        found = Counted(super().__getitem__(at))
        Counted.copied += len(found)
        return found


@pytest.mark.parametrize("sentence", ["word and text. ", "中文字。", "x"])
def test_a_huge_text_is_not_copied_for_each_of_its_pieces(sentence: str) -> None:
    text = Counted(sentence * (600_000 // len(sentence)))
    Counted.copied = 0
    assert "".join(text_length.chunks(text, 250)) == text
    assert Counted.copied < 10 * len(text)


HUGE = "word and text. " * 200_000


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pieces were cut so far."""
    count, shorten = [0], text_length.truncate

    def counting(text: str, *how: Any) -> str:
        count[0] += 1
        return shorten(text, *how)

    monkeypatch.setattr(text_length, "truncate", counting)
    return count


async def _once(text: str) -> AsyncIterator[str]:
    yield text


def _in_thread_only(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[bool]:
    """Whether each call of a function was on the loop's own thread."""
    calls: list[bool] = []
    real, here = getattr(module, name), threading.get_ident()

    def noting(*args: Any) -> Any:
        calls.append(threading.get_ident() == here)
        return real(*args)

    monkeypatch.setattr(module, name, noting)
    return calls


@pytest.mark.parametrize("way", ["aembed", "aembed of an asynchronous iterable", "astream"])
async def test_a_huge_text_is_checked_averaged_and_cut_without_stopping_the_loop(
    way: str, monkeypatch: pytest.MonkeyPatch, cut: list[int]
) -> None:
    emulator = Emulator()
    client = client_for(emulator, model="text-embedding-v2", long_text="average", max_concurrency=2, dimensions=1536)
    checks = _in_thread_only(monkeypatch, text_inputs, "text_problem")
    means = _in_thread_only(monkeypatch, results, "combine")
    cut_before: list[int] = []
    asend = client._transport.asend

    async def noting(step: Any) -> Any:
        cut_before.append(cut[0])
        return await asend(step)

    monkeypatch.setattr(client._transport, "asend", noting)
    if way == "astream":
        assert len([found async for found in client.astream([HUGE])]) == 1
    else:
        texts = _once(HUGE) if way != "aembed" else [HUGE]
        assert len(await client.aembed(texts)) == 1
    assert (checks, means) == ([False], [False])
    assert cut[0] > 300
    # It is cut as its requests are sent, never for longer than a few of them take.
    assert cut_before[0] < 200
    assert max(after - before for before, after in itertools.pairwise(cut_before)) < 200


async def test_who_is_cancelled_while_a_thread_works_waits_for_it_and_finds_its_job_at_rest() -> None:
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(5)
        ended.set()

    task = asyncio.create_task(run_in_thread(work))
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    asyncio.get_running_loop().call_later(0.05, go.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
