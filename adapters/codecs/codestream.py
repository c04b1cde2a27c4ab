"""What a JPEG 2000 or HTJ2K codestream says of itself, checked before any decoder sees it. Pure Python, some µs.

OpenJPH hangs on some headers and allocates what they ask for; nothing that fails here reaches it
(ISO/IEC 15444-1 annex A, 15444-15 annex A).
"""

import struct
from dataclasses import dataclass

from gateway.domain.encapsulation import Buffer
from gateway.domain.errors import Corrupt
from gateway.domain.pixels import PixelFormat

from . import native
from .native import Samples

SOC, SIZ, COD, TLM, SOT, SOD, EOC = 0xFF4F, 0xFF51, 0xFF52, 0xFF55, 0xFF90, 0xFF93, 0xFFD9
CAP, COC, QCD, QCC, RGN, POC, PPM, PLM, PRF, CPF, CRG, COM = (
    0xFF50, 0xFF53, 0xFF5C, 0xFF5D, 0xFF5E, 0xFF5F, 0xFF60, 0xFF57, 0xFF56, 0xFF59, 0xFF63, 0xFF64,
)  # fmt: skip
_MAIN_HEADER = frozenset({CAP, SIZ, COD, TLM, COC, QCD, QCC, RGN, POC, PPM, PLM, PRF, CPF, CRG, COM})
_PART_2 = frozenset(range(0xFF70, 0xFF7A))
"""Multi-component and other extensions (ISO/IEC 15444-2 annex A)."""
_RPCL = 2
_BASE_SIDE = 64
"""Width or height of the lowest resolution in HTJ2K with RPCL options, at most (PS3.5 §10.18; TS-10)."""


@dataclass(frozen=True, slots=True)
class TilePart:
    """Where a tile-part lies, in bytes from the start of the codestream."""

    tile: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Codestream:
    """The main header, as far as a decision hangs on it."""

    rows: int
    columns: int
    components: int
    bits: int
    signed: bool
    tiles: int
    levels: int
    """Decompositions: resolution r of 0..levels has 1/2^(levels-r) of the size."""
    reversible: bool
    transformed: bool
    """A component transform is in use (RCT or ICT)."""
    rpcl: bool
    has_tlm: bool
    high_throughput: bool
    header_length: int
    """Where the first tile-part begins."""

    @property
    def is_lossless_rpcl(self) -> bool:
        """Legal in 1.2.840.10008.1.2.4.202: reversible, RPCL, TLM, base width or height of at most 64 (TS-10)."""
        base = -(-min(self.rows, self.columns) >> self.levels)
        return self.high_throughput and self.reversible and self.rpcl and self.has_tlm and base <= _BASE_SIDE


def parse(data: Buffer, part_2: bool = False) -> Codestream:
    """Reads the main header, with the markers of part 2 too if so told. Raises Corrupt for nonsense."""
    try:
        return _parse(data, _MAIN_HEADER | _PART_2 if part_2 else _MAIN_HEADER)
    except (struct.error, IndexError):
        raise Corrupt("The codestream ends within its main header.") from None


