"""Sums that tell a damaged checkpoint from a whole one: id → text → vectors, each link bound to the text's hash.

SQLite has no sums of its pages, and a file of floats has none at all: what a disk, a copy or a restored backup did to
them shows only here. A link that leads to another text's vectors shows too.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from dashscope_embeddings.corpus.checkpoint.rows import PackedVectors

CHECKSUM_BYTES = 4
"""Bytes of a sum: a CRC, which takes a third of the time of the fastest hash. Damage is no forgery."""


def text_hash(text: str) -> bytes:
    """What stands for a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def vectors_checksum(digest: bytes, vectors: PackedVectors) -> bytes:
    """Of a text's vectors and of the text that they belong to."""
    dense, indices, values = vectors
    sizes = (-1 if part is None else len(part) for part in vectors)
    found = zlib.crc32(digest + struct.pack("=3q", *sizes))
    if dense is not None:
        found = zlib.crc32(dense, found)
    if indices is not None and values is not None:
        found = zlib.crc32(values, zlib.crc32(indices, found))
    return found.to_bytes(CHECKSUM_BYTES, "little")


def record_checksum(position: object, record_id: object, place: object, digest: object) -> bytes:
    """Of a record of the input and of its text."""
    return zlib.crc32(f"{position!r} {record_id!r} {place!r} {digest!r}".encode()).to_bytes(CHECKSUM_BYTES, "little")


def text_differs(text: object, digest: object) -> bool:
    """Whether a text that was kept is not the one that it was; None: none was."""
    return text is not None and not (isinstance(text, str) and text_hash(text) == digest)


def parse_json(name: str, value: str) -> Any:
    """A fact that was kept as JSON.

    Raises:
        InvalidInput: it is none any more.
    """
    try:
        return json.loads(value)
    except (TypeError, ValueError) as error:
        raise damage_error(name, "a setting cannot be read") from error


def damage_error(name: str, what: str) -> InvalidInput:
    """What to do about a checkpoint that cannot be gone on with."""
    return InvalidInput(
        f"{name} is damaged: {what}. Put back a copy of {name} and of {name}-vectors that were made at the same "
        "time, or delete both (and the output) to pay for all texts again"
    )
