"""What a client was asked to be: checked at construction, so that a wrong setting costs nothing.

Names and meanings of the environment's variables are those of the vendor's SDK (`dashscope` 1.27 and 2.0,
env.py and api_key.py, seen 2026-11-21). An empty variable counts as a missing one.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, get_args
from urllib.parse import urlsplit

from pydantic import SecretStr

from dashscope_embeddings import catalogue
from dashscope_embeddings.catalogue import REGIONS, WORKSPACE_DOMAIN, Model, Price, Region, region_of_host
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.lengths import LongText
from dashscope_embeddings.vectors import Output, TextType
from dashscope_embeddings.wire import Ask, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

EMULATOR = "emulator"
"""As `base_url`: the emulator inside this process, without key or network."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a client is made of. Holds no socket, lock or loop: it is what gets pickled."""

    model: Model
    api_key: SecretStr
    address: Address
    protocol: Protocol = "native"
    dimensions: int | None = None
    instruct: str | None = None
    timeout: float = 60.0
    max_retries: int = 6
    max_concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    long_text: LongText = "error"
    batch_size: int | None = None
    tokens_per_request: int | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_protocol(self)
        _check_dimensions(self)

    def ask(self, text_type: TextType, output: Output) -> Ask:
        """What every request of a call asks.

        Raises:
            InvalidInput: an unknown role or output, or one that these settings rule out.
        """
        if text_type not in get_args(TextType):
            raise InvalidInput(f'text_type={text_type!r}: expected "query" or "document"')
        if output not in get_args(Output):
            raise InvalidInput(f'output={output!r}: expected "dense", "sparse" or "dense&sparse"')
        if output != "dense":
            self.check_sparse()
        return Ask(
            protocol=self.protocol,
            model=self.model.name,
            text_type=text_type,
            output=output,
            dimension=self.dimensions if self.model.takes_dimension else None,
            instruct=self.instruct if text_type == "query" else None,
            width=self.dimensions or self.model.default_dimension,
        )

    def check_sparse(self) -> None:
        """Whether sparse vectors can be asked for at all.

        Raises:
            InvalidInput: not with this protocol, or not of this model.
        """
        if self.protocol == "openai":
            raise InvalidInput('sparse vectors need protocol="native": the compatible protocol has none')
        if not self.model.sparse:
            makers = ", ".join(m.name for m in catalogue.MODELS if m.sparse)
            raise InvalidInput(f"{self.model.name} has no sparse vectors; these have: {makers}")

    @cached_property
    def account(self) -> tuple[bytes, str, str]:
        """What a quota belongs to: the key (hashed), the host, the model."""
        key = hashlib.sha256(self.api_key.get_secret_value().encode()).digest()
        return key, self.address.host, self.model.name

    @property
    def price(self) -> Price | None:
        """What tokens cost here; the emulator names Beijing's price, so that a rehearsal shows the bill."""
        region = self.address.region
        known = catalogue.BEIJING if self.address.is_emulator else region and region.id
        return self.model.prices.get(known) if known else None


# --- where to ask ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Address:
    """Root of the service's endpoints, without a slash at its end."""

    root: str
    region: Region | None = None
    workspace: str | None = None
    """Sent as a header where the host does not name it."""

    @property
    def is_emulator(self) -> bool:
        """Whether requests stay inside this process."""
        return self.root == EMULATOR

    @property
    def host(self) -> str:
        """The host as asked, for messages and for telling accounts apart."""
        return self.root if self.is_emulator else urlsplit(self.root).netloc

    @cached_property
    def advice(self) -> str:
        """What to check when the key was refused."""
        here = f" ({self.region.city})" if self.region else ""
        others = ", ".join(f"{r.id} ({r.city})" for r in REGIONS if r != self.region)
        return (
            f"Asked {self.host}{here}. A key belongs to one region: if yours is of another, name it with "
            f"region=, one of {others}"
        )


_WORKSPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_REGION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_ENDPOINT = re.compile(r"/(?:api/v1(?:/services(?:/[^/]+)*)?|compatible-mode/v1(?:/embeddings)?)$")
_HOST = re.compile(r"[A-Za-z0-9.:_\[\]-]+")
_VARIABLES: Mapping[Protocol, tuple[str, str]] = {
    # The other protocol's address names the same host: better than another region's.
    "native": ("DASHSCOPE_HTTP_BASE_URL", "DASHSCOPE_COMPATIBLE_BASE_URL"),
    "openai": ("DASHSCOPE_COMPATIBLE_BASE_URL", "DASHSCOPE_HTTP_BASE_URL"),
}


def address(
    protocol: Protocol = "native",
    *,
    region: str | None = None,
    workspace: str | None = None,
    base_url: str | None = None,
) -> Address:
    """Finds the host: `base_url`, then `region` and `workspace`, then the environment, then Beijing.

    Raises:
        InvalidInput: an address that would leave the service, or send the key over plain http.
    """
    region = region or None
    if workspace is not None and not _WORKSPACE.fullmatch(workspace):
        raise InvalidInput(f"workspace={workspace!r} cannot be part of a host name: expected letters, digits, _ and -")
    if base_url == EMULATOR:
        return Address(EMULATOR)
    if base_url is None and region is None:
        base_url = next((url for name in _VARIABLES[protocol] if (url := os.environ.get(name))), None)
    if base_url is not None:
        return _from_url(base_url, region, workspace)
    return _from_region(region, workspace)


def _from_url(base_url: str, region: str | None, workspace: str | None) -> Address:
    if "{workspace_id}" in base_url:
        filled = workspace or os.environ.get("DASHSCOPE_WORKSPACE_ID")
        if not filled or not _WORKSPACE.fullmatch(filled):
            raise InvalidInput("the address holds {workspace_id}: pass workspace= or set DASHSCOPE_WORKSPACE_ID")
        base_url = base_url.replace("{workspace_id}", filled)
    try:
        parts = urlsplit(base_url.strip())
        host = parts.hostname if parts.port != 0 and _HOST.fullmatch(parts.netloc.rpartition("@")[2]) else None
    except ValueError:
        host = None
    if host is None or parts.scheme not in {"http", "https"}:
        raise InvalidInput("base_url must start with https:// and name a host, or be 'emulator'")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise InvalidInput("base_url must hold no user, password, query or fragment")
    if parts.scheme == "http" and not _is_loopback(host):
        raise InvalidInput(
            f"base_url asks {host} over plain http, which would show your key to everybody on the "
            "way: use https (http is for 127.0.0.1 alone)"
        )
    path = _ENDPOINT.sub("", parts.path.rstrip("/")).rstrip("/")
    stands, asked = region_of_host(host), _known(region)
    if region is not None and stands is not None and stands != asked:
        raise InvalidInput(f"base_url asks {stands.id}, and region={region!r} another region: leave one of them out")
    return Address(f"{parts.scheme}://{parts.netloc}{path}", stands or asked, workspace)


def _known(region: str | None) -> Region | None:
    return next((r for r in REGIONS if region is not None and region.lower() in {r.id, r.city.lower()}), None)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _from_region(region: str | None, workspace: str | None) -> Address:
    asked = region or os.environ.get("DASHSCOPE_API_REGION") or catalogue.BEIJING
    known = _known(asked)
    if known is None and not _REGION.fullmatch(asked):
        origin = "region" if region is not None else "DASHSCOPE_API_REGION"
        raise InvalidInput(f"{origin}={asked!r} cannot be part of a host name: expected one like 'cn-beijing'")
    region_id = known.id if known else asked
    if workspace is None and (region is not None or region_id != catalogue.BEIJING):
        # As in the vendor's SDK: Beijing without being asked for stays on the shared host.
        workspace = os.environ.get("DASHSCOPE_WORKSPACE_ID") or None
        if workspace is not None and not _WORKSPACE.fullmatch(workspace):
            raise InvalidInput("DASHSCOPE_WORKSPACE_ID cannot be part of a host name")
    if workspace is not None:
        found = known or Region(region_id, region_id, None)
        return Address(f"https://{workspace}.{region_id}.{WORKSPACE_DOMAIN}", found)
    if known is None or known.shared_host is None:
        raise InvalidInput(f"region {asked!r} has no shared host that is known: pass workspace= as well")
    return Address(f"https://{known.shared_host}", known)


