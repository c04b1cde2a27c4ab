"""Softcopy Presentation States: what they show of which images, and how (PS3.3 A.33, C.10, C.11; PS3.4 Annex N).

    references(attributes)      the images that a state is about
    display_of(...)             its grayscale transformations of one of them, in place of the image's own
    softcopy_of(...)            what it cuts off, turns and draws on one of them
    staged(...)                 how large a picture the displayed area fills, and where each position comes to lie

Shown are Grayscale, Color and Pseudo-Color states. What is not shown is refused, never left out: subtraction of masks,
positions in the matrix of a tiled image, more graphics than `MAX_POINTS` and its kin. Compound graphics and styles of
lines and texts come beside plain graphics of the same, which are drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, NamedTuple

from .attributes import Attributes, code, data, item, items, number, numbers, text, texts
from .display import Display, lut_of, palette_of, rescaling_of, voi_of, window_of
from .errors import NotAcceptable
from .pixels import PixelFormat

STATES: Final = "1.2.840.10008.5.1.4.1.1.11."
"""What the SOP Class UIDs of all presentation states begin with."""
_GRAYSCALE, _COLOR, _PSEUDO_COLOR = (f"{STATES}{number}" for number in (1, 2, 3))

MAX_REFERENCES: Final = 1000
MAX_POINTS: Final = 100_000
MAX_MARKS: Final = 5_000
MAX_LETTERS: Final = 20_000
MAX_TEXTS: Final = 500
MAX_PLANE_PIXELS: Final = 1 << 26
_MAX_ASPECT: Final = 100.0
_MAX_PIXELS: Final = 1 << 25
_BEYOND: Final = 1e9
"""A side of a picture that is not made."""

Colour = tuple[int, int, int]
"""Red, green and blue, from 0 to 255."""
_WHITE: Final = (255, 255, 255)


class Reference(NamedTuple):
    """An image that a state is about."""

    series: str
    sop: str
    frames: tuple[int, ...]
    """From 1; empty: all."""


class Shape(Enum):
    """Graphic Type (0070,0023)."""

    POINT = "POINT"
    POLYLINE = "POLYLINE"
    INTERPOLATED = "INTERPOLATED"
    CIRCLE = "CIRCLE"
    ELLIPSE = "ELLIPSE"


@dataclass(frozen=True, slots=True)
class Spots:
    """Positions: x and y by turns, from 0 at the top left corner of the image, in its pixels; or of the displayed area,
    in parts of it."""

    values: tuple[float, ...]
    of_area: bool = False


@dataclass(frozen=True, slots=True)
class Graphic:
    """A graphic object (PS3.3 C.10.5.1.2)."""

    shape: Shape
    spots: Spots
    filled: bool
    colour: Colour


@dataclass(frozen=True, slots=True)
class Text:
    """A text object (PS3.3 C.10.5.1.1). It has a box, or a point beside which it stands, or both."""

    text: str
    box: Spots | None
    """Two opposite corners."""
    align: float
    """Of the lines in the box: 0 left, 0.5 centred, 1 right."""
    anchor: Spots | None
    is_pointed: bool
    """A line leads from the box to the anchor."""
    colour: Colour


@dataclass(frozen=True, slots=True)
class Plane:
    """An overlay (PS3.3 C.9.2), its first pixel at row `top`, column `left` of the image, from 0."""

    rows: int
    columns: int
    top: int
    left: int
    bits: bytes
    """A bit each, the least significant first; empty where they are among the samples."""
    position: int
    """Which bit of the samples, where they are among them."""
    colour: Colour = _WHITE


Mark = Graphic | Text | Plane


@dataclass(frozen=True, slots=True)
class Shutter:
    """Outside any of its shapes nothing of the image is seen (PS3.3 C.7.6.11). Rows and columns from 1."""

    rectangle: tuple[float, float, float, float] | None = None
    """Left and right column, upper and lower row: the last that are seen."""
    circle: tuple[float, float, float] | None = None
    """Row and column of the centre, radius."""
    polygon: tuple[float, ...] = ()
    """Rows and columns by turns."""
    plane: Plane | None = None
    """Hides where it is set (PS3.3 C.7.6.15)."""
    colour: Colour = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class Area:
    """The displayed area, in columns and rows from 0, the ends excluded; it may reach beyond the image."""

    left: int
    top: int
    right: int
    bottom: int
    aspect: float = 1.0
    """Height of a pixel divided by its width."""
    magnification: float = 1.0
    """Where the size of the picture is not asked for."""


@dataclass(frozen=True, slots=True)
class Softcopy:
    """What a presentation state makes of a frame beyond its shades."""

    area: Area
    shutter: Shutter | None = None
    quarters: int = 0
    """Turned clockwise, before it is mirrored."""
    mirrored: bool = False
    """Left and right change places."""
    marks: tuple[Mark, ...] = ()
    """In the order in which they are drawn."""

    @property
    def size_bytes(self) -> int:
        """Roughly, in memory."""
        size = 512
        for mark in self.marks:
            match mark:
                case Graphic():
                    size += 256 + 32 * len(mark.spots.values)
                case Text():
                    size += 512 + 4 * len(mark.text)
                case Plane():
                    size += 256 + len(mark.bits)
        if self.shutter is not None:
            size += 32 * len(self.shutter.polygon) + (len(self.shutter.plane.bits) if self.shutter.plane else 0)
        return size


# --- where things come to lie ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stage:
    """A picture of `width` x `height` pixels that shows an area, turned and mirrored."""

    softcopy: Softcopy
    width: int
    height: int

    def at(self, x: Any, y: Any, of_area: bool = False) -> tuple[Any, Any]:
        """Where a position is in the picture, in its pixels; numbers, or arrays of them."""
        area = self.softcopy.area
        if of_area:  # is upright, however the image is turned
            return x * self.width, y * self.height
        u, v = (x - area.left) / (area.right - area.left), (y - area.top) / (area.bottom - area.top)
        u, v = ((u, v), (1 - v, u), (1 - u, 1 - v), (v, 1 - u))[self.softcopy.quarters]
        return (1 - u if self.softcopy.mirrored else u) * self.width, v * self.height


def staged(softcopy: Softcopy, box: tuple[int, int] | None, *, enlarges: bool = True) -> Stage:
    """The picture of a displayed area that fits into `box`, width and height; None: as large as the state says.

    Raises NotAcceptable for a picture beyond measure.
    """
    area = softcopy.area
    width = (area.right - area.left) * max(1.0, 1 / area.aspect)
    height = (area.bottom - area.top) * max(1.0, area.aspect)
    if softcopy.quarters % 2:
        width, height = height, width
    scale = area.magnification
    if box is not None:
        scale = min(box[0] / width, box[1] / height)
        if not enlarges:
            scale = min(scale, 1.0)
    made = max(1, round(min(width * scale, _BEYOND))), max(1, round(min(height * scale, _BEYOND)))
    if box is not None:
        made = min(box[0], made[0]), min(box[1], made[1])
    if made[0] * made[1] > _MAX_PIXELS:
        raise NotAcceptable(f"The picture would have {made[0]} x {made[1]} pixels: ask for a smaller viewport.")
    return Stage(softcopy, *made)


# --- DICOM JSON ------------------------------------------------------------------------------------------------------

_SERIES, _IMAGES, _SERIES_UID = "00081115", "00081140", "0020000E"
_SOP_UID, _FRAMES = "00081155", "00081160"
_MASKS, _VOI, _PRESENTATION_LUT, _SHAPE = "00286100", "00283110", "20500010", "20500020"
_AREAS, _TOP_LEFT, _BOTTOM_RIGHT, _MODE = "0070005A", "00700052", "00700053", "00700100"
_SPACING, _ASPECT, _MAGNIFICATION = "00700101", "00700102", "00700103"
_ROTATION, _FLIP = "00700042", "00700041"
_SHUTTERS, _POLYGON, _CIRCLE, _RADIUS = "00181600", "00181620", "00181610", "00181612"
_EDGES = ("00181602", "00181604", "00181606", "00181608")
_SHUTTER_GREY, _SHUTTER_LAB, _SHUTTER_GROUP = "00181622", "00181624", "00181623"
_LAYERS, _LAYER, _ORDER, _GREY, _LAB = "00700060", "00700002", "00700062", "00700066", "00700401"
_ANNOTATIONS, _GRAPHICS, _TEXTS = "00700001", "00700009", "00700008"
_UNITS, _DATA, _TYPE, _FILLED = "00700005", "00700022", "00700023", "00700024"
_BOX_UNITS, _ANCHOR_UNITS, _TEXT = "00700003", "00700004", "00700006"
_BOX_TOP, _BOX_BOTTOM, _JUSTIFIED = "00700010", "00700011", "00700012"
_ANCHOR, _ANCHOR_SEEN = "00700014", "00700015"
_ALIGN: Final = {"CENTER": 0.5, "RIGHT": 1.0}


def references(attributes: Attributes) -> tuple[Reference, ...]:
    """The images that a state is about, in its order. Raises NotAcceptable for more than are shown."""
    found = []
    for series in items(attributes, _SERIES):
        for image in items(series, _IMAGES):
            frames = tuple(int(frame) for frame in numbers(image, _FRAMES) if frame >= 1)
            found.append(Reference(text(series, _SERIES_UID), text(image, _SOP_UID), frames))
            _bound(len(found), MAX_REFERENCES, "images")
    return tuple(found)


def overlays_of(state: Attributes) -> tuple[str, ...]:
    """The tags of the overlays that a state makes use of, its own or its images'; long ones are bulk data."""
    hides = number(state, _SHUTTER_GROUP)
    return tuple(
        f"{group:04X}3000" for group in range(0x6000, 0x6020, 2) if group == hides or code(state, f"{group:04X}1001")
    )


