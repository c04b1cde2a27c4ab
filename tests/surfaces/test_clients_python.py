"""dicomweb-client and boto3 against a running gateway; versions, edits, and four clients at once."""

import gzip
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import boto3
import httpx
import imagecodecs
import numpy as np
import pydicom
import pytest
from botocore.config import Config
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    PatientRootQueryRetrieveInformationModelFind,
)

from demo.network import undisturbed
from tests.makers import instance, pixels, uid
from tests.running import RunningGateway, command

STUDY, SERIES = uid(41), uid(41, 1)
SOPS = [uid(41, 1, number) for number in (1, 2, 3)]
EXPLICIT_LE = "1.2.840.10008.1.2.1"


def made(*arguments: Any, **attributes: Any) -> Dataset:
    """A data set as it is read from a file: with preamble and file meta."""
    return pydicom.dcmread(BytesIO(instance(*arguments, **attributes)))


def slices(**attributes: Any) -> list[Dataset]:
    return [
        made(STUDY, SERIES, sop, pixels(number), InstanceNumber=number, **attributes)
        for number, sop in enumerate(SOPS, 1)
    ]


@pytest.fixture
def web(gateway: RunningGateway) -> DICOMwebClient:
    return DICOMwebClient(f"{gateway.http}/dicomweb")


@pytest.fixture
def aws(gateway: RunningGateway) -> Iterator[Any]:
    """boto3 as a user sets it up against another endpoint."""
    session = boto3.Session("AKIDEXAMPLE", "secret", region_name="us-east-1")
    config = Config(inject_host_prefix=False, retries={"total_max_attempts": 1}, proxies={})
    client = session.client("medical-imaging", endpoint_url=gateway.http, config=config)
    yield client
    client.close()


def only_image_set(aws: Any, gateway: RunningGateway) -> str:
    (found,) = aws.search_image_sets(datastoreId=gateway.datastore)["imageSetsMetadataSummaries"]
    return str(found["imageSetId"])


def test_dicomweb_client(web: DICOMwebClient) -> None:
    reply = web.store_instances(slices())
    assert len(reply.ReferencedSOPSequence) == 3
    multi = made(STUDY, uid(41, 2), uid(41, 2, 1), pixels(9, frames=4), Modality="MR", SeriesNumber=2)
    web.store_instances([multi], study_instance_uid=STUDY)

    (study,) = web.search_for_studies(search_filters={"PatientName": "Doe^Jane"}, fields=["StudyDescription"])
    assert study["00201206"]["Value"] == [2]
    assert web.search_for_studies(search_filters={"PatientName": "Nobody"}) == []
    assert web.search_for_studies(fuzzymatching=True, search_filters={"PatientName": "doe"}) == [
        web.search_for_studies()[0]
    ]
    assert len(web.search_for_series(STUDY)) == len(web.search_for_series()) == 2
    (series,) = web.search_for_series(search_filters={"Modality": "CT"})
    assert series["0020000E"]["Value"] == [SERIES]
    assert len(web.search_for_instances(STUDY, SERIES, limit=1, get_remaining=True)) == 3
    assert len(web.search_for_instances(STUDY)) == len(web.search_for_instances()) == 4
    assert len(web.search_for_instances(limit=2, offset=3)) == 1

    assert len(web.retrieve_study_metadata(STUDY)) == 4
    assert len(web.retrieve_series_metadata(STUDY, SERIES)) == 3
    metadata = web.retrieve_instance_metadata(STUDY, SERIES, SOPS[1])
    read = Dataset.from_json(metadata, lambda *_: b"")
    assert (read.PatientName, read.InstanceNumber) == ("Doe^Jane", 2)

    uncompressed = (("application/dicom", EXPLICIT_LE),)
    assert {one.SOPInstanceUID for one in web.retrieve_study(STUDY)} == {*SOPS, uid(41, 2, 1)}
    assert len([*web.iter_study(STUDY, media_types=uncompressed)]) == 4
    back = web.retrieve_series(STUDY, SERIES, media_types=uncompressed)
    assert [one.PixelData for one in back] == [pixels(number).tobytes() for number in (1, 2, 3)]
    assert len([*web.iter_series(STUDY, SERIES)]) == 3
    for media_types in (uncompressed, None, (("application/dicom", "*"),)):
        one = web.retrieve_instance(STUDY, SERIES, SOPS[0], media_types=media_types)
        assert one.PatientID == "P1"

    uids = (STUDY, uid(41, 2), uid(41, 2, 1))
    native = (("application/octet-stream", EXPLICIT_LE),)
    expected = [frame.tobytes() for frame in pixels(9, frames=4)]
    assert web.retrieve_instance_frames(*uids, frame_numbers=[1, 2, 3, 4], media_types=native) == expected
    assert web.retrieve_instance_frames(*uids, frame_numbers=[3, 1]) == [expected[2], expected[0]]
    assert [*web.iter_instance_frames(*uids, frame_numbers=[2, 4], media_types=native)] == expected[1::2]
    stored = web.retrieve_instance_frames(*uids, frame_numbers=[2], media_types=(("application/octet-stream", "*"),))
    assert np.array_equal(imagecodecs.jpeg2k_decode(stored[0]), pixels(9, frames=4)[1])
    uri = web.retrieve_instance_metadata(*uids)["7FE00010"]["BulkDataURI"]
    assert b"".join(web.retrieve_bulkdata(uri)) == b"".join(expected)
    assert b"".join(web.iter_bulkdata(uri)) == b"".join(expected)


