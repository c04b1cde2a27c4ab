"""The instances that a run makes: new UIDs and Patient IDs each time, so that runs never meet.

Everything is invented; the names of people are words. A sample is one PS3.10 file; samples are named, and so are the
studies and series that they make up, so that cases can say what a search has to find.
"""

import secrets
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import UID

from . import reading

IMPLICIT: Final = "1.2.840.10008.1.2"
EXPLICIT: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
JPEG_BASELINE: Final = "1.2.840.10008.1.2.4.50"
JPEG_LS: Final = "1.2.840.10008.1.2.4.80"
JPEG_2000: Final = "1.2.840.10008.1.2.4.90"
RLE: Final = "1.2.840.10008.1.2.5"

CT: Final = "1.2.840.10008.5.1.4.1.1.2"
MR: Final = "1.2.840.10008.5.1.4.1.1.4"
CR: Final = "1.2.840.10008.5.1.4.1.1.1"
ULTRASOUND: Final = "1.2.840.10008.5.1.4.1.1.6.1"
SECONDARY: Final = "1.2.840.10008.5.1.4.1.1.7"
MULTI_FRAME_WORD: Final = "1.2.840.10008.5.1.4.1.1.7.3"
MULTI_FRAME_COLOUR: Final = "1.2.840.10008.5.1.4.1.1.7.4"
PARAMETRIC: Final = "1.2.840.10008.5.1.4.1.1.30"
SEGMENTATION: Final = "1.2.840.10008.5.1.4.1.1.66.4"
GRAYSCALE_STATE: Final = "1.2.840.10008.5.1.4.1.1.11.1"
BASIC_SR: Final = "1.2.840.10008.5.1.4.1.1.88.11"
PDF: Final = "1.2.840.10008.5.1.4.1.1.104.1"
PRIVATE_CLASS: Final = "1.2.826.0.1.3680043.10.511.3.77"

CREATOR: Final = "CONFORMANCE TEST"
SEARCHED: Final = "ABCDEF"
"""The studies that searches look for."""


@dataclass(slots=True)
class Sample:
    """One instance as made, and what became of it."""

    name: str
    study: str
    series: str
    sop: str
    data: Dataset
    syntax: str
    body: bytes
    """The PS3.10 file."""
    frames: tuple[bytes, ...] = ()
    """Uncompressed, little endian, as the instance's own attributes describe them."""
    fragments: tuple[bytes, ...] = ()
    """The encoded frames of an encapsulated instance."""
    is_stored: bool = False
    refusal: str = "not sent"

    @property
    def study_path(self) -> str:
        return f"/studies/{self.study}"

    @property
    def series_path(self) -> str:
        return f"{self.study_path}/series/{self.series}"

    @property
    def path(self) -> str:
        return f"{self.series_path}/instances/{self.sop}"


