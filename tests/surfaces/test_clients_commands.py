"""DCMTK and curl against a running gateway, as they are typed by people who have no other tools at hand."""

import json
import re
import subprocess
import time
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from tests.conftest import tool
from tests.makers import data_set, instance, part10, pixels, uid
from tests.running import RunningGateway

STUDY, SERIES = uid(31), uid(31, 1)


def run(*command: str, code: int = 0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def dcmtk(name: str, gateway: RunningGateway, *arguments: str, code: int = 0) -> str:
    program = tool(name)
    assert program is not None
    host, port = gateway.dimse
    options = [argument for argument in arguments if not argument.startswith("/")]
    files = [argument for argument in arguments if argument.startswith("/")]
    return run(program, "-v", "-aec", gateway.aet, *options, host, str(port), *files, code=code)


def wait_for(gateway: RunningGateway, instances: int) -> None:
    deadline = time.monotonic() + 30
    while len(gateway.get("/dicomweb/instances").json()) < instances:
        assert time.monotonic() < deadline, gateway.log.read_text()[-2000:]
        time.sleep(0.05)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three slices of one series."""
    made = tmp_path / "series"
    made.mkdir()
    for number in (1, 2, 3):
        path = made / f"{number}.dcm"
        path.write_bytes(instance(STUDY, SERIES, uid(31, 1, number), pixels(number), InstanceNumber=number))
    return made


@pytest.mark.needs("dcmtk")
def test_dcmtk(gateway: RunningGateway, folder: Path, tmp_path: Path) -> None:
    assert "Received Echo Response (Success)" in dcmtk("echoscu", gateway)
    assert "Received Echo Response (Success)" in dcmtk("echoscu", gateway, "--repeat", "3", "-aet", "MODALITY1")

    files = [str(path) for path in sorted(folder.iterdir())]
    sent = dcmtk("storescu", gateway, *files)
    assert sent.count("Received Store Response (Success)") == 3
    wait_for(gateway, 3)
    implicit = tmp_path / "implicit.dcm"
    implicit.write_bytes(part10(data_set(STUDY, SERIES, uid(31, 1, 4), pixels(4)), "1.2.840.10008.1.2"))
    assert "(Success)" in dcmtk("storescu", gateway, "-xi", str(implicit))
    assert "(Success)" in dcmtk("storescu", gateway, "-xe", "--max-pdu", "4096", "+IP", "10", files[0])
    assert "(Success)" in dcmtk("storescu", gateway, "-xb", "-R", files[1])
    assert dcmtk("storescu", gateway, "+sd", "+r", str(folder)).count("(Success)") == 3
    assert "(Success)" in dcmtk("storescu", gateway, "--repeat", "2", files[2])
    assert "(Success)" in dcmtk("storescu", gateway, "+II", files[0])  # an instance with UIDs made up on the way
    wait_for(gateway, 5)

    compressed = str(get_testdata_file("MR_small_RLE.dcm", download=False))
    assert "(Success)" in dcmtk("storescu", gateway, "-xr", compressed)
    wait_for(gateway, 6)
    broken = tmp_path / "broken.dcm"
    without_study = data_set(STUDY, SERIES, uid(31, 9))
    del without_study.StudyInstanceUID
    broken.write_bytes(part10(without_study))
    refused = dcmtk("storescu", gateway, "-nh", str(broken), files[0])
    assert "CannotUnderstand" in refused
    assert "(Success)" in refused


def found(said: str) -> list[dict[str, str]]:
    """The answers of findscu, by tag."""
    answers = re.split(r"Find Response: \d+ \(Pending\)", said)[1:]
    values = [re.findall(r"\((\w{4},\w{4})\) \w\w \[?(.*?)\]? +#", answer) for answer in answers]
    return [{tag: value.strip(" \0") for tag, value in each} for each in values]


@pytest.fixture
def filled(gateway: RunningGateway, folder: Path) -> RunningGateway:
    dcmtk("storescu", gateway, "+sd", str(folder))
    wait_for(gateway, 3)
    return gateway


@pytest.mark.needs("dcmtk")
def test_findscu_at_all_levels(filled: RunningGateway) -> None:
    def ask(*arguments: str) -> list[dict[str, str]]:
        keys = [part for argument in arguments[1:] for part in ("-k", argument)]
        return found(dcmtk("findscu", filled, arguments[0], *keys))

    (patient,) = ask(
        "-P", "QueryRetrieveLevel=PATIENT", "PatientName=Doe*", "PatientID", "NumberOfPatientRelatedStudies"
    )
    assert (patient["0010,0010"], patient["0010,0020"], patient["0020,1200"]) == ("Doe^Jane", "P1", "1")
    (study,) = ask(
        *("-S", "QueryRetrieveLevel=STUDY", "StudyDate=20240101-20240131", "StudyInstanceUID", "ModalitiesInStudy"),
        "NumberOfStudyRelatedInstances",
    )
    assert (study["0020,000d"], study["0008,0061"], study["0020,1208"]) == (STUDY, "CT", "3")
    (series,) = ask("-S", "QueryRetrieveLevel=SERIES", f"StudyInstanceUID={STUDY}", "SeriesInstanceUID", "Modality")
    assert (series["0020,000e"], series["0008,0060"]) == (SERIES, "CT")
    above = (f"StudyInstanceUID={STUDY}", f"SeriesInstanceUID={SERIES}")
    images = ask("-S", "QueryRetrieveLevel=IMAGE", *above, "SOPInstanceUID", "InstanceNumber")
    assert sorted(image["0008,0018"] for image in images) == [uid(31, 1, number) for number in (1, 2, 3)]
    (image,) = ask("-P", "QueryRetrieveLevel=IMAGE", "PatientID=P1", *above, "InstanceNumber=2", "SOPInstanceUID")
    assert image["0008,0018"] == uid(31, 1, 2)
    assert ask("-S", "QueryRetrieveLevel=STUDY", "PatientID=nobody", "StudyInstanceUID") == []
    assert "DataSetDoesNotMatchSOPClass" in dcmtk("findscu", filled, "-S", "-k", "QueryRetrieveLevel=NONSENSE")


@pytest.mark.needs("curl")
def test_curl(gateway: RunningGateway, folder: Path, tmp_path: Path) -> None:
    curl = tool("curl")
    assert curl is not None
    base = f"{gateway.http}/dicomweb"
    quiet = (curl, "-sS", "--fail-with-body")
    single = ("-H", "Content-Type: application/dicom", "--data-binary", f"@{folder}/1.dcm")
    answer = json.loads(run(*quiet, *single, f"{base}/studies"))
    assert answer["00081190"]["Value"] == [f"{base}/studies/{STUDY}"]

    # curl's own multipart is form-data; a body of several instances is put together by hand.
    body = tmp_path / "body"
    files = [(folder / f"{number}.dcm").read_bytes() for number in (2, 3)]
    head = b"--B\r\nContent-Type: application/dicom\r\n\r\n"
    body.write_bytes(b"".join(head + file + b"\r\n" for file in files) + b"--B--\r\n")
    kind = 'Content-Type: multipart/related; type="application/dicom"; boundary=B'
    stored = json.loads(run(*quiet, "-H", kind, "--data-binary", f"@{body}", f"{base}/studies/{STUDY}"))
    assert len(stored["00081199"]["Value"]) == 2
    chunked = ("-H", kind, "-H", "Transfer-Encoding: chunked", "--data-binary", f"@{body}")
    assert "00081199" in run(*quiet, *chunked, f"{base}/studies")

    (study,) = json.loads(run(*quiet, "-G", f"{base}/studies", "--data-urlencode", "PatientName=Doe^*"))
    assert study["00201208"]["Value"] == [3]
    assert len(json.loads(run(*quiet, f"{base}/studies/{STUDY}/instances?limit=2"))) == 2
    assert len(json.loads(run(*quiet, "--compressed", f"{base}/studies/{STUDY}/series/{SERIES}/metadata"))) == 3

    one = f"{base}/studies/{STUDY}/series/{SERIES}/instances/{uid(31, 1, 1)}"
    fetched = tmp_path / "fetched.dcm"
    run(*quiet, "-H", "Accept: application/dicom", "-o", str(fetched), one)
    assert pydicom.dcmread(fetched).PixelData == pixels(1).tobytes()
    frame = tmp_path / "frame"
    run(*quiet, "-H", "Accept: application/octet-stream", "-o", str(frame), f"{one}/frames/1")
    assert frame.read_bytes() == pixels(1).tobytes()
    etag = re.search(r'(?i)etag: (".*")', run(*quiet, "-D", "-", "-o", "/dev/null", f"{one}/metadata"))
    assert etag
    status = ("-o", "/dev/null", "-w", "%{http_code}")
    assert run(*quiet, *status, "-H", f"If-None-Match: {etag[1]}", f"{one}/metadata") == "304"
    assert run(curl, "-sS", *status, f"{base}/studies/9.9.9/metadata") == "404"
    assert "200" in run(curl, "-sSI", f"{one}/frames/1")
    problem = json.loads(run(curl, "-sS", "-H", "Content-Type: text/plain", "--data", "x", f"{base}/studies"))
    assert problem["status"] == 415
    assert problem["detail"]
