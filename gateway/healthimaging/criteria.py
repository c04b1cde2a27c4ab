"""SearchImageSets criteria: what the service model cannot say about them (healthimaging.md 7)."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ..domain.errors import InvalidInput
from ..domain.model import Criterion, SearchCriteria

RANGES = frozenset({"createdAt", "updatedAt", "DICOMStudyDateAndTime"})
"""Keys for BETWEEN; the others are for EQUAL."""

_TIME = re.compile(r"([0-9]{6})(?:\.([0-9]{1,6}))?", re.ASCII)


def read(criteria: Mapping[str, Any]) -> SearchCriteria:
    """The decoded criteria of a request. Raises InvalidInput with every fault found, by the filter's position."""
    faults: list[str] = []
    filters = []
    for position, given in enumerate(criteria.get("filters", ()), 1):
        try:
            filters.append(_filter(given["operator"], given["values"]))
        except InvalidInput as fault:
            faults.append(f"filter {position}: {fault.detail}")
    if faults:
        raise InvalidInput("; ".join(faults))
    sort = criteria.get("sort", {})
    return SearchCriteria(tuple(filters), sort.get("sortField", "updatedAt"), sort.get("sortOrder") == "ASC")


def _filter(operator: str, values: list[dict[str, Any]]) -> Criterion:
    # The model makes sure of one or two values, each with exactly one key.
    keys = [key for value in values for key in value]
    key = keys[0]
    if operator == "EQUAL":
        if len(values) != 1:
            raise InvalidInput("EQUAL takes one value")
        if key in RANGES:
            raise InvalidInput(f"{key} is searched with BETWEEN and two values")
        return Criterion(key, (values[0][key],))
    if key not in RANGES:
        raise InvalidInput(f"{key} is searched with EQUAL; BETWEEN is for {', '.join(sorted(RANGES))}")
    if len(values) != 2 or keys[0] != keys[1]:
        raise InvalidInput("BETWEEN takes two values of the same key")
    low, high = values[0][key], values[1][key]
    if key == "DICOMStudyDateAndTime":
        if _moment(low) > _moment(high):
            raise InvalidInput("the lower value comes first")
        return Criterion(key, (_pair(low), _pair(high)))
    if low > high:
        raise InvalidInput("the lower value comes first")
    return Criterion(key, (low, high))


def _pair(value: Mapping[str, str]) -> tuple[str, str]:
    """DICOM date and time; a missing time is midnight."""
    return value["DICOMStudyDate"], value.get("DICOMStudyTime") or "000000"


def _moment(value: Mapping[str, str]) -> datetime:
    date, time = _pair(value)
    matched = _TIME.fullmatch(time)
    if matched and re.fullmatch("[0-9]{8}", date):
        try:
            return datetime.strptime(date + matched[1] + (matched[2] or "0"), "%Y%m%d%H%M%S%f")
        except ValueError:
            pass
    raise InvalidInput("DICOMStudyDate is YYYYMMDD and DICOMStudyTime is HHMMSS or HHMMSS.FFFFFF, both of real times")
