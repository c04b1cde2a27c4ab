"""What the header of a JPEG, JPEG-LS, JPEG 2000 or HTJ2K image tells: transfer syntax and Image Pixel attributes
(ISO/IEC 10918-1 B.2, 14495-1 C.2, 15444-1 A.5; PS3.5 §8.2)."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .encapsulation import PixelFault, bare_codestream
from .errors import InvalidInput
from .pixels import PixelFormat
from .syntaxes import (
    HTJ2K,
    HTJ2K_LOSSLESS,
    JPEG_2000,
    JPEG_2000_LOSSLESS,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS,
    JPEG_LS_LOSSLESS,
)

HEADER_BYTES: Final = 1 << 20
"""Of an image that are looked at: what stands before its samples may hold a colour profile."""
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xD8)})
_LOSSY: Final = {
    JPEG_BASELINE: "ISO_10918_1",
    JPEG_EXTENDED: "ISO_10918_1",
    JPEG_LS: "ISO_14495_1",
    JPEG_2000: "ISO_15444_1",
    HTJ2K: "ISO_15444_15",
}


@dataclass(frozen=True, slots=True)
class CodedImage:
    """The header of one coded image."""

    syntax: str
    rows: int
    columns: int
    samples: int
    bits: int
    signed: bool
    photometric: str

    def attributes(self) -> Mapping[str, Any]:
        """The Image Pixel attributes in DICOM JSON, and those of lossy compression where it is such."""
        numbers = {
            "00280002": self.samples,
            "00280010": self.rows,
            "00280011": self.columns,
            "00280100": (self.bits + 7) // 8 * 8,
            "00280101": self.bits,
            "00280102": self.bits - 1,
            "00280103": int(self.signed),
        }
        told: dict[str, Any] = {tag: {"vr": "US", "Value": [number]} for tag, number in numbers.items()}
        told["00280004"] = {"vr": "CS", "Value": [self.photometric]}
        if self.samples > 1:
            told["00280006"] = {"vr": "US", "Value": [0]}
        if method := _LOSSY.get(self.syntax):
            told["00282110"] = {"vr": "CS", "Value": ["01"]}
            told["00282114"] = {"vr": "CS", "Value": [method]}
        return told


def read_header(data: bytes) -> CodedImage:
    """What the image that begins so is. Raises InvalidInput for another kind of image, and for a damaged header."""
    try:
        start = bare_codestream(data)[0]
        if data[start : start + 4] == b"\xff\x4f\xff\x51":
            return _jpeg_2000(data, start)
        if data[:3] == b"\xff\xd8\xff":
            return _jpeg(data)
    except (struct.error, IndexError, PixelFault):
        raise InvalidInput("The header of the image ends too early.") from None
    raise InvalidInput("The bulk data of Pixel Data is no JPEG, JPEG-LS, JPEG 2000 or HTJ2K image.")


def read_picture(data: bytes) -> PixelFormat:
    """How the samples of a PNG or GIF image lie once it is decoded. Raises InvalidInput (PNG 11.2.2, GIF89a 18..20)."""
    try:
        if data[:16] == b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR":
            columns, rows, depth, colour = struct.unpack_from(">IIBB", data, 16)
            bits = 16 if depth == 16 else 8
            grey = colour in (0, 4)
            kind = "MONOCHROME2" if grey else "RGB"
            return PixelFormat(rows, columns, 1 if grey else 3, bits, bits, False, kind)
        if data[:6] in (b"GIF87a", b"GIF89a"):
            columns, rows = struct.unpack_from("<HH", data, 6)
            return PixelFormat(rows, columns, 3, 8, 8, False, "RGB", frames=_gif_images(data))
    except (struct.error, IndexError):
        raise InvalidInput("The header of the image ends too early.") from None
    raise InvalidInput("The bulk data of Pixel Data is no PNG and no GIF image.")


def _gif_images(data: bytes) -> int:
    count, at = 0, 13 + _gif_table(data[10])
    while data[at] != 0x3B:
        if data[at] == 0x2C:
            count += 1
            at += 10 + _gif_table(data[at + 9]) + 1
        elif data[at] == 0x21:
            at += 2
        else:
            raise InvalidInput("The GIF image is damaged.")
        while data[at]:
            at += data[at] + 1
        at += 1
    return count


def _gif_table(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def picture_attributes(format: PixelFormat) -> Mapping[str, Any]:
    """The Image Pixel attributes of native samples, in DICOM JSON."""
    kind = CodedImage("", format.rows, format.columns, format.samples, format.bits_stored, False, format.photometric)
    frames = {"00280008": {"vr": "IS", "Value": [str(format.frames)]}} if format.frames > 1 else {}
    return {**frames, **kind.attributes()}


def _jpeg(data: bytes) -> CodedImage:
    at, frame, shape, ids, adobe = 2, 0, (0, 0, 0, 0), b"", -1
    while True:
        if data[at] != 0xFF:
            raise InvalidInput("The header of the JPEG image is damaged.")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _STANDALONE:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in _FRAMES:
            frame = marker
            shape = struct.unpack_from(">BHHB", data, at + 4)
            ids = data[at + 10 : at + 10 + 3 * shape[3] : 3]
            sampling = data[at + 11 : at + 11 + 3 * shape[3] : 3]
        elif marker == 0xEE and data[at + 4 : at + 9] == b"Adobe":
            adobe = data[at + 15]
        elif marker == 0xDA:
            break
        at += 2 + length
    if not frame:
        raise InvalidInput("The JPEG image has a scan before its frame header.")
    # After the component selectors of the scan: the predictor of lossless JPEG, NEAR of JPEG-LS.
    parameter = data[at + 5 + 2 * data[at + 4]]
    syntaxes = {
        0xC0: JPEG_BASELINE,
        0xC1: JPEG_EXTENDED,
        0xC3: JPEG_LOSSLESS_SV1 if parameter == 1 else JPEG_LOSSLESS,
        0xF7: JPEG_LS if parameter else JPEG_LS_LOSSLESS,
    }
    if frame not in syntaxes:
        raise InvalidInput("The JPEG image is coded in a way that DICOM has no transfer syntax for.")
    bits, rows, columns, samples = shape
    photometric = "MONOCHROME2"
    if samples > 1:
        converted = frame in (0xC0, 0xC1) and adobe != 0 and ids != b"RGB"
        halved = converted and sampling[0] == 0x21
        photometric = ("YBR_FULL_422" if halved else "YBR_FULL") if converted else "RGB"
    return CodedImage(syntaxes[frame], rows, columns, samples, bits, False, photometric)


def _jpeg_2000(data: bytes, start: int) -> CodedImage:
    capabilities, right, bottom, left, top = struct.unpack_from(">HIIII", data, start + 6)
    (components,) = struct.unpack_from(">H", data, start + 40)
    depth = data[start + 42]
    at = start + 4 + struct.unpack_from(">H", data, start + 4)[0]
    while data[at : at + 2] != b"\xff\x52":
        if data[at] != 0xFF or data[at + 1] == 0x90:
            raise InvalidInput("The codestream has no COD segment.")
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    transformed, reversible = data[at + 8] == 1, data[at + 13] == 1
    if capabilities & 0x4000:
        syntax = HTJ2K_LOSSLESS if reversible else HTJ2K
    else:
        syntax = JPEG_2000_LOSSLESS if reversible else JPEG_2000
    photometric = "MONOCHROME2"
    if components > 1:
        photometric = ("YBR_RCT" if reversible else "YBR_ICT") if transformed else "RGB"
    bits, signed = (depth & 0x7F) + 1, bool(depth & 0x80)
    return CodedImage(syntax, bottom - top, right - left, components, bits, signed, photometric)
