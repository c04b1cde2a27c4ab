"""Text in pictures: any letter that the fonts have, a box where they have none, legible on bright and on dark.

    draw(pen, ...)      one line of text, outlined
    width_of(...)       how wide it will be, in pixels
    fitted(...)         the line cut so that it is not wider

The fonts are Noto's, as a package brings them: Latin, Greek, Cyrillic and the scripts of Asia and Africa, Chinese,
Japanese and Korean excepted. What runs from right to left, and what is joined, needs Raqm with FriBiDi; without these
its letters are boxes too, rather than in a wrong order.
"""

import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Final

from PIL import ImageFont, features
from PIL.ImageDraw import ImageDraw

Ink = int | tuple[int, int, int]
"""Grey, or red, green and blue."""

_MAIN: Final = "NotoSans[wght].ttf"
_NO_TEXT: Final = ("NotoSans-Italic[wght].ttf", "NotoEmoji[wght].ttf")
_MISSING: Final = "\N{REPLACEMENT CHARACTER}"
_MORE: Final = "\N{HORIZONTAL ELLIPSIS}"
_PEN: Final = Lock()
"""FreeType's faces are for one thread at a time."""


def draw(pen: ImageDraw, x: float, y: float, line: str, size: int, ink: Ink, outline: Ink) -> None:
    """A line whose top left corner is at `x`, `y`; `size` is the height of its letters with what is above and below."""
    stroke = max(1, size // 12)
    with _PEN:
        baseline = y + _face(_MAIN, size).getmetrics()[0]
        # The outlines first: that of a run must not lie over the run before it.
        for color, width in ((outline, stroke), (ink, 0)):
            at = x
            for name, run in _runs(line):
                face = _face(name, size)
                pen.text((at, baseline), run, color, face, "ls", stroke_width=width, stroke_fill=color)
                at += face.getlength(run)


def width_of(line: str, size: int) -> float:
    """As `draw` draws it, without its outline."""
    with _PEN:
        return sum(_face(name, size).getlength(run) for name, run in _runs(line))


def height_of(size: int) -> int:
    """From the top of a line to that of the next one."""
    with _PEN:
        return sum(_face(_MAIN, size).getmetrics())


def fitted(line: str, size: int, width: float) -> str:
    """The line, or its start and an ellipsis."""
    if width_of(line, size) <= width:
        return line
    short, long = 0, len(line)
    while short + 1 < long:
        middle = (short + long) // 2
        if width_of(line[:middle].rstrip() + _MORE, size) <= width:
            short = middle
        else:
            long = middle
    return line[:short].rstrip() + _MORE


@lru_cache(maxsize=256)
def _runs(line: str) -> tuple[tuple[str, str], ...]:
    """The line as it is drawn, in pieces of one font each."""
    return tuple(_pieces(unicodedata.normalize("NFC", line)))


def _pieces(line: str) -> Iterator[tuple[str, str]]:
    held, before = "", _MAIN
    for letter in line:
        # Marks, spaces and the like stay with what they follow, where its font has them.
        joins = not letter.isalnum() and letter.isprintable() and before != _MAIN and _has(before, letter)
        name = before if joins else _font_of(letter)
        drawn = letter if name is not None else _MISSING
        name = name or _MAIN
        if held and name != before:
            yield before, held
            held = ""
        held, before = held + drawn, name
    if held:
        yield before, held


@lru_cache(maxsize=4096)
def _font_of(letter: str) -> str | None:
    """The font that has a letter, None where none has."""
    if not letter.isprintable():
        return None
    return next((name for name in _fonts() if _has(name, letter)), None)


@lru_cache(maxsize=4096)
def _has(name: str, letter: str) -> bool:
    face = _face(name, 16)
    return bytes(face.getmask(letter)) != bytes(face.getmask("\uffff"))


@cache
def _fonts() -> dict[str, str]:
    """The files of the fonts by name, the one that has most of our letters first."""
    folder = Path(str(files("manimgx_fonts")))
    names = [_MAIN]
    if features.check("raqm"):
        names += sorted({path.name for path in folder.glob("NotoSans*.ttf")} - {_MAIN, *_NO_TEXT})
    return {name: str(folder / name) for name in names}


@lru_cache(maxsize=256)
def _face(name: str, size: int) -> ImageFont.FreeTypeFont:
    layout = ImageFont.Layout.BASIC if name == _MAIN else ImageFont.Layout.RAQM
    return ImageFont.truetype(_fonts()[name], size, layout_engine=layout)
