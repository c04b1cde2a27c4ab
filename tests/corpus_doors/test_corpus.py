"""Every file of the corpus through every door into one data store, held against what is known of it.

Well-formed: stored, found, and back with equal attributes and bit-equal frames. Broken: a clear answer, and no harm.
"""

import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import imagecodecs
import pydicom
import pynetdicom._config
import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pynetdicom import AE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from demo.network import undisturbed
from tests.corpus import CORPUS
from tests.corpus_doors.compare import differences, htj2k_decoded, parts, wrong_pixels
from tests.corpus_doors.doors import (
    AT_ONCE,
    Dimse,
    Door,
    ImageSets,
    Receipt,
    Stow,
    uids_of,
)
from tests.corpus_doors.samples import Sample, Uids, repeated, rounds, samples
from tests.makers import instance, uid
from tests.running import RunningGateway

EXPLICIT_LE = "1.2.840.10008.1.2.1"
HTJ2K = "1.2.840.10008.1.2.4.202"
NATIVE_FRAMES = f'multipart/related; type="application/octet-stream"; transfer-syntax={EXPLICIT_LE}'
STORED_FRAMES = 'multipart/related; type="*/*"; transfer-syntax=*'
COUNTS_AS_ENCODING = (0x00080005, 0x00082111)
"""Specific Character Set, and a transcoder's note in Derivation Description: what differs in these alone is identical
content, which makes no version."""


