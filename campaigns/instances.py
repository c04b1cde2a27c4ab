"""Synthetic instances whose decoded frames are known: the same parts, the same bytes."""

from dataclasses import dataclass
from io import BytesIO
from typing import Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, JPEGLossless, RLELossless

from tests.makers import data_set, uid

NATIVE: Final = str(ExplicitVRLittleEndian)
RLE: Final = str(RLELossless)
JPEG: Final = str(JPEGLossless)
SYNTAXES: Final = (NATIVE, RLE, JPEG)

LARGE: Final = (3000, 2850)
"""Rows and columns of an instance over 16 MB: the spool gives it a segment of its own."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance as it is sent. `frame` are the native little-endian samples of its only frame."""

    study: str
    series: str
    sop: str
    syntax: str
    part10: bytes
    frame: bytes

    @property
    def data_set(self) -> bytes:
        """What C-STORE carries: the file without preamble and group 0002 (PS3.10 §7.1)."""
        return self.part10[144 + int.from_bytes(self.part10[140:144], "little") :]


def make(
    seed: int, study: int, series: int, number: int, syntax: str = NATIVE, shape: tuple[int, int] = (64, 64)
) -> Instance:
    """A CT instance with 12-bit noise; `seed`, `study`, `series` and `number` are its identity."""
    image = _image((seed, study, series, number), shape)
    study_uid, series_uid = uid(seed, study), uid(seed, study, series)
    sop = uid(seed, study, series, number)
    made = data_set(study_uid, series_uid, sop, image, InstanceNumber=number, SeriesNumber=series)
    made.StudyID = str(study)
    made.AccessionNumber = f"A{study}"
    made.PatientID = f"P{study}"
    if syntax != NATIVE:
        frame = _rle(image) if syntax == RLE else bytes(imagecodecs.ljpeg_encode(image, bitspersample=16))
        made.PixelData = encapsulate([frame])
        made["PixelData"].VR = "OB"
        made["PixelData"].is_undefined_length = True
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = CTImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = UID(sop)
    made.file_meta.TransferSyntaxUID = UID(syntax)
    target = BytesIO()
    dcmwrite(target, made, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return Instance(study_uid, series_uid, sop, syntax, target.getvalue(), image.tobytes())


def _image(seed: tuple[int, ...], shape: tuple[int, int]) -> NDArray[np.uint16]:
    noise = np.random.default_rng(seed).integers(0, 4096, (64, 64), dtype=np.uint16)
    rows, columns = shape
    return np.ascontiguousarray(np.tile(noise, (rows // 64 + 1, columns // 64 + 1))[:rows, :columns])


def _rle(image: NDArray[np.uint16]) -> bytes:
    """RLE Lossless of one 16-bit frame, most significant bytes first (PS3.5 §G)."""
    segments = []
    for plane in (image >> 8, image & 0xFF):
        rows = plane.astype(np.uint8)
        segment = b"".join(_packed(row.tobytes()) for row in rows)
        segments.append(segment + bytes(len(segment) % 2))
    offsets = [64, 64 + len(segments[0])]
    header = b"".join(number.to_bytes(4, "little") for number in (2, *offsets))
    return header.ljust(64, b"\0") + b"".join(segments)


def _packed(row: bytes) -> bytes:
    """Literal runs alone: larger than need be, and legal."""
    return b"".join(bytes([len(run) - 1]) + run for run in (row[i : i + 128] for i in range(0, len(row), 128)))
