"""Vectors in Arrow: the columns that Parquet files and Ray datasets share."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dashscope_embeddings.vectors import Output


def import_pyarrow() -> Any:
    """Imports pyarrow, which only Parquet and Ray need."""
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError as missing:
        raise ImportError('Parquet needs pyarrow: pip install "dashscope-embeddings[corpus]"') from missing


def vector_fields(output: Output, dimension: int | None) -> list[Any]:
    """The Arrow fields of vectors: fixed-size lists of `dimension` float32, sparse ones as two lists."""
    pa = import_pyarrow()
    fields = []
    if "dense" in output:
        size = -1 if dimension is None else dimension
        fields.append(pa.field("embedding", pa.list_(pa.field("element", pa.float32(), nullable=False), size)))
    if "sparse" in output:
        fields.append(pa.field("sparse_indices", pa.list_(pa.uint32())))
        fields.append(pa.field("sparse_values", pa.list_(pa.float32())))
    return fields
