"""The output of the command `demo`, from its first line to the bill. Needs rich."""

from __future__ import annotations

import contextlib
import functools
import math
import platform
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from dashscope_embeddings._core.address import EMULATOR
from dashscope_embeddings.cli import demo
from dashscope_embeddings.cli.common import make_table
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.vectors import Usage, counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from dashscope_embeddings.cli.demo import Answer, Passage, Ranking, Search


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Options of the command `demo`."""

    folder: Path | None
    """None: Python's help topics."""
    questions: Sequence[str]
    """Empty: some questions that the text can answer."""
    model: str
    dimensions: int | None
    max_hits: int
    """Hits to show of each ranking."""
    is_live: bool
    """Whether to use the service instead of the emulator."""
    store: demo.Store


def run_demo(options: DemoOptions, out: Console, err: Console) -> None:
    """Runs the demo.

    Raises:
        NoTextError: the folder has no text.
        ImportError: LangChain, LlamaIndex or the store is not installed.
        DashScopeError: no key, a setting that cannot work, or a failed request.
    """
    settings: dict[str, Any] = {"dimensions": options.dimensions}
    if not options.is_live:
        settings["base_url"] = EMULATOR
    address = EmbeddingClient(options.model, **settings).settings.address
    city = f" ({address.region.city})" if address.region else ""
    out.print(
        f"On the service at {address.host}{city}: the texts are sent there and billed."
        if options.is_live
        else "On the emulator: no key, no network, no bill; vectors are made up from words.",
        markup=False,
    )
    with out.status("loading LangChain and LlamaIndex"), warnings.catch_warnings():
        # Some of their releases warn at import.
        warnings.simplefilter("ignore")
        passages = _passages(options.folder, out, err)
        search = demo.Search(passages, options.model, options.store, **settings)
    out.print(Text(f"stored in {_STORE_DESCRIPTIONS[options.store]}\n"))
    with contextlib.closing(search), warnings.catch_warnings():
        # Hides warnings of the frameworks, such as Qdrant's on the size of its local mode; ours are shown.
        warnings.filterwarnings("ignore", module="langchain|llama_index|qdrant_client")
        _index_passages(search, out)
        index_requests = _requests(search)
        for question in options.questions or _questions(options.folder, passages, out):
            for line in answer_lines(
                question, search.answer(question), passages, max_hits=options.max_hits, width=out.width
            ):
                out.print(line)
    out.print(billing_table({index.name: index.embeddings.usage for index in search.indexes}))
    components_note = ", each for dense and sparse" if search.has_sparse else ""
    remarks = (
        (
            f"{counted(index_requests, 'request')} for the passages, "
            f"{_requests(search) - index_requests:,} for the questions"
            f"{components_note}."
        ),
        f"List price{city}, without free quota or discounts."
        if options.is_live
        else "Nothing was billed: Beijing's list price, tokens by the emulator's own count.",
    )
    for remark in remarks:
        out.print(Text(remark, "dim"))


def _requests(search: Search) -> int:
    return sum(index.embeddings.usage.requests for index in search.indexes)


_STORE_DESCRIPTIONS = {
    demo.Store.MEMORY: "each framework's own memory",
    demo.Store.QDRANT: "Qdrant's local mode, a collection for each framework",
}


def _passages(folder: Path | None, out: Console, err: Console) -> list[Passage]:
    if folder is None:
        passages, origin = demo.help_topics(), f"the help topics of Python {platform.python_version()}"
    else:
        passages, skipped = demo.read_folder(folder)
        origin = str(folder)
        for line in skipped:
            err.print(Text(f"skipped {line}", "yellow"))
    characters = sum(len(passage.body) for passage in passages)
    out.print(
        Text(f"{counted(len(passages), 'passage')}, {counted(characters, 'character')}, from {origin}"), soft_wrap=True
    )
    return passages


def _questions(folder: Path | None, passages: Sequence[Passage], out: Console) -> Sequence[str]:
    if folder is None:
        return demo.QUESTIONS
    out.print(Text("No --query: asking with the first sentences of some passages.\n", "dim"))
    return [passage.first_sentence for passage in passages[:: math.ceil(len(passages) / 3)]]


def _index_passages(search: Search, out: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("passages"),
        TimeElapsedColumn(),
    )
    components = "dense and sparse" if search.has_sparse else "dense"
    with Progress(*columns, console=out) as progress:
        for index in search.indexes:
            task = progress.add_task(f"{index.name}, {components}".ljust(28), total=len(search.passages))
            search.add_passages(index, functools.partial(progress.advance, task))
    out.print()


# --- answers -----------------------------------------------------------------------------------------------

_SCORE_TOLERANCE = 1e-4
"""Scores that differ by less are equal: the frameworks compute in different precision."""


def answer_lines(
    question: str, found: Answer, passages: Sequence[Passage], *, max_hits: int, width: int
) -> Iterator[Text]:
    """The first hits of each ranking: rank, score, title, and the passage from its best matching sentence on."""
    yield Text(question, "bold")
    for ways in zip(*(rankings.items() for rankings in found.values()), strict=True):
        by_framework = {name: (label, ranking[:max_hits]) for name, (label, ranking) in zip(found, ways, strict=True)}
        for label, ranking in _merge(by_framework):
            yield Text(f"  {label}", "cyan")
            for rank, (index, score) in enumerate(ranking, start=1):
                yield _hit_line(f"  {rank:>3} {score:7.4f}  ", passages[index], question, width)
            if not ranking:
                yield Text("    no passage shares a token", "dim")
    yield Text()


def _hit_line(prefix: str, passage: Passage, question: str, width: int) -> Text:
    """A hit as one line on any terminal: a table would wrap it, or squeeze a column to nothing."""
    title, excerpt = Text(passage.title), Text(passage.excerpt(question), "dim")
    title.truncate(min(36, width * 3 // 10), overflow="ellipsis", pad=True)
    line = Text.assemble(prefix, title, "  ", excerpt, no_wrap=True)
    line.truncate(width, overflow="ellipsis")
    return line


def _merge(by_framework: Mapping[str, tuple[str, Ranking]]) -> list[tuple[str, Ranking]]:
    """One labelled ranking if the frameworks agree on method and hits, else one for each."""
    (label, first), *others = by_framework.values()
    if all(label == other_label and _are_equal(first, other) for other_label, other in others):
        return [(f"{label} · {' and '.join(by_framework)} agree", first)]
    return [(f"{label} · {name}", ranking) for name, (label, ranking) in by_framework.items()]


def _are_equal(first: Ranking, second: Ranking) -> bool:
    return len(first) == len(second) and all(
        index == second_index and abs(score - second_score) < _SCORE_TOLERANCE
        for (index, score), (second_index, second_score) in zip(first, second, strict=True)
    )


def billing_table(usage: Mapping[str, Usage]) -> Table:
    """The bill of each framework, and the total."""
    table = make_table("What it cost", "asked by", "requests", "texts", "tokens", "list price")
    total = sum(usage.values(), Usage())
    for name, part in [*usage.items(), ("together", total)]:
        cost = "unknown" if part.cost is None else f"{part.cost.currency} {part.cost.amount:.6f}"
        table.add_row(name, f"{part.requests:,}", f"{part.texts:,}", f"{part.tokens:,}", cost)
    return table
