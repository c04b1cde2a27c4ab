"""The Native DICOM Model, XML of one data set, from DICOM JSON and back to it (PS3.19 A.1, PS3.18 F.2; XML-01, XML-02).

    to_xml(document)    the XML of a data set in DICOM JSON
    from_xml(text)      the data set in DICOM JSON

Private elements have the tag gggg00ee and the name of their creator; which block is theirs is for each file to say.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from xml.etree import ElementTree

from .dictionary import BINARY, meaning
from .errors import InvalidInput

NAMESPACE: Final = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
MAX_DEPTH: Final = 64
"""Sequences within sequences."""

_HEAD: Final = (
    f'<?xml version="1.0" encoding="UTF-8"?>\n<NativeDicomModel xmlns="{NAMESPACE}" xml:space="preserve">'
)
_TAIL: Final = "</NativeDicomModel>\n"
_NAME_PARTS: Final = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
_NAME_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
_SPECIAL: Final = re.compile(r"[&<>\"\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_ESCAPES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\t": "&#9;", "\n": "\n", "\r": "&#13;"}
_FIRST_BLOCK: Final = 0x10


def to_xml(document: Mapping[str, Any]) -> bytes:
    """The XML of a data set in DICOM JSON, whose numbers may be text. What XML has no character for is U+FFFD."""
    return "".join((_HEAD, *_attributes(document), _TAIL)).encode()


def _attributes(document: Mapping[str, Any]) -> Iterator[str]:
    for tag, element in document.items():
        number = int(tag, 16)
        private = ""
        if number & 0x10000:
            if number & 0xFF00 == 0:  # names a creator, which its elements do themselves
                continue
            creator = document.get(f"{tag[:4]}00{tag[4:6]}", {}).get("Value")
            if creator and isinstance(creator[0], str):
                private = f' privateCreator="{_escaped(creator[0])}"'
                tag = f"{tag[:4]}00{tag[6:]}"
        keyword = meaning(number).key
        named = "" if keyword == tag or number & 0x10000 else f' keyword="{keyword}"'
        vr = element["vr"]
        head = f'<DicomAttribute tag="{tag}" vr="{vr}"{named}{private}'
        if values := element.get("Value"):
            yield head + ">"
            for place, value in enumerate(values, 1):
                yield from _value(vr, value, place)
            yield "</DicomAttribute>"
        elif (uri := element.get("BulkDataURI")) is not None:
            yield f'{head}><BulkData uri="{_escaped(uri)}"/></DicomAttribute>'
        elif inline := element.get("InlineBinary"):
            yield f"{head}><InlineBinary>{inline}</InlineBinary></DicomAttribute>"
        else:
            yield head + "/>"


def _value(vr: str, value: Any, place: int) -> Iterator[str]:
    if vr == "SQ":
        yield f'<Item number="{place}">'
        yield from _attributes(value or {})
        yield "</Item>"
    elif vr == "PN":
        yield f'<PersonName number="{place}">'
        for group in _NAME_GROUPS:
            if text := (value or {}).get(group):
                parts = zip(_NAME_PARTS, text.split("^", len(_NAME_PARTS) - 1), strict=False)
                inside = "".join(f"<{name}>{_escaped(part)}</{name}>" for name, part in parts if part)
                yield f"<{group}>{inside}</{group}>"
        yield "</PersonName>"
    else:
        yield f'<Value number="{place}">{"" if value is None else _escaped(str(value))}</Value>'


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda found: _ESCAPES.get(found[0], _other(found[0])), text)


def _other(character: str) -> str:
    return f"&#{ord(character)};" if "\x7f" <= character <= "\x9f" else "\ufffd"


class _WithoutDoctype(ElementTree.TreeBuilder):
    """A document type could declare entities, which grow without bound or read files."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise InvalidInput("The XML declares a document type: leave <!DOCTYPE> out.")


