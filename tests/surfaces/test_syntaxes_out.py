"""Instances and frames in every lossless syntax, decoded by libraries that did not encode them (TS-08..11)."""

import io
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.rle import _rle_decode_frame
from pydicom.uid import UID

from gateway.domain.syntaxes import (
    EXPLICIT_LE,
    HTJ2K_LOSSLESS,
    HTJ2K_LOSSLESS_RPCL,
    JPEG_2000_LOSSLESS,
    JPEG_BASELINE,
    JPEG_LS_LOSSLESS,
    RLE,
    by_uid,
)
from tests.conftest import tool
from tests.corpus import CORPUS
from tests.corpus_doors.compare import parts
from tests.corpus_doors.doors import Stow
from tests.corpus_doors.samples import Sample, samples
from tests.makers import instance, uid
from tests.running import RunningGateway
from tests.surfaces.fakes import jpeg_instance, surface

MEDIA = {
    HTJ2K_LOSSLESS: "image/jphc",
    JPEG_2000_LOSSLESS: "image/jp2",
    JPEG_LS_LOSSLESS: "image/jls",
    RLE: "image/dicom-rle",
}
KEPT = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "LossyImageCompression")


def layouts() -> list[Sample]:
    """Well-formed files that are stored without loss, the first of each layout of samples."""
    found: dict[object, Sample] = {}
    for file in samples():
        row = by_uid(file.syntax)
        if not file.well_formed or row is None or row.kept or "PixelData" not in file.data_set:
            continue
        read = file.data_set
        key = [read.get(name) for name in (*KEPT[:-1], "PhotometricInterpretation", "PlanarConfiguration")]
        key.append(int(read.get("NumberOfFrames") or 1) > 1)
        if read.BitsAllocated in (8, 16, 32) and read.Rows * read.Columns <= 1 << 19:
            found.setdefault(tuple(key), file)
    return list({file.uids: file for file in found.values()}.values())


def rle_decoded(data: bytes, rows: int, columns: int) -> bytes:
    return bytes(_rle_decode_frame(data, rows, columns, 1, 16))


def cells(data_set: Dataset, folder: Path) -> bytes:
    """The native samples of an instance, all frames, colour by pixel, by a decoder that is none of the gateway's."""
    syntax = str(data_set.file_meta.TransferSyntaxUID)
    if syntax == JPEG_LS_LOSSLESS:
        sent, decoded = folder / "sent.dcm", folder / "decoded.dcm"
        data_set.save_as(sent)
        command = [str(tool("dcmdjpls")), str(sent), str(decoded)]
        assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
        data_set = pydicom.dcmread(decoded)
        assert data_set.get("PlanarConfiguration", 0) == 0
        return unpadded(data_set)
    if syntax == HTJ2K_LOSSLESS:  # OpenJPEG, where OpenJPH has encoded
        count = int(data_set.get("NumberOfFrames") or 1)
        frames = generate_frames(data_set.PixelData, number_of_frames=count)
        return b"".join(widened(imagecodecs.jpeg2k_decode(frame, planar=False), data_set) for frame in frames)
    decoded, told = get_decoder(UID(syntax)).as_buffer(data_set, raw=True)
    # A codestream of up to 8 bits comes out of it in bytes, whatever Bits Allocated says.
    kind = "i" if data_set.PixelRepresentation else "u"
    array = np.frombuffer(widened(np.frombuffer(decoded, f"<{kind}{told['bits_allocated'] // 8}"), data_set), np.uint8)
    if told.get("planar_configuration"):
        width = data_set.BitsAllocated // 8
        array = array.reshape(-1, 3, data_set.Rows * data_set.Columns, width).transpose(0, 2, 1, 3)
    return array.tobytes()


def widened(samples: NDArray[Any], data_set: Dataset) -> bytes:
    return samples.astype(f"<{samples.dtype.kind}{data_set.BitsAllocated // 8}").tobytes()


