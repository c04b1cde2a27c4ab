"""One data element as text: its DICOM JSON member, its member of the HealthImaging document, and what tells whether two
instances are the same."""

import binascii
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Final

from ..dictionary import BINARY, NUMBERS, PARAGRAPH, TEXT, Charset, json_number, meaning
from ..levels import level_of
from ..query import SERIES_BESIDE
from .layout import ASCII, CHARACTER_SET, PHOTOMETRIC, PIXEL_TAGS

BULK: Final = 1 << 20
"""Binary values over this many bytes leave the JSON (JSON-09)."""

# Image type and times of the instance, what instance searches return, the Image Pixel attributes, and the series keys
# that stand with the instances (`query.SERIES_BESIDE`).
_INDEXED: Final = frozenset(
    {
        *(0x00080008, 0x00080012, 0x00080013, 0x00080016, 0x00080018, 0x00080022, 0x00080023, 0x0008002A),
        *(0x00080032, 0x00080033, 0x00080201, 0x00180050, 0x00181310, 0x00200012, 0x00200013),
        *(0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011),
        *(0x00280100, 0x00280101, 0x00280102, 0x00280103),
        *SERIES_BESIDE,
    }
)
# Group lengths apart, these say how the instance is encoded, not what it is: a lossless transcoder may change them.
_ENCODING_ONLY: Final = frozenset({0x00083002, 0x00280006, 0x7FE00001, 0x7FE00002, 0x7FE00003, 0xFFFCFFFC, *PIXEL_TAGS})
_DERIVATION: Final = 0x00082111
_TRANSCODER_NOTE: Final = re.compile(rb"compress", re.IGNORECASE)

Element = tuple[bytes, bytes, int, bytes, bool]
"""DICOM JSON member, document member, where the latter goes, what identity is made of (may be empty), indexed."""
INSTANCE, PATIENT, STUDY, SERIES, WITH_VR = range(5)
_SINK: Final = {"Instance": INSTANCE, "Patient": PATIENT, "Study": STUDY, "Series": SERIES}

_NOTHING: Final[tuple[()]] = ()


@dataclass(frozen=True, slots=True)
class _Shape:
    """What does not depend on the value."""

    doc: bytes
    """`"PatientID":`"""
    many: bool | None
    """Documents hold an array; None: as many as there are."""
    sink: int
    indexed: bool
    known: bool


@lru_cache(maxsize=16384)
def shape_of(tag: int) -> _Shape:
    means = meaning(tag)
    named = means.key != f"{tag:08X}"
    return _Shape(
        doc=b'"%b":' % means.key.encode(),
        many=not means.single if named else None,
        sink=_SINK[level_of(tag)] if named else WITH_VR,
        indexed=tag in _INDEXED,
        known=bool(means.vr),
    )


def _quoted(text: str) -> bytes:
    quoted: str = encode_basestring(text)
    return quoted.encode("utf-8", "replace")


def simple_element(tag: int, vr: bytes, value: bytes, declared: Charset, identity: bytes = b"") -> Element | tuple[()]:
    """An element that is no sequence; nothing for group lengths and File Meta elements (JSON-02, WILD-12)."""
    if not tag & 0xFFFF or tag >> 16 in (0, 2):
        return _NOTHING
    shape = shape_of(tag)
    if vr in BINARY:
        text = binascii.b2a_base64(value, newline=False)
        member, document = (b',"InlineBinary":"%b"' % text, b'"%b"' % text) if value else (b"", b"null")
    else:
        member, document = value_text(tag, vr, value, declared, shape.many)
    json = b'"%08X":{"vr":"%b"%b}' % (tag, vr, member)
    return json, shape.doc + document, shape.sink, identity or _identity(tag, vr, value, json, shape), shape.indexed


def bulk_element(tag: int, vr: bytes, value: bytes, path: str) -> Element:
    # A NUL byte marks where the instance's URL goes: no JSON text holds one.
    json = b'"%08X":{"vr":"%b","BulkDataURI":"\0/bulkdata/%b"}' % (tag, vr, path.encode())
    shape = shape_of(tag)
    return json, shape.doc + b"null", shape.sink, _identity(tag, vr, value, json, shape), shape.indexed


