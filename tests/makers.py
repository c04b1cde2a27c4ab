"""Small DICOM instances, made the same way each time from what is asked."""

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.10.511"


def uid(*parts: int) -> str:
    """A UID of this suite: the same parts, the same UID."""
    return ".".join((ROOT, *(str(part) for part in parts)))


def pixels(seed: int, frames: int = 1, rows: int = 8, columns: int = 8) -> NDArray[np.uint16]:
    """Seeded 12-bit samples, (frames, rows, columns)."""
    return np.random.default_rng(seed).integers(0, 4096, (frames, rows, columns), dtype=np.uint16)


def data_set(study: str, series: str, sop: str, image: NDArray[Any] | None = None, **attributes: Any) -> Dataset:
    """A CT instance of one patient; keywords set attributes, None leaves one out."""
    made = Dataset()
    made.SOPClassUID = CTImageStorage
    made.SOPInstanceUID = sop
    made.StudyInstanceUID = study
    made.SeriesInstanceUID = series
    made.StudyDate = "20240102"
    made.StudyTime = "030405"
    made.AccessionNumber = "ACC1"
    made.Modality = "CT"
    made.PatientName = "Doe^Jane"
    made.PatientID = "P1"
    made.StudyID = "S1"
    made.SeriesNumber = 1
    made.InstanceNumber = 1
    if image is not None:
        frames = image if image.ndim == 3 else image[np.newaxis]
        made.SamplesPerPixel = 1
        made.PhotometricInterpretation = "MONOCHROME2"
        made.Rows, made.Columns = frames.shape[1:]
        made.BitsAllocated = 8 * frames.dtype.itemsize
        made.BitsStored = made.BitsAllocated
        made.HighBit = made.BitsStored - 1
        made.PixelRepresentation = int(frames.dtype.kind == "i")
        if len(frames) > 1:
            made.NumberOfFrames = len(frames)
        made.add_new("PixelData", "OW", frames.tobytes())
    for keyword, value in attributes.items():
        if value is None:
            if keyword in made:
                delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


def part10(made: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """A Part 10 file of a data set."""
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.TransferSyntaxUID = UID(syntax)
    target = BytesIO()
    dcmwrite(target, made, enforce_file_format=True, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    return target.getvalue()


def instance(study: str, series: str, sop: str, image: NDArray[Any] | None = None, **attributes: Any) -> bytes:
    """A Part 10 file in Explicit VR Little Endian; see `data_set`."""
    return part10(data_set(study, series, sop, image, **attributes))
