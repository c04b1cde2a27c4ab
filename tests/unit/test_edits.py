"""Metadata edits (healthimaging.md 6.3, 8 and the examples of section 12)."""

import base64
import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain import edits
from gateway.domain.edits import Changes, ImageSetContent, MetadataUpdate, Overlay, Plan, apply, parse_update, plan
from gateway.domain.errors import InvalidInput, UnacceptableUpdate
from gateway.domain.levels import LEVELS, level_of, level_of_keyword
from gateway.domain.values import Unstorable, attribute, fit

STUDY, SERIES, ONE, TWO = "1.2.1", "1.2.2", "1.2.3.1", "1.2.3.2"
CLASS = "1.2.840.10008.5.1.4.1.1.2"


@dataclass
class Instance:
    """An instance that counts how often its attributes are read."""

    values: dict[str, Any]
    private: dict[str, str] = field(default_factory=dict)
    changes: Changes = field(default_factory=Changes)
    reads: int = 0

    def attributes(self) -> dict[str, Any]:
        self.reads += 1
        return apply(self.values, self.changes)

    def vrs(self) -> dict[str, str]:
        self.reads += 1
        return self.private | dict(self.changes.vrs)


def instance(uid: str) -> Instance:
    values = {
        "MediaStorageSOPInstanceUID": uid,
        "SOPInstanceUID": uid,
        "SOPClassUID": CLASS,
        "Rows": 512,
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "WindowCenter": ["40 "],
        "SliceThickness": "5.0 ",
        "ContentDate": None,
        "00090010": "GEMS_IDEN_01",
        "00091001": "GE_GENESIS_FF",
        "00091002": "AAE=",
        "PixelData": None,
    }
    return Instance(values, {"00090010": "LO", "00091001": "LO", "00091002": "UN"})


def content(**fields: Any) -> ImageSetContent:
    levels = {
        "Patient": {"PatientName": "DOE^JANE", "PatientID": "P1", "PatientBirthDate": "19700101"},
        "Study": {"StudyInstanceUID": STUDY, "StudyDate": "20240101", "StudyID": "S1", "StudyDescription": "CHEST"},
        "Series": {"SeriesInstanceUID": SERIES, "Modality": "CT", "SeriesNumber": "1 ", "SoftwareVersions": ["3.1"]},
    }
    given: dict[str, Any] = {"is_primary": True, "sibling_primaries": False, "levels": levels, "overlay": Overlay()}
    given |= {"series_uid": SERIES, "instances": {ONE: instance(ONE), TWO: instance(TWO)}}
    return ImageSetContent(**(given | fields))


COPY = content(is_primary=False)


def at(level: str, values: dict[str, Any], vrs: dict[str, str] | None = None, uid: str = ONE) -> dict[str, Any]:
    """A document with the values at one level."""
    node: dict[str, Any] = {"DICOM": values}
    if vrs is not None:
        node["DICOMVRs"] = vrs
    if level == "Instance":
        node = {"Instances": {uid: node}}
    if level in ("Instance", "Series"):
        node = {"Series": {SERIES: node}}
    return {"SchemaVersion": 1.1, "Patient" if level == "Patient" else "Study": node}


def removal(*uids: str) -> dict[str, Any]:
    return {"SchemaVersion": 1.1, "Study": {"Series": {SERIES: {"Instances": {uid: {} for uid in uids}}}}}


def updated(document: dict[str, Any], on: ImageSetContent | None = None, force: bool = False, **options: Any) -> Plan:
    return plan(MetadataUpdate(updatable=document, force=force), on or content(), **options)


def removed(document: dict[str, Any], on: ImageSetContent | None = None, force: bool = False, **options: Any) -> Plan:
    return plan(MetadataUpdate(removable=document, force=force), on or content(), **options)


