"""The service's models, prices and hosts as data: every row names its source, and the date it was read.

Nothing here was measured by this project. Prices are list prices without free quota or discounts.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from dashscope_embeddings._process import warn_once
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.vectors import Cost, Usage


@dataclass(frozen=True, slots=True)
class Price:
    """Price of a million input tokens in one region. A float becomes a Decimal with the digits of its `repr`.

    Raises:
        InvalidInput: the currency is missing, or an amount is not a price.
    """

    currency: str
    real_time: Decimal
    batch: Decimal | None = None
    """Price through Batch files; None if the region or model does not offer them."""

    if TYPE_CHECKING:

        def __init__(
            self, currency: str, real_time: Decimal | float | str, batch: Decimal | float | str | None = None
        ) -> None: ...

    def __post_init__(self) -> None:
        currency: object = self.currency
        if not isinstance(currency, str) or not currency.strip():
            raise InvalidInput('a Price begins with its currency: write Price("CNY", 0.5)')
        object.__setattr__(self, "real_time", _amount("real_time", self.real_time))
        if self.batch is not None:
            object.__setattr__(self, "batch", _amount("batch", self.batch))

    def of(self, tokens: int) -> Cost:
        """The list price of this many tokens in real time."""
        return Cost(self.real_time * tokens / 1_000_000, self.currency)

    def of_batch(self, tokens: int) -> Cost | None:
        """The list price of this many tokens through Batch files; None where there is no such route."""
        return None if self.batch is None else Cost(self.batch * tokens / 1_000_000, self.currency)


def _amount(name: str, value: object) -> Decimal:
    try:
        amount = Decimal("NaN") if isinstance(value, bool) else Decimal(str(value))
    except ArithmeticError:
        amount = Decimal("NaN")
    if amount.is_finite() and 0 <= amount <= _MAX_PRICE:
        return amount
    raise InvalidInput(f"{name} of a Price must be money for a million tokens, such as 0.5, from 0 to {_MAX_PRICE:,}")


_MAX_PRICE = 1_000_000_000


def priced_usage(price: Price | None, requests: int, texts: int, tokens: int, *, batch: bool = False) -> Usage:
    """A bill with its list price, in real time or through Batch files; of an unknown price, without."""
    cost = None if price is None else price.of_batch(tokens) if batch else price.of(tokens)
    return Usage(requests, tokens, texts, cost)


@dataclass(frozen=True, slots=True)
class PublishedQuota:
    """Limits per minute that somebody names for Beijing. Shown, and used for nothing else: accounts differ."""

    requests_per_minute: int
    tokens_per_minute: int | None
    source: str
    """An address, or who says so; seen 2026-11-27."""

    def __str__(self) -> str:
        tokens = "" if self.tokens_per_minute is None else f" and {self.tokens_per_minute:,} tokens"
        return f"{self.requests_per_minute:,} requests{tokens} a minute (according to {self.source})"


@dataclass(frozen=True, slots=True)
class Model:
    """Limits, features and prices of one model."""

    name: str
    rows: int
    """Limit of texts per request."""
    tokens_per_row: int
    """Limit of tokens per text, according to the vendor's pages."""
    dimensions: tuple[int, ...]
    """Dimensions that may be requested; empty: unknown, the service decides."""
    default_dimension: int | None
    """The service's default; None: unknown."""
    sparse: bool
    instruct: bool
    prices: dict[str, Price] = field(hash=False)
    """Region → price."""
    source: str
    seen: str
    """The day the source was read, YYYY-MM-DD."""
    tokens_per_request: int | None = None
    """Recommended limit of tokens per request; None: no page states one."""
    tokens_per_row_seen: int = 0
    """The highest limit that any source names, if sources disagree."""
    known: bool = True
    free_tokens: int | None = None
    """Tokens that Beijing gives free for 90 days, by the newest Chinese page (`_SYNC_ZH`, seen 2026-11-27), which gives
    none in Singapore. Editions in other languages name more: 1 million for v3 and half a million for v2 and v1."""
    published_quota: PublishedQuota | None = None

    @property
    def card(self) -> str:
        """The vendor's page of this model, which ends with the account's limits."""
        return f"https://help.aliyun.com/en/model-studio/{self.name.replace('.', '-')}"

    @property
    def takes_dimension(self) -> bool:
        """Whether to send a dimension: models of one fixed size ignore it silently."""
        return not self.known or len(self.dimensions) > 1

    @property
    def tokens_per_row_limit(self) -> int:
        """Limit of tokens per text that no source exceeds: the service refuses a longer text."""
        return max(self.tokens_per_row, self.tokens_per_row_seen)


