"""How an instance is to be shown, and what a request asks of a picture (PS3.18 §8.3.5).

    describe(attributes, ...)   an image's DICOM JSON -> Presentation: one View for each frame, or one for all
    described_by(state, ...)    the same of a frame that a presentation state shows
    Rendering                   what a request asks of a picture
    is_scalable(...)            whether a low resolution of the samples will do
    placed(...)                 which region of an image fills how large a picture

A View is made of a `Display`, from stored values to shades; of the `Softcopy` of a presentation state, which cuts off,
turns and draws; and of a `Caption`, the text of an annotation.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .attributes import Attributes, item, items, number
from .caption import Caption, captions
from .display import Display, Window, of_frame, of_image
from .errors import InvalidInput
from .pixels import PixelFormat
from .softcopy import Softcopy, display_of, softcopy_of

DEFAULT_QUALITY: Final = 90
MAX_SIDE: Final = 8192
"""Of a viewport, in pixels."""
_FULL_RANGE_BITS: Final = 8
_MAX_ENLARGED: Final = 1 << 25
"""Pixels of a picture that has more of them than its image."""


@dataclass(frozen=True, slots=True)
class View:
    """How one frame is to be shown."""

    display: Display
    softcopy: Softcopy | None = None
    caption: Caption | None = None


@dataclass(frozen=True, slots=True)
class Presentation:
    """How an instance is to be shown."""

    views: tuple[View, ...]
    """One for each frame, or one for all."""
    representative: int
    """Index of the frame that stands for the instance (0028,6010)."""
    fingerprint: str
    """Equal exactly for equal presentations."""
    size_bytes: int
    """Roughly, in memory."""

    def view(self, index: int) -> View:
        """Of frame `index`, from 0."""
        return self.views[index if len(self.views) > 1 else 0]


# --- what a request asks for -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Region:
    """A part of an image, in its pixels: `left`, `top` from 0; mirrored where so told."""

    left: float
    top: float
    width: float | None = None
    """None: up to the right edge."""
    height: float | None = None
    mirrored: bool = False
    """Left and right change places."""
    flipped: bool = False
    """Top and bottom change places."""


@dataclass(frozen=True, slots=True)
class Viewport:
    """The picture fits into `width` x `height` pixels, keeping its proportions (REND-04)."""

    width: int
    height: int
    region: Region | None = None
    enlarges: bool = True
    """A smaller image is scaled up until it fits exactly."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """A picture that is asked for."""

    media_type: str
    """`image/jpeg`, `image/png` or `image/gif`."""
    window: Window | None = None
    """In place of what the instance says."""
    viewport: Viewport | None = None
    quality: int = DEFAULT_QUALITY
    """Of JPEG, 1 to 100."""
    has_texts: bool = True
    """Whether the texts of a presentation state are drawn."""


def is_scalable(format: PixelFormat, view: View, wanted: Rendering) -> bool:
    """Whether a low resolution of the stored samples will do for a picture.

    Not for a region, nor for what a presentation state cuts out; not for indexes of a palette, whose mean is another
    colour; not where black and white hang on the least and greatest value of the whole frame.
    """
    if wanted.viewport is None or wanted.viewport.region is not None or format.photometric == "PALETTE COLOR":
        return False
    if view.softcopy is not None:
        return False
    display = view.display
    has_contrast = wanted.window is not None or display.window is not None or display.voi is not None
    return has_contrast or format.samples > 1 or has_full_range(format, display)


def has_full_range(format: PixelFormat, display: Display) -> bool:
    """Whether samples without a window are shown by all values that they can have: for few bits, as they are."""
    if format.floating or display.modality is not None:
        return False
    return display.full_range or format.bits_stored <= _FULL_RANGE_BITS


@dataclass(frozen=True, slots=True)
class Placement:
    """Columns `left` to `right` and rows `top` to `bottom` of an image, the ends excluded, as `width` x `height`."""

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int


def placed(rows: int, columns: int, viewport: Viewport | None) -> Placement:
    """Which part of an image fills how large a picture (PS3.18 §8.3.5.1.3).

    Raises InvalidInput for a region beside the image, and for a picture that is enlarged beyond measure.
    """
    if viewport is None:
        return Placement(0, 0, columns, rows, columns, rows)
    region = viewport.region or Region(0, 0)
    left, top = math.floor(region.left), math.floor(region.top)
    right = columns if region.width is None else min(columns, math.ceil(region.left + region.width))
    bottom = rows if region.height is None else min(rows, math.ceil(region.top + region.height))
    if right <= left or bottom <= top:
        raise InvalidInput(f"The region of viewport lies beside the image, which is {columns} x {rows}.")
    scale = min(viewport.width / (right - left), viewport.height / (bottom - top))
    if not viewport.enlarges:
        scale = min(scale, 1.0)
    width = max(1, min(viewport.width, round((right - left) * scale)))
    height = max(1, min(viewport.height, round((bottom - top) * scale)))
    if width * height > max(_MAX_ENLARGED, rows * columns):
        raise InvalidInput(f"The picture would have {width} x {height} pixels: ask for a smaller viewport.")
    return Placement(left, top, right, bottom, width, height)


# --- DICOM JSON ------------------------------------------------------------------------------------------------------

_SHARED, _PER_FRAME = "52009229", "52009230"
_REPRESENTATIVE: Final = "00286010"


def describe(attributes: Attributes, format: PixelFormat, frames: int, annotation: Sequence[str] = ()) -> Presentation:
    """The presentation of an image with so many frames, by its attributes with all edits applied.

    `annotation` are kinds of `caption.KINDS`.
    """
    displays = _displays(attributes, format, frames)
    told = captions(attributes, frames, annotation) if annotation else (None,)
    known: dict[View, View] = {}  # most frames have the same: one object serves them
    each = (
        View(displays[n if len(displays) > 1 else 0], None, told[n if len(told) > 1 else 0])
        for n in range(max(len(displays), len(told)))
    )
    views = tuple(known.setdefault(view, view) for view in each)
    representative = number(attributes, _REPRESENTATIVE)
    index = int(representative) - 1 if representative is not None and 1 <= representative <= frames else 0
    return _presentation(views[:1] if len(known) == 1 else views, index)


def described_by(
    state: Attributes,
    sop_class: str,
    image: Attributes,
    sop: str,
    format: PixelFormat,
    frames: int,
    index: int,
    annotation: Sequence[str] = (),
) -> Presentation:
    """The presentation of frame `index`, from 0, of the image `sop` by a presentation state of that class.

    Raises NotAcceptable for what is not shown.
    """
    own = describe(image, format, frames, annotation).view(index)
    display = display_of(state, sop_class, sop, index + 1, format, own.display)
    softcopy = softcopy_of(state, sop, index + 1, image, format)
    return _presentation((View(display, softcopy, own.caption),), index)


def _displays(attributes: Attributes, format: PixelFormat, frames: int) -> list[Display]:
    """Of each frame, or one for all."""
    whole = of_image(attributes, format)
    shared = item(attributes, _SHARED)
    groups = items(attributes, _PER_FRAME)
    if not groups or frames <= 1:
        return [of_frame(whole, (groups[0] if groups else {}, shared))]
    return [of_frame(whole, (groups[n] if n < len(groups) else {}, shared)) for n in range(frames)]


def _presentation(views: tuple[View, ...], index: int) -> Presentation:
    identity = repr((views, index)).encode()
    different = {id(view): view for view in views}.values()
    size_bytes = 8 * len(views) + sum(_size_bytes(view) for view in different)
    return Presentation(views, index, hashlib.blake2b(identity, digest_size=12).hexdigest(), size_bytes)


def _size_bytes(view: View) -> int:
    size = 512 + view.display.size_bytes
    if view.softcopy is not None:
        size += view.softcopy.size_bytes
    return size if view.caption is None else size + 2048
