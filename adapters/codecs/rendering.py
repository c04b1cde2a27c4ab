"""From a frame to a picture of 8 bits: modality, VOI and presentation transformations, colour, size, text, file format.

The order is that of PS3.3 C.11 and PS3.4 N.2: stored value, modality LUT or rescale, VOI LUT or window, inversion;
palettes and YBR become RGB. Samples of up to 16 bits go through one table of shades, kept for the next frame of its
kind; others are computed one by one.
"""

import math
from functools import lru_cache
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from gateway.domain import syntaxes
from gateway.domain.display import Curve, Display, LookupTable, Window
from gateway.domain.encapsulation import Buffer
from gateway.domain.errors import Corrupt, NotAcceptable
from gateway.domain.pixels import PixelFormat
from gateway.domain.presentation import Placement, Rendering, View, has_full_range, is_scalable, placed
from gateway.domain.softcopy import staged, without_texts

from . import native
from .drawing import Bits, captioned, staged_picture
from .native import Samples
from .registry import Codecs
from .scaling import Picture, scaled

Values = NDArray[np.float64]

_MAX_JPEG_SIDE: Final = 65500
_WEB_SAFE: Final = (6, 7, 6)
"""Levels of red, green and blue in a GIF whose colours do not fit into 256."""


class Pictures:
    """`ports.Renderer` by numpy and imagecodecs."""

    def __init__(self, codecs: Codecs) -> None:
        self._codecs = codecs

    def render(self, frame: Buffer, syntax: str, format: PixelFormat, view: View, wanted: Rendering) -> bytes:
        """See `ports.Renderer.render`."""
        display, viewport = view.display, wanted.viewport
        window = wanted.window or (display.window if display.voi is None else None)
        if view.softcopy is not None:
            picture = self._staged(frame, syntax, format, view, wanted)
        else:
            place = placed(format.rows, format.columns, viewport)
            if syntax == syntaxes.HTJ2K_LOSSLESS_RPCL and is_scalable(format, view, wanted):
                data, plain = self._codecs.reduced(frame, format, max(place.width, place.height))
                place = Placement(0, 0, plain.columns, plain.rows, place.width, place.height)
            else:
                data, plain = self._codecs.decode(frame, syntax, format), syntaxes.decoded(format, syntax)
            picture = pictured(data, plain, display, wanted.window)
            picture = picture[place.top : place.bottom, place.left : place.right]
            if viewport is not None and viewport.region is not None:
                region = viewport.region
                picture = picture[:: -1 if region.flipped else 1, :: -1 if region.mirrored else 1]
            picture = scaled(picture, place.height, place.width)
        if view.caption is not None:
            picture = captioned(picture, view.caption, window)
        return _file(picture, wanted)

    def _staged(self, frame: Buffer, syntax: str, format: PixelFormat, view: View, wanted: Rendering) -> Picture:
        """A frame by a presentation state, which has its own window and region."""
        assert view.softcopy is not None
        softcopy = view.softcopy if wanted.has_texts else without_texts(view.softcopy)
        viewport = wanted.viewport
        box = None if viewport is None else (viewport.width, viewport.height)
        stage = staged(softcopy, box, enlarges=viewport is None or viewport.enlarges)
        data, plain = self._codecs.decode(frame, syntax, format), syntaxes.decoded(format, syntax)

        def bits(position: int) -> Bits:
            if plain.samples != 1 or plain.floating or position >= plain.bits_allocated:
                return np.zeros((plain.rows, plain.columns), bool)
            samples = _samples(data, plain)
            return np.asarray(samples.view(f"u{samples.dtype.itemsize}") >> position & 1, bool)

        return staged_picture(pictured(data, plain, view.display), stage, bits)