BEIJING, SINGAPORE, HONG_KONG = "cn-beijing", "ap-southeast-1", "cn-hongkong"


_SYNC_EN = "https://www.alibabacloud.com/help/en/model-studio/text-embedding-synchronous-api"
_SYNC_ZH = "https://help.aliyun.com/zh/model-studio/text-embedding-api"
_FLASH = "https://help.aliyun.com/en/model-studio/qwen3-7-text-embedding-flash"

MODELS: tuple[Model, ...] = (
    Model(
        name="qwen3.7-text-embedding",
        rows=20,
        tokens_per_row=128_000,
        dimensions=(2560, 2048, 1536, 1024, 768, 512, 256),
        default_dimension=1024,
        sparse=True,
        instruct=True,
        prices={BEIJING: Price("CNY", "0.5", "0.25"), SINGAPORE: Price("USD", "0.07")},
        source=_SYNC_ZH,
        seen="2026-11-20",
        free_tokens=1_000_000,
    ),
    Model(
        name="qwen3.7-text-embedding-flash",
        rows=20,
        tokens_per_row=128_000,
        tokens_per_row_seen=131_072,
        # Third-party code, September 2026: requests above about 4,500 tokens hung without an error.
        tokens_per_request=4_500,
        dimensions=(1024, 768, 512, 256),
        default_dimension=1024,
        sparse=True,
        instruct=True,
        prices={BEIJING: Price("CNY", "0.125", "0.063")},
        source=_FLASH,
        seen="2026-11-20",
        free_tokens=1_000_000,
    ),
    Model(
        name="text-embedding-v4",
        rows=10,
        tokens_per_row=8_192,
        # The page says 8,192; the vendor's guide and real refusals of August 2026 say 33,000.
        tokens_per_row_seen=33_000,
        dimensions=(2048, 1536, 1024, 768, 512, 256, 128, 64),
        default_dimension=1024,
        sparse=True,
        instruct=True,
        prices={
            BEIJING: Price("CNY", "0.5", "0.25"),
            SINGAPORE: Price("USD", "0.07"),
            HONG_KONG: Price("USD", "0.07"),
        },
        source=_SYNC_EN,
        seen="2026-11-20",
        free_tokens=1_000_000,
        published_quota=PublishedQuota(1_800, None, "code of a third party"),
    ),
    Model(
        name="text-embedding-v3",
        rows=10,
        tokens_per_row=8_192,
        # Singapore's page lists 1024, 768 and 512 only: there the service refuses the rest.
        dimensions=(1024, 768, 512, 256, 128, 64),
        default_dimension=1024,
        sparse=True,
        instruct=False,
        prices={BEIJING: Price("CNY", "0.5", "0.25"), SINGAPORE: Price("USD", "0.07")},
        source=_SYNC_EN,
        seen="2026-11-20",
    ),
    Model(
        name="text-embedding-v2",
        rows=25,
        tokens_per_row=2_048,
        dimensions=(1536,),
        default_dimension=1536,
        sparse=False,
        instruct=False,
        prices={BEIJING: Price("CNY", "0.7", "0.35")},
        source=_SYNC_EN,
        seen="2026-11-20",
    ),
    Model(
        name="text-embedding-v1",
        rows=25,
        tokens_per_row=2_048,
        dimensions=(1536,),
        default_dimension=1536,
        sparse=False,
        instruct=False,
        prices={BEIJING: Price("CNY", "0.7", "0.35")},
        source=_SYNC_EN,
        seen="2026-11-20",
        published_quota=PublishedQuota(1_800, 1_200_000, "https://help.aliyun.com/en/model-studio/text-embedding-v1"),
    ),
)

