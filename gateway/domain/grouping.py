"""Which instances make one image set, and which image set is the primary one (healthimaging.md 6.1).

Seven elements group: five of the study, two of the series. Nothing else splits a series.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal


@dataclass(frozen=True, slots=True, order=True)
class GroupKey:
    """The grouping elements, without padding; absent and empty are both `""`. Its order is the order of a job."""

    study_uid: str
    series_uid: str
    study_date: str = ""
    accession: str = ""
    patient_id: str = ""
    study_id: str = ""
    series_number: str = ""


STUDY_ELEMENTS: Final[Mapping[str, str]] = {
    "PatientID": "patient_id",
    "StudyDate": "study_date",
    "AccessionNumber": "accession",
    "StudyID": "study_id",
}
"""Keyword -> field of what all primary image sets of a study share, in the order in which conflicts are told."""


def key_of(levels: Mapping[str, Mapping[str, Any]]) -> GroupKey:
    """The key of an instance, or of an image set, from its attributes by level (document form)."""
    patient, study, series = (levels.get(level, {}) for level in ("Patient", "Study", "Series"))
    return GroupKey(
        study_uid=_text(study.get("StudyInstanceUID")),
        series_uid=_text(series.get("SeriesInstanceUID")),
        study_date=_text(study.get("StudyDate")),
        accession=_text(study.get("AccessionNumber")),
        patient_id=_text(patient.get("PatientID")),
        study_id=_text(study.get("StudyID")),
        series_number=_text(series.get("SeriesNumber")),
    )


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):  # more values than the dictionary allows
        return "\\".join(_text(single) for single in value)
    return str(value).strip(" \0")


def study_difference(one: GroupKey, other: GroupKey) -> str | None:
    """The keyword of the first element that two keys of one study do not share; None where both may be primary."""
    return next((kw for kw, field in STUDY_ELEMENTS.items() if getattr(one, field) != getattr(other, field)), None)


@dataclass(frozen=True, slots=True)
class Primary:
    """The primary image set of a series, as it is now."""

    image_set: str
    key: GroupKey


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a group goes."""

    key: GroupKey
    target: Literal["primary", "merge", "non-primary"]
    """A new primary image set, a new version of an existing one, or a new image set beside it."""
    image_set: str | None = None
    """The one to merge into."""
    conflict: str | None = None
    """The keyword that differs from the primary; `StudyInstanceUID` where another study has the series."""


def assign(
    groups: Iterable[GroupKey],
    study_primaries: Mapping[str, GroupKey],
    series_primaries: Mapping[str, Primary],
) -> Sequence[Assignment]:
    """Where the groups of one job go, in the order of their keys: of groups that conflict the first becomes primary.

    `study_primaries` has, by Study Instance UID, the key of any primary image set of the study (they agree in the
    study's elements); `series_primaries` has the primary image set by Series Instance UID. Both need to hold only the
    UIDs of `groups`. A group beside the primaries does not bind later ones.
    """
    studies = dict(study_primaries)
    taken = {uid: primary.key for uid, primary in series_primaries.items()}
    assignments = []
    for key in sorted(set(groups)):
        conflict = _conflict(key, studies.get(key.study_uid), taken.get(key.series_uid))
        if conflict:
            assignments.append(Assignment(key, "non-primary", conflict=conflict))
        elif key.series_uid in series_primaries:
            assignments.append(Assignment(key, "merge", series_primaries[key.series_uid].image_set))
        else:
            assignments.append(Assignment(key, "primary"))
            studies.setdefault(key.study_uid, key)
            taken[key.series_uid] = key
    return assignments


def _conflict(key: GroupKey, study: GroupKey | None, series: GroupKey | None) -> str | None:
    if series and series.study_uid != key.study_uid:
        return "StudyInstanceUID"
    difference = study_difference(key, study) if study else None
    if difference is None and series and series.series_number != key.series_number:
        return "SeriesNumber"
    return difference
