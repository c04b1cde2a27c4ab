"""Two web processes on one listener, and more than one worker: what one of them does, all of them see at once."""

import base64
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from campaigns.instances import Instance, make
from tests.running import SEVERAL, RunningGateway, wait_until_refused

Start = Callable[..., RunningGateway]
ENGINES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgres"))]
_PATIENCE_S = 30.0


@pytest.mark.parametrize("database", ENGINES)
def test_two_web_processes_are_as_good_as_one(start_gateway: Start, database: str) -> None:
    """One gateway, several stations: starting costs seconds."""
    gateway = start_gateway(env=SEVERAL, database=database)
    what_one_does_the_other_sees_at_once(gateway)
    one_is_killed_while_the_other_serves(gateway)
    every_one_drains(gateway)


@contextmanager
def at(gateway: RunningGateway, role: str) -> Iterator[httpx.Client]:
    """A client whose one connection was accepted by this web process: the others stood still meanwhile."""
    limits = httpx.Limits(max_connections=1, keepalive_expiry=None)
    with httpx.Client(base_url=gateway.http, timeout=60, limits=limits) as client:
        with gateway.only(role):
            assert client.get("/livez").status_code == 200
        yield client


@contextmanager
def both(gateway: RunningGateway) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    with ExitStack() as stack:
        first, second = (stack.enter_context(at(gateway, role)) for role in gateway.roles("web"))
        yield first, second


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stow(client: httpx.Client, instance: Instance, root: str = "/dicomweb") -> httpx.Response:
    headers = {"content-type": "application/dicom", "accept": "application/dicom+json"}
    return client.post(f"{root}/studies", content=instance.part10, headers=headers)


def update(client: httpx.Client, store: str, image_set: str, latest: int, name: str) -> httpx.Response:
    document = {"SchemaVersion": 1.1, "Patient": {"DICOM": {"PatientName": name}}}
    attributes = base64.b64encode(json.dumps(document).encode()).decode()
    return client.post(
        f"/datastore/{store}/imageSet/{image_set}/updateImageSetMetadata",
        params={"latestVersion": str(latest)},
        json={"DICOMUpdates": {"updatableAttributes": attributes}},
    )


def name_of(row: dict[str, dict[str, list[dict[str, str]]]]) -> str:
    return row["00100010"]["Value"][0]["Alphabetic"]


