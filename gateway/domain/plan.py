"""Searches answered from image sets alone: what to ask SearchImageSets, and how its answers roll up.

A study's attributes are the fold of its primary image sets in order of their last update: the newest value wins,
absent and empty ones erase nothing. This module is the definition; an index must give the same answers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeVar

from .matching import (
    Condition,
    conditions,
    fulfils,
    is_pattern,
    name_forms,
    number_of,
    padding_cut,
    private_elements,
    text_value,
    time_range,
)
from .model import Criterion, SearchCriteria
from .query import (
    ACCESSION_NUMBER,
    DEPTH,
    INSTANCE_AVAILABILITY,
    INSTANCE_NUMBER,
    ISSUER_OF_PATIENT_ID,
    MODALITIES_IN_STUDY,
    MODALITY,
    PATIENT_BIRTH_DATE,
    PATIENT_ID,
    PATIENT_INSTANCES,
    PATIENT_NAME,
    PATIENT_SERIES,
    PATIENT_STUDIES,
    SERIES_INSTANCES,
    SERIES_NUMBER,
    SERIES_UID,
    SOP_CLASSES_IN_STUDY,
    SOP_INSTANCE_UID,
    STUDY_DATE,
    STUDY_ID,
    STUDY_INSTANCES,
    STUDY_SERIES,
    STUDY_UID,
    Attributes,
    Column,
    DicomQuery,
    Key,
    Level,
    SearchAnswer,
    Views,
    columns,
    hexadecimal,
    level_in_search,
    row,
)

T = TypeVar("T")

LARGEST: Final = 2**31 - 1
"""Series and instance numbers beyond it have no place in the order of rows."""


# ---------------------------------------------------------------- from image sets to rows


@dataclass(frozen=True, slots=True)
class Held:
    """One image set at one version, as searches see it."""

    ref: Any
    """Whatever finds its instances."""
    study_uid: str
    series_uid: str
    attributes: Attributes
    """Of the patient, study and series levels."""
    instances: int
    updated: Any
    """Orders image sets by their last update; comparable with each other's."""
    sop_classes: frozenset[str] = frozenset()
    """Needed only where SOPClassesInStudy is asked for."""


@dataclass(frozen=True, slots=True)
class Answering:
    """A query made ready: what rows must fulfil, and what they show."""

    query: DicomQuery
    conditions: Sequence[Condition]
    columns: Sequence[Column]

    @classmethod
    def of(cls, query: DicomQuery) -> "Answering":
        """Raises InvalidInput, as `matching.conditions` does."""
        return cls(query, conditions(query), columns(query))

    def wants(self, tag: int) -> bool:
        """Whether an attribute is matched or returned."""
        name = hexadecimal(tag)
        return (
            self.query.include_all
            or any(column.tag == name for column in self.columns)
            or any(condition.tag == tag for condition in self.conditions)
        )

    def row(self, views: Views) -> dict[str, Any]:
        """What the answer shows of a match."""
        shown = row(views, self.columns, self.query.include_all)
        private = private_elements(views[Level.INSTANCE], self.query)
        return dict(sorted({**shown, **private}.items())) if private else shown

    def above(self, level: Level) -> list[Condition]:
        """The conditions of `level` and of those above it."""
        return [condition for condition in self.conditions if DEPTH[condition.level] <= DEPTH[level]]


def fold(parts: Iterable[Attributes]) -> dict[str, Any]:
    """What several sources say, oldest first: the newest value wins, absent and empty ones erase nothing."""
    folded: dict[str, Any] = {}
    for part in parts:
        for tag, element in part.items():
            if has_value(element):
                folded[tag] = element
    return folded


def has_value(element: Attributes) -> bool:
    """Whether a DICOM JSON element says anything."""
    return "InlineBinary" in element or any(value is not None for value in element.get("Value") or ())


_UPPER: Final[dict[str, bool]] = {}


def study_part(attributes: Attributes) -> dict[str, Any]:
    """The patient's and the study's attributes among those of an image set."""
    part = {}
    for tag, element in attributes.items():
        upper = _UPPER.get(tag)
        if upper is None:
            upper = _UPPER.setdefault(tag, DEPTH[level_in_search(int(tag, 16))] <= DEPTH[Level.STUDY])
        if upper:
            part[tag] = element
    return part


def element(vr: str, *values: str | int) -> dict[str, Any]:
    """A DICOM JSON element."""
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}


