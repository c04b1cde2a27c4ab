"""The HealthImaging metadata document (SchemaVersion 1.1), written in pieces, and its values as DICOM JSON.

A document is `head` + instances joined by commas + `TAIL`; an instance is `"<sop>":{` + node + `node_frames` + `}`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson
from pydicom.valuerep import format_number_as_ds

from .dictionary import BINARY, PARAGRAPH, UTF_8_TERM, json_number, meaning
from .levels import level_of as level_of
from .pixels import FrameFacts
from .values import attribute

if TYPE_CHECKING:
    from .edits import Changes

Levels = dict[str, dict[str, Any]]
"""`Patient`, `Study`, `Series` -> keyword -> value in document form."""

TAIL: Final = b"}}}}}"
"""Closes what `head` opened."""

_PIXEL_VALUES: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_CHARACTER_SET: Final = 0x00080005


def fold(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> Levels:
    """The levels after one more instance: the newest value wins, absent and empty ones erase nothing (6.1 rule 6)."""
    folded: Levels = {}
    for level in ("Patient", "Study", "Series"):
        values = dict(old.get(level, {}))
        for keyword, value in new.get(level, {}).items():
            if value is not None or keyword not in values:
                values[keyword] = value
        folded[level] = values
    return folded


def head(
    datastore: str, image_set: str, levels: Mapping[str, Mapping[str, Any]], changes: Mapping[str, "Changes"]
) -> bytes:
    """The document up to and with `"Instances":{`; `changes` are by level. The series must have its UID."""
    edited = {level: _applied(values, changes.get(level)) for level, values in levels.items()}
    series = edited["Series"]
    return (
        b'{"SchemaVersion":"1.1","DatastoreID":%b,"ImageSetID":%b,"Patient":{"DICOM":%b},'
        b'"Study":{"DICOM":%b,"Series":{%b:{"DICOM":%b,"Instances":{'
    ) % (
        orjson.dumps(datastore),
        orjson.dumps(image_set),
        orjson.dumps(edited.get("Patient", {})),
        orjson.dumps(edited.get("Study", {})),
        orjson.dumps(series["SeriesInstanceUID"]),
        orjson.dumps(series),
    )


def node_frames(
    syntax_stored: str | None, checksum_type: str, frames: Sequence[tuple[str, int, int, FrameFacts]]
) -> bytes:
    """What follows an instance's attributes: `,"StoredTransferSyntaxUID":...,"ImageFrames":[...]` (6.3, 6.5).

    `frames` are (frame id, width, height, facts) in order. Without pixel data (`syntax_stored` None) the list is empty.
    """
    if syntax_stored is None:
        return b',"ImageFrames":[]'
    entries = ",".join(
        f'{{"ID":"{frame}","PixelDataChecksumFromBaseToFullResolution":[{{"Width":{width},"Height":{height},'
        f'"Checksum":{facts.crc32}}}],"MinPixelValue":{_or_null(facts.minimum)},"MaxPixelValue":'
        f'{_or_null(facts.maximum)},"FrameSizeInBytes":{facts.decoded_bytes}}}'
        for frame, width, height, facts in frames
    )
    return (
        f',"StoredTransferSyntaxUID":"{syntax_stored}","ChecksumType":"{checksum_type}","ImageFrames":[{entries}]'
    ).encode()


def _or_null(value: int | None) -> str:
    return "null" if value is None else str(value)


def edited_node(node: bytes, changes: "Changes") -> bytes:
    """An instance's `"DICOM":{...},"DICOMVRs":{...}` text with its edits."""
    document = orjson.loads(b"{%b}" % node)
    vrs = document["DICOMVRs"]
    for key in changes.set:
        if key in changes.vrs:
            vrs.setdefault(key, changes.vrs[key])
    document["DICOM"] = _applied(document["DICOM"], changes)
    document["DICOMVRs"] = {key: vr for key, vr in vrs.items() if key not in changes.removed}
    return orjson.dumps(document)[1:-1]


def _applied(values: Mapping[str, Any], changes: "Changes | None") -> dict[str, Any]:
    if not changes:
        return dict(values)
    return {key: value for key, value in {**values, **changes.set}.items() if key not in changes.removed}


# ------------------------------------------------------------------------------- document form <-> DICOM JSON