def refusal(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(UnacceptableUpdate) as caught:
        call(*arguments, **options)
    text = caught.value.detail
    assert re.fullmatch(r"INVALID_REQUEST: [\w -:]+", text, re.ASCII), text
    return text.removeprefix("INVALID_REQUEST: ")


# Overlays

KEYWORDS = st.sampled_from(["PatientName", "StudyDescription", "Rows", "00091001", "00191002"])


@st.composite
def changes(draw: st.DrawFn) -> Changes:
    values = draw(st.dictionaries(KEYWORDS, st.one_of(st.none(), st.text(max_size=3), st.integers(0, 9)), max_size=4))
    gone = draw(st.frozensets(KEYWORDS, max_size=3)) - values.keys()
    return Changes(values, {key: "LO" for key in values if key[0] == "0"}, gone)


@given(changes(), changes(), changes(), st.dictionaries(KEYWORDS, st.text(max_size=3)))
def test_overlays_compose_as_they_apply(a: Changes, b: Changes, c: Changes, values: dict[str, Any]) -> None:
    assert apply(apply(values, a), b) == apply(values, a.then(b))
    assert a.then(b).then(c) == a.then(b.then(c))
    assert not a.then(b).set.keys() & a.then(b).removed
    assert {key for key in a.then(b).set if key[0] == "0"} <= a.then(b).vrs.keys()
    assert a.then(Changes()) == a == Changes().then(a)


@given(changes(), changes(), changes())
def test_overlays_are_canonical_json(a: Changes, b: Changes, c: Changes) -> None:
    assert Changes.from_json(a.to_json()) == a
    turned = Changes(dict(reversed([*a.set.items()])), dict(reversed([*a.vrs.items()])), a.removed)
    assert turned.to_json() == a.to_json()
    overlay = Overlay(a, b, c)
    assert Overlay.from_json(overlay.to_json()) == overlay
    assert Changes().to_json() == Overlay().to_json() == b"{}"
    assert bool(overlay) == bool(a or b or c)


def test_a_key_set_again_after_removal_is_not_removed() -> None:
    edited = Changes({"00091001": "A"}, {"00091001": "LO"}).then(Changes(removed=frozenset({"00091001"})))
    assert edited == Changes(removed=frozenset({"00091001"}))
    assert edited.then(Changes({"00091001": "B"}, {"00091001": "LO"})).removed == frozenset()


# The request

FULL = b'{"SchemaVersion":"1.1","Patient":{"DICOM":{"PatientName":"A^B"}}}'


@pytest.mark.parametrize("version", [b"1.1", b'"1.1"'])
def test_a_request_is_read(version: bytes) -> None:
    update = parse_update(FULL.replace(b'"1.1"', version), None, None, True, True, actor="me", reason="typo")
    assert update.updatable is not None
    assert update.updatable["Patient"] == {"DICOM": {"PatientName": "A^B"}}
    assert (update.force, update.study, update.revert_to) == (True, True, None)
    assert (update.actor, update.reason) == ("me", "typo")
    assert parse_update(None, None, "12").revert_to == 12
    assert parse_update(None, json.dumps(removal(ONE)).encode(), None).removable == removal(ONE)


@pytest.mark.parametrize(
    ("updatable", "removable", "revert_to", "study", "what"),
    [
        (None, None, None, False, "Give updatableAttributes"),
        (FULL, None, "1", False, "not both"),
        (None, FULL, "1", False, "not both"),
        (None, None, "1", True, "includeStudyImageSets"),
        (None, None, "0", False, "revertToVersionId"),
        (None, None, "-1", False, "revertToVersionId"),
        (None, None, "²", False, "revertToVersionId"),
        (None, None, "9" * 5000, False, "revertToVersionId"),
        (b"", None, None, False, "empty"),
        (None, b"{", None, False, "line 1, column 2"),
        (b"\xff", None, None, False, "not JSON"),
        (b"[" * 20000, None, None, False, "not JSON"),
        (b'{"Patient":{"DICOM":{"PatientName":"\\ud800"}}}', None, None, False, "not JSON"),
        (b"[]", None, None, False, "not a JSON object"),
        (b"{}", None, None, False, "names nothing"),
        (b'{"SchemaVersion":1.1,"Study":{"Series":{"1.2":{"Instances":{"1.3":{}}}}}}', None, None, False, "nothing"),
        (None, b'{"SchemaVersion":1.1,"Study":{"Series":{"1.2":{"DICOM":{}}}}}', None, False, "names nothing"),
        (FULL.replace(b'"1.1"', b"1.2"), None, None, False, "SchemaVersion"),
        (FULL.replace(b'"1.1"', b"true"), None, None, False, "SchemaVersion"),
        (FULL + b" " * 30_000, None, None, False, "30000 bytes"),
        (b'{"Patient":[]}', None, None, False, "Patient is not a JSON object"),
        (b'{"Patient":{"DICOM":null}}', None, None, False, "DICOM is not a JSON object"),
        (b'{"Study":{"Series":{"1.2":null}}}', None, None, False, "series is not"),
        (b'{"Study":{"Series":{"1.2":{"Instances":{"1.3":0}}}}}', None, None, False, "instance is not"),
        (b'{"Study":{"Series":{"1":{"Instances":{"2":{"DICOMVRs":{"00091001":"XX"}}}}}}}', None, None, False, "VRs"),
        (b'{"Study":{"Series":{"1":{"Instances":{"2":{"DICOMVRs":{"00091001":[]}}}}}}}', None, None, False, "VRs"),
        (b'{"DatastoreID":"x"}', None, None, False, "DatastoreID cannot be updated"),
        (b'{"Doe^Jane":1}', None, None, False, "unknown member"),
        (b'{"Patient":{"DICOM":{},"DICOMVRs":{}}}', None, None, False, "Instance level"),
        (
            b'{"Study":{"Series":{"1.2":{"Instances":{"1.3":{"ImageFrames":[{"Checksum":1}]}}}}}}',
            *(None, None, False, "ImageFrames cannot be updated"),
        ),
    ],
)
def test_what_is_wrong_in_itself_is_refused_at_once(
    updatable: bytes | None, removable: bytes | None, revert_to: str | None, study: bool, what: str
) -> None:
    with pytest.raises(InvalidInput, match=what) as caught:
        parse_update(updatable, removable, revert_to, False, study)
    assert re.fullmatch(r"[\w -:]+", caught.value.detail, re.ASCII)
    assert "Jane" not in caught.value.detail


def test_removals_are_no_updates() -> None:
    with pytest.raises(InvalidInput, match="names nothing"):
        parse_update(json.dumps(removal(ONE)).encode(), None, None)


# The seed examples

U = "1.1.1.1.1.1.12345.123456789012.123.12345678901234.1"


def seed_set(series: str, sop: str, **fields: Any) -> ImageSetContent:
    levels = {name: dict(values) for name, values in content().levels.items()}
    levels["Series"]["SeriesInstanceUID"] = series
    return content(levels=levels, series_uid=series, instances={sop: instance(sop), TWO: instance(TWO)}, **fields)


def seed(text: str) -> bytes:
    return text.replace("UID", U).encode()


def test_seed_21_sets_a_name() -> None:
    update = parse_update(seed('{"SchemaVersion":1.1,"Patient":{"DICOM":{"PatientName":"MX^MX"}}}'), None, None)
    done = plan(update, content())
    assert done.overlay == Overlay(patient=Changes({"PatientName": "MX^MX"}))
    assert (done.study_uid, done.series_uid, done.instance_changes, done.removed, done.forced) == (
        *(None, None, {}, frozenset(), False),
    )


def test_seed_22_removes_an_attribute_of_that_value() -> None:
    update = parse_update(None, seed('{"SchemaVersion":1.1,"Study":{"DICOM":{"StudyDescription":"CHEST"}}}'), None)
    assert plan(update, content()).overlay.study == Changes(removed=frozenset({"StudyDescription"}))
    other = content(overlay=Overlay(study=Changes({"StudyDescription": "HEAD"})))
    assert "not its current value" in refusal(plan, update, other)


def test_seed_23_removes_an_instance() -> None:
    update = parse_update(None, seed('{"SchemaVersion":1.1,"Study":{"Series":{"UID":{"Instances":{"UID":{}}}}}}'), None)
    assert plan(update, seed_set(U, U)).removed == {U}
    assert "requires the force flag" in refusal(plan, update, seed_set(U, U), strict_removal=True)
    assert plan(replace(update, force=True), seed_set(U, U), strict_removal=True).removed == {U}


def test_seed_25_adds_a_private_attribute() -> None:
    text = seed(
        '{"SchemaVersion":1.1,"Study":{"Series":{"UID":{"Instances":{"UID":{"DICOM":{"001910F9":"97"},'
        '"DICOMVRs":{"001910F9":"DS"}}}}}}}'
    )
    done = plan(parse_update(text, None, None, force=True), seed_set(U, U))
    assert done.instance_changes == {U: Changes({"001910F9": "97"}, {"001910F9": "DS"})}
    assert done.forced
    assert "001910F9 requires the force flag" in refusal(plan, parse_update(text, None, None), seed_set(U, U))


def test_seed_26_keeps_the_vr_of_a_private_attribute() -> None:
    text = seed(
        '{"SchemaVersion":1.1,"Study":{"Series":{"UID":{"Instances":{"UID":{"DICOM":{"00091001":"GE_GENESIS_DD"}}}}}}}'
    )
    done = plan(parse_update(text, None, None, force=True), seed_set(U, U))
    assert done.instance_changes == {U: Changes({"00091001": "GE_GENESIS_DD"}, {"00091001": "LO"})}


def test_seed_27_changes_a_sop_instance_uid() -> None:
    root = "1.3.6.1.4.1.5962.99.1.3633258862.2104868982.1369432891697"
    series, old, new = f"{root}.3656.0", f"{root}.3659.0", f"{root}.3659.9"
    document = {
        "SchemaVersion": 1.1,
        "Study": {"Series": {series: {"Instances": {old: {"DICOM": {"SOPInstanceUID": new}}}}}},
    }
    update = parse_update(json.dumps(document).encode(), None, None, force=True)
    done = plan(update, seed_set(series, old, is_primary=False))
    assert done.rekeyed == {old: new}
    assert done.instance_changes == {old: Changes({"SOPInstanceUID": new, "MediaStorageSOPInstanceUID": new})}
    assert "non-primary image sets only" in refusal(plan, update, seed_set(series, old))
    assert plan(update, seed_set(series, old), legacy_uids=True).rekeyed == {old: new}
    unforced = refusal(plan, replace(update, force=False), seed_set(series, old, is_primary=False))
    assert unforced.startswith("Updating SOPInstanceUID requires the force flag.")


# Rules: levels and keys


def test_the_level_table() -> None:
    assert len(LEVELS) == 46 + 50 + 44
    assert [level_of(tag) for tag in (0x00100010, 0x0020000D, 0x0008103E, 0x00080018, 0x00091001, 0x00020010)] == [
        *("Patient", "Study", "Series", "Instance", "Instance", "Instance")
    ]
    assert level_of_keyword("StudyComments") == "Instance"
    assert [level_of_keyword(key) for key in ("PatientAge", "Modality", "001910F9", "Nonsense")] == [
        *("Study", "Series", "Instance", "Instance")
    ]


@pytest.mark.parametrize(
    ("level", "keyword", "own"),
    [
        ("Study", "PatientName", "Patient"),
        ("Patient", "StudyDescription", "Study"),
        ("Instance", "Modality", "Series"),
        ("Series", "ContentDate", "Instance"),
        ("Series", "00091001", "Instance"),
        ("Patient", "PatientAge", "Study"),
    ],
)
def test_wrong_levels_are_refused_even_with_force(level: str, keyword: str, own: str) -> None:
    for call, verb in ((updated, "updated"), (removed, "removed")):
        text = refusal(call, at(level, {keyword: "20240101"}), COPY, force=True)
        assert text.startswith(f"{keyword} cannot be {verb} at {level} level: it is an attribute of the {own} level.")


def test_unknown_series_and_instances_are_refused() -> None:
    elsewhere = {"SchemaVersion": 1.1, "Study": {"Series": {"9.9": {"DICOM": {"Modality": "MR"}}}}}
    for call in (updated, removed):
        assert "series named in the update" in refusal(call, elsewhere, force=True)
        assert "instance named in the update" in refusal(call, at("Instance", {"Rows": 1}, uid="9.9"), force=True)
    assert "instance named in the update" in refusal(removed, removal("9.9"))


def test_keys_that_are_no_attributes() -> None:
    assert "PatientName is close" in refusal(updated, at("Patient", {"PatientsName": "SECRET"}), force=True)
    text = refusal(updated, at("Patient", {"Secret^Person;\n": 1}), force=True)
    assert "Secret" not in text
    for key in ("Width", "Checksum", "MinPixelValue"):
        assert refusal(updated, at("Instance", {key: 1}), force=True).startswith(f"{key} cannot be updated: it is no")
    for key in ("00090000", "FFFEE000", "MessageID", "00010010", "x" * 20_000):
        assert "not a DICOM keyword" in refusal(updated, at("Instance", {key: 1}, {}), force=True)


def test_a_number_for_a_keyword_needs_force_and_becomes_the_keyword() -> None:
    assert "named by its number" in refusal(updated, at("Patient", {"00100010": "A^B"}))
    assert updated(at("Patient", {"00100010": "A^B"}), force=True).overlay.patient == Changes({"PatientName": "A^B"})


# Rules: force


@pytest.mark.parametrize(
    ("level", "keyword", "value", "stored"),
    [
        ("Instance", "ImageType", ["DERIVED", "PRIMARY"], ["DERIVED", "PRIMARY"]),
        ("Instance", "WindowCenter", "40", ["40"]),
        ("Instance", "WindowCenter", [40, 35.5], ["40", "35.5"]),
        ("Series", "SoftwareVersions", ["4"], ["4"]),
        ("Series", "RequestAttributesSequence", [{"RequestedProcedureID": "R"}], [{"RequestedProcedureID": "R"}]),
        ("Study", "ProcedureCodeSequence", [], None),
        ("Study", "StudyID", "S2", "S2"),
        ("Study", "StudyInstanceUID", "1.2.9", "1.2.9"),
        ("Series", "SeriesInstanceUID", "1.2.9", "1.2.9"),
        ("Study", "StudyDate", "2024-01-01", "2024-01-01"),
        ("Patient", "PatientSex", "female", "female"),
        ("Instance", "PixelData", None, ...),
        ("Instance", "60000010", 64, 64),
    ],
)
def test_force_is_needed_and_is_enough(level: str, keyword: str, value: Any, stored: Any) -> None:
    document = at(level, {keyword: value})
    assert refusal(updated, document, COPY).startswith(f"Updating {keyword} requires the force flag. ")
    done = updated(document, COPY, force=True)
    overlays = {"Patient": done.overlay.patient, "Study": done.overlay.study, "Series": done.overlay.series}
    overlay = overlays.get(level) or done.instance_changes.get(ONE, Changes())
    assert overlay.set.get(keyword, ...) == stored
    assert done.forced


@pytest.mark.parametrize(
    ("level", "keyword", "value", "stored"),
    [
        ("Patient", "PatientName", "Yamada^Tarou=山田^太郎=やまだ^たろう", ...),
        ("Patient", "PatientName", None, None),
        ("Patient", "PatientName", "", None),
        ("Patient", "PatientID", "P9  ", "P9"),
        ("Patient", "PatientID", ["P9"], "P9"),
        ("Patient", "PatientBirthDate", "20240229", ...),
        ("Study", "PatientAge", "045Y", ...),
        ("Study", "PatientSize", "1.85", ...),
        ("Study", "PatientSize", 1.85, "1.85"),
        ("Study", "PatientSize", 1 / 3, "0.33333333333333"),
        ("Study", "StudyTime", "235960.123456", ...),
        ("Series", "SeriesNumber", 7, "7"),
        ("Series", "SeriesNumber", "-7 ", ...),
        ("Instance", "Rows", 65535, ...),
        ("Instance", "SmallestImagePixelValue", -5, ...),
        ("Instance", "AcquisitionDateTime", "20240101120000.5+0100", ...),
        ("Instance", "AcquisitionDateTime", "2024", ...),
        ("Instance", "FrameReferenceTime", "1E-3", ...),
        ("Instance", "FrameAcquisitionDuration", 3, 3.0),
        ("Instance", "ImageComments", "two\r\nlines \\ and a backslash", ...),
    ],
)
def test_ordinary_values_need_no_force(level: str, keyword: str, value: Any, stored: Any) -> None:
    done = updated(at(level, {keyword: value}))
    overlays = {"Patient": done.overlay.patient, "Study": done.overlay.study, "Series": done.overlay.series}
    expected = value if stored is ... else stored
    overlay = overlays.get(level) or done.instance_changes[ONE]
    assert overlay == Changes({keyword: expected})
    assert type(overlay.set[keyword]) is type(expected)
    assert not done.forced


UNFIT: dict[str, list[Any]] = {
    "AE": ["TOOLONG_AE_TITLE_X", "a\\b"],
    "AS": ["45Y", "045y"],
    "CS": ["lower", "A" * 17, "A\\B"],
    "DA": ["2024", "20240230", "20240101-20240102", "٢٠٢٤٠١٠١", "00000101"],
    "DS": ["1,5", "nan", "1" * 17, "1e"],
    "DT": ["2024010", "20240132", "202401011260", "2024+1500", "202412+01"],
    "IS": ["1.5", "2147483648", "-2147483649", "1_0", 1.5],
    "LO": ["x" * 65, "a\\b", "a\nb"],
    "LT": ["x" * 10241, "\x1b"],
    "PN": ["A^B^C^D^E^F", "A=B=C=D", "x" * 65, "a\\b"],
    "SH": ["x" * 17],
    "ST": ["x" * 1025],
    "TM": ["1", "24", "1260", "12:00", "120000."],
    "UC": ["a\\b"],
    "UI": ["1.02", "1..2", "1" * 65, "abc"],
    "UR": ["a b"],
    "UT": ["\x01"],
}
EXAMPLE = {
    "AE": "StationAETitle",
    "AS": "PatientAge",
    "CS": "PatientSex",
    "DA": "PatientBirthDate",
    "DS": "PatientSize",
    "DT": "AcquisitionDateTime",
    "IS": "SeriesNumber",
    "LO": "PatientID",
    "LT": "PatientComments",
    "PN": "PatientName",
    "SH": "StationName",
    "ST": "InstitutionAddress",
    "TM": "StudyTime",
    "UC": "LongCodeValue",
    "UI": "FrameOfReferenceUID",
    "UR": "RetrieveURL",
    "UT": "LabelText",
}


@pytest.mark.parametrize(("vr", "value"), [(vr, value) for vr, values in UNFIT.items() for value in values])
def test_values_that_do_not_fit_their_vr(vr: str, value: Any) -> None:
    named = attribute(EXAMPLE[vr])
    assert named is not None
    assert (named.vr, named.many) == (vr, False)
    stored, problem = fit(value, named, {})
    assert problem
    assert stored == str(value)
    level = level_of(named.tag)
    text = refusal(updated, at(level, {named.key: value}))
    assert text.startswith(f"Updating {named.key} requires the force flag. The value given does not fit VR {vr}: give ")
    assert updated(at(level, {named.key: value}), force=True)


@pytest.mark.parametrize(
    ("keyword", "value", "what"),
    [
        ("Rows", "512", "whole numbers from 0 to 65535"),
        ("Rows", 65536, "whole numbers"),
        ("Rows", True, "whole numbers"),
        ("Rows", 1.5, "whole numbers"),
        ("Rows", [1, 2], "one value"),
        ("ContentDate", 20240101, "VR DA holds text"),
        ("ContentDate", True, "VR DA holds text"),
        ("ContentDate", {"a": 1}, "VR DA holds text"),
        ("ImageComments", "a\0b", "NUL"),
        ("FrameAcquisitionDuration", "3", "numbers"),
        ("RescaleSlope", [["1"]], "VR DS holds text"),
        ("FrameIncrementPointer", ["0018106"], "tags"),
        ("EncapsulatedDocument", "no base64!", "base64"),
        ("EncapsulatedDocument", 5, "base64"),
        ("PixelData", base64.b64encode(bytes(4)).decode(), "pixels never change"),
        ("ReferencedImageSequence", {"ReferencedSOPClassUID": "1"}, "array of objects"),
        ("ReferencedImageSequence", [1], "array of objects"),
        ("ReferencedImageSequence", [{"nonsense": 1}], "not a DICOM keyword"),
        ("ReferencedImageSequence", [{"Rows": "x"}], "Rows: VR US"),
        ("ReferencedImageSequence", [{"00191099": "x"}], "DICOMVRs"),
        ("00191099", "x", "DICOMVRs"),
        ("60003000", "AAAA", "DICOMVRs"),
    ],
)
def test_what_no_data_set_could_hold_is_refused_even_with_force(keyword: str, value: Any, what: str) -> None:
    text = refusal(updated, at("Instance", {keyword: value}), force=True)
    assert what in text
    assert keyword in text


def test_sequences_have_a_depth() -> None:
    value: Any = [{"Rows": 1}]
    for _ in range(63):
        value = [{"ReferencedImageSequence": value}]
    assert updated(at("Instance", {"ReferencedImageSequence": value}), force=True)
    for _ in range(200):
        value = [{"ReferencedImageSequence": value}]
    assert "64" in refusal(updated, at("Instance", {"ReferencedImageSequence": value}), force=True)


def test_private_attributes_within_sequences_take_their_vr_along() -> None:
    items = [{"00191099": ["1", "2"], "ReferencedFrameNumber": "3"}]
    done = updated(at("Instance", {"ReferencedImageSequence": items}, {"00191099": "DS"}), force=True)
    assert done.instance_changes[ONE] == Changes(
        {"ReferencedImageSequence": [{"00191099": ["1", "2"], "ReferencedFrameNumber": ["3"]}]}, {"00191099": "DS"}
    )


def test_private_attributes_of_a_known_creator_within_sequences_need_no_vr() -> None:
    items = [{"20010010": "Philips Imaging DD 001", "2001102D": 8}]
    done = updated(at("Instance", {"ReferencedImageSequence": [{"ReferencedImageSequence": items}]}), force=True)
    assert done.instance_changes[ONE].vrs == {"20010010": "LO", "2001102D": "SS"}
    done = updated(at("Series", {"RequestAttributesSequence": items}), force=True)
    assert done.overlay.series == Changes({"RequestAttributesSequence": items}, {"20010010": "LO", "2001102D": "SS"})


def test_values_nested_beyond_reason_are_refused() -> None:
    value: Any = "CHEST"
    for _ in range(1000):
        value = [value]
    assert "VR LO holds text" in refusal(updated, at("Study", {"StudyDescription": value}), force=True)
    assert removed(at("Study", {"StudyDescription": value})).overlay.study, "arrays around one value do not count"
    items: Any = [{"Rows": 1}]
    for _ in range(400):
        items = [{"RequestAttributesSequence": items}]
    for keyword in ("RequestAttributesSequence", "Modality"):
        assert refusal(updated, at("Series", {keyword: items}), force=True)
        assert refusal(removed, at("Series", {keyword: items}), force=True)


def test_a_private_attribute_keeps_its_vr_unless_it_was_unknown() -> None:
    document = at("Instance", {"00091001": "1"}, {"00091001": "DS"})
    assert "keeps its VR LO" in refusal(updated, document, force=True)
    done = updated(at("Instance", {"00091002": "text"}, {"00091002": "LO"}), force=True)
    assert done.instance_changes[ONE].vrs == {"00091002": "LO"}
    done = updated(at("Instance", {"00091002": "AAAA"}), force=True)
    assert done.instance_changes[ONE] == Changes({"00091002": "AAAA"}, {"00091002": "UN"})
    done = updated(at("Instance", {"001910f9": "97"}, {"001910f9": "DS"}), force=True)
    assert done.instance_changes[ONE] == Changes({"001910F9": "97"}, {"001910F9": "DS"})


# Rules: removals


@pytest.mark.parametrize(
    ("level", "keyword", "value"),
    [
        ("Series", "SeriesNumber", "1"),
        ("Series", "SeriesNumber", 1),
        ("Series", "SoftwareVersions", "3.1"),
        ("Instance", "WindowCenter", ["40"]),
        ("Instance", "SliceThickness", "5.0"),
        ("Instance", "SliceThickness", 5),
        ("Instance", "ContentDate", ""),
        ("Instance", "Rows", 512),
        ("Instance", "ImageType", ["ORIGINAL", "PRIMARY "]),
    ],
)
def test_removals_match_but_for_padding_and_form(level: str, keyword: str, value: Any) -> None:
    done = removed(at(level, {keyword: value}))
    overlay = done.overlay.series if level == "Series" else done.instance_changes[ONE]
    assert overlay == Changes(removed=frozenset({keyword}))


@pytest.mark.parametrize(
    ("level", "keyword", "value", "what"),
    [
        ("Patient", "PatientName", "DOE^J", "not its current value at Patient level"),
        ("Patient", "PatientName", None, "not its current value"),
        ("Patient", "PatientComments", "x", "not present at Patient level"),
        ("Instance", "ImageType", ["ORIGINAL"], "not its current value"),
        ("Instance", "Rows", True, "not its current value"),
        ("Instance", "SliceThickness", False, "not its current value"),
        ("Instance", "SOPClassUID", CLASS, "SOPClassUID cannot be removed"),
        ("Study", "StudyInstanceUID", STUDY, "StudyInstanceUID cannot be removed"),
        ("Instance", "PixelData", None, "PixelData cannot be removed"),
    ],
)
def test_other_removals_are_refused(level: str, keyword: str, value: Any, what: str) -> None:
    assert what in refusal(removed, at(level, {keyword: value}), COPY, force=True)


def test_removing_a_private_attribute_needs_force() -> None:
    document = at("Instance", {"00091001": "GE_GENESIS_FF"})
    assert "private attribute 00091001 requires the force flag" in refusal(removed, document)
    assert removed(document, force=True).instance_changes[ONE].removed == {"00091001"}


def test_the_last_instance_stays() -> None:
    assert "DeleteImageSet" in refusal(removed, removal(ONE, TWO))
    series = {"SchemaVersion": 1.1, "Study": {"Series": {SERIES: {}}}}
    assert "DeleteImageSet" in refusal(removed, series)
    assert removed(removal(TWO)).removed == {TWO}


def test_removals_come_before_updates() -> None:
    both = MetadataUpdate(
        updatable=at("Study", {"StudyDescription": "HEAD"}), removable=at("Study", {"StudyDescription": "CHEST"})
    )
    assert plan(both, content()).overlay.study == Changes({"StudyDescription": "HEAD"})
    gone = MetadataUpdate(updatable=at("Instance", {"Rows": 1}), removable=removal(ONE))
    assert "not in this image set" in refusal(plan, gone, content())
    reused = MetadataUpdate(
        updatable=at("Instance", {"SOPInstanceUID": ONE}, uid=TWO), removable=removal(ONE), force=True
    )
    done = plan(reused, COPY)
    assert done.removed == {ONE}
    assert done.rekeyed == {TWO: ONE}


# Rules: UIDs and the study


def test_uids_move_with_their_keys() -> None:
    done = updated(at("Study", {"StudyInstanceUID": "1.2.9"}), COPY, force=True)
    assert (done.study_uid, done.series_uid) == ("1.2.9", None)
    done = updated(at("Series", {"SeriesInstanceUID": "1.2.9"}), COPY, force=True)
    assert (done.study_uid, done.series_uid) == (None, "1.2.9")
    same = updated(at("Series", {"SeriesInstanceUID": SERIES}), COPY, force=True)
    assert same.series_uid is None


@pytest.mark.parametrize("value", [None, "", "1.02", "abc", "../1", "1" * 65])
@pytest.mark.parametrize(
    ("level", "keyword"), [("Study", "StudyInstanceUID"), ("Instance", "SOPInstanceUID"), ("Instance", "SOPClassUID")]
)
def test_uids_that_name_things_are_valid_even_with_force(level: str, keyword: str, value: str | None) -> None:
    assert f"{keyword} cannot be updated" in refusal(updated, at(level, {keyword: value}), COPY, force=True)


def test_two_instances_cannot_have_one_uid_but_may_swap() -> None:
    assert "another instance" in refusal(updated, at("Instance", {"SOPInstanceUID": TWO}), COPY, force=True)
    document = at("Instance", {"SOPInstanceUID": TWO})
    document["Study"]["Series"][SERIES]["Instances"][TWO] = {"DICOM": {"SOPInstanceUID": ONE}}
    assert updated(document, COPY, force=True).rekeyed == {ONE: TWO, TWO: ONE}


@pytest.mark.parametrize(
    ("level", "keyword", "value", "current"),
    [
        ("Patient", "PatientID", "P2", "P1"),
        ("Study", "StudyDate", "20250101", "20240101"),
        ("Study", "StudyID", "S2", "S1"),
        ("Study", "AccessionNumber", "A2", None),
    ],
)
def test_primaries_of_a_study_stay_alike(level: str, keyword: str, value: str, current: str | None) -> None:
    alone, one_of_many = content(), content(sibling_primaries=True)
    document = at(level, {keyword: value})
    assert f"{keyword} must be the same" in refusal(updated, document, one_of_many, force=True)
    assert "includeStudyImageSets" in refusal(updated, document, one_of_many, force=True)
    for allowed in (alone, content(is_primary=False, sibling_primaries=True)):
        assert updated(document, allowed, force=True).overlay
    together = MetadataUpdate(updatable=document, force=True, study=True)
    assert plan(together, one_of_many).overlay == plan(together, one_of_many, sibling=True).overlay
    if current:
        assert f"{keyword} must be the same" in refusal(removed, at(level, {keyword: current}), one_of_many)
        assert updated(at(level, {keyword: f"{current} "}), one_of_many, force=True), "the same value breaks nothing"


def test_siblings_take_only_what_is_of_patient_and_study() -> None:
    document = at("Instance", {"Rows": 1})
    document["Patient"] = {"DICOM": {"PatientName": "NEW"}}
    gone = at("Study", {"StudyDescription": "VALUE OF THE OTHER SET", "StudyTime": "12"})
    update = MetadataUpdate(updatable=document, removable=gone, study=True)
    done = plan(update, content(series_uid="7.7", sibling_primaries=True), sibling=True)
    assert done.overlay == Overlay(
        patient=Changes({"PatientName": "NEW"}), study=Changes(removed=frozenset({"StudyDescription", "StudyTime"}))
    )
    assert done.instance_changes == {}


# Costs and robustness


def test_untouched_instances_are_not_read() -> None:
    on = content()
    updated(at("Patient", {"PatientName": "X"}), on)
    updated(at("Instance", {"ContentDate": "20240101"}), on)
    removed(removal(TWO), on)
    assert [i.reads for i in on.instances.values() if isinstance(i, Instance)] == [0, 0]
    removed(at("Instance", {"Rows": 512}), on)
    assert [i.reads for i in on.instances.values() if isinstance(i, Instance)] == [1, 0]


def test_edits_build_on_earlier_ones() -> None:
    first = instance(ONE)
    first.changes = Changes({"Rows": 1}, {}, frozenset({"ContentDate"}))
    on = content(
        instances={ONE: first, TWO: instance(TWO)}, overlay=Overlay(patient=Changes({"PatientName": "EARLIER"}))
    )
    update = MetadataUpdate(updatable=at("Instance", {"Columns": 2}), removable=at("Instance", {"Rows": 1}))
    assert plan(update, on).instance_changes == {ONE: Changes({"Columns": 2}, {}, frozenset({"ContentDate", "Rows"}))}
    done = updated(at("Patient", {"PatientID": "P1"}), on)
    assert done.overlay.patient == Changes({"PatientName": "EARLIER", "PatientID": "P1"})


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)
KEYWORD_KEYS = (
    *("PatientName", "StudyDate", "Modality", "Rows", "WindowCenter", "ReferencedImageSequence", "SOPInstanceUID"),
    *("PixelData", "FrameIncrementPointer", "LUTData", "FrameReferenceTime", "DICOM"),
)
KEYS = st.one_of(
    st.sampled_from((*KEYWORD_KEYS, "00091001", "00191001")),
    st.text(max_size=8),
)
VALUES = st.dictionaries(KEYS, JSON, max_size=3)
NODE = st.fixed_dictionaries({}, optional={"DICOM": VALUES, "DICOMVRs": st.just({"00191001": "FD"}), "Width": JSON})
UIDS = st.sampled_from([ONE, TWO, SERIES, "9"])


