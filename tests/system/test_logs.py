"""No patient's data in the logs and metrics, whatever is sent and however it fails."""

import subprocess
from io import BytesIO
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from tests.conftest import tool
from tests.running import RunningGateway, command

MARKERS = {
    "PatientName": "Zebramarker^Qx",
    "PatientID": "ZEBRAMARKER77",
    "PatientBirthDate": "19010203",
    "AccessionNumber": "ZMARKACC9",
    "ReferringPhysicianName": "Zebradoctor^Q",
    "StudyDescription": "zebradescription",
}


def marked() -> pydicom.Dataset:
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    for keyword, value in MARKERS.items():
        setattr(dataset, keyword, value)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return dataset


def part10(dataset: pydicom.Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.needs("dcmtk")
def test_markers_reach_neither_logs_nor_metrics(gateway: RunningGateway, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.dcm", tmp_path / "broken.dcm"
    dataset = marked()
    whole.write_bytes(part10(dataset))
    broken.write_bytes(part10(marked())[:1500])
    for path in (whole, broken):
        command("import", str(path), "--url", gateway.http)
    host, port = gateway.dimse
    sender, finder = tool("storescu"), tool("findscu")
    assert sender is not None
    assert finder is not None
    second = tmp_path / "second.dcm"
    second.write_bytes(part10(marked()))
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", "PatientName=Zebramarker*", "-k", "PatientID=ZEBRAMARKER77"]
    for call in ([sender, host, str(port), str(second)], [finder, "-S", *keys, host, str(port)]):
        subprocess.run([call[0], "-aec", "GATEWAY", *call[1:]], check=True, timeout=30, capture_output=True)
    for path in (
        "/dicomweb/studies?PatientName=Zebramarker*",
        "/dicomweb/studies?PatientBirthDate=Zebramarker-19010203",
        "/dicomweb/studies/Zebramarker^Qx/series",
        "/Zebramarker^Qx/ZEBRAMARKER77",
        f"/datastore/{gateway.datastore}/studies/{dataset.StudyInstanceUID}/metadata",
    ):
        gateway.get(path)
    search = f"{gateway.http}/datastore/{gateway.datastore}/searchImageSets"
    criteria = {"filters": [{"values": [{"DICOMPatientId": "ZEBRAMARKER77"}], "operator": "EQUAL"}]}
    found = httpx.post(search, json=criteria).json()["imageSetsMetadataSummaries"]
    assert found
    edited = command(
        "edit", gateway.datastore, found[0]["imageSetId"], "--set", "PatientName=Zebramarker^New", "--url", gateway.http
    )
    assert edited.returncode == 0, edited.stderr
    httpx.post(search, content=b'{"Zebramarker": 1}')
    metrics = gateway.get("/metrics").text
    gateway.stop()

    log = gateway.log.read_text()
    assert log.count('"event":"request"') >= 8
    assert '"event":"association"' in log
    for text in (log.lower(), metrics.lower()):
        for word in ("zebra", "zmarkacc", "19010203", dataset.SOPInstanceUID, dataset.StudyInstanceUID):
            assert word.lower() not in text, word
