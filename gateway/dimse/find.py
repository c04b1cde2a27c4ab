"""C-FIND: an identifier to a DicomQuery, and rows of DICOM JSON to identifiers (PS3.4 annex C)."""

import base64
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR
from pydicom.valuerep import format_number_as_ds

from ..domain.errors import InvalidInput
from ..domain.ids import DatastoreId
from ..domain.query import DicomQuery, Key, Level, TagPath
from .contexts import IMPLICIT_LE, PATIENT_ROOT_FIND

_CHARSET, _LEVEL, _RETRIEVE_AE, _AVAILABILITY = 0x00080005, 0x00080052, 0x00080054, 0x00080056
_PATIENT_ID, _STUDY_UID, _SERIES_UID = 0x00100020, 0x0020000D, 0x0020000E

_UNIQUE_KEYS: Final = {Level.PATIENT: _PATIENT_ID, Level.STUDY: _STUDY_UID, Level.SERIES: _SERIES_UID}
_ORDER: Final = (Level.PATIENT, Level.STUDY, Level.SERIES, Level.INSTANCE)

_SUPPORTED_AT: Final[Mapping[Level, frozenset[int]]] = {
    Level.PATIENT: frozenset(
        (0x00100010, 0x00100020, 0x00100021, 0x00100030, 0x00100040, 0x00201200, 0x00201202, 0x00201204)
    ),
    Level.STUDY: frozenset(
        (
            *(0x00080020, 0x00080030, 0x00080050, 0x00080061, 0x00080062, 0x00080090, 0x00081030, 0x00080201),
            *(0x0020000D, 0x00200010, 0x00201206, 0x00201208),
        )
    ),
    Level.SERIES: frozenset(
        (
            *(0x00080060, 0x0020000E, 0x00200011, 0x00080021, 0x0008103E, 0x00081090, 0x00180015, 0x00201209),
            *(0x00400244, 0x00400245, 0x00400275),
        )
    ),
    Level.INSTANCE: frozenset((0x00080016, 0x00080018, 0x00200013, 0x00080008, 0x00280008, 0x00280010, 0x00280011)),
}
"""Keys that a response holds even without a value, zero-length (CFIND-04, CFIND-05, CFIND-08)."""

_CODECS: Final = {
    **dict.fromkeys(("ISO_IR 6", "ISO 2022 IR 6"), "ascii"),
    **{f"{prefix} {number}": codec for prefix in ("ISO_IR", "ISO 2022 IR") for number, codec in (
        ("100", "iso8859_1"), ("101", "iso8859_2"), ("109", "iso8859_3"), ("110", "iso8859_4"), ("144", "iso8859_5"),
        ("127", "iso8859_6"), ("126", "iso8859_7"), ("138", "iso8859_8"), ("148", "iso8859_9"), ("203", "iso8859_15"),
        ("166", "tis_620"))},
    "ISO_IR 192": "utf_8",
    "GB18030": "gb18030",
    "GBK": "gbk",
}  # fmt: skip
"""Defined terms whose text Python writes just as DICOM wants it (PS3.3 C.12.1.1.2)."""
_ESCAPING: Final = {"ISO 2022 IR 87": "iso2022_jp", "ISO 2022 IR 159": "iso2022_jp_2"}
"""Second terms, with code extensions, for which the same holds."""
_UTF_8: Final = "ISO_IR 192"

_TEXT: Final = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UT"))
"""VRs in the data set's character set (PS3.5 §6.1.2.3)."""
_UNSPLIT: Final = frozenset(("LT", "ST", "UT", "UR"))
_NUMBERS: Final = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "SV": "q", "UV": "Q"}
_LONG_LENGTH: Final = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"))
_LARGEST_SHORT = 0xFFFE


@dataclass(frozen=True, slots=True)
class Options:
    """What extended negotiation granted (CFIND-12)."""

    combined_datetime: bool = False
    fuzzy: bool = False

    @classmethod
    def of(cls, granted: bytes) -> "Options":
        """From the application information that was answered."""
        return cls(combined_datetime=granted[1:2] == b"\1", fuzzy=granted[2:3] == b"\1")


@dataclass(frozen=True, slots=True)
class _Element:
    """An element of the identifier: its value undecoded, or the items of a sequence."""

    vr: str | None
    """The dictionary's; else the sender's; None for what nobody knows."""
    value: bytes
    items: "tuple[_Elements, ...]" = ()


_Elements = dict[int, _Element]

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_DEEPEST = 8


