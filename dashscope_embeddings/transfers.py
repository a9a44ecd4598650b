"""Requests beside the one for embeddings: other methods and paths, files that go up and come down."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import httpx

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
    headers = dict(options["headers"])
    how: dict[str, Any] = {**options, "headers": headers}
    if target.upload is None:
        return _asked(client, root, target, how, content=body or None)
    del headers["Content-Type"]  # a form has its own
    before = options["timeout"]
    with target.upload.open("rb") as file:
        how["timeout"] = httpx.Timeout(max(_PATIENCE, before.read or 0.0), connect=before.connect)
        files = {"file": (target.upload.name, file)}
        return _asked(client, root, target, how, content=None, data=dict(target.fields), files=files)


def _asked(client: Any, root: str, target: Target, how: dict[str, Any], **what: Any) -> Reply:
    with client.stream(target.method, root + target.path, **how, **what) as reply:
        if target.into is None or not reply.is_success:
            return Reply(reply.status_code, reply.headers, reply.read())
        _write(reply, target.into)
        return Reply(reply.status_code, reply.headers, b"")


def _write(reply: httpx.Response, into: Path) -> None:
    part = into.with_name(f"{into.name}.part")
    try:
        with part.open("wb") as file:
            for chunk in reply.iter_bytes():
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.replace(into)