def pictured(data: Buffer, format: PixelFormat, display: Display, window: Window | None = None) -> Picture:
    """One native frame, colour by pixel, as it is to be shown; `window` in place of the display's own.

    Raises NotAcceptable, Corrupt.
    """
    if format.samples == 1:
        samples = _samples(data, format)
        if format.photometric == "PALETTE COLOR" and display.palette is not None:
            # The samples are indexes: no rescaling, no window (PS3.3 C.7.6.3.1.2).
            return np.stack([_looked_up_shades(samples, table, format) for table in display.palette], axis=-1)
        shades = _grey(samples, format, display, window)
        return shades if display.tints is None else _tinted(shades, display.tints)
    if format.samples != 3 or format.floating or format.photometric not in _COLOURS:
        raise NotAcceptable(
            f"{format.samples} samples a pixel of {format.photometric or 'no colour space'} are not shown."
        )
    half = format.photometric == "YBR_FULL_422"
    colours = _upsampled(data, format) if half else native.to_samples(data, format)
    if format.bits_allocated > 8 or format.signed or format.bits_stored < 8:
        greatest = (1 << format.bits_stored) - 1
        colours = np.rint(colours.clip(0, greatest) * (255.0 / greatest)).astype(np.uint8)
    return _rgb(colours) if format.photometric.startswith("YBR_FULL") else colours


_COLOURS: Final = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "MONOCHROME1", "MONOCHROME2"})
"""The last two name no colour: three samples of them are taken for RGB, as other readers do."""


# --- grey ------------------------------------------------------------------------------------------------------------


def _samples(data: Buffer, format: PixelFormat) -> Samples:
    if format.bits_allocated == 1:
        pixels = format.rows * format.columns
        return np.unpackbits(np.frombuffer(data, np.uint8), count=pixels, bitorder="little").reshape(
            format.rows, format.columns
        )
    if format.floating:
        flat = np.frombuffer(data, f"<f{format.bits_allocated // 8}")
        if flat.size != format.rows * format.columns:
            raise Corrupt(f"A native frame has {len(data)} bytes, its attributes say {format.frame_bytes}.")
        return flat.reshape(format.rows, format.columns)
    return native.to_samples(data, format)


def _grey(samples: Samples, format: PixelFormat, display: Display, window: Window | None) -> Picture:
    voi = None if window is not None else display.voi
    window = None if voi is not None else window or display.window
    span = None
    if voi is None and window is None:
        span = _span(samples, format, display)
    # A table that hangs on one frame's values is worth its making where it is smaller than the frame.
    alone = span is not None and samples.size < 1 << format.bits_allocated
    if alone or format.floating or format.bits_allocated not in (1, 8, 16):
        return _shades(samples, format, display, voi, window, span)
    table = _shade_table(format.bits_allocated, format.bits_stored, format.signed, display, voi, window, span)
    return np.asarray(table.take(samples.view(f"u{samples.dtype.itemsize}")), np.uint8)


@lru_cache(maxsize=64)
def _shade_table(
    bits_allocated: int,
    bits_stored: int,
    signed: bool,
    display: Display,
    voi: LookupTable | None,
    window: Window | None,
    span: tuple[float, float] | None,
) -> Picture:
    """The shade of every value that a cell of up to 16 bits can hold, read without a sign."""
    width = max(bits_allocated, 8)
    format = PixelFormat(1, 1 << width, 1, width, bits_stored, signed, "MONOCHROME2")
    cells = np.arange(1 << width, dtype=f"u{width // 8}").view(native.cell(format))
    return _shades(cells, format, display, voi, window, span)


def _shades(
    samples: Samples,
    format: PixelFormat,
    display: Display,
    voi: LookupTable | None,
    window: Window | None,
    span: tuple[float, float] | None,
) -> Picture:
    """From stored values to shades of 0 to 255; padding is black."""
    stored = _meant(samples, format)
    values = _modality(stored, display)
    with np.errstate(invalid="ignore", over="ignore"):
        if voi is not None:
            fraction = _looked_up(values, voi) / float((1 << voi.bits) - 1)
        elif window is not None:
            fraction = _windowed(values, window)
        else:
            least, greatest = span or (0.0, 0.0)
            fraction = (values - least) / (greatest - least) if greatest > least else np.zeros(values.shape)
        if display.shades is not None:  # the whole output of what goes before is its whole input (PS3.3 C.11.6.1)
            fraction = _spread(np.nan_to_num(fraction).clip(0.0, 1.0), display.shades)
        shades = np.rint(np.nan_to_num(fraction).clip(0.0, 1.0) * 255.0).astype(np.uint8)
    if display.inverse:
        shades = 255 - shades
    if display.padding is not None:
        shades[(stored >= display.padding[0]) & (stored <= display.padding[1])] = 0
    return shades


