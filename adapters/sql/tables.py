"""The tables of the embedded store. Keys are 64-bit integers, public ids 32 hex, times integer ms UTC.

Truth and derivation are apart: `DERIVED` tables can be rebuilt from the others (`imageset-gateway db rebuild`).
A version is a number, not a document: its members are those with `v_from <= n < v_to`.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.types import TypeEngine

END = 2147483647
"""`v_to` of a member, and `seq_to` of a row, that holds until now."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite gives a row its key for free only where the type is exactly INTEGER.
Key: TypeEngine[int] = BigInteger().with_variant(Integer(), "sqlite")
# Bytewise order on both engines: prefix searches become ranges, and pages are the same everywhere.
Word: TypeEngine[str] = Text().with_variant(Text(collation="C"), "postgresql")


MAX_VERSION = 2**31 - 1
"""What `version.version` holds at most: asking the database for more is an error, not an answer."""
MAX_KEY = 2**63 - 1


def _pk() -> Column[int]:
    return Column("pk", Key, primary_key=True, autoincrement=True)


def _ref(name: str, target: str, *, nullable: bool = False, index: bool = False) -> Column[int]:
    return Column(name, Key, ForeignKey(f"{target}.pk", ondelete="RESTRICT"), nullable=nullable, index=index)


def _where_given(column: str) -> Index:
    """An index of the few rows that have a value."""
    given = text(f"{column} IS NOT NULL")
    return Index(None, column, sqlite_where=given, postgresql_where=given)


def _origin() -> list[Column[str]]:
    """Who brought it: on every row that an import or an edit makes."""
    return [Column("called_ae", Word), Column("calling_ae", Word), Column("principal", Word)]


