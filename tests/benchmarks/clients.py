"""One client under one load, in a process of its own: `python clients.py NAME LOAD URL`.

Prints one JSON line: seconds of wall and CPU, growth of the peak resident memory, vectors, error, and what
the kind of load measures besides. Every vector is checked against its text and role, outside of the timing;
a wrong one is an error. NAME ends in `-async` for the asynchronous calls of a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import importlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import httpx
from load import Load, belongs, complaint, texts
from makers import maker, our_client
from measuring import Result, Work, memory, spread
from pydantic_core import to_json
from replies import compare_readers, module_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from makers import Calls, Vectors

WARM_QUERIES = 20
BUSY_QUERIES = 30
SETTLING = 1.5
"""Seconds of indexing before a query among documents is timed."""
KEPT_TOLERANCE = 1e-6
"""float32 of a mark."""


# --- one call after another, sync or async -----------------------------------------------------------------


async def documents(made: Asked, load: Load, result: Result) -> None:
    """All texts at once."""
    asked = list(texts(load.texts, load.words, least_words=load.least_words))
    with result.measuring():
        vectors = await made().documents(asked)
    result.vectors, result.error = len(vectors), complaint(vectors, asked, "document")


async def order(made: Asked, load: Load, result: Result) -> None:
    """All texts at once; counts the vectors that stand where another text's belongs."""
    asked = list(texts(load.texts, load.words, least_words=load.least_words))
    with result.measuring():
        vectors = await made().documents(asked)
    result.vectors = len(vectors)
    pairs = zip(vectors, asked, strict=True)
    result.more = {"misplaced": sum(not belongs(vector, text, "document") for vector, text in pairs)}


async def query(made: Asked, load: Load, result: Result) -> None:
    """Single queries, one after another."""
    call = made().query
    asked = list(texts(load.texts + WARM_QUERIES, load.words, "query"))
    times, vectors = [], []
    with result.measuring():
        for text in asked:
            start = time.perf_counter()
            vectors.append(await call(text))
            times.append(time.perf_counter() - start)
    result.vectors, result.error = len(vectors), complaint(vectors, asked, "query")
    result.more = spread(times[WARM_QUERIES:])


async def lone(made: Asked, load: Load, result: Result) -> None:
    """A lone query and a lone document by turns: only the query's road leads past the packing of queries."""
    calls = made()
    asked = list(texts(load.texts + WARM_QUERIES, load.words, "query"))
    queries, others, wrong = [], [], 0
    with result.measuring():
        for text in asked:
            start = time.perf_counter()
            one = await calls.query(text)
            middle = time.perf_counter()
            other = (await calls.documents([text]))[0]
            queries.append(middle - start)
            others.append(time.perf_counter() - middle)
            wrong += not (belongs(one, text, "query") and belongs(other, text, "document"))
    result.vectors = 2 * len(asked)
    result.error = f"{wrong} wrong vectors" if wrong else None
    result.more = spread(queries[WARM_QUERIES:])
    result.more["other"] = statistics.median(others[WARM_QUERIES:])


@dataclass
class _Awaited:
    """The calls of a client as coroutines: its asynchronous ones, or its others, which never suspend."""

    made: Calls
    is_async: bool

    async def documents(self, asked: list[str]) -> Vectors:
        return await self.made.adocuments(asked) if self.is_async else self.made.documents(asked)

    async def query(self, text: str) -> Sequence[float]:
        return await self.made.aquery(text) if self.is_async else self.made.query(text)


Asked: TypeAlias = "Callable[[], _Awaited]"


def in_turn(load: Load, make: Callable[[], Calls], result: Result, *, is_async: bool) -> None:
    """Runs one of these: without an event loop where its calls need none, for a running one changes what they do."""
    work = _IN_TURN[load.kind](lambda: _Awaited(make(), is_async), load, result)
    if is_async:
        asyncio.run(work)
    else:
        with contextlib.suppress(StopIteration):
            work.send(None)


_IN_TURN: dict[str, Callable[[Asked, Load, Result], Coroutine[None, None, None]]] = {
    "documents": documents,
    "order": order,
    "query": query,
    "lone": lone,
}

