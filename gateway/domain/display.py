"""From stored values to shades: the attributes that decide it, typed (PS3.3 C.11, C.7.6.3).

    Display                     modality transformation, VOI window or table, presentation LUT, palette
    of_image, of_frame          what an image says of all its frames, and a frame in place of that
    window_of, lut_of, ...      the parts, wherever they stand

Attributes that contradict themselves are passed over, as a viewer does: they cost the picture a better contrast, never
its existence.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from .attributes import Attributes, code, data, item, number, numbers
from .pixels import PixelFormat


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
    full_range: bool = False
    """Without a window or table, black and white are the least and the greatest value that the samples can have."""
    shades: LookupTable | None = None
    """From the output of window or table to shades (Presentation LUT Sequence)."""
    inverse: bool = False
    """Black and white change places: for MONOCHROME1, or where Presentation LUT Shape is INVERSE."""
    padding: tuple[float, float] | None = None
    """The stored values from least to greatest that are no image (PS3.3 C.7.5.1.1.2)."""
    palette: tuple[LookupTable, LookupTable, LookupTable] | None = None
    """Red, green and blue of the stored values, which are indexes."""
    tints: tuple[LookupTable, LookupTable, LookupTable] | None = None
    """Red, green and blue of the shades from black to white (PS3.4 N.2.2.1.1, pseudo-colour)."""

    @property
    def size_bytes(self) -> int:
        """Roughly, in memory."""
        tables = (self.modality, self.voi, self.shades, *(self.palette or ()), *(self.tints or ()))
        return 512 + sum(len(table.entries) for table in tables if table)


# --- DICOM JSON ------------------------------------------------------------------------------------------------------

_FRAME_VOI, _VALUE_TRANSFORMATION = "00289132", "00289145"
_CENTER, _WIDTH, _FUNCTION = "00281050", "00281051", "00281056"
_INTERCEPT, _SLOPE = "00281052", "00281053"
_MODALITY_LUT, _VOI_LUT, _DESCRIPTOR, _DATA = "00283000", "00283010", "00283002", "00283006"
_SHAPE: Final = "20500020"
_PADDING, _PADDING_LIMIT = ("00280120", "00280122"), ("00280121", "00280124")
_DESCRIPTORS = ("00281101", "00281102", "00281103")
_PALETTES = ("00281201", "00281202", "00281203")
_SEGMENTED = ("00281221", "00281222", "00281223")
PALETTE_DATA: Final = (*_PALETTES, *_SEGMENTED)
"""The tags of the tables of a palette, which DICOM JSON has as bulk data."""
_MAX_ENTRIES: Final = 1 << 16


def of_image(attributes: Attributes, format: PixelFormat) -> Display:
    """The display of all frames of an image, by its attributes with all edits applied."""
    slope, intercept, modality = rescaling_of(attributes)
    return Display(
        slope=slope,
        intercept=intercept,
        modality=modality,
        window=window_of(attributes),
        voi=voi_of(attributes),
        inverse=code(attributes, _SHAPE) == "INVERSE" or format.photometric == "MONOCHROME1",
        padding=padding_of(attributes, format),
        palette=palette_of(attributes) if format.photometric == "PALETTE COLOR" else None,
    )


def rescaling_of(attributes: Attributes) -> tuple[float, float, LookupTable | None]:
    """Slope and intercept, or a table in their place (PS3.3 C.11.1); 1 and 0 where nothing is told."""
    modality = lut_of(item(attributes, _MODALITY_LUT))
    slope, intercept = number(attributes, _SLOPE), number(attributes, _INTERCEPT)
    if modality is not None or slope is None or intercept is None:
        return 1.0, 0.0, modality
    return slope, intercept, None


def of_frame(whole: Display, groups: Sequence[Attributes]) -> Display:
    """The display of a frame: its own functional groups, then the shared ones, then the top level (PS3.3 C.7.6.16)."""
    slope, intercept, window = whole.slope, whole.intercept, whole.window
    for group in groups:
        transformation = item(group, _VALUE_TRANSFORMATION)
        told = number(transformation, _SLOPE), number(transformation, _INTERCEPT)
        if told[0] is not None and told[1] is not None:
            slope, intercept = told[0], told[1]
            break
    for group in groups:
        own = window_of(item(group, _FRAME_VOI))
        if own is not None:
            window = own
            break
    if (slope, intercept, window) == (whole.slope, whole.intercept, whole.window):
        return whole
    return replace(whole, slope=slope, intercept=intercept, window=window)


def window_of(attributes: Attributes) -> Window | None:
    """The first valid window of an image, a frame or an item (PS3.3 C.11.2)."""
    center, width = number(attributes, _CENTER), number(attributes, _WIDTH)
    if center is None or width is None:
        return None
    try:
        curve = Curve(code(attributes, _FUNCTION) or "LINEAR")
    except ValueError:
        curve = Curve.LINEAR
    window = Window(center, width, curve)
    return window if window.is_valid else None


def voi_of(attributes: Attributes) -> LookupTable | None:
    """The first table of an image's or an item's VOI LUT Sequence."""
    return lut_of(item(attributes, _VOI_LUT))


def padding_of(attributes: Attributes, format: PixelFormat) -> tuple[float, float] | None:
    """The stored values that are no image."""
    values = [
        next((value for tag in tags if (value := number(attributes, tag)) is not None), None)
        for tags in (_PADDING, _PADDING_LIMIT)
    ]
    value, limit = (_signed(told, format) if told is not None else None for told in values)
    if value is None:
        return None
    limit = value if limit is None else limit
    return min(value, limit), max(value, limit)


def _signed(value: float, format: PixelFormat) -> float:
    """A value that was written as US although the samples have a sign."""
    if format.signed and not format.floating and value >= 1 << format.bits_allocated - 1:
        return value - (1 << format.bits_allocated)
    return value


def palette_of(attributes: Attributes) -> tuple[LookupTable, LookupTable, LookupTable] | None:
    """Red, green and blue, all three of them (PS3.3 C.7.9)."""
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


def lut_of(attributes: Attributes) -> LookupTable | None:
    """The table that an item of a LUT sequence is (PS3.3 C.11.1.1)."""
    return _table(attributes, _DESCRIPTOR, _DATA)


def _table(attributes: Attributes, descriptor: str, entries_in: str, *, segmented: bool = False) -> LookupTable | None:
    told = numbers(attributes, descriptor)
    value = data(attributes, entries_in)
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
