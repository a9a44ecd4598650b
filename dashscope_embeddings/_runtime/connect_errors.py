"""What a request that got no reply means: the cause in words of the network, and what to do about it."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import httpx

from dashscope_embeddings._core.exchange import Failure
from dashscope_embeddings._runtime.environment import trusted_by

if TYPE_CHECKING:
    from dashscope_embeddings._runtime.environment import Proxy

_UNTRUSTED = re.compile(r"certificate verify failed: (.*?)\.?(?: \(_ssl|$)")
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "record layer failure", "[SSL: HTTP_REQUEST]")
_NO_HTTP = ("illegal request line", "illegal status line")


def failure(error: httpx.RequestError, url: httpx.URL, timeout: httpx.Timeout, proxy: Proxy | None) -> Failure:
    """Why no reply came from an address, and whether asking again can help. `proxy` is None where none is known of."""
    said, host = f"{type(error).__name__}: {error}", url.host
    if isinstance(error, httpx.ProxyError):
        return _of_a_proxy(str(error), host, proxy)
    if isinstance(error, httpx.TimeoutException):
        seconds = timeout.connect if isinstance(error, httpx.ConnectTimeout) else timeout.read
        said = f"nothing within {seconds:g} s ({type(error).__name__})"
    if isinstance(error, httpx.DecodingError):
        return Failure(said, broken=True)
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        return _unconnected(error, said, host, proxy)
    if any(sign in said for sign in _NO_HTTP):
        tls = " If it speaks TLS, write https:// in base_url." if url.scheme == "http" else ""
        return Failure(f"what answers there speaks no HTTP ({said}).{tls} Is it the right host and port?")
    return Failure(said, retry=not isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)))


def _of_a_proxy(said: str, host: str, proxy: Proxy | None) -> Failure:
    name = f"the proxy {proxy}" if proxy else "the proxy"
    if said.startswith("407"):
        variable = proxy.variable if proxy else "the proxy's address"
        return Failure(
            f"{name} asks for a user and a password, or refuses those it was given ({said}). Set them in "
            f"{variable}, as in http://user:password@host:port, or go to {host} directly with NO_PROXY={host}",
            retry=False,
        )
    return Failure(
        f"{name} does not connect to {host} ({said}). Ask who runs it whether it allows this host and port, or go "
        f"there directly with NO_PROXY={host}",
        retry=not said.startswith("4"),
    )


def _unconnected(error: httpx.RequestError, said: str, host: str, proxy: Proxy | None) -> Failure:
    if found := _UNTRUSTED.search(said):
        return Failure(_untrusted(f"CERTIFICATE_VERIFY_FAILED: {found[1]}", host), retry=False)
    if any(sign in said for sign in _NO_TLS):
        if proxy is not None and proxy.scheme == "https":
            return Failure(f"the proxy {proxy} speaks no TLS. Write http:// in {proxy.variable}")
        return Failure(f"what answers there speaks no TLS ({error}). Is it the right host and port?")
    first = f"the proxy {proxy}" if proxy else "it"
    if _nameless(error):
        name = f"the name of {first}" if proxy else "its name"
        return Failure(f"{name} cannot be found ({error}). Is it spelt right, and is there a network with DNS?")
    if proxy is None:
        return Failure(said)
    # Nearly all proxies for https are spoken to without TLS; one that waits for a request says nothing.
    tls = f". If it speaks no TLS itself, write http:// in {proxy.variable}" if proxy.scheme == "https" else ""
    return Failure(f"{first} cannot be reached: {said}{tls}")


def _untrusted(why: str, host: str) -> str:
    if "mismatch" in why:
        return f"the certificate shown for {host} is for another host ({why}): something else stands at this address"
    if "expired" in why or "not yet valid" in why:
        return f"the certificate of {host} is out of date ({why}). Is the clock of this machine right?"
    return (
        f"the certificate of {host} is not signed by an authority that this machine trusts ({why}). A proxy or "
        "firewall of a company signs with its own authority: set SSL_CERT_FILE to a PEM file that holds it. Now the "
        f"authorities of {trusted_by()} are trusted"
    )


def _nameless(error: BaseException | None) -> bool:
    """Whether a host's name was not found."""
    while error is not None and not isinstance(error, socket.gaierror):
        error = error.__cause__ or error.__context__
    return error is not None
