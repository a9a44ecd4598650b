"""Proxies and certificates from environment variables are used, and errors name the variable that is wrong."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from client_helpers import KEY, AsyncCalls, FakeClock, SyncCalls
from faulty_server import FaultyServer, serving
from raw_server import serve_raw
from secret_scanner import CANARY, find_secret

from dashscope_embeddings import (
    AuthenticationError,
    BadReply,
    ConnectionFailed,
    DashScopeError,
    EmbeddingClient,
    InvalidInput,
    ServerError,
    ServiceError,
)
from dashscope_embeddings._core.address import is_loopback
from dashscope_embeddings._runtime.environment import proxy_for
from dashscope_embeddings.emulator import Emulator, faults

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from raw_server import RawServer, ReceivedRequest

    from dashscope_embeddings.emulator.http import Server

WAYS = pytest.mark.parametrize("way", [SyncCalls(), AsyncCalls()], ids=["sync", "async"])
HOST = "dashscope.aliyuncs.com"
RETRIES = 2


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of this machine."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in {"SSL_CERT_FILE", "SSL_CERT_DIR"} or name.endswith("_CA_BUNDLE"):
            monkeypatch.delenv(name)


def client_at(base_url: str = f"https://{HOST}", **settings: Any) -> EmbeddingClient:
    settings = {"dimensions": 64, "max_retries": RETRIES, "max_concurrency": 1, "timeout": 10, **settings}
    client = EmbeddingClient(api_key=KEY, base_url=base_url, **settings)
    client._transport.clock = FakeClock()  # type: ignore[assignment]
    return client


def refused(way: SyncCalls | AsyncCalls, client: EmbeddingClient, words: str | None = None) -> DashScopeError:
    with pytest.raises(DashScopeError, match=words) as caught:
        way.embed(client, ["a", "b"])
    assert find_secret(caught.value, KEY) == find_secret(caught.value, CANARY) == []
    return caught.value


@contextlib.contextmanager
def relay(reply: str = "200 OK", port: int = 0) -> Iterator[RawServer]:
    """A proxy on this machine: it answers CONNECT with `reply` and, where that is 200, leads to `port`."""

    def handle(_: ReceivedRequest, connection: socket.socket) -> None:
        length = "" if port else "content-length: 0\r\n"
        connection.sendall(f"HTTP/1.1 {reply}\r\n{length}\r\n".encode())
        if port:
            with socket.create_connection(("127.0.0.1", port)) as other:
                back = threading.Thread(target=_pass_on, args=(other, connection), daemon=True)
                back.start()
                _pass_on(connection, other)
                back.join(5)

    with serve_raw(handle) as server:
        yield server


def address_of(proxy: RawServer) -> str:
    return proxy.url.replace("http://", f"http://someone:{CANARY}@")


def _pass_on(from_: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while heard := from_.recv(65_536):
            to.sendall(heard)
        to.shutdown(socket.SHUT_WR)


# --- proxies ------------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_what_is_asked_of_this_machine_never_goes_through_a_proxy(
    host: str, variable: str, way: SyncCalls | AsyncCalls, served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with relay() as proxy:
        monkeypatch.setenv(variable, address_of(proxy))
        client = client_at(served.url.replace("127.0.0.1", host))
        assert way.embed(client, ["a"]).dense == [served.emulator.dense("a", dimension=64)]
        client.close()
    assert proxy.requests == []


def test_this_machine_is_known_by_all_its_names_and_no_other_host_is_taken_for_it() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.8.9.10", "::1", "localhost", "LocalHost", "::ffff:127.0.0.1"]))
    others = ["127.0.0.1.example", "localhost.example", "10.0.0.1", "::2", "0.0.0.0", "128.0.0.1"]  # noqa: S104
    assert not any(map(is_loopback, others))


DIRECT = [
    # NO_PROXY, and an address that it covers
    ("aliyuncs.com", f"https://{HOST}"),
    (".aliyuncs.com", f"https://{HOST}"),
    ("*.aliyuncs.com", f"https://{HOST}"),
    ("other.example, Aliyuncs.COM", f"https://{HOST}"),
    ("other.example dashscope.aliyuncs.com:443", f"https://{HOST}"),
    ("https://dashscope.aliyuncs.com", f"https://{HOST}"),
    ("all://dashscope.aliyuncs.com/", f"https://{HOST}"),
    ("*", f"https://{HOST}"),
    ("10.0.0.0/8", "https://10.1.2.3"),
    ("10.*", "https://10.1.2.3"),
    ("10.1.2.3:8443", "https://10.1.2.3:8443"),
    ("fd07::/64", "https://[fd07::5]"),
    ("[fd07::]/64", "https://[fd07::5]"),
    ("fd07::5", "https://[fd07::5]"),
    ("[fd07::5]", "https://[fd07::5]"),
    ("[fd07:0:0::5]:443", "https://[fd07::5]"),
    ("::1, fd07::5/128", "https://[fd07::5]"),
]
PROXIED = [
    ("", f"https://{HOST}"),
    ("yuncs.com", f"https://{HOST}"),
    ("dashscope.aliyuncs.com.example", f"https://{HOST}"),
    ("dashscope.aliyuncs.com:8443", f"https://{HOST}"),
    ("http://dashscope.aliyuncs.com", f"https://{HOST}"),
    ("[::1]", f"https://{HOST}"),
    ("::1/128", "https://[fd07::5]"),
    ("fd08::/64,[fd07::5]:8443", "https://[fd07::5]"),
    ("[::1, [], :::, a:b:c, ://, 10.0.0.0/99, .", f"https://{HOST}"),
]


@pytest.mark.parametrize(("no_proxy", "address"), DIRECT)
def test_no_proxy_leads_past_a_proxy_even_past_one_that_cannot_be_used(
    no_proxy: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", no_proxy)
    for proxy in ("http://127.0.0.1:1", "socks5://127.0.0.1:1", "socks://127.0.0.1:1", "no proxy at all://"):
        monkeypatch.setenv("ALL_PROXY", proxy)
        assert proxy_for(httpx.URL(address)) is None


@pytest.mark.parametrize(("no_proxy", "address"), PROXIED)
def test_no_proxy_stands_for_nothing_else(no_proxy: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a variable for the scheme comes before ALL_PROXY."""
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "127.0.0.1:7890")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert str(proxy_for(httpx.URL(address))) == "https_proxy=http://127.0.0.1:7890"


