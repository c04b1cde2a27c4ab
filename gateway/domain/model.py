"""The nouns of AWS HealthImaging, and the views of one instance that DICOM services need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, Literal, TypeVar

from .ids import DatastoreId, FrameId, ImageSetId, JobId
from .pixels import PixelFormat

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which page: at most `size` items after the opaque `token` of the page before."""

    size: int = 50
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items, and the token of the next page, None on the last one."""

    items: Sequence[T]
    next_token: str | None = None


class DatastoreStatus(StrEnum):
    CREATING = "CREATING"
    CREATE_FAILED = "CREATE_FAILED"
    ACTIVE = "ACTIVE"
    DELETING = "DELETING"
    DELETED = "DELETED"


@dataclass(frozen=True, slots=True)
class Datastore:
    """A data store (API: GetDatastore)."""

    id: DatastoreId
    name: str
    status: DatastoreStatus
    created_at: datetime
    updated_at: datetime
    storage_format: str = "HTJ2K"


class ImageSetState(StrEnum):
    ACTIVE = "ACTIVE"
    LOCKED = "LOCKED"
    DELETED = "DELETED"


class Workflow(StrEnum):
    """imageSetWorkflowStatus, in the words of the API."""

    CREATED = "CREATED"
    COPIED = "COPIED"
    COPYING = "COPYING"
    COPYING_WITH_READ_ONLY_ACCESS = "COPYING_WITH_READ_ONLY_ACCESS"
    COPY_FAILED = "COPY_FAILED"
    UPDATING = "UPDATING"
    UPDATING_FOR_STUDY_CONSISTENCY = "UPDATING_FOR_STUDY_CONSISTENCY"
    UPDATED = "UPDATED"
    UPDATE_FAILED = "UPDATE_FAILED"
    DELETING = "DELETING"
    DELETED = "DELETED"
    IMPORTING = "IMPORTING"
    IMPORTED = "IMPORTED"
    IMPORT_FAILED = "IMPORT_FAILED"


@dataclass(frozen=True, slots=True)
class ImageSetRef:
    """A data store, an image set, and a version or None for the latest: what every read takes."""

    datastore: DatastoreId
    image_set: ImageSetId
    version: int | None = None


@dataclass(frozen=True, slots=True)
class ImageSet:
    """One version of an image set (API: GetImageSet, ListImageSetVersions)."""

    datastore: DatastoreId
    id: ImageSetId
    version: int
    state: ImageSetState
    workflow: Workflow
    is_primary: bool
    created_at: datetime
    updated_at: datetime | None = None
    deleted_at: datetime | None = None
    message: str | None = None
    forced: bool = False
    at: datetime | None = None
    actor: str | None = None
    """When this version was made and by whom; beyond the API."""
    accessed_at: datetime | None = None
    """When the image set was last read or written, to the day (lastAccessedAt)."""


@dataclass(frozen=True, slots=True)
class CopyRequest:
    """CopyImageSet, as asked. Versions are those that the caller takes for the latest."""

    source: ImageSetRef
    destination: ImageSetRef | None = None
    """The image set that takes the instances; None makes a new one."""
    instances: Mapping[str, frozenset[str]] | None = None
    """Series Instance UID -> SOP Instance UIDs to copy; None copies all."""
    force: bool = False
    promote: bool = False
    """promoteToPrimary: the destination is the series' primary image set, a new one where there is none."""
    actor: str | None = None


@dataclass(frozen=True, slots=True)
class CopyResult:
    """Both image sets of a copy as it is accepted."""

    source: ImageSet
    destination: ImageSet


@dataclass(frozen=True, slots=True)
class Resource:
    """What an ARN names: a data store, or an image set in it."""

    datastore: DatastoreId
    image_set: ImageSetId | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of a data store's change feed: a version that became readable, or a deletion."""

    seq: int
    """From 1, without gaps; a reader goes on after the last one that it has seen."""
    at: datetime
    """Never before the entry that precedes it."""
    kind: str
    """import, update, copy or delete."""
    image_set: ImageSetId
    version: int
    is_primary: bool
    study_uid: str
    series_uid: str
    job: JobId | None = None
    actor: str | None = None


@dataclass(frozen=True, slots=True)
class ImageSetSummary:
    """One answer of SearchImageSets; `tags` are its DICOMTags members."""

    id: ImageSetId
    version: int
    is_primary: bool
    created_at: datetime
    updated_at: datetime
    tags: Mapping[str, str | int]
    accessed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Criterion:
    """One filter of SearchImageSets: EQUAL has one value, BETWEEN two, both inclusive."""

    key: str
    """The union member's name, e.g. `DICOMPatientId`, `updatedAt`, `DICOMStudyDateAndTime`, `isPrimary`."""
    values: tuple[Any, ...]
    """str, bool, datetime, or for DICOMStudyDateAndTime a (date, time) pair of DICOM strings."""


