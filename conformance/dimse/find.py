"""C-FIND: CFIND. The tables count on the studies that `samples._search_set` makes."""

import struct
from typing import Any

from pydicom import config
from pydicom.dataset import Dataset

from ..peer import PATIENT_FIND, STUDY_FIND, Context, Found, encode, sub_item
from ..suite import Trial, case
from .association import peer


def keys(level: str | None, **values: Any) -> Dataset:
    """An identifier; None leaves the level out."""
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    if level is not None:
        made.QueryRetrieveLevel = level
    with config.disable_value_validation():
        for keyword, value in values.items():
            setattr(made, keyword, value)
    return made


def _find(t: Trial, identifier: Dataset, model: str = STUDY_FIND, **more: Any) -> Found:
    with peer(t).association(Context(model), **more) as association:
        return association.find(identifier, model)


def _ready(t: Trial) -> None:
    for name in ("A/1/1", "A/1/2", "A/1/3", "A/2/1", "B/1/1", "C/1/1", "D/1/1", "E/1/1", "F/1/1"):
        t.sample(name)


def _names(t: Trial, found: Found, keyword: str = "StudyInstanceUID") -> set[str]:
    uids = {"StudyInstanceUID": t.samples.studies, "SeriesInstanceUID": t.samples.series}
    table = {uid: name for name, uid in uids.get(keyword, {}).items()}
    if keyword == "SOPInstanceUID":
        table = {sample.sop: sample.name for sample in t.samples}
    return {name for row in found.rows if (name := table.get(str(row.get(keyword)))) is not None}


def _studies(t: Trial, wanted: str, **values: Any) -> Found:
    found = _find(t, keys("STUDY", **{"AccessionNumber": t.samples.searched, "StudyInstanceUID": "", **values}))
    t.equal(found.status, 0, f"final status for {values}")
    t.equal(_names(t, found), set(wanted), f"{values} found")
    return found


@case("CFIND-01")
def roots_and_levels(t: Trial) -> None:
    _ready(t)
    a = t.sample("A/1/1")
    study, series = {"StudyInstanceUID": a.study}, {"StudyInstanceUID": a.study, "SeriesInstanceUID": a.series}
    for model, level, values, keyword, wanted in (
        (STUDY_FIND, "STUDY", study, "StudyInstanceUID", {"A"}),
        (STUDY_FIND, "SERIES", {**study, "SeriesInstanceUID": ""}, "SeriesInstanceUID", {"A/1", "A/2"}),
        (STUDY_FIND, "IMAGE", {**series, "SOPInstanceUID": ""}, "SOPInstanceUID", {"A/1/1", "A/1/2", "A/1/3"}),
        (
            PATIENT_FIND,
            "STUDY",
            {"PatientID": t.samples.patient_id("A"), "StudyInstanceUID": ""},
            "StudyInstanceUID",
            {"A"},
        ),
    ):
        found = _find(t, keys(level, **values), model)
        t.equal(found.status, 0, f"final status at {level}")
        t.equal(_names(t, found, keyword), wanted, f"{level} found")
    found = _find(t, keys("PATIENT", PatientID=t.samples.patient_id("A"), PatientName=""), PATIENT_FIND)
    t.equal([str(row.PatientID) for row in found.rows], [t.samples.patient_id("A")], "patients found")


@case("CFIND-02")
def level_is_required(t: Trial) -> None:
    uid = t.samples.nowhere
    for what, level in (("no level", None), ("an unknown level", "WARD"), ("PATIENT under Study Root", "PATIENT")):
        found = _find(t, keys(level, StudyInstanceUID=uid))
        refused = found.status == 0xA900 or found.status >> 12 == 0xC
        t.expect(refused, f"status {found.status:04X} for {what}, expected A900 (or Cxxx)")


