"""What the server and the clients agree on: the texts, the marks of their vectors, and the load of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MODEL = "text-embedding-v4"
ROWS = 10
"""Texts that this model takes in one request."""
DIMENSIONS = 1024
IN_FLIGHT = 16
"""Requests in flight of the bare clients: our default, so that both have as many."""
KEY = "sk-made-up-for-the-benchmarks"
PATH = "/api/v1/services/embeddings/text-embedding/text-embedding"
COMPATIBLE_PATH = "/compatible-mode/v1/embeddings"


@dataclass(frozen=True)
class Load:
    """What one client is to do; travels as text on its command line, as `documents,texts=1000,words=60`."""

    kind: str
    """documents, order, query, lone, callers, busy, stream, keep, files, reply, hybrid or module."""
    texts: int = 1000
    words: int = 60
    """Words a text; 0: mixed lengths, 5 to 200."""
    least_words: int = 0
    """Where it is set, texts have so many up to `words`."""
    callers: int = 64
    """Threads or tasks that ask single queries at the same time."""
    seconds: float = 0.0
    """Callers begin no further query after so long; 0: they finish."""
    rpm: float = 0.0
    """`requests_per_minute` as the client is told; 0: it is told nothing."""
    tpm: float = 0.0

    def __str__(self) -> str:
        given = [
            f"{field.name}={value:g}"
            for field in dataclasses.fields(self)[1:]
            if (value := getattr(self, field.name)) != field.default
        ]
        return ",".join([self.kind, *given])

    @classmethod
    def parse(cls, text: str) -> Load:
        """The reverse of `str`."""
        kind, *given = text.split(",")
        kinds: dict[str, type] = {"seconds": float, "rpm": float, "tpm": float}
        pairs = (pair.split("=") for pair in given)
        values: dict[str, Any] = {name: kinds.get(name, int)(float(value)) for name, value in pairs}
        return cls(kind, **values)

    def quota(self) -> dict[str, float]:
        """Our client's settings."""
        told = {"requests_per_minute": self.rpm, "tokens_per_minute": self.tpm}
        return {name: value for name, value in told.items() if value}


# --- texts -------------------------------------------------------------------------------------------------

_SYLLABLES = ("ka", "lo", "mi", "ner", "ta", "vel", "so", "run", "di", "pa", "gor", "el")


def texts(count: int, words: int, name: str = "text", least_words: int = 0) -> Iterator[str]:
    """Distinct made-up texts, the same in every run; `name` parts one family from another."""
    rng = random.Random(20)  # noqa: S311 - the same in every run
    line = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(4096)]
    for number in range(count):
        length = rng.randint(least_words, words) if least_words else words or rng.choice((5, 20, 40, 60, 100, 200))
        start = number * 7 % (len(line) - length)
        yield f"{name} {number} " + " ".join(line[start : start + max(length - 2, 1)])


# --- whose vector is it ------------------------------------------------------------------------------------

MARKS = 2
"""Leading components of a vector that tell the text and the role it was made for."""
_DIGITS = 14


def mark(text: str, role: str) -> list[str]:
    """The leading components as JSON writes them: too small to move a vector's length from about 1."""
    digest = hashlib.blake2b(f"{role}\0{text}".encode(), digest_size=6 * MARKS).digest()
    parts = (digest[6 * i : 6 * i + 6] for i in range(MARKS))
    return [f"0.00{int.from_bytes(part, 'big') % 10**_DIGITS:0{_DIGITS}d}" for part in parts]


def belongs(vector: Sequence[float], text: str, role: str, tolerance: float = 0.0) -> bool:
    """Whether a vector has the right width and was made for this text in this role."""
    return len(vector) == DIMENSIONS and all(
        math.isclose(found, float(expected), rel_tol=tolerance, abs_tol=0.0)
        for found, expected in zip(vector, mark(text, role), strict=False)
    )


def complaint(
    vectors: Sequence[Sequence[float]], asked: Sequence[str], role: str, tolerance: float = 0.0
) -> str | None:
    """What is wrong with the vectors of some texts; None: nothing."""
    if len(vectors) != len(asked):
        return f"{len(vectors)} vectors for {len(asked)} texts"
    for number, (vector, text) in enumerate(zip(vectors, asked, strict=True)):
        if not belongs(vector, text, role, tolerance):
            return f"vector {number} is not that of its text as a {role}"
    return None
