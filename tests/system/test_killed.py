"""`kill -9` in the midst of an import job, an update and a copy, of the worker and of the whole gateway: what the
HealthImaging API tells before and afterwards is true, and nothing is lost, locked, doubled or skipped.

The worker is let on a slice of time at a time, and stands still (SIGSTOP) while the API is asked. The first time this
tells how many slices the work takes; then all is begun anew, and killed after most of them, or half: where the API says
that it is under way. What was over too soon is left to end well, and tried again, with an earlier kill.
"""

import contextlib
import gzip
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import boto3
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from campaigns.faces import Faces
from campaigns.instances import Instance, make
from campaigns.kill import half_visible
from tests.running import ALONE, RunningGateway

T = TypeVar("T")
ROLE = "arn:aws:iam::123456789012:role/ImportJobDataAccessRole"
STEPS = ("read", "bulk", "report")
"""The work items of an import job."""
COUNT = 40
"""Instances of each series: an import takes some tenths of a second, an update of them all some hundredths."""
_SLICE_S = 0.002
"""How long the worker goes on between two looks at it."""
_TRIES = 10
_PATIENCE_S = 60.0


@dataclass
class Killer:
    """A gateway, its API, and who of it is killed."""

    gateway: RunningGateway
    victim: str
    share: float
    """Of the work that is done when it comes."""
    s3: Path
    studies: Iterator[int]

    def __post_init__(self) -> None:
        session = boto3.Session("AKIDEXAMPLE", "secret", region_name="us-east-1")
        config = Config(inject_host_prefix=False, retries={"total_max_attempts": 1}, proxies={})
        self.api = session.client("medical-imaging", endpoint_url=self.gateway.http, config=config)

    # ------------------------------------------------------------ the API

    def on(self, image_set: str, operation: str, **given: Any) -> Any:
        """A call about an image set."""
        return getattr(self.api, operation)(datastoreId=self.gateway.datastore, imageSetId=image_set, **given)

    def status(self, image_set: str, version: str | None = None) -> tuple[str, str, str]:
        """What GetImageSet tells: version, state, workflow status."""
        got = self.on(image_set, "get_image_set", **({} if version is None else {"versionId": version}))
        return got["versionId"], got["imageSetState"], got["imageSetWorkflowStatus"]

    def versions(self, image_set: str) -> list[tuple[str, str, str]]:
        """What ListImageSetVersions tells, the newest first."""
        pages = self.api.get_paginator("list_image_set_versions").paginate(
            datastoreId=self.gateway.datastore, imageSetId=image_set
        )
        return [
            (one["versionId"], one["imageSetState"], one["ImageSetWorkflowStatus"])
            for page in pages
            for one in page["imageSetPropertiesList"]
        ]

    def document(self, image_set: str, version: str) -> bytes:
        """What GetImageSetMetadata answers, as it comes."""
        answer = self.on(image_set, "get_image_set_metadata", versionId=version)
        return answer["imageSetMetadataBlob"].read()  # type: ignore[no-any-return]

    def instances(self, image_set: str, version: str) -> dict[str, Any]:
        (series,) = json.loads(gzip.decompress(self.document(image_set, version)))["Study"]["Series"].values()
        return series["Instances"]  # type: ignore[no-any-return]

    def settled(self, image_set: str) -> tuple[str, str, str]:
        """The status, once nothing holds the image set any more."""
        deadline = time.monotonic() + _PATIENCE_S
        while (found := self.status(image_set))[1] == "LOCKED":
            assert time.monotonic() < deadline, f"LOCKED for ever:\n{self.gateway.log.read_text()[-3000:]}"
            time.sleep(0.01)
        return found

    def job(self, job: str) -> dict[str, Any]:
        answer = self.api.get_dicom_import_job(datastoreId=self.gateway.datastore, jobId=job)
        return answer["jobProperties"]  # type: ignore[no-any-return]

    def ended(self, job: str) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE_S
        while (found := self.job(job))["jobStatus"] in ("SUBMITTED", "IN_PROGRESS"):
            assert time.monotonic() < deadline, f"it does not end:\n{self.gateway.log.read_text()[-3000:]}"
            time.sleep(0.01)
        return found

    # ------------------------------------------------------------ killing

    def kill_in_the_midst(
        self,
        kind: str,
        prepare: Callable[[], T],
        begin: Callable[[T], None],
        is_over: Callable[[T], bool],
        look: Callable[[T], None],
    ) -> T:
        """Begins what was prepared, has the worker stand still in the midst of its work item of this kind, looks,
        kills, and starts again what was killed. `is_over` tells that there is nothing left of it."""
        limit: int | None = None
        for _ in range(_TRIES):
            prepared = prepare()
            with ThreadPoolExecutor(1) as pool:
                begun = pool.submit(begin, prepared)
                slices, is_caught = self._follow(kind, lambda: begun.done() and is_over(prepared), limit)  # noqa: B023
                begun.result(_PATIENCE_S)
            if is_caught:
                look(prepared)
                self._kill()
                return prepared
            limit = int(slices * (self.share if limit is None else 0.75))
        raise AssertionError(f"no {kind} was caught in {_TRIES} tries")

    def _follow(self, kind: str, is_over: Callable[[], bool], limit: int | None) -> tuple[int, bool]:
        """How many slices the worker went on with an item of this kind, and whether it stands still there: after
        `limit` of them, unless it was over before."""
        worker = psutil.Process(self.gateway.pids()["worker"])
        deadline = time.monotonic() + _PATIENCE_S
        slices = -1
        while True:
            stop(worker)
            is_running = self._is_running(kind)
            if slices >= 0 or is_running:
                slices += 1
            # A step of a job is over with its work item, an operation when the image set says so.
            if is_over() or (kind in STEPS and slices >= 0 and not is_running):
                worker.resume()
                return max(slices, 0), False
            if slices >= 0 and limit is not None and slices >= limit:
                return slices, True
            worker.resume()
            assert time.monotonic() < deadline, f"{kind} is not done"
            time.sleep(_SLICE_S)

    def _is_running(self, kind: str) -> bool:
        return bool(self.gateway.get("/queue").json()["work"].get(kind, {}).get("running"))

    def _kill(self) -> None:
        """SIGKILL to the worker, or to every process of the gateway; then it serves again."""
        if self.victim == "worker":
            before = self.gateway.restarts("worker")
            psutil.Process(self.gateway.pids()["worker"]).kill()
            self.gateway.wait_for_restart("worker", before)
            return
        family = psutil.Process(self.gateway.pid).children(recursive=True)
        self.gateway.kill()  # first, or it starts others
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _, alive = psutil.wait_procs(family, _PATIENCE_S)
        assert not alive
        self.gateway.restart()