@case("CFIND-03")
def hierarchy(t: Trial) -> None:
    a = t.sample("A/1/1")
    found = _find(t, keys("SERIES", StudyInstanceUID=a.study, SeriesInstanceUID="", Modality="SR", PatientName=""))
    t.equal(_names(t, found, "SeriesInstanceUID"), {"A/2"}, "series found")
    found = _find(t, keys("SERIES", SeriesInstanceUID=a.series))
    t.expect(found.status in (0, 0xA900), f"status {found.status:04X} without a Study Instance UID")


@case("CFIND-04")
def required_keys(t: Trial) -> None:
    _ready(t)
    family = t.samples.family()
    for values, wanted in (
        ({"StudyDate": "20240116"}, "C"),
        ({"StudyTime": "233000"}, "B"),
        ({"StudyID": "S2"}, "B"),
        ({"PatientName": f"{family}^Dora"}, "D"),
        ({"PatientID": t.samples.patient_id("C")}, "C"),
        ({"AccessionNumber": t.samples.searched}, "ABCDEF"),
    ):
        _studies(t, wanted, **values)
    a = t.sample("A/1/1")
    for values, wanted_series in (({"Modality": "SR"}, {"A/2"}), ({"SeriesNumber": "1"}, {"A/1"})):
        found = _find(t, keys("SERIES", StudyInstanceUID=a.study, SeriesInstanceUID="", **values))
        t.equal(_names(t, found, "SeriesInstanceUID"), wanted_series, f"{values} found")
    found = _find(
        t,
        keys("IMAGE", StudyInstanceUID=a.study, SeriesInstanceUID=a.series, SOPInstanceUID="", InstanceNumber="2"),
    )
    t.equal(_names(t, found, "SOPInstanceUID"), {"A/1/2"}, "InstanceNumber 2 found")


