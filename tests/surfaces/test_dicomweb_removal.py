"""DELETE and undelete over DICOMweb, against a running gateway (DEL-01)."""

import base64
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from pynetdicom import AE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from demo.network import undisturbed
from tests.makers import data_set, instance, pixels, uid
from tests.running import RunningGateway

STUDY = uid(71)
SERIES = [uid(71, 1), uid(71, 2)]
SOPS = {SERIES[0]: [uid(71, 1, 1), uid(71, 1, 2)], SERIES[1]: [uid(71, 2, 1)]}
DICOM = {"Content-Type": "application/dicom"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    one = RunningGateway(tmp_path_factory.mktemp("removal") / "data")
    yield one
    one.stop()


@pytest.fixture
def web(running: RunningGateway) -> Iterator[httpx.Client]:
    """A client of a data store of its own, with three instances in two series."""
    with httpx.Client(base_url=running.http, timeout=60) as client:
        made = client.post("/datastore", json={"datastoreName": "removal", "clientToken": uuid.uuid4().hex})
        client.base_url = httpx.URL(f"{running.http}/datastore/{made.json()['datastoreId']}")
        store(client)
        yield client


def store(web: httpx.Client, **attributes: Any) -> None:
    for number, (series, sops) in enumerate(SOPS.items(), 1):
        for sop in sops:
            made = instance(STUDY, series, sop, pixels(number), SeriesNumber=number, **attributes)
            assert web.post("/studies", content=made, headers=DICOM).status_code == 200


def counts(web: httpx.Client) -> tuple[int, int, int]:
    return (
        len(web.get("/studies").json()),
        len(web.get("/series").json()),
        len(web.get("/instances").json()),
    )


def test_a_study_goes_and_comes_back(web: httpx.Client) -> None:
    study = f"/studies/{STUDY}"
    before = web.get(f"{study}/metadata").json()
    found = web.get("/series", params={"includefield": "all"}).json()
    gone = web.delete(study)
    assert (gone.status_code, gone.content) == (204, b"")
    assert counts(web) == (0, 0, 0)
    for path in (study, f"{study}/metadata", f"{study}/series/{SERIES[0]}/metadata", f"{study}/rendered"):
        assert web.get(path).status_code == 410, path
    assert web.delete(study).status_code == 410

    back = web.post(f"{study}/undelete")
    assert (back.status_code, back.content) == (204, b"")
    assert counts(web) == (1, 2, 3)
    assert web.get(f"{study}/metadata").json() == before
    assert web.get("/series", params={"includefield": "all"}).json() == found
    frame = web.get(f"{study}/series/{SERIES[0]}/instances/{SOPS[SERIES[0]][0]}/frames/1", headers={"Accept": "*/*"})
    assert pixels(1).tobytes() in frame.content
    assert web.get(f"{study}/series/{SERIES[0]}/metadata?version=2").status_code == 200
    assert web.post(f"{study}/undelete").status_code == 404, "nothing is deleted any more"
    changes = web.get("/changes").json()["changes"]
    assert [one["kind"] for one in changes[-4:]] == ["delete", "delete", "restore", "restore"]


def test_a_series(web: httpx.Client) -> None:
    first, second = (f"/studies/{STUDY}/series/{series}" for series in SERIES)
    assert web.delete(first).status_code == 204
    assert counts(web) == (1, 1, 1)
    (row,) = web.get("/studies").json()
    assert row["00201206"]["Value"] == [1]
    assert (web.get(f"{first}/metadata").status_code, web.get(f"{second}/metadata").status_code) == (410, 200)
    assert web.post(f"{second}/undelete").status_code == 404
    assert web.post(f"{first}/undelete").status_code == 204
    assert counts(web) == (1, 2, 3)


def test_an_image_set_beside_the_primary_one_by_its_id(web: httpx.Client) -> None:
    series = f"/studies/{STUDY}/series/{SERIES[0]}"
    made = instance(STUDY, SERIES[0], uid(71, 1, 9), pixels(1), PatientID="other")
    assert web.post("/studies", content=made, headers=DICOM).status_code == 200
    (conflict,) = web.get("/conflicts").json()["conflicts"]
    beside = {"imageSetId": conflict["imageSetId"]}
    assert web.post(f"/imageSet/{beside['imageSetId']}/deleteImageSet").status_code == 200
    while web.get(f"{series}/metadata", params=beside).status_code != 410:
        pass
    assert (counts(web), web.get("/conflicts").json()["conflicts"]) == ((1, 2, 3), [])
    assert web.post(f"{series}/undelete").status_code == 404
    assert web.post(f"{series}/undelete", params=beside).status_code == 204
    assert len(web.get(f"{series}/metadata", params=beside).json()) == 1
    assert (counts(web), web.get("/conflicts").json()["conflicts"]) == ((1, 2, 3), [conflict])


@pytest.mark.parametrize("level", [1, 2, 3])
def test_rejecting_deletes(web: httpx.Client, level: int) -> None:
    """As OHIF asks dcm4chee-arc to (DEL-02): a POST without a body."""
    study, series, sop = STUDY, SERIES[0], SOPS[SERIES[0]][0]
    resource = "/".join((f"/studies/{study}", f"series/{series}", f"instances/{sop}")[:level])
    rejected = web.post(f"{resource}/reject/113001%5EDCM")
    assert (rejected.status_code, rejected.content) == (204, b"")
    assert counts(web) == {1: (0, 0, 0), 2: (1, 1, 1), 3: (1, 2, 2)}[level]
    assert web.get(f"{resource}/metadata").status_code == 410
    assert web.post(f"{resource}/reject/113039%5EDCM").status_code == 410
    assert web.post(f"{resource}/undelete").status_code == 204
    assert counts(web) == (1, 2, 3)


def test_an_instance_and_the_last_of_its_series(web: httpx.Client) -> None:
    series = f"/studies/{STUDY}/series/{SERIES[0]}"
    one, other = (f"{series}/instances/{sop}" for sop in SOPS[SERIES[0]])
    before = web.get(f"{one}/metadata").json()
    assert web.post(f"{one}/undelete").status_code == 409, "it is there"
    assert web.delete(one).status_code == 204
    assert counts(web) == (1, 2, 2)
    assert (web.get(f"{one}/metadata").status_code, web.get(f"{other}/metadata").status_code) == (410, 200)
    assert web.get(f"{one}/metadata?version=1").status_code == 200, "the past stays"
    assert web.get(f"{series}/instances/1.2.3/metadata").status_code == 404
    assert web.delete(other).status_code == 204, "the last one takes its series with it"
    assert counts(web) == (1, 1, 1)
    assert web.get(f"{series}/metadata").status_code == 410

    refused = web.post(f"{one}/undelete")
    assert refused.status_code == 404
    assert "undelete the series" in refused.json()["detail"]
    assert web.post(f"{series}/undelete").status_code == 204
    assert web.post(f"{one}/undelete").status_code == 204
    assert counts(web) == (1, 2, 3)
    assert web.get(f"{one}/metadata").json() == before
    (row,) = web.get("/series", params={"SeriesInstanceUID": SERIES[0]}).json()
    assert row["00201209"]["Value"] == [2]


def test_what_was_stored_again_is_not_overwritten(web: httpx.Client) -> None:
    study = f"/studies/{STUDY}"
    assert web.delete(study).status_code == 204
    store(web, ImageComments="anew")
    assert web.get(f"{study}/metadata").json()[0]["00204000"]["Value"] == ["anew"]
    refused = web.post(f"{study}/undelete")
    assert (refused.status_code, refused.headers["content-type"]) == (409, "application/problem+json")
    assert web.delete(study).status_code == 204
    assert web.post(f"{study}/undelete").status_code == 204
    assert web.get(f"{study}/metadata").json()[0]["00204000"]["Value"] == ["anew"], "the last that was deleted"


def test_what_would_not_fit_stays_away(web: httpx.Client) -> None:
    first, second = (f"/studies/{STUDY}/series/{series}" for series in SERIES)
    assert web.delete(first).status_code == 204
    (image_set,) = web.post("/searchImageSets", json={}).json()["imageSetsMetadataSummaries"]
    text = b'{"SchemaVersion":1.1,"Patient":{"DICOM":{"PatientID":"P2"}}}'
    update = {"DICOMUpdates": {"updatableAttributes": base64.b64encode(text).decode()}}
    path = f"/imageSet/{image_set['imageSetId']}/updateImageSetMetadata"
    assert web.post(path, params={"latestVersion": "1"}, json=update).status_code == 200
    for _ in range(600):
        if web.post(f"/imageSet/{image_set['imageSetId']}/getImageSet").json()["imageSetState"] == "ACTIVE":
            break
    refused = web.post(f"{first}/undelete")
    assert refused.status_code == 409
    assert "PatientID" in refused.json()["detail"]
    assert web.get(f"{second}/metadata").status_code == 200


def test_a_series_that_another_study_has_by_now(web: httpx.Client) -> None:
    series = f"/studies/{STUDY}/series/{SERIES[1]}"
    assert web.delete(series).status_code == 204
    made = instance(uid(72), SERIES[1], SOPS[SERIES[1]][0], pixels(1))
    assert web.post("/studies", content=made, headers=DICOM).status_code == 200
    assert web.post(f"{series}/undelete").status_code == 409


def test_conditions(web: httpx.Client) -> None:
    series = f"/studies/{STUDY}/series/{SERIES[0]}"
    etag = web.get(f"{series}/metadata").headers["etag"]
    assert web.delete(series, headers={"If-Match": '"0123"'}).status_code == 412
    assert web.delete(series, headers={"If-Match": f'"x", {etag}'}).status_code == 204
    assert web.post(f"{series}/undelete").status_code == 204
    assert web.delete(series, headers={"If-Match": etag}).status_code == 412, "another version"
    assert web.delete(series, headers={"If-Match": "*"}).status_code == 204


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("DELETE", "/studies/9.9", 404),
        ("DELETE", "/studies/nonsense", 400),
        ("DELETE", f"/studies/{STUDY}/series/9.9", 404),
        ("DELETE", f"/studies/{STUDY}/series/{SERIES[0]}?version=1", 400),
        ("DELETE", f"/studies/{STUDY}?asOf=2999-01-01T00:00:00Z", 400),
        ("DELETE", f"/studies/{STUDY}/metadata", 405),
        ("DELETE", "/studies", 405),
        ("POST", f"/studies/{STUDY}/undelete", 404),
        ("POST", "/studies/9.9/undelete", 404),
        ("POST", f"/studies/{STUDY}/series/{SERIES[0]}/undelete?version=1", 400),
        ("GET", f"/studies/{STUDY}/undelete", 405),
        ("POST", f"/studies/{STUDY}/reject/113001^SCT", 400),
        ("POST", "/studies/9.9/reject/113001%5EDCM", 404),
        ("GET", f"/studies/{STUDY}/reject/113001%5EDCM", 405),
    ],
)
def test_refusals(web: httpx.Client, method: str, path: str, status: int) -> None:
    answer = web.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert counts(web) == (1, 2, 3)