def stop(process: psutil.Process) -> None:
    """Returns when it stands still."""
    process.suspend()
    deadline = time.monotonic() + _PATIENCE_S
    while process.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("killed")
    for bucket in ("incoming", "reports"):
        (folder / "s3" / bucket).mkdir(parents=True)
    started = RunningGateway(folder / "data", "--s3-root", str(folder / "s3"), env=ALONE)
    yield started
    started.close()


@pytest.mark.parametrize(
    ("victim", "share", "steps", "studies"),
    [("worker", 0.9, ("read", "report"), range(1, 100)), ("gateway", 0.5, ("bulk",), range(101, 200))],
    ids=["worker", "gateway"],
)
def test_killed_in_the_midst(
    running: RunningGateway, victim: str, share: float, steps: Sequence[str], studies: range
) -> None:
    """Of these steps of import jobs, an update and a copy. One gateway, several stations: starting costs seconds."""
    killer = Killer(running, victim, share, running.data.parent / "s3", iter(studies))
    with Faces(running) as faces:
        for step in steps:
            imported = an_import_job(killer, faces, step)
        an_update(killer, faces, imported)
        a_copy(killer, faces, imported)


# ---------------------------------------------------------------- stations


@dataclass(frozen=True)
class Imported:
    """An image set, and what was sent for it."""

    image_set: str
    sent: list[Instance]

    @property
    def study(self) -> str:
        return self.sent[0].study

    @property
    def series(self) -> str:
        return self.sent[0].series

    @property
    def sops(self) -> list[str]:
        return sorted(instance.sop for instance in self.sent)

    def faults(self, faces: Faces) -> list[str]:
        """What QIDO-RS, WADO-RS and the API do not agree upon, or show otherwise than it was sent."""
        return half_visible(faces, self.study, {instance.sop: instance for instance in self.sent})


def seen(faces: Faces, study: str) -> Counter[str]:
    """The instances of a study that QIDO-RS shows, and how often."""
    return Counter(row["00080018"]["Value"][0] for row in faces.rows(f"/studies/{study}/instances"))


