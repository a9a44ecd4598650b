"""The socket transport: HTTP/1.1 on 127.0.0.1, one thread per connection."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dashscope_embeddings.emulator.messages import Request, Response

if TYPE_CHECKING:
    from dashscope_embeddings.emulator.service import Emulator


class Server(ThreadingMixIn, TCPServer):
    """Serves an emulator on a local port until it is closed; also a context manager.

    Not derived from the server of http.server, which looks up this machine's host name.

    Args:
        emulator: answers the requests.
        port: 0 takes a free one.
        latency: seconds that every reply takes; may be changed while it runs.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 512

    def __init__(self, emulator: Emulator, port: int = 0, latency: float = 0.0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.emulator = emulator
        self.latency = latency
        self.peak_connections = self.peak_in_flight = 0
        """Highest numbers of open connections, and of requests in flight, at the same time."""
        self._in_flight = 0
        self._closing = threading.Event()
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), name="dashscope-emulator", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The root URL, to which the paths of both protocols are appended."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def close(self) -> None:
        """Stops listening and cuts every connection; a second call does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Server {self.url}>"

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves one connection, and counts it while it is open."""
        with self._lock:
            self._connections.add(request)
            self.peak_connections = max(self.peak_connections, len(self._connections))
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._connections.discard(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores errors: a client that disconnects is not an error of the server."""

    def answer(self, request: Request) -> Response:
        """The emulator's response, after its delay."""
        self._count_in_flight(1)
        try:
            response = self.emulator.answer(request)
            self._closing.wait(self.latency + response.delay_seconds)
            return response
        finally:
            self._count_in_flight(-1)

    def _count_in_flight(self, change: int) -> None:
        with self._lock:
            self._in_flight += change
            self.peak_in_flight = max(self.peak_in_flight, self._in_flight)

    def stall(self, connection: socket.socket) -> None:
        """Sends nothing until the client closes the connection or the server is closed."""
        while not self._closing.wait(0.02):
            if select.select([connection], [], [], 0)[0] and not connection.recv(1, socket.MSG_PEEK):
                return


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        address = urlsplit(self.path)
        body = self.rfile.read(length) if length else b""
        self._write_response(self.server.answer(Request(self.command, address.path, headers, body, address.query)))

    do_GET = do_PUT = do_DELETE = do_PATCH = do_POST  # noqa: N815

    def _write_response(self, response: Response) -> None:
        self.close_connection = response.ending != "whole" or self.close_connection
        if response.ending in ("reset", "unreachable"):
            # A linger time of zero makes close() send RST instead of FIN.
            linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            # Close here, because socketserver would call shutdown() first, which sends FIN.
            self.connection.close()
        elif response.visible_status:
            sent = response.body if response.ending == "whole" else response.body[: response.sent_bytes]
            self.wfile.write(_head(response) + sent)
        if response.ending == "stalled":
            self.server.stall(self.connection)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Prints nothing: the emulator has its own log."""


def _head(response: Response) -> bytes:
    phrase, _ = BaseHTTPRequestHandler.responses.get(response.status, ("", ""))
    headers = {**response.headers, "content-length": str(len(response.body))}
    lines = [f"HTTP/1.1 {response.status} {phrase}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")
