"""The commands, as they are typed."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from pydicom.data import get_testdata_file

from tests.running import RunningGateway, command

CT = Path(str(get_testdata_file("CT_small.dcm")))
MR = Path(str(get_testdata_file("MR_small.dcm")))
TOKEN = {"GATEWAY_AUTH__TOKENS": '[{"token": "t0ken", "principal": "it"}]'}


def answer(*arguments: str, code: int = 0, **options: Any) -> Any:
    done = command(*arguments, "--json", **options)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def image_sets(gateway: RunningGateway) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.post(
        f"{gateway.http}/datastore/{gateway.datastore}/searchImageSets", content=b"{}"
    ).json()["imageSetsMetadataSummaries"]
    return found


def test_from_a_folder_to_an_edit_and_back(gateway: RunningGateway, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    (folder / "ct").write_bytes(CT.read_bytes())
    (tmp_path / "in" / "mr.dcm").write_bytes(MR.read_bytes())
    (folder / "notes.txt").write_text("not DICOM")
    url = ("--url", gateway.http)

    sent = answer("import", str(tmp_path / "in"), *url)
    assert (sent["stored"], sent["failed"], len(sent["studies"])) == (2, [], 2)
    assert [Path(path).name for path in sent["skipped"]] == ["notes.txt"]

    broken = tmp_path / "broken.dcm"
    broken.write_bytes(CT.read_bytes()[:400])
    refused = answer("import", str(broken), *url, code=1)
    assert (refused["stored"], len(refused["failed"])) == (0, 1)
    assert command("import", str(tmp_path / "nowhere"), *url).returncode == 2

    study = pydicom.dcmread(CT).StudyInstanceUID
    ct = next(one for one in image_sets(gateway) if one["DICOMTags"]["DICOMStudyInstanceUID"] == study)["imageSetId"]
    edited = answer("edit", gateway.datastore, ct, "--set", "PatientName=Roe^Jane", "--version", "1", *url)
    assert edited["versionId"] == "2"
    names = gateway.get("/dicomweb/studies", params={"PatientName": "Roe^Jane"}).json()
    assert [row["0020000D"]["Value"] for row in names] == [[study]]

    stale = command("edit", gateway.datastore, ct, "--set", "PatientName=X", "--version", "1", *url)
    assert (stale.returncode, "not the latest" in stale.stderr) == (1, True)
    assert command("edit", gateway.datastore, ct, "--set", "NoSuchKeyword=1", *url).returncode == 2
    assert command("edit", gateway.datastore, ct, *url).returncode == 2
    assert command("edit", gateway.datastore, ct, "--set", "PatientName", *url).returncode == 2

    assert answer("edit", gateway.datastore, ct, "--remove", "PatientID", *url)["versionId"] == "3"
    assert answer("edit", gateway.datastore, ct, "--revert", "1", *url)["versionId"] == "4"
    assert gateway.get("/dicomweb/studies", params={"PatientName": "Roe^Jane"}).json() == []

    assert answer("queue", *url)["processes"][gateway.roles("worker")[0]]["up"] == 1
    said = command("echo", *url)
    assert said.returncode == 0
    assert re.search(r"HTTP .* ready, .*\nDIMSE  GATEWAY at 127.0.0.1:\d+: success", said.stdout)


def test_a_closed_gateway_asks_the_commands_for_credentials(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway(env=TOKEN)
    refused = command("import", str(CT), "--url", gateway.http)
    assert (refused.returncode, "401" in refused.stderr) == (1, True)
    assert answer("import", str(CT), "--url", gateway.http, "--token", "t0ken")["stored"] == 1
    assert answer("queue", "--url", gateway.http, env={"GATEWAY_CLIENT_TOKEN": "t0ken"})["work"]


def test_nobody_there(tmp_path: Path) -> None:
    for arguments in (("queue",), ("echo",), ("import", str(CT))):
        done = command(*arguments, "--url", "http://127.0.0.1:9")
        assert (done.returncode, "does the gateway run there" in done.stderr) == (1, True), done.stderr
        assert "Traceback" not in done.stderr


def test_check_tells_what_works_and_hides_secrets(tmp_path: Path) -> None:
    here = ("--data", str(tmp_path / "d"), "--http", "127.0.0.1:0", "--dimse", "127.0.0.1:0")
    said = answer("check", *here, env={**TOKEN, "GATEWAY_WORKRES": "2"})
    assert said["ok"]
    assert "t0ken" not in str(said)
    assert said["settings"]["data"] == str(tmp_path / "d")
    assert {"data", "database", "codecs", "http", "dimse"} <= set(said["parts"])
    assert said["unknown"] == ["GATEWAY_WORKRES"]
    assert "listen = " in command("check", *here).stdout

    lost = answer("check", *here, code=1, env={"GATEWAY_DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:9/none"})
    assert not lost["parts"]["database"]["ok"]


def test_db_migrate_and_check(tmp_path: Path) -> None:
    here = ("--data", str(tmp_path))
    assert answer("db", "check", *here, code=1)["revision"] is None
    made = answer("db", "migrate", *here)["revision"]
    assert made
    assert answer("db", "migrate", *here)["revision"] == made
    assert answer("db", "check", *here)["revision"] == made


def test_on_postgresql(start_gateway: Callable[..., RunningGateway], postgres_url: str) -> None:
    gateway = start_gateway("--workers", "2", env={"GATEWAY_DATABASE_URL": postgres_url})
    assert answer("import", str(CT), str(MR), "--url", gateway.http)["stored"] == 2
    assert len(gateway.get("/dicomweb/studies").json()) == 2
    assert {"worker-1", "worker-2"} <= set(gateway.pids())
    assert gateway.stop() == 0


@pytest.mark.parametrize("arguments", [("--help",), ("serve", "--help"), ("edit", "--help"), ("--version",)])
def test_help_is_there(arguments: tuple[str, ...]) -> None:
    assert command(*arguments).returncode == 0


@pytest.mark.parametrize("arguments", [("nonsense",), ("serve", "--nonsense"), ("edit", "only-one")])
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    assert command(*arguments).returncode == 2


def test_zip_archives_and_dicomdir_media_are_imported(gateway: RunningGateway, tmp_path: Path) -> None:
    url = ("--url", gateway.http)
    archive = tmp_path / "in.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.write(CT, "deep/ct.dcm")
        made.write(MR, "mr")
        made.writestr("readme.txt", "not DICOM")
        made.writestr("DICOMDIR", "not looked at")
        made.writestr("__MACOSX/._ct.dcm", "hidden")
    sent = answer("import", str(archive), *url)
    assert (sent["stored"], sent["failed"], len(sent["studies"])) == (2, [], 2)
    assert sent["skipped"] == [f"{archive}/readme.txt"]
    broken = tmp_path / "broken.zip"
    broken.write_bytes(archive.read_bytes()[:-200] + archive.read_bytes()[-100:])
    assert command("import", str(tmp_path), *url).returncode == 2, "a broken archive is told, and nothing guessed"

    medium = Path(str(get_testdata_file("DICOMDIR"))).parent / "dicomdirtests"
    if not (medium / "DICOMDIR").is_file():
        medium = Path(str(get_testdata_file("DICOMDIR"))).parent
    listed = pydicom.dcmread(medium / "DICOMDIR").DirectoryRecordSequence
    named = [record.ReferencedFileID for record in listed if "ReferencedFileID" in record]
    sent = answer("import", str(medium / "DICOMDIR"), *url)
    assert (sent["stored"] + len(sent["failed"]), sent["skipped"]) == (len(named), [])
    assert sent["stored"] > 20

    copy = tmp_path / "medium"
    copy.mkdir()
    (copy / "dicomdir").write_bytes((medium / "DICOMDIR").read_bytes())
    refused = command("import", str(copy / "dicomdir"), *url)
    assert (refused.returncode, f"{len(named)} of the files" in refused.stderr) == (2, True)


def test_what_an_edit_would_change_and_what_it_changed(gateway: RunningGateway) -> None:
    url = ("--url", gateway.http)
    answer("import", str(CT), *url)
    (ct,) = (one["imageSetId"] for one in image_sets(gateway))
    edit = ("edit", gateway.datastore, ct, "--set", "PatientName=Roe^Jane")
    would = answer(*edit, "--dry-run", *url)
    assert (would["dryRun"], would["from"], would["to"]) == (True, 1, 2)
    (entry,) = would["differences"]
    assert entry == {
        "level": "Patient",
        "attribute": "PatientName",
        "change": "changed",
        "from": "CompressedSamples^CT1",
        "to": "Roe^Jane",
    }
    assert answer("diff", gateway.datastore, ct, *url)["differences"] == []
    answer(*edit, *url)
    did = answer("diff", gateway.datastore, ct, *url)
    assert (did["from"], did["to"], did["differences"]) == (1, 2, would["differences"])
    back = answer("diff", gateway.datastore, ct, "--from", "2", "--to", "1", *url)
    assert (back["differences"][0]["from"], back["differences"][0]["to"]) == ("Roe^Jane", "CompressedSamples^CT1")
    told = command("diff", gateway.datastore, ct, *url).stdout
    assert 'changed  Patient PatientName: "CompressedSamples^CT1" -> "Roe^Jane"' in told
    assert command("diff", gateway.datastore, ct, "--from", "9", *url).returncode == 1
    refused = command("edit", gateway.datastore, ct, "--set", "StudyInstanceUID=1.2", "--dry-run", *url)
    assert (refused.returncode, "requires the force flag" in refused.stderr) == (1, True)
