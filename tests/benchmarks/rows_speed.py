"""What is measured without a quota: speed, CPU, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import Bench, least, median, trouble
from load import ROWS, Load
from replies import SPARSE_TOKENS
from table import Figure
from terms import Terms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench import Run

FAR = Terms(latency=0.08)
NEAR = Terms()
SIDES = (("sync", ""), ("async", "-async"))
_PEERS = ("langchain-community", "llama-index-dashscope", "langchain-openai")
_OURS = ("ours-langchain", "ours-llama-index")
_JOB = Load("documents", texts=1000)
_MB = 1e6


def _job_runs(bench: Bench) -> dict[str, list[Run]]:
    """The job of three rows."""
    names = [name + ending for name in (*_OURS, "ours", "httpx") for _, ending in SIDES]
    return bench.by_turns(names, _JOB, FAR, bench.rounds(3))


def _documents(bench: Bench) -> Iterator[Figure]:
    """Peers once (their time is the latency of 100 replies), ours by turns with the floor."""
    slow = {name: bench.run(name, _JOB, FAR) for name in _PEERS[: bench.rounds(len(_PEERS))]}
    usable = {name: run.result.wall for name, run in slow.items() if run.trouble is None}
    if not usable:
        yield Figure("documents", "the peers", None, trouble=f"no peer works: {trouble(slow.values())}")
        return
    best = min(usable, key=lambda name: usable[name])
    note = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in usable.items() if name != best)
    runs = _job_runs(bench)
    for name in _OURS:
        for side, ending in SIDES:
            mine, what = runs[name + ending], f"1,000 texts, 80 ms a reply: {name[5:]}, {side}"
            measured, floor = (least(mine), "s"), (usable[best], best)
            yield Figure("documents", what, measured, 0.1, floor, trouble=trouble(mine), note=note)
            note = ""


def _order(bench: Bench) -> Iterator[Figure]:
    """Replies name the text of each row; a client that goes by their order misplaces ten vectors of a reply."""
    peer, ours = (bench.run(name, _IN_ORDER, _REVERSED) for name in ("langchain-community", "ours-langchain"))
    what = "1,000 texts, each tenth reply lists its rows last to first: vectors on a wrong text"
    floor = (peer.result.more.get("misplaced", float("nan")), "langchain-community")
    misplaced = ours.result.more.get("misplaced", float("nan"))
    yield Figure("order", what, (misplaced, ""), 0.0, floor, trouble=ours.trouble)


_IN_ORDER, _REVERSED = Load("order", texts=1000), Terms(reversed_every=10)


def _no_quota(bench: Bench) -> Iterator[Figure]:
    """The bar is 0.75 s where bare httpx takes 0.61 s."""
    runs = _job_runs(bench)
    for side, ending in SIDES:
        mine, what = runs[f"ours{ending}"], f"100 requests, 80 ms a reply: {side}"
        floor = (least(runs[f"httpx{ending}"]), f"httpx {side}")
        yield Figure("no-quota", what, (least(mine), "s"), 1.23, floor, trouble=trouble(mine))


def _cpu(bench: Bench) -> Iterator[Figure]:
    runs = _job_runs(bench)
    for side, ending in SIDES:
        mine, what = runs[f"ours-langchain{ending}"], f"CPU for 1,000 texts: langchain, {side}"
        floor = (least(runs[f"httpx{ending}"], "cpu"), f"httpx {side}")
        note = f"EmbeddingClient alone {least(runs[f'ours{ending}'], 'cpu'):.2f} s"
        measured = (least(mine, "cpu"), "s")
        yield Figure("cpu", what, measured, 1.1, floor, trouble=trouble(mine), note=note)


def _corpus(bench: Bench) -> Iterator[Figure]:
    """The texts of a corpus as one list, and no files: those are the row `files`."""
    job = Load("documents", texts=bench.size(10_000, 2_000))
    for side, ending in SIDES:
        runs = bench.by_turns([f"ours{ending}", f"httpx{ending}"], job, FAR, bench.rounds(2))
        mine, bare = runs[f"ours{ending}"], runs[f"httpx{ending}"]
        what, floor = f"{job.texts:,} texts, 80 ms a reply: {side}", (least(bare), f"httpx {side}")
        note = f"CPU {least(mine, 'cpu'):.2f} s, httpx {least(bare, 'cpu'):.2f} s"
        yield Figure("corpus", what, (least(mine), "s"), 1.15, floor, trouble=trouble(mine), note=note)


def _files(bench: Bench) -> Iterator[Figure]:
    """A corpus with its checkpoint and its output beside a stream that keeps nothing; no latency hides the work."""
    job = Load("files", texts=bench.size(200_000, 20_000), words=12)
    runs = bench.by_turns(["ours"], job, NEAR, bench.rounds(2))["ours"]
    floor = (job.texts / least(runs, "stream"), "stream")
    note = f"CPU {least(runs, 'cpu'):.1f} s, stream {least(runs, 'stream_cpu'):.1f} s"
    speed = (job.texts / least(runs), "texts/s")
    what = f"embed_corpus: {job.texts:,} texts, JSON lines to Parquet"
    yield Figure("files", what, speed, 0.8, floor, at_least=True, trouble=trouble(runs), note=note)
    grown, note = (
        least(runs, "rss_growth") / _MB,
        f"importing pyarrow before took {least(runs, 'imported') / _MB:.0f} MB",
    )
    yield Figure("files", "  peak memory growth", (grown, "MB"), 60.0, trouble=trouble(runs), note=note)


def _reply(bench: Bench, row: str = "reply", beside: str = "", bar: float = 1.35) -> Iterator[Figure]:
    what = f"reading a reply of {ROWS} x 1,024 floats{beside}, checked"
    run = bench.run("ours", Load(row))
    more = {name: seconds * 1e3 for name, seconds in run.result.more.items()}
    if run.trouble or not more:
        yield Figure(row, what, None, trouble=run.trouble)
        return
    note = f"typed by pydantic {more['typed']:.2f} ms, json {more['json']:.2f} ms"
    yield Figure(row, what, (more["ours"], "ms"), bar, (more["from_json"], "from_json"), note=note)


def _hybrid(bench: Bench) -> Iterator[Figure]:
    return _reply(bench, "hybrid", f" and {ROWS} x {SPARSE_TOKENS} sparse weights", 1.8)


def _query(bench: Bench) -> Iterator[Figure]:
    """The median query of the quietest repetition."""
    job = Load("query", texts=bench.size(500, 300), words=12)
    names = [name + ending for name in ("ours-langchain", "httpx") for _, ending in SIDES]
    runs = bench.by_turns(names, job, NEAR, bench.rounds(5))
    peer = [] if bench.quick else [bench.run("langchain-community", job, NEAR)]
    for side, ending in SIDES:
        mine, what = runs[f"ours-langchain{ending}"], f"one query, no latency: langchain, {side}"
        measured = (least(mine, "median") * 1e3, "ms")
        floor = (least(runs[f"httpx{ending}"], "median") * 1e3, f"httpx {side}")
        note = f"langchain-community {least(peer, 'median') * 1e3:.2f} ms" if peer and not ending else ""
        yield Figure("query", what, measured, 1.0, floor, trouble=trouble(mine), note=note)


def _busy(bench: Bench) -> Iterator[Figure]:
    """Judged by the 90th percentile of queries, against lone ones of the same process."""
    for side, ending in SIDES[: bench.rounds(2)]:
        what = f"a query while 100,000 texts are indexed: {side}"
        run = bench.run(f"ours-langchain{ending}", Load("busy", texts=100_000, words=12), FAR)
        more = run.result.more
        if not more:
            yield Figure("busy", what, None, trouble=run.result.error)
            continue
        note = f"median {more['median'] * 1e3:.0f} ms, longest {more['most'] * 1e3:.0f} ms"
        measured, floor = (more["p90"] * 1e3, "ms"), (more["other"] * 1e3, "lone query")
        yield Figure("busy", what, measured, 3.0, floor, trouble=run.result.error, note=note)


def _stream(bench: Bench) -> Iterator[Figure]:
    """Flat: the later three quarters add at most 20 MB to the peak of the first."""
    count = bench.size(40_000, 8_000)
    run = bench.run("ours", Load("stream", texts=count, words=12), NEAR)
    grown, later = run.result.rss_growth / _MB, run.result.more.get("later", 0.0) / _MB
    what = f"stream of {count:,} texts: peak memory growth"
    yield Figure("stream", what, (grown, "MB"), 150.0, trouble=run.trouble)
    yield Figure("stream", "  of which after its first quarter", (later, "MB"), 20.0, trouble=run.trouble)


def _keep(bench: Bench) -> Iterator[Figure]:
    """The slope between a small and a large corpus: requests under way take the same memory in both.

    A vector is 4 KB of float32; a quarter of that is left for everything else.
    """
    what = "peak memory for each further vector kept"
    sizes = (3000, bench.size(15_000, 9_000))
    few, many = (bench.run("ours", Load("keep", texts=size, words=12), NEAR) for size in sizes)
    slope = (many.result.rss_growth - few.result.rss_growth) / (sizes[1] - sizes[0]) / 1e3
    said = few.result.error or many.result.error
    note = f"the array itself {many.result.more.get('bytes_a_vector', 0.0) / 1e3:.1f} KB"
    yield Figure("keep", what, (slope, "KB"), 5.0, trouble=said, note=note)


def _module(bench: Bench) -> Iterator[Figure]:
    """CPU time: importing waits for nothing, and other work on the machine does not count."""
    names = ["ours-langchain"] if bench.quick else ["ours-langchain", "langchain-community"]
    runs = bench.by_turns(names, Load("module"), NEAR, bench.rounds(4, 2))
    mine = runs[names[0]]
    notes = [f"{name} with its SDK adds {least(runs[name], 'cpu') * 1e3:.0f} ms" for name in names[1:]]
    notes.append(f"langchain_core.embeddings and httpx, there before, take {median(mine, 'other') * 1e3:.0f} ms")
    what = "import dashscope_embeddings.langchain adds"
    measured = (least(mine, "cpu") * 1e3, "ms")
    yield Figure("import", what, measured, 100.0, trouble=trouble(mine), note="; ".join(notes))


SPEED_ROWS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "documents": _documents,
    "order": _order,
    "no-quota": _no_quota,
    "cpu": _cpu,
    "corpus": _corpus,
    "files": _files,
    "reply": _reply,
    "hybrid": _hybrid,
    "query": _query,
    "busy": _busy,
    "stream": _stream,
    "keep": _keep,
    "import": _module,
}
