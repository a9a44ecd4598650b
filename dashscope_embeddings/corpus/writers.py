"""Writes vectors to an output, and reads them back: Parquet, JSON lines, or a NumPy array with a file of ids.

A file gets its final name only when it is complete and on the disk; an array and its ids are published together.
"""

from __future__ import annotations

import array
import ast
import contextlib
import ctypes
import itertools
import json
import math
import struct
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pydantic_core import to_json

from dashscope_embeddings._adapters.arrow import import_pyarrow, vector_fields
from dashscope_embeddings._runtime import files
from dashscope_embeddings._runtime.thread_pool import WorkItem, shared_pool
from dashscope_embeddings.corpus.checkpoint.rows import OutputRow
from dashscope_embeddings.corpus.sources import OUTPUT_EXTENSIONS, path_beside
from dashscope_embeddings.errors import InvalidInput
from dashscope_embeddings.vectors import Output, SparseVector, TextType

if TYPE_CHECKING:
    from dashscope_embeddings.client import EmbeddingClient
    from dashscope_embeddings.corpus.checkpoint.rows import Counts
    from dashscope_embeddings.corpus.checkpoint.store import CheckpointStore

_FLOAT_BYTES = 4
MIN_BYTES_PER_NUMBER = {".jsonl": 20, ".npy": _FLOAT_BYTES, ".parquet": _FLOAT_BYTES}
"""What a number of a dense vector takes in each format, at least: in JSON it has about 17 digits."""


@dataclass(frozen=True, slots=True)
class OutputMetadata:
    """Properties that all rows of an output share."""

    model: str
    dimension: int | None
    """Floats in a dense vector; None: there are no dense vectors."""
    role: TextType
    kind: Output
    extra_columns: Sequence[str]
    """Those of "text" and "source" that were requested."""
    row_count: int


@dataclass(frozen=True, slots=True)
class Vector:
    """One row of an output, as `read` yields it."""

    id: int | str
    dense: list[float] | None
    """`dimension` floats; None: only sparse vectors were requested."""
    sparse: SparseVector | None
    text: str | None
    """None unless the output contains the texts."""
    model: str
    dimension: int | None
    role: str
    source: str | None = None
    """The file that held the text; None unless the output names the files."""