def check_class(sop_class: str) -> None:
    """Raises NotAcceptable for a kind of state that is not shown."""
    if sop_class not in (_GRAYSCALE, _COLOR, _PSEUDO_COLOR):
        raise NotAcceptable("Of the presentation states, those of Grayscale, Color and Pseudo-Color are shown.")


def display_of(state: Attributes, sop_class: str, sop: str, frame: int, format: PixelFormat, own: Display) -> Display:
    """The grayscale transformations of a state for frame `frame`, from 1, of the image `sop` (PS3.4 N.2.1, N.2.2).

    What the state leaves out is done to no image, whatever the image says itself. `own` is the image's display: a Color
    state changes nothing in it. Raises NotAcceptable.
    """
    if items(state, _MASKS):
        raise NotAcceptable("Presentation states that subtract a mask are not shown.")
    if sop_class == _COLOR:
        return own
    slope, intercept, modality = rescaling_of(state)
    window, voi = None, None
    for one in items(state, _VOI):
        if _concerns(one, sop, frame):
            window, voi = window_of(one), voi_of(one)
    shades = lut_of(item(state, _PRESENTATION_LUT))
    shape = code(state, _SHAPE)
    tints = palette_of(state) if sop_class == _PSEUDO_COLOR else None
    if sop_class == _PSEUDO_COLOR and tints is None:
        raise NotAcceptable("The presentation state has no palette that could be read.")
    return Display(
        slope=slope,
        intercept=intercept,
        modality=modality,
        window=window,
        voi=voi,
        full_range=True,
        shades=shades,
        # Its own shape counts in place of what the image's Photometric Interpretation means.
        inverse=shape == "INVERSE" if shape or shades or tints else format.photometric == "MONOCHROME1",
        padding=own.padding,
        palette=own.palette,
        tints=tints,
    )


