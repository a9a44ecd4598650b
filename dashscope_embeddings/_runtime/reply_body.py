"""Decompresses the body of a reply within a size limit."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCEPT_ENCODING = "gzip"
"""The only compression asked for: its decoder can be stopped after any number of bytes."""

_MAX_PIECE_BYTES = 1 << 20
_GZIP_MAGIC, _GZIP_WBITS = b"\x1f\x8b", zlib.MAX_WBITS | 16
_UNSUPPORTED_ENCODINGS = frozenset({"br", "zstd", "compress"})
_SUPPORTED_ENCODINGS = frozenset({"gzip", "x-gzip", "deflate"})
_SUSPICIOUS_BYTES = 64 << 20
_MAX_COMPRESSION_RATIO = 100
"""A body larger than `_SUSPICIOUS_BYTES` that expands by more than this ratio is refused as a decompression bomb."""


class UnusableBody(Exception):  # noqa: N818 - the name is the event
    """A reply whose body cannot be read, or is larger than any valid reply."""

    def __init__(self, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.retry = retry
        """Whether another attempt may succeed."""


class BodyReader:
    """Decompresses a body up to a size limit. Of an error reply the rest is dropped: its status alone decides."""

    def __init__(self, response: Any, max_bytes: int) -> None:
        self._max_bytes, self._is_success = max_bytes, response.is_success
        self._received_bytes = self._produced_bytes = 0
        self._encoding = response.headers.get("content-encoding", "").strip().lower()
        self._inflater: Any = None
        self.is_cut_off = False
        """Whether the rest of the body is not read: the connection must be closed."""
        names = self._encoding.replace(" ", "").split(",")
        is_repeated = len(_SUPPORTED_ENCODINGS & {*names}) > 1 or names.count("gzip") > 1
        if is_repeated or not _UNSUPPORTED_ENCODINGS.isdisjoint(names):
            message = f"a proxy or gateway compressed it with {self._encoding[:40]!r}, although gzip was requested"
            self._fail(message, retry=False)

    def decompress(self, chunk: bytes) -> Iterator[bytes]:
        """The decompressed bytes of the next chunk, in pieces of at most 1 MiB."""
        if self._received_bytes == 0 and chunk:
            self._inflater = self._make_inflater(chunk[0])
        self._received_bytes += len(chunk)
        for piece in (chunk,) if self._inflater is None else self._inflate(chunk):
            self._produced_bytes += len(piece)
            if self._produced_bytes > self._max_bytes:
                self._fail(f"it is larger than {self._max_bytes:,} bytes, the limit for a reply to this request")
            elif self._produced_bytes > max(_SUSPICIOUS_BYTES, _MAX_COMPRESSION_RATIO * self._received_bytes):
                self._fail(f"it expands more than {_MAX_COMPRESSION_RATIO} times when decompressed")
            if self.is_cut_off:
                return
            yield piece

    @property
    def is_complete(self) -> bool:
        """Whether the compressed data is complete."""
        return self._inflater is None or self._inflater.eof

    def _make_inflater(self, first_byte: int) -> Any:
        """None for a plain body. Checks the first byte as well: some servers name an encoding and send plain JSON."""
        if "gzip" in self._encoding and first_byte == _GZIP_MAGIC[0]:
            return zlib.decompressobj(_GZIP_WBITS)
        if "deflate" in self._encoding and first_byte not in b"{[ \t\r\n":
            return zlib.decompressobj(zlib.MAX_WBITS if first_byte & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS)
        return None

    def _inflate(self, chunk: bytes) -> Iterator[bytes]:
        has_more = True
        while has_more:
            if self._inflater.eof:  # the next gzip member of the same body
                if not chunk.startswith(_GZIP_MAGIC):
                    return
                self._inflater = zlib.decompressobj(_GZIP_WBITS)
            try:
                piece = self._inflater.decompress(chunk, _MAX_PIECE_BYTES)
            except zlib.error as error:
                self._fail(f"it cannot be decompressed ({error})")
                return
            yield piece
            chunk = self._inflater.unconsumed_tail or self._inflater.unused_data
            has_more = bool(chunk) or len(piece) == _MAX_PIECE_BYTES

    def _fail(self, message: str, *, retry: bool = True) -> None:
        self.is_cut_off = True
        if self._is_success:
            raise UnusableBody(message, retry=retry)
