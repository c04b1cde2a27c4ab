"""The metadata document in pieces, and values between document form and DICOM JSON."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain import metadata
from gateway.domain.edits import Changes
from gateway.domain.pixels import FrameFacts

LEVELS: metadata.Levels = {
    "Patient": {"PatientID": "P1", "PatientName": "DOE^J", "PatientSex": None},
    "Study": {"StudyInstanceUID": "1.2.3", "StudyDescription": "CHEST"},
    "Series": {"SeriesInstanceUID": "1.2.3.4", "SeriesNumber": "1 "},
}
NODE = b'"DICOM":{"TransferSyntaxUID":"1.2.840.10008.1.2.1","Rows":512,"00091001":"GE"},"DICOMVRs":{"00091001":"LO"}'


def test_the_pieces_make_the_document() -> None:
    frames = [
        ("0" * 32, 512, 256, FrameFacts(4294967295, -1024, 1447, 262144)),
        ("1" * 32, 512, 256, FrameFacts(7, None, None, 99)),
    ]
    text = (
        metadata.head("d" * 32, "i" * 32, LEVELS, {})
        + b'"1.2.3.4.5":{'
        + NODE
        + metadata.node_frames("1.2.840.10008.1.2.4.202", "DECOMPRESSED", frames)
        + b'},"1.2.3.4.6":{'
        + NODE
        + metadata.node_frames(None, "DECOMPRESSED", [])
        + b"}"
        + metadata.TAIL
    )
    document = orjson.loads(text)
    assert (document["SchemaVersion"], document["DatastoreID"], document["ImageSetID"]) == ("1.1", "d" * 32, "i" * 32)
    assert document["Patient"]["DICOM"] == LEVELS["Patient"]
    assert document["Study"]["DICOM"] == LEVELS["Study"]
    series = document["Study"]["Series"]["1.2.3.4"]
    assert series["DICOM"] == LEVELS["Series"]
    first = series["Instances"]["1.2.3.4.5"]
    assert first["StoredTransferSyntaxUID"] == "1.2.840.10008.1.2.4.202"
    assert first["ChecksumType"] == "DECOMPRESSED"
    assert first["ImageFrames"] == [
        {
            "ID": "0" * 32,
            "PixelDataChecksumFromBaseToFullResolution": [{"Width": 512, "Height": 256, "Checksum": 4294967295}],
            "MinPixelValue": -1024,
            "MaxPixelValue": 1447,
            "FrameSizeInBytes": 262144,
        },
        {
            "ID": "1" * 32,
            "PixelDataChecksumFromBaseToFullResolution": [{"Width": 512, "Height": 256, "Checksum": 7}],
            "MinPixelValue": None,
            "MaxPixelValue": None,
            "FrameSizeInBytes": 99,
        },
    ]
    second = series["Instances"]["1.2.3.4.6"]
    assert second["ImageFrames"] == []
    assert "StoredTransferSyntaxUID" not in second


def test_level_edits_show_in_the_head() -> None:
    changes = {
        "Patient": Changes({"PatientName": "MX^MX"}, removed=frozenset({"PatientSex"})),
        "Series": Changes({"SeriesInstanceUID": '9.9"'}),
    }
    document = orjson.loads(metadata.head("d", "i", LEVELS, changes) + metadata.TAIL)
    assert document["Patient"]["DICOM"] == {"PatientID": "P1", "PatientName": "MX^MX"}
    assert document["Study"]["Series"]['9.9"']["DICOM"]["SeriesInstanceUID"] == '9.9"'
    assert LEVELS["Patient"]["PatientName"] == "DOE^J"


def test_instance_edits_show_in_the_node() -> None:
    changes = Changes({"Rows": 1, "00091001": "GE2", "00091002": "97"}, {"00091002": "DS"})
    edited = orjson.loads(b"{%b}" % metadata.edited_node(NODE, changes))
    assert edited == {
        "DICOM": {"TransferSyntaxUID": "1.2.840.10008.1.2.1", "Rows": 1, "00091001": "GE2", "00091002": "97"},
        "DICOMVRs": {"00091001": "LO", "00091002": "DS"},
    }
    removed = orjson.loads(b"{%b}" % metadata.edited_node(NODE, Changes(removed=frozenset({"00091001", "Rows"}))))
    assert removed == {"DICOM": {"TransferSyntaxUID": "1.2.840.10008.1.2.1"}, "DICOMVRs": {}}
    assert orjson.loads(b"{%b}" % metadata.edited_node(NODE, Changes())) == orjson.loads(b"{%b}" % NODE)


def test_folding_keeps_what_the_newest_lacks() -> None:
    newer: metadata.Levels = {"Patient": {"PatientID": None, "PatientSex": "F"}, "Study": {"StudyID": None}}
    assert metadata.fold(LEVELS, newer) == {
        "Patient": {"PatientID": "P1", "PatientName": "DOE^J", "PatientSex": "F"},
        "Study": {"StudyInstanceUID": "1.2.3", "StudyDescription": "CHEST", "StudyID": None},
        "Series": LEVELS["Series"],
    }
    assert metadata.fold({}, LEVELS) == LEVELS
    assert metadata.fold(LEVELS, LEVELS) == LEVELS


values = st.dictionaries(st.sampled_from(["PatientName", "PatientID"]), st.sampled_from([None, "a", "b"]))
levels = st.fixed_dictionaries({"Patient": values, "Study": st.just({}), "Series": st.just({})})


@given(levels, levels, levels)
def test_folding_is_associative(first: Any, second: Any, third: Any) -> None:
    left = metadata.fold(metadata.fold(first, second), third)
    assert left == metadata.fold(first, metadata.fold(second, third))


def test_levels() -> None:
    expected = {0x00100010: "Patient", 0x0020000D: "Study", 0x00080060: "Series", 0x00280010: "Instance"}
    assert {tag: metadata.level_of(tag) for tag in expected} == expected
    assert metadata.level_of(0x00020010) == metadata.level_of(0x00091001) == "Instance"


CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("PatientID", "P1", {"vr": "LO", "Value": ["P1"]}),
    ("PatientID", None, {"vr": "LO"}),
    ("PatientID", "A\\B", {"vr": "LO", "Value": ["A", "B"]}),
    ("PatientComments", "a\\b\n", {"vr": "LT", "Value": ["a\\b\n"]}),
    ("PatientName", "A^B==C", {"vr": "PN", "Value": [{"Alphabetic": "A^B", "Phonetic": "C"}]}),
    ("OtherPatientNames", ["A", "=B"], {"vr": "PN", "Value": [{"Alphabetic": "A"}, {"Ideographic": "B"}]}),
    ("ImageType", ["ORIGINAL", None], {"vr": "CS", "Value": ["ORIGINAL", None]}),
    ("InstanceNumber", "7", {"vr": "IS", "Value": [7]}),
    ("PixelSpacing", ["0.5", "1.25"], {"vr": "DS", "Value": [0.5, 1.25]}),
    ("InstanceNumber", "seven", {"vr": "IS", "Value": ["seven"]}),
    ("Rows", 512, {"vr": "US", "Value": [512]}),
    ("AcquisitionMatrix", [0, 5, 5, 0], {"vr": "US", "Value": [0, 5, 5, 0]}),
    ("SmallestImagePixelValue", -3, {"vr": "SS", "Value": [-3]}),
    ("SmallestImagePixelValue", 3, {"vr": "US", "Value": [3]}),
    ("FrameIncrementPointer", ["00181063"], {"vr": "AT", "Value": ["00181063"]}),
    ("EncapsulatedDocument", "AQI=", {"vr": "OB", "InlineBinary": "AQI="}),
    ("00091001", "97", {"vr": "DS", "Value": [97]}),
    (
        "ProcedureCodeSequence",
        [{"CodeValue": "1", "00091001": "2.5"}, {}],
        {
            "vr": "SQ",
            "Value": [{"00080100": {"vr": "SH", "Value": ["1"]}, "00091001": {"vr": "DS", "Value": [2.5]}}, {}],
        },
    ),
]


@pytest.mark.parametrize(("key", "value", "element"), CASES)
def test_values_go_both_ways(key: str, value: Any, element: dict[str, Any]) -> None:
    (made,) = metadata.to_dicom_json({key: value}, {"00091001": "DS"}).values()
    assert made == element
    assert metadata.doc_value(key, element) == value


def test_values_that_do_not_fit_their_keyword_are_borne() -> None:
    """They came under another VR than the dictionary's."""
    values = {"PatientName": 7, "ReferencedStudySequence": "text", "OtherPatientNames": [1.5, None]}
    made = metadata.to_dicom_json(values)
    assert made["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "7"}]}
    assert made["00081110"] == {"vr": "SQ", "Value": []}
    assert made["00101001"] == {"vr": "PN", "Value": [{"Alphabetic": "1.5"}, None]}


def test_what_the_json_forms_leave_out_or_force() -> None:
    made = metadata.to_dicom_json(
        {
            "PatientID": "P",
            "TransferSyntaxUID": "1.2",
            "PixelData": None,
            "SpecificCharacterSet": ["ISO_IR 100"],
            "nonsense": 1,
            "00091001": "AQI=",
        }
    )
    assert made == {
        "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
        "00091001": {"vr": "UN", "InlineBinary": "AQI="},
        "00100020": {"vr": "LO", "Value": ["P"]},
    }
    assert list(made) == sorted(made)
    present = {"00280106": {"vr": "SS", "Value": [1]}, "00091001": {"vr": "LO", "Value": ["x"]}}
    kept = metadata.to_dicom_json({"SmallestImagePixelValue": 3, "00091001": "y"}, {}, present)
    assert {tag: element["vr"] for tag, element in kept.items()} == {"00280106": "SS", "00091001": "LO"}
    assert metadata.doc_value("EncapsulatedDocument", {"vr": "OB", "BulkDataURI": "x"}) is None
    assert metadata.doc_value("SliceThickness", {"vr": "DS", "Value": [0.1 + 0.2]}) == "0.30000000000000"
