"""High-Throughput JPEG 2000 by OpenJPH, as `imagecodecs` ships it.

Two versions of imagecodecs are in use: the one for Python 3.11 can neither be told the bits of a sample nor the
progression order (its default is RPCL), and hangs on damaged headers; `codestream.parse` keeps those away.
"""

import inspect
import math
from typing import Any

import imagecodecs
import numpy as np

from gateway.domain.encapsulation import Buffer, bare_codestream
from gateway.domain.errors import Corrupt
from gateway.domain.pixels import PixelFormat

from . import codestream, native
from .native import Samples

_TAKES_BITS = "bitspersample" in inspect.signature(imagecodecs.htj2k_encode).parameters
_SIZ_DEPTHS = 42
_END = b"\xff\xd9"
THUMBNAIL_SIDE = 128
"""A thumbnail prefix gives an image whose longer side has at least so many pixels."""


def encode(samples: Samples, format: PixelFormat) -> bytes:
    """A codestream of 1.2.840.10008.1.2.4.202 with exactly Bits Stored bits a sample, RGB by its reversible transform.

    `samples` are (rows, columns[, samples]) in cells of 8, 16 or 32 bits. If one exceeds Bits Stored, all bits that
    are allocated are encoded: lossless is said of the cell, not of what Bits Stored claims. Source: PS3.5 §10.18.
    """
    bits = format.bits_stored
    if bits < format.bits_allocated and native.exceeds_bits_stored(*native.value_range(samples), format):
        bits = format.bits_allocated
    options: dict[str, Any] = {
        "reversible": True,
        "tlm": True,
        "tilepart": 1,  # one tile-part a resolution: what a thumbnail needs is a prefix
        "resolutions": max(1, math.ceil(math.log2(max(format.rows, format.columns) / 64))),
    }
    if samples.ndim == 3:
        options |= {"rgb": format.photometric == "RGB", "planar": False}
    width = 1 if bits <= 8 else 2 if bits <= 16 else 4
    samples = np.ascontiguousarray(samples, f"{samples.dtype.kind}{width}")
    if _TAKES_BITS:
        return bytes(imagecodecs.htj2k_encode(samples, bitspersample=bits, prog_order="RPCL", **options))
    # Signed samples are encoded without a level shift, so that any depth may stand in SIZ: shift by hand and write it.
    if not format.signed:
        half = samples.dtype.type(1 << (bits - 1))
        samples = (samples - half).view(samples.dtype.str.replace("u", "i"))
    stream = bytearray(imagecodecs.htj2k_encode(samples, **options))
    for component in range(format.samples):
        stream[_SIZ_DEPTHS + 3 * component] = bits - 1 | (0x80 if format.signed else 0)
    return bytes(stream)


def decode(data: Buffer, format: PixelFormat) -> Samples:
    """Samples of an HTJ2K frame, colour transforms undone. Raises Corrupt for what the pre-check refuses.

    Irreversible codestreams go to OpenJPEG: OpenJPH wraps values that overshoot.
    """
    data, stream, end = _checked(data, format)
    decoder = imagecodecs.htj2k_decode if stream.reversible else imagecodecs.jpeg2k_decode
    return codestream.with_sign(np.asarray(decoder(data[:end], planar=False)), stream, format)


def _checked(data: Buffer, format: PixelFormat) -> tuple[Buffer, codestream.Codestream, int]:
    """The bare codestream, its header and where it ends. Raises Corrupt for what must not reach a decoder."""
    at, length = bare_codestream(data)
    data = memoryview(data)[at : at + length]
    stream = codestream.parse(data)
    codestream.check(stream, format)
    if not stream.high_throughput:
        raise Corrupt("The codestream is JPEG 2000, not HTJ2K as its transfer syntax says.")
    last = codestream.tile_parts(data, stream)[-1]
    return data, stream, last.offset + last.length + len(_END)


def canonical(data: Buffer, format: PixelFormat) -> bytes | None:
    """The bare codestream of a received frame that can be stored as it is, without padding; else None.

    That is: legal in 1.2.840.10008.1.2.4.202, of the sign that the data set says, RGB (and nothing else) transformed.
    """
    data, stream, end = _checked(data, format)
    transformed = format.samples == 3 and format.photometric == "RGB"
    if stream.is_lossless_rpcl and stream.signed == format.signed and stream.transformed == transformed:
        return bytes(data[:end])
    return None


def thumbnail_prefix(data: Buffer) -> int:
    """How many bytes hold the resolutions up to THUMBNAIL_SIDE, 0 where a prefix is of no use.

    Needs one tile with a tile-part for each resolution, in order: what `encode` writes.
    """
    stream = codestream.parse(data)
    parts = codestream.tile_parts(data, stream)
    if stream.tiles != 1 or not stream.rpcl or len(parts) != stream.levels + 1:
        return 0
    side = max(stream.rows, stream.columns)
    for part, level in zip(parts[:-1], range(stream.levels, 0, -1), strict=True):
        if -(-side >> level) >= THUMBNAIL_SIDE:
            return part.offset + part.length
    return 0


def preview(prefix: Buffer, format: PixelFormat) -> Samples:
    """The low-resolution image that a prefix of `thumbnail_prefix` bytes holds: (rows, columns[, samples])."""
    stream = codestream.parse(prefix)
    codestream.check(stream, format)
    whole = bytes(prefix) + _END
    resolutions = len(codestream.tile_parts(whole, stream))
    skipped = stream.levels + 1 - resolutions
    if skipped < 0 or stream.tiles != 1 or not stream.reversible:
        raise Corrupt("The prefix does not hold a tile-part for each resolution.")
    samples = np.asarray(imagecodecs.htj2k_decode(whole, planar=False, skipres=skipped))
    return codestream.with_sign(samples, stream, format)
