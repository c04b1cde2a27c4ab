"""The ports: what the gateway needs of a backend. All raise only the errors of `gateway.domain.errors`.

Methods marked *blocking* are for threads; all others are coroutines.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from .domain.edits import MetadataUpdate
from .domain.ids import DatastoreId, FrameId, ImageSetId, JobId
from .domain.model import (
    Change,
    ConflictEntry,
    CopyRequest,
    CopyResult,
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
    JobStatus,
    Origin,
    Outcome,
    Page,
    PageRequest,
    Quarantined,
    Resource,
    SearchCriteria,
    Selected,
    Selection,
    Staged,
)
from .domain.pixels import PixelFormat
from .domain.presentation import Rendering, View
from .domain.query import DicomQuery, SearchAnswer

Buffer = bytes | bytearray | memoryview


class HealthImaging(Protocol):
    """One HealthImaging account and region: each method is one API operation."""

    async def create_datastore(
        self,
        name: str | None,
        client_token: str | None = None,
        storage_format: str = "HTJ2K",
        tags: Mapping[str, str] | None = None,
    ) -> Datastore:
        """A new data store, or the one that the same request with this token made. Raises Conflict, InvalidInput."""
        ...

    async def get_datastore(self, datastore: DatastoreId) -> Datastore: ...
    async def list_datastores(self, status: DatastoreStatus | None, page: PageRequest) -> Page[Datastore]: ...
    async def delete_datastore(self, datastore: DatastoreId) -> Datastore:
        """Raises NotFound, Conflict while it has image sets or running imports."""
        ...

    async def tags(self, resource: Resource) -> Mapping[str, str]: ...
    async def tag(self, resource: Resource, tags: Mapping[str, str]) -> None:
        """Adds tags, or gives them new values. Raises NotFound, InvalidInput beyond 50 tags."""
        ...

    async def untag(self, resource: Resource, keys: Sequence[str]) -> None:
        """Keys that are not there are no fault. Raises NotFound."""
        ...

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

    async def copy(self, request: CopyRequest) -> CopyResult:
        """Accepted under locks on both image sets and carried out soon after.

        Raises NotFound, VersionConflict, Locked, InvalidInput, QuotaExceeded.
        """
        ...

    async def delete(self, ref: ImageSetRef, actor: str | None = None) -> ImageSet: ...


class History(Protocol):
    """What happened to the image sets of a data store, and what an edit would do to one."""

    async def changes(self, datastore: DatastoreId, after: int, limit: int) -> tuple[Sequence[Change], int]:
        """Up to `limit` entries after a sequence number, in order, and the number of the newest entry there is."""
        ...

    async def preview(
        self, ref: ImageSetRef, expected: int, update: MetadataUpdate
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The metadata documents before and after an update that is not made.

        Raises NotFound, VersionConflict, Locked, and UnacceptableUpdate where the update would fail.
        """
        ...


class Tombstones(Protocol):
    """What was deleted and can still be had again."""

    async def restore(self, selection: Selection, actor: str | None = None) -> None:
        """Puts a deleted study, series or instance back, as it was, in new versions of its image sets: the primary
        ones, or the one that is named.

        Raises NotFound where nothing was deleted that is still kept, Conflict where it is there, or would not fit
        what is there, and Locked.
        """
        ...


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

    def heads(self, entries: Sequence[Entry]) -> list[tuple[bytes, bytes]]:
        """What `head` gives, for several at once. *Blocking.*"""
        ...

    async def frame(self, entry: Entry, index: int) -> Frame:
        """Frame `index`, from 0, in its stored syntax. Raises NotFound, Corrupt."""
        ...

    def first_frames(self, entries: Sequence[Entry]) -> list[Frame]:
        """What `frame` gives of index 0, for several at once. *Blocking.*"""
        ...

    async def frame_start(self, entry: Entry, index: int) -> Frame | None:
        """The first bytes of frame `index`, which show it with a longer side of THUMBNAIL_SIDE at least; None where
        no such part of the stored frame is to be had. Unlike a whole frame it is not held against its digest."""

    def first_lengths(self, entries: Sequence[Entry]) -> list[tuple[str, int]]:
        """Syntax and bytes of what `first_frames` gives, without reading it. *Blocking.* Raises NotFound, Corrupt."""
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

    def admit(self) -> None:
        """Returns when more may be taken in; never waits. Raises OutOfStorage, Overloaded."""
        ...

    def open(self, origin: Origin) -> Sink:
        """Raises OutOfStorage."""
        ...

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

    def check(self, segment: str, offset: int, length: int) -> None:
        """Reads an instance in pieces. Raises Corrupt when it is not what was received."""
        ...

    def segments(self) -> list[str]: ...

    def abandoned(self, segment: str) -> AbandonedSegment | None:
        """Takes hold of a segment that no living process holds; None when one does, or when it is gone."""
        ...


