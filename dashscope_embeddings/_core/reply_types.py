"""The shape of a successful reply, as types that pydantic checks while it parses the JSON.

Checking every number during parsing is faster than checking it afterwards. A component that was not requested
is typed `Any`: its value does not affect the requested vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeAlias, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import NotRequired, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dashscope_embeddings.vectors import Output

_STRICT_FINITE = ConfigDict(strict=True, allow_inf_nan=False)
_MAX_FLOAT32 = 3.4028234e38
"""Vectors are computed and stored as float32."""
_Float32 = Annotated[float, Field(ge=-_MAX_FLOAT32, le=_MAX_FLOAT32)]


@with_config(_STRICT_FINITE)
class SparseEntry(TypedDict):
    """One entry of a sparse vector."""

    index: Annotated[int, Field(ge=0, le=2**32 - 1)]
    value: _Float32
    token: NotRequired[Any]


# Some gateways send base64 of float32, and null in place of a missing component.
_Dense: TypeAlias = list[_Float32] | str | None
_Sparse: TypeAlias = list[SparseEntry] | None
_DenseT = TypeVar("_DenseT")
_SparseT = TypeVar("_SparseT")


@with_config(_STRICT_FINITE)
class _NativeRow(TypedDict, Generic[_DenseT, _SparseT]):
    text_index: int
    embedding: NotRequired[_DenseT]
    sparse_embedding: NotRequired[_SparseT]


@with_config(_STRICT_FINITE)
class _NativeOutput(TypedDict, Generic[_DenseT, _SparseT]):
    embeddings: list[_NativeRow[_DenseT, _SparseT]]
    code: NotRequired[Any]


@with_config(_STRICT_FINITE)
class _NativeReply(TypedDict, Generic[_DenseT, _SparseT]):
    output: _NativeOutput[_DenseT, _SparseT]
    # Any, here and below: `protocol` reads side fields leniently, as they do not change the vectors.
    usage: NotRequired[Any]
    request_id: NotRequired[Any]
    id: NotRequired[Any]
    code: NotRequired[Any]
    error: NotRequired[Any]


@with_config(_STRICT_FINITE)
class _CompatibleRow(TypedDict):
    index: int
    embedding: NotRequired[_Dense]


@with_config(_STRICT_FINITE)
class _CompatibleReply(TypedDict):
    data: list[_CompatibleRow]
    usage: NotRequired[Any]
    request_id: NotRequired[Any]
    id: NotRequired[Any]
    code: NotRequired[Any]
    error: NotRequired[Any]


NATIVE_REPLY: Mapping[Output, TypeAdapter[Any]] = {
    "dense": TypeAdapter(_NativeReply[_Dense, Any]),
    "sparse": TypeAdapter(_NativeReply[Any, _Sparse]),
    "dense&sparse": TypeAdapter(_NativeReply[_Dense, _Sparse]),
}
COMPATIBLE_REPLY: TypeAdapter[Any] = TypeAdapter(_CompatibleReply)
SPARSE_ENTRIES: TypeAdapter[list[SparseEntry]] = TypeAdapter(list[SparseEntry])
