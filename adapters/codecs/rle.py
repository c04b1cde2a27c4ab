"""RLE Lossless: PackBits over the byte planes of a frame (PS3.5 annex G), and frames deflated one by one (A.4.12)."""

import struct
import zlib

import imagecodecs
import numpy as np

from gateway.domain.encapsulation import Buffer
from gateway.domain.errors import Corrupt
from gateway.domain.pixels import PixelFormat

from . import native
from .native import Samples


def encode(samples: Samples, format: PixelFormat) -> bytes:
    """An RLE frame: a segment for each byte of each sample, the most significant first; no run crosses a row (G.3)."""
    width = samples.dtype.itemsize
    little = np.ascontiguousarray(samples, samples.dtype.newbyteorder("<")).view(np.uint8)
    # (rows, columns, samples, bytes) -> a plane for each sample and byte
    planes = little.reshape(format.rows, format.columns, format.samples, width)[..., ::-1].transpose(2, 3, 0, 1).copy()
    segments = []
    for plane in planes.reshape(-1, format.rows, format.columns):
        segment = bytes(imagecodecs.packbits_encode(plane))
        segments.append(segment + b"\0" * (len(segment) % 2))
    offsets = [64]
    for segment in segments[:-1]:
        offsets.append(offsets[-1] + len(segment))
    header = struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments)))
    return b"".join((header, *segments))


def decode(data: Buffer, format: PixelFormat) -> Samples:
    """Samples of an RLE frame. The planes go from the most significant byte on, colour by plane. Raises Corrupt."""
    width = max(format.bits_allocated // 8, 1)
    pixels = format.rows * format.columns
    size = (pixels * format.bits_allocated + 7) // 8 if format.bits_allocated < 8 else pixels
    wanted = width * format.samples
    if len(data) < 64:
        raise Corrupt("The RLE frame is shorter than its header.")
    count, *offsets = struct.unpack_from("<16I", data)
    if count != wanted:
        raise Corrupt(f"The RLE frame has {count} segments, its attributes call for {wanted}.")
    ends = [*offsets[1:count], len(data)]
    if any(not 64 <= start <= end <= len(data) for start, end in zip(offsets[:count], ends, strict=True)):
        raise Corrupt("The segments of the RLE frame lie outside of it.")
    planes = np.empty((count, size), np.uint8)
    for plane, start, end in zip(planes, offsets, ends, strict=False):
        _unpack(memoryview(data)[start:end], plane)
    if format.bits_allocated < 8:
        return np.unpackbits(planes[0], count=pixels, bitorder="little").reshape(format.rows, format.columns)
    little = planes.reshape(format.samples, width, pixels)[:, ::-1].transpose(2, 0, 1)
    samples = np.ascontiguousarray(little).view(native.cell(format))
    shape = (format.rows, format.columns) if format.samples == 1 else (format.rows, format.columns, format.samples)
    return samples.reshape(shape)


def _unpack(segment: memoryview, plane: Samples) -> None:
    """Fills a plane from its PackBits segment, which may end in padding, and never writes beyond it."""
    unpacked = imagecodecs.packbits_decode(segment, out=plane.data)
    if len(unpacked) < len(plane):
        raise Corrupt(f"A segment of the RLE frame unpacks to {len(unpacked)} bytes, {len(plane)} are needed.")


def inflate(data: Buffer, format: PixelFormat) -> Samples:
    """Samples of a deflated frame. Raises Corrupt; never unpacks more than the frame may hold."""
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = engine.decompress(data, format.frame_bytes)
    except zlib.error:
        raise Corrupt("The deflated frame is damaged.") from None
    if len(plain) < format.frame_bytes:
        raise Corrupt(f"The deflated frame unpacks to {len(plain)} bytes, {format.frame_bytes} are needed.")
    if format.bits_allocated == 1:
        bits = np.unpackbits(np.frombuffer(plain, np.uint8), count=format.frame_bits, bitorder="little")
        return bits.reshape(format.rows, format.columns)
    return native.to_samples(plain, format)
