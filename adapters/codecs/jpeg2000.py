"""JPEG 2000 by OpenJPEG."""

import imagecodecs
import numpy as np

from gateway.domain.encapsulation import Buffer, bare_codestream
from gateway.domain.pixels import PixelFormat

from . import codestream
from .native import Samples


def decode(data: Buffer, format: PixelFormat) -> Samples:
    """Samples of a JPEG 2000 frame, bare or in JP2 boxes, component transforms undone. Raises Corrupt."""
    at, length = bare_codestream(data)
    data = memoryview(data)[at : at + length]
    stream = codestream.parse(data, part_2=True)
    codestream.check(stream, format)
    samples = np.asarray(imagecodecs.jpeg2k_decode(data, planar=False, numthreads=1))
    return codestream.with_sign(samples, stream, format)
