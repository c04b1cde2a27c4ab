"""Copies of image sets: what may be copied where, and what stays with the copied instances (API: CopyImageSet).

Messages name levels and attributes, never values, and keep to the API's alphabet, as those of `edits` do.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from .edits import Changes
from .errors import InvalidInput
from .metadata import Levels
from .values import private_vrs

MAX_SUBSET_CHARACTERS: Final = 260_000
"""Of `copiableAttributes` (API: DICOMCopies)."""

Subset = Mapping[str, frozenset[str]]
"""Series Instance UID -> SOP Instance UIDs; an empty set means the whole series."""


def parse_subset(text: str) -> Subset:
    """The instances that `copiableAttributes` names.

    Its form is `{"SchemaVersion": "1.1", "Study": {"Series": {uid: {"Instances": {uid: {}}}}}}`; a series without
    `Instances` is copied whole. Raises InvalidInput.
    """
    try:
        document = _member(orjson.loads(text), "copiableAttributes", "SchemaVersion", "Study")
    except orjson.JSONDecodeError as fault:
        raise InvalidInput(f"copiableAttributes is not JSON: see line {fault.lineno}, column {fault.colno}.") from None
    version = document.get("SchemaVersion", 1.1)
    if isinstance(version, bool) or version not in (1.1, "1.1"):
        raise InvalidInput("SchemaVersion is not 1.1.")
    study = _member(document.get("Study", {}), "Study", "Series")
    subset = {}
    for series_uid, node in _member(study.get("Series", {}), "Series").items():
        series = _member(node, "A series", "Instances")
        instances = _member(series.get("Instances", {}), "Instances")
        if "Instances" in series and not instances:
            raise InvalidInput(
                "copiableAttributes names a series with Instances, but none of them. Leave Instances out."
            )
        for instance in instances.values():
            _member(instance, "An instance")
        subset[series_uid] = frozenset(instances)
    if not subset:
        raise InvalidInput("copiableAttributes names nothing to copy. Leave DICOMCopies out to copy all instances.")
    return subset


def _member(value: Any, name: str, *allowed: str) -> Mapping[str, Any]:
    """A JSON object with no member but the allowed ones; without any of these its members are UIDs."""
    if not isinstance(value, dict):
        raise InvalidInput(f"{name} of copiableAttributes is not a JSON object.")
    if allowed and not value.keys() <= set(allowed):
        raise InvalidInput(f"{name} of copiableAttributes has an unknown member. Possible: {', '.join(allowed)}.")
    return value


def difference(source: Levels, destination: Levels) -> str | None:
    """The first level, of Patient, Study and Series, whose attributes differ; None where they are consistent.

    Both in document form with their edits. Absent and empty attributes are equal, and padding does not count.
    """
    for level in ("Patient", "Study", "Series"):
        if _plain(source.get(level, {})) != _plain(destination.get(level, {})):
            return level
    return None


def mismatch(level: str) -> str:
    """What a copy that fails for a difference says."""
    return f"INVALID_REQUEST: {level} of SourceImageSet and DestinationImageSet don't match."


def adopted(source: Levels, destination: Levels) -> Changes:
    """What an instance takes over of the destination's Patient, Study and Series, where these are not its own."""
    values: dict[str, Any] = {}
    removed: set[str] = set()
    vrs: dict[str, str] = {}
    for level in ("Patient", "Study", "Series"):
        before, after = source.get(level, {}), destination.get(level, {})
        for keyword, value in after.items():
            if keyword not in before or _bare(before[keyword]) != _bare(value):
                values[keyword] = value
                vrs.update(private_vrs(value))
        removed |= before.keys() - after.keys()
    return Changes(values, vrs, frozenset(removed - values.keys()))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {keyword: bare for keyword, value in values.items() if (bare := _bare(value)) is not None}


def _bare(value: Any) -> Any:
    if isinstance(value, list):
        return [_bare(single) for single in value] or None
    return value.strip(" \0") or None if isinstance(value, str) else value