def validate_output(path: Path, kind: Output) -> None:
    """Checks, before anything is spent, that the output can be written.

    Raises:
        InvalidInput: an unknown ending, a folder that does not exist, or vectors that the format cannot hold.
        ImportError: Parquet without pyarrow.
    """
    ending = path.suffix.lower()
    if ending not in OUTPUT_EXTENSIONS:
        raise InvalidInput(f"output {path}: its ending must be one of {', '.join(OUTPUT_EXTENSIONS)}")
    if not path.parent.is_dir():
        raise InvalidInput(f"output {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise InvalidInput(f"output {path} is a folder")
    if ending == ".npy" and kind != "dense":
        raise InvalidInput(f"a .npy array holds only dense vectors: for {kind}, write .parquet or .jsonl")
    if ending == ".parquet":
        import_pyarrow()


def write_output(  # noqa: PLR0913, PLR0917 - what the output says of itself
    checkpoint: CheckpointStore,
    counts: Counts,
    path: Path,
    client: EmbeddingClient,
    text_type: TextType,
    kind: Output,
    extra_columns: Sequence[str],
) -> None:
    """Writes all vectors in the format of the path's ending, and all records without vectors to the rejects file.

    Raises:
        InvalidInput: rows of the checkpoint are missing or damaged.
        OSError: for example, the disk is full. Files of an earlier run are unchanged, as after the error above.
    """
    width = None
    if "dense" in kind:
        width = checkpoint.dimension or client.settings.request_options(text_type, kind).expected_width
    model = client.settings.model.name
    metadata = OutputMetadata(model, width, text_type, kind, extra_columns, counts.texts - counts.rejected)
    ending, ids, rejects = path.suffix.lower(), ids_path(path), rejects_beside(path)
    if ending == ".npy":
        files.recover_pair(path, ids)
    with (
        # An error that is kept, as in a notebook, would keep the rows open, and the checkpoint locked.
        contextlib.closing(checkpoint.rows(with_text="text" in extra_columns)) as rows,
        files.write_partials(path, *([ids] if ending == ".npy" else []), rejects) as (file, *more),
    ):
        if ending == ".npy":
            _write_npy(file, more[0], rows, metadata)
        elif ending == ".parquet":
            _write_parquet(file, rows, metadata)
        else:
            for row in rows:
                file.write(to_json(_columns(row, metadata)) + b"\n")
        for reject in checkpoint.rejected_records():
            more[-1].write(to_json(reject) + b"\n")
    if ending == ".npy":
        files.publish_pair(path, ids)
    else:
        files.publish(path)
    if files.partial_path(rejects).stat().st_size:
        files.publish(rejects)
    else:
        files.partial_path(rejects).unlink()
        rejects.unlink(missing_ok=True)


def rejects_beside(output: str | Path) -> Path:
    """The path of the file that lists an output's records without vectors."""
    return path_beside(output, "rejects.jsonl")


def ids_path(path: Path) -> Path:
    """The path of a .npy array's ids: JSON lines, in the order of its rows."""
    return path.with_name(f"{path.name}.ids.jsonl")


def _columns(row: OutputRow, metadata: OutputMetadata, *, vectors: bool = True) -> dict[str, Any]:
    columns: dict[str, Any] = {"id": row.id}
    for name in metadata.extra_columns:
        columns[name] = getattr(row, name)
    if vectors and row.vectors.dense is not None:
        columns["embedding"] = array.array("f", row.vectors.dense).tolist()
    if vectors and row.vectors.sparse_indices is not None and row.vectors.sparse_values is not None:
        columns["sparse_indices"] = array.array("I", row.vectors.sparse_indices).tolist()
        columns["sparse_values"] = array.array("f", row.vectors.sparse_values).tolist()
    return columns | {"model": metadata.model, "dimension": metadata.dimension, "role": metadata.role}


# --- NumPy: version 1.0 of its file format, written without NumPy, which is an optional dependency ------------

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER_ALIGNMENT = 64


def _write_npy(file: IO[bytes], ids: IO[bytes], rows: Iterable[OutputRow], metadata: OutputMetadata) -> None:
    order = "<" if sys.byteorder == "little" else ">"
    shape = (metadata.row_count, metadata.dimension or 0)
    header = f"{{'descr': '{order}f4', 'fortran_order': False, 'shape': {shape}, }}"
    padding = -(len(_MAGIC) + 2 + len(header) + 1) % _HEADER_ALIGNMENT
    file.write(_MAGIC + struct.pack("<H", len(header) + padding + 1) + f"{header}{' ' * padding}\n".encode())
    for row in rows:
        file.write(row.vectors.dense or b"")
        ids.write(to_json(_columns(row, metadata, vectors=False)) + b"\n")


def _read_npy(path: Path) -> Iterator[Vector]:
    ids_file_path = files.current_companion(path, ids_path(path))
    if not ids_file_path.exists():
        raise InvalidInput(f"{path} has no {ids_path(path).name} beside it: run the command that wrote it again")
    with path.open("rb") as file, ids_file_path.open("rb") as ids:
        file.seek(len(_MAGIC))
        (size,) = struct.unpack("<H", file.read(2))
        count, dimension = ast.literal_eval(file.read(size).decode())["shape"]
        for line in itertools.islice(itertools.chain(ids, itertools.repeat(b"")), count):
            dense = array.array("f", file.read(dimension * _FLOAT_BYTES))
            if not line or len(dense) != dimension:
                raise ValueError("it is cut off")
            yield _vector_from_columns({**json.loads(line), "embedding": dense.tolist()})


# --- Parquet -----------------------------------------------------------------------------------------------

_MIN_ROW_GROUP_BYTES, _MAX_ROW_GROUP_ROWS = 1 << 20, 16_384
_ROW_COPIES, _ROW_GROUP_METADATA_BYTES = 8, 1 << 14
"""Memory that a row takes while its group is written, in vectors, and that a written group takes until the end."""
_PAGE_BYTES = 1 << 16
"""With pages of 1 MB, which is the default, and Arrow's own memory pool, writing takes 12 MB more."""


def _write_parquet(file: IO[bytes], rows: Iterable[OutputRow], metadata: OutputMetadata) -> None:
    pa = import_pyarrow()
    _release_freed_memory()
    row_bytes = _FLOAT_BYTES * (metadata.dimension or 256)
    least_memory = math.isqrt(metadata.row_count * _ROW_GROUP_METADATA_BYTES // (_ROW_COPIES * row_bytes))
    group_rows = min(max(1, _MIN_ROW_GROUP_BYTES // row_bytes, least_memory), _MAX_ROW_GROUP_ROWS)
    with contextlib.closing(_read_ahead(iter(rows), group_rows)) as groups:
        group = next(groups, [])
        schema = _schema(pa, metadata, has_integer_ids=not group or isinstance(group[0].id, int))
        with pa.parquet.ParquetWriter(
            file,
            schema,
            # Compressing the floats of vectors costs time and saves hardly any space.
            compression=dict.fromkeys(("id", "text", "source"), "zstd"),
            use_dictionary=["source", "model", "dimension", "role"],
            write_statistics=["id"],
            data_page_size=_PAGE_BYTES,
            memory_pool=pa.system_memory_pool(),
        ) as writer:
            while group:
                writer.write_table(pa.Table.from_arrays(_arrays(pa, group, metadata, schema), schema=schema))
                group = next(groups, [])


def _read_ahead(rows: Iterator[OutputRow], count: int) -> Generator[list[OutputRow], None, None]:
    """Lists of `count` rows; another thread reads the next one while the caller uses the last."""

    def read() -> list[OutputRow]:
        return list(itertools.islice(rows, count))

    following = shared_pool.submit(WorkItem(read))
    try:
        while group := following.result():
            following = shared_pool.submit(WorkItem(read))
            yield group
    finally:
        following.wait()  # the checkpoint must not be closed while it is read


def _release_freed_memory() -> None:
    """Has glibc return the memory that requests have freed, before pyarrow takes its own; elsewhere nothing."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _schema(pa: Any, metadata: OutputMetadata, *, has_integer_ids: bool) -> Any:
    fields = [pa.field("id", pa.int64() if has_integer_ids else pa.string(), nullable=False)]
    fields += [pa.field(name, pa.string()) for name in metadata.extra_columns]
    fields += vector_fields(metadata.kind, metadata.dimension)
    fields += [pa.field("model", pa.string()), pa.field("dimension", pa.int32()), pa.field("role", pa.string())]
    return pa.schema(fields)


def _arrays(pa: Any, group: list[OutputRow], metadata: OutputMetadata, schema: Any) -> list[Any]:
    """The columns of a row group, made from buffers: `pa.array` and `pa.scalar` import pandas where it is installed."""
    count, dimension = len(group), metadata.dimension
    strings: dict[str, list[str]] = {"model": [metadata.model] * count, "role": [metadata.role] * count}
    for name in metadata.extra_columns:
        strings[name] = [getattr(row, name) for row in group]
    ids = [row.id for row in group]
    columns: dict[str, Any] = {
        "dimension": pa.nulls(count, pa.int32())
        if dimension is None
        else _flat_array(pa, pa.int32(), array.array("i", [dimension] * count))
    }
    if schema.field("id").type == pa.int64():
        columns["id"] = _flat_array(pa, pa.int64(), array.array("q", map(int, ids)))
    else:
        strings["id"] = [str(record_id) for record_id in ids]
    columns |= {name: _string_array(pa, values) for name, values in strings.items()}
    if "dense" in metadata.kind:
        floats = _flat_array(pa, pa.float32(), b"".join(row.vectors.dense or b"" for row in group))
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(floats, type=schema.field("embedding").type)
    if "sparse" in metadata.kind:
        columns["sparse_indices"] = _list_array(pa, pa.uint32(), [row.vectors.sparse_indices or b"" for row in group])
        columns["sparse_values"] = _list_array(pa, pa.float32(), [row.vectors.sparse_values or b"" for row in group])
    return [columns[field.name] for field in schema]


def _flat_array(pa: Any, value_type: Any, data: bytes | array.array[int]) -> Any:
    buffer = pa.py_buffer(data)
    return pa.Array.from_buffers(value_type, buffer.size * 8 // value_type.bit_width, [None, buffer])


def _offsets(lengths: Iterable[int]) -> array.array[int]:
    return array.array("i", itertools.accumulate(lengths, initial=0))


def _list_array(pa: Any, value_type: Any, blobs: list[bytes]) -> Any:
    offsets = _flat_array(pa, pa.int32(), _offsets(len(blob) // _FLOAT_BYTES for blob in blobs))
    return pa.ListArray.from_arrays(offsets, _flat_array(pa, value_type, b"".join(blobs)))


def _string_array(pa: Any, strings: list[str]) -> Any:
    blobs = [string.encode() for string in strings]
    offsets = pa.py_buffer(_offsets(map(len, blobs)))
    return pa.StringArray.from_buffers(len(blobs), offsets, pa.py_buffer(b"".join(blobs)))


# --- reading -----------------------------------------------------------------------------------------------


def read(path: str | Path) -> Iterator[Vector]:
    """The rows of an output, in the order of the input, in bounded memory.

    Args:
        path: An output of `embed_corpus`, of the batch functions or of their commands: .parquet, .jsonl or .npy.

    Raises:
        InvalidInput: an unknown ending, an array without its ids, or a file that is damaged or another program's.
        ImportError: Parquet without pyarrow.
    """
    path = files.as_path(path, "path")
    if (read_rows := _READERS.get(path.suffix.lower())) is None:
        raise InvalidInput(f"{path}: its ending must be one of {', '.join(OUTPUT_EXTENSIONS)}")
    try:
        yield from read_rows(path)
    except (AttributeError, LookupError, SyntaxError, TypeError, ValueError, struct.error) as error:
        raise InvalidInput(
            f"{path} is damaged, or this package did not write it ({type(error).__name__}: {error}): run the command "
            "that wrote it again"
        ) from error


def _read_json_lines(path: Path) -> Iterator[Vector]:
    with path.open("rb") as file:
        for line in file:
            yield _vector_from_columns(json.loads(line))


def _read_parquet(path: Path) -> Iterator[Vector]:
    with import_pyarrow().parquet.ParquetFile(path) as table:
        for rows in table.iter_batches(batch_size=1024):
            yield from map(_vector_from_columns, rows.to_pylist())


_READERS = {".npy": _read_npy, ".jsonl": _read_json_lines, ".parquet": _read_parquet}


def _vector_from_columns(row: dict[str, Any]) -> Vector:
    sparse = None
    if row.get("sparse_indices") is not None:
        sparse = SparseVector(row["sparse_indices"], row["sparse_values"])
    dense, text = row.get("embedding"), row.get("text")
    return Vector(row["id"], dense, sparse, text, row["model"], row["dimension"], row["role"], row.get("source"))
