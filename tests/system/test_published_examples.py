"""The published examples of the service (healthimaging.md 12), each by boto3, the AWS CLI and the AWS SDK for
JavaScript, on a running gateway.

Identifiers are those that the gateway gives; all else is as published. What each call did is read back by the other
faces: metadata documents, versions, searches, QIDO-RS, WADO-RS and C-FIND.
"""

import contextlib
import gzip
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import imagecodecs
import numpy as np
import pytest
from awscli.clidriver import create_clidriver
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import ClientError
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pynetdicom import AE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from demo.network import undisturbed
from gateway.awsjson.model import load
from tests.makers import instance, pixels, uid
from tests.node import Sdk, SdkError, javascript_client
from tests.running import RunningGateway, environment

MODEL = load()
U = "1.1.1.1.1.1.12345.123456789012.123.12345678901234.1"
"""Series and SOP Instance UID of the published update examples."""
HTJ2K = "1.2.840.10008.1.2.4.202"
ROLE = "arn:aws:iam::123456789012:role/ImportJobDataAccessRole"
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_DISABLE_HOST_PREFIX_INJECTION": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_PAGER": "",
}


_ERROR = re.compile(r"An error occurred \((\w+)\) when calling the \w+ operation(?: \([^)]*\))?: (.*)")
"""What the command line prints of a failed call."""


class Failed(Exception):
    """A call was answered with an error: its code and message, and the text that the client prints."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


Call = Callable[..., dict[str, Any]]


def spelled(name: str, parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """An operation and its input as the service model spells them."""
    operation = next(one for one in MODEL.operations.values() if xform_name(one.name) == name)
    members = {xform_name(member): member for member in operation.input.members}
    given = {members[key]: value for key, value in parameters.items()}
    updates = given.get("updateImageSetMetadataUpdates", {}).get("DICOMUpdates", {})
    for key, text in updates.items():
        updates[key] = text.encode()
    return operation.name, given


def boto_caller(url: str) -> Call:
    """Calls operations by their Python names, as the published Python examples do."""
    session = boto3.Session("AKIDEXAMPLE", "secret", region_name="us-east-1")
    config = Config(inject_host_prefix=False, retries={"total_max_attempts": 1}, proxies={})
    client = session.client("medical-imaging", endpoint_url=url, config=config)

    def call(name: str, outfile: Path | None = None, **parameters: Any) -> dict[str, Any]:
        _, given = spelled(name, parameters)
        try:
            answer: dict[str, Any] = getattr(client, name)(**given)
        except ClientError as error:
            raise Failed(error.response["Error"]["Code"], error.response["Error"]["Message"]) from None
        answer.pop("ResponseMetadata")
        if outfile is not None:
            blob = next(key for key, value in answer.items() if hasattr(value, "read"))
            outfile.write_bytes(answer.pop(blob).read())
        return answer

    return call


def javascript_caller(sdk: Sdk, url: str) -> Call:
    """Sends a command of each operation's name, as the published JavaScript examples do."""
    client = javascript_client(url)

    def call(name: str, outfile: Path | None = None, **parameters: Any) -> dict[str, Any]:
        operation, given = spelled(name, parameters)
        try:
            answer = sdk.call(client, operation, given, outfile)
        except SdkError as error:
            if not error.is_modelled:
                raise
            raise Failed(error.name, error.message) from None
        told = answer.pop("$metadata")
        assert told["httpStatusCode"] == 200
        assert told["requestId"]
        return answer

    return call


def cli_arguments(name: str, outfile: Path | None, parameters: Mapping[str, Any]) -> list[str]:
    arguments = ["medical-imaging", name.replace("_", "-")]
    for key, value in parameters.items():
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            arguments += [flag, value if isinstance(value, str) else json.dumps(value, default=str)]
    return arguments + ([str(outfile)] if outfile is not None else [])


def cli_caller(url: str) -> Call:
    """Calls operations by the command line, each in a session of its own, inside this process: starting one anew costs
    seconds; `test_the_command_line_as_it_is_typed` does."""

    def call(name: str, outfile: Path | None = None, **parameters: Any) -> dict[str, Any]:
        arguments = [*cli_arguments(name, outfile, parameters), "--endpoint-url", url, "--output", "json"]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = create_clidriver().main(arguments)
        if code:
            told = _ERROR.search(err.getvalue())
            assert told is not None, err.getvalue()
            raise Failed(told[1], told[2])
        return json.loads(out.getvalue() or "{}")  # type: ignore[no-any-return]

    return call


