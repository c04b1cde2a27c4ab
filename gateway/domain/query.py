"""What QIDO-RS and C-FIND can ask (PS3.4 C.2.2.2, PS3.18 §10.6): one model for both protocols."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from .errors import InvalidInput
from .ids import DatastoreId, ImageSetId
from .levels import LEVELS, level_of

TagPath = tuple[int, ...]
"""Tags from the data set down into sequences, e.g. `(0x00400275, 0x00400009)`."""

Attributes = Mapping[str, Any]
"""A data set in DICOM JSON (PS3.18 F.2): 8 upper-case hexadecimal digits -> `{"vr", "Value"}`."""


class Level(StrEnum):
    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    INSTANCE = "IMAGE"


DEPTH: Final = {Level.PATIENT: 0, Level.STUDY: 1, Level.SERIES: 2, Level.INSTANCE: 3}


@dataclass(frozen=True, slots=True)
class Key:
    """One matching key: any of `values` matches; no values is universal matching (a return key)."""

    path: TagPath
    vr: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DicomQuery:
    """A search at one level of one data store."""

    datastore: DatastoreId
    level: Level
    keys: tuple[Key, ...] = ()
    include: frozenset[TagPath] = frozenset()
    include_all: bool = False
    limit: int | None = None
    offset: int = 0
    fuzzy: bool = False
    combined_datetime: bool = True
    """QIDO-12, CFIND-13: StudyDate and StudyTime ranges make one interval."""
    image_set: ImageSetId | None = None
    """Search this image set alone, primary or not."""
    as_of: datetime | None = None

    def single(self, tag: int) -> str | None:
        """The value of the key on `tag`, where there is one key with one value; None otherwise."""
        found = [key for key in self.keys if key.path == (tag,) and key.values]
        return found[0].values[0] if len(found) == 1 and len(found[0].values) == 1 else None


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """Rows in DICOM JSON (tag -> {"vr", "Value"}), each with the attributes asked for and those of its level.

    Series and instance rows always carry StudyInstanceUID and SeriesInstanceUID (QIDO-31). RetrieveURL is the
    surface's business. `remaining` counts the matches after this page (0 when there are none).
    """

    rows: list[dict[str, Any]]
    remaining: int = 0


# ---------------------------------------------------------------- the attributes

SPECIFIC_CHARACTER_SET: Final = 0x00080005
SOP_CLASS_UID: Final = 0x00080016
SOP_INSTANCE_UID: Final = 0x00080018
STUDY_DATE: Final = 0x00080020
STUDY_TIME: Final = 0x00080030
ACCESSION_NUMBER: Final = 0x00080050
QUERY_LEVEL: Final = 0x00080052
RETRIEVE_AE_TITLE: Final = 0x00080054
INSTANCE_AVAILABILITY: Final = 0x00080056
MODALITY: Final = 0x00080060
MODALITIES_IN_STUDY: Final = 0x00080061
SOP_CLASSES_IN_STUDY: Final = 0x00080062
REFERRING_PHYSICIAN: Final = 0x00080090
TIMEZONE_OFFSET: Final = 0x00080201
STUDY_DESCRIPTION: Final = 0x00081030
RETRIEVE_URL: Final = 0x00081190
PATIENT_NAME: Final = 0x00100010
PATIENT_ID: Final = 0x00100020
ISSUER_OF_PATIENT_ID: Final = 0x00100021
PATIENT_BIRTH_DATE: Final = 0x00100030
PATIENT_SEX: Final = 0x00100040
STUDY_UID: Final = 0x0020000D
SERIES_UID: Final = 0x0020000E
STUDY_ID: Final = 0x00200010
SERIES_NUMBER: Final = 0x00200011
INSTANCE_NUMBER: Final = 0x00200013
PATIENT_STUDIES: Final = 0x00201200
PATIENT_SERIES: Final = 0x00201202
PATIENT_INSTANCES: Final = 0x00201204
STUDY_SERIES: Final = 0x00201206
STUDY_INSTANCES: Final = 0x00201208
SERIES_INSTANCES: Final = 0x00201209
STEP_DATE: Final = 0x00400244
STEP_TIME: Final = 0x00400245
REQUEST_ATTRIBUTES: Final = 0x00400275

COMPUTED: Final[Mapping[int, Level]] = {
    PATIENT_STUDIES: Level.PATIENT,
    PATIENT_SERIES: Level.PATIENT,
    PATIENT_INSTANCES: Level.PATIENT,
    INSTANCE_AVAILABILITY: Level.PATIENT,
    MODALITIES_IN_STUDY: Level.STUDY,
    SOP_CLASSES_IN_STUDY: Level.STUDY,
    STUDY_SERIES: Level.STUDY,
    STUDY_INSTANCES: Level.STUDY,
    SERIES_INSTANCES: Level.SERIES,
}
"""Attributes that no data set holds: searches make them."""

SERIES_BESIDE: Final = frozenset({STEP_DATE, STEP_TIME})
"""Series keys (PS3.18 T10.6.1-5) that the HealthImaging document keeps with the instances."""

INSTANCE_ATTRIBUTES: Final = frozenset(
    {
        *(0x00080008, SOP_CLASS_UID, SOP_INSTANCE_UID, 0x00080022, 0x00080023, 0x0008002A, 0x00080032, 0x00080033),
        *(TIMEZONE_OFFSET, 0x00200012, INSTANCE_NUMBER, 0x00280008, 0x00280010, 0x00280011, 0x00280100),
    }
)
"""Instance attributes that an index keeps at hand; any other is read from the instance itself."""

RETURNED: Final[Mapping[Level, Mapping[int, bool]]] = {
    Level.PATIENT: {
        INSTANCE_AVAILABILITY: False,
        PATIENT_NAME: True,
        PATIENT_ID: True,
        ISSUER_OF_PATIENT_ID: False,
        PATIENT_BIRTH_DATE: True,
        PATIENT_SEX: True,
        PATIENT_STUDIES: True,
        PATIENT_SERIES: True,
        PATIENT_INSTANCES: True,
    },
    Level.STUDY: {
        STUDY_DATE: True,
        STUDY_TIME: True,
        ACCESSION_NUMBER: True,
        INSTANCE_AVAILABILITY: False,
        MODALITIES_IN_STUDY: True,
        REFERRING_PHYSICIAN: True,
        PATIENT_NAME: True,
        PATIENT_ID: True,
        PATIENT_BIRTH_DATE: True,
        PATIENT_SEX: True,
        STUDY_UID: True,
        STUDY_ID: True,
        STUDY_SERIES: True,
        STUDY_INSTANCES: True,
    },
    Level.SERIES: {
        MODALITY: True,
        0x0008103E: False,
        STUDY_UID: True,
        SERIES_UID: True,
        SERIES_NUMBER: True,
        SERIES_INSTANCES: True,
        STEP_DATE: False,
        STEP_TIME: False,
        REQUEST_ATTRIBUTES: False,
    },
    Level.INSTANCE: {
        SOP_CLASS_UID: True,
        SOP_INSTANCE_UID: True,
        INSTANCE_AVAILABILITY: False,
        TIMEZONE_OFFSET: False,
        STUDY_UID: True,
        SERIES_UID: True,
        INSTANCE_NUMBER: True,
        0x00280008: False,
        0x00280010: False,
        0x00280011: False,
        0x00280100: False,
    },
}
"""What each level always returns (PS3.18 T10.6.3-3..5). True: empty if it has no value; False: only if known."""


def _supported() -> dict[Level, frozenset[int]]:
    names = {"Patient": Level.PATIENT, "Study": Level.STUDY, "Series": Level.SERIES}
    own: dict[Level, set[int]] = {level: set() for level in Level}
    for tag, name in LEVELS.items():
        own[names[name]].add(tag)
    for tag, level in COMPUTED.items():
        own[level].add(tag)
    own[Level.SERIES] |= SERIES_BESIDE
    own[Level.INSTANCE] |= INSTANCE_ATTRIBUTES
    counts = {PATIENT_STUDIES, PATIENT_SERIES, PATIENT_INSTANCES}
    below = {deeper: set().union(*(own[level] for level in Level if DEPTH[level] <= DEPTH[deeper])) for deeper in Level}
    return {level: frozenset(tags if level is Level.PATIENT else tags - counts) for level, tags in below.items()}


SUPPORTED: Final[Mapping[Level, frozenset[int]]] = _supported()
"""What can be matched and returned at each level, levels above included. Instances can be asked for any attribute."""

UNMATCHED: Final = frozenset({SPECIFIC_CHARACTER_SET, QUERY_LEVEL, RETRIEVE_AE_TITLE, TIMEZONE_OFFSET})
"""Parts of a request that say how to read it; no key ever (QIDO-14, CFIND-11)."""

_NAMES: Final = {"Patient": Level.PATIENT, "Study": Level.STUDY, "Series": Level.SERIES, "Instance": Level.INSTANCE}


@lru_cache(maxsize=4096)
def level_in_search(tag: int) -> Level:
    """The level whose rows an attribute describes: as in the documents, but for what only searches know."""
    if tag in SERIES_BESIDE:
        return Level.SERIES
    return COMPUTED.get(tag) or _NAMES[level_of(tag)]


def supported(level: Level, tag: int) -> bool:
    """Whether a search at `level` can match and return an attribute."""
    return tag in SUPPORTED[level] or (
        level is Level.INSTANCE and level_in_search(tag) is Level.INSTANCE and tag >> 16 not in (0x0002, 0x7FE0)
    )


def is_private(tag: int) -> bool:
    """A private data element, not the creator of its block (PS3.5 §7.8.1)."""
    return bool(tag >> 16 & 1) and (tag & 0xFFFF) > 0xFF


def is_creator(tag: int) -> bool:
    """A Private Creator data element (PS3.5 §7.8.1)."""
    return bool(tag >> 16 & 1) and 0x10 <= (tag & 0xFFFF) <= 0xFF


def hexadecimal(tag: int) -> str:
    """The tag as DICOM JSON names it: 8 upper-case hexadecimal digits."""
    return f"{tag:08X}"


@lru_cache(maxsize=4096)
def vr_of(tag: int) -> str:
    """The VR of an attribute by the dictionary, the first where it has several; LO for a creator, UN if unknown."""
    if is_creator(tag):
        return "LO"
    try:
        return dictionary_VR(tag)[:2]
    except KeyError:
        return "UN"


def attribute_name(path: TagPath) -> str:
    """The path in keywords, for messages."""
    return ".".join(keyword_for_tag(tag) or hexadecimal(tag) for tag in path)


_HEX = re.compile(r"[0-9A-Fa-f]{8}")
_WORD = re.compile(r"[A-Za-z0-9.]{1,200}")


@lru_cache(maxsize=4096)
def attribute(text: str) -> TagPath:
    """The attribute that a query parameter names: keyword or 8 hexadecimal digits, dotted into sequences (QIDO-06).

    Raises InvalidInput for a word that is no attribute.
    """
    path = tuple(_tag(word, text) for word in text.split("."))
    for tag in path[:-1]:
        if not tag >> 16 & 1 and vr_of(tag) != "SQ":
            raise InvalidInput(f"{_shown(text)}: {attribute_name((tag,))} is no sequence; only sequences have items")
    return path


def _tag(word: str, text: str) -> int:
    if _HEX.fullmatch(word):
        tag = int(word, 16)
        if tag >> 16 & 1 or vr_of(tag) != "UN":
            return tag
    elif word:
        found = tag_for_keyword(word)
        if found is not None:
            return int(found)
    raise InvalidInput(f"{_shown(text)} is no DICOM attribute; give a keyword (case matters) or 8 hexadecimal digits")


def _shown(text: str) -> str:
    return text if _WORD.fullmatch(text) else "A parameter's name"


# ---------------------------------------------------------------- the rows


@dataclass(frozen=True, slots=True)
class Column:
    """One attribute of the rows."""

    tag: str
    level: Level
    blank: Mapping[str, str] | None
    """What stands in a row that lacks a value; None: the attribute is left out."""
    inner: tuple[TagPath, ...] = ()
    """Of a sequence: the attributes of its items that were asked for; all if empty."""


Views = Mapping[Level, Attributes]
"""What is known of one row, by level; a level below that of the row is missing."""


def columns(query: DicomQuery) -> tuple[Column, ...]:
    """The attributes of the rows, in order of their tags: those of the level, of levels above that no UID pins
    down (PS3.18 T10.6.3-4), the keys, and what was asked for beside. Lower levels are left out (QIDO-21)."""
    wanted: dict[int, bool] = dict(RETURNED[query.level])
    if query.level is Level.INSTANCE and query.single(SERIES_UID) is None:
        wanted.update(RETURNED[Level.SERIES])
    if query.level in (Level.SERIES, Level.INSTANCE) and query.single(STUDY_UID) is None:
        wanted.update(RETURNED[Level.STUDY])
    inner: dict[int, set[TagPath]] = {}
    if REQUEST_ATTRIBUTES in wanted:
        inner[REQUEST_ATTRIBUTES] = {(0x00400009,), (0x00401001,)}
    vrs: dict[int, str] = {}
    for key in query.keys:
        if key.path[0] not in UNMATCHED and _is_column(query.level, key.path[0]):
            _ask(key.path, wanted, inner)
            if len(key.path) == 1:
                vrs[key.path[0]] = key.vr
    for path in query.include:
        if _is_column(query.level, path[0]):
            _ask(path, wanted, inner)
    depth = DEPTH[query.level]
    return tuple(
        Column(
            hexadecimal(tag),
            level,
            {"vr": vr_of(tag) if vr_of(tag) != "UN" else vrs.get(tag, "UN")} if blank else None,
            tuple(sorted(inner.get(tag, ()))),
        )
        for tag, blank in sorted(wanted.items())
        if DEPTH[level := level_in_search(tag)] <= depth
    )


def _ask(path: TagPath, wanted: dict[int, bool], inner: dict[int, set[TagPath]]) -> None:
    tag, below = path[0], path[1:]
    if not below:
        inner.pop(tag, None)
    elif tag not in wanted or tag in inner:
        inner.setdefault(tag, set()).add(below)
    wanted[tag] = True


def _is_column(level: Level, tag: int) -> bool:
    # A private attribute stands where its creator reserved a block, in each instance anew: matching.private_elements.
    return not tag >> 16 & 1 and supported(level, tag)


def beyond_index(tag: int) -> bool:
    """Whether only the instance itself can tell an attribute's value."""
    return level_in_search(tag) is Level.INSTANCE and tag not in INSTANCE_ATTRIBUTES


