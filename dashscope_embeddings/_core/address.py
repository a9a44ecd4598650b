"""Finds the service's address and the API key, and checks them, so that a key never reaches the wrong host.

The environment variables have the names and meanings of the vendor's SDKs. An empty variable counts as unset.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import ipaddress
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from dashscope_embeddings import catalogue
from dashscope_embeddings._core.protocol import ApiProtocol
from dashscope_embeddings._core.secret_settings import as_secret
from dashscope_embeddings._core.service_variables import (
    REGION_VARIABLES,
    WORKSPACE_VARIABLES,
    base_url_variable,
    is_compatible_url,
    read_variable,
)
from dashscope_embeddings._process import warn_once
from dashscope_embeddings.catalogue import REGIONS, WORKSPACE_DOMAIN, Region, region_of_host
from dashscope_embeddings.errors import InvalidInput

EMULATOR = "emulator"
"""As `base_url`: the emulator inside this process, without key or network."""


# --- the address -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Address:
    """A host of the service."""

    root_url: str
    """Root of the endpoints, without a trailing slash."""
    region: Region | None = None
    workspace: str | None = None
    """Sent as a header, because the host name does not contain it."""

    @property
    def is_emulator(self) -> bool:
        """Whether requests stay inside this process."""
        return self.root_url == EMULATOR

    @property
    def host(self) -> str:
        """The host, with its port, for messages and as part of the limiter's key."""
        return self.root_url if self.is_emulator else urlsplit(self.root_url).netloc

    @cached_property
    def key_hint(self) -> str:
        """What to check when the service refuses the key."""
        here = f" ({self.region.city})" if self.region else ""
        others = ", ".join(f"{r.id} ({r.city})" for r in REGIONS if r != self.region)
        return (
            f"Asked {self.host}{here}. A key belongs to one region: if yours belongs to another one, pass region=, "
            f"one of {others}"
        )


_WORKSPACE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_REGION_PATTERN = re.compile(r"[A-Za-z0-9]+-[A-Za-z0-9-]{0,50}[A-Za-z0-9]")
_KNOWN_PATH_SUFFIX = re.compile(r"/(?:api/v1(?:/services(?:/[^/]+)*)?|compatible-mode/v1(?:/embeddings)?)$")
_SCHEMES = frozenset({"http", "https"})
_DNS_LABEL_LIMIT = 64
_BARE_URL_PATTERN = re.compile(r"(?:[a-z]+:/*)?((?:[a-z0-9-]+\.)+[a-z]{2,}(?::\d+)?(?:/[a-z0-9./-]*)?)")
_LOCAL_URL_PATTERN = re.compile(r"(?:emulator|localhost|127\.0\.0\.1)(:\d+)/?")
"""An emulator that is served on this machine."""
_SIMILARITY = 0.7
_HOST_PATTERN = re.compile(r"[A-Za-z0-9.:_\[\]-]+")


def resolve_protocol(protocol: ApiProtocol | None, *, region: str | None, base_url: str | None) -> ApiProtocol:
    """The chosen protocol, or else native, with a warning if the address belongs to the other protocol."""
    if protocol is not None:
        return protocol
    origin = "base_url"
    if base_url is None and not region and (variable := base_url_variable("native")) is not None:
        origin, base_url = variable
    if origin != "DASHSCOPE_COMPATIBLE_BASE_URL" and is_compatible_url(base_url or ""):
        warn_once(
            "protocol",
            f"{origin} is an OpenAI-compatible address, but the native protocol of its host is used, because no "
            'protocol was chosen. Their vectors differ: protocol="openai" matches an index that was built through '
            'this address; protocol="native" tells queries from documents and silences this warning',
        )
    return "native"


def resolve_address(
    protocol: ApiProtocol = "native",
    *,
    region: str | None = None,
    workspace: str | None = None,
    base_url: str | None = None,
) -> Address:
    """The host by `base_url`, or `region` and `workspace`, or the environment; the default is Beijing."""
    region = region or None
    if region is not None:
        _check_region("region", region)
    if workspace is not None and not _WORKSPACE_PATTERN.fullmatch(workspace):
        raise InvalidInput(f"workspace={workspace!r} cannot be part of a host name: expected letters, digits, _ and -")
    if base_url == EMULATOR:
        return Address(EMULATOR)
    if base_url is None and region is None and (variable := base_url_variable(protocol)) is not None:
        address = _address_from_url(variable.value, None, workspace)
        _warn_of_other_region(variable.name, address)
        return address
    if base_url is not None:
        return _address_from_url(base_url, region, workspace)
    return _address_from_region(region, workspace)