def an_import_job(killer: Killer, faces: Faces, step: str) -> Imported:
    """Killed while it reads the bucket, publishes, or writes its folder."""
    jobs: dict[str, str] = {}

    def prepare() -> list[Instance]:
        number = next(killer.studies)
        sent = [make(31, number, 1, place) for place in range(1, COUNT + 1)]
        folder = killer.s3 / "incoming" / sent[0].study
        folder.mkdir()
        for place, instance in enumerate(sent):
            (folder / f"{place:03}.dcm").write_bytes(instance.part10)
        (folder / "notes.txt").write_bytes(b"not DICOM")
        return sent

    def begin(sent: list[Instance]) -> None:
        started = killer.api.start_dicom_import_job(
            datastoreId=killer.gateway.datastore,
            dataAccessRoleArn=ROLE,
            inputS3Uri=f"s3://incoming/{sent[0].study}/",
            outputS3Uri="s3://reports/",
        )
        assert started["jobStatus"] == "SUBMITTED"
        jobs[sent[0].study] = started["jobId"]

    def is_over(sent: list[Instance]) -> bool:
        return killer.job(jobs[sent[0].study])["jobStatus"] == "COMPLETED"

    def look(sent: list[Instance]) -> None:
        told = killer.job(jobs[sent[0].study])
        # A moment after it is taken up a job still is SUBMITTED.
        assert told["jobStatus"] in (("IN_PROGRESS", "SUBMITTED") if step == "read" else ("IN_PROGRESS",))
        assert "endedAt" not in told
        # The manifest is written last, and then the job ends.
        assert step == "report" or not output(killer, told).exists()
        assert seen(faces, sent[0].study).total() == (COUNT if step == "report" else 0)

    sent = killer.kill_in_the_midst(step, prepare, begin, is_over, look)
    job = jobs[sent[0].study]
    told = killer.ended(job)
    assert (told["jobStatus"], told.get("message")) == ("COMPLETED", None)
    assert told["submittedAt"] <= told["endedAt"]

    (image_set,) = [one["imageSetId"] for one in faces.image_sets(sent[0].study)]
    place = {"imageSetId": image_set, "imageSetVersion": 1, "isPrimary": True}
    folder = output(killer, told)
    summary = json.loads((folder / "job-output-manifest.json").read_bytes())["jobSummary"]
    counts = {key: value for key, value in summary.items() if key.startswith("numberOf")}
    assert counts == {
        "numberOfScannedFiles": COUNT + 1,
        "numberOfImportedFiles": COUNT,
        "numberOfFilesWithCustomerError": 1,
        "numberOfFilesWithServerError": 0,
        "numberOfGeneratedImageSets": 1,
    }
    assert summary["imageSetsSummary"] == [place | {"numberOfMatchedSOPInstances": COUNT}]
    prefix = told["inputS3Uri"].removeprefix("s3://incoming/")
    assert lines(folder, "success") == [
        {"inputFile": f"{prefix}{number:03}.dcm", "importResponse": place} for number in range(COUNT)
    ]
    assert [line["inputFile"] for line in lines(folder, "failure")] == [f"{prefix}notes.txt"]
    assert lines(folder, "warning") == []

    assert killer.versions(image_set) == [("1", "ACTIVE", "CREATED")]
    imported = Imported(image_set, sent)
    assert seen(faces, imported.study) == Counter(imported.sops), "every one is there once"
    assert imported.faults(faces) == []
    return imported


def output(killer: Killer, told: dict[str, Any]) -> Path:
    return killer.s3 / str(told["outputS3Uri"]).removeprefix("s3://")


def lines(folder: Path, kind: str) -> list[Any]:
    """The lines of one kind of a job's folder."""
    return [json.loads(line) for line in (folder / kind.upper() / f"{kind}.ndjson").read_bytes().splitlines()]


def an_update(killer: Killer, faces: Faces, imported: Imported) -> None:
    """Of every instance."""
    image_set, series, sops = imported.image_set, imported.series, imported.sops
    before: list[tuple[str, str, str]] = []
    documents: dict[str, bytes] = {}

    def prepare() -> str:
        latest, *_ = killer.settled(image_set)
        before[:] = killer.versions(image_set)
        documents.update({version: killer.document(image_set, version) for version, *_ in before})
        return str(int(latest) + 1)

    def begin(version: str) -> None:
        begin_update(killer, image_set, series, sops, version)

    def is_over(version: str) -> bool:
        return killer.status(image_set) == (version, "ACTIVE", "UPDATED")

    def look(version: str) -> None:
        assert killer.status(image_set) == (version, "LOCKED", "UPDATING")
        assert killer.versions(image_set) == [(version, "LOCKED", "UPDATING"), *before]
        assert_unreadable(killer, image_set, version)
        assert {known: killer.document(image_set, known) for known in documents} == documents

    version = killer.kill_in_the_midst("update", prepare, begin, is_over, look)
    assert killer.settled(image_set) == (version, "ACTIVE", "UPDATED")
    assert killer.versions(image_set) == [(version, "ACTIVE", "UPDATED"), *before]
    assert {known: killer.document(image_set, known) for known in documents} == documents
    assert comments(killer, image_set, version) == dict.fromkeys(sops, f"version {version}")
    assert imported.faults(faces) == []

    # Nothing was left behind: the next one has the next number.
    after = str(int(version) + 1)
    begin_update(killer, image_set, series, sops[:1], after)
    assert killer.settled(image_set) == (after, "ACTIVE", "UPDATED")
    assert comments(killer, image_set, after) == comments(killer, image_set, version) | {sops[0]: f"version {after}"}


