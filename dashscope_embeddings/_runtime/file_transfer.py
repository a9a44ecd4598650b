"""Requests to endpoints other than embeddings: other methods and paths, uploads and downloads of files."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import httpx

from dashscope_embeddings._runtime import files
from dashscope_embeddings._runtime.deadlines import Deadline
from dashscope_embeddings._runtime.http_request import close_connection, make_reply, open_response, read_body
from dashscope_embeddings._runtime.reply_body import BodyReader, UnusableBody

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dashscope_embeddings._core.protocol import Reply
    from dashscope_embeddings._core.steps import Endpoint, Send

_FILE_TIMEOUT_SECONDS = 600.0
"""Read timeout in seconds while a file is sent: a gateway that receives 500 MB may stay silent for long."""
_MAX_FILE_BYTES = 64 << 30
"""Bytes. A result of 50,000 lines of 25 texts, with vectors of 2,048 numbers, has about 56 GB."""


class FileTransfer:
    """Sends requests to other endpoints of the same host, with the same headers, on the caller's thread."""

    def __init__(self, root_url: str, http_options: dict[str, Any], deadline_seconds: float) -> None:
        self._root_url, self._http_options, self._deadline_seconds = root_url, http_options, deadline_seconds

    def send(self, client: Any, step: Send, endpoint: Endpoint) -> Reply:
        """Sends one request and reads its whole reply, to a file if the endpoint names one.

        Raises what `send_and_read` raises, and OSError. The deadline is extended for the bytes of files.
        """
        deadline_seconds = endpoint.deadline_seconds or self._deadline_seconds
        if endpoint.upload_file is None:
            return _send(client, self.build_request(client, step, endpoint), step, Deadline(deadline_seconds))
        headers, timeout = httpx.Headers(self._http_options["headers"]), self._http_options["timeout"]
        del headers["Content-Type"]  # httpx sets that of a form
        timeout = httpx.Timeout(max(_FILE_TIMEOUT_SECONDS, timeout.read or 0.0), connect=timeout.connect)
        with endpoint.upload_file.open("rb") as file:
            # A file name may contain bytes that are not UTF-8, which a form cannot carry.
            files = {"file": (endpoint.upload_file.name.encode(errors="replace").decode(), file)}
            request = self._build_request(
                client, endpoint, headers, timeout, data=dict(endpoint.form_fields), files=files
            )
            deadline = Deadline(deadline_seconds + _FILE_TIMEOUT_SECONDS, endpoint.upload_file.stat().st_size)
            return _send(client, request, step, deadline)

    def build_request(self, client: Any, step: Send, endpoint: Endpoint) -> httpx.Request:
        """The request for a step that sends no file."""
        timeout = self._http_options["timeout"]
        if (seconds := endpoint.deadline_seconds) is not None:
            timeout = httpx.Timeout(
                min(seconds, timeout.read or seconds), connect=min(seconds, timeout.connect or seconds)
            )
        headers = httpx.Headers(self._http_options["headers"])
        return self._build_request(client, endpoint, headers, timeout, content=step.body or None)

    def _build_request(
        self, client: Any, endpoint: Endpoint, headers: httpx.Headers, timeout: httpx.Timeout, **body_arguments: Any
    ) -> httpx.Request:
        # Not built by the client, whose default headers would send a form as JSON. But of its class: transports of
        # httpx2 refuse the bodies of httpx's requests.
        url, build = self._root_url + endpoint.path, getattr(client, "build_request", None)
        request_class = httpx.Request if build is None else type(build(endpoint.method, url))
        extensions = {"timeout": timeout.as_dict()}
        request: httpx.Request = request_class(
            endpoint.method, url, headers=headers, extensions=extensions, **body_arguments
        )
        return request


def _send(client: Any, request: httpx.Request, step: Send, deadline: Deadline) -> Reply:
    download_to = step.endpoint.download_to if step.endpoint is not None else None
    with open_response(client, request, deadline) as response:
        if download_to is None or not response.is_success:
            content = b"".join(read_body(response, BodyReader(response, step.max_reply_bytes), deadline))
        else:
            content = b""
            _write_file(_read_whole_body(response, deadline), download_to, deadline)
        # A duplicate of another reply could not be recognised here: never reuse the connection.
        close_connection(response)
        return make_reply(response, content)


def _read_whole_body(response: Any, deadline: Deadline) -> Iterator[bytes]:
    body = BodyReader(response, _MAX_FILE_BYTES)
    yield from read_body(response, body, deadline)
    if not body.is_complete and not response.is_stream_consumed:
        raise UnusableBody("its compressed body is cut off")


def _write_file(body: Iterator[bytes], download_to: Path, deadline: Deadline) -> None:
    # A name per thread: the thread of an interrupted call may still be writing its own file.
    part = download_to.with_name(f"{download_to.name}.{threading.get_ident():x}.part")
    try:
        with files.name_in_errors(part), files.create_replacing(part) as file:
            for chunk in body:
                file.write(chunk)
                deadline.extend_for(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.replace(download_to)
