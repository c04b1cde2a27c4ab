"""The HealthImaging REST surface over an in-memory backend: real boto3, and the wire as bytes."""

import asyncio
import base64
import dataclasses
import gzip
import inspect
import json
import random
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import boto3
import httpx
import pytest
import uvicorn
from botocore.config import Config
from botocore.exceptions import ClientError

from gateway.awsjson.model import Shape, load
from gateway.domain import errors as tree
from gateway.domain.edits import MetadataUpdate
from gateway.domain.ids import DatastoreId, FrameId, ImageSetId, JobId
from gateway.domain.model import (
    Change,
    CopyRequest,
    CopyResult,
    Datastore,
    DatastoreStatus,
    Document,
    Frame,
    ImageSet,
    ImageSetRef,
    ImageSetState,
    ImageSetSummary,
    ImportJob,
    ImportRequest,
    JobStatus,
    Page,
    PageRequest,
    Resource,
    SearchCriteria,
    Workflow,
)
from gateway.healthimaging import errors
from gateway.healthimaging.endpoint import MAX_BODY_BYTES, HealthImagingApp
from gateway.healthimaging.operations import IGNORED, PREVIEWED, REFUSED, SERVED, UNTOLD, Operations, refuse
from gateway.ports import HealthImaging, History
from tests.node import Sdk, SdkError, javascript_client

T = TypeVar("T")
MODEL = load()
STORE = DatastoreId("12345678901234567890123456789012")
SET = ImageSetId("ea92b0d8838c72a3f25d00d13616f87e")
FRAME = FrameId("3abf5d5d7ae72f80a0ec81b2c0de3ef4")
JOB = JobId("09876543210987654321098765432109")
DIMSE_JOB = JobId("1" * 32)
ARN = f"arn:aws:medical-imaging:us-east-1:123456789012:datastore/{STORE}"
ROLE = "arn:aws:iam::123456789012:role/ImportJobDataAccessRole"
INPUT, OUTPUT = "s3://medical-imaging-dicom-input/dicom_input/", "s3://medical-imaging-output/job_output/"
CREATED = datetime(2022, 12, 6, 21, 40, 59, 429000, tzinfo=UTC)
DOCUMENT = b'{"SchemaVersion":"1.1"}'
HTJ2K = "1.2.840.10008.1.2.4.202"


