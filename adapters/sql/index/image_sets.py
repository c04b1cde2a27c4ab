"""SearchImageSets over the index: filters, order, pages and their tokens."""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from adapters.sql.index.clauses import BODY_PART, Where, between
from adapters.sql.index.session import Session, milliseconds
from gateway.domain.errors import InvalidInput
from gateway.domain.ids import ImageSetId
from gateway.domain.matching import MIDNIGHT, Interval, name_text, normal_time, text_value
from gateway.domain.model import Criterion, ImageSetSummary, SearchCriteria
from gateway.domain.query import (
    ACCESSION_NUMBER,
    MODALITY,
    PATIENT_BIRTH_DATE,
    PATIENT_ID,
    PATIENT_NAME,
    PATIENT_SEX,
    STUDY_DATE,
    STUDY_DESCRIPTION,
    STUDY_ID,
    STUDY_TIME,
    hexadecimal,
)

_SORTED: Final = 10_000
"""A filter with no more matches is answered by sorting them; a larger one by a walk in the order of the answer."""
_WORDS: Final = {
    "DICOMPatientId": "x.patient_id",
    "DICOMAccessionNumber": "x.accession",
    "DICOMStudyId": "x.study_id",
    "DICOMStudyInstanceUID": "x.study_uid",
    "DICOMSeriesInstanceUID": "x.series_uid",
}
_SORTS: Final[Mapping[str, tuple[str, ...]]] = {
    "updatedAt": ("x.updated_at",),
    "createdAt": ("x.created_at",),
    "DICOMStudyDateAndTime": ("x.study_date", "x.study_time"),
}
_TAGS: Final = {
    "DICOMPatientId": PATIENT_ID,
    "DICOMPatientBirthDate": PATIENT_BIRTH_DATE,
    "DICOMPatientSex": PATIENT_SEX,
    "DICOMStudyId": STUDY_ID,
    "DICOMStudyDescription": STUDY_DESCRIPTION,
    "DICOMAccessionNumber": ACCESSION_NUMBER,
    "DICOMSeriesModality": MODALITY,
    "DICOMSeriesBodyPart": BODY_PART,
    "DICOMStudyDate": STUDY_DATE,
    "DICOMStudyTime": STUDY_TIME,
}


def search_image_sets(
    session: Session, datastore_pk: int, criteria: SearchCriteria, size: int, token: str | None
) -> tuple[list[ImageSetSummary], str | None]:
    """`SqlIndex.search_image_sets` on a connection."""
    sort = _SORTS[criteria.sort_field]
    terms, params, sorts = ["x.datastore_pk=?"], [datastore_pk], False
    for criterion in criteria.filters:
        where = _criterion(criterion)
        walk = False
        if where.broad and not session.postgres and where.column != sort[0]:
            walk = _matches(session, datastore_pk, where) > _SORTED
            sorts = sorts or not walk
        terms.append(where.text(walk=walk))
        params += where.params
    keys = (*sort, "x.image_set_pk")
    digest = hashlib.sha256(repr((datastore_pk, criteria)).encode()).hexdigest()[:16]
    if token is not None:
        after = _read_token(token, digest, len(sort))
        terms.append(f"({', '.join(keys)}) {'>' if criteria.ascending else '<'} ({', '.join('?' * len(keys))})")
        params += after
    order = ", ".join(key + ("" if criteria.ascending else " DESC") for key in keys)
    if sorts:
        order = session.sorted_by(order)
    found = session.all(
        f"SELECT {', '.join(keys)} FROM set_index x WHERE {' AND '.join(terms)} ORDER BY {order} LIMIT ?",
        *params,
        size + 1,
    )
    next_token = _write_token(found[size - 1], digest) if len(found) > size else None
    pks = [key[-1] for key in found[:size]]
    wide = {
        row[0]: row
        for row in session.all(
            "SELECT x.image_set_pk, i.id, i.latest, x.is_primary, x.created_at, x.updated_at, x.attrs, x.study_uid, "
            "x.series_uid, x.number, x.n_instances, s.n_series, s.n_instances, i.accessed_at FROM set_index x "
            "JOIN image_set i ON i.pk=x.image_set_pk LEFT JOIN study s ON x.is_primary "
            f"AND s.datastore_pk=x.datastore_pk AND s.study_uid=x.study_uid WHERE x.image_set_pk {session.among}",
            session.values(pks),
        )
    }
    return [_summary(wide[pk]) for pk in pks if pk in wide], next_token


