"""What comes onto a picture: what a presentation state cuts off, turns and draws, and the text of an annotation.

    staged_picture(...)     an image by a presentation state (PS3.4 N.2.3 to N.2.5)
    captioned(...)          a picture with text in its corners (PS3.18 §8.3.5.1.1)

Lines are cut to the picture before they are drawn, so that no position costs more than those that are seen; and what
all of them cost together is bounded, so that no state takes a thread for long.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gateway.domain.caption import Caption
from gateway.domain.display import Window
from gateway.domain.errors import NotAcceptable
from gateway.domain.softcopy import Colour, Graphic, Plane, Shape, Shutter, Spots, Stage, Text

from . import lettering
from .scaling import Picture, scaled

Bits = NDArray[np.bool_]
Points = NDArray[np.float64]
"""(count, 2): x and y."""

_CURVE_STEPS: Final = 16
"""Lines that a piece of a curve is drawn as."""
_ROUND_STEPS: Final = 256
"""Lines that a circle or an ellipse is drawn as."""
_MAX_CURVE_POINTS: Final = 1 << 17
_FAR: Final = 1e6
"""Beyond it a corner of a filled shape is taken to be there, in pixels of the picture."""
_MAX_EFFORT: Final = 5e7
"""Some ten seconds of drawing lines and filling shapes, in corners that are looked at for a row of pixels."""
_LINES: Final = 36
"""Of text that would fill a picture from top to bottom."""
_LEAST_SIZE, _GREATEST_SIZE = 9, 64


def staged_picture(picture: Picture, stage: Stage, bits: Callable[[int], Bits]) -> Picture:
    """An image as a presentation state has it; `bits` gives one bit of its samples by its position."""
    shutter = stage.softcopy.shutter
    colours = [mark.colour for mark in stage.softcopy.marks] + ([shutter.colour] if shutter else [])
    if picture.ndim == 2 and any(len(set(colour)) > 1 for colour in colours):
        picture = np.repeat(picture[..., np.newaxis], 3, axis=2)
    if shutter is not None:
        picture = picture.copy()
        hidden = _hidden(shutter, picture.shape[0], picture.shape[1])
        picture[hidden] = shutter.colour if picture.ndim == 3 else shutter.colour[0]
    canvas = np.zeros((stage.height, stage.width, *picture.shape[2:]), np.uint8)
    _lay(stage, picture, canvas, 0, 0, scaled)
    if not stage.softcopy.marks:
        return canvas
    image = Image.fromarray(canvas)
    effort = _Effort()
    for mark in stage.softcopy.marks:
        match mark:
            case Plane():
                _draw_plane(image, stage, mark, bits)
            case Graphic():
                _draw_graphic(image, stage, mark, effort)
            case Text():
                _draw_text(image, stage, mark, effort)
    return np.asarray(image)


class _Effort:
    """What the marks of one picture have cost."""

    def __init__(self) -> None:
        self._spent = 0.0

    def spend(self, amount: float) -> None:
        """Before it is done. Raises NotAcceptable."""
        self._spent += amount
        if self._spent > _MAX_EFFORT:
            raise NotAcceptable("The presentation state draws more than is drawn here: ask for a smaller viewport.")


def _ink(image: Image.Image, colour: Colour) -> lettering.Ink:
    return colour if image.mode == "RGB" else colour[0]


def _hidden(shutter: Shutter, rows: int, columns: int) -> Bits:
    """The pixels of an image that lie outside of any shape of a shutter (PS3.3 C.7.6.11)."""
    row, column = np.ogrid[1 : rows + 1, 1 : columns + 1]
    seen = np.ones((rows, columns), bool)
    if shutter.rectangle is not None:
        left, right, top, bottom = shutter.rectangle
        seen &= (column >= left) & (column <= right) & (row >= top) & (row <= bottom)
    if shutter.circle is not None:
        middle_row, middle_column, radius = shutter.circle
        seen &= np.hypot(row - middle_row, column - middle_column) <= radius
    if shutter.polygon:
        within = Image.new("L", (columns, rows))
        corners = np.array(shutter.polygon).reshape(-1, 2)[:, ::-1] - 1
        ImageDraw.Draw(within).polygon(_flat(corners.clip(-_FAR, _FAR)), fill=1)
        seen &= np.asarray(within, bool)
    if shutter.plane is not None:
        plane = shutter.plane
        left, top = max(0, plane.left), max(0, plane.top)
        hides = _unpacked(plane)[top - plane.top :, left - plane.left :]
        part = seen[top : top + hides.shape[0], left : left + hides.shape[1]]
        part &= ~hides[: part.shape[0], : part.shape[1]]
    return ~seen


def _lay(
    stage: Stage, pixels: NDArray[Any], canvas: NDArray[Any], left: int, top: int, resized: Callable[..., NDArray[Any]]
) -> None:
    """Puts pixels, the first of which is at column `left` and row `top` of the image, where they are seen."""
    area = stage.softcopy.area
    rows, columns = pixels.shape[:2]
    from_x, to_x = max(left, area.left), min(left + columns, area.right)
    from_y, to_y = max(top, area.top), min(top + rows, area.bottom)
    if from_x >= to_x or from_y >= to_y:
        return
    piece = pixels[from_y - top : to_y - top, from_x - left : to_x - left]
    piece = np.rot90(piece, -stage.softcopy.quarters)
    if stage.softcopy.mirrored:
        piece = piece[:, ::-1]
    corners = stage.at(from_x, from_y), stage.at(to_x, to_y)
    (x, end_x), (y, end_y) = (sorted(round(corner[axis]) for corner in corners) for axis in (0, 1))
    if end_x > x and end_y > y:
        canvas[y:end_y, x:end_x] = resized(piece, end_y - y, end_x - x)


# --- overlays --------------------------------------------------------------------------------------------------------


def _unpacked(plane: Plane) -> Bits:
    count = plane.rows * plane.columns
    packed = np.frombuffer(plane.bits, np.uint8)
    return np.unpackbits(packed, count=count, bitorder="little").reshape(plane.rows, plane.columns).astype(bool)


def _draw_plane(image: Image.Image, stage: Stage, plane: Plane, bits: Callable[[int], Bits]) -> None:
    mask = np.zeros((stage.height, stage.width), bool)
    _lay(stage, _unpacked(plane) if plane.bits else bits(plane.position), mask, plane.left, plane.top, _resampled)
    image.paste(_ink(image, plane.colour), (0, 0), Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))))


def _resampled(bits: Bits, rows: int, columns: int) -> Bits:
    """In another size: where several become one, any of them counts, so that thin lines stay."""
    for axis, count in ((0, rows), (1, columns)):
        size = bits.shape[axis]
        starts = np.arange(count) * size // count
        if count < size:
            bits = np.logical_or.reduceat(bits, starts, axis=axis)
        elif count > size:
            bits = bits.take(starts, axis=axis)
    return bits


# --- graphics --------------------------------------------------------------------------------------------------------


def _draw_graphic(image: Image.Image, stage: Stage, graphic: Graphic, effort: _Effort) -> None:
    pen, ink = ImageDraw.Draw(image), _ink(image, graphic.colour)
    if graphic.shape is Shape.POINT:
        ((x, y),) = _placed(stage, graphic.spots)[:1]
        radius = _line_width(stage) + 1
        if -radius <= x <= stage.width + radius and -radius <= y <= stage.height + radius:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
        return
    points = _placed(stage, graphic.spots, _outline(graphic))
    if graphic.filled:
        effort.spend(stage.height * (len(points) + stage.width / 512))
        pen.polygon(_flat(points.clip(-_FAR, _FAR)), fill=ink)
    _draw_line(pen, stage, points, ink, effort)


def _draw_line(pen: ImageDraw.ImageDraw, stage: Stage, points: Points, ink: lettering.Ink, effort: _Effort) -> None:
    width = _line_width(stage)
    for piece in _within(points, stage.width, stage.height):
        effort.spend((np.hypot(*np.diff(piece, axis=0).T).sum() * width + len(piece)) / 8)
        pen.line(_flat(piece), fill=ink, width=width)


def _line_width(stage: Stage) -> int:
    return 1 + min(stage.width, stage.height) // 512


def _placed(stage: Stage, spots: Spots, points: Points | None = None) -> Points:
    """Where positions are in the picture; `points` in place of those that are told."""
    if points is None:
        points = np.array(spots.values).reshape(-1, 2)
    return np.column_stack(stage.at(points[:, 0], points[:, 1], spots.of_area))


def _outline(graphic: Graphic) -> Points:
    """The corners of the line that stands for a shape."""
    told = np.array(graphic.spots.values).reshape(-1, 2)
    turns = np.linspace(0.0, 2 * math.pi, _ROUND_STEPS + 1)[:, np.newaxis]
    match graphic.shape:
        case Shape.CIRCLE:
            radius = math.hypot(*(told[1] - told[0]))
            return np.asarray(told[0] + radius * np.hstack((np.cos(turns), np.sin(turns))))
        case Shape.ELLIPSE:
            middle = told[:2].mean(axis=0)
            return np.asarray(
                middle + np.cos(turns) * (told[1] - told[0]) / 2 + np.sin(turns) * (told[3] - told[2]) / 2
            )
        case Shape.INTERPOLATED if 2 < len(told) <= _MAX_CURVE_POINTS // _CURVE_STEPS:
            return _curve(told)
        case _:  # of so many points each line is short enough
            return told


def _curve(told: Points) -> Points:
    """A curve through all points: of Catmull and Rom, closed where the points are."""
    closed = bool((told[0] == told[-1]).all())
    before, after = (told[-2], told[1]) if closed else (told[0], told[-1])
    all_points = np.vstack((before, told, after))
    p, q, r, s = (all_points[n : len(told) - 1 + n, np.newaxis] for n in range(4))
    t = np.linspace(0.0, 1.0, _CURVE_STEPS, endpoint=False)[np.newaxis, :, np.newaxis]
    pieces = 0.5 * (2 * q + (r - p) * t + (2 * p - 5 * q + 4 * r - s) * t**2 + (3 * q - p - 3 * r + s) * t**3)
    return np.vstack((pieces.reshape(-1, 2), told[-1:]))


def _within(points: Points, width: int, height: int) -> list[Points]:
    """The lines between neighbours, those parts of them that are seen, joined where they go on (Liang and Barsky)."""
    start, step = points[:-1], np.diff(points, axis=0)
    first, last = np.zeros(len(start)), np.ones(len(start))
    margin = 8.0
    with np.errstate(divide="ignore", invalid="ignore"):
        for axis, size in ((0, width), (1, height)):
            lower = (-margin - start[:, axis]) / step[:, axis]
            upper = (size + margin - start[:, axis]) / step[:, axis]
            still = step[:, axis] == 0
            outside = still & ((start[:, axis] < -margin) | (start[:, axis] > size + margin))
            enters = np.where(still, 0.0, np.minimum(lower, upper))
            leaves = np.where(still, np.where(outside, -1.0, 1.0), np.maximum(lower, upper))
            first, last = np.maximum(first, enters), np.minimum(last, leaves)
    seen = np.flatnonzero(first <= last)
    if not seen.size:
        return []
    begin = start[seen] + first[seen, np.newaxis] * step[seen]
    end = start[seen] + last[seen, np.newaxis] * step[seen]
    breaks = np.flatnonzero((begin[1:] != end[:-1]).any(axis=1)) + 1
    return [
        np.vstack((begins[:1], ends))
        for begins, ends in zip(np.split(begin, breaks), np.split(end, breaks), strict=True)
    ]


def _flat(points: Points) -> list[float]:
    """As pens take them: the pixels that the positions are in."""
    return np.floor(points).ravel().tolist()


# --- text ------------------------------------------------------------------------------------------------------------


def _draw_text(image: Image.Image, stage: Stage, text: Text, effort: _Effort) -> None:
    pen, ink = ImageDraw.Draw(image), _ink(image, text.colour)
    outline = _ink(image, (0, 0, 0) if sum(text.colour) > 382 else _OPPOSITE)
    size = _letter_size(stage.width, stage.height)
    height = lettering.height_of(size)
    lines = [line.rstrip() for line in text.text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    lines = lines[: max(1, stage.height // height)]
    if text.box is not None:
        corners = _placed(stage, text.box)
        (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    else:
        assert text.anchor is not None
        ((left, top),) = _placed(stage, text.anchor)
        right, bottom = left, top
    if text.is_pointed and text.anchor is not None:
        ((x, y),) = _placed(stage, text.anchor)
        nearest = (min(max(x, left), right), min(max(y, top), bottom))
        _draw_line(pen, stage, np.array([(x, y), nearest]), ink, effort)
    widths = [lettering.width_of(line, size) for line in lines]
    spare = max(0.0, right - left)
    for number, (line, width) in enumerate(zip(lines, widths, strict=True)):
        x, y = left + (spare - width) * text.align, top + number * height
        # A box is often smaller than its text, or reaches out: the text is moved to where it is seen.
        x = min(max(x, 0.0), max(0.0, stage.width - width))
        y = min(max(y, number * height), max(0.0, stage.height - (len(lines) - number) * height))
        lettering.draw(pen, x, y, lettering.fitted(line, size, stage.width), size, ink, outline)


_OPPOSITE: Final = (255, 255, 255)


def _letter_size(width: int, height: int) -> int:
    return min(_GREATEST_SIZE, max(_LEAST_SIZE, min(width, height) // _LINES))


def captioned(picture: Picture, caption: Caption, window: Window | None) -> Picture:
    """A picture with text in its corners: white with a black edge, each block less than half as wide as the picture and
    less than half as high; what is longer is cut, and ends with dots."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    pen, white, black = ImageDraw.Draw(image), _ink(image, (255, 255, 255)), _ink(image, (0, 0, 0))
    width, height = image.size
    size = _letter_size(width, height)
    step = lettering.height_of(size)
    margin = size / 2
    room = max(1, int((height / 2 - margin) // step))
    told = caption.window(window)
    right = (*caption.matrix, told) if told else caption.matrix
    for lines, is_right, is_low in (
        (caption.patient, False, False),
        (caption.image, True, False),
        (caption.acquisition, False, True),
        (right, True, True),
    ):
        some = [lettering.fitted(line, size, width / 2 - 2 * margin) for line in lines[:room]]
        top = height - margin - len(some) * step if is_low else margin
        for number, line in enumerate(some):
            x = width - margin - lettering.width_of(line, size) if is_right else margin
            lettering.draw(pen, x, top + number * step, line, size, white, black)
    return np.asarray(image)