def uid() -> str:
    """A UID that nobody else has (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid4().int}"


def part10(made: Dataset, syntax: str = EXPLICIT, preamble: bytes = bytes(128)) -> bytes:
    """A PS3.10 file of a data set, whatever its values are like."""
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = UID(made.get("SOPClassUID", SECONDARY))
    made.file_meta.MediaStorageSOPInstanceUID = UID(made.get("SOPInstanceUID", "") or "1.2.3")
    made.file_meta.TransferSyntaxUID = UID(syntax)
    made.file_meta.ImplementationClassUID = UID("1.2.826.0.1.3680043.10.511.3")
    made.preamble = preamble
    if "PixelData" in made:
        made["PixelData"].is_undefined_length = UID(syntax).is_encapsulated
    target = BytesIO()
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is odd here is meant to be
        dcmwrite(target, made, enforce_file_format=True)
    return target.getvalue()


def patched(body: bytes, patches: Mapping[bytes, bytes]) -> bytes:
    """A file with bytes exchanged for others of the same length."""
    for written, wanted in patches.items():
        if len(written) != len(wanted) or written not in body:
            raise ValueError(f"{written!r} cannot become {wanted!r}")
        body = body.replace(written, wanted)
    return body


class Samples:
    """The instances of one run, by name; `studies` and `series` by theirs."""

    def __init__(self) -> None:
        self.run = secrets.token_hex(4).upper()
        """Stands in every Patient ID, name and Accession Number."""
        self.studies: dict[str, str] = {}
        self.series: dict[str, str] = {}
        self._made: dict[str, Sample] = {}
        self._names: dict[str, str] = {}
        self._strays: set[str] = set()
        self._boundaries = 0
        _search_set(self)
        _kinds(self)
        _character_sets(self)
        _odd_ones(self)

    def __getitem__(self, name: str) -> Sample:
        return self._made[name]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._made.values())

    @property
    def mine(self) -> str:
        """A wildcard that matches the Patient ID of every sample, and nothing else on the server."""
        return f"CONF{self.run}*"

    def patient_id(self, study: str) -> str:
        return f"CONF{self.run}-{study}"

    @property
    def searched(self) -> str:
        """The Accession Number of the studies A to F, which searches look for."""
        return f"{self.run}S"

    def accession(self, study: str) -> str:
        return self.searched if study in SEARCHED else self.run

    def family(self) -> str:
        """A family name that only this run has."""
        return f"Conf{self.run.lower()}"

    def boundary(self) -> str:
        self._boundaries += 1
        return f"conformance{self.run}{self._boundaries}"

    def study(self, name: str) -> str:
        """The Study Instance UID of a study, which is new when its name is."""
        if name not in self.studies:
            self.studies[name] = uid()
            self._names[self.studies[name]] = name
        return self.studies[name]

    def is_own(self, study_uid: str) -> bool:
        return study_uid in self._names or study_uid in self._strays

    def own_study(self) -> str:
        """A Study Instance UID for what a case stores itself; it is removed with the others."""
        made = uid()
        self._strays.add(made)
        return made

    def study_uids(self) -> list[str]:
        """Every study that may have been stored."""
        return [*self.studies.values(), *self._strays]

    def name_of(self, row: dict[str, Any]) -> str | None:
        """The name of the study, series or instance that a search has answered; None for a stranger's."""
        sop, series, study = (reading.value(row, tag) for tag in ("00080018", "0020000E", "0020000D"))
        return self._names.get(str(sop or series or study))

    def header(self, study: str, series: str, sop_class: str, modality: str, **attributes: Any) -> Dataset:
        """A data set without pixels; keywords set attributes, None leaves one out."""
        made = Dataset()
        made.SpecificCharacterSet = "ISO_IR 192"
        made.SOPClassUID = sop_class
        made.SOPInstanceUID = uid()
        made.StudyInstanceUID = self.study(study)
        series_name = f"{study}/{series}"
        if series_name not in self.series:
            self.series[series_name] = uid()
            self._names[self.series[series_name]] = series_name
        made.SeriesInstanceUID = self.series[series_name]
        made.StudyDate, made.StudyTime = "20240115", "101500"
        made.AccessionNumber = self.accession(study)
        made.Modality = modality
        made.PatientName = f"{self.family()}^{study.title()}"
        made.PatientID = self.patient_id(study)
        made.PatientBirthDate, made.PatientSex = "19600229", "O"
        made.ReferringPhysicianName = "Referrer^Rita"
        made.StudyID = "S1"
        made.SeriesNumber, made.InstanceNumber = 1, 1
        return _with(made, attributes)

    def add(
        self,
        name: str,
        made: Dataset,
        syntax: str = EXPLICIT,
        frames: tuple[bytes, ...] = (),
        fragments: tuple[bytes, ...] = (),
        patches: Mapping[bytes, bytes] | None = None,
    ) -> Sample:
        """Keeps an instance under a name; `patches` put bytes that no writer would write in place of others."""
        sop = str(made.get("SOPInstanceUID", ""))
        body = patched(part10(made, syntax), patches or {})
        self._made[name] = sample = Sample(
            name, made.StudyInstanceUID, made.SeriesInstanceUID, sop, made, syntax, body, frames, fragments
        )
        self._names[sop] = name
        return sample

    def loose(self, **attributes: Any) -> Dataset:
        """A small instance of a study of its own, for a case that stores something itself; 8 by 8 pixels."""
        made = self.header("LOOSE", "1", SECONDARY, "OT", SeriesInstanceUID=uid(), StudyInstanceUID=self.own_study())
        grey(made, _ramp(8, 8, 8))
        return _with(made, attributes)

    @cached_property
    def nowhere(self) -> str:
        """A well-formed UID that nobody has."""
        return uid()