def to_dicom_json(
    values: Mapping[str, Any], vrs: Mapping[str, str] | None = None, present: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """DICOM JSON elements by tag, ascending, of values in document form (PS3.18 F.2); group 0002 is left out.

    `vrs` has the VR of hexadecimal keys that the dictionary does not know, also inside sequences. Failing that, an
    element of `present` (DICOM JSON by tag) keeps the VR that it has; else it is UN.
    """
    elements: dict[str, Any] = {}
    for key, value in values.items():
        named = attribute(key)
        if named is None or named.tag >> 16 == 2 or named.tag in _PIXEL_VALUES:
            continue
        if named.tag == _CHARACTER_SET and value is not None:
            value = UTF_8_TERM  # JSON-10
        tag = f"{named.tag:08X}"
        before = (present or {}).get(tag, {}).get("vr", "")
        vr = definite_vr(named.vr or (vrs or {}).get(named.key) or before or "UN", value, before)
        elements[tag] = json_value(value, vr, vrs)
    return dict(sorted(elements.items()))


def definite_vr(vr: str, value: Any, present: str = "") -> str:
    """One VR for the dictionary's `US or SS` and its like: the `present` one, else what the value requires."""
    if " or " not in vr:
        return vr
    if present and present in vr.split(" or "):
        return present
    values = value if isinstance(value, list) else [value]
    if any(isinstance(single, str) for single in values) or vr == "OB or OW":
        return "OW"
    return "SS" if "SS" in vr and any(isinstance(single, int) and single < 0 for single in values) else "US"


def json_value(value: Any, vr: str, vrs: Mapping[str, str] | None = None) -> dict[str, Any]:
    """One DICOM JSON element of a value in document form; what was received under another VR may not fit this one."""
    if value is None or value == []:
        return {"vr": vr}
    values = value if isinstance(value, list) else [value]
    if vr == "SQ":
        return {"vr": vr, "Value": [to_dicom_json(item, vrs) for item in values if isinstance(item, Mapping)]}
    if vr.encode() in BINARY:
        return {"vr": vr, "InlineBinary": values[0]}
    if vr.encode() not in PARAGRAPH:
        values = [part for single in values for part in (single.split("\\") if isinstance(single, str) else [single])]
    if vr == "PN":
        return {"vr": vr, "Value": [_name(None if single is None else str(single)) for single in values]}
    if vr in ("IS", "DS"):
        return {"vr": vr, "Value": [_number(single, vr) for single in values]}
    plain = [(single.rstrip(" \0") or None) if isinstance(single, str) else single for single in values]
    return {"vr": vr, "Value": plain}


def doc_value(key: str, element: Mapping[str, Any]) -> Any:
    """The value in document form of one DICOM JSON element; None for what is empty or elsewhere (BulkDataURI)."""
    vr = element.get("vr", "UN")
    if "InlineBinary" in element:
        return element["InlineBinary"]
    values = element.get("Value")
    if not values:
        return None
    if vr == "SQ":
        return [{_key(tag): doc_value(_key(tag), inner) for tag, inner in (item or {}).items()} for item in values]
    if vr == "PN":
        groups = ("Alphabetic", "Ideographic", "Phonetic")
        values = [name and "=".join(name.get(group, "") for group in groups).rstrip("=") for name in values]
    elif vr in ("IS", "DS"):
        values = [single if single is None or isinstance(single, str) else _decimal(single) for single in values]
    named = attribute(key)
    if named is not None and named.many:
        return values
    if len(values) == 1:
        return values[0]
    if named is not None and named.many is False and all(isinstance(single, str | None) for single in values):
        return "\\".join(single or "" for single in values)
    return values


def _key(tag: str) -> str:
    return meaning(int(tag, 16)).key


def _name(text: str | None) -> dict[str, str] | None:
    if not text:
        return None
    groups = [group.rstrip(" \0") for group in text.split("=")]
    named = zip(("Alphabetic", "Ideographic", "Phonetic"), groups, strict=False)
    return {name: group for name, group in named if group} or None


def _number(value: Any, vr: str) -> int | float | str | None:
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]
    text = value.strip(" \0")
    if not text:
        return None
    digits = json_number(text.encode("ascii", "replace"), vr == "IS")
    if digits is None:
        return text
    number: int | float = orjson.loads(digits)
    return number


def _decimal(number: int | float) -> str:
    text = repr(number)
    return text if len(text) <= 16 else format_number_as_ds(float(number))
