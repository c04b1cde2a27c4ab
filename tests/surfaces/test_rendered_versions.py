"""Pictures of a running gateway: edits of what decides them, versions, and frames at a low resolution."""

import httpx
import imagecodecs
import numpy as np
import pytest
from pydicom.dataset import Dataset

from tests.makers import data_set, instance, part10, uid
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


def test_a_presentation_state_shows_its_image_as_whoever_asks_could_fetch_it(gateway: RunningGateway) -> None:
    """REND-10: an overlay among the samples; edits of the state and of the image; an image that is deleted."""
    values = np.tile(np.arange(256, dtype="<u2") * 16, (128, 1))
    in_bit_15 = np.zeros(values.shape, bool)
    in_bit_15[20:30, 40:50] = True
    image = data_set(STUDY, SERIES, SOP, values | np.where(in_bit_15, 1 << 15, 0).astype("<u2"))
    image.BitsStored, image.HighBit = 12, 11
    image.WindowCenter, image.WindowWidth = 1, 1
    for element, vr, value in (
        *((0x10, "US", 128), (0x11, "US", 256), (0x40, "CS", "G"), (0x50, "SS", [1, 1]), (0x100, "US", 16)),
        (0x102, "US", 15),
    ):
        image.add_new((0x6000, element), vr, value)
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, SOP
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedImageSequence = SERIES, [reference]
    states = uid(61, 2)
    state = data_set(STUDY, states, uid(61, 2, 1), ReferencedSeriesSequence=[series], PresentationLUTShape="IDENTITY")
    state.SOPClassUID, state.Modality, state.ImageRotation = "1.2.840.10008.5.1.4.1.1.11.1", "PR", 180
    state.add_new((0x6000, 0x1001), "CS", "LAYER")
    path = f"/dicomweb/studies/{STUDY}/series/{states}/instances/{uid(61, 2, 1)}/rendered"
    dicom = {"Content-Type": "application/dicom"}

    assert httpx.post(f"{gateway.http}/dicomweb/studies", content=part10(state), headers=dicom).status_code == 200
    missing = gateway.get(path, headers=PNG)
    assert (missing.status_code, SOP in missing.json()["detail"]) == (404, True)
    assert httpx.post(f"{gateway.http}/dicomweb/studies", content=part10(image), headers=dicom).status_code == 200
    first = gateway.get(path, headers=PNG)
    expected = np.rint(values / 4095 * 255)
    expected[in_bit_15] = 255
    assert np.array_equal(imagecodecs.png_decode(first.content), expected[::-1, ::-1])

    # The patient is that of the image; its window is the state's business.
    named = gateway.get(f"{path}?annotation=patient", headers=PNG)
    image_set, of_state = image_set_of(gateway, SERIES), image_set_of(gateway, states)
    for change in (("--set", "PatientName=Roe^Jane"), ("--instance", SOP, "--set", "WindowCenter=9", "--force")):
        where = ("--series", SERIES) if "--instance" in change else ()
        done = command("edit", gateway.datastore, image_set, *where, *change, "--url", gateway.http)
        assert done.returncode == 0, done.stderr
    assert gateway.get(path, headers=PNG | {"If-None-Match": first.headers["etag"]}).status_code == 304
    renamed = gateway.get(f"{path}?annotation=patient", headers=PNG | {"If-None-Match": named.headers["etag"]})
    assert (renamed.status_code, renamed.content != named.content) == (200, True)

    upright = ("--series", states, "--instance", uid(61, 2, 1), "--set", "ImageRotation=0", "--force")
    done = command("edit", gateway.datastore, of_state, *upright, "--url", gateway.http)
    assert done.returncode == 0, done.stderr
    turned = gateway.get(path, headers=PNG | {"If-None-Match": first.headers["etag"]})
    assert np.array_equal(imagecodecs.png_decode(turned.content), expected)
    assert gateway.get(f"{path}?version=1", headers=PNG).content == first.content

    where = f"{gateway.http}/dicomweb/studies/{STUDY}/series/{SERIES}/instances/{SOP}"
    assert httpx.delete(where, headers={"If-Match": "*"}).status_code == 204
    assert gateway.get(path, headers=PNG).status_code == 404


def image_set_of(gateway: RunningGateway, series: str) -> str:
    """The image set of a series."""
    filters = {"filters": [{"operator": "EQUAL", "values": [{"DICOMSeriesInstanceUID": series}]}]}
    found = httpx.post(f"{gateway.http}/datastore/{gateway.datastore}/searchImageSets", json=filters)
    assert found.status_code == 200, found.text
    return str(found.json()["imageSetsMetadataSummaries"][0]["imageSetId"])