def _matches(session: Session, datastore_pk: int, where: Where) -> int:
    """How many image sets a filter finds by its index, as far as it matters."""
    rows = f"SELECT 1 FROM set_index x WHERE x.datastore_pk=? AND {where.text()} LIMIT {_SORTED + 1}"
    (count,) = session.first(f"SELECT count(*) FROM ({rows})", datastore_pk, *where.params)
    return int(count)


def _criterion(criterion: Criterion) -> Where:
    """A filter in SQL; `broad`: it has an index."""
    key, values = criterion.key, criterion.values
    if not 1 <= len(values) <= 2:
        raise InvalidInput(f"A filter on {key} takes one value, or two for BETWEEN")
    low, high = values[0], values[-1]
    if key in ("createdAt", "updatedAt"):
        column = {"createdAt": "x.created_at", "updatedAt": "x.updated_at"}[key]
        return Where("{c} BETWEEN ? AND ?", (milliseconds(low), milliseconds(high)), column, broad=True)
    if key == "DICOMStudyDateAndTime":
        where = between(Interval(_moment(low), _moment(high)))
        return replace(where, sql=where.sql.replace("s.", "x."), column="x.study_date")
    if len(values) == 2:
        raise InvalidInput(f"BETWEEN cannot be asked of {key}")
    if key == "isPrimary":
        return Where("x.is_primary" if low else "NOT x.is_primary", ())
    if key in _WORDS:
        # What the columns hold has no padding and no NUL.
        return Where("{c} = ?", (str(low).replace("\0", "").strip(),), _WORDS[key], broad=True)
    raise InvalidInput(f"{key} is no filter")


def _moment(value: tuple[str, str]) -> tuple[str, str]:
    """(YYYYMMDD, HHMMSS.FFFFFF), a time that is missing or short filled with zeros."""
    day, time = normal_time("DA", value[0]), normal_time("TM", value[1] or MIDNIGHT)
    if day is None or time is None:
        raise InvalidInput("DICOMStudyDateAndTime needs a date YYYYMMDD and a time HHMMSS.FFFFFF")
    return day, time


def _summary(row: Any) -> ImageSetSummary:
    (
        _,
        id_,
        version,
        primary,
        created,
        updated,
        text,
        study_uid,
        series_uid,
        number,
        own,
        series,
        instances,
        accessed,
    ) = row
    attributes = orjson.loads(text)
    tags: dict[str, str | int] = {name: value for name, tag in _TAGS.items() if (value := text_value(attributes, tag))}
    if names := attributes.get(hexadecimal(PATIENT_NAME), {}).get("Value"):
        tags["DICOMPatientName"] = name_text(names[0])
    tags["DICOMStudyInstanceUID"] = study_uid
    tags["DICOMSeriesInstanceUID"] = series_uid
    if number is not None:
        tags["DICOMSeriesNumber"] = number
    tags["DICOMNumberOfStudyRelatedSeries"] = 1 if series is None else series
    tags["DICOMNumberOfStudyRelatedInstances"] = own if instances is None else instances
    return ImageSetSummary(
        ImageSetId(id_),
        version,
        bool(primary),
        _datetime(created),
        _datetime(updated),
        tags,
        _datetime(accessed or created),
    )


def _datetime(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _write_token(key: Sequence[Any], digest: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([digest, *key])).decode()


def _read_token(token: str, digest: str, sorts: int) -> list[Any]:
    fault = InvalidInput("The nextToken is not one that this search has given")
    try:
        read = orjson.loads(base64.b64decode(token.encode(), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error):
        raise fault from None
    kinds = [int] if sorts == 1 else [str, str]
    if not isinstance(read, list) or len(read) != sorts + 2 or read[0] != digest:
        raise fault
    if not all(type(value) is kind for value, kind in zip(read[1:], [*kinds, int], strict=True)):
        raise fault
    return read[1:]