_ONLINE: Final = element("CS", "ONLINE")
_AVAILABILITY: Final = hexadecimal(INSTANCE_AVAILABILITY)
_MODALITIES: Final = hexadecimal(MODALITIES_IN_STUDY)
_SOP_CLASSES: Final = hexadecimal(SOP_CLASSES_IN_STUDY)
_STUDY_SERIES: Final = hexadecimal(STUDY_SERIES)
_STUDY_INSTANCES: Final = hexadecimal(STUDY_INSTANCES)
_SERIES_INSTANCES: Final = hexadecimal(SERIES_INSTANCES)
_STUDY_UID: Final = hexadecimal(STUDY_UID)
_SERIES_UID: Final = hexadecimal(SERIES_UID)


def study_view(
    attributes: Attributes,
    study_uid: str,
    modalities: Iterable[str],
    series: int,
    instances: int,
    sop_classes: Iterable[str] = (),
) -> dict[str, Any]:
    """What is known of a study: its attributes and those that searches compute."""
    return {
        **attributes,
        _STUDY_UID: element("UI", study_uid),
        _AVAILABILITY: _ONLINE,
        _MODALITIES: element("CS", *modalities),
        _SOP_CLASSES: element("UI", *sop_classes),
        _STUDY_SERIES: element("IS", series),
        _STUDY_INSTANCES: element("IS", instances),
    }


def series_view(attributes: Attributes, study_uid: str, series_uid: str, instances: int) -> dict[str, Any]:
    """What is known of a series: the attributes of its image set and the count."""
    return {
        **attributes,
        _STUDY_UID: element("UI", study_uid),
        _SERIES_UID: element("UI", series_uid),
        _SERIES_INSTANCES: element("IS", instances),
    }


_NOTHING: Final[Attributes] = MappingProxyType({})


def views_of(study: Attributes, series: Attributes = _NOTHING, instance: Attributes = _NOTHING) -> Views:
    """The views of one row; the study's serves the patient too."""
    return {Level.PATIENT: study, Level.STUDY: study, Level.SERIES: series, Level.INSTANCE: instance}


def modalities_of(sets: Iterable[Attributes]) -> list[str]:
    """ModalitiesInStudy: sorted, each once."""
    return sorted({text for attributes in sets if (text := text_value(attributes, MODALITY))})


def roll_up(held: Iterable[Held]) -> list[tuple[Attributes, list[Held]]]:
    """Studies with their image sets: newest update first; the sets by SeriesNumber, then UID (HI-01)."""
    studies: dict[str, list[Held]] = {}
    for one in held:
        studies.setdefault(one.study_uid, []).append(one)
    result = []
    for uid, sets in studies.items():
        sets.sort(key=lambda one: one.updated)
        view = study_view(
            fold(study_part(one.attributes) for one in sets),
            uid,
            modalities_of(one.attributes for one in sets),
            len({one.series_uid for one in sets}),
            sum(one.instances for one in sets),
            sorted(frozenset().union(*(one.sop_classes for one in sets))),
        )
        newest = sets[-1].updated
        sets.sort(key=lambda one: (*number_order(one.attributes, SERIES_NUMBER), one.series_uid))
        result.append((newest, view, sets))
    result.sort(key=lambda study: study[0], reverse=True)
    return [(view, sets) for _, view, sets in result]


def whole_number(attributes: Attributes, tag: int) -> int | None:
    """A number that orders rows; None without one."""
    number = number_of(text_value(attributes, tag))
    if number is None or number != number.to_integral_value() or abs(number) > LARGEST:
        return None
    return int(number)


def number_order(attributes: Attributes, tag: int) -> tuple[bool, int]:
    """Sorts by a number attribute, rows without it last."""
    number = whole_number(attributes, tag)
    return number is None, number or 0


def patients(studies: Iterable[Attributes]) -> list[dict[str, Any]]:
    """What is known of each patient, from the views of all studies, newest first.

    A patient is one identifier of one issuer; without an identifier, one name with one birth date. Ordered by
    identifier and issuer.
    """
    grouped: dict[tuple[str, ...], list[Attributes]] = {}
    for study in studies:
        key: tuple[str, ...] = (text_value(study, PATIENT_ID), text_value(study, ISSUER_OF_PATIENT_ID))
        if not key[0]:
            names = study.get(hexadecimal(PATIENT_NAME), {}).get("Value", ())
            key += (*(form for name in names for form in name_forms(name)), text_value(study, PATIENT_BIRTH_DATE))
        grouped.setdefault(key, []).append(study)
    return [_patient(grouped[key]) for key in sorted(grouped)]


