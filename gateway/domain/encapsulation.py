"""Where the frames lie in the value of Pixel Data, and how frames become such a value.

frame_extents       fragments of each frame of an encapsulated value (PS3.5 A.4; WILD-06)
native_extents      bytes of each frame of a native value (PS3.5 8.1.1)
encapsulate         frames to an encapsulated value, `encapsulated_length` bytes long
unpack_bits_frames  one-bit frames, each made to start on a byte; `pack_bits_frames` joins them again (WADO-07)
bare_codestream     where the codestream lies within JP2 boxes (TS-09)
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from .pixels import PixelFormat
from .syntaxes import Family, by_uid

Buffer = bytes | bytearray | memoryview
Extent = tuple[int, int]
"""Offset and length in bytes."""

TRANSCODING_EXCEPTION = 0xB100
FRAMES_EXTRACTION_FAILURE = 0xB110
FRAME_NUMBER_MISMATCH = 0xB111
INVALID_OFFSET_TABLE = 0xB112
UNSUPPORTED_TRANSFER_SYNTAX = 0xB120

UNDEFINED = 0xFFFFFFFF
_ITEM = b"\xfe\xff\x00\xe0"
_SEQUENCE_END = b"\xfe\xff\xdd\xe0"
_MAX_OFFSET = 0xFFFFFFFF
_MAX_FRAGMENTS = 1 << 22
"""More are taken for an attack on memory: the largest slides have some 100,000 tiles."""
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_JXL_SIGNATURE = b"\x00\x00\x00\x0cJXL \r\n\x87\n"

_STARTS: dict[Family, tuple[bytes, ...]] = {
    Family.JPEG: (b"\xff\xd8\xff",),
    Family.JPEG_LS: (b"\xff\xd8\xff",),
    Family.JPEG_2000: (b"\xff\x4f\xff\x51", _JP2_SIGNATURE),
    Family.HTJ2K: (b"\xff\x4f\xff\x51", _JP2_SIGNATURE),
    Family.JPEG_XL: (b"\xff\x0a", _JXL_SIGNATURE),
}
"""How a frame begins. Only where a fragment begins is such a mark looked for: inside coded data it proves nothing."""


class PixelFault(Exception):
    """Pixel data that cannot be used as it stands; `code` is the warning that the instance carries.

    Codes: 0xB100 not decodable, 0xB110 frames not found, 0xB111 number of frames, 0xB112 offset table, 0xB120
    transfer syntax not supported (healthimaging.md 5.1). `reason` names what is wrong and holds no patient's data.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def frame_extents(
    data: Buffer,
    offset: int,
    length: int,
    syntax: str,
    frames: int,
    extended_offsets: Sequence[int] | None = None,
    extended_lengths: Sequence[int] | None = None,
) -> list[list[Extent]]:
    """The fragments of each frame, as offsets in `data` and lengths in bytes; a video is one frame.

    `offset` is where the first item tag of the value stands, `length` its length or UNDEFINED. A missing sequence
    delimiter is tolerated. Frames are told apart by, in this order: one frame or as many fragments as frames; the
    Extended Offset Table; the Basic Offset Table; the marks that codestreams begin with. A table that contradicts
    the fragments or the marks is passed over. Source: PS3.5 A.4, WILD-06.

    Raises PixelFault: 0xB110 for a value that is no sequence of whole fragments, 0xB111 where the fragments hold
    another number of frames, 0xB112 where only a table could have told, and it is wrong.
    """
    row = by_uid(syntax)
    family = row.family if row else None
    marks = _STARTS.get(family, ()) if family else ()
    table, fragments = _fragments(data, offset, length, marks)
    if not fragments:
        raise PixelFault(FRAMES_EXTRACTION_FAILURE, "The Pixel Data holds no fragments.")
    if family is Family.VIDEO:
        return [fragments]
    frames = max(frames, 1)
    if extended_offsets and (found := _by_extended_table(fragments, frames, extended_offsets, extended_lengths)):
        return found
    if len(fragments) == frames:
        return [[fragment] for fragment in fragments]

    def begins(fragment: Extent) -> bool:
        at, size = fragment
        return any(data[at : at + min(len(mark), size)] == mark for mark in marks)

    base = fragments[0][0] - 8
    if len(fragments) > frames:
        fragments = [fragment for fragment in fragments if fragment[1]] or fragments
        if len(fragments) == frames:
            return [[fragment] for fragment in fragments]
    starts = [at for at, fragment in enumerate(fragments) if begins(fragment)]
    if frames == 1:
        if len(starts) > 1:
            raise _mismatch(len(starts), frames)
        return [fragments]
    if len(fragments) < frames:
        raise _mismatch(len(fragments), frames)
    if (cuts := _by_basic_table(data, table, base, fragments, frames)) and (not starts or set(cuts) <= set(starts)):
        return _group(fragments, cuts)
    if starts and starts[0] == 0:
        if len(starts) != frames:
            raise _mismatch(len(starts), frames)
        return _group(fragments, starts)
    if table[1] or extended_offsets:
        raise PixelFault(
            INVALID_OFFSET_TABLE,
            f"The offset table does not divide {len(fragments)} fragments into {frames} frames, and nothing else does.",
        )
    if family is Family.RLE:  # PS3.5 G.2: one fragment a frame
        raise _mismatch(len(fragments), frames)
    raise PixelFault(
        FRAMES_EXTRACTION_FAILURE,
        f"{len(fragments)} fragments hold {frames} frames, and neither an offset table nor their bytes divide them.",
    )


