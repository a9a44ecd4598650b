"""The command `models`: the catalogue as tables of 80 columns for a terminal, or as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from dashscope_embeddings import catalogue
from dashscope_embeddings.catalogue import DEFAULT_MODEL, MODELS, REGIONS
from dashscope_embeddings.cli.common import console, make_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

    from dashscope_embeddings.catalogue import Model

_DASH = "–"
_CITIES = {region.id: region.city for region in REGIONS if any(region.id in m.prices for m in MODELS)}


def models(
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table for GitHub.")] = False,
) -> None:
    """Show limits, dimensions, prices and sources of each model."""
    if markdown:
        typer.echo(models_markdown())
    else:
        console().print(*_models_on_a_terminal(), sep="\n")


def _models_on_a_terminal() -> Iterator[RenderableType]:
    """Tables of limits, dimensions and prices, and their sources."""
    sources = list(dict.fromkeys((model.source, model.seen) for model in MODELS))
    limits = make_table("Limits", "model", "texts a\nrequest", "tokens a text", "sparse", "instruct")
    dimensions = make_table("Dimensions (* default)", "model", "floats in a vector", "source")
    dimensions.columns[1].justify = "left"
    prices = make_table("List price of a million tokens", "model", *_CITIES.values())
    for model in MODELS:
        name = f"{model.name} (default)" if model.name == DEFAULT_MODEL else model.name
        limits.add_row(name, *(cell(model) for cell in _LIMITS))
        source = f"[{sources.index((model.source, model.seen)) + 1}]"
        dimensions.add_row(name, _dimensions(model, "{}*"), Text(source))
        prices.add_row(name, *_prices(model))
    for table in (limits, dimensions, prices):
        yield table
        yield ""
    yield Text("(n): a higher limit that another source names. batch: through Batch files.", "dim")
    free = ", ".join(f"{model.free_tokens:,} of {model.name}" for model in MODELS if model.free_tokens is not None)
    yield Text(f"Free tokens in Beijing for 90 days, according to the newest page: {free}; no others.", "dim")
    for model in MODELS:
        if model.published_quota is not None:
            yield Text(f"Quota of {model.name} in Beijing: {model.published_quota}", "dim", overflow="ignore")
    yield Text("Limits of your account: `dashscope-embeddings check`, or the end of a model's page, such as:", "dim")
    yield Text(catalogue.model(DEFAULT_MODEL).card, "dim", no_wrap=True, overflow="ignore")
    without = ", ".join(region.city for region in REGIONS if region.shared_host is None)
    yield Text(f"{without}: without a workspace, requests go to Singapore's host, as in the vendor's SDK 2.0.", "dim")
    for number, (source, seen) in enumerate(sources, start=1):
        yield Text(f"[{number}] read {seen}:", "dim")
        yield Text(source, "dim", no_wrap=True, overflow="ignore")


def models_markdown() -> str:
    """The catalogue as a Markdown table, without a final newline."""
    heads = ["model", "texts a request", "tokens a text (elsewhere)", "dimensions (**default**)", "sparse", "instruct"]
    heads += [*(f"price, {city}" for city in _CITIES.values()), "source"]
    rule = ["---", *["---:"] * 2, "---", *[":---:"] * 2, *["---"] * (len(_CITIES) + 1)]
    rows = []
    for model in MODELS:
        texts, tokens, *has = (cell(model) for cell in _LIMITS)
        sizes, source = _dimensions(model, "**{}**"), f"[{model.seen}]({model.source})"
        rows.append([f"`{model.name}`", texts, tokens, sizes, *has, *_prices(model), source])
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, rule, *rows])


def _token_limit(model: Model) -> str:
    seen = model.tokens_per_row_limit
    return f"{model.tokens_per_row:,}" + (f" ({seen:,})" if seen > model.tokens_per_row else "")


_LIMITS: tuple[Callable[[Model], str], ...] = (
    lambda model: str(model.rows),
    _token_limit,
    lambda model: "yes" if model.sparse else _DASH,
    lambda model: "yes" if model.instruct else _DASH,
)


def _dimensions(model: Model, default: str) -> str:
    return " ".join(default.format(size) if size == model.default_dimension else str(size) for size in model.dimensions)


def _prices(model: Model) -> Iterator[str]:
    for region in _CITIES:
        price = model.prices.get(region)
        batch = f", batch {price.batch}" if price and price.batch is not None else ""
        yield f"{price.currency} {price.real_time}{batch}" if price else _DASH
