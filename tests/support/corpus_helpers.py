"""Corpora to embed, and what is expected of their vectors."""

from __future__ import annotations

import array
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dashscope_embeddings import corpus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dashscope_embeddings.corpus import Vector
    from dashscope_embeddings.emulator import Emulator

MODEL = "text-embedding-v4"
DIMENSIONS = 64


def write_lines(path: Path, texts: Iterable[str]) -> Path:
    """A text a line."""
    path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return path


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A JSON object a line."""
    return write_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))


def as_float32(floats: Iterable[float]) -> list[float]:
    """As they are kept."""
    return array.array("f", floats).tolist()


def expected_vector(emulator: Emulator, text: str, **options: Any) -> list[float]:
    """The dense vector that the service has for a text."""
    return as_float32(emulator.dense(text, model=MODEL, dimension=DIMENSIONS, **options))


def read_vectors(path: Path) -> list[Vector]:
    """All rows of an output."""
    return list(corpus.read(path))


def read_rejects(output: Path) -> list[dict[str, Any]]:
    """All rows of an output's rejects."""
    return [json.loads(line) for line in corpus.rejects_beside(output).read_text("utf-8").splitlines()]


def run_command(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """The command line, in a process of its own."""
    from dashscope_embeddings.cli import app  # noqa: PLC0415 - not every test has its extra

    os.environ.update(environment)
    os.chdir(folder)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        sys.stdout = sys.stderr = nowhere
        app.app(arguments)