UNUSABLE = {
    "socks": (f"socks://someone:{CANARY}@127.0.0.1:1", r"=socks://…@127.0.0.1:1 .* write socks5://"),
    "socks4": (f"socks4://someone:{CANARY}@127.0.0.1:1", "write socks5://"),
    "unknown scheme": (f"foo://someone:{CANARY}@127.0.0.1:1", "none of http, https, socks5, socks5h"),
    "no end of an IPv6 address": (f"http://someone:{CANARY}@[::1", r"=http://…@\[::1 .* it is no address"),
    "port too high": (f"someone:{CANARY}@127.0.0.1:99999999", "=…@127.0.0.1:99999999 .* it is no address"),
    "port that is none": (f"http://someone:{CANARY}@127.0.0.1:port", "it is no address"),
    "no host": (f"http://someone:{CANARY}@", "it is no address"),
    "no package": (f"socks5://someone:{CANARY}@127.0.0.1:1080", r'…@127.0.0.1:1080 .* pip install "httpx\[socks\]"'),
}


@WAYS
@pytest.mark.parametrize("case", UNUSABLE)
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "all_proxy"])
def test_a_proxy_that_cannot_be_used_is_reported_by_its_variable_without_its_password(
    variable: str, case: str, way: SyncCalls | AsyncCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, words = UNUSABLE[case]
    if case == "no package" and importlib.util.find_spec("socksio") is not None:
        pytest.skip("it is installed")
    monkeypatch.setenv(variable, value)
    error = refused(way, client_at(), words)
    assert type(error) is InvalidInput
    assert str(error).startswith(f"{variable}=")
    assert str(error).endswith(f"NO_PROXY={HOST}")


def test_a_variable_that_is_mended_is_heard_by_the_same_client(monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_at(max_retries=0)
    monkeypatch.setenv("HTTPS_PROXY", "socks://127.0.0.1:1")
    assert type(refused(SyncCalls(), client)) is InvalidInput
    with relay("403 Forbidden") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", address_of(proxy))
        assert type(refused(SyncCalls(), client)) is ConnectionFailed
        assert len(proxy.requests) == 1
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
        assert "the proxy HTTPS_PROXY=http://127.0.0.1:1 cannot be reached" in str(refused(AsyncCalls(), client))


@WAYS
@pytest.mark.parametrize(
    ("reply", "tries", "words"),
    [
        ("407 Proxy Authentication Required", 1, "requires a user and a password, or refused those in its address"),
        ("403 Forbidden", 1, f"does not connect to {HOST} .*Ask its administrator"),
        ("502 Bad Gateway", 1 + RETRIES, f"does not connect to {HOST} "),
    ],
)
def test_a_refusal_of_a_proxy_is_reported_as_the_proxys(
    reply: str, tries: int, words: str, way: SyncCalls | AsyncCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    with relay(reply) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", address_of(proxy))
        error = refused(way, client_at(), rf"the proxy HTTPS_PROXY={proxy.url} {words}")
    assert type(error) is ConnectionFailed
    assert len(proxy.requests) == tries
    assert reply in str(error)
    assert "region" not in str(error)


@WAYS
def test_a_proxy_that_is_not_there_and_one_without_tls_are_named(
    way: SyncCalls | AsyncCalls, served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://someone:{CANARY}@127.0.0.1:1")
    refused(way, client_at(), "the proxy HTTPS_PROXY=http://127.0.0.1:1 cannot be reached")
    monkeypatch.setenv("HTTPS_PROXY", proxy := served.url.replace("http:", "https:"))
    refused(way, client_at(), f"the proxy HTTPS_PROXY={proxy} does not speak TLS. Write http:// in HTTPS_PROXY")


def test_a_proxy_that_waits_for_a_request_and_not_for_tls_is_reported_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("ALL_PROXY", f"https://127.0.0.1:{silent.getsockname()[1]}")
        words = r"reached: nothing within 0.2 s .* does not speak TLS itself, write http:// in ALL_PROXY"
        refused(SyncCalls(), client_at(timeout=0.2, max_retries=0), words)


@WAYS
@pytest.mark.parametrize("whose", ["host", "proxy"])
def test_a_name_that_is_not_found_is_reported_as_such(
    whose: str, way: SyncCalls | AsyncCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    if whose == "proxy":
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
        words = "the name of the proxy HTTPS_PROXY=http://proxy.invalid:3128 cannot be resolved"
    else:
        words = f"no answer from {HOST}: its name cannot be resolved"
    error = refused(way, client_at(), words)
    assert str(error).count("?") == 1, "one question is enough"


# --- certificates -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority of our own (ca.pem) and the certificate that it signed for HOST (host.pem)."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("authority")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    (folder / "extensions").write_text(f"subjectAltName=DNS:{HOST}\nauthorityKeyIdentifier=keyid\n")
    usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
    commands = [
        ["req", "-x509", *new, "-subj", "/CN=Company CA", "-days", "2", *usage, "-keyout", "ca.key", "-out", "ca.pem"],
        ["req", *new, "-subj", f"/CN={HOST}", "-keyout", "host.key", "-out", "host.csr"],
        ["x509", "-req", "-in", "host.csr", *signed, "-days", "2", "-extfile", "extensions", "-out", "host.crt"],
        ["x509", "-hash", "-noout", "-in", "ca.pem"],
    ]
    for command in commands:
        made = subprocess.run([openssl, *command], cwd=folder, capture_output=True, check=False)  # noqa: S603 - fixed
        if made.returncode:
            pytest.skip("this openssl command makes no certificate")
    (folder / "hashed").mkdir()
    shutil.copy(folder / "ca.pem", folder / "hashed" / f"{made.stdout.decode().strip()}.0")
    (folder / "host.pem").write_bytes((folder / "host.key").read_bytes() + (folder / "host.crt").read_bytes())
    return folder


@pytest.fixture
def company(authority: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawServer]:
    """A proxy that decrypts TLS and signs with its own authority, as companies use."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "host.pem")

    def secure(server: FaultyServer, connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            server.answer(wrapped)

    with serving(FaultyServer(emulator, secure, range(100))) as url, relay(port=int(url.rpartition(":")[2])) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", address_of(proxy))
        yield proxy


@WAYS
@pytest.mark.parametrize(
    "variable",
    [
        ("SSL_CERT_FILE", "ca.pem"),
        ("SSL_CERT_DIR", "hashed"),
        ("REQUESTS_CA_BUNDLE", "ca.pem"),
        ("REQUESTS_CA_BUNDLE", "hashed"),
        ("CURL_CA_BUNDLE", "ca.pem"),
    ],
)
def test_a_companys_authority_is_trusted_by_any_of_the_usual_variables(
    variable: tuple[str, str],
    way: SyncCalls | AsyncCalls,
    company: RawServer,
    authority: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable[0], str(authority / variable[1]))
    client = client_at()
    assert way.embed(client, ["a"]).dense == [Emulator().dense("a", dimension=64)]
    client.close()
    assert company.requests[0].head.startswith(f"CONNECT {HOST}:443 HTTP/1.1\r\n")
    assert "proxy-authorization: basic" in company.requests[0].head.lower()


@WAYS
def test_a_companys_authority_that_is_not_trusted_is_reported_with_the_variable_to_set(
    way: SyncCalls | AsyncCalls, company: RawServer, emulator: Emulator
) -> None:
    words = (
        f"certificate of {HOST} is not signed by an authority that this machine trusts .* set SSL_CERT_FILE to a PEM"
    )
    error = refused(way, client_at(), f"{words} file that holds it. At present the authorities of the package c")
    assert type(error) is ConnectionFailed
    assert "Correct HTTPS_PROXY" not in str(error)
    assert (len(company.requests), emulator.requests) == (1, 0)


@WAYS
def test_a_certificate_for_another_host_is_reported_as_such(
    way: SyncCalls | AsyncCalls, company: RawServer, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))
    refused(way, client_at("https://gateway.example"), "the certificate shown for gateway.example is for another host")
    assert len(company.requests) == 1


@WAYS
@pytest.mark.parametrize(
    "case",
    [
        ("SSL_CERT_FILE", None, "there is no such file"),
        ("SSL_CERT_FILE", b"no certificate", "holds no certificates in PEM form"),
        ("SSL_CERT_DIR", None, "there is no such folder"),
        ("SSL_CERT_DIR", b"a file", "there is no folder in it"),
        ("REQUESTS_CA_BUNDLE", None, "there is no such file"),
        ("CURL_CA_BUNDLE", b"", "holds no certificates in PEM form"),
    ],
)
def test_certificates_that_cannot_be_read_are_reported_by_their_variable(
    case: tuple[str, bytes | None, str], way: SyncCalls | AsyncCalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable, content, words = case
    file = tmp_path / "certificates"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv(variable, str(file))
    error = refused(way, client_at(), words)
    assert type(error) is InvalidInput
    assert str(error).startswith(f"{variable}={file} ")


def test_plain_http_to_this_machine_needs_no_certificates(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "not there")
    client = client_at(served.url)
    assert len(client.embed("a").dense) == 1
    client.close()


@WAYS
def test_a_server_that_speaks_tls_and_is_asked_without_is_reported_as_such(way: SyncCalls | AsyncCalls) -> None:
    alert = b"\x15\x03\x01\x00\x02\x02\x46"
    with serve_raw(lambda *_: alert) as server:
        words = r"does not speak HTTP .* If it speaks TLS, write https:// in base_url"
        refused(way, client_at(server.url), words)


# --- pages of a network -------------------------------------------------------------------------------------


def page(status: int, kind: str) -> httpx.MockTransport:
    words = {
        "a firewall": "<!DOCTYPE html><html><head><title>Access &amp; Policy:\n blocked</title></head></html>",
        "no title": "<html><body><h1>403</h1></body></html>",
    }
    return httpx.MockTransport(lambda _: httpx.Response(status, content=words[kind]))


@pytest.mark.parametrize("kind", ["a firewall", "no title"])
@pytest.mark.parametrize(("status", "type_"), [(200, BadReply), (403, ServiceError), (502, ServerError)])
def test_a_page_of_a_firewall_is_reported_as_one_and_not_as_trouble_with_the_key(
    status: int, type_: type[DashScopeError], kind: str
) -> None:
    named = r' \("Access & Policy: blocked"\)' if kind == "a firewall" else ""
    words = f"an HTML page{named} came in place of the service's JSON. It comes from a firewall, a proxy"
    if status == 200:
        words = f"is not JSON: an HTML page{named}"
    with httpx.Client(transport=page(status, kind)) as http:
        error = refused(SyncCalls(), client_at(http_client=http), words)
    assert type(error) is type_
    assert "region" not in str(error)


def test_a_refusal_of_the_service_is_still_about_the_key(emulator: Emulator) -> None:
    emulator.faults = [faults.Status(403, code="AccessDenied", times=9)]
    with httpx.Client(transport=emulator.transport()) as http:
        error = refused(SyncCalls(), client_at(http_client=http))
    assert type(error) is AuthenticationError
    assert "region" in str(error)