def _mismatch(found: int, declared: int) -> PixelFault:
    return PixelFault(FRAME_NUMBER_MISMATCH, f"The Pixel Data holds {found} frames, Number of Frames says {declared}.")


def _fragments(data: Buffer, offset: int, length: int, marks: Iterable[bytes]) -> tuple[Extent, list[Extent]]:
    """The Basic Offset Table's extent and those of all fragments after it."""
    end = len(data) if length == UNDEFINED else min(offset + length, len(data))
    items: list[Extent] = []
    at = offset
    while at + 8 <= end:
        tag = bytes(data[at : at + 4])
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM:
            raise PixelFault(
                FRAMES_EXTRACTION_FAILURE,
                "The Pixel Data is not a sequence of items, as its transfer syntax requires."
                if not items
                else f"After fragment {len(items) - 1} of the Pixel Data stands neither an item nor the delimiter.",
            )
        (size,) = struct.unpack_from("<I", data, at + 4)
        if size > end - at - 8:
            raise PixelFault(FRAMES_EXTRACTION_FAILURE, f"Fragment {len(items)} of the Pixel Data is cut short.")
        if len(items) > _MAX_FRAGMENTS:
            raise PixelFault(FRAMES_EXTRACTION_FAILURE, f"The Pixel Data has more than {_MAX_FRAGMENTS} fragments.")
        items.append((at + 8, size))
        at += 8 + size
    if not items:
        return (offset, 0), []
    table = items[0]
    first = bytes(data[table[0] : table[0] + min(12, table[1])])
    if any(first.startswith(mark) for mark in marks):
        return (offset, 0), items  # the table is missing altogether
    return table, items[1:]


def _group(fragments: Sequence[Extent], cuts: Sequence[int]) -> list[list[Extent]]:
    ends = [*cuts[1:], len(fragments)]
    return [list(fragments[start:end]) for start, end in zip(cuts, ends, strict=True)]


def _by_basic_table(
    data: Buffer, table: Extent, base: int, fragments: Sequence[Extent], frames: int
) -> list[int] | None:
    """The index of each frame's first fragment by the Basic Offset Table; None if the table does not fit."""
    at, size = table
    if size != 4 * frames:
        return None
    index = {start - 8 - base: number for number, (start, _) in enumerate(fragments)}
    cuts = [index.get(value, -1) for value in struct.unpack_from(f"<{frames}I", data, at)]
    if cuts[0] != 0 or any(a >= b for a, b in pairwise(cuts)):
        return None
    return cuts


def _by_extended_table(
    fragments: Sequence[Extent], frames: int, offsets: Sequence[int], lengths: Sequence[int] | None
) -> list[list[Extent]] | None:
    """Frames by the Extended Offset Table, without their padding (PS3.3 C.7.6.3.1.8); None if it does not fit."""
    if len(offsets) != frames or len(fragments) != frames or (lengths is not None and len(lengths) != frames):
        return None
    base = fragments[0][0] - 8
    if any(start - 8 - base != value for (start, _), value in zip(fragments, offsets, strict=True)):
        return None
    sizes = [size for _, size in fragments] if lengths is None else lengths
    if any(not size - 1 <= told <= size for (_, size), told in zip(fragments, sizes, strict=True)):
        return None
    return [[(start, told)] for (start, _), told in zip(fragments, sizes, strict=True)]


