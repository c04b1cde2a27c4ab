"""What a query names and what its rows show."""

from typing import Any

import pytest

from gateway.domain.errors import InvalidInput
from gateway.domain.header.text import _INDEXED
from gateway.domain.ids import DatastoreId
from gateway.domain.query import (
    INSTANCE_ATTRIBUTES,
    RETURNED,
    SERIES_BESIDE,
    SUPPORTED,
    DicomQuery,
    Key,
    Level,
    TagPath,
    attribute,
    columns,
    level_in_search,
    row,
    supported,
    vr_of,
)

STORE = DatastoreId("0" * 32)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("PatientName", (0x00100010,)),
        ("00100010", (0x00100010,)),
        ("0020000d", (0x0020000D,)),
        ("RequestAttributesSequence.00400009", (0x00400275, 0x00400009)),
        ("00400275.ScheduledProcedureStepID", (0x00400275, 0x00400009)),
        ("00190010", (0x00190010,)),
        ("00191001", (0x00191001,)),
        ("00191001.PatientID", (0x00191001, 0x00100020)),
    ],
)
def test_attributes_are_keywords_or_tags_dotted(text: str, path: TagPath) -> None:
    assert attribute(text) == path


@pytest.mark.parametrize(
    "text",
    [
        "patientname",
        "PatientNam",
        "0010001",
        "001000100",
        "00100011",
        "PatientName.PatientID",
        "",
        ".",
        "A.",
        "x y",
        "\u0661" * 8,
    ],
)
def test_what_is_no_attribute_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        attribute(text)


def test_a_refusal_does_not_repeat_odd_text() -> None:
    with pytest.raises(InvalidInput) as caught:
        attribute("Doe^John 1970")
    assert "Doe" not in caught.value.detail


def shown(query: DicomQuery) -> set[str]:
    return {column.tag for column in columns(query)}


def single(tag: int, value: str) -> Key:
    return Key((tag,), vr_of(tag), (value,))


def test_study_rows_have_the_attributes_of_the_standard() -> None:
    # PS3.18 T10.6.3-3
    required = "00080020 00080030 00080050 00080061 00080090 00100010 00100020 00100030 00100040 0020000D 00200010"
    assert {*required.split(), "00201206", "00201208"} <= shown(DicomQuery(STORE, Level.STUDY))


def test_relational_rows_carry_the_levels_above() -> None:
    study, series = single(0x0020000D, "1"), single(0x0020000E, "2")
    assert "00100010" in shown(DicomQuery(STORE, Level.SERIES))
    assert "00100010" not in shown(DicomQuery(STORE, Level.SERIES, (study,)))
    within_study = shown(DicomQuery(STORE, Level.INSTANCE, (study,)))
    assert "00080060" in within_study
    assert "00100010" not in within_study
    assert not {"00080060", "00100010"} & shown(DicomQuery(STORE, Level.INSTANCE, (study, series)))


def test_lower_levels_and_private_attributes_are_not_shown() -> None:
    asked = frozenset({(0x00080060,), (0x00081030,), (0x00190010,)})
    tags = shown(DicomQuery(STORE, Level.STUDY, include=asked))
    assert "00081030" in tags
    assert not {"00080060", "00190010"} & tags


def test_rows_are_in_order_of_tags_with_blanks_where_required() -> None:
    chosen = columns(DicomQuery(STORE, Level.STUDY, include=frozenset({(0x00081030,)})))
    study = {"00100020": {"vr": "LO", "Value": ["P"]}, "00100050": {"vr": "SQ"}}
    result = row({Level.PATIENT: study, Level.STUDY: study}, chosen)
    assert list(result) == sorted(result)
    assert result["00100020"] == {"vr": "LO", "Value": ["P"]}
    assert result["00100010"] == {"vr": "PN"}
    assert result["00081030"] == {"vr": "LO"}
    assert "00080056" not in result, "an availability that is not known is left out"
    assert "00100050" not in result


def test_sequences_are_cut_to_what_was_asked_for() -> None:
    item = {"00400009": {"vr": "SH", "Value": ["a"]}, "00401001": {"vr": "SH"}, "00080050": {"vr": "SH"}}
    series = {"00400275": {"vr": "SQ", "Value": [item]}}
    views: dict[Level, dict[str, Any]] = {Level.PATIENT: {}, Level.STUDY: {}, Level.SERIES: series}
    query = DicomQuery(STORE, Level.SERIES)
    assert set(row(views, columns(query))["00400275"]["Value"][0]) == {"00400009", "00401001"}
    asked = DicomQuery(STORE, Level.SERIES, include=frozenset({(0x00400275, 0x00080050)}))
    assert set(row(views, columns(asked))["00400275"]["Value"][0]) == set(item)
    whole = DicomQuery(STORE, Level.SERIES, include=frozenset({(0x00400275,)}))
    assert row(views, columns(whole))["00400275"]["Value"] == [item]


def test_what_is_returned_is_supported() -> None:
    for level in Level:
        assert set(RETURNED[level]) <= SUPPORTED[level]


def test_instances_can_be_asked_for_anything_but_pixels() -> None:
    assert supported(Level.INSTANCE, 0x00204000)
    assert supported(Level.INSTANCE, 0x00191001)
    assert not supported(Level.INSTANCE, 0x7FE00010)
    assert not supported(Level.SERIES, 0x00204000)
    assert not supported(Level.STUDY, 0x00080060)
    assert level_in_search(0x00400244) is Level.SERIES


def test_what_an_index_has_at_hand_is_what_instances_give_it() -> None:
    # A tag here that no header hands over would match nothing, without a word.
    assert INSTANCE_ATTRIBUTES | SERIES_BESIDE <= _INDEXED