def _patient(studies: Sequence[Attributes]) -> dict[str, Any]:
    def total(tag: str) -> int:
        return sum(study[tag]["Value"][0] for study in studies)

    own = [
        {tag: element for tag, element in study.items() if level_in_search(int(tag, 16)) is Level.PATIENT}
        for study in reversed(studies)
    ]
    return {
        **fold(own),
        hexadecimal(PATIENT_STUDIES): element("IS", len(studies)),
        hexadecimal(PATIENT_SERIES): element("IS", total(_STUDY_SERIES)),
        hexadecimal(PATIENT_INSTANCES): element("IS", total(_STUDY_INSTANCES)),
    }


def page(found: Sequence[T], query: DicomQuery) -> tuple[Sequence[T], int]:
    """The page that a query asks of all matches, and how many are left after it."""
    end = len(found) if query.limit is None else query.offset + query.limit
    return found[query.offset : end], max(0, len(found) - max(end, query.offset))


Instances = Callable[[Held], Iterable[Attributes]]


def answer(ready: Answering, held: Iterable[Held], instances: Instances) -> SearchAnswer:
    """The answer over all image sets of each study that may match; `instances` gives those of one image set."""
    query = ready.query
    found: Sequence[Views]
    if query.level is Level.PATIENT:
        found = [views_of(patient) for patient in patients(view for view, _ in roll_up(held))]
        found = [views for views in found if fulfils(views, ready.conditions)]
    else:
        found = list(_matches(ready, held, instances))
    rows, remaining = page(found, query)
    return SearchAnswer([ready.row(views) for views in rows], remaining)


def _matches(ready: Answering, held: Iterable[Held], instances: Instances) -> Iterable[Views]:
    level = ready.query.level
    of_study, of_series = ready.above(Level.STUDY), ready.above(Level.SERIES)
    kept: list[tuple[Held, Views]] = []
    for study, sets in roll_up(held):
        if not fulfils(views_of(study), of_study):
            continue
        if level is Level.STUDY:
            yield views_of(study)
            continue
        for one in sets:
            views = views_of(study, series_view(one.attributes, one.study_uid, one.series_uid, one.instances))
            if not fulfils(views, of_series):
                continue
            if level is Level.SERIES:
                yield views
            else:
                kept.append((one, views))
    # Instances of several series: newest update first; of one: by number (HI-01).
    for one, views in sorted(kept, key=lambda pair: pair[0].updated, reverse=True):
        for instance in sorted(instances(one), key=_instance_order):
            whole: Views = {**views, Level.INSTANCE: instance}
            if fulfils(whole, ready.conditions):
                yield whole


def _instance_order(instance: Attributes) -> tuple[bool, int, str]:
    return *number_order(instance, INSTANCE_NUMBER), text_value(instance, SOP_INSTANCE_UID)


# ---------------------------------------------------------------- what SearchImageSets can be asked

_EQUAL: Final = {
    SERIES_UID: "DICOMSeriesInstanceUID",
    STUDY_UID: "DICOMStudyInstanceUID",
    ACCESSION_NUMBER: "DICOMAccessionNumber",
    STUDY_ID: "DICOMStudyId",
    PATIENT_ID: "DICOMPatientId",
}
"""Strongest first."""


def criteria(query: DicomQuery) -> SearchCriteria:
    """The strongest filter that a query implies: some image set of each study that matches passes it."""
    primary = Criterion("isPrimary", (True,))
    keys = {key.path[0]: key for key in query.keys if len(key.path) == 1 and len(key.values) == 1}
    for tag, name in _EQUAL.items():
        if tag in keys:
            value = padding_cut(keys[tag].vr, keys[tag].values[0])
            if value and not is_pattern(value):
                return SearchCriteria((Criterion(name, (value,)), primary))
    if STUDY_DATE in keys and (days := _days(keys[STUDY_DATE])):
        return SearchCriteria((Criterion("DICOMStudyDateAndTime", days), primary))
    return SearchCriteria((primary,))


def _days(key: Key) -> tuple[tuple[str, str], tuple[str, str]] | None:
    if not key.values[0].strip("* \0"):
        return None
    bounds = time_range(key, key.values[0])
    return (bounds.low or "00010101", "000000"), (bounds.high or "99991231", "235959.999999")


def is_complete(asked: SearchCriteria) -> bool:
    """Whether the answers of these criteria hold all primary image sets of each study they touch."""
    return all(criterion.key in ("isPrimary", "DICOMStudyInstanceUID") for criterion in asked.filters)


def tagged(tags: Mapping[str, str | int]) -> tuple[str, str]:
    """StudyInstanceUID and SeriesInstanceUID of a SearchImageSets summary."""
    return str(tags.get("DICOMStudyInstanceUID", "")), str(tags.get("DICOMSeriesInstanceUID", ""))
