"""How the samples of an instance are to be shown: display attributes of its DICOM JSON, typed (PS3.3 C.11, C.7.6.3).

    describe(attributes, ...)   DICOM JSON -> Presentation: one Display for each frame, or one for all
    Rendering                   what a request asks of a picture (PS3.18 §8.3.5)
    is_scalable(...)            whether a low resolution of the samples will do
    placed(...)                 which region of an image fills how large a picture

Attributes that contradict themselves are passed over, as a viewer does: they cost the picture a better contrast, never
its existence.
"""

import base64
import binascii
import hashlib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from .errors import InvalidInput
from .pixels import PixelFormat

Attributes = Mapping[str, Any]
"""DICOM JSON elements by tag."""

DEFAULT_QUALITY: Final = 90
MAX_SIDE: Final = 8192
"""Of a viewport, in pixels."""
_FULL_RANGE_BITS: Final = 8
_MAX_ENLARGED: Final = 1 << 25
"""Pixels of a picture that has more of them than its image."""


class Curve(Enum):
    """VOI LUT Function (0028,1056); PS3.3 C.11.2.1.2."""

    LINEAR = "LINEAR"
    LINEAR_EXACT = "LINEAR_EXACT"
    SIGMOID = "SIGMOID"


@dataclass(frozen=True, slots=True)
class Window:
    """A window over the output of the modality transformation."""

    center: float
    width: float
    curve: Curve = Curve.LINEAR

    @property
    def is_valid(self) -> bool:
        """LINEAR needs a width of 1 at least, the others one above 0 (PS3.3 C.11.2.1.2, C.11.2.1.3)."""
        if not (math.isfinite(self.center) and math.isfinite(self.width)):
            return False
        return self.width >= 1 if self.curve is Curve.LINEAR else self.width > 0


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A table of a LUT sequence or a palette (PS3.3 C.11.1.1, C.7.6.3.1.5)."""

    first: int
    """The value that maps to the first entry; those below do too, those beyond the last to the last."""
    bits: int
    """Of an entry, 16 at most: the greatest entry is taken to be 2^bits - 1."""
    entries: bytes
    """16 bits each, little-endian."""


@dataclass(frozen=True, slots=True)
class Display:
    """How one frame is to be shown. Stored values go through the modality transformation, then the window or table."""

    slope: float = 1.0
    intercept: float = 0.0
    modality: LookupTable | None = None
    """In place of slope and intercept."""
    window: Window | None = None
    voi: LookupTable | None = None
    """Before a window."""
    inverse: bool = False
    """Presentation LUT Shape is INVERSE; for MONOCHROME1 it says nothing new."""
    padding: tuple[float, float] | None = None
    """The stored values from least to greatest that are no image (PS3.3 C.7.5.1.1.2)."""
    palette: tuple[LookupTable, LookupTable, LookupTable] | None = None
    """Red, green and blue."""


@dataclass(frozen=True, slots=True)
class Presentation:
    """How an instance is to be shown."""

    displays: tuple[Display, ...]
    """One for each frame, or one for all."""
    representative: int
    """Index of the frame that stands for the instance (0028,6010)."""
    fingerprint: str
    """Equal exactly for equal presentations."""
    size_bytes: int
    """Roughly, in memory."""

    def display(self, index: int) -> Display:
        """Of frame `index`, from 0."""
        return self.displays[index if len(self.displays) > 1 else 0]


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


def is_scalable(format: PixelFormat, display: Display, wanted: Rendering) -> bool:
    """Whether a low resolution of the stored samples will do for a picture.

    Not for a region; not for indexes of a palette, whose mean is another colour; not where black and white hang on the
    least and greatest value of the whole frame.
    """
    if wanted.viewport is None or wanted.viewport.region is not None or format.photometric == "PALETTE COLOR":
        return False
    has_contrast = wanted.window is not None or display.window is not None or display.voi is not None
    return has_contrast or format.samples > 1 or has_full_range(format, display)


def has_full_range(format: PixelFormat, display: Display) -> bool:
    """Whether samples without a window are shown by all values that they can have: few bits, shown as they are."""
    return format.bits_stored <= _FULL_RANGE_BITS and not format.floating and display.modality is None


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
_FRAME_VOI, _VALUE_TRANSFORMATION = "00289132", "00289145"
_CENTER, _WIDTH, _FUNCTION = "00281050", "00281051", "00281056"
_INTERCEPT, _SLOPE = "00281052", "00281053"
_MODALITY_LUT, _VOI_LUT, _DESCRIPTOR, _DATA = "00283000", "00283010", "00283002", "00283006"
_SHAPE, _REPRESENTATIVE = "20500020", "00286010"
_PADDING, _PADDING_LIMIT = ("00280120", "00280122"), ("00280121", "00280124")
_DESCRIPTORS = ("00281101", "00281102", "00281103")
_PALETTES = ("00281201", "00281202", "00281203")
_SEGMENTED = ("00281221", "00281222", "00281223")
_MAX_ENTRIES: Final = 1 << 16


def describe(attributes: Attributes, format: PixelFormat, frames: int) -> Presentation:
    """The presentation of an instance with so many frames, by its attributes with all edits applied."""
    whole = _top_level(attributes, format)
    shared = _item(attributes, _SHARED)
    groups = _items(attributes, _PER_FRAME)
    if groups and frames > 1:
        known: dict[Display, Display] = {}  # most frames have the same: one object serves them
        each = (_of_frame(whole, (groups[n] if n < len(groups) else {}, shared)) for n in range(frames))
        displays = tuple(known.setdefault(display, display) for display in each)
        if len(known) == 1:
            displays = displays[:1]
    else:
        known = {}
        displays = (_of_frame(whole, (groups[0] if groups else {}, shared)),)
    representative = _number(attributes, _REPRESENTATIVE)
    index = int(representative) - 1 if representative is not None and 1 <= representative <= frames else 0
    identity = repr((displays, index)).encode()
    size_bytes = 512 * (len(known) + 1) + 8 * len(displays) + sum(map(_table_bytes, known or displays))
    return Presentation(displays, index, hashlib.blake2b(identity, digest_size=12).hexdigest(), size_bytes)


def _table_bytes(display: Display) -> int:
    return sum(len(table.entries) for table in (display.modality, display.voi, *(display.palette or ())) if table)


def _top_level(attributes: Attributes, format: PixelFormat) -> Display:
    modality = _table(_item(attributes, _MODALITY_LUT), _DESCRIPTOR, _DATA)
    slope, intercept = _number(attributes, _SLOPE), _number(attributes, _INTERCEPT)
    if modality is not None or slope is None or intercept is None:
        slope, intercept = 1.0, 0.0
    palette = _palette(attributes) if format.photometric == "PALETTE COLOR" else None
    return Display(
        slope=slope,
        intercept=intercept,
        modality=modality,
        window=_window(attributes),
        voi=_table(_item(attributes, _VOI_LUT), _DESCRIPTOR, _DATA),
        inverse=_text(attributes, _SHAPE) == "INVERSE",
        padding=_padding(attributes, format),
        palette=palette,
    )


def _of_frame(whole: Display, groups: Sequence[Attributes]) -> Display:
    """The display of a frame: its own functional groups, then the shared ones, then the top level (PS3.3 C.7.6.16)."""
    slope, intercept, window = whole.slope, whole.intercept, whole.window
    for group in groups:
        item = _item(group, _VALUE_TRANSFORMATION)
        told = _number(item, _SLOPE), _number(item, _INTERCEPT)
        if told[0] is not None and told[1] is not None:
            slope, intercept = told[0], told[1]
            break
    for group in groups:
        own = _window(_item(group, _FRAME_VOI))
        if own is not None:
            window = own
            break
    if (slope, intercept, window) == (whole.slope, whole.intercept, whole.window):
        return whole
    return Display(slope, intercept, whole.modality, window, whole.voi, whole.inverse, whole.padding, whole.palette)


def _window(attributes: Attributes) -> Window | None:
    center, width = _number(attributes, _CENTER), _number(attributes, _WIDTH)
    if center is None or width is None:
        return None
    try:
        curve = Curve(_text(attributes, _FUNCTION) or "LINEAR")
    except ValueError:
        curve = Curve.LINEAR
    window = Window(center, width, curve)
    return window if window.is_valid else None


def _padding(attributes: Attributes, format: PixelFormat) -> tuple[float, float] | None:
    values = [
        next((value for tag in tags if (value := _number(attributes, tag)) is not None), None)
        for tags in (_PADDING, _PADDING_LIMIT)
    ]
    value, limit = (_signed(number, format) if number is not None else None for number in values)
    if value is None:
        return None
    limit = value if limit is None else limit
    return min(value, limit), max(value, limit)


def _signed(value: float, format: PixelFormat) -> float:
    """A value that was written as US although the samples have a sign."""
    if format.signed and not format.floating and value >= 1 << format.bits_allocated - 1:
        return value - (1 << format.bits_allocated)
    return value


def _palette(attributes: Attributes) -> tuple[LookupTable, LookupTable, LookupTable] | None:
    tables = []
    for descriptor, plain, segmented in zip(_DESCRIPTORS, _PALETTES, _SEGMENTED, strict=True):
        table = _table(attributes, descriptor, plain)
        if table is None:
            table = _table(attributes, descriptor, segmented, segmented=True)
        if table is None:
            return None
        tables.append(table)
    red, green, blue = tables
    return red, green, blue


def _table(attributes: Attributes, descriptor: str, data: str, *, segmented: bool = False) -> LookupTable | None:
    told = _numbers(attributes, descriptor)
    value = _bytes(attributes.get(data) or {})
    if len(told) != 3 or not value:
        return None
    count, first, bits = int(told[0]) & 0xFFFF or _MAX_ENTRIES, int(told[1]), int(told[2])
    if not 1 <= bits <= 16:
        return None
    if segmented:
        entries = _expanded(value, wide=bits > 8)
    elif len(value) in (count, count + count % 2) and bits <= 8:
        entries = list(value)
    else:
        entries = _words(value)
    if len(entries) < count:
        return None
    return LookupTable(first, bits, struct.pack(f"<{count}H", *entries[:count]))


def _words(value: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(value) // 2}H", value[: len(value) // 2 * 2]))


def _expanded(value: bytes, *, wide: bool) -> list[int]:
    """The entries of segmented palette data (PS3.3 C.7.9.2); what ends early or points nowhere ends the table."""
    words = _words(value) if wide else list(value)
    entries: list[int] = []
    _expand(words, 0, None, entries, wide=wide)
    return entries


def _expand(words: Sequence[int], at: int, segments: int | None, entries: list[int], *, wide: bool) -> None:
    """Appends what `segments` segments from word `at` stand for; None: all there are."""
    done = 0
    while at + 1 < len(words) and len(entries) < _MAX_ENTRIES and done != segments:
        kind, count = words[at], words[at + 1]
        done += 1
        if kind == 0:
            entries += words[at + 2 : at + 2 + count]
            at += 2 + count
        elif kind == 1 and entries and at + 2 < len(words):
            start, end = entries[-1], words[at + 2]
            entries += (round(start + (end - start) * step / count) for step in range(1, count + 1))
            at += 3
        elif kind == 2 and segments is None:
            # A byte offset in two words of the least significant first; four where the words are bytes.
            size = 2 if wide else 4
            place = sum(word << (16 if wide else 8) * n for n, word in enumerate(words[at + 2 : at + 2 + size]))
            _expand(words, place // 2 if wide else place, count, entries, wide=wide)
            at += 2 + size
        else:
            return


def _bytes(element: Mapping[str, Any]) -> bytes:
    """The value of table data, whatever its VR: words little-endian."""
    if "InlineBinary" in element:
        try:
            return base64.b64decode(element["InlineBinary"])
        except (binascii.Error, ValueError, TypeError):
            return b""
    words = [int(value) & 0xFFFF for value in _finite(element.get("Value"))]
    return struct.pack(f"<{len(words)}H", *words)


def _items(attributes: Attributes, tag: str) -> list[Attributes]:
    values = (attributes.get(tag) or {}).get("Value")
    return [item if isinstance(item, dict) else {} for item in values] if isinstance(values, list) else []


def _item(attributes: Attributes, tag: str) -> Attributes:
    items = _items(attributes, tag)
    return items[0] if items else {}


def _numbers(attributes: Attributes, tag: str) -> list[float]:
    return _finite((attributes.get(tag) or {}).get("Value"))


def _number(attributes: Attributes, tag: str) -> float | None:
    """The first value, None where that is no finite number."""
    values = (attributes.get(tag) or {}).get("Value")
    found = _finite(values[:1]) if isinstance(values, list) else []
    return found[0] if found else None


def _finite(values: Iterable[Any] | None) -> list[float]:
    found = []
    for value in values or ():
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue
        if math.isfinite(number):
            found.append(number)
    return found


def _text(attributes: Attributes, tag: str) -> str:
    values = (attributes.get(tag) or {}).get("Value")
    return str(values[0]).strip().upper() if isinstance(values, list) and values and values[0] is not None else ""
