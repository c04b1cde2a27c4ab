"""Attributes as metadata documents write them: their keys, and the values that each VR can hold (PS3.5 §6.2)."""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any, Final

from pydicom.datadict import get_entry, tag_for_keyword
from pydicom.valuerep import format_number_as_ds

from .dictionary import private_vr

BINARY: Final = frozenset({"OB", "OW", "OD", "OF", "OL", "OV", "UN", "OB or OW"})
"""VRs whose value is one base64 string, whatever their VM."""
MAX_DEPTH: Final = 64
"""Sequences within sequences."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """What a key of a metadata document names."""

    key: str
    """As documents write it: the keyword, or 8 upper-case hexadecimal digits where there is none."""
    tag: int
    vr: str | None
    """Of the dictionary, also `US or SS` and its like; None where only DICOMVRs can tell."""
    many: bool | None
    """True where the dictionary's VM is not 1: documents then hold an array. None where nobody knows."""
    by_keyword: bool
    """False when the key was hexadecimal, even if the attribute has a keyword."""

    @property
    def private(self) -> bool:
        return bool(self.tag >> 16 & 1)


@lru_cache(maxsize=8192)
def attribute(key: str) -> Attribute | None:
    """The attribute of a keyword or of 8 hexadecimal digits; None for other words, and for tags that no data set has
    (group lengths, command and delimiter elements)."""
    tag = tag_for_keyword(key)
    by_keyword = tag is not None
    if tag is None:
        if not re.fullmatch("[0-9A-Fa-f]{8}", key):
            return None
        tag = int(key, 16)
    group, element = tag >> 16, tag & 0xFFFF
    if group in (0, 0xFFFE, 0xFFFF) or element == 0 or (group & 1 and group < 8):
        return None
    if group & 1:
        creator = 0x10 <= element <= 0xFF
        return Attribute(f"{tag:08X}", tag, "LO" if creator else None, None, False)
    try:
        vr, vm, _, _, keyword = get_entry(tag)
    except KeyError:
        return Attribute(f"{tag:08X}", tag, None, None, False)
    if tag_for_keyword(keyword) != tag:  # a repeating group: its keyword does not tell which one
        return Attribute(f"{tag:08X}", tag, vr if vr in VRS else None, None, False)
    return Attribute(keyword, tag, vr, vm != "1" and vr not in BINARY and vr != "SQ", by_keyword)


class Unstorable(ValueError):
    """The value cannot be written in this VR at all; the text says what can, without the value."""


def fit(value: Any, attribute: Attribute, vrs: Mapping[str, str]) -> tuple[Any, str | None]:
    """The value in document form, and what is wrong with it: None where it conforms to the attribute's VR.

    `vrs` has the VR of keys without one, also inside sequences. Numbers are taken for IS and DS, and become text.
    Raises Unstorable for what no data set could hold.
    """
    return _fit(value, attribute, vrs, 0)


def _fit(value: Any, attribute: Attribute, vrs: Mapping[str, str], depth: int) -> tuple[Any, str | None]:
    vr = attribute.vr or vrs.get(attribute.key)
    if vr is None:
        raise Unstorable("its VR is unknown, name it in DICOMVRs")
    if vr == "SQ":
        return _items(value, vrs, depth + 1), None
    values = value if isinstance(value, list) else [value]
    if len(values) > 1 and (attribute.many is False or vr in BINARY):
        raise Unstorable("it takes one value")
    fitted = [_scalar(single, vr) for single in values]
    plain = [single for single, _ in fitted]
    if all(single is None for single in plain):
        return None, None
    problem = next((fault for _, fault in fitted if fault), None)
    return plain if attribute.many or len(plain) > 1 else plain[0], problem