@st.composite
def documents(draw: st.DrawFn) -> Any:
    series = draw(NODE) | {"Instances": draw(st.dictionaries(UIDS, NODE, max_size=2))}
    study = draw(NODE) | {"Series": draw(st.dictionaries(UIDS, st.just(series), max_size=1))}
    return draw(st.one_of(JSON, st.just({"SchemaVersion": 1.1, "Patient": draw(NODE), "Study": study})))


@given(st.one_of(st.none(), documents()), st.one_of(st.none(), documents()), st.booleans(), st.booleans())
def test_nothing_but_a_clear_refusal(updatable: Any, removable: Any, force: bool, primary: bool) -> None:
    texts = [None if document is None else json.dumps(document).encode() for document in (updatable, removable)]
    on = content(is_primary=primary)
    try:
        done = plan(parse_update(texts[0], texts[1], None, force), on)
    except InvalidInput as fault:
        message = fault.detail
    else:
        message = ""
    assert re.fullmatch(r"[\w -:]{0,2048}", message, re.ASCII)
    if message:
        return
    # What was accepted can be stored, and comes back.
    assert Overlay.from_json(done.overlay.to_json()) == done.overlay
    for overlay in done.instance_changes.values():
        assert Changes.from_json(overlay.to_json()) == overlay
        assert {key for key in overlay.set if not attribute(key) or not key[0].isalpha()} <= overlay.vrs.keys()
    assert done.removed < on.instances.keys()


