"""The checked settings of a client: a wrong one is refused when the client is made, before anything is sent."""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from typing import TYPE_CHECKING, get_args

from dashscope_embeddings import catalogue
from dashscope_embeddings._core.address import resolve_address, resolve_api_key, resolve_protocol
from dashscope_embeddings._core.client_options import ClientOptions, with_defaults
from dashscope_embeddings._core.failures import ErrorContext
from dashscope_embeddings._core.protocol import ApiProtocol, RequestOptions, embeddings_path
from dashscope_embeddings._core.redaction import Redactor
from dashscope_embeddings._core.text_length import LongText
from dashscope_embeddings.catalogue import Price
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.vectors import Output, TextType

if TYPE_CHECKING:
    from pydantic import SecretStr

    from dashscope_embeddings._core.address import Address
    from dashscope_embeddings.catalogue import Model


@dataclass(frozen=True)
class Settings:
    """All settings of a client. Contains no socket, lock or event loop, so that a client pickles as its settings."""

    model: Model
    api_key: SecretStr
    address: Address
    protocol: ApiProtocol
    dimensions: int | None
    instruct: str | None
    timeout: float
    request_deadline: float | None
    max_retries: int
    max_concurrency: int | None
    requests_per_minute: float | None
    tokens_per_minute: float | None
    long_text: LongText
    batch_size: int | None
    tokens_per_request: int | None
    price_override: Price | None = None
    """Replaces the list price."""
    headers: tuple[tuple[str, SecretStr], ...] = field(default=(), repr=False)

    @classmethod
    def from_options(cls, model: str, options: ClientOptions) -> Settings:
        """Fills in defaults, and finds the address and the key."""
        _check_strings(model, options)
        known_model = catalogue.model(model)  # first: what is passed as a model may be the key
        given = with_defaults(options)
        dimension, price, headers = given.pop("dimension"), given.pop("price"), given.pop("default_headers")
        if dimension is not None and given["dimensions"] not in {None, dimension}:
            raise InvalidInput(f"dimensions={given['dimensions']} and dimension={dimension} are two names of one thing")
        place = {name: given.pop(name) for name in ("region", "workspace", "base_url")}
        protocol = resolve_protocol(given.pop("protocol"), region=place["region"], base_url=place["base_url"])
        address = resolve_address(protocol, **place)
        api_key = resolve_api_key(given.pop("api_key"), address)
        for name in ("http_client", "http_async_client", "rate_limiter", "on_request"):
            del given[name]
        given["dimensions"] = dimension if given["dimensions"] is None else given["dimensions"]
        given["instruct"] = given["instruct"] or None
        header_items = tuple((headers or {}).items())
        return cls(known_model, api_key, address, protocol, price_override=price, headers=header_items, **given)

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_protocol(self)
        _check_dimensions(self)
        _check_headers(self)
        _check_price(self)

    def request_options(self, text_type: TextType, output: Output) -> RequestOptions:
        """The options of every request of a call; raises InvalidInput if these settings rule them out."""
        if text_type not in get_args(TextType):
            raise InvalidInput(f'text_type={text_type!r}: expected "query" or "document"')
        if output not in get_args(Output):
            raise InvalidInput(f'output={output!r}: expected "dense", "sparse" or "dense&sparse"')
        if output != "dense":
            self.require_sparse()
        return RequestOptions(
            protocol=self.protocol,
            model=self.model.name,
            text_type=text_type,
            output=output,
            dimension=self.dimensions if self.model.takes_dimension else None,
            instruct=self.instruct if text_type == "query" else None,
            expected_width=self.dimensions or self.model.default_dimension,
        )

    def require_sparse(self) -> None:
        """Raises InvalidInput if this protocol or this model has no sparse vectors."""
        if self.protocol == "openai":
            raise InvalidInput('sparse vectors need protocol="native": the compatible protocol has none')
        if not self.model.sparse:
            makers = ", ".join(m.name for m in catalogue.MODELS if m.sparse)
            raise InvalidInput(f"{self.model.name} has no sparse vectors; these have: {makers}")

    @property
    def deadline_seconds(self) -> float:
        """Seconds that one request may take as a whole."""
        return _DEADLINE_TO_TIMEOUT_RATIO * self.timeout if self.request_deadline is None else self.request_deadline

    @cached_property
    def quota_key(self) -> tuple[bytes, str, str]:
        """Identifies a quota: the SHA-256 of the key, the host, the model."""
        key = hashlib.sha256(self.api_key.get_secret_value().encode()).digest()
        return key, self.address.host, self.model.name

    @cached_property
    def error_context(self) -> ErrorContext:
        """The endpoint that error messages name, and the secrets that they must not contain."""
        secrets = [value for _, value in self.headers]
        if not self.address.is_emulator:
            secrets.append(self.api_key)
        address = self.address
        return ErrorContext(
            address.root_url,
            embeddings_path(self.protocol),
            self.model.name,
            address.key_hint,
            Redactor(tuple(secrets)),
        )

    @property
    def price(self) -> Price | None:
        """Price of a million tokens. For the emulator it is Beijing's, so that a test run shows the likely bill."""
        if self.price_override is not None:
            return self.price_override
        region = self.address.region
        known = catalogue.BEIJING if self.address.is_emulator else region and region.id
        return self.model.prices.get(known) if known else None

    def namespace(self, text_type: TextType) -> str:
        """A cache namespace: two dense vectors are interchangeable only if model, dimension, role and so on are equal.

        Contains letters, digits, ".", "-" and "_" only, so that it can be part of a file name or of a store's key. It
        contains the host only if the host is not the service's own, because all of those serve the same models.
        """
        options = self.request_options(text_type, "dense")
        service = "dashscope" if self.address.region else self.address.host
        role = options.text_type if options.protocol == "native" else "no-role"
        parts = [service, options.model, str(options.expected_width or "default"), role]
        if self.long_text != "error":
            parts.append(self.long_text)
        if options.instruct is not None:
            parts.append(hashlib.sha256(options.instruct.encode()).hexdigest()[:16])
        return "_".join(_UNSAFE_CHARACTERS.sub(".", part) for part in parts)


