"""Grouping into image sets (healthimaging.md 6.1)."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.grouping import GroupKey, Primary, assign, key_of, study_difference
from tests.corpus import CORPUS

KEYS = st.builds(
    GroupKey,
    study_uid=st.sampled_from(["1.1", "1.2"]),
    series_uid=st.sampled_from(["2.1", "2.2", "2.3"]),
    study_date=st.sampled_from(["", "20240101"]),
    accession=st.sampled_from(["", "A"]),
    patient_id=st.sampled_from(["P", "Q"]),
    study_id=st.just("S"),
    series_number=st.sampled_from(["1", "2"]),
)
A = GroupKey("1.1", "2.1", "20240101", "ACC", "P1", "S1", "1")


def variant(**fields: str) -> GroupKey:
    return GroupKey(**{name: fields.get(name, getattr(A, name)) for name in GroupKey.__slots__})


def test_key_ignores_padding_and_tells_absent_from_nothing() -> None:
    levels: dict[str, dict[str, Any]] = {
        "Patient": {"PatientID": " P1 "},
        "Study": {"StudyInstanceUID": "1.1\0", "StudyDate": "20240101", "StudyID": None},
        "Series": {"SeriesInstanceUID": "2.1", "SeriesNumber": "1 "},
    }
    assert key_of(levels) == GroupKey("1.1", "2.1", "20240101", "", "P1", "", "1")
    assert key_of({"Study": {"AccessionNumber": ["A", "B"]}}).accession == "A\\B"


@pytest.mark.parametrize(
    ("field", "keyword"),
    [
        ("patient_id", "PatientID"),
        ("study_date", "StudyDate"),
        ("accession", "AccessionNumber"),
        ("study_id", "StudyID"),
        ("series_number", "SeriesNumber"),
        ("study_uid", "StudyInstanceUID"),
    ],
)
def test_each_element_conflicts_with_what_exists_by_its_keyword(field: str, keyword: str) -> None:
    newcomer = variant(**{field: "9"})
    (assignment,) = assign([newcomer], {A.study_uid: A}, {A.series_uid: Primary("set-a", A)})
    assert (assignment.target, assignment.conflict, assignment.image_set) == ("non-primary", keyword, None)


def test_conflicts_are_told_in_a_fixed_order() -> None:
    existing = ({A.study_uid: A}, {A.series_uid: Primary("set-a", A)})
    everything = variant(patient_id="9", study_date="9", accession="9", study_id="9", series_number="9")
    assert [a.conflict for a in assign([everything], *existing)] == ["PatientID"]
    assert [a.conflict for a in assign([variant(accession="9", study_id="9")], *existing)] == ["AccessionNumber"]
    assert [a.conflict for a in assign([variant(study_uid="9", patient_id="9")], *existing)] == ["StudyInstanceUID"]


def test_equal_key_merges_and_new_series_of_a_known_study_is_primary() -> None:
    assignments = assign(
        [A, variant(series_uid="2.9", series_number="7")], {A.study_uid: A}, {A.series_uid: Primary("set-a", A)}
    )
    assert [(a.target, a.image_set) for a in assignments] == [("merge", "set-a"), ("primary", None)]


def test_the_first_group_of_a_study_defines_it_for_its_other_series() -> None:
    first, other = variant(study_date="20230101", series_uid="2.1"), variant(study_date="20240101", series_uid="2.2")
    assert [(a.key, a.target, a.conflict) for a in assign([other, first], {}, {})] == [
        (first, "primary", None),
        (other, "non-primary", "StudyDate"),
    ]


def test_a_group_beside_the_primaries_does_not_define_its_study() -> None:
    owner = variant(study_uid="1.1", series_uid="2.5")
    loser = variant(study_uid="1.2", series_uid="2.5", patient_id="LOSER")
    later = variant(study_uid="1.2", series_uid="2.6", patient_id="P1")
    assert [(a.target, a.conflict) for a in assign([owner, loser, later], {}, {})] == [
        ("primary", None),
        ("non-primary", "StudyInstanceUID"),
        ("primary", None),
    ]


@given(st.lists(KEYS, max_size=12), st.randoms(use_true_random=False))
def test_order_within_a_job_does_not_matter(keys: list[GroupKey], random: object) -> None:
    shuffled = list(keys)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign(keys, {}, {}) == assign(shuffled, {}, {})


@given(st.lists(st.lists(KEYS, max_size=8), max_size=4))
def test_primaries_agree_after_any_jobs(jobs: list[list[GroupKey]]) -> None:
    series: dict[str, Primary] = {}
    for number, keys in enumerate(jobs):
        studies = {primary.key.study_uid: primary.key for primary in series.values()}
        assignments = assign(keys, studies, dict(series))
        assert [a.key for a in assignments] == sorted(set(keys))
        for a in assignments:
            assert (a.conflict is not None) == (a.target == "non-primary")
            assert (a.image_set is not None) == (a.target == "merge")
            if a.target == "merge":
                assert series[a.key.series_uid] == Primary(a.image_set or "", a.key)
            elif a.target == "primary":
                assert a.key.series_uid not in series
                series[a.key.series_uid] = Primary(f"{number}-{a.key.series_uid}", a.key)
        assert not any(
            study_difference(one.key, other.key)
            for one in series.values()
            for other in series.values()
            if one.key.study_uid == other.key.study_uid
        )
    if jobs and jobs[0]:
        assert series, "the first group of the first job has nothing to conflict with"


def received(path: Path) -> tuple[GroupKey, str, dict[str, str]]:
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    names = ("StudyInstanceUID", "SeriesInstanceUID", "StudyDate", "AccessionNumber", "PatientID", "StudyID")
    values = {name: str(dataset.get(name) or "").strip() for name in (*names, "SeriesNumber")}
    levels = {"Patient": values, "Study": values, "Series": values}
    return key_of(levels), str(dataset.SOPInstanceUID), values


@pytest.mark.skipif(CORPUS is None, reason="the corpus is not here")
@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        # Sizes of the sets in sorted order, and the conflict of each, as the files were made to conflict.
        ("patient-study-conflict", [(20, None), (1, "PatientID"), (3, "StudyDate")]),
        ("series-uid-in-two-studies", [(3, None), (3, "StudyInstanceUID")]),
        ("series-attribute-conflict", [(6, None)]),
        ("duplicate-sop", [(1, None)]),
    ],
)
def test_the_inconsistent_series(folder: str, expected: list[tuple[int, str | None]]) -> None:
    assert CORPUS is not None
    files = sorted((CORPUS / "series-inconsistent" / folder).iterdir())
    instances = [received(path) for path in files]
    # By the rules alone: the seven values together, before any of the code under test has a say.
    by_tuple: dict[tuple[tuple[str, str], ...], set[str]] = defaultdict(set)
    for _, sop_uid, values in instances:
        by_tuple[tuple(sorted(values.items()))].add(sop_uid)

    members: dict[GroupKey, set[str]] = defaultdict(set)
    for key, sop_uid, _ in instances:
        members[key].add(sop_uid)
    assert sorted(map(sorted, by_tuple.values())) == sorted(map(sorted, members.values()))
    assignments = assign(members, {}, {})
    assert [a.target for a in assignments] == ["primary"] + ["non-primary"] * (len(expected) - 1)
    assert [(len(members[a.key]), a.conflict) for a in assignments] == expected
