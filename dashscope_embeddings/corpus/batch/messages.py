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
from dashscope_embeddings._core.error_codes import ErrorReply
from dashscope_embeddings._core.protocol import Reply
from dashscope_embeddings._core.reply_fields import billed_tokens
from dashscope_embeddings._core.steps import Endpoint, Send
from dashscope_embeddings.errors import BadReply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dashscope_embeddings._core.protocol import RequestOptions

_ROOT = "/compatible-mode/v1"
_EMBEDDINGS_PATH = "/v1/embeddings"
"""The same in a batch and in each of its lines."""
_PAGE_SIZE = 100


# --- what is asked -----------------------------------------------------------------------------------------


def request_line(name: str, options: RequestOptions, texts: Sequence[str]) -> bytes:
    """One line of a file, its end included."""
    body = protocol.request_body(options, texts)
    return b'{"custom_id":%b,"method":"POST","url":"%b","body":%b}\n' % (to_json(name), _EMBEDDINGS_PATH.encode(), body)


def upload_file(path: Path) -> Send:
    """Send a file of lines."""
    return Send(endpoint=Endpoint("POST", f"{_ROOT}/files", upload_file=path, form_fields={"purpose": "batch"}))


def create_batch(file_id: str, window: str, name: str | None, description: str | None) -> Send:
    """Have a file worked on."""
    metadata = {"ds_name": name, "ds_description": description}
    body: dict[str, Any] = {"input_file_id": file_id, "endpoint": _EMBEDDINGS_PATH, "completion_window": window}
    if present := {key: value for key, value in metadata.items() if value}:
        body["metadata"] = present
    return Send(to_json(body), Endpoint("POST", f"{_ROOT}/batches"))


def get_batch(batch_id: str) -> Send:
    """Ask how far a batch is."""
    return Send(endpoint=Endpoint("GET", f"{_ROOT}/batches/{_quote(batch_id)}"))


def cancel_batch(batch_id: str) -> Send:
    """Have a batch stopped."""
    return Send(endpoint=Endpoint("POST", f"{_ROOT}/batches/{_quote(batch_id)}/cancel"))


def list_batches(file_id: str, after: str | None) -> Send:
    """List the batches that were made of a file; of the last 30 days, as the service says."""
    query = {"input_file_ids": file_id, "limit": str(_PAGE_SIZE), **({"after": after} if after else {})}
    return Send(endpoint=Endpoint("GET", f"{_ROOT}/batches?{urllib.parse.urlencode(query)}"))


def download_file(file_id: str, download_to: Path) -> Send:
    """Fetch a file of results."""
    return Send(endpoint=Endpoint("GET", f"{_ROOT}/files/{_quote(file_id)}/content", download_to=download_to))


def _quote(name: str) -> str:
    return urllib.parse.quote(name, safe="")


# --- what the service says of batches ----------------------------------------------------------------------

ENDED_STATUSES = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass(frozen=True, slots=True)
class ValidationError:
    """One reason why a batch failed its validation."""

    code: str | None
    message: str
    line: int | None
    """Of the file, from 1."""


@dataclass(frozen=True, slots=True)
class BatchStatus:
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
    errors: tuple[ValidationError, ...]

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ENDED_STATUSES

    def expected_results(self, lines: int) -> int:
        """Lines, of those in its file, that must have a result in one of its two result files.

        Whether `completed` counts failed lines too is not documented: the sum is bounded by the file's lines. Where
        the service counts nothing, a completed batch has a result for every line.
        """
        if self.completed is None and self.failed is None:
            return lines if self.status == "completed" else 0
        return min((self.completed or 0) + (self.failed or 0), lines)


def read_file_id(reply: Reply) -> str:
    """The name that the service gave to a file.

    Raises:
        BadReply: it gave none.
    """
    content = _read_json(reply)
    if (found := _as_name(content.get("id"))) is not None:
        return found
    raise BadReply("the reply to an upload names no file")


def read_status(reply: Reply) -> BatchStatus:
    """What a reply says of a batch.

    Raises:
        BadReply: it says nothing of one.
    """
    return _status_from_json(_read_json(reply))