def _items(value: Any, vrs: Mapping[str, str], depth: int) -> list[dict[str, Any]] | None:
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Unstorable("a sequence is an array of objects keyed by keyword")
    if depth > MAX_DEPTH:
        raise Unstorable(f"sequences nest deeper than {MAX_DEPTH}")
    items = []
    for item in value:
        fitted = {}
        for key, inner in item.items():
            named = attribute(key)
            if named is None or named.tag >> 16 == 2:
                raise Unstorable("a key in its items is not a DICOM keyword")
            try:
                fitted[named.key], _ = _fit(inner, named, vrs, depth)
            except Unstorable as fault:
                raise Unstorable(f"in its items, {named.key}: {fault}" if depth == 1 else str(fault)) from None
        items.append(fitted)
    return items


def private_vrs(value: Any, depth: int = 0) -> dict[str, str]:
    """VR of the private attributes within a sequence, where the dictionary knows the creator that their item names."""
    found: dict[str, str] = {}
    items = value if isinstance(value, list) and depth <= MAX_DEPTH else []
    for item in (item for item in items if isinstance(item, dict)):
        for key, inner in item.items():
            named = attribute(key)
            if named is not None and named.private:
                creator = item.get(f"{named.tag >> 16:04X}00{named.tag >> 8 & 0xFF:02X}")
                vr = private_vr(named.tag, creator) if isinstance(creator, str) else ""
                if vr in VRS and vr != "UN":
                    found[named.key] = vr
            found |= private_vrs(inner, depth + 1)
    return found


def _scalar(value: Any, vr: str) -> tuple[Any, str | None]:
    if value is None or value == "":
        return None, None
    if vr in ("US or OW", "US or SS or OW"):
        vr = "OW" if isinstance(value, str) else "US or SS"
    if vr in _WHOLE:
        low, high = _WHOLE[vr]
        if type(value) is not int or not low <= value <= high:
            raise Unstorable(f"VR {vr} holds whole numbers from {low} to {high}")
        return value, None
    if vr in _REAL:
        if type(value) not in (int, float) or not abs(value) <= _REAL[vr]:
            raise Unstorable(f"VR {vr} holds numbers within its range")
        return float(value), None
    if vr == "AT":
        if not isinstance(value, str) or not re.fullmatch("[0-9A-Fa-f]{8}", value):
            raise Unstorable("VR AT holds tags as 8 hexadecimal digits")
        return value.upper(), None
    if vr in BINARY:
        return _binary(value, vr), None
    if vr not in _TEXT:
        raise Unstorable("its VR is none of DICOM")
    return _text(value, vr)


def _binary(value: Any, vr: str) -> str:
    try:
        if not isinstance(value, str):
            raise TypeError
        base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise Unstorable(f"VR {vr} holds base64 text") from None
    return value


def _text(value: Any, vr: str) -> tuple[str | None, str | None]:
    if type(value) in (int, float) and vr in ("IS", "DS"):
        value = _number_text(value)
    conforms, what = _TEXT[vr]
    if not isinstance(value, str):
        raise Unstorable(f"VR {vr} holds text: {what}")
    if "\0" in value:
        raise Unstorable("text cannot hold NUL characters")
    if vr not in ("IS", "DS"):
        value = value.rstrip(" ")
        if not value:
            return None, None
    return value, None if conforms(value) else what


def _number_text(value: float) -> str:
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    text = repr(value)
    return text if len(text) <= 16 else format_number_as_ds(float(value))


def _matches(pattern: str, length: int | None = None) -> Callable[[str], bool]:
    compiled = re.compile(pattern, re.ASCII)
    return lambda text: (length is None or len(text) <= length) and compiled.fullmatch(text) is not None


def _is_date(text: str) -> bool:
    if not re.fullmatch("[0-9]{8}", text):
        return False
    try:
        date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return False
    return True


def _is_datetime(text: str) -> bool:
    # A date-time may stop after any component; the missing ones are filled in to judge the date.
    found = re.fullmatch(rf"([0-9]{{4}})([0-9]{{2}})?([0-9]{{2}})?({_TIME})?([+-](0[0-9]|1[0-4])[0-5][0-9])?", text)
    if found is None or (found[4] and not found[3]):
        return False
    return _is_date(found[1] + (found[2] or "01") + (found[3] or "01"))


