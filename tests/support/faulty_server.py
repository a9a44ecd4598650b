"""A server that breaks some of its connections and answers the others with an emulator."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dashscope_embeddings.emulator import Emulator
from dashscope_embeddings.emulator.messages import Request


def reset(connection: socket.socket) -> None:
    """Closes with RST instead of FIN: bytes that were sent but not read are lost."""
    linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()


def read_request(connection: socket.socket, most: int | None = None) -> Request | None:
    """Reads a request; None if the client closes, or after `most` bytes of an incomplete request."""
    seen = b""
    while b"\r\n\r\n" not in seen or len(seen) < _whole(seen):
        if most is not None and len(seen) >= most:
            return None
        if not (more := connection.recv(65_536 if most is None else most)):
            return None
        seen += more
    head, _, body = seen.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    named = (line.partition(":") for line in lines)
    return Request(method, path, {name.lower(): value.strip() for name, _, value in named}, body)


def _whole(seen: bytes) -> int:
    head, _, _ = seen.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return len(head) + 4 + int(lengths[0].split(b":")[1])


@dataclass
class FaultyServer:
    """A port that applies a fault to the connections in `struck`, and an emulator to the others."""

    emulator: Emulator
    fault: Callable[[FaultyServer, socket.socket], None]
    """Applied to a faulty connection."""
    struck: range = field(default_factory=lambda: range(0))
    """Numbers of the faulty connections, from 0."""
    connections: int = 0
    trouble: list[Exception] = field(default_factory=list)

    def serve(self, connection: socket.socket) -> None:
        number, self.connections = self.connections, self.connections + 1
        try:
            # A client that disconnects is not an error of the server.
            with connection, contextlib.suppress(OSError):
                self.fault(self, connection) if number in self.struck else self.answer(connection)
        except Exception as error:  # noqa: BLE001 - in a thread; asserted when the server is closed
            self.trouble.append(error)

    def answer(self, connection: socket.socket) -> None:
        if (request := read_request(connection)) is not None:
            connection.sendall(self.reply(request))

    def reply(self, request: Request) -> bytes:
        response = self.emulator.answer(request)
        lines = [f"HTTP/1.1 {response.status} OK", "connection: close", f"content-length: {len(response.body)}"]
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + response.body


@contextlib.contextmanager
def serving(server: FaultyServer) -> Iterator[str]:
    """Serves on 127.0.0.1; yields the URL."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            server.serve(self.request)

    class Listening(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def shutdown_request(self, request: Any) -> None:
            """Only close: the default sends FIN first, even before a reset."""
            request.close()

    with Listening(("127.0.0.1", 0), Handler) as tcp:
        thread = threading.Thread(target=tcp.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{tcp.server_address[1]}"
        tcp.shutdown()
        thread.join()
    assert server.trouble == []