@lru_cache(maxsize=4096)
def _vr_of(tag: int, given: str | None) -> str | None:
    """The dictionary's VR; else the request's; None for what nobody knows."""
    try:
        return dictionary_VR(tag)[:2]
    except KeyError:
        return given


class _Reader:
    """Reads an identifier, little-endian; text stays bytes, since only its character set tells what it means.

    Raises InvalidInput.
    """

    def __init__(self, data: bytes, implicit: bool) -> None:
        self._data = data
        self._implicit = implicit
        self._at = 0

    def read(self, end: int, depth: int = 0) -> _Elements:
        """The elements up to `end`, or up to the delimiter of the item that they are in."""
        if depth > _DEEPEST:
            raise InvalidInput("the identifier's sequences are nested too deeply")
        elements: _Elements = {}
        while self._at < end:
            tag, vr, length = self._header(end)
            if tag in (_ITEM_END, _SEQUENCE_END):
                break
            if vr == "SQ" or length == _UNDEFINED:
                elements[tag] = _Element(
                    "SQ", b"", self._items(end if length == _UNDEFINED else self._at + length, depth)
                )
                continue
            elements[tag] = _Element(vr, self._data[self._at : self._at + length])
            self._at += length
        return elements

    def _items(self, end: int, depth: int) -> tuple[_Elements, ...]:
        items = []
        while self._at < end:
            tag, _, length = self._header(end)
            if tag != _ITEM:
                break
            items.append(self.read(end if length == _UNDEFINED else self._at + length, depth + 1))
        return tuple(items)

    def _header(self, end: int) -> tuple[int, str | None, int]:
        try:
            group, number, letters, length = struct.unpack_from("<HH2sH", self._data, self._at)
            tag: int = group << 16 | number
            vr = _vr_of(tag, None)
            is_explicit = not self._implicit and group != 0xFFFE
            if is_explicit:
                vr = vr or letters.decode("latin-1")
            if is_explicit and letters.decode("latin-1") not in _LONG_LENGTH:
                self._at += 8
            else:
                start = self._at + (8 if is_explicit else 4)
                (length,) = struct.unpack_from("<I", self._data, start)
                self._at = start + 4
        except struct.error as error:
            raise InvalidInput("the identifier ends within an element") from error
        if length != _UNDEFINED and length > end - self._at:
            raise InvalidInput("the identifier ends within an element")
        return tag, vr, length


def _charsets(elements: _Elements) -> list[str]:
    value = elements[_CHARSET].value if _CHARSET in elements else b""
    return [term.strip("\0 ") for term in value.decode("latin-1").split("\\")] if value else []


def _decoder(terms: Sequence[str]) -> Callable[[bytes], str]:
    """How the text of the request reads (CFIND-11, WILD-04)."""
    if len(terms) == 1 and (codec := _CODECS.get(terms[0])):
        return lambda value: value.decode(codec, "replace")
    if len(terms) > 1 and all(term in _CODECS or term.startswith("ISO 2022 IR ") or not term for term in terms):
        encodings = list(convert_encodings(list(terms)))
        return lambda value: decode_bytes(value, encodings, {0x5C, 0x5E, 0x3D})

    def default(value: bytes) -> str:
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")

    # An unknown term: its text matches as bytes, of which only ASCII can be meant.
    return (lambda value: value.decode("latin-1")) if terms else default