def softcopy_of(state: Attributes, sop: str, frame: int, image: Attributes, format: PixelFormat) -> Softcopy:
    """What a state does to frame `frame`, from 1, of the image `sop` beyond its shades. Raises NotAcceptable."""
    turned = number(state, _ROTATION) or 0.0
    area = Area(0, 0, format.columns, format.rows)
    for one in items(state, _AREAS):
        if _concerns(one, sop, frame):
            area = _area(one) or area
    return Softcopy(
        area=area,
        shutter=_shutter(state),
        quarters=int(turned // 90) % 4,
        mirrored=code(state, _FLIP) == "Y",
        marks=_marks(state, sop, frame, image),
    )


def _concerns(item: Attributes, sop: str, frame: int) -> bool:
    """Whether an item is about a frame: it names its images, or is about all."""
    images = items(item, _IMAGES)
    if not images:
        return True
    for image in images:
        frames = numbers(image, _FRAMES)
        if text(image, _SOP_UID) == sop and (not frames or frame in frames):
            return True
    return False


def _bound(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise NotAcceptable(f"The presentation state has more than {limit} {what}, which is more than is shown.")


def _area(one: Attributes) -> Area | None:
    corners = [numbers(one, tag) for tag in (_TOP_LEFT, _BOTTOM_RIGHT)]
    if [len(corner) for corner in corners] != [2, 2]:
        return None
    # The corners are those of what is seen: of a turned image, others of the image itself.
    (left, right), (top, bottom) = (sorted((corners[0][axis], corners[1][axis])) for axis in (0, 1))
    aspect = 1.0
    told = numbers(one, _SPACING) or numbers(one, _ASPECT)
    if len(told) == 2 and min(told) > 0:
        aspect = min(_MAX_ASPECT, max(1 / _MAX_ASPECT, told[0] / told[1]))
    magnification = number(one, _MAGNIFICATION) if code(one, _MODE) == "MAGNIFY" else None
    return Area(
        int(left) - 1,
        int(top) - 1,
        int(right),
        int(bottom),
        aspect,
        magnification if magnification is not None and magnification > 0 else 1.0,
    )


def _shutter(state: Attributes) -> Shutter | None:
    shapes = {shape.upper() for shape in texts(state, _SHUTTERS)}
    shutter = Shutter(colour=_colour(state, _SHUTTER_GREY, _SHUTTER_LAB, (0, 0, 0)))
    edges = [number(state, tag) for tag in _EDGES]
    if "RECTANGULAR" in shapes and None not in edges:
        left, right, top, bottom = (edge or 0.0 for edge in edges)
        shutter = replace(shutter, rectangle=(left, right, top, bottom))
    centre, radius = numbers(state, _CIRCLE), number(state, _RADIUS)
    if "CIRCULAR" in shapes and len(centre) == 2 and radius is not None and radius >= 0:
        shutter = replace(shutter, circle=(centre[0], centre[1], radius))
    polygon = numbers(state, _POLYGON)
    if "POLYGONAL" in shapes and len(polygon) >= 6 and len(polygon) % 2 == 0:
        _bound(len(polygon) // 2, MAX_POINTS, "points")
        shutter = replace(shutter, polygon=tuple(polygon))
    group = number(state, _SHUTTER_GROUP)
    if "BITMAP" in shapes and group is not None:
        shutter = replace(shutter, plane=_plane(state, state, f"{int(group) & 0xFFFF:04X}"))
    return shutter if shutter != Shutter(colour=shutter.colour) else None


def _marks(state: Attributes, sop: str, frame: int, image: Attributes) -> tuple[Mark, ...]:
    """Graphics, texts and overlays, those of the layers with low orders first."""
    layers = {code(layer, _LAYER): layer for layer in items(state, _LAYERS)}
    placed: list[tuple[float, Mark]] = []

    def put(layer: str, mark: Mark) -> None:
        order = number(layers.get(layer, {}), _ORDER)
        placed.append((math.inf if order is None else order, mark))
        _bound(len(placed), MAX_MARKS, "graphics")

    def colour(layer: str) -> Colour:
        return _colour(layers.get(layer, {}), _GREY, _LAB, _WHITE)

    hides = number(state, _SHUTTER_GROUP)
    for group in (tag[:4] for tag in overlays_of(state)):
        layer = code(state, f"{group}1001")
        plane = _plane(state, image, group, frame) if layer and hides != int(group, 16) else None
        if plane is not None:
            put(layer, replace(plane, colour=colour(layer)))
    points = letters = written = 0
    for annotation in items(state, _ANNOTATIONS):
        if not _concerns(annotation, sop, frame):
            continue
        layer = code(annotation, _LAYER)
        for one in items(annotation, _GRAPHICS):
            graphic = _graphic(one, colour(layer))
            if graphic is not None:
                points += len(graphic.spots.values) // 2
                _bound(points, MAX_POINTS, "points")
                put(layer, graphic)
        for one in items(annotation, _TEXTS):
            label = _label(one, colour(layer))
            if label is not None:
                letters, written = letters + len(label.text), written + 1
                _bound(letters, MAX_LETTERS, "letters")
                _bound(written, MAX_TEXTS, "texts")
                put(layer, label)
    placed.sort(key=lambda each: each[0])  # stable: within a layer as the state has them
    return tuple(mark for _, mark in placed)


def _graphic(one: Attributes, colour: Colour) -> Graphic | None:
    try:
        shape = Shape(code(one, _TYPE))
    except ValueError:
        return None
    values = numbers(one, _DATA)
    least = {Shape.POINT: 2, Shape.ELLIPSE: 8}.get(shape, 4)
    if len(values) < least or len(values) % 2:
        return None
    is_closed = shape in (Shape.CIRCLE, Shape.ELLIPSE) or values[:2] == values[-2:]
    return Graphic(shape, Spots(tuple(values), _of_area(one, _UNITS)), is_closed and code(one, _FILLED) == "Y", colour)


def _label(one: Attributes, colour: Colour) -> Text | None:
    words = text(one, _TEXT)
    corners = numbers(one, _BOX_TOP) + numbers(one, _BOX_BOTTOM)
    box = Spots(tuple(corners), _of_area(one, _BOX_UNITS)) if len(corners) == 4 else None
    point = numbers(one, _ANCHOR)
    anchor = Spots(tuple(point), _of_area(one, _ANCHOR_UNITS)) if len(point) == 2 else None
    if not words or (box is None and anchor is None):
        return None
    seen = box is not None and anchor is not None and code(one, _ANCHOR_SEEN) == "Y"
    return Text(words, box, _ALIGN.get(code(one, _JUSTIFIED), 0.0), anchor, seen, colour)


def _of_area(one: Attributes, tag: str) -> bool:
    units = code(one, tag)
    if units == "MATRIX":
        raise NotAcceptable("Presentation states with positions in the matrix of a tiled image are not shown.")
    return units == "DISPLAY"


def _plane(state: Attributes, image: Attributes, group: str, frame: int = 1) -> Plane | None:
    """An overlay of the state, or else of the image, in the frame that it covers; None for none or one too large."""
    source = state if f"{group}3000" in state else image
    rows, columns = (int(number(source, f"{group}{element}") or 0) for element in ("0010", "0011"))
    origin = numbers(source, f"{group}0050")
    top, left = (int(origin[0]) - 1, int(origin[1]) - 1) if len(origin) == 2 else (0, 0)
    if rows < 1 or columns < 1 or rows * columns > MAX_PLANE_PIXELS:
        return None
    bits = data(source, f"{group}3000")
    if not bits:
        position = int(number(source, f"{group}0102") or 0)
        # Bits among the samples are of the image and as large as it.
        return Plane(rows, columns, 0, 0, b"", position) if position > 0 and source is image else None
    planes = int(number(source, f"{group}0015") or 1)
    index = frame - int(number(source, f"{group}0051") or 1) if planes > 1 else 0
    if not 0 <= index < planes or len(bits) * 8 < rows * columns * (index + 1):
        return None
    if index:
        value = int.from_bytes(bits, "little") >> (rows * columns * index)
        bits = (value & ((1 << rows * columns) - 1)).to_bytes((rows * columns + 7) // 8, "little")
    return Plane(rows, columns, top, left, bits[: (rows * columns + 7) // 8], 0)


def _colour(attributes: Attributes, grey: str, lab: str, default: Colour) -> Colour:
    """A recommended colour: CIELab, or grey of 16 bits (PS3.3 C.10.7.1.1)."""
    values = numbers(attributes, lab)
    if len(values) == 3:
        return _rgb(values)
    shade = number(attributes, grey)
    if shade is None:
        return default
    level = min(255, max(0, round(shade / 257)))
    return level, level, level


def _rgb(encoded: Sequence[float]) -> Colour:
    """sRGB of PCS-Values: L* from 0 to 100, a* and b* from -128 to 127, each over 16 bits; white is that of D50."""
    lightness, a, b = encoded[0] / 655.35, encoded[1] / 257 - 128, encoded[2] / 257 - 128
    y = (lightness + 16) / 116
    x, y, z = (
        white * (value**3 if value > 6 / 29 else 3 * (6 / 29) ** 2 * (value - 4 / 29))
        for white, value in ((0.9642, y + a / 500), (1.0, y), (0.8249, y - b / 200))
    )
    linear = (  # Bradford-adapted from D50
        3.1338561 * x - 1.6168667 * y - 0.4906146 * z,
        -0.9787684 * x + 1.9161415 * y + 0.0334540 * z,
        0.0719453 * x - 0.2289914 * y + 1.4052427 * z,
    )
    red, green, blue = (
        round(255 * min(1.0, max(0.0, 12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055))) for v in linear
    )
    return red, green, blue


def without_texts(softcopy: Softcopy) -> Softcopy:
    """The same for a thumbnail, which has no text (THUMB-01)."""
    return replace(softcopy, marks=tuple(mark for mark in softcopy.marks if not isinstance(mark, Text)))