def test_after_the_retention_it_is_gone(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway(env={"GATEWAY_RETENTION": "0s"})
    made = instance(STUDY, SERIES[0], SOPS[SERIES[0]][0], pixels(1))
    url = f"{gateway.http}/dicomweb/studies"
    assert httpx.post(url, content=made, headers=DICOM).status_code == 200
    assert httpx.delete(f"{url}/{STUDY}", timeout=60).status_code == 204
    deleted = datetime.fromisoformat(gateway.get("/changes").json()["changes"][-1]["at"])
    while datetime.now(UTC) <= deleted + timedelta(milliseconds=2):
        gateway.get("/livez")
    assert httpx.post(f"{url}/{STUDY}/undelete", timeout=60).status_code == 404


def test_dimse_and_the_store_agree(gateway: RunningGateway) -> None:
    url = f"{gateway.http}/dicomweb/studies"
    for sop in SOPS[SERIES[0]]:
        made = instance(STUDY, SERIES[0], sop, pixels(1))
        assert httpx.post(url, content=made, headers=DICOM).status_code == 200

    def found() -> int:
        entity = AE(ae_title="CLIENT")
        entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
        association = undisturbed(entity.associate(*gateway.dimse, ae_title=gateway.aet))
        query = data_set(STUDY, SERIES[0], "1")
        query.clear()
        query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", STUDY
        answers = [s.Status for s, _ in association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind)]
        association.release()
        return sum(status in (0xFF00, 0xFF01) for status in answers)

    one = f"{url}/{STUDY}/series/{SERIES[0]}/instances/{SOPS[SERIES[0]][0]}"
    assert found() == 1
    assert httpx.delete(one, timeout=60).status_code == 204
    assert httpx.post(f"{one}/undelete", timeout=60).status_code == 204
    assert httpx.delete(f"{url}/{STUDY}", timeout=60).status_code == 204
    assert found() == 0
    assert httpx.post(f"{url}/{STUDY}/undelete", timeout=60).status_code == 204
    assert found() == 1
    check = gateway.command("verify")
    assert check.returncode == 0, check.stdout + check.stderr
    rebuilt = gateway.command("db", "rebuild")
    assert rebuilt.returncode == 0, rebuilt.stdout + rebuilt.stderr
    assert found() == 1