class Memory:
    """A backend whose contents are attributes, which remembers what it was asked."""

    def __init__(self) -> None:
        self.stores = {STORE: Datastore(STORE, "TestDatastore123", DatastoreStatus.ACTIVE, CREATED, CREATED)}
        self.versions = [self._version(1, Workflow.CREATED)]
        self.frame = Frame(FRAME, HTJ2K, b"\xffO\xffQ\0frame", 1)
        self.document = Document(gzip.compress(DOCUMENT), gzip=True)
        self.jobs: dict[JobId, ImportJob] = {}
        self.given_tags: dict[Resource, dict[str, str]] = {}
        self.asked: list[Any] = []
        self.failure: Exception | None = None
        self.message: str | None = None

    def _version(self, number: int, workflow: Workflow, **changes: Any) -> ImageSet:
        version = ImageSet(STORE, SET, number, ImageSetState.ACTIVE, workflow, True, CREATED)
        return dataclasses.replace(version, **changes)

    def _called(self, *asked: Any) -> None:
        self.asked.append(asked)
        if self.failure is not None:
            raise self.failure

    def _store(self, datastore: DatastoreId) -> Datastore:
        if datastore not in self.stores:
            raise tree.NotFound("No such data store.")
        return self.stores[datastore]

    def _page(self, items: Sequence[T], page: PageRequest) -> Page[T]:
        if page.token is not None and not page.token.isdigit():
            raise tree.InvalidInput("nextToken is not one that this service gave.")
        start = int(page.token or 0)
        end = start + page.size
        return Page(items[start:end], str(end) if end < len(items) else None)

    def _find(self, ref: ImageSetRef) -> ImageSet:
        self._store(ref.datastore)
        found = [item for item in self.versions if ref.version in (None, item.version)]
        if ref.image_set != SET or not found:
            raise tree.NotFound("No such image set or version.")
        return found[0]

    async def create_datastore(
        self,
        name: str | None,
        client_token: str | None = None,
        storage_format: str = "HTJ2K",
        tags: Mapping[str, str] | None = None,
    ) -> Datastore:
        self._called(name, client_token, storage_format, tags)
        store = Datastore(DatastoreId("a" * 32), name or "a" * 32, DatastoreStatus.CREATING, CREATED, CREATED)
        self.stores[store.id] = dataclasses.replace(store, status=DatastoreStatus.ACTIVE, storage_format=storage_format)
        return store

    async def get_datastore(self, datastore: DatastoreId) -> Datastore:
        self._called(datastore)
        return self._store(datastore)

    async def list_datastores(self, status: DatastoreStatus | None, page: PageRequest) -> Page[Datastore]:
        self._called(status, page)
        return self._page([store for store in self.stores.values() if status in (None, store.status)], page)

    async def delete_datastore(self, datastore: DatastoreId) -> Datastore:
        self._called(datastore)
        return dataclasses.replace(self._store(datastore), status=DatastoreStatus.DELETING)

    async def tags(self, resource: Resource) -> Mapping[str, str]:
        self._called(resource)
        return self.given_tags.get(resource, {})

    async def tag(self, resource: Resource, tags: Mapping[str, str]) -> None:
        self._called(resource, tags)
        self.given_tags.setdefault(resource, {}).update(tags)

    async def untag(self, resource: Resource, keys: Sequence[str]) -> None:
        self._called(resource, keys)
        for key in keys:
            self.given_tags.get(resource, {}).pop(key, None)

    async def get_import(self, datastore: DatastoreId, job: JobId) -> ImportJob:
        self._called(datastore, job)
        if job not in self.jobs:
            raise tree.NotFound("No such job.")
        return self.jobs[job]

    async def list_imports(
        self, datastore: DatastoreId, status: JobStatus | None, page: PageRequest
    ) -> Page[ImportJob]:
        self._called(datastore, status, page)
        return self._page([job for job in self.jobs.values() if status in (None, job.status)], page)

    async def start_import(self, datastore: DatastoreId, request: ImportRequest) -> ImportJob:
        self._called(datastore, request)
        job = ImportJob(JOB, datastore, request.name or "", JobStatus.SUBMITTED, "import", CREATED)
        self.jobs[JOB] = dataclasses.replace(
            job,
            status=JobStatus.COMPLETED,
            ended_at=CREATED,
            role_arn=request.role_arn,
            input_uri=request.input_uri,
            output_uri=f"{request.output_uri}{datastore}-DicomImport-{JOB}/",
        )
        self.jobs[DIMSE_JOB] = dataclasses.replace(job, id=DIMSE_JOB, source="dimse")
        return job

    async def search(
        self, datastore: DatastoreId, criteria: SearchCriteria, page: PageRequest
    ) -> Page[ImageSetSummary]:
        self._called(datastore, criteria, page)
        self._store(datastore)
        tags: Mapping[str, str | int] = {"DICOMPatientId": "SUBJECT08701", "DICOMNumberOfStudyRelatedSeries": 1}
        ids = [SET, *(ImageSetId(f"{number:032}") for number in range(2))]
        return self._page([ImageSetSummary(item, 1, True, CREATED, CREATED, tags, CREATED) for item in ids], page)

    async def get_image_set(self, ref: ImageSetRef) -> ImageSet:
        self._called(ref)
        return self._find(ref)

    async def list_versions(self, ref: ImageSetRef, page: PageRequest) -> Page[ImageSet]:
        self._called(ref, page)
        self._find(ref)
        return self._page(self.versions, page)

    async def get_metadata(self, ref: ImageSetRef) -> Document:
        self._called(ref)
        self._find(ref)
        return self.document

    async def get_frame(self, ref: ImageSetRef, frame: FrameId) -> Frame:
        self._called(ref, frame)
        self._find(ref)
        if frame != FRAME:
            raise tree.NotFound("No such frame.")
        return self.frame

    async def update_metadata(self, ref: ImageSetRef, expected: int, update: MetadataUpdate) -> ImageSet:
        self._called(ref, expected, update)
        if expected != self._find(ref).version:
            raise tree.VersionConflict
        version = self._version(
            expected + 1, Workflow.UPDATED, updated_at=CREATED, forced=update.force, message=self.message
        )
        self.versions.insert(0, version)
        return dataclasses.replace(version, state=ImageSetState.LOCKED, workflow=Workflow.UPDATING)

    async def copy(self, request: CopyRequest) -> CopyResult:
        self._called(request)
        source = self._find(request.source)
        locked = dataclasses.replace(source, state=ImageSetState.LOCKED, updated_at=CREATED)
        return CopyResult(
            dataclasses.replace(locked, workflow=Workflow.COPYING_WITH_READ_ONLY_ACCESS),
            dataclasses.replace(locked, workflow=Workflow.COPYING, id=ImageSetId("c" * 32)),
        )

    async def changes(self, datastore: DatastoreId, after: int, limit: int) -> tuple[Sequence[Change], int]:
        return [], 0

    async def preview(
        self, ref: ImageSetRef, expected: int, update: MetadataUpdate
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        self._called("preview", ref, expected, update)
        series = {"Series": {"1.2": {"DICOM": {}, "Instances": {}}}}
        before = {"Patient": {"DICOM": {"PatientName": "A"}}, "Study": {"DICOM": {}, **series}}
        return before, {**before, "Patient": {"DICOM": {"PatientName": "B"}}}

    async def delete(self, ref: ImageSetRef, actor: str | None = None) -> ImageSet:
        self._called(ref, actor)
        found = self._find(ref)
        self.versions.clear()
        return dataclasses.replace(found, state=ImageSetState.LOCKED, workflow=Workflow.DELETING)


def app_over(backend: Memory) -> HealthImagingApp:
    return HealthImagingApp(backend, "us-east-1", "123456789012", history=backend, strict=True)


class Server:
    """The application over a fresh backend, on a port of its own."""

    def __init__(self) -> None:
        self.backend = Memory()
        self._app = app_over(self.backend)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(self, lifespan="off", ws="none", log_config=None)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("state", {})["principal"] = "alice"
        await self._app(scope, receive, send)

    def reset(self) -> None:
        self.backend = Memory()
        self._app = app_over(self.backend)

    def __enter__(self) -> "Server":
        # The socket listens already: whoever connects before the loop runs waits in its backlog.
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def backend(running: Server) -> Memory:
    running.reset()
    return running.backend


@pytest.fixture(scope="module")
def aws(running: Server) -> Iterator[Any]:
    """boto3 as a user sets it up against another endpoint."""
    session = boto3.Session("AKIDEXAMPLE", "secret", region_name="us-east-1")
    config = Config(inject_host_prefix=False, retries={"total_max_attempts": 1}, proxies={}, read_timeout=10)
    client = session.client("medical-imaging", endpoint_url=running.url, config=config)
    yield client
    client.close()


@pytest.fixture
def http(running: Server, backend: Memory) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, trust_env=False) as client:
        yield client


def raises(code: str, status: int, message: str = "") -> Any:
    """A boto3 error of this name and status, whose class is the modelled one."""

    def check(error: ClientError) -> bool:
        meta = error.response["ResponseMetadata"]
        return (
            error.response["Error"]["Code"] == code
            and meta["HTTPStatusCode"] == status
            and message in error.response["Error"]["Message"]
            and bool(meta["RequestId"])
            and type(error).__name__ in (code, "ClientError")
        )

    return pytest.raises(ClientError, check=check)


# -- boto3, operation by operation


def test_create_get_list_and_delete_a_datastore(aws: Any, backend: Memory) -> None:
    created = aws.create_datastore(datastoreName="my-datastore", losslessStorageFormat="JPEG_2000_LOSSLESS")
    assert created["datastoreStatus"] == "CREATING"
    name, token, storage_format, tags = backend.asked[-1]
    assert tags is None
    assert (name, storage_format) == ("my-datastore", "JPEG_2000_LOSSLESS")
    assert token
    properties = aws.get_datastore(datastoreId=created["datastoreId"])["datastoreProperties"]
    assert properties == {
        "datastoreId": created["datastoreId"],
        "datastoreName": "my-datastore",
        "datastoreStatus": "ACTIVE",
        "losslessStorageFormat": "JPEG_2000_LOSSLESS",
        "datastoreArn": ARN.replace(STORE, created["datastoreId"]),
        "createdAt": CREATED,
        "updatedAt": CREATED,
    }
    assert aws.list_datastores(datastoreStatus="DELETED")["datastoreSummaries"] == []
    assert backend.asked[-1][0] is DatastoreStatus.DELETED
    pages = aws.get_paginator("list_datastores").paginate(PaginationConfig={"PageSize": 1})
    summaries = pages.build_full_result()["datastoreSummaries"]
    assert [summary["datastoreName"] for summary in summaries] == ["TestDatastore123", "my-datastore"]
    assert "losslessStorageFormat" not in summaries[0]
    assert aws.delete_datastore(datastoreId=STORE)["datastoreStatus"] == "DELETING"
    with raises("ResourceNotFoundException", 404):
        aws.get_datastore(datastoreId="f" * 32)


