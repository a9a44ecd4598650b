"""What needs no server: reading one reply, and importing a module."""

from __future__ import annotations

import importlib
import json
import time
from typing import TYPE_CHECKING

from answers import Answers
from load import DIMENSIONS, MODEL, ROWS, complaint, texts
from makers import REPLY
from pydantic_core import from_json

if TYPE_CHECKING:
    from collections.abc import Callable

_ROUNDS = 150


SPARSE_TOKENS = 60
"""Weights of a sparse vector: about as many as a paragraph has different tokens."""


def _with_sparse(body: bytes) -> bytes:
    """The same reply with a sparse vector for each text."""
    weights = ",".join(f'{{"index":{1000 + 37 * i},"value":0.{101 + i},"token":"w{i}"}}' for i in range(SPARSE_TOKENS))
    return body.replace(b'"text_index"', b'"sparse_embedding":[' + weights.encode() + b'],"text_index"')


def compare_readers(*, hybrid: bool = False) -> dict[str, float]:
    """Least seconds for one reply of 10 x 1,024 floats, the readers by turns."""
    wire = importlib.import_module("dashscope_embeddings._core.protocol")
    asked = list(texts(ROWS, 60))
    body = Answers().native(asked, "document", 800)
    body = _with_sparse(body) if hybrid else body
    output = "dense&sparse" if hybrid else "dense"
    ask = wire.RequestOptions("native", MODEL, output=output, expected_width=DIMENSIONS)
    reply = wire.Reply(200, {}, body)
    if said := complaint(wire.parse_reply(ask, reply, ROWS).dense, asked, "document"):
        raise AssertionError(said)
    readers: dict[str, Callable[[], object]] = {
        "ours": lambda: wire.parse_reply(ask, reply, ROWS),
        "from_json": lambda: from_json(body),
        "typed": lambda: REPLY.validate_json(body),
        "json": lambda: json.loads(body),
    }
    least = dict.fromkeys(readers, float("inf"))
    for _ in range(_ROUNDS):
        for name, read in readers.items():
            start = time.perf_counter()
            read()
            least[name] = min(least[name], time.perf_counter() - start)
    return least


_MODULES = {
    "ours-langchain": ("dashscope_embeddings.langchain",),
    # The second is imported by the first one's constructor.
    "langchain-community": ("langchain_community.embeddings.dashscope", "dashscope"),
}


def module_seconds(name: str) -> tuple[float, dict[str, float]]:
    """CPU seconds that a client's import takes once LangChain's interface and httpx are there; and theirs."""
    start = time.process_time()
    importlib.import_module("langchain_core.embeddings").Embeddings  # noqa: B018 - the name is loaded lazily
    importlib.import_module("httpx")
    base = time.process_time()
    for module in _MODULES[name]:
        importlib.import_module(module)
    return time.process_time() - base, {"other": base - start}
