"""dicomweb-client for JavaScript against a running gateway: every call that it has (CL-08)."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import imagecodecs

from tests.makers import instance, pixels, uid
from tests.node import PROGRAMS, program
from tests.running import RunningGateway

STUDY, SERIES = uid(61), uid(61, 1)
SOPS = [uid(61, 1, number) for number in (1, 2)]
FRAMES = [frame.tobytes() for frame in pixels(5, frames=4)]


def test_every_call(gateway: RunningGateway, tmp_path: Path, npm_packages: Path) -> None:
    sources = []
    for number, sop in enumerate(SOPS, 1):
        image = pixels(5, frames=4) if number == 1 else pixels(6)
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(instance(STUDY, SERIES, sop, image, InstanceNumber=number, StudyDescription="Head"))
        sources.append(str(path))
    base = f"{gateway.http}/dicomweb"
    uids = {"studyInstanceUID": STUDY, "seriesInstanceUID": SERIES, "sopInstanceUID": SOPS[0]}
    ran = subprocess.run(
        [program(), str(PROGRAMS / "dicomweb_client.cjs"), str(npm_packages), base, *sources],
        input=json.dumps(uids),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ran.returncode == 0, ran.stderr
    out: dict[str, Any] = json.loads(ran.stdout)

    assert out["neverCalled"] == []
    assert out["settings"] == [False, False]
    assert out["hooked"]
    assert out["progressed"]
    for reply in (out["stored"], out["storedAgain"]):
        assert [one["00081155"]["Value"][0] for one in reply["00081199"]["Value"]] == SOPS
    assert (out["refused"], out["missing"], out["nobody"]) == (409, 404, [])

    (study,) = out["studies"]
    assert study["0020000D"]["Value"] == [STUDY]
    assert study["00081030"]["Value"] == ["Head"]
    assert out["series"][0]["0020000E"]["Value"] == [SERIES]
    assert len(out["allSeries"]) == 1
    assert [one["00080018"]["Value"][0] for one in out["instances"]] == SOPS
    assert len(out["allInstances"]) == 2
    for name in ("studyMetadata", "seriesMetadata"):
        assert [one["00080018"]["Value"][0] for one in out[name]] == SOPS
    assert out["metadata"]["00280008"]["Value"] == [4]

    files = [out["instance"], *out["study"], *out["seriesFiles"]]
    assert len(files) == 5
    assert all(one["length"] > 132 for one in files)
    assert out["instance"] == out["study"][0] == out["seriesFiles"][0]
    assert _sums(out["frames"]) == _sums_of(FRAMES[1:3])
    decoders = {
        "image/jp2": imagecodecs.jpeg2k_decode,
        "image/jls": imagecodecs.jpegls_decode,
        "application/octet-stream": None,
        "image/x-dicom-rle": None,
    }
    for kind in out["framesAs"]:
        assert kind["mediaType"] in decoders
        assert len(kind["frames"]) == 2
        assert _sums(kind["frames"]) != _sums_of(FRAMES[1:3]), "compressed"
    assert len(out["framesEither"]) == 2
    assert out["framesEither"] in (out["framesAs"][0]["frames"], out["frames"])

    for name in ("rendered", "thumbnail", "frameRendered", "frameThumbnail"):
        assert [one["start"][:3] for one in out[name]] == ["\xff\xd8\xff"], name
        assert [one["start"][:4] for one in out[f"{name}Png"]] == ["\x89PNG"], name
    assert _sums(out["bulk"]) == _sums(out["bulkSingle"]) == _sums_of([b"".join(FRAMES)])
    assert out["uidOfBulk"] == SOPS[0]
    assert out["byUri"]["type"] == "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.202"
    assert out["byUri"]["length"] > 132
    assert out["wadoUri"].startswith(f"{base}?requestType=WADO&studyUID={STUDY}&")


def _sums(told: list[dict[str, Any]]) -> list[str]:
    return [one["sha256"] for one in told]


def _sums_of(values: list[bytes]) -> list[str]:
    return [hashlib.sha256(value).hexdigest() for value in values]