def _texts(raw: bytes, vr: str, decode: Callable[[bytes], str]) -> tuple[str, ...]:
    """The values to match; none for universal matching: empty, or nothing but `*` (WILD-14)."""
    if vr in _NUMBERS:
        code = _NUMBERS[vr]
        size = struct.calcsize(code)
        return tuple(str(number) for (number,) in struct.iter_unpack("<" + code, raw[: len(raw) // size * size]))
    if vr == "AT":
        pairs = struct.iter_unpack("<HH", raw[: len(raw) & ~3])
        return tuple(f"{group:04X}{element:04X}" for group, element in pairs)
    text = decode(raw) if vr in _TEXT else raw.decode("latin-1")
    parts = [text] if vr in _UNSPLIT else text.split("\\")
    values = tuple(value for part in parts if (value := part.strip("\0 ")))
    return () if any(not value.strip("*") for value in values) else values


_Plan = dict[str, tuple[int, str, "_Plan | None"]]
"""Row key (8 hexadecimal digits) -> tag, VR, and what is asked inside a sequence (None: all of it)."""


class Find:
    """One query: what it asks of the index, and how its rows are answered.

    Raises InvalidInput when the identifier cannot be read or contradicts its information model.
    """

    def __init__(
        self,
        identifier: bytes,
        root: str,
        syntax: str,
        *,
        datastore: DatastoreId,
        retrieve_ae: str,
        options: Options | None = None,
    ) -> None:
        self._implicit = syntax == IMPLICIT_LE
        elements = _Reader(identifier, self._implicit).read(len(identifier))
        self._datastore = datastore
        self._options = options or Options()
        self._terms = _charsets(elements)
        self._decode = _decoder(self._terms)
        self.level = self._level(elements, root)
        self._keys: list[Key] = []
        self._include: set[TagPath] = set()
        self._plan = self._read(elements, ())
        self.relational = self._is_relational(root)
        levels = _ORDER[: _ORDER.index(self.level) + 1]
        self._supported = {tag for level in levels for tag in _SUPPORTED_AT[level]}
        self._fixed = {
            _LEVEL: self._element(_LEVEL, "CS", _pad(self.level.value.encode(), b" ")),
            _RETRIEVE_AE: self._element(_RETRIEVE_AE, "AE", _pad(retrieve_ae.encode("latin-1", "replace"), b" ")),
        }
        asked = [(tag, key) for key, (tag, _, _) in self._plan.items()]
        self._order = sorted([*asked, *((tag, "") for tag in self._fixed)])
        self._candidates = self._encodings()

    def query(self, *, limit: int, offset: int) -> DicomQuery:
        """The question to the index."""
        return DicomQuery(
            datastore=self._datastore,
            level=self.level,
            keys=tuple(self._keys),
            include=frozenset(self._include),
            limit=limit,
            offset=offset,
            fuzzy=self._options.fuzzy,
            combined_datetime=self._options.combined_datetime,
        )

    def response(self, row: Mapping[str, Any]) -> tuple[bytes, bool]:
        """The identifier that answers one row, and whether it holds every key that was asked for (CFIND-07, -08)."""
        for term, codec in self._candidates:
            try:
                body, complete = self._row(row, codec)
            except UnicodeEncodeError:
                continue
            return self._element(_CHARSET, "CS", _pad(term.encode(), b" ")) + body, complete
        raise AssertionError("UTF-8 encodes everything")

    @staticmethod
    def _level(elements: _Elements, root: str) -> Level:
        value = elements[_LEVEL].value if _LEVEL in elements else b""
        text = value.decode("latin-1").strip("\0 ").upper()
        known = {level.value for level in _ORDER}
        if not text:
            raise InvalidInput("Query/Retrieve Level (0008,0052) is missing")
        if text not in known:
            raise InvalidInput("Query/Retrieve Level is not PATIENT, STUDY, SERIES or IMAGE")
        if text == Level.PATIENT.value and root != PATIENT_ROOT_FIND:
            raise InvalidInput("level PATIENT does not exist in Study Root")
        return Level(text)

    def _read(self, elements: _Elements, above: TagPath) -> _Plan:
        """Gathers keys and return keys; group lengths, private and command elements are no keys (CFIND-15)."""
        plan: _Plan = {}
        for tag, element in elements.items():
            group, number = tag >> 16, tag & 0xFFFF
            if group < 8 or group & 1 or not number or (not above and tag in (_CHARSET, _LEVEL, _RETRIEVE_AE)):
                continue
            vr = element.vr
            path = (*above, tag)
            nested: _Plan | None = None
            if vr == "SQ":
                if len(element.items) > 1:
                    raise InvalidInput(f"sequence ({group:04X},{number:04X}) has more than one item")
                nested = (self._read(element.items[0], path) if element.items else None) or None
                if nested is None:
                    self._include.add(path)
            elif vr is not None:
                self._include.add(path)
                values = _texts(element.value, vr, self._decode)
                if values and path != (_AVAILABILITY,):
                    self._keys.append(Key(path, vr, values))
            plan[f"{tag:08X}"] = (tag, vr or "UN", nested)
        return plan

    def _is_relational(self, root: str) -> bool:
        """True when a level above lacks its single unique key (CFIND-03); it is answered all the same."""
        above = _ORDER[0 if root == PATIENT_ROOT_FIND else 1 : _ORDER.index(self.level)]
        single = {key.path[0] for key in self._keys if len(key.path) == 1 and len(key.values) == 1}
        return any(_UNIQUE_KEYS[level] not in single for level in above)

    def _encodings(self) -> list[tuple[str, str]]:
        """(value of (0008,0005), codec) to try in turn: the request's own, then UTF-8 (CFIND-11)."""
        terms = self._terms
        own: list[tuple[str, str]] = []
        if len(terms) == 1 and terms[0] in _CODECS:
            own.append((terms[0], _CODECS[terms[0]]))
        elif len(terms) == 2 and terms[0] in ("", "ISO 2022 IR 6") and terms[1] in _ESCAPING:
            own.append(("\\".join(terms), _ESCAPING[terms[1]]))
        return [*own, (_UTF_8, "utf_8")]

    def _row(self, row: Mapping[str, Any], codec: str) -> tuple[bytes, bool]:
        parts, complete = [], True
        for tag, key in self._order:
            if not key:
                parts.append(self._fixed[tag])
                continue
            attribute = row.get(key)
            _, vr, nested = self._plan[key]
            if attribute is not None:
                parts.append(self._attribute(tag, attribute, nested, codec))
            elif tag == _AVAILABILITY:
                parts.append(self._element(tag, "CS", b"ONLINE"))
            elif tag in self._supported:
                parts.append(self._element(tag, vr, b""))
            else:
                complete = False
        return b"".join(parts), complete

    def _attribute(self, tag: int, attribute: Mapping[str, Any], nested: _Plan | None, codec: str) -> bytes:
        """One element from its DICOM JSON form (PS3.18 F.2); a value that its VR cannot hold is left empty."""
        vr: str = attribute["vr"]
        try:
            return self._element(tag, vr, self._value(vr, attribute, nested, codec))
        except UnicodeEncodeError:
            raise
        except (struct.error, TypeError, ValueError):
            return self._element(tag, vr, b"")

    def _value(self, vr: str, attribute: Mapping[str, Any], nested: _Plan | None, codec: str) -> bytes:
        values = attribute.get("Value") or ()
        if vr == "SQ":
            return b"".join(self._item(item, nested, codec) for item in values)
        if vr == "PN":
            return _pad("\\".join(map(_person_name, values)).encode(codec), b" ")
        if vr in _NUMBERS:
            return struct.pack(f"<{len(values)}{_NUMBERS[vr]}", *values)
        if vr == "UI":
            return _pad("\\".join(values).encode("latin-1", "replace"), b"\0")
        if vr == "AT":
            return b"".join(struct.pack("<HH", int(value[:4], 16), int(value[4:], 16)) for value in values)
        if "InlineBinary" in attribute:
            return _pad(base64.b64decode(attribute["InlineBinary"]), b"\0")
        if vr == "DS":
            return _pad("\\".join(map(_decimal, values)).encode("ascii", "replace"), b" ")
        text = "\\".join("" if value is None else str(value) for value in values)
        return _pad(text.encode(codec) if vr in _TEXT else text.encode("latin-1", "replace"), b" ")

    def _item(self, item: Mapping[str, Any], nested: _Plan | None, codec: str) -> bytes:
        body = b"".join(
            self._attribute(int(key, 16), item[key], nested[key][2] if nested else None, codec)
            for key in sorted(item)
            if nested is None or key in nested
        )
        return struct.pack("<HHI", 0xFFFE, 0xE000, len(body)) + body

    def _element(self, tag: int, vr: str, data: bytes) -> bytes:
        group, number = tag >> 16, tag & 0xFFFF
        if self._implicit:
            return struct.pack("<HHI", group, number, len(data)) + data
        if vr in _LONG_LENGTH:
            return struct.pack("<HH2sHI", group, number, vr.encode(), 0, len(data)) + data
        if len(data) > _LARGEST_SHORT:
            return struct.pack("<HH2sHI", group, number, b"UN", 0, len(data)) + data
        return struct.pack("<HH2sH", group, number, vr.encode(), len(data)) + data


def _pad(data: bytes, padding: bytes) -> bytes:
    return data + padding if len(data) & 1 else data


def _person_name(value: Mapping[str, str] | None) -> str:
    if not value:
        return ""
    groups = (value.get("Alphabetic", ""), value.get("Ideographic", ""), value.get("Phonetic", ""))
    return "=".join(groups).rstrip("=")


def _decimal(value: float | int | str | None) -> str:
    if value is None:
        return ""
    text = str(value)
    return text if len(text) <= 16 or isinstance(value, str) else format_number_as_ds(float(value))
