"""Requests beside the one for embeddings: other methods and paths, files that go up and come down."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import httpx

from dashscope_embeddings._runtime import files
from dashscope_embeddings._runtime.http_exchange import Body, Deadline, Sent, UnusableBody, discard, pieces, reply_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dashscope_embeddings._core.exchange import Send, Target
    from dashscope_embeddings._core.protocol import Reply

_PATIENCE = 600.0
"""Seconds without a sign of life: a gateway that takes in 500 MB may be silent for long."""
_LARGEST_FILE = 64 << 30
"""Bytes. 50,000 lines of 25 texts, with vectors of 2,048 numbers, are about 56 GB of text."""


def transfer(client: Any, root: str, step: Send, options: dict[str, Any], seconds: float) -> Reply:
    """One request to another endpoint of the same host, under the same headers; `step.target` is set.

    Raises:
        httpx.RequestError: no reply came, or not all of it.
        UnusableBody: its body is broken or too large.
        Overdue: it took longer than `seconds`, without moving a file at a fair pace.
        OSError: a file cannot be read or written.
    """
    target: Any = step.target
    headers, patience = httpx.Headers(options["headers"]), options["timeout"]
    if target.upload is None:
        request = _request(root, target, headers, patience, content=step.body or None)
        return _asked(client, request, step, Deadline(seconds))
    del headers["Content-Type"]  # a form has its own
    patience = httpx.Timeout(max(_PATIENCE, patience.read or 0.0), connect=patience.connect)
    with target.upload.open("rb") as file:
        # A name on disk may be bytes that are not UTF-8, which a form cannot carry.
        files = {"file": (target.upload.name.encode(errors="replace").decode(), file)}
        request = _request(root, target, headers, patience, data=dict(target.fields), files=files)
        return _asked(client, request, step, Deadline(seconds + _PATIENCE, target.upload.stat().st_size))


def _request(root: str, target: Target, headers: httpx.Headers, patience: httpx.Timeout, **what: Any) -> httpx.Request:
    # Not built by the client, which would add its own headers: a form would go as JSON.
    extensions = {"timeout": patience.as_dict()}
    return httpx.Request(target.method, root + target.path, headers=headers, extensions=extensions, **what)


def _asked(client: Any, request: httpx.Request, step: Send, deadline: Deadline) -> Reply:
    into = step.target.into if step.target is not None else None
    with Sent(client, request, deadline) as response:
        if into is None or not response.is_success:
            content = b"".join(pieces(response, Body(response, step.most), deadline))
        else:
            content = b""
            _write(_whole(response, deadline), into, deadline)
        # Nothing in these replies would tell the copy of another one.
        discard(response)
        return reply_of(response, content)


def _whole(response: httpx.Response, deadline: Deadline) -> Iterator[bytes]:
    body = Body(response, _LARGEST_FILE)
    yield from pieces(response, body, deadline)
    if not body.whole and not response.is_stream_consumed:
        raise UnusableBody("its compressed body is cut off")


def _write(body: Iterator[bytes], into: Path, deadline: Deadline) -> None:
    # Of this thread alone: one that an interrupted caller left may still be at work on its own.
    part = into.with_name(f"{into.name}.{threading.get_ident():x}.part")
    try:
        with files.create_anew(part) as file:
            for piece in body:
                file.write(piece)
                deadline.moved(len(piece))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.replace(into)
