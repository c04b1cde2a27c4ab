"""The frame table of a pixel row: 40 bytes a frame, read with one `substr` however many frames there are."""

import hashlib
import struct
from dataclasses import asdict, dataclass

import orjson

from gateway.domain.ids import FrameId
from gateway.domain.pixels import FrameFacts, PixelFormat
from gateway.ports import Buffer

_ROW = struct.Struct("<QIIIii12s")
ROW_BYTES = _ROW.size
_NO_RANGE = (0, -1)
"""Minimum above maximum: the frame has no known range."""


@dataclass(frozen=True, slots=True)
class FrameRow:
    """Where a frame lies in its extent, and what is known of it."""

    offset: int
    length: int
    prefix: int
    """Bytes that hold the low resolutions; 0 where the codestream has none."""
    crc32: int
    minimum: int | None
    maximum: int | None
    digest: bytes
    """First 12 bytes of the SHA-256 of the stored bytes."""


def digest_of(data: Buffer) -> bytes:
    return hashlib.sha256(data).digest()[:12]


def pack_row(offset: int, length: int, prefix: int, facts: FrameFacts, digest: bytes) -> bytes:
    if facts.minimum is None or facts.maximum is None:
        low, high = _NO_RANGE
    else:
        low, high = _wrap(facts.minimum), _wrap(facts.maximum)
    return _ROW.pack(offset, length, prefix, facts.crc32, low, high, digest)


def unpack_row(row: bytes, *, signed: bool) -> FrameRow:
    offset, length, prefix, crc32, low, high, digest = _ROW.unpack(row)
    if (low, high) == _NO_RANGE:
        return FrameRow(offset, length, prefix, crc32, None, None, digest)
    if not signed:
        low, high = low & 0xFFFFFFFF, high & 0xFFFFFFFF
    return FrameRow(offset, length, prefix, crc32, low, high, digest)


def unpack_table(table: bytes, *, signed: bool) -> list[FrameRow]:
    return [unpack_row(table[at : at + ROW_BYTES], signed=signed) for at in range(0, len(table), ROW_BYTES)]


def moved(row: FrameRow, offset: int, data: bytes, prefix: int) -> bytes:
    """The row of a frame whose stored bytes are now `data` at `offset`; what was decoded stays as it was."""
    low, high = _NO_RANGE if row.minimum is None or row.maximum is None else (_wrap(row.minimum), _wrap(row.maximum))
    return _ROW.pack(offset, len(data), prefix, row.crc32, low, high, digest_of(data))


def _wrap(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value


def frame_id(record_id: str, index: int) -> FrameId:
    """24 hex of the record and 8 of the index: no table, and stable through edits and copies."""
    return FrameId(f"{record_id}{index:08x}")


def format_json(format: PixelFormat) -> str:
    return orjson.dumps(asdict(format), option=orjson.OPT_SORT_KEYS).decode()


def parse_format(text: str) -> PixelFormat:
    return PixelFormat(**orjson.loads(text))