datastore = Table(
    "datastore",
    metadata,
    _pk(),
    Column("id", Word, nullable=False, unique=True),
    Column("name", Word, nullable=False),
    Column("status", Word, nullable=False),
    Column("storage_format", Word, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

datastore_seq = Table(  # apart from datastore: this row is hot, and foreign keys must not point at a hot row
    "datastore_seq",
    metadata,
    Column("datastore_pk", Key, ForeignKey("datastore.pk"), primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False, server_default="0"),
    Column("last_at", BigInteger, nullable=False, server_default="0"),
)

blob = Table(
    "blob",
    metadata,
    _pk(),
    Column("name", Word, nullable=False, unique=True),
    Column("kind", Word, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

trash = Table(
    "trash",
    metadata,
    Column("name", Word, primary_key=True),
    Column("delete_after", BigInteger, nullable=False),
)

pixel = Table(
    "pixel",
    metadata,
    _pk(),
    _ref("datastore_pk", "datastore"),
    Column("digest", LargeBinary, nullable=False),  # SHA-256 of format and decoded frames, or of encoded bytes if kept
    _ref("blob_pk", "blob", index=True),
    Column("off", BigInteger, nullable=False),
    Column("len", BigInteger, nullable=False),
    Column("state", Word, nullable=False),  # raw, encoded, kept, opaque
    Column("syntax", Word, nullable=False),  # of the bytes as they lie there now
    Column("stored_syntax", Word, nullable=False),  # as the documents tell it: final at publication
    Column("format", Text),
    Column("n_frames", Integer, nullable=False),
    Column("frames", LargeBinary, nullable=False),  # 40 bytes a frame: adapters.embedded.frames
    UniqueConstraint("datastore_pk", "digest"),
    Index("ix_pixel_raw", "pk", sqlite_where=text("state = 'raw'"), postgresql_where=text("state = 'raw'")),
)

record = Table(
    "record",
    metadata,
    _pk(),
    Column("id", Word, nullable=False, unique=True),  # 24 hex: first part of each frame id
    _ref("datastore_pk", "datastore"),
    Column("identity", LargeBinary, nullable=False),
    Column("sop_uid", Word, nullable=False),
    Column("sop_class", Word, nullable=False),
    Column("syntax", Word, nullable=False),
    Column("number", Integer),
    Column("warning", Integer),
    Column("attrs", Text, nullable=False),  # DICOM JSON of what instance searches return
    _ref("pixel_pk", "pixel", nullable=True, index=True),
    _ref("blob_pk", "blob", index=True),  # the pack; the extents below lie in it
    Column("head", LargeBinary, nullable=False),  # packed extents: adapters.embedded.packs
    Column("json", LargeBinary, nullable=False),
    Column("node", LargeBinary, nullable=False),
    Column("fmt", SmallInteger, nullable=False, server_default="1"),
    Column("received_at", BigInteger, nullable=False),
    *_origin(),
    _ref("job_pk", "job"),
    Column("spool", Word),
    Column("spool_off", BigInteger),
    Index("uq_record_spool", "spool", "spool_off", unique=True),
)

image_set = Table(
    "image_set",
    metadata,
    _pk(),
    Column("id", Word, nullable=False, unique=True),
    _ref("datastore_pk", "datastore"),
    Column("is_primary", Boolean, nullable=False),
    Column("study_uid", Word, nullable=False),
    Column("series_uid", Word, nullable=False),
    Column("state", Word, nullable=False),
    Column("workflow", Word, nullable=False),
    Column("latest", Integer, nullable=False),  # last number given
    Column("visible", Integer, nullable=False),  # last number with content; 0 before the first, and when purged
    Column("n_instances", Integer, nullable=False),
    Column("n_frames", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),
    Column("message", Text),
    Column("accessed_at", BigInteger),  # written once a day at most; null: not read since it was made
    Index(
        "uq_image_set_primary",
        "datastore_pk",
        "series_uid",
        unique=True,
        sqlite_where=text("is_primary AND state <> 'DELETED'"),
        postgresql_where=text("is_primary AND state <> 'DELETED'"),
    ),
    Index("ix_image_set_study", "datastore_pk", "study_uid"),
    Index(
        "ix_image_set_deleted",
        "deleted_at",
        sqlite_where=text("deleted_at IS NOT NULL AND visible > 0"),
        postgresql_where=text("deleted_at IS NOT NULL AND visible > 0"),
    ),
)
LIVING_PRIMARY = text("image_set.is_primary AND image_set.state <> 'DELETED'")
"""To be asked in these words: SQLite uses a partial index only where the query repeats its condition term by term, and
would else walk the data store (`is_primary = 1` is another term)."""
DELETED_NOT_PURGED = text("image_set.deleted_at IS NOT NULL AND image_set.visible > 0")
"""In these words for the same reason."""

doc = Table(  # small content-addressed documents: levels, overlays, ready head chunks
    "doc",
    metadata,
    _pk(),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("body", LargeBinary, nullable=False),
    Column("plain", Integer, nullable=False),  # length and CRC-32 of a chunk's text; of the body itself for JSON
    Column("crc", BigInteger, nullable=False),
)

overlay = Table(  # an instance's edits, with the node chunk that they make
    "overlay",
    metadata,
    _pk(),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("changes", Text, nullable=False),
    Column("attrs", Text),  # replaces record.attrs, where an edit touches a searchable attribute
    Column("node", LargeBinary, nullable=False),
    Column("plain", Integer, nullable=False),
    Column("crc", BigInteger, nullable=False),
)

version = Table(
    "version",
    metadata,
    Column("image_set_pk", Key, ForeignKey("image_set.pk"), primary_key=True, autoincrement=False),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("content", Integer),  # whose members it shows: itself; the one before if it failed; null in progress
    Column("state", Word, nullable=False),
    Column("workflow", Word, nullable=False),
    Column("message", Text),
    Column("forced", Boolean, nullable=False, server_default=false()),
    Column("study_uid", Word, nullable=False),
    Column("series_uid", Word, nullable=False),
    _ref("levels_doc", "doc", nullable=True, index=True),
    _ref("overlay_doc", "doc", nullable=True),
    _ref("head_doc", "doc", nullable=True, index=True),
    Column("n_instances", Integer, nullable=False),
    Column("n_frames", BigInteger, nullable=False),
    Column("seq", BigInteger),
    Column("at", BigInteger, nullable=False),
    *_origin(),
    Column("reason", Text),
    _ref("job_pk", "job", nullable=True),
    _where_given("overlay_doc"),
)

member = Table(
    "member",
    metadata,
    _pk(),
    _ref("image_set_pk", "image_set"),
    Column("sop_uid", Word, nullable=False),  # the current one: an edit may have changed it
    Column("v_from", Integer, nullable=False),
    Column("v_to", Integer, nullable=False),
    _ref("record_pk", "record", index=True),
    _ref("overlay_pk", "overlay", nullable=True),
    Column("number", Integer),
    Column("sop_class", Word, nullable=False),
    Index("ix_member_manifest", "image_set_pk", "v_from"),
    _where_given("overlay_pk"),
    Index(
        "uq_member_live",
        "image_set_pk",
        "sop_uid",
        unique=True,
        sqlite_where=text(f"v_to = {END}"),
        postgresql_where=text(f"v_to = {END}"),
    ),
    Index("ix_member_sop", "sop_uid", sqlite_where=text(f"v_to = {END}"), postgresql_where=text(f"v_to = {END}")),
)

set_lock = Table(  # the insert is the lock
    "set_lock",
    metadata,
    Column("image_set_pk", Key, ForeignKey("image_set.pk"), primary_key=True, autoincrement=False),
    Column("work_pk", Key, nullable=False),
)

job = Table(
    "job",
    metadata,
    _pk(),
    Column("id", Word, nullable=False, unique=True),
    _ref("datastore_pk", "datastore"),
    Column("name", Word, nullable=False),
    Column("source", Word, nullable=False),
    Column("status", Word, nullable=False),
    Column("submitted_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("message", Text),
    Column("role_arn", Text),
    Column("input_uri", Text),
    Column("output_uri", Text),
    *_origin(),
    Column("staged", LargeBinary),  # staged instances in order: adapters.embedded.intake
    Column("n_imported", Integer, nullable=False, server_default="0"),
    Column("n_identical", Integer, nullable=False, server_default="0"),
    Column("n_failed", Integer, nullable=False, server_default="0"),
    Column("n_warned", Integer, nullable=False, server_default="0"),
    Column("outcomes", LargeBinary),
    # The spool holds the only copy of something that this job could not import: its segments stay.
    Column("keeps_spool", Boolean, nullable=False, server_default=false()),
    Index("ix_job_listing", "datastore_pk", "submitted_at", "pk"),
    Index("ix_job_kept", "pk", sqlite_where=text("keeps_spool"), postgresql_where=text("keeps_spool")),
)

job_segment = Table(  # which spool segments a job's instances lie in: what a restart must not submit again
    "job_segment",
    metadata,
    Column("segment", Word, primary_key=True),
    Column("job_pk", Key, ForeignKey("job.pk"), primary_key=True, autoincrement=False),
    Index("ix_job_segment_job", "job_pk"),
)

work = Table(
    "work",
    metadata,
    _pk(),
    Column("kind", Word, nullable=False),
    Column("lock_key", Word),
    Column("subject", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    Column("state", Word, nullable=False),  # waiting, running, failed; a finished item is deleted
    Column("run_after", BigInteger, nullable=False),
    Column("owner", Word),  # of a waiting item: for whom it is kept, for a moment
    Column("lease_until", BigInteger),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("error", Text),
    Index("ix_work_next", "state", "priority", "pk"),
    Index(
        "uq_work_lock",
        "lock_key",
        unique=True,
        sqlite_where=text("state = 'running' AND lock_key IS NOT NULL"),
        postgresql_where=text("state = 'running' AND lock_key IS NOT NULL"),
    ),
)

client_token = Table(
    "client_token",
    metadata,
    Column("operation", Word, primary_key=True),
    Column("token", Word, primary_key=True),
    Column("request_digest", LargeBinary, nullable=False),
    Column("answer", Word, nullable=False),
)

conflict = Table(
    "conflict",
    metadata,
    _pk(),
    _ref("datastore_pk", "datastore"),
    _ref("image_set_pk", "image_set"),
    Column("attribute", Word, nullable=False),
    Column("source", Word, nullable=False),
    Column("instances", Integer, nullable=False),
    Column("at", BigInteger, nullable=False),
    Index("ix_conflict_listing", "datastore_pk", "pk"),
)

change = Table(
    "change",
    metadata,
    Column("datastore_pk", Key, ForeignKey("datastore.pk"), primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("kind", Word, nullable=False),
    _ref("image_set_pk", "image_set", nullable=True),
    Column("version", Integer),
    _ref("job_pk", "job", nullable=True),
    Column("principal", Word),
    Column("body", Text),
    Index("ix_change_at", "datastore_pk", "at"),
)

tag = Table(
    "tag",
    metadata,
    Column("resource", Word, primary_key=True),  # datastoreId, or datastoreId/imageSetId
    Column("key", Word, primary_key=True),
    Column("value", Text, nullable=False),
)

event = Table(  # what a webhook is still to be told, in order; a row goes once it has been delivered
    "event",
    metadata,
    _pk(),
    Column("body", Text, nullable=False),
)


# ---------------------------------------------------------------- derived: search


def _study_columns() -> list[Column[object]]:
    columns: list[Column[object]] = [
        Column("datastore_pk", Key, nullable=False),
        Column("study_uid", Word, nullable=False),
    ]
    for name in ("patient_id", "accession", "study_id", "study_date", "study_time", "birth_date", "sex", "description"):
        columns.append(Column(name, Word, nullable=False, server_default=""))
    columns.append(Column("attrs", Text, nullable=False))  # DICOM JSON of the patient and study levels
    columns.append(Column("seq_from", BigInteger, nullable=False))  # since when these values hold
    return columns


def _set_columns() -> list[Column[object]]:
    columns: list[Column[object]] = [
        Column("datastore_pk", Key, nullable=False),
        Column("is_primary", Boolean, nullable=False),
        Column("study_uid", Word, nullable=False),
        Column("series_uid", Word, nullable=False),
    ]
    for name in (
        "patient_id",
        "accession",
        "study_id",
        "study_date",
        "study_time",
        "modality",
        "series_number",
        "series_description",
        "body_part",
    ):
        columns.append(Column(name, Word, nullable=False, server_default=""))
    columns.append(Column("attrs", Text, nullable=False))  # DICOM JSON of the patient, study and series levels
    columns.append(Column("seq_from", BigInteger, nullable=False))
    return columns


study = Table(  # over primary image sets only
    "study",
    metadata,
    _pk(),
    *_study_columns(),
    Column("modalities", Word, nullable=False, server_default=""),  # sorted, joined by backslash
    Column("n_series", Integer, nullable=False),
    Column("n_instances", Integer, nullable=False),
    Column("changed", BigInteger, nullable=False),  # seq of the last version in it: newest update first
    Index("uq_study_uid", "datastore_pk", "study_uid", unique=True),
    Index("ix_study_changed", "datastore_pk", "changed", "pk"),
    Index("ix_study_patient", "datastore_pk", "patient_id"),
    Index("ix_study_accession", "datastore_pk", "accession"),
    Index("ix_study_id", "datastore_pk", "study_id"),
    Index("ix_study_date", "datastore_pk", "study_date", "study_time"),
    Index("ix_study_description", "datastore_pk", "description"),
    Index("ix_study_birth", "datastore_pk", "birth_date"),
)

study_past = Table(
    "study_past",
    metadata,
    _pk(),
    *_study_columns(),
    Column("seq_to", BigInteger, nullable=False),
    Index("ix_study_past_uid", "datastore_pk", "study_uid", "seq_from"),
    Index("ix_study_past_patient", "datastore_pk", "patient_id"),
    Index("ix_study_past_date", "datastore_pk", "study_date"),
)

study_name = Table(  # person names, normalised: components of each group, whole groups, and words
    "study_name",
    metadata,
    _pk(),
    Column("datastore_pk", Key, nullable=False),
    Column("kind", Word, nullable=False),  # the attribute's tag, 8 hex
    Column("norm", Word, nullable=False),
    Column("study_pk", Key, ForeignKey("study.pk", ondelete="CASCADE"), nullable=False, index=True),
    Index("ix_study_name_norm", "datastore_pk", "kind", "norm", "study_pk"),
)

TAIL = 16
"""Characters of a tail that text_tail keeps."""
TAILED = 64
"""Characters of a text up to which text_tail has its tails."""

# What stands inside a text is the beginning of one of its tails, so that a range finds it: of two characters as of ten,
# in any script, on both engines. A text beyond TAILED characters has one row, with an empty tail: always looked at.
# Rows stay when the last study with a text is deleted, until the purge: a search joins them to what there is, and asOf
# to what there was.
text_tail = Table(
    "text_tail",
    metadata,
    Column("datastore_pk", Key, primary_key=True, autoincrement=False),
    Column("kind", Word, primary_key=True),  # the attribute's tag, 8 hex
    Column("tail", Word, primary_key=True),
    Column("text", Word, primary_key=True),  # as in the column of study, or in study_name.norm
    # The study that brought it: with it in the key, transactions that bring one text at once need not wait for each
    # other. No foreign key: the study may go.
    Column("study_pk", Key, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

study_modality = Table(
    "study_modality",
    metadata,
    Column("datastore_pk", Key, primary_key=True, autoincrement=False),
    Column("modality", Word, primary_key=True),
    Column("changed", BigInteger, primary_key=True, autoincrement=False),
    Column("study_pk", Key, ForeignKey("study.pk", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Index("ix_study_modality_study", "study_pk"),
)

set_index = Table(  # one row for each image set that is not deleted, primary or not
    "set_index",
    metadata,
    Column("image_set_pk", Key, ForeignKey("image_set.pk"), primary_key=True, autoincrement=False),
    *_set_columns(),
    Column("number", Integer),  # SeriesNumber as a number, for the order of series
    Column("n_instances", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index("ix_set_index_series", "datastore_pk", "series_uid"),
    Index("ix_set_index_study", "datastore_pk", "study_uid"),
    Index("ix_set_index_patient", "datastore_pk", "patient_id"),
    Index("ix_set_index_accession", "datastore_pk", "accession"),
    Index("ix_set_index_study_id", "datastore_pk", "study_id"),
    Index("ix_set_index_date", "datastore_pk", "study_date", "study_time"),
    Index("ix_set_index_modality", "datastore_pk", "modality", "series_uid"),
    Index("ix_set_index_updated", "datastore_pk", "updated_at", "image_set_pk"),
    Index("ix_set_index_created", "datastore_pk", "created_at", "image_set_pk"),
    Index(
        "ix_set_index_conflicts",
        "datastore_pk",
        "updated_at",
        sqlite_where=text("NOT is_primary"),
        postgresql_where=text("NOT is_primary"),
    ),
)

set_index_past = Table(
    "set_index_past",
    metadata,
    _pk(),
    Column("image_set_pk", Key, nullable=False),
    *_set_columns(),
    Column("seq_to", BigInteger, nullable=False),
    Index("ix_set_index_past_set", "image_set_pk", "seq_from"),
    Index("ix_set_index_past_study", "datastore_pk", "study_uid"),
)

DERIVED = (text_tail, study_name, study_modality, study, study_past, set_index, set_index_past)
"""In the order in which they can be emptied."""
