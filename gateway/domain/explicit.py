"""A data set in DICOM JSON as Explicit VR Little Endian, with room for values that lie elsewhere (PS3.18 F.2, PS3.5).

Text becomes UTF-8. Sequences and items have undefined lengths, so that nothing is written twice.
"""

import binascii
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .dictionary import BINARY, LONG, NUMBERS, SHORT, UTF_8_TERM, meaning
from .errors import InvalidInput
from .native_model import MAX_DEPTH

_CHARACTER_SET: Final = "00080005"
_TAG: Final = re.compile("[0-9A-F]{8}")
_NO_DATA: Final = frozenset({0x0000, 0x0002, 0xFFFE, 0xFFFF})
"""Groups that no data set has; what JSON holds of File Meta is left out."""
_SHORT_MOST: Final = 0xFFFE
_LONG_MOST: Final = 0xFFFFFFFE
_UNDEFINED: Final = 0xFFFFFFFF
_NAME_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """In place of a value: the BulkDataURI that tells where it is. Its padding follows."""

    uri: str


def explicit(
    document: Mapping[str, Any], length_of: Callable[[str], int], *, follows: bool = False
) -> list[bytes | Elsewhere]:
    """The data set in pieces, elements ascending; `length_of` gives the bytes of what a BulkDataURI names.

    `follows`: it goes on a data set that has told its character set. Numbers may be text. Raises InvalidInput, which
    names the attribute, for what is no data set, and what `length_of` raises.
    """
    made = _Writer(length_of)
    found: list[bytes | Elsewhere] = []
    small: list[bytes] = []
    for piece in made.elements(document, 0, not follows):
        if isinstance(piece, bytes):
            small.append(piece)
            continue
        found += (b"".join(small), piece)
        small = []
    return [*found, b"".join(small)]


@dataclass(slots=True)
class _Writer:
    length_of: Callable[[str], int]

    def elements(
        self, document: Mapping[str, Any], depth: int, tells_character_set: bool
    ) -> Iterator[bytes | Elsewhere]:
        if depth > MAX_DEPTH:
            raise InvalidInput(f"Sequences are nested deeper than {MAX_DEPTH} levels.")
        tags = {tag.upper(): element for tag, element in document.items()}
        tags.pop(_CHARACTER_SET, None)
        if tells_character_set:
            tags[_CHARACTER_SET] = {"vr": "CS", "Value": [UTF_8_TERM]}
        for tag in sorted(tags):
            if not _TAG.fullmatch(tag):
                raise InvalidInput("An attribute is named by the 8 hexadecimal digits of its tag.")
            if int(tag[:4], 16) in _NO_DATA or tag.endswith("0000"):
                continue
            yield from self._element(tag, tags[tag], depth)

    def _element(self, tag: str, element: Any, depth: int) -> Iterator[bytes | Elsewhere]:
        named = f"({tag[:4]},{tag[4:]})"
        if not isinstance(element, Mapping):
            raise InvalidInput(f"{named}: an attribute is an object with vr and Value, InlineBinary or BulkDataURI.")
        told = element.get("vr") or meaning(int(tag, 16)).vr
        vr = told.encode() if isinstance(told, str) and len(told) == 2 else b"UN"
        if vr not in LONG and vr not in SHORT:
            raise InvalidInput(f"{named}: there is no VR of that name.")
        values = element.get("Value")
        if values is not None and not isinstance(values, list):
            raise InvalidInput(f"{named}: Value is an array.")
        if vr == b"SQ":
            yield from self._sequence(tag, named, values or (), depth)
            return
        uri = element.get("BulkDataURI")
        if uri is not None:
            if not isinstance(uri, str):
                raise InvalidInput(f"{named}: BulkDataURI is a text.")
            length = self.length_of(uri)
            yield _head(tag, vr, length + length % 2)
            yield Elsewhere(uri)
            yield _padding(vr) * (length % 2)
            return
        if (inline := element.get("InlineBinary")) is not None:
            try:
                value = binascii.a2b_base64(inline, strict_mode=True)
            except (binascii.Error, TypeError, ValueError):
                raise InvalidInput(f"{named}: InlineBinary is one base64 text.") from None
        else:
            value = _value(vr, values or (), named)
        yield _head(tag, vr, len(value) + len(value) % 2)
        yield value + _padding(vr) * (len(value) % 2)

    def _sequence(self, tag: str, named: str, items: Sequence[Any], depth: int) -> Iterator[bytes | Elsewhere]:
        yield _head(tag, b"SQ", _UNDEFINED)
        for item in items:
            if item is not None and not isinstance(item, Mapping):
                raise InvalidInput(f"{named}: an item is an object.")
            yield b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
            yield from self.elements(item or {}, depth + 1, False)
            yield b"\xfe\xff\x0d\xe0\0\0\0\0"
        yield b"\xfe\xff\xdd\xe0\0\0\0\0"


def element_head(tag: int, vr: bytes, length: int | None) -> bytes:
    """Tag, VR and length; None is an undefined length. Raises InvalidInput for a value that no element can hold."""
    return _head(f"{tag:08X}", vr, _UNDEFINED if length is None else length)


def _head(tag: str, vr: bytes, length: int) -> bytes:
    group, number = int(tag[:4], 16), int(tag[4:], 16)
    if length > _LONG_MOST and length != _UNDEFINED:
        raise InvalidInput(f"({tag[:4]},{tag[4:]}): the value is too long for an element.")
    if vr in SHORT:
        if length <= _SHORT_MOST:
            return struct.pack("<HH2sH", group, number, vr, length)
        vr = b"UN"  # PS3.5 §6.2.2
    return struct.pack("<HH2s2xL", group, number, vr, length)


def _padding(vr: bytes) -> bytes:
    return b"\0" if vr in NUMBERS or vr in BINARY or vr in (b"UI", b"AT") else b" "


def _value(vr: bytes, values: Sequence[Any], named: str) -> bytes:
    if not values:
        return b""
    try:
        if vr in NUMBERS:
            letter = NUMBERS[vr][0]
            numbers = [float(one) if letter in "fd" else int(one) for one in values]
            return struct.pack(f"<{len(numbers)}{letter}", *numbers)
        if vr == b"AT":
            return b"".join(_tag(one) for one in values)
        if vr in BINARY:
            raise ValueError
        return "\\".join(_name(one) if vr == b"PN" else _text(one) for one in values).encode()
    except (struct.error, ValueError, TypeError, OverflowError):
        raise InvalidInput(f"{named}: a value does not fit its VR {vr.decode()}.") from None


def _tag(value: Any) -> bytes:
    if not isinstance(value, str) or not _TAG.fullmatch(value.upper()):
        raise TypeError
    return struct.pack("<HH", int(value[:4], 16), int(value[4:], 16))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    return str(value)


def _name(value: Any) -> str:
    if not isinstance(value, Mapping):
        return _text(value)
    return "=".join(_text(value.get(group)) for group in _NAME_GROUPS).rstrip("=")
