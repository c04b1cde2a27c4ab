"""A structured report as text: its content tree, one line an item (PS3.3 C.17.3, PS3.18 table 8.7.4-1).

    is_report(sop_class)               whether instances of a SOP class have a content tree
    read(attributes)                   DICOM JSON -> Report
    as_html, as_text, as_xml(report)   UTF-8 bytes
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Final
from xml.sax.saxutils import quoteattr

Attributes = Mapping[str, Any]
"""DICOM JSON elements by tag."""

_REPORTS: Final = "1.2.840.10008.5.1.4.1.1.88."
_MAX_DEPTH: Final = 64

_CONTENT, _NAME, _KIND, _RELATION = "0040A730", "0040A043", "0040A040", "0040A010"
_MEANING, _CODE = "00080104", "00080100"
_TEXT, _CONCEPT, _MEASURED, _NUMBER, _UNITS = "0040A160", "0040A168", "0040A300", "0040A30A", "004008EA"
_REFERENCED, _INSTANCE, _GRAPHIC = "00081199", "00081155", "00700023"
_PLAIN: Final = {
    "DATETIME": "0040A120",
    "DATE": "0040A121",
    "TIME": "0040A122",
    "PNAME": "0040A123",
    "UIDREF": "0040A124",
    "SCOORD": _GRAPHIC,
    "SCOORD3D": _GRAPHIC,
    "TCOORD": "0040A130",
}


@dataclass(frozen=True, slots=True)
class Item:
    """A content item."""

    depth: int
    """1 for what stands directly in the report."""
    kind: str
    """Value Type, e.g. `NUM`."""
    name: str
    """The meaning of its concept name; empty where it has none."""
    value: str


@dataclass(frozen=True, slots=True)
class Report:
    title: str
    items: tuple[Item, ...]


def is_report(sop_class: str) -> bool:
    return sop_class.startswith(_REPORTS)


def read(attributes: Attributes) -> Report:
    """The content tree in the order of reading; what is nested deeper than 64 items is left out."""
    return Report(_meaning(attributes, _NAME) or "Report", tuple(_walk(attributes, 1)))


def _walk(parent: Attributes, depth: int) -> Iterator[Item]:
    if depth > _MAX_DEPTH:
        return
    for content in _items(parent, _CONTENT):
        kind = _text(content, _KIND)
        yield Item(depth, kind, _meaning(content, _NAME), _value(content, kind))
        yield from _walk(content, depth + 1)


def _value(content: Attributes, kind: str) -> str:
    if kind == "TEXT":
        return _text(content, _TEXT)
    if kind == "CODE":
        return _meaning(content, _CONCEPT)
    if kind == "NUM":
        for measured in _items(content, _MEASURED)[:1]:
            units = next((_text(unit, _CODE) for unit in _items(measured, _UNITS)), "")
            return f"{_text(measured, _NUMBER)} {'' if units == '1' else units}".strip()
        return ""
    if kind in ("IMAGE", "COMPOSITE", "WAVEFORM"):
        return ", ".join(_text(referenced, _INSTANCE) for referenced in _items(content, _REFERENCED))
    return _text(content, _PLAIN[kind]) if kind in _PLAIN else ""


def _items(attributes: Attributes, tag: str) -> list[Attributes]:
    values = (attributes.get(tag) or {}).get("Value")
    return [item for item in values if isinstance(item, dict)] if isinstance(values, list) else []


def _meaning(attributes: Attributes, tag: str) -> str:
    return next((_text(code, _MEANING) or _text(code, _CODE) for code in _items(attributes, tag)), "")


def _text(attributes: Attributes, tag: str) -> str:
    values = (attributes.get(tag) or {}).get("Value")
    if not isinstance(values, list) or not values or values[0] is None:
        return ""
    value = values[0]
    return str(value.get("Alphabetic", "") if isinstance(value, dict) else value)


# --- text ------------------------------------------------------------------------------------------------------------


def as_text(report: Report) -> bytes:
    """A line for each item, two spaces deeper for each level."""
    lines = [report.title]
    for item in report.items:
        told = ": ".join(part for part in (item.name, item.value) if part) or item.kind
        lines.append("  " * item.depth + told.replace("\r\n", "\n").replace("\n", "\n" + "  " * (item.depth + 1)))
    return ("\n".join(lines) + "\n").encode()


def as_html(report: Report) -> bytes:
    """Nested lists; containers in bold."""
    title = escape(report.title)
    pieces = [f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n<body>']
    pieces.append(f"<h1>{title}</h1>\n")
    depth = 0
    for item in report.items:
        pieces.append("</li>" if depth >= item.depth else "")
        pieces.append("<ul>" * (item.depth - depth) or "</ul></li>" * (depth - item.depth))
        name = f"<b>{escape(item.name)}</b>" if item.name else ""
        value = escape(item.value).replace("\n", "<br>")
        pieces.append(f"\n<li>{': '.join(part for part in (name, value) if part) or escape(item.kind)}")
        depth = item.depth
    pieces.append("</li></ul>" * depth)
    return ("".join(pieces) + "\n</body></html>\n").encode()


def as_xml(report: Report) -> bytes:
    """`report` with nested `item` elements: attributes `type` and `name`, the value as text."""
    pieces = [f'<?xml version="1.0" encoding="UTF-8"?>\n<report title={_quoted(report.title)}>']
    depth = 0
    for item in report.items:
        pieces.append("</item>" * (depth - item.depth + 1))
        name = f" name={_quoted(item.name)}" if item.name else ""
        pieces.append(f"\n<item type={_quoted(item.kind)}{name}>{escape(_legal(item.value), quote=False)}")
        depth = item.depth
    pieces.append("</item>" * depth)
    return ("".join(pieces) + "\n</report>\n").encode()


def _quoted(text: str) -> str:
    return quoteattr(_legal(text))


def _legal(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold."""
    return "".join(letter for letter in text if letter in "\t\n\r" or " " <= letter <= "\ud7ff" or letter > "\udfff")


FORMS: Final[Mapping[str, Callable[[Report], bytes]]] = {
    "text/html": as_html,
    "text/plain": as_text,
    "text/xml": as_xml,
}
"""By media type, the default first (REND-01)."""
