"""Reading a received instance in one walk, and writing it back as Explicit VR Little Endian (PS3.5 §7, PS3.10 §7.1).

The walk yields finished text: each data element becomes its DICOM JSON member and its member of the HealthImaging
document at once, and nothing parses them again on the way out. Most elements of a series are the same bytes in every
instance, so short ones are remembered by their bytes: an element seen before costs one dictionary look-up.

Big endian data sets are turned into Explicit VR Little Endian first and take the same walk.
"""

import binascii
import hashlib
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from .dictionary import (
    BINARY,
    LONG,
    NUMBERS,
    PARAGRAPH,
    SHORT,
    TEXT,
    UTF_8,
    UTF_8_TERM,
    WORDS,
    Charset,
    charset,
    json_number,
    meaning,
    private_vr,
)
from .errors import InvalidInput, NotFound
from .levels import level_of
from .metadata import Levels, definite_vr, to_dicom_json
from .pixels import DOUBLE_FLOAT_PIXEL_DATA, FLOAT_PIXEL_DATA, PIXEL_DATA, PixelFormat
from .query import SERIES_BESIDE
from .syntaxes import BIG_ENDIAN, DEFLATED, IMPLICIT_LE
from .values import MAX_DEPTH, attribute

if TYPE_CHECKING:
    from .edits import Changes

Buffer = bytes | bytearray | memoryview

IMPLEMENTATION_CLASS_UID: Final = "2.25.206137209453174908235740317552893201746"
IMPLEMENTATION_VERSION: Final = "IMAGESET_GW"

INVALID_UID: Final = 0xB201
OVERLONG: Final = 0xB202
ODD: Final = 0xB007

_BULK: Final = 1 << 20
"""Binary values over this many bytes leave the JSON (JSON-09)."""
_UNDEFINED: Final = 0xFFFFFFFF
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_PIXEL_TAGS: Final = frozenset({PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA})
_CHARACTER_SET: Final = 0x00080005
_SOP_CLASS: Final = 0x00080016
_SOP_INSTANCE: Final = 0x00080018
_MAX_FRAGMENTS: Final = 1 << 21
_MAX_UID: Final = 256
_PREAMBLE: Final = 128

_ASCII: Final = charset(b"")

_Kind = Literal["explicit", "implicit", "big"]


# ------------------------------------------------------------------------------------------------ what is read


@dataclass(frozen=True, slots=True)
class Part10:
    """The File Meta Information of a Part 10 file (PS3.10 §7.1)."""

    meta: dict[str, Any]
    """Keyword -> value in document form, without the group length."""
    syntax: str
    offset: int
    """Where the data set begins."""


@dataclass(frozen=True, slots=True)
class PixelElement:
    """Where the pixel data lies, as offset and length in `Received.data`."""

    tag: int
    vr: str
    offset: int
    length: int
    """Encapsulated: of all items and, where it is there, the delimiter. Never beyond the end of the data."""
    encapsulated: bool
    format: PixelFormat | None
    """None where the Image Pixel attributes do not say how frames lie."""
    frame_offsets: tuple[int, ...] | None = None
    frame_lengths: tuple[int, ...] | None = None
    """The Extended Offset Table (7FE0,0001) and its lengths (7FE0,0002), None where absent or empty."""


@dataclass(slots=True)
class Received:
    """All that the gateway keeps of one instance."""

    syntax: str
    meta: dict[str, Any]
    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class: str
    data: Buffer
    """What `pixel` refers to: the data set as given, or inflated where it was deflated."""
    pixel: PixelElement | None
    head: bytes
    """The data set as received, without the Pixel Data element; inflated where it was deflated."""
    head_pixel_at: int
    """Where Pixel Data stood in `head`; its length where there is none."""
    json_pieces: list[bytes]
    """DICOM JSON object, cut wherever the instance's absolute URL belongs: the text is `url.join(json_pieces)`."""
    node: bytes
    """`"DICOM":{...},"DICOMVRs":{...}` of the instance level (healthimaging.md 6.3)."""
    levels: Levels
    index: dict[str, Any]
    """DICOM JSON elements by tag that instance searches return or match."""
    identity: bytes
    """SHA-256 of the attributes without pixels: equal for native and losslessly compressed, explicit and implicit."""
    number: int | None
    warnings: list[int] = field(default_factory=list)
    """WarningReason codes, ascending."""


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
_ENCODING_ONLY: Final = frozenset(
    {0x00083002, 0x00280006, 0x7FE00001, 0x7FE00002, 0x7FE00003, 0xFFFCFFFC, *_PIXEL_TAGS}
)
_LUT_DESCRIPTOR: Final = 0x00283002
_LUT_DATA: Final = 0x00283006
_PIXEL_REPRESENTATION: Final = 0x00280103
_PHOTOMETRIC: Final = 0x00280004
_DERIVATION: Final = 0x00082111

_LIMITS: Final = {
    "PatientName": 256,
    "PatientID": 256,
    "PatientBirthDate": 18,
    "PatientSex": 16,
    "StudyInstanceUID": 256,
    "StudyID": 256,
    "StudyDescription": 256,
    "StudyDate": 18,
    "StudyTime": 28,
    "AccessionNumber": 256,
    "SeriesInstanceUID": 256,
}
_UID: Final = re.compile(r"(?=.{1,64}\Z)[0-9]+(?:\.[0-9]+)*")
_TRANSCODER_NOTE: Final = re.compile(rb"compress", re.IGNORECASE)


# ---------------------------------------------------------------------------------------------------- the walk

_Element = tuple[bytes, bytes, int, bytes, bool]
"""DICOM JSON member, document member, where the latter goes, what identity is made of (may be empty), indexed."""
_INSTANCE, _PATIENT, _STUDY, _SERIES, _WITH_VR = range(5)
_SINK: Final = {"Instance": _INSTANCE, "Patient": _PATIENT, "Study": _STUDY, "Series": _SERIES}

_explicit_head = struct.Struct("<HH2sH").unpack_from
_implicit_head = struct.Struct("<HHI").unpack_from
_long = struct.Struct("<I").unpack_from
_short = struct.Struct("<H").unpack_from
_big_explicit_head = struct.Struct(">HH2sH").unpack_from
_big_item_head = struct.Struct(">HHI").unpack_from
_big_long = struct.Struct(">I").unpack_from

_MEMO_VALUE: Final = 512
_MEMO_SEQUENCE: Final = 4096
_MEMO_BYTES: Final = 8 << 20
_MEMOS: Final = 8
_NOTHING: Final[tuple[()]] = ()


