"""Models and hosts as data: every row consistent in itself, sourced, dated."""

from __future__ import annotations

import datetime as dt
import warnings
from decimal import Decimal

import pytest

from dashscope_embeddings import catalogue
from dashscope_embeddings.catalogue import BEIJING, HONG_KONG, MODELS, REGIONS, SINGAPORE, Model, region_of_host
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.vectors import Cost, Usage

every_model = pytest.mark.parametrize("row", MODELS, ids=lambda row: row.name)


@every_model
def test_a_row_says_where_and_when_it_was_read(row: Model) -> None:
    assert row.source.startswith("https://")
    assert dt.date.fromisoformat(row.seen) >= dt.date(2026, 11, 1)


@every_model
def test_a_row_fits_together(row: Model) -> None:
    assert row.default_dimension in row.dimensions
    assert len(set(row.dimensions)) == len(row.dimensions)
    assert row.rows > 0
    assert row.tokens_per_row_limit == max(row.tokens_per_row, row.tokens_per_row_seen) > 0
    assert row.known
    assert catalogue.model(row.name) is row
    assert row.prices.keys() <= {region.id for region in REGIONS}


@every_model
def test_a_dimension_is_sent_only_where_there_is_a_choice(row: Model) -> None:
    assert row.takes_dimension is (row.name not in {"text-embedding-v1", "text-embedding-v2"})


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("qwen3.7-text-embedding", (20, 128_000, 1024, True, True)),
        ("qwen3.7-text-embedding-flash", (20, 131_072, 1024, True, True)),
        ("text-embedding-v4", (10, 33_000, 1024, True, True)),
        ("text-embedding-v3", (10, 8_192, 1024, True, False)),
        ("text-embedding-v2", (25, 2_048, 1536, False, False)),
        ("text-embedding-v1", (25, 2_048, 1536, False, False)),
    ],
)
def test_the_limits_are_those_of_the_vendors_pages(name: str, facts: tuple[int, ...]) -> None:
    """Rows, tokens a row, default dimension, sparse, instruct."""
    row = catalogue.model(name)
    assert (row.rows, row.tokens_per_row_limit, row.default_dimension, row.sparse, row.instruct) == facts


def test_free_quotas_are_those_of_the_newest_page() -> None:
    free = {row.name: row.free_tokens for row in MODELS if row.free_tokens is not None}
    assert free == dict.fromkeys(
        ("qwen3.7-text-embedding", "qwen3.7-text-embedding-flash", "text-embedding-v4"), 1_000_000
    )


def test_names_are_unique_and_the_default_is_among_them() -> None:
    names = [row.name for row in MODELS]
    assert len(set(names)) == len(names)
    assert catalogue.DEFAULT_MODEL in names


@pytest.mark.parametrize(
    ("name", "region", "currency", "a_million", "batch"),
    [
        ("qwen3.7-text-embedding", BEIJING, "CNY", "0.5", "0.25"),
        ("qwen3.7-text-embedding", SINGAPORE, "USD", "0.07", None),
        ("text-embedding-v4", BEIJING, "CNY", "0.5", "0.25"),
        ("text-embedding-v4", SINGAPORE, "USD", "0.07", None),
        ("text-embedding-v4", HONG_KONG, "USD", "0.07", None),
        ("text-embedding-v3", BEIJING, "CNY", "0.5", "0.25"),
        ("text-embedding-v3", SINGAPORE, "USD", "0.07", None),
        ("text-embedding-v2", BEIJING, "CNY", "0.7", "0.35"),
        ("text-embedding-v1", BEIJING, "CNY", "0.7", "0.35"),
        ("qwen3.7-text-embedding-flash", BEIJING, "CNY", "0.125", "0.063"),
    ],
)
def test_a_price_is_exact_money(name: str, region: str, currency: str, a_million: str, batch: str | None) -> None:
    price = catalogue.model(name).prices[region]
    assert price.of(1_000_000) == Cost(Decimal(a_million), currency)
    assert price.of(3) == Cost(Decimal(a_million) * 3 / 1_000_000, currency)
    assert price.batch == (None if batch is None else Decimal(batch))


def test_costs_of_two_currencies_or_of_an_unknown_price_are_not_summed() -> None:
    cny, usd = Usage(1, 10, 1, Cost(Decimal(1), "CNY")), Usage(1, 10, 1, Cost(Decimal(2), "USD"))
    assert (cny + cny).cost == Cost(Decimal(2), "CNY")
    assert (cny + usd).cost is None
    assert (cny + Usage(1, 10, 1)).cost is None
    assert (Usage() + cny).cost == cny.cost


def test_an_unknown_model_gets_a_cautious_row_that_keeps_its_name() -> None:
    with pytest.warns(UserWarning, match=r"'text-embedding-v99' is not in the catalogue"):
        row = catalogue.model("text-embedding-v99")
    assert (row.name, row.known, row.prices) == ("text-embedding-v99", False, {})
    assert row.rows == min(known.rows for known in MODELS)
    assert row.tokens_per_row_limit >= max(known.tokens_per_row_limit for known in MODELS)
    assert row.default_dimension is None
    assert row.takes_dimension


@pytest.mark.parametrize("name", ["", " "])
def test_a_blank_model_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="model is blank: name one"):
        catalogue.model(name)


def test_an_unknown_model_warns_once_a_process() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ["text-embedding-v77", "text-embedding-v77", "text-embedding-v78"]:
            catalogue.model(name)
        catalogue.model("text-embedding-v4")
    assert [str(warning.message)[1:19] for warning in caught] == ["text-embedding-v77", "text-embedding-v78"]


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("dashscope.aliyuncs.com", "cn-beijing"),
        ("dashscope-intl.aliyuncs.com", "ap-southeast-1"),
        ("cn-hongkong.dashscope.aliyuncs.com", "cn-hongkong"),
        ("dashscope-us.aliyuncs.com", "us-east-1"),
        ("ws-1.eu-central-1.maas.aliyuncs.com", "eu-central-1"),
        ("ws-1.cn-beijing.maas.aliyuncs.com", "cn-beijing"),
        ("cn-beijing.maas.aliyuncs.com", None),
        ("dashscope.aliyuncs.com.example", None),
        ("example.com", None),
    ],
)
def test_a_host_of_the_service_names_its_region(host: str, region: str | None) -> None:
    found = region_of_host(host)
    assert (found.id if found else None) == region
