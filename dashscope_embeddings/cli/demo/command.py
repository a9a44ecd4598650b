"""The command `demo`, from its first line to the bill."""

from __future__ import annotations

import contextlib
import functools
import math
import platform
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from dashscope_embeddings._core.address import EMULATOR
from dashscope_embeddings.catalogue import DEFAULT_MODEL
from dashscope_embeddings.cli.common import EXIT_USAGE, console, fail, make_table, print_error
from dashscope_embeddings.cli.demo.passages import QUESTIONS, help_topics, read_folder
from dashscope_embeddings.cli.demo.search import STORES, open_indexes
from dashscope_embeddings.client import EmbeddingClient
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.vectors import Usage, counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console

    from dashscope_embeddings._core.address import Address
    from dashscope_embeddings.cli.demo.passages import Passage
    from dashscope_embeddings.cli.demo.search import PassageIndex, Ranking


def demo(  # noqa: PLR0913 - one for each option
    folder: Annotated[
        Path | None,
        typer.Argument(
            show_default=False,
            help="Search the .txt and .md files in here, at any depth, or this one. Default: Python's own help topics.",
        ),
    ] = None,
    *,
    query: Annotated[
        list[str] | None, typer.Option("--query", "-q", help="Question to ask; may be given several times.")
    ] = None,
    live: Annotated[
        bool,
        typer.Option("--live", help="Use the service, not the emulator: needs DASHSCOPE_API_KEY, and bills."),
    ] = False,
    model: Annotated[str, typer.Option(help="See the command models.")] = DEFAULT_MODEL,
    dimensions: Annotated[
        int | None, typer.Option(min=1, show_default="the model's", help="Floats in a dense vector.")
    ] = None,
    store: Annotated[
        str,
        typer.Option(
            metavar="|".join(STORES),
            help="Vector store of both frameworks: their own in memory, or Qdrant's local mode.",
        ),
    ] = "memory",
    k: Annotated[int, typer.Option("-k", min=1, max=50, help="Hits to show of each ranking.")] = 3,
) -> None:
    """Search real text with LangChain and LlamaIndex: dense, sparse and fused.

    Offline and without a key, unless --live is given.

    Exit codes: 0 searched, 1 a request failed, 2 wrong use.
    """
    out = console()
    if store not in STORES:
        fail(f"--store {store}: expected {' or '.join(STORES)}", EXIT_USAGE)
    settings: dict[str, Any] = {"dimensions": dimensions} if live else {"dimensions": dimensions, "base_url": EMULATOR}
    try:
        city = _print_address(out, EmbeddingClient(model, **settings).settings.address, live=live)
        with out.status("loading LangChain and LlamaIndex"), warnings.catch_warnings():
            # Some of their releases warn at import.
            warnings.simplefilter("ignore")
            passages = _passages(folder, out)
            indexes = open_indexes(model, store, **settings)
    except InvalidInput as error:
        fail(str(error).replace('pass base_url="emulator"', "leave out --live"), EXIT_USAGE)
    except ImportError as missing:
        fail(f"the demo lacks a package: {_INSTALL_COMMAND} ({missing})")
    out.print(Text(f"stored in {STORES[store]}\n"))
    with contextlib.ExitStack() as closing, warnings.catch_warnings():
        # Hides warnings of the frameworks, such as Qdrant's on the size of its local mode; ours are shown.
        warnings.filterwarnings("ignore", module="langchain|llama_index|qdrant_client")
        for index in indexes:
            closing.callback(index.close)
        _fill(indexes, passages, out)
        filling = sum(index.embeddings.usage.requests for index in indexes)
        for question in query or _questions(folder, passages, out):
            found = {index.framework: index.rank(question) for index in indexes}
            for line in answer_lines(question, found, passages, max_hits=k, width=out.width):
                out.print(line)
    _print_bill(out, indexes, filling)
    price = f"List price{city}, without free quota or discounts."
    offline = "Nothing was billed: Beijing's list price, tokens by the emulator's own count."
    out.print(Text(price if live else offline, "dim"))


_INSTALL_COMMAND = 'pip install "dashscope-embeddings[cli,langchain,llama-index,qdrant]"'


def _print_address(out: Console, address: Address, *, live: bool) -> str:
    """Prints where the texts are sent; returns the city, as " (Beijing)"."""
    city = f" ({address.region.city})" if address.region else ""
    out.print(
        f"On the service at {address.host}{city}: the texts are sent there and billed."
        if live
        else "On the emulator: no key, no network, no bill; vectors are made up from words.",
        markup=False,
    )
    return city


def _passages(folder: Path | None, out: Console) -> list[Passage]:
    if folder is None:
        passages, origin = help_topics(), f"the help topics of Python {platform.python_version()}"
    else:
        passages, skipped = read_folder(folder)
        origin = str(folder)
        for line in skipped:
            print_error(f"skipped {line}", "yellow")
    characters = sum(len(passage.body) for passage in passages)
    out.print(
        Text(f"{counted(len(passages), 'passage')}, {counted(characters, 'character')}, from {origin}"), soft_wrap=True
    )
    return passages


def _questions(folder: Path | None, passages: Sequence[Passage], out: Console) -> Sequence[str]:
    if folder is None:
        return QUESTIONS
    out.print(Text("No --query: asking with the first sentences of some passages.\n", "dim"))
    return [passage.first_sentence for passage in passages[:: math.ceil(len(passages) / 3)]]


def _fill(indexes: Sequence[PassageIndex], passages: Sequence[Passage], out: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("passages"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=out) as progress:
        for index in indexes:
            components = "dense and sparse" if index.has_sparse else "dense"
            task = progress.add_task(f"{index.framework}, {components}".ljust(28), total=len(passages))
            index.fill(passages, functools.partial(progress.advance, task))
    out.print()


# --- answers -----------------------------------------------------------------------------------------------

_SCORE_TOLERANCE = 1e-4
"""Scores that differ by less are equal: the frameworks compute in different precision."""


def answer_lines(
    question: str, found: Mapping[str, Mapping[str, Ranking]], passages: Sequence[Passage], *, max_hits: int, width: int
) -> Iterator[Text]:
    """The first hits of each ranking: rank, score, title, and the passage from its best matching sentence on.

    `found`: framework → how it ranked → its ranking.
    """
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


def _print_bill(out: Console, indexes: Sequence[PassageIndex], filling: int) -> None:
    """Prints what each framework was billed, and the total; `filling`: requests for the passages."""
    table = make_table("What it cost", "asked by", "requests", "texts", "tokens", "list price")
    usage = {index.framework: index.embeddings.usage for index in indexes}
    total = sum(usage.values(), Usage())
    for name, part in [*usage.items(), ("together", total)]:
        cost = "unknown" if part.cost is None else f"{part.cost.currency} {part.cost.amount:.6f}"
        table.add_row(name, f"{part.requests:,}", f"{part.texts:,}", f"{part.tokens:,}", cost)
    out.print(table)
    both = ", each for dense and sparse" if indexes[0].has_sparse else ""
    questions = total.requests - filling
    out.print(Text(f"{counted(filling, 'request')} for the passages, {questions:,} for the questions{both}.", "dim"))
