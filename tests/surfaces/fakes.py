"""The ports in memory, over pydicom: enough of a backend for the surfaces to be tested without one."""

import asyncio
import email
import email.message
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import imagecodecs
import numpy as np
import orjson
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filewriter import dcmwrite
from pydicom.pixels.utils import pixel_array
from pydicom.tag import Tag
from pydicom.uid import UID

from adapters.codecs.registry import Codecs
from adapters.codecs.rendering import Pictures
from gateway.dicomweb.routes import DicomwebApp, DicomwebServices
from gateway.domain.encapsulation import unpack_bits_frames
from gateway.domain.errors import Corrupt, NotAcceptable, NotFound
from gateway.domain.ids import DatastoreId, ImageSetId, JobId, new_id
from gateway.domain.matching import conditions, fulfils
from gateway.domain.model import (
    ConflictEntry,
    Document,
    Entry,
    Frame,
    ImportJob,
    JobResult,
    JobStatus,
    Origin,
    Outcome,
    Page,
    PageRequest,
    Selected,
    Selection,
    Staged,
)
from gateway.domain.pixels import PixelFormat
from gateway.domain.query import (
    DicomQuery,
    Level,
    SearchAnswer,
    columns,
    hexadecimal,
    level_in_search,
    row,
)
from gateway.domain.syntaxes import EXPLICIT_LE, HTJ2K_LOSSLESS_RPCL, JPEG_BASELINE, KEPT_AS_IS, by_uid
from gateway.ports import Buffer
from gateway.services.removal import Removal
from gateway.services.render import Render
from gateway.services.retrieve import Retrieve
from gateway.services.store import Store

_PIXELS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
BULK_FROM = 1 << 20


@dataclass
class Held:
    """One instance as the fake backend keeps it."""

    data_set: Dataset
    entry: Entry
    frames: list[bytes]
    raw: bytes = b""


