"""The JSON of files, batches and their lines: the only module that knows the field names of the Batch API.

Sources: https://help.aliyun.com/zh/model-studio/batch-interfaces-compatible-with-openai, its English edition, and
replies quoted in public, seen 2026-11-20. If these differ, both shapes are accepted; optional fields may be missing.
"""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AliasChoices, AliasPath, BaseModel, BeforeValidator, Field
from pydantic_core import from_json, to_json

from dashscope_embeddings._core import protocol
from dashscope_embeddings._core.error_codes import ErrorReply
from dashscope_embeddings._core.protocol import Reply
from dashscope_embeddings._core.reply_fields import billed_tokens, first_string
from dashscope_embeddings._core.steps import Endpoint, Send
from dashscope_embeddings.errors import BadReply
from dashscope_embeddings.vectors import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from dashscope_embeddings._core.protocol import RequestOptions

_ROOT = "/compatible-mode/v1"
_EMBEDDINGS_PATH = "/v1/embeddings"
"""The endpoint named in a batch and in each of its lines."""
_PAGE_SIZE = 100


# --- requests ----------------------------------------------------------------------------------------------


def request_line(name: str, options: RequestOptions, texts: Sequence[str]) -> bytes:
    """One line of a request file, with its line feed."""
    body = protocol.request_body(options, texts)
    return b'{"custom_id":%b,"method":"POST","url":"%b","body":%b}\n' % (to_json(name), _EMBEDDINGS_PATH.encode(), body)


def upload_file(path: Path) -> Send:
    """The request that uploads a request file."""
    return Send(endpoint=Endpoint("POST", f"{_ROOT}/files", upload_file=path, form_fields={"purpose": "batch"}))


def create_batch(file_id: str, window: str, name: str | None, description: str | None) -> Send:
    """The request that creates a batch which processes an uploaded file."""
    metadata = {"ds_name": name, "ds_description": description}
    body: dict[str, Any] = {"input_file_id": file_id, "endpoint": _EMBEDDINGS_PATH, "completion_window": window}
    if present := {key: value for key, value in metadata.items() if value}:
        body["metadata"] = present
    return Send(to_json(body), Endpoint("POST", f"{_ROOT}/batches"))


def get_batch(batch_id: str) -> Send:
    """The request for the status of a batch."""
    return Send(endpoint=Endpoint("GET", f"{_ROOT}/batches/{_quote(batch_id)}"))


def cancel_batch(batch_id: str) -> Send:
    """The request that cancels a batch."""
    return Send(endpoint=Endpoint("POST", f"{_ROOT}/batches/{_quote(batch_id)}/cancel"))


def list_batches(file_id: str, after: str | None) -> Send:
    """The request that lists the batches of a file. The vendor documents that the list covers 30 days."""
    query = {"input_file_ids": file_id, "limit": str(_PAGE_SIZE), **({"after": after} if after else {})}
    return Send(endpoint=Endpoint("GET", f"{_ROOT}/batches?{urllib.parse.urlencode(query)}"))


def download_file(file_id: str, download_to: Path) -> Send:
    """The request that downloads a result file."""
    return Send(endpoint=Endpoint("GET", f"{_ROOT}/files/{_quote(file_id)}/content", download_to=download_to))


def _quote(name: str) -> str:
    return urllib.parse.quote(name, safe="")


# --- replies about batches; the functions raise BadReply if the reply lacks what they return ------------------

ENDED_STATUSES = frozenset({"completed", "failed", "expired", "cancelled"})


def _is_name(value: Any) -> bool:
    """Ids and states are printed unescaped, so they must not contain control characters."""
    return isinstance(value, str) and value.isprintable() and value != ""


def _known_if(accepts: Callable[[Any], bool]) -> BeforeValidator:
    """Of a field that is missing or has another type, nothing is known."""
    return BeforeValidator(lambda value: value if accepts(value) else None)


_Text = Annotated[str | None, _known_if(lambda value: isinstance(value, str) and value != "")]
_Name = Annotated[str | None, _known_if(_is_name)]
_Number = Annotated[int | None, _known_if(lambda value: type(value) is int)]


def _as_dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


class ValidationError(BaseModel):
    """One reason why a request file failed the validation."""

    code: _Text = None
    message: _Text = None
    line: _Number = None
    """Line of the file, from 1."""


