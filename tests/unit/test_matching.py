"""PS3.4 C.2.2.2, attribute by attribute."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.errors import InvalidInput
from gateway.domain.ids import DatastoreId
from gateway.domain.matching import (
    conditions,
    element_test,
    fulfils,
    name_forms,
    normal_time,
    normalize_name,
    private_elements,
    time_range,
)
from gateway.domain.metadata import to_dicom_json
from gateway.domain.plan import views_of
from gateway.domain.query import DicomQuery, Key, Level, attribute, vr_of

STORE = DatastoreId("0" * 32)


def key(name: str, *values: str) -> Key:
    path = attribute(name)
    return Key(path, vr_of(path[-1]), values)


def matches(name: str, asked: str, stored: Any, *, fuzzy: bool = False) -> bool:
    return element_test(key(name, asked), fuzzy)(to_dicom_json({name: stored}))


@pytest.mark.parametrize(
    ("name", "asked", "stored", "expected"),
    [
        # single values (QIDO-09)
        ("PatientID", "P1", "P1", True),
        ("PatientID", "p1", "P1", False),
        ("PatientID", " P1 ", "P1 ", True),
        ("PatientID", "P", "P1", False),
        ("PatientID", "a\\b", "a\\b", True),
        ("PatientID", "a", "a\\b", False),
        ("StudyDescription", "50%_", "50%_", True),
        ("PatientComments", " a", "a", False),
        ("SeriesNumber", "2", "02 ", True),
        ("SeriesNumber", "2", "20", False),
        ("PatientWeight", "70", "7.0e1", True),
        ("Rows", "512", 512, True),
        ("PatientID", "P1", None, False),
        # wildcards (QIDO-10)
        ("PatientID", "P*", "P1", True),
        ("PatientID", "P?", "P12", False),
        ("PatientID", "*1", "P1", True),
        ("PatientID", "*[0-9]*", "P1", False),
        ("PatientID", "*[0-9]*", "P[0-9]", True),
        ("PatientID", "%1", "P1", False),
        ("StudyDescription", "a*c", "a\nb c", True),
        ("Modality", "c*", "CT", False),
        # multiplicity (QIDO-17)
        ("ImageType", "PRIMARY", ["ORIGINAL", "PRIMARY"], True),
        ("OperatorsName", "bob*", ["Ann^A", "Bob^B"], True),
        ("ImageType", "ORIGINAL\\PRIMARY", ["ORIGINAL", "PRIMARY"], False),
        # names (QIDO-18)
        ("PatientName", "doe^john", "DOE^John", True),
        ("PatientName", "Doe^John^^^", "Doe^John", True),
        ("PatientName", "Doe^John", "Doe^John^^Dr", False),
        ("PatientName", "Doe", "Doe^John", False),
        ("PatientName", "muller^a*", "Müller^Änne", True),
        ("PatientName", "Müller*", "MULLER^X", True),
        ("PatientName", "山田^太郎", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("PatientName", "yamada^tarou=山田^太郎=やまだ^たろう", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("PatientName", "yamada*=*", "Yamada^Tarou=山田^太郎", True),
        ("PatientName", "Doe^*", "Doe", True),
        ("PatientName", "?oe*", "Doe^John", True),
        ("PatientName", "strasse*", "Straße^A", True),
        ("PatientName", "김?수", "김희수", True),
        # dates and times by meaning (QIDO-11)
        ("StudyDate", "20240229", "20240229", True),
        ("StudyDate", "2024.02.29", "20240229", True),
        ("StudyDate", "20240229", "2024.02.29", True),
        ("StudyDate", "20240101-20240131", "20240131", True),
        ("StudyDate", "20240101-20240131", "20240201", False),
        ("StudyDate", "-20240131", "19000101", True),
        ("StudyDate", "20240101-", "20231231", False),
        ("StudyDate", "20240101-", "rubbish", False),
        ("StudyTime", "10", "100000.000", True),
        ("StudyTime", "10-12", "125959.999", True),
        ("StudyTime", "10-12", "13", False),
        ("StudyTime", "1000-1030", "103059.9", True),
        ("StudyTime", "10:30", "1030", True),
        ("AcquisitionDateTime", "2024", "20240101000000", True),
        ("AcquisitionDateTime", "2024-2025", "20251231235959.999999", True),
        ("AcquisitionDateTime", "202401-202402", "20240301", False),
        ("AcquisitionDateTime", "20240101120000+0200-20240101120000-0500", "20240101110000", True),
        ("AcquisitionDateTime", "20240101120000+0200-20240101120000-0500", "20240101093000", False),
        ("AcquisitionDateTime", "20240101-0500", "20240101050000", True),
        ("AcquisitionDateTime", "-20240101120000-0500", "20240101165959", True),
        # others
        ("StudyInstanceUID", "1.2", "1.2\0", True),
        ("StudyInstanceUID", "1.2", "1.2.3", False),
        ("FrameIncrementPointer", "00181063", "00181063", True),
        ("PatientAge", "050Y", "050Y", True),
    ],
)
def test_single_attributes(name: str, asked: str, stored: Any, expected: bool) -> None:
    assert matches(name, asked, stored) is expected


@pytest.mark.parametrize(
    ("asked", "stored", "expected"),
    [
        ("john", "Doe^John", True),
        ("doe jo", "Doe^John", True),
        ("jo do", "Doe^John", True),
        ("ohn", "Doe^John", False),
        ("doe smith", "Doe^John", False),
        ("müll", "MULLER-Meier^A", True),
        ("meier", "MULLER-Meier^A", True),
        ("*oh*", "Doe^John", True),
        ("太", "Yamada=山田^太郎", True),
        ("Doe^John", "Doe^John", True),
    ],
)
def test_fuzzy_names(asked: str, stored: str, expected: bool) -> None:
    assert matches("PatientName", asked, stored, fuzzy=True) is expected


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("StudyDate", "-"),
        ("StudyDate", "20240131-20240101"),
        ("StudyDate", "20240230"),
        ("StudyDate", "2024"),
        ("StudyDate", "2024-01-31"),
        ("StudyDate", "202401*"),
        ("StudyDate", "٢٠٢٤٠١٠١"),
        ("StudyTime", "25"),
        ("StudyTime", "12-10"),
        ("StudyTime", "10-11-12"),
        ("AcquisitionDateTime", "2025-2024"),
        ("AcquisitionDateTime", "20241301"),
        ("StudyInstanceUID", "1.2.*"),
        ("SeriesNumber", "two"),
        ("SeriesNumber", "1?"),
        ("SeriesNumber", "NaN"),
        ("PatientWeight", "Infinity"),
        ("PatientAge", "0*"),
        ("PatientID", "x" * 2000),
        ("PatientID", "\udcff"),
        ("RequestAttributesSequence", "x"),
        ("EncapsulatedDocument", "x"),
    ],
)
def test_values_that_cannot_be_are_refused_without_being_told(name: str, asked: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        conditions(DicomQuery(STORE, Level.INSTANCE, (key(name, asked),)))
    assert asked == "-" or len(asked) < 3 or asked not in caught.value.detail


def test_a_value_of_nothing_or_stars_matches_everything() -> None:
    keys = tuple(
        key(name, value) for name in ("StudyDate", "StudyInstanceUID", "PatientID") for value in ("", "*", "**")
    )
    assert conditions(DicomQuery(STORE, Level.STUDY, keys)) == []


def study(query: DicomQuery, **values: Any) -> bool:
    return fulfils(views_of(to_dicom_json(values)), conditions(query))


def test_date_and_time_ranges_make_one_interval() -> None:
    keys = (key("StudyDate", "20240101-20240103"), key("StudyTime", "1200-1400"))
    combined, apart = (
        DicomQuery(STORE, Level.STUDY, keys),
        DicomQuery(STORE, Level.STUDY, keys, combined_datetime=False),
    )
    assert study(combined, StudyDate="20240102", StudyTime="0800")
    assert not study(combined, StudyDate="20240101", StudyTime="1159")
    assert study(combined, StudyDate="20240103", StudyTime="1400")
    assert study(combined, StudyDate="20240103")
    assert not study(combined, StudyDate="20240101")
    assert not study(combined, StudyTime="1300")
    assert not study(apart, StudyDate="20240102", StudyTime="0800")
    assert study(apart, StudyDate="20240102", StudyTime="1300")


def test_an_interval_over_midnight() -> None:
    keys = (key("StudyDate", "20240101-20240102"), key("StudyTime", "2200-0200"))
    combined = DicomQuery(STORE, Level.STUDY, keys)
    assert study(combined, StudyDate="20240101", StudyTime="2330")
    assert study(combined, StudyDate="20240102", StudyTime="0100")
    assert not study(combined, StudyDate="20240101", StudyTime="1000")
    assert not study(combined, StudyDate="20240102", StudyTime="0301")
    for query in (
        DicomQuery(STORE, Level.STUDY, keys, combined_datetime=False),
        DicomQuery(STORE, Level.STUDY, keys[1:]),
        DicomQuery(STORE, Level.STUDY, (key("StudyDate", "20240101-20240101"), keys[1])),
        DicomQuery(STORE, Level.STUDY, (key("StudyDate", "20240102-20240101"), keys[1])),
    ):
        with pytest.raises(InvalidInput, match="before it begins"):
            conditions(query)


def test_ranges_open_at_different_sides_stay_apart() -> None:
    query = DicomQuery(STORE, Level.STUDY, (key("StudyDate", "20240101-"), key("StudyTime", "-1200")))
    assert study(query, StudyDate="20240105", StudyTime="1100")
    assert not study(query, StudyDate="20240105", StudyTime="1300")


def test_keys_of_a_sequence_match_within_one_item() -> None:
    items = [
        {"ScheduledProcedureStepID": "a", "RequestedProcedureID": "x"},
        {"ScheduledProcedureStepID": "b", "RequestedProcedureID": "y"},
    ]
    stored = to_dicom_json({"RequestAttributesSequence": items})

    def found(step: str, procedure: str) -> bool:
        keys = (
            key("RequestAttributesSequence.ScheduledProcedureStepID", step),
            key("RequestAttributesSequence.RequestedProcedureID", procedure),
        )
        return fulfils(views_of({}, stored), conditions(DicomQuery(STORE, Level.SERIES, keys)))

    assert found("a", "x")
    assert not found("a", "y")
    assert found("", "y")


def private(*keys: Key) -> DicomQuery:
    return DicomQuery(STORE, Level.INSTANCE, keys)


SIEMENS_THEN_PHILIPS = to_dicom_json(
    {"00190010": "SIEMENS", "00190011": "Philips", "00191001": "one", "00191101": "two", "00191102": "three"},
    dict.fromkeys(("00190010", "00190011", "00191001", "00191101", "00191102"), "LO"),
)


def test_private_keys_follow_their_creator() -> None:
    def found(*keys: Key) -> bool:
        return fulfils(views_of({}, {}, SIEMENS_THEN_PHILIPS), conditions(private(*keys)))

    creator = Key((0x00190010,), "LO", ("Philips",))
    assert found(creator)
    assert found(creator, Key((0x00191001,), "UN", ("two",)))
    assert not found(creator, Key((0x00191001,), "UN", ("one",)))
    assert not found(Key((0x00190010,), "LO", ("GE",)))


def test_a_private_key_without_creator_is_refused() -> None:
    with pytest.raises(InvalidInput, match="00190010"):
        conditions(private(Key((0x00191001,), "UN", ("two",))))


def test_private_attributes_are_shown_where_they_are() -> None:
    query = private(Key((0x00190010,), "LO", ("Philips",)), Key((0x00191001,), "UN"))
    assert set(private_elements(SIEMENS_THEN_PHILIPS, query)) == {"00190011", "00191101"}


@pytest.mark.parametrize(
    ("level", "name", "value"),
    [
        (Level.STUDY, "Modality", "CT"),
        (Level.STUDY, "SOPInstanceUID", "1"),
        (Level.SERIES, "ImageComments", "x"),
        (Level.PATIENT, "StudyDate", "20240101"),
        (Level.INSTANCE, "PixelData", "x"),
        (Level.INSTANCE, "RetrieveURL", "x"),
        (Level.STUDY, "00191001", "x"),
    ],
)
def test_a_key_that_its_level_does_not_have_is_refused(level: Level, name: str, value: str) -> None:
    with pytest.raises(InvalidInput):
        conditions(DicomQuery(STORE, level, (key(name, value),)))


def test_what_says_how_to_read_the_request_is_no_key() -> None:
    keys = (key("SpecificCharacterSet", "ISO_IR 100"), key("TimezoneOffsetFromUTC", "+0100"))
    assert conditions(DicomQuery(STORE, Level.STUDY, (*keys, key("QueryRetrieveLevel", "STUDY")))) == []


def test_a_hostile_pattern_costs_no_time() -> None:
    started = time.process_time()
    assert not matches("StudyDescription", "*a" * 30 + "*b", "a" * 1000)
    assert time.process_time() - started < 1


@given(st.text(max_size=40))
def test_normalising_a_name_twice_is_normalising_it_once(name: str) -> None:
    assert normalize_name(normalize_name(name)) == normalize_name(name)


@given(st.text(alphabet="aÄß^= *-İ", max_size=12))
def test_a_name_without_wildcards_matches_itself(name: str) -> None:
    plain = "=".join(name.replace("*", "").split("=")[:3])
    if name_forms(plain):
        assert matches("PatientName", plain, plain)
        assert matches("PatientName", plain.swapcase(), plain)


@given(vr=st.sampled_from(["DA", "TM", "DT"]), text=st.text(alphabet="0123456789-+.: ", max_size=30))
def test_dates_and_times_are_read_or_refused(vr: str, text: str) -> None:
    names = {"DA": "StudyDate", "TM": "StudyTime", "DT": "AcquisitionDateTime"}
    normal_time(vr, text)
    try:
        bounds = time_range(key(names[vr]), text)
    except InvalidInput:
        return
    assert bounds.low is None or bounds.high is None or bounds.low <= bounds.high