def _warn_of_other_region(origin: str, address: Address) -> None:
    if address.region is None or (variable := read_variable(REGION_VARIABLES)) is None:
        return
    if (named := _find_region(variable.value)) is not None and named != address.region:
        warn_once(
            f"region of {origin}",
            f"{origin} is in {address.region.id}, but {variable.name} names {named.id}: requests go to the address. "
            "A key belongs to one region: unset the variable that is wrong",
        )


def _address_from_url(base_url: str, region: str | None, workspace: str | None) -> Address:
    if "{workspace_id}" in base_url:
        if (workspace_id := workspace or _workspace_of_environment()) is None:
            raise InvalidInput("the address contains {workspace_id}: pass workspace= or set DASHSCOPE_WORKSPACE_ID")
        base_url = base_url.replace("{workspace_id}", workspace_id)
    url, host = _split_url(base_url)
    if url.username is not None or url.password is not None or url.query or url.fragment:
        del base_url, url
        raise InvalidInput("base_url must hold no user, password, query or fragment")
    if url.scheme == "http" and not is_loopback(host):
        raise InvalidInput(
            f"base_url uses plain http for {host}, which would show your key to everyone on the way: use https "
            "(http is only for 127.0.0.1)"
        )
    prefix = _KNOWN_PATH_SUFFIX.sub("", url.path.rstrip("/")).rstrip("/")
    return Address(f"{url.scheme}://{url.netloc}{prefix}", _region_of_url(host, region), workspace)


def _split_url(base_url: str) -> tuple[SplitResult, str]:
    """The parts of an http or https URL, and its host, which a request can be sent to."""
    if len(base_url.split()) > 1:
        del base_url  # it may hold a key
        raise InvalidInput("base_url has a blank inside: pass the address alone, without what was pasted behind it")
    with contextlib.suppress(ValueError):  # of a malformed port or IPv6 address
        url = urlsplit(base_url.strip())
        host_and_port = url.netloc.rpartition("@")[2]
        if url.hostname and url.port != 0 and _HOST_PATTERN.fullmatch(host_and_port) and url.scheme in _SCHEMES:
            labels = url.hostname.split(".")
            if all(0 < len(label) < _DNS_LABEL_LIMIT for label in labels):
                return url, url.hostname
    raise InvalidInput(
        f"base_url must start with https:// and name a host, or be {EMULATOR!r}{_url_suggestion(base_url)}"
    )


def _region_of_url(host: str, region: str | None) -> Region | None:
    host_region, named_region = region_of_host(host), _find_region(region)
    if region is not None and host_region is not None and host_region != named_region:
        raise InvalidInput(
            f"base_url is in {host_region.id}, but region={region!r} is another region: leave one of them out"
        )
    return host_region or named_region


def _url_suggestion(base_url: str) -> str:
    """The end of an error message; empty without a good guess."""
    name = base_url.strip().lower()
    if ":" not in name and difflib.get_close_matches(name, [EMULATOR], cutoff=_SIMILARITY):
        return f": is {EMULATOR!r} meant?"
    bare, local = _BARE_URL_PATTERN.fullmatch(name), _LOCAL_URL_PATTERN.fullmatch(name)
    meant = f"https://{bare[1]}" if bare else f"http://127.0.0.1{local[1]}" if local else name
    return "" if meant == name else f": is {meant} meant?"