def _parse(data: Buffer, known: frozenset[int]) -> Codestream:
    if bytes(data[:4]) != b"\xff\x4f\xff\x51":
        raise Corrupt("The frame is no JPEG 2000 codestream: it does not begin with SOC and SIZ.")
    size, _, width, height, left, top, tile_width, tile_height, tile_left, tile_top, components = struct.unpack_from(
        ">HHIIIIIIIIH", data, 4
    )
    if size != 38 + 3 * components or not components:
        raise Corrupt("The SIZ segment of the codestream contradicts itself.")
    if left or top or tile_left or tile_top or not tile_width or not tile_height or not width or not height:
        raise Corrupt("The codestream has an image or tile offset, or an empty image or tile.")
    depths = bytes(data[42 : 42 + 3 * components])
    if depths != depths[:1] + b"\x01\x01" + depths[3:] or depths != depths[:3] * components:
        raise Corrupt("The components of the codestream differ, or are subsampled.")
    tiles = -(-width // tile_width) * -(-height // tile_height)
    if tiles > 65535:
        raise Corrupt("The codestream has more than 65,535 tiles.")
    cod: tuple[int, ...] | None = None
    has_tlm = False
    at = 4 + size
    while True:
        (marker,) = struct.unpack_from(">H", data, at)
        if marker == SOT:
            break
        if marker not in known:
            raise Corrupt(f"The main header of the codestream holds an unknown marker, {marker:04X}.")
        (length,) = struct.unpack_from(">H", data, at + 2)
        if length < 2:
            raise Corrupt("A segment of the codestream's main header has no length.")
        if marker == COD:
            cod = struct.unpack_from(">BBHBBBBBB", data, at + 4)
        has_tlm |= marker == TLM
        at += 2 + length
    if cod is None:
        raise Corrupt("The codestream has no COD segment.")
    style, progression, layers, transform, levels, block_width, block_height, block_style, wavelet = cod
    if (
        style > 7
        or progression > 4
        or not layers
        or transform > 1
        or levels > 32
        or block_width > 8
        or block_height > 8
        or block_width + block_height > 8
        or wavelet > 1
    ):
        raise Corrupt("The COD segment of the codestream holds values that do not exist.")
    if transform and components < 3:
        raise Corrupt("The codestream transforms colour that it does not have.")
    return Codestream(
        rows=height,
        columns=width,
        components=components,
        bits=(depths[0] & 0x7F) + 1,
        signed=bool(depths[0] & 0x80),
        tiles=tiles,
        levels=levels,
        reversible=wavelet == 1,
        transformed=bool(transform),
        rpcl=progression == _RPCL,
        has_tlm=has_tlm,
        high_throughput=bool(block_style & 0x40),
        header_length=at,
    )


def check(stream: Codestream, format: PixelFormat) -> None:
    """Compares with the data set. Raises Corrupt where Rows, Columns, Samples per Pixel or the depth differ."""
    if (stream.rows, stream.columns, stream.components) != (format.rows, format.columns, format.samples):
        raise Corrupt(
            f"The codestream is {stream.rows} x {stream.columns} x {stream.components}, "
            f"the data set says {format.rows} x {format.columns} x {format.samples}."
        )
    if stream.bits > max(format.bits_allocated, 8):
        raise Corrupt(f"The codestream has {stream.bits} bits a sample, Bits Allocated is {format.bits_allocated}.")


def with_sign(samples: Samples, stream: Codestream, format: PixelFormat) -> Samples:
    """The samples with the sign that Pixel Representation says, where SIZ says otherwise: the same bits, reread."""
    if stream.signed == format.signed:
        return samples
    if format.signed:
        return native.sign_extended(samples, stream.bits)
    unsigned: Samples = samples.view(samples.dtype.str.replace("i", "u"))
    unsigned = unsigned & unsigned.dtype.type((1 << stream.bits) - 1)
    return unsigned


def tile_parts(data: Buffer, stream: Codestream) -> list[TilePart]:
    """The chain of tile-parts. Raises Corrupt unless it ends exactly at EOC, the end but for padding."""
    parts: list[TilePart] = []
    at, end = stream.header_length, len(data)
    try:
        while True:
            (marker,) = struct.unpack_from(">H", data, at)
            if marker == EOC:
                break
            size, tile, length = struct.unpack_from(">HHI", data, at + 2)
            if length == 0:  # to the end of the codestream
                length = end - 2 - at - (data[end - 1] == 0)
            if marker != SOT or size != 10 or tile >= stream.tiles or length < 14 or at + length > end - 2:
                raise Corrupt("The tile-parts of the codestream do not follow each other.")
            parts.append(TilePart(tile, at, length))
            at += length
    except struct.error:
        raise Corrupt("The codestream is cut short.") from None
    if {part.tile for part in parts} != set(range(stream.tiles)) or bytes(data[at + 2 :]).strip(b"\x00"):
        raise Corrupt("The codestream lacks tiles, or something follows its end.")
    return parts
