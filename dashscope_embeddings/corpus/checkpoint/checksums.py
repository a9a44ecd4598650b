"""Checksums that detect a damaged checkpoint: id → text → vectors, each link bound to the text's hash.

Neither SQLite's pages nor a file of floats have checksums, so nothing else detects damage by a disk, a copy or a
restored backup. The checksums also detect a link to another text's vectors.
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
"""Bytes of a checksum. A CRC takes a third of the time of the fastest hash and is enough against accidental damage."""


def text_hash(text: str) -> bytes:
    """The hash that identifies a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def vectors_checksum(digest: bytes, vectors: PackedVectors) -> bytes:
    """The checksum of a text's vectors and of the text's hash."""
    dense, indices, values = vectors
    sizes = (-1 if part is None else len(part) for part in vectors)
    checksum = zlib.crc32(digest + struct.pack("=3q", *sizes))
    if dense is not None:
        checksum = zlib.crc32(dense, checksum)
    if indices is not None and values is not None:
        checksum = zlib.crc32(values, zlib.crc32(indices, checksum))
    return checksum.to_bytes(CHECKSUM_BYTES, "little")


def record_checksum(position: object, record_id: object, place: object, digest: object) -> bytes:
    """The checksum of a record of the input and of its text's hash."""
    return zlib.crc32(f"{position!r} {record_id!r} {place!r} {digest!r}".encode()).to_bytes(CHECKSUM_BYTES, "little")


def text_differs(text: object, digest: object) -> bool:
    """Whether a stored text does not have its hash; False for None: no text was stored."""
    return text is not None and not (isinstance(text, str) and text_hash(text) == digest)


def parse_json(name: str, value: str) -> Any:
    """Reads a value that is stored as JSON.

    Raises:
        InvalidInput: it is damaged.
    """
    try:
        return json.loads(value)
    except (TypeError, ValueError) as error:
        raise damage_error(name, "a setting cannot be read") from error


def damage_error(name: str, what: str) -> InvalidInput:
    """The error for a damaged checkpoint, with what to do."""
    return InvalidInput(
        f"{name} is damaged: {what}. Put back a copy of {name} and of {name}-vectors that were made at the same "
        "time, or delete both (and the output) to pay for all texts again"
    )
