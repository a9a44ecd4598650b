"""Checksums that detect a damaged checkpoint: record → text → vectors, each link bound to the text's hash.

SQLite's pages have no checksums, so nothing else detects damage by a disk, a copy or a restored backup. The checksums
also detect a link to another text's vectors.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import TYPE_CHECKING, Any

from dashscope_embeddings.errors import InvalidInput

if TYPE_CHECKING:
    from dashscope_embeddings.corpus.checkpoint.rows import PackedVectors

CHECKSUM_BYTES = 4
"""Bytes of a checksum. A CRC takes a third of the time of the fastest hash and is enough against accidental damage."""


def text_hash(text: str, whole: bytes = b"") -> bytes:
    """The hash that identifies a text, or a part of the text whose hash is `whole`."""
    return hashlib.blake2b(whole + text.encode(), digest_size=16).digest()


def vectors_checksum(digest: bytes, vectors: PackedVectors) -> bytes:
    """The checksum of a text's vectors and of the text's hash."""
    sizes = [-1 if part is None else len(part) for part in vectors]
    checksum = zlib.crc32(digest + struct.pack("=3q", *sizes))
    for part in vectors:
        if part is not None:
            checksum = zlib.crc32(part, checksum)
    return checksum.to_bytes(CHECKSUM_BYTES, "little")


def is_intact(digest: Any, checksum: object, vectors: PackedVectors) -> bool:
    """Whether vectors, as read from a row that may be damaged, are those that were stored for this text."""
    try:
        return checksum == vectors_checksum(digest, vectors)
    except TypeError:  # of damaged columns: only bytes can be summed
        return False


def row_checksum(*values: object) -> bytes:
    """The checksum of a row; the same in all versions of Python, whose `repr` shows newer characters differently."""
    return zlib.crc32(" ".join(map(ascii, values)).encode()).to_bytes(CHECKSUM_BYTES, "little")


def is_text_intact(text: object, digest: object, whole: bytes = b"") -> bool:
    """Whether a text, as read from a row that may be damaged, has this hash; `whole`: as for `text_hash`."""
    return isinstance(text, str) and text_hash(text, whole) == digest


def damage_error(name: object, what: str) -> InvalidInput:
    """The error for a damaged checkpoint, with what to do."""
    return InvalidInput(
        f"{name} is damaged: {what}. Put back a copy of it, or delete it (and the output) to pay for all texts again"
    )
