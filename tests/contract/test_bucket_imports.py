"""Import jobs from buckets: read, published, reported; and gone on with after an interruption (healthimaging.md 5)."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from adapters.blobs.buckets import FolderBuckets
from adapters.embedded import importing
from gateway.domain.errors import Conflict, Denied, InvalidInput, NotFound, QuotaExceeded
from gateway.domain.model import ImportJob, ImportRequest, JobStatus, PageRequest, Workflow
from tests.contract import invariants
from tests.contract.embedded import Store, close_process
from tests.contract.test_edits import STUDY, patient, slice_
from tests.makers import uid

ROLE = "arn:aws:iam::123456789012:role/ImportJobDataAccessRole"


def fill(store: Store, *files: tuple[str, bytes]) -> None:
    """The buckets for a test: `out` empty, `in` with these files alone."""
    for name in ("in", "out"):
        shutil.rmtree(store.data / "s3" / name, ignore_errors=True)
        (store.data / "s3" / name).mkdir(parents=True)
    for key, data in files:
        path = store.data / "s3" / "in" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def start(store: Store, prefix: str = "p/", **changes: Any) -> ImportJob:
    asked = {
        "name": "my-job",
        "role_arn": ROLE,
        "input_uri": f"s3://in/{prefix}",
        "output_uri": "s3://out/o/",
        **changes,
    }
    return store.do(store.web.backend.start_import(store.datastore, ImportRequest(**asked)))


def ended(store: Store, job: ImportJob) -> ImportJob:
    store.work()
    found = store.do(store.web.backend.get_import(store.datastore, job.id))
    assert found.ended_at is not None
    return found


def output(store: Store, job: ImportJob) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """The manifest's summary, and the lines of each kind."""
    assert job.output_uri is not None
    folder = store.data / "s3" / job.output_uri.removeprefix("s3://")
    lines = {
        kind: [json.loads(line) for line in (folder / kind.upper() / f"{kind}.ndjson").read_text().splitlines()]
        for kind in ("success", "failure", "warning")
    }
    return json.loads((folder / "job-output-manifest.json").read_bytes())["jobSummary"], lines


def test_a_job_imports_what_its_prefix_names_and_tells_each_file(store: Store) -> None:
    fill(
        store,
        ("p/a.dcm", slice_(1)),
        ("p/deep/er/b.dcm", slice_(2)),
        ("p/other.dcm", slice_(1, series=2)),
        ("p/notes.txt", b"not DICOM"),
        ("q/c.dcm", slice_(3)),
    )
    job = start(store)
    assert (job.status, job.name, job.source) == (JobStatus.SUBMITTED, "my-job", "import")
    job = ended(store, job)
    assert (job.status, job.message) == (JobStatus.COMPLETED, None)
    assert job.output_uri == f"s3://out/o/{store.datastore}-DicomImport-{job.id}/"
    assert set(store.sops(STUDY)) == {uid(1, 1, 1), uid(1, 1, 2), uid(1, 2, 1)}
    by_series = {s.tags["DICOMSeriesInstanceUID"]: s.id for s in store.search().values()}
    summary, lines = output(store, job)
    folder = job.output_uri
    assert summary == {
        "jobId": job.id,
        "datastoreId": store.datastore,
        "inputS3Uri": "s3://in/p/",
        "outputS3Uri": folder,
        "successOutputS3Uri": f"{folder}SUCCESS/",
        "failureOutputS3Uri": f"{folder}FAILURE/",
        "warningsOutputS3Uri": f"{folder}WARNING/",
        "numberOfScannedFiles": 4,
        "numberOfImportedFiles": 3,
        "numberOfFilesWithCustomerError": 1,
        "numberOfFilesWithServerError": 0,
        "numberOfGeneratedImageSets": 2,
        "imageSetsSummary": [
            {
                "imageSetId": by_series[uid(1, number)],
                "imageSetVersion": 1,
                "isPrimary": True,
                "numberOfMatchedSOPInstances": count,
            }
            for number, count in ((1, 2), (2, 1))
        ],
    }
    place = {"imageSetId": by_series[uid(1, 1)], "imageSetVersion": 1, "isPrimary": True}
    assert lines["success"][0] == {"inputFile": "p/a.dcm", "importResponse": place}
    assert [line["inputFile"] for line in lines["success"]] == ["p/a.dcm", "p/deep/er/b.dcm", "p/other.dcm"]
    assert lines["failure"] == [
        {
            "inputFile": "p/notes.txt",
            "exception": {"exceptionType": "ValidationException", "message": "DICOM attributes does not exist"},
        }
    ]
    assert lines["warning"] == []


