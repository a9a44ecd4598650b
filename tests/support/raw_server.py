"""A server on plain sockets with keep-alive: a test writes the exact bytes of each reply."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from client_helpers import KEY

from dashscope_embeddings import EmbeddingClient

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator


@dataclass
class ReceivedRequest:
    """One received request."""

    number: int
    """Counted from 1, over all connections."""
    connection: int
    """Number of its connection, from 1."""
    head: str
    body: bytes

    @property
    def texts(self) -> list[str]:
        """The texts to embed."""
        value = json.loads(self.body)["input"]
        texts: list[str] = value["texts"] if isinstance(value, dict) else value
        return texts


@dataclass
class RawServer:
    """Calls `handle` for each request and writes the bytes that it returns; None closes the connection."""

    handle: Callable[[ReceivedRequest, socket.socket], bytes | None]
    requests: list[ReceivedRequest] = field(default_factory=list)
    connections: int = 0
    """Accepted until now."""
    open_connections: int = 0
    received_bytes: int = 0
    body_reads: int = 0
    """Reads that bodies needed beyond those of the heads."""
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, connection: socket.socket) -> None:
        """Serves one connection until it is closed."""
        with self._lock:
            self.connections += 1
            self.open_connections += 1
            number = self.connections
        try:
            self._serve(connection, number)
        finally:
            with self._lock:
                self.open_connections -= 1

    def _serve(self, connection: socket.socket, number: int) -> None:
        buffer = b""
        while True:
            while b"\r\n\r\n" not in buffer:
                if not (more := connection.recv(65_536)):
                    return
                buffer += more
                self.received_bytes += len(more)
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            lines = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            length = int(lines[0].split(b":")[1]) if lines else 0
            while len(buffer) < length:
                if not (more := connection.recv(65_536)):
                    return
                buffer += more
                self.body_reads += 1
            body, buffer = buffer[:length], buffer[length:]
            with self._lock:
                request = ReceivedRequest(len(self.requests) + 1, number, head.decode("latin-1"), body)
                self.requests.append(request)
            if (reply := self.handle(request, connection)) is None:
                return
            connection.sendall(reply)


@contextlib.contextmanager
def serve_raw(handle: Callable[[ReceivedRequest, socket.socket], bytes | None]) -> Iterator[RawServer]:
    """A running server on 127.0.0.1, with its URL."""
    server = RawServer(handle)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):  # a client that disconnects
                server.serve(self.request)

    class Listening(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 128

    with Listening(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        server.url = f"http://127.0.0.1:{listening.server_address[1]}"
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()


def http_response(body: bytes, status: int = 200, **headers: str) -> bytes:
    """A whole reply."""
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def vector_of(text: str, width: int = 64) -> list[float]:
    """A vector that identifies a text."""
    seed = hash(text) & 0xFFFFFF
    return [seed / 0x1000000, *[0.5] * (width - 1)]


def reply_content(request: ReceivedRequest, request_id: object = None, width: int = 64) -> dict[str, Any]:
    """The body of a successful reply in the protocol of the request; `request_id`: None leaves the id out."""
    if isinstance(json.loads(request.body)["input"], list):
        data = [{"index": at, "embedding": vector_of(text, width)} for at, text in enumerate(request.texts)]
        found: dict[str, Any] = {"data": data, "usage": {"total_tokens": len(data)}}
        return found if request_id is None else {**found, "id": request_id}
    rows = [{"text_index": at, "embedding": vector_of(text, width)} for at, text in enumerate(request.texts)]
    found = {"output": {"embeddings": rows}, "usage": {"total_tokens": len(rows)}}
    return found if request_id is None else {**found, "request_id": request_id}


def good_reply(request: ReceivedRequest, request_id: object = None, width: int = 64) -> bytes:
    """A successful reply."""
    return http_response(json.dumps(reply_content(request, request_id, width)).encode())


@contextlib.contextmanager
def client_for_url(url: str, **settings: Any) -> Iterator[EmbeddingClient]:
    """A client without retries, for vectors of 64 numbers."""
    client = EmbeddingClient(api_key=KEY, base_url=url, **{"dimensions": 64, "max_retries": 0, **settings})
    with contextlib.closing(client):
        yield client
