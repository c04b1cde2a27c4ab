"""PNG and GIF images, which come in as bulk data of Pixel Data and are no transfer syntaxes (PS3.18 T10.5.2-1)."""

import imagecodecs
import numpy as np

from gateway.domain.encapsulation import Buffer
from gateway.domain.errors import Corrupt
from gateway.domain.pixels import PixelFormat

from .native import Samples


def decode_png(data: Buffer, format: PixelFormat) -> Samples:
    """Grey or RGB; palettes and samples of few bits as whole ones. Raises Corrupt, also for what shines through."""
    samples = np.asarray(imagecodecs.png_decode(data))
    if samples.ndim == 3 and samples.shape[2] == format.samples + 1:
        if (samples[..., -1] != np.iinfo(samples.dtype).max).any():
            raise Corrupt("The PNG image is transparent in parts, which DICOM has no room for.")
        samples = samples[..., 0] if format.samples == 1 else samples[..., :-1]
    return np.ascontiguousarray(samples)


def decode_gif(data: Buffer, format: PixelFormat) -> Samples:
    """RGB, the images below each other: `format` has their rows together. Raises Corrupt."""
    samples = np.asarray(imagecodecs.gif_decode(data))
    return samples.reshape(-1, *samples.shape[-2:])