def _meant(samples: Samples, format: PixelFormat) -> Samples:
    """The samples without what stands above Bits Stored: overlays, or a sign that is not extended."""
    if format.floating or not 0 < format.bits_stored < format.bits_allocated:
        return samples
    if format.signed:
        return native.sign_extended(samples, format.bits_stored)
    return np.asarray(samples & samples.dtype.type((1 << format.bits_stored) - 1))


def _modality(stored: Samples, display: Display) -> Values:
    if display.modality is not None:
        return _looked_up(stored, display.modality)
    return stored.astype(np.float64) * display.slope + display.intercept


def _looked_up(values: Samples, table: LookupTable) -> Values:
    """The entries that values stand for; the outer ones for what lies outside (PS3.3 C.11.1.1)."""
    entries = np.frombuffer(table.entries, "<u2")
    index = np.nan_to_num(values.astype(np.float64) - table.first).clip(0, len(entries) - 1)
    return entries[np.rint(index).astype(np.intp)].astype(np.float64)


def _spread(fraction: Values, table: LookupTable) -> Values:
    """From 0 to 1 by a table of which 0 is the first entry and 1 the last."""
    entries = np.frombuffer(table.entries, "<u2")
    return entries[np.rint(fraction * (len(entries) - 1)).astype(np.intp)] / float((1 << table.bits) - 1)


def _tinted(shades: Picture, tints: tuple[LookupTable, LookupTable, LookupTable]) -> Picture:
    """Shades in the colours of a palette, black in the first of them (PS3.4 N.2.2.1.1)."""
    ramp = np.arange(256) / 255.0
    table = np.stack([_spread(ramp, tint) for tint in tints], axis=-1).clip(0.0, 1.0)
    return np.asarray(np.rint(table * 255.0).astype(np.uint8)[shades])


def _windowed(values: Values, window: Window) -> Values:
    """From 0 to 1, not clipped (PS3.3 C.11.2.1.2, C.11.2.1.3)."""
    if window.curve is Curve.SIGMOID:
        return 1.0 / (1.0 + np.exp((-4.0 * (values - window.center) / window.width).clip(-700, 700)))
    if window.curve is Curve.LINEAR_EXACT:
        return (values - window.center) / window.width + 0.5
    if window.width == 1:
        return (values > window.center - 0.5).astype(np.float64)
    return (values - (window.center - 0.5)) / (window.width - 1.0) + 0.5


def _span(samples: Samples, format: PixelFormat, display: Display) -> tuple[float, float]:
    """The values to be shown as black and as white where nothing says it."""
    if display.full_range and display.modality is not None:
        return 0.0, float((1 << display.modality.bits) - 1)
    if has_full_range(format, display):
        least, greatest = (0, (1 << format.bits_stored) - 1)
        if format.signed:
            least, greatest = -(1 << format.bits_stored - 1), (1 << format.bits_stored - 1) - 1
        ends = sorted((least * display.slope + display.intercept, greatest * display.slope + display.intercept))
        return ends[0], ends[1]
    stored = _meant(samples, format)
    if display.padding is not None:
        stored = stored[(stored < display.padding[0]) | (stored > display.padding[1])]
    if format.floating:
        stored = stored[np.isfinite(stored)]
    if not stored.size:
        return 0.0, 0.0
    if display.modality is None:  # linear: the ends tell
        stored = np.array([stored.min(), stored.max()])
    values = _modality(stored, display)
    span = float(np.min(values)), float(np.max(values))
    return span if math.isfinite(span[0]) and math.isfinite(span[1]) else (0.0, 0.0)


# --- colour ----------------------------------------------------------------------------------------------------------


def _looked_up_shades(samples: Samples, table: LookupTable, format: PixelFormat) -> Picture:
    entries = _palette_table(format.bits_allocated, format.bits_stored, format.signed, table)
    return np.asarray(entries.take(samples.view(f"u{samples.dtype.itemsize}")), np.uint8)


