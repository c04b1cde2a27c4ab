"""How data elements lie in bytes: heads, marks and value representations of every encoding (PS3.5 §7)."""

import struct
from collections.abc import Callable
from typing import Final, Literal

from ..dictionary import charset, meaning, private_vr
from ..errors import InvalidInput
from ..pixels import DOUBLE_FLOAT_PIXEL_DATA, FLOAT_PIXEL_DATA, PIXEL_DATA

Buffer = bytes | bytearray | memoryview

UNDEFINED: Final = 0xFFFFFFFF
ITEM_END: Final = 0xFFFEE00D
PIXEL_TAGS: Final = frozenset({PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA})
PALETTES: Final = frozenset({*range(0x00281201, 0x00281205), *range(0x00281221, 0x00281225)})
"""Palette Color Lookup Table Data, plain and segmented: red, green, blue, alpha (PS3.3 C.7.9)."""
CHARACTER_SET: Final = 0x00080005
SOP_INSTANCE: Final = 0x00080018
PREAMBLE: Final = 128

ASCII: Final = charset(b"")

Kind = Literal["explicit", "implicit", "big"]

LUT_DESCRIPTOR: Final = 0x00283002
_LUT_DATA: Final = 0x00283006
PIXEL_REPRESENTATION: Final = 0x00280103
PHOTOMETRIC: Final = 0x00280004

explicit_head = struct.Struct("<HH2sH").unpack_from
implicit_head = struct.Struct("<HHI").unpack_from
long_at = struct.Struct("<I").unpack_from
short_at = struct.Struct("<H").unpack_from
big_explicit_head = struct.Struct(">HH2sH").unpack_from
big_item_head = struct.Struct(">HHI").unpack_from
big_long_at = struct.Struct(">I").unpack_from


class Beyond(Exception):
    """The walk needs bytes past its window."""


def truncated() -> InvalidInput:
    return InvalidInput("The data set ends inside a data element. Send the whole instance again.")


def malformed(what: str) -> InvalidInput:
    return InvalidInput(f"The data set cannot be read: {what}.")


def vr_in_place(
    tag: int, creator: str, one_entry: Callable[[], bool], signed: Callable[[], bool]
) -> tuple[bytes, bool]:
    """The VR that the dictionary gives, and whether it depends on nothing but the tag and its private creator.

    The callables tell of the data set around it whether its lookup table has one entry, and its Pixel Representation.
    """
    vr = (private_vr(tag, creator) if creator else "") or meaning(tag).vr
    if " or " not in vr:
        return vr.encode() or b"UN", True
    if tag == _LUT_DATA:
        return b"US" if one_entry() else b"OW", False
    if "OW" in vr:
        return b"OW", True
    return b"SS" if signed() else b"US", False


def dictionary_vr(tag: int) -> bytes:
    vr = meaning(tag).vr
    if " or " in vr:
        return b"OW" if "OW" in vr else b"US"
    return vr.encode() if vr and vr != "SQ" else b"UN"