def _find_region(region: str | None) -> Region | None:
    """By the vendor's id or by its city, in any spelling; in Chinese also as the console shows it: 华北2（北京）."""
    name = region or ""
    return next((r for r in REGIONS if _plain(name) in {_plain(r.id), _plain(r.city)} or r.chinese_city in name), None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, so that plain http is safe."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _address_from_region(region: str | None, workspace: str | None) -> Address:
    variable = None if region else read_variable(REGION_VARIABLES)
    origin, name = variable or ("region", region or catalogue.BEIJING)
    _check_region(origin, name)
    known = _find_region(name)
    region_id = known.id if known else name
    if workspace is None and (region is not None or region_id != catalogue.BEIJING):
        # As in the vendor's SDK: the default region uses the shared host even if a workspace is set.
        workspace = _workspace_of_environment()
    if workspace is not None:
        return Address(
            f"https://{workspace}.{region_id}.{WORKSPACE_DOMAIN}", known or Region(region_id, region_id, None)
        )
    host = known and (known.shared_host or known.fallback_host)
    if host is None:
        raise InvalidInput(
            f"region {name!r} has no shared host that is known{_region_suggestion(name)}: pass workspace= as well, or "
            f"another region. Known regions: {_region_names()}"
        )
    return Address(f"https://{host}", known)


def _workspace_of_environment() -> str | None:
    if (variable := read_variable(WORKSPACE_VARIABLES)) is None:
        return None
    if not _WORKSPACE_PATTERN.fullmatch(variable.value):
        raise InvalidInput(f"{variable.name} cannot be part of a host name: expected letters, digits, _ and -")
    return variable.value


def _check_region(origin: str, name: str) -> None:
    if _find_region(name) is None and not _REGION_PATTERN.fullmatch(name):
        raise InvalidInput(
            f"{origin}={name!r} is no region{_region_suggestion(name)}: expected one of {_region_names()}, or the id "
            "of a newer one"
        )


def _region_suggestion(name: str) -> str:
    """Part of an error message; empty without a good guess."""
    ids = {_plain(spelling): region.id for region in REGIONS for spelling in (region.id, region.city)} | _EVERYDAY_NAMES
    meant = difflib.get_close_matches(_plain(name), ids, n=1, cutoff=_SIMILARITY)
    return f" (is {ids[meant[0]]!r} meant?)" if meant else ""


_EVERYDAY_NAMES = {
    **dict.fromkeys(("cn", "china", "mainland"), "cn-beijing"),
    **dict.fromkeys(("intl", "international", "global", "sg"), "ap-southeast-1"),
    **dict.fromkeys(("us", "usa"), "us-east-1"),
    **dict.fromkeys(("eu", "europe", "de", "germany"), "eu-central-1"),
    **dict.fromkeys(("jp", "japan"), "ap-northeast-1"),
    "hk": "cn-hongkong",
}


def _region_names() -> str:
    return ", ".join(f"{region.id} ({region.city})" for region in REGIONS)


# --- the key -----------------------------------------------------------------------------------------------

_DEFAULT_KEY_FILE = "~/.dashscope/api_key"


def resolve_api_key(api_key: str | SecretStr | None, address: Address) -> SecretStr:
    """The key from the argument, the environment, the file that the environment names, or the vendor's default file."""
    # Wrapped at once, because error reporters collect the local variables of every frame in a traceback.
    api_key = as_secret(api_key)
    if address.is_emulator:
        return SecretStr(EMULATOR)
    key, origin = (api_key, "api_key") if api_key else _find_key()
    if address.region is not None and re.fullmatch(_PLACEHOLDER, key.get_secret_value()):
        raise InvalidInput(f"{origin} is a placeholder: put the key in its place")
    for pattern, problem in _KEY_PROBLEMS.items():
        if re.fullmatch(pattern, key.get_secret_value(), re.DOTALL):
            raise InvalidInput(f"{origin} {problem}")
    return key


def _find_key() -> tuple[SecretStr, str]:
    """The key of this environment or machine, and where it is from."""
    if key := as_secret(os.environ.get("DASHSCOPE_API_KEY")):
        return key, "DASHSCOPE_API_KEY"
    file = os.environ.get("DASHSCOPE_API_KEY_FILE_PATH")
    path = Path(file or _DEFAULT_KEY_FILE)
    try:
        key = SecretStr(_read_any_utf(path.expanduser()).strip())
    except (OSError, RuntimeError, UnicodeDecodeError):
        key = SecretStr("")
    if key:
        return key, f"the key file {path}"
    if file:
        raise InvalidInput(f"DASHSCOPE_API_KEY_FILE_PATH names {file!r}, which cannot be read or is empty")
    raise InvalidInput(
        "no API key: pass api_key=, or set the environment variable DASHSCOPE_API_KEY; to work without a key "
        'or network, pass base_url="emulator"'
    )


def _read_any_utf(path: Path) -> str:
    """The content of a file in UTF-8 or, as PowerShell writes it, in UTF-16."""
    content = path.read_bytes()
    return content.decode("utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")


_KEY_PROBLEMS = {
    r"\s.*|.*\s": "has blanks or a line break around the key: remove them",
    r"[\"'].*|.*[\"']": "has quotes around the key: remove them",
    r"(?i:bearer ).*": 'begins with "Bearer", which is not part of the key: remove it',
    r"(?i:(export |set |\$env:)?DASHSCOPE_API_KEY ?=).*": "begins with the variable's name: leave it out",
    r".*[^!-~].*": "contains characters that no key has: copy it again",
}
"""Pattern of a badly pasted key → what to do about it."""
_PLACEHOLDER = r"(?i)[$<%{].*|your[-_ ].*|(sk-)?(x{3,}|\*+|\.+)"
"""No key of the service; a local server may accept any."""