class _Memo:
    """Finished elements by their bytes, for one encoding and character set; forgets all when it grows too large."""

    __slots__ = ("elements", "size")

    def __init__(self) -> None:
        self.elements: dict[bytes, _Element | tuple[()]] = {}
        self.size = 0

    def keep(self, raw: bytes, element: _Element | tuple[()]) -> None:
        self.size += 512 + len(raw) + (len(element[0]) + len(element[1]) + len(element[3]) if element else 0)
        if self.size > _MEMO_BYTES:
            self.elements.clear()
            self.size = 0
        self.elements[raw] = element


_memos: Final[dict[tuple[_Kind, Charset], _Memo]] = {}


def _memo_of(kind: _Kind, declared: Charset) -> _Memo:
    # Shared by all threads: whatever of this races is repeated work, never a wrong element.
    if len(_memos) >= _MEMOS and (kind, declared) not in _memos:
        _memos.clear()
    return _memos.setdefault((kind, declared), _Memo())


class _Beyond(Exception):
    """The walk needs bytes past its window."""


def _truncated() -> InvalidInput:
    return InvalidInput("The data set ends inside a data element. Send the whole instance again.")


def _malformed(what: str) -> InvalidInput:
    return InvalidInput(f"The data set cannot be read: {what}.")


class _Walk:
    """One pass over `window`, the first bytes of a data set of `total` bytes."""

    __slots__ = ("_signed", "at", "kind", "odd", "pixel", "total", "window")

    def __init__(self, window: bytes, total: int, kind: _Kind) -> None:
        self.window = window
        self.total = total
        self.kind: _Kind = kind
        self.at = 0
        """Where the last data set or item that was read ends."""
        self.odd = False
        """Something was tolerated that the standard forbids."""
        self.pixel: tuple[int, bytes, int, int] | None = None
        """Tag, VR, offset and length of the value: `at` is then where the element starts."""
        self._signed: bool | None = None

    def top(self, declared: Charset) -> list[_Element]:
        """The data set up to its Pixel Data or its end."""
        read = self.implicit if self.kind == "implicit" else self.explicit
        return read(0, self.total, declared, 0, "")

    def explicit(self, i: int, end: int, declared: Charset, depth: int, path: str) -> list[_Element]:
        window, size = self.window, len(self.window)
        memo = _memo_of("explicit", declared)
        get = memo.elements.get
        elements: list[_Element] = []
        append = elements.append
        while i < end:
            try:
                group, number, vr, length = _explicit_head(window, i)
            except struct.error:
                i = self._short_of_header(i, end, depth)
                break
            if vr in SHORT:
                j = i + 8 + length
                if j > end:
                    raise _truncated()
                raw = window[i:j]
                element = get(raw)
                if element is None:
                    if j > size:
                        raise _Beyond
                    element = _simple(group << 16 | number, vr, raw[8:], declared)
                    if length <= _MEMO_VALUE:
                        memo.keep(raw, element)
                if element:
                    append(element)
                i = j
                continue
            tag = group << 16 | number
            if vr in LONG:
                if i + 12 > size:
                    self._short_of_header(i, end, depth, 12)
                (length,) = _long(window, i + 8)
                start = i + 12
            elif group == 0xFFFE:
                i, ended = self._delimiter(tag, i, depth)
                if ended:
                    break
                continue
            else:
                vr, start, length = self._unknown_vr(i, end)
            if tag in _PIXEL_TAGS and not depth:
                self.pixel = (tag, vr, start, length)
                break
            # Only a sequence of the top level is remembered: deeper, a look-up would hide how deep the nesting goes.
            lasting = vr != b"UN" and (not depth or vr != b"SQ")
            if lasting and length <= _MEMO_SEQUENCE and start + length <= min(end, size):
                raw = window[i : start + length]
                element = get(raw)
                if element is None:
                    element, _ = self._other(tag, vr, start, length, end, declared, depth, path, elements, True)
                    if not self.odd:
                        memo.keep(raw, element)
                i = start + length
            else:
                element, i = self._other(tag, vr, start, length, end, declared, depth, path, elements, True)
            if element:
                append(element)
        self.at = i
        return elements

    def implicit(self, i: int, end: int, declared: Charset, depth: int, path: str) -> list[_Element]:
        window, size = self.window, len(self.window)
        memo = _memo_of("implicit", declared)
        get = memo.elements.get
        elements: list[_Element] = []
        append = elements.append
        creators: dict[int, bytes] = {}
        while i < end:
            try:
                group, number, length = _implicit_head(window, i)
            except struct.error:
                i = self._short_of_header(i, end, depth)
                break
            if group == 0xFFFE:
                i, ended = self._delimiter(group << 16 | number, i, depth)
                if ended:
                    break
                continue
            j = i + 8 + length
            creator = b""
            if length <= _MEMO_VALUE:
                if j > end:
                    raise _truncated()
                if j > size:
                    raise _Beyond
                raw = window[i:j]
                if group & 1 and number > 0xFF:  # what a private tag means depends on who reserved its block
                    block = group << 8 | number >> 8
                    if block not in creators:
                        creators[block] = _creator(elements, group, number)
                    creator = creators[block]
                    raw += creator
                element = get(raw)
                if element is not None:
                    if element:
                        append(element)
                    i = j
                    continue
            elif group & 1:
                creator = _creator(elements, group, number)
            tag = group << 16 | number
            vr, certain = self._vr(tag, creator, elements)
            if tag in _PIXEL_TAGS and not depth:
                self.pixel = (tag, b"", i + 8, length)
                break
            lasting = certain and vr != b"SQ" and length <= _MEMO_VALUE
            if lasting and vr not in BINARY:
                element, i = _simple(tag, vr, window[i + 8 : j], declared), j
            else:
                element, i = self._other(tag, vr, i + 8, length, end, declared, depth, path, elements, False)
            if lasting:
                memo.keep(raw, element)
            if element:
                append(element)
        self.at = i
        return elements

    def _other(
        self,
        tag: int,
        vr: bytes,
        start: int,
        length: int,
        end: int,
        declared: Charset,
        depth: int,
        path: str,
        elements: list[_Element],
        explicit: bool,
    ) -> tuple[_Element | tuple[()], int]:
        """An element that is no short text or number, and where the next one starts."""
        window = self.window
        if length == _UNDEFINED:
            if vr in (b"SQ", b"UN") or (not explicit and tag not in _PIXEL_TAGS):
                # PS3.5 §6.2.2: what is inside an UN of undefined length is implicit.
                inner = self.explicit if explicit and vr == b"SQ" else self.implicit
                element = self._sequence(tag, start, length, end, inner, declared, depth, path)
                return element, self.at
            stop = self._fragments_end(start, end)
            return _simple(tag, vr or b"OB", window[start : stop - 8], declared), stop
        stop = start + length
        if stop > end:
            raise _truncated()
        if vr == b"SQ":
            inner = self.explicit if explicit else self.implicit
            return self._sequence(tag, start, length, end, inner, declared, depth, path), stop
        if stop > len(window):
            raise _Beyond
        if vr == b"UN" and explicit and length < 0xFFFF:
            creator = _creator(elements, tag >> 16, tag & 0xFFFF) if tag >> 16 & 1 else b""
            vr, _ = self._vr(tag, creator, elements)
            if vr == b"SQ":
                return self._sequence(tag, start, length, end, self.implicit, declared, depth, path), stop
        if vr in BINARY and length > _BULK:
            return _bulky(tag, vr, window[start:stop], f"{path}{tag:08X}"), stop
        value = window[start:stop]
        identity = b""
        if vr == b"UN" and value[:4] == b"\xfe\xff\x00\xe0":
            identity = self._hidden_sequence(tag, start, length, declared, depth)
        return _simple(tag, vr, value, declared, identity), stop

    def _sequence(
        self,
        tag: int,
        i: int,
        length: int,
        end: int,
        read: Callable[[int, int, Charset, int, str], list[_Element]],
        declared: Charset,
        depth: int,
        path: str,
    ) -> _Element:
        if depth >= MAX_DEPTH:
            raise _malformed(f"its sequences nest deeper than {MAX_DEPTH}")
        window = self.window
        stop = end if length == _UNDEFINED else i + length
        if stop > end:
            raise _truncated()
        jsons: list[bytes] = []
        docs: list[bytes] = []
        identities: list[bytes] = []
        explicit = read == self.explicit
        while i < stop:
            try:
                group, number, size = _implicit_head(window, i)
            except struct.error:
                i = self._short_of_header(i, stop, depth + 1)
                break
            if group != 0xFFFE:
                if length != _UNDEFINED:
                    raise _malformed(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) holds something else than sequence items")
                self.odd = True  # the delimiter is missing: the next element belongs to what is around
                break
            i += 8
            if number == 0xE0DD:
                break
            if number != 0xE000:
                self.odd = True
                continue
            inside = declared
            if window[i : i + 4] == b"\x08\x00\x05\x00":
                at = i + 8
                inside = charset(window[at : at + (_short(window, i + 6) if explicit else _long(window, i + 4))[0]])
            item_end = stop
            if size != _UNDEFINED:
                item_end = i + size
                if item_end > stop:
                    self.odd = True
                    item_end = stop
            elements = read(i, item_end, inside, depth + 1, f"{path}{tag:08X}.{len(jsons)}.")
            i = self.at if size == _UNDEFINED else item_end
            if not _ascending(elements):
                elements = _in_order(elements)
            jsons.append(b"{%b}" % b",".join([element[0] for element in elements]))
            docs.append(b"{%b}" % b",".join([element[1] for element in elements]))
            identities.append(b"{%b}" % b"".join([element[3] for element in elements]))
        self.at = i
        shape = _shape(tag)
        if not jsons:
            return b'"%08X":{"vr":"SQ"}' % tag, shape.doc + b"null", shape.sink, b'"%08X"0:' % tag, shape.indexed
        return (
            b'"%08X":{"vr":"SQ","Value":[%b]}' % (tag, b",".join(jsons)),
            b"%b[%b]" % (shape.doc, b",".join(docs)),
            shape.sink,
            b'"%08X":[%b]' % (tag, b",".join(identities)),
            shape.indexed,
        )

    def _hidden_sequence(self, tag: int, start: int, length: int, declared: Charset, depth: int) -> bytes:
        # A private sequence that came in implicit VR: bytes to readers, but the same instance as its explicit twin.
        at, odd = self.at, self.odd
        self.odd = False
        try:
            element = self._sequence(tag, start, length, start + length, self.implicit, declared, depth, "")
            return b"" if self.odd else element[3]
        except InvalidInput:
            return b""
        finally:
            self.at, self.odd = at, odd

    def _vr(self, tag: int, creator: bytes, elements: list[_Element]) -> tuple[bytes, bool]:
        def one_entry() -> bool:
            return _document_text(elements, _LUT_DESCRIPTOR).startswith(b"[1,")

        def signed() -> bool:
            own = _document_text(elements, _PIXEL_REPRESENTATION)
            return own != b"0" if own else self._is_signed()

        return _definite(tag, creator.decode(), one_entry, signed)

    def _is_signed(self) -> bool:
        """Pixel Representation of the whole data set, which may stand after what it governs."""
        if self._signed is None:
            self._signed = False
            for part in _parts(self.window, 0, len(self.window), self.kind):
                if part.tag >= _PIXEL_REPRESENTATION:
                    value = self.window[part.start : part.end]
                    self._signed = part.tag == _PIXEL_REPRESENTATION and bool(value.strip(b"\0"))
                    break
        return self._signed

    def _short_of_header(self, i: int, end: int, depth: int, need: int = 8) -> int:
        """Fewer than `need` bytes are left: a window too small, a torn data set, or padding to tolerate."""
        if i + need > len(self.window) and len(self.window) < self.total:
            raise _Beyond
        if depth or end < self.total or self.window[i:].strip(b"\0"):
            raise _truncated()
        self.odd = True
        return i

    def _delimiter(self, tag: int, i: int, depth: int) -> tuple[int, bool]:
        """Where to go on after a delimiter between elements, and whether it ends the item."""
        if tag == _ITEM_END and depth:
            return i + 8, True
        self.odd = True
        # In an item, what starts or ends another one means that its own delimiter is missing.
        return (i, True) if depth else (i + 8, False)

    def _unknown_vr(self, i: int, end: int) -> tuple[bytes, int, int]:
        """VR, start and length of a value whose VR is none: by the layout after which the next element makes sense."""
        self.odd = True
        window = self.window
        if i + 12 > len(window) and len(window) < self.total:
            raise _Beyond
        group, number, _, short = _explicit_head(window, i)
        vr = _dictionary_vr(group << 16 | number)
        candidates = [(i + 8, short)]
        if i + 12 <= len(window):
            candidates.append((i + 12, _long(window, i + 8)[0]))
        candidates.append((i + 8, _long(window, i + 4)[0]))
        for with_vr in (True, False):
            for start, length in candidates:
                if start + length <= end and self._makes_sense(start + length, end, (group, number), with_vr):
                    return vr, start, length
        raise _malformed(f"({group:04X},{number:04X}) has no VR that DICOM knows")

    def _makes_sense(self, i: int, end: int, before: tuple[int, int], with_vr: bool) -> bool:
        """Whether an element may start here, after the tag `before`: a higher tag, and a VR if that is asked."""
        if i == end:
            return True
        window = self.window
        if i + 8 > len(window):
            if len(window) < self.total:
                raise _Beyond
            return False
        group, number, vr, _ = _explicit_head(window, i)
        return bool((group, number) > before and (not with_vr or vr in SHORT or vr in LONG or group == 0xFFFE))

    def _fragments_end(self, i: int, end: int) -> int:
        window = self.window
        while True:
            if i + 8 > len(window):
                if len(window) < self.total:
                    raise _Beyond
                raise _truncated()
            group, number, size = _implicit_head(window, i)
            i += 8
            if group == 0xFFFE and number == 0xE0DD:
                return i
            i += size
            if group != 0xFFFE or number != 0xE000 or i > end:
                raise _truncated()