# ---------------------------------------------------------------- pixels


def _ramp(rows: int, columns: int, bits: int, seed: int = 0) -> NDArray[Any]:
    kind = np.uint8 if bits <= 8 else np.uint16
    plane = np.add.outer(np.arange(rows), np.arange(columns)) * ((1 << bits) - 1) // max(1, rows + columns - 2)
    return ((plane + seed) % (1 << bits)).astype(kind)


def grey(made: Dataset, image: NDArray[Any], bits: int = 0, photometric: str = "MONOCHROME2") -> tuple[bytes, ...]:
    """Sets the Image Pixel attributes for (rows, columns) or (frames, rows, columns); the frames' bytes."""
    frames = image if image.ndim == 3 else image[np.newaxis]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, photometric
    made.Rows, made.Columns = frames.shape[1:]
    made.BitsAllocated = 8 * frames.dtype.itemsize
    made.BitsStored = bits or made.BitsAllocated
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(frames.dtype.kind == "i")
    if image.ndim == 3:
        made.NumberOfFrames = len(frames)
    data = frames.tobytes()
    made.add(DataElement(0x7FE00010, "OW" if frames.dtype.itemsize > 1 else "OB", data + b"\0" * (len(data) % 2)))
    return tuple(frame.tobytes() for frame in frames)


def colour(made: Dataset, image: NDArray[np.uint8]) -> tuple[bytes, ...]:
    """Sets the Image Pixel attributes for RGB, (rows, columns, 3), or with frames before them."""
    frames = image if image.ndim == 4 else image[np.newaxis]
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    made.Rows, made.Columns = frames.shape[1:3]
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    if image.ndim == 4:
        made.NumberOfFrames = len(frames)
    data = frames.tobytes()
    made.add(DataElement(0x7FE00010, "OB", data + b"\0" * (len(data) % 2)))
    return tuple(frame.tobytes() for frame in frames)


def _encapsulated(made: Dataset, encoded: Iterable[Any]) -> tuple[bytes, ...]:
    """Sets Pixel Data to encoded frames, one fragment each; these."""
    fragments = [bytes(one) for one in encoded]
    made.add(DataElement(0x7FE00010, "OB", encapsulate(fragments)))
    return tuple(fragments)


def _sunset(rows: int, columns: int) -> NDArray[np.uint8]:
    red = _ramp(rows, columns, 8)
    return np.stack([red, 255 - red, np.full_like(red, 64)], axis=-1)


# ---------------------------------------------------------------- what searches look for


