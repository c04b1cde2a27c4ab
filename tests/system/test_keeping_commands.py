"""`verify` and `db` as an operator types them, over a gateway that serves."""

import json
from pathlib import Path
from typing import Any

import httpx

from campaigns.instances import make
from tests.running import RunningGateway, command


def answer(*arguments: str, code: int = 0) -> Any:
    done = command(*arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def send(gateway: RunningGateway, number: int) -> None:
    instance = make(6, 1, 1, number)
    stored = httpx.post(
        f"{gateway.http}/dicomweb/studies",
        headers={"content-type": "application/dicom", "accept": "application/dicom+json"},
        content=instance.part10,
        timeout=30,
    )
    assert stored.status_code == 200


def test_a_store_is_verified_backed_up_damaged_mended_and_restored(gateway: RunningGateway, tmp_path: Path) -> None:
    here, copy = ("--data", str(gateway.data)), tmp_path / "copy"
    for number in range(1, 4):
        send(gateway, number)
    assert answer("verify", *here)["records"] == 3
    assert answer("db", "backup", str(copy), *here)["copiedBytes"] > 0
    (pack,) = (gateway.data / "pack").iterdir()
    with pack.open("r+b") as file:
        file.seek(20)
        file.write(b"rot")
    broken = answer("verify", *here, code=1)
    assert [fault["kind"] for fault in broken["faults"]] == ["record"]
    assert "FAULT     record" in command("verify", *here).stdout
    assert answer("verify", *here, "--repair", "--from", str(copy))["sound"]
    assert answer("verify", *here)["faults"] == []
    study = make(6, 1, 1, 1).study
    found = gateway.get(f"/dicomweb/studies/{study}/metadata").json()
    assert len(found) == 3
    assert answer("db", "rebuild", *here)["publications"] == 3

    restored = ("--data", str(tmp_path / "restored"))
    answer("db", "restore", str(copy), *restored)
    assert answer("verify", *restored)["records"] == 3
    for arguments, said in (
        (("db", "restore", str(copy), *here), "in use by process"),
        (("db", "restore", str(copy), *restored), "holds a store already"),
        (("db", "restore", str(tmp_path), "--data", str(tmp_path / "x")), "no whole backup"),
        (("verify", "--data", str(tmp_path / "nowhere")), "there is no store"),
        (("db", "backup", str(gateway.data / "inside"), *here), "another disk"),
    ):
        done = command(*arguments)
        assert (done.returncode in (1, 2), said in done.stderr) == (True, True), done.stderr
        assert "Traceback" not in done.stderr