class InMemory:
    """Instances and DicomIndex over data sets; every import of a file adds to it."""

    def __init__(self) -> None:
        self.held: list[Held] = []
        self.frames_read = 0
        self.heads_read = 0
        self.beside: dict[str, str] = {}
        """SOP Instance UID -> the non-primary image set that it is in."""
        self.spoil: Callable[[Frame], Frame] = lambda frame: frame

    # --- Instances ---------------------------------------------------------------------------------------------------

    def add(self, data_set: Dataset, image_set: str | None = None) -> Entry:
        """Keeps a data set that was read from a Part 10 file."""
        received = str(data_set.file_meta.TransferSyntaxUID)
        stored, format, frames, raw = _taken_apart(data_set, received)
        if image_set is not None:
            self.beside[str(data_set.SOPInstanceUID)] = image_set
        entry = Entry(
            record=len(self.held),
            overlay=None,
            level_overlay=None,
            image_set=ImageSetId(image_set or hashlib.md5(data_set.SeriesInstanceUID.encode()).hexdigest()),
            version=1,
            study_uid=str(data_set.StudyInstanceUID),
            series_uid=str(data_set.SeriesInstanceUID),
            sop_uid=str(data_set.SOPInstanceUID),
            sop_class=str(data_set.SOPClassUID),
            received_syntax=received,
            stored_syntax=stored,
            format=format,
            frames=len(frames),
            warning=None,
            digest=hashlib.sha256(b"".join(frames) + raw).hexdigest(),
        )
        self.held.append(Held(data_set, entry, frames, raw))
        return entry

    async def select(self, selection: Selection) -> Selected:
        found = [
            held.entry
            for held in self.held
            if selection.datastore == DATASTORE
            and held.entry.study_uid == selection.study
            and selection.series in (None, held.entry.series_uid)
            and selection.sop in (None, held.entry.sop_uid)
            and selection.version in (None, 1)
            and self.beside.get(held.entry.sop_uid) == selection.image_set
        ]
        if not found:
            raise NotFound("There is no such instance.")
        found.sort(key=lambda entry: (self.held[entry.record].data_set.get("InstanceNumber") or 0, entry.sop_uid))
        return Selected(found, hashlib.sha256(repr(found).encode()).hexdigest()[:32])

    async def metadata(self, entries: Sequence[Entry], base_url: str, *, gzip: bool) -> Document:
        body = orjson.dumps([self._json(entry, base_url) for entry in entries])
        return Document(compress(body) if gzip else body, gzip)

    def _json(self, entry: Entry, base_url: str) -> dict[str, Any]:
        url = f"{base_url}/studies/{entry.study_uid}/series/{entry.series_uid}/instances/{entry.sop_uid}"
        attributes = attributes_of(self.held[entry.record].data_set)
        for tag, element in attributes.items():
            if "BulkDataURI" in element:
                element["BulkDataURI"] = f"{url}/bulkdata/{tag}"
        return attributes

    async def head(self, entry: Entry) -> tuple[bytes, bytes]:
        return self._head(entry)

    def heads(self, entries: Sequence[Entry]) -> list[tuple[bytes, bytes]]:
        return [self._head(entry) for entry in entries]

    def _head(self, entry: Entry) -> tuple[bytes, bytes]:
        self.heads_read += 1
        data_set = self.held[entry.record].data_set
        return _explicit(data_set, lambda tag: tag < _PIXELS[1]), _explicit(data_set, lambda tag: tag > _PIXELS[0])

    async def frame(self, entry: Entry, index: int) -> Frame:
        return self._frame(entry, index)

    def first_frames(self, entries: Sequence[Entry]) -> list[Frame]:
        return [self._frame(entry, 0) for entry in entries]

    def first_lengths(self, entries: Sequence[Entry]) -> list[tuple[str, int]]:
        return [(entry.stored_syntax or EXPLICIT_LE, len(self.held[entry.record].frames[0])) for entry in entries]

    def _frame(self, entry: Entry, index: int) -> Frame:
        self.frames_read += 1
        data = self.held[entry.record].frames[index]
        return self.spoil(Frame(None, entry.stored_syntax or EXPLICIT_LE, data, zlib.crc32(data)))

    async def frame_start(self, entry: Entry, index: int) -> Frame | None:
        return None

    async def pixel_data(self, entry: Entry) -> Frame:
        raw = self.held[entry.record].raw
        return Frame(None, entry.received_syntax, raw, zlib.crc32(raw))

    async def bulk(self, entry: Entry, path: str) -> tuple[str, bytes]:
        data_set = self.held[entry.record].data_set
        *steps, last = path.split(".")
        try:
            for tag, item in zip(steps[::2], steps[1::2], strict=True):
                data_set = data_set[int(tag, 16)].value[int(item)]
            element = data_set[int(last, 16)]
        except (KeyError, IndexError):
            raise NotFound("There is no such bulk data.") from None
        if not isinstance(element.value, bytes):
            raise NotFound("The attribute is no bulk data.")
        return str(element.VR), element.value

    # --- DicomIndex --------------------------------------------------------------------------------------------------

    async def find(self, query: DicomQuery) -> SearchAnswer:
        demanded = conditions(query)
        chosen = columns(query)
        grouped: dict[str, list[Held]] = {}
        for held in self.held:
            if query.image_set == self.beside.get(held.entry.sop_uid):
                uid = {Level.STUDY: held.entry.study_uid, Level.SERIES: held.entry.series_uid}
                grouped.setdefault(uid.get(query.level, held.entry.sop_uid), []).append(held)
        rows = []
        for members in grouped.values():
            views = self._views(members[0])
            if fulfils(views, demanded):
                rows.append(row(views, chosen, query.include_all))
        page = rows[query.offset :][: query.limit]
        return SearchAnswer(page, max(0, len(rows) - query.offset - len(page)))

    def _views(self, held: Held) -> dict[Level, dict[str, Any]]:
        views: dict[Level, dict[str, Any]] = {level: {} for level in Level}
        for tag, element in attributes_of(held.data_set).items():
            views[level_in_search(int(tag, 16))][tag] = element
        study = [other for other in self.held if other.entry.study_uid == held.entry.study_uid]
        series = {other.entry.series_uid for other in study}
        siblings = [other for other in study if other.entry.series_uid == held.entry.series_uid]
        views[Level.STUDY]["00080061"] = {
            "vr": "CS",
            "Value": sorted({str(other.data_set.get("Modality")) for other in study}),
        }
        views[Level.STUDY]["00201206"] = {"vr": "IS", "Value": [len(series)]}
        views[Level.STUDY]["00201208"] = {"vr": "IS", "Value": [len(study)]}
        views[Level.SERIES]["00201209"] = {"vr": "IS", "Value": [len(siblings)]}
        views[Level.PATIENT]["00080056"] = {"vr": "CS", "Value": ["ONLINE"]}
        return views


DATASTORE = DatastoreId("d" * 32)


def compress(body: bytes) -> bytes:
    return gzip.compress(body, 1, mtime=0)


def attributes_of(data_set: Dataset) -> dict[str, Any]:
    """DICOM JSON, with Pixel Data and long values by an URI that is yet to be made."""
    attributes = {}
    for element in data_set:
        if element.tag.element == 0:
            continue
        tag = hexadecimal(int(element.tag))
        if element.tag in _PIXELS or (isinstance(element.value, bytes) and len(element.value) > BULK_FROM):
            attributes[tag] = {"vr": str(element.VR), "BulkDataURI": ""}
        else:
            attributes[tag] = element.to_json_dict(None, 1 << 40)
    return attributes


