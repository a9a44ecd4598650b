"""The JSON of files, batches and their lines. No other file of the Batch route knows its names.

https://help.aliyun.com/zh/model-studio/batch-interfaces-compatible-with-openai, its English edition, and replies
quoted in public, seen 2026-11-20. Where these differ both shapes are read; what may be missing may be missing.
"""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from dashscope_embeddings._core import protocol
from dashscope_embeddings._core.error_codes import Refusal
from dashscope_embeddings._core.exchange import Send, Target
from dashscope_embeddings._core.protocol import Reply
from dashscope_embeddings._core.reply_fields import tokens
from dashscope_embeddings.errors import BadReply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dashscope_embeddings._core.protocol import Ask

_ROOT = "/compatible-mode/v1"
_URL = "/v1/embeddings"
"""The same in a batch and in each of its lines."""
_PAGE = 100


# --- what is asked -----------------------------------------------------------------------------------------


def line(name: str, ask: Ask, texts: Sequence[str]) -> bytes:
    """One line of a file, its end included."""
    body = protocol.body(ask, texts)
    return b'{"custom_id":%b,"method":"POST","url":"%b","body":%b}\n' % (to_json(name), _URL.encode(), body)


def upload(path: Path) -> Send:
    """Send a file of lines."""
    return Send(target=Target("POST", f"{_ROOT}/files", upload=path, fields={"purpose": "batch"}))


def create(file_id: str, window: str, name: str | None, description: str | None) -> Send:
    """Have a file worked on."""
    metadata = {"ds_name": name, "ds_description": description}
    body: dict[str, Any] = {"input_file_id": file_id, "endpoint": _URL, "completion_window": window}
    if given := {key: value for key, value in metadata.items() if value}:
        body["metadata"] = given
    return Send(to_json(body), Target("POST", f"{_ROOT}/batches"))


def look(batch_id: str) -> Send:
    """Ask how far a batch is."""
    return Send(target=Target("GET", f"{_ROOT}/batches/{_quoted(batch_id)}"))


def cancel(batch_id: str) -> Send:
    """Have a batch stopped."""
    return Send(target=Target("POST", f"{_ROOT}/batches/{_quoted(batch_id)}/cancel"))


def batches_of(file_id: str, after: str | None) -> Send:
    """List the batches that were made of a file; of the last 30 days, as the service says."""
    query = {"input_file_ids": file_id, "limit": str(_PAGE), **({"after": after} if after else {})}
    return Send(target=Target("GET", f"{_ROOT}/batches?{urllib.parse.urlencode(query)}"))


def download(file_id: str, into: Path) -> Send:
    """Fetch a file of results."""
    return Send(target=Target("GET", f"{_ROOT}/files/{_quoted(file_id)}/content", into=into))


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")


# --- what the service says of batches ----------------------------------------------------------------------

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass(frozen=True, slots=True)
class Complaint:
    """One reason why a batch failed its validation."""

    code: str | None
    message: str
    line: int | None
    """Of the file, from 1."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the service says of a batch."""

    batch_id: str
    status: str
    file_id: str | None
    output_file: str | None
    error_file: str | None
    """Where the failed lines are. Its id may look like that of an output file."""
    total: int | None
    completed: int | None
    failed: int | None
    complaints: tuple[Complaint, ...]

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ENDED

    def results(self, lines: int) -> int:
        """Lines, of those in its file, that must have a result in one of its two result files.

        Whether `completed` counts failed lines too is not documented: the sum is bounded by the file's lines. Where
        the service counts nothing, a completed batch has a result for every line.
        """
        if self.completed is None and self.failed is None:
            return lines if self.status == "completed" else 0
        return min((self.completed or 0) + (self.failed or 0), lines)


def file_id(reply: Reply) -> str:
    """The name that the service gave to a file.

    Raises:
        BadReply: it gave none.
    """
    content = _content(reply)
    if (found := _name(content.get("id"))) is not None:
        return found
    raise BadReply("the reply to an upload names no file")


