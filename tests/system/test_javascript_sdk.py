"""The AWS SDK for JavaScript (v3) against a gateway that asks for credentials: every operation it has, signed; its
paginators, its host names, its errors. What the operations do is shown by `test_published_examples`."""

import gzip
import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.makers import instance, pixels, uid
from tests.node import Sdk, SdkError, javascript_client
from tests.running import RunningGateway

ROLE = "arn:aws:iam::123456789012:role/ImportJobDataAccessRole"
KEYS = {"accessKeyId": "AKIDEXAMPLE", "secretAccessKey": "secret"}
STUDY = uid(71)
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def sdk(npm_packages: Path) -> Iterator[Sdk]:
    with Sdk(npm_packages) as started:
        yield started


@pytest.fixture(scope="module")
def running(sdk: Sdk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("closed")
    incoming = folder / "s3" / "incoming" / "p"
    incoming.mkdir(parents=True)
    (folder / "s3" / "reports").mkdir()
    for series in (1, 2):
        image = instance(STUDY, uid(71, series), uid(71, series, 1), pixels(series), SeriesNumber=series)
        (incoming / f"{series}.dcm").write_bytes(image)
    closed = {
        "GATEWAY_AUTH__CREDENTIALS": json.dumps([{**KEYS, "principal": "tester"}]),
        "GATEWAY_AUTH__TOKENS": '[{"token":"t-1","principal":"reader"}]',
    }
    started = RunningGateway(folder / "data", "--s3-root", str(folder / "s3"), env=closed)
    yield started
    started.close()


def test_every_operation_signed(sdk: Sdk, running: RunningGateway, tmp_path: Path) -> None:
    client = javascript_client(running.http, credentials=KEYS)

    def call(operation: str, file: Path | None = None, **given: Any) -> dict[str, Any]:
        return sdk.call(client, operation, given, file)

    def pages(operation: str, items: str, **given: Any) -> list[dict[str, Any]]:
        """What a paginator gives, one item a page."""
        found = sdk.pages(client, operation, given, 1)
        assert all(len(page[items]) <= 1 for page in found)
        return [item for page in found for item in page[items]]

    def qido(path: str) -> Any:
        answer = running.get(f"/dicomweb{path}", headers={"authorization": "Bearer t-1"})
        assert answer.status_code == 200
        return answer.json()

    assert running.get("/dicomweb/studies").status_code == 401, "it is closed"

    other = call("CreateDatastore", datastoreName="other", tags={"a": "b"})["datastoreId"]
    assert call("GetDatastore", datastoreId=other)["datastoreProperties"]["datastoreName"] == "other"
    assert {one["datastoreId"] for one in pages("ListDatastores", "datastoreSummaries")} == {running.datastore, other}
    assert call("DeleteDatastore", datastoreId=other)["datastoreStatus"] == "DELETING"

    store = {"datastoreId": running.datastore}
    uris = {"inputS3Uri": "s3://incoming/p/", "outputS3Uri": "s3://reports/"}
    jobs = []
    for name in ("first", "second"):
        job = call("StartDICOMImportJob", jobName=name, dataAccessRoleArn=ROLE, **store, **uris)["jobId"]
        jobs.append(job)
        deadline = time.monotonic() + PATIENCE_S
        while (told := call("GetDICOMImportJob", **store, jobId=job)["jobProperties"])["jobStatus"] != "COMPLETED":
            assert told["jobStatus"] in ("SUBMITTED", "IN_PROGRESS")
            assert time.monotonic() < deadline
        assert isinstance(told["endedAt"], datetime)
    assert [one["jobId"] for one in pages("ListDICOMImportJobs", "jobSummaries", **store)] == jobs[::-1]

    one = {"operator": "EQUAL", "values": [{"DICOMSeriesInstanceUID": uid(71, 1)}]}
    found = pages("SearchImageSets", "imageSetsMetadataSummaries", **store)
    assert len(found) == 2
    first = [datetime.fromisoformat("1985-04-12T23:20:50.520+00:00"), found[0]["createdAt"]]
    between = {"operator": "BETWEEN", "values": [{"createdAt": moment} for moment in first]}
    (item,) = call("SearchImageSets", **store, searchCriteria={"filters": [one, between]})["imageSetsMetadataSummaries"]
    assert item["DICOMTags"]["DICOMSeriesInstanceUID"] == uid(71, 1)
    image_set = store | {"imageSetId": item["imageSetId"]}
    assert call("GetImageSet", **image_set)["imageSetState"] == "ACTIVE"

    document, frame = tmp_path / "metadata.json.gz", tmp_path / "frame.jph"
    answer = call("GetImageSetMetadata", document, **image_set)
    assert (answer["contentType"], answer["contentEncoding"]) == ("application/json", "gzip")
    (series,) = json.loads(gzip.decompress(document.read_bytes()))["Study"]["Series"].values()
    (frames,) = [instance["ImageFrames"] for instance in series["Instances"].values()]
    information = {"imageFrameId": frames[0]["ID"]}
    assert call("GetImageFrame", frame, **image_set, imageFrameInformation=information)["contentType"] == "image/jph"
    assert frame.read_bytes()[:2] == b"\xff\x4f"

    name = {"Patient": {"DICOM": {"PatientName": "Müller^Jörg"}}}
    change = {"DICOMUpdates": {"updatableAttributes": json.dumps(name, ensure_ascii=False).encode()}}
    call("UpdateImageSetMetadata", **image_set, latestVersionId="1", updateImageSetMetadataUpdates=change)
    settled(lambda: call("GetImageSet", **image_set))
    versions = pages("ListImageSetVersions", "imageSetPropertiesList", **image_set)
    assert {one["versionId"]: one["ImageSetWorkflowStatus"] for one in versions} == {"2": "UPDATED", "1": "CREATED"}
    (row,) = qido(f"/studies/{STUDY}/series/{uid(71, 1)}/instances?includefield=PatientName")
    assert row["00100010"]["Value"] == [{"Alphabetic": "Müller^Jörg"}]

    arn = f"arn:aws:medical-imaging:us-east-1:123456789012:datastore/{running.datastore}/imageset/{item['imageSetId']}"
    call("TagResource", resourceArn=arn, tags={"a+b": "1", "x/y:z=1": "2", "kept": "3 4"})
    call("UntagResource", resourceArn=arn, tagKeys=["a+b", "x/y:z=1"])
    assert call("ListTagsForResource", resourceArn=arn)["tags"] == {"kept": "3 4"}

    information = {"sourceImageSet": {"latestVersionId": "2"}}
    made = call("CopyImageSet", **store, sourceImageSetId=item["imageSetId"], copyImageSetInformation=information)
    copy = store | {"imageSetId": made["destinationImageSetProperties"]["imageSetId"]}
    assert settled(lambda: call("GetImageSet", **copy))["imageSetWorkflowStatus"] == "COPIED"
    assert call("DeleteImageSet", **copy)["imageSetWorkflowStatus"] == "DELETING"
    assert len(qido(f"/studies/{STUDY}/instances")) == 2

    assert sdk.never_sent() == []


def settled(ask: Any) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while (found := ask())["imageSetState"] == "LOCKED":
        assert time.monotonic() < deadline
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (KEYS | {"secretAccessKey": "another"}, "InvalidSignatureException"),
        (KEYS | {"accessKeyId": "NOBODY"}, "UnrecognizedClientException"),
    ],
)
def test_keys_that_are_not_known(sdk: Sdk, running: RunningGateway, keys: dict[str, str], name: str) -> None:
    client = javascript_client(running.http, credentials=keys)
    for operation, given in (("SearchImageSets", {"datastoreId": running.datastore}), ("ListDatastores", {})):
        with pytest.raises(SdkError) as caught:
            sdk.call(client, operation, given)
        assert (caught.value.name, caught.value.status, caught.value.is_of_service) == (name, 403, True)


def test_eight_operations_want_another_host_name(sdk: Sdk, running: RunningGateway) -> None:
    """Unless they are told not to, or the name is one that there is."""
    port = running.http.rpartition(":")[2]
    names = {"ahi.local": "127.0.0.1", "runtime-ahi.local": "127.0.0.1"}

    def call(operation: str, endpoint: str, **settings: Any) -> dict[str, Any]:
        client = javascript_client(endpoint, credentials=KEYS, names=names, **settings)
        return sdk.call(client, operation, {"datastoreId": running.datastore})

    assert call("GetDatastore", running.http, disableHostPrefix=False)
    with pytest.raises(SdkError, match=r"ENOTFOUND runtime-127\.0\.0\.1"):
        call("SearchImageSets", running.http, disableHostPrefix=False)
    assert call("SearchImageSets", running.http)
    for operation in ("GetDatastore", "SearchImageSets"):
        assert call(operation, f"http://ahi.local:{port}", disableHostPrefix=False)