# Typed edits

DOCUMENT = {
    "Patient": {"DICOM": dict(content().levels["Patient"])},
    "Study": {
        "DICOM": dict(content().levels["Study"]),
        "Series": {
            SERIES: {
                "DICOM": dict(content().levels["Series"]),
                "Instances": {
                    ONE: {"DICOM": instance(ONE).values, "DICOMVRs": instance(ONE).private},
                    TWO: {"DICOM": instance(TWO).values, "DICOMVRs": instance(TWO).private},
                },
            }
        },
    },
}


def test_typed_edits_find_their_level() -> None:
    updatable, removable = edits.from_keywords(
        {"PatientName": "A^B", "PatientAge": "", "Modality": "MR"}
        | {"Rows": "64", "ImageType": "A\\B", "001910F9:DS": "9"},
        ["StudyDescription", "SeriesNumber=1", "00091001"],
        DOCUMENT,
        instance=ONE,
    )
    node = {"DICOM": {"Rows": 64, "ImageType": ["A", "B"], "001910F9": "9"}, "DICOMVRs": {"001910F9": "DS"}}
    assert updatable == {
        "SchemaVersion": 1.1,
        "Patient": {"DICOM": {"PatientName": "A^B"}},
        "Study": {
            "DICOM": {"PatientAge": None},
            "Series": {SERIES: {"DICOM": {"Modality": "MR"}, "Instances": {ONE: node}}},
        },
    }
    gone = {"00091001": "GE_GENESIS_FF"}
    assert removable == {
        "SchemaVersion": 1.1,
        "Study": {
            "DICOM": {"StudyDescription": "CHEST"},
            "Series": {SERIES: {"DICOM": {"SeriesNumber": "1"}, "Instances": {ONE: {"DICOM": gone}}}},
        },
    }
    update = parse_update(json.dumps(updatable).encode(), json.dumps(removable).encode(), None, force=True)
    assert plan(update, content()).forced
    assert edits.from_keywords({"PatientID": "1"}, [], DOCUMENT)[1] is None


@pytest.mark.parametrize(
    ("values", "remove", "where", "what"),
    [
        ({"PatientsName": "x"}, [], {}, "PatientName is close"),
        ({"Rows": "x"}, [], {"instance": ONE}, "Rows: VR US holds numbers"),
        ({"Rows": "1"}, [], {}, "name the instance"),
        ({"Rows": "1"}, [], {"instance": "9.9"}, "not have that instance"),
        ({"Rows": "1"}, [], {"series": "9.9"}, "not have that series"),
        ({"ReferencedImageSequence": "x"}, [], {"instance": ONE}, "JSON document"),
        ({}, ["PatientComments"], {}, "not present at Patient level"),
    ],
)
def test_typed_edits_that_mean_nothing(
    values: dict[str, str], remove: list[str], where: dict[str, str], what: str
) -> None:
    with pytest.raises(InvalidInput, match=what):
        edits.from_keywords(values, remove, DOCUMENT, **where)


def test_numbers_that_are_none_cannot_be_stored() -> None:
    named = attribute("FrameAcquisitionDuration")
    assert named is not None
    with pytest.raises(Unstorable):
        fit(float("nan"), named, {})