@case("CFIND-05")
def optional_keys(t: Trial) -> None:
    _ready(t)
    empty = dict.fromkeys(
        ("ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "StudyDescription"), ""
    )
    (row, *_) = _studies(t, "A", PatientID=t.samples.patient_id("A"), **empty).rows
    t.equal({*row.ModalitiesInStudy}, {"CT", "SR"}, "Modalities in Study")
    t.equal(row.NumberOfStudyRelatedSeries, 2, "series of the study")
    t.equal(row.NumberOfStudyRelatedInstances, 4, "instances of the study")
    _studies(t, "BC", ModalitiesInStudy="MR")


@case("CFIND-06")
def matching(t: Trial) -> None:
    _ready(t)
    family, a, b = t.samples.family(), t.sample("A/1/1"), t.sample("B/1/1")
    for values, wanted in (
        ({"PatientName": f"{family}^D*"}, "D"),
        ({"PatientName": f"{family}^Dor?"}, "D"),
        ({"PatientName": f"{family.upper()}^DORA"}, "D"),
        ({"StudyDate": "20240115-20240116"}, "ABC"),
        ({"StudyDate": "20240116-"}, "CD"),
        ({"StudyDate": "-20231231"}, "F"),
        ({"StudyInstanceUID": [a.study, b.study]}, "AB"),
        ({"StudyDescription": ""}, "ABCDEF"),
        ({"PatientName": "山田^太郎"}, "F"),
    ):
        _studies(t, wanted, **values)


@case("CFIND-07")
def only_what_was_asked(t: Trial) -> None:
    found = _studies(t, "A", PatientID=t.samples.patient_id("A"))
    allowed = {
        *("SpecificCharacterSet", "QueryRetrieveLevel", "RetrieveAETitle", "InstanceAvailability"),
        *("TimezoneOffsetFromUTC", "AccessionNumber", "StudyInstanceUID", "PatientID", "RetrieveURL"),
        *("StorageMediaFileSetID", "StorageMediaFileSetUID"),
    }
    for row in found.rows:
        extra = {element.keyword for element in row} - allowed
        t.expect(not extra, f"answered without being asked for: {sorted(extra)}")
        t.equal(row.get("QueryRetrieveLevel"), "STUDY", "Query/Retrieve Level")
        t.expect("RetrieveAETitle" in row or "StorageMediaFileSetID" in row, "neither Retrieve AE Title nor media")


@case("CFIND-08")
def without_a_value(t: Trial) -> None:
    found = _studies(t, "E", StudyInstanceUID=t.sample("E/1/1").study, StudyDate="", PatientName="")
    for row in found.rows:
        t.expect("StudyDate" in row and not row.StudyDate, "a supported key without a value is missing")
    t.expect(set(found.statuses[:-1]) <= {0xFF00, 0xFF01}, f"statuses {found.statuses}")


@case("CFIND-09")
def nothing_found(t: Trial) -> None:
    found = _find(t, keys("STUDY", StudyInstanceUID=t.samples.nowhere))
    t.equal(found.statuses, [0], "statuses")
    t.expect(found.last is not None and not found.last.data, "the final response has an identifier")


@case("CFIND-10")
def cancel(t: Trial) -> None:
    _ready(t)
    with peer(t).association(Context(STUDY_FIND)) as association:
        context = association.context(STUDY_FIND)
        t.demand(context, "the context was not accepted")
        assert context is not None
        identifier = keys("STUDY", AccessionNumber=t.samples.searched, StudyInstanceUID="")
        data = encode(identifier, association.syntax(context))
        sent = association.send(context, {0x00000002: STUDY_FIND, 0x00000100: 0x0020, 0x00000700: 0}, data)
        association.send(context, {0x00000100: 0x0FFF, 0x00000120: sent})
        statuses = [association.receive().status]
        while statuses[-1] in (0xFF00, 0xFF01):
            statuses.append(association.receive().status)
        t.expect(statuses[-1] in (0xFE00, 0), f"final status {statuses[-1]:04X}, expected FE00, or 0000 if too late")
        again = association.find(keys("STUDY", StudyInstanceUID=t.samples.nowhere))
        t.equal(again.statuses, [0], "the next C-FIND on the association")


@case("CFIND-11")
def character_set(t: Trial) -> None:
    found = _studies(t, "F", PatientID=t.samples.patient_id("F"), PatientName="")
    for row in found.rows:
        t.expect("SpecificCharacterSet" in row, "text beyond ASCII without Specific Character Set")
        t.expect("山田^太郎" in str(row.PatientName), f"the name is {row.PatientName!r}")
    identifier = keys("STUDY", StudyInstanceUID=t.sample("A/1/1").study, PatientName="")
    identifier.SpecificCharacterSet = "ISO_IR 100"
    for row in _find(t, identifier).rows:
        t.equal(str(row.PatientName), f"{t.samples.family()}^Jörg", "the name, asked for in ISO_IR 100")


@case("CFIND-12")
def extended_negotiation(t: Trial) -> None:
    for offer in (b"\1", b"\1\1\1\1\1"):
        data = sub_item(STUDY_FIND, offer)
        user = struct.pack(">BBH", 0x56, 0, len(data)) + data
        with peer(t).association(Context(STUDY_FIND), user=user) as association:
            answered = association.accepted.item(0x56)
            if answered is not None:
                given = answered[2 + len(STUDY_FIND) :]
                t.equal(len(given), len(offer), f"bytes answered to {len(offer)} offered")
                t.expect(set(given) <= {0, 1}, f"answered {given.hex()}")
            t.checks += 1
    with peer(t).association(Context(STUDY_FIND)) as association:
        t.expect(association.accepted.item(0x56) is None, "answered though nothing was offered")


@case("CFIND-13")
def date_and_time_apart(t: Trial) -> None:
    _ready(t)
    _studies(t, "AD", StudyDate="20240115-20240117", StudyTime="090000-130000")


@case("CFIND-15")
def what_is_no_key(t: Trial) -> None:
    a = t.sample("A/1/1")
    identifier = keys("STUDY", StudyInstanceUID=a.study)
    identifier.private_block(0x0099, "SOMEBODY", create=True).add_new(0x01, "LO", "whatever")
    found = _find(t, identifier)
    t.equal(found.status, 0, "status with a private key")
    t.equal(_names(t, found), {"A"}, "found")
