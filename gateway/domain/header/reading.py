"""Reading a received instance (PS3.10 §7.1): its File Meta Information, and its data set in one walk."""

import binascii
import hashlib
import re
import struct
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import orjson

from ..dictionary import BINARY, LONG, SHORT, Charset, charset, meaning
from ..errors import InvalidInput
from ..metadata import Levels
from ..pixels import PIXEL_DATA, PixelFormat
from ..syntaxes import BIG_ENDIAN, DEFLATED, IMPLICIT_LE
from .layout import (
    ASCII,
    CHARACTER_SET,
    PIXEL_TAGS,
    PREAMBLE,
    SOP_INSTANCE,
    UNDEFINED,
    Beyond,
    Buffer,
    Kind,
    dictionary_vr,
    explicit_head,
    long_at,
    malformed,
    truncated,
)
from .parts import Part, charset_among, end_of_fragments, explicit_elements, parts_of, signed_among, with_uid
from .received import INVALID_UID, ODD, OVERLONG, Part10, PixelElement, Received
from .text import (
    INSTANCE,
    PATIENT,
    SERIES,
    STUDY,
    WITH_VR,
    Element,
    shape_of,
    simple_element,
    value_text,
)
from .walk import Walk, document_text, in_order, is_ascending

_SOP_CLASS: Final = 0x00080016
_MAX_UID: Final = 256
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
_UID_FORM: Final = re.compile(r"(?=.{1,64}\Z)[0-9]+(?:\.[0-9]+)*")
_META_WINDOW: Final = 1 << 16


@lru_cache(maxsize=1024)
def _meta_member(tag: int, vr: bytes, value: bytes) -> tuple[str, bytes]:
    if vr in BINARY:
        return meaning(tag).key, orjson.dumps(binascii.b2a_base64(value, newline=False).decode() or None)
    return meaning(tag).key, value_text(tag, vr, value, ASCII, shape_of(tag).many)[1]


def read_part10(data: Buffer) -> Part10:
    """The File Meta Information of a file, whatever its preamble and group length say (PS3.10 §7.1).

    A file may also begin with the prefix. Raises InvalidInput for what is no DICOM file, and without transfer syntax.
    """
    block = bytes(data[:_META_WINDOW])
    i = PREAMBLE + 4 if block[PREAMBLE : PREAMBLE + 4] == b"DICM" else 4
    if block[i - 4 : i] != b"DICM":
        raise InvalidInput("DICOM attributes does not exist")
    meta: dict[str, Any] = {}
    while block[i : i + 2] == b"\x02\0":
        try:
            _, number, vr, length = explicit_head(block, i)
            begin = i + 8
            if vr in LONG:
                begin, length = i + 12, long_at(block, i + 8)[0]
            elif vr not in SHORT:
                vr, length = dictionary_vr(2 << 16 | number), long_at(block, i + 4)[0]
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
    if not _UID_FORM.fullmatch(syntax):  # it would be part of media types
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
    kind = encoding_of(data, syntax)
    odd = kind != _declared_kind(syntax)
    if kind == "big":
        elements, pixel, head, pixel_at, strange = _walk_big_endian(data)
    else:
        elements, pixel, head, pixel_at, strange = _walk(data, kind)
    odd |= strange
    for tag, uid in zip((_SOP_CLASS, SOP_INSTANCE), defaults, strict=True):
        if uid and document_text(elements, tag) in (b"", b"null"):
            odd = True
            head, pixel_at = with_uid(head, pixel_at, kind, tag, uid)
            added = simple_element(tag, b"UI", uid.encode(), ASCII)
            elements += [added] if added else []
    if not is_ascending(elements):
        elements = in_order(elements)
    return _received(data, syntax, meta, elements, pixel, head, pixel_at, odd)


_JPIP_DEFLATE: Final = "1.2.840.10008.1.2.4.95"


