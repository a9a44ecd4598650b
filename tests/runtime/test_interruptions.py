"""An interrupted job sends nothing more, and the interruption carries in `partial` what had arrived."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import KEY, SyncCalls

from dashscope_embeddings import Embedding, EmbeddingClient, track_usage
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.langchain_qdrant import DashScopeSparseEmbeddings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dashscope_embeddings.emulator import Emulator

TEXTS = [f"text number {i}" for i in range(45)]


def interrupting(emulator: Emulator, at: int) -> httpx.Client:
    """A client whose request number `at`, counted from 1, is interrupted instead of answered."""
    seen = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal seen
        seen += 1
        if seen == at:
            raise KeyboardInterrupt
        return emulator(request)

    return httpx.Client(transport=httpx.MockTransport(answer))


def ended(run: Callable[[], object], kind: type[BaseException] = KeyboardInterrupt) -> Any:
    with pytest.raises(kind) as caught:
        run()
    return caught.value


def test_the_interruption_carries_what_arrived_and_names_the_rest(emulator: Emulator) -> None:
    client = EmbeddingClient(api_key=KEY, max_concurrency=1, http_client=interrupting(emulator, 3))
    end = ended(lambda: client.embed(TEXTS))
    assert sorted(end.partial) == list(range(20))
    assert end.failed == list(range(20, 45))
    assert [end.partial[i] for i in range(20)] == [emulator.dense(text) for text in TEXTS[:20]]
    assert client.usage.texts == emulator.billed_texts == 20


def test_batches_that_arrived_out_of_turn_are_not_lost(emulator: Emulator) -> None:
    client = EmbeddingClient(api_key=KEY, max_concurrency=1, http_client=interrupting(emulator, 6))

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    # With one thread all other batches wait: the one that is taken, and those that were over meanwhile.
    with track_usage() as usage:
        end = ended(lambda: client.embed(TEXTS, progress=interrupt))
    assert sorted(end.partial) + end.failed == list(range(45))
    assert len(end.partial) == usage.texts <= emulator.billed_texts
    assert all(end.partial[i] == emulator.dense(TEXTS[i]) for i in end.partial)
    assert 0 in end.partial


def test_an_interrupted_stream_keeps_what_it_had_not_given_out(emulator: Emulator) -> None:
    client = EmbeddingClient(api_key=KEY, max_concurrency=1, http_client=interrupting(emulator, 3))
    got: list[int] = []

    def take() -> None:
        got.extend(found.index for found in client.stream(TEXTS))

    end = ended(take)
    assert got == list(range(20))
    assert end.partial == {}
    assert client.usage.texts == 20


def test_a_long_text_that_arrived_in_part_is_not_in_partial(emulator: Emulator) -> None:
    texts = ["short", "word " * 12_000]
    client = EmbeddingClient(
        "text-embedding-v3",
        api_key=KEY,
        max_concurrency=1,
        batch_size=1,
        long_text="average",
        http_client=interrupting(emulator, 3),
    )
    end = ended(lambda: client.embed(texts))
    assert list(end.partial) == [0]
    assert end.failed == [1]


def test_a_cancelled_job_carries_what_arrived(emulator: Emulator) -> None:
    reached = asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        if emulator.requests == 2:
            reached.set()
            await asyncio.Event().wait()
        return emulator(request)

    async def run() -> tuple[Any, int]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            client = EmbeddingClient(api_key=KEY, max_concurrency=1, http_async_client=http)
            task = asyncio.create_task(client.aembed(TEXTS))
            await reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            return caught.value, client.usage.texts

    end, texts = asyncio.run(run())
    assert sorted(end.partial) == list(range(20))
    assert end.failed == list(range(20, 45))
    assert texts == emulator.billed_texts == 20
    assert emulator.requests == 2


@pytest.mark.parametrize("paired", [False, True])
def test_a_caller_of_dense_vectors_finds_dense_vectors_in_partial(emulator: Emulator, paired: bool) -> None:  # noqa: FBT001
    dense = DashScopeEmbeddings(api_key=KEY, max_concurrency=1, http_client=interrupting(emulator, 3))
    sparse = DashScopeSparseEmbeddings(dense) if paired else None
    end = ended(lambda: dense.embed_documents(TEXTS))
    assert end.partial[7] == emulator.dense(TEXTS[7])
    assert len(end.partial) == 20
    assert (sparse is not None) == paired


def test_an_interrupted_query_has_nothing_to_carry(emulator: Emulator) -> None:
    client = EmbeddingClient(api_key=KEY, http_client=interrupting(emulator, 1))
    end = ended(lambda: client.embed("a query", text_type="query"))
    assert (end.partial, end.failed) == ({}, [0])


def test_an_interrupted_source_of_texts_ends_the_stream(emulator: Emulator) -> None:
    client = EmbeddingClient(api_key=KEY, max_concurrency=1, http_client=httpx.Client(transport=emulator.transport()))

    def source() -> Iterator[str]:
        yield from TEXTS[:30]
        raise KeyboardInterrupt

    def take() -> list[Embedding]:
        return SyncCalls().stream(client, source())

    assert isinstance(ended(take), KeyboardInterrupt)
    assert emulator.billed_texts == client.usage.texts