def native_extents(format: PixelFormat, offset: int, length: int) -> list[Extent]:
    """The bytes of each native frame, in a value of `length` bytes at `offset`.

    One-bit frames that do not start on a byte share their first and last byte with their neighbours: take them
    through `unpack_bits_frames`. Padding after the last frame is passed over.
    Raises PixelFault: 0xB111 for another whole number of frames, 0xB110 for a value too short or too long.
    """
    bits, frames = format.frame_bits, max(format.frames, 1)
    if not bits:
        raise PixelFault(FRAMES_EXTRACTION_FAILURE, "Rows, Columns, Samples per Pixel or Bits Allocated is 0.")
    needed = (bits * frames + 7) // 8
    if format.samples == 3 and format.photometric == "YBR_FULL_422" and length >= needed // 2 * 3:
        raise PixelFault(
            FRAMES_EXTRACTION_FAILURE, "The Photometric Interpretation is YBR_FULL_422, but the chroma is not halved."
        )
    if length < needed or length - needed > max(1, bits // 8 - 1):
        whole, rest = divmod(length * 8, bits)
        if whole and whole != frames and rest <= 8:
            raise _mismatch(whole, frames)
        raise PixelFault(
            FRAMES_EXTRACTION_FAILURE, f"The Pixel Data has {length} bytes where {frames} frames need {needed}."
        )
    return [(offset + start // 8, (start + bits + 7) // 8 - start // 8) for start in range(0, bits * frames, bits)]


def unpack_bits_frames(data: Buffer, format: PixelFormat) -> Iterator[bytes]:
    """Each frame of a one-bit value, moved to start on a byte and filled up with zero bits (WADO-07).

    The first pixel is the lowest bit of a byte (PS3.5 8.1.1), so a frame is a shifted little-endian number.
    """
    bits = format.frame_bits
    mask = (1 << bits) - 1
    for at, (start, size) in enumerate(native_extents(format, 0, len(data))):
        number = int.from_bytes(data[start : start + size], "little") >> (at * bits % 8)
        yield (number & mask).to_bytes((bits + 7) // 8, "little")


def pack_bits_frames(frames: Iterable[Buffer], format: PixelFormat) -> bytes:
    """The one-bit value that `unpack_bits_frames` took apart, without its padding byte."""
    bits = format.frame_bits
    mask = (1 << bits) - 1
    packed = bytearray()
    rest = held = 0  # bits that wait for the rest of their byte
    for frame in frames:
        rest |= (int.from_bytes(frame, "little") & mask) << held
        held += bits
        packed += (rest & ((1 << (held // 8 * 8)) - 1)).to_bytes(held // 8, "little")
        rest >>= held // 8 * 8
        held %= 8
    if held:
        packed.append(rest)
    return bytes(packed)


def encapsulate(frames: Iterable[Buffer], lengths: Sequence[int] | None = None) -> Iterator[bytes]:
    """An encapsulated value, one fragment a frame, each padded to even length, with its delimiter (PS3.5 A.4).

    The Basic Offset Table is filled when `lengths` (bytes of each frame) or a sequence of frames is given and the
    offsets fit 32 bits; else it is empty, and `extended_offset_table` gives what the data set then needs.
    Yields pieces as the frames come; their sum is `encapsulated_length(lengths)`.
    """
    if lengths is None and isinstance(frames, Sequence):
        lengths = [len(frame) for frame in frames]
    offsets = _offsets(lengths) if lengths is not None else []
    table = b"" if not offsets or offsets[-1] > _MAX_OFFSET else struct.pack(f"<{len(offsets)}I", *offsets)
    yield _ITEM + struct.pack("<I", len(table)) + table
    for frame in frames:
        yield _ITEM + struct.pack("<I", len(frame) + len(frame) % 2)
        yield bytes(frame)
        if len(frame) % 2:
            yield b"\x00"
    yield _SEQUENCE_END + b"\x00\x00\x00\x00"


def encapsulated_length(lengths: Sequence[int]) -> int:
    """The bytes that `encapsulate` makes of frames of these lengths, table and delimiter included."""
    offsets = _offsets(lengths)
    table = 4 * len(offsets) if offsets and offsets[-1] <= _MAX_OFFSET else 0
    return 8 + table + sum(8 + size + size % 2 for size in lengths) + 8


def extended_offset_table(lengths: Sequence[int]) -> tuple[bytes, bytes] | None:
    """The values of (7FE0,0001) and (7FE0,0002), OV, for frames whose offsets exceed 32 bits; None if they do not."""
    offsets = _offsets(lengths)
    if not offsets or offsets[-1] <= _MAX_OFFSET:
        return None
    form = f"<{len(offsets)}Q"
    return struct.pack(form, *offsets), struct.pack(form, *lengths)


def _offsets(lengths: Sequence[int]) -> list[int]:
    offsets, at = [], 0
    for size in lengths:
        offsets.append(at)
        at += 8 + size + size % 2
    return offsets


def bare_codestream(data: Buffer) -> Extent:
    """Offset and length of the JPEG 2000 codestream in a frame: all of it, unless it comes in JP2 boxes (TS-09).

    Raises PixelFault 0xB100 for boxes without a codestream (ISO/IEC 15444-1 annex I).
    """
    if data[: len(_JP2_SIGNATURE)] != _JP2_SIGNATURE:
        return 0, len(data)
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1 and at + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        elif size == 0:
            size = len(data) - at
        if size < head:
            break
        if kind == b"jp2c":
            return at + head, min(size, len(data) - at) - head
        at += size
    raise PixelFault(TRANSCODING_EXCEPTION, "The frame is a JP2 file without a codestream.")
