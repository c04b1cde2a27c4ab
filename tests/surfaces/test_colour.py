"""Colour by plane goes in, colour by pixel comes out, and the header says so (WADO-10, TS-11, docs/adr/0005)."""

import io
from collections.abc import Callable

import httpx
import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space

from tests.makers import data_set, instance, part10, uid
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


@pytest.mark.parametrize(
    ("syntax", "received", "decoded"),
    [
        ("1.2.840.10008.1.2.4.50", "YBR_FULL_422", "YBR_FULL"),
        ("1.2.840.10008.1.2.4.50", "RGB", "RGB"),
        ("1.2.840.10008.1.2.4.91", "YBR_ICT", "RGB"),
    ],
)
def test_metadata_tell_what_decoding_a_kept_codestream_gives(
    gateway: RunningGateway, syntax: str, received: str, decoded: str
) -> None:
    ramp = np.linspace(30, 220, 32).astype(np.uint8)
    colours = np.stack([np.tile(ramp, (24, 1)), np.full((24, 32), 90, np.uint8), np.tile(ramp[::-1], (24, 1))], axis=2)
    if syntax.endswith(".91"):
        codestream = imagecodecs.jpeg2k_encode(colours, level=40, codecformat="j2k", mct=True, reversible=False)
    elif received == "RGB":
        codestream = imagecodecs.jpeg8_encode(colours, level=95, colorspace="RGB", outcolorspace="RGB")
    else:
        codestream = imagecodecs.jpeg8_encode(colours, level=95, subsampling="422")
    made = data_set(_STUDY, _SERIES, _SOP, Rows=24, Columns=32, SamplesPerPixel=3, PhotometricInterpretation=received)
    made.PlanarConfiguration, made.PixelRepresentation = 0, 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 7
    made.add_new("PixelData", "OB", encapsulate([bytes(codestream)]))
    made["PixelData"].is_undefined_length = True
    sent = part10(made, syntax)
    assert httpx.post(f"{gateway.http}/dicomweb/studies", content=sent, headers=_DICOM).status_code == 200
    path = f"/dicomweb/studies/{_STUDY}/series/{_SERIES}/instances/{_SOP}"

    (metadata,) = gateway.get(f"{path}/metadata").json()
    assert metadata["00280004"]["Value"] == [decoded]
    native = gateway.get(f"{path}/frames/1", headers={"Accept": "application/octet-stream"})
    got = np.frombuffer(native.content, np.uint8).reshape(24, 32, 3).astype(int)
    if decoded == "YBR_FULL":
        got = convert_color_space(got.astype(np.uint8), "YBR_FULL", "RGB").astype(int)
    assert np.abs(got - colours).max() < 16

    # As it came, its header is as it came, too.
    kept = gateway.get(path, headers={"Accept": "application/dicom; transfer-syntax=*"})
    assert pydicom.dcmread(io.BytesIO(kept.content)).PhotometricInterpretation == received