def told(reply: Reply) -> Told:
    """What a reply says of a batch.

    Raises:
        BadReply: it says nothing of one.
    """
    return _told(_content(reply))


def listed(reply: Reply) -> tuple[list[Told], str | None]:
    """The batches of a list, and after which one its next page begins; None: there is none.

    Raises:
        BadReply: it is no list.
    """
    content = _content(reply)
    # An empty list was seen to be null.
    found = [_told(batch) for batch in _dicts(content.get("data"))]
    more = bool(content.get("has_more")) and bool(found)
    return found, (_text(content.get("last_id")) or found[-1].batch_id) if more else None


def _told(content: Mapping[str, Any]) -> Told:
    batch_id, status = _name(content.get("id")), _name(content.get("status"))
    if batch_id is None or status is None:
        raise BadReply("the reply about a batch lacks its id or status")
    counts = content.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    errors = content.get("errors")
    errors = errors.get("data") if isinstance(errors, dict) else errors
    return Told(
        batch_id,
        status,
        _name(content.get("input_file_id")),
        _name(content.get("output_file_id")),
        _name(content.get("error_file_id")),
        _number(counts.get("total")),
        _number(counts.get("completed")),
        _number(counts.get("failed")),
        tuple(
            Complaint(_text(error.get("code")), _text(error.get("message")) or "", _number(error.get("line")))
            for error in _dicts(errors)
        ),
    )


def _content(reply: Reply) -> dict[str, Any]:
    try:
        content = from_json(reply.body)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise BadReply("the reply is no JSON object")
    return content


def _dicts(found: Any) -> list[dict[str, Any]]:
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _text(found: Any) -> str | None:
    return found if isinstance(found, str) and found else None


def _name(found: Any) -> str | None:
    """An id or a status, which are shown as they are: none has characters that a terminal obeys."""
    return found if isinstance(found, str) and found and found.isprintable() else None


def _number(found: Any) -> int | None:
    return found if isinstance(found, int) and not isinstance(found, bool) else None


# --- what came of a line -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one line: a reply as the endpoint for embeddings gives it, or a refusal."""

    name: str
    reply: Reply | None
    refusal: Refusal | None
    tokens: int
    """What a line that succeeded was billed, whatever is wrong with its vectors."""


_OK, _NO_SUCCESS = 200, 300
UNKNOWN = 500
"""Stands for a status that a line does not tell: its code decides, and one that nobody knows is tried again."""


def result(content: bytes) -> Result | None:
    """Reads one line of an output or error file; None: it is nothing of the kind, or names no line."""
    try:
        found = from_json(content)
    except ValueError:
        return None
    if not isinstance(found, dict) or (name := _text(found.get("custom_id"))) is None:
        return None
    response = found.get("response")
    response = response if isinstance(response, dict) else {}
    error, status, body = _error(found.get("error")), _number(response.get("status_code")), response.get("body")
    success = status is not None and _OK <= status < _NO_SUCCESS
    if success and not error:
        billed = tokens(body.get("usage")) if isinstance(body, dict) else None
        request_id = _text(response.get("request_id")) or _text(found.get("id"))
        headers = {"x-request-id": request_id} if request_id else {}
        return Result(name, Reply(_OK, headers, to_json(body)), None, billed or 0)
    request_id = _text(response.get("request_id")) or _text(found.get("id"))
    status = UNKNOWN if status is None or success else status
    inner = protocol.refusal(Reply(status, {}, to_json(body)))
    inner = inner or Refusal(status)
    code, message = error or (None, None)
    refusal = Refusal(status, code or inner.code, message or inner.message, inner.request_id or request_id)
    return Result(name, None, refusal, 0)


def _error(found: Any) -> tuple[str | None, str | None] | None:
    """Code and message; None: nothing went wrong."""
    if not isinstance(found, dict):
        return (None, _text(found)) if _text(found) else None
    code, message = _text(found.get("code")), _text(found.get("message"))
    return (code, message) if code or message else None