# --- many at the same time ---------------------------------------------------------------------------------


def callers(make: Callable[[], Calls], load: Load, result: Result) -> None:
    """Many threads with one query at a time each."""
    call = make().query
    work = Work(load)

    def run() -> None:
        for text in work:
            work.took(text, call(text))

    with result.measuring():
        threads = [threading.Thread(target=work.guarded, args=(run,)) for _ in range(load.callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    work.report(result)


def busy(make: Callable[[], Calls], load: Load, result: Result) -> None:
    """Queries while the same process indexes documents."""
    made = make()
    call, index = made.query, made.documents
    corpus = list(texts(load.texts, load.words))
    asked = list(texts(2 * BUSY_QUERIES, load.words, "query"))
    before: list[float] = []
    among: list[float] = []
    wrong = 0
    ended = threading.Event()

    def run() -> None:
        try:
            index(corpus)
        finally:
            ended.set()

    for number, text in enumerate(asked):
        if number == BUSY_QUERIES:
            threading.Thread(target=run, daemon=True).start()
            ended.wait(SETTLING)
        start = time.perf_counter()
        wrong += not belongs(call(text), text, "query")
        (among if number >= BUSY_QUERIES else before).append(time.perf_counter() - start)
        ended.wait(0.03)
    _busy_report(result, before, among, wrong, indexing=not ended.is_set())


async def acallers(make: Callable[[], Calls], load: Load, result: Result) -> None:
    """Many tasks of one loop with one query at a time each."""
    call = make().aquery
    work = Work(load)

    async def run() -> None:
        for text in work:
            work.took(text, await call(text))

    with result.measuring():
        ended = await asyncio.gather(*(run() for _ in range(load.callers)), return_exceptions=True)
    work.errors += [repr(error) for error in ended if error is not None]
    work.report(result)


async def abusy(make: Callable[[], Calls], load: Load, result: Result) -> None:
    """As `busy`, on one loop."""
    made = make()
    call, index = made.aquery, made.adocuments
    corpus = list(texts(load.texts, load.words))
    asked = list(texts(2 * BUSY_QUERIES, load.words, "query"))
    before: list[float] = []
    among: list[float] = []
    wrong = 0
    indexing: asyncio.Future[Any] | None = None
    for number, text in enumerate(asked):
        if number == BUSY_QUERIES:
            indexing = asyncio.ensure_future(index(corpus))
            await asyncio.sleep(SETTLING)
        start = time.perf_counter()
        wrong += not belongs(await call(text), text, "query")
        (among if number >= BUSY_QUERIES else before).append(time.perf_counter() - start)
        await asyncio.sleep(0.03)
    assert indexing is not None
    _busy_report(result, before, among, wrong, indexing=not indexing.done())


# --- our client alone --------------------------------------------------------------------------------------


def stream(make: Callable[[], Any], load: Load, result: Result) -> None:
    """A stream whose consumer drops each vector."""
    client, expected = make(), texts(load.texts, load.words)
    wrong, early = 0, 0.0
    with result.measuring():
        resident = memory("VmRSS")
        for found, text in zip(client.stream(texts(load.texts, load.words)), expected, strict=False):
            wrong += not belongs(found.dense, text, "document")
            result.vectors += 1
            if result.vectors == load.texts // 4:
                early = memory("VmHWM") - resident
    short = f"{result.vectors} vectors for {load.texts} texts" if result.vectors != load.texts else None
    result.error = f"{wrong} wrong vectors" if wrong else short
    result.more = {"first_quarter": early, "later": result.rss_growth - early}


def keep(make: Callable[[], Any], load: Load, result: Result) -> None:
    """A corpus whose vectors are kept, as one array where the client has that."""
    client = make()
    asked = list(texts(load.texts, load.words))
    client.embed(asked[: load.texts // 100], array=True)
    with result.measuring():
        kept = client.embed(asked, array=True).dense_array
    result.vectors = len(kept)
    result.error = complaint(kept, asked, "document", KEPT_TOLERANCE)
    result.more = {"bytes_a_vector": kept.nbytes / len(kept)}


def files(make: Callable[[], Any], load: Load, result: Result) -> None:
    """A file of JSON lines to Parquet, on the disk of TMPDIR; then a stream over the same lines that keeps nothing."""
    client, corpus = make(), importlib.import_module("dashscope_embeddings.corpus")
    before = memory("VmRSS")
    importlib.import_module("pyarrow.parquet")
    imported = memory("VmRSS") - before
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "texts.jsonl"), Path(folder, "vectors.parquet")
        with source.open("wb") as file:
            file.writelines(to_json({"id": f"n{n}", "text": text}) + b"\n" for n, text in enumerate(_texts_of(load)))
        with result.measuring():
            corpus.embed_corpus(source, output, client=client)
        streaming = Result()
        with streaming.measuring(), source.open("rb") as lines:
            streaming.vectors = sum(1 for _ in client.stream(json.loads(line)["text"] for line in lines))
        rows = zip(corpus.read(output), _texts_of(load), strict=True)
        wrong = sum(not belongs(row.dense, text, "document", KEPT_TOLERANCE) for row, text in rows)
    result.vectors, result.error = load.texts + streaming.vectors, f"{wrong} wrong vectors" if wrong else None
    result.more = {"imported": imported, "stream": streaming.wall, "stream_cpu": streaming.cpu}


# --- shared ------------------------------------------------------------------------------------------------


def _busy_report(result: Result, before: list[float], among: list[float], wrong: int, *, indexing: bool) -> None:
    result.vectors = len(before) + len(among)
    result.more = spread(among)
    result.more["other"] = statistics.median(before)
    if wrong:
        result.error = f"{wrong} wrong vectors"
    elif not indexing:
        result.error = "indexing ended before the queries did"


_TOGETHER: dict[str, Callable[[Callable[[], Calls], Load, Result], None]] = {"callers": callers, "busy": busy}
_TOGETHER_ASYNC: dict[str, Callable[[Callable[[], Calls], Load, Result], Coroutine[None, None, None]]] = {
    "callers": acallers,
    "busy": abusy,
}
_OURS_ALONE: dict[str, Callable[[Callable[[], Any], Load, Result], None]] = {
    "stream": stream,
    "keep": keep,
    "files": files,
}


def _texts_of(load: Load) -> Iterator[str]:
    return texts(load.texts, load.words, least_words=load.least_words)


def _warm(url: str) -> None:
    """Makes httpx import what it imports late, which is nobody's merit."""
    with httpx.Client() as client:
        client.get(f"{url}/control")

    async def ask() -> None:
        async with httpx.AsyncClient() as client:
            await client.get(f"{url}/control")

    asyncio.run(ask())


def run(name: str, load: Load, url: str) -> Result:
    """One client under one load."""
    result = Result()
    if load.kind == "module":
        result.cpu, result.more = module_seconds(name)
    elif load.kind in {"reply", "hybrid"}:
        result.more = compare_readers(hybrid=load.kind == "hybrid")
    elif load.kind in _OURS_ALONE:
        our_client(url, load)
        _warm(url)
        _OURS_ALONE[load.kind](lambda: our_client(url, load), load, result)
    else:
        make = maker(name.removesuffix("-async"))
        _warm(url)
        client, is_async = functools.partial(make, url, load), name.endswith("-async")
        if load.kind in _IN_TURN:
            in_turn(load, client, result, is_async=is_async)
        elif is_async:
            asyncio.run(_TOGETHER_ASYNC[load.kind](client, load, result))
        else:
            _TOGETHER[load.kind](client, load, result)
    return result


def main() -> None:
    """Runs one load and prints its result; leaves without waiting for work that was abandoned."""
    name, load, url = sys.argv[1:]
    try:
        result = run(name, Load.parse(load), url)
    except Exception as error:  # noqa: BLE001 - reported as the run's error
        result = Result(error=f"{type(error).__name__}: {error}")
    sys.stdout.write(json.dumps(dataclasses.asdict(result)) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