def test_an_import_job_from_start_to_end(aws: Any, backend: Memory) -> None:
    started = aws.start_dicom_import_job(
        jobName="my-job",
        datastoreId=STORE,
        inputS3Uri=INPUT,
        outputS3Uri=OUTPUT,
        dataAccessRoleArn=ROLE,
        inputOwnerAccountId="123456789012",
    )
    started.pop("ResponseMetadata")
    assert started == {"datastoreId": STORE, "jobId": JOB, "jobStatus": "SUBMITTED", "submittedAt": CREATED}
    request = backend.asked[-1][1]
    assert (request.name, request.role_arn, request.input_uri, request.output_uri) == ("my-job", ROLE, INPUT, OUTPUT)
    assert request.client_token
    summary = {
        "jobId": JOB,
        "jobName": "my-job",
        "jobStatus": "COMPLETED",
        "datastoreId": STORE,
        "dataAccessRoleArn": ROLE,
        "endedAt": CREATED,
        "submittedAt": CREATED,
    }
    folder = f"{OUTPUT}{STORE}-DicomImport-{JOB}/"
    properties = aws.get_dicom_import_job(datastoreId=STORE, jobId=JOB)["jobProperties"]
    assert properties == summary | {"inputS3Uri": INPUT, "outputS3Uri": folder}
    pages = list(aws.get_paginator("list_dicom_import_jobs").paginate(datastoreId=STORE))
    assert [job for page in pages for job in page["jobSummaries"]] == [summary]
    assert aws.list_dicom_import_jobs(datastoreId=STORE, jobStatus="FAILED")["jobSummaries"] == []
    assert backend.asked[-1][1] is JobStatus.FAILED


def test_a_job_of_another_surface_is_not_shown(aws: Any, backend: Memory) -> None:
    asyncio.run(backend.start_import(STORE, ImportRequest("j", ROLE, INPUT, OUTPUT)))
    with raises("ResourceNotFoundException", 404, "through this API"):
        aws.get_dicom_import_job(datastoreId=STORE, jobId=DIMSE_JOB)


def test_a_job_message_keeps_to_the_alphabet(aws: Any, backend: Memory) -> None:
    asyncio.run(backend.start_import(STORE, ImportRequest(None, ROLE, INPUT, OUTPUT)))
    backend.jobs[JOB] = dataclasses.replace(
        backend.jobs[JOB], status=JobStatus.FAILED, message="FILE_COUNTS_LIMIT: <5000>; no" + "x" * 3000
    )
    properties = aws.get_dicom_import_job(datastoreId=STORE, jobId=JOB)["jobProperties"]
    assert properties["message"].startswith("FILE_COUNTS_LIMIT:  5000   no")
    assert len(properties["message"]) == 2048
    assert properties["jobName"] == JOB


def test_search_passes_criteria_on_and_pages(aws: Any, backend: Memory) -> None:
    low, high = CREATED, CREATED + timedelta(hours=1)
    found = aws.search_image_sets(
        datastoreId=STORE,
        maxResults=2,
        searchCriteria={
            "filters": [
                {"operator": "BETWEEN", "values": [{"updatedAt": low}, {"updatedAt": high}]},
                {"operator": "EQUAL", "values": [{"DICOMPatientId": "SUBJECT08701"}]},
            ],
            "sort": {"sortField": "createdAt", "sortOrder": "ASC"},
        },
    )
    _, criteria, page = backend.asked[-1]
    between, equal = criteria.filters
    assert between.key == "updatedAt"
    # botocore may cut the fraction of a second off.
    assert [value.replace(microsecond=0) for value in between.values] == [
        low.replace(microsecond=0),
        high.replace(microsecond=0),
    ]
    assert (equal.key, equal.values) == ("DICOMPatientId", ("SUBJECT08701",))
    assert (criteria.sort_field, criteria.ascending) == ("createdAt", True)
    assert page == PageRequest(2, None)
    assert found["sort"] == {"sortField": "createdAt", "sortOrder": "ASC"}
    assert found["imageSetsMetadataSummaries"][0] == {
        "imageSetId": SET,
        "version": 1,
        "createdAt": CREATED,
        "updatedAt": CREATED,
        "isPrimary": True,
        "lastAccessedAt": CREATED,
        "storageTier": "ARCHIVE_INSTANT_ACCESS",
        "DICOMTags": {"DICOMPatientId": "SUBJECT08701", "DICOMNumberOfStudyRelatedSeries": 1},
    }
    assert found["nextToken"] == "2"
    everything = aws.get_paginator("search_image_sets").paginate(datastoreId=STORE, PaginationConfig={"PageSize": 1})
    result = everything.build_full_result()
    assert len(result["imageSetsMetadataSummaries"]) == 3
    assert result["sort"] == {"sortField": "updatedAt", "sortOrder": "DESC"}
    assert backend.asked[-1][1] == SearchCriteria()
    with raises("ValidationException", 400, "nextToken"):
        aws.search_image_sets(datastoreId=STORE, nextToken="forged")


def moment(date: str, time: str | None = None) -> dict[str, Any]:
    value = {"DICOMStudyDate": date} | ({"DICOMStudyTime": time} if time else {})
    return {"DICOMStudyDateAndTime": value}


def test_search_by_study_date(aws: Any, backend: Memory) -> None:
    values = [moment("19900101", "000000"), moment("20230101")]
    aws.search_image_sets(datastoreId=STORE, searchCriteria={"filters": [{"operator": "BETWEEN", "values": values}]})
    (criterion,) = backend.asked[-1][1].filters
    assert criterion.values == (("19900101", "000000"), ("20230101", "000000"))


@pytest.mark.parametrize(
    ("operator", "values", "wanted"),
    [
        ("EQUAL", [{"DICOMStudyId": "1"}, {"DICOMStudyId": "2"}], "EQUAL takes one value"),
        ("EQUAL", [{"createdAt": CREATED}], "BETWEEN"),
        ("BETWEEN", [{"DICOMStudyId": "1"}, {"DICOMStudyId": "2"}], "EQUAL"),
        ("BETWEEN", [{"createdAt": CREATED}], "two values"),
        ("BETWEEN", [{"createdAt": CREATED}, {"updatedAt": CREATED}], "same key"),
        ("BETWEEN", [{"createdAt": CREATED}, {"createdAt": CREATED - timedelta(days=1)}], "lower value"),
        ("BETWEEN", [moment("20230101"), moment("20220101")], "lower value"),
        ("BETWEEN", [moment("20220101", "000000.5"), moment("20220101", "000000.49")], "lower value"),
        ("BETWEEN", [moment("220101"), moment("20230101")], "YYYYMMDD"),
        ("BETWEEN", [moment("20220101"), moment("20230230")], "real times"),
        ("BETWEEN", [moment("20220101", "12:00"), moment("20230101")], "HHMMSS"),
    ],
)
def test_contradictory_criteria_are_refused(
    aws: Any, backend: Memory, operator: str, values: list[dict[str, Any]], wanted: str
) -> None:
    filters = [{"operator": "EQUAL", "values": [{"isPrimary": True}]}, {"operator": operator, "values": values}]
    with raises("ValidationException", 400, wanted):
        aws.search_image_sets(datastoreId=STORE, searchCriteria={"filters": filters})
    assert backend.asked == []