def from_xml(text: bytes) -> dict[str, Any]:
    """The data set in DICOM JSON; numbers stay text, private elements get blocks. Raises InvalidInput.

    Element names count without their namespace: not all writers give it.
    """
    parser = ElementTree.XMLParser(target=_WithoutDoctype())
    try:
        parser.feed(text)
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as fault:
        where = getattr(fault, "position", None)
        raise InvalidInput(f"The XML is not well-formed{f' at line {where[0]}' if where else ''}.") from None
    if _local(root) != "NativeDicomModel":
        raise InvalidInput(f"The root of the XML is not NativeDicomModel of {NAMESPACE}.")
    return _read_attributes(root, 0)


def _local(node: ElementTree.Element) -> str:
    return str(node.tag).rpartition("}")[2]


def _read_attributes(node: ElementTree.Element, depth: int) -> dict[str, Any]:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"Sequences are nested deeper than {MAX_DEPTH} levels.")
    found: dict[str, Any] = {}
    private: list[tuple[str, str, dict[str, Any]]] = []
    for one in node:
        tag, creator = (one.get("tag") or "").upper(), one.get("privateCreator")
        if _local(one) != "DicomAttribute" or not re.fullmatch("[0-9A-F]{8}", tag):
            raise InvalidInput("Each child of NativeDicomModel and Item is a DicomAttribute with a tag of 8 digits.")
        element = _read_element(one, tag, depth)
        if creator and int(tag, 16) & 0x10000:
            private.append((tag, creator, element))
        else:
            found[tag] = element
    blocks: dict[tuple[str, str], int] = {}
    for tag, creator, element in private:
        group = tag[:4]
        block = blocks.get((group, creator))
        if block is None:
            block = _free_block(found, group, creator)
            blocks[group, creator] = block
            found[f"{group}00{block:02X}"] = {"vr": "LO", "Value": [creator]}
        found[f"{group}{block:02X}{tag[6:]}"] = element
    return found


def _free_block(found: Mapping[str, Any], group: str, creator: str) -> int:
    for block in range(_FIRST_BLOCK, 0x100):
        there = found.get(f"{group}00{block:02X}")
        if there is None or there.get("Value") == [creator]:
            return block
    raise InvalidInput(f"The group {group} has more private creators than a data set can hold.")


def _read_element(node: ElementTree.Element, tag: str, depth: int) -> dict[str, Any]:
    vr = node.get("vr") or meaning(int(tag, 16)).vr
    element: dict[str, Any] = {"vr": vr if len(vr) == 2 else "UN"}
    read = _READERS.get(element["vr"], _read_text)
    numbered: dict[int, Any] = {}
    for child in node:
        kind = _local(child)
        if kind == "BulkData":
            element["BulkDataURI"] = child.get("uri") or child.get("uuid") or ""
        elif kind == "InlineBinary":
            element["InlineBinary"] = "".join((child.text or "").split())
        elif kind in ("Value", "PersonName", "Item"):
            number = child.get("number") or ""
            place = int(number) if re.fullmatch("[1-9][0-9]{0,8}", number) else 0
            if not place or place in numbered:
                raise InvalidInput(f"({tag[:4]},{tag[4:]}): values are numbered from 1, each by another number.")
            numbered[place] = _read_attributes(child, depth + 1) if kind == "Item" else read(child)
        else:
            raise InvalidInput(f"({tag[:4]},{tag[4:]}): a DicomAttribute holds Value, PersonName, Item, BulkData or "
                               "InlineBinary alone.")
    if numbered:
        if max(numbered) > 2 * len(numbered) + 16:
            raise InvalidInput(f"({tag[:4]},{tag[4:]}): the numbers of its values have gaps.")
        element["Value"] = [numbered.get(place) for place in range(1, max(numbered) + 1)]
    if element["vr"].encode() in BINARY and "Value" in element:
        raise InvalidInput(f"({tag[:4]},{tag[4:]}): the value of {vr} goes into InlineBinary or BulkData.")
    return element


def _read_text(node: ElementTree.Element) -> str | None:
    return node.text or None


def _read_name(node: ElementTree.Element) -> dict[str, str] | None:
    groups: dict[str, str] = {}
    for group in node:
        told = {_local(part): part.text or "" for part in group}
        if text := "^".join(told.get(name, "") for name in _NAME_PARTS).rstrip("^"):
            groups[_local(group)] = text
    return groups or None


_READERS: Final[Mapping[str, Callable[[ElementTree.Element], Any]]] = {"PN": _read_name}
