"""Faults in the JSON of a successful reply: HTTP 200 with wrong, or merely unusual, content."""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from struct import iter_unpack, pack
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.emulator.error_responses import to_json
from dashscope_embeddings.emulator.fault_schedule import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashscope_embeddings.emulator.messages import Response


class _Body(dict[str, Any]):
    """The parsed body of either protocol."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self["data"] if "data" in self else self["output"]["embeddings"]
        return rows

    @property
    def index_field(self) -> str:
        return "index" if "data" in self else "text_index"

    def change_vector(self, row: int, change: Callable[[list[Any]], list[Any]]) -> None:
        """Replace a dense vector, whether written as numbers or as base64."""
        vector = self.rows[row].get("embedding")
        if isinstance(vector, str):
            floats = change([number for (number,) in iter_unpack("<f", b64decode(vector))])
            self.rows[row]["embedding"] = b64encode(pack(f"<{len(floats)}f", *floats)).decode()
        elif vector is not None:
            self.rows[row]["embedding"] = change(vector)


@dataclass(frozen=True)
class _ReplyFault(Fault):
    """Edits the JSON of an embedding reply; error responses pass unchanged."""

    route: str | None = field(default=r"embeddings?$", kw_only=True)
    """Default: the embedding endpoints, because other replies have no rows."""

    def corrupt(self, response: Response) -> Response:
        if response.status != HTTPStatus.OK:
            return response
        body = _Body(json.loads(response.body))
        self._edit(body)
        return replace(response, body=to_json(body))

    def _edit(self, body: _Body) -> None:
        """Change the body in place."""
        raise NotImplementedError


@dataclass(frozen=True)
class WrongCount(_ReplyFault):
    """`by` rows too many, or (negative) too few."""

    by: int = -1

    def _edit(self, body: _Body) -> None:
        if self.by < 0:
            del body.rows[self.by :]
        for _ in range(self.by):
            body.rows.append({**body.rows[-1], body.index_field: len(body.rows)})


class DuplicateIndex(_ReplyFault):
    """The last row has the index of the first; a single row has an index that does not exist."""

    def _edit(self, body: _Body) -> None:
        body.rows[-1][body.index_field] = body.rows[0][body.index_field] if len(body.rows) > 1 else 1


class Shuffle(_ReplyFault):
    """The rows come in reverse order with correct indices: valid, because the service promises no order."""

    def _edit(self, body: _Body) -> None:
        body.rows.reverse()


@dataclass(frozen=True)
class WrongWidth(_ReplyFault):
    """The vector of row `row` is longer, or (negative) shorter, by `by` components."""

    by: int = -1
    row: int = 0

    def _edit(self, body: _Body) -> None:
        body.change_vector(self.row, lambda vector: [*vector, *[0.5] * self.by][: len(vector) + self.by])


@dataclass(frozen=True)
class NotFinite(_ReplyFault):
    """A component of row `row` is `NaN` or an infinity, as Python's json writes them."""

    value: float = math.nan
    row: int = 0

    def _edit(self, body: _Body) -> None:
        body.change_vector(self.row, lambda vector: [self.value, *vector[1:]])


class IntegerComponents(_ReplyFault):
    """The first component of every vector is written `0` instead of `0.0`: valid JSON."""

    def _edit(self, body: _Body) -> None:
        for row in range(len(body.rows)):
            body.change_vector(row, lambda vector: [0, *vector[1:]])


@dataclass(frozen=True)
class NullEmbedding(_ReplyFault):
    """The vector of row `row` is null."""

    row: int = 0

    def _edit(self, body: _Body) -> None:
        body.rows[self.row]["embedding"] = None


class NoSparse(_ReplyFault):
    """The sparse vectors are missing."""

    def _edit(self, body: _Body) -> None:
        for row in body.rows:
            row.pop("sparse_embedding", None)


class MissingUsage(_ReplyFault):
    """The usage is missing."""

    def _edit(self, body: _Body) -> None:
        body.pop("usage", None)


class ExtraFields(_ReplyFault):
    """Fields not seen in recorded replies; the first three are in the documents' native example."""

    def _edit(self, body: _Body) -> None:
        body.update(status_code=200, code="", message="", novelty={"of": ["a", "later", "year"]})
        for row in body.rows:
            row["novelty"] = None
