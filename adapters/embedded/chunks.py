"""Compressed pieces that join into one gzip stream without being decompressed (datamodel.md 2).

A chunk is raw deflate that ends on a byte with a flush, so that chunks can follow one another; with its plain length
and CRC-32 beside it, a document of any number of chunks is one gzip member, which every browser reads to its end.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from isal import isal_zlib

from gateway.domain.errors import Corrupt

_GZIP_HEADER = bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 0xFF])
_END = b"\x03\x00"
_EXTENT = struct.Struct("<QIII")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Deflated bytes, with the length and CRC-32 of their text."""

    data: bytes
    plain: int
    crc: int

    def text(self) -> bytes:
        """Raises Corrupt."""
        return inflate(self.data, self.plain, self.crc)


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a chunk lies in its blob."""

    offset: int
    length: int
    plain: int
    crc: int


def deflate(text: bytes) -> Chunk:
    compressor = isal_zlib.compressobj(1, isal_zlib.DEFLATED, -15)
    data = compressor.compress(text) + compressor.flush(isal_zlib.Z_FULL_FLUSH)
    return Chunk(data, len(text), isal_zlib.crc32(text))


def literal(text: bytes) -> Chunk:
    """A chunk that stores short text as it is: cheaper to make than to compress."""
    pieces = []
    for start in range(0, len(text), 65535):
        piece = text[start : start + 65535]
        pieces.append(struct.pack("<BHH", 0, len(piece), len(piece) ^ 0xFFFF) + piece)
    return Chunk(b"".join(pieces), len(text), isal_zlib.crc32(text))


def inflate(data: bytes, plain: int, crc: int) -> bytes:
    """The text of one chunk of known plain length and CRC-32. Raises Corrupt."""
    try:
        text: bytes = isal_zlib.decompressobj(-15).decompress(data)
    except isal_zlib.IsalError as fault:  # type: ignore[misc]  # its stub has it as a value
        raise Corrupt("A stored chunk cannot be inflated.") from fault
    if len(text) != plain or isal_zlib.crc32(text) != crc:
        raise Corrupt("A stored chunk does not have its CRC-32.")
    return text


def gzip_stream(chunks: Iterable[Chunk]) -> bytes:
    """One gzip member with the text of all chunks in order; the same bytes for the same chunks."""
    pieces = [_GZIP_HEADER]
    crc = 0
    length = 0
    for chunk in chunks:
        pieces.append(chunk.data)
        crc = isal_zlib.crc32_combine(crc, chunk.crc, chunk.plain)
        length += chunk.plain
    pieces.append(_END)
    pieces.append(struct.pack("<II", crc, length & 0xFFFFFFFF))
    return b"".join(pieces)


def pack_extents(extents: Iterable[Extent]) -> bytes:
    """20 bytes an extent: offset, length, plain length, CRC-32."""
    return b"".join(_EXTENT.pack(e.offset, e.length, e.plain, e.crc) for e in extents)


def unpack_extents(data: bytes) -> list[Extent]:
    return [Extent(*fields) for fields in _EXTENT.iter_unpack(data)]
