"""Files that were sent or made, and how they are sent."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from email.message import Message
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.emulator.error_responses import ApiError, json_headers, to_json
from dashscope_embeddings.emulator.messages import Response

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashscope_embeddings.emulator.messages import Request, WireProtocol


class InvalidFieldError(ApiError):
    """A refusal in the frame that the file endpoints were seen to use: no code, no id, the field by name.

    Args:
        message: the words; all but the frame are a guess.
        param: the field.
        status: the HTTP status.
    """

    def __init__(self, message: str, param: str | None, status: int = 400) -> None:
        super().__init__(status, "InvalidParameter", message)
        self.param = param

    def response(self, protocol: WireProtocol, request_id: str) -> Response:
        """The same frame whatever the protocol."""
        del protocol
        error = {"message": self.message, "type": "invalid_request_error", "param": self.param, "code": None}
        return Response(self.status, to_json({"error": error}), json_headers(request_id))


@dataclass
class StoredFile:
    """One file."""

    owner: str
    """Fingerprint of the key that made it."""
    filename: str
    purpose: str
    created_at: int
    """Unix seconds."""
    make_content: Callable[[], bytes] = field(repr=False)
    """Its content, computed each time: results of a large batch are not kept beside their texts."""
    size_bytes: int | None = None
    """Bytes; None: not computed yet."""
    id: str = ""

    def __post_init__(self) -> None:
        # Error files, too, were seen with the name of output files, not the documented one.
        self.id = f"file-{'batch' if self.purpose == 'batch' else 'batch_output'}-{uuid.uuid4().hex[:24]}"

    def read(self) -> bytes:
        """The content."""
        content = self.make_content()
        self.size_bytes = len(content)
        return content

    def to_dict(self) -> dict[str, Any]:
        """As the service tells of it."""
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


class FileStore:
    """All files, in the order of their making."""

    def __init__(self) -> None:
        self._files: dict[str, StoredFile] = {}

    def add(self, file: StoredFile) -> None:
        """Keep a file."""
        self._files[file.id] = file

    def get(self, file_id: str, owner: str, status: int = 404) -> StoredFile:
        """The file.

        Raises:
            BadField: where there is none, or it is another key's.
        """
        file = self._files.get(file_id)
        if file is None or file.owner != owner:
            raise InvalidFieldError(f"No such File object: {file_id}", "id", status)
        return file

    def remove(self, file_id: str, owner: str) -> None:
        """Forget the file.

        Raises:
            BadField: as `get`.
        """
        del self._files[self.get(file_id, owner).id]

    def owned_by(self, owner: str) -> list[StoredFile]:
        """An owner's files, the latest first."""
        return [file for file in reversed(self._files.values()) if file.owner == owner]


def parse_uploaded_file(request: Request) -> tuple[str, bytes, str | None]:
    """Name and content of the file in a form, and its purpose.

    Raises:
        BadField: where the body is no form with a file in it.
    """
    parts = _multipart_parts(request)
    filename, content = parts.get("file", (None, b""))
    if filename is None:
        raise InvalidFieldError("'file' is required", "file")
    purpose = parts.get("purpose")
    return filename, content, None if purpose is None else purpose[1].decode("utf-8", "replace")


def _multipart_parts(request: Request) -> dict[str, tuple[str | None, bytes]]:
    """Name → (file name, content) of a multipart form; of a damaged one what can be read."""
    kind = Message()
    kind["content-type"] = request.headers.get("content-type", "")
    boundary = kind.get_param("boundary")
    if kind.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        return {}
    found: dict[str, tuple[str | None, bytes]] = {}
    for piece in (b"\r\n" + request.body).split(b"\r\n--" + boundary.encode("latin-1", "replace"))[1:-1]:
        head, _, content = piece.partition(b"\r\n\r\n")
        part = Message()
        for line in head.decode("utf-8", "replace").splitlines():
            header, colon, value = line.partition(":")
            if colon:
                part[header.strip()] = value.strip()
        name = part.get_param("name", header="content-disposition")
        if isinstance(name, str):
            found[name] = (part.get_filename(), content)
    return found


def parse_json_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in a body, None where there is no such."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