def test_get_image_set_tells_all_that_is_known(aws: Any, backend: Memory) -> None:
    backend.versions = [
        backend._version(2, Workflow.UPDATE_FAILED, updated_at=CREATED, message="INVALID_REQUEST: no.", forced=True)
    ]
    found = aws.get_image_set(datastoreId=STORE, imageSetId=SET, versionId="2")
    assert found.pop("ResponseMetadata")["HTTPStatusCode"] == 200
    assert found == {
        "datastoreId": STORE,
        "imageSetId": SET,
        "versionId": "2",
        "imageSetState": "ACTIVE",
        "imageSetWorkflowStatus": "UPDATE_FAILED",
        "createdAt": CREATED,
        "updatedAt": CREATED,
        "message": "INVALID_REQUEST: no.",
        "imageSetArn": f"{ARN}/imageset/{SET}",
        "overrides": {"forced": True},
        "isPrimary": True,
    }
    aws.get_image_set(datastoreId=STORE, imageSetId=SET)
    assert [ref.version for (ref,) in backend.asked] == [2, None]


@pytest.mark.parametrize("version", ["7", "0", "0007", "9" * 400])
def test_a_version_that_is_not_there(aws: Any, backend: Memory, version: str) -> None:
    for call in (aws.get_image_set, aws.get_image_set_metadata):
        with raises("ResourceNotFoundException", 404):
            call(datastoreId=STORE, imageSetId=SET, versionId=version)


def test_versions_are_listed_with_their_capital_status(aws: Any, backend: Memory) -> None:
    backend.versions = [
        backend._version(3, Workflow.UPDATED, updated_at=CREATED),
        backend._version(2, Workflow.COPY_FAILED, message="INVALID_REQUEST: Series don't match."),
        backend._version(1, Workflow.COPIED),
    ]
    pages = aws.get_paginator("list_image_set_versions").paginate(
        datastoreId=STORE, imageSetId=SET, PaginationConfig={"PageSize": 2}
    )
    listed = pages.build_full_result()["imageSetPropertiesList"]
    assert [item["versionId"] for item in listed] == ["3", "2", "1"]
    assert listed[1] == {
        "imageSetId": SET,
        "versionId": "2",
        "imageSetState": "ACTIVE",
        "ImageSetWorkflowStatus": "COPY_FAILED",
        "createdAt": CREATED,
        "message": "INVALID_REQUEST: Series don't match.",
        "isPrimary": True,
    }


@pytest.mark.parametrize("packed", [True, False])
def test_metadata_is_always_gzip(aws: Any, backend: Memory, http: httpx.Client, packed: bool) -> None:
    backend.document = Document(gzip.compress(DOCUMENT) if packed else DOCUMENT, gzip=packed)
    answer = aws.get_image_set_metadata(datastoreId=STORE, imageSetId=SET, versionId="1")
    assert (answer["contentType"], answer["contentEncoding"]) == ("application/json", "gzip")
    assert gzip.decompress(answer["imageSetMetadataBlob"].read()) == DOCUMENT
    path = f"/datastore/{STORE}/imageSet/{SET}/getImageSetMetadata"
    raw = http.post(path, headers={"Accept-Encoding": "identity"})
    assert raw.headers["content-encoding"] == "gzip"
    assert raw.content == DOCUMENT


@pytest.mark.parametrize(
    ("syntax", "content_type"),
    [
        (HTJ2K, "image/jph"),
        ("1.2.840.10008.1.2.4.203", "image/jphc"),
        ("1.2.840.10008.1.2.4.91", "image/j2c"),
        ("1.2.840.10008.1.2.4.50", "image/jpeg"),
        ("1.2.840.10008.1.2.4.112", "image/jxl"),
        ("1.2.840.10008.1.2.1", "application/octet-stream"),
        ("1.2.840.10008.1.2.4.100.1", "video/mpeg"),
        ("1.2.840.10008.1.2.4.102", "video/mp4"),
        ("1.2.840.10008.1.2.4.107", "video/H256"),
    ],
)
def test_a_frame_has_the_type_of_its_stored_syntax(
    aws: Any, backend: Memory, http: httpx.Client, syntax: str, content_type: str
) -> None:
    backend.frame = dataclasses.replace(backend.frame, syntax=syntax)
    answer = aws.get_image_frame(datastoreId=STORE, imageSetId=SET, imageFrameInformation={"imageFrameId": FRAME})
    assert answer["contentType"] == content_type
    assert answer["imageFrameBlob"].read() == backend.frame.data
    path = f"/datastore/{STORE}/imageSet/{SET}/getImageFrame"
    raw = http.post(path, json={"imageFrameId": FRAME})
    assert raw.headers["content-type"] == content_type
    assert raw.headers["content-length"] == str(len(backend.frame.data))


def test_a_frame_that_is_not_there(aws: Any, backend: Memory) -> None:
    with raises("ResourceNotFoundException", 404, "frame"):
        aws.get_image_frame(datastoreId=STORE, imageSetId=SET, imageFrameInformation={"imageFrameId": "0" * 32})


PATIENT = {"SchemaVersion": 1.1, "Patient": {"DICOM": {"PatientName": "MX^MX"}}}
STUDY = {"SchemaVersion": "1.1", "Study": {"DICOM": {"StudyDescription": "CHEST"}}}


def test_an_update_sets_and_removes(aws: Any, backend: Memory) -> None:
    blobs = {
        "updatableAttributes": json.dumps(PATIENT).encode(),
        "removableAttributes": json.dumps(STUDY).encode(),
    }
    answer = aws.update_image_set_metadata(
        datastoreId=STORE,
        imageSetId=SET,
        latestVersionId="1",
        force=True,
        includeStudyImageSets=True,
        updateImageSetMetadataUpdates={"DICOMUpdates": blobs},
    )
    answer.pop("ResponseMetadata")
    assert answer == {
        "datastoreId": STORE,
        "imageSetId": SET,
        "latestVersionId": "2",
        "imageSetState": "LOCKED",
        "imageSetWorkflowStatus": "UPDATING",
        "createdAt": CREATED,
        "updatedAt": CREATED,
    }
    ref, expected, update = backend.asked[-1]
    assert (ref, expected) == (ImageSetRef(STORE, SET, None), 1)
    assert update == MetadataUpdate(PATIENT, STUDY, None, force=True, study=True, actor="alice")