DEFAULT_MODEL = "text-embedding-v4"

_MODELS_BY_NAME = {row.name: row for row in MODELS}

_UNKNOWN_MODEL = Model(
    name="",
    rows=10,
    tokens_per_row=8_192,
    tokens_per_row_seen=131_072,
    dimensions=(),
    default_dimension=None,
    sparse=True,
    instruct=True,
    prices={},
    source="not in the catalogue: the smallest limits of the current models",
    seen="2026-11-20",
    known=False,
)


def model(name: str) -> Model:
    """The row of a model; an unknown name gets a cautious row, and one warning per process.

    Raises:
        InvalidInput: the name is blank, or looks like an API key.
    """
    row = _MODELS_BY_NAME.get(name)
    if row is not None:
        return row
    if not name.strip():
        raise InvalidInput("model is blank: name one, such as model='text-embedding-v4', or leave it out")
    if name.startswith("sk-"):
        del name
        raise InvalidInput("model holds what looks like an API key: pass the key as api_key=")
    warn_once(
        f"model {name}",
        f"{name!r} is not in the catalogue of dashscope_embeddings{similar_model(name)}: assuming "
        f"{_UNKNOWN_MODEL.rows} texts a request, leaving dimension, sparse and instruct to the service; prices are "
        "unknown",
    )
    return replace(_UNKNOWN_MODEL, name=name)


def similar_model(name: str) -> str:
    """The model that a misspelt name may mean, as " (is … meant?)"; empty for a known name, or one like no other."""
    similar = [] if name in _MODELS_BY_NAME else difflib.get_close_matches(name, _MODELS_BY_NAME, n=1, cutoff=0.8)
    return f" (is {similar[0]} meant?)" if similar else ""


_SINGAPORE_HOST = "dashscope-intl.aliyuncs.com"


@dataclass(frozen=True, slots=True)
class Region:
    """A region of the service; a key belongs to one region."""

    id: str
    city: str
    shared_host: str | None
    """None if only workspace hosts, `{workspace}.{region}.maas.aliyuncs.com`, are the region's own."""
    fallback_host: str | None = None
    """Where requests without a workspace go if there is no shared host."""
    unconfirmed_host: str | None = None
    """A host that one page names; only `check` asks it."""
    chinese_city: str = ""


REGIONS: tuple[Region, ...] = (
    # https://www.alibabacloud.com/help/model-studio/base-url, seen 2026-11-20
    Region(BEIJING, "Beijing", "dashscope.aliyuncs.com", chinese_city="北京"),
    Region(SINGAPORE, "Singapore", _SINGAPORE_HOST, chinese_city="新加坡"),
    Region(HONG_KONG, "Hong Kong", "cn-hongkong.dashscope.aliyuncs.com", chinese_city="香港"),
    # The vendor's SDK 2.0.2 sends requests of these to Singapore's host, if no workspace is named (seen 2026-11-27).
    # Whether a key of these regions works there is not known.
    # The host in Virginia is named by the page of quotas in its French edition (seen 2026-11-27), and not by the SDK.
    Region("us-east-1", "Virginia", None, _SINGAPORE_HOST, "dashscope-us.aliyuncs.com", chinese_city="弗吉尼亚"),
    Region("eu-central-1", "Frankfurt", None, _SINGAPORE_HOST, chinese_city="法兰克福"),
    Region("ap-northeast-1", "Tokyo", None, _SINGAPORE_HOST, chinese_city="东京"),
)

WORKSPACE_DOMAIN = "maas.aliyuncs.com"


def region_of_host(host: str) -> Region | None:
    """The region of one of the service's hosts; None for any other host."""
    for region in REGIONS:
        is_workspace = host.endswith(f".{region.id}.{WORKSPACE_DOMAIN}")
        if is_workspace or host in {region.shared_host, region.unconfirmed_host}:
            return region
    return None
