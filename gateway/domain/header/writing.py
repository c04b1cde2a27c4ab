"""Writing an instance again: as it came or edited, in Explicit VR Little Endian; and single values of it."""

import binascii
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import orjson

from ..dictionary import BINARY, NUMBERS, TEXT, UTF_8, UTF_8_TERM, Charset, charset, meaning
from ..errors import InvalidInput, NotFound
from ..metadata import definite_vr, to_dicom_json
from ..pixels import PIXEL_DATA
from ..values import attribute
from .layout import CHARACTER_SET, PIXEL_TAGS, PREAMBLE, Kind
from .parts import Part, charset_among, element_bytes, explicit_elements, items_of, parts_of, signed_among
from .reading import encoding_of

if TYPE_CHECKING:
    from ..edits import Changes

IMPLEMENTATION_CLASS_UID: Final = "2.25.206137209453174908235740317552893201746"
IMPLEMENTATION_VERSION: Final = "IMAGESET_GW"


def write_meta(
    sop_class: str,
    sop_uid: str,
    syntax: str,
    *,
    calling_ae: str | None = None,
) -> bytes:
    """Preamble, prefix and File Meta Information of a file of ours (PS3.10 §7.1)."""
    before, after = _around_sop_uid(sop_class, syntax, calling_ae)
    body = before + element_bytes(0x00020003, b"UI", _encoded(sop_uid, b"UI", UTF_8, {})) + after
    return bytes(PREAMBLE) + b"DICM" + element_bytes(0x00020000, b"UL", struct.pack("<I", len(body))) + body


@lru_cache(maxsize=1024)
def _around_sop_uid(sop_class: str, syntax: str, calling_ae: str | None) -> tuple[bytes, bytes]:
    """What stands in File Meta before the SOP Instance UID and after it: the same for a whole series."""
    values = (
        (0x00020001, b"OB", "AAE="),
        (0x00020002, b"UI", sop_class),
        (0x00020010, b"UI", syntax),
        (0x00020012, b"UI", IMPLEMENTATION_CLASS_UID),
        (0x00020013, b"SH", IMPLEMENTATION_VERSION),
        (0x00020016, b"AE", calling_ae),
    )
    encoded = [element_bytes(tag, vr, _encoded(value, vr, UTF_8, {})) for tag, vr, value in values if value]
    return b"".join(encoded[:2]), b"".join(encoded[2:])


def to_explicit(
    head: bytes,
    pixel_at: int,
    syntax: str,
    changes: Sequence["Changes"] = (),
    adjust: Mapping[int, Any] | None = None,
) -> tuple[bytes, bytes]:
    """A kept head in Explicit VR LE with its edits: what stands before the Pixel Data element, and what follows it.

    `adjust` sets top-level attributes by tag, in document form, after the edits; None takes one away. Without edits, a
    head that came so is returned byte for byte. Text that the character set lacks turns the data set to UTF-8.
    """
    kind = encoding_of(head, syntax)
    if kind == "explicit" and not any(changes) and not adjust:
        return head[:pixel_at], head[pixel_at:]
    parts = [*parts_of(head, 0, pixel_at, kind), *parts_of(head, pixel_at, len(head), kind)]
    declared = charset_among(head, parts)
    edits = _edits(changes, adjust or {})
    wanted = None
    if CHARACTER_SET in edits:
        edit = edits.pop(CHARACTER_SET)
        terms = (edit.value if isinstance(edit.value, list) else [edit.value]) if edit else [None]
        wanted = "\\".join(term or "" for term in terms)
    try:
        elements = _edited(head, parts, kind, declared, wanted, edits)
    except UnicodeEncodeError:
        elements = _edited(head, parts, kind, declared, UTF_8_TERM, edits)
    before = b"".join(elements[tag] for tag in sorted(elements) if tag <= PIXEL_DATA)
    return before, b"".join(elements[tag] for tag in sorted(elements) if tag > PIXEL_DATA)


@dataclass(frozen=True, slots=True)
class _Edit:
    value: Any
    vr: str | None
    """Of the dictionary or the edit; None where only the element that is there can tell."""
    vrs: Mapping[str, str]


def _edits(changes: Sequence["Changes"], adjust: Mapping[int, Any]) -> dict[int, _Edit | None]:
    edits: dict[int, _Edit | None] = {}
    for overlay in changes:
        for key in overlay.removed:
            named = attribute(key)
            if named is not None:
                edits[named.tag] = None
        for key, value in overlay.set.items():
            named = attribute(key)
            if named is not None:
                edits[named.tag] = _Edit(value, named.vr or overlay.vrs.get(named.key), overlay.vrs)
    for tag, value in adjust.items():
        edits[tag] = None if value is None else _Edit(value, meaning(tag).vr or None, {})
    return {tag: edit for tag, edit in edits.items() if tag >> 16 != 2 and tag not in PIXEL_TAGS}


