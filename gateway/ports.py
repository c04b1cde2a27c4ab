"""The ports: what the gateway needs of a backend. All raise only the errors of `gateway.domain.errors`.

Methods marked *blocking* are for threads; all others are coroutines.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from .domain.edits import MetadataUpdate
from .domain.ids import DatastoreId, FrameId, ImageSetId, JobId
from .domain.model import (
    ConflictEntry,
    Datastore,
    DatastoreStatus,
    Document,
    Entry,
    Frame,
    ImageSet,
    ImageSetRef,
    ImageSetSummary,
    ImportJob,
    ImportRequest,
    JobResult,
    JobStatus,
    Origin,
    Page,
    PageRequest,
    SearchCriteria,
    Selected,
    Selection,
    Staged,
)
from .domain.pixels import PixelFormat
from .domain.query import DicomQuery, SearchAnswer

Buffer = bytes | bytearray | memoryview


class HealthImaging(Protocol):
    """One HealthImaging account and region: each method is one API operation."""

    async def create_datastore(
        self, name: str | None, client_token: str | None = None, storage_format: str = "HTJ2K"
    ) -> Datastore: ...
    async def get_datastore(self, datastore: DatastoreId) -> Datastore: ...
    async def list_datastores(self, status: DatastoreStatus | None, page: PageRequest) -> Page[Datastore]: ...
    async def delete_datastore(self, datastore: DatastoreId) -> Datastore: ...

    async def get_import(self, datastore: DatastoreId, job: JobId) -> ImportJob: ...
    async def list_imports(
        self, datastore: DatastoreId, status: JobStatus | None, page: PageRequest
    ) -> Page[ImportJob]: ...
    async def start_import(self, datastore: DatastoreId, request: ImportRequest) -> ImportJob: ...

    async def search(
        self, datastore: DatastoreId, criteria: SearchCriteria, page: PageRequest
    ) -> Page[ImageSetSummary]: ...
    async def get_image_set(self, ref: ImageSetRef) -> ImageSet: ...
    async def list_versions(self, ref: ImageSetRef, page: PageRequest) -> Page[ImageSet]: ...
    async def get_metadata(self, ref: ImageSetRef) -> Document: ...
    async def get_frame(self, ref: ImageSetRef, frame: FrameId) -> Frame: ...
    async def update_metadata(self, ref: ImageSetRef, expected: int, update: MetadataUpdate) -> ImageSet:
        """Accepted under a lock and applied soon after. Raises NotFound, VersionConflict, Locked."""
        ...

    async def delete(self, ref: ImageSetRef) -> ImageSet: ...


class Instances(Protocol):
    """Instances as DICOM services see them: each header as received, plus the edits of the version."""

    async def select(self, selection: Selection) -> Selected:
        """The instances meant. Raises NotFound, Gone, InvalidInput (version and asOf together)."""
        ...

    async def metadata(self, entries: Sequence[Entry], base_url: str, *, gzip: bool) -> Document:
        """One DICOM JSON array (PS3.18 F.2). `base_url` ends before `/studies`; it makes each BulkDataURI absolute."""
        ...

    async def head(self, entry: Entry) -> tuple[bytes, bytes]:
        """The data set in Explicit VR LE with its edits, without group 0002: what stands before the Pixel Data
        element and what follows it. Deflate, byte order and implicit VR are undone."""
        ...

    async def frame(self, entry: Entry, index: int) -> Frame:
        """Frame `index`, from 0, in its stored syntax. Raises NotFound, Corrupt."""
        ...

    async def pixel_data(self, entry: Entry) -> Frame:
        """The Pixel Data element's value as received, for an instance without frames that can be told apart."""
        ...

    async def bulk(self, entry: Entry, path: str) -> tuple[str, bytes]:
        """VR and value, little-endian, of the attribute that a BulkDataURI names. Raises NotFound."""
        ...


class DicomIndex(Protocol):
    """Search over the attributes of studies, series and instances."""

    async def find(self, query: DicomQuery) -> SearchAnswer: ...