def test_a_file_that_is_imported_with_a_warning_is_told_twice(store: Store) -> None:
    fill(store, ("p/w.dcm", slice_(1, NumberOfFrames=3)))
    summary, lines = output(store, ended(store, start(store)))
    assert (summary["numberOfImportedFiles"], summary["numberOfFilesWithCustomerError"]) == (1, 0)
    (success,), (warned,) = lines["success"], lines["warning"]
    (warning,) = warned["importResponse"].pop("warnings")
    assert warned == success
    assert (warning["warning_reason_code"], warning["type"]) in (
        (45329, "FrameNumberMismatch"),
        (45328, "FramesExtractionFailure"),
    )
    assert warning["message"]


def test_a_prefix_is_a_prefix_of_the_key_and_not_a_folder(store: Store) -> None:
    fill(store, ("input/a.dcm", slice_(1)), ("input2/b.dcm", slice_(2)), ("in/c.dcm", slice_(3)))
    assert output(store, ended(store, start(store, "input")))[0]["numberOfScannedFiles"] == 2
    assert store.sops(STUDY) == [uid(1, 1, 1), uid(1, 1, 2)]


def test_one_job_makes_one_version_of_an_image_set(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_SLICE", 2)
    fill(store, *((f"p/{number}.dcm", slice_(number)) for number in range(1, 6)))
    ended(store, start(store))
    (summary,) = store.search().values()
    assert summary.version == 1
    assert len(store.sops(STUDY)) == 5
    fill(store, *((f"r/{number}.dcm", slice_(number)) for number in range(4, 9)))
    told, _ = output(store, ended(store, start(store, "r/")))
    assert store.image_set(summary.id).version == 2
    assert told["imageSetsSummary"][0]["imageSetVersion"] == 2
    assert told["imageSetsSummary"][0]["numberOfMatchedSOPInstances"] == 5


def test_a_conflict_is_a_success_in_an_image_set_beside(store: Store) -> None:
    store.put(slice_(1))
    fill(store, ("p/a.dcm", slice_(2, PatientID="P2")))
    summary, lines = output(store, ended(store, start(store)))
    assert summary["imageSetsSummary"][0]["isPrimary"] is False
    assert lines["success"][0]["importResponse"]["isPrimary"] is False


def test_what_is_there_already_makes_no_version_but_is_told(store: Store) -> None:
    (first,) = store.put(slice_(1))
    fill(store, ("p/a.dcm", slice_(1)))
    summary, _ = output(store, ended(store, start(store)))
    assert (summary["numberOfImportedFiles"], summary["numberOfGeneratedImageSets"]) == (1, 0)
    assert summary["imageSetsSummary"][0]["imageSetId"] == first.image_set
    assert store.image_set(first.image_set).version == 1


def test_every_file_can_fail_and_the_job_is_completed(store: Store) -> None:
    fill(store, ("p/a", b""), ("p/b", b"x" * 200))
    job = ended(store, start(store))
    assert job.status is JobStatus.COMPLETED
    summary, lines = output(store, job)
    assert (summary["numberOfImportedFiles"], summary["numberOfFilesWithCustomerError"]) == (0, 2)
    assert len(lines["failure"]) == 2
    nothing = ended(store, start(store, "empty/"))
    assert nothing.status is JobStatus.COMPLETED
    assert output(store, nothing)[0]["numberOfScannedFiles"] == 0


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"input_uri": "s3://nowhere/p/"}, "There is no bucket nowhere"),
        ({"output_uri": "s3://nowhere/o/"}, "There is no bucket nowhere"),
    ],
)
def test_a_missing_bucket_fails_the_job(store: Store, changes: dict[str, str], wanted: str) -> None:
    fill(store, ("p/a.dcm", slice_(1)))
    job = ended(store, start(store, **changes))
    assert job.status is JobStatus.FAILED
    assert job.message is not None
    assert wanted in job.message
    assert store.search() == {}


