"""DICOM JSON read with leave: what is not there, or is no such value, is as if it had not been sent.

For whoever shows something, where attributes that make no sense cost a detail and never the whole.
"""

import base64
import binascii
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

Attributes = Mapping[str, Any]
"""DICOM JSON elements by tag."""


def items(attributes: Attributes, tag: str) -> list[Attributes]:
    """Those of a sequence."""
    values = (attributes.get(tag) or {}).get("Value")
    return [item if isinstance(item, dict) else {} for item in values] if isinstance(values, list) else []


def item(attributes: Attributes, tag: str) -> Attributes:
    """The first of a sequence."""
    found = items(attributes, tag)
    return found[0] if found else {}


def numbers(attributes: Attributes, tag: str) -> list[float]:
    """The values that are finite numbers."""
    values = (attributes.get(tag) or {}).get("Value")
    return _finite(values) if isinstance(values, list) else []


def number(attributes: Attributes, tag: str) -> float | None:
    """The first value, None where that is no finite number."""
    values = (attributes.get(tag) or {}).get("Value")
    found = _finite(values[:1]) if isinstance(values, list) else []
    return found[0] if found else None


def _finite(values: Iterable[Any]) -> list[float]:
    found = []
    for value in values:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            continue
        if math.isfinite(number):
            found.append(number)
    return found


def texts(attributes: Attributes, tag: str) -> list[str]:
    """The values, without spaces around them; a name is its first group of components that says anything."""
    values = (attributes.get(tag) or {}).get("Value")
    found = []
    for value in values if isinstance(values, list) else ():
        if isinstance(value, dict):
            groups = (value.get(group) for group in ("Alphabetic", "Ideographic", "Phonetic"))
            value = next((group for group in groups if isinstance(group, str) and group.strip(" ^")), None)
        if value is not None and not isinstance(value, list):
            found.append(str(value).strip())
    return found


def text(attributes: Attributes, tag: str) -> str:
    """The first value, "" where there is none."""
    values = (attributes.get(tag) or {}).get("Value")
    found = texts({tag: {"Value": values[:1]}}, tag) if isinstance(values, list) else []
    return found[0] if found else ""


def code(attributes: Attributes, tag: str) -> str:
    """The first value of a coded string, in upper case."""
    return text(attributes, tag).upper()


def data(attributes: Attributes, tag: str) -> bytes:
    """The value of tables and planes, whatever its VR: words little-endian."""
    element = attributes.get(tag) or {}
    if "InlineBinary" in element:
        try:
            return base64.b64decode(element["InlineBinary"])
        except (binascii.Error, ValueError, TypeError):
            return b""
    words = [int(value) & 0xFFFF for value in numbers(attributes, tag)]
    return struct.pack(f"<{len(words)}H", *words)
