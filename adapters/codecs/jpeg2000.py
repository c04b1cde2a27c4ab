"""JPEG 2000 by OpenJPEG."""

import imagecodecs
import numpy as np

from gateway.domain.encapsulation import Buffer, bare_codestream
from gateway.domain.pixels import PixelFormat

from . import codestream, native
from .native import Samples


def encode(samples: Samples, format: PixelFormat) -> bytes:
    """A bare codestream of 1.2.840.10008.1.2.4.90, RGB by its reversible transform (PS3.5 §8.2.4, A.4.4).

    It has Bits Stored bits a sample, or all that are allocated where a sample exceeds Bits Stored.
    """
    # OpenJPEG does not transform the colour of single bits.
    bits = max(native.bits_in_use(samples, format), 2 if format.samples == 3 else 1)
    encoded = imagecodecs.jpeg2k_encode(
        native.in_cells_of(samples, bits),
        level=0,
        codecformat="J2K",
        reversible=True,
        bitspersample=bits,
        # A decomposition more than the shorter side can be halved makes OpenJPEG refuse.
        resolutions=min(6, min(format.rows, format.columns).bit_length()),
        mct=format.photometric == "RGB",
        planar=False,
        numthreads=1,
    )
    return bytes(encoded)


def decode(data: Buffer, format: PixelFormat) -> Samples:
    """Samples of a JPEG 2000 frame, bare or in JP2 boxes, component transforms undone. Raises Corrupt."""
    at, length = bare_codestream(data)
    data = memoryview(data)[at : at + length]
    stream = codestream.parse(data, part_2=True)
    codestream.check(stream, format)
    samples = np.asarray(imagecodecs.jpeg2k_decode(data, planar=False, numthreads=1))
    return codestream.with_sign(samples, stream, format)
