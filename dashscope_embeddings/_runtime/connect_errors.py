"""Explains why a request got no reply: the cause (DNS, TLS, proxy, certificate) and what to do about it."""

from __future__ import annotations

import errno
import re
import socket
from typing import TYPE_CHECKING

from dashscope_embeddings._core.failures import Failure
from dashscope_embeddings._runtime.environment import certificate_source

if TYPE_CHECKING:
    import httpx

    from dashscope_embeddings._runtime.environment import Proxy

_CERTIFICATE_ERROR = re.compile(r"certificate verify failed: (.*?)\.?(?: \(_ssl|$)")
_NOT_TLS_SIGNS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "record layer failure", "[SSL: HTTP_REQUEST]")
_NOT_HTTP_SIGNS = ("illegal request line", "illegal status line")


def is_kind(error: BaseException | None, *class_names: str) -> bool:
    """Whether an error is of a class with one of these names: httpx's, httpcore's, or httpx2's with its interface."""
    return any(base.__name__ in class_names for base in type(error).__mro__)


def is_request_error(error: BaseException) -> bool:
    """Whether an error says that no reply came, or not all of it."""
    return is_kind(error, "RequestError", *_HTTPCORE_ERRORS)


_HTTPCORE_ERRORS = (
    "NetworkError", "TimeoutException", "ProtocolError", "ProxyError", "UnsupportedProtocol", "ConnectionNotAvailable",
)  # fmt: skip
"""httpx derives its errors with these names from `RequestError`."""


def explain_network_error(error: Exception, url: httpx.URL, timeout: httpx.Timeout, proxy: Proxy | None) -> Failure:
    """The cause of a network error, and whether a retry can help. `proxy`: None if none is used or known."""
    message, host = f"{type(error).__name__}: {error}", url.host
    if is_kind(error, "ProxyError"):
        return _proxy_failure(str(error), host, proxy)
    if is_kind(error, "TimeoutException"):
        seconds = timeout.connect if is_kind(error, "ConnectTimeout") else timeout.read
        message = f"nothing within {seconds:g} s ({type(error).__name__})"
    if is_kind(error, "ConnectionNotAvailable"):
        message = "the server closed the connection"
    if is_kind(error, "DecodingError"):
        return Failure(message, is_unreadable_reply=True)
    if is_kind(error, "ConnectError", "ConnectTimeout"):
        return _connect_failure(error, message, host, proxy)
    if any(sign in message for sign in _NOT_HTTP_SIGNS):
        tls = " If it speaks TLS, write https:// in base_url." if url.scheme == "http" else ""
        return Failure(f"the server does not speak HTTP ({message}).{tls} Is it the right host and port?")
    return Failure(message, is_retryable=not is_kind(error, "UnsupportedProtocol", "LocalProtocolError"))


def explain_thread_shortage(error: RuntimeError) -> Failure | None:
    """Explains the error of a loop that cannot start a thread."""
    if "start new thread" not in str(error):
        return None
    return Failure(
        "this process cannot start another thread, which the lookup of a host name needs: raise the thread limit "
        "(ulimit -u, the container's pids limit), or run fewer threads"
    )


def _proxy_failure(message: str, host: str, proxy: Proxy | None) -> Failure:
    name = f"the proxy {proxy}" if proxy else "the proxy"
    if message.startswith("407"):
        variable = proxy.variable if proxy else "the proxy's address"
        return Failure(
            f"{name} requires a user and a password, or refused those in its address ({message}). Set them in "
            f"{variable}, as in http://user:password@host:port, or connect to {host} directly with NO_PROXY={host}",
            is_retryable=False,
        )
    return Failure(
        f"{name} does not connect to {host} ({message}). Ask its administrator whether it allows this host and port, "
        f"or connect directly with NO_PROXY={host}",
        is_retryable=not message.startswith("4"),
    )


def _connect_failure(error: Exception, message: str, host: str, proxy: Proxy | None) -> Failure:
    cause = _system_error(error)
    if cause is not None and is_kind(error, "ConnectError"):
        message = f"ConnectError: {cause}"  # anyio says "All connection attempts failed"
    if match := _CERTIFICATE_ERROR.search(message):
        return Failure(_certificate_message(f"CERTIFICATE_VERIFY_FAILED: {match[1]}", host), is_retryable=False)
    if any(sign in message for sign in _NOT_TLS_SIGNS):
        if proxy is not None and proxy.httpx_proxy.url.scheme == "https":
            return Failure(f"the proxy {proxy} does not speak TLS. Write http:// in {proxy.variable}")
        return Failure(f"the server does not speak TLS ({error}). Is it the right host and port?")
    first_hop = f"the proxy {proxy}" if proxy else "it"
    if isinstance(cause, socket.gaierror):
        name = f"the name of {first_hop}" if proxy else "its name"
        return Failure(f"{name} cannot be resolved ({cause})")
    if cause is not None and cause.errno == errno.EMFILE:
        return Failure(
            "this process has as many open files as it may have: raise the limit (ulimit -n), or set max_concurrency "
            "to open fewer connections"
        )
    # Nearly all proxies for https expect plain HTTP, and one that waits for a request stays silent during a handshake.
    is_tls_proxy = proxy is not None and proxy.httpx_proxy.url.scheme == "https"
    tls = f". If it does not speak TLS itself, write http:// in {proxy.variable}" if proxy and is_tls_proxy else ""
    return Failure(f"{first_hop} cannot be reached: {message}{tls}" if proxy else message)


def _certificate_message(reason: str, host: str) -> str:
    if "mismatch" in reason:
        return f"the certificate shown for {host} is for another host ({reason}): another server has this address"
    if "expired" in reason or "not yet valid" in reason:
        return f"the certificate of {host} is out of date ({reason}). Is the clock of this machine right?"
    return (
        f"the certificate of {host} is not signed by an authority that this machine trusts ({reason}). A company's "
        "proxy or firewall signs with its own authority: set SSL_CERT_FILE to a PEM file that holds it. At present the "
        f"authorities of {certificate_source()} are trusted"
    )


def _system_error(error: BaseException | None) -> OSError | None:
    """The system's own error behind an error of a library; None: there is none."""
    while error is not None and not (isinstance(error, OSError) and error.errno is not None):
        attempts = getattr(error, "exceptions", ())  # of a group, where a host has several addresses
        error = attempts[0] if attempts else error.__cause__ or error.__context__
    return error
