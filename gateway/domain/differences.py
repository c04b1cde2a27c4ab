"""What differs between two versions of an image set's metadata document."""

from collections.abc import Iterator, Mapping
from typing import Any


def between(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry for each attribute or instance that was added, removed or changed, in order of level and name.

    An entry has `level` (Patient, Study, Series or Instance), `series` and `instance` where it is about one, `change`
    (added, removed or changed), `attribute`, and `from` and `to` as far as there is a value. An entry without an
    attribute is about the whole instance; one whose UID has changed keeps its frames and is told as changed.
    """
    return list(_between(before, after))


def _between(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for level in ("Patient", "Study"):
        yield from _attributes({"level": level}, before[level]["DICOM"], after[level]["DICOM"])
    (old_uid, old), (new_uid, new) = (next(iter(document["Study"]["Series"].items())) for document in (before, after))
    yield from _attributes({"level": "Series", "series": old_uid}, old["DICOM"], new["DICOM"])
    old_instances, new_instances = old["Instances"], new["Instances"]
    renamed = _renamed(old_instances, new_instances)
    for uid in sorted(old_instances.keys() | (new_instances.keys() - set(renamed.values()))):
        place = {"level": "Instance", "series": new_uid, "instance": uid}
        current = renamed.get(uid, uid)
        if uid not in old_instances:
            yield {**place, "change": "added"}
        elif current not in new_instances:
            yield {**place, "change": "removed"}
        else:
            yield from _attributes(place, old_instances[uid]["DICOM"], new_instances[current]["DICOM"])


def _renamed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """SOP Instance UID -> its new value, found by the frames: they stay when an edit changes the UID."""
    gone = {_frames(old[uid]): uid for uid in old.keys() - new.keys() if old[uid]["ImageFrames"]}
    come = {_frames(new[uid]): uid for uid in new.keys() - old.keys() if new[uid]["ImageFrames"]}
    return {gone[frames]: come[frames] for frames in gone.keys() & come.keys()}


def _frames(instance: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(frame["ID"] for frame in instance["ImageFrames"])


def _attributes(
    place: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    for key in sorted(before.keys() | after.keys()):
        if key not in after:
            yield {**place, "attribute": key, "change": "removed", "from": before[key]}
        elif key not in before:
            yield {**place, "attribute": key, "change": "added", "to": after[key]}
        elif before[key] != after[key]:
            yield {**place, "attribute": key, "change": "changed", "from": before[key], "to": after[key]}