def _definite(
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


def _dictionary_vr(tag: int) -> bytes:
    vr = meaning(tag).vr
    if " or " in vr:
        return b"OW" if "OW" in vr else b"US"
    return vr.encode() if vr and vr != "SQ" else b"UN"


def _creator(elements: list[_Element], group: int, number: int) -> bytes:
    """The private creator that reserved the block of a private tag, among the elements before it."""
    member = b'"%04X00%02X"' % (group, number >> 8)
    for json, document, *_ in reversed(elements):
        if json[1:5] != member[1:5]:
            break
        if json[:10] == member:
            return document[12:-1]
    return b""


def _document_text(elements: list[_Element], tag: int) -> bytes:
    """The value text of an element already read; empty without it."""
    member = b'"%08X"' % tag
    for json, document, *_ in reversed(elements):
        if json[:10] == member:
            return document[document.index(b":") + 1 :]
    return b""


# ------------------------------------------------------------------------------------------ one element's text


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
def _shape(tag: int) -> _Shape:
    means = meaning(tag)
    named = means.key != f"{tag:08X}"
    return _Shape(
        doc=b'"%b":' % means.key.encode(),
        many=not means.single if named else None,
        sink=_SINK[level_of(tag)] if named else _WITH_VR,
        indexed=tag in _INDEXED,
        known=bool(means.vr),
    )


def _quoted(text: str) -> bytes:
    quoted: str = encode_basestring(text)
    return quoted.encode("utf-8", "replace")


def _simple(tag: int, vr: bytes, value: bytes, declared: Charset, identity: bytes = b"") -> _Element | tuple[()]:
    """An element that is no sequence; nothing for group lengths and File Meta elements (JSON-02, WILD-12)."""
    if not tag & 0xFFFF or tag >> 16 in (0, 2):
        return _NOTHING
    shape = _shape(tag)
    if vr in BINARY:
        text = binascii.b2a_base64(value, newline=False)
        member, document = (b',"InlineBinary":"%b"' % text, b'"%b"' % text) if value else (b"", b"null")
    else:
        member, document = _value(tag, vr, value, declared, shape.many)
    json = b'"%08X":{"vr":"%b"%b}' % (tag, vr, member)
    return json, shape.doc + document, shape.sink, identity or _identity(tag, vr, value, json, shape), shape.indexed


def _bulky(tag: int, vr: bytes, value: bytes, path: str) -> _Element:
    # A NUL byte marks where the instance's URL goes: no JSON text holds one.
    json = b'"%08X":{"vr":"%b","BulkDataURI":"\0/bulkdata/%b"}' % (tag, vr, path.encode())
    shape = _shape(tag)
    return json, shape.doc + b"null", shape.sink, _identity(tag, vr, value, json, shape), shape.indexed


def _identity(tag: int, vr: bytes, value: bytes, json: bytes, shape: _Shape) -> bytes:
    """What of the element makes the instance this one, whatever syntax carries it."""
    if tag in _ENCODING_ONLY:
        return b""
    if not shape.known or vr in BINARY:  # whether its VR is known depends on the syntax, its bytes do not
        kept = value.rstrip(b" \0")
        return b'"%08X"%d:%b' % (tag, len(kept), kept)
    if tag == _PHOTOMETRIC and value.strip(b" \0").startswith((b"RGB", b"YBR")):
        return b"COLOUR"  # codecs move between colour spaces, not from or to grey or palettes
    if tag == _DERIVATION and _TRANSCODER_NOTE.search(value):
        return b""
    return json


def _value(tag: int, vr: bytes, value: bytes, declared: Charset, many: bool | None) -> tuple[bytes, bytes]:
    """The `,"Value":[...]` of the JSON member, empty for no value, and the text in the document."""
    if vr in NUMBERS:
        jsons, docs = _numbers(vr, value)
    elif vr == b"AT":
        jsons = docs = [b'"%04X%04X"' % pair for pair in struct.iter_unpack("<HH", value[: len(value) & ~3])]
    elif vr in (b"IS", b"DS"):
        jsons, docs = _decimals(vr, value)
    else:
        text = (declared if vr in TEXT else _ASCII).decode(value, vr)
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
        elif tag == _CHARACTER_SET:
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
        docs.append(_quoted(_ASCII.decode(part)))
        jsons.append(_quoted(_ASCII.decode(plain)) if number is None else number)
    return jsons, docs


def _name(text: str) -> bytes:
    groups = [group.rstrip(" \0") for group in text.split("=")]
    named = zip((b"Alphabetic", b"Ideographic", b"Phonetic"), groups, strict=False)
    members = [b'"%b":%b' % (name, _quoted(group)) for name, group in named if group]
    return b"{%b}" % b",".join(members) if members else b"null"


def _ascending(elements: list[_Element]) -> bool:
    tags = [element[0][:10] for element in elements]
    return all(map(bytes.__lt__, tags, tags[1:]))


def _in_order(elements: list[_Element]) -> list[_Element]:
    """Ascending, and of a tag that occurs twice the last one."""
    latest = {element[0][:10]: element for element in elements}
    return [latest[tag] for tag in sorted(latest)]


# ------------------------------------------------------------------------------------------------------ reading


_META_WINDOW: Final = 1 << 16


@lru_cache(maxsize=1024)
def _meta_member(tag: int, vr: bytes, value: bytes) -> tuple[str, bytes]:
    if vr in BINARY:
        return meaning(tag).key, orjson.dumps(binascii.b2a_base64(value, newline=False).decode() or None)
    return meaning(tag).key, _value(tag, vr, value, _ASCII, _shape(tag).many)[1]


def read_part10(data: Buffer) -> Part10:
    """The File Meta Information of a file, whatever its preamble and group length say (PS3.10 §7.1).

    A file may also begin with the prefix. Raises InvalidInput for what is no DICOM file, and without transfer syntax.
    """
    block = bytes(data[:_META_WINDOW])
    i = _PREAMBLE + 4 if block[_PREAMBLE : _PREAMBLE + 4] == b"DICM" else 4
    if block[i - 4 : i] != b"DICM":
        raise InvalidInput("DICOM attributes does not exist")
    meta: dict[str, Any] = {}
    while block[i : i + 2] == b"\x02\0":
        try:
            _, number, vr, length = _explicit_head(block, i)
            begin = i + 8
            if vr in LONG:
                begin, length = i + 12, _long(block, i + 8)[0]
            elif vr not in SHORT:
                vr, length = _dictionary_vr(2 << 16 | number), _long(block, i + 4)[0]
        except struct.error:
            begin, length = i, len(data)
        i = begin + length
        if i > len(data):
            raise InvalidInput("The file ends inside its File Meta Information. Send the whole file again.")
        if i > len(block):
            raise InvalidInput(f"The File Meta Information is longer than {_META_WINDOW} bytes.")
        if number and vr != b"SQ":
            keyword, text = _meta_member(2 << 16 | number, vr, block[begin:i])
            meta[keyword] = orjson.loads(text)
    syntax = meta.get("TransferSyntaxUID")
    if not syntax or not isinstance(syntax, str):
        raise InvalidInput("DICOM attribute TransferSyntaxUID does not exist")
    if not _UID.fullmatch(syntax):  # it would be part of media types
        raise InvalidInput("DICOM attribute TransferSyntaxUID is not a UID")
    return Part10(meta, syntax, i)


def read(
    data: Buffer,
    syntax: str,
    meta: Mapping[str, Any] | None = None,
    *,
    defaults: tuple[str | None, str | None] = (None, None),
    max_inflated: int = 1 << 30,
) -> Received:
    """Everything that is kept of a data set, in one walk that never copies its pixel data.

    `meta` is `Part10.meta`, or None for what arrives without File Meta. `defaults` are the SOP Class and SOP Instance
    UIDs of a C-STORE command: they fill in what the data set lacks (CSTORE-04). Raises InvalidInput for a data set
    that cannot be read to its end, for one without its four UIDs, and for one that inflates beyond `max_inflated`.
    """
    if syntax in (DEFLATED, _JPIP_DEFLATE):
        data = _inflated(data, max_inflated)
    kind = _encoding(data, syntax)
    odd = kind != _declared_kind(syntax)
    if kind == "big":
        elements, pixel, head, pixel_at, strange = _walk_big_endian(data)
    else:
        elements, pixel, head, pixel_at, strange = _walk(data, kind)
    odd |= strange
    for tag, uid in zip((_SOP_CLASS, _SOP_INSTANCE), defaults, strict=True):
        if uid and _document_text(elements, tag) in (b"", b"null"):
            odd = True
            head, pixel_at = _with_uid(head, pixel_at, kind, tag, uid)
            added = _simple(tag, b"UI", uid.encode(), _ASCII)
            elements += [added] if added else []
    if not _ascending(elements):
        elements = _in_order(elements)
    return _received(data, syntax, meta, elements, pixel, head, pixel_at, odd)


_JPIP_DEFLATE: Final = "1.2.840.10008.1.2.4.95"


def _received(
    data: Buffer,
    syntax: str,
    meta: Mapping[str, Any] | None,
    elements: list[_Element],
    pixel: PixelElement | None,
    head: bytes,
    pixel_at: int,
    odd: bool,
) -> Received:
    jsons, docs, places, identities, _ = zip(*elements, strict=True) if elements else ((),) * 5
    sinks: tuple[list[bytes], ...] = ([], [], [], [], [])
    for document, place in zip(docs, places, strict=True):
        sinks[place].append(document)
    levels: Levels = {
        level: orjson.loads(b"{%b}" % b",".join(sinks[sink]))
        for level, sink in (("Patient", _PATIENT), ("Study", _STUDY), ("Series", _SERIES))
    }
    index: dict[str, Any] = orjson.loads(b"{%b}" % b",".join([element[0] for element in elements if element[4]]))
    sop_class, sop_uid = _text(index.get("00080016")), _text(index.get("00080018"))
    uids: dict[str, Any] = {
        "StudyInstanceUID": levels["Study"].get("StudyInstanceUID") or "",
        "SeriesInstanceUID": levels["Series"].get("SeriesInstanceUID") or "",
        "SOPInstanceUID": sop_uid,
        "SOPClassUID": sop_class,
    }
    for keyword, uid in uids.items():
        if not uid:
            raise InvalidInput(f"DICOM attribute {keyword} does not exist")
        if not isinstance(uid, str) or not uid.isprintable():  # of another VR than UI, or overwritten
            raise InvalidInput(f"DICOM attribute {keyword} is not a UID")
        if len(uid) > _MAX_UID:
            raise InvalidInput(f"DICOM attribute {keyword} is longer than {_MAX_UID} characters")
    warnings = {ODD} if odd else set()
    if not all(_UID.fullmatch(uid) for uid in uids.values()):
        warnings.add(INVALID_UID)
    values = {**levels["Patient"], **levels["Study"], **levels["Series"]}
    if any(len(str(values.get(keyword) or "")) > limit for keyword, limit in _LIMITS.items()):
        warnings.add(OVERLONG)
    meta = dict(meta) if meta else _fresh_meta(sop_class, sop_uid, syntax)
    vrs = b",".join(
        [b'%b"%b"' % (element[1][:11], element[0][18:20]) for element in elements if element[2] == _WITH_VR]
    )
    attributes = b",".join([orjson.dumps(meta)[1:-1], *sinks[_INSTANCE], *sinks[_WITH_VR]])
    numbers = index.get("00200013", {}).get("Value") or [None]
    return Received(
        syntax=syntax,
        meta=meta,
        study_uid=uids["StudyInstanceUID"],
        series_uid=uids["SeriesInstanceUID"],
        sop_uid=sop_uid,
        sop_class=sop_class,
        data=data,
        pixel=pixel and _with_format(pixel, index, elements),
        head=head,
        head_pixel_at=pixel_at,
        json_pieces=(b"{%b}" % b",".join(jsons)).split(b"\0"),
        node=b'"DICOM":{%b},"DICOMVRs":{%b}' % (attributes, vrs),
        levels=levels,
        index=index,
        identity=hashlib.sha256(b"".join(identities)).digest(),
        number=numbers[0] if isinstance(numbers[0], int) else None,
        warnings=sorted(warnings),
    )


def _fresh_meta(sop_class: str, sop_uid: str, syntax: str) -> dict[str, Any]:
    return {
        "MediaStorageSOPClassUID": sop_class,
        "MediaStorageSOPInstanceUID": sop_uid,
        "TransferSyntaxUID": syntax,
    }


def _text(element: Mapping[str, Any] | None) -> str:
    """Several values as they stood in the data set: the whole text is the identity (WILD-01)."""
    values = (element or {}).get("Value") or []
    return "\\".join(str(value or "") for value in values)


def _with_format(pixel: PixelElement, index: Mapping[str, Any], elements: list[_Element]) -> PixelElement:
    def number(tag: str, default: int | None = None) -> int | None:
        values = index.get(tag, {}).get("Value") or [default]
        return values[0] if isinstance(values[0], int) else None

    rows, columns, allocated = number("00280010"), number("00280011"), number("00280100")
    samples, planar, frames = number("00280002", 1), number("00280006", 0), number("00280008", 1)
    shape = None
    if rows and columns and allocated and samples and frames is not None and min(rows, columns, allocated, samples) > 0:
        shape = PixelFormat(
            rows=rows,
            columns=columns,
            samples=samples,
            bits_allocated=allocated,
            bits_stored=number("00280101") or allocated,
            signed=number("00280103") == 1,
            photometric=_text(index.get("00280004")).strip() or "MONOCHROME2",
            planar=planar or 0,
            frames=max(frames, 1),
            floating=pixel.tag != PIXEL_DATA,
        )
    return PixelElement(
        pixel.tag,
        pixel.vr,
        pixel.offset,
        pixel.length,
        pixel.encapsulated,
        shape,
        _extended(elements, 0x7FE00001),
        _extended(elements, 0x7FE00002),
    )


def _extended(elements: list[_Element], tag: int) -> tuple[int, ...] | None:
    text = _document_text(elements[-8:], tag)
    if not text.startswith(b'"'):
        return None
    table = binascii.a2b_base64(text)
    return struct.unpack(f"<{len(table) // 8}Q", table[: len(table) & ~7]) or None


def _inflated(data: Buffer, limit: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(data, limit + 1)
    except zlib.error:
        raise _malformed("its transfer syntax is deflated, but it does not inflate") from None
    if len(plain) > limit:
        raise InvalidInput(f"The data set inflates to more than {limit} bytes. Send it in another transfer syntax.")
    if not inflater.eof:
        raise _truncated()
    return plain


def _declared_kind(syntax: str) -> _Kind:
    return "implicit" if syntax == IMPLICIT_LE else "big" if syntax == BIG_ENDIAN else "explicit"


def _encoding(data: Buffer, syntax: str) -> _Kind:
    """How the data set is really written: senders mislabel it (WILD-07), and its first element tells."""
    declared = _declared_kind(syntax)
    first = bytes(data[:8])
    if len(first) < 8:
        return declared
    little, big = int.from_bytes(first[:2], "little"), int.from_bytes(first[:2], "big")
    swapped = big > little > 0 if declared == "big" else little > big > 0
    if swapped and min(little, big) <= 0x20:
        declared = "explicit" if declared == "big" else "big"
    if declared == "big":
        return declared
    if first[4:6] in SHORT or first[4:6] in LONG:
        return "explicit"
    return "explicit" if first[4:6].isalpha() and first[4:6].isupper() else "implicit"


_Walked = tuple[list[_Element], PixelElement | None, bytes, int, bool]
_FIRST_WINDOW: Final = 1 << 17


def _walk(data: Buffer, kind: _Kind) -> _Walked:
    declared = _charset_of(bytes(data[:256]), kind)
    walk, elements = _windowed(data, kind, declared or _ASCII)
    if declared is None:
        declared = _misplaced_charset(elements) or _ASCII
        if declared != _ASCII:
            walk, elements = _windowed(data, kind, declared)
    if walk.pixel is None:
        return elements, None, walk.window[: walk.at], walk.at, walk.odd
    tag, vr, start, length = walk.pixel
    before, odd = walk.at, walk.odd
    stop, clean = (
        _fragments(data, start, "explicit") if length == _UNDEFINED else (min(start + length, len(data)), True)
    )
    odd |= not clean or (length != _UNDEFINED and start + length > len(data))
    if vr not in BINARY:
        vr = b"OB" if length == _UNDEFINED else b"OW"
    pixel = PixelElement(tag, vr.decode(), start, stop - start, length == _UNDEFINED, None)
    elements.append(_pixel_member(tag, vr))
    after = b""
    if stop < len(data):
        rest = memoryview(data)[stop:]
        try:
            tail, more = _windowed(rest, kind, declared)
            if tail.pixel is not None:
                raise _malformed("it has two Pixel Data elements")
            elements += more
            after = bytes(rest[: tail.at])
            odd |= tail.odd
        except InvalidInput:
            odd = True  # rubbish after the pixels is not worth losing them; nor is it worth keeping
    return elements, pixel, walk.window[:before] + after, before, odd


def _windowed(data: Buffer, kind: _Kind, declared: Charset) -> tuple[_Walk, list[_Element]]:
    """The walk over as few of the first bytes as it needs: a mapped file is not read through."""
    size = len(data) if isinstance(data, bytes) else min(len(data), _FIRST_WINDOW)
    while True:
        window = data if isinstance(data, bytes) else bytes(data[:size])
        walk = _Walk(window, len(data), kind)
        try:
            return walk, walk.top(declared)
        except _Beyond:
            size = min(len(data), size * 8)
        except struct.error:
            raise _truncated() from None


def _charset_of(window: bytes, kind: _Kind) -> Charset | None:
    """What (0008,0005) declares where it belongs, among the first elements; None when it is not there."""
    i = 0
    while i + 8 <= len(window):
        group, number, vr, length = _explicit_head(window, i)
        if group > 8 or (group == 8 and number > 5):
            break
        if kind == "implicit":
            (length,) = _long(window, i + 4)
        elif vr not in SHORT:
            break
        if group == 8 and number == 5:
            return charset(window[i + 8 : i + 8 + length])
        i += 8 + length
    return None


def _misplaced_charset(elements: list[_Element]) -> Charset | None:
    """Of a (0008,0005) that does not stand where it belongs."""
    if not any(element[0].startswith(b'"00080005"') for element in elements):
        return None
    text = orjson.loads(_document_text(elements, _CHARACTER_SET))
    terms = "\\".join(term or "" for term in (text if isinstance(text, list) else [text]))
    return charset(terms.encode())


def _pixel_member(tag: int, vr: bytes) -> _Element:
    return (
        b'"%08X":{"vr":"%b","BulkDataURI":"\0/bulkdata/%08X"}' % (tag, vr, tag),
        _shape(tag).doc + b"null",
        _INSTANCE,
        b"",
        False,
    )


def _fragments(data: Buffer, i: int, kind: _Kind) -> tuple[int, bool]:
    """Where encapsulated pixel data ends, and whether by its delimiter and within the data (WILD-06)."""
    unpack = _big_item_head if kind == "big" else _implicit_head
    end = len(data)
    for _ in range(_MAX_FRAGMENTS):
        if i + 8 > end:
            return end, False
        group, number, size = unpack(data, i)
        if group != 0xFFFE or number not in (0xE000, 0xE0DD):
            return i, False
        i += 8
        if number == 0xE0DD:
            return i, True
        i += size
        if i > end:
            return end, False
    raise _malformed(f"its pixel data has more than {_MAX_FRAGMENTS} fragments")


def _walk_big_endian(data: Buffer) -> _Walked:
    around: tuple[list[_Part], list[_Part]] = ([], [])
    pixel: _Part | None = None
    odd = False
    try:
        for part in _parts(data, 0, len(data), "big"):
            if part.tag in _PIXEL_TAGS and pixel is None:
                pixel = part
            else:
                around[pixel is not None].append(part)
                odd |= part.vr not in SHORT and part.vr not in LONG
    except InvalidInput:
        if pixel is None:
            raise
        odd = True
    declared = _charset_among(data, around[0])
    signed = _signed_among(data, around[0])
    elements: list[_Element] = []
    for parts in around:
        text = b"".join(element for _, element in _explicit(data, parts, "big", declared, None, signed))
        walk, more = _windowed(text, "explicit", declared)
        elements += more
        odd |= walk.odd
    if pixel is None:
        stop = around[0][-1].next if around[0] else 0
        return elements, None, bytes(data[:stop]), stop, odd
    vr = pixel.vr if pixel.vr in BINARY else b"OW"
    elements.append(_pixel_member(pixel.tag, vr))
    length = pixel.next - pixel.start
    odd |= pixel.length not in (length, _UNDEFINED)
    place = PixelElement(pixel.tag, vr.decode(), pixel.start, length, pixel.length == _UNDEFINED, None)
    tail = bytes(data[pixel.next : around[1][-1].next]) if around[1] else b""
    return elements, place, bytes(data[: pixel.at]) + tail, pixel.at, odd


# ---------------------------------------------------------------------------------- elements as they lie in bytes


@dataclass(frozen=True, slots=True)
class _Part:
    """One data element in its bytes: header at `at`, value from `start`, the next element at `next`."""

    tag: int
    vr: bytes
    """Empty in implicit VR."""
    at: int
    start: int
    length: int
    next: int

    @property
    def end(self) -> int:
        """Of a value of defined length."""
        return self.next if self.length == _UNDEFINED else self.start + self.length


def _parts(data: Buffer, i: int, end: int, kind: _Kind, depth: int = 0) -> Iterator[_Part]:
    """The elements of one data set or item, without looking into them; the same tolerance as the walk."""
    while i + 8 <= end:
        if kind == "implicit":
            group, number, length = _implicit_head(data, i)
            vr, start = b"", i + 8
        else:
            group, number, vr, length = (_explicit_head if kind == "explicit" else _big_explicit_head)(data, i)
            start = i + 8
            if vr in LONG and i + 12 <= end:
                (length,) = (_long if kind == "explicit" else _big_long)(data, i + 8)
                start = i + 12
            elif vr not in SHORT and group != 0xFFFE and kind == "explicit":
                vr, start, length = _Walk(bytes(data), len(data), kind)._unknown_vr(i, end)
        tag = group << 16 | number
        if group == 0xFFFE:
            if depth:
                return
            i += 8
            continue
        following = start + length
        if length == _UNDEFINED:
            if vr in (b"SQ", b"UN") or (not vr and tag not in _PIXEL_TAGS):
                _, following = _items(data, start, length, end, kind if vr == b"SQ" else "implicit", depth + 1)
            else:
                following, _ = _fragments(data, start, kind)
        elif following > end:
            if tag not in _PIXEL_TAGS or depth:
                raise _truncated()
            following = end
        yield _Part(tag, vr, i, start, length, following)
        i = following
    if bytes(data[i:end]).strip(b"\0"):
        raise _truncated()


def spans(data: bytes, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """Tag, start and end of each top-level element of a data set in Explicit VR Little Endian from `start` on, with
    the tolerance of `read`. Raises InvalidInput."""
    return ((part.tag, part.at, part.next) for part in _parts(data, start, len(data), "explicit"))


def _items(
    data: Buffer, i: int, length: int, end: int, kind: _Kind, depth: int
) -> tuple[list[tuple[int, int]], int]:
    """Where each item's data set starts and ends, and where the sequence does."""
    if depth > MAX_DEPTH:
        raise _malformed(f"its sequences nest deeper than {MAX_DEPTH}")
    unpack = _big_item_head if kind == "big" else _implicit_head
    stop = end if length == _UNDEFINED else min(i + length, end)
    items: list[tuple[int, int]] = []
    while i + 8 <= stop:
        group, number, size = unpack(data, i)
        if group != 0xFFFE:
            break
        i += 8
        if number == 0xE0DD:
            break
        if number != 0xE000:
            continue
        if size != _UNDEFINED:
            items.append((i, min(i + size, stop)))
            i = items[-1][1]
            continue
        last = i
        for part in _parts(data, i, stop, kind, depth):
            last = part.next
        items.append((i, last))
        i = last
        if i + 8 <= stop and unpack(data, i)[:2] == (0xFFFE, 0xE00D):
            i += 8
    return items, i if length == _UNDEFINED else stop


def _charset_among(data: Buffer, parts: Sequence[_Part]) -> Charset:
    return charset(next((bytes(data[p.start : p.end]) for p in parts if p.tag == _CHARACTER_SET), b""))


def _signed_among(data: Buffer, parts: Sequence[_Part], around: bool = False) -> bool:
    for part in parts:
        if part.tag == _PIXEL_REPRESENTATION:
            return bool(bytes(data[part.start : part.end]).strip(b"\0"))
    return around


def _explicit(
    data: Buffer,
    parts: Sequence[_Part],
    kind: _Kind,
    declared: Charset,
    wanted: Charset | None,
    signed: bool,
    depth: int = 0,
) -> Iterator[tuple[int, bytes]]:
    """Each element in Explicit VR LE, with its tag, and its text in the `wanted` character set unless that is None.

    Group lengths, File Meta elements (WILD-12) and, where text is recoded, (0008,0005) are left out.
    Raises UnicodeEncodeError for text that the set lacks.
    """
    creators: dict[int, str] = {}

    def one_entry() -> bool:
        order: Literal["big", "little"] = "big" if kind == "big" else "little"
        found = (part for part in parts if part.tag == _LUT_DESCRIPTOR and part.length >= 2)
        return any(int.from_bytes(data[part.start : part.start + 2], order) == 1 for part in found)

    for part in parts:
        tag, vr = part.tag, part.vr
        group, number = tag >> 16, tag & 0xFFFF
        if not number or group in (0, 2) or (wanted and tag == _CHARACTER_SET):
            continue
        if group & 1 and 0x10 <= number <= 0xFF:
            creators[tag] = declared.decode(bytes(data[part.start : part.end])).rstrip(" \0")
        if vr not in SHORT and vr not in LONG:
            creator = creators.get(group << 16 | number >> 8, "") if group & 1 else ""
            vr, _ = _definite(tag, creator, one_entry, lambda: signed)
        if vr == b"SQ" or (part.length == _UNDEFINED and (vr == b"UN" or kind == "implicit")):
            inner: _Kind = kind if part.vr == b"SQ" else "implicit"
            items, _ = _items(data, part.start, part.length, part.next, inner, depth + 1)
            body = []
            for start, end in items:
                inside = list(_parts(data, start, end, inner, depth + 1))
                own = _charset_among(data, inside) if any(p.tag == _CHARACTER_SET for p in inside) else declared
                nested = _explicit(data, inside, inner, own, wanted, _signed_among(data, inside, signed), depth + 1)
                content = b"".join(element for _, element in nested)
                body.append(struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content)
            yield tag, _element_bytes(tag, b"SQ", b"".join(body))
            continue
        value = bytes(data[part.start : part.end])
        if part.length == _UNDEFINED:
            header = struct.pack("<HH2sHI", group, number, vr, 0, _UNDEFINED)
            yield tag, header + value
            continue
        if kind == "big" and vr in WORDS:
            value = _turned(value, WORDS[vr])
        if wanted and vr in TEXT:
            value = wanted.encode(declared.decode(value, vr).rstrip(" \0"))
        yield tag, _element_bytes(tag, vr, value)


def _turned(value: bytes, width: int) -> bytes:
    whole = len(value) - len(value) % width
    turned = bytearray(value)
    for k in range(width):
        turned[k:whole:width] = value[width - 1 - k : whole : width]
    return bytes(turned)


def _element_bytes(tag: int, vr: bytes, value: bytes) -> bytes:
    group, number = tag >> 16, tag & 0xFFFF
    if len(value) & 1:
        value += b"\0" if vr == b"UI" or vr in WORDS or vr in BINARY else b" "
    if vr not in LONG:
        if len(value) <= 0xFFFE:
            return struct.pack("<HH2sH", group, number, vr, len(value)) + value
        vr = b"UN"  # its own VR has no room for the length (TS-12)
    return struct.pack("<HH2sHI", group, number, vr, 0, len(value)) + value


def _with_uid(head: bytes, pixel_at: int, kind: _Kind, tag: int, uid: str) -> tuple[bytes, int]:
    value = uid.encode() + b"\0" * (len(uid) & 1)
    group, number = tag >> 16, tag & 0xFFFF
    if kind == "implicit":
        element = struct.pack("<HHI", group, number, len(value)) + value
    else:
        element = struct.pack("<HH2sH" if kind == "explicit" else ">HH2sH", group, number, b"UI", len(value)) + value
    start = stop = pixel_at
    for part in _parts(head, 0, pixel_at, kind):
        if part.tag >= tag:
            start = part.at
            stop = part.next if part.tag == tag else start
            break
    return head[:start] + element + head[stop:], pixel_at + len(element) - (stop - start)


# ------------------------------------------------------------------------------------------------------ writing


def write_meta(
    sop_class: str,
    sop_uid: str,
    syntax: str,
    *,
    calling_ae: str | None = None,
) -> bytes:
    """Preamble, prefix and File Meta Information of a file of ours (PS3.10 §7.1)."""
    before, after = _around_sop_uid(sop_class, syntax, calling_ae)
    body = before + _element_bytes(0x00020003, b"UI", _encoded(sop_uid, b"UI", UTF_8, {})) + after
    return bytes(_PREAMBLE) + b"DICM" + _element_bytes(0x00020000, b"UL", struct.pack("<I", len(body))) + body


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
    encoded = [_element_bytes(tag, vr, _encoded(value, vr, UTF_8, {})) for tag, vr, value in values if value]
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
    kind = _encoding(head, syntax)
    if kind == "explicit" and not any(changes) and not adjust:
        return head[:pixel_at], head[pixel_at:]
    parts = [*_parts(head, 0, pixel_at, kind), *_parts(head, pixel_at, len(head), kind)]
    declared = _charset_among(head, parts)
    edits = _edits(changes, adjust or {})
    wanted = None
    if _CHARACTER_SET in edits:
        edit = edits.pop(_CHARACTER_SET)
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
    return {tag: edit for tag, edit in edits.items() if tag >> 16 != 2 and tag not in _PIXEL_TAGS}


def _edited(
    head: bytes,
    parts: Sequence[_Part],
    kind: _Kind,
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
            else _element_bytes(part.tag, part.vr, head[part.start : part.end])  # its VR was none
            for part in kept
        }
    else:
        recoded = None if wanted is None else target
        elements = dict(_explicit(head, parts, kind, declared, recoded, _signed_among(head, parts)))
    if wanted:
        elements[_CHARACTER_SET] = _element_bytes(_CHARACTER_SET, b"CS", wanted.encode())
    for tag, edit in edits.items():
        if edit is None:
            elements.pop(tag, None)
            continue
        present = elements[tag][4:6].decode() if tag in elements else ""
        vr = definite_vr(edit.vr or present or "UN", edit.value, present).encode()
        elements[tag] = _element_bytes(tag, vr, _encoded(edit.value, vr, target, edit.vrs))
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
        if named is not None and named.tag not in (_CHARACTER_SET, *_PIXEL_TAGS):
            vr = definite_vr(named.vr or vrs.get(named.key) or "UN", value).encode()
            elements[named.tag] = _element_bytes(named.tag, vr, _encoded(value, vr, target, vrs))
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
    kind: _Kind = "explicit"
    for depth, tag in enumerate(tags):
        part = next((p for p in _parts(data, start, end, kind, depth) if p.tag == tag), None)
        if part is None:
            break
        if depth == len(indexes):
            return part.vr.decode(), data[part.start : part.end]
        kind = kind if part.vr == b"SQ" else "implicit"
        items, _ = _items(data, part.start, part.length, part.next, kind, depth + 1)
        if indexes[depth] >= len(items):
            break
        start, end = items[indexes[depth]]
    raise NotFound("There is no such bulk data.")