class Quarantine(Protocol):
    """Keeps what was acknowledged and could not be imported. *Blocking; any thread.*"""

    def put(self, item: Quarantined, body: Buffer) -> None:
        """Keeps an instance, durable on return; one with its id is replaced. Raises OutOfStorage."""
        ...

    def ids(self) -> list[str]:
        """All there are, the oldest first."""
        ...

    def find(self, id: str) -> Quarantined:
        """Raises NotFound, Corrupt."""
        ...

    def pieces(self, id: str) -> Iterator[bytes]:
        """Its bytes as received. Raises NotFound, and Corrupt at their end."""
        ...

    def drop(self, id: str) -> None:
        """Raises NotFound."""
        ...


class Intake(Protocol):
    """From staged bytes to image sets."""

    def announce(self, job: JobId, items: Sequence[Staged]) -> None:
        """These staged and durable instances will be among those of that job, which `submit` makes later: what can be
        prepared may be prepared now. Changes nothing that anybody sees; returns at once. On the event loop."""
        ...

    async def submit(self, datastore: DatastoreId, items: Sequence[Staged], job: JobId | None = None) -> JobId:
        """Makes one import job of staged instances and wakes a worker. Publication makes them durable; who has to
        promise that earlier calls `Staging.sync` first. With the id of a `job` that is there already it does nothing.
        """
        ...

    async def imported(
        self, datastore: DatastoreId, items: Sequence[Staged], timeout_s: float
    ) -> Sequence[Outcome] | None:
        """One outcome for each staged instance, in the order staged, once they are published and durable.

        Empty when the import has failed as a whole; None when it has not ended after `timeout_s`: it goes on.
        """
        ...

    async def conflicts(self, datastore: DatastoreId, page: PageRequest) -> Page[ConflictEntry]: ...


class Buckets(Protocol):
    """Where import jobs read from and write to. *Blocking, thread-safe.*

    All raise NotFound where there is no such bucket or object, Denied, and Unavailable.
    """

    def check(self, bucket: str) -> None:
        """Returns where the bucket is there."""
        ...

    def list(self, bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
        """Key and size in bytes of the objects whose keys begin with the prefix, in order of the keys."""
        ...

    def read(self, bucket: str, key: str) -> Iterator[bytes]:
        """An object in pieces."""
        ...

    def write(self, bucket: str, key: str, data: bytes) -> None:
        """One object, whole or not at all."""
        ...


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


class BlobReader(Protocol):
    """Blobs that are there. *Blocking, thread-safe.*"""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises Corrupt when the blob lacks them."""
        ...


class BlobStore(BlobReader, Protocol):
    """Named byte strings that grow and never change. *Blocking, thread-safe.*"""

    def create(self, kind: str) -> BlobWriter:
        """A writer of a blob named `{kind}/{unique}`, which it may continue. Raises OutOfStorage."""
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


class DerivedFrames(Protocol):
    """Frames that were made of stored ones, kept so that they need not be made again. *Blocking, thread-safe.*

    Bounded, and never the truth: whatever it keeps may be gone at any time. A frame has three names: `pixels`, the
    hexadecimal digest of the pixel data that it was made of (`Entry.digest`); `form`, what was made, such as a transfer
    syntax, in letters, digits, `.` and `-`; its index, from 0.
    """

    def get(self, pixels: str, form: str, index: int, *, wait: bool = True) -> bytes | None:
        """The frame as it was given to `put`, or None. Without `wait`, only what can be had without a disk."""
        ...

    def put(self, pixels: str, form: str, index: int, data: bytes) -> None:
        """Returns at once. The frame is kept soon, or not at all."""
        ...

    def forget(self, pixels: Iterable[str]) -> None:
        """Removes whatever was made of these."""
        ...

    def sweep(self, living: Callable[[Sequence[str]], set[str]]) -> None:
        """A slice of house-keeping: removes what was made of pixel data that is gone, and gives way on a full disk.

        `living` tells which of some digests are of pixel data that there is.
        """
        ...


class Codec(Protocol):
    """Encodes and decodes single frames of trusted data. *Blocking, thread-safe, stateless.*"""

    def encode(self, native: Buffer, format: PixelFormat, syntax: str) -> bytes:
        """Lossless codestream of one native little-endian frame. Raises NotAcceptable if the codec cannot."""
        ...

    def decode(self, data: Buffer, syntax: str, format: PixelFormat) -> bytes:
        """Native little-endian samples, colour by pixel. Raises NotAcceptable, Corrupt."""
        ...


class Renderer(Protocol):
    """Frames as pictures that anything can show. *Blocking, thread-safe, stateless but for bounded caches.*"""

    def render(self, frame: Buffer, syntax: str, format: PixelFormat, view: View, wanted: Rendering) -> bytes:
        """A picture of one trusted frame; `syntax` and `format` as for `Codec.decode`.

        In the syntax that the store encodes to, the first bytes of a frame will do (`Instances.frame_start`).
        Raises InvalidInput for a region beside the image, NotAcceptable for samples that no picture shows, Corrupt.
        """
        ...


__all__ = [
    "BlobReader",
    "BlobStore",
    "BlobWriter",
    "Buffer",
    "Codec",
    "DerivedFrames",
    "DicomIndex",
    "HealthImaging",
    "ImageSetId",
    "Instances",
    "Intake",
    "Quarantine",
    "Renderer",
    "Sink",
    "Staging",
    "Tombstones",
]