@pytest.fixture(params=[Stow, Dimse], ids=["stow", "c-store"])
def door(request: pytest.FixtureRequest, gateway: RunningGateway, http: httpx.Client) -> Door:
    made: Door = request.param(gateway, http)
    return made


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # as it reads UIDs that are none
def test_every_file(
    gateway: RunningGateway,
    http: httpx.Client,
    door: Door,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = samples()
    good = [file for file in files if file.well_formed]
    broken = [file for file in files if not file.well_formed]
    assert good
    assert broken
    pids = gateway.pids()
    table: Counter[str] = Counter()
    faults: list[str] = []

    receipts = send_well_formed(ImageSets(gateway, http), door, good, repeated(files))
    refusals = {file: receipt for file, receipt in receipts.items() if not receipt.stored}
    faults += [f"{file.name}: {receipt.code:04X} {receipt.message}" for file, receipt in refusals.items()]
    neighbours = send_broken(door, broken, tmp_path, table, faults)
    table["broken: acknowledged, then refused by the import"] = door.settle()

    table["well-formed: files"] = len(good)
    table["well-formed: stored"] = sum(receipt.stored and not receipt.code for receipt in receipts.values())
    table["well-formed: stored with a warning"] = sum(
        receipt.stored and bool(receipt.code) for receipt in receipts.values()
    )
    stored = {file: receipt for file, receipt in receipts.items() if receipt.stored}
    primary = {file.uids for file, receipt in stored.items() if receipt.image_set is None}
    beside = {file.uids for file, receipt in stored.items() if receipt.image_set is not None} - primary
    table["well-formed: in a non-primary image set"] = sum(bool(receipt.image_set) for receipt in stored.values())
    table["well-formed: compared at the version they made"] = sum(bool(receipt.version) for receipt in stored.values())

    found = {"QIDO-RS": searched(http), "C-FIND": queried(gateway, monkeypatch)}
    for way, rows in found.items():
        missing = (primary | {file.uids for file in neighbours}) - rows
        table[f"found by {way}"] = len(primary & rows)
        faults += [f"{uids} is not found by {way}" for uids in missing]
        faults += [f"{uids}, in a non-primary image set alone, is found by {way}" for uids in beside & rows]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = [pool.submit(returned, http, file, receipt, table, faults) for file, receipt in stored.items()]
        jobs += [pool.submit(returned, http, file, Receipt(True), Counter(), faults) for file in neighbours]
        for job in jobs:
            job.result()

    with capsys.disabled():
        print(f"\n{door.name}, {'the corpus' if CORPUS else 'the files of pydicom'}:")
        for what, count in sorted(table.items()):
            print(f"  {what:<55}{count:>6}")
    assert not faults, "\n".join(faults[:60])
    assert gateway.pids() == pids
    assert {gateway.restarts(role) for role in pids} == {0}
    assert gateway.get("/readyz").status_code == 200


def send_well_formed(held: ImageSets, door: Door, files: list[Sample], shared: set[str]) -> dict[Sample, Receipt]:
    """Sends the files; for those whose SOP Instance UID comes again, notes which version each has made.

    Within a round no SOP Instance UID comes twice, so that the latest version at its end has this round's content.
    """
    receipts: dict[Sample, Receipt] = {}
    for group in rounds(files):
        for file, receipt in door.send(group).items():
            assert receipt is not None, f"{file.name} cannot be sent"
            receipts[file] = receipt
            assert file.uids is not None
            receipt.follows = file.uids in {earlier.uids for earlier in receipts if earlier is not file}
            if receipt.stored and file.uids[2] in shared:
                image_set = receipt.image_set or held.primary_image_set(file.uids[1])
                receipt.version = held.latest_version(image_set)
    return receipts


def send_broken(
    door: Door, files: list[Sample], folder: Path, table: Counter[str], faults: list[str]
) -> list[Sample]:
    """Sends each broken file between two sound ones; these, which all must have been stored."""
    neighbours: list[Sample] = []
    table["broken: files"] = len(files)
    triples = [(neighbour(folder, 2 * n), file, neighbour(folder, 2 * n + 1)) for n, file in enumerate(files)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(door.send_between, triples))
    for (before, file, after), (first, answer, second) in zip(triples, answers, strict=True):
        if answer is None or first is None or second is None:
            table["broken: not sent: no Part 10 file, or no UIDs for a command"] += 1
            continue
        neighbours += before, after
        if not (first.stored and second.stored) or first.code or second.code:
            faults.append(f"{file.name} harmed its neighbours: {first}, {second}")
        if not answer.stored:
            table["broken: refused"] += 1
            if not answer.code or not answer.message:
                faults.append(f"{file.name}: no clear answer: {answer}")
        else:
            table[f"broken: stored{' with a warning' if answer.code else ''}"] += 1
    return neighbours


def neighbour(folder: Path, number: int) -> Sample:
    uids = (uid(7), uid(7, 1), uid(7, 1, number + 1))
    path = folder / f"neighbour-{number}.dcm"
    path.write_bytes(instance(*uids))
    return Sample(path.name, path, True, True, uids, "1.2.840.10008.5.1.4.1.1.2", EXPLICIT_LE)


def searched(http: httpx.Client) -> set[Uids]:
    """Every instance that QIDO-RS lists, by pages."""
    found: set[Uids] = set()
    while rows := http.get("/dicomweb/instances", params={"limit": 500, "offset": len(found)}).json():
        uids = {uids_of(row) for row in rows}
        assert len(uids) == len(rows)
        assert not uids & found
        found |= uids
    return found


def name_of(row: dict[str, Any]) -> str:
    """The patient's name with all its groups, out of DICOM JSON."""
    groups = row.get("00100010", {}).get("Value", [{}])[0]
    names = [groups.get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")]
    return "=".join(names).rstrip("=")


def queried(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> set[Uids]:
    """Every instance that C-FIND gives, study by study and series by series."""
    monkeypatch.setattr(pynetdicom._config, "LOG_RESPONSE_IDENTIFIERS", False)
    entity = AE(ae_title="CORPUS")
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    association = undisturbed(entity.associate(*gateway.dimse, ae_title=gateway.aet))
    assert association.is_established

    def ask(**keys: str) -> list[Dataset]:
        identifier = Dataset()
        for keyword, value in keys.items():
            setattr(identifier, keyword, value)
        answers = list(association.send_c_find(identifier, StudyRootQueryRetrieveInformationModelFind))
        assert answers[-1][0].Status == 0, answers[-1][0]
        while association._is_paused:  # its reactor would take answers to the next query
            time.sleep(0.001)
        return [row for _, row in answers[:-1] if row is not None]

    found: set[Uids] = set()
    for study in ask(QueryRetrieveLevel="STUDY", StudyInstanceUID=""):
        above = {"StudyInstanceUID": study.StudyInstanceUID}
        for series in ask(QueryRetrieveLevel="SERIES", **above, SeriesInstanceUID=""):
            within = above | {"SeriesInstanceUID": series.SeriesInstanceUID}
            if not re.fullmatch("[0-9.]+", str(series.SeriesInstanceUID)):
                continue  # broken files are stored with UIDs that no query may ask for
            for image in ask(QueryRetrieveLevel="IMAGE", **within, SOPInstanceUID=""):
                found.add((str(study.StudyInstanceUID), str(series.SeriesInstanceUID), str(image.SOPInstanceUID)))
    association.release()
    return found


def returned(
    http: httpx.Client, file: Sample, receipt: Receipt, table: Counter[str], faults: list[str]
) -> None:
    """Fetches an instance and its frames, and notes what is not as it was sent."""
    assert file.uids is not None
    url = "/dicomweb/studies/{}/series/{}/instances/{}".format(*file.uids)
    query = {"imageSetId": receipt.image_set, "version": receipt.version}
    params = {name: str(value) for name, value in query.items() if value is not None}
    if receipt.image_set is not None and http.get(url).status_code == 200 and not receipt.version:
        faults.append(f"{file.name}: in a non-primary image set, and yet there without imageSetId")
    answer = http.get(url, params=params, headers={"accept": "application/dicom"})
    if answer.status_code != 200:
        faults.append(f"{file.name}: {answer.status_code} {answer.text[:200]}")
        return
    sent, back = file.data_set, pydicom.dcmread(DicomBytesIO(answer.content))
    found = list(differences(sent, back, but=COUNTS_AS_ENCODING if receipt.follows else ()))
    table["back with equal attributes"] += not found
    faults += [f"{file.name}: {one}" for one in found[:5]]
    document = http.get(f"{url}/metadata", params=params)
    if document.status_code != 200 or len(document.json()) != 1:
        faults.append(f"{file.name}: metadata {document.status_code}")
    elif file.patient_name is not None:
        name = name_of(document.json()[0])
        table["patient names in all character sets"] += name == file.patient_name
        if name != file.patient_name:
            faults.append(f"{file.name}: the metadata say {name!r} for {file.patient_name!r}")
    if file.truth is None:
        return
    count = int(sent.get("NumberOfFrames") or 1)
    listed = ",".join(map(str, range(1, count + 1)))
    size = int(sent.Rows * sent.Columns * sent.SamplesPerPixel)
    answer = http.get(f"{url}/frames/{listed}", params=params, headers={"accept": NATIVE_FRAMES})
    if answer.status_code != 200:
        faults.append(f"{file.name}: frames {answer.status_code} {answer.text[:200]}")
        return
    got = parts(answer.headers["content-type"], answer.content)
    wrong = wrong_pixels([frame for _, frame in got], file.truth, size, sent.BitsAllocated)
    table["bit-equal as Explicit VR LE frames"] += wrong is None
    if wrong is not None:
        faults.append(f"{file.name}: Explicit VR LE: {wrong}")
    answer = http.get(f"{url}/frames/{listed}", params=params, headers={"accept": STORED_FRAMES})
    if answer.status_code != 200:
        faults.append(f"{file.name}: stored frames {answer.status_code} {answer.text[:200]}")
        return
    got = parts(answer.headers["content-type"], answer.content)
    if HTJ2K not in got[0][0]:
        return
    try:
        decoded = [htj2k_decoded(frame, sent.BitsAllocated) for _, frame in got]
    except imagecodecs.Jpeg2kError as error:
        faults.append(f"{file.name}: .202: {error}")
        return
    wrong = wrong_pixels(decoded, file.truth, size, sent.BitsAllocated)
    table["bit-equal as decoded .202 frames"] += wrong is None
    if wrong is not None:
        faults.append(f"{file.name}: .202: {wrong}")
