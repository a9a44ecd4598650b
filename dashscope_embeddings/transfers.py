"""Requests beside the one for embeddings: other methods and paths, files that go up and come down."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import httpx

from dashscope_embeddings import files
from dashscope_embeddings.wire import Reply

if TYPE_CHECKING:
    from pathlib import Path

    from dashscope_embeddings.exchange import Target

_PATIENCE = 600.0
"""Seconds without a sign of life: a gateway that takes in 500 MB may be silent for long."""


def transfer(client: Any, root: str, target: Target, body: bytes, options: dict[str, Any]) -> Reply:
    """One request to another endpoint of the same host, under the same headers.

    Raises:
        httpx.RequestError: no reply came, or not all of it.
        OSError: a file cannot be read or written.
    """
    headers, patience = httpx.Headers(options["headers"]), options["timeout"]
    if target.upload is None:
        return _asked(client, root, target, headers, patience, content=body or None)
    del headers["Content-Type"]  # a form has its own
    patience = httpx.Timeout(max(_PATIENCE, patience.read or 0.0), connect=patience.connect)
    with target.upload.open("rb") as file:
        files = {"file": (target.upload.name, file)}
        return _asked(client, root, target, headers, patience, data=dict(target.fields), files=files)


def _asked(
    client: Any, root: str, target: Target, headers: httpx.Headers, patience: httpx.Timeout, **what: Any
) -> Reply:
    # Not built by the client, which would add its own headers: a form would go as JSON.
    request = httpx.Request(
        target.method, root + target.path, headers=headers, extensions={"timeout": patience.as_dict()}, **what
    )
    reply = client.send(request, stream=True, follow_redirects=False)
    try:
        if target.into is None or not reply.is_success:
            return Reply(reply.status_code, reply.headers, reply.read())
        _write(reply, target.into)
        return Reply(reply.status_code, reply.headers, b"")
    finally:
        reply.close()


def _write(reply: httpx.Response, into: Path) -> None:
    # Of this thread alone: one that an interrupted caller left may still be at work on its own.
    part = into.with_name(f"{into.name}.{threading.get_ident():x}.part")
    try:
        with files.create_anew(part) as file:
            for chunk in reply.iter_bytes():
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.replace(into)
