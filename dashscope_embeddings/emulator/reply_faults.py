"""Replies of HTTP 200 with something wrong, or merely unusual, in their JSON."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from dataclasses import dataclass, field, replace
from struct import pack, unpack
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.emulator.error_responses import to_json
from dashscope_embeddings.emulator.fault_schedule import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashscope_embeddings.emulator.messages import Response


@dataclass(frozen=True)
class _JsonFault(Fault, ABC):
    """A good reply with something in its JSON changed; refusals are left as they are."""

    route: str | None = field(default=r"embeddings?$", kw_only=True)
    """Other replies have no rows to change."""

    def corrupt(self, response: Response) -> Response:
        if response.status != 200:  # noqa: PLR2004
            return response
        document = json.loads(response.body)
        self._edit(document)
        return replace(response, body=to_json(document))

    @abstractmethod
    def _edit(self, document: dict[str, Any]) -> None:
        """Change the parsed body in place."""


def _rows(document: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The rows, and the name of the field that numbers them."""
    if "data" in document:
        return document["data"], "index"
    return document["output"]["embeddings"], "text_index"


def _change_vector(row: dict[str, Any], change: Callable[[list[Any]], None]) -> None:
    """Change a dense vector in place, whether written as numbers or as base64."""
    vector = row.get("embedding")
    if isinstance(vector, str):
        raw = b64decode(vector)
        floats = list(unpack(f"<{len(raw) // 4}f", raw))
        change(floats)
        row["embedding"] = b64encode(pack(f"<{len(floats)}f", *floats)).decode()
    elif vector is not None:
        change(vector)


@dataclass(frozen=True)
class WrongCount(_JsonFault):
    """So many rows too many, or (negative) too few."""

    by: int = -1

    def _edit(self, document: dict[str, Any]) -> None:
        rows, index_field = _rows(document)
        if self.by < 0:
            del rows[self.by :]
        for _ in range(self.by):
            rows.append({**rows[-1], index_field: len(rows)})


@dataclass(frozen=True)
class DuplicateIndex(_JsonFault):
    """The last row has the first one's number; a single row has a number that does not exist."""

    def _edit(self, document: dict[str, Any]) -> None:
        rows, index_field = _rows(document)
        rows[-1][index_field] = rows[0][index_field] if len(rows) > 1 else 1


@dataclass(frozen=True)
class Shuffle(_JsonFault):
    """The rows come in reverse, rightly numbered: no fault of the service, which promises no order."""

    def _edit(self, document: dict[str, Any]) -> None:
        _rows(document)[0].reverse()


@dataclass(frozen=True)
class WrongWidth(_JsonFault):
    """The vector of row `row` is too long, or (negative) too short, by so many components."""

    by: int = -1
    row: int = 0

    def _edit(self, document: dict[str, Any]) -> None:
        def resize(vector: list[Any]) -> None:
            if self.by < 0:
                del vector[self.by :]
            vector.extend([0.5] * self.by)

        _change_vector(_rows(document)[0][self.row], resize)


@dataclass(frozen=True)
class NotFinite(_JsonFault):
    """A component of row `row` is `NaN` or an infinity, as Python's json writes them."""

    value: float = math.nan
    row: int = 0

    def _edit(self, document: dict[str, Any]) -> None:
        def set_first(vector: list[Any]) -> None:
            vector[0] = self.value

        _change_vector(_rows(document)[0][self.row], set_first)


@dataclass(frozen=True)
class IntegerComponents(_JsonFault):
    """The first component of every vector is written `0` instead of `0.0`: lawful JSON."""

    def _edit(self, document: dict[str, Any]) -> None:
        def set_first(vector: list[Any]) -> None:
            vector[0] = 0

        for row in _rows(document)[0]:
            _change_vector(row, set_first)


@dataclass(frozen=True)
class NullEmbedding(_JsonFault):
    """The vector of row `row` is null."""

    row: int = 0

    def _edit(self, document: dict[str, Any]) -> None:
        _rows(document)[0][self.row]["embedding"] = None


@dataclass(frozen=True)
class NoSparse(_JsonFault):
    """The sparse vectors are left out."""

    def _edit(self, document: dict[str, Any]) -> None:
        for row in _rows(document)[0]:
            row.pop("sparse_embedding", None)


@dataclass(frozen=True)
class MissingUsage(_JsonFault):
    """The usage is left out."""

    def _edit(self, document: dict[str, Any]) -> None:
        document.pop("usage", None)


@dataclass(frozen=True)
class ExtraFields(_JsonFault):
    """Fields that are not in the raw replies seen; the first three are in the documents' native example."""

    def _edit(self, document: dict[str, Any]) -> None:
        document.update(status_code=200, code="", message="", novelty={"of": ["a", "later", "year"]})
        for row in _rows(document)[0]:
            row["novelty"] = None
