"""What `stream` and `astream` offer to who embeds a corpus: refused texts are told, replies are told at once."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from client_helpers import client_for

from dashscope_embeddings import AuthenticationError, BadRequestError
from dashscope_embeddings.emulator import Emulator, faults

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dashscope_embeddings import DashScopeError, Embedding, EmbeddingClient
    from dashscope_embeddings._core.exchange import Outcome

TEXTS = [f"text number {number}" for number in range(45)]


def sync(client: EmbeddingClient, texts: Any, **how: Any) -> list[Embedding]:
    return list(client.stream(texts, **how))


def asynchronous(client: EmbeddingClient, texts: Any, **how: Any) -> list[Embedding]:
    async def take() -> list[Embedding]:
        return [found async for found in client.astream(texts, **how)]

    return asyncio.run(take())


@pytest.mark.parametrize("stream", [sync, asynchronous])
def test_refused_texts_are_told_and_the_stream_goes_on(stream: Callable[..., list[Embedding]]) -> None:
    emulator = Emulator(faults=[faults.Blocked(match="number 0"), faults.Blocked(match="number 17")])
    refused: dict[int, DashScopeError] = {}
    client = client_for(emulator, dimensions=64)
    found = stream(client, [*TEXTS, TEXTS[17]], refused=refused.__setitem__)
    assert [e.index for e in found] == [index for index in range(45) if index not in {0, 17}]
    assert [e.dense for e in found] == [emulator.dense(TEXTS[e.index], dimension=64) for e in found]
    assert sorted(refused) == [0, 17, 45]
    assert {getattr(error, "code", None) for error in refused.values()} == {"DataInspectionFailed"}
    assert emulator.billed_texts == 43


@pytest.mark.parametrize("stream", [sync, asynchronous])
def test_without_being_told_a_refused_text_ends_the_stream(stream: Callable[..., list[Embedding]]) -> None:
    emulator = Emulator(faults=[faults.Blocked(match="number 17")])
    with pytest.raises(BadRequestError) as caught:
        stream(client_for(emulator, dimensions=64), TEXTS)
    assert 17 in caught.value.failed


@pytest.mark.parametrize("stream", [sync, asynchronous])
def test_a_refusal_of_the_whole_job_is_no_refusal_of_its_texts(stream: Callable[..., list[Embedding]]) -> None:
    emulator = Emulator(faults=[faults.Status(status=401, code="InvalidApiKey", every=1)])
    refused: dict[int, DashScopeError] = {}
    with pytest.raises(AuthenticationError):
        stream(client_for(emulator, dimensions=64), TEXTS, refused=refused.__setitem__)
    emulator.faults = [faults.RowRefused(message="something is invalid", every=1)]
    with pytest.raises(BadRequestError):
        stream(client_for(emulator, dimensions=64), TEXTS, refused=refused.__setitem__)
    assert refused == {}


@pytest.mark.parametrize("stream", [sync, asynchronous])
def test_every_reply_is_told_with_its_texts(stream: Callable[..., list[Embedding]]) -> None:
    emulator, told = Emulator(), list[tuple[list[str], Any]]()

    def arrived(texts: Sequence[str], outcome: Outcome) -> None:
        told.append((list(texts), outcome.dense))

    found = stream(client_for(emulator, dimensions=64), TEXTS, arrived=arrived)
    assert sorted(itertools.chain.from_iterable(texts for texts, _ in told)) == sorted(TEXTS)
    vectors = {text: vector for texts, dense in told for text, vector in zip(texts, dense, strict=True)}
    assert [vectors[text] for text in TEXTS] == [e.dense for e in found]
    assert len(told) == emulator.requests == 5
