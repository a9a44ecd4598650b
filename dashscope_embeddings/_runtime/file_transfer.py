"""Requests beside the one for embeddings: other methods and paths, files that go up and come down."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import httpx

from dashscope_embeddings._runtime import files
from dashscope_embeddings._runtime.http_exchange import (
    BodyReader,
    Deadline,
    StreamedResponse,
    UnusableBody,
    close_connection,
    make_reply,
    read_body,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dashscope_embeddings._core.exchange import Endpoint, Send
    from dashscope_embeddings._core.protocol import Reply

_FILE_TIMEOUT_SECONDS = 600.0
"""Seconds without a sign of life: a gateway that takes in 500 MB may be silent for long."""
_MAX_FILE_BYTES = 64 << 30
"""Bytes. 50,000 lines of 25 texts, with vectors of 2,048 numbers, are about 56 GB of text."""


def transfer(client: Any, root_url: str, step: Send, options: dict[str, Any], deadline_seconds: float) -> Reply:
    """One request to another endpoint of the same host, under the same headers; `step.target` is set.

    Raises:
        httpx.RequestError: no reply came, or not all of it.
        UnusableBody: its body is broken or too large.
        Overdue: it took longer than `seconds`, without moving a file at a fair pace.
        OSError: a file cannot be read or written.
    """
    endpoint: Any = step.endpoint
    headers, timeout = httpx.Headers(options["headers"]), options["timeout"]
    if endpoint.upload_file is None:
        request = _build_request(root_url, endpoint, headers, timeout, content=step.body or None)
        return _send(client, request, step, Deadline(deadline_seconds))
    del headers["Content-Type"]  # a form has its own
    timeout = httpx.Timeout(max(_FILE_TIMEOUT_SECONDS, timeout.read or 0.0), connect=timeout.connect)
    with endpoint.upload_file.open("rb") as file:
        # A name on disk may be bytes that are not UTF-8, which a form cannot carry.
        files = {"file": (endpoint.upload_file.name.encode(errors="replace").decode(), file)}
        request = _build_request(root_url, endpoint, headers, timeout, data=dict(endpoint.form_fields), files=files)
        return _send(
            client,
            request,
            step,
            Deadline(deadline_seconds + _FILE_TIMEOUT_SECONDS, endpoint.upload_file.stat().st_size),
        )


def _build_request(
    root_url: str, endpoint: Endpoint, headers: httpx.Headers, timeout: httpx.Timeout, **body_arguments: Any
) -> httpx.Request:
    # Not built by the client, which would add its own headers: a form would go as JSON.
    extensions = {"timeout": timeout.as_dict()}
    return httpx.Request(
        endpoint.method, root_url + endpoint.path, headers=headers, extensions=extensions, **body_arguments
    )


def _send(client: Any, request: httpx.Request, step: Send, deadline: Deadline) -> Reply:
    download_to = step.endpoint.download_to if step.endpoint is not None else None
    with StreamedResponse(client, request, deadline) as response:
        if download_to is None or not response.is_success:
            content = b"".join(read_body(response, BodyReader(response, step.max_reply_bytes), deadline))
        else:
            content = b""
            _write_file(_read_whole_body(response, deadline), download_to, deadline)
        # Nothing in these replies would tell the copy of another one.
        close_connection(response)
        return make_reply(response, content)


def _read_whole_body(response: httpx.Response, deadline: Deadline) -> Iterator[bytes]:
    body = BodyReader(response, _MAX_FILE_BYTES)
    yield from read_body(response, body, deadline)
    if not body.is_complete and not response.is_stream_consumed:
        raise UnusableBody("its compressed body is cut off")


def _write_file(body: Iterator[bytes], download_to: Path, deadline: Deadline) -> None:
    # Of this thread alone: one that an interrupted caller left may still be at work on its own.
    part = download_to.with_name(f"{download_to.name}.{threading.get_ident():x}.part")
    try:
        with files.create_replacing(part) as file:
            for piece in body:
                file.write(piece)
                deadline.extend_for(len(piece))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.replace(download_to)