def test_an_output_that_cannot_be_a_file_is_told(store: Store) -> None:
    fill(store, ("p/a.dcm", slice_(1)))
    job = ended(store, start(store, output_uri="s3://out/../elsewhere"))
    assert job.status is JobStatus.FAILED
    assert job.message is not None
    assert "are imported" in job.message
    assert not (store.data / "s3" / "elsewhere").exists()
    assert len(store.search()) == 1


def test_too_many_files_fail_the_job(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.worker.worker.importer, "max_files", 2)
    fill(store, *((f"p/{number}.dcm", slice_(number)) for number in range(1, 4)))
    job = ended(store, start(store))
    assert job.status is JobStatus.FAILED
    assert job.message is not None
    assert job.message.startswith("FILE_COUNTS_LIMIT")
    assert store.search() == {}


def test_a_token_tells_the_same_request_from_a_new_one(store: Store) -> None:
    fill(store, ("p/a.dcm", slice_(1)))
    first = start(store, client_token="t1")
    assert start(store, client_token="t1").id == first.id
    assert start(store, client_token="t2").id != first.id
    with pytest.raises(Conflict):
        start(store, client_token="t1", name="another")
    store.work()
    assert start(store, client_token="t1").status is JobStatus.COMPLETED


def test_jobs_are_listed_newest_first_by_status_and_in_pages(store: Store) -> None:
    fill(store, ("p/a.dcm", slice_(1)))
    jobs = [start(store, name=f"job{number}") for number in range(3)]
    failed = start(store, input_uri="s3://nowhere/")
    store.put(slice_(2))  # STOW's jobs are not listed
    listed = []
    token = None
    while True:
        page = store.do(store.web.backend.list_imports(store.datastore, None, PageRequest(2, token)))
        listed += page.items
        token = page.next_token
        if token is None:
            break
    assert [job.id for job in listed] == [failed.id, *(job.id for job in reversed(jobs))]
    page = store.do(store.web.backend.list_imports(store.datastore, JobStatus.FAILED, PageRequest()))
    assert [job.id for job in page.items] == [failed.id]
    other = store.do(store.web.backend.create_datastore("other"))
    with pytest.raises(NotFound):
        store.do(store.web.backend.get_import(other.id, failed.id))


def test_a_data_store_with_a_running_job_is_not_deleted(store: Store) -> None:
    fill(store)
    job = start(store, "none/")
    with pytest.raises(Conflict, match="imported"):
        store.do(store.web.backend.delete_datastore(store.datastore))
    ended(store, job)
    assert store.do(store.web.backend.delete_datastore(store.datastore)).status == "DELETING"


def test_there_is_a_quota_of_jobs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store)
    monkeypatch.setattr(importing, "MAX_JOBS", 1)
    start(store)
    with pytest.raises(QuotaExceeded):
        start(store)
    store.work()
    start(store)
    store.work()


