"""Pictures of a running gateway: edits of what decides them, versions, and frames at a low resolution."""

import httpx
import imagecodecs
import numpy as np
import pytest

from tests.makers import instance, uid
from tests.running import RunningGateway, command

STUDY, SERIES, SOP = uid(61), uid(61, 1), uid(61, 1, 1)
PATH = f"/dicomweb/studies/{STUDY}/series/{SERIES}/instances/{SOP}"
PNG = {"Accept": "image/png"}


@pytest.fixture
def stored(gateway: RunningGateway) -> RunningGateway:
    image = np.tile(np.arange(512, dtype="<u2") * 8, (512, 1))
    sent = instance(STUDY, SERIES, SOP, image, BitsStored=12, HighBit=11, WindowCenter=2048, WindowWidth=4096)
    dicom = {"Content-Type": "application/dicom"}
    assert httpx.post(f"{gateway.http}/dicomweb/studies", content=sent, headers=dicom).status_code == 200
    return gateway


def edit(gateway: RunningGateway, *change: str) -> None:
    criteria = httpx.post(f"{gateway.http}/datastore/{gateway.datastore}/searchImageSets", content=b"{}").json()
    image_set = criteria["imageSetsMetadataSummaries"][0]["imageSetId"]
    done = command("edit", gateway.datastore, image_set, *change, "--url", gateway.http)
    assert done.returncode == 0, done.stderr


def test_a_picture_changes_with_the_attributes_that_decide_it(stored: RunningGateway) -> None:
    first = stored.get(f"{PATH}/rendered", headers=PNG)
    row = imagecodecs.png_decode(first.content)[0].astype(int)
    assert np.abs(row - np.arange(512) * 8 / 4095 * 255).max() <= 1
    annotated = f"{PATH}/rendered?annotation=patient"
    before = stored.get(annotated, headers=PNG)
    edit(stored, "--set", "PatientName=Roe^Jane")
    unmoved = stored.get(f"{PATH}/rendered", headers=PNG)
    assert (unmoved.headers["etag"], unmoved.content) == (first.headers["etag"], first.content)
    # REND-06: an annotation shows the name of the version asked for.
    renamed = stored.get(annotated, headers=PNG | {"If-None-Match": before.headers["etag"]})
    assert (renamed.status_code, renamed.content != before.content) == (200, True)
    assert stored.get(f"{annotated}&version=1", headers=PNG).content == before.content
    known_name = PNG | {"If-None-Match": before.headers["etag"]}
    assert stored.get(f"{annotated}&version=1", headers=known_name).status_code == 304
    window = ("--set", "WindowCenter=1024", "--set", "WindowWidth=1")
    edit(stored, "--series", SERIES, "--instance", SOP, *window, "--force")
    known = PNG | {"If-None-Match": first.headers["etag"]}
    changed = stored.get(f"{PATH}/rendered", headers=known)
    assert changed.status_code == 200
    assert imagecodecs.png_decode(changed.content)[0].tolist() == [0] * 128 + [255] * 384
    small = imagecodecs.png_decode(stored.get(f"{PATH}/thumbnail", headers=PNG).content)
    assert small[0, :31].tolist() == [0] * 31
    assert small[0, 33:].tolist() == [255] * 95
    assert stored.get(f"{PATH}/rendered?version=1", headers=known).status_code == 304
    assert stored.get(f"{PATH}/rendered?version=9", headers=PNG).status_code == 404


def test_a_thumbnail_is_the_picture_in_small(stored: RunningGateway) -> None:
    for query, side in (("", 128), ("?viewport=64,64", 64), ("?viewport=256,256", 256), ("?viewport=200,300", 200)):
        small = imagecodecs.png_decode(stored.get(f"{PATH}/thumbnail{query}", headers=PNG).content).astype(int)
        assert small.shape == (side, side)
        steps = 512 / side
        assert np.abs(small - (np.arange(side) * steps + steps / 2) * 8 / 4095 * 255).max() <= steps
    for accept in ("image/jpeg", 'multipart/related; type="application/octet-stream"', "*/*"):
        answer = stored.get(f"{PATH}/thumbnail?viewport=256%2C256", headers={"Accept": accept})
        assert answer.headers["content-type"] == "image/jpeg"
        assert imagecodecs.jpeg8_decode(answer.content).shape == (256, 256)
