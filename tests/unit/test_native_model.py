"""The Native DICOM Model from DICOM JSON and back (XML-01, XML-02)."""

from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.errors import InvalidInput
from gateway.domain.native_model import NAMESPACE, from_xml, to_xml

DOCUMENT: dict[str, Any] = {
    "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
    "00080008": {"vr": "CS", "Value": ["DERIVED", None, "AXIAL"]},
    "00081030": {"vr": "LO", "Value": ['Kopf <&> "Hals"\r\n\t']},
    "00081110": {
        "vr": "SQ",
        "Value": [{"00081150": {"vr": "UI", "Value": ["1.2.3"]}}, {}, {"00090010": {"vr": "LO", "Value": ["ACME"]},
                                                                       "00091001": {"vr": "SH", "Value": ["in"]}}],
    },
    "00100010": {
        "vr": "PN",
        "Value": [{"Alphabetic": "Yamada^Tarou^^Dr^Jr^x", "Ideographic": "山田^太郎"}, None, {"Phonetic": "^やまだ"}],
    },
    "00104000": {"vr": "LT"},
    "00189346": {"vr": "SQ"},
    "00280010": {"vr": "US", "Value": ["512"]},
    "00281050": {"vr": "DS", "Value": ["1.50", "-2e3"]},
    "00420011": {"vr": "OB", "InlineBinary": "AAEC"},
    "00990010": {"vr": "LO", "Value": ["ACME & sons"]},
    "00991001": {"vr": "LO", "Value": ["private text"]},
    "00991002": {"vr": "UN", "BulkDataURI": "http://h/a?b=1&c=2"},
    "7FE00010": {"vr": "OW", "BulkDataURI": "http://h/7FE00010"},
}


def test_there_and_back() -> None:
    assert from_xml(to_xml(DOCUMENT)) == DOCUMENT


def test_the_form() -> None:
    text = to_xml(DOCUMENT)
    root = ElementTree.fromstring(text)
    assert root.tag == f"{{{NAMESPACE}}}NativeDicomModel"
    assert root.get("{http://www.w3.org/XML/1998/namespace}space") == "preserve"
    at = {one.get("tag"): one for one in root}
    assert at["00081030"].get("keyword") == "StudyDescription"
    assert (at["00990001"].get("privateCreator"), at["00990001"].get("keyword")) == ("ACME & sons", None)
    assert "00990010" not in at
    name = at["00100010"][0][0]
    parts = ["FamilyName", "GivenName", "NamePrefix", "NameSuffix"]
    assert [part.tag.partition("}")[2] for part in name] == parts
    assert [one.get("number") for one in at["00080008"]] == ["1", "2", "3"]


@given(st.text())
def test_any_text_makes_well_formed_xml(text: str) -> None:
    read = from_xml(to_xml({"00104000": {"vr": "LT", "Value": [text]}}))
    (value,) = read["00104000"]["Value"]
    assert len(value or "") == len(text)


def test_what_other_writers_leave_out() -> None:
    text = b'<NativeDicomModel><DicomAttribute tag="0010000d" privateCreator="no"/>'
    text += b'<DicomAttribute tag="00280010"><Value number="2">5</Value></DicomAttribute></NativeDicomModel>'
    assert from_xml(text) == {"0010000D": {"vr": "UN"}, "00280010": {"vr": "US", "Value": [None, "5"]}}


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("<Other/>", "DicomAttribute"),
        ('<DicomAttribute tag="0028001"/>', "8 digits"),
        ('<DicomAttribute tag="00280010" vr="US"><Value>5</Value></DicomAttribute>', "numbered"),
        ('<DicomAttribute tag="00280010" vr="US"><Value number="99999999">5</Value></DicomAttribute>', "gaps"),
        ('<DicomAttribute tag="00280010" vr="OB"><Value number="1">5</Value></DicomAttribute>', "InlineBinary"),
        ('<DicomAttribute tag="00280010" vr="US"><Wert number="1">5</Wert></DicomAttribute>', "alone"),
        ('<DicomAttribute tag="00081110" vr="SQ"><Item number="1">' * 70, "well-formed"),
        ("&undeclared;", "well-formed"),
    ],
)
def test_what_is_refused(inside: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        from_xml(f"<NativeDicomModel>{inside}</NativeDicomModel>".encode())


@pytest.mark.parametrize(
    "text",
    [
        b'<!DOCTYPE a [<!ENTITY x "y">]><NativeDicomModel>&x;</NativeDicomModel>',
        '<!DOCTYPE a SYSTEM "file:///etc/passwd"><NativeDicomModel/>'.encode("utf-16"),
        b"<DicomModel/>",
        b"",
        b'<?xml version="1.0" encoding="none"?><NativeDicomModel/>',
    ],
)
def test_other_documents_are_refused(text: bytes) -> None:
    with pytest.raises(InvalidInput):
        from_xml(text)


def test_deep_sequences_are_refused() -> None:
    begin, end = '<DicomAttribute tag="00081110" vr="SQ"><Item number="1">', "</Item></DicomAttribute>"
    with pytest.raises(InvalidInput, match="deeper"):
        from_xml(f"<NativeDicomModel>{begin * 70}{end * 70}</NativeDicomModel>".encode())
