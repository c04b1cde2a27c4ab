"""What an annotation writes into the corners of a picture: of the patient, of the technique (PS3.18 §8.3.5.1.1).

captions(attributes, ...)   one Caption for each frame, or one for all
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .attributes import Attributes, item, items, number, numbers, text
from .display import Window

PATIENT: Final = "patient"
TECHNIQUE: Final = "technique"
KINDS: Final = (PATIENT, TECHNIQUE)
"""The keywords of `annotation`."""

_SHARED, _PER_FRAME = "52009229", "52009230"
_MAX_TEXT: Final = 64
"""Letters of a value that are shown, so that none hides the image."""


@dataclass(frozen=True, slots=True)
class Caption:
    """Lines of text for the corners of a picture."""

    patient: tuple[str, ...] = ()
    """Top left."""
    image: tuple[str, ...] = ()
    """Top right: when, of what, which one."""
    acquisition: tuple[str, ...] = ()
    """Bottom left."""
    matrix: tuple[str, ...] = ()
    """Bottom right, above the window."""
    has_window: bool = False

    def window(self, window: Window | None) -> str:
        """What is said of the window that a picture is made with."""
        return f"W {window.width:g}  C {window.center:g}" if self.has_window and window is not None else ""


def captions(attributes: Attributes, frames: int, kinds: Sequence[str]) -> tuple[Caption, ...]:
    """What these kinds say of an instance with so many frames, all edits applied; one where all say the same."""
    patient = _patient(attributes) if PATIENT in kinds else ()
    if TECHNIQUE not in kinds:
        return (Caption(patient),)
    shared = _flat(item(attributes, _SHARED))
    groups = items(attributes, _PER_FRAME)
    made = []
    for index in range(frames):
        # What a frame says goes before what all share, and that before the top level (PS3.3 C.7.6.16).
        own = _flat(groups[index]) if index < len(groups) else {}
        seen = {**attributes, **shared, **own} if shared or own else attributes
        which = f"Frame {index + 1}/{frames}" if frames > 1 else ""
        made.append(Caption(patient, _image(seen, which), _acquisition(seen), _matrix(seen), True))
    return tuple(made)


def _flat(group: Attributes) -> Attributes:
    """The attributes of the macros of functional groups, all on one level."""
    found: dict[str, object] = {}
    for tag in group:
        found |= item(group, tag)
    return found


def _patient(attributes: Attributes) -> tuple[str, ...]:
    born = _date(text(attributes, "00100030"))
    return _lines(
        [_name(text(attributes, "00100010"))],
        [_labelled("ID", text(attributes, "00100020"))],
        [_labelled("born", born), text(attributes, "00100040"), text(attributes, "00101010")],
    )


def _image(attributes: Attributes, which: str) -> tuple[str, ...]:
    day = next((found for tag in ("00080022", "00080021", "00080020") if (found := text(attributes, tag))), "")
    time = next((found for tag in ("00080032", "00080031", "00080030") if (found := text(attributes, tag))), "")
    side = text(attributes, "00200062") or text(attributes, "00200060")
    return _lines(
        [text(attributes, "00080060"), text(attributes, "00180015"), side, text(attributes, "00185101")],
        [_labelled("Study", _date(text(attributes, "00080020")))],
        [_labelled("Image", f"{_date(day)} {_time(time)}".strip())],
        [text(attributes, "00081030")],
        [text(attributes, "0008103E")],
        [_labelled("Series", text(attributes, "00200011")), _labelled("No.", text(attributes, "00200013")), which],
    )


def _acquisition(attributes: Attributes) -> tuple[str, ...]:
    echo = _measured("TE", attributes, ("00180081", "00189082"), "ms")
    return _lines(
        [
            _measured("", attributes, ("00180060",), "kV"),
            _measured("", attributes, ("00181151", "00189330"), "mA"),
            _measured("", attributes, ("00181152", "00189332"), "mAs"),
            _measured("", attributes, ("00181150", "00189328"), "ms"),
        ],
        [_measured("TR", attributes, ("00180080",), "ms"), echo, _measured("TI", attributes, ("00180082",), "ms")],
        [_measured("FA", attributes, ("00181314",), "\u00b0"), _measured("", attributes, ("00180087",), "T")],
        [text(attributes, "00181210")],
        [_measured("Thickness", attributes, ("00180050",), "mm")],
        [_measured("Location", attributes, ("00201041",), "mm")],
        [_labelled("Position", " ".join(f"{value:g}" for value in numbers(attributes, "00200032")[:3]))],
    )


def _matrix(attributes: Attributes) -> tuple[str, ...]:
    columns, rows = number(attributes, "00280011"), number(attributes, "00280010")
    spacing = numbers(attributes, "00280030") or numbers(attributes, "00181164")
    return _lines(
        [f"{columns:g} x {rows:g}" if columns and rows else ""],
        [f"{spacing[1]:.4g} x {spacing[0]:.4g} mm" if len(spacing) == 2 else ""],
    )


def _measured(name: str, attributes: Attributes, tags: Sequence[str], unit: str) -> str:
    value = next((found for tag in tags if (found := number(attributes, tag)) is not None), None)
    return "" if value is None else f"{name} {value:g} {unit}".replace(" \u00b0", "\u00b0").strip()


def _labelled(label: str, value: str) -> str:
    return f"{label} {value}" if value else ""


def _lines(*lines: Sequence[str]) -> tuple[str, ...]:
    """Each line's parts that say anything, cut to a length."""
    made = ("  ".join(part[:_MAX_TEXT] for part in parts if part) for parts in lines)
    return tuple(line for line in made if line)


def _name(name: str) -> str:
    """Family name first: `Roe, Jane Mary, Dr.` of `Roe^Jane^Mary^Dr.`."""
    family, given, *more = [*(part.strip() for part in name.split("^")), ""]
    middle, prefix, suffix = [*more, "", "", ""][:3]
    return ", ".join(part for part in (family, f"{given} {middle}".strip(), prefix, suffix) if part)


def _date(date: str) -> str:
    return f"{date[:4]}-{date[4:6]}-{date[6:]}" if re.fullmatch(r"[0-9]{8}", date) else date


def _time(time: str) -> str:
    return f"{time[:2]}:{time[2:4]}:{time[4:6]}" if re.fullmatch(r"[0-9]{6}(\.[0-9]*)?", time) else time
