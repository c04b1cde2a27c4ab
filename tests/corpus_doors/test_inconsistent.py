"""Files that contradict each other land in exactly the image sets that the grouping rules demand, and none is lost.

The rules (the seven grouping elements, and when a group is primary) are written down here once more, so that they are
compared with the gateway's and not with themselves.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.corpus import CORPUS
from tests.corpus_doors.compare import differences
from tests.corpus_doors.doors import Dimse, ImageSets, Stow
from tests.corpus_doors.samples import Sample, samples
from tests.makers import instance, pixels, uid
from tests.running import RunningGateway

GROUPING = (
    *("StudyInstanceUID", "SeriesInstanceUID", "StudyDate", "AccessionNumber", "PatientID", "StudyID"),
    "SeriesNumber",
)
Key = tuple[str, ...]
Held = Counter[tuple[bool, Key, frozenset[str]]]
"""Image sets: primary, grouping elements, SOP Instance UIDs."""


def conflicting(folder: Path) -> list[list[Sample]]:
    """Folders of files that contradict each other: the corpus', or made ones."""
    if CORPUS is not None:
        folders: dict[str, list[Sample]] = {}
        for sample in samples():
            if sample.name.startswith("series-inconsistent/"):
                folders.setdefault(sample.name.rpartition("/")[0], []).append(sample)
        return list(folders.values())
    changed: Sequence[dict[str, Any]] = (
        *({}, {}, {"PatientID": "P2"}, {"StudyDate": "20240103"}, {"PatientName": "Roe^Jane"}),
        *({"StudyInstanceUID": uid(92)}, {"SeriesNumber": 2}, {"SeriesDescription": "Other"}, {"PatientID": "P2"}),
    )
    made = []
    for number, attributes in enumerate(changed):
        path = folder / f"{number}.dcm"
        uids = (attributes.get("StudyInstanceUID", uid(91)), uid(91, 1), uid(91, 1, number + 1))
        path.write_bytes(instance(*uids, pixels(number), **attributes))
        made.append(Sample(path.name, path, True, True, uids, "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"))
    path = folder / "again.dcm"
    path.write_bytes(instance(*made[0].uids or ("", "", ""), pixels(99)))
    made.append(Sample(path.name, path, True, True, made[0].uids, made[0].sop_class, made[0].syntax))
    return [made]


def expected(jobs: Iterable[Sequence[Sample]]) -> Held:
    """What healthimaging.md 6.1 makes of the jobs, one after another."""
    study_of: dict[str, Key] = {}
    primary_of: dict[str, Key] = {}
    members: dict[Key, set[str]] = {}
    beside: Held = Counter()
    for job in jobs:
        groups: dict[Key, set[str]] = {}
        for sample in job:
            read = sample.data_set
            key = tuple(str(read.get(keyword) or "").strip(" \0") for keyword in GROUPING)
            groups.setdefault(key, set()).add(str(read.SOPInstanceUID))
        for key in sorted(groups):
            study, series = key[:2]
            of_study, of_series = study_of.get(study), primary_of.get(series)
            conflict = of_study is not None and of_study[2:6] != key[2:6]
            conflict = conflict or (of_series is not None and (of_series[0], of_series[6]) != (study, key[6]))
            if conflict:
                beside[False, key, frozenset(groups[key])] += 1
            else:
                study_of.setdefault(study, key)
                primary_of.setdefault(series, key)
                members.setdefault(key, set()).update(groups[key])
    return beside + Counter((True, key, frozenset(uids)) for key, uids in members.items())


def held(gateway: RunningGateway, http: httpx.Client) -> tuple[Held, dict[tuple[str, str], list[str]]]:
    """The image sets that there are, and in which ones (of series and SOP Instance UID) an instance is."""
    found: Held = Counter()
    places: dict[tuple[str, str], list[str]] = {}
    for summary in ImageSets(gateway, http).search():
        document = ImageSets(gateway, http).document(summary["imageSetId"])
        (series,) = document["Study"]["Series"].values()
        levels = {**document["Patient"]["DICOM"], **document["Study"]["DICOM"], **series["DICOM"]}
        key = tuple(str(levels.get(keyword) or "").strip() for keyword in GROUPING)
        found[summary["isPrimary"], key, frozenset(series["Instances"])] += 1
        for sop_uid in series["Instances"]:
            places.setdefault((key[1], sop_uid), []).append(summary["imageSetId"])
    return found, places


@pytest.mark.parametrize("way", ["stow-folders", "stow-files", "c-store-folders", "c-store-files"])
def test_conflicting_files(gateway: RunningGateway, http: httpx.Client, way: str, tmp_path: Path) -> None:
    folders = conflicting(tmp_path)
    by_folder = way.endswith("folders")
    jobs = folders if by_folder else [[sample] for folder in folders for sample in folder]
    door = (Stow if way.startswith("stow") else Dimse)(gateway, http)
    for job in jobs:
        door.send_all(job)

    wanted = expected(jobs)
    assert any(not primary for primary, _, _ in wanted)
    found, places = held(gateway, http)
    assert found == wanted

    sets = ImageSets(gateway, http)
    for sample in (sample for folder in folders for sample in folder):
        assert sample.uids is not None
        states = [
            sets.instance(sample.uids, image_set, version)
            for image_set in places[sample.uids[1:]]
            for version in range(1, sets.latest_version(image_set) + 1)
        ]
        assert any(
            state is not None and not [*differences(sample.data_set, state)] for state in states
        ), f"{sample.name} is in no version of its image sets"

    non_primary = {key for primary, key, _ in wanted if not primary}
    listed = http.get("/dicomweb/conflicts", params={"maxResults": 100}).json()["conflicts"]
    assert {(one["studyInstanceUID"], one["seriesInstanceUID"]) for one in listed} == {key[:2] for key in non_primary}
    assert len(listed) == sum(count for (primary, _, _), count in wanted.items() if not primary)
    assert all(one["attribute"] in GROUPING for one in listed)
