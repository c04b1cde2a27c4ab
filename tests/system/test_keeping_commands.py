"""`verify` and `db` as an operator types them, over a gateway that serves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from campaigns.instances import make
from tests.running import RunningGateway, command


def answer(*arguments: str, code: int = 0, env: Mapping[str, str] | None = None) -> Any:
    done = command(*arguments, "--json", env=env)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def other_database(gateway: RunningGateway, request: pytest.FixtureRequest) -> dict[str, str]:
    """Where a restored store has its rows: in its own folder, or a PostgreSQL database like that of the gateway."""
    if "GATEWAY_DATABASE_URL" not in gateway.environment:
        return {}
    return {"GATEWAY_DATABASE_URL": request.getfixturevalue("postgres_url")}


def send(gateway: RunningGateway, number: int) -> None:
    instance = make(6, 1, 1, number)
    stored = httpx.post(
        f"{gateway.http}/dicomweb/studies",
        headers={"content-type": "application/dicom", "accept": "application/dicom+json"},
        content=instance.part10,
        timeout=30,
    )
    assert stored.status_code == 200


def test_a_store_is_verified_backed_up_damaged_mended_and_restored(
    gateway: RunningGateway, other_database: dict[str, str], tmp_path: Path
) -> None:
    def ours(*arguments: str, code: int = 0) -> Any:
        done = gateway.command(*arguments, "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    here, copy = ("--data", str(gateway.data)), tmp_path / "copy"
    for number in range(1, 4):
        send(gateway, number)
    assert ours("verify")["records"] == 3
    assert ours("db", "backup", str(copy))["copiedBytes"] > 0
    pack = next((gateway.data / "pack").iterdir())
    with pack.open("r+b") as file:
        file.seek(20)
        file.write(b"rot")
    broken = ours("verify", code=1)
    assert [fault["kind"] for fault in broken["faults"]] == ["record"]
    assert "FAULT     record" in gateway.command("verify").stdout
    assert ours("verify", "--repair", "--from", str(copy))["sound"]
    assert ours("verify")["faults"] == []
    study = make(6, 1, 1, 1).study
    found = gateway.get(f"/dicomweb/studies/{study}/metadata").json()
    assert len(found) == 3
    assert ours("db", "rebuild")["publications"] == 3

    restored = ("--data", str(tmp_path / "restored"))
    answer("db", "restore", str(copy), *restored, env=other_database)
    assert answer("verify", *restored, env=other_database)["records"] == 3
    for arguments, said in (
        (("db", "restore", str(copy), *here), "in use by process"),
        (("db", "restore", str(copy), *restored), "holds a store already"),
        (("db", "restore", str(tmp_path), "--data", str(tmp_path / "x")), "no whole backup"),
        (("db", "backup", str(gateway.data / "inside"), *here), "another disk"),
        (("verify", "--data", str(tmp_path / "nowhere")), "there is no store"),
    ):
        done = command(*arguments, env=None if "nowhere" in arguments[-1] else other_database)
        assert (done.returncode in (1, 2), said in done.stderr) == (True, True), done.stderr
        assert "Traceback" not in done.stderr