def _explicit(data_set: Dataset, wanted: Callable[[int], bool]) -> bytes:
    part = Dataset()
    for tag in data_set:
        if wanted(int(tag.tag)):
            part[tag.tag] = tag
    buffer = io.BytesIO()
    dcmwrite(buffer, part, implicit_vr=False, little_endian=True, enforce_file_format=False)
    return buffer.getvalue()


def format_of(data_set: Dataset) -> PixelFormat | None:
    """None where an attribute is missing."""
    try:
        return PixelFormat(
            rows=data_set.Rows,
            columns=data_set.Columns,
            samples=data_set.SamplesPerPixel,
            bits_allocated=data_set.BitsAllocated,
            bits_stored=data_set.get("BitsStored", data_set.BitsAllocated),
            signed=data_set.get("PixelRepresentation", 0) == 1,
            photometric=data_set.PhotometricInterpretation,
            planar=data_set.get("PlanarConfiguration", 0),
            frames=int(data_set.get("NumberOfFrames") or 1),
            floating=Tag(0x7FE00008) in data_set or Tag(0x7FE00009) in data_set,
        )
    except AttributeError:
        return None


def _taken_apart(data_set: Dataset, received: str) -> tuple[str | None, PixelFormat | None, list[bytes], bytes]:
    """Stored syntax, format, frames; or the raw value where frames cannot be told apart."""
    element = next((data_set[tag] for tag in _PIXELS if Tag(tag) in data_set), None)
    if element is None:
        return None, None, [], b""
    value = bytes(element.value)
    format = format_of(data_set)
    info = by_uid(received)
    if format is None or info is None:
        return received, None, [], value
    if info.video:
        return received, format, list(generate_frames(value, number_of_frames=1)), b""
    if received in KEPT_AS_IS:
        return received, format, list(generate_frames(value, number_of_frames=format.frames)), b""
    if format.bits_allocated == 1:
        return EXPLICIT_LE, format, list(unpack_bits_frames(value, format)), b""
    if format.floating or (format.photometric == "YBR_FULL_422" and not info.encapsulated):
        size = format.frame_bytes
        return EXPLICIT_LE, format, [value[at * size : (at + 1) * size] for at in range(format.frames)], b""
    pixels = pixel_array(data_set, raw=True)
    if format.frames == 1:
        pixels = pixels[np.newaxis]
    rgb = format.samples == 3 and format.photometric in ("RGB", "YBR_RCT", "YBR_ICT")
    return HTJ2K_LOSSLESS_RPCL, format, [_htj2k(frame, format, rgb) for frame in pixels], b""


def _htj2k(frame: "np.ndarray[Any, Any]", format: PixelFormat, rgb: bool) -> bytes:
    levels = max(1, (max(format.rows, format.columns) - 1).bit_length() - 6)
    native = np.ascontiguousarray(frame, frame.dtype.newbyteorder("="))  # older encoders take bytes as they lie
    encoded = imagecodecs.htj2k_encode(
        native, reversible=True, tlm=True, tilepart=1, resolutions=levels, rgb=rgb, planar=False
    )
    return bytes(encoded)


class FakeCodec:
    """Decodes what the fake backend encodes."""

    def encode(self, native: Buffer, format: PixelFormat, syntax: str) -> bytes:
        return Codecs([]).encode(native, format, syntax)

    def decode(self, data: Buffer, syntax: str, format: PixelFormat) -> bytes:
        assert syntax == HTJ2K_LOSSLESS_RPCL
        return decoded(bytes(data))


def decoded(codestream: bytes) -> bytes:
    """The samples of a frame in HTJ2K."""
    return bytes(np.asarray(imagecodecs.htj2k_decode(codestream, planar=False)).tobytes())


def decode_foreign(data: bytes, syntax: str, format: PixelFormat) -> bytes:
    """JPEG Baseline only, without a colour conversion."""
    if by_uid(syntax) is None or not syntax.endswith(".4.50"):
        raise NotAcceptable("There is no decoder.")
    space = "YCBCR" if format.samples == 3 else None
    return bytes(np.asarray(imagecodecs.jpeg8_decode(data, colorspace=space, outcolorspace=space)).tobytes())


# --- in -----------------------------------------------------------------------------------------------------------


def decode_picture(data: bytes, syntax: str, format: PixelFormat) -> bytes:
    """What the decode processes do, in this one."""
    try:
        return Codecs([]).decode(data, syntax, format)
    except Corrupt as fault:
        raise NotAcceptable(fault.detail) from None