def what_one_does_the_other_sees_at_once(gateway: RunningGateway) -> None:
    assert gateway.roles("web") == ["web-1", "web-2"]
    assert gateway.roles("worker") == ["worker-1", "worker-2", "worker-3", "worker-4"]
    store = gateway.datastore
    one = make(7, 1, 1, 1)
    series = f"/dicomweb/studies/{one.study}/series/{one.series}"
    with both(gateway) as (first, second):
        assert first.get("/readyz").json()["status"] == second.get("/readyz").json()["status"] == "ready"
        for client in (first, second):
            assert client.get("/dicomweb/studies").json() == []
            assert client.get(f"{series}/metadata").status_code == 404

        # An import and edits: every version is read by the other as soon as the first was told of it.
        assert stow(first, one).status_code == 200
        found = second.post(f"/datastore/{store}/searchImageSets", json={}).json()["imageSetsMetadataSummaries"]
        image_set = found[0]["imageSetId"]
        path = f"/datastore/{store}/imageSet/{image_set}"
        for version in range(1, 7):
            writer, reader = (first, second) if version % 2 else (second, first)
            # Both have it in their caches.
            assert len({name_of(client.get(f"{series}/metadata").json()[0]) for client in (writer, reader)}) == 1
            assert update(writer, store, image_set, version, f"Name^{version}").status_code == 200
            until(lambda: writer.post(f"{path}/getImageSet").json()["imageSetState"] == "ACTIVE")  # noqa: B023
            assert reader.post(f"{path}/getImageSet").json()["versionId"] == str(version + 1)
            assert name_of(reader.get(f"{series}/metadata").json()[0]) == f"Name^{version}"
            assert name_of(reader.get("/dicomweb/studies", params={"PatientID": "P1"}).json()[0]) == f"Name^{version}"
            document = reader.post(f"{path}/getImageSetMetadata").json()
            assert document["Patient"]["DICOM"]["PatientName"] == f"Name^{version}"
            assert update(reader, store, image_set, version, "Late^One").status_code != 200

        # Tags.
        arn = f"/tags/arn:aws:medical-imaging:us-east-1:123456789012:datastore/{store}/imageset/{image_set}"
        for value, (writer, reader) in (("a", (first, second)), ("b", (second, first))):
            assert writer.post(arn, json={"tags": {"who": value}}).status_code < 300
            assert reader.get(arn).json()["tags"] == {"who": value}
        assert first.delete(arn, params={"tagKeys": "who"}).status_code < 300
        assert second.get(arn).json()["tags"] == {}

        # The change feed: one order, whoever is asked.
        feeds = [client.get("/changes").json()["changes"] for client in (first, second)]
        assert feeds[0] == feeds[1]
        assert [entry["seq"] for entry in feeds[0]] == [*range(1, 8)]
        assert [entry["versionId"] for entry in feeds[0]] == [str(version) for version in range(1, 8)]

        # A data store that one deletes the other refuses, though it has just used it.
        made = first.post("/datastore", json={"datastoreName": "other", "clientToken": "t1"}).json()["datastoreId"]
        root = f"/datastore/{made}"
        for client in (first, second):
            assert client.post(f"{root}/searchImageSets", json={}).status_code == 200
            assert client.get(f"{root}/studies").json() == []
            assert client.get(f"{root}/changes").json()["changes"] == []
        assert second.delete(root).status_code == 200
        for client in (first, second):
            assert client.post(f"{root}/searchImageSets", json={}).status_code == 404
            assert client.get(f"{root}/studies").status_code == 404
            assert client.get(f"{root}/changes").status_code == 404
            assert client.get(f"{root}/listDICOMImportJobs").status_code == 404
            assert stow(client, make(7, 2, 1, 1), root).status_code == 404

        # What has been deleted is gone for the other, too.
        assert first.post(f"{path}/deleteImageSet", json={}).status_code in (200, 202)
        until(lambda: first.get(f"{series}/metadata").status_code in (404, 410))
        assert second.get(f"{series}/metadata").status_code in (404, 410)
        assert second.get("/dicomweb/studies").json() == []

        # The metrics of both meet.
        counted = sum(
            float(line.rpartition(" ")[2])
            for line in first.get("/metrics").text.splitlines()
            if line.startswith("gateway_http_requests_total{") and 'route="/changes"' in line
        )
        assert counted == 2


def one_is_killed_while_the_other_serves(gateway: RunningGateway) -> None:
    before = {role: gateway.restarts(role) for role in gateway.roles("web")}
    for number, role in enumerate(gateway.roles("web"), 1):
        (other,) = (name for name in gateway.roles("web") if name != role)
        one = make(8, number, 1, 1)
        with at(gateway, other) as survivor:
            os.kill(gateway.pids()[role], signal.SIGKILL)
            until(lambda: survivor.get("/queue").json()["processes"][role]["up"] == 0)  # noqa: B023
            assert survivor.get("/readyz").status_code == 200
            assert stow(survivor, one).status_code == 200
            # New callers, too, find somebody at once, and what was stored.
            for _ in range(5):
                assert gateway.get("/livez").status_code == 200
                assert len(gateway.get(f"/dicomweb/studies/{one.study}/instances").json()) == 1
            gateway.wait_for_restart(role, before[role])
    for client_at in gateway.roles("web"):
        with at(gateway, client_at) as client:
            assert len(client.get("/dicomweb/studies").json()) == 2


def every_one_drains(gateway: RunningGateway) -> None:
    """Each has a request half received when the end is asked for, and answers it."""
    body = make(9, 1, 1, 1).part10
    head = ["POST /dicomweb/studies HTTP/1.1", "host: x", "content-type: application/dicom", "expect: 100-continue"]
    head += ["accept: application/dicom+json", f"content-length: {len(body)}"]
    with ExitStack() as stack:
        callers: list[socket.socket] = []
        for role in gateway.roles("web"):
            client = stack.enter_context(at(gateway, role))
            stream = client.get("/livez").extensions["network_stream"]
            callers.append(stream.get_extra_info("socket"))
        for caller in callers:
            caller.settimeout(_PATIENCE_S)
            caller.sendall("\r\n".join([*head, "", ""]).encode())
            assert caller.recv(4096).startswith(b"HTTP/1.1 100")
            caller.sendall(body[:1000])
        gateway.process.send_signal(signal.SIGTERM)
        host, _, port = gateway.http.removeprefix("http://").rpartition(":")
        wait_until_refused(host, int(port))
        for caller in callers:
            caller.sendall(body[1000:])
            assert caller.recv(4096).startswith(b"HTTP/1.1 200")
    assert gateway.stop() == 0
