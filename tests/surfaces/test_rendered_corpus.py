"""Every picture that the gateway makes of the corpus beside pydicom's own pipeline, over HTTP (REND-02)."""

import copy
import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space
from pydicom.pixels.utils import pixel_array

from gateway.domain.syntaxes import by_uid
from tests.corpus import CORPUS
from tests.corpus_doors.doors import Stow
from tests.corpus_doors.samples import Sample, samples
from tests.running import RunningGateway

NATIVE = "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"


def with_functional_groups(data_set: Dataset, index: int) -> Dataset:
    """What a frame's functional groups say, where pydicom looks for it: at the top level."""
    flat = copy.copy(data_set)
    groups = [*data_set.get("SharedFunctionalGroupsSequence", [])[:1]]
    groups += data_set.get("PerFrameFunctionalGroupsSequence", [])[index : index + 1]
    for group in groups:
        for sequence in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in group.get(sequence, [])[:1]:
                for keyword in (
                    *("RescaleSlope", "RescaleIntercept"),
                    *("WindowCenter", "WindowWidth", "VOILUTFunction"),
                ):
                    if keyword in item:
                        setattr(flat, keyword, item[keyword].value)
    return flat


def grey_by_pydicom(stored: NDArray[Any], data_set: Dataset) -> NDArray[np.float64]:
    """Shades from 0 to 255. Without a window: up to 8 bits as they are, more from the least to the greatest."""
    values = np.asarray(apply_modality_lut(stored, data_set))
    bits, signed = data_set.BitsStored, data_set.get("PixelRepresentation", 0)
    least, greatest = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    has_lut = bool(data_set.get("VOILUTSequence")) and "LUTData" in data_set.VOILUTSequence[0]
    has_window = data_set.get("WindowCenter") is not None and data_set.get("WindowWidth") is not None
    if has_lut or has_window:
        if has_lut and np.array_equal(values, np.rint(values)):
            values = np.rint(values).astype(np.int64)
        shown = np.asarray(apply_voi_lut(values, data_set)).astype(float)
        if has_lut:
            low, high = 0.0, float((1 << data_set.VOILUTSequence[0].LUTDescriptor[2]) - 1)
        elif "ModalityLUTSequence" in data_set:
            low, high = 0.0, float((1 << data_set.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
        else:
            slope, intercept = float(data_set.get("RescaleSlope", 1)), float(data_set.get("RescaleIntercept", 0))
            low, high = least * slope + intercept, greatest * slope + intercept
    else:
        shown = values.astype(float)
        if bits <= 8:
            ends = np.asarray(apply_modality_lut(np.array([least, greatest]), data_set)).astype(float)
            low, high = ends.min(), ends.max()
        else:
            image = shown[~padding(stored, data_set)]
            low, high = (image.min(), image.max()) if image.size else (0.0, 0.0)
    shades = np.zeros(shown.shape) if high <= low else ((shown - low) / (high - low)).clip(0, 1) * 255
    inverse = data_set.PhotometricInterpretation == "MONOCHROME1" or data_set.get("PresentationLUTShape") == "INVERSE"
    return 255 - shades if inverse else shades


def padding(stored: NDArray[Any], data_set: Dataset) -> NDArray[np.bool_]:
    """Where nothing is imaged; the value may be written as US though the samples have a sign."""
    value = data_set.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = data_set.get("PixelPaddingRangeLimit")
    ends = [value, value if limit is None else limit]
    if stored.dtype.kind == "i":
        ends = [end - (1 << data_set.BitsAllocated) if end >> data_set.BitsAllocated - 1 == 1 else end for end in ends]
    ends.sort()
    return np.asarray((stored >= ends[0]) & (stored <= ends[1]))


def by_pydicom(data_set: Dataset, index: int) -> NDArray[np.float64]:
    """A frame as it is to be shown: (rows, columns) or (rows, columns, 3), from 0 to 255, not rounded."""
    several = int(data_set.get("NumberOfFrames") or 1) > 1
    array = pixel_array(data_set, raw=True, index=index if several else None)
    if data_set.SamplesPerPixel == 3:
        if data_set.PhotometricInterpretation != "RGB":
            array = convert_color_space(array, data_set.PhotometricInterpretation, "RGB")
        return array.astype(float) * 255 / ((1 << data_set.BitsStored) - 1)
    if data_set.PhotometricInterpretation == "PALETTE COLOR":
        greatest = (1 << data_set.RedPaletteColorLookupTableDescriptor[2]) - 1
        return apply_color_lut(array, data_set).astype(float) * 255 / greatest
    flat = with_functional_groups(data_set, index)
    if "BitsStored" not in flat:  # floating point: pydicom wants a range to scale to
        flat.BitsStored, flat.PixelRepresentation = 16, 0
    shades = grey_by_pydicom(array, flat)
    shades[padding(array, flat)] = 0
    return shades


def chosen() -> list[Sample]:
    """Well-formed images: of each series the first three, no SOP Instance UID twice."""
    seen: set[str] = set()
    of_series: Counter[str] = Counter()
    files = []
    for file in samples():
        if not file.well_formed or file.uids is None or file.uids[2] in seen or of_series[file.uids[1]] > 2:
            continue
        row = by_uid(file.syntax)
        if row is None or row.video or not _PIXELS & set(file.data_set.dir()):
            continue
        seen.add(file.uids[2])
        of_series[file.uids[1]] += 1
        files.append(file)
    return files


_PIXELS = {"PixelData", "FloatPixelData", "DoubleFloatPixelData"}


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_pictures_of_the_corpus_are_those_of_pydicom(gateway: RunningGateway) -> None:
    files = chosen()
    with httpx.Client(base_url=gateway.http, timeout=60) as http:
        receipts = Stow(gateway, http).send(files)
        with ThreadPoolExecutor(2) as pool:
            jobs = {}
            for file in files:
                receipt = receipts[file]
                assert receipt is not None
                if receipt.stored and not receipt.code:
                    jobs[file.name] = pool.submit(differences, http, file, receipt.image_set)
            found = {name: job.result() for name, job in jobs.items()}
    assert len(found) > (250 if CORPUS else 40)
    assert not {name: said for name, said in found.items() if said}


def differences(http: httpx.Client, file: Sample, image_set: str | None) -> list[str]:
    """Where the pictures of the first and the last frame are more than a shade from pydicom's."""
    assert file.uids is not None
    url = "/dicomweb/studies/{}/series/{}/instances/{}".format(*file.uids)
    params = {} if image_set is None else {"imageSetId": image_set}
    whole = http.get(url, params=params, headers={"accept": NATIVE})
    if whole.status_code != 200:
        return [f"{whole.status_code} {whole.text}"]
    data_set = pydicom.dcmread(io.BytesIO(whole.content))
    faults = []
    for number in sorted({1, int(data_set.get("NumberOfFrames") or 1)}):
        answer = http.get(f"{url}/frames/{number}/rendered", params=params, headers={"accept": "image/png"})
        if answer.status_code != 200:
            return [f"{answer.status_code} {answer.text}"]
        picture = imagecodecs.png_decode(answer.content).astype(float)
        expected = by_pydicom(data_set, number - 1)
        if picture.shape != expected.shape:
            faults.append(f"frame {number} is {picture.shape}, not {expected.shape}")
        elif (distance := np.abs(picture - expected).max()) > 1:
            faults.append(f"frame {number} is {distance} shades off")
    return faults + small_differences(http, url, params)


def small_differences(http: httpx.Client, url: str, params: dict[str, str]) -> list[str]:
    """Where a thumbnail is lighter or darker than the picture, which a region makes the gateway draw from all samples.

    Noise beyond a narrow window is clipped before its mean is taken, or after: that makes some shades.
    """
    region = params | {"viewport": "128,128,0,0,65535,65535"}
    whole = http.get(f"{url}/frames/1/rendered", params=region, headers={"accept": "image/png"})
    small = http.get(f"{url}/frames/1/thumbnail", params=params, headers={"accept": "image/png"})
    if (whole.status_code, small.status_code) != (200, 200):
        return [f"thumbnail {small.status_code}, {whole.status_code}"]
    distance = abs(imagecodecs.png_decode(small.content).mean() - imagecodecs.png_decode(whole.content).mean())
    return [f"the thumbnail is {distance} shades off"] if distance > 16 else []