def _search_set(samples: Samples) -> None:
    """Studies A to F, which differ in what a search can ask for; the cases' tables count on these values."""
    run, family = samples.run, samples.family()
    request = Dataset()
    request.ScheduledProcedureStepID, request.RequestedProcedureID = f"SP1{run}"[:16], f"RP1{run}"[:16]
    other = Dataset()
    other.ScheduledProcedureStepID, other.RequestedProcedureID = f"SP2{run}"[:16], f"RP2{run}"[:16]

    def made(study: str, series: str, number: int, sop_class: str, modality: str, **more: Any) -> None:
        data = samples.header(study, series, sop_class, modality, InstanceNumber=number, **more)
        frames = grey(data, _ramp(8, 8, 12, number), bits=12) if sop_class in (CT, MR) else ()
        samples.add(f"{study}/{series}/{number}", data, frames=frames)

    a = {
        "PatientName": f"{family}^Jörg",
        "StudyDescription": f"Head 100% _{run}",
        "StudyID": f"ID{run}",
        "ReferringPhysicianName": f"Ref{run}^Rita",
        "TimezoneOffsetFromUTC": "+0100",
        "PatientComments": "searched",
    }
    for number in (1, 2, 3):
        made(
            "A", "1", number, CT, "CT", SeriesNumber=1, SeriesDescription="Axial", BodyPartExamined="HEAD",
            SeriesDate="20240115", PerformedProcedureStepStartDate="20240115",
            PerformedProcedureStepStartTime="101000", ManufacturerModelName=f"Model {run}",
            RequestAttributesSequence=Sequence([request, other]), **a,
        )  # fmt: skip
    made("A", "2", 1, BASIC_SR, "SR", SeriesNumber=2, **a)
    made("B", "1", 1, MR, "MR", PatientName=f"{family}^Joerg^Anna", StudyTime="233000", StudyID="S2")
    made("C", "1", 1, MR, "MR", PatientName=f"{family.upper()}^JORG", StudyDate="20240116", StudyTime="010000")
    made("D", "1", 1, CT, "CT", PatientName=f"{family}^Dora", StudyDate="20240117", StudyTime="1200", PatientSex="F")
    made("E", "1", 1, CT, "CT", PatientName="", StudyDate="", StudyTime="", StudyDescription="")
    made("F", "1", 1, CT, "CT", PatientName=f"{family}^山=山田^太郎=やまだ^たろう", StudyDate="20231231")
    private = samples.header(
        "F", "2", CT, "CT", SeriesNumber=7, StudyDate="20231231", PatientName=f"{family}^山=山田^太郎=やまだ^たろう"
    )
    block = private.private_block(0x0099, CREATOR, create=True)
    block.add_new(0x01, "LO", f"PRIV{run}")
    samples.add("F/2/1", private, frames=grey(private, _ramp(8, 8, 12), bits=12))


# ---------------------------------------------------------------- kinds of instances