def _is_name(text: str) -> bool:
    groups = text.split("=")
    return (
        len(groups) <= 3 and all(len(group) <= 64 and group.count("^") <= 4 for group in groups) and _single_line(text)
    )


def _is_integer(text: str) -> bool:
    return _integer(text) and -(1 << 31) <= int(text) < 1 << 31


_TIME: Final = r"(?:[01][0-9]|2[0-3])(?:[0-5][0-9](?:(?:[0-5][0-9]|60)(?:\.[0-9]{1,6})?)?)?"
_LINE: Final = r"[^\x00-\x1f\x7f\\]*"
_single_line = _matches(_LINE)
_integer = _matches(r" *[+-]?[0-9]+ *", 12)
_paragraph: Final = r"[^\x00-\x08\x0b\x0e-\x1f\x7f]*"

_TEXT: Final[Mapping[str, tuple[Callable[[str], bool], str]]] = {
    "AE": (_matches(r" *[!-\[\]-~][ -\[\]-~]*", 16), "up to 16 ASCII characters without backslash"),
    "AS": (_matches("[0-9]{3}[DWMY]"), "an age such as 045Y, with D, W, M or Y"),
    "CS": (_matches("[A-Z0-9 _]*", 16), "up to 16 upper-case letters, digits, spaces and underscores"),
    "DA": (_is_date, "a date as YYYYMMDD"),
    "DS": (_matches(r" *[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)? *", 16), "a number of up to 16 characters"),
    "DT": (_is_datetime, "a date and time as YYYYMMDDHHMMSS.FFFFFF with an optional offset such as +0100"),
    "IS": (_is_integer, "a whole number of up to 12 characters within 32 bits"),
    "LO": (_matches(_LINE, 64), "one line of up to 64 characters without backslash"),
    "LT": (_matches(_paragraph, 10240), "text of up to 10240 characters"),
    "PN": (_is_name, "up to three name groups of five components and 64 characters each"),
    "SH": (_matches(_LINE, 16), "one line of up to 16 characters without backslash"),
    "ST": (_matches(_paragraph, 1024), "text of up to 1024 characters"),
    "TM": (_matches(_TIME), "a time as HHMMSS.FFFFFF"),
    "UC": (_single_line, "one line without backslash"),
    "UI": (_matches(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*", 64), "a UID of up to 64 digits and dots"),
    "UR": (_matches(r"[!-\[\]-~]*"), "a URI without spaces or backslash"),
    "UT": (_matches(_paragraph), "text without control characters"),
}
_WHOLE: Final[Mapping[str, tuple[int, int]]] = {
    "US": (0, (1 << 16) - 1),
    "SS": (-(1 << 15), (1 << 15) - 1),
    "US or SS": (-(1 << 15), (1 << 16) - 1),
    "UL": (0, (1 << 32) - 1),
    "SL": (-(1 << 31), (1 << 31) - 1),
    "UV": (0, (1 << 64) - 1),
    "SV": (-(1 << 63), (1 << 63) - 1),
}
_REAL: Final[Mapping[str, float]] = {"FL": 3.4028234663852886e38, "FD": 1.7976931348623157e308}

VRS: Final = frozenset({*_TEXT, *_WHOLE, *_REAL, *BINARY, "AT", "SQ"} - {"US or SS", "OB or OW"})
"""Every VR that a data element can have."""


def from_text(text: str, vr: str, many: bool | None) -> Any:
    """A value as a person types it, in document form: backslashes separate values, numbers are read as such.

    Raises Unstorable where the VR takes no such text.
    """
    if text == "":
        return None
    if vr == "SQ":
        raise Unstorable("a sequence cannot be typed, send it as a JSON document")
    numeric = vr in _WHOLE or vr in _REAL or vr in ("US or OW", "US or SS or OW")
    if not numeric:
        return text.split("\\") if many else text
    try:
        values = [float(part) if vr in _REAL else int(part) for part in text.split("\\")]
    except ValueError:
        raise Unstorable(f"VR {vr} holds numbers, several are separated by backslashes") from None
    return values if many or len(values) > 1 else values[0]