@dataclass
class FakeSink:
    """Collects one instance; what was aborted is gone from its staging."""

    staging: "FakeStaging"
    origin: Origin
    data: bytearray = field(default_factory=bytearray)
    closed: bool = False

    def write(self, data: Buffer) -> None:
        self.staging.on_write(len(data))
        self.data += data

    def close(self) -> Staged:
        self.closed = True
        number = len(self.staging.closed)
        self.staging.closed.append(self)
        return Staged("fake", number, len(self.data), self.origin)

    def abort(self) -> None:
        self.staging.aborted.append(self)
        if self.closed:
            self.staging.closed[self.staging.closed.index(self)] = None


class FakeStaging:
    """Staging in memory; `synced` counts the instances that are durable."""

    def __init__(self) -> None:
        self.closed: list[FakeSink | None] = []
        self.aborted: list[FakeSink] = []
        self.synced = 0
        self.syncs = 0
        self.on_write: Callable[[int], None] = lambda size: None

    def admit(self) -> None:
        pass

    def open(self, origin: Origin) -> FakeSink:
        return FakeSink(self, origin)

    def sync(self) -> None:
        self.syncs += 1
        self.synced = len(self.closed)


class FakeIntake:
    """Imports at once what was staged, into an `InMemory`."""

    def __init__(self, staging: FakeStaging, backend: InMemory) -> None:
        self._staging = staging
        self._backend = backend
        self._jobs: dict[JobId, JobResult] = {}
        self.slow = False
        self.listed: list[ConflictEntry] = []
        self.answers: dict[str, dict[str, Any]] = {}
        """SOP Instance UID -> fields of its Outcome that are to be other than usual."""

    def announce(self, job: JobId, items: Sequence[Staged]) -> None: ...

    async def submit(self, datastore: DatastoreId, items: Sequence[Staged], job: JobId | None = None) -> JobId:
        job = job or JobId(new_id())
        outcomes = []
        for item in items:
            sink = self._staging.closed[item.offset]
            assert sink is not None
            outcomes.append(self._import(bytes(sink.data), item.origin))
        now = datetime.now(UTC)
        self._jobs[job] = JobResult(ImportJob(job, datastore, "fake", JobStatus.COMPLETED, "stow", now, now), outcomes)
        return job

    def _import(self, data: bytes, origin: Origin) -> Outcome:
        try:
            data_set = pydicom.dcmread(io.BytesIO(data))
        except pydicom.errors.InvalidDicomError:
            return Outcome(None, None, None, None, failure=0xC000, message="DICOM attributes does not exist")
        uids = [str(data_set.get(name, "")) for name in ("SOPClassUID", "SOPInstanceUID")]
        study, series = str(data_set.get("StudyInstanceUID", "")), str(data_set.get("SeriesInstanceUID", ""))
        if origin.study_uid not in (None, study):
            return Outcome(uids[0], uids[1], study, series, failure=0xA901, message="It is of another study.")
        more = self.answers.get(uids[1], {})
        if "failure" not in more:
            beside = None if more.get("is_primary", True) else more["image_set"]
            self._backend.add(data_set, beside)
        return Outcome(**{
            "sop_class": uids[0], "sop_uid": uids[1], "study_uid": study, "series_uid": series, **more
        })

    async def imported(
        self, datastore: DatastoreId, items: Sequence[Staged], timeout_s: float
    ) -> Sequence[Outcome] | None:
        job = await self.submit(datastore, items)
        return None if self.slow else self._jobs[job].outcomes

    async def conflicts(self, datastore: DatastoreId, page: PageRequest) -> Page[ConflictEntry]:
        start = int(page.token or 0)
        end = start + page.size
        return Page(self.listed[start:end], str(end) if end < len(self.listed) else None)


def part10(data_set: Dataset) -> bytes:
    """The file's bytes."""
    buffer = io.BytesIO()
    dcmwrite(buffer, data_set, enforce_file_format=True)
    return buffer.getvalue()


def multipart(parts: Iterable[bytes], kind: str = "application/dicom") -> tuple[bytes, str]:
    """A STOW body and its Content-Type."""

    def pieces() -> Iterator[bytes]:
        for part in parts:
            yield f"\r\n--fence\r\nContent-Type: {kind}\r\n\r\n".encode() + part
        yield b"\r\n--fence--"

    return b"".join(pieces()), f'multipart/related; type="{kind}"; boundary="fence"'


