"""Pictures in another size."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""(rows, columns) of grey, or (rows, columns, 3) of RGB."""

_SLAB_ROWS: Final = 128
"""Rows of a picture that are computed at once."""


def scaled(picture: Picture, rows: int, columns: int) -> Picture:
    """The picture in another size: means of whole blocks first, then between neighbours, so that nothing flickers."""
    if picture.shape[:2] == (rows, columns):
        return picture
    image: NDArray[Any] = picture
    down, across = max(1, picture.shape[0] // rows), max(1, picture.shape[1] // columns)
    if down > 1 or across > 1:
        height, width = picture.shape[0] // down, picture.shape[1] // across
        blocks = picture[: height * down, : width * across].reshape(height, down, width, across, *picture.shape[2:])
        image = blocks.mean(axis=(1, 3), dtype=np.float32)
    made = np.empty((rows, columns, *picture.shape[2:]), np.uint8)
    above, below, share = _neighbours(image.shape[0], rows)
    left, right, part = _neighbours(image.shape[1], columns)
    share, part = (each.reshape(-1, *[1] * (picture.ndim - 1)) for each in (share, part))
    for start in range(0, rows, _SLAB_ROWS):
        some = slice(start, start + _SLAB_ROWS)
        slab = image[above[some]] * (1 - share[some]) + image[below[some]] * share[some]
        slab = slab.swapaxes(0, 1)
        slab = slab[left] * (1 - part) + slab[right] * part
        made[some] = np.rint(slab.swapaxes(0, 1))
    return made


def _neighbours(size: int, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each of `count` places along `size` samples: the sample before, that after, and the share of the latter."""
    at = ((np.arange(count) + 0.5) * (size / count) - 0.5).clip(0, size - 1)
    before = at.astype(np.intp)
    return before, np.minimum(before + 1, size - 1), (at - before).astype(np.float32)