def read_batch_list(reply: Reply) -> tuple[list[BatchStatus], str | None]:
    """The batches of a list, and after which one its next page begins; None: there is none.

    Raises:
        BadReply: it is no list.
    """
    content = _read_json(reply)
    # An empty list was seen to be null.
    found = [_status_from_json(batch) for batch in _as_dicts(content.get("data"))]
    more = bool(content.get("has_more")) and bool(found)
    return found, (_as_text(content.get("last_id")) or found[-1].batch_id) if more else None


def _status_from_json(content: Mapping[str, Any]) -> BatchStatus:
    batch_id, status = _as_name(content.get("id")), _as_name(content.get("status"))
    if batch_id is None or status is None:
        raise BadReply("the reply about a batch lacks its id or status")
    counts = content.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    errors = content.get("errors")
    errors = errors.get("data") if isinstance(errors, dict) else errors
    return BatchStatus(
        batch_id,
        status,
        _as_name(content.get("input_file_id")),
        _as_name(content.get("output_file_id")),
        _as_name(content.get("error_file_id")),
        _as_number(counts.get("total")),
        _as_number(counts.get("completed")),
        _as_number(counts.get("failed")),
        tuple(
            ValidationError(
                _as_text(error.get("code")), _as_text(error.get("message")) or "", _as_number(error.get("line"))
            )
            for error in _as_dicts(errors)
        ),
    )


def _read_json(reply: Reply) -> dict[str, Any]:
    try:
        content = from_json(reply.body)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise BadReply("the reply is no JSON object")
    return content


def _as_dicts(found: Any) -> list[dict[str, Any]]:
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _as_text(found: Any) -> str | None:
    return found if isinstance(found, str) and found else None


def _as_name(found: Any) -> str | None:
    """An id or a status, which are shown as they are: none has characters that a terminal obeys."""
    return found if isinstance(found, str) and found and found.isprintable() else None


def _as_number(found: Any) -> int | None:
    return found if isinstance(found, int) and not isinstance(found, bool) else None


# --- what came of a line -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LineResult:
    """What became of one line: a reply as the endpoint for embeddings gives it, or a refusal."""

    name: str
    reply: Reply | None
    refusal: ErrorReply | None
    tokens: int
    """What a line that succeeded was billed, whatever is wrong with its vectors."""


_OK, _FIRST_NON_SUCCESS = 200, 300
UNKNOWN_STATUS = 500
"""Stands for a status that a line does not tell: its code decides, and one that nobody knows is tried again."""


def read_result(content: bytes) -> LineResult | None:
    """Reads one line of an output or error file; None: it is nothing of the kind, or names no line."""
    try:
        found = from_json(content)
    except ValueError:
        return None
    if not isinstance(found, dict) or (name := _as_text(found.get("custom_id"))) is None:
        return None
    response = found.get("response")
    response = response if isinstance(response, dict) else {}
    error, status, body = _read_error(found.get("error")), _as_number(response.get("status_code")), response.get("body")
    success = status is not None and _OK <= status < _FIRST_NON_SUCCESS
    if success and not error:
        billed = billed_tokens(body.get("usage")) if isinstance(body, dict) else None
        request_id = _as_text(response.get("request_id")) or _as_text(found.get("id"))
        headers = {"x-request-id": request_id} if request_id else {}
        return LineResult(name, Reply(_OK, headers, to_json(body)), None, billed or 0)
    request_id = _as_text(response.get("request_id")) or _as_text(found.get("id"))
    status = UNKNOWN_STATUS if status is None or success else status
    inner = protocol.parse_error_reply(Reply(status, {}, to_json(body)))
    inner = inner or ErrorReply(status)
    code, message = error or (None, None)
    refusal = ErrorReply(status, code or inner.code, message or inner.message, inner.request_id or request_id)
    return LineResult(name, None, refusal, 0)


def _read_error(found: Any) -> tuple[str | None, str | None] | None:
    """Code and message; None: nothing went wrong."""
    if not isinstance(found, dict):
        return (None, _as_text(found)) if _as_text(found) else None
    code, message = _as_text(found.get("code")), _as_text(found.get("message"))
    return (code, message) if code or message else None