class Sink(Protocol):
    """Takes one instance's bytes. *Blocking.*"""

    def write(self, data: Buffer) -> None:
        """Takes the next bytes; they are copied or written before it returns. Raises OutOfStorage."""
        ...

    def close(self) -> Staged:
        """Ends the instance. It is durable after the next `Staging.sync`, or once its import has ended."""
        ...

    def abort(self) -> None:
        """Forgets what was written; also after `close`, as long as nothing was acknowledged or submitted."""
        ...


class Staging(Protocol):
    """Where instances wait, safe against a crash, for their import. *Blocking; any thread.*"""

    def open(self, origin: Origin) -> Sink: ...

    def sync(self) -> None:
        """Returns when everything closed before the call is durable: one `fdatasync` serves all who wait."""
        ...


class AbandonedSegment(Protocol):
    """A segment of the spool whose writer is gone, held until it is released or deleted. *Blocking.*"""

    name: str

    def frames(self) -> Iterator[Staged]: ...
    def delete(self) -> None: ...
    def release(self) -> None: ...


class SpoolStaging(Staging, Protocol):
    """Staging that a worker reads from, and that survives its writers. *Blocking; any thread.*"""

    def settle(self, segments: Iterable[str]) -> None:
        """Returns when all that lies in these segments is durable, whoever wrote it. Raises OutOfStorage."""
        ...

    def submitted(self, items: Sequence[Staged]) -> None:
        """These are named by a committed import job, or were given up."""
        ...

    def read(self, segment: str, offset: int, length: int) -> tuple[Origin, bytes | memoryview, int]:
        """An instance's origin, its bytes, and where in the segment they begin. Raises Corrupt."""
        ...

    def segments(self) -> list[str]: ...

    def abandoned(self, segment: str) -> AbandonedSegment | None:
        """Takes hold of a segment that no living process holds; None when one does, or when it is gone."""
        ...


class Intake(Protocol):
    """From staged bytes to image sets."""

    async def submit(self, datastore: DatastoreId, items: Sequence[Staged]) -> JobId:
        """Makes one import job of staged instances and wakes a worker. Publication makes them durable; who has to
        promise that earlier calls `Staging.sync` first."""
        ...

    async def result(self, job: JobId, timeout_s: float) -> JobResult | None:
        """The job's outcomes once it has ended; None when it has not after `timeout_s`."""
        ...

    async def conflicts(self, datastore: DatastoreId, page: PageRequest) -> Page[ConflictEntry]: ...


class BlobWriter(Protocol):
    """Appends to one blob. *Blocking; one thread at a time.*"""

    name: str
    start: int
    """Where this writer began: what lies before was finished earlier."""
    size: int
    """The offset of the next write."""

    def write(self, data: Buffer) -> None: ...

    def finish(self) -> None:
        """Makes what was written durable and readable. The writer is not to be used any more."""
        ...

    def abandon(self) -> None:
        """Takes back what was written."""
        ...


class BlobStore(Protocol):
    """Named byte strings that grow and never change. *Blocking, thread-safe.*"""

    def create(self, kind: str) -> BlobWriter:
        """A writer of a blob named `{kind}/{unique}`, which it may continue. Raises OutOfStorage."""
        ...

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises Corrupt when the blob lacks them."""
        ...

    def read_cached(self, name: str, offset: int, length: int) -> bytes | None:
        """The same without ever waiting for a disk; None when the bytes are not at hand."""
        ...

    def is_growing(self, name: str) -> bool:
        """Whether a living process may still append to it."""
        ...

    def delete(self, name: str) -> None:
        """Removes it; a blob that is not there is no fault."""
        ...


class Codec(Protocol):
    """Encodes and decodes single frames of trusted data. *Blocking, thread-safe, stateless.*"""

    def encode(self, native: Buffer, format: PixelFormat, syntax: str) -> bytes:
        """Lossless codestream of one native little-endian frame. Raises NotAcceptable if the codec cannot."""
        ...

    def decode(self, data: Buffer, syntax: str, format: PixelFormat) -> bytes:
        """Native little-endian samples, colour by pixel. Raises NotAcceptable, Corrupt."""
        ...


__all__ = [
    "BlobStore",
    "BlobWriter",
    "Buffer",
    "Codec",
    "DicomIndex",
    "HealthImaging",
    "ImageSetId",
    "Instances",
    "Intake",
    "Sink",
    "Staging",
]
