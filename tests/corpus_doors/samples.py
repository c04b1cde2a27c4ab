"""The files that go through the doors, and what is known of each: the corpus, or without it pydicom's own files."""

import hashlib
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.data import get_testdata_files
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.pixels.utils import pixel_array
from pydicom.uid import RLELossless

from tests.corpus import CORPUS, manifest

Uids = tuple[str, str, str]
"""Of study, series and instance."""

_EXACT = (
    "direct read of native data",
    "two decoders agree",
    "verified against pixels before encoding",
    "single decoder",
)
_UIDS = ("study_uid", "series_uid", "sop_instance_uid", "sop_class_uid")
_DEFECTIVE = frozenset(
    (
        *("ExplVR_BigEndNoMeta.dcm", "ExplVR_LitEndNoMeta.dcm", "GDCMJ2K_TextGBR.dcm", "J2K_pixelrep_mismatch.dcm"),
        *("JPEG2000-embedded-sequence-delimiter.dcm", "MR_truncated.dcm", "UN_sequence.dcm", "badVR.dcm"),
        *("bad_sequence.dcm", "empty_charset_LEI.dcm", "meta_missing_tsyntax.dcm", "no_meta.dcm", "rtstruct.dcm"),
        *("no_meta_group_length.dcm", "reportsi_with_empty_number_tags.dcm", "rtplan_truncated.dcm"),
    )
)
"""Those of pydicom's files that are broken on purpose."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What the decoded pixels are, as SHA-256 of little-endian native samples; single bits as bytes of 0 and 1."""

    all_frames: str
    each_frame: tuple[str, ...] = ()
    """Of long lists only the first ones, "..." and the last one."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One file. `uids` is None where the file does not name all three."""

    name: str
    path: Path
    well_formed: bool
    part10: bool
    uids: Uids | None
    sop_class: str
    syntax: str
    truth: Truth | None = None
    patient_name: str | None = None
    """Where it is known what the characters are."""

    @cached_property
    def data(self) -> bytes:
        return self.path.read_bytes()

    @cached_property
    def data_set(self) -> Dataset:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(BytesIO(self.data), force=True)

    def for_dimse(self) -> tuple[str, str, str, bytes] | None:
        """SOP Class, SOP Instance UID, transfer syntax and the data set's bytes; None for what C-STORE cannot carry."""
        if not self.part10 or not self.syntax:
            return None
        stream = BytesIO(self.data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read_preamble(stream, force=False)
                meta = _read_file_meta_info(stream)
        except Exception:
            return None
        sop_class = self.sop_class or str(meta.get("MediaStorageSOPClassUID", ""))
        sop_uid = (self.uids[2] if self.uids else "") or str(meta.get("MediaStorageSOPInstanceUID", ""))
        if not (0 < len(sop_class) <= 64 and 0 < len(sop_uid) <= 64):
            return None
        return sop_class, sop_uid, self.syntax, self.data[stream.tell() :]


@cache
def samples() -> list[Sample]:
    """All files, in the order of their names."""
    return _of_corpus(CORPUS) if CORPUS is not None else _of_pydicom()


def repeated(files: list[Sample]) -> set[str]:
    """The SOP Instance UIDs that more than one file has."""
    counts = Counter(sample.uids[2] for sample in files if sample.uids is not None)
    return {uid for uid, count in counts.items() if count > 1}


def rounds(files: list[Sample]) -> list[list[Sample]]:
    """The files in rounds within which no SOP Instance UID comes twice; the order of those that share one is kept."""
    made: list[list[Sample]] = []
    seen: Counter[str] = Counter()
    for sample in files:
        number = 0
        if sample.uids is not None:
            number = seen[sample.uids[2]]
            seen[sample.uids[2]] += 1
        made.extend([] for _ in range(number + 1 - len(made)))
        made[number].append(sample)
    return made


def _of_corpus(folder: Path) -> list[Sample]:
    made = []
    for record in manifest():
        study, series, sop, sop_class = (str(record.get(name) or "") for name in _UIDS)
        pixel = record.get("pixel") or {}
        damaged = "damaged" in pixel.get("ground_truth", "")
        exact = pixel.get("ground_truth", "").startswith(_EXACT) and not damaged
        truth = None
        if exact:
            truth = Truth(pixel["decoded_sha256"], tuple(pixel.get("frame_sha256", ())))
        made.append(
            Sample(
                name=record["path"],
                path=folder / record["path"],
                well_formed=not record["deliberately_broken"]
                and record["read_by_pydicom"]
                and record["part10_prefix"]
                and all((study, series, sop, sop_class)),
                part10=record["part10_prefix"],
                uids=(study, series, sop) if study and series and sop else None,
                sop_class=sop_class,
                syntax=record.get("transfer_syntax_uid", ""),
                truth=truth,
                patient_name=record.get("expected_patient_name"),
            )
        )
    return made


def _of_pydicom() -> list[Sample]:
    made = []
    for name in sorted(get_testdata_files("*"), key=lambda name: Path(name).name):
        path = Path(name)
        if path.suffix != ".dcm" or "site-packages" not in path.parts:
            continue
        part10 = path.read_bytes()[128:132] == b"DICM"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read = pydicom.dcmread(path, force=True)
                keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
                study, series, sop, sop_class = (str(read.get(keyword) or "") for keyword in keywords)
                syntax = str(read.file_meta.get("TransferSyntaxUID", "")) if hasattr(read, "file_meta") else ""
                truth = _truth(read, syntax)
            except Exception:
                study = series = sop = sop_class = syntax = ""
                truth = None
        complete = bool(part10 and syntax and all((study, series, sop, sop_class)))
        well_formed = complete and path.name not in _DEFECTIVE
        uids = (study, series, sop) if study and series and sop else None
        kept = truth if well_formed else None
        made.append(Sample(path.name, path, well_formed, part10, uids, sop_class, syntax, kept))
    return made


def _truth(read: Dataset, syntax: str) -> Truth | None:
    """Of what pydicom reads without a codec: native little-endian samples by pixel, and RLE."""
    if "PixelData" not in read or read.BitsAllocated < 8 or read.PhotometricInterpretation == "YBR_FULL_422":
        return None
    count = int(read.get("NumberOfFrames") or 1)
    size = int(read.Rows * read.Columns * read.SamplesPerPixel * read.BitsAllocated // 8)
    if syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1") and not read.get("PlanarConfiguration"):
        native = read.PixelData[: size * count]
        if len(native) < size * count:
            return None
    elif syntax == RLELossless and len(list(generate_frames(read.PixelData, number_of_frames=count))) == count:
        array = pixel_array(read, raw=True)
        native = array.astype(array.dtype.newbyteorder("<")).tobytes()
    else:
        return None
    return Truth(hashlib.sha256(native).hexdigest())