def _kinds(samples: Samples) -> None:
    family = samples.family()

    made = samples.header("KINDS", "ct", CT, "CT", RescaleIntercept="-1024", RescaleSlope="1")
    made.WindowCenter, made.WindowWidth = "1024", "2048"
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.PixelSpacing = ["0.5", "0.5"]
    samples.add("ct", made, frames=grey(made, _ramp(64, 48, 12), bits=12))

    made = samples.header("KINDS", "implicit", CT, "CT", SeriesNumber=2)
    made.private_block(0x0099, CREATOR, create=True).add_new(0x01, "UN", b"unknown!")
    samples.add("implicit", made, IMPLICIT, grey(made, _ramp(16, 16, 12), bits=12))

    made = samples.header("KINDS", "deflated", CT, "CT", SeriesNumber=3)
    samples.add("deflated", made, DEFLATED, grey(made, _ramp(16, 16, 12), bits=12))

    made = samples.header("KINDS", "bigendian", CT, "CT", SeriesNumber=4)
    image = _ramp(16, 16, 12)
    frames = grey(made, image, bits=12)
    made.PixelData = image.byteswap().tobytes()
    samples.add("big endian", made, BIG_ENDIAN, frames)

    made = samples.header("KINDS", "rgb", SECONDARY, "OT", SeriesNumber=5)
    samples.add("rgb", made, frames=colour(made, _sunset(24, 32)))

    made = samples.header("KINDS", "palette", ULTRASOUND, "US", SeriesNumber=6)
    frames = grey(made, _ramp(16, 16, 8), photometric="PALETTE COLOR")
    for colour_name, table in (("Red", np.arange(256)), ("Green", 255 - np.arange(256)), ("Blue", np.full(256, 9))):
        setattr(made, f"{colour_name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        data = (table.astype("<u2") * 257).astype("<u2").tobytes()
        setattr(made, f"{colour_name}PaletteColorLookupTableData", data)
    samples.add("palette", made, frames=frames)

    made = samples.header("KINDS", "mono1", CR, "CR", SeriesNumber=7)
    samples.add("monochrome1", made, frames=grey(made, _ramp(16, 16, 8), photometric="MONOCHROME1"))

    made = samples.header("KINDS", "multi", MULTI_FRAME_WORD, "OT", SeriesNumber=8)
    stack = np.stack([_ramp(12, 10, 12, 100 * n) for n in range(5)])
    samples.add("multi-frame", made, frames=grey(made, stack, bits=12))

    made = samples.header("KINDS", "rle", MULTI_FRAME_WORD, "OT", SeriesNumber=9)
    frames = grey(made, stack[:3], bits=12)
    samples.add("rle", made, RLE, frames, _encapsulated(made, [_rle(frame) for frame in stack[:3]]))

    made = samples.header("KINDS", "jpeg", ULTRASOUND, "US", SeriesNumber=10)
    grey(made, _ramp(32, 32, 8))
    fragment = imagecodecs.jpeg8_encode(_ramp(32, 32, 8), level=90)
    made.LossyImageCompression, made.LossyImageCompressionRatio = "01", "5"
    made.LossyImageCompressionMethod = "ISO_10918_1"
    samples.add("jpeg", made, JPEG_BASELINE, (), _encapsulated(made, [fragment]))

    made = samples.header("KINDS", "jpegcolour", MULTI_FRAME_COLOUR, "US", SeriesNumber=11)
    colour(made, np.stack([_sunset(32, 32)] * 2))
    made.PhotometricInterpretation = "YBR_FULL_422"
    fragment = imagecodecs.jpeg8_encode(
        _sunset(32, 32), level=95, colorspace="RGB", outcolorspace="YCBCR", subsampling="422"
    )
    made.LossyImageCompression, made.LossyImageCompressionRatio = "01", "5"
    made.LossyImageCompressionMethod = "ISO_10918_1"
    samples.add("jpeg colour", made, JPEG_BASELINE, (), _encapsulated(made, [fragment, fragment]))

    made = samples.header("KINDS", "jpeg2000", CT, "CT", SeriesNumber=12)
    frames = grey(made, _ramp(32, 32, 12), bits=12)
    fragment = imagecodecs.jpeg2k_encode(
        _ramp(32, 32, 12), codecformat="j2k", reversible=True, bitspersample=12, level=0
    )
    samples.add("jpeg 2000", made, JPEG_2000, frames, _encapsulated(made, [fragment]))

    made = samples.header("KINDS", "jpegls", CT, "CT", SeriesNumber=13)
    frames = grey(made, _ramp(16, 16, 12), bits=12)
    samples.add("jpeg-ls", made, JPEG_LS, frames, _encapsulated(made, [imagecodecs.jpegls_encode(_ramp(16, 16, 12))]))

    made = samples.header("KINDS", "float", PARAMETRIC, "OT", SeriesNumber=14)
    real = np.linspace(-1, 1, 64, dtype="<f4").reshape(8, 8)
    grey(made, real.view(np.uint32))
    del made.PixelData
    made.BitsAllocated = 32
    for gone in ("BitsStored", "HighBit", "PixelRepresentation"):
        delattr(made, gone)
    made.NumberOfFrames = 1
    made.FloatPixelData = real.tobytes()
    samples.add("float", made, frames=(real.tobytes(),))

    made = samples.header("KINDS", "bits", SEGMENTATION, "SEG", SeriesNumber=15)
    bits = (np.arange(3 * 3 * 3).reshape(3, 3, 3) % 3 == 0).astype(np.uint8)
    grey(made, bits)
    made.BitsAllocated, made.BitsStored, made.HighBit = 1, 1, 0
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    made.PixelData = packed + b"\0" * (len(packed) % 2)
    frames = tuple(np.packbits(frame.ravel(), bitorder="little").tobytes() for frame in bits)
    samples.add("one bit", made, frames=frames)

    made = samples.header("KINDS", "sr", BASIC_SR, "SR", SeriesNumber=16)
    made.ContentSequence = Sequence([_text_item("Findings", [_text_item("Deep", [])]), Dataset()])
    made.CompletionFlag, made.VerificationFlag = "COMPLETE", "UNVERIFIED"
    made.ValueType, made.ContinuityOfContent = "CONTAINER", "SEPARATE"
    samples.add("sr", made)

    made = samples.header("KINDS", "pdf", PDF, "DOC", SeriesNumber=17)
    made.EncapsulatedDocument = _PDF
    made.EncapsulatedDocumentLength = len(_PDF)
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    made.DocumentTitle = "A page"
    samples.add("pdf", made)

    samples.add("every vr", _every_vr(samples.header("KINDS", "vrs", SECONDARY, "OT", SeriesNumber=18)))

    made = samples.header("KINDS", "private", SECONDARY, "OT", SeriesNumber=19, PatientName=f"{family}^Kinds")
    block = made.private_block(0x0099, CREATOR, create=True)
    block.add_new(0x01, "LO", "private text")
    block.add_new(0x02, "OB", b"\1\2\3\4")
    inner = Dataset()
    inner.private_block(0x0099, CREATOR, create=True).add_new(0x05, "DS", "1.25")
    inner.CodeValue = "X1"
    block.add_new(0x03, "SQ", Sequence([inner]))
    big = Dataset()
    big.private_block(0x0099, CREATOR, create=True).add_new(0x10, "OB", bytes(range(256)) * 64)
    made.ReferencedImageEvidenceSequence = Sequence([big])
    samples.add("private", made, frames=grey(made, _ramp(8, 8, 8)))

    made = samples.header("KINDS", "state", GRAYSCALE_STATE, "PR", SeriesNumber=20)
    samples.add("presentation state", _presentation_of(made, samples["ct"]))


def _presentation_of(made: Dataset, sample: Sample) -> Dataset:
    """A state that shows the values from 0 on white and all others black, a quarter turned clockwise, with a line."""
    image, series, area, layer, annotation, line, voi = (Dataset() for _ in range(7))
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = sample.data.SOPClassUID, sample.sop
    series.SeriesInstanceUID, series.ReferencedImageSequence = sample.series, Sequence([image])
    made.ReferencedSeriesSequence = Sequence([series])
    made.ContentLabel, made.ContentDescription, made.ContentCreatorName = "STATE", "", ""
    made.PresentationCreationDate, made.PresentationCreationTime = "20240115", "101500"
    made.RescaleIntercept, made.RescaleSlope, made.RescaleType = "-1024", "1", "HU"
    voi.WindowCenter, voi.WindowWidth = "0", "1"
    made.SoftcopyVOILUTSequence = Sequence([voi])
    made.PresentationLUTShape = "IDENTITY"
    made.ImageRotation, made.ImageHorizontalFlip = 90, "N"
    area.DisplayedAreaTopLeftHandCorner = [1, sample.data.Rows]
    area.DisplayedAreaBottomRightHandCorner = [sample.data.Columns, 1]
    area.PresentationSizeMode, area.PresentationPixelAspectRatio = "SCALE TO FIT", ["1", "1"]
    made.DisplayedAreaSelectionSequence = Sequence([area])
    layer.GraphicLayer, layer.GraphicLayerOrder = "LINES", 1
    layer.GraphicLayerRecommendedDisplayGrayscaleValue = 65535
    made.GraphicLayerSequence = Sequence([layer])
    line.GraphicAnnotationUnits, line.GraphicDimensions, line.NumberOfGraphicPoints = "PIXEL", 2, 2
    line.GraphicData, line.GraphicType = [4.5, 4.5, 20.5, 4.5], "POLYLINE"
    annotation.GraphicLayer, annotation.GraphicObjectSequence = "LINES", Sequence([line])
    made.GraphicAnnotationSequence = Sequence([annotation])
    return made


def _rle(frame: NDArray[np.uint16]) -> bytes:
    """One frame of two byte planes, the high one first, in literal runs alone (PS3.5 Annex G)."""
    planes = []
    for plane in (frame >> 8, frame & 0xFF):
        encoded = b""
        for row in plane.astype(np.uint8):
            line = row.tobytes()
            encoded += bytes([len(line) - 1]) + line
        planes.append(encoded + b"\0" * (len(encoded) % 2))
    offsets = [2, 64, 64 + len(planes[0])] + [0] * 13
    return np.array(offsets, "<u4").tobytes() + b"".join(planes)


def _text_item(text: str, below: list[Dataset]) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "TEXT"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "121071", "DCM", "Finding"
    item.ConceptNameCodeSequence = Sequence([code])
    item.TextValue = text
    if below:
        item.ContentSequence = Sequence(below)
    return item


def _every_vr(made: Dataset) -> Dataset:
    """An element of each value representation, empty ones and empty members among them."""
    made.add_new(0x00080008, "CS", ["A", "", "C"])
    made.add_new(0x00189004, "CS", "")
    made.add_new(0x00209165, "AT", [0x00100010, 0x7FE00010])
    made.add_new(0x00101010, "AS", "064Y")
    made.add_new(0x0008002A, "DT", "20240115101500.123+0100")
    made.add_new(0x00181041, "DS", "12.50")
    made.add_new(0x00189089, "FD", [0.5, -0.25, 1e300])
    made.add_new(0x00189087, "FD", float("nan"))
    made.add_new(0x00189220, "FD", float("inf"))
    made.add_new(0x00081197, "US", 7)
    made.add_new(0x00720074, "FD", [1.5, 2.5])
    made.add_new(0x00720076, "FL", [1.5, -2.5])
    made.add_new(0x00720078, "UL", [1, 4294967295])
    made.add_new(0x0072007A, "US", [0, 65535])
    made.add_new(0x0072007C, "SL", [-2147483648, 1])
    made.add_new(0x00720064, "IS", ["1", "-2"])
    made.add_new(0x00720082, "SV", [-(2**63), 5])
    made.add_new(0x00720083, "UV", [2**64 - 1])
    made.add_new(0x00720065, "OB", b"\xff\0")
    made.add_new(0x00720067, "OF", np.array([1.0, 2.0], "<f4").tobytes())
    made.add_new(0x00720069, "OW", b"\1\2\3\4")
    made.add_new(0x00720073, "OD", np.array([1.0], "<f8").tobytes())
    made.add_new(0x00720075, "OL", b"\1\2\3\4")
    made.add_new(0x00720081, "OV", bytes(range(8)))
    made.add_new(0x0072006D, "UN", b"\1\2\3\4")
    made.add_new(0x0072006F, "UC", ["first", "second"])
    made.add_new(0x00720070, "UT", "long \\ text, one value  ")
    made.add_new(0x00720071, "UR", "http://example.org/a")
    made.add_new(0x0072006E, "ST", "short\\text")
    made.add_new(0x00720068, "LT", "a\\b")
    made.add_new(0x00720060, "AE", "TITLE")
    made.add_new(0x00321065, "ST", "")
    made.add_new(0x00102150, "LO", "")
    empty, full = Dataset(), Dataset()
    full.CodeMeaning = "Ünïcode"
    made.add_new(0x00081110, "SQ", Sequence([empty, full]))
    made.add_new(0x00081115, "SQ", Sequence([]))
    made.OtherPatientNames = ["Alpha^One", "=太郎"]
    return made


_PDF: Final = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 72 72]>>endobj\n"
    + b"% so long that no server puts it into its metadata\n" * 2000
    + b"trailer<</Root 1 0 R>>\n%%EOF\n"
)


