"""Which codec serves which transfer syntax; says what is missing and why."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points

import imagecodecs

from gateway.domain import syntaxes
from gateway.domain.encapsulation import Buffer, PixelFault
from gateway.domain.errors import Corrupt, GatewayError, NotAcceptable
from gateway.domain.pixels import PixelFormat
from gateway.domain.syntaxes import Family

from . import htj2k, jpeg, jpeg2000, native, pictures, rle
from .native import Samples

Decoder = Callable[[Buffer, PixelFormat], Samples]
"""One frame to integer samples, (rows, columns[, samples]). May raise anything; it is told as Corrupt."""
Encoder = Callable[[Samples, PixelFormat], bytes]
"""Samples, (rows, columns[, samples]), to one frame, without loss."""
PlugIn = Callable[[dict[str, Decoder], dict[str, Encoder]], None]
"""What an entry point of the group PLUG_INS names: it adds to, or replaces in, the tables keyed by transfer syntax."""

PLUG_INS = "imageset_gateway.codecs"
MAX_FRAME_BYTES = 1 << 31


def _decoders() -> dict[str, Decoder]:
    table: dict[str, Decoder] = {
        syntaxes.HTJ2K_LOSSLESS: htj2k.decode,
        syntaxes.HTJ2K_LOSSLESS_RPCL: htj2k.decode,
        syntaxes.HTJ2K: htj2k.decode,
        syntaxes.JPEG_2000_LOSSLESS: jpeg2000.decode,
        syntaxes.JPEG_2000: jpeg2000.decode,
        syntaxes.JPEG_2000_MC_LOSSLESS: jpeg2000.decode,
        syntaxes.JPEG_2000_MC: jpeg2000.decode,
        syntaxes.JPEG_BASELINE: jpeg.decode_lossy,
        syntaxes.JPEG_EXTENDED: jpeg.decode_lossy,
        syntaxes.JPEG_LOSSLESS: jpeg.decode_lossless,
        syntaxes.JPEG_LOSSLESS_SV1: jpeg.decode_lossless,
        syntaxes.JPEG_LS_LOSSLESS: jpeg.decode_ls,
        syntaxes.JPEG_LS: jpeg.decode_ls,
        syntaxes.RLE: rle.decode,
        syntaxes.DEFLATED_FRAMES: rle.inflate,
    }
    # Of no transfer syntax: by their media types.
    table |= {"image/png": pictures.decode_png, "image/gif": pictures.decode_gif}
    if imagecodecs.JPEGXL.available:
        xl = (syntaxes.JPEG_XL_LOSSLESS, syntaxes.JPEG_XL_JPEG, syntaxes.JPEG_XL)
        table |= dict.fromkeys(xl, jpeg.decode_xl)
    return table


def _encoders() -> dict[str, Encoder]:
    return {
        syntaxes.HTJ2K_LOSSLESS_RPCL: htj2k.encode,
        syntaxes.HTJ2K_LOSSLESS: htj2k.encode,
        syntaxes.JPEG_2000_LOSSLESS: jpeg2000.encode,
        syntaxes.JPEG_LS_LOSSLESS: jpeg.encode_ls,
        syntaxes.RLE: rle.encode,
    }


class Codecs:
    """Encodes and decodes single frames in the calling thread (`ports.Codec`); the libraries release the GIL.

    For data that has been checked before. What comes from outside goes through `decoding.DecodePool`.
    `plug_ins` are references ("module:object") to load instead of the installed entry points of PLUG_INS; with
    `verify`, what was encoded is decoded and compared, so that lossless is a checked fact.
    """

    def __init__(self, plug_ins: Sequence[str] | None = None, *, verify: bool = True) -> None:
        self._verify = verify
        self._decoders = _decoders()
        self._encoders = _encoders()
        points = entry_points(group=PLUG_INS) if plug_ins is None else [EntryPoint(r, r, PLUG_INS) for r in plug_ins]
        for point in points:
            plug_in: PlugIn = point.load()
            plug_in(self._decoders, self._encoders)

    facts = staticmethod(native.facts)
    little_endian = staticmethod(native.little_endian)
    thumbnail_prefix = staticmethod(htj2k.thumbnail_prefix)

    def missing(self) -> dict[str, str]:
        """The known transfer syntaxes that cannot be decoded, each with the reason."""
        reasons = {
            Family.VIDEO: "Video is passed on as it came.",
            Family.REFERENCED: "The pixels are elsewhere; JPIP is not spoken.",
            Family.JPEG_XL: "The installed imagecodecs was built without JPEG XL.",
        }
        return {
            row.uid: reasons.get(row.family, "No installed codec reads it.")
            for row in syntaxes.TABLE
            if row.family is not Family.NATIVE and row.uid not in self._decoders
        }

    def encode(self, native_frame: Buffer, format: PixelFormat, syntax: str) -> bytes:
        """Lossless frame of one native little-endian frame, or its samples by pixel for Explicit VR LE.

        What the data set must then say of it is `syntaxes.encoded(format, syntax)`.
        Raises NotAcceptable if no encoder does it, Corrupt if the result is not the same samples.
        """
        if syntax == syntaxes.EXPLICIT_LE:
            return bytes(native.by_pixel(native_frame, format))
        encoder = self._encoders.get(syntax)
        if encoder is None:
            raise NotAcceptable(f"No installed codec encodes transfer syntax {syntax}.")
        if not syntaxes.holds(format, syntax):
            raise NotAcceptable(f"Transfer syntax {syntax} cannot carry these samples without a change.")
        samples = native.to_samples(native_frame, format)
        encoded = encoder(samples, format)
        if self._verify and self.decode(encoded, syntax, format) != native.by_pixel(native_frame, format):
            raise Corrupt("The encoded frame does not decode to the same samples.")
        return encoded

    def decode(self, data: Buffer, syntax: str, format: PixelFormat) -> bytes:
        """Native little-endian samples, colour by pixel: `syntaxes.decoded(format, syntax)` describes them.

        Cells of Bits Allocated; a one-bit frame is packed and starts on a byte; 4:2:2 chroma of native data is kept.
        A big-endian frame is swapped by cells; for 8-bit cells in words see `little_endian`.
        Raises NotAcceptable if no decoder does it, Corrupt.
        """
        row = syntaxes.by_uid(syntax)
        if row is not None and row.family is Family.NATIVE:
            if len(data) != format.frame_bytes:
                raise Corrupt(f"A native frame has {len(data)} bytes, its attributes say {format.frame_bytes}.")
            if syntax == syntaxes.BIG_ENDIAN:
                data = native.little_endian(data, format, words=False)
            return bytes(native.by_pixel(data, format))
        decoder = self._decoders.get(syntax)
        if decoder is None:
            raise NotAcceptable(f"No installed codec decodes transfer syntax {syntax}.")
        if format.floating or format.bits_allocated not in (1, 8, 16, 32, 64):
            raise NotAcceptable("Only integer samples of 1, 8, 16, 32 or 64 bits are decoded.")
        if not 0 < format.frame_bytes <= MAX_FRAME_BYTES:
            raise NotAcceptable(f"A frame of {format.frame_bytes} bytes is empty or beyond {MAX_FRAME_BYTES}.")
        return native.to_native(_samples(decoder, data, format), format)

    def reduced(self, data: Buffer, format: PixelFormat, side: int) -> tuple[bytes, PixelFormat]:
        """A stored HTJ2K frame, or the first `thumbnail_prefix` bytes of one, at the lowest resolution that it holds
        and whose longer side has `side` pixels: native samples by pixel and their format. Raises Corrupt."""

        def decoder(data: Buffer, format: PixelFormat) -> Samples:
            return htj2k.reduced(data, format, side)

        samples = _samples(decoder, data, format)
        small = replace(format, rows=samples.shape[0], columns=samples.shape[1], planar=0, frames=1)
        return native.to_native(samples, small), small


def _samples(decoder: Decoder, data: Buffer, format: PixelFormat) -> Samples:
    try:
        return decoder(data, format)
    except PixelFault as fault:
        raise Corrupt(fault.reason) from fault
    except (GatewayError, MemoryError):
        raise
    except Exception as error:  # whatever a codec library makes of a damaged frame
        raise Corrupt(f"The frame cannot be decoded: {error}") from error