def test_an_update_goes_back_to_a_version(aws: Any, backend: Memory) -> None:
    answer = aws.update_image_set_metadata(
        datastoreId=STORE,
        imageSetId=SET,
        latestVersionId="1",
        updateImageSetMetadataUpdates={"revertToVersionId": "1"},
    )
    assert answer["latestVersionId"] == "2"
    assert backend.asked[-1][2] == MetadataUpdate(revert_to=1, actor="alice")


def test_a_stale_version_is_not_found(aws: Any, backend: Memory) -> None:
    with raises("ResourceNotFoundException", 404, "Requested version(s) of ImageSet(s) is not the latest."):
        aws.update_image_set_metadata(
            datastoreId=STORE,
            imageSetId=SET,
            latestVersionId="9",
            updateImageSetMetadataUpdates={"revertToVersionId": "1"},
        )


@pytest.mark.parametrize("blob", [b"{", b"[]", b'{"SchemaVersion":"2"}', b"{}"])
def test_an_update_that_is_no_document_is_refused_at_once(aws: Any, backend: Memory, blob: bytes) -> None:
    with raises("ValidationException", 400):
        aws.update_image_set_metadata(
            datastoreId=STORE,
            imageSetId=SET,
            latestVersionId="1",
            updateImageSetMetadataUpdates={"DICOMUpdates": {"updatableAttributes": blob}},
        )
    assert backend.asked == [(ImageSetRef(STORE, SET),)], "the image set was looked for, and no more"
    with raises("ResourceNotFoundException", 404):
        aws.update_image_set_metadata(
            datastoreId=STORE,
            imageSetId="f" * 32,
            latestVersionId="1",
            updateImageSetMetadataUpdates={"DICOMUpdates": {"updatableAttributes": blob}},
        )


ENCODED = base64.b64encode(json.dumps(PATIENT).encode())


@pytest.mark.parametrize(
    "sent",
    [PATIENT, json.dumps(PATIENT), ENCODED.decode(), base64.b64encode(ENCODED).decode()],
    ids=["object", "text", "base64", "base64 twice"],
)
def test_an_update_is_read_however_its_document_was_sent(http: httpx.Client, backend: Memory, sent: Any) -> None:
    path = f"/datastore/{STORE}/imageSet/{SET}/updateImageSetMetadata?latestVersion=1"
    answer = http.post(path, json={"DICOMUpdates": {"updatableAttributes": sent}})
    assert answer.status_code == 200
    assert backend.asked[-1][2].updatable == PATIENT


def test_a_deleted_image_set_is_gone(aws: Any, backend: Memory) -> None:
    answer = aws.delete_image_set(datastoreId=STORE, imageSetId=SET)
    answer.pop("ResponseMetadata")
    assert answer == {
        "datastoreId": STORE,
        "imageSetId": SET,
        "imageSetState": "LOCKED",
        "imageSetWorkflowStatus": "DELETING",
    }
    with raises("ResourceNotFoundException", 404):
        aws.delete_image_set(datastoreId=STORE, imageSetId=SET)


@pytest.mark.parametrize(
    ("call", "arguments", "wanted"),
    [
        ("create_datastore", {"kmsKeyArn": "arn:aws:kms:us-east-1:123456789012:key/a"}, "kmsKeyArn"),
        ("create_datastore", {"lambdaAuthorizerArn": "arn:aws:lambda:us-east-1:1234567890123:function:f"}, "lambda"),
        (
            "start_dicom_import_job",
            {
                "datastoreId": STORE,
                "inputS3Uri": INPUT,
                "outputS3Uri": OUTPUT,
                "dataAccessRoleArn": ROLE,
                "importConfiguration": {
                    "dicomJsonMetadataImportConfiguration": {
                        "dicomMetadataMappings": [{"studyInstanceUID": "1.2", "metadataFilePath": "a.json"}]
                    }
                },
            },
            "importConfiguration",
        ),
    ],
)
def test_what_nobody_would_act_on_is_refused(
    aws: Any, backend: Memory, call: str, arguments: dict[str, Any], wanted: str
) -> None:
    with raises("ValidationException", 400, wanted):
        getattr(aws, call)(**arguments)
    assert backend.asked == []


SET_ARN = f"{ARN}/imageset/{SET}"


@pytest.mark.parametrize(("arn", "resource"), [(ARN, Resource(STORE)), (SET_ARN, Resource(STORE, SET))])
def test_tags_go_by_an_encoded_arn(aws: Any, backend: Memory, http: httpx.Client, arn: str, resource: Resource) -> None:
    aws.tag_resource(resourceArn=arn, tags={"Deployment": "Development", "a+b=c": ""})
    assert backend.asked[-1] == (resource, {"Deployment": "Development", "a+b=c": ""})
    assert aws.list_tags_for_resource(resourceArn=arn)["tags"] == {"Deployment": "Development", "a+b=c": ""}
    aws.untag_resource(resourceArn=arn, tagKeys=["Deployment", "never_there"])
    assert backend.asked[-1] == (resource, ["Deployment", "never_there"])
    assert http.get(f"/tags/{arn}").json() == {"tags": {"a+b=c": ""}}, "its slashes may come as they are"


@pytest.mark.parametrize(
    "arn",
    [
        ARN.replace("us-east-1", "eu-west-1"),
        ARN.replace("123456789012:", "210987654321:"),
    ],
)
def test_an_arn_of_another_region_or_account_is_not_found(aws: Any, backend: Memory, arn: str) -> None:
    with raises("ResourceNotFoundException", 404, "ARN"):
        aws.list_tags_for_resource(resourceArn=arn)
    assert backend.asked == []


COPY = {"sourceImageSet": {"latestVersionId": "1"}}
SUBSET = {"SchemaVersion": "1.1", "Study": {"Series": {"1.2": {"Instances": {"1.2.3": {}}}}}}


def test_a_copy_answers_both_image_sets(aws: Any, backend: Memory) -> None:
    answer = aws.copy_image_set(datastoreId=STORE, sourceImageSetId=SET, copyImageSetInformation=COPY)
    assert backend.asked[-1] == (CopyRequest(ImageSetRef(STORE, SET, 1), actor="alice"),)
    common = {"latestVersionId": "1", "imageSetState": "LOCKED", "createdAt": CREATED, "updatedAt": CREATED}
    assert answer["datastoreId"] == STORE
    assert answer["sourceImageSetProperties"] == common | {
        "imageSetId": SET,
        "imageSetWorkflowStatus": "COPYING_WITH_READ_ONLY_ACCESS",
        "imageSetArn": SET_ARN,
    }
    assert answer["destinationImageSetProperties"] == common | {
        "imageSetId": "c" * 32,
        "imageSetWorkflowStatus": "COPYING",
        "imageSetArn": f"{ARN}/imageset/{'c' * 32}",
    }


