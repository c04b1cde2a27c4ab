"""Colour by plane goes in, colour by pixel comes out, and the header says so (WADO-10, TS-11, docs/adr/0005)."""

import io
from collections.abc import Callable

import httpx
import imagecodecs
import numpy as np
import pydicom
import pytest

from tests.makers import instance, uid
from tests.running import RunningGateway

_STUDY, _SERIES, _SOP = uid(40), uid(40, 1), uid(40, 1, 1)
_DICOM = {"Content-Type": "application/dicom"}


@pytest.mark.parametrize("planar", [0, 1])
def test_planes_become_pixels(start_gateway: Callable[..., RunningGateway], planar: int) -> None:
    gateway = start_gateway()
    colours = np.random.default_rng(7).integers(0, 256, (24, 32, 3), np.uint8)
    stored = colours.transpose(2, 0, 1) if planar else colours
    sent = instance(
        _STUDY,
        _SERIES,
        _SOP,
        Rows=24,
        Columns=32,
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=planar,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
        PixelData=np.ascontiguousarray(stored).tobytes(),
    )
    assert httpx.post(f"{gateway.http}/dicomweb/studies", content=sent, headers=_DICOM).status_code == 200
    path = f"/dicomweb/studies/{_STUDY}/series/{_SERIES}/instances/{_SOP}"

    whole = gateway.get(path, headers={"Accept": "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"})
    read = pydicom.dcmread(io.BytesIO(whole.content))
    assert (read.PhotometricInterpretation, read.PlanarConfiguration) == ("RGB", 0)
    assert np.array_equal(read.pixel_array, colours)

    (metadata,) = gateway.get(f"{path}/metadata").json()
    assert metadata["00280006"]["Value"] == [0]
    native = gateway.get(f"{path}/frames/1", headers={"Accept": "application/octet-stream"})
    assert native.content == colours.tobytes()
    htj2k = {"Accept": "image/jphc; transfer-syntax=1.2.840.10008.1.2.4.202"}
    encoded = gateway.get(f"{path}/frames/1", headers=htj2k)
    assert np.array_equal(imagecodecs.jpeg2k_decode(encoded.content), colours)
