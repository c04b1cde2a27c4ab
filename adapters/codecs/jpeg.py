"""JPEG, JPEG lossless, JPEG-LS and JPEG XL, by the libraries that `imagecodecs` ships."""

import inspect
import struct

import imagecodecs
import numpy as np

from gateway.domain.encapsulation import Buffer
from gateway.domain.errors import Corrupt
from gateway.domain.pixels import PixelFormat

from . import native
from .native import Samples

_FRAME_HEADERS = (frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
_LS_TAKES_BITS = "bitspersample" in inspect.signature(imagecodecs.jpegls_encode).parameters
"""Not in the imagecodecs for Python 3.11."""
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})


def _precision(data: Buffer, format: PixelFormat) -> int:
    """Bits a sample, by the frame header (ISO/IEC 10918-1 B.2.2). Raises Corrupt where it differs from the data set.

    The check comes before a decoder allocates what the header asks for. No lines (DNL) is left to the decoder.
    """
    try:
        if bytes(data[:2]) != b"\xff\xd8":
            raise Corrupt("The frame is no JPEG image: it does not begin with SOI.")
        at = 2
        while True:
            fill, marker = data[at], data[at + 1]
            if fill != 0xFF:
                raise Corrupt("The header of the JPEG image is damaged.")
            if marker in _FRAME_HEADERS:
                break
            if marker == 0xFF:
                at += 1
            elif marker in _STANDALONE:
                at += 2
            else:
                at += 2 + struct.unpack_from(">H", data, at + 2)[0]
        bits, rows, columns, components = struct.unpack_from(">BHHB", data, at + 4)
    except (struct.error, IndexError):
        raise Corrupt("The JPEG image ends within its header.") from None
    if rows not in (0, format.rows) or columns != format.columns or components != format.samples:
        raise Corrupt(
            f"The JPEG image is {rows} x {columns} x {components}, "
            f"the data set says {format.rows} x {format.columns} x {format.samples}."
        )
    return int(bits)


def decode_lossy(data: Buffer, format: PixelFormat) -> Samples:
    """JPEG baseline and extended, 8 or 12 bits; colour as coded, chroma brought to full size. Raises Corrupt."""
    _precision(data, format)
    as_coded = "YCBCR" if format.samples == 3 else None  # one space in and out: no conversion, whatever it is
    return np.asarray(imagecodecs.jpeg8_decode(data, colorspace=as_coded, outcolorspace=as_coded))


def decode_lossless(data: Buffer, format: PixelFormat) -> Samples:
    """JPEG lossless, any predictor. Raises Corrupt."""
    _precision(data, format)
    try:
        return np.asarray(imagecodecs.ljpeg_decode(data))
    except imagecodecs.LjpegError:  # it reads fewer layouts, the next one is slower
        return np.asarray(imagecodecs.jpegsof3_decode(data))


def decode_ls(data: Buffer, format: PixelFormat) -> Samples:
    """JPEG-LS. It carries no sign: signed samples are extended from the bits that its header names. Raises Corrupt."""
    bits = _precision(data, format)
    if b"\xff\xd9" not in bytes(data[-4:]):  # CharLS waits for ever for the rest of a scan that has no end
        raise Corrupt("The JPEG-LS image is cut short: it does not end with EOI.")
    samples = np.asarray(imagecodecs.jpegls_decode(data))
    return native.sign_extended(samples, bits) if format.signed else samples


def encode_ls(samples: Samples, format: PixelFormat) -> bytes:
    """A JPEG-LS image of 1.2.840.10008.1.2.4.80, colour interleaved by pixel (PS3.5 §8.2.3, A.4.3).

    JPEG-LS knows no sign. Cells with a sign bit in use are encoded whole: many readers reinterpret what they decode and
    extend nothing. The precision also never drops below the cell, so that readers give back Bits Allocated bits.
    """
    cells = np.ascontiguousarray(samples).view(f"u{samples.dtype.itemsize}")
    least, greatest = native.value_range(samples)
    bits = format.bits_stored - format.signed
    if least < 0 or greatest >= 1 << bits:
        bits = format.bits_allocated
    else:
        bits = max(format.bits_stored, 2 if format.bits_allocated == 8 else 9)
    if _LS_TAKES_BITS:
        return bytes(imagecodecs.jpegls_encode(cells, level=0, bitspersample=bits))
    return bytes(imagecodecs.jpegls_encode(cells, level=0))  # of the whole cell


def decode_xl(data: Buffer, format: PixelFormat) -> Samples:
    """JPEG XL, orientation as coded."""
    return np.asarray(imagecodecs.jpegxl_decode(data, keeporientation=True))
