"""Numbers of numpy, prices, and which clients are equal."""

from __future__ import annotations

import pickle
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from client_helpers import client_for

from dashscope_embeddings import Cost, EmbeddingClient, InvalidInput, Price
from dashscope_embeddings._core.failures import backoff_seconds
from dashscope_embeddings.emulator import Emulator, faults
from dashscope_embeddings.langchain import DashScopeEmbeddings
from dashscope_embeddings.llama_index import DashScopeEmbedding

if TYPE_CHECKING:
    from collections.abc import Callable

MADE = [EmbeddingClient, DashScopeEmbeddings, DashScopeEmbedding]


def client(**settings: Any) -> EmbeddingClient:
    return EmbeddingClient(base_url="emulator", **settings)


# --- numbers -----------------------------------------------------------------------------------------------


def test_numbers_of_numpy_are_taken_and_become_pythons() -> None:
    made = client(
        dimensions=np.int64(64),
        timeout=np.float32(5),
        max_retries=np.int8(1),
        max_concurrency=np.uint16(2),
        requests_per_minute=np.int32(600),
        batch_size=np.int64(3),
    )
    assert len(made.embed("one").dense[0]) == 64
    settings = made.settings
    numbers = (settings.dimensions, settings.timeout, settings.max_retries, settings.batch_size)
    assert [type(number) for number in numbers] == [int, float, int, int]


@pytest.mark.parametrize("failures", [1, 16, 1_024, 1_000_000])
def test_no_number_of_retries_makes_the_pause_overflow(failures: int) -> None:
    assert 0 <= backoff_seconds(failures, None) <= 20


# --- prices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("price", [0.5, Decimal("0.5"), "0.5", ("CNY", 0.5)])
def test_what_is_no_price_is_refused_at_construction(kind: Callable[..., Any], price: Any) -> None:
    with pytest.raises(InvalidInput, match=r'price must be a Price, not \w+: write price=Price\("CNY", 0.5\)'):
        kind(base_url="emulator", price=price)


@pytest.mark.parametrize("amount", [0.35, "0.35", Decimal("0.35"), np.float64(0.35)])
def test_a_price_of_any_number_is_exact_prints_and_pickles(amount: Any) -> None:
    price = Price("CNY", amount, amount)
    assert price == Price("CNY", Decimal("0.35"), Decimal("0.35"))
    assert pickle.loads(pickle.dumps(price)) == price  # noqa: S301 - our own
    assert str(price.of(1_000_000)) == "CNY 0.35"
    usage = client(price=price).embed(["one"] * 3).usage
    assert str(usage).endswith(f"CNY {Decimal('0.35') * usage.tokens / 1_000_000:f}")


@pytest.mark.parametrize("amount", ["a lot", None, True, float("nan"), float("inf"), -1, Decimal("-0.1"), [1], 1e300])
def test_what_is_no_amount_of_money_is_refused_when_the_price_is_made(amount: Any) -> None:
    with pytest.raises(InvalidInput, match="real_time of a Price must be money"):
        Price("CNY", amount)
    if amount is not None:
        with pytest.raises(InvalidInput, match="batch of a Price must be money"):
            Price("CNY", 1, amount)


@pytest.mark.parametrize("currency", [0.5, "", " ", None])
def test_a_price_without_a_currency_is_refused(currency: Any) -> None:
    with pytest.raises(InvalidInput, match="a Price begins with its currency"):
        Price(currency, 0.5)


# --- equal clients -----------------------------------------------------------------------------------------


def test_equal_settings_are_equal_clients_and_hash_alike() -> None:
    one, two = client(dimensions=64), client(dimensions=64)
    assert one == two
    assert hash(one) == hash(two)
    assert one == pickle.loads(pickle.dumps(one))  # noqa: S301 - our own
    for other in (client(dimensions=128), client(timeout=5), client(price=Price("CNY", 1), dimensions=64)):
        assert one != other
    assert EmbeddingClient(api_key="sk-one") == EmbeddingClient(api_key="sk-one") != EmbeddingClient(api_key="sk-two")
    assert one != "a client"


def test_clients_with_other_limiters_or_hooks_are_not_equal(emulator: Emulator) -> None:
    emulator.faults = [faults.Blocked(match="never")]
    hook: Callable[[Any], None] = lambda _: None  # noqa: E731 - one object
    assert client(on_request=hook) == client(on_request=hook) != client(on_request=print)
    assert client_for(emulator) != client_for(emulator)  # each has connections of its own
    assert len({client(on_request=hook), client(on_request=hook)}) == 1


def test_costs_in_one_currency_compare() -> None:
    cheap, dear = Cost(Decimal("0.5"), "CNY"), Cost(Decimal(2), "CNY")
    assert cheap < dear
    assert dear >= Cost(Decimal("2.0"), "CNY") > cheap
    assert max(cheap, dear) == dear
    with pytest.raises(TypeError, match="CNY and USD cannot be compared"):
        assert cheap < Cost(Decimal(1), "USD")
    number: Any = 1
    with pytest.raises(TypeError, match="not supported between"):
        assert cheap < number
