"""Files of texts to embed, and their expected vectors."""

from __future__ import annotations

import array
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dashscope_embeddings import corpus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dashscope_embeddings.corpus import Vector
    from dashscope_embeddings.emulator import Emulator

MODEL = "text-embedding-v4"
DIMENSIONS = 64
no_pyarrow = importlib.util.find_spec("pyarrow") is None
ENDINGS = [".jsonl", ".npy", pytest.param(".parquet", marks=pytest.mark.skipif(no_pyarrow, reason="no pyarrow"))]


def write_lines(path: Path, texts: Iterable[str]) -> Path:
    """Writes one text a line."""
    path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return path


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes one JSON object a line."""
    return write_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows in the format of the path's ending."""
    if path.suffix == ".parquet":
        table = pytest.importorskip("pyarrow").Table.from_pylist(rows)
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), "utf-8")
    elif path.suffix == ".csv":
        write_lines(path, [",".join(map(str, line)) for line in (rows[0], *(row.values() for row in rows))])
    else:
        write_json_lines(path, rows)
    return path


def as_float32(floats: Iterable[float]) -> list[float]:
    """The numbers as float32, as outputs store them."""
    return array.array("f", floats).tolist()


def expected_vector(emulator: Emulator, text: str, **options: Any) -> list[float]:
    """The emulator's dense vector of a text, as float32."""
    return as_float32(emulator.dense(text, model=MODEL, dimension=DIMENSIONS, **options))


def read_vectors(path: Path) -> list[Vector]:
    """All rows of an output."""
    return list(corpus.read(path))


def read_rejects(output: Path) -> list[dict[str, Any]]:
    """All rows of an output's rejects."""
    return [json.loads(line) for line in corpus.rejects_beside(output).read_text("utf-8").splitlines()]


def run_command(arguments: list[str], environment: dict[str, str]) -> None:
    """Runs the command line; call it in a child process."""
    from dashscope_embeddings.cli import app  # noqa: PLC0415 - not every test has its extra

    os.environ.update(environment)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        sys.stdout = sys.stderr = nowhere
        app.app(arguments)