def test_a_copy_of_some_instances_into_another_image_set(aws: Any, backend: Memory) -> None:
    aws.copy_image_set(
        datastoreId=STORE,
        sourceImageSetId=SET,
        copyImageSetInformation={
            "sourceImageSet": {
                "latestVersionId": "1",
                "DICOMCopies": {"copiableAttributes": json.dumps(SUBSET)},
            },
            "destinationImageSet": {"imageSetId": "c" * 32, "latestVersionId": "7"},
        },
        force=True,
        promoteToPrimary=True,
    )
    (request,) = backend.asked[-1]
    assert request.destination == ImageSetRef(STORE, ImageSetId("c" * 32), 7)
    assert request.instances == {"1.2": {"1.2.3"}}
    assert (request.force, request.promote) == (True, True)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ('{"SchemaVersion":"2.0","Study":{"Series":{"1.2":{}}}}', "SchemaVersion"),
        ('{"Study":{}}', "nothing to copy"),
        ('{"Study":{"Series":{"1.2":{"Instances":{}}}}}', "none of them"),
        ('{"Study":{"Series":{"1.2":{"Instances":["1.2.3"]}}}}', "JSON object"),
        ('{"Patient":{}}', "unknown member"),
    ],
)
def test_a_subset_that_is_none_is_refused_at_once(aws: Any, backend: Memory, text: str, wanted: str) -> None:
    source = {"latestVersionId": "1", "DICOMCopies": {"copiableAttributes": text}}
    with raises("ValidationException", 400, wanted):
        aws.copy_image_set(datastoreId=STORE, sourceImageSetId=SET, copyImageSetInformation={"sourceImageSet": source})
    assert backend.asked == []


def test_a_dry_run_tells_the_differences_and_does_nothing(http: httpx.Client, backend: Memory) -> None:
    path = f"/datastore/{STORE}/imageSet/{SET}"
    query = "?latestVersion=1&dryRun=true"
    body = {"DICOMUpdates": {"updatableAttributes": PATIENT}}
    answer = http.post(f"{path}/updateImageSetMetadata{query}", json=body)
    assert answer.json() == {
        "dryRun": True,
        "from": 1,
        "to": 2,
        "differences": [{"level": "Patient", "attribute": "PatientName", "change": "changed", "from": "A", "to": "B"}],
    }
    assert [asked[0] for asked in backend.asked] == ["preview"]
    assert PREVIEWED.keys() == {"UpdateImageSetMetadata"}
    for name, sent in (("deleteImageSet?dryRun=true", {}), (f"updateImageSetMetadata{query}x", body)):
        refused = http.post(f"{path}/{name}", json=sent)
        assert (refused.status_code, refused.headers["x-amzn-errortype"]) == (400, "ValidationException")
        assert "dryRun" in refused.json()["message"]
    assert len(backend.asked) == 1


# -- the model and we know the same things


def test_every_operation_of_the_model_is_served() -> None:
    assert SERVED.keys() == MODEL.operations.keys()


def member_paths(shape: Shape, path: str = "") -> Iterator[str]:
    """Every member below a shape, lists passed through."""
    if shape.type == "list" and shape.element:
        yield from member_paths(shape.element, path)
    for name, member in shape.members.items():
        here = f"{path}.{name}" if path else name
        yield here
        yield from member_paths(member.shape, here)