@dataclass
class Surface:
    """The DICOMweb application over fakes, and what it stands on."""

    backend: InMemory
    staging: FakeStaging
    intake: FakeIntake
    app: DicomwebApp

    def ask(self, method: str, url: str, **options: Any) -> httpx.Response:
        """One request; `url` without scheme and host."""

        async def exchange() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://pacs.example:8080") as client:
                client.headers.clear()
                return await client.request(method, url, **options)

        return asyncio.run(exchange())

    def get(self, url: str, accept: str | None = None, **headers: str) -> httpx.Response:
        """A GET with the headers given and, but for Host, no other."""
        if accept is not None:
            headers["Accept"] = accept
        return self.ask("GET", url, headers={name.replace("_", "-"): value for name, value in headers.items()})


def surface(data_sets: Iterable[Dataset] = (), *, timeout_s: float = 5.0, **settings: Any) -> Surface:
    """An application over these data sets; `settings` are fields of DicomwebServices."""
    backend = InMemory()
    for data_set in data_sets:
        backend.add(data_set)
    staging = FakeStaging()
    intake = FakeIntake(staging, backend)
    services = DicomwebServices(
        default_datastore=DATASTORE,
        resolve=resolve,
        retrieve=Retrieve(backend, FakeCodec(), decode_foreign, THREADS),
        render=Render(backend, Pictures(Codecs([])), decode_foreign, THREADS),
        store=Store(staging, intake, timeout_s=timeout_s),
        search=backend,
        intake=intake,
        decode=decode_picture,
        removal=Removal(backend, None, None),  # type: ignore[arg-type]  the fakes have no image sets
        **settings,
    )
    return Surface(backend, staging, intake, DicomwebApp(services))


THREADS = ThreadPoolExecutor(2, "decode")


def made(number: int = 1, **attributes: Any) -> Dataset:
    """A small instance: 16-bit grey unless said otherwise; `syntax` names its transfer syntax."""
    syntax = attributes.pop("syntax", EXPLICIT_LE)
    data_set = Dataset()
    data_set.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    data_set.SOPInstanceUID = f"1.2.3.4.{number}"
    data_set.PatientName, data_set.PatientID = "Test^Anna", "ID-1"
    data_set.StudyDate, data_set.Modality, data_set.InstanceNumber = "20260102", "OT", number
    data_set.SeriesNumber = 1
    data_set.Rows, data_set.Columns, data_set.SamplesPerPixel = 6, 5, 1
    data_set.BitsAllocated = data_set.BitsStored = 16
    data_set.HighBit, data_set.PixelRepresentation = 15, 0
    data_set.PhotometricInterpretation = "MONOCHROME2"
    for keyword, value in attributes.items():
        setattr(data_set, keyword, value)
    if "PixelData" not in data_set and "FloatPixelData" not in data_set:
        format = format_of(data_set)
        if format is not None:
            size = (format.frame_bits * format.frames + 7) // 8
            data_set.PixelData = np.random.default_rng(number).bytes(size) + b"\0" * (size % 2)
    if "PixelData" in data_set:
        data_set["PixelData"].VR = "OW" if data_set.BitsAllocated > 8 else "OB"
    data_set.preamble = b"\0" * 128
    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = UID(syntax)
    data_set.file_meta.MediaStorageSOPClassUID = data_set.SOPClassUID
    data_set.file_meta.MediaStorageSOPInstanceUID = data_set.SOPInstanceUID
    return data_set


def document(number: int = 1, **attributes: Any) -> Dataset:
    """An instance without pixels."""
    data_set = made(number, PixelData=b"")
    for keyword in ("PixelData", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit"):
        delattr(data_set, keyword)
    for keyword, value in attributes.items():
        setattr(data_set, keyword, value)
    return data_set


def jpeg_instance(number: int = 1) -> Dataset:
    """A lossy instance: 6 by 5 in JPEG Baseline."""
    source = made(number, BitsAllocated=8, BitsStored=8, HighBit=7, syntax=JPEG_BASELINE, PixelData=b"")
    pixels = np.arange(30, dtype=np.uint8).reshape(6, 5)
    source.PixelData = encapsulate([bytes(imagecodecs.jpeg8_encode(pixels, level=90))])
    return source


def split(response: httpx.Response) -> list[tuple[dict[str, str], bytes]]:
    """The parts of a multipart answer, by an independent reader."""
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + response.content)
    parts = []
    assert message.is_multipart()
    for part in message.get_payload():
        assert isinstance(part, email.message.Message)
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        parts.append((dict(part.items()), payload))
    return parts


async def resolve(name: str) -> DatastoreId:
    """The only data store there is."""
    if name != DATASTORE:
        raise NotFound("There is no such data store.")
    return DATASTORE


