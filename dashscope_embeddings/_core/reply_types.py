"""The service's replies as types, for `wire.py` alone: what pydantic checks of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import NotRequired, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping

_STRICT = ConfigDict(strict=True)


@with_config(_STRICT)
class SparseWeight(TypedDict):
    """One entry of a sparse vector."""

    index: int
    value: float
    # Any: it decides nothing, and whatever is no text is left out.
    token: NotRequired[Any]


@with_config(_STRICT)
class _NativeRow(TypedDict):
    text_index: int
    # Any: absent, null or empty where only sparse was asked; `_floats` says what is wrong otherwise.
    embedding: NotRequired[Any]
    sparse_embedding: NotRequired[list[SparseWeight] | None]


@with_config(_STRICT)
class _NativeOutput(TypedDict):
    embeddings: list[_NativeRow]


@with_config(_STRICT)
class _NativeReply(TypedDict):
    output: _NativeOutput


@with_config(_STRICT)
class _CompatibleRow(TypedDict):
    index: int
    embedding: Any


@with_config(_STRICT)
class _CompatibleReply(TypedDict):
    data: list[_CompatibleRow]


# Typed to the last number, strict and finite, which is quicker than looking at the numbers afterwards. Whatever
# does not fit goes the slow way, which says what is wrong with it.
_STRICT_FINITE = ConfigDict(strict=True, allow_inf_nan=False)
MAX_FLOAT32 = 3.4028234e38
"""What float32 can hold, in which vectors are made and kept."""
_Float32 = Annotated[float, Field(ge=-MAX_FLOAT32, le=MAX_FLOAT32)]


@with_config(_STRICT_FINITE)
class _CommonNativeRow(TypedDict):
    text_index: int
    embedding: list[_Float32]


@with_config(_STRICT_FINITE)
class _CommonNativeOutput(TypedDict):
    embeddings: list[_CommonNativeRow]


@with_config(_STRICT_FINITE)
class _CommonNativeReply(TypedDict):
    output: _CommonNativeOutput
    # Any: vectors are worth the same whatever stands beside them; `wire` reads what can be read.
    usage: NotRequired[Any]
    request_id: NotRequired[Any]
    code: NotRequired[Any]
    error: NotRequired[Any]


@with_config(_STRICT_FINITE)
class _CommonCompatibleRow(TypedDict):
    index: int
    embedding: list[_Float32]


@with_config(_STRICT_FINITE)
class _CommonCompatibleReply(TypedDict):
    data: list[_CommonCompatibleRow]
    usage: NotRequired[Any]
    id: NotRequired[Any]
    request_id: NotRequired[Any]
    code: NotRequired[Any]
    error: NotRequired[Any]


COMMON_REPLY: Mapping[str, TypeAdapter[Any]] = {
    "native": TypeAdapter(_CommonNativeReply),
    "openai": TypeAdapter(_CommonCompatibleReply),
}
NATIVE_REPLY = TypeAdapter(_NativeReply)
COMPATIBLE_REPLY = TypeAdapter(_CompatibleReply)