def begin_update(killer: Killer, image_set: str, series: str, sops: list[str], version: str) -> None:
    """Accepted as this version."""
    changed = {sop: {"DICOM": {"ImageComments": f"version {version}"}} for sop in sops}
    document = {"SchemaVersion": 1.1, "Study": {"Series": {series: {"Instances": changed}}}}
    answer = killer.on(
        image_set,
        "update_image_set_metadata",
        latestVersionId=str(int(version) - 1),
        updateImageSetMetadataUpdates={"DICOMUpdates": {"updatableAttributes": json.dumps(document).encode()}},
    )
    assert answer["latestVersionId"] == version
    assert (answer["imageSetState"], answer["imageSetWorkflowStatus"]) == ("LOCKED", "UPDATING")


def comments(killer: Killer, image_set: str, version: str) -> dict[str, str | None]:
    return {sop: one["DICOM"].get("ImageComments") for sop, one in killer.instances(image_set, version).items()}


def a_copy(killer: Killer, faces: Faces, imported: Imported) -> None:
    """Of half the instances into an image set that has the others."""
    source, series, sops = imported.image_set, imported.series, imported.sops
    latest, *_ = killer.settled(source)
    history = killer.versions(source)
    documents = {version: killer.document(source, version) for version, *_ in history}

    def copy(some: list[str], into: str | None) -> str:
        subset = {"SchemaVersion": "1.1", "Study": {"Series": {series: {"Instances": {sop: {} for sop in some}}}}}
        copies = {"copiableAttributes": json.dumps(subset)}
        information: dict[str, Any] = {"sourceImageSet": {"latestVersionId": latest, "DICOMCopies": copies}}
        if into is not None:
            information["destinationImageSet"] = {"imageSetId": into, "latestVersionId": "1"}
        answer = killer.api.copy_image_set(
            datastoreId=killer.gateway.datastore, sourceImageSetId=source, copyImageSetInformation=information
        )
        told = answer["destinationImageSetProperties"]
        assert (told["imageSetState"], told["imageSetWorkflowStatus"]) == ("LOCKED", "COPYING")
        return str(told["imageSetId"])

    def prepare() -> str:
        into = copy(sops[: COUNT // 2], None)
        assert killer.settled(into) == ("1", "ACTIVE", "COPIED")
        assert killer.settled(source) == (latest, "ACTIVE", "COPIED")
        documents["of the copy"] = killer.document(into, "1")
        return into

    def begin(into: str) -> None:
        assert copy(sops[COUNT // 2 :], into) == into

    def is_over(into: str) -> bool:
        return killer.status(into) == ("2", "ACTIVE", "COPIED")

    def look(into: str) -> None:
        assert killer.status(into) == ("2", "LOCKED", "COPYING")
        assert killer.versions(into) == [("2", "LOCKED", "COPYING"), ("1", "ACTIVE", "COPIED")]
        assert killer.status(source) == (latest, "LOCKED", "COPYING_WITH_READ_ONLY_ACCESS")
        assert_unreadable(killer, into, "2")
        assert_as_before(into)

    def assert_as_before(into: str) -> None:
        of_copy = {"of the copy": killer.document(into, "1")}
        assert {version: killer.document(source, version) for version, *_ in history} | of_copy == documents

    into = killer.kill_in_the_midst("copy", prepare, begin, is_over, look)
    assert killer.settled(into) == ("2", "ACTIVE", "COPIED")
    assert killer.settled(source) == (latest, "ACTIVE", "COPIED")
    assert killer.versions(into) == [("2", "ACTIVE", "COPIED"), ("1", "ACTIVE", "COPIED")]
    assert killer.versions(source) == [(latest, "ACTIVE", "COPIED"), *history[1:]]
    assert_as_before(into)
    assert killer.instances(into, "2") == killer.instances(source, latest)
    assert seen(faces, imported.study) == Counter(sops)
    begin_update(killer, into, series, sops[:1], "3")
    assert killer.settled(into) == ("3", "ACTIVE", "UPDATED")


def assert_unreadable(killer: Killer, image_set: str, version: str) -> None:
    """It is not there yet."""
    with pytest.raises(ClientError) as caught:
        killer.document(image_set, version)
    assert caught.value.response["Error"]["Code"] == "ConflictException"
