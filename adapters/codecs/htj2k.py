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
from gateway.domain.pixels import THUMBNAIL_SIDE, PixelFormat

from . import codestream, native
from .native import Samples

_TAKES_BITS = "bitspersample" in inspect.signature(imagecodecs.htj2k_encode).parameters
_SIZ_DEPTHS = 42
_END = b"\xff\xd9"
_HEADROOM_BITS = 2
"""By so many bits the low-pass band of a reversible transform may exceed its source, at most."""


def encode(samples: Samples, format: PixelFormat) -> bytes:
    """A codestream of 1.2.840.10008.1.2.4.202 with exactly Bits Stored bits a sample, RGB by its reversible transform.

    `samples` are (rows, columns[, samples]) in cells of 8, 16 or 32 bits. If one exceeds Bits Stored, all bits that
    are allocated are encoded. The codestream is legal in 1.2.840.10008.1.2.4.201 too. Source: PS3.5 §10.18.
    """
    bits = native.bits_in_use(samples, format)
    options: dict[str, Any] = {
        "reversible": True,
        "tlm": True,
        "tilepart": 1,  # one tile-part a resolution: what a thumbnail needs is a prefix
        "resolutions": max(1, math.ceil(math.log2(max(format.rows, format.columns) / 64))),
    }
    if samples.ndim == 3:
        options |= {"rgb": format.photometric == "RGB", "planar": False}
    samples = native.in_cells_of(samples, bits)
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


def reduced(data: Buffer, format: PixelFormat, side: int) -> Samples:
    """The lowest resolution whose longer side has at least `side` pixels: (rows, columns[, samples]).

    `data` is a whole frame, or its first `thumbnail_prefix` bytes, which give no more than they hold. A frame with bits
    in use above Bits Stored is decoded whole: the mean of such cells is the mean of nothing. Raises Corrupt.
    """
    stream = codestream.parse(data)
    codestream.check(stream, format)
    is_whole = bytes(data[-2:]) == _END
    whole = bytes(data) if is_whole else bytes(data) + _END
    resolutions = len(codestream.tile_parts(whole, stream)) if stream.tiles == 1 and stream.rpcl else 0
    held = stream.levels if is_whole else resolutions - 1
    if not stream.reversible or not stream.high_throughput or not 0 <= held <= stream.levels:
        raise Corrupt("The frame does not hold a tile-part for each resolution.")
    skipped = 0
    shows_itself = stream.bits <= format.bits_stored and stream.signed == format.signed
    if stream.tiles == 1 and shows_itself:
        while skipped < stream.levels and -(-max(stream.rows, stream.columns) >> skipped + 1) >= side:
            skipped += 1
    skipped = max(skipped, stream.levels - held)
    if not skipped:
        return decode(whole, format)
    if not shows_itself:
        raise Corrupt("The low resolutions of the frame do not show it.")
    # The band exceeds the range of the samples at sharp edges, and OpenJPH would wrap there: it is told of more bits,
    # and of a sign, so that it does not shift the level, which hangs on the number of bits.
    roomy = bytearray(whole)
    for component in range(stream.components):
        roomy[_SIZ_DEPTHS + 3 * component] = min(stream.bits + _HEADROOM_BITS, 32) - 1 | 0x80
    samples = np.asarray(imagecodecs.htj2k_decode(bytes(roomy), planar=False, skipres=skipped)).astype(np.int64)
    half = 1 << stream.bits - 1
    limits = (-half, half - 1) if stream.signed else (0, 2 * half - 1)
    return (samples + (0 if stream.signed else half)).clip(*limits).astype(native.cell(format))