def unpadded(data_set: Dataset) -> bytes:
    bits = data_set.Rows * data_set.Columns * data_set.SamplesPerPixel * data_set.BitsAllocated
    return bytes(data_set.PixelData[: bits * int(data_set.get("NumberOfFrames") or 1) // 8])


@pytest.mark.needs("dcmtk")
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_every_layout_in_every_syntax(gateway: RunningGateway, tmp_path: Path) -> None:
    files = layouts()
    compared: Counter[str] = Counter()
    with httpx.Client(base_url=gateway.http, timeout=60) as http:
        receipts = Stow(gateway, http).send(files)
        for file in files:
            receipt = receipts[file]
            assert file.uids is not None
            assert receipt is not None
            assert receipt.stored, file.name
            url = "/dicomweb/studies/{}/series/{}/instances/{}".format(*file.uids)
            params = {} if receipt.image_set is None else {"imageSetId": receipt.image_set}

            def fetched(syntax: str, url: str = url, params: dict[str, str] = params) -> httpx.Response:
                return http.get(url, params=params, headers={"accept": f"application/dicom; transfer-syntax={syntax}"})

            native = pydicom.dcmread(io.BytesIO(fetched(EXPLICIT_LE).content))
            truth = unpadded(native)
            for syntax in MEDIA:
                answer = fetched(syntax)
                if not carries(syntax, native):
                    assert answer.status_code == 406, (file.name, syntax)
                    continue
                assert answer.status_code == 200, (file.name, syntax, answer.text)
                back = pydicom.dcmread(io.BytesIO(answer.content))
                assert back.file_meta.TransferSyntaxUID == syntax
                colour = native.PhotometricInterpretation
                transformed = colour == "RGB" and syntax in (HTJ2K_LOSSLESS, JPEG_2000_LOSSLESS)
                assert back.PhotometricInterpretation == ("YBR_RCT" if transformed else colour)
                assert back.get("PlanarConfiguration", 0) == 0
                assert [back.get(name) for name in KEPT] == [native.get(name) for name in KEPT], file.name
                if syntax == HTJ2K_LOSSLESS and native.BitsAllocated == 32:
                    continue  # beyond OpenJPEG; the import has checked it with OpenJPH
                assert cells(back, tmp_path) == truth, (file.name, syntax)
                compared[syntax] += 1
    assert min(compared[syntax] for syntax in MEDIA) > (15 if CORPUS else 5)


def carries(syntax: str, data_set: Dataset) -> bool:
    if data_set.PhotometricInterpretation == "YBR_FULL_422":
        return False
    return syntax in (HTJ2K_LOSSLESS, RLE) or data_set.BitsAllocated < 32


def test_frames_in_every_syntax(gateway: RunningGateway) -> None:
    study, series, sop = uid(51), uid(51, 1), uid(51, 1, 1)
    image = np.random.default_rng(5).integers(-2048, 2048, (2, 40, 50)).astype("<i2")
    sent = instance(study, series, sop, image, BitsStored=12, HighBit=11)
    dicom = {"Content-Type": "application/dicom"}
    assert httpx.post(f"{gateway.http}/dicomweb/studies", content=sent, headers=dicom).status_code == 200
    frames = f"/dicomweb/studies/{study}/series/{series}/instances/{sop}/frames"
    read = {
        HTJ2K_LOSSLESS: imagecodecs.jpeg2k_decode,
        JPEG_2000_LOSSLESS: imagecodecs.jpeg2k_decode,
        JPEG_LS_LOSSLESS: lambda data: imagecodecs.jpegls_decode(data).view("<i2"),
        RLE: lambda data: np.frombuffer(rle_decoded(data, 40, 50), "<i2").reshape(40, 50),
    }
    for syntax, media in MEDIA.items():
        named = f"{media}; transfer-syntax={syntax}"
        answer = gateway.get(f"{frames}/2", headers={"Accept": named})
        assert answer.headers["content-type"] == named
        assert np.array_equal(read[syntax](answer.content), image[1]), syntax
        again = gateway.get(f"{frames}/2", headers={"Accept": named, "If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
        wanted = f'multipart/related; type="{media}"; transfer-syntax={syntax}'
        both = gateway.get(f"{frames}/2,1", headers={"Accept": wanted})
        assert [type for type, _ in parts(both.headers["content-type"], both.content)] == [named, named]
    # A type alone means its usual syntax; for image/jphc that in which the frame is stored.
    for syntax in (JPEG_2000_LOSSLESS, JPEG_LS_LOSSLESS, RLE):
        answer = gateway.get(f"{frames}/1", headers={"Accept": MEDIA[syntax]})
        assert answer.headers["content-type"] == f"{MEDIA[syntax]}; transfer-syntax={syntax}"
    answer = gateway.get(f"{frames}/1", headers={"Accept": "image/jphc"})
    assert answer.headers["content-type"] == f"image/jphc; transfer-syntax={HTJ2K_LOSSLESS_RPCL}"


def test_a_lossy_frame_is_never_encoded_again() -> None:
    on = surface([jpeg_instance()])
    url = "/dicomweb/studies/1.2.3/series/1.2.3.4/instances/1.2.3.4.1"
    for syntax, media in MEDIA.items():
        for path, kind in ((url, "application/dicom"), (f"{url}/frames/1", media)):
            answer = on.get(path, f"{kind}; transfer-syntax={syntax}")
            assert answer.status_code == 406
            assert JPEG_BASELINE in answer.json()["detail"]