def _received(
    data: Buffer,
    syntax: str,
    meta: Mapping[str, Any] | None,
    elements: list[Element],
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
        for level, sink in (("Patient", PATIENT), ("Study", STUDY), ("Series", SERIES))
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
    if not all(_UID_FORM.fullmatch(uid) for uid in uids.values()):
        warnings.add(INVALID_UID)
    values = {**levels["Patient"], **levels["Study"], **levels["Series"]}
    if any(len(str(values.get(keyword) or "")) > limit for keyword, limit in _LIMITS.items()):
        warnings.add(OVERLONG)
    meta = dict(meta) if meta else _fresh_meta(sop_class, sop_uid, syntax)
    vrs = b",".join([b'%b"%b"' % (element[1][:11], element[0][18:20]) for element in elements if element[2] == WITH_VR])
    attributes = b",".join([orjson.dumps(meta)[1:-1], *sinks[INSTANCE], *sinks[WITH_VR]])
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


def _with_format(pixel: PixelElement, index: Mapping[str, Any], elements: list[Element]) -> PixelElement:
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


def _extended(elements: list[Element], tag: int) -> tuple[int, ...] | None:
    text = document_text(elements[-8:], tag)
    if not text.startswith(b'"'):
        return None
    table = binascii.a2b_base64(text)
    return struct.unpack(f"<{len(table) // 8}Q", table[: len(table) & ~7]) or None


def _inflated(data: Buffer, limit: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(data, limit + 1)
    except zlib.error:
        raise malformed("its transfer syntax is deflated, but it does not inflate") from None
    if len(plain) > limit:
        raise InvalidInput(f"The data set inflates to more than {limit} bytes. Send it in another transfer syntax.")
    if not inflater.eof:
        raise truncated()
    return plain


def _declared_kind(syntax: str) -> Kind:
    return "implicit" if syntax == IMPLICIT_LE else "big" if syntax == BIG_ENDIAN else "explicit"


def encoding_of(data: Buffer, syntax: str) -> Kind:
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


_Walked = tuple[list[Element], PixelElement | None, bytes, int, bool]
_FIRST_WINDOW: Final = 1 << 17


def _walk(data: Buffer, kind: Kind) -> _Walked:
    declared = _charset_of(bytes(data[:256]), kind)
    walk, elements = _windowed(data, kind, declared or ASCII)
    if declared is None:
        declared = _misplaced_charset(elements) or ASCII
        if declared != ASCII:
            walk, elements = _windowed(data, kind, declared)
    if walk.pixel is None:
        return elements, None, walk.window[: walk.at], walk.at, walk.odd
    tag, vr, start, length = walk.pixel
    before, odd = walk.at, walk.odd
    stop, clean = (
        end_of_fragments(data, start, "explicit") if length == UNDEFINED else (min(start + length, len(data)), True)
    )
    odd |= not clean or (length != UNDEFINED and start + length > len(data))
    if vr not in BINARY:
        vr = b"OB" if length == UNDEFINED else b"OW"
    pixel = PixelElement(tag, vr.decode(), start, stop - start, length == UNDEFINED, None)
    elements.append(_pixel_member(tag, vr))
    after = b""
    if stop < len(data):
        rest = memoryview(data)[stop:]
        try:
            tail, more = _windowed(rest, kind, declared)
            if tail.pixel is not None:
                raise malformed("it has two Pixel Data elements")
            elements += more
            after = bytes(rest[: tail.at])
            odd |= tail.odd
        except InvalidInput:
            odd = True  # rubbish after the pixels is not worth losing them; nor is it worth keeping
    return elements, pixel, walk.window[:before] + after, before, odd


def _windowed(data: Buffer, kind: Kind, declared: Charset) -> tuple[Walk, list[Element]]:
    """The walk over as few of the first bytes as it needs: a mapped file is not read through."""
    size = len(data) if isinstance(data, bytes) else min(len(data), _FIRST_WINDOW)
    while True:
        window = data if isinstance(data, bytes) else bytes(data[:size])
        walk = Walk(window, len(data), kind)
        try:
            return walk, walk.top(declared)
        except Beyond:
            size = min(len(data), size * 8)
        except struct.error:
            raise truncated() from None


def _charset_of(window: bytes, kind: Kind) -> Charset | None:
    """What (0008,0005) declares where it belongs, among the first elements; None when it is not there."""
    i = 0
    while i + 8 <= len(window):
        group, number, vr, length = explicit_head(window, i)
        if group > 8 or (group == 8 and number > 5):
            break
        if kind == "implicit":
            (length,) = long_at(window, i + 4)
        elif vr not in SHORT:
            break
        if group == 8 and number == 5:
            return charset(window[i + 8 : i + 8 + length])
        i += 8 + length
    return None


def _misplaced_charset(elements: list[Element]) -> Charset | None:
    """Of a (0008,0005) that does not stand where it belongs."""
    if not any(element[0].startswith(b'"00080005"') for element in elements):
        return None
    text = orjson.loads(document_text(elements, CHARACTER_SET))
    terms = "\\".join(term or "" for term in (text if isinstance(text, list) else [text]))
    return charset(terms.encode())


def _pixel_member(tag: int, vr: bytes) -> Element:
    return (
        b'"%08X":{"vr":"%b","BulkDataURI":"\0/bulkdata/%08X"}' % (tag, vr, tag),
        shape_of(tag).doc + b"null",
        INSTANCE,
        b"",
        False,
    )


def _walk_big_endian(data: Buffer) -> _Walked:
    around: tuple[list[Part], list[Part]] = ([], [])
    pixel: Part | None = None
    odd = False
    try:
        for part in parts_of(data, 0, len(data), "big"):
            if part.tag in PIXEL_TAGS and pixel is None:
                pixel = part
            else:
                around[pixel is not None].append(part)
                odd |= part.vr not in SHORT and part.vr not in LONG
    except InvalidInput:
        if pixel is None:
            raise
        odd = True
    declared = charset_among(data, around[0])
    signed = signed_among(data, around[0])
    elements: list[Element] = []
    for parts in around:
        text = b"".join(element for _, element in explicit_elements(data, parts, "big", declared, None, signed))
        walk, more = _windowed(text, "explicit", declared)
        elements += more
        odd |= walk.odd
    if pixel is None:
        stop = around[0][-1].next if around[0] else 0
        return elements, None, bytes(data[:stop]), stop, odd
    vr = pixel.vr if pixel.vr in BINARY else b"OW"
    elements.append(_pixel_member(pixel.tag, vr))
    length = pixel.next - pixel.start
    odd |= pixel.length not in (length, UNDEFINED)
    place = PixelElement(pixel.tag, vr.decode(), pixel.start, length, pixel.length == UNDEFINED, None)
    tail = bytes(data[pixel.next : around[1][-1].next]) if around[1] else b""
    return elements, place, bytes(data[: pixel.at]) + tail, pixel.at, odd
