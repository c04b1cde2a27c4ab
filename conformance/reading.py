"""Strict readers: what an answer says, and every way in which it is not written as the standard has it.

json_document, data_sets    DICOM JSON (PS3.18 Annex F), and `json_faults` for each rule that it breaks
parts                       multipart/related (PS3.18 §8.6.1.2)
native_model                Native DICOM XML (PS3.19 A.1), as DICOM JSON
instance                    a PS3.10 file
"""

import base64
import binascii
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final
from xml.etree import ElementTree

from pydicom import config, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileDataset

Attributes = Mapping[str, Any]
"""A data set in DICOM JSON."""


class Unreadable(Exception):
    """An answer cannot be read at all; the text says why."""


# ---------------------------------------------------------------- DICOM JSON

_NUMBERS: Final = frozenset({"FL", "FD", "SL", "SS", "UL", "US"})
_NUMBERS_OR_TEXT: Final = frozenset({"IS", "DS", "SV", "UV"})
_BINARY: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_BULK: Final = _BINARY | _NUMBERS | _NUMBERS_OR_TEXT | {"LT", "ST", "UC", "UT"}
_TEXT: Final = frozenset({"AE", "AS", "AT", "CS", "DA", "DT", "LO", "LT", "SH", "ST", "TM", "UC", "UI", "UR", "UT"})
VRS: Final = _BINARY | _NUMBERS | _NUMBERS_OR_TEXT | _TEXT | {"PN", "SQ"}
_ONE_VALUE: Final = frozenset({"LT", "ST", "UT", "UR"})
_TAG = re.compile(r"[0-9A-F]{8}")


def json_document(body: bytes) -> Any:
    """JSON as RFC 8259 has it: UTF-8, no mark before it, no NaN, no name twice. Raises Unreadable."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise Unreadable("an object of the JSON has a name twice")
        return made

    def constant(token: str) -> Any:
        raise Unreadable(f"the JSON holds the bare token {token}, which is no JSON")

    if body.startswith(b"\xef\xbb\xbf"):
        raise Unreadable("the JSON begins with a byte order mark")
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except UnicodeDecodeError:
        raise Unreadable("the JSON is not UTF-8") from None
    except json.JSONDecodeError as fault:
        raise Unreadable(f"the body is no JSON: {fault.msg} at byte {fault.pos}") from None


def data_sets(body: bytes) -> list[dict[str, Any]]:
    """The array of data sets. Raises Unreadable where it is none."""
    document = json_document(body)
    if not isinstance(document, list) or not all(isinstance(one, dict) for one in document):
        raise Unreadable("the JSON is not an array of data sets")
    return document


def study_uids(body: bytes) -> set[str]:
    """Every Study Instance UID that a body of DICOM JSON or XML names. Raises Unreadable."""
    if body.lstrip()[:1] == b"<":
        return set(re.findall(r'tag="0020000D".*?<Value[^>]*>([0-9.]+)<', body.decode("utf-8", "replace"), re.DOTALL))
    document = json_document(body)
    rows = document if isinstance(document, list) else [document]
    return {str(uid) for row in rows if isinstance(row, dict) for uid in values(row, "0020000D")}


def values(attributes: Attributes, tag: str) -> list[Any]:
    """The values of an attribute; none where it is missing or empty."""
    element = attributes.get(tag)
    found = element.get("Value") if isinstance(element, Mapping) else None
    return found if isinstance(found, list) else []


def value(attributes: Attributes, tag: str) -> Any:
    """The first value, or None."""
    return next(iter(values(attributes, tag)), None)


def texts(attributes: Attributes, tag: str) -> list[str]:
    """The values as text; of a name its alphabetic group."""
    found = values(attributes, tag)
    return [str(one.get("Alphabetic", "") if isinstance(one, Mapping) else one) for one in found]


def elements(attributes: Attributes, path: str = "") -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Every element of a data set and of its items: where it stands, its tag, itself."""
    for tag, element in attributes.items():
        if not isinstance(element, Mapping):
            yield path + tag, tag, {}
            continue
        yield path + tag, tag, element
        if element.get("vr") == "SQ":
            for number, item in enumerate(values(attributes, tag)):
                if isinstance(item, Mapping):
                    yield from elements(item, f"{path}{tag}[{number}].")