@lru_cache(maxsize=48)
def _palette_table(bits_allocated: int, bits_stored: int, signed: bool, table: LookupTable) -> Picture:
    """The shade of every value that a cell can hold. Raises NotAcceptable for indexes of more than 16 bits."""
    if bits_allocated > 16:
        raise NotAcceptable("Palette indexes of more than 16 bits are not shown.")
    width = max(bits_allocated, 8)
    format = PixelFormat(1, 1 << width, 1, width, bits_stored, signed, "PALETTE COLOR")
    cells = np.arange(1 << width, dtype=f"u{width // 8}").view(native.cell(format))
    looked_up = _looked_up(_meant(cells, format), table)
    return np.rint(looked_up.clip(0, (1 << table.bits) - 1) * (255.0 / ((1 << table.bits) - 1))).astype(np.uint8)


def _upsampled(data: Buffer, format: PixelFormat) -> Samples:
    """Native 4:2:2: two of Y, then the CB and CR that both pixels have (PS3.3 C.7.6.3.1.2)."""
    cells = np.frombuffer(data, native.cell(format))
    if format.columns % 2 or len(data) != format.frame_bytes:
        raise Corrupt(f"A native 4:2:2 frame has {len(data)} bytes, its attributes say {format.frame_bytes}.")
    pairs = cells.reshape(format.rows, format.columns // 2, 4)
    colours: Any = np.empty((format.rows, format.columns, 3), cells.dtype)
    colours[..., 0] = pairs[..., :2].reshape(format.rows, format.columns)
    colours[..., 1] = np.repeat(pairs[..., 2], 2, axis=1)
    colours[..., 2] = np.repeat(pairs[..., 3], 2, axis=1)
    return np.asarray(colours)


def _rgb(ybr: Samples) -> Picture:
    """RGB of YBR_FULL (PS3.3 C.7.6.3.1.2)."""
    y, cb, cr = (ybr[..., n].astype(np.float32) for n in range(3))
    cb -= 128.0
    cr -= 128.0
    rgb = np.empty(ybr.shape, np.float32)
    rgb[..., 0] = y + 1.402 * cr
    rgb[..., 1] = y - 0.344136 * cb - 0.714136 * cr
    rgb[..., 2] = y + 1.772 * cb
    np.rint(rgb, out=rgb)
    return rgb.clip(0, 255, out=rgb).astype(np.uint8)


# --- file ---------------------------------------------------------------------------------------------------


def _file(picture: Picture, wanted: Rendering) -> bytes:
    picture = np.ascontiguousarray(picture)
    if wanted.media_type == "image/png":
        return bytes(imagecodecs.png_encode(picture, level=1))
    if max(picture.shape[:2]) > _MAX_JPEG_SIDE:
        raise NotAcceptable("The image is too large for this type: ask for image/png, or with a viewport.")
    if wanted.media_type == "image/gif":
        return _gif(picture)
    return bytes(imagecodecs.jpeg8_encode(picture, level=wanted.quality))


_GIF_HEAD_BYTES: Final = 4096
"""More than all of a GIF but its samples takes."""


def _gif(picture: Picture) -> bytes:
    if picture.ndim == 2:
        return _lzw(picture, np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(-1, 3))
    packed = picture.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colours, index = np.unique(packed, return_inverse=True)
    if len(colours) > 256:
        levels = np.array(_WEB_SAFE)
        coarse = np.rint(picture * ((levels - 1) / 255.0)).astype(np.intp)
        index = (coarse[..., 0] * levels[1] + coarse[..., 1]) * levels[2] + coarse[..., 2]
        grid = np.stack(np.meshgrid(*(np.arange(n) * 255 // (n - 1) for n in _WEB_SAFE), indexing="ij"), -1)
        table = grid.reshape(-1, 3)
    else:
        table = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], -1)
    colormap = np.zeros((256, 3), np.uint8)
    colormap[: len(table)] = table
    return _lzw(index.reshape(picture.shape[:2]).astype(np.uint8), colormap)


def _lzw(index: Picture, colormap: Picture) -> bytes:
    # Noise grows: a code of up to 12 bits for each sample. The codec by itself leaves no room for that, and fails.
    room = 2 * index.size + _GIF_HEAD_BYTES
    return bytes(imagecodecs.gif_encode(index, colormap=colormap, out=room))