_DEADLINE_TO_TIMEOUT_RATIO = 10
"""Default of `request_deadline`, in multiples of `timeout`."""
_UNSAFE_CHARACTERS = re.compile(r"[^A-Za-z0-9.-]+")


# --- checks ----------------------------------------------------------------------------------------------


def _check_strings(model: object, options: ClientOptions) -> None:
    for name in ("model", "region", "workspace", "base_url"):
        value = model if name == "model" else options.get(name)
        if not isinstance(value, str) and (value is not None or name == "model"):
            raise InvalidInput(f"{name} must be a string, not {type(value).__name__}")


def _check_protocol(settings: Settings) -> None:
    if settings.protocol not in get_args(ApiProtocol):
        raise InvalidInput(f'protocol={settings.protocol!r}: expected "native" or "openai"')
    if settings.long_text not in get_args(LongText):
        raise InvalidInput(f'long_text={settings.long_text!r}: expected "error", "truncate" or "average"')
    instruct: object = settings.instruct
    if instruct is None:
        return
    if not isinstance(instruct, str) or _SURROGATE.search(instruct):
        raise InvalidInput("instruct must be a sentence, a string that UTF-8 can carry")
    if settings.protocol == "openai":
        raise InvalidInput('instruct needs protocol="native": the OpenAI-compatible protocol does not have it')
    if not settings.model.instruct:
        takers = ", ".join(m.name for m in catalogue.MODELS if m.instruct)
        raise InvalidInput(f"{settings.model.name} takes no instruct; these do: {takers}")


_SURROGATE = re.compile("[\ud800-\udfff]")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"(?:[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?)?")

_FRAMING_HEADER = re.compile(
    r"(?:keep-alive|(?:proxy-)?connection|content-(?:encoding|length)|expect|host|te|trailer|transfer-encoding|upgrade)",
    re.IGNORECASE,
)
"""Headers that describe the framing of a message: a wrong value breaks the message or the connection."""


def _check_headers(settings: Settings) -> None:
    for name, value in settings.headers:
        if not _HEADER_NAME.fullmatch(name):
            raise InvalidInput(f"default_headers: {name!r} is not a header name")
        if _FRAMING_HEADER.fullmatch(name):
            raise InvalidInput(
                f"default_headers: {name} belongs to a single message or connection, and is set for each"
            )
        if not _HEADER_VALUE.fullmatch(value.get_secret_value()):
            raise InvalidInput(
                f"default_headers: the value of {name!r} must be printable ASCII without blanks around it"
            )


def _check_dimensions(settings: Settings) -> None:
    model, dimensions = settings.model, settings.dimensions
    if dimensions is not None and model.dimensions and dimensions not in model.dimensions:
        sizes = ", ".join(map(str, sorted(model.dimensions)))
        raise InvalidInput(f"{model.name} has no vectors of {dimensions} dimensions; it has {sizes}")


_INTEGER_BOUNDS = {
    "max_retries": (0, 1_000_000),
    "max_concurrency": (1, 10_000),
    "batch_size": (1, 1_000_000),
    "tokens_per_request": (1, 1_000_000_000),
    "dimensions": (1, 1_000_000),
}
_FLOAT_BOUNDS = {
    # Sockets wait for 24 days at most, locks for 292 years: larger numbers fail deep inside them.
    "timeout": (0.0, 86_400.0),
    "request_deadline": (0.0, 864_000.0),
    "requests_per_minute": (0.01, 1e12),
    "tokens_per_minute": (0.01, 1e12),
}
_REQUIRED_NUMBERS = frozenset({"max_retries", "timeout"})


def _check_numbers(settings: Settings) -> None:
    """Checks bounds, and converts numbers of other libraries, such as numpy's, to Python's."""
    for name, (least, most) in (_INTEGER_BOUNDS | _FLOAT_BOUNDS).items():
        value = getattr(settings, name)
        if value is None and name not in _REQUIRED_NUMBERS:
            continue
        whole = name in _INTEGER_BOUNDS
        number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
        if not number or not least <= value <= most or (not whole and value <= 0):
            kind = "a whole number" if whole else "a number above 0"
            bounds = f"at least {least:,.15g} and at most {most:,.15g}" if least or whole else f"at most {most:,.15g}"
            raise InvalidInput(f"{name}={_safe_repr(value)}: expected {kind}, {bounds}")
        object.__setattr__(settings, name, int(value) if whole else float(value))


def _safe_repr(value: object) -> str:
    """The number, or only the type of anything else, which may be a key. Huge integers have no `repr`."""
    with contextlib.suppress(ValueError):
        if isinstance(value, Real):
            return repr(value)[:40]
    return f"({type(value).__name__})"


def _check_price(settings: Settings) -> None:
    price: object = settings.price_override
    if price is not None and not isinstance(price, Price):
        kind = type(price).__name__
        raise InvalidInput(f'price must be a Price, not {kind}: write price=Price("CNY", 0.5) for a million tokens')