def json_faults(attributes: Attributes) -> Iterator[tuple[str, str]]:
    """Each breach of Annex F in a data set: the requirement, and what is wrong where."""
    yield from _order_faults(attributes, "")
    for where, tag, element in elements(attributes):
        if not _TAG.fullmatch(tag):
            yield "JSON-02", f"{where}: a name is eight upper-case hexadecimal digits"
        elif tag.endswith("0000") or tag.startswith("0002"):
            yield "JSON-02", f"{where}: group lengths and group 0002 do not belong here"
        yield from _element_faults(where, element)


def _order_faults(attributes: Attributes, path: str) -> Iterator[tuple[str, str]]:
    if [*attributes] != sorted(attributes):
        yield "JSON-02", f"{path or 'the data set'}: tags are not in ascending order"
    for tag, element in attributes.items():
        if isinstance(element, Mapping) and element.get("vr") == "SQ":
            for number, item in enumerate(values(attributes, tag)):
                if isinstance(item, Mapping):
                    yield from _order_faults(item, f"{path}{tag}[{number}]")


def _element_faults(where: str, element: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    vr = element.get("vr")
    if vr not in VRS:
        yield "JSON-03", f"{where}: vr {vr!r} is none"
        return
    forms = {"Value", "BulkDataURI", "InlineBinary"} & element.keys()
    if len(forms) > 1 or not element.keys() <= {"vr", "Value", "BulkDataURI", "InlineBinary"}:
        yield "JSON-03", f"{where}: beside vr one of Value, BulkDataURI, InlineBinary, not {sorted(element)}"
    if "InlineBinary" in element:
        if vr not in _BINARY:
            yield "JSON-09", f"{where}: InlineBinary is not for {vr}"
        try:
            base64.b64decode(element["InlineBinary"], validate=True)
        except (binascii.Error, TypeError, ValueError):
            yield "JSON-09", f"{where}: InlineBinary is not one base64 text"
    if "BulkDataURI" in element and vr not in _BULK:
        yield "JSON-09", f"{where}: BulkDataURI is not for {vr}"
    if "Value" not in element:
        return
    found = element["Value"]
    if not isinstance(found, list):
        yield "JSON-03", f"{where}: Value is not an array"
        return
    if not found:
        yield "JSON-04", f"{where}: an empty attribute has no Value"
    for one in found:
        yield from _value_faults(where, str(vr), one)
    if vr in _ONE_VALUE and len(found) > 1:
        yield "JSON-11", f"{where}: {vr} has one value; a backslash does not part it"


def _value_faults(where: str, vr: str, one: Any) -> Iterator[tuple[str, str]]:
    if one is None:
        return
    if vr == "SQ":
        if not isinstance(one, Mapping):
            yield "JSON-04", f"{where}: an item is an object"
    elif vr == "PN":
        groups = ("Alphabetic", "Ideographic", "Phonetic")
        if not isinstance(one, Mapping):
            yield "JSON-05", f"{where}: a name is an object"
        elif not one.keys() <= set(groups) or not all(isinstance(v, str) and v for v in one.values()):
            yield "JSON-05", f"{where}: a name has non-empty Alphabetic, Ideographic, Phonetic alone"
    elif vr in _NUMBERS:
        if isinstance(one, bool) or not isinstance(one, int | float):
            rule = "JSON-07" if vr in ("FL", "FD") and one in ("NaN", "Infinity", "-Infinity") else "JSON-06"
            if rule == "JSON-06":
                yield rule, f"{where}: a value of {vr} is a number"
    elif vr in _NUMBERS_OR_TEXT:
        if isinstance(one, bool) or not isinstance(one, int | float | str):
            yield "JSON-06", f"{where}: a value of {vr} is a number or a text"
    elif vr in _BINARY:
        yield "JSON-09", f"{where}: {vr} has no Value"
    elif not isinstance(one, str):
        yield "JSON-06", f"{where}: a value of {vr} is a text"
    elif vr == "AT" and not _TAG.fullmatch(one):
        yield "JSON-08", f"{where}: a value of AT is eight upper-case hexadecimal digits"


# ---------------------------------------------------------------- multipart/related


@dataclass(frozen=True, slots=True)
class Part:
    """One part; `names` are its headers as spelled, `headers` with names in lower case."""

    headers: Mapping[str, str]
    names: tuple[str, ...]
    body: bytes
    offset: int = 0
    """Of the payload in the whole body."""
    faults: tuple[str, ...] = field(default=())

    @property
    def type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def parameter(self, name: str) -> str | None:
        """A parameter of its Content-Type as written, quotes and all."""
        found = re.search(rf";\s*{name}\s*=\s*(\"[^\"]*\"|[^;\s]*)", self.headers.get("content-type", ""), re.I)
        return found[1] if found else None


def media_parameters(text: str) -> dict[str, str]:
    """The parameters of a media type, names in lower case, quotes off."""
    pairs = re.findall(r";\s*([^=;\s]+)\s*=\s*(\"(?:[^\"\\]|\\.)*\"|[^;]*)", text)
    return {name.lower(): value.strip().strip('"') for name, value in pairs}


def is_multipart(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "multipart/related"


def parts(content_type: str, headers: Mapping[str, str], body: bytes) -> list[Part]:
    """The parts of a body (RFC 2046 §5.1); a body that is not multipart is the only part. Raises Unreadable."""
    if not is_multipart(content_type):
        return [Part({k.lower(): v for k, v in headers.items()}, tuple(headers), body)]
    boundary = media_parameters(content_type).get("boundary", "")
    if not boundary:
        raise Unreadable("the multipart Content-Type names no boundary")
    delimiter = b"--" + boundary.encode("latin-1")
    if not body.startswith((delimiter, b"\r\n" + delimiter)):
        raise Unreadable("the body does not begin with its boundary")
    found: list[Part] = []
    at = body.index(delimiter) + len(delimiter)
    while True:
        if body.startswith(b"--", at):
            return found
        if not body.startswith(b"\r\n", at):
            raise Unreadable("a boundary is followed by neither CRLF nor --")
        end_of_head = at + 2 if body.startswith(b"\r\n\r\n", at) else body.find(b"\r\n\r\n", at)
        if end_of_head < 0:
            raise Unreadable("the headers of a part do not end")
        head = body[at + 2 : max(at + 2, end_of_head)].decode("latin-1")
        start = end_of_head + (2 if end_of_head == at + 2 else 4)
        lines = [line.partition(":") for line in head.split("\r\n") if line]
        given = {name.strip().lower(): text.strip() for name, _, text in lines}
        size = given.get("content-length", "")
        # A payload may hold what looks like a boundary: its length, where told, says where it ends.
        told = start + int(size) if size.isdecimal() else -1
        told_truly = told > 0 and body.startswith(b"\r\n" + delimiter, told)
        end = told if told_truly else body.find(b"\r\n" + delimiter, start)
        if end < 0:
            raise Unreadable("the last part is not followed by the closing boundary")
        faults = []
        if told > 0 and told != end:
            faults.append(f"Content-Length is {size}, the payload has {end - start} bytes")
        if "\n" in head.replace("\r\n", ""):
            faults.append("a header line ends with a bare LF")
        found.append(Part(given, tuple(name for name, _, _ in lines), body[start:end], start, tuple(faults)))
        at = end + 2 + len(delimiter)


# ---------------------------------------------------------------- Native DICOM XML

NAMESPACE: Final = "http://dicom.nema.org/PS3.19/models/NativeDICOM"


def native_model(body: bytes) -> dict[str, Any]:
    """A Native DICOM Model document as DICOM JSON. Raises Unreadable where it is not one (XML-01, XML-02)."""
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise Unreadable("the XML declares a document type")
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as fault:
        raise Unreadable(f"the part is no XML: {fault}") from None
    if root.tag not in ("NativeDicomModel", f"{{{NAMESPACE}}}NativeDicomModel"):
        raise Unreadable(f"the root is {root.tag}, not NativeDicomModel of {NAMESPACE}")
    return _xml_attributes(root)


def _local(node: ElementTree.Element) -> str:
    return node.tag.rpartition("}")[2]


def _xml_attributes(node: ElementTree.Element) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for element in node:
        if _local(element) != "DicomAttribute":
            raise Unreadable(f"{_local(element)} where a DicomAttribute belongs")
        tag, vr = element.get("tag", ""), element.get("vr", "")
        if not _TAG.fullmatch(tag) or vr not in VRS:
            raise Unreadable(f"DicomAttribute with tag {tag!r} and vr {vr!r}")
        made: dict[str, Any] = {"vr": vr}
        numbered: list[Any] = []
        for place, child in enumerate(element, start=1):
            kind = _local(child)
            if kind == "BulkData":
                made["BulkDataURI"] = child.get("uri", "")
                continue
            if kind == "InlineBinary":
                made["InlineBinary"] = "".join((child.text or "").split())
                continue
            if child.get("number") != str(place):
                raise Unreadable(f"{tag}: {kind} number {child.get('number')!r} in place {place}")
            if kind == "Item":
                numbered.append(_xml_attributes(child))
            elif kind == "PersonName":
                numbered.append({_local(group): _xml_name(group) for group in child})
            elif kind == "Value":
                numbered.append(child.text or "")
            else:
                raise Unreadable(f"{tag}: {kind} does not belong in a DicomAttribute")
        if numbered:
            made["Value"] = numbered
        if element.get("privateCreator"):
            made["privateCreator"] = element.get("privateCreator")
        if element.get("keyword"):
            made["keyword"] = element.get("keyword")
        found[tag] = made
    return found


def _xml_name(group: ElementTree.Element) -> str:
    places = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
    told = {_local(part): part.text or "" for part in group}
    return "^".join(told.get(place, "") for place in places).rstrip("^")


# ---------------------------------------------------------------- PS3.10


def instance(body: bytes) -> FileDataset:
    """A PS3.10 file. Raises Unreadable."""
    if body[128:132] != b"DICM":
        raise Unreadable("the part is no DICOM file: no DICM behind 128 bytes")
    try:
        with config.disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd values are the samples' business
            made = dcmread(BytesIO(body))
            for _ in made.iterall():
                pass
    except Exception as fault:
        raise Unreadable(f"the part cannot be read as a DICOM file: {type(fault).__name__}") from None
    return made


def differences(ours: Dataset, theirs: Dataset, path: str = "") -> Iterator[str]:
    """What an instance lost, gained or changed on its way; its pixel data and file meta aside."""
    skipped = {0x7FE00010, 0xFFFCFFFC, 0x00080005}
    mine = {int(e.tag): e for e in ours if int(e.tag) not in skipped and e.tag.element != 0}
    others = {int(e.tag): e for e in theirs if int(e.tag) not in skipped and e.tag.element != 0}
    for tag in sorted(mine.keys() | others.keys()):
        name = f"{path}{tag:08X}"
        if tag not in others:
            yield f"{name} is gone"
        elif tag not in mine:
            yield f"{name} is new"
        elif mine[tag].VR == "SQ" and others[tag].VR == "SQ":
            if len(mine[tag].value) != len(others[tag].value):
                yield f"{name} has {len(others[tag].value)} items, sent with {len(mine[tag].value)}"
                continue
            for number, (one, other) in enumerate(zip(mine[tag].value, others[tag].value, strict=True)):
                yield from differences(one, other, f"{name}[{number}].")
        elif not _same(mine[tag].value, others[tag].value):
            yield f"{name} changed its value"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, bytes) and isinstance(other, bytes):
        return one.rstrip(b"\0 ") == other.rstrip(b"\0 ")
    if isinstance(one, float) and isinstance(other, float) and one != one:
        return other != other
    return one == other or str(one).rstrip("\0 ") == str(other).rstrip("\0 ")


def vr_of(tag: str) -> str:
    """The VR that the dictionary gives a tag; UN where it does not know it."""
    try:
        return dictionary_VR(int(tag, 16))
    except (KeyError, ValueError):
        return "UN"