class BatchStatus(BaseModel):
    """The status of a batch in a reply."""

    batch_id: Annotated[str, _known_if(_is_name), Field(alias="id")]
    status: Annotated[str, _known_if(_is_name)]
    file_id: _Name = Field(None, alias="input_file_id")
    output_file: _Name = Field(None, alias="output_file_id")
    error_file: _Name = Field(None, alias="error_file_id")
    """The file of failed lines. Its id may look like that of an output file."""
    total: _Number = Field(None, validation_alias=AliasPath("request_counts", "total"))
    completed: _Number = Field(None, validation_alias=AliasPath("request_counts", "completed"))
    failed: _Number = Field(None, validation_alias=AliasPath("request_counts", "failed"))
    errors: Annotated[tuple[ValidationError, ...], BeforeValidator(_as_dicts)] = Field(
        (), validation_alias=AliasChoices(AliasPath("errors", "data"), "errors")
    )

    def __str__(self) -> str:
        failed = f", {self.failed:,} failed" if self.failed else ""
        progress = f": {self.completed or 0:,} of {counted(self.total, 'line')} done{failed}" if self.total else ""
        return f"{self.batch_id} is {self.status}{progress}"

    @property
    def columns(self) -> dict[str, str | int | None]:
        """What the checkpoint records of it."""
        return {name: getattr(self, name) for name in ("batch_id", "status", "completed", "failed")}

    @property
    def has_ended(self) -> bool:
        """Whether the status is final."""
        return self.status in ENDED_STATUSES

    def expected_results(self, lines: int) -> int:
        """How many of a file's lines must have a result in one of the two result files.

        Whether `completed` includes failed lines is not documented, so the sum is limited to the file's lines. If the
        reply has no counts, a completed batch must have a result for every line.
        """
        if self.completed is None and self.failed is None:
            return lines if self.status == "completed" else 0
        return min((self.completed or 0) + (self.failed or 0), lines)


def read_file_id(reply: Reply) -> str:
    """The id of an uploaded file."""
    file_id = _read_json(reply).get("id")
    if not _is_name(file_id):
        raise BadReply("the reply to an upload contains no file id")
    return str(file_id)


def read_status(reply: Reply) -> BatchStatus:
    """The status of a batch."""
    return _status_from_json(_read_json(reply))


def read_batch_list(reply: Reply) -> tuple[list[BatchStatus], str | None]:
    """The batches of a list, and the id after which its next page begins; None: this is the last page."""
    content = _read_json(reply)
    # An empty list was seen as null.
    batches = [_status_from_json(batch) for batch in _as_dicts(content.get("data"))]
    more = bool(content.get("has_more")) and bool(batches)
    return batches, (first_string(content, ("last_id",)) or batches[-1].batch_id) if more else None


def _status_from_json(content: Mapping[str, Any]) -> BatchStatus:
    try:
        return BatchStatus.model_validate(content)
    except ValueError:
        raise BadReply("the reply about a batch lacks its id or status") from None


def _read_json(reply: Reply) -> dict[str, Any]:
    try:
        content = from_json(reply.body)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise BadReply("the reply is not a JSON object")
    return content


# --- results of lines --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LineResult:
    """The result of one line: a reply like that of the embeddings endpoint, or a refusal."""

    name: str
    reply: Reply | ErrorReply
    tokens: int | None
    """Tokens billed for a successful line, even if its vectors are unusable; None: it was refused."""


_OK, _FIRST_NON_SUCCESS = 200, 300


def read_result(content: bytes) -> LineResult | None:
    """Reads one line of an output or error file; None: it is malformed or has no custom_id."""
    try:
        line = from_json(content)
    except ValueError:
        return None
    if (name := first_string(line, ("custom_id",))) is None:
        return None
    response, error = line.get("response"), line.get("error")
    response = response if isinstance(response, dict) else {}
    status, body = response.get("status_code"), response.get("body")
    request_id = first_string(response, ("request_id",)) or first_string(line, ("id",))
    code = first_string(error, ("code",))
    message = first_string(error, ("message",)) or first_string(line, ("error",))
    status = status if type(status) is int else 0
    if _OK <= status < _FIRST_NON_SUCCESS:
        if not code and not message:
            billed = billed_tokens(body.get("usage")) if isinstance(body, dict) else None
            headers = {"x-request-id": request_id} if request_id else {}
            return LineResult(name, Reply(_OK, headers, to_json(body)), billed or 0)
        status = 0  # it failed outside HTTP: its status is unknown
    # Where the line's own error says nothing, the one in the body of the reply does.
    inner = protocol.parse_error_reply(Reply(status, {}, to_json(body))) or ErrorReply(status)
    refusal = ErrorReply(status, code or inner.code, message or inner.message, inner.request_id or request_id)
    return LineResult(name, refusal, None)