# ---------------------------------------------------------------- character sets

_SETS: Final = (
    ("ISO_IR 100", "Äneas^Rüdiger"),
    ("ISO_IR 101", "Wałęsa^Żaneta"),
    ("ISO_IR 109", "Ĉapek^Ĝojo"),
    ("ISO_IR 110", "Ēriks^Šņore"),
    ("ISO_IR 144", "Люкceмбypг^Роза"),  # noqa: RUF001
    ("ISO_IR 127", "قباني^لنزار"),
    ("ISO_IR 126", "Διονυσιος^Αριστος"),
    ("ISO_IR 138", "שרון^דבורה"),
    ("ISO_IR 148", "Çavuşoğlu^Işık"),  # noqa: RUF001
    ("ISO_IR 166", "สมชาย^ใจดี"),
    ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
    ("ISO_IR 192", "Müller=山田^太郎=やまだ^たろう"),
    ("GB18030", "Wang^XiaoDong=王^小东"),
    ("GBK", "Wang^XiaoDong=王^小东"),
    ("\\ISO 2022 IR 87", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ("\\ISO 2022 IR 149", "Hong^Gildong=洪^吉洞=홍^길동"),
    ("\\ISO 2022 IR 58", "Zhang^XiaoDong=张^小东"),
)
SETS: Final = {f"charset {term.strip(chr(92))}": name for term, name in _SETS}
"""The samples of the character sets, and the name in each."""


def _character_sets(samples: Samples) -> None:
    for number, ((term, name), label) in enumerate(zip(_SETS, SETS, strict=True), start=1):
        made = samples.header(f"CS{number}", "1", SECONDARY, "OT", SpecificCharacterSet=term.split("\\"))
        made.PatientName = name
        item = Dataset()
        item.PersonName = name
        made.VerifyingObserverSequence = Sequence([item])
        patches = {}
        if term.endswith("IR 58"):  # pydicom writes it without its escape sequences
            wanted = _simplified_chinese(name)
            stand_in = f"{name.partition('=')[0]}=".encode().ljust(len(wanted), b"x")
            made.PatientName = item.PersonName = stand_in.decode()
            patches = {stand_in: wanted}
        samples.add(label, made, frames=grey(made, _ramp(8, 8, 8)), patches=patches)
        made.PatientName = item.PersonName = name


def _simplified_chinese(name: str) -> bytes:
    """Each component of GB 2312 begins with its escape sequence (PS3.5 §6.1.2.5.3)."""
    first, second = name.split("=")
    text = first.encode() + b"=" + b"^".join(b"\x1b$)A" + part.encode("gb2312") for part in second.split("^"))
    return text + b" " * (len(text) % 2)


# ---------------------------------------------------------------- what devices send


def _odd_ones(samples: Samples) -> None:
    made = samples.header("NOID", "1", SECONDARY, "OT", PatientID="", PatientName="")
    samples.add("no patient id", made, frames=grey(made, _ramp(8, 8, 8)))

    made = samples.header(
        "ODD", "1", SECONDARY, "OT", StudyDescription="D" * 80, SeriesNumber="707077", SeriesDate="19990909",
        InstanceNumber="808088",
    )  # fmt: skip
    patches = {b"707077": b"x     ", b"19990909": b"no date ", b"808088": b"one   "}
    samples.add("odd values", made, frames=grey(made, _ramp(8, 8, 8)), patches=patches)

    made = samples.header("ODDSET", "1", SECONDARY, "OT", PatientComments="Gr__xxe ")
    made.SpecificCharacterSet = "ISO_IR 999"
    patches = {b"Gr__xxe ": "Grüße ".encode()}
    samples.add("unknown charset", made, frames=grey(made, _ramp(8, 8, 8)), patches=patches)

    made = samples.header("ODDCLASS", "1", PRIVATE_CLASS, "OT")
    samples.add("private class", made, frames=grey(made, _ramp(8, 8, 8)))


def _with(made: Dataset, attributes: Mapping[str, Any]) -> Dataset:
    """The data set with attributes replaced; None takes one away. Values may be ones that no writer would write."""
    with config.disable_value_validation():
        for keyword, value in attributes.items():
            if value is None:
                if keyword in made:
                    delattr(made, keyword)
            else:
                setattr(made, keyword, value)
    return made