def row(views: Views, chosen: Iterable[Column], everything: bool = False) -> dict[str, Any]:
    """One answer in DICOM JSON, tags ascending; `everything`: all that the views know (includefield=all)."""
    result: dict[str, Any] = {}
    for column in chosen:
        element = views[column.level].get(column.tag)
        if element is None:
            if column.blank is not None:
                result[column.tag] = column.blank
        elif column.inner and not everything:
            result[column.tag] = _pruned(element, column.inner)
        else:
            result[column.tag] = element
    if not everything:
        return result
    for level, view in views.items():
        for tag, element in view.items():
            if level_in_search(int(tag, 16)) is level:
                result[tag] = element
    return dict(sorted(result.items()))


def _pruned(element: Mapping[str, Any], inner: Iterable[TagPath]) -> dict[str, Any]:
    """A sequence whose items keep only the attributes that `inner` names."""
    items = []
    for item in element.get("Value", ()):
        kept: dict[str, Any] = {}
        deeper: dict[str, list[TagPath]] = {}
        for path in inner:
            deeper.setdefault(hexadecimal(path[0]), []).append(path[1:])
        for tag, below in sorted(deeper.items()):
            if item and tag in item:
                kept[tag] = item[tag] if () in below else _pruned(item[tag], below)
        items.append(kept)
    return {**element, "Value": items} if items else {"vr": element["vr"]}
