"""What was acknowledged and cannot be imported: listed, given out as it came, tried again, dropped."""

import dataclasses
import json
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom

from adapters.blobs.quarantine import QuarantineFolder
from campaigns.dimse import Association
from campaigns.instances import make
from gateway.domain.ids import DatastoreId, JobId
from gateway.domain.model import Origin, Quarantined
from tests.running import RunningGateway, command

TOKEN = {"GATEWAY_AUTH__TOKENS": '[{"token": "t0ken", "principal": "it"}]'}
KNOWN = {"headers": {"authorization": "Bearer t0ken"}}


def run(gateway: RunningGateway, *arguments: str, code: int = 0) -> Any:
    done = command("quarantine", *arguments, "--url", gateway.http, "--token", "t0ken")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def listed(gateway: RunningGateway, unlike: str = "") -> dict[str, Any]:
    """The only item of the list, once there is one other than `unlike`."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        items = gateway.get("/quarantine", **KNOWN).json()["quarantine"]
        if [item["id"] for item in items] not in ([], [unlike]):
            (item,) = items
            return dict(item)
        time.sleep(0.05)
    raise AssertionError(gateway.get("/queue", **KNOWN).text)


def test_from_a_broken_instance_to_nothing_left(
    start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    gateway = start_gateway(env=TOKEN)
    whole = make(1, 1, 1, 1)
    end = whole.part10.index(b"\xe0\x7f\x10\x00") - 3  # within an element, behind all that is looked at on receipt
    broken = dataclasses.replace(whole, part10=whole.part10[:end])
    association = Association(gateway.dimse, gateway.aet)
    assert association.store(broken) == 0
    association.release()

    item = listed(gateway)
    assert (item["source"], item["callingAe"], item["calledAe"]) == ("dimse", "CAMPAIGN", gateway.aet)
    assert (item["reason"], item["sizeBytes"]) == ("C000", len(broken.data_set))
    assert item["message"]
    assert time.time() - 60 < item["receivedAt"] <= time.time()
    seen = json.dumps(item) + run(gateway, "list")
    assert item["id"] in seen
    for secret in (whole.sop, whole.study, "Doe", "P1", "A1"):
        assert secret not in seen
    work = gateway.get("/queue", **KNOWN).json()["work"]
    assert (work["quarantine"]["waiting"], work["kept"]["waiting"]) == (1, 0)

    # As it was received, with the File Meta Information that its command stands for.
    file = tmp_path / "got.dcm"
    run(gateway, "get", item["id"], "--output", str(file))
    assert file.read_bytes().endswith(broken.data_set)
    meta = pydicom.filereader.read_file_meta_info(file)
    assert (meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID) == (whole.sop, whole.syntax)
    assert gateway.get(f"/quarantine/{item['id']}", **KNOWN).content == file.read_bytes()
    assert gateway.get(f"/quarantine/{item['id']}").status_code == 401
    assert gateway.get("/quarantine").status_code == 401

    # It cannot be imported this time either, and is not lost by that.
    (tried,) = run(gateway, "retry", item["id"], "--json", code=1)
    assert (tried["stored"], tried["reason"]) == (False, "C000")
    again = listed(gateway, unlike=item["id"])
    assert again["id"] != item["id"]
    assert gateway.get(f"/quarantine/{again['id']}", **KNOWN).content == file.read_bytes()
    run(gateway, "drop", again["id"])
    assert run(gateway, "list", "--json") == []
    assert gateway.get(f"/quarantine/{again['id']}", **KNOWN).status_code == 404
    assert "no quarantined instance" in command(
        "quarantine", "drop", again["id"], "--url", gateway.http, "--token", "t0ken"
    ).stderr

    # What has become importable is imported.
    origin = Origin(DatastoreId(gateway.datastore), "stow")
    kept = Quarantined(f"{1:013d}-{'0' * 32}-00000", JobId("0" * 32), origin, 0x0110, "", 1, len(whole.part10))
    QuarantineFolder(gateway.data).put(kept, whole.part10)
    (done,) = run(gateway, "retry", "--all", "--json")
    assert done["stored"]
    assert run(gateway, "list") == "The quarantine is empty.\n"
    (row,) = gateway.get("/dicomweb/instances", **KNOWN).json()
    assert row["00080018"]["Value"] == [whole.sop]


def test_what_is_asked_wrongly_is_told(gateway: RunningGateway) -> None:
    assert gateway.get("/quarantine").json() == {"quarantine": []}
    for path in ("/quarantine/nonsense", "/quarantine/..%2Fgateway.db", f"/quarantine/{1:013d}-{'0' * 32}-00000"):
        answer = gateway.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
    for limit in ("0", "1001", "x", "²", "-1", "99999999999", "0010009999", "000001" + "0" * 5000):
        assert gateway.get("/quarantine", params={"limit": limit}).status_code == 400, limit[:20]
    import httpx

    assert httpx.put(f"{gateway.http}/quarantine").status_code == 405
    assert httpx.put(f"{gateway.http}/quarantine/x").headers["allow"] == "GET, HEAD, POST, DELETE"
    assert command("quarantine", "retry", "--url", gateway.http).returncode == 2
    assert httpx.post(f"{gateway.http}/quarantine/x").status_code == 404


def test_a_list_has_pages_and_a_damaged_file_costs_no_other(gateway: RunningGateway) -> None:
    folder = QuarantineFolder(gateway.data)
    origin = Origin(DatastoreId(gateway.datastore), "dimse", part10=False, syntax="1.2.840.10008.1.2.1")
    ids = [f"{number:013d}-{'a' * 32}-00000" for number in range(1, 8)]
    for id in ids:
        folder.put(Quarantined(id, JobId("a" * 32), origin, 0xC000, "why", 1, 3), b"abc")
    seen = []
    page: dict[str, Any] = {"next": ""}
    while "next" in page:
        page = gateway.get("/quarantine", params={"limit": "3", "after": page["next"]}).json()
        seen.append([item["id"] for item in page["quarantine"]])
    assert seen == [ids[:3], ids[3:6], ids[6:]]
    (gateway.data / "quarantine" / ids[0]).write_bytes(b"{")
    assert len(gateway.get("/quarantine").json()["quarantine"]) == 6
    assert gateway.get(f"/quarantine/{ids[0]}").status_code == 500
    assert BytesIO(gateway.get(f"/quarantine/{ids[1]}").content).read().endswith(b"abc")
    done = gateway.command("verify")
    assert (done.returncode, f"quarantined {ids[0]}" in done.stdout) == (1, True)