def test_no_call_of_dicomweb_client_is_left_out(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    called: set[str] = set()
    offered = {name for name in vars(DICOMwebClient) if not name.startswith("_")}
    for base in DICOMwebClient.__mro__[1:-1]:
        offered |= {name for name in vars(base) if not name.startswith("_") and callable(getattr(base, name))}

    class Counting(DICOMwebClient):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            if name in offered:
                called.add(name)
            return super().__getattribute__(name)

    web = Counting(f"{gateway.http}/dicomweb")
    web.set_chunk_size(1000)  # of what is stored and of what is read: chunked both ways
    web.set_http_retry_params(retry=True, max_attempts=3, wait_exponential_multiplier=10)
    multi = made(STUDY, uid(41, 2), uid(41, 2, 1), pixels(9, frames=4), Modality="MR", SeriesNumber=2)
    assert len(web.store_instances([*slices(), multi]).ReferencedSOPSequence) == 4
    assert len(web.search_for_studies(additional_params={"StudyInstanceUID": STUDY})) == 1
    assert len(web.search_for_series(STUDY)) == 2
    assert len(web.search_for_instances(STUDY, SERIES)) == 3
    assert web.lookup_tag("PatientName") == "00100010"
    assert web.lookup_keyword("00100010") == "PatientName"

    one, frames = (STUDY, SERIES, SOPS[0]), (STUDY, uid(41, 2), uid(41, 2, 1))
    expected = [frame.tobytes() for frame in pixels(9, frames=4)]
    assert len(web.retrieve_study_metadata(STUDY)) == 4
    assert len(web.retrieve_series_metadata(STUDY, SERIES)) == 3
    uri = web.retrieve_instance_metadata(*frames)["7FE00010"]["BulkDataURI"]
    # It takes a range for one of the whole body, parts and all: a shorter one it cannot read itself.
    assert web.retrieve_bulkdata(uri, byte_range=(0, 1 << 20)) == web.retrieve_bulkdata(uri)
    assert b"".join(web.retrieve_bulkdata(uri)) == b"".join(web.iter_bulkdata(uri)) == b"".join(expected)
    assert len(web.retrieve_study(STUDY)) == len([*web.iter_study(STUDY)]) == 4
    assert len(web.retrieve_series(STUDY, SERIES)) == len([*web.iter_series(STUDY, SERIES)]) == 3
    assert web.retrieve_instance(*one).SOPInstanceUID == SOPS[0]
    assert web.retrieve_instance_frames(*frames, frame_numbers=[1, 4]) == [expected[0], expected[3]]
    assert [*web.iter_instance_frames(*frames, frame_numbers=[2])] == [expected[1]]

    png = ("image/png",)
    for picture in (
        web.retrieve_series_rendered(STUDY, SERIES, media_types=png),
        web.retrieve_instance_rendered(*one, media_types=png, params={"viewport": "16,16"}),
        web.retrieve_instance_frames_rendered(*frames, frame_numbers=[2], media_types=png),
    ):
        assert picture.startswith(b"\x89PNG")

    web.delete_instance(*one)
    assert len(web.search_for_instances(STUDY, SERIES)) == 2
    web.delete_series(STUDY, SERIES)
    assert len(web.search_for_series(STUDY)) == 1
    web.delete_study(STUDY)
    assert web.search_for_studies() == []
    assert offered - called <= {"base_url", "scheme", "host", "port", "protocol", "url_prefix", "authorized"}


def test_a_second_sending_makes_no_version_and_a_changed_one_makes_the_second(
    gateway: RunningGateway, web: DICOMwebClient, aws: Any
) -> None:
    def versions() -> list[str]:
        listed = aws.list_image_set_versions(datastoreId=gateway.datastore, imageSetId=only_image_set(aws, gateway))
        return [version["versionId"] for version in listed["imageSetPropertiesList"]]

    web.store_instances(slices())
    assert versions() == ["1"]
    assert len(web.store_instances(slices()).ReferencedSOPSequence) == 3
    assert versions() == ["1"]

    web.store_instances(slices(ImageComments="changed", PatientName="Roe^Jane"))
    assert versions() == ["2", "1"]
    url = f"/dicomweb/studies/{STUDY}/series/{SERIES}/instances/{SOPS[0]}"
    new, old = (gateway.get(f"{url}/metadata", params=query).json()[0] for query in ({}, {"version": 1}))
    assert new["00204000"]["Value"] == ["changed"]
    assert "00204000" not in old
    assert [one["00100010"]["Value"][0]["Alphabetic"] for one in (new, old)] == ["Roe^Jane", "Doe^Jane"]
    accept = {"accept": "application/dicom"}
    one = gateway.get(url, params={"version": 1}, headers=accept).content
    assert pydicom.dcmread(BytesIO(one)).PatientName == "Doe^Jane"
    assert gateway.get(f"{url}/metadata", params={"version": 3}).status_code == 404
    assert web.search_for_studies(search_filters={"PatientName": "Doe^Jane"}) == []


def test_boto3_reads(gateway: RunningGateway, web: DICOMwebClient, aws: Any) -> None:
    store = {"datastoreId": gateway.datastore}
    web.store_instances(slices())
    assert aws.get_datastore(**store)["datastoreProperties"]["datastoreStatus"] == "ACTIVE"
    listed = aws.get_paginator("list_datastores").paginate().build_full_result()["datastoreSummaries"]
    assert gateway.datastore in [one["datastoreId"] for one in listed]
    criteria = {"filters": [{"operator": "EQUAL", "values": [{"DICOMPatientId": "P1"}]}]}
    (summary,) = aws.search_image_sets(**store, searchCriteria=criteria)["imageSetsMetadataSummaries"]
    assert summary["DICOMTags"]["DICOMPatientName"] == "Doe^Jane"
    assert summary["DICOMTags"]["DICOMNumberOfStudyRelatedInstances"] == 3
    nobody = {"filters": [{"operator": "EQUAL", "values": [{"DICOMPatientId": "P9"}]}]}
    assert aws.search_image_sets(**store, searchCriteria=nobody)["imageSetsMetadataSummaries"] == []

    which = {**store, "imageSetId": summary["imageSetId"]}
    found = aws.get_image_set(**which)
    assert (found["versionId"], found["imageSetState"], found["isPrimary"]) == ("1", "ACTIVE", True)
    answer = aws.get_image_set_metadata(**which, versionId="1")
    assert answer["contentEncoding"] == "gzip"
    document = json.loads(gzip.decompress(answer["imageSetMetadataBlob"].read()))
    held = document["Study"]["Series"][SERIES]["Instances"]
    assert set(held) == set(SOPS)
    for number, sop in enumerate(SOPS, 1):
        (frame,) = held[sop]["ImageFrames"]
        got = aws.get_image_frame(**which, imageFrameInformation={"imageFrameId": frame["ID"]})
        assert got["contentType"] == "image/jph"
        decoded = imagecodecs.jpeg2k_decode(got["imageFrameBlob"].read())
        assert np.array_equal(decoded, pixels(number)[0])
        assert (frame["MinPixelValue"], frame["MaxPixelValue"]) == (decoded.min(), decoded.max())
    (version,) = aws.list_image_set_versions(**which)["imageSetPropertiesList"]
    assert version["versionId"] == "1"
    with pytest.raises(aws.exceptions.ResourceNotFoundException):
        aws.get_image_set(**which, versionId="2")


def named(gateway: RunningGateway, version: int | None = None) -> set[str]:
    """The patient's name, as everything that shows one shows it."""
    query = {} if version is None else {"version": version}
    one = f"/dicomweb/studies/{STUDY}/series/{SERIES}/instances/{SOPS[0]}"
    metadata = gateway.get(f"{one}/metadata", params=query).json()[0]
    series = gateway.get(f"/dicomweb/studies/{STUDY}/series/{SERIES}/metadata", params=query).json()
    file = gateway.get(one, params=query, headers={"accept": "application/dicom"}).content
    names = {row["00100010"]["Value"][0]["Alphabetic"] for row in [metadata, *series]}
    names.add(str(pydicom.dcmread(BytesIO(file)).PatientName))
    if version is None:
        (row,) = gateway.get("/dicomweb/studies", params={"StudyInstanceUID": STUDY}).json()
        names.add(row["00100010"]["Value"][0]["Alphabetic"])
        names |= queried(gateway)
    return names


def queried(gateway: RunningGateway) -> set[str]:
    entity = AE(ae_title="CLIENT")
    entity.add_requested_context(PatientRootQueryRetrieveInformationModelFind)
    association = undisturbed(entity.associate(*gateway.dimse, ae_title=gateway.aet))
    assert association.is_established
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.PatientID, identifier.PatientName = "PATIENT", "P1", ""
    answers = list(association.send_c_find(identifier, PatientRootQueryRetrieveInformationModelFind))
    association.release()
    assert answers[-1][0].Status == 0
    return {str(row.PatientName) for _, row in answers if row is not None}


def settled(aws: Any, which: dict[str, str]) -> dict[str, Any]:
    for _ in range(600):
        found: dict[str, Any] = aws.get_image_set(**which)
        if found["imageSetState"] != "LOCKED":
            return found
    raise AssertionError("the image set stays locked")


def test_an_edit_shows_at_once_everywhere(gateway: RunningGateway, web: DICOMwebClient, aws: Any) -> None:
    web.store_instances(slices())
    which = {"datastoreId": gateway.datastore, "imageSetId": only_image_set(aws, gateway)}
    assert named(gateway) == {"Doe^Jane"}

    change = {"SchemaVersion": 1.1, "Patient": {"DICOM": {"PatientName": "MX^MX"}}}
    updates = {"DICOMUpdates": {"updatableAttributes": json.dumps(change).encode()}}
    begun = aws.update_image_set_metadata(**which, latestVersionId="1", updateImageSetMetadataUpdates=updates)
    assert (begun["latestVersionId"], begun["imageSetState"]) == ("2", "LOCKED")
    assert settled(aws, which)["imageSetWorkflowStatus"] == "UPDATED"
    assert named(gateway) == named(gateway, 2) == {"MX^MX"}
    assert named(gateway, 1) == {"Doe^Jane"}
    with pytest.raises(aws.exceptions.ResourceNotFoundException, match="is not the latest"):
        aws.update_image_set_metadata(**which, latestVersionId="1", updateImageSetMetadataUpdates=updates)

    said = command(
        *("edit", gateway.datastore, which["imageSetId"], "--set", "PatientName=Roe^Ann", "--version", "2"),
        *("--url", gateway.http),
    )
    assert said.returncode == 0, said.stderr
    assert named(gateway) == {"Roe^Ann"}

    revert = {"revertToVersionId": "1"}
    aws.update_image_set_metadata(**which, latestVersionId="3", updateImageSetMetadataUpdates=revert)
    assert settled(aws, which)["versionId"] == "4"
    assert named(gateway) == {"Doe^Jane"}
    assert [named(gateway, version) for version in (1, 2, 3, 4)] == [{"Doe^Jane"}, {"MX^MX"}, {"Roe^Ann"}, {"Doe^Jane"}]
    frame = gateway.get(
        f"/dicomweb/studies/{STUDY}/series/{SERIES}/instances/{SOPS[2]}/frames/1",
        headers={"accept": "application/octet-stream"},
    )
    assert frame.content == pixels(3).tobytes()


def test_four_clients_at_once(gateway: RunningGateway, web: DICOMwebClient) -> None:
    rounds = 12
    web.store_instances(slices())

    def stow() -> None:
        client = DICOMwebClient(f"{gateway.http}/dicomweb")
        for number in range(rounds):
            one = made(STUDY, SERIES, uid(41, 1, 100 + number), pixels(100 + number))
            assert len(client.store_instances([one]).ReferencedSOPSequence) == 1

    def c_store() -> None:
        entity = AE(ae_title="CLIENT")
        entity.add_requested_context(CTImageStorage, EXPLICIT_LE)
        for number in range(rounds):
            association = undisturbed(entity.associate(*gateway.dimse, ae_title=gateway.aet))
            assert association.is_established
            one = made(STUDY, SERIES, uid(41, 1, 200 + number), pixels(200 + number))
            assert association.send_c_store(one).Status == 0
            association.release()

    def search() -> list[int]:
        with httpx.Client(base_url=gateway.http) as http:
            return [len(http.get("/dicomweb/instances").raise_for_status().json()) for _ in range(4 * rounds)]

    def frames() -> None:
        with httpx.Client(base_url=gateway.http, headers={"accept": "application/octet-stream"}) as http:
            for number in range(4 * rounds):
                path = f"/dicomweb/studies/{STUDY}/series/{SERIES}/instances/{SOPS[number % 3]}/frames/1"
                assert http.get(path).raise_for_status().content == pixels(number % 3 + 1).tobytes()

    with ThreadPoolExecutor(4) as pool:
        searching = pool.submit(search)
        for job in [pool.submit(each) for each in (stow, c_store, frames)]:
            job.result()
        counts = searching.result()
    assert counts == sorted(counts), "an instance that was found was not found later"
    for _ in range(600):
        held = gateway.get("/dicomweb/instances", params={"limit": 100}).json()
        if len(held) == 3 + 2 * rounds:
            break
    sent = {*SOPS, *(uid(41, 1, start + number) for start in (100, 200) for number in range(rounds))}
    assert {row["00080018"]["Value"][0] for row in held} == sent
    assert "error" not in {json.loads(line)["level"] for line in gateway.log.read_text().splitlines()}


def test_boto3_pages_through_a_thousand_image_sets(gateway: RunningGateway, aws: Any) -> None:
    """The gateway under test answers 500 to what breaks the service's model: each page here has passed that check."""
    count, patients, batch = 1000, 7, 250
    for start in range(0, count, batch):
        parts = [
            b"--part\r\nContent-Type: application/dicom\r\n\r\n"
            + instance(
                *(uid(43, n), uid(43, n, 1), uid(43, n, 1, 1)),
                **{"PatientID": f"P{n % patients}", "StudyDate": f"2024{n % 12 + 1:02d}{n % 28 + 1:02d}"},
            )
            for n in range(start, start + batch)
        ]
        headers = {"content-type": 'multipart/related; type="application/dicom"; boundary=part'}
        body = b"\r\n".join([*parts, b"--part--\r\n"])
        stored = httpx.post(f"{gateway.http}/dicomweb/studies", content=body, headers=headers, timeout=300)
        assert stored.status_code == 200

    def pages(criteria: dict[str, Any] | None = None, **paging: Any) -> list[list[dict[str, Any]]]:
        given = {"searchCriteria": criteria} if criteria else {}
        found = aws.get_paginator("search_image_sets").paginate(
            datastoreId=gateway.datastore, PaginationConfig=paging, **given
        )
        return [page["imageSetsMetadataSummaries"] for page in found]

    def ids(found: list[list[dict[str, Any]]]) -> list[str]:
        return [item["imageSetId"] for page in found for item in page]

    every = pages()
    assert [len(page) for page in every] == [50] * 20
    assert len(set(ids(every))) == count
    moments = [item["updatedAt"] for page in every for item in page]
    assert moments == sorted(moments, reverse=True)
    assert ids(pages(PageSize=33)) == ids(every)

    paginator = aws.get_paginator("search_image_sets")
    half = paginator.paginate(
        datastoreId=gateway.datastore, PaginationConfig={"MaxItems": 512, "PageSize": 50}
    ).build_full_result()
    rest = pages(StartingToken=half["NextToken"])
    assert [item["imageSetId"] for item in half["imageSetsMetadataSummaries"]] + ids(rest) == ids(every)

    for field in ("updatedAt", "createdAt", "DICOMStudyDateAndTime"):
        down, up = (ids(pages({"sort": {"sortField": field, "sortOrder": order}})) for order in ("DESC", "ASC"))
        assert up == down[::-1]
        assert len(set(up)) == count

    of_patients = []
    for number in range(patients):
        equal = {"filters": [{"operator": "EQUAL", "values": [{"DICOMPatientId": f"P{number}"}]}]}
        of_patients += ids(pages(equal, PageSize=40))
    assert sorted(of_patients) == sorted(ids(every))
    moment = "DICOMStudyDateAndTime"
    spring = [{moment: {"DICOMStudyDate": day, "DICOMStudyTime": "000000"}} for day in ("20240301", "20240601")]
    dated = pages({"filters": [{"operator": "BETWEEN", "values": spring}]})
    assert len(ids(dated)) == sum(n % 12 in (2, 3, 4) for n in range(count))
    with pytest.raises(aws.exceptions.ValidationException):
        aws.search_image_sets(datastoreId=gateway.datastore, nextToken="forged")

    which = {"datastoreId": gateway.datastore, "imageSetId": ids(every)[-1]}
    for version in range(1, 13):
        change = {"SchemaVersion": 1.1, "Patient": {"DICOM": {"PatientName": f"A^{version}"}}}
        updates = {"DICOMUpdates": {"updatableAttributes": json.dumps(change).encode()}}
        aws.update_image_set_metadata(**which, latestVersionId=str(version), updateImageSetMetadataUpdates=updates)
        assert settled(aws, which)["versionId"] == str(version + 1)
    listed = aws.get_paginator("list_image_set_versions").paginate(**which, PaginationConfig={"PageSize": 5})
    numbers = [[one["versionId"] for one in page["imageSetPropertiesList"]] for page in listed]
    assert [len(page) for page in numbers] == [5, 5, 3]
    assert [number for page in numbers for number in page] == [str(number) for number in range(13, 0, -1)]
    assert ids(pages()) == [which["imageSetId"], *ids(every)[:-1]]