def test_a_job_waits_for_a_locked_image_set(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_LOCKED_S", 0.0)
    (first,) = store.put(slice_(1))
    store.accept(first.image_set, 1, patient(PatientName="New^Name"))
    fill(store, ("p/b.dcm", slice_(2)))
    job = start(store)
    importer = store.worker.worker.importer
    assert importer.work()
    assert importer.work(), "tries, finds the lock, and gives the job back"
    assert store.do(store.web.backend.get_import(store.datastore, job.id)).status is JobStatus.IN_PROGRESS
    assert ended(store, job).status is JobStatus.COMPLETED
    assert [v.workflow for v in store.versions(first.image_set)] == [
        Workflow.IMPORTED,
        Workflow.UPDATED,
        Workflow.CREATED,
    ]


# ---------------------------------------------------------------- interruptions


class Dying(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("place", ["_stage", "_publish", "publish_imports", "report"])
def test_a_job_goes_on_where_its_process_died(own_store: Store, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """The job is taken up by another worker, and every file is imported once."""
    store = own_store
    fill(store, *((f"p/{number}.dcm", slice_(number)) for number in range(1, 4)))
    job = start(store)
    owner: Any = importing if place in ("publish_imports", "report") else importing.Importer
    original = getattr(owner, place)
    calls = iter(range(100))

    def dying(*arguments: Any) -> Any:
        if next(calls) == (1 if place == "_stage" else 0):
            raise Dying
        return original(*arguments)

    monkeypatch.setattr(owner, place, dying)
    with pytest.raises(Dying):
        store.work()
    monkeypatch.undo()
    dead = store.worker
    store.worker = store.process("worker")
    close_process(dead)
    assert store.worker.worker.queue.reclaim() == 1
    store.worker.worker._look_after()
    job = ended(store, job)
    assert job.status is JobStatus.COMPLETED
    summary, lines = output(store, job)
    assert (summary["numberOfImportedFiles"], summary["numberOfGeneratedImageSets"]) == (3, 1)
    assert len(lines["success"]) == 3
    assert len(store.sops(STUDY)) == 3
    (only,) = store.search().values()
    assert only.version == 1
    assert store.rows("SELECT count(*) FROM job") == [(1,)]
    invariants.check(store)


def test_a_job_is_given_back_when_its_process_has_to_stop(own_store: Store) -> None:
    store = own_store
    fill(store, ("p/a.dcm", slice_(1)))
    job = start(store)
    importer = store.worker.worker.importer
    for _ in range(2):  # while it reads, and while it prepares
        importer._stop.set()
        assert importer.work()
        assert store.search() == {}
        importer._stop.clear()
        assert importer.work()
    assert ended(store, job).status is JobStatus.COMPLETED
    assert len(store.search()) == 1


def test_a_job_that_never_succeeds_fails(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = own_store
    monkeypatch.setattr(importing, "_PAUSE_MS", 1)
    fill(store, ("p/a.dcm", slice_(1)))

    def failing(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(importing.Importer, "_publish", failing)
    job = ended(store, start(store))
    assert (job.status, store.search()) == (JobStatus.FAILED, {})
    assert job.message is not None
    assert job.message.startswith("INTERNAL_ERROR")


def test_a_file_that_cannot_be_read_is_a_server_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, ("p/a.dcm", slice_(1)), ("p/b.dcm", slice_(2)))
    read = FolderBuckets.read

    def denied(self: FolderBuckets, bucket: str, key: str) -> Iterator[bytes]:
        if key.endswith("a.dcm"):
            raise Denied("Access to the file is denied.")
        return read(self, bucket, key)

    monkeypatch.setattr(FolderBuckets, "read", denied)
    summary, lines = output(store, ended(store, start(store)))
    assert (summary["numberOfImportedFiles"], summary["numberOfFilesWithServerError"]) == (1, 1)
    assert lines["failure"][0]["inputFile"] == "p/a.dcm"
    assert lines["failure"][0]["exception"]["exceptionType"] == "InternalServerException"


# ---------------------------------------------------------------- folders as buckets


def _listed(root: Path, prefix: str) -> Sequence[str]:
    return [key for key, _ in FolderBuckets(root).list("b", prefix)]


def test_a_folder_lists_its_keys_in_order_and_nothing_outside(tmp_path: Path) -> None:
    for key in ("a/2", "a/10", "a.b/1", "a", "z"):
        path = tmp_path / "b" / (key if key != "a" else "a-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "b" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "b" / "inner").symlink_to(tmp_path / "b" / "z")
    everything = ["a-", "a.b/1", "a/10", "a/2", "inner", "z"]
    assert _listed(tmp_path, "") == everything == sorted(everything)
    assert _listed(tmp_path, "a/") == ["a/10", "a/2"]
    assert _listed(tmp_path, "a/1") == ["a/10"]
    for prefix in ("../", "a/../", "./a", "/", "a//", "none/at/all", "z/"):
        assert _listed(tmp_path, prefix) == [], prefix
    with pytest.raises(InvalidInput):
        FolderBuckets(tmp_path).write("b", "../c", b"x")
    with pytest.raises(InvalidInput):
        FolderBuckets(tmp_path).write("b", "z/below", b"x")
    with pytest.raises(NotFound):
        FolderBuckets(tmp_path).check("none")
