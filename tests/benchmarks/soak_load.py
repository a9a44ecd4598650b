"""The callers of a soak: each call is counted when it starts and when it ends, and its vectors are compared."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from soak_service import POISON

from dashscope_embeddings import BadRequestError, DashScopeError, EmbeddingClient
from dashscope_embeddings.emulator import Emulator
from dashscope_embeddings.langchain import DashScopeEmbeddings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Generator, Iterator, Sequence

    from dashscope_embeddings import Embedding
    from dashscope_embeddings.vectors import TextType

KEY = "sk-made-up-for-the-soak"
CONCURRENCY = 8
_DIMENSIONS = 64
_POOL = 3_000
"""Different texts; what each must give is made ahead, so that the load itself does not grow."""
_POISONED = 0.03
"""Share of calls that hold a text which the service refuses."""
_CANCELLED = 0.2
"""Share of calls of tasks that are cancelled if they take longer than a moment."""
_PAUSE = 0.04
"""Seconds between two calls of one caller, at most: this machine has other things to do."""
_LEFT_OVER = 10.0
"""Seconds within which what a loop still does for cancelled callers must end."""


class Abandoned(Exception):  # noqa: N818 - not an error: the caller had enough
    """A stream that was closed before its end."""


class Tally:
    """What became of calls, by kind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: dict[str, Counter[str]] = {}
        self.vectors = 0
        self.complaints: list[str] = []

    @contextlib.contextmanager
    def call(self, kind: str, *, poisoned: bool = False) -> Iterator[None]:
        """Counts a call when it starts and how it ends; a call that never returns is missing among the ends."""
        self._note(kind, "started")
        try:
            yield
        except (asyncio.CancelledError, Abandoned):
            self._note(kind, "cancelled")
        except DashScopeError as error:
            self._note(kind, "raised")
            if not (poisoned and isinstance(error, BadRequestError)):
                self.complain(f"{kind} raised {type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it should not have come out
            self._note(kind, "raised")
            self.complain(f"{kind} raised {error!r}")
        else:
            self._note(kind, "answered")
            if poisoned:
                self.complain(f"{kind} answered although one of its texts is always refused")

    def _note(self, kind: str, what: str) -> None:
        with self._lock:
            self.counts.setdefault(kind, Counter())[what] += 1

    def complain(self, what: str) -> None:
        """Something is wrong."""
        with self._lock:
            self.complaints.append(what)

    def total(self, what: str) -> int:
        """Of all kinds."""
        with self._lock:
            return sum(counts[what] for counts in self.counts.values())

    def right(self, vectors: int) -> None:
        """So many vectors were compared and found right."""
        with self._lock:
            self.vectors += vectors


class Load:
    """Callers that share one adapter, until `over` is set."""

    def __init__(self, url: str) -> None:
        self.tally = Tally()
        self.over = threading.Event()
        self.loops: set[asyncio.AbstractEventLoop] = set()
        self._settings: dict[str, Any] = {
            "api_key": KEY,
            "base_url": url,
            "dimensions": _DIMENSIONS,
            "timeout": 3.0,
            "max_concurrency": CONCURRENCY,
        }
        self.adapter = DashScopeEmbeddings(**self._settings)
        service = Emulator()
        self._texts = [f"text {number} of the pool, about rain and {number * 7919} snows" for number in range(_POOL)]
        roles: tuple[TextType, ...] = ("document", "query")
        self._expected = {
            (role, text): service.dense(text, text_type=role, dimension=_DIMENSIONS)
            for role in roles
            for text in self._texts
        }

    @property
    def client(self) -> EmbeddingClient:
        """The one below the adapter."""
        return self.adapter.client

    def forget(self) -> None:
        """Lets go of the client that was used; a new one is made where one is needed."""
        self.adapter = DashScopeEmbeddings(**self._settings)

    # --- what a call must give ----------------------------------------------------------------------------

    def _choose(self, chance: random.Random, most: int) -> tuple[list[str], int | None]:
        """Texts, and the index of the one that will be refused."""
        texts = chance.sample(self._texts, chance.randint(1, most))
        if chance.random() >= _POISONED:
            return texts, None
        bad = chance.randrange(len(texts))
        texts[bad] = f"{POISON} {chance.random()}"
        return texts, bad

    def _compare(self, role: TextType, texts: Sequence[str], vectors: Sequence[Sequence[float]]) -> None:
        if len(vectors) != len(texts):
            self.tally.complain(f"{len(vectors)} vectors for {len(texts)} texts")
            return
        wrong = [i for i, text in enumerate(texts) if list(vectors[i]) != self._expected[role, text]]
        if wrong:
            self.tally.complain(f"{len(wrong)} of {len(texts)} vectors are not those of their {role} texts")
        self.tally.right(len(texts) - len(wrong))

    def _compare_partial(self, texts: Sequence[str], bad: int | None, error: DashScopeError) -> None:
        """An error about one text carries the vectors of all others."""
        if bad is None:
            return
        if error.failed != [bad] or list(error.reasons) != [bad]:
            self.tally.complain(f"text {bad} was refused, and {error.failed} are named")
        kept = sorted(error.partial)
        self._compare("document", [texts[i] for i in kept], [error.partial[i] for i in kept])

    # --- threads ------------------------------------------------------------------------------------------

    def thread(self, number: int) -> None:
        """A thread that calls, one call after the other."""
        chance = random.Random(f"thread {number}")  # noqa: S311 - the same in every run
        calls = [self._query, self._query, self._documents, self._stream, self._brief]
        while not self.over.wait(chance.uniform(0, _PAUSE)):
            chance.choice(calls)(chance)

    def _query(self, chance: random.Random) -> None:
        (text,), bad = self._choose(chance, 1)
        with self.tally.call("embed_query", poisoned=bad is not None):
            self._compare("query", [text], [self.adapter.embed_query(text)])

    def _documents(self, chance: random.Random) -> None:
        texts, bad = self._choose(chance, 40)
        with self.tally.call("embed_documents", poisoned=bad is not None):
            try:
                self._compare("document", texts, self.adapter.embed_documents(texts))
            except DashScopeError as error:
                self._compare_partial(texts, bad, error)
                raise

    def _stream(self, chance: random.Random) -> None:
        texts = chance.sample(self._texts, 60)
        most = chance.choice([60, 60, 60, 15])
        with self.tally.call("stream"):
            found = cast("Generator[Embedding, None, None]", self.client.stream(texts))
            with contextlib.closing(found):
                got = [embedding.dense or [] for embedding, _ in zip(found, range(most), strict=False)]
            self._compare("document", texts[: len(got)], got)
            if most < len(texts):
                raise Abandoned

    def _brief(self, chance: random.Random) -> None:
        """A client of its own that nobody closes."""
        texts = chance.sample(self._texts, 15)
        with self.tally.call("embed, own client"):
            self._compare("document", texts, EmbeddingClient(**self._settings).embed(texts).dense)

    # --- tasks --------------------------------------------------------------------------------------------

    def run_loops(self, number: int, tasks: int, life: float) -> None:
        """A thread with one event loop after the other."""
        chance = random.Random(f"loop {number}")  # noqa: S311 - the same in every run
        while not self.over.is_set():
            asyncio.run(self._loop(chance, tasks, life))

    async def _loop(self, chance: random.Random, tasks: int, life: float) -> None:
        loop = asyncio.get_running_loop()
        self.loops.add(loop)
        until = loop.time() + life
        try:
            await asyncio.gather(*(self._task(random.Random(chance.random()), until) for _ in range(tasks)))  # noqa: S311
            # A request that carried other callers' queries too goes on without those who were cancelled.
            for _ in range(round(_LEFT_OVER / 0.05)):
                if len(asyncio.all_tasks()) == 1:
                    return
                await asyncio.sleep(0.05)
            self.tally.complain(f"{len(asyncio.all_tasks()) - 1} tasks were left when nobody called any more")
        finally:
            self.loops.discard(loop)

    async def _task(self, chance: random.Random, until: float) -> None:
        loop = asyncio.get_running_loop()
        calls = [self._aquery, self._aquery, self._adocuments, self._astream]
        while loop.time() < until and not self.over.is_set():
            await asyncio.sleep(chance.uniform(0, _PAUSE))
            await chance.choice(calls)(chance)

    async def _perhaps_cancelled(self, chance: random.Random, call: Coroutine[Any, Any, Any]) -> Any:
        if chance.random() >= _CANCELLED:
            return await call
        task = asyncio.ensure_future(call)
        await asyncio.wait({task}, timeout=chance.uniform(0, 0.1))
        task.cancel()
        return await task

    async def _aquery(self, chance: random.Random) -> None:
        (text,), bad = self._choose(chance, 1)
        with self.tally.call("aembed_query", poisoned=bad is not None):
            self._compare("query", [text], [await self._perhaps_cancelled(chance, self.adapter.aembed_query(text))])

    async def _adocuments(self, chance: random.Random) -> None:
        texts, bad = self._choose(chance, 40)
        with self.tally.call("aembed", poisoned=bad is not None):
            try:
                found = await self._perhaps_cancelled(chance, self.client.aembed(texts))
            except DashScopeError as error:
                self._compare_partial(texts, bad, error)
                raise
            self._compare("document", texts, found.dense)

    async def _astream(self, chance: random.Random) -> None:
        texts = chance.sample(self._texts, 60)
        most = chance.choice([60, 60, 60, 15])
        with self.tally.call("astream"):
            got: list[list[float]] = []
            found = cast("AsyncGenerator[Embedding, None]", self.client.astream(texts))
            async with aclosing(found):
                async for embedding in found:
                    got.append(embedding.dense or [])
                    if len(got) == most:
                        break
            self._compare("document", texts[: len(got)], got)
            if most < len(texts):
                raise Abandoned