@dataclass(frozen=True, slots=True)
class SearchCriteria:
    """Exactly what SearchImageSets can express: filters joined by AND, and one sort."""

    filters: tuple[Criterion, ...] = ()
    sort_field: Literal["updatedAt", "createdAt", "DICOMStudyDateAndTime"] = "updatedAt"
    ascending: bool = False


class JobStatus(StrEnum):
    SUBMITTED = "SUBMITTED"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """StartDICOMImportJob, as asked."""

    name: str | None
    role_arn: str
    input_uri: str
    output_uri: str
    client_token: str | None = None
    actor: str | None = None


@dataclass(frozen=True, slots=True)
class ImportJob:
    """An import job (API: GetDICOMImportJob); `source` tells STOW, DIMSE and API jobs apart."""

    id: JobId
    datastore: DatastoreId
    name: str
    status: JobStatus
    source: str
    submitted_at: datetime
    ended_at: datetime | None = None
    message: str | None = None
    role_arn: str | None = None
    input_uri: str | None = None
    output_uri: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    """imported, identical, failed, warned."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where staged bytes came from, and what the sender promised about them."""

    datastore: DatastoreId
    source: Literal["stow", "dimse", "import"]
    part10: bool = True
    """True: a Part 10 file as received. False: a bare data set in `syntax`, as C-STORE carries it."""
    syntax: str | None = None
    sop_class: str | None = None
    sop_uid: str | None = None
    """Of the C-STORE command."""
    study_uid: str | None = None
    """STOW-09: the study that the request named; an instance of another one is refused."""
    called_ae: str | None = None
    calling_ae: str | None = None
    principal: str | None = None
    name: str | None = None
    """The file's name in an import job's listing, or the part's position."""


@dataclass(frozen=True, slots=True)
class Staged:
    """One instance waiting in the spool: durable once `Staging.sync` has returned after its `close`."""

    segment: str
    offset: int
    length: int
    """Of the whole spool frame, header included."""
    origin: Origin
    study_uid: str | None = None
    """As its head says; None where nobody has looked, or where that is in doubt."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One instance that was acknowledged and could not be imported, kept as it was received."""

    id: str
    job: JobId
    origin: Origin
    reason: int
    """FailureReason (0008,1197), e.g. 0xC000."""
    message: str
    """What is wrong and how to mend it; without a patient's data."""
    received_at_ms: int
    length: int
    """Of its bytes as received."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one staged instance."""

    sop_class: str | None
    sop_uid: str | None
    study_uid: str | None
    series_uid: str | None
    image_set: ImageSetId | None = None
    version: int | None = None
    is_primary: bool = True
    identical: bool = False
    """The very same content was there already: a success without a new version."""
    warning: int | None = None
    """WarningReason (0008,1196), e.g. 0xB112."""
    failure: int | None = None
    """FailureReason (0008,1197), e.g. 0xA901; None when stored."""
    message: str = ""
    """What is wrong and how to mend it; without a patient's data."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """A job's end: one outcome for each staged instance, in the order staged."""

    job: ImportJob
    outcomes: Sequence[Outcome]


@dataclass(frozen=True, slots=True)
class ConflictEntry:
    """An instance group that landed beside the primary image set, and why."""

    image_set: ImageSetId
    version: int
    study_uid: str
    series_uid: str
    attribute: str
    """The keyword that differed, e.g. `PatientID`."""
    at: datetime
    source: str
    instances: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Which instances a DICOMweb or DIMSE retrieve means (architecture section 0, Time)."""

    datastore: DatastoreId
    study: str
    series: str | None = None
    sop: str | None = None
    image_set: ImageSetId | None = None
    version: int | None = None
    as_of: datetime | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One instance at one version: enough to negotiate and to read it, without its attributes."""

    record: int
    """Opaque to all but the backend that gave it."""
    overlay: int | None
    """Opaque: edits of this instance."""
    level_overlay: int | None
    """Opaque: edits of its patient, study and series."""
    image_set: ImageSetId
    version: int
    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class: str
    received_syntax: str
    stored_syntax: str | None
    """None without pixel data. `1.2.840.10008.1.2.4.202` also while frames still wait for their encoding."""
    format: PixelFormat | None
    """Of the frames as decoding gives them; of a codestream that is kept as received, as its header told.

    None without pixel data, or where the pixel data cannot be cut into frames.
    """
    frames: int
    """Frames that can be retrieved; 0 where there are none or they cannot be told apart."""
    warning: int | None
    digest: str
    """Hexadecimal: changes exactly when the pixel data does."""


@dataclass(frozen=True, slots=True)
class Selected:
    """The answer to a Selection, in order of InstanceNumber, then SOP Instance UID."""

    entries: Sequence[Entry]
    etag: str
    """Strong validator, without quotes: changes exactly when an edit or import changes what was selected."""


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON document ready to send; `gzip` tells which of the two forms `body` is in."""

    body: bytes
    gzip: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as stored (API: GetImageFrame)."""

    id: FrameId | None
    syntax: str
    """`1.2.840.10008.1.2.1` for native little-endian samples, else the syntax of the codestream."""
    data: bytes
    crc32: int