def _edited(
    head: bytes,
    parts: Sequence[Part],
    kind: Kind,
    declared: Charset,
    wanted: str | None,
    edits: Mapping[int, _Edit | None],
) -> dict[int, bytes]:
    """Elements by tag. `wanted` is the Specific Character Set to write in; None keeps the one there is."""
    target = declared if wanted is None else charset(wanted.encode())
    if kind == "explicit" and wanted is None:
        kept = [part for part in parts if part.tag & 0xFFFF and part.tag >> 16 not in (0, 2)]
        elements = {
            part.tag: head[part.at : part.next]
            if part.vr == head[part.at + 4 : part.at + 6]
            else element_bytes(part.tag, part.vr, head[part.start : part.end])  # its VR was none
            for part in kept
        }
    else:
        recoded = None if wanted is None else target
        elements = dict(explicit_elements(head, parts, kind, declared, recoded, signed_among(head, parts)))
    if wanted:
        elements[CHARACTER_SET] = element_bytes(CHARACTER_SET, b"CS", wanted.encode())
    for tag, edit in edits.items():
        if edit is None:
            elements.pop(tag, None)
            continue
        present = elements[tag][4:6].decode() if tag in elements else ""
        vr = definite_vr(edit.vr or present or "UN", edit.value, present).encode()
        elements[tag] = element_bytes(tag, vr, _encoded(edit.value, vr, target, edit.vrs))
    return elements


def _encoded(value: Any, vr: bytes, target: Charset, vrs: Mapping[str, str]) -> bytes:
    """The little-endian bytes, unpadded, of a value in document form. Raises InvalidInput where its VR has none."""
    if value is None or value == []:
        return b""
    values = value if isinstance(value, list) else [value]
    try:
        if vr == b"SQ":
            return b"".join(_encoded_item(item, target, vrs) for item in values)
        if vr in BINARY:
            return binascii.a2b_base64(values[0], strict_mode=True)
        if vr in NUMBERS:
            letter = NUMBERS[vr][0]
            numbers = [float(single) if letter in "fd" else int(single) for single in values]
            return struct.pack(f"<{len(numbers)}{letter}", *numbers)
        if vr == b"AT":
            return b"".join(struct.pack("<HH", int(single[:4], 16), int(single[4:], 16)) for single in values)
        text = "\\".join("" if single is None else str(single) for single in values)
        return target.encode(text) if vr in TEXT else text.encode("ascii" if text.isascii() else "utf-8")
    except UnicodeEncodeError:
        raise
    except (struct.error, ValueError, TypeError, OverflowError, binascii.Error):
        raise InvalidInput(f"An edited value does not fit its VR {vr.decode()}.") from None


def _encoded_item(item: Mapping[str, Any], target: Charset, vrs: Mapping[str, str]) -> bytes:
    elements: dict[int, bytes] = {}
    for key, value in item.items():
        named = attribute(key)
        if named is not None and named.tag not in (CHARACTER_SET, *PIXEL_TAGS):
            vr = definite_vr(named.vr or vrs.get(named.key) or "UN", value).encode()
            elements[named.tag] = element_bytes(named.tag, vr, _encoded(value, vr, target, vrs))
    content = b"".join(elements[tag] for tag in sorted(elements))
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def edited_json(pieces_text: bytes, changes: Sequence["Changes"]) -> bytes:
    """A DICOM JSON object with edits merged, ascending; what is edited last holds."""
    elements: dict[str, Any] = orjson.loads(pieces_text)
    for overlay in changes:
        for key in overlay.removed:
            named = attribute(key)
            if named is not None:
                elements.pop(f"{named.tag:08X}", None)
        elements.update(to_dicom_json(overlay.set, overlay.vrs, elements))
    return orjson.dumps(elements, option=orjson.OPT_SORT_KEYS)


def bulk(head: bytes, pixel_at: int, syntax: str, path: str) -> tuple[str, bytes]:
    """VR and little-endian value of what a BulkDataURI names by its last part, e.g. `00081140.0.00091010`.

    Pixel Data is not in the head. Raises NotFound.
    """
    steps = re.fullmatch(r"([0-9A-F]{8})((?:\.[0-9]{1,9}\.[0-9A-F]{8}){0,64})", path)
    if steps is None:
        raise NotFound("There is no such bulk data.")
    tags = [int(tag, 16) for tag in path.split(".")[::2]]
    indexes = [int(index) for index in path.split(".")[1::2]]
    data = b"".join(to_explicit(head, pixel_at, syntax))
    start, end = 0, len(data)
    kind: Kind = "explicit"
    for depth, tag in enumerate(tags):
        part = next((p for p in parts_of(data, start, end, kind, depth) if p.tag == tag), None)
        if part is None:
            break
        if depth == len(indexes):
            return part.vr.decode(), data[part.start : part.end]
        kind = kind if part.vr == b"SQ" else "implicit"
        items, _ = items_of(data, part.start, part.length, part.next, kind, depth + 1)
        if indexes[depth] >= len(items):
            break
        start, end = items[indexes[depth]]
    raise NotFound("There is no such bulk data.")