@dataclass
class Api:
    """One client of a running gateway, and the other faces to read back by."""

    gateway: RunningGateway
    http: httpx.Client
    call: Call
    client: str

    @property
    def is_cli(self) -> bool:
        return self.client == "cli"

    @property
    def store(self) -> str:
        return self.gateway.datastore

    @property
    def arn(self) -> str:
        return f"arn:aws:medical-imaging:us-east-1:123456789012:datastore/{self.store}"

    def on(self, image_set: str, name: str, outfile: Path | None = None, **parameters: Any) -> dict[str, Any]:
        """A call about an image set."""
        key = "source_image_set_id" if name == "copy_image_set" else "image_set_id"
        return self.call(name, outfile, datastore_id=self.store, **{key: image_set}, **parameters)

    def put(self, *files: bytes) -> str:
        """Stores instances of one series; their image set."""
        before = {item["imageSetId"] for item in self.search()}
        boundary = "b"
        parts = b"".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files)
        answer = self.http.post(
            "/dicomweb/studies",
            headers={"content-type": f'multipart/related; type="application/dicom"; boundary={boundary}'},
            content=parts + b"--b--\r\n",
        )
        assert answer.status_code == 200, answer.text
        (made,) = {item["imageSetId"] for item in self.search()} - before
        return str(made)

    def raw(self, path: str, **body: Any) -> Any:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def search(self, **criteria: Any) -> list[dict[str, Any]]:
        path = f"/datastore/{self.store}/searchImageSets?maxResults=50"
        return self.raw(path, **criteria)["imageSetsMetadataSummaries"]  # type: ignore[no-any-return]

    def at(self, image_set: str, version: str | None = None) -> dict[str, Any]:
        query = f"?version={version}" if version else ""
        return self.raw(f"/datastore/{self.store}/imageSet/{image_set}/getImageSet{query}")  # type: ignore[no-any-return]

    def settled(self, image_set: str) -> dict[str, Any]:
        """GetImageSet once nothing holds the image set any more."""
        deadline = time.monotonic() + 30
        while (found := self.at(image_set))["imageSetState"] == "LOCKED":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return found

    def document(self, image_set: str, version: str | None = None) -> dict[str, Any]:
        query = f"?version={version}" if version else ""
        return self.raw(  # type: ignore[no-any-return]
            f"/datastore/{self.store}/imageSet/{image_set}/getImageSetMetadata{query}"
        )

    def instances(self, image_set: str, version: str | None = None) -> dict[str, Any]:
        (series,) = self.document(image_set, version)["Study"]["Series"].values()
        return series["Instances"]  # type: ignore[no-any-return]

    def versions(self, image_set: str) -> list[tuple[str, str]]:
        listed = self.raw(f"/datastore/{self.store}/imageSet/{image_set}/listImageSetVersions")
        return [(item["versionId"], item["ImageSetWorkflowStatus"]) for item in listed["imageSetPropertiesList"]]

    def qido(self, path: str = "/studies", **query: str) -> list[dict[str, Any]]:
        answer = self.http.get(f"/dicomweb{path}", params=query)
        assert answer.status_code == 200
        return answer.json()  # type: ignore[no-any-return]

    def wado(self, study: str, **query: str) -> list[dict[str, Any]]:
        answer = self.http.get(f"/dicomweb/studies/{study}/metadata", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def find(self, **keys: str) -> list[Dataset]:
        """C-FIND at study level."""
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "STUDY"
        for keyword, value in keys.items():
            setattr(identifier, keyword, value)
        entity = AE()
        entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
        association = undisturbed(entity.associate(*self.gateway.dimse, ae_title=self.gateway.aet))
        assert association.is_established
        try:
            answers = association.send_c_find(identifier, StudyRootQueryRetrieveInformationModelFind)
            return [found for status, found in answers if status.Status == 0xFF00 and found is not None]
        finally:
            association.release()

    def time(self, text: str) -> Any:
        """A timestamp as its client takes it."""
        return text if self.is_cli else datetime.fromisoformat(text.replace("Z", "+00:00"))

    def told(self, value: Any) -> float:
        """A timestamp of an answer, in epoch seconds."""
        return value.timestamp() if isinstance(value, datetime) else float(value)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("examples")
    for bucket in ("medical-imaging-dicom-input", "medical-imaging-output"):
        (folder / "s3" / bucket).mkdir(parents=True)
    started = RunningGateway(folder / "data", "--s3-root", str(folder / "s3"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def sdk(npm_packages: Path) -> Iterator[Sdk]:
    with Sdk(npm_packages) as started:
        yield started


@pytest.fixture(params=["boto3", "cli", "javascript"])
def api(request: pytest.FixtureRequest, running: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A client, on an empty default data store."""
    for name, value in _ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    if request.param == "javascript":
        call = javascript_caller(request.getfixturevalue("sdk"), running.http)
    else:
        call = (cli_caller if request.param == "cli" else boto_caller)(running.http)
    with httpx.Client(base_url=running.http, timeout=30) as http:
        made = Api(running, http, call, request.param)
        yield made
        clear(made)


def clear(made: Api) -> None:
    """Deletes every image set of the default data store."""
    for item in made.search():
        image_set = item["imageSetId"]
        with contextlib.suppress(AssertionError):  # deleted already, or about to be
            made.settled(image_set)
            made.raw(f"/datastore/{made.store}/imageSet/{image_set}/deleteImageSet")
    deadline = time.monotonic() + 30
    while made.search():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def updates(**documents: Any) -> dict[str, Any]:
    return {"DICOMUpdates": {f"{name}Attributes": json.dumps(document) for name, document in documents.items()}}


def of_instance(series: str, sop: str, **node: Any) -> dict[str, Any]:
    return {"SchemaVersion": 1.1, "Study": {"Series": {series: {"Instances": {sop: node}}}}}


STUDY = uid(12)


def slice_(number: int, series: str = uid(12, 1), sop: str | None = None, **attributes: Any) -> bytes:
    attributes = {"InstanceNumber": number, **attributes}
    return instance(STUDY, series, sop or uid(12, 1, number), pixels(number), **attributes)


# ---------------------------------------------------------------- rows 1 to 3: data stores


def test_rows_1_to_3_the_life_of_a_data_store(api: Api) -> None:
    made = api.call("create_datastore", datastore_name="my-datastore")
    assert made.keys() == {"datastoreId", "datastoreStatus"}
    assert made["datastoreStatus"] == "CREATING"
    store = made["datastoreId"]
    got = api.call("get_datastore", datastore_id=store)["datastoreProperties"]
    assert (got["datastoreName"], got["datastoreStatus"]) == ("my-datastore", "ACTIVE")
    assert got["datastoreArn"] == api.arn.replace(api.store, store)
    assert api.told(got["createdAt"]) == api.told(got["updatedAt"]) > time.time() - 60
    assert got["losslessStorageFormat"] == "HTJ2K"
    listed = api.call("list_datastores")["datastoreSummaries"]
    assert [one for one in listed if one["datastoreId"] == store] == [
        {key: value for key, value in got.items() if key != "losslessStorageFormat"}
    ]
    assert api.call("delete_datastore", datastore_id=store) == {"datastoreId": store, "datastoreStatus": "DELETING"}
    assert api.call("get_datastore", datastore_id=store)["datastoreProperties"]["datastoreStatus"] == "DELETED"
    with pytest.raises(Failed, match="ConflictException"):
        api.call("delete_datastore", datastore_id=api.store)


# ---------------------------------------------------------------- rows 4 to 6: import jobs


def test_rows_4_to_6_an_import_job(api: Api) -> None:
    buckets = api.gateway.data.parent / "s3"
    folder = buckets / "medical-imaging-dicom-input" / "dicom_input"
    folder.mkdir(exist_ok=True)
    (folder / "a.dcm").write_bytes(slice_(1))
    (folder / "b.txt").write_bytes(b"not DICOM")
    started = api.call(
        "start_dicom_import_job",
        job_name="my-job",
        datastore_id=api.store,
        input_s3_uri="s3://medical-imaging-dicom-input/dicom_input/",
        output_s3_uri="s3://medical-imaging-output/job_output/",
        data_access_role_arn=ROLE,
    )
    assert started.keys() == {"datastoreId", "jobId", "jobStatus", "submittedAt"}
    assert (started["datastoreId"], started["jobStatus"]) == (api.store, "SUBMITTED")
    job = started["jobId"]
    deadline = time.monotonic() + 30
    while True:
        got = api.call("get_dicom_import_job", datastore_id=api.store, job_id=job)["jobProperties"]
        if got["jobStatus"] not in ("SUBMITTED", "IN_PROGRESS"):
            break
        assert time.monotonic() < deadline
    assert api.told(got.pop("endedAt")) >= api.told(got["submittedAt"]) > time.time() - 60
    submitted = got.pop("submittedAt")
    assert got == {
        "jobId": job,
        "jobName": "my-job",
        "jobStatus": "COMPLETED",
        "datastoreId": api.store,
        "dataAccessRoleArn": ROLE,
        "inputS3Uri": "s3://medical-imaging-dicom-input/dicom_input/",
        "outputS3Uri": f"s3://medical-imaging-output/job_output/{api.store}-DicomImport-{job}/",
    }
    listed = api.call("list_dicom_import_jobs", datastore_id=api.store)["jobSummaries"]
    assert listed[0]["jobId"] == job
    assert listed[0]["submittedAt"] == submitted
    assert not {"inputS3Uri", "outputS3Uri"} & listed[0].keys()
    output = buckets / got["outputS3Uri"].removeprefix("s3://")
    summary = json.loads((output / "job-output-manifest.json").read_bytes())["jobSummary"]
    assert (summary["numberOfScannedFiles"], summary["numberOfImportedFiles"]) == (2, 1)
    (found,) = api.search()
    assert summary["imageSetsSummary"][0]["imageSetId"] == found["imageSetId"]
    assert api.versions(found["imageSetId"]) == [("1", "CREATED")]
    assert list(api.instances(found["imageSetId"])) == [uid(12, 1, 1)]
    assert len(api.qido(StudyInstanceUID=STUDY)) == len(api.wado(STUDY)) == len(api.find(StudyInstanceUID=STUDY)) == 1


# ---------------------------------------------------------------- rows 7 to 10: searches

PUBLISHED_STUDY = "1.2.840.99999999.84710745.943275268089"


@pytest.fixture
def melissa(api: Api) -> str:
    """The published image set's attributes."""
    return api.put(
        instance(
            PUBLISHED_STUDY,
            PUBLISHED_STUDY,
            uid(12, 7),
            pixels(7),
            PatientID="SUBJECT08701",
            PatientName="Melissa844 Huel628",
            PatientSex="F",
            PatientBirthDate="19201120",
            StudyID="2011201407",
            StudyDate="19991122",
            StudyTime="140728",
            StudyDescription="UNKNOWN",
            AccessionNumber="A7",
            BodyPartExamined="HEAD",
        )
    )


def searched(api: Api, criteria: dict[str, Any]) -> dict[str, Any]:
    return api.call("search_image_sets", datastore_id=api.store, search_criteria=criteria)


def test_row_7_by_patient(api: Api, melissa: str) -> None:
    api.put(slice_(1))
    found = searched(api, {"filters": [{"values": [{"DICOMPatientId": "SUBJECT08701"}], "operator": "EQUAL"}]})
    (item,) = found["imageSetsMetadataSummaries"]
    assert (item["imageSetId"], item["version"], item["isPrimary"]) == (melissa, 1, True)
    assert item["storageTier"] == "FREQUENT_ACCESS"
    assert item["DICOMTags"] == {
        "DICOMPatientId": "SUBJECT08701",
        "DICOMPatientName": "Melissa844 Huel628",
        "DICOMPatientBirthDate": "19201120",
        "DICOMPatientSex": "F",
        "DICOMStudyInstanceUID": PUBLISHED_STUDY,
        "DICOMStudyId": "2011201407",
        "DICOMStudyDescription": "UNKNOWN",
        "DICOMNumberOfStudyRelatedSeries": 1,
        "DICOMNumberOfStudyRelatedInstances": 1,
        "DICOMAccessionNumber": "A7",
        "DICOMSeriesInstanceUID": PUBLISHED_STUDY,
        "DICOMSeriesModality": "CT",
        "DICOMSeriesBodyPart": "HEAD",
        "DICOMSeriesNumber": 1,
        "DICOMStudyDate": "19991122",
        "DICOMStudyTime": "140728",
    }
    shapes = {shape.name: shape for shape in MODEL.shapes()}
    assert item["DICOMTags"].keys() == shapes["DICOMTags"].members.keys(), "the model knows a tag that we never tell"
    assert api.find(PatientID="SUBJECT08701", PatientName="")[0].PatientName == "Melissa844 Huel628"
    for key, value in (
        ("DICOMAccessionNumber", "A7"),
        ("DICOMStudyId", "2011201407"),
        ("DICOMStudyInstanceUID", PUBLISHED_STUDY),
        ("DICOMSeriesInstanceUID", PUBLISHED_STUDY),
    ):
        assert [one["imageSetId"] for one in api.search(filters=[{"operator": "EQUAL", "values": [{key: value}]}])] == [
            melissa
        ], key
    for near in ("subject08701", "SUBJECT0870", "SUBJECT*"):
        assert api.search(filters=[{"operator": "EQUAL", "values": [{"DICOMPatientId": near}]}]) == []
    primary = {"operator": "EQUAL", "values": [{"isPrimary": True}]}
    assert len(api.search(filters=[primary])) == 2
    assert api.search(filters=[{"operator": "EQUAL", "values": [{"isPrimary": False}]}]) == []


def test_row_8_by_study_date(api: Api, melissa: str) -> None:
    moments = [
        {"DICOMStudyDateAndTime": {"DICOMStudyDate": date, "DICOMStudyTime": "000000"}}
        for date in ("19900101", "20230101")
    ]
    found = searched(api, {"filters": [{"values": moments, "operator": "BETWEEN"}]})
    assert [item["imageSetId"] for item in found["imageSetsMetadataSummaries"]] == [melissa]
    exact = {"DICOMStudyDateAndTime": {"DICOMStudyDate": "19991122", "DICOMStudyTime": "140728"}}
    later = {"DICOMStudyDateAndTime": {"DICOMStudyDate": "19991122", "DICOMStudyTime": "140729"}}
    assert len(api.search(filters=[{"operator": "BETWEEN", "values": [exact, exact]}])) == 1
    assert api.search(filters=[{"operator": "BETWEEN", "values": [later, moments[1]]}]) == []


def test_row_9_by_time_of_creation(api: Api, melissa: str) -> None:
    published = [api.time("1985-04-12T23:20:50.520Z"), api.time("2022-04-12T23:20:50.520Z")]
    criteria = {"filters": [{"values": [{"createdAt": value} for value in published], "operator": "BETWEEN"}]}
    assert searched(api, criteria)["imageSetsMetadataSummaries"] == []
    until = [published[0], api.time("2122-04-12T23:20:50.520Z")]
    criteria = {"filters": [{"values": [{"createdAt": value} for value in until], "operator": "BETWEEN"}]}
    assert [item["imageSetId"] for item in searched(api, criteria)["imageSetsMetadataSummaries"]] == [melissa]


def test_row_10_by_two_filters_and_sorted(api: Api, melissa: str) -> None:
    api.put(slice_(1))
    now = datetime.now(UTC)
    values = [api.time((now + timedelta(hours=hours)).isoformat(timespec="milliseconds")) for hours in (-1, 1)]
    filters = [
        {"values": [{"updatedAt": value} for value in values], "operator": "BETWEEN"},
        {"values": [{"DICOMSeriesInstanceUID": PUBLISHED_STUDY}], "operator": "EQUAL"},
    ]
    sort = {"sortField": "updatedAt", "sortOrder": "ASC"}
    found = searched(api, {"filters": filters, "sort": sort})
    assert [item["imageSetId"] for item in found["imageSetsMetadataSummaries"]] == [melissa]
    assert found["sort"] == sort
    ascending = [item["imageSetId"] for item in api.search(filters=filters[1:2], sort=sort)]
    assert ascending == [melissa]
    everything = [item["imageSetId"] for item in api.search(sort=sort)]
    assert everything[0] == melissa
    assert [item["imageSetId"] for item in api.search()] == everything[::-1], "newest update first by itself"


# ---------------------------------------------------------------- rows 11 to 16: image sets


def test_rows_11_to_13_an_image_set_its_metadata_and_a_frame(api: Api, tmp_path: Path) -> None:
    image_set = api.put(slice_(1))
    copied = api.on(
        image_set, "copy_image_set", copy_image_set_information={"sourceImageSet": {"latestVersionId": "1"}}
    )
    made = copied["destinationImageSetProperties"]["imageSetId"]
    api.settled(made)
    got = api.on(made, "get_image_set", version_id="1")
    assert {key: got[key] for key in ("versionId", "imageSetState", "imageSetWorkflowStatus", "imageSetId")} == {
        "versionId": "1",
        "imageSetState": "ACTIVE",
        "imageSetWorkflowStatus": "COPIED",
        "imageSetId": made,
    }
    assert api.told(got["createdAt"]) <= api.told(got["updatedAt"])
    assert (got["imageSetArn"], got["isPrimary"]) == (f"{api.arn}/imageset/{made}", False)
    for version in ({}, {"version_id": "1"}):
        file = tmp_path / f"studymetadata{len(version)}.json.gz"
        answer = api.on(made, "get_image_set_metadata", file, **version)
        assert answer == {"contentType": "application/json", "contentEncoding": "gzip"}
        assert json.loads(gzip.decompress(file.read_bytes())) == api.document(made)
    frame = api.instances(made)[uid(12, 1, 1)]["ImageFrames"][0]["ID"]
    file = tmp_path / "imageframe.jph"
    information = {"imageFrameId": frame}
    assert api.on(made, "get_image_frame", file, image_frame_information=information) == {"contentType": "image/jph"}
    accept = f'multipart/related; type="image/jphc"; transfer-syntax={HTJ2K}'
    for type_ in ("image/jphc", "image/jph", "*/*"):
        raw = api.http.get(
            f"/dicomweb/studies/{STUDY}/series/{uid(12, 1)}/instances/{uid(12, 1, 1)}/frames/1",
            headers={"accept": accept.replace("image/jphc", type_)},
        )
        if raw.status_code == 200:
            break
    assert file.read_bytes() in raw.content, "the very bytes that WADO-RS gives"
    with pytest.raises(Failed, match="ResourceNotFoundException"):
        api.on(made, "get_image_frame", file, image_frame_information={"imageFrameId": "0" * 32})


def test_row_14_the_versions_of_a_history(api: Api) -> None:
    """As published: copied from, a copy into it that failed, and two updates."""
    image_set = api.put(slice_(1))
    information = {"sourceImageSet": {"latestVersionId": "1"}}
    api.on(image_set, "copy_image_set", copy_image_set_information=information)
    api.settled(image_set)
    other = api.put(slice_(1, uid(12, 2), uid(12, 2, 1)))
    into = information | {"destinationImageSet": {"imageSetId": image_set, "latestVersionId": "1"}}
    api.on(other, "copy_image_set", copy_image_set_information=into)
    assert api.settled(image_set)["imageSetWorkflowStatus"] == "COPY_FAILED"
    for version, name in (("2", "A^A"), ("3", "B^B")):
        asked = updates(updatable={"SchemaVersion": 1.1, "Patient": {"DICOM": {"PatientSex": name[0]}}})
        api.on(
            image_set, "update_image_set_metadata", latest_version_id=version, update_image_set_metadata_updates=asked
        )
        api.settled(image_set)
    listed = api.on(image_set, "list_image_set_versions")["imageSetPropertiesList"]
    assert [(item["versionId"], item["ImageSetWorkflowStatus"], item["imageSetState"]) for item in listed] == [
        ("4", "UPDATED", "ACTIVE"),
        ("3", "UPDATED", "ACTIVE"),
        ("2", "COPY_FAILED", "ACTIVE"),
        ("1", "COPIED", "ACTIVE"),
    ]
    assert "Series of SourceImageSet and DestinationImageSet don't match." in listed[2]["message"]
    assert "updatedAt" not in listed[3]
    assert len({api.told(item["createdAt"]) for item in listed}) == 1
    assert api.document(image_set, "2") == api.document(image_set, "1")
    pages = [
        api.on(image_set, "list_image_set_versions", **{"max_results": 3} if not api.is_cli else {"max_items": "3"})
    ]
    assert [item["versionId"] for item in pages[0]["imageSetPropertiesList"]] == ["4", "3", "2"]
    assert pages[0].get("nextToken") or pages[0].get("NextToken")


def test_row_15_tags(api: Api) -> None:
    image_set = api.put(slice_(1))
    for arn in (api.arn, f"{api.arn}/imageset/{image_set}"):
        assert api.call("tag_resource", resource_arn=arn, tags={"Deployment": "Development"}) == {}
        assert api.call("list_tags_for_resource", resource_arn=arn) == {"tags": {"Deployment": "Development"}}
        assert api.call("untag_resource", resource_arn=arn, tag_keys=["Deployment"]) == {}
        assert api.call("list_tags_for_resource", resource_arn=arn) == {"tags": {}}
    with pytest.raises(Failed, match="ResourceNotFoundException"):
        api.call("list_tags_for_resource", resource_arn=f"{api.arn}/imageset/{'0' * 32}")


def test_row_16_delete(api: Api) -> None:
    image_set = api.put(slice_(1))
    assert api.on(image_set, "delete_image_set") == {
        "datastoreId": api.store,
        "imageSetId": image_set,
        "imageSetState": "LOCKED",
        "imageSetWorkflowStatus": "DELETING",
    }
    deadline = time.monotonic() + 30
    while api.search():
        assert time.monotonic() < deadline
    for name in ("get_image_set", "list_image_set_versions", "delete_image_set"):
        with pytest.raises(Failed, match="ResourceNotFoundException"):
            api.on(image_set, name)
    assert api.qido(StudyInstanceUID=STUDY) == api.find(StudyInstanceUID=STUDY) == []
    assert api.http.get(f"/dicomweb/studies/{STUDY}/metadata").status_code == 410


# ---------------------------------------------------------------- rows 17 to 20: copies


def copied(api: Api, source: str, version: str = "1", *, subset: Any = None, into: Any = None, **more: Any) -> Any:
    """CopyImageSet, and its destination once it is there."""
    information: dict[str, Any] = {"sourceImageSet": {"latestVersionId": version}}
    if subset is not None:
        information["sourceImageSet"]["DICOMCopies"] = {"copiableAttributes": json.dumps(subset)}
    if into is not None:
        information["destinationImageSet"] = {"imageSetId": into[0], "latestVersionId": into[1]}
    answer = api.on(source, "copy_image_set", copy_image_set_information=information, **more)
    api.settled(source)
    return answer, api.settled(answer["destinationImageSetProperties"]["imageSetId"])


def test_row_17_a_copy(api: Api) -> None:
    source = api.put(slice_(1), slice_(2))
    answer, made = copied(api, source)
    target = answer["destinationImageSetProperties"]
    assert answer["datastoreId"] == api.store
    assert {key: target[key] for key in ("imageSetWorkflowStatus", "imageSetState", "latestVersionId")} == {
        "imageSetWorkflowStatus": "COPYING",
        "imageSetState": "LOCKED",
        "latestVersionId": "1",
    }
    assert target["createdAt"] == target["updatedAt"]
    assert target["imageSetArn"] == f"{api.arn}/imageset/{target['imageSetId']}"
    origin = answer["sourceImageSetProperties"]
    assert (origin["imageSetId"], origin["latestVersionId"], origin["imageSetState"]) == (source, "1", "LOCKED")
    assert origin["imageSetWorkflowStatus"] == "COPYING_WITH_READ_ONLY_ACCESS"
    assert (made["imageSetState"], made["imageSetWorkflowStatus"], made["versionId"]) == ("ACTIVE", "COPIED", "1")
    assert api.versions(source) == api.versions(made["imageSetId"]) == [("1", "COPIED")]
    assert api.instances(made["imageSetId"]) == api.instances(source)
    assert {item["imageSetId"]: item["isPrimary"] for item in api.search()} == {
        source: True,
        made["imageSetId"]: False,
    }
    assert len(api.wado(STUDY, imageSetId=made["imageSetId"])) == 2
    assert len(api.wado(STUDY)) == 2
    assert len(api.find(StudyInstanceUID=STUDY)) == 1


def test_row_18_a_copy_into_an_image_set(api: Api) -> None:
    source = api.put(slice_(1), slice_(2))
    _, duplicate = copied(api, source)
    answer, failed = copied(api, source, into=(duplicate["imageSetId"], "1"))
    assert answer["destinationImageSetProperties"]["latestVersionId"] == "2"
    assert (failed["imageSetWorkflowStatus"], failed["versionId"]) == ("COPY_FAILED", "2"), "it has the same instances"
    one = {"SchemaVersion": "1.1", "Study": {"Series": {uid(12, 1): {"Instances": {uid(12, 1, 1): {}}}}}}
    two = {"SchemaVersion": "1.1", "Study": {"Series": {uid(12, 1): {"Instances": {uid(12, 1, 2): {}}}}}}
    _, half = copied(api, source, subset=one)
    answer, made = copied(api, source, subset=two, into=(half["imageSetId"], "1"))
    assert answer["destinationImageSetProperties"]["latestVersionId"] == made["versionId"] == "2"
    assert made["imageSetWorkflowStatus"] == "COPIED"
    assert sorted(api.instances(half["imageSetId"])) == [uid(12, 1, 1), uid(12, 1, 2)]


SERIES_19 = "1.3.6.1.4.1.5962.99.1.3673257865.2104868982.1369432891697.3666.0"
SOP_19 = "1.3.6.1.4.1.5962.99.1.3673257865.2104868982.1369432891697.3669.0"


def test_row_19_a_forced_copy_of_one_instance(api: Api) -> None:
    source = api.put(
        slice_(1, SERIES_19, SOP_19, PatientName="Source^Name", SeriesDescription="SOURCE"),
        slice_(2, SERIES_19, uid(12, 1, 9), PatientName="Source^Name"),
    )
    target = api.put(slice_(3, PatientName="Target^Name"))
    before = api.document(target)
    subset = {"SchemaVersion": "1.1", "Study": {"Series": {SERIES_19: {"Instances": {SOP_19: {}}}}}}
    answer, made = copied(api, source, subset=subset, into=(target, "1"), force=True)
    assert answer["destinationImageSetProperties"]["latestVersionId"] == "2"
    assert (made["imageSetWorkflowStatus"], made["overrides"]) == ("COPIED", {"forced": True})
    after = api.document(target)
    assert sorted(api.instances(target)) == sorted([SOP_19, uid(12, 1, 3)])
    assert (after["Patient"], after["Study"]["DICOM"]) == (before["Patient"], before["Study"]["DICOM"])
    assert list(after["Study"]["Series"]) == [uid(12, 1)]
    seen = {one["00080018"]["Value"][0]: one for one in api.wado(STUDY) if one["0020000E"]["Value"] == [uid(12, 1)]}
    assert seen.keys() == {SOP_19, uid(12, 1, 3)}
    assert {one["00100010"]["Value"][0]["Alphabetic"] for one in seen.values()} == {"Target^Name"}
    (study,) = api.find(StudyInstanceUID=STUDY, NumberOfStudyRelatedInstances="")
    assert study.NumberOfStudyRelatedInstances == 4


def test_row_20_the_copies_of_the_program_examples(api: Api) -> None:
    """The Java and Python examples always send `force`; the JavaScript one puts `dicomCopies` where nobody looks."""
    source = api.put(slice_(1), slice_(2))
    _, made = copied(api, source, force=False)
    assert made["imageSetWorkflowStatus"] == "COPIED"
    _, forced = copied(api, source, force=True)
    assert forced["overrides"] == {"forced": True}
    misplaced = {
        "sourceImageSet": {"latestVersionId": "1"},
        "dicomCopies": {"copiableAttributes": json.dumps({"Study": {"Series": {"imageSetId": {}}}})},
    }
    answer = api.raw(f"/datastore/{api.store}/imageSet/{source}/copyImageSet?force=true", **misplaced)
    whole = api.settled(answer["destinationImageSetProperties"]["imageSetId"])["imageSetId"]
    api.settled(source)
    assert len(api.instances(whole)) == 2, "everything is copied"
    quirk = {"SchemaVersion": "1.1", "Study": {"Series": {"imageSetId": {"Instances": {"0" * 32: {}}}}}}
    _, failed = copied(api, source, subset=quirk, force=True)
    assert (failed["imageSetWorkflowStatus"], failed["message"]) == (
        "COPY_FAILED",
        "INVALID_REQUEST: A series named in copiableAttributes is not in SourceImageSet.",
    )


@pytest.mark.parametrize("api", ["javascript"], indirect=True)
def test_row_20_the_copies_of_the_javascript_example(api: Api) -> None:
    """It always sends `force`, and a subset beside `sourceImageSet`, as an object: the SDK leaves that out."""

    def example(source: str, destination: str | None, *, force: bool = False, subset: Sequence[str] = ()) -> Any:
        information: dict[str, Any] = {"sourceImageSet": {"latestVersionId": "1"}}
        if destination is not None:
            information["destinationImageSet"] = {"imageSetId": destination, "latestVersionId": "1"}
        if subset:
            instances: dict[str, Any] = {one: {} for one in subset}
            named = {"SchemaVersion": 1.1, "Study": {"Series": {"imageSetId": {"Instances": instances}}}}
            information["dicomCopies"] = named
        answer = api.on(source, "copy_image_set", copy_image_set_information=information, force=force)
        api.settled(source)
        target, origin = answer["destinationImageSetProperties"], answer["sourceImageSetProperties"]
        assert answer["datastoreId"] == api.store
        assert (target["imageSetState"], target["imageSetWorkflowStatus"]) == ("LOCKED", "COPYING")
        assert (origin["imageSetState"], origin["latestVersionId"]) == ("LOCKED", "1")
        assert origin["imageSetWorkflowStatus"] == "COPYING_WITH_READ_ONLY_ACCESS"
        for told in (target, origin):
            assert told["imageSetArn"] == f"{api.arn}/imageset/{told['imageSetId']}"
            assert isinstance(told["createdAt"], datetime)
            assert isinstance(told["updatedAt"], datetime)
        return api.settled(target["imageSetId"])

    def shown(image_set: str) -> tuple[set[str], set[str]]:
        """Its instances, as the metadata document and WADO-RS tell them."""
        seen = {one["00080018"]["Value"][0] for one in api.wado(STUDY, imageSetId=image_set)}
        return set(api.instances(image_set)), seen

    first, second, third = uid(12, 1, 1), uid(12, 1, 2), uid(12, 2, 1)
    source = api.put(slice_(1), slice_(2))
    made = example(source, None)
    assert (made["versionId"], made["imageSetWorkflowStatus"], made["isPrimary"]) == ("1", "COPIED", False)
    assert shown(made["imageSetId"]) == ({first, second}, {first, second})
    assert api.versions(made["imageSetId"]) == api.versions(source) == [("1", "COPIED")]

    # As published with a destination: which needs to be consistent, and to have none of the instances.
    failed = example(source, made["imageSetId"])
    assert (failed["versionId"], failed["imageSetWorkflowStatus"]) == ("2", "COPY_FAILED")
    assert shown(made["imageSetId"]) == ({first, second}, {first, second})
    only = {"SchemaVersion": "1.1", "Study": {"Series": {uid(12, 1): {"Instances": {first: {}}}}}}
    beside = {"SchemaVersion": "1.1", "Study": {"Series": {uid(12, 1): {"Instances": {second: {}}}}}}
    _, half = copied(api, source, subset=only)
    _, rest = copied(api, source, subset=beside)
    whole = example(half["imageSetId"], rest["imageSetId"])
    assert (whole["versionId"], whole["imageSetWorkflowStatus"]) == ("2", "COPIED")
    assert shown(rest["imageSetId"]) == ({first, second}, {first, second})
    assert api.versions(rest["imageSetId"]) == [("2", "COPIED"), ("1", "COPIED")]

    # And forced, with a subset: all instances are copied, into whichever destination.
    target = api.put(slice_(3, uid(12, 2), third))
    forced = example(source, target, force=True, subset=["1" * 32, "11223344556677889900112233445566"])
    assert (forced["versionId"], forced["imageSetWorkflowStatus"]) == ("2", "COPIED")
    assert (forced["overrides"], forced["isPrimary"]) == ({"forced": True}, True)
    assert shown(target) == ({first, second, third}, {first, second, third})
    assert api.versions(target) == [("2", "COPIED"), ("1", "CREATED")]

    assert {item["imageSetId"]: item["version"] for item in api.search()} == {
        source: 1,
        made["imageSetId"]: 2,
        half["imageSetId"]: 1,
        rest["imageSetId"]: 2,
        target: 2,
    }
    found = [row["00080018"]["Value"][0] for row in api.qido(f"/studies/{STUDY}/series/{uid(12, 2)}/instances")]
    assert sorted(found) == sorted([first, second, third])
    (study,) = api.find(StudyInstanceUID=STUDY, NumberOfStudyRelatedInstances="")
    assert study.NumberOfStudyRelatedInstances == 5


# ---------------------------------------------------------------- rows 21 to 28: updates


def updated(api: Api, image_set: str, version: str, asked: dict[str, Any], **more: Any) -> dict[str, Any]:
    """UpdateImageSetMetadata, its answer checked, and the image set once that is done."""
    answer = api.on(
        image_set,
        "update_image_set_metadata",
        latest_version_id=version,
        update_image_set_metadata_updates=asked,
        **more,
    )
    assert answer.keys() == {
        "datastoreId",
        "imageSetId",
        "latestVersionId",
        "imageSetState",
        "imageSetWorkflowStatus",
        "createdAt",
        "updatedAt",
    }
    assert (answer["datastoreId"], answer["imageSetId"]) == (api.store, image_set)
    assert answer["latestVersionId"] == str(int(version) + 1)
    assert (answer["imageSetState"], answer["imageSetWorkflowStatus"]) == ("LOCKED", "UPDATING")
    return api.settled(image_set)


def test_row_21_a_name_is_set(api: Api) -> None:
    image_set = api.put(slice_(1))
    asked = updates(updatable={"SchemaVersion": 1.1, "Patient": {"DICOM": {"PatientName": "MX^MX"}}})
    made = updated(api, image_set, "1", asked)
    assert (made["versionId"], made["imageSetWorkflowStatus"]) == ("2", "UPDATED")
    assert api.document(image_set)["Patient"]["DICOM"]["PatientName"] == "MX^MX"
    assert api.document(image_set, "1")["Patient"]["DICOM"]["PatientName"] == "Doe^Jane"
    assert api.versions(image_set) == [("2", "UPDATED"), ("1", "CREATED")]
    assert api.search()[0]["DICOMTags"]["DICOMPatientName"] == "MX^MX"
    assert len(api.qido(PatientName="MX^MX")) == 1
    assert api.wado(STUDY)[0]["00100010"]["Value"] == [{"Alphabetic": "MX^MX"}]
    assert api.find(StudyInstanceUID=STUDY, PatientName="")[0].PatientName == "MX^MX"


@pytest.mark.parametrize(("value", "status"), [("CHEST", "UPDATED"), ("HEAD", "UPDATE_FAILED")])
def test_row_22_a_description_is_removed_if_it_is_the_one_named(api: Api, value: str, status: str) -> None:
    image_set = api.put(slice_(1, StudyDescription=value))
    asked = updates(removable={"SchemaVersion": 1.1, "Study": {"DICOM": {"StudyDescription": "CHEST"}}})
    made = updated(api, image_set, "1", asked)
    assert (made["versionId"], made["imageSetWorkflowStatus"]) == ("2", status)
    gone = status == "UPDATED"
    assert ("StudyDescription" not in api.document(image_set)["Study"]["DICOM"]) == gone
    assert ("00081030" not in api.wado(STUDY)[0]) == gone
    assert (api.qido(StudyDescription=value) == []) == gone
    assert ("DICOMStudyDescription" not in api.search()[0]["DICOMTags"]) == gone


def test_row_23_an_instance_is_removed(api: Api) -> None:
    image_set = api.put(slice_(1, U, U), slice_(2, U, f"{U}.2"))
    made = updated(api, image_set, "1", updates(removable=of_instance(U, U)))
    assert (made["versionId"], made["imageSetWorkflowStatus"]) == ("2", "UPDATED")
    assert list(api.instances(image_set)) == [f"{U}.2"]
    assert sorted(api.instances(image_set, "1")) == [U, f"{U}.2"]
    assert [one["00080018"]["Value"] for one in api.wado(STUDY)] == [[f"{U}.2"]]
    assert api.search()[0]["DICOMTags"]["DICOMNumberOfStudyRelatedInstances"] == 1
    assert len(api.qido(f"/studies/{STUDY}/series/{U}/instances")) == 1
    assert api.find(StudyInstanceUID=STUDY, NumberOfStudyRelatedInstances="")[0].NumberOfStudyRelatedInstances == 1


def test_row_24_back_to_a_version(api: Api) -> None:
    image_set = api.put(slice_(1))
    for version in ("1", "2"):
        asked = updates(updatable={"Patient": {"DICOM": {"PatientName": f"Name^{version}"}}})
        updated(api, image_set, version, asked)
    made = updated(api, image_set, "3", {"revertToVersionId": "1"})
    assert (made["versionId"], made["imageSetWorkflowStatus"]) == ("4", "UPDATED")
    assert api.document(image_set) == api.document(image_set, "1")
    assert api.versions(image_set) == [("4", "UPDATED"), ("3", "UPDATED"), ("2", "UPDATED"), ("1", "CREATED")]
    assert api.wado(STUDY)[0]["00100010"]["Value"] == [{"Alphabetic": "Doe^Jane"}]
    assert api.find(StudyInstanceUID=STUDY, PatientName="")[0].PatientName == "Doe^Jane"


def private(number: int, **attributes: Any) -> bytes:
    """An instance of the published series with a private element."""
    made = dcmread(io.BytesIO(slice_(number, U, U, **attributes)))
    made.private_block(0x0009, "GEMS_IDEN_01", create=True).add_new(0x01, "LO", "GE_GENESIS_FF")
    target = io.BytesIO()
    dcmwrite(target, made)
    return target.getvalue()


def test_row_25_a_private_element_is_added(api: Api) -> None:
    image_set = api.put(private(1))
    node = {"DICOM": {"001910F9": "97"}, "DICOMVRs": {"001910F9": "DS"}}
    made = updated(api, image_set, "1", updates(updatable=of_instance(U, U, **node)), force=True)
    assert (made["versionId"], made["imageSetWorkflowStatus"]) == ("2", "UPDATED")
    assert made["overrides"] == {"forced": True}
    found = api.instances(image_set)[U]
    assert (found["DICOM"]["001910F9"], found["DICOMVRs"]["001910F9"]) == ("97", "DS")
    assert api.wado(STUDY)[0]["001910F9"] == {"vr": "DS", "Value": [97]}


def test_row_26_a_private_element_is_changed(api: Api) -> None:
    image_set = api.put(private(1))
    asked = updates(updatable=of_instance(U, U, DICOM={"00091001": "GE_GENESIS_DD"}))
    failed = updated(api, image_set, "1", asked)
    assert failed["imageSetWorkflowStatus"] == "UPDATE_FAILED", "without force"
    asked = updates(updatable=of_instance(U, U, DICOM={"00091001": "GE_GENESIS_DD"}))
    made = updated(api, image_set, "2", asked, force=True)
    assert (made["versionId"], made["imageSetWorkflowStatus"]) == ("3", "UPDATED")
    found = api.instances(image_set)[U]
    assert (found["DICOM"]["00091001"], found["DICOMVRs"]["00091001"]) == ("GE_GENESIS_DD", "LO")
    assert api.wado(STUDY)[0]["00091001"] == {"vr": "LO", "Value": ["GE_GENESIS_DD"]}


SERIES_27 = "1.3.6.1.4.1.5962.99.1.3633258862.2104868982.1369432891697.3656.0"
SOP_27 = "1.3.6.1.4.1.5962.99.1.3633258862.2104868982.1369432891697.3659.0"


def test_row_27_a_uid_is_changed_on_a_copy(api: Api) -> None:
    source = api.put(slice_(1, SERIES_27, SOP_27))
    asked = of_instance(SERIES_27, SOP_27, DICOM={"SOPInstanceUID": f"{SOP_27[:-1]}9"})
    refused = updated(api, source, "1", updates(updatable=asked), force=True)
    assert refused["imageSetWorkflowStatus"] == "UPDATE_FAILED"
    assert "non-primary" in refused["message"]
    _, copy = copied(api, source, "2")
    made = updated(api, copy["imageSetId"], "1", updates(updatable=asked), force=True)
    assert (made["versionId"], made["imageSetWorkflowStatus"]) == ("2", "UPDATED")
    ((sop, found),) = api.instances(copy["imageSetId"]).items()
    assert sop == found["DICOM"]["SOPInstanceUID"] == found["DICOM"]["MediaStorageSOPInstanceUID"] == f"{SOP_27[:-1]}9"
    (seen,) = api.wado(STUDY, imageSetId=copy["imageSetId"])
    assert seen["00080018"]["Value"] == [sop]
    assert api.wado(STUDY)[0]["00080018"]["Value"] == [SOP_27], "the primary has the one that was sent"


def test_row_28_the_updates_of_the_program_examples(api: Api) -> None:
    image_set = api.put(slice_(1, U, U), slice_(2, U, f"{U}.2"))
    described = {"SchemaVersion": 1.1, "Study": {"DICOM": {"StudyDescription": "CT CHEST"}}}
    updated(api, image_set, "1", updates(updatable=described), force=True)
    assert api.document(image_set)["Study"]["DICOM"]["StudyDescription"] == "CT CHEST"
    updated(api, image_set, "2", updates(removable=described))
    assert "StudyDescription" not in api.document(image_set)["Study"]["DICOM"]
    updated(api, image_set, "3", updates(removable=of_instance(U, U)))
    assert list(api.instances(image_set)) == [f"{U}.2"]
    updated(api, image_set, "4", {"revertToVersionId": "1"})
    assert api.document(image_set) == api.document(image_set, "1")
    assert [status for _, status in api.versions(image_set)] == ["UPDATED"] * 4 + ["CREATED"]


@pytest.mark.parametrize("api", ["javascript"], indirect=True)
def test_row_28_the_updates_of_the_javascript_example(api: Api) -> None:
    """It always sends `force`; what each use case did is seen by every face."""

    def seen(image_set: str) -> dict[str, Any]:
        """The description and the instances, by the faces that tell them."""
        document, (summary,) = api.document(image_set), api.search()
        (study,) = api.find(StudyInstanceUID=STUDY, StudyDescription="", NumberOfStudyRelatedInstances="")
        ((row,), metadata) = api.qido(StudyInstanceUID=STUDY, includefield="StudyDescription"), api.wado(STUDY)
        tags = summary["DICOMTags"]
        described = [
            document["Study"]["DICOM"].get("StudyDescription"),
            tags.get("DICOMStudyDescription"),
            row.get("00081030", {}).get("Value", [None])[0],
            metadata[0].get("00081030", {}).get("Value", [None])[0],
            study.get("StudyDescription") or None,
        ]
        assert described.count(described[0]) == len(described), described
        counted = [
            len(api.instances(image_set)),
            tags["DICOMNumberOfStudyRelatedInstances"],
            row["00201208"]["Value"][0],
            len(metadata),
            len(api.qido(f"/studies/{STUDY}/instances")),
            study.NumberOfStudyRelatedInstances,
        ]
        assert counted.count(counted[0]) == len(counted), counted
        assert summary["version"] == int(api.at(image_set)["versionId"])
        return {"description": described[0], "instances": sorted(api.instances(image_set))}

    sent = [slice_(place, U, sop, StudyDescription="HEAD") for place, sop in enumerate((U, f"{U}.2"), 1)]
    image_set = api.put(*sent)
    before = seen(image_set)
    assert before == {"description": "HEAD", "instances": [U, f"{U}.2"]}
    described = {"SchemaVersion": 1.1, "Study": {"DICOM": {"StudyDescription": "CT CHEST"}}}
    made = updated(api, image_set, "1", updates(updatable=described), force=True)
    assert made["overrides"] == {"forced": True}
    assert seen(image_set) == before | {"description": "CT CHEST"}
    made = updated(api, image_set, "2", updates(removable=described), force=False)
    assert "overrides" not in made
    assert seen(image_set) == before | {"description": None}
    updated(api, image_set, "3", updates(removable=of_instance(U, U)), force=False)
    assert seen(image_set) == {"description": None, "instances": [f"{U}.2"]}
    updated(api, image_set, "4", {"revertToVersionId": "1"}, force=False)
    assert seen(image_set) == before
    assert api.document(image_set) == api.document(image_set, "1")
    assert api.versions(image_set) == [*((str(n), "UPDATED") for n in range(5, 1, -1)), ("1", "CREATED")]


# ---------------------------------------------------------------- rows 29 and 30: what is refused


def test_row_29_both_ways_at_once(api: Api) -> None:
    image_set = api.put(slice_(1))
    body = {"revertToVersionId": "1", "DICOMUpdates": {"updatableAttributes": "e30="}}
    path = f"/datastore/{api.store}/imageSet/{image_set}/updateImageSetMetadata?latestVersion=1"
    answer = api.http.post(path, json=body)
    assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (400, "ValidationException")
    assert "exactly one of" in answer.json()["message"]
    assert api.versions(image_set) == [("1", "CREATED")]


def test_row_30_what_error_handlers_print(api: Api) -> None:
    image_set = api.put(slice_(1))
    asked = updates(updatable={"Patient": {"DICOM": {"PatientName": "A"}}})
    for code, message, version, change in (
        ("ResourceNotFoundException", "Requested version(s) of ImageSet(s) is not the latest.", "7", asked),
        ("ResourceNotFoundException", "no version with the number", "1", {"revertToVersionId": "9"}),
        ("ValidationException", "is not JSON", "1", {"DICOMUpdates": {"updatableAttributes": "{"}}),
    ):
        with pytest.raises(Failed) as caught:
            api.on(
                image_set,
                "update_image_set_metadata",
                latest_version_id=version,
                update_image_set_metadata_updates=json.loads(json.dumps(change)),
            )
        assert (caught.value.code, message in caught.value.message) == (code, True)
    assert api.versions(image_set) == [("1", "CREATED")]


def test_the_command_line_as_it_is_typed(running: RunningGateway, tmp_path: Path) -> None:
    """One true run of the program: its environment, a file for its criteria, its exit codes."""
    criteria = tmp_path / "search-criteria.json"
    criteria.write_text('{"filters":[{"values":[{"DICOMPatientId":"NOBODY"}],"operator":"EQUAL"}]}')

    def aws(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = str(Path(sys.executable).with_name("aws"))
        return subprocess.run(
            [program, "--endpoint-url", running.http, "medical-imaging", *arguments],
            env=environment(**_ENVIRONMENT),
            capture_output=True,
            text=True,
            timeout=60,
        )

    done = aws("search-image-sets", "--datastore-id", running.datastore, "--search-criteria", f"file://{criteria}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "imageSetsMetadataSummaries": [],
        "sort": {"sortField": "updatedAt", "sortOrder": "DESC"},
    }
    failed = aws("get-datastore", "--datastore-id", "0" * 32)
    assert failed.returncode != 0
    assert "(ResourceNotFoundException)" in failed.stderr


@pytest.mark.parametrize("name", ["examples_rgb_color.dcm", "CT_small.dcm"])
def test_a_data_store_of_jpeg_2000_serves_what_was_sent(running: RunningGateway, name: str) -> None:
    sent = dcmread(str(get_testdata_file(name)))
    call = boto_caller(running.http)
    store = call("create_datastore", lossless_storage_format="JPEG_2000_LOSSLESS")["datastoreId"]
    base = f"{running.http}/datastore/{store}"
    headers = {"content-type": "application/dicom"}
    stored = httpx.post(f"{base}/studies", headers=headers, content=Path(str(get_testdata_file(name))).read_bytes())
    assert stored.status_code == 200, stored.text
    url = f"{base}/studies/{sent.StudyInstanceUID}/series/{sent.SeriesInstanceUID}/instances/{sent.SOPInstanceUID}"
    for syntax, expected in (("*", "1.2.840.10008.1.2.4.90"), ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1")):
        accept = f'multipart/related; type="application/dicom"; transfer-syntax={syntax}'
        answer = httpx.get(url, headers={"accept": accept}, timeout=30)
        assert answer.status_code == 200, answer.text
        body = answer.content.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]
        got = dcmread(io.BytesIO(body))
        assert got.file_meta.TransferSyntaxUID == expected
        if expected.endswith(".90"):
            assert got.PhotometricInterpretation == ("YBR_RCT" if sent.SamplesPerPixel == 3 else "MONOCHROME2")
            native = imagecodecs.jpeg2k_decode(next(generate_frames(got.PixelData)))
            assert np.array_equal(native, sent.pixel_array)
        else:
            assert np.array_equal(got.pixel_array, sent.pixel_array)