# --- the key -----------------------------------------------------------------------------------------------

_DEFAULT_KEY_FILE = "~/.dashscope/api_key"


def find_key(api_key: str | SecretStr | None, place: Address) -> SecretStr:
    """The key from the argument, the environment, the file it names, or the vendor's default file.

    Raises:
        InvalidInput: there is none, or it cannot be sent; the key itself is never in the message.
    """
    if place.is_emulator:
        return SecretStr(EMULATOR)
    if given := api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key:
        return _clean(given, "api_key")
    if key := os.environ.get("DASHSCOPE_API_KEY"):
        return _clean(key, "DASHSCOPE_API_KEY")
    file = os.environ.get("DASHSCOPE_API_KEY_FILE_PATH")
    path = Path(file or _DEFAULT_KEY_FILE)
    try:
        key = path.expanduser().read_text("utf-8").strip()
    except (OSError, RuntimeError, UnicodeDecodeError):
        if file:
            raise InvalidInput(f"DASHSCOPE_API_KEY_FILE_PATH names {file!r}, which cannot be read") from None
        key = ""
    if key:
        return _clean(key, f"the key file {path}")
    raise InvalidInput(
        "no API key: pass api_key=, or set the environment variable DASHSCOPE_API_KEY; to work without a key "
        'or network, pass base_url="emulator"'
    )


def _clean(key: str, origin: str) -> SecretStr:
    if key != key.strip():
        raise InvalidInput(f"{origin} has blanks or a line break around the key: remove them")
    if key[0] in "\"'" or key[-1] in "\"'":
        raise InvalidInput(f"{origin} has quotes around the key: remove them")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidInput(f"{origin} holds characters that no key has: copy it again")
    return SecretStr(key)


# --- what fits together ------------------------------------------------------------------------------------


def _check_protocol(settings: Settings) -> None:
    if settings.protocol not in get_args(Protocol):
        raise InvalidInput(f'protocol={settings.protocol!r}: expected "native" or "openai"')
    if settings.long_text not in get_args(LongText):
        raise InvalidInput(f'long_text={settings.long_text!r}: expected "error", "truncate" or "average"')
    if settings.instruct is None:
        return
    if not _is_utf8(settings.instruct):
        raise InvalidInput("instruct must be a sentence, a string that UTF-8 can carry")
    if settings.protocol == "openai":
        raise InvalidInput('instruct needs protocol="native": the OpenAI-compatible protocol does not have it')
    if not settings.model.instruct:
        takers = ", ".join(m.name for m in catalogue.MODELS if m.instruct)
        raise InvalidInput(f"{settings.model.name} takes no instruct; these do: {takers}")


def _is_utf8(text: object) -> bool:
    if not isinstance(text, str):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_dimensions(settings: Settings) -> None:
    model, asked = settings.model, settings.dimensions
    if asked is None:
        return
    if model.dimensions and asked not in model.dimensions:
        sizes = ", ".join(map(str, sorted(model.dimensions)))
        raise InvalidInput(f"{model.name} has no vectors of {asked} dimensions; it has {sizes}")


def _check_numbers(settings: Settings) -> None:
    least = {
        "max_retries": 0,
        "max_concurrency": 1,
        "batch_size": 1,
        "tokens_per_request": 1,
        "dimensions": 1,
    }
    for name, lowest in least.items():
        value = getattr(settings, name)
        if value is None and name not in {"max_retries", "max_concurrency"}:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise InvalidInput(f"{name}={value!r}: expected a whole number of at least {lowest}")
    for name in ("timeout", "requests_per_minute", "tokens_per_minute"):
        value = getattr(settings, name)
        if value is None and name != "timeout":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise InvalidInput(f"{name}={value!r}: expected a number above 0")
