"""The settings of a client: the default and description of each, written once.

`EmbeddingClient`, the adapters of LangChain and LlamaIndex, the sparse adapters, Ray, the command line and README's
table are made from this list.
"""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any, TypedDict, TypeVar, get_type_hints

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, SkipValidation
from pydantic.fields import FieldInfo

from dashscope_embeddings._core.protocol import ApiProtocol
from dashscope_embeddings._core.text_length import LongText
from dashscope_embeddings.catalogue import DEFAULT_MODEL, Price
from dashscope_embeddings.usage import OnRequest

ClassT = TypeVar("ClassT", bound=type)


def _setting(
    sentence: str, default: Any = None, *, shown: bool = False, secret: bool = False, aliases: tuple[str, ...] = ()
) -> Any:
    """A field of an adapter.

    Args:
        sentence: For docstrings, help texts and README.
        default: What holds where it is not given.
        shown: Part of an adapter's dumps, because it changes vectors or where they come from.
        secret: Left out of an adapter's `repr`.
        aliases: Its own name, then those that other packages give it.
    """
    return Field(
        default,
        description=sentence,
        exclude=not shown or None,
        repr=not secret,
        validation_alias=AliasChoices(*aliases) if aliases else None,
    )


_QUOTA = "The account's quota, if known; None: the rate is found."
_HTTP_CLIENT = "Your `httpx.Client`, or `AsyncClient` of one event loop, for proxies and the like; never closed here."
"""One sentence for two settings: README's table then has them in one row."""


class SettingFields(BaseModel):
    """The settings as fields, which the adapters inherit; the model and the key have other names in each framework."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    dimensions: int | None = _setting(
        "Floats in a dense vector; None: the model's default.", shown=True, aliases=("dimensions", "dimension")
    )
    instruct: str | None = _setting("What queries are for, in a sentence; sent with queries only.", shown=True)
    protocol: ApiProtocol | None = _setting(
        '"openai": the OpenAI-compatible endpoint, without roles and sparse vectors. None: native, with a warning at a '
        "compatible address.",
        shown=True,
    )
    long_text: LongText = _setting(
        '"error" refuses a text over the model\'s limit, "truncate" embeds its beginning, "average" the '
        "length-weighted mean of its pieces at unit length (sparse: each token's largest weight).",
        default="error",
        shown=True,
    )
    region: str | None = _setting('Region of the key, such as "ap-southeast-1"; None: "cn-beijing".', shown=True)
    workspace: str | None = _setting(
        "Workspace, to whose own host requests go: `{workspace}.{region}.maas.aliyuncs.com`.", shown=True
    )
    base_url: str | None = _setting(
        'Another address, as any page of the vendor has it; "emulator": no service at all.',
        shown=True,  # so that vectors of the emulator are not mistaken for the service's
        aliases=("base_url", "api_base"),
    )
    timeout: float = _setting(
        "Seconds of silence, before or within an answer, until a request is sent again.",
        default=60.0,
        aliases=("timeout", "request_timeout"),
    )
    request_deadline: float | None = _setting(
        "Seconds for a request as a whole, more for large Batch files; None: ten times `timeout`."
    )
    max_retries: int = _setting(
        "Further tries after network errors, 5xx and broken replies; throttled requests are tried for five minutes "
        "(not with 0).",
        default=6,
    )
    max_concurrency: int | None = _setting(
        "Most requests in flight, over all threads and event loops; None: found, 16 at first, 128 at most."
    )
    requests_per_minute: float | None = _setting(_QUOTA)
    tokens_per_minute: float | None = _setting(_QUOTA)
    batch_size: int | None = _setting(
        "Most texts in a request; None: the model's limit.", aliases=("batch_size", "chunk_size")
    )
    tokens_per_request: int | None = _setting("Most tokens in a request, by estimate; None: the model's limit, if any.")
    default_headers: dict[str, SecretStr] | None = _setting("Headers of every request.", secret=True)
    rate_limiter: Any = _setting(
        "LangChain's or LlamaIndex's, asked before every request, besides our own.", secret=True
    )
    http_client: Any = _setting(_HTTP_CLIENT, secret=True)
    http_async_client: Any = _setting(_HTTP_CLIENT, secret=True)
    price: SkipValidation[Price | None] = _setting("What you pay for a million tokens, in place of the list price.")
    on_request: SkipValidation[OnRequest | None] = _setting(
        "Called with a `RequestRecord` after every request, in its thread or task; not pickled.", secret=True
    )


_NO_FIELDS = {
    "api_key": _setting("The key; None: from the environment, or from `~/.dashscope/api_key`."),
    "dimension": _setting("The same as `dimensions`."),
}


# --- the same as keyword arguments, for type checkers --------------------------------------------------------


class SharedOptions(TypedDict, total=False):
    """What `EmbeddingClient` and every adapter take, under these names."""

    dimensions: int | None
    dimension: int | None
    instruct: str | None
    protocol: ApiProtocol | None
    region: str | None
    workspace: str | None
    base_url: str | None
    timeout: float
    request_deadline: float | None
    max_retries: int
    max_concurrency: int | None
    requests_per_minute: float | None
    tokens_per_minute: float | None
    long_text: LongText
    batch_size: int | None
    tokens_per_request: int | None
    default_headers: Mapping[str, str | SecretStr] | None
    rate_limiter: Any
    http_client: Any
    http_async_client: Any
    price: Price | None
    on_request: OnRequest | None


class ClientOptions(SharedOptions, total=False):
    """What `EmbeddingClient` takes besides the model."""

    api_key: SecretStr | str | None


class ModelOptions(ClientOptions, total=False):
    """What a function takes that makes a client."""

    model: str


class AdapterOptions(SharedOptions, total=False):
    """What adapters take: `SharedOptions`, some of them also under the names of LangChain and LlamaIndex."""

    chunk_size: int | None
    request_timeout: float
    api_base: str | None


class SparseOptions(AdapterOptions, total=False):
    """What sparse adapters take that are not paired with a dense adapter."""

    model: str
    model_name: str
    api_key: SecretStr | str | None
    dashscope_api_key: SecretStr | str | None


# --- the same at run time ----------------------------------------------------------------------------------


@functools.cache
def settings() -> Mapping[str, FieldInfo]:
    """Name → default and description of each setting besides the model, the key first."""
    fields = SettingFields.model_fields | _NO_FIELDS
    return {name: fields[name] for name in ("api_key", *get_type_hints(SharedOptions))}


def with_defaults(options: ClientOptions) -> dict[str, Any]:
    """All settings: the given value, or else the default."""
    return {name: options.get(name, setting.default) for name, setting in settings().items()}


def signature() -> inspect.Signature:
    """The signature of `EmbeddingClient` with each option by name; editors show it instead of `**options`."""
    types = get_type_hints(ClientOptions)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    model = inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=DEFAULT_MODEL, annotation=str)
    keywords = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=setting.default, annotation=types[name])
        for name, setting in settings().items()
    ]
    return inspect.Signature([this, model, *keywords], return_annotation=None)


def documented(cls: ClassT) -> ClassT:
    """Writes the settings into a class's docstring, in place of `{settings}`."""
    lines = [
        line
        for name, setting in settings().items()
        for line in textwrap.wrap(
            f"{name}: {setting.description}", 112, initial_indent=" " * 8, subsequent_indent=" " * 12
        )
    ]
    cls.__doc__ = (cls.__doc__ or "").replace("        {settings}", "\n".join(lines))
    return cls