class Recording(dict[str, Any]):
    """A request that notes in `read` which members are read, at every depth."""

    def __init__(self, members: Mapping[str, Any], read: set[str], path: str = "") -> None:
        self._read, self._path = read, path

        def recorded(value: Any, path: str) -> Any:
            if isinstance(value, list):
                return [recorded(item, path) for item in value]
            return Recording(value, read, f"{path}.") if isinstance(value, dict) else value

        super().__init__({name: recorded(value, f"{path}{name}") for name, value in members.items()})

    def __getitem__(self, key: str) -> Any:
        self._read.add(self._path + key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._read.add(self._path + key)
        return super().get(key, default)


COMMON: dict[str, Any] = {
    "datastoreId": STORE,
    "imageSetId": SET,
    "sourceImageSetId": SET,
    "resourceArn": SET_ARN,
    "jobId": JOB,
    "latestVersionId": "1",
    "clientToken": "t",
    "dataAccessRoleArn": ROLE,
    "inputS3Uri": INPUT,
    "outputS3Uri": OUTPUT,
    "tags": {"a": "b"},
    "tagKeys": ["a"],
    "maxResults": 1,
    "imageFrameInformation": {"imageFrameId": FRAME},
}


def _searched(*values: dict[str, Any]) -> dict[str, Any]:
    operator = "EQUAL" if len(values) == 1 else "BETWEEN"
    sort = {"sortField": "createdAt", "sortOrder": "ASC"}
    return {"searchCriteria": {"filters": [{"operator": operator, "values": list(values)}], "sort": sort}}


_EQUAL = ("PatientId", "AccessionNumber", "StudyId", "StudyInstanceUID", "SeriesInstanceUID")
REQUESTS: dict[str, list[dict[str, Any]]] = {
    "SearchImageSets": [
        *(_searched({f"DICOM{key}": "1"}) for key in _EQUAL),
        _searched({"isPrimary": True}),
        _searched({"createdAt": CREATED}, {"createdAt": CREATED}),
        _searched({"updatedAt": CREATED}, {"updatedAt": CREATED}),
        _searched(
            {"DICOMStudyDateAndTime": {"DICOMStudyDate": "20200101"}},
            {"DICOMStudyDateAndTime": {"DICOMStudyDate": "20200102", "DICOMStudyTime": "120000"}},
        ),
    ],
    "UpdateImageSetMetadata": [
        {"updateImageSetMetadataUpdates": {"revertToVersionId": "1"}},
        {
            "updateImageSetMetadataUpdates": {
                "DICOMUpdates": {
                    "updatableAttributes": b'{"Patient":{"DICOM":{"PatientName":"A"}}}',
                    "removableAttributes": b'{"Patient":{"DICOM":{"PatientSex":"F"}}}',
                }
            }
        },
    ],
    "CopyImageSet": [
        {
            "copyImageSetInformation": {
                "sourceImageSet": {
                    "latestVersionId": "1",
                    "DICOMCopies": {"copiableAttributes": '{"Study":{"Series":{"1.2":{}}}}'},
                },
                "destinationImageSet": {"imageSetId": SET, "latestVersionId": "1"},
            }
        }
    ],
}
"""Requests that between them have every member that is not refused, beside the common ones."""


@pytest.mark.parametrize("name", sorted(SERVED))
def test_every_member_of_a_request_is_acted_on_or_listed(name: str) -> None:
    """Fails when a newer model adds a member that would be ignored in silence."""
    read: set[str] = set()
    for request in REQUESTS.get(name, [{}]):
        backend = Memory()
        asyncio.run(backend.start_import(STORE, ImportRequest("j", ROLE, INPUT, OUTPUT)))
        recorded = Recording({**COMMON, **request}, read)
        refuse(name, recorded)
        asyncio.run(_answer(name, backend, recorded))
    beyond = REFUSED.get(name, frozenset()) | IGNORED.get(name, frozenset())
    wanted = {path for path in member_paths(MODEL.operations[name].input) if path.partition(".")[0] not in beyond}
    assert read >= wanted
    assert beyond <= MODEL.operations[name].input.members.keys()


@pytest.mark.parametrize("name", sorted(SERVED))
def test_every_member_of_an_answer_is_given_or_listed(name: str) -> None:
    """Fails when a newer model adds a member that we would never tell."""
    told: set[str] = set()
    operation = MODEL.operations[name]
    for request in REQUESTS.get(name, [{}]):
        backend = Memory()
        backend.versions = [
            backend._version(
                3 if name == "ListImageSetVersions" else 1,
                Workflow.UPDATED,
                updated_at=CREATED,
                deleted_at=CREATED,
                message="m",
                forced=True,
                accessed_at=CREATED,
            ),
        ]
        backend.versions.append(dataclasses.replace(backend.versions[0], version=2))
        asyncio.run(backend.create_datastore("second"))
        asyncio.run(backend.start_import(STORE, ImportRequest("j", ROLE, INPUT, OUTPUT)))
        backend.jobs[JOB] = dataclasses.replace(backend.jobs[JOB], message="m")
        backend.message = "m"
        told |= set(told_paths(operation.output, asyncio.run(_answer(name, backend, {**COMMON, **request}))))
    untold = UNTOLD.get(name, frozenset())
    # What the index tells of each image set is looked at where there is an index: tests/system/test_api.py.
    wanted = {path for path in member_paths(operation.output) if ".DICOMTags." not in path}
    assert {path for path in wanted - told if not any(f"{path}.".startswith(f"{one}.") for one in untold)} == set()
    assert not told & untold


def told_paths(shape: Shape, value: Any, path: str = "") -> Iterator[str]:
    """Every member of a shape that a value has."""
    if shape.type == "list" and shape.element:
        for item in value:
            yield from told_paths(shape.element, item, path)
    elif shape.type == "structure":
        for name, member in shape.members.items():
            if value.get(name) is not None:
                here = f"{path}.{name}" if path else name
                yield here
                yield from told_paths(member.shape, value[name], here)


async def _answer(name: str, backend: Memory, request: Mapping[str, Any]) -> dict[str, Any]:
    return await SERVED[name](Operations(backend, "us-east-1", "123456789012"), request, None)


@pytest.mark.parametrize(
    ("region", "partition"), [("eu-west-1", "aws"), ("us-gov-west-1", "aws-us-gov"), ("cn-north-1", "aws-cn")]
)
def test_arns_are_of_their_partition(region: str, partition: str) -> None:
    operations = Operations(Memory(), region, "210987654321")
    answer = asyncio.run(operations.get_datastore({"datastoreId": STORE}, None))
    arn = f"arn:{partition}:medical-imaging:{region}:210987654321:datastore/{STORE}"
    assert answer["datastoreProperties"]["datastoreArn"] == arn


# -- errors


def _kinds(kind: type[tree.GatewayError]) -> Iterator[type[tree.GatewayError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


def test_every_kind_of_error_has_a_row_that_agrees_with_the_model() -> None:
    kinds = {kind for kind in _kinds(tree.GatewayError) if kind.__module__ == tree.__name__}
    assert kinds == errors.TABLE.keys()
    for name, status in errors.TABLE.values():
        assert MODEL.errors.get(name, status) == status
    unmodelled = {name for name, _ in errors.TABLE.values()} - MODEL.errors.keys()
    assert unmodelled == {"RequestEntityTooLargeException", "ServiceUnavailable"}


@pytest.mark.parametrize("kind", sorted(errors.TABLE, key=repr))
def test_each_error_reaches_boto3_as_itself(aws: Any, backend: Memory, kind: type[tree.GatewayError]) -> None:
    backend.failure = kind("It is so; do otherwise.")
    with raises(*errors.TABLE[kind], "It is so; do otherwise."):
        aws.get_image_set(datastoreId=STORE, imageSetId=SET)


def test_each_error_reaches_the_javascript_sdk_as_itself(npm_packages: Path, running: Server, backend: Memory) -> None:
    general: set[str] = set()
    with Sdk(npm_packages) as sdk:
        for kind, (name, status) in errors.TABLE.items():
            backend.failure = kind("It is so; do otherwise.")
            with pytest.raises(SdkError) as caught:
                sdk.call(javascript_client(running.url), "GetImageSet", {"datastoreId": STORE, "imageSetId": SET})
            told = caught.value
            assert (told.name, told.message, told.status) == (name, "It is so; do otherwise.", status)
            assert told.fault == ("client" if status < 500 else "server")
            assert told.is_of_service
            general |= set() if told.is_modelled else {name}
    # This SDK has no class for the first: its model is older than ours.
    assert general == {"NotAcceptableException", "RequestEntityTooLargeException", "ServiceUnavailable"}


def test_a_kind_without_a_row_takes_the_one_above_it() -> None:
    class Odd(tree.Locked):
        pass

    assert errors.name_and_status(Odd()) == ("ConflictException", 409)


def test_an_error_on_the_wire(http: httpx.Client, backend: Memory) -> None:
    backend.failure = tree.Locked()
    answer = http.post(f"/datastore/{STORE}/imageSet/{SET}/deleteImageSet")
    assert answer.status_code == 409
    assert answer.headers["x-amzn-errortype"] == "ConflictException"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-amzn-requestid"]
    assert answer.json() == {"message": "The image set is locked by another operation."}


def test_a_fault_of_ours_says_nothing_of_its_cause(
    aws: Any, backend: Memory, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    backend.failure = RuntimeError("MARKER^PATIENT")
    with pytest.raises(ClientError) as caught:
        aws.get_image_set(datastoreId=STORE, imageSetId=SET)
    assert caught.value.response["Error"]["Code"] == "InternalServerException"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 500
    printed = capsys.readouterr()
    assert "RuntimeError" in caplog.text + printed.out + printed.err
    assert "MARKER" not in str(caught.value) + caplog.text + printed.out + printed.err


def test_a_strict_application_does_not_send_what_the_model_forbids(http: httpx.Client, backend: Memory) -> None:
    backend.versions = [backend._version(1, Workflow.CREATED, id=ImageSetId("short"))]
    assert http.post(f"/datastore/{STORE}/imageSet/{SET}/getImageSet").status_code == 500


# -- the wire


def test_all_faults_come_in_one_answer(http: httpx.Client, backend: Memory) -> None:
    answer = http.post(f"/datastore/X/imageSet/{SET}/getImageFrame", json={"imageFrameId": "SECRET!"})
    assert answer.status_code == 400
    assert answer.headers["x-amzn-errortype"] == "ValidationException"
    message = answer.json()["message"]
    assert message.startswith("2 validation errors detected: ")
    assert "'datastoreId'" in message
    assert "'imageFrameInformation.imageFrameId'" in message
    assert "SECRET" not in message
    assert backend.asked == []


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "OPTIONS", "HEAD", "DELETE"])
@pytest.mark.parametrize("path", ["/", "/nowhere", f"/datastore/{STORE}/searchImageSets", "/datastore/a/b/c/d/e/f/g"])
def test_other_paths_and_methods_are_unknown_operations(http: httpx.Client, method: str, path: str) -> None:
    answer = http.request(method, path)
    assert answer.status_code == 404
    assert answer.headers["x-amzn-errortype"] == "UnknownOperationException"
    assert method == "HEAD" or set(answer.json()) == {"message"}


def test_times_are_numbers_and_absent_values_are_left_out(http: httpx.Client) -> None:
    answer = http.post(f"/datastore/{STORE}/imageSet/{SET}/getImageSet")
    assert answer.headers["content-type"] == "application/json"
    assert b'"createdAt":1670362859.429' in answer.content
    assert b"null" not in answer.content
    assert "updatedAt" not in answer.json()


def test_the_host_routes_nothing(http: httpx.Client) -> None:
    for host in ("runtime-medical-imaging.us-east-1.amazonaws.com", "dicom-medical-imaging.eu-west-1.amazonaws.com"):
        assert http.get(f"/datastore/{STORE}", headers={"Host": host}).status_code == 200


def test_a_body_beyond_the_limit_is_refused_with_and_without_its_length(http: httpx.Client, backend: Memory) -> None:
    path = f"/datastore/{STORE}/searchImageSets"
    assert http.post(path, content=b" " * MAX_BODY_BYTES).status_code == 200

    def endless() -> Iterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 65536 + 1):
            yield b" " * 65536

    answer = http.post(path, content=endless())
    assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (413, "RequestEntityTooLargeException")
    messages = asyncio.run(call(path, b"", headers=[(b"content-length", b"9" * 30)]))
    assert messages[0]["status"] == 413


async def call(
    path: str,
    body: bytes,
    *,
    query: str = "",
    headers: Sequence[tuple[bytes, bytes]] = (),
    state: dict[str, Any] | None = None,
    backend: Memory | None = None,
    method: str = "POST",
    kind: str = "http.request",
) -> list[Any]:
    """The messages that the application sends for a request that no server has looked at before."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": kind, "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": quote(path, safe="/%:").encode(),
        "query_string": query.encode(),
        "headers": list(headers),
        "state": {} if state is None else state,
    }
    await app_over(backend or Memory())(scope, receive, send)
    return sent


def test_the_state_of_the_request_is_read_and_told() -> None:
    state: dict[str, Any] = {"request_id": "given-id"}
    start, _ = asyncio.run(call(f"/datastore/{STORE}/searchImageSets", b"", state=state))
    assert (b"x-amzn-requestid", b"given-id") in start["headers"]
    assert state["operation"] == "SearchImageSets"


def test_a_client_that_leaves_gets_no_answer_and_has_no_effect() -> None:
    backend = Memory()
    path = f"/datastore/{STORE}/imageSet/{SET}/deleteImageSet"
    assert asyncio.run(call(path, b"", kind="http.disconnect", backend=backend)) == []
    assert backend.asked == []


@pytest.mark.parametrize("name", sorted(SERVED))
def test_random_requests_never_make_it_fall_over(name: str) -> None:
    """100 bodies: noise, damaged JSON, and JSON of the right words in the wrong places."""
    rng = random.Random(name)
    operation = MODEL.operations[name]
    words: list[Any] = [*"{}[]", "filters", "values", "operator", "BETWEEN", "DICOMUpdates", "updatableAttributes", SET]
    words += ["revertToVersionId", "DICOMStudyDateAndTime", "1", "e30=", "eyJ9", "\0", "\N{SNOWMAN}", "", "createdAt"]
    names = [member.wire_name for shape in MODEL.shapes() for member in shape.members.values()]

    def value(depth: int) -> Any:
        kind = rng.randrange(9)
        if kind < 3 and depth < 6:
            return {rng.choice(names): value(depth + 1) for _ in range(rng.randrange(4))}
        if kind == 3 and depth < 6:
            return [value(depth + 1) for _ in range(rng.randrange(3))]
        if kind == 4:
            return rng.choice([0, -1, 2**31, 2**63, 10**30, 1e308, 0.5, True, False, None])
        return rng.choice(words)

    async def run() -> None:
        for turn in range(100):
            if turn % 4 == 0:
                body = rng.randbytes(rng.randrange(200))
            else:
                body = json.dumps(value(0) if turn % 4 < 3 else {rng.choice(names): value(0)}).encode()
                if turn % 8 == 1:
                    cut = rng.randrange(len(body) + 1)
                    body = body[:cut] + rng.randbytes(2) + body[cut:]
            label = rng.choice([STORE, SET, quote(rng.choice(words), safe=""), "%FF%00"])
            path = "".join("/" + (part if isinstance(part, str) else label) for part in operation.path)
            query = "&".join(f"{rng.choice(names)}={rng.choice(['1', 'true', '%FF', '', 'x'])}" for _ in range(3))
            query += "&latestVersion=1"
            start, _ = await call(path, body, query=query, method=operation.method)
            assert start["status"] < 500, (path, query, body)

    asyncio.run(run())


def test_the_fake_backend_is_a_backend() -> None:
    for port, count in ((HealthImaging, 18), (History, 2)):
        methods = [name for name, _ in inspect.getmembers(port, inspect.isfunction) if not name.startswith("_")]
        assert len(methods) == count
        for name in methods:
            assert inspect.signature(getattr(Memory, name)) == inspect.signature(getattr(port, name))
