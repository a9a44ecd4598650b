"""Files and lists of the Batch route: a stored file, parsing of an upload, one page of a list, and field errors."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from email.message import Message
from typing import TYPE_CHECKING, Any, TypeVar

from dashscope_embeddings.emulator.error_responses import ApiError, json_headers, to_json
from dashscope_embeddings.emulator.messages import Response

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dashscope_embeddings.emulator.batch.lifecycle import Batch
    from dashscope_embeddings.emulator.messages import Request, WireProtocol

    _Item = TypeVar("_Item", "StoredFile", Batch)


class InvalidFieldError(ApiError):
    """A refusal in the envelope that the file endpoints were seen to use: the field's name, no code, no request id.

    Args:
        message: all but the envelope is a guess.
        param: name of the field.
        status: the HTTP status.
    """

    def __init__(self, message: str, param: str | None, status: int = 400) -> None:
        super().__init__(status, "InvalidParameter", message)
        self.param = param

    def response(self, protocol: WireProtocol, request_id: str) -> Response:
        """The same envelope for both protocols."""
        del protocol
        error = {"message": self.message, "type": "invalid_request_error", "param": self.param, "code": None}
        return Response(self.status, to_json({"error": error}), json_headers(request_id))


@dataclass
class StoredFile:
    """One uploaded file, or a file of results."""

    owner: str
    """Fingerprint of the key that created it."""
    filename: str
    purpose: str
    created_at: int
    """Unix seconds."""
    make_content: Callable[[], bytes] = field(repr=False)
    """Computes the content at every call, so that the vectors of a large batch are never all in memory."""
    size_bytes: int | None = None
    """None: not computed yet."""
    id: str = ""

    def __post_init__(self) -> None:
        # Error files, too, were seen with the name of output files instead of the documented one.
        self.id = f"file-{'batch' if self.purpose == 'batch' else 'batch_output'}-{uuid.uuid4().hex[:24]}"

    def is_upload_of(self, owner: str) -> bool:
        """Whether this account uploaded it; result files have another purpose."""
        return self.owner == owner and self.purpose == "batch"

    def read(self) -> bytes:
        """The content."""
        content = self.make_content()
        self.size_bytes = len(content)
        return content

    def to_dict(self) -> dict[str, Any]:
        """The file as JSON."""
        if self.size_bytes is None:
            self.read()
        return {
            "id": self.id,
            "bytes": self.size_bytes,
            "created_at": self.created_at,
            "filename": self.filename,
            "object": "file",
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


def parse_uploaded_file(request: Request) -> tuple[str, bytes, str | None]:
    """Name and content of the file in a form, and its purpose.

    Raises:
        InvalidFieldError: the body is not a form with a file.
    """
    parts = _multipart_parts(request)
    filename, content = parts.get("file", (None, b""))
    if filename is None:
        raise InvalidFieldError("'file' is required", "file")
    purpose = parts.get("purpose")
    return filename, content, None if purpose is None else purpose[1].decode("utf-8", "replace")


def _multipart_parts(request: Request) -> dict[str, tuple[str | None, bytes]]:
    """Name → (file name, content) of a multipart form; of a damaged form, the parts that can be read."""
    content_type = Message()
    content_type["content-type"] = request.headers.get("content-type", "")
    boundary = content_type.get_param("boundary")
    if content_type.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        return {}
    parts: dict[str, tuple[str | None, bytes]] = {}
    for part in (b"\r\n" + request.body).split(b"\r\n--" + boundary.encode("latin-1", "replace"))[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        headers = Message()
        for line in head.decode("utf-8", "replace").splitlines():
            header, colon, value = line.partition(":")
            if colon:
                headers[header.strip()] = value.strip()
        name = headers.get_param("name", header="content-disposition")
        if isinstance(name, str):
            parts[name] = (headers.get_filename(), content)
    return parts


def list_page(items: list[_Item], query: Mapping[str, str], default_limit: int, max_limit: int) -> dict[str, Any]:
    """The items behind `after`, at most `limit` of them, as JSON.

    Raises:
        InvalidFieldError: `limit` is out of range, or `after` is not in the list.
    """
    limit = query.get("limit", str(default_limit))
    if not limit.isdecimal() or not 1 <= int(limit) <= max_limit:
        raise InvalidFieldError(f"'limit' must be 1 to {max_limit}", "limit")
    start, after = 0, query.get("after")
    if after is not None:
        ids = [item.id for item in items]
        if after not in ids:
            raise InvalidFieldError(f"'after' names nothing in the list: {after}", "after")
        start = ids.index(after) + 1
    end = start + int(limit)
    data = [item.to_dict() for item in items[start:end]]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    # `data` of an empty list was seen to be null.
    return {
        "object": "list", "data": data or None, "first_id": first, "last_id": last, "has_more": end < len(items)
    }  # fmt: skip
