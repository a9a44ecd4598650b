"""Reads proxies and certificate authorities from environment variables, and names the variable in errors.

Names and meanings are those of curl and of the package `requests`, which the vendor's SDK uses: `HTTPS_PROXY`,
`ALL_PROXY`, `NO_PROXY`; `SSL_CERT_FILE`, `SSL_CERT_DIR`, `REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`. An empty variable
counts as missing. They are read when a connection pool is created: at the first sync call, and at the first call on
each event loop.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import ipaddress
import os
import re
import ssl
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from pydantic import SecretStr

from dashscope_embeddings._core.address import is_loopback
from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_MAX_PORT = 65_535

DESCRIPTIONS: Mapping[tuple[str, ...], str] = {
    ("HTTPS_PROXY", "ALL_PROXY"): "Proxy, such as `http://127.0.0.1:7890` or `socks5h://…`; never for this machine.",
    ("NO_PROXY",): "Hosts without a proxy: `.example.com`, `10.0.0.0/8`, `[::1]`, `*`.",
    _CERTIFICATE_VARIABLES: "Certificate authorities in place of certifi's; the first that is set.",
}
"""Names of variables → what they say; README's table is made from it."""


# --- proxies -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proxy:
    """A proxy, and the variable that named it."""

    variable: str
    httpx_proxy: httpx.Proxy

    def __str__(self) -> str:
        """Without user and password."""
        return f"{self.variable}={_without_credentials(str(self.httpx_proxy.url))}"


def proxy_for(url: httpx.URL) -> Proxy | None:
    """The proxy for requests to an address; None for a direct connection, as always to this machine."""
    setting = None if is_loopback(url.host) else _proxy_variable(url)
    return None if setting is None else Proxy(setting[0], _parse_proxy(*setting, url.host))


def _proxy_variable(url: httpx.URL) -> tuple[str, SecretStr] | None:
    """The variable that applies to an address, and its value, which may hold a password."""
    # Includes the system settings on Windows and macOS.
    proxies = urllib.request.getproxies()
    scheme = next((scheme for scheme in (url.scheme, "all") if proxies.get(scheme)), None)
    if scheme is None or any(_matches_no_proxy(entry, url) for entry in re.split(r"[\s,]+", proxies.get("no", ""))):
        return None
    variable = f"{scheme}_proxy"
    spellings = (name for name in os.environ if name.lower() == variable and os.environ[name] == proxies[scheme])
    return next(spellings, variable), SecretStr(proxies[scheme].strip())


def _matches_no_proxy(entry: str, url: httpx.URL) -> bool:
    """Whether a NO_PROXY entry matches: a host name and its subdomains, an IP or a range; optionally with a port."""
    scheme, _, entry = entry.lower().rpartition("://")
    if scheme not in {"", "all", url.scheme}:
        return False
    entry = entry.rstrip("/")
    host = url.host.lower().rstrip(".")
    # An IPv6 address contains colons: without brackets it has no port.
    parts = re.fullmatch(r"\[([^\]]+)\]((?:/\d+)?)(?::(\d+))?|([^:]+)()(?::(\d+))?|(.+:.*:.*)", entry)
    if parts is None:
        return False
    name = (parts[1] or parts[4] or parts[7]) + (parts[2] or "")
    port = parts[3] or parts[6]
    if port and int(port) != (url.port or {"http": 80, "https": 443}[url.scheme]):
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    except ValueError:  # host or entry is a name
        name = name.rstrip(".")
        bare = name.lstrip("*").lstrip(".")
        return name == "*" or fnmatch.fnmatchcase(host, name) or (bare != "" and f".{host}".endswith(f".{bare}"))


def _parse_proxy(variable: str, value: SecretStr, host: str) -> httpx.Proxy:
    """The proxy in a variable's value; raises InvalidInput if it cannot be used for `host`."""
    prefix = re.match(r"([^:/@]+)://", value.get_secret_value())  # nothing else: tracebacks may show local variables
    scheme = prefix[1].lower() if prefix else "http"
    if scheme not in _PROXY_SCHEMES:
        problem = f"its scheme is none of {', '.join(_PROXY_SCHEMES)}"
        if scheme.startswith("socks"):
            problem += f": write socks5:// in place of {scheme}://"
    elif scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        problem = 'it needs the package socksio: pip install "httpx[socks]"'
    else:
        problem = "it is no address: expected one like http://127.0.0.1:7890 or http://user:password@host:port"
        try:
            proxy = httpx.Proxy(f"{'' if prefix else 'http://'}{value.get_secret_value()}")
            if proxy.url.host.encode("idna") and 0 < (1 if proxy.url.port is None else proxy.url.port) <= _MAX_PORT:
                return proxy
        except (httpx.InvalidURL, UnicodeError, ValueError):
            pass
    raise InvalidInput(
        f"{variable}={_without_credentials(value.get_secret_value())} cannot be used as a proxy: {problem}. "
        f"Correct {variable}, or connect to {host} directly with NO_PROXY={host}"
    )


def _without_credentials(address: str) -> str:
    """An address without user and password."""
    scheme, _, rest = address.rpartition("://")
    prefix = f"{scheme}://" if scheme else ""
    _, at_sign, host = rest.rpartition("@")
    return f"{prefix}{'…@' if at_sign else ''}{host.rstrip('/')}"


# --- certificates ------------------------------------------------------------------------------------------


def certificate_source() -> str:
    """The variable, or package, that provides the trusted certificate authorities."""
    variable = _certificate_variable()
    return f"{variable}={os.environ[variable]}" if variable else "the package certifi"


def certificates_version() -> tuple[object, ...]:
    """Differs when the variables name other certificates, or their file has changed."""
    if (variable := _certificate_variable()) is None:
        return ()
    value = os.environ[variable]
    try:
        return variable, value, Path(value).stat().st_mtime_ns
    except (OSError, ValueError):  # a list of folders, or what `make_ssl_context` refuses
        return variable, value


def make_ssl_context(url: httpx.URL) -> ssl.SSLContext:
    """The TLS settings for an address, with the certificate authorities that the environment names."""
    if url.scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used; loading certificates is slow
    variable = _certificate_variable()
    if variable is None:
        return httpx.create_ssl_context(trust_env=False)
    value = os.environ[variable]
    # OpenSSL accepts a list of folders.
    try:
        folders = [part for part in value.split(os.pathsep) if Path(part).is_dir()]
        if folders and variable != "SSL_CERT_FILE":
            return ssl.create_default_context(capath=value)
        if variable == "SSL_CERT_DIR":
            raise NotADirectoryError(f"there is {'no folder in it' if Path(value).exists() else 'no such folder'}")
        return ssl.create_default_context(cafile=value)
    except ssl.SSLError:
        problem = "the file holds no certificates in PEM form"
    except FileNotFoundError:
        problem = "there is no such file"
    except OSError as error:
        problem = error.strerror or str(error)
    expected = "folder of certificates named by hash" if variable == "SSL_CERT_DIR" else "PEM file of authorities"
    raise InvalidInput(
        f"{variable}={value} names the certificate authorities to trust, and cannot be used: {problem}. Set it to a "
        f"{expected}, or unset it"
    )


def _certificate_variable() -> str | None:
    return next((name for name in _CERTIFICATE_VARIABLES if os.environ.get(name)), None)
