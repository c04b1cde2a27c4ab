"""Native samples: their cells, what is known of a frame, and byte order."""

from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from gateway.domain.encapsulation import Buffer
from gateway.domain.errors import Corrupt
from gateway.domain.pixels import FrameFacts, PixelFormat

Samples = NDArray[Any]


def cell(format: PixelFormat) -> np.dtype[Any]:
    """The little-endian integer of Bits Allocated bits that holds one sample; a byte for one-bit samples."""
    return np.dtype(f"<{'i' if format.signed else 'u'}{max(format.bits_allocated // 8, 1)}")


def to_samples(native: Buffer, format: PixelFormat) -> Samples:
    """A view of one native frame: (rows, columns) or, by pixel, (rows, columns, samples). Raises Corrupt."""
    if len(native) != format.frame_bytes:
        raise Corrupt(f"A native frame has {len(native)} bytes, its attributes say {format.frame_bytes}.")
    flat = np.frombuffer(native, cell(format))
    if format.samples == 1:
        return flat.reshape(format.rows, format.columns)
    if format.planar:
        return flat.reshape(format.samples, format.rows, format.columns).transpose(1, 2, 0)
    return flat.reshape(format.rows, format.columns, format.samples)


def to_native(samples: Samples, format: PixelFormat) -> bytes:
    """Native bytes of decoded samples, colour by pixel; one-bit samples packed. Raises Corrupt for a misfit."""
    shape = (format.rows, format.columns) if format.samples == 1 else (format.rows, format.columns, format.samples)
    if samples.shape[:2] != shape[:2] or samples.size != format.rows * format.columns * format.samples:
        found, told = (" x ".join(map(str, each)) for each in (samples.shape, shape))
        raise Corrupt(f"The frame decodes to {found} samples, the data set says {told}.")
    if samples.dtype.kind not in "iu":
        raise Corrupt(f"The frame decodes to samples of type {samples.dtype}, which are no integers.")
    if format.bits_allocated == 1:
        return np.packbits(samples.ravel() != 0, bitorder="little").tobytes()
    target = cell(format)
    if samples.dtype.itemsize == target.itemsize:
        return np.ascontiguousarray(samples).view(target).tobytes()
    if samples.dtype.itemsize > target.itemsize:
        limits = np.iinfo(target)
        if samples.size and not (limits.min <= samples.min() and samples.max() <= limits.max):
            raise Corrupt(f"The frame decodes to values beyond the {format.bits_allocated} bits that are allocated.")
    return samples.astype(target).tobytes()


def sign_extended(samples: Samples, bits: int) -> Samples:
    """The low `bits` bits of each sample as two's complement, in signed cells of the same width."""
    signed = samples.view(samples.dtype.str.replace("u", "i"))
    shift = samples.dtype.itemsize * 8 - bits
    return signed if shift <= 0 else (signed << shift) >> shift


def by_pixel(native: Buffer, format: PixelFormat) -> Buffer:
    """The frame with its colour by pixel, whatever its Planar Configuration."""
    if format.samples == 1 or not format.planar or format.photometric == "YBR_FULL_422":
        return native
    flat = np.frombuffer(native, np.dtype(f"V{max(format.bits_allocated // 8, 1)}"))
    return flat.reshape(format.samples, -1).T.tobytes()


def value_range(samples: Samples) -> tuple[int, int]:
    """Least and greatest sample."""
    return (int(samples.min()), int(samples.max())) if samples.size else (0, 0)


def exceeds_bits_stored(least: int, greatest: int, format: PixelFormat) -> bool:
    """Whether bits above Bits Stored are in use: an overlay, another High Bit, or a sign that is not extended."""
    if format.signed:
        return least < -(1 << (format.bits_stored - 1)) or greatest >= 1 << (format.bits_stored - 1)
    return greatest >= 1 << format.bits_stored


def bits_in_use(samples: Samples, format: PixelFormat) -> int:
    """How many bits of a cell an encoder must carry: Bits Stored, or Bits Allocated where a sample exceeds it.

    Lossless is said of the cell, not of what Bits Stored claims.
    """
    if format.bits_stored < format.bits_allocated and exceeds_bits_stored(*value_range(samples), format):
        return format.bits_allocated
    return format.bits_stored


def in_cells_of(samples: Samples, bits: int) -> Samples:
    """The samples, contiguous, in the narrowest cells of 8, 16 or 32 bits that hold so many bits."""
    width = 1 if bits <= 8 else 2 if bits <= 16 else 4
    return np.ascontiguousarray(samples, f"{samples.dtype.kind}{width}")


def facts(native: Buffer, format: PixelFormat) -> FrameFacts:
    """CRC-32, least and greatest value of one native little-endian frame (healthimaging.md 6.5).

    The CRC is that of the samples by pixel, as decoding the stored frame gives them. Where bits above Bits Stored
    are in use, the values are those of the low Bits Stored bits, sign-extended if Pixel Representation says so.
    """
    pixels = by_pixel(native, format)
    crc = isal_zlib.crc32(pixels)
    if format.floating or format.bits_allocated not in (8, 16, 32, 64):
        return FrameFacts(crc, None, None, len(native))
    samples = np.frombuffer(native, cell(format))
    least, greatest = value_range(samples)
    if 0 < format.bits_stored < format.bits_allocated and exceeds_bits_stored(least, greatest, format):
        if format.signed:
            samples = sign_extended(samples, format.bits_stored)
        else:
            samples = samples & samples.dtype.type((1 << format.bits_stored) - 1)
        least, greatest = value_range(samples)
    return FrameFacts(crc, least, greatest, len(native))


def little_endian(value: Buffer, format: PixelFormat, words: bool) -> bytes:
    """A big-endian Pixel Data value (all frames) with its bytes swapped, in cells of Bits Allocated.

    Cells of up to 8 bits are swapped in pairs when the value came as `words` (OW), and not when as bytes (OB): a pair
    may span two frames, hence the whole value at once (PS3.5 §7.3, 8.1.1; WADO-07).
    """
    width = format.bits_allocated // 8 if format.bits_allocated > 8 else 2 if words else 1
    whole = len(value) // width * width
    cells = np.frombuffer(value, np.uint8, whole).reshape(-1, width)
    return cells[:, ::-1].tobytes() + bytes(value[whole:])