def palette(tag: int, vr: bytes, value: bytes) -> Element:
    """A palette of the instance: however small, clients look for it as bulk data; documents hold it."""
    json, _, sink, identity, is_indexed = bulk_element(tag, vr, value, f"{tag:08X}")
    document = shape_of(tag).doc + b'"%b"' % binascii.b2a_base64(value, newline=False)
    return json, document, sink, identity, is_indexed


def _identity(tag: int, vr: bytes, value: bytes, json: bytes, shape: _Shape) -> bytes:
    """What of the element makes the instance this one, whatever syntax carries it."""
    if tag in _ENCODING_ONLY:
        return b""
    if not shape.known or vr in BINARY:  # whether its VR is known depends on the syntax, its bytes do not
        kept = value.rstrip(b" \0")
        return b'"%08X"%d:%b' % (tag, len(kept), kept)
    if tag == PHOTOMETRIC and value.strip(b" \0").startswith((b"RGB", b"YBR")):
        return b"COLOUR"  # codecs move between colour spaces, not from or to grey or palettes
    if tag == _DERIVATION and _TRANSCODER_NOTE.search(value):
        return b""
    return json


def value_text(tag: int, vr: bytes, value: bytes, declared: Charset, many: bool | None) -> tuple[bytes, bytes]:
    """The `,"Value":[...]` of the JSON member, empty for no value, and the text in the document."""
    if vr in NUMBERS:
        jsons, docs = _numbers(vr, value)
    elif vr == b"AT":
        jsons = docs = [b'"%04X%04X"' % pair for pair in struct.iter_unpack("<HH", value[: len(value) & ~3])]
    elif vr in (b"IS", b"DS"):
        jsons, docs = _decimals(vr, value)
    else:
        text = (declared if vr in TEXT else ASCII).decode(value, vr)
        if vr in PARAGRAPH:
            parts = [text.rstrip(" \0")]
        elif vr in (b"UI", b"AE"):
            parts = [part.strip(" \0") for part in text.split("\\")]
        else:
            parts = [part.rstrip(" \0") for part in text.rstrip(" \0").split("\\")]
        if len(parts) == 1 and not parts[0]:
            return b"", b"null"
        docs = [_quoted(part) if part else b"null" for part in parts]
        if vr == b"PN":
            jsons = [_name(part) for part in parts]
        elif tag == CHARACTER_SET:
            jsons = [b'"ISO_IR 192"']  # JSON-10
        else:
            jsons = docs
        if many is False and len(docs) > 1:
            docs = [_quoted("\\".join(parts))]
    if not jsons:
        return b"", b"null"
    single = len(docs) == 1 and not many
    return b',"Value":[%b]' % b",".join(jsons), docs[0] if single else b"[%b]" % b",".join(docs)


def _numbers(vr: bytes, value: bytes) -> tuple[list[bytes], list[bytes]]:
    letter, width = NUMBERS[vr]
    count = len(value) // width
    numbers = struct.unpack_from(f"<{count}{letter}", value)
    if letter in "fd":
        texts = [repr(number).encode() for number in numbers]
        if any(number != number or number in (float("inf"), float("-inf")) for number in numbers):
            texts = [_NOT_JSON.get(text, text) for text in texts]
        return texts, texts
    texts = [b"%d" % number for number in numbers]
    if letter in "qQ":
        return [text if len(text) < 16 else b'"%b"' % text for text in texts], texts  # beyond what doubles hold
    return texts, texts


_NOT_JSON: Final = {b"nan": b'"NaN"', b"inf": b'"Infinity"', b"-inf": b'"-Infinity"'}  # JSON-07


def _decimals(vr: bytes, value: bytes) -> tuple[list[bytes], list[bytes]]:
    parts = value.rstrip(b"\0").split(b"\\")
    if len(parts) == 1 and not parts[0].strip():
        return [], []
    jsons, docs = [], []
    for part in parts:
        plain = part.strip(b" \0")
        if not plain:
            jsons.append(b"null")
            docs.append(b"null")
            continue
        number = json_number(plain, vr == b"IS")
        docs.append(_quoted(ASCII.decode(part)))
        jsons.append(_quoted(ASCII.decode(plain)) if number is None else number)
    return jsons, docs


def _name(text: str) -> bytes:
    groups = [group.rstrip(" \0") for group in text.split("=")]
    named = zip((b"Alphabetic", b"Ideographic", b"Phonetic"), groups, strict=False)
    members = [b'"%b":%b' % (name, _quoted(group)) for name, group in named if group]
    return b"{%b}" % b",".join(members) if members else b"null"
