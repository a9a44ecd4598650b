"""One test for both APIs: the same calls for a client's sync and async methods, an emulator and a fake clock."""

from __future__ import annotations

import asyncio
import time
import weakref
from typing import TYPE_CHECKING, Any

import httpx

from dashscope_embeddings import EmbeddingClient

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable

    from dashscope_embeddings import Embedding, Embeddings
    from dashscope_embeddings.emulator import Emulator

KEY = "sk-made-up"


class FakeClock:
    """A clock whose time passes only in waits, which return at once."""

    def __init__(self) -> None:
        self.time = 1_000.0
        self.waits: list[float] = []

    def now(self) -> float:
        return self.time

    def wait(self, halt: threading.Event, seconds: float) -> bool:
        self.waits.append(seconds)
        self.time += seconds
        return halt.is_set()

    async def wait_async(self, halt: asyncio.Event, seconds: float) -> bool:
        self.waits.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)
        return halt.is_set()


def client_for(emulator: Emulator, clock: FakeClock | None = None, **settings: Any) -> EmbeddingClient:
    """A client of an emulator, connected in process by httpx."""
    settings.setdefault("api_key", KEY)
    client = EmbeddingClient(
        **settings,
        http_client=httpx.Client(transport=emulator.transport()),
        http_async_client=httpx.AsyncClient(transport=emulator.transport()),
    )
    # Clients of one account share a limiter, so they must share its clock.
    client._transport.clock = clock or _clocks.setdefault(emulator, FakeClock())  # type: ignore[assignment]
    return client


_clocks: weakref.WeakKeyDictionary[Emulator, FakeClock] = weakref.WeakKeyDictionary()


def becomes_true(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Waits until a condition holds; returns whether it does before the time is over."""
    ends_at = time.monotonic() + seconds
    while not (fulfilled := condition()) and time.monotonic() < ends_at:
        time.sleep(0.005)
    return fulfilled


class SyncCalls:
    """Calls `embed` and `stream`."""

    def embed(self, client: EmbeddingClient, texts: Any, **options: Any) -> Embeddings:
        return client.embed(texts, **options)

    def stream(self, client: EmbeddingClient, texts: Iterable[str], limit: int | None = None) -> list[Embedding]:
        found = []
        for embedding in client.stream(texts):
            found.append(embedding)
            if len(found) == limit:
                break
        return found


class AsyncCalls:
    """Calls `aembed` and `astream`, each in a new event loop."""

    def embed(self, client: EmbeddingClient, texts: Any, **options: Any) -> Embeddings:
        return asyncio.run(client.aembed(texts, **options))

    def stream(self, client: EmbeddingClient, texts: Iterable[str], limit: int | None = None) -> list[Embedding]:
        async def collect() -> list[Embedding]:
            found = []
            async for embedding in client.astream(texts):
                found.append(embedding)
                if len(found) == limit:
                    break
            return found

        return asyncio.run(collect())
